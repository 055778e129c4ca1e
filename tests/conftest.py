"""How the tests are collected and measured. Their fixtures are in tests/helpers/fixtures.py."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.untraced import import_untraced

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # processes that compile have to import torch first

TESTS = f"{Path(__file__).resolve().parent.as_posix()}/"

# Large packages that the tests import, and those that only some of them do.
LARGE = ("torch", "torch._dynamo", "torchvision.models", "torchmetrics", "hypothesis.strategies")
RARE = ("matplotlib.pyplot", "pandas", "polars", "sklearn.utils.estimator_checks", "timm", "transformers")

# Tests of other code than the package, and of code that is covered by many others. To trace every line that they run,
# torch's too, takes half their time again. Without them, the coverage can only be too low.
UNTRACED = (
    "benchmarks/",
    "fuzz/",
    "model/families/test_torchvision.py",
    "test_docs.py",
    "test_examples.py",
    "test_prose.py",
    "test_repository.py",
)

# Seconds for which the cases of one test are traced, and seconds that those of each test have taken.
TRACED_SECONDS = 0.3
SECONDS: Counter[str] = Counter()


def pytest_configure() -> None:
    """Heed SIGINT, which a job in the background ignores, and so would the processes that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """Collect the tests without tracing it, which takes half the time again.

    The package comes first, so that its import is measured. A process that only distributes the tests needs neither.
    """
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if is_worker or session.config.getoption("dist", "no") == "no":
        import_untraced(*LARGE, *(RARE if is_worker else ()))
        session.config.pluginmanager.import_plugin("tests.helpers.fixtures")
        if sys.gettrace() is not None:
            import_package()
    tracer = sys.gettrace()
    sys.settrace(None)
    result = yield
    sys.settrace(tracer)
    return result


def import_package() -> None:
    """Import every module of the package."""
    import finetune

    for module in pkgutil.walk_packages(finetune.__path__, "finetune."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests without a CUDA device, and measure no coverage of the tests in `UNTRACED`."""
    import torch

    without_gpu = not torch.cuda.is_available()
    for item in items:
        if without_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.path.as_posix().removeprefix(TESTS).startswith(UNTRACED):
            item.add_marker("no_cover")


def pytest_collection_finish() -> None:
    """Exclude the modules and the collected tests, which stay to the end, from every garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter delete everything at its end, or some packages report leaks."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Measure no further coverage of a test whose first cases took a while: the others run nearly the same lines."""
    test = item.nodeid.partition("[")[0]
    if SECONDS[test] > TRACED_SECONDS:
        item.add_marker("no_cover")
    begin = time.perf_counter()
    try:
        return (yield)
    finally:
        SECONDS[test] += time.perf_counter() - begin
