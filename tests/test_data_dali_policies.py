"""Policies of DALI's operations and erased boxes: how they are drawn, and that what was drawn is applied."""

from __future__ import annotations

import numpy as np
import pytest

from fastac.data.dali_pipeline import built
from fastac.data.dali_policies import create_dali_policy
from fastac.data.erasing import erased_boxes
from fastac.data.policies import find_policy

dali = pytest.importorskip("nvidia.dali")

SIZE = 32
IDS = np.arange(20_000)
NAMES = (
    "autoaugment",
    "autoaugment-imagenet",
    "autoaugment-cifar10",
    "autoaugment-svhn",
    "randaugment-n2-m9",
    "trivialaugment",
)


def names(policy) -> list[list[str]]:
    return [[operation.name for operation in stage] for stage in policy.stages]


def applied(policy, images: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """(b, H, W, 3) uint8 after the policy's stages."""

    def source():
        return images, choices.astype(np.int32)

    @dali.pipeline_def(batch_size=len(images), num_threads=1, device_id=None, enable_conditionals=True)
    def pipeline():
        pixels, chosen = dali.fn.external_source(
            source=source, num_outputs=2, batch=True, layout=["HWC", None]
        )
        return policy.apply(dali, pixels, chosen)

    (out,) = built(pipeline).run()
    return np.stack([np.array(out.at(i)) for i in range(len(images))])


def uniform(counts: np.ndarray) -> bool:
    """By a chi-square test, four standard deviations wide."""
    expected, freedom = counts.mean(), counts.size - 1
    return abs(((counts - expected) ** 2 / expected).sum() - freedom) < 4 * np.sqrt(2 * freedom)


# ------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("name", NAMES)
def test_choices_are_functions_of_seed_epoch_and_id(name):
    policy = create_dali_policy(name, SIZE)
    choices = policy.choices(IDS[:500], 1, 2)
    assert choices.dtype == np.int32
    assert choices.shape == (500, 3, len(policy.stages))
    np.testing.assert_array_equal(choices[100:200], policy.choices(IDS[100:200], 1, 2))
    for other in (policy.choices(IDS[:500], 2, 2), policy.choices(IDS[:500], 1, 3)):
        assert (choices != other).any(axis=(1, 2)).mean() > 0.8
    for stage, operations in enumerate(policy.stages):
        assert set(np.unique(choices[:, 0, stage])) <= set(range(len(operations)))
    assert choices[:, 1].min() >= 0
    assert choices[:, 1].max() < policy.num_bins
    assert set(np.unique(choices[:, 2])) == {0, 1}


@pytest.mark.parametrize(
    ("name", "get"),
    [
        ("imagenet", "get_reduced_image_net_policy"),
        ("cifar10", "get_reduced_cifar10_policy"),
        ("svhn", "get_svhn_policy"),
    ],
)
def test_autoaugment_draws_dalis_sub_policies_with_their_probabilities(name, get):
    library = pytest.importorskip("nvidia.dali.auto_aug.auto_augment")
    policy = create_dali_policy(f"autoaugment-{name}", SIZE)
    choices = policy.choices(IDS, 0, 0)
    subs = getattr(library, get)().sub_policies
    assert len(subs) == 25
    expected: dict[tuple[int, str, int], float] = {}
    for sub in subs:
        for stage, (operation, probability, magnitude) in enumerate(sub):
            key = stage, operation.name.split("__")[-1], magnitude or 0
            expected[key] = expected.get(key, 0) + probability / 25
    found: dict[tuple[int, str, int], float] = {}
    for stage, operations in enumerate(names(policy)):
        for operation, magnitude in choices[:, :2, stage].tolist():
            key = stage, operations[operation].split("__")[-1], magnitude
            found[key] = found.get(key, 0) + 1 / len(IDS)
    assert {key for key in found if key[1] != "identity"} == set(expected)
    for key, probability in expected.items():
        assert abs(found[key] - probability) < 5 * np.sqrt(probability / len(IDS)), key
    assert abs(choices[:, 2].mean() - 0.5) < 0.02


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_a_name_is_the_same_table_with_either_loader(name):
    library = pytest.importorskip("nvidia.dali.auto_aug.auto_augment")
    get = {"imagenet": "get_reduced_image_net_policy", "cifar10": "get_reduced_cifar10_policy"}.get(name)
    theirs = [
        [(op.name.split("__")[-1].replace("_", ""), chance, level or 0) for op, chance, level in sub]
        for sub in getattr(library, get or "get_svhn_policy")().sub_policies
    ]
    ours = [
        [
            (op.name.lower(), op.probability, op.level) for op in sub if op.probability > 0
        ]  # DALI leaves these out
        for sub in find_policy(f"autoaugment-{name}").sub_policies
    ]
    assert sorted(ours) == sorted(theirs)


def test_autoaugments_stages_are_drawn_together():
    """A pair of operations belongs to one sub-policy: the second of one never follows the first of another."""
    library = pytest.importorskip("nvidia.dali.auto_aug.auto_augment")
    policy = create_dali_policy("autoaugment-imagenet", SIZE)
    allowed = {
        tuple((op.name.split("__")[-1], m or 0) for op, _, m in sub)
        for sub in library.get_reduced_image_net_policy().sub_policies
    }
    stages = names(policy)
    for first, second in policy.choices(IDS[:3000], 0, 0)[:, :2].transpose(0, 2, 1).tolist():
        pair = tuple(
            (stages[s][op].split("__")[-1], magnitude) for s, (op, magnitude) in enumerate((first, second))
        )
        if "identity" not in (pair[0][0], pair[1][0]):
            assert pair in allowed


def test_randaugment_and_trivialaugment_are_uniform():
    policy = create_dali_policy("randaugment-n3-m12", SIZE)
    choices = policy.choices(IDS, 3, 1)
    assert len(policy.stages) == 3
    assert len(policy.stages[0]) == 14
    assert (choices[:, 1] == 12).all()
    for stage in range(3):
        assert uniform(np.bincount(choices[:, 0, stage], minlength=14))
        assert abs(choices[:, 2, stage].mean() - 0.5) < 0.02
    pairs = choices[:, 0, 0] * 14 + choices[:, 0, 1]
    assert uniform(np.bincount(pairs, minlength=196))  # the stages are independent of each other
    policy = create_dali_policy("trivialaugment", SIZE)
    choices = policy.choices(IDS, 3, 1)[..., 0]
    assert uniform(np.bincount(choices[:, 0] * 31 + choices[:, 1], minlength=14 * 31))


def test_no_policy():
    assert create_dali_policy("none", SIZE) is None


# ----------------------------------------------------------------------------------------------- what is applied


@pytest.fixture(scope="module")
def trivial():
    """Every operation of TrivialAugment, at magnitude 20 of 30, with either sign, on one random image."""
    policy = create_dali_policy("trivialaugment", SIZE)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    order = names(policy)[0]
    chosen = np.array([[op, 20, sign] for op in range(len(order)) for sign in (0, 1)])[..., None]
    out = applied(policy, np.repeat(image[None], len(chosen), axis=0), chosen)
    return image, {(order[op], sign): out[row] for row, (op, _, sign) in enumerate(chosen[..., 0])}


def test_operations_without_a_sign(trivial):
    image, out = trivial
    for sign in (0, 1):
        np.testing.assert_array_equal(out["identity", sign], image)
        np.testing.assert_array_equal(out["posterize", sign], image & 0b11110000)  # 8 - 6·20/30 bits
        threshold = 256 - 256 * 20 / 30
        np.testing.assert_array_equal(out["solarize", sign], np.where(image < threshold, image, 255 - image))
        low, high = (f(image, axis=(0, 1), keepdims=True).astype(int) for f in (np.min, np.max))
        stretched = (image - low) * 255 / (high - low)
        assert np.abs(out["auto_contrast", sign] - stretched).max() <= 1
        assert not np.array_equal(out["equalize", sign], image)


def test_the_sign_is_the_one_that_was_drawn(trivial):
    image, out = trivial
    strength = 0.01 + 0.98 * 20 / 30
    for sign, factor in ((0, 1 + strength), (1, 1 - strength)):
        assert np.abs(out["brightness", sign] - np.clip(image * factor, 0, 255)).max() <= 1
        gray = image @ np.array([0.299, 0.587, 0.114])
        mean = gray.mean()
        assert np.abs(out["contrast", sign] - np.clip(mean + (image - mean) * factor, 0, 255)).max() <= 2
        shift = round(32 * 20 / 30)  # pixels, to the right or down where the sign is 0
        expected = np.full_like(image, 128)
        part = slice(shift, None), slice(None, -shift)
        to, of = part if sign == 0 else part[::-1]
        expected[:, to] = image[:, of]
        assert (out["translate_x", sign] == expected).mean() > 0.9
        expected = np.full_like(image, 128)
        expected[to] = image[of]
        assert (out["translate_y", sign] == expected).mean() > 0.9
    for name in ("shear_x", "shear_y", "rotate", "color", "sharpness"):
        assert not np.array_equal(out[name, 0], image)
        assert not np.array_equal(out[name, 0], out[name, 1])


def test_stages_follow_each_other():
    policy = create_dali_policy("randaugment-n2-m30", SIZE)
    order = names(policy)[0]
    solarize, posterize, identity = (order.index(n) for n in ("solarize", "posterize", "identity"))
    images = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    chosen = np.zeros((3, 3, 2), dtype=np.int64)
    chosen[:, 0] = [[solarize, posterize], [posterize, solarize], [identity, posterize]]
    chosen[:, 1] = 30
    out = applied(policy, images, chosen)
    np.testing.assert_array_equal(out[0], (255 - images[0]) & 0xF0)  # a threshold of 0 inverts; 4 bits stay
    np.testing.assert_array_equal(out[1], 255 - (images[1] & 0xF0))
    np.testing.assert_array_equal(out[2], images[2] & 0xF0)


def test_translations_are_in_proportion_to_the_image():
    for size in (32, 224):
        policy = create_dali_policy("autoaugment-cifar10", size)
        ranges = [op.mag_range for stage in policy.stages for op in stage if op.name.endswith("translate_y")]
        assert set(ranges) == {(0, round(size * 150 / 331))}


# ------------------------------------------------------------------------------------------------- what is blanked


def boxes(**options) -> np.ndarray:
    return erased_boxes(IDS, 64, **{"cutout": 0, "reprob": 0.0, "seed": 2, "epoch": 1, **options})


def test_cutouts_squares():
    top, left, height, width = boxes(cutout=16)[:, 0].T
    for first, extent in ((top, height), (left, width)):
        assert first.min() == 0
        assert (first + extent).max() == 64
        assert extent.min() == 8  # a centre on the border leaves half of it
        assert extent.max() == 16
        inner = (first > 0) & (first + extent < 64)
        assert (extent[inner] == 16).all()
    centre = (top + height // 2)[(height == 16) & (width == 16)]
    assert uniform(np.bincount(centre, minlength=64)[9:55])
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.03


def test_a_cutout_of_odd_side_or_larger_than_the_image():
    assert boxes(cutout=5)[:, 0, 2:].max() == 5
    large = boxes(cutout=300)[:, 0]
    assert (large == [0, 0, 64, 64]).all()


def test_random_erasings_rectangles():
    found = boxes(reprob=0.25)[:, 0]
    some = found[found[:, 2] > 0]
    assert abs(len(some) / len(IDS) - 0.25) < 0.015
    assert (found[found[:, 2] == 0] == 0).all()
    top, left, height, width = some.T.astype(float)
    assert (top + height).max() == 64
    assert (left + width).max() == 64
    assert min(top.min(), left.min()) == 0
    assert max(height.max(), width.max()) < 64
    share, aspect = height * width / 64**2, height / width
    assert 0.015 < share.min() < 0.025
    assert 0.30 < share.max() < 0.345
    assert abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.012
    assert abs(np.log(aspect).mean()) < 0.03
    assert 0.25 < aspect.min() < 0.36


def test_both_kinds_are_drawn_apart_and_by_id():
    both = boxes(cutout=16, reprob=0.5)
    assert both.shape == (len(IDS), 2, 4)
    assert both.dtype == np.int32
    np.testing.assert_array_equal(both[:, :1], boxes(cutout=16))
    np.testing.assert_array_equal(both[:, 1:], boxes(reprob=0.5))
    np.testing.assert_array_equal(
        both[50:60], erased_boxes(IDS[50:60], 64, cutout=16, reprob=0.5, seed=2, epoch=1)
    )
    for other in (boxes(cutout=16, epoch=2), boxes(cutout=16, seed=3)):
        assert (other != both[:, :1]).any(axis=(1, 2)).mean() > 0.95
    assert boxes().shape == (len(IDS), 0, 4)
