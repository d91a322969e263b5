"""Lightning: a callback that brings the loss, follows the optimizer and is in the checkpoints.

    class Classifier(lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            inputs, target, index = batch
            return self.criterion(self(inputs), target, index)

    cleansing = AutoCleansingCallback(N, K, labels=labels, issues="issues.csv")
    lightning.Trainer(callbacks=[cleansing]).fit(Classifier(), loader)

For the package `lightning` as for `pytorch_lightning`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

from fastac.extras import require
from fastac.integrations.cleansing import Cleansing
from fastac.integrations.issues_file import IssuesFile
from fastac.issues.checks import ClassNames
from fastac.loss import AutoCleansingLoss

__all__ = ["AutoCleansingCallback"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_classes: dict[tuple[type, tuple[type, ...]], type] = {}


class AutoCleansingCallback:
    """AutoCleansing of one `Trainer.fit`.

    num_samples, num_classes, form, dynamics, table, loss: as for Cleansing, which is made when the trainer knows its
    device and processes, and is then here as `cleansing`. optimizer, group: which of the module's optimizers α follows,
    and which of its parameter groups. lr, momentum: α's own, where that is not torch.optim.SGD (see
    fastac.integrations.follow). criterion: the attribute by which the module finds the loss.
    labels: (N,) the given labels, and issues: a .csv or .parquet path, whose folder is made; the ranking is written
    there when training ends, as `cleansing.issues(labels)` has it. class_names: K names for it, in order or by class.
    ValueError where they don't fit each other.

    Lightning's accumulation, clipping, precision (its GradScaler is undone), and resuming by `ckpt_path` need nothing
    else. All processes must take part in `trainer.save_checkpoint`.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> AutoCleansingCallback:
        return object.__new__(_callback_class(cls, _loaded()))

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        form: str | None = "ac1",
        dynamics: bool = True,
        labels: Any = None,
        issues: str | os.PathLike[str] | None = None,
        class_names: ClassNames | None = None,
        optimizer: int = 0,
        group: int = 0,
        lr: float | None = None,
        momentum: float = 0.9,
        criterion: str = "criterion",
        table: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
    ):
        self._issues = IssuesFile.checked(
            issues,
            labels,
            class_names,
            num_samples=num_samples,
            num_classes=num_classes,
            ignore_index=(loss or {}).get("ignore_index", -100),
        )
        self._make = functools.partial(
            Cleansing, num_samples, num_classes, form=form, dynamics=dynamics, table=table, loss=loss
        )
        self._optimizer, self._name = optimizer, criterion
        self._follow = {"group": group, "lr": lr, "momentum": momentum}
        self.cleansing: Cleansing | None = None

    @property
    def state_key(self) -> str:
        """What this is called in checkpoints."""
        return "fastac.AutoCleansing"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make table and loss on the trainer's device, and give the module its loss."""
        present = getattr(pl_module, self._name, None)
        if self.cleansing is None:
            if present is not None:
                raise ValueError(
                    f"criterion was {self._name!r}, which the module has already, a {type(present).__name__}; leave it "
                    "to the callback, or give another name"
                )
            self.cleansing = self._make(device=trainer.strategy.root_device)
        loss: AutoCleansingLoss = self.cleansing.criterion
        # Not in the module's checkpoints: a module without the callback could not load them.
        loss.register_buffer("weight", loss.weight, persistent=False)
        if present is not loss:
            setattr(pl_module, self._name, loss)  # as a submodule, it is in eval mode when the module is

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Follow the module's optimizer."""
        assert self.cleansing is not None
        if not 0 <= self._optimizer < len(trainer.optimizers):
            raise ValueError(f"optimizer must be in [0, {len(trainer.optimizers)}), got {self._optimizer}")
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.cleansing.follow(trainer.optimizers[self._optimizer], scaler=scaler, **self._follow)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Bring the processes' dynamics together and write the issues."""
        assert self.cleansing is not None
        self.cleansing.merge()
        if trainer.is_global_zero:
            self._issues.write(self.cleansing)

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return {} if self.cleansing is None else self.cleansing.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoints."""
        assert self.cleansing is not None
        self.cleansing.load_state_dict(state_dict)


def _loaded() -> tuple[type, ...]:
    """Callback's class in each of the two packages that the program has imported; else in the one that is there."""
    loaded = [module for name in _PACKAGES if (module := sys.modules.get(name)) is not None]
    if not loaded:
        try:
            loaded = [require(_PACKAGES[0], "lightning")]
        except ImportError as error:
            try:
                loaded = [require(_PACKAGES[1], "lightning")]
            except ImportError:
                raise error from None
    return tuple(package.Callback for package in loaded)


def _callback_class(cls: type, bases: tuple[type, ...]) -> type:
    if (cls, bases) not in _classes:
        _classes[cls, bases] = type(cls.__name__, (cls, *bases), {})
    return _classes[cls, bases]
