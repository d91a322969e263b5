"""Detection on real images: Fashion-MNIST, the first 5,000 training images, every fifth label flipped."""

from pathlib import Path

import pytest

from fastac.config import load_config
from fastac.train import train


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(),
    reason="needs Debian's package dataset-fashion-mnist",
)
def test_algorithm_2_finds_the_flipped_labels(tmp_path):
    settings = {
        "train_limit": 5000,
        "noise": "uniform",
        "noise_rate": 0.2,
        "loss": "ac1",
        "output": str(tmp_path),
        "tensorboard": False,
        "progress": False,
    }
    result = train(load_config("fashion-mnist", settings))
    assert result["train_images"] == 5000
    assert result["epochs"] == 10
    found = result["detection"]["alpha"]
    assert found["noise_rate"] == 0.2
    assert found["auroc"] >= 0.97
    assert found["precision"] >= 0.8
    assert result["test_accuracy"] >= 0.8
