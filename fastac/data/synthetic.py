"""`python -m fastac.data.synthetic OUT`: an image folder like ImageNet's with invented pictures, to try things on."""

from __future__ import annotations

import argparse
import csv
import errno
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from fastac.data.bad_files import BAD_KINDS, encode_bad
from fastac.data.noise import inject_noise
from fastac.data.synthetic_images import MAX_CLASSES, Look, class_looks, draw_picture, draw_quality, draw_size
from fastac.extras import require

__all__ = ["Settings", "main", "write_tree"]

_FORMAT = 1  # to be raised with every change of what is drawn, so that no tree is a mixture
_RECORD = "synthetic.json"
_SPLITS = ("train", "val", "bad")
_MAX_IMAGES = 10_000_000  # the list of files is kept in memory
_BYTES_A_PIXEL = 0.6  # of the JPEGs, for the estimate of the space
_IMAGENET_PIXELS = 190_000  # the same, a mean
_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """What a tree has in it; the files are a function of these (and of the versions of NumPy and Pillow)."""

    classes: int
    images: int
    """Training images of all classes together."""
    val_images: int
    size: str = "imagenet"
    """`imagenet`, a side in pixels, or WIDTHxHEIGHT."""
    noise_rate: float = 0.0
    """Share of the training images that lie in another class's folder, in [0, 1)."""
    bad: int = 0
    """Files of each of `BAD_KINDS` in the training folders."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check("classes", self.classes, 2, MAX_CLASSES)
        _check(
            "images", self.images, self.classes, _MAX_IMAGES, f"one for each of the {self.classes} classes"
        )
        _check("val_images", self.val_images, 0, _MAX_IMAGES)
        _check("bad", self.bad, 0, 1000)
        _check("seed", self.seed, 0, 2**63 - 1)
        if not 0 <= self.noise_rate < 1:
            raise ValueError(f"noise_rate is {self.noise_rate}; it should be in [0, 1)")
        if self.fixed_size is not None and not all(16 <= side <= 4096 for side in self.fixed_size):
            raise ValueError(f"size is {self.size!r}; its sides should be 16 to 4096 pixels")

    @cached_property
    def fixed_size(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None: drawn for every image."""
        if self.size == "imagenet":
            return None
        match = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", self.size)
        if match is None:
            raise ValueError(
                f"size is {self.size!r}; it should be imagenet, a side in pixels, or WIDTHxHEIGHT"
            )
        return int(match[1]), int(match[2] or match[1])

    @property
    def estimated_bytes(self) -> int:
        width, height = self.fixed_size or (_IMAGENET_PIXELS, 1)
        return int((self.images + self.val_images) * (width * height * _BYTES_A_PIXEL + 1000))


def _check(name: str, value: int, low: int, high: int, why: str = "") -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it should be {low} to {high}{', ' * bool(why)}{why}")


@dataclass(frozen=True, slots=True)
class _File:
    """One file to write: `number` counts within its split, `label` is what it shows, `folder` where it lies."""

    split: str
    number: int
    label: int
    folder: int

    @property
    def name(self) -> str:
        if self.split != "bad":
            return f"{self.split}_{self.number:08d}.JPEG"
        copy, kind = divmod(self.number, len(BAD_KINDS))
        return f"bad_{BAD_KINDS[kind].name}_{copy}{BAD_KINDS[kind].suffix}"


class _Plan:
    """The files of a tree, and what is in them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = s = settings
        self.looks = class_looks(s.classes, s.seed)
        digits = len(str(s.classes - 1))
        self.class_names = [f"c{k:0{digits}d}-{look.name}" for k, look in enumerate(self.looks)]
        labels = np.arange(s.images, dtype=np.int64) % s.classes
        given = inject_noise(labels, s.classes, kind="uniform", rate=s.noise_rate, seed=s.seed)
        empty = np.flatnonzero(np.bincount(given, minlength=s.classes) == 0)
        if empty.size:
            raise ValueError(
                f"noise_rate is {s.noise_rate}, which leaves class {empty[0]} without an image ({empty.size} such); "
                f"images should be more than {s.images}"
            )
        self.files = [
            _File("train", i, *pair)
            for i, pair in enumerate(zip(labels.tolist(), given.tolist(), strict=True))
        ]
        self.files += [_File("val", i, i % s.classes, i % s.classes) for i in range(s.val_images)]
        for i in range(s.bad * len(BAD_KINDS)):
            self.files.append(_File("bad", i, i % s.classes, i % s.classes))

    def path(self, file: _File) -> str:
        """Relative to OUT."""
        split = "val" if file.split == "val" else "train"
        return os.path.join(split, self.class_names[file.folder], file.name)

    def tables(self) -> dict[str, str]:
        """The CSV files by name, where there is something to say."""
        train = sorted((f for f in self.files if f.split != "val"), key=lambda f: (f.folder, f.name))
        tables = {}
        if self.settings.noise_rate > 0:
            rows = [(i, f.label, f.folder, self._in_train(f)) for i, f in enumerate(train)]
            tables["truth.csv"] = _csv(("index", "label", "given_label", "path"), rows)
        if self.settings.bad:
            bad = [
                (i, f, BAD_KINDS[f.number % len(BAD_KINDS)]) for i, f in enumerate(train) if f.split == "bad"
            ]
            table = [(i, self._in_train(f), kind.name, str(kind.readable).lower()) for i, f, kind in bad]
            tables["bad.csv"] = _csv(("index", "path", "kind", "readable"), table)
        return tables

    def _in_train(self, file: _File) -> str:
        return f"{self.class_names[file.folder]}/{file.name}"


def _content(settings: Settings, looks: Sequence[Look], file: _File) -> bytes:
    """The file's bytes: a function of the settings and the file's split and number."""
    rng = np.random.default_rng([settings.seed, _SPLITS.index(file.split), file.number])
    quality, size = draw_quality(rng), draw_size(rng)  # drawn always: the other draws don't depend on `size`
    image = draw_picture(looks[file.label], settings.fixed_size or size, rng)
    if file.split == "bad":
        return encode_bad(BAD_KINDS[file.number % len(BAD_KINDS)].name, image.convert("RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


# ---- writing


def write_tree(
    out: Path, settings: Settings, *, workers: int = 0, report: Callable[[int, int], None] | None = None
) -> int:
    """Write OUT/train/CLASS/*.JPEG and OUT/val/CLASS/*.JPEG, and return how many files were missing.

    out: a new or empty folder, or one that an earlier call with the same settings began or finished. workers:
    processes that draw, 0 for this one; the files don't depend on it. report: called with the files done and all.

    OUT/synthetic.json has the settings; with noise, OUT/truth.csv has every training file's id (its place in
    `fastac.data.load_dataset("folder", …)`), the label that it shows and the one of its folder; with bad files,
    OUT/bad.csv lists them. Until all is there the files lie in OUT/.part, each put there whole; then val, the tables
    and last train are moved to OUT. An interrupted call goes on where it was.

    Raises ValueError, FileExistsError or OSError, the last also for want of space.
    """
    _check("workers", workers, 0, 1024)
    require("PIL.Image", "report")
    if not _begun(out, settings):
        _check_space(out, settings.estimated_bytes)
    plan = _Plan(settings)
    _begin(out, settings)
    part = out / ".part"
    roots = {split: out if (out / split).is_dir() else part for split in ("train", "val")}

    def target(file: _File) -> Path:
        path = plan.path(file)
        return roots[path.split(os.sep, 1)[0]] / path

    missing = [file for file in plan.files if not target(file).exists()]
    if missing:
        _check_space(out, settings.estimated_bytes * len(missing) // len(plan.files))
    try:
        for folder in sorted({target(file).parent for file in missing}):
            folder.mkdir(parents=True, exist_ok=True)
        (part / "new").mkdir(parents=True, exist_ok=True)
        writer, done = _Writer(settings, plan.looks, part / "new"), len(plan.files) - len(missing)
        for _ in _written(writer, [(file, target(file)) for file in missing], workers):
            done += 1
            if report is not None:
                report(done, len(plan.files))
        _move_into_place(plan, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"no space is left for {out}; the same call goes on from here") from error
        raise
    return len(missing)


def _move_into_place(plan: _Plan, out: Path) -> None:
    part = out / ".part"
    for name, text in plan.tables().items():
        (part / name).write_text(text, encoding="utf-8")
        os.replace(part / name, out / name)
    for split in ("val", "train"):  # train last: without it no loader takes the folder
        if (part / split).is_dir():
            os.replace(part / split, out / split)
    shutil.rmtree(part)


def _begun(out: Path, settings: Settings) -> bool:
    """Whether `out` is a tree of these settings; raises with what it is where it is neither that nor new."""
    record, wanted = out / _RECORD, _record(settings)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; it should be a folder, new or empty")
    if not record.is_file():
        if out.is_dir() and any(entry.name != ".part" for entry in os.scandir(out)):
            raise FileExistsError(f"{out} is not empty; it should be a folder, new or empty")
        return False
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{record} should be this command's record of a tree: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{record} is {found!r}; it should be this command's record of a tree")
    if found != wanted:
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        have = ", ".join(f"{key} {found.get(key)}" for key in differing)
        want = ", ".join(f"{key} {wanted[key]}" for key in differing)
        raise FileExistsError(f"{out} was begun with {have}, not {want}; OUT should be another folder")
    return True


def _begin(out: Path, settings: Settings) -> None:
    fresh = out / ".part" / _RECORD
    fresh.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(json.dumps(_record(settings), indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, out / _RECORD)


def _record(settings: Settings) -> dict[str, object]:
    return {"format": _FORMAT, **asdict(settings)}


def _check_space(out: Path, needed: int) -> None:
    place = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(f"{out} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")


_Job = tuple[_File, Path]


@dataclass(frozen=True)
class _Writer:
    settings: Settings
    looks: tuple[Look, ...]
    new: Path
    """A folder on the file system of the targets."""

    def write(self, job: _Job) -> None:
        """Write beside and rename: a file that is there is whole."""
        file, target = job
        fresh = self.new / f"{os.getpid()}-{file.name}"
        fresh.write_bytes(_content(self.settings, self.looks, file))
        os.replace(fresh, target)


_writer: _Writer | None = None  # a worker process's


def _written(writer: _Writer, jobs: list[_Job], workers: int) -> Iterator[None]:
    """Write the files, and yield after each."""
    if workers == 0 or not jobs:
        for job in jobs:
            writer.write(job)
            yield
        return
    chunk = max(1, min(32, len(jobs) // (4 * workers)))
    pool = ProcessPoolExecutor(min(workers, len(jobs)), initializer=_start_worker, initargs=(writer,))
    try:
        yield from pool.map(_write_in_worker, jobs, chunksize=chunk)
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, perhaps for want of memory; run it again with fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(writer: _Writer) -> None:
    global _writer
    _writer = writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends the workers
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_in_worker(job: _Job) -> None:
    assert _writer is not None
    _writer.write(job)


# ---- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tree and say what to do with it. Exit status 2: a user's error."""
    options = _parser().parse_args(argv)
    out, workers = options.out, options.workers
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings = _settings(options)
        written = write_tree(
            out, settings, workers=(os.cpu_count() or 1) if workers is None else workers, report=_Progress()
        )
    except KeyboardInterrupt:
        print("\nfastac.data.synthetic: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("FASTAC_DEBUG") == "1":
            raise
        print(f"fastac.data.synthetic: error: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    print(_summary(out, settings, written))
    return 0


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastac.data.synthetic", description=__doc__)
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="a new or empty folder, or one to go on with")
    add("--classes", type=int, default=40, help=f"2 to {MAX_CLASSES} (default: 40)")
    add("--images", type=int, default=1000, help="training images, of all classes together (default: 1000)")
    add("--val-images", type=int, help="validation images (default: a tenth of --images)")
    add("--size", default="imagenet", help="imagenet (sizes as there), a side in pixels, or WIDTHxHEIGHT")
    add("--noise-rate", type=float, default=0.0, help="share of training images in a wrong class's folder")
    add(
        "--bad",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="add N (1) of each kind of bad or unusual file: " + ", ".join(kind.name for kind in BAD_KINDS),
    )
    add("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    add("--workers", type=int, help="processes that draw, 0: this one (default: one for each CPU)")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    values = {field.name: getattr(options, field.name) for field in fields(Settings)}
    if options.val_images is None:
        values["val_images"] = max(0, options.images // 10)
    return Settings(**values)


class _Progress:
    """A line on stderr every few seconds."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done - 1
        if now - self._last < _REPORT_SECONDS:
            return
        self._last = now
        rate = (done - self._first) / (now - self._start)
        left = (total - done) / rate
        print(f"{done} of {total} files, {rate:.0f} a second, {left / 60:.1f} minutes left", file=sys.stderr)


def _summary(out: Path, settings: Settings, written: int) -> str:
    s = settings
    lines = [f"{out}: {s.images} training and {s.val_images} validation images of {s.classes} classes"]
    if not written:
        lines[0] += ", all there already"
    if s.noise_rate > 0:
        lines.append(
            f"  truth.csv  the label that each training image shows; {s.noise_rate:.1%} lie elsewhere"
        )
    if s.bad:
        lines.append(
            f"  bad.csv    {s.bad * len(BAD_KINDS)} bad or unusual files: train with --on-bad-image skip"
        )
    side = 224 if s.fixed_size is None else min(224, *s.fixed_size)
    command = (
        f"python -m fastac.train --dataset folder --data-dir {out} --image-size {side} --augment imagenet"
    )
    lines.append(f"to train on it: {command}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
