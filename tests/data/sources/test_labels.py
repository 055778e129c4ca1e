from __future__ import annotations

import numpy as np
import pytest

from finetune.data.sources.labels import Meaning
from finetune.errors import DataError


def test_encode_reads_numpy_scalars_and_bools() -> None:
    targets, classes = Meaning().encode([np.int64(3), True], str)
    assert (targets.tolist(), classes) == ([1, 0], ("1", "3"))
    with pytest.raises(DataError, match="1 has no label"):
        Meaning().encode(["a", None], str)
