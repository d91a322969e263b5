"""Which wrong labels are found: Algorithm 2, AUM, our combination, and the packages cleanlab and aum, on the same data.

    python bench/detection.py                      # digits and Fashion-MNIST: half an hour of one core
    python bench/detection.py --data cifar10 --data-dir FOLDER --device cuda     # with CIFAR-10N's labels
    python bench/detection.py --data cifar10-small --data-dir FOLDER     # the same in hours of a core

Every method is scored on labels that were made wrong on purpose (CIFAR-10: by people). What was trained already is
taken from --runs, so an interrupted benchmark goes on. Writes NAME.json, NAME.md and NAME.png to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import stamp, write_record
from detection_report import markdown, plot
from detection_runs import SETTINGS, Cell, Setting, load_cell, piece_path, run_piece

from fastac.extras import require
from fastac.issues import detection_scores, find_label_issues, find_threshold_issues

HERE = Path(__file__).parent
CIFAR10N = ("aggre_label", "random_label1", "worse_label")
Arrays = dict[str, np.ndarray]


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    for package in ("cleanlab", "aum", "sklearn"):
        require(package, "bench")
    device = torch.device(options.device)
    results = []
    for cell in cells(options):
        setting = settings(options)[cell.data]
        names = needed(cell, options.threshold_runs)
        if options.trained and not all(piece_path(options.runs, cell, name).is_file() for name in names):
            continue
        data = load_cell(cell, setting, options.data_dir)
        pieces = {name: run_piece(name, cell, data, device, options.runs) for name in names}
        results.append({**dataclasses.asdict(cell), "methods": score_cell(pieces)})
        print(f"{cell.name}: " + ", ".join(brief(results[-1]["methods"])), flush=True)
    if not results:
        print(f"nothing of this is trained in {options.runs}", file=sys.stderr)
        return 1
    record = {
        "benchmark": "detection",
        "environment": stamp(device),
        "settings": {name: dataclasses.asdict(settings(options)[name]) for name in options.data},
        "results": results,
        "summary": summary(results),
    }
    write_record(options.out, options.name, record)
    (options.out / f"{options.name}.md").write_text(markdown(record["summary"]), encoding="utf-8")
    plot(record["summary"], options.out / f"{options.name}.png")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=["digits", "fashion-mnist"])
    parser.add_argument(
        "--data-dir", type=Path, help="of cifar10: its folder, with cifar10n_labels.npz in it"
    )
    parser.add_argument(
        "--noise", nargs="+", default=["uniform", "asymmetric", "pair"], help="kinds (CIFAR-10 has its own)"
    )
    parser.add_argument(
        "--label-sets", nargs="+", default=list(CIFAR10N), choices=CIFAR10N, help="of CIFAR-10N"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05, 0.2, 0.4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="in place of the setting's")
    parser.add_argument("--train-limit", type=int, help="in place of the setting's")
    parser.add_argument(
        "--threshold-runs",
        nargs="*",
        default=["digits"],
        choices=list(SETTINGS),
        help="data on which AUM's two runs with threshold samples are made too",
    )
    parser.add_argument("--trained", action="store_true", help="leave out what is not trained already")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/detection"), help="folder of what was trained"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the record")
    parser.add_argument("--name", default="detection-cpu", help="of the record")
    return parser.parse_args(argv)


def settings(options: argparse.Namespace) -> dict[str, Setting]:
    """How each data set is trained, as the options say."""
    changed = {}
    for name, setting in SETTINGS.items():
        optimizer, limit = setting.optimizer, options.train_limit or setting.train_limit
        if options.epochs is not None:
            optimizer = dataclasses.replace(optimizer, epochs=options.epochs)
        changed[name] = dataclasses.replace(setting, optimizer=optimizer, train_limit=limit)
    return changed


def cells(options: argparse.Namespace) -> list[Cell]:
    """All of a seed before the next, so that a part is already a comparison."""
    found = []
    for seed in options.seeds:
        for data in options.data:
            if settings(options)[data].dataset == "cifar10":
                found += [Cell(data, name, None, seed) for name in options.label_sets]
            else:
                found += [Cell(data, kind, rate, seed) for kind in options.noise for rate in options.rates]
    return found


def needed(cell: Cell, threshold_runs: list[str]) -> list[str]:
    return ["ac1", "ac2", "plain", "folds"] + (["thresholds"] if cell.data in threshold_runs else [])


def brief(methods: dict[str, Any]) -> list[str]:
    return [f"{name} {row['average_precision']:.3f}" for name, row in methods.items()]


# ---------------------------------------------------------------- the methods


def score_cell(pieces: dict[str, Arrays]) -> dict[str, dict[str, float]]:
    """Scores and seconds of every method: those of its training and of its ranking."""
    given, truth = pieces["ac1"]["given"], pieces["ac1"]["truth"]
    rows = {}
    for name, (piece, rank) in METHODS.items():
        if piece not in pieces:
            continue
        start = time.process_time()
        frame = rank(pieces[piece], given)
        seconds = time.process_time() - start + float(pieces[piece]["seconds"])
        if name == "aum package":
            seconds += float(pieces[piece]["package_seconds"])
        scores = detection_scores(frame, given != truth)
        more = {"num_samples": float(len(given)), "seconds": seconds}
        rows[name] = {**scores, **more, **calibration(frame, given != truth)}
    return rows


def dynamics(piece: Arrays) -> pd.DataFrame:
    """TrainingDynamics.frame() as it was."""
    prefix = "dynamics_"
    return pd.DataFrame({k.removeprefix(prefix): v for k, v in piece.items() if k.startswith(prefix)})


def by_cleanlab(piece: Arrays, given: np.ndarray) -> pd.DataFrame:
    """cleanlab's scores and, by its defaults, its label issues."""
    from cleanlab.filter import find_label_issues as cleanlab_issues
    from cleanlab.rank import get_label_quality_scores

    probs = piece["probs"].astype(np.float64)
    quality = get_label_quality_scores(given, probs)
    return external(quality, given, cleanlab_issues(given, probs, n_jobs=1))


def by_aum_package(piece: Arrays, given: np.ndarray) -> pd.DataFrame:
    """Ranked by its values; without threshold samples it says of no label that it is an issue."""
    aum = piece["package_aum"]
    place = np.empty(len(aum))
    place[np.argsort(aum, kind="stable")] = np.linspace(0, 1, len(aum))
    return external(place, given, np.zeros(len(aum), bool))


def external(quality: np.ndarray, given: np.ndarray, flagged: np.ndarray) -> pd.DataFrame:
    columns = {"index": np.arange(len(given)), "given_label": given, "is_label_issue": flagged}
    return pd.DataFrame({**columns, "label_quality": quality})


def threshold_issues(piece: Arrays, given: np.ndarray) -> pd.DataFrame:
    return find_threshold_issues(piece["aum"], piece["sets"], given)


Rank = Callable[[Arrays, np.ndarray], pd.DataFrame]
METHODS: dict[str, tuple[str, Rank]] = {
    "Algorithm 2, AC1": ("ac1", lambda piece, given: find_label_issues(piece["alpha"], given)),
    "Algorithm 2, AC2": ("ac2", lambda piece, given: find_label_issues(piece["alpha"], given)),
    "AUM, AC1 run": ("ac1", lambda piece, given: find_label_issues(dynamics(piece), given, method="aum")),
    "confidence, AC1 run": (
        "ac1",
        lambda piece, given: find_label_issues(dynamics(piece), given, method="confidence"),
    ),
    "combined, AC1 run": (
        "ac1",
        lambda piece, given: find_label_issues(piece["alpha"], given, dynamics=dynamics(piece)),
    ),
    "AUM": ("plain", lambda piece, given: find_label_issues(dynamics(piece), given, method="aum")),
    "combined": ("plain", lambda piece, given: find_label_issues(dynamics(piece), given)),
    "AUM, threshold samples": ("thresholds", threshold_issues),
    "aum package": ("plain", by_aum_package),
    "cleanlab": ("folds", by_cleanlab),
}
"""Name -> (the training that it ranks by, the ranking). The plain run is cross entropy without α."""


def calibration(frame: pd.DataFrame, wrong: np.ndarray) -> dict[str, float]:
    """The expected calibration error of label_quality as a probability that the label is right, in ten bins."""
    by_id = frame.sort_values("index")["label_quality"].to_numpy(np.float64)
    known = ~np.isnan(by_id)
    quality, right = by_id[known], ~wrong[known]
    bins = np.minimum((quality * 10).astype(int), 9)
    gaps = [
        abs(quality[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
    ]
    return {"calibration_error": float(sum(gaps))}


# ---------------------------------------------------------------- over the seeds


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, lowest and highest over the seeds, a row for each data set, noise, rate and method."""
    groups: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for result in results:
        for method, row in result["methods"].items():
            size = {"flagged_share": row["num_flagged"] / row["num_samples"]}
            key = (result["data"], result["noise"], result["rate"], method)
            groups.setdefault(key, []).append({**row, **size})
    rows = []
    for (data, noise, rate, method), runs in groups.items():
        row: dict[str, Any] = {
            "data": data,
            "noise": noise,
            "rate": rate,
            "method": method,
            "seeds": len(runs),
        }
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            row[name] = {"mean": values.mean(), "low": values.min(), "high": values.max()}
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
