"""`python -m fastac.review RUN`: the page on which a person decides about a run's most suspicious labels."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastac.earlier import EARLIER, earlier_decisions, find_earlier
from fastac.history import ScoreHistory
from fastac.issues.exports import read_csv
from fastac.report.offsets import TopOffsets
from fastac.report.page import checked_top, clean_names, default_top, write_review_page
from fastac.report.readable import ReadableImages
from fastac.run import RunFolder
from fastac.run_data import paths_by_id, run_config, run_samples

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main", "review"]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and open it. Exit status 2: a user's error."""
    parser = argparse.ArgumentParser(prog="python -m fastac.review", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--top",
        type=int,
        help="how many samples; default: as many as are flagged, at least 100 and at most 5,000",
    )
    parser.add_argument(
        "--issues",
        type=Path,
        metavar="FILE",
        help="another ranking of the run's labels (default: RUN/issues.csv)",
    )
    parser.add_argument(
        "--decisions",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="what was decided before, to start with: files that a page exported or that fastac.apply left (default: "
        f"the {EARLIER} beside the labels.csv that the run was trained on, where there is one)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: RUN/review.html)")
    parser.add_argument("--data-dir", help="where the data set's files are now (default: where they were)")
    parser.add_argument("--no-open", action="store_true", help="don't open the page in a browser")
    options = parser.parse_args(argv)
    try:
        page = review(
            options.run,
            top=options.top,
            issues=options.issues,
            decisions=options.decisions,
            output=options.output,
            data_dir=options.data_dir,
        )
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("FASTAC_DEBUG") == "1":
            raise
        print(f"fastac.review: error: {error}", file=sys.stderr)
        return 2
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    if not options.no_open and _has_display():
        webbrowser.open(page.resolve().as_uri())
    return 0


def review(
    run: Path,
    *,
    top: int | None = None,
    issues: Path | None = None,
    decisions: Sequence[Path] | None = None,
    output: Path | None = None,
    data_dir: str | None = None,
) -> Path:
    """Write the review page of a run, and return where it is; the arguments are the command's.

    An image that cannot be read any more, or whose file a folder has lost, is shown as "no image", and a warning says
    so. Raises FileNotFoundError or ValueError for a run that has not ended, for data that is gone or has changed, and
    for a ranking that is no CSV.
    """
    if top is not None:
        top = checked_top(top)
    folder = RunFolder(Path(run))
    config = run_config(folder)
    given, ranking = folder.read_labels(), _ranking(folder, issues)
    samples = run_samples(folder, config, given, data_dir, paths=paths_by_id(ranking))
    shown = ranking.head(default_top(ranking) if top is None else top)
    paths = find_earlier(config) if decisions is None else decisions
    earlier, changed = earlier_decisions(paths, given, clean_names(samples.class_names))
    flagged = int(ranking["is_label_issue"].sum())
    name, c = str(config.run.name), config
    page = folder.review if output is None else Path(output)
    images = ReadableImages(samples.image)
    write_review_page(
        page,
        shown,
        class_names=samples.class_names,
        labels=given,
        images=images,
        alpha=_arrays(folder.alpha, lambda file: TopOffsets(file["index"], file["classes"], file["values"])),
        history=ScoreHistory(folder.history).read(shown["index"].to_numpy()),
        title=f"Label review: {name}",
        subtitle=f"{c.data.dataset}, {c.model.model}, {c.loss.loss}, seed {c.run.seed}: {flagged:,} of {len(given):,} "
        f"labels flagged, the {len(shown):,} most suspicious shown{_before(len(earlier), changed)}",
        run=name,
        top=len(shown),
        decisions=earlier,
    )
    images.warn(str(page))
    return page


def _before(holding: int, changed: int) -> str:
    words = f"; {holding:,} decided before" if holding else ""
    return words + (f", {changed:,} others about labels that have changed since" if changed else "")


def _ranking(folder: RunFolder, other: Path | None) -> pd.DataFrame:
    """issues.csv, or another file of its columns."""
    path = folder.issues if other is None else other
    if not path.is_file():
        if other is not None:
            raise FileNotFoundError(f"there is no ranking {other}")
        raise FileNotFoundError(
            f"{folder.path} has no {path.name}: the run has not come to its end, or recorded neither α nor dynamics; "
            f"to go on with it: python -m fastac.train --resume {folder.path}"
        )
    try:
        return read_csv(path)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} can't be read as CSV, as issues.csv is: {error}") from error


def _arrays(path: Path, read: Callable[[Any], Any]) -> Any:
    """What is in an optional .npz file, None where there is none."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return read(file)
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read, remove it to go on without: {error}") from error


def _has_display() -> bool:
    return sys.platform in ("win32", "darwin") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


if __name__ == "__main__":
    sys.exit(main())
