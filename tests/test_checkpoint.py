"""fastac.checkpoint: written whole or not at all; nothing but a whole checkpoint is read; nothing is unpickled."""

import errno
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from checkpoint_runs import (
    ended,
    fork,
    join,
    kill_at_call,
    network,
    no_space,
    problem,
    said,
    save,
    table,
    worker,
)

from fastac import checkpoint, checkpoint_files
from fastac.checkpoint import CheckpointError, Checkpoints, list_checkpoints, restore_rng, rng_state
from fastac.checkpoint_writer import Stager

CPU = torch.device("cpu")


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path, keep=2)
    yield made
    made.close()


def saved(folder, *steps, keep=2):
    made = Checkpoints(folder, keep=keep)
    for step in steps:
        save(made, step)
    made.close()


def newest(folder):
    return Checkpoints(folder, keep=2).load_newest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def step_name(step):
    return f"step-{step:08d}"


# --- what is saved is what is loaded -----------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(checkpoints, tmp_path):
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    shared = {
        "model": {"a/b": weights, "a": {"b": torch.tensor(2.5, dtype=torch.bfloat16)}, "": torch.zeros(0, 3)},
        "optimizer": {0: {"x": torch.arange(3)}, "0": 1, -1: "int keys and others", "$dict": "α"},
        "rest": [None, True, 2**70, 0.1, math.nan, -math.inf, (1, torch.tensor([False, True])), "", {}],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "expanded": torch.ones(1, 2).expand(1000, 2),
        "view": torch.arange(12.0).view(3, 4)[1:, ::2],
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    checkpoints.save(7, shared, {"a/b": {"c": 1}, "a": {"b/c": torch.ones(1)}})
    loaded = checkpoints.load(tmp_path / step_name(7))
    assert (loaded.path, loaded.step, loaded.world_size) == (tmp_path / "step-00000007", 7, 1)
    back = loaded.shared
    for name in ("parameter", "expanded", "view", "complex"):
        torch.testing.assert_close(back[name], shared[name].detach(), rtol=0, atol=0)
    torch.testing.assert_close(back["model"], shared["model"], rtol=0, atol=0)
    assert list(back["model"]) == ["a/b", "a", ""]
    assert list(back["optimizer"]) == [0, "0", -1, "$dict"]
    assert torch.equal(back["optimizer"][0]["x"], torch.arange(3))
    assert [back["optimizer"][key] for key in ("0", -1, "$dict")] == [1, "int keys and others", "α"]
    assert back["rest"][:4] == [None, True, 2**70, 0.1]
    assert type(back["rest"][1]) is bool
    assert math.isnan(back["rest"][4])
    assert back["rest"][5] == -math.inf
    assert back["rest"][6][0] == 1
    assert torch.equal(back["rest"][6][1], torch.tensor([False, True]))
    assert back["rest"][7:] == ["", {}]
    assert loaded.own("a/b") == [{"c": 1}]
    assert torch.equal(loaded.own("a")[0]["b/c"], torch.ones(1))
    assert loaded.own("nobody's") == []


def test_the_thread_that_writes_asks_for_no_gpu(checkpoints, tmp_path, monkeypatch):
    """There its device would be GPU 0 on every rank."""

    def refuse(*args, **kwargs):
        raise AssertionError("a stream was asked for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed.checkpoint.filesystem, "_OverlappingCpuLoader", refuse)
    checkpoints.save(1, {"x": torch.ones(3)}, {})
    checkpoints.wait()
    assert torch.equal(checkpoints.load(tmp_path / step_name(1)).shared["x"], torch.ones(3))


def test_a_network_with_its_optimizer(checkpoints):
    def make(seed):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        return net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def advance(net, optimizer, scheduler, steps):
        for step in range(steps):
            net(torch.full((3, 1, 5, 5), 1.0 + step)).square().sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return net.state_dict()

    first = make(0)
    advance(*first, 3)
    names = ("model", "optimizer", "scheduler")
    checkpoints.save(3, {name: part.state_dict() for name, part in zip(names, first, strict=True)}, {})
    expected = advance(*first, 3)
    second, state = make(1), checkpoints.load_newest().shared
    for name, part in zip(names, second, strict=True):
        part.load_state_dict(state[name])
    torch.testing.assert_close(advance(*second, 3), expected, rtol=0, atol=0)


def test_staging_fills_the_same_room_again():
    """By name, whoever holds the tensors: gathered ones are new at each save."""
    stager = Stager()
    first = stager.stage({"x": torch.ones(3), "y": torch.zeros(2, dtype=torch.uint8)})
    places = {name: tensor.data_ptr() for name, tensor in first.items()}
    source = torch.arange(6.0).view(2, 3).t()[:, 0]  # a view with strides of its own
    second = stager.stage({"x": source, "y": torch.zeros(2, dtype=torch.int64), "z": torch.ones(())})
    assert second["x"].data_ptr() == places["x"]
    assert second["x"].tolist() == [0.0, 1.0, 2.0]
    assert (second["y"].dtype, second["z"].shape) == (torch.int64, ())
    source.fill_(9)
    assert second["x"].tolist() == [0.0, 1.0, 2.0]
    assert stager.stage({"z": torch.zeros(())}).keys() == {"z"}
    stager.close()


def test_changes_after_save_do_not_leak_in(checkpoints):
    alpha = torch.zeros(1_000_000)
    for step in (1, 2, 3):
        alpha.fill_(step)
        checkpoints.save(step, {"alpha": alpha, "tied": [alpha, alpha[:3]]}, {})
        alpha.fill_(-1.0)
    loaded = checkpoints.load_newest()
    assert torch.equal(loaded.shared["alpha"], torch.full((1_000_000,), 3.0))
    assert torch.equal(loaded.shared["tied"][1], torch.full((3,), 3.0))


def test_only_what_is_wanted_is_read(checkpoints, monkeypatch):
    save(checkpoints, 1)
    loaded, read = checkpoints.load_newest(), []
    real = checkpoint._Reader.tensors

    def tensors(self, names):
        read.append(list(names))
        return real(self, read[-1])

    monkeypatch.setattr(checkpoint._Reader, "tensors", tensors)
    assert loaded.own("table", lambda plain: plain["rows"] != [0, 11]) == []
    assert read == []
    assert torch.equal(loaded.own("table", lambda plain: True)[0]["alpha"], table(1)["alpha"])
    assert read == [["own/table/00000/alpha", "own/table/00000/parts/#0"]]


def test_random_states_go_through_a_checkpoint(checkpoints):
    def draw():
        return random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()  # noqa: NPY002

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    draw()  # leaves a second Gaussian in Python's and NumPy's generator
    checkpoints.save(1, {}, {"rng": rng_state(CPU)})
    expected = [draw() for _ in range(3)]
    restore_rng(checkpoints.load_newest().own("rng")[0], CPU)
    assert [draw() for _ in range(3)] == expected


# --- the folder --------------------------------------------------------------------------------------------


def test_the_last_k_are_kept(tmp_path):
    saved(tmp_path, 5, 90, 100, 120, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [step_name(step) for step in (90, 100, 120)]
    assert names(tmp_path) == [step_name(step) for step in (90, 100, 120)]


def test_checkpoints_of_a_course_that_was_given_up_go(tmp_path, checkpoints):
    saved(tmp_path, 10, 20, 30, keep=3)
    checkpoints.save(20, {"step": "again"}, {})
    checkpoints.wait()
    assert names(tmp_path) == [step_name(10), step_name(20)]
    assert checkpoints.load_newest().shared == {"step": "again"}


def test_steps_of_more_than_eight_digits_sort_by_number(tmp_path):
    saved(tmp_path, 99_999_999, 100_000_000)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-99999999", "step-100000000"]
    assert newest(tmp_path).step == 100_000_000


def test_no_checkpoint(tmp_path, checkpoints):
    assert checkpoints.load_newest() is None
    assert newest(tmp_path / "nowhere") is None
    assert list_checkpoints(tmp_path / "nowhere") == []
    with pytest.raises(CheckpointError, match="there is no checkpoint .*step-00000001"):
        checkpoints.load(tmp_path / step_name(1))
    with pytest.raises(ValueError, match="keep was 0; it should be at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_what_a_killed_process_left_is_not_taken_and_goes_at_the_next_save(tmp_path, checkpoints):
    saved(tmp_path, 1, 2, 9)
    for kind, step in (("tmp", 9), ("gone", 2)):
        os.rename(tmp_path / step_name(step), tmp_path / f".{step_name(step)}.{kind}")
    assert newest(tmp_path) is None
    save(checkpoints, 10)
    checkpoints.wait()
    assert names(tmp_path) == [step_name(10)]


def test_a_checkpoint_that_was_about_to_be_replaced_is_found(tmp_path, checkpoints):
    saved(tmp_path, 3, 4)
    os.rename(tmp_path / step_name(4), tmp_path / f".{step_name(4)}.old")
    loaded = checkpoints.load_newest()
    assert (loaded.step, problem(loaded, 0, 1)) == (4, "")
    save(checkpoints, 5)
    checkpoints.wait()
    assert names(tmp_path) == [step_name(4), step_name(5)]


def test_no_warnings_no_threads(tmp_path):
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Checkpoints(tmp_path, keep=2)
        save(made, 1)
        save(made, 2)
        assert made.load_newest().step == 2
        save(made, 3)
        made.close()
        assert threading.active_count() == before
        made.close()
    assert names(tmp_path) == [step_name(2), step_name(3)]


# --- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 100, 3000, 30_000, 41_000])
def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch, checkpoints, room):
    save(checkpoints, 1)
    checkpoints.wait()
    left = room
    real = checkpoint_files._ChecksumFile.write

    def write(self, data):
        nonlocal left
        left -= memoryview(data).nbytes
        return real(self, data) if left >= 0 else no_space()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files._ChecksumFile, "write", write)
        save(checkpoints, 2, size=2000)
        with pytest.raises(CheckpointError) as error:
            checkpoints.wait()
    older = tmp_path / step_name(1)
    assert str(error.value) == (
        f"cannot save the checkpoint {tmp_path / step_name(2)}: No space left on device; {older} is left as it was"
    )
    assert names(tmp_path) == [older.name]
    assert checkpoints.load_newest().step == 1
    save(checkpoints, 2)
    assert checkpoints.load_newest().step == 2


@pytest.mark.parametrize(("call", "numbers"), [("fsync", 5), ("rename", 3), ("mkdir", 3)])
def test_a_disk_that_fails_leaves_the_older_checkpoint(tmp_path, monkeypatch, checkpoints, call, numbers):
    """Step 2 is replaced, and the call fails once, at its first use or a later one."""
    saved(tmp_path, 1, 2)
    before, real, count, number = names(tmp_path), getattr(os, call), 0, 0

    def fail(*args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)
    for number in range(1, numbers + 1):
        count = 0
        checkpoints.save(2, network(2) | {"again": True}, {"table": table(2), "rng": {"rank": 0}})
        text = said(checkpoints.wait)
        assert count >= number
        assert names(tmp_path) == before
        loaded = checkpoints.load_newest()
        assert (loaded.step, problem(loaded, 0, 1)) == (2, "")
        if call == "mkdir" and number != 2:  # the folder is there already, which is all that was asked for
            assert (text, loaded.shared["again"]) == ("", True)
            continue
        assert text == (
            f"cannot save the checkpoint {tmp_path / step_name(2)}: Input/output error; "
            f"{tmp_path / step_name(2)} is left as it was"
        )
        assert call == "mkdir" or "again" not in loaded.shared


def test_a_failed_save_is_raised_by_the_next_one(tmp_path, monkeypatch, checkpoints):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        save(checkpoints, 1)
        with pytest.raises(
            CheckpointError, match="step-00000001: No space left on device; there is no older one"
        ):
            save(checkpoints, 2)
    checkpoints.wait()
    assert names(tmp_path) == []


def test_an_old_checkpoint_that_cannot_be_removed(tmp_path, monkeypatch, checkpoints):
    saved(tmp_path, 1, 2)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "remove", refuse)
        save(checkpoints, 3)
        with pytest.raises(CheckpointError, match="step-00000003 is saved, but older .*: Permission denied"):
            checkpoints.wait()
    assert checkpoints.load_newest().step == 3
    save(checkpoints, 4)
    checkpoints.wait()
    assert names(tmp_path) == [step_name(3), step_name(4)]


def test_a_real_limit_on_file_size(tmp_path):
    """The kernel's own refusal (EFBIG), in the middle of torch's writer."""
    script = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from fastac.checkpoint import CheckpointError, Checkpoints
        checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
        checkpoints.save(1, {"w": torch.zeros(1000)}, {})
        checkpoints.save(2, {"w": torch.zeros(1_000_000)}, {})
        try:
            checkpoints.wait()
        except CheckpointError as error:
            print(error)
        print(checkpoints.load_newest().path.name)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    first, second = done.stdout.splitlines()
    assert "step-00000002: File too large; " in first
    assert second == step_name(1)
    assert names(tmp_path) == [step_name(1)]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: None, r"shared/model/#1 was a function; it should be a tensor, None, bool"),
        (np.int64(1), r"shared/model/#1 was a int64"),
        ({1.5: 1}, r"a key in shared/model/#1 was 1.5; it should be a str or an int"),
        (
            torch.zeros(2).to_sparse(),
            r"shared/model/#1 was a torch.sparse_coo Tensor; it should be a plain dense",
        ),
    ],
)
def test_a_state_that_cannot_be_saved(tmp_path, checkpoints, value, message):
    saved(tmp_path, 1)
    checkpoints.save(2, {"model": {1: value}}, {})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.wait()
    assert names(tmp_path) == [step_name(1)]


# --- spoilt, foreign and malicious -------------------------------------------------------------------------


class Evil:
    """Unpickling it leaves a file behind."""

    def __init__(self, folder):
        self.trace = str(folder / "trace")

    def __reduce__(self):
        return Path.touch, (Path(self.trace),)


def data_file(path):
    return path / "__0_0.distcp"


def write_manifest(path, change, checksum=True):
    """Change the manifest's content, and its checksum with it."""
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    if checksum:
        content.pop("crc32")
        content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (path / "manifest.json").write_text(json.dumps(content))


def replace_file(path, name, data):
    """Another content, that the manifest vouches for."""
    (path / name).write_bytes(data)
    write_manifest(path, lambda content: content["files"].update({name: [len(data), zlib.crc32(data)]}))


def in_place_of_the_state(path, text):
    in_place_of_a_tensor(path, torch.frombuffer(bytearray(text), dtype=torch.uint8), "shared", len(text))


def in_place_of_a_tensor(path, value, name="shared/model/0", size=2):
    """A pickle where the manifest has a tensor, with right checksums."""
    with open(path / "value", "wb") as file:
        torch.save(value, file)
    data = data_file(path).read_bytes()
    value = (path / "value").read_bytes()
    replace_file(path, data_file(path).name, data + value)

    def change(content):
        content["tensors"][name][3:] = [len(data), len(value)]
        content["tensors"][name][1] = [size]

    write_manifest(path, change)


def set_tensor(number, value):
    def spoil(path):
        write_manifest(path, lambda content: content["tensors"]["shared/model/0"].__setitem__(number, value))

    return spoil


def set_field(name, value):
    return lambda path: write_manifest(path, lambda content: content.update({name: value}))


def cut(path):
    os.truncate(data_file(path), data_file(path).stat().st_size - 200)


def empty(path):
    data_file(path).write_bytes(b"")


def flip(file):
    def spoil(path):
        data = bytearray((path / file).read_bytes())
        data[len(data) // 2] ^= 1
        (path / file).write_bytes(data)

    return spoil


def flip_digit(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"world_size": 1', '"world_size": 3'))


def missing(file):
    return lambda path: (path / file).unlink()


def nonsense(text):
    return lambda path: (path / "manifest.json").write_text(text)


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


def a_file(path):
    shutil.rmtree(path)
    path.write_bytes(b"hello")


def old_format(path):
    shutil.rmtree(path)
    torch.save({"format": "fastac checkpoint 1", "step": 2}, path.with_suffix(".pt"))


def pipe(path):
    data_file(path).unlink()
    os.mkfifo(data_file(path))


def elsewhere(path):
    """A file outside the folder, that the manifest vouches for."""
    data = data_file(path).read_bytes()
    (path.parent / "outside").write_bytes(data)

    def change(content):
        content["files"]["../outside"] = [len(data), zlib.crc32(data)]
        content["tensors"]["shared/model/0"][2] = "../outside"

    write_manifest(path, change)


def no_shared(path):
    write_manifest(path, lambda content: content["tensors"].pop("shared"))


def no_tensor(path):
    write_manifest(path, lambda content: content["tensors"].pop("shared/model/0"))


def renamed(path):
    os.rename(path, path.parent / step_name(3))


SPOILT = {
    "cut": (cut, "is no whole checkpoint: __0_0.distcp has"),
    "empty file": (empty, "is no whole checkpoint: __0_0.distcp has 0 bytes; it should have"),
    "flipped": (flip("__0_0.distcp"), "is damaged: the checksum of __0_0.distcp is wrong"),
    "flipped index": (flip(".metadata"), "is damaged: the checksum of .metadata is wrong"),
    "flipped manifest": (flip_digit, "is damaged: the checksum of manifest.json is wrong"),
    "missing": (missing("__0_0.distcp"), "is no whole checkpoint: __0_0.distcp is missing"),
    "missing index": (missing(".metadata"), "is no whole checkpoint: .metadata is missing"),
    "missing manifest": (missing("manifest.json"), "is no whole checkpoint: it has no manifest.json"),
    "a pipe": (pipe, "its __0_0.distcp is no file"),
    "empty folder": (emptied, "is no whole checkpoint: it has no manifest.json"),
    "a file": (a_file, "is a file and not a folder"),
    "old format": (old_format, r"step-00000002.pt is no checkpoint of this version: it is a file"),
    "no text": (nonsense(""), "is no JSON"),
    "no JSON": (nonsense("{" * 1000), "is no JSON"),
    "deep": (nonsense("[" * 100_000), "is no JSON"),
    "no object": (nonsense("[1]"), "its format was 'list'"),
    "no format": (nonsense("{}"), "its format was None"),
    "other format": (set_field("format", "fastac checkpoint 3"), "its format was 'fastac checkpoint 3'"),
    "extra field": (set_field("run", "x"), "the fields were"),
    "step": (set_field("step", 3), "the step was 3, which is not the folder's"),
    "folder": (renamed, "the step was 2, which is not the folder's"),
    "step text": (set_field("step", "2"), "a number was '2'"),
    "negative": (set_field("world_size", -1), "a number was -1"),
    "files": (set_field("files", 3), "in manifest.json, "),
    "tensors": (set_field("tensors", {"x": [1]}), "in manifest.json, "),
    "dtype": (set_tensor(0, "load"), "a dtype was 'load'"),
    "size": (set_tensor(1, [10**15]), "was to lie outside its place"),
    "offset": (set_tensor(3, 10**6), "was to lie outside its place"),
    "other size": (
        set_tensor(1, [999]),
        r"shared/model/0 in .* is not the torch.float32 tensor of size \(999,\)",
    ),
    "other dtype": (set_tensor(0, "int32"), "is not the torch.int32 tensor"),
    "elsewhere": (elsewhere, "a file was '../outside'"),
    "file of a tensor": (set_tensor(2, "../outside"), "the file of 'shared/model/0' was '../outside'"),
    "index as data": (set_tensor(2, ".metadata"), "the file of 'shared/model/0' was '.metadata'"),
    "no shared": (no_shared, "has no tensor 'shared'"),
    "no tensor": (no_tensor, "has no tensor 'shared/model/0'"),
    "no dict": (lambda path: in_place_of_the_state(path, b"[1]"), "shared is no dict"),
    "bad JSON": (lambda path: in_place_of_the_state(path, b"{"), "is no checkpoint that fastac wrote: "),
    "bad pairs": (
        lambda path: in_place_of_the_state(path, b'{"$dict":[1]}'),
        "is no checkpoint that fastac wrote",
    ),
    "bad name": (lambda path: in_place_of_the_state(path, b'{"a":{"$tensor":{}}}'), "it has no tensor {}"),
    "no tensor but a dict": (
        lambda path: in_place_of_a_tensor(path, {"a": 1}),
        "is not the torch.float32 tensor",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_checkpoint_is_refused_and_the_next_older_one_taken(tmp_path, name):
    saved(tmp_path, 1, 2)
    spoil, message = SPOILT[name]
    spoil(tmp_path / step_name(2))
    made = Checkpoints(tmp_path, keep=2)
    bad = sorted(path for path in tmp_path.iterdir() if path.name.startswith("step-"))[-1]
    before = names(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        made.load(bad)
    assert str(bad) in str(error.value)
    loaded = made.load_newest()
    assert (loaded.step, problem(loaded, 0, 1)) == (1, "")
    assert loaded.problems == [str(error.value)]
    assert names(tmp_path) == before
    shutil.rmtree(tmp_path / step_name(1))
    with pytest.raises(CheckpointError, match="no checkpoint is whole: .*" + message):
        made.load_newest()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_tensor_is_refused_and_not_run(tmp_path, legacy):
    saved(tmp_path, 1, 2)
    path = tmp_path / step_name(2)
    in_place_of_a_tensor(path, Evil(tmp_path))
    if legacy:  # a bare pickle, as torch.load takes it too
        data = data_file(path).read_bytes()
        content = json.loads((path / "manifest.json").read_text())
        offset = content["tensors"]["shared/model/0"][3]
        replace_file(path, data_file(path).name, data[:offset] + pickle.dumps(Evil(tmp_path), protocol=2))
        length = data_file(path).stat().st_size - offset
        set_tensor(4, length)(path)
        set_tensor(1, [2])(path)
    made = Checkpoints(tmp_path, keep=2)
    with pytest.raises(CheckpointError, match="shared/model/0 in __0_0.distcp is no tensor"):
        made.load(path)
    assert made.load_newest().step == 1
    assert "trace" not in names(tmp_path)


def test_the_trap_would_work(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path), protocol=2))
    assert names(tmp_path) == ["trace"]


def test_a_malicious_index_is_not_run(tmp_path):
    """DCP's index is a pickle; its own reader would run it. Here nothing unpickles it."""
    saved(tmp_path, 2)
    path = tmp_path / step_name(2)
    replace_file(path, ".metadata", pickle.dumps(Evil(tmp_path), protocol=2))
    loaded = newest(tmp_path)
    assert problem(loaded, 0, 1) == ""
    assert "trace" not in names(tmp_path)


def test_torchs_own_tools_read_a_checkpoint(tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    saved(tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(tmp_path / step_name(2), tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert torch.equal(whole["shared/model/3"], network(2)["model"]["3"])
    assert torch.equal(whole["own/table/00000/alpha"], table(2)["alpha"])


def test_a_file_that_goes_after_loading(tmp_path, checkpoints):
    save(checkpoints, 2)
    loaded = checkpoints.load_newest()
    data_file(loaded.path).unlink()
    with pytest.raises(CheckpointError, match="step-00000002 can't be read: No such file or directory"):
        loaded.own("table")


# --- killed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 3])
def test_a_process_killed_at_each_call_of_a_save(tmp_path, step):
    """Step 2 is replaced, or step 3 is new and step 1 is removed."""

    def again(number):
        kill_at_call(number)
        made = Checkpoints(tmp_path, keep=2)
        made.save(step, network(step) | {"again": True}, {"table": table(step), "rng": {"rank": 0}})
        made.close()

    seen = []
    for number in range(1, 100):
        for path in list(tmp_path.iterdir()):
            shutil.rmtree(path)
        saved(tmp_path, 1, 2)
        status = ended(fork(lambda number=number: again(number)))
        loaded = newest(tmp_path)
        assert problem(loaded, 0, 1) == ""
        assert loaded.problems == []
        for path in list_checkpoints(tmp_path):  # nothing that is half removed keeps its name
            Checkpoints(tmp_path, keep=2).load(path)
        seen.append((loaded.step, "again" in loaded.shared))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        saved(tmp_path, 4)
        assert names(tmp_path) == [step_name(max(step, 2) if seen[-1][1] else 2), step_name(4)]
    else:
        raise AssertionError("there are more calls than that")
    assert len(seen) > 12
    assert seen == sorted(seen, key=lambda found: found[1])  # the old one, then the new one, then no way back
    assert {seen[0], seen[-1]} == {(2, False), (step, True)}


def save_for_ever(folder, note, group=None):
    """note: a file with the last step that is known to be on the disk."""
    made = Checkpoints(folder, keep=2, group=group)
    found = made.load_newest()
    step = found.step if found else 0
    while True:
        step += 1
        save(made, step, size=20_000)
        made.wait()
        if made.rank == 0:
            note.write_text(str(step))


def known(note):
    return int(note.read_text() or 0) if note.exists() else 0


def wait_until(condition):
    """So that a slow machine has got somewhere before the clock of a random moment starts."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_process_killed_at_random_moments(tmp_path):
    note, moments, steps = tmp_path / "note", random.Random(1), []
    for attempt in range(8):
        pid = fork(lambda: save_for_ever(tmp_path / "run", note))
        if attempt == 7:
            wait_until(lambda: known(note) > 1)
        time.sleep(moments.uniform(0.02, 0.4))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        loaded = newest(tmp_path / "run")
        if loaded is not None:
            assert problem(loaded, 0, 1) == ""
            assert loaded.problems == []
        steps.append(0 if loaded is None else loaded.step)
        assert steps[-1] >= known(note)
    assert steps[-1] > 1
    assert steps == sorted(steps)


@pytest.mark.dist
def test_two_ranks_of_which_one_or_both_are_killed_at_random_moments(tmp_path):
    note, moments, steps = tmp_path / "note", random.Random(2), []
    for attempt in range(8):

        def run(rank, attempt=attempt):
            join(rank, 2, f"{tmp_path}/store{attempt}")
            group = dist.new_group(backend="gloo")
            (tmp_path / f"joined {attempt} {rank}").touch()
            save_for_ever(tmp_path / "run", note, group)

        pids = [fork(lambda rank=rank: run(rank)) for rank in range(2)]
        # Else the one that is left waits for the other to join.
        wait_until(lambda count=2 * (attempt + 1): len(list(tmp_path.glob("joined *"))) == count)
        if attempt == 7:
            wait_until(lambda: known(note) > 1)
        time.sleep(moments.uniform(0.0, 0.8))
        victims = [pids[0:1], pids[1:2], pids][attempt % 3]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:  # the other one sees that its peer is gone, and doesn't wait for ever
            assert ended(pid) == (-signal.SIGKILL if pid in victims else 1)
        loaded = newest(tmp_path / "run")
        if loaded is not None:
            assert (loaded.world_size, problem(loaded, 0, 1), loaded.problems) == (2, "", [])
        steps.append(0 if loaded is None else loaded.step)
        assert steps[-1] >= known(note)
    assert steps[-1] > 1
    assert steps == sorted(steps)


# --- several ranks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """(folder, results by world and rank): 4 ranks, then 2, which load what 4 and what 1 saved."""
    folder = tmp_path_factory.mktemp("ranks")
    saved(folder / "of 1", 6)
    mp.spawn(worker, (4, str(folder), [str(folder / "of 1")]), nprocs=4)
    others = [str(folder / "of 1"), str(folder / "of 4")]
    mp.spawn(worker, (2, str(folder), others), nprocs=2)
    return folder, {
        world: [json.loads((folder / f"{world} {rank}.json").read_text()) for rank in range(world)]
        for world in (2, 4)
    }


@pytest.mark.dist
@pytest.mark.parametrize("world", [2, 4])
class TestRanks:
    def test_what_is_saved_is_what_is_loaded(self, ranks, world):
        for result in ranks[1][world]:
            assert result["nothing"]
            assert result["newest"] == [6, world, [], ""]
            assert result["names"] == [step_name(4), step_name(6)]

    def test_on_another_number_of_ranks(self, ranks, world):
        folder, results = ranks
        for result in results[world]:
            assert set(result["others"].values()) == {""}
            assert len(result["others"]) == (2 if world == 2 else 1)
        loaded = newest(folder / f"of {world}")
        assert (loaded.world_size, problem(loaded, 0, 1)) == (world, "")

    def test_what_all_ranks_hold_is_written_once(self, ranks, world):
        folder = ranks[0] / f"of {world}" / step_name(4)
        files = [path.stat().st_size for path in sorted(folder.glob("*.distcp"))]
        assert len(files) == world
        assert min(files) > 4000  # of 5 tensors of 4000 bytes, spread
        content = json.loads((folder / "manifest.json").read_text())
        shared = [place[2] for name, place in content["tensors"].items() if name.startswith("shared/model")]
        assert len(shared) == 4
        assert len(set(shared)) == world

    def test_a_failure_on_one_rank_is_every_ranks(self, ranks, world):
        folder, results = ranks
        path = folder / f"of {world}"
        texts = results[world][0]["failures"]
        for result in results[world]:
            assert result["failures"] == texts
            assert result["after"] == [6, [step_name(4), step_name(6)]]
        end = f"; {path / step_name(6)} is left as it was"
        start = f"cannot save the checkpoint {path / step_name(7)}: rank 0: "
        assert texts["publish"] == f"{start}No space left on device{end}"
        assert texts["names publish"] == [step_name(4), step_name(6)]
        assert texts["prune"] == (
            f"the checkpoint {path / step_name(7)} is saved, but older ones can't be removed: No space left on device"
        )
        assert texts["names prune"] == [step_name(4), step_name(6), step_name(7)]
        for rank in (0, world - 1):
            for name, what in (
                ("stage", "RuntimeError: out of memory"),
                ("write", "No space left on device"),
                ("sync", "No space left on device"),
            ):
                text = texts[f"{name} {rank}"]
                assert text == f"cannot save the checkpoint {path / step_name(7)}: rank {rank}: {what}{end}"
                assert texts[f"names {name} {rank}"] == [step_name(4), step_name(6)]
            assert texts[f"state {rank}"].startswith(
                f"cannot save the checkpoint {path / step_name(7)}: rank {rank}: TypeError: own/what/0000{rank}/is was"
            )
            assert texts[f"load {rank}"].startswith(f"no checkpoint is whole: rank {rank} can't read it; ")

    def test_a_damaged_one_is_passed_over_on_all_ranks(self, ranks, world):
        for result in ranks[1][world]:
            step, problems = result["damaged"]
            assert step == 4
            assert len(problems) == 1
            assert "step-00000006 is no whole checkpoint: .metadata has 0 bytes" in problems[0]
            assert "there is no checkpoint" in result["empty"]

    def test_no_threads_are_left(self, ranks, world):
        for result in ranks[1][world]:
            assert result["threads"] == []
