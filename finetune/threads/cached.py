"""`cached_property` without a lock.

Before Python 3.12, that of functools holds one lock for all instances while it computes. A thread that holds it and
waits for `GENERATORS`, whose holder reads the property of another instance, would wait forever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functools import cached_property as cached_property  # noqa: PLC0414  # the form that type checkers export
else:

    class cached_property:  # noqa: N801
        """A property that is computed once and kept in the instance.

        Example:
            >>> class Model:
            ...     @cached_property
            ...     def size(self):
            ...         return 3
            >>> model = Model()
            >>> model.size, vars(model)
            (3, {'size': 3})
        """

        def __init__(self, compute: Any) -> None:
            self.compute, self.__doc__ = compute, compute.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            return vars(instance).setdefault(self.name, self.compute(instance))
