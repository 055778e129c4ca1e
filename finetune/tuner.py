"""`FineTuner`: the verbs of the library over any `nn.Module`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.checkpoint import contents, file
from finetune.data.audit import audit
from finetune.data.base import Loader, Source, Stream, split_batch
from finetune.data.batches import Batches
from finetune.data.device import map_tensors
from finetune.data.randomness import seeded
from finetune.data.sources import open_source
from finetune.data.transforms import Augmentation, Preprocessing, standard_augmentation
from finetune.errors import ArgumentError, CheckpointError, DataError, HeadError
from finetune.model import catalog, freezing, head_search, heads
from finetune.model.patterns import Patterns
from finetune.model.stages import stages
from finetune.model.summary import Summary, summarize
from finetune.model.weights import load_weights, read_weights
from finetune.strategies import get_strategy
from finetune.training import loop
from finetune.training.callbacks import Callback, ModelCheckpoint
from finetune.training.history import History
from finetune.training.metrics import Meter, Metrics, build_metrics
from finetune.training.optim import OptimizerFactory, Rate, build_optimizer
from finetune.training.phases import Phase, check_phases
from finetune.training.precision import Precision, resolve_device
from finetune.training.preparation import open_training, some_targets
from finetune.training.progress import ProgressBar
from finetune.training.schedules import Schedule, get_schedule
from finetune.training.settings import Settings
from finetune.training.state import Run
from finetune.training.steps import Steps
from finetune.training.tasks import BINARY, CLASSIFICATION, Loss, Task, infer_task, task_of_kind


class FineTuner(Steps):
    """A model with the verbs to fine-tune it.

    Args:
        model: an `nn.Module`, used in place, or the name of a torchvision classifier.
        weights: for a name, `"DEFAULT"` for the best published weights, the name of others, or None for
            random ones. For both, the path of a local state dict (`.pth` or `.safetensors`).
        preprocessing: how pictures become the model's input; None for what comes with the weights,
            else ImageNet's at 224 pixels.
        loss: `"cross_entropy"`, `"bce"`, `"mse"` or a function of outputs and targets; None to go by
            the targets.
        metrics: names, torchmetrics objects, or a mapping of name to either; None for those of the task.
        optimizer: `"adamw"`, `"sgd"`, or a function of parameter groups such as `torch.optim.Adam`.
        weight_decay: of weights; norm weights and biases take none.
        max_grad_norm: clip the gradients' norm to this, once an update.
        gradient_accumulation_steps: batches an update.
        device: where to train; `"auto"` takes a GPU if there is one.
        precision: `"fp32"`, `"bf16"`, `"fp16"`, or `"auto"`: the best the GPU has, fp32 on a CPU.
        seed: of everything random: fresh weights and heads, splits, order, augmentation, dropout.

    Attributes:
        model: the module, never swapped for another.
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
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        loss: str | Loss | None = None,
        metrics: Metrics = None,
        optimizer: str | OptimizerFactory = "adamw",
        weight_decay: float = 0.01,
        max_grad_norm: float | None = None,
        gradient_accumulation_steps: int = 1,
        device: str | torch.device = "auto",
        precision: str = "auto",
        seed: int = 0,
    ) -> None:
        self.settings = Settings(
            loss, metrics, optimizer, weight_decay, max_grad_norm, gradient_accumulation_steps, precision, seed
        )
        self.device = resolve_device(device)
        self.precision = Precision(precision, self.device)
        self.history = History()
        self.classes: tuple[str, ...] | None = None
        if isinstance(preprocessing, Mapping):
            preprocessing = Preprocessing.from_dict(preprocessing)
        self.preprocessing = preprocessing
        self._source: dict[str, Any] | None = None
        self._heads: tuple[str, ...] | None = None
        self._replacements: list[contents.Replacement] = []
        self._run: Run | None = None
        self._classes_rule = False  # class names from the weights give way to those of training data
        self.model = self._take(model, weights).to(self.device)
        freezing.hold_frozen_in_eval(self.model)

    def _take(self, model: nn.Module | str, weights: str | Path | None) -> nn.Module:
        """Take the user's module, or build the model of that name."""
        if isinstance(model, nn.Module):
            if weights not in ("DEFAULT", None):
                load_weights(model, read_weights(Path(weights)))
            return model
        if not isinstance(model, str):
            raise ArgumentError(f"Expected model to be an nn.Module or a name, but got {model!r}.")
        with seeded(self.settings.seed, "weights"):
            made = catalog.create(model, weights)
        self._source, self.classes = made.source, made.classes
        self.preprocessing = self.preprocessing or Preprocessing.from_torchvision(made.preset)
        return made.model

    # ------------------------------------------------------------------ verbs on the model

    @property
    def head(self) -> nn.Module:
        """The model's main head.

        Raises:
            HeadError: which layer it is is not clear.
        """
        return self.model.get_submodule(self._head_names()[0])

    @property
    def task(self) -> Task | None:
        """The kind of answer the model is trained for, once it is known; `task.probabilities(outputs)`."""
        return self._task

    def freeze(self, pattern: Patterns | None = None) -> FineTuner:
        """Freeze what `pattern` names, as `"layer[123]"` or `["conv1", "*.bn1"]`; None: all but the head.

        Frozen parameters take no gradient, no update and no weight decay; frozen batch norms and
        dropouts stay in eval mode.

        Raises:
            PatternError: it names nothing.
            HeadError: `pattern` is None and which layer is the head is not clear.
        """
        if pattern is None:
            freezing.freeze_all_but(self.model, self._head_names())
        else:
            freezing.freeze(self.model, pattern)
        return self

    def unfreeze(self, names: Patterns | None = None) -> FineTuner:
        """Make what `names` name trainable; None: everything.

        Raises:
            PatternError: they name nothing.
        """
        freezing.unfreeze(self.model, names)
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
        if layer is not None:
            head_search.check_name(self.model, layer)
        names = self._head_names() if layer is None else (layer,)
        verify = names != head_search.named_by_family(self.model)
        with seeded(self.settings.seed, "head"):
            self._heads = heads.replace_head(self.model, n, names, head, verify=verify)
        made = self.model.get_submodule(names[0])
        self._replacements.append(contents.describe_replacement(n, names, head, made))
        self.classes, self._classes_rule, self._task = None, False, None
        return self

    def summary(self, input_size: Sequence[int] | None = None) -> Summary:
        """Return the table of stages: what is frozen, what trains, at which rate, and how large it is.

        With `input_size`, as `(3, 224, 224)`, it also gives each stage's output shape for one sample.

        Raises:
            ArgumentError: the model does not accept that size.
        """
        rates = self.history[-1]["lr"] if self.history else None
        return summarize(self.model, self._known_heads(), rates, input_size)

    # ------------------------------------------------------------------ verbs on data

    def fit(
        self,
        train: Any,
        val: Any = None,
        *,
        epochs: int = 1,
        strategy: str | Sequence[Phase] | None = None,
        lr: Rate | None = None,
        schedule: str | Schedule = "cosine",
        batch_size: int = 32,
        augment: bool | Augmentation = True,
        callbacks: Sequence[Callback] = (),
        checkpoint_dir: str | Path | None = None,
        resume_from: str | Path | None = None,
        skip_corrupt: bool = False,
        progress: bool = True,
    ) -> History:
        """Train on `train`, evaluate on `val` after every epoch, and return the history.

        Args:
            train: a folder with a folder per class, a CSV or Parquet file of path and label, a pair
                `(X, y)`, a Dataset or a DataLoader.
            val: the same, or a share such as 0.1 to set aside, or False for none. With None a fifth of a
                folder or table is set aside, stratified by class; other data goes without.
            epochs: passes over the training data, shared out over the phases of a named strategy.
            strategy: a name or a list of `Phase`; None for one phase with the freeze state as it stands.
            lr: a rate; a pair `(first stage, head)` with the stages between spread geometrically; or a
                mapping of pattern to rate. None for rates that suit the optimizer.
            schedule: `"cosine"`, `"linear"`, `"constant"`, `"one_cycle"`, or a function of the phase's
                progress in [0, 1] that gives a factor on the rates.
            augment: for pictures: True for random crops and flips, False for none, or a function of a
                PIL picture.
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
            saved = contents.saved_run(resume_from, checkpoint_dir)
            rules = self.classes if self._classes_rule else None
            data = open_training(train, val, rules, self.settings.seed)
            self._known_heads(data.train)
            phases = self._plan(strategy, epochs, lr, schedule)
            self._task = task = self._infer_task(data.train)
            training = self._audited(data.train, task, "training", skip_corrupt)
            validation = None if data.val is None else self._audited(data.val, task, "validation", skip_corrupt)
            writer = [] if checkpoint_dir is None else [ModelCheckpoint(checkpoint_dir)]
            run = Run(
                tuner=self,
                phases=phases,
                train=self._batches(training, batch_size, shuffle=True, augment=augment),
                val=None if validation is None else self._batches(validation, batch_size),
                task=task,
                metrics=build_metrics(self.settings.metrics, task, self._num_outputs()),
                precision=self.precision,
                build_optimizer=self._build_optimizer,
                save=self._save,
                callbacks=[*callbacks, *writer, *([ProgressBar()] if progress else [])],
                accumulation=self.settings.gradient_accumulation_steps,
                max_grad_norm=self.settings.max_grad_norm,
                seed=self.settings.seed,
                notes=data.notes,
            )
            if training.classes is not None:
                self.classes, self._classes_rule = training.classes, True
            if saved is not None:
                self._resume(run, *saved)
        self._run = run
        try:
            loop.fit(run)
        finally:
            self._run = None
        return self.history

    def evaluate(self, data: Any, *, batch_size: int = 32) -> dict[str, float]:
        """Return the loss, first, and the metrics over `data`, each sample counted once.

        Takes what `fit` takes. Every module's mode is as before at the end.

        Raises:
            DataError: the data cannot be used, or has a class that the training data has not.
        """
        with self._as_before_on_error():
            source = open_source(data, classes=self.classes)
            self._known_heads(source)
            self._task = task = self._task or self._infer_task(source)
            batches = self._batches(self._audited(source, task, "evaluation"), batch_size)
            meter = Meter(build_metrics(self.settings.metrics, task, self._num_outputs()), task, self.device)
        return loop.evaluate(self.validation_step, self.model, batches, meter, self.precision)

    def predict(self, data: Any, *, batch_size: int = 32) -> Tensor:
        """Return the model's outputs on the CPU, a row a sample, in the data's order.

        They are what the model gives, for classes the logits: `.softmax(1)` makes probabilities of them,
        and `tuner.classes` has the names.

        Args:
            data: what `fit` takes, with or without labels; or one picture's path, a list of paths, a
                folder of pictures, or X alone.

        Raises:
            DataError: the data cannot be used.
            ArgumentError: `predict_step` gives no tensor.
        """
        source = open_source(data, labelled=False)
        batches = self._batches(audit(source, role="prediction"), batch_size)
        outputs = loop.predict(self.predict_step, self.model, batches, self.precision)
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
        path = Path(path)
        content = file.read(path)
        built = contents.rebuild(path, content) if model is None else model
        contents.to_repeat(path, built, content)  # of another model nothing is touched
        kept = {**content["settings"], "preprocessing": content["preprocessing"]}
        tuner = cls(built, **{**kept, **settings})
        contents.load_into(path, built, content)
        tuner._source, tuner._replacements = content["model"]["source"], content["replacements"]
        tuner._recall(content)
        return tuner

    # ------------------------------------------------------------------ what the verbs share

    @contextmanager
    def _as_before_on_error(self) -> Iterator[None]:
        """Forget what was learned from data that turns out to be of no use."""
        names = ("classes", "_classes_rule", "_task", "preprocessing", "history")
        before = {name: getattr(self, name) for name in names}
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def _head_names(self) -> tuple[str, ...]:
        """Return the heads' full names, found once: those that were replaced, or those of the model."""
        if not self._heads:
            self._heads = head_search.find_head(self.model)
        return self._heads

    def _known_heads(self, source: Source | None = None) -> tuple[str, ...]:
        """Return the heads' names, none where they are not clear: what only reports does without.

        With a source, its first samples show what the model does, where its family does not say it.
        """
        if not self._heads and (source is not None or self._heads is None):
            try:
                known = head_search.named_by_family(self.model)
                self._heads = known or head_search.find_head(self.model, self._example(source))
            except HeadError:
                self._heads = ()  # looking again would run the model again
        return self._heads or ()

    def _example(self, source: Source | None) -> Any:
        """Return the inputs of two samples, ready for the model; None where there are none."""
        if source is None:
            return None
        few = source if isinstance(source, (Loader, Stream)) else source.subset(range(min(2, len(source))))
        try:
            batch = next(iter(self._batches(few, batch_size=2).epoch(0)), None)
        except DataError:  # the audit says it, with all the others of its kind
            return None
        return map_tensors(lambda tensor: tensor[:2], split_batch(batch)[0], None)

    def _num_outputs(self) -> int | None:
        names = self._known_heads()
        return heads.num_outputs(self.model.get_submodule(names[0])) if names else None

    def _infer_task(self, source: Source) -> Task:
        return infer_task(self.settings.loss, some_targets(source), self._num_outputs())

    def _audited(self, source: Source, task: Task, role: str, skip_corrupt: bool = False) -> Source:
        """Check data against what the model answers."""
        outputs = {CLASSIFICATION: self._num_outputs(), BINARY: 2}.get(task.kind or "")
        return audit(source, num_classes=outputs, role=role, skip_corrupt=skip_corrupt)

    def _batches(
        self, source: Source, batch_size: int, *, shuffle: bool = False, augment: bool | Augmentation = False
    ) -> Batches:
        preprocessing = self.preprocessing
        if source.pictures and preprocessing is None:
            preprocessing = self.preprocessing = Preprocessing()
        chosen: Augmentation | None = None if isinstance(augment, bool) else augment
        if augment is True and source.pictures and preprocessing is not None:
            chosen = standard_augmentation(preprocessing)
        classes = self._num_outputs() if self._task and self._task.kind == CLASSIFICATION else None
        return Batches(
            source,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.settings.seed,
            device=self.device,
            preprocessing=preprocessing,
            augment=chosen,
            num_classes=classes,
        )

    def _plan(
        self, strategy: str | Sequence[Phase] | None, epochs: int, lr: Rate | None, schedule: str | Schedule
    ) -> list[Phase]:
        """Return the phases, each rehearsed: its patterns, rates and optimizer are tried and undone."""
        get_schedule(schedule)
        if strategy is None:
            phases = [Phase(None, epochs, lr, schedule)]
        elif isinstance(strategy, str):
            planned = get_strategy(strategy)(stages(self.model, self._head_names()), epochs, lr)
            phases = [replace(phase, schedule=schedule) for phase in planned]
        else:
            phases = check_phases(strategy)
        with freezing.freeze_state_restored(self.model):
            for phase in phases:
                get_schedule(phase.schedule)
                if phase.train is not None:
                    freezing.train_only(self.model, phase.train)
                self._build_optimizer(phase)
            self._warn_of_frozen_head()
        return phases

    def _warn_of_frozen_head(self) -> None:
        if self._replacements and not any(parameter.requires_grad for parameter in self.head.parameters()):
            name = self._head_names()[0]
            warnings.warn(
                f"The new head {name!r} is frozen, so it stays random. Train it with unfreeze({name!r}).",
                stacklevel=4,
            )

    def _build_optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        settings = self.settings
        return build_optimizer(
            self.model, self._known_heads(), settings.optimizer, phase.lr, settings.weight_decay
        )

    def _save(self, path: str | Path, *, training_state: bool = True) -> Path:
        run = self._run if training_state else None
        content = {
            "model": contents.describe_model(self.model, self._source),
            "heads": self._heads,
            "replacements": self._replacements,
            "classes": self.classes,
            "classes_rule": self._classes_rule,
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "settings": self.settings.plain(),
            "task": self._task and self._task.kind,
            "history": list(self.history),
            "training": run and run.state_dict(),
        }
        file.write(Path(path), content)
        return Path(path)

    def _recall(self, content: Mapping[str, Any]) -> None:
        """Take from a checkpoint what is not in the model itself."""
        self._heads = content["heads"] and tuple(content["heads"])
        self.classes = content["classes"] and tuple(content["classes"])
        self._classes_rule = content["classes_rule"]
        self.history = History(content["history"])
        self._task = content["task"] and task_of_kind(self.settings.loss, content["task"])

    def _resume(self, run: Run, path: Path, content: Mapping[str, Any]) -> None:
        try:
            run.load_state_dict(content["training"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is of a run with other metrics or callbacks than this one: {error}. Give fit and FineTuner "
                f"the arguments of the run that wrote it."
            ) from error
        contents.load_into(path, self.model, content)
        self._recall(content)
