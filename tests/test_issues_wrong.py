"""How many labels are called issues where right and wrong ones are no two groups."""

import numpy as np
import pytest

from fastac.issues import alpha_statistics, find_label_issues
from fastac.issues.rankings import Scores
from fastac.issues.wrong import confident_count, margin_count, wrong_probability

pd = pytest.importorskip("pandas")

CLASSES, SIZE = 5, 4000


def simulated_run(rate, *, to_next=True, alike=0.0, by_heart=0.05, error=0.6, seed=0):
    """A run's AUM, mean p_y, α, and the labels: right but for `rate` of them, which are the next class's (or any
    other's). Of the samples, a share `alike` shows something between its class and the next one, and has either's label
    by the probability that it looks like it. The network says how probable each label is, given what the image shows,
    to some error, and has learned the given label by heart to a part by_heart."""
    rng = np.random.default_rng(seed)
    rows = np.arange(SIZE)
    true = rng.integers(0, CLASSES, SIZE)
    shown = np.zeros((SIZE, CLASSES))
    looks = np.where(rng.random(SIZE) < alike, rng.random(SIZE), 1.0)
    shown[rows, true], shown[rows, (true + 1) % CLASSES] = looks, 1 - looks
    label = np.where(rng.random(SIZE) < looks, true, (true + 1) % CLASSES)
    wrong = rng.random(SIZE) < rate
    step = 1 if to_next else rng.integers(1, CLASSES, SIZE)
    label = np.where(wrong, (label + step) % CLASSES, label)
    others = np.roll(shown, 1, axis=1) if to_next else (1 - shown) / (CLASSES - 1)
    logits = np.log(0.9 * ((1 - rate) * shown + rate * others) + 0.1 / CLASSES)
    logits += rng.normal(0, error, logits.shape)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probability *= 1 - by_heart
    probability[rows, label] += by_heart
    own = probability[rows, label]
    rival = np.where(np.arange(CLASSES) == label[:, None], 0, probability).max(1)
    alpha = -0.3 * probability
    alpha[rows, label] = 0.3 * (1 - own)
    alpha[:, 0] = 0  # as the table holds it
    dynamics = pd.DataFrame({"index": rows, "aum": np.log(own / rival), "p_mean": own})
    return dynamics, alpha, label, wrong


def called(source, labels, **more):
    return find_label_issues(source, labels, **more)["is_label_issue"].mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alike", [0.0, 0.3])
def test_of_clean_labels_few_are_called(alike, seed):
    dynamics, alpha, labels, _ = simulated_run(0.0, alike=alike, seed=seed)
    assert (dynamics["aum"] < 0).mean() >= alike / 5  # what looks like two classes often is below zero
    assert called(alpha, labels, dynamics=dynamics) < (0.03 if alike else 0.002)
    assert called(dynamics, labels) < (0.03 if alike else 0.002)


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_labels_of_the_next_class_are_counted(rate):
    dynamics, alpha, labels, wrong = simulated_run(rate)
    for method in ("combined", "aum", "alpha"):
        assert called(alpha, labels, dynamics=dynamics, method=method) == pytest.approx(
            wrong.mean(), abs=0.05
        )
    assert 0.6 * wrong.mean() < called(dynamics, labels) < wrong.mean() + 0.05  # less is known without α


def test_the_quality_is_a_probability_also_without_two_groups():
    dynamics, alpha, labels, wrong = simulated_run(0.4)
    for frame in (find_label_issues(alpha, labels, dynamics=dynamics), find_label_issues(dynamics, labels)):
        np.testing.assert_array_equal(frame["is_label_issue"], frame["label_quality"] < 0.5)
        assert (frame["label_quality"].diff()[1:] > 0).all()
        by_id = frame.sort_values("index")
        for low in (0.0, 0.25, 0.5, 0.75):
            part = by_id["label_quality"].between(low, low + 0.25).to_numpy()
            assert part.sum() > 100
            assert (~wrong[part]).mean() == pytest.approx(by_id["label_quality"][part].mean(), abs=0.25)


def test_confident_count_by_hand():
    # Classes 0 and 1, mean p_y 0.6 and 0.8. What the rival reaches of that: 0.9/0.8, 0.54/0.6 and, where the given
    # label is the more probable, nothing.
    own = np.array([0.1, 0.7, 0.7, 0.9, 0.46, 0.95, 0.89])
    given = np.array([0, 0, 0, 0, 1, 1, 1])
    usual = [own[given == label].mean() for label in (0, 1)]
    assert usual == pytest.approx([0.6, 0.7667], abs=1e-4)
    count = confident_count(own, 1 - own, 1 - given, given, 2)
    # 0.9 / 0.767 ≥ 1 − 1/7; the second reaches 0.54 / 0.6 = 0.9 ≥ 1 − 2/7; no third is below its rival
    assert count == 2
    assert confident_count(own, np.where(given == 1, 0.47, 1 - own), 1 - given, given, 2) == 2  # 0.78 ≥ 5/7
    own[4] = 0.3  # the third class's samples: 0.42 / 0.6 = 0.7 < 5/7
    assert confident_count(own, np.where(given == 1, 0.42, 1 - own), 1 - given, given, 2) == 1
    assert confident_count(np.full(6, 0.5), np.full(6, 0.5), np.ones(6, int), np.zeros(6, int), 2) == 0


def test_margin_count_by_hand():
    # The usual winning margin is 4, three quarters of it 3. Reached: 1, 0.7 and 0.2; wanted: 6/7, 5/7 and 4/7
    assert margin_count(np.array([-3.0, -2.1, -0.6, 2.0, 4.0, 4.0, 6.0])) == 1
    assert margin_count(np.array([-3.0, -2.2, -0.6, 2.0, 4.0, 4.0, 6.0])) == 2
    assert margin_count(np.array([-2.2, -2.2, -0.6, 2.0, 4.0, 4.0, 6.0])) == 2  # the second has company
    assert margin_count(np.array([-3.0, -1.0, 0.0])) == 0  # no given label wins
    assert margin_count(np.array([3.0, 1.0, 2.0])) == 0


def test_probability_without_two_groups_by_hand():
    """Logistic in the AUM: 1/2 after the last one that counts, scale (1/10 + their share) · the usual margin."""
    aum = np.append(np.random.default_rng(0).normal(2, 1.5, 999), np.nan)
    probability = wrong_probability(Scores(np.zeros(1000, int), 2, aum=aum))
    seen = np.sort(aum[:-1])
    usual = np.median(seen[seen > 0])
    number = margin_count(seen)
    assert 0 < number < 50
    threshold = (seen[number - 1] + seen[number]) / 2
    expected = 1 / (1 + np.exp((aum[:-1] - threshold) / ((0.1 + number / 999) * usual)))
    np.testing.assert_allclose(probability[:-1], expected)
    assert probability[-1] == 0
    assert (wrong_probability(Scores(np.zeros(9, int), 2, aum=-1 - np.arange(9.0))) == 0).all()  # none wins


def test_a_group_of_outliers_does_not_stand_for_all_wrong_labels():
    """A few labels far below all others are two groups to the mixture, although many more are wrong."""
    rng = np.random.default_rng(0)
    wrong = np.arange(4000) < 1200
    aum = np.where(wrong, rng.normal(-1.2, 0.5, 4000), rng.normal(1.2, 0.7, 4000))
    aum[:40] = rng.normal(-12, 0.3, 40)
    probability = wrong_probability(Scores(np.zeros(4000, int), 2, aum=aum))
    assert (probability > 0.5).mean() == pytest.approx(0.3, abs=0.05)


def test_the_rivals_share_is_what_alpha_gave_it():
    dynamics, alpha, labels, _ = simulated_run(0.2)
    statistics = alpha_statistics(alpha, labels)
    of_rival = (1 - dynamics["p_mean"]) * statistics.rival_share
    np.testing.assert_allclose(np.log(dynamics["p_mean"] / of_rival), dynamics["aum"], atol=1e-9)
    assert (alpha_statistics(np.zeros((3, 4)), [0, 1, 2]).rival_share == 0).all()
    assert (alpha_statistics(np.ones(3), [0, 1, 2]).rival_share == 0).all()  # AC2 knows of none
