"""Fine-tune an image classifier on a folder with one subfolder per class.

    python examples/images.py dogs/train --val dogs/val --epochs 5

Without a folder, the script generates colored images and trains from random weights, offline and in seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune import FineTuner


def generate_images(folder: Path, per_class: int = 20) -> Path:
    """Write noisy images of three colors, one subfolder per color."""
    rng = np.random.default_rng(0)
    for name, color in {"blue": (60, 80, 200), "green": (60, 180, 80), "red": (200, 70, 60)}.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.clip(rng.normal(color, 40, (48, 48, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?", type=Path, help="folder with one subfolder per class")
    parser.add_argument("--val", type=Path, help="validation folder; by default a fifth of the data is held out")
    parser.add_argument("--model", default="resnet18", help="model name, such as timm/vit_small_patch16_224")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("images.safetensors"))
    options = parser.parse_args()

    train = options.train or generate_images(Path(tempfile.mkdtemp()) / "train")
    classes = sorted(folder.name for folder in train.iterdir() if folder.is_dir())

    # Train the new head first, then everything at a tenth of the rate.
    settings: dict[str, Any] = (
        {} if options.train else {"weights": None, "preprocessing": {"crop_size": (32, 32), "resize_size": 32}}
    )
    tuner = FineTuner(options.model, **settings).replace_head(len(classes))
    tuner.fit(train, options.val, epochs=options.epochs, batch_size=options.batch_size, strategy="lp_ft")
    print(tuner.summary())
    print(f"validation accuracy: {tuner.history[-1]['val_accuracy']:.3f}")

    # The checkpoint carries class names and preprocessing, so it predicts anywhere.
    tuner.save_checkpoint(options.out)
    image = next((train / classes[0]).iterdir())
    probabilities = FineTuner.load_checkpoint(options.out).predict(image).softmax(1)[0]
    print({name: round(value, 3) for name, value in zip(classes, probabilities.tolist(), strict=True)})


if __name__ == "__main__":
    main()
