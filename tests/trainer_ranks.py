"""transformers' Trainer on several processes, beside a loop by hand; test_integrations.py starts it under torchrun."""

import sys

import test_integrations as parts
import torch
import torch.distributed as dist

torch.set_num_threads(1)
parts.BATCH = 5  # of a process: steps of 10 samples, two an epoch
labels = parts.data()[1]
ids = torch.arange(parts.N).split(2 * parts.BATCH)
for make_optimizer, lr in ((parts.sgd, None), (parts.adam, 3.0)):
    folder = f"{sys.argv[1]}/{make_optimizer.__name__}"
    cleansing, model, _ = parts.trainer_run(folder, make_optimizer, labels, lr=lr, accumulate=1)
    assert dist.get_world_size() == 2
    truth = parts.by_hand([[(part, 1.0)] for part in ids] * 4, make_optimizer, lr)
    parts.check(cleansing.cleansing, model.net, truth)
    assert cleansing.cleansing.dynamics.count.eq(4).all()
dist.barrier()
dist.destroy_process_group()
