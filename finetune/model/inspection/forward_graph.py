"""Record the operations of one forward pass as a graph.

Heads are found in it by walking back from the output. Operations are recorded below autograd and below
modules, so the graph includes functional code, bare parameters, skip connections and shared layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune.model.outputs import call, logits_of, results_of
from finetune.nested import map_tensors, tensors_of


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation whose result depends on the model's input.

    Attributes:
        module: Full name of the innermost module that it ran in; `""` is the model.
        function: Name of the operation in torch, such as `"relu"`.
        parameters: Full names of the parameters that it read, directly or through values computed only
            from parameters.
        inputs: Operations whose results it read.
    """

    module: str
    function: str
    parameters: tuple[str, ...]
    inputs: tuple[Operation, ...]


@dataclass(frozen=True)
class Recording:
    """A recorded forward pass.

    Attributes:
        output: Output of the model.
        operations: All operations in order.
        last: Operations that produced the outputs of the heads.
        main: Operations that produced the logits.
    """

    output: Any
    operations: tuple[Operation, ...]
    last: tuple[Operation, ...]
    main: tuple[Operation, ...]


def record(model: nn.Module, inputs: Any) -> Recording:
    """Run `model` once without gradients and record its operations.

    The caller restores the model's modes, statistics and the random state; see `probing.undisturbed`.

    Args:
        inputs: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.
    """
    recorder = _Recorder(model, inputs)
    with torch.no_grad(), recorder.following_modules(model), recorder:
        output = call(model, inputs)
    last = dict.fromkeys(made for tensor in results_of(output) for made in recorder.makers(tensor))
    main = dict.fromkeys(made for tensor in tensors_of(logits_of(output)) for made in recorder.makers(tensor))
    return Recording(output, tuple(recorder.operations), tuple(last), tuple(main))


def output_given(model: nn.Module, inputs: Any, position: int, replaced: Callable[[Tensor], Tensor]) -> Any:
    """Run `model` as `record` does with the result of one operation replaced, and return its output.

    Args:
        model: The model.
        inputs: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        position: Index of the operation in a recording of the same pass.
        replaced: Function of its result that returns another of the same shape.
    """
    with torch.no_grad(), _Recorder(model, inputs, {position: replaced}):
        return call(model, inputs)


def shapes_within(function: Callable[[], Any]) -> tuple[Any, set[tuple[int, ...]]]:
    """Call a function and return its result, and the shapes of all tensors that operations within it return.

    Example:
        >>> shapes_within(lambda: (torch.zeros(4, 1) - torch.zeros(4)).mean().item())[1] >= {(4, 4), ()}
        True
    """
    with _Shapes() as seen:
        return function(), seen.shapes


class _Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.shapes.update(tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def reading_order(model: nn.Module, inputs: Any) -> list[str]:
    """Run `model` as `record` does, and return the full names of its parameters in the order of their first use."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    aliases = dict(model.named_parameters(remove_duplicate=False))
    read = (name for operation in record(model, inputs).operations for name in operation.parameters)
    return list(dict.fromkeys(names[id(aliases[name])] for name in read))


def operations_behind(recording: Recording) -> list[Operation]:
    """Return the operations that compute the outputs from the head's result alone, the last first.

    Those are the ones at the end that read one earlier result and no parameter.
    """
    found: list[Operation] = []
    reached = _latest(recording.main)
    while len(reached) == 1 and not reached[0].parameters:
        found.append(reached[0])
        reached = _latest(reached[0].inputs)
    return found


def _latest(operations: Collection[Operation]) -> list[Operation]:
    """Return the operations that no other one reads. A view, for example, reads the result of an in-place operation."""
    return [one for one in operations if not any(one in other.inputs for other in operations)]


def feeds_other_results(model: nn.Module, inputs: Any) -> bool:
    """Run `model` as `record` does, and return whether another of its results is computed from the main one."""
    recording = record(model, inputs)
    others = [operation for operation in recording.last if operation not in recording.main]
    return not before(others).isdisjoint(recording.main)


def before(operations: Iterable[Operation]) -> set[Operation]:
    """Return all operations whose results these operations depend on, without themselves."""
    todo = [earlier for operation in operations for earlier in operation.inputs]
    seen = set(todo)
    while todo:
        new = [earlier for earlier in todo.pop().inputs if earlier not in seen]
        seen.update(new)
        todo += new
    return seen


def hookable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that take hooks, by full name: all but torch.jit's, which belong to the module around them."""
    return {name: module for name, module in model.named_modules() if not isinstance(module, torch.jit.ScriptModule)}


def output_shapes(model: nn.Module, inputs: Any) -> dict[str, tuple[int, ...]]:
    """Run `model` as `record` does, and return the shape of every module's last output for one sample."""
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            shapes.update((name, tuple(tensor.shape[1:])) for tensor in tensors_of(output)[:1])

        return hook

    with torch.no_grad(), ExitStack() as hooks:
        for name, module in hookable(model).items():
            hooks.enter_context(module.register_forward_hook(remember(name)))
        call(model, inputs)
    return shapes


@contextmanager
def watched(model: nn.Module, layers: Collection[str], head: str) -> Iterator[dict[str, Tensor]]:
    """Collect the latest output of each layer, and under the head's name its latest input."""
    seen: dict[str, Tensor] = {}

    def keep_output(name: str) -> Any:
        return lambda module, args, output: seen.update((name, tensor) for tensor in tensors_of(output)[:1])

    def keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.update((head, tensor) for tensor in tensors_of((args, kwargs))[:1])

    with ExitStack() as hooks:
        for name, module in hookable(model).items():
            if name in layers:
                hooks.enter_context(module.register_forward_hook(keep_output(name)))
        hooks.enter_context(model.get_submodule(head).register_forward_pre_hook(keep_input, with_kwargs=True))
        yield seen


@contextmanager
def outputs_kept(model: nn.Module, marks: Callable[[nn.Module], bool]) -> Iterator[tuple[dict[str, Tensor], set[str]]]:
    """Collect the first tensor in the latest output of every module, as nodes of their own in the graph of autograd.

    Args:
        model: The model.
        marks: Function that returns whether a module is one of those whose last call divides the others.

    Yields:
        The tensors by name of the module, in the order of the calls, and the names of those from before the last call
        of a marked module.
    """
    seen: dict[str, Tensor] = {}
    before: set[str] = set()

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            seen.pop(name, None)
            return _with_first(output, lambda first: seen.setdefault(name, first + 0))

        return hook

    with ExitStack() as hooks:
        for name, module in hookable(model).items():
            hooks.enter_context(module.register_forward_hook(keep(name)))
            if marks(module):
                hooks.enter_context(module.register_forward_pre_hook(lambda module, args: before.update(seen)))
        yield seen, before


@contextmanager
def differentiable_from(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Record gradients from the output of a layer on, even if its parameters are frozen and the caller records none.

    Yields:
        A list that holds, after a forward pass, the first tensor in the output of the last call of the layer, and zeros
        that were added to it. Gradients with respect to the zeros are those with respect to the output.
    """
    seen: list[Tensor] = []

    def from_here(first: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        seen[:] = first, torch.zeros_like(first, requires_grad=True)
        return first + seen[1]

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return _with_first(output, from_here)

    with torch.set_grad_enabled(torch.is_grad_enabled()), model.get_submodule(name).register_forward_hook(hook):
        yield seen


def _with_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an output of a module with its first tensor changed; unchanged if that holds no decimal numbers."""
    first = next(iter(tensors_of(output)), None)
    if first is None or not first.is_floating_point():
        return output
    changed = change(first)
    return map_tensors(lambda tensor: changed if tensor is first else tensor, output, None)


def first_input(model: nn.Module, name: str, inputs: Any) -> Tensor:
    """Run `model` as `record` does up to the first call of a layer, and return the input of that layer."""

    class ReachedError(Exception):
        pass

    given: list[Tensor] = []

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        given.extend(tensors_of((args, kwargs))[:1])
        raise ReachedError

    with (
        torch.no_grad(),
        suppress(ReachedError),
        model.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True),
    ):
        call(model, inputs)
    return given[0]


class _Recorder(TorchDispatchMode):
    def __init__(
        self, model: nn.Module, inputs: Any, replaced: Mapping[int, Callable[[Tensor], Tensor]] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._replaced = dict(replaced or {})
        self.operations: list[Operation] = []
        self._running = [""]
        self._alive = tensors_of(inputs)  # an id is unique only while its tensor is alive
        self._from_input = {id(tensor) for tensor in self._alive}
        self._parameters: dict[int, tuple[str, ...]] = {
            id(tensor): (name,) for name, tensor in model.named_parameters()
        }  # and of values computed only from parameters, such as a transposed weight
        self._filled: dict[int, tuple[str, ...]] = {}  # storage -> the parameters written into it
        first = {id(tensor): name for name, tensor in model.named_parameters()}
        self._tied = {
            (first[id(tensor)], alias.rpartition(".")[0]): alias
            for alias, tensor in model.named_parameters(remove_duplicate=False)
        }  # (name, module) -> the name that a tied parameter has in that module
        self._made: dict[int, Operation] = {}
        self._written: dict[int, Operation] = {}  # storage -> the last operation that wrote into it

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        written = written_by(func, args, kwargs)
        self._alive += made + written
        self._remember(func._schema.name.rpartition("::")[2], read, made, written)
        if replace := self._replaced.pop(len(self.operations) - 1, None):
            for tensor in made + written:
                tensor.copy_(replace(tensor))
        return result

    def makers(self, tensor: Tensor) -> list[Operation]:
        """Return the operations that determined a tensor's values."""
        candidates = (self._made.get(id(tensor)), self._written.get(storage_of(tensor)))
        return [operation for operation in candidates if operation is not None]

    @contextmanager
    def following_modules(self, model: nn.Module) -> Iterator[None]:
        """Keep track of the innermost running module."""
        with ExitStack() as hooks:
            for name, module in hookable(model).items():
                hooks.enter_context(module.register_forward_pre_hook(self._entering(name)))
                hooks.enter_context(module.register_forward_hook(self._leaving, always_call=True))
            yield

    def _remember(self, function: str, read: list[Tensor], made: list[Tensor], written: list[Tensor]) -> None:
        inputs = tuple(dict.fromkeys(maker for tensor in read for maker in self.makers(tensor)))
        parameters = tuple(dict.fromkeys(name for tensor in read for name in self._names(tensor)))
        if not inputs and not any(id(tensor) in self._from_input for tensor in read):
            self._parameters.update((id(tensor), parameters) for tensor in made)
            self._filled.update((storage_of(tensor), parameters) for tensor in written)
            return
        module = self._running[-1]
        tied = tuple(self._tied.get((name, module), name) for name in parameters)
        operation = Operation(module, function, tied, inputs)
        self.operations.append(operation)
        self._made.update((id(tensor), operation) for tensor in made)
        self._written.update((storage_of(tensor), operation) for tensor in written)  # all its views depend on it

    def _names(self, tensor: Tensor) -> list[str]:
        """Return the parameters that a tensor is, or was computed from."""
        return [*self._parameters.get(id(tensor), ()), *self._filled.get(storage_of(tensor), ())]

    def _entering(self, name: str) -> Any:
        return lambda module, args: self._running.append(name)

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes into, according to its schema."""
    if not func._schema.is_mutable:
        return []
    arguments = func._schema.arguments
    given = {**dict(zip((argument.name for argument in arguments), args, strict=False)), **kwargs}
    changed = [
        given.get(argument.name) for argument in arguments if argument.alias_info and argument.alias_info.is_write
    ]
    return [leaf for leaf in tree_leaves(changed) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Return a number that a tensor shares only with its views, unique while one of them is alive."""
    if tensor.layout is not torch.strided:  # a sparse tensor has no single storage
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)
