"""The record of bench/sharding.py as a person reads it: a table and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sharding_ways import NONE, WAYS, Way

from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, write_png

__all__ = ["plot", "text"]


def text(record: dict[str, Any]) -> str:
    """One line a row; bytes of the rank with the most."""
    settings = record["settings"]
    lines = [
        machine(record),
        f"{network(record)}; {settings['rounds']} rounds, median and quartiles of a step",
        "sent, memory: what α adds to the same engine; planned: by fastac.plan; in all: with the network's, as written "
        "to sockets",
    ]
    for ranks in settings["ranks"]:
        lines += [
            "",
            f"{ranks_text(ranks):<20}{'N':>11}{'step, ms':>11}{'quartiles':>19}{'sent, B':>15}{'planned':>15}"
            f"{'in all':>15}{'memory, MB':>12}{'planned':>10}{'peak':>10}",
        ]
        rows = [row for row in record["results"] if row["ranks"] == ranks]
        for name in dict.fromkeys(row["alpha"] for row in rows):
            lines += [line(row) for row in rows if row["alpha"] == name]
    lines += ["", f"a step at N = {settings['samples'][-1]:,} over one at {settings['samples'][0]:,}:"]
    for ranks, growth in record["checks"]["growth"].items():
        shown = (f"{name} {'not measured' if r is None else format(r, '.2f')}" for name, r in growth.items())
        lines.append(f"{ranks_text(int(ranks))}: " + "; ".join(shown))
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    start = f"{row['alpha']:<20}{row['num_samples']:>11,}"
    if "sent_bytes" not in row:
        return f"{start}  skipped: {row['skipped']}"
    seconds = row["step_seconds"]
    quartiles = "" if seconds is None else f"{seconds['low'] * 1e3:.2f} to {seconds['high'] * 1e3:.2f}"
    step = "" if seconds is None else f"{seconds['median'] * 1e3:.2f}"
    sent, written = (
        f"{row[key]:,}" if row[key] is not None else "" for key in ("sent_bytes", "written_bytes")
    )
    planned = f"{row['planned_sent_bytes']:,}" if "planned_sent_bytes" in row else ""
    memory = row.get("planned_memory_bytes")
    kept, wanted, peak = (
        "" if n is None else f"{n / 1e6:.2f}" for n in (row["memory_bytes"], memory, row["peak_bytes"])
    )
    end = f"  {row['skipped']}" if row["skipped"] else ""
    return f"{start}{step:>11}{quartiles:>19}{sent:>15}{planned:>15}{written:>15}{kept:>12}{wanted:>10}{peak:>10}{end}"


def ranks_text(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


def machine(record: dict[str, Any]) -> str:
    made_by, settings = record["environment"], record["settings"]
    versions = [
        f"{name} {version}" for name in ("torch", "deepspeed") if (version := made_by["packages"][name])
    ]
    threads = [f"{settings['threads']} thread a rank"] if settings["device"] == "cpu" else []
    return ", ".join([made_by["device"], *threads, *versions])


def network(record: dict[str, Any]) -> str:
    settings = record["settings"]
    return (
        f"AC1, K = {settings['classes']}, batch {settings['batch']} a rank, perceptron of "
        f"{settings['features']}, {settings['hidden']} and {settings['classes']} units, float32"
    )


def plot(record: dict[str, Any], out: Path) -> None:
    """Time, bytes sent and memory by N; a row of panels for each number of ranks."""
    settings = record["settings"]
    with drawing():
        figure = new_figure(13, 1.6 + 3.6 * len(settings["ranks"]), layout="constrained")
        panels = figure.subplots(len(settings["ranks"]), 3, squeeze=False)
        for ranks, (time, sent, memory) in zip(settings["ranks"], panels, strict=True):
            for way in (NONE, *WAYS):
                rows = [r for r in record["results"] if (r["ranks"], r["alpha"]) == (ranks, way.name)]
                draw_way(way, rows, time, sent, memory)
            for axes, quantity in (
                (time, "time a step (ms)"),
                (sent, "sent for α, a step and rank (bytes)"),
                (memory, "memory for α, a rank (MB)"),
            ):
                axes.set(xscale="log", yscale="log", xlabel="samples N", ylabel=quantity)
                axes.set_title(ranks_text(ranks), fontsize="medium")
                axes.grid(alpha=0.3)
                axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{network(record)}\n{machine(record)}", parse_math=False, fontsize="medium")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        write_png(figure, out)


def draw_way(way: Way, rows: list[dict[str, Any]], time: Any, sent: Any, memory: Any) -> None:
    look = look_of(way)
    timed = [row for row in rows if row.get("step_seconds")]
    if timed:
        middle = np.array([row["step_seconds"]["median"] for row in timed])
        low = middle - [row["step_seconds"]["low"] for row in timed]
        high = [row["step_seconds"]["high"] for row in timed] - middle
        label = f"{way.name} (sends nothing)" if way.placement == "aligned" else way.name
        n = [row["num_samples"] for row in timed]
        time.errorbar(n, middle * 1e3, 1e3 * np.array([low, high]), capsize=2, label=label, **look)
    counted = [row for row in rows if "sent_bytes" in row]
    if way == NONE or not counted:
        return
    n = [row["num_samples"] for row in counted]
    if any(row["sent_bytes"] for row in counted):
        sent.plot(n, [row["sent_bytes"] for row in counted], **look)
    memory.plot(n, [row["memory_bytes"] / 1e6 for row in counted], **look)


def look_of(way: Way) -> dict[str, Any]:
    """Tables and dense parameters differ in colour, those of a kind in marker and line."""
    if way == NONE:
        return {"color": "0.45", "marker": "", "linestyle": "--"}
    kind = [other for other in WAYS if (other.placement is None) == (way.placement is None)]
    place = kind.index(way)
    return {
        "color": VERMILLION if way.placement is None else BLUE,
        "marker": "osv^D"[place],
        "linestyle": ("-", "--", "-.", ":", (0, (5, 1)))[place],
        "markersize": 5,
        "linewidth": 1.4,
    }
