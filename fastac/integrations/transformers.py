"""transformers: a callback and a loss for `Trainer`.

    cleansing = AutoCleansingCallback(N, K, lr=1.0, labels=labels, issues="issues.csv")
    trainer = transformers.Trainer(
        model, args, train_dataset=cleansing.with_ids(dataset),
        callbacks=[cleansing], compute_loss_func=cleansing.compute_loss,
    )

`with_ids` puts the sample's id into its label (see fastac.integrations.ids): Trainer hands a loss nothing but outputs
and labels, and removes columns that the model does not take.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastac.extras import require
from fastac.integrations.cleansing import Cleansing
from fastac.integrations.ids import WithIds, decode
from fastac.integrations.issues_file import IssuesFile
from fastac.issues.checks import ClassNames
from fastac.loss import AutoCleansingLoss

__all__ = ["AutoCleansingCallback"]

_Callback: Any = require("transformers", "transformers").TrainerCallback
_FILE = "autocleansing.pt"  # in a checkpoint's folder


class AutoCleansingCallback(_Callback):
    """AutoCleansing of one `Trainer.train`.

    num_samples, num_classes, form, dynamics, table, loss: as for Cleansing, which is made when training begins, and is
    then here as `cleansing`. lr, momentum: α's own learning rate and momentum beside an optimizer that is not
    torch.optim.SGD, as Trainer's AdamW is not: α then has an SGD of its own and the network's schedule (see
    fastac.integrations.follow). labels: (N,) the given labels, and issues: a .csv or .parquet path, whose folder is
    made; the ranking is written there when training ends, as `cleansing.issues(labels)` has it. class_names: K names
    for it, in order or by class, as in the model's id2label. ValueError where they don't fit each other.

    The loss is divided as Trainer divides its own: summed, over the labels of the accumulated batch on all processes.
    Each of Trainer's checkpoints gets α and dynamics too. To resume, in a new process:

        trainer.train(resume_from_checkpoint=cleansing.resume(folder))

    Not for several GPUs in one process (start it with torchrun) and not for `label_smoothing_factor` (give
    loss={"label_smoothing": …}).
    """

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
        lr: float | None = None,
        momentum: float = 0.9,
        table: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
    ):
        if "reduction" in (loss or {}):
            raise ValueError("loss: reduction is Trainer's affair here")
        options = {**(loss or {}), "reduction": "sum"}
        self._plain = AutoCleansingLoss(None, **options).eval()
        self._issues = IssuesFile.checked(
            issues,
            labels,
            class_names,
            num_samples=num_samples,
            num_classes=num_classes,
            ignore_index=self._plain.ignore_index,
        )
        self._make = functools.partial(
            Cleansing, num_samples, num_classes, form=form, dynamics=dynamics, table=table, loss=options
        )
        self.num_classes = num_classes
        self._follow = {"lr": lr, "momentum": momentum}
        self._resumed: Path | None = None
        self._first_labels = True
        self.cleansing: Cleansing | None = None

    def with_ids(self, dataset: Any) -> WithIds:
        """The training set, its labels carrying the samples' positions as ids."""
        return WithIds(dataset, self.num_classes)

    def compute_loss(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Trainer's compute_loss_func: cross entropy with α when training, of the network alone when evaluating."""
        if labels is None:
            raise ValueError("labels are missing: the batch must have them as 'labels'")
        logits = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if logits is None:
            logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        items = (labels >= 0).sum() if num_items_in_batch is None else num_items_in_batch
        if not torch.is_grad_enabled():
            return self._plain.to(logits.device)(logits, decode(labels, self.num_classes)[0]) / items
        if self.cleansing is None:
            raise RuntimeError("training has not begun: give this callback to Trainer's callbacks, too")
        if self._first_labels:  # once: it waits for the device
            self._first_labels = False
            if bool(((labels >= 0) & (labels < self.num_classes)).any()):
                raise ValueError(
                    "the labels carry no sample ids: train_dataset must be cleansing.with_ids(dataset)"
                )
        return self.cleansing.loss(logits, labels) / items

    def resume(self, folder: str | os.PathLike[str]) -> str:
        """Take α and dynamics from the checkpoint in `folder` when training begins; returns the folder, for
        Trainer.train's resume_from_checkpoint. FileNotFoundError where it has none."""
        path = Path(folder) / _FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: this checkpoint was not written with this callback")
        self._resumed = path
        return str(folder)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make table and loss, follow the optimizer; where Trainer resumes, go on from the same step."""
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs in one process are not supported: start it with torchrun")
        if args.label_smoothing_factor:
            raise ValueError('label_smoothing_factor has no effect here: give loss={"label_smoothing": …}')
        resumed, self._resumed = self._resumed, None
        self.cleansing = self._make(device=args.device)
        self.cleansing.criterion.to(args.device)
        optimizer = kwargs["optimizer"]
        self.cleansing.follow(optimizer, scaler=getattr(optimizer, "scaler", None), **self._follow)
        if resumed is not None:
            self._load(resumed, state.global_step)
        elif state.global_step:
            raise RuntimeError(
                f"Trainer resumes at step {state.global_step}, α would begin anew: call "
                "trainer.train(resume_from_checkpoint=cleansing.resume(folder))"
            )

    def _load(self, path: Path, step: int) -> None:
        assert self.cleansing is not None
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["step"] != step:
            raise ValueError(f"{path} is of step {saved['step']}, but Trainer resumes at step {step}")
        self.cleansing.load_state_dict(saved["state"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add α and dynamics to the checkpoint that Trainer has just written."""
        assert self.cleansing is not None
        content = {"step": state.global_step, "state": self.cleansing.state_dict()}
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        temporary = folder / f".{_FILE}.tmp"
        torch.save(content, temporary)
        os.replace(temporary, folder / _FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bring the processes' dynamics together and write the issues."""
        assert self.cleansing is not None
        self.cleansing.merge()
        if state.is_world_process_zero:
            self._issues.write(self.cleansing)
