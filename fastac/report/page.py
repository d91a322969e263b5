"""The review page: one HTML file, without any network access, on which a person decides about suspicious labels.

Its parts lie in assets/. What came from outside (class names, paths, texts) is data in a JSON block and reaches the
document as text; a content security policy admits the page's own script and style by their hashes and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastac.data.label_files import labels_digest
from fastac.decisions import Decision
from fastac.extras import require
from fastac.issues.checks import ClassNames, listed_names
from fastac.report.offsets import TopOffsets, top_offsets
from fastac.report.thumbnails import thumbnail_side, thumbnail_uri

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["checked_top", "clean_names", "default_top", "write_review_page"]

_SCRIPTS = ("page", "store", "exchange", "filters", "charts", "gallery", "detail", "bulk", "main")
_FEWEST, _MOST = 100, 5000
_LONGEST_TEXT = 20_000  # characters of a sample's text that the page carries
_EPOCHS = 60  # points of a history that the page carries
_NOT_SCORES = {"index", "given_label", "suggested_label", "is_label_issue"}


def write_review_page(
    path: str | Path,
    issues: pd.DataFrame,
    *,
    class_names: ClassNames,
    labels: Any,
    images: Sequence[Any] | np.ndarray | pd.Series | Mapping[int, Any] | Callable[[int], Any] | None = None,
    texts: Sequence[str] | np.ndarray | pd.Series | Mapping[int, str] | Callable[[int], str] | None = None,
    alpha: Any = None,
    history: Mapping[str, Any] | None = None,
    title: str = "Label review",
    subtitle: str = "",
    run: str = "review",
    top: int | None = None,
    decisions: Sequence[Decision] = (),
) -> None:
    """Write the page on which a person goes through the most suspicious samples.

    The page shows a gallery with image or text, given and suggested label, a heat map of the pairs of classes, and
    takes decisions (keep, relabel, drop, unsure), which the browser keeps and exports; `fastac.apply` makes labels of
    them.

    path: the file to write; it appears whole or not at all.
    issues: a row a sample, the most suspicious first, as from fastac.find_label_issues: index, given_label,
        suggested_label (may be missing for a sample), is_label_issue; `kind` (str) to filter by and `path` (str) if
        there; all numeric columns are shown as scores.
    class_names: K names, in order or by class, as in transformers' id2label. labels: (N,) integers in [0, K), all
        labels that were trained on: their digest is the fingerprint by which decisions know their data.
    images: by sample id a PIL image, (H, W), (H, W, 1) or (H, W, 3) uint8 pixels, or None where there is none to show.
    texts: by sample id the text, cut after 20,000 characters.
        Each is a sequence of N (a pandas Series goes by position, whatever its index), a mapping or function of the id.
    alpha: for bars, AC1's α, (N, K), as array, tensor or AlphaTable, or TopOffsets; AC2's (N,) adds nothing.
    history: a score by epoch: arrays `index` (n,) ids, `epoch` (E,), `score` (E, n); NaN where it is not known.
    title, subtitle: over the page. run: the run's name; browsers keep the decisions by fingerprint and this name.
    decisions: what was decided before, as fastac.decisions.read_decisions has it: the page starts with it.
    top: how many samples; None: as many as are flagged, at least 100 and at most 5,000.

    Raises ValueError for arguments that do not fit each other.
    """
    class_names = listed_names(class_names)
    given = _labels(labels, len(class_names))
    if images is not None and texts is not None:
        raise ValueError("images and texts are both given; it should be one of them")
    image, text = _by_id("images", images, len(given)), _by_id("texts", texts, len(given))
    shown = issues.head(default_top(issues) if top is None else checked_top(top))
    ids = _check_issues(shown, given, len(class_names))
    fingerprint = labels_digest(given)
    page: dict[str, Any] = {
        "title": _clean(title, 300),
        "subtitle": _clean(subtitle, 500),
        "run": _clean(run, 200),
        "fingerprint": fingerprint,
        "storage_key": f"{fingerprint[:32]}:{_clean(run, 200)}",
        "num_samples": len(given),
        "class_names": clean_names(class_names),
        **_columns(shown),
        **_pictures(image, ids),
        "text": None if text is None else [_clean(text(i), _LONGEST_TEXT) for i in ids.tolist()],
        "alpha": _alpha(alpha, shown, ids, len(given), len(class_names)),
        "history": _history(history, ids),
        "earlier": _earlier(decisions, given, len(class_names)),
    }
    page["has_pictures"] = page["image"] is not None or page["text"] is not None
    _write(Path(path), _document(page))


def clean_names(class_names: Sequence[str]) -> list[str]:
    """The class names as pages have them."""
    return [_clean(name) for name in class_names]


def default_top(issues: pd.DataFrame) -> int:
    """As many samples as are flagged, at least 100 and at most 5,000."""
    return min(max(int(issues["is_label_issue"].sum()), _FEWEST), _MOST)


# ---- the document


def _document(page: Mapping[str, Any]) -> str:
    assets = resources.files("fastac.report") / "assets"

    def read(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8").replace("\r\n", "\n")

    style = read("review.css")
    script = '(() => {\n"use strict";\n' + "\n".join(read(f"{name}.js") for name in _SCRIPTS) + "})();\n"
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    document = read("review.html")
    parts = {
        "policy": policy,
        "title": html.escape(str(page["title"])),
        "style": style,
        "data": _script_json(page),
        "script": script,
    }
    before, *rest = document.split("{{")  # once through: what is put in may hold anything
    for piece in rest:
        name, after = piece.split("}}", 1)
        before += parts[name] + after
    return before


def _source(content: str) -> str:
    """A content security policy's name of an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _script_json(value: Any) -> str:
    """JSON that can stand in a script element: no character of it ends the element or starts a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- what the page holds


def _columns(shown: pd.DataFrame) -> dict[str, Any]:
    pandas = require("pandas", "report")
    scores = {}
    for name in shown.columns:
        column = shown[name]
        if name not in _NOT_SCORES and pandas.api.types.is_numeric_dtype(column):
            values = column.to_numpy(float, na_value=math.nan)
            if not np.isnan(values).all():
                scores[_clean(name, 60)] = _numbers(values, 6)
    texts = {
        name: [None if pandas.isna(text) else _clean(text) for text in shown[name]] if name in shown else None
        for name in ("kind", "path")
    }
    return {
        "index": shown["index"].tolist(),
        "given": shown["given_label"].tolist(),
        "suggested": [None if pandas.isna(label) else int(label) for label in shown["suggested_label"]],
        "issue": [int(flag) for flag in shown["is_label_issue"]],
        "kind": texts["kind"],
        "path": None if texts["path"] is None else [text or "" for text in texts["path"]],
        "scores": scores,
    }


def _pictures(read: Callable[[int], Any] | None, ids: np.ndarray) -> dict[str, Any]:
    if read is None:
        return {"image": None, "pixelated": False}
    side, uris = thumbnail_side(len(ids)), []
    for i in ids.tolist():
        image = read(i)
        uris.append(None if image is None else thumbnail_uri(image, side))
    small = all(uri is None or uri.startswith("data:image/png") for uri in uris)
    return {"image": uris, "pixelated": small}


def _by_id(name: str, source: Any, num_samples: int) -> Callable[[int], Any] | None:
    """The item of a sample's id, from an argument's source of any kind."""
    if source is None or callable(source):
        return source
    if isinstance(source, Mapping):

        def item(index: int) -> Any:
            if index not in source:
                raise ValueError(
                    f"{name} has nothing for id {index}; it should have all samples that are shown"
                )
            return source[index]

        return item
    if isinstance(source, str) or not hasattr(source, "__getitem__"):
        raise ValueError(
            f"{name} is a {type(source).__name__}; it should be a sequence, a mapping or a function"
        )
    if hasattr(source, "__len__") and len(source) != num_samples:
        raise ValueError(f"{name} has {len(source)} items; it should have one a label, {num_samples}")
    by_position = getattr(source, "iloc", source)  # pandas takes [i] for a name in its index
    return lambda index: by_position[index]


def _alpha(
    alpha: Any, shown: pd.DataFrame, ids: np.ndarray, num_samples: int, num_classes: int
) -> dict[str, Any] | None:
    if alpha is not None and not isinstance(alpha, TopOffsets):
        named = np.stack([shown["given_label"].to_numpy(np.int64), _suggested(shown)], axis=1)
        alpha = top_offsets(alpha, ids, named, num_samples=num_samples, num_classes=num_classes)
    if alpha is None:
        return None
    places = _places(alpha.index, ids)
    if (places < 0).all():
        return None
    values = alpha.values[places[places >= 0]]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return {
        "classes": [None if place < 0 else alpha.classes[place].tolist() for place in places.tolist()],
        "values": [None if place < 0 else _numbers(alpha.values[place], 4) for place in places.tolist()],
        "low": low,
        "high": high,
        "range": high - low or 1.0,
    }


def _history(history: Mapping[str, Any] | None, ids: np.ndarray) -> dict[str, Any] | None:
    if history is None:
        return None
    missing = [name for name in ("index", "epoch", "score") if name not in history]
    if missing:
        raise ValueError(f"history has no {missing[0]}; it should have the arrays index, epoch and score")
    index, epoch, score = (np.asarray(history[name]) for name in ("index", "epoch", "score"))
    if index.ndim != 1 or epoch.ndim != 1 or score.shape != (len(epoch), len(index)) or len(epoch) == 0:
        raise ValueError(
            f"history has index {index.shape}, epoch {epoch.shape} and score {score.shape}; they should be (n,), "
            "(E,) and (E, n) with E at least 1"
        )
    points = np.unique(np.linspace(0, len(epoch) - 1, min(len(epoch), _EPOCHS)).round().astype(int))
    places = _places(index, ids)
    return {
        "epoch": epoch[points].tolist(),
        "score": [None if p < 0 else _numbers(score[points, p].astype(float), 4) for p in places.tolist()],
    }


def _earlier(decisions: Sequence[Decision], given: np.ndarray, num_classes: int) -> dict[str, Any] | None:
    """Decisions, and a key by which a browser knows that it has taken them over."""
    for decision in decisions:
        if not 0 <= decision.index < len(given) or decision.given != given[decision.index]:
            raise ValueError(
                f"decisions has given_label {decision.given} for id {decision.index}; it should be as in labels"
            )
        if decision.label is not None and not 0 <= decision.label < num_classes:
            raise ValueError(f"decisions has the label {decision.label}; it should be in [0, {num_classes})")
    entries = [
        [d.index, {"decision": d.kind, "label": d.label, "given": d.given, "time": d.time}] for d in decisions
    ]
    key = hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]
    return {"key": key, "decisions": entries} if entries else None


def _places(index: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where each of `ids` is in `index`, -1 where it is not."""
    place = {int(i): n for n, i in enumerate(index.tolist())}
    return np.array([place.get(i, -1) for i in ids.tolist()], dtype=np.int64)


def _numbers(values: np.ndarray, digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def _clean(text: Any, longest: int | None = None) -> str:
    """Text that UTF-8 can hold (file names may not), cut visibly."""
    text = str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if longest is not None and len(text) > longest:
        return f"{text[:longest]}… ({len(text) - longest:,} more characters)"
    return text


# ---- checks


def _labels(labels: Any, num_classes: int) -> np.ndarray:
    array = labels.detach().cpu().numpy() if hasattr(labels, "detach") else np.asarray(labels)
    if array.dtype.kind not in "biu" or array.ndim != 1:
        raise ValueError(f"labels is {array.dtype} {array.shape}; it should be integers (N,)")
    if array.size == 0 or array.min() < 0 or array.max() >= num_classes:
        span = f"from {array.min()} to {array.max()}" if array.size else "empty"
        raise ValueError(f"labels is {span}; it should be in [0, {num_classes}), as many as class_names")
    return array.astype(np.int64)


def checked_top(top: Any) -> int:
    """`top` as an int. Raises ValueError where it is no whole number or below 1."""
    whole = not isinstance(top, bool | np.bool_) and hasattr(top, "__index__")
    if not whole or operator.index(top) < 1:
        raise ValueError(f"top is {top!r}; it should be a whole number, at least 1")
    return operator.index(top)


def _suggested(shown: pd.DataFrame) -> np.ndarray:
    """(n,) int64, -1 for none."""
    values = shown["suggested_label"].to_numpy(float, na_value=math.nan)
    return np.where(np.isnan(values), -1, values).astype(np.int64)


def _check_issues(shown: pd.DataFrame, given: np.ndarray, num_classes: int) -> np.ndarray:
    """The ids of the samples to show, (n,) int64."""
    missing = [
        name for name in ("index", "given_label", "suggested_label", "is_label_issue") if name not in shown
    ]
    if missing:
        raise ValueError(f"issues has no column {missing[0]}; it should be from fastac.find_label_issues")
    if len(shown) == 0:
        raise ValueError("issues has no rows; it should have at least one")
    ids = shown["index"].to_numpy(np.int64)
    if ids.min() < 0 or ids.max() >= len(given):
        raise ValueError(
            f"issues has ids from {ids.min()} to {ids.max()}; they should be in [0, {len(given)})"
        )
    if len(np.unique(ids)) != len(ids):
        raise ValueError("issues has an id twice; each should be there once")
    differ = np.flatnonzero(shown["given_label"].to_numpy(np.int64) != given[ids])
    if differ.size:
        i = differ[0]
        raise ValueError(
            f"issues has given_label {shown['given_label'].iloc[i]} for id {ids[i]} and labels has {given[ids[i]]}; "
            "they should be the same"
        )
    suggested = _suggested(shown)
    if suggested.max() >= num_classes or suggested.min() < -1:
        raise ValueError(f"issues suggests the label {suggested.max()}; it should be in [0, {num_classes})")
    return ids
