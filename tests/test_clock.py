import numpy as np
import pytest
import torch

from fastac.clock import StepClock, step_matrix

CPU = torch.device("cpu")


def matrices(count, seed=0):
    """Real steps: random learning rates, momentum kinds and decay."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        momentum = float(draw.choice([0.0, 0.5, 0.9]))
        lr = torch.tensor(draw.uniform(0, 0.3), dtype=torch.float64)
        yield step_matrix(lr, momentum, float(draw.choice([0, 5e-5, 0.05])), bool(draw.integers(2)))


@pytest.mark.parametrize("window", [16, 32, 64, 1000])
def test_products_of_the_whole_window(window):
    clock = StepClock(CPU, window)
    steps = list(matrices(3 * window))
    for count, matrix in enumerate(steps, 1):
        clock.advance(matrix)
        if count % (window // 4 + 1) and count < len(steps):
            continue
        oldest = max(0, count - clock.window + clock.block)
        truth = [torch.eye(2, dtype=torch.float64)]
        for s in range(count, oldest, -1):
            truth.append(truth[-1] @ steps[s - 1])
        products = clock.coefficients(torch.arange(count, oldest - 1, -1))
        torch.testing.assert_close(products, torch.stack(truth), rtol=1e-12, atol=1e-15)
    assert int(clock.steps) == len(steps)


def test_a_row_ahead_of_the_clock_keeps_its_state():
    clock = StepClock(CPU, 16)
    for matrix in matrices(20):
        clock.advance(matrix)
    assert torch.equal(
        clock.coefficients(torch.tensor([20, 21])), torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    )


def test_a_skipped_step_changes_nothing():
    clock, straight = StepClock(CPU, 16), StepClock(CPU, 16)
    for k, matrix in enumerate(matrices(37)):
        clock.advance(matrix * 3, skip=torch.tensor(True))
        clock.advance(matrix, skip=torch.tensor(False) if k % 2 else None)
        straight.advance(matrix)
    assert int(clock.steps) == 37
    last = torch.arange(37 - 11, 38)
    assert torch.equal(clock.coefficients(last), straight.coefficients(last))


@pytest.mark.parametrize("steps", [0, 3, 17, 40])
def test_state(steps):
    clock, other = StepClock(CPU, 32), StepClock(CPU, 32)
    for matrix in matrices(steps):
        clock.advance(matrix)
    for matrix in matrices(50, seed=3):
        other.advance(matrix)
    state = clock.state_dict()
    other.check_state(state)
    other.load_state_dict(state)
    for matrix in matrices(5, seed=1):
        clock.advance(matrix)
        other.advance(matrix)
    last = torch.arange(max(0, steps - 10), steps + 6)
    assert torch.equal(clock.coefficients(last), other.coefficients(last))
    assert int(clock.steps) == int(other.steps)
    with pytest.raises(ValueError, match="window is 32 in the state, not 64"):
        StepClock(CPU, 64).check_state(state)
    with pytest.raises(ValueError, match="incomplete"):
        clock.check_state({"window": 32})


def test_the_first_step_of_sgd():
    """M against torch.optim.SGD without gradients, over both momentum kinds."""
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True)):
        weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.05)
        matrix = step_matrix(torch.tensor(0.1, dtype=torch.float64), momentum, 0.05, nesterov)
        state = torch.tensor([2.0, 0.0], dtype=torch.float64)
        for _ in range(3):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            state = matrix @ state
        torch.testing.assert_close(weight.detach()[0], state[0], rtol=1e-14, atol=0)


def test_learning_rates_from_the_host_and_the_device():
    clock = StepClock(CPU, 16)
    for lr in (0.1, torch.tensor(0.2), 0.1, 0.1, 0.3, torch.tensor(0.1, requires_grad=True), 0.3):
        clock.set_lr(lr)
        assert float(clock.lr) == pytest.approx(float(torch.as_tensor(lr).detach()), rel=1e-7)
        assert not clock.lr.requires_grad
