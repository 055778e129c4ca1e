"""Pictures of poor quality: blank, dark, overexposed, blurred, or of an odd size or shape.

A picture counts only if it is unusual in the data and beyond an absolute limit: in photos of the night, dark ones are
no fault. Blank pictures always are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from finetune.data_check.findings import BLANK, BLURRED, BRIGHT, DARK, ODD_SIZE
from finetune.data_check.outliers import robust_scores
from finetune.data_check.samples.facts import Facts

Fault = tuple[str, int, str]  # kind, row, reason

_DEVIATIONS = 4.0  # robust standard deviations from which a size or shape is unusual
_BLANK_CONTRAST = 4.0  # levels of gray between the darkest and the brightest pixel
_DARK, _BRIGHT = 50.0, 205.0  # level that the brightest part does not reach, and that the darkest part exceeds
_DIMMER = 0.4  # share of the usual light of the brightest part, or of the usual shade of the darkest
_BLURRED = 0.02  # sharpness; photos in focus have 0.08 and more
_SMOOTHER = 0.1  # share of the usual sharpness
_SHORTEST_SHARP = 48  # pixels of the shorter side from which sharpness is judged
_SIZES = 4.0  # times larger or smaller than usual
_SHAPES = 2.0  # times wider or higher than usual
_COMMON = 0.05  # share of the pictures from which a fault is how the data is


def poor_pictures(facts: Facts) -> list[Fault]:
    """Return the kind, the row and the reason of each fault.

    Args:
        facts: Facts of the pictures, each [N, ...].
    """
    return [fault for check in (_blank, _light, _blurred, _odd) for fault in check(facts)]


def _blank(facts: Facts) -> Iterator[Fault]:
    for row in (facts["contrast"] <= _BLANK_CONTRAST).nonzero().flatten().tolist():
        contrast = float(facts["contrast"][row])
        yield BLANK, row, "all pixels are equal" if contrast == 0 else "all pixels are nearly equal"


def _light(facts: Facts) -> Iterator[Fault]:
    shown = facts["contrast"] > _BLANK_CONTRAST
    brightest, darkest = facts["brightest"], facts["darkest"]
    dark = (brightest < _DARK) & (brightest < _DIMMER * brightest.nanmedian())
    bright = (darkest > _BRIGHT) & (255 - darkest < _DIMMER * (255 - darkest.nanmedian()))
    for row in _rare(dark & shown):
        yield DARK, row, f"95 % of the pixels are darker than {brightest[row]:.0f} of 255"
    for row in _rare(bright & shown):
        yield BRIGHT, row, f"95 % of the pixels are brighter than {darkest[row]:.0f} of 255"


def _blurred(facts: Facts) -> Iterator[Fault]:
    sharpness = torch.where(facts["size"].amin(1) >= _SHORTEST_SHARP, facts["sharpness"], torch.nan)
    usual = float(sharpness.nanmedian())
    blurred = (sharpness < _BLURRED) & (sharpness < _SMOOTHER * usual)
    for row in _rare(blurred & (facts["contrast"] > _BLANK_CONTRAST)):
        yield BLURRED, row, f"{usual / max(float(sharpness[row]), 1e-9):.0f} times fewer details than usual"


def _odd(facts: Facts) -> Iterator[Fault]:
    sizes = facts["size"].double().clamp_min(1)
    area, shape = sizes.log().mean(1), (sizes[:, 1] / sizes[:, 0]).log()
    usual_area, usual_shape = area.median(), shape.median()
    factor, stretch = (area - usual_area).exp(), (shape - usual_shape).exp()
    odd_size = _unusual(area, _SIZES)
    odd_shape = _unusual(shape, _SHAPES) & _unusual(shape.abs(), _SHAPES)  # portraits among landscapes are common
    for row in _rare(odd_size | odd_shape):
        height, width = facts["size"][row].tolist()
        if odd_size[row]:
            times = float(factor[row])
            how = f"{times:.1f} times larger" if times > 1 else f"{1 / times:.1f} times smaller"
        else:
            times = float(stretch[row])
            how = f"{times:.1f} times wider" if times > 1 else f"{1 / times:.1f} times higher"
        yield ODD_SIZE, row, f"{width} x {height} pixels, {how} than usual"


def _unusual(logarithms: Tensor, times: float) -> Tensor:
    """Return whether values are many times the median, and far beyond the usual spread."""
    far = (logarithms - logarithms.median()).abs() >= torch.tensor(times).double().log()
    return far & (robust_scores(logarithms).abs() > _DEVIATIONS)


def _rare(rows: Tensor) -> list[int]:
    """Return the rows, or none if they are common enough to be normal for this data."""
    found: list[int] = rows.nonzero().flatten().tolist()
    return found if len(found) <= max(3, _COMMON * len(rows)) else []
