"""The trainer: `python -m fastac.train --recipe NAME [--key value …]`, alone or under torchrun.

From top to bottom: the command, the run, the loop, one step, and what comes after. A run's parts are in
`fastac.job`, its settings in `fastac.config`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastac.checkpoint import CheckpointError, Checkpoints
from fastac.checkpoint_files import find_checkpoints
from fastac.collectives import CollectiveError
from fastac.config import Config, load_config, parse_command_line, read_config, resumed_config, write_config
from fastac.data import Batch
from fastac.engine import Engine, create_engine
from fastac.evaluation import Evaluation, EvaluationStopped, TestFigures, evaluate, run_tests
from fastac.extras import require
from fastac.history import ScoreHistory
from fastac.job import Job
from fastac.metrics import Meter
from fastac.models import create_model
from fastac.reporting import Reporter
from fastac.results import rank_on_first
from fastac.run import RunFolder, environment, results_text, write_results
from fastac.stopping import StoppedError, StopSignal
from fastac.training_data import load_data
from fastac.weights import save_weights

__all__ = ["StoppedError", "main", "train"]

_DISKS = 6.0  # how much longer than for a collective ranks wait for each other's files
_ASK_SECONDS = 2.0  # after which several ranks ask each other whether to stop


# ---------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit status 2: a user's error; 1: a checkpoint's, or ranks that don't answer;
    128 + signal: stopped by it."""
    try:
        config, resume = _read_command(sys.argv[1:] if argv is None else argv)
        train(config, resume=resume)
        return 0
    except StoppedError as stop:
        status = 128 + stop.signum
        return _say(f"stopped: {stop}", status) if os.environ.get("RANK", "0") == "0" else status
    except KeyboardInterrupt:
        return _say("stopped at once, with nothing saved since the last checkpoint", 128 + signal.SIGINT)
    except (CheckpointError, CollectiveError) as error:
        return _say(f"error: {error}", 1)
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("FASTAC_DEBUG") == "1":
            raise
        return _say(f"error: {error}", 2)


def _read_command(argv: Sequence[str]) -> tuple[Config, bool]:
    """The config, and whether to go on with a run."""
    command = parse_command_line(argv)
    if command.resume is None:
        return load_config(command.recipe, command.values), False
    if command.resume == "auto":
        if command.values.get("name") is None:
            raise ValueError("--resume auto needs --name: the run to go on with, or to start")
        return load_config(command.recipe, command.values), True
    folder = Path(command.resume)
    given = command.values if command.recipe is None else {"recipe": command.recipe, **command.values}
    for name in ("recipe", "name", "output"):
        if name in given:
            raise ValueError(f"--{name} can't be given with --resume {folder}, which has its own")
    return resumed_config(read_config(folder), given, folder), True


def _say(text: str, status: int) -> int:
    print(f"fastac.train: {text}", file=sys.stderr, flush=True)
    return status


# ---------------------------------------------------------------- the run


def train(
    config: Config, *, resume: bool = False, create: Callable[..., nn.Module] = create_model
) -> dict[str, Any]:
    """Train as `config` says and write the run folder.

    resume: go on with the run in output/name where there is one, else start it. create: makes the network,
    from the config's model name and the keywords num_classes and in_channels. Returns what result.json holds;
    on ranks other than 0 an empty dict.

    Raises ValueError, ImportError or OSError for what the user can mend, CheckpointError where a checkpoint
    can't be saved or read, StoppedError after SIGINT or SIGTERM.
    """
    require_packages(config)
    engine = create_engine(config)
    try:
        return train_on(engine, config, resume, create)
    except BaseException as error:
        traceback.clear_frames(
            error.__traceback__
        )  # they hold the job, and with it the engine's process group
        raise
    finally:
        engine.close()


def train_on(
    engine: Engine, config: Config, resume: bool, create: Callable[..., nn.Module]
) -> dict[str, Any]:
    """`train`, on an engine. The job must not outlive it: see the engine's close."""
    place = Path(config.run.output) / (config.run.name or "")
    going_on = engine.broadcast(resume and (place / "config.toml").is_file())
    if going_on:
        config = resumed_config(read_config(place), config.values(), place)
    saved = going_on and bool(find_checkpoints(RunFolder(place).checkpoints))
    job = Job(config, engine, load_data(config), create, resumed=engine.broadcast(saved))
    with contextlib.ExitStack() as stack:
        folder = RunFolder(place) if going_on else open_folder(job, None)
        group = engine.new_group(patience=_DISKS)
        checkpoints = Checkpoints(folder.checkpoints, keep=config.run.checkpoint_hist, group=group)
        stack.enter_context(contextlib.closing(checkpoints))
        if going_on:
            resume_from(job, checkpoints)
            open_folder(job, place)  # written to when the checkpoint was taken, not before
        if engine.rank == 0:
            _say(str(job), 0)
        with StopSignal() as stop:
            test = fit(job, folder, checkpoints, stop)
            try:
                test = run_tests(job, stop) if test.network is None else test
                train = None
                if config.run.predict_train:
                    train = evaluate(job, job.given_loader, job.network, "training images", stop)
            except EvaluationStopped:
                raise stopped(job, folder, checkpoints, stop) from None
    return finish(job, folder, test, train)


def require_packages(config: Config) -> None:
    """ImportError now, not after hours of training, for a package that the run will need."""
    for module in ("tomli_w", "tqdm"):
        require(module, "train")
    for module in ("pandas", "matplotlib", "PIL"):
        require(module, "report")
    if config.run.tensorboard:
        require("tensorboard", "train")


def open_folder(job: Job, existing: Path | None) -> RunFolder:
    """The run's folder, made or gone on with by rank 0, with the config, the stamp and the labels in it."""
    engine = job.engine
    if engine.rank == 0:
        folder = RunFolder.create(job.config) if existing is None else RunFolder(existing)
        write_config(job.config, folder.config)
        # The config's paths may be relative to it.
        stamp = {**environment(engine.device, engine.world_size), "directory": os.getcwd()}
        folder.write_environment(stamp)
        folder.write_labels(job.data.given, job.data.truth)
    return RunFolder(engine.broadcast(folder.path if engine.rank == 0 else None))


def resume_from(job: Job, checkpoints: Checkpoints) -> None:
    """Load the newest whole checkpoint, and say which; start over where none was saved yet."""
    found = checkpoints.load_newest()
    if found is None:
        message = f"there is no checkpoint in {checkpoints.folder} yet: starting over"
    else:
        job.load(found)
        message = f"going on from {found.path}, step {job.position.step} of {job.last_step}"
    if job.engine.rank == 0:
        for problem in [] if found is None else found.problems:
            _say(f"passed over: {problem}", 0)
        _say(message, 0)


# ---------------------------------------------------------------- the loop


def fit(job: Job, folder: RunFolder, checkpoints: Checkpoints, stop: StopSignal) -> TestFigures:
    """Train to the last step, epoch by epoch. Returns the last epoch's figures on the test set, without any where there
    was nothing left to train or is no such set. Raises StoppedError, a checkpoint saved, after a signal."""
    c, position, test = job.config, job.position, TestFigures()
    reporter = Reporter(
        folder,
        c.run,
        rank=job.engine.rank,
        device=job.engine.device,
        epoch=position.epoch,
        step=position.step,
        epochs=c.optimizer.trained_epochs,
        steps_per_epoch=job.steps_per_epoch,
        last_step=job.last_step,
    )
    with contextlib.closing(reporter):
        while True:
            if position.step < job.last_step:
                train_epoch(job, folder, checkpoints, reporter, stop)
            if position.batch == 0:  # a run that had come to its end before
                break
            try:
                test = end_epoch(job, folder, reporter, stop)
            except EvaluationStopped:
                save(job, checkpoints)  # the test is made again, and nothing else
                raise stopped(job, folder, checkpoints, stop) from None
            if c.run.checkpoint_every == 0 or position.step >= job.last_step:
                save(job, checkpoints)
            if position.step >= job.last_step:
                break
    if stop.agreed(job.engine):
        raise stopped(job, folder, checkpoints, stop)
    checkpoints.wait()  # what failed to be saved ends the run here, not after its results
    return test


def train_epoch(
    job: Job, folder: RunFolder, checkpoints: Checkpoints, reporter: Reporter, stop: StopSignal
) -> None:
    """The rest of the epoch under way, up to the run's last step."""
    c, position, engine = job.config.run, job.position, job.engine
    reporter.begin_epoch(position.epoch, position.step)
    job.model.train()
    batches = job.train_loader.epoch(position.epoch, start=position.batch)
    clock = time.monotonic()
    for group in grouped(batches, job.config.optimizer.grad_accum_steps):
        rows = train_step(job, group)
        now = time.monotonic()
        position.advance(len(group), rows, now - clock)
        clock = now
        reporter.step(position.step, job.meter.totals, job.lr, position.images_per_second)
        if must_stop(job, stop):
            save(job, checkpoints)
            raise stopped(job, folder, checkpoints, stop)
        if c.checkpoint_every and position.step % c.checkpoint_every == 0:
            save(job, checkpoints)
        if position.step >= job.last_step:
            break
    engine.wait()
    position.add_seconds(time.monotonic() - clock)  # what the device was behind
    reporter.end_training()


def grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last one may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group


def train_step(job: Job, group: list[Batch]) -> int:
    """One optimizer step, by the mean loss over all rows of the group on all ranks. Returns their number."""
    engine = job.engine
    rows = sum(batch.global_size for batch in group)
    job.prefetch(group)
    for batch in group:
        # The engine averages gradients over the ranks. The loss is the local mean: weighted by the local
        # rows' share, that average is the mean over the group, however unevenly its rows are spread.
        share = len(batch.target) * engine.world_size / rows
        with engine.micro_batch(last=batch is group[-1]):
            with engine.autocast():
                loss, logits = job.forward(batch.images, batch.target, batch.index)
            engine.backward(loss * share)
        job.meter.add(loss, logits, batch.target)
        job.note_unreadable(batch)
    engine.step()
    if job.average is not None:
        job.average.update()
    job.scheduler.step()
    return rows


def must_stop(job: Job, stop: StopSignal) -> bool:
    """Whether a rank got a signal. Several ranks ask each other about every two seconds, at steps that all of them
    know: what they said of their steps' time at the last one gives the next one."""
    engine, position = job.engine, job.position
    if engine.world_size == 1:
        return stop.signum != 0
    if position.step < stop.next_question:
        return False
    mine = torch.tensor([float(stop.signum != 0), position.seconds / position.step], dtype=torch.float64)
    signals, seconds = engine.sum(mine, "signals to stop").tolist()
    steps = _ASK_SECONDS * engine.world_size / max(seconds, 1e-9)
    stop.next_question = position.step + max(1, min(int(steps), 1000))
    return signals > 0


def stopped(job: Job, folder: RunFolder, checkpoints: Checkpoints, stop: StopSignal) -> StoppedError:
    """What to raise when the last checkpoint is on the disk."""
    checkpoints.wait()
    signum = signal.Signals(stop.signum or signal.SIGTERM)
    return StoppedError(
        signum,
        f"{signum.name} at step {job.position.step} of {job.last_step}, saved; "
        f"to go on: python -m fastac.train --resume {folder.path}",
    )


def end_epoch(job: Job, folder: RunFolder, reporter: Reporter, stop: StopSignal) -> TestFigures:
    """Test, write the epoch's row, and make ready for the next epoch. Returns the figures on the test set. Raises
    EvaluationStopped, and can be begun again."""
    position = job.position
    keep_scores(job, folder)
    train = Meter.figures(job.engine.sum(job.meter.totals))
    test = run_tests(job, stop)
    row = {
        "epoch": position.epoch + 1,
        "step": position.step,
        "lr": job.lr,
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        **test.columns(),
        "images_per_second": position.images_per_second,
        "seconds": position.seconds,
    }
    reporter.end_epoch(row)
    if position.batch == len(job.train_loader):
        position.next_epoch()
        job.meter.reset()
    return test


def keep_scores(job: Job, folder: RunFolder) -> None:
    """The score's history. All ranks call it."""
    if job.dynamics is not None and job.config.run.score_history:
        aum = job.dynamics.aum
        if job.engine.rank == 0:
            ScoreHistory(folder.history).write(job.position.epoch + 1, aum.cpu().numpy())


def save(job: Job, checkpoints: Checkpoints) -> None:
    """Save a checkpoint, in the background. All ranks call it."""
    job.sync_dynamics()
    checkpoints.save(job.position.step, job.shared_state(), job.own_states())


# ---------------------------------------------------------------- what comes after


def finish(job: Job, folder: RunFolder, test: TestFigures, train: Evaluation | None) -> dict[str, Any]:
    """Rank the given labels, write the weights and the results, and print them. test: the figures on the test set;
    train: what the network says of the training images, None where it was not asked."""
    config, data = job.config, job.data
    weights = job.engine.state_dict()["model"]
    if job.engine.rank == 0:
        save_weights(folder.weights, weights)
        if job.average is not None:
            save_weights(folder.average, job.average.read().state_dict())
    unread = np.array(job.unreadable(), dtype=np.int64)
    predictions = others = None
    if train is not None:
        predictions, others = train.predictions.cpu().numpy(), train.others.cpu().numpy()
        unread = np.flatnonzero(predictions < 0)
    samples, truth = data.dataset.train, data.truth
    labels, offsets = rank_on_first(
        job.engine,
        job.table,
        job.dynamics,
        data.given,
        predictions=predictions,
        others=others,
        unread=unread,
        class_names=samples.class_names,
        percent=config.run.issues_percent,
    )
    if labels is None:
        return {}
    on_truth = None
    if predictions is not None and truth is not None:
        on_truth = float((predictions == truth)[predictions >= 0].mean())
    summary = {
        **summarized(job, folder),
        **test.columns(),
        "test_images": None if test.network is None else test.network.rows,
        "predict_train": train is not None,
        "train_accuracy": None if train is None else train.figures.accuracy,
        "train_accuracy_on_truth": on_truth,
    }
    result = write_results(folder, summary, samples=samples, truth=truth, labels=labels, offsets=offsets)
    print(results_text(result, folder), flush=True)
    return result


def summarized(job: Job, folder: RunFolder) -> dict[str, Any]:
    """What was trained, on what, and how long."""
    config, data, position = job.config, job.data, job.position
    return {
        "folder": str(folder.path),
        "dataset": config.data.dataset,
        "loader": config.data.loader,
        "train_images": len(data.given),
        "classes": data.dataset.train.num_classes,
        "model": config.model.model,
        "left_out": len(data.excluded),
        "parameters": job.parameters,
        "loss": config.loss.loss,
        "seed": config.run.seed,
        "epochs": position.epoch,
        "short": config.optimizer.short,
        "steps": position.step,
        "ranks": job.engine.world_size,
        "seconds": position.seconds,
        "images_per_second": position.images / position.seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
