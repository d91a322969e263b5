"""The planner's advice, its refusals, and its command line."""

import json
from dataclasses import replace

import pytest

from fastac.advice import Job, Mode, PlanError, advise, duration, gigabytes
from fastac.links import PRESETS, Machine
from fastac.plan import main

H100 = Machine(**{k: v for k, v in PRESETS["dgx-h100"].values.items() if k != "ranks_per_node"})
IMAGENET = Job(1_281_167, 1000, ranks=8, ranks_per_node=8, batch=2048, step_time=0.25)
CIFAR = Job(50_000, 10, ranks=1, ranks_per_node=8, batch=128, step_time=0.02)
HUGE = Job(10**10, 1000, ranks=4096, ranks_per_node=8, batch=65_536, step_time=0.25, dynamics="none")


def outcome(plan, *mode):
    (found,) = [o for o in plan.outcomes if o.mode == Mode(*mode)]
    return found


def test_imagenet_on_8_ranks():
    plan = advise(IMAGENET, H100)
    assert plan.advised.mode == Mode("aligned", "device", "exact", "float32")
    memory = plan.advised.cost.memory
    assert memory["alpha"] == memory["momentum"] == 160_146 * 1000 * 4
    assert memory["last"] == 160_146 * 4
    assert memory["dynamics"] == 160_146 * 65 + 5
    assert plan.advised.cost.total()[3:] == (0, 0, 0)
    copies = outcome(plan, "replicated", "device", "exact", "float32")
    assert copies.cost.memory["alpha"] == 1_281_167 * 1000 * 4
    assert copies.cost.total().inside == 7 * (8 + 256 * (8 + 4000))
    # 224 of a rank's 256 rows are another rank's: there and back.
    exchange = outcome(plan, "exchange", "device", "exact", "float32").cost
    assert exchange.total().inside == 2 * 224 * 4000 + 224 * 8 + 7 * 8
    dense, *zero = plan.dense
    parameter = dict.fromkeys(("alpha", "gradient", "momentum"), 1_281_167 * 4000)
    # Where any rank draws any sample, an epoch's visits wait for their owners: an id and five float32 each.
    seen = {"dynamics": memory["dynamics"], "visits": 160_146 * 28}
    assert dense.cost.memory == parameter | seen
    assert exchange.memory.items() >= seen.items()
    assert dense.cost.total().inside == 14 * 1_281_167 * 500
    assert len(zero) == 3
    assert all(o.exposed > 10 * plan.advised.exposed for o in plan.dense)


def test_exposed_time():
    """Without bandwidth between ranks to speak of, what can't hide behind the network's pass is exposed."""
    slow = replace(H100, inside_bandwidth=1e6)
    exchange = outcome(advise(IMAGENET, slow), "exchange", "device", "exact", "float32")
    traffic = exchange.cost.traffic
    waiting = slow.waiting(exchange.cost.total())
    rows, ids = 224 * 4000 / 1e6, (224 * 8 + 56) / 1e6
    assert traffic["forward"].inside == traffic["backward"].inside == 224 * 4000
    assert exchange.exposed == pytest.approx(waiting + rows - 0.25 / 3 + rows - 0.5 / 3 + ids)
    # The network's all-reduce goes first in the backward, and α's gradients have no time left to hide in.
    busy = outcome(advise(replace(IMAGENET, parameters=10**6), slow), *exchange.mode)
    assert busy.exposed == pytest.approx(waiting + rows - 0.25 / 3 + rows + ids)
    hidden = outcome(advise(IMAGENET, H100), *exchange.mode)
    ids = (224 * 8 + 56) / 450e9
    assert hidden.exposed == pytest.approx(H100.waiting(hidden.cost.total()) + ids)


@pytest.mark.parametrize("form", ["ac1", "ac2"])
def test_ten_thousand_million_samples_on_4096_ranks(form):
    plan = advise(replace(HUGE, form=form), H100)
    assert plan.advised.mode == Mode("aligned", "device", "exact", "float32")
    assert plan.advised.cost.memory["alpha"] == 2_441_407 * 4 * (1000 if form == "ac1" else 1)
    copies = outcome(plan, "replicated", "device", "exact", "float32")
    assert copies.cost.memory["alpha"] == 10**10 * 4 * (1000 if form == "ac1" else 1)
    assert copies.fits == (form == "ac2" and copies.device <= 80 * 10**9)
    anyone = advise(replace(HUGE, form=form, sampling="any"), H100)
    assert anyone.advised.mode.placement == "exchange"
    assert "aligned" not in {o.mode.placement for o in anyone.outcomes}


def test_cifar_on_one_device():
    plan = advise(CIFAR, H100)
    assert plan.advised.mode == Mode("replicated", "device", "exact", "float32")
    assert plan.advised.cost.memory["alpha"] == 50_000 * 10 * 4
    assert plan.advised.cost.total()[1:] == (0, 0, 0, 0, 0)
    assert plan.reasons["placement"] == "One rank holds all rows, and nothing travels between ranks."
    assert len(plan.dense) == 1


def test_without_momentum():
    plan = advise(replace(IMAGENET, history="none"), H100)
    assert {o.mode.history for o in plan.outcomes} == {"none"}
    assert plan.advised.cost.memory["momentum"] == 0
    assert plan.dense[0].cost.memory["momentum"] == 0
    assert "no momentum" in plan.reasons["history"]


def test_what_is_given_up_and_why():
    """Less and less memory: first half the table's precision rather than a slow host, then the momentum."""
    job = replace(IMAGENET, dynamics="none")
    shard = 160_146 * 4000
    slow = replace(H100, host_bandwidth=1e9)
    for room, mode in (
        (2 * shard, ("aligned", "device", "exact", "float32")),
        (shard, ("aligned", "device", "exact", "bfloat16")),
        (shard // 2, ("aligned", "device", "folded", "bfloat16")),
    ):
        plan = advise(job, replace(slow, device_memory=room + 30 * 10**6))
        assert plan.advised.mode == Mode(*mode)
    assert "float32 (aligned, host, folded, float32) would make a step" in plan.reasons["dtype"]
    assert "exact history" in plan.reasons["history"]
    # A fast link to the host keeps everything.
    plan = advise(job, replace(H100, device_memory=shard))
    assert plan.advised.mode == Mode("aligned", "host", "exact", "float32")
    assert "On the device it lacks" in plan.reasons["storage"]
    assert plan.advised.host == 2 * shard + 160_146 * 4 + plan.advised.cost.host_memory["clock"]
    # One rank's rows on its device are a replicated table.
    alone = advise(replace(job, ranks=1, batch=256), replace(H100, device_memory=8 * 10**9))
    assert alone.advised.mode == Mode("aligned", "host", "exact", "float32")
    assert "On the device it lacks" in alone.reasons["storage"]


def test_what_is_asked_for_is_kept():
    job = replace(IMAGENET, placement="exchange", storage="host", history="folded", dtype="bfloat16")
    plan = advise(job, H100)
    assert [o.mode for o in plan.outcomes] == [Mode("exchange", "host", "folded", "bfloat16")]
    for name in ("storage", "history", "dtype"):
        assert plan.reasons[name].startswith("It was asked for")


def test_memory_of_network_and_reserved():
    plain = advise(IMAGENET, H100).advised
    more = advise(replace(IMAGENET, parameters=25_000_000, reserved=10**9), H100).advised
    assert more.device - plain.device == 25_000_000 * 12 + 10**9


@pytest.mark.parametrize(
    ("job", "machine", "message"),
    [
        (replace(IMAGENET, batch=4), H100, "batch is 4, fewer than 8 ranks.*at most 4 ranks"),
        (replace(IMAGENET, num_samples=1000), H100, "num_samples is 1000, fewer than one batch of 2048"),
        (replace(IMAGENET, num_classes=1), H100, "num_classes is 1; it should be at least 2"),
        (replace(IMAGENET, window=8), H100, "window is 8; it should be at least 16"),
        (replace(IMAGENET, parameters=-1), H100, "parameters is -1; it should be at least 0"),
        (replace(IMAGENET, ranks=12), H100, "ranks is 12; it should be a multiple of ranks_per_node.*8"),
        (replace(IMAGENET, dynamics="both"), H100, "dynamics is 'both'; it should be one of"),
        (replace(IMAGENET, step_time=0), H100, "step_time is 0; it should be positive"),
        (replace(IMAGENET, epochs=3_430_486), H100, "626 steps each it should be at most 3430485: .* int32"),
        (replace(CIFAR, num_samples=2**63), H100, "num_samples is 9223372036854775808; .*int64"),
        (replace(HUGE, num_samples=2**53), H100, "num_samples times ranks is .*2\\^63"),
        (IMAGENET, replace(H100, inside_bandwidth=None), "inside_bandwidth is missing: 8 ranks share a node"),
        (HUGE, replace(H100, between_bandwidth=None), "between_bandwidth is missing: there are 512 nodes"),
        (IMAGENET, replace(H100, ram_bandwidth=None), "ram_bandwidth is missing"),
        (IMAGENET, replace(H100, device_bandwidth=0), "device_bandwidth is 0; it should be positive"),
        (replace(IMAGENET, storage="host"), replace(H100, host_memory=0), "host_memory is missing"),
        (replace(IMAGENET, storage="host", placement="replicated"), H100, "keeps its copies on the devices"),
        (replace(IMAGENET, sampling="any", placement="aligned"), H100, "sampling is 'any'"),
    ],
)
def test_impossible(job, machine, message):
    with pytest.raises(PlanError, match=message):
        advise(job, machine)


def test_it_does_not_fit_and_what_would():
    job = replace(IMAGENET, num_samples=10**9, dynamics="none")
    machine = replace(H100, host_memory=0)
    with pytest.raises(PlanError) as caught:
        advise(job, machine)
    text = str(caught.value)
    # A shard of 125 million rows at 2 B a number and `last`, where 80 GB are.
    assert "The leanest, aligned, device, folded, bfloat16, needs 250.5 GB on each device" in text
    assert "170.5 GB are missing" in text
    assert "form ac2" in text
    (ranks,) = [
        int(part.split()[0].replace(",", "")) for part in text.split("; ") if "ranks of this kind" in part
    ]
    (samples,) = [int(part.split()[0].replace(",", "")) for part in text.split("; ") if "samples" in part]
    assert advise(replace(job, ranks=ranks), machine).advised.fits
    assert advise(replace(job, num_samples=samples), machine).advised.fits
    for worse in (replace(job, ranks=ranks - 8), replace(job, num_samples=samples + 1)):
        with pytest.raises(PlanError, match="does not fit"):
            advise(worse, machine)


def test_more_devices_are_found_without_knowing_their_links():
    """2 · 40 GB and `last` on devices of 10 GB: 9 of them, when each is a node."""
    alone = Machine(device_memory=10**10, host_memory=0, device_bandwidth=1e12)
    job = replace(
        CIFAR, num_samples=10**7, num_classes=1000, ranks_per_node=1, dynamics="none", history="exact"
    )
    with pytest.raises(PlanError, match="; 9 ranks of this kind;"):
        advise(replace(job, dtype="float32"), alone)
    with pytest.raises(PlanError, match="What would fit: form ac2; 5 ranks of this kind;"):
        advise(job, alone)


def test_dynamics_that_do_not_fit():
    whole = (
        "650 GB on each device.*would fit: training dynamics sharded, in place of all samples' on every rank;"
    )
    with pytest.raises(PlanError, match=whole):
        advise(replace(HUGE, dynamics="whole"), H100)
    plan = advise(replace(HUGE, dynamics="sharded", sampling="any"), H100)
    assert plan.advised.cost.memory["dynamics"] == 2_441_407 * 65 + 5
    assert plan.advised.cost.memory["visits"] == 2_441_407 * 28
    tight = replace(H100, device_memory=plan.advised.device - 1, host_memory=0)
    with pytest.raises(PlanError, match="the same without training dynamics"):
        advise(
            replace(HUGE, dynamics="sharded", placement="exchange", history="exact", dtype="float32"), tight
        )


def test_dynamics_on_every_rank():
    plan = advise(replace(IMAGENET, dynamics="whole"), H100)
    for found in [*plan.outcomes, *plan.dense]:
        assert found.cost.memory["dynamics"] == 1_281_167 * 65 + 4
        assert "visits" not in found.cost.memory


def test_a_choice_that_does_not_fit_names_one_that_does():
    with pytest.raises(PlanError, match="What would fit: aligned, device, exact, float32;"):
        advise(replace(HUGE, placement="replicated"), H100)


COMMAND = "--samples 1281167 --classes 1000 --ranks 8 --batch 2048 --step-time 250 --preset dgx-h100"
WORDS = COMMAND.split()


def test_the_command_prints_the_plan(capsys):
    assert main(WORDS) == 0
    text = capsys.readouterr().out
    assert text.startswith("planned, not measured")
    for line in (
        "  placement aligned     Each rank trains on the rows that it owns",
        "  device  alpha                  640,584,000 B",
        "  device bandwidth     3.35 TB/s   preset dgx-h100",
        "  dgx-h100: NVIDIA's data sheets",
    ):
        assert line in text
    assert text.count("<- advised") == 1
    assert "dense, ZeRO 3" in text


def test_the_commands_json(capsys):
    assert main([*WORDS, "--device-memory", "40", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["planned"] is True
    assert plan["possible"] is True
    assert plan["machine"]["device_memory"] == 40 * 10**9
    assert plan["machine_sources"]["device_memory"] == "given"
    assert plan["machine_sources"]["inside_bandwidth"] == "preset dgx-h100"
    assert plan["presets"].keys() == {"dgx-h100"}
    expected = advise(IMAGENET, replace(H100, device_memory=40 * 10**9))
    advised = plan["advised"]
    assert Mode(*(advised[name] for name in Mode._fields)) == expected.advised.mode
    assert advised["device_bytes"] == expected.advised.device
    assert advised["memory"] == expected.advised.cost.memory
    assert advised["exposed_seconds"] == expected.advised.exposed
    assert plan["reasons"] == expected.reasons
    assert [row["name"] for row in plan["modes"]] == [o.name for o in expected.outcomes]
    assert [row["step"] for row in plan["dense"]] == [o.cost.total()._asdict() for o in expected.dense]


def test_the_command_takes_powers_of_ten_exactly(capsys):
    words = (
        "--samples 9999999999 --classes 1e3 --ranks 4096 --batch-per-rank 16 --step-time 250 --dynamics none"
    )
    assert main([*words.split(), "--preset", "dgx-h200", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["job"]["num_samples"], plan["job"]["num_classes"]) == (9_999_999_999, 1000)
    assert plan["job"]["batch"] == 65_536
    assert plan["machine"]["device_memory"] == 141 * 10**9


def test_the_command_without_a_preset(capsys):
    words = "--samples 50000 --classes 10 --batch 128 --step-time 20 --device-memory 8 --device-bandwidth 400"
    assert main([*words.split(), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {mode["placement"] for mode in plan["modes"]} == {"replicated"}
    assert plan["presets"] == {}
    assert main(words.split()[:-2]) == 1
    assert "device_bandwidth is missing: give --device-bandwidth or --preset" in capsys.readouterr().err
    assert main([*words.split(), "--ranks", "2"]) == 1
    assert "ranks_per_node is missing" in capsys.readouterr().err


def test_the_command_refuses(capsys):
    assert main([*WORDS, "--batch", "4"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("impossible: batch is 4")
    assert main([*WORDS, "--batch", "4", "--json"]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert refused["planned"] is True
    assert refused["possible"] is False
    assert "fewer than 8 ranks" in refused["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "1.5"], "'1.5' should be a whole number"),
        (["--samples", "inf"], "'inf' should be a whole number"),
        (["--samples", "1e999999999"], "'1e999999999' should be a whole number"),
        (["--latency", "1e999999999"], "'1e999999999' should be a number"),
        (["--samples", "many"], "'many' should be a whole number"),
        (["--step-time", "-1"], "'-1' should be a number that is not negative"),
        (["--device-memory", "nan"], "'nan' should be a number that is not negative"),
    ],
)
def test_the_command_checks_numbers(words, message, capsys):
    with pytest.raises(SystemExit):
        main([*WORDS, *words])
    assert message in capsys.readouterr().err


def test_units():
    assert [gigabytes(n) for n in (0, 999, 1000, 2_500_000, 80 * 10**9, 4 * 10**13)] == [
        "0 B",
        "999 B",
        "1 kB",
        "2.5 MB",
        "80 GB",
        "40 TB",
    ]
    assert [duration(s) for s in (2.0, 0.0335, 2.47e-6, 0.0)] == ["2 s", "33.5 ms", "2.47 µs", "0 µs"]
