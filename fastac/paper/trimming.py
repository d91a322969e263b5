"""Figure 3's runs: labels that AutoCleansing's α finds are dropped, τ per cent of them, and the network trained again.

Section 4.2 and Algorithm 2. The network that finds them is the one of the column AC1+AA, the one that is trained on
what is left has AutoAugment and plain cross entropy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fastac.issues.run_scores import rank_run
from fastac.paper.runs import Run, Settings, exclude_path, make_run, plain_runs, write_ids

__all__ = ["TAUS", "trimmed_chain", "trimmed_ids", "trimmed_taus"]

TAUS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Per cent of the training set; the figure's axis has marks from 0 to 0.8 %."""


def trimmed_chain(tau: float) -> partial[list[Run]]:
    """The runs of a cell: those of `trimmed_runs` at this τ."""
    return partial(trimmed_runs, tau=tau)


def trimmed_runs(base: str, seed: int, settings: Settings, *, tau: float) -> list[Run]:
    """The run with AC1, then that of the base network without the τ % that Algorithm 2 lists. τ = 0: the latter on
    everything."""
    if tau == 0:
        return plain_runs(f"{base}+aa", seed, settings)
    (detector,) = plain_runs(f"{base}+ac1-aa", seed, settings)
    stem = f"{base}+aa-trimmed{tau:g}-seed{seed}"
    path = exclude_path(settings, stem if settings.short == 1 else f"{stem}-short{settings.short:g}")

    def trim(folders: Mapping[str, Path]) -> None:
        write_ids(path, trimmed_ids(folders[detector.name], tau))

    values = {"exclude": str(path)}
    return [detector, make_run(stem, f"{base}+aa", seed, settings, values, (detector.name,), trim)]


def trimmed_ids(folder: Path, tau: float) -> list[int]:
    """The first round(τ/100 · N) samples of Algorithm 2 in a run with AC1, ascending."""
    ranking = rank_run(folder, method="alpha", percent=tau)
    ids: list[int] = sorted(ranking.loc[ranking["is_label_issue"], "index"].tolist())
    return ids


def trimmed_taus(settings: Settings) -> list[float]:
    """The τ above 0 of the finished runs in the output that train the same share of the epochs, ascending."""
    end = "" if settings.short == 1 else re.escape(f"-short{settings.short:g}")
    name = re.compile(rf".+\+aa-trimmed(\d+(?:\.\d+)?(?:e-\d+)?)-seed\d+{end}")
    folders = (path.parent.name for path in settings.output.glob("*+aa-trimmed*/result.json"))
    return sorted({float(match[1]) for folder in folders if (match := name.fullmatch(folder))})
