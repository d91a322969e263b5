"""What bench/train.py is to show, and whether a record does."""

from __future__ import annotations

from typing import Any

from train_ways import AGAIN, BASE

__all__ = ["text", "verdicts"]

IMAGES_PER_SECOND = 3000  # of ResNet-50 on an H200


def verdicts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One for each target: what, the value, the limit, whether it is met. The upper end of each overhead's interval is
    at most the record's limit, in per cent; on an H200, ResNet-50 at 224 pixels takes so many images a second.

    Of a network of CIFAR's size a GPU's step is the host's launches, and those of α are seen in it: there the overhead
    is judged with CUDA graphs."""
    found = []
    h200 = "H200" in record["environment"]["device"]
    for result in record["results"]:
        launches = record["settings"]["device"] == "cuda" and result["image_size"] < 64
        judged = not launches or record["settings"].get("cuda_graphs")
        for name, row in result["ways"].items():
            if judged and name not in (BASE.name, AGAIN.name):
                what = f"{result['model']}, {name}: overhead at most, %"
                high, limit = row["overhead_percent"]["high"], record["settings"]["limit"]
                found.append({"what": what, "value": high, "limit": limit, "met": bool(high <= limit)})
        if h200 and (result["model"], result["image_size"]) == ("resnet50", 224):
            slowest = min(row["images_per_second"] for row in result["ways"].values())
            met = bool(slowest >= IMAGES_PER_SECOND)
            what = "resnet50, slowest way: images/s at least"
            found.append({"what": what, "value": slowest, "limit": IMAGES_PER_SECOND, "met": met})
    return found


def text(found: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{'met ' if v['met'] else 'MISSED'}  {v['what']}: {v['value']:.4g} ({v['limit']:g})" for v in found
    )
