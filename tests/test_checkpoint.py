"""fastac.checkpoint: written whole or not at all; nothing but a whole checkpoint is read."""

import errno
import random
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from fastac import checkpoint
from fastac.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    restore_rng,
    rng_state,
    save_checkpoint,
)

CPU = torch.device("cpu")


def state(step, size=1000):
    return {"step": step, "weights": {"w": torch.full((size,), float(step))}, "nothing": None, "text": "α"}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = save_checkpoint(tmp_path, 7, state(7), keep=2)
    assert path.name == "step-00000007.pt"
    loaded = load_checkpoint(path)
    assert (loaded["step"], loaded["nothing"], loaded["text"]) == (7, None, "α")
    assert torch.equal(loaded["weights"]["w"], torch.full((1000,), 7.0))


def test_the_last_k_are_kept(tmp_path):
    for step in (5, 90, 100, 120):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000090.pt",
        "step-00000100.pt",
        "step-00000120.pt",
    ]


def test_checkpoints_of_a_course_that_was_given_up_go(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    save_checkpoint(tmp_path, 20, {"step": "again"}, keep=3)
    assert names(tmp_path) == ["step-00000010.pt", "step-00000020.pt"]
    assert load_newest(tmp_path)[1]["step"] == "again"


def test_steps_of_more_than_eight_digits_sort_by_number(tmp_path):
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, state(step, 1), keep=2)
    assert load_newest(tmp_path)[1]["step"] == 100_000_000


@pytest.mark.parametrize("room", [0, 100, 3000, 30_000])
def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch, room):
    older = save_checkpoint(tmp_path, 1, state(1), keep=1)

    class FullDisk:
        def __init__(self, file):
            self.file, self.room = file, room

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            if len(data) > self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= len(data)
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(checkpoint, "open", lambda *words: FullDisk(open(*words)), raising=False)  # noqa: SIM115
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(tmp_path, 2, state(2, 10_000), keep=1)
    assert str(error.value) == (
        f"cannot save the checkpoint {tmp_path / 'step-00000002.pt'}: No space left on device; "
        f"{older} is left as it was"
    )
    assert names(tmp_path) == [older.name]
    assert load_newest(tmp_path)[1]["step"] == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_older_checkpoint(tmp_path, monkeypatch, call):
    save_checkpoint(tmp_path, 1, state(1), keep=1)

    def fail(*words):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.os, call, fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_checkpoint(tmp_path, 2, state(2), keep=1)
    assert names(tmp_path) == ["step-00000001.pt"]


def test_a_real_limit_on_file_size(tmp_path):
    """The kernel's own refusal (EFBIG), in the middle of torch's writer."""
    script = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from fastac.checkpoint import CheckpointError, load_newest, save_checkpoint
        folder = Path(sys.argv[1])
        save_checkpoint(folder, 1, {"w": torch.zeros(1000)}, keep=1)
        try:
            save_checkpoint(folder, 2, {"w": torch.zeros(1_000_000)}, keep=1)
        except CheckpointError as error:
            print(error)
        print(load_newest(folder)[0].name)
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
    assert "step-00000002.pt: File too large; " in first
    assert second == "step-00000001.pt"
    assert names(tmp_path) == ["step-00000001.pt"]


def test_a_state_that_cannot_be_saved_is_no_disk_error(tmp_path):
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        save_checkpoint(tmp_path, 1, {"what": lambda: None}, keep=1)
    assert names(tmp_path) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def foreign(path):
    path.write_bytes(b"hello, world" * 100)


def other_torch_file(path):
    torch.save({"state_dict": {}}, path)


def unsafe(path):
    torch.save({"format": Path("x")}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "is no whole checkpoint"),
        (empty, "is no whole checkpoint"),
        (flip, "is damaged: the checksum of .* is wrong"),
        (foreign, "is no whole checkpoint"),
        (other_torch_file, "its format was None"),
        (unsafe, "is no checkpoint that fastac wrote"),
    ],
)
def test_a_spoilt_file_is_refused_and_the_next_older_one_taken(tmp_path, spoil, message):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    spoil(tmp_path / "step-00000002.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "step-00000002.pt")
    path, loaded, problems = load_newest(tmp_path)
    assert (path.name, loaded["step"], len(problems)) == ("step-00000001.pt", 1, 1)
    assert "step-00000002.pt" in problems[0]
    spoil(tmp_path / "step-00000001.pt")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        load_newest(tmp_path)


def test_no_checkpoint(tmp_path):
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "nowhere") is None
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "step-00000001.pt")


def test_what_a_killed_writer_left_is_not_taken_and_goes_at_the_next_save(tmp_path):
    (tmp_path / ".step-00000009.pt.tmp").write_bytes(b"half")
    assert load_newest(tmp_path) is None
    save_checkpoint(tmp_path, 10, state(10), keep=1)
    assert names(tmp_path) == ["step-00000010.pt"]


def test_random_states_go_through_a_checkpoint(tmp_path):
    def draw():
        return random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()  # noqa: NPY002

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    draw()  # leaves a second Gaussian in Python's and NumPy's generator
    path = save_checkpoint(tmp_path, 1, {"rng": rng_state(CPU)}, keep=1)
    expected = [draw() for _ in range(3)]
    restore_rng(load_checkpoint(path)["rng"], CPU)
    assert [draw() for _ in range(3)] == expected
