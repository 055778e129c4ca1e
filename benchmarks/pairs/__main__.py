"""Train the missing backbones and print the accuracy of each. Optionally draw samples of every pair."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks.pairs import PAIRS
from benchmarks.pairs.backbones import backbone


def main() -> None:
    """Train the missing backbones, and draw samples if requested."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", type=Path, help="path of an image to write, with samples of every pair")
    options = parser.parse_args()
    for network, source in dict.fromkeys((pair.network, pair.source) for pair in PAIRS.values()):
        begun = time.perf_counter()
        _, accuracy = backbone(network, source)
        seconds = time.perf_counter() - begun
        classes = len(source.classes)
        print(f"{network} on {source.name}: {accuracy:.1%} of {classes} classes, {seconds:.0f} s", flush=True)
    if options.draw:
        draw(options.draw)


def draw(path: Path, columns: int = 12) -> None:
    """Write an image with samples of every pair: a row per class, training images left and shifted ones right."""
    blocks = []
    for pair in PAIRS.values():
        data = pair.data(0, shots=columns, test=columns)
        both = [X.view(pair.num_classes, columns, 16, 16) for X, _ in (data.train, data.shifted)]
        block = torch.cat(both, 1).permute(0, 2, 1, 3).reshape(pair.num_classes * 16, -1)
        blocks.append(torch.nn.functional.pad(block, (0, 8, 0, (10 - pair.num_classes) * 16 + 8)))
    half = (len(blocks) + 1) // 2
    blocks += [torch.zeros_like(blocks[0])] * (2 * half - len(blocks))
    sheet = torch.cat([torch.cat(blocks[:half], 1), torch.cat(blocks[half:], 1)])
    pixels = ((sheet / 4 + 0.45) * 255).clamp(0, 255).byte()
    Image.frombytes("L", (sheet.shape[1], sheet.shape[0]), bytes(pixels.flatten().tolist())).save(path)


if __name__ == "__main__":
    main()
