"""`python -m fastac.plan`: what α will need on given devices, before a run is started, and how to keep it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from fastac.advice import DYNAMICS, Job, Outcome, Plan, PlanError, advise, duration, gigabytes
from fastac.links import LINKS, PRESETS, Machine

__all__ = ["main", "record", "report"]

_EPILOG = """\
All figures are planned: computed from sizes and the bandwidths given, not measured. Numbers may be written 1e10.
GB are 10^9 bytes. Example:
  python -m fastac.plan --samples 1281167 --classes 1000 --ranks 8 --batch 2048 --step-time 250 --preset dgx-h100
"""

_FAR = 10**30  # what is beyond is a slip, and would take long to write out

# Of Machine: its option, the unit on the command line, and the help text.
_MACHINE: dict[str, tuple[str, float, str]] = {
    "device_memory": ("--device-memory", 1e9, "memory of a device, GB"),
    "host_memory": ("--host-memory", 1e9, "memory of a node's host that may hold rows, GB; 0: none"),
    "device_bandwidth": ("--device-bandwidth", 1e9, "of a device's memory, GB/s"),
    "ram_bandwidth": ("--ram-bandwidth", 1e9, "of a node's host memory, GB/s"),
    "host_bandwidth": ("--host-bandwidth", 1e9, "between a device and its host, one direction, GB/s"),
    "inside_bandwidth": ("--inside-bandwidth", 1e9, "from a rank to the others in its node, GB/s"),
    "between_bandwidth": ("--between-bandwidth", 1e9, "from a node to other nodes, all ports, GB/s"),
    "latency": ("--latency", 1e-6, "of a message between ranks, µs; not counted if not given"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan. Returns 1 where none is possible, with the reason on stderr (with --json, on stdout)."""
    options = _parser().parse_args(argv)
    try:
        machine, sources = _machine(options)
        plan = advise(_job(options), machine)
    except PlanError as error:
        if options.json:
            print(json.dumps({"planned": True, "possible": False, "reason": str(error)}, indent=2))
        else:
            print(f"impossible: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(record(plan, sources), indent=2, ensure_ascii=False))
    else:
        print(report(plan, sources))
    return 0


def _whole(text: str) -> int:
    """An integer, exactly, also as 1e10."""
    try:
        value = Decimal(text.replace("_", ""))
        if -_FAR < value < _FAR and value == value.to_integral_value():
            return int(value)
    except InvalidOperation:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} should be a whole number")


def _bytes(text: str) -> int:
    """Bytes from GB."""
    return round(_number(1e9)(text))


def _number(unit: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = Decimal(text)
        except InvalidOperation:
            value = Decimal(-1)
        if not (value.is_finite() and 0 <= value < _FAR):
            raise argparse.ArgumentTypeError(f"{text!r} should be a number that is not negative")
        scaled = value * Decimal(str(unit))
        return int(scaled) if scaled == scaled.to_integral_value() else float(scaled)

    return convert


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastac.plan",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--samples", type=_whole, required=True, help="training samples, N")
    run.add_argument("--classes", type=_whole, required=True, help="classes, K")
    run.add_argument("--form", choices=("ac1", "ac2"), default="ac1", help="of α (default: ac1)")
    run.add_argument("--ranks", type=_whole, default=1, help="processes, one a device (default: 1)")
    batch = run.add_mutually_exclusive_group(required=True)
    batch.add_argument("--batch", type=_whole, help="samples a step of all ranks together")
    batch.add_argument("--batch-per-rank", type=_whole, help="samples a step of each rank")
    run.add_argument(
        "--step-time", type=_number(1e-3), required=True, help="of the network without α, ms a step"
    )
    run.add_argument(
        "--forward-share",
        type=_number(1),
        default=1 / 3,
        help="of the step time that is the forward (default: 1/3, a backward has twice a forward's products)",
    )
    run.add_argument("--epochs", type=_whole, default=0, help="to check that the steps can be counted")
    run.add_argument("--parameters", type=_whole, default=0, help="of the network: its memory and all-reduce")
    run.add_argument(
        "--reserved", type=_bytes, default=0, help="of a device for activations and the runtime, GB"
    )
    run.add_argument(
        "--sampling",
        choices=("owned", "any"),
        default="owned",
        help="whether a rank may be bound to its own samples (default), or may draw any",
    )
    run.add_argument(
        "--dynamics",
        choices=DYNAMICS,
        default="sharded",
        help="record training dynamics: each rank of its own samples (default), every rank of all, or not at all",
    )
    run.add_argument("--window", type=_whole, default=1 << 18, help="of the step clock, steps")
    _add_choices(parser)
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--preset", choices=tuple(PRESETS), help="a node's figures, each can be overridden")
    machine.add_argument("--ranks-per-node", type=_whole, help="devices of a node")
    for name, (option, unit, text) in _MACHINE.items():
        kind = _bytes if name.endswith("memory") else _number(unit)
        machine.add_argument(option, dest=name, type=kind, help=text)
    parser.add_argument("--json", action="store_true", help="the whole plan as JSON")
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    choices = parser.add_argument_group("choices", "each is made by the planner, unless it is given")
    for name, values in (
        ("placement", ("replicated", "aligned", "exchange")),
        ("storage", ("device", "host")),
        ("history", ("exact", "folded", "none")),
        ("dtype", ("float32", "bfloat16")),
    ):
        choices.add_argument(f"--{name}", choices=("auto", *values), default="auto")
    choices.add_argument(
        "--wire",
        choices=("float32", "bfloat16"),
        default="float32",
        help="how an exchange's rows and gradients travel (default: float32)",
    )
    choices.add_argument(
        "--tolerance",
        type=_number(1),
        default=0.005,
        help="share of the step time that α may take before a less exact form is taken for its speed "
        "(default: 0.005, what the paper allows)",
    )


def _machine(options: argparse.Namespace) -> tuple[Machine, dict[str, str]]:
    """The machine, and where each of its figures is from."""
    preset = PRESETS[options.preset].values if options.preset else {}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in ("ranks_per_node", *(field.name for field in fields(Machine))):
        given = getattr(options, name)
        values[name] = preset.get(name) if given is None else given
        if values[name] is not None:
            sources[name] = "given" if given is not None else f"preset {options.preset}"
    for name in ("device_memory", "device_bandwidth"):
        if values[name] is None:
            raise PlanError(f"{name} is missing: give {_MACHINE[name][0]} or --preset")
    if values["ranks_per_node"] is None:
        if options.ranks > 1:
            raise PlanError("ranks_per_node is missing: give --ranks-per-node or --preset")
        values["ranks_per_node"] = 1
    options.ranks_per_node = values.pop("ranks_per_node")
    return Machine(
        **{
            name: 0 if value is None and name in ("host_memory", "latency") else value
            for name, value in values.items()
        }
    ), sources


def _job(options: argparse.Namespace) -> Job:
    names = {"num_samples": "samples", "num_classes": "classes"}
    batch = options.batch if options.batch is not None else options.batch_per_rank * options.ranks
    values = {field.name: getattr(options, names.get(field.name, field.name)) for field in fields(Job)}
    return Job(**{**values, "batch": batch})


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        **({} if outcome.mode is None else outcome.mode._asdict()),
        "fits": outcome.fits,
        "device_bytes": outcome.device,
        "host_bytes": outcome.host,
        "spare_device_bytes": outcome.spare[0],
        "spare_host_bytes": outcome.spare[1],
        "exposed_seconds": outcome.exposed,
        "memory": outcome.cost.memory,
        "host_memory": outcome.cost.host_memory,
        "traffic": {phase: traffic._asdict() for phase, traffic in outcome.cost.traffic.items()},
        "step": outcome.cost.total()._asdict(),
    }


def record(plan: Plan, sources: dict[str, str]) -> dict[str, Any]:
    """The plan as plain values. Bytes are of a rank, but `between`, which is of a node."""
    used = {source.removeprefix("preset ") for source in sources.values()} & PRESETS.keys()
    return {
        "planned": True,
        "possible": True,
        "job": asdict(plan.job),
        "machine": asdict(plan.machine),
        "machine_sources": sources,
        "presets": {name: PRESETS[name].source for name in sorted(used)},
        "advised": _row(plan.advised),
        "reasons": plan.reasons,
        "modes": [_row(outcome) for outcome in plan.outcomes],
        "dense": [_row(outcome) for outcome in plan.dense],
    }


def report(plan: Plan, sources: dict[str, str]) -> str:
    """The plan as text."""
    return "\n\n".join([_inputs(plan, sources), _advice(plan), _memory(plan), _comparison(plan)])


def _inputs(plan: Plan, sources: dict[str, str]) -> str:
    job, machine = plan.job, plan.machine
    group = job.group
    lines = [
        "planned, not measured: computed from the sizes and bandwidths below",
        "",
        f"samples {job.num_samples:,}, classes {job.num_classes:,}, form {job.form}; ranks {job.ranks:,}, nodes "
        f"{group.nodes:,}; batch {job.batch:,}, {job.batch_per_rank:,} a rank; {job.steps_per_epoch:,} steps an epoch "
        f"of {duration(job.step_time)}",
    ]
    for name, (_, _, text) in _MACHINE.items():
        value = getattr(machine, name)
        if name in sources:
            what = text.split(", ")[0].split(";")[0]
            shown = f"{value * 1e6:g} µs" if name == "latency" else gigabytes(int(value))
            shown += "/s" if name.endswith("bandwidth") else ""
            lines.append(f"  {name.replace('_', ' '):18}{shown:>12}   {sources[name]:18} {what}")
    used = {source.removeprefix("preset ") for source in sources.values()} & PRESETS.keys()
    lines += [f"  {name}: {PRESETS[name].source}; peak figures" for name in sorted(used)]
    if not job.reserved:
        lines.append("  nothing is set aside for activations (--reserved)")
    return "\n".join(lines)


def _advice(plan: Plan) -> str:
    lines = ["advised"]
    assert plan.advised.mode is not None
    for name, value in plan.advised.mode._asdict().items():
        lines.append(f"  {name:10}{value:11} {plan.reasons[name]}")
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    cost = plan.advised.cost
    lines = ["planned memory of a rank, as advised"]
    lines += [f"  device  {name:12}{count:>22,} B" for name, count in cost.memory.items()]
    for name, count in (("network", plan.job.network_bytes), ("reserved", plan.job.reserved)):
        if count:
            lines.append(f"  device  {name:12}{count:>22,} B")
    lines += [f"  host    {name:12}{count:>22,} B" for name, count in cost.host_memory.items()]
    lines += ["", "planned bytes of a step, as advised", "  " + _columns("hidden by", LINKS)]
    for phase, traffic in cost.traffic.items():
        lines.append(
            "  " + _columns(phase if phase != "step" else "nothing", [f"{n:,}" for n in traffic[:5]])
        )
    return "\n".join(lines)


def _columns(first: str, rest: Sequence[str]) -> str:
    return f"{first:10}" + "".join(f"{text:>20}" for text in rest)


def _comparison(plan: Plan) -> str:
    """One line for each mode and each dense parameter."""
    header = (
        "device",
        "host",
        "moved: device",
        "host memory",
        "host link",
        "inside node",
        "between nodes",
        "exposed",
    )
    lines = [
        "every choice, planned: memory and a step's bytes of a rank (in host memory and between nodes: of a node)",
        f"  {'':38}" + "".join(f"{name:>14}" for name in header),
    ]
    for outcome in [*plan.outcomes, *plan.dense]:
        moved = outcome.cost.total()
        cells = [outcome.device, outcome.host, *moved[:5]]
        text = "".join(f"{gigabytes(cell):>14}" for cell in cells) + f"{duration(outcome.exposed):>14}"
        mark = "  <- advised" if outcome is plan.advised else "" if outcome.fits else "  does not fit"
        lines.append(f"  {outcome.name:38}{text}{mark}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
