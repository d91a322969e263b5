"""DeepSpeed's ZeRO 1, 2 and 3, and α in step with it; `follow` is for training loops with a DeepSpeed of their own."""

from __future__ import annotations

import json
import logging
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from fastac.collectives import named
from fastac.config import Config
from fastac.engine.process import Process, backend, pick_device
from fastac.engine.state import Names
from fastac.extras import require
from fastac.table import AlphaTable

__all__ = ["ZeroEngine", "follow", "settings"]

# Keys of DeepSpeed's config that say what keys of ours say.
_OURS = {
    "optimizer": "opt",
    "scheduler": "schedule",
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "grad_accum_steps",
    "gradient_clipping": "clip_grad",
    "fp16": "amp_dtype",
    "bf16": "amp_dtype",
    "torch_autocast": "amp_dtype",
}
# Keys under which DeepSpeed would do other sums than the table of α does.
_REFUSED = ("gradient_allreduce_op", "managed_gradient_accumulation", "sparse_gradients", "tensor_parallel")


def follow(table: AlphaTable, model_engine: Any, group: int = 0) -> None:
    """Move α in every `model_engine.step()` that moves the network, with its learning rate and momentum.

    model_engine: what deepspeed.initialize returned, with a torch.optim.SGD of yours as its optimizer; group: whose
    learning rate and momentum. Gradient accumulation, DeepSpeed's learning rate schedulers, its fp16 loss scale and the
    steps that it skips are followed. The table stays outside the module: it is saved, loaded and moved by itself.
    ValueError for a model_engine whose gradients are not means over the ranks, or that autocasts to float16: which
    steps it then skips can't be seen.

        model_engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=sgd, config=config)
        follow(table, model_engine)
        loss = criterion(model_engine(images), target, index)
        model_engine.backward(loss); model_engine.step()
    """
    if not model_engine.gradient_average:
        raise ValueError(
            "model_engine sums gradients over the ranks; gradient_allreduce_op should be 'mean', as for α"
        )
    if model_engine.torch_autocast_enabled() and model_engine.torch_autocast_dtype() == torch.float16:
        raise ValueError(
            "model_engine has torch_autocast with float16; it should have bfloat16, or the section fp16: which steps "
            "torch_autocast skips can't be seen"
        )
    following = getattr(model_engine, "alpha_following", None)
    scaler = _Following(model_engine) if following is None else following
    table.follow(model_engine.basic_optimizer, group, scaler, by_hand=True)
    if following is None:
        model_engine.alpha_following, model_engine.step = scaler, scaler.step
    scaler.tables.add(table)


class _Following:
    """The tables that follow a DeepSpeed engine, in place of its step; also the loss scaler that they see."""

    def __init__(self, model_engine: Any):
        self.engine = model_engine
        self.step_engine = model_engine.step
        self.tables: weakref.WeakSet[AlphaTable] = weakref.WeakSet()
        self.scale_before: float | None = (
            None  # of the step under way, at whose end DeepSpeed changes the scale
        )

    def is_enabled(self) -> bool:
        return True  # DeepSpeed skips steps without a loss scale, too

    def get_scale(self) -> float:
        if self.scale_before is not None:
            return self.scale_before
        if not self.engine.fp16_enabled():
            return 1.0
        optimizer = self.engine.optimizer
        dynamic = getattr(optimizer, "loss_scale_config", None)
        return float(optimizer.cur_scale if dynamic is None else dynamic.cur_scale)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """DeepSpeed's step, and α's where there was one."""
        groups = self.engine.basic_optimizer.param_groups
        before = [{key: group[key] for key in ("lr", "momentum", "nesterov")} for group in groups]
        steps, self.scale_before = self.engine.global_steps, self.get_scale()
        try:
            result = self.step_engine(*args, **kwargs)
            if self.engine.global_steps != steps:  # else it was in the middle of an accumulation
                self.move_tables(before)
        finally:
            self.scale_before = None
        return result

    def move_tables(self, before: list[dict[str, Any]]) -> None:
        if not self.engine.was_step_applied():
            for table in self.tables:
                table.discard()
            return
        groups = self.engine.basic_optimizer.param_groups
        after = [{key: group[key] for key in values} for group, values in zip(groups, before, strict=True)]
        try:
            for group, values in zip(groups, before, strict=True):
                group.update(values)  # a scheduler of DeepSpeed's is at the next step already
            for table in self.tables:
                table.step()
        finally:
            for group, values in zip(groups, after, strict=True):
                group.update(values)


def settings(config: Config) -> dict[str, Any]:
    """DeepSpeed's config of a run: ours for zero_stage, or the user's file, with what the other keys of ours say.

    Raises FileNotFoundError, or ValueError for a file that is no JSON object, has no ZeRO stage 1, 2 or 3, or has a
    key that says what a key of ours says. Such keys may be "auto".
    """
    run, optimizer = config.run, config.optimizer
    if run.deepspeed_config is None:
        # DeepSpeed's own buckets, of 5e8 numbers, are larger than the networks here.
        zero = {"stage": run.zero_stage or 2, "reduce_bucket_size": 5e7, "allgather_bucket_size": 5e7}
        given: dict[str, Any] = {"zero_optimization": zero}
    else:
        given = _read(run.deepspeed_config)
    autocast = {"enabled": optimizer.amp_dtype == "bf16", "dtype": "bfloat16"}
    return given | {
        "train_micro_batch_size_per_gpu": config.data.batch_size,
        "gradient_accumulation_steps": 1,  # the trainer counts micro-batches, and scales their losses
        "gradient_clipping": optimizer.clip_grad or 0.0,
        # No module's gradients travel in bfloat16: DDP's don't.
        "torch_autocast": {**autocast, "lower_precision_safe_modules": []},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"deepspeed_config was {name!r}; there is no such file")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"deepspeed_config was {name!r}, which is not valid JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"deepspeed_config was {name!r}, which should hold a JSON object, got {given!r:.40}")
    for key, ours in _OURS.items():
        value = given.pop(key, "auto")
        off = isinstance(value, dict) and value.get("enabled") is False
        if value != "auto" and not off:
            raise ValueError(
                f"deepspeed_config was {name!r}, which has {key!r}; it should not: --{ours.replace('_', '-')} says that"
            )
    for key in _REFUSED:
        if key in given:
            raise ValueError(
                f"deepspeed_config was {name!r}, which has {key!r}; it should not: α can't follow that"
            )
    zero = given.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (1, 2, 3):
        raise ValueError(
            f"deepspeed_config was {name!r}, whose zero_optimization.stage was {stage!r}; it should be 1, 2 or 3"
        )
    return given


class ZeroEngine(Process):
    """See `fastac.engine.Engine`. The same steps as DDP's, to rounding; a step whose gradient is not finite is skipped,
    of α too."""

    def __init__(self, config: Config):
        self.settings = settings(config)
        self.stage = self.settings["zero_optimization"]["stage"]
        # Before there is a group, which defaults of functions would keep alive for ever (see Process.close).
        self.deepspeed = _import(pick_device(config.run.device))
        super().__init__(config)
        self.alone = not self.distributed
        if self.alone:  # DeepSpeed wants a process group of one, and a local rank at every step
            os.environ["LOCAL_RANK"] = "0"
            dist.init_process_group(backend(self.device), store=HashStore(), rank=0, world_size=1)
            self.distributed = True
        # Steps that are skipped: the schedule counts them all the same.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.model: Any = None
        self.moved = False  # whether there has been a step, and so is a momentum

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        self.network, self.names = network, Names(network)
        # DeepSpeed's own group would have a time-out of its own.
        self.deepspeed.utils.groups._WORLD_GROUP = self.new_group()
        with named(f"broadcast of the network's first state (ZeRO {self.stage})"):
            self.model, *_ = self.deepspeed.initialize(
                model=network, optimizer=optimizer, config=self.settings, dist_init_required=False
            )
        self.momentum = any(group["momentum"] for group in optimizer.param_groups)
        if self.momentum:
            self._make_momentum()
        model: nn.Module = self.model
        return model

    def follow(self, table: AlphaTable) -> None:
        follow(table, self.model)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        with named(f"all_gather of the network's parameters (ZeRO {self.stage})"):
            yield

    def backward(self, loss: Tensor) -> None:
        with named(f"reduction of the network's gradients (ZeRO {self.stage})"):
            self.model.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        with named(f"the optimizer's step (ZeRO {self.stage})"):
            self.model.step()
        self.moved |= self.model.was_step_applied()

    def state_dict(self) -> dict[str, Any]:
        self.sync_buffers()
        with named(f"all_gather of the network's state (ZeRO {self.stage})"), torch.no_grad():
            whole = {id(p): self._whole(p) for p in self.names.parameters.values()}
            model = {name: whole.get(id(value), value) for name, value in self.names.model.items()}
            momentum = {}
            if self.momentum and self.moved:
                get = self.deepspeed.utils.safe_get_full_optimizer_state
                for name, parameter in self.names.parameters.items():
                    if parameter.requires_grad:
                        momentum[name] = get(parameter, "momentum_buffer")
        return {"model": model, "momentum": momentum, "scaler": None}

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        """A parameter's float32 values, gathered from the ranks: a copy."""
        value: Tensor | None = self.deepspeed.utils.safe_get_full_fp32_param(parameter)
        if value is None:  # one that is not trained
            with self.deepspeed.zero.GatheredParameters([parameter]):
                value = parameter.detach().clone().float()
        return value

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names.check(state)
        utils, model, momentum = self.deepspeed.utils, state["model"], state["momentum"]
        with named(f"broadcast of the network's state (ZeRO {self.stage})"):
            for name, value in self.names.model.items():
                if not isinstance(value, nn.Parameter):
                    value.copy_(model[name])
            for name, parameter in self.names.parameters.items():
                value = model[name].to(self.device, torch.float32)
                utils.safe_set_full_fp32_param(parameter, value)
                with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)  # what the forward pass reads
                if parameter.requires_grad and self.momentum:
                    value = momentum.get(name, torch.zeros_like(value)).to(self.device, torch.float32)
                    utils.safe_set_full_optimizer_state(parameter, value, "momentum_buffer")
        self.moved = bool(momentum)

    def _make_momentum(self) -> None:
        """The zeros that the first step would make: with several parameter groups, ZeRO 1 and 2 would not find the
        momentum of the second one."""
        zero, state = self.model.optimizer, self.model.basic_optimizer.state
        for part in (
            zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        ):
            state[part]["momentum_buffer"] = torch.zeros_like(part)
        if self.stage != 3:
            zero._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        if self.model is not None:
            self.model.destroy()
            self.model = None
        # What else refers to the process groups (see Process.close): a stack, and a method's cache for all engines.
        zero = self.deepspeed.runtime.zero
        zero.parameter_offload.FWD_MODULE_STACK.clear()
        coordinator = zero.partitioned_param_coordinator.PartitionedParameterCoordinator
        cached = coordinator._PartitionedParameterCoordinator__params_to_release
        cached.__closure__[0].cell_contents.cache_clear()
        self.deepspeed.utils.groups._WORLD_GROUP = None
        self.deepspeed.comm.comm.cdb = None
        super().close()
        if self.alone:
            del os.environ["LOCAL_RANK"]


def _import(device: torch.device) -> Any:
    """The package, set to this device; on a CPU, without its shared memory operator, which it would build first."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    deepspeed = require("deepspeed", "deepspeed")
    found = deepspeed.accelerator.get_accelerator().device_name()
    if found != device.type:
        raise ValueError(
            f"device was {device.type!r} and DeepSpeed was started for {found!r}: set DS_ACCELERATOR"
        )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.addFilter(_is_news)
    return deepspeed


def _is_news(record: logging.LogRecord) -> bool:
    return "ZeRO with an untested optimizer" not in record.getMessage()  # here it is tested
