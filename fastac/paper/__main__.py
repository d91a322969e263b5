"""`python -m fastac.paper WHAT`: train what a table or figure of the papers needs; print it beside what they published.

Runs that have come to their end are not trained again, interrupted ones go on; all lie in --output. docs/paper.md says
what each command trains, and what the papers leave open.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastac.config import load_config, recipe_names
from fastac.paper.figure3 import plot_trimmed
from fastac.paper.figures4to6 import add_images
from fastac.paper.grid import GRIDS, Grid, figure3
from fastac.paper.image_offsets import load_images
from fastac.paper.published import IMAGES, TABLE_7
from fastac.paper.runner import InterruptedRunsError, Outcome, Start, run_all, start_process
from fastac.paper.runs import Run, Settings, parse_setting, steps_of
from fastac.paper.tables import Report, collect
from fastac.paper.theory import table1_text, theorems_text

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, *, start: Start = start_process) -> int:
    """Exit status 1: a run failed, or a check; 2: a user's error; 128 + signal: stopped by it."""
    options = _parser().parse_args(argv)
    try:
        return COMMANDS.get(options.what, _experiment)(options, start)
    except InterruptedRunsError as stop:
        print(f"fastac.paper: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("FASTAC_DEBUG") == "1":
            raise
        print(f"fastac.paper: error: {error}", file=sys.stderr)
        return 2


# ---------------------------------------------------------------- tables and figures


def _experiment(options: argparse.Namespace, start: Start) -> int:
    grid = figure3(options.taus) if options.what == "figure3" and options.taus else GRIDS[options.what]
    grid = grid.select(options.rows, options.columns)
    settings = _settings(options)
    runs = _runs(grid, settings, options.seeds)
    if options.dry_run:
        print(_dry_run(grid, runs))
        return 0
    if options.train:
        _check_data(runs, options.data_dir)
    images = load_images(grid, settings, options.seeds, IMAGES) if options.what == "figures4to6" else {}
    if options.train:
        outcome = run_all(runs, jobs=options.jobs, start=start)
    else:
        outcome = Outcome({run.name: found for run in runs if (found := run.result()) is not None})
    report = collect(grid, settings, options.seeds, outcome.results, outcome.failed)
    if options.what == "figures4to6":
        report = add_images(report, images)
    print(report.text())
    paths = report.write(settings.output)
    if options.what == "figure3":
        _plot_figure3(report, paths[-1])
    print("in " + ", ".join(map(str, paths)))
    if outcome.failed:
        print(
            f"fastac.paper: {len(outcome.failed)} run(s) failed: {', '.join(outcome.failed)}", file=sys.stderr
        )
    return 1 if outcome.failed else 0


def _settings(options: argparse.Namespace) -> Settings:
    """What holds for all runs. ValueError for wrong options."""
    if options.seeds < 1:
        raise ValueError(f"seeds was {options.seeds}; it should be at least 1")
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise ValueError(f"data_dir was {str(options.data_dir)!r}; there is no such folder")
    values: dict[str, Any] = {} if options.short == 1 else {"short": options.short}
    values["device"] = options.device
    values |= dict(parse_setting(text) for text in options.set)
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    if options.jobs > 1 and on_cpu:
        values.setdefault("threads", max(1, (os.cpu_count() or 1) // options.jobs))
    return Settings(options.output, options.data_dir, values)


def _runs(grid: Grid, settings: Settings, seeds: int) -> list[Run]:
    """All runs of the grid, no name twice: a seed's cells before the next one's, so that a part is a comparison."""
    runs: dict[str, Run] = {}
    missing = sorted({cell.recipe.split("+")[0] for cell in grid.cells.values()} - set(recipe_names()))
    if missing:
        raise ValueError(f"{grid.name} needs the recipe {missing[0]}, which this version does not have")
    for seed in range(seeds):
        for cell in grid.cells.values():
            for run in cell.runs(seed, settings):
                runs.setdefault(run.name, run)
    return list(runs.values())


def _check_data(runs: Sequence[Run], data_dir: Path | None) -> None:
    """ValueError now, not in each run, where the data's folder is not given."""
    for dataset in dict.fromkeys(run.config().data.dataset for run in runs):
        if dataset not in ("digits", "fashion-mnist") and data_dir is None:
            raise ValueError(f"{dataset} needs --data-dir: where its files are")


def _dry_run(grid: Grid, runs: Sequence[Run]) -> str:
    """Each run with its recipe and about how many steps it takes, and the whole."""
    lines, total, unknown = [grid.title, ""], 0, 0
    for run in runs:
        run.check()
        steps = steps_of(run.config())
        done = run.result() is not None
        unknown += steps is None
        total += 0 if done or steps is None else steps
        state = "done" if done else "?" if steps is None else f"{steps:,}"
        after = f"  after {', '.join(run.needs)}" if run.needs else ""
        lines.append(f"{state:>12} steps  {run.name}{after}")
        lines.append(f"{'':20}{shlex.join(['python', *run.command()[1:]])}")
    count = f"{len(runs)} runs, about {total:,} steps to go"
    return "\n".join([*lines, "", count + (f", and {unknown} run(s) of unknown length" if unknown else "")])


def _plot_figure3(report: Report, out: Path) -> None:
    panels = {}
    for row, name in report.grid.rows.items():
        points = [
            (float(column), one)
            for column in report.grid.columns
            if column != "ac1-aa" and (one := report.summary((row, column))) is not None
        ]
        cell = report.grid.cells.get((row, "ac1-aa"))
        published = None if cell is None or cell.published is None else cell.published.accuracy
        panels[name] = (points, report.summary((row, "ac1-aa")), published)
    plot_trimmed(
        panels, out, here=report.here, title=f"Figure 3: trimmed data and AutoCleansing{report.changed}"
    )


# ---------------------------------------------------------------- checks that train nothing


def _table1(options: argparse.Namespace, start: Start) -> int:
    text, holds = table1_text()
    print(text)
    return 0 if holds else 1


def _theorems(options: argparse.Namespace, start: Start) -> int:
    text, holds = theorems_text()
    print(text)
    return 0 if holds else 1


def _table7(options: argparse.Namespace, start: Start) -> int:
    """The recipes' settings beside Table 7's."""
    print("Table 7: the recipes' settings; a published one is named where it differs")
    differ = 0
    for name, published in TABLE_7.items():
        if name not in recipe_names():
            print(f"{name:32} this version does not have the recipe")
            differ += 1
            continue
        config = load_config(name)
        opt = config.optimizer
        ours = {
            "lr": opt.lr,
            "schedule": opt.schedule,
            "weight_decay": opt.weight_decay,
            "batch_size": config.data.batch_size,
            "epochs": opt.epochs,
            "milestones": opt.milestones,
        }
        other = {
            key: getattr(published, key) for key, value in ours.items() if getattr(published, key) != value
        }
        differ += bool(other)
        steps = f" at {', '.join(map(str, opt.milestones))}" if opt.milestones else ""
        print(
            f"{name:32} lr {opt.lr:<6g} {opt.schedule}{steps}, weight decay {opt.weight_decay:g}, "
            f"batch {config.data.batch_size}, {opt.epochs} epochs"
            + (f"; published: {other}" if other else "")
        )
    return 1 if differ else 0


def _list(options: argparse.Namespace, start: Start) -> int:
    """All experiments with their rows and columns."""
    for grid in GRIDS.values():
        print(f"{grid.name}: {grid.title}")
        print(f"    rows: {', '.join(grid.rows)}")
        print(f"    columns: {', '.join(grid.columns)}")
    for name, what in _CHECKS.items():
        print(f"{name}: {what}")
    return 0


_CHECKS = {
    "table1": "the numerical examples of the theorems, computed",
    "theorems": "Theorem 1's zero gradient and Theorem 2's signs, on small problems with known noise",
    "table7": "the recipes' settings beside the published ones",
    "list": "the experiments, their rows and columns",
}
COMMANDS: dict[str, Callable[[argparse.Namespace, Start], int]] = {
    "table1": _table1,
    "theorems": _theorems,
    "table7": _table7,
    "list": _list,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastac.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = sorted([*COMMANDS, *GRIDS])
    parser.add_argument("what", choices=names, metavar="WHAT", help=f"one of {', '.join(names)}")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these rows only (see: list)")
    parser.add_argument("--columns", nargs="+", metavar="COLUMN", help="these columns only")
    parser.add_argument(
        "--seeds", type=int, default=5, help="how many, from 0 on (default: 5, as in the papers)"
    )
    parser.add_argument(
        "--short", type=float, default=1.0, metavar="F", help="train this share of the epochs; results say so"
    )
    parser.add_argument("--data-dir", type=Path, help="the data sets' files, or the folder of their folders")
    parser.add_argument("--output", type=Path, default=Path("runs/paper"), help="default: runs/paper")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs side by side, on one device or shared out over the GPUs (default: 1)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="another setting of fastac.train for all runs; results say so",
    )
    parser.add_argument("--taus", type=_numbers, help="figure3: per cents to drop, 0,0.2,0.4")
    parser.add_argument("--dry-run", action="store_true", help="print the runs, train nothing")
    parser.add_argument(
        "--no-train", dest="train", action="store_false", help="print what the runs that are there give"
    )
    return parser


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.replace(",", " ").split()]


if __name__ == "__main__":
    sys.exit(main())
