"""Every Python example runs: those of README.md, of the pages under docs/, and of all docstrings.

The code blocks of a page run in order in one namespace, as a reader would paste them, in a folder with
example data under the names the pages use. Nothing is downloaded: the pretrained weights are a
randomly initialized model of the same shape in torch's own download cache, so the code that loads
them is the real one. Their pictures are of 32 pixels instead of 224, which takes a twentieth of the time.
The only way to leave an example out is to mark it as another language.

The architecture page is checked against the code: its files, tables, diagram and image.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import logging
import pkgutil
import re
import runpy
import socket
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from torchvision import models

import finetune
from finetune import FineTuner

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finetune"
README = ROOT / "README.md"
PAGES = [README, *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]
FOUND = sorted(found.name for found in pkgutil.walk_packages(finetune.__path__, "finetune."))
MODULES = ["finetune", *(name for name in FOUND if not name.endswith("__main__"))]

# The weights and images that the examples find.
PRETRAINED = ("resnet18",)
SIZE = 32  # of pictures, in pixels
BREEDS = {"beagle": (150, 90, 50), "husky": (120, 130, 150), "pug": (220, 190, 140)}

# The code blocks of reStructuredText, which nothing would run.
LITERAL_BLOCK = re.compile(r"::[ \t]*$|\bcode-block::", re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """One fenced block: its language, its code, and the line its code starts on."""

    language: str
    code: str
    line: int


def fences(text: str) -> list[Fence]:
    """Return the fenced blocks of a Markdown text, as CommonMark reads them."""
    found = []
    numbered = enumerate(text.splitlines(), start=1)
    for number, line in numbered:
        opening = re.match(r"(?P<indent>\s*)(?P<marks>`{3,}|~{3,})(?P<language>[^`]*)$", line)
        if not opening:
            continue
        closing = re.compile(rf"\s*{opening['marks']}{opening['marks'][0]}*\s*")
        body: list[str] = []
        for _, inner in numbered:
            if closing.fullmatch(inner):
                break
            body.append(inner)
        else:
            raise ValueError(f"The block that opens on line {number} is never closed.")
        found.append(Fence(opening["language"].strip(), textwrap.dedent("\n".join(body)) + "\n", number + 1))
    return found


def examples(text: str) -> list[Fence]:
    """Return the Python blocks of a Markdown text.

    Raises:
        ValueError: If a block is Python under another name, so that it would not run.
    """
    blocks = fences(text)
    for block in blocks:
        if re.search(r"\b(i?python\d?|py|py3|pycon)\b", block.language) and block.language != "python":
            raise ValueError(
                f"The block on line {block.line} is {block.language!r}. Every Python example runs: name it "
                f"`python`, or use another language, such as `text`, if it is not Python."
            )
    return [block for block in blocks if block.language == "python"]


def run(block: Fence, namespace: dict[str, Any], source: str) -> None:
    """Run one example, as a session if it is written as one; errors show the line in `source`."""
    if block.code.lstrip().startswith(">>>"):
        run_session(block.code, namespace, source, block.line - 1)
    else:
        code = compile("\n" * (block.line - 1) + block.code, source, "exec", dont_inherit=True)
        exec(code, namespace)


def run_session(text: str, namespace: dict[str, Any], source: str, first_line: int) -> None:
    """Run the `>>>` examples in `text` and compare what they print."""
    test = doctest.DocTestParser().get_doctest(text, namespace, Path(source).name, source, first_line)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    results = runner.run(test, out=report.append, clear_globs=False)
    namespace.update(test.globs)
    assert not results.failed, "".join(report)


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring in a file, of nested, decorated and private things too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text), lineno=line)):
                yield line, text


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a download cache that holds weights of the right shape under the right names."""
    home = tmp_path_factory.mktemp("torch")
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in PRETRAINED:
            file = Path(models.get_model_weights(name).DEFAULT.url).name
            torch.save(models.get_model(name, weights=None).state_dict(), checkpoints / file)
    return home


@pytest.fixture
def reader(tmp_path: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to a reader's folder: with data, with weights downloaded earlier, without a network."""
    make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(socket, "getaddrinfo", _offline)
    matplotlib.use("agg")
    logging.getLogger("finetune").setLevel(logging.WARNING)  # the examples show results, not the lines of each run
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield tmp_path
    logging.getLogger("finetune").setLevel(logging.NOTSET)
    pyplot.close("all")


def make_data(folder: Path) -> None:
    """Write the data that the pages mention by name.

    `dogs/train` and `dogs/val` hold one subfolder per breed, `dogs/train.csv` and `dogs/val.csv` list the
    same images as path and label, and `dogs/new` and `dog.png` have no label. `reviews.csv` has texts.
    """
    for part, count in (("train", 4), ("val", 1)):
        rows = [
            (_image(folder / "dogs" / part / breed / f"{index}.png", colour, index), breed)
            for breed, colour in BREEDS.items()
            for index in range(count)
        ]
        listed = [f"{path.relative_to(folder / 'dogs').as_posix()},{breed}" for path, breed in rows]
        (folder / "dogs" / f"{part}.csv").write_text("\n".join(["path,label", *listed]) + "\n")
    for index, colour in enumerate(BREEDS.values()):
        _image(folder / "dogs" / "new" / f"{index}.png", colour, index)
    _image(folder / "dog.png", BREEDS["pug"], 1)
    reviews = [f"a {word} {noun},{word}" for word in ("good", "bad") for noun in ("film", "plot") * 3]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *reviews]) + "\n")


def _image(path: Path, colour: tuple[int, ...], index: int) -> Path:
    """Write a small image of `colour`, slightly different for each index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = tuple(min(255, channel + 5 * index) for channel in colour)
    picture = Image.new("RGB", (40, 32), shade)
    picture.putpixel((index, index), (255, 255, 255))
    picture.save(path)
    return path


def _offline(host: Any, *rest: Any, **options: Any) -> Any:
    raise OSError(f"An example asked for the host {host!r}, but examples run offline.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("reader")
def test_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PRETRAINED:
        weights = models.get_model_weights(name).DEFAULT.value
        small = partial(weights.transforms.func, crop_size=SIZE, resize_size=SIZE * 8 // 7)
        monkeypatch.setitem(vars(weights), "transforms", small)
    blocks = examples(page.read_text(encoding="utf-8"))
    assert blocks or page != README, "README.md shows no Python example"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        run(block, namespace, str(page))


# Modules whose examples need a package that does not come with the rest.
NEEDS = {
    "finetune.training.callbacks.loggers.mlflow": "mlflow",
    "finetune.training.callbacks.loggers.weights_and_biases": "wandb",
}


@pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic", "ignore:::wandb")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("reader")
def test_docstrings(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    source = str(module.__file__)
    for line, text in docstrings(Path(source)):
        unrun = examples(text) or LITERAL_BLOCK.search(text)
        assert not unrun, f"{source}:{line}: write a docstring's example as a >>> session, so that it runs"
        run_session(text, dict(vars(module)), source, line - 1)


def test_the_weights_are_loaded_by_the_real_code(reader: Path, torch_home: Path) -> None:
    for name in PRETRAINED:
        weights = models.get_model_weights(name).DEFAULT
        loaded = models.get_model(name, weights=weights).state_dict()
        (cached,) = torch_home.rglob(Path(weights.url).name)
        written = torch.load(cached, weights_only=True)
        assert all(torch.equal(loaded[key], written[key]) for key in written)
    with pytest.raises(OSError, match="offline"):
        models.get_model("alexnet", weights="DEFAULT")


def test_fences_are_found_wherever_markdown_has_them() -> None:
    plain = "a\n```python\nx = 1\n```\n"
    in_a_list = "- b\n  ~~~python\n  if x:\n      x = 2\n  ~~~\n"
    quoted = "````text\n```python\n```\n````\n"
    found = [(block.line, block.code) for block in examples(plain + in_a_list + quoted)]
    assert found == [(3, "x = 1\n"), (7, "if x:\n    x = 2\n")]


@pytest.mark.parametrize("language", ["python no-run", "py", "pycon", "{code-block} python", "python3"])
def test_python_by_another_name_is_refused(language: str) -> None:
    with pytest.raises(ValueError, match="Every Python example runs"):
        examples(f"```{language}\n1 / 0\n```\n")


def test_an_open_fence_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2 is never closed"):
        examples("a\n```python\n1 / 0\n")


def test_a_wrong_example_fails_on_its_own_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\nx / 0\n```\n")
    (block,) = examples(page.read_text())
    with pytest.raises(ZeroDivisionError) as failure:
        run(block, {}, str(page))
    assert failure.traceback[-1].lineno == 4  # counted from 0
    with pytest.raises(AssertionError, match="Got"):
        run_session(">>> 1 + 1\n3\n", {}, "page.md", 0)


def test_sessions_share_the_page() -> None:
    namespace: dict[str, Any] = {}
    for code in ("x = 1", ">>> y = x + 1\n>>> y\n2", "assert y == 2"):
        (block,) = examples(f"```python\n{code}\n```\n")
        run(block, namespace, "page.md")
    assert namespace["y"] == 2


def test_decorated_and_nested_docstrings_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""M"""\n@torch.no_grad()\ndef f():\n    """F"""\n    class C:\n        """C"""\n')
    assert sorted(docstrings(file)) == [(1, "M"), (4, "F"), (6, "C")]


def test_the_summary_in_the_guide_is_the_one_that_is_printed() -> None:
    tuner = FineTuner("resnet18", weights=None, device="cpu").replace_head(3)
    printed = str(tuner.freeze().unfreeze(["layer4", "*.bn1"]).freeze("conv1").summary())
    guide = fences((ROOT / "docs" / "guide.md").read_text(encoding="utf-8"))
    (shown,) = [block.code for block in guide if block.code.startswith("ResNet")]
    assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the architecture page, without its first line."""
    section = ARCHITECTURE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("heading", ["Layers", "The loop", "Where to make a change"])
def test_the_files_of_the_architecture_page_exist(heading: str) -> None:
    named = re.compile(r"`((?:[\w/]+/)?\w*\.py|\w[\w/]*/|setup\.cfg)`(: new\b)?")
    found = [(name, planned) for row in rows_of(heading) for cell in row for name, planned in named.findall(cell)]
    assert found
    for name, planned in found:
        exists = (PACKAGE / name).exists() or (ROOT / name).exists()
        assert exists != bool(planned), f"{name} {'exists already' if exists else 'does not exist'}"


def test_the_names_of_the_architecture_page_exist() -> None:
    for change, answer in rows_of("Where to make a change"):
        text = "".join(
            (PACKAGE / name).read_text() for name in re.findall(r"`([\w/]+\.py)`", answer) if (PACKAGE / name).exists()
        )
        for name in re.findall(r"`(_?[A-Z]\w+|_?[a-z]+(?:_[a-z]+)*)`", answer):
            assert re.search(rf"\b{name}\b", text) or name in {"Source", "Family"}, (
                f"{change}: {name} is in none of the files"
            )


def test_the_diagram_of_the_loop_is_that_of_the_code() -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / "training" / "loop.py").read_text(encoding="utf-8")))
    assert docstring is not None
    (diagram,) = [block.code for block in fences(ARCHITECTURE) if block.language == "text"]
    assert diagram.strip() == docstring.split("\n\n", 1)[1].strip()


def test_the_image_of_the_layers_is_that_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "draw_layers.py"))
    assert script["PICTURE"].read_text(encoding="utf-8") == script["picture"](), "run `make picture`"
