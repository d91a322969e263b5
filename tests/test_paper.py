"""The papers' experiments as commands, in miniature: what they train, remove, print and record."""

import json
import re
import shutil

import numpy as np
import pytest
from paper_data import write_cifar10, write_cifar100
from paper_process import InProcess
from training_runs import without_pictures

from fastac.data import read_id_file
from fastac.history import ScoreHistory
from fastac.issues import draw_threshold_sets, find_threshold_issues
from fastac.issues.run_scores import rank_run
from fastac.paper import runner
from fastac.paper.__main__ import main
from fastac.paper.aum import aum_after_first_epoch, aum_runs, flagged_ids
from fastac.paper.runs import Settings
from fastac.run import RunFolder

SMALL = ["--device", "cpu", "--set", "model=cnn", "batch_size=20", "tensorboard=false", "threads=1"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_pictures(monkeypatch)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.001)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_cifar10(folder, 220, 40)
    write_cifar100(folder)
    return folder


def words(what, data, output, *more):
    return [what, "--data-dir", str(data), "--output", str(output), *SMALL, *more]


# ---------------------------------------------------------------- table 6, with AUM


@pytest.fixture(scope="module")
def table6(data, tmp_path_factory):
    """Table 6 with two seeds, ready; its output, and what was started."""
    output, start = tmp_path_factory.mktemp("table6"), InProcess()
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        argv = words("table6", data, output, "--rows", "cifar10-resnet32", "--seeds", "2", "--short", "0.01")
        assert main(argv, start=start) == 0
    return output, start.started, argv


def test_table_6_trains_each_run_once(table6, capsys):
    output, started, argv = table6
    seed0 = [name for name in started if "-seed0-" in name]
    assert seed0 == [
        "cifar10-resnet32+baseline-seed0-short0.01",
        "cifar10-resnet32-aum-set1-seed0-short0.01",
        "cifar10-resnet32-aum-set2-seed0-short0.01",
        "cifar10-resnet32-without-flagged-seed0-short0.01",
        "cifar10-resnet32+ac1-seed0-short0.01",
    ]
    assert started == seed0 + [name.replace("seed0", "seed1") for name in seed0]
    again = InProcess()
    assert main(argv, start=again) == 0
    assert again.started == []
    assert main([*argv, "--no-train", "--seeds", "3"], start=again) == 0
    assert again.started == []
    assert "0 cell(s) without a finished run, 3 with fewer seeds than 3" in capsys.readouterr().out


def test_table_6_prints_ours_beside_the_published(table6, capsys):
    output, _, argv = table6
    main([*argv, "--no-train"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    (ours,) = [line for line in lines if line.startswith("  here, × 0.01 of the epochs")]
    (published,) = [line for line in lines if line.startswith("  published")]
    assert published.split() == ["published", "91.9", "92.1", "92.75", "±", "0.06"]
    record = json.loads((output / "table6-short0.01.json").read_text())
    assert [(cell["row"], cell["seeds"]) for cell in record["cells"]] == [
        *[("cifar10-resnet32", 2)] * 3,
        *[("cifar100-resnet32", 0)] * 3,
    ]
    for cell in record["cells"][:3]:
        accuracies = [run["test_accuracy"] for run in cell["runs"]]
        assert len(accuracies) == 2
        assert cell["mean"] == pytest.approx(50 * sum(accuracies))
        assert f"{cell['mean']:.2f} ± {cell['half_of_95_percent_interval']:.2f}" in ours
        assert cell["short"] == 0.01
        assert [run["short"] for run in cell["runs"]] == [0.01, 0.01]
        assert all(run["git"] is None or run["git"]["revision"] for run in cell["runs"])
    assert "with model=cnn, batch_size=20 (--set): not the papers' experiment" in lines
    assert "trained for 0.01 of the recipes' epochs (--short): not the papers' experiment" in lines
    markdown = (output / "table6-short0.01.md").read_text()
    assert "| CIFAR-10 | here, × 0.01 of the epochs |" in markdown
    assert "| | published | 91.9 | 92.1 | 92.75 ± 0.06 |" in markdown
    assert (output / "table6-short0.01.png").stat().st_size > 5000


def test_the_aum_runs_follow_the_protocol(table6):
    output, *_ = table6
    runs = [RunFolder(output / f"cifar10-resnet32-aum-set{i}-seed1-short0.01") for i in (1, 2)]
    sets = draw_threshold_sets(220, 10, seed=1)
    given = np.arange(220) % 10
    aums = []
    for run, ids in zip(runs, sets, strict=True):
        labels = run.read_labels()
        wanted = given.copy()
        wanted[ids] = 10
        np.testing.assert_array_equal(labels, wanted)
        result = json.loads(run.result.read_text())
        assert (result["classes"], result["epochs"], result["loss"]) == (11, 2, "ce")  # 150 × 0.01
        aums.append(aum_after_first_epoch(run))
        history = ScoreHistory(run.history).read(np.arange(220))
        assert history["epoch"].tolist() == [1, 2]
        # The margin of epoch 2, by another way: twice the AUM after it less that of the first.
        by_history = 2 * history["score"][1] - history["score"][0]
        np.testing.assert_allclose(aums[-1], by_history, atol=0.02)
    flagged = find_threshold_issues(np.stack(aums), sets, given)
    wanted = np.sort(flagged.loc[flagged["is_label_issue"], "index"])
    removed = read_id_file(
        output / "exclude" / "cifar10-resnet32-without-flagged-seed1-short0.01.csv", num_samples=220
    )
    np.testing.assert_array_equal(removed, wanted)
    np.testing.assert_array_equal(flagged_ids([run.path for run in runs]), wanted)
    last = json.loads(
        (output / "cifar10-resnet32-without-flagged-seed1-short0.01" / "result.json").read_text()
    )
    assert (last["left_out"], last["loss"], last["epochs"], last["classes"]) == (len(wanted), "ce", 3, 10)


def test_flagged_ids_of_runs_that_do_not_belong_together(table6):
    output, *_ = table6
    first = output / "cifar10-resnet32-aum-set1-seed0-short0.01"
    for other in (first, output / "cifar10-resnet32-aum-set1-seed1-short0.01"):
        with pytest.raises(ValueError, match="should be the two threshold runs of one seed"):
            flagged_ids([first, other])


def test_noise_is_the_same_in_all_runs_of_a_seed(tmp_path):
    runs = aum_runs("cifar10-resnet32+noise-uniform-40", 3, Settings(tmp_path))
    assert [run.name for run in runs] == [
        "cifar10-resnet32-aum+noise-uniform-40-set1-seed3",
        "cifar10-resnet32-aum+noise-uniform-40-set2-seed3",
        "cifar10-resnet32+noise-uniform-40-without-flagged-seed3",
    ]
    configs = [run.config() for run in runs]
    assert [c.data.threshold_set for c in configs] == [1, 2, 0]
    assert [(c.data.noise_rate, c.data.noise_seed, c.run.seed) for c in configs] == [(0.4, 3, 3)] * 3


def test_aum_without_its_first_epoch(tmp_path):
    """Four samples: seen in three epochs, not in the first, in the first only, never."""
    run = RunFolder(tmp_path)
    run.result.write_text(json.dumps({"epochs": 3}))
    rows = [(0, 3, 2.0), (1, 2, -1.0), (2, 1, 5.0), (3, 0, "")]
    run.dynamics.write_text("index,count,aum\n" + "".join(f"{i},{n},{aum}\n" for i, n, aum in rows))
    with pytest.raises(ValueError, match="has no AUM of its first epoch"):
        aum_after_first_epoch(run)
    ScoreHistory(run.history).write(1, np.array([4.0, np.nan, 5.0, np.nan]))
    np.testing.assert_array_equal(aum_after_first_epoch(run), [1.0, -1.0, np.nan, np.nan])
    run.result.write_text(json.dumps({"epochs": 1}))
    np.testing.assert_array_equal(aum_after_first_epoch(run), [2.0, -1.0, 5.0, np.nan])


# ---------------------------------------------------------------- figure 3


def test_figure_3(data, tmp_path, capsys):
    start = InProcess()
    argv = words("figure3", data, tmp_path, "--rows", "cifar10-wrn40-2", "--seeds", "1", "--taus", "0,5,10")
    argv += ["--set", "aa=none", "cutout=0", "--short", "0.01"]
    assert main(argv, start=start) == 0
    assert start.started == [
        "cifar10-wrn40-2+ac1-aa-seed0-short0.01",
        "cifar10-wrn40-2+aa-seed0-short0.01",
        "cifar10-wrn40-2+aa-trimmed5-seed0-short0.01",
        "cifar10-wrn40-2+aa-trimmed10-seed0-short0.01",
    ]
    ranking = rank_run(tmp_path / start.started[0], method="alpha")
    for tau, count in ((5, 11), (10, 22)):
        name = f"cifar10-wrn40-2+aa-trimmed{tau}-seed0-short0.01"
        removed = read_id_file(tmp_path / "exclude" / f"{name}.csv", num_samples=220)
        assert removed.tolist() == sorted(ranking["index"][:count])  # Algorithm 2's list from its top
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert (result["left_out"], result["loss"], result["epochs"]) == (count, "ce", 2)
    text = capsys.readouterr().out
    assert "τ = 5 %" in text
    assert "with model=cnn, batch_size=20, aa=none, cutout=0 (--set)" in text
    record = json.loads((tmp_path / "figure3-short0.01.json").read_text())
    columns = ["ac1-aa", "0", "0.2", "0.4", "0.6", "0.8", "1", "5", "10"]  # the figure's own and those given
    first = record["cells"][: len(columns)]
    assert [cell["column"] for cell in first] == columns
    assert [cell["seeds"] for cell in first] == [1, 1, 0, 0, 0, 0, 0, 1, 1]
    assert (tmp_path / "figure3-short0.01.png").stat().st_size > 5000
    # Another command has no τ of these: they stay in the files, and are not in what it prints.
    capsys.readouterr()
    assert main([*argv, "--no-train", "--columns", "ac1-aa", "--taus", "2.5"], start=start) == 0
    assert "τ" not in capsys.readouterr().out.replace("τ = 0.2 % on both", "")
    again = json.loads((tmp_path / "figure3-short0.01.json").read_text())["cells"]
    assert [cell["column"] for cell in again if cell["row"] == "cifar10-wrn40-2"] == columns
    assert [cell["mean"] for cell in again] == [cell["mean"] for cell in record["cells"]]


# ---------------------------------------------------------------- the command


def test_a_failed_run_is_reported_and_the_table_has_the_rest(data, tmp_path, capsys):
    argv = words("table6", data, tmp_path, "--rows", "cifar10-resnet32", "--columns", "baseline", "ac1")
    argv += ["--set", "train_limit=40", "--short", "0.01", "--seeds", "1"]
    start = InProcess()
    real = start.create

    def create(name, *, num_classes, in_channels):
        if "+ac1-" in start.started[-1]:
            raise ValueError("the network can't be made")
        return real(name, num_classes=num_classes, in_channels=in_channels)

    start.create = create
    assert main(argv, start=start) == 1
    printed = capsys.readouterr()
    assert "error: the network can't be made" in printed.err  # the end of its log
    assert "1 run(s) failed: cifar10-resnet32+ac1-seed0-short0.01" in printed.err
    assert "(1 run)" in printed.out
    assert "not run" in printed.out
    record = json.loads((tmp_path / "table6-short0.01.json").read_text())
    assert list(record["failed"]) == ["cifar10-resnet32+ac1-seed0-short0.01"]


def copy_of(table6, tmp_path):
    """The output of `table6` for a test that writes, and the command with it."""
    output, _, argv = table6
    shutil.copytree(output, tmp_path / "out")
    return tmp_path / "out", [str(tmp_path / "out") if word == str(output) else word for word in argv]


def never(run, slot, lock):
    raise AssertionError(f"{run.name} was started")


def test_a_part_is_printed_and_all_is_written(table6, tmp_path, capsys):
    """One column and one seed: the files keep the others, and the second seed."""
    output, argv = copy_of(table6, tmp_path)
    assert main([*argv, "--no-train"], start=never) == 0
    paths = [output / f"table6-short0.01.{suffix}" for suffix in ("json", "md")]
    cells, markdown = json.loads(paths[0].read_text())["cells"], paths[1].read_text()
    for path in paths:
        path.unlink()
    capsys.readouterr()
    part = [*argv, "--no-train", "--columns", "ac1", "--seeds", "1"]
    assert main(part, start=never) == 0
    text = capsys.readouterr().out
    assert "AUM" not in text.replace("AUM's reference code", "")
    assert "(1 run)" in text
    assert json.loads(paths[0].read_text())["cells"] == cells
    assert paths[1].read_text() == markdown
    assert [cell["seeds"] for cell in cells] == [2, 2, 2, 0, 0, 0]
    assert markdown.count("not run") == 3
    assert not list(output.glob(".*.tmp"))


@pytest.mark.parametrize(
    "more", [["--no-train"], ["--no-train", "--columns", "ac1"], ["--columns", "ac1"], ["--dry-run"]]
)
def test_runs_of_other_settings_are_not_printed_as_these(table6, tmp_path, capsys, more):
    """The first settings are table6's without the --set, the second differ in one key; and where those runs are of
    another column than the command's."""
    output, argv = copy_of(table6, tmp_path)
    before = {path: path.read_bytes() for path in output.glob("table6*")}
    plain = [word for word in argv if word not in argv[argv.index("--set") : argv.index("--rows")]]
    for command in (plain, [*argv, "--set", "lr=0.2"], [*argv, "--set", "max_steps=5"]):
        assert main([*command, *more], start=never) == 2
        printed = capsys.readouterr()
        assert "is a run with other settings" in printed.err
        assert printed.out == ""
    for folder in output.glob("*+ac1-*"):
        shutil.rmtree(folder)
    assert main([*argv, "--set", "max_steps=5", *more], start=never) == 2
    assert "max_steps was 5, not 0. Give another --output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.glob("table6*")} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table6", "--taus", "0,0.2"], "taus was '0.0, 0.2'; it is for figure3, not for table6"),
        (["table1", "--taus", "0"], "taus was '0.0'; it is for figure3, not for table1"),
        (
            ["table1", "--rows", "a", "b"],
            "rows was 'a, b'; it is for experiments that train networks, not for table1",
        ),
        (["table7", "--columns", "aa"], "columns was 'aa'; .*, not for table7"),
        (["theorems", "--seeds", "3"], "seeds was '3'; .*, not for theorems"),
        (["list", "--short", "0.1"], "short was '0.1'; .*, not for list"),
        (["list", "--data-dir", "data"], "data_dir was 'data'; "),
        (["list", "--output", "out"], "output was 'out'; "),
        (["list", "--device", "cpu"], "device was 'cpu'; "),
        (["list", "--jobs", "2"], "jobs was '2'; "),
        (["list", "--set", "lr=0.2", "epochs=3"], "set was 'lr=0.2, epochs=3'; "),
        (["list", "--dry-run"], "dry_run was 'True'; "),
        (["list", "--no-train"], "no_train was 'True'; "),
        (["figure3", "--taus", ""], "taus was empty"),
    ],
)
def test_options_that_a_command_has_no_use_for(capsys, words, message):
    assert main(words, start=never) == 2
    printed = capsys.readouterr()
    assert re.match(f"fastac.paper: error: {message}", printed.err)
    assert printed.out == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--rows", "cifar10-resnet3"],
            "rows was 'cifar10-resnet3'; table6 has .*did you mean cifar10-resnet32?",
        ),
        (["--columns", "aa"], "columns was 'aa'; table6 has baseline, aum, ac1"),
        (["--seeds", "0"], "seeds was 0; it should be at least 1"),
        (["--jobs", "0"], "jobs was 0; it should be at least 1"),
        (["--short", "0"], "short was 0.0; it should be above 0"),
        (["--short", "2"], "short was 2.0; it should be above 0 and at most 1"),
        (["--data-dir", "nowhere"], "data_dir was 'nowhere'; there is no such folder"),
        (["--set", "batch_size=0"], "batch_size was 0; it should be at least 1"),
        (["--set", "bath_size=3"], "there is no option --bath-size"),
    ],
)
def test_wrong_options(data, tmp_path, capsys, more, message):
    assert main(words("table6", data, tmp_path / "out", *more), start=never) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastac.paper: error: ")
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


def test_data_dir_is_missing(tmp_path, capsys):
    assert main(["table2", "--output", str(tmp_path / "out")]) == 2
    assert "cifar10 needs --data-dir" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run(data, tmp_path, capsys):
    start = InProcess()
    argv = [
        "table6",
        "--dry-run",
        "--seeds",
        "2",
        "--columns",
        "aum",
        "ac1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(argv, start=start) == 0
    text = capsys.readouterr().out
    # 150 epochs of 782 batches twice, 300 of 195 twice; two data sets, two seeds
    assert f"16 runs, about {4 * (2 * 150 * 782 + 2 * 300 * 195):,} steps to go" in text
    assert "117,300 steps  cifar10-resnet32-aum-set1-seed0\n" in text
    assert "after cifar100-resnet32-aum-set1-seed1, cifar100-resnet32-aum-set2-seed1" in text
    assert "python -m fastac.train --recipe cifar10-resnet32-aum --resume auto" in text
    assert not (tmp_path / "out").exists()


def test_threads_are_shared_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    argv = ["table6", "--dry-run", "--seeds", "1", "--device", "cpu", "--output", str(tmp_path)]
    main([*argv, "--jobs", "3"])
    assert "--threads=2" in capsys.readouterr().out
    main([*argv, "--jobs", "3", "--set", "threads=1"])
    assert "--threads=1" in capsys.readouterr().out
    main(argv)
    assert "--threads" not in capsys.readouterr().out
