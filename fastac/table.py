"""The α table: one row of offsets a sample, and the linear optimizer that moves them.

It stores rows and knows no loss. What a row has gone through since it was last touched comes from the step clock;
what backward passes ask of it waits in `stage` until the optimizer steps.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fastac import backends
from fastac.clock import StepClock
from fastac.collectives import named
from fastac.contract import Rows, Sgd
from fastac.parts import as_states, check_cover, held_rows, take_parts
from fastac.reference import FORMS
from fastac.validation import RangeCheck, check_index, check_size

__all__ = ["AlphaTable"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_FORMAT = 1


class Staged(NamedTuple):
    """One backward pass: row gradients (n, K) or (n,), to be multiplied by scale, () or (n,)."""

    ids: Tensor
    grad: Tensor
    scale: Tensor
    loss_scale: Tensor | None


class LossScaler(Protocol):
    """What multiplies a loss before its backward pass: torch.amp.GradScaler, or another with these methods."""

    def is_enabled(self) -> bool: ...

    def get_scale(self) -> float: ...


class AlphaTable:
    """α of N samples, equal to a dense parameter under torch.optim.SGD, at O(B·K) a step.

    num_samples: N; ids are in [0, N). num_classes: K. form: "ac1", α (N, K) with α[:, 0] = 0, or "ac2", α (N,).
    weight_decay: α's own, 5e-5 in the paper. lr_scale: α's learning rate as a multiple of the optimizer's.
    history: "exact" keeps a momentum buffer beside α (where there is momentum); "folded" keeps α alone and applies
    a gradient's whole momentum tail at once, an approximation for tables too large for two copies.
    dtype: float32, bfloat16 (rounded stochastically, from seed) or float64.
    process_group: data-parallel ranks that hold copies of this table. Their row gradients are gathered at every
    step and averaged as DDP averages the network's, so the copies stay equal. None: torch.distributed's default
    group, where it is initialised.
    window: steps for which a row may stay untouched before a sweep over the table brings it up to date.

    The optimizer is followed (`follow`), or driven by hand: set `lr` (and `momentum`, `nesterov`), then call
    `step()` after each backward pass.
    """

    sharded = False  # whether ranks own parts of one table; otherwise they hold copies
    _handles = itertools.count(1)
    _by_handle: weakref.WeakValueDictionary[int, AlphaTable] = weakref.WeakValueDictionary()

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        form: str = "ac1",
        weight_decay: float = 5e-5,
        lr_scale: float = 1.0,
        history: str = "exact",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
        window: int = 1 << 18,
    ):
        num_samples = check_size("num_samples", num_samples, 1)
        num_classes = check_size("num_classes", num_classes, 2)
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {form!r}")
        if history not in ("exact", "folded"):
            raise ValueError(f"history must be 'exact' or 'folded', got {history!r}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {_DTYPES}, got {dtype}")
        for name, value in (("weight_decay", weight_decay), ("lr_scale", lr_scale)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number that is not negative, got {value}")
        self.num_samples, self.num_classes = num_samples, num_classes
        self.form, self.history, self.dtype, self.seed = form, history, dtype, seed
        self.weight_decay, self.lr_scale = weight_decay, lr_scale
        self.device = torch.empty(0, device=device).device
        self.process_group = self._find_group(process_group)
        self.world_size = 1 if self.process_group is None else dist.get_world_size(self.process_group)
        self.held = self._find_held()
        self.storage_device = self._find_storage()
        rows = len(self.held)
        self.alpha = self._zeros((rows, num_classes) if form == "ac1" else (rows,), dtype)
        self.momentum_buffer: Tensor | None = None
        self.last = self._zeros((rows,), torch.int32)
        self.clock = StepClock(self.storage_device, window)
        self.checks = RangeCheck(self.device)
        # A leaf that requires grad, so that α learns even where the logits don't; its own gradient is dropped.
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)
        self.handle = next(self._handles)
        self._by_handle[self.handle] = self
        self._lr: float | Tensor | None = None
        self._momentum, self._nesterov = 0.0, False
        self._optimizer: torch.optim.Optimizer | None = None
        self._group = 0
        self._scaler: LossScaler | None = None
        self._hook: RemovableHandle | None = None
        self._staged: list[Staged] = []
        self._forward_lr: float | Tensor | None = None
        self._since_sweep = 0
        # What is staged is known when the step runs, not when it is traced. (Not a decorator: it imports the compiler,
        # which the first optimizer step does in any case, but `import fastac` should not.)
        self._apply_uncompiled = torch.compiler.disable(type(self)._apply)
        self._set_momentum(momentum, nesterov)

    def _find_group(self, given: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
        if given is None and dist.is_available() and dist.is_initialized():
            return dist.group.WORLD
        return given

    def _find_held(self) -> range:
        """The ids whose rows this process holds."""
        return range(self.num_samples)

    def _find_storage(self) -> torch.device:
        """Where the rows and the clock are."""
        return self.device

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.storage_device)

    @classmethod
    def from_handle(cls, handle: int) -> AlphaTable:
        """The living table with this number; ops carry the number, because they can't carry the table."""
        try:
            return cls._by_handle[handle]
        except KeyError:
            raise RuntimeError("the α table that this loss was computed with no longer exists") from None

    def __deepcopy__(self, memo: dict[int, Any]) -> AlphaTable:
        """A table of its own with the same α, that follows no optimizer."""
        copy = type(self)(self.num_samples, self.num_classes, **self._options())
        copy.load_state_dict(self.state_dict())
        copy._lr = self._lr
        return copy

    def _options(self) -> dict[str, Any]:
        return {
            "form": self.form,
            "weight_decay": self.weight_decay,
            "lr_scale": self.lr_scale,
            "history": self.history,
            "dtype": self.dtype,
            "device": self.device,
            "momentum": self._momentum,
            "nesterov": self._nesterov,
            "seed": self.seed,
            "process_group": self.process_group,
            "window": self.clock.window,
        }

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__} is not pickled: save its state_dict()")

    def __repr__(self) -> str:
        return (
            f"AlphaTable({self.num_samples}, {self.num_classes}, form={self.form!r}, history={self.history!r}, "
            f"dtype={self.dtype}, device={str(self.device)!r})"
        )

    # --- the optimizer's numbers ---------------------------------------------------------------------------

    @property
    def lr(self) -> float | Tensor | None:
        """The learning rate of the next step, before lr_scale; None where neither set nor followed."""
        return self._lr if self._optimizer is None else self._optimizer.param_groups[self._group]["lr"]

    @lr.setter
    def lr(self, value: float | Tensor) -> None:
        self._by_hand("lr")
        if not isinstance(value, Tensor) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"lr must be a finite number that is not negative, got {value}")
        self._lr = value
        self._set_clock_lr(value)  # at once, for a CUDA graph that is replayed next

    @property
    def momentum(self) -> float:
        """SGD's momentum at the next step."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._by_hand("momentum")
        self._set_momentum(value, self._nesterov)

    @property
    def nesterov(self) -> bool:
        """Whether the momentum is Nesterov's."""
        return self._nesterov

    @nesterov.setter
    def nesterov(self, value: bool) -> None:
        self._by_hand("nesterov")
        self._set_momentum(self._momentum, value)

    def _by_hand(self, name: str) -> None:
        if self._optimizer is not None:
            raise RuntimeError(f"{name} comes from the optimizer that this table follows; set it there")

    def _set_momentum(self, momentum: float, nesterov: bool) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if momentum > 0 and self.history == "exact" and self.momentum_buffer is None:
            self.momentum_buffer = self._zeros(tuple(self.alpha.shape), self.dtype)
        self._momentum, self._nesterov = float(momentum), bool(nesterov)

    def follow(
        self,
        optimizer: torch.optim.Optimizer,
        group: int = 0,
        scaler: LossScaler | None = None,
        *,
        by_hand: bool = False,
    ) -> None:
        """Move whenever `optimizer` steps, with the learning rate, momentum and nesterov of its parameter group.

        optimizer: a torch.optim.SGD, or apex's FusedSGD, without dampening; whatever changes its learning rate or
        momentum is followed, as they are at each step. scaler: the GradScaler of the loop, if it has one; its scale is
        divided out, and a step that it skips leaves α alone. by_hand: follow the optimizer's numbers only; the caller
        calls `step()` once for each step of the network, before the loss scale changes, or `discard()` where the step
        is skipped. (DeepSpeed calls an optimizer's step several times a step: see fastac.engine.deepspeed.follow.)
        A table follows one optimizer: a second call replaces the first.
        optimizer.zero_grad() is not followed: after backward passes that no step is to use, call `discard()`.
        """
        _check_optimizer(optimizer, group)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._optimizer, self._group, self._scaler = optimizer, group, scaler
        self._read_optimizer()
        if by_hand:
            return
        table = weakref.ref(self)  # the optimizer must not keep the table alive

        def after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if (followed := table()) is not None:
                followed._optimizer_stepped()

        self._hook = optimizer.register_step_post_hook(torch.compiler.disable(after_step))

    def _read_optimizer(self) -> None:
        assert self._optimizer is not None
        _check_optimizer(self._optimizer, self._group)
        options = self._optimizer.param_groups[self._group]
        self._set_momentum(options["momentum"], options["nesterov"])

    def _optimizer_stepped(self) -> None:
        optimizer = self._optimizer
        # A fused optimizer is stepped by GradScaler in any case and told on the device whether to skip.
        skip = getattr(optimizer, "found_inf", None)
        if self._scaler is None and getattr(optimizer, "grad_scale", None) is not None:
            self.discard()
            raise RuntimeError(
                "the loss is scaled by a GradScaler: call table.follow(optimizer, scaler=scaler)"
            )
        self._read_optimizer()
        self._apply(None if skip is None else (skip != 0).reshape(()))

    # --- gradients -----------------------------------------------------------------------------------------

    def stage(self, index: Tensor, grad: Tensor, scale: Tensor) -> None:
        """Keep the row gradients of one backward pass until the next step.

        index: (n,) int64, negative where a row must not be written. grad: (n, K) or AC2 (n,). scale: () or (n,).
        """
        if self.lr is None:
            raise RuntimeError(
                "the α table has no learning rate: call table.follow(optimizer), or set table.lr"
            )
        loss_scale = self._loss_scale()
        loss_scale = None if loss_scale is None else loss_scale.detach().clone()
        if grad.requires_grad or scale.requires_grad:
            grad, scale = grad.detach(), scale.detach()
        self._keep(Staged(index, grad, scale, loss_scale))

    def _loss_scale(self) -> Tensor | None:
        """What losses are multiplied by now, (); None for 1."""
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        if isinstance(self._scaler, torch.amp.GradScaler):  # without a wait for the device
            return self._scaler._get_scale_async()
        return torch.tensor(self._scaler.get_scale(), device=self.device)

    def _keep(self, entry: Staged) -> None:
        if len(entry.ids):
            self._staged.append(entry)

    def discard(self) -> None:
        """Forget the row gradients since the last step, as zero_grad() does without a step."""
        self._staged.clear()

    def step(self) -> None:
        """One optimizer step, by hand: apply what backward passes staged and advance the clock."""
        if self._hook is not None:
            self._by_hand("the step")
        elif self._optimizer is not None:
            self._read_optimizer()
        self._learning_rate()
        if torch.compiler.is_compiling():
            self._apply_uncompiled(self, None)
        else:
            self._apply(None)

    def _apply(self, skip: Tensor | None) -> None:
        lr = self.lr
        assert lr is not None
        if (
            self.process_group is None
            and dist.is_available()
            and dist.is_initialized()
            and dist.get_world_size() > 1
        ):
            raise RuntimeError(
                "this α table was made before torch.distributed was initialised, so the ranks' copies would differ: "
                "make it afterwards, or give it a process_group"
            )
        staged, self._staged = self._staged, []
        if self._forward_lr is not None:
            written, self._forward_lr = self._forward_lr, None
            if not isinstance(lr, Tensor) and written != lr:
                raise RuntimeError(
                    f"update='forward' wrote α with lr = {written}, but the optimizer stepped with {lr}: change the "
                    "learning rate between steps, not between a forward pass and its step"
                )
        self._set_clock_lr(lr)
        merged = self._merge(staged)
        sgd, backend = self._sgd(), backends.select(self.storage_device)
        if skip is not None:
            skip = skip.to(self.storage_device)
        if merged is not None:
            backend.update_rows(self._rows(), *merged, sgd, skip)
        backend.advance(self.clock, sgd, skip)
        self._since_sweep += 1
        if self._since_sweep >= self.clock.sweep_every:
            self.sweep()
        self.checks.poll()

    def _set_clock_lr(self, lr: float | Tensor) -> None:
        self.clock.set_lr(lr * self.lr_scale)

    def _merge(self, staged: list[Staged]) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """All rows staged since the last step, on all ranks: ids (n,), gradients (n, K) or (n,), and what these are
        to be multiplied by, () or (n,), or None for 1."""
        scales = [self._scale(entry) for entry in staged]
        if self.world_size == 1 and len(staged) == 1:  # as it is: the backend reads it once
            return (staged[0].ids, staged[0].grad, scales[0]) if len(staged[0].ids) else None
        grads = [
            entry.grad * (scale[:, None] if scale.ndim and entry.grad.ndim == 2 else scale)
            for entry, scale in zip(staged, scales, strict=True)
        ]
        if staged:
            index, grad = torch.cat([entry.ids for entry in staged]), torch.cat(grads)
        else:
            dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
            index = torch.empty(0, dtype=torch.int64, device=self.device)
            grad = torch.empty((0, *self.alpha.shape[1:]), dtype=dtype, device=self.device)
        if self.world_size > 1:
            index, grad = self._gather(index, grad)
        return (index, grad, None) if len(index) else None

    def _scale(self, entry: Staged) -> Tensor:
        """What a staged gradient is to be multiplied by: its incoming gradient, over the ranks and the loss's scale."""
        scale = entry.scale / self.world_size if self.world_size > 1 else entry.scale
        unscale = self._unscale(entry.loss_scale)
        return scale if unscale is None else scale * unscale

    def _unscale(self, loss_scale: Tensor | None) -> Tensor | None:
        """What a gradient that was scaled by loss_scale is to be multiplied by; None for 1."""
        if loss_scale is None or (current := self._loss_scale()) is None:
            return None
        # A step that was skipped lowered the scale: what was staged for it goes with it.
        return (loss_scale == current) / loss_scale

    def _gather(self, index: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Every rank's rows, in the order of the ranks, so that all copies add them alike."""
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        with named("all_gather of α's row counts"):
            dist.all_gather_into_tensor(
                sizes, torch.tensor([len(index)], device=self.device), group=self.process_group
            )
        counts = sizes.tolist()
        longest = max(counts)
        if longest == 0:
            return index, grad
        ids = index.new_full((longest,), -1)
        ids[: len(index)] = index
        rows = grad.new_zeros((longest, *grad.shape[1:]))
        rows[: len(grad)] = grad
        return self._from_all_ranks(ids), self._from_all_ranks(rows)

    def _from_all_ranks(self, part: Tensor) -> Tensor:
        whole = part.new_empty((self.world_size * len(part), *part.shape[1:]))
        with named("all_gather of α's row gradients"):
            dist.all_gather(list(whole.chunk(self.world_size)), part, group=self.process_group)
        return whole

    def start_forward_update(self) -> Sgd:
        """Before a forward pass that writes rows: the optimizer of the step to come, with its learning rate."""
        if self._forward_lr is not None:
            raise RuntimeError(
                "update='forward' writes α in the forward pass, so each needs an optimizer step of its own: a second "
                "one came before the step (accumulation and activation recomputation need update='step')"
            )
        if self.world_size > 1 and not self.sharded:
            raise RuntimeError(
                "update='forward' can't keep copies of a table equal across ranks: use update='step'"
            )
        if self._scaler is not None and self._scaler.is_enabled():
            raise RuntimeError(
                "update='forward' can't undo a step that a GradScaler skips: use update='step'"
            )
        if self._optimizer is not None:
            self._read_optimizer()
        self._set_clock_lr(self._learning_rate())
        return self._sgd()

    def finish_forward_update(self) -> None:
        """After it: the rows are written, with this learning rate."""
        self._forward_lr = self._learning_rate()

    def _learning_rate(self) -> float | Tensor:
        if (lr := self.lr) is None:
            raise RuntimeError(
                "the α table has no learning rate: call table.follow(optimizer), or set table.lr"
            )
        return lr

    def _sgd(self) -> Sgd:
        return Sgd(self._momentum, self.weight_decay, self._nesterov, self.history == "folded", self.seed)

    # --- reading -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rows(self, index: Tensor) -> Tensor:
        """α of the samples index (n,), as a dense optimizer would have them now: (n, K), AC2 (n,).

        float32 (float64 for a float64 table). IndexError for an id outside [0, N).
        """
        check_index(index)
        if index.device != self.device:
            raise ValueError(f"index is on {index.device}, the table is on {self.device}")
        return self._read_ids(index.to(torch.int64))

    @torch.no_grad()
    def dense(self) -> Tensor:
        """All of α, as a dense optimizer would have it now: (N, K), AC2 (N,); a new tensor."""
        return self._read_held()

    def _read_ids(self, index: Tensor) -> Tensor:
        self._check_ids(index)
        return self._read(index)

    def _check_ids(self, index: Tensor) -> None:
        if index.numel() and not bool(((index >= 0) & (index < self.num_samples)).all()):
            raise IndexError(f"index must be in [0, {self.num_samples})")

    def _read_held(self) -> Tensor:
        dense = torch.empty(self.alpha.shape, dtype=self._compute_dtype(), device=self.storage_device)
        for part, rows in self.chunks():
            dense[part] = rows
        return dense

    @torch.no_grad()
    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of `held` by parts, for those who need no copy of the table: (places counted from the first held
        row, their rows as `dense` has them), where the table is stored. Nothing is sent."""
        for places in self._chunks():
            start = int(places[0])
            yield slice(start, start + len(places)), self._read(places)

    @torch.no_grad()
    def chunks_of(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """As `chunks`, of those samples of index (n,) int64 that are held here: (their positions in index, their rows).
        IndexError for an id outside [0, N)."""
        index = index.to(self.storage_device)
        self._check_ids(index)
        held = (index >= self.held.start) & (index < self.held.stop)
        for positions in held.nonzero()[:, 0].split(self._chunk_rows()):
            if len(positions):
                yield positions, self._read(index[positions] - self.held.start)

    def _compute_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == torch.bfloat16 else self.dtype

    def _read(self, place: Tensor) -> Tensor:
        return backends.select(self.storage_device).read_rows(self._rows(), place)

    def _rows(self) -> Rows:
        return Rows(self.alpha, self.momentum_buffer, self.last, self.clock)

    @torch.no_grad()
    def sweep(self) -> None:
        """Bring the rows that were not touched for a long time up to date, chunk by chunk. Called in time by `step`;
        to be called by hand only where steps are replayed without Python (CUDA graphs)."""
        backend = backends.select(self.storage_device)
        for ids in self._chunks():
            backend.sweep(self._rows(), ids, self._sgd().seed)
        self._since_sweep = 0

    def _chunks(self) -> tuple[Tensor, ...]:
        if not self.held:
            return ()
        return torch.arange(len(self.held), device=self.storage_device).split(self._chunk_rows())

    def _chunk_rows(self) -> int:
        # On a CPU small enough for the caches, on an accelerator large enough to fill it.
        elements = 1 << (18 if self.storage_device.type == "cpu" else 24)
        return max(1, elements // (self.num_classes if self.form == "ac1" else 1))

    # --- checkpoints ---------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "form": self.form,
            "history": self.history,
            "dtype": str(self.dtype),
            "weight_decay": self.weight_decay,
            "lr_scale": self.lr_scale,
            "seed": self.seed,
            "window": self.clock.window,
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain scalars that continue to the same bits. Row gradients staged since the last step, like
        a network's .grad, are not part of it. Tensors are the table's own, not copies. "rows" are those held here,
        (first, the first after them)."""
        return {
            **self._identity(),
            "alpha": self.alpha,
            "momentum_buffer": self.momentum_buffer,
            "last": self.last,
            "clock": self.clock.state_dict(),
            "since_sweep": self._since_sweep,
            "rows": (self.held.start, self.held.stop),
        }

    def load_state_dict(self, state: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Take the rows held here from a state, or from several that were saved together on any number of ranks.

        state: of an equal table, sharded or not; a list of such states, in any order, which together have all rows
        that this table holds. ValueError, and nothing changed, where they don't or belong to another table.
        """
        states = as_states(state)
        parts = [self._check_part(part) for part in states]
        first = states[0]
        for other in states[1:]:
            same = all(torch.equal(other["clock"][key], first["clock"][key]) for key in ("within", "tail"))
            if other["clock"]["steps"] != first["clock"]["steps"] or not same:
                raise ValueError(
                    f"the states are not of one moment: their clocks differ, at steps {first['clock']['steps']} and "
                    f"{other['clock']['steps']}"
                )
            if (other["momentum_buffer"] is None) != (first["momentum_buffer"] is None):
                raise ValueError("momentum_buffer must be in all of the states or in none")
        check_cover(parts, self.held)
        self.discard()
        self.momentum_buffer = None
        if first["momentum_buffer"] is None:
            self._set_momentum(self._momentum, self._nesterov)
            own: dict[str, Tensor | None] = {"alpha": self.alpha, "last": self.last}
        else:
            self.momentum_buffer = self._zeros(tuple(self.alpha.shape), self.dtype)
            own = {"alpha": self.alpha, "last": self.last, "momentum_buffer": self.momentum_buffer}
        with torch.no_grad():
            take_parts(own, self.held, states, parts)
            self.clock.load_state_dict(first["clock"])
        self._since_sweep = first["since_sweep"]
        self._forward_lr = None

    def _check_part(self, state: dict[str, Any]) -> range:
        """The rows that a state holds; ValueError unless it is an equal table's."""
        for key, mine in self._identity().items():
            if key not in state:
                raise ValueError(f"this is no state of an α table: it has no {key!r}")
            if state[key] != mine:
                raise ValueError(
                    f"this is the state of another α table: its {key} is {state[key]!r}, not {mine!r}"
                )
        missing = {"alpha", "momentum_buffer", "last", "clock", "since_sweep"} - state.keys()
        if missing:
            raise ValueError(f"the state of the α table lacks {sorted(missing)}")
        rows = held_rows(state, self.num_samples)
        for key, like in (("alpha", self.alpha), ("momentum_buffer", self.alpha), ("last", self.last)):
            value = state[key]
            if value is None and key == "momentum_buffer":
                continue
            shape = (len(rows), *like.shape[1:])
            if not isinstance(value, Tensor) or value.shape != shape or value.dtype != like.dtype:
                raise ValueError(f"{key} in the state is not a {like.dtype} tensor of shape {shape}")
        self.clock.check_state(state["clock"])
        return rows


def _check_optimizer(optimizer: torch.optim.Optimizer, group: int) -> None:
    if not isinstance(optimizer, torch.optim.SGD) and not _is_fused_sgd(optimizer):
        raise TypeError(
            f"α follows torch.optim.SGD, whose step is linear in a row; optimizer is {type(optimizer).__name__}. "
            "With another optimizer for the network, drive the table by hand: table.lr = …, table.step()"
        )
    if not 0 <= group < len(optimizer.param_groups):
        raise ValueError(f"group must be in [0, {len(optimizer.param_groups)}), got {group}")
    options = optimizer.param_groups[group]
    if options["dampening"] != 0:
        raise ValueError(f"optimizer has dampening = {options['dampening']}; α follows SGD without dampening")
    if options.get("maximize"):
        raise ValueError("optimizer has maximize=True; α follows a minimising SGD")
    if getattr(optimizer, "wd_after_momentum", False):
        raise ValueError(
            "optimizer has wd_after_momentum=True; α follows SGD with weight decay before momentum"
        )


def _is_fused_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """apex's, whose step is torch.optim.SGD's. Known by its name: apex may be missing."""
    kind = type(optimizer)
    return kind.__name__ == "FusedSGD" and kind.__module__.split(".")[0] == "apex"
