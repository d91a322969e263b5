"""What the papers published: accuracies in per cent, and Table 7's settings.

The tables are those of "AutoCleansing: Unbiased Estimation of Deep Learning with Mislabeled Data", submitted to ICLR
2021. It took its columns Baseline, Cutout and AA over from Cubuk et al. 2018, FAA from Lim et al. 2019, PBA from Ho et
al. 2019, and Table 6's Baseline and AUM from Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the
Margin Ranking". Noise: the response of that paper's authors to their reviewers. Images: Figures 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CIFAR10N",
    "IMAGES",
    "IMAGE_LIMIT",
    "NOISE",
    "TABLES",
    "TABLE_7",
    "Published",
    "PublishedImage",
    "Setting",
]


@dataclass(frozen=True)
class Published:
    """A figure of a table, per cent. plus_minus: the paper's ±, of five runs; it does not say which interval it is.
    places: decimal places that were published."""

    accuracy: float
    plus_minus: float | None = None
    top5: float | None = None
    places: int = 2

    def __str__(self) -> str:
        spread = "" if self.plus_minus is None else f" ± {self.plus_minus:.2f}"
        return f"{self.accuracy:.{self.places}f}{spread}" + (
            "" if self.top5 is None else f" / {self.top5:.2f}"
        )


def _row(
    *cells: float | tuple[float, float] | Published | None, places: int = 2
) -> tuple[Published | None, ...]:
    """A table's row: figures, (figure, ±), None where the table has a dash. places: of the figures without a ±."""
    return tuple(
        cell
        if cell is None or isinstance(cell, Published)
        else Published(*cell)
        if isinstance(cell, tuple)
        else Published(cell, places=places)
        for cell in cells
    )


def _tops(top1: float, top5: float) -> Published:
    return Published(top1, top5=top5)


TABLES: dict[str, dict[str, tuple[Published | None, ...]]] = {
    "table2": {
        "cifar10-wrn40-2": _row(94.70, 95.90, 96.30, 96.30, None, (96.56, 0.11)),
        "cifar10-wrn28-10": _row(96.13, 96.92, 97.32, 97.30, 97.42, (97.53, 0.08)),
        "cifar10-shake-shake-26-2x32d": _row(96.45, 96.98, 97.53, 97.50, 97.46, (97.60, 0.07)),
        "cifar10-shake-shake-26-2x96d": _row(97.14, 97.44, 98.01, 98.00, 97.97, (98.12, 0.11)),
        "cifar10-shake-shake-26-2x112d": _row(97.18, 97.43, 98.11, 98.10, 97.97, (98.27, 0.05)),
        "cifar10-pyramidnet": _row(97.33, 97.69, 98.52, 98.30, 98.54, (98.59, 0.05)),
    },
    "table3": {
        "cifar100-wrn40-2": _row(74.00, 74.80, 79.30, 79.40, None, (79.94, 0.20)),
        "cifar100-wrn28-10": _row(81.20, 81.59, 82.91, 82.70, 83.27, (84.07, 0.18)),
        "cifar100-shake-shake-26-2x96d": _row(82.95, 84.00, 85.72, 85.40, 84.69, (86.19, 0.12)),
        "cifar100-pyramidnet": _row(86.01, 87.81, 89.33, 88.30, 89.06, (89.40, 0.11)),
    },
    "table4": {"svhn-wrn28-10": _row(98.50, 98.70, 98.93, 98.90, 98.82, 98.96)},
    "table5": {
        "imagenet-resnet50": _row(
            _tops(75.30, 92.20), _tops(77.63, 93.82), _tops(77.60, 93.70), _tops(77.71, 93.58)
        ),
    },
    "table6": {
        "cifar10-resnet32": _row(91.9, 92.1, (92.75, 0.06), places=1),
        "cifar100-resnet32": _row(67.0, 68.2, (69.13, 0.24), places=1),
    },
    "table8": {
        "cifar10-wrn40-2": _row(96.30, (96.56, 0.11), (96.54, 0.11)),
        "cifar10-wrn28-10": _row(97.32, (97.53, 0.08), (97.48, 0.06)),
        "cifar100-wrn40-2": _row(79.30, (79.94, 0.20), (79.86, 0.19)),
        "cifar100-wrn28-10": _row(82.91, (84.07, 0.18), (84.12, 0.17)),
    },
}
"""By table and recipe, in the order of the table's columns."""

# The response says "reduces error from 43% to 12%; without augmentation, … from 51% to 20%", of 40 % noise.
NOISE: dict[str, tuple[Published | None, ...]] = {
    "cifar10-uniform-40": _row(57, 88, None, places=0),
    "cifar10-uniform-40-no-augment": _row(49, 80, None, places=0),
}
"""Baseline, AUM and AC1 with wrong labels injected, where they are published (AUM's authors' response)."""

CIFAR10N: dict[str, tuple[Published | None, ...]] = {
    "cifar10n-aggre": _row(87.77, None, None),
    "cifar10n-random1": _row(85.02, None, None),
    "cifar10n-worse": _row(77.69, None, None),
}
"""CIFAR-10N's human labels, cross entropy of a ResNet-34: Wei et al. 2022, "Learning with Noisy Labels Revisited"."""


@dataclass(frozen=True)
class Setting:
    """A row of Table 7."""

    model: str
    lr: float
    schedule: str
    weight_decay: float
    batch_size: int
    epochs: int
    milestones: tuple[int, ...] = ()


_STEPS, _IMAGENET_STEPS = (150, 225), (90, 180, 240)

TABLE_7 = {
    "cifar10-resnet32": Setting("ResNet-32", 0.1, "multistep", 1e-4, 256, 300, _STEPS),
    "cifar10-wrn40-2": Setting("Wide-ResNet-40-2", 0.1, "cosine", 2e-4, 128, 200),
    "cifar10-wrn28-10": Setting("Wide-ResNet-28-10", 0.1, "cosine", 5e-4, 128, 200),
    "cifar10-shake-shake-26-2x32d": Setting("Shake-Shake (26 2x32d)", 0.01, "cosine", 1e-3, 128, 1800),
    "cifar10-shake-shake-26-2x96d": Setting("Shake-Shake (26 2x96d)", 0.01, "cosine", 1e-3, 128, 1800),
    "cifar10-shake-shake-26-2x112d": Setting("Shake-Shake (26 2x112d)", 0.01, "cosine", 1e-3, 128, 1800),
    "cifar10-pyramidnet": Setting("PyramidNet+ShakeDrop", 0.05, "cosine", 5e-5, 64, 1800),
    "cifar100-resnet32": Setting("ResNet-32", 0.1, "multistep", 1e-4, 256, 300, _STEPS),
    "cifar100-wrn28-10": Setting("Wide-ResNet-28-10", 0.1, "cosine", 5e-4, 128, 200),
    "cifar100-shake-shake-26-2x96d": Setting("Shake-Shake (26 2x96d)", 0.01, "cosine", 2.5e-3, 128, 1800),
    "cifar100-pyramidnet": Setting("PyramidNet+ShakeDrop", 0.025, "cosine", 5e-4, 64, 1800),
    "svhn-wrn28-10": Setting("Wide-ResNet-28-10", 0.005, "cosine", 1e-3, 128, 200),
    "imagenet-resnet50": Setting("ResNet-50", 0.1, "multistep", 1e-4, 256, 270, _IMAGENET_STEPS),
}
"""By recipe."""


@dataclass(frozen=True)
class PublishedImage:
    """An image of Figures 4 to 6: the network is WRN-40-2 with AC1 and AutoAugment.

    number: the paper's, #number. index: the row of the training set, from 0; CIFAR-10's labels there are the published
    ones. label, other: the original label and the alternative one; the latter may be outside of the category set.
    max_rank, min_rank: per cent of the 50,000 images. alpha, other_alpha: α̂ of both labels; None where the figure has a
    dash or the number can't be read.
    """

    number: int
    index: int
    label: str
    other: str
    max_rank: float
    min_rank: float
    alpha: float | None = None
    other_alpha: float | None = None

    @property
    def below_limit(self) -> bool:
        """Whether MaxRank or MinRank is below 0.1 %, as section 4.2 says of all of them."""
        return min(self.max_rank, self.min_rank) < IMAGE_LIMIT


IMAGE_LIMIT = 0.1
"""Per cent: "the values of MaxRank or MinRank are less than 0.1 % for all images in these figures"."""

# The figures are pictures, of whose text a part is lost: of #1 to #5 (Figure 4), #12 and #13 the ids, of #11 α̂. 0.323
# stands between #14's id and its label; the four ranks of #14 and #15 stand behind both, and in this order alone they
# agree with the 0.1 % and with the order of α̂.
IMAGES: dict[str, tuple[PublishedImage, ...]] = {
    "cifar10-wrn40-2": (
        PublishedImage(6, 18310, "truck", "person", 0.002, 1.242, 0.332),
        PublishedImage(11, 3879, "deer", "person", 0.024, 0.734),
    ),
    "cifar100-wrn40-2": (
        PublishedImage(7, 19011, "lion", "giraffe", 0.044, 39.838, 0.335),
        PublishedImage(8, 1578, "plate", "cutlery", 0.054, 13.646, 0.335),
        PublishedImage(9, 29783, "cup", "glass", 0.016, 43.730, 0.338),
        PublishedImage(10, 48760, "motorcycle", "raincoat", 0.002, 7.970, 0.345),
        PublishedImage(14, 33026, "bus", "road", 0.450, 0.052, 0.323, -0.231),
        PublishedImage(15, 780, "house", "road", 5.558, 0.088, 0.284, -0.218),
    ),
}
"""By recipe, the images whose id can be read. #6 and #10 have rank 1 of 50,000: theirs are the largest α̂."""
