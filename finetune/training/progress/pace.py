"""`Pace`: the time that a run still takes, by the epoch under way and the one before."""

from __future__ import annotations

_EARLY = 0.2  # fraction of an epoch before which the epoch before is the better estimate: loaders need time to start


class Pace:
    """Pace of the epochs of one phase. Times are in seconds of a monotonic clock.

    Example:
        >>> pace = Pace()
        >>> pace.begin_epoch(now=0.0, step=0)
        >>> pace.seconds_left(now=5.0, step=10, steps=40, epochs=2)
        55.0
        >>> pace.end_training(now=20.0)
        >>> pace.begin_epoch(now=22.0, step=0)  # after 2 s of evaluation
        >>> pace.seconds_left(now=22.0, step=0, steps=40, epochs=1)
        44.0
    """

    def __init__(self) -> None:
        self._begun, self._first = 0.0, 0
        self._trained: float | None = None  # time at which the last updates of the epoch were done
        self._training: float | None = None  # seconds of training per epoch
        self._rest = 0.0  # seconds of evaluation, saving and callbacks per epoch

    def begin_epoch(self, now: float, step: int) -> None:
        """Note the beginning of an epoch, at an update that is not 0 if the run resumes within it."""
        if self._trained is not None:
            self._rest, self._trained = now - self._trained, None
        self._begun, self._first = now, step

    def end_training(self, now: float) -> None:
        """Note the end of the updates of an epoch."""
        self._trained = now
        if self._first == 0:
            self._training = now - self._begun

    def seconds_left(self, now: float, step: int, steps: int | None, epochs: int) -> float | None:
        """Return the time left, or None if it is unknown.

        Args:
            now: The time.
            step: Number of finished updates in the epoch.
            steps: Number of updates per epoch, or None if it is unknown.
            epochs: Number of epochs after this one.
        """
        if not steps:
            return None
        done = min(1.0, step / steps)
        training = self._training
        if step > self._first and (training is None or (self._trained is None and done > _EARLY)):
            trained = now if self._trained is None else self._trained
            training = (trained - self._begun) * steps / (step - self._first)
        if training is None:
            return None
        passed = 0.0 if self._trained is None else now - self._trained
        return training * (1 - done) + max(0.0, self._rest - passed) + (training + self._rest) * epochs
