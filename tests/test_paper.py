"""The papers' experiments as commands, in miniature: what they train, remove, print and record."""

import json
import re
import shutil

import numpy as np
import pytest
from paper_data import write_cifar10, write_cifar100
from paper_process import InProcess
from training_runs import without_pictures

from fastac.config import load_config
from fastac.data import read_id_file
from fastac.history import ScoreHistory
from fastac.issues import draw_threshold_sets, find_threshold_issues
from fastac.issues.run_scores import rank_run
from fastac.paper import runner
from fastac.paper.__main__ import main
from fastac.paper.aum import aum_after_first_epoch, aum_runs, flagged_ids
from fastac.paper.finished import finished_runs
from fastac.paper.grid import GRIDS, figure3
from fastac.paper.published import TABLE_7, TABLES, Published
from fastac.paper.runs import UNCOMMITTED, Run, Settings
from fastac.paper.summary import summarize
from fastac.paper.tables import collect
from fastac.paper.trimming import trimmed_chain
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


# ---------------------------------------------------------------- the grids


# As the paper prints them: its name of the row's data and network, then the figures column by column.
PAPER = {
    "table2": """
        cifar10-wrn40-2 | 94.70 | 95.90 | 96.30 | 96.30 | - | 96.56 ± 0.11
        cifar10-wrn28-10 | 96.13 | 96.92 | 97.32 | 97.30 | 97.42 | 97.53 ± 0.08
        cifar10-shake-shake-26-2x32d | 96.45 | 96.98 | 97.53 | 97.50 | 97.46 | 97.60 ± 0.07
        cifar10-shake-shake-26-2x96d | 97.14 | 97.44 | 98.01 | 98.00 | 97.97 | 98.12 ± 0.11
        cifar10-shake-shake-26-2x112d | 97.18 | 97.43 | 98.11 | 98.10 | 97.97 | 98.27 ± 0.05
        cifar10-pyramidnet | 97.33 | 97.69 | 98.52 | 98.30 | 98.54 | 98.59 ± 0.05""",
    "table3": """
        cifar100-wrn40-2 | 74.00 | 74.80 | 79.30 | 79.40 | - | 79.94 ± 0.20
        cifar100-wrn28-10 | 81.20 | 81.59 | 82.91 | 82.70 | 83.27 | 84.07 ± 0.18
        cifar100-shake-shake-26-2x96d | 82.95 | 84.00 | 85.72 | 85.40 | 84.69 | 86.19 ± 0.12
        cifar100-pyramidnet | 86.01 | 87.81 | 89.33 | 88.30 | 89.06 | 89.40 ± 0.11""",
    "table4": """
        svhn-wrn28-10 | 98.50 | 98.70 | 98.93 | 98.90 | 98.82 | 98.96""",
    "table5": """
        imagenet-resnet50 | 75.30 / 92.20 | 77.63 / 93.82 | 77.60 / 93.70 | 77.71 / 93.58""",
    "table6": """
        cifar10-resnet32 | 91.9 | 92.1 | 92.75 ± 0.06
        cifar100-resnet32 | 67.0 | 68.2 | 69.13 ± 0.24""",
    "table8": """
        cifar10-wrn40-2 | 96.30 | 96.56 ± 0.11 | 96.54 ± 0.11
        cifar10-wrn28-10 | 97.32 | 97.53 ± 0.08 | 97.48 ± 0.06
        cifar100-wrn40-2 | 79.30 | 79.94 ± 0.20 | 79.86 ± 0.19
        cifar100-wrn28-10 | 82.91 | 84.07 ± 0.18 | 84.12 ± 0.17""",
}
COLUMNS = {
    "table2": "Baseline Cutout AA FAA PBA AC1+AA",
    "table3": "Baseline Cutout AA FAA PBA AC1+AA",
    "table4": "Baseline Cutout AA FAA PBA AC1+AA",
    "table5": "Baseline AA FAA AC2+AA",
    "table6": "Baseline AUM AC1",
    "table8": "AA AC1+AA AC2+AA",
}


@pytest.mark.parametrize("name", PAPER)
def test_the_grids_have_the_published_cells(name):
    grid = GRIDS[name]
    assert list(grid.columns.values()) == COLUMNS[name].split()
    lines = []
    for row in grid.rows:
        cells = [grid.cells.get((row, column)) for column in grid.columns]
        lines.append(" | ".join([row, *("-" if cell is None else str(cell.published) for cell in cells)]))
    assert lines == [line.strip() for line in PAPER[name].strip().splitlines()]


def test_all_published_tables_have_a_grid():
    assert TABLES.keys() == PAPER.keys()
    assert TABLES.keys() <= GRIDS.keys()
    assert GRIDS["table2"].cells["cifar10-pyramidnet", "ac1-aa"].published == Published(98.59, 0.05)


# Table 7 as the paper prints it.
TABLE_7_ROWS = """
    cifar10-resnet32 ResNet-32 0.1 multistep 0.0001 256 300
    cifar10-wrn40-2 Wide-ResNet-40-2 0.1 cosine 0.0002 128 200
    cifar10-wrn28-10 Wide-ResNet-28-10 0.1 cosine 0.0005 128 200
    cifar10-shake-shake-26-2x32d Shake-Shake (26 2x32d) 0.01 cosine 0.001 128 1800
    cifar10-shake-shake-26-2x96d Shake-Shake (26 2x96d) 0.01 cosine 0.001 128 1800
    cifar10-shake-shake-26-2x112d Shake-Shake (26 2x112d) 0.01 cosine 0.001 128 1800
    cifar10-pyramidnet PyramidNet+ShakeDrop 0.05 cosine 5e-05 64 1800
    cifar100-resnet32 ResNet-32 0.1 multistep 0.0001 256 300
    cifar100-wrn28-10 Wide-ResNet-28-10 0.1 cosine 0.0005 128 200
    cifar100-shake-shake-26-2x96d Shake-Shake (26 2x96d) 0.01 cosine 0.0025 128 1800
    cifar100-pyramidnet PyramidNet+ShakeDrop 0.025 cosine 0.0005 64 1800
    svhn-wrn28-10 Wide-ResNet-28-10 0.005 cosine 0.001 128 200
    imagenet-resnet50 ResNet-50 0.1 multistep 0.0001 256 270
"""


def test_table_7_is_the_published_one():
    lines = [
        f"{name} {s.model} {s.lr} {s.schedule} {s.weight_decay} {s.batch_size} {s.epochs}"
        for name, s in TABLE_7.items()
    ]
    assert lines == [line.strip() for line in TABLE_7_ROWS.strip().splitlines()]
    steps = {name: s.milestones for name, s in TABLE_7.items() if s.schedule == "multistep"}
    assert steps == {
        "cifar10-resnet32": (150, 225),
        "cifar100-resnet32": (150, 225),
        "imagenet-resnet50": (90, 180, 240),
    }


def test_every_cell_has_recipes_that_load(tmp_path):
    for grid in GRIDS.values():
        for cell in grid.cells.values():
            for run in cell.runs(0, Settings(tmp_path)):
                assert run.config().run.seed == 0


def test_what_a_cell_trains():
    def data_of(table, row, column):
        return load_config(GRIDS[table].cells[row, column].recipe).data

    svhn = data_of("table4", "svhn-wrn28-10", "ac1-aa")
    assert (svhn.dataset, svhn.aa, svhn.cutout) == ("svhn-extra", "autoaugment", 20)
    assert data_of("table4", "svhn-wrn28-10", "baseline").cutout == 0
    cifar = data_of("table3", "cifar100-wrn28-10", "pba")
    assert (cifar.dataset, cifar.aa, cifar.cutout) == ("cifar100", "pba", 16)
    noisy = data_of("noise", "cifar10-uniform-40-no-augment", "ac1")
    assert (noisy.noise, noisy.noise_rate, noisy.augment) == ("uniform", 0.4, "none")
    imagenet = {column: cell.recipe for (_, column), cell in GRIDS["table5"].cells.items()}
    assert imagenet["aa"] == "imagenet-resnet50+aa+cutout-0"
    assert imagenet["faa"] == "imagenet-resnet50+faa+cutout-0"


def test_tables_share_their_runs(tmp_path):
    settings = Settings(tmp_path)
    shared = GRIDS["table2"].cells["cifar10-wrn40-2", "ac1-aa"].runs(2, settings)
    assert GRIDS["table8"].cells["cifar10-wrn40-2", "ac1-aa"].runs(2, settings) == shared
    assert GRIDS["figure3"].cells["cifar10-wrn40-2", "ac1-aa"].runs(2, settings) == shared
    detector, trimmed = GRIDS["figure3"].cells["cifar10-wrn40-2", "0.2"].runs(2, settings)
    assert [detector] == shared
    assert trimmed.needs == (detector.name,)
    assert GRIDS["figure3"].cells["cifar10-wrn40-2", "0"].runs(2, settings) == GRIDS["table2"].cells[
        "cifar10-wrn40-2", "aa"
    ].runs(2, settings)


def test_mean_and_interval():
    assert summarize([]) is None
    one = summarize([0.9])
    assert (one.mean, one.half, str(one)) == (90.0, None, "90.00 (1 run)")
    five = summarize([0.90, 0.91, 0.92, 0.93, 0.94])
    assert five.mean == pytest.approx(92.0)
    assert five.half == pytest.approx(2.776445 * 1.5811388 / 5**0.5)  # t of 4 degrees of freedom
    assert str(five) == "92.00 ± 1.96"


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


def test_what_was_removed(tmp_path):
    """Six labels, of which 1 and 4 are wrong; 4 and 5 are left out."""
    (tmp_path / "ids.csv").write_text("index\n4\n5\n")
    run = Run("run", "digits", Settings(tmp_path), {"exclude": str(tmp_path / "ids.csv")})
    run.folder.path.mkdir()
    run.folder.result.write_text(json.dumps({"test_accuracy": 0.5}))
    write_environment(run, None)
    given, truth = [0, 1, 2, 3, 4, 5], [0, 0, 2, 3, 0, 5]
    run.folder.write_labels(np.array(given), np.array(truth))
    removed = run.result()["removed"]
    assert removed == {"labels": 6, "removed": 2, "wrong": 2, "wrong_removed": 1}
    grid = GRIDS["digits"].select(["demo"], ["aum"])
    (_, _, last) = grid.cells["demo", "aum"].runs(0, Settings(tmp_path))
    report = collect(grid, Settings(tmp_path), 1, {last.name: run.result()}, {})
    assert (
        "20 % uniform, AUM: 33.33% of the labels left out, 50.0% of these wrong; 50.0% of the wrong ones left out"
        in report.text().splitlines()
    )
    run.folder.write_labels(np.array(given), None)
    assert run.result()["removed"] == {"labels": 6, "removed": 2}


def write_environment(run, *revisions):
    """A stamp for the start and for each time the run was gone on with: a revision, with + behind it where files
    differed; None where there is no checkout."""
    for revision in revisions:
        git = revision and {"revision": revision.rstrip("+") * 10, "dirty": revision.endswith("+")}
        stamp = {"git": git, "fastac": "0.9", "device": "x", "started": "now", "packages": {"torch": "2"}}
        run.folder.write_environment(stamp)


@pytest.mark.parametrize(
    ("stamps", "remark"),
    [
        ([["aaaa"], ["aaaa"], ["aaaa", "aaaa"]], None),
        ([[None], [None], [None]], None),
        ([["aaaa"], ["aaaa"], ["aaaa", "bbbb"]], "made by 2 revisions: aaaaaaa, bbbbbbb"),  # gone on with
        ([["aaaa"], ["cccc"], ["aaaa"]], "made by 2 revisions: aaaaaaa, ccccccc"),  # a threshold run's
        ([["aaaa"], [None], ["bbbb+"]], f"made by 3 revisions: aaaaaaa, bbbbbbb{UNCOMMITTED}, version 0.9"),
        ([["aaaa+"], ["aaaa+"], ["aaaa+"]], f"made by revision aaaaaaa{UNCOMMITTED}"),
    ],
)
def test_the_revisions_are_told(tmp_path, stamps, remark):
    settings, grid = Settings(tmp_path), GRIDS["digits"].select(["demo"], ["aum"])
    chain = grid.cells["demo", "aum"].runs(0, settings)
    for run, revisions in zip(chain, stamps, strict=True):
        run.folder.path.mkdir()
        run.folder.result.write_text(json.dumps({"test_accuracy": 0.5}))
        write_environment(run, *revisions)
    results = finished_runs(chain)
    assert [len(result["resumed"]) for result in results.values()] == [len(one) - 1 for one in stamps]
    report = collect(grid, settings, 1, results, {})
    lines = [line for line in report.text().splitlines() if line.startswith("made by")]
    assert lines == ([] if remark is None else [remark])
    record = report.record()
    (run,) = record["cells"][0]["runs"]
    assert [stamp["started"] for stamp in run["resumed"]] == ["now"] * (len(stamps[2]) - 1)
    assert (remark in record["remarks"]) == (remark is not None)


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


def test_taus(tmp_path):
    assert list(figure3([0.4, 0, 0.4]).columns) == ["ac1-aa", "0", "0.4"]
    with pytest.raises(ValueError, match="taus was 100; it should be at least 0 and below 100"):
        figure3([0, 100])
    with pytest.raises(ValueError, match="taus was empty; it should be one τ or more"):
        figure3([])
    assert trimmed_chain(0)("cifar10-wrn40-2", 0, Settings(tmp_path))[0].recipe == "cifar10-wrn40-2+aa"


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


@pytest.mark.parametrize("more", [["--no-train"], ["--no-train", "--columns", "ac1"], ["--columns", "ac1"]])
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


def test_list_and_table_7(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "figure3: Figure 3" in text
    assert "rows: svhn-wrn28-10" in text
    assert main(["table7"]) == 0
    text = capsys.readouterr().out
    assert "published:" not in text
    assert text.count("epochs\n") == 13
