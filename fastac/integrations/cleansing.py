"""What one run needs of this package, in one object with one state: the α table, the dynamics and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastac.dynamics import TrainingDynamics
from fastac.integrations.ids import decode
from fastac.integrations.optimizers import follow
from fastac.issues import find_label_issues
from fastac.loss import AutoCleansingLoss
from fastac.table import AlphaTable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cleansing"]


class Cleansing:
    """α table, training dynamics and loss of one training run.

    num_samples, num_classes: N and K. form: of α, "ac1" or "ac2"; None trains with plain cross entropy and records
    dynamics alone. dynamics: whether they are recorded. table: more options of AlphaTable, loss: of AutoCleansingLoss
    (update="step" only: other people's trainers accumulate, skip and repeat).

    With several processes make it after torch.distributed is initialised: each has an equal copy of α, and dynamics
    are brought together whenever the state is taken, which all processes must do together.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        form: str | None = "ac1",
        dynamics: bool = True,
        device: torch.device | str | None = None,
        table: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
    ):
        options = dict(loss or {})
        if options.get("update", "step") != "step":
            raise ValueError(f"loss: update must be 'step' here, got {options['update']!r}")
        if form is None and not dynamics:
            raise ValueError("form=None with dynamics=False would do nothing")
        if form is None and table:
            raise ValueError(f"table options {sorted(table)} were given with form=None, which has no table")
        self.num_samples, self.num_classes = num_samples, num_classes
        self.table: AlphaTable | None = None
        if form is not None:
            self.table = AlphaTable(num_samples, num_classes, form=form, device=device, **(table or {}))
        self.dynamics: TrainingDynamics | None = None
        if dynamics:
            self.dynamics = TrainingDynamics(num_samples, num_classes, device=device)
        self._note_merged()
        self.criterion = AutoCleansingLoss(self.table, dynamics=self.dynamics, **options)

    def follow(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        """Have α step with the network's optimizer; options: see fastac.integrations.follow."""
        if self.table is not None:
            follow(self.table, optimizer, **options)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of labels that carry ids (see fastac.integrations.ids); without grad mode that of the network
        alone, and labels need no ids."""
        target, index = decode(labels, self.num_classes)
        learning = torch.is_grad_enabled()
        self.criterion.train(learning)
        return self.criterion(logits, target, index if learning else None)

    def issues(self, labels: Any, **options: Any) -> pd.DataFrame:
        """`find_label_issues` of the table and the dynamics, or of what there is of them. options: its own;
        ignore_index is the loss's. With several processes all call `merge` before."""
        options.setdefault("ignore_index", self.criterion.ignore_index)
        if self.table is None:
            return find_label_issues(self.dynamics, labels, **options)
        options.setdefault("dynamics", self.dynamics)
        return find_label_issues(self.table, labels, **options)

    def state_dict(self) -> dict[str, Any]:
        """Of table and dynamics, tensors not copied. All processes call it."""
        self.merge()
        parts = {"table": self.table, "dynamics": self.dynamics}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError, and nothing changed, where the state is of another table or other data."""
        parts = {"table": self.table, "dynamics": self.dynamics}
        wanted = {name for name, part in parts.items() if part is not None}
        if state.keys() != wanted:
            raise ValueError(f"the state must hold {sorted(wanted)}, it holds {sorted(state)}")
        if self.dynamics is not None:
            before = _copy(self.dynamics)
            self.dynamics.load_state_dict(state["dynamics"])
        if self.table is not None:
            try:
                self.table.load_state_dict(state["table"])
            except ValueError:
                if self.dynamics is not None:
                    self.dynamics.load_state_dict(before)
                raise
        self._note_merged()

    def _note_merged(self) -> None:
        """Keep the dynamics as all processes have them, for what comes later to be told apart."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._merged = _copy(self.dynamics) if several and self.dynamics is not None else None

    def merge(self) -> None:
        """Bring together what the processes recorded since the last time; all of them call it. Exact, but for a sample
        that several processes saw in between: forgetting events between their visits are not counted."""
        dynamics, before = self.dynamics, self._merged
        if dynamics is None or before is None:
            return
        state = _copy(dynamics)
        visited = state["count"] > before["count"]
        # The highest of 0 (no visit), 2 (wrong at the last one), 3 (right): some process's answer.
        answer = torch.where(visited, 2 + state["was_correct"].int(), 0)
        dist.all_reduce(answer, dist.ReduceOp.MAX)
        state["was_correct"] = torch.where(answer > 0, answer == 3, before["was_correct"])
        for name in ("count", "sums", "forgetting"):
            grown = state[name] - before[name]
            dist.all_reduce(grown)
            state[name] = before[name] + grown
        dynamics.load_state_dict(state)
        self._merged = state


def _copy(dynamics: TrainingDynamics) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in dynamics.state_dict().items()
    }
