"""Trains a run of fastac.paper in this process, in place of one of its own."""

import contextlib

import torch
from torch import nn

from fastac.train import StoppedError, train


class Ended:
    """A process that has ended already."""

    def __init__(self, status=0):
        self.status = status

    def poll(self):
        return self.status

    def terminate(self):
        pass

    def wait(self):
        return self.status


class InProcess:
    """Trains in place of a process, with a network that is quick. started: the names, in order."""

    def __init__(self):
        self.started = []

    def __call__(self, run, slot, lock):
        self.started.append(run.name)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with open(run.log, "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                train(run.config(), resume=True, create=self.create)
            except (ValueError, OSError) as error:
                print(f"error: {error}")
                return Ended(2)
            except StoppedError as stop:
                return Ended(128 + stop.signum)
        return Ended()

    @staticmethod
    def create(name, *, num_classes, in_channels):
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
