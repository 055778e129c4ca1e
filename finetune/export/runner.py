"""The script beside an exported file: it prepares inputs as in training, and prints answers as `classify` does.

It is written for one file, with only those lines that its preprocessing and its task need, as a pattern for programs in
other languages. Decoding, orientation, color modes, resizing and cropping happen there with Pillow, because no graph
repeats Pillow's resizing exactly: onnxruntime's own, for the same filters, differs by up to 11 of 255 levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.preprocessing.images import MOST_PIXELS, Preprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL
from finetune.export.deployed import Input
from finetune.export.destination import ONNX, TORCH

_IMPORTS = {
    "": "",
    "pillow": "from PIL import Image, ImageCms, ImageOps\n",
    "tokenizers": "from tokenizers import Tokenizer\n",
}
_TOKENS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass(frozen=True)
class Runner:
    """The script for a file.

    Attributes:
        file: Name of the file.
        format: `"onnx"` or `"torch"`.
        task: Kind of the task, or None.
        inputs: Inputs of the file.
        preprocessing: Preprocessing that prepares them, or None for arrays that are ready.
        tokenizer: Name of the file of the tokenizer beside it.
        truncation: Side at which long texts are cut, `"right"` or `"left"`.
    """

    file: str
    format: str
    task: str | None
    inputs: Sequence[Input]
    preprocessing: InputPreprocessing | None = None
    tokenizer: str = ""
    truncation: str = "right"

    @property
    def possible(self) -> bool:
        """Whether a script without transformers can prepare the inputs."""
        if isinstance(self.preprocessing, TextPreprocessing):
            return bool(self.tokenizer) and all(each.name in _TOKENS for each in self.inputs)
        return self.preprocessing is None or type(self.preprocessing) is Preprocessing

    def source(self, name: str) -> str:
        """Return the code of the script, whose file is called `name`."""
        if isinstance(self.preprocessing, Preprocessing):
            what, package, prepare = "picture", "pillow", _pictures(self.preprocessing)
        elif isinstance(self.preprocessing, TextPreprocessing):
            what, package, prepare = "text", "tokenizers", self._texts(self.preprocessing)
        else:
            what, package = "arrays", ""
            prepare = Template(_ARRAYS).substitute(names=[each.name for each in self.inputs])
        library = {ONNX: "onnxruntime", TORCH: "torch"}[self.format]
        words = {
            "file": self.file, "name": name, "what": what, "WHAT": what.upper(), "prepare": prepare,
            "answer": {CLASSIFICATION: _BEST, BINARY: _TWO, MULTILABEL: _LABELS}.get(str(self.task), _VALUES),
            "packages": " ".join(filter(None, (library, "numpy", package))),
            "imports": "".join(sorted([f"import {library}\n", "import numpy as np\n"])) + _IMPORTS[package],
            "standard": "from contextlib import suppress\n" if package == "pillow" else "",
            "load": Template({ONNX: _ONNX, TORCH: _TORCH}[self.format]).substitute(file=self.file),
        }  # fmt: skip
        return Template(_SCRIPT).substitute(words)

    def _texts(self, preprocessing: TextPreprocessing) -> str:
        columns = ", ".join(f"encoded.{_TOKENS[each.name]}" for each in self.inputs)
        return Template(_TEXTS).substitute(
            tokenizer=self.tokenizer, length=preprocessing.max_length, side=self.truncation, columns=columns
        )


def _pictures(preprocessing: Preprocessing) -> str:
    """Return the functions that make bytes of a picture, as `Preprocessing.geometry` does."""
    height, width = preprocessing.crop_size
    rgb, contain = preprocessing.channels == 3, preprocessing.resize_mode == "contain"
    fill = tuple(round(255 * mean) for mean in preprocessing.mean) if contain else (0,) * preprocessing.channels
    return Template(_PICTURES).substitute(
        resize=_resize(preprocessing),
        mode="RGB" if rgb else "L",
        crop=(width, height),
        fill=fill if rgb else fill[0],
        pixels="np.asarray(canvas)[None]" if rgb else "np.asarray(canvas)[None, :, :, None]",
    )


def _resize(preprocessing: Preprocessing) -> str:
    """Return the lines that resize a picture."""
    size, mode, crop = preprocessing.resize_size, preprocessing.resize_mode, preprocessing.crop_size
    if size is None:
        return ""
    if isinstance(size, int):
        lines = Template(_SHORTER).substitute(side=size)
    elif mode == "stretch":
        lines = f"    width, height = {size[1]}, {size[0]}\n"
    else:
        best = "min" if mode == "cover" else "max"
        lines = Template(_RATIO).substitute(height=size[0], width=size[1], best=best)
    most = max(MOST_PIXELS, 4 * crop[0] * crop[1])
    small = isinstance(size, tuple) and mode in ("stretch", "contain") and size[0] * size[1] <= most
    filter = preprocessing.interpolation.partition("-")[0].upper()
    return lines + Template(_RESIZED if small else _GUARDED).substitute(filter=filter, most=most)


_SCRIPT = '''"""Print the answers of $file: python $name $WHAT ...

Written with $file by torch-finetune. It needs: pip install $packages
"""

import json
import sys
${standard}from pathlib import Path

${imports}
${load}

${prepare}
def classify(item):
    """Return each class with its probability, the most probable first."""
    scores = np.atleast_1d(run(*prepare(item))[0])
${answer}

if __name__ == "__main__":
    for $what in sys.argv[1:]:
        answers = list(classify($what).items())[:5]
        print($what, *[f"{name} {score:.4f}" for name, score in answers] or ["none"], sep="  ")
'''

_ONNX = """session = onnxruntime.InferenceSession(Path(__file__).with_name("$file"))
facts = session.get_modelmeta().custom_metadata_map
facts = {name: json.loads(facts[name]) for name in ("classes", "thresholds")}


def run(*inputs):
    return session.run(None, {value.name: each for value, each in zip(session.get_inputs(), inputs)})[0]
"""

_TORCH = """extra = {"finetune.json": ""}
model = torch.export.load(Path(__file__).with_name("$file"), extra_files=extra).module()
facts = json.loads(extra["finetune.json"])


def run(*inputs):
    with torch.no_grad():
        return model(*map(torch.tensor, inputs)).numpy()
"""

_PICTURES = '''def eight_bits(image):
    """Return a picture of more than 8 bits with 8, scaled by the range of values that its file has."""
    values, floats = np.asarray(image), image.mode == "F"
    low, high, tops = float(values.min()), float(values.max()), (255, 4095, 65535)
    stated = [image.tag_v2[tag] for tag in (281, 341) if tag in getattr(image, "tag_v2", {})]
    top = float(np.ravel(stated[0])[0]) if stated else 0
    black, white = low, high
    if top > 0 and 0 <= low <= high <= top:
        black, white = 0, top
    elif floats and low >= -1 and high <= 1:
        black, white = 0 if low >= 0 else -1, 1
    elif low >= 0 and high <= tops[-1] and not (floats and high < 16):
        black, white = 0, min(top for top in tops if high <= top)
    if black == 0 and white in tops and not floats:
        return Image.fromarray((values.astype(np.int64) >> (int(white).bit_length() - 8)).astype(np.uint8))
    unit = (values.astype(np.float64) - black) / max(white - black, np.finfo(np.float64).tiny)
    return Image.fromarray((255 * unit.clip(0, 1)).round().astype(np.uint8))


def prepare(path):
    """Return a picture as bytes [1, H, W, C], resized and cropped as in training."""
    image = Image.open(path)
    image.load()
    with suppress(Exception):  # damaged metadata
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = eight_bits(image)
    elif image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("La", "RGBa", "HSV"):
        image = image.convert({"La": "LA", "RGBa": "RGBA", "HSV": "RGB"}[image.mode])
    image = image.convert("$mode")
    canvas = Image.new("$mode", $crop, $fill)
${resize}    left, top = (round((a - b) / 2) if a > b else -((b - a) // 2) for a, b in zip(image.size, canvas.size))
    canvas.paste(image, (-left, -top))
    return [$pixels]

'''

_SHORTER = """    shorter = min(image.size)
    width, height = int($side * image.width / shorter), int($side * image.height / shorter)
"""

_RATIO = """    ratio = $best(image.height / $height, image.width / $width)
    width, height = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
"""

_RESIZED = """    image = image.resize((width, height), Image.Resampling.$filter)
"""

_GUARDED = """    size, box = (width, height), None
    if width * height > $most:  # then only the part that the crop keeps, as the whole would fill the memory
        size = [min(a, b) for a, b in zip(size, canvas.size)]
        corner = [round((a - b) / 2) for a, b in zip((width, height), size)]
        across, down = image.width / width, image.height / height
        box = (corner[0] * across, corner[1] * down, (corner[0] + size[0]) * across, (corner[1] + size[1]) * down)
    image = image.resize(size, Image.Resampling.$filter, box)
"""

_TEXTS = '''tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("$tokenizer")))
tokenizer.no_padding()
tokenizer.enable_truncation($length, direction="$side")


def prepare(text):
    """Return the tokens of a text, each input int64 [1, T]."""
    encoded = tokenizer.encode(text)
    return [np.array([column], dtype=np.int64) for column in ($columns,)]

'''

_ARRAYS = '''def prepare(path):
    """Return the inputs of one sample from a .npy file, or from an .npz file with the names $names."""
    found = np.load(path)
    return [found[name][None] for name in $names] if path.endswith(".npz") else [found[None]]

'''

_BEST = """    order = np.argsort(-scores, kind="stable")
    return {facts["classes"][index]: float(scores[index]) for index in order}
"""

_TWO = """    no, yes = facts["classes"]
    both = {yes: float(scores[0]), no: float(1 - scores[0])}
    return both if both[yes] >= facts["thresholds"][0] else {no: both[no], yes: both[yes]}
"""

_LABELS = """    above = [index for index, least in enumerate(facts["thresholds"]) if float(scores[index]) >= least]
    return {facts["classes"][index]: float(scores[index]) for index in sorted(above, key=lambda index: -scores[index])}
"""

_VALUES = """    names = facts["classes"] or range(scores.size)
    return {str(name): float(score) for name, score in zip(names, scores.reshape(-1))}
"""
