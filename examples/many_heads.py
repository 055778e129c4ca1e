"""Train many heads on one frozen backbone: the first computes its features, all others reuse them.

    python examples/many_heads.py attributes.csv --model resnet50 --cache features

The CSV file has a column `path` and one column of class names per head. Without a file, the script generates shapes
with three attributes and uses random weights, offline and in seconds.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from finetune import FineTuner

COLORS, SHAPES, SIZES = ("red", "green", "blue"), ("circle", "square"), {"small": 8, "large": 16}


def generate_shapes(folder: Path, copies: int = 4) -> Path:
    """Draw every color, shape and size at several places, and list them in a CSV file."""
    rows = ["path,color,shape,size"]
    for color, shape, size, copy in itertools.product(COLORS, SHAPES, SIZES, range(copies)):
        image, radius, x = Image.new("RGB", (64, 64), "white"), SIZES[size], 24 + 4 * copy
        draw = ImageDraw.Draw(image)
        (draw.ellipse if shape == "circle" else draw.rectangle)(
            (x - radius, 16, x + radius, 16 + 2 * radius), fill=color
        )
        path = folder / f"{color}_{shape}_{size}_{copy}.png"
        image.save(path)
        rows.append(f"{path.name},{color},{shape},{size}")
    table = folder / "attributes.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, help="CSV file with the column path and one per head")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--cache", type=Path, help="folder for the features, kept for later runs")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    table = options.table or generate_shapes(Path(tempfile.mkdtemp()))
    cache = options.cache or Path(tempfile.mkdtemp())
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [table.parent / row.pop("path") for row in rows]

    settings: dict[str, Any] = (
        {} if options.table else {"weights": None, "preprocessing": {"crop_size": (64, 64), "resize_size": 64}}
    )
    training: dict[str, Any] = {"epochs": options.epochs, "lr": 1e-2, "batch_size": options.batch_size}
    for attribute in rows[0]:
        labels = [row[attribute] for row in rows]
        tuner = FineTuner(options.model, **settings).replace_head(len({*labels})).freeze()
        start = time.perf_counter()
        tuner.fit((paths, labels), val=0.25, augment=False, cache=cache, progress=False, **training)
        seconds = time.perf_counter() - start
        tuner.save_checkpoint(cache / f"{attribute}.safetensors")
        print(f"{attribute}: validation accuracy {tuner.history[-1]['val_accuracy']:.2f} after {seconds:.1f} s")


if __name__ == "__main__":
    main()
