"""The links between devices: what a collective carries over each, and how long that takes.

Collectives are counted as rings (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations"), an all-to-all as one message from each rank to each other. Bytes are integers, rounded up where ranks
don't share evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "LINKS",
    "PRESETS",
    "Group",
    "Machine",
    "Preset",
    "Traffic",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "ceil_div",
    "reduce_scatter",
]


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


class Traffic(NamedTuple):
    """Bytes over each link. device: read from and written to a rank's device memory. ram: to a node's host memory, by
    all its ranks. host: over a rank's link to its host, both ways. inside: what a rank sends to others in its node.
    between: what a node sends to other nodes. messages: how many a rank sends one after the other."""

    device: int = 0
    ram: int = 0
    host: int = 0
    inside: int = 0
    between: int = 0
    messages: int = 0

    def plus(self, other: Traffic) -> Traffic:
        """Both."""
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


LINKS = Traffic._fields[:5]


@dataclass(frozen=True)
class Group:
    """`ranks` processes, `ranks_per_node` on each node: a divisor of ranks."""

    ranks: int
    ranks_per_node: int

    @property
    def nodes(self) -> int:
        return self.ranks // self.ranks_per_node


def _ring(group: Group, rounds: int, part: int) -> Traffic:
    """Each rank sends `part` bytes to the next one, `rounds` times; one edge of a node's ring leaves the node."""
    sent = rounds * part
    return Traffic(
        inside=sent if group.ranks_per_node > 1 else 0,
        between=sent if group.nodes > 1 else 0,
        messages=rounds,
    )


def all_gather(group: Group, part: int) -> Traffic:
    """`part` bytes of each rank, to all."""
    return _ring(group, group.ranks - 1, part)


def reduce_scatter(group: Group, whole: int) -> Traffic:
    """`whole` bytes of each rank, summed; each rank keeps its share."""
    return _ring(group, group.ranks - 1, ceil_div(whole, group.ranks))


def all_reduce(group: Group, whole: int) -> Traffic:
    """`whole` bytes of each rank, summed, to all: a reduce-scatter and an all-gather."""
    return _ring(group, 2 * (group.ranks - 1), ceil_div(whole, group.ranks))


def all_to_all(group: Group, sent: int) -> Traffic:
    """`sent` bytes of each rank, spread evenly over the others."""
    others, near = group.ranks - 1, group.ranks_per_node - 1
    if not others:
        return Traffic()
    return Traffic(
        inside=ceil_div(sent * near, others),
        between=ceil_div(group.ranks_per_node * sent * (others - near), others),
        messages=others,
    )


@dataclass(frozen=True)
class Machine:
    """Memory in bytes and bandwidths in bytes a second, in one direction where a link has two. host_memory, and
    ram_bandwidth of it: a node's. device_bandwidth, host_bandwidth, inside_bandwidth: of a rank; between_bandwidth: of
    a node, all its ports. latency: seconds a message. A bandwidth of None is of a link that nothing uses."""

    device_memory: int
    host_memory: int
    device_bandwidth: float
    ram_bandwidth: float | None = None
    host_bandwidth: float | None = None
    inside_bandwidth: float | None = None
    between_bandwidth: float | None = None
    latency: float = 0.0

    def seconds(self, traffic: Traffic) -> dict[str, float]:
        """Of each link that carries something."""
        return {
            name: moved / getattr(self, f"{name}_bandwidth")
            for name, moved in zip(LINKS, traffic, strict=False)
            if moved
        }

    def waiting(self, traffic: Traffic) -> float:
        """Seconds on the memories and between device and host, one after the other, in the way of the network."""
        taken = self.seconds(traffic)
        return sum(taken.get(name, 0.0) for name in ("device", "ram", "host"))

    def sending(self, traffic: Traffic) -> float:
        """Seconds between ranks, beside the network's kernels. Both links work at the same time."""
        taken = self.seconds(traffic)
        return max(taken.get("inside", 0.0), taken.get("between", 0.0)) + traffic.messages * self.latency


class Preset(NamedTuple):
    """A node as its vendor describes it. values: of Machine, and ranks_per_node. source: where they stand."""

    values: dict[str, float]
    source: str


_DGX = {
    "ranks_per_node": 8,
    "host_memory": 2 * 10**12,
    "ram_bandwidth": 614.4e9,
    "host_bandwidth": 64e9,
    "inside_bandwidth": 450e9,
    "between_bandwidth": 400e9,
}
PRESETS = {
    "dgx-h100": Preset(
        {**_DGX, "device_memory": 80 * 10**9, "device_bandwidth": 3.35e12},
        "NVIDIA's data sheets of H100 SXM (80 GB, 3.35 TB/s, NVLink 900 GB/s and PCIe Gen5 128 GB/s in both "
        "directions together) and DGX H100 (8 GPUs, 2 TB, 8 ports of 400 Gb/s, 2 processors with 8 channels of "
        "DDR5-4800)",
    ),
    "dgx-h200": Preset(
        {**_DGX, "device_memory": 141 * 10**9, "device_bandwidth": 4.8e12},
        "NVIDIA's data sheets of H200 SXM (141 GB, 4.8 TB/s, NVLink 900 GB/s and PCIe Gen5 128 GB/s in both "
        "directions together) and DGX H200 (8 GPUs, 2 TB, 8 ports of 400 Gb/s, 2 processors with 8 channels of "
        "DDR5-4800)",
    ),
}
"""Peak figures; what a program reaches is less."""
