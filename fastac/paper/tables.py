"""Our figures beside the published ones: text, Markdown, a picture and a JSON record."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastac.paper.grid import Cell, Grid
from fastac.paper.runs import UNCOMMITTED, Settings, revisions_of
from fastac.paper.summary import Summary, summarize
from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, plain_text, write_png
from fastac.run import environment, write_json

__all__ = ["Report", "aligned", "collect"]

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """A grid with what its runs gave. results: by row and column, of each seed that came to its end, with `revisions`
    of all runs that the figure comes from. failed: by run, why."""

    grid: Grid
    settings: Settings
    seeds: int
    results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
    failed: Mapping[str, str]

    def summary(self, key: tuple[str, str], figure: str = "test_accuracy") -> Summary | None:
        """figure: a key of result.json that holds a share."""
        shares = [run.get(figure) for run in self.results.get(key, ())]
        return summarize([share for share in shares if share is not None])

    @property
    def here(self) -> str:
        """What our figures are called: a share of the epochs is said beside each of them."""
        return "here" if self.settings.short == 1 else f"here, × {self.settings.short:g} of the epochs"

    @property
    def changed(self) -> str:
        """What --set made different, for a title."""
        text = ", ".join(f"{name}={_text(value)}" for name, value in self.settings.changes().items())
        return f", with {text}" if text else ""

    @property
    def what_is_here(self) -> str:
        """What our figures are of the runs' figures."""
        return f"mean ± 95 % interval of the mean (Student's t) over {self.seeds} seed(s), last epoch"

    def remarks(self) -> list[str]:
        lines = [f"here: {self.what_is_here}"]
        if self.settings.short != 1:
            lines.append(
                f"trained for {self.settings.short:g} of the recipes' epochs (--short): not the papers' experiment"
            )
        if self.changed:
            lines.append(f"{self.changed.removeprefix(', ')} (--set): not the papers' experiment")
        counts = {key: one.count for key in self.grid.cells if (one := self.summary(key)) is not None}
        short_of = sum(count < self.seeds for count in counts.values())
        missing = len(self.grid.cells) - len(counts)
        if missing or short_of:
            lines.append(
                f"{missing} cell(s) without a finished run, {short_of} with fewer seeds than {self.seeds}"
            )
        return [*lines, *self._revisions(), *self._removals(), *self.grid.notes]

    def _revisions(self) -> list[str]:
        """Which revisions the runs are of, where these are several, or are not what was trained."""
        names = sorted({name for runs in self.results.values() for run in runs for name in run["revisions"]})
        if len(names) > 1:
            return [f"made by {len(names)} revisions: {', '.join(names)}"]
        return [f"made by revision {name}" for name in names if name.endswith(UNCOMMITTED)]

    def _removals(self) -> list[str]:
        """What the runs left out that leave something out, over the seeds."""
        lines = []
        for (row, column), runs in self.results.items():
            counts = [run["removed"] for run in runs if run.get("removed") is not None]
            if not counts:
                continue
            total = {name: sum(count.get(name, 0) for count in counts) for name in _COUNTS}
            text = f"{total['removed'] / total['labels']:.2%} of the labels left out"
            if total["wrong"]:
                of_removed = total["wrong_removed"] / max(total["removed"], 1)
                of_wrong = total["wrong_removed"] / total["wrong"]
                text += f", {of_removed:.1%} of these wrong; {of_wrong:.1%} of the wrong ones left out"
            lines.append(f"{self.grid.rows[row]}, {self.grid.columns[column]}: {text}")
        return lines

    def _cells(self, row: str) -> tuple[list[str], list[str]]:
        """Ours and the published ones of a row, as text."""
        ours, published = [], []
        for column in self.grid.columns:
            cell = self.grid.cells.get((row, column))
            ours.append("" if cell is None else self._ours((row, column), cell))
            published.append("" if cell is None or cell.published is None else str(cell.published))
        return ours, published

    def _ours(self, key: tuple[str, str], cell: Cell) -> str:
        mine = self.summary(key)
        if mine is None:
            return "not run"
        text = str(mine) if mine.count in (1, self.seeds) else f"{mine} ({mine.count} runs)"
        if cell.published is None or cell.published.top5 is None:
            return text
        top5 = self.summary(key, "test_top5")
        return f"{text} / {'not measured' if top5 is None else top5}"

    def text(self) -> str:
        lines = [["", *self.grid.columns.values()]]
        for row, name in self.grid.rows.items():
            ours, published = self._cells(row)
            lines += [[name, *[""] * len(ours)], [f"  {self.here}", *ours]]
            lines += [["  published", *published]] if any(published) else []
        return "\n".join([self.grid.title, "", aligned(lines), "", *self.remarks()])

    def markdown(self) -> str:
        columns = self.grid.columns.values()
        lines = [
            f"### {self.grid.title}",
            "",
            f"| | | {' | '.join(columns)} |",
            "|---" * (2 + len(columns)) + "|",
        ]
        for row, name in self.grid.rows.items():
            ours, published = self._cells(row)
            lines.append(f"| {name} | {self.here} | {' | '.join(ours)} |")
            if any(published):
                lines.append(f"| | published | {' | '.join(published)} |")
        return "\n".join([*lines, "", *(f"- {remark}" for remark in self.remarks())])

    def record(self) -> dict[str, Any]:
        """Everything, with each run's figures and the revision that made it."""
        rows = []
        for (row, column), cell in self.grid.cells.items():
            mine = self.summary((row, column))
            rows.append(
                {
                    "row": row,
                    "column": column,
                    "recipe": cell.recipe,
                    "short": self.settings.short,
                    "mean": None if mine is None else mine.mean,
                    "half_of_95_percent_interval": None if mine is None else mine.half,
                    "seeds": 0 if mine is None else mine.count,
                    "published": None if cell.published is None else vars(cell.published),
                    "runs": [_kept(run) for run in self.results.get((row, column), ())],
                }
            )
        return {
            "title": self.grid.title,
            "remarks": self.remarks(),
            "settings": {name: _plain(value) for name, value in self.settings.values.items()},
            "environment": environment(torch.device("cpu"), 1),
            "cells": rows,
            "failed": dict(self.failed),
        }

    def plot(self, out: Path) -> None:
        """Ours with their intervals beside the published ones, a panel a row."""
        names = list(self.grid.columns.values())
        count = len(self.grid.rows)
        with drawing():
            figure = new_figure(1.6 + 1.3 * len(names), 0.9 + 2.0 * count, layout="constrained")
            for axes, (row, name) in zip(
                figure.subplots(count, 1, squeeze=False)[:, 0], self.grid.rows.items(), strict=True
            ):
                for place, column in enumerate(self.grid.columns):
                    _mark(axes, place, self.summary((row, column)), self.grid.cells.get((row, column)))
                axes.set_xticks(range(len(names)), names)
                axes.set_xlim(-0.5, len(names) - 0.5)
                axes.set_ylabel("test accuracy (%)")
                axes.set_title(plain_text(name, 60), parse_math=False, loc="left", fontsize=10)
                axes.grid(alpha=0.3, axis="y")
            axes = figure.axes[0]
            axes.plot([], [], "o", color=BLUE, label=f"{self.here}, 95 % interval")
            if any(cell.published for cell in self.grid.cells.values()):
                axes.plot([], [], "D", color=VERMILLION, label="published")
            figure.legend(loc="outside lower center", ncols=2)
            figure.suptitle(plain_text(self.grid.title + self.changed, 150), parse_math=False, wrap=True)
            write_png(figure, out)

    def write(self, folder: Path) -> list[Path]:
        """NAME.json, NAME.md and NAME.png, each whole: a reader finds the old one or the new one."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = (
            self.grid.name if self.settings.short == 1 else f"{self.grid.name}-short{self.settings.short:g}"
        )
        paths = [folder / f"{stem}.{suffix}" for suffix in ("json", "md", "png")]
        write_json(paths[0], self.record())
        draft = folder / f".{paths[1].name}.{os.getpid()}.tmp"
        draft.write_text(self.markdown() + "\n", encoding="utf-8")
        os.replace(draft, paths[1])
        self.plot(paths[2])
        return paths


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right. A line of a single cell is a heading,
    and as long as it likes."""
    rows = [line for line in lines if len(line) > 1]
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = []
    for line in lines:
        gaps = [" " * (width - _width(cell)) for cell, width in zip(line, widths, strict=False)]
        text.append("  ".join([line[0] + gaps[0], *(g + c for c, g in zip(line[1:], gaps[1:], strict=True))]))
    return "\n".join(line.rstrip() for line in text)


def _width(text: str) -> int:
    """In places of a terminal: the hat of α̂ takes none."""
    return sum(not unicodedata.combining(character) for character in text)


def _mark(axes: Any, place: int, mine: Summary | None, cell: Cell | None) -> None:
    """Ours to the left of the column's place, the published figure to the right."""
    if mine is not None:
        axes.errorbar([place - 0.08], [mine.mean], [mine.half or 0.0], fmt="o", color=BLUE, capsize=3)
    if cell is not None and cell.published is not None:
        published = cell.published
        axes.errorbar(
            [place + 0.08],
            [published.accuracy],
            [published.plus_minus or 0.0],
            fmt="D",
            color=VERMILLION,
            capsize=3,
        )


_COUNTS = ("labels", "removed", "wrong", "wrong_removed")
_KEPT = (
    "seed",
    "test_accuracy",
    "test_top5",
    "test_loss",
    "train_accuracy",
    "train_accuracy_on_truth",
    "train_images",
    "left_out",
    "removed",
    "epochs",
    "short",
    "steps",
    "seconds",
    "git",
    "device",
    "started",
    "resumed",
    "revisions",
)


def _kept(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run.get(name) for name in _KEPT}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def collect(
    grid: Grid, settings: Settings, seeds: int, results: Results, failed: Mapping[str, str]
) -> Report:
    """results: by run's name, of the runs that came to their end."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for key, cell in grid.cells.items():
        for seed in range(seeds):
            chain = [run.name for run in cell.runs(seed, settings)]
            if chain[-1] in results:
                names = [name for run in chain if run in results for name in revisions_of(results[run])]
                result = {**results[chain[-1]], "revisions": list(dict.fromkeys(names))}
                found.setdefault(key, []).append(result)
    return Report(grid, settings, seeds, found, failed)
