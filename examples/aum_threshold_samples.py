"""AUM with threshold samples in a loop of one's own: how many labels are wrong, without knowing it beforehand.

Points in three rings, every tenth label flipped. Two networks are trained side by side, each with its own set of
samples that get the label of a class that does not exist; what has no larger margin than those is a label issue. Ends
with the share of the flipped labels that were found and the share of the findings that were flipped.
"""

import torch

from fastac.issues import ThresholdRuns

torch.manual_seed(0)
N, K = 2000, 3

truth = torch.randint(K, (N,))
angle = 2 * torch.pi * torch.rand(N)
radius = 1 + truth + 0.15 * torch.randn(N)
inputs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
flipped = torch.rand(N) < 0.1
labels = torch.where(flipped, (truth + torch.randint(1, K, (N,))) % K, truth)


def network():
    """K + 1 outputs: the last one is for the threshold samples."""
    layers = [torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, K + 1))


networks = torch.nn.ModuleList([network(), network()])
optimizer = torch.optim.SGD(networks.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
runs = ThresholdRuns(labels, num_classes=K)

for _ in range(40):
    for index in torch.randperm(N).split(50):  # index: the samples' ids
        loss = runs.loss([net(inputs[index]) for net in networks], index)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

issues = runs.find_label_issues()
found = torch.tensor(issues["index"][issues["is_label_issue"]].to_numpy())
recall = flipped[found].sum() / flipped.sum()
print(f"{len(found)} label issues: {recall:.1%} of the flipped labels are among them,")
print(f"and {flipped[found].float().mean():.1%} of them were flipped")
