"""Draw the layers of the package and the imports between them: `make picture` writes docs/layers.svg.

The layers are those of the import-linter contract in setup.cfg, and the arrows are the imports found in the code. The
picture is the same on every machine, so a test compares it with the committed file. Its colors follow the reader's
light or dark mode.
"""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "layers.svg"

WIDTH, ROW, BOX, MARGIN = 880, 78, 42, 20
LABEL = 230  # width of the column on the right that says what a layer is for

# The purpose of each layer, under the name of one of its modules.
PURPOSES = {
    "__main__": "python -m finetune",
    "cli": "command line, demo",
    "comparison": "many runs",
    "tuner": "FineTuner and its verbs",
    "plan": "phases, tried beforehand",
    "pretrained": "names to models; callbacks",
    "report": "one HTML page",
    "strategies": "which parameters to train",
    "training": "the loop",
    "caching": "features; files",
    "model": "models; data",
    "digests": "tensors in any nesting",
    "errors": "errors",
}

# Everything may import these, so their arrows would say nothing.
FOUNDATIONS = {"digests", "nested", "naming", "errors"}


@dataclass(frozen=True)
class Box:
    """One package or module of a layer."""

    name: str
    x: float
    y: float
    width: float


def read_layers() -> list[list[str]]:
    """Return the layers of the import-linter contract, highest first, without planned modules that do not exist."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["importlinter:contract:layers"]["layers"].split("\n")
    layers = [[name.strip(" ()") for name in re.split(r"[|:]", line)] for line in lines if line.strip()]
    package = ROOT / "finetune"
    there = {path.stem for path in package.iterdir()}
    return [kept for names in layers if (kept := [name for name in names if name in there])]


def find_imports(names: list[str]) -> set[tuple[str, str]]:
    """Return the pairs of parts of the package of which the first imports the second."""
    graph = grimp.build_graph("finetune", cache_dir=None)
    imports = set()
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            parts = tuple(module.split(".")[1] if "." in module else "" for module in (importer, imported))
            if parts[0] != parts[1] and set(parts) <= set(names) and parts[1] not in FOUNDATIONS:
                imports.add((parts[0], parts[1]))
    return imports


def draw(layers: list[list[str]], imports: set[tuple[str, str]]) -> str:
    """Return the picture as SVG."""
    inner = WIDTH - LABEL - 2 * MARGIN
    boxes: dict[str, Box] = {}
    for row, names in enumerate(layers):
        width = min(190, inner / len(names) - 20)
        for column, name in enumerate(names):
            center = MARGIN + inner * (2 * column + 1) / (2 * len(names))
            boxes[name] = Box(name, center - width / 2, MARGIN + row * ROW, width)
    height = 2 * MARGIN + (len(layers) - 1) * ROW + BOX
    arrows = [_arrow(boxes[start], boxes[end]) for start, end in sorted(imports)]
    labels = [_label(names, MARGIN + row * ROW) for row, names in enumerate(layers)]
    parts = [_HEADER.format(width=WIDTH, height=height), *labels, *arrows, *map(_box, boxes.values()), "</svg>", ""]
    return "\n".join(parts)


def _box(box: Box) -> str:
    title = f'<text class="name" x="{box.x + box.width / 2:.0f}" y="{box.y + BOX / 2 + 5:.0f}">{box.name}</text>'
    return f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{BOX}" rx="6"/>{title}'


def _label(names: list[str], y: float) -> str:
    purpose = next((PURPOSES[name] for name in names if name in PURPOSES), "")
    line = f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y + BOX + 18:.0f}" y2="{y + BOX + 18:.0f}"/>'
    return f'{line}<text class="purpose" x="{WIDTH - LABEL}" y="{y + BOX / 2 + 5:.0f}">{purpose}</text>'


def _arrow(start: Box, end: Box) -> str:
    """Draw a curve from the bottom of one box to the top of another."""
    x1, y1 = start.x + start.width / 2, start.y + BOX
    x2, y2 = end.x + end.width / 2, end.y
    if start.y == end.y:  # siblings of one layer
        side = 1 if x2 > x1 else -1
        x1, x2, y1, y2 = x1 + side * start.width / 2, x2 - side * end.width / 2, start.y + BOX / 2, end.y + BOX / 2
        return f'<path d="M{x1:.0f} {y1:.0f} L{x2 - 6 * side:.0f} {y2:.0f}" marker-end="url(#tip)"/>'
    bend = min(60.0, (y2 - y1) / 2)
    curve = f"M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - 6:.0f}"
    return f'<path d="{curve}" marker-end="url(#tip)"/>'


_HEADER = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>The layers of finetune and the imports between them</title>
<style>
svg {{ color-scheme: light dark; font-family: system-ui, sans-serif; font-size: 15px }}
rect {{ fill: #eef3fa; stroke: #4a6da7; stroke-width: 1.2 }}
.paper {{ fill: #ffffff }}
line {{ stroke: #d5dbe5; stroke-dasharray: 3 4 }}
path {{ fill: none; stroke: #7d93b8; stroke-opacity: .7; stroke-width: 1.3 }}
#tip path {{ fill: #7d93b8; fill-opacity: .9; stroke: none }}
.name {{ fill: #16243d; text-anchor: middle; font-family: ui-monospace, monospace }}
.purpose {{ fill: #55627a }}
@media (prefers-color-scheme: dark) {{
rect {{ fill: #1f2a3d; stroke: #7fa3e0 }}
.paper {{ fill: #131416 }}
line {{ stroke: #39414f }}
path {{ stroke: #93acd6 }}
#tip path {{ fill: #93acd6 }}
.name {{ fill: #e6edf8 }}
.purpose {{ fill: #a9b5c8 }}
}}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="9" markerHeight="9" \
markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>
<rect class="paper" width="{width}" height="{height}" style="stroke: none"/>"""


def picture() -> str:
    """Return the picture of the package as it is now."""
    layers = read_layers()
    return draw(layers, find_imports([name for names in layers for name in names]))


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
