"""`python -m fastac.demo`: plain cross entropy beside AutoCleansing on digits with wrong labels, in a minute."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastac.config import load_config
from fastac.report.plots import plot_curves
from fastac.run import RunFolder
from fastac.train import train

__all__ = ["main"]

LOSSES = {"ce": "cross entropy", "ac1": "AutoCleansing (AC1)"}


def main(argv: Sequence[str] | None = None) -> int:
    """Train the demo recipe with each loss, and print what they gained."""
    parser = argparse.ArgumentParser(prog="python -m fastac.demo", description=__doc__)
    parser.add_argument("--output", default="runs", help="folder of the run folders (default: runs)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of start, shuffles and flipped labels (default: 0)"
    )
    options = parser.parse_args(argv)
    results: dict[str, dict[str, Any]] = {}
    for loss in LOSSES:
        values = {"loss": loss, "output": options.output, "seed": options.seed, "noise_seed": options.seed}
        print(f"\n--- {LOSSES[loss]}", file=sys.stderr, flush=True)
        results[loss] = train(load_config("demo", values))
    print(comparison(results))
    folders = {loss: RunFolder(Path(result["folder"])) for loss, result in results.items()}
    title = f"{results['ac1']['dataset']}, {results['ac1']['model']}: {' and '.join(LOSSES.values())}"
    curves = folders["ac1"].path / "comparison.png"
    plot_curves({LOSSES[loss]: folder.metrics for loss, folder in folders.items()}, curves, title=title)
    print(f"\naccuracy and loss by epoch:    {curves}")
    print(f"the most suspicious images:    {folders['ac1'].contact_sheet}")
    print(f"all labels, most suspicious first: {folders['ac1'].issues}")
    print(f"to decide on them on a page:   python -m fastac.review {folders['ac1'].path}")
    return 0


def comparison(results: dict[str, dict[str, Any]]) -> str:
    """Both test accuracies, and how well each run found the flipped labels."""
    first = next(iter(results.values()))
    wrong = next(iter(first["detection"].values()))["noise_rate"]
    lines = [
        f"\n{first['train_images']} training images, {wrong:.1%} of their labels flipped; "
        f"{first['test_images']} test images with right labels",
        f"\n{'':22}{'test accuracy':>15}{'AUROC':>10}{'precision':>12}{'recall':>9}   flipped labels found by",
    ]
    for loss, result in results.items():
        score = result["detection"][result["issues_by"]]
        by = {"combined": "AUM and probabilities", "alpha": "α (Algorithm 2)", "aum": "AUM"}[
            result["issues_by"]
        ]
        lines.append(
            f"{LOSSES[loss]:22}{result['test_accuracy']:>15.2%}{score['auroc']:>10.4f}"
            f"{score['precision']:>12.1%}{score['recall']:>9.1%}   {by}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
