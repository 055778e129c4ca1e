"""Read tables from Parquet files, whose cells may repeat and be compressed a thousand times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.tables.limits import BYTES_PER_CELL, check_memory, check_names, check_width, memory_left
from finetune.errors import DataError
from finetune.files.regular import opened

_MAX_ROWS_AT_ONCE = 65_536
_BYTES_AT_ONCE = 1 << 30


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """Read the columns of a Parquet file. A cell that it repeats is kept in memory once.

    Raises:
        DataError: If the file cannot be read, has too many columns, or would not fit into memory.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"'{path}' is a Parquet file; reading it needs pyarrow. "
            "Run `pip install 'torch-finetune[parquet]'`, or save the table as CSV."
        ) from error
    try:
        with opened(path) as file:
            metadata = pyarrow.parquet.read_metadata(file)
            check_width(metadata.num_columns, f"'{path}'")
            chunks = [_chunks_of(metadata, k) for k in range(metadata.num_columns)]
            size = _size_of(metadata, chunks)
            check_memory(size, path)
            limit = max(size, memory_left() // 2)  # before the first cell, of which lists may repeat any number
            table = pyarrow.parquet.ParquetFile(file, metadata=metadata, read_dictionary=_repeated(chunks))
            check_names(list(table.schema_arrow.names), f"'{path}'")
            columns: dict[str, list[Any]] = {name: [] for name in table.schema_arrow.names}
            taken = 0
            for batch in table.iter_batches(_rows_at_once(metadata, chunks)):
                taken += sum(map(_size_in_python, batch.columns))
                check_memory(taken, path, limit)
                for name, cells in zip(columns, batch.columns, strict=True):
                    columns[name].extend(_cells_of(cells))
    except (pyarrow.ArrowException, OSError, UnicodeError, MemoryError) as error:
        raise DataError(f"'{path}' cannot be read as Parquet: {str(error) or 'out of memory'}") from error
    return columns


def _chunks_of(metadata: Any, column: int) -> list[Any]:
    """Return the footer's facts on a column of a Parquet file, for each group of rows."""
    return [metadata.row_group(k).column(column) for k in range(metadata.num_row_groups)]


def _size_of(metadata: Any, chunks: Sequence[Sequence[Any]]) -> int:
    """Return the bytes that a Parquet file, which may be compressed a thousand times, takes in memory at least."""
    widths = [max(metadata.schema.column(k).length or 0, 0) for k in range(metadata.num_columns)]
    values = [max(metadata.num_rows, sum(chunk.num_values for chunk in column)) for column in chunks]
    cells = sum(n * (BYTES_PER_CELL + width) for n, width in zip(values, widths, strict=True))
    return int(max(cells, sum(chunk.total_uncompressed_size for column in chunks for chunk in column)))


def _repeated(chunks: Sequence[Sequence[Any]]) -> list[str]:
    """Return the columns to read as indices into a dictionary. Unpacked, a kilobyte of them may take a terabyte."""
    return [column[0].path_in_schema for column in chunks if _has_dictionary(column) and not _is_nested(column)]


def _rows_at_once(metadata: Any, chunks: Sequence[Sequence[Any]]) -> int:
    """Return how many rows fit into memory, even if each repeats the whole dictionary of its nested columns."""
    size = sum(chunk.total_uncompressed_size for column in chunks for chunk in column)
    nested = [column for column in chunks if _has_dictionary(column) and _is_nested(column)]
    longest = sum(max(chunk.total_uncompressed_size for chunk in column) for column in nested)
    honest = _BYTES_AT_ONCE * metadata.num_rows // max(size, 1)
    return int(max(1, min(_MAX_ROWS_AT_ONCE, honest, memory_left() // 8 // max(longest, 1))))


def _has_dictionary(column: Sequence[Any]) -> bool:
    return any(chunk.has_dictionary_page for chunk in column)


def _is_nested(column: Sequence[Any]) -> bool:
    return "." in column[0].path_in_schema  # Arrow cannot read a dictionary within lists


def _size_in_python(array: Any, within: bool = False) -> int:
    """Return the bytes of an Arrow array as Python objects, for which a dictionary within lists is unpacked."""
    if hasattr(array, "flatten"):
        parts = array.flatten()
        return sum(_size_in_python(part, within=True) for part in (parts if isinstance(parts, list) else [parts]))
    return int((array.dictionary_decode() if within and hasattr(array, "dictionary") else array).nbytes)


def _cells_of(array: Any) -> list[Any]:
    """Return the cells of an Arrow array. Those of a dictionary are shared by the rows that repeat them."""
    if not hasattr(array, "dictionary"):
        return list(array.to_pylist())
    values = array.dictionary.to_pylist()
    return [None if k is None else values[k] for k in array.indices.to_pylist()]
