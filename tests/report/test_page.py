"""The page is well formed and escaped, whatever is on it, and lets nothing in but what it holds."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.display.figures import THEMES
from finetune.report.blocks import Card, Cards, Code, Facts, Image, Note, Plot, Section, Table
from finetune.report.page import render
from tests.helpers.pages import Page

DOT = Image("data:image/png;base64,AAAA", 1200, 10)
HOSTILE = "<script>alert(1)</script>\"'& {{ 7 * 7 }} </style>\x1b[2J \u202e"


def page_of(text: str) -> str:
    """Return a page with each kind of block, in which every text is this one."""
    blocks = [
        Note(text),
        Facts({text: text}),
        Code(text, text),
        Table(text, [text, text], [[text, "1"]] * 25),
        Table(text, [text], [[text]], folded=True, plain=True),
        Plot(DOT, DOT, text, text),
        Cards([Card(text, {text: [text, text]}, [(DOT, text)], [text]), Card(text, {}, [(DOT, text)] * 2)], text),
        Cards([Card(text, {}, [(Image(DOT.uri, 20, 20), text)])]),
        Cards([Card(text, {}, texts=[text, text])]),
    ]
    return render(text, {text: text}, [text], [Section("a", text, blocks), Section("b", text, [])])


PLAIN = [tag for tag, _ in Page(page_of("plain")).tags]


@settings(max_examples=20)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_every_text_is_only_text(text: str) -> None:
    page = Page(page_of(text))
    assert page.tags[0] == ("html", {"lang": "en"})
    assert [tag for tag, _ in page.tags] == PLAIN
    assert not [fault for fault in page.faults() if "description" not in fault]


def test_names_may_break_between_their_parts() -> None:
    page = page_of("val/a_b.c/ResNet 0.5 blank.jpg")
    assert '<h1 dir="auto">val/<wbr>a_<wbr>b<wbr>.c/<wbr>Res<wbr>Net 0.5 blank<wbr>.jpg</h1>' in page
    assert "val/a_b.c/ResNet 0.5 blank.jpg" in Page(page).said("th")
    assert page.count("blank<wbr>.jpg") >= 3


def test_hostile_names_are_escaped() -> None:
    page = page_of(HOSTILE)
    assert len(Page(page).all("script")) == 1
    assert "<script>alert" not in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search("[\x1b\u202e]", page)
    assert "\\x1b[2J \\u202e" in Page(page).said("h1")[0]
    assert not list(Page(page).faults())


def test_the_policy_allows_this_style_and_this_script_and_no_other() -> None:
    page = page_of("a")
    (policy,) = [meta["content"] for meta in Page(page).all("meta") if "http-equiv" in meta]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_nothing_is_fetched() -> None:
    assert not re.findall(r"https?:|url\(|@import|fetch|XMLHttp", page_of("a"))


def test_the_colors_are_those_of_the_plots() -> None:
    page = page_of("a")
    style = files("finetune.report").joinpath("style.css").read_text()
    assert not re.findall(r"#[0-9a-f]{3,8}\b", style)
    for look in THEMES.values():
        assert f"--background:{look.background};--text:{look.text}" in page
    names = set(re.findall(r"var\(--(\w+)\)", style))
    assert names == set(re.findall(r"--(\w+):", page.split("</style>")[0]))


@pytest.mark.parametrize(("rows", "long"), [(20, False), (21, True)])
def test_a_long_table_scrolls(rows: int, long: bool) -> None:
    page = Page(render("a", {}, [], [Section("a", "a", [Table("t", ["n"], [["x"]] * rows)])]))
    assert any("long" in div.get("class", "").split() for div in page.all("div")) == long


def test_a_faulty_page_is_noticed() -> None:
    faulty = '<html lang="en"><title>a</title><h1>a</h1><h3 id="a" style="b">b</h3><a href="#c" id="a">c</a></html>'
    faults = "; ".join(Page(faulty + '<img src="https:a.png"><table><th>b</th></table>').faults())
    for said in ("id 'a' twice", "headings", "style", "does not exist", "<img src", "description", "scope", "caption"):
        assert said in faults


def test_a_single_row_is_not_sorted() -> None:
    section = Section("a", "a", [Table("one", ["x"], [["1"]]), Table("two", ["x"], [["1"], ["2"]])])
    assert ["data-sortable" in table for table in Page(render("a", {}, [], [section])).all("table")] == [False, True]
