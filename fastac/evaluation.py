"""The network as it will be used, without α, on the test set and on the training images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastac.data import BatchLoader
from fastac.job import Job
from fastac.metrics import Figures, Meter, with_bar
from fastac.stopping import StopSignal

__all__ = ["Evaluation", "EvaluationStopped", "TestFigures", "evaluate", "run_tests"]

_FEW_CLASSES = 10  # among which the best five answers say little
_ASK_BATCHES = 16  # after which the ranks ask each other whether to stop


class TestFigures(NamedTuple):
    """Figures on the test set, None where there is none: of the network, and of its weights' average."""

    network: Figures | None = None
    average: Figures | None = None

    def columns(self) -> dict[str, float | None]:
        """By their names in metrics.csv and result.json."""
        network, average = self.network, self.average
        return {
            "test_loss": None if network is None else network.loss,
            "test_accuracy": None if network is None else network.accuracy,
            "test_top5": None if network is None else network.top5,
            "ema_test_accuracy": None if average is None else average.accuracy,
        }


def run_tests(job: Job, stop: StopSignal) -> TestFigures:
    """All ranks call it. See `evaluate`."""
    if job.test_loader is None:
        return TestFigures()
    network = evaluate(job, job.test_loader, job.network, "test", stop).figures
    if job.average is None:
        return TestFigures(network)
    average = evaluate(job, job.test_loader, job.average.read(), "test of the average", stop)
    return TestFigures(network, average.figures)


class EvaluationStopped(Exception):  # noqa: N818
    """A signal came while the network was tested."""


class Evaluation(NamedTuple):
    """Figures over a split; the predicted labels and the best ones other than the loader's, (N,) int64 each, -1
    where an image could not be read."""

    figures: Figures
    predictions: Tensor
    others: Tensor


@torch.no_grad()
def evaluate(job: Job, loader: BatchLoader, network: nn.Module, what: str, stop: StopSignal) -> Evaluation:
    """The network without α, as it will be used, on each sample of the loader once on any number of ranks.

    what: for the progress bar. Raises EvaluationStopped on all ranks after a signal to one; it can be begun again.
    """
    engine = job.engine
    engine.sync_buffers()
    network.eval()
    meter = Meter(engine.device, top5=loader.samples.num_classes > _FEW_CLASSES)
    labels = torch.zeros((2, len(loader.samples)), dtype=torch.int64, device=engine.device)
    shown = engine.rank == 0 and job.config.run.progress
    for number, batch in enumerate(with_bar(loader.epoch(0), len(loader), what, shown=shown)):
        if number % _ASK_BATCHES == 0 and stop.agreed(engine):
            raise EvaluationStopped
        with engine.autocast():
            logits = network(job.in_format(batch.images))
        meter.add(F.cross_entropy(logits.float(), batch.target), logits, batch.target)
        without_target = logits.scatter(1, batch.target[:, None], -torch.inf)
        found = torch.stack([logits.argmax(1), without_target.argmax(1)])
        labels[:, batch.index] = found + 1  # 0 is left for what no rank has read
    predictions, others = engine.sum(labels) - 1
    return Evaluation(Meter.figures(engine.sum(meter.totals)), predictions, others)
