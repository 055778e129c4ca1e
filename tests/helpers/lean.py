"""Import torchmetrics without the packages of its optional parts, whose own import takes several seconds.

For new processes that train on tensors: `import tests.helpers.lean` comes before the first import of torch.
"""

from __future__ import annotations

import sys
from importlib import metadata

from tests.helpers.untraced import import_untraced

_OPTIONAL = ("matplotlib", "scipy", "torchvision", "transformers")


def _import_torchmetrics() -> None:
    version_of, loaded = metadata.version, {name: sys.modules.get(name) for name in _OPTIONAL}

    def version(distribution_name: str) -> str:
        if distribution_name in _OPTIONAL:
            raise metadata.PackageNotFoundError(distribution_name)
        return version_of(distribution_name)

    metadata.version = version
    sys.modules.update(dict.fromkeys(_OPTIONAL))  # type: ignore[arg-type]
    try:
        import_untraced("torch", "torchmetrics")
    finally:
        metadata.version = version_of
        for name, module in loaded.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


if "torchmetrics" not in sys.modules:
    _import_torchmetrics()
