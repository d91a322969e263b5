"""`python -m fastac.apply DECISIONS`: corrected labels to train on again, from what a person decided on the page."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastac.config import Config, read_config
from fastac.data import labels_digest, read_id_file, read_label_file
from fastac.decisions import KINDS, Decision, DecisionFile, guard_cell, read_decisions, write_decisions
from fastac.earlier import EARLIER
from fastac.run import RunFolder
from fastac.run_data import run_config

__all__ = ["Applied", "apply_decisions", "main"]

_CHANGES = (
    "index",
    "old_label",
    "new_label",
    "old_class",
    "new_class",
    "decision",
    "source",
    "time",
)

_LABELS = ("index", "label", "class", "path")
_LISTED = 10  # contradictions that a message has


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder and say how to train on it. Exit status 2: a user's error."""
    parser = argparse.ArgumentParser(prog="python -m fastac.apply", description=__doc__)
    parser.add_argument(
        "decisions", metavar="DECISIONS", nargs="+", type=Path, help="files that the page exported"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--run", type=Path, help="folder of the run (default: looked for by the name in DECISIONS)"
    )
    source.add_argument(
        "--labels", help="the labels that were reviewed, where they were no run's: a label file"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: RUN/corrected)")
    options = parser.parse_args(argv)
    try:
        applied = apply_decisions(
            options.decisions, run=options.run, labels=options.labels, output=options.output
        )
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("FASTAC_DEBUG") == "1":
            raise
        print(f"fastac.apply: error: {error}", file=sys.stderr)
        return 2
    print(applied.text())
    return 0


@dataclass(frozen=True)
class Applied:
    """What was written, and how many decisions there were of each kind."""

    output: Path
    counts: dict[str, int]
    changed: int
    excluded: int
    run: RunFolder | None
    config: Config | None

    def text(self) -> str:
        counts = ", ".join(f"{self.counts[kind]} {kind}" for kind in KINDS if self.counts.get(kind))
        lines = [f"decisions: {counts or 'none'}", f"in {self.output}:"]
        lines.append(f"  labels.csv   the labels, {self.changed} of them changed")
        lines.append(f"  exclude.csv  {self.excluded} samples to leave out of training")
        lines.append("  changes.csv  every change, with its old label")
        lines.append(f"  {EARLIER}  all decisions, for the review of a run on these labels")
        if self.run is not None and self.config is not None:
            command = retrain_command(self.run, self.config, self.output, excluded=self.excluded > 0)
            lines.append(f"to train on them, started as the run was: {command}")
        return "\n".join(lines)


def retrain_command(run: RunFolder, config: Config, output: Path, *, excluded: bool = True) -> str:
    """The command that trains as the run did, on the labels in `output`, without the samples that are to be left out
    where there are some."""
    words = ["python", "-m", "fastac.train", "--recipe", str(run.config)]
    if config.data.data_dir != read_config(run.path).data.data_dir:  # which is relative to another folder
        words += ["--data-dir", str(config.data.data_dir)]
    words += ["--labels", str(output / "labels.csv"), "--exclude", str(output / "exclude.csv")]
    if excluded and config.loss.alpha_placement == "aligned":  # whose ranks' shards would be of unlike sizes
        words += ["--alpha-placement", "exchange"]
    if config.data.noise != "none":  # the labels have it in them
        words += ["--noise", "none", "--noise-rate", "0"]
    return shlex.join(words)


def apply_decisions(
    paths: Sequence[Path], *, run: Path | None = None, labels: str | None = None, output: Path | None = None
) -> Applied:
    """Apply exported decisions to the labels that they were made for.

    paths: files that the review page exported; several people's, if they don't contradict each other. Unsure yields to
        any other decision.
    run: the run's folder; None: looked for beside the files and as runs/NAME. labels: in its place the label file
        that was reviewed. output: a folder that does not exist yet; None: RUN/corrected, with a number if that is
        taken.

    Writes labels.csv (index, label, class and, of a run on image files, path as in its issues.csv) for `fastac.train
    --labels`, exclude.csv (index) for `--exclude`: what is dropped now and what the run left out before, unless it is
    kept or relabelled now; changes.csv; and decisions.json, all decisions, which the review of a run that is trained on
    labels.csv takes over. Raises FileNotFoundError or ValueError, and nothing written, for decisions
    that are wrong or made for other data.
    """
    files = [read_decisions(Path(path)) for path in paths]
    head = files[0]
    folder = config = None
    excluded = np.empty(0, np.int64)
    if labels is not None:
        size = {"num_samples": head.num_samples, "num_classes": len(head.class_names)}
        given, where = read_label_file(labels, **size), labels
    else:
        folder = RunFolder(_find_run(head) if run is None else Path(run))
        given, where = folder.read_labels(), str(folder.labels)
        config = run_config(folder)
        _check_classes(folder, head)
        if config.data.exclude is not None:
            excluded = read_id_file(Path(config.data.exclude), num_samples=len(given))
    decisions = _checked(files, given, where)
    corrected = given.copy()
    for decision in decisions:
        if decision.kind == "relabel":
            corrected[decision.index] = decision.label
    dropped, decided = _ids(decisions, "drop"), _ids(decisions, "keep", "relabel")
    left_out = np.union1d(np.setdiff1d(excluded, decided), dropped).astype(np.int64)
    new = [d for d in decisions if d.kind == "relabel" or (d.kind == "drop" and d.index not in excluded)]
    tables = {
        "labels.csv": _labels(corrected, head.class_names, {} if folder is None else _paths(folder)),
        "exclude.csv": [("index",), *([i] for i in left_out.tolist())],
        "changes.csv": [_CHANGES, *(_change(decision, head.class_names) for decision in new)],
    }
    place = _write(_places(output, folder), tables, head, decisions)
    counts = dict(Counter(decision.kind for decision in decisions))
    return Applied(place, counts, int((corrected != given).sum()), len(left_out), folder, config)


# ---- what the decisions are about


def _find_run(file: DecisionFile) -> Path:
    """The folder of the run that a file names."""
    name = file.run if file.run == Path(file.run).name else ""
    beside = file.path.resolve().parent
    places = [beside, beside.parent] if beside.name == name else [beside]
    places += [base / name for base in (beside, Path("runs"), Path()) if name]
    for place in places:
        folder = RunFolder(place)
        if folder.labels.is_file() and folder.config.is_file():
            return place
    looked = ", ".join(map(str, dict.fromkeys(places)))
    raise FileNotFoundError(
        f"{file.path} is of the run {file.run!r}, which is not in {looked}: give its folder, --run RUN"
    )


def _check_classes(folder: RunFolder, file: DecisionFile) -> None:
    if not folder.result.is_file():
        raise FileNotFoundError(f"{folder.path} has no {folder.result.name}: the run has not come to its end")
    classes = json.loads(folder.result.read_text(encoding="utf-8")).get("classes")
    if classes != len(file.class_names):
        raise ValueError(
            f"{file.path} was made for {len(file.class_names)} classes; {folder.path} has {classes}"
        )


def _checked(files: Sequence[DecisionFile], given: np.ndarray, where: str) -> list[Decision]:
    """All decisions, by id, if they were made for these labels and don't contradict each other."""
    found: dict[int, list[Decision]] = {}
    for file in files:
        if file.fingerprint != labels_digest(given) or file.num_samples != len(given):
            raise ValueError(
                f"{file.path} was made for other data, of the run {file.run!r}: its fingerprint is "
                f"{file.fingerprint[:12]}… of {file.num_samples} labels, that of {where} is "
                f"{labels_digest(given)[:12]}… of {len(given)}"
            )
        if file.class_names != files[0].class_names:
            raise ValueError(
                f"{file.path} has other class names than {files[0].path}; they should be the same"
            )
        for decision in file.decisions:
            if decision.given != given[decision.index]:
                raise ValueError(
                    f"{decision.where}: given_label is {decision.given}; in {where} it is {given[decision.index]} for "
                    f"id {decision.index}"
                )
            found.setdefault(decision.index, []).append(decision)
    return _agreed(found)


def _agreed(found: dict[int, list[Decision]]) -> list[Decision]:
    """One decision an id, by id: the first of those that are alike; unsure only where nobody is sure."""
    agreed, contradictions = [], []
    for index in sorted(found):
        sure = [decision for decision in found[index] if decision.kind != "unsure"]
        agreed.append((sure or found[index])[0])
        if len({decision.content for decision in sure}) > 1:
            words = (f"{decision.words} ({decision.where})" for decision in sure)
            contradictions.append(f"id {index}: {', '.join(words)}")
    if contradictions:
        more = len(contradictions) - _LISTED
        lines = contradictions[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
        ids = "1 id has" if len(contradictions) == 1 else f"{len(contradictions)} ids have"
        raise ValueError(
            f"{ids} decisions that contradict each other; each should have one:\n  " + "\n  ".join(lines)
        )
    return agreed


def _ids(decisions: Iterable[Decision], *kinds: str) -> np.ndarray:
    return np.array([decision.index for decision in decisions if decision.kind in kinds], dtype=np.int64)


# ---- what is written


def _places(output: Path | None, folder: RunFolder | None) -> list[Path]:
    """The folders to try, in this order."""
    if output is not None:
        return [Path(output)]
    if folder is None:
        raise ValueError("output was not given; with labels it should be a new folder, --output DIR")
    names = ["corrected", *(f"corrected-{number}" for number in range(2, 1000))]
    return [folder.path / name for name in names]


def _write(
    places: list[Path],
    tables: dict[str, list[Sequence[Any]]],
    head: DecisionFile,
    decisions: Sequence[Decision],
) -> Path:
    """The files, in the first of `places` that does not exist; whole or not at all. tables: rows, the header first."""
    parent = places[0].absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    draft = parent / f".new-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        for name, (columns, *rows) in tables.items():
            _write_csv(draft / name, columns, rows)
        write_decisions(draft / EARLIER, head, decisions)
        for place in places:
            if not place.exists():
                draft.rename(place)
                return place
        raise ValueError(f"output was {str(places[0])!r}, which exists; it should be a new folder")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _labels(labels: np.ndarray, class_names: Sequence[str], paths: dict[int, str]) -> list[Sequence[Any]]:
    """labels.csv; no fourth column where there are no paths."""
    names = [guard_cell(name) for name in class_names]
    rows = [[index, label, names[label]] for index, label in enumerate(labels.tolist())]
    if not paths:
        return [_LABELS[:3], *rows]
    return [_LABELS, *([*row, paths.get(row[0], "")] for row in rows)]


def _paths(folder: RunFolder) -> dict[int, str]:
    """The samples' files by id, as the cells of issues.csv have them, guarded; none where the data is no files."""
    if not folder.issues.is_file():
        return {}
    with open(folder.issues, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            return {}
        try:
            return {int(row["index"]): row["path"] or "" for row in rows}
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{folder.issues}, line {rows.line_num} can't be read: {error!r}") from error


def _change(decision: Decision, class_names: Sequence[str]) -> list[Any]:
    """A row of changes.csv: a relabelled or dropped sample."""
    new = decision.label
    names = [class_names[decision.given], "" if new is None else class_names[new]]
    cells = [*names, decision.kind, decision.source, decision.time]
    return [decision.index, decision.given, "" if new is None else new, *map(guard_cell, cells)]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(columns)
        # Texts in quotes, because Python before 3.13 leaves a carriage return in a cell bare.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
