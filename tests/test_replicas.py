"""A table under data parallelism: copies on every rank that stay equal to one dense parameter."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dense import relative_error
from torch.nn.parallel import DistributedDataParallel

import fastac

N, K, STEPS = 30, 5, 25


def batches(world):
    """Global batches with repeats inside and across ranks; ranks get uneven parts, at times none."""
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        index = torch.randint(N, (2 if step % 5 == 4 else 9,), generator=generator)
        yield index, index.tensor_split(world) if step % 5 != 4 else [index, *[index[:0]] * (world - 1)]


def train(rank, world, form):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, K, dtype=torch.float64)
    inputs, labels = torch.randn(N, 3, dtype=torch.float64), torch.randint(K, (N,))
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    table = fastac.AlphaTable(N, K, form=form, dtype=torch.float64, weight_decay=1e-2)
    table.follow(optimizer)
    criterion = fastac.AutoCleansingLoss(table, reduction="sum")
    for whole, parts in batches(world):
        index = parts[rank]
        optimizer.zero_grad()
        # DDP averages over ranks; the loss is scaled so that the average is the global batch's mean.
        (criterion(model(inputs[index]), labels[index], index) * world / len(whole)).backward()
        optimizer.step()
    return table.dense(), net.weight.detach()


def worker(rank, world, store, folder):
    torch.set_num_threads(1)
    early = fastac.AlphaTable(N, K)
    early.lr = 0.1
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    results = {form: train(rank, world, form) for form in ("ac1", "ac2")}
    table = fastac.AlphaTable(N, K)
    table.lr = 0.1
    index = torch.arange(3)
    try:
        fastac.functional.ac_cross_entropy(
            torch.zeros(3, K, requires_grad=True), index, index, table, update="forward"
        )
        results["refused"] = ""
    except RuntimeError as error:
        results["refused"] = str(error)
    try:
        early.step()
        results["early"] = ""
    except RuntimeError as error:
        results["early"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.dist
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_end_with_the_alpha_of_one(world, tmp_path):
    mp.spawn(worker, (world, str(tmp_path / "store"), str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for form in ("ac1", "ac2"):
        alpha, weight = train(0, 1, form)
        for result in ranks:
            assert torch.equal(result[form][0], ranks[0][form][0])
            assert relative_error(result[form][0], alpha) < 1e-12
            assert relative_error(result[form][1], weight) < 1e-12
    assert "can't keep copies of a table equal across ranks" in ranks[0]["refused"]
    assert "made before torch.distributed was initialised" in ranks[0]["early"]
