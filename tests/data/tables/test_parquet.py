from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.tables import limits, parquet
from finetune.data.tables.parquet import read_parquet
from finetune.errors import DataError
from tests.helpers.system import report_free_memory


def test_a_parquet_file_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd.DataFrame({"text": ["a"] * 100_000, "label": ["b"] * 100_000}).to_parquet(tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    report_free_memory(monkeypatch, 10_000_000)
    with pytest.raises(DataError, match=r"would take 12,800,000 bytes of memory, of which 9,9\d\d,\d{3}|10,000,\d{3}"):
        read_parquet(tmp_path / "t.parquet")
    report_free_memory(monkeypatch, 20_000_000)
    assert len(read_parquet(tmp_path / "t.parquet")["text"]) == 100_000


@st.composite
def arrow_tables(draw: st.DrawFn) -> pa.Table:
    """Columns of every form that repeats cells: a dictionary, and lists and structures of one."""
    word = st.none() | st.sampled_from(["a", "bb", "c" * 50])
    image = st.none() | st.fixed_dictionaries({"bytes": st.sampled_from([b"x", b"yy"]), "path": word})
    kinds = {"word": word, "list": st.none() | st.lists(word, max_size=3), "image": image, "number": st.integers(0, 3)}
    rows = draw(st.integers(1, 20))
    columns = {name: draw(st.lists(kind, min_size=rows, max_size=rows)) for name, kind in kinds.items()}
    types = [("word", pa.string()), ("list", pa.list_(pa.string())), ("number", pa.int64())]
    types.append(("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    table = pa.table(columns, pa.schema(types))
    words = table.column("word")
    return table.append_column("category", words.dictionary_encode()).append_column("a.b", words)


@given(arrow_tables(), st.integers(1, 7), st.integers(1, 7))
def test_a_parquet_file_is_read_in_parts(table: pa.Table, group: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "t.parquet")
        pyarrow.parquet.write_table(table, path, row_group_size=group)
        patch.setattr(parquet, "_MAX_ROWS_AT_ONCE", rows)
        assert read_parquet(path) == table.to_pydict()


def test_a_column_whose_name_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"textual": ["a", "a"], "label": [0, 1]}).to_parquet(path)
    path.write_bytes(path.read_bytes().replace(b"textual", b"textua\xff"))
    with pytest.raises(DataError, match=r"t\.parquet' cannot be read as Parquet: "):
        read_parquet(path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_file_that_repeats_a_long_cell_is_not_unpacked(
    tmp_path: Path, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, long = 400, "x" * 100_000
    cells = [{"bytes": long, "path": ""}] * rows if nested else [long] * rows
    table = pa.table({"text": cells, "label": [0] * rows})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", dictionary_pagesize_limit=10**9, compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    monkeypatch.setattr(limits, "free_memory", lambda device: 10_000_000)
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        found = read_parquet(tmp_path / "t.parquet")["text"]
    finally:
        pa.set_memory_pool(usual)
    assert found == cells
    assert nested or len({*map(id, found)}) == 1
    assert pool.max_memory() < 10_000_000
