"""Which α table a run should use: every way to keep it, what each needs and exposes, and the choice with its reasons.

Exposed is the time that a step takes longer. α's kernels and its copies between device and host are never hidden,
because the network's kernels wait for them; what ranks send is hidden as far as the network's forward or backward
lasts, and not at all in the optimizer's step. In the backward the network's own all-reduce goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from fastac.costs import Cost, Shape, dense_cost, dynamics_bytes, dynamics_memory, table_cost
from fastac.links import Group, Machine, all_reduce, ceil_div

__all__ = [
    "DENSE",
    "DYNAMICS",
    "Job",
    "Mode",
    "Outcome",
    "Plan",
    "PlanError",
    "advise",
    "duration",
    "gigabytes",
]

DYNAMICS = ("sharded", "whole", "none")
DENSE = ("dense, DDP", "dense, ZeRO 1", "dense, ZeRO 2", "dense, ZeRO 3")
_LEAST = {
    "num_samples": 1,
    "num_classes": 2,
    "ranks": 1,
    "ranks_per_node": 1,
    "window": 16,
    "epochs": 0,
    "parameters": 0,
    "reserved": 0,
}
_MOST_STEPS = 2**31 - 1  # `last` is int32
_MOST_SAMPLES = 2**63 - 1  # ids are int64
_MOST_RANKS = 1 << 24  # where the search for enough ranks ends


class PlanError(ValueError):
    """A run that can't be: what is in its way, and what would do."""


class Mode(NamedTuple):
    """A way to keep α. placement: "replicated", "aligned", "exchange". storage: "device", "host". history: "exact",
    "folded", or "none" without momentum. dtype: "float32", "bfloat16"."""

    placement: str
    storage: str
    history: str
    dtype: str

    def __str__(self) -> str:
        return ", ".join(self)


@dataclass(frozen=True)
class Job:
    """A run. batch: of all ranks together. step_time: seconds of the network's step without α; forward_share: of it,
    the forward's. parameters: of the network, in float32 under DDP, 0 if unknown. reserved: bytes of each device that
    are not to be planned with: activations, the runtime. sampling: "owned", a rank may be bound to its own samples,
    or "any". epochs: 0 if unknown. placement, storage, history, dtype: "auto", or the only one to consider.
    tolerance: share of step_time that α may take before a less exact form is considered for its speed. dynamics:
    "sharded", each rank keeps its own samples' (ShardedTrainingDynamics); "whole", every rank all (TrainingDynamics);
    "none"."""

    num_samples: int
    num_classes: int
    ranks: int
    ranks_per_node: int
    batch: int
    step_time: float
    form: str = "ac1"
    sampling: str = "owned"
    placement: str = "auto"
    storage: str = "auto"
    history: str = "auto"
    dtype: str = "auto"
    wire: str = "float32"
    dynamics: str = "sharded"
    window: int = 1 << 18
    epochs: int = 0
    parameters: int = 0
    reserved: int = 0
    forward_share: float = 1 / 3
    tolerance: float = 0.005

    @property
    def group(self) -> Group:
        return Group(self.ranks, min(self.ranks, self.ranks_per_node))

    @property
    def batch_per_rank(self) -> int:
        """Of the rank with the most."""
        return ceil_div(self.batch, self.ranks)

    @property
    def steps_per_epoch(self) -> int:
        return ceil_div(self.num_samples, self.batch)

    @property
    def network_bytes(self) -> int:
        """Parameters, gradients and, with momentum, their buffers."""
        return self.parameters * 4 * (2 if self.history == "none" else 3)


@dataclass(frozen=True)
class Outcome:
    """What a mode needs. name: the mode, or the dense parameter that it is compared with. exposed: seconds a step.
    device, host: bytes of a rank that it takes, with the network's and the training dynamics' on the device; spare:
    bytes left on (device, host), negative where it does not fit."""

    name: str
    mode: Mode | None
    cost: Cost
    exposed: float
    device: int
    host: int
    spare: tuple[int, int]

    @property
    def fits(self) -> bool:
        return min(self.spare) >= 0

    @property
    def short(self) -> int:
        """Bytes that are missing."""
        return sum(max(0, -left) for left in self.spare)


@dataclass(frozen=True)
class Plan:
    """outcomes: of every mode considered. dense: of α as a dense parameter. advised: one of outcomes. reasons: a
    sentence each for placement, storage, history and dtype."""

    job: Job
    machine: Machine
    outcomes: list[Outcome]
    dense: list[Outcome]
    advised: Outcome
    reasons: dict[str, str]


def advise(job: Job, machine: Machine) -> Plan:
    """The plan of a run. Raises PlanError where none is possible, and where a value is missing or out of range."""
    _check(job, machine)
    outcomes = _outcomes(job, machine)
    fitting = [outcome for outcome in outcomes if outcome.fits]
    if not fitting:
        raise PlanError(_does_not_fit(job, machine, outcomes))
    advised = _choose(job, fitting)
    dense = [_dense(job, machine, stage) for stage in range(len(DENSE) if job.ranks > 1 else 1)]
    return Plan(job, machine, outcomes, dense, advised, _reasons(job, machine, outcomes, advised))


def _check(job: Job, machine: Machine) -> None:
    for name, least in _LEAST.items():
        if getattr(job, name) < least:
            raise PlanError(f"{name} is {getattr(job, name)}; it should be at least {least}")
    if job.num_samples > _MOST_SAMPLES:
        raise PlanError(
            f"num_samples is {job.num_samples}; it should be at most {_MOST_SAMPLES}: ids are int64"
        )
    if job.dynamics not in DYNAMICS:
        raise PlanError(f"dynamics is {job.dynamics!r}; it should be one of {DYNAMICS}")
    if job.step_time <= 0:
        raise PlanError(f"step_time is {job.step_time}; it should be positive")
    if not 0 < job.forward_share < 1:
        raise PlanError(f"forward_share is {job.forward_share}; it should be between 0 and 1")
    if job.batch < job.ranks:
        raise PlanError(
            f"batch is {job.batch}, fewer than {job.ranks} ranks: each rank needs a sample at every step. Use a batch "
            f"of at least {job.ranks}, or at most {job.batch} ranks"
        )
    if job.num_samples < job.batch:
        raise PlanError(f"num_samples is {job.num_samples}, fewer than one batch of {job.batch}")
    if job.ranks > job.ranks_per_node and job.ranks % job.ranks_per_node:
        raise PlanError(
            f"ranks is {job.ranks}; it should be a multiple of ranks_per_node, which is {job.ranks_per_node}"
        )
    if job.epochs * job.steps_per_epoch > _MOST_STEPS:
        raise PlanError(
            f"epochs is {job.epochs}; with {job.steps_per_epoch} steps each it should be at most "
            f"{_MOST_STEPS // job.steps_per_epoch}: a row's last step is int32"
        )
    if (job.num_samples + 1) * job.ranks > _MOST_SAMPLES:
        raise PlanError(
            f"num_samples times ranks is {job.num_samples * job.ranks}; it should be below 2^63: owners of ids are "
            "computed in int64"
        )
    if job.sampling == "any" and job.placement == "aligned":
        raise PlanError("placement is 'aligned', which binds each rank to its own samples; sampling is 'any'")
    if job.placement == "replicated" and job.storage == "host":
        raise PlanError("storage is 'host'; placement 'replicated' keeps its copies on the devices")
    _check_links(job, machine)


def _check_links(job: Job, machine: Machine) -> None:
    group = job.group
    needed = {
        "device_bandwidth": "α is read and written there",
        "inside_bandwidth": f"{group.ranks_per_node} ranks share a node" if group.ranks_per_node > 1 else "",
        "between_bandwidth": f"there are {group.nodes} nodes" if group.nodes > 1 else "",
        "host_bandwidth": "rows or ids come from the host" if machine.host_memory or job.ranks > 1 else "",
        "ram_bandwidth": "the host has memory for rows" if machine.host_memory else "",
    }
    for name, why in needed.items():
        value = getattr(machine, name)
        if why and value is None:
            raise PlanError(f"{name} is missing: {why}")
        if value is not None and value <= 0:
            raise PlanError(f"{name} is {value}; it should be positive")
    if machine.device_memory <= 0:
        raise PlanError(f"device_memory is {machine.device_memory}; it should be positive")
    if job.storage == "host" and not machine.host_memory:
        raise PlanError("storage is 'host' and host_memory is missing")


def _modes(job: Job, machine: Machine) -> Iterator[Mode]:
    """All that are allowed, the most exact and the simplest first."""
    exchange = [] if job.ranks == 1 else ["exchange"]
    aligned = [] if job.sampling == "any" and job.ranks > 1 else ["aligned"]
    placements = [*aligned, *exchange, "replicated"] if job.ranks > 1 else ["replicated", "aligned"]
    histories = ["exact", "folded"] if job.history == "auto" else [job.history]
    dtypes = ["float32", "bfloat16"] if job.dtype == "auto" else [job.dtype]
    for history in histories:
        for dtype in dtypes:
            for placement in placements if job.placement == "auto" else [job.placement]:
                for storage in ["device", "host"] if job.storage == "auto" else [job.storage]:
                    if storage == "host" and (placement == "replicated" or not machine.host_memory):
                        continue
                    if (
                        job.ranks == 1
                        and job.placement == "auto"
                        and placement == "aligned"
                        and storage == "device"
                    ):
                        continue  # the same as the one table
                    yield Mode(placement, storage, history, dtype)


def _outcomes(job: Job, machine: Machine) -> list[Outcome]:
    return [_outcome(job, machine, mode) for mode in _modes(job, machine)]


def _outcome(job: Job, machine: Machine, mode: Mode) -> Outcome:
    return _needs(job, machine, str(mode), mode, _cost(job, mode))


def _cost(job: Job, mode: Mode) -> Cost:
    rows = job.num_samples if mode.placement == "replicated" else ceil_div(job.num_samples, job.ranks)
    shape = Shape(rows, job.num_classes, job.form, mode.history, mode.dtype, job.window)
    return table_cost(
        shape,
        job.group,
        job.batch_per_rank,
        job.steps_per_epoch,
        placement=mode.placement,
        storage=mode.storage,
        wire=job.wire,
    )


def _dense(job: Job, machine: Machine, stage: int) -> Outcome:
    history = "none" if job.history == "none" else "exact"
    shape = Shape(job.num_samples, job.num_classes, job.form, history, "float32")
    return _needs(job, machine, DENSE[stage], None, dense_cost(shape, job.group, job.batch_per_rank, stage))


def _needs(job: Job, machine: Machine, name: str, mode: Mode | None, cost: Cost) -> Outcome:
    cost = replace(cost, memory=cost.memory | _dynamics(job, mode))
    device, host = _memory(job, cost)
    spare = (machine.device_memory - device, machine.host_memory // job.group.ranks_per_node - host)
    return Outcome(name, mode, cost, _exposed(job, machine, cost), device, host, spare)


def _dynamics(job: Job, mode: Mode | None) -> dict[str, int]:
    """Bytes of the training dynamics on each device; they follow the samples as α's rows do."""
    if job.dynamics == "none":
        return {}
    if job.dynamics == "whole" or job.ranks == 1:
        return {"dynamics": dynamics_bytes(job.num_samples)}
    aligned = mode is not None and mode.placement == "aligned"
    return dynamics_memory(job.num_samples, job.ranks, "aligned" if aligned else "exchange")


def _memory(job: Job, cost: Cost) -> tuple[int, int]:
    """Bytes of a rank on the device, with the network's and what is reserved, and on the host."""
    device = sum(cost.memory.values()) + job.network_bytes + job.reserved
    return device, sum(cost.host_memory.values())


def _exposed(job: Job, machine: Machine, cost: Cost) -> float:
    forward = job.step_time * job.forward_share
    backward = job.step_time - forward
    network = machine.sending(all_reduce(job.group, 4 * job.parameters)) if job.parameters else 0.0
    sending = {phase: machine.sending(traffic) for phase, traffic in cost.traffic.items()}
    # The step time that was given has the network's own all-reduce in it, so what hides nothing there is not α's.
    free = max(0.0, backward - network)
    return (
        machine.waiting(cost.total())
        + max(0.0, sending["forward"] - forward)
        + max(0.0, sending["backward"] - free)
        + sending["step"]
    )


def _choose(job: Job, fitting: list[Outcome]) -> Outcome:
    """The most exact form that costs no more than the tolerance, or twice what the fastest does; of its placements and
    storages the fastest, the first of equals."""
    limit = max(job.tolerance * job.step_time, 2 * min(outcome.exposed for outcome in fitting))
    for outcome in fitting:
        alike = [other for other in fitting if _form(other) == _form(outcome)]
        best = min(alike, key=lambda other: other.exposed)
        if best.exposed <= limit:
            return best
    raise AssertionError("the fastest is within the limit")


def _form(outcome: Outcome) -> tuple[str, str]:
    assert outcome.mode is not None
    return outcome.mode.history, outcome.mode.dtype


def _reasons(job: Job, machine: Machine, outcomes: list[Outcome], advised: Outcome) -> dict[str, str]:
    assert advised.mode is not None
    return {
        "placement": _why_placement(job, outcomes, advised),
        "storage": _why_storage(job, machine, outcomes, advised),
        "history": _why_history(job, outcomes, advised),
        "dtype": _why_dtype(job, outcomes, advised),
    }


def _instead(outcomes: list[Outcome], advised: Outcome, **changed: str) -> Outcome | None:
    assert advised.mode is not None
    wanted = advised.mode._replace(**changed)
    return next((outcome for outcome in outcomes if outcome.mode == wanted), None)


def _against(other: Outcome) -> str:
    """What speaks against another choice."""
    if other.fits:
        return f"would make a step {duration(other.exposed)} longer"
    where = "device" if other.spare[0] < 0 else "host"
    return f"lacks {gigabytes(-min(other.spare))} of {where} memory"


def _why_placement(job: Job, outcomes: list[Outcome], advised: Outcome) -> str:
    assert advised.mode is not None
    placement = advised.mode.placement
    if job.ranks == 1:
        return "One rank holds all rows, and nothing travels between ranks."
    text = {
        "aligned": "Each rank trains on the rows that it owns, so nothing of α travels between ranks",
        "exchange": "Any rank may draw any sample, and rows and gradients travel while the network computes",
        "replicated": "Every rank holds all rows, and each step gathers the batch's row gradients",
    }[placement]
    others = []
    for name in ("aligned", "exchange", "replicated"):
        for storage in (advised.mode.storage, "device"):
            other = _instead(outcomes, advised, placement=name, storage=storage)
            if name != placement and other is not None:
                others.append(f"{name} {_against(other)}")
                break
    text += f" ({duration(advised.exposed)} a step exposed"
    return text + ("; " + "; ".join(others) if others else "") + ")."


def _why_storage(job: Job, machine: Machine, outcomes: list[Outcome], advised: Outcome) -> str:
    assert advised.mode is not None
    if advised.mode.storage == "device":
        return f"Each device has room: {gigabytes(advised.device)} of its {gigabytes(machine.device_memory)} are used."
    # One rank's table in device memory counts as replicated.
    placement = "replicated" if job.ranks == 1 else advised.mode.placement
    other = _instead(outcomes, advised, storage="device", placement=placement)
    if other is None:
        return "It was asked for."
    return (
        f"On the device it {_against(other)}; on the host it takes {gigabytes(advised.host)} a rank, and a step moves "
        f"{gigabytes(advised.cost.total().host)} over the link."
    )


def _why_history(job: Job, outcomes: list[Outcome], advised: Outcome) -> str:
    assert advised.mode is not None
    if advised.mode.history == "none":
        return "The optimizer has no momentum, so there is no buffer."
    if advised.mode.history == "exact":
        return "α is what a dense parameter under SGD would be, and its momentum has room."
    others = [o for o in outcomes if o.mode is not None and o.mode.history == "exact"]
    if not others:
        return "It was asked for: an approximation, closer the more steps an epoch has."
    nearest = min(others, key=lambda o: (o.short, o.exposed))
    return f"An approximation, because exact history ({nearest.name}) {_against(nearest)}."


def _why_dtype(job: Job, outcomes: list[Outcome], advised: Outcome) -> str:
    assert advised.mode is not None
    if advised.mode.dtype != "bfloat16":
        return "Full precision has room."
    others = [o for o in outcomes if o.mode is not None and _form(o) == (advised.mode.history, "float32")]
    if not others:
        return "It was asked for: half the memory, rounded stochastically."
    nearest = min(others, key=lambda o: (o.short, o.exposed))
    return f"Half the memory, rounded stochastically, because float32 ({nearest.name}) {_against(nearest)}."


def _does_not_fit(job: Job, machine: Machine, outcomes: list[Outcome]) -> str:
    """By how much the leanest mode does not fit, and what would."""
    least = min(outcomes, key=lambda outcome: outcome.short)
    host = machine.host_memory // job.group.ranks_per_node
    text = (
        f"α does not fit in memory in any form considered. The leanest, {least.name}, needs "
        f"{gigabytes(least.device)} on each device, which has {gigabytes(machine.device_memory)}"
    )
    if least.host:
        text += (
            f", and {gigabytes(least.host)} of the host's memory for each rank, which has {gigabytes(host)}"
        )
    text += f": {gigabytes(least.short)} are missing."
    remedies = _remedies(job, machine)
    return text + (
        " What would fit: " + "; ".join(remedies) + "." if remedies else " No change of one value helps."
    )


def _remedies(job: Job, machine: Machine) -> list[str]:
    """Changes of one thing each that make it fit."""
    found = []
    free = replace(job, placement="auto", storage="auto", dtype="auto")
    free = replace(free, history="none" if job.history == "none" else "auto")
    if (mode := _fitting_mode(free, machine)) is not None:
        found.append(str(mode))
    if job.dynamics == "whole" and _fitting_mode(replace(job, dynamics="sharded"), machine) is not None:
        found.append("training dynamics sharded, in place of all samples' on every rank")
    elif job.dynamics != "none" and _fitting_mode(replace(job, dynamics="none"), machine) is not None:
        found.append("the same without training dynamics")
    if job.form == "ac1" and _fitting_mode(replace(job, form="ac2"), machine) is not None:
        found.append("form ac2")
    if (ranks := _enough_ranks(job, machine)) is not None:
        found.append(f"{ranks:,} ranks of this kind")
    if (samples := _most_samples(job, machine)) is not None:
        found.append(f"{samples:,} samples")
    return found


def _fitting_mode(job: Job, machine: Machine) -> Mode | None:
    """The first that fits; needs no bandwidths."""
    host_memory = machine.host_memory // job.group.ranks_per_node
    for mode in _modes(job, machine):
        device, host = _memory(job, _cost(job, mode))
        device += sum(_dynamics(job, mode).values())
        if device <= machine.device_memory and host <= host_memory:
            return mode
    return None


def _enough_ranks(job: Job, machine: Machine) -> int | None:
    """The fewest ranks, in whole nodes, with which something fits; each needs a sample a step."""
    node = job.ranks_per_node

    def fits(nodes: int) -> bool:
        return _fitting_mode(replace(job, ranks=nodes * node), machine) is not None

    most = min(job.batch, _MOST_RANKS) // node
    low, high = job.ranks // node, max(1, job.ranks // node)
    while high <= most and not fits(high):
        low, high = high, 2 * high
    high = min(high, most)
    if high < 1 or not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high * node


def _most_samples(job: Job, machine: Machine) -> int | None:
    """The most samples with which something fits."""
    low, high = job.batch, job.num_samples
    if _fitting_mode(replace(job, num_samples=low), machine) is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        fits = _fitting_mode(replace(job, num_samples=middle), machine) is not None
        low, high = (middle, high) if fits else (low, middle)
    return low


def gigabytes(count: int) -> str:
    """Bytes as people read them; 1 GB is 10^9 bytes."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
