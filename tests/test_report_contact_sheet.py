from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas")
matplotlib = pytest.importorskip("matplotlib")
images = pytest.importorskip("PIL.Image")

from fastac.data.decode import UnreadableImageError  # noqa: E402
from fastac.issues import find_label_issues  # noqa: E402
from fastac.report import contact_sheet as module  # noqa: E402
from fastac.report.contact_sheet import contact_sheet  # noqa: E402
from fastac.report.plots import BLUE, VERMILLION, write_png  # noqa: E402

WIDTH, HEIGHT, MARGIN, PAD = module._CARD_WIDTH, module._CARD_HEIGHT, module._MARGIN, module._PAD
ODD_NAMES = (
    "a $\\frac$ b",
    "x_1^2 $y$",
    "猫\ncat",
    "long name " * 20,
    "",
    "W" * 100,
    "\x00\x1b[31m",
    "ok",
    "~",
    "%s",
)


class Samples:
    """What the sheet asks of fastac.data.Samples."""

    def __init__(self, pixels, class_names):
        self.pixels, self.class_names = pixels, tuple(class_names)

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return self.pixels[index]


class LongNumbers(Samples):
    def __len__(self):
        return 2_000_000_000

    def image(self, index):
        return self.pixels[index - 1_281_167_000]


def example(num_classes=10, size=(28, 28, 1), num_samples=40, names=None, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num_samples, *size), dtype=np.uint8)
    labels = rng.integers(0, num_classes, num_samples)
    alpha = rng.normal(0, 0.1, (num_samples, num_classes))
    true = np.where(rng.random(num_samples) < 0.5, labels, rng.integers(0, num_classes, num_samples))
    names = names or [f"class {k}" for k in range(num_classes)]
    names = [names[k % len(names)] for k in range(num_classes)]
    return Samples(pixels, names), labels, alpha, true


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written, as they are drawn."""
    drawn = []

    def write(figure, out):
        drawn.append(figure)
        write_png(figure, out)

    monkeypatch.setattr(module, "write_png", write)
    return drawn


def read(path):
    return np.asarray(images.open(path).convert("RGB"))


def texts(figure):
    return [text for text in figure.texts if text.get_text()]


def drawn_boxes(figure):
    """Pixel boxes of all that is written, tick labels included, each with what it says."""
    renderer = figure.canvas.get_renderer()
    ticks = [
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in axis.get_ticklabels()
        if axis.get_view_interval()[0]
        <= label.get_position()[axis is axes.yaxis]
        <= axis.get_view_interval()[1]
    ]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure) + ticks]


def overlap(one, other):
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return wide > 0.5 and high > 0.5


def assert_nothing_overlaps_or_is_cut(figure):
    boxes = drawn_boxes(figure)
    width, height = figure.canvas.get_width_height()
    for what, box in boxes:
        assert box.x0 >= MARGIN - 1, what
        assert box.x1 <= width - MARGIN + 1, what
        assert box.y0 >= MARGIN, what
        assert box.y1 <= height, what
    for (what, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not overlap(box, other_box), (what, other)
    cards = [
        patch.get_window_extent()
        for patch in figure.artists
        if isinstance(patch, matplotlib.patches.Rectangle)
    ]
    top = max(card.y1 for card in cards)
    for what, box in boxes:
        if box.y0 < top:  # below the heading: inside of one card
            inside = [c.x0 < box.x0 and box.x1 < c.x1 and c.y0 < box.y0 and box.y1 < c.y1 for c in cards]
            beside = [
                box.y0 > c.y0 + PAD + module._IMAGE or box.x0 > c.x0 + PAD + module._IMAGE for c in cards
            ]
            assert not any(i and not b for i, b in zip(inside, beside, strict=True)), what  # not on the image
            assert sum(inside) == 1, what


@pytest.mark.parametrize(
    ("num_classes", "names", "columns", "scale", "known"),
    [
        (3, None, 1, 1, True),
        (10, ODD_NAMES, 2, 1e-5, True),
        (10, ODD_NAMES, 2, 1e6, False),
        (100, None, 3, 1, False),
        (1200, ODD_NAMES, 3, 1e-2, True),
        (130_000, ODD_NAMES, 1, 1, True),
    ],
)
def test_nothing_overlaps_or_is_cut(tmp_path, figures, num_classes, names, columns, scale, known):
    samples, labels, alpha, true = example(num_classes, names=names, num_samples=4)
    alpha *= scale
    alpha[:, -10:] *= 50  # the largest class numbers are shown
    title = "$\\frac$ a long title " * 20
    contact_sheet(
        samples,
        find_label_issues(alpha, labels),
        tmp_path / "sheet.png",
        alpha=alpha,
        true_labels=true if known else None,
        rows=1,
        columns=columns,
        title=title,
    )
    assert_nothing_overlaps_or_is_cut(figures[0])


@pytest.mark.parametrize("method", ["alpha", "aum"])
def test_nothing_overlaps_without_bars(tmp_path, figures, method):
    samples, labels, alpha, true = example(names=ODD_NAMES)
    scores = alpha[:, 0] * 1e6
    frame = find_label_issues(scores, labels, method=method)
    frame["index"] += 1_281_167_000  # long numbers
    samples.__class__ = LongNumbers
    contact_sheet(samples, frame, tmp_path / "sheet.png", rows=2, columns=2)
    assert_nothing_overlaps_or_is_cut(figures[0])


def test_what_a_card_says(tmp_path, figures):
    names = ["truck", "cat", "dog"]
    samples = Samples(np.zeros((50_000, 8, 8, 1), np.uint8), names)
    alpha = np.zeros((50_000, 3))
    alpha[18310] = [0.0, 0.3, -0.9]  # α̂: 0.2, 0.5, -0.7
    alpha[7] = [0.0, -0.3, 0.3]
    labels = np.ones(50_000, int)
    labels[7] = 2
    true = labels.copy()
    true[18310] = 0
    frame = find_label_issues(torch.from_numpy(alpha), labels)
    for source in (alpha, torch.from_numpy(alpha).requires_grad_()):
        contact_sheet(
            samples, frame, tmp_path / "sheet.png", alpha=source, true_labels=true, rows=1, columns=2
        )
        said = [text.get_text() for text in texts(figures[-1])]
        assert said[0] == "Most suspicious labels"
        assert said[1:7] == [
            "■ given label",
            "■ suggested label",
            "bars: α̂ (logits) of all classes, by number",
            "✓ the label is really wrong",
            "✗ the label is right",
            "really wrong: 1 of these 2",
        ]
        first = [
            "#18310",
            "✓ wrong, it is truck (0)",
            "given",
            "+0.500",
            "cat (1)",
            "suggested",
            "−0.700",
            "dog (2)",
        ]
        assert said[7:16] == [*first, "MaxRank 0.002 %   MinRank 0.002 %"]
        second = [
            "#7",
            "✗ the label is right",
            "given",
            "+0.300",
            "dog (2)",
            "suggested",
            "−0.300",
            "cat (1)",
        ]
        assert said[16:] == [*second, "MaxRank 0.004 %   MinRank 0.004 %"]
        colours = {text.get_text(): text.get_color() for text in texts(figures[-1])}
        assert colours["+0.500"] == VERMILLION
        assert colours["−0.700"] == BLUE
        assert colours["✓ wrong, it is truck (0)"] != colours["✗ the label is right"]
        bars = figures[-1].axes[0].patches
        assert [bar.get_height() for bar in bars] == pytest.approx([0.2, 0.5, -0.7])
        shades = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in bars]
        assert shades[1:] == [VERMILLION, BLUE]
        assert shades[0] not in (VERMILLION, BLUE)
        limits = {axes.get_ylim() for axes in figures[-1].axes}
        assert len(limits) == 1  # bars of different cards compare
        assert limits.pop()[0] < -0.7


def test_bars_of_many_classes(tmp_path, figures):
    samples, labels, alpha, _ = example(100)
    alpha -= alpha.mean(1, keepdims=True)
    frame = find_label_issues(alpha, labels)
    frame.loc[0, "suggested_label"] = int(np.abs(alpha[frame["index"][0]]).argmin())  # not among the largest
    contact_sheet(samples, frame, tmp_path / "sheet.png", alpha=alpha, rows=1, columns=1)
    row = alpha[frame["index"][0]]
    shown = [int(label.get_text()) for label in figures[0].axes[0].get_xticklabels()]
    named = {int(frame["given_label"][0]), int(frame["suggested_label"][0])}
    largest = [k for k in np.argsort(-np.abs(row)).tolist() if k not in named][: 10 - len(named)]
    assert shown == sorted(named | set(largest))
    assert [bar.get_height() for bar in figures[0].axes[0].patches] == pytest.approx(row[shown])


def test_scores_in_place_of_bars(tmp_path, figures):
    samples, labels, alpha, _ = example()
    out = tmp_path / "sheet.png"
    offsets = np.linspace(-0.5, 0.345, 40)
    contact_sheet(samples, find_label_issues(offsets, labels), out, alpha=offsets, rows=1, columns=1)
    said = [text.get_text() for text in texts(figures[0])]
    assert said[-1] == "α +0.345"
    assert "MaxRank 2.500 %" in said
    assert said[said.index("suggested") + 1] == "none"
    frame = find_label_issues(offsets * 10, labels, method="aum", pred_labels=labels)
    contact_sheet(samples, frame, out, alpha=alpha, rows=1, columns=1)
    said = [text.get_text() for text in texts(figures[1])]
    assert said[-1] == "AUM −5.000"
    assert said[said.index("suggested") + 1] == f"class {labels[0]} ({labels[0]})"
    alpha[3] = [0, 5, -4, 0, 0, 0, 0, 0, 0, -1]
    contact_sheet(samples, find_label_issues(alpha, labels), out, rows=1, columns=1)
    assert texts(figures[2])[-1].get_text() == "α̂ from −4.000 to +5.000"
    assert [len(figure.axes) for figure in figures] == [0, 0, 0]


def image_box(path, card=0, columns=1, legend=False):
    """The square that a card's image is in."""
    row, column = divmod(card, columns)
    sheet = read(path)
    cards = row + 1
    top = sheet.shape[0] - MARGIN - cards * HEIGHT - (cards - 1) * PAD + row * (HEIGHT + PAD)
    left = MARGIN + column * (WIDTH + PAD)
    side = module._IMAGE
    return sheet[top + HEIGHT - PAD - side : top + HEIGHT - PAD, left + PAD : left + PAD + side]


@pytest.mark.parametrize("size", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (20, 32, 3)])
def test_small_images_are_enlarged_pixel_by_pixel(tmp_path, size):
    samples, labels, alpha, _ = example(size=size)
    frame = find_label_issues(alpha, labels)
    contact_sheet(samples, frame, tmp_path / "sheet.png", alpha=alpha, rows=1, columns=1)
    factor = 144 // max(size[:2])
    pixels = np.broadcast_to(samples.pixels[frame["index"][0]], (*size[:2], 3))
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    top, left = (144 - large.shape[0]) // 2, (144 - large.shape[1]) // 2
    box = image_box(tmp_path / "sheet.png")
    np.testing.assert_array_equal(box[top : top + large.shape[0], left : left + large.shape[1]], large)
    np.testing.assert_array_equal(box[:top], 255)
    np.testing.assert_array_equal(box[:, :left], 255)


def test_large_images_are_scaled_down_whole(tmp_path):
    pixels = np.zeros((2, 600, 1200, 3), np.uint8)
    pixels[:, :, :600] = [200, 0, 0]
    pixels[:, :, 600:] = [0, 0, 200]
    frame = find_label_issues(np.array([0.2, 0.1]), [0, 1])
    contact_sheet(Samples(pixels, ["a", "b"]), frame, tmp_path / "sheet.png", rows=1, columns=1)
    box = image_box(tmp_path / "sheet.png")
    np.testing.assert_array_equal(box[:36], 255)
    np.testing.assert_array_equal(box[108:], 255)
    assert box[37:107, 2:68].reshape(-1, 3).mean(0).tolist() == pytest.approx([200, 0, 0], abs=2)
    assert box[37:107, 76:142].reshape(-1, 3).mean(0).tolist() == pytest.approx([0, 0, 200], abs=2)


def test_size_follows_the_number_of_samples(tmp_path):
    samples, labels, alpha, _ = example(num_samples=5)
    frame = find_label_issues(alpha, labels)
    shapes = []
    for rows, columns in ((5, 4), (1, 4), (1, 1)):
        contact_sheet(samples, frame, tmp_path / "sheet.png", rows=rows, columns=columns)
        shapes.append(read(tmp_path / "sheet.png").shape)
    assert shapes[0][1] == shapes[1][1] == 2 * MARGIN + 4 * WIDTH + 3 * PAD
    assert shapes[0][0] - shapes[1][0] == HEIGHT + PAD  # five samples: two rows of four
    assert shapes[2][:2] == (shapes[1][0], 2 * MARGIN + WIDTH)


def test_a_frame_that_was_saved_gives_the_same_sheet(tmp_path):
    samples, labels, alpha, true = example()
    alpha[3:30] = 0  # no suggestion
    frame = find_label_issues(alpha, labels, class_names=samples.class_names).tail(8)
    saved = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert saved["suggested_label"].isna().any()
    for name, source in (("a.png", frame), ("b.png", saved)):
        contact_sheet(samples, source, tmp_path / name, alpha=alpha, true_labels=true, rows=2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_older_sheet_survives_a_failure(tmp_path):
    samples, labels, alpha, _ = example()
    out = tmp_path / "sheet.png"
    out.write_bytes(b"older")

    def fail(index):
        raise MemoryError(f"{index} does not fit")

    samples.image = fail
    with pytest.raises(MemoryError, match="does not fit"):
        contact_sheet(samples, find_label_issues(alpha, labels), out)
    assert out.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    "error",
    [UnreadableImageError("cannot decode /a/b.png: it is text"), FileNotFoundError("no file /a/b.png")],
)
def test_an_image_that_cannot_be_read_any_more_is_a_grey_square(tmp_path, error, caplog):
    samples, labels, alpha, _ = example(size=(24, 24, 3))
    frame = find_label_issues(alpha, labels)
    contact_sheet(samples, frame, tmp_path / "whole.png", rows=1, columns=2, title="x")
    first, image = int(frame["index"][0]), samples.image
    assert not caplog.records

    def some(index):
        if index == first:
            raise error
        return image(index)

    samples.image = some
    contact_sheet(samples, frame, tmp_path / "sheet.png", rows=1, columns=2, title="x")
    (record,) = caplog.records
    message = f'{tmp_path / "sheet.png"} has "no image" for 1 image that cannot be read: {error}'
    assert record.getMessage() == message
    whole, sheet = read(tmp_path / "whole.png"), read(tmp_path / "sheet.png")
    differ = np.argwhere((whole != sheet).any(axis=2))
    top = len(whole) - MARGIN - PAD - module._IMAGE
    corners = np.array([[top, MARGIN + PAD], [top + module._IMAGE - 1, MARGIN + PAD + module._IMAGE - 1]])
    np.testing.assert_array_less(np.abs([differ.min(axis=0), differ.max(axis=0)] - corners), 3)
    square = sheet[corners[0, 0] + 2 : corners[1, 0] - 1, corners[0, 1] + 2 : corners[1, 1] - 1]
    assert np.median(square) == 0xEE
    assert square.min() < 128  # "no image" is written there
    samples.image = lambda index: (_ for _ in ()).throw(error)
    contact_sheet(samples, frame, tmp_path / "none.png", rows=1, columns=2)
    assert f'"no image" for 2 images that cannot be read: first {error}' in caplog.messages[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows and columns must be 1 or more, got 0 and 4"),
        ({"columns": -1}, "rows and columns must be 1 or more, got 5 and -1"),
        ({"alpha": np.zeros((39, 10))}, r"alpha must be \(40, 10\) or \(40,\), got \(39, 10\)"),
        ({"alpha": np.zeros((40, 9))}, r"alpha must be \(40, 10\) or \(40,\), got \(40, 9\)"),
        ({"true_labels": np.zeros(39, int)}, r"true_labels must be \(40,\) integers, got \(39,\)"),
        ({"true_labels": np.full(40, 10)}, r"true_labels must be in \[0, 10\), got 10"),
        ({"true_labels": np.zeros(40)}, r"true_labels must be \(40,\) integers, got .*float64"),
    ],
)
def test_bad_arguments_are_named(tmp_path, change, message):
    samples, labels, alpha, _ = example()
    frame = find_label_issues(alpha, labels)
    with pytest.raises(ValueError, match=message):
        contact_sheet(samples, frame, tmp_path / "sheet.png", **change)
    assert not list(tmp_path.iterdir())


def test_bad_frames_are_named(tmp_path):
    samples, labels, alpha, _ = example()
    frame = find_label_issues(alpha, labels)
    for bad in (frame[:0], frame.assign(index=40), frame.assign(index=-1)):
        with pytest.raises(ValueError, match=r"issues must have a row at least, and ids in \[0, 40\)"):
            contact_sheet(samples, bad, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=r"issues: given_label must be in \[0, 10\), got 10"):
        contact_sheet(samples, frame.assign(given_label=10), tmp_path / "sheet.png")
    alpha[frame["index"][0], 3] = np.nan
    with pytest.raises(ValueError, match=f"alpha must be finite, it is not for sample {frame['index'][0]}"):
        contact_sheet(samples, frame, tmp_path / "sheet.png", alpha=alpha)
