"""Rules for the repository as a whole: which file may do what, and what no file may mention.

Every side effect has its place, so that a reader knows where it can happen. The rules are checked
against the source: each file is turned into plain facts, such as `call torch.load` or `set ?.training`,
and a rule is a pattern over facts together with the files in which it may match.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

import finetune

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finetune"


@dataclass(frozen=True)
class Right:
    """An action that may happen only in the files `where`; `facts` matches it, as it does in `example`."""

    what: str
    where: tuple[str, ...]
    facts: str
    example: str


RIGHTS = (
    Right(
        "requires_grad is set",
        ("model/freezing.py",),
        r"set .*\.requires_grad|call .*\.requires_grad_",
        "layer.weight.requires_grad = False",
    ),
    Right(
        "train or eval mode is set",
        ("model/freezing.py",),
        r"set .*\.training|call .*\.(train|eval)",
        "self.model.eval()",
    ),
    Right(
        "a module of the user's model is replaced",
        (
            "model/surgery/heads.py",
            "model/families/timm.py",
            "model/surgery/adapters.py",
            "distributed/shards.py",
        ),  # timm by its own method; a copy; parameters for a phase
        r"call setattr|set .*\._modules\[\]"
        r"|call .*\.(set_submodule|reset_classifier|reset_head)",
        "setattr(parent, name, layer)",
    ),
    Right(
        "order, augmentation or a split is drawn at random",
        ("data/loading/batches.py", "data/preprocessing/augmentations.py", "data/randomness.py", "data/splitting.py"),
        r"import (random|numpy\.random)(\..*)?|use numpy\.random\..*"
        r"|call (.*\.)?(randperm|shuffle|permutation|RandomSampler|(Random|TrivialAugment|RandAugment)\w*)",
        "order = torch.randperm(n)",
    ),
    Right(
        "a forward pass is intercepted",
        # the hook of input_channels stays on the model: see its docstring; allocation only measures
        (
            "caching/prefix/trace.py",
            "model/inspection/allocation.py",
            "model/inspection/forward_graph.py",
            "model/surgery/input_channels.py",
        ),
        r"set .*\.forward|call .*\.register_(module_)?forward_(pre_)?hook"
        r"|use .*\.Torch(Dispatch|Function)Mode",
        "module.register_forward_hook(remember)",
    ),
    Right(
        "parameter groups or optimizers are made or changed",
        ("training/optim/optimizers.py",),
        r"(use|import) torch\.optim\.(?!Optimizer$).*|call .*\.add_param_group|set .*\.param_groups(\[\])?",
        "optimizer = torch.optim.AdamW(parameters)",
    ),
    Right(
        "backward or the optimizer's step is called",
        ("training/loop.py", "training/numerics/precision.py"),
        r"call .*\.(backward|step)",
        "loss.backward()",
    ),
    Right(
        "a process group is touched",
        ("distributed/*.py", "checkpoint/sharded.py"),  # the latter by torch.distributed.checkpoint
        r"(use|import) torch\.distributed\b.*"
        r"|(use|import) .*\.(DistributedDataParallel|fully_shard|FullyShardedDataParallel)",
        "import torch.distributed as dist",
    ),
    Right(
        "training state is written to disk",
        ("checkpoint/*.py", "export/weights.py"),  # the latter only weights
        r"(use|import) safetensors\.(.*\.)?(save|save_file|save_model|serialize|serialize_file)",
        "from safetensors.torch import save_file",
    ),
    Right(
        "torch.load is called",
        ("model/families/torchvision.py", "model/weights.py"),
        r"(use|import) torch\.load",
        "state = torch.load(path, weights_only=True)",
    ),
    Right(
        "data is run as code, as by pickle",
        ("export/weights.py",),  # writes a state dict of tensors
        r"(use|import) (pickle|cloudpickle|dill|joblib|marshal|shelve)\.(?!\w+Error$).*"
        r"|(use|import) torch\.(save|hub\.load)|call (eval|exec)",
        "import pickle\npickle.loads(content)",
    ),
    Right(
        "a signal handler is set",
        ("signals/stops.py",),
        r"call signal\.(signal|pthread_sigmask|setitimer|siginterrupt)|call .*\.add_signal_handler",
        "import signal\nsignal.signal(signal.SIGTERM, handler)",
    ),
    Right(
        "something is printed",
        ("cli/*.py", "demo.py", "display/*.py"),
        r"call (print|rich\.print|(typer|click)\.s?echo|rich\.console\.Console\(\))"
        r"|use sys\.(__)?std(out|err).*",
        "print(loss)",
    ),
)


@cache
def facts_of(source: str) -> tuple[tuple[int, str], ...]:
    """Return (line, fact) for everything the rules can see, with full names, whatever they were imported as.

    Facts are `import a.b`, `use a.b` for anything imported, `call a.b`, and `set a.b` for attributes.
    The result of a call or subscript is `?`.
    """
    return tuple(dict.fromkeys(_facts(ast.parse(source))))


def _facts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    imported = dict(_imports(tree))
    packages = {full.split(".")[0] for full in imported.values()}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((line, f"import {alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((line, f"import {node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            yield line, f"call {_called(node, imported)}"
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, imported)
            if name.split(".")[0] in packages:
                yield line, f"use {name}"
        elif isinstance(node, ast.Attribute):
            yield line, f"set {_dotted(node, imported)}"
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield line, f"set {_dotted(node.value, imported)}[]"


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST, imported: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, imported)}.{node.attr}"
    return "?"


def _called(node: ast.Call, imported: dict[str, str]) -> str:
    name = _dotted(node.func, imported)
    to_screen = name == "rich.console.Console" and not any(word.arg == "file" for word in node.keywords)
    return f"{name}()" if to_screen else name


def breaches(right: Right, source: str) -> list[int]:
    """Return the lines of `source` that exercise `right`."""
    pattern = re.compile(right.facts)
    return sorted({line for line, fact in facts_of(source) if pattern.fullmatch(fact)})


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: right.what)
def test_it_happens_only_where_it_may(right: Right) -> None:
    elsewhere = {
        name: path
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in [path.relative_to(PACKAGE).as_posix()]
        if not any(fnmatch(name, allowed) for allowed in right.where)
    }
    offenders = [
        f"finetune/{name}:{line}"
        for name, path in elsewhere.items()
        for line in breaches(right, path.read_text(encoding="utf-8"))
    ]
    assert not offenders, f"{right.what}, but only {right.where or 'nobody'} may: {', '.join(offenders)}"


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: right.what)
def test_the_rule_sees_what_it_forbids(right: Right) -> None:
    imports = "import torch\n"
    assert breaches(right, imports + right.example)
    assert not breaches(right, imports + "trainable = parameter.requires_grad and layer.training")


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("requires_grad is set", "a.requires_grad, b = False, 1"),
        ("requires_grad is set", "find(model).weight.requires_grad_(False)"),
        ("train or eval mode is set", "module.training = False"),
        ("a module of the user's model is replaced", "model._modules['fc'] = layer"),
        ("order, augmentation or a split is drawn at random", "from numpy.random import default_rng"),
        ("order, augmentation or a split is drawn at random", "import numpy as np\nnp.random.seed(0)"),
        ("backward or the optimizer's step is called", "self.optimizer.step()"),
        ("parameter groups or optimizers are made or changed", "from torch.optim import SGD"),
        ("parameter groups or optimizers are made or changed", "o.param_groups[0] = {}"),
        ("a process group is touched", "import torch\nprint(torch.distributed.is_initialized())"),
        ("a process group is touched", "from torch.nn.parallel import DistributedDataParallel"),
        ("torch.load is called", "from torch import load as read"),
        ("training state is written to disk", "import safetensors.torch as st\nst.save_file({}, 'x')"),
        ("something is printed", "from rich.console import Console\nConsole().print('x')"),
        ("something is printed", "import sys\nsys.stderr.write('x')"),
    ],
)
def test_the_rule_sees_through_other_spellings(what: str, source: str) -> None:
    (right,) = (right for right in RIGHTS if right.what == what)
    assert breaches(right, source)


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("train or eval mode is set", "names = phase.train"),
        ("something is printed", "from rich.console import Console\nConsole(file=buffer).print('x')"),
        ("parameter groups or optimizers are made or changed", "from torch.optim import Optimizer"),
        ("training state is written to disk", "from safetensors.torch import load_file"),
        ("data is run as code, as by pickle", "model.eval()"),
        ("data is run as code, as by pickle", "import pickle\npickle.UnpicklingError"),
    ],
)
def test_the_rule_lets_its_neighbours_pass(what: str, source: str) -> None:
    (right,) = (right for right in RIGHTS if right.what == what)
    assert not breaches(right, source)


def test_files_are_read_as_weights_only() -> None:
    readers = {"torch.load", "torch.hub.load_state_dict_from_url", "numpy.load"}
    unsafe = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for tree in [ast.parse(path.read_text(encoding="utf-8"))]
        for imported in [dict(_imports(tree))]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (name := _dotted(node.func, imported)) in readers
        and not _says(node, "weights_only", True)
        and not (name == "numpy.load" and not any(word.arg == "allow_pickle" for word in node.keywords))
    ]
    assert not unsafe, f"these could run code from a file: {', '.join(unsafe)}"


def _says(call: ast.Call, word: str, value: object) -> bool:
    """Return whether `call` passes `word=value` as a literal."""
    return any(
        given.arg == word and isinstance(given.value, ast.Constant) and given.value.value is value
        for given in call.keywords
    )


def test_the_architecture_page_has_the_table_of_rights() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for right in RIGHTS:
        files = ", ".join(f"`{file}`" for file in right.where) or "nowhere"
        assert f"| {right.what} | {files} |\n" in page
    assert page.split("## Who may do what")[1].split("\n## ")[0].count("\n|") == len(RIGHTS) + 2


def test_there_is_no_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert not [path.relative_to(ROOT) for path in PACKAGE.rglob("*") if path.stem in drawers]


# Tests of the package or the repository as a whole, which mirror no module.
WHOLE = {
    "docs",
    "examples",
    "imports",
    "messages",
    "prose",
    "public_surface",
    "repository",
    "subclassing",
    "checkpoint/golden",
    "checkpoint/hostile",
    "fuzz/fuzz",
    "serve/page",
}

# The one class that is longer than a file should be: it has every public verb, each with its docstring.
LONG = {"tuner.py": 1_280}


def test_a_folder_holds_at_most_a_dozen_modules_and_folders() -> None:
    for folder in (PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")):
        entries = [path.name for path in folder.iterdir() if not path.name.startswith(("__", "py.typed"))]
        modules = [name for name in entries if name.endswith(".py")]
        counted = modules if folder == PACKAGE else entries  # the top has the rooms beside its own modules
        assert len(counted) <= 12, f"{folder.relative_to(ROOT)} holds {len(counted)}: {sorted(counted)}"


def test_a_file_is_one_thing() -> None:
    lines = {path.relative_to(PACKAGE).as_posix(): len(_text(path).splitlines()) for path in PACKAGE.rglob("*.py")}
    long = {name: count for name, count in lines.items() if count > LONG.get(name, 500)}
    assert not long
    assert all(lines[name] > 500 for name in LONG), "no longer an exception"


def test_the_test_tree_is_that_of_the_package() -> None:
    modules = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tested = path.relative_to(ROOT / "tests").with_name(path.stem.removeprefix("test_")).as_posix()
        if not tested.startswith("benchmarks/"):
            assert tested in modules | WHOLE, f"{path.relative_to(ROOT)} tests no module"


def test_a_class_is_inherited_by_several_or_by_users() -> None:
    trees = [ast.parse(_text(path)) for path in PACKAGE.rglob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    children: dict[str, list[str]] = {node.name: [] for node in classes}
    for node in classes:
        for base in {ast.unparse(base).partition("[")[0] for base in node.bases} & children.keys():
            children[base].append(node.name)
    alone = {base: names for base, names in children.items() if len(names) == 1}
    assert not {base: names for base, names in alone.items() if not base.endswith("Error")}  # which is caught apart


# Mentions that would tie the project to one machine, written so that this file does not match itself.
REGISTRY = re.compile(r"index[-_]url|find[-_]links|:[/]{2}\S+/simple\b", re.IGNORECASE)
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|farm|opt|tmp/env)(?![\w-])")


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        pytest.param("a registry", REGISTRY, id="a registry"),
        pytest.param("a path of this machine", MACHINE_PATH, id="a path of this machine"),
    ],
)
def test_no_file_names(what: str, pattern: re.Pattern[str]) -> None:
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in _repository_files()
        for number, line in enumerate(_text(path).splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not named, f"{what} named in:\n" + "\n".join(named)


def test_the_patterns_see_what_they_forbid() -> None:
    assert REGISTRY.search("pip install --index" + "-url x")
    assert REGISTRY.search("https:" + "//registry.example/simple/torch")
    assert MACHINE_PATH.search('open("/' + 'work/main/data.csv")')
    assert not MACHINE_PATH.search("docs/" + "work/plan.md")
    assert not MACHINE_PATH.search("/" + "workspace/x")


def _repository_files() -> list[Path]:
    """Return the files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of the repository's files")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def _text(path: Path) -> str:
    """Return the text of a file, empty if it is binary."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8", errors="replace")


AUDIT = {
    "found": (1, "1 known in 2 of 3 packages"),
    "none": (0, "0 known in 1 of 1 packages"),
    "unknown": (0, "not checked, because the database knows none of 1 packages"),
}
REPORTS: dict[str, list[dict[str, object]]] = {
    "found": [
        {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "Dependency not found"},
    ],
    "none": [{"name": "b", "version": "1", "vulns": []}],
    "unknown": [{"name": "c", "skip_reason": "Dependency not found"}],
}


@pytest.mark.parametrize("name", REPORTS)
def test_only_a_known_vulnerability_fails_the_audit(name: str) -> None:
    audit = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    code, text = audit["verdict"](json.dumps({"dependencies": REPORTS[name]}))
    assert code == AUDIT[name][0]
    assert AUDIT[name][1] in text
    assert ("a 1: CVE-1, fixed in 2" in text) == (name == "found")


@pytest.mark.parametrize("report", ["", "{", "[]", "null"])
def test_an_audit_without_a_report_is_said(report: str) -> None:
    audit = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    assert audit["verdict"](report, "Traceback\nConnectionError: no route") == (
        0, "Vulnerabilities: not checked, because there is no report (ConnectionError: no route)."
    )  # fmt: skip


def test_the_version_is_written_once() -> None:
    release = finetune.__version__
    assert version("torch-finetune") == release, "the installed package is another version: run `make setup`"
    assert f"## [{release}]" in (ROOT / "CHANGELOG.md").read_text()
    assignment = re.compile(rf"version\S*\s*[:=]\s*['\"]?{re.escape(release)}\b", re.IGNORECASE)
    places = [path.relative_to(ROOT).as_posix() for path in _repository_files() if assignment.search(_text(path))]
    assert places == ["finetune/__init__.py"]


def test_the_workflow_covers_every_version_that_is_promised() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text()
    promised = re.findall(r"Python :: (3\.\d+)", project)
    (matrix,) = re.findall(r"^ +python: \[(.+)\]$", workflow, re.MULTILINE)
    assert re.findall(r"3\.\d+", matrix) == promised
    lowest = dict(re.findall(r'"(torch|torchvision)>=([\d.]+)"', project))
    constraints = (ROOT / ".github" / "lowest-torch.txt").read_text()
    assert dict(re.findall(r"^(\w+)==([\d.]+)\.\*$", constraints, re.MULTILINE)) == lowest
    assert "make check" in workflow
    assert "make check" in (ROOT / ".ci" / "run").read_text()
