"""WebDataset and TFRecord shards: what is found in them, with and without index files, and what is refused."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_files import example, jpegs, part, varint, write_tar, write_tfrecord

from fastac.data import EpochSampler, Loader, UnreadableImageError, load_dataset
from fastac.data.index import main as index_command
from fastac.data.index import write_index
from fastac.data.protobuf import example_features, feature_bytes, feature_ints
from fastac.data.tfrecord import scan_tfrecord
from fastac.data.webdataset import index_text, scan_tar

Image = pytest.importorskip("PIL.Image")

JPEGS = jpegs(9)
LABELS = [2, 0, 1, 1, 0, 2, 2, 1, 0]


def tars(root: Path) -> Path:
    """Shards of 4, 3 and 2 samples, and one of 2 to test on."""
    samples = [
        {"jpg": image, "cls": b"%d" % label, "json": b"{}"}
        for image, label in zip(JPEGS, LABELS, strict=True)
    ]
    for name, first, last in (("a-0", 0, 4), ("a-1", 4, 7), ("a-10", 7, 9)):
        write_tar(root / "train" / f"{name}.tar", samples[first:last], first)
    write_tar(root / "val" / "v.tar", samples[:2])
    return root


def record(number: int, base: int = 1, **more) -> bytes:
    label = LABELS[number]
    return example(
        {
            "image/class/synset": b"n%08d" % label,
            "image/encoded": JPEGS[number],
            "image/height": 30,
            "image/aspect": 1.5,
            "image/class/label": label + base,
            **more,
        }
    )


def tfrecords(root: Path, base: int = 1) -> Path:
    for shard, first, last in ((0, 0, 4), (1, 4, 9)):
        write_tfrecord(
            root / "train" / f"train-{shard:05d}-of-00002", [record(n, base) for n in range(first, last)]
        )
    write_tfrecord(root / "val" / "validation-00000-of-00001", [record(n, base) for n in (1, 4)])
    return root


KINDS = {"webdataset": tars, "tfrecord": tfrecords}


def load(kind: str, root: Path, **options):
    return load_dataset(kind, root, image_size=16, **options)


# ------------------------------------------------------------------------------------------- what is in them


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_in_the_order_of_shards_and_records(tmp_path, kind, indexed, caplog):
    KINDS[kind](tmp_path)
    if indexed:
        assert index_command([str(tmp_path)]) == 0
    data = load(kind, tmp_path)
    assert ("have no index file" in caplog.text) == (not indexed)
    train = data.train
    assert train.labels.tolist() == LABELS
    assert [train.images.read(i) for i in range(9)] == JPEGS
    np.testing.assert_array_equal(train.image(5), np.array(Image.open(io.BytesIO(JPEGS[5]))))
    assert data.test.class_names == train.class_names
    if kind == "webdataset":
        assert train.class_names == ("0", "1", "2")
        assert train.images.name(4) == "a-1.tar#part/000004"
        assert data.test.labels.tolist() == LABELS[:2]
    else:
        assert train.class_names == ("n00000000", "n00000001", "n00000002")
        assert train.images.name(4) == "train-00001-of-00002#0"
        assert data.test.labels.tolist() == [0, 0]  # 1 in the file: the training split says what the base is
    picked = train.take(np.array([7, 2]))
    assert [picked.images.read(i) for i in range(2)] == [JPEGS[7], JPEGS[2]]
    assert picked.images.name(0) == train.images.name(7)


def test_labels_of_records_that_count_from_0(tmp_path, caplog):
    assert load("tfrecord", tfrecords(tmp_path, base=0)).train.labels.tolist() == LABELS
    assert "count from 1" not in caplog.text
    shutil.rmtree(tmp_path / "train")
    assert load("tfrecord", tfrecords(tmp_path, base=1)).train.labels.tolist() == LABELS
    assert "labels of" in caplog.text
    assert "count from 1 (none is 0): taken as 0 to 2" in caplog.text


def test_names_that_count_the_background(tmp_path, caplog):
    """As many names as the largest label and one: the first is of 0, which no sample has."""
    (tmp_path / "classes.txt").write_text("background\nant\nbee\ncow\n")
    train = load("tfrecord", tfrecords(tmp_path, base=1)).train
    assert train.labels.tolist() == [label + 1 for label in LABELS]
    assert train.class_names[1:] == ("ant", "bee", "cow")
    assert "count from 1" not in caplog.text
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    assert load("tfrecord", tmp_path).train.labels.tolist() == LABELS


def test_classes_by_name(tmp_path):
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n")
    assert load("webdataset", tars(tmp_path)).train.class_names == ("ant", "bee", "cow", "dog")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(
        ValueError,
        match=r"train/a-0.tar#part/000000 has the label 2 \(3 such\); labels should be 0 to 1",
    ):
        load("webdataset", tmp_path)


def test_names_that_do_not_tell_the_classes_apart_are_not_taken(tmp_path):
    write_tfrecord(
        tmp_path / "train" / "x.tfrecord",
        [record(n, **{"image/class/synset": b"crane"}) for n in range(9)],
    )
    assert load("tfrecord", tmp_path).train.class_names == ("0", "1", "2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_torch_loader_reads_them_as_it_reads_files(tmp_path, kind):
    train = load(kind, KINDS[kind](tmp_path / "shards")).train
    for number, (image, label) in enumerate(zip(JPEGS, LABELS, strict=True)):
        path = tmp_path / "folder/train" / str(label) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    folder = load("folder", tmp_path / "folder").train
    number_of = [int(Path(path).stem) for path in folder.images.paths]
    options = {"augment": "none", "seed": 0, "device": "cpu"}
    sampler = EpochSampler(9, 4, shuffle=False)
    made = [
        torch.cat([b.images for b in Loader(s, s.labels, sampler, workers=w, **options).epoch(0)])
        for s, w in ((train, 0), (train, 1), (folder, 0))
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0][number_of], made[2])


def test_unreadable_images_are_named_by_shard_and_key(tmp_path):
    write_tar(
        tmp_path / "train/a.tar",
        [{"jpg": JPEGS[0], "cls": b"0"}, {"jpg": b"text", "cls": b"1"}, {"jpg": b"", "cls": b"1"}],
    )
    train = load("webdataset", tmp_path).train
    with pytest.raises(UnreadableImageError, match=r"train/a.tar#part/000001: cannot identify"):
        train.image(1)
    with pytest.raises(UnreadableImageError, match=r"a.tar#part/000002: the file is empty"):
        train.image(2)
    loader = Loader(
        train, train.labels, EpochSampler(3, 3, shuffle=False), augment="none", seed=0, device="cpu"
    )
    with pytest.raises(UnreadableImageError, match=r"a.tar#part/000001"):
        next(loader.epoch(0))


def test_odd_members_of_a_tar(tmp_path):
    """Folders, hidden files, a second extension and long names."""
    path = tmp_path / "train" / "a.tar"
    path.parent.mkdir()
    long = "f" * 120 + "/" + "n" * 120
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("part")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        names = (".hidden.jpg", "part/x.seg.png", "part/x.CLS", f"{long}.jpeg", f"{long}.cls")
        for name, content in zip(names, (b"?", b"png", b" 1\n", JPEGS[0], b"0"), strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for _ in range(2):  # looked through, then by its index
        images = load("webdataset", tmp_path).train.images
        assert [images.read(i) for i in range(2)] == [b"png", JPEGS[0]]
        assert images.name(1) == f"a.tar#{long}"
        write_index(path)


# ------------------------------------------------------------------------------------ others' writers and readers


def test_the_index_is_that_of_dalis_wds2idx(tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    tars(tmp_path)
    shard = tmp_path / "train" / "a-0.tar"
    with wds2idx.IndexCreator(str(shard), str(tmp_path / "theirs"), verbose=False) as creator:
        creator.create_index()
    assert write_index(shard) == tmp_path / "train" / "a-0.idx"
    ours, theirs = (p.read_text().splitlines() for p in (tmp_path / "train/a-0.idx", tmp_path / "theirs"))
    assert ours == theirs
    assert ours[0] == "v1.2 4"


def test_an_index_of_version_1_1(tmp_path):
    tars(tmp_path)
    for shard in sorted((tmp_path / "train").glob("*.tar")):
        lines = index_text(scan_tar(shard)).splitlines()
        old = [" ".join(w for i, w in enumerate(line.split()) if i % 4 != 3) for line in lines[1:]]
        shard.with_suffix(".idx").write_text("\n".join(["v1.1 " + lines[0].split()[1], *old]) + "\n")
    images = load("webdataset", tmp_path).train.images
    assert [images.read(i) for i in range(9)] == JPEGS
    assert images.name(5) == "a-1.tar#1"


@pytest.mark.parametrize("kind", KINDS)
def test_dalis_own_readers_take_the_index(tmp_path, kind):
    dali = pytest.importorskip("nvidia.dali")
    tfrecord_reader = pytest.importorskip("nvidia.dali.tfrecord")
    KINDS[kind](tmp_path)
    index_command([str(tmp_path)])
    shards = sorted(p for p in (tmp_path / "train").iterdir() if p.suffix != ".idx")
    indexes = [str(p.with_suffix(".idx")) for p in shards]

    @dali.pipeline_def(batch_size=9, num_threads=1, device_id=None)
    def pipeline():
        if kind == "webdataset":
            paths = list(map(str, shards))
            return tuple(dali.fn.readers.webdataset(paths=paths, index_paths=indexes, ext=["jpg", "cls"]))
        wanted = {"image/encoded": tfrecord_reader.FixedLenFeature((), tfrecord_reader.string, "")}
        wanted["image/class/label"] = tfrecord_reader.FixedLenFeature([1], tfrecord_reader.int64, -1)
        found = dali.fn.readers.tfrecord(path=list(map(str, shards)), index_path=indexes, features=wanted)
        return found["image/encoded"], found["image/class/label"]

    images, labels = pipeline().run()
    assert [bytes(images.at(i)) for i in range(9)] == JPEGS
    if kind == "webdataset":
        assert [int(bytes(labels.at(i))) for i in range(9)] == LABELS
    else:
        assert [int(labels.at(i)[0]) - 1 for i in range(9)] == LABELS


def example_class():
    """tf.train.Example as Google's library makes it, of the fields that are used here."""
    pool_module = pytest.importorskip("google.protobuf.descriptor_pool")
    from google.protobuf import descriptor_pb2, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name, *fields):
        kind = file.message_type.add(name=name)
        for number, (field, label, type_, of) in enumerate(fields, start=1):
            kind.field.add(name=field, number=number, label=label, type=type_, type_name=of)
        return kind

    one, many = 1, 3
    number, text, binary, nested, real = 3, 9, 12, 11, 2
    message("BytesList", ("value", many, binary, None))
    message("FloatList", ("value", many, real, None))
    message("Int64List", ("value", many, number, None))
    message(
        "Feature",
        ("bytes_list", one, nested, ".t.BytesList"),
        ("float_list", one, nested, ".t.FloatList"),
        ("int64_list", one, nested, ".t.Int64List"),
    )
    features = message("Features", ("feature", many, nested, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=text)
    entry.field.add(name="value", number=2, label=one, type=nested, type_name=".t.Feature")
    message("Example", ("features", one, nested, ".t.Features"))
    pool = pool_module.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def test_records_that_googles_library_and_tensorboard_write(tmp_path):
    writer_module = pytest.importorskip("tensorboard.summary.writer.record_writer")
    kind = example_class()
    (tmp_path / "train").mkdir()
    with open(tmp_path / "train" / "x.tfrecord", "wb") as file:
        writer = writer_module.RecordWriter(file)
        for image, label in zip(JPEGS, LABELS, strict=True):
            message = kind()
            feature = message.features.feature
            feature["image/encoded"].bytes_list.value.append(image)
            feature["image/class/label"].int64_list.value.append(label)
            feature["image/object/bbox"].float_list.value.extend([0.5, 0.25])
            feature["image/class/text"].bytes_list.value.append(b"class %d" % label)
            writer.write(message.SerializeToString())
        writer.flush()
    train = load("tfrecord", tmp_path).train
    assert [train.images.read(i) for i in range(9)] == JPEGS
    assert train.labels.tolist() == LABELS
    assert train.class_names == ("class 0", "class 1", "class 2")


def test_numbers_of_every_length_and_either_packing():
    kind, values = example_class(), [0, 1, 127, 128, 300, 2**31, 2**62, -1, -(2**63)]
    message = kind()
    message.features.feature["n"].int64_list.value.extend(values)
    message.features.feature["b"].bytes_list.value.extend([b"", b"xy"])
    packed = message.SerializeToString()
    features = example_features(packed, (0, len(packed)))
    assert set(features) == {"n", "b"}
    assert feature_ints(packed, features["n"]) == values
    assert [packed[slice(*span)] for span in feature_bytes(packed, features["b"])] == [b"", b"xy"]
    single = part(3, b"".join(b"\x08" + varint(v) for v in values))  # int64_list, one field a value
    assert feature_ints(single, (0, len(single))) == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x0a\x05abc", "goes past its message's end"),
        (b"\x0b", "wire type 3 at byte 1"),
        (b"\x80" * 3, "a number at byte 3 goes past"),
        (b"\xff" * 12, "more than 10 bytes"),
    ],
)
def test_what_is_no_message(content, message):
    with pytest.raises(ValueError, match=message):
        example_features(content, (0, len(content)))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_folders(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=f"train is not a folder: .* with {kind} shards"):
        load(kind, tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "notes.md").touch()
    with pytest.raises(ValueError, match=f"train has no {kind} shards"):
        load(kind, tmp_path)


def test_an_empty_record_file_has_no_samples(tmp_path):
    write_tfrecord(tmp_path / "train" / "x.tfrecord", [])
    with pytest.raises(ValueError, match="train: its tfrecord shards hold no samples"):
        load("tfrecord", tmp_path)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"jpg": b"x"}, r"'part/000000' has the members jpg; it should have one of cls"),
        ({"cls": b"1", "txt": b""}, "has the members cls, txt; it should have one of jpg, jpeg"),
        ({"jpg": b"x", "png": b"x", "cls": b"1"}, "has the members jpg, png, cls; it should have one of jpg"),
        ({"jpg": b"x", "cls": b"cat"}, r"label \(.cls\) of 'part/000000' is b'cat'; it should be a number"),
        ({"jpg": b"x", "cls": b"-1"}, r"has the label -1 \(1 such\)"),
    ],
)
def test_wrong_members_of_a_tar(tmp_path, sample, message):
    write_tar(tmp_path / "train" / "a.tar", [sample])
    with pytest.raises(ValueError, match=message):
        load("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a message", "record 0, at byte 0, is no tf.train.Example"),
        (example({"image/encoded": b"x"}), "has 1 image/encoded and 0 image/class/label; .* image/encoded$"),
        (example({"image/class/label": 3, "z": 1}), "has 0 image/encoded and 1 .* image/class/label, z$"),
    ],
)
def test_wrong_records(tmp_path, content, message):
    write_tfrecord(tmp_path / "train" / "x.tfrecord", [content])
    with pytest.raises(ValueError, match=message):
        load("tfrecord", tmp_path)


def test_labels_that_the_training_split_lacks(tmp_path):
    tars(tmp_path)
    write_tar(tmp_path / "val" / "v.tar", [{"jpg": JPEGS[0], "cls": b"7"}])
    with pytest.raises(ValueError, match=r"val/v.tar#part/000000 has the label 7 .* should be 0 to 2"):
        load("webdataset", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_was_cut_off(tmp_path, kind):
    KINDS[kind](tmp_path)
    shard = next(p for p in sorted((tmp_path / "train").iterdir()))
    index = write_index(shard)
    content = shard.read_bytes()
    for cut in (3 * len(content) // 5, 700):
        shard.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=f"{index.name} is no index of {shard.name}, or of an older one"):
            load(kind, tmp_path)
        index.rename(tmp_path / "away")
        with pytest.raises(ValueError, match=f"{shard.name} is no whole"):
            load(kind, tmp_path)
        (tmp_path / "away").rename(index)


@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 2000], ids=["empty", "short", "text"])
def test_what_is_no_tar(tmp_path, content):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.tar is no whole, uncompressed tar file"):
        load("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "it begins with '' and has 0 lines more"),
        (lambda text: text.replace("v1.2 4", "v1.2 5"), "it begins with 'v1.2 5' and has 4 lines more"),
        (lambda text: text.replace("v1.2", "v9"), "it begins with 'v9 4'"),
        (lambda text: text.replace("part/000001.cls", "part/00 0001.cls"), "line 3 is 'jpg"),
        (lambda text: text.replace("cls ", "cls x", 1), "line 2 is"),
        (lambda text: text.replace("json ", "json 1", 4), "there is no member of .* bytes at byte"),
        (lambda text: re.sub(r"jpg (\d+)", "jpg -5", text, count=1), "no member of .* bytes at byte -5"),
        (lambda text: re.sub(r"jpg (\d+)", "jpg 600", text, count=1), "no member of .* bytes at byte 600"),
        (lambda text: re.sub(r"jpg (\d+) \d+", r"jpg \1 -7", text, count=1), "no member of -7 bytes"),
        (lambda text: re.sub(r"jpg (\d+) \d+", r"jpg \1 9", text, count=1), "no member of 9 bytes"),
        (lambda text: re.sub(r"cls (\d+)", f"cls {10**20}", text, count=1), f"at byte {10**20}"),
    ],
)
def test_an_index_that_is_wrong(tmp_path, change, message):
    tars(tmp_path)
    index = write_index(tmp_path / "train" / "a-0.tar")
    index.write_text(change(index.read_text()))
    with pytest.raises(ValueError, match=message):
        load("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "nonsense\n", "line 1 is 'nonsense'"),
        (lambda text: text.split("\n", 1)[1], "line 1 is .*, and a record begins at byte 0"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "its records end at byte"),
    ],
)
def test_an_index_of_records_that_is_wrong(tmp_path, change, message):
    tfrecords(tmp_path)
    index = write_index(tmp_path / "train" / "train-00000-of-00002")
    assert index.name == "train-00000-of-00002.idx"
    index.write_text(change(index.read_text()))
    with pytest.raises(ValueError, match=message):
        load("tfrecord", tmp_path)


# --------------------------------------------------------------------------------------------------- the command


def test_the_index_command(tmp_path):
    tars(tmp_path / "w")
    tfrecords(tmp_path / "t")
    command = [sys.executable, "-m", "fastac.data.index", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}: 7 index files written\n"
    text = (tmp_path / "t/train/train-00000-of-00002.idx").read_text()
    shard = tmp_path / "t/train/train-00000-of-00002"
    assert text == "".join(f"{first} {end - first}\n" for first, end in scan_tfrecord(shard))


def test_what_the_index_command_refuses(tmp_path, capsys):
    assert index_command([str(tmp_path / "none")]) == 2
    assert "none is not a folder" in capsys.readouterr().err
    assert index_command([str(tmp_path)]) == 2
    assert "has no shards: *.tar" in capsys.readouterr().err
    (tmp_path / "bad.tar").write_bytes(b"no")
    assert index_command([str(tmp_path)]) == 2
    assert "bad.tar is no whole, uncompressed tar file" in capsys.readouterr().err
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a name.jpg"))
    assert index_command([str(tmp_path)]) == 2
    assert "the member 'a name.jpg' has white space in its name" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.tar"]
