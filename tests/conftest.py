import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms need on a GPU
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton, whose own functions depend on it


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """torch.empty gives NaN, so that reading what was never written shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # and so do those of the processes that tests start


# The longest first: a long file that came last would keep one process busy and leave the others idle.
_LONG = ("test_cuda_compile", "test_triton_backend", "test_elastic", "test_fashion", "test_triton_compiled")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in _LONG)  # otherwise in their order
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
