"""The review page's file: what it holds, that nothing in it can run, and what it refuses."""

import base64
import hashlib
import html.parser
import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from review_pages import CLASSES, NASTY, decisions_json, ranking, small_page

from fastac import AlphaTable
from fastac.data import labels_digest
from fastac.decisions import read_decisions
from fastac.report import write_review_page
from fastac.report.offsets import top_offsets
from fastac.report.page import default_top


class Elements(html.parser.HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style", "title"):
            self.inside.append([tag, dict(attributes), ""])

    def handle_data(self, data):
        if self.inside:
            self.inside[-1][2] += data if self.cdata_elem or self.inside[-1][0] == "title" else ""


def content(path):
    """The data block of a page."""
    (block,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S
    )
    return json.loads(block)


def test_the_page_holds_what_it_was_given(tmp_path):
    given = np.array([2, 0, 1, 3, 0, 1, 2, 3])
    order = [5, 0, 7]
    issues = pd.DataFrame(
        {
            "index": order,
            "given_label": given[order],
            "suggested_label": pd.array([3, None, 0], dtype="Int64"),
            "is_label_issue": [True, True, False],
            "label_quality": [0.0, 0.25, 1.0],
            "aum": [-1.23456789, np.nan, np.inf],
            "alpha_min": [np.nan] * 3,
            "given_class": ["x"] * 3,
            "kind": ["swapped", None, "outside"],
            "path": ["a/1.png", "a/2.png", "b/3.png"],
        }
    )
    write_review_page(
        tmp_path / "page.html", issues, class_names=CLASSES, labels=given, title="T", subtitle="S", run="R"
    )
    page = content(tmp_path / "page.html")
    digest = hashlib.sha256(given.astype("<i8").tobytes()).hexdigest()
    assert page["fingerprint"] == digest == labels_digest(given)
    assert page["storage_key"] == f"{digest[:32]}:R"
    assert {name: page[name] for name in ("title", "subtitle", "run", "num_samples", "class_names")} == {
        "title": "T",
        "subtitle": "S",
        "run": "R",
        "num_samples": 8,
        "class_names": list(CLASSES),
    }
    assert page["index"] == order
    assert page["given"] == [1, 2, 3]
    assert page["suggested"] == [3, None, 0]
    assert page["issue"] == [1, 1, 0]
    assert page["kind"] == ["swapped", None, "outside"]
    assert page["path"] == ["a/1.png", "a/2.png", "b/3.png"]
    assert page["scores"] == {"label_quality": [0.0, 0.25, 1.0], "aum": [-1.23457, None, None]}
    assert page["image"] is page["text"] is page["alpha"] is page["history"] is None
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_images_are_thumbnails(tmp_path):
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (400, 800, 3), dtype=np.uint8)
    images = [
        rng.integers(0, 256, (8, 8), dtype=np.uint8),
        rng.integers(0, 256, (28, 20, 1), dtype=np.uint8),
        rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
        large,
        Image.fromarray(large).convert("CMYK"),
        None,
    ]
    page = content(small_page(tmp_path / "page.html", 6, images=images))
    assert page["image"][5] is None
    assert page["pixelated"] is False
    opened = []
    for uri in page["image"][:5]:
        head, data = uri.split(",")
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        opened.append(Image.open(io.BytesIO(base64.b64decode(data))))
    for image, pixels in zip(opened[:3], images[:3], strict=True):
        assert image.format == "PNG"  # small images keep every pixel
        np.testing.assert_array_equal(np.asarray(image), pixels.squeeze())
    assert [(image.format, image.size) for image in opened[3:]] == [("JPEG", (256, 128))] * 2
    few = content(small_page(tmp_path / "few.html", 6, images=lambda i: images[i % 3]))
    assert few["pixelated"] is True


def test_five_thousand_photographs_take_thirty_megabytes(tmp_path):
    """Of the noisiest kind of photograph half of that size would be a lot; this one is a gradient with noise."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 255, 256)
    picture = np.clip(x[:, None, None] + rng.normal(0, 12, (256, 256, 3)), 0, 255).astype(np.uint8)
    path = small_page(tmp_path / "page.html", 40, images=[picture] * 40)
    assert path.stat().st_size / 40 < 22_000  # 256 pixels, up to 500 of them
    from fastac.report.thumbnails import thumbnail_side, thumbnail_uri

    for count in (500, 1500, 3000, 5000):
        assert count * len(thumbnail_uri(picture, thumbnail_side(count))) < 36e6


def test_alpha_of_the_top_classes(tmp_path):
    alpha = np.zeros((3, 9))
    alpha[0] = [0, 1, 2, 3, 4, 5, 6, 7, -17]
    alpha[1, 4] = 9
    given = np.array([0, 1, 2])
    issues = ranking(given, [8, 1, 0], 3)
    options = {"class_names": [str(k) for k in range(9)], "labels": given}
    for source in (alpha, torch.tensor(alpha)):
        write_review_page(tmp_path / "page.html", issues, alpha=source, **options)
        shown = content(tmp_path / "page.html")["alpha"]
        mean = 11 / 9
        assert shown["classes"][0] == [7, 6, 5, 4, 0, 8]  # given and suggested in any case, the others by |α̂|
        want = [float(f"{v - mean:.4g}") for v in (7, 6, 5, 4, 0, -17)]
        assert shown["values"][0] == pytest.approx(want, abs=2e-3)
        assert shown["classes"][1][0] == 4
        assert shown["values"][2] == [0.0] * 6
        assert shown["high"] == pytest.approx(8)
        assert shown["range"] == pytest.approx(8 + 17 + mean)
    table = AlphaTable(3, 9)
    write_review_page(tmp_path / "page.html", issues, alpha=table, **options)
    assert content(tmp_path / "page.html")["alpha"]["range"] == 1.0
    write_review_page(tmp_path / "page.html", issues, alpha=np.zeros(3), **options)  # AC2
    assert content(tmp_path / "page.html")["alpha"] is None
    some = top_offsets(alpha, np.array([1]), np.array([[-1, 3]]), num_samples=3, num_classes=9, count=2)
    assert some.classes.tolist() == [[4, 3]]
    write_review_page(tmp_path / "page.html", issues, alpha=some, **options)
    assert content(tmp_path / "page.html")["alpha"]["classes"] == [None, [4, 3], None]


def test_the_history_is_of_the_shown_samples_and_bounded(tmp_path):
    score = np.arange(400, dtype=np.float32).reshape(200, 2)
    score[0, 1] = np.nan
    history = {"index": np.array([9, 1]), "epoch": np.arange(1, 201), "score": score}
    page = content(small_page(tmp_path / "page.html", 4, history=history))
    assert page["history"]["score"][0] is None
    points = page["history"]["score"][1]
    assert len(points) == len(page["history"]["epoch"]) == 60
    assert points[0] is None
    assert points[-1] == 399
    assert [page["history"]["epoch"][i] for i in (0, -1)] == [1, 200]


def test_nothing_in_the_data_becomes_an_element(tmp_path):
    n = len(NASTY)
    path = small_page(
        tmp_path / "page.html",
        n,
        names=NASTY,
        texts=list(NASTY),
        title=NASTY[1],
        subtitle=NASTY[2],
        run=NASTY[0],
        columns={"path": list(NASTY), "kind": list(NASTY)},
    )
    plain = Elements(small_page(tmp_path / "plain.html", n, texts=["a"] * n).read_text("utf-8"))
    nasty = Elements(path.read_text("utf-8"))
    assert nasty.elements[:3] == plain.elements[:3]
    without_policy = [e for e in nasty.elements if "http-equiv" not in e[1]]
    assert without_policy == [e for e in plain.elements if "http-equiv" not in e[1]]
    page = content(path)
    assert page["class_names"] == list(NASTY)
    assert page["text"] == list(NASTY)
    block = path.read_text("utf-8").split('id="data">')[1].split("</script>\n<script>")[0]
    assert set("<>&\u2028\u2029") & set(block) == set()
    title = next(text for tag, _, text in nasty.inside if tag == "title")
    assert title.removesuffix("\n") == NASTY[1]  # the line break after the element


def test_the_policy_admits_the_pages_own_script_and_style_alone(tmp_path):
    text = small_page(tmp_path / "page.html").read_text("utf-8")
    page = Elements(text)
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        bodies = [body for name, attributes, body in page.inside if name == tag and "type" not in attributes]
        hashes = [base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in bodies]
        assert rules[rule] == f"'sha256-{hashes[0]}'"
        assert len(hashes) == 1
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert re.findall(r"https?://[^\s\"']+", text) == ["http://www.w3.org/2000/svg"]


def test_long_texts_are_cut_visibly_and_broken_ones_mended(tmp_path):
    texts = ["y" * 25_000, "bad \udcff byte", "fine"]
    page = content(small_page(tmp_path / "page.html", 3, texts=lambda i: texts[i]))
    assert page["text"] == ["y" * 20_000 + "… (5,000 more characters)", "bad \ufffd byte", "fine"]


def test_texts_and_images_are_by_position_or_id(tmp_path):
    path, texts = tmp_path / "page.html", [f"text {i}" for i in range(6)]
    pixels = [np.full((4, 4), i, np.uint8) for i in range(6)]
    for index in ([5, 4, 3, 2, 1, 0], range(100, 106), list("abcdef")):
        assert content(small_page(path, 6, texts=pd.Series(texts, index=index)))["text"] == texts
    shuffled = content(small_page(path, 6, images=pd.Series(pixels, index=[5, 4, 3, 2, 1, 0])))
    assert shuffled["image"] == content(small_page(path, 6, images=pixels))["image"]
    some = {i: texts[i] for i in (0, 1)}
    assert content(small_page(path, 6, texts=some, top=2))["text"] == texts[:2]
    with pytest.raises(ValueError, match="texts has nothing for id 2; it should have all samples"):
        small_page(path, 6, texts=some, top=3)


def test_decisions_that_the_page_starts_with(tmp_path):
    given = np.arange(12) % 4
    decided = read_decisions(
        decisions_json(tmp_path / "d.json", given, decisions=[(1, "keep", 1), (11, "relabel", 0)])
    ).decisions
    page = content(small_page(tmp_path / "page.html", top=3, decisions=decided))
    time = "2026-01-31T12:00:00+00:00"
    assert page["earlier"]["decisions"] == [
        [1, {"decision": "keep", "label": 1, "given": 1, "time": time}],
        [11, {"decision": "relabel", "label": 0, "given": 3, "time": time}],  # not shown, but exported
    ]
    other = content(small_page(tmp_path / "page.html", decisions=decided[:1]))["earlier"]
    assert other["key"] != page["earlier"]["key"]
    assert content(small_page(tmp_path / "page.html"))["earlier"] is None
    with pytest.raises(ValueError, match="decisions has given_label 3 for id 11; it should be as in labels"):
        small_page(tmp_path / "page.html", n=10, decisions=decided)
    with pytest.raises(ValueError, match="decisions has given_label 2 for id 1"):
        small_page(tmp_path / "page.html", decisions=[replace(decided[0], given=2)])
    with pytest.raises(ValueError, match="decisions has the label 4"):
        small_page(tmp_path / "page.html", decisions=[replace(decided[1], label=4)])


def test_how_many_are_shown(tmp_path):
    for flagged, want in ((0, 100), (99, 100), (250, 250), (6000, 5000)):
        assert default_top(ranking(np.zeros(7000, int), [1] * 7000, flagged)) == want
    assert len(content(small_page(tmp_path / "page.html", 300))["index"]) == 200
    for seven in (7, np.int64(7), np.uint8(7)):
        assert len(content(small_page(tmp_path / "page.html", 300, top=seven))["index"]) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 2]}, "issues has ids from 0 to 3; they should be in [0, 3)"),
        ({"labels": [0, 1, 2, 4]}, "labels is from 0 to 4; it should be in [0, 4)"),
        ({"labels": [0, 1, 2, 2]}, "given_label 3 for id 3 and labels has 2"),
        ({"labels": [0.0, 1, 2, 3]}, "labels is float64 (4,); it should be integers (N,)"),
        ({"top": 0}, "top is 0; it should be a whole number, at least 1"),
        ({"top": -3}, "top is -3"),
        ({"top": True}, "top is True"),
        ({"top": np.bool_(True)}, "top is "),
        ({"top": 3.0}, "top is 3.0; it should be a whole number"),
        ({"texts": ["a"] * 3}, "texts has 3 items; it should have one a label, 4"),
        ({"texts": pd.Series(["a"] * 5)}, "texts has 5 items"),
        ({"texts": "abcd"}, "texts is a str; it should be a sequence, a mapping or a function"),
        ({"images": np.zeros((3, 8, 8), np.uint8)}, "images has 3 items"),
        ({"images": iter([])}, "images is a list_iterator"),
        ({"images": [1] * 4, "texts": ["a"] * 4}, "images and texts are both given"),
        ({"images": [np.zeros((4, 4))] * 4}, "images gave float64 (4, 4)"),
        ({"images": [np.zeros((4, 4, 2), np.uint8)] * 4}, "images gave uint8 (4, 4, 2)"),
        ({"alpha": np.zeros((3, 4))}, "alpha must be (4, 4) or (4,), got (3, 4)"),
        ({"history": {"index": [0]}}, "history has no epoch"),
        (
            {"history": {"index": np.arange(2), "epoch": np.arange(3), "score": np.zeros((2, 3))}},
            "they should be (n,), (E,) and (E, n)",
        ),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, change, message):
    given = np.arange(4)
    issues = ranking(given, [1, 0, 0, 0], 2)
    arguments = {"class_names": CLASSES, "labels": given, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        write_review_page(tmp_path / "page.html", issues, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_two_classes_may_be_bool(tmp_path):
    given = np.array([True, False, True])
    for labels in (given, given.astype(int)):
        issues = ranking(given.astype(int), [0, 1, 0], 2)
        write_review_page(tmp_path / "page.html", issues, class_names=["a", "b"], labels=labels)
        assert content(tmp_path / "page.html")["fingerprint"] == labels_digest(given.astype(np.int64))


def test_class_names_by_class(tmp_path):
    given = np.array([2, 0, 1, 3])
    for names in (dict(enumerate(CLASSES)), {str(k): name for k, name in enumerate(CLASSES)}):
        backwards = dict(reversed(names.items()))
        write_review_page(
            tmp_path / "page.html", ranking(given, given, 2), class_names=backwards, labels=given
        )
        assert content(tmp_path / "page.html")["class_names"] == list(CLASSES)
    for wrong in ({1: "a", 2: "b", 3: "c", 4: "d"}, "abcd"):
        with pytest.raises(ValueError, match="class_names must"):
            write_review_page(
                tmp_path / "other.html", ranking(given, given, 2), class_names=wrong, labels=given
            )
    assert not (tmp_path / "other.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="suggested_label"), "issues has no column suggested_label"),
        (lambda f: f.head(0), "issues has no rows"),
        (lambda f: pd.concat([f, f]), "issues has an id twice"),
        (lambda f: f.assign(suggested_label=4), "issues suggests the label 4"),
        (lambda f: f.assign(index=[-1, 0, 1, 2]), "issues has ids from -1 to 2"),
    ],
)
def test_issues_that_do_not_fit(tmp_path, change, message):
    given = np.arange(4)
    issues = change(ranking(given, [1, 0, 0, 0], 2))
    with pytest.raises(ValueError, match=re.escape(message)):
        write_review_page(tmp_path / "page.html", issues, class_names=CLASSES, labels=given)
    assert list(tmp_path.iterdir()) == []
