"""csrc/cuda compiled with g++ for the CPU, through tests/cuda_host: its kernels' values can be tested on any machine.

One of Python's modules `fastac.cuda` is made with that library; tensors on the CPU are its device.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc" / "cuda"
HOST = ROOT / "tests" / "cuda_host"
KERNELS = sorted(SOURCE.rglob("*.cu"))
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]


def compiler():
    return shutil.which(os.environ.get("CXX", "g++"))


def build():
    """The library's path; it is built where the sources have changed."""
    sources = [*KERNELS, SOURCE / "ops.cpp", HOST / "emulation.cpp", SOURCE / "example" / "example.cpp"]
    headers = [*SOURCE.glob("*.cuh"), *SOURCE.glob("*.h"), *HOST.glob("*.h"), Path(__file__)]
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted([*sources, *headers]):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_host" / digest.hexdigest()[:16]
    library = folder / "_cuda_host.so"
    if library.exists():
        return library
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, folder), sources))
    kernels = [o for o, s in zip(objects, sources, strict=True) if s.name not in ("ops.cpp", "example.cpp")]
    _run("-o", folder / "example", *kernels, folder / "example.cpp.o")
    torch_libraries = Path(torch.__file__).parent / "lib"
    _run(
        *("-shared", "-o", folder / "partial.so", *kernels, folder / "ops.cpp.o"),
        *(f"-L{torch_libraries}", "-ltorch_cpu"),
    )
    (folder / "partial.so").rename(library)
    return library


def _compile(source, folder):
    out = folder / f"{source.name}.o"
    torch_headers = Path(torch.__file__).parent / "include"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    includes = (f"-I{HOST}", f"-I{SOURCE}", "-isystem", torch_headers)
    _run(*FLAGS, abi, "-DFASTAC_CUDA_HOST", *includes, "-x", "c++", "-c", source, "-o", out)
    return out


def _run(*arguments):
    done = subprocess.run([compiler(), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def load(library):
    """fastac/cuda.py with this library, beside the one that a CUDA device would have; and the emulation's handle."""
    spec = importlib.util.spec_from_file_location("fastac_cuda_host", ROOT / "fastac" / "cuda.py")
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("FASTAC_CUDA_LIBRARY")
    os.environ["FASTAC_CUDA_LIBRARY"] = str(library)
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del os.environ["FASTAC_CUDA_LIBRARY"]
        else:
            os.environ["FASTAC_CUDA_LIBRARY"] = before
    emulation = ctypes.CDLL(str(library))
    emulation.emulation_launches.restype = ctypes.c_long
    return module, emulation
