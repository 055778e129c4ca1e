"""HTML for notebooks."""

from __future__ import annotations

from xml.etree import ElementTree

from finetune.display import html


def test_a_table_is_well_formed_and_escapes_its_cells() -> None:
    page = html.table(["name", "<n>"], [["a & b", 1], ["<script>", 2.5]], caption="1 < 2")

    root = ElementTree.fromstring(f"<div>{page}</div>")
    assert [cell.text for cell in root.iter("td")] == ["a & b", "1", "<script>", "2.5"]
    assert [cell.text for cell in root.iter("th")] == ["name", "<n>"]
    assert root.find("p/strong").text == "1 < 2"
    assert "left" in root.find(".//td").get("style")


def test_a_paragraph_has_a_line_per_line() -> None:
    assert html.paragraph("a", "b<c") == "<p>a<br/>b&lt;c</p>"
