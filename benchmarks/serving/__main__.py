"""Measure `finetune serve` under load, and send it malformed uploads.

    python -m benchmarks.serving
    python -m benchmarks.serving --model resnet50 --seconds 60

Clients in one process send photographs to the command on loopback, each its next one after an answer, and repeat a
request after the time of a 503. Every answer is compared with that to a lone request. A second run has a short queue,
so that there are 503s. The limit of the model is that of forward passes over prepared images in batches, in the same
run and with as many threads; the server also decodes the images, and the clients run on the same processors.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from benchmarks.machine import processor
from benchmarks.serving.clients import Load, Shares, difference, form, get, load, send, shares
from benchmarks.serving.malformed import Refusals, refusals
from benchmarks.serving.server import CLASSES, Server, own_limits, photographs, save_model, served

RESULTS = Path(__file__).parents[1] / "results" / "serving.md"
TOLERANCE = 1e-4  # of a probability; a batch of another size is summed in another order
_BATCH = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    queues = [max(256, options.clients), max(1, options.clients // 4)]
    busy = "/".join(f"{each:.1f}" for each in os.getloadavg())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, files = Path(folder, "model.safetensors"), photographs(options.photographs)
        tuner = save_model(options.model, options.crop, files, checkpoint)
        limits = own_limits(tuner, files, _BATCH)
        loads: dict[int, Load] = {}
        for queue in queues:
            common = (checkpoint, options.threads, "--top", str(CLASSES), "--queue", str(queue))
            with served(*common) as server:
                loads[queue], refused = asyncio.run(_measured(server, files, options, queue == queues[0]))
                print(queue, loads[queue].duration, len(loads[queue].seconds), flush=True)
                if queue == queues[0]:
                    found = refused
    text = table(loads, limits, found, options, busy)
    options.out.write_text(text)
    print(text)


async def _measured(
    server: Server, files: Sequence[bytes], options: argparse.Namespace, malformed: bool
) -> tuple[Load, dict[str, Refusals]]:
    alone = [await _answer(server, file) for file in files]
    apart = min(difference(one, other) for place, one in enumerate(alone) for other in alone[:place])
    assert apart > TOLERANCE, f"two photographs have the same answer to {apart:.1e}, so a mix-up would not be seen"
    outcome = await load(server, files, alone, options.clients, options.seconds)
    refused = await refusals(server.port, files[0], options.malformed) if malformed else {}
    outcome.megabytes.append(server.megabytes)
    status, _, _ = await send(server.port, get("/health"))
    assert status == 200
    for each, file in zip(alone, files, strict=True):
        assert difference(each, await _answer(server, file)) <= TOLERANCE
    return outcome, refused


async def _answer(server: Server, file: bytes) -> Shares:
    status, _, body = await send(server.port, form(file))
    assert status == 200, body
    return shares(body)


def table(
    loads: dict[int, Load],
    limits: tuple[float, float],
    refused: dict[str, Refusals],
    options: argparse.Namespace,
    busy: str,
) -> str:
    """Return the tables as Markdown: load, memory and refusals."""
    model, files = limits
    lines = [
        "# Serving",
        "",
        f"Written by `python -m benchmarks.serving` on {date.today().isoformat()}: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {processor()}, {os.cpu_count()} processors, {options.threads} thread(s) per "
        f"forward pass, load average {busy} at the start. {options.model} at {options.crop} pixels with random weights "
        f"answers {options.photographs} different JPEG photographs of 640 x 480 to {options.clients} clients on the "
        f"same machine for {options.seconds:g} seconds. The model alone computes **{model:.1f} images/s** in batches "
        f"of {_BATCH}, and `classify` **{files:.1f}** from the files in one process.",
        "",
        "| queue | requests/s | of the model | of `classify` | p50, s | p99, s | answered | lost | wrong | "
        "largest difference | 503s | without Retry-After |",
        f"|{' ---: |' * 12}",
    ]
    for queue, each in loads.items():
        rate, times = len(each.seconds) / each.duration, sorted(each.seconds)
        wrong = "0" if each.difference <= TOLERANCE else "**some**"
        lines.append(
            f"| {queue} | {rate:.1f} | {rate / model:.0%} | {rate / files:.0%} | {statistics.median(times):.2f} | "
            f"{times[int(0.99 * len(times))]:.2f} | {len(times):,} | {each.lost} | {wrong} | {each.difference:.0e} | "
            f"{each.busy} | {each.unhelpful} |"
        )
    lines += [
        "",
        f"Times include the waits after 503s. An answer is wrong if a probability differs by more than {TOLERANCE:g} "
        "from that to a lone request.",
        "",
        "| queue | memory at the start, MB | in the middle | at the end | after all |",
        f"|{' ---: |' * 5}",
    ]
    for queue, each in loads.items():
        start, *during, last = each.megabytes
        middle, end = (during or [start])[len(during) // 2], (during or [start])[-1]
        lines.append(f"| {queue} | {start:.0f} | {middle:.0f} | {end:.0f} | {last:.0f} |")
    total = sum(each.statuses.total() for each in refused.values())
    clear = all(each.all_refused for each in refused.values())
    lines += [
        "",
        f"## {total} malformed requests",
        "",
        f"{'All' if clear else '**Not all**'} got a clear client error. Afterwards the server gives the same answers.",
        "",
        "| kind | statuses | with a reason |",
        "| --- | --- | ---: |",
    ]
    for kind, answers in refused.items():
        statuses = ", ".join(f"{count} x {status or 'none'}" for status, count in sorted(answers.statuses.items()))
        lines.append(f"| {kind} | {statuses} | {answers.explained} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="torchvision model (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=224, help="side of its input in pixels (default: %(default)d)")
    parser.add_argument("--clients", type=int, default=200, help="clients at once (default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=30, help="seconds of load (default: %(default)g)")
    parser.add_argument("--photographs", type=int, default=20, help="different images (default: %(default)d)")
    parser.add_argument("--malformed", type=int, default=500, help="malformed requests (default: %(default)d)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="path of the table")
    return parser


if __name__ == "__main__":
    main()
