"""A ranking as a file: CSV, Parquet, cleanlab's columns, FiftyOne's fields, Label Studio's tasks.

Each is written whole or not at all. Text is written as it is, but for CSV's guard against formulas, see write_csv.
"""

from __future__ import annotations

import csv
import json
import os
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastac.extras import require

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "EXPORTS",
    "LOCAL_FILES",
    "read_csv",
    "write_cleanlab",
    "write_csv",
    "write_fiftyone",
    "write_label_studio",
    "write_parquet",
]

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files below its LOCAL_FILES_DOCUMENT_ROOT."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet run a cell
_GUARD = "'"
_TEXTS = ("kind", "given_class", "suggested_class", "path")  # columns of text
_FIELDS = ("is_label_issue", "label_quality", "kind", "given_label", "suggested_label")


def write_csv(issues: pd.DataFrame, path: Path) -> None:
    """All columns. Text that a spreadsheet would take for a formula, starting with = + - @, a tab or a carriage return,
    gets an apostrophe in front, and so does text that starts with one already: `read_csv` takes just that one away."""
    guarded = issues.copy()
    for name in _TEXTS:
        if name in guarded:
            guarded[name] = guarded[name].map(_guarded)
    # All text in quotes: a bare carriage return would end the row.
    _write(path, lambda draft: guarded.to_csv(draft, index=False, quoting=csv.QUOTE_NONNUMERIC))


def read_csv(path: Path) -> pd.DataFrame:
    """What write_csv wrote. Empty text is a missing value. ValueError where index, given_label, is_label_issue or
    label_quality is missing."""
    pandas = require("pandas", "report")
    texts: dict[str, Any] = dict.fromkeys(_TEXTS, object)
    # A class called "NA" stays a name.
    frame = pandas.read_csv(
        path,
        dtype={**texts, "suggested_label": "Int64"},
        keep_default_na=False,
        na_values=[""],
    )
    needed = ("index", "given_label", "is_label_issue", "label_quality")
    lacks = [name for name in needed if name not in frame]
    if lacks:
        raise ValueError(f"{path} lacks the columns {', '.join(lacks)}; it should be an issues.csv of fastac")
    for name in _TEXTS:
        if name in frame:
            text = frame[name].map(_unguarded).astype(object)
            frame[name] = text.where(text.notna(), None)
    return frame


def write_parquet(issues: pd.DataFrame, path: Path) -> None:
    """All columns. Needs pyarrow."""
    require("pyarrow", "parquet")
    _write(path, lambda draft: issues.to_parquet(draft, index=False))


def write_cleanlab(issues: pd.DataFrame, path: Path) -> None:
    """CSV by id with the columns of cleanlab's CleanLearning.find_label_issues: index, is_label_issue, label_quality,
    given_label, predicted_label. predicted_label is the suggested one, or the given one where none is known."""
    by_id = issues.sort_values("index")
    predicted = by_id["suggested_label"].fillna(by_id["given_label"]).astype("int64")
    columns = by_id[["index", "is_label_issue", "label_quality", "given_label"]]
    _write(path, lambda draft: columns.assign(predicted_label=predicted).to_csv(draft, index=False))


def write_fiftyone(issues: pd.DataFrame, path: Path, *, root: Path | None = None) -> None:
    """JSON of what FiftyOne's `dataset.set_values(field, values, key_field=key)` takes, a call a field.

    root: the folder that the column `path` is relative to. With it {"key": "filepath", "fields": {field: {filepath:
    value}}}, with the absolute paths that FiftyOne has; else {"key": null, "fields": {field: [value, …]}}, in the order
    of the ids, for a dataset whose samples were added in that order. Labels are class names where they are known;
    missing values are null.
    """
    by_id = issues.sort_values("index")
    columns = {name: by_id[name] for name in _FIELDS}
    for name in ("given", "suggested"):
        if f"{name}_class" in by_id:
            columns[f"{name}_label"] = by_id[f"{name}_class"]
    fields: dict[str, Any] = {name: _plain(column) for name, column in columns.items()}
    if root is not None:
        files = [os.path.abspath(root / file) for file in by_id["path"]]
        fields = {name: dict(zip(files, values, strict=True)) for name, values in fields.items()}
    _write_json({"key": None if root is None else "filepath", "fields": fields}, path)


def write_label_studio(
    issues: pd.DataFrame,
    path: Path,
    *,
    images: Callable[[int], str] | None = None,
    texts: Callable[[int], str] | None = None,
    prefix: str = LOCAL_FILES,
) -> None:
    """JSON: a task for each label issue, worst first, for a Label Studio project with a Choices field `label` on an
    Image `image` or a Text `text`. data: that object, and the row's other columns. The suggested label is a
    prediction, whose score is 1 − label_quality; a task without a suggestion has none.

    images: by sample id the image's address, a data URI too. texts: by sample id the text. Without either, `prefix` and
    the column `path`, whose characters are escaped as in a URL; the default is Label Studio's local storage with the
    data set's folder for its document root. Raises ValueError where there is no object to show, or no label issue,
    of which Label Studio makes no project.
    """
    if images is not None and texts is not None:
        raise ValueError("images and texts are both given; it should be one of them")
    rows = issues[issues["is_label_issue"].to_numpy(bool)]
    if not len(rows):
        raise ValueError(
            f"no label is an issue, {path.name} would have no task; percent says how many are issues"
        )
    name, show = ("image", images) if texts is None else ("text", texts)
    if show is not None:
        objects = [show(index) for index in rows["index"].tolist()]
    elif "path" in rows:
        objects = [prefix + urllib.parse.quote(file) for file in rows["path"]]
    else:
        raise ValueError("issues has no column path; images or texts should say what a task shows")
    columns = {column: _plain(rows[column]) for column in rows.columns}
    tasks = []
    for position, shown in enumerate(objects):
        data = {column: values[position] for column, values in columns.items()} | {name: shown}
        label = data["suggested_class"] if "suggested_class" in data else data["suggested_label"]
        predictions = [] if label is None else [_prediction(name, str(label), 1 - data["label_quality"])]
        tasks.append({"data": data, "predictions": predictions})
    _write_json(tasks, path)


EXPORTS: dict[str, Callable[..., None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "cleanlab": write_cleanlab,
    "fiftyone": write_fiftyone,
    "label-studio": write_label_studio,
}


def _prediction(name: str, label: str, score: float) -> dict[str, Any]:
    choice = {"from_name": "label", "to_name": name, "type": "choices", "value": {"choices": [label]}}
    return {"model_version": "fastac", "score": score, "result": [choice]}


def _guarded(value: Any) -> Any:
    dangerous = isinstance(value, str) and value.startswith((*_FORMULA, _GUARD))
    return _GUARD + value if dangerous else value


def _unguarded(value: Any) -> Any:
    guarded = isinstance(value, str) and value[:1] == _GUARD and value[1:].startswith((*_FORMULA, _GUARD))
    return value[1:] if guarded else value


def _plain(column: pd.Series) -> list[Any]:
    """Python's own numbers and texts, None for missing values: what JSON has."""
    missing = column.isna().to_numpy()
    values = column.astype(object).tolist()
    return [
        None if lost else value.item() if isinstance(value, np.generic) else value
        for value, lost in zip(values, missing, strict=True)
    ]


def _write_json(document: Any, path: Path) -> None:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    _write(path, lambda draft: draft.write_text(text + "\n", encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    draft = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
