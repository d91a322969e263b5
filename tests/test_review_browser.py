"""The review page in a real browser: what a person sees, presses, reloads and exports."""

import csv
import io
import json
import re
import time

import numpy as np
import pytest
import training_runs as runs
from review_pages import NASTY, decisions_json, missing_browser, ranking, small_page, start_browser

from fastac import apply
from fastac.decisions import read_decisions
from fastac.report import write_review_page
from fastac.review import review
from fastac.train import train

reason = missing_browser()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

RED = np.full((8, 8, 3), (200, 30, 30), np.uint8)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    driver = start_browser(tmp_path_factory.mktemp("profile"), downloads)
    yield driver
    driver.quit()


def wait_for(condition, what):
    """Poll: the page does all but loading and downloading at once."""
    end = time.monotonic() + 20
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)
    return answer


def open_page(browser, path):
    browser.get(path.as_uri())
    wait_for(lambda: browser.execute_script("return document.documentElement.dataset.ready"), "the page")


def press(browser, *pressed):
    (gallery,) = find(browser, "#gallery")
    for key in pressed:
        gallery.send_keys(key)


def keys():
    from selenium.webdriver.common.keys import Keys

    return Keys


def find(browser, selector):
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)


def text(browser, element_id):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", element_id)


def choose(browser, element_id, value):
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('change'))",
        element_id,
        value,
    )


def shown_ids(browser):
    """The ids on the cards, in reading order."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.card')].sort((a, b) => a.dataset.spot - b.dataset.spot)"
        ".map((card) => Number(card.querySelector('.card-top').firstChild.textContent.slice(1)))"
    )


def selected(browser):
    (card,) = find(browser, '.card[aria-selected="true"]')
    return card


def exported(browser, downloads, kind):
    """Press an export button and return the file."""
    for old in downloads.iterdir():
        old.unlink()
    find(browser, f"#export-{kind}")[0].click()

    def whole():
        files = list(downloads.glob(f"*.{kind}"))
        return files[0] if files and files[0].stat().st_size else None

    return wait_for(whole, "the download")


def stored_decisions(browser, run=""):
    """What the page would export, by id."""
    state = browser.execute_script(
        "return Object.keys(localStorage).filter((k) => k.startsWith('fastac-review:') && k.endsWith(arguments[0]))"
        ".map((k) => localStorage[k])",
        run,
    )
    assert len(state) == 1
    return {i: (d["decision"], d["label"]) for i, d in json.loads(state[0])["decisions"]}


def import_file(browser, path):
    browser.execute_script("document.getElementById('import-file').hidden = false")
    find(browser, "#import-file")[0].send_keys(str(path))


def press_code(browser, key, code, shift=False):
    """A key of another layout, or with Caps Lock."""
    browser.execute_script(
        "document.getElementById('gallery').dispatchEvent(new KeyboardEvent('keydown',"
        "{key: arguments[0], code: arguments[1], shiftKey: arguments[2], bubbles: true}))",
        key,
        code,
        shift,
    )


@pytest.fixture
def fresh(browser):
    """No decisions from an earlier test, and no complaint of the browser's."""
    browser.get("about:blank")
    browser.execute_cdp_cmd(
        "Storage.clearDataForOrigin", {"origin": "file://", "storageTypes": "local_storage"}
    )
    browser.get_log("browser")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_it_shows_images_labels_offsets_and_history(fresh, tmp_path):
    alpha = np.zeros((12, 4), np.float32)
    alpha[:, 1] = np.linspace(2, 1, 12)
    history = {"index": np.arange(6), "epoch": np.arange(1, 6), "score": np.linspace(-1, 1, 30).reshape(5, 6)}
    page = small_page(tmp_path / "page.html", images=[RED] * 12, alpha=alpha, history=history)
    open_page(fresh, page)
    pixels = fresh.execute_script(
        "return [...document.querySelectorAll('.card img')].map((i) => [i.complete, i.naturalWidth])"
    )
    assert pixels == [[True, 8]] * 12
    assert shown_ids(fresh) == list(range(12))
    assert selected(fresh).accessible_name == "Sample 0, given ant, suggested bee"
    assert text(fresh, "progress-count") == "0 of 12 decided"
    assert len(find(fresh, ".card .curve")) == 6  # the others have no history
    assert len(find(fresh, ".card .fill-given")) == 12
    detail = text(fresh, "detail")
    assert "Sample 0" in detail
    assert "class 1" in detail
    assert "Score by epoch" in detail
    assert (
        fresh.execute_script(
            "return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
        )
        == 0
    )


def test_sorting_and_filters(fresh, tmp_path):
    kinds = ["swapped", "outside"] * 6
    open_page(fresh, small_page(tmp_path / "page.html", columns={"kind": kinds}))
    choose(fresh, "sort", "given")
    assert shown_ids(fresh) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    choose(fresh, "filter-given", "2")
    assert shown_ids(fresh) == [2, 6, 10]
    choose(fresh, "filter-kind", "outside")
    assert shown_ids(fresh) == []
    assert find(fresh, "#nothing")[0].is_displayed()
    find(fresh, "#filter-clear")[0].click()
    choose(fresh, "sort", "suspicion")
    assert shown_ids(fresh) == list(range(12))
    (cell,) = find(fresh, '#heatmap button[aria-label^="dog given, ant suggested"]')
    assert cell.accessible_name == "dog given, ant suggested: 2 samples"  # 3 and 7 are flagged, 11 is not
    cell.click()
    assert shown_ids(fresh) == [3, 7, 11]
    assert cell.get_attribute("aria-pressed") == "true"
    cell.click()
    assert len(shown_ids(fresh)) == 12
    assert len(find(fresh, "#heatmap td button")) == 4
    assert len(find(fresh, "#pairs li")) == 4


def test_finding_and_the_flagged(fresh, tmp_path):
    paths = [f"Set/{'ab'[i % 2]}/im{i:02}.png" for i in range(12)]
    open_page(fresh, small_page(tmp_path / "page.html", columns={"path": paths}))
    press(fresh, "/")
    box = fresh.switch_to.active_element
    assert box.accessible_name == "Find by id or path"
    for typed, want in (
        ("SET/B", [1, 3, 5, 7, 9, 11]),
        ("5", [5]),
        ("#3", [3]),
        ("im1", [10, 11]),
        ("1", [1, 10, 11]),  # an id, and parts of paths
        ("nowhere", []),
    ):
        box.clear()
        box.send_keys(typed)
        assert shown_ids(fresh) == want
    assert [chip.text for chip in find(fresh, "#chips button .name")] == ["found: nowhere"]
    find(fresh, "#filter-clear")[0].click()
    assert box.get_property("value") == ""
    choose(fresh, "filter-flagged", "1")
    assert shown_ids(fresh) == list(range(8))
    choose(fresh, "filter-flagged", "0")
    assert shown_ids(fresh) == [8, 9, 10, 11]
    box.send_keys("b/", keys().ENTER, "k")  # back in the gallery
    assert shown_ids(fresh) == [9, 11]
    assert stored_decisions(fresh) == {9: ("keep", 1)}


def test_all_suggestions_shown_are_accepted_at_once(fresh, tmp_path):
    given = np.arange(12) % 4
    suggested = [None if i == 1 else given[i] if i == 2 else (given[i] + 1) % 4 for i in range(12)]
    page = tmp_path / "page.html"
    write_review_page(page, ranking(given, suggested, 8), class_names=list("abcd"), labels=given)
    open_page(fresh, page)
    press(fresh, "d")
    choose(fresh, "filter-flagged", "1")
    press(fresh, "a")
    (dialog,) = find(fresh, "#accept-dialog[open]")
    assert dialog.accessible_name == "Accept all suggestions shown?"
    assert "Of 8 samples shown 5 are undecided and have a suggestion." in dialog.text
    assert fresh.switch_to.active_element.text == "Cancel"
    fresh.switch_to.active_element.send_keys(keys().ENTER)
    wait_for(lambda: not find(fresh, "#accept-dialog[open]"), "the dialog to close")
    assert stored_decisions(fresh) == {0: ("drop", None)}
    find(fresh, "#accept")[0].click()
    (accept,) = find(fresh, "#accept-all")
    assert accept.text == "Relabel 5 samples"
    accept.click()
    wait_for(lambda: "Relabelled 5 samples to the suggested class" in text(fresh, "notices"), "the notice")
    want = {0: ("drop", None)} | {i: ("relabel", (i + 1) % 4) for i in range(3, 8)}
    assert stored_decisions(fresh) == want
    press(fresh, "a")
    assert "No sample shown is undecided and has a suggestion." in find(fresh, "#accept-text")[0].text
    assert not find(fresh, "#accept-all")[0].is_enabled()
    fresh.switch_to.active_element.send_keys(keys().ESCAPE)
    press(fresh, "z")
    assert stored_decisions(fresh) == {0: ("drop", None)}
    assert text(fresh, "live") == "Undone: 5 decisions. 1 of 12 decided"
    press(fresh, "Z")
    assert stored_decisions(fresh) == want
    find(fresh, "#filter-clear")[0].click()
    press(fresh, "a")
    assert (
        "Of 12 samples shown, all on this page as no filter is set, 4 are"
        in find(fresh, "#accept-text")[0].text
    )


def test_many_classes_have_a_list_of_pairs_in_place_of_the_heat_map(fresh, tmp_path):
    names = [f"class number {k}" for k in range(1000)]
    open_page(fresh, small_page(tmp_path / "page.html", 90, names=names))
    assert not find(fresh, "#heatmap")[0].is_displayed()
    assert len(find(fresh, "#pairs li")) == 12
    find(fresh, "#pairs-more")[0].click()
    assert len(find(fresh, "#pairs li")) == 60
    press(fresh, "c")
    assert len(find(fresh, "#chooser-list li")) == 100
    assert "900 more" in text(fresh, "chooser-note")
    fresh.switch_to.active_element.send_keys("number 77", keys().ARROW_DOWN, keys().ENTER)
    assert stored_decisions(fresh) == {0: ("relabel", 770)}  # after "class number 77" itself


def test_decisions_by_keys_undo_and_reload(fresh, tmp_path):
    page = small_page(tmp_path / "page.html", run="one")
    open_page(fresh, page)
    press(fresh, "k", "r", "d", "u", "3")  # each goes on to the next sample; 3 is the class dog
    want = {0: ("keep", 0), 1: ("relabel", 2), 2: ("drop", None), 3: ("unsure", None), 4: ("relabel", 3)}
    assert stored_decisions(fresh) == want
    assert text(fresh, "progress-count") == "5 of 12 decided"
    assert text(fresh, "live").startswith(
        "Sample 4, given ant, suggested bee, relabelled to dog. 5 of 12 decided."
    )
    assert "Next: Sample 5" in text(fresh, "live")
    press(fresh, keys().CONTROL + "z" + keys().NULL, "z")
    del want[4], want[3]
    assert stored_decisions(fresh) == want
    assert selected(fresh).accessible_name == "Sample 3, given dog, suggested ant"
    press(fresh, "Z")
    want[3] = ("unsure", None)
    fresh.refresh()
    wait_for(lambda: fresh.execute_script("return document.documentElement.dataset.ready"), "the page")
    assert stored_decisions(fresh) == want
    assert text(fresh, "progress-count") == "4 of 12 decided"
    assert [b.text for b in find(fresh, ".card .badge")] == ["kept", "→ cat", "dropped", "unsure"]
    press(fresh, "z", keys().END, keys().HOME, "x")  # undo outlives the reload; sample 0 is undecided again
    del want[3], want[0]
    assert stored_decisions(fresh) == want
    open_page(fresh, small_page(tmp_path / "other.html", run="two"))
    assert text(fresh, "progress-count") == "0 of 12 decided"


def test_deciding_under_a_filter_of_undecided_samples(fresh, tmp_path):
    open_page(fresh, small_page(tmp_path / "page.html"))
    choose(fresh, "filter-status", "open")
    press(fresh, "k", "d")
    assert shown_ids(fresh) == list(range(2, 12))
    assert selected(fresh).accessible_name.startswith("Sample 2,")
    press(fresh, "z")
    assert selected(fresh).accessible_name.startswith("Sample 1,")


def test_buttons_decide_too_and_say_what_is_chosen(fresh, tmp_path):
    open_page(fresh, small_page(tmp_path / "page.html"))
    fresh.execute_script("document.getElementById('option-advance').click()")
    find(fresh, "#choose-relabel")[0].click()
    assert stored_decisions(fresh) == {0: ("relabel", 1)}
    assert find(fresh, "#choose-relabel")[0].get_attribute("aria-pressed") == "true"
    assert fresh.switch_to.active_element.get_attribute("id") == "choose-relabel"
    find(fresh, "#choose-other")[0].click()
    find(fresh, "#chooser-list li")[2].click()
    assert stored_decisions(fresh) == {0: ("relabel", 2)}
    fresh.execute_script("document.getElementById('option-advance').click()")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_markup_and_formulas_in_names_texts_and_paths_do_no_harm(fresh, tmp_path, downloads, kind):
    n = len(NASTY)
    page = small_page(
        tmp_path / "page.html",
        n,
        names=NASTY,
        texts=list(NASTY),
        title=NASTY[1],
        subtitle=NASTY[0],
        run=NASTY[0],
        columns={"kind": list(NASTY), "path": list(NASTY)},
    )
    open_page(fresh, page)
    assert fresh.title == NASTY[1]
    press(fresh, *"r" * (n - 1), "d")
    assert fresh.execute_script("return window.hacked") is None
    assert find(fresh, "img, svg[onload]") == []
    assert len(find(fresh, "script")) == 2
    press(fresh, keys().HOME)
    assert fresh.execute_script("return document.querySelector('#detail .excerpt').textContent") == NASTY[0]
    widest = fresh.execute_script("return document.documentElement.scrollWidth")
    assert widest <= 1360  # 10,000 characters don't push the page apart

    file = exported(fresh, downloads, kind)
    read = read_decisions(file)
    assert read.class_names == NASTY
    assert read.run == NASTY[0]
    assert {d.index: d.content for d in read.decisions} == stored_decisions(fresh)
    if kind == "csv":
        with open(file, newline="", encoding="utf-8-sig") as lines:
            cells = [cell for row in csv.reader(lines) for cell in row]
        assert [cell for cell in cells if cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))] == []

    press(fresh, *"z" * n)
    assert stored_decisions(fresh) == {}
    fresh.execute_script("document.getElementById('import-file').hidden = false")
    find(fresh, "#import-file")[0].send_keys(str(file))
    wait_for(lambda: "Imported" in text(fresh, "notices"), "the import")
    assert {d.index: d.content for d in read.decisions} == stored_decisions(fresh)
    press(fresh, "z")  # one step
    assert stored_decisions(fresh) == {}


def test_the_policy_stops_what_the_page_did_not_bring(browser, tmp_path):
    browser.get("about:blank")
    open_page(browser, small_page(tmp_path / "page.html"))
    browser.execute_script(
        "window.stopped = [];"
        "document.addEventListener('securitypolicyviolation', (e) => stopped.push(e.effectiveDirective));"
        "fetch('http://127.0.0.1:9/x').catch(() => 0);"
        "const image = new Image(); image.src = 'http://127.0.0.1:9/y'; document.body.append(image);"
        "try { document.body.innerHTML = '<b>'; } catch (e) { stopped.push(e.name); }"
        "const handler = document.createElement('div'); document.body.append(handler);"
        "try { handler.setAttribute('onclick', 'window.hacked = 1'); handler.click(); }"
        "catch (e) { stopped.push(e.name); }"
    )
    wait_for(lambda: browser.execute_script("return stopped.length >= 3"), "the violations")
    stopped = browser.execute_script("return stopped")
    assert {"connect-src", "img-src", "TypeError"} <= set(stopped)
    assert browser.execute_script("return window.hacked") is None


def test_import_refuses_decisions_for_other_data(fresh, tmp_path, downloads):
    open_page(fresh, small_page(tmp_path / "page.html"))
    press(fresh, "k", "d")
    good = exported(fresh, downloads, "csv").read_text(encoding="utf-8-sig")
    press(fresh, "z", "z")
    fresh.execute_script("document.getElementById('import-file').hidden = false")
    lines = good.splitlines(keepends=True)
    wrong = {
        "data": (good.replace('#fingerprint","', '#fingerprint","0'), "other data"),
        "rows": ("".join(lines[:-1]), "1 decisions; it should have 2"),
        "words": (
            good.replace('"drop"', '"forget"'),
            'line 10: decision is "forget"; it should be keep, relabel, drop or unsure',
        ),
        "number": (
            good.replace("\n1,1,", "\n1.000,1,"),
            'line 10: index is "1.000"; it should be a whole number',
        ),
        "label": (
            good.replace('"keep",0', '"keep",2'),
            "line 9: label is 2; it should be the given label (0) with keep",
        ),
        "class": (
            good.replace('"keep",0,"ant"', '"keep",0,"cat"'),
            'line 9: class is "cat" and the label beside it',
        ),
        "time": (
            re.sub('"2[^"]*Z"\n$', '"11/30/2026"\n', good),
            'time is "11/30/2026"; it should be like',
        ),
        "header": (good.replace('"index"', '"id"'), "line 8 is id,given_label"),
        "cells": (good.replace(',"drop"', ""), "line 10 has 6 cells; it should have 7"),
        "cell": ('"#format,""fastac decisions"",1"', "it should be #format and more cells, between commas"),
        "twice": (good + lines[-1].replace('"drop"', '"unsure"'), "another decision for the id 1"),
        "quote": (good + '"', "has no end"),
    }
    for name, (content, message) in wrong.items():
        (tmp_path / f"{name}.csv").write_text(content, encoding="utf-8", newline="")
        find(fresh, "#import-file")[0].send_keys(str(tmp_path / f"{name}.csv"))
        wait_for(lambda message=message: message in text(fresh, "notices"), message)
        assert stored_decisions(fresh) == {}
    (tmp_path / "latin.csv").write_bytes(good.replace('"drop"', '"é"').encode("latin-1"))
    import_file(fresh, tmp_path / "latin.csv")
    wait_for(
        lambda: "latin.csv was not imported: it should be text in UTF-8" in text(fresh, "notices"),
        "the notice",
    )


def test_import_takes_a_table_that_went_through_a_spreadsheet(fresh, tmp_path, downloads):
    open_page(fresh, small_page(tmp_path / "page.html", names=("a, b", "ç; d", '"', "=e")))
    press(fresh, "k", "d", "u", "r")
    rows = list(csv.reader(exported(fresh, downloads, "csv").read_text("utf-8-sig").splitlines()))
    width = max(map(len, rows)) + 1

    def saved(row):
        if row[0].startswith("#"):
            return row + [""] * (width - len(row))
        cells = [f"{cell}.0" if cell.isdigit() else cell.replace("keep", "Keep ") for cell in row]
        return [*cells[::-1], "note" if row[0] == "index" else "odd"]

    want = stored_decisions(fresh)
    press(fresh, *"zzzz")
    for encoding, separator in (("utf-8", ";"), ("utf-16", "\t")):
        lines = io.StringIO(newline="")
        csv.writer(lines, delimiter=separator).writerows(map(saved, rows))
        (tmp_path / f"{encoding}.csv").write_text(lines.getvalue(), encoding=encoding, newline="")
        import_file(fresh, tmp_path / f"{encoding}.csv")
        wait_for(
            lambda name=encoding: f"Imported 4 decisions from {name}" in text(fresh, "notices"), "the import"
        )
        assert stored_decisions(fresh) == want
        press(fresh, "z")


def test_an_import_that_differs_asks_whose_decisions_stay(fresh, tmp_path):
    open_page(fresh, small_page(tmp_path / "page.html"))
    press(fresh, "k", "k", "d")
    mine = {0: ("keep", 0), 1: ("keep", 1), 2: ("drop", None)}
    theirs = {0: ("drop", None), 1: ("relabel", 3), 2: ("drop", None), 5: ("drop", None)}
    rows = [(i, *decision) for i, decision in theirs.items()]
    file = decisions_json(tmp_path / "theirs.json", np.arange(12) % 4, decisions=rows)

    def answer(*pressed):
        import_file(fresh, file)
        (dialog,) = wait_for(lambda: find(fresh, "#import-dialog[open]"), "the question")
        assert dialog.accessible_name == "Decisions that differ from yours"
        said = dialog.get_property("innerText")
        assert "2 of the 4 decisions in theirs.json differ from yours." in said
        assert "Sample 1: yours kept, theirs relabelled to dog" in said
        assert stored_decisions(fresh) == mine
        active = fresh.switch_to.active_element
        assert active.accessible_name == "Keep mine"
        before = len(find(fresh, ".notice"))
        active.send_keys(*pressed)
        said = wait_for(lambda: [e.text for e in find(fresh, ".notice span")][before:], "the notice")
        assert find(fresh, "#import-dialog[open]") == []
        return said[0]

    assert answer(keys().ESCAPE) == "theirs.json was not imported: you cancelled it."
    assert stored_decisions(fresh) == mine
    said = answer(keys().ENTER)
    assert "Imported 1 decision from theirs.json. The same as yours already: 1." in said
    assert "Different from yours: 2, yours kept." in said
    assert stored_decisions(fresh) == {**mine, 5: ("drop", None)}
    press(fresh, "z")
    assert stored_decisions(fresh) == mine
    assert "Different from yours: 2, theirs taken." in answer(
        keys().SHIFT + keys().TAB + keys().NULL, keys().ENTER
    )
    assert stored_decisions(fresh) == theirs
    press(fresh, "z")
    assert stored_decisions(fresh) == mine  # all of it in one step


@pytest.mark.parametrize(
    ("names", "pressed", "relabelled", "digits"),
    [
        (("0", "1", "10", "11", "2"), ("c", "2"), "2", None),  # a folder's order
        (("1", "2", "3", "4", "5"), ("2",), "2", "1 2 3 4 5"),
        (("1 star", "2 stars", "3 stars"), ("2",), None, None),
        (("ant", "bee", "class 2"), ("2",), "class 2", "0 1 2"),
    ],
)
def test_digits_mean_the_class_of_that_name(fresh, tmp_path, names, pressed, relabelled, digits):
    open_page(fresh, small_page(tmp_path / "page.html", names=names))
    press(fresh, pressed[0])
    for key in pressed[1:]:
        fresh.switch_to.active_element.send_keys(key, keys().ENTER)
    if relabelled is None:
        assert text(fresh, "progress-count") == "0 of 12 decided"
    else:
        assert stored_decisions(fresh) == {0: ("relabel", names.index(relabelled))}
    shown = [e.get_property("textContent") for e in find(fresh, "#help-keys dt")]
    assert [key for key in shown if key[0].isdigit()] == ([] if digits is None else [digits])


def test_caps_lock_and_other_scripts(fresh, tmp_path):
    open_page(fresh, small_page(tmp_path / "page.html"))
    press_code(fresh, "л", "KeyK")  # Russian
    press_code(fresh, "Δ", "KeyD")  # Greek, Caps Lock
    want = {0: ("keep", 0), 1: ("drop", None)}
    assert stored_decisions(fresh) == want
    press_code(fresh, "ü", "KeyU")  # a Latin letter is no other key
    press_code(fresh, "é", "Digit2")
    assert stored_decisions(fresh) == want
    press_code(fresh, "Z", "KeyY")  # Caps Lock on a German keyboard: undo, by the letter
    assert stored_decisions(fresh) == {0: ("keep", 0)}
    press_code(fresh, "z", "KeyZ", shift=True)
    assert stored_decisions(fresh) == want


def test_earlier_decisions_are_there_at_once_and_taken_over_once(fresh, tmp_path):
    given = np.arange(12) % 4
    rows = [(0, "keep", 0), (1, "unsure", None), (11, "drop", None)]
    decided = read_decisions(decisions_json(tmp_path / "d.json", given, decisions=rows)).decisions
    path = small_page(tmp_path / "page.html", top=8)
    open_page(fresh, path)
    press(fresh, "d")  # of one's own, before the page was written with what was decided earlier
    small_page(path, top=8, decisions=decided)
    open_page(fresh, path)
    assert [e.text for e in find(fresh, ".notice span")] == [
        "Taken over from an earlier review: 2 decisions."
    ]
    want = {0: ("drop", None), 1: ("unsure", None), 11: ("drop", None)}
    assert stored_decisions(fresh) == want
    assert [b.text for b in find(fresh, ".card .badge")] == ["dropped", "unsure"]
    press(fresh, keys().HOME, keys().ARROW_RIGHT, "x")
    open_page(fresh, path)
    del want[1]  # undecided again, and stays so
    assert stored_decisions(fresh) == want
    assert find(fresh, ".notice") == []


def test_five_thousand_samples_stay_few_in_the_document(fresh, tmp_path):
    from selenium.webdriver.common.by import By

    open_page(fresh, small_page(tmp_path / "page.html", 5000, images=lambda i: RED, top=5000))
    assert text(fresh, "shown") == "5,000 samples"

    def cards():
        return len(find(fresh, ".card"))

    assert 8 <= cards() <= 60
    press(fresh, keys().END)
    assert selected(fresh).accessible_name.startswith("Sample 4999,")
    assert cards() <= 60
    fresh.execute_script("document.getElementById('gallery').scrollTop = 50000")
    wait_for(lambda: 100 < shown_ids(fresh)[0] < 4999, "the cards there")
    assert cards() <= 60
    assert selected(fresh).get_attribute("aria-setsize") == "5000"
    press(fresh, keys().HOME, *"kd" * 10)
    assert text(fresh, "progress-count") == "20 of 5,000 decided"
    nodes = fresh.execute_script("return document.querySelectorAll('*').length")
    assert nodes < 1500
    assert fresh.find_element(By.ID, "gallery").aria_role == "listbox"


def test_a_browser_that_keeps_nothing_is_said_so(fresh, tmp_path):
    deny = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    added = fresh.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": deny})
    try:
        open_page(fresh, small_page(tmp_path / "page.html"))
        (alert,) = find(fresh, '[role="alert"]')
        assert "does not keep decisions for this page (SecurityError)" in alert.text
        press(fresh, "k")
        assert text(fresh, "progress-count") == "1 of 12 decided"
        press(fresh, "z")  # else the page asks before it is left
    finally:
        fresh.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_every_control_has_a_name_and_texts_have_contrast(fresh, tmp_path):
    given = np.repeat(np.arange(10), np.arange(1, 11))  # pairs of 1 to 10 samples: all depths of the heat map
    issues = ranking(given, (given + 1) % 10, 55, kind=["swapped"] * 55)
    names = [f"class {k}" for k in range(10)]
    page = tmp_path / "page.html"
    write_review_page(page, issues, class_names=names, labels=given, images=[RED] * 55, alpha=np.eye(55, 10))
    open_page(fresh, page)
    press(fresh, "k", "r", "d", "u")
    for element in find(fresh, "button, select, input"):
        if element.is_displayed():
            assert element.accessible_name.strip(), element.get_attribute("outerHTML")
    active = find(fresh, "#gallery")[0].get_attribute("aria-activedescendant")
    assert find(fresh, f"#{active}")[0].aria_role == "option"
    assert [e.aria_role for e in find(fresh, "header, main, aside")] == ["banner", "complementary", "main"]
    for theme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        fresh.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        wait_for(
            lambda t=theme: fresh.execute_script("return document.documentElement.dataset.theme") == t, theme
        )
        assert fresh.execute_script(CONTRAST) == []
    find(fresh, "#theme")[0].click()
    assert fresh.execute_script("return document.documentElement.dataset.theme") == "light"
    fresh.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# Texts whose contrast with what lies behind them is below 4.5, WCAG's AA.
CONTRAST = """
const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
const behind = (e) => {
  if (e === null) return [255, 255, 255];
  const c = parse(getComputedStyle(e).backgroundColor);
  return c[3] === 1 ? c.slice(0, 3) : over(c, behind(e.parentElement));
};
const light = (c) => c.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const bad = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !e.checkVisibility() || e.closest(":disabled, script, style")) continue;
  const under = behind(e), [a, b] = [light(over(parse(getComputedStyle(e).color), under)), light(under)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return bad;
"""


def test_from_a_run_to_the_page_to_labels_to_a_run(fresh, tmp_path, downloads, monkeypatch, capsys):
    """What the tutorial says, with keys pressed for a person."""
    runs.without_pictures(monkeypatch)
    config = runs.config(tmp_path, name="first", loss="ac1", alpha_lr_scale=50.0)
    train(config, create=runs.linear)
    page = review(tmp_path / "first", top=30)
    open_page(fresh, page)
    assert text(fresh, "title") == "Label review: first"
    assert len(find(fresh, ".card .strip svg")) > 0  # α̂, from the run's alpha.npz
    order = fresh.execute_script("return JSON.parse(document.getElementById('data').textContent).index")
    press(fresh, "r", "r", "d", "u", "k", "7")
    file = exported(fresh, downloads, "csv")
    assert file.name == "decisions-first.csv"

    assert apply.main([str(file), "--run", str(tmp_path / "first")]) == 0
    said = capsys.readouterr().out
    assert "--noise none" in said  # the corrected labels hold the noise that was left
    corrected = tmp_path / "first" / "corrected"
    given = np.loadtxt(tmp_path / "first" / "labels.csv", delimiter=",", skiprows=1, dtype=int)[:, 1]
    labels = np.loadtxt(corrected / "labels.csv", delimiter=",", skiprows=1, dtype=int, usecols=1)
    exclude = np.loadtxt(corrected / "exclude.csv", skiprows=1, dtype=int, ndmin=1)
    changed = {d.index: d.label for d in read_decisions(file).decisions if d.kind == "relabel"}
    assert set(np.flatnonzero(labels != given)) == set(changed)
    assert all(labels[i] == label for i, label in changed.items())
    assert order[5] in changed
    assert changed[order[5]] == 7
    assert exclude.tolist() == [order[2]]

    again = config.with_values(
        name="second",
        noise="none",
        noise_rate=0.0,
        labels=str(corrected / "labels.csv"),
        exclude=str(corrected / "exclude.csv"),
    )
    train(again, create=runs.linear)
    open_page(fresh, review(tmp_path / "second", top=30))
    decided = {d.index: d for d in read_decisions(file).decisions}
    want = {i: ("keep" if d.kind == "relabel" else d.kind, d.label) for i, d in decided.items()}
    assert len(want) == 6
    assert stored_decisions(fresh, "second") == want
    with open(tmp_path / "second" / "labels.csv", newline="") as rows:
        assert [int(row["given_label"]) for row in csv.DictReader(rows)] == labels.tolist()
    with open(tmp_path / "second" / "dynamics.csv", newline="") as rows:
        visits = {int(row["index"]): int(row["count"]) for row in csv.DictReader(rows)}
    assert {i for i, times in visits.items() if times == 0} == {order[2]}
