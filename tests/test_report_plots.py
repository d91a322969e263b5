from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")

from fastac.report import plots  # noqa: E402
from fastac.report.plots import plain_text, plot_alpha, plot_curves, write_png  # noqa: E402

COLUMNS = ["epoch", "step", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written, as they are drawn."""
    drawn = []

    def write(figure, out):
        drawn.append(figure)
        write_png(figure, out)

    monkeypatch.setattr(plots, "write_png", write)
    return drawn


def write_metrics(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def two_epochs(path):
    return write_metrics(path, [[1, 10, 0.1, 2.0, 0.25, 1.5, 0.5], [2, 20, 0.05, 1.0, 0.5, "", ""]])


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def corner_pixel(path):
    return np.asarray(pytest.importorskip("PIL.Image").open(path).convert("RGB"))[0, 0].tolist()


def test_curves_of_one_run(tmp_path, figures):
    plot_curves(two_epochs(tmp_path / "digits-ac1" / "metrics.csv"), tmp_path / "new" / "curves.png")
    accuracy, loss = figures[0].axes
    lines = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in accuracy.lines + loss.lines]
    assert lines == [([1, 2], [25, 50]), ([1], [50]), ([1, 2], [2, 1]), ([1], [1.5])]  # no test in epoch 2
    train, test = accuracy.lines
    assert train.get_color() != test.get_color()
    assert train.get_linestyle() != test.get_linestyle()
    assert [accuracy.get_xlabel(), accuracy.get_ylabel()] == ["epoch", "accuracy (%)"]
    assert loss.get_ylabel() == "mean loss a sample (nats)"
    assert figures[0].get_suptitle() == "digits-ac1"
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["train (last 50.00 %)", "test (last 50.00 %)"]
    assert png_size(tmp_path / "new" / "curves.png") == (1210, 528)
    assert corner_pixel(tmp_path / "new" / "curves.png") == [255, 255, 255]


def test_curves_of_several_runs_with_odd_names(tmp_path, figures):
    names = ["ce", "_ac1 $\\frac$", "猫\nline", "long " * 20]
    runs = {name: two_epochs(tmp_path / str(i) / "metrics.csv") for i, name in enumerate(names)}
    plot_curves(runs, tmp_path / "curves.png")
    accuracy, _ = figures[0].axes
    assert len(accuracy.lines) == 8
    looks = {(line.get_color(), line.get_marker()) for line in accuracy.lines}
    assert len(looks) == 4
    assert len({line.get_linestyle() for line in accuracy.lines}) == 2
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend[1] == "test ce (last 50.00 %)"
    assert legend[3] == "test _ac1 $\\frac$ (last 50.00 %)"
    assert legend[5] == "test � line (last 50.00 %)"
    assert legend[7] == "test long long long long long long… (last 50.00 %)"
    plot_curves(runs, tmp_path / "titled.png", title="$\\frac$")
    assert figures[1].get_suptitle() == "$\\frac$"


def test_curves_without_any_test(tmp_path, figures):
    path = write_metrics(tmp_path / "run" / "metrics.csv", [[0, 1, 0.1, 2.0, 0.25, "", ""]])
    plot_curves(path, tmp_path / "curves.png")
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["train (last 25.00 %)", "test (not measured)"]


def test_bad_metrics_are_named(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train_loss\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics\.csv must have the columns .* lacks \['train_accuracy', "):
        plot_curves(path, tmp_path / "curves.png")
    path.write_text("")
    with pytest.raises(ValueError, match="must have the columns"):
        plot_curves(path, tmp_path / "curves.png")
    path.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(ValueError, match="must have a row for each epoch, it has none"):
        plot_curves(path, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="metrics_csv must name at least one run"):
        plot_curves({}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def counts(figure):
    """Samples by group, as the legend has them and as the bars do (an empty bin is drawn at 0.5)."""
    bars = []
    for patch in figure.axes[0].patches:
        values = patch.get_data().values
        bars.append(int(values[values > 0.5].sum()))
    return [text.get_text() for text in figure.legends[0].get_texts()], bars


def test_alpha_of_ac1(tmp_path, figures):
    rng = np.random.default_rng(0)
    alpha, labels, flipped = rng.normal(size=(5000, 3)), rng.integers(0, 3, 5000), rng.random(5000) < 0.2
    plot_alpha(torch.from_numpy(alpha), labels, tmp_path / "alpha.png", flipped, title="digits $\\frac$")
    axes = figures[0].axes[0]
    legend, bars = counts(figures[0])
    assert bars == [int((~flipped).sum()), int(flipped.sum())]
    assert legend == [f"label is right: {bars[0]:,}", f"label is wrong: {bars[1]:,}"]
    offsets = alpha[np.arange(5000), labels] - alpha.mean(1)
    edges = axes.patches[0].get_data().edges
    assert [edges[0], edges[-1]] == pytest.approx([offsets.min(), offsets.max()])
    first = axes.patches[1].get_data().values
    np.testing.assert_array_equal(first, np.maximum(np.histogram(offsets[flipped], edges)[0], 0.5))
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "α̂ (α less its mean over the classes) at the given label (logits)"
    assert axes.get_title() == "digits $\\frac$"
    colours = [patch.get_edgecolor() for patch in axes.patches]
    assert colours[0] != colours[1]
    assert axes.patches[1].get_hatch()  # not colour alone
    assert png_size(tmp_path / "alpha.png") == (880, 528)


def test_alpha_of_ac2_and_without_truth(tmp_path, figures):
    plot_alpha(np.linspace(-1, 1, 300), np.zeros(300, int), tmp_path / "alpha.png")
    assert counts(figures[0]) == (["samples: 300"], [300])
    assert figures[0].axes[0].get_xlabel() == "α at the given label (logits)"
    for constant in (np.zeros(7), np.full(7, -0.3), 0.3 + np.arange(7) * 1e-17):
        plot_alpha(constant, np.zeros(7, int), tmp_path / "alpha.png", np.zeros(7, bool))
        assert counts(figures[-1])[1] == [7, 0]


def test_ignored_labels_are_left_out(tmp_path, figures):
    rng = np.random.default_rng(0)
    alpha, labels, flipped = rng.normal(size=(300, 3)), rng.integers(0, 3, 300), np.arange(300) < 100
    labels[80:120] = -100
    plot_alpha(alpha, labels, tmp_path / "alpha.png")
    assert counts(figures[0])[1] == [260]
    plot_alpha(alpha, labels, tmp_path / "alpha.png", flipped)
    assert counts(figures[1])[1] == [180, 80]


def test_bad_flipped_is_named(tmp_path):
    for flipped in (np.zeros(6, bool), np.zeros(7)):
        with pytest.raises(ValueError, match=r"flipped must be \(7,\) bool, got"):
            plot_alpha(np.zeros(7), np.zeros(7, int), tmp_path / "alpha.png", flipped)


def test_no_pyplot_and_no_style_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    with matplotlib.rc_context(
        {"figure.facecolor": "black", "savefig.facecolor": "black", "text.usetex": True}
    ):
        plot_curves(two_epochs(tmp_path / "metrics.csv"), tmp_path / "curves.png")
        assert matplotlib.rcParams["figure.facecolor"] == "black"
    assert corner_pixel(tmp_path / "curves.png") == [255, 255, 255]


def test_an_output_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "curves.png"
    out.write_bytes(b"older")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(plots.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_curves(two_epochs(tmp_path / "metrics.csv"), out)
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]


def test_only_png(tmp_path):
    with pytest.raises(ValueError, match=r"out must be a \.png file, got .*curves\.pdf"):
        plot_curves(two_epochs(tmp_path / "metrics.csv"), tmp_path / "curves.pdf")


def test_plain_text():
    assert plain_text("a\n\tb  c", 10) == "a b c"
    assert plain_text("猫\x00\udc80é$^✓", 10) == "���é$^✓"
    assert plain_text("0123456789", 10) == "0123456789"
    assert plain_text("0123456789x", 10) == "012345678…"
