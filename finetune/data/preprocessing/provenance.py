"""Where a preprocessing comes from, and whether the model was trained through it.

A model that was trained on arrays has seen inputs that its user prepared. How an image becomes such an input, only the
user knows, so no preprocessing is made up for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from finetune.data.preprocessing.base import IMAGE, SOUND, TEXT, InputPreprocessing
from finetune.errors import DataError

GIVEN, PUBLISHED, ASSUMED = "given", "published", "assumed"
READY = "ready"

_NOUNS = {IMAGE: "images", TEXT: "texts", SOUND: "audio"}
_FORMS = {IMAGE: "Preprocessing(...)", TEXT: "tokenizer", SOUND: "feature_extractor"}

log = logging.getLogger("finetune")


@dataclass(frozen=True)
class Provenance:
    """The origin of a preprocessing, and the kind of inputs that the model was trained on.

    Attributes:
        origin: `"given"` by the user, `"published"` with the model, or `"assumed"` because it states none.
        trained_on: Kind of raw items that the model was trained on, `"ready"` for inputs that needed no preprocessing,
            or None before training.

    Example:
        >>> Provenance().after_training_on(None)
        Provenance(origin='given', trained_on='ready')
    """

    origin: str = GIVEN
    trained_on: str | None = None

    def after_training_on(self, kind: str | None) -> Provenance:
        """Return the provenance after training on a kind of raw items, or on ready inputs if it is None.

        Ready inputs after raw ones change nothing: they are taken to be prepared in the same way.
        """
        seen = kind or (READY if self.trained_on is None else self.trained_on)
        return replace(self, trained_on=seen)

    def kept(self, known: InputPreprocessing | None) -> InputPreprocessing | None:
        """Return the preprocessing, unless it was assumed and the training went without."""
        return None if self.origin == ASSUMED and self.trained_on == READY else known

    def check(self, kind: str | None, known: InputPreprocessing | None) -> None:
        """Check that raw items of a kind become inputs like those of training.

        Raises:
            DataError: If the model was trained on ready inputs and has no preprocessing.
        """
        if kind is None or self.trained_on != READY:
            return
        ask = f"preprocessing={_FORMS[kind]}"
        if known is None:
            raise DataError(
                f"The model was trained on inputs that were ready for it, so how {_NOUNS[kind]} become such inputs is "
                f"not known. Pass inputs prepared as for training, or the preprocessing that prepared those: "
                f"FineTuner(model, {ask}), load_checkpoint(path, {ask}) or tuner.{ask.replace('=', ' = ')}."
            )
        if self.origin == PUBLISHED:
            log.warning(
                "The model was trained on inputs that were ready for it, and the %s are now prepared as published with "
                "its weights: %s. If the training inputs were prepared in another way, pass FineTuner %s.",
                _NOUNS[kind],
                known,
                ask,
            )


def chosen_preprocessing(
    kind: str | None,
    known: InputPreprocessing | None,
    provenance: Provenance,
    assumed: Callable[[], InputPreprocessing],
) -> tuple[InputPreprocessing | None, Provenance]:
    """Return the preprocessing for a kind of raw items: the known one, or for images without one the assumed one.

    Args:
        kind: Kind of the raw items, or None for ready inputs.
        known: Preprocessing of the model.
        provenance: Where it comes from.
        assumed: Function that returns the preprocessing to assume for images.

    Raises:
        DataError: If the model was trained on ready inputs and has no preprocessing.
    """
    provenance.check(kind, known)
    if known is not None or kind != IMAGE:
        return known, provenance
    made = assumed()
    log.info("preprocessing: none is known for this model, so %s is assumed; preprocessing=... sets another", made)
    return made, replace(provenance, origin=ASSUMED)
