from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from finetune.data.randomness import seeded
from finetune.threads.cached import cached_property
from finetune.threads.locks import GENERATORS


def test_a_property_may_wait_for_the_generators_while_their_holder_reads_another() -> None:
    class Lazy:
        def __init__(self, reached: threading.Event, go: threading.Event) -> None:
            self.reached, self.go = reached, go

        @cached_property
        def value(self) -> int:
            self.reached.set()
            self.go.wait(10)
            with seeded(1):
                return 1

    reached, go = threading.Event(), threading.Event()
    go_on = threading.Event()
    go_on.set()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: Lazy(reached, go).value)
        reached.wait(10)
        with GENERATORS.held():
            go.set()
            assert Lazy(threading.Event(), go_on).value == 1
        assert first.result(10) == 1
