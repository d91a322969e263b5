"""Image folders: what is listed, how files of every kind decode, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastac.data import UnreadableImageError, load_dataset
from fastac.data.bad_files import BAD_KINDS, encode_bad
from fastac.data.decode import CROP_DRAWS, _random_box, centre_crop, open_rgb, random_resized_crop

Image = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)


def smooth(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with a gradient a channel, which JPEG keeps to a few grey levels."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), (x + y) * 255 / (width + height)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def write(path: Path, pixels: np.ndarray | None = None, mode: str | None = None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(smooth(12, 16) if pixels is None else pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)


# --------------------------------------------------------------------------------------------------- listing


def test_classes_and_ids_are_sorted(tmp_path):
    for name in (
        "train/b/2.jpg",
        "train/b/10.JPEG",
        "train/a/deep/er/1.png",
        "train/a/z.webp",
        "val/b/0.bmp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("train/a/notes.txt", "train/a/.hidden.jpg", "train/.git/x.jpg", "train/readme.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = load_dataset("folder", tmp_path, image_size=8)
    assert data.train.class_names == ("a", "b")
    assert data.train.images.paths == ("a/deep/er/1.png", "a/z.webp", "b/10.JPEG", "b/2.jpg")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1]  # train's class list, though val has one class alone
    assert data.test.images.paths == ("b/0.bmp",)
    part = load_dataset("folder", tmp_path, image_size=8, train_limit=3).train
    assert part.images.paths == ("a/deep/er/1.png", "a/z.webp", "b/10.JPEG")


@pytest.mark.parametrize(("split", "has_test"), [("val", True), ("test", True), ("validation", False)])
def test_the_test_split(tmp_path, split, has_test):
    for name in ("train/a/1.png", "train/b/1.png", f"{split}/a/1.png"):
        write(tmp_path / name)
    assert (load_dataset("folder", tmp_path, image_size=8).test is not None) == has_test


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="train is not a folder: --data-dir should hold train/"):
        load_dataset("folder", tmp_path, image_size=8)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train.a has no image files \(.jpg"):
        load_dataset("folder", tmp_path, image_size=8)
    write(tmp_path / "train/a/1.png")
    with pytest.raises(ValueError, match="train: class_names has 1 name"):
        load_dataset("folder", tmp_path, image_size=8)
    write(tmp_path / "train/b/1.png")
    write(tmp_path / "val/images/1.png")
    with pytest.raises(ValueError, match=r"val has the class 'images', which .*train lacks"):
        load_dataset("folder", tmp_path, image_size=8)
    with pytest.raises(ValueError, match="image_size is 0; it should be at least 1 pixel"):
        load_dataset("folder", tmp_path, image_size=0)


# -------------------------------------------------------------------------------------------------- decoding


def decoded(path: Path) -> np.ndarray:
    pixels = np.array(open_rgb(path))
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    return pixels


def test_rgb_png_is_exact(tmp_path):
    pixels = RNG.integers(0, 256, (11, 7, 3), dtype=np.uint8)
    write(tmp_path / "x.png", pixels)
    np.testing.assert_array_equal(decoded(tmp_path / "x.png"), pixels)


def test_grayscale(tmp_path):
    gray = smooth(12, 16)[..., 0]
    write(tmp_path / "x.png", gray)
    np.testing.assert_array_equal(decoded(tmp_path / "x.png"), np.repeat(gray[..., None], 3, axis=2))
    write(tmp_path / "x.jpg", gray, quality=95)
    assert np.abs(decoded(tmp_path / "x.jpg").astype(int) - gray[..., None]).max() < 12


def test_16_bit_png_keeps_its_high_byte(tmp_path):
    gray = np.linspace(0, 65535, 12 * 16).reshape(12, 16).astype(np.uint16)
    write(tmp_path / "x.png", gray)
    pixels = decoded(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels, np.repeat((gray >> 8)[..., None], 3, axis=2))
    assert len(np.unique(pixels)) > 150  # a clipped one has two or three


def test_cmyk_jpeg(tmp_path):
    write(tmp_path / "x.jpg", mode="CMYK", quality=95)
    assert np.abs(decoded(tmp_path / "x.jpg").astype(int) - smooth(12, 16)).mean() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_other_modes(tmp_path, mode):
    write(tmp_path / "x.png", mode=mode)
    expected = Image.fromarray(smooth(12, 16)).convert(mode).convert("RGB")
    np.testing.assert_array_equal(decoded(tmp_path / "x.png"), np.array(expected))


def test_transparent_palette(tmp_path):
    write(tmp_path / "x.png", mode="P", transparency=b"\x00\x80\xff")
    assert decoded(tmp_path / "x.png").shape == (12, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    stored = {  # how the camera's rows lie in the file for each value of the tag
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "x.png", np.ascontiguousarray(stored), exif=exif.tobytes())
    np.testing.assert_array_equal(decoded(tmp_path / "x.png"), upright)


@pytest.mark.parametrize("mode", ["RGB", "LA", "RGBA"])
def test_16_bit_colour_png_keeps_its_high_byte(tmp_path, mode):
    channels = {"RGB": 3, "LA": 2, "RGBA": 4}[mode]
    values = RNG.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    colour_type = {"RGB": 2, "LA": 4, "RGBA": 6}[mode]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 7, 5, 16, colour_type, 0, 0, 0)
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    (tmp_path / "x.png").write_bytes(content)
    expected = np.repeat(values[..., :1], 3, axis=2) if mode == "LA" else values[..., :3]
    np.testing.assert_array_equal(decoded(tmp_path / "x.png"), expected >> 8)


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((4, 5, 3), v, dtype=np.uint8)) for v in (10, 200)]
    for suffix in ("gif", "webp", "png", "tiff"):
        path = tmp_path / f"x.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decoded(path), np.full((4, 5, 3), 10))


def exif_block(entries: list[bytes]) -> bytes:
    """Big-endian EXIF data of one directory; an entry: tag, type, count and value, 12 bytes."""
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + b"\0" * 4


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0garbage!", False),
        (b"Exif\0\0MM", False),
        (exif_block([struct.pack(">HHI2sH", 0x0112, 2, 1, b"A", 0)]), False),  # the orientation as text
        (exif_block([struct.pack(">HHIHH", 0x0112, 3, 1, 9, 0)]), False),  # none of the eight
        # A right orientation beside a resolution in letters, which Pillow cannot write back.
        (
            exif_block(
                [
                    struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0),
                    struct.pack(">HHI4s", 0x011A, 2, 4, b"\xff\xfe\xfd\xfc"),
                ]
            ),
            True,
        ),
    ],
    ids=["garbage", "short", "text", "nine", "other tag broken"],
)
def test_broken_exif_data_does_not_cost_the_image(tmp_path, exif, turned):
    write(tmp_path / "x.jpg", exif=exif, quality=95)
    upright = np.rot90(smooth(12, 16), -1) if turned else smooth(12, 16)
    pixels = decoded(tmp_path / "x.jpg").astype(int)
    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).mean() < 6


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth(40, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is text named .jpg\n",
        jpeg()[:100],
        jpeg()[: len(jpeg()) // 2],
        b"\xff\xd8\xff\xe0" + b"\0" * 50,
    ],
    ids=["empty", "text", "header only", "half", "zeros"],
)
def test_unreadable_images(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    reason = "" if content else "the file is empty"
    with pytest.raises(UnreadableImageError, match=f"cannot decode the image {path}: {reason}"):
        open_rgb(path)


def test_pixels_without_a_range(tmp_path):
    write(tmp_path / "f.tiff", np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(UnreadableImageError, match="floating-point"):
        open_rgb(tmp_path / "f.tiff")
    write(tmp_path / "i.tiff", np.full((4, 4), 70_000, dtype=np.int32))
    with pytest.raises(UnreadableImageError, match="more than 16 bits"):
        open_rgb(tmp_path / "i.tiff")


def test_a_huge_image_is_unreadable(tmp_path):
    """A small file that claims more pixels than Pillow's guard allows."""
    write(tmp_path / "x.png", np.zeros((2, 2), dtype=np.uint8))
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(bytes(content))
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        open_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("guard", [None, 10**10])
def test_a_lifted_guard_of_pillow_does_not_count(tmp_path, monkeypatch, guard):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard)
    path = tmp_path / "huge.png"
    path.write_bytes(encode_bad("huge", Image.new("RGB", (1, 1))))
    assert path.stat().st_size < 100_000
    with pytest.raises(
        UnreadableImageError, match="20000x20000 is more than the 178956970 pixels that are decoded"
    ):
        open_rgb(path)


def test_a_bad_images_kind_is_what_it_says(tmp_path):
    """Each kind of file that the generator adds, decoded: the picture that went in, or a refusal."""
    pixels = smooth(60, 90)
    gray = np.array(Image.fromarray(pixels).convert("L"))[..., None].repeat(3, axis=2)
    shown = {"cmyk": pixels, "grayscale": gray, "16-bit": gray, "exif-rotated": pixels}
    stored = {"cmyk": ("CMYK", (90, 60)), "grayscale": ("L", (90, 60)), "exif-rotated": ("RGB", (60, 90))}
    assert set(shown) == {kind.name for kind in BAD_KINDS if kind.readable}
    for kind in BAD_KINDS:
        path = tmp_path / f"{kind.name}{kind.suffix}"
        path.write_bytes(encode_bad(kind.name, Image.fromarray(pixels)))
        if not kind.readable:
            with pytest.raises(UnreadableImageError, match="cannot decode the image"):
                open_rgb(path)
            continue
        result = decoded(path).astype(int)
        assert result.shape == pixels.shape, kind
        assert np.abs(result - shown[kind.name]).mean() < 4, kind
        with Image.open(path) as image:
            assert (image.mode, image.size) == stored.get(kind.name, (image.mode, (90, 60)))
    assert (tmp_path / "16-bit.png").read_bytes()[24] == 16  # bits a channel, in the header
    with pytest.raises(ValueError, match="kind is 'wet'; it should be one of zero-byte, truncated"):
        encode_bad("wet", Image.fromarray(pixels))


def test_too_little_memory_names_the_file(tmp_path, monkeypatch):
    def fail(_image):
        raise MemoryError

    monkeypatch.setattr("fastac.data.decode._to_rgb", fail)
    write(tmp_path / "x.png")
    with pytest.raises(MemoryError) as caught:
        open_rgb(tmp_path / "x.png")
    assert caught.value.__notes__ == [f"while the image {tmp_path / 'x.png'} was decoded"]


def test_a_missing_file_is_not_a_bad_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_rgb(tmp_path / "none.jpg")


# ----------------------------------------------------------------------------------------------------- crops


def test_centre_crop_of_a_fitting_image_changes_nothing():
    pixels = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(pixels), 64), pixels)


def test_centre_crop_takes_the_centre():
    pixels = RNG.integers(0, 256, (64, 100, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(pixels), 64), pixels[:, 18:82])
    np.testing.assert_array_equal(
        centre_crop(Image.fromarray(pixels.transpose(1, 0, 2)), 64)[5], pixels[:, 23]
    )


def test_centre_crop_at_imagenets_size_is_close_to_resize_then_crop():
    image = Image.fromarray(smooth(300, 400))
    ours = centre_crop(image, 224).astype(int)
    theirs = image.resize((round(400 * 256 / 300), 256), Image.Resampling.BILINEAR)
    left, top = (theirs.width - 224) // 2, 16
    theirs = np.array(theirs.crop((left, top, left + 224, top + 224))).astype(int)
    assert ours.shape == (224, 224, 3)
    assert np.abs(ours - theirs).max() <= 2


def box_of(draws, height=30, width=40):
    """The box that was cut, read off an image whose red is the column and whose green is the row."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    out = random_resized_crop(Image.fromarray(pixels), 64, draws).astype(float)
    columns, rows = out[..., 0], out[..., 1]
    return columns.min(), columns.max(), rows.min(), rows.max(), columns[0, 0] > columns[0, -1]


def test_random_resized_crop():
    # The whole area at aspect 4/3 (4:3 image): draws 1 and 1 of the first attempt, no mirror.
    whole = [0.9999999] * 2 + [0.5] * (CROP_DRAWS - 2)
    assert box_of(whole) == (0, 39, 0, 29, False)
    assert box_of([*whole[:-1], 0.49]) == (0, 39, 0, 29, True)
    # A quarter of the area at aspect 1 (its logarithm is in the middle): 17 by 17, at the left bottom.
    area = (0.25 - 0.08) / 0.92
    quarter = [area, 0.5] + [0.5] * (CROP_DRAWS - 5) + [0.9999, 0.0, 0.9]
    left, right, top, bottom, mirrored = box_of(quarter)
    assert (left, right, top, bottom, mirrored) == (0, 16, 13, 29, False)


def test_random_resized_crop_when_no_area_fits():
    """A strip of 100x4: no attempt of aspect 3/4 to 4/3 with the whole area fits, so the centre is cut."""
    draws = [0.99] * (CROP_DRAWS - 1) + [0.9]
    left, right, top, bottom, _ = box_of(draws, height=4, width=100)
    assert (top, bottom) == (0, 3)
    assert 46 <= left < right <= 53


def test_statistics_of_random_crops():
    shares, aspects = [], []
    for _ in range(3000):
        left, top, width, height = _random_box(50, 50, RNG.random(CROP_DRAWS).tolist())
        assert 0 <= left <= 50 - width
        assert 0 <= top <= 50 - height
        shares.append(width * height / 2500)
        aspects.append(np.log(width / height))
    assert min(shares) > 0.06
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)  # large areas with a long side are drawn again
    assert abs(np.mean(aspects)) < 0.02
    assert max(np.abs(aspects)) < np.log(4 / 3) + 0.1


def test_original_pixels_are_for_people(tmp_path):
    pixels = RNG.integers(0, 256, (30, 20, 3), dtype=np.uint8)
    write(tmp_path / "train/a/1.png", pixels)
    write(tmp_path / "train/b/1.png")
    train = load_dataset("folder", tmp_path, image_size=8).train
    np.testing.assert_array_equal(train.image(0), pixels)
    assert train.channels == 3
    assert len(repr(train.images)) < 200
