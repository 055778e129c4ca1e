"""Where a model's frozen prefix ends, read off two traces: what is stored, what is left out, what runs again.

The outermost calls of modules in which nothing must run again are nodes; so is every operation outside
of them. Walking back from what must run, each tensor that is read is either stored where it is made or
made again from what its operation reads. Two batch sizes tell which dimension is that of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.caching.prefix.guard import hooks_on_all_modules
from finetune.caching.prefix.nodes import Node, nodes_of, resolved, unlike_calls
from finetune.caching.prefix.recipe import Recipe, recipe_of
from finetune.caching.prefix.trace import Call, Trace
from finetune.model.inspection.forward_graph import storage_of


class DeclinedError(Exception):
    """This model, as it is, cannot be split; the message says why, in one line fit for a user."""


@dataclass(frozen=True)
class Layout:
    """Size and strides of a tensor at two batch sizes, and so at any: each is linear in the batch size."""

    samples: int
    size: tuple[tuple[int, int], ...]  # at `samples`, and what one sample more adds
    stride: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def between(cls, one: Tensor, other: Tensor, samples: int) -> Layout:
        """Compare the same tensor at `samples` samples and at one more."""
        if one.dim() != other.dim() or one.dtype != other.dtype:
            raise DeclinedError("its shapes differ from batch to batch")
        size = tuple((a, b - a) for a, b in zip(one.shape, other.shape, strict=True))
        stride = tuple((a, b - a) for a, b in zip(one.stride(), other.stride(), strict=True))
        return cls(samples, size, stride, one.dtype, one.device)

    def at(self, samples: int) -> tuple[list[int], list[int]]:
        """Return size and strides for a batch of `samples`."""
        more = samples - self.samples
        return [base + step * more for base, step in self.size], [base + step * more for base, step in self.stride]

    @property
    def sample_dimension(self) -> int | None:
        """The one dimension that is a whole number of times as long as the batch; None if there is no such one."""
        growing = [dim for dim, (base, step) in enumerate(self.size) if step]
        if len(growing) != 1:
            return None
        base, step = self.size[growing[0]]
        return growing[0] if step > 0 and base == step * self.samples else None


@dataclass(frozen=True)
class Through:
    """A result that is one of the arguments, the one at `position` of the flat list."""

    position: int


@dataclass(frozen=True)
class Stored:
    """A result that is stored, as number `index`."""

    index: int


@dataclass(frozen=True)
class Left:
    """A result that nothing past the boundary reads."""

    layout: Layout


@dataclass(frozen=True)
class Step:
    """What to give back, and in which structure, in place of an operation or of a call. Else it's a constant."""

    func: Any
    structure: Any
    results: tuple[Through | Stored | Left | Any, ...]


@dataclass
class Boundary:
    """The plan: see the fields."""

    stored: list[Layout] = field(default_factory=list)
    copied: list[bool] = field(default_factory=list)  # what is stored there is written in place, or given out
    inputs: list[bool] = field(default_factory=list)  # which input tensors are read past the boundary
    operations: list[Step] = field(default_factory=list)  # left out, in order
    calls: dict[nn.Module, list[Step | None]] = field(default_factory=dict)  # None: this call runs
    modules: list[str] = field(default_factory=list)  # those with a call that is left out
    around: list[str] = field(default_factory=list)  # those with a call that runs, but on what is left out
    disturbs: bool = False  # something that must run again comes before the last of what is stored
    cause: str = ""  # what ends the prefix
    share: float = 0.0  # of the forward pass's multiply-adds
    recipe: Recipe = field(default_factory=Recipe)  # of what is stored


def find_boundary(one: Trace, other: Trace, samples: int, eager: bool) -> Boundary:
    """Plan from the traces of `samples` samples and of one more.

    `eager` makes every operation outside of frozen modules run in every step, on what is stored of these
    modules: more is stored, but no operation meets a placeholder.

    Raises:
        DeclinedError: there is nothing to store, or it cannot be stored by sample.
    """
    if one.input_written:
        raise DeclinedError("the model changes its input in place")
    if one.kept is not None:
        raise DeclinedError(f"it keeps a result of its forward pass as {one.kept!r}, where others may read it")
    if one.host_random:
        raise DeclinedError("it draws random numbers from Python or NumPy as it runs")
    opened: set[tuple[int, ...]] = set()
    while True:
        nodes, others = nodes_of(one, opened), nodes_of(other, opened)
        if [node.name for node in nodes] != [node.name for node in others]:
            raise DeclinedError("its operations differ from batch to batch")
        unlike = unlike_calls(nodes, others)
        if not unlike:
            plan = _Planner(one, nodes, others, samples, eager)
            unlike = plan.solve()
            if not unlike:
                return plan.boundary()
        opened |= unlike


class _Planner:
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
        self._layouts: dict[int, Layout] = {}
        for node, other in zip(nodes, others, strict=True):
            if not any(operation.cause for operation in node.operations):
                for one, two in zip(node.made, other.made, strict=True):
                    self._layouts[id(one)] = Layout.between(one, two, samples)
        self._changed = {storage for node in nodes if node.call is None for storage in node.writes}
        self._again: set[Node] = set()  # what runs in every step, whoever reads it
        self._wanted: dict[int, Tensor] = {}
        self._stored: dict[int, Tensor] = {}
        self._absent: set[int] = set()
        self._left: set[Node] = set()

    def solve(self) -> set[tuple[int, ...]]:
        """Decide what is stored; return the calls that have to be opened first."""
        while True:
            unfit = self._walk_back()
            if unfit:
                return unfit
            bypassed = self._walk_forward()
            if not bypassed:
                return set()
            self._again |= bypassed

    def _walk_back(self) -> set[tuple[int, ...]]:
        """Find what is read past the boundary, and store it or make it again."""
        self._wanted, self._stored = {}, {}
        self._want(self._outputs)
        for node in reversed(self._nodes):
            made = [tensor for tensor in node.made if self._wanted.pop(id(tensor), None) is not None]
            overwritten = any(storage_of(tensor) in node.writes for tensor in self._wanted.values())
            if node.call is not None:
                if overwritten or not all(self._by_sample(tensor) for tensor in made):
                    return {node.call.path}
                self._stored.update((id(tensor), tensor) for tensor in made)
            elif self._must_run(node) or overwritten or (made and self._made_again(node, made)):
                self._want(node.reads)
            else:
                self._stored.update((id(tensor), tensor) for tensor in made)
        return set()

    def _walk_forward(self) -> set[Node]:
        """Find what meets a placeholder in a step; return what would be stored and meets none, so runs by itself."""
        self._absent = {id(tensor) for tensor in self._trace.inputs if id(tensor) not in self._wanted}
        self._left, bypassed = set(), set()
        for node in self._nodes:
            if node.call is None and not any(id(tensor) in self._absent for tensor in node.reads):
                if any(id(tensor) in self._stored for tensor in node.made):
                    bypassed.add(node)
                continue
            self._left.add(node)
            self._absent |= {id(tensor) for tensor in node.made if id(tensor) not in self._stored}
        return bypassed

    def _want(self, tensors: list[Tensor]) -> None:
        self._wanted.update((id(tensor), tensor) for tensor in tensors if id(tensor) in self._trace.born)

    def _must_run(self, node: Node) -> bool:
        operation = node.operations[0]
        return self._eager or operation.cause is not None or operation.sink or node in self._again

    def _by_sample(self, tensor: Tensor) -> bool:
        return self._layouts[id(tensor)].sample_dimension is not None

    def _made_again(self, node: Node, made: list[Tensor]) -> bool:
        """Tell whether an operation runs again, where its results could be stored: views do if it costs no bytes."""
        if not node.operations[0].depends or not all(self._by_sample(tensor) for tensor in made):
            return True
        made_of = {id(tensor): tensor for tensor in node.reads if id(tensor) in self._trace.born}
        more = [tensor for key, tensor in made_of.items() if key not in self._wanted]
        viewed = {storage_of(tensor) for tensor in node.reads} & {storage_of(tensor) for tensor in made}
        if not more or not viewed.isdisjoint(self._changed):
            return True
        return bool(viewed) and sum(map(_bytes, more)) <= sum(map(_bytes, made))

    def boundary(self) -> Boundary:
        """Return the plan that `solve` decided on."""
        self._check_worth()
        self._check_decisions()
        plan = Boundary(cause=self._first_cause())
        number: dict[int, int] = {}
        stored: list[Tensor] = []
        kept_apart = self._changed | {storage_of(tensor) for tensor in self._outputs}
        again = False
        for node in self._nodes:
            again |= any(operation.cause for operation in node.operations)
            for tensor in node.made:
                if id(tensor) in self._stored and id(tensor) not in number:  # a call may return a tensor twice
                    number[id(tensor)] = len(number)
                    stored.append(tensor)
                    plan.stored.append(self._layouts[id(tensor)])
                    plan.copied.append(storage_of(tensor) in kept_apart)
                    plan.disturbs = again
        plan.recipe = recipe_of(self._trace, stored)
        plan.inputs = [id(tensor) in self._wanted for tensor in self._trace.inputs]
        steps = {}
        for node in self._nodes:
            if node in self._left:
                steps[node.call] = step = self._step(node, number)
                if node.call is None:
                    plan.operations.append(step)
        self._place_calls(plan, steps)
        total = sum(operation.multiply_adds for operation in self._trace.operations)
        saved = sum(operation.multiply_adds for node in self._left for operation in node.operations)
        plan.share = saved / total if total else 0.0
        return plan

    def _step(self, node: Node, number: dict[int, int]) -> Step:
        results: list[Any] = []
        for leaf in node.results:
            if not isinstance(leaf, Tensor):
                results.append(leaf)
                continue
            given = [position for position, argument in enumerate(node.arguments) if argument is leaf]
            if given:
                results.append(Through(given[0]))
            elif id(leaf) in number:
                results.append(Stored(number[id(leaf)]))
            else:
                results.append(Left(self._layouts[id(leaf)]))
        func = node.operations[0].func if node.call is None else None
        return Step(func, node.structure, tuple(results))

    def _place_calls(self, plan: Boundary, steps: dict[Call | None, Step]) -> None:
        """Say for each call of a module that is left out at times, in order, whether it is."""
        modules = {call.module for call in self._trace.calls if call in steps}
        around: tuple[int, ...] = (-1,)
        for call in self._trace.calls[1:]:
            if call.path[: len(around)] == around:
                continue
            if call in steps:
                around = call.path
                plan.modules.append(call.name)
                self._check_hooks(call.module.modules())
            elif any(id(resolved(leaf, self._original)) in self._absent for leaf in call.arguments + call.results):
                plan.around.append(call.name)
                self._check_hooks([call.module])
            if call.module in modules:
                plan.calls.setdefault(call.module, []).append(steps.get(call))
        plan.modules = list(dict.fromkeys(plan.modules))
        plan.around = list(dict.fromkeys(plan.around))

    def _check_hooks(self, modules: Any) -> None:
        names = {call.module: call.name for call in self._trace.calls}
        if hooks_on_all_modules():
            raise DeclinedError("a forward hook watches every module")
        for module in modules:
            hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            if not all(map(_is_of_a_library, hooks)):
                raise DeclinedError(f"a forward hook watches {names.get(module, type(module).__name__)!r}")

    def _check_worth(self) -> None:
        frozen = any(operation.frozen for node in self._left for operation in node.operations)
        if not self._stored or not frozen:
            raise DeclinedError(f"{self._first_cause()} comes before anything that is frozen")

    def _check_decisions(self) -> None:
        """Check that no value of a batch decides what is done with it before all that is left out is over."""
        last = max(number for number, node in enumerate(self._nodes) if node in self._left)
        for node in self._nodes[: last + 1]:
            if any(operation.decides for operation in node.operations):
                where = "" if node.call is None else f" in {node.name!r}"
                raise DeclinedError(f"the values of a batch decide{where} what is done with it")

    def _first_cause(self) -> str:
        causes = [operation for operation in self._trace.operations if operation.cause]
        reached = [operation.cause for operation in causes if operation.depends] or [None]
        return reached[0] or "nothing"


def _is_of_a_library(hook: Any) -> bool:
    """Tell whether a hook is part of the model, such as torch's weight norm, and nobody looks through it."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.split(".")[0] in ("torch", "transformers")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
