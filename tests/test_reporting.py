"""fastac.reporting: figures that arrive late are shown all the same."""

import pytest
import torch

import fastac.reporting
from fastac.config import RunConfig
from fastac.metrics import Figures
from fastac.reporting import Reporter
from fastac.run import RunFolder


class Late:
    """A reading that is there a number of steps later, as from a GPU that is behind."""

    steps = 5

    def __init__(self, totals):
        self.asked, self.rows = 0, int(totals[2])

    def ready(self):
        self.asked += 1
        return self.asked > self.steps

    def figures(self):
        return Figures(0.0, 0.0, self.rows)


@pytest.fixture
def reported(monkeypatch):
    seen = []
    monkeypatch.setattr(fastac.reporting, "Reading", Late)
    monkeypatch.setattr(
        fastac.reporting.MetricsLog,
        "step",
        lambda self, step, figures, lr, rate: seen.append((step, figures.rows)),
    )
    return seen


def reporter(folder, rank=0):
    config = RunConfig(log_interval=2, tensorboard=False)
    return Reporter(
        RunFolder(folder),
        config,
        rank=rank,
        device=torch.device("cpu"),
        epoch=0,
        step=0,
        epochs=1,
        steps_per_epoch=30,
        last_step=30,
    )


def test_a_device_that_is_behind_is_reported_when_it_arrives(tmp_path, reported):
    one = reporter(tmp_path)
    for step in range(1, 21):
        one.step(step, torch.tensor([0.0, 0.0, 10.0 * step]), 0.1, 1.0)
    assert [step for step, _ in reported] == [2, 8, 14]
    one.end_training()
    assert [step for step, _ in reported] == [2, 8, 14, 20]
    assert all(rows == 10 * step for step, rows in reported)  # as of its step, not of when it arrived
    one.close()


def test_other_ranks_write_nothing(tmp_path, reported):
    other = reporter(tmp_path, rank=1)
    for step in range(1, 12):
        other.step(step, torch.zeros(3), 0.1, 1.0)
    other.end_training()
    other.close()
    assert reported == []
    assert list(tmp_path.iterdir()) == []
