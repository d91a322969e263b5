"""DALI's loader on the CPU: which samples it yields, that they are the torch loader's, what becomes of bad files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_files import example, jpegs, write_tar, write_tfrecord

import fastac.data.dali_input as dali_input
from fastac.data import DaliLoader, EpochSampler, Loader, Samples, UnreadableImageError, load_dataset
from fastac.data.bad_files import BAD_KINDS, encode_bad
from fastac.data.erasing import erased_boxes
from fastac.data.policies import find_policy

pytest.importorskip("nvidia.dali")
Image = pytest.importorskip("PIL.Image")

N, SIZE = 37, 24
POLICY = {"augment": "imagenet", "aa": "trivialaugment", "cutout": 6, "reprob": 0.5}


def write_folder(root: Path, count: int = N, size: tuple[int, int] = (40, 30)) -> Path:
    """Three classes."""
    for number, content in enumerate(jpegs(count, size)):
        path = root / "train" / "abc"[number % 3] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def load(root: Path, kind: str = "folder", size: int = SIZE, bad: str = "stop") -> Samples:
    return load_dataset(kind, root, image_size=size, on_bad_image=bad).train


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Samples:
    return load(write_folder(tmp_path_factory.mktemp("folder")))


def loader(
    samples, kind=DaliLoader, *, batch_size=8, rank=0, world_size=1, shuffle=True, aligned=False, **options
):
    sampler = EpochSampler(
        len(samples), batch_size, rank=rank, world_size=world_size, seed=3, shuffle=shuffle, aligned=aligned
    )
    options = {"augment": "none", "seed": 5, "device": "cpu", **options}
    if kind is DaliLoader:
        options.setdefault("workers", 1)
    return kind(samples, samples.labels, sampler, **options)


def by_id(batches) -> dict[int, torch.Tensor]:
    found = {}
    for batch in batches:
        for sample, image in zip(batch.index.tolist(), batch.images, strict=True):
            assert sample not in found
            found[sample] = image
    return found


def levels(one: torch.Tensor, other: torch.Tensor, of: DaliLoader) -> torch.Tensor:
    """The difference of normalised images in grey levels of 0 to 255."""
    return (one - other).abs() * torch.tensor(of.std).view(3, 1, 1) * 255


# ------------------------------------------------------------------------------------------ which samples, when


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_id_exactly_once_an_epoch_over_all_ranks(samples, ranks, aligned):
    loaders = [loader(samples, batch_size=4, rank=r, world_size=ranks, aligned=aligned) for r in range(ranks)]
    orders = []
    for epoch in range(5):
        seen = []
        for one in loaders:
            plan = list(one.sampler.batches(epoch))
            batches = list(one.epoch(epoch))
            assert len(batches) == len(one) == len(plan)
            for (ids, global_size), batch in zip(plan, batches, strict=True):
                assert batch.index.dtype == torch.int64
                np.testing.assert_array_equal(batch.index, ids)
                assert torch.equal(batch.index, batch.host_index)
                np.testing.assert_array_equal(batch.target, samples.labels[ids])
                assert batch.global_size == global_size
                assert batch.images.shape == (len(ids), 3, SIZE, SIZE)
                seen += ids.tolist()
        assert sorted(seen) == list(range(N))
        orders.append(seen)
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize(
    "options",
    [
        POLICY,
        {"augment": "imagenet"},
        {"augment": "crop-flip", "aa": "randaugment-n2-m9"},
        {**POLICY, "aa": "fast-autoaugment-imagenet"},
    ],
    ids=["policy", "imagenet", "crop-flip", "not DALI's"],
)
def test_an_epoch_resumed_in_the_middle_has_the_same_images(samples, options):
    whole = list(loader(samples, **options).epoch(2))
    for start in (0, 1, 3, len(whole)):
        rest = list(loader(samples, **options).epoch(2, start=start))  # a new loader, as after a restart
        assert len(rest) == len(whole) - start
        for a, b in zip(whole[start:], rest, strict=True):
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_a_policy_that_dali_lacks_is_the_torch_loaders(tmp_path, augment):
    """To the bit, of images that need no resize."""
    samples = load(write_folder(tmp_path, 20, (SIZE, SIZE)))
    options = {"augment": augment, "aa": "fast-autoaugment-imagenet", "cutout": 6, "reprob": 0.5}
    ours = by_id(loader(samples, **options).epoch(1))
    expected = by_id(loader(samples, Loader, **options).epoch(1))
    plain = by_id(loader(samples, augment=augment).epoch(1))
    for sample, image in expected.items():
        assert torch.equal(ours[sample], image)
    assert sum(not torch.equal(ours[i], plain[i]) for i in range(20)) >= 15
    pba = find_policy("pba-cifar10", "cifar10", epochs=3)
    assert len(by_id(loader(samples, aa=pba).epoch(0))) == 20


def test_a_batch_without_a_readable_image_has_no_rows_with_any_policy(tmp_path):
    root = write_folder(tmp_path, 6, (SIZE, SIZE))
    for path in sorted((root / "train" / "a").iterdir()):
        path.write_bytes(b"no image")
    samples = load(root, bad="skip")
    for aa in ("none", "trivialaugment", "fast-autoaugment-imagenet"):
        batches = list(loader(samples, batch_size=2, shuffle=False, augment="imagenet", aa=aa).epoch(0))
        assert [len(batch.images) for batch in batches] == [0, 2, 2]
        assert batches[0].bad == (0, 1)
        assert batches[0].images.shape == (0, 3, SIZE, SIZE)
        assert all(batch.images.dtype == torch.float32 for batch in batches)


def test_an_image_depends_on_its_id_and_epoch_alone(samples):
    one = loader(samples, batch_size=37, **POLICY)
    first, second = by_id(one.epoch(0)), by_id(one.epoch(1))
    assert sum(not torch.equal(first[i], second[i]) for i in range(N)) >= 35
    ranks = {}
    for rank in range(3):
        ranks |= by_id(loader(samples, batch_size=5, rank=rank, world_size=3, **POLICY).epoch(0))
    assert first.keys() == ranks.keys()
    assert all(torch.equal(first[i], ranks[i]) for i in range(N))
    other_seed = by_id(loader(samples, **{**POLICY, "seed": 6}).epoch(0))
    assert sum(not torch.equal(first[i], other_seed[i]) for i in range(N)) >= 35


def test_epochs_side_by_side_and_left_in_the_middle(samples):
    one = loader(samples, augment="imagenet")
    expected = {epoch: [b.images for b in one.epoch(epoch)] for epoch in (0, 1)}
    left = one.epoch(1)
    next(left)
    together = list(zip(one.epoch(0), one.epoch(1), strict=True))
    assert all(torch.equal(a.images, x) for (a, _), x in zip(together, expected[0], strict=True))
    assert all(torch.equal(b.images, x) for (_, b), x in zip(together, expected[1], strict=True))
    assert torch.equal(next(left).images, expected[1][1])
    del left
    assert all(torch.equal(a.images, x) for a, x in zip(one.epoch(0), expected[0], strict=True))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows them")
def test_epochs_that_are_left_leave_no_threads_behind(samples):
    one = loader(samples, augment="imagenet", batch_size=4)
    threads = lambda: len(os.listdir("/proc/self/task"))  # noqa: E731
    first = None
    for epoch in range(8):
        left = one.epoch(epoch)
        next(left)
        first = threads() if first is None else first
        del left
    assert len(by_id(one.epoch(0))) == N
    deadline = time.monotonic() + 20
    while threads() > first and time.monotonic() < deadline:  # a reader's threads end by themselves
        time.sleep(0.01)
    assert threads() <= first


def test_batches_live_as_long_as_they_are_held(samples):
    one = loader(samples, augment="imagenet", batch_size=4)
    held = list(one.epoch(0))
    copies = [batch.images.clone() for batch in one.epoch(0)]
    for _ in one.epoch(1):
        pass
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(held, copies, strict=True))


@pytest.mark.parametrize("augment", ["none", "imagenet", "crop-flip"])
def test_images_are_channels_last(samples, augment):
    images = next(loader(samples, augment=augment).epoch(0)).images
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.storage_offset() == 0


def test_no_warning_comes_from_dali(samples, recwarn, caplog):
    """Its library of augmentations has deprecated names, and its conditionals warn of what they can't convert."""
    list(loader(samples, aa="trivialaugment").epoch(0))
    assert [str(warning.message) for warning in recwarn] == []
    assert [record.message for record in caplog.records] == []


def test_the_random_state_of_torch_and_numpy_is_left_alone(samples):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(loader(samples, **POLICY).epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


# ----------------------------------------------------------------------------------- what the torch loader makes


@pytest.mark.parametrize(("picture", "size"), [((40, 30), 24), ((90, 200), 160), ((33, 57), 64)])
@pytest.mark.parametrize("augment", ["none", "imagenet", "crop", "crop-flip"])
def test_crops_and_pixels_are_the_torch_loaders(tmp_path, augment, picture, size):
    samples = load(write_folder(tmp_path, 12, picture), size=size)
    ours, theirs = (loader(samples, kind, augment=augment) for kind in (DaliLoader, Loader))
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
    for epoch in (0, 1):
        for a, b in zip(ours.epoch(epoch), theirs.epoch(epoch), strict=True):
            assert torch.equal(a.index, b.index)
            difference = levels(a.images, b.images, ours)
            assert difference.max() < 6
            assert difference.mean() < 0.5
            assert (b.images - b.images.mean(0)).abs().mean() > 0.05  # so that another crop would show


@pytest.mark.parametrize("size", [16, 160])
def test_images_smaller_and_narrower_than_any_crop(tmp_path, size):
    shapes = [(1, 1), (1, 300), (300, 1), (2, 3), (7, 400), (5, 5), (9, 17), (400, 13)]
    for number, (width, height) in enumerate(shapes):
        y, x = np.mgrid[0:height, 0:width]
        pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92, progressive=number % 3 == 0)
    samples = load(tmp_path, size=size)
    for augment in ("none", "imagenet"):
        ours, theirs = (loader(samples, kind, augment=augment, batch_size=3) for kind in (DaliLoader, Loader))
        for a, b in zip(ours.epoch(1), theirs.epoch(1), strict=True):
            assert torch.equal(a.index, b.index)
            assert levels(a.images, b.images, ours).max() < 6


@pytest.mark.parametrize("kind", ["webdataset", "tfrecord"])
def test_shards_give_the_folders_images(tmp_path, samples, kind):
    content = [samples.images.read(i) for i in range(N)]
    labels = samples.labels.tolist()
    for shard, first, last in ((0, 0, 20), (1, 20, N)):
        part = range(first, last)
        if kind == "webdataset":
            rows = [{"jpg": content[i], "cls": b"%d" % labels[i]} for i in part]
            write_tar(tmp_path / "train" / f"{shard}.tar", rows, first)
        else:
            rows = [example({"image/encoded": content[i], "image/class/label": labels[i] + 1}) for i in part]
            write_tfrecord(tmp_path / "train" / f"{shard}.tfrecord", rows)
    shards = load(tmp_path, kind)
    assert shards.labels.tolist() == labels
    expected, found = (by_id(loader(s, augment="imagenet").epoch(1)) for s in (samples, shards))
    assert all(torch.equal(expected[i], found[i]) for i in range(N))


def test_statistics_that_are_given(samples):
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    ours, theirs = (loader(samples, kind, shuffle=False, **given) for kind in (DaliLoader, Loader))
    assert ours.mean == (0.1, 0.2, 0.3)
    a, b = next(ours.epoch(0)).images, next(theirs.epoch(0)).images
    assert levels(a, b, ours).max() < 6


# --------------------------------------------------------------------------------------------------- bad files


def write_bad(root: Path, kinds: list[str]) -> Samples:
    """Good images 0 to 7 and one file of each kind, in the middle; 24 pixels, the files' own size."""
    write_folder(root, 8, (24, 24))
    shown = Image.open(root / "train/a/000.jpg")
    for kind in BAD_KINDS:
        if kind.name in kinds:
            path = root / "train" / "b" / f"{kind.name}{kind.suffix}"
            path.write_bytes(encode_bad(kind.name, shown))
    return load(root, bad="skip")


def test_every_kind_of_file_gets_the_torch_loaders_treatment(tmp_path):
    samples = write_bad(tmp_path, [kind.name for kind in BAD_KINDS])
    unreadable = {
        i
        for i, path in enumerate(samples.images.paths)
        if any(path.endswith(k.name + k.suffix) for k in BAD_KINDS if not k.readable)
    }
    assert len(unreadable) == 4
    for augment in ("none", "imagenet"):
        ours, theirs = (loader(samples, kind, augment=augment, batch_size=3) for kind in (DaliLoader, Loader))
        skipped = set()
        for a, b in zip(ours.epoch(0), theirs.epoch(0), strict=True):
            assert a.bad == b.bad
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.target, b.target)
            assert a.global_size == b.global_size
            assert a.images.shape == b.images.shape
            skipped |= set(a.bad)
            for sample, x, y in zip(a.index.tolist(), a.images, b.images, strict=True):
                name = samples.images.paths[sample]
                by_pillow = any(word in name for word in ("cmyk", "16-bit", "exif"))
                assert levels(x, y, ours).max() < (0.01 if by_pillow else 6), name
        assert skipped == unreadable


@pytest.mark.parametrize("kind", [k.name for k in BAD_KINDS if not k.readable])
def test_an_unreadable_image_stops_the_epoch_with_its_path(tmp_path, kind):
    write_bad(tmp_path, [kind])
    samples = load(tmp_path, bad="stop")
    position = next(i for i, path in enumerate(samples.images.paths) if kind in path)
    batches = loader(samples, batch_size=2, shuffle=False).epoch(0)
    for _ in range(position // 2):  # what comes before it comes out
        assert len(next(batches).index) == 2
    path = samples.images.path(position)
    with pytest.raises(UnreadableImageError, match=f"^cannot decode the image {path}: "):
        next(batches)


def test_batches_that_are_bad_as_a_whole(tmp_path):
    write_folder(tmp_path, 12)
    for path in sorted((tmp_path / "train").rglob("*.jpg"))[4:12]:
        path.write_bytes(b"not an image")
    samples = load(tmp_path, bad="skip")
    one = loader(samples, batch_size=2, shuffle=False)
    for _ in range(2):
        batches = list(one.epoch(0))
        assert [b.index.tolist() for b in batches] == [[0, 1], [2, 3], [], [], [], []]
        assert [b.bad for b in batches] == [(), (), (4, 5), (6, 7), (8, 9), (10, 11)]
        assert batches[3].images.shape == (0, 3, SIZE, SIZE)
        assert [b.global_size for b in batches] == [2] * 6
    shuffled = list(loader(samples, batch_size=2).epoch(0))
    assert sorted(i for b in shuffled for i in b.index.tolist()) == [0, 1, 2, 3]
    assert sorted(i for b in shuffled for i in b.bad) == list(range(4, 12))


def test_a_missing_file_stops_even_where_bad_images_are_skipped(tmp_path):
    write_folder(tmp_path, 12)
    samples = load(tmp_path, bad="skip")
    samples.images.path(5).unlink()
    batches = loader(samples, batch_size=2, shuffle=False).epoch(0)
    assert next(batches).index.tolist() == [0, 1]
    assert next(batches).index.tolist() == [2, 3]
    with pytest.raises(FileNotFoundError, match=samples.images.path(5).name):
        next(batches)


def broken_tables(content: bytes) -> bytes:
    """A JPEG whose header is in order and whose Huffman tables are none: no decoder reads it."""
    place = content.index(b"\xff\xc4") + 5
    return content[:place] + b"\xff" * 16 + content[place + 16 :]


def builds(of: DaliLoader, monkeypatch) -> list[None]:
    """As many items as the loader has built pipelines, from now on."""
    built, build = [], of._build
    monkeypatch.setattr(of, "_build", lambda: built.append(None) or build())
    return built


def test_what_both_decoders_refuse_is_found_in_the_failed_batch(tmp_path, monkeypatch):
    write_folder(tmp_path, 20)
    samples = load(tmp_path, bad="skip")
    for sample in (6, 7, 13):
        samples.images.path(sample).write_bytes(broken_tables(samples.images.read(sample)))
    one, theirs = (
        loader(samples, batch_size=3, shuffle=False),
        loader(samples, Loader, batch_size=3, shuffle=False),
    )
    built = builds(one, monkeypatch)
    for epoch in (0, 1):
        batches = list(one.epoch(epoch))
        assert [b.bad for b in batches] == [(), (), (6, 7), (), (13,), (), ()]
        for a, b in zip(batches, theirs.epoch(epoch), strict=True):
            assert torch.equal(a.index, b.index)
            assert levels(a.images, b.images, one).max() < 6
        assert len(built) == 3  # both failed in the first epoch, none in the second
    left = loader(samples, batch_size=3, shuffle=False)
    batch = left.epoch(0)
    next(batch)
    batch.close()  # with the broken ones under way
    assert [b.bad for b in left.epoch(0)] == [b.bad for b in batches]
    stopping = loader(load(tmp_path), batch_size=3, shuffle=False).epoch(0)
    assert [next(stopping).index.tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UnreadableImageError, match=str(samples.images.path(6))):
        next(stopping)


def test_what_dali_alone_cannot_decode_comes_from_pillow(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path, 20)
    samples = load(tmp_path)
    shown = Image.open(samples.images.path(8)).convert("RGB")
    shown.save(samples.images.path(8), "GIF")
    shown = Image.open(samples.images.path(8)).convert("RGB")
    real = dali_input.plain_jpeg_size
    monkeypatch.setattr(
        dali_input, "plain_jpeg_size", lambda content: (40, 30) if content[:3] == b"GIF" else real(content)
    )
    one, theirs = (loader(samples, kind, augment="imagenet", batch_size=4) for kind in (DaliLoader, Loader))
    built = builds(one, monkeypatch)
    with caplog.at_level(logging.WARNING):
        runs = [list(one.epoch(epoch)) for epoch in (0, 0, 1)]
    assert len(built) == 2  # one failed in the first epoch, and none after it
    said = [r.message for r in caplog.records]
    assert said == [f"DALI can't decode {samples.images.path(8)}, which Pillow decodes: taken from there"]
    assert all(torch.equal(a.images, b.images) for a, b in zip(runs[0], runs[1], strict=True))
    for epoch, run in ((0, runs[0]), (1, runs[2])):
        for a, b in zip(run, theirs.epoch(epoch), strict=True):
            assert torch.equal(a.index, b.index)
            assert a.bad == ()
            assert levels(a.images, b.images, one).max() < 6
    resumed = list(loader(samples, augment="imagenet", batch_size=4).epoch(0, start=1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(runs[0][1:], resumed, strict=True))
    resumed = list(loader(samples, augment="imagenet", batch_size=4).epoch(1))  # by one that knows of nothing
    assert all(torch.equal(a.images, b.images) for a, b in zip(runs[2], resumed, strict=True))


def test_what_dali_refuses_in_part_is_tried_again(tmp_path, monkeypatch):
    """Whether DALI is asked must not depend on earlier epochs: its pixels are not Pillow's to the bit."""
    write_folder(tmp_path, 8)
    samples = load(tmp_path)
    one = loader(samples, augment="imagenet", batch_size=8)
    run, failing = one._run, []
    monkeypatch.setattr(
        one, "_undecodable", lambda tried: {s.id for s in tried if s.id == 5 and s.region[2] > 1}
    )

    def run_or_fail(pipeline):
        images = run(pipeline)
        if failing.pop():
            raise RuntimeError("sample 5")
        return images

    monkeypatch.setattr(one, "_run", run_or_fail)
    built = builds(one, monkeypatch)
    for epoch in range(2):
        failing[:] = [False] * 8 + [True]
        assert sorted(by_id(one.epoch(epoch))) == list(range(8))
        assert len(built) == 2 + epoch
    assert one._reader.refused == set()


def test_a_file_that_dali_refuses_costs_a_pipeline_once(tmp_path):
    """A JPEG of more scans than DALI's decoder takes. DALI asks OpenCV next, which is given a limit here: below the
    file's 40×30 pixels and above the 24×24 that Pillow's crops come in as, which OpenCV decodes too."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, here / "dali_refusals.py", tmp_path],
        env={**os.environ, "PYTHONPATH": path, "OPENCV_IO_MAX_IMAGE_PIXELS": "1000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "The number of scans (257)" in done.stdout + done.stderr
    epochs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"ids"')]
    assert len(epochs) == 3
    for epoch in epochs:
        assert epoch["ids"] == list(range(20))
        assert epoch["built"] == 2  # one that failed in the first epoch, and the one after it
        assert epoch["refused"] == [8]
        assert epoch["levels"] < 6
        assert epoch["same"]  # as where a pipeline fails in each epoch


def test_a_failure_that_is_no_images_is_raised_as_it_is(samples, monkeypatch):
    one = loader(samples)
    real = one.inputs

    def inputs(step):
        encoded, start, *rest = real(step)
        return encoded, start + 1000, *rest  # outside of the images

    monkeypatch.setattr(one, "inputs", inputs)
    monkeypatch.setattr(one, "_undecodable", lambda samples: set())
    with pytest.raises(RuntimeError, match="image_slice"):
        list(one.epoch(0))
    monkeypatch.setattr(one, "inputs", real)
    assert len(by_id(one.epoch(0))) == N  # a pipeline that has failed is not used again


# ------------------------------------------------------------------------------------------ erasing and Cutout


@pytest.mark.parametrize(("cutout", "reprob"), [(7, 0.0), (0, 1.0), (6, 0.6)])
def test_what_is_blanked_and_nothing_else(samples, cutout, reprob):
    options = {"augment": "imagenet", "batch_size": 10}
    plain, erased = (
        by_id(loader(samples, **options, **o).epoch(3)) for o in ({}, {"cutout": cutout, "reprob": reprob})
    )
    ids = np.arange(N)
    boxes = erased_boxes(ids, SIZE, cutout=cutout, reprob=reprob, seed=5, epoch=3)
    assert boxes.shape == (N, (cutout > 0) + (reprob > 0), 4)
    for sample in range(N):
        expected = plain[sample].clone()
        for top, left, height, width in boxes[sample].tolist():
            expected[:, top : top + height, left : left + width] = 0
        assert torch.equal(erased[sample], expected)


# ------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "crops"}, "unknown augment 'crops'"),
        ({"aa": "randaugment"}, "aa is 'randaugment'; it should be randaugment-nN-mM"),
        ({"aa": "randaugment-n2-m31"}, r"\(N at least 1, M 0 to 30\)"),
        ({"aa": "randaugment-n0-m3"}, "aa is 'randaugment-n0-m3'"),
        ({"aa": "autoaugment-cifar100"}, "unknown aa 'autoaugment-cifar100'"),
        ({"aa": "pba"}, "aa is 'pba', which has no policy of its own for the data set None"),
        ({"workers": -1}, "workers is -1; it should be at least 0"),
        ({"cutout": -2}, "cutout is -2; it should be a side in pixels"),
        ({"reprob": 1.5}, "reprob is 1.5; it should be a probability"),
        ({"dali_device": "tpu"}, "dali_device is 'tpu'; it should be auto, cpu or gpu"),
        ({"dali_device": "gpu"}, "dali_device is 'gpu' and batches go to cpu"),
        ({"mean": (0.5, 0.5, 0.5)}, "one of mean and std is given"),
    ],
)
def test_wrong_arguments(samples, options, message):
    with pytest.raises(ValueError, match=message):
        loader(samples, **options)


def test_wrong_samples_and_starts(samples):
    arrays = Samples(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), ("a", "b"))
    with pytest.raises(ValueError, match="loader is 'dali', which is for image files and shards"):
        loader(arrays)
    with pytest.raises(ValueError, match="sampler is for 9 samples; it should be for 37"):
        DaliLoader(samples, samples.labels, EpochSampler(9, 3), augment="none", seed=0, device="cpu")
    with pytest.raises(ValueError, match="labels is int64"):
        DaliLoader(samples, samples.labels[:3], EpochSampler(N, 3), augment="none", seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"start is 9; it should be in \[0, 5\]"):
        loader(samples).epoch(0, start=9)


def test_without_dali_the_error_says_how_to_install_it(samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    message = r"fastac needs nvidia.dali for this .* pip install 'autocleansing\[dali\]'"
    with pytest.raises(ImportError, match=message):
        loader(samples)


def test_threads_are_shared_by_the_ranks_of_a_machine(samples, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert loader(samples, workers=0).workers == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loader(samples, workers=0).workers == 1
    assert loader(samples, workers=3).workers == 3


# -------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dali_device", ["cpu", "gpu"])
def test_on_a_gpu_the_batches_are_the_cpus(samples, dali_device):
    for options in ({"augment": "imagenet"}, {"augment": "none"}):
        cpu = loader(samples, **options)
        gpu = loader(samples, device="cuda", dali_device=dali_device, **options)
        for a, b in zip(cpu.epoch(0), gpu.epoch(0), strict=True):
            assert b.images.is_cuda
            assert b.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(a.index, b.index.cpu())
            assert torch.equal(a.target, b.target.cpu())
            assert levels(a.images, b.images.cpu(), cpu).mean() < 2
    whole = list(loader(samples, device="cuda", dali_device=dali_device, **POLICY).epoch(1))
    rest = list(loader(samples, device="cuda", dali_device=dali_device, **POLICY).epoch(1, start=2))
    assert all(torch.equal(a.index, b.index) for a, b in zip(whole[2:], rest, strict=True))
    assert all((a.images - b.images).abs().mean() < 0.02 for a, b in zip(whole[2:], rest, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_bad_files_are_left_out(tmp_path):
    samples = write_bad(tmp_path, [kind.name for kind in BAD_KINDS])
    cpu, gpu = (loader(samples, batch_size=3, device=d) for d in ("cpu", "cuda"))
    for a, b in zip(cpu.epoch(0), gpu.epoch(0), strict=True):
        assert a.bad == b.bad
        assert torch.equal(a.index, b.index.cpu())
