"""The papers' recipes: Table 7's settings, the variants, and that each of them builds, takes a step and resumes."""

import pytest
import torch
import torch.nn.functional as F
from paper_data import write_cifar10, write_cifar100, write_human_labels, write_svhn
from torch import nn
from training_runs import final_state, newest, without_pictures

from fastac.config import load_config, recipe_names, variant_names
from fastac.models import create_model
from fastac.optim import create_optimizer
from fastac.paper.published import TABLE_7
from fastac.train import train

BASES = [name for name in recipe_names() if name.startswith(("cifar", "svhn"))]
COLUMNS = ("baseline", "cutout", "aa", "faa", "pba", "ac1-aa", "ac2-aa")
NOISES = (
    "noise-uniform-20",
    "noise-uniform-40",
    "noise-uniform-60",
    "noise-uniform-80",
    "noise-asymmetric-40",
)
# Networks of the same families, for the trainer's checkpoints to be small.
NARROW = {
    "wrn-40-2": "wrn-10-1",
    "wrn-28-10": "wrn-10-1",
    "shake-shake-26-2x32d": "shake-shake-8-2x4d",
    "shake-shake-26-2x96d": "shake-shake-8-2x4d",
    "shake-shake-26-2x112d": "shake-shake-8-2x4d",
    "pyramidnet-272-200-shakedrop": "pyramidnet-11-4-shakedrop",
    "resnet32": "wrn-10-1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for write in (write_cifar10, write_cifar100):
        write(folder, train=110, test=20)
    write_svhn(folder)
    write_human_labels(folder, train=110)
    return folder


@pytest.mark.parametrize("name", TABLE_7)
def test_table_7(name):
    config, row = load_config(name), TABLE_7[name]
    opt = config.optimizer
    assert (opt.lr, opt.schedule, opt.weight_decay) == (row.lr, row.schedule, row.weight_decay)
    assert (config.data.batch_size, opt.epochs, opt.milestones) == (
        row.batch_size,
        row.epochs,
        row.milestones,
    )
    assert config.model.model.startswith(row.model.split("+")[0].split("-")[0].lower().replace("wide", "wrn"))


@pytest.mark.parametrize("name", BASES)
def test_what_table_7_does_not_say(name):
    """Section 4's weight decay of α, the networks' lineage, AUM's reference code."""
    config = load_config(name)
    opt, loss = config.optimizer, config.loss
    assert (opt.momentum, opt.nesterov, config.data.augment) == (0.9, True, "crop-flip")
    assert loss.alpha_weight_decay == (1e-5 if "pyramidnet" in name else 5e-5)
    if opt.schedule == "cosine":
        assert (opt.warmup_epochs, opt.clip_grad) == (5.0, 5.0)
    else:
        assert (opt.warmup_epochs, opt.clip_grad) == (0.0, None)
    if name.endswith("-aum"):
        assert (opt.schedule, opt.epochs, config.data.batch_size, loss.loss) == ("constant", 150, 64, "ce")
        assert (config.data.threshold_set, config.data.drop_last) == (1, False)
    else:
        assert (loss.loss, config.data.threshold_set) == ("ac1", 0)


def test_cifar100_with_wrn40_2_has_cifar10s_settings():
    ten, hundred = load_config("cifar10-wrn40-2"), load_config("cifar100-wrn40-2")
    assert (ten.optimizer, ten.loss, ten.model) == (hundred.optimizer, hundred.loss, hundred.model)


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_change_policy_cutout_and_loss_alone(column):
    policies = {"aa": "autoaugment", "faa": "fast-autoaugment", "pba": "pba"}
    kind = column.rpartition("-")[2]
    for base in BASES:
        plain, config = load_config(base), load_config(f"{base}+{column}")
        loss = column.partition("-")[0] if column.startswith("ac") else "ce"
        wanted = {
            "aa": policies.get(kind, "none"),
            "cutout": 0 if column == "baseline" else 16,
            "loss": loss,
            "recipe": f"{base}+{column}",
        }
        assert config == plain.with_values(**wanted)


def test_the_other_variants():
    svhn = load_config("svhn-wrn28-10+ac1-aa+cutout-20")
    assert (svhn.data.cutout, svhn.data.aa, svhn.loss.loss) == (20, "autoaugment", "ac1")
    assert load_config("cifar10-wrn40-2+aa+cutout-0").data.cutout == 0
    bare = load_config("cifar10-resnet32+aa+no-augment").data
    assert (bare.augment, bare.aa, bare.cutout) == ("none", "none", 0)
    fast = load_config("cifar10-wrn40-2+ac1-aa+fast-step")
    assert (fast.model.channels_last, fast.optimizer.amp_dtype, fast.optimizer.cuda_graphs) == (
        True,
        "bf16",
        True,
    )
    assert fast.loss.loss == "ac1"
    for name in NOISES:
        for base in ("cifar10-resnet32", "cifar100-resnet32-aum"):
            data = load_config(f"{base}+{name}").data
            assert (data.noise, data.noise_rate) == (name.split("-")[1], int(name.split("-")[2]) / 100)


def test_human_labels():
    for name in ("aggre", "random1", "random2", "random3", "worse"):
        data = load_config(f"cifar10n-{name}").data
        key = f"random_label{name[-1]}" if name.startswith("random") else f"{name}_label"
        assert (data.labels, data.label_truth) == (f"cifar10n_labels.npz:{key}", "dataset")


@pytest.mark.parametrize("model", NARROW)
def test_the_real_network_takes_a_step(model):
    (config, *_) = (c for c in map(load_config, BASES) if c.model.model == model)
    classes = 100 if config.data.dataset == "cifar100" else 10
    network = create_model(model, num_classes=classes, in_channels=3)
    optimizer = create_optimizer(network, config.optimizer, torch.device("cpu"))
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    before = [weight.detach().clone() for weight in (weights[0], weights[-1])]
    loss = F.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([0, classes - 1]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    for old, new in zip(before, (weights[0], weights[-1]), strict=True):
        assert torch.isfinite(new).all()
        assert (old != new).any()


def linear(name, *, num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 32 * 32, num_classes))


def step_and_resume(recipe, data, output, create=create_model):
    """A step, then another one from its checkpoint. Returns the config."""
    base = load_config(recipe)
    values = {
        "data_dir": str(data),
        "output": str(output),
        "name": "run",
        "model": NARROW[base.model.model],
        "batch_size": 8,
        "train_limit": 101 if base.data.dataset == "cifar100" else 16,
        "device": "cpu",
        "tensorboard": False,
        "max_steps": 1,
    }
    train(load_config(recipe, values), create=create)
    first = final_state(output / "run")
    assert first["position"]["step"] == 1
    result = train(load_config(recipe, {**values, "max_steps": 2}), resume=True, create=create)
    second = final_state(output / "run")
    assert (second["position"]["step"], result["steps"]) == (2, 2)
    return base


@pytest.mark.parametrize("recipe", BASES)
def test_every_base_takes_a_step_and_resumes(recipe, data, tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    config = step_and_resume(recipe, data, tmp_path)
    table = newest(tmp_path / "run").own("table")
    if config.loss.loss == "ce":
        assert not table
    else:
        assert table[0]["weight_decay"] == config.loss.alpha_weight_decay
        assert table[0]["alpha"].abs().max() > 0


VARIED = [f"cifar10-wrn40-2+{name}" for name in (*COLUMNS, "ac2", "aa+cutout-0")]
VARIED += [f"cifar10-resnet32+{name}" for name in NOISES] + ["cifar100-resnet32+noise-asymmetric-40"]
VARIED += [f"svhn-wrn28-10+{name}+cutout-20" for name in ("aa", "faa", "pba")]
VARIED += [f"cifar100-wrn40-2+{name}" for name in ("aa", "faa", "pba")] + ["cifar10-resnet32-aum+no-augment"]


@pytest.mark.parametrize("recipe", VARIED)
def test_every_variant_takes_a_step_and_resumes(recipe, data, tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    step_and_resume(recipe, data, tmp_path, create=linear)


def test_every_variant_loads_with_every_base():
    for variant in variant_names():
        for base in BASES:
            assert load_config(f"{base}+{variant}").run.recipe == f"{base}+{variant}"
