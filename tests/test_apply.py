"""fastac.decisions and fastac.apply: right files applied to the letter, wrong ones refused, nothing half-written."""

import csv
import io
import json
import re
import shlex

import numpy as np
import pytest
from review_pages import CLASSES, NASTY, decisions_json

from fastac import apply
from fastac.apply import apply_decisions
from fastac.config import Config, parse_command_line, write_config
from fastac.data import labels_digest, read_id_file, read_label_file
from fastac.decisions import guard_cell, read_decisions, unguard_cell
from fastac.run import RunFolder, write_json

LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
ALL = [(0, "keep", 0), (1, "relabel", 3), (4, "drop", None), (5, "unsure", None), (9, "relabel", 0)]


@pytest.fixture
def run(tmp_path):
    """The files of a finished run that apply reads."""
    folder = RunFolder(tmp_path / "runs" / "small")
    folder.path.mkdir(parents=True)
    write_config(Config().with_values(noise="uniform", noise_rate=0.2), folder.config)
    folder.write_labels(LABELS, None)
    write_json(folder.result, {"classes": len(CLASSES)})
    return folder.path


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def exported_csv(path, labels=LABELS, names=CLASSES, decisions=ALL, change=lambda text: text):
    """What exchange.js writes, by Python's csv module."""
    labels = np.asarray(labels)
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["#format", "fastac decisions", 1])
        writer.writerow(["#fingerprint", labels_digest(labels)])
        writer.writerow(["#num_samples", len(labels)])
        writer.writerow(["#class_names", len(names), *map(guard_cell, names)])
        writer.writerow(["#run", "small"])
        writer.writerow(["#exported", "2026-01-31T12:30:00Z"])
        writer.writerow(["#rows", len(decisions)])
        writer.writerow(["index", "given_label", "given_class", "decision", "label", "class", "time"])
        for i, kind, label in decisions:
            given = int(labels[i])
            new = "" if label is None else guard_cell(names[label])
            shown = "" if label is None else label
            row = [i, given, guard_cell(names[given]), kind, shown, new, "2026-01-31T12:00:00Z"]
            writer.writerow(row)
    text = change(path.read_bytes().decode("utf-8-sig"))
    path.write_bytes(text.encode("utf-8-sig"))
    return path


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_decisions_become_labels(run, tmp_path, kind):
    write = exported_csv if kind == "csv" else decisions_json
    file = write(tmp_path / f"decisions.{kind}", LABELS, decisions=ALL)
    applied = apply_decisions([file], run=run)
    assert applied.output == run / "corrected"
    want = LABELS.copy()
    want[1], want[9] = 3, 0
    labels = read_label_file(str(applied.output / "labels.csv"), num_samples=10, num_classes=4)
    np.testing.assert_array_equal(labels, want)
    assert read_id_file(applied.output / "exclude.csv", num_samples=10).tolist() == [4]
    assert rows_of(applied.output / "changes.csv") == [
        ["index", "old_label", "new_label", "old_class", "new_class", "decision", "source", "time"],
        ["1", "1", "3", "bee", "dog", "relabel", file.name, "2026-01-31T12:00:00+00:00"],
        ["4", "0", "", "ant", "", "drop", file.name, "2026-01-31T12:00:00+00:00"],
        ["9", "1", "0", "bee", "ant", "relabel", file.name, "2026-01-31T12:00:00+00:00"],
    ]
    assert applied.counts == {"keep": 1, "relabel": 2, "drop": 1, "unsure": 1}
    assert sorted(p.name for p in applied.output.iterdir()) == [
        "changes.csv",
        "decisions.json",
        "exclude.csv",
        "labels.csv",
    ]
    left, exported = read_decisions(applied.output / "decisions.json"), read_decisions(file)
    assert [(d.index, d.given, d.content, d.time) for d in left.decisions] == [
        (d.index, d.given, d.content, d.time) for d in exported.decisions
    ]
    head = ("fingerprint", "num_samples", "class_names", "run")
    assert [getattr(left, name) for name in head] == [getattr(exported, name) for name in head]


def test_the_command_says_how_to_train_on(run, tmp_path, capsys, monkeypatch):
    file = decisions_json(tmp_path / "decisions.json", LABELS, decisions=ALL)
    monkeypatch.chdir(tmp_path)  # where runs/small is
    assert apply.main([str(file)]) == 0
    said = capsys.readouterr().out
    assert "decisions: 1 keep, 2 relabel, 1 drop, 1 unsure" in said
    words = shlex.split(said.split("started as the run was: ")[1])
    assert words[:3] == ["python", "-m", "fastac.train"]
    command = parse_command_line(words[3:])
    assert command.values == {
        "labels": "runs/small/corrected/labels.csv",
        "exclude": "runs/small/corrected/exclude.csv",
        "noise": "none",
        "noise_rate": 0.0,
    }
    assert apply.main([str(file)]) == 0  # a second time, beside the first
    assert (run / "corrected-2" / "labels.csv").is_file()
    assert apply.main([str(file), "--output", str(run / "corrected")]) == 2
    assert "exists; it should be a new folder" in capsys.readouterr().err
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_labels_that_were_no_runs(tmp_path):
    np.save(tmp_path / "labels.npy", LABELS)
    file = decisions_json(tmp_path / "decisions.json", LABELS, decisions=ALL)
    applied = apply_decisions([file], labels=str(tmp_path / "labels.npy"), output=tmp_path / "new")
    assert rows_of(applied.output / "labels.csv")[:3] == [
        ["index", "label", "class"],
        ["0", "0", "ant"],
        ["1", "3", "dog"],
    ]
    assert "to train on them" not in applied.text()
    with pytest.raises(ValueError, match="output was not given"):
        apply_decisions([file], labels=str(tmp_path / "labels.npy"))


def test_labels_come_with_their_class_and_file(run, tmp_path):
    names = ("ant", "=bee", "cat", "dog")
    order = [3, 1, *range(4, 10), 0]  # 2 is missing
    issues = [["index", "label_quality", "path"], *([i, 0.5, f"'=a/{i}, ü.png"] for i in order)]
    with open(run / "issues.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(issues)
    file = decisions_json(tmp_path / "d.json", LABELS, names, decisions=[(3, "relabel", 1)])
    corrected = apply_decisions([file], run=run).output / "labels.csv"
    rows = rows_of(corrected)
    assert rows[0] == ["index", "label", "class", "path"]
    assert rows[1:5] == [
        ["0", "0", "ant", "'=a/0, ü.png"],
        ["1", "1", "'=bee", "'=a/1, ü.png"],
        ["2", "2", "cat", ""],
        ["3", "1", "'=bee", "'=a/3, ü.png"],
    ]
    assert read_label_file(str(corrected), num_samples=10, num_classes=4)[3] == 1
    (run / "issues.csv").write_text("index,path\nx,a.png\n")
    with pytest.raises(ValueError, match=r"issues.csv, line 2 can't be read: ValueError"):
        apply_decisions([file], run=run)
    (run / "issues.csv").write_text("index,label_quality\n0,0.5\n")
    assert rows_of(apply_decisions([file], run=run).output / "labels.csv")[0] == ["index", "label", "class"]


def test_two_peoples_files_and_what_the_run_left_out_before(run, tmp_path):
    np.save(tmp_path / "before.npy", np.array([4, 6, 7]))
    write_config(Config().with_values(exclude=str(tmp_path / "before.npy")), run / "config.toml")
    one = decisions_json(tmp_path / "one.json", LABELS, decisions=[(1, "drop", None), (6, "keep", 2)])
    two = exported_csv(tmp_path / "two.csv", decisions=[(1, "drop", None), (7, "unsure", None)])
    applied = apply_decisions([one, two], run=run)
    assert read_id_file(applied.output / "exclude.csv", num_samples=10).tolist() == [1, 4, 7]
    again = decisions_json(tmp_path / "again.json", LABELS, decisions=[(4, "drop", None), (5, "drop", None)])
    changes = rows_of(apply_decisions([again], run=run).output / "changes.csv")
    assert [row[0] for row in changes[1:]] == ["5"]  # 4 was left out before
    assert [row[6] for row in rows_of(applied.output / "changes.csv")[1:]] == ["one.json"]


def test_unsure_yields_to_a_decision(run, tmp_path):
    one = decisions_json(
        tmp_path / "one.json", LABELS, decisions=[(1, "unsure", None), (2, "drop", None), (5, "unsure", None)]
    )
    two = decisions_json(
        tmp_path / "two.json", LABELS, decisions=[(1, "relabel", 3), (2, "unsure", None), (5, "unsure", None)]
    )
    for files in ([one, two], [two, one]):
        applied = apply_decisions(files, run=run)
        assert applied.counts == {"relabel": 1, "drop": 1, "unsure": 1}
        assert [row[0] for row in rows_of(applied.output / "changes.csv")[1:]] == ["1", "2"]


def test_all_contradictions_are_named(run, tmp_path):
    one = decisions_json(
        tmp_path / "one.json", LABELS, decisions=[(0, "keep", 0), (1, "drop", None), (2, "drop", None)]
    )
    two = decisions_json(
        tmp_path / "two.json", LABELS, decisions=[(0, "drop", None), (1, "drop", None), (2, "relabel", 3)]
    )
    with pytest.raises(ValueError, match="2 ids have decisions that contradict each other") as raised:
        apply_decisions([one, two], run=run)
    assert str(raised.value).splitlines()[1:] == [
        f"  id 0: keep ({one}, decision 1), drop ({two}, decision 1)",
        f"  id 2: drop ({one}, decision 3), relabel to 3 ({two}, decision 3)",
    ]
    assert not (run / "corrected").exists()
    many = np.zeros(30, np.int64)
    np.save(tmp_path / "many.npy", many)
    files = [
        decisions_json(tmp_path / f"{kind}.json", many, decisions=[(i, kind, label) for i in range(12)])
        for kind, label in (("drop", None), ("keep", 0))
    ]
    with pytest.raises(ValueError, match="^12 ids have") as raised:
        apply_decisions(files, labels=str(tmp_path / "many.npy"), output=tmp_path / "new")
    assert len(str(raised.value).splitlines()) == 12
    assert str(raised.value).endswith("and 2 more")


def test_names_come_back_intact_and_no_cell_is_a_formula(tmp_path):
    labels = np.arange(len(NASTY))
    decisions = [(i, "relabel", (i + 1) % len(NASTY)) for i in range(len(NASTY))]
    file = exported_csv(tmp_path / "decisions.csv", labels, NASTY, decisions)
    read = read_decisions(file)
    assert read.class_names == NASTY
    np.save(tmp_path / "labels.npy", labels)
    applied = apply_decisions([file], labels=str(tmp_path / "labels.npy"), output=tmp_path / "new")
    rows = rows_of(applied.output / "changes.csv")[1:]
    assert [unguard_cell(row[3]) for row in rows] == list(NASTY)
    cells = [cell for row in rows for cell in row]
    assert [
        c for c in cells if c.lstrip(" '\u00a0").startswith(("=", "+", "-", "@", "\t", "\r")) and c[0] != "'"
    ] == []


@pytest.mark.parametrize(
    "text", [*NASTY, "'", "''=", "' '+1", "\ufeff=1", "＝1", "a=1", "'a", "--", "\n=1", "0"]
)
def test_guarding_is_undone_exactly(text):
    guarded = guard_cell(text)
    assert unguard_cell(guarded) == text
    assert guarded in (text, "'" + text)
    assert guard_cell(unguard_cell(guarded)) == guarded


def test_what_a_spreadsheet_adds_is_taken(tmp_path):
    """Empty cells to the right, quotes gone, other line ends, an empty line at the end."""

    def saved(text):
        lines = list(csv.reader(text.splitlines()))
        width = max(map(len, lines)) + 2
        return "\r".join(",".join(cells + [""] * (width - len(cells))) for cells in lines) + "\r,,,\r"

    plain = read_decisions(exported_csv(tmp_path / "a.csv"))
    again = read_decisions(exported_csv(tmp_path / "b.csv", change=saved))
    assert again.class_names == plain.class_names
    assert [d.content for d in again.decisions] == [d.content for d in plain.decisions]


def reordered(rows):
    return [row if row[0].startswith("#") else [*row[:0:-1], row[0]] for row in rows]


def with_notes(rows):
    return [row if row[0].startswith("#") else [*row, "note" if row[0] == "index" else "odd"] for row in rows]


def as_decimals(rows):
    return [
        row
        if not row[0].isdigit()
        else [f"{c}.0" if c.isdigit() else c.replace("drop", " Drop") for c in row]
        for row in rows
    ]


@pytest.mark.parametrize("change", [list, reordered, with_notes, as_decimals])
@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-16"), (";", "utf-16-be")]
)
def test_a_table_that_went_through_a_spreadsheet(tmp_path, change, separator, encoding):
    names = ("a, b", "ç; d", '"', "=e")
    plain = exported_csv(tmp_path / "plain.csv", names=names)
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows(
        change(list(csv.reader(io.StringIO(plain.read_text("utf-8-sig")))))
    )
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "saved.csv").write_bytes((mark + text.getvalue()).encode(encoding))
    saved, want = read_decisions(tmp_path / "saved.csv"), read_decisions(plain)
    assert saved.class_names == want.class_names == names
    assert [(d.index, d.given, d.content, d.time) for d in saved.decisions] == [
        (d.index, d.given, d.content, d.time) for d in want.decisions
    ]


def test_text_that_is_none(tmp_path):
    file = exported_csv(tmp_path / "d.csv", names=("ä", *CLASSES[1:]))
    file.write_bytes(file.read_text("utf-8-sig").encode("cp1252"))
    with pytest.raises(
        ValueError, match="d.csv should be text in UTF-8, which spreadsheets save as 'CSV UTF-8'"
    ):
        read_decisions(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"drop"', '"forget"', "line 11: decision is 'forget'; it should be keep, relabel, drop or unsure"),
        ("\n1,1,", "\n10,1,", "line 10: index is 10; it should be a whole number in [0, 10)"),
        ("\n1,1,", "\n-1,1,", "line 10: index is -1"),
        ("\n1,1,", "\n1.5,1,", "line 10: index is '1.5'; it should be a whole number"),
        ("\n1,1,", "\n1.000,1,", "line 10: index is '1.000'"),  # a thousand, in German
        ("\n1,1,", "\n,1,", "line 10: index is ''"),
        (
            '"relabel",3,"dog"',
            '"relabel",4,"dog"',
            "line 10: label is 4; it should be a whole number in [0, 4)",
        ),
        ('"relabel",3,"dog"', '"relabel",dog,"dog"', "line 10: label is 'dog'; it should be a whole number"),
        ('"relabel",3,"dog"', '"relabel",,""', "line 10: label is None"),
        (
            '"relabel",3,"dog"',
            '"relabel",1,"bee"',
            "line 10: label is 1; with relabel it should be another label",
        ),
        (
            '"relabel",3,"dog"',
            '"keep",3,"dog"',
            "line 10: label is 3; with keep it should be the given label (1)",
        ),
        (
            '"relabel",3,"dog"',
            '"relabel",2,"dog"',
            "line 10: class is 'dog' and the label beside it is 2, 'cat'",
        ),
        ('"relabel",3,"dog"', '"drop",3,"dog"', "line 10: label is 3; with drop it should be empty"),
        ('"relabel",3,"dog"', '"relabel",3', "line 10 has 6 cells; it should have 7"),
        ('"2026-01-31T12:00:00Z"', '"yesterday"', "line 9: time is 'yesterday'"),
        ("#rows", "#lines", "line 7: '#lines' should not be there"),
        ('"#run","small"\r\n', "", "does not say its run"),
        ('"#rows",5', '"#rows",6', "has decisions about 5 samples; its head says 6. Rows are missing"),
        ('"#rows",5', '"#rows",five', "line 7: rows is 'five'"),
        ('"index"', '"id"', "line 8 is 'id,given_label"),
        (
            '"class","time"',
            '"time","time"',
            "it should have index,given_label,given_class,decision,label,class,time",
        ),
        ('"fastac decisions",1', '"fastac decisions",2', "line 1: it should be #format,fastac decisions,1"),
        ('#class_names",4', '#class_names",5', "line 4 has other than 5 class names"),
        ('"keep"', '"keep', "should be CSV"),
        ('"#format",', '"#format"|', 'begins with \'"#format"|'),
    ],
)
def test_an_edited_table_is_refused_with_its_line(run, tmp_path, old, new, message):
    def edit(text):
        assert old in text
        return text.replace(old, new, 1)

    file = exported_csv(tmp_path / "decisions.csv", change=edit)
    before = sorted(run.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        apply_decisions([file], run=run)
    assert str(file) in str(raised.value)
    assert sorted(run.rglob("*")) == before


def test_rows_missing_or_twice(run, tmp_path):
    def lines(change):
        return lambda text: "".join(change(text.splitlines(keepends=True)))

    shorter = exported_csv(tmp_path / "shorter.csv", change=lines(lambda rows: rows[:-1]))
    with pytest.raises(ValueError, match="has decisions about 4 samples; its head says 5"):
        apply_decisions([shorter], run=run)
    replaced = exported_csv(tmp_path / "replaced.csv", change=lines(lambda rows: [*rows[:-1], rows[-2]]))
    with pytest.raises(ValueError, match="about 4 samples; its head says 5"):
        apply_decisions([replaced], run=run)
    other = lines(lambda rows: [*rows, rows[-1].replace('relabel",0,"ant', 'relabel",2,"cat')])
    with pytest.raises(
        ValueError, match="line 14: id 9 is to relabel to 2, but to relabel to 0 in .*line 13"
    ):
        apply_decisions([exported_csv(tmp_path / "other.csv", change=other)], run=run)
    same = exported_csv(tmp_path / "same.csv", change=lines(lambda rows: [*rows, rows[-1]]))
    assert apply_decisions([same], run=run).changed == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": True}, "decision 1: index is True"),
        ({"index": 1.0}, "decision 1: index is 1.0"),
        ({"index": "1"}, "decision 1: index is '1'"),
        ({"given_label": None}, "decision 1: given_label is None"),
        ({"given_label": 2}, "decision 1: given_label is 2; in .*labels.csv it is 1 for id 1"),
        ({"decision": ["drop"]}, "decision 1: decision is \\['drop'\\]"),
        ({"label": 3.0}, "decision 1: label is 3.0"),
        ({"time": 5}, "decision 1: time is 5"),
    ],
)
def test_wrong_types_in_json(run, tmp_path, change, message):
    file = decisions_json(tmp_path / "d.json", LABELS, decisions=[(1, "relabel", 3)])
    content = json.loads(file.read_text())
    content["decisions"][0].update(change)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        apply_decisions([file], run=run)
    assert not (run / "corrected").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no file of decisions"),
        ('{"format": "other"}', "is no file of decisions"),
        ('{"format": "fastac decisions", "version": 2}', "has version 2; it should be 1"),
        ('{"format": "fastac decisions", "version": true}', "has version True"),
        ('{"format": "fastac decisions", "version": 1, "decisions": {}}', "has no list `decisions`"),
        ('{"format": "fastac decisions", "version": 1, "decisions": [{}]}', "decision 1 should have index"),
        ('{"format": "fastac decisions", "version": 1, "decisions": []}', "does not say its fingerprint"),
        ('{"format": "x", "format": "fastac decisions"}', "a key twice in one object"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_json_that_is_no_export(tmp_path, text, message):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_decisions(tmp_path / "d.json")


def test_decisions_for_other_data(run, tmp_path):
    other = LABELS.copy()
    other[3] = 0
    for labels in (other, np.append(LABELS, 0)):
        file = decisions_json(tmp_path / "d.json", labels, decisions=ALL[:1])
        with pytest.raises(ValueError, match="was made for other data, of the run 'small': its fingerprint"):
            apply_decisions([file], run=run)
    file = decisions_json(tmp_path / "d.json", LABELS, (*CLASSES, "eel"), decisions=ALL)
    with pytest.raises(ValueError, match="was made for 5 classes; .* has 4"):
        apply_decisions([file], run=run)
    assert not (run / "corrected").exists()


def test_a_run_that_is_not_there(run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = decisions_json(tmp_path / "d.json", LABELS, decisions=ALL)
    with pytest.raises(
        FileNotFoundError, match="is of the run 'small', which is not in .*: give its folder, --run RUN"
    ):
        apply_decisions([file])
    beside = decisions_json(run / "d.json", LABELS, decisions=ALL)
    assert apply_decisions([beside]).output == run / "corrected"
    file = decisions_json(tmp_path / "d.json", LABELS, decisions=ALL, run="../runs/small")
    with pytest.raises(FileNotFoundError, match="--run RUN"):  # a name is not taken for a path
        apply_decisions([file])
    with pytest.raises(FileNotFoundError, match="is not the folder of a run: it has no labels.csv"):
        apply_decisions([file], run=tmp_path)
    (run / "result.json").unlink()
    with pytest.raises(FileNotFoundError, match="the run has not come to its end"):
        apply_decisions([beside], run=run)


def test_a_disk_that_refuses_leaves_nothing(run, tmp_path, monkeypatch):
    def full(path, columns, rows):
        path.write_text("half")
        if path.name == "changes.csv":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(apply, "_write_csv", full)
    file = decisions_json(tmp_path / "d.json", LABELS, decisions=ALL)
    before = sorted(run.rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        apply_decisions([file], run=run)
    assert sorted(run.rglob("*")) == before
