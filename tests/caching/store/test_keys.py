"""Cache keys change with everything the stored activations depend on, and with nothing else (trap 42)."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from finetune import errors
from finetune.caching.prefix.cut import cut_prefix
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.store.disk_store import KEY
from finetune.caching.store.keys import VERSION, fingerprint, keys_of
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.arrays import Arrays
from finetune.data.sources.datasets import MapDataset
from finetune.data.sources.image_files import ImageFiles
from finetune.model.freezing import train_mode, train_only

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A small network with everything in its prefix that is easily forgotten."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act: nn.Module = nn.GELU()
        self.project = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.rand(4))
        self.register_buffer("shift", torch.rand(4))
        self.register_buffer("hidden", torch.rand(4), persistent=False)
        self.bare = torch.rand(4)
        self.scale = 2.0
        self.rounding: str | None = None
        self.read_early = False
        self.beta, self.alpha = 1, 1
        self.head = nn.Linear(4, 2) if head is None else head

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x))).mean((2, 3)) * self.scale
        x = torch.div(x + self.token, self.shift + 0.5, rounding_mode=self.rounding)
        x = torch.addmm(self.bare * self.hidden, x, self.project.weight, beta=self.beta, alpha=self.alpha)
        late = F.relu(x)
        return self.head(x if self.read_early else late)


def cut(model: nn.Module, inputs: Any = IMAGES, train: tuple[str, ...] = ("head",)) -> Prefix:
    train_only(model, train)
    train_mode(model)
    prefix = cut_prefix(model, inputs)
    assert isinstance(prefix, Prefix), prefix
    return prefix


def of(model: nn.Module, inputs: Any = IMAGES, **described: Any) -> str:
    print_ = fingerprint(cut(model, inputs), described)
    assert print_ is not None
    return print_


ORIGINAL = of(Net())


def test_equal_models_have_equal_fingerprints() -> None:
    assert of(Net()) == of(copy.deepcopy(Net())) == ORIGINAL
    assert ORIGINAL.isalnum()


def heads() -> dict[str, nn.Module]:
    return {
        "other values": nn.Linear(4, 2),
        "other width": nn.Linear(4, 7),
        "several layers": nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3)),
        "a bare one": nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2, bias=False)),
    }


@pytest.mark.parametrize("head", heads())
def test_other_heads_have_the_same_fingerprint(head: str) -> None:
    assert of(Net(heads()[head])) == ORIGINAL


def test_trainable_parameters_and_buffers_past_the_boundary_do_not_count() -> None:
    model = Net(heads()["several layers"])
    prefix = cut(model)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(1)
    model(IMAGES)  # moves the statistics in the head
    assert fingerprint(prefix) == of(model) == ORIGINAL


def test_the_random_state_and_the_samples_of_the_cut_do_not_count() -> None:
    torch.manual_seed(5)
    assert of(Net(), torch.rand(9, 3, 8, 8)) == ORIGINAL


def _set(name: str, value: Any) -> Callable[[Net], Any]:
    *path, last = name.split(".")
    return lambda model: setattr(model.get_submodule(".".join(path)), last, value)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a stride": _set("conv.stride", (2, 2)),
    "a dilation": _set("conv.dilation", (2, 2)),
    "an epsilon": _set("norm.eps", 1e-4),
    "an activation": _set("act", nn.SiLU()),
    "a kind of an activation": _set("act.approximate", "tanh"),
    "a number on a module": _set("scale", 2.5),
    "a tensor on a module": _set("bare", torch.rand(4)),
    "a keyword": _set("rounding", "floor"),
    "another keyword": _set("rounding", "trunc"),
    "one of two like keywords": _set("alpha", 2),
    "the other": _set("beta", 2),
    "what is stored": _set("read_early", True),
    "the layout of a weight": lambda model: model.conv.to(memory_format=torch.channels_last),
    "the type": lambda model: model.double(),
    "tied weights": lambda model: setattr(model, "token", nn.Parameter(model.shift)),
}


def test_every_change_gives_another_fingerprint() -> None:
    prints = [ORIGINAL]
    for change in CHANGES.values():
        model = Net()
        change(model)
        inputs = IMAGES.double() if model.conv.weight.dtype == torch.float64 else IMAGES
        prints.append(of(model, inputs))
    with torch.autocast("cpu", torch.bfloat16):
        prints.append(of(Net()))
    with torch.autocast("cpu", torch.float16):
        prints.append(of(Net()))
    prints.append(of(Net(), torch.rand(4, 3, 9, 9)))
    prints.append(of(Net(), IMAGES.to(memory_format=torch.channels_last)))
    assert len(set(prints)) == len(prints)


@given(data=st.data())
def test_any_bit_of_a_frozen_value_counts(data: st.DataObject) -> None:
    model = Net()
    prefix = cut(model)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad and name != "project.bias"}
    tensors: dict[str, Tensor] = {**frozen, **dict(model.named_buffers()), "bare": model.bare}
    del tensors["norm.num_batches_tracked"]  # never read
    tensor = tensors[data.draw(st.sampled_from(sorted(tensors)))].detach()
    bits = tensor.view(torch.int32).view(-1)
    place, bit = data.draw(st.integers(0, len(bits) - 1)), data.draw(st.integers(0, 30))
    bits[place] ^= 1 << bit
    assert fingerprint(prefix) != ORIGINAL
    bits[place] ^= 1 << bit
    assert fingerprint(prefix) == ORIGINAL


LAYERS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.Identity, nn.Tanh, nn.LeakyReLU, lambda: nn.LeakyReLU(0.5), lambda: nn.ReLU(inplace=True),
    lambda: nn.LayerNorm(3), lambda: nn.LayerNorm(3, eps=0.1), lambda: nn.Linear(3, 3), nn.Flatten,
)  # fmt: skip


class Chosen(nn.Module):
    """A sequence of layers, some of whose results the head reads."""

    def __init__(self, kinds: list[int], read: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.layers = nn.ModuleList(LAYERS[kind]() for kind in kinds)
        self.head = nn.Linear(3, 2)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        results = [self.first(x)]
        for layer in self.layers:
            results.append(layer(results[-1]))
        return sum(self.head(results[place % len(results)]) for place in self.read)


chosen = st.builds(
    Chosen, st.lists(st.integers(0, len(LAYERS) - 1), max_size=3), st.lists(st.integers(0, 3), min_size=1, max_size=2)
)


@given(one=chosen, other=chosen)
def test_equal_fingerprints_mean_equal_activations(one: Chosen, other: Chosen) -> None:
    inputs = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    prefixes = [cut(model, inputs) for model in (one, other)]
    if fingerprint(prefixes[0]) == fingerprint(prefixes[1]):
        first, second = (prefix.compute(inputs) for prefix in prefixes)
        assert len(first) == len(second)
        assert all(map(torch.equal, first, second))


def test_which_of_two_results_is_stored_counts() -> None:
    class Extreme(nn.Module):
        def __init__(self, which: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head, self.which = nn.Linear(3, 3), nn.Linear(1, 2), which

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.aminmax(self.first(x), dim=1, keepdim=True)[self.which])

    inputs = torch.rand(4, 3)
    assert of(Extreme(0), inputs) == of(Extreme(0), inputs) != of(Extreme(1), inputs)


def test_a_constant_without_bytes_has_no_fingerprint() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
            self.mask = torch.eye(3).to_sparse()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sparse.mm(self.mask, self.first(x).T).T)

    assert fingerprint(cut(Sparse(), torch.rand(4, 3))) is None


PREPROCESSING = Preprocessing()
PREPARED = [
    replace(PREPROCESSING, crop_size=(160, 160)),
    replace(PREPROCESSING, resize_size=232),
    replace(PREPROCESSING, resize_size=None),
    replace(PREPROCESSING, mean=(0.5, 0.5, 0.5)),
    replace(PREPROCESSING, std=(0.5, 0.5, 0.5)),
    replace(PREPROCESSING, interpolation="bicubic"),
]


def test_preprocessing_and_views_count() -> None:
    prefix = cut(Net())
    described = [{"preprocessing": preparation.to_dict()} for preparation in (PREPROCESSING, *PREPARED)]
    described += [{}, {"views": 2}, {"views": 3}, {"precision": "bf16"}, {"layout": "bf16"}, {"a": {"views": 2}}]
    prints = [fingerprint(prefix, each) for each in described]
    assert len(set(prints)) == len(prints)
    assert fingerprint(prefix, {"a": 1, "b": 2}) == fingerprint(prefix, {"b": 2, "a": 1})
    with pytest.raises(TypeError):
        fingerprint(prefix, {"augmentation": lambda picture: picture})


def test_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = cut(Net())
    monkeypatch.setattr(torch, "__version__", "2.99")
    newer = fingerprint(prefix)
    assert len({ORIGINAL, newer, fingerprint(prefix, version=VERSION + 1)}) == 3


def test_the_precision_of_float32_products_counts() -> None:
    prefix, before = cut(Net()), torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert fingerprint(prefix) != ORIGINAL
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert fingerprint(prefix) == ORIGINAL


def test_another_process_computes_the_same_fingerprint() -> None:
    script = f"""
        import sys, types
        bare = sys.modules["finetune"] = types.ModuleType("finetune")  # skips the imports of `finetune/__init__.py`
        bare.__path__ = [{str(Path(errors.__file__).parent)!r}]
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_keys import ORIGINAL
        print(ORIGINAL)
    """
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == ORIGINAL


# Keys of samples.


def keys(source: Any) -> list[bytes]:
    found = keys_of(source)
    assert found is not None
    assert found.dtype == KEY
    return list(found)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files that look a minute old."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_files_are_identified_by_path_size_and_time(files: list[Path]) -> None:
    original = keys(ImageFiles(files))
    assert keys(ImageFiles(files, torch.arange(3))) == original  # labels do not count
    seen = {*original}
    assert len(seen) == 3
    before = files[1].stat()
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    seen.add(keys(ImageFiles(files))[1])
    files[1].write_bytes(b"1.pn")
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    seen.add(keys(ImageFiles(files))[1])
    files[1].rename(files[1].with_name("x.png"))
    seen.add(*keys(ImageFiles([files[1].with_name("x.png")])))
    assert len(seen) == 6
    assert keys(ImageFiles([files[2], files[0]])) == [original[2], original[0]]
    assert keys_of(ImageFiles(files)) is None  # one is missing


def test_files_are_identified_from_any_working_directory(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = keys(ImageFiles(files))
    monkeypatch.chdir(files[0].parent)
    assert keys(ImageFiles([Path(path.name) for path in files])) == absolute


@pytest.mark.skipif(sys.platform == "win32", reason="has no change time")
def test_a_changed_file_whose_time_was_set_back_is_noticed(files: list[Path]) -> None:
    before, state = keys(ImageFiles(files)), files[0].stat()
    files[0].write_bytes(b"x.png")
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert files[0].stat().st_mtime_ns == state.st_mtime_ns
    assert keys(ImageFiles(files))[0] != before[0]


def test_a_file_that_was_just_written_is_identified_by_its_bytes(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = files[0].stat()
    monkeypatch.setattr(Path, "stat", lambda path: state)  # a clock that stands still
    monkeypatch.setattr(time, "time", lambda: state.st_mtime)
    before = keys(ImageFiles(files[:1]))
    files[0].write_bytes(b"x.png")
    assert keys(ImageFiles(files[:1])) != before


def test_samples_differ_by_type_and_shape() -> None:
    zeros = [torch.zeros(2, 4), torch.zeros(4, 2), torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 0)]
    zeros += [torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2, 4).bfloat16(), torch.zeros(2)]
    arrays = [np.zeros((2, 4), "<f4"), np.zeros((2, 4), ">f4"), np.zeros((2, 4), "<i4"), np.zeros((4, 2), "<f4")]
    found = [keys(Arrays(each)) for each in (*zeros, *arrays)]
    assert all(len({*each}) == 1 for each in found)
    assert len({each[0] for each in found}) == len(found)


def test_a_memory_map_is_an_array(tmp_path: Path) -> None:
    values = np.random.rand(7, 3).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    assert keys(Arrays(np.load(tmp_path / "x.npy", mmap_mode="r"))) == keys(Arrays(values))


def test_a_fold_has_the_same_keys_in_any_form() -> None:
    values = torch.rand(6, 2)
    whole = Arrays(values, torch.arange(6))
    every = keys(whole)
    assert keys(whole.subset([4, 1])) == keys(Arrays(values[[4, 1]])) == [every[4], every[1]]


def test_data_without_keys() -> None:
    class Turned(ImageFiles):
        pass

    assert keys_of(MapDataset(TensorDataset(torch.rand(3, 2)))) is None
    assert keys_of(Arrays(np.array([object()]))) is None
    assert keys_of(Arrays(torch.rand(3, 2, device="meta"))) is None
    assert keys_of(Turned([])) is None
