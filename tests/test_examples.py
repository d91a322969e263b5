"""Each example from its command line, in a process of its own."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"

# Packages that an example needs beside torch; least test accuracy and share of flipped labels among those found, in
# per cent. Every fifth label is flipped, so chance would find 20 %; the texts are a hard task, see the example.
EXAMPLES = {
    "plain_loop.py": ([], 85, 75),
    "aum_threshold_samples.py": (["pandas"], 80, 80),  # recall in the accuracy's place
    "lightning_callback.py": (["lightning", "sklearn"], 90, 85),
    "accelerate_loop.py": (["accelerate", "sklearn"], 90, 85),
    "transformers_text.py": (["transformers", "accelerate", "pandas"], 70, 55),
}


def run(name, *options):
    for package in EXAMPLES[name][0]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs {package}")
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:fastac", str(FOLDER / name), *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested():
    assert sorted(path.name for path in FOLDER.glob("*.py")) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name):
    _, least_accuracy, least_precision = EXAMPLES[name]
    accuracy, precision = (float(x) for x in re.findall(r"([\d.]+)%", run(name)))
    assert accuracy > least_accuracy
    assert precision > least_precision


def test_lightning_writes_the_ranking(tmp_path):
    run("lightning_callback.py", "--epochs", 2, "--output", tmp_path / "run")
    rows = (tmp_path / "run" / "issues.csv").read_text().splitlines()
    assert rows[0].startswith("index,given_label,suggested_label,is_label_issue")
    assert len(rows) == 1301
    assert list((tmp_path / "run").rglob("*.ckpt"))


def test_accelerate_goes_on_from_its_state(tmp_path):
    run("accelerate_loop.py", "--epochs", 1, "--output", tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    run("accelerate_loop.py", "--epochs", 1, "--output", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == before
    assert "custom_checkpoint_0.pkl" in before
