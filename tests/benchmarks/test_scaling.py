"""The scaling benchmark: the fitted line is right, each point appears once, and the table shows each axis."""

from __future__ import annotations

from benchmarks.scaling import AXES, BASE, CACHES, line, measure, points, table


def test_a_line_is_fitted_by_least_squares() -> None:
    assert line([1, 2, 3, 4], [3, 5, 7, 9]) == (1.0, 2.0, 1.0)
    assert line([1, 2, 3, 4], [1, 4, 9, 16])[2] < 0.99
    assert line([1, 2], [5, 5]) == (5.0, 0.0, 1.0)


def test_each_point_is_measured_once() -> None:
    wanted = points(list(AXES), list(CACHES), smallest=False)
    unique = {tuple(point.values()) for point in wanted}
    shared = sum(BASE[axis] in values for axis, values in AXES.items()) - 1
    assert len(wanted) == len(unique) == len(CACHES) * (sum(map(len, AXES.values())) - shared)


def test_a_point_of_large_data_has_a_time_and_a_row() -> None:
    found = [measure({"rows": rows}) for rows in (200, 400)]
    assert all(point["seconds"] > 0 for point in found)
    assert "| first step | 200, 400 |" in table(found, 1, BASE).split("## rows")[1]


def test_a_point_has_a_time_and_the_table_shows_the_growth_along_an_axis() -> None:
    found = measure({"samples": 32, "epochs": 1, "size": 16, "depth": 1, "cache": "none"})
    assert found["seconds"] > 0
    assert found["bytes"] >= 0
    measured = [
        {**BASE, "samples": samples, "cache": "memory", "seconds": samples / 1000, "bytes": samples * 32_000}
        for samples in AXES["samples"]
    ]
    text = table([*measured, {**BASE, "cache": "disk", "missing": "no such cache"}], 1, BASE)
    assert "| memory | 512, 1024, 2048, 4096 | 0.51, 1.02, 2.05, 4.10 | 100.0% | 1 | 16, 33, 66, 131 | 32 |" in text
    assert "disk: no such cache" in text
