"""The projection: what the simulation has to do whatever the figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.projection import JOBS, Cluster, Job, project, report


def test_a_ring_sends_each_byte_almost_twice() -> None:
    cluster = replace(Cluster(), inside=1e9, between=5e8, latency=0.0)
    assert cluster.sum_seconds(1e9, 1) == 0
    assert cluster.sum_seconds(1e9, 8) == pytest.approx(2 * 7 / 8)
    assert cluster.sum_seconds(1e9, 256) == pytest.approx(2 * 2 * 255 / 256)


def test_a_step_lasts_as_long_as_the_slowest_gpu_and_the_last_of_the_sum() -> None:
    even = replace(Cluster(), spread=0.0)
    assert even.step_seconds(0.1, 0, 256) == pytest.approx(0.1 + 2 * 255 * even.latency)
    assert even.step_seconds(0.1, 1e12, 8) == pytest.approx(0.1 / 3 + even.sum_seconds(1e12, 8))
    steps = [replace(even, spread=0.1).step_seconds(0.1, 1e8, gpus) for gpus in (1, 2, 8, 64)]
    assert steps == sorted(steps)
    assert steps[-1] > 0.12


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_time_is_that_of_the_slowest_part(job: Job) -> None:
    quick, slow = (project(job, 10**6, 8, replace(Cluster(), read=read)) for read in (1e9, 10))
    assert (quick["reads"], slow["reads"]) == (0, 1)
    epochs = 1 if JOBS.index(job) else 3  # stored activations are read once
    assert slow["hours"] >= epochs * 10**6 / (10 * 16 * 8) / 3600
    ten = project(job, 10**7, 8, replace(Cluster(), read=10))
    assert ten["hours"] == pytest.approx(10 * slow["hours"])


def test_report() -> None:
    found = {"alone": 0.1, "two": 0.12, "simulated": 0.11, "spread": 0.02, "sum": 0.03}
    text = report(2.0, 100.0, found)
    assert "| step in two processes, ms | 120 |" in text
    assert text.count("reading pictures") == 12
