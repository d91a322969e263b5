"""Under torchrun, on 2 ranks: many short trainings by DDP and DeepSpeed in one start. Results go to FOLDER/rankR.pt."""

import gc
import json
import os
import sys
import time
from pathlib import Path

import torch
import training_runs
from torch import nn

import fastac
from fastac.engine import create_engine
from fastac.job import Job
from fastac.train import grouped, train, train_step
from fastac.training_data import load_data

torch.set_num_threads(1)
RANK = int(os.environ.get("RANK", "0"))
ENGINES = {
    "ddp": {},
    "zero1": {"engine": "deepspeed", "zero_stage": 1},
    "zero2": {"engine": "deepspeed"},
    "zero3": {"engine": "deepspeed", "deepspeed_config": "zero3.json"},
}
# 6 batches an epoch in groups of 4 and 2; a step of 4 batches has as many gradients to clip as one of 1.
SETTINGS = {"batch_size": 16, "grad_accum_steps": 4, "clip_grad": 0.3, "epochs": 2}


class Poison(nn.Module):
    """Multiplies the gradient that passes it by `factor`."""

    factor = 1.0

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda grad: grad * Poison.factor)
        return x


def network(name, *, num_classes, in_channels):
    layers = training_runs.with_dropout(name, num_classes=num_classes, in_channels=in_channels)
    layers[3] = nn.Sequential(nn.Flatten(), Poison())
    return layers


def start(folder, name, create=network, **changes):
    """A new process group, and a job on it."""
    start.count += 1
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(start.count)  # what keeps process groups apart
    engine = dict(ENGINES[name])
    if "deepspeed_config" in engine:
        engine["deepspeed_config"] = str(folder / engine["deepspeed_config"])
    config = training_runs.config(folder, **{**SETTINGS, **engine, **changes})
    return Job(config, create_engine(config), load_data(config), create)


start.count = 0


def groups_of(job):
    """The first epoch's groups, as often as one likes."""
    return list(grouped(job.train_loader.epoch(0), job.config.optimizer.grad_accum_steps))


def look(job):
    """Copies of what a step changes."""
    state = job.engine.state_dict()
    copies = {kind: {name: t.clone() for name, t in state[kind].items()} for kind in ("model", "momentum")}
    return {
        **copies,
        "alpha": job.table.dense(),
        "alpha momentum": job.table.momentum_buffer.clone(),
        "steps": int(job.table.clock.steps),
        "lr": [group["lr"] for group in job.optimizer.param_groups],
        "scale": None if state["scaler"] is None else state["scaler"]["scale"],
    }


def end(job):
    job.engine.close()


# ---------------------------------------------------------------- what is run


def whole_runs(folder):
    """The trainer itself, from start to end."""
    for amp in ("none", "bf16"):
        for name in ENGINES if amp == "none" else ("ddp", "zero3"):
            start.count += 1
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(start.count)
            engine = dict(ENGINES[name])
            if "deepspeed_config" in engine:
                engine["deepspeed_config"] = str(folder / engine["deepspeed_config"])
            run = training_runs.config(folder, name=f"{name}-{amp}", **SETTINGS, **engine, amp_dtype=amp)
            train(run, create=network)


def skipped(folder):
    """Two steps and a third; between them one whose gradient overflows on rank 1 only, or for DDP none at all."""
    results = {}
    for name in ENGINES:
        job = start(folder, name)
        job.model.train()
        groups = groups_of(job)
        train_step(job, groups[0])
        before = look(job)
        rng = torch.get_rng_state()
        if name == "ddp":
            job.scheduler.step()
        else:
            Poison.factor = torch.inf if RANK == 1 else 1.0
            train_step(job, groups[1])
            Poison.factor = 1.0
        torch.set_rng_state(rng)
        after = look(job)
        train_step(job, groups[1])
        results[name] = [before, after, look(job)]
        end(job)
    return results


def exchanged(folder):
    """DDP's state after a step goes on in each engine, and that one's in DDP again."""
    results = {}
    origin = start(folder, "ddp")
    fresh = look(origin)
    origin.model.train()
    groups = groups_of(origin)
    train_step(origin, groups[0])
    state = {
        "network": look(origin),
        "table": origin.table.state_dict(),
        "schedule": origin.scheduler.state_dict(),
    }
    state = torch.load(save(folder, state), weights_only=True)
    end(origin)
    for name in ENGINES:
        job = start(folder, name)
        mine = {**state["network"], "scaler": None}
        results[name, "fresh"] = look(job)
        with torch.no_grad():
            for parameter in job.network.parameters():
                parameter.add_(1.0)  # what the forward pass reads, if it is not loaded
        job.engine.load_state_dict(mine)
        take(job, state)
        results[name, "loaded"] = look(job)
        job.model.train()
        torch.manual_seed(5 + RANK)
        train_step(job, groups[1])
        last = {"network": look(job), "table": job.table.state_dict(), "schedule": job.scheduler.state_dict()}
        last = torch.load(save(folder, last), weights_only=True)
        results[name, "gone on"] = last["network"]
        job.engine.load_state_dict({**fresh, "scaler": None})  # without momentum
        results[name, "reset"] = look(job)
        end(job)
        back = start(folder, "ddp")
        back.engine.load_state_dict({**last["network"], "scaler": None})
        take(back, last)
        results[name, "back"] = look(back)
        end(back)
    results["state"], results["fresh"] = state["network"], fresh
    return results


def save(folder, state):
    path = folder / f"state{RANK}.pt"
    torch.save(state, path)
    return path


def take(job, state):
    job.table.load_state_dict(state["table"])
    job.scheduler.load_state_dict(state["schedule"])
    for group, lr in zip(job.optimizer.param_groups, job.scheduler.get_last_lr(), strict=True):
        group["lr"] = lr


def own_loop(folder, stage, fp16):
    """A loop with DeepSpeed's own accumulation, schedule and loss scale: what is seen after each batch."""
    import deepspeed

    from fastac.engine.deepspeed import follow

    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1e4},
        "zero_allow_untested_optimizer": True,
        "scheduler": {
            "type": "WarmupLR",
            "params": {
                "warmup_min_lr": 0.1,
                "warmup_max_lr": 0.5,
                "warmup_num_steps": 4,
                "warmup_type": "linear",
            },
        },
        "fp16": {"enabled": fp16, "initial_scale_power": 20, "loss_scale_window": 3, "hysteresis": 1},
    }
    torch.manual_seed(0)
    net = nn.Linear(6, 5)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    model_engine, *_ = deepspeed.initialize(model=net, optimizer=sgd, config=config)
    table = fastac.AlphaTable(20, 5, weight_decay=1e-2)
    follow(table, model_engine)
    criterion = fastac.AutoCleansingLoss(table)
    seen = []
    for step in range(16):
        inputs, target, index = own_batch(step, RANK)
        loss = criterion(model_engine(inputs.half() if fp16 else inputs), target, index)
        model_engine.backward(loss)
        lr = sgd.param_groups[0]["lr"]
        model_engine.step()
        counts = (model_engine.global_steps, model_engine.skipped_steps, int(table.clock.steps))
        seen.append((counts, lr, table.dense(), len(table._staged)))
    model_engine.destroy()
    return seen


def own_batch(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    index = torch.randint(20, (4,), generator=generator)
    return torch.randn(4, 6, generator=generator), index % 5, index


def own_loops(folder):
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True  # PyTorch's CPU kernels do it everywhere, if slowly
    results = {}
    for stage in (1, 2, 3):
        for fp16 in (False, True):
            engine = start(folder, "zero1").engine  # for its process group
            results[stage, fp16] = own_loop(folder, stage, fp16)
            engine.close()
    return results


def asleep(folder):
    """Rank 1 does not come to the third step's gradients. (DDP broadcasts buffers, and at the second step its buckets,
    before those.)"""
    job = start(folder, "ddp", create=training_runs.linear, grad_accum_steps=1, dist_timeout=15.0, loss="ce")
    job.model.train()
    groups = groups_of(job)
    train_step(job, groups[0])
    train_step(job, groups[1])
    if RANK == 1:
        time.sleep(10_000)
    begun = time.monotonic()
    try:
        train_step(job, groups[2])
    finally:
        print(f"rank {RANK} ended after {time.monotonic() - begun:.1f} s", flush=True)
        end(job)


def main():
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name in ("contact_sheet", "plot_alpha", "plot_curves"):
        setattr(fastac.run, name, lambda *args, **kwargs: None)
    results = {case: globals()[case](folder) for case in cases}
    torch.save(results, folder / f"rank{RANK}.pt")
    gc.collect()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "gloo" in name], names


if __name__ == "__main__":
    main()
