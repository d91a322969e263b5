"""Rows of α owned by ranks: the results of one rank, the bytes that travel, states that move to other ranks."""

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import training_runs
from dense import relative_error
from sharded_runs import (
    BFLOAT16,
    BITS,
    CASES,
    Case,
    K,
    batches,
    fixed_logits,
    load_states,
    make_table,
    ranked_rows,
    retained,
    shown_rows,
    train,
    worker,
)

import fastac
from fastac.data import EpochSampler
from fastac.exchange import Exchange
from fastac.issues import alpha_statistics
from fastac.partition import shard_bounds, shard_owner
from fastac.report.offsets import top_offsets

WORLDS = (2, 4)


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory):
    """(world, the ranks' results, their folder): one start of the processes for all tests of as many."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (world, str(folder)), nprocs=world)
    return world, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)], folder


def tolerance(case):
    return 1e-12 if case.dtype == torch.float64 else 1e-6


def assert_same_run(case, results, truth):
    """results: a rank's each."""
    bound = tolerance(case)
    assert float(truth["alpha"].abs().max()) > 0.05
    for result in results:
        assert torch.equal(result["alpha"], results[0]["alpha"])
        assert result["steps"] == truth["steps"]
        assert relative_error(result["alpha"], truth["alpha"]) < bound
        assert relative_error(result["weight"], truth["weight"]) < bound
    for step, whole in enumerate(truth["grads"]):
        parts = torch.cat([result["grads"][step] for result in results])
        if not whole.isfinite().all():
            assert not parts.isfinite().all()
        else:
            assert relative_error(parts, whole) < 10 * bound
    assert_same_dynamics(case, results, truth)


def assert_same_dynamics(case, results, truth):
    """All ranks see all samples' statistics; the states that they save, put together, are those of one rank."""
    for result in results:
        torch.testing.assert_close(
            result["dynamics"], truth["dynamics"], rtol=1e-5, atol=1e-5, equal_nan=True
        )
        assert torch.equal(result["dynamics"][:, 1], truth["dynamics"][:, 1])
        assert training_runs.differences(result["dynamics state"], result["dynamics copy"]) == []
    whole = fastac.TrainingDynamics(case.num_samples, K)
    whole.load_state_dict([result["dynamics state"] for result in results])
    for name, value in truth["dynamics state"].items():
        if torch.is_tensor(value):
            torch.testing.assert_close(getattr(whole, name), value, rtol=1e-5, atol=1e-5)
    assert sum(len(result["dynamics state"]["count"]) for result in results) == case.num_samples


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_ranks_give_what_one_gives(ranks, name):
    world, results, _ = ranks
    case = CASES[name]
    truth = train(0, 1, case, sharded=False, plan_world=world)
    results = [result[name] for result in results]
    assert_same_run(case, results, truth)
    assert torch.equal(torch.cat([result["own"] for result in results]), results[0]["alpha"])
    for rank, result in enumerate(results):
        first, stop = shard_bounds(case.num_samples, rank, world)
        asked = torch.arange(first, stop)
        if case.placement == "exchange":
            asked = torch.arange(case.num_samples).flip(0)[rank:]
        assert torch.equal(result["rows"], result["alpha"][asked])
        for dst, gathered in enumerate(result["gathered"]):
            assert (gathered is None) == (dst != rank)
            assert gathered is None or torch.equal(gathered, result["alpha"])
        assert (result["gathered dynamics"] is None) == (rank != 0)
    gathered = fastac.TrainingDynamics(case.num_samples, K)
    gathered.load_state_dict(results[0]["gathered dynamics"])
    frame = torch.from_numpy(gathered.frame().to_numpy(dtype="float64"))
    torch.testing.assert_close(frame, results[0]["dynamics"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_one_rank(name):
    case = CASES[name]
    truth = train(0, 1, case, sharded=False)
    assert_same_run(case, [result := train(0, 1, case)], truth)
    assert result["traffic"] == [0, 0, 0, 0]


@pytest.mark.dist
def test_skipped_steps_are_skipped_on_all_ranks(ranks):
    _, results, _ = ranks
    for name, case in CASES.items():
        if case.scaler:
            assert [result[name]["steps"] for result in results] == [case.steps - 1] * len(results)


@pytest.mark.dist
def test_graphs_are_used_twice_and_in_another_order(ranks):
    _, results, _ = ranks
    truth = retained(0, 1, False)
    for result in results:
        assert relative_error(result["retained"], truth) < 1e-12


@pytest.mark.dist
def test_rows_leave_as_soon_as_they_are_final(ranks):
    _, results, _ = ranks
    for result in results:
        assert result["rows leave"] == [1, 1, 1, 1, 2, 3, 3, 4, 5]


@pytest.mark.dist
def test_traffic(ranks):
    """Aligned: nothing. Exchange: the ids that another rank owns, their rows and gradients once each."""
    world, results, _ = ranks
    for name, case in CASES.items():
        size = case.compute_dtype.itemsize * (K if case.form == "ac1" else 1)
        for rank, result in enumerate(results):
            if case.placement == "aligned":
                assert result[name]["traffic"] == [0, 0, 0, 0]
                assert result[name]["dynamics sent"] == 0
                continue
            asked = answered = number = 0
            for step in batches(case, world):
                for parts in step:
                    owners = [shard_owner(part, case.num_samples, world) for part in parts]
                    asked += int((owners[rank] != rank).sum())
                    answered += sum(
                        int((owner == rank).sum()) for other, owner in enumerate(owners) if other != rank
                    )
                    number += 1
            expected = [8 * (world - 1) * number, 8 * asked, size * answered, size * asked]
            assert result[name]["traffic"] == expected, (name, rank)
            # A visit: id, number of the call, five statistics; none of the sample whose target is ignored.
            ignored = case.num_samples // 2
            visits = sum(
                int((part != ignored)[shard_owner(part, case.num_samples, world) != rank].sum())
                for step in batches(case, world)
                for part in (parts[rank] for parts in step)
            )
            if not case.scaler:  # whose step of infinite losses has no visit
                assert result[name]["dynamics sent"] == 36 * visits


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [4], indirect=True)
@pytest.mark.parametrize("name", BITS)
def test_bits_do_not_depend_on_the_number_of_ranks_and_states_move_to_fewer(ranks, name):
    _, results, folder = ranks
    case = BITS[name]
    one = fixed_logits(0, 1, case, make_table(case, 1, True, momentum=0.9), range(case.steps)).dense()
    assert float(one.abs().max()) > 0.05
    for rank, result in enumerate(results):
        assert torch.equal(result[f"bits {name}"], one)
        if rank < 2:
            assert torch.equal(result[f"pair {name}"], one)
            assert torch.equal(result[f"half {name}"], one)
    loaded = make_table(case, 1, True)
    loaded.load_state_dict(load_states(folder, name))
    loaded.momentum = 0.9
    assert torch.equal(fixed_logits(0, 1, case, loaded, range(5, case.steps)).dense(), one)
    exact = fixed_logits(0, 1, case, make_table(case, 1, False, momentum=0.9), range(case.steps)).dense()
    error = relative_error(one, exact)
    assert (1e-5 < error < 1e-2) if case.wire == torch.bfloat16 else error < 1e-6


@pytest.mark.dist
def test_errors_on_several_ranks(ranks):
    world, results, _ = ranks
    for rank, result in enumerate(results):
        found, last = result["errors"], world - 1
        first, stop = shard_bounds(10, rank, world)
        foreign = 9 if rank == 0 else 0
        message = f"IndexError: index {foreign} is not of rank {rank}, which owns [{first}, {stop})"
        for name in ("foreign", "foreign forward", "foreign prefetch", "foreign rows"):
            assert found[name].startswith(message), found[name]
        if rank == last:  # 3 is another rank's too, and comes first
            assert found["outside"].startswith("IndexError: index 3 is not of rank")
        assert found["outside"].startswith("IndexError: index ")
        assert found["untouched"] == 0
        for name in ("exchange outside", "exchange prefetch outside"):
            if rank == 1:
                assert found[name] == "IndexError: index 12 is outside [0, 10)"
            else:
                assert found[name].startswith("RuntimeError: rank 1 was given an index outside [0, 10)")
        assert "not the one that prefetch was called for next" in found["other ids"]
        assert "it has 1 rows, the other one 2" in found["other size"]
        assert found["discarded"] == 0
        assert found["late"] > 0.01


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [4], indirect=True)
def test_a_bfloat16_table(ranks):
    """Its rounding is random, so it is compared with another such table and an exact one."""
    _, results, _ = ranks
    plain = fixed_logits(0, 1, BFLOAT16, make_table(BFLOAT16, 1, False), range(40)).dense()
    exact = replace(BFLOAT16, dtype=torch.float64, wire=None)
    truth = fixed_logits(0, 1, exact, make_table(exact, 1, False), range(40)).dense()
    own = [result["bfloat16 own"] for result in results]
    assert [part.dtype for part in own] == [torch.bfloat16] * 4
    assert float(truth.abs().max()) > 0.02
    for result in results:
        dense = result["bfloat16"]
        assert dense.dtype == torch.float32
        assert 0 < relative_error(dense, plain) < 0.04
        assert 0 < relative_error(dense, truth) < 0.04
        assert abs(float((dense - truth).mean() / truth.abs().max())) < 1e-3  # no bias


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("num_samples", [1, 2, 5, 64, 1000, 10**10])
def test_partition(num_samples, world):
    bounds = [shard_bounds(num_samples, rank, world) for rank in range(world)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == num_samples
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    sizes = [stop - first for first, stop in bounds]
    assert max(sizes) - min(sizes) <= 1
    for rank, (first, stop) in enumerate(bounds):
        if first < stop:
            ends = torch.tensor([first, (first + stop) // 2, stop - 1])
            assert shard_owner(ends, num_samples, world).tolist() == [rank] * 3


def saved(steps=3, **changes):
    table = fastac.ShardedAlphaTable(10, K, momentum=0.9)
    table.lr = 0.1
    for _ in range(steps):
        index = torch.arange(10)
        loss = fastac.functional.ac_cross_entropy(
            torch.zeros(10, K, requires_grad=True), index % K, index, table
        )
        loss.backward()
        table.step()
    return table.state_dict() | changes


def cut(state, first, stop):
    rows = {key: state[key][first:stop] for key in ("alpha", "momentum_buffer", "last")}
    return state | rows | {"rows": (first, stop)}


def test_states():
    state = saved()
    assert state["rows"] == (0, 10)
    plain = fastac.AlphaTable(10, K, momentum=0.9)
    plain.load_state_dict(state)
    table = fastac.ShardedAlphaTable(10, K)
    for form in (
        state,
        plain.state_dict(),
        [cut(state, 4, 10), cut(state, 0, 4)],
        [cut(state, 0, 7), state],
    ):
        table.load_state_dict(saved(steps=1))
        assert not torch.equal(table.dense(), plain.dense())
        table.load_state_dict(form)
        assert torch.equal(table.dense(), plain.dense())
        assert torch.equal(table.momentum_buffer, plain.momentum_buffer)
    duplicate = copy.deepcopy(table)
    assert torch.equal(duplicate.dense(), plain.dense())
    assert duplicate.alpha.data_ptr() != table.alpha.data_ptr()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: [], "got none"),
        (lambda: [cut(saved(), 0, 4), cut(saved(), 5, 10)], r"lack 4 of the rows \[0, 10\)"),
        (lambda: cut(saved(), 0, 9), "lack 9 of the rows"),
        (lambda: saved(rows=(0, 11)), r"rows in the state must be .* got \(0, 11\)"),
        (lambda: saved(rows=3), "rows in the state must be .* got 3"),
        (lambda: saved(rows=(0, 4)), r"alpha in the state is not .* shape \(4, 5\)"),
        (lambda: saved(form="ac2"), "its form is 'ac2'"),
        (lambda: [cut(saved(), 0, 4), cut(saved(2), 4, 10)], "clocks differ, at steps 3 and 2"),
        (
            lambda: [cut(saved(), 0, 4), cut(saved(), 4, 10) | {"momentum_buffer": None}],
            "in all of the states",
        ),
        (lambda: [saved(), "x"], "state must be a dict or a list of dicts, got str"),
    ],
)
def test_states_that_are_refused(state, message):
    table = fastac.ShardedAlphaTable(10, K)
    table.load_state_dict(saved(steps=2))
    before = copy.deepcopy(table.state_dict())
    with pytest.raises(ValueError, match=message):
        table.load_state_dict(state())
    after = table.state_dict()
    assert torch.equal(after["alpha"], before["alpha"])
    assert after["clock"]["steps"] == before["clock"]["steps"]


def test_bad_options():
    for options, message in (
        (dict(placement="any"), r"placement must be one of \('aligned', 'exchange'\), got 'any'"),
        (dict(storage="disk"), r"storage must be one of \('device', 'host'\), got 'disk'"),
        (dict(wire_dtype=torch.float16), r"wire_dtype must be torch.float32 or torch.bfloat16, got"),
        (dict(wire_dtype=torch.float32, dtype=torch.float64), "wire_dtype must be torch.float64"),
        (dict(form="ac3"), "form must be"),
    ):
        with pytest.raises(ValueError, match=message):
            fastac.ShardedAlphaTable(10, K, **options)
    for placement in ("aligned", "exchange"):
        table = fastac.ShardedAlphaTable(10, K, placement=placement)
        for index in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)):
            with pytest.raises(TypeError, match="index must be a vector of int64 or int32"):
                table.prefetch(index)
        with pytest.raises(IndexError, match=r"index -1 is outside \[0, 10\)"):
            table.rows(torch.tensor([3, -1]))
        with pytest.raises(TypeError, match="ShardedAlphaTable is not pickled"):
            copy.copy(table)


def test_label_issues():
    pytest.importorskip("pandas")
    case = Case(num_samples=20)
    table = fixed_logits(0, 1, case, make_table(case, 1, True), range(case.steps))
    labels = torch.arange(20) % K
    expected = fastac.find_label_issues(table.dense(), labels)
    assert fastac.find_label_issues(table, labels).equals(expected)


def test_rows_of_ignored_targets_are_not_written():
    for placement in ("aligned", "exchange"):
        table = fastac.ShardedAlphaTable(4, K, placement=placement)
        table.lr = 0.1
        index, logits = torch.arange(3), torch.zeros(3, K, requires_grad=True)
        target = torch.tensor([1, -100, 2])
        fastac.functional.ac_cross_entropy(logits, target, index, table).backward()
        table.step()
        assert table.last.tolist() == [1, 0, 1, 0]


def test_int32_ids():
    index = torch.tensor([3, 1, 3])
    for placement in ("aligned", "exchange"):
        results = []
        for ids in (index, index.to(torch.int32)):
            table = fastac.ShardedAlphaTable(10, K, placement=placement)
            table.lr = 0.1
            table.prefetch(ids)
            logits = torch.zeros(3, K, requires_grad=True)
            fastac.functional.ac_cross_entropy(logits, index, ids, table).backward()
            table.step()
            results.append(table.dense())
        assert torch.equal(results[0], results[1])
        assert results[0].abs().max() > 0


def test_ids_that_were_moved_between_forward_and_backward_are_refused():
    table = fastac.ShardedAlphaTable(10, K, placement="exchange")
    table.lr = 0.1
    logits, index = torch.zeros(3, K, requires_grad=True), torch.arange(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        loss = fastac.functional.ac_cross_entropy(logits, index, index, table)
    with pytest.raises(RuntimeError, match="not those that the forward pass made"):
        loss.backward()


def test_requests_live_as_long_as_their_graphs():
    table = fastac.ShardedAlphaTable(10, K, placement="exchange")
    table.lr = 0.1
    index = torch.arange(3)
    for _ in range(20):
        logits = torch.zeros(3, K, requires_grad=True)
        loss = fastac.functional.ac_cross_entropy(logits, index, index, table)
        del loss
    assert len(table._requests) <= 2


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world"), [(64, 4, 4), (67, 4, 4), (37, 3, 2), (21, 5, 3)]
)
def test_an_aligned_sampler_draws_what_its_rank_owns(num_samples, batch_size, world, drop_last):
    options = dict(batch_size=batch_size, world_size=world, drop_last=drop_last)
    samplers = [EpochSampler(num_samples, rank=rank, aligned=True, **options) for rank in range(world)]
    sizes = [size for _, size in EpochSampler(num_samples, **options).batches(0)]
    orders = []
    for epoch in (0, 1):
        drawn = [list(sampler.batches(epoch)) for sampler in samplers]
        seen = np.concatenate([ids for part in drawn for ids, _ in part])
        assert len(set(seen.tolist())) == len(seen) == (sum(sizes) if drop_last else num_samples)
        for step, size in enumerate(sizes):
            assert [part[step][1] for part in drawn] == [size] * world
            assert sum(len(part[step][0]) for part in drawn) == size
        for rank, part in enumerate(drawn):
            assert len(part) == len(sizes)
            ids = torch.from_numpy(np.concatenate([ids for ids, _ in part]))
            assert (shard_owner(ids, num_samples, world) == rank).all()
            resumed = list(samplers[rank].batches(epoch, start=1))
            assert all(np.array_equal(a[0], b[0]) for a, b in zip(resumed, part[1:], strict=True))
        orders.append(seen.tolist())
    assert orders[0] != orders[1]
    plain = EpochSampler(num_samples, rank=world - 1, aligned=True, shuffle=False, **options)
    first = shard_bounds(num_samples, world - 1, world)[0]
    assert next(iter(plain.batches(0)))[0][:2].tolist() == [first, first + 1]


def test_aligned_ranks_shuffle_differently():
    """Shards of one size, whose orders are not one another's copies."""
    parts = [
        np.concatenate(
            [ids for ids, _ in EpochSampler(64, 4, rank=rank, world_size=2, aligned=True).batches(0)]
        )
        for rank in (0, 1)
    ]
    assert not np.array_equal(parts[0] + 32, parts[1])


@pytest.mark.parametrize("placement", ["aligned", "exchange"])
def test_compiled(placement):
    """The loss traces to one operator, which fetches when it runs."""
    results = []
    for compiled in (False, True):
        table = fastac.ShardedAlphaTable(10, K, placement=placement, momentum=0.9)
        table.lr = 0.1
        criterion = fastac.AutoCleansingLoss(table)
        if compiled:
            criterion = torch.compile(criterion, backend="aot_eager", fullgraph=True)
        for step in range(3):
            index = torch.tensor([step, 4, 4])
            logits = torch.linspace(-1, 1, 3 * K).view(3, K).requires_grad_()
            criterion(logits, index % K, index).backward()
            table.step()
        results.append(table.dense())
    assert float(results[0].abs().max()) > 0.01
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kinds", "device"), [(("cpu", "cuda"), "cpu"), (("cuda",), "cuda")])
def test_counts_go_past_the_gpu_where_the_group_has_gloo(kinds, device):
    """The host waits for them; on the device they would be behind all that is queued there."""
    group = SimpleNamespace(_device_types=[torch.device(kind) for kind in kinds])
    exchange = Exchange(group, 0, 2, 10, torch.device("cuda"))
    sent = []
    exchange._send = lambda kind, values, *sizes: (
        sent.append((kind, values))
        or SimpleNamespace(
            wait=lambda: torch.tensor([-1, 0])  # rank 0 had an index outside, so nothing more is sent
        )
    )
    if device == "cuda":
        assert exchange._counting.type == "cuda"
        return
    with pytest.raises(RuntimeError, match="rank 0 was given an index outside"):
        exchange.request(torch.tensor([1, 9]))
    ((kind, counts),) = sent
    assert kind == "counts"
    assert counts.device.type == "cpu"
    assert counts.tolist() == [1, 1]


def test_dynamics_of_other_ranks_samples():
    dynamics = fastac.ShardedTrainingDynamics(10, K)
    dynamics.held = range(0, 5)
    with pytest.raises(IndexError, match=r"index 7 is not of rank 0, which owns \[0, 5\)"):
        dynamics.record(torch.tensor([-1, 3, 7]), torch.zeros(3, 5))
    assert int(dynamics.count.sum()) == 0
    with pytest.raises(ValueError, match="placement must be one of"):
        fastac.ShardedTrainingDynamics(10, K, placement="any")


@pytest.mark.dist
@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_labels_are_ranked_by_rows_that_stay_on_their_ranks(ranks, form):
    _, results, _ = ranks
    expected = alpha_statistics(*ranked_rows(form)).arrays()
    for result in results:
        for name, values in result["statistics"][form].items():
            torch.testing.assert_close(
                values, torch.from_numpy(expected[name]), rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.dist
@pytest.mark.parametrize("placement", ["aligned", "exchange"])
def test_single_rows_are_shown_of_a_table_that_is_never_gathered(ranks, placement):
    _, results, _ = ranks
    alpha, (ids, named) = ranked_rows("ac1")[0], shown_rows()
    rows = alpha.double().numpy()[ids]
    rows -= rows.mean(axis=1, keepdims=True)
    top = top_offsets(alpha, ids, named, num_samples=37, num_classes=6, count=4)
    for result in results:
        found = {name: values.numpy() for name, values in result["offsets"][placement].items()}
        np.testing.assert_array_equal(found.pop("rows"), rows)
        for name, values in found.items():
            assert values.dtype == getattr(top, name).dtype
            np.testing.assert_array_equal(values, getattr(top, name))
