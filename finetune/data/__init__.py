"""From what the user has to batches on the device."""

from finetune.data.audit import audit, check_batch_targets
from finetune.data.base import Arrays, Loader, MapDataset, PictureFiles, Source, Stream
from finetune.data.batches import Batches
from finetune.data.device import num_samples_of, to_device
from finetune.data.folders import find_split
from finetune.data.randomness import seed_of, seeded
from finetune.data.sources import open_source
from finetune.data.splitting import split
from finetune.data.transforms import Preprocessing, StandardAugmentation, standard_augmentation

__all__ = [
    "Arrays",
    "Batches",
    "Loader",
    "MapDataset",
    "PictureFiles",
    "Preprocessing",
    "Source",
    "StandardAugmentation",
    "Stream",
    "audit",
    "check_batch_targets",
    "find_split",
    "num_samples_of",
    "open_source",
    "seed_of",
    "seeded",
    "split",
    "standard_augmentation",
    "to_device",
]
