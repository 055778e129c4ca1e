"""`Report` writes the report of the weights that `fit` returns, and never ends a run that has trained."""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, TensorDataset

from finetune import ArgumentError, DataError, FineTuner
from finetune.callbacks import Callback, EarlyStopping, Report
from tests.helpers.pages import Page


def headline(path: Path) -> str:
    """Return the accuracy in a report."""
    page = Page(path.read_text(encoding="utf-8"))
    assert not list(page.faults())
    return page.said("dd")[page.said("dt").index("accuracy")]


@pytest.mark.no_cover
@pytest.mark.parametrize("form", ["fraction", "loader"])
def test_validation_data_in_other_forms(form: str, net: Any, blobs: Any, tmp_path: Path) -> None:
    val = 0.25 if form == "fraction" else DataLoader(TensorDataset(*blobs(30, seed=5)), batch_size=7)
    tuner = FineTuner(net(), device="cpu")
    history = tuner.fit(blobs(60), val, epochs=2, callbacks=Report(tmp_path / "new" / "report.html"), progress=False)
    assert headline(tmp_path / "new" / "report.html") == f"{100 * history[-1]['val_accuracy']:.1f} %"


@pytest.mark.no_cover
def test_the_report_is_on_the_weights_that_stay(net: Any, blobs: Any, tmp_path: Path) -> None:
    tuner, val = FineTuner(net(), device="cpu"), blobs(30, seed=5)
    history = tuner.fit(
        blobs(), val, epochs=6, lr=0.5, progress=False,
        callbacks=[Report(tmp_path / "a.html"), EarlyStopping(patience=6)],
    )  # fmt: skip
    assert headline(tmp_path / "a.html") == f"{100 * tuner.evaluate(val)['accuracy']:.1f} %"
    assert "6 epochs" in (tmp_path / "a.html").read_text()
    assert len(history) == 6


def test_other_data(net: Any, blobs: Any, tmp_path: Path) -> None:
    tuner, other = FineTuner(net(), device="cpu"), blobs(12, seed=7)
    tuner.fit(blobs(), callbacks=[Report(tmp_path / "a.html", data=other)], progress=False)
    page = Page((tmp_path / "a.html").read_text())
    assert "Classification with 3 classes, on 12 samples." in page.said("p")


@pytest.mark.no_cover
def test_a_run_is_the_same_with_a_report(
    net: Any, blobs: Any, tmp_path: Path, same: Any, state_of: Any, timeless: Any
) -> None:
    states, histories = [], []
    for callbacks in ([], [Report(tmp_path / "a.html")]):
        tuner = FineTuner(net(), device="cpu")
        tuner.fit(blobs(), 0.2, callbacks=callbacks, progress=False)
        tuner.fit(blobs(), 0.2, progress=False)
        states.append(state_of(tuner.model))
        histories.append(timeless(tuner.history))
    assert same(*states)
    assert histories[0] == histories[1]


@pytest.mark.no_cover
def test_a_run_resumes_with_or_without_a_report(net: Any, blobs: Any, tmp_path: Path) -> None:
    options = {"epochs": 1, "progress": False, "checkpoint_dir": tmp_path / "run"}
    FineTuner(net(), device="cpu").fit(blobs(), 0.2, **options)
    tuner = FineTuner(net(), device="cpu")
    tuner.fit(blobs(), 0.2, **options, resume_from="auto", callbacks=[Report(tmp_path / "a.html")])
    assert len(tuner.history) == 1
    assert (tmp_path / "a.html").exists()


class Fails(Callback):
    """Ends the run in its first epoch."""

    def __init__(self, how: Any) -> None:
        self.how = how

    def on_step_end(self, run: Any) -> None:
        self.how()


def _error() -> None:
    raise RuntimeError("end")


@pytest.mark.parametrize("how", [_error, lambda: signal.raise_signal(signal.SIGINT)])
def test_a_run_that_does_not_finish_writes_none(how: Any, net: Any, blobs: Any, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        FineTuner(net(), device="cpu").fit(
            blobs(), 0.2, callbacks=[Report(tmp_path / "a.html"), Fails(how)], progress=False
        )
    assert not list(tmp_path.iterdir())


def test_it_needs_data_before_training(net: Any, blobs: Any, tmp_path: Path) -> None:
    tuner = FineTuner(net(), device="cpu")
    with pytest.raises(ArgumentError, match=r"has no validation data\. Pass val=\.\.\. to fit"):
        tuner.fit(blobs(), callbacks=[Report(tmp_path / "a.html")])
    with pytest.raises(ArgumentError, match=f"{re.escape(str(tmp_path))} cannot be written"):
        tuner.fit(blobs(), 0.2, callbacks=[Report(tmp_path)])
    assert not tuner.history


def test_a_report_that_fails_does_not_end_the_run(
    net: Any, blobs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = FineTuner(net(), device="cpu")
    with caplog.at_level(logging.WARNING, "finetune"):
        tuner.fit(blobs(), callbacks=[Report(tmp_path / "a.html", data="no such folder")], progress=False)
    assert len(tuner.history) == 1
    assert "The report was not written: " in caplog.text
    with pytest.raises(DataError):
        tuner.report(tmp_path / "a.html", "no such folder")
