"""Decisions of earlier rounds: which of them hold for a later run's labels, and where they are found."""

import json

import numpy as np
import pytest
from review_pages import CLASSES, decisions_json

from fastac.config import Config
from fastac.decisions import read_decisions, write_decisions
from fastac.earlier import earlier_decisions, find_earlier

OLD = np.array([0, 1, 2, 3, 0, 1])
DECIDED = [
    (0, "keep", 0),
    (1, "relabel", 3),
    (2, "relabel", 1),
    (3, "relabel", 0),
    (4, "unsure", None),
    (5, "drop", None),
]


def content(decisions):
    return [(d.index, d.given, d.kind, d.label) for d in decisions]


def test_what_holds_for_other_labels(tmp_path):
    file = decisions_json(tmp_path / "d.json", OLD, decisions=DECIDED)
    new = np.array([1, 3, 2, 2, 0, 1])  # 0 and 3 have labels that nobody chose
    holds, changed = earlier_decisions([file], new, CLASSES)
    assert content(holds) == [
        (1, 3, "keep", 3),  # was relabelled to what it is now
        (2, 2, "relabel", 1),  # not applied
        (4, 0, "unsure", None),
        (5, 1, "drop", None),
    ]
    assert changed == 2
    assert earlier_decisions([], new, CLASSES) == ([], 0)
    holds, changed = earlier_decisions([file], new[:2], CLASSES)  # a run on the first samples
    assert content(holds) == [(1, 3, "keep", 3)]
    assert changed == 1


def test_of_two_decisions_the_latest_counts(tmp_path):
    files = []
    for name, time, kind, label in (
        ("a", "2026-01-31T12:00:00Z", "drop", None),
        ("b", "2026-01-31T12:30:00+01:00", "keep", 0),  # half an hour before
        ("c", "2026-01-30T12:00:00", "unsure", None),
    ):
        file = decisions_json(tmp_path / f"{name}.json", OLD, decisions=[(0, kind, label)])
        written = json.loads(file.read_text())
        written["decisions"][0]["time"] = time
        file.write_text(json.dumps(written))
        files.append(file)
    for order in (files, files[::-1]):
        assert content(earlier_decisions(order, OLD, CLASSES)[0]) == [(0, 0, "drop", None)]


def test_files_of_other_data(tmp_path):
    file = decisions_json(tmp_path / "d.json", OLD, decisions=DECIDED[:1])
    with pytest.raises(ValueError, match="d.json has other class names than the run"):
        earlier_decisions([file], OLD, (*CLASSES[:3], "eel"))
    with pytest.raises(ValueError, match="was made for 6 samples; the run has 7"):
        earlier_decisions([file], np.append(OLD, 0), CLASSES)
    with pytest.raises(ValueError, match="d.json: none of the 1 decisions is about a label of the run"):
        earlier_decisions([file], (OLD + 1) % 4, CLASSES)


def test_where_apply_leaves_them(tmp_path):
    for labels in (None, str(tmp_path / "labels.csv"), str(tmp_path / "labels.npy")):
        assert find_earlier(Config().with_values(labels=labels)) == []
    (tmp_path / "decisions.json").touch()
    assert find_earlier(Config().with_values(labels=str(tmp_path / "labels.npy"))) == []
    beside = find_earlier(Config().with_values(labels=str(tmp_path / "labels.csv")))
    assert beside == [tmp_path / "decisions.json"]


@pytest.mark.parametrize("decided", [DECIDED, []])
def test_written_decisions_are_read_again(tmp_path, decided):
    names = ("[]\n}", "[]", "ü", '"')
    file = read_decisions(decisions_json(tmp_path / "d.json", OLD, names, decisions=decided))
    write_decisions(tmp_path / "again.json", file, file.decisions)
    again = read_decisions(tmp_path / "again.json")
    assert again.class_names == names
    assert content(again.decisions) == content(file.decisions)
