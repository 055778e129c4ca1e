"""Messages about checkpoints and comparisons."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune import Comparison, FineTuner, Phase
from finetune.callbacks import Callback, ModelCheckpoint
from finetune.checkpoint.file import gather
from finetune.comparison.comparison import RunResult
from finetune.training.run import Run
from tests.messages.material import X, case, compared, error, fit, logged, masked, tuner, y


@case("For weights from elsewhere, use FineTuner(..., weights='FILE')")
def weights_as_checkpoint(tmp: Path) -> str:
    save_file(tuner().model.state_dict(), tmp / "w.safetensors")
    said = error(lambda: FineTuner.load_checkpoint(tmp / "w.safetensors"))
    fit(FineTuner(tuner().model, weights=tmp / "w.safetensors", device="cpu"))
    return said


@case("which a checkpoint cannot hold, so the default is used. Pass %s again")
def settings_that_are_lost(tmp: Path) -> str:
    path = fit(tuner(loss=masked, metrics=[]), (X, nn.functional.one_hot(y, 3))).save_checkpoint(tmp / "a.safetensors")
    said = logged(lambda: FineTuner.load_checkpoint(path, tuner().model))
    again = logged(lambda: FineTuner.load_checkpoint(path, tuner().model, loss=masked))
    assert "so the default is used" not in again
    return said


@case("Set these weights anew, or load those of before")
def weights_that_are_nan(tmp: Path) -> str:
    model = nn.Linear(4, 3)
    path = FineTuner(model, device="cpu").save_checkpoint(tmp / "a.safetensors")
    nn.init.constant_(model.bias, float("nan"))
    said = error(lambda: FineTuner(model, device="cpu").save_checkpoint(path))
    FineTuner.load_checkpoint(path, model).save_checkpoint(path)
    return said


@case("Use another copy")
def damaged_checkpoint(tmp: Path) -> str:
    content = tuner().save_checkpoint(tmp / "a.safetensors").read_bytes()
    (tmp / "b.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = error(lambda: FineTuner.load_checkpoint(tmp / "b.safetensors", tuner().model))
    FineTuner.load_checkpoint(tmp / "a.safetensors", tuner().model)
    return said


@case("Omit sharded to write a single file", "is a single file already. Use it as it is")
def nothing_to_shard(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), callbacks=ModelCheckpoint(tmp, sharded=True)))
    fit(tuner(), callbacks=ModelCheckpoint(tmp))
    path = tuner().save_checkpoint(tmp / "a.safetensors")
    said += error(lambda: gather(path, tmp / "b.safetensors"))
    FineTuner.load_checkpoint(path, tuner().model)
    return said


@case("Build the model, replace its head in the same way, and pass it as model=")
def custom_head(tmp: Path) -> str:
    class Own(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.linear = nn.Linear(features, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)[:, : self.linear.in_features])

    def made() -> FineTuner:
        return FineTuner("shufflenet_v2_x0_5", weights=None, device="cpu").replace_head(3, head=Own)

    path = made().save_checkpoint(tmp / "own.safetensors")
    said = error(lambda: FineTuner.load_checkpoint(path))
    FineTuner.load_checkpoint(path, model=made().model)
    return said


@case("To continue from its weights, load it with load_checkpoint and call fit")
def checkpoint_without_a_run(tmp: Path) -> str:
    path = tuner().save_checkpoint(tmp / "model.safetensors")
    said = error(lambda: fit(tuner(), resume_from=path))
    fit(FineTuner.load_checkpoint(path, tuner().model))
    fit(tuner(), checkpoint_dir=tmp / "run")
    fit(tuner(), resume_from=tmp / "run" / "last.safetensors")
    return said


@case("Pass fit the folder of the checkpoints")
def resume_from_nowhere(tmp: Path) -> str:
    said = error(lambda: fit(tuner(), resume_from="auto"))
    fit(tuner(), resume_from="auto", checkpoint_dir=tmp)
    return said


@case("Resume with the same values")
def resume_another_plan(tmp: Path) -> str:
    fit(tuner(), strategy="linear_probe", checkpoint_dir=tmp)
    said = error(lambda: fit(tuner(), strategy="full_finetune", resume_from=tmp))
    fit(tuner(), strategy="linear_probe", resume_from=tmp)
    anew = FineTuner(tuner().model, weights=tmp / "last.safetensors", device="cpu")
    fit(anew, strategy="full_finetune", checkpoint_dir=tmp / "anew")
    return said


@case("or copy values into a parameter, as in parameter.data.copy_(values)")
def replace_a_layer_within_fit(tmp: Path) -> str:
    class Swap(Callback):
        def on_epoch_begin(self, run: Run) -> None:
            head = next(module for module in run.model.modules() if isinstance(module, nn.Linear))
            if self.whole:
                head.weight = nn.Parameter(torch.zeros_like(head.weight))
            head.weight.data.copy_(torch.zeros_like(head.weight))

        def __init__(self, whole: bool) -> None:
            self.whole = whole

    said = error(lambda: fit(tuner(), callbacks=Swap(True)))
    fit(tuner(), callbacks=Swap(False))
    return said


@case("Pass fit and FineTuner the same ones, or resume_changed=True to go on with the new ones")
def resume_a_changed_run(tmp: Path) -> str:
    fit(tuner(), checkpoint_dir=tmp)
    said = error(lambda: fit(tuner(seed=1), resume_from=tmp, epochs=2))
    fit(tuner(), resume_from=tmp, epochs=2)
    fit(tuner(seed=1), resume_from=tmp, epochs=2, resume_changed=True)
    return said


@case("or omit resume_from")
def nothing_intact(tmp: Path) -> str:
    def damage() -> None:
        for path in tmp.glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-1])

    fit(tuner(), checkpoint_dir=tmp)
    damage()
    said = error(lambda: fit(tuner(), checkpoint_dir=tmp, resume_from="auto"))
    fit(tuner(), checkpoint_dir=tmp)
    damage()
    for path in tmp.glob("*.safetensors"):
        path.unlink()
    fit(tuner(), checkpoint_dir=tmp, resume_from="auto")
    return said


@case("Wait for its end, or choose another folder")
def two_runs_in_one_folder(tmp: Path) -> str:
    def second(run: Run) -> None:
        said.append(error(lambda: fit(tuner(), checkpoint_dir=tmp / "run")))
        fit(tuner(), checkpoint_dir=tmp / "other")

    said: list[str] = []
    callback = Callback()
    callback.on_epoch_end = second  # type: ignore[method-assign]
    fit(tuner(), checkpoint_dir=tmp / "run", callbacks=callback)
    fit(tuner(), checkpoint_dir=tmp / "run")
    return said[0]


@case("Pass fit and FineTuner the same arguments as in that run")
def resume_with_other_metrics(tmp: Path) -> str:
    fit(tuner(), checkpoint_dir=tmp)
    said = error(lambda: fit(tuner(metrics=["f1"]), resume_from=tmp, epochs=2))
    fit(tuner(), resume_from=tmp, epochs=2)
    return said


@case("Change their epochs or the budget, or pass a strategy function")
def phases_beyond_the_budget(tmp: Path) -> str:
    said = error(lambda: compared(strategies=[[Phase("*", 2)]]))
    compared(strategies=[[Phase("*", 2)]], budget=2)
    compared(strategies=[[Phase("*", 1)]])
    compared(strategies=[lambda stages, epochs, lr: [Phase("*", epochs)]])
    return said


@case("use cache=False to compare speed")
def reused_activations(tmp: Path) -> str:
    said = str(Comparison([RunResult("net", "lp_ft", 0, "accuracy", 0.9, found=0.5)], budget=1))
    assert "*: reused" not in str(compared(cache=False))
    return said


@case("so its runs could not be recognized later. Omit folder")
def settings_without_a_fingerprint(tmp: Path) -> str:
    class Own:
        def __init__(self) -> None:
            self.me = [self]

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets)

    said = error(lambda: compared(loss=Own(), folder=tmp))
    compared(loss=Own())
    return said


@case("A comparison requires validation data. Pass val, or omit it")
def compare_without_validation(tmp: Path) -> str:
    said = error(lambda: compared(val=False))
    compared(val=(X, y))
    compared(val=None)
    return said
