"""The ways that bench/loss.py compares: each gives loss, gradient and moved rows, and is called with a batch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastac
from fastac import backends
from fastac.contract import Objective, Rows, Sgd

LR, WEIGHT_DECAY = 0.1, 5e-5
WARM_ELEMENTS = 1 << 18  # B·K up to which a size is timed in the caches as well

Batch = tuple[Tensor, Tensor, Tensor]  # logits (B, K), a leaf; target (B,); index (B,), no id twice
Run = Callable[[Batch], object]


class Setup:
    """One size and form: a table, and the batches that are drawn for it."""

    def __init__(
        self,
        batch: int,
        classes: int,
        form: str,
        momentum: float,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        table_dtype: torch.dtype = torch.float32,
    ):
        self.batch, self.classes, self.form, self.momentum = batch, classes, form, momentum
        self.device, self.dtype, self.table_dtype = torch.device(device), dtype, table_dtype
        self.num_samples = 2 * batch if batch * classes > WARM_ELEMENTS else 50_000
        self.random = torch.Generator(self.device).manual_seed(0)
        self.logits = torch.randn(batch, classes).to(self.device, dtype)

    def draw(self) -> Batch:
        options = {"generator": self.random, "device": self.device}
        target = torch.randint(self.classes, (self.batch,), **options)
        index = torch.randperm(self.num_samples, **options)[: self.batch].clone()
        return self.logits.detach().requires_grad_(), target, index

    def table(self) -> fastac.AlphaTable:
        table = fastac.AlphaTable(
            self.num_samples,
            self.classes,
            form=self.form,
            momentum=self.momentum,
            weight_decay=WEIGHT_DECAY,
            dtype=self.table_dtype,
            device=self.device,
        )
        table.lr = LR
        table.step()
        return table

    def dense(self) -> Tensor:
        """α as a plain tensor."""
        shape = (self.num_samples, self.classes)[: 2 if self.form == "ac1" else 1]
        return torch.zeros(shape, device=self.device)

    @property
    def bytes(self) -> int:
        """Read: logits, α, momentum. Written: gradient, α, momentum."""
        columns = self.classes if self.form == "ac1" else 1
        state = (4 if self.momentum else 2) * columns * self.table_dtype.itemsize
        return self.batch * (2 * self.classes * self.dtype.itemsize + state)


class Way(NamedTuple):
    """One way; make gives None where it has no such form, history or dtype. missing: why it can't be had here."""

    name: str
    make: Callable[[Setup], Run | None]
    missing: str = ""


def cross_entropy(setup: Setup) -> Run:
    return lambda batch: F.cross_entropy(batch[0], batch[1]).backward()


def compiled_cross_entropy(setup: Setup) -> Run:
    step = torch.compile(F.cross_entropy, dynamic=False)
    return lambda batch: step(batch[0], batch[1]).backward()


def without_alpha(setup: Setup) -> Run:
    criterion = fastac.AutoCleansingLoss(None)

    def run(batch: Batch) -> None:
        os.environ["FASTAC_BACKEND"] = ""  # the best there is; the way before may have named one
        criterion(*batch).backward()

    return run


# --- plain PyTorch ---


def training_logits(alpha: Tensor, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
    rows = alpha[index]
    if rows.ndim == 2:
        return logits + rows
    return logits.float().scatter_add(1, target[:, None], rows[:, None])


def move_rows(alpha: Tensor, grad: Tensor, target: Tensor, index: Tensor) -> None:
    """α's batch rows alone, without momentum or catch-up, so that this does less than the table."""
    rows = alpha[index]
    row_grad = grad if rows.ndim == 2 else grad.gather(1, target[:, None])[:, 0]
    alpha.index_copy_(0, index, rows - LR * (row_grad + WEIGHT_DECAY * rows))


def unfused_step(alpha: Tensor, logits: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """In plain PyTorch, the gradient by hand."""
    log_p = F.log_softmax(training_logits(alpha, logits, target, index), dim=1)
    loss = F.nll_loss(log_p, target)
    grad = (log_p.exp() - F.one_hot(target, logits.shape[1])) / len(target)
    move_rows(alpha, grad, target, index)
    return loss, grad.to(logits.dtype)


def unfused(compiled: bool) -> Callable[[Setup], Run | None]:
    def make(setup: Setup) -> Run | None:
        if setup.momentum or setup.table_dtype != torch.float32:
            return None
        alpha = setup.dense()
        step = torch.compile(unfused_step, dynamic=False) if compiled else unfused_step

        def run(batch: Batch) -> object:
            with torch.no_grad():
                return step(alpha, batch[0].detach(), *batch[1:])

        return run

    return make


# --- other packages' cross entropy, and the rows by themselves ---


def separate(load: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Callable[[Setup], Run | None]:
    """The sum of logits and α, another package's cross entropy of it, then the rows, compiled."""

    def make(setup: Setup) -> Run | None:
        if setup.momentum or setup.table_dtype != torch.float32 or setup.device.type != "cuda":
            return None
        loss_of, alpha = load(), setup.dense()
        add = torch.compile(training_logits, dynamic=False)
        move = torch.compile(move_rows, dynamic=False)

        def run(batch: Batch) -> None:
            logits, target, index = batch
            with torch.no_grad():
                z = add(alpha, logits, target, index)
            z.requires_grad_()
            loss_of(z, target).backward()
            with torch.no_grad():
                move(alpha, z.grad, target, index)
                logits.grad = z.grad.to(logits.dtype)

        return run

    return make


def liger() -> Callable[[Tensor, Tensor], Tensor]:
    return importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy


def quack() -> Callable[[Tensor, Tensor], Tensor]:
    return importlib.import_module("quack.cross_entropy").cross_entropy


def quack_alone(setup: Setup) -> Run | None:
    if setup.device.type != "cuda":
        return None
    loss_of = quack()
    return lambda batch: loss_of(batch[0], batch[1]).backward()


def apex() -> Callable[[Tensor, Tensor], Tensor]:
    loss = importlib.import_module("apex.contrib.xentropy").SoftmaxCrossEntropyLoss
    return lambda z, target: loss.apply(z, target, 0.0, -100, False).mean()


def absent(load: Callable[[], object], install: str) -> str:
    try:
        load()
    except Exception as error:  # a package that is there and broken is as absent
        return f"{type(error).__name__}: {error} ({install})"
    return ""


# --- ours ---


def backend(name: str, device: torch.device) -> Any:
    os.environ["FASTAC_BACKEND"] = name
    return backends.select(device)


def one_pass(name: str) -> Callable[[Setup], Run]:
    """The backend's forward_update by itself."""

    def make(setup: Setup) -> Run:
        table = setup.table()
        module = backend(name, setup.device)
        rows = Rows(table.alpha, table.momentum_buffer, table.last, table.clock)
        objective = Objective(None, setup.form, -100, "mean", 0.0)
        sgd = Sgd(setup.momentum, WEIGHT_DECAY, False, False, 0)
        flags = table.checks.flags
        return lambda batch: module.forward_update(
            batch[0].detach(), *batch[1:], rows, objective, flags, setup.num_samples, None, sgd, 1.0
        )

    return make


def training_step(name: str, update: str) -> Callable[[Setup], Run]:
    """What a training loop calls: the criterion, backward, the table's step."""

    def make(setup: Setup) -> Run:
        table = setup.table()
        criterion = fastac.AutoCleansingLoss(table, update=update)

        def run(batch: Batch) -> None:
            os.environ["FASTAC_BACKEND"] = name
            criterion(*batch).backward()
            table.step()

        return run

    return make


def ways(device: torch.device) -> list[Way]:
    """All that can be compared on a device, and those that are missing there, with the reason."""
    listed = [
        Way("F.cross_entropy, no α", cross_entropy),
        Way("eager", unfused(compiled=False)),
        Way("torch.compile", unfused(compiled=True)),
    ]
    if device.type == "cuda":
        listed += [
            Way("compiled cross_entropy, no α", compiled_cross_entropy),
            Way("quack, no α", quack_alone, absent(quack, "pip install quack-kernels")),
            Way("ours, no α", without_alpha),
            Way("Liger + rows", separate(liger), absent(liger, "pip install liger-kernel")),
            Way("quack + rows", separate(quack), absent(quack, "pip install quack-kernels")),
            Way("apex + rows", separate(apex), absent(apex, "build NVIDIA's apex with --xentropy")),
        ]
    for name, entry in backends.BACKENDS.items():
        if entry.devices and device.type not in entry.devices:
            continue
        missing = absent(lambda name=name: backend(name, device), "see README, Installation")
        listed += [
            Way(f"{name}, one pass", one_pass(name), missing),
            Way(f"{name}, step", training_step(name, "step"), missing),
            Way(f"{name}, forward", training_step(name, "forward"), missing),
        ]
    return listed
