"""Figures 4 to 6 as a command: what is published, what is read of a run, and the command in miniature."""

import json
import re

import numpy as np
import pytest
from paper_data import write_cifar10, write_cifar100
from paper_process import InProcess
from test_data_real import real
from training_runs import without_pictures

import fastac.paper.__main__ as command
from fastac.data import load_dataset
from fastac.issues import alpha_statistics, find_label_issues
from fastac.issues.exports import read_csv, write_csv
from fastac.issues.run_scores import run_alpha, write_scores
from fastac.paper import figures4to6, runner
from fastac.paper.__main__ import main
from fastac.paper.grid import GRIDS
from fastac.paper.image_offsets import Spread, read_offsets
from fastac.paper.published import IMAGES, PublishedImage
from fastac.paper.runs import Settings
from fastac.paper.tables import aligned
from fastac.report.offsets import top_offsets
from fastac.report.plots import drawing
from fastac.run import RunFolder, write_offsets

NAMES = tuple(f"class {k}" for k in range(10))
# In the made-up files the label of id i is "class i" modulo the number of classes: #11 has another label there.
FEW = {
    "cifar10-wrn40-2": (
        PublishedImage(6, 30, "class 0", "person", 0.002, 1.242, 0.332),
        PublishedImage(11, 219, "deer", "person", 0.024, 0.734),
    ),
    "cifar100-wrn40-2": (PublishedImage(14, 105, "class 5", "class 44", 0.45, 0.052, 0.323, -0.231),),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_pictures(monkeypatch)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.001)


@pytest.fixture
def few(monkeypatch):
    """Images that the made-up files have."""
    for module in (command, figures4to6):
        monkeypatch.setattr(module, "IMAGES", FEW)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_cifar10(folder, 220, 40)
    write_cifar100(folder)
    return folder


def words(output, *more):
    small = ["model=cnn", "batch_size=20", "tensorboard=false", "threads=1", "aa=none", "cutout=0"]
    return [
        "figures4to6",
        "--output",
        str(output),
        "--device",
        "cpu",
        "--short",
        "0.01",
        "--set",
        *small,
        *more,
    ]


# ---------------------------------------------------------------- what is published


def test_the_published_images():
    """They are as section 4.2 says, and in the order of their ranks."""
    assert list(IMAGES) == list(GRIDS["figures4to6"].rows)
    every = [image for images in IMAGES.values() for image in images]
    assert len({image.index for image in every}) == len(every) == 8
    assert all(image.below_limit for image in every)
    assert not PublishedImage(0, 0, "a", "b", 0.1, 0.5).below_limit
    for images in IMAGES.values():
        for ranks, offsets, sign in (("max_rank", "alpha", -1), ("min_rank", "other_alpha", 1)):
            known = [
                (getattr(image, ranks), sign * getattr(image, offsets))
                for image in images
                if getattr(image, offsets) is not None
            ]
            assert [offset for _, offset in sorted(known)] == sorted(offset for _, offset in known)
    for rank in [rank for image in every for rank in (image.max_rank, image.min_rank)]:
        assert 500 * rank == pytest.approx(round(500 * rank))  # a place among 50,000 images
        assert 0 < rank < 50
    assert figures4to6.published_peak("cifar10-wrn40-2") == 0.332
    assert figures4to6.published_peak("cifar100-wrn40-2") == 0.345


def test_cifar10s_rows_have_the_published_labels():
    """The ids count from 0, in the original order."""
    train = load_dataset("cifar10", real("cifar-10-batches-py")).train
    labels = [train.class_names[train.labels[image.index]] for image in IMAGES["cifar10-wrn40-2"]]
    assert labels == ["truck", "deer"]


def test_the_runs_are_table_8s(tmp_path):
    settings, mine, table8 = Settings(tmp_path), GRIDS["figures4to6"], GRIDS["table8"]
    assert len(mine.cells) == 2
    for key, cell in mine.cells.items():
        assert cell.runs(1, settings) == table8.cells[key].runs(1, settings)
        assert cell.published == table8.cells[key].published


def test_a_spread():
    assert str(Spread((0.3456,))) == "0.346"
    assert str(Spread((0.1, 0.4, 0.25))) == "0.250 (0.100 to 0.400)"


def test_aligned():
    """A heading is as long as it likes, and a hat takes no place."""
    lines = aligned([["", "α̂", "bb"], ["a long heading of the lines"], ["  x", "1.5", "c"]]).splitlines()
    assert lines == ["       α̂  bb", "a long heading of the lines", "  x  1.5   c"]


# ---------------------------------------------------------------- what is read of a run


@pytest.fixture
def run(tmp_path):
    """A finished run of 2,000 samples with known α: row 7 is large at its label, 3 of class 4, and row 9 at two others.
    Only the first three of its ranking are in alpha.npz."""
    alpha = np.zeros((2000, 10))
    alpha[7, 4], alpha[9, 5], alpha[9, 6], alpha[11, 1] = 0.4, 0.1, -0.3, 0.2
    alpha[12:, 1] = np.linspace(1e-3, 1e-2, 1988)
    given = np.arange(2000) % 10
    given[[7, 9, 11]] = 4, 5, 1
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    issues = find_label_issues(alpha, given, class_names=NAMES)
    write_csv(issues, folder.issues)
    first = issues.head(3)
    named = first[["given_label", "suggested_label"]].to_numpy(np.int64)
    ids = first["index"].to_numpy()
    write_offsets(folder.alpha, top_offsets(alpha, ids, named, num_samples=2000, num_classes=10))
    statistics = alpha_statistics(alpha, given)
    write_scores(
        folder.scores, given=given, class_names=NAMES, predictions=given, others=given, alpha=statistics
    )
    return folder


def image(index, other="person"):
    return PublishedImage(1, index, "label", other, 0.1, 0.1)


def test_offsets_of_a_run(run):
    peak, (seven, nine, last) = read_offsets(
        run.path, [image(7), image(9, "class 6"), image(1999, "class 3")], NAMES
    )
    assert peak == pytest.approx(0.36)  # 0.4 less the row's mean
    assert (seven.max_rank, seven.min_rank) == (0.05, 0.1)  # first and second of 2,000
    assert seven.alpha == pytest.approx(0.36)
    assert seven.classes["class 4"] == pytest.approx(0.36)
    assert seven.other_alpha is None  # outside of the category set
    assert seven.below_limit
    assert (nine.max_rank, nine.min_rank) == (0.15, 0.05)
    assert (nine.alpha, nine.other_alpha) == (pytest.approx(0.12), pytest.approx(-0.28))
    names = list(nine.classes)
    assert (names[0], names[-1]) == ("class 5", "class 6")
    assert nine.below_limit  # by MinRank
    assert last.max_rank == pytest.approx(0.2)
    assert last.alpha == pytest.approx(-1e-3)
    assert (last.other_alpha, last.classes, last.below_limit) == (None, {}, False)


def test_without_alpha_npz(run):
    run.alpha.unlink()
    _, (nine,) = read_offsets(run.path, [image(9, "class 6")], NAMES)
    assert (nine.alpha, nine.other_alpha, nine.classes) == (pytest.approx(0.12), None, {})


def test_runs_without_what_is_needed(run):
    with pytest.raises(ValueError, match="run has no id 2000; it should have that of #1"):
        read_offsets(run.path, [image(2000)], NAMES)
    given = run_alpha(run.path).given
    frame = read_csv(run.issues)
    write_csv(frame.drop(columns=["max_rank"]), run.issues)
    with pytest.raises(
        ValueError, match="issues.csv lacks the columns max_rank; it should be of a run with α"
    ):
        read_offsets(run.path, [image(7)], NAMES)
    write_scores(run.scores, given=given, class_names=NAMES, predictions=given, others=given, alpha=None)
    with pytest.raises(ValueError, match="run has no α; it should be a run with loss ac1 or ac2"):
        run_alpha(run.path)
    run.scores.unlink()
    with pytest.raises(FileNotFoundError, match=r"run has no scores\.npz"):
        run_alpha(run.path)


# ---------------------------------------------------------------- the command


def never(run, slot, lock):
    raise AssertionError(f"{run.name} was started")


def test_fewer_training_images_than_an_id(data, tmp_path, capsys):
    """Told before anything is trained."""
    assert main(words(tmp_path / "out", "--data-dir", str(data)), start=never) == 2
    error = capsys.readouterr().err
    assert error == (
        "fastac.paper: error: #6 of the paper is id 18310 of cifar10, of which there are 220 training images; it "
        "should be the whole training set of 50,000, without train_limit\n"
    )
    assert not (tmp_path / "out").exists()


def test_train_limit_leaves_images_out(few, data, tmp_path, capsys):
    argv = words(tmp_path / "out", "train_limit=100", "--data-dir", str(data))
    assert main(argv, start=never) == 2
    assert "#11 of the paper is id 219 of cifar10, of which there are 100" in capsys.readouterr().err


def test_the_figures(few, data, tmp_path, capsys, monkeypatch):
    argv, start = words(tmp_path, "--seeds", "2"), InProcess()
    assert main([*argv, "--data-dir", str(data)], start=start) == 0
    assert start.started == [
        f"{name}-wrn40-2+ac1-aa-seed{seed}-short0.01" for seed in (0, 1) for name in ("cifar10", "cifar100")
    ]
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "figures4to6-short0.01.json").read_text())
    for row, images in FEW.items():
        frames = [
            read_csv(tmp_path / name / "issues.csv").set_index("index")
            for name in start.started
            if name.startswith(f"{row}+")
        ]
        peaks = [frame["alpha_max"].max() for frame in frames]
        assert record["largest_alpha"][row]["runs"] == pytest.approx(peaks)
        assert f"{np.mean(peaks):.3f} ({min(peaks):.3f} to {max(peaks):.3f})" in text
        for one in images:
            (mine,) = [entry for entry in record["images"] if entry["published"]["index"] == one.index]
            for name in ("max_rank", "min_rank"):
                ranks = [frame.loc[one.index, name] for frame in frames]
                assert [run[name] for run in mine["runs"]] == pytest.approx(ranks)
                assert mine["mean"][name] == pytest.approx(np.mean(ranks))
                assert f"{np.mean(ranks):.3f} ({min(ranks):.3f} to {max(ranks):.3f})" in text
            assert all(
                frame.loc[one.index, "alpha_min"] <= run["alpha"] <= frame.loc[one.index, "alpha_max"]
                for frame, run in zip(frames, mine["runs"], strict=True)
            )
            assert [run["below_limit"] for run in mine["runs"]] == [False, False]  # a place of 220 is 0.45 %
    assert "#6, CIFAR-10 id 30: class 0, alternative person" in text
    assert re.search(r"published +0\.450 +0\.052 +0\.323 +-0\.231 +yes\n", text)
    assert re.search(r"published +0\.332 +96\.56 ± 0\.11\n", text)
    assert "0 of 2 seed(s)" in text
    assert (
        "#11, CIFAR-10 id 219: deer, alternative person: the label in this data is class 9; it is another image"
        in (text.splitlines())
    )
    assert "trained for 0.01 of the recipes' epochs (--short): not the papers' experiment" in text
    assert "model=cnn, batch_size=20, aa=none, cutout=0 (--set): not the papers' experiment" in text
    markdown = (tmp_path / "figures4to6-short0.01.md").read_text()
    assert "| | published | 0.024 | 0.734 | – | – | yes |" in markdown
    assert (tmp_path / "figures4to6-short0.01.png").stat().st_size > 20_000
    # Again, from what is there, but for the picture: the images come from the folder that the runs were trained from.
    monkeypatch.setattr(figures4to6.ImagesReport, "plot", lambda report, out: None)
    assert main([*argv, "--no-train"], start=never) == 0
    assert capsys.readouterr().out == text
    # A part is printed; the record keeps the other data set.
    assert (
        main([*argv, "--no-train", "--rows", "cifar100-wrn40-2", "--data-dir", str(data)], start=never) == 0
    )
    assert "CIFAR-10 id" not in capsys.readouterr().out
    again = json.loads((tmp_path / "figures4to6-short0.01.json").read_text())
    assert (again["images"], again["largest_alpha"]) == (record["images"], record["largest_alpha"])


def test_nothing_is_there_yet(few, data, tmp_path, capsys):
    """The published numbers and, with the data, the images; one data set alone."""
    argv = words(tmp_path, "--no-train", "--rows", "cifar100-wrn40-2")
    for more in ([], ["--data-dir", str(data)]):
        assert main([*argv, *more], start=never) == 0
        text = capsys.readouterr().out
        assert text.count("not run") == 3  # the largest α̂, the accuracy, #14
        assert "1 cell(s) without a finished run" in text
        assert "CIFAR-10 " not in text.partition("not here")[0]
    record = json.loads((tmp_path / "figures4to6-short0.01.json").read_text())
    assert [one["published"]["number"] for one in record["images"]] == [6, 11, 14]  # the whole figure's
    assert [one["label_in_data"] for one in record["images"]] == [None, None, "class 5"]
    only = record["images"][2]
    assert only["runs"] == []
    assert only["mean"] == dict.fromkeys(["max_rank", "min_rank", "alpha", "other_alpha"])


def test_dry_run_and_wrong_rows(tmp_path, capsys):
    assert (
        main(["figures4to6", "--dry-run", "--seeds", "2", "--output", str(tmp_path / "out")], start=never)
        == 0
    )
    assert f"4 runs, about {4 * 200 * 390:,} steps to go" in capsys.readouterr().out
    assert main(["figures4to6", "--rows", "svhn", "--output", str(tmp_path / "out")], start=never) == 2
    assert "rows was 'svhn'; figures4to6 has cifar10-wrn40-2, cifar100-wrn40-2" in capsys.readouterr().err
    assert main(["figures4to6", "--output", str(tmp_path / "out")], start=never) == 2
    assert "cifar10 needs --data-dir" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_drawn_images_are_the_data_sets(few, data, tmp_path, monkeypatch):
    """The picture's pixels and bars, from the figure that is written."""
    figures = []
    monkeypatch.setattr(figures4to6, "write_png", lambda figure, out: figures.append(figure))
    argv = words(tmp_path, "--seeds", "1", "--rows", "cifar10-wrn40-2", "--data-dir", str(data))
    assert main(argv, start=InProcess()) == 0
    (figure,) = figures
    train = load_dataset("cifar10", data).train
    pictures = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(pictures, train.images[[30, 219]])
    mine = figure.axes[2:6:3]  # the third line is of the row that the command leaves out
    assert figure.axes[8].texts[0].get_text() == "not run"
    with drawing():
        labels = [[text.get_text() for text in axes.get_yticklabels()] for axes in mine]
    (folder,) = tmp_path.glob("cifar10-*seed0*")
    _, offsets = read_offsets(folder, FEW["cifar10-wrn40-2"], train.class_names)
    assert labels == [list(one.classes)[::-1] for one in offsets]
    widths = [[bar.get_width() for bar in axes.patches] for axes in mine]
    assert widths == [list(one.classes.values())[::-1] for one in offsets]
    assert figure.axes[2].get_xlabel() == "α̂ (logits), seed 0"
