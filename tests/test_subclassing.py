"""Custom steps: precision, accumulation, clipping, callbacks and history work around an overridden step."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from finetune import ArgumentError, FineTuner, StepOutput
from finetune.callbacks import Callback, EarlyStopping


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def data(n: int = 18, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 3


def weights(tuner: FineTuner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tuner.model.state_dict().items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class OwnStep(FineTuner):
    """A training step that returns only a loss."""

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x).float(), y)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train_step", "training_step"),
        ("traning_step", "training_step"),
        ("validation_steps", "validation_step"),
        ("test_step", "validation_step"),
        ("predict_steps", "predict_step"),
    ],
)
def test_a_step_that_would_never_be_called_is_an_error(name: str, meant: str) -> None:
    def step(tuner: FineTuner, batch: Any) -> Any:
        return F.cross_entropy(tuner.model(batch[0]), batch[1])

    wrong = type("Wrong", (FineTuner,), {name: step})
    with pytest.raises(ArgumentError, match=f"'{name}', which is no step.*Rename the method to '{meant}'"):
        wrong(net(), device="cpu")
    type("Renamed", (FineTuner,), {meant: step})(net(), device="cpu")
    type("Helper", (FineTuner,), {meant: step, name: step, "forward_step": step})(net(), device="cpu")
    type("Flag", (FineTuner,), {name: 3})(net(), device="cpu")


class Count(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, run: Any) -> None:
        self.steps += 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"max_grad_norm": 0.01},
        {"precision": "bf16"},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "precision": "bf16", "optimizer": "sgd"},
    ],
)
def test_a_custom_training_step_trains_like_the_built_in_one(settings: dict[str, Any]) -> None:
    own, plain = OwnStep(net(), device="cpu", **settings), FineTuner(net(), device="cpu", **settings)
    counts = []
    for tuner in (own, plain):
        count = Count()
        callbacks = [count, EarlyStopping()]
        tuner.fit(data(), data(9, 1), epochs=2, batch_size=4, lr=0.05, callbacks=callbacks, progress=False)
        counts.append(count.steps)

    assert equal(weights(own), weights(plain))
    assert counts[0] == counts[1] > 0
    assert [row["loss"] for row in own.history] == [row["loss"] for row in plain.history]
    assert [row["val_loss"] for row in own.history] == [row["val_loss"] for row in plain.history]
    assert "accuracy" not in own.history[0]  # training metrics require a StepOutput
    assert "val_accuracy" in own.history[0]


def test_autocast_is_active_in_a_custom_step() -> None:
    seen = set()

    class Looks(FineTuner):
        def training_step(self, batch: Any) -> Any:
            seen.add(self.model(batch[0]).dtype)
            return super().training_step(batch)

    Looks(net(), device="cpu", precision="bf16").fit(data(), progress=False)
    assert seen == {torch.bfloat16}


def test_knowledge_distillation_as_a_custom_step() -> None:
    class Distiller(FineTuner):
        def __init__(self, model: nn.Module, teacher: nn.Module, **settings: Any) -> None:
            super().__init__(model, **settings)
            self.teacher = teacher.eval()

        def training_step(self, batch: Any) -> StepOutput:
            x, y = batch
            logits = self.model(x)
            with torch.no_grad():
                soft = self.teacher(x).softmax(1)
            return StepOutput(F.kl_div(logits.log_softmax(1), soft, reduction="batchmean"), logits, y)

    teacher = net(7)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    tuner = Distiller(net(), teacher, device="cpu")
    tuner.fit(data(), epochs=8, lr=0.05, progress=False)

    assert tuner.history[-1]["loss"] < 0.7 * tuner.history[0]["loss"]
    assert "accuracy" in tuner.history[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not teacher.training


def test_random_numbers_in_a_custom_step_follow_the_seed() -> None:
    class Mixup(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            x, y = batch
            part, other = torch.distributions.Beta(0.4, 0.4).sample(), torch.randperm(len(x))
            logits = self.model(part * x + (1 - part) * x[other])
            return part * F.cross_entropy(logits, y) + (1 - part) * F.cross_entropy(logits, y[other])

    tuners = [Mixup(net(), device="cpu", seed=seed) for seed in (0, 0, 1)]
    for noise, tuner in enumerate(tuners):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            tuner.fit(data(), epochs=2, progress=False)

    assert equal(weights(tuners[0]), weights(tuners[1]))
    assert not equal(weights(tuners[0]), weights(tuners[2]))


class Words(nn.Module):
    """A model with keyword arguments, like those of Hugging Face."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask[..., None].float()
        return {"logits": self.classifier((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))}


class Texts(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.arange(index, index + 5) % 10
        return {"input_ids": ids, "attention_mask": torch.ones(5), "labels": index % 3}


def test_models_with_dict_inputs_train_evaluate_and_predict() -> None:
    class OwnWords(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            logits = self.model(batch["input_ids"], batch["attention_mask"])["logits"]
            return F.cross_entropy(logits, batch["labels"])

    own, plain = (kind(Words(), device="cpu", seed=1) for kind in (OwnWords, FineTuner))
    own.model.load_state_dict(plain.model.state_dict())
    for tuner in (own, plain):
        tuner.fit(Texts(), Texts(), epochs=2, batch_size=5, lr=0.05, progress=False)

    assert equal(weights(own), weights(plain))
    assert plain.history[1]["loss"] < plain.history[0]["loss"]
    assert plain.predict(Texts()).shape == (12, 3)
    assert plain.evaluate(Texts())["loss"] == pytest.approx(plain.history[-1]["val_loss"])


# ---------------------------------------------------------------------- invalid steps


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda loss: None, "to return a scalar loss or a StepOutput, but the loss is None"),
        (lambda loss: loss.expand(3), r"shape \[3\]"),
        (lambda loss: loss.detach(), "does not depend on any trainable parameter"),
        (lambda loss: loss.item(), "to return a scalar loss or a StepOutput"),
        (lambda loss: (loss, loss), "to return a scalar loss or a StepOutput"),
        (lambda loss: {"loss": loss}, "to return a scalar loss or a StepOutput"),
        (lambda loss: StepOutput(loss[None]), r"shape \[1\]"),
    ],
)
def test_a_step_without_a_valid_loss_is_an_error_and_changes_nothing(make: Any, words: str) -> None:
    class Wrong(OwnStep):
        def training_step(self, batch: Any) -> Any:
            return make(super().training_step(batch))

    tuner = Wrong(net(), device="cpu")
    before = [parameter.clone() for parameter in tuner.model.parameters()]
    with pytest.raises(ArgumentError, match=words) as caught:
        tuner.fit(data(), progress=False)

    assert "training_step" in str(caught.value)
    assert all(map(torch.equal, before, tuner.model.parameters()))
    assert len(tuner.history) == 0


# ---------------------------------------------------------------------- validation and prediction


def test_a_custom_validation_step_is_used_by_fit_and_evaluate() -> None:
    class Own(FineTuner):
        def validation_step(self, batch: Any) -> Tensor:
            assert not torch.is_grad_enabled()
            assert not any(module.training for module in self.model.modules())
            return batch[0].sum(1).mean()

    tuner, (X, y) = Own(net(), device="cpu"), data()
    tuner.fit((X, y), (X, y), batch_size=5, progress=False)

    assert tuner.evaluate((X, y), batch_size=7) == {"loss": pytest.approx(X.sum(1).mean().item(), abs=1e-6)}
    assert tuner.history[0]["val_loss"] == pytest.approx(X.sum(1).mean().item(), abs=1e-6)
    with pytest.raises(ArgumentError, match="val_accuracy"):
        tuner.fit((X, y), (X, y), callbacks=[EarlyStopping("val_accuracy")], progress=False)


def test_a_custom_predict_step_is_used_by_predict() -> None:
    class Probabilities(FineTuner):
        def predict_step(self, batch: Any) -> Tensor:
            return super().predict_step(batch).softmax(1)

    tuner = Probabilities(net(), device="cpu")
    torch.testing.assert_close(tuner.predict(data(), batch_size=5).sum(1), torch.ones(18))
    with torch.no_grad():
        torch.testing.assert_close(tuner.predict(data()[0]), tuner.model.eval()(data()[0]).softmax(1))


def test_a_predict_step_that_does_not_return_a_tensor_is_an_error() -> None:
    class Wrong(FineTuner):
        def predict_step(self, batch: Any) -> Any:
            return {"logits": super().predict_step(batch)}

    with pytest.raises(ArgumentError, match=r"Expected predict_step to return a tensor .* but got a dict"):
        Wrong(net(), device="cpu").predict(data()[0])


def test_load_checkpoint_returns_the_subclass(tmp_path: Any) -> None:
    path = OwnStep(net(), device="cpu").save_checkpoint(tmp_path / "f")

    assert type(OwnStep.load_checkpoint(path, net(1), device="cpu")) is OwnStep


# ---------------------------------------------------------------------- auxiliary heads

Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


class GoogLeNet(nn.Module):
    """A tiny stand-in for GoogLeNet that returns auxiliary logits in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.fc, self.aux = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.stem(x).relu()
        return Outputs(self.fc(features), self.aux(features)) if self.training else self.fc(features)


def test_trap_27_auxiliary_logits_are_weighted_in_the_training_loss() -> None:
    torch.manual_seed(0)
    (X, y), tuner = data(), FineTuner(GoogLeNet(), device="cpu")
    output = tuner.model.train()(X)
    expected = F.cross_entropy(output.logits, y) + 0.3 * F.cross_entropy(output.aux_logits, y)
    before = tuner.model.aux.weight.clone()

    tuner.fit((X, y), (X, y), batch_size=18, lr=1e-6, progress=False)

    assert tuner.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert tuner.history[0]["val_loss"] == pytest.approx(F.cross_entropy(output.logits, y).item(), rel=1e-4)
    assert not torch.equal(tuner.model.aux.weight, before)
    assert tuner.predict(X).shape == (18, 3)


def test_trap_27_auxiliary_heads_are_replaced_and_train() -> None:
    tuner = FineTuner(GoogLeNet(), device="cpu").replace_head(5)
    tuner.fit((data()[0], torch.arange(18) % 5), progress=False)

    assert (tuner.model.fc.out_features, tuner.model.aux.out_features) == (5, 5)
