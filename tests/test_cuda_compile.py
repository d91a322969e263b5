"""Every CUDA kernel, compiled by nvcc for sm_80, sm_90 and sm_100, needs no local memory and has wide accesses where
its name says so; the library that they make loads on a torch without CUDA. No GPU is needed."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_emulation
import pytest
import torch

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc")
ARCHITECTURES = (80, 90, 100)
FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden"]

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


def disassembler():
    """cuobjdump: of the CUDA toolkit, or the one that triton brings."""
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            import triton
        except ImportError:
            return None
        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        os.environ["PATH"] += os.pathsep + str(found.parent)  # it calls nvdisasm
    return str(found)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The object file of each source."""
    folder = tmp_path_factory.mktemp("cuda")
    # One intermediate code for the last two halves the front end's time; only sm_80 has other source (no clusters).
    targets = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,sm_100]"]

    def compile_one(source):
        out = folder / f"{source.stem}.o"
        command = [NVCC, *FLAGS, *targets, "-c", str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, cuda_emulation.KERNELS))


def resources(path):
    """(architecture, function) → its resource usage."""
    command = [disassembler(), "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in text.split("arch = sm_")[1:]:
        architecture = int(re.match(r"\d+", part).group())
        for name, usage in re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", part):
            yield (architecture, name), {k: int(v) for k, v in re.findall(r"(\w+(?:\[\d\])?):(\d+)", usage)}


@pytest.fixture(scope="module")
def usage(objects):
    if disassembler() is None:
        pytest.skip("cuobjdump is not there (it comes with triton)")
    return {key: value for path in objects for key, value in resources(path)}


def test_no_kernel_spills(usage):
    kernels = {name for _, name in usage if "loss_kernel" in name}
    assert len(kernels) == 6 * 12  # types of logits and rows x layouts
    for architecture in ARCHITECTURES:
        assert {name for a, name in usage if a == architecture} == {name for _, name in usage}
    spilling = {key: value for key, value in usage.items() if value["STACK"] or value["LOCAL"]}
    assert not spilling
    # What a block of the largest layout may have: 65536 registers for 256 threads.
    assert max(value["REG"] for value in usage.values()) <= 255


@pytest.mark.parametrize("source", ["half_momentum", "float32_plain"])
def test_wide_kernels_access_16_bytes_at_a_time(objects, usage, source):
    (path,) = (path for path in objects if path.stem == source)
    text = subprocess.run(
        [disassembler(), "-sass", "-arch", "sm_90", str(path)], capture_output=True, text=True, check=True
    ).stdout
    functions = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function :|\Z)", text, flags=re.DOTALL))
    assert len(functions) == 12
    for name, code in functions.items():
        chunks, update, wide = re.search(r"Li(\d)ELb(\d)ELb(\d)EE", name).groups()
        loads, stores = (len(re.findall(rf"\b{op}\S*\.128\b", code)) for op in ("LDG", "STG"))
        assert not re.findall(r"\b(?:LDL|STL)\b", code), name
        if wide == "0":
            assert (loads, stores) == (0, 0) or update == "1", name  # Numbers has 16 bytes
        else:  # logits and rows in, the gradient and with update the row out, of each turn
            assert loads >= 2 * max(1, int(chunks)), (name, loads)
            assert stores >= (1 + int(update)) * max(1, int(chunks)), (name, stores)


def test_the_library_loads_without_a_gpu(objects, tmp_path):
    """The binding, linked with the kernels, in a Python of its own: torch's stable ABI needs no CUDA in torch."""
    (include, *_), (runtime, *_) = (
        toolkit_files("include/cuda_runtime_api.h"),
        toolkit_files("*/libcudart_static.a"),
    )
    torch_folder = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    library = tmp_path / "_cuda.so"
    command = [
        *("g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", abi, f"-I{include.parent}"),
        *("-isystem", torch_folder / "include", ROOT / "csrc" / "cuda" / "ops.cpp", *objects, "-o", library),
        *(runtime, "-ldl", "-lrt", "-lpthread", f"-L{torch_folder / 'lib'}", "-ltorch_cpu"),
    ]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    code = f"""
import torch
torch.ops.load_library({str(library)!r})
for name in ("forward", "forward_update", "update_rows", "read_rows", "sweep", "row_gradient", "backward",
             "scale_gradient", "record", "advance"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fastac_cuda::" + name, "CUDA"), name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def toolkit_files(pattern):
    """Files of the toolkit that this nvcc belongs to, which may be a script that calls it."""
    dry = subprocess.run([NVCC, "--dryrun", "x.cu"], capture_output=True, text=True, check=False).stderr
    top = Path(re.search(r"^#\$ TOP=(\S+)", dry, flags=re.MULTILINE).group(1))
    found = [*top.glob(pattern), *top.glob(f"targets/*/{pattern}")]
    assert found, (top, pattern)
    return found
