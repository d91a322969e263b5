"""What is said of the runs' figures: their mean, what was left out, which revisions made them."""

import json

import numpy as np
import pytest

from fastac.paper.finished import finished_runs
from fastac.paper.grid import GRIDS
from fastac.paper.runs import UNCOMMITTED, Run, Settings
from fastac.paper.summary import summarize
from fastac.paper.tables import collect


def test_mean_and_interval():
    assert summarize([]) is None
    one = summarize([0.9])
    assert (one.mean, one.half, str(one)) == (90.0, None, "90.00 (1 run)")
    five = summarize([0.90, 0.91, 0.92, 0.93, 0.94])
    assert five.mean == pytest.approx(92.0)
    assert five.half == pytest.approx(2.776445 * 1.5811388 / 5**0.5)  # t of 4 degrees of freedom
    assert str(five) == "92.00 ± 1.96"


def write_environment(run, *revisions):
    """A stamp for the start and for each time the run was gone on with: a revision, with + behind it where files
    differed; None where there is no checkout."""
    for revision in revisions:
        git = revision and {"revision": revision.rstrip("+") * 10, "dirty": revision.endswith("+")}
        stamp = {"git": git, "fastac": "0.9", "device": "x", "started": "now", "packages": {"torch": "2"}}
        run.folder.write_environment(stamp)


@pytest.mark.parametrize(
    ("stamps", "remark"),
    [
        ([["aaaa"], ["aaaa"], ["aaaa", "aaaa"]], None),
        ([[None], [None], [None]], None),
        ([["aaaa"], ["aaaa"], ["aaaa", "bbbb"]], "made by 2 revisions: aaaaaaa, bbbbbbb"),  # gone on with
        ([["aaaa"], ["cccc"], ["aaaa"]], "made by 2 revisions: aaaaaaa, ccccccc"),  # a threshold run's
        ([["aaaa"], [None], ["bbbb+"]], f"made by 3 revisions: aaaaaaa, bbbbbbb{UNCOMMITTED}, version 0.9"),
        ([["aaaa+"], ["aaaa+"], ["aaaa+"]], f"made by revision aaaaaaa{UNCOMMITTED}"),
    ],
)
def test_the_revisions_are_told(tmp_path, stamps, remark):
    settings, grid = Settings(tmp_path), GRIDS["digits"].select(["demo"], ["aum"])
    chain = grid.cells["demo", "aum"].runs(0, settings)
    for run, revisions in zip(chain, stamps, strict=True):
        run.folder.path.mkdir()
        run.folder.result.write_text(json.dumps({"test_accuracy": 0.5}))
        write_environment(run, *revisions)
    results = finished_runs(chain)
    assert [len(result["resumed"]) for result in results.values()] == [len(one) - 1 for one in stamps]
    report = collect(grid, settings, 1, results, {})
    lines = [line for line in report.text().splitlines() if line.startswith("made by")]
    assert lines == ([] if remark is None else [remark])
    record = report.record()
    (run,) = record["cells"][0]["runs"]
    assert [stamp["started"] for stamp in run["resumed"]] == ["now"] * (len(stamps[2]) - 1)
    assert (remark in record["remarks"]) == (remark is not None)


def test_what_was_removed(tmp_path):
    """Six labels, of which 1 and 4 are wrong; 4 and 5 are left out."""
    (tmp_path / "ids.csv").write_text("index\n4\n5\n")
    run = Run("run", "digits", Settings(tmp_path), {"exclude": str(tmp_path / "ids.csv")})
    run.folder.path.mkdir()
    run.folder.result.write_text(json.dumps({"test_accuracy": 0.5}))
    write_environment(run, None)
    given, truth = [0, 1, 2, 3, 4, 5], [0, 0, 2, 3, 0, 5]
    run.folder.write_labels(np.array(given), np.array(truth))
    removed = run.result()["removed"]
    assert removed == {"labels": 6, "removed": 2, "wrong": 2, "wrong_removed": 1}
    grid = GRIDS["digits"].select(["demo"], ["aum"])
    (_, _, last) = grid.cells["demo", "aum"].runs(0, Settings(tmp_path))
    report = collect(grid, Settings(tmp_path), 1, {last.name: run.result()}, {})
    assert (
        "20 % uniform, AUM: 33.33% of the labels left out, 50.0% of these wrong; 50.0% of the wrong ones left out"
        in report.text().splitlines()
    )
    run.folder.write_labels(np.array(given), None)
    assert run.result()["removed"] == {"labels": 6, "removed": 2}
