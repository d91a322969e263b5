"""The data of a run: the data set, the labels to train on, the truth where it is known, what is left out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastac.config import Config
from fastac.data import (
    Dataset,
    Samples,
    inject_noise,
    labels_digest,
    load_dataset,
    read_id_file,
    read_label_file,
)
from fastac.issues import draw_threshold_sets

__all__ = ["TrainingData", "load_data", "load_images"]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A data set with the labels to train on, (N,) int64, the truth, (N,) int64, where it is known, and the ids of
    the samples to leave out of training, (n,) int64."""

    dataset: Dataset
    given: np.ndarray
    truth: np.ndarray | None
    excluded: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def digest(self) -> str:
        """The labels' fingerprint and that of the ids left out, by which a checkpoint knows its data."""
        return labels_digest(self.given) + (labels_digest(self.excluded) if self.excluded.size else "")


def load_images(config: Config) -> Dataset:
    """The data set as its files have it."""
    c = config.data
    return load_dataset(c.dataset, c.data_dir, image_size=c.image_size, on_bad_image=c.on_bad_image)


def load_data(config: Config, dataset: Dataset | None = None) -> TrainingData:
    """Load the data set, put a label file in place of its labels, cut it to train_limit, inject noise, read which
    samples to leave out. dataset: in place of what load_images loads."""
    c = config.data
    if dataset is None:
        dataset = load_images(config)
    samples = dataset.train
    given, truth = samples.labels, None
    if c.labels is not None:
        given = _read_labels(c.labels, c.data_dir, samples, c.train_limit)
        truth = samples.labels if c.label_truth == "dataset" else None
    if c.train_limit is not None and c.train_limit < len(samples):
        kept = np.arange(c.train_limit)
        samples, given = samples.take(kept), given[: c.train_limit]
        truth = None if truth is None else truth[kept]
        dataset = Dataset(dataset.name, samples, dataset.test)
    if c.noise != "none":
        truth = given if truth is None else truth
        given = inject_noise(
            given,
            samples.num_classes,
            kind=c.noise,
            rate=c.noise_rate,
            seed=c.noise_seed,
            class_groups=samples.class_groups,
            dataset=c.dataset,
        )
    if c.threshold_set:
        dataset, given = _with_threshold_samples(dataset, given, c.threshold_set, config.run.seed)
    if c.exclude is None:
        return TrainingData(dataset, given, truth)
    excluded = read_id_file(Path(c.exclude), num_samples=len(samples))
    return TrainingData(dataset, given, truth, excluded)


def _with_threshold_samples(
    dataset: Dataset, given: np.ndarray, number: int, seed: int
) -> tuple[Dataset, np.ndarray]:
    """The data set with a class K that does not exist, and (N,) int64 labels of which the set `number` (1 or 2) of
    AUM's threshold samples has it. Both sets of a seed are disjoint."""
    samples, test = dataset.train, dataset.test
    given = given.copy()
    given[draw_threshold_sets(len(samples), samples.num_classes, seed)[number - 1]] = samples.num_classes
    names = (*samples.class_names, "threshold sample")
    return Dataset(
        dataset.name,
        replace(samples, class_names=names, class_groups=None),
        None if test is None else replace(test, class_names=names, class_groups=None),
    ), given


def _read_labels(spec: str, data_dir: str | None, samples: Samples, limit: int | None) -> np.ndarray:
    """The label file as it is named, or else by that name in data_dir; of all samples or of the first `limit`."""
    num_samples, num_classes = len(samples), samples.num_classes
    limit = None if limit is None or limit > num_samples else limit
    try:
        return read_label_file(spec, num_samples=num_samples, num_classes=num_classes, limit=limit)
    except FileNotFoundError as error:
        if data_dir is None or Path(spec).is_absolute():
            raise
        try:
            spec = str(Path(data_dir) / spec)
            return read_label_file(spec, num_samples=num_samples, num_classes=num_classes, limit=limit)
        except FileNotFoundError:
            raise FileNotFoundError(f"{error}, nor is it in data_dir, {data_dir}") from None
