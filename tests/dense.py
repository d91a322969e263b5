"""The table beside a dense parameter under torch.optim.SGD, step by step on the same batches."""

import math
from dataclasses import dataclass

import torch

import fastac
from fastac.reference import DenseAlpha


@dataclass
class Case:
    form: str = "ac1"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-5
    schedule: str = "cosine"
    dtype: torch.dtype = torch.float64
    steps: int = 500
    num_samples: int = 40
    num_classes: int = 6
    batch: int = 8
    window: int = 1 << 18
    label_smoothing: float = 0.0
    reduction: str = "mean"
    seed: int = 0


def learning_rate(case, step):
    if case.schedule == "cosine":
        return 0.05 * (1 + math.cos(math.pi * step / case.steps))
    if case.schedule == "multistep":
        return 0.1 * 0.1 ** sum(step >= case.steps * f for f in (0.5, 0.75))
    if case.schedule == "pause":  # warm-up, then a rate of zero for a while
        return 0.0 if step < 5 or case.steps // 3 < step < case.steps // 2 else 0.1
    return 0.1


def run(case):
    """Returns (table.dense(), dense α, network of the table's run, network of the dense run)."""
    generator = torch.Generator().manual_seed(case.seed)
    n, k = case.num_samples, case.num_classes
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64).to(case.dtype)
    labels = torch.randint(k, (n,), generator=generator)
    nets = [torch.nn.Linear(4, k).to(case.dtype) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    sgd = dict(lr=0.1, momentum=case.momentum, nesterov=case.nesterov)
    dense = DenseAlpha(n, k, case.form, case.dtype)
    alpha_group = {"params": dense.parameters(), "weight_decay": case.weight_decay}
    dense_sgd = torch.optim.SGD([{"params": nets[1].parameters()}, alpha_group], **sgd)
    sparse_sgd = torch.optim.SGD(nets[0].parameters(), **sgd)
    table = fastac.AlphaTable(
        n, k, form=case.form, weight_decay=case.weight_decay, dtype=case.dtype, window=case.window
    )
    table.follow(sparse_sgd)
    options = dict(label_smoothing=case.label_smoothing, reduction=case.reduction)
    criterion = fastac.AutoCleansingLoss(table, **options)
    for step in range(case.steps):
        # Repeats inside a batch are the rule here; the last five ids are never drawn.
        index = torch.randint(n - 5, (case.batch,), generator=generator)
        for net, loss, optimizer in ((nets[0], criterion, sparse_sgd), (nets[1], None, dense_sgd)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(case, step)
            optimizer.zero_grad()
            logits = net(inputs[index])
            if loss is None:
                dense(logits, labels[index], index, **options).backward()
            else:
                loss(logits, labels[index], index).backward()
            optimizer.step()
    return table.dense(), dense.alpha.detach(), nets[0], nets[1]


def relative_error(value, truth):
    return float(
        (value.detach().double() - truth.detach().double()).abs().max() / truth.detach().double().abs().max()
    )
