"""python -m fastac.issues RUN: the run's labels, worst first, on the screen and in files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastac.issues.exports import EXPORTS, LOCAL_FILES
from fastac.issues.find import METHODS
from fastac.issues.run_scores import rank_run
from fastac.report.thumbnails import thumbnail_uri
from fastac.run import RunFolder
from fastac.run_data import image_folder, paths_by_id, run_config, run_samples

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 24  # characters of a name or a path
_SIDE = 256  # pixels of an image in a task


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 for what the user can mend."""
    options = _parser().parse_args(argv)
    try:
        issues = rank_run(options.run, method=options.method, percent=options.percent)
        files = {kind: getattr(options, kind.replace("-", "_")) for kind in EXPORTS}
        files = {kind: path for kind, path in files.items() if path is not None}
        for path in files.values():
            if not path.parent.is_dir():
                raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
        if len(set(files.values())) < len(files):
            raise ValueError("two of the files to write have the same name; each export should have its own")
        more = _of_the_data(options, paths_by_id(issues))
        for kind, path in files.items():
            EXPORTS[kind](issues, path, **more.get(kind, {}))
    except (ValueError, ImportError, OSError) as error:
        print(f"fastac.issues: error: {error}", file=sys.stderr)
        return 2
    print(table_text(issues, options.top))
    for kind, path in files.items():
        print(f"{kind}: {path}")
    return 0


def _of_the_data(options: argparse.Namespace, paths: list[str] | None) -> dict[str, dict[str, Any]]:
    """What the exports need of the run's data, by kind. paths: of the images, if they have any."""
    if options.label_studio is None and (options.fiftyone is None or paths is None):
        return {}
    folder = RunFolder(options.run)
    samples = run_samples(folder, run_config(folder), folder.read_labels(), options.data_dir, paths=paths)
    root = image_folder(samples)
    if root is not None:
        return {"fiftyone": {"root": root}, "label-studio": {"prefix": options.image_prefix}}
    return {"label-studio": {"images": lambda index: thumbnail_uri(samples.image(index), _SIDE)}}


def table_text(issues: pd.DataFrame, top: int) -> str:
    """The first rows of a ranking, and how many labels of how many are issues."""
    flagged = int(issues["is_label_issue"].sum())
    lines = [f"{flagged:,} of {len(issues):,} labels are issues ({flagged / len(issues):.2%})"]
    shown = issues.head(top)
    if not len(shown):
        return lines[0]
    columns = {"id": [str(i) for i in shown["index"]]}
    for name in ("given", "suggested"):
        column = f"{name}_class" if f"{name}_class" in shown else f"{name}_label"
        columns[name] = [_cell(value) for value in shown[column]]
    columns["quality"] = [f"{value:.4f}" for value in shown["label_quality"]]
    columns["issue"] = ["yes" if value else "" for value in shown["is_label_issue"]]
    for name in ("kind", "path"):
        if name in shown and shown[name].notna().any():
            columns[name] = [_cell(value) for value in shown[name]]
    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    for row in [list(columns), *zip(*columns.values(), strict=True)]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths.values(), strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    """One line of printable characters of bounded width, "" for what is missing."""
    if value is None or value != value or str(value) == "<NA>":
        return ""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastac.issues", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of fastac.train")
    parser.add_argument("--method", choices=METHODS, help="default: as the run ranked them")
    parser.add_argument("--percent", type=float, help="how many labels are issues (default: from the scores)")
    parser.add_argument("--top", type=_count, default=20, help="rows to print (default: 20)")
    about = {
        "csv": "all columns",
        "parquet": "all columns",
        "cleanlab": "CSV with cleanlab's columns, by id",
        "fiftyone": "JSON with FiftyOne's fields by file, or in the order of the ids",
        "label-studio": "JSON with Label Studio's tasks and predictions, of the label issues",
    }
    for kind in EXPORTS:
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=about[kind])
    parser.add_argument(
        "--image-prefix",
        default=LOCAL_FILES,
        metavar="URL",
        help="Label Studio: what stands before the images' paths below the data set's train folder (default: its local "
        "storage, %(default)s); images that are no files of their own are in the tasks themselves",
    )
    parser.add_argument("--data-dir", help="where the data set's files are now (default: where they were)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"it was {number}; it should be 0 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
