"""Compile the Triton kernels as fastac/triton.py launches them, for a GPU that need not be there, and print of each a
line of JSON: registers, spilled bytes, widths of its accesses to global memory. Run by test_triton_compiled.py."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton as compiler
from backend_cases import BASE, Problem
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastac import triton

TOOLS = Path(compiler.__file__).parent / "backends" / "nvidia" / "bin"


class Driver:
    """What Triton asks of a GPU before it compiles."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(capability, seen):
    compiler.runtime.driver.set_active(Driver(capability))
    run = JITFunction.run

    def warm_up(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        seen.setdefault((kernel.name, kernel.hash), kernel)

    JITFunction.run = warm_up
    triton.DEVICE_TYPE = "cpu"


def scalars(signature):
    """Types of the arguments that are numbers, those in tuples too."""
    found = []
    for kind in signature:
        if isinstance(kind, tuple):
            found += scalars(kind)
        elif kind != "constexpr" and not kind.startswith("*"):
            found.append(kind)
    return found


def resources(kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", file.name], text=True)
        sass = subprocess.check_output(
            [TOOLS / "cuobjdump", "-sass", file.name], text=True, stderr=subprocess.DEVNULL
        )
    stack, registers = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("STACK", "REG"))
    local = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    widths = {}
    for op in ("LDG", "STG"):
        for instruction in re.findall(rf"\b{op}\.(\S+)", sass):
            width = next(
                (w for w in ("128", "64", "U16", "U8", "S8", "S16") if f".{w}" in f".{instruction}"), "32"
            )
            key = f"{op}.{width}"
            widths[key] = widths.get(key, 0) + 1
    threads = 32 * kernel.metadata.num_warps
    return {"registers": registers, "stack": stack, "local": local, "threads": threads, "widths": widths}


class Traced(NamedTuple):
    """One problem; bytes: of one element of gradient and row state that the one pass writes."""

    classes: int
    form: str = "ac1"
    logits: torch.dtype = torch.bfloat16
    table: torch.dtype = torch.float32
    momentum: float = 0.9
    batch: int = 256
    every: bool = False  # all operations, smoothing and statistics; else the one pass alone

    @property
    def bytes(self):
        state = (2 if self.momentum else 1) * self.table.itemsize if self.form == "ac1" else 0
        return self.logits.itemsize + state


PROBLEMS = (
    Traced(10, batch=65536, every=True),
    Traced(10, form="ac2"),
    Traced(104, batch=4096),
    Traced(1000, every=True),
    Traced(1000, momentum=0.0, logits=torch.float32, batch=4096),
    Traced(1000, form="ac2"),
    Traced(1001, table=torch.bfloat16),
    Traced(4096, logits=torch.float32, batch=8),
    Traced(8192, table=torch.bfloat16, logits=torch.float32, batch=8, every=True),
    Traced(16384, momentum=0.0, batch=8),
    Traced(16384, form="ac2", batch=8),
    Traced(131072, batch=8, every=True),
)


def launch_every(problem):
    """Every operation of the backend, with smoothing and statistics."""
    problem.objective = problem.objective._replace(label_smoothing=0.1)
    rows, grad, ids = problem.rows(), problem.grad, problem.index.long()
    problem.forward_update(triton, rows, None, problem.accumulators())
    result = problem.forward(triton, rows)
    triton.update_rows(rows, ids, grad, torch.ones(()), problem.sgd, torch.tensor(False))
    triton.record(problem.accumulators(), ids, result.statistics)
    triton.read_rows(rows, ids)
    triton.sweep(rows, ids, 0)
    triton.advance(rows.clock, problem.sgd, None)
    triton.backward(result.grad, torch.ones(()), torch.bfloat16)
    triton.scale_gradient(result.grad, torch.ones(()))


def main(capability):
    seen = {}
    compile_only(int(capability), seen)
    for traced in PROBLEMS:
        values = traced._asdict()
        every = values.pop("every")
        problem = Problem(BASE._replace(**values))
        for launch in (lambda p: p.forward_update(triton, p.rows()), launch_every)[: 2 if every else 1]:
            before = set(seen)
            launch(problem)
            for key in sorted(set(seen) - before):
                case = {k: str(v) for k, v in values.items()}
                line = {"kernel": key[0], "case": case, "alone": launch is not launch_every}
                line["scalars"] = scalars(seen[key].src.signature.values())
                print(json.dumps(line | {"bytes": traced.bytes} | resources(seen[key])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
