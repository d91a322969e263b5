"""Every id exactly once an epoch, over all ranks together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastac.data import EpochSampler


def global_batches(world_size: int, epoch: int, start: int = 0, **kwargs) -> list[list[np.ndarray]]:
    """The ranks' parts, a list a step; checks that the ranks agree on the steps and on the global sizes."""
    samplers = [EpochSampler(rank=r, world_size=world_size, **kwargs) for r in range(world_size)]
    parts = [list(s.batches(epoch, start)) for s in samplers]
    assert {len(p) for p in parts} == {len(samplers[0]) - start}
    steps = []
    for step in zip(*parts, strict=True):
        assert {size for _, size in step} == {sum(len(ids) for ids, _ in step)}
        steps.append([ids for ids, _ in step])
    return steps


@settings(deadline=None, max_examples=150)
@given(
    num_samples=st.integers(1, 400),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 9),
    epoch=st.integers(0, 5),
    seed=st.integers(-(2**63), 2**63),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_every_id_exactly_once(num_samples, batch_size, world_size, epoch, seed, shuffle, drop_last):
    kwargs = {
        "num_samples": num_samples,
        "batch_size": batch_size,
        "seed": seed,
        "shuffle": shuffle,
        "drop_last": drop_last,
    }
    rows = batch_size * world_size
    smallest = rows if drop_last else min(2, batch_size) * world_size
    if num_samples < smallest:
        with pytest.raises(ValueError, match=rf"num_samples is {num_samples}; .* at least {smallest}"):
            EpochSampler(world_size=world_size, **kwargs)
        return
    steps = global_batches(world_size, epoch, **kwargs)
    seen = np.concatenate([ids for step in steps for ids in step])
    assert seen.dtype == np.int64
    if drop_last:
        assert len(seen) == num_samples // rows * rows == len(set(seen.tolist()))
        assert all(len(ids) == batch_size for step in steps for ids in step)
    else:
        assert sorted(seen.tolist()) == list(range(num_samples))
    for step in steps:
        sizes = [len(ids) for ids in step]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(2, batch_size)
        assert sum(sizes) < rows + smallest
    if not shuffle:
        assert seen.tolist() == sorted(seen.tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_the_global_batch_does_not_depend_on_the_split(world_size):
    whole = global_batches(1, 3, num_samples=103, batch_size=12, seed=5)
    split = global_batches(world_size, 3, num_samples=103, batch_size=12 // world_size, seed=5)
    assert len(whole) == 9  # 8 · 12 = 96 and a last batch of 7
    if 2 * world_size > 7:  # too few rows for so many ranks: they join the batch before
        whole = [*whole[:7], [np.concatenate([whole[7][0], whole[8][0]])]]
    assert len(split) == len(whole)
    for parts, (batch,) in zip(split, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), batch)


def test_a_small_rest_joins_the_batch_before_it():
    sizes = [[len(ids) for ids in step] for step in global_batches(2, 0, num_samples=43, batch_size=10)]
    assert sizes == [[10, 10], [11, 12]]  # 3 rows left: fewer than two a rank
    sizes = [[len(ids) for ids in step] for step in global_batches(2, 0, num_samples=44, batch_size=10)]
    assert sizes == [[10, 10], [10, 10], [2, 2]]


def test_resume_gives_the_remaining_steps():
    sampler = EpochSampler(100, 8, seed=1)
    whole = list(sampler.batches(4))
    for start in (0, 1, 7, len(sampler)):
        rest = list(sampler.batches(4, start))
        assert len(rest) == len(whole) - start
        for (ids, size), (expected, expected_size) in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(ids, expected)
            assert size == expected_size


def test_orders_are_permutations_without_pattern():
    n, epochs = 200, 400
    orders = np.array(
        [
            np.concatenate([ids for ids, _ in EpochSampler(n, 50, seed=3).batches(epoch)])
            for epoch in range(epochs)
        ]
    )
    assert len({tuple(order) for order in orders}) == epochs
    # The mean place of an id over 400 epochs: n/2, deviation n/sqrt(12·400) = 2.9 for uniform places.
    places = np.argsort(orders, axis=1).mean(axis=0)
    assert np.abs(places - (n - 1) / 2).max() < 4.5 * n / np.sqrt(12 * epochs)
    # Neighbours in one epoch are not neighbours in the next: Spearman's correlation of two epochs' places.
    ranks = np.argsort(orders, axis=1)
    correlation = [np.corrcoef(ranks[e], ranks[e + 1])[0, 1] for e in range(epochs - 1)]
    assert abs(np.mean(correlation)) < 0.02
    assert np.std(correlation) == pytest.approx(1 / np.sqrt(n), rel=0.15)


def test_the_stream_is_pinned():
    """A change of the draws would silently change every published experiment, and a resumed run."""
    assert next(EpochSampler(12, 12, seed=0).batches(1))[0].tolist() == [6, 2, 0, 9, 10, 8, 7, 3, 1, 11, 4, 5]


def test_the_seed_and_the_epoch_matter():
    def order(seed, epoch):
        return np.concatenate([ids for ids, _ in EpochSampler(64, 16, seed=seed).batches(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s, e in [(0, 0), (0, 1), (1, 0), (1, 1), (2**40, 0), (-1, 0)]}) == 6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_samples": 0, "batch_size": 4}, "num_samples is 0"),
        ({"num_samples": 9, "batch_size": 0}, "batch_size is 0"),
        ({"num_samples": 9, "batch_size": 4, "world_size": 0}, "world_size is 0"),
        ({"num_samples": 9, "batch_size": 4, "rank": 2, "world_size": 2}, r"rank is 2; .* \[0, 2\)"),
        ({"num_samples": 9, "batch_size": 4, "rank": -1}, "rank is -1"),
        ({"num_samples": 9, "batch_size": 5, "rank": 0, "world_size": 2, "drop_last": True}, "at least 10"),
    ],
)
def test_impossible_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**kwargs)


@pytest.mark.parametrize(
    ("epoch", "start", "message"), [(-1, 0, "epoch is -1"), (0, 4, "start is 4"), (0, -1, "start is -1")]
)
def test_impossible_positions_raise_at_the_call(epoch, start, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(9, 3).batches(epoch, start)


@pytest.mark.parametrize("world", [1, 3])
def test_excluded_ids_are_never_drawn_and_the_others_once(world):
    exclude = np.array([0, 7, 8, 22])
    samplers = [EpochSampler(23, 3, rank=r, world_size=world, seed=5, exclude=exclude) for r in range(world)]
    for epoch in range(3):
        drawn = np.concatenate([ids for sampler in samplers for ids, _ in sampler.batches(epoch)])
        assert sorted(drawn.tolist()) == sorted(set(range(23)) - set(exclude.tolist()))
    sizes = [size for _, size in samplers[0].batches(0)]
    assert sum(sizes) == 19
    assert len(sizes) == len(samplers[0])
    orders = [np.concatenate([ids for ids, _ in samplers[0].batches(epoch)]).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_excluding_nothing_changes_nothing():
    plain, none = EpochSampler(23, 4, seed=1), EpochSampler(23, 4, seed=1, exclude=np.empty(0, np.int64))
    for (a, size_a), (b, size_b) in zip(plain.batches(2), none.batches(2), strict=True):
        np.testing.assert_array_equal(a, b)
        assert size_a == size_b


def test_excluding_too_many_or_from_shards():
    with pytest.raises(ValueError, match="num_samples is 6 less 5 excluded; with batch_size 4 a rank"):
        EpochSampler(6, 4, exclude=np.arange(5))
    with pytest.raises(ValueError, match="exclude has 1 ids; it should be empty with aligned=True"):
        EpochSampler(6, 2, aligned=True, exclude=np.array([1]))
