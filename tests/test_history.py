"""fastac.history: a file an epoch; what was written, and nothing of a course that was given up."""

import numpy as np
import pytest

from fastac.history import ScoreHistory


def test_what_is_written_is_read(tmp_path):
    history = ScoreHistory(tmp_path / "history")
    assert history.read(np.array([1])) is None
    scores = np.array([[0.5, np.nan, -2.25], [1.5, 3.0, 1e9], [0.0, 1.0, 2.0]])
    for epoch, values in ((9, scores[0]), (10, scores[1]), (100, scores[2])):
        history.write(epoch, values)
    read = history.read(np.array([2, 1]))
    assert read["epoch"].tolist() == [9, 10, 100]
    assert read["index"].tolist() == [2, 1]
    np.testing.assert_array_equal(read["score"], [[-2.25, np.nan], [np.inf, 3.0], [2.0, 1.0]])
    history.forget_after(9)
    history.forget_after(20)
    assert history.read(np.array([0]))["epoch"].tolist() == [9]
    with pytest.raises(
        ValueError, match=r"aum-0009.npy can't be read, remove it to go on without: .*out of bounds"
    ):
        history.read(np.array([3]))
