"""Export a sample of every family in every format, and write a table of how well the files agree with the models.

    python -m benchmarks.export
    python -m benchmarks.export --family timm --jobs 1

An interrupted run resumes. The models are those of the sample of `benchmarks.coverage`, with random weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.coverage.family import FAMILIES, load_family
from benchmarks.coverage.workers import failed, run_jobs, versions
from benchmarks.rows import Row, append_row, read_rows

FORMATS = ("onnx", "torch", "state_dict", "pretrained")
PACKAGES = ("torchvision", "timm", "transformers", "onnx", "onnxscript", "onnxruntime")
CLASSES = 7


def main(arguments: list[str] | None = None) -> int:
    """Export the missing models and write the table."""
    options = _parser().parse_args(arguments)
    rows_file, table_file = options.out / "export.jsonl", options.out / "export.md"
    done = {(row["family"], row["name"]): row for row in read_rows(rows_file)}
    families = [options.family] if options.family else [name for name in FAMILIES if _installed(name)]
    jobs = [(family, name) for family in families for name in load_family(family).sample]
    for row in run_jobs([job for job in jobs if job not in done], options.jobs, options.time_limit, export_all):
        append_row(rows_file, row)
        done[row["family"], row["name"]] = row
        print(row["family"], row["name"], row.get("formats") or row.get("causes"), flush=True)
    table_file.write_text(table(list(done.values())))
    print(f"wrote {table_file}")
    return 0


def export_all(family_name: str, name: str) -> Row:
    """Return the row of a model: for each format, the largest difference, the agreement, or the error."""
    from benchmarks.coverage.checks import Labelled
    from finetune import ExportError, FineTuner

    start = time.perf_counter()
    try:
        family = load_family(family_name)
        built = family.build(name)
        tuner = FineTuner(built.model, device="cpu", loss="cross_entropy").replace_head(CLASSES)
    except Exception as error:
        return failed(family_name, name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    found: dict[str, Any] = {}
    for format in FORMATS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                export = tuner.export(Path(folder, "model"), format, verify=Labelled(built.inputs))
                agreement = export.agreement
                cells: dict[str, Any] = {"difference": agreement.difference, "same": agreement.fraction}
            except ExportError as error:
                cells = {"error": " ".join(str(error).split())}
            except Exception as error:
                cells = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", "unclear": True}
            if "error" in cells:
                cells["left"] = sorted(os.listdir(folder))
        found[format] = {**cells, "seconds": round(time.perf_counter() - began, 1)}
    seconds = round(time.perf_counter() - start, 1)
    return {"family": family_name, "name": name, "formats": found, "seconds": seconds, "versions": versions(PACKAGES)}


def table(rows: list[Row]) -> str:
    """Return the table as Markdown: counts by format, every model, and the errors."""
    done = [row for row in rows if "formats" in row]
    lines = [
        "# Export",
        "",
        f"Written by `python -m benchmarks.export` on {date.today().isoformat()}: "
        f"{'; '.join(sorted({row['versions'] for row in done}))}, Python {platform.python_version()}. Models of the "
        "sample of `benchmarks.coverage` with random weights and 7 classes; largest difference of a probability "
        "between the file and the model.",
        "",
        "| format | exported and agrees | refused with the cause | files left behind by an error |",
        "| --- | --- | --- | --- |",
    ]
    for format in FORMATS:
        cells = [row["formats"][format] for row in done]
        wrong = [cell for cell in cells if "error" in cell]
        left = sum(bool(cell["left"]) for cell in wrong)
        lines.append(f"| {format} | {len(cells) - len(wrong)} of {len(cells)} | {len(wrong)} | {left} |")
    lines += ["", f"| family | model | {' | '.join(FORMATS)} |", f"| --- | --- |{' --- |' * len(FORMATS)}"]
    lines += [_line(row) for row in done]
    errors = [
        f"- `{row['name']}`, {format}: {row['formats'][format]['error']}"
        for row in done
        for format in FORMATS
        if "error" in row["formats"][format]
    ]
    errors += [f"- `{row['name']}`: {row['causes']}" for row in rows if "formats" not in row]
    return "\n".join([*lines, "", "## Refused", "", *(errors or ["None."]), ""])


def _line(row: Row) -> str:
    cells = [row["formats"][format] for format in FORMATS]
    shown = ["refused" if "error" in cell else f"{cell['difference']:.1e}" for cell in cells]
    return f"| {row['family']} | `{row['name']}` | {' | '.join(shown)} |"


def _installed(name: str) -> bool:
    try:
        return bool(load_family(name).names())
    except ImportError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(FAMILIES), help="export only this family")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds per model (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for rows and table")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
