"""Runs as trackers of experiments have stored them, read back in one form."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.callbacks import MLflow, WeightsAndBiases
from finetune.training.callbacks.loggers.tracker import Tracker


@dataclass
class Stored:
    """A run: its identifier, status, name, group, configuration, values by epoch and name, best values, and files."""

    id: str
    status: str = "running"
    name: str | None = None
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    values: dict[int, dict[str, float]] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


class WandbFiles:
    """Weights & Biases in offline mode."""

    def logger(self, **options: Any) -> Tracker:
        return WeightsAndBiases("dogs", mode="offline", **options)

    def runs(self) -> list[Stored]:
        """Return the runs in the order of their beginning. A continued run has a file per part."""
        found: dict[str, Stored] = {}
        for path in sorted(Path("wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns):
            run = found.setdefault(path.stem.removeprefix("run-"), Stored(path.stem.removeprefix("run-")))
            for record in self._all_records(path):
                self._read(run, record)
        return list(found.values())

    def _read(self, run: Stored, record: Any) -> None:
        match record.WhichOneof("record_type"):
            case "run":
                run.name, run.group = record.run.display_name or None, record.run.run_group or None
                run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                run.phases.append(row["phase"])
                run.values[row["epoch"]] = {key: value for key, value in row.items() if key[0] != "_"}
            case "summary":
                for item in record.summary.update:
                    name = item.key or "/".join(item.nested_key)
                    if name.startswith("best/"):
                        run.best[name.removeprefix("best/")] = json.loads(item.value_json)
            case "artifact":
                run.files += [Path(entry.local_path) for entry in record.artifact.manifest.contents]
            case "exit":
                run.status = {0: "finished", 1: "failed", 255: "interrupted"}[record.exit.exit_code]

    def _all_records(self, path: Path) -> list[Any]:
        """Return the records of a finished run, once wandb's own process has written the last one."""
        for _ in range(600):
            records = list(self._records(path))
            if any(record.WhichOneof("record_type") == "exit" for record in records):
                return records
            time.sleep(0.1)
        raise TimeoutError(f"{path} has no end after a minute.")

    def _records(self, path: Path) -> Iterator[Any]:
        """Yield the records of a file in LevelDB's log format: blocks of 32 KiB of parts, after a header of 7 bytes."""
        from wandb.proto import wandb_internal_pb2

        data, position, whole = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            left = 32768 - position % 32768
            if left < 7:
                position += left
                continue
            _, size, kind = struct.unpack("<IHB", data[position : position + 7])
            whole += data[position + 7 : position + 7 + size]
            position += 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                yield record
                whole = b""


class MlflowFiles:
    """MLflow in a folder of files."""

    def __init__(self) -> None:
        self.uri = Path("mlruns").absolute().as_uri()

    def logger(self, **options: Any) -> Tracker:
        return MLflow("dogs", tracking_uri=self.uri, **options)

    def runs(self) -> list[Stored]:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name("dogs")
        found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
        names = {run.info.run_id: run.info.run_name for run in found}
        return [self._stored(client, run, names) for run in found if "finetune.group" not in run.data.tags]

    def _stored(self, client: Any, run: Any, names: dict[str, str]) -> Stored:
        info, tags = run.info, run.data.tags
        statuses = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "running"}
        stored = Stored(info.run_id, statuses[info.status], info.run_name, names.get(tags.get("mlflow.parentRunId")))
        for key, value in run.data.params.items():
            within, _, name = key.partition(".")
            stored.config.setdefault(within, {})[name] = value
        for name in run.data.metrics:
            for metric in client.get_metric_history(info.run_id, name):
                if name.startswith("best/"):
                    stored.best[name.removeprefix("best/")] = metric.value
                else:
                    stored.values.setdefault(metric.step, {})[name] = metric.value
        stored.phases = [tags["phase"]] if "phase" in tags else []
        artifacts = Path(info.artifact_uri.removeprefix("file://"))
        stored.files = sorted(artifacts.iterdir()) if artifacts.is_dir() else []
        return stored


def flat_numbers(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of the history, as trackers name them."""
    rates = {f"{key}/{group}": rate for key in ("lr", "lr_start") for group, rate in row[key].items()}
    return {key: value for key, value in row.items() if isinstance(value, float)} | rates
