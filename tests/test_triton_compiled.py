"""Every Triton kernel, compiled ahead of time for the GPUs that it is made for: nothing spills, accesses are wide."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton: pip install 'autocleansing[triton]'")
HERE = Path(__file__).parent
KERNELS = {
    *("forward_tile", "forward_long", "reduce_loss", "kept_weight", "mark", "contest"),
    *("update_rows", "read_rows", "sweep", "record", "advance", "backward", "scale_gradient"),
}


@functools.cache
def started():
    """All at once: the compiler takes one core each."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "triton_compiled.py")]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {arch: subprocess.Popen([*command, arch], **options) for arch in ("80", "90", "100")}


@functools.cache
def compiled(arch):
    out, err = started()[arch].communicate()
    assert started()[arch].returncode == 0, err[-4000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_nothing_spills(arch):
    assert {kernel["kernel"] for kernel in compiled(arch)} == KERNELS
    spilled = [kernel for kernel in compiled(arch) if kernel["local"] or kernel["stack"]]
    assert not spilled


@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_the_clock_and_the_seeds_are_64_bits_wide(arch):
    """Triton makes float32 of a Python float that isn't annotated. The interpreter computes in float64 throughout."""
    kinds = {}
    for kernel in compiled(arch):
        kinds.setdefault(kernel["kernel"], []).append(kernel["scalars"])
    assert all(scalars == ["fp64", "fp64"] for scalars in kinds["advance"])
    for name in ("forward_tile", "forward_long", "update_rows", "sweep"):
        assert all(scalars[-1] == "i64" for scalars in kinds[name])


@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_accesses_are_128_bits_wide(arch):
    """Where K is a multiple of 8: gradient and row state of the one pass, as many stores as their bytes need."""
    looked_at = 0
    for kernel in compiled(arch):
        classes = int(kernel["case"]["classes"])
        if kernel["kernel"] not in ("forward_tile", "forward_long") or classes % 8 or not kernel["alone"]:
            continue
        looked_at += 1
        columns = 1 << (classes - 1).bit_length()
        elements = max(
            8, min(columns, 2048 if kernel["kernel"] == "forward_long" else columns) // kernel["threads"]
        )
        stores = elements * kernel["bytes"] // 16
        assert kernel["widths"].get("STG.128", 0) >= stores, kernel
        assert kernel["widths"].get("LDG.128", 0) >= stores, kernel
        narrow = sum(
            count
            for width, count in kernel["widths"].items()
            if width.startswith("STG") and "128" not in width
        )
        assert narrow <= 14, kernel  # ids, losses, flags: a few numbers a row
    assert looked_at >= 8


def test_the_program_of_a_row_leaves_room_for_others():
    """At 256 × 1000, a usual batch, at least four programs fit a processor of an H200 (65,536 registers)."""
    usual = [
        kernel
        for kernel in compiled("90")
        if kernel["kernel"] == "forward_tile" and kernel["case"]["classes"] == "1000" and kernel["alone"]
    ]
    assert usual
    for kernel in usual:
        assert kernel["registers"] * kernel["threads"] <= 65536 // 4, kernel
