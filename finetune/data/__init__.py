"""From what the user has to batches on the device."""

from finetune.data.audio import AudioPreprocessing
from finetune.data.audit import audit, check_batch_targets
from finetune.data.base import Arrays, Loader, MapDataset, Source, Stream
from finetune.data.batches import Batches
from finetune.data.device import num_samples_of, to_device
from finetune.data.folders import find_split
from finetune.data.inputs import InputPreprocessing
from finetune.data.preprocessing import preprocessing_from_dict, preprocessing_of
from finetune.data.randomness import seed_of, seeded
from finetune.data.raw import PictureFiles, RawItems, WaveFiles
from finetune.data.sources import open_source
from finetune.data.splitting import split
from finetune.data.text import TextPreprocessing
from finetune.data.transforms import Preprocessing, StandardAugmentation, standard_augmentation

__all__ = [
    "Arrays",
    "AudioPreprocessing",
    "Batches",
    "InputPreprocessing",
    "Loader",
    "MapDataset",
    "PictureFiles",
    "Preprocessing",
    "RawItems",
    "Source",
    "StandardAugmentation",
    "Stream",
    "TextPreprocessing",
    "WaveFiles",
    "audit",
    "check_batch_targets",
    "find_split",
    "num_samples_of",
    "open_source",
    "preprocessing_from_dict",
    "preprocessing_of",
    "seed_of",
    "seeded",
    "split",
    "standard_augmentation",
    "to_device",
]
