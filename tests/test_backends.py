import pytest
import torch

from fastac import backends, contract, eager


def test_the_reference_backend_is_there():
    assert backends.select(torch.device("cpu")) is eager
    for name in ("forward", "forward_update", "update_rows", "read_rows", "sweep"):
        assert callable(getattr(eager, name))
        assert hasattr(contract.Backend, name)


def test_a_named_backend_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTAC_BACKEND", "opencl")
    with pytest.raises(ValueError, match="FASTAC_BACKEND must be one of .*'reference'.*, got 'opencl'"):
        backends.select(torch.device("cpu"))
