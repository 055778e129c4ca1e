"""`Batcher`: computes the answers to concurrent requests together, in batches."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """Too many items are waiting."""


class Batcher(Generic[Item, Result]):
    """A thread that calls a function on batches of the items that other threads submit.

    While a batch is computed, the next items gather. A lone item never waits for others, so the size of a batch follows
    the load. If a batch fails, its items are computed one by one, and only those at fault get the error. At the exit of
    the interpreter, the batch that is being computed is finished and the others are dropped.

    Args:
        function: Function of a batch that returns one result per item.
        batch_size: Items per batch, at most.
        queue: Number of items that may wait.
        observe: Function that is called with the size of each batch.

    Example:
        >>> with Batcher(lambda items: [2 * item for item in items], batch_size=4, queue=16) as batcher:
        ...     [each.result() for each in batcher.submit([1, 2, 3])]
        [2, 4, 6]
    """

    def __init__(
        self,
        function: Callable[[list[Item]], Sequence[Result]],
        *,
        batch_size: int,
        queue: int,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._function, self._observe = function, observe
        self._batch_size, self._queue = batch_size, queue
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="finetune-batches", daemon=True)
        self._thread.start()
        atexit.register(self._abandon)

    def __enter__(self) -> Batcher[Item, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive() and not self._closed

    def submit(self, items: Sequence[Item]) -> list[Future[Result]]:
        """Add items to the queue, all or none, and return the future result of each.

        Raises:
            QueueFullError: If there is no room for them.
        """
        futures: list[Future[Result]] = [Future() for _ in items]
        with self._changed:
            if self._closed or len(self._waiting) + len(items) > self._queue:
                raise QueueFullError
            self._waiting.extend(zip(items, futures, strict=True))
            self._changed.notify()
        return futures

    def close(self) -> None:
        """Accept no more items, compute those in the queue, and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        atexit.unregister(self._abandon)

    def _abandon(self) -> None:
        """Stop the thread after its batch: one that is killed within PyTorch aborts the process."""
        with self._changed:
            self._waiting.clear()
        self.close()

    def _work(self) -> None:
        while batch := self._next():
            self._observe(len(batch))
            self._answer(batch)

    def _next(self) -> list[tuple[Item, Future[Result]]]:
        """Wait for items and return the first ones in the queue, or none once it is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                taken = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            wanted = [(item, future) for item, future in taken if future.set_running_or_notify_cancel()]
            if wanted or not taken:
                return wanted

    def _answer(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        try:
            results = self._function([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for each in batch:
                    self._answer([each])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
