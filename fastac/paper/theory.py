"""Table 1 and both theorems of the AutoCleansing paper, computed on small problems whose wrong labels are known.

Names are the paper's. K: the categories of the model; K*: the true ones, K and those outside it. m*: the true model's
output, (X, K*) for X inputs. π: (K, K*), π[y, y*] = π(y | y*), the probability that an input of category y* has label
y. Q = softmax(m*) πᵀ, (X, K): the probability of a label. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastac.loss import AutoCleansingLoss
from fastac.table import AlphaTable

__all__ = [
    "EXAMPLES",
    "PROBLEMS",
    "Example",
    "Problem",
    "alpha_star",
    "fit_alpha",
    "label_probabilities",
    "table1_text",
    "theorem1_gradients",
    "theorem2_alpha",
    "theorems_text",
]

_ZERO = 1e-12  # a gradient that is zero in float64
_STEPS = 600  # of SGD, after which α has converged


# ---------------------------------------------------------------- Table 1


@dataclass(frozen=True)
class Example:
    """A part of Table 1. outside: how many of the categories, the last ones, the model does not have."""

    title: str
    true_output: tuple[float, ...]  # m*
    biased_output: tuple[float, ...]  # c
    alpha: tuple[float, ...]  # as published
    observed: int
    true: int
    outside: int = 0


EXAMPLES = (
    Example("(A) incorrect label", (0.1, 0.1, 0.8), (0.8, 0.1, 0.1), (0.7, 0.0, -0.7), observed=0, true=2),
    Example(
        "(B) outside of the category set",
        (0.1, 0.1, 0.1, 0.7),
        (0.8, 0.1, 0.1, 0.0),
        (0.7, 0.0, 0.0, -0.7),
        observed=0,
        true=3,
        outside=1,
    ),
    Example("(C) multiple objects", (0.8, 0.1, 0.8), (0.8, 0.1, 0.1), (0.0, 0.0, -0.7), observed=0, true=2),
)


def example_alpha(example: Example) -> Tensor:
    """(K,): what training finds, where the true model's output is fixed and labels come with the biased model's
    probabilities. A row of α is known up to a constant; here α of category 2, which is nobody's label, is zero."""
    size = len(example.true_output) - example.outside
    true = torch.tensor([example.true_output[:size]], dtype=torch.float64)
    labels = torch.tensor([example.biased_output[:size]], dtype=torch.float64).softmax(1)
    alpha = fit_alpha(true, labels)[0]
    return alpha - alpha[1]


def table1_text() -> tuple[str, bool]:
    """Table 1 with α = c − m* and α from training, and whether all of it agrees with the published numbers."""
    lines, holds = (
        ["Table 1: m*, c, α = c − m*, and α by training on labels of probability softmax(c)", ""],
        True,
    )
    for example in EXAMPLES:
        exact = torch.tensor(example.biased_output).double() - torch.tensor(example.true_output).double()
        trained = example_alpha(example)
        published = torch.tensor(example.alpha, dtype=torch.float64)
        agrees = bool(
            (exact - published).abs().max() < 1e-6
            and (trained - published[: len(trained)]).abs().max() < 1e-6
        )
        signs = example.alpha[example.true] < example.alpha[example.observed]
        holds = holds and agrees and signs
        cells = [*trained.tolist(), *[math.nan] * example.outside]
        lines += [
            example.title,
            f"  label         {''.join(f'{i + 1:>8}' for i in range(len(exact)))}   observed {example.observed + 1}, "
            f"true {example.true + 1}{' (outside)' if example.outside else ''}",
            f"  m*            {_cells(example.true_output)}",
            f"  c             {_cells(example.biased_output)}",
            f"  α = c − m*    {_cells(exact.tolist())}",
            f"  α, trained    {_cells(cells)}",
            f"  α, published  {_cells(example.alpha)}   {'agrees' if agrees and signs else 'DIFFERS'}",
        ]
    return "\n".join(lines), holds


def _cells(values: Iterable[float]) -> str:
    """Numbers in columns; what is not a number was not estimated."""
    return "".join(f"{'–' if math.isnan(value) else f'{value:.3f}':>8}" for value in values).replace(
        "-0.000", " 0.000"
    )


# ---------------------------------------------------------------- the theorems


@dataclass(frozen=True, eq=False)
class Problem:
    """title: which labels are wrong. pi: (K, K*), its columns sum to one."""

    title: str
    pi: Tensor


def label_probabilities(true_output: Tensor, pi: Tensor) -> Tensor:
    """Q of Definition 1, (X, K)."""
    return true_output.softmax(1) @ pi.T


def alpha_star(true_output: Tensor, pi: Tensor) -> Tensor:
    """α* of the proofs in the appendix, (X, K): α*_i = ln Σ_k π(i|k) exp(m*_k) − m*_i."""
    return torch.logsumexp(true_output[:, None, :] + pi.log()[None], dim=2) - true_output[:, : len(pi)]


def _uniform(size: int, rate: float) -> Tensor:
    return torch.full((size, size), rate / (size - 1), dtype=torch.float64).fill_diagonal_(1 - rate)


def _asymmetric(size: int, low: float, high: float) -> Tensor:
    """Each category is taken for the next one, with another probability each."""
    rates = torch.linspace(low, high, size, dtype=torch.float64)
    return torch.diag(1 - rates) + torch.diag(rates).roll(1, 0)


def _outside(size: int, shares: list[list[float]]) -> Tensor:
    """Right labels within the set; an outside category's inputs get these labels."""
    columns = torch.tensor(shares, dtype=torch.float64).T
    return torch.cat([torch.eye(size, dtype=torch.float64), columns], dim=1)


PROBLEMS = (
    Problem("within the category set, uniform 60 %", _uniform(4, 0.6)),
    Problem("within the category set, asymmetric", _asymmetric(4, 0.1, 0.7)),
    Problem("outside of the category set", _outside(4, [[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]])),
    Problem("multiple objects", _outside(4, [[0.9, 0.1, 0.0, 0.0], [0.0, 0.2, 0.0, 0.8]])),
    Problem(
        "outside, and asymmetric within",
        torch.cat([_asymmetric(4, 0.1, 0.7), _outside(4, [[0.6, 0.2, 0.1, 0.1]])[:, 4:]], 1),
    ),
)


def theorem1_gradients(problem: Problem, seed: int = 0) -> dict[str, float]:
    """The largest absolute derivatives of the expected loss at the true parameters θ* of a two-layer network: by θ at
    α* and, in its place, at α = 0; by α at α*."""
    generator = torch.Generator().manual_seed(seed)
    size, true_size = problem.pi.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    inputs, hidden = normal(50, 6), normal(6, 8).requires_grad_()
    inside, outside = normal(8, size).requires_grad_(), normal(8, true_size - size)
    features = torch.tanh(inputs @ hidden)
    output = features @ inside
    true_output = torch.cat([output, features @ outside], 1).detach()
    labels = label_probabilities(true_output, problem.pi)
    best = alpha_star(true_output, problem.pi).requires_grad_()

    def gradients(alpha: Tensor, by: list[Tensor]) -> float:
        loss = F.cross_entropy(output + alpha, labels)
        return max(float(part.abs().max()) for part in torch.autograd.grad(loss, by, retain_graph=True))

    return {
        "theta": gradients(best, [hidden, inside]),
        "alpha": gradients(best, [best]),
        "theta_without_alpha": gradients(torch.zeros_like(best), [hidden, inside]),
    }


def fit_alpha(true_output: Tensor, labels: Tensor, steps: int = _STEPS) -> Tensor:
    """α (X, K) that minimises the expected loss with the network's output fixed, by an AlphaTable: AC1, SGD with
    momentum, no weight decay. true_output: (X, K). labels: (X, K), their probabilities.

    A batch has every input with every label; the rows of an input are weighted by its labels' probabilities.
    """
    inputs, size = true_output.shape
    table = AlphaTable(inputs, size, momentum=0.9, weight_decay=0.0, dtype=torch.float64)
    table.lr = 0.5
    criterion = AutoCleansingLoss(table, reduction="none")
    index = torch.arange(inputs).repeat_interleave(size)
    target = torch.arange(size).repeat(inputs)
    for _ in range(steps):
        logits = true_output[index].clone().requires_grad_()
        (criterion(logits, target, index) * labels.flatten()).sum().backward()
        table.step()
    return table.dense()


def theorem2_alpha(true_output: Tensor, pi: Tensor) -> Tensor:
    """`fit_alpha` on labels of probability Q, each row with the constant that the theorem speaks of, which is that of
    α*: Σ_K exp(m* + α) = Σ_K* exp(m*)."""
    inside = true_output[:, : len(pi)]
    alpha = fit_alpha(inside, label_probabilities(true_output, pi))
    shift = torch.logsumexp(true_output, 1) - torch.logsumexp(inside + alpha, 1)
    return alpha + shift[:, None]


# Three inputs of four categories; the true one is the first, second and third.
_OUTPUT = torch.tensor(
    [[2.0, 0.5, -1.0, 0.0], [0.3, 1.2, 0.1, -0.5], [-1.0, 0.4, 1.5, 0.9]], dtype=torch.float64
)


def _swap(size: int, first: int, second: int, rate: float) -> Tensor:
    """Labels are wrong between two categories only, in both directions alike."""
    pi = torch.eye(size, dtype=torch.float64)
    pi[[first, second], [first, second]] = 1 - rate
    pi[[first, second], [second, first]] = rate
    return pi


def _general(alpha: Tensor, true_output: Tensor, pi: Tensor) -> tuple[str, bool, int]:
    """α of the true label is at most that of any label that is observed as often or more."""
    labels, holds, count = label_probabilities(true_output, pi), True, 0
    for row, t in enumerate(true_output[:, : len(pi)].argmax(1).tolist()):
        for f in range(len(pi)):
            if f != t and labels[row, f] >= labels[row, t]:
                holds, count = holds and bool(alpha[row, t] <= alpha[row, f] + 1e-6), count + 1
    return "α_t ≤ α_f where Q(f) ≥ Q(t)", holds, count


def _symmetric(alpha: Tensor, true_output: Tensor, pi: Tensor) -> tuple[str, bool, int]:
    true = true_output.argmax(1, keepdim=True)
    return "α_t ≤ 0", bool((alpha.gather(1, true) <= 1e-6).all()), len(true)


def _single_symmetric(alpha: Tensor, true_output: Tensor, pi: Tensor) -> tuple[str, bool, int]:
    others = alpha[:, pi.diagonal() == 1]
    return "α_j = 0 for all j other than t and f", bool((others.abs() < 1e-6).all()), others.numel()


_SIGNS: tuple[
    tuple[str, Tensor, tuple[Callable[[Tensor, Tensor, Tensor], tuple[str, bool, int]], ...]], ...
] = (
    ("1. general case (asymmetric, 60 to 90 %)", _asymmetric(4, 0.6, 0.9), (_general,)),
    ("2. symmetric case (uniform 80 %)", _uniform(4, 0.8), (_general, _symmetric)),
    (
        "3. single symmetric case (60 % between 1 and 2)",
        _swap(4, 0, 1, 0.6),
        (_general, _symmetric, _single_symmetric),
    ),
)


def theorems_text() -> tuple[str, bool]:
    """Both theorems in numbers, and whether they hold."""
    lines = [
        "Theorem 1: the largest |derivative| of the expected loss at the true parameters θ*, float64",
        f"  {'wrong labels':42}{'∂L/∂θ at α*':>14}{'∂L/∂α at α*':>14}{'∂L/∂θ at α = 0':>17}",
    ]
    holds = True
    for problem in PROBLEMS:
        found = theorem1_gradients(problem)
        zero = found["theta"] < _ZERO and found["alpha"] < _ZERO and found["theta_without_alpha"] > 1e-3
        holds = holds and zero
        lines.append(
            f"  {problem.title:42}{found['theta']:>14.1e}{found['alpha']:>14.1e}{found['theta_without_alpha']:>17.1e}"
            f"   {'holds' if zero else 'FAILS'}"
        )
    lines += [
        "",
        f"Theorem 2: α after {_STEPS} steps of an AlphaTable on labels of known noise, the network at θ*",
    ]
    for title, pi, checks in _SIGNS:
        alpha = theorem2_alpha(_OUTPUT, pi)
        error = float((alpha - alpha_star(_OUTPUT, pi)).abs().max())
        holds = holds and error < 1e-6
        lines.append(f"  {title}: |α − α*| ≤ {error:.0e}{'' if error < 1e-6 else '   FAILS'}")
        for row, (values, true) in enumerate(zip(alpha, _OUTPUT.argmax(1).tolist(), strict=True)):
            lines.append(f"    input {row + 1}, true label {true + 1}: α = {_cells(values.tolist())}")
        for check in checks:
            what, right, count = check(alpha, _OUTPUT, pi)
            holds = holds and right and count > 0
            lines.append(f"    {what}: {'holds' if right and count else 'FAILS'} ({count} compared)")
    return "\n".join(lines), holds
