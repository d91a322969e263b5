"""The planner's bytes beside those of real tables, clocks and dynamics, and of what ranks really send."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import fastac
from fastac.clock import StepClock
from fastac.costs import (
    Shape,
    clock_bytes,
    dense_cost,
    dynamics_bytes,
    dynamics_memory,
    exchange_sent,
    gather_sent,
    table_cost,
)
from fastac.links import Group, Machine, Traffic, all_gather, all_reduce, all_to_all, reduce_scatter
from fastac.partition import shard_bounds, shard_owner
from fastac.sharded_dynamics import ShardedTrainingDynamics


def allocated(thing):
    """Bytes of all tensors that an object holds, those of its clock and checks with them."""
    storages = {}
    for value in vars(thing).values():
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    nested = [v for v in vars(thing).values() if type(v).__name__ in ("StepClock", "RangeCheck")]
    return sum(storages.values()) + sum(allocated(value) for value in nested)


def make(shape):
    return fastac.AlphaTable(
        shape.rows,
        shape.num_classes,
        form=shape.form,
        history="folded" if shape.history == "folded" else "exact",
        dtype=getattr(torch, shape.dtype),
        momentum=0.0 if shape.history == "none" else 0.9,
        window=shape.window,
    )


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("history", ["exact", "folded", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "classes", "window"), [(37, 5, 64), (1, 2, 16), (1000, 11, 1000)])
def test_a_tables_memory(form, history, dtype, rows, classes, window):
    shape = Shape(rows, classes, form, history, dtype, window)
    table, planned = make(shape), shape.memory()
    assert planned["alpha"] == table.alpha.nbytes
    assert planned["momentum"] == (table.momentum_buffer.nbytes if history == "exact" else 0)
    assert planned["last"] == table.last.nbytes
    assert planned["clock"] == allocated(table.clock)
    assert sum(planned.values()) == allocated(table)


@pytest.mark.parametrize("window", [16, 17, 31, 32, 33, 1000, 1 << 12, (1 << 12) + 1, 1 << 18])
def test_a_clocks_memory(window):
    assert clock_bytes(window) == allocated(StepClock(torch.device("cpu"), window))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_dynamics_memory(rows):
    assert dynamics_bytes(rows) == allocated(fastac.TrainingDynamics(rows, 5))


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16])
def test_staged_gradients(form, logits):
    shape = Shape(30, 7, form, "exact", "float32", 16)
    table = make(shape)
    table.lr = 0.1
    index = torch.arange(12)
    values = torch.randn(12, 7, generator=torch.Generator().manual_seed(0)).to(logits).requires_grad_()
    fastac.AutoCleansingLoss(table)(values, index % 7, index).backward()
    (staged,) = table._staged
    planned = table_cost(shape, Group(1, 1), batch=12, steps_per_epoch=3).memory["staged"]
    assert planned == staged.ids.nbytes + staged.grad.nbytes + staged.scale.nbytes


@pytest.mark.parametrize(("history", "momentum"), [("exact", 0.9), ("none", 0.0)])
def test_a_dense_parameters_memory(history, momentum):
    alpha = torch.nn.Parameter(torch.zeros(30, 7))
    optimizer = torch.optim.SGD([alpha], lr=0.1, momentum=momentum)
    alpha[:3].sum().backward()
    optimizer.step()
    buffer = optimizer.state[alpha].get("momentum_buffer") if momentum else None
    cost = dense_cost(Shape(30, 7, "ac1", history, "float32"), Group(1, 1), 3, stage=0)
    assert cost.memory == {
        "alpha": alpha.nbytes,
        "gradient": alpha.grad.nbytes,
        "momentum": 0 if buffer is None else buffer.nbytes,
    }


# Rows of each rank's batch, by step.
BATCHES = {2: [(4, 4), (5, 2), (0, 3)], 3: [(2, 2, 2), (1, 0, 6)]}


def worker(rank, world, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    sent = []

    def counting(collective):
        def counted(whole, part, **kwargs):
            sent.append(part.nbytes * (world - 1))
            return collective(whole, part, **kwargs)

        return counted

    dist.all_gather = counting(dist.all_gather)
    dist.all_gather_into_tensor = counting(dist.all_gather_into_tensor)
    results = {}
    for form in ("ac1", "ac2"):
        table = fastac.AlphaTable(40, 6, form=form, momentum=0.9)
        table.lr = 0.1
        criterion = fastac.AutoCleansingLoss(table)
        for step, sizes in enumerate(BATCHES[world]):
            index = torch.arange(sizes[rank]) + 7 * rank
            if len(index):
                criterion(torch.zeros(len(index), 6, requires_grad=True), index % 6, index).backward()
            sent.clear()
            table.step()
            results[f"{form} {step}"] = sum(sent)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.dist
@pytest.mark.parametrize("world", [2, 3])
def test_what_copies_send(world, tmp_path):
    mp.spawn(worker, (world, str(tmp_path / "store"), str(tmp_path)), nprocs=world)
    for rank in range(world):
        counted = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for form in ("ac1", "ac2"):
            shape = Shape(40, 6, form, "exact", "float32")
            for step, sizes in enumerate(BATCHES[world]):
                assert counted[f"{form} {step}"] == gather_sent(shape, world, max(sizes)), (rank, form, step)


def test_copies_traffic_is_what_they_send():
    """Between nodes of one rank each, every byte of the gathers leaves the node."""
    shape = Shape(40, 6, "ac1", "exact", "float32")
    cost = table_cost(shape, Group(4, 1), batch=5, steps_per_epoch=2)
    assert cost.total().between == gather_sent(shape, 4, 5)
    assert cost.total().inside == 0
    cost = table_cost(shape, Group(4, 4), batch=5, steps_per_epoch=2)
    assert (cost.total().inside, cost.total().between) == (gather_sent(shape, 4, 5), 0)


@pytest.mark.parametrize("placement", ["replicated", "aligned", "exchange"])
def test_one_rank_sends_nothing(placement):
    cost = table_cost(Shape(40, 6, "ac1", "exact", "float32"), Group(1, 1), 5, 8, placement=placement)
    assert cost.total()[1:] == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_aligned_ranks_send_nothing(storage):
    cost = table_cost(
        Shape(40, 6, "ac1", "exact", "float32"), Group(8, 4), 5, 8, placement="aligned", storage=storage
    )
    assert cost.total()[3:] == (0, 0, 0)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_an_exchange_stays_within_its_bound(form, wire):
    """At most 2·B·K·(1 − 1/W) numbers, the ids, and how many there are."""
    batch, world, numbers = 64, 4, 10 if form == "ac1" else 1
    shape = Shape(1000, 10, form, "exact", "float32")
    cost = table_cost(shape, Group(world, 1), batch, 100, placement="exchange", wire=wire)
    remote = batch * (world - 1) // world
    size = 4 if wire == "float32" else 2
    assert cost.total().between == 2 * remote * numbers * size + remote * 8 + (world - 1) * 8
    assert cost.total().between == sum(exchange_sent(shape, world, wire, remote, remote).values())
    assert cost.traffic["forward"].between == cost.traffic["backward"].between == remote * numbers * size
    assert exchange_sent(shape, world, wire, asked=3, served=5) == {
        "counts": 24,
        "ids": 24,
        "rows": 5 * numbers * size,
        "gradients": 3 * numbers * size,
    }


def test_stored_on_the_host():
    shape = Shape(40, 6, "ac1", "exact", "bfloat16", window=64)
    device = table_cost(shape, Group(2, 2), 5, 8, placement="aligned", wire="bfloat16")
    host = table_cost(shape, Group(2, 2), 5, 8, placement="aligned", storage="host", wire="bfloat16")
    names = ("alpha", "momentum", "last", "clock")
    assert host.host_memory == {name: device.memory[name] for name in names}
    assert {**host.memory, **host.host_memory} == device.memory
    # Rows come as bfloat16, gradients go as float32, with two ids.
    assert host.total().host == 5 * (6 * 2 + 6 * 4 + 16)
    assert device.total()[1:3] == (0, 0)
    rows = device.total().device - host.total().device
    assert host.total().ram == 2 * (rows + 2 * host.total().host)


def test_sizes_are_exact_beyond_floats():
    rows = 9_999_999_999_999_937
    shape = Shape(rows, 999, "ac1", "exact", "float32")
    assert shape.memory()["alpha"] == rows * 999 * 4
    assert dynamics_bytes(rows) == rows * 65 + 4
    share = -(-rows * 999 * 4 // 4096)
    assert share * 4096 > rows * 999 * 4 > (share - 1) * 4096
    cost = dense_cost(shape, Group(4096, 8), 16, stage=1)
    assert cost.memory["momentum"] == share
    assert cost.total().between == 2 * 4095 * share


def test_the_device_bytes_of_a_step():
    """Forward reads α, momentum and `last`; the step reads and writes them; gradients and ids are written and read."""
    shape = Shape(100, 10, "ac1", "exact", "float32", window=64)
    row, batch = 2 * 10 * 4 + 4, 8
    clock = 2 * 32 * (8 + 8) + -(-100 * 4 // 16)  # a block and the tails; `last` of all rows each 16 steps
    cost = table_cost(shape, Group(1, 1), batch, steps_per_epoch=12)
    assert cost.total().device == 3 * batch * row + 2 * (batch * (10 * 4 + 8) + 4) + clock
    rewritten = table_cost(shape, Group(1, 1), batch, steps_per_epoch=16)
    assert rewritten.total().device - cost.total().device == -(-2 * 100 * row // 16) - 25
    folded = table_cost(replace(shape, history="folded", dtype="bfloat16"), Group(1, 1), batch, 12)
    assert cost.total().device - folded.total().device == 3 * batch * (80 - 20)


def test_rings():
    assert all_gather(Group(8, 8), 10) == Traffic(inside=70, messages=7)
    assert all_gather(Group(8, 4), 10) == Traffic(inside=70, between=70, messages=7)
    assert all_gather(Group(8, 1), 10) == Traffic(between=70, messages=7)
    assert reduce_scatter(Group(4, 4), 10) == Traffic(inside=9, messages=3)
    assert all_reduce(Group(4, 4), 10) == Traffic(inside=18, messages=6)
    assert all_reduce(Group(1, 1), 10) == Traffic()


def test_an_all_to_all():
    """8 ranks on 2 nodes send 10 B to each other one: 30 inside, and the 4 of a node 40 each to the other node."""
    assert all_to_all(Group(8, 4), 70) == Traffic(inside=30, between=160, messages=7)
    assert all_to_all(Group(8, 8), 70) == Traffic(inside=70, messages=7)
    assert all_to_all(Group(1, 1), 0) == Traffic()


def test_seconds():
    machine = Machine(
        device_memory=10,
        host_memory=10,
        device_bandwidth=100.0,
        ram_bandwidth=50.0,
        host_bandwidth=10.0,
        inside_bandwidth=20.0,
        between_bandwidth=5.0,
        latency=0.5,
    )
    traffic = Traffic(device=300, ram=100, host=20, inside=20, between=20, messages=2)
    assert machine.waiting(traffic) == 3.0 + 2.0 + 2.0
    assert machine.sending(traffic) == 4.0 + 1.0  # between nodes takes longest
    assert machine.sending(Traffic(device=300)) == 0.0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_shards(stage):
    """Parameters, gradients and optimizer states of 12 B a number in all, of which a stage shards the last ones."""
    whole = 1000 * 10 * 4
    cost = dense_cost(Shape(1000, 10, "ac1", "exact", "float32"), Group(4, 1), 8, stage)
    shares = {0: (1, 1, 1), 1: (1, 1, 4), 2: (1, 4, 4), 3: (4, 4, 4)}[stage]
    for name, share in zip(("alpha", "gradient", "momentum"), shares, strict=True):
        assert cost.memory[name] == whole // share
    assert cost.total().between == (3 if stage == 3 else 2) * 3 * whole // 4


OWNED = 37  # samples: shards of uneven sizes


def exchange_worker(rank, world, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    sent = []
    send = dist.all_to_all_single

    def counted(result, values, received=None, parts=None, **kwargs):
        own = len(values) // world if parts is None else parts[rank]
        sent.append(values[: len(values) - own].nbytes)
        return send(result, values, received, parts, **kwargs)

    dist.all_to_all_single = counted
    results = {}
    for form, wire, placement in SENT:
        options = {"placement": placement, "wire_dtype": getattr(torch, wire)}
        table = fastac.ShardedAlphaTable(OWNED, 6, form=form, momentum=0.9, window=64, **options)
        table.lr = 0.1
        dynamics = ShardedTrainingDynamics(OWNED, 6, placement=placement)
        criterion = fastac.AutoCleansingLoss(table, dynamics=dynamics)
        for step in range(2):
            index = drawn(step, world, placement)[rank]
            sent.clear()
            criterion(torch.zeros(len(index), 6, requires_grad=True), index % 6, index).backward()
            table.step()
            results[f"{form} {wire} {placement} {step}"] = sum(sent), table.traffic.total
        results[f"{form} {wire} {placement} memory"] = allocated(table), len(table.held)
        kept = sum(ids.nbytes + statistics.nbytes for ids, statistics, _ in dynamics._kept)
        results[f"{form} {wire} {placement} dynamics"] = allocated(dynamics), kept
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


SENT = [(form, wire, "exchange") for form in ("ac1", "ac2") for wire in ("float32", "bfloat16")]
SENT += [("ac1", "float32", "aligned")]


def drawn(step, world, placement):
    """Each rank's ids, with repeats inside and across ranks."""
    generator = torch.Generator().manual_seed(step)
    whole = [torch.randint(OWNED, (9 + rank,), generator=generator) for rank in range(world)]
    if placement == "aligned":
        bounds = [shard_bounds(OWNED, rank, world) for rank in range(world)]
        whole = [first + index % (stop - first) for index, (first, stop) in zip(whole, bounds, strict=True)]
    return whole


@pytest.mark.dist
@pytest.mark.parametrize("world", [2, 4])
def test_what_a_sharded_table_sends_and_keeps(world, tmp_path):
    mp.spawn(exchange_worker, (world, str(tmp_path / "store"), str(tmp_path)), nprocs=world)
    for rank in range(world):
        counted = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for form, wire, placement in SENT:
            total = 0
            for step in range(2):
                owners = [shard_owner(index, OWNED, world) for index in drawn(step, world, placement)]
                asked = int((owners[rank] != rank).sum())
                served = sum(int((owner == rank).sum()) for r, owner in enumerate(owners) if r != rank)
                shape = Shape(OWNED, 6, form, "exact", "float32", 64)
                planned = 0
                if placement == "exchange":
                    planned = sum(exchange_sent(shape, world, wire, asked, served).values())
                    assert asked > 0
                total += planned
                assert counted[f"{form} {wire} {placement} {step}"] == (planned, total)
            bytes_kept, rows = counted[f"{form} {wire} {placement} memory"]
            cost = table_cost(replace(shape, rows=rows), Group(world, 1), 9, 2, placement=placement)
            kept = [name for name in cost.memory if name not in BUFFERS]
            assert sum(cost.memory[name] for name in kept) == bytes_kept
            visits = sum(len(drawn(step, world, placement)[rank]) for step in range(2))
            planned = dynamics_memory(rows * world, world, placement)
            assert counted[f"{form} {wire} {placement} dynamics"] == (
                planned["dynamics"],
                planned.get("visits", 0) * visits // rows,
            )


BUFFERS = ("staged", "merged", "requests", "exchanged")


@pytest.mark.parametrize("placement", ["aligned", "exchange"])
@pytest.mark.parametrize("storage", ["device", "host"])
def test_a_sharded_tables_memory(placement, storage):
    table = fastac.ShardedAlphaTable(37, 6, placement=placement, storage=storage, momentum=0.9, window=64)
    shape = Shape(37, 6, "ac1", "exact", "float32", 64)
    cost = table_cost(shape, Group(1, 1), 9, 2, placement=placement, storage=storage)
    kept = sum(n for name, n in cost.memory.items() if name not in BUFFERS)
    assert kept + sum(cost.host_memory.values()) == allocated(table)
