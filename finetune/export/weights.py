"""Weights that torchvision, timm and transformers load back: a state dict, or a folder of `save_pretrained`."""

from __future__ import annotations

import copy
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.presets import from_image_processor, from_timm
from finetune.data.preprocessing.sound import SoundPreprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.display.silence import quiet
from finetune.errors import ArgumentError, ExportError
from finetune.export.program import cause
from finetune.export.subject import Subject
from finetune.model.families import family_of
from finetune.model.freezing import eval_mode
from finetune.model.weights import load_state, read_weights

Files = dict[str, bytes]

_NO_CONFIG = "timm has no data config for its preprocessing; that in config.json is the published one"


def state_dict(subject: Subject, name: str, facts: Mapping[str, Any]) -> tuple[Files, nn.Module]:
    """Return the file of the weights, and a model that has read them from it.

    Args:
        subject: The model.
        name: Name of the file.
        facts: Facts for the metadata of a safetensors file.

    Raises:
        ExportError: If the state of the model has more than tensors.
    """
    model = subject.copied
    state = model.state_dict()
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise ExportError(
            f"The state of {subject.name} has values that are no tensors: {', '.join(strange[:3])}. Save a checkpoint "
            f"with save_checkpoint."
        )
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}  # tied weights, each for itself
    if Path(name).suffix == ".safetensors":
        content = safetensors.torch.save(state, {"format": "pt", "finetune": json.dumps(facts)})
    else:
        file = io.BytesIO()
        torch.save(state, file)
        content = file.getvalue()
    return {name: content}, _reread(model, name, content)


def _reread(model: nn.Module, name: str, content: bytes) -> nn.Module:
    """Return a copy of a model with the weights from the content of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        state = read_weights(path)
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for value in blank.state_dict().values():
            value.zero_()  # or a weight that was left out would not be missed
    load_state(blank, state)
    return blank


def pretrained(subject: Subject) -> tuple[Files, nn.Module, list[str]]:
    """Return the files of a folder, a model that its own library has read from them, and notes on what is missing.

    Raises:
        ExportError: If the library of the model cannot save or load it.
    """
    model: Any = subject.copied
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        try:
            if hasattr(type(model), "from_pretrained") and callable(getattr(model, "save_pretrained", None)):
                family_of(model).tell_task(model, subject.task.kind, subject.classes)
                model.save_pretrained(folder)
                loaded = type(model).from_pretrained(folder)
                processor, notes = _processor_files(subject.preprocessing)
            elif getattr(model, "pretrained_cfg", None) and family_of(model).prefix == "timm/":
                loaded, notes = _with_timm(model, subject, folder)
                processor = {}
            else:
                raise ExportError(
                    f"{subject.name} has no save_pretrained, which models of transformers have, and is none of timm's. "
                    f"Export its weights with format='state_dict'."
                )
        except ExportError:
            raise
        except Exception as error:  # each library has its own
            raise ExportError(
                f"{subject.name} cannot be saved by its library: {cause(error)}. Export its weights with "
                f"format='state_dict'."
            ) from error
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files_in(folder)}
    eval_mode(loaded)
    return files | processor, loaded, notes


def _with_timm(model: Any, subject: Subject, folder: str) -> tuple[nn.Module, list[str]]:
    import timm
    from timm.models import save_for_hf

    config, notes = _timm_config(subject.preprocessing)
    about = {} if subject.classes is None else {"label_names": list(subject.classes)}
    try:
        save_for_hf(model, folder, model_config=about, safe_serialization=True, data_config=config)
    except ValueError:  # it does not fit the size that the model was built for
        save_for_hf(model, folder, model_config=about, safe_serialization=True)
        notes = [_NO_CONFIG]
    return timm.create_model(f"local-dir:{folder}", pretrained=True), notes


def _timm_config(preprocessing: InputPreprocessing | None) -> tuple[dict[str, Any] | None, list[str]]:
    """Return timm's data config for a preprocessing, or a note that it has none."""
    if not isinstance(preprocessing, Preprocessing):
        return None, []
    crop, resize = preprocessing.crop_size, preprocessing.resize_size
    side = resize if isinstance(resize, int) else resize[0] if resize is not None else crop[0]
    modes = {"stretch": "squash", "cover": "center", "contain": "border"}
    config = {
        "input_size": (preprocessing.channels, *crop),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
        "crop_pct": crop[0] / side,
        "crop_mode": "center" if isinstance(resize, int) else modes[preprocessing.resize_mode],
    }
    exact = preprocessing.channels == 3 and from_timm(config) == replace(preprocessing, bgr=False)
    if exact and not preprocessing.bgr:
        return config, []
    return None, [_NO_CONFIG]


def _processor_files(preprocessing: InputPreprocessing | None) -> tuple[Files, list[str]]:
    """Return the files of a tokenizer, feature extractor or image processor, or a note that there are none."""
    if isinstance(preprocessing, (TextPreprocessing, SoundPreprocessing)):
        return dict(preprocessing.files), []
    if not isinstance(preprocessing, Preprocessing):
        return {}, []
    try:
        processor = _image_processor(preprocessing)
        if from_image_processor(processor) != preprocessing:
            raise ArgumentError("its result differs")
    except Exception:  # whatever transformers cannot represent
        return {}, ["transformers has no image processor for its preprocessing, so the folder has none"]
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files_in(folder)}, []


def _image_processor(preprocessing: Preprocessing) -> Any:
    from PIL import Image
    from transformers import CLIPImageProcessor

    resize, (height, width) = preprocessing.resize_size, preprocessing.crop_size
    if preprocessing.resize_mode != "stretch":
        raise ArgumentError("transformers resizes to the shorter side or to a size")
    size = (
        {"shortest_edge": resize}
        if isinstance(resize, int)
        else dict(zip(("height", "width"), resize or (), strict=False))
    )
    return CLIPImageProcessor(
        do_resize=resize is not None,
        size=size or None,
        resample=Image.Resampling[preprocessing.interpolation.upper()],
        crop_size={"height": height, "width": width},
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
    )


def _files_in(folder: str) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())
