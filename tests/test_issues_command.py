"""python -m fastac.issues, what it reads of a run, and what it writes for other tools."""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import fastac
from fastac.config import Config, write_config
from fastac.issues import alpha_statistics, exports, find_label_issues
from fastac.issues.__main__ import main
from fastac.issues.run_scores import rank_run, write_scores
from fastac.run import RunFolder

pd = pytest.importorskip("pandas")
Image = pytest.importorskip("PIL.Image")

NASTY = [
    '=HYPERLINK("http://x","y")',
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\tcmd",
    "\rcmd",
    "'quoted",
    "<script>alert(1)</script>",
    'comma, "quotes"\nand a line',
    "🙂 naïve ß",
    "x" * 10_000,
    "NA",
    "'=already guarded",
]
K = len(NASTY)
N = 260


def make_run(folder, names=NASTY, *, paths=False, dynamics=True, form="ac1"):
    """The files of a run that this reads, made by hand."""
    rng = np.random.default_rng(0)
    given = rng.integers(0, len(names), N)
    alpha = rng.normal(0, 0.01, (N, len(names)))
    alpha[np.arange(20), given[:20]] += 0.3
    alpha[np.arange(20), (given[:20] + 1) % len(names)] -= 0.3
    aum = np.where(np.arange(N) < 20, rng.normal(-2, 0.5, N), rng.normal(3, 0.8, N))
    statistics = None if form is None else alpha_statistics(alpha if form == "ac1" else alpha[:, 1], given)
    frame = pd.DataFrame({"index": np.arange(N), "count": 3, "aum": aum, "p_mean": 1 / (1 + np.exp(-aum))})
    predictions, others = (given + (np.arange(N) < 20)) % len(names), (given + 2) % len(names)
    issues = find_label_issues(
        frame if statistics is None else statistics,
        given,
        class_names=names,
        pred_labels=predictions,
        other_labels=others,
        dynamics=frame if dynamics and statistics is not None else None,
    )
    if paths:
        issues["path"] = [f"={i}/🙂.png" for i in issues["index"]]
    folder.mkdir(parents=True)
    exports.write_csv(issues, folder / "issues.csv")
    write_scores(
        folder / "scores.npz",
        given=given,
        class_names=names,
        predictions=predictions,
        others=others,
        alpha=statistics,
    )
    if dynamics:
        frame.to_csv(folder / "dynamics.csv", index=False)
    return issues


# ---- files


@pytest.mark.parametrize("paths", [False, True])
def test_csv_runs_no_formula_and_loses_nothing(tmp_path, paths):
    issues = make_run(tmp_path / "run", paths=paths)
    path = tmp_path / "run" / "issues.csv"
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in ("given_class", "suggested_class", "kind", *(["path"] if paths else [])):
        assert not cells[name].str.startswith(("=", "+", "-", "@", "\t", "\r")).any()
    again = exports.read_csv(path)
    assert set(again["given_class"]) == set(NASTY)
    pd.testing.assert_frame_equal(again, issues, check_dtype=False)
    assert again["kind"].isna().sum() == issues["kind"].isna().sum() > 0
    assert str(again["suggested_label"].dtype) == "Int64"


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    issues = make_run(tmp_path / "run")
    exports.write_parquet(issues, tmp_path / "a.parquet")
    again = pd.read_parquet(tmp_path / "a.parquet")
    again["kind"] = again["kind"].astype(object).where(again["kind"].notna(), None)
    pd.testing.assert_frame_equal(again, issues, check_dtype=False)


def test_cleanlabs_columns(tmp_path):
    issues = make_run(tmp_path / "run")
    issues.loc[3, "suggested_label"] = pd.NA
    exports.write_cleanlab(issues, tmp_path / "c.csv")
    frame = pd.read_csv(tmp_path / "c.csv")
    assert list(frame) == ["index", "is_label_issue", "label_quality", "given_label", "predicted_label"]
    assert frame["index"].tolist() == list(range(N))
    by_id = issues.set_index("index").sort_index()
    assert frame["label_quality"].tolist() == pytest.approx(by_id["label_quality"].tolist())
    assert frame["is_label_issue"].dtype == bool
    unknown = issues["index"][3]
    assert frame["predicted_label"][unknown] == frame["given_label"][unknown]
    rest = frame.drop(index=unknown)
    assert (rest["predicted_label"] == by_id["suggested_label"].drop(unknown)).all()


def test_fiftyones_fields_in_the_order_of_the_ids(tmp_path):
    issues = make_run(tmp_path / "run")
    issues.loc[0, "label_quality"] = math.nan
    exports.write_fiftyone(issues, tmp_path / "f.json")
    document = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert document["key"] is None
    fields = document["fields"]
    assert set(fields) == {"is_label_issue", "label_quality", "kind", "given_label", "suggested_label"}
    assert fields["label_quality"][issues["index"][0]] is None
    assert fields["label_quality"][issues["index"][1]] == issues["label_quality"][1]
    by_id = issues.sort_values("index")
    assert fields["given_label"] == by_id["given_class"].tolist()
    assert fields["is_label_issue"] == by_id["is_label_issue"].tolist()


def test_fiftyones_fields_by_file(tmp_path, monkeypatch):
    """FiftyOne's filepath is absolute."""
    monkeypatch.chdir(tmp_path)
    issues = make_run(tmp_path / "run", paths=True)
    exports.write_fiftyone(issues, tmp_path / "f.json", root=Path("data") / "train")
    document = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert document["key"] == "filepath"
    quality = document["fields"]["label_quality"]
    files = [str(tmp_path / "data" / "train" / file) for file in issues["path"]]
    assert [quality[file] for file in files] == issues["label_quality"].tolist()
    assert len(quality) == len(issues)


def test_label_studios_tasks(tmp_path):
    issues = make_run(tmp_path / "run", paths=True)
    issues.loc[1, ["suggested_label", "suggested_class"]] = [pd.NA, None]
    exports.write_label_studio(issues, tmp_path / "l.json")
    tasks = json.loads((tmp_path / "l.json").read_text(encoding="utf-8"))
    flagged = issues[issues["is_label_issue"]]
    assert 15 < len(flagged) < 30
    assert [task["data"]["index"] for task in tasks] == flagged["index"].tolist()
    # The escapes of "=" and of the emoji.
    images = [f"/data/local-files/?d=%3D{i}/%F0%9F%99%82.png" for i in flagged["index"]]
    assert [task["data"]["image"] for task in tasks] == images
    (prediction,) = tasks[0]["predictions"]
    assert prediction["score"] == pytest.approx(1 - issues["label_quality"][0])
    (choice,) = prediction["result"]
    assert (choice["type"], choice["to_name"]) == ("choices", "image")
    assert choice["value"] == {"choices": [issues["suggested_class"][0]]}
    assert tasks[1]["predictions"] == []


def test_label_studios_tasks_of_texts_and_of_images_without_files(tmp_path):
    issues = make_run(tmp_path / "run")
    path = tmp_path / "l.json"
    exports.write_label_studio(issues, path, texts=lambda index: f"text {index}")
    (first, *_) = json.loads(path.read_text(encoding="utf-8"))
    assert first["data"]["text"] == f"text {issues['index'][0]}"
    assert first["predictions"][0]["result"][0]["to_name"] == "text"
    exports.write_label_studio(issues, path, images=lambda index: f"data:{index}")
    (first, *_) = json.loads(path.read_text(encoding="utf-8"))
    assert first["data"]["image"] == f"data:{issues['index'][0]}"
    with pytest.raises(ValueError, match="issues has no column path; images or texts should say"):
        exports.write_label_studio(issues, path)
    with pytest.raises(ValueError, match="images and texts are both given"):
        exports.write_label_studio(issues, path, images=str, texts=str)
    issues["is_label_issue"] = False
    with pytest.raises(ValueError, match="no label is an issue, l.json would have no task"):
        exports.write_label_studio(issues, path, images=str)
    assert json.loads(path.read_text(encoding="utf-8"))[0] == first


@pytest.mark.parametrize("kind", list(exports.EXPORTS))
def test_nothing_is_half_written(tmp_path, monkeypatch, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    issues = make_run(tmp_path / "run")
    path = tmp_path / "out" / "file"
    path.parent.mkdir()
    path.write_text("before")

    def fail(*args, **kwargs):
        for part in path.parent.iterdir():
            assert part == path or part.name.startswith(".")
        raise OSError("disk full")

    monkeypatch.setattr(exports.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        exports.EXPORTS[kind](issues, path, **({"texts": str} if kind == "label-studio" else {}))
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


# ---- ranking a run again


def test_a_run_is_ranked_as_find_label_issues_would(tmp_path):
    issues = make_run(tmp_path / "run", paths=True)
    written = rank_run(tmp_path / "run")
    pd.testing.assert_frame_equal(written, issues, check_dtype=False)
    combined = rank_run(tmp_path / "run", method="combined")
    pd.testing.assert_frame_equal(combined, issues, check_dtype=False)
    by_alpha = rank_run(tmp_path / "run", method="alpha", percent=5)
    assert by_alpha["is_label_issue"].sum() == 13
    assert set(by_alpha["index"][:13]) <= set(range(20))
    assert (by_alpha["path"] == [f"={i}/🙂.png" for i in by_alpha["index"]]).all()
    assert rank_run(tmp_path / "run", percent=5)["index"].tolist() == issues["index"].tolist()


def test_runs_without_alpha_or_without_dynamics(tmp_path):
    make_run(tmp_path / "ce", form=None)
    assert rank_run(tmp_path / "ce", method="confidence")["is_label_issue"].sum() == 20
    with pytest.raises(ValueError, match="method 'alpha' needs α"):
        rank_run(tmp_path / "ce", method="alpha")
    make_run(tmp_path / "ac2", form="ac2", dynamics=False)
    assert rank_run(tmp_path / "ac2", percent=10)["alpha_max"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="method 'aum' needs training dynamics"):
        rank_run(tmp_path / "ac2", method="aum")


def test_the_command_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    issues = make_run(tmp_path / "run", paths=True)
    files = {kind: tmp_path / f"{kind}.out" for kind in ("csv", "parquet", "cleanlab")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    assert main([str(tmp_path / "run"), "--top", "3", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    flagged = int(issues["is_label_issue"].sum())
    assert lines[0] == f"{flagged} of 260 labels are issues ({flagged / 260:.2%})"
    assert lines[1].split() == ["id", "given", "suggested", "quality", "issue", "kind", "path"]
    assert [line.split()[0] for line in lines[2:5]] == [str(i) for i in issues["index"][:3]]
    assert len(lines) == 5 + len(files)
    assert max(map(len, lines[:5])) < 150  # a name of 10,000 characters is cut
    assert all(path.stat().st_size > 100 for path in files.values())
    assert main([str(tmp_path / "run"), "--top", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def make_image_run(tmp_path, dataset):
    """A run in runs/mine on data/train/{0 … 12}/*.png or data.npz, started in tmp_path."""
    issues = make_run(tmp_path / "runs" / "mine", paths=dataset == "folder")
    folder = RunFolder(tmp_path / "runs" / "mine")
    by_id = issues.sort_values("index")
    given = by_id["given_label"].to_numpy()
    pixels = np.random.default_rng(1).integers(0, 256, (N, 8, 8, 3), np.uint8)
    if dataset == "folder":
        given = np.sort(given)
        files = [f"{label:02}/{i:03}.png" for i, label in enumerate(given)]
        for file, image in zip(files, pixels, strict=True):
            path = tmp_path / "data" / "train" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        issues = by_id.assign(path=files, given_label=given).loc[issues.index]
        exports.write_csv(issues, folder.path / "issues.csv")
    else:
        np.savez(tmp_path / "data.npz", images=pixels, labels=given)
    values = {"data_dir": "data", "image_size": 8} if dataset == "folder" else {"data_dir": "data.npz"}
    write_config(Config().with_values(dataset=dataset, **values), folder.config)
    folder.write_labels(given, None)
    folder.write_environment({"directory": str(tmp_path)})
    return issues, pixels


@pytest.mark.parametrize("dataset", ["folder", "npz"])
def test_tools_find_the_images_from_any_folder(tmp_path, monkeypatch, dataset):
    """The run's data_dir is relative to where it was started."""
    issues, pixels = make_image_run(tmp_path, dataset)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    words = ["../runs/mine", "--fiftyone", "f.json", "--label-studio", "l.json", "--top", "0"]
    assert main(words) == 0
    fields = json.loads(Path("f.json").read_text(encoding="utf-8"))
    tasks = json.loads(Path("l.json").read_text(encoding="utf-8"))
    images = [task["data"]["image"] for task in tasks]
    flagged = issues[issues["is_label_issue"]]
    if dataset == "folder":
        assert fields["key"] == "filepath"
        assert all(Path(file).is_file() for file in fields["fields"]["label_quality"])
        assert images == [f"/data/local-files/?d={file}" for file in flagged["path"]]
        assert main([*words, "--image-prefix", "https://example.org/"]) == 0
        again = json.loads(Path("l.json").read_text(encoding="utf-8"))
        assert again[0]["data"]["image"] == f"https://example.org/{flagged['path'].iloc[0]}"
    else:
        assert fields["key"] is None
        for image, index in zip(images, flagged["index"], strict=True):
            content = base64.b64decode(image.removeprefix("data:image/png;base64,"))
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels[index])


def test_data_that_has_moved(tmp_path, capsys):
    make_image_run(tmp_path, "npz")
    (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    words = [str(tmp_path / "runs" / "mine"), "--label-studio", str(tmp_path / "l.json")]
    assert main(words) == 2
    assert "data.npz" in capsys.readouterr().err
    assert not (tmp_path / "l.json").exists()
    assert main([*words, "--data-dir", str(tmp_path / "moved.npz")]) == 0


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda run: None, ["missing"], "missing has no issues.csv; it should be the folder of a run"),
        (lambda run: (run / "scores.npz").unlink(), ["run", "--percent", "5"], "has no scores.npz"),
        (
            lambda run: (run / "scores.npz").write_bytes(b"PK broken"),
            ["run", "--percent", "5"],
            "can't be read",
        ),
        (
            lambda run: (run / "dynamics.csv").write_text("index,aum,p_mean\n0,1,0.5\n"),
            ["run", "--method", "aum"],
            "dynamics.csv has 1 rows; it should have 260",
        ),
        (
            lambda run: cut(run / "issues.csv"),
            ["run", "--method", "aum"],
            "issues.csv has 259 rows; it should have each of the 260 samples",
        ),
        (lambda run: relabel(run / "issues.csv"), ["run", "--method", "aum"], "different given labels"),
        (
            lambda run: (run / "issues.csv").write_text("a,b\n1,2\n"),
            ["run"],
            "lacks the columns index, given_label, is_label_issue, label_quality",
        ),
        (lambda run: None, ["run", "--percent", "101"], "percent must be a number from 0 to 100, got 101"),
        (lambda run: None, ["run", "--csv", "nowhere/a.csv"], "there is no folder nowhere"),
        (
            lambda run: None,
            ["run", "--csv", "a", "--cleanlab", "a"],
            "two of the files to write have the same",
        ),
    ],
)
def test_what_the_command_refuses(tmp_path, monkeypatch, capsys, spoil, options, message):
    make_run(tmp_path / "run")
    spoil(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastac.issues: error: ")
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


def cut(path):
    exports.write_csv(exports.read_csv(path)[:-1], path)


def relabel(path):
    frame = exports.read_csv(path)
    frame.loc[0, "given_label"] = (frame.loc[0, "given_label"] + 1) % K
    exports.write_csv(frame, path)


def test_a_run_of_the_trainer_can_be_ranked_again(tmp_path):
    """What write_results writes is what this reads."""
    torch.manual_seed(0)
    table = fastac.AlphaTable(N, K, momentum=0.9)
    statistics = alpha_statistics(table, np.zeros(N, int))
    write_scores(
        tmp_path / "scores.npz",
        given=np.zeros(N, int),
        class_names=NASTY,
        predictions=np.zeros(N, int),
        others=np.ones(N, int),
        alpha=statistics,
    )
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as stored:
        assert json.loads(bytes(stored["class_names"])) == NASTY
        assert len(stored["alpha_offset"]) == N
