"""The Triton backend beside fastac.eager: on a CUDA device where there is one, else in Triton's interpreter
(see conftest.py)."""

import pytest
import torch
from backend_cases import BASE, CASES, Problem, assert_as_good_as_eager, assert_same_state
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton: pip install 'autocleansing[triton]'")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from fastac import eager, triton  # noqa: E402
from fastac.contract import Objective  # noqa: E402

EXAMPLES = 150 if DEVICE == "cuda" else 25


def small(case, batch, classes):
    return case._replace(batch=batch, classes=classes)


CASE = st.builds(small, CASES, st.integers(1, 40), st.integers(2, 70))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(CASE, st.sampled_from([8, 1024]), st.sampled_from([(8, 16, 8), (64, 16, 8), (128, 16, 128)]))
def test_forward_and_forward_update(case, scanned, limits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "SCANNED", scanned)
        for name, value in zip(("RESIDENT", "LONG", "GROUPED"), limits, strict=True):
            patch.setattr(triton, name, value)
        check_forward(case)
        check_forward_update(case)


def check_forward(case):
    problem = Problem(case, DEVICE)
    truth = problem.forward(eager, problem.rows(torch.float64), problem.logits.double())
    eagers = problem.forward(eager, problem.rows())
    mine = problem.forward(triton, problem.rows())
    assert [x.dtype for x in mine] == [x.dtype for x in eagers]
    assert [x.shape for x in mine] == [x.shape for x in eagers]
    assert_as_good_as_eager(mine.loss, eagers.loss, truth.loss)
    assert_as_good_as_eager(mine.grad, eagers.grad, truth.grad)
    for column in range(5):
        assert_as_good_as_eager(*(x.statistics[:, column] for x in (mine, eagers, truth)))
    assert torch.equal(mine.ids, truth.ids)
    assert not problem.flags.any()


def check_forward_update(case):
    problem = Problem(case, DEVICE)
    states = [problem.rows(torch.float64), problem.rows(), problem.rows()]
    recorded = [problem.accumulators() for _ in range(3)]
    truth = problem.forward_update(eager, states[0], problem.logits.double(), recorded[0])
    eagers = problem.forward_update(eager, states[1], None, recorded[1])
    mine = problem.forward_update(triton, states[2], None, recorded[2])
    assert torch.equal(mine.ids, eagers.ids)
    assert mine.grad.dtype == case.logits
    assert_as_good_as_eager(mine.loss, eagers.loss, truth.loss)
    rounding = max(2.0**-21, torch.finfo(case.logits).eps)  # of the gradient, which is in the logits' dtype
    assert_as_good_as_eager(mine.grad, eagers.grad, truth.grad, rounding)
    assert_same_state(states[2], states[1], states[0])
    for name in ("visits", "was_correct", "forgetting"):
        assert torch.equal(getattr(recorded[2], name), getattr(recorded[0], name)), name
    for column in range(6):
        assert_as_good_as_eager(*(recorded[i].sums[:, column] for i in (2, 1, 0)))
