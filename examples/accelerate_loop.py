"""AutoCleansing with Accelerate: accumulation, mixed precision, several processes and checkpoints by its usual calls.

Handwritten digits, every fifth label flipped. `accelerate launch examples/accelerate_loop.py` runs it on several
processes. Ends with the test accuracy and the share of flipped labels among those found; with --output the state is
saved there after each epoch, and a second call goes on from it.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits

from fastac.integrations import Cleansing
from fastac.integrations.accelerate import attach

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--output", type=Path)
options = parser.parse_args()

set_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2)
digits = load_digits()
order = torch.randperm(len(digits.target))
inputs, truth = torch.tensor(digits.data / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
N, K = 1300, 10
flipped = torch.rand(N) < 0.2
labels = torch.where(flipped, (truth[:N] + torch.randint(1, K, (N,))) % K, truth[:N])

model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, K))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
dataset = torch.utils.data.TensorDataset(
    inputs[:N], labels, torch.arange(N)
)  # the last part: the samples' ids
loader = torch.utils.data.DataLoader(dataset, batch_size=25, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

# α's learning rate over the network's is high, because there are few epochs.
cleansing = Cleansing(N, K, device=accelerator.device, table={"lr_scale": 20.0})
attach(cleansing, accelerator, optimizer)
if options.output and options.output.is_dir():
    accelerator.load_state(options.output)

for _ in range(options.epochs):
    for x, target, index in loader:
        with accelerator.accumulate(model):
            loss = cleansing.criterion(model(x), target, index)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    if options.output:
        accelerator.save_state(options.output)

with torch.no_grad():
    accuracy = (model(inputs[N:].to(accelerator.device)).argmax(1).cpu() == truth[N:]).float().mean()
cleansing.merge()  # what several processes recorded
found = cleansing.issues(labels)["index"][: int(flipped.sum())].tolist()
accelerator.print(f"test accuracy {accuracy:.1%}")
accelerator.print(
    f"of the {len(found)} most suspicious labels, {flipped[found].float().mean():.1%} were flipped"
)
