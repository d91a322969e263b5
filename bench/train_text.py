"""The record of bench/train.py as a person reads it: tables and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from train_ways import AGAIN, BASE, PARTS

from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, write_png

__all__ = ["plot", "text"]

_COLOURS = dict(
    zip(PARTS, ("#56B4E9", VERMILLION, BLUE, "#E69F00", "#009E73"), strict=True)
)  # Okabe and Ito's


def text(record: dict[str, Any]) -> str:
    lines = [machine(record)]
    for result in record["results"]:
        lines += ["", network(result, record), _header()]
        lines += [_line(name, row) for name, row in result["ways"].items()]
        lines += ["", f"{'where a step goes, ms':<26}" + "".join(f"{part:>12}" for part in PARTS)]
        for name, row in result["ways"].items():
            lines.append(f"{name:<26}" + "".join(f"{row['parts_seconds'][p] * 1e3:>12.3f}" for p in PARTS))
        if result["loader"] is not None:
            lines += ["", loader_text(result["loader"])]
    return "\n".join(lines)


def machine(record: dict[str, Any]) -> str:
    made_by, settings = record["environment"], record["settings"]
    words = [made_by["device"], f"torch {made_by['packages']['torch']}"]
    if settings["device"] == "cpu":
        words.append("1 thread" if made_by["threads"] == 1 else f"{made_by['threads']} threads")
    words.append(f"backend {made_by['backend']}")
    return ", ".join(words)


def network(result: dict[str, Any], record: dict[str, Any]) -> str:
    settings = record["settings"]
    how = [settings["amp"]]
    how += ["channels_last"] if settings["channels_last"] else []
    how += ["torch.compile"] if settings["torchcompile"] else []
    how += ["CUDA graphs"] if settings["cuda_graphs"] else []
    return (
        f"{_title(result)}, K = {result['classes']:,}, N = {result['samples']:,}; {', '.join(how)}; α in "
        f"{settings['table_dtype']}, {settings['history']} history, update {settings['update']}; "
        f"{settings['rounds']} rounds of {settings['steps']}"
    )


def _title(result: dict[str, Any]) -> str:
    side = result["image_size"]
    return f"{result['model']}, batch {result['batch']}, {side}×{side}"


def _header() -> str:
    return (
        f"{'':<26}{'ms a step':>11}{'quartiles':>20}{'images/s':>10}{'overhead, %':>13}{'95 % interval':>19}"
        f"{'α, MB':>10}{'peak, MB':>10}"
    )


def _line(name: str, row: dict[str, Any]) -> str:
    s, over = row["step_seconds"], row["overhead_percent"]
    quartiles = f"{s['low'] * 1e3:.3f} to {s['high'] * 1e3:.3f}"
    percent = "" if over is None else f"{over['percent']:+.2f}"
    interval = "" if over is None else f"{over['low']:+.2f} to {over['high']:+.2f}"
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
    return (
        f"{name:<26}{s['median'] * 1e3:>11.3f}{quartiles:>20}{row['images_per_second']:>10,.1f}{percent:>13}"
        f"{interval:>19}{row['state_bytes'] / 1e6:>10,.1f}{peak:>10}"
    )


def loader_text(loader: dict[str, Any]) -> str:
    return (
        f"{loader['images']:,} image files, {loader['loader']} loader, {loader['workers']} workers, policy "
        f"{loader['aa']}: {loader['images_per_second']:,.1f} images/s with {loader['way']}, on noise "
        f"{loader['synthetic_images_per_second']:,.1f} (which changed by {loader['synthetic_drift']:+.1%} meanwhile): "
        f"{loader['loss']:.1%} lost; "
        f"{loader['waiting_share']:.1%} of the time spent waiting for a batch; the loader alone "
        f"{loader['loader_images_per_second']:,.1f}"
    )


def plot(record: dict[str, Any], out: Path) -> None:
    """For each network the overheads with their intervals, and the parts of a step."""
    results = record["results"]
    with drawing():
        figure = new_figure(12, 1.4 + 2.6 * len(results), layout="constrained")
        panels = figure.subplots(len(results), 2, squeeze=False)
        for result, (overhead, parts) in zip(results, panels, strict=True):
            _draw_overhead(result, record["settings"]["limit"], overhead)
            _draw_parts(result, parts)
        figure.suptitle(machine(record), parse_math=False, fontsize="medium")
        figure.legend(*panels[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
        write_png(figure, out)


def _draw_overhead(result: dict[str, Any], limit: float, axes: Any) -> None:
    rows = {name: row["overhead_percent"] for name, row in result["ways"].items() if name != BASE.name}
    places = np.arange(len(rows))[::-1]
    for place, (name, over) in zip(places, rows.items(), strict=True):
        reach = [[over["percent"] - over["low"]], [over["high"] - over["percent"]]]
        colour = "0.45" if name == AGAIN.name else BLUE
        axes.errorbar(over["percent"], place, xerr=reach, fmt="o", capsize=4, color=colour)
    axes.axvline(0, color="0.7", linewidth=1)
    axes.axvline(limit, color=VERMILLION, linestyle="--", linewidth=1)
    axes.annotate(
        f"{limit:g} %",
        (limit, 1),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        fontsize="small",
    )
    axes.set_yticks(places, list(rows))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("longer than F.cross_entropy's step by (%), 95 % interval")
    _dress(result, axes)


def _draw_parts(result: dict[str, Any], axes: Any) -> None:
    names = list(result["ways"])
    places, left = np.arange(len(names))[::-1], np.zeros(len(names))
    for part in PARTS:
        width = np.array([result["ways"][name]["parts_seconds"][part] * 1e3 for name in names])
        axes.barh(places, width, left=left, color=_COLOURS[part], label=part, height=0.7)
        left += width
    axes.set_yticks(places, names)
    axes.set_xlabel("time of a step's parts (ms)")
    _dress(result, axes)


def _dress(result: dict[str, Any], axes: Any) -> None:
    axes.set_title(f"{_title(result)}\n", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
