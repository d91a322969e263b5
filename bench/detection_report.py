"""The record of bench/detection.py for a reader: tables and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastac.extras import require

__all__ = ["markdown", "plot"]

Row = dict[str, Any]
_COLORS = (
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#E69F00",
    "#009E73",
    "#882255",
    "#CC79A7",
    "#777777",
    "#000000",
    "#999933",
)
_RANKINGS = (
    ("average_precision", "Average precision"),
    ("auroc", "AUROC"),
    (
        "precision",
        "Precision, which is also the recall, among the first samples, as many as there are wrong labels",
    ),
)


def markdown(summary: list[Row]) -> str:
    """A table a figure and data set: a line a noise, a column a method, mean and range over the seeds in per cent."""
    parts = ["Mean over the seeds in per cent, and (lowest to highest). Bold: the best mean of the line."]
    for data in _unique(row["data"] for row in summary):
        rows = [row for row in summary if row["data"] == data]
        for key, title in _RANKINGS:
            parts.append(f"### {data}: {title}\n\n{_table(rows, lambda row, key=key: row[key], best=True)}")
        flagged = _table(rows, lambda row: row["flagged_share"], best=False)
        parts.append(f"### {data}: labels that are called issues, in per cent of all\n\n{flagged}")
        parts.append(f"### {data}: other figures, over all lines\n\n{_others(rows)}")
    return "\n\n".join(parts) + "\n"


def plot(summary: list[Row], path: Path) -> None:
    """Average precision by noise, a panel a data set: means as dots, ranges as lines."""
    figures = require("matplotlib.figure", "report")
    names = _unique(row["data"] for row in summary)
    methods = _unique(row["method"] for row in summary)
    figure = figures.Figure(figsize=(13, 4.6 * len(names)), layout="constrained")
    for axes, data in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        rows = [row for row in summary if row["data"] == data]
        lines = _unique(_line(row) for row in rows)
        for number, method in enumerate(methods):
            shift = (number - (len(methods) - 1) / 2) * 0.8 / len(methods)
            found = {_line(row): row["average_precision"] for row in rows if row["method"] == method}
            places = [lines.index(line) + shift for line in found]
            values = list(found.values())
            color = _COLORS[number % len(_COLORS)]
            axes.vlines(places, [v["low"] for v in values], [v["high"] for v in values], color=color)
            axes.plot(places, [v["mean"] for v in values], "o", ms=4, color=color, label=method)
        axes.set_xticks(range(len(lines)), lines)
        axes.set_ylabel("average precision")
        axes.set_title(data)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, ncols=2, loc="lower left")
    figure.savefig(path, dpi=90)


def _table(rows: list[Row], figure: Any, *, best: bool) -> str:
    methods, lines = _unique(row["method"] for row in rows), _unique(_line(row) for row in rows)
    text = ["| noise | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for line in lines:
        values = {row["method"]: figure(row) for row in rows if _line(row) == line}
        highest = max((value["mean"] for value in values.values()), default=0.0)
        cells = [_cell(values.get(method), highest if best else None) for method in methods]
        text.append(f"| {line} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def _others(rows: list[Row]) -> str:
    """Means over the lines: seconds, and how far label_quality is from a probability."""
    text = ["| method | seconds | calibration error of label_quality (%) |", "|---|---|---|"]
    for method in _unique(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        seconds = sum(row["seconds"]["mean"] for row in own) / len(own)
        error = sum(row["calibration_error"]["mean"] for row in own) / len(own)
        text.append(f"| {method} | {seconds:.1f} | {100 * error:.1f} |")
    return "\n".join(text)


def _cell(value: dict[str, float] | None, highest: float | None) -> str:
    if value is None:
        return ""
    mean = f"{100 * value['mean']:.1f}"
    mean = f"**{mean}**" if value["mean"] == highest else mean
    return f"{mean} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _line(row: Row) -> str:
    return row["noise"] if row["rate"] is None else f"{row['noise']} {100 * row['rate']:g} %"


def _unique(values: Any) -> list[str]:
    return list(dict.fromkeys(values))
