"""fastac.config: fields and their limits, recipes, config files, the command line."""

import re
from pathlib import Path

import pytest

from fastac.config import (
    SECTIONS,
    Config,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    load_config,
    parse_command_line,
    read_config,
    read_recipe,
    recipe_names,
    resumed_config,
    write_config,
)


def test_key_names_are_unique_across_sections():
    names = [name for kind in SECTIONS.values() for name in kind.__dataclass_fields__]
    assert len(names) == len(set(names))
    assert all(f.metadata["help"] for kind in SECTIONS.values() for f in kind.__dataclass_fields__.values())


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (DataConfig, {"batch_size": 0}, "batch_size was 0; it should be at least 1"),
        (DataConfig, {"batch_size": "64"}, "batch_size was '64'; it should be a whole number"),
        (DataConfig, {"batch_size": True}, "batch_size was True; it should be a whole number"),
        (DataConfig, {"noise_rate": 1.0}, "noise_rate was 1.0; it should be at least 0 and below 1"),
        (DataConfig, {"train_limit": 2.5}, "train_limit was 2.5; it should be a whole number or none"),
        (
            DataConfig,
            {"noise": "unifrom"},
            "noise was 'unifrom'; it should be none, uniform, pair or asymmetric; did you mean uniform?",
        ),
        (
            LossConfig,
            {"label_smoothing": 1.0},
            "label_smoothing was 1.0; it should be at least 0 and below 1",
        ),
        (OptimizerConfig, {"lr": 0}, "lr was 0.0; it should be above 0"),
        (OptimizerConfig, {"lr": float("nan")}, "lr was nan; it should be a number"),
        (OptimizerConfig, {"milestones": [0]}, "milestones was 0; it should be at least 1"),
        (
            OptimizerConfig,
            {"milestones": [1.5]},
            r"milestones was \[1.5\]; it should be a list of whole numbers",
        ),
        (OptimizerConfig, {"clip_grad": 0}, "clip_grad was 0.0; it should be above 0"),
        (OptimizerConfig, {"nesterov": 1}, "nesterov was 1; it should be true or false"),
    ],
)
def test_a_wrong_value_names_field_value_and_what_it_should_be(section, values, message):
    with pytest.raises(ValueError, match=message):
        section(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": "uniform"}, "noise_rate was 0 with noise 'uniform'"),
        ({"noise_rate": 0.2}, "noise_rate was 0.2 with noise 'none'"),
        ({"label_truth": "dataset"}, "label_truth was 'dataset' without labels"),
        ({"schedule": "multistep"}, "milestones was .* with schedule 'multistep'"),
        ({"milestones": [3]}, r"milestones was \[3\] with schedule 'cosine'"),
        ({"schedule": "multistep", "milestones": [5, 3]}, "ascending"),
        (
            {"schedule": "multistep", "milestones": [3, 10]},
            r"milestones was \[3, 10\] with epochs 10; each should",
        ),
        ({"epochs": 5, "warmup_epochs": 5.0}, r"warmup_epochs was 5; it should be below epochs \(5\)"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov was true with momentum 0"),
        ({"threshold_set": 1, "exclude": "x.csv"}, "threshold_set was 1 with exclude 'x.csv'"),
        ({"update": "forward", "grad_accum_steps": 2}, "update was 'forward' with grad_accum_steps 2"),
        ({"update": "forward", "amp_dtype": "fp16"}, "update was 'forward'"),
        ({"update": "forward", "on_bad_image": "skip"}, "update was 'forward' with on_bad_image 'skip'"),
        ({"zero_stage": 2}, "zero_stage was 2 with engine 'ddp'; it should come with --engine deepspeed"),
        ({"deepspeed_config": "x.json"}, "deepspeed_config was 'x.json' with engine 'ddp'"),
        (
            {"engine": "deepspeed", "zero_stage": 2, "deepspeed_config": "x.json"},
            "zero_stage was 2 with deepspeed_config 'x.json'; it should be in that file",
        ),
        ({"engine": "deepspeed", "amp_dtype": "fp16"}, "amp_dtype was 'fp16' with engine 'deepspeed'"),
        ({"engine": "deepspeed", "torchcompile": True}, "torchcompile was true with engine 'deepspeed'"),
        ({"engine": "deepspeed", "update": "forward"}, "update was 'forward' with engine 'deepspeed'"),
        ({"engine": "deepspeed", "zero_stage": 4}, "zero_stage was 4; it should be at least 1 and at most 3"),
        ({"engine": "zero"}, "engine was 'zero'; it should be ddp or deepspeed"),
        ({"opt": "adam"}, "opt was 'adam'; it should be sgd or fusedsgd"),
        ({"dist_timeout": 0.0}, "dist_timeout was 0.0; it should be above 0"),
        ({"lerning_rate": 1}, "there is no key lerning_rate"),
    ],
)
def test_fields_that_do_not_go_together(values, message):
    with pytest.raises(ValueError, match=message):
        Config().with_values(**values)


def test_whole_numbers_are_taken_for_floats():
    config = Config().with_values(clip_grad=5, warmup_epochs=1)
    assert config.optimizer.clip_grad == 5.0
    assert type(config.optimizer.clip_grad) is float


def test_every_recipe_loads():
    tables = {f"cifar10-{name}" for name in ("resnet32", "wrn40-2", "wrn28-10", "pyramidnet")}
    tables |= {f"cifar10-shake-shake-26-2x{width}d" for width in (32, 96, 112)}
    tables |= {
        f"cifar100-{name}"
        for name in ("resnet32", "wrn40-2", "wrn28-10", "shake-shake-26-2x96d", "pyramidnet")
    }
    tables |= {
        "imagenet-resnet50",
        "imagenet-resnet50-fast",
        "svhn-wrn28-10",
        "cifar10-resnet32-aum",
        "cifar100-resnet32-aum",
    }
    humans = {f"cifar10n-{name}" for name in ("aggre", "random1", "random2", "random3", "worse")}
    expected = tables | humans | {"demo", "demo-aum", "digits", "fashion-mnist", "fashion-mnist-aum"}
    assert set(recipe_names()) == expected
    for name in recipe_names():
        assert load_config(name).run.recipe == name


def test_the_papers_table_7():
    resnet = load_config("cifar100-resnet32")
    opt = resnet.optimizer
    assert (opt.lr, opt.weight_decay, opt.epochs, resnet.data.batch_size) == (0.1, 1e-4, 300, 256)
    assert (opt.schedule, opt.milestones, opt.gamma, opt.momentum) == ("multistep", (150, 225), 0.1, 0.9)
    wide = load_config("cifar10-wrn40-2")
    opt = wide.optimizer
    assert (opt.lr, opt.weight_decay, opt.epochs, wide.data.batch_size) == (0.1, 2e-4, 200, 128)
    assert (opt.schedule, opt.nesterov, opt.clip_grad, opt.warmup_epochs) == ("cosine", True, 5.0, 5.0)
    assert wide.loss.alpha_weight_decay == resnet.loss.alpha_weight_decay == 5e-5


def test_the_papers_imagenet():
    config = load_config("imagenet-resnet50")
    opt = config.optimizer
    assert (opt.lr, opt.weight_decay, opt.epochs, config.data.batch_size) == (0.1, 1e-4, 270, 256)
    assert (opt.schedule, opt.milestones, opt.gamma) == ("multistep", (90, 180, 240), 0.1)
    assert (config.loss.loss, config.loss.alpha_weight_decay) == ("ac2", 5e-5)
    assert config.data.aa == "autoaugment-imagenet"
    fast = load_config("imagenet-resnet50-fast")
    assert (fast.optimizer.epochs, fast.optimizer.schedule, fast.loss.label_smoothing) == (90, "cosine", 0.1)
    assert fast.model.model_ema


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("ac1-bf16", {"alpha_dtype": "bf16"}),
        ("ac1-folded", {"alpha_history": "folded"}),
        ("ac1-aligned", {"alpha_placement": "aligned"}),
        ("ac1-host", {"alpha_storage": "host"}),
    ],
)
def test_ways_to_keep_imagenets_alpha(variant, changed):
    plain = load_config("imagenet-resnet50+ac1").values()
    kept = load_config(f"imagenet-resnet50+{variant}").values()
    differing = {name: value for name, value in kept.items() if value != plain[name]}
    assert differing == changed | {"recipe": f"imagenet-resnet50+{variant}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlearning_rate = 0.1", r"there is no key learning_rate in \[optimizer\]"),
        ("[optimizer]\nmomentun = 0.1", "there is no key momentun .*did you mean momentum?"),
        ("[optimiser]\nlr = 0.1", r"there is no section \[optimiser\].*did you mean optimizer?"),
        ("[data]\nlr = 0.1", r"lr belongs in the section \[optimizer\], not \[data\]"),
        ("lr = 0.1", r"lr belongs in the section \[optimizer\]"),
        ("data = 3", r"data was 3; it should be a section \[data\]"),
        ("[data]\nbatch_size = '64'", "batch_size was '64'"),
        ("[data\n", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_file(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(str(path))


def test_unknown_recipes():
    with pytest.raises(ValueError, match=r"recipe was 'digit'; it should be .*did you mean digits\?"):
        read_recipe("digit")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_recipe("nowhere/digits.toml")


def test_overrides_win_over_the_recipe_and_the_recipe_over_defaults():
    config = load_config("digits", {"lr": 0.03})
    assert config.optimizer.lr == 0.03
    assert config.data.batch_size == read_recipe("digits")["batch_size"] != Config().data.batch_size
    assert config.optimizer.gamma == Config().optimizer.gamma


def test_config_toml_gives_the_same_config_again(tmp_path):
    config = load_config("cifar10n-worse", {"name": "one", "output": str(tmp_path), "milestones": (2, 4)})
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "config.toml"
    write_config(config, path)
    assert read_config(tmp_path / "one") == config
    again = load_config(str(path))
    assert (again.run.name, again.run.output) == (None, "runs")
    assert again.with_values(name="one", output=str(tmp_path)) == config
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no config\.toml"):
        read_config(tmp_path)


def test_resume_refuses_what_would_change_the_result(tmp_path):
    stored = load_config("digits", {"name": "one", "output": "runs"})
    resumed = resumed_config(
        stored,
        {"log_interval": 7, "checkpoint_hist": 5, "device": "cpu", "lr": stored.optimizer.lr}
        | {"engine": "deepspeed", "zero_stage": 3, "dist_timeout": 60.0, "opt": "fusedsgd"},
        tmp_path,
    )
    assert resumed.run.log_interval == 7
    assert (resumed.run.engine, resumed.run.zero_stage, resumed.run.dist_timeout) == ("deepspeed", 3, 60.0)
    ours = {"engine": "ddp", "zero_stage": None, "dist_timeout": 600.0, "opt": "sgd"}
    assert resumed.with_values(**ours) == stored.with_values(log_interval=7, checkpoint_hist=5, device="cpu")
    with pytest.raises(ValueError, match=r"lr was 0\.5 and the run .* was started with 0\.1; it should stay"):
        resumed_config(stored, {"lr": 0.5}, tmp_path)
    for name in ("seed", "epochs", "loss", "noise", "alpha_dtype", "model", "augment", "drop_last"):
        old = stored.values()[name]
        other = not old if isinstance(old, bool) else {int: 99, str: "pair"}[type(old)]
        with pytest.raises(ValueError, match=f"^{name} was"):
            resumed_config(stored, {name: other}, tmp_path)


def test_the_command_line():
    words = (
        "--recipe digits --batch_size 32 --weight-decay=1e-3 --nesterov --no-dynamics --milestones 3,5 "
        "--clip-grad none --resume auto --name x"
    )
    command = parse_command_line(words.split())
    assert (command.recipe, command.resume) == ("digits", "auto")
    assert command.values == {
        "batch_size": 32,
        "weight_decay": 1e-3,
        "nesterov": True,
        "dynamics": False,
        "milestones": (3, 5),
        "clip_grad": None,
        "name": "x",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bach-size 3", "there is no option --bach-size; did you mean --batch-size?"),
        ("--batch 3", "there is no option --batch"),  # no abbreviations: they break when a key is added
        ("--momentun=0.9", "there is no option --momentun; did you mean --momentum?"),
        ("--epochs 1.5", "epochs was '1.5'; it should be a whole number"),
        ("--lr fast", "lr was 'fast'; it should be a number"),
        ("--train-limit few", "train_limit was 'few'; it should be a whole number or none"),
        ("--lr", "--lr: expected one argument"),
        ("digits", "unexpected 'digits': every setting is an option"),
    ],
)
def test_a_wrong_command_line(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_command_line(words.split())


def test_help_is_by_section_with_the_recipes_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_command_line(["--help", "--recipe", "cifar10-wrn40-2"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for section, kind in SECTIONS.items():
        assert f"\n{section}:\n" in text
        for name in kind.__dataclass_fields__:
            assert f"--{name.replace('_', '-')}" in text
    assert "(default: wrn-40-2)" in " ".join(text.split())
    assert "cifar10n-worse" in text


def test_a_run_folder_named_by_a_dot_is_the_folder_itself(tmp_path, monkeypatch):
    write_config(load_config("digits"), _made(tmp_path / "one") / "config.toml")
    monkeypatch.chdir(_made(tmp_path / "one" / "below"))
    for folder in ("..", "../../one/", "../below/.."):
        run = read_config(Path(folder)).run
        assert Path(run.output) / str(run.name) == tmp_path / "one"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
