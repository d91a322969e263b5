"""bench/train.py at sizes that say nothing about speed: what it times, what it records, and that it can fail."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastac.data.synthetic import Settings, write_tree

BENCH = Path(__file__).resolve().parent.parent / "bench"
TINY = ["--models", "wrn-10-1", "--batch", "8", "--samples", "200", "--rounds", "6"]
NAMES = ["F.cross_entropy", "F.cross_entropy, again", "AC2", "AC1", "AC1 with dynamics"]


@pytest.fixture
def bench(monkeypatch):
    """A benchmark as `python bench/NAME.py` imports it: its folder is on the path."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture
def trainer(bench):
    ways = bench("train_ways")
    setup = ways.Setup("wrn-10-1", ways.Size(8, 32, 10, 200), torch.device("cpu"))
    return ways.Trainer(setup)


def test_the_record(bench, tmp_path, capsys):
    train = bench("train")
    arguments = [*TINY, "--device", "cpu", "--steps", "2", "--out", str(tmp_path)]
    assert train.main(arguments) == 0
    record = json.loads((tmp_path / "train-cpu.json").read_text(encoding="utf-8"))
    assert (tmp_path / "train-cpu.png").read_bytes().startswith(b"\x89PNG")
    assert record["environment"]["packages"]["torch"] == torch.__version__
    settings = record["settings"]
    assert (settings["amp"], settings["channels_last"], settings["update"]) == ("float32", False, "step")
    (result,) = record["results"]
    assert [result[key] for key in ("model", "batch", "image_size", "classes", "samples")] == [
        *("wrn-10-1", 8, 32, 10, 200)
    ]
    assert result["loader"] is None
    assert list(result["ways"]) == NAMES
    out = capsys.readouterr().out
    base = result["ways"]["F.cross_entropy"]
    for name, row in result["ways"].items():
        rounds = row["rounds_seconds"]
        assert len(rounds) == 6
        assert row["step_seconds"]["median"] == pytest.approx(np.median(rounds))
        assert row["images_per_second"] == pytest.approx(8 / np.median(rounds))
        assert row["peak_bytes"] is None  # a CPU's allocator doesn't count
        assert list(row["parts_seconds"]) == ["forward", "loss", "backward", "optimizer", "α"]
        assert all(0 < seconds < 1 for seconds in row["parts_seconds"].values())
        assert f"{row['step_seconds']['median'] * 1e3:.3f}" in out
        if name == "F.cross_entropy":
            assert row["overhead_percent"] is None
            continue
        overhead = row["overhead_percent"]
        assert overhead == bench("paired").Overhead.of(rounds, base["rounds_seconds"]).record()
        assert overhead["low"] <= overhead["percent"] <= overhead["high"]
        assert f"{overhead['low']:+.2f} to {overhead['high']:+.2f}" in out
    clock = (2**18 + 2**9) * 4 * 8  # the window and its blocks, 2×2 float64 each
    last, dynamics = 4 * 200, 65 * 200
    sizes = [0, 0, 2 * 4 * 200 + last + clock, 2 * 4 * 2000 + last + clock]
    assert [row["state_bytes"] for row in result["ways"].values()] == [*sizes, sizes[-1] + dynamics]
    assert [target["limit"] for target in record["targets"]] == [0.5, 0.5, 0.5]


def test_a_missed_target_is_an_exit_status(bench, tmp_path, capsys):
    arguments = [
        *TINY,
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--name",
        "slow",
        "--limit",
        "-99",
        "--check",
    ]
    assert bench("train").main(arguments) == 1
    assert capsys.readouterr().out.count("MISSED  wrn-10-1, AC") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slow.json", "slow.png"]


def test_targets(bench):
    targets = bench("train_targets")

    def record(device, high, rate):
        ways = {name: {"images_per_second": 4000, "overhead_percent": {"high": 0.1}} for name in NAMES}
        ways["AC1"] = {"images_per_second": rate, "overhead_percent": {"high": high}}
        ways["F.cross_entropy, again"]["overhead_percent"]["high"] = 9
        result = {"model": "resnet50", "image_size": 224, "ways": ways}
        settings = {"limit": 0.5, "cuda_graphs": False, "device": "cuda" if "NVIDIA" in device else "cpu"}
        return {"environment": {"device": device}, "settings": settings, "results": [result]}

    met = [v["met"] for v in targets.verdicts(record("NVIDIA H200", 0.5, 3000))]
    assert met == [True, True, True, True]
    found = targets.verdicts(record("NVIDIA H200", 0.51, 2999))
    assert [v["met"] for v in found] == [True, False, True, False]
    assert "MISSED  resnet50, AC1: overhead at most, %: 0.51 (0.5)" in targets.text(found)
    assert len(targets.verdicts(record("AMD EPYC", 0.5, 10))) == 3
    assert not targets.verdicts(record("AMD EPYC", float("nan"), 10))[1]["met"]
    # A small network's step on a GPU is its launches: it is judged where they are captured.
    small = record("NVIDIA H200", 0.51, 3000)
    small["results"][0] |= {"model": "wrn-40-2", "image_size": 32}
    assert targets.verdicts(small) == []
    small["settings"]["cuda_graphs"] = True
    assert [v["met"] for v in targets.verdicts(small)] == [True, False, True]


def test_each_ways_table_moves_at_its_own_steps_alone(trainer):
    """On one optimizer's hook, every way would pay for all tables."""
    tables = {name: s.criterion.table for name, s in trainer.subjects.items() if name.startswith("AC")}
    before = {name: (table.clock.steps, table.dense()) for name, table in tables.items()}
    assert all(steps == 25 for steps, _ in before.values())  # an epoch of 200 / 8
    batches = trainer.draw(3)
    for name in ("F.cross_entropy", "AC1", "F.cross_entropy, again"):
        assert trainer.seconds(name, batches) > 0
    assert {name: table.clock.steps for name, table in tables.items()} == {
        **{"AC2": 25, "AC1": 28, "AC1 with dynamics": 25}
    }
    seen = torch.cat([index for _, _, index in batches])
    moved = tables["AC1"].dense().abs().amax(dim=1) > 0
    assert moved.nonzero()[:, 0].tolist() == sorted(set(seen.tolist()))
    assert torch.equal(tables["AC2"].dense(), before["AC2"][1])


def test_ways_train_the_same_network_on_the_same_batches(trainer):
    """With α = 0 the first step's loss is the same for all; the network moves by each way's optimizer."""
    batch = trainer.draw(1)[0]
    weight = trainer.subjects["AC1"].optimizer.param_groups[0]["params"][0]
    for group in (g for s in trainer.subjects.values() for g in s.optimizer.param_groups):
        group["lr"] = 1e-12
    losses = [trainer.step(subject, batch) for subject in trainer.subjects.values()]
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(5), rtol=1e-5, atol=0)
    for subject in trainer.subjects.values():
        before = weight.detach().clone()
        for group in subject.optimizer.param_groups:
            group["lr"] = 1e-3
        trainer.step(subject, batch)
        assert not torch.equal(weight, before)
    dynamics = trainer.subjects["AC1 with dynamics"].criterion.dynamics
    counts = torch.zeros(200, dtype=torch.int64)
    counts[batch[2]] = 2
    assert torch.equal(dynamics.count, counts)


def test_parts_add_up_to_the_step(trainer, bench, monkeypatch):
    ways = bench("train_ways")
    moments = iter([0.0, 1.0, 1.5, 4.5, 5.0, 5.125, 5.375] * 5 * 3)
    monkeypatch.setattr(ways.time, "perf_counter", lambda: next(moments))
    parts = trainer.parts(trainer.draw(3))
    # The optimizer's part is its step and the clearing of gradients.
    expected = {"forward": 1.0, "loss": 0.5, "backward": 3.0, "optimizer": 0.75, "α": 0.125}
    assert parts == dict.fromkeys(NAMES, expected)
    assert next(moments, None) is None


def test_a_network_that_has_diverged_is_no_measure(trainer):
    with torch.no_grad():
        for parameter in trainer.subjects["AC1"].optimizer.param_groups[0]["params"]:
            parameter.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the loss of wrn-10-1 became nan"):
        trainer.seconds("AC1", trainer.draw(1))


def test_a_drift_is_no_overhead(bench):
    paired = bench("paired")
    orders = paired.orders(5, 12)
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert all(orders[i] == orders[i + 1][::-1] for i in range(0, 12, 2))
    assert len({tuple(order) for order in orders}) > 4
    seconds = [[0.0] * 12 for _ in range(5)]
    for number, order in enumerate(orders):
        for turn, way in enumerate(order):
            seconds[way][number] = 1 + 0.01 * (5 * number + turn)
    for way in range(1, 5):
        overhead = paired.Overhead.of(seconds[way], seconds[0])
        assert [overhead.percent, overhead.low, overhead.high] == pytest.approx([0, 0, 0], abs=1e-9)
        assert overhead.pairs == 6


def test_an_overheads_interval_holds_the_true_one_as_often_as_it_says(bench):
    paired, random = bench("paired"), np.random.default_rng(0)
    hits = disturbed_hits = 0
    for _ in range(2000):
        base = random.normal(1, 0.01, 40)
        seconds = 1.02 * random.normal(1, 0.01, 40)
        overhead = paired.Overhead.of(seconds, base)
        hits += overhead.low <= 2 <= overhead.high
        assert abs(overhead.percent - 2) < 1.5
        # Every tenth block is disturbed by up to half a second.
        late = random.random((2, 40)) < 0.1
        base, seconds = np.stack([base, seconds]) + late * random.uniform(0, 0.5, (2, 40))
        overhead = paired.Overhead.of(seconds, base)
        disturbed_hits += overhead.low <= 2 <= overhead.high
    assert 0.93 < hits / 2000 < 0.97
    assert 0.92 < disturbed_hits / 2000 < 0.98


def test_students_t(bench):
    known = {1: 12.706, 2: 4.303, 4: 2.776, 5: 2.571, 6: 2.447, 10: 2.228, 20: 2.086, 100: 1.984}
    students_t = bench("paired").students_t
    assert {n: students_t(n) for n in known} == pytest.approx(known, rel=1e-3)


@pytest.mark.parametrize(("rounds", "base"), [(6, 8), (4, 4), (7, 7)])
def test_rounds_that_make_no_pairs(bench, rounds, base):
    with pytest.raises(
        ValueError, match=rf"have {rounds} and {base} rounds; they should have equally many, an even"
    ):
        bench("paired").Overhead.of([1.0] * rounds, [1.0] * base)


def test_steps_on_image_files(bench, trainer, tmp_path, monkeypatch):
    write_tree(tmp_path, Settings(classes=2, images=20, val_images=0, size="48"))

    data = bench("train_data")
    samples = data.load_images(tmp_path, 32)
    data.check_folder(samples, trainer)
    draw = trainer.draw  # noise takes ids that are not the folder's
    monkeypatch.setattr(trainer, "draw", lambda n: [(x, y, ids.clamp(min=20)) for x, y, ids in draw(n)])
    found = data.measure_loader(trainer, samples, "AC1 with dynamics", "torch", 3, 0, "none")
    assert found["loss"] == pytest.approx(
        1 - found["images_per_second"] / found["synthetic_images_per_second"]
    )
    assert found["synthetic_drift"] > -1
    assert 0 < found["waiting_share"] < 1
    assert found["loader_images_per_second"] > 0
    assert (
        found["restarts"] == 1
    )  # two batches an epoch: 5 untimed ones, then the sixth, and the next epoch's two
    # Two batches of 8 an epoch; warm-up and timed steps trained on 8 batches, no sample twice in an epoch.
    count = trainer.subjects["AC1 with dynamics"].criterion.dynamics.count
    assert int(count[:20].sum()) == 8 * 8
    assert int(count[:20].max()) <= 4
    assert int(count[20:].sum()) == 2 * 8 * 8  # on noise, before and after, as many
    text = bench("train_text").loader_text(found)
    assert "20 image files, torch loader, 0 workers, policy none" in text
    assert f"{found['loss']:.1%} lost" in text


def test_folders_that_do_not_fit(bench, trainer, tmp_path):
    write_tree(tmp_path, Settings(classes=2, images=20, val_images=0, size="16"))
    data = bench("train_data")
    samples = data.load_images(tmp_path, 32)
    trainer.size = trainer.size._replace(samples=19)
    with pytest.raises(ValueError, match=r"has 20 training images; it should have from 8, a batch, to 19"):
        data.check_folder(samples, trainer)
    few = dataclasses.replace(samples, class_names=tuple("abcdefghijk"))
    with pytest.raises(ValueError, match=r"--classes was 10; it should be 11 at least"):
        data.check_folder(few, trainer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "5"], "--rounds must be even and at least 6, got 5"),
        (["--rounds", "4"], "--rounds must be even and at least 6, got 4"),
        (["--batch", "1"], "--batch must be at least 2, got 1"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--batch", "9", "--samples", "8"], "--batch must be at most --samples (8), got 9"),
        (["--device", "cpu", "--cuda-graphs"], "--cuda-graphs needs --device cuda"),
        (["--data-dir", "nowhere"], "--data-dir must have a folder train, got nowhere"),
    ],
)
def test_bad_options(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench("train").parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["--device", "cuda"], (256, 224, 1000, 1_281_167)),
        (["--device", "cpu"], (8, 64, 1000, 50_000)),
        (["--device", "cuda", "--batch", "64", "--image-size", "160"], (64, 160, 1000, 1_281_167)),
    ],
)
def test_sizes_by_device(bench, arguments, size):
    train = bench("train")
    options = train.parse(arguments)
    assert train.size_of("resnet50", options) == size
    on_gpu = options.device == "cuda"
    assert (options.amp, options.channels_last) == (("bfloat16", True) if on_gpu else ("float32", False))
    assert train.size_of("wrn-28-10", options)[2:] == (10, 50_000) or on_gpu


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["--cuda-graphs", "--no-cuda-graphs"])
def test_train_on_a_gpu(bench, tmp_path, graphs):
    arguments = [*TINY, "--device", "cuda", graphs, "--out", str(tmp_path)]
    assert bench("train").main(arguments) == 0
    record = json.loads((tmp_path / "train-cuda.json").read_text(encoding="utf-8"))
    assert record["environment"]["device"] == torch.cuda.get_device_name()
    peaks = [row["peak_bytes"] for row in record["results"][0]["ways"].values()]
    assert min(peaks) > 0
    assert all(row["parts_seconds"]["backward"] > 0 for row in record["results"][0]["ways"].values())
