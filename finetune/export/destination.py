"""`Destination`: the file or folder to write, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import ArgumentError, ExportError, number, one_of
from finetune.export import onnx
from finetune.export.quantize import KINDS
from finetune.files.durable import check_writable, written
from finetune.naming.paths import local_path

ONNX, TORCH, STATE_DICT, PRETRAINED = "onnx", "torch", "state_dict", "pretrained"

# The endings of the files of each format; a folder has none.
SUFFIXES = {ONNX: (".onnx",), TORCH: (".pt2",), STATE_DICT: (".pth", ".pt", ".safetensors"), PRETRAINED: ("",)}

_EXACT, _ROUNDED = 1e-3, 0.05


@dataclass(frozen=True)
class Destination:
    """The file or folder to write.

    Attributes:
        path: Path of the file, or of the folder of the format `"pretrained"`.
        format: Name of the format.
        quantize: Kind of quantization, or None.
        tolerance: Largest difference of a probability; None for the default.
    """

    path: Path
    format: str = ONNX
    quantize: str | None = None
    tolerance: float | None = None

    @classmethod
    def of(cls, path: str | Path, format: str, quantize: str | None, tolerance: float | None) -> Destination:
        """Return a destination that can be written. A path without a suffix gets that of the format.

        Raises:
            ArgumentError: If an argument is invalid, or a package is missing.
            ExportError: If nothing can be written there.
        """
        given, path = path, local_path(path)
        suffixes = SUFFIXES[one_of("format", format, SUFFIXES)]
        if not path.name and suffixes != ("",):
            raise ArgumentError(f"Expected the path of a file to write, such as 'model.onnx', but got {str(given)!r}.")
        if not path.suffix and suffixes != ("",):
            path = path.with_name(f"{path.name}{suffixes[0]}")
        if suffixes != ("",) and path.suffix not in suffixes:
            others = [name for name, known in SUFFIXES.items() if path.suffix in known]
            meant = f", or format={others[0]!r}" if others else ""
            raise ArgumentError(
                f"Expected a path that ends in {' or '.join(suffixes)} for format={format!r}{meant}, but got "
                f"{str(path)!r}."
            )
        if quantize is not None:
            one_of("quantization", quantize, KINDS)
            if format != ONNX:
                raise ArgumentError(f"quantize is onnxruntime's, so it is for format='onnx'. Omit it for {format!r}.")
        if tolerance is not None:
            tolerance = number("tolerance", tolerance, at_least=0)
        if format == ONNX:
            onnx.check_installed()
        destination = cls(path, format, quantize, tolerance)
        destination._check_writable()
        return destination

    @property
    def is_folder(self) -> bool:
        """Whether the format is a folder."""
        return self.format == PRETRAINED

    def beside(self, ending: str) -> Path:
        """Return the path of a file beside the main one, or in the folder."""
        return self.path / ending.removeprefix("_") if self.is_folder else self.path.with_name(self.path.stem + ending)

    def largest_difference(self, *, halves: bool, quantized: bool) -> float | None:
        """Return the largest difference of a probability, or None for any.

        Args:
            halves: Whether the model itself computes in 16 bits.
            quantized: Whether the file is a quantized one.
        """
        if self.tolerance is not None and quantized == (self.quantize is not None):
            return self.tolerance
        if quantized and self.quantize == "int8":
            return None
        return _ROUNDED if halves or quantized else _EXACT

    def write(self, files: Mapping[Path, bytes]) -> None:
        """Write files, each durably. Of new ones, none is left if another cannot be written.

        Raises:
            ExportError: If one cannot be written. An existing file stays intact.
        """
        new: list[Path] = []
        try:
            for path, content in files.items():
                if not path.exists():
                    new.append(path)
                with written(path) as file:
                    file.write(content)
        except BaseException as error:
            for made in new:
                with suppress(OSError):
                    made.unlink()
            if isinstance(error, OSError):
                raise ExportError(f"{path} cannot be written: {error}. Expected the path of a file.") from error
            raise

    def _check_writable(self) -> None:
        path = self.path / "config.json" if self.is_folder else self.path
        missing = [folder for folder in path.parents if not folder.exists()]
        try:
            check_writable(path)
        except (OSError, ValueError) as error:
            raise ExportError(f"{self.path} cannot be written: {error}. Choose another path.") from error
        finally:
            with suppress(OSError):
                for folder in missing:  # the innermost first; they are made again once there is a file for them
                    folder.rmdir()
