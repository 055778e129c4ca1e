"""The verbs that measure: they try the model on data, and leave everything as it was."""

from __future__ import annotations

from typing import Any

from finetune.advice.advice import Advice, judge
from finetune.advice.evidence import check_classes, measure
from finetune.data.prepare import some_targets
from finetune.data.preprocessing.augmentations import Augmentation
from finetune.data.randomness import generators_of_loader_preserved
from finetune.data.sources.base import Loader, Stream
from finetune.errors import ArgumentError
from finetune.session.session import Session
from finetune.training.lr_range_test import RateSuggestion, range_test, rising
from finetune.training.optim.rates import Rate, default_rate, head_rate
from finetune.training.precision import Precision


class Measuring(Session):
    """A model that can be asked what suits it and its data; the attributes and arguments are `FineTuner`'s."""

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
            self._look_at(data.train)
            validation = None if data.val is None else self._features(data.val, samples // 4, batch_size)
            total = None if isinstance(data.train, (Loader, Stream)) else len(data.train)
            evidence = measure(self._features(data.train, samples, batch_size), validation, total)
            return judge(evidence, head_rate(self.inner, self._stages()))

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
            self._look_at(source)
            phases = self._plan(None, 1, lr, rising).phases
            self._task = task = self._infer_task(source)
            batches = self._batches(self._audited(source, task, "training"), batch_size, shuffle=True, augment=augment)
            precision = Precision(self.settings.precision, self.device)  # its gradient scale is no one else's
            run = self._make_run(phases, batches, None, task, metrics={}, precision=precision)
            if lr is None:
                lr = default_rate(self.settings.optimizer, self.inner, self._stages())
            return range_test(run, lr, steps)
