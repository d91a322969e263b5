"""A contact sheet: suspicious samples with their images and offsets, after the paper's Figures 4 to 6."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastac.extras import require
from fastac.report.offsets import centered_rows
from fastac.report.plots import BLUE, VERMILLION, drawing, new_figure, plain_text, write_png
from fastac.report.readable import ReadableImages

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["contact_sheet"]

_DPI = 100
_CARD_WIDTH, _CARD_HEIGHT = 440, 196  # pixels, as all sizes here
_MARGIN, _PAD, _LINE = 14, 10, 19
_IMAGE = 144
_TEXT = 2 * _PAD + _IMAGE  # where the text beside the image starts
_CHART = _CARD_WIDTH - _TEXT - _PAD - 40  # width of the bars' axes, right of their numbers
_GREEN, _WINE, _GREY, _LIGHT, _BLANK = "#007A5A", "#882255", "#555555", "#BBBBBB", "#EEEEEE"


class _Samples(Protocol):
    """What this needs of fastac.data.Samples."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def image(self, index: int) -> np.ndarray: ...


def contact_sheet(
    samples: _Samples,
    issues: pd.DataFrame,
    out: Path,
    *,
    alpha: Any = None,
    true_labels: Any = None,
    rows: int = 5,
    columns: int = 4,
    title: str = "Most suspicious labels",
) -> None:
    """Draw the first rows × columns samples of `issues` as a PNG file.

    A card has the image, the sample's id, the given and the suggested label, MaxRank and MinRank in per cent,
    and bars of α̂ = α − mean_k α by class number: of all classes, or of the ten (above 10,000 classes:
    five) with the largest |α̂|. The given and the suggested label have their bars in colour and the values
    beside their names. AC2 and AUM have their score instead of bars.

    samples: fastac.data.Samples, the split that the ids refer to.
    issues: from fastac.find_label_issues; any of its rows, in any order.
    out: the PNG file to write.
    alpha: for the bars AC1's α, (N, K), as array, tensor or AlphaTable, or the CenteredRows of these samples. Without
        it the highest and the lowest α̂ are written out. AC2's (N,) adds nothing to `issues`.
    true_labels: (N,) integers, where they are known: each card then says whether the label is really wrong.
    title: over the sheet; should name the data and the run.

    An image whose file cannot be read any more is a grey square, and a warning says so.
    Raises ValueError for arguments that do not fit each other.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be 1 or more, got {rows} and {columns}")
    cards = _cards(samples, issues.head(rows * columns), alpha, true_labels)
    images = ReadableImages(samples.image)
    with drawing():
        sheet = _Sheet(title, _legend(cards), samples.class_names, len(cards), columns)
        limits = _limits(cards)
        for i, card in enumerate(cards):
            left, top = sheet.corner(i)
            _draw_image(sheet, images(card.index), left + _PAD, top + _CARD_HEIGHT - _PAD - _IMAGE)
            _draw_heading(sheet, card, left, top)
            _draw_labels(sheet, card, left, top)
            if card.row is None:
                sheet.text(left + _TEXT, top + 126, card.score, 13)
            else:
                _draw_bars(sheet, card, card.row, limits, left, top)
        write_png(sheet.figure, out)
    images.warn(str(out))


@dataclass(frozen=True)
class _Card:
    index: int
    given: int
    suggested: int | None
    true: int | None  # None where it is not known
    ranks: str
    score: str  # shown where there are no bars
    row: np.ndarray | None  # (K,) α̂


class _Sheet:
    """A white figure in pixels from its upper left corner, with a heading and a grid of empty cards."""

    def __init__(
        self,
        title: str,
        legend: list[tuple[str, str]],
        class_names: tuple[str, ...],
        num_cards: int,
        columns: int,
    ):
        columns = min(columns, num_cards)
        self.class_names = class_names
        agg = require("matplotlib.backends.backend_agg", "report")
        self._measure = agg.RendererAgg(8, 8, _DPI).get_text_width_height_descent
        self._font = require("matplotlib.font_manager", "report").FontProperties
        self.width = 2 * _MARGIN + columns * (_CARD_WIDTH + _PAD) - _PAD
        places = self._flow(legend)
        self.head = _MARGIN + 34 + (places[-1][1] + _LINE if places else 0) + 6
        self.height = self.head + -(-num_cards // columns) * (_CARD_HEIGHT + _PAD) - _PAD + _MARGIN
        self.columns = columns
        self.figure = new_figure(self.width / _DPI, self.height / _DPI, dpi=_DPI)
        title = self.fit(title, 13, self.width - 2 * _MARGIN, "bold")
        self.text(_MARGIN, _MARGIN + 14, title, 13, weight="bold")
        for (text, colour), (x, y) in zip(legend, places, strict=True):
            self.text(_MARGIN + x, _MARGIN + 44 + y, text, 9, color=colour)
        for i in range(num_cards):
            self.box(*self.corner(i), _CARD_WIDTH, _CARD_HEIGHT, facecolor="none", edgecolor="#DDDDDD")

    def corner(self, card: int) -> tuple[int, int]:
        row, column = divmod(card, self.columns)
        return _MARGIN + column * (_CARD_WIDTH + _PAD), self.head + row * (_CARD_HEIGHT + _PAD)

    def measure(self, text: str, size: float, weight: str = "normal") -> float:
        return float(self._measure(text, self._font(size=size, weight=weight), False)[0])

    def fit(self, text: str, size: float, width: float, weight: str = "normal") -> str:
        """`text` on one line, cut so that it is at most `width` pixels wide."""
        text = plain_text(text, 200)
        for end in range(len(text), 0, -1):
            cut = text if end == len(text) else text[:end].rstrip() + "…"
            if self.measure(cut, size, weight) <= width:
                return cut
        return ""

    def tick_size(self, labels: list[str], width: float) -> float:
        """The font size, 8 where it can be, at which these labels at even steps over `width` do not touch."""
        room = width / (len(labels) + 0.2) - 3
        return min(8.0, 8.0 * room / max(self.measure(label, 8) for label in labels))

    def text(self, x: float, y: float, text: str, size: float, **look: Any) -> None:
        """Write `text` on the line y, as it is: dollar signs start no formula."""
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, size=size, va="baseline", parse_math=False, **look)

    def box(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        corner = (x / self.width, 1 - (y + height) / self.height)
        size = (width / self.width, height / self.height)
        rectangle = require("matplotlib.patches", "report").Rectangle
        self.figure.add_artist(rectangle(corner, *size, linewidth=1, **look))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def _flow(self, legend: list[tuple[str, str]]) -> list[tuple[float, int]]:
        """Places of the legend's entries, beside each other in as many lines as they need."""
        x, y, places = 0.0, 0, []
        for text, _ in legend:
            wide = self.measure(text, 9)
            if x > 0 and x + wide > self.width - 2 * _MARGIN:
                x, y = 0.0, y + _LINE
            places.append((x, y))
            x += wide + 22
        return places


# ---- a card


def _draw_image(sheet: _Sheet, pixels: np.ndarray | None, left: int, top: int) -> None:
    """Into a square of _IMAGE pixels, centred; small images by a whole factor, so that their pixels show. None: a grey
    square that says so."""
    if pixels is None:
        sheet.box(left, top, _IMAGE, _IMAGE, facecolor=_BLANK, edgecolor=_BLANK)
        sheet.text(left + _IMAGE / 2, top + _IMAGE / 2 + 4, "no image", 9, color=_GREY, ha="center")
        return
    images = require("PIL.Image", "report")
    height, width = pixels.shape[:2]
    scale = _IMAGE / max(height, width)
    scale = math.floor(scale) if scale >= 2 else scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    filter_ = images.Resampling.NEAREST if scale >= 1 else images.Resampling.LANCZOS
    image = (
        images.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        .convert("RGB")
        .resize(size, filter_)
    )
    x, y = left + (_IMAGE - size[0]) // 2, top + (_IMAGE - size[1]) // 2
    sheet.figure.figimage(np.asarray(image), xo=x, yo=sheet.height - y - size[1], origin="upper")


def _draw_heading(sheet: _Sheet, card: _Card, left: int, top: int) -> None:
    number = f"#{card.index}"
    sheet.text(left + _PAD, top + 22, number, 11, weight="bold")
    if card.true is None:
        return
    x = max(float(_TEXT), _PAD + sheet.measure(number, 11, "bold") + 16)
    width = _CARD_WIDTH - _PAD - x
    if card.true == card.given:
        sheet.text(left + x, top + 22, sheet.fit("✗ the label is right", 9.5, width), 9.5, color=_WINE)
    else:
        lead = "✓ wrong, it is "
        name = _class_text(sheet, card.true, 9.5, width - sheet.measure(lead, 9.5))
        sheet.text(left + x, top + 22, lead + name, 9.5, color=_GREEN)


def _draw_labels(sheet: _Sheet, card: _Card, left: int, top: int) -> None:
    start, end, y = left + _TEXT, left + _CARD_WIDTH - _PAD, top + 46
    for what, label, colour in (("given", card.given, VERMILLION), ("suggested", card.suggested, BLUE)):
        sheet.text(start, y, what, 9, color=_GREY)
        width = float(end - start - 78)
        if card.row is not None and label is not None:
            value = _number(card.row[label], signed=True)
            sheet.text(end, y, value, 9, color=colour, ha="right")
            width -= sheet.measure(value, 9) + 10
        name = "none" if label is None else _class_text(sheet, label, 9, width, "bold")
        sheet.text(start + 78, y, name, 9, color=_GREY if label is None else colour, weight="bold")
        y += _LINE
    sheet.text(start, y, card.ranks, 9, color=_GREY)


def _draw_bars(
    sheet: _Sheet, card: _Card, row: np.ndarray, limits: tuple[float, float], left: int, top: int
) -> None:
    """α̂ by class; all cards have the same limits, so that their bars compare."""
    named = (card.given, card.suggested)
    order = sorted(range(len(row)), key=lambda k: (k not in named, -abs(row[k]), k))
    classes = sorted(order[: _num_bars(len(row))])
    colours = {card.suggested: BLUE, card.given: VERMILLION}
    axes = sheet.axes(left + _CARD_WIDTH - _PAD - _CHART, top + 100, _CHART, 74)
    axes.bar(range(len(classes)), row[classes], color=[colours.get(k, _LIGHT) for k in classes], width=0.8)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.set_ylim(*limits)
    axes.set_xlim(-0.6, len(classes) - 0.4)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    numbers = [str(k) for k in classes]
    axes.set_xticks(range(len(classes)), numbers, size=sheet.tick_size(numbers, _CHART))
    axes.tick_params("x", length=0, pad=2)
    axes.tick_params("y", labelsize=7.5, length=3, pad=2)
    ticker = require("matplotlib.ticker", "report")
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def _num_bars(num_classes: int) -> int:
    return min(num_classes, 10 if num_classes <= 10_000 else 5)  # more long numbers could not be read


# ---- what is written


def _legend(cards: list[_Card]) -> list[tuple[str, str]]:
    entries = []
    if cards[0].row is not None:
        num_classes = len(cards[0].row)
        num_bars = _num_bars(num_classes)
        bars = f"the {num_bars} classes with the largest |α̂|" if num_bars < num_classes else "all classes"
        entries += [("■ given label", VERMILLION), ("■ suggested label", BLUE)]
        entries += [(f"bars: α̂ (logits) of {bars}, by number", _GREY)]
    if cards[0].true is not None:
        wrong = sum(card.true != card.given for card in cards)
        entries += [("✓ the label is really wrong", _GREEN), ("✗ the label is right", _WINE)]
        entries += [(f"really wrong: {wrong} of these {len(cards)}", "black")]
    return entries


def _class_text(sheet: _Sheet, label: int, size: float, width: float, weight: str = "normal") -> str:
    """A class's name and number; a long name is cut, the number stays."""
    name = sheet.class_names[label]
    number = "" if name == str(label) else f" ({label})"
    return sheet.fit(name, size, width - sheet.measure(number, size, weight), weight) + number


def _number(value: float, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    digits = ".3f" if value == 0 or 1e-3 <= abs(value) < 1e4 else ".1e"
    return format(value, sign + digits).replace("-", "−")


# ---- what the cards hold


def _cards(samples: _Samples, shown: pd.DataFrame, alpha: Any, true_labels: Any) -> list[_Card]:
    ids = shown["index"].to_numpy(np.int64)
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= len(samples):
        raise ValueError(
            f"issues must have a row at least, and ids in [0, {len(samples)}), as many as samples"
        )
    num_classes = len(samples.class_names)
    given = _labels("issues: given_label", shown["given_label"].to_numpy(float), num_classes)
    suggested = _labels(
        "issues: suggested_label", shown["suggested_label"].to_numpy(float, na_value=math.nan), num_classes
    )
    true = None
    if true_labels is not None:
        true = np.asarray(true_labels)
        if true.shape != (len(samples),) or true.dtype.kind not in "iu":
            raise ValueError(f"true_labels must be ({len(samples)},) integers, got {true.shape} {true.dtype}")
        true = _labels("true_labels", true[ids], num_classes)
    rows = None
    if alpha is not None and "aum" not in shown:
        rows = centered_rows(alpha, ids, len(samples), num_classes)
    return [
        _Card(
            index=int(ids[i]),
            given=int(given[i]),
            suggested=None if math.isnan(suggested[i]) else int(suggested[i]),
            true=None if true is None else int(true[i]),
            ranks=_ranks(shown["max_rank"].iloc[i], shown["min_rank"].iloc[i]),
            score=_score(shown.iloc[i]),
            row=None if rows is None else rows[i],
        )
        for i in range(len(ids))
    ]


def _labels(name: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        raise ValueError(f"{name} must be in [0, {num_classes}), got {labels[bad][0]:g}")
    return labels


def _ranks(max_rank: float, min_rank: float) -> str:
    named = (("MaxRank", max_rank), ("MinRank", min_rank))
    return "   ".join(f"{name} {rank:.3f} %" for name, rank in named if not math.isnan(rank))


def _score(issue: pd.Series[Any]) -> str:
    if "aum" in issue:
        return f"AUM {_number(issue['aum'])}"
    if math.isnan(issue["alpha_min"]):
        return f"α {_number(issue['alpha_max'], signed=True)}"
    return f"α̂ from {_number(issue['alpha_min'], signed=True)} to {_number(issue['alpha_max'], signed=True)}"


def _limits(cards: list[_Card]) -> tuple[float, float]:
    """Of the bars' axes: all of α̂ that is shown, and 0."""
    values = np.concatenate([np.zeros(1), *(card.row for card in cards if card.row is not None)])
    room = 0.06 * float(np.ptp(values))
    return (float(values.min()) - room, float(values.max()) + room) if room > 0 else (-1.0, 1.0)
