"""`FineTuner`: the verbs of the library over any `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune.advice.advice import Advice, judge
from finetune.advice.evidence import check_classes, measure
from finetune.caching.cache import open_cache
from finetune.card.data_description import described_data
from finetune.card.hub import push
from finetune.card.write_card import write_card
from finetune.checkpoint import restore, schema
from finetune.checkpoint.record import record_head, warn_of_left_out
from finetune.checkpoint.resume import find_run
from finetune.checkpoint.schema import Checkpoint
from finetune.data.batch import check_pair, num_samples_of, split_batch
from finetune.data.loading.batches import Batches
from finetune.data.loading.samples import worker_deaths_named
from finetune.data.prepare import Prepared
from finetune.data.preprocessing.augmentations import Augmentation
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.provenance import GIVEN, Provenance
from finetune.data.preprocessing.tta import View
from finetune.data.randomness import generators_of_loader_preserved, seeded
from finetune.data.sources.base import Source
from finetune.data.sources.labels import given_classes
from finetune.data.splitting import drawn
from finetune.data_check.data_check import DataCheck
from finetune.data_check.run_checks import check_indexed, run_checks
from finetune.data_check.samples.inspected import Inspected
from finetune.devices.device import resolve_device
from finetune.display import html
from finetune.display.left_out import parts_left_out
from finetune.display.progress.waits import waits_shown
from finetune.distributed.errors import errors_shared
from finetune.distributed.verb import verb
from finetune.distributed.world import join
from finetune.errors import ArgumentError, CheckpointError, DataError, HeadError, reason
from finetune.export.destination import Destination
from finetune.export.export import Export, export
from finetune.export.samples import Samples
from finetune.export.subject import Subject
from finetune.interpret.calibration import Calibration
from finetune.interpret.classification import Classification, classify
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.interpretation import Interpretation
from finetune.interpret.predictions import Predictions
from finetune.known import Known, recalled_arguments
from finetune.model import freezing
from finetune.model.families import family_of
from finetune.model.inspection.probing import given_example
from finetune.model.inspection.summary import Summary, summarize
from finetune.model.network import Network, unwrapped
from finetune.model.outputs import auxiliary_of, call, logits_of
from finetune.model.patterns import Patterns
from finetune.model.surgery import adapters, head_search, heads
from finetune.naming.arguments import checks_arguments
from finetune.naming.paths import local_path
from finetune.passes import Passes
from finetune.plan import Plan, make_plan
from finetune.pretrained import load_pretrained
from finetune.report.report import report_path, write_report
from finetune.strategies import Strategy
from finetune.threads.turns import takes_turns, turns_at
from finetune.training import loop
from finetune.training.callbacks.base import Callback, are_custom, as_callbacks, change_inputs
from finetune.training.callbacks.model_checkpoint import folders_locked, with_writer
from finetune.training.history import History
from finetune.training.lr_range_test import RateSuggestion, lr_range_test, rising
from finetune.training.metrics import Meter, Metrics, StepOutput
from finetune.training.numerics.precision import Precision, hint_at_bf16
from finetune.training.optim.optimizers import OptimizerFactory, default_rate
from finetune.training.optim.phases import Phase
from finetune.training.optim.rates import Rate, head_rate
from finetune.training.optim.schedules import Schedule
from finetune.training.progress.progress_bar import ProgressBar
from finetune.training.run import Run
from finetune.training.settings import Settings
from finetune.training.tasks import Loss, Task, infer_task
from finetune.trial import PREDICTION, STEPS, TRAINING, VALIDATION, Trial, check_step_names

if TYPE_CHECKING:
    from typing_extensions import Self


class FineTuner:
    """A model and the methods to fine-tune it.

    Args:
        model: An `nn.Module`, used in place, or the name of a model: `"resnet18"`, `"timm/NAME"`, `"hf/NAME"`.
        weights: For a model name, `"DEFAULT"` for the best published weights, the name of other weights, or None
            for random ones. For any model, the path of a local state dict (`.pth` or `.safetensors`) or checkpoint.
        in_channels: Number of image channels, if it differs from the model's. The first layers are adapted; with 1,
            a grayscale image gives the same output as its RGB copy. None keeps the layers.
        preprocessing: A `Preprocessing` or a mapping of its fields, or a tokenizer, feature extractor or image
            processor of transformers. None uses the preprocessing published with the weights, or for images
            without one, ImageNet's, at the size that the model states or 224 pixels.
        loss: `"cross_entropy"`, `"bce"`, `"mse"` or a function of outputs and targets; None infers it
            from the targets.
        metrics: Names, torchmetrics objects, or a mapping from name to either; None for the task's defaults.
        optimizer: `"adamw"`, `"sgd"`, or a function of parameter groups such as `torch.optim.Adam`, with its defaults.
        weight_decay: Weight decay; norm weights and biases are exempt.
        max_grad_norm: Maximum gradient norm per update; None does not clip.
        gradient_accumulation_steps: Batches per optimizer update.
        device: Device to train on; `"auto"` uses a GPU if there is one.
        precision: `"fp32"`, `"bf16"`, `"fp16"`, or `"auto"` for the best that the GPU supports and fp32 on a CPU.
        compile: Whether to compile the model with `torch.compile`, or the name of a backend other than
            `"inductor"`. The first batches then take longer, up to minutes.
        seed: Seed for every random choice: fresh weights and heads, splits, order, augmentation, dropout.
        distributed: `"auto"` to train one model in all processes that torchrun has started, each on its part of the
            data; `"fsdp"` to divide weights, gradients and optimizer state among them, too, for a model that is large
            for one device; False to train one in each.

    Attributes:
        device: Device of the model.

    Raises:
        ArgumentError: If an argument is invalid.
        CheckpointError: If the weights cannot be found or do not fit the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> X, y = torch.randn(30, 4), torch.arange(30) % 3
        >>> tuner = FineTuner(model, device="cpu")
        >>> tuner.fit((X, y), epochs=2, progress=False)[-1]["epoch"]
        2
        >>> tuner.predict(X).shape
        torch.Size([30, 3])
    """

    @checks_arguments
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
        distributed: str | bool = "auto",
    ) -> None:
        check_step_names(type(self), FineTuner)
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
        self._world = join(distributed, self.device)
        self.device = self._world.own_device(self.device)
        self.precision = Precision(precision, self.device)
        loaded = load_pretrained(
            model, weights=weights, in_channels=in_channels, preprocessing=preprocessing, seed=seed
        )
        network = Network.of(loaded.model.to(self.device), loaded.origin, loaded.changes)
        freezing.hold_frozen_in_eval(network.module)
        self._known = Known(network, loaded.preprocessing, loaded.classes, inputs=loaded.inputs, random=loaded.random)
        self._run: Run | None = None
        self._left_out: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'; '.join(self._known.describe())})"

    def _repr_html_(self) -> str:
        return html.paragraph(type(self).__name__, *self._known.describe())

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a copy, which is not part of a run under way."""
        with turns_at(self.inner).taken("copy"):
            return {**vars(self), "_run": None}

    # ------------------------------------------------------------------ attributes

    @property
    def network(self) -> Network:
        """Model and everything known about its structure: heads, stages, parameter order."""
        return self._known.network

    @property
    def model(self) -> nn.Module:
        """Module passed to the constructor, always the same object."""
        return self.network.wrapped

    @model.setter
    @takes_turns(sets=True)
    def model(self, model: nn.Module) -> None:
        self._learn(network=self.network.with_module(model), file=None)

    @property
    def inner(self) -> nn.Module:
        """Model inside `torch.compile` or a parallel wrapper. All layer and parameter names refer to it."""
        return self.network.module

    @property
    def head(self) -> nn.Module:
        """Main head of the model.

        Raises:
            HeadError: If the head is ambiguous.
        """
        return self.inner.get_submodule(self.network.required_heads()[0])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by output, or None if the outputs have no names."""
        return self._known.classes

    @classes.setter
    @takes_turns(alone=True, sets=True)
    def classes(self, names: Sequence[str] | None) -> None:
        self._learn(classes=given_classes(names), file=None)

    @property
    def preprocessing(self) -> InputPreprocessing | None:
        """Preprocessing from images, text or audio to model inputs; None if inputs need none."""
        return self._known.preprocessing

    @preprocessing.setter
    @takes_turns(alone=True, sets=True)
    def preprocessing(self, preprocessing: InputPreprocessing | None) -> None:
        self._learn(preprocessing=preprocessing, inputs=replace(self._known.inputs, origin=GIVEN), file=None)

    @property
    def history(self) -> History:
        """Training history with one row per epoch."""
        return self._known.history

    @history.setter
    @takes_turns(alone=True, sets=True)
    def history(self, history: History) -> None:
        self._learn(history=history)

    @property
    def task(self) -> Task | None:
        """Task that the model is trained for, or None before any targets have been seen."""
        return self._known.task

    @property
    def loss(self) -> Loss:
        """Loss, a function of outputs and targets.

        Raises:
            ArgumentError: If the loss depends on the targets and none have been seen yet.
        """
        if self.task is None and self.settings.loss is None:
            raise ArgumentError(
                "The loss depends on the targets, and none have been seen yet. Name it with loss=..., or call fit."
            )
        return (self.task or infer_task(self.settings.loss, None, self.network.num_outputs)).loss

    # ------------------------------------------------------------------ verbs on the model

    @takes_turns()
    def freeze(self, pattern: Patterns | None = None) -> Self:
        """Freeze the matching layers and parameters.

        Frozen parameters get no gradients, no updates and no weight decay. Frozen batch norm and dropout layers
        stay in eval mode after every call of `train()`.

        Args:
            pattern: A glob over full names such as `"layer[123]"`, or several; None for everything but the head.

        Raises:
            PatternError: If a pattern matches nothing.
            HeadError: If `pattern` is None and the head is ambiguous.

        Example:
            >>> tuner = FineTuner("resnet18", device="cpu").replace_head(3).freeze()
            >>> [name for name, p in tuner.model.named_parameters() if p.requires_grad]
            ['fc.weight', 'fc.bias']
        """
        if pattern is None:
            freezing.freeze_all_but(self.inner, self.network.required_heads())
        else:
            freezing.freeze(self.inner, pattern)
        return self

    @takes_turns()
    def unfreeze(self, names: Patterns | None = None) -> Self:
        """Make the matching layers and parameters trainable.

        Args:
            names: Patterns as in `freeze`; None for everything, or for a PEFT model everything that PEFT trains.

        Raises:
            PatternError: If a pattern matches nothing.

        Example:
            >>> tuner = FineTuner("resnet18", device="cpu").replace_head(3).freeze().unfreeze("layer4.1")
            >>> tuner.model.layer4[1].conv1.weight.requires_grad
            True
        """
        freezing.unfreeze(self.inner, self.network.everything() if names is None else names)
        return self

    @checks_arguments
    @takes_turns(alone=True)
    def replace_head(
        self,
        n: int,
        *,
        head: nn.Module | heads.HeadFactory | str | None = None,
        layer: str | None = None,
        example: Any = None,
    ) -> Self:
        """Replace the head, including auxiliary heads, with a new trainable one with `n` outputs.

        With `n=1` the loss or the targets decide between binary classification and regression. The history begins anew.

        Args:
            n: Number of outputs.
            head: A module; a function from `num_features` to a module; `"append"` for a layer after the
                existing outputs; None for a layer like the old one.
            layer: Full name of the layer to replace, if the head is ambiguous.
            example: Inputs of one or more samples, as tensor, tuple or dict, for a model whose input cannot be guessed.

        Raises:
            ArgumentError: If `n` is not a whole number of at least 1, or the model does not accept the example.
            HeadError: If the head cannot be found or built. The model is unchanged.

        Example:
            >>> tuner = FineTuner("resnet18", device="cpu").replace_head(120)
            >>> tuner.head
            Linear(in_features=512, out_features=120, bias=True)
        """
        adapters.check_changeable(self.inner, HeadError, f"FineTuner(model).replace_head({n})")
        if layer is not None:
            head_search.check_name(self.inner, layer)
        if example is not None:
            self._learn(network=self.network.with_example(given_example(self.inner, example)))
        names = self.network.required_heads() if layer is None else (layer,)
        verify, before = names != family_of(self.inner).heads(self.inner), heads.identities(self.inner)
        clamps = self.settings.loss in (None, "cross_entropy", "bce")
        with waits_shown(), seeded(self.settings.seed, "head"):
            found = heads.replace_head(
                self.inner, n, names, head, verify=verify, example=self.network.example, clamps=clamps, say=True
            )
        made, removed = self.inner.get_submodule(names[0]), heads.identities(self.inner) - before
        network = self.network.with_head(found, record_head(n, names, head, made, removed))
        self._learn(network=network, classes=None, classes_from_data=False, task=None, tried=False, history=History())
        self._learn(calibration=Calibration(), file=None)
        return self

    @takes_turns()
    def summary(self, input_size: Sequence[int] | None = None, *, depth: int = 0) -> Summary:
        """Return a table of the stages with their parameters, freeze state, learning rates and costs.

        Output shapes, multiply-adds and activation memory are per sample. Learning rates appear after the
        first `fit`.

        Args:
            input_size: Shape of one sample, such as `(3, 224, 224)`. None uses the data seen last, or else guesses
                from the preprocessing and the first layer; if the model accepts no guess, the costs are left out.
            depth: Levels of layers to list below each stage.

        Raises:
            ArgumentError: If the model does not accept `input_size`.

        Example:
            >>> summary = FineTuner(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), device="cpu").summary()
            >>> summary.parameters, summary.multiply_adds
            (67, 56)
        """
        images = self.preprocessing if isinstance(self.preprocessing, Preprocessing) else None
        image = None if images is None else (images.channels, *images.crop_size)
        example = self.network.example_of_size(input_size, image)
        rates = (self._run and self._run.planned_rates) or self._known.rates
        return summarize(self.inner, self.network.stages(), rates, example, depth)

    # ------------------------------------------------------------------ verbs on data

    @verb(alone=True)
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
        callbacks: Sequence[Callback] | Callback = (),
        checkpoint_dir: str | Path | None = None,
        resume_from: str | Path | None = None,
        resume_changed: bool = False,
        skip_corrupt: bool = False,
        progress: bool = True,
    ) -> History:
        """Train the model, evaluate it after every epoch, and return the history.

        Args:
            train: Training data: a folder with one subfolder per class, a CSV or Parquet file with a column of
                paths or texts and one of labels, a pair `(X, y)`, a Dataset or a DataLoader.
            val: Validation data in the same forms, a fraction such as 0.1 to hold out, or False for none. None
                holds out a fifth of a folder or table, stratified by class, and nothing of other data.
            epochs: Passes over the training data, divided among the phases of a strategy. Ignored for a list of
                phases, which have their own.
            strategy: Name or function from `finetune.strategies`, or a list of `Phase`. None trains one phase with
                the current freeze state.
            lr: Learning rate; a pair `(first stage, head)`, spread geometrically over the stages in between; a
                `LayerDecay`; or a mapping from pattern to rate. None uses the optimizer's defaults. With Adam, the
                head trains at one over its number of features, clipped to [1e-3, 1e-2], the stage before it at a
                third of that, and the first stage at a hundredth.
            schedule: `"cosine"`, `"linear"`, `"constant"` or `"one_cycle"`, all with warm-up over the first
                5 % (one-cycle: 30 %), or a function from the phase's progress in [0, 1] to a factor.
            batch_size: Samples per batch.
            augment: Augmentation of training images: True for random crops and flips, False for none,
                `"randaugment"` or `"trivialaugment"` to add that policy, or a function of a PIL image.
            augment_views: Number of fixed augmented versions to keep per image, cycled one per epoch, so that
                frozen features can be cached. 0 draws a fresh augmentation every epoch. None draws fresh ones
                unless the cache is active and the augmentation is built in; then it keeps 4: the image as
                evaluated and 3 random versions.
            cache: Where to keep the activations of the frozen layers, computed once per sample. `"auto"` picks the
                device, memory or disk if caching pays and gives the same result; `"memory"` or `"disk"` (a
                temporary file) caches whenever it gives the same result; a path names a folder to share between
                runs; False disables the cache. A run reuses every entry of a folder whose inputs have not changed,
                for example with another head, learning rate or fold. finetune never deletes the folder.
            callbacks: A callback, or several, called in this order.
            checkpoint_dir: Folder for `last.safetensors` and `best.safetensors`.
            resume_from: A checkpoint file, a folder of checkpoints, or `"auto"` to resume from `checkpoint_dir` if
                a run has been saved there.
            resume_changed: Whether to resume although settings, rates, data or callbacks differ from the saved run.
            skip_corrupt: Whether to leave out images that cannot be decoded, with a warning, instead of
                raising an error.
            progress: Whether to show an overview before training and a line per epoch, and the progress. All
                lines are logged in any case.

        Returns:
            The history, one row per epoch, including earlier calls of `fit`.

        Raises:
            ArgumentError, PatternError, DataError, CheckpointError: If an argument or the data is invalid. Raised
                before the first update.
            NonFiniteError: If the loss or a gradient is NaN or infinite, and the model keeps its state from before
                that update; or if weights or buffers are, which are saved to no file.

        Example:
            >>> tuner = FineTuner("resnet18", device="cpu", preprocessing={"crop_size": 32}).replace_head(3)
            >>> history = tuner.freeze().fit("dogs/train", "dogs/val", epochs=2, progress=False)
            >>> tuner.classes
            ('beagle', 'husky', 'pug')
        """
        checkpoint_dir = self._world.agreed(checkpoint_dir)
        callbacks = with_writer(as_callbacks(callbacks), checkpoint_dir, self._world)
        with waits_shown(progress), folders_locked(callbacks):
            with parts_left_out() as left_out, self._undone_on_error() as on_error:
                saved = find_run(resume_from, checkpoint_dir, self._world)
                if saved is not None:
                    named = saved.classes is not None  # if not, the outputs stand for numbers in this run, too
                    classes = saved.classes if named else self.classes
                    self._learn(classes=classes, classes_from_data=saved.classes_from_data or not named)
                data = self._open_training(train, val, trains=True)
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
                self._learn(network=plan.network, rates=plan.rates, calibration=Calibration(), file=None)
                task = self._learn_task(data.train)
                train_batches, val_batches = self._trial.pipeline.training_batches(
                    data,
                    batch_size,
                    augment=augment,
                    views=augment_views,
                    keep=sum(phase.epochs for phase in plan.phases) > 1,
                    rule=self._trial.rule,
                    skip_corrupt=skip_corrupt,
                    world=self._world,
                )
                run = self._new_run(
                    plan,
                    train_batches,
                    val_batches,
                    metrics=self._trial.metrics(task, TRAINING, VALIDATION),
                    callbacks=[*callbacks, *([ProgressBar()] if progress else [])],
                    notes=data.notes,
                    left_out=left_out,
                    cache=open_cache(
                        cache,
                        self.network,
                        self.precision.autocast,
                        changed=change_inputs(callbacks),
                        guarded=self._overrides(*STEPS) or are_custom(callbacks),
                        world=self._world,
                    ),
                )
                if saved is not None:
                    self._resume(run, saved, changed=resume_changed)
                if (classes := train_batches.source.classes) is not None:
                    self._learn(classes=classes, classes_from_data=True)
                self._learn(data=described_data(data.train, data.val, self.classes))
                hint_at_bf16(self.precision, sum(parameter.numel() for parameter in self.inner.parameters()))
            self.network.tell_task(task.kind, classes)
            memory_format = self._passes.memory_format(train_batches.source, trains_all=plan.trains_all)
            with self._under_way(run), memory_format:
                loop.fit(run)
        return self.history

    @verb()
    def evaluate(self, data: Any, *, batch_size: int = 32) -> dict[str, float]:
        """Return the loss and the metrics over `data`, with each sample counted once.

        Args:
            data: Labeled data in any form that `fit` accepts.
            batch_size: Samples per batch.

        Returns:
            Values by name, the loss first.

        Raises:
            DataError: If the data is invalid, or has a class that the training data lacks.

        Example:
            >>> tuner = FineTuner(nn.Linear(4, 3), device="cpu")
            >>> list(tuner.evaluate((torch.randn(12, 4), torch.arange(12) % 3)))
            ['loss', 'accuracy']
        """
        with waits_shown(), self._undone_on_error():
            source = self._open(data)
            task, rule = self.task or self._learn_task(source, VALIDATION), self._trial.rule
            audited = self._trial.pipeline.audited(source, "evaluation", rule=rule)
            batches = self._trial.pipeline.batches(audited, batch_size, rule=rule, world=self._world)
            settings = self.settings if self._overrides(VALIDATION) else None
            with self._passes.over(source):
                metrics = self._trial.metrics(task, VALIDATION)
                meter = Meter(metrics, task, self.device, settings=settings, world=self._world)
                return loop.evaluate(self.validation_step, self.inner, batches, meter, self.precision)

    @verb()
    def predict(self, data: Any, *, batch_size: int = 32, tta: bool | Sequence[View] = False) -> Tensor:
        """Return the model's outputs on the CPU, one row per sample, in the order of the data.

        For classification, these are logits: `.softmax(1)` gives the probabilities, and `tuner.classes` the class
        names.

        Args:
            data: Data in any form that `fit` accepts, with or without labels; or the path of an image, a list of
                paths, a folder of images, or X alone, such as a list of texts.
            batch_size: Samples per batch.
            tta: Test-time augmentation: True averages the outputs over each image and its mirror image. Functions
                of a batch [N, C, H, W] each add a view.

        Raises:
            DataError: If the data is invalid.
            ArgumentError: If `predict_step` returns no tensor.

        Example:
            >>> tuner = FineTuner("resnet18", device="cpu", preprocessing={"crop_size": 32})
            >>> tuner.predict(["dog.png", "dog.png"]).shape
            torch.Size([2, 1000])
        """
        with waits_shown(), self._undone_on_error():
            source = self._open(data, labeled=False)
            return self._passes.outputs(source, batch_size, tta)[0]

    @verb()
    def predict_proba(self, data: Any, *, batch_size: int = 32, tta: bool | Sequence[View] = False) -> Tensor:
        """Return the probabilities of the classes on the CPU, one row per sample, in the order of the data.

        They are the softmax of the model's outputs, or their sigmoid for a binary or multi-label task, at the
        temperature of `calibrate`.

        Args:
            data: Data as for `predict`.
            batch_size: Samples per batch.
            tta: Test-time augmentation as in `predict`.

        Raises:
            DataError: If the data is invalid.
            ArgumentError: If the task is a regression or unknown.
            NonFiniteError: If an output is NaN.

        Example:
            >>> tuner = FineTuner("resnet18", device="cpu", preprocessing={"crop_size": 32})
            >>> tuner.predict_proba("dog.png").sum().item()
            1.0
        """
        with waits_shown(), self._undone_on_error():
            source = self._open(data, labeled=False)
            return self._passes.predictions(source, batch_size, tta).probabilities

    @verb()
    def classify(
        self,
        data: Any,
        *,
        top: int = 5,
        threshold: float | Mapping[str, float] | None = None,
        reject: float | None = None,
        batch_size: int = 32,
        tta: bool | Sequence[View] = False,
    ) -> Classification:
        """Return the answer for each sample in words: the name of the sample, its classes, and their probabilities.

        Args:
            data: Data as for `predict`.
            top: Number of classes per sample. A multi-label task has every label above its threshold instead.
            threshold: Lowest probability of a class in an answer, or one per class by name. None for that of
                `calibrate`, or 0.5, for a multi-label and a binary task, in which it decides for the second class.
            reject: Probability of the best class below which the answer is "don't know". None for an answer always.
            batch_size: Samples per batch.
            tta: Test-time augmentation as in `predict`.

        Returns:
            Answers that print as a table, with `.to_csv(path)`, `.to_jsonl(path)` and `.to_pandas()`. A notebook shows
            the images. A regression has values in place of probabilities.

        Raises:
            DataError: If the data is invalid.
            ArgumentError: If an argument does not suit the task, or the outputs have no one answer per sample.
            NonFiniteError: If an output is NaN.

        Example:
            >>> tuner = FineTuner(nn.Linear(4, 2), device="cpu")
            >>> tuner.classes = "cat", "dog"
            >>> answers = tuner.classify(torch.zeros(3, 4), top=1)
            >>> answers[0].best in tuner.classes
            True
        """
        with waits_shown(), self._undone_on_error():
            source = self._open(data, labeled=False)
            predictions = self._passes.predictions(source, batch_size, tta)
            return classify(predictions, top=top, threshold=threshold, reject=reject)

    @verb()
    def calibrate(self, val: Any, *, batch_size: int = 32) -> Self:
        """Fit the temperature of the probabilities, and a threshold per label, to data that was not trained on.

        The temperature makes probabilities as sure as they are right, and changes no order of the classes. The
        threshold of a label, for multi-label and binary tasks, is that of the highest F1. Both are kept in checkpoints
        until the model is trained again.

        Args:
            val: Labeled validation data in any form that `fit` accepts.
            batch_size: Samples per batch.

        Raises:
            DataError: If the data is invalid.
            ArgumentError: If the task is a regression or unknown.
            NonFiniteError: If an output is NaN.

        Example:
            >>> X, y = torch.randn(40, 4), torch.arange(40) % 2
            >>> tuner = FineTuner(nn.Linear(4, 2), device="cpu").calibrate((X, y))
            >>> tuner.predict_proba(X[:1]).shape
            torch.Size([1, 2])
        """
        with waits_shown(), self._undone_on_error():
            self._learn(calibration=self._labeled_predictions(val, batch_size).fitted(), file=None)
        return self

    @verb()
    def interpret(self, data: Any, *, heatmaps: bool = False, batch_size: int = 32) -> Interpretation:
        """Compare the answers of the model with the truth: confused classes, worst mistakes, calibration, curves.

        The model runs once over the data. Everything else is computed when it is first asked for.

        Args:
            data: Labeled data in any form that `fit` accepts, best that the model was not trained on.
            heatmaps: Whether to show the evidence for the answer in the images of the worst mistakes. See `heatmaps`.
            batch_size: Samples per batch.

        Returns:
            An interpretation that prints as a page, with numbers such as `.confusion`, `.per_class`, `.mistakes()` and
            `.calibration_error`, and plots such as `.plot_confusion()`. A notebook shows the images.

        Raises:
            DataError: If the data is invalid, or has a class that the training data lacks.
            ArgumentError: If the task is unknown, or the outputs have no one answer per sample.
            NonFiniteError: If an output is NaN.

        Example:
            >>> X, y = torch.eye(3).repeat(4, 1), torch.arange(12) % 3
            >>> tuner = FineTuner(nn.Linear(3, 3), device="cpu")
            >>> found = tuner.interpret((X, y))
            >>> len(found.mistakes()) == round(12 * (1 - found.top1))
            True
        """
        with waits_shown(), self._undone_on_error():
            found = self._labeled_predictions(data, batch_size)

            def explain(rows: Sequence[int], of: Sequence[str | None]) -> Heatmaps:
                return self._passes.heatmaps(found.source.subset(rows), of, None, batch_size)

            return Interpretation(found, explain if heatmaps else None)

    @verb()
    def heatmaps(
        self,
        data: Any,
        *,
        of: str | int | Sequence[str | int | None] | None = None,
        layer: str | None = None,
        batch_size: int = 32,
    ) -> Heatmaps:
        """Show the parts of images that speak for an answer of the model, by Grad-CAM (arXiv 1610.02391).

        In networks without attention, its gradients are not averaged (HiResCAM, arXiv 2011.08891).
        The maps are as fine as the deepest features with positions: 7 x 7 in most networks, 14 x 14 in most vision
        transformers, whose attention mixes positions, so that their maps point less surely.

        Args:
            data: Images as for `predict`.
            of: Name or number of the class, label or output to find the evidence for, or a list with one per sample.
                None for the answer of the model to each sample: of a multi-label task the likeliest label.
            layer: Full name of the layer whose features are shown. None for the deepest one with positions; in models
                with attention, the deepest one before their last attention.
            batch_size: Samples per batch.

        Returns:
            Heatmaps with `.maps`, float32 [N, H, W] in [0, 1], `.overlay(index)` and `.plot()`.

        Raises:
            DataError: If the data is invalid.
            ArgumentError: If the data are no images, no layer has positions, or an argument is invalid.

        Example:
            >>> tuner = FineTuner("resnet18", device="cpu", preprocessing={"crop_size": 96})
            >>> found = tuner.heatmaps(["dog.png", "dog.png"])
            >>> found.layer, found.maps.shape
            ('layer3', torch.Size([2, 96, 96]))
        """
        with waits_shown(), self._undone_on_error():
            source = self._open(data, labeled=False)
            return self._passes.heatmaps(source, of, layer, batch_size)

    @verb()
    def report(self, path: str | Path, data: Any, *, train: Any = None, batch_size: int = 32) -> Path:
        """Write one HTML file on the model and its answers, which needs no network and no other file.

        It shows the results of `interpret`, `heatmaps` and `check_data`, the history, the layers, the settings, the
        versions, and the code to repeat it. Up to 1,000 classes stay below 5 MB.

        Args:
            path: File to write, such as `"report.html"`.
            data: Labeled data in any form that `fit` accepts, best that the model was not trained on.
            train: Training data, to look for the same samples in both. None leaves this out.
            batch_size: Samples per batch.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: If the file cannot be written, which is checked first; or as `interpret` raises.
            DataError: If the data is invalid, or has a class that the training data lacks.
            NonFiniteError: If an output is NaN.

        Example:
            >>> X, y = torch.eye(3).repeat(4, 1), torch.arange(12) % 3
            >>> FineTuner(nn.Linear(3, 3), device="cpu").report("report.html", (X, y)).read_text()[:15]
            '<!DOCTYPE html>'
        """
        path = report_path(path)
        with waits_shown(), self._undone_on_error():
            return write_report(self, path, data, train=train, batch_size=batch_size, file=self._known.file)

    @verb(alone=True)
    def advise(self, train: Any, val: Any = None, *, samples: int = 2000, batch_size: int = 32) -> Advice:
        """Recommend a strategy and learning rates for the data, without training or changing the model.

        The model runs once over a sample of the data. Its features are scored by the held-out accuracy of a linear
        probe and of nearest neighbors, the gain from more data, and the gain from earlier stages.

        Args:
            train: Training data in any form that `fit` accepts, with one class per sample. The head need not match
                the classes yet.
            val: Validation data in any form that `fit` accepts; None holds out the same fraction as `fit`.
            samples: Number of samples to measure, stratified by class.
            batch_size: Samples per batch.

        Returns:
            Advice with `.strategy` and `.lr` to pass to `fit`, reasons, measurements and `.plot()`.

        Raises:
            DataError: If the data is invalid, or has fewer than two classes with two samples each.
            HeadError: If the head is ambiguous.

        Example:
            >>> y = torch.arange(60) % 3
            >>> advice = FineTuner(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))).advise((torch.randn(60, 4), y))
            >>> advice.strategy in ("lp_ft", "last_stage")
            True
        """
        with waits_shown(), self._as_before(), generators_of_loader_preserved(train):
            data = self._open_training(train, val)
            check_classes(self._trial.pipeline.some_targets(data.train))
            validation = None if data.val is None else self._passes.features(data.val, samples // 4, batch_size)
            total = len(data.train) if data.train.indexed else None
            evidence = measure(self._passes.features(data.train, samples, batch_size), validation, total)
            untrained = self._known.random and not self.history
            return judge(evidence, head_rate(self.inner, self.network.stages()), untrained=untrained)

    @verb()
    def check_data(self, train: Any, val: Any = None, *, samples: int | None = None, batch_size: int = 32) -> DataCheck:
        """Look for faults in the data, without training or changing the model.

        The checks find unreadable samples, duplicates, leaks between training and validation data, likely wrong
        labels, outliers, classes that the features do not tell apart, and pictures of odd sizes, dark, blurred or
        blank. Each sample is read once and runs through the model once; `advise` and a second check of the same data
        use the same features. The better the model suits the data, the more the checks find.

        Args:
            train: Training data in any form that `fit` accepts, except streams and loaders. The head need not match
                the classes yet.
            val: Validation data in the same forms, or a fraction that is held out as by `fit`. None holds out nothing:
                all samples are checked together, apart from validation data that the data itself sets apart.
            samples: Number of training samples to check, stratified by class, and as many for validation; None for
                all.
            batch_size: Samples per batch.

        Returns:
            Findings that print as a table by severity, with `.wrong_labels`, `.leaks` and others, `.to_csv(path)` and
            `.plot()`. A notebook shows the images.

        Raises:
            DataError: If the data is invalid, is a stream, or has no sample that can be read.
            HeadError: If the head is ambiguous.

        Example:
            >>> X = torch.randn(60, 4)
            >>> found = FineTuner(nn.Linear(4, 2), device="cpu").check_data((X, torch.arange(60) % 2), (X[:1], [0]))
            >>> found.leaks[0].samples
            ('sample 0', 'sample 0')
        """
        with waits_shown(), self._as_before():
            data = self._open_training(train, val, holds_out=False)
            parts = [part for part in (data.train, data.val) if part is not None]
            check_indexed(parts)
            few = [drawn(part, samples, self.settings.seed) for part in parts]
            features = [self._passes.features(part, len(part), batch_size, observed=True) for part in few]
            return run_checks(Inspected.of(features, few, self.preprocessing))

    @verb(alone=True)
    def find_lr(
        self,
        train: Any,
        *,
        lr: Rate | None = None,
        batch_size: int = 32,
        augment: bool | str | Augmentation = True,
        steps: int = 100,
    ) -> RateSuggestion:
        """Suggest the learning rates at which the loss falls fastest, for the current freeze state.

        Trains for some updates at rising rates and undoes every change, so a later `fit` gives the same result bit
        for bit (learning-rate range test, arXiv 1506.01186).

        Args:
            train: Training data in any form that `fit` accepts.
            lr: Learning rates as in `fit`. Only their ratios matter, and the suggestion keeps them.
            batch_size: Samples per batch.
            augment: Augmentation as in `fit`.
            steps: Number of updates over which the highest rate rises from 1e-7 to 10. The test stops early if the
                loss diverges.

        Returns:
            A suggestion with `.lr` to pass to `fit`, and `.plot()`.

        Raises:
            ArgumentError: If an argument is invalid, or the loss falls at no rate.
            DataError: If the data is invalid.

        Example:
            >>> y = torch.arange(90) % 3
            >>> X = torch.eye(3)[y] + torch.randn(90, 3, generator=torch.Generator().manual_seed(0)) / 9
            >>> found = FineTuner(nn.Linear(3, 3), device="cpu").find_lr((X, y), lr=1.0)
            >>> 1e-7 < found.lr < 10
            True
        """
        with waits_shown(), self._as_before(), generators_of_loader_preserved(train):
            source = self._open_training(train, False).train
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
            self._learn(network=plan.network)
            self._learn_task(source)
            rule = self._trial.rule
            audited = self._trial.pipeline.audited(source, "training", rule=rule)
            batches = self._trial.pipeline.batches(
                audited, batch_size, shuffle=True, augment=augment, rule=rule, world=self._world
            )
            own_precision = Precision(self.settings.precision, self.device)  # with its own gradient scale
            run = self._new_run(plan, batches, None, metrics={}, precision=own_precision)
            default = default_rate(self.settings.optimizer, self.inner, self.network.stages())
            return lr_range_test(run, default if lr is None else lr, steps)

    # ------------------------------------------------------------------ verbs on the result

    @takes_turns()
    @errors_shared()
    def save_checkpoint(self, path: str | Path, *, card: bool = False, sharded: bool = False) -> Path:
        """Write weights, classes, preprocessing, freeze state and history to one safetensors file.

        During `fit`, the file also holds everything needed to resume the run.

        Args:
            path: File to write.
            card: Whether to write a model card beside it: `README.md`, or `FILE.md` if there is another README.
            sharded: During a `fit` that divides the weights, whether each process writes its own part to a folder
                beside the file. `finetune gather` makes a single file of both.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: If `sharded` is set and the weights are not divided among processes.
            CheckpointError: If the file cannot be written. An existing file stays intact.
            NonFiniteError: If a weight is NaN. An existing file stays intact.

        Example:
            >>> FineTuner(nn.Linear(4, 3), device="cpu").save_checkpoint("model.safetensors").name
            'model.safetensors'
        """
        with waits_shown():
            if self._run is None:
                saved = schema.save(path, self._checkpoint(), self._world, sharded=sharded)
            else:
                saved = self._run.save(path, sharded=sharded)
            if card:
                described = self._checkpoint()
                self._world.written(saved, lambda: write_card(saved, described))
        if self._run is None:
            self._learn(file=saved)
        return saved

    @errors_shared()
    def push_to_hub(
        self, repo: str, *, private: bool | None = None, token: str | None = None, message: str = "Upload model"
    ) -> str:
        """Upload the checkpoint and its card to a repository of the Hugging Face hub, and return its address.

        Args:
            repo: Repository such as `"me/dogs"`, which is created if it does not exist.
            private: Whether a new repository is private; None for the default of its owner.
            token: Token with write access; None for that of `HF_TOKEN` or of `hf auth login`.
            message: Message of the commit.

        Raises:
            ArgumentError: If huggingface_hub is not installed, `repo` is no repository, or there is no token.
            CheckpointError: If the hub refuses the upload or cannot be reached.

        Example:
            >>> FineTuner(nn.Linear(4, 3), device="cpu").push_to_hub("not/a/repository")
            Traceback (most recent call last):
            finetune.errors.ArgumentError: 'not/a/repository' is no repository of the hub. ...
        """
        checkpoint = schema.put_together(self._checkpoint())
        address = push(checkpoint, repo, private=private, token=token, message=message) if self._world.leads else ""
        return self._world.agreed(address)

    @verb(alone=True)
    def export(
        self,
        path: str | Path,
        format: str = "onnx",
        *,
        verify: Any = None,
        quantize: str | None = None,
        tolerance: float | None = None,
        batch_size: int = 32,
    ) -> Export:
        """Write the model to a file that runs without this package, and verify its answers against the model's.

        An ONNX file and a program of torch.export contain normalization, model, softmax or sigmoid and the temperature
        of `calibrate`, take any number of samples, and hold class names and preprocessing in their metadata. Images
        enter as bytes of the size of the crop: the script that is written beside the file reads, resizes and crops
        them with Pillow and prints the answers of `classify`. No graph repeats Pillow's resizing exactly. Adapters are
        merged. The model is unchanged.

        Args:
            path: File to write, or folder for `"pretrained"`.
            format: `"onnx"` (.onnx); `"torch"` for a program of torch.export (.pt2); `"state_dict"` for the weights
                alone (.pth or .safetensors); `"pretrained"` for a folder that transformers or timm load.
            verify: Data in any form that `predict` accepts. With labels, the accuracy of file and model is printed.
                None tries a few synthetic inputs.
            quantize: `"fp16"` or `"int8"` for a smaller ONNX file. None keeps 32 bits.
            tolerance: Largest difference of a probability. None for 0.001, or 0.05 where the model or the file
                computes in 16 bits, and any for int8.
            batch_size: Samples per batch of the verification.

        Returns:
            What was written and how well it agrees, which prints as a summary.

        Raises:
            ArgumentError: If an argument is invalid, or a package is missing.
            DataError: If the data is invalid.
            NonFiniteError: If a weight is NaN.
            ExportError: If the model cannot be exported or the file gives other answers. No file is left behind.

        Example:
            >>> tuner = FineTuner(nn.Linear(4, 3), device="cpu")
            >>> tuner.export("model.onnx", verify=torch.randn(20, 4)).agreement.samples
            20
        """
        to = Destination.of(path, format, quantize, tolerance)
        with waits_shown(), self._undone_on_error():
            if verify is None:
                source, unlabeled = self._open(self._known.stand_in(), labeled=False), ""
            else:
                source, self._known, unlabeled = self._trial.open_to_verify(verify)
            known, custom = self._known, self._overrides(PREDICTION)
            subject = Subject(
                self.inner, self._trial.answered_task(), known.preprocessing, known.classes, known.calibration
            )
            samples = Samples(
                self._trial.pipeline,
                source,
                self.predict_step,
                self.inner,
                self.precision,
                batch_size,
                given=verify is not None,
                rule=None if unlabeled or verify is None else self._trial.answered_rule,
                unlabeled=unlabeled,
            )
            with self._passes.over(source):
                return export(subject, to, samples, custom=custom)

    @classmethod
    def load_checkpoint(cls, path: str | Path, model: nn.Module | None = None, **settings: Any) -> Self:
        """Load a checkpoint after verifying every byte of it, without downloading anything.

        Args:
            path: File written by `save_checkpoint`.
            model: The module, if the model was not built by name.
            settings: Keyword arguments of `FineTuner` that replace the saved ones.

        Raises:
            CheckpointError: If the file is damaged or belongs to another model.

        Example:
            >>> path = FineTuner(nn.Linear(4, 3), device="cpu").save_checkpoint("model.safetensors")
            >>> FineTuner.load_checkpoint(path, nn.Linear(4, 3)).predict(torch.zeros(2, 4)).shape
            torch.Size([2, 3])
        """
        with waits_shown():
            checkpoint = schema.read(path)
        kept = recalled_arguments(checkpoint)
        built = restore.rebuild(checkpoint) if model is None else model
        restore.missing_changes(unwrapped(built), checkpoint)  # raises before anything changes
        with turns_at(unwrapped(built)).taken("load_checkpoint", alone=True):
            tuner = cls(built, **{**kept, **settings})
            restore.load_into(tuner.inner, checkpoint)
        origin, changes = checkpoint.model.origin, checkpoint.changes
        tuner._learn(network=replace(tuner.network, origin=origin, changes=changes))
        if "preprocessing" not in settings:
            tuner._learn(inputs=Provenance(**checkpoint.inputs))
        tuner._known = replace(tuner._known.recalled(checkpoint, tuner.settings), file=local_path(path))
        return tuner

    # ------------------------------------------------------------------ steps to override

    def training_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a batch. Override this method for a custom loss.

        Precision, accumulation, clipping, schedules, callbacks and history keep working.

        Args:
            batch: `(inputs, targets)`, or a batch in the form of a custom dataset or loader, on the device.

        Returns:
            A scalar loss, or a `StepOutput` with outputs and targets for the training metrics.

        Example:
            >>> class LabelSmoothing(FineTuner):
            ...     def training_step(self, batch):
            ...         inputs, targets = batch
            ...         return nn.functional.cross_entropy(self.model(inputs), targets, label_smoothing=0.1)
            >>> tuner = LabelSmoothing(nn.Linear(4, 2), device="cpu")
            >>> history = tuner.fit((torch.randn(8, 4), torch.arange(8) % 2))
        """
        return self._step(batch, *family_of(self.inner).loss_weights(self.inner))

    def validation_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a validation batch, like `training_step` but without gradients.

        Example:
            >>> class Hinge(FineTuner):
            ...     def training_step(self, batch):
            ...         inputs, targets = batch
            ...         return nn.functional.multi_margin_loss(self.model(inputs), targets)
            ...     validation_step = training_step
            >>> list(Hinge(nn.Linear(4, 2), device="cpu").evaluate((torch.randn(8, 4), torch.arange(8) % 2)))
            ['loss']
        """
        return self._step(batch, 1.0, 0.0)

    def predict_step(self, batch: Any) -> Tensor:
        """Return the outputs [N, ...] for a batch. Labels in the batch are ignored.

        Example:
            >>> class Probabilities(FineTuner):
            ...     def predict_step(self, batch):
            ...         return super().predict_step(batch).softmax(1)
            >>> Probabilities(nn.Linear(4, 2), device="cpu").predict(torch.zeros(3, 4)).sum(1).allclose(torch.ones(3))
            True
        """
        inputs, targets = split_batch(batch)
        samples = None if targets is None else num_samples_of(batch)
        outputs: Tensor = logits_of(call(self.model, inputs, samples))
        return outputs

    def _step(self, batch: Any, weight: float, auxiliary_weight: float) -> StepOutput:
        check_pair(batch)
        inputs, targets = split_batch(batch)
        if targets is None:
            raise DataError("A batch has no labels. Expected (input, label), or a dict with a key such as 'label'.")
        if self.task is None:
            self._learn(task=infer_task(self.settings.loss, targets, self.network.num_outputs))
        output = call(self.model, inputs, num_samples_of(batch))
        logits = logits_of(output)
        loss = self.loss(logits, targets)
        others = auxiliary_of(output, len(self.network.heads)) if auxiliary_weight else []
        if others:
            loss = weight * loss + auxiliary_weight * sum(self.loss(other, targets) for other in others)
        return StepOutput(loss, logits, targets)

    # ------------------------------------------------------------------ known state and its restoration

    def _learn(self, **facts: Any) -> None:
        self._known = replace(self._known, **facts)

    @contextmanager
    def _undone_on_error(self) -> Iterator[Callable[[Callable[[], None]], Any]]:
        """Restore the known state after an error, for example if the data turns out to be unusable.

        Yields:
            A function that registers further functions to call on an error.
        """
        before = self._known
        with ExitStack() as undo:
            try:
                with worker_deaths_named():
                    yield undo.callback
            except BaseException:
                self._known = before
                raise
            undo.pop_all()

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Restore every attribute on exit, including those set by custom steps."""
        before = dict(vars(self))
        try:
            with worker_deaths_named():
                yield
        finally:
            vars(self).clear()
            vars(self).update(before)

    # ------------------------------------------------------------------ trial runs on the data

    @property
    def _trial(self) -> Trial:
        custom = [step for step in STEPS if self._overrides(step)]
        return Trial(self._known, self.settings, self.precision, custom, self._world)

    @property
    def _passes(self) -> Passes:
        return Passes(self._trial, self.predict_step)

    def _open(self, data: Any, *, labeled: bool = True) -> Source:
        source, self._known = self._trial.open(data, labeled=labeled)
        return source

    def _open_training(self, train: Any, val: Any, *, trains: bool = False, holds_out: bool = True) -> Prepared:
        data, self._known = self._trial.open_training(train, val, trains=trains, holds_out=holds_out)
        return data

    def _labeled_predictions(self, data: Any, batch_size: int) -> Predictions:
        source = self._open(data)
        task = self.task or self._learn_task(source, VALIDATION)
        return self._passes.labeled_predictions(source, task, batch_size)

    def _learn_task(self, source: Source, step: str = TRAINING) -> Task:
        task = self._trial.task(source, step)
        self._learn(task=task)
        return task

    def _overrides(self, *names: str) -> bool:
        """Return whether a subclass overrides one of these methods."""
        return any(getattr(type(self), name) is not getattr(FineTuner, name) for name in names)

    # ------------------------------------------------------------------ runs and checkpoints

    def _new_run(self, plan: Plan, train: Batches, val: Batches | None, **options: Any) -> Run:
        assert self.task is not None
        planned = {"network": plan.network, "strategy": plan.strategy, "phases": plan.phases, "plan": plan.lines}
        given: dict[str, Any] = {"precision": self.precision, "world": self._world, **planned, **options}
        return Run(tuner=self, settings=self.settings, train=train, val=val, task=self.task, **given)

    @contextmanager
    def _under_way(self, run: Run) -> Iterator[None]:
        """Make `run` the one that checkpoints and summaries describe until the context exits."""
        self._run = run
        try:
            with worker_deaths_named():
                yield
        finally:
            self._run = None
            self._learn(rates=run.planned_rates or self._known.rates)
            if run.cache is not None:
                run.cache.close()

    def _checkpoint(self, training: dict[str, Any] | None = None) -> Checkpoint:
        """Return the content of a checkpoint, with the training state of a run to resume if there is one."""
        self._left_out = warn_of_left_out(vars(self), unwrapped(self.model), self._left_out)
        return self._known.to_checkpoint(self.settings, training)

    def _resume(self, run: Run, checkpoint: Checkpoint, *, changed: bool) -> None:
        assert checkpoint.training is not None  # find_run returns no other
        restore.missing_changes(self.inner, checkpoint)  # raises before anything changes
        try:
            with freezing.freeze_state_restored(self.inner):
                freezing.set_frozen(self.inner, checkpoint.model.frozen)
                run.load_state_dict(checkpoint.training, checkpoint.model.weights, changed=changed)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
        except Exception as error:  # a callback of the user may raise anything
            raise CheckpointError(
                f"{checkpoint.path} was written by a run with different metrics or callbacks: {reason(error)}. Pass "
                f"fit and FineTuner the same arguments as in that run."
            ) from error
        restore.load_into(self.inner, checkpoint)
        self._known = self._known.recalled(checkpoint, self.settings)
