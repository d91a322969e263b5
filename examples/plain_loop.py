"""AutoCleansing in a training loop of one's own: torch, NumPy and fastac, nothing else.

Points in three rings, every fifth label flipped. Ends with the test accuracy and the first of the found labels.
"""

import torch

import fastac

torch.manual_seed(0)
N, K = 2000, 3


def rings(n):
    """Points in three rings, with their right labels."""
    labels = torch.randint(K, (n,))
    angle = 2 * torch.pi * torch.rand(n)
    radius = 1 + labels + 0.2 * torch.randn(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels


inputs, truth = rings(N)
flipped = torch.rand(N) < 0.2
labels = torch.where(flipped, (truth + torch.randint(1, K, (N,))) % K, truth)
test_inputs, test_labels = rings(1000)

model = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU())
model.append(torch.nn.Linear(64, K))
epochs, batch_size = 60, 50
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * N // batch_size)

table = fastac.AlphaTable(num_samples=N, num_classes=K, form="ac1", lr_scale=10.0)
table.follow(optimizer)  # learning rate, momentum and the moments at which it steps
criterion = fastac.AutoCleansingLoss(table)

for _ in range(epochs):
    for index in torch.randperm(N).split(batch_size):  # index: the samples' ids
        loss = criterion(model(inputs[index]), labels[index], index)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

with torch.no_grad():
    accuracy = (model(test_inputs).argmax(1) == test_labels).float().mean()
suspicion = table.dense()  # (N, K): where it is large at the given label, the label is suspicious
found = (suspicion - suspicion.mean(1, keepdim=True)).abs().amax(1).topk(int(flipped.sum())).indices
print(f"test accuracy {accuracy:.1%}")
print(f"of the {len(found)} most suspicious labels, {flipped[found].float().mean():.1%} were flipped")
