"""The boundaries of the quadrants."""

from finetune.advice.chart import MUCH, NEAR, QUADRANTS, quadrant


def test_the_boundaries_separate_the_quadrants():
    names = [quadrant(MUCH + much, NEAR + near).name for much in (-0.1, 0) for near in (-0.01, 0)]

    assert names == [each.name for each in QUADRANTS]
    assert names == [
        f"{size} samples per class, {place}" for size in ("fewer than 8", "8 or more") for place in ("far", "near")
    ]
