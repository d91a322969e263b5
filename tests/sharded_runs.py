"""Short trainings with the rows of α on one rank or on many, on the same global batches."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastac
from fastac.issues import alpha_statistics
from fastac.partition import shard_bounds
from fastac.report.offsets import centered_rows, top_offsets

K = 5


@dataclass
class Case:
    placement: str = "exchange"
    form: str = "ac1"
    dtype: torch.dtype = torch.float64
    wire: torch.dtype | None = None
    storage: str = "device"
    history: str = "exact"
    update: str = "step"
    prefetch: str = ""  # "": by the forward; "now": before the network; "ahead": a step earlier
    accumulate: int = 1
    scaler: str = ""  # "plain", "fused"
    num_samples: int = 30
    steps: int = 12
    momentum: float = 0.9
    weight_decay: float = 1e-2

    @property
    def compute_dtype(self):
        return torch.float64 if self.dtype == torch.float64 else torch.float32


CASES = {
    "exchange": Case(),
    "exchange ac2": Case(form="ac2"),
    "exchange float32": Case(dtype=torch.float32),
    "exchange prefetch": Case(prefetch="now"),
    "exchange ahead": Case(prefetch="ahead"),
    "exchange accumulation": Case(accumulate=3),
    "exchange accumulation ahead": Case(accumulate=3, prefetch="ahead"),
    "exchange forward": Case(update="forward", form="ac2"),
    "exchange forward ahead": Case(update="forward", prefetch="ahead"),
    "exchange folded": Case(history="folded", num_samples=29),
    "exchange scaler": Case(scaler="plain", dtype=torch.float32),
    "exchange scaler fused": Case(scaler="fused", dtype=torch.float32, prefetch="ahead"),
    "exchange host": Case(storage="host", prefetch="ahead"),
    "exchange fewer samples than ranks": Case(num_samples=3),
    "aligned": Case("aligned"),
    "aligned ac2": Case("aligned", form="ac2"),
    "aligned float32": Case("aligned", dtype=torch.float32, num_samples=31),
    "aligned accumulation": Case("aligned", accumulate=2),
    "aligned forward": Case("aligned", update="forward"),
    "aligned forward ac2": Case("aligned", update="forward", form="ac2", dtype=torch.float32),
    "aligned host": Case("aligned", storage="host", prefetch="ahead"),
    "aligned host forward": Case("aligned", storage="host", update="forward"),
    "aligned scaler fused": Case("aligned", scaler="fused", dtype=torch.float32),
}


def batches(case, world):
    """Steps of micro-batches of one part a rank. Ids repeat inside and across ranks; parts are of uneven sizes, and at
    times all ranks but one have none."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for step in range(case.steps):
        result.append([])
        for micro in range(case.accumulate):
            size = 3 if step == case.steps - 1 else 13  # a short last batch
            alone = (step + micro) % 5
            index = torch.randint(case.num_samples, (size,), generator=generator)
            parts = list(index.tensor_split(world))
            if alone in (2, 3) and world > 1:  # the first or the last rank has all rows
                has = 0 if alone == 2 else world - 1
                parts = [index if rank == has else index[:0] for rank in range(world)]
            if case.placement == "aligned":
                for rank in range(world):
                    first, stop = shard_bounds(case.num_samples, rank, world)
                    parts[rank] = first + parts[rank] % (stop - first)
            result[-1].append(parts)
    return result


def make_table(case, world, sharded, **options):
    kwargs = dict(
        form=case.form, dtype=case.dtype, history=case.history, weight_decay=case.weight_decay, **options
    )
    if not sharded:
        return fastac.AlphaTable(case.num_samples, K, **kwargs)
    kwargs |= dict(placement=case.placement, storage=case.storage, wire_dtype=case.wire)
    return fastac.ShardedAlphaTable(case.num_samples, K, **kwargs)


def train(rank, world, case, sharded=True, plan_world=None):
    """The batches planned for plan_world ranks, on world ranks that are as many or one."""
    plan = batches(case, plan_world or world)
    if world == 1:
        plan = [[[torch.cat(parts)] for parts in step] for step in plan]
    generator = torch.Generator().manual_seed(0)
    dtype, n = case.compute_dtype, case.num_samples
    inputs = torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(K, (n,), generator=generator)
    labels[n // 2] = -100
    torch.manual_seed(0)
    net = torch.nn.Linear(3, K, dtype=dtype)
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.3, momentum=case.momentum, fused=case.scaler == "fused"
    )
    table = make_table(case, world, sharded)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if case.scaler else None
    table.follow(optimizer, scaler=scaler)
    dynamics = fastac.TrainingDynamics(n, K)
    if sharded:
        dynamics = fastac.ShardedTrainingDynamics(n, K, placement=case.placement)
    constant = 0.1 * world  # the gradient into the loss with update="forward"; DDP averages over ranks
    criterion = fastac.AutoCleansingLoss(
        table,
        reduction="sum",
        label_smoothing=0.1,
        update=case.update,
        dynamics=dynamics,
        grad_output=constant,
    )
    flat = [parts[rank] for step in plan for parts in step]
    ahead = 2 if sharded and case.prefetch == "ahead" else 0
    for index in flat[:ahead]:
        table.prefetch(index)
    queue, grads = iter(flat[ahead:]), []
    for number, step in enumerate(plan):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - number / len(plan))
        for micro, parts in enumerate(step):
            index, total = parts[rank], sum(map(len, parts))
            if sharded and case.prefetch == "now":
                table.prefetch(index)
            last = micro == len(step) - 1
            with contextlib.nullcontext() if last or world == 1 else model.no_sync():
                logits = model(inputs[index])
                logits.retain_grad()
                loss = criterion(logits, labels[index], index)
                if ahead and (following := next(queue, None)) is not None:
                    table.prefetch(following)
                loss = loss * (constant if case.update == "forward" else world / total)
                if scaler is not None:
                    loss = scaler.scale(loss) * (torch.inf if number == 4 else 1)
                loss.backward()
            grads.append(logits.grad / world)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    result = {
        "alpha": table.dense(),
        "weight": net.weight.detach(),
        "grads": grads,
        "dynamics": torch.from_numpy(dynamics.frame().to_numpy(dtype="float64")),
        "dynamics state": dynamics.state_dict(),
        "dynamics copy": copy.deepcopy(dynamics).state_dict(),
        "steps": int(table.clock.steps),
    }
    if sharded:
        traffic = table.traffic
        sent = [traffic.counts, traffic.ids, traffic.rows, traffic.gradients]
        assert sum(sent) == traffic.total
        result |= {
            "traffic": sent,
            "own": table.dense(gather=False),
            "gathered": [table.gather(dst) for dst in range(world)],
            "gathered dynamics": None if (whole := dynamics.gather()) is None else whole.state_dict(),
            "dynamics sent": dynamics.sent_bytes,
            "rows": table.rows(own_ids(case, rank, world)),
        }
    return result


def own_ids(case, rank, world):
    if case.placement == "aligned":
        return torch.arange(*shard_bounds(case.num_samples, rank, world))
    return torch.arange(case.num_samples).flip(0)[rank:]  # another number of rows on each rank


def fixed_logits(rank, world, case, table, steps):
    """Steps `steps` with logits that are functions of the id alone: nothing but the table depends on the ranks."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(case.num_samples, K, generator=generator).to(case.compute_dtype)
    for number, step in enumerate(batches(case, 4)):
        if number not in steps:
            continue
        table.lr = 0.25 / (1 + number)
        for four in step:
            share = len(four) // world
            index = torch.cat(four[rank * share : (rank + 1) * share])
            leaf = logits[index].clone().requires_grad_()
            loss = fastac.functional.ac_cross_entropy(leaf, index % K, index, table, reduction="sum")
            (loss * (world / 16)).backward()
        table.step()
    return table


BITS = {
    "float32": Case(dtype=torch.float32, accumulate=2),
    "bfloat16 wire": Case(dtype=torch.float32, wire=torch.bfloat16),
    "bfloat16 wire ac2": Case(dtype=torch.float32, wire=torch.bfloat16, form="ac2", num_samples=23),
}


BFLOAT16 = Case(dtype=torch.bfloat16, wire=torch.bfloat16, momentum=0.0, steps=40)


def raised(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def errors(rank, world):
    """What each rank raises; the ranks go through this together."""
    results, options = {}, dict(momentum=0.9)
    aligned = fastac.ShardedAlphaTable(10, K, **options)
    exchange = fastac.ShardedAlphaTable(10, K, placement="exchange", **options)
    for table in (aligned, exchange):
        table.lr = 0.1
    index = torch.tensor([0, 9])
    logits = torch.zeros(2, K, requires_grad=True)
    loss = fastac.functional.ac_cross_entropy
    results["foreign"] = raised(loss, logits, index % K, index, aligned)
    results["foreign forward"] = raised(loss, logits, index % K, index, aligned, update="forward")
    results["foreign prefetch"] = raised(aligned.prefetch, index)
    results["foreign rows"] = raised(aligned.rows, index)
    results["outside"] = raised(loss, logits, index % K, index + 3, aligned)
    results["untouched"] = float(aligned.dense().abs().max())
    wrong = index + 3 if rank == 1 else index
    results["exchange outside"] = raised(loss, logits, index % K, wrong, exchange)
    results["exchange prefetch outside"] = raised(exchange.prefetch, wrong)
    exchange.prefetch(index)
    results["other ids"] = raised(loss, logits, index % K, index.flip(0), exchange)
    exchange.prefetch(index)
    results["other size"] = raised(loss, logits[:1], index[:1] % K, index[:1], exchange)
    loss(logits, index % K, index, exchange).backward()
    exchange.discard()
    exchange.step()
    results["discarded"] = float(exchange.dense().abs().max())
    graph = loss(logits, index % K, index, exchange)
    exchange.step()
    graph.backward()  # after a step that it did not wait for
    exchange.step()
    results["late"] = float(exchange.dense().abs().max())
    return results


def rows_leave(rank, world):
    """Whether a batch's rows left this rank at each point: they do as soon as no step can change them any more."""
    table = fastac.ShardedAlphaTable(world, K, placement="exchange")
    table.lr = 0.1
    index = torch.arange(world)  # one row for and from each rank
    sent = []

    def note():
        sent.append(table.traffic.rows // (4 * K * (world - 1)))

    def forward():
        logits = torch.zeros(world, K, requires_grad=True)
        return fastac.functional.ac_cross_entropy(logits, index % K, index, table)

    for _ in range(2):  # the first is free to go, the second waits behind it
        table.prefetch(index)
        note()
    loss = forward()  # of the first
    table.prefetch(index)
    note()
    loss.backward()
    note()
    table.step()  # now the second's rows are final
    note()
    table.discard()
    table.step()  # but a step came in between: once more
    note()
    forward()  # of the second: they are here already
    note()
    forward()  # the third in the same step: they leave when it asks
    note()
    forward()  # not prefetched
    note()
    return sent


def retained(rank, world, sharded):
    """Two backward passes of one graph, and graphs whose backward passes come in another order."""
    torch.manual_seed(5)
    case = Case()
    table = make_table(case, world, sharded)
    table.lr, table.momentum = 0.3, 0.9
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(case.num_samples, K, generator=generator, dtype=torch.float64)
    for _ in range(3):
        losses = []
        for size in (7, 4):
            index = torch.randint(case.num_samples, (size,), generator=generator)
            part = index.tensor_split(world)[rank]
            leaf = logits[part].clone().requires_grad_()
            losses.append(
                fastac.functional.ac_cross_entropy(leaf, part % K, part, table, reduction="sum") * world
            )
        losses[1].backward(retain_graph=True)
        losses[0].backward()
        losses[1].backward()
        table.step()
    return table.dense()


def ranked_rows(form="ac1"):
    """α of 37 samples by hand, and their labels."""
    torch.manual_seed(0)
    alpha, labels = torch.randn(37, 6), torch.randint(6, (37,))
    alpha[:, 0] = 0
    return (alpha if form == "ac1" else alpha[:, 1]), labels


def own_statistics(form):
    """What all ranks have of α, of which each has read its own rows alone."""
    alpha, labels = ranked_rows(form)
    table = fastac.ShardedAlphaTable(37, 6, form=form)
    table.alpha.copy_(alpha[table.held.start : table.held.stop])
    table.dense = None  # neither gathered nor copied
    arrays = alpha_statistics(table, labels).arrays()
    return {name: torch.from_numpy(values) for name, values in arrays.items() if name != "alpha_form"}


def shown_rows():
    """Samples of all ranks, one twice, in no order; two named classes each."""
    return np.array([36, 0, 17, 18, 5, 17]), np.array([[1, -1], [0, 2], [5, 5], [-1, 3], [4, 1], [2, 3]])


def own_offsets(placement):
    """What all ranks have of single rows of α, of which each has read its own alone."""
    alpha, _ = ranked_rows("ac1")
    table = fastac.ShardedAlphaTable(37, 6, placement=placement)
    table.alpha.copy_(alpha[table.held.start : table.held.stop])
    table.dense = table.gather = None
    ids, named = shown_rows()
    top = top_offsets(table, ids, named, num_samples=37, num_classes=6, count=4)
    rows = {"rows": centered_rows(table, ids, 37, 6), **vars(top)}
    return {name: torch.from_numpy(values) for name, values in rows.items()}


def run_all(rank, world, folder):
    """Everything that test_sharded asks of `world` ranks, in one start of the processes."""
    results = {
        "errors": errors(rank, world),
        "rows leave": rows_leave(rank, world),
        "retained": retained(rank, world, True),
        "offsets": {placement: own_offsets(placement) for placement in ("aligned", "exchange")},
        "statistics": {form: own_statistics(form) for form in ("ac1", "ac2")},
    }
    for name, case in CASES.items():
        results[name] = train(rank, world, case)
    if world == 4:
        results |= checkpoints(rank, folder)
    return results


def checkpoints(rank, folder):
    """Bits on 4 and 2 ranks; a state of 4 ranks that goes on on 2."""
    pair = dist.new_group([0, 1])
    table = fixed_logits(rank, 4, BFLOAT16, make_table(BFLOAT16, 4, True), range(40))
    results = {"bfloat16": table.dense(), "bfloat16 own": table.alpha}
    for name, case in BITS.items():
        table = fixed_logits(rank, 4, case, make_table(case, 4, True, momentum=0.9), range(case.steps))
        results[f"bits {name}"] = table.dense()
        table = fixed_logits(rank, 4, case, make_table(case, 4, True, momentum=0.9), range(5))
        torch.save(table.state_dict(), f"{folder}/{name} {rank}.pt")
        dist.barrier()
        if rank < 2:
            half = make_table(case, 2, True, momentum=0.9, process_group=pair)
            half.load_state_dict(load_states(folder, name))
            results[f"half {name}"] = fixed_logits(rank, 2, case, half, range(5, case.steps)).dense()
            whole = make_table(case, 2, True, momentum=0.9, process_group=pair)
            results[f"pair {name}"] = fixed_logits(rank, 2, case, whole, range(case.steps)).dense()
    return results


def load_states(folder, name):
    return [torch.load(f"{folder}/{name} {rank}.pt", weights_only=True) for rank in (2, 0, 3, 1)]


def worker(rank, world, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.save(run_all(rank, world, folder), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
