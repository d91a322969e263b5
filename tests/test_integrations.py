"""Other people's trainers, each beside a loop written out by hand with α as a dense parameter."""

import copy
import importlib
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import cross_entropy

import fastac
from fastac.integrations import Cleansing, WithIds, decode, encode, follow

N, K, BATCH, ALPHA_DECAY = 20, 3, 4, 1e-2  # five batches an epoch


@pytest.fixture(autouse=True)
def _quiet():
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 4, generator=generator), torch.randint(K, (N,), generator=generator)


def network():
    torch.manual_seed(7)
    return torch.nn.Linear(4, K)


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)


def adam(net):
    return torch.optim.AdamW(net.parameters(), lr=0.02)


def halving(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def by_hand(steps, make_optimizer, alpha_lr=None, labels=None):
    """Train with dense α. steps: lists of (ids, factor), the backward passes of one optimizer step, each of the mean
    loss times a factor. Returns weight, α, margins by sample."""
    net, (inputs, given) = network(), data()
    labels = given if labels is None else labels
    alpha = torch.nn.Parameter(torch.zeros(N, K))
    optimizer = make_optimizer(net)
    follows = alpha_lr is None
    own = torch.optim.SGD([alpha], lr=0.2 if follows else alpha_lr, momentum=0.9, weight_decay=ALPHA_DECAY)
    schedulers = [halving(optimizer), halving(own)]
    margins = [[] for _ in range(N)]
    for passes in steps:
        for ids, factor in passes:
            logits = net(inputs[ids])
            (cross_entropy(logits + alpha[ids], labels[ids]) * factor).backward()
            for m, y, n in zip(logits.tolist(), labels[ids].tolist(), ids.tolist(), strict=True):
                if y >= 0:
                    margins[n].append(m[y] - max(m[:y] + m[y + 1 :]))
        alpha.grad[:, 0] = 0
        for step in (optimizer, own):
            step.step()
            step.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
    return net.weight.detach(), alpha.detach(), [np.mean(m) if m else np.nan for m in margins]


def check(cleansing, net, truth):
    weight, alpha, aum = truth
    assert alpha.abs().max() > 0.1
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cleansing.table.dense(), alpha, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cleansing.dynamics.aum.numpy(), aum, rtol=1e-4, atol=1e-6)


def in_order(epochs, accumulate=1, divide_by=None):
    """The steps of epochs without shuffling, the last of an epoch with what is left."""
    ids = torch.arange(N).split(BATCH)
    for _ in range(epochs):
        for group in batched(ids, accumulate):
            yield [(part, 1 / (divide_by or len(group))) for part in group]


def batched(items, size):
    return (items[start : start + size] for start in range(0, len(items), size))


# ---- ids inside labels


def test_labels_carry_ids():
    target, index = torch.tensor([0, 2, -100, 1]), torch.tensor([0, 5, 6, 10**9])
    coded = encode(target, index, K)
    assert (coded[[0, 1, 3]] >= K).all()
    assert coded[2] == -100
    assert torch.equal(decode(coded, K)[0], target)
    assert decode(coded, K)[1].tolist() == [0, 5, 0, 10**9]
    assert decode(torch.tensor([2]), K)[1].tolist() == [-1]  # no id: no table has this row


@pytest.mark.parametrize("workers", [0, 2])
def test_a_datasets_ids_outlive_subsets_and_workers(workers):
    inputs, labels = data()
    items = [{"x": x, "label": int(y)} for x, y in zip(inputs, labels, strict=True)]
    subset = torch.utils.data.Subset(WithIds(items, K), range(3, N, 2))
    loader = torch.utils.data.DataLoader(subset, batch_size=4, shuffle=True, num_workers=workers)
    seen = []
    for batch in loader:
        target, index = decode(batch["label"], K)
        assert torch.equal(target, labels[index])
        assert torch.equal(batch["x"], inputs[index])
        seen += index.tolist()
    assert sorted(seen) == list(range(3, N, 2))


def test_items_of_a_dataset():
    tuples = WithIds([(0.5, 1, "more"), [0.5, torch.tensor(2)]], K)
    assert tuples[0] == (0.5, 4, "more")
    assert tuples[1] == [0.5, torch.tensor(8)]
    assert tuples[-1][1] == 8
    assert WithIds([{"labels": -100}], K)[0] == {"labels": -100}
    assert len(copy.deepcopy(tuples)) == 2
    base = torch.utils.data.TensorDataset(torch.zeros(1))
    WithIds(base, K).transform = str  # as timm sets it
    assert base.transform is str
    for items, error, message in (
        ([(0, K)], ValueError, r"the label of item 0 must be in \[0, 3\), got 3"),
        ([(0, 0.5)], ValueError, "got 0.5"),
        ([{"text": 1}], KeyError, "neither 'labels' nor 'label', only"),
    ):
        with pytest.raises(error, match=message):
            WithIds(items, K)[0]
    with pytest.raises(TypeError, match="must be a map-style dataset"):
        WithIds(iter([]), K)


# ---- any optimizer


def test_adam_beside_alpha():
    net, (inputs, labels) = network(), data()
    optimizer = adam(net)
    scheduler = halving(optimizer)
    cleansing = Cleansing(N, K, table={"weight_decay": ALPHA_DECAY})
    cleansing.follow(optimizer, lr=3.0)
    for ((ids, _),) in in_order(4):
        cleansing.loss(net(inputs[ids]), encode(labels[ids], ids, K)).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    check(cleansing, net, by_hand(in_order(4), adam, alpha_lr=3.0))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips(fused):
    """AdamW, plain and with the unscaling in its own step, beside a loop that leaves the step out."""
    net, (inputs, labels) = network(), data()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    cleansing = Cleansing(N, K, table={"weight_decay": ALPHA_DECAY})
    cleansing.follow(optimizer, lr=3.0, scaler=scaler)
    scheduler = halving(optimizer)
    steps = list(in_order(3))
    for number, ((ids, _),) in enumerate(steps):
        loss = cleansing.loss(net(inputs[ids]), encode(labels[ids], ids, K))
        scaler.scale(loss * torch.inf if number == 6 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if number != 6:
            scheduler.step()
    weight, alpha, _ = by_hand(steps[:6] + steps[7:], adam, alpha_lr=3.0)
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cleansing.table.dense(), alpha, rtol=1e-4, atol=1e-6)


def test_following_twice_counts_each_step_once():
    table, net = fastac.AlphaTable(N, K), network()
    optimizer = adam(net)
    for _ in range(2):
        follow(table, optimizer, lr=0.1)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert int(table.clock.steps) == 1


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_package_is_named(name):
    code = f"""
import sys
for hidden in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
    sys.modules[hidden] = None
from fastac.integrations.{name} import AutoCleansingCallback
AutoCleansingCallback(2, 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        f"fastac needs {name} for this and it is not installed: pip install 'autocleansing[{name}]'"
        in done.stderr
    )


def test_optimizers_that_do_not_fit():
    table = fastac.AlphaTable(N, K)
    with pytest.raises(ValueError, match="not torch.optim.SGD but AdamW; it was None"):
        follow(table, adam(network()))
    with pytest.raises(ValueError, match="lr was 0.1, but α follows SGD's learning rate"):
        follow(table, sgd(network()), lr=0.1)
    with pytest.raises(ValueError, match=r"group must be in \[0, 1\), got 1"):
        follow(table, adam(network()), lr=0.1, group=1)
    with pytest.raises(TypeError, match="must be a torch.optim.Optimizer, got int"):
        follow(table, 3)
    assert table.lr is None


# ---- what all share


def test_a_state_of_other_data_changes_nothing():
    cleansing, other = Cleansing(N, K), Cleansing(N, K, table={"weight_decay": 0.5})
    index = torch.arange(3)
    other.dynamics.update(torch.randn(3, K), index, index)
    with pytest.raises(ValueError, match="weight_decay is 0.5"):
        cleansing.load_state_dict(other.state_dict())
    assert int(cleansing.dynamics.count.sum()) == 0
    with pytest.raises(ValueError, match=r"must hold \['dynamics', 'table'\], it holds \['dynamics'\]"):
        cleansing.load_state_dict(Cleansing(N, K, form=None).state_dict())


def test_options_that_do_not_fit():
    for options, message in (
        ({"loss": {"update": "forward"}}, "update must be 'step' here, got 'forward'"),
        ({"form": None, "dynamics": False}, "would do nothing"),
        ({"form": None, "table": {"seed": 1}}, r"\['seed'\] were given with form=None"),
    ):
        with pytest.raises(ValueError, match=message):
            Cleansing(N, K, **options)


def test_plain_cross_entropy_with_dynamics_alone():
    net, (inputs, labels) = network(), data()
    cleansing = Cleansing(N, K, form=None)
    optimizer = adam(net)
    cleansing.follow(optimizer)  # no table: nothing to follow, and no learning rate of α's own
    index = torch.arange(N)
    loss = cleansing.loss(net(inputs), encode(labels, index, K))
    torch.testing.assert_close(loss, cross_entropy(net(inputs), labels))
    loss.backward()
    issues = cleansing.issues(labels)
    assert issues.equals(fastac.find_label_issues(cleansing.dynamics, labels, method="combined"))
    assert cleansing.dynamics.count.eq(1).all()
    with torch.no_grad():
        torch.testing.assert_close(cleansing.loss(net(inputs), labels), loss)
    assert cleansing.dynamics.count.eq(1).all()


def seen_once(ignore_index=-100, **options):
    """A Cleansing after one step on all samples, and their labels, of which three are ignored."""
    cleansing, labels = Cleansing(N, K, loss={"ignore_index": ignore_index}, **options), data()[1]
    labels[[1, 8, 9]] = ignore_index
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    cleansing.follow(optimizer)
    logits = torch.randn(N, K, generator=torch.Generator().manual_seed(2)).requires_grad_()
    cleansing.criterion(logits, labels, torch.arange(N)).backward()
    optimizer.step()
    return cleansing, labels


def test_issues_are_by_table_and_dynamics():
    pytest.importorskip("pandas")
    cleansing, labels = seen_once()
    issues = cleansing.issues(labels, class_names=["a", "b", "c"])
    whole = {"dynamics": cleansing.dynamics, "class_names": ["a", "b", "c"]}
    assert issues.equals(fastac.find_label_issues(cleansing.table, labels, **whole))
    assert {"aum", "p_mean", "alpha_max", "given_class"} <= set(issues)
    for method in ("combined", "alpha", "aum", "confidence"):
        ranked = cleansing.issues(labels, method=method)
        expected = fastac.find_label_issues(
            cleansing.table, labels, method=method, dynamics=cleansing.dynamics
        )
        assert ranked.equals(expected)
    by_alpha = cleansing.issues(labels, dynamics=None)
    assert by_alpha.equals(fastac.find_label_issues(cleansing.table, labels))
    assert "aum" not in by_alpha
    cleansing, labels = seen_once(dynamics=False)
    assert cleansing.issues(labels).equals(by_alpha)


@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_issues_ignore_what_the_loss_ignores(ignore_index):
    pytest.importorskip("pandas")
    cleansing, labels = seen_once(ignore_index)
    issues = cleansing.issues(labels)
    assert (issues["given_label"][-3:] == ignore_index).all()
    assert issues["label_quality"].isna().tolist() == [False] * (N - 3) + [True] * 3
    assert cleansing.dynamics.count.tolist() == (labels != ignore_index).long().tolist()


def ranks(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    cleansing, other = Cleansing(N, K), Cleansing(N, K)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(6):
        logits, labels = torch.randn(N, K, generator=generator), torch.arange(N) % K
        mine = torch.randperm(N, generator=generator).chunk(2)[rank]
        cleansing.dynamics.update(logits[mine], labels[mine], mine)
        if epoch % 2:
            state = copy.deepcopy(cleansing.state_dict())
            other.load_state_dict(state)
            cleansing.load_state_dict(state)
        else:
            cleansing.merge()
    torch.save([cleansing.dynamics.state_dict(), other.dynamics.state_dict()], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.dist
def test_what_two_processes_recorded_is_that_of_one(tmp_path):
    mp.spawn(ranks, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    whole = fastac.TrainingDynamics(N, K)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        logits = torch.randn(N, K, generator=generator)
        torch.randperm(N, generator=generator)
        whole.update(logits, torch.arange(N) % K, torch.arange(N))
    for rank in range(2):
        for state in torch.load(tmp_path / f"{rank}.pt"):
            merged = fastac.TrainingDynamics(N, K)
            merged.load_state_dict(state)
            np.testing.assert_allclose(merged.frame(), whole.frame(), rtol=1e-12)
            assert torch.equal(merged.was_correct, whole.was_correct)
    assert whole.forgetting.sum() > 5


# ---- Lightning


def lightning_parts(package):
    if package == "lightning.pytorch":
        pl = pytest.importorskip(package, reason="needs lightning")
    else:
        pl = pytest.importorskip(package, reason="needs pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self, make_optimizer=sgd, spoil=()):
            super().__init__()
            self.net, self.make_optimizer, self.spoil = network(), make_optimizer, spoil

        def training_step(self, batch, batch_idx):
            inputs, target, index = batch
            with torch.autocast("cpu", enabled=False):
                loss = self.criterion(self.net(inputs), target, index)
            return loss * torch.inf if self.global_step in self.spoil else loss

        def validation_step(self, batch, batch_idx):
            inputs, target, _ = batch
            assert not self.criterion.training
            self.log("loss", self.criterion(self.net(inputs), target))

        def configure_optimizers(self):
            optimizer = self.make_optimizer(self)
            return [optimizer], [{"scheduler": halving(optimizer), "interval": "step"}]

    inputs, labels = data()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, labels, torch.arange(N)), batch_size=BATCH
    )

    def trainer(callbacks, **options):
        return pl.Trainer(
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"enable_checkpointing": False, "max_epochs": 4, **options},
        )

    return Module, loader, trainer


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning(package, tmp_path):
    module_class, loader, trainer = lightning_parts(package)
    from fastac.integrations.lightning import AutoCleansingCallback

    labels = data()[1]
    path = tmp_path / "new" / "folder" / "issues.csv"
    callback = AutoCleansingCallback(
        N,
        K,
        labels=labels.tolist(),
        issues=path,
        class_names={0: "a", 1: "b", 2: "c"},
        table={"weight_decay": ALPHA_DECAY},
    )
    module = module_class()
    trainer([callback], accumulate_grad_batches=2).fit(module, loader, loader)
    check(callback.cleansing, module.net, by_hand(in_order(4, 2, divide_by=2), sgd))
    written = pytest.importorskip("pandas").read_csv(path)
    assert written["index"].tolist() == callback.cleansing.issues(labels)["index"].tolist()
    assert {"aum", "p_mean", "alpha_max", "suggested_class"} <= set(written)
    assert written["given_class"].tolist() == ["abc"[k] for k in written["given_label"]]


@pytest.mark.parametrize("name", ["lightning", "transformers"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "issues was .*, but labels are missing"),
        ({"labels": [0] * (N - 1)}, r"labels must be \(20,\) integers, got \(19,\)"),
        ({"labels": ["0"] * N}, r"labels must be \(20,\) integers, got \(20,\) <U1"),
        ({"labels": [0] * (N - 1) + [K]}, r"labels must be in \[0, 3\), got 3 for 1 of 20 .*ids 19"),
        ({"labels": [-1] + [0] * (N - 1)}, r"labels must be in \[0, 3\), got -1"),
        (
            {"labels": [-100] + [0] * (N - 1), "loss": {"ignore_index": -1}},
            r"labels must be in \[0, 3\), got -100",
        ),
        ({"class_names": ["a", "b"]}, "class_names must be 3 names, one a class, got 2"),
        ({"class_names": {"a": 0, "b": 1, "c": 2}}, "class_names must have a name for each class"),
        ({"issues": "taken.csv"}, "issues was 'taken.csv', which is a folder"),
        ({"issues": "issues.txt"}, "path must end in one of"),
    ],
)
def test_what_the_ranking_needs_is_checked_before_training(tmp_path, monkeypatch, name, change, message):
    pytest.importorskip(name)
    module = importlib.import_module(f"fastac.integrations.{name}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.csv").mkdir()
    arguments = {"labels": data()[1], "issues": "new/issues.csv", **change}
    with pytest.raises(ValueError, match=message):
        module.AutoCleansingCallback(N, K, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.csv"]


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    pytest.importorskip(name)
    module = importlib.import_module(f"fastac.integrations.{name}")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        module.AutoCleansingCallback(N, K, labels=data()[1], issues=tmp_path / "file" / "issues.csv")


def test_lightning_with_adam():
    module_class, loader, trainer = lightning_parts("lightning.pytorch")
    from fastac.integrations.lightning import AutoCleansingCallback

    callback, module = (
        AutoCleansingCallback(N, K, lr=3.0, table={"weight_decay": ALPHA_DECAY}),
        module_class(adam),
    )
    trainer([callback]).fit(module, loader)
    check(callback.cleansing, module.net, by_hand(in_order(4), adam, alpha_lr=3.0))


@pytest.mark.parametrize("make_optimizer", [sgd, adam])
def test_lightning_resumes(make_optimizer, tmp_path):
    module_class, loader, trainer = lightning_parts("lightning.pytorch")
    from fastac.integrations.lightning import AutoCleansingCallback

    def run(epochs, resume=None):
        lr = None if make_optimizer is sgd else 3.0
        callback, module = (
            AutoCleansingCallback(N, K, lr=lr, loss={"weight": torch.ones(K)}),
            module_class(make_optimizer),
        )
        fitting = trainer([callback], max_epochs=epochs)
        fitting.fit(module, loader, ckpt_path=resume)
        fitting.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return callback.cleansing, module

    run(2)
    resumed, module = run(4, str(tmp_path / "2.ckpt"))
    whole, other = run(4)
    assert torch.equal(module.net.weight, other.net.weight)
    assert torch.equal(resumed.table.dense(), whole.table.dense())
    assert resumed.dynamics.frame().equals(whole.dynamics.frame())
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)  # nothing but tensors and plain values
    assert not [key for key in saved["state_dict"] if "criterion" in key]


def test_lightning_with_a_grad_scaler():
    module_class, loader, trainer = lightning_parts("lightning.pytorch")
    from lightning.pytorch.plugins import MixedPrecision

    from fastac.integrations.lightning import AutoCleansingCallback

    callback = AutoCleansingCallback(N, K, table={"weight_decay": ALPHA_DECAY})
    module = module_class(lambda net: torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, fused=False))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer([callback], plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(module, loader)
    check(callback.cleansing, module.net, by_hand(in_order(4), sgd))


def test_lightning_refuses():
    module_class, loader, trainer = lightning_parts("lightning.pytorch")
    from fastac.integrations.lightning import AutoCleansingCallback

    module = module_class()
    module.criterion = torch.nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="which the module has already, a CrossEntropyLoss"):
        trainer([AutoCleansingCallback(N, K)]).fit(module, loader)
    with pytest.raises(ValueError, match=r"optimizer must be in \[0, 1\), got 1"):
        trainer([AutoCleansingCallback(N, K, optimizer=1)]).fit(module_class(), loader)
    with pytest.raises(ValueError, match="not torch.optim.SGD but AdamW"):
        trainer([AutoCleansingCallback(N, K)]).fit(module_class(adam), loader)


# ---- transformers


class Outputs(torch.nn.Module):
    """As transformers' models: keyword arguments in, a dict with logits out."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, inputs, labels=None):
        return {"logits": self.net(inputs)}


def trainer_run(folder, make_optimizer, given, *, epochs=4, lr=None, resume=None, accumulate=2, **options):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    from fastac.integrations.transformers import AutoCleansingCallback

    inputs, _ = data()
    items = [{"inputs": x, "label": int(y), "text": "dropped"} for x, y in zip(inputs, given, strict=True)]
    cleansing = AutoCleansingCallback(N, K, lr=lr, table={"weight_decay": ALPHA_DECAY}, **options)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="epoch",
        eval_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    model = Outputs()
    optimizer = make_optimizer(model)
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=cleansing.with_ids(items),
        eval_dataset=items[:7],  # labels without ids
        callbacks=[cleansing],
        compute_loss_func=cleansing.compute_loss,
        optimizers=(optimizer, halving(optimizer)),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else cleansing.resume(resume))
    return cleansing, model, trainer


@pytest.mark.parametrize(("make_optimizer", "lr"), [(sgd, None), (adam, 3.0)])
def test_transformers(make_optimizer, lr, tmp_path):
    labels = data()[1]
    labels[[2, 3, 17]] = -100
    parts = [
        [(part, int((labels[part] >= 0).sum())) for part in group]
        for group in batched(torch.arange(N).split(BATCH), 2)
    ]
    steps = [[(part, n / sum(m for _, m in group)) for part, n in group] for group in parts] * 4
    path = tmp_path / "issues.csv"
    cleansing, model, trainer = trainer_run(
        tmp_path, make_optimizer, labels, lr=lr, labels=labels, issues=path, class_names=["a", "b", "c"]
    )
    check(cleansing.cleansing, model.net, by_hand(steps, make_optimizer, lr, labels))
    written = pytest.importorskip("pandas").read_csv(path).set_index("index")
    assert written.index[-3:].tolist() == [2, 3, 17]
    assert (written.loc[[2, 3, 17], "given_label"] == -100).all()
    assert written["label_quality"].isna().sum() == written["given_class"].isna().sum() == 3
    assert written["aum"].notna().sum() == N - 3
    with torch.no_grad():
        kept = labels[:7] >= 0
        wanted = cross_entropy(model.net(data()[0][:7][kept]), labels[:7][kept])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize(("make_optimizer", "lr"), [(sgd, None), (adam, 3.0)])
def test_transformers_resumes(make_optimizer, lr, tmp_path):
    labels = data()[1]
    whole, model, _ = trainer_run(tmp_path / "whole", make_optimizer, labels, lr=lr)
    resumed, other, _ = trainer_run(
        tmp_path / "resumed", make_optimizer, labels, lr=lr, resume=tmp_path / "whole" / "checkpoint-6"
    )
    assert torch.equal(model.net.weight, other.net.weight)
    assert torch.equal(resumed.cleansing.table.dense(), whole.cleansing.table.dense())
    assert resumed.cleansing.dynamics.frame().equals(whole.cleansing.dynamics.frame())
    assert not list((tmp_path / "whole" / "checkpoint-6").glob("*.tmp"))


@pytest.mark.dist
def test_transformers_on_two_processes(tmp_path):
    pytest.importorskip("transformers", reason="needs transformers")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("trainer_ranks.py")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_transformers_refuses(tmp_path):
    labels = data()[1]
    cleansing, _, trainer = trainer_run(tmp_path, sgd, labels, epochs=2)
    with pytest.raises(RuntimeError, match="Trainer resumes at step 3, α would begin anew"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(FileNotFoundError, match="was not written with this callback"):
        cleansing.resume(tmp_path)
    state = tmp_path / "checkpoint-3" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": 2}))
    with pytest.raises(ValueError, match="is of step 3, but Trainer resumes at step 2"):
        trainer.train(resume_from_checkpoint=cleansing.resume(tmp_path / "checkpoint-3"))
    fresh = type(cleansing)(N, K)
    with pytest.raises(RuntimeError, match="training has not begun"):
        fresh.compute_loss(torch.zeros(2, K, requires_grad=True), torch.tensor([3, 4]))
    fresh.on_train_begin(trainer.args, SimpleNamespace(global_step=0), None, optimizer=sgd(network()))
    with pytest.raises(ValueError, match="carry no sample ids"):
        fresh.compute_loss(torch.zeros(2, K, requires_grad=True), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels are missing"):
        fresh.compute_loss(torch.zeros(2, K, requires_grad=True), None)
    with pytest.raises(ValueError, match="reduction is Trainer's affair"):
        type(cleansing)(N, K, loss={"reduction": "sum"})
    trainer.args.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match="label_smoothing_factor has no effect"):
        trainer.train()


# ---- Accelerate


def accelerate_run(make_optimizer, *, epochs=4, lr=None, folder=None, resume=None, scaler=None):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    from fastac.integrations.accelerate import attach

    inputs, labels = data()
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=2, step_scheduler_with_optimizer=True
    )
    accelerator.scaler = scaler
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, labels, torch.arange(N)), batch_size=BATCH
    )
    net = network()
    optimizer = make_optimizer(net)
    scheduler = halving(optimizer)
    net, optimizer, loader, scheduler = accelerator.prepare(net, optimizer, loader, scheduler)
    cleansing = Cleansing(N, K, device=accelerator.device, table={"weight_decay": ALPHA_DECAY})
    attach(cleansing, accelerator, optimizer, lr=lr)
    if resume is not None:
        accelerator.load_state(resume)
    for _ in range(epochs):
        for x, target, index in loader:
            with accelerator.accumulate(net):
                accelerator.backward(cleansing.criterion(net(x), target, index))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    if folder is not None:
        accelerator.save_state(folder)
    return cleansing, accelerator.unwrap_model(net)


@pytest.mark.parametrize(("make_optimizer", "lr"), [(sgd, None), (adam, 3.0)])
def test_accelerate(make_optimizer, lr):
    cleansing, net = accelerate_run(make_optimizer, lr=lr)
    check(cleansing, net, by_hand(in_order(4, 2, divide_by=2), make_optimizer, lr))


def test_accelerate_with_a_grad_scaler():
    cleansing, net = accelerate_run(
        lambda net: torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, fused=False),
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0),
    )
    check(cleansing, net, by_hand(in_order(4, 2, divide_by=2), sgd))


def test_accelerate_resumes(tmp_path):
    accelerate_run(sgd, epochs=2, folder=tmp_path)
    resumed, net = accelerate_run(sgd, epochs=2, resume=tmp_path)
    whole, other = accelerate_run(sgd)
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(resumed.table.dense(), whole.table.dense())
    assert resumed.dynamics.frame().equals(whole.dynamics.frame())


def test_accelerate_refuses_other_processes():
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    from fastac.integrations.accelerate import attach

    accelerator, optimizer = accelerate.Accelerator(cpu=True), sgd(network())
    for cleansing, message in (
        (Cleansing(N, K, form=None, device="meta"), "cleansing is on meta, the accelerator on cpu"),
        (Cleansing(N, K), "the accelerator has 1 processes, the α table 2"),
    ):
        if cleansing.table is not None:
            cleansing.table.world_size = 2
        with pytest.raises(ValueError, match=message):
            attach(cleansing, accelerator, optimizer)
    assert not accelerator._custom_objects


# ---- timm, without timm


def test_the_three_lines_for_timm():
    """What timm's train.py does around them: `transform` set on the dataset, an int64 target a sample from the second
    element of tuples, the loss called with output and target, divided for accumulation, a GradScaler's step."""
    inputs, labels = data()
    base = [(x, int(y)) for x, y in zip(inputs, labels, strict=True)]
    dataset = WithIds(base, K)

    def fast_collate(batch):
        assert isinstance(batch[0], tuple)
        return torch.stack([b[0] for b in batch]), torch.tensor([b[1] for b in batch], dtype=torch.int64)

    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, collate_fn=fast_collate)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, nesterov=False, fused=False)
    scheduler, scaler = halving(optimizer), torch.amp.GradScaler("cpu", init_scale=64.0)
    cleansing = Cleansing(N, K, table={"weight_decay": ALPHA_DECAY})
    cleansing.follow(optimizer, scaler=scaler)
    for _ in range(4):
        for number, (x, target) in enumerate(loader):
            group = 2 if number < 4 else 1
            scaler.scale(cleansing.loss(net(x), target) / group).backward()
            if number % 2 == 1 or number == 4:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                scheduler.step()
    check(cleansing, net, by_hand(in_order(4, 2), sgd))
