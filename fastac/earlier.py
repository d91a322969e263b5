"""What a person decided in earlier rounds of review, as far as it holds for the labels of a later run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fastac.config import Config
from fastac.decisions import Decision, read_decisions

__all__ = ["EARLIER", "earlier_decisions", "find_earlier"]

EARLIER = "decisions.json"
"""What fastac.apply leaves beside the corrected labels."""


def find_earlier(config: Config) -> list[Path]:
    """The file of decisions that lies beside the labels.csv of which a run was trained; none where there is none."""
    labels = config.data.labels
    if labels is None or Path(labels).name != "labels.csv":
        return []
    beside = Path(labels).with_name(EARLIER)
    return [beside] if beside.is_file() else []


def earlier_decisions(
    paths: Sequence[Path], given: np.ndarray, class_names: Sequence[str]
) -> tuple[list[Decision], int]:
    """The decisions that hold for the labels `given`, by id, and the number of those whose label has changed since.

    A decision holds where the label is the one that it was made for. Where the label is the one that it chose, it is
    kept. Of several about one id the latest counts.

    paths: files of decisions. given: (N,) int64. class_names: K names. Raises FileNotFoundError or ValueError for files
    that are not right or were made for other classes, for fewer samples, or for other labels throughout.
    """
    latest: dict[int, Decision] = {}
    for path in paths:
        file = read_decisions(Path(path))
        if file.class_names != tuple(class_names):
            raise ValueError(f"{path} has other class names than the run; they should be the same")
        if file.num_samples < len(given):  # more are right: a run on the first of the samples
            raise ValueError(f"{path} was made for {file.num_samples} samples; the run has {len(given)}")
        for decision in file.decisions:
            other = latest.get(decision.index, decision)
            if decision.index < len(given) and _moment(decision) >= _moment(other):
                latest[decision.index] = decision
    held = [_held(latest[index], int(given[index])) for index in sorted(latest)]
    holds = [decision for decision in held if decision is not None]
    if held and not holds:
        raise ValueError(
            f"{', '.join(map(str, paths))}: none of the {len(held)} decisions is about a label of the run; "
            "they were made for other data"
        )
    return holds, len(held) - len(holds)


def _held(decision: Decision, label: int) -> Decision | None:
    if label == decision.given:
        return decision
    return replace(decision, kind="keep", given=label) if label == decision.label else None


def _moment(decision: Decision) -> datetime:
    moment = datetime.fromisoformat(decision.time)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
