"""What bench/loss.py is to show, as ratios within its run: the design's targets, and whether a record meets them."""

from __future__ import annotations

from typing import Any

# Share of the copy's bandwidth that the one pass of AC1 reaches: (most columns, share), for batches that move at least
# LARGE bytes, where nothing but memory counts.
LARGE = 200e6
SHARES = {
    "cuda": ((10, 0.60), (100, 0.70), (1000, 0.85), (16384, 0.90), (131072, 0.90)),
    "triton": ((10, 0.50), (100, 0.65), (1000, 0.80), (16384, 0.85), (131072, 0.75)),
}
# (batch, classes) → share of the copy, times faster than eager and than torch.compile; None: not asked for.
CPU = {(4096, 1000): (0.85, 8, 3), (512, 32000): (0.55, 10, 3), (256, 10): (None, 4, 1)}
FASTER = {"eager": 5, "torch.compile": 1.8, "Liger + rows": 1.4}  # on a GPU, at large sizes


def verdicts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One for each target that the record can be asked about: what, the value, the limit, whether it is met."""
    found = []
    for result in record["results"]:
        if result["form"] == "ac1":
            found += _cpu(result) if "cpu, one pass" in result["ways"] else _gpu(result)
    return found


def _verdict(what: str, value: float, limit: float, at_least: bool = True) -> dict[str, Any]:
    met = value >= limit if at_least else value <= limit
    return {"what": what, "value": value, "limit": limit, "at_least": at_least, "met": bool(met)}


def _cpu(result: dict[str, Any]) -> list[dict[str, Any]]:
    size = result["batch"], result["classes"]
    if size not in CPU:
        return []
    share, eager, compiled = CPU[size]
    ways, name = result["ways"], "cpu, one pass"
    found = (
        []
        if share is None
        else [_verdict(_title(size, name, "share of copy"), ways[name]["share_of_copy"], share)]
    )
    key = "seconds" if ways[name]["warm_seconds"] is None else "warm_seconds"
    for other, factor in (("eager", eager), ("torch.compile", compiled)):
        if other in ways:
            ratio = ways[other][key]["median"] / ways[name][key]["median"]
            found.append(_verdict(_title(size, name, f"times faster than {other}"), ratio, factor))
    return found


def _gpu(result: dict[str, Any]) -> list[dict[str, Any]]:
    size, ways = (result["batch"], result["classes"]), result["ways"]
    found = []
    for backend, shares in SHARES.items():
        name = f"{backend}, one pass"
        if name not in ways:
            continue
        mine = ways[name]
        if result["bytes"] >= LARGE:
            limit = next(share for columns, share in shares if size[1] <= columns)
            found.append(_verdict(_title(size, name, "share of copy"), mine["share_of_copy"], limit))
            for other, factor in FASTER.items():
                if other in ways and backend == "cuda":
                    ratio = ways[other]["seconds"]["median"] / mine["seconds"]["median"]
                    found.append(_verdict(_title(size, name, f"times faster than {other}"), ratio, factor))
        if size == (256, 1000) and backend == "cuda":
            found.append(
                _verdict(_title(size, name, "device, µs"), mine["seconds"]["median"] * 1e6, 5, False)
            )
            found.append(_verdict(_title(size, name, "host, µs"), mine["seconds"]["host"] * 1e6, 20, False))
            plain = ways["F.cross_entropy, no α"]["seconds"]["median"]
            ratio = mine["seconds"]["median"] / plain
            found.append(_verdict(_title(size, name, "time over F.cross_entropy's"), ratio, 1, False))
    if result["bytes"] >= LARGE and "quack, no α" in ways:
        ratio = ways["ours, no α"]["seconds"]["median"] / ways["quack, no α"]["seconds"]["median"]
        found.append(_verdict(_title(size, "ours, no α", "time over quack's"), ratio, 1.05, False))
    return found


def _title(size: tuple[int, int], name: str, what: str) -> str:
    return f"{size[0]} x {size[1]} {name}: {what}"


def text(found: list[dict[str, Any]]) -> str:
    lines = []
    for v in found:
        sign = "at least" if v["at_least"] else "at most"
        lines.append(
            f"{'met ' if v['met'] else 'MISSED'}  {v['what']}: {v['value']:.3g} ({sign} {v['limit']:g})"
        )
    return "\n".join(lines)
