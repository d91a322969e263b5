"""Figure 3's picture: accuracy on trimmed data over τ, beside AutoCleansing's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastac.extras import require
from fastac.paper.summary import Summary
from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, plain_text, write_png

__all__ = ["plot_trimmed"]


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
