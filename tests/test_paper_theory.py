"""Table 1 and both theorems of the AutoCleansing paper."""

import pytest
import torch

from fastac.paper import theory
from fastac.paper.__main__ import main
from fastac.paper.theory import (
    EXAMPLES,
    PROBLEMS,
    alpha_star,
    example_alpha,
    fit_alpha,
    label_probabilities,
    theorem1_gradients,
    theorem2_alpha,
)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_table_1(example):
    alpha = torch.tensor(example.biased_output) - torch.tensor(example.true_output)
    assert alpha.tolist() == pytest.approx(example.alpha, abs=1e-6)
    size = len(example.alpha) - example.outside
    assert example_alpha(example).tolist() == pytest.approx(example.alpha[:size], abs=1e-9)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.title)
def test_theorem_1(problem):
    assert problem.pi.sum(0).tolist() == pytest.approx([1] * problem.pi.shape[1])
    found = theorem1_gradients(problem, seed=3)
    assert found["theta"] < 1e-14
    assert found["alpha"] < 1e-14
    assert found["theta_without_alpha"] > 0.05


def test_theorem_1_needs_alpha_to_be_right():
    """With α* of other noise the gradient is not zero: the check can fail."""
    problem, other = PROBLEMS[0], PROBLEMS[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory, "alpha_star", lambda output, pi: alpha_star(output, other.pi))
        assert theorem1_gradients(problem)["theta"] > 1e-3


def test_alpha_star_by_hand():
    """Two categories and one outside: π(1|3) = 3/4."""
    output = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    pi = torch.tensor([[0.9, 0.2, 0.75], [0.1, 0.8, 0.25]], dtype=torch.float64)
    e = output.exp()[0].tolist()
    first, second = 0.9 * e[0] + 0.2 * e[1] + 0.75 * e[2], 0.1 * e[0] + 0.8 * e[1] + 0.25 * e[2]
    wanted = torch.tensor([first, second], dtype=torch.float64).log() - output[0, :2]
    torch.testing.assert_close(alpha_star(output, pi)[0], wanted)
    torch.testing.assert_close(
        label_probabilities(output, pi)[0], torch.tensor([first, second], dtype=torch.float64) / sum(e)
    )


def test_theorem_2():
    """Uniform noise of 80 %: α of the true category is negative, although the trained table knows of labels alone."""
    output = torch.tensor([[3.0, 0.0, 0.5], [0.0, 0.2, 2.0]], dtype=torch.float64)
    pi = torch.full((3, 3), 0.4, dtype=torch.float64).fill_diagonal_(0.2)
    alpha = theorem2_alpha(output, pi)
    torch.testing.assert_close(alpha, alpha_star(output, pi), atol=1e-7, rtol=0)
    assert alpha[0, 0] < 0
    assert alpha[1, 2] < 0
    assert alpha[0, 1] > 0


def test_fit_alpha_is_in_ac1s_gauge():
    labels = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    alpha = fit_alpha(torch.zeros(1, 3, dtype=torch.float64), labels)
    wanted = labels.log() - labels.log()[:, :1]
    torch.testing.assert_close(alpha, wanted, atol=1e-8, rtol=0)


@pytest.mark.parametrize("what", ["table1", "theorems"])
def test_commands(what, capsys):
    assert main([what]) == 0
    text = capsys.readouterr().out
    assert "FAILS" not in text
    assert "DIFFERS" not in text
    assert text.count("agrees" if what == "table1" else "holds") == (3 if what == "table1" else 11)


def test_the_commands_say_when_something_fails(capsys, monkeypatch):
    wrong = [theory.Example("(A)", (0.1, 0.1, 0.8), (0.8, 0.1, 0.1), (0.6, 0.0, -0.7), observed=0, true=2)]
    monkeypatch.setattr(theory, "EXAMPLES", wrong)
    assert main(["table1"]) == 1
    assert "DIFFERS" in capsys.readouterr().out
    monkeypatch.setattr(theory, "alpha_star", lambda output, pi: torch.zeros(len(output), len(pi)).double())
    assert main(["theorems"]) == 1
    assert "FAILS" in capsys.readouterr().out
