"""Figures 4 to 6: single images with α̂ and its percentile ranks, ours beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastac.data import Samples
from fastac.extras import require
from fastac.paper.image_offsets import Offsets, Spread, read_offsets
from fastac.paper.published import IMAGE_LIMIT, IMAGES, PublishedImage
from fastac.paper.tables import Report, aligned
from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, plain_text, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ImagesReport", "add_images", "published_peak"]

_QUANTITIES = {
    "max_rank": "MaxRank (%)",
    "min_rank": "MinRank (%)",
    "alpha": "α̂ of the label",
    "other_alpha": "α̂ of the alternative",
}
_BELOW = f"a rank < {IMAGE_LIMIT:g} %"
_NOT_RUN = "not run"


def published_peak(row: str) -> float | None:
    """The largest α̂ that the paper shows of a row's data set, in logits."""
    return max((image.alpha for image in IMAGES[row] if image.alpha is not None), default=None)


def add_images(report: Report, samples: Mapping[str, Samples]) -> ImagesReport:
    """The report with what its runs have of the published images. samples: by row, the training images; those of a row
    with a finished run are needed."""
    peaks: dict[str, list[float]] = {}
    offsets: dict[tuple[str, int], list[Offsets]] = {}
    for (row, column), cell in report.grid.cells.items():
        for result in report.results.get((row, column), ()):
            run = cell.runs(result["seed"], report.settings)[-1]
            peak, found = read_offsets(run.folder.path, IMAGES[row], samples[row].class_names)
            peaks.setdefault(row, []).append(peak)
            for image, one in zip(IMAGES[row], found, strict=True):
                offsets.setdefault((row, image.number), []).append(one)
    return ImagesReport(**vars(report), peaks=peaks, offsets=offsets, samples=samples)


@dataclass(frozen=True)
class ImagesReport(Report):
    """peaks: by row, the largest α̂ of each run. offsets: by row and the image's number, of each run. samples: by row,
    the training images, where they are at hand."""

    peaks: Mapping[str, Sequence[float]]
    offsets: Mapping[tuple[str, int], Sequence[Offsets]]
    samples: Mapping[str, Samples]

    @property
    def what_is_here(self) -> str:
        return f"mean (least to largest) over {self.seeds} seed(s); accuracy: {super().what_is_here}"

    def images(self) -> Iterator[tuple[str, PublishedImage]]:
        """All of the grid's rows."""
        return ((row, image) for row in self.grid.rows for image in IMAGES[row])

    def data_label(self, row: str, image: PublishedImage) -> str | None:
        """The image's label in the data set, None where that is not at hand."""
        if row not in self.samples:
            return None
        samples = self.samples[row]
        return samples.class_names[samples.labels[image.index]]

    def spread(self, row: str, image: PublishedImage, quantity: str) -> Spread | None:
        """quantity: a field of Offsets. None where no run has it."""
        values = [getattr(one, quantity) for one in self.offsets.get((row, image.number), ())]
        known = tuple(value for value in values if value is not None)
        return Spread(known) if known else None

    def remarks(self) -> list[str]:
        lines = super().remarks()
        for row, image in self.images():
            label = self.data_label(row, image)
            if label is not None and label != image.label:
                lines.append(
                    f"{self._heading(row, image)}: the label in this data is {label}; it is another image"
                )
        return lines

    def _heading(self, row: str, image: PublishedImage) -> str:
        data = self.grid.rows[row].split()[0]
        return f"#{image.number}, {data} id {image.index}: {image.label}, alternative {image.other}"

    def _peak_lines(self, row: str) -> tuple[list[str], list[str]]:
        """A row's largest α̂ and accuracy, ours and the published ones."""
        accuracies = self._cells(row)
        found = self.peaks.get(row)
        peak = str(Spread(tuple(found))) if found else _NOT_RUN
        return [peak, *accuracies[0]], [_number(published_peak(row)), *accuracies[1]]

    def _image_lines(self, row: str, image: PublishedImage) -> tuple[list[str], list[str]]:
        """An image's numbers, ours and the published ones."""
        published = [_number(getattr(image, name)) for name in _QUANTITIES]
        published.append("yes" if image.below_limit else "no")
        found = self.offsets.get((row, image.number), ())
        if not found:
            return [_NOT_RUN, *[""] * len(_QUANTITIES)], published
        spreads = [self.spread(row, image, name) for name in _QUANTITIES]
        below = f"{sum(one.below_limit for one in found)} of {len(found)} seed(s)"
        known = image.other in self.samples[row].class_names
        missing = "not kept" if known else _number(None)
        return [missing if one is None else str(one) for one in spreads] + [below], published

    def _tables(self) -> list[tuple[list[str], list[tuple[str, list[str], list[str]]]]]:
        """Both tables: their columns; their lines, each a heading, ours and the published ones."""
        peaks = [(name, *self._peak_lines(row)) for row, name in self.grid.rows.items()]
        images = [(self._heading(row, image), *self._image_lines(row, image)) for row, image in self.images()]
        return [(["largest α̂", "test accuracy (%)"], peaks), ([*_QUANTITIES.values(), _BELOW], images)]

    def text(self) -> str:
        parts = [self.grid.title, ""]
        for columns, table in self._tables():
            lines = [["", *columns]]
            for heading, ours, published in table:
                lines += [[heading], [f"  {self.here}", *ours], ["  published", *published]]
            parts += [aligned(lines), ""]
        return "\n".join([*parts, *self.remarks()])

    def markdown(self) -> str:
        lines = [f"### {self.grid.title}", ""]
        for columns, table in self._tables():
            lines += [f"| | | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
            for heading, ours, published in table:
                lines.append(f"| {heading} | {self.here} | {' | '.join(ours)} |")
                lines.append(f"| | published | {' | '.join(published)} |")
            lines.append("")
        return "\n".join([*lines, *(f"- {remark}" for remark in self.remarks())])

    def record(self) -> dict[str, Any]:
        """Everything, with each run's numbers in the order of its cell's runs."""
        images = [
            {
                "row": row,
                "published": asdict(image),
                "label_in_data": self.data_label(row, image),
                "mean": {
                    name: None if (spread := self.spread(row, image, name)) is None else spread.mean
                    for name in _QUANTITIES
                },
                "runs": [
                    {**asdict(one), "below_limit": one.below_limit}
                    for one in self.offsets.get((row, image.number), ())
                ],
            }
            for row, image in self.images()
        ]
        peaks = {
            row: {"published": published_peak(row), "runs": list(self.peaks.get(row, ()))}
            for row in self.grid.rows
        }
        return {**super().record(), "largest_alpha": peaks, "limit_percent": IMAGE_LIMIT, "images": images}

    def plot(self, out: Path) -> None:
        """A line an image: the image, its numbers, and α̂ of some classes in the first run."""
        images, limits = list(self.images()), self._limits()
        with drawing():
            figure = new_figure(12.5, 0.9 + 2.0 * len(images), layout="constrained")
            grid = figure.subplots(len(images), 3, squeeze=False, width_ratios=(1.1, 4, 2.4))
            for (picture, numbers, bars), (row, image) in zip(grid, images, strict=True):
                self._draw_image(picture, row, image)
                self._draw_numbers(numbers, row, image)
                self._draw_bars(bars, row, image, limits)
            title = f"{self.grid.title}{self.changed}"
            figure.suptitle(plain_text(title, 150), parse_math=False, wrap=True)
            write_png(figure, out)

    def _draw_image(self, axes: Axes, row: str, image: PublishedImage) -> None:
        axes.set_axis_off()
        if row in self.samples:
            axes.imshow(self.samples[row].image(image.index), interpolation="nearest")
        else:
            axes.text(0.5, 0.5, "not at hand", ha="center", va="center", transform=axes.transAxes)

    def _draw_numbers(self, axes: Axes, row: str, image: PublishedImage) -> None:
        axes.set_axis_off()
        heading = plain_text(self._heading(row, image), 60)
        axes.text(0, 1, heading, va="top", weight="bold", transform=axes.transAxes, parse_math=False)
        ours, published = self._image_lines(row, image)
        names = [*_QUANTITIES.values(), _BELOW]
        columns = [["", *names], [self.here, *ours], ["published", *published]]
        for left, column in zip((0, 0.36, 0.84), columns, strict=True):
            for place, text in enumerate(column):  # lines of one text are as high as their letters
                axes.text(left, 0.76 - 0.13 * place, plain_text(text, 60), transform=axes.transAxes)

    def _limits(self) -> tuple[float, float]:
        """Of all bars, so that images can be compared."""
        kept = [value for found in self.offsets.values() if found for value in found[0].classes.values()]
        low, high = min(kept, default=0.0), max(kept, default=0.0)
        margin = 0.05 * (high - low) or 1.0
        return min(low, 0.0) - margin, max(high, 0.0) + margin

    def _draw_bars(self, axes: Axes, row: str, image: PublishedImage, limits: tuple[float, float]) -> None:
        found = self.offsets.get((row, image.number), ())
        if not found or not found[0].classes:
            text = "α̂ by class: not kept" if found else _NOT_RUN
            axes.set_axis_off()
            axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
            return
        classes = found[0].classes
        names, values = list(classes)[::-1], list(classes.values())[::-1]
        colours = [{image.label: VERMILLION, image.other: BLUE}.get(name, "#999999") for name in names]
        axes.barh(range(len(names)), values, color=colours)
        axes.set_yticks(range(len(names)), [plain_text(name, 20) for name in names], parse_math=False)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(5))
        axes.set_xlabel(f"α̂ (logits), seed {self.results[row, 'ac1-aa'][0]['seed']}")
        axes.spines[["top", "right"]].set_visible(False)


def _number(value: float | None) -> str:
    """The paper's dash for what it has no number of."""
    return "–" if value is None else f"{value:.3f}"
