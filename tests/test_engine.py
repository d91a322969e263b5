"""Engines in one process, their states, and what is said of a rank that does not come."""

import contextlib
import copy
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import training_runs
from test_deepspeed import run_ranks
from torch.distributed import HashStore
from training_runs import config, differences

from fastac import collectives
from fastac.checkpoint import Checkpoints
from fastac.collectives import CollectiveError, named
from fastac.engine import create_engine
from fastac.engine.process import _agree
from fastac.job import Job
from fastac.train import train_step
from fastac.training_data import load_data


def job_of(configuration):
    return Job(
        configuration, create_engine(configuration), load_data(configuration), training_runs.with_dropout
    )


def trained(tmp_path, **changes):
    job = job_of(config(tmp_path, **changes))
    train_step(job, [next(job.train_loader.epoch(0))])
    return job


def test_the_state_is_the_network_and_its_momentum_by_name(tmp_path):
    job = job_of(config(tmp_path))
    assert job.engine.state_dict()["momentum"] == {}
    job = trained(tmp_path)
    state = job.engine.state_dict()
    assert differences(dict(job.network.state_dict()), state["model"]) == []
    assert state["momentum"].keys() == dict(job.network.named_parameters()).keys()
    assert state["scaler"] is None
    for name, parameter in job.network.named_parameters():
        assert torch.equal(state["momentum"][name], job.optimizer.state[parameter]["momentum_buffer"])


def test_a_loaded_state_goes_on_to_the_same_bits(tmp_path):
    one, other = trained(tmp_path), job_of(config(tmp_path))
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        checkpoints.save(1, one.shared_state(), one.own_states())
        saved = checkpoints.load_newest()
    other.load(saved)
    assert other.optimizer.param_groups[0]["lr"] == one.optimizer.param_groups[0]["lr"]
    for job in (one, other):
        torch.manual_seed(3)
        train_step(job, [next(job.train_loader.epoch(1))])
    assert differences(one.engine.state_dict(), other.engine.state_dict()) == []
    other.engine.load_state_dict({**saved.shared["network"], "momentum": {}})
    assert other.engine.state_dict()["momentum"] == {}


@pytest.mark.parametrize("images", [192, 193, 194, 196])
def test_a_run_moves_only_where_an_epoch_has_as_many_batches(tmp_path, images):
    job = job_of(config(tmp_path, train_limit=images))
    state = {**job.shared_state(), "ranks": 2}
    if images == 194:  # two rows: a last batch on one rank, too few on two
        with pytest.raises(ValueError, match=r"has 7 batches on 1 rank\(s\) and had 6 on the checkpoint's 2"):
            job._check(state)
    else:
        job._check(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("momentum"), "it has no 'momentum'"),
        (lambda s: s["model"].pop("0.bias"), "of another network: it has no '0.bias'"),
        (lambda s: s["model"].update(more=torch.ones(1)), "its 'more' is not in this one"),
        (
            lambda s: s["model"].update({"0.bias": torch.ones(3)}),
            r"'0.bias' in it is \(3,\); it should be \(8,\)",
        ),
        (lambda s: s["momentum"].update({"0.bias": torch.ones(3)}), r"momentum of '0.bias' in it is \(3,\)"),
        (lambda s: s["momentum"].update({"x": torch.ones(3)}), "momentum for 'x', which is no parameter"),
        (lambda s: s["model"].update({"0.bias": 1.0}), "'0.bias' in it is float"),
    ],
)
def test_a_state_of_another_network_changes_nothing(tmp_path, change, message):
    state = copy.deepcopy(trained(tmp_path).engine.state_dict())
    change(state)
    job = trained(tmp_path, seed=1)
    before = copy.deepcopy(job.engine.state_dict())
    with pytest.raises(ValueError, match=message):
        job.engine.load_state_dict(state)
    assert differences(before, job.engine.state_dict()) == []


@pytest.fixture
def store():
    store = HashStore()
    yield store
    collectives.forget()


def fails(text="[gloo] Timed out waiting 3000ms for recv operation to complete"):
    with named("all_reduce of losses"):
        raise RuntimeError(text)


def test_a_time_out_names_the_collective_and_who_is_missing(store):
    collectives.watch(store, 0, 4, 0.2)
    store.set("failed/2", "all_reduce of losses")
    store.set("failed/3", "broadcast of a path")
    with pytest.raises(CollectiveError) as caught:
        fails()
    text = str(caught.value)
    assert re.match(r"rank 0 waited 0 s in all_reduce of losses \(dist_timeout is 0.2 s\): ", text)
    assert text.endswith("rank 1 does not answer; rank 3 is in broadcast of a path")
    assert store.get("failed/0") == b"all_reduce of losses"
    with pytest.raises(
        CollectiveError, match="rank 0 lost its connection in all_reduce of losses: rank 1 does"
    ):
        fails("[gloo] Connection closed by peer [127.0.0.1]:1234")


def test_the_inner_name_counts_and_other_errors_pass(store):
    collectives.watch(store, 0, 1, 0.1)
    with pytest.raises(CollectiveError, match="in all_reduce of losses"), named("the step"):
        fails()
    with pytest.raises(RuntimeError, match="^shapes differ$"), named("the step"):
        raise RuntimeError("shapes differ")
    collectives.forget()
    with pytest.raises(RuntimeError, match="Timed out") as caught:
        fails()
    assert type(caught.value) is RuntimeError


def agree(store, ranks, world_size, timeout=30.0):
    """What each of the ranks gets, the exception where it gets none."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        calls = [pool.submit(_agree, store, rank, world_size, timeout) for rank in ranks]
        return [call.exception() or call.result() for call in calls]


def test_each_start_has_a_name_of_its_own_in_a_store_that_outlives_it(store):
    """On each node torchrun counts restarts for itself, and 0 again where another node's worker died."""
    first = agree(store, range(3), 3)
    assert len(set(first)) == 1
    store.set("word/2", "of one that died before it was answered")
    names = [first, agree(store, range(3), 3), agree(store, [1, 2, 0], 3), agree(store, range(2), 2)]
    assert [len(set(name)) for name in names] == [1, 1, 1, 1]
    assert len({name[0] for name in names}) == 4
    assert isinstance(agree(store, [0], 1)[0], str)


def test_a_start_that_a_rank_does_not_come_to_says_which(store):
    agree(store, range(3), 3)
    missing = agree(store, [0, 2], 3, timeout=0.3)
    assert isinstance(missing[0], CollectiveError)
    assert str(missing[0]).endswith("(dist_timeout): ranks that do not answer: 1")
    (alone,) = agree(store, [1], 3, timeout=0.3)
    assert str(alone).startswith("rank 1 waited 0.3 s in the start of the process group")
    assert str(alone).endswith("rank 0 does not answer")


@pytest.mark.dist
def test_a_rank_that_sleeps_forever_is_named_and_the_processes_end(tmp_path):
    begun = time.monotonic()
    text = run_ranks(tmp_path, "asleep", status=1)
    assert time.monotonic() - begun < 300
    assert "rank 0 waited 15 s in all_reduce of the network's gradients (DDP)" in text
    assert "(dist_timeout is 15 s): rank 1 does not answer" in text
    assert "rank 0 ended after" in text
    assert "rank 1 ended after" not in text
