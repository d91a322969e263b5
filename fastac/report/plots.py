"""Plots of a run: loss and accuracy by epoch, and the distribution of α at the given labels."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastac.extras import require
from fastac.issues import given_label_alpha

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "VERMILLION",
    "drawing",
    "new_figure",
    "plain_text",
    "plot_alpha",
    "plot_curves",
    "write_png",
]

# Okabe and Ito's colours, which people with any common colour blindness can tell apart
BLUE, VERMILLION = "#0072B2", "#D55E00"
_COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^DvPX"  # so that no run is told by its colour alone
_BINS = 100


def plot_curves(metrics_csv: Path | Mapping[str, Path], out: Path, *, title: str | None = None) -> None:
    """Accuracy and loss by epoch, of one run or of several in one picture.

    metrics_csv: one run's metrics.csv with the columns epoch, train_loss, train_accuracy, test_loss and
        test_accuracy (accuracies in [0, 1]; a cell may be empty, as on epochs without a test), or such files
        by the name of their run.
    out: the PNG file to write.
    title: over the picture; None: the name of the run's folder, or the names of the runs.

    Raises ValueError for a file without these columns or without a row.
    """
    runs = metrics_csv if isinstance(metrics_csv, Mapping) else {"": Path(metrics_csv)}
    if not runs:
        raise ValueError("metrics_csv must name at least one run, got an empty mapping")
    curves = {name: _read_metrics(Path(path)) for name, path in runs.items()}
    if title is None:
        title = ", ".join(runs) or Path(runs[""]).resolve().parent.name
    with drawing():
        figure = new_figure(11, 4.8, layout="constrained")
        accuracy, loss = figure.subplots(1, 2)
        for i, (name, run) in enumerate(curves.items()):
            for split in ("train", "test"):
                look = _look(i, split, single=len(curves) == 1)
                label = _curve_label(name, split, run[f"{split}_accuracy"])
                _line(accuracy, run["epoch"], 100 * run[f"{split}_accuracy"], label=label, **look)
                _line(loss, run["epoch"], run[f"{split}_loss"], **look)
        for axes, quantity in ((accuracy, "accuracy (%)"), (loss, "mean loss a sample (nats)")):
            _dress(axes, "epoch", quantity)
            axes.xaxis.set_major_locator(
                require("matplotlib.ticker", "report").MaxNLocator(integer=True, min_n_ticks=1)
            )
        figure.suptitle(plain_text(title, 100), parse_math=False)
        for text in figure.legend(loc="outside lower center", ncols=2).get_texts():
            text.set_parse_math(False)
        write_png(figure, out)


def plot_alpha(alpha: Any, labels: Any, out: Path, flipped: Any = None, *, title: str | None = None) -> None:
    """Histogram of α̂ = α − mean_k α at the samples' given labels (AC2: of α), counts on a logarithmic axis.

    alpha, labels: as `source` and `labels` of fastac.issues.find_label_issues; labels of −100 are left out.
    out: the PNG file to write.
    flipped: (N,) bool, True where the label is known to be wrong: these get their own colour.
    title: over the picture; should name the data and the run.

    AC1 holds α of class 0 at zero, so α̂ of a wrong label that is class 0 stays small: that sample stands out
    by its lowest α̂ instead.
    """
    offsets = given_label_alpha(alpha, labels)
    known = ~np.isnan(offsets)
    groups = {"samples": known}
    if flipped is not None:
        wrong = np.asarray(flipped)
        if wrong.dtype != np.bool_ or wrong.shape != offsets.shape:
            raise ValueError(f"flipped must be ({len(offsets)},) bool, got {wrong.shape} {wrong.dtype}")
        groups = {"label is right": known & ~wrong, "label is wrong": known & wrong}
    edges = _edges(offsets[known])
    with drawing():
        figure = new_figure(8, 4.8, layout="constrained")
        axes = figure.subplots()
        for (name, group), colour, hatch in zip(
            groups.items(), (BLUE, VERMILLION), ("", "///"), strict=False
        ):
            count = np.maximum(np.histogram(offsets[group], edges)[0], 0.5)  # 0 has no logarithm
            look: dict[str, Any] = {
                "facecolor": (colour, 0.3),
                "edgecolor": colour,
                "linewidth": 1.5,
                "hatch": hatch,
            }
            axes.stairs(count, edges, baseline=0.5, fill=True, label=f"{name}: {group.sum():,}", **look)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        two_dimensional = getattr(alpha, "form", None) == "ac1" or getattr(alpha, "ndim", 1) == 2
        symbol = "α̂ (α less its mean over the classes)" if two_dimensional else "α"
        _dress(axes, f"{symbol} at the given label (logits)", f"samples a bin, of {len(edges) - 1} bins")
        axes.set_title(plain_text(title or "Offsets of the given labels", 80), parse_math=False)
        figure.legend(loc="outside lower center", ncols=2)
        write_png(figure, out)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's own defaults, whatever style or matplotlibrc the user has; theirs are put back after."""
    with require("matplotlib.style", "report").context("default"):
        yield


def new_figure(width: float, height: float, *, dpi: int = 110, **options: Any) -> Figure:
    """A white figure, width × height inches, on an Agg canvas; without pyplot: no window, no global state."""
    figure: Figure = require("matplotlib.figure", "report").Figure(
        (width, height), dpi, facecolor="white", **options
    )
    require("matplotlib.backends.backend_agg", "report").FigureCanvasAgg(figure)
    return figure


def plain_text(text: str, limit: int) -> str:
    """`text` on one line, cut at `limit` characters, with "�" for what the font lacks."""
    manager = require("matplotlib.font_manager", "report")
    glyphs = manager.get_font(manager.findfont("DejaVu Sans")).get_charmap()
    line = "".join(c if c.isprintable() and ord(c) in glyphs else "�" for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def write_png(figure: Figure, out: Path) -> None:
    """Write the figure to `out`, whole or not at all; folders on the way are made."""
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"out must be a .png file, got {str(out)!r}")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(image.getvalue())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _read_metrics(path: Path) -> dict[str, np.ndarray]:
    columns = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"metrics_csv: {path} must have the columns {', '.join(columns)}; it lacks {missing}"
            )
        rows = list(reader)
    if not rows:
        raise ValueError(f"metrics_csv: {path} must have a row for each epoch, it has none")
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in columns}


def _look(run: int, split: str, *, single: bool) -> dict[str, Any]:
    """Runs differ in colour and marker, splits in the line's style; one run's splits in all of them."""
    place = (run + (single and split == "train")) % len(_COLOURS)
    look = {"linestyle": "-", "linewidth": 2.0} if split == "test" else {"linestyle": "--", "linewidth": 1.4}
    return look | {"color": _COLOURS[place], "marker": _MARKERS[place], "markersize": 5}


def _curve_label(name: str, split: str, accuracy: np.ndarray) -> str:
    known = accuracy[~np.isnan(accuracy)]
    last = f"last {100 * known[-1]:.2f} %" if len(known) else "not measured"
    return f"{split} {plain_text(name, 30)}".strip() + f" ({last})"


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> None:
    known = ~np.isnan(y)  # a line goes on over epochs without a value
    axes.plot(x[known], y[known], markevery=1 + int(known.sum()) // 20, **look)


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # too narrow to divide
        half = max(abs(low), 1.0) / 2
        return np.array([low - half, high + half])
    return np.linspace(low, high, _BINS + 1)
