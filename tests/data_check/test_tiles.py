"""Agreement of tiles: unchanged by light, found in windows, and absent between different pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.data_check.tiles import best_windows, details, refined, same_colors, unit
from tests.data_check.test_duplicates import facts_of_all, photo


def test_units_do_not_change_with_brightness_and_contrast() -> None:
    tile = facts_of_all([photo(0)])["tile"].float()
    assert torch.allclose(unit(tile), unit(0.5 * tile + 30), atol=1e-6)
    assert unit(torch.full((1, 4, 4), 7.0)).abs().max() == 0


def test_details_of_even_light_are_none() -> None:
    assert details(torch.full((1, 32, 32), 80)).abs().max() < 1e-3


def test_details_of_many_tiles_take_the_memory_of_few() -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            self.elements = max(self.elements, result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    tiles = torch.randint(256, (5000, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        found = details(tiles)
    assert largest.elements == tiles.numel()  # the result, and nothing larger
    torch.testing.assert_close(found[[0, 4999]], details(tiles[[0, 4999]]))


def test_a_window_agrees_with_its_whole() -> None:
    whole = photo(1)
    tiles = facts_of_all([whole, whole.crop((7, 5, 90, 66)), photo(2)])["tile"]
    windows, coarse = best_windows(tiles[:1], tiles[1:2])
    light, fine = refined(tiles[:1], tiles[1:2], windows)
    assert coarse > 0.7
    assert light > 0.97
    assert fine > 0.9
    _, fine = refined(tiles[:1], tiles[2:], best_windows(tiles[:1], tiles[2:])[0])
    assert fine < 0.7


def test_refinement_does_not_lose_agreement() -> None:
    tiles = facts_of_all([photo(seed) for seed in range(6)])["tile"]
    windows, coarse = best_windows(tiles[:3], tiles[3:])
    light, _ = refined(tiles[:3], tiles[3:], windows)
    assert (light >= coarse - 1e-6).all()


def test_colors_are_compared_without_brightness() -> None:
    red = torch.tensor([200, 40, 40], dtype=torch.uint8).expand(1, 8, 8, 3)
    assert same_colors(red, red // 2)
    assert not same_colors(red, red.flip(3))
