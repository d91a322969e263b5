"""Runs that go on elsewhere: after the death of a rank, on another number of ranks, with another engine."""

import importlib.util

import elastic_runs
import pytest
import torch
from elastic_runs import launch
from training_runs import config, differences, final_state, metrics

RUNS, KILLS = 4, 5


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of one run that nobody disturbed, `whole`, and of four that were killed five times each."""
    folder = tmp_path_factory.mktemp("elastic")
    settings = {"batch_size": 16, "checkpoint_every": 2, "epochs": 12, "dist_timeout": 30.0}
    runs = [elastic_runs.run(config(folder, name="whole", **settings))]
    for number in range(RUNS):
        killed = config(folder, name=f"killed-{number}", **settings)
        runs.append(elastic_runs.run(killed, kills=KILLS, seed=number))
    return folder, launch(runs)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("number", range(RUNS))
def test_killed_runs_end_with_the_bits_of_an_undisturbed_one(killed, number):
    folder, text = killed
    kills = (folder / f"killed-{number}.kills").read_text().splitlines()
    assert len(kills) == KILLS, text
    assert f"killed-{number} ended at start {KILLS + 1}" in text
    assert differences(final_state(folder / "whole"), final_state(folder / f"killed-{number}")) == []
    assert metrics(folder / "whole") == metrics(folder / f"killed-{number}")
    assert final_state(folder / "whole")["table"]["alpha"].abs().max() > 1e-3
    left = sorted(path.name for path in (folder / f"killed-{number}" / "checkpoints").iterdir())
    assert [name for name in left if not name.startswith(".")] == ["step-00000070", "step-00000072"]


def assert_close_states(one, other):
    """The same run to the rounding of sums in another order."""
    assert one["position"] == other["position"]
    for name in ("model", "momentum"):
        assert one["network"][name].keys() == other["network"][name].keys()
        for key, value in one["network"][name].items():
            torch.testing.assert_close(other["network"][name][key], value, rtol=1e-4, atol=1e-6)
    for name in ("alpha", "momentum_buffer"):
        torch.testing.assert_close(other["table"][name], one["table"][name], rtol=1e-4, atol=1e-6)
    assert one["table"]["alpha"].abs().max() > 1e-3
    assert torch.equal(one["dynamics"]["count"], other["dynamics"]["count"])
    torch.testing.assert_close(one["dynamics"]["sums"], other["dynamics"]["sums"], rtol=1e-4, atol=1e-4)


@pytest.mark.dist
@pytest.mark.parametrize("placement", ["exchange", "aligned"])
def test_a_run_moves_from_four_ranks_to_two_and_to_one(tmp_path, placement):
    """Exchange: in the middle of an epoch, and the result is that of one rank. Aligned: at an epoch's end; which
    samples meet then depends on the number of ranks, so another run is not the truth, but each sample's visits are."""
    ends = (4, 9, 18) if placement == "exchange" else (6, 12, 18)
    runs = [
        elastic_runs.run(
            config(
                tmp_path, name="moves", batch_size=32 // ranks, max_steps=end, alpha_placement=placement
            ).with_values(train_limit=192),
            ranks=ranks,
            network="linear",
        )
        for ranks, end in zip((4, 2, 1), ends, strict=True)
    ]
    alone = config(tmp_path, name="alone", batch_size=32, train_limit=192)
    text = launch([*runs, elastic_runs.run(alone, ranks=1, network="linear")])
    assert text.count("going on from") == 2, text
    moved, whole = final_state(tmp_path / "moves"), final_state(tmp_path / "alone")
    if placement == "exchange":
        assert_close_states(whole, moved)
    else:
        assert torch.equal(moved["dynamics"]["count"], whole["dynamics"]["count"])
        assert int(moved["dynamics"]["count"].min()) == 3
        assert moved["table"]["alpha"].abs().max() > 1e-3
        assert moved["table"]["rows"] == [0, 192]


@pytest.mark.dist
def test_an_aligned_run_moves_at_an_epochs_end_only(tmp_path):
    settings = {"alpha_placement": "aligned", "train_limit": 192}
    launch(
        [
            elastic_runs.run(
                config(tmp_path, name="run", batch_size=16, max_steps=8, **settings), network="linear"
            )
        ]
    )
    with pytest.raises(AssertionError, match="in the middle of an epoch"):
        launch(
            [
                elastic_runs.run(
                    config(tmp_path, name="run", batch_size=32, **settings), ranks=1, network="linear"
                )
            ]
        )


@pytest.mark.dist
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_a_run_moves_between_engines(tmp_path):
    legs = [
        (2, 3, {}),
        (2, 6, {"engine": "deepspeed", "zero_stage": 1}),
        (2, 9, {"engine": "deepspeed", "zero_stage": 3}),
        (1, 12, {}),
        (4, 15, {"engine": "deepspeed", "zero_stage": 2}),
        (2, 18, {}),
    ]
    runs = [
        elastic_runs.run(
            config(tmp_path, name="moves", batch_size=32 // ranks, max_steps=end, **changes),
            ranks=ranks,
            network="linear",
        )
        for ranks, end, changes in legs
    ]
    alone = config(tmp_path, name="alone", batch_size=32)
    text = launch([*runs, elastic_runs.run(alone, ranks=1, network="linear")])
    assert text.count("going on from") == len(legs) - 1, text
    assert_close_states(final_state(tmp_path / "alone"), final_state(tmp_path / "moves"))


@pytest.mark.dist
def test_ranks_that_write_alpha_in_the_forward_pass(tmp_path):
    """Fused into it where rows are here (aligned), with the step where they travel: as with update="step"."""
    runs, settings = (
        [],
        {"batch_size": 16, "train_limit": 192, "drop_last": True, "epochs": 2, "warmup_epochs": 0.0},
    )
    for placement in ("aligned", "exchange"):
        for update in ("step", "forward"):
            changes = {"alpha_placement": placement, "update": update, "name": f"{placement}-{update}"}
            runs.append(elastic_runs.run(config(tmp_path, **settings, **changes), network="linear"))
    uneven = config(tmp_path, name="uneven", batch_size=16, update="forward")
    launch(runs)
    for placement in ("aligned", "exchange"):
        assert_close_states(
            *(final_state(tmp_path / f"{placement}-{update}") for update in ("step", "forward"))
        )
    with pytest.raises(AssertionError, match="update was 'forward' on 2 ranks with --no-drop-last"):
        launch([elastic_runs.run(uneven, network="linear")])
