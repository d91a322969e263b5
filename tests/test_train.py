"""fastac.train: what a run does and what it leaves behind."""

import json
import math
import platform
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import (
    assert_same_run,
    config,
    differences,
    final_state,
    linear,
    metrics,
    with_dropout,
    without_pictures,
)

import fastac.run
from fastac.config import Config, load_config
from fastac.data import Dataset, inject_noise, load_dataset
from fastac.engine import create_engine
from fastac.evaluation import evaluate
from fastac.issues import alpha_statistics
from fastac.issues.run_scores import rank_run
from fastac.job import Job
from fastac.metrics import Reading
from fastac.models import create_model
from fastac.report.offsets import centered_rows, top_offsets
from fastac.sharded import ShardedAlphaTable
from fastac.stopping import StopSignal
from fastac.table import AlphaTable
from fastac.train import grouped, main, train, train_step
from fastac.training_data import load_data


@pytest.fixture(autouse=True)
def _quick(request, monkeypatch):
    if "pictures" not in request.node.name:
        without_pictures(monkeypatch)


def job_of(configuration, create=linear) -> Job:
    return Job(configuration, create_engine(configuration), load_data(configuration), create)


def steps(job, count=None):
    """Train one epoch, or some steps of it."""
    batches = grouped(job.train_loader.epoch(0), job.config.optimizer.grad_accum_steps)
    for _, group in zip(range(count or 10**9), batches, strict=False):
        job.model.train()
        train_step(job, group)
    return job


# ---------------------------------------------------------------- the run folder


def test_a_run_leaves_its_folder_with_pictures_and_all(tmp_path, capsys):
    words = "--recipe demo --train-limit 150 --epochs 2 --warmup-epochs 0 --batch-size 50 --threads 1"
    words += " --device cpu --output"
    assert main([*words.split(), str(tmp_path)]) == 0
    printed = capsys.readouterr()
    folder = tmp_path / "demo-ac1-seed0"
    assert sorted(path.name for path in folder.iterdir()) == [
        "alpha.npz",
        "alpha.png",
        "checkpoints",
        "config.toml",
        "contact_sheet.png",
        "curves.png",
        "dynamics.csv",
        "environment.json",
        "history",
        "issues.csv",
        "labels.csv",
        "metrics.csv",
        "model.pt",
        "result.json",
        "scores.npz",
        "tensorboard",
    ]
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000003", "step-00000006"]
    labels = pd.read_csv(folder / "labels.csv")
    assert list(labels) == ["index", "given_label", "true_label"]
    clean = load_dataset("digits").train.labels[:150]
    noisy = inject_noise(clean, 10, kind="uniform", rate=0.2, seed=0)
    assert (labels.true_label == clean).all()
    assert (labels.given_label == noisy).all()
    assert (labels.given_label != labels.true_label).sum() == 30

    issues = pd.read_csv(folder / "issues.csv")
    assert sorted(issues["index"]) == list(range(150))
    assert {"given_label", "suggested_label", "is_label_issue", "label_quality", "max_rank"} <= set(issues)
    by_id = issues.sort_values("index")
    assert (by_id.given_label.to_numpy() == noisy).all()

    result = json.loads((folder / "result.json").read_text())
    assert (result["train_images"], result["test_images"], result["steps"]) == (150, 450, 6)
    assert result["detection"]["alpha"]["noise_rate"] == 0.2
    assert set(result["detection"]) == {"combined", "alpha", "aum"}
    assert float(metrics(folder)[-1]["test_accuracy"]) == pytest.approx(result["test_accuracy"], abs=1e-6)
    given = {
        "train_limit": 150,
        "epochs": 2,
        "warmup_epochs": 0.0,
        "batch_size": 50,
        "threads": 1,
        "device": "cpu",
    }
    assert load_config(str(folder / "config.toml")) == load_config("demo", given)
    stamp = (folder / "environment.json").read_text()
    assert platform.node() not in stamp or len(platform.node()) < 3
    stamp = json.loads(stamp)
    assert (stamp["ranks"], stamp["packages"]["torch"]) == (1, torch.__version__)

    assert f"test accuracy of the cleansed network: {result['test_accuracy']:.2%}" in printed.out
    assert f"{result['detection']['alpha']['auroc']:.4f}" in printed.out
    assert str(folder) in printed.out
    assert printed.out.rstrip().splitlines()[-1].split()[0] == "result.json"
    assert printed.err.count("epoch 1/2") == printed.err.count("epoch 2/2") == 1


def test_names_are_numbered_and_a_given_name_must_be_free(tmp_path):
    quick = config(tmp_path, max_steps=1, recipe="mine")
    for _ in range(3):
        train(quick, create=linear)
    names = ["mine-ac1-seed0", "mine-ac1-seed0-2", "mine-ac1-seed0-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    train(quick.with_values(name="one", recipe=None), create=linear)
    with pytest.raises(
        ValueError, match=r"name was 'one' and .*one exists; it should be a new name, or go on"
    ):
        train(quick.with_values(name="one"), create=linear)
    for name in ("a/b", "..", ""):
        with pytest.raises(ValueError, match="it should be one folder's name"):
            train(quick.with_values(name=name), create=linear)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "one"]


def test_git_state_is_of_the_packages_own_checkout_only(tmp_path):
    state = fastac.run.git_state(fastac.run.Path(fastac.run.__file__).parent)
    if state is not None:  # in a checkout
        assert len(state["revision"]) == 40
        assert isinstance(state["dirty"], bool)
    assert fastac.run.git_state(tmp_path) is None


def test_without_dynamics_or_alpha_there_is_no_ranking(tmp_path):
    result = train(config(tmp_path, name="run", loss="ce", dynamics=False), create=linear)
    assert (result["issues"], result["issues_by"], result["detection"]) == (None, None, {})
    assert not (tmp_path / "run" / "issues.csv").exists()
    assert not (tmp_path / "run" / "dynamics.csv").exists()


@pytest.mark.parametrize(("loss", "by"), [("ce", []), ("ac1", ["alpha"]), ("ac2", ["alpha"])])
def test_each_loss_trains_and_ranks(tmp_path, loss, by):
    result = train(config(tmp_path, name="run", loss=loss, epochs=12, issues_percent=10), create=linear)
    assert result["issues_by"] == "combined"
    assert list(result["detection"]) == ["combined", *by, "aum"]
    written = pd.read_csv(tmp_path / "run" / "issues.csv")
    assert (
        rank_run(tmp_path / "run", method="combined", percent=10)["index"].tolist()
        == written["index"].tolist()
    )
    again = rank_run(tmp_path / "run", method=by[0] if by else "aum", percent=10)
    assert again["is_label_issue"].sum() == 19
    assert result["issues"] == 19  # 10 % of 193
    assert result["test_accuracy"] > 0.6
    assert result["detection"]["aum"]["auroc"] > 0.8
    dynamics = pd.read_csv(tmp_path / "run" / "dynamics.csv")
    assert (dynamics["count"] == 12).all()
    losses = [float(row["train_loss"]) for row in metrics(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


# ---------------------------------------------------------------- one step


def test_one_step_of_cross_entropy_is_sgds(tmp_path):
    start = config(tmp_path, loss="ce", weight_decay=0.01, warmup_epochs=0.0)
    reference = job_of(start).network
    batch = next(job_of(start).train_loader.epoch(0))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    F.cross_entropy(reference(batch.images), batch.target).backward()
    reference[1].weight.grad += 0.01 * reference[1].weight.detach()  # biases don't decay
    optimizer.step()
    job = steps(job_of(start), 1)
    for mine, theirs in zip(job.network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", ["ac1", "ac2"])
def test_accumulated_batches_are_one_large_batch(tmp_path, loss):
    """Also where the last group is of another size: 193 images are 6 batches of 32, the last with 33."""
    large = steps(job_of(config(tmp_path, loss=loss, batch_size=128, augment="none")))
    small = steps(job_of(config(tmp_path, loss=loss, batch_size=32, grad_accum_steps=4, augment="none")))
    assert large.position == small.position  # train_step leaves it alone
    assert (large.steps_per_epoch, small.steps_per_epoch) == (2, 2)
    for mine, theirs in zip(small.network.parameters(), large.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert large.table.dense().abs().max() > 1e-3
    torch.testing.assert_close(small.table.dense(), large.table.dense(), rtol=1e-5, atol=1e-8)
    assert differences(small.dynamics.count, large.dynamics.count) == []


def test_update_forward_gives_what_update_step_gives(tmp_path):
    one = steps(job_of(config(tmp_path, update="step")))
    other = steps(job_of(config(tmp_path, update="forward")))
    torch.testing.assert_close(one.table.dense(), other.table.dense(), rtol=1e-5, atol=1e-8)
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_clipping_is_of_the_network_only(tmp_path):
    free = steps(job_of(config(tmp_path, weight_decay=0.0)), 1)
    start = [p.clone() for p in job_of(config(tmp_path)).network.parameters()]
    clipped = steps(job_of(config(tmp_path, clip_grad=1e-6, weight_decay=0.0)), 1)
    assert torch.equal(free.table.dense(), clipped.table.dense())
    moved = torch.cat([(p - q).flatten() for p, q in zip(clipped.network.parameters(), start, strict=True)])
    lr = clipped.config.optimizer.lr * clipped._lr_factor(0)
    assert float(moved.detach().norm()) == pytest.approx(
        1e-6 * lr * 1.9, rel=0.05
    )  # 1.9: Nesterov's first step


def test_channels_last_is_the_same_training_and_resumes_to_the_same_bits(tmp_path):
    usual = train(config(tmp_path, name="usual"), create=with_dropout)
    options = {"channels_last": True}
    whole = train(config(tmp_path, name="whole", **options), create=with_dropout)
    job = job_of(config(tmp_path, model="cnn", **options), create_model)
    assert any(not p.is_contiguous() for p in job.network.parameters())
    assert job.in_format(torch.zeros(2, 3, 4, 4)).stride() == (48, 1, 12, 3)
    assert whole["test_loss"] == pytest.approx(usual["test_loss"], rel=1e-3)
    train(config(tmp_path, name="parts", max_steps=8, **options), create=with_dropout)
    train(config(tmp_path, name="parts", **options), resume=True, create=with_dropout)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_short_run_says_so(tmp_path, capsys):
    result = train(config(tmp_path, name="short", epochs=20, short=0.1), create=with_dropout)
    assert (result["epochs"], result["short"]) == (2, 0.1)
    assert "(× 0.1 of the epochs)" in capsys.readouterr().out
    assert "short = 0.1" in (tmp_path / "short" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("values", "ranks", "message"),
    [
        ({"cuda_graphs": True, "device": "auto", "drop_last": True}, 1, "cuda_graphs was true on 1 × cpu"),
        ({"sync_bn": True}, 2, "sync_bn was true on cpu; it should be false there: SyncBatchNorm needs CUDA"),
    ],
)
def test_what_needs_a_gpu(tmp_path, monkeypatch, values, ranks, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    configuration = config(tmp_path, **values)
    engine = create_engine(configuration)
    engine.world_size = ranks
    with pytest.raises(ValueError, match=message):
        Job(configuration, engine, load_data(configuration), with_dropout)


class NoReading(TorchDispatchMode):
    """Fails where a value is read by the host, which on a GPU would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        ), f"{func} reads a value"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_grad": 1.0, "model_ema": True, "channels_last": True, "amp_dtype": "bf16"}],
)
def test_the_trainers_own_step_reads_no_value(tmp_path, options):
    """Without α, whose CPU backends check ids by reading them; tests/test_gpu.py has the whole step on a GPU."""
    job = job_of(config(tmp_path, loss="ce", dynamics=False, **options), with_dropout)
    batches = list(grouped(job.train_loader.epoch(0), 1))
    job.model.train()
    train_step(job, batches[0])
    with NoReading():
        train_step(job, batches[1])
        Reading(job.meter.totals)
    with pytest.raises(AssertionError, match="reads a value"), NoReading():
        float(job.meter.totals[0])


@pytest.mark.parametrize("amp_dtype", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path, amp_dtype):
    plain = train(config(tmp_path, name="fp32", epochs=4), create=with_dropout)
    mixed = train(config(tmp_path, name="amp", epochs=4, amp_dtype=amp_dtype), create=with_dropout)
    assert mixed["test_accuracy"] == pytest.approx(plain["test_accuracy"], abs=0.08)
    scaler = final_state(tmp_path / "amp")["network"]["scaler"]
    assert (scaler is None) == (amp_dtype == "bf16")
    alpha = final_state(tmp_path / "amp")["table"]["alpha"]
    torch.testing.assert_close(alpha, final_state(tmp_path / "fp32")["table"]["alpha"], rtol=0.3, atol=0.02)


def test_an_overflow_leaves_network_and_alpha_alone_and_the_schedule_goes_on(tmp_path):
    job = job_of(config(tmp_path, amp_dtype="fp16"))
    steps(job, 1)
    before = [p.clone() for p in job.network.parameters()], job.table.dense()
    batch = next(job.train_loader.epoch(0))
    job.engine.scaler._scale.fill_(1e38)
    train_step(job, [batch])
    assert differences(before[0], list(job.network.parameters())) == []
    assert torch.equal(before[1], job.table.dense())
    assert job.scheduler.last_epoch == 2
    assert job.engine.scaler.get_scale() < 1e38


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ac1", "ce"])
def test_torch_compile_gives_the_same_steps(tmp_path, loss):
    eager = steps(job_of(config(tmp_path, loss=loss)))
    compiled = steps(job_of(config(tmp_path, loss=loss, torchcompile=True)))
    for mine, theirs in zip(compiled.network.parameters(), eager.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    if loss == "ac1":
        torch.testing.assert_close(compiled.table.dense(), eager.table.dense(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(compiled.dynamics.aum, eager.dynamics.aum, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- the loop


def test_the_schedules_rates_are_in_the_metrics(tmp_path):
    train(
        config(tmp_path, name="run", schedule="multistep", milestones=[1, 2], warmup_epochs=0.0),
        create=linear,
    )
    assert [row["lr"] for row in metrics(tmp_path / "run")] == ["0.1", "0.01", "0.001"]
    train(config(tmp_path, name="cosine", warmup_epochs=0.0), create=linear)
    expected = [0.05 * (1 + math.cos(math.pi * step / 18)) for step in (5, 11, 17)]
    assert [float(row["lr"]) for row in metrics(tmp_path / "cosine")] == pytest.approx(expected, rel=1e-5)


def test_alpha_follows_the_networks_rate(tmp_path):
    """A row that no batch held decays with the schedule's rates: the table saw each of them."""
    job = job_of(config(tmp_path, alpha_weight_decay=0.5, momentum=0.0, nesterov=False, warmup_epochs=0.0))
    job.table.alpha[:] = 1.0
    job.table.alpha[:, 0] = 0.0
    group = next(grouped(job.train_loader.epoch(0), 1))
    for _ in range(6):
        train_step(job, group)
    untouched = np.setdiff1d(np.arange(193), group[0].index.numpy())
    expected = math.prod(1 - 0.5 * 0.1 * job._lr_factor(step) for step in range(6))
    alpha = job.table.dense()[untouched]
    torch.testing.assert_close(alpha[:, 1:], torch.full_like(alpha[:, 1:], expected), rtol=1e-5, atol=0)


def test_the_test_counts_each_image_once(tmp_path):
    job = job_of(config(tmp_path, batch_size=64))
    found = evaluate(job, job.test_loader, job.network, "test", StopSignal())
    test = job.data.dataset.test
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (job.train_loader.mean, job.train_loader.std))
    images = (torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255 - mean) / std
    logits = job.network.eval()(images.float()).detach()
    target = torch.from_numpy(test.labels)
    assert found.figures.rows == 450
    assert found.figures.accuracy == pytest.approx(
        float((logits.argmax(1) == target).float().mean()), abs=1e-9
    )
    assert found.figures.loss == pytest.approx(float(F.cross_entropy(logits, target)), rel=1e-5)
    assert torch.equal(found.predictions, logits.argmax(1))


def test_drop_last_leaves_the_rest_out(tmp_path):
    train(config(tmp_path, name="run", batch_size=64, drop_last=True, epochs=2), create=linear)
    state = final_state(tmp_path / "run")
    assert state["position"]["step"] == 6
    assert int(state["dynamics"]["count"].sum()) == 6 * 64


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(tmp_path, name=name, seed=seed), create=with_dropout)
    a, b, c = (final_state(tmp_path / name) for name in "abc")
    assert differences(a, b) == []
    assert "/network/model/0.weight" in differences(a, c)


def test_a_data_set_without_a_test_split(tmp_path, monkeypatch):
    whole = load_dataset("digits")
    monkeypatch.setattr(
        "fastac.training_data.load_dataset", lambda *a, **k: Dataset("digits", whole.train, None)
    )
    result = train(config(tmp_path, name="run"), create=linear)
    assert result["test_accuracy"] is None
    assert metrics(tmp_path / "run")[-1]["test_accuracy"] == ""


# ---------------------------------------------------------------- labels


def test_a_label_file_with_the_data_sets_labels_as_the_truth(tmp_path):
    clean = load_dataset("digits").train.labels
    worse = inject_noise(clean, 10, kind="pair", rate=0.3, seed=5)
    np.savez(tmp_path / "human.npz", worse_label=worse, clean_label=clean)
    changes = {
        "noise": "none",
        "noise_rate": 0.0,
        "labels": "human.npz:worse_label",
        "label_truth": "dataset",
        "data_dir": str(tmp_path),
    }
    result = train(config(tmp_path, name="run", **changes), create=linear)
    labels = pd.read_csv(tmp_path / "run" / "labels.csv")
    assert (labels.given_label == worse[:193]).all()
    assert (labels.true_label == clean[:193]).all()
    assert result["detection"]["alpha"]["noise_rate"] == pytest.approx((worse != clean)[:193].mean())
    unknown = train(config(tmp_path, name="two", **{**changes, "label_truth": "none"}), create=linear)
    assert unknown["detection"] == {}
    assert list(pd.read_csv(tmp_path / "two" / "labels.csv")) == ["index", "given_label"]


def test_noise_on_top_of_a_label_file_counts_the_files_labels_as_the_truth(tmp_path):
    np.save(tmp_path / "zeros.npy", np.zeros(1347, np.int64))
    data = load_data(config(tmp_path, labels=str(tmp_path / "zeros.npy")))
    assert (data.truth == 0).all()
    assert (data.given != 0).sum() == round(0.2 * 193)
    data = load_data(config(tmp_path, labels=str(tmp_path / "zeros.npy"), label_truth="dataset"))
    assert (data.truth == load_dataset("digits").train.labels[:193]).all()


def test_samples_left_out_of_training_keep_their_ids_and_their_alpha_of_zero(tmp_path):
    left_out = [3, 50, 192]
    np.save(tmp_path / "out.npy", np.array(left_out))
    run = config(tmp_path, name="run", exclude=str(tmp_path / "out.npy"))
    train(run, create=linear)
    dynamics = pd.read_csv(tmp_path / "run" / "dynamics.csv").set_index("index")
    assert (dynamics["count"] == 3).sum() == 190
    assert dynamics.index[dynamics["count"] == 0].tolist() == left_out
    state = final_state(tmp_path / "run")
    touched = state["table"]["alpha"].abs().amax(dim=1) > 0
    assert (~touched).nonzero().flatten().tolist() == left_out
    issues = pd.read_csv(tmp_path / "run" / "issues.csv").set_index("index")
    assert len(issues) == 193
    assert not issues.loc[left_out, "is_label_issue"].any()
    np.save(tmp_path / "out.npy", np.array(left_out[:2]))
    with pytest.raises(ValueError, match="the training labels are not the checkpoint's"):
        train(run, resume=True, create=linear)
    np.save(tmp_path / "out.npy", np.arange(190))
    with pytest.raises(ValueError, match=r"together; it should be at most 3 together, the training images"):
        train(run.with_values(name="other", drop_last=True), create=linear)
    with pytest.raises(FileNotFoundError, match="there is no file of ids"):
        load_data(run.with_values(exclude=str(tmp_path / "none.npy")))


def test_a_label_file_of_the_samples_within_the_limit(tmp_path):
    labels = np.arange(193) % 10
    np.save(tmp_path / "labels.npy", labels)
    data = load_data(config(tmp_path, labels=str(tmp_path / "labels.npy"), noise="none", noise_rate=0.0))
    assert (data.given == labels).all()
    assert len(data.dataset.train) == 193
    np.save(tmp_path / "labels.npy", labels[:192])
    with pytest.raises(ValueError, match="has 192 labels; it should have 1347"):
        load_data(config(tmp_path, labels=str(tmp_path / "labels.npy")))


def one_line_error(capsys, words) -> str:
    capsys.readouterr()
    assert main(words) == 2
    text = capsys.readouterr().err
    assert text.startswith("fastac.train: error: ")
    assert text.count("\n") == 1
    return text


def test_a_label_file_of_another_length_leaves_no_folder(tmp_path, capsys):
    np.save(tmp_path / "short.npy", np.zeros(100, np.int64))
    output = tmp_path / "runs"
    words = ["--recipe", "digits", "--labels", str(tmp_path / "short.npy"), "--output", str(output)]
    text = one_line_error(capsys, words)
    assert "short.npy has 100 labels; it should have 1347, one a training sample" in text
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe digit", "recipe was 'digit'; it should be"),
        ("--epochz 3", "there is no option --epochz; did you mean --epochs?"),
        ("--recipe digits --lr -1", "lr was -1.0; it should be above 0"),
        ("--recipe digits --dataset digit", "did you mean 'digits'?"),
        ("--recipe digits --model resnet3", "unknown model 'resnet3'"),
        ("--recipe digits --labels none.npy", "there is no label file none.npy"),
        ("--recipe cifar10-resnet32", "cifar10 needs data_dir (--data-dir)"),
        (
            "--recipe digits --batch-size 2000 --drop-last",
            "batch_size was 2000 on 1 rank(s), 2000 together; it should be at most 1347 together",
        ),
        ("--recipe digits --model wrn-41-2", "unknown model 'wrn-41-2': depth is 41; it should be 6n+4"),
        ("--recipe digits --learning-rate 1", "there is no option --learning-rate; did you mean --lr?"),
        (
            "--recipe cifar10-resnet32 --epochs 200",
            "milestones was [150, 225] with epochs 200; each should be",
        ),
        ("--recipe digits --noise asymmetric --noise-rate 0.1", "asymmetric noise is defined for cifar10"),
    ],
)
def test_a_users_error_is_one_line_and_leaves_no_folder(tmp_path, capsys, words, message):
    output = tmp_path / "runs"
    assert message in one_line_error(capsys, [*words.split(), "--output", str(output)])
    assert not output.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(tmp_path, capsys):
    text = one_line_error(
        capsys, ["--recipe", "digits", "--device", "cuda", "--output", str(tmp_path / "runs")]
    )
    assert "device was 'cuda'; it should be 'cpu' or 'auto' here" in text


def test_fastac_debug_shows_where_an_error_is_from(monkeypatch):
    monkeypatch.setenv("FASTAC_DEBUG", "1")
    with pytest.raises(ValueError, match="recipe was 'digit'"):
        main(["--recipe", "digit"])


@pytest.mark.parametrize(
    ("module", "extra"), [("tensorboard", "train"), ("tomli_w", "train"), ("matplotlib", "report")]
)
def test_a_missing_optional_package_is_found_before_the_start(tmp_path, capsys, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    output = tmp_path / "runs"
    text = one_line_error(capsys, ["--recipe", "digits", "--output", str(output), "--threads", "1"])
    assert f"fastac needs {module} for this" in text
    assert f"pip install 'autocleansing[{extra}]'" in text
    assert not output.exists()


# ---------------------------------------------------------------- image folders


@pytest.fixture
def folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for label in ("cat", "dog"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 100, (16, 16, 3), np.uint8) + (100 if label == "dog" else 0)
                path = tmp_path / "images" / split / label / f"{number}.png"
                image.fromarray(pixels.astype(np.uint8)).save(path)
    bad = tmp_path / "images" / "train" / "dog" / "5.png"
    bad.write_bytes(b"no image")
    return bad


def folder_config(tmp_path, **changes) -> Config:
    settings = {
        "dataset": "folder",
        "data_dir": str(tmp_path / "images"),
        "image_size": 16,
        "train_limit": None,
    }
    settings |= {"noise": "none", "noise_rate": 0.0, "batch_size": 4, "model": "cnn"}
    return config(tmp_path / "runs", name="run", **{**settings, **changes})


def test_an_unreadable_image_stops_the_run_with_its_path(tmp_path, folder_of_images):
    with pytest.raises(ValueError, match=f"cannot decode the image {folder_of_images}"):
        train(folder_config(tmp_path))


def test_an_unreadable_image_is_left_out_and_listed(tmp_path, folder_of_images, capsys):
    result = train(folder_config(tmp_path, on_bad_image="skip"))
    names = sorted(path.name for path in folder_of_images.parent.iterdir())
    bad = 12 + names.index("5.png")
    assert result["unreadable_images"] == ["dog/5.png"]
    assert "unreadable images, left out: 1" in capsys.readouterr().out
    dynamics = pd.read_csv(tmp_path / "runs" / "run" / "dynamics.csv")
    assert dynamics["count"].tolist() == [0 if index == bad else 3 for index in range(24)]
    assert float(metrics(tmp_path / "runs" / "run")[-1]["train_loss"]) < 0.7
    issues = pd.read_csv(tmp_path / "runs" / "run" / "issues.csv").set_index("index")
    assert issues["path"][bad] == "dog/5.png"
    assert issues["path"][0] == "cat/0.png"


def test_the_contact_sheet_has_readable_images_only(tmp_path, folder_of_images, monkeypatch):
    shown = []
    monkeypatch.setattr("fastac.run.contact_sheet", lambda samples, issues, out, **more: shown.append(issues))
    folder_of_images.with_name("6.png").write_bytes(b"no image")
    train(folder_config(tmp_path, on_bad_image="skip", epochs=1))
    issues = pd.read_csv(tmp_path / "runs" / "run" / "issues.csv")
    readable = [path for path in issues["path"] if path not in ("dog/5.png", "dog/6.png")]
    assert shown[0]["path"].tolist() == readable[:20]


def test_an_image_that_goes_bad_in_training_does_not_cost_the_pictures(
    tmp_path, folder_of_images, monkeypatch, caplog
):
    folder_of_images.unlink()
    bad = folder_of_images.with_name("6.png")

    def spoiled(*rest):
        found = evaluate(*rest)
        bad.write_bytes(b"no image")
        return found

    monkeypatch.setattr("fastac.train.evaluate", spoiled)  # the last thing that a run reads images for
    result = train(folder_config(tmp_path, epochs=1))
    assert result["unreadable_images"] == []
    sheet = tmp_path / "runs" / "run" / "contact_sheet.png"
    message = f'{sheet} has "no image" for 1 image that cannot be read: cannot decode the image {bad}'
    assert message in caplog.text
    assert sheet.is_file()


def test_no_pictures_of_noise(tmp_path, folder_of_images, capsys, monkeypatch):
    """With the loader "synthetic" no image is read, not even at the end: here none could be."""
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    result = train(folder_config(tmp_path, loader="synthetic", epochs=1))
    assert (result["loader"], result["unreadable_images"]) == ("synthetic", [])
    printed = capsys.readouterr().out
    reason = "no contact sheet: the loader was synthetic, so the network has seen noise and no image was read"
    assert reason in printed
    files = {path.name for path in (tmp_path / "runs" / "run").iterdir()}
    assert {"issues.csv", "alpha.png", "curves.png", "result.json"} <= files
    assert "contact_sheet.png" not in files
    assert "contact_sheet.png" not in printed


def test_a_batch_of_unreadable_images_only_changes_nothing_but_time(tmp_path, folder_of_images):
    """Its mean loss has no rows: no NaN may come of it."""
    for label in ("cat", "dog"):
        for path in (tmp_path / "images" / "train" / label).iterdir():
            if path.name != "0.png":
                path.write_bytes(b"no image")
    result = train(folder_config(tmp_path, on_bad_image="skip", batch_size=2, epochs=2))
    assert len(result["unreadable_images"]) == 22
    state = final_state(tmp_path / "runs" / "run")
    assert all(value.isfinite().all() for value in state["network"]["model"].values())
    assert state["table"]["alpha"].isfinite().all()


def test_images_too_small_for_the_network_are_refused(tmp_path, capsys):
    images, labels = np.zeros((64, 4, 4), np.uint8), np.arange(64) % 2
    np.savez(tmp_path / "small.npz", images=images, labels=labels)
    words = ["--dataset", "npz", "--data-dir", str(tmp_path / "small.npz"), "--batch-size", "8"]
    message = one_line_error(capsys, [*words, "--output", str(tmp_path / "runs")])
    assert "model was 'cnn', which can't take images of 4×4 pixels" in message
    assert not (tmp_path / "runs").exists()


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    message = one_line_error(capsys, ["--recipe", "digits", "--output", str(tmp_path / "file")])
    assert f"output was '{tmp_path / 'file'}'; it should be a folder that can be written to" in message


def test_a_label_file_that_is_nowhere_names_both_places(tmp_path, capsys):
    words = ["--recipe", "digits", "--data-dir", str(tmp_path), "--labels", "none.npy"]
    message = one_line_error(capsys, [*words, "--output", str(tmp_path / "runs")])
    assert f"there is no label file none.npy, nor is it in data_dir, {tmp_path}" in message


def test_the_pictures_name_data_network_and_loss(tmp_path, monkeypatch):
    titles = {}
    for name in ("plot_curves", "plot_alpha", "contact_sheet"):
        monkeypatch.setattr(
            f"fastac.run.{name}", lambda *a, _name=name, title, **more: titles.update({_name: title})
        )
    train(config(tmp_path, name="run", epochs=1, loss="ac1", seed=3))
    assert titles == {
        "plot_curves": "digits, cnn, ac1, seed 3: accuracy and loss",
        "plot_alpha": "digits, cnn, ac1, seed 3: α of the given labels",
        "contact_sheet": "digits, cnn, ac1, seed 3: the most suspicious labels, by AUM and probabilities",
    }


@pytest.mark.parametrize("options", [{}, {"loss": "ac2"}, {"alpha_storage": "host", "dynamics": False}])
def test_the_labels_are_ranked_without_a_copy_of_the_table(tmp_path, monkeypatch, options):
    sheets = []
    monkeypatch.setattr("fastac.run.contact_sheet", lambda *a, alpha, **more: sheets.append(alpha))
    with monkeypatch.context() as patch:
        for kind, name in (
            (AlphaTable, "dense"),
            (ShardedAlphaTable, "dense"),
            (ShardedAlphaTable, "gather"),
        ):
            patch.setattr(kind, name, lambda *a: pytest.fail("the whole table was copied"))
        train(config(tmp_path, name="run", epochs=1, **options), create=linear)
    state, form = final_state(tmp_path / "run")["table"], options.get("loss", "ac1")
    table = AlphaTable(193, 10, form=form, momentum=0.9, nesterov=True)
    table.load_state_dict(state)
    alpha, given = table.dense(), load_data(config(tmp_path)).given
    stored = np.load(tmp_path / "run" / "scores.npz")
    for name, values in alpha_statistics(alpha, given).arrays().items():
        np.testing.assert_array_equal(stored[name], values)
    issues = pd.read_csv(tmp_path / "run" / "issues.csv")
    ids, named = issues["index"].to_numpy(), issues[["given_label", "suggested_label"]].to_numpy(np.int64)
    top = top_offsets(alpha, ids, named, num_samples=193, num_classes=10)
    assert (tmp_path / "run" / "alpha.npz").exists() == (form == "ac1")
    if top is not None:
        stored = np.load(tmp_path / "run" / "alpha.npz")
        for name in ("index", "classes", "values"):
            np.testing.assert_array_equal(stored[name], getattr(top, name))
    if "dynamics" in options:  # only then does the sheet have bars
        np.testing.assert_array_equal(sheets[0].index, ids[:20])
        np.testing.assert_array_equal(sheets[0].values, centered_rows(alpha, ids[:20], 193, 10))
    else:
        assert sheets == [None]


def test_the_last_epochs_test_is_not_repeated(tmp_path, monkeypatch):
    tested = []

    def counting(job, loader, *rest):
        tested.append("test" if loader is job.test_loader else "train")
        return evaluate(job, loader, *rest)

    monkeypatch.setattr("fastac.train.evaluate", counting)
    monkeypatch.setattr("fastac.evaluation.evaluate", counting)
    result = train(config(tmp_path, name="run", epochs=2))
    assert tested == ["test", "test", "train"]
    assert result["test_accuracy"] == pytest.approx(
        float(metrics(tmp_path / "run")[-1]["test_accuracy"]), abs=1e-5
    )


@pytest.mark.parametrize("loss", ["ac1", "ac2", "ce"])
def test_without_predictions_labels_are_suggested_by_alpha_alone(tmp_path, capsys, loss):
    whole = train(config(tmp_path, name="whole", epochs=2, loss=loss))
    capsys.readouterr()
    result = train(config(tmp_path, name="run", epochs=2, loss=loss, predict_train=False))
    printed, run = capsys.readouterr().out, tmp_path / "run"
    source = "suggested labels are α's" if loss == "ac1" else "no labels are suggested"
    assert f"the network was not asked for the training images (--no-predict-train): {source}" in printed
    assert [result[name] for name in ("train_accuracy", "train_accuracy_on_truth")] == [None, None]
    assert (whole["predict_train"], result["predict_train"]) == (True, False)
    assert whole["train_accuracy"] is not None
    assert result["test_accuracy"] == whole["test_accuracy"]
    issues, others = (pd.read_csv(tmp_path / name / "issues.csv") for name in ("run", "whole"))
    suggested, others = issues.pop("suggested_label"), others.drop(columns="suggested_label")
    names, others = issues.pop("suggested_class"), others.drop(columns="suggested_class")
    pd.testing.assert_frame_equal(issues, others)  # the ranking needs no predictions
    stored = np.load(run / "scores.npz")
    assert not {"predictions", "others"} & set(stored.files)
    if loss == "ac1":
        np.testing.assert_array_equal(suggested, stored["alpha_rival"][issues["index"]])
        assert (suggested != issues["given_label"]).all()
        assert 0 < result["detection"]["combined"]["suggestion_accuracy"] <= 1
    else:
        assert suggested.isna().all()
        assert names.isna().all()
        assert math.isnan(result["detection"]["combined"]["suggestion_accuracy"])
        assert printed.split("right suggestions\n")[1].split("\n")[0].endswith("   none")
    again = rank_run(run, method="combined")
    written = rank_run(run)
    pd.testing.assert_frame_equal(again[list(issues)], written[list(issues)], check_dtype=False)
    np.testing.assert_array_equal(again["suggested_label"], written["suggested_label"])
    assert rank_run(run, method="confidence", percent=3)["is_label_issue"].sum() == 6


def test_predictions_can_be_made_later(tmp_path):
    train(config(tmp_path, name="whole", epochs=1))
    train(config(tmp_path, name="run", epochs=1, predict_train=False))
    assert main(["--resume", str(tmp_path / "run"), "--predict-train", "--no-progress"]) == 0
    for name in ("issues.csv", "scores.npz", "alpha.npz", "dynamics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    result, whole = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole"))
    assert result["train_accuracy"] == whole["train_accuracy"]
    assert result["detection"] == whole["detection"]


def test_without_predictions_unreadable_images_are_those_that_training_met(tmp_path, folder_of_images):
    options = {"on_bad_image": "skip", "predict_train": False, "epochs": 2}
    result = train(folder_config(tmp_path, **options, max_steps=6))
    assert result["unreadable_images"] == ["dog/5.png"]
    state = final_state(tmp_path / "runs" / "run")
    names = sorted(path.name for path in folder_of_images.parent.iterdir())
    assert state["unreadable"] == [12 + names.index("5.png")]
    folder = tmp_path / "images" / "train"
    images = [path for path in folder.rglob("*.png") if path != folder_of_images]
    folder_of_images.write_bytes(images[0].read_bytes())
    images[-1].write_bytes(b"no image")
    configuration = folder_config(tmp_path, **options)
    result = train(configuration, resume=True)  # what was met before is not forgotten
    last = images[-1].relative_to(folder)
    assert result["unreadable_images"] == sorted(["dog/5.png", str(last)])


def test_best_labels_other_than_the_given_ones(tmp_path):
    job = job_of(config(tmp_path, batch_size=64))
    found = evaluate(job, job.given_loader, job.network, "train", StopSignal())
    assert (found.others != torch.from_numpy(job.data.given)).all()
    differs = found.predictions != torch.from_numpy(job.data.given)
    assert differs.any()
    assert torch.equal(found.others[differs], found.predictions[differs])
