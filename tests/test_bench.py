"""The benchmarks at sizes that say nothing about speed: that they run, what they record, and that they can fail."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

BENCH = Path(__file__).resolve().parent.parent / "bench"
TINY = ["--samples", "40", "160", "--classes", "5", "--batch", "8", "--rounds", "3", "--threads", "1"]
KINDS = ["table AC1", "table AC1 folded", "table AC2", "dense AC1", "dense AC2"]


@pytest.fixture
def bench(monkeypatch):
    """A benchmark as `python bench/NAME.py` imports it: its folder is on the path."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(importlib.import_module("common"), "BEYOND_CACHES", 1 << 16)
    return importlib.import_module


def test_table_as_a_user_runs_it(tmp_path):
    command = [sys.executable, str(BENCH / "table.py"), *TINY, "--device", "cpu", "--limit", "50"]
    done = subprocess.run([*command, "--out", str(tmp_path / "new")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["table-cpu.json", "table-cpu.png"]
    assert (tmp_path / "new" / "table-cpu.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "new" / "table-cpu.json").read_text(encoding="utf-8"))
    check_record(record)
    for row in record["results"]:
        assert f"{row['step_seconds']['median'] * 1e3:.3f}" in done.stdout


def check_record(record):
    assert record["benchmark"] == "table"
    environment = record["environment"]
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == 1
    assert {"command", "git", "device", "load_average"} <= environment.keys()
    settings = record["settings"]
    assert (settings["samples"], settings["classes"], settings["batch"]) == ([40, 160], 5, 8)
    assert (settings["rounds"], settings["limit"], settings["device"]) == (3, 50, "cpu")
    bandwidth = record["copy_bytes_per_second"]
    assert 1e8 < bandwidth["low"] <= bandwidth["median"] <= bandwidth["high"] < 1e14
    assert [(r["num_samples"], r["alpha"]) for r in record["results"]] == [
        (n, k) for n in (40, 160) for k in KINDS
    ]
    for row in record["results"]:
        assert row["skipped"] is None
        step = row["step_seconds"]
        assert step["rounds"] == 3
        assert 0 < step["low"] <= step["median"] <= step["high"]
        share = 0
        if row["alpha"].startswith("table"):
            sweep = row["sweep_seconds"]["median"]
            assert row["sweep_seconds_per_row"] == pytest.approx(sweep / row["num_samples"])
            share = sweep / 65536  # a quarter of the default window
        else:
            assert row["sweep_seconds"] is None
        assert row["sweep_seconds_per_step"] == pytest.approx(share)
        assert row["total_seconds_per_step"] == pytest.approx(step["median"] + share)
    by_kind = {row["alpha"]: row for row in record["results"] if row["num_samples"] == 160}
    clock = (2**18 + 2**9) * 4 * 8  # the window and its blocks, 2×2 float64 each
    assert [by_kind[kind]["state_bytes"] for kind in KINDS] == [
        4 * (2 * 160 * 5 + 160) + clock,
        4 * (160 * 5 + 160) + clock,
        4 * (2 * 160 + 160) + clock,
        4 * 2 * 160 * 5,
        4 * 2 * 160,
    ]
    assert [by_kind[kind]["gradient_bytes"] for kind in KINDS] == [160, 160, 32, 3200, 640]
    assert list(record["growth"]["ratios"]) == KINDS
    assert record["growth"]["failures"] == []


def test_table_fails_over_its_limit(bench, tmp_path, capsys):
    arguments = [*TINY, "--device", "cpu", "--limit", "0.001", "--out", str(tmp_path)]
    assert bench("table").main(arguments) == 1
    assert capsys.readouterr().err.count("FAILED: table") == 3
    assert (tmp_path / "table-cpu.png").exists()  # a failure can be looked at
    record = json.loads((tmp_path / "table-cpu.json").read_text(encoding="utf-8"))
    assert len(record["growth"]["failures"]) == 3


def results(**seconds):
    """Rows at N = 10 and 1000: a second each, but for the kinds named (a_b for "a b") at N = 1000."""
    rows = []
    for kind in KINDS:
        large = seconds.get(kind.replace(" ", "_"), 1.0)
        rows.append({"alpha": kind, "num_samples": 10, "total_seconds_per_step": 1.0})
        rows.append(
            {"alpha": kind, "num_samples": 1000} | ({"total_seconds_per_step": large} if large else {})
        )
    return rows


def test_growth_is_judged_for_the_table_alone(bench):
    growth = bench("table").growth
    fine = growth(results(table_AC1=1.5, dense_AC1=100.0), [10, 1000], 1.5)
    assert fine["failures"] == []
    assert fine["ratios"]["dense AC1"] == 100
    (failure,) = growth(results(table_AC2=1.51), [10, 1000], 1.5)["failures"]
    assert failure == "table AC2: a step at N = 1,000 takes 1.51 times that at N = 10, more than 1.5"
    (failure,) = growth(results(table_AC1=float("nan")), [10, 1000], 1.5)["failures"]
    assert "nan times" in failure


def test_what_was_not_measured_is_not_taken_for_fast(bench):
    judged = bench("table").growth(results(table_AC1_folded=None, dense_AC1=None), [10, 1000], 1.5)
    assert judged["failures"] == ["table AC1 folded: not measured at both N = 10 and N = 1,000"]
    assert judged["ratios"]["dense AC1"] is None


def test_sizes_that_memory_is_too_short_for_are_skipped_and_said(bench, monkeypatch, tmp_path, capsys):
    table = bench("table")
    # In float32s: 40 samples take 1,840 of all kinds; 160 take 3,200 of the table's, 800 of AC2's dense parameter
    # and 3,360 of AC1's.
    monkeypatch.setattr(table, "free_memory", lambda device: table._RESERVE + 4 * 6000)
    assert table.main([*TINY, "--device", "cpu", "--limit", "50", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "table-cpu.json").read_text(encoding="utf-8"))
    skipped = {(r["alpha"], r["num_samples"]): r["skipped"] for r in record["results"] if r["skipped"]}
    reason = "needs 0.0 GB of memory, 0.0 GB are left beside the others"
    assert skipped == {("dense AC1", 160): reason}
    assert record["growth"]["ratios"]["dense AC1"] is None
    assert f"{'dense AC1':<17}{160:>11}  skipped: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "100", "100"], "--samples must name two sizes or more, got [100]"),
        (["--samples", "100", "200", "--batch", "101"], "--batch must be in [1, 100], the least N, got 101"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_bad_options(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench("table").parse(arguments)
    assert message in capsys.readouterr().err


def test_cases_take_turns_and_only_run_is_timed(bench, monkeypatch):
    common = bench("common")
    now, calls = [0.0], []
    monkeypatch.setattr(common, "BEYOND_CACHES", 64)
    monkeypatch.setattr(common.time, "perf_counter", lambda: now[0])

    def case(name, seconds):
        def prepare():
            now[0] += 100
            return name

        def run(argument):
            calls.append(argument)
            now[0] += seconds.pop(0)

        return common.Case(run, prepare)

    untimed = [50.0, 50.0]
    first, second = common.time_cases(
        [case("a", [*untimed, 1.0, 3.0, 2.0]), case("b", [*untimed, 9.0, 9.0, 5.0])], torch.device("cpu"), 3
    )
    assert "".join(calls) == "abbaabbaab"
    assert first == common.Timing(median=2, low=1.5, high=2.5, rounds=3)
    assert second == common.Timing(median=9, low=7, high=9, rounds=3)


def test_copy_bandwidth_counts_bytes_read_and_written(bench, monkeypatch):
    common = bench("common")
    monkeypatch.setattr(common, "BEYOND_CACHES", 1000)
    figures = common.copy_bandwidth(common.Timing(median=2.0, low=1.0, high=4.0, rounds=3))
    assert figures == {"median": 1000, "low": 500, "high": 2000}
    case = common.copy_case(torch.device("cpu"))
    assert case.run(case.prepare()).eq(1).all()


def test_free_memory_is_that_of_the_device(bench):
    free = bench("common").free_memory(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 50


@pytest.mark.gpu
def test_table_on_a_gpu(bench, tmp_path):
    assert bench("table").main([*TINY, "--device", "cuda", "--limit", "50", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "table-cuda.json").read_text(encoding="utf-8"))
    assert record["environment"]["device"] == torch.cuda.get_device_name()
    assert all(row["step_seconds"]["low"] > 0 for row in record["results"])


def test_loss_records_every_way(bench, tmp_path, capsys):
    pytest.importorskip("fastac.cpu", reason="the native CPU backend is not built", exc_type=ImportError)
    loss = bench("loss")
    arguments = ["--device", "cpu", "--sizes", "6x300", "--rounds", "3", "--out", str(tmp_path)]
    assert loss.main(arguments) == 0
    assert (tmp_path / "loss-cpu.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "loss-cpu.json").read_text(encoding="utf-8"))
    assert record["environment"]["capability"] in ("default", "avx2", "avx512")
    sizes = [(r["batch"], r["classes"], r["form"]) for r in record["results"]]
    assert sizes == [(6, 300, "ac1"), (6, 300, "ac2")]
    # logits read, gradient written, α read and written: float32
    assert [r["bytes"] for r in record["results"]] == [4 * 7200, 4 * (3600 + 12)]
    out = capsys.readouterr().out
    for result in record["results"]:
        assert list(result["ways"]) == [way.name for way in bench("loss_ways").ways(torch.device("cpu"))]
        for row in result["ways"].values():
            assert 0 < row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
            assert row["warm_seconds"]["median"] > 0
            rate = result["bytes"] / row["seconds"]["median"]
            assert row["share_of_copy"] == pytest.approx(rate / result["copy_bytes_per_second"]["median"])
            assert f"{row['seconds']['median'] * 1e3:.3f}" in out


def test_the_losss_targets_are_met_or_missed(bench):
    targets = bench("loss_targets")

    def row(seconds, share=0.0, warm=None):
        times = {"median": seconds, "host": 1e-5}
        return {
            "seconds": times,
            "share_of_copy": share,
            "warm_seconds": None if warm is None else {"median": warm},
        }

    def result(batch, classes, ways, size=1e9):
        return {"batch": batch, "classes": classes, "form": "ac1", "bytes": size, "ways": ways}

    cpu = result(4096, 1000, {"eager": row(9.0), "torch.compile": row(2.9), "cpu, one pass": row(1.0, 0.86)})
    small = result(256, 10, {"eager": row(1.0, warm=5.0), "cpu, one pass": row(9.0, warm=1.0)})
    met = [v["met"] for v in targets.verdicts({"results": [cpu, small]})]
    assert met == [True, True, False, True]
    ways = {"F.cross_entropy, no α": row(6e-6), "eager": row(6e-6), "cuda, one pass": row(5.5e-6, 0.84)}
    tiny = targets.verdicts({"results": [result(256, 1000, ways, size=1e6)]})
    assert [v["met"] for v in tiny] == [False, True, True]
    large = targets.verdicts({"results": [result(32768, 1000, ways)]})
    assert [v["met"] for v in large] == [False, False]
    assert "MISSED  32768 x 1000 cuda, one pass: share of copy: 0.84 (at least 0.85)" in targets.text(large)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_all_ways_of_the_loss_do_the_same(bench, form, monkeypatch):
    """A way that does less than the others is no measure of them."""
    pytest.importorskip("fastac.cpu", reason="the native CPU backend is not built", exc_type=ImportError)
    monkeypatch.setenv("FASTAC_BACKEND", "cpu")
    loss = bench("loss_ways")
    setup = loss.Setup(8, 5, form, 0.0)
    batch = setup.draw()
    alpha = torch.zeros((setup.num_samples, 5) if form == "ac1" else setup.num_samples)
    value, grad = loss.unfused_step(alpha, batch[0].detach(), *batch[1:])
    if form == "ac1":
        alpha[:, 0] = 0  # the gauge, which is too little work to matter
    tables, original = [], loss.Setup.table
    monkeypatch.setattr(loss.Setup, "table", lambda self: tables.append(original(self)) or tables[-1])
    for name in ("reference", "cpu"):
        result = loss.one_pass(name)(setup)(batch)
        torch.testing.assert_close(result.loss, value)
        torch.testing.assert_close(result.grad, grad)
        torch.testing.assert_close(tables[-1].alpha, alpha)
        for update in ("step", "forward"):
            batch[0].grad = None
            loss.training_step(name, update)(setup)(batch)
            torch.testing.assert_close(batch[0].grad, grad)
            torch.testing.assert_close(tables[-1].alpha, alpha)


RANKS = [
    "--ranks",
    "2",
    "--classes",
    "5",
    "--batch",
    "8",
    "--features",
    "4",
    "--hidden",
    "6",
    "--rounds",
    "2",
]
TABLES = ["aligned", "exchange", "exchange, bf16 wire", "exchange, host", "replicated"]


@pytest.mark.dist
def test_sharding_counts_what_is_planned(bench, tmp_path, capsys):
    arguments = ["--device", "cpu", "--samples", "33", *RANKS, "--no-zero", "--out", str(tmp_path)]
    assert bench("sharding").main([*arguments, "--check", "--limit", "1000"]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "sharding-cpu.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "sharding-cpu.json").read_text(encoding="utf-8"))
    assert record["benchmark"] == "sharding"
    assert record["settings"]["samples"] == [33]
    assert record["environment"]["packages"]["deepspeed"] is None
    rows, n = {row["alpha"]: row for row in record["results"]}, 33
    assert list(rows) == ["no α", *TABLES, "dense, DDP"]
    network = 4 * (
        4 * 6 + 6 + 6 * 5 + 5
    )  # two ranks send one another half of it and the sum of the other half
    sent = {  # of 8 rows 4 are the other rank's: ids and a count, rows, gradients; or all 8 gathered
        "no α": network,
        "aligned": 0,
        "exchange": 8 + 4 * 8 + 2 * 4 * 5 * 4,
        "exchange, bf16 wire": 8 + 4 * 8 + 2 * 4 * 5 * 2,
        "exchange, host": 8 + 4 * 8 + 2 * 4 * 5 * 4,
        "replicated": 8 + 8 * 8 + 8 * 5 * 4,
    }
    clock = (2**18 + 2**9 + 1) * 32 + 2**9 * 8 + 16
    for name, row in rows.items():
        assert (row["ranks"], row["num_samples"], row["skipped"]) == (2, n, None)
        assert 0 < row["step_seconds"]["low"] <= row["step_seconds"]["median"] <= row["step_seconds"]["high"]
        assert f"{row['step_seconds']['median'] * 1e3:.2f}" in out
        assert row["sent_bytes"] == row["least_sent_bytes"] == sent.get(name, 4 * 5 * n)
        if row["written_bytes"] is not None:  # with the network's and the messages' headers
            assert row["written_bytes"] > row["sent_bytes"] + network * (name != "no α")
        if name in TABLES:
            held = n if name == "replicated" else -(-n // 2)
            least = held * (2 * 5 + 1) * 4 + clock
            assert least < row["table_bytes"] < least + 1000
            assert row["table_bytes"] == row["planned_memory_bytes"] <= row["memory_bytes"]
        elif name != "no α":
            assert row["memory_bytes"] == row["planned_memory_bytes"] == 3 * 4 * 5 * n


def sharding_row(name, n, seconds, **figures):
    bytes_ = {"sent_bytes": 7, "least_sent_bytes": 7, "planned_sent_bytes": 7, "table_sent_bytes": 7}
    memory = {"table_bytes": 9, "planned_memory_bytes": 9}
    row = {"ranks": 2, "alpha": name, "num_samples": n, "skipped": None, "step_seconds": {"median": seconds}}
    return row | bytes_ | memory | figures


def test_sharding_fails_where_bytes_differ_or_time_grows(bench):
    checks = bench("sharding").checks
    fine = [sharding_row("exchange", 10, 1.0), sharding_row("exchange", 1000, 1.5)]
    together = fine[1] | {"step_seconds": {"median": 9.0}, "smallest_step_seconds": {"median": 6.0}}
    assert checks([fine[0], together], [10, 1000], 1.5)["growth"] == {"2": {"exchange": 1.5}}
    dense = [sharding_row("dense, DDP", 10, 1.0), sharding_row("dense, DDP", 1000, 9.0, sent_bytes=700)]
    judged = checks([*fine, *dense], [10, 1000], 1.5)
    assert judged["failures"] == []
    assert judged["growth"] == {"2": {"exchange": 1.5, "dense, DDP": 9.0}}
    for changed, message in (
        ({"sent_bytes": 8}, "N = 1,000: sent_bytes is 8, planned_sent_bytes is 7"),
        ({"sent_bytes": 8}, "exchange, 2 ranks: what it sends depends on N"),
        ({"least_sent_bytes": 6}, "least_sent_bytes is 6, planned_sent_bytes is 7"),
        ({"table_sent_bytes": 6}, "table.traffic says 6 bytes, 7 were counted"),
        ({"table_bytes": 8}, "table_bytes is 8, planned_memory_bytes is 9"),
        ({"step_seconds": {"median": 1.6}}, "a step at N = 1,000 takes 1.60 times that at 10, more than 1.5"),
        ({"skipped": "too slow"}, "not measured at both N = 10 and 1,000"),
    ):
        failures = checks([fine[0], fine[1] | changed], [10, 1000], 1.5)["failures"]
        assert any(message in failure for failure in failures), (changed, failures)


def test_sharding_ends_ways_that_are_too_slow(bench):
    ends = bench("sharding").ends
    row = {"skipped": None, "step_seconds": {"median": 2.0}}
    assert ends(row, 1000, 2.0) is None
    assert ends(row, 1000, 1.5) == "at N = 1,000: a step takes 2.00 s, longer than 1.5"
    assert ends({"skipped": "needs memory"}, 1000, 9.0) == "at N = 1,000: needs memory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "3"], "--ranks must be positive and divide --batch 128, got 3"),
        (["--samples", "500", "--ranks", "4"], "--samples must be at least 512, a batch of 128 on 4 ranks"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_bad_options_of_sharding(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench("sharding").parse(["--device", "cpu", *arguments])
    assert message in capsys.readouterr().err


def train_every_way(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ways, device = importlib.import_module("sharding_ways"), torch.device("cpu")
    sizes = ways.Sizes(num_classes=5, batch=8, features=4, hidden=6, ranks=2)
    alphas = {}
    for way in ways.WAYS:
        draw = ways.Batches(sizes, rank, 30, aligned=True, device=device)
        subject = ways.build(way, 30, sizes, device)
        for _ in range(5):
            subject.step(draw())
        alphas[way.name] = subject.alpha().clone()
    torch.save(alphas, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.dist
def test_all_ways_of_sharding_train_the_same_alpha(bench, tmp_path):
    """A way that does less than the others is no measure of them."""
    pytest.importorskip("deepspeed")
    mp.spawn(train_every_way, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        alphas = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        expected = alphas["dense, DDP"]
        assert expected.abs().max() > 1e-3
        assert len(alphas) == 9
        for name, alpha in alphas.items():
            rounding = 1e-2 if "bf16" in name else 1e-5
            torch.testing.assert_close(alpha, expected, rtol=0, atol=rounding * float(expected.abs().max()))


DETECTION = [
    "--data",
    "digits",
    "--noise",
    "uniform",
    "--rates",
    "0.2",
    "--seeds",
    "0",
    "--train-limit",
    "220",
]


def test_detection_scores_every_method_and_resumes(bench, tmp_path, monkeypatch, capsys):
    for package in ("cleanlab", "aum", "sklearn", "pandas", "matplotlib"):
        pytest.importorskip(package)
    detection, runs = bench("detection"), bench("detection_runs")
    options = [
        *DETECTION,
        "--epochs",
        "3",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path),
        "--name",
        "d",
    ]
    assert detection.main([*options, "--trained"]) == 1
    assert "nothing of this is trained" in capsys.readouterr().err
    assert not (tmp_path / "d.json").exists()
    assert detection.main(options) == 0
    record = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    (cell,) = record["results"]
    assert (cell["data"], cell["noise"], cell["rate"], cell["seed"]) == ("digits", "uniform", 0.2, 0)
    assert list(cell["methods"]) == list(detection.METHODS)
    for row in cell["methods"].values():
        assert row["noise_rate"] == 0.2
        assert 0.5 < row["auroc"] <= 1
        assert row["precision"] == row["recall"]
        assert row["seconds"] > 0
    # The package and our dynamics have seen the same logits.
    package, ours = cell["methods"]["aum package"], cell["methods"]["AUM"]
    assert package["average_precision"] == pytest.approx(ours["average_precision"], abs=1e-3)
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "d.md").read_text(encoding="utf-8")
    assert "| uniform 20 % |" in text
    assert all(f" {name} " in text for name in detection.METHODS)
    # A second call trains nothing; another setting is not taken for the same.
    monkeypatch.setattr(
        runs, "PIECES", {name: lambda *args: pytest.fail("trained again") for name in runs.PIECES}
    )
    assert detection.main(options) == 0
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        detection.main([*options, "--epochs", "2"])


def test_detections_asymmetric_noise_is_between_alike_classes(bench):
    runs = bench("detection_runs")
    for name in ("digits", "fashion-mnist"):
        setting = runs.SETTINGS[name]
        if name == "fashion-mnist" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
            continue
        data = runs.load_cell(runs.Cell(name, "asymmetric", 0.2, 0), setting, None)
        confused = {(a, b) for group in setting.superclasses for a in group for b in group if a != b}
        wrong = data.given != data.truth
        assert set(zip(data.truth[wrong].tolist(), data.given[wrong].tolist(), strict=True)) <= confused
        affected = sum((data.truth == k).sum() for group in setting.superclasses for k in group)
        assert wrong.sum() == round(0.2 * affected)


def test_augment_as_a_user_runs_it(bench, tmp_path, capsys):
    pytest.importorskip("PIL")
    options = ["--sizes", "16x8", "100x2", "--policies", "none", "pba-cifar10", "--rounds", "2"]
    assert bench("augment").main([*options, "--device", "cpu", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "augment-cpu.json").read_text(encoding="utf-8"))
    rows = [(row["side"], row["images"], row["policy"], row["cutout"]) for row in record["results"]]
    kinds = [("none", 0), ("pba-cifar10", 0)]
    assert rows == [(s, n, *kind) for s, n in ((16, 8), (100, 2)) for kind in [*kinds, ("none", s // 2)]]
    out = capsys.readouterr().out
    for row in record["results"]:
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"]["median"])
        assert f"{row['images_per_second']:,.0f}" in out
    bench("augment_picture").main([str(tmp_path / "a.png"), "--columns", "2", "--side", "24"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        bench("augment").parse(["--sizes", "32"])
    assert "--sizes should be side and batch, such as 32x128" in capsys.readouterr().err


def test_recording_adds_nothing_for_the_host_to_do(bench, tmp_path, monkeypatch, capsys):
    """The package aum reads four values a sample; the loss with dynamics calls no operator more than without."""
    pytest.importorskip("aum")
    pytest.importorskip("fastac.cpu", reason="the native CPU backend is not built", exc_type=ImportError)
    monkeypatch.setenv("FASTAC_BACKEND", "cpu")  # the reference records by many operators
    recording = bench("recording")
    monkeypatch.setattr(recording, "SAMPLES", 700)  # the last batch is smaller
    options = ["--model", "cnn", "--rounds", "1", "--steps", "1", "--limit", "1e9", "--out", str(tmp_path)]
    assert recording.main(options) == 0
    record = json.loads((tmp_path / "recording-cpu.json").read_text(encoding="utf-8"))
    work = record["host_work"]
    assert work["recording in the loss"] == {"operators": 0, "reads": 0}
    assert work["TrainingDynamics.update"]["reads"] == 0
    assert work["compat.AUMCalculator, ids in a tensor"]["reads"] <= 3  # an epoch, not a sample
    assert work["package aum"]["reads"] >= 4 * 700
    assert list(work) == list(record["cost_seconds"]) == list(record["share_of_steps"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in work)
