"""Test accuracy and detection of cross entropy, AC1 and AC2 over several seeds, on one recipe.

    python bench/accuracy.py --recipe fashion-mnist --train-limit 10000 --noise uniform --noise-rate 0.2

Runs that are in --runs already are not trained again, so an interrupted benchmark goes on. Every run's seed is also
the seed of its flipped labels. Writes NAME.json and NAME.md to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from fastac.config import Config, load_config, parse_command_line
from fastac.run import RunFolder, environment, write_json
from fastac.train import train

HERE = Path(__file__).parent
LOSSES = {"ce": "cross entropy", "ac1": "AC1", "ac2": "AC2"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="fashion-mnist")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the run folders")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the record")
    parser.add_argument("--name", help="of the record (default: the recipe's)")
    options, settings = parser.parse_known_args()
    keys = parse_command_line(["--recipe", options.recipe, *settings], prog="bench/accuracy.py").values
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:  # all losses of a seed before the next, so that a part is already a comparison
        for loss in options.losses:
            run = {
                "loss": loss,
                "seed": seed,
                "noise_seed": seed,
                "output": str(options.runs),
                "name": f"{loss}-{seed}",
            }
            results.setdefault(loss, []).append(result_of(load_config(options.recipe, {**keys, **run})))
    name = options.name or options.recipe
    record = {
        "recipe": options.recipe,
        "settings": keys,
        "environment": environment(torch.device("cpu"), 1),
        "runs": results,
        "summary": {loss: summary(runs) for loss, runs in results.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / f"{name}.json", record)
    table = markdown(record["summary"])
    (options.out / f"{name}.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def result_of(config: Config) -> dict[str, Any]:
    """What the run's result.json holds, trained first if it is not there."""
    folder = RunFolder(Path(config.run.output) / str(config.run.name))
    if not folder.result.is_file():
        train(config, resume=True)
    result: dict[str, Any] = json.loads(folder.result.read_text(encoding="utf-8"))
    made_by = json.loads(folder.environment.read_text(encoding="utf-8"))
    del result["folder"]
    return {**result, "git": made_by["git"], "started": made_by["started"]}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}

    columns = {"test_accuracy": spread([run["test_accuracy"] for run in runs])}
    for method in runs[0]["detection"]:
        for score in ("auroc", "average_precision", "precision"):
            columns[f"{method}_{score}"] = spread([run["detection"][method][score] for run in runs])
    return {"seeds": len(runs), **columns}


def markdown(summaries: dict[str, dict[str, Any]]) -> str:
    """One row a loss."""

    def cell(row: dict[str, Any], name: str, percent: bool = False) -> str:
        if name not in row:
            return ""
        mean, std = row[name]["mean"], row[name]["std"]
        return f"{100 * mean:.2f} ± {100 * std:.2f}" if percent else f"{mean:.4f} ± {std:.4f}"

    lines = [
        "| loss | test accuracy (%) | AUROC by α | AUROC by AUM | precision by α (%) | precision by AUM (%) |",
        "|---|---|---|---|---|---|",
    ]
    for loss, row in summaries.items():
        cells = [
            cell(row, "test_accuracy", True),
            cell(row, "alpha_auroc"),
            cell(row, "aum_auroc"),
            cell(row, "alpha_precision", True),
            cell(row, "aum_precision", True),
        ]
        lines.append(f"| {LOSSES[loss]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
