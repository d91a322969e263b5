"""A person's decisions about labels, as the review page exports them: JSON or CSV, read with nothing taken on trust."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = [
    "KINDS",
    "Decision",
    "DecisionFile",
    "guard_cell",
    "read_decisions",
    "unguard_cell",
    "write_decisions",
]

KINDS = ("keep", "relabel", "drop", "unsure")

# The page's script exchange.js writes both formats; keep them alike.
_FORMAT, _VERSION = "fastac decisions", 1
_HEAD = ("format", "fingerprint", "num_samples", "class_names", "run", "exported", "rows")
_COLUMNS = ("index", "given_label", "given_class", "decision", "label", "class", "time")
_NEEDED = ("index", "given_label", "decision", "label", "time")
_SEPARATOR = re.compile(r'[ \r\n]*(?:"[^"]*"|[^",;\t\r\n]*)([,;\t])')  # after the first cell
_FORMULA = re.compile("[ '\u00a0\ufeff]*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


@dataclass(frozen=True)
class Decision:
    """What is to be done about the label of one sample."""

    index: int
    given: int
    kind: str
    """One of KINDS."""
    label: int | None
    """relabel: the new label; keep: the given one; drop and unsure: None."""
    time: str
    """When it was decided, ISO 8601."""
    where: str
    """File and line, for messages."""
    source: str
    """The file's name."""

    @property
    def content(self) -> tuple[str, int | None]:
        return self.kind, self.label

    @property
    def words(self) -> str:
        return self.kind if self.kind != "relabel" else f"relabel to {self.label}"

    def entry(self) -> dict[str, Any]:
        """As the JSON format has it, without the id."""
        return {"given_label": self.given, "decision": self.kind, "label": self.label, "time": self.time}


@dataclass(frozen=True)
class DecisionFile:
    """An exported file: the data that it was made for, and its decisions, one a sample."""

    path: Path
    fingerprint: str
    """fastac.data.labels_digest of the labels that were reviewed."""
    num_samples: int
    class_names: tuple[str, ...]
    run: str
    decisions: tuple[Decision, ...]


def guard_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe before what begins like one."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_cell(text: str) -> str:
    """The text that `guard_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text, 1) else text


def read_decisions(path: Path) -> DecisionFile:
    """Read a file that the review page has exported, .json or .csv, in UTF-8, or UTF-16 with a byte order mark.

    A table may have been through a spreadsheet: cells separated by semicolons or tabs, columns in another order or
    beside others, 74.0 for 74, Keep for keep.

    Raises FileNotFoundError, or ValueError that names the file and the line: a head that lacks something, another
    number of rows than it says, unknown decisions, wrong types, ids and labels outside their range, and two
    different decisions about one id. The same decision twice counts once.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of decisions {path}")
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: a file of decisions should end in .csv or .json, as the page exports it")
    head, rows = readers[path.suffix.lower()](path, _text(path))
    _check_head(path, head)
    found: dict[int, Decision] = {}
    for where, row in rows:
        decision = _decision(f"{path}, {where}", row, head, path.name)
        other = found.setdefault(decision.index, decision)
        if other.content != decision.content:
            raise ValueError(
                f"{decision.where}: id {decision.index} is to {decision.words}, but to {other.words} in "
                f"{other.where}; it should have one decision"
            )
    if len(found) != head["rows"]:
        raise ValueError(
            f"{path} has decisions about {len(found)} samples; its head says {head['rows']}. Rows are missing or were "
            "added: export it again"
        )
    names = tuple(head["class_names"])
    return DecisionFile(
        path, head["fingerprint"], head["num_samples"], names, head["run"], tuple(found.values())
    )


def write_decisions(path: Path, file: DecisionFile, decisions: Sequence[Decision]) -> None:
    """Write `decisions` about the data of `file` as JSON that `read_decisions` and the page read."""
    head = {
        "format": _FORMAT,
        "version": _VERSION,
        "fingerprint": file.fingerprint,
        "num_samples": file.num_samples,
        "class_names": file.class_names,
        "run": file.run,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": len(decisions),
    }
    rows = ",\n  ".join(json.dumps({"index": decision.index, **decision.entry()}) for decision in decisions)
    text = json.dumps({**head, "decisions": []}, ensure_ascii=False, indent=1)
    path.write_text(text.replace("[]\n}", f"[\n  {rows}\n ]\n}}\n" if rows else "[]\n}\n"), encoding="utf-8")


# ---- the two formats: a head, and rows with their place in the file


def _text(path: Path) -> str:
    """The file's text as it is: a name may hold line breaks of any kind."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} should be text in UTF-8, which spreadsheets save as 'CSV UTF-8': {error}"
        ) from error


def _read_json(path: Path, text: str) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key twice in one object")
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is no file of decisions that the review page has exported")
    if type(content.get("version")) is not int or content["version"] != _VERSION:
        raise ValueError(f"{path} has version {content.get('version')!r}; it should be {_VERSION}")
    rows = content.pop("decisions", None)
    if not isinstance(rows, list):
        raise ValueError(f"{path} has no list `decisions`")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or {"index", "given_label", "decision", "label", "time"} - row.keys():
            raise ValueError(
                f"{path}, decision {number} should have index, given_label, decision, label and time"
            )
    return content, [(f"decision {number}", row) for number, row in enumerate(rows, start=1)]


def _read_csv(path: Path, text: str) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    head: dict[str, Any] = {}
    rows: list[tuple[str, dict[str, Any]]] = []
    lines = _csv_lines(path, text)
    for line, cells in lines:
        where = f"{path}, line {line}"
        if not cells[0].startswith("#"):
            break
        name = cells[0][1:]
        if name not in _HEAD or name in head:
            raise ValueError(f"{where}: {cells[0]!r} should not be there, or not twice")
        head[name] = _head_value(where, name, cells[1:])
    else:
        raise ValueError(f"{path} ends before its line {','.join(_COLUMNS)}")
    columns = _columns(where, cells)
    named = len(_stripped(columns, 0))
    for line, cells in lines:
        where = f"{path}, line {line}"
        cells = _stripped(cells, len(columns))
        if not named <= len(cells) <= len(columns):
            raise ValueError(
                f"{where} has {len(cells)} cells; it should have {named}: {','.join(columns[:named])}"
            )
        row: dict[str, Any] = {name: cells[columns.index(name)] for name in _COLUMNS if name in columns}
        for name in ("index", "given_label"):
            row[name] = _integer(where, name, row[name])
        row["label"] = None if row["label"] == "" else _integer(where, "label", row["label"])
        row["decision"] = row["decision"].strip().lower()
        rows.append((f"line {line}", row))
    return head, rows


def _columns(where: str, cells: list[str]) -> list[str]:
    """The columns' names, in the file's order; those that are no export's are for the reader alone."""
    names = [cell.strip().lower() for cell in cells]
    if any(names.count(name) != 1 for name in _NEEDED) or any(names.count(name) > 1 for name in _COLUMNS):
        raise ValueError(
            f"{where} is {','.join(cells)[:200]!r}; it should have {','.join(_COLUMNS)}, each once"
        )
    return names


def _csv_lines(path: Path, text: str) -> Any:
    """(number of the line, cells) of each line that is not empty."""
    csv.field_size_limit(max(csv.field_size_limit(), 10**7))  # a class name may be long
    separator = _SEPARATOR.match(text)
    if separator is None:
        raise ValueError(
            f"{path} begins with {text[:80]!r}; it should be #format and more cells, between commas, semicolons or tabs"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator[1], strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line} should be CSV: {error}") from error


def _stripped(cells: list[str], width: int) -> list[str]:
    """Without the empty cells that spreadsheets add to the right."""
    while len(cells) > width and cells[-1] == "":
        cells = cells[:-1]
    return cells


def _head_value(where: str, name: str, cells: list[str]) -> Any:
    if name == "class_names":
        number = _integer(where, "the number of class names", cells[0] if cells else "")
        if number < 0 or len(cells) <= number or any(cells[number + 1 :]):
            raise ValueError(f"{where} has other than {number} class names, which its first cell says")
        return [unguard_cell(cell) for cell in cells[1 : number + 1]]
    text = unguard_cell(cells[0]) if cells else ""
    if name == "format" and (text != _FORMAT or cells[1:2] != [str(_VERSION)]):
        raise ValueError(f"{where}: it should be #format,{_FORMAT},{_VERSION}")
    return _integer(where, name, text) if name in ("num_samples", "rows") else text


def _integer(where: str, name: str, text: str) -> int:
    # 74.0 is a spreadsheet's 74; 1.000 may be a thousand.
    number = re.fullmatch(r"(-?[0-9]{1,15})(?:\.00?)?", text.strip())
    if number is None:
        raise ValueError(f"{where}: {name} is {text[:80]!r}; it should be a whole number")
    return int(number[1])


# ---- checks that are the same for both


def _check_head(path: Path, head: dict[str, Any]) -> None:
    missing = [name for name in _HEAD if name not in head]
    if missing:
        raise ValueError(f"{path} does not say its {missing[0]}; the page's export does")
    names = head["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: class_names should be a list of names")
    for name, low in (("num_samples", 1), ("rows", 0)):
        if type(head[name]) is not int or head[name] < low:
            raise ValueError(f"{path}: {name} is {head[name]!r}; it should be a whole number from {low} on")
    if not isinstance(head["run"], str):
        raise ValueError(f"{path}: run is {head['run']!r}; it should be a name")
    fingerprint = head["fingerprint"]
    if not isinstance(fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", fingerprint):
        raise ValueError(f"{path}: fingerprint is {fingerprint!r}; it should be 64 hexadecimal digits")


def _decision(where: str, row: dict[str, Any], head: dict[str, Any], source: str) -> Decision:
    index, given, kind, label = row["index"], row["given_label"], row["decision"], row["label"]
    num_classes = len(head["class_names"])
    for name, value, end in (("index", index, head["num_samples"]), ("given_label", given, num_classes)):
        if type(value) is not int or not 0 <= value < end:
            raise ValueError(f"{where}: {name} is {value!r}; it should be a whole number in [0, {end})")
    if kind not in KINDS:
        raise ValueError(
            f"{where}: decision is {kind!r}; it should be {', '.join(KINDS[:-1])} or {KINDS[-1]}"
        )
    if kind in ("drop", "unsure"):
        if label is not None:
            raise ValueError(f"{where}: label is {label!r}; with {kind} it should be empty")
    elif type(label) is not int or not 0 <= label < num_classes:
        raise ValueError(f"{where}: label is {label!r}; it should be a whole number in [0, {num_classes})")
    elif (label == given) != (kind == "keep"):
        should = "the given label" if kind == "keep" else "another label than the given one"
        raise ValueError(f"{where}: label is {label}; with {kind} it should be {should} ({given})")
    _check_class(where, row, label, head)
    return Decision(index, given, kind, label, _time(where, row["time"]), where, source)


def _check_class(where: str, row: dict[str, Any], label: int | None, head: dict[str, Any]) -> None:
    """A table's class names are for people; one that was changed without its label shows a slip."""
    names = head["class_names"]
    for column, number in (("given_class", row["given_label"]), ("class", label)):
        want = "" if number is None else names[number]
        if column in row and unguard_cell(row[column]) != want:
            raise ValueError(
                f"{where}: {column} is {row[column][:80]!r} and the label beside it is {number}, {want[:80]!r}; "
                "change the label"
            )


def _time(where: str, value: Any) -> str:
    try:
        return datetime.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        raise ValueError(f"{where}: time is {value!r}; it should be like 2026-01-31T12:00:00Z") from None
