"""Hugging Face transformers: heads, stages, names. Small configs, random weights, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.errors import ArgumentError, CheckpointError, HeadError
from finetune.model import catalog
from finetune.model.inspection.forward_graph import reading_order
from finetune.model.inspection.probing import accepted_example
from finetune.model.stages import stages
from finetune.model.surgery.head_search import find_head
from finetune.model.surgery.heads import num_outputs

transformers = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip
BART = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40,
}  # fmt: skip
SEGFORMER = {
    "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16], "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 8, "image_size": 64,
}  # fmt: skip

# Class -> options of its config, its heads: one class for each place where the library has heads.
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "BertForSequenceClassification": (TEXT, ("classifier",)),
    "RobertaForSequenceClassification": (TEXT, ("classifier.out_proj",)),
    "GPT2ForSequenceClassification": (
        {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "pad_token_id": 0, "eos_token_id": 2}, ("score",)
    ),
    "BartForSequenceClassification": (BART, ("classification_head.out_proj",)),
    "ViTForImageClassification": (VISION, ("classifier",)),
    "DeiTForImageClassificationWithTeacher": (VISION, ("cls_classifier", "distillation_classifier")),
    "ResNetForImageClassification": (
        {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}, ("classifier.1",)
    ),
    "SegformerForImageClassification": (SEGFORMER, ("classifier",)),
}  # fmt: skip


def build(name: str, **options: Any) -> nn.Module:
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model: nn.Module = cls(cls.config_class(**MODELS[name][0], **options)).eval()
    return model


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def inputs_for(model: nn.Module) -> Any:
    example = accepted_example(model)
    assert example is not None
    return example


def test_the_head_is_replaced_and_nothing_else(name: str, tmp_path: Path) -> None:
    tuner = FineTuner(build(name), device="cpu")
    model: Any = tuner.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    heads = MODELS[name][1]
    assert find_head(model) == heads
    tuner.replace_head(5)
    after = model.state_dict()
    assert {key for key in before if before[key].shape != after[key].shape} == {
        key for key in before if key.rpartition(".")[0] in heads
    }
    inside = {key for key in before if key.rpartition(".")[0] in heads}
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - inside)
    assert model.config.num_labels == 5 == getattr(model, "num_labels", 5)
    assert sorted(model.config.id2label) == [0, 1, 2, 3, 4]
    assert len(model.config.label2id) == 5

    inputs = inputs_for(model)
    with torch.no_grad():
        logits = model(**inputs).logits
        assert logits.shape == (2, 5)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(again(**inputs).logits, logits)


def test_trap_28_the_models_own_loss_runs_on_the_new_labels() -> None:
    model: Any = FineTuner(build("BertForSequenceClassification", problem_type="regression")).replace_head(5).model
    loss = model(input_ids=torch.ones(3, 4, dtype=torch.int64), labels=torch.tensor([0, 4, 2])).loss
    assert loss.isfinite()
    assert model.config.problem_type == "single_label_classification"


def test_class_names_of_the_data_are_in_the_config(tmp_path: Path) -> None:
    tuner = FineTuner(build("ViTForImageClassification")).replace_head(2)
    tuner.fit((torch.randn(4, 3, 32, 32), ["cat", "dog", "cat", "dog"]), progress=False)
    config: Any = tuner.model.config
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == {"cat": 0, "dog": 1}


def test_stages_are_complete_and_end_with_the_head(name: str) -> None:
    model = build(name)
    heads = MODELS[name][1]
    found = stages(model, heads, reading_order(model, inputs_for(model)))
    listed = [key for stage in found for key in stage.parameters]
    assert sorted(listed) == sorted(key for key, _ in model.named_parameters())
    assert len({stage.name for stage in found}) == len(found) >= 4
    assert set(found[-1].parameters) == {key for key in listed if key.rpartition(".")[0] in heads}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BertForSequenceClassification", "bert.embeddings bert.encoder.layer.0 bert.encoder.layer.1 "
         "bert.encoder.layer.2 bert.pooler classifier"),
        ("GPT2ForSequenceClassification", "transformer.wte transformer.wpe transformer.h.0 transformer.h.1 "
         "transformer.h.2 score"),
        ("BartForSequenceClassification", "model.shared model.encoder.embed_positions model.encoder.layers.0 "
         "model.encoder.layers.1 model.decoder.embed_positions model.decoder.layers.0 model.decoder.layers.1 "
         "classification_head.dense classification_head.out_proj"),
        ("ViTForImageClassification", "vit.embeddings vit.layers.0 vit.layers.1 vit.layers.2 "
         "classifier"),
        ("ResNetForImageClassification", "resnet.embedder resnet.encoder.stages.0 resnet.encoder.stages.1 "
         "resnet.encoder.stages.2 resnet.encoder.stages.3 classifier.1"),
    ],
)  # fmt: skip
def test_stages_are_in_the_order_of_the_layers(name: str, expected: str) -> None:
    model = build(name)
    found = stages(model, MODELS[name][1], reading_order(model, inputs_for(model)))
    assert " ".join(stage.name for stage in found) == expected


@pytest.mark.parametrize("cls", ["BertModel", "BertForMaskedLM"])
def test_a_class_without_a_classification_head_is_an_error(cls: str) -> None:
    model = getattr(transformers, cls)(transformers.BertConfig(**TEXT))
    with pytest.raises(HeadError, match=f"{cls} has no layer that follows config.num_labels.*AutoModelFor"):
        FineTuner(model).replace_head(3)


def test_a_custom_class_is_searched() -> None:
    class Mine(transformers.BertPreTrainedModel):
        def __init__(self, config: Any, width: int) -> None:
            super().__init__(config)
            self.bert = transformers.BertModel(config, add_pooling_layer=False)
            self.mine = nn.Linear(width, 7)

        def forward(self, input_ids: Tensor) -> Tensor:
            out: Tensor = self.mine(self.bert(input_ids).last_hidden_state[:, 0])
            return out

    assert find_head(Mine(transformers.BertConfig(**TEXT), 16)) == ("mine",)


# ---------------------------------------------------------------- by name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a folder with `save_pretrained`, class names and an image processor."""
    model: Any = build("ViTForImageClassification", num_labels=2, id2label={0: "cat", 1: "dog"})
    model.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}})
    )
    return tmp_path / "vit"


def test_a_folder_gives_model_and_classes_and_can_be_rebuilt(folder: Path) -> None:
    made = catalog.create(str(folder))
    theirs = transformers.ViTForImageClassification.from_pretrained(folder)
    state = made.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in theirs.state_dict().items())
    assert made.classes == ("cat", "dog")
    again: Any = catalog.rebuild(json.loads(json.dumps(made.origin)))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert again.config.id2label == {0: "cat", 1: "dog"}


def test_a_checkpoint_of_a_folder_needs_neither_model_nor_folder(folder: Path, tmp_path: Path) -> None:
    tuner = FineTuner(str(folder)).replace_head(3)
    pictures = torch.randn(4, 3, 32, 32)
    expected = tuner.predict(pictures)
    tuner.save_checkpoint(tmp_path / "t.safetensors")
    for file in folder.iterdir():
        file.unlink()
    again = FineTuner.load_checkpoint(tmp_path / "t.safetensors")
    assert torch.equal(again.predict(pictures), expected)
    assert again.model.config.num_labels == 3


def test_half_precision_weights_are_loaded_as_float32(folder: Path) -> None:
    transformers.ViTForImageClassification.from_pretrained(folder).half().save_pretrained(folder)
    assert {p.dtype for p in catalog.create(str(folder)).model.parameters()} == {torch.float32}


def test_a_backbone_alone_has_no_classes_yet(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path)
    made = catalog.create(str(tmp_path))
    assert type(made.model).__name__ == "BertForSequenceClassification"
    assert made.classes is None
    assert num_outputs(made.model.get_submodule("classifier")) == 2


def test_a_folder_without_weights_is_an_error_unless_weights_are_random(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"folder .*vit' cannot be used by ViTForImageClassification"):
        catalog.create(str(folder))
    assert catalog.create(str(folder), None).classes is None


def test_a_model_without_a_classifier_is_an_error(tmp_path: Path) -> None:
    transformers.SamConfig().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="transformers has no class that classifies"):
        catalog.create(str(tmp_path), None)


def test_without_a_network_the_error_suggests_a_way_out(offline: None) -> None:
    with pytest.raises(
        CheckpointError, match=r"of no/such is not in the Hugging Face cache.*pass a folder written by save_pretrained"
    ):
        catalog.create("hf/no/such")


def test_the_hub_cache_is_used_without_a_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    import huggingface_hub.constants

    kept = tmp_path / "hub" / "models--someone--vit"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots").mkdir()
    folder.rename(kept / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    made = catalog.create("hf/someone/vit")
    assert made.classes == ("cat", "dog")
    assert type(made.preset).__name__.startswith("ViTImageProcessor")


# ---------------------------------------------------------------- the model's own config


def texts(order: str) -> tuple[Tensor, list[str]]:
    """Return token ids whose first token is 3 for class `a` and 4 for class `b`."""
    words = torch.randint(5, 50, (8, 6), generator=torch.Generator().manual_seed(0))
    words[:, 0] = torch.tensor([3 if name == "a" else 4 for name in order])
    return words, list(order)


def test_the_models_own_classes_keep_their_order() -> None:
    model: Any = build("BertForSequenceClassification", num_labels=2, id2label={0: "b", 1: "a"})
    tuner = FineTuner(model, device="cpu")
    assert tuner.classes == ("b", "a")
    data = texts("abababab")
    expected = tuner.evaluate(data)
    tuner.fit(data, lr=1e-12, progress=False)
    assert tuner.classes == ("b", "a")
    assert model.config.id2label == {0: "b", 1: "a"}
    assert tuner.evaluate(data) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("n", "targets", "expected"),
    [
        (2, torch.arange(8) % 2, "single_label_classification"),
        (3, (torch.arange(24).reshape(8, 3) % 2).float(), "multi_label_classification"),
        (1, torch.linspace(-2, 2, 8), "regression"),
    ],
)
def test_the_config_records_the_task(n: int, targets: Tensor, expected: str) -> None:
    tuner = FineTuner(build("BertForSequenceClassification"), device="cpu").replace_head(n)
    tuner.fit((texts("abababab")[0], targets), progress=False)
    assert tuner.model.config.problem_type == expected


def test_a_model_for_binary_classes_over_one_output_can_be_loaded(tmp_path: Path) -> None:
    tuner = FineTuner(build("BertForSequenceClassification"), device="cpu").replace_head(1)
    tuner.fit(texts("abababab"), progress=False)
    tuner.model.save_pretrained(tmp_path)
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.num_labels == 1
    assert torch.equal(again.classifier.weight, tuner.model.classifier.weight)


def test_half_precision_weights_give_a_warning() -> None:
    tuner = FineTuner(build("BertForSequenceClassification").bfloat16(), device="cpu").replace_head(2)
    with pytest.warns(UserWarning, match=r"half precision.*model.float\(\)"):
        tuner.fit(texts("abababab"), progress=False)
