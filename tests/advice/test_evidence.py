"""The measurements of `advise`, which leave the tuner unchanged."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import DataError, FineTuner
from finetune.advice.evidence import folds_of, measure
from finetune.advice.features import Features
from finetune.demo import DigitNet


def features(samples: int, classes: int = 4, seed: int = 0, distance: float = 2.0) -> Features:
    """Return features with classes that are separated in the second stage and, less so, in the last."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    means = distance * torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    known = means[labels] + torch.randn(samples, 16, generator=generator)
    return Features(
        last=0.2 * known[:, :8] + torch.randn(samples, 8, generator=generator),
        stages={"stem": torch.randn(samples, 4, generator=generator), "layer1": known},
        targets=labels,
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_folds_partition_the_samples_and_are_stratified(labels):
    labels = torch.tensor(labels)
    folds = folds_of(labels)

    assert sorted(torch.cat(folds).tolist()) == list(range(len(labels)))
    for label in labels.unique():
        counts = [int((labels[fold] == label).sum()) for fold in folds]
        assert max(counts) - min(counts) <= 1 or len(folds) < 5


def test_consecutive_samples_share_a_fold():
    folds = folds_of(torch.zeros(20, dtype=torch.int64))

    assert [fold.tolist() for fold in folds] == [list(range(start, start + 4)) for start in range(0, 20, 4)]


def test_a_probe_of_all_stages_recovers_information_lost_in_the_last():
    found = measure(features(200))

    assert found.probe_of_stages > found.probe + 0.1
    assert (found.num_classes, found.measured, found.imbalance) == (4, 200, 1)
    assert 0 < found.spread < 0.2


def test_the_learning_curve_rises_to_the_accuracy_of_the_probe():
    found = measure(features(400, distance=1))

    assert [count for count, _ in found.curve] == [80, 160, 320]
    assert found.curve[-1][1] == found.probe
    assert found.curve[0][1] < found.probe
    assert found.gain_from_doubling == found.curve[2][1] - found.curve[1][1]


def test_the_probe_is_evaluated_on_validation_data():
    train, val = features(200), features(100, seed=1)
    other = Features(-val.last, val.stages, val.labels)

    assert measure(train, val).probe_on_validation == pytest.approx(measure(train).probe, abs=0.1)
    assert measure(train, other).probe_on_validation < measure(train).probe - 0.2
    assert measure(train).probe_on_validation is None


def test_imbalance_is_the_ratio_of_the_largest_class_to_the_smallest():
    all_of = features(200)
    kept = torch.cat([(all_of.labels == label).nonzero().flatten()[: 10 * (label + 1)] for label in range(4)])
    some = Features(all_of.last[kept], {k: v[kept] for k, v in all_of.stages.items()}, all_of.labels[kept])

    assert measure(some).imbalance == 4
    assert measure(some).class_sizes == (10, 20, 30, 40)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((torch.randn(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)), "at least two classes|a single class|one class"),
        ((torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])), "two samples"),
        ((torch.randn(6, 1, 8, 8), torch.randn(6)), "Advice is for classification"),
        ((torch.randn(6, 1, 8, 8), torch.eye(6)[:, :4]), "Advice is for classification"),
    ],
)
def test_unsuitable_data_raises(data, reason):
    with pytest.raises(DataError, match=reason):
        FineTuner(DigitNet(3)).advise(data)


def test_advise_leaves_the_tuner_unchanged():
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4)

    def fitted(*, advised: bool) -> FineTuner:
        torch.manual_seed(0)
        tuner = FineTuner(DigitNet(9))
        if advised:
            before = {name: value.clone() for name, value in tuner.model.state_dict().items()}
            modes = [module.training for module in tuner.model.modules()]
            attributes, state = dict(vars(tuner)), torch.get_rng_state()
            tuner.advise(data)
            assert vars(tuner) == attributes
            assert torch.equal(state, torch.get_rng_state())
            assert modes == [module.training for module in tuner.model.modules()]
            assert all(torch.equal(before[name], value) for name, value in tuner.model.state_dict().items())
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in tuner.model.modules())
        tuner.replace_head(4).fit(data, epochs=2, progress=False)
        return tuner

    plain, other = fitted(advised=False), fitted(advised=True)
    for one, two in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_folder_and_arrays_give_the_same_evidence(tmp_path: Path):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    values = torch.randint(256, (24, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for index, picture in enumerate(values):
        (tmp_path / str(index % 3)).mkdir(exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(tmp_path / str(index % 3) / f"{index:02d}.png")
    preprocessing = {"crop_size": (8, 8), "resize_size": None, "mean": (0.5,), "std": (0.5,), "channels": 1}
    order = torch.arange(24).reshape(8, 3).T.flatten()  # the order of samples in a folder
    torch.manual_seed(0)
    tuner = FineTuner(DigitNet(3), preprocessing=preprocessing)

    of_folder = tuner.advise(tmp_path, 0.25).evidence
    of_arrays = tuner.advise((values[order], order % 3), 0.25).evidence

    assert of_folder == of_arrays
