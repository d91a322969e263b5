import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from dense import Case, relative_error, run
from hypothesis import given, settings
from hypothesis import strategies as st

import fastac
from fastac.reference import DenseAlpha

SGD_KINDS = [(0.0, False), (0.9, False), (0.9, True)]


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize(("momentum", "nesterov"), SGD_KINDS)
@pytest.mark.parametrize("weight_decay", [0.0, 5e-5, 5e-2])
@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_equals_dense_sgd(form, momentum, nesterov, weight_decay, schedule):
    alpha, truth, net, dense_net = run(Case(form, momentum, nesterov, weight_decay, schedule))
    assert relative_error(alpha, truth) < 1e-10
    assert relative_error(net.weight, dense_net.weight) < 1e-10
    assert truth[:35].abs().max() > 0.05
    assert (truth[35:] == 0).all()
    assert (alpha[35:] == 0).all()


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize(("momentum", "nesterov"), SGD_KINDS)
@pytest.mark.parametrize("schedule", ["cosine", "multistep", "pause"])
def test_equals_dense_sgd_in_float32(form, momentum, nesterov, schedule):
    alpha, truth, *_ = run(Case(form, momentum, nesterov, 5e-2, schedule, torch.float32))
    assert alpha.dtype == torch.float32
    assert relative_error(alpha, truth) < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        Case,
        form=st.sampled_from(["ac1", "ac2"]),
        momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
        weight_decay=st.sampled_from([0.0, 5e-5, 5e-2, 0.5]),
        schedule=st.sampled_from(["cosine", "multistep", "pause", "constant"]),
        steps=st.integers(1, 120),
        num_samples=st.integers(6, 60),
        num_classes=st.integers(2, 12),
        batch=st.integers(1, 16),
        window=st.sampled_from([16, 32, 64, 1 << 18]),
        label_smoothing=st.sampled_from([0.0, 0.1]),
        reduction=st.sampled_from(["mean", "sum"]),
        seed=st.integers(0, 1 << 30),
    ),
    st.booleans(),
)
def test_equals_dense_sgd_in_drawn_cases(case, nesterov):
    case.nesterov = nesterov and case.momentum > 0
    alpha, truth, *_ = run(case)
    if truth.abs().max() == 0:
        assert (alpha == 0).all()
    else:
        assert relative_error(alpha, truth) < 1e-10


def test_momentum_that_a_schedule_changes():
    """OneCycleLR moves SGD's momentum against its learning rate, through zero here."""
    table = fastac.AlphaTable(12, 3, dtype=torch.float64, weight_decay=1e-2)
    dense = DenseAlpha(12, 3, dtype=torch.float64)
    logits = torch.nn.Parameter(torch.randn(12, 3, dtype=torch.float64))
    sparse = torch.optim.SGD([logits], lr=0.1, momentum=0.5)
    full = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.5, weight_decay=1e-2)
    table.follow(sparse)
    for step in range(200):
        index = torch.randint(10, (4,))
        target = index % 3
        for optimizer in (sparse, full):
            momentum = max(0.0, 0.9 * math.cos(step / 20))
            optimizer.param_groups[0].update(lr=0.05 + 0.04 * math.sin(step), momentum=momentum)
            optimizer.zero_grad()
        frozen = logits.detach()[index]
        dense(frozen, target, index).backward()
        fastac.functional.ac_cross_entropy(frozen, target, index, table).backward()
        full.step()
        sparse.step()
    assert relative_error(table.dense(), dense.alpha.detach()) < 1e-10


@pytest.mark.slow
def test_never_fitted_sample_ends_at_the_papers_peak():
    """WRN-40-2's schedule (Table 7): 0.1, cosine, 200 epochs of 390 steps, batch 128. The peaks of Figures 4 to 6."""
    steps = 200 * 390
    table = fastac.AlphaTable(
        1, 2, form="ac2", weight_decay=5e-5, dtype=torch.float64, momentum=0.9, nesterov=True
    )
    index, grad = torch.zeros(1, dtype=torch.int64), torch.tensor([-1.0], dtype=torch.float64)
    scale = torch.tensor(1 / 128, dtype=torch.float64)
    for step in range(steps):
        table.lr = 0.05 * (1 + math.cos(math.pi * step / steps))
        if step % 390 == 195:
            table.stage(index, grad, scale)
        table.step()
    assert abs(table.dense().item() - 0.344) < 0.002


def train(table, steps=60, batch=4, logits=None, seed=0, criterion=None):
    """Random logits that never change: what α then does is its own optimizer's work alone."""
    generator = torch.Generator().manual_seed(seed)
    n, k = table.num_samples, table.num_classes
    logits = torch.randn(n, k, generator=generator) if logits is None else logits
    for _ in range(steps):
        index = torch.randint(n, (batch,), generator=generator)
        if criterion is None:
            loss = fastac.functional.ac_cross_entropy(logits[index], index % k, index, table)
        else:
            loss = criterion(logits[index], index % k, index)
        loss.backward()
        table.step()
    return table


def by_hand(**options):
    table = fastac.AlphaTable(20, 5, momentum=0.9, **options)
    table.lr = 0.1
    return table


def test_first_category_is_never_updated():
    alpha = train(by_hand()).dense()
    assert (alpha[:, 0] == 0).all()
    assert (alpha[:, 1:].abs().sum(1) > 0).any()


def test_rows_are_those_of_dense():
    for form in ("ac1", "ac2"):
        table = train(by_hand(form=form))
        index = torch.tensor([7, 0, 7, 19], dtype=torch.int32)
        assert torch.equal(table.rows(index), table.dense()[index.long()])


def test_a_small_window_gives_the_same_alpha():
    large, small = (
        train(by_hand(dtype=torch.float64), 300),
        train(by_hand(dtype=torch.float64, window=16), 300),
    )
    assert relative_error(small.dense(), large.dense()) < 1e-12
    assert int((small.clock.steps - small.last).max()) < 16


def test_same_run_gives_the_same_bits():
    for options in ({}, {"dtype": torch.bfloat16}, {"form": "ac2"}):
        assert torch.equal(train(by_hand(**options)).dense(), train(by_hand(**options)).dense())


def test_duplicates_do_not_depend_on_other_rows():
    """The sum over equal ids is taken in the batch's order, whatever stands between them."""
    grad = torch.randn(6, 5)
    tables = by_hand(), by_hand()
    one = torch.ones(())
    tables[0].stage(torch.tensor([3, 3, 3, 8, 8, 1]), grad, one)
    tables[1].stage(torch.tensor([8, 3, 1, 3, 8, 3]), grad[[3, 0, 5, 1, 4, 2]], one)
    for table in tables:
        table.step()
    assert torch.equal(tables[0].dense(), tables[1].dense())


def test_folded_history_is_near_dense():
    """DESIGN section 2: under 1 % at 400 steps an epoch, 7 % at 20, without a momentum buffer."""

    def end(history, n, steps):
        table = fastac.AlphaTable(n, 3, momentum=0.9, history=history, weight_decay=5e-4, dtype=torch.float64)
        logits = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        table.lr = 0.1
        for step in range(steps):
            index = torch.tensor([step % n])
            fastac.functional.ac_cross_entropy(logits[index], index % 3, index, table).backward()
            table.step()
        return table

    exact, folded = end("exact", 400, 1600), end("folded", 400, 1600)
    assert folded.momentum_buffer is None
    error = (exact.dense() - folded.dense()).norm() / exact.dense().norm()
    assert 0 < error < 0.03


def test_no_momentum_needs_no_buffer():
    table = fastac.AlphaTable(20, 5)
    table.lr = 0.1
    assert train(table).momentum_buffer is None
    assert table.dense().abs().max() > 0


def test_bfloat16_rounds_without_bias():
    """Steps far below half an ulp: rounding to nearest would stay where it is, in expectation α still arrives."""
    n = 20_000
    table = fastac.AlphaTable(n, 2, form="ac2", dtype=torch.bfloat16, weight_decay=0.0, seed=3)
    table.lr = 1.0
    index, scale = torch.arange(n), torch.ones(())
    table.stage(index, torch.full((n,), -1.0), scale)
    table.step()
    for _ in range(100):
        table.stage(index, torch.full((n,), -1e-4), scale)  # an ulp at 1 is 2^-7
        table.step()
    assert table.alpha.dtype == torch.bfloat16
    assert table.dense().dtype == torch.float32
    mean = table.dense().double().mean().item()
    assert abs(mean - 1.01) < 5 * math.sqrt(100 * 1e-4 * 2**-7 / n)


def test_bfloat16_table_follows_float32():
    exact, rounded = train(by_hand(), 200), train(by_hand(dtype=torch.bfloat16), 200)
    assert rounded.momentum_buffer.dtype == torch.bfloat16
    assert relative_error(rounded.dense(), exact.dense()) < 0.03
    other_seed = train(by_hand(dtype=torch.bfloat16, seed=1), 200)
    assert not torch.equal(other_seed.dense(), rounded.dense())


def test_lr_scale_multiplies_the_learning_rate():
    scaled, plain = by_hand(lr_scale=10.0), by_hand()
    plain.lr = 1.0
    assert torch.equal(train(scaled).dense(), train(plain).dense())


def test_tensor_learning_rate():
    tensor, plain = by_hand(), by_hand()
    tensor.lr = torch.tensor(0.1, dtype=torch.float64)
    assert torch.equal(train(tensor).dense(), train(plain).dense())


def test_ids_past_two_to_the_31_elements():
    """Row 1,199,999 of (1.2 M × 2000) begins past 2^31 elements; AC1 in bfloat16 on untouched zero pages."""
    n, k = 1_200_000, 2_000
    table = fastac.AlphaTable(20, k, dtype=torch.bfloat16, history="folded")
    table.num_samples, table.last = n, torch.zeros(n, dtype=torch.int32)
    table.alpha = torch.from_numpy(np.zeros((n, k), np.int16)).view(torch.bfloat16)  # pages come when written
    table.lr = 1.0
    index = torch.tensor([n - 1, 0])
    table.stage(index, torch.full((2, k), -1.0), torch.ones(()))
    table.step()
    rows = table.rows(torch.tensor([n - 1, 0, (n - 1) - (1 << 31) // k]))
    assert (rows[:2, 1:] > 0.9).all()
    assert (rows[2] == 0).all()


# --- whose step it is --------------------------------------------------------------------------------------


def test_nothing_moves_before_the_step():
    table = by_hand()
    index = torch.arange(4)
    fastac.functional.ac_cross_entropy(torch.randn(4, 5), index, index, table).backward()
    assert (table.dense() == 0).all()
    table.step()
    assert (table.dense() != 0).any()


def test_discard_forgets_what_was_staged():
    table = by_hand()
    index = torch.arange(4)
    fastac.functional.ac_cross_entropy(torch.randn(4, 5), index, index, table).backward()
    table.discard()
    table.step()
    assert (table.dense() == 0).all()


def test_follow_replaces_the_optimizer_before():
    nets = [torch.nn.Linear(3, 5) for _ in range(2)]
    first, second = (torch.optim.SGD(net.parameters(), lr=0.1) for net in nets)
    table = fastac.AlphaTable(20, 5)
    table.follow(first)
    table.follow(second)
    first.step()
    assert int(table.clock.steps) == 0
    second.step()
    assert int(table.clock.steps) == 1


def test_an_optimizer_does_not_keep_its_table():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    table = fastac.AlphaTable(20, 5)
    handle = table.handle
    table.follow(optimizer)
    del table
    optimizer.step()
    with pytest.raises(RuntimeError, match="no longer exists"):
        fastac.AlphaTable.from_handle(handle)


def test_a_deep_copy_is_a_table_of_its_own():
    table = train(by_hand())
    criterion = fastac.AutoCleansingLoss(table, dynamics=fastac.TrainingDynamics(20, 5))
    twin = copy.deepcopy(criterion)
    assert torch.equal(twin.table.dense(), table.dense())
    before = table.dense()
    index = torch.arange(4)
    twin(torch.randn(4, 5, requires_grad=True), index, index).backward()
    twin.table.step()
    assert torch.equal(table.dense(), before)
    assert not torch.equal(twin.table.dense(), before)
    assert int(criterion.dynamics.count.sum()) == 0
    assert int(twin.dynamics.count.sum()) == 4
    for state in (table, criterion.dynamics):
        with pytest.raises(TypeError, match=r"state_dict\(\)"):
            pickle.dumps(state)


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.bfloat16}, {"form": "ac2"}, {"history": "folded"}, {"window": 32}]
)
def test_state_goes_on_to_the_same_bits(options, tmp_path):
    whole = train(train(by_hand(**options), 50, seed=1), 50, seed=2)
    half = train(by_hand(**options), 50, seed=1)
    torch.save(half.state_dict(), tmp_path / "state")
    resumed = by_hand(**options)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert (resumed.momentum_buffer is None) == (options.get("history") == "folded")
    assert torch.equal(train(resumed, 50, seed=2).dense(), whole.dense())


OTHER_TABLES = [
    ({"num_samples": 21}, "num_samples is 21"),
    ({"num_classes": 6}, "num_classes is 6"),
    ({"form": "ac2"}, "form is 'ac2'"),
    ({"history": "folded"}, "history is 'folded'"),
    ({"dtype": torch.bfloat16}, "dtype is 'torch.bfloat16'"),
    ({"weight_decay": 1e-3}, "weight_decay is 0.001"),
    ({"window": 64}, "window is 64"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_TABLES)
def test_state_of_another_table_changes_nothing(change, message):
    sizes = {"num_samples": 20, "num_classes": 5, **{k: v for k, v in change.items() if k.startswith("num_")}}
    options = {k: v for k, v in change.items() if not k.startswith("num_")}
    other = fastac.AlphaTable(**sizes, momentum=0.9, **options)
    table = train(by_hand())
    before = table.dense(), table.clock.steps.clone()
    with pytest.raises(ValueError, match=message):
        table.load_state_dict(other.state_dict())
    assert torch.equal(table.dense(), before[0])
    assert torch.equal(table.clock.steps, before[1])


@pytest.mark.parametrize("key", ["alpha", "last", "clock", "momentum_buffer", "form"])
def test_incomplete_state_changes_nothing(key):
    table, state = train(by_hand()), train(by_hand(), seed=5).state_dict()
    before = table.dense()
    del state[key]
    with pytest.raises(ValueError, match=key):
        table.load_state_dict(state)
    state = {**train(by_hand(), seed=5).state_dict(), key: torch.zeros(3)}
    with pytest.raises(ValueError, match="clock" if key == "clock" else key):
        table.load_state_dict(state)
    assert torch.equal(table.dense(), before)


# --- bad input ---------------------------------------------------------------------------------------------


BAD_TABLES = [
    ({"num_samples": 0}, "num_samples must be"),
    ({"num_samples": 2.5}, "num_samples must be"),
    ({"num_classes": 1}, "num_classes must be"),
    ({"form": "ac3"}, "form must be"),
    ({"history": "full"}, "history must be"),
    ({"dtype": torch.int8}, "dtype must be"),
    ({"weight_decay": -1.0}, "weight_decay must be"),
    ({"lr_scale": math.nan}, "lr_scale must be"),
    ({"momentum": 1.0}, "momentum must be"),
    ({"window": 3}, "window must be"),
]


def test_sizes_may_be_numpy_integers():
    table = fastac.AlphaTable(np.int64(4), np.int32(3))
    assert type(table.num_samples) is int
    assert table.dense().shape == (4, 3)


@pytest.mark.parametrize(("change", "message"), BAD_TABLES)
def test_bad_table(change, message):
    with pytest.raises(ValueError, match=message):
        fastac.AlphaTable(**{"num_samples": 20, "num_classes": 5, **change})


def test_bad_optimizer():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    table = fastac.AlphaTable(20, 5)
    with pytest.raises(TypeError, match="optimizer is Adam"):
        table.follow(torch.optim.Adam(weights))
    with pytest.raises(ValueError, match=r"dampening = 0\.1"):
        table.follow(torch.optim.SGD(weights, lr=0.1, momentum=0.9, dampening=0.1))
    with pytest.raises(ValueError, match="maximize"):
        table.follow(torch.optim.SGD(weights, lr=0.1, maximize=True))
    with pytest.raises(ValueError, match=r"group must be in \[0, 1\)"):
        table.follow(torch.optim.SGD(weights, lr=0.1), group=1)
    assert table.lr is None


def test_a_table_that_nothing_drives():
    table = fastac.AlphaTable(20, 5)
    index = torch.arange(4)
    with pytest.raises(RuntimeError, match=r"table\.follow\(optimizer\), or set table\.lr"):
        fastac.functional.ac_cross_entropy(torch.randn(4, 5), index, index, table).backward()
    with pytest.raises(RuntimeError, match=r"set table\.lr"):
        table.step()
    table.follow(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    for attempt in (table.step, lambda: setattr(table, "lr", 0.2), lambda: setattr(table, "momentum", 0.2)):
        with pytest.raises(RuntimeError, match="optimizer that this table follows"):
            attempt()


def test_bad_rows():
    table = by_hand()
    for index, error in itertools.product([torch.tensor([20]), torch.tensor([-1])], [IndexError]):
        with pytest.raises(error, match=r"\[0, 20\)"):
            table.rows(index)
    with pytest.raises(TypeError, match="int64"):
        table.rows(torch.zeros(2))
