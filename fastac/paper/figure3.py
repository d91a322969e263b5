"""Figure 3: labels that AutoCleansing's α finds are dropped, τ per cent of them, and the network is trained again.

Section 4.2 and Algorithm 2. The network that finds them is the one of the column AC1+AA, the one that is trained on
what is left has AutoAugment and plain cross entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastac.extras import require
from fastac.issues.run_scores import rank_run
from fastac.paper.runs import Run, Settings, exclude_path, make_run, plain_runs, write_ids
from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, plain_text, write_png

if TYPE_CHECKING:
    from fastac.paper.tables import Summary

__all__ = ["TAUS", "plot_trimmed", "trimmed_chain", "trimmed_ids"]

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


def plot_trimmed(
    panels: Mapping[str, tuple[Sequence[tuple[float, Summary]], Summary | None, float | None]],
    out: Path,
    *,
    here: str,
    title: str,
) -> None:
    """Test accuracy over τ beside AutoCleansing's, a panel a data set.

    panels: by title, the points (τ, accuracy), AutoCleansing's accuracy, and the published one in per cent. here: what
    our figures are called.
    """
    ticker = require("matplotlib.ticker", "report")
    with drawing():
        figure = new_figure(5.5 * len(panels), 4.6, layout="constrained")
        for axes, (name, (points, cleansed, published)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            if points:
                taus, means = [tau for tau, _ in points], [one.mean for _, one in points]
                errors = [one.half or 0.0 for _, one in points]
                axes.errorbar(
                    taus, means, errors, color=BLUE, marker="o", capsize=3, label=f"trimmed data, {here}"
                )
            if cleansed is not None:
                axes.axhline(cleansed.mean, color=VERMILLION, label=f"AutoCleansing, {here}")
                if cleansed.half is not None:
                    span = (cleansed.mean - cleansed.half, cleansed.mean + cleansed.half)
                    axes.axhspan(*span, color=VERMILLION, alpha=0.15)
            if published is not None:
                axes.axhline(published, color="black", linestyle=":", label="AutoCleansing, published")
            axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g %%"))
            axes.set_xlabel("τ, share of the training labels dropped")
            axes.set_ylabel("test accuracy (%)")
            axes.set_title(plain_text(name, 60), parse_math=False)
            axes.grid(alpha=0.3)
            axes.legend()
        figure.suptitle(plain_text(title, 150), parse_math=False, wrap=True)
        write_png(figure, out)
