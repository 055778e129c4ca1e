"""`FineTuner`: the verbs of the library over any `nn.Module`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.checkpoint import restore, schema
from finetune.checkpoint.record import record_head
from finetune.checkpoint.resume import find_run
from finetune.data.audit import audit
from finetune.data.preprocessing.augmentations import Augmentation
from finetune.data.preprocessing.tta import View, over_views
from finetune.data.randomness import seeded
from finetune.data.sources.open_source import open_source
from finetune.errors import ArgumentError, DataError, HeadError
from finetune.model import freezing
from finetune.model.families import family_of
from finetune.model.inspection.summary import Summary, summarize
from finetune.model.patterns import Patterns
from finetune.model.surgery import head_search, heads, peft
from finetune.model.wrapping import unwrapped
from finetune.session.measuring import Measuring
from finetune.strategies import Strategy
from finetune.training import loop
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.model_checkpoint import ModelCheckpoint
from finetune.training.history import History
from finetune.training.metrics import Meter, Metrics, build_metrics
from finetune.training.optim.optimizers import OptimizerFactory
from finetune.training.optim.phases import Phase
from finetune.training.optim.rates import Rate
from finetune.training.optim.schedules import Schedule
from finetune.training.precision import hint_at_bf16
from finetune.training.progress import ProgressBar
from finetune.training.settings import Settings
from finetune.training.tasks import Loss


class FineTuner(Measuring):
    """A model with the verbs to fine-tune it.

    Args:
        model: an `nn.Module`, used in place, or the name of a torchvision classifier.
        weights: for a name, `"DEFAULT"` for the best published weights, the name of others, or None for
            random ones. For both, the path of a local state dict (`.pth` or `.safetensors`).
        in_channels: of the pictures, where they are not the model's own: the layers that read them are
            adapted, so that with 1 a grey picture gives what its RGB copy gave. None leaves them alone.
        preprocessing: how pictures, texts or sound become the model's input: a `Preprocessing` or its
            fields, or a tokenizer, feature extractor or image processor of transformers. None for what
            comes with the weights, and for pictures else ImageNet's at 224 pixels.
        loss: `"cross_entropy"`, `"bce"`, `"mse"` or a function of outputs and targets; None to go by
            the targets.
        metrics: names, torchmetrics objects, or a mapping of name to either; None for those of the task.
        optimizer: `"adamw"`, `"sgd"`, or a function of parameter groups such as `torch.optim.Adam`.
        weight_decay: of weights; norm weights and biases take none.
        max_grad_norm: clip the gradients' norm to this, once an update.
        gradient_accumulation_steps: batches an update.
        device: where to train; `"auto"` takes a GPU if there is one.
        precision: `"fp32"`, `"bf16"`, `"fp16"`, or `"auto"`: the best the GPU has, fp32 on a CPU.
        compile: compile the model with `torch.compile` while it trains, evaluates or predicts; the name of a
            backend for another than `"inductor"`. The first batches take longer, up to minutes.
        seed: of everything random: fresh weights and heads, splits, order, augmentation, dropout.

    Attributes:
        model: the module that was given, never swapped for another.
        classes: class names by output, or None where outputs have none.
        history: a row for each epoch trained so far.
        device: where the model is.

    Raises:
        ArgumentError: a value that cannot work.
        CheckpointError: the weights are not to be had, or do not fit.
    """

    def __init__(
        self,
        model: nn.Module | str,
        *,
        weights: str | Path | None = "DEFAULT",
        in_channels: int | None = None,
        preprocessing: Any = None,
        loss: str | Loss | None = None,
        metrics: Metrics = None,
        optimizer: str | OptimizerFactory = "adamw",
        weight_decay: float = 0.01,
        max_grad_norm: float | None = None,
        gradient_accumulation_steps: int = 1,
        device: str | torch.device = "auto",
        precision: str = "auto",
        compile: bool | str = False,
        seed: int = 0,
    ) -> None:
        settings = Settings(
            loss, metrics, optimizer, weight_decay, max_grad_norm, gradient_accumulation_steps, precision, compile, seed
        )
        super().__init__(model, weights, in_channels, preprocessing, settings, device)

    # ------------------------------------------------------------------ verbs on the model

    def freeze(self, pattern: Patterns | None = None) -> FineTuner:
        """Freeze what `pattern` names, as `"layer[123]"` or `["conv1", "*.bn1"]`; None: all but the head.

        Frozen parameters take no gradient, no update and no weight decay; frozen batch norms and
        dropouts stay in eval mode.

        Raises:
            PatternError: it names nothing.
            HeadError: `pattern` is None and which layer is the head is not clear.
        """
        if pattern is None:
            freezing.freeze_all_but(self.inner, self._head_names())
        else:
            freezing.freeze(self.inner, pattern)
        return self

    def unfreeze(self, names: Patterns | None = None) -> FineTuner:
        """Make what `names` name trainable; None: everything, with PEFT everything that PEFT trains.

        Raises:
            PatternError: they name nothing.
        """
        freezing.unfreeze(self.inner, self._everything() if names is None else names)
        return self

    def replace_head(
        self,
        n: int,
        *,
        head: nn.Module | heads.HeadFactory | str | None = None,
        layer: str | None = None,
    ) -> FineTuner:
        """Give the model a new head with `n` outputs, auxiliary heads included; the new head trains.

        With `n=1` the loss decides between binary classification and regression.

        Args:
            head: a module; a function of `num_features` that makes one; `"append"` for a layer behind the
                outputs there are; None for a layer like the old one.
            layer: the full name of the layer to replace, where the model leaves it open.

        Raises:
            HeadError: the head cannot be found or made; the model is as before.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise HeadError(f"Expected a whole number of outputs from 1 on, but got {n!r}.")
        peft.check_changeable(self.inner, HeadError, f"FineTuner(model).replace_head({n})")
        if layer is not None:
            head_search.check_name(self.inner, layer)
        names = self._head_names() if layer is None else (layer,)
        verify = names != family_of(self.inner).heads(self.inner)
        with seeded(self.settings.seed, "head"):
            self._heads = heads.replace_head(self.inner, n, names, head, verify=verify)
        made = self.inner.get_submodule(names[0])
        self._replacements.append(record_head(n, names, head, made))
        self.classes, self._classes_rule, self._task, self._looked = None, False, None, False
        return self

    def summary(self, input_size: Sequence[int] | None = None, *, depth: int = 0) -> Summary:
        """Return the table of stages: what is frozen, what trains, at which rate, and what it costs.

        Output shapes, multiply-adds and the memory of activations are those of one sample. Without
        `input_size`, as `(3, 224, 224)`, one is made that suits the preprocessing or the model's first
        layer; where the model accepts none of these, the table goes without. Rates are there once
        training was planned.

        Args:
            input_size: of one sample, without the batch.
            depth: how many levels of layers to list below each stage.

        Raises:
            ArgumentError: the model does not accept that size.
        """
        return summarize(self.inner, self._stages(), self._groups, self._example_of_size(input_size), depth)

    # ------------------------------------------------------------------ verbs on data

    def fit(
        self,
        train: Any,
        val: Any = None,
        *,
        epochs: int = 1,
        strategy: str | Strategy | Sequence[Phase] | None = None,
        lr: Rate | None = None,
        schedule: str | Schedule = "cosine",
        batch_size: int = 32,
        augment: bool | str | Augmentation = True,
        augment_views: int | None = None,
        cache: str | Path | bool = "auto",
        callbacks: Sequence[Callback] = (),
        checkpoint_dir: str | Path | None = None,
        resume_from: str | Path | None = None,
        skip_corrupt: bool = False,
        progress: bool = True,
    ) -> History:
        """Train on `train`, evaluate on `val` after every epoch, and return the history.

        Args:
            train: a folder with a folder per class, a CSV or Parquet file of path or text and label, a
                pair `(X, y)`, a Dataset or a DataLoader.
            val: the same, or a share such as 0.1 to set aside, or False for none. With None a fifth of a
                folder or table is set aside, stratified by class; other data goes without.
            epochs: passes over the training data, shared out over the phases of a strategy; a list has its own.
            strategy: a name or a function of `finetune.strategies`, or a list of `Phase`; None for one phase
                with the freeze state as it stands.
            lr: a rate; a pair `(first stage, head)` with the stages between spread geometrically; a
                `LayerDecay`; or a mapping of pattern to rate. None for rates that suit the optimizer: with Adam
                one over the number of features for the head, within 1e-3 and 1e-2, a third of it for the stage before
                and a hundredth for the first.
            schedule: `"cosine"`, `"linear"`, `"constant"` or `"one_cycle"`, which all warm up over the first
                5 % (one-cycle 30 %), or a function of the phase's progress in [0, 1] that gives a
                factor on the rates.
            augment: Augmentation of training pictures: True for random crops and flips, False for none,
                "randaugment" or "trivialaugment" for these policies on top, or a function of a PIL picture.
            augment_views: how many augmented pictures there are of each sample, one an epoch in turn, so that what
                follows from them can be stored: an approximation of new ones in every epoch, which 0 asks
                for. With None there are new ones where the augmentation is a function of yours or where nothing
                is stored; else the library's own gives way to 4 views, the picture as it is evaluated and 3
                random ones.
            cache: `"auto"` computes what comes before the first trainable parameter once for each sample and
                keeps it on the device, in memory or on disk, where that gives the same result and pays;
                `"memory"` and `"disk"`, a temporary file, wherever it gives the same result. A folder's path
                keeps it there for runs to come, which find what they share: another head, rate or fold
                computes nothing again; whatever else changes, as a weight or a picture, is computed anew. The
                folder is yours to delete. False never. The log says what came of it.
            callbacks: called at the edges of phases, epochs and updates, in this order.
            checkpoint_dir: where to keep `last.safetensors` and `best.safetensors`.
            resume_from: a checkpoint file, a folder of them, or `"auto"` for the one in `checkpoint_dir`
                if there is one.
            skip_corrupt: leave out pictures that cannot be decoded, and say how many, instead of stopping.
            progress: show the plan and the progress where there is a terminal, else log them.

        Raises:
            ArgumentError, PatternError, DataError, CheckpointError: something given cannot work; said
                before the first update.
            NonFiniteError: the loss or a gradient is NaN or infinite; the model is as before the update.
        """
        with self._as_before_on_error():
            saved = find_run(resume_from, checkpoint_dir)
            data = self._open(train, val)
            self._look_at(data.train, trains=True)
            plan = self._plan(strategy, epochs, lr, schedule)
            self._task = task = self._infer_task(data.train)
            training = self._audited(data.train, task, "training", skip_corrupt)
            validation = None if data.val is None else self._audited(data.val, task, "validation", skip_corrupt)
            again = sum(phase.epochs for phase in plan.phases) > 1
            writer = [] if checkpoint_dir is None else [ModelCheckpoint(checkpoint_dir)]
            run = self._make_run(
                plan.phases,
                self._batches(training, batch_size, shuffle=True, augment=augment, views=augment_views, keep=again),
                None if validation is None else self._batches(validation, batch_size, keep=again),
                task,
                metrics=build_metrics(self.settings.metrics, task, self._num_outputs()),
                precision=self.precision,
                callbacks=[*callbacks, *writer, *([ProgressBar()] if progress else [])],
                notes=data.notes,
                plan=plan.lines,
                heads=self._known_heads(),
                num_outputs=self._num_outputs(),
                cache=self._cache(cache, callbacks),
                backend=self.settings.backend,
            )
            if training.classes is not None:
                self.classes, self._classes_rule = training.classes, True
            self._tell_model(training.classes, task)
            if saved is not None:
                self._resume(run, saved)
        hint_at_bf16(self.precision, sum(parameter.numel() for parameter in self.inner.parameters()))
        self._run = run
        try:
            with self._laid_out(training, trains_all=plan.trains_all):
                loop.fit(run)
        finally:
            self._run = None
            if run.cache is not None:
                run.cache.close()
        return self.history

    def evaluate(self, data: Any, *, batch_size: int = 32) -> dict[str, float]:
        """Return the loss, first, and the metrics over `data`, each sample counted once.

        Takes what `fit` takes. Every module's mode is as before at the end.

        Raises:
            DataError: the data cannot be used, or has a class that the training data has not.
        """
        with self._as_before_on_error():
            source = open_source(data, classes=self.classes, takes=self._takes())
            self._look_at_first(source)
            self._task = task = self._task or self._infer_task(source)
            batches = self._batches(self._audited(source, task, "evaluation"), batch_size)
            meter = Meter(build_metrics(self.settings.metrics, task, self._num_outputs()), task, self.device)
        with self._explained(source), self._laid_out(source), self._compiled():
            return loop.evaluate(self.validation_step, self.inner, batches, meter, self.precision)

    def predict(self, data: Any, *, batch_size: int = 32, tta: bool | Sequence[View] = False) -> Tensor:
        """Return the model's outputs on the CPU, a row a sample, in the data's order.

        They are what the model gives, for classes the logits: `.softmax(1)` makes probabilities of them,
        and `tuner.classes` has the names.

        Args:
            data: what `fit` takes, with or without labels; or one picture's path, a list of paths, a
                folder of pictures, or X alone, as a list of texts.
            tta: test-time augmentation: the mean of the outputs for the inputs as they are and for other
                views of them, each a function of a batch [N, C, H, W]; True for their mirror images.

        Raises:
            DataError: the data cannot be used.
            ArgumentError: `predict_step` gives no tensor.
        """
        source = open_source(data, labelled=False, takes=self._takes())
        self._look_at_first(source)
        batches = self._batches(audit(source, role="prediction", preprocessing=self.preprocessing), batch_size)
        with self._explained(source), self._laid_out(source), self._compiled():
            outputs = loop.predict(over_views(self.predict_step, tta), self.inner, batches, self.precision)
        if not outputs:
            raise DataError("The data gave no sample to predict. An iterable data set should start anew each time.")
        for output in outputs:
            if not isinstance(output, Tensor):
                raise ArgumentError(
                    f"predict_step should return a tensor [N, ...], but returned a {type(output).__name__}."
                )
        return torch.cat([torch.atleast_1d(output).float().cpu() for output in outputs])

    # ------------------------------------------------------------------ verbs on the result

    def save_checkpoint(self, path: str | Path) -> Path:
        """Write one safetensors file with weights, classes, preprocessing, freeze state and history.

        While `fit` is running it also holds what a run needs to go on from there.

        Raises:
            CheckpointError: it cannot be written; a file that was there before is untouched.
        """
        return self._save(path)

    @classmethod
    def load_checkpoint(cls, path: str | Path, model: nn.Module | None = None, **settings: Any) -> FineTuner:
        """Load what `save_checkpoint` wrote, after checking every byte of it. No network is used.

        Args:
            model: the module, where it was one of your own; a torchvision model by name is built here.
            settings: keyword arguments of `FineTuner` to take instead of the saved ones.

        Raises:
            CheckpointError: the file is damaged, or is not of this model.
        """
        checkpoint = schema.read(Path(path))
        built = restore.rebuild(checkpoint) if model is None else model
        restore.missing_changes(unwrapped(built), checkpoint)  # raises before anything of another model changes
        kept = {**checkpoint.settings, "preprocessing": checkpoint.preprocessing}
        tuner = cls(built, **{**kept, **settings})
        restore.load_into(tuner.inner, checkpoint)
        tuner._source, tuner._replacements = checkpoint.model.source, list(checkpoint.replacements)
        tuner._recall(checkpoint)
        return tuner
