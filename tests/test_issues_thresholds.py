"""AUM with threshold samples: the sets, the two runs at once, and who is judged by which."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastac.issues import ThresholdRuns, draw_threshold_sets, find_threshold_issues

pd = pytest.importorskip("pandas")


@pytest.mark.parametrize(("num_samples", "num_classes"), [(1000, 10), (11, 10), (50_000, 100), (4, 1)])
def test_sets_are_disjoint_and_of_one_classs_size(num_samples, num_classes):
    sets = draw_threshold_sets(num_samples, num_classes, seed=3)
    assert sets.shape == (2, num_samples // (num_classes + 1))
    assert len(np.unique(sets)) == sets.size
    assert sets.min() >= 0
    assert sets.max() < num_samples
    assert np.array_equal(sets, draw_threshold_sets(num_samples, num_classes, seed=3))
    if num_samples > 100:
        assert not np.array_equal(sets, draw_threshold_sets(num_samples, num_classes, seed=4))
        assert abs(sets.mean() / num_samples - 0.5) < 0.1  # from all over


def test_too_few_samples_for_a_set():
    with pytest.raises(ValueError, match="num_samples was 10; it should be at least 11"):
        draw_threshold_sets(10, 10)


def judged(aum, sets, percentile):
    """The rule, one sample at a time."""
    thresholds = [np.percentile([aum[run][i] for i in sets[run]], percentile) for run in range(2)]
    flagged, mean = [], []
    for i in range(len(aum[0])):
        runs = [run for run in range(2) if i not in sets[run]]
        flagged.append(all(aum[run][i] <= thresholds[run] for run in runs))
        mean.append(np.mean([aum[run][i] for run in runs]))
    return np.array(flagged), np.array(mean)


@pytest.mark.parametrize("percentile", [99, 50])
def test_each_sample_is_judged_where_it_is_no_threshold_sample(percentile):
    rng = np.random.default_rng(0)
    aum = rng.normal(2, 2, (2, 300))
    sets = draw_threshold_sets(300, 5)
    for run in range(2):
        aum[run, sets[run]] = rng.normal(-1, 1, sets.shape[1])
    labels = rng.integers(0, 5, 300)
    frame = find_threshold_issues(aum, sets, labels, percentile=percentile)
    by_id = frame.sort_values("index")
    flagged, mean = judged(aum, sets, percentile)
    np.testing.assert_array_equal(by_id["is_label_issue"], flagged)
    np.testing.assert_allclose(by_id["aum"], mean)
    assert 0 < flagged.sum() < 300
    assert frame["is_label_issue"].to_numpy()[: flagged.sum()].all()  # the ranking agrees with the flags
    assert (by_id["given_label"].to_numpy() == labels).all()
    assert frame["label_quality"].is_monotonic_increasing
    assert {"suggested_label", "kind", "max_rank"} <= set(frame)


def test_samples_never_seen_are_not_judged():
    aum = np.full((2, 6), 1.0)
    aum[0, 1] = aum[1, 0] = -1.0  # threshold samples
    aum[:, 5] = np.nan
    aum[0, 4], aum[1, 4] = np.nan, -2.0  # seen in one run
    frame = find_threshold_issues(aum, [[1], [0]], [0] * 6).set_index("index")
    assert frame["is_label_issue"].sort_index().tolist() == [False, False, False, False, True, False]
    assert np.isnan(frame["label_quality"][5])
    assert np.isnan(frame["aum"][5])
    assert frame["aum"][4] == -2


def two_runs(steps=40):
    """Both runs at once on points in three groups; also what each network was shown."""
    torch.manual_seed(0)
    truth = torch.randint(3, (240,))
    wrong = torch.arange(240) < 36
    labels = torch.where(wrong, (truth + 1) % 3, truth)
    inputs = F.one_hot(truth, 3) * 3.0 + 0.5 * torch.randn(240, 3)
    networks = [torch.nn.Linear(3, 4) for _ in range(2)]
    runs = ThresholdRuns(labels, num_classes=3, seed=1)
    optimizer = torch.optim.SGD([p for net in networks for p in net.parameters()], lr=0.05, momentum=0.9)
    shown = []
    for _ in range(steps):
        for index in torch.randperm(240).split(60):
            logits = [net(inputs[index]) for net in networks]
            loss = runs.loss(logits, index)
            expected = sum(F.cross_entropy(z, y[index]) for z, y in zip(logits, runs.labels, strict=True))
            torch.testing.assert_close(loss, expected)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shown.append((index, [z.detach().clone() for z in logits]))
    return runs, wrong.numpy(), shown


def test_two_runs_at_once_find_wrong_labels():
    runs, wrong, _ = two_runs()
    for run, ids in enumerate(runs.sets):
        assert (runs.labels[run, ids] == 3).all()
        assert (runs.labels[run] == 3).sum() == len(ids) == 60
    frame = runs.find_label_issues(class_names={"1": "b", "0": "a", "2": "c"}).sort_values("index")
    flagged = frame["is_label_issue"].to_numpy()
    assert flagged[wrong].mean() > 0.9
    assert flagged[~wrong].mean() < 0.1
    assert frame["given_class"].tolist() == ["abc"[k] for k in runs.given]


def test_aum_equals_the_packages(tmp_path):
    package = pytest.importorskip("aum")
    runs, _, shown = two_runs(steps=3)
    for run in range(2):
        calculator = package.AUMCalculator(str(tmp_path / str(run)))
        for index, logits in shown:
            calculator.update(logits[run], runs.labels[run][index], index.tolist())
        calculator.finalize()
        theirs = pd.read_csv(tmp_path / str(run) / "aum_values.csv").sort_values("sample_id")
        np.testing.assert_allclose(runs.dynamics[run].aum, theirs["aum"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aum": np.zeros((2, 5))}, r"aum must be \(2, 6\), of two runs, got \(2, 5\)"),
        ({"aum": np.zeros((3, 6))}, r"aum must be \(2, 6\), of two runs, got \(3, 6\)"),
        ({"sets": [[0], [0]]}, "sets must hold no id twice"),
        ({"sets": [[0], [6]]}, r"sets must hold no id twice, and ids in \[0, 6\)"),
        ({"sets": [0, 1]}, r"sets must be \(2, M\) integers"),
        ({"sets": [[0.0], [1.0]]}, r"sets must be \(2, M\) integers with M ≥ 1, got \(2, 1\) float64"),
        ({"aum": np.full((2, 6), np.nan)}, "aum is NaN for 1 threshold samples of run 0"),
        ({"percentile": 101}, "percentile must be a number from 0 to 100, got 101"),
        ({"labels": [0.0] * 6}, r"labels must be \(6,\) integers"),
        ({"class_names": {1: "a"}}, r"class_names must have a name for each class .* got the keys \[1\]"),
        ({"class_names": ["a"], "labels": [0, 1, 0, 0, 0, 0]}, r"labels must be in \[0, 1\), got 1"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"aum": np.zeros((2, 6)), "sets": [[0], [1]], "labels": [0] * 6} | change
    with pytest.raises(ValueError, match=message):
        find_threshold_issues(
            arguments.pop("aum"), arguments.pop("sets"), arguments.pop("labels"), **arguments
        )


def test_runs_refuse_labels_outside_the_classes_and_one_networks_logits():
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 3"):
        ThresholdRuns([0, 1, 2, 3] * 5, num_classes=3)
    with pytest.raises(ValueError, match="logits must be those of 2 networks, got 1"):
        ThresholdRuns([0, 1, 2] * 5, num_classes=3).loss([torch.zeros(2, 4)], torch.arange(2))
