"""The loss against PyTorch's own cross entropy, and against a dense α under everything a trainer does."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from dense import relative_error
from torch.utils.checkpoint import checkpoint

import fastac
from fastac.functional import ac_cross_entropy
from fastac.reference import DenseAlpha

K = 7
WEIGHT = torch.linspace(0.2, 2.0, K)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def batch(rows=13, dtype=torch.float32, ignore_index=-100, ignored="some"):
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(rows, K, generator=generator)).to(dtype)
    target = torch.randint(K, (rows,), generator=generator)
    if ignored == "some":
        target[::4] = ignore_index
    elif ignored == "all":
        target[:] = ignore_index
    return logits, target


def loss_and_grad(function, logits, *args, **options):
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, *args, **options)
    weights = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(
        loss.shape
    )  # another gradient a row
    (loss * weights).sum().backward()
    return loss.detach(), leaf.grad


def make_table(n=40, dtype=torch.float32, **options):
    table = fastac.AlphaTable(n, K, dtype=dtype, **options)
    table.lr = 0.1
    return table


def learned(table, value=0.7):
    """α as it is after one large step, so that rows differ from zero."""
    n = table.num_samples
    grad = -value * torch.randn(n, K, generator=torch.Generator().manual_seed(9)).to(torch.float64)
    table.stage(torch.arange(n), grad if table.form == "ac1" else grad[:, 0], torch.tensor(10.0))
    table.step()
    return table


GRID = list(
    itertools.product(
        DTYPES, [None, WEIGHT], [-100, 0, 3, 99], ["mean", "sum", "none"], [0.0, 0.1, 1.0], ["none", "some"]
    )
)


@pytest.mark.parametrize("form", ["ac1", "ac2", None])
def test_parity_with_cross_entropy_at_zero_alpha(form):
    table = None if form is None else make_table(form=form)
    for dtype, weight, ignore_index, reduction, smoothing, ignored in GRID:
        logits, target = batch(dtype=dtype, ignore_index=ignore_index, ignored=ignored)
        options = dict(ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing)
        index = torch.arange(len(target))
        exact = loss_and_grad(
            F.cross_entropy,
            logits.double(),
            target,
            weight=None if weight is None else weight.double(),
            **options,
        )
        wide = weight if dtype != torch.float64 or weight is None else weight.double()
        ours = loss_and_grad(ac_cross_entropy, logits, target, index, table, weight=wide, **options)
        eager = loss_and_grad(
            F.cross_entropy, logits, target, weight=None if weight is None else weight.to(dtype), **options
        )
        assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert ours[1].dtype == dtype
        for mine, theirs, truth in zip(ours, eager, exact, strict=True):
            wide_eps = torch.finfo(ours[0].dtype).eps
            rounding = torch.finfo(mine.dtype).eps * truth.abs() + 8 * wide_eps
            error, allowed = (mine - truth).abs(), (theirs - truth).abs().max() + rounding
            assert (error <= allowed).all(), (dtype, weight, options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_rows_ignored(reduction, smoothing):
    logits, target = batch(ignored="all")
    options = dict(reduction=reduction, label_smoothing=smoothing)
    table = learned(make_table())
    before = table.dense()
    ours = loss_and_grad(ac_cross_entropy, logits, target, torch.arange(13), table, **options)
    theirs = loss_and_grad(F.cross_entropy, logits, target, **options)
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)
    assert (ours[1] == 0).all()
    table.lr = 0.0
    table.step()
    assert torch.equal(table.dense(), before)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch(reduction):
    logits, target = batch()
    index = torch.arange(0)
    table = make_table(momentum=0.9)
    ours = loss_and_grad(ac_cross_entropy, logits[:0], target[:0], index, table, reduction=reduction)
    theirs = loss_and_grad(F.cross_entropy, logits[:0], target[:0], reduction=reduction)
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)
    assert ours[1].shape == (0, K)
    table.step()
    assert int(table.clock.steps) == 1
    assert (table.dense() == 0).all()


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_with_alpha(form, dtype):
    """Against float64 autograd through a dense α, with weights, smoothing and ignored rows."""
    table = learned(make_table(form=form, dtype=torch.float64 if dtype == torch.float64 else torch.float32))
    logits, target = batch(dtype=dtype)
    index = torch.randperm(40)[:13]
    options = dict(weight=WEIGHT.double(), label_smoothing=0.1)
    truth = loss_and_grad(
        ac_cross_entropy, logits.double(), target, index, table.dense().double(), form=form, **options
    )
    ours = loss_and_grad(ac_cross_entropy, logits, target, index, table, **options)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        ours[0].double(), truth[0], rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0
    )
    torch.testing.assert_close(
        ours[1].double(), truth[1], rtol=2 * eps, atol=4e-7 if dtype != torch.float64 else 1e-15
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_confident_rows_keep_their_gradient(dtype):
    """p_y → 1: the −1 at the target must meet p before anything is rounded to the logits' type."""
    logits = torch.zeros(4, K, dtype=dtype)
    logits[:, 2] = torch.tensor([5.0, 8.0, 10.0, 12.0])
    target = torch.full((4,), 2)
    truth = loss_and_grad(F.cross_entropy, logits.double(), target)[1]
    wide = torch.promote_types(dtype, torch.float32)
    eager = loss_and_grad(F.cross_entropy, logits.to(wide), target)[1].to(dtype)
    ours = loss_and_grad(ac_cross_entropy, logits, target, torch.arange(4), make_table())[1]
    error, allowed = (((grad.double() - truth) / truth).abs().max() for grad in (ours, eager))
    assert error <= allowed + torch.finfo(dtype).eps
    assert error < 0.02


def test_strides_and_id_types():
    logits, target = batch()
    table = learned(make_table())
    index = torch.arange(13)
    plain = loss_and_grad(ac_cross_entropy, logits, target, index, table, reduction="none")
    odd = torch.empty(13, 3 * K)[:, ::3].copy_(logits)
    both = torch.stack([target, index], dim=1)
    other = loss_and_grad(
        ac_cross_entropy, odd, both[:, 0], both[:, 1].to(torch.int32), table, reduction="none"
    )
    assert torch.equal(plain[0], other[0])
    assert torch.equal(plain[1], other[1])


def test_incoming_gradients_of_odd_strides():
    logits, target = batch(ignored="none")
    index = torch.arange(13)
    grads = []
    for incoming in (torch.full((13,), 0.25), torch.tensor(0.25).expand(13), torch.full((26,), 0.25)[::2]):
        table = make_table()
        leaf = logits.clone().requires_grad_()
        ac_cross_entropy(leaf, target, index, table, reduction="none").backward(incoming)
        table.step()
        grads.append((leaf.grad, table.dense()))
    for grad, alpha in grads[1:]:
        assert torch.equal(grad, grads[0][0])
        assert torch.equal(alpha, grads[0][1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("update", ["step", "forward"])
def test_rows_with_logits_that_are_not_finite_are_not_written(bad, update):
    table = learned(make_table())
    logits, target = batch(ignored="none")
    logits[5, 1] = bad
    index = torch.arange(13)
    table.lr = 0.1
    untouched = table.dense()[5] * (
        1 - 0.1 * table.weight_decay
    )  # decay goes on, as for a row outside the batch
    ac_cross_entropy(logits.requires_grad_(), target, index, table, reduction="sum", update=update).backward()
    table.step()
    after = table.dense()
    assert after.isfinite().all()
    torch.testing.assert_close(after[5], untouched)
    assert ((after[6] - untouched).abs() > 1e-4).any()


# --- what trainers do, beside a dense parameter ------------------------------------------------------------


class Pair:
    """One network with the table, its twin with a dense α; both see the same batches."""

    def __init__(self, form="ac1", momentum=0.9, dtype=torch.float64, **loss_options):
        torch.manual_seed(0)
        self.nets = [torch.nn.Linear(4, K).to(dtype) for _ in range(2)]
        self.nets[1].load_state_dict(self.nets[0].state_dict())
        self.dense = DenseAlpha(40, K, form, dtype)
        self.table = fastac.AlphaTable(40, K, form=form, weight_decay=1e-2, dtype=dtype)
        self.criterion = fastac.AutoCleansingLoss(self.table, **loss_options)
        group = {"params": self.dense.parameters(), "weight_decay": 1e-2}
        self.optimizers = [
            torch.optim.SGD(self.nets[0].parameters(), lr=0.2, momentum=momentum),
            torch.optim.SGD([{"params": self.nets[1].parameters()}, group], lr=0.2, momentum=momentum),
        ]
        self.table.follow(self.optimizers[0])
        self.inputs = torch.randn(40, 4, dtype=dtype)
        self.labels = torch.randint(K, (40,))
        self.generator = torch.Generator().manual_seed(5)

    def draw(self, rows=8):
        return torch.randint(40, (rows,), generator=self.generator)

    def losses(self, index):
        ours = self.criterion(self.nets[0](self.inputs[index]), self.labels[index], index)
        theirs = self.dense(self.nets[1](self.inputs[index]), self.labels[index], index)
        return ours, theirs

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def check(self, tolerance=1e-10):
        assert self.dense.alpha.abs().max() > 1e-3
        assert relative_error(self.table.dense(), self.dense.alpha) < tolerance
        assert relative_error(self.nets[0].weight, self.nets[1].weight) < tolerance


@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_accumulation_with_ids_shared_between_micro_batches(form):
    pair = Pair(form)
    for _ in range(30):
        for index in (pair.draw(), pair.draw(5), torch.tensor([3, 3, 4])):
            for loss in pair.losses(index):
                (loss / 3).backward()
        pair.step()
    pair.check()


def test_two_forwards_before_their_backwards():
    pair = Pair()
    for _ in range(20):
        first, second = pair.losses(pair.draw()), pair.losses(pair.draw())
        for loss in (*second, *first):
            loss.backward()
        pair.step()
    pair.check()


def test_retained_graph():
    pair = Pair()
    for _ in range(20):
        for loss in pair.losses(pair.draw()):
            loss.backward(retain_graph=True)
            loss.backward()
        pair.step()
    pair.check()


def test_a_graph_that_outlives_a_step():
    """Its gradient is that of the forward pass, as with saved tensors of autograd."""
    pair = Pair()
    index = pair.draw()
    logits = torch.randn(8, K, dtype=torch.float64)
    kept = [
        pair.criterion(logits, pair.labels[index], index),
        pair.dense(logits, pair.labels[index], index),
    ]
    for loss in pair.losses(index):
        loss.backward()
    pair.step()
    for loss in kept:
        loss.backward()
    pair.step()
    pair.check()


def test_combined_and_scaled_losses():
    pair = Pair()
    for _ in range(20):
        for loss in pair.losses(pair.draw()):
            (0.3 * loss + loss.sin()).backward()
        pair.step()
    pair.check()


def test_gradient_clipping_leaves_alpha_alone():
    pair = Pair()
    for _ in range(20):
        for loss in pair.losses(pair.draw()):
            loss.backward()
        for net in pair.nets:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        pair.step()
    pair.check()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_recomputation(reentrant):
    pair = Pair()

    def block(net, loss, inputs, index):
        return loss(net(inputs), pair.labels[index], index)

    for _ in range(20):
        index = pair.draw()
        for net, loss in zip(pair.nets, (pair.criterion, pair.dense), strict=True):
            inputs = pair.inputs[index].clone().requires_grad_()
            checkpoint(block, net, loss, inputs, index, use_reentrant=reentrant).backward()
        pair.step()
    pair.check()


def test_steps_without_a_backward_pass():
    pair = Pair()
    for step in range(40):
        if step % 3:
            for loss in pair.losses(pair.draw()):
                loss.backward()
            for optimizer in pair.optimizers:
                optimizer.step()
                optimizer.zero_grad(
                    set_to_none=False
                )  # so that the dense twin goes on with a gradient of zero
        else:
            pair.step() if step == 0 else [optimizer.step() for optimizer in pair.optimizers]
    pair.check()


def test_frozen_network():
    """The logits don't require grad; a dense α would learn all the same."""
    pair = Pair()
    for _ in range(20):
        index = pair.draw()
        with torch.no_grad():
            logits = pair.nets[0](pair.inputs[index])
        pair.criterion(logits, pair.labels[index], index).backward()
        pair.dense(logits, pair.labels[index], index).backward()
        pair.step()
    pair.check()


def test_no_grad_reads_and_learns_nothing():
    pair = Pair()
    for update in ("step", "forward"):
        pair.criterion.update = update
        with torch.no_grad():
            ours, theirs = pair.losses(pair.draw())
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs)
    pair.optimizers[0].step()
    assert (pair.table.dense() == 0).all()


def test_eval_mode():
    pair = Pair()
    index = pair.draw()
    for loss in pair.losses(index):
        loss.backward()
    pair.step()
    pair.criterion.eval()
    logits = pair.nets[0](pair.inputs[index])
    with_alpha = pair.criterion(logits, pair.labels[index], index)
    torch.testing.assert_close(with_alpha, pair.losses(index)[1])
    torch.testing.assert_close(
        pair.criterion(logits, pair.labels[index]), F.cross_entropy(logits, pair.labels[index])
    )
    for loss in pair.losses(index):  # a dense parameter gets its gradient in eval mode too
        loss.backward()
    pair.step()
    pair.check()
    before = pair.table.dense()
    pair.criterion.update = "forward"
    pair.criterion(pair.nets[0](pair.inputs[index]), pair.labels[index], index).backward()
    assert torch.equal(pair.table.dense(), before)
    assert not pair.table._staged


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize(("momentum", "reduction"), [(0.0, "mean"), (0.9, "mean"), (0.9, "sum")])
def test_forward_update_equals_dense(form, momentum, reduction):
    pair = Pair(form, momentum, update="forward", reduction=reduction)
    for step in range(60):
        for group in (g for optimizer in pair.optimizers for g in optimizer.param_groups):
            group["lr"] = 0.05 / (1 + step)
        index = pair.draw()
        ours = pair.criterion(pair.nets[0](pair.inputs[index]), pair.labels[index], index)
        theirs = pair.dense(pair.nets[1](pair.inputs[index]), pair.labels[index], index, reduction=reduction)
        torch.testing.assert_close(ours, theirs)
        ours.backward()
        theirs.backward()
        pair.step()
    pair.check()


def test_forward_update_with_a_constant_factor():
    pair = Pair(update="forward", grad_output=0.5)
    for _ in range(20):
        for loss in pair.losses(pair.draw()):
            (0.5 * loss).backward()
        pair.step()
    pair.check()


def test_forward_update_refuses_what_it_cannot_do():
    pair = Pair(update="forward")
    pair.losses(pair.draw())
    before = pair.table.dense()
    with pytest.raises(RuntimeError, match="accumulation and activation recomputation need update='step'"):
        pair.losses(pair.draw())
    assert torch.equal(pair.table.dense(), before)
    pair.optimizers[0].param_groups[0]["lr"] = 0.1
    with pytest.raises(RuntimeError, match=r"wrote α with lr = 0\.2"):
        pair.optimizers[0].step()


def test_forward_update_of_a_loss_that_is_scaled_afterwards():
    """α has moved by then; the logits' gradient is that of the scaled loss, in their dtype."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        grads = []
        for factor in (1.0, 3.0):
            table = learned(make_table(dtype=torch.float64 if dtype == torch.float64 else torch.float32))
            logits, target = batch(dtype=dtype)
            logits.requires_grad_()
            loss = ac_cross_entropy(logits, target, torch.arange(13), table, update="forward")
            (loss * factor).backward()
            assert logits.grad.dtype == dtype
            grads.append(logits.grad.double())
        assert grads[0].abs().max() > 0.01
        assert relative_error(grads[1], 3 * grads[0]) < (1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_forward_update_allows_one_backward_pass():
    """Its gradient is scaled in place."""
    table = make_table()
    leaf, target = batch()
    leaf.requires_grad_()
    loss = ac_cross_entropy(leaf, target, torch.arange(13), table, update="forward")
    (loss * 2).backward(retain_graph=True)
    once = leaf.grad.clone()
    with pytest.raises(RuntimeError, match="update='forward' allows one backward pass for each forward pass"):
        loss.backward()
    assert torch.equal(leaf.grad, once)


# --- mixed precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    pair = Pair(dtype=torch.float32)
    for _ in range(20):
        with torch.autocast("cpu", dtype):
            losses = pair.losses(pair.draw())
            assert losses[0].dtype == torch.float32
        for loss in losses:
            loss.backward()
        pair.step()
    pair.check(0.05)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused):
    """Scaled losses, and steps that overflow: skipped ones leave α, momentum and clock as they were."""
    pair = Pair(dtype=torch.float32)
    for optimizer in pair.optimizers:
        for group in optimizer.param_groups:
            group["fused"] = fused
        optimizer._step_supports_amp_scaling = fused
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=5) for _ in range(2)]
    pair.table.follow(pair.optimizers[0], scaler=scalers[0])
    skipped = 0
    for step in range(40):
        before, clock = pair.table.dense(), pair.table.clock.steps.clone()
        for micro in range(2):
            for loss, scaler in zip(pair.losses(pair.draw()), scalers, strict=True):
                overflow = step in (7, 8, 23) and micro == 0
                scaler.scale(loss * torch.inf if overflow else loss / 2).backward()
        for optimizer, scaler in zip(pair.optimizers, scalers, strict=True):
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        if int(pair.table.clock.steps) == int(clock):
            skipped += 1
            assert torch.equal(pair.table.dense(), before)
    assert skipped == 3
    pair.check(1e-5)


def test_grad_scaler_that_the_table_was_not_told_of():
    pair = Pair(dtype=torch.float32)
    pair.optimizers[0].param_groups[0]["fused"] = True
    pair.optimizers[0]._step_supports_amp_scaling = True
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(pair.losses(pair.draw())[0]).backward()
    with pytest.raises(RuntimeError, match=r"follow\(optimizer, scaler=scaler\)"):
        scaler.step(pair.optimizers[0])
    assert (pair.table.dense() == 0).all()


# --- bad input: the message names the argument, and the table is as before ---------------------------------

GOOD = {"logits": torch.zeros(3, K), "target": torch.tensor([0, 1, 2]), "index": torch.tensor([0, 1, 2])}
BAD_BATCHES = [
    ({"target": torch.tensor([0, 1, K])}, IndexError, r"target 7 is outside \[0, 7\)"),
    ({"target": torch.tensor([0, -1, 2])}, IndexError, "target -1"),
    ({"index": torch.tensor([0, 1, 40])}, IndexError, r"index 40 is outside \[0, 40\)"),
    ({"index": torch.tensor([0, -1, 2])}, IndexError, "index -1"),
    ({"target": torch.tensor([0.0, 1.0, 2.0])}, TypeError, "target must hold class indices as int64"),
    ({"index": torch.tensor([0.0, 1.0, 2.0])}, TypeError, "index must hold sample ids"),
    ({"target": torch.tensor([0, 1])}, ValueError, r"target must have shape \(3,\), got \(2,\)"),
    ({"index": torch.tensor([[0], [1], [2]])}, ValueError, r"index must have shape \(3,\)"),
    ({"index": None}, ValueError, "index is missing"),
    ({"logits": torch.zeros(3, K + 1)}, ValueError, "logits have K = 8 classes, the table has 7"),
    ({"logits": torch.zeros(3)}, ValueError, r"logits must have shape \(B, K\)"),
    ({"logits": torch.zeros(3, K, dtype=torch.int64)}, TypeError, "logits must be float"),
    ({"logits": torch.zeros(3, K, device="meta")}, ValueError, "target is on cpu, logits are on meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_BATCHES)
@pytest.mark.parametrize("update", ["step", "forward"])
def test_bad_batch_changes_nothing(change, error, message, update):
    table = learned(make_table())
    criterion = fastac.AutoCleansingLoss(table, update=update)
    before = table.dense()
    with pytest.raises(error, match=message):
        criterion(**{**GOOD, **change}).backward()
    table.lr = 0.0
    table.step()
    assert torch.equal(table.dense(), before)
    criterion(**GOOD).backward()  # and the table goes on
    table.step()


BAD_LOSSES = [
    ({"reduction": "avg"}, ValueError, "reduction must be one of"),
    ({"update": "now"}, ValueError, "update must be one of"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be in"),
    ({"grad_output": torch.nan}, ValueError, "grad_output must be finite"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_LOSSES)
def test_bad_loss(change, error, message):
    with pytest.raises(error, match=message):
        fastac.AutoCleansingLoss(make_table(), **change)


def test_bad_weight_and_table():
    with pytest.raises(ValueError, match=r"weight must have shape \(7,\)"):
        ac_cross_entropy(GOOD["logits"], GOOD["target"], weight=torch.ones(3))
    with pytest.raises(TypeError, match="table must be an AlphaTable or None"):
        fastac.AutoCleansingLoss(torch.zeros(3, K))
    with pytest.raises(ValueError, match="form 'ac2' needs"):
        ac_cross_entropy(*GOOD.values(), torch.zeros(40, K), form="ac2")


def test_ranges_that_an_accelerator_reports_later(monkeypatch):
    """The device path of check_range: the row is left out, the flag is set, FASTAC_DEBUG=1 raises at once."""
    from fastac import validation

    class OnDevice(torch.Tensor):
        device = torch.device("cuda")

    check = validation.RangeCheck(torch.device("cpu"))
    flags = check.flags
    target, index = torch.tensor([0, 9, 1]).as_subclass(OnDevice), torch.tensor([0, 1, 99])
    monkeypatch.delenv("FASTAC_DEBUG", raising=False)
    good = validation.check_range(target, index, K, 40, -100, flags)
    assert good.tolist() == [True, False, False]
    assert flags.tolist() == [1, 1]
    with pytest.raises(
        IndexError, match="target and index held values outside their range in an earlier batch"
    ):
        check._raise(flags)
    assert flags.tolist() == [0, 0]
    monkeypatch.setenv("FASTAC_DEBUG", "1")
    with pytest.raises(IndexError, match="target 9"):
        validation.check_range(target, index, K, 40, -100, flags)
