"""Training steps on image files, as bench/train.py times them beside those on noise."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_ways import Batch, Trainer

import fastac.data as data

__all__ = ["check_folder", "load_images", "measure_loader"]

_UNTIMED = 5  # batches until the workers, and what they make ahead, are in their stride


def load_images(data_dir: Path, image_size: int) -> data.Samples:
    return data.load_dataset("folder", data_dir, image_size=image_size).train


def check_folder(samples: data.Samples, trainer: Trainer) -> None:
    """ValueError where the network or its tables are too small for the folder, or the folder for a batch."""
    size = trainer.size
    if samples.num_classes > size.classes:
        raise ValueError(
            f"--classes was {size.classes}; it should be {samples.num_classes} at least, the folder's"
        )
    if not size.batch <= len(samples) <= size.samples:
        raise ValueError(
            f"the folder has {len(samples)} training images; it should have from {size.batch}, a batch, to "
            f"{size.samples} (--samples)"
        )


class Feed:
    """Batches of a loader without end, epoch by epoch.

    waited: seconds that their taker has waited for them. epochs: that were begun, which starts the workers anew.
    """

    def __init__(self, loader: Any, trainer: Trainer):
        self.waited, self.epochs = 0.0, 0
        self._trainer = trainer
        self._batches = self._endless(loader)

    def _endless(self, loader: Any) -> Iterator[Any]:
        for epoch in itertools.count():
            self.epochs += 1
            yield from loader.epoch(epoch)

    def next(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - start
        return self._trainer.formatted(batch.images), batch.target, batch.index

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]


def measure_loader(
    trainer: Trainer,
    samples: data.Samples,
    name: str,
    kind: str,
    steps: int,
    workers: int,
    aa: str,
) -> dict[str, Any]:
    """Steps of the way `name` on the loader's batches, as many on noise before and after, then the loader by itself.

    synthetic_images_per_second: on noise, over both times; synthetic_drift: the second time's over the first's, less 1,
    which is what the machine itself changed by. loss: the share that is lost to the loader.
    """
    size = trainer.size
    extra = {} if aa == "none" else {"aa": aa}
    loader = data.create_loader(
        kind,
        samples,
        samples.labels,
        data.EpochSampler(len(samples), size.batch, drop_last=True),
        augment="imagenet",
        seed=0,
        device=trainer.setup.device,
        workers=workers,
        **extra,
    )
    before = _train_on_noise(trainer, name, steps)
    feed = Feed(loader, trainer)
    try:
        rate, waiting, restarts = _train(trainer, name, feed, steps)
    finally:
        feed.close()
    after = _train_on_noise(trainer, name, steps)
    synthetic = 2 / (1 / before + 1 / after)
    feed = Feed(loader, trainer)
    try:
        alone = _drain(trainer, feed, steps)
    finally:
        feed.close()
    return {
        "loader": kind,
        "workers": workers,
        "aa": aa,
        "images": len(samples),
        "way": name,
        "steps": steps,
        "images_per_second": rate,
        "synthetic_images_per_second": synthetic,
        "synthetic_drift": after / before - 1,
        "loss": 1 - rate / synthetic,
        "waiting_share": waiting,
        "restarts": restarts,
        "loader_images_per_second": alone,
    }


def _train_on_noise(trainer: Trainer, name: str, steps: int) -> float:
    """Images a second."""
    subject, batches = trainer.subjects[name], trainer.draw(_UNTIMED + steps)
    for batch in batches[:_UNTIMED]:
        trainer.step(subject, batch)
    trainer.wait()
    start = time.perf_counter()
    for batch in batches[_UNTIMED:]:
        loss = trainer.step(subject, batch)
    trainer.wait()
    elapsed = time.perf_counter() - start
    trainer.check_finite(loss)
    return steps * trainer.size.batch / elapsed


def _train(trainer: Trainer, name: str, feed: Feed, steps: int) -> tuple[float, float, int]:
    """Images a second, the share of the time that the host waited for a batch, and how often an epoch began in it."""
    subject = trainer.subjects[name]
    for _ in range(_UNTIMED):
        trainer.step(subject, feed.next())
    trainer.wait()
    feed.waited, feed.epochs, start = 0.0, 0, time.perf_counter()
    for _ in range(steps):
        loss = trainer.step(subject, feed.next())
    trainer.wait()
    elapsed = time.perf_counter() - start
    trainer.check_finite(loss)
    return steps * trainer.size.batch / elapsed, feed.waited / elapsed, feed.epochs


def _drain(trainer: Trainer, feed: Feed, steps: int) -> float:
    """Images a second of the loader, with nothing done with them."""
    for _ in range(_UNTIMED):  # what was made ahead while the network ran
        feed.next()
    trainer.wait()
    start = time.perf_counter()
    for _ in range(steps):
        feed.next()
    trainer.wait()
    return steps * trainer.size.batch / (time.perf_counter() - start)
