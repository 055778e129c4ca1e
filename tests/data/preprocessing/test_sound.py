"""Sound from files, arrays and audio columns, prepared by feature extractors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from finetune import FineTuner
from finetune.data.loading.batches import Batches
from finetune.data.preprocessing.base import SOUND, Waveform
from finetune.data.preprocessing.presets import preprocessing_from_dict
from finetune.data.preprocessing.sound import SoundPreprocessing
from finetune.data.sources.items import RawItems
from finetune.data.sources.open_source import open_source
from finetune.data.sources.sound_files import SoundFiles, read_waveform
from finetune.errors import ArgumentError, DataError
from tests.helpers.sounds import RATE, write_sound

transformers = pytest.importorskip("transformers")


def make_extractor(**options: Any) -> Any:
    return transformers.Wav2Vec2FeatureExtractor(**{"return_attention_mask": True, **options})


def make_model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(20, 16), conv_kernel=(20, 16), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer", do_stable_layer_norm=True, classifier_proj_size=8, mask_time_prob=0.0,
    )  # fmt: skip
    return transformers.Wav2Vec2ForSequenceClassification(config)


def tone(frequency: float, length: int = 1600) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(length) / RATE).astype(np.float32)


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Return a folder with two classes of four sound files each, beside a table of them."""
    rows = [
        (write_sound(tmp_path / "tones" / label / f"{i}.wav", 20_000 * tone(f + 20 * i, 1600 + 100 * i)), label)
        for label, f in (("high", 2000), ("low", 200))
        for i in range(4)
    ]
    listed = [f"{path.relative_to(tmp_path).as_posix()},{label}" for path, label in rows]
    (tmp_path / "tones.csv").write_text("\n".join(["path,label", *listed]) + "\n")
    return tmp_path / "tones"


# ---------------------------------------------------------------- forms of data


def test_folder_table_list_and_arrays_are_the_same_data(tones: Path) -> None:
    folder = open_source(tones, takes=SOUND)
    table = open_source(tones.with_suffix(".csv"), takes=SOUND)
    paths = sorted(tones.rglob("*.wav"))
    listed = open_source((paths, [path.parent.name for path in paths]))
    arrays = open_source(([read_waveform(path).samples for path in paths], [0] * 4 + [1] * 4), takes=SOUND)
    assert isinstance(folder, SoundFiles)
    assert isinstance(arrays, RawItems)
    assert folder.classes == table.classes == listed.classes == ("high", "low")
    preprocessing = SoundPreprocessing.from_extractor(make_extractor())
    batches = [
        list(Batches(source, batch_size=3, shuffle=False, preprocessing=preprocessing).epoch(0))
        for source in (folder, table, listed, arrays)
    ]
    for other in batches[1:]:
        for (inputs, targets), (same, labels) in zip(batches[0], other, strict=True):
            assert torch.equal(inputs["input_values"], same["input_values"])
            assert torch.equal(targets, labels)


# ---------------------------------------------------------------- errors


def test_other_rates_and_values_are_refused_before_training(tones: Path) -> None:
    tuner = FineTuner(make_model(), preprocessing=make_extractor(), device="cpu")
    other = write_sound(tones / "low" / "other.wav", 20_000 * tone(300), rate=8000)
    with pytest.raises(DataError, match=r"1 of the 9 audio files .*other\.wav.*has 8000 .*expects 16000. Resample"):
        tuner.fit(tones, val=False, progress=False)
    other.write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"other\.wav' cannot be read"):
        tuner.fit(tones, val=False, progress=False)
    with pytest.raises(DataError, match="sample 1: The audio contains NaN"):
        tuner.fit(([tone(1), np.full(400, np.nan, np.float32)], [0, 1]), progress=False)
    with pytest.raises(DataError, match=r"sample 1: Expected audio with one channel.*float32 \[2, 5\]"):
        tuner.fit(([tone(1), np.zeros((2, 5), np.float32)], [0, 1]), progress=False)


def test_sound_without_an_extractor_says_what_to_do(tones: Path) -> None:
    with pytest.raises(ArgumentError, match=r"data is audio, but the model has no preprocessing.*feature extractor"):
        FineTuner(make_model(), device="cpu").fit(tones.with_suffix(".csv"), progress=False)


class Column(Dataset[Any]):
    """Items like those of a Hugging Face dataset with an audio column, whose decoder is a package of its own."""

    def __init__(self, rate: int = RATE) -> None:
        self.rate = rate

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        sound = {"array": tone(400 * index + 100, 1600 + index).astype(np.float64), "sampling_rate": self.rate}
        return {"file": "x.wav", "audio": sound, "label": index % 2}


def test_an_audio_column() -> None:
    tuner = FineTuner(make_model(), preprocessing=make_extractor(), device="cpu")
    tuner.fit(Column(), progress=False)
    assert tuner.predict(Column()).shape == (4, 2)
    with pytest.raises(DataError, match="sample 0: The audio has 8000 samples per second, but the model expects 16000"):
        tuner.predict(Column(8000))


def test_rows_of_an_array_are_waveforms() -> None:
    rows = np.stack([tone(100), tone(900), tone(1500)])
    tuner = FineTuner(make_model(), preprocessing=make_extractor(), device="cpu")
    outputs = tuner.predict(rows)
    torch.testing.assert_close(tuner.predict(torch.from_numpy(rows)), outputs)
    torch.testing.assert_close(tuner.predict(list(rows)), outputs)
    torch.testing.assert_close(tuner.predict(list(rows[:2])), outputs[:2])  # not a pair (X, y)
    assert open_source((rows, [0, 1, 0])).kind is None


# ---------------------------------------------------------------- extractors


def test_padding_does_not_change_results() -> None:
    tuner = FineTuner(make_model(), preprocessing=make_extractor(), device="cpu")
    waves = [tone(200, 1600), tone(500, 3200), tone(900, 2400)]
    alone = torch.cat([tuner.predict([wave]) for wave in waves])
    torch.testing.assert_close(tuner.predict(waves), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")  # AST's own default filters
@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("Wav2Vec2FeatureExtractor", "input_values", (2, 3200)),
        ("WhisperFeatureExtractor", "input_features", (2, 80, 3000)),
        ("SeamlessM4TFeatureExtractor", "input_features", (2, 9, 160)),
        ("ASTFeatureExtractor", "input_values", (2, 1024, 128)),
    ],
)
def test_every_extractor_pads_as_it_needs(name: str, key: str, shape: tuple[int, ...]) -> None:
    made = SoundPreprocessing.from_extractor(getattr(transformers, name)())
    again = preprocessing_from_dict(made.to_dict())
    assert again == made
    inputs = again.collate([again.prepare(tone(200, 1600)), again.prepare(Waveform(tone(500, 3200), RATE))])
    assert tuple(inputs[key].shape) == shape


@pytest.mark.usefixtures("offline")
def test_a_sound_classifier_from_folder_to_checkpoint(tones: Path, tmp_path: Path) -> None:
    tuner = FineTuner(make_model(), preprocessing=make_extractor(), device="cpu")
    tuner.fit(tones, tones, epochs=2, progress=False)
    file = tuner.save_checkpoint(tmp_path / "m.safetensors")
    again = FineTuner.load_checkpoint(file, model=make_model(), device="cpu")
    assert again.classes == ("high", "low")
    assert torch.equal(again.predict(tones), tuner.predict(tones))
    assert torch.equal(again.predict(sorted(tones.rglob("*.wav"))), tuner.predict(tones))


def test_the_representation_is_a_line() -> None:
    preprocessing = SoundPreprocessing.from_extractor(make_extractor())
    assert repr(preprocessing) == f"SoundPreprocessing({type(make_extractor()).__name__}, rate={preprocessing.rate})"
