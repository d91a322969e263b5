"""Data with ids: data sets, label noise, label files, the order of an epoch, augmentation and batches."""

from fastac.data.augment import AUGMENTATIONS, channel_stats
from fastac.data.dali import DaliLoader
from fastac.data.datasets import DATASETS, load_dataset
from fastac.data.decode import UnreadableImageError
from fastac.data.label_files import label_file_path, labels_digest, read_id_file, read_label_file
from fastac.data.loader import Batch, Loader
from fastac.data.loaders import LOADERS, BatchLoader, SyntheticLoader, create_loader
from fastac.data.noise import NOISE_KINDS, inject_noise
from fastac.data.sampler import EpochSampler
from fastac.data.samples import Dataset, EncodedImages, Samples

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "LOADERS",
    "NOISE_KINDS",
    "Batch",
    "BatchLoader",
    "DaliLoader",
    "Dataset",
    "EncodedImages",
    "EpochSampler",
    "Loader",
    "Samples",
    "SyntheticLoader",
    "UnreadableImageError",
    "channel_stats",
    "create_loader",
    "inject_noise",
    "label_file_path",
    "labels_digest",
    "load_dataset",
    "read_id_file",
    "read_label_file",
]
