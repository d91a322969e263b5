from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from fastac.issues import alpha as alpha_module
from fastac.issues import detection_scores, find_label_issues, given_label_alpha
from fastac.issues import scores as scores_module

pd = pytest.importorskip("pandas")


class Table:
    """What find_label_issues asks of an AlphaTable."""

    def __init__(self, alpha, form):
        self.alpha, self.form = torch.as_tensor(alpha), form

    def dense(self):
        return self.alpha


class Dynamics:
    """What find_label_issues asks of TrainingDynamics."""

    def __init__(self, aum):
        self.aum = torch.as_tensor(aum)


def algorithm2(alpha, num_missing):
    """The paper's Algorithm 2, word by word; Max and Min take the smaller id where several samples tie."""
    centered = alpha - alpha.mean(1, keepdims=True)
    highest = {n: row.max() for n, row in enumerate(centered)}
    lowest = {n: row.min() for n, row in enumerate(centered)}
    missing: list[int] = []
    while len(missing) < num_missing:
        n = max(highest, key=lambda n: (highest[n], -n))
        del highest[n]
        if n not in missing:
            missing.append(n)
        if len(missing) < num_missing:
            n = min(lowest, key=lambda n: (lowest[n], n))
            del lowest[n]
            if n not in missing:
                missing.append(n)
    return missing


def mixture(num_clean, num_wrong, seed=0, num_classes=10):
    """AC1's α as a run leaves it: clean labels near 0 with a tail, wrong ones near the largest α there is."""
    rng = np.random.default_rng(seed)
    total = num_clean + num_wrong
    labels = rng.integers(0, num_classes, total)
    size = np.minimum(rng.exponential(0.02, total), 0.3)
    wrong = np.zeros(total, bool)
    wrong[rng.choice(total, num_wrong, replace=False)] = True
    size[wrong] = rng.normal(0.27, 0.025, num_wrong)
    true = np.where(wrong, (labels + rng.integers(1, num_classes, total)) % num_classes, labels)
    alpha = rng.normal(0, 0.001, (total, num_classes))
    alpha[np.arange(total), labels] += size
    other = np.where(wrong, true, (labels + 1) % num_classes)
    alpha[np.arange(total), other] -= size
    return alpha, labels, true, wrong


# ---- the ranking


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_ranking_is_algorithm_2_for_every_percent(seed, levels):
    # K = 4 and quarters: means are exact, so ties are ties for both; with few levels most ranks are tied
    rng = np.random.default_rng(seed)
    alpha = rng.integers(-levels, levels + 1, (40, 4)) / 4
    alpha[(alpha == alpha[:, :1]).all(axis=1), 1] += (
        0.25  # a row of one number is none of a sample that was drawn
    )
    labels = rng.integers(0, 4, 40)
    for num_missing in range(41):
        frame = find_label_issues(alpha, labels, percent=100 * num_missing / 40)
        expected = algorithm2(alpha, num_missing)
        assert frame["index"][frame["is_label_issue"]].tolist() == expected
        assert frame["index"][:num_missing].tolist() == expected


def test_numbers_of_one_small_table():
    alpha = np.array([[0.0, 4.0, -1.0], [0.0, 0.0, 0.0], [0.0, -6.0, 3.0], [0.0, 1.0, 2.0]])
    frame = find_label_issues(alpha, [1, 0, 2, 2], percent=50)
    assert frame.columns.tolist() == [
        "index",
        "given_label",
        "suggested_label",
        "is_label_issue",
        "label_quality",
        "kind",
        "alpha_max",
        "alpha_min",
        "max_rank",
        "min_rank",
    ]
    # α̂: [-1, 3, -2], [0, 0, 0], [1, -5, 4], [-1, 0, 1]; by max: 2, 0, 3, 1; by min: 2, 0, 3, 1
    assert frame["index"].tolist() == [2, 0, 3, 1]
    assert frame["given_label"].tolist() == [2, 1, 2, 0]
    # α*: [-3, 4, -1], [0, 0, 0], [3, -6, 3], [-3, 1, 2]: class 0 set free of the gauge
    assert frame["suggested_label"].tolist() == [1, 0, 0, pd.NA]
    assert str(frame["suggested_label"].dtype) == "Int64"
    assert frame["is_label_issue"].tolist() == [True, True, False, False]
    assert frame["label_quality"][:3].tolist() == pytest.approx([0, 1 / 2, 1])
    assert math.isnan(frame["label_quality"][3])  # α as before training: never drawn
    assert frame["alpha_max"].tolist() == [4, 3, 1, 0]
    assert frame["alpha_min"].tolist() == [-5, -2, -1, 0]
    assert frame["max_rank"].tolist() == [25, 50, 75, 100]
    assert frame["min_rank"].tolist() == [25, 50, 75, 100]
    assert frame.index.tolist() == [0, 1, 2, 3]


def test_rank_1_of_50000_is_0_002_per_cent():
    alpha = np.random.default_rng(0).normal(size=(50_000, 3))
    frame = find_label_issues(alpha, np.zeros(50_000, int))
    assert frame["max_rank"].min() == pytest.approx(0.002)
    assert frame["min_rank"].max() == pytest.approx(100)
    assert frame["max_rank"][0] == pytest.approx(0.002)  # Algorithm 2 starts with the maximum
    assert frame["min_rank"][1] == pytest.approx(0.002)


def test_suggestion_is_the_lowest_constant_but_never_the_given_label():
    rng = np.random.default_rng(1)
    alpha, labels = rng.normal(size=(500, 7)), rng.integers(0, 7, 500)
    frame = find_label_issues(alpha, labels).sort_values("index")
    masked = alpha.copy()
    masked[:, 0] = -alpha[:, 1:].sum(1)
    masked[np.arange(500), labels] = np.inf
    assert frame["suggested_label"].tolist() == masked.argmin(1).tolist()
    assert (frame["suggested_label"] != frame["given_label"]).all()


def test_predicted_labels_win():
    alpha = np.array([[0.0, 4.0, -1.0], [0.0, 0.0, 0.0]])
    frame = find_label_issues(alpha, [1, 0], pred_labels=torch.tensor([1, 2]))
    assert frame["suggested_label"].tolist() == [1, 2]
    frame = find_label_issues(np.array([0.1, 0.3]), [1, 0], pred_labels=[1, 2])
    assert frame["index"].tolist() == [1, 0]
    assert frame["suggested_label"].tolist() == [2, 1]


def test_label_issues_that_were_learned_by_heart_get_another_suggestion():
    alpha = np.array([[0.0, 0.1, -0.9], [0, 0.2, -0.8], [0.0, 0.0, 0.0], [0, 0, 0], [0, 0, 0]])
    given, predicted, other = [1, 1, 0, 0, 1], [1, 0, 0, 2, 1], [0, 0, 2, 2, 2]
    both = {"percent": 60, "pred_labels": predicted, "other_labels": other}
    by_alpha = {"method": "alpha", "dynamics": Dynamics(np.zeros(5))}  # so all have been seen
    frame = find_label_issues(alpha, given, **by_alpha, **both).set_index("index")
    assert frame["is_label_issue"].sort_index().tolist() == [True, True, True, False, False]
    # By α; by the prediction; by the runner-up, for α is one number; what is no issue keeps the prediction.
    assert frame["suggested_label"].sort_index().tolist() == [2, 0, 2, 2, 1]
    without = find_label_issues(alpha, given, **by_alpha, percent=60, pred_labels=predicted).set_index(
        "index"
    )
    assert without["suggested_label"].sort_index().tolist() == [2, 0, 0, 2, 1]
    aum = np.array([-3.0, -2, -1, 1, 2])
    by_aum = find_label_issues(aum, given, method="aum", **both).set_index("index")
    assert by_aum["suggested_label"].sort_index().tolist() == [0, 0, 2, 2, 1]


def test_ac2_ranks_by_alpha():
    frame = find_label_issues(np.array([0.1, -0.2, 0.3, 0.1]), [3, 1, 0, 2], percent=25)
    assert frame["index"].tolist() == [2, 0, 3, 1]
    assert frame["alpha_max"].tolist() == [0.3, 0.1, 0.1, -0.2]
    assert frame["max_rank"].tolist() == [25, 50, 75, 100]
    assert frame["is_label_issue"].tolist() == [True, False, False, False]
    assert frame[["alpha_min", "min_rank"]].isna().all(axis=None)
    assert frame["suggested_label"].isna().all()
    assert "aum" not in frame


def test_aum_ranks_ascending_and_puts_unseen_samples_last():
    aum = np.array([2.0, np.nan, -3.0, -1.0, np.nan, 5.0])
    frame = find_label_issues(aum, [0, 1, 2, 0, 1, 2], method="aum", percent=50)
    assert frame["index"].tolist() == [2, 3, 0, 5, 1, 4]
    np.testing.assert_array_equal(frame["aum"], [-3, -1, 2, 5, np.nan, np.nan])
    np.testing.assert_allclose(frame["label_quality"], [0, 1 / 3, 2 / 3, 1, np.nan, np.nan])
    assert frame["is_label_issue"].tolist() == [True, True, True, False, False, False]
    assert frame["suggested_label"].isna().all()
    assert frame[["alpha_max", "alpha_min", "max_rank", "min_rank"]].isna().all(axis=None)
    everything = find_label_issues(aum, [0, 1, 2, 0, 1, 2], method="aum", percent=100)
    assert everything["is_label_issue"].sum() == 4  # never a sample that nobody has seen
    nothing = find_label_issues(np.full(3, np.nan), [0, 1, 2], method="aum", percent=100)
    assert nothing["is_label_issue"].sum() == 0


@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_alpha_of_samples_never_drawn(form):
    alpha, labels, _, wrong = mixture(900, 100)
    alpha[:, 0] = 0
    if form == "ac2":
        alpha = alpha[np.arange(1000), labels] - 0.01  # some below zero: zero is not the lowest
    drawn = find_label_issues(alpha, labels)
    assert drawn["label_quality"].notna().all()
    never = [3, 500, *range(990, 1000)]
    alpha[never] = 0
    frame = find_label_issues(alpha, labels, class_names=[f"c{k}" for k in range(10)])
    assert frame["index"][988:].tolist() == never
    assert frame["label_quality"][988:].isna().all()
    assert (frame["alpha_max"][988:] == 0).all()
    # All others as if these were not there, also how many are issues: they are not taken for small α.
    alone = np.setdiff1d(np.arange(1000), never)
    others = find_label_issues(alpha[alone], labels[alone])
    assert frame["index"][:988].tolist() == alone[others["index"]].tolist()
    for name in ("label_quality", "is_label_issue", "suggested_label", "kind"):
        pd.testing.assert_series_equal(frame[name][:988], others[name])
    assert 50 < frame["is_label_issue"].sum() == others["is_label_issue"].sum()
    everything = find_label_issues(alpha, labels, percent=100)
    assert set(everything["index"][~everything["is_label_issue"]]) == set(never)
    nobody = find_label_issues(np.zeros_like(alpha), labels, percent=50)
    assert nobody["label_quality"].isna().all()
    assert nobody["is_label_issue"].sum() == 0


def test_by_the_aum_a_sample_was_seen_or_not():
    alpha, labels, _, _ = mixture(90, 10)
    alpha[[4, 5]] = 0
    aum = np.linspace(-2, 2, 100)
    aum[[5, 6]] = np.nan
    frame = find_label_issues(alpha, labels, method="alpha", dynamics=Dynamics(aum))
    assert frame["index"][97:].tolist() == [4, 5, 6]  # 4 was seen
    assert frame["label_quality"].isna().tolist() == [False] * 98 + [True] * 2


def test_class_names_add_columns():
    names = ["cat", "dog", "$x_1$"]
    frame = find_label_issues(np.array([[0.0, 4, -1], [0, 0, 0]]), [1, 0], class_names=names)
    assert frame["given_label"].tolist() == [1, 0]
    assert frame["given_class"].tolist() == ["dog", "cat"]
    assert frame["suggested_class"][0] == "cat"  # α* of class 0 is −3
    assert pd.isna(frame["suggested_class"][1])


def test_class_names_by_class():
    alpha, listed = np.eye(11)[:5] - np.eye(11)[10], [f"name {k}" for k in range(11)]
    labels = [10, 1, 2, 3, 9]
    expected = find_label_issues(alpha, labels, class_names=listed)
    assert expected.set_index("index")["given_class"].sort_index().tolist() == [listed[k] for k in labels]
    shuffled = sorted(enumerate(listed), key=lambda pair: pair[0] * 7 % 11)
    for names in (
        dict(shuffled),
        {str(k): name for k, name in shuffled},  # as in a config.json
        {np.int64(k): name for k, name in shuffled},
        pd.Series(listed, index=range(100, 111)),  # by position
    ):
        pd.testing.assert_frame_equal(find_label_issues(alpha, labels, class_names=names), expected)


def test_sources_of_every_kind_agree():
    rng = np.random.default_rng(2)
    alpha, labels = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    expected = find_label_issues(alpha, labels)
    read_only = alpha.copy()
    read_only.flags.writeable = False
    tensor = torch.nn.Parameter(torch.from_numpy(alpha))
    for source in (Table(alpha, "ac1"), tensor, read_only, alpha.tolist(), np.asfortranarray(alpha)):
        for given in (labels.tolist(), torch.from_numpy(labels), labels.astype(np.uint8)):
            pd.testing.assert_frame_equal(find_label_issues(source, given), expected)
    assert torch.equal(tensor.detach(), torch.from_numpy(alpha))  # read, not written
    half = find_label_issues(torch.from_numpy(alpha).bfloat16(), labels)
    rounded = torch.from_numpy(alpha).bfloat16().double().numpy()
    pd.testing.assert_frame_equal(half, find_label_issues(rounded, labels))
    constants = alpha[:, 0]
    expected = find_label_issues(constants, labels)
    pd.testing.assert_frame_equal(find_label_issues(Table(constants, "ac2"), labels), expected)
    expected = find_label_issues(constants, labels, method="aum")
    pd.testing.assert_frame_equal(find_label_issues(Dynamics(constants), labels, method="aum"), expected)


@pytest.mark.parametrize("elements", [1, 7, 12, 64])
def test_chunks_of_any_size_give_the_same(monkeypatch, elements):
    rng = np.random.default_rng(3)
    alpha, labels = rng.normal(size=(29, 3)), rng.integers(0, 3, 29)
    expected, offsets = find_label_issues(alpha, labels), given_label_alpha(alpha, labels)
    monkeypatch.setattr(alpha_module, "_CHUNK_ELEMENTS", elements)
    sizes = [rows.shape[0] for _, rows in alpha_module._array_chunks(alpha)]
    assert sum(sizes) == 29
    assert max(sizes) == max(1, min(29, elements // 3))
    pd.testing.assert_frame_equal(find_label_issues(alpha, labels), expected)
    np.testing.assert_array_equal(given_label_alpha(torch.from_numpy(alpha), labels), offsets)


def test_given_label_alpha():
    alpha = np.array([[0.0, 4.0, -1.0], [0.0, -6.0, 3.0]])
    np.testing.assert_allclose(given_label_alpha(alpha, [1, 0]), [3, 1])
    np.testing.assert_allclose(given_label_alpha(np.array([0.5, -0.25]), [1, 0]), [0.5, -0.25])


def test_labels_of_two_classes_may_be_bool():
    rng = np.random.default_rng(4)
    alpha, labels = rng.normal(size=(30, 2)), rng.random(30) < 0.5
    expected = find_label_issues(alpha, labels.astype(int), pred_labels=1 - labels)
    assert expected["given_label"].dtype == np.int64
    for given in (labels, labels.tolist(), torch.from_numpy(labels)):
        pd.testing.assert_frame_equal(find_label_issues(alpha, given, pred_labels=~labels), expected)


def test_percent_may_be_any_real_number():
    alpha = np.arange(20.0)
    for percent in (25, 25.0, np.float32(25), np.int64(25)):
        assert find_label_issues(alpha, [0] * 20, percent=percent)["is_label_issue"].sum() == 5


# ---- how many


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2, 0.4])
@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_threshold_finds_the_wrong_ones(rate, form):
    alpha, labels, _, wrong = mixture(round(5000 * (1 - rate)), round(5000 * rate))
    source = alpha if form == "ac1" else alpha[np.arange(5000), labels]
    scores = detection_scores(find_label_issues(source, labels), wrong)
    assert scores["flagged_precision"] > 0.97
    assert scores["flagged_recall"] > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_threshold_flags_few_of_clean_labels(seed):
    alpha, labels, _, _ = mixture(5000, 0, seed)
    assert find_label_issues(alpha, labels)["is_label_issue"].mean() < 0.03
    rng = np.random.default_rng(seed)
    for size in (rng.exponential(1, 5000), rng.uniform(0, 1, 5000) ** 3, rng.gamma(2, 1, 5000)):
        assert find_label_issues(size, labels)["is_label_issue"].mean() < 0.06
    for aum in (rng.normal(4, 1, 5000), rng.gamma(4, 1, 5000) - 0.5):
        assert find_label_issues(aum, labels, method="aum")["is_label_issue"].mean() < 0.01


def test_threshold_on_margins():
    rng = np.random.default_rng(0)
    wrong = np.arange(4000) < 800
    aum = np.where(wrong, rng.normal(-2, 0.7, 4000), rng.normal(3, 1, 4000))
    scores = detection_scores(find_label_issues(aum, np.zeros(4000, int), method="aum"), wrong)
    assert scores["flagged_precision"] > 0.98
    assert scores["flagged_recall"] > 0.95
    few = np.arange(4000) < 20  # too few for a mode: outliers
    aum = np.where(few, rng.normal(-3, 0.5, 4000), rng.normal(3, 0.7, 4000))
    scores = detection_scores(find_label_issues(aum, np.zeros(4000, int), method="aum"), few)
    assert scores["flagged_precision"] > 0.9
    assert scores["flagged_recall"] == 1


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(50),
        np.full(50, 0.3),
        np.full(50, -1.0),
        0.3 + np.arange(50) * 1e-17,
        np.zeros((50, 4)),
        [0.5],
    ],
)
def test_nothing_is_flagged_where_all_samples_are_alike(values):
    frame = find_label_issues(np.asarray(values), np.zeros(len(values), int))
    assert frame["is_label_issue"].sum() == 0


# ---- scores of a ranking


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    score, wrong = rng.integers(0, 2 + seed * 10, 200) / 8, rng.random(200) < 0.3  # many ties
    assert scores_module._auroc(score, wrong) == pytest.approx(metrics.roc_auc_score(wrong, score), abs=1e-12)
    expected = metrics.average_precision_score(wrong, score)
    assert scores_module._average_precision(score, wrong) == pytest.approx(expected, abs=1e-12)


def test_detection_scores_of_a_small_ranking():
    metrics = pytest.importorskip("sklearn.metrics")
    frame = find_label_issues(
        np.array([0.9, 0.1, 0.8, 0.5, 0.2]), [0, 1, 2, 0, 1], percent=40, pred_labels=[1] * 5
    )
    wrong, true = np.array([True, False, False, True, True]), np.array([1, 1, 2, 2, 0])
    scores = detection_scores(frame.sample(frac=1, random_state=0), wrong, true_labels=true)
    # ids by rank: 0, 2, 3, 4, 1; the first three hold two of the three wrong ones, the two flagged hold one
    assert scores == pytest.approx(
        {
            "noise_rate": 0.6,
            "auroc": metrics.roc_auc_score(wrong, [0.9, 0.1, 0.8, 0.5, 0.2]),
            "average_precision": metrics.average_precision_score(wrong, [0.9, 0.1, 0.8, 0.5, 0.2]),
            "precision": 2 / 3,
            "recall": 2 / 3,
            "num_flagged": 2,
            "flagged_precision": 1 / 2,
            "flagged_recall": 1 / 3,
            "suggestion_accuracy": 1 / 3,
        }
    )
    assert all(type(value) is float for value in scores.values())


def test_detection_scores_of_a_frame_read_back_from_csv():
    alpha, labels, true, wrong = mixture(900, 100)
    alpha[5] = 0  # a sample without a suggestion
    frame = find_label_issues(alpha, labels, class_names=[f"c{k}" for k in range(10)])
    read_back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    expected = detection_scores(frame, wrong, true_labels=true)
    assert expected["auroc"] > 0.99
    assert expected["suggestion_accuracy"] == 1
    assert detection_scores(read_back, torch.from_numpy(wrong), true_labels=true) == pytest.approx(expected)


def test_detection_scores_where_something_is_missing():
    metrics = pytest.importorskip("sklearn.metrics")
    aum = np.array([-1.0, np.nan, 2.0, np.nan, 0.5])
    frame = find_label_issues(aum, [0, 0, 0, 0, 0], method="aum")
    wrong = np.array([True, True, False, False, False])
    scores = detection_scores(frame, wrong, true_labels=wrong.astype(int))
    assert scores["auroc"] == pytest.approx(metrics.roc_auc_score(wrong, [1, -9, -2, -9, -0.5]))
    assert math.isnan(scores["suggestion_accuracy"])
    clean = detection_scores(frame, np.zeros(5, bool))
    assert clean["noise_rate"] == 0
    assert all(
        math.isnan(clean[name]) for name in ("auroc", "average_precision", "precision", "flagged_recall")
    )
    assert math.isnan(detection_scores(frame, np.ones(5, bool))["auroc"])


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 2]}, r"labels must be \(4,\) integers, got \(3,\)"),
        ({"labels": [0.0, 1, 2, 0]}, r"labels must be \(4,\) integers, got \(4,\) float64"),
        (
            {"labels": [[True], [False], [True], [False]]},
            r"labels must be \(4,\) integers, got \(4, 1\) bool",
        ),
        ({"labels": [0, 1, 2, 3]}, r"labels must be in \[0, 3\), got 3 for 1 of 4 samples \(ids 3\)"),
        ({"labels": [0, -1, 2, -100]}, r"labels must be in \[0, 3\), got -1 for 1 of 4 samples \(ids 1\)"),
        (
            {"labels": [0, -100, 2, -1], "ignore_index": -1},
            r"labels must be in \[0, 3\), got -100 for 1 of 4 samples \(ids 1\)",
        ),
        ({"ignore_index": "-100"}, "ignore_index must be an integer, got '-100'"),
        ({"pred_labels": [0, -100, 2, 1]}, r"pred_labels must be in \[0, 3\), got -100"),
        ({"method": "loss"}, r"method must be one of \('alpha', .*got 'loss'"),
        ({"method": "aum"}, r"source must hold floating-point numbers \(N,\), got \(4, 3\)"),
        ({"source": np.zeros((4, 3), int)}, r"source must hold floating-point numbers .* int64"),
        ({"source": np.zeros((4, 3, 1))}, r"source must hold floating-point numbers"),
        (
            {"source": np.zeros((0, 3)), "labels": []},
            r"source must hold floating-point numbers .* got \(0, 3\)",
        ),
        ({"source": np.zeros((4, 1))}, r"source must have at least 2 classes, got α of shape \(4, 1\)"),
        (
            {"source": Table(np.zeros(4), "ac1")},
            r"source must hold floating-point numbers \(N, K\), got \(4,\)",
        ),
        (
            {"source": Dynamics(np.zeros(4)), "method": "alpha"},
            "source: Dynamics holds dynamics; method 'alpha' needs α",
        ),
        (
            {"source": Table(np.zeros((4, 3)), "ac1"), "method": "aum"},
            "source: Table holds α alone; method 'aum' needs training dynamics",
        ),
        ({"source": np.array([0, np.inf, 1, 2]), "method": "aum"}, r"source: AUM is infinite .*\(ids 1\)"),
        ({"source": np.array([0, np.nan, 1, 2])}, r"source: α must be finite.* 1 of 4 samples \(ids 1\)"),
        ({"percent": 101}, "percent must be a number from 0 to 100, got 101"),
        ({"percent": -1}, "percent must be"),
        ({"percent": True}, "percent must be"),
        ({"percent": math.nan}, "percent must be"),
        ({"percent": "5"}, "percent must be a number from 0 to 100, got '5'"),
        ({"percent": [5]}, r"percent must be a number from 0 to 100, got \[5\]"),
        ({"class_names": ["a", "b"]}, "class_names must be 3 names, one a class, got 2"),
        ({"class_names": "abc"}, "class_names must be a sequence of names, got one string 'abc'"),
        (
            {"class_names": {"cat": 0, "dog": 1, "eel": 2}},
            r"class_names must have a name for each class .* got the keys \['cat', 'dog', 'eel'\]",
        ),
        ({"class_names": {1: "a", 2: "b", 3: "c"}}, "class_names must have a name for each class from 0"),
        ({"class_names": {0: "a", "0": "b", 1: "c"}}, "class_names must have a name for each class from 0"),
        ({"class_names": {0: "a", 1: "b"}}, "class_names must be 3 names, one a class, got 2"),
        ({"source": np.zeros(4), "class_names": ["a", "b"]}, r"labels must be in \[0, 2\)"),
        ({"pred_labels": [0, 1, 2, 3]}, r"pred_labels must be in \[0, 3\), got 3"),
        ({"pred_labels": [0, 1]}, r"pred_labels must be \(4,\) integers"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"source": np.zeros((4, 3)), "labels": [0, 1, 2, 0]} | change
    with pytest.raises(ValueError, match=message):
        find_label_issues(arguments.pop("source"), arguments.pop("labels"), **arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_alpha_that_is_not_finite(monkeypatch, bad):
    monkeypatch.setattr(alpha_module, "_CHUNK_ELEMENTS", 6)
    alpha = np.zeros((9, 3))
    alpha[[1, 2, 3, 5, 7, 8], 1] = bad
    message = r"α must be finite, it is NaN or infinite for 6 of 9 samples \(ids 1, 2, 3, 5, 7, …\)"
    with pytest.raises(ValueError, match=message):
        find_label_issues(alpha, np.zeros(9, int))
    with pytest.raises(ValueError, match=message):
        given_label_alpha(alpha, np.zeros(9, int))


def test_bad_arguments_of_detection_scores():
    frame = find_label_issues(np.arange(4.0), [0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"truth must be \(4,\) bool, got \(4,\) int64"):
        detection_scores(frame, np.zeros(4, int))
    with pytest.raises(ValueError, match=r"truth must be \(3,\) bool, got \(4,\)"):
        detection_scores(frame[:3], np.zeros(4, bool))
    with pytest.raises(ValueError, match="issues must hold every sample once"):
        detection_scores(frame[:3], np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"true_labels and truth disagree for 1 of 4 samples \(ids 3\)"):
        detection_scores(frame, np.zeros(4, bool), true_labels=[0, 1, 2, 1])
