"""Ranks that die at any moment: the run is started again by torchrun's agent and ends with the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import config, differences, final_state, metrics

ROOT = Path(__file__).parent.parent
SETTINGS = {"batch_size": 16, "checkpoint_every": 2, "epochs": 12, "dist_timeout": 30.0}
RUNS, KILLS = 4, 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of one run that nobody disturbed, `whole`, and of four that were killed five times each."""
    folder = tmp_path_factory.mktemp("elastic")
    names = ["whole", *(f"killed-{number}" for number in range(RUNS))]
    job = []
    for number, name in enumerate(names):
        values = config(folder, name=name, **SETTINGS).values()
        values = {key: value for key, value in values.items() if value is not None}
        job.append({"config": values, "seed": number - 1, "kills": KILLS if number else 0})
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "elastic_runs.py"), json.dumps({"runs": job})],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("number", range(RUNS))
def test_killed_runs_end_with_the_bits_of_an_undisturbed_one(runs, number):
    folder, text = runs
    kills = (folder / f"killed-{number}.kills").read_text().splitlines()
    assert len(kills) == KILLS, text
    assert f"killed-{number} ended at start {KILLS + 1}" in text
    assert differences(final_state(folder / "whole"), final_state(folder / f"killed-{number}")) == []
    assert metrics(folder / "whole") == metrics(folder / f"killed-{number}")
    assert final_state(folder / "whole")["table"]["alpha"].abs().max() > 1e-3
    left = sorted(path.name for path in (folder / f"killed-{number}" / "checkpoints").iterdir())
    assert [name for name in left if not name.startswith(".")] == ["step-00000070", "step-00000072"]
