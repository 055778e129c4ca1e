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
from finetune.data.preprocessing.images import Preprocessing
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
        single: Whether a sample has one answer, not a map or a sequence of them.
    """

    file: str
    format: str
    task: str | None
    inputs: Sequence[Input]
    preprocessing: InputPreprocessing | None = None
    tokenizer: str = ""
    truncation: str = "right"
    single: bool = True

    @property
    def possible(self) -> bool:
        """Whether a script without transformers can prepare the inputs and print the answers."""
        if not self.single:
            return False
        if isinstance(self.preprocessing, TextPreprocessing):
            return bool(self.tokenizer) and all(each.name in _TOKENS for each in self.inputs)
        return self.preprocessing is None or type(self.preprocessing) is Preprocessing

    def source(self, name: str) -> str:
        """Return the code of the script, whose file is called `name`."""
        if isinstance(self.preprocessing, Preprocessing):
            item, package, prepare = "picture", "pillow", _pictures(self.preprocessing)
        elif isinstance(self.preprocessing, TextPreprocessing):
            item, package, prepare = "text", "tokenizers", self._texts(self.preprocessing)
        else:
            item, package, prepare = "file", "", self._arrays()
        library = {ONNX: "onnxruntime", TORCH: "torch"}[self.format]
        words = {
            "file": self.file, "name": name, "item": item, "ITEM": item.upper(), "prepare": prepare,
            "answer": {CLASSIFICATION: _BEST, BINARY: _TWO, MULTILABEL: _LABELS}.get(str(self.task), _VALUES),
            "most": "[:5]" if self.task == CLASSIFICATION else "",
            "packages": " ".join(filter(None, (library, "numpy", package))),
            "standard": "from contextlib import suppress\n" if package == "pillow" else "",
            "imports": "".join(sorted([f"import {library}\n", "import numpy as np\n"])) + _IMPORTS[package],
            "load": Template({ONNX: _LOAD_ONNX, TORCH: _LOAD_TORCH}[self.format]).substitute(file=self.file),
            "run": {ONNX: _RUN_ONNX, TORCH: _RUN_TORCH}[self.format],
            "thresholds": {ONNX: 'json.loads(facts["thresholds"])', TORCH: 'facts["thresholds"]'}[self.format],
            "rare": _RARE if package == "pillow" else "",
        }  # fmt: skip
        return Template(Template(_SCRIPT).safe_substitute(words)).substitute(words)

    def _texts(self, preprocessing: TextPreprocessing) -> str:
        columns = [f'"{each.name}": np.array([encoded.{_TOKENS[each.name]}], np.int64)' for each in self.inputs]
        return Template(_TEXTS).safe_substitute(
            tokenizer=self.tokenizer, length=preprocessing.max_length, side=self.truncation, columns=", ".join(columns)
        )

    def _arrays(self) -> str:
        one = len(self.inputs) == 1
        columns = [
            f'"{each.name}": found{"" if one else f"""["{each.name}"]"""}[None].astype("{each.dtype}")'
            for each in self.inputs
        ]
        return Template(_ARRAYS).safe_substitute(suffix=".npy" if one else ".npz", columns=", ".join(columns))


def _pictures(preprocessing: Preprocessing) -> str:
    """Return the function that makes bytes of a picture, as `Preprocessing.geometry` does."""
    height, width = preprocessing.crop_size
    rgb, contain = preprocessing.channels == 3, preprocessing.resize_mode == "contain"
    fill = tuple(round(255 * mean) for mean in preprocessing.mean)
    words = {
        "mode": "RGB" if rgb else "L", "width": width, "height": height, "fill": fill if rgb else fill[0],
        "axes": "None" if rgb else "None, :, :, None",
    }  # fmt: skip
    lines = _PICTURES + _resize(preprocessing) + _CORNER + (_PADDED if contain else _CROPPED)
    return Template(lines).safe_substitute(words)


def _resize(preprocessing: Preprocessing) -> str:
    """Return the lines that resize a picture."""
    size, mode = preprocessing.resize_size, preprocessing.resize_mode
    if size is None:
        return ""
    if isinstance(size, int):
        lines = Template(_SHORTER).substitute(side=size)
    elif mode == "stretch":
        lines = f"    size = ({size[1]}, {size[0]})\n"
    else:
        best = "min" if mode == "cover" else "max"
        lines = Template(_RATIO).substitute(height=size[0], width=size[1], best=best)
    return lines + Template(_RESIZED).substitute(filter=preprocessing.interpolation.partition("-")[0].upper())


_SCRIPT = '''"""Print the answers of $file: python $name $ITEM ...

Written with $file by torch-finetune. It needs: pip install $packages
"""

import json
import sys
${standard}from pathlib import Path

${imports}
${load}

${prepare}

def classify($item):
    """Return each class with its probability, the most probable first."""
    scores = ${run}
${answer}
${rare}
if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    for $item in sys.argv[1:]:
        answers = list(classify($item).items())${most}
        print($item, *[f"{name} {score:.4f}" for name, score in answers] or ["none"], sep="  ")
'''

_LOAD_ONNX = """session = onnxruntime.InferenceSession(Path(__file__).with_name("$file"))
facts = session.get_modelmeta().custom_metadata_map
classes = json.loads(facts["classes"])
"""

_LOAD_TORCH = """extra = {"finetune.json": ""}
model = torch.export.load(Path(__file__).with_name("$file"), extra_files=extra).module()
facts = json.loads(extra["finetune.json"])
classes = facts["classes"]
"""

_RUN_ONNX = "session.run(None, prepare($item))[0].ravel()"

_RUN_TORCH = "model(*map(torch.tensor, prepare($item).values())).detach().numpy().ravel()"

_PICTURES = '''def prepare(picture):
    """Return a picture as bytes [1, H, W, C], resized and cropped as in training."""
    with Image.open(picture) as opened:
        image = plain(opened).convert("$mode")
'''

_SHORTER = """    size = [int($side * side / min(image.size)) for side in image.size]
"""

_RATIO = """    ratio = $best(image.width / $width, image.height / $height)
    size = [max(1, round(side / ratio)) for side in image.size]
"""

_RESIZED = """    image = image.resize(size, Image.Resampling.$filter)
"""

_CORNER = """    spare = [side - crop for side, crop in zip(image.size, ($width, $height))]
    left, top = (round(pixels / 2) if pixels > 0 else int(pixels / 2) for pixels in spare)
"""

_CROPPED = """    image = image.crop((left, top, left + $width, top + $height))
    return {"images": np.asarray(image)[$axes]}
"""

_PADDED = """    canvas = Image.new("$mode", ($width, $height), $fill)
    canvas.paste(image, (-left, -top))
    return {"images": np.asarray(canvas)[$axes]}
"""

_RARE = '''
def plain(image):
    """Return a picture upright, in a mode that Pillow converts to any other."""
    with suppress(Exception):  # damaged metadata
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        return eight_bits(image)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    return image.convert({"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode, image.mode))


def eight_bits(image):
    """Return a picture of more than 8 bits with 8, scaled by the range of values that its file has."""
    values, floats, tags = np.asarray(image), image.mode == "F", getattr(image, "tag_v2", {})
    low, high = float(values.min()), float(values.max())
    stated = [float(np.ravel(tags[tag])[0]) for tag in (281, 341) if tag in tags][:1]
    tops = [*filter(None, stated), *((1,) if floats and high < 16 else (255, 4095, 65535))]
    black, white = next(((0, top) for top in tops if 0 <= low and high <= top), (low, high))
    if floats and -1 <= low < 0 and high <= 1:
        black, white = -1, 1
    if black == 0 and white in (255, 4095, 65535) and not floats:
        return Image.fromarray((values.astype(int) * 256 // (white + 1)).astype(np.uint8))
    unit = (values.astype(float) - black) / max(white - black, 1e-300)
    return Image.fromarray((255 * unit.clip(0, 1)).round().astype(np.uint8))

'''

_TEXTS = '''tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("$tokenizer")))
tokenizer.no_padding()
tokenizer.enable_truncation($length, direction="$side")


def prepare(text):
    """Return the tokens of a text, each input int64 [1, T]."""
    encoded = tokenizer.encode(text)
    return {$columns}
'''

_ARRAYS = '''def prepare(file):
    """Return the inputs of one sample from a file $suffix of NumPy."""
    found = np.load(file)
    return {$columns}
'''

_BEST = """    return {classes[index]: float(scores[index]) for index in np.argsort(-scores, kind="stable")}
"""

_TWO = """    no, yes = classes
    both = {yes: float(scores[0]), no: float(1 - scores[0])}
    return both if both[yes] >= $thresholds[0] else {no: both[no], yes: both[yes]}
"""

_LABELS = """    least = $thresholds
    order = np.argsort(-scores, kind="stable")
    return {classes[index]: float(scores[index]) for index in order if float(scores[index]) >= least[index]}
"""

_VALUES = """    return {str(name): float(score) for name, score in zip(classes or range(scores.size), scores)}
"""
