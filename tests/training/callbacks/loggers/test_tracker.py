"""`Tracker`: what Weights & Biases and MLflow have stored of a run, read back from their own files."""

from __future__ import annotations

import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune import FineTuner, Phase, compare
from finetune.callbacks import Callback, MLflow, WeightsAndBiases
from finetune.errors import ArgumentError
from tests.helpers.models import small_mlp
from tests.helpers.tensors import gaussian_blobs
from tests.helpers.trackers import MlflowFiles, WandbFiles, flat_numbers

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::alembic", "ignore:::wandb")

STORES: dict[str, type[WandbFiles | MlflowFiles]] = {"wandb": WandbFiles, "mlflow": MlflowFiles}
Store = WandbFiles | MlflowFiles


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return the only way out to the network, which answers nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "WANDB_BASE_URL"):
            monkeypatch.setenv(name, address)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder, and keep everything that a tracker writes in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes seconds to make
    return tmp_path


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, folder: Path) -> Store:
    pytest.importorskip(request.param)
    return STORES[request.param]()


PHASES = [Phase("6", 2, name="head"), Phase("*", 1, (1e-4, 1e-3), name="all")]


def fit(tuner: FineTuner, *callbacks: Callback, **options: Any) -> Any:
    given: dict[str, Any] = {"strategy": PHASES, "batch_size": 10, "progress": False, **options}
    return tuner.fit(gaussian_blobs(), gaussian_blobs(9), callbacks=callbacks, **given)


def tuner(**settings: Any) -> FineTuner:
    return FineTuner(small_mlp(), device="cpu", **settings)


class Ends(Callback):
    """Calls a function at the end of an update."""

    only_watches = True

    def __init__(self, end: Callable[[], Any], step: int = 1) -> None:
        self.end, self.left = end, step

    def on_step_end(self, run: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.end()


def failing() -> None:
    raise KeyError("a mistake")


def test_a_run_holds_configuration_epochs_and_best_values(store: Store) -> None:
    history = fit(tuner(seed=3), store.logger(name="first"))

    (run,) = store.runs()
    assert (run.status, run.name, run.group, run.files) == ("finished", "first", None, [])
    for row in history:
        stored = {key: value for key, value in run.values[row["epoch"]].items() if key not in ("epoch", "phase")}
        assert stored == pytest.approx(flat_numbers(row))
    assert run.phases[-1] == "all"
    assert run.best["val_accuracy"] == max(row["val_accuracy"] for row in history)
    assert run.best["val_loss"] == pytest.approx(min(row["val_loss"] for row in history))
    assert str(run.config["settings"]["seed"]) == "3"
    assert str(run.config["data"]["training_samples"]) == "24"
    assert "1 epoch, training" in str(run.config["plan"])
    assert "'head'" in str(run.config["phases"]) or run.config["phases"]["0.name"] == "head"
    assert "head + all" in str(run.config["strategy"])


def test_several_fits_are_several_runs(store: Store) -> None:
    twice, logger = tuner(), store.logger()
    fit(twice, logger)
    fit(twice, logger)

    first, second = store.runs()
    assert first.id != second.id
    assert [*first.values] == [1, 2, 3]
    assert [*second.values] == [4, 5, 6]
    assert second.best["loss"] == pytest.approx(min(row["loss"] for row in twice.history[3:]))


def test_a_resumed_run_goes_on_in_the_same_run(store: Store, folder: Path) -> None:
    stop = Ends(lambda: signal.raise_signal(signal.SIGTERM), step=5)
    with pytest.raises(SystemExit):
        fit(tuner(), store.logger(), stop, checkpoint_dir=folder / "run")
    (stopped,) = store.runs()
    assert stopped.status == "interrupted"

    history = fit(tuner(), store.logger(), checkpoint_dir=folder / "run", resume_from="auto")
    (run,) = store.runs()
    assert (run.id, run.status, [*run.values]) == (stopped.id, "finished", [1, 2, 3])
    assert run.best["loss"] == pytest.approx(min(row["loss"] for row in history))


def test_a_run_with_an_error_has_failed(store: Store) -> None:
    with pytest.raises(KeyError):
        fit(tuner(), store.logger(log_model=True), Ends(failing))
    (run,) = store.runs()
    assert (run.status, run.files) == ("failed", [])


def test_the_final_checkpoint_is_stored_on_request(store: Store) -> None:
    trained = tuner()
    fit(trained, store.logger(log_model=True))

    ((file,),) = (run.files for run in store.runs())
    again = FineTuner.load_checkpoint(file, small_mlp(), device="cpu")
    assert again.evaluate(gaussian_blobs(9)) == trained.evaluate(gaussian_blobs(9))


def test_a_comparison_logs_a_run_per_candidate_and_seed(store: Store) -> None:
    data = {"data": gaussian_blobs(), "val": gaussian_blobs(9)}
    strategies = ["linear_probe", "full_finetune"]
    compare(small_mlp(), **data, strategies=strategies, budget=1, seeds=2, loggers=store.logger(), progress=False)  # type: ignore[arg-type]

    runs = store.runs()
    assert sorted(str(run.name) for run in runs) == [
        f"Sequential, {strategy}, seed {seed}" for strategy in sorted(strategies) for seed in (0, 1)
    ]
    assert len({run.group for run in runs}) == 1
    assert str(runs[0].group).startswith("compare 20")
    assert {str(run.config["candidate"]["seed"]) for run in runs} == {"0", "1"}
    assert {run.status for run in runs} == {"finished"}


def test_nothing_is_sent_offline(store: Store, listener: socket.socket) -> None:
    fit(tuner(), store.logger(log_model=True))

    with pytest.raises(BlockingIOError):
        listener.accept()


def test_without_an_account_the_error_comes_before_training(listener: socket.socket, watch: Any) -> None:
    pytest.importorskip("wandb")
    seen = watch()
    with pytest.raises(ArgumentError, match=r"WeightsAndBiases cannot open a run: .*API key"):
        fit(tuner(), WeightsAndBiases("dogs", mode="online"), seen)
    assert "on_step_end" not in seen.hooks
    assert "on_fit_end" in seen.hooks


def test_without_a_server_the_error_comes_before_training(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    seen = watch()
    with pytest.raises(ArgumentError, match="MLflow cannot open a run: "):
        fit(tuner(), MLflow("dogs", tracking_uri="http://127.0.0.1:9"), seen)
    assert "on_step_end" not in seen.hooks


@pytest.mark.no_cover
@pytest.mark.slow
def test_a_database_of_mlflow_that_fails_later_ends_no_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"

    def damage() -> None:
        with sqlite3.connect(folder / "mlflow.db") as connection:
            connection.execute("DROP TABLE metrics")

    assert len(fit(tuner(), MLflow("dogs", tracking_uri=uri), Ends(damage))) == 3
    assert caplog.text.count("MLflow could not log, and the run goes on without it: ") == 1
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert client.get_experiment_by_name("dogs") is not None


@pytest.mark.parametrize(("package", "kind"), [("wandb", WeightsAndBiases), ("mlflow", MLflow)])
def test_without_the_package_the_error_names_it(package: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ArgumentError, match=f"{kind.__name__} callback needs the {package} package: pip install"):
        kind("dogs")
