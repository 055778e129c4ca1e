"""A few fixed views of each image, one per epoch in turn: their content, their caching, and when they are chosen."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from finetune import FineTuner, Phase
from finetune.caching.cached_batches import varies
from finetune.caching.declined import Declined
from finetune.callbacks import Callback
from finetune.data.loading.batches import Batches
from finetune.data.preprocessing.augmentations import CropAndFlip
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.arrays import Arrays
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.open_source import open_source
from finetune.errors import ArgumentError
from tests.helpers.system import report_free_memory

SIZE = {"crop_size": 12, "resize_size": 14}
PREPROCESSING = Preprocessing.from_dict(SIZE)
COUNT = 22


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(self.block(x).mean((2, 3))))
        return out


class Rolled:
    """A custom random augmentation."""

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.rotate(float(torch.rand(()) * 90 - 45))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        for index in range(COUNT // 2):
            values = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(values.numpy()).save(folder / name / f"{index:02d}.png")
    return folder


def batches_of(folder: Path, **arguments: Any) -> Batches:
    arguments = {"batch_size": 5, "shuffle": True, "preprocessing": PREPROCESSING, "workers": 0, **arguments}
    return Batches(open_source(folder), **{"augment": CropAndFlip(PREPROCESSING), **arguments})


def by_row(batches: Batches, epoch: int) -> dict[int, bytes]:
    """Return the images of an epoch by their row in a store."""
    pairs = zip(batches.rows(epoch), batches.epoch(epoch), strict=True)
    given = (pair for rows, (X, _) in pairs for pair in zip(rows.tolist(), X, strict=True))
    return {row: picture.numpy().tobytes() for row, picture in given}


def by_index(batches: Batches, epoch: int) -> list[bytes]:
    """Return the images of an epoch, in unshuffled batches."""
    return [picture.numpy().tobytes() for X, _ in batches.epoch(epoch) for picture in X]


def views_shown(batches: Batches, epoch: int) -> list[int]:
    """Return the view of each sample in an epoch, in unshuffled batches."""
    return (torch.cat(batches.rows(epoch)) // COUNT).tolist()


# ---------------------------------------------------------------- content


@pytest.mark.parametrize("workers", [0, 2])
def test_a_view_is_a_function_of_seed_view_and_index(pictures: Path, workers: int) -> None:
    viewed = batches_of(pictures, views=3, workers=workers)
    other = batches_of(pictures, views=3, batch_size=4, shuffle=False)
    assert viewed.views == 3
    epochs = [by_row(viewed, epoch) for epoch in range(5)]
    assert epochs[3:] == epochs[:2]
    assert [by_row(other, epoch) for epoch in range(3)] == epochs[:3]
    assert len({picture for epoch in epochs for picture in epoch.values()}) == 3 * COUNT
    assert by_row(batches_of(pictures, views=3, seed=1), 0) != epochs[0]


def test_a_view_equals_the_augmentation_of_the_epoch_with_its_number(pictures: Path) -> None:
    online, viewed = batches_of(pictures, shuffle=False), batches_of(pictures, shuffle=False, views=3)
    anew = [by_index(online, epoch) for epoch in range(3)]
    for epoch in range(7):
        shown = by_index(viewed, epoch)
        assert shown == [anew[view][index] for index, view in enumerate(views_shown(viewed, epoch))]


@given(samples=st.integers(1, 20), batch_size=st.integers(1, 7), epoch=st.integers(0, 9), seed=st.integers(0, 3))
def test_rows_without_augmentation_are_the_samples(samples: int, batch_size: int, epoch: int, seed: int) -> None:
    batches = Batches(Arrays(torch.zeros(samples, 2)), batch_size=batch_size, shuffle=True, seed=seed)
    assert batches.views == 1
    pairs = zip(batches.rows(epoch), batches.indices(epoch), strict=True)
    assert all(torch.equal(rows, indices) for rows, indices in pairs)


@given(views=st.integers(1, 5), epoch=st.integers(0, 11))
def test_rows_are_view_times_samples_plus_index(pictures: Path, views: int, epoch: int) -> None:
    batches = batches_of(pictures, views=views)
    for rows, indices in zip(batches.rows(epoch), batches.indices(epoch), strict=True):
        assert torch.equal(rows % COUNT, indices)
        assert int(rows.max()) < views * COUNT


@given(views=st.integers(1, 5), epoch=st.integers(0, 11))
def test_every_epoch_mixes_all_views_and_every_sample_shows_each(pictures: Path, views: int, epoch: int) -> None:
    batches = batches_of(pictures, views=views)
    shown = [torch.cat(batches.rows(e)) for e in range(epoch, epoch + views)]
    assert sorted(torch.cat(shown).tolist()) == list(range(views * COUNT))
    for rows in shown:
        counts = torch.bincount(rows // COUNT, minlength=views)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_default_views_are_the_plain_image_and_three_augmented(pictures: Path, workers: int) -> None:
    stand_ins = CropAndFlip(PREPROCESSING).stand_ins
    online = batches_of(pictures, stand_ins=stand_ins, workers=workers, shuffle=False)
    viewed = online.in_views()
    plain = batches_of(pictures, augment=None, shuffle=False)
    assert (online.views, viewed.views, plain.views) == (None, 4, 1)
    views = [by_index(plain, 0), *(by_index(online, view) for view in (1, 2, 3))]
    for epoch in range(6):
        assert by_index(viewed, epoch) == [views[v][index] for index, v in enumerate(views_shown(viewed, epoch))]
    again = viewed.in_views(False)
    assert again.views is None
    assert by_index(again, 1) == by_index(online, 1)


def test_views_are_described_by_seed_view_and_sample(pictures: Path) -> None:
    stand_ins = CropAndFlip(PREPROCESSING).stand_ins

    def described(**arguments: Any) -> list[list[str]] | None:
        views = batches_of(pictures, **arguments).in_views().described_views()
        return None if views is None else [[view(index) for index in (0, 1)] for view in views]

    assert described(augment=None) == []
    assert described() is None
    assert described(stand_ins=stand_ins) == [2 * ["as evaluated"], *(described(views=4) or [])[1:]]
    assert described(augment=Rolled(), views=2) is None
    one, other = (described(views=2, seed=seed) for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert len({text for view in (*one, *other) for text in view}) == 8  # of seed, view and sample


# ---------------------------------------------------------------- caching


def tuned(cls: type[FineTuner] = FineTuner, frozen: Any = "block") -> FineTuner:
    torch.manual_seed(0)
    tuner = cls(Net(), device="cpu", preprocessing=SIZE)
    return tuner.freeze(frozen) if frozen else tuner


def fitted(tuner: FineTuner, data: Any, **arguments: Any) -> FineTuner:
    tuner.fit(data, **{"val": False, "epochs": 5, "batch_size": 5, "lr": 1e-2, "progress": False, **arguments})
    return tuner


def same(one: FineTuner, other: FineTuner) -> bool:
    theirs = other.model.state_dict()
    kept = [[{k: v for k, v in row.items() if "second" not in k} for row in tuner.history] for tuner in (one, other)]
    return kept[0] == kept[1] and all(torch.equal(v, theirs[k]) for k, v in one.model.state_dict().items())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the images that were read from files."""
    found: list[int] = []
    read = ImageFiles.__getitem__

    def counted(self: ImageFiles, index: int) -> Any:
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "__getitem__", counted)
    return found


def said(caplog: pytest.LogCaptureFixture, what: str) -> str:
    return " ".join(record.getMessage() for record in caplog.records if record.getMessage().startswith(what))


@pytest.mark.parametrize("augment", [True, Rolled()], ids=["standard", "own"])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_cached_views_equal_uncached_views(pictures: Path, augment: Any, views: int) -> None:
    given = {"augment": augment, "augment_views": views}
    assert same(
        fitted(tuned(), pictures, cache=False, **given),
        fitted(tuned(), pictures, cache="memory", **given),
    )


@pytest.mark.parametrize("given", [{"augment_views": 1}, {"augment": False}], ids=["augmented", "plain"])
def test_files_that_a_callback_changes_end_the_cache(pictures: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    class Repaints(Callback):
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def on_epoch_begin(self, run: Any) -> None:
            for number, path in enumerate(sorted(self.folder.rglob("*.png")) if run.epoch else ()):
                Image.new("RGB", (16, 16), (50 * run.epoch, 9 * number, 0)).save(path)

    def run(cache: Any) -> FineTuner:
        folder = Path(shutil.copytree(pictures, tmp_path / str(cache)))
        return fitted(tuned(), folder, cache=cache, callbacks=[Repaints(folder)], **given)

    assert same(run(False), run("memory"))


def test_each_image_is_decoded_once(pictures: Path, decoded: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(tuned(), pictures, cache="memory", augment_views=3, epochs=9)
    assert len(decoded) <= COUNT + 2  # and the audit
    assert f"{3 * COUNT} views of {COUNT} samples" in said(caplog, "cache")
    assert "3 fixed views of each image in turn, approximating" in said(caplog, "augmentation")


class Own(Dataset[Any]):
    """A custom data set of images; if it draws, from its own generator, no image is ever the same."""

    def __init__(self, folder: Path, draws: bool) -> None:
        self.files, self.generator = sorted(folder.glob("*/*.png")), random.Random(0) if draws else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        picture = Image.open(self.files[index]).convert("RGB")
        turned = picture if self.generator is None else picture.rotate(self.generator.random() * 90)
        return turned, int(self.files[index].parent.name == "bee")


@pytest.mark.parametrize(
    ("draws", "line"), [(False, "kept in memory"), (True, "your dataset returns different samples")]
)
def test_views_of_a_custom_data_set_are_stored_if_its_images_are_constant(
    pictures: Path, draws: bool, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"augment_views": 3, "augment": Rolled()}
    with caplog.at_level(logging.INFO, "finetune"):
        cached = fitted(tuned(), Own(pictures, draws), cache="memory", **given)
    assert line in said(caplog, "cache")
    assert draws or same(cached, fitted(tuned(), Own(pictures, draws), cache=False, **given))


@pytest.mark.parametrize("draws", [False, True])
def test_validation_data_is_stored_if_its_samples_are_constant(pictures: Path, draws: bool) -> None:
    source = open_source(Own(pictures, draws))
    batches = Batches(source, batch_size=4, shuffle=False, preprocessing=PREPROCESSING)
    assert isinstance(varies(batches), Declined) is draws


class StopError(Exception):
    pass


class Halt(Callback):
    """Save the run before an update, and end it."""

    only_watches = True

    def __init__(self, path: Path, epoch: int, window: int = 2) -> None:
        self.path, self.at = path, (epoch, window)

    def on_step_end(self, run: Any) -> None:
        if (run.epoch, run.position.window) == self.at:
            run.save(self.path)
            raise StopError


def resumed(pictures: Path, folder: Path, epoch: int, before: dict[str, Any], after: dict[str, Any]) -> FineTuner:
    """Return a run that was interrupted and resumed with other arguments."""
    with pytest.raises(StopError):
        fitted(tuned(), pictures, callbacks=[Halt(folder / "run.safetensors", epoch)], **before)
    return fitted(tuned(), pictures, resume_from=folder / "run.safetensors", **after)


@pytest.mark.parametrize("epoch", [0, 1, 3])
@pytest.mark.parametrize("views", [{"augment_views": 2}, {}], ids=["given", "default"])
def test_a_run_over_views_resumes(pictures: Path, tmp_path: Path, epoch: int, views: dict[str, Any]) -> None:
    arguments = {"cache": "memory", **views}
    assert same(fitted(tuned(), pictures, **arguments), resumed(pictures, tmp_path, epoch, arguments, arguments))


# ---------------------------------------------------------------- choice


def test_fixed_views_are_the_default_if_they_are_cached(
    pictures: Path, decoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(tuned(), pictures, cache="memory", epochs=9)
    assert len(decoded) <= COUNT + 2
    assert f"{4 * COUNT} views of {COUNT} samples" in said(caplog, "cache")
    assert "4 fixed views of each image in turn, one of them as in evaluation, approx" in said(caplog, "augmentation")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"augment": Rolled()}, "the augmentation makes new images in every epoch"),
        ({"augment": CropAndFlip(PREPROCESSING)}, "the augmentation makes new images in every epoch"),
        ({"augment_views": 0}, "the augmentation makes new images in every epoch"),
        ({"epochs": 4}, "the augmentation makes new images in every epoch"),  # as many epochs as views
    ],
    ids=["own", "given", "asked", "few epochs"],
)
def test_trap_42_a_chosen_augmentation_is_neither_replaced_nor_cached(
    pictures: Path, arguments: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        cached = fitted(tuned(), pictures, cache="memory", **arguments)
    assert reason in said(caplog, "cache: off")
    assert not said(caplog, "augmentation")
    assert same(cached, fitted(tuned(), pictures, cache=False, **arguments))


@pytest.mark.parametrize(
    ("frozen", "arguments", "reason"),
    [
        ("block", {"epochs": 9}, "augment_views=4 would cycle 4 fixed views"),
        ("block", {"epochs": 4}, "augment_views=3 would cycle 3 fixed views"),
        ("block", {"epochs": 1}, "no sample is seen twice"),
        ("block", {"epochs": 5, "cache": "auto"}, "there are too few samples and epochs"),
        (None, {"cache": "auto"}, "the first layers are trainable"),
        (None, {}, "no layer is frozen"),
    ],
    ids=["views", "fewer views", "one epoch", "too little", "auto", "nothing frozen"],
)
def test_fixed_views_are_suggested_only_if_they_would_be_cached(
    pictures: Path, frozen: Any, arguments: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(tuned(frozen=frozen), pictures, **{"cache": "memory", "augment": Rolled(), **arguments})
    line = said(caplog, "cache: off")
    assert reason in line
    assert ("augment_views" in line) == ("augment_views" in reason)


class Mixing(Net):
    """A net whose frozen block looks at the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def with_frozen(*names: str, model: type[Net] = Net) -> FineTuner:
    torch.manual_seed(0)
    tuner = FineTuner(model(), preprocessing=SIZE)
    return tuner.freeze(names) if names else tuner


@pytest.mark.parametrize("augment", [Rolled(), CropAndFlip(PREPROCESSING)], ids=["own", "built in"])
@pytest.mark.parametrize("where", ["auto", "memory", "disk", "folder"])
@pytest.mark.parametrize(
    "made",
    [
        lambda: with_frozen("block"),
        lambda: with_frozen("fc"),
        lambda: with_frozen("block.1"),
        with_frozen,
        lambda: with_frozen("block", model=Mixing),
    ],
    ids=["frozen block", "frozen end", "frozen middle", "nothing frozen", "mixed samples"],
)
def test_the_reason_said_first_still_holds_if_views_are_fixed(
    made: Callable[[], FineTuner],
    where: str,
    augment: Any,
    pictures: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"cache": tmp_path / "kept" if where == "folder" else where, "augment": augment, "epochs": 6}
    lines = []
    for views in ({}, {"augment_views": 4}):
        caplog.clear()
        with caplog.at_level(logging.INFO, "finetune"), suppress(StopError):  # all of it is said by then
            fitted(made(), pictures, **given, **views, callbacks=[Halt(tmp_path / "run.safetensors", 2)])
        lines.append(said(caplog, "cache"))
    advised = "augment_views=4 would cycle 4 fixed views" in lines[0]
    assert "is computed once" in lines[1] if advised else lines[0] == lines[1]


def test_a_suggested_number_of_views_is_cached(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(tuned(), pictures, cache="memory", augment=Rolled(), epochs=4, augment_views=3)
    assert "kept in memory" in said(caplog, "cache")


@pytest.mark.parametrize("cause", ["memory", "nothing frozen", "too little"])
def test_images_that_are_not_cached_are_augmented_afresh(
    pictures: Path, cause: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if cause == "memory":
        report_free_memory(monkeypatch, 1024)
    frozen = None if cause == "nothing frozen" else "block"
    epochs = 5 if cause == "too little" else 9
    with caplog.at_level(logging.INFO, "finetune"):
        run = fitted(tuned(frozen=frozen), pictures, epochs=epochs)
    assert "cache: off" in said(caplog, "cache")
    assert not said(caplog, "augmentation")
    assert same(run, fitted(tuned(frozen=frozen), pictures, epochs=epochs, cache=False))


class Seen(FineTuner):
    """Keeps the images that its steps receive."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen: dict[int, set[bytes]] = {}

    def training_step(self, batch: Any) -> Any:
        pictures, targets = batch
        self.seen.setdefault(len(self.history), set()).update(picture.numpy().tobytes() for picture in pictures)
        return nn.functional.cross_entropy(self.model(pictures), targets)


def test_each_cached_phase_has_fixed_views(pictures: Path) -> None:
    strategy = [Phase("fc", 6, name="probe"), Phase("*", 4, name="all"), Phase("fc", 5, name="again")]
    tuner = tuned(Seen)
    fitted(tuner, pictures, cache="memory", strategy=strategy)
    assert isinstance(tuner, Seen)
    seen = tuner.seen
    stored = set().union(*(seen[epoch] for epoch in range(4)))
    assert len(stored) == 4 * COUNT
    for epoch in (4, 5, *range(10, 15)):
        assert seen[epoch] == seen[epoch % 4]
    online = set().union(*(seen[epoch] for epoch in range(6, 10)))
    assert len(online) == 4 * COUNT
    assert not online & stored


@pytest.mark.parametrize("after", ["no cache", "little memory"])
def test_a_resumed_phase_keeps_its_views(
    pictures: Path, tmp_path: Path, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of a phase are chosen once, whatever the planner would decide after resuming."""
    whole, path = fitted(tuned(), pictures, cache="memory"), tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        fitted(tuned(), pictures, cache="memory", callbacks=[Halt(path, 1)])
    if after == "little memory":
        report_free_memory(monkeypatch, 1024)
    cache = False if after == "no cache" else "memory"
    assert same(whole, fitted(tuned(), pictures, cache=cache, resume_from=path))


@pytest.mark.parametrize("planned", [4, 5])
def test_a_phase_that_is_extended_keeps_its_images(pictures: Path, tmp_path: Path, planned: int) -> None:
    """Four epochs are too few for fixed views and seven are not; the choice at the start counts."""
    path, tuner = tmp_path / "run.safetensors", tuned(Seen)
    with pytest.raises(StopError):
        fitted(tuned(Seen), pictures, cache="memory", epochs=planned, callbacks=[Halt(path, 1)])
    fitted(tuner, pictures, cache="memory", epochs=7, resume_from=path)
    assert isinstance(tuner, Seen)
    assert len(set().union(*(tuner.seen[epoch] for epoch in range(2, 7)))) == (4 if planned == 5 else 5) * COUNT


def test_a_resumed_phase_without_views_stays_so(pictures: Path, tmp_path: Path) -> None:
    whole = fitted(tuned(), pictures, cache=False)
    assert same(whole, resumed(pictures, tmp_path, 1, {"cache": False}, {"cache": "memory"}))


def test_a_resumed_run_decides_anew_for_its_later_phases(pictures: Path, tmp_path: Path) -> None:
    strategy = {"strategy": [Phase("*", 2, name="all"), Phase("fc", 5, name="probe")], "cache": "memory"}
    whole = fitted(tuned(), pictures, **strategy)
    for epoch in (1, 4):
        assert same(whole, resumed(pictures, tmp_path, epoch, strategy, strategy))


def test_a_frozen_weight_that_changes_ends_the_cache_and_not_the_views(pictures: Path) -> None:
    class Thaw(Callback):
        def on_epoch_end(self, run: Any) -> None:
            with torch.no_grad():
                run.model.block[0].weight.add_(0.01)

    runs = [fitted(tuned(), pictures, cache=c, augment_views=2, callbacks=[Thaw()]) for c in (False, "memory")]
    assert same(*runs)


# ---------------------------------------------------------------- errors


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for index in range(8):
            values = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8)
            yield Image.fromarray(values.numpy()), index % 2


@pytest.mark.parametrize("views", [-1, 1.5, True, "all"])
def test_an_invalid_number_of_views(pictures: Path, views: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected augment_views to be a whole number of at least 0"):
        fitted(tuned(), pictures, augment_views=views)


def test_views_without_augmentation(pictures: Path) -> None:
    with pytest.raises(ArgumentError, match=r"augment_views=2 .* images are not augmented"):
        fitted(tuned(), pictures, augment=False, augment_views=2)
    with pytest.raises(ArgumentError, match="images are not augmented"):
        fitted(tuned(), (torch.rand(8, 3, 12, 12), torch.arange(8) % 2), augment_views=2)
    with pytest.raises(ArgumentError, match="read as a stream"):
        fitted(tuned(), Stream(), augment_views=2)
