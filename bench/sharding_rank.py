"""What one rank does of bench/sharding.py: counts a step of each way, then times all of them in turn."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from common import Case, free_memory, time_cases
from sharding_ways import NONE, Batch, Batches, Sizes, Subject, Way, build
from traffic import Collectives, Peak, living_bytes, written_bytes

import fastac
from fastac.advice import gigabytes

__all__ = ["RankBench"]

_RESERVE = 1 << 30  # bytes left to each process itself and to the timing's buffer


class RankBench:
    """One N. All methods are collective."""

    def __init__(self, num_samples: int, sizes: Sizes, device: torch.device, rank: int):
        self.num_samples, self.sizes, self.device, self.rank = num_samples, sizes, device, rank

    def rows(self, ways: list[Way], rounds: int, longest: float, other: int | None) -> list[dict[str, Any]]:
        """Of the network without α, and of each way. other: a number of samples with which the tables are timed in the
        same rounds, or None."""
        rows: list[dict[str, Any]] = []
        subjects: list[tuple[Way, Subject] | None] = []
        networks = {}
        self.count(NONE, None)  # what is imported and allocated once belongs to no way
        for stage in sorted({way.stage for way in [NONE, *ways]}):
            subject, networks[stage] = self.count(NONE._replace(stage=stage), None)
            if stage == 0:
                rows.append({"alpha": NONE.name, "skipped": None} | networks[0])
                subjects.append((NONE, subject))
        for way in ways:
            reason = self.too_large(way)
            rows.append({"alpha": way.name, "skipped": reason})
            subjects.append(None)
            if reason is None:
                subject, counted = self.count(way, self.num_samples)
                rows[-1] |= less(counted, networks[way.stage]) | self.planned(way)
                subjects[-1] = way, subject
                if (seconds := counted["first_seconds"]) > longest:
                    rows[-1]["skipped"] = f"a step takes {seconds:.2f} s, longer than {longest:g}: not timed"
                    subjects[-1] = None
        cases = [self.case(way, subject) for way, subject in filter(None, subjects)]
        compared = [] if other is None else [t for t in subjects if t and t[0].placement]
        cases += [self.case(way, build(way, other, self.sizes, self.device), other) for way, _ in compared]
        times = iter(time_cases(cases, self.device, rounds))
        for row, timed in zip(rows, subjects, strict=True):
            row["step_seconds"] = None if timed is None else next(times).record()
        for row, timed in zip(rows, subjects, strict=True):
            if timed in compared:
                row["smallest_step_seconds"] = next(times).record()
        return rows

    def case(self, way: Way, subject: Subject, num_samples: int | None = None) -> Case:
        return Case(subject.step, partial(self.ready, self.batches(way, num_samples)))

    def batches(self, way: Way, num_samples: int | None = None) -> Batches:
        n = num_samples or self.num_samples
        return Batches(self.sizes, self.rank, n, way.placement == "aligned", self.device)

    def ready(self, draw: Batches) -> Batch:
        """A batch, when all ranks have theirs."""
        batch = draw()
        dist.barrier()
        return batch

    def too_large(self, way: Way) -> str | None:
        """Why memory is too short for it, beside those that are there already."""
        dist.barrier()
        free = free_memory(self.device) // (self.sizes.ranks if self.device.type == "cpu" else 1)
        left = min(self.of_all(max(0, free - _RESERVE)))
        need = way.most_needed(self.num_samples, self.sizes)
        if need <= left:
            return None
        return f"needs up to {gigabytes(need)} of memory a rank, {gigabytes(left)} are left beside the others"

    def count(self, way: Way, num_samples: int | None) -> tuple[Subject, dict[str, Any]]:
        """It, after a step that made the momentum, one for its peak and one in which all is counted."""
        peak, draw = Peak(self.device), self.batches(way)
        resident, living = peak.now(), living_bytes(self.device)
        subject = build(way, num_samples, self.sizes, self.device)
        subject.step(self.ready(draw))
        batch = self.ready(draw)
        peak.reset()
        start, written = time.perf_counter(), written_bytes()
        subject.step(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        sent_in_all, taken = written_bytes(), time.perf_counter() - start
        most = peak.most()
        own = self.counted(subject, self.ready(draw), living) | {
            "first_seconds": taken,
            "written_bytes": None if written is None or sent_in_all is None else sent_in_all - written,
            "peak_bytes": None if most is None or resident is None else max(0, most - resident),
        }
        return subject, self.most(own)

    def counted(self, subject: Subject, batch: Batch, living: int) -> dict[str, Any]:
        """A step whose collectives are counted, and the memory at the moment when the optimizer steps."""
        memory: list[int] = []
        hook = subject.optimizer.register_step_pre_hook(
            lambda *_: memory.append(living_bytes(self.device) - living)
        )
        sharded = isinstance(subject.table, fastac.ShardedAlphaTable)
        before = subject.table.traffic.total if sharded else 0
        with Collectives(self.rank, self.sizes.ranks) as collectives:
            subject.step(batch)
        hook.remove()
        own = {
            "sent_bytes": collectives.total(),
            "collectives": dict(collectives.sent),
            "memory_bytes": max(memory),
        }
        if subject.table is not None:
            own["table_bytes"] = subject.table_bytes()
        if sharded:
            own["table_sent_bytes"] = subject.table.traffic.total - before
        return own

    def most(self, own: dict[str, Any]) -> dict[str, Any]:
        """Of all ranks: the largest of each figure, and the least that is sent."""
        everyone = self.of_all(own)
        numbers = {
            key: None if value is None else max(other[key] for other in everyone)
            for key, value in own.items()
            if key != "collectives"
        }
        return numbers | {
            "least_sent_bytes": min(other["sent_bytes"] for other in everyone),
            "collectives": own["collectives"],
        }

    def planned(self, way: Way) -> dict[str, int]:
        return {
            "planned_sent_bytes": way.planned(self.num_samples, self.sizes).total().inside,
            "planned_memory_bytes": way.planned_memory(self.num_samples, self.sizes),
        }

    def of_all(self, value: Any) -> list[Any]:
        """Every rank's."""
        values: list[Any] = [None] * self.sizes.ranks
        dist.all_gather_object(values, value)
        return values


def less(counted: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """Without what the same engine sends and keeps for the network alone."""
    return counted | {
        key: counted[key] - network[key] for key in ("sent_bytes", "least_sent_bytes", "memory_bytes")
    }
