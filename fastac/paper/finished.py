"""What there is of an experiment in its output: its files hold all of that, whatever part a command is for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastac.paper.grid import GRIDS, Grid, figure3
from fastac.paper.runs import Run, Settings
from fastac.paper.trimming import TAUS, trimmed_taus

__all__ = ["finished_runs", "finished_seeds", "runs_of", "whole_grid"]


def whole_grid(part: Grid, settings: Settings) -> Grid:
    """The experiment of which `part` has some rows and columns. Figure 3 has the τ of the part beside its own, and
    those of finished runs."""
    if part.name != "figure3":
        return GRIDS[part.name]
    taus = [float(column) for column in part.columns if column != "ac1-aa"]
    return figure3([*TAUS, *taus, *trimmed_taus(settings)])


def runs_of(grid: Grid, settings: Settings, seeds: int) -> list[Run]:
    """All runs of the grid, no name twice: a seed's cells before the next one's, so that a part is a comparison."""
    runs: dict[str, Run] = {}
    for seed in range(seeds):
        for cell in grid.cells.values():
            for run in cell.runs(seed, settings):
                runs.setdefault(run.name, run)
    return list(runs.values())


def finished_seeds(grid: Grid, settings: Settings) -> int:
    """How many seeds, from 0 on, have a figure in some cell."""
    seeds = 0
    while any(cell.runs(seeds, settings)[-1].folder.result.is_file() for cell in grid.cells.values()):
        seeds += 1
    return seeds


def finished_runs(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """By name, what the runs gave that have come to their end. ValueError for one of other settings than these."""
    found = {}
    for run in runs:
        result = run.result()
        if result is not None:
            run.check()
            found[run.name] = result
    return found
