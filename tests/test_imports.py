"""Imports are deferred until they are needed. The tests count modules instead of seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Packages that `import torch` does not load by itself, and that take a second or more to load.
HEAVY = {"matplotlib", "pandas", "peft", "pyarrow", "scipy", "sklearn", "tensorboard", "timm", "torchmetrics"}
HEAVY |= {"mlflow", "torchvision", "transformers", "wandb"}
TORCH = {"torch", "numpy"}


def loaded(code: str) -> set[str]:
    """Run code in a new process, and return the names of the modules that it leaves loaded."""
    script = f"{code}\nimport json, sys; print('loaded', json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1].removeprefix("loaded ")))


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def torch_alone() -> set[str]:
    return loaded("import torch")


def test_the_package_loads_without_torch() -> None:
    modules = loaded("import finetune; dir(finetune)")
    assert not packages(modules) & (HEAVY | TORCH | {"rich", "typer", "PIL"})
    assert {name for name in modules if name.startswith("finetune.")} == set()


def test_the_tuner_loads_torch_and_little_else(torch_alone: set[str]) -> None:
    added = loaded("from finetune import FineTuner") - torch_alone
    assert not packages(added) & (HEAVY | {"networkx", "rich", "sympy", "triton", "typer"})
    assert not {name for name in added if name.startswith("torch.")}
    assert len({name for name in added if not name.startswith("finetune")}) < 30


def test_every_public_name_loads_without_heavy_packages(torch_alone: set[str]) -> None:
    code = "import finetune\nfor name in finetune.__all__: getattr(finetune, name)"
    assert not packages(loaded(code) - torch_alone) & (HEAVY | {"typer"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["compare", "--help"],
        ["trian"],
        ["train", "dogs", "--epoch", "3"],
        [],
    ],
    ids=" ".join,
)
def test_help_and_usage_errors_load_no_torch(arguments: list[str]) -> None:
    code = f"from finetune.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert not packages(loaded(code)) & (HEAVY | TORCH | {"PIL", "safetensors"})


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "finetune", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: python -m finetune" in done.stdout
