"""Messages about tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas

from finetune import Table
from finetune.data.sources.open_source import open_source
from tests.messages.material import X, advised, case, error, fit, image, of_images, tuner, y


def rows_of(tmp: Path, end: str = "", names: tuple[str, str] = ("cat", "dog")) -> list[str]:
    """Return the path and the label of eight images, as rows of a table."""
    return [f"{image(tmp / 'images' / f'{k}.png', 20 * k + 20)},{names[k % 2]}{end}" for k in range(8)]


def table(tmp: Path, header: str, rows: list[str], name: str = "pets.csv") -> Path:
    (tmp / name).write_text("\n".join([header, *rows]), encoding="utf-8")
    return tmp / name


def fits(data: Any, outputs: int = 2) -> None:
    """Check that a model trains on the table."""
    fit(of_images(outputs), data, val=False)


def refused(data: Any) -> str:
    return error(lambda: fits(data))


@case("The table '{}' does not exist. Correct its path")
def missing_table(tmp: Path) -> str:
    said = refused(Table(tmp / "gone.csv"))
    fits(Table(table(tmp, "path,label", rows_of(tmp))))
    return said


@case("The folder '{}' of the table '{}' does not exist. Correct its path")
def missing_folder_of_a_table(tmp: Path) -> str:
    pets = table(tmp, "path,label", [row.replace(f"{tmp / 'images'}/", "") for row in rows_of(tmp)])
    said = refused(Table(pets, folder=tmp / "gone"))
    fits(Table(pets, folder=tmp / "images"))
    return said


@case("Paths are relative to '{}'. For another folder, pass Table({}, folder=...)")
def paths_in_another_folder(tmp: Path) -> str:
    said = refused(table(tmp, "path,label", [row.replace(f"{tmp / 'images'}/", "") for row in rows_of(tmp)]))
    fits(evaluated(advised(r"pass (Table\(.+\))\.", said).replace("...", repr(str(tmp / "images")))))
    return said


@case("rows of '{}' have no {}, first row {}. Fill them in, or remove them")
def rows_without_a_path(tmp: Path) -> str:
    rows = rows_of(tmp)
    said = refused(table(tmp, "path,label", [",cat", *rows[1:]]))
    fits(table(tmp, "path,label", rows))
    fits(table(tmp, "path,label", rows[1:]))
    return said


@case("Expected the suffix {}, at any depth. Fill it, or leave it out")
def rows_that_name_an_empty_folder(tmp: Path) -> str:
    pets = table(tmp, "path,label", [*rows_of(tmp), "images,dog", "empty,cat"])
    (tmp / "empty").mkdir()
    said = refused(pets)
    image(tmp / "empty" / "0.png")
    fits(pets)
    (tmp / "empty" / "0.png").unlink()
    fits(table(tmp, "path,label", [*rows_of(tmp), "images,dog"]))
    return said


@case("which stands for a missing one")
def labels_for_missing_ones(tmp: Path) -> str:
    rows = rows_of(tmp)
    unlabeled = [rows[0].replace(",cat", ",NA"), *rows[1:]]
    said = refused(table(tmp, "path,label", unlabeled))
    fits(table(tmp, "path,label", rows))
    fits(table(tmp, "path,label", rows[1:]))
    fits(table(tmp, "path,label", [row.replace(",NA", ",unknown") for row in unlabeled]), outputs=3)
    return said


@case("are read as several labels, divided by {}")
def several_labels_in_a_cell(tmp: Path) -> str:
    rows = rows_of(tmp)
    rows[0] += "|dog"
    said = open_source(table(tmp, "path,label", rows)).notes[0]
    fits(tmp / "pets.csv")
    fits(evaluated(advised(r"pass (Table\(.+\))\.", said)), outputs=3)
    return said


@case("If they are several labels, pass Table({}, label_separator={})")
def cells_of_words_that_recur(tmp: Path) -> str:
    cells = ["clear sea", "haze sea", "clear town", "haze town"]
    rows = [f"{row.partition(',')[0]},{cells[k % 4]}" for k, row in enumerate(rows_of(tmp))]
    said = open_source(table(tmp, "path,label", rows)).notes[0]
    fits(evaluated(advised(r"pass (Table\(.+\))\.", said)), outputs=4)
    fits(tmp / "pets.csv", outputs=4)
    return said


@case("If it has no header row, add one")
def table_whose_first_row_is_a_text(tmp: Path) -> str:
    rows = [f"a very {word} film,{label}" for word, label in (("good", "pos"), ("bad", "neg")) * 4]
    long = f"{'a very long review ' * 20},unsure"
    said = error(lambda: open_source(table(tmp, long, rows)))
    assert open_source(table(tmp, "text,label", [long, *rows])).classes == ("neg", "pos", "unsure")
    return said


@case("has several columns called {}. Rename or remove")
def columns_of_one_name(tmp: Path) -> str:
    said = refused(table(tmp, "path,label,label", rows_of(tmp, ",1")))
    fits(table(tmp, "path,label,other", rows_of(tmp, ",1")))
    fits(table(tmp, "path,label", rows_of(tmp)))
    return said


@case("has {} cells in a row, but a table may have {} columns.")
def too_many_columns(tmp: Path) -> str:
    numbers = "\n".join(",".join(["1"] * 20_000) for _ in range(8))
    said = refused(table(tmp, numbers, []))
    fit(tuner(), (X, y))
    return said


@case("The cells are delimited by {}; for another, pass Table(")
def another_delimiter(tmp: Path) -> str:
    rows = [f"{image(tmp / f'{k},a.png')}#{'cat' if k % 2 else 'dog'}" for k in range(8)]
    said = refused(table(tmp, "path#label", rows))
    fits(evaluated(advised(r"pass (Table\(.+\))\.", said).replace("...", "'#'")))
    return said


@case("is not UTF-8 text ({})")
def another_encoding(tmp: Path) -> str:
    rows = rows_of(tmp, names=("Bär", "Hund"))
    pets = table(tmp, "path,label", rows)
    pets.write_text(pets.read_text(encoding="utf-8"), encoding="cp1252")
    said = refused(pets)
    frame = evaluated(advised(r"pass `(.+)`", said))
    assert set(frame["label"]) == {"Bär", "Hund"}
    fits(frame)
    fits(table(tmp, "path,label", rows))
    return said


@case("Pass the pair (X, y) of lists")
def arrays_in_a_column(tmp: Path) -> str:
    arrays = [np.full((9, 9, 3), 20 * k, np.uint8) for k in range(8)]
    frame = pandas.DataFrame({"image": arrays, "label": ["cat", "dog"] * 4})
    said = refused(frame)
    fits(evaluated(advised(r"lists: (\(.+\))\.", said), table=frame))
    return said


# ---------------------------------------------------------------- other formats


def evaluated(code: str, **names: Any) -> Any:
    """Return the data that the code in a message opens."""
    return eval(code, {"pandas": pandas, "datasets": datasets, "Table": Table}, names)


def write_arrow(frame: pandas.DataFrame, path: Path) -> None:
    features = datasets.Features(path=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    written = datasets.Dataset.from_pandas(frame, features=features).rename_column("path", "image")
    written.save_to_disk(path.parent / "saved")
    next((path.parent / "saved").glob("*.arrow")).rename(path)


WRITERS: dict[str, Callable[[pandas.DataFrame, Path], Any]] = {
    "json": lambda frame, path: frame.to_json(path),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "feather": lambda frame, path: frame.to_feather(path),
    "arrow": write_arrow,
}


@case("Pass `pandas.read_json(", "Pass `pandas.read_feather(", "Pass `datasets.Dataset.from_file(")
def files_of_other_formats(tmp: Path) -> str:
    frame = pandas.DataFrame([row.split(",") for row in rows_of(tmp)], columns=["path", "label"])
    said = []
    for suffix, write in WRITERS.items():
        write(frame, tmp / f"pets.{suffix}")
        said.append(refused(tmp / f"pets.{suffix}"))
        fits(evaluated(advised("Pass `(.+)`", said[-1])))
    return " ".join(said)


@case("Save it as CSV in the spreadsheet")
def spreadsheets(tmp: Path) -> str:
    """Follow the half of the advice that needs no package for spreadsheets."""
    said = []
    for suffix in ("xls", "xlsx"):
        (tmp / f"pets.{suffix}").write_bytes(b"")
        said.append(refused(tmp / f"pets.{suffix}"))
    fits(table(tmp, "path,label", rows_of(tmp)))
    return " ".join(said)


@case("If it is a table, rename it to .csv")
def text_files(tmp: Path) -> str:
    text = table(tmp, "path,label", rows_of(tmp), "pets.txt")
    said = refused(text)
    fits(text.rename(tmp / "pets.csv"))
    return said


# ---------------------------------------------------------------- columns


@case("Rename them to 'path' or 'text', and 'label'")
def unclear_columns(tmp: Path) -> str:
    said = refused(table(tmp, "a,b,c", [f"{row},{row % 2},1" for row in range(9)]))
    fits(table(tmp, "path,label,c", rows_of(tmp, ",1")))
    fit(tuner(), (X, y))
    return said


@case("Rename the column to 'label'")
def unclear_label(tmp: Path) -> str:
    said = refused(table(tmp, "path,b,c", rows_of(tmp, ",1")))
    fits(table(tmp, "path,label,c", rows_of(tmp, ",1")))
    return said


@case("Rename the column of class names to 'label'")
def label_columns_of_names(tmp: Path) -> str:
    said = refused(table(tmp, "path,label_a,label_b", rows_of(tmp, ",1")))
    fits(table(tmp, "path,label,b", rows_of(tmp, ",1")))
    return said


@case("are {}, but those of the training data are {}. Give both the same label columns")
def other_label_columns(tmp: Path) -> str:
    rows = rows_of(tmp, ",1", names=("0", "1"))
    model = fit(of_images(2), table(tmp, "path,label_x,label_y", rows), val=False)
    said = error(lambda: model.evaluate(table(tmp, "path,label_x,label_z", rows)))
    model.evaluate(table(tmp, "path,label_y,label_x", rows))
    return said


@case("Expected train, val and test. Replace the cells by these, or remove the column")
def parts_of_another_name(tmp: Path) -> str:
    rows = [f"{row},{'holdout' if k > 5 else 'train'}" for k, row in enumerate(rows_of(tmp))]
    said = refused(table(tmp, "path,label,split", rows))
    fits(table(tmp, "path,label,split", [row.replace("holdout", "val") for row in rows]))
    fits(table(tmp, "path,label", rows_of(tmp)))
    return said
