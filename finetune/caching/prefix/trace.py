"""Record one forward pass: every operation, every module call, and the reasons to run operations in every step.

Operations are recorded below autograd and modules, calls by overriding `forward` during the pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from finetune.data.randomness import host_state
from finetune.devices.generators import torch_generators
from finetune.model.freezing import trainable
from finetune.model.inspection.forward_graph import storage_of, written_by

Around = Callable[..., Any]  # called with a module, its own `forward`, and that method's arguments
_MASKS = ("transformers.masking_utils", "transformers.modeling_attn_mask_utils")
INPUT = -1  # the time of the model's inputs; an operation's time is its number


@dataclass(eq=False)
class Call:
    """One module call, with arguments and results as flat lists.

    Attributes:
        path: Positions of the enclosing calls and of the call itself among their siblings, outermost first.
        start: Number of the call's first operation in the trace.
        end: Number after the call's last operation.
        children: Number of calls inside.
        aliases: Original tensor by the id of its returned alias, for tensors that the call wrote in place and returned.
    """

    module: nn.Module
    name: str
    path: tuple[int, ...]
    start: int
    end: int = 0
    children: int = 0
    arguments: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    structure: Any = None
    aliases: dict[int, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class Operation:
    """One operation of the pass.

    Attributes:
        signature: Structure of the arguments.
        structure: Structure of the results.
        writes: Storages written in place.
        cause: Reason to run it in every step; None if its result follows from the inputs and frozen values.
        depends: Whether it depends on the inputs at all.
        frozen: Whether it reads a parameter.
        sink: Whether it hands a value or a shape to Python.
        decides: Whether that value may change the course of the computation.
    """

    func: Any
    arguments: list[Any]
    signature: Any
    results: list[Any]
    structure: Any
    writes: frozenset[int]
    cause: str | None
    depends: bool
    frozen: bool
    sink: bool
    decides: bool
    multiply_adds: int


@dataclass(eq=False)
class Trace:
    """A recorded forward pass.

    Attributes:
        born: Time at which each tensor was made, by its id.
        input_written: Whether an operation writes to an input in place.
        host_random: Whether Python's or NumPy's random generators were used.
        kept: Name of a module attribute that holds a skippable result after the pass, where later code may read it.
    """

    operations: list[Operation]
    calls: list[Call]
    inputs: list[Tensor]
    outputs: list[Tensor]
    born: dict[int, int]
    input_written: bool
    host_random: bool
    kept: str | None


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Run `model` once without gradients and record the pass.

    The caller protects batch-norm statistics and random states.
    """
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    recorder = _Recorder(model, inputs)
    before = host_state()
    # Autocast caches casts of trainable weights. Record fresh ones, and leave none without a gradient behind.
    torch.clear_autocast_cache()
    with torch.no_grad(), intercepted(model.modules(), recorder.call), recorder:
        output = model(*args, **kwargs)
    torch.clear_autocast_cache()
    outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    drawn = host_state() != before
    return Trace(
        recorder.operations,
        recorder.calls,
        inputs,
        outputs,
        recorder.born,
        input_written=recorder.input_written,
        host_random=drawn,
        kept=recorder.kept(model),
    )


@contextmanager
def intercepted(modules: Iterable[nn.Module], around: Around) -> Iterator[None]:
    """Call `around(module, forward, *args, **kwargs)` in place of each module's `forward`."""
    overridden = []
    try:
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):  # runs no Python that could be overridden
                continue
            overridden.append((module, module.__dict__.get("forward")))
            module.forward = partial(around, module, module.forward)
        yield
    finally:
        for module, own in overridden:
            del module.forward
            if own is not None:
                module.forward = own


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        self.born = {id(tensor): INPUT for tensor in inputs}
        self.input_written = False
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[Call] = []
        self._paused = False
        self._inputs = {storage_of(tensor) for tensor in inputs}
        self._dependent = set(self._inputs)  # storages that depend on the inputs
        self._own = set(self._inputs)  # storages that the pass may write, because it made them
        self._parameters = {storage_of(parameter) for parameter in model.parameters()}
        self._causes = {
            storage_of(parameter): f"the trainable parameter {name!r}" for name, parameter in trainable(model).items()
        }
        self._alive: list[Any] = [inputs]  # an id is unique only while its tensor lives

    def call(self, module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """Record one module call."""
        path: tuple[int, ...] = ()
        if self._running:
            path = (*self._running[-1].path, self._running[-1].children)
            self._running[-1].children += 1
        call = Call(module, self._names[module], path, len(self.operations))
        call.arguments = tree_leaves((args, kwargs))
        self.calls.append(call)
        self._running.append(call)
        try:
            results, call.structure = tree_flatten(forward(*args, **kwargs))
        finally:
            self._running.pop()
        call.end = len(self.operations)
        written = {storage for operation in self.operations[call.start :] for storage in operation.writes}
        for result in results:
            known = isinstance(result, Tensor) and self.born.get(id(result), call.start) < call.start
            call.results.append(self._renamed(call, result) if known and storage_of(result) in written else result)
        return tree_unflatten(call.results, call.structure)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        states = [generator.get_state() for generator in torch_generators()]
        result = func(*args, **kwargs)
        own = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
        generators = zip(torch_generators(), states, strict=False)
        drawn = bool(own) or any(not torch.equal(generator.get_state(), state) for generator, state in generators)
        self._remember(func, args, kwargs, result, drawn)
        return result

    def _remember(self, func: Any, args: Any, kwargs: Any, result: Any, drawn: bool) -> None:
        arguments, signature = tree_flatten((args, kwargs))
        results, structure = tree_flatten(result)
        reads = {storage_of(leaf) for leaf in arguments if isinstance(leaf, Tensor)}
        writes = frozenset(storage_of(tensor) for tensor in written_by(func, args, kwargs))
        made = {storage_of(leaf) for leaf in results if isinstance(leaf, Tensor)}
        self._alive.append((arguments, results))
        self.input_written |= not writes.isdisjoint(self._inputs)
        causes = {self._causes[storage] for storage in reads if storage in self._causes}
        cause = max(causes, default=None)  # deterministic, the weight before its bias
        cause = cause or self._own_cause(func, args, kwargs, writes, drawn)
        depends = not reads.isdisjoint(self._dependent)
        if depends:
            self._dependent |= made | writes
        if cause is not None:
            self._causes.update(dict.fromkeys(made | writes, cause))
        for leaf in results:
            if isinstance(leaf, Tensor):
                self.born.setdefault(id(leaf), len(self.operations))
        self._own |= made - (reads - self._own)  # except views of storages that are not its own
        frozen = not reads.isdisjoint(self._parameters)
        sink = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
        decides = sink and depends and cause is None and not _in_mask_check()
        cost = _multiply_adds(func, args, kwargs, result)
        self.operations.append(
            Operation(
                func, arguments, signature, results, structure, writes, cause, depends, frozen, sink, decides, cost
            )
        )

    def _own_cause(self, func: Any, args: Any, kwargs: Any, writes: frozenset[int], drawn: bool) -> str | None:
        """Return the reason that an operation without trainable parameters must run in every step, or None."""
        where = f" in {self._running[-1].name!r}" if self._running and self._running[-1].name else ""
        if drawn:
            return f"a random draw{where}"
        if _norm_over_samples(func, args, kwargs):
            return f"a batch norm{where} that runs on the statistics of the batch"
        if not writes <= self._own:
            return f"a change of the model's own state{where}"
        return None

    def kept(self, model: nn.Module) -> str | None:
        """Return the name of a module attribute that holds a skippable result of this pass, or None."""
        for prefix, module in model.named_modules():
            own = {**vars(module), **module._buffers, "_parameters": None, "_buffers": None, "_modules": None}
            for name, value in own.items():
                held = {storage_of(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
                if not (held & self._dependent) <= self._causes.keys():
                    return f"{prefix}.{name}" if prefix else name
        return None

    def _renamed(self, call: Call, result: Tensor) -> Tensor:
        """Return an alias of a result written in place, to tell reads of the result from reads of the argument."""
        self._paused = True
        alias = result.detach()
        self._paused = False
        call.aliases[id(alias)] = result
        self.born[id(alias)] = len(self.operations) - 1
        return alias


def _norm_over_samples(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether this is a batch norm in train mode. An instance norm, run as one over a batch of 1, is not."""
    if "batch_norm" not in str(func):
        return False
    names = (argument.name for argument in func._schema.arguments)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    training = given.get("training", given.get("train", "update" in str(func)))
    return bool(training) and args[0].shape[0] > 1


def _in_mask_check() -> bool:
    """Return whether transformers is checking if a mask hides anything.

    If it does not, the mask may be dropped, and attention agrees up to rounding.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") in _MASKS:
            return True
    return False


def _multiply_adds(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    from torch.utils.flop_counter import flop_registry  # loads triton, so only on use

    count = flop_registry.get(func.overloadpacket)
    return int(count(*args, **kwargs, out_val=result)) // 2 if count else 0
