"""The command line, run as a user runs it: its files, its output, and one line per usage error."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from PIL import Image

from finetune import FineTuner
from finetune.cli import main

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"cat": (220, 30, 30), "dog": (30, 220, 30), "eel": (30, 30, 220)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three classes of two images each, one color per class."""
    folder = tmp_path_factory.mktemp("data") / "pets"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (24, 20), colour).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint written by a short `train`."""
    return train(pictures, tmp_path_factory.mktemp("run") / "pets.safetensors")


def train(data: Path | str, out: Path, *options: object, model: str = "squeezenet1_1") -> Path:
    """Run `finetune train` for one epoch from random weights, and return the checkpoint."""
    fixed = ["--model", model, "--weights", "none", "--epochs", 1, "--out", out]
    main([str(part) for part in ["train", data, *fixed, *options]])
    return out


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run an invalid command, and return its error message of one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("finetune: ")
    return lines[0]


def trainable(file: Path) -> set[str]:
    return {name for name, p in FineTuner.load_checkpoint(file).model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------- commands


def test_train_writes_a_checkpoint_with_the_classes_and_prints_its_path(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = train(pictures, tmp_path / "new" / "pets.safetensors", "--val", pictures, model="resnet18")
    assert capsys.readouterr().out == f"wrote {file} and run.toml\n"
    tuner = FineTuner.load_checkpoint(file)
    assert tuner.classes == ("cat", "dog", "eel")
    assert len(tuner.history) == 1
    assert tuner.evaluate(pictures)["loss"] == pytest.approx(tuner.history[0]["val_loss"])


def test_evaluate_prints_the_metrics(checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate", checkpoint, pictures, "--batch-size", 4)
    measured = FineTuner.load_checkpoint(checkpoint).evaluate(pictures)
    assert capsys.readouterr().out.splitlines() == [f"{name} {value:.4f}" for name, value in measured.items()]


@pytest.mark.parametrize("top", [1, 2, 9])
def test_predict_prints_the_most_likely_classes(
    top: int, checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = pictures / "dog" / "1.png"
    run("predict", checkpoint, picture, "--top", top)
    name, *said = capsys.readouterr().out.split()
    chances = FineTuner.load_checkpoint(checkpoint).predict_proba(picture)[0]
    best = chances.topk(min(top, 3))
    expected = [(list(COLOURS)[i], f"{v:.4f}") for v, i in zip(best.values, best.indices, strict=True)]
    assert name.strip("'").endswith("1.png")
    assert list(zip(said[::2], said[1::2], strict=True)) == expected


def test_predict_accepts_several_images_or_a_folder(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(pictures.glob("*/*.png"))
    run("predict", checkpoint, *files)
    several = capsys.readouterr().out.splitlines()
    run("predict", checkpoint, pictures)
    folder = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in several] == [line.split()[1:] for line in folder]
    for lines in (several, folder):
        assert all(file.name in line.split()[0] for file, line in zip(files, lines, strict=True))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_predict_writes_the_answers_to_a_file(
    suffix: str, checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = FineTuner.load_checkpoint(checkpoint).classify(pictures, top=2, reject=0.5)
    out = tmp_path / f"answers{suffix}"
    run("predict", checkpoint, pictures, "--top", 2, "--reject", 0.5, "--out", out)
    assert capsys.readouterr().out == f"wrote {out}\n"
    write = answers.to_csv if suffix == ".csv" else answers.to_jsonl
    assert out.read_bytes() == write(tmp_path / "expected").read_bytes()


def test_predict_reads_the_paths_in_a_table(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(pictures.glob("*/*.png"))[:3]
    (tmp_path / "new.csv").write_text("path\n" + "\n".join(map(str, files)))
    run("predict", checkpoint, tmp_path / "new.csv")
    table = capsys.readouterr().out
    run("predict", checkpoint, *files)
    assert capsys.readouterr().out == table


def test_summary_of_a_name_and_of_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("summary", "squeezenet1_1")
    assert "1,235,496" in capsys.readouterr().out
    run("summary", checkpoint, "--size", 64)
    said = capsys.readouterr().out
    assert "classifier" in said
    assert "1,235,496" not in said


def test_verify_prints_what_a_whole_checkpoint_holds(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("verify", checkpoint)
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["file"].startswith(f"whole, {checkpoint.stat().st_size:,} bytes")
    assert "torchvision squeezenet1_1" in said["model"]
    assert said["classes"] == "3: " + ", ".join(COLOURS)
    assert said["task"] == "classification"


@pytest.mark.parametrize("kind", ["damaged", "cut", "foreign", "missing"])
def test_verify_exits_with_1_and_the_reason(
    kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, content = tmp_path / "other.safetensors", bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    if kind == "foreign":
        safetensors.torch.save_file({"w": torch.zeros(2)}, path)
    elif kind != "missing":
        path.write_bytes(content if kind == "damaged" else content[:-9])
    with pytest.raises(SystemExit) as ended:
        run("verify", path)
    reason = {"damaged": "checksum", "cut": "damaged", "foreign": "is not a checkpoint", "missing": "cannot be read"}
    assert ended.value.code == 1
    assert reason[kind] in capsys.readouterr().err


def test_interpret_prints_the_page_and_writes_the_plots(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("interpret", checkpoint, pictures)
    page = capsys.readouterr().out
    assert page == f"{FineTuner.load_checkpoint(checkpoint).interpret(pictures)}\n"
    run("interpret", checkpoint, pictures, "--plots", tmp_path / "new" / "plots", "--heatmaps")
    assert capsys.readouterr().out.startswith(f"{page}\nwrote {tmp_path}")
    names = {path.name for path in (tmp_path / "new" / "plots").iterdir()}
    assert names == {f"{name}.png" for name in ("confusion", "reliability", "scores", "curves", "mistakes")}
    assert "cannot be made" in mistake(capsys, "interpret", "nothing", pictures, "--plots", checkpoint)


def test_version_prints_the_installed_version(capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    assert capsys.readouterr().out == f"finetune {version('torch-finetune')}\n"


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert all(command in said for command in ("train", "evaluate", "predict", "summary", "compare", "demo"))


# ---------------------------------------------------------------- options of train


def test_train_accepts_a_table(pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "pets.csv"
    rows = [f"{file},{file.parent.name}" for file in sorted(pictures.glob("*/*.png"))]
    table.write_text("\n".join(["path,label", *rows]))
    file = train(table, tmp_path / "pets.safetensors", "--val", pictures)
    assert FineTuner.load_checkpoint(file).classes == ("cat", "dog", "eel")


def test_data_at_a_url_gives_the_same_checkpoint_and_the_same_answers(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(pictures), "/shelter", recursive=True)
    local, remote = (
        safetensors.torch.load_file(train(data, tmp_path / name, "--val", data))
        for data, name in ((pictures, "local.safetensors"), ("memory://shelter", "remote.safetensors"))
    )
    assert local.keys() == remote.keys()
    assert all(torch.equal(local[name], remote[name]) for name in local)
    capsys.readouterr()
    run("predict", tmp_path / "remote.safetensors", "memory://shelter/cat", "memory://shelter/dog/0.png")
    run("evaluate", tmp_path / "remote.safetensors", "memory://shelter")
    run("check-data", "memory://shelter", "--model", "squeezenet1_1", "--weights", "none")
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[:3]] == [
        f"memory://shelter/{name}.png" for name in ("cat/0", "cat/1", "dog/0")
    ]
    memory.rm("/shelter", recursive=True)


def test_train_uses_both_parts_of_a_divided_folder(pictures: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / part).symlink_to(pictures)
    file = train(tmp_path / "all", tmp_path / "pets.safetensors")
    tuner = FineTuner.load_checkpoint(file)
    assert tuner.classes == ("cat", "dog", "eel")
    assert "val_loss" in tuner.history[0]


def test_freeze_backbone_trains_the_head(pictures: Path, tmp_path: Path) -> None:
    file = train(pictures, tmp_path / "m.safetensors", "--freeze", "backbone", "--val", pictures)
    assert trainable(file) == {"classifier.1.weight", "classifier.1.bias"}


def test_freeze_accepts_patterns(pictures: Path, tmp_path: Path) -> None:
    patterns = ("--freeze", "features.[0-9]", "--freeze", "features.1[01]")
    file = train(pictures, tmp_path / "m.safetensors", *patterns, "--val", pictures)
    assert {".".join(name.split(".")[:2]) for name in trainable(file)} == {"features.12", "classifier.1"}


def test_a_strategy_and_two_rates(pictures: Path, tmp_path: Path) -> None:
    options = ("--strategy", "full_finetune", "--lr", "1e-5,1e-3", "--val", pictures)
    history = FineTuner.load_checkpoint(train(pictures, tmp_path / "m.safetensors", *options)).history
    assert history[0]["phase"] == "full_finetune"
    rates = history[0]["lr"].values()
    assert max(rates) / min(rates) == pytest.approx(100)  # the schedule scales both equally


def test_the_seed_fixes_the_weights_and_resume_continues(pictures: Path, tmp_path: Path) -> None:
    def weights(name: str, *options: object) -> torch.Tensor:
        file = train(pictures, tmp_path / name, "--freeze", "backbone", "--val", pictures, *options)
        return FineTuner.load_checkpoint(file).head.weight.detach()

    first = weights("a", "--seed", 3, "--checkpoint-dir", tmp_path / "run")
    assert torch.equal(first, weights("b", "--seed", 3))
    assert not torch.equal(first, weights("c", "--seed", 4))
    resumed = weights("d", "--seed", 3, "--checkpoint-dir", tmp_path / "run", "--resume")  # already complete
    assert torch.equal(first, resumed)


# ---------------------------------------------------------------- usage errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "resnet19"], "no model 'resnet19'. Did you mean 'resnet18'"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "two"], "--epochs"),
        (["--batch-size", "0"], "--batch-size"),
        (["--epoch", "3"], "--epochs"),
        (["--lr", "fast"], "Expected --lr to be a number, or two as 1e-4,1e-3, but got 'fast'"),
        (["--lr", "1,2,3"], "Expected --lr"),
        (["--lr", ""], "Expected --lr"),
        (["--lr", "nan"], "nan"),
        (["--lr=-1"], "-1"),
        (["--freeze", "fetures"], "'fetures' matches no module.*Did you mean 'features'"),
        (["--strategy", "linear_prob"], "Did you mean 'linear_probe'"),
        (["--precision", "fp8"], "no precision 'fp8'"),
        (["--weights", "IMAGENET1K_V9"], "Did you mean 'IMAGENET1K_V1'"),
        (["--val", "nowhere"], "'nowhere' does not exist"),
        (["--resume"], "--resume needs a --checkpoint-dir"),
        (["--log", "tensorbord"], "no logger 'tensorbord'. Did you mean 'tensorboard'"),
        (["--swa", "2"], "start"),
        (["--resume-changed"], "--resume-changed'?: It needs --resume"),
        (["--out", "."], "cannot be written"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_prints_one_line(
    arguments: list[str], said: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--model", "squeezenet1_1", "--weights", "none", "--out", tmp_path / "m.safetensors"]
    line = mistake(capsys, "train", pictures, *known, *arguments)
    assert re.search(said, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "'data'"),
        (["train", "pets"], "'--out'"),
        (["fit"], "No such command 'fit'"),
        (["predict", "m.safetensors"], "'data'"),
        (["demo", "--folder", "/dev/null/x"], "/dev/null/x cannot be made"),
        (["summary", "resnet19"], "Did you mean 'resnet18'"),
        (["summary", "resnet18", "--size", "-1"], "-1"),
        (["evaluate", "m.safetensors", "pets"], "m.safetensors cannot be read: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_prints_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said.lower() in mistake(capsys, *arguments).lower()


def test_missing_data_is_reported_before_any_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, "train", tmp_path / "nowhere", "--out", tmp_path / "m.safetensors")
    assert "nowhere' does not exist" in line


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_names_the_missing_weights_file(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("train", pictures, "--out", tmp_path / "m.safetensors")
    assert ended.value.code == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith("Downloading:")]
    assert (said.out, len(lines)) == ("", 1)  # torch prints the download URL first
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in lines[0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_corrupt_checkpoint_prints_one_line(
    damage: str, checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(checkpoint.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        content[-100] ^= 1
    else:
        content = bytearray(b"not a checkpoint")
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    for arguments in (["evaluate", file, pictures], ["predict", file, pictures], ["summary", file]):
        assert str(file) in mistake(capsys, *arguments)


def test_a_corrupt_image_is_named_in_one_line_and_can_be_skipped(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures, tmp_path / "pets")
    bad = tmp_path / "pets" / "cat" / "bad.png"
    bad.write_bytes((pictures / "cat" / "0.png").read_bytes()[:40])
    new = ["train", tmp_path / "pets", "--val", pictures, "--model", "squeezenet1_1", "--weights", "none"]
    for arguments in ([*new, "--out", tmp_path / "m"], ["evaluate", checkpoint, tmp_path / "pets"]):
        assert "bad.png" in mistake(capsys, *arguments)
    assert "bad.png" in mistake(capsys, "predict", checkpoint, bad)
    skipping = ("--skip-corrupt", "--val", pictures)
    assert train(tmp_path / "pets", tmp_path / "m.safetensors", *skipping).is_file()


# Words of Python that no message of the command line may hold.
PYTHON = re.compile(r"replace_head|FineTuner|fit\(|\w=\S|val=|skip_corrupt|batch_size|checkpoint_dir|\(X, y\)")


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "interpret", "summary", "advise", "compare"])
def test_errors_speak_of_options(
    command: str, checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures, tmp_path / "four")
    shutil.copytree(pictures / "cat", tmp_path / "four" / "ant")
    shutil.copytree(pictures / "cat", tmp_path / "one" / "cat")
    (tmp_path / "words.csv").write_text("text,label\ngood,a\nbad,b\nfair,a\npoor,b\n")
    (tmp_path / "few.csv").write_text(f"path,label\n{pictures}/cat/0.png,a\n{pictures}/dog/0.png,b\n")
    bad = tmp_path / "bad" / "cat" / "bad.png"
    shutil.copytree(pictures, tmp_path / "bad")
    bad.write_bytes(b"none")
    new = ["--model", "squeezenet1_1", "--weights", "none"]
    out = ["--out", tmp_path / "m.safetensors"]
    folders = [tmp_path / name for name in ("one", "words.csv", "few.csv", "bad", "nowhere")]
    wrong: dict[str, list[list[object]]] = {
        "train": [[data, *new, *out] for data in folders],
        "evaluate": [[checkpoint, tmp_path / "four"], *([checkpoint, data] for data in folders[1:])],
        "predict": [[checkpoint, data] for data in (bad, tmp_path / "nowhere")],
        "interpret": [[checkpoint, tmp_path / "four"], *([checkpoint, data] for data in folders[1:])],
        "summary": [["resnet19"], [pictures / "cat" / "0.png"]],
        "advise": [[data, *new] for data in folders],
        "compare": [[data, *new, "--folder", tmp_path / "kept", "--epochs", "1"] for data in folders],
    }
    for arguments in wrong[command]:
        line = mistake(capsys, command, *arguments).replace(str(tmp_path), "")
        assert not PYTHON.search(line), line


def test_a_skipped_image_is_told_in_options(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(pictures, tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "bad.png").write_bytes(b"none")
    line = mistake(capsys, "train", tmp_path / "pets", "--val", pictures, "--out", tmp_path / "m", "--weights", "none")
    assert line.endswith("To leave them out, pass --skip-corrupt.")


def test_val_takes_a_fraction_or_none(pictures: Path, tmp_path: Path) -> None:
    for val, expected in (("none", False), ("0.5", True)):
        history = FineTuner.load_checkpoint(train(pictures, tmp_path / f"{val}.safetensors", "--val", val)).history
        assert ("val_loss" in history[0]) == expected


def test_a_table_of_several_columns_has_an_output_each(pictures: Path, tmp_path: Path) -> None:
    rows = [f"{file},{i % 2},{i // 2 % 2}" for i, file in enumerate(sorted(pictures.glob("*/*.png")))]
    table = tmp_path / "two.csv"
    table.write_text("\n".join(["path,label_wings,label_fur", *rows]))
    file = train(table, tmp_path / "m.safetensors", "--val", "none")
    assert FineTuner.load_checkpoint(file).task.kind == "multilabel"


# ---------------------------------------------------------------- compare


def compare(pictures: Path, folder: Path, *options: object) -> list[str]:
    """Return a `compare` command for one epoch from random weights."""
    fixed = ["--weights", "none", "--epochs", 1, "--seeds", 1, "--folder", folder, "--val", pictures]
    return [str(part) for part in ["compare", pictures, "--model", "squeezenet1_1", *fixed, *options]]


def test_advise_prints_the_advice_of_each_model_and_draws_the_chart(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = tmp_path / "chart.png"
    models = ["--model", "squeezenet1_1", "--model", "resnet18", "--weights", "none"]
    run("advise", pictures, "--val", pictures, *models, "--chart", chart)
    said = capsys.readouterr().out
    lines = said.splitlines()
    advised = [lines[index - 1] for index, line in enumerate(lines) if "fit(strategy=" in line]
    assert sorted(advised) == ["Model: resnet18", "Model: squeezenet1_1"]
    assert "linear probe" in said
    assert f"wrote {chart}" in said
    with Image.open(chart) as drawn:
        assert drawn.size[0] > 100


def test_compare_prints_a_table_and_writes_it_with_a_plot(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(compare(pictures, tmp_path, "--strategies", "linear_probe, surgical:features.12,surgical:nothing"))
    said = capsys.readouterr().out
    assert ended.value.code == 1  # one run failed
    assert "linear_probe" in said
    assert "Failed: surgical:nothing, seed 0: PatternError" in said
    table = (tmp_path / "comparison.md").read_text()
    assert "| surgical:features.12 |" in table
    with Image.open(tmp_path / "comparison.png") as plot:
        assert plot.format == "PNG"
    main(compare(pictures, tmp_path, "--strategies", "linear_probe"))  # reused, and no run failed
    assert "linear_probe" in capsys.readouterr().out


def test_compare_prints_errors_in_one_line(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no strategy 'linear_prob'" in mistake(capsys, *compare(pictures, tmp_path, "--strategies", "linear_prob"))
    bad = compare(pictures, tmp_path, "--strategies", "surgical:nothing,surgical:neither")
    assert "Every run failed: squeezenet1_1, surgical:nothing: PatternError" in mistake(capsys, *bad)


# ---------------------------------------------------------------- subprocess


@pytest.mark.no_cover
def test_trap_38_an_interrupt_ends_with_130_and_no_traceback(pictures: Path, tmp_path: Path) -> None:
    """The signal is sent after the first epoch, during training."""
    fixed = ["--model", "squeezenet1_1", "--weights", "none", "--epochs", "1000000"]
    code = "import sys; import tests.helpers.lean; from finetune.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "train", str(pictures), *fixed, "--out", str(tmp_path / "m")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("epoch 1/"):
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said


def test_the_installed_script_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="finetune")
    assert script.load() is main
