"""Batches and tables that every backend is tried on beside fastac.eager: in float64 as the truth, and in the backend's
own dtype as the measure of its error."""

import itertools
from typing import NamedTuple

import torch
from hypothesis import strategies as st

import fastac
from fastac.contract import Accumulators, Objective, Rows, Sgd


class Case(NamedTuple):
    batch: int
    classes: int
    form: str
    logits: torch.dtype
    table: torch.dtype
    momentum: float
    nesterov: bool
    folded: bool
    reduction: str
    label_smoothing: float
    weighted: bool
    ignore_index: int
    int32: bool
    strided: bool
    grad_output: float
    scale: float
    seed: int


def cases(classes):
    """Every option there is, with these numbers of classes."""
    return st.builds(
        Case,
        batch=st.integers(1, 300),
        classes=classes,
        form=st.sampled_from(["ac1", "ac2"]),
        logits=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        table=st.sampled_from([torch.float32, torch.bfloat16]),
        momentum=st.sampled_from([0.0, 0.9]),
        nesterov=st.booleans(),
        folded=st.booleans(),
        reduction=st.sampled_from(["mean", "sum", "none"]),
        label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
        weighted=st.booleans(),
        ignore_index=st.sampled_from([-100, -1, 0]),
        int32=st.booleans(),
        strided=st.booleans(),
        grad_output=st.sampled_from([1.0, 0.25]),
        scale=st.sampled_from([1.0, 10.0]),
        seed=st.integers(0, 2**31),
    )


CASES = cases(st.one_of(st.integers(2, 70), st.integers(2, 2100), st.sampled_from([2048, 2049, 2063, 4100])))


class Problem:
    """A batch with ignored rows and repeated ids, and a table whose rows are of different ages."""

    def __init__(self, case, device="cpu"):
        generator = torch.Generator().manual_seed(case.seed)
        n, b, k = 50 + case.batch, case.batch, case.classes
        self.case, self.num_samples = case, n
        self.flags = torch.zeros(2, dtype=torch.int64, device=device)
        columns = k * 2 if case.strided else k
        logits = (torch.randn(b, columns, generator=generator) * case.scale).to(device, case.logits)
        self.logits = logits[:, ::2] if case.seed % 2 and case.strided else logits[:, :k]
        self.target = torch.randint(k, (b,), generator=generator)
        self.target[torch.rand(b, generator=generator) < 0.1] = case.ignore_index
        index = torch.randint(n, (b,), generator=generator)
        self.target, index = self.target.to(device), index.to(device)
        self.index = index.to(torch.int32) if case.int32 else index
        momentum = 0.0 if case.folded else case.momentum
        self.table = fastac.AlphaTable(
            n,
            k,
            form=case.form,
            dtype=case.table,
            momentum=momentum,
            weight_decay=1e-2,
            window=64,
            device=device,
        )
        self.table.lr = 0.1
        self.table.alpha.copy_(torch.randn(self.table.alpha.shape, generator=generator))
        if self.table.momentum_buffer is not None:
            self.table.momentum_buffer.copy_(torch.randn(self.table.alpha.shape, generator=generator))
        for _ in range(70):
            self.table.step()
        self.table.last.copy_(torch.randint(20, 71, (n,), generator=generator))
        weight = torch.rand(k, generator=generator).to(device) if case.weighted else None
        self.objective = Objective(weight, case.form, case.ignore_index, case.reduction, case.label_smoothing)
        self.sgd = Sgd(case.momentum, 1e-2, case.nesterov, case.folded, case.seed)
        self.grad = torch.randn(b, *self.table.alpha.shape[1:], generator=generator).to(device)

    def rows(self, dtype=None):
        """A copy of the table's storage."""
        alpha, momentum, last, clock = self.table._rows()
        dtype = dtype or alpha.dtype
        return Rows(
            alpha.to(dtype, copy=True),
            None if momentum is None else momentum.to(dtype, copy=True),
            last.clone(),
            clock,
        )

    def forward(self, backend, rows, logits=None, statistics=True):
        logits = self.logits if logits is None else logits
        arguments = (logits, self.target, self.index, rows, self.objective, self.flags, self.num_samples)
        return backend.forward(*arguments, statistics)

    def forward_update(self, backend, rows, logits=None, accumulators=None):
        logits = self.logits if logits is None else logits
        arguments = (logits, self.target, self.index, rows, self.objective, self.flags, self.num_samples)
        return backend.forward_update(*arguments, accumulators, self.sgd, self.case.grad_output)

    def largest_target(self):
        """The largest of what the gradient p·Σq − q subtracts, in float64: their difference may be far smaller."""
        weight, _, ignore_index, reduction, smoothing = self.objective
        w = torch.ones(self.case.classes, dtype=torch.float64) if weight is None else weight.double().cpu()
        target = self.target[self.target != ignore_index].cpu()
        if not len(target):
            return 0.0
        q = (smoothing / len(w) * w).expand(len(target), -1).clone()
        q[torch.arange(len(target)), target] += (1 - smoothing) * w[target]
        return float(q.max() / (w[target].sum() if reduction == "mean" else 1))

    def accumulators(self):
        """Of samples of which some were seen before."""
        generator = torch.Generator().manual_seed(self.case.seed)
        n, device = self.num_samples, self.logits.device
        visits = torch.randint(3, (n,), generator=generator)
        right = torch.rand(n, generator=generator) < 0.5
        sums = torch.randn(n, 6, generator=generator, dtype=torch.float64) * visits[:, None]
        lost = torch.zeros(n, dtype=torch.int64)
        return Accumulators(*(x.to(device) for x in (visits, sums, lost, right & (visits > 0))))


def error(value, truth):
    """Largest difference, and its scale; rows that are NaN in the truth must be NaN in the value."""
    value, truth = value.double(), truth.double()
    assert torch.equal(value.isnan(), truth.isnan())
    return float((value - truth).nan_to_num().abs().max()), float(truth.nan_to_num().abs().max())


def assert_as_good_as_eager(value, eagers, truth, rounding=2.0**-21, largest=0.0):
    """At most eager's error in the same dtype, plus `rounding` of the largest value, or of `largest` (and float32's
    least numbers)."""
    mine, size = error(value, truth)
    theirs, _ = error(eagers, truth)
    size = max(size, largest)
    assert mine <= theirs + rounding * size + 1e-37, (mine, theirs, size)


def assert_same_state(mine, eagers, truth, rounding=2.0**-21):
    assert torch.equal(mine.last, truth.last)
    for name in ("alpha", "momentum"):
        a, b, c = (getattr(rows, name) for rows in (mine, eagers, truth))
        if b is None:
            continue
        if b.dtype == torch.bfloat16:  # the same random bits: equal but where sums differ in their last bit
            assert_close_bf16(a, b)
        else:
            assert_as_good_as_eager(a, b, c, rounding)


def assert_close_bf16(a, b):
    ulps = (a.view(torch.int16).int() - b.view(torch.int16).int()).abs()
    close = (ulps <= 1) | ((a.float() - b.float()).abs() < 1e-6)
    assert bool(close.all())
    assert float((ulps == 0).float().mean()) > 0.99


BASE = Case(
    12,
    37,
    "ac1",
    torch.float32,
    torch.float32,
    0.9,
    False,
    False,
    "mean",
    0.0,
    False,
    -100,
    False,
    False,
    1.0,
    1.0,
    3,
)


def grid(form):
    """Every combination of the loss's options, and every one of the optimizer's with every pair of types."""
    small = BASE._replace(form=form, batch=7, classes=11, scale=3.0)
    for reduction, smoothing, weighted, ignore_index in itertools.product(
        ("mean", "sum", "none"), (0.0, 0.1, 1.0), (False, True), (-100, 0)
    ):
        yield small._replace(
            reduction=reduction, label_smoothing=smoothing, weighted=weighted, ignore_index=ignore_index
        )
    for sgd, table, logits in itertools.product(
        ((0.0, False, False), (0.9, False, False), (0.9, True, False), (0.9, False, True)),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float16),
    ):
        momentum, nesterov, folded = sgd
        yield small._replace(
            momentum=momentum, nesterov=nesterov, folded=folded, table=table, logits=logits, grad_output=0.25
        )
