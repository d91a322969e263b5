"""States of which each rank saved its own rows: which rows a state holds, and putting them together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["as_states", "check_cover", "held_rows", "overlaps", "take_parts"]


def as_states(state: Any) -> list[dict[str, Any]]:
    """One state, or several that were saved together, as a list. ValueError where there is none."""
    states = [state] if isinstance(state, dict) else list(state)
    if not states:
        raise ValueError("state must be a state or a list of states, got none")
    for part in states:
        if not isinstance(part, dict):
            raise ValueError(f"state must be a dict or a list of dicts, got {type(part).__name__}")
    return states


def held_rows(state: Mapping[str, Any], num_samples: int) -> range:
    """The rows that a state holds: its "rows", [first, after); all of them where it does not say."""
    rows = state.get("rows", (0, num_samples))
    pair = isinstance(rows, tuple | list) and len(rows) == 2 and all(isinstance(row, int) for row in rows)
    if not pair or not 0 <= rows[0] <= rows[1] <= num_samples:
        raise ValueError(f"rows in the state must be two numbers, rising, in [0, {num_samples}], got {rows}")
    return range(*rows)


def overlaps(one: range, other: range) -> bool:
    """Whether the two ranges of rows, of step 1, have a row in common."""
    return max(one.start, other.start) < min(one.stop, other.stop)


def check_cover(parts: Sequence[range], held: range) -> None:
    """ValueError unless the parts together have all rows of `held`."""
    reached = held.start
    for part in sorted(parts, key=lambda part: part.start):
        if part.start <= reached:
            reached = max(reached, part.stop)
    if reached < held.stop:
        raise ValueError(
            f"the states hold the rows {[(part.start, part.stop) for part in parts]}, which lack {reached} of the "
            f"rows [{held.start}, {held.stop}) that are to be held here"
        )


def take_parts(
    own: Mapping[str, Tensor | None],
    held: range,
    states: Sequence[Mapping[str, Any]],
    parts: Sequence[range],
) -> None:
    """Copy the rows `held` of each tensor of `own` (len(held), ...) from the states, whose rows are `parts`."""
    for state, part in zip(states, parts, strict=True):
        if not overlaps(part, held):
            continue
        start, stop = max(part.start, held.start), min(part.stop, held.stop)
        for key, tensor in own.items():
            if tensor is not None:
                values = state[key][start - part.start : stop - part.start]
                tensor[start - held.start : stop - held.start].copy_(values)
