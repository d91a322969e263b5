"""python -m fastac.review: a run's page from its files and its data, and runs of which there is none."""

import base64
import io
import json
import re
import shutil
import webbrowser

import numpy as np
import pandas as pd
import pytest
import training_runs as runs
from PIL import Image
from review_pages import decisions_json

import fastac
from fastac import review
from fastac.config import read_config, write_config
from fastac.data import load_dataset
from fastac.issues.run_scores import rank_run
from fastac.report.offsets import top_offsets
from fastac.run import write_offsets
from fastac.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run on digits."""
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        runs.without_pictures(patch)
        train(runs.config(output, name="small"), create=runs.linear)
    return output / "small"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "small")
    return tmp_path / "small"


def content(path):
    (block,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S
    )
    return json.loads(block)


def test_the_page_is_the_runs(run, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(review, "_has_display", lambda: True)
    assert review.main([str(run), "--top", "12"]) == 0
    assert opened == [(run / "review.html").as_uri()]
    assert str(run / "review.html") in capsys.readouterr().out
    page, issues = content(run / "review.html"), pd.read_csv(run / "issues.csv").head(12)
    assert page["index"] == issues["index"].tolist()
    assert page["given"] == issues["given_label"].tolist()
    assert page["suggested"] == issues["suggested_label"].tolist()
    assert page["run"] == "small"
    assert page["num_samples"] == 193
    assert page["class_names"] == [str(k) for k in range(10)]
    assert page["scores"]["alpha_max"] == pytest.approx(issues["alpha_max"].tolist(), rel=1e-5)
    for classes, values, high, low in zip(
        page["alpha"]["classes"],
        page["alpha"]["values"],
        issues["alpha_max"],
        issues["alpha_min"],
        strict=True,
    ):
        assert len(classes) == len(set(classes)) == 6
        assert values == sorted(values, reverse=True)
        assert max(np.abs(values)) == pytest.approx(max(high, -low), rel=1e-3)
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in page["image"]
    ]
    digits = load_dataset("digits").train
    np.testing.assert_array_equal(pixels, digits.images[issues["index"], :, :, 0])


@pytest.mark.parametrize("loss", ["ac1", "ac2"])
@pytest.mark.parametrize("dynamics", [True, False])
def test_samples_that_were_left_out_have_no_quality(tmp_path, monkeypatch, loss, dynamics):
    runs.without_pictures(monkeypatch)
    left_out = [0, 40, 41, 192]
    np.save(tmp_path / "exclude.npy", np.array(left_out))
    options = {"exclude": str(tmp_path / "exclude.npy"), "loss": loss, "dynamics": dynamics, "epochs": 1}
    train(runs.config(tmp_path, name="part", **options), create=runs.linear)
    written, by_alpha = rank_run(tmp_path / "part"), rank_run(tmp_path / "part", method="alpha")
    for issues in (written, by_alpha):
        assert issues["index"][189:].tolist() == left_out
        assert issues["label_quality"].isna().tolist() == [False] * 189 + [True] * 4
        assert not issues["is_label_issue"][189:].any()
    page = content(review.review(tmp_path / "part", top=193))
    assert page["scores"]["label_quality"][189:] == [None] * 4
    assert page["scores"]["label_quality"][:189] == pytest.approx(written["label_quality"][:189], rel=1e-5)


def test_one_number_a_sample_has_no_top_classes(finished, tmp_path):
    ids, named = np.arange(3), np.full((3, 1), -1)
    for alpha in (np.zeros(193), fastac.AlphaTable(193, 10, form="ac2")):
        write_offsets(tmp_path / "alpha.npz", top_offsets(alpha, ids, named, num_samples=193, num_classes=10))
        assert list(tmp_path.iterdir()) == []


def test_without_a_display_nothing_opens(run, monkeypatch, tmp_path):
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("opened"))
    monkeypatch.setattr(review.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert review.main([str(run), "--output", str(tmp_path / "there.html")]) == 0
    assert len(content(tmp_path / "there.html")["index"]) >= 100
    monkeypatch.setenv("DISPLAY", ":0")
    assert review.main([str(run), "--no-open"]) == 0


def test_the_history_ends_with_the_aum(run):
    page = content(review.review(run, top=4))
    aum = pd.read_csv(run / "dynamics.csv")["aum"]
    files = sorted((run / "history").iterdir())
    assert page["history"]["epoch"] == list(range(1, len(files) + 1))
    for index, scores in zip(page["index"], page["history"]["score"], strict=True):
        assert len(scores) == len(files)
        assert scores[-1] == pytest.approx(aum[index], rel=2e-3)
    files[-1].write_bytes(b"torn")
    with pytest.raises(ValueError, match=f"{files[-1].name} can't be read, remove it to go on without"):
        review.review(run)
    shutil.rmtree(run / "history")
    assert content(review.review(run, top=4))["history"] is None


def test_names_that_pandas_would_take_for_nothing(run):
    issues = pd.read_csv(run / "issues.csv")
    issues["kind"], issues["path"] = "NA", "null"
    issues.loc[0, "suggested_label"] = None
    issues.astype({"suggested_label": "Int64"}).to_csv(run / "issues.csv", index=False)
    page = content(review.review(run, top=2))
    assert page["kind"] == ["NA", "NA"]
    assert page["path"] == ["null", "null"]
    assert page["suggested"][0] is None


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.toml", "is not a run folder: it has no config.toml"),
        ("labels.csv", "is not the folder of a run: it has no labels.csv"),
        ("issues.csv", "has no issues.csv: the run has not come to its end"),
    ],
)
def test_files_that_are_missing(run, capsys, file, message):
    (run / file).unlink()
    before = sorted(run.rglob("*"))
    assert review.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(run) in error
    assert sorted(run.rglob("*")) == before


def test_another_ranking(run, tmp_path, capsys):
    issues = pd.read_csv(run / "issues.csv")
    issues.iloc[::-1].to_csv(tmp_path / "other.csv", index=False)
    arguments = [str(run), "--no-open", "--top", "9", "--issues"]
    assert review.main([*arguments, str(tmp_path / "other.csv")]) == 0
    assert content(run / "review.html")["index"] == issues["index"].tolist()[::-1][:9]
    assert review.main([*arguments, str(tmp_path / "none.csv")]) == 2
    assert "there is no ranking" in capsys.readouterr().err
    assert review.main([*arguments, str(run / "labels.csv")]) == 2
    assert "is_label_issue" in capsys.readouterr().err
    (tmp_path / "issues.parquet").write_bytes(b"PAR1\x15\x04\xff\xfe")
    (tmp_path / "empty.csv").touch()
    for name in ("issues.parquet", "empty.csv"):
        assert review.main([*arguments, str(tmp_path / name)]) == 2
        assert f"{tmp_path / name} can't be read as CSV, as issues.csv is" in capsys.readouterr().err


@pytest.mark.parametrize("top", ["-3", "0"])
def test_a_number_of_samples_that_is_none(run, capsys, top):
    assert review.main([str(run), "--top", top]) == 2
    assert f"top is {top}; it should be a whole number, at least 1" in capsys.readouterr().err
    assert not (run / "review.html").exists()


def test_decisions_of_an_earlier_round(run, tmp_path, capsys):
    given = pd.read_csv(run / "labels.csv")["given_label"].to_numpy()
    names = [str(k) for k in range(10)]
    decided = [(4, "keep", given[4].item()), (7, "unsure", None)]
    file = decisions_json(tmp_path / "mine.json", given, names, decisions=decided)
    arguments = [str(run), "--no-open", "--top", "3"]
    assert review.main([*arguments, "--decisions", str(file)]) == 0
    page = content(run / "review.html")
    assert [(i, entry["decision"]) for i, entry in page["earlier"]["decisions"]] == [
        (4, "keep"),
        (7, "unsure"),
    ]
    assert page["subtitle"].endswith("the 3 most suspicious shown; 2 decided before")
    assert review.main(arguments) == 0
    assert content(run / "review.html")["earlier"] is None

    before = given.copy()
    before[4] = (given[4] + 1) % 10
    before[7] = (given[7] + 1) % 10
    labels = tmp_path / "corrected" / "labels.csv"
    labels.parent.mkdir()
    pd.DataFrame({"index": range(len(given)), "label": given}).to_csv(labels, index=False)
    decided = [(4, "relabel", given[4].item()), (7, "unsure", None)]
    decisions_json(labels.parent / "decisions.json", before, names, decisions=decided)
    config = read_config(run).with_values(labels=str(labels), noise="none", noise_rate=0.0)
    write_config(config, run / "config.toml")
    assert review.main(arguments) == 0
    page = content(run / "review.html")
    assert [(i, e["decision"], e["given"]) for i, e in page["earlier"]["decisions"]] == [
        (4, "keep", given[4])
    ]
    assert page["subtitle"].endswith("1 decided before, 1 others about labels that have changed since")
    assert review.main([*arguments, "--decisions", str(tmp_path / "none.json")]) == 2
    assert "there is no file of decisions" in capsys.readouterr().err


def run_on_a_folder(tmp_path, monkeypatch, **more):
    """A run on eight blue images and eight red ones, in tmp_path / "data"; returns its folder."""
    data = tmp_path / "data" / "train"
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (data / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (60, 40), colour).save(data / name / f"{i}.png")
    runs.without_pictures(monkeypatch)
    changes = {
        "dataset": "folder",
        "data_dir": str(tmp_path / "data"),
        "image_size": 8,
        "train_limit": None,
        "noise": "none",
        "noise_rate": 0.0,
        "augment": "none",
        "batch_size": 4,
        "epochs": 1,
        "warmup_epochs": 0.0,
    }
    train(runs.config(tmp_path, name="folder", **{**changes, **more}), create=runs.linear)
    return tmp_path / "folder"


@pytest.mark.parametrize("noise", ["none", "uniform"])
def test_an_image_that_cannot_be_read_any_more_is_missing_on_the_page_alone(
    tmp_path, monkeypatch, capsys, caplog, noise
):
    run = run_on_a_folder(tmp_path, monkeypatch, noise=noise, noise_rate=0.0 if noise == "none" else 0.25)
    caplog.clear()
    before = content(review.review(run))
    assert None not in before["image"]
    assert not caplog.messages
    red = tmp_path / "data" / "train" / "red"
    (red / "3.png").write_bytes(b"no image")
    assert review.main([str(run), "--no-open"]) == 0
    message = f'{run / "review.html"} has "no image" for 1 image that cannot be read: cannot decode the image'
    (said,) = caplog.messages
    assert said.startswith(f"{message} {red / '3.png'}")
    (red / "0.png").unlink()  # in a folder, ids are places in the list of files
    assert review.main([str(run), "--no-open"]) == 0
    assert '"no image" for 2 images that cannot be read: first ' in caplog.messages[-1]
    page = content(run / "review.html")
    shown = dict(zip(page.pop("path"), page.pop("image"), strict=True))
    expected = dict(zip(before.pop("path"), before.pop("image"), strict=True))
    assert shown == {**expected, "red/3.png": None, "red/0.png": None}
    assert page == before


def test_a_class_without_images_is_other_data(tmp_path, monkeypatch, capsys):
    run = run_on_a_folder(tmp_path, monkeypatch)
    for path in (tmp_path / "data" / "train" / "red").iterdir():
        path.unlink()
    assert review.main([str(run)]) == 2
    assert "has no image files" in capsys.readouterr().err
    (tmp_path / "data" / "train" / "red").rename(tmp_path / "data" / "train" / "white")
    Image.new("RGB", (60, 40)).save(tmp_path / "data" / "train" / "white" / "0.png")
    assert review.main([str(run)]) == 2
    assert "there are 9 samples now, and 16 in" in capsys.readouterr().err


def test_data_that_is_gone_or_has_changed(tmp_path, monkeypatch, capsys):
    run, data = run_on_a_folder(tmp_path, monkeypatch), tmp_path / "data" / "train"
    page = content(review.review(run))
    assert sorted(page["path"]) == sorted(f"{name}/{i}.png" for name in ("blue", "red") for i in range(8))
    assert all(uri.startswith("data:image/jpeg") for uri in page["image"])  # 60 × 40: no longer lossless
    (data / "red" / "0.png").rename(data / "blue" / "8.png")
    assert review.main([str(run)]) == 2
    assert "the data has changed since the run: 1 labels are not those of" in capsys.readouterr().err
    (data / "blue" / "8.png").rename(data / "red" / "0.png")
    Image.new("RGB", (60, 40)).save(data / "red" / "more.png")
    assert review.main([str(run)]) == 2
    assert "there are 17 samples now, and 16 in" in capsys.readouterr().err
    (data / "red" / "more.png").unlink()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert review.main([str(run)]) == 2
    assert "is not a folder: --data-dir should hold train/" in capsys.readouterr().err
    Image.new("RGB", (60, 40)).save(tmp_path / "moved" / "train" / "red" / "0.png")
    assert review.main([str(run), "--data-dir", str(tmp_path / "moved"), "--no-open"]) == 0
