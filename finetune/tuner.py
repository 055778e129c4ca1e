"""`FineTuner`: the verbs of the library over any `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune.advice.evidence import check_classes, measure
from finetune.advice.features import Features, collect
from finetune.advice.judgement import Advice, judge
from finetune.caching.cache import Cache, cache_place
from finetune.checkpoint import restore, schema
from finetune.checkpoint.record import record_head, record_model
from finetune.checkpoint.resume import find_run
from finetune.checkpoint.schema import Checkpoint
from finetune.data.audit import audit
from finetune.data.loading.batches import Batches
from finetune.data.prepare import Prepared, open_training, some_targets
from finetune.data.preprocessing.augmentations import Augmentation, chosen_augmentation
from finetune.data.preprocessing.base import PICTURE, InputPreprocessing
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.data.preprocessing.tta import View, over_views
from finetune.data.randomness import generators_of_loader_preserved, seeded
from finetune.data.sources.base import Source, split_batch
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import split
from finetune.errors import ArgumentError, CheckpointError, DataError, FineTuneError, HeadError
from finetune.model import channels_last, compiling, freezing
from finetune.model.families import family_of
from finetune.model.inspection.summary import Summary, summarize
from finetune.model.network import Network
from finetune.model.outputs import auxiliary_of, call, logits_of
from finetune.model.patterns import Patterns
from finetune.model.surgery import adapters, head_search, heads
from finetune.model.wrapping import unwrapped
from finetune.nested import map_tensors
from finetune.plan import make_plan
from finetune.pretrained import take_in
from finetune.strategies import Strategy
from finetune.training import loop
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.model_checkpoint import ModelCheckpoint
from finetune.training.history import History
from finetune.training.lr_range_test import RateSuggestion, range_test, rising
from finetune.training.metrics import Meter, Metrics, StepOutput, build_metrics
from finetune.training.optim.optimizers import OptimizerFactory, default_rate
from finetune.training.optim.phases import Phase
from finetune.training.optim.rates import Rate, head_rate
from finetune.training.optim.schedules import Schedule
from finetune.training.precision import Precision, hint_at_bf16, resolve_device
from finetune.training.progress import ProgressBar
from finetune.training.run import Run
from finetune.training.settings import Settings
from finetune.training.tasks import BINARY, CLASSIFICATION, Loss, Task, infer_task, task_of_kind

if TYPE_CHECKING:
    from typing_extensions import Self

_STEPS = ("training_step", "validation_step", "predict_step")

# A pass over fewer samples is over before another memory format of the weights has paid off.
_FEW_SAMPLES = 32


@dataclass(frozen=True)
class Known:
    """Everything that verbs learn about the model and its data; a failed verb puts it back whole.

    Attributes:
        network: The module with its heads, stages and changes.
        preprocessing: Turns pictures, texts or sound into inputs; None if inputs are ready.
        classes: Class names by output, or None.
        classes_from_data: Whether training data named the classes; names from the weights give way to it.
        task: The task with its loss, or None before targets were seen.
        history: A row per epoch.
        rates: Group name and learning rate by parameter name, as planned last; None before.
        tried: Whether the model was tried on data since its head was replaced.
        channels_last: Whether it gives the same with channels-last weights; None if that was not tried.
    """

    network: Network
    preprocessing: InputPreprocessing | None = None
    classes: tuple[str, ...] | None = None
    classes_from_data: bool = False
    task: Task | None = None
    history: History = field(default_factory=History)
    rates: Mapping[str, tuple[str, float]] | None = None
    tried: bool = False
    channels_last: bool | None = None


class FineTuner:
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
        self.settings = Settings(
            loss=loss,
            metrics=metrics,
            optimizer=optimizer,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            gradient_accumulation_steps=gradient_accumulation_steps,
            precision=precision,
            compile=compile,
            seed=seed,
        )
        self.device = resolve_device(device)
        self.precision = Precision(precision, self.device)
        taken = take_in(model, weights, in_channels, preprocessing, seed)
        network = Network.of(taken.model.to(self.device), taken.source, taken.changes)
        freezing.hold_frozen_in_eval(network.module)
        self._known = Known(network, taken.preprocessing, taken.classes)
        self._run: Run | None = None

    # ------------------------------------------------------------------ attributes

    @property
    def network(self) -> Network:
        """The model with everything known about its structure: heads, stages, parameter order."""
        return self._known.network

    @property
    def model(self) -> nn.Module:
        """The module that was given, never swapped for another."""
        return self.network.wrapped

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._learn(network=replace(self.network, wrapped=model))

    @property
    def inner(self) -> nn.Module:
        """The model inside `torch.compile`, DataParallel and the like; all names are those in here."""
        return self.network.module

    @property
    def head(self) -> nn.Module:
        """The model's main head.

        Raises:
            HeadError: If the model leaves open which layer that is.
        """
        return self.inner.get_submodule(self.network.required_heads()[0])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by output, or None if outputs have none."""
        return self._known.classes

    @classes.setter
    def classes(self, names: tuple[str, ...] | None) -> None:
        self._learn(classes=names)

    @property
    def preprocessing(self) -> InputPreprocessing | None:
        """Turns pictures, texts or sound into the model's inputs; None if inputs come ready."""
        return self._known.preprocessing

    @preprocessing.setter
    def preprocessing(self, preprocessing: InputPreprocessing | None) -> None:
        self._learn(preprocessing=preprocessing)

    @property
    def history(self) -> History:
        """A row for each epoch trained so far."""
        return self._known.history

    @property
    def task(self) -> Task | None:
        """The task the model is trained for, or None before any targets were seen."""
        return self._known.task

    @property
    def loss(self) -> Loss:
        """The loss, a function of outputs and targets.

        Raises:
            ArgumentError: If the loss depends on the targets and none have been seen yet.
        """
        if self.task is None and self.settings.loss is None:
            raise ArgumentError(
                "The loss depends on the targets, and none have been seen yet. Name it with loss=..., or call fit."
            )
        return (self.task or infer_task(self.settings.loss, None, self.network.num_outputs)).loss

    # ------------------------------------------------------------------ verbs on the model

    def freeze(self, pattern: Patterns | None = None) -> Self:
        """Freeze what `pattern` names, as `"layer[123]"` or `["conv1", "*.bn1"]`; None: all but the head.

        Frozen parameters take no gradient, no update and no weight decay; frozen batch norms and
        dropouts stay in eval mode.

        Raises:
            PatternError: it names nothing.
            HeadError: `pattern` is None and which layer is the head is not clear.
        """
        if pattern is None:
            freezing.freeze_all_but(self.inner, self.network.required_heads())
        else:
            freezing.freeze(self.inner, pattern)
        return self

    def unfreeze(self, names: Patterns | None = None) -> Self:
        """Make what `names` name trainable; None: everything, with PEFT everything that PEFT trains.

        Raises:
            PatternError: they name nothing.
        """
        freezing.unfreeze(self.inner, self.network.everything() if names is None else names)
        return self

    def replace_head(
        self,
        n: int,
        *,
        head: nn.Module | heads.HeadFactory | str | None = None,
        layer: str | None = None,
    ) -> Self:
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
        adapters.check_changeable(self.inner, HeadError, f"FineTuner(model).replace_head({n})")
        if layer is not None:
            head_search.check_name(self.inner, layer)
        names = self.network.required_heads() if layer is None else (layer,)
        verify = names != family_of(self.inner).heads(self.inner)
        with seeded(self.settings.seed, "head"):
            found = heads.replace_head(self.inner, n, names, head, verify=verify)
        made = self.inner.get_submodule(names[0])
        network = self.network.with_head(found, record_head(n, names, head, made))
        self._learn(network=network, classes=None, classes_from_data=False, task=None, tried=False)
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
        pictures = self.preprocessing if isinstance(self.preprocessing, Preprocessing) else None
        picture = None if pictures is None else (pictures.channels, *pictures.crop_size)
        example = self.network.example_of_size(input_size, picture)
        rates = (self._run and self._run.planned_rates()) or self._known.rates
        return summarize(self.inner, self.network.stages(), rates, example, depth)

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
                `"randaugment"` or `"trivialaugment"` for these policies on top, or a function of a PIL picture.
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
        with self._undone_on_error() as on_error:
            saved = find_run(resume_from, checkpoint_dir)
            data = self._open(train, val)
            self._try_on(data.train, trains=True)
            plan = make_plan(
                self.network,
                strategy,
                epochs=epochs,
                lr=lr,
                schedule=schedule,
                settings=self.settings,
                precision=self.precision,
                on_error=on_error,
            )
            task = infer_task(self.settings.loss, some_targets(data.train), plan.network.num_outputs)
            self._learn(network=plan.network, rates=plan.rates, task=task)
            training = self._audited(data.train, "training", skip_corrupt=skip_corrupt)
            validation = None if data.val is None else self._audited(data.val, "validation", skip_corrupt=skip_corrupt)
            keep = sum(phase.epochs for phase in plan.phases) > 1
            writer = [] if checkpoint_dir is None else [ModelCheckpoint(checkpoint_dir)]
            run = Run(
                tuner=self,
                network=plan.network,
                settings=self.settings,
                phases=plan.phases,
                train=self._batches(
                    training, batch_size, shuffle=True, augment=augment, views=augment_views, keep=keep
                ),
                val=None if validation is None else self._batches(validation, batch_size, keep=keep),
                task=task,
                metrics=build_metrics(self.settings.metrics, task, plan.network.num_outputs),
                precision=self.precision,
                callbacks=[*callbacks, *writer, *([ProgressBar()] if progress else [])],
                notes=data.notes,
                plan=plan.lines,
                cache=self._cache(cache, callbacks),
            )
            if training.classes is not None:
                self._learn(classes=training.classes, classes_from_data=True)
            if saved is not None:
                self._resume(run, saved)
        self._tell_model(training.classes, task)
        hint_at_bf16(self.precision, sum(parameter.numel() for parameter in self.inner.parameters()))
        self._run = run
        try:
            with self._memory_format(training, trains_all=plan.trains_all):
                loop.fit(run)
        finally:
            self._run = None
            self._learn(rates=run.planned_rates() or plan.rates)
            if run.cache is not None:
                run.cache.close()
        return self.history

    def evaluate(self, data: Any, *, batch_size: int = 32) -> dict[str, float]:
        """Return the loss, first, and the metrics over `data`, each sample counted once.

        Takes what `fit` takes. Every module's mode is as before at the end.

        Raises:
            DataError: the data cannot be used, or has a class that the training data has not.
        """
        with self._undone_on_error():
            source = open_source(data, classes=self.classes, takes=self._takes)
            self._try_once(source)
            outputs = self.network.num_outputs
            task = self.task or infer_task(self.settings.loss, some_targets(source), outputs)
            self._learn(task=task)
            batches = self._batches(self._audited(source, "evaluation"), batch_size)
            meter = Meter(build_metrics(self.settings.metrics, task, outputs), task, self.device)
            with self._passes(source):
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
        with self._undone_on_error():
            source = open_source(data, labelled=False, takes=self._takes)
            self._try_once(source)
            batches = self._batches(audit(source, role="prediction", preprocessing=self.preprocessing), batch_size)
            with self._passes(source):
                outputs = loop.predict(over_views(self.predict_step, tta), self.inner, batches, self.precision)
        if not outputs:
            raise DataError("The data gave no sample to predict. An iterable data set should start anew each time.")
        for output in outputs:
            if not isinstance(output, Tensor):
                raise ArgumentError(
                    f"predict_step should return a tensor [N, ...], but returned a {type(output).__name__}."
                )
        return torch.cat([torch.atleast_1d(output).float().cpu() for output in outputs])

    def advise(self, train: Any, val: Any = None, *, samples: int = 2000, batch_size: int = 32) -> Advice:
        """Measure which strategy suits the data, and at which rates; nothing is trained or changed.

        The model runs once over a sample of the data. What it makes of them is scored: how well a linear probe and
        the nearest neighbours tell the classes apart, what more data adds, and what earlier stages know besides.

        Args:
            train: what `fit` takes, with a class for each sample; the head need not fit it yet.
            val: what `fit` takes; with None the same share is set aside as `fit` would.
            samples: how many to look at, of each class its share.

        Returns:
            Advice with `.strategy` and `.lr` to pass to `fit`, the reasons and the numbers, and `.plot()`.

        Raises:
            DataError: the data cannot be used, or holds fewer than two classes with two samples each.
            HeadError: which layer is the head is not clear.
        """
        with self._as_before(), generators_of_loader_preserved(train):
            data = self._open(train, val)
            check_classes(some_targets(data.train))
            self._try_on(data.train)
            validation = None if data.val is None else self._features(data.val, samples // 4, batch_size)
            total = len(data.train) if data.train.indexed else None
            evidence = measure(self._features(data.train, samples, batch_size), validation, total)
            return judge(evidence, head_rate(self.inner, self.network.stages()))

    def find_lr(
        self,
        train: Any,
        *,
        lr: Rate | None = None,
        batch_size: int = 32,
        augment: bool | str | Augmentation = True,
        steps: int = 100,
    ) -> RateSuggestion:
        """Suggest learning rates for the present freeze state: those at which the loss falls fastest.

        Trains for some updates at rising rates and takes everything back: a later `fit` is the same bit for
        bit as without it.

        Args:
            train: what `fit` takes.
            lr: as `fit` takes it; of these the ratios between the groups count, and are kept.
            steps: updates, over which the fastest group's rate rises from 1e-7 to 10. Fewer where the
                loss grows without bounds before.

        Returns:
            A suggestion with `.lr` to pass to `fit`, and `.plot()`.

        Raises:
            ArgumentError: something given cannot work, or the loss falls at no rate.
            DataError: the data cannot be used.
        """
        if not isinstance(steps, int) or steps < 10:
            raise ArgumentError(f"Expected steps to be a whole number from 10 on, but got {steps!r}.")
        with self._as_before(), generators_of_loader_preserved(train):
            source = self._open(train, False).train
            self._try_on(source)
            plan = make_plan(
                self.network,
                None,
                epochs=1,
                lr=lr,
                schedule=rising,
                settings=self.settings,
                precision=self.precision,
                on_error=lambda undo: None,
            )
            task = infer_task(self.settings.loss, some_targets(source), plan.network.num_outputs)
            self._learn(network=plan.network, task=task)
            batches = self._batches(self._audited(source, "training"), batch_size, shuffle=True, augment=augment)
            run = Run(
                tuner=self,
                network=plan.network,
                settings=self.settings,
                phases=plan.phases,
                train=batches,
                val=None,
                task=task,
                metrics={},
                precision=Precision(self.settings.precision, self.device),  # its gradient scale is its own
            )
            if lr is None:
                lr = default_rate(self.settings.optimizer, self.inner, self.network.stages())
            return range_test(run, lr, steps)

    # ------------------------------------------------------------------ verbs on the result

    def save_checkpoint(self, path: str | Path) -> Path:
        """Write one safetensors file with weights, classes, preprocessing, freeze state and history.

        While `fit` is running it also holds what a run needs to go on from there.

        Raises:
            CheckpointError: it cannot be written; a file that was there before is untouched.
        """
        run = self._run
        if run is not None:
            return run.save(path)
        schema.write(Path(path), self.checkpoint())
        return Path(path)

    @classmethod
    def load_checkpoint(cls, path: str | Path, model: nn.Module | None = None, **settings: Any) -> Self:
        """Load what `save_checkpoint` wrote, after checking every byte of it. No network is used.

        Args:
            model: the module, where it was one of your own; a torchvision model by name is built here.
            settings: keyword arguments of `FineTuner` to take instead of the saved ones.

        Raises:
            CheckpointError: the file is damaged, or is not of this model.
        """
        checkpoint = schema.read(Path(path))
        built = restore.rebuild(checkpoint) if model is None else model
        restore.missing_changes(unwrapped(built), checkpoint)  # an unfitting model stays untouched
        kept = {**checkpoint.settings, "preprocessing": checkpoint.preprocessing}
        tuner = cls(built, **{**kept, **settings})
        restore.load_into(tuner.inner, checkpoint)
        source, changes = checkpoint.model.source, checkpoint.replacements
        tuner._learn(network=replace(tuner.network, source=source, changes=changes))
        tuner._recall(checkpoint)
        return tuner

    # ------------------------------------------------------------------ steps, for a loop of your own

    def training_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a batch; override it for a custom loss.

        Precision, accumulation, clipping, schedule and history are handled around it.

        Args:
            batch: `(inputs, targets)`, or whatever the dataset or loader gives, on the device.

        Returns:
            A scalar loss, or a `StepOutput` with outputs and targets for the training metrics.
        """
        return self._step(batch, *family_of(self.inner).loss_weights(self.inner))

    def validation_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a validation batch, like `training_step`; gradients are off."""
        return self._step(batch, 1.0, 0.0)

    def predict_step(self, batch: Any) -> Tensor:
        """Return the outputs [N, ...] for a batch; labels in it are ignored."""
        inputs, _ = split_batch(batch)
        outputs: Tensor = logits_of(call(self.model, inputs))
        return outputs

    def _step(self, batch: Any, weight: float, auxiliary_weight: float) -> StepOutput:
        inputs, targets = split_batch(batch)
        if self.task is None:
            self._learn(task=infer_task(self.settings.loss, targets, self.network.num_outputs))
        output = call(self.model, inputs)
        logits = logits_of(output)
        loss = self.loss(logits, targets)
        others = auxiliary_of(output, len(self.network.heads)) if auxiliary_weight else []
        if others:
            loss = weight * loss + auxiliary_weight * sum(self.loss(other, targets) for other in others)
        return StepOutput(loss, logits, targets)

    # ------------------------------------------------------------------ what is known, and how it is put back

    def _learn(self, **facts: Any) -> None:
        self._known = replace(self._known, **facts)

    @contextmanager
    def _undone_on_error(self) -> Iterator[Callable[[Callable[[], None]], Any]]:
        """Forget everything learned from data that turns out to be unusable.

        Yields:
            A function that registers another function to call on an error.
        """
        before = self._known
        with ExitStack() as undo:
            try:
                yield undo.callback
            except BaseException:
                self._known = before
                raise
            undo.pop_all()

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Restore every attribute at the end, those set by custom steps included."""
        before = dict(vars(self))
        try:
            yield
        finally:
            vars(self).clear()
            vars(self).update(before)

    # ------------------------------------------------------------------ data, tried on the model

    def _open(self, train: Any, val: Any) -> Prepared:
        """Open training and validation data; classes that the model already knows keep their order."""
        ruling = self.classes if self._known.classes_from_data else None
        data = open_training(train, val, ruling, self.settings.seed, self._takes)
        found = data.train.classes
        if ruling is None and self.classes and found and found != self.classes and {*found} <= {*self.classes}:
            data = open_training(train, val, self.classes, self.settings.seed, self._takes)
        return data

    @property
    def _takes(self) -> str | None:
        """The kind of raw item that the preprocessing takes."""
        return None if self.preprocessing is None else self.preprocessing.kind

    def _try_on(self, source: Source, *, trains: bool = False) -> None:
        """Try the model on two samples, and find its head and memory format by them.

        With a custom training step only the samples are kept, since the step may call the model on anything.

        Raises:
            DataError: If the model does not accept them.
            HeadError: If it returns several results and which ones are the logits is unclear.
        """
        example, same = self._example(source), None
        network = self.network.with_example(example)
        if example is not None and not self._overrides("training_step"):
            with seeded("look"), self.precision.autocast():
                same = network.try_on(example, channels_last=self._gains_from_channels_last(source), trains=trains)
        self._learn(network=network, tried=True, channels_last=same)

    def _try_once(self, source: Source) -> None:
        """Try the model on two samples unless it was tried before; `_passes` explains later failures."""
        known = self._known
        if not known.tried or (known.channels_last is None and self._gains_from_channels_last(source)):
            self._try_on(source)

    def _example(self, source: Source) -> Any:
        """Return the inputs of two samples, ready for the model, or None if there are none."""
        few = source.subset(range(min(2, len(source)))) if source.indexed else source
        try:
            batch = next(iter(self._batches(few, batch_size=2).epoch(0)), None)
        except DataError:  # the audit reports it, together with all others of its kind
            return None
        return map_tensors(lambda tensor: tensor[:2], split_batch(batch)[0], None)

    def _audited(self, source: Source, role: str, *, skip_corrupt: bool = False) -> Source:
        """Check data against the model's outputs."""
        kind = None if self.task is None else self.task.kind
        outputs = {CLASSIFICATION: self.network.num_outputs, BINARY: 2}.get(kind or "")
        return audit(
            source, num_classes=outputs, role=role, skip_corrupt=skip_corrupt, preprocessing=self.preprocessing
        )

    def _batches(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool | str | Augmentation = False,
        keep: bool = False,
        views: int | None = None,
    ) -> Batches:
        preprocessing = self.preprocessing
        if source.kind == PICTURE and preprocessing is None:
            preprocessing = Preprocessing()
            self._learn(preprocessing=preprocessing)
        chosen = chosen_augmentation(augment, preprocessing, source.kind, views=views)
        return Batches(
            source,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.settings.seed,
            device=self.device,
            preprocessing=preprocessing,
            augment=chosen.augment,
            views=views,
            stand_ins=chosen.stand_ins,
            num_classes=self.network.num_outputs if self.task and self.task.kind == CLASSIFICATION else None,
            keep=keep,
        )

    def _features(self, source: Source, samples: int, batch_size: int) -> Features:
        """Return the inputs of every stage and of the head, for at most `samples` samples, stratified by class."""
        whole = not source.indexed or len(source) <= samples
        part = source if whole else split(source, samples / len(source), self.settings.seed)[1]
        modules = dict(self.inner.named_modules())
        layers = [stage.name for stage in self.network.stages()[:-1] if stage.name and stage.name in modules]
        batches = self._batches(audit(part, role="training", preprocessing=self.preprocessing), batch_size)
        with self._passes(part):
            passes = loop.outputs(self.predict_step, self.inner, batches, self.precision)
            return collect(self.inner, layers, self.network.required_heads()[0], passes, samples)

    def _tell_model(self, classes: Sequence[str] | None, task: Task) -> None:
        """Record task and class names in the model itself, if its family has a place for them."""
        named = classes if classes is not None and len(classes) == self.network.num_outputs else None
        heads.tell_task(adapters.base(self.inner), task.kind, named)

    # ------------------------------------------------------------------ passes over data

    @contextmanager
    def _passes(self, source: Source) -> Iterator[None]:
        """Hold the context for passes over `source` outside of `fit`: memory format, compilation, clear errors.

        If the model fails, it is tried on the data again to explain why: trying it beforehand would cost a
        second forward pass in every call.
        """
        backend = self.settings.backend
        compilation = nullcontext() if backend is None else compiling.compiled(self.inner, backend)
        try:
            with self._memory_format(source), compilation:
                yield
        except FineTuneError:
            raise
        except Exception:
            self._try_on(source)
            raise

    def _memory_format(self, source: Source, *, trains_all: bool = False) -> AbstractContextManager[None]:
        """Return the context in which the weights are channels-last, if that is faster and gives the same."""
        turned = self._known.channels_last and self._gains_from_channels_last(source, trains_all=trains_all)
        return channels_last.channels_last(self.inner) if turned else nullcontext()

    def _gains_from_channels_last(self, source: Source, *, trains_all: bool = False) -> bool:
        """Return whether channels-last pays, and no custom step depends on the present format."""
        few = source.indexed and len(source) < _FEW_SAMPLES
        plain = self.model is self.inner and not self._overrides(*_STEPS)
        return (
            plain and not few and channels_last.gains_from_channels_last(self.inner, self.device, trains_all=trains_all)
        )

    def _overrides(self, *names: str) -> bool:
        """Return whether a subclass overrides one of these methods."""
        return any(getattr(type(self), name) is not getattr(FineTuner, name) for name in names)

    def _cache(self, cache: str | Path | bool, callbacks: Sequence[Callback]) -> Cache | None:
        """Return the cache of the frozen prefix, or None without one.

        Raises:
            ArgumentError: If `cache` is neither a kind of cache nor a folder, present or to be made.
        """
        where = cache_place(cache)
        if where is None:
            return None
        changed = any(c.changes_inputs and type(c).change_batch is not Callback.change_batch for c in callbacks)
        foreign = any(type(c).__module__.split(".")[0] != "finetune" for c in callbacks)
        return Cache(
            where,
            self.network.stages,
            self.precision.autocast,
            changed=changed,
            declined=self._not_to_be_cut(),
            guarded=foreign or self._overrides(*_STEPS),
        )

    def _not_to_be_cut(self) -> str:
        """Return why the forward pass cannot be split, or `""`."""
        if self.model is not self.inner:
            return f"the model is wrapped in {type(self.model).__name__}, which may compile or divide its forward pass"
        if compiling.is_compiled(self.inner):
            return "the model came compiled; FineTuner(model, compile=True) compiles only the parts that are needed"
        return ""

    # ------------------------------------------------------------------ checkpoints

    def checkpoint(self, training: dict[str, Any] | None = None) -> Checkpoint:
        """Return the content of a checkpoint.

        Args:
            training: State of a run to resume; None for a checkpoint for use only.
        """
        known, network = self._known, self.network
        return Checkpoint(
            model=record_model(self.inner, network.source, network.scope),
            heads=network.found_heads or None,
            replacements=network.changes,
            classes=known.classes,
            classes_rule=known.classes_from_data,
            preprocessing=None if known.preprocessing is None else known.preprocessing.to_dict(),
            settings=self.settings.plain(),
            task=None if known.task is None else known.task.kind,
            history=tuple(known.history),
            training=training,
        )

    def _recall(self, checkpoint: Checkpoint) -> None:
        """Learn from a checkpoint all that is not in the weights."""
        network = self.network
        if network.scope is not None:
            saved = checkpoint.model.weights.keys() & dict(self.inner.named_parameters()).keys()
            network = replace(network, scope=network.scope | saved)
        self._learn(
            network=replace(network, known_heads=checkpoint.heads or ()),
            classes=checkpoint.classes,
            classes_from_data=checkpoint.classes_rule,
            history=History(checkpoint.history),
            task=None if checkpoint.task is None else task_of_kind(self.settings.loss, checkpoint.task),
        )

    def _resume(self, run: Run, checkpoint: Checkpoint) -> None:
        assert checkpoint.training is not None  # find_run returns no other
        try:
            run.load_state_dict(checkpoint.training)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} belongs to a run with other metrics or callbacks: {error}. Give fit and FineTuner "
                f"the arguments of the run that wrote it."
            ) from error
        restore.load_into(self.inner, checkpoint)
        self._recall(checkpoint)
