"""Policies: the published numbers, how they are drawn, and that a sample's image depends on its id alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastac.config import load_config
from fastac.data.policies import POLICY_NAMES, apply_policy, check_policy, find_policy
from fastac.data.policies.levels import LEVELS, MIRRORED, OPERATIONS, RANDOM_OPERATIONS
from fastac.data.policies.parcel import Parcel
from fastac.data.policies.sampling import Operation, RandomOperations, Schedule, SubPolicies

EACH = [
    "autoaugment-cifar10",
    "autoaugment-svhn",
    "autoaugment-imagenet",
    "fast-autoaugment-cifar10",
    "fast-autoaugment-svhn",
    "fast-autoaugment-imagenet",
    "pba-cifar10",
    "pba-svhn",
    "randaugment-n2-m9",
    "trivialaugment",
]
MEAN = torch.tensor([125, 123, 114], dtype=torch.uint8)
SIZE = (32, 32)


def noise(count: int = 64, channels: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def augmented(images, index, name="autoaugment-cifar10", *, seed=1, epoch=90, **options):
    policy = find_policy(name, epochs=200)
    mean = MEAN[: images.shape[1]]
    return apply_policy(images, index, policy, mean=mean, seed=seed, epoch=epoch, **options)


def counts(name: str, epoch: int = 0, draws: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    drawn = find_policy(name).draw(np.arange(draws), SIZE, seed=0, epoch=epoch)
    return drawn.operation, drawn.value


# ---------------------------------------------------------------------------------------------------- the tables


def test_the_published_tables():
    found = {name: find_policy(name) for name in EACH}
    assert [len(found[name].sub_policies) for name in EACH[:6]] == [25, 25, 25, 493, 497, 498]
    assert all(len(sub) == 2 for name in EACH[:6] for sub in found[name].sub_policies)
    assert found["autoaugment-cifar10"].sub_policies[3] == (
        Operation("ShearY", 0.5, 8),
        Operation("TranslateY", 0.7, 9),
    )
    assert found["autoaugment-svhn"].sub_policies[-1] == (
        Operation("ShearX", 0.7, 2),
        Operation("Invert", 0.1, 0),
    )
    assert found["autoaugment-imagenet"].sub_policies[0] == (
        Operation("Posterize", 0.4, 8),
        Operation("Rotate", 0.6, 9),
    )
    assert found["fast-autoaugment-cifar10"].sub_policies[0] == (
        Operation("Contrast", 0.832066, 0.498843),
        Operation("TranslateX", 0.418499, 0.394023),
    )
    long = find_policy("autoaugment-cifar10-95").sub_policies
    assert len(long) == 95
    assert len(set(long) & set(found["autoaugment-cifar10"].sub_policies)) == 20
    for name in EACH[:6]:
        for op in (op for sub in found[name].sub_policies for op in sub):
            assert op.name in OPERATIONS
            assert 0 <= op.probability <= 1
            assert 0 <= op.level <= (1 if name.startswith("fast") else 9)
    assert [found[name].fill for name in EACH] == [None, None, 128, 0, 0, 0, None, None, 128, 0]


def test_the_published_schedules():
    cifar, svhn = find_policy("pba-cifar10"), find_policy("pba-svhn")
    assert [end for end, _ in cifar.phases][:4] == [12, 34, 54, 74]
    assert (len(cifar.phases), cifar.phases[-1][0], len(svhn.phases), svhn.phases[-1][0]) == (
        17,
        200,
        14,
        160,
    )
    for policy in (cifar, svhn):
        assert all(op.probability == op.level == 0 for op in policy.phases[0][1])  # it begins with nothing
        for _, listed in policy.phases:
            assert len(listed) == 30
            assert [op.name for op in listed[:15]] == [op.name for op in listed[15:]]
    assert cifar.phases[-1][1][2] == Operation("TranslateY", 1.0, 0)
    assert cifar.phases[-1][1][14] == Operation("Contrast", 1.0, 7)


def test_a_schedule_is_spread_over_the_epochs():
    published, short, long = (find_policy("pba-cifar10", epochs=epochs) for epochs in (None, 20, 1800))
    assert [published.phase(e) for e in (0, 11, 12, 33, 34, 199, 1000)] == [0, 0, 1, 1, 2, 16, 16]
    assert [short.phase(e) for e in (0, 1, 2, 4, 19)] == [0, 0, 1, 2, 15]
    assert [long.phase(e) for e in (0, 107, 108, 1799)] == [0, 0, 1, 16]
    assert find_policy("pba-cifar10", epochs=200) != published  # and the one from the table is left as it was


# ---------------------------------------------------------------------------------------------------- magnitudes


@pytest.mark.parametrize(
    ("levels", "name", "level", "side", "value"),
    [
        ("autoaugment", "ShearY", 8, 32, 0.24),
        ("autoaugment", "TranslateX", 9, 32, 9),
        ("autoaugment", "TranslateX", 9, 224, 63),
        ("autoaugment", "Rotate", 2, 32, 6),
        ("autoaugment", "Solarize", 8, 32, 256 - 204),
        ("autoaugment", "Posterize", 7, 32, 2),
        ("autoaugment", "Contrast", 6, 32, 1.18),
        ("autoaugment", "Color", 0, 32, 0.1),
        ("autoaugment", "Cutout", 9, 32, 18),
        ("autoaugment-imagenet", "Posterize", 8, 224, 3),
        ("autoaugment-imagenet", "Solarize", 5, 224, 128),
        ("autoaugment-imagenet", "Rotate", 9, 224, 27),
        ("autoaugment-imagenet", "Color", 0, 224, 0.1),
        ("fast-autoaugment", "ShearX", 0.0, 32, -0.3),
        ("fast-autoaugment", "TranslateY", 1.0, 32, 14.4),
        ("fast-autoaugment", "Rotate", 0.75, 32, 15),
        ("fast-autoaugment", "Posterize", 0.49, 32, 5),
        ("fast-autoaugment", "Solarize", 0.5, 32, 128),
        ("fast-autoaugment", "Sharpness", 0.5, 32, 1.0),
        ("fast-autoaugment", "Cutout", 0.5, 224, 22),
        ("randaugment", "ShearX", 9, 32, 0.09),
        ("randaugment", "TranslateX", 30, 331, 150),
        ("randaugment", "Posterize", 30, 32, 4),
        ("randaugment", "Solarize", 15, 32, 128),
        ("randaugment", "Brightness", 10, 32, 0.3),
        ("trivialaugment", "ShearX", 30, 32, 0.99),
        ("trivialaugment", "TranslateX", 30, 224, 32),
        ("trivialaugment", "TranslateX", 30, 8, 8),
        ("trivialaugment", "Rotate", 20, 32, 90),
        ("trivialaugment", "Posterize", 30, 32, 2),
        ("trivialaugment", "Color", 30, 32, 2.0),
        ("trivialaugment", "Color", 0, 32, 0.01),
    ],
)
def test_what_a_level_means(levels, name, level, side, value):
    assert LEVELS[levels](name, level, side) == pytest.approx(value)


def test_every_level_is_in_the_operations_range():
    tops = {"autoaugment": 10, "autoaugment-imagenet": 10, "fast-autoaugment": 1, "randaugment": 30}
    for levels, meaning in LEVELS.items():
        for level in np.linspace(0, tops.get(levels, 30), 31).tolist():
            assert 1 <= meaning("Posterize", level, 32) <= 8
            assert 0 <= meaning("Solarize", level, 32) <= 256
            assert meaning("AutoContrast", level, 32) == 0


# --------------------------------------------------------------------------------------------------------- draws


def close_to(count: float, expected: float, draws: int) -> bool:
    return abs(count - expected) < 5 * np.sqrt(max(expected * (1 - expected / draws), 1))


def test_sub_policies_are_drawn_evenly_and_operations_by_their_probability():
    listed = find_policy("autoaugment-svhn").sub_policies
    code, value = counts("autoaugment-svhn")
    n = code.shape[1]
    for stage in (0, 1):
        for name in OPERATIONS[1:]:
            expected = sum(n / 25 * sub[stage].probability for sub in listed if sub[stage].name == name)
            assert close_to((code[stage] == OPERATIONS.index(name)).sum(), expected, n), name
    rotated = code == OPERATIONS.index("Rotate")
    assert set(value[rotated].tolist()) == {-12.0, -9.0, 9.0, 12.0}
    assert close_to((value[rotated] > 0).sum(), rotated.sum() / 2, rotated.sum())
    np.testing.assert_allclose(value[code == OPERATIONS.index("Contrast")], 0.64)
    # The two operations of an image are those of one sub-policy, and happen independently of each other.
    pairs = {tuple(pair) for pair in code.T.tolist()}
    allowed = {
        (a, b)
        for s in listed
        for a in (OPERATIONS.index(s[0].name), 0)
        for b in (OPERATIONS.index(s[1].name), 0)
    }
    assert pairs <= allowed
    both = ((code[0] == OPERATIONS.index("ShearX")) & (code[1] == OPERATIONS.index("TranslateY"))).sum()
    assert close_to(both, n / 25 * 0.7 * 0.8, n)


def test_random_operations_are_drawn_evenly():
    for name in ("randaugment-n3-m15", "trivialaugment"):
        code, value = counts(name)
        assert code.shape[0] == (3 if name.startswith("rand") else 1)
        n = code.shape[1]
        for stage in code:
            for op in RANDOM_OPERATIONS:
                assert close_to((stage == OPERATIONS.index(op)).sum(), n / 14, n), op
        factors = value[code == OPERATIONS.index("Color")]
        if name.startswith("rand"):
            assert np.unique(factors.round(9)).tolist() == [0.55, 1.45]
        else:
            assert len(np.unique(factors)) == 31
            assert (factors.min(), factors.max()) == (0.01, pytest.approx(2.0))
    assert (code != code.flat[0]).any()


def test_a_schedule_applies_none_one_or_two_operations():
    code, value = counts("pba-cifar10", epoch=150)
    n = code.shape[1]
    happened = (code > 0).sum(axis=0)
    for number, share in ((0, 0.2), (1, 0.3), (2, 0.5)):  # enough of its operations have a probability of 1
        assert close_to((happened == number).sum(), share * n, n)
    assert (code[1] > 0)[code[0] == 0].sum() == 0  # the first place is taken first
    sure = {op.name for op in find_policy("pba-cifar10").phases[11][1] if op.probability == 1}
    never = {op.name for op in find_policy("pba-cifar10").phases[11][1]} - {
        op.name for op in find_policy("pba-cifar10").phases[11][1] if op.probability > 0
    }
    seen = {OPERATIONS[c] for c in np.unique(code)}
    assert sure <= seen
    assert not never & seen
    assert (counts("pba-cifar10", epoch=0)[0] == 0).all()


def test_a_schedules_operations_come_in_random_order():
    listed = tuple(Operation(name, 1.0, 5) for name in ("Rotate", "Invert", "Equalize", "Color"))
    policy = Schedule("mine", "autoaugment", None, 10, ((10, listed),))
    code = policy.draw(np.arange(12_000), SIZE, seed=0, epoch=3).operation
    two = code[:, code[1] > 0]
    for a in listed:
        for b in listed:
            together = ((two[0] == OPERATIONS.index(a.name)) & (two[1] == OPERATIONS.index(b.name))).sum()
            assert close_to(together, 0 if a is b else two.shape[1] / 12, two.shape[1])


def test_shear_to_both_sides():
    policy = SubPolicies("mine", "fast-autoaugment", 0, ((Operation("ShearX", 1.0, 1.0),),))
    value = policy.draw(np.arange(100), SIZE, seed=0, epoch=0).value
    assert set(value.ravel().tolist()) == {-0.3, 0.3}
    assert MIRRORED[:1] == ("ShearX",)


# -------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_id_alone(name, channels):
    images, index = noise(channels=channels), torch.arange(1000, 1064)
    whole = augmented(images, index, name)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert torch.equal(augmented(images, index, name, host_index=index.clone()), whole)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented(images[order], index[order], name), whole[order])
    for part in (slice(0, 1), slice(5, 6), slice(30, 64)):
        assert torch.equal(augmented(images[part], index[part], name), whole[part])
    for other in ({"epoch": 91}, {"seed": 2}):
        changed = (augmented(images, index, name, **other) != whole).flatten(1).any(1)
        assert changed.float().mean() > 0.5


@pytest.mark.parametrize("name", EACH)
def test_a_policys_image_is_its_operations_in_order(name):
    """One image at a time through a policy of the single operation that was drawn."""
    images, index = noise(40), torch.arange(40)
    whole = augmented(images, index, name)
    policy = find_policy(name, epochs=200)
    draws = policy.draw(index.numpy(), SIZE, seed=1, epoch=90)
    for row in range(40):
        image = images[row : row + 1]
        for stage in range(len(draws.operation)):
            image = apply_policy(
                image,
                torch.zeros(1, dtype=torch.int64),
                Replay(policy.fill, draws, stage, row),
                mean=MEAN,
                seed=0,
                epoch=0,
            )
        assert torch.equal(image[0], whole[row])
    assert (whole != images).flatten(1).any(1).float().mean() > 0.4


class Replay(RandomOperations):
    """One stage of one image's draws."""

    def __init__(self, fill, draws, stage, row):
        super().__init__("replay", "randaugment", fill, 1, range(1), symmetric=False)
        object.__setattr__(self, "only", (draws, stage, row))

    def draw(self, ids, size, *, seed, epoch):
        draws, stage, row = self.only
        parts = (
            part[stage : stage + 1, ..., row : row + 1]
            for part in (draws.operation, draws.value, draws.place)
        )
        return type(draws)(*parts)


def test_colour_is_the_identity_on_gray():
    policy = SubPolicies("mine", "autoaugment", None, ((Operation("Color", 1.0, 9),),))
    gray = noise(8, channels=1)
    index = torch.arange(8)
    assert torch.equal(apply_policy(gray, index, policy, mean=MEAN[:1], seed=0, epoch=0), gray)
    rgb = apply_policy(gray.expand(-1, 3, -1, -1), index, policy, mean=MEAN, seed=0, epoch=0)
    assert torch.equal(rgb, gray.expand(-1, 3, -1, -1))


def test_what_comes_from_outside_and_cutout_have_the_fills_colour():
    images = torch.full((50, 3, 32, 32), 200, dtype=torch.uint8)
    for fill, colour in ((None, MEAN), (0, torch.zeros(3)), (128, torch.full((3,), 128))):
        policy = SubPolicies("mine", "autoaugment", fill, ((Operation("TranslateX", 1.0, 5),),))
        out = apply_policy(images, torch.arange(50), policy, mean=MEAN, seed=0, epoch=0)
        new = (out != 200).any(1)
        assert torch.equal(new.sum((1, 2)), torch.full((50,), 5 * 32))
        assert (out.permute(0, 2, 3, 1)[new] == colour).all()
        assert new[:, 0, 0].any()
        assert new[:, 0, -1].any()
    policy = SubPolicies("mine", "autoaugment", 0, ((Operation("Cutout", 1.0, 5),),))
    out = apply_policy(images, torch.arange(50), policy, mean=MEAN, seed=0, epoch=0)
    cut = (out != 200).any(1)
    assert (out.permute(0, 2, 3, 1)[cut] == MEAN).all()
    assert cut.sum((1, 2)).max() == 100
    assert cut.sum((1, 2)).min() >= 25  # a centre at the corner leaves a quarter


def test_images_need_not_be_square():
    images = noise(64)[:, :, :20, :28]
    for name in EACH:
        assert augmented(images, torch.arange(64), name).shape == (64, 3, 20, 28)


def test_an_empty_batch_passes():
    empty = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    for name in EACH:
        assert augmented(empty, torch.zeros(0, dtype=torch.int64), name).shape == (0, 3, 32, 32)


def test_a_parcel_brings_every_part():
    parts = [
        np.arange(5),
        np.linspace(0, 1, 3),
        np.arange(11, dtype=np.uint8).reshape(11, 1),
        np.empty((0, 4), np.int64),
        np.arange(12.0).reshape(2, 6)[:, ::2],
    ]
    parcel = Parcel()
    assert [parcel.add(part) for part in parts] == list(range(5))
    packed = parcel._pack(pinned=False)  # what a GPU is sent
    assert packed.shape == (40 + 24 + 16 + 0 + 48,)
    for sent in (parcel.send(torch.device("cpu")), parcel._unpack(packed)):
        for part, tensor in zip(parts, sent, strict=True):
            assert tensor.dtype == torch.from_numpy(part.copy()).dtype
            np.testing.assert_array_equal(tensor, part)
    sent = parcel.send(torch.device("meta"))
    assert [tuple(tensor.shape) for tensor in sent] == [part.shape for part in parts]


# ------------------------------------------------------------------------------------------------ names and errors


def test_names():
    for name in POLICY_NAMES:
        if name not in ("randaugment-nN-mM", "autoaugment", "fast-autoaugment", "pba"):
            check_policy(name)
    assert find_policy("none") is None
    for family in ("autoaugment", "fast-autoaugment", "pba"):
        for dataset, own in (
            ("cifar10", "cifar10"),
            ("cifar100", "cifar10"),
            ("svhn", "svhn"),
            ("svhn-extra", "svhn"),
        ):
            assert find_policy(family, dataset).name == f"{family}-{own}"
    for dataset in ("folder", "webdataset", "tfrecord"):
        assert find_policy("autoaugment", dataset).name == "autoaugment-imagenet"
        assert find_policy("fast-autoaugment", dataset).name == "fast-autoaugment-imagenet"
    assert find_policy("fast-autoaugment-cifar100") == find_policy("fast-autoaugment-cifar10")
    assert find_policy("randaugment-n14-m0").stages == 14


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("autoaugmant", None, "unknown aa 'autoaugmant'; did you mean 'autoaugment'"),
        ("autoaugment-cifar", None, "did you mean 'autoaugment-cifar10'"),
        ("", None, "unknown aa ''"),
        (
            "autoaugment",
            "fashion-mnist",
            "no policy of its own for the data set 'fashion-mnist'; name one of autoaug",
        ),
        ("autoaugment", None, "no policy of its own for the data set None"),
        (
            "pba",
            "folder",
            "no policy of its own for the data set 'folder'; name one of pba-cifar10, pba-svhn",
        ),
        ("pba-imagenet", None, "unknown aa 'pba-imagenet'"),
        ("randaugment", None, "aa is 'randaugment'; it should be randaugment-nN-mM"),
        ("randaugment-n0-m9", None, "N operations an image, 1 to 14"),
        ("randaugment-n2-m31", None, "at level M, 0 to 30"),
        ("randaugment-m9-n2", None, "such as randaugment-n2-m9"),
    ],
)
def test_wrong_names(name, dataset, message):
    with pytest.raises(ValueError, match=message):
        check_policy(name, dataset)


def test_the_config_checks_the_name_when_it_is_made():
    assert load_config(None, {"dataset": "cifar100", "aa": "pba"}).data.aa == "pba"
    with pytest.raises(ValueError, match="did you mean 'trivialaugment'"):
        load_config(None, {"aa": "trivial-augment"})
    with pytest.raises(ValueError, match="no policy of its own for the data set 'digits'"):
        load_config(None, {"dataset": "digits", "aa": "autoaugment"})


def test_wrong_arguments():
    images, index = noise(4), torch.arange(4)
    with pytest.raises(
        ValueError, match=r"images is torch.float32 \(4, 3, 32, 32\); it should be torch.uint8"
    ):
        augmented(images.float(), index)
    with pytest.raises(ValueError, match=r"images is torch.uint8 \(4, 32, 32, 3\)"):
        augmented(images.permute(0, 2, 3, 1), index)
    with pytest.raises(ValueError, match=r"index has the shape \(3,\); it should be \(4,\)"):
        augmented(images, index[:3])
    policy = find_policy("trivialaugment")
    with pytest.raises(ValueError, match=r"mean is torch.float32 \(3,\); it should be torch.uint8 \(3,\)"):
        apply_policy(images, index, policy, mean=MEAN.float(), seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"mean is torch.uint8 \(1,\)"):
        apply_policy(images, index, policy, mean=MEAN[:1], seed=0, epoch=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EACH)
def test_on_a_gpu_images_are_the_cpus(name):
    images, index = noise(), torch.arange(64)
    policy = find_policy(name, epochs=200)
    cpu = augmented(images, index, name)
    on_gpu, gpu_index, mean = images.cuda(), index.cuda(), MEAN.cuda()
    torch.use_deterministic_algorithms(False)  # in that mode PyTorch's own scatter_add waits for the device
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu = apply_policy(on_gpu, gpu_index, policy, mean=mean, seed=1, epoch=90, host_index=index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(cpu, gpu.cpu())
