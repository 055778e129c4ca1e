"""Find the boundary of a model's frozen prefix in two traces: the tensors to store and the calls to skip.

The nodes are the outermost module calls that need not run in every step, and every operation outside of them. Walking
back from the operations that must run, each tensor that they read is either stored or recomputed from tensors before
it. Traces of two batch sizes reveal the sample dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.caching.declined import DeclinedError
from finetune.caching.prefix.derivation import Derivation, derivation_of
from finetune.caching.prefix.guard import hooks_on_all_modules
from finetune.caching.prefix.nodes import Node, nodes_of, resolved, unlike_calls
from finetune.caching.prefix.trace import Call, Trace
from finetune.model.inspection.forward_graph import storage_of


@dataclass(frozen=True)
class BatchLayout:
    """Size and strides of a tensor as linear functions of the batch size.

    Attributes:
        samples: Batch size of the base values.
        size: Base size of each dimension and its increase per sample.
        stride: Base stride of each dimension and its increase per sample.
    """

    samples: int
    size: tuple[tuple[int, int], ...]
    stride: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def between(cls, one: Tensor, other: Tensor, samples: int) -> BatchLayout:
        """Compare a tensor in a pass of `samples` samples with the same one in a pass of `samples + 1`.

        Raises:
            DeclinedError: If the two differ in dtype or number of dimensions.
        """
        if one.dim() != other.dim() or one.dtype != other.dtype:
            raise DeclinedError("the model's shapes differ from batch to batch")
        size = tuple((a, b - a) for a, b in zip(one.shape, other.shape, strict=True))
        stride = tuple((a, b - a) for a, b in zip(one.stride(), other.stride(), strict=True))
        return cls(samples, size, stride, one.dtype, one.device)

    def at(self, samples: int) -> tuple[list[int], list[int]]:
        """Return size and strides for a batch of `samples` samples."""
        more = samples - self.samples
        return [base + step * more for base, step in self.size], [base + step * more for base, step in self.stride]

    @property
    def sample_dimension(self) -> int | None:
        """Dimension that grows with the batch if it is the only one and a multiple of the batch size, else None."""
        growing = [dim for dim, (base, step) in enumerate(self.size) if step]
        if len(growing) != 1:
            return None
        base, step = self.size[growing[0]]
        return growing[0] if step > 0 and base == step * self.samples else None


@dataclass(frozen=True)
class ArgumentResult:
    """A result that is one of the arguments, the leaf at `position`."""

    position: int


@dataclass(frozen=True)
class StoredResult:
    """A result that is read from the store, tensor number `index`."""

    index: int


@dataclass(frozen=True)
class UnreadResult:
    """A result that nothing past the boundary reads, replaced by a placeholder."""

    layout: BatchLayout


@dataclass(frozen=True)
class Skip:
    """A skipped operation or module call, and the results that a replay returns for it.

    Attributes:
        func: The operation; None for a module call.
        structure: Structure of the results.
        results: Source of each result; any other value is a constant.
    """

    func: Any
    structure: Any
    results: tuple[ArgumentResult | StoredResult | UnreadResult | Any, ...]


@dataclass
class Boundary:
    """A model's boundary, and the plan of a replay.

    Attributes:
        stored: Layouts of the stored tensors.
        copied: For each stored tensor, whether a replay copies it, because the model writes it in place or returns it.
        inputs: For each input tensor, whether it is read past the boundary.
        operations: Skipped operations outside of skipped calls, in order.
        calls: Skips of each module's calls, in order; None for a call that runs.
        modules: Full names of the modules with a skipped call.
        enclosing: Full names of the modules that run, but receive or return placeholders.
        disturbs: Whether an operation with side effects comes before the last stored tensor.
        cause: Operation or parameter that ends the prefix.
        share: Skipped share of the forward pass's multiply-adds.
        derivation: Derivation of the stored tensors from the inputs.
    """

    stored: list[BatchLayout] = field(default_factory=list)
    copied: list[bool] = field(default_factory=list)
    inputs: list[bool] = field(default_factory=list)
    operations: list[Skip] = field(default_factory=list)
    calls: dict[nn.Module, list[Skip | None]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    enclosing: list[str] = field(default_factory=list)
    disturbs: bool = False
    cause: str = ""
    share: float = 0.0
    derivation: Derivation = field(default_factory=Derivation)


def find_boundary(one: Trace, other: Trace, *, samples: int, eager: bool) -> Boundary:
    """Find the boundary in two traces of a model.

    Args:
        one: Trace of `samples` samples.
        other: Trace of `samples + 1` samples.
        samples: Batch size of the first trace.
        eager: Whether to run every operation outside of frozen modules in every step, on their stored results. More
            is stored, but no operation receives a placeholder.

    Raises:
        DeclinedError: If there is nothing to store, or a tensor cannot be stored by sample.
    """
    if one.input_written:
        raise DeclinedError("the model changes its input in place")
    if one.kept is not None:
        raise DeclinedError(f"the model keeps a result of its forward pass in {one.kept!r} for other code to read")
    if one.host_random:
        raise DeclinedError("the model's forward pass draws random numbers from Python or NumPy")
    opened: set[tuple[int, ...]] = set()
    while True:
        nodes, others = nodes_of(one, opened), nodes_of(other, opened)
        if [node.name for node in nodes] != [node.name for node in others]:
            raise DeclinedError("the model's operations differ from batch to batch")
        unlike = unlike_calls(nodes, others)
        if not unlike:
            search = _Search(one, nodes, others, samples, eager)
            unlike = search.solve()
            if not unlike:
                return search.boundary()
        opened |= unlike


class _Search:
    """Search that decides for each tensor read past the boundary whether it is stored or recomputed."""

    def __init__(self, trace: Trace, nodes: list[Node], others: list[Node], samples: int, eager: bool) -> None:
        self._trace, self._nodes, self._eager = trace, nodes, eager
        calls = {(node.call.start, node.call.end) for node in nodes if node.call is not None}
        self._original = {
            key: tensor
            for call in trace.calls
            if not any(start <= call.start and call.end <= end for start, end in calls)
            for key, tensor in call.aliases.items()
        }
        self._outputs = [resolved(tensor, self._original) for tensor in trace.outputs]
        self._layouts: dict[int, BatchLayout] = {}
        for node, other in zip(nodes, others, strict=True):
            if not any(operation.cause for operation in node.operations):
                for one, two in zip(node.made, other.made, strict=True):
                    self._layouts[id(one)] = BatchLayout.between(one, two, samples)
        self._changed = {storage for node in nodes if node.call is None for storage in node.writes}
        self._running: set[Node] = set()  # nodes that run in every step
        self._wanted: dict[int, Tensor] = {}  # tensors read past the boundary, by id
        self._stored: dict[int, Tensor] = {}
        self._absent: set[int] = set()  # ids of tensors that are placeholders in a replay
        self._skipped: set[Node] = set()

    def solve(self) -> set[tuple[int, ...]]:
        """Decide which tensors to store, and return the paths of calls that must be opened first."""
        while True:
            unfit = self._walk_back()
            if unfit:
                return unfit
            bypassed = self._walk_forward()
            if not bypassed:
                return set()
            self._running |= bypassed

    def _walk_back(self) -> set[tuple[int, ...]]:
        """Find the tensors that are read past the boundary, and store or recompute each."""
        self._wanted, self._stored = {}, {}
        self._want(self._outputs)
        for node in reversed(self._nodes):
            made = [tensor for tensor in node.made if self._wanted.pop(id(tensor), None) is not None]
            overwritten = any(storage_of(tensor) in node.writes for tensor in self._wanted.values())
            if node.call is not None:
                if overwritten or not all(self._by_sample(tensor) for tensor in made):
                    return {node.call.path}
                self._stored.update((id(tensor), tensor) for tensor in made)
            elif self._must_run(node) or overwritten or (made and self._recomputed(node, made)):
                self._want(node.reads)
            else:
                self._stored.update((id(tensor), tensor) for tensor in made)
        return set()

    def _walk_forward(self) -> set[Node]:
        """Find the nodes that receive placeholders in a replay.

        Returns:
            Operations whose results would be stored, although they receive no placeholder and therefore run anyway.
        """
        self._absent = {id(tensor) for tensor in self._trace.inputs if id(tensor) not in self._wanted}
        self._skipped, bypassed = set(), set()
        for node in self._nodes:
            if node.call is None and not any(id(tensor) in self._absent for tensor in node.reads):
                if any(id(tensor) in self._stored for tensor in node.made):
                    bypassed.add(node)
                continue
            self._skipped.add(node)
            self._absent |= {id(tensor) for tensor in node.made if id(tensor) not in self._stored}
        return bypassed

    def _want(self, tensors: list[Tensor]) -> None:
        self._wanted.update((id(tensor), tensor) for tensor in tensors if id(tensor) in self._trace.born)

    def _must_run(self, node: Node) -> bool:
        operation = node.operations[0]
        return self._eager or operation.cause is not None or operation.sink or node in self._running

    def _by_sample(self, tensor: Tensor) -> bool:
        return self._layouts[id(tensor)].sample_dimension is not None

    def _recomputed(self, node: Node, made: list[Tensor]) -> bool:
        """Return whether an operation runs in every step, like a cheap view, although it could be stored."""
        if not node.operations[0].depends or not all(self._by_sample(tensor) for tensor in made):
            return True
        made_of = {id(tensor): tensor for tensor in node.reads if id(tensor) in self._trace.born}
        more = [tensor for key, tensor in made_of.items() if key not in self._wanted]
        viewed = {storage_of(tensor) for tensor in node.reads} & {storage_of(tensor) for tensor in made}
        if not more or not viewed.isdisjoint(self._changed):
            return True
        return bool(viewed) and sum(map(_bytes, more)) <= sum(map(_bytes, made))

    def boundary(self) -> Boundary:
        """Return the boundary that `solve` decided on.

        Raises:
            DeclinedError: If the boundary is not worth storing or not safe to replay.
        """
        self._check_worth()
        self._check_decisions()
        plan = Boundary(cause=self._first_cause())
        number: dict[int, int] = {}
        stored: list[Tensor] = []
        kept_apart = self._changed | {storage_of(tensor) for tensor in self._outputs}
        running = False
        for node in self._nodes:
            running |= any(operation.cause for operation in node.operations)
            for tensor in node.made:
                if id(tensor) in self._stored and id(tensor) not in number:  # a call may return a tensor twice
                    number[id(tensor)] = len(number)
                    stored.append(tensor)
                    plan.stored.append(self._layouts[id(tensor)])
                    plan.copied.append(storage_of(tensor) in kept_apart)
                    plan.disturbs = running
        plan.derivation = derivation_of(self._trace, stored)
        plan.inputs = [id(tensor) in self._wanted for tensor in self._trace.inputs]
        skips = {}
        for node in self._nodes:
            if node in self._skipped:
                skips[node.call] = skip = self._skip(node, number)
                if node.call is None:
                    plan.operations.append(skip)
        self._place_calls(plan, skips)
        total = sum(operation.multiply_adds for operation in self._trace.operations)
        saved = sum(operation.multiply_adds for node in self._skipped for operation in node.operations)
        plan.share = saved / total if total else 0.0
        return plan

    def _skip(self, node: Node, number: dict[int, int]) -> Skip:
        results: list[Any] = []
        for leaf in node.results:
            if not isinstance(leaf, Tensor):
                results.append(leaf)
                continue
            given = [position for position, argument in enumerate(node.arguments) if argument is leaf]
            if given:
                results.append(ArgumentResult(given[0]))
            elif id(leaf) in number:
                results.append(StoredResult(number[id(leaf)]))
            else:
                results.append(UnreadResult(self._layouts[id(leaf)]))
        func = node.operations[0].func if node.call is None else None
        return Skip(func, node.structure, tuple(results))

    def _place_calls(self, plan: Boundary, skips: dict[Call | None, Skip]) -> None:
        """List, for each module with a skipped call, its calls in order, skipped or not."""
        modules = {call.module for call in self._trace.calls if call in skips}
        skipped: tuple[int, ...] = (-1,)  # path of the last skipped call, inside which there are no calls
        for call in self._trace.calls[1:]:
            if call.path[: len(skipped)] == skipped:
                continue
            if call in skips:
                skipped = call.path
                plan.modules.append(call.name)
                self._check_hooks(call.module.modules())
            elif any(id(resolved(leaf, self._original)) in self._absent for leaf in call.arguments + call.results):
                plan.enclosing.append(call.name)
                self._check_hooks([call.module])
            if call.module in modules:
                plan.calls.setdefault(call.module, []).append(skips.get(call))
        plan.modules = list(dict.fromkeys(plan.modules))
        plan.enclosing = list(dict.fromkeys(plan.enclosing))

    def _check_hooks(self, modules: Any) -> None:
        names = {call.module: call.name for call in self._trace.calls}
        if hooks_on_all_modules():
            raise DeclinedError("a forward hook watches every module")
        for module in modules:
            hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            if not all(map(_belongs_to_library, hooks)):
                raise DeclinedError(f"a forward hook watches {names.get(module, type(module).__name__)!r}")

    def _check_worth(self) -> None:
        frozen = any(operation.frozen for node in self._skipped for operation in node.operations)
        if not self._stored or not frozen:
            raise DeclinedError(f"{self._first_cause()} comes before any frozen layer")

    def _check_decisions(self) -> None:
        """Check that the pass does not branch on the values of a batch before its last skipped node."""
        last = max(number for number, node in enumerate(self._nodes) if node in self._skipped)
        for node in self._nodes[: last + 1]:
            if any(operation.decides for operation in node.operations):
                where = "" if node.call is None else f" in {node.name!r}"
                raise DeclinedError(f"the forward pass branches on the values of a batch{where}")

    def _first_cause(self) -> str:
        causes = [operation for operation in self._trace.operations if operation.cause]
        reached = [operation.cause for operation in causes if operation.depends] or [None]
        return reached[0] or "nothing"


def _belongs_to_library(hook: Any) -> bool:
    """Return whether a hook is part of the model, such as torch's weight norm, rather than an observer."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.split(".")[0] in ("torch", "transformers")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
