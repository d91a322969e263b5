"""timm's and torchvision's networks by name, with stand-ins for the packages: neither is needed by the tests."""

import builtins
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from fastac.models import create_model
from fastac.network import check_network


class Named(nn.Linear):
    """What a stand-in makes: remembers how it was asked for."""

    def __init__(self, **asked):
        super().__init__(2, 3)
        self.asked = asked


@pytest.fixture
def timm(monkeypatch):
    known = ["resnet18", "resnet50", "vit_base_patch16_224"]
    module = types.ModuleType("timm")
    module.is_model = lambda name: name.split(".")[0] in known
    module.list_models = lambda: known
    module.create_model = lambda name, **asked: Named(name=name, **asked)
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.fixture
def torchvision(monkeypatch):
    module, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    everything = ["resnet50", "googlenet", "inception_v3", "fcn_resnet50"]
    models.list_models = lambda module=None: everything if module is None else everything[:3]
    models.get_model = lambda name, **asked: Named(name=name, **asked)
    module.models = models
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def failing_import(monkeypatch, library, error):
    """`import library` raises the error, whether it is installed or not."""
    monkeypatch.delitem(sys.modules, library, raising=False)

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == library:
                raise error

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


@pytest.mark.parametrize("model", ["resnet18", "resnet50.a1_in1k"])
def test_timm(timm, model):
    network = create_model(f"timm:{model}", num_classes=7, in_channels=1)
    assert network.asked == {"name": model, "pretrained": False, "num_classes": 7, "in_chans": 1}


def test_torchvision(torchvision):
    network = create_model("torchvision:resnet50", num_classes=7, in_channels=3)
    assert network.asked == {"name": "resnet50", "weights": None, "num_classes": 7}


@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_torchvisions_networks_with_logits_of_inner_layers(torchvision, model):
    network = create_model(f"torchvision:{model}", num_classes=7, in_channels=3)
    assert network.asked["aux_logits"] is False


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("timm:resnet19", 3, "unknown model 'timm:resnet19'; did you mean 'timm:resnet18'[?] timm has 3"),
        ("timm:", 3, "unknown model 'timm:'"),
        ("torchvision:resnet51", 3, "did you mean 'torchvision:resnet50'"),
        ("torchvision:fcn_resnet50", 3, "unknown model 'torchvision:fcn_resnet50'"),
        ("torchvision:resnet50", 1, "in_channels is 1; it should be 3 for 'torchvision:resnet50'.*timm:NAME"),
        ("keras:resnet50", 3, "unknown model 'keras:resnet50'.*timm:NAME, torchvision:NAME"),
        ("timm", 3, "unknown model 'timm'"),
    ],
)
def test_unknown_names(timm, torchvision, name, channels, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=7, in_channels=channels)


@pytest.mark.parametrize(
    ("build", "library", "missing", "command"),
    [
        (
            "2.13.0+cpu",
            "timm",
            "timm",
            "pip install timm torchvision torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu",
        ),
        (
            "2.12.1+cu130",
            "torchvision",
            "torchvision",
            "pip install torchvision torch==2.12.1 --extra-index-url https://download.pytorch.org/whl/cu130",
        ),
        ("2.13.0", "timm", "torchvision.ops", "pip install timm torchvision torch==2.13.0"),
        ("2.13.0+git1a2b", "torchvision", "torchvision", "pip install torchvision torch==2.13.0"),
    ],
)
def test_what_is_not_installed(monkeypatch, build, library, missing, command):
    monkeypatch.setattr(torch, "__version__", build)
    failing_import(monkeypatch, library, ModuleNotFoundError("no", name=missing))
    with pytest.raises(ImportError) as raised:
        create_model(f"{library}:resnet50", num_classes=7, in_channels=3)
    package = missing.split(".")[0]
    expected = (
        f"model was '{library}:resnet50', which needs {library}, and {package} is not installed: {command}"
    )
    assert str(raised.value) == expected


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_torchvision_of_another_build(monkeypatch, library):
    """What PyPI's torchvision does on the CPU's build of torch."""
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    failing_import(monkeypatch, library, RuntimeError("operator torchvision::nms does not exist"))
    with pytest.raises(ImportError) as raised:
        create_model(f"{library}:resnet50", num_classes=7, in_channels=3)
    packages = " ".join(dict.fromkeys((library, "torchvision")))
    assert str(raised.value) == (
        f"model was '{library}:resnet50', which needs {library}, and importing it failed with RuntimeError: operator "
        "torchvision::nms does not exist. torchvision should be of the same build as torch, which is 2.13.0+cpu: "
        f"pip uninstall -y torchvision && pip install {packages} torch==2.13.0 "
        "--extra-index-url https://download.pytorch.org/whl/cpu"
    )


def test_neither_is_imported_for_our_own_networks(monkeypatch):
    real, asked = builtins.__import__, []

    def remember(name, *rest, **keywords):
        asked.append(name.split(".")[0])
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", remember)
    for library in ("timm", "torchvision"):
        failing_import(monkeypatch, library, RuntimeError("imported"))
    create_model("resnet20", num_classes=7, in_channels=3)
    assert not {"timm", "torchvision"} & set(asked)


def test_a_network_for_another_image_size():
    """timm's and torchvision's vision transformers say so by an AssertionError."""

    class Transformer(nn.Module):
        def forward(self, images):
            raise AssertionError("Input height (32) doesn't match model (224).")

    samples = types.SimpleNamespace(images=np.zeros((1, 32, 32, 3), np.uint8), channels=3, num_classes=3)
    message = "model was 'timm:vit', which can't take images of 32×32 pixels: Input height [(]32"
    with pytest.raises(ValueError, match=message):
        check_network(Transformer(), "timm:vit", samples)
