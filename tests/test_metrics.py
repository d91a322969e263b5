"""fastac.metrics: what is counted, and what a resumed run's CSV holds."""

import csv
import math
import sys

import pytest
import torch

from fastac.metrics import COLUMNS, Meter, MetricsLog, Progress, Reading, with_bar


def row(epoch, **changes):
    values = {
        "epoch": epoch,
        "step": 10 * epoch,
        "lr": 0.1,
        "train_loss": 1 / 3,
        "train_accuracy": 0.5,
        "test_loss": 0.25,
        "test_accuracy": 0.75,
        "test_top5": None,
        "ema_test_accuracy": None,
        "images_per_second": 1000.0,
        "seconds": 1.5 * epoch,
    }
    return {**values, **changes}


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_meter_weighs_batches_by_their_rows():
    meter = Meter(torch.device("cpu"))
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    meter.add(torch.tensor(0.5), logits, torch.tensor([0, 1, 1]))
    meter.add(torch.tensor(2.0), logits[:1], torch.tensor([1]))
    meter.add(torch.tensor(math.nan), logits[:0], torch.tensor([], dtype=torch.int64))
    assert Meter.figures(meter.totals) == ((0.5 * 3 + 2.0) / 4, 2 / 4, 4, None)
    meter.reset()
    assert math.isnan(Meter.figures(meter.totals).loss)


def test_the_five_best_answers():
    meter = Meter(torch.device("cpu"), top5=True)
    logits = torch.arange(12.0).repeat(4, 1)  # class 11 is best, then 10, …
    meter.add(torch.tensor(1.0), logits, torch.tensor([11, 7, 6, 0]))
    assert Meter.figures(meter.totals) == (1.0, 0.25, 4, 0.5)
    few = Meter(torch.device("cpu"), top5=True)
    few.add(torch.tensor(1.0), torch.zeros(2, 3), torch.tensor([0, 2]))  # fewer classes than five
    assert Meter.figures(few.totals).top5 == 1.0


def test_a_reading_is_as_of_its_time():
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor(0.5), torch.eye(2), torch.tensor([0, 0]))
    reading = Reading(meter.totals)
    meter.reset()
    assert reading.ready()
    assert reading.figures() == (0.5, 0.5, 2, None)


def test_csv_has_its_columns_and_leaves_empty_what_there_is_not(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv", None, epochs=0, step=0)
    log.epoch(row(1))
    log.epoch(row(2, test_loss=None, test_accuracy=None))
    log.close()
    first, second = read(tmp_path / "metrics.csv")
    assert tuple(first) == COLUMNS
    assert (first["epoch"], first["train_loss"], first["test_accuracy"]) == ("1", "0.333333", "0.75")
    assert (second["step"], second["test_accuracy"]) == ("20", "")


def test_a_resumed_run_cuts_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, None, epochs=0, step=0)
    for epoch in (1, 2, 3):
        log.epoch(row(epoch))
    with open(path, "a") as file:
        file.write("4,40,0.1,0.3")  # killed while it wrote
    log = MetricsLog(path, None, epochs=2, step=25)
    assert [r["epoch"] for r in read(path)] == ["1", "2"]
    log.epoch(row(3, train_loss=9.0))
    assert [r["train_loss"] for r in read(path)] == ["0.333333", "0.333333", "9"]


def test_tensorboard_has_the_same_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.csv", tmp_path / "tensorboard", epochs=0, step=0)
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor(0.5), torch.eye(2), torch.tensor([0, 0]))
    log.step(5, Meter.figures(meter.totals), 0.05, 100.0)
    log.epoch(row(1))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {
        tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert found == {
        "train/running_loss": [(5, 0.5)],
        "train/running_accuracy": [(5, 0.5)],
        "train/lr": [(5, 0.05)],
        "train/images_per_second": [(5, 100.0)],
        "train/loss": [(10, 0.333333)],
        "train/accuracy": [(10, 0.5)],
        "test/loss": [(10, 0.25)],
        "test/accuracy": [(10, 0.75)],
    }


def test_a_line_an_epoch_where_stderr_is_no_terminal(capsys):
    progress = Progress(True, epochs=12, steps_per_epoch=10, total_steps=120)
    progress.begin_epoch(0, 0, bar=True)
    progress.step()
    progress.end_epoch(row(1, test_accuracy=None))
    text = capsys.readouterr().err
    assert text.startswith("epoch  1/12  loss 0.3333  accuracy 50.00%  lr 0.1  1,000 images/s  ")
    assert text.endswith(" left\n")
    assert text.count("\n") == 1
    silent = Progress(False, epochs=12, steps_per_epoch=10, total_steps=120)
    silent.begin_epoch(0, 0, bar=True)
    silent.end_epoch(row(1))
    assert capsys.readouterr().err == ""


def test_a_bar_over_batches_is_for_terminals(capsys, monkeypatch):
    assert with_bar([1, 2], 2, "test", shown=True) == [1, 2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert with_bar([1, 2], 2, "test", shown=False) == [1, 2]
    assert list(with_bar(iter([1, 2]), 2, "training images", shown=True)) == [1, 2]
    assert "training images" in capsys.readouterr().err
