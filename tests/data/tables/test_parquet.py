from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.audit import audit
from finetune.data.sources.open_source import open_source
from finetune.data.tables import limits, parquet
from finetune.data.tables.parquet import read_parquet
from finetune.errors import DataError
from tests.helpers.files import tried
from tests.helpers.image_files import picture
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
    monkeypatch.setattr(limits, "free_memory", lambda device: 90_000_000 if nested else 10_000_000)
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        found = read_parquet(tmp_path / "t.parquet")["text"]
    finally:
        pa.set_memory_pool(usual)
    assert found == cells
    assert nested or len({*map(id, found)}) == 1
    assert pool.max_memory() < (30_000_000 if nested else 10_000_000)


@pytest.mark.parametrize("dictionary", [False, True])
def test_lists_that_repeat_a_long_cell_are_refused_before_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool
) -> None:
    words = pa.array(["x" * 100_000] * 400)
    words = words.dictionary_encode() if dictionary else words
    lists = pa.ListArray.from_arrays(pa.array(range(401), pa.int32()), words)
    table = pa.table({"text": lists, "label": ["a", "b"] * 200})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", dictionary_pagesize_limit=10**9, compression="zstd")
    monkeypatch.setattr(limits, "free_memory", lambda device: 40_000_000)  # whatever was read
    with pytest.raises(DataError, match=r"t\.parquet' would take 2\d,\d{3},\d{3} bytes .* 20,000,000 are left for it"):
        read_parquet(tmp_path / "t.parquet")


@pytest.mark.parametrize("column", ["image", "label", "extra"])
def test_a_long_cell_that_rows_share_is_looked_at_once(tmp_path: Path, column: str) -> None:
    rows, file = 4_000, io.BytesIO()  # of which each would take 4 ms or more
    picture(1).save(file, "PNG")
    long = b"x" * 1_000_000 if column != "label" else "x" * 1_000_000
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([long]))
    columns = {"image": [file.getvalue()] * rows, "label": ["a", "b"] * (rows // 2), "extra": ["c"] * rows}
    pyarrow.parquet.write_table(pa.table({**columns, column: shared}), tmp_path / "t.parquet", compression="zstd")
    start = time.process_time()
    tried(lambda path: audit(open_source(path)), tmp_path / "t.parquet")
    assert time.process_time() - start < 5
