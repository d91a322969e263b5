"""AutoCleansing in Lightning: the module's loss is `self.criterion`, a callback brings it. Nothing else changes.

Handwritten digits, every fifth label flipped. Ends with the test accuracy and the share of flipped labels among those
found; with --output the ranking is written there as issues.csv and Lightning keeps its checkpoints there.
"""

import argparse
import logging
import warnings
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits

from fastac.integrations.lightning import AutoCleansingCallback

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--output", type=Path)
options = parser.parse_args()
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Classifier(lightning.LightningModule):
    """A network of two layers."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        inputs, target, index = batch  # index: the samples' ids
        return self.criterion(self.layers(inputs), target, index)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


lightning.seed_everything(0, verbose=False)
digits = load_digits()
order = torch.randperm(len(digits.target))
inputs, truth = torch.tensor(digits.data / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
N, K = 1300, 10
flipped = torch.rand(N) < 0.2
labels = torch.where(flipped, (truth[:N] + torch.randint(1, K, (N,))) % K, truth[:N])

dataset = torch.utils.data.TensorDataset(inputs[:N], labels, torch.arange(N))
cleansing = AutoCleansingCallback(
    N,
    K,
    labels=labels,
    issues=options.output and options.output / "issues.csv",
    table={"lr_scale": 20.0},  # α's learning rate over the network's: high, because there are few epochs
)
module = Classifier()
trainer = lightning.Trainer(
    max_epochs=options.epochs,
    callbacks=[cleansing],
    accelerator="cpu",
    default_root_dir=options.output,
    enable_checkpointing=options.output is not None,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, torch.utils.data.DataLoader(dataset, batch_size=50, shuffle=True))

with torch.no_grad():
    accuracy = (module.layers(inputs[N:]).argmax(1) == truth[N:]).float().mean()
found = cleansing.cleansing.issues(labels)["index"][: int(flipped.sum())].tolist()
print(f"test accuracy {accuracy:.1%}")
print(f"of the {len(found)} most suspicious labels, {flipped[found].float().mean():.1%} were flipped")
