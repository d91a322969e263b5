"""The other rankings, the mixture that says how many labels are wrong, the kinds, and α read by parts."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import fastac
from fastac.issues import AlphaStatistics, alpha_statistics, detection_scores, find_label_issues, issue_kinds
from fastac.issues import alpha as alpha_module
from fastac.issues.mixture import fit_mixture, otsu_threshold
from fastac.issues.rankings import combined_score, probability_margin

pd = pytest.importorskip("pandas")


def dynamics_frame(aum, p_mean):
    return pd.DataFrame({"index": np.arange(len(aum)), "aum": aum, "p_mean": p_mean})


def two_groups(share, size=6000, seed=0, low=(-2.0, 0.8), high=(3.0, 1.2), classes=5):
    rng = np.random.default_rng(seed)
    wrong = np.arange(size) < round(share * size)
    aum = np.where(wrong, rng.normal(*low, size), rng.normal(*high, size))
    return aum, wrong, rng.integers(0, classes, size)


# ---- the mixture


def test_mixture_finds_the_parameters():
    score, wrong, _ = two_groups(0.2)
    mixture = fit_mixture(score, score < 0)
    assert mixture.share == pytest.approx(0.2, abs=0.01)
    assert mixture.means == pytest.approx((-2, 3), abs=0.05)
    assert np.sqrt(mixture.variances) == pytest.approx((0.8, 1.2), abs=0.05)
    assert mixture.separation == pytest.approx(5 / np.sqrt((0.64 + 1.44) / 2), rel=0.03)
    # Bayes' rule with the true densities, between the means
    at = np.linspace(-2, 3, 11)
    low, high = 0.2 * stats.norm.pdf(at, -2, 0.8), 0.8 * stats.norm.pdf(at, 3, 1.2)
    np.testing.assert_allclose(mixture.wrong(at), low / (low + high), atol=0.1)
    everywhere = mixture.wrong(np.linspace(-30, 30, 1001))
    assert (np.diff(everywhere) <= 0).all()  # also where the clean component's tail is the heavier one
    assert everywhere[0] > 0.99
    assert everywhere[-1] < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_one_group_is_not_taken_for_two(seed):
    rng = np.random.default_rng(seed)
    for score in (
        rng.normal(3, 1, 4000),
        rng.gamma(4, 1, 4000),
        rng.normal(0, 1, 4000) ** 2,
        np.full(4000, 0.3),
    ):
        mixture = fit_mixture(score, score < min(0.0, otsu_threshold(score)))
        assert (mixture.wrong(score) > 0.5).mean() < 0.005
    most, _, _ = two_groups(0.8, seed=seed)
    assert not fit_mixture(most, most < 0).found()  # not the smaller part


def test_otsu_parts_by_the_least_variance_within():
    values = np.array([0.0, 1.0, 2.0, 7.0, 8.0, 9.5])
    cuts = (values[1:] + values[:-1]) / 2
    within = [
        sum(group.size * group.var() for group in (values[values < cut], values[values > cut]))
        for cut in cuts
    ]
    assert otsu_threshold(values) == cuts[np.argmin(within)] == 4.5


# ---- combined


def test_combined_score_is_its_formula():
    rng = np.random.default_rng(1)
    aum, given = rng.normal(size=300), rng.integers(0, 4, 300)
    aum[7] = np.nan
    score = combined_score(aum, given, 6)
    assert np.isnan(score[7])
    known = ~np.isnan(aum)
    iqr = stats.iqr(aum[known])
    for i in np.flatnonzero(known)[:50]:
        own = aum[known & (given == given[i])]
        within = (aum[i] - np.median(own)) / (stats.iqr(own) + iqr / 10)
        expected = (aum[i] - np.median(aum[known])) / iqr + 0.5 * len(own) / (len(own) + 10) * within
        assert score[i] == pytest.approx(expected)
    assert (combined_score(np.ones(5), np.zeros(5, int), 1) == 0).all()
    margin = np.where(known, rng.normal(size=300), np.nan)
    third = (margin - np.median(margin[known])) / stats.iqr(margin[known])
    np.testing.assert_allclose(combined_score(aum, given, 6, margin)[known], (score + third)[known])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_combined_quality_is_a_probability(share):
    aum, wrong, labels = two_groups(share, low=(-2.5, 1.0), high=(2.0, 1.2))
    frame = find_label_issues(dynamics_frame(aum, np.full(len(aum), 0.5)), labels)
    assert (frame["label_quality"].diff()[1:] > 0).all()  # strictly, so that sorting by it gives the ranking
    assert abs(frame["is_label_issue"].mean() - share) < 0.02
    np.testing.assert_array_equal(frame["is_label_issue"], frame["label_quality"] < 0.5)
    by_id = frame.sort_values("index")
    for low in np.arange(0, 1, 0.25):
        part = by_id["label_quality"].between(low, low + 0.25).to_numpy()
        if part.sum() > 100:
            right = (~wrong[part]).mean()
            assert right == pytest.approx(by_id["label_quality"][part].mean(), abs=0.1)


def test_combined_sees_wrong_labels_in_a_class_of_large_margins():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 2000)
    wrong = np.arange(4000) % 2000 < 200
    center = np.where(labels == 0, 2.0, 8.0) - 4 * wrong  # 4, wrong in class 1, is clean in class 0
    aum = rng.normal(center, 0.5)
    combined = detection_scores(find_label_issues(dynamics_frame(aum, aum), labels, percent=10), wrong)
    alone = detection_scores(find_label_issues(aum, labels, method="aum", percent=10), wrong)
    assert alone["average_precision"] < 0.6
    assert combined["average_precision"] > alone["average_precision"] + 0.15


def test_classes_that_differ_more_than_right_and_wrong():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 600)
    wrong = np.arange(3000) % 600 < 90
    aum = rng.normal(4.0 * labels - 3.5 * wrong, 0.6)
    frame = find_label_issues(dynamics_frame(aum, aum), labels)
    assert abs(frame["is_label_issue"].mean() - 0.15) < 0.02


def test_method_by_what_is_there():
    aum, _, labels = two_groups(0.2, size=500)
    alpha = np.random.default_rng(0).normal(size=(500, 5))
    dynamics = dynamics_frame(aum, np.linspace(0.1, 0.9, 500))
    both = find_label_issues(alpha, labels, dynamics=dynamics)
    explicit = find_label_issues(alpha, labels, dynamics=dynamics, method="combined")
    pd.testing.assert_frame_equal(both, explicit)
    assert both["index"].tolist() == find_label_issues(dynamics, labels)["index"].tolist()
    assert both["suggested_label"].notna().all()  # by α
    by_alpha = find_label_issues(alpha, labels)
    pd.testing.assert_frame_equal(by_alpha, find_label_issues(alpha, labels, method="alpha"))
    # with dynamics, α's ranking has as many issues as the AUM's lower group
    numbered = find_label_issues(alpha, labels, dynamics=dynamics, method="alpha")
    assert numbered["index"].tolist() == by_alpha["index"].tolist()
    assert numbered["is_label_issue"].sum() == both["is_label_issue"].sum()
    assert abs(numbered["is_label_issue"].mean() - 0.2) < 0.02


def test_samples_never_seen_come_last_in_every_method():
    aum, _, labels = two_groups(0.2, size=200)
    aum[[3, 50]] = np.nan
    dynamics = dynamics_frame(aum, 1 / (1 + np.exp(-aum)))
    for method in ("aum", "confidence", "combined"):
        frame = find_label_issues(dynamics, labels, method=method, percent=100)
        assert frame["index"][198:].tolist() == [3, 50]
        assert frame["label_quality"].isna().sum() == 2
        assert frame["is_label_issue"].sum() == 198
    nobody = dynamics_frame(np.full(4, np.nan), np.full(4, np.nan))
    for method in ("aum", "confidence", "combined"):
        assert find_label_issues(nobody, [0, 1, 2, 3], method=method)["is_label_issue"].sum() == 0


def only_the_labelled(frame, labelled):
    """The rows of the samples that have a label, by what they are called among these."""
    rows = frame[frame["index"].isin(labelled)].reset_index(drop=True)
    return rows.assign(index=np.searchsorted(labelled, rows["index"]))


@pytest.mark.parametrize("ignore_index", [-100, -1, 4, 255])
@pytest.mark.parametrize(
    "method", ["combined", "alpha", "alpha alone", "ac2", "aum", "confidence", "pred_probs"]
)
def test_ignored_labels_are_as_never_seen(method, ignore_index):
    probs, given, wrong = noisy_probabilities(size=300, classes=5)
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(300) < 0.1, ignore_index, given)
    ignored = labels == ignore_index
    labelled = np.flatnonzero(~ignored)
    own = probs[np.arange(300), given]
    dynamics = dynamics_frame(np.log(own) - np.log(1 - own), own)
    alpha = (np.eye(5)[given] - probs) * np.where(wrong, 1, 0.01)[:, None]
    alpha[:, 0] = 0

    def find(ids, given):
        some = {"ignore_index": ignore_index, "class_names": list("abcde")}
        part = dynamics.iloc[ids].assign(index=np.arange(len(ids)))
        if method == "pred_probs":
            return find_label_issues(probs[ids], given, method="confidence", **some)
        if method in ("alpha alone", "ac2"):
            return find_label_issues((alpha if method != "ac2" else alpha[:, 1] ** 2)[ids], given, **some)
        if method in ("combined", "alpha"):
            return find_label_issues(alpha[ids], given, method=method, dynamics=part, **some)
        return find_label_issues(part, given, method=method, **some)

    frame = find(np.arange(300), labels)
    last = frame[-int(ignored.sum()) :]
    assert last["index"].tolist() == np.flatnonzero(ignored).tolist()
    assert last["label_quality"].isna().all()
    assert not last["is_label_issue"].any()
    assert (last["given_label"] == ignore_index).all()
    assert last["kind"].isna().all()
    assert (last["given_class"].isna() | (last["given_class"] == "e")).all()
    if method == "pred_probs":
        assert last["suggested_label"].tolist() == probs[ignored].argmax(axis=1).tolist()
    else:
        assert last["suggested_label"].isna().all()
    # All others are ranked as if these were not there.
    ranks = ["max_rank", "min_rank"]  # of all rows of α
    expected, found = find(labelled, labels[labelled]), only_the_labelled(frame, labelled)
    pd.testing.assert_frame_equal(found.drop(columns=ranks), expected.drop(columns=ranks))
    assert expected["is_label_issue"].any()


def test_labels_that_are_all_ignored():
    probs, given, _ = noisy_probabilities(size=20)
    dynamics = dynamics_frame(np.linspace(-1, 1, 20), np.linspace(0, 1, 20))
    for source, method in (
        (probs, "confidence"),
        (probs, "alpha"),
        (probs[:, 0], "alpha"),
        (dynamics, "confidence"),
        (dynamics, "combined"),
        (dynamics, "aum"),
    ):
        frame = find_label_issues(source, np.full(20, -100), method=method, percent=50)
        assert frame["label_quality"].isna().all()
        assert not frame["is_label_issue"].any()


# ---- confidence


def noisy_probabilities(seed=0, size=800, classes=4):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, size)
    wrong = rng.random(size) < 0.2
    given = np.where(wrong, (true + rng.integers(1, classes, size)) % classes, true)
    logits = rng.normal(size=(size, classes))
    logits[np.arange(size), true] += 2.5
    probs = np.exp(logits)
    return probs / probs.sum(1, keepdims=True), given, wrong


def test_confidence_with_all_probabilities_is_confident_learning():
    probs, given, wrong = noisy_probabilities()
    thresholds = [probs[given == k, k].mean() for k in range(4)]
    quality, flagged = [], []
    for p, y in zip(probs, given, strict=True):  # one sample at a time
        moved = [p[k] - thresholds[k] + max(thresholds) for k in range(4)]
        quality.append(moved[y] / sum(moved))
        reached = [k for k in range(4) if p[k] >= thresholds[k] - 1e-6]
        guess = reached[0] if len(reached) == 1 else int(p.argmax()) if reached else y
        flagged.append(guess != y)
    frame = find_label_issues(probs, given, method="confidence").sort_values("index")
    np.testing.assert_allclose(frame["label_quality"], quality)
    np.testing.assert_array_equal(frame["is_label_issue"], flagged)
    scores = detection_scores(frame, wrong)
    assert scores["auroc"] > 0.9
    unknown_class = find_label_issues(np.pad(probs, ((0, 0), (0, 1))), given, method="confidence")
    assert (unknown_class["suggested_label"] < 4).all()


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, torch.bfloat16, list])
def test_probabilities_are_not_taken_for_alpha(kind, monkeypatch):
    monkeypatch.setattr(alpha_module, "_CHUNK_ELEMENTS", 400)
    probs, given, _ = noisy_probabilities()
    if isinstance(kind, torch.dtype):
        source = torch.from_numpy(probs).to(kind)
    else:
        source = probs.tolist() if kind is list else probs.astype(kind)
    dynamics = dynamics_frame(np.linspace(-1, 1, len(given)), np.linspace(0, 1, len(given)))
    for options in ({}, {"dynamics": dynamics}, {"dynamics": dynamics, "method": "confidence"}):
        with pytest.raises(ValueError, match="looks like probabilities .* pass method='confidence'"):
            find_label_issues(source, given, **options)
    find_label_issues(source, given, method="alpha")  # who says so is believed


def test_alpha_is_not_taken_for_probabilities(monkeypatch):
    monkeypatch.setattr(alpha_module, "_CHUNK_ELEMENTS", 400)
    probs, given, _ = noisy_probabilities()
    other_sum, negative = probs.copy(), probs.copy()
    other_sum[-1] *= 0.95  # all but the last row are probabilities
    negative[-1] += [0.5, -0.5, 0.1, -0.1]
    for alpha in (np.zeros((800, 4)), np.ones((800, 4)), other_sum, negative):
        by_alpha = find_label_issues(alpha, given, method="alpha")
        pd.testing.assert_frame_equal(find_label_issues(alpha, given), by_alpha)


def test_probabilities_past_one_by_rounding():
    probs, given, _ = noisy_probabilities()
    probs[:3] = np.eye(4)[given[:3]]
    exact = find_label_issues(probs, given, method="confidence")
    rounded = np.where(probs == 1, 1 + 1e-7, np.where(probs == 0, -1e-7, probs))
    pd.testing.assert_frame_equal(find_label_issues(rounded, given, method="confidence"), exact)
    own, label = rounded.max(axis=1), np.zeros(800, int)
    by_own = find_label_issues(own.clip(0, 1), label, method="confidence")
    pd.testing.assert_frame_equal(find_label_issues(own, label, method="confidence"), by_own)
    for wrong in (1.01, -0.01):
        with pytest.raises(
            ValueError, match=r"source must hold probabilities in \[0, 1\], .* 1 of 800 .*ids 7\)"
        ):
            find_label_issues(
                np.where(np.arange(800)[:, None] == 7, wrong, probs), given, method="confidence"
            )


@pytest.mark.parametrize("seed", range(3))
def test_confidence_equals_cleanlabs(seed):
    pytest.importorskip("cleanlab")
    from cleanlab.filter import find_label_issues as cleanlab_issues
    from cleanlab.rank import get_label_quality_scores

    probs, given, _ = noisy_probabilities(seed)
    frame = find_label_issues(probs, given, method="confidence").sort_values("index")
    np.testing.assert_allclose(
        frame["label_quality"], get_label_quality_scores(given, probs, adjust_pred_probs=True)
    )
    mask = cleanlab_issues(given, probs, filter_by="confident_learning", n_jobs=1)
    ours = frame["is_label_issue"].to_numpy()
    assert not (mask & ~ours).any()
    assert (ours & ~mask).sum() == (
        ours & (probs.argmax(1) == given)
    ).sum()  # cleanlab drops what is predicted so


def test_confidence_from_the_mean_probability_allows_for_hard_classes():
    confidence = np.array([0.9, 0.9, 0.6, 0.4, 0.4, 0.2])
    given = np.array([0, 0, 0, 1, 1, 1])
    frame = find_label_issues(confidence, given, method="confidence").sort_values("index")
    thresholds = np.array([0.8, 1 / 3])
    np.testing.assert_allclose(frame["label_quality"], np.clip(confidence - thresholds[given] + 0.8, 0, 1))
    ranked = find_label_issues(confidence, given, method="confidence")["index"].tolist()
    assert ranked.index(2) < ranked.index(3)  # 0.6 is little for class 0, 0.4 much for class 1
    p, wrong, labels = two_groups(0.2, low=(0.15, 0.05), high=(0.85, 0.05))
    found = detection_scores(find_label_issues(np.clip(p, 0, 1), labels, method="confidence"), wrong)
    assert found["flagged_precision"] > 0.98
    assert found["flagged_recall"] > 0.98


# ---- α by parts, and the class that the gauge holds


def trained_rows(logits, labels, *, free, steps=400):
    """α after AC1's SGD on samples whose logits never change, in float64; free: without the gauge."""
    alpha = nn.Parameter(torch.zeros(logits.shape, dtype=torch.float64))
    optimizer = torch.optim.SGD([alpha], lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        grad = torch.softmax(logits + alpha.detach(), 1) - nn.functional.one_hot(labels, logits.shape[1])
        alpha.grad = grad
        if not free:
            alpha.grad[:, 0] = 0
        optimizer.step()
    return alpha.detach()


def test_the_held_class_is_what_an_update_would_have_made_of_it():
    torch.manual_seed(0)
    logits, labels = torch.randn(30, 5, dtype=torch.float64), torch.arange(30) % 5
    held = trained_rows(logits, labels, free=False)
    assert (held[:, 0] == 0).all()
    statistics = alpha_statistics(held, labels)
    # The gradients that the held row has seen, applied to all classes: the same linear optimizer, class by class.
    set_free = held.clone()
    set_free[:, 0] = -held[:, 1:].sum(1)
    rows = torch.arange(30)
    torch.testing.assert_close(torch.from_numpy(statistics.offset), set_free[rows, labels])
    others = set_free.clone()
    others[rows, labels] = torch.inf
    torch.testing.assert_close(torch.from_numpy(statistics.rival_offset), others.amin(1))
    assert statistics.rival.tolist() == others.argmin(1).tolist()
    assert (statistics.offset > 0).all()
    assert (statistics.rival_offset < 0).all()
    # One step from zero: held and free rows have had the same gradient, so the same α* to rounding.
    one, free = (trained_rows(logits, labels, free=f, steps=1) for f in (False, True))
    torch.testing.assert_close(torch.from_numpy(alpha_statistics(one, labels).offset), free[rows, labels])


@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_a_table_is_read_by_parts_and_never_as_a_whole(form, monkeypatch):
    torch.manual_seed(0)
    table = fastac.AlphaTable(500, 40, form=form, momentum=0.9)
    table.lr = 0.1
    labels = torch.arange(500) % 40
    labels[::9] = -100
    criterion = fastac.AutoCleansingLoss(table)
    for ids in torch.randperm(500).split(50):
        criterion(torch.randn(50, 40, requires_grad=True), labels[ids], ids).backward()
        table.step()
    dense = table.dense()
    expected = alpha_statistics(dense, labels)
    monkeypatch.setattr(table, "dense", lambda: pytest.fail("the whole table was copied"))
    split = torch.arange(500).split(64)
    monkeypatch.setattr(table, "_chunks", lambda: split)
    read, largest = table._read, []
    monkeypatch.setattr(table, "_read", lambda places: largest.append(len(places)) or read(places))
    found = alpha_statistics(table, labels)
    assert max(largest) == 64
    assert sum(largest) == 500
    for name in ("highest", "lowest", "given_alpha", "offset", "rival_offset", "rival"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    pd.testing.assert_frame_equal(find_label_issues(table, labels), find_label_issues(dense, labels))


def test_statistics_stand_for_alpha():
    rng = np.random.default_rng(0)
    alpha, labels = rng.normal(size=(60, 4)), rng.integers(0, 4, 60)
    for source in (alpha, alpha[:, 1]):
        statistics = alpha_statistics(source, labels)
        pd.testing.assert_frame_equal(
            find_label_issues(statistics, labels), find_label_issues(source, labels)
        )
        again = AlphaStatistics.from_arrays(statistics.arrays())
        assert (again.form, again.num_classes) == (statistics.form, statistics.num_classes)
        np.testing.assert_array_equal(again.offset, statistics.offset)
    with pytest.raises(ValueError, match="labels must be those that these AlphaStatistics were taken with"):
        find_label_issues(statistics, (labels + 1) % 4)


# ---- kinds


def test_kinds_of_images_that_are_what_the_paper_describes():
    """α and p_y as AC1's SGD makes them of a network that has learned the images as they are."""
    clear, unsure = 6.0, 0.0
    logits = torch.full((5, 6), unsure, dtype=torch.float64)
    logits[0, 3] = clear  # labelled 1: an image of 3
    logits[1, 0] = clear  # labelled 1: of 0, the class that the gauge holds
    # 2: labelled 1: of nothing in the set
    logits[3, 1] = logits[3, 4] = clear  # labelled 1: of 1 and 4
    logits[4, 2] = clear  # labelled 0: of 2
    labels = torch.tensor([1, 1, 1, 1, 0])
    alpha = trained_rows(logits, labels, free=False, steps=8)
    p = torch.softmax(logits, 1)[torch.arange(5), labels].numpy()
    statistics = alpha_statistics(alpha, labels)
    expected = ["within", "within", "outside", "several", "within"]
    assert issue_kinds(statistics, p).tolist() == expected
    assert issue_kinds(statistics).tolist() == expected  # p_y as α knows it
    assert statistics.rival.tolist()[:2] == [3, 0]


def test_kinds_are_of_label_issues_and_need_ac1():
    alpha = np.zeros((4, 3))
    alpha[0] = [0, 1, -1]
    alpha[1] = [0, 0.1, -0.1]
    labels = [1, 1, 2, 0]
    frame = find_label_issues(alpha, labels, percent=25).set_index("index")
    assert frame["kind"][0] == "within"
    assert frame["kind"].isna().sum() == 3
    everything = find_label_issues(alpha, labels, percent=100).set_index("index")
    assert everything["kind"].isna().tolist() == [False, False, True, True]  # rows of zeros say nothing
    assert everything["kind"][1] == "several"  # p_y is near 1
    assert find_label_issues(alpha[:, 1], labels, percent=100)["kind"].isna().all()


# ---- bad input


EMPTY = dynamics_frame(np.zeros(4), np.zeros(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.zeros((4, 3)), [0, 1, 2, 0], {"method": "combined"}),
            "holds α alone|source must hold floating-point",
        ),
        (
            (np.zeros((4, 3)), [0, 1, 2, 0], {"dynamics": dynamics_frame(np.zeros(5), np.zeros(5))}),
            r"dynamics must be of 4 samples, as source is, got 5 \(aum\)",
        ),
        (
            (
                np.zeros((4, 3)),
                [0, 1, 2, 0],
                {"dynamics": EMPTY.drop(columns="aum")},
            ),
            "dynamics lacks the columns aum",
        ),
        (
            (
                np.zeros((4, 3)),
                [0, 1, 2, 0],
                {"dynamics": pd.concat([EMPTY[:2]] * 2)},
            ),
            "dynamics must hold every sample once",
        ),
        ((np.zeros((4, 3)), [0, 1, 2, 0], {"dynamics": 3}), "dynamics must be TrainingDynamics .* got int"),
        (
            (np.array([0.5, 1.5]), [0, 1], {"method": "confidence"}),
            r"source must hold probabilities in \[0, 1\], it does not for 1 of 2 samples \(ids 1\)",
        ),
        (
            (np.full((3, 2), np.nan), [0, 1, 0], {"method": "confidence"}),
            r"probabilities .* 3 of 3 samples",
        ),
        ((np.zeros((3, 2)), [0, 1, 2], {"method": "confidence"}), r"labels must be in \[0, 2\), got 2"),
        (
            (
                dynamics_frame(np.zeros(3), np.zeros(3)),
                [0, 1, 2],
                {"dynamics": dynamics_frame(np.zeros(3), np.zeros(3))},
            ),
            "source and dynamics are both training dynamics",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    source, labels, more = arguments
    with pytest.raises(ValueError, match=message):
        find_label_issues(source, labels, **more)


def test_labels_outside_the_tables_classes():
    for form in ("ac1", "ac2"):
        table = fastac.AlphaTable(3, 2, form=form)
        with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 2"):
            alpha_module.alpha_statistics(table, [0, 1, 2])


def test_the_probabilities_margin_in_the_combination():
    """Of samples with equal AUM those come first in which another class was as probable as the label."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 50)
    label, others = probabilities[:, 0], probabilities[:, 1:]
    el2n = np.sqrt((1 - label) ** 2 + (others**2).sum(1))
    margin = probability_margin(label, el2n)
    np.testing.assert_allclose(margin, label - np.linalg.norm(others, axis=1), atol=1e-12)
    assert not np.isnan(
        probability_margin(np.array([0.2]), np.array([0.79]))
    ).any()  # means don't fit each other
    frame = pd.DataFrame({"index": np.arange(50), "aum": np.ones(50), "p_mean": label, "el2n": el2n})
    labels = np.zeros(50, int)
    ranked = find_label_issues(frame, labels)["index"].to_numpy()
    assert ranked.tolist() == np.argsort(margin, kind="stable").tolist()
    assert find_label_issues(frame.drop(columns="el2n"), labels)["index"].tolist() == list(range(50))


def test_the_combination_of_samples_that_were_not_seen():
    frame = dynamics_frame(np.array([1.0, math.nan, 2.0, 3.0]), np.array([0.5, math.nan, 0.7, 0.9]))
    frame["el2n"] = [0.6, math.nan, 0.4, 0.1]
    issues = find_label_issues(frame, np.zeros(4, int))
    assert issues["index"].tolist() == [0, 2, 3, 1]
    assert issues["label_quality"].isna().tolist() == [False, False, False, True]
