import logging

import pytest
import torch

from fastac import backends, contract, eager

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_choice_yet(monkeypatch):
    monkeypatch.delenv("FASTAC_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setattr(backends, "_loaded", {})


def test_the_reference_backend_is_there(monkeypatch):
    monkeypatch.setenv("FASTAC_BACKEND", "reference")
    assert backends.select(CPU) is eager
    for name in ("forward", "forward_update", "update_rows", "read_rows", "sweep"):
        assert callable(getattr(eager, name))
        assert hasattr(contract.Backend, name)


def test_other_devices_get_the_reference_backend():
    assert backends.select(torch.device("meta")) is eager


def test_a_named_backend_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTAC_BACKEND", "opencl")
    with pytest.raises(ValueError, match="FASTAC_BACKEND must be one of .*'reference'.*, got 'opencl'"):
        backends.select(CPU)


def missing(monkeypatch):
    def import_module(name):
        if name == "fastac.cpu":
            raise ImportError("the native CPU backend is not built")
        return eager

    monkeypatch.setattr(backends.importlib, "import_module", import_module)


def test_what_is_not_built_is_passed_over_and_said_once(monkeypatch, caplog):
    missing(monkeypatch)
    with caplog.at_level(logging.INFO, logger="fastac"):
        assert backends.select(CPU) is eager
        assert backends.select(CPU) is eager
    assert [record.getMessage() for record in caplog.records] == [
        "backend cpu is not used for cpu tensors: the native CPU backend is not built",
        "backend reference is used for cpu tensors",
    ]


def test_a_named_backend_that_is_not_built_is_an_error(monkeypatch):
    missing(monkeypatch)
    monkeypatch.setenv("FASTAC_BACKEND", "cpu")
    with pytest.raises(ImportError, match="not built"):
        backends.select(CPU)
