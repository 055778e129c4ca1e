"""Divide a trace into nodes: whole module calls that can be skipped, and the operations outside of them.

A call is one node if it can be skipped, which means that outside code reads only the call's results and no intermediate
tensor. Other calls are opened: their operations and inner calls become nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.caching.prefix.trace import INPUT, Call, Operation, Trace
from finetune.model.inspection.forward_graph import storage_of


@dataclass(eq=False)
class Node:
    """An operation, or a whole module call.

    Attributes:
        reads: Tensors made before the node.
        made: New tensors among the results.
        writes: Storages that the node writes in place.
        operations: The operations of the node.
        call: None for a single operation.
    """

    name: str
    arguments: list[Any]
    results: list[Any]
    structure: Any
    reads: list[Tensor]
    made: list[Tensor]
    writes: frozenset[int]
    operations: list[Operation]
    call: Call | None = None


def nodes_of(trace: Trace, opened: set[tuple[int, ...]]) -> list[Node]:
    """Divide a trace into nodes. Calls in `opened`, or with intermediate tensors that are read outside, are opened."""
    opened = set(opened)
    while True:
        chosen = _chosen(trace, opened)
        original: dict[int, Tensor] = {}
        ends = [(call.start, call.end) for call in chosen]
        for call in trace.calls:
            if not any(start <= call.start and call.end <= end for start, end in ends):
                original.update(call.aliases)
        nodes: list[Node] = []
        position = 0
        for call in chosen:
            nodes += [_of_operation(operation, original) for operation in trace.operations[position : call.start]]
            nodes.append(_of_call(call, trace, original))
            position = call.end
        nodes += [_of_operation(operation, original) for operation in trace.operations[position:]]
        leaking = _leaking(trace, nodes, original)
        if not leaking:
            return nodes
        opened |= leaking


def _chosen(trace: Trace, opened: set[tuple[int, ...]]) -> list[Call]:
    """Return the outermost calls that can be skipped, in order."""
    chosen: list[Call] = []
    for call in trace.calls[1:]:
        if chosen and call.start < chosen[-1].end:
            continue
        operations = trace.operations[call.start : call.end]
        if (
            call.path not in opened
            and any(operation.depends for operation in operations)
            and all(operation.cause is None for operation in operations)
            and all(_can_be_replayed(result, call, trace) for result in call.results)
        ):
            chosen.append(call)
    return chosen


def _can_be_replayed(result: Any, call: Call, trace: Trace) -> bool:
    if isinstance(result, Tensor):
        made = call.start <= trace.born.get(id(result), INPUT - 1)
        return made or any(result is argument for argument in call.arguments)
    return result is None or isinstance(result, (bool, int, float, str, torch.Size, torch.dtype, torch.device))


def _of_operation(operation: Operation, original: dict[int, Tensor]) -> Node:
    arguments = [resolved(leaf, original) for leaf in operation.arguments]
    reads = [leaf for leaf in arguments if isinstance(leaf, Tensor)]
    known = {id(tensor) for tensor in reads}
    made = [leaf for leaf in operation.results if isinstance(leaf, Tensor) and id(leaf) not in known]
    name = str(operation.func)
    return Node(name, arguments, operation.results, operation.structure, reads, made, operation.writes, [operation])


def _of_call(call: Call, trace: Trace, original: dict[int, Tensor]) -> Node:
    operations = trace.operations[call.start : call.end]
    leaves = [leaf for operation in operations for leaf in operation.arguments if isinstance(leaf, Tensor)]
    reads = [resolved(leaf, original) for leaf in leaves if trace.born.get(id(leaf), INPUT) < call.start]
    before = {storage_of(tensor) for tensor in reads}
    arguments = [resolved(leaf, original) for leaf in call.arguments]
    results = [resolved(leaf, original) for leaf in call.results]
    made = [leaf for leaf in results if isinstance(leaf, Tensor) and not any(leaf is given for given in arguments)]
    writes = frozenset(storage for operation in operations for storage in operation.writes) & before
    return Node(call.name, arguments, results, call.structure, reads, made, writes, operations, call)


def resolved(leaf: Any, original: dict[int, Tensor]) -> Any:
    """Return the original of an aliased tensor, and anything else unchanged."""
    while id(leaf) in original:
        leaf = original[id(leaf)]
    return leaf


def _leaking(trace: Trace, nodes: list[Node], original: dict[int, Tensor]) -> set[tuple[int, ...]]:
    """Return the paths of calls whose intermediate tensors are read by outside operations or the model's output."""
    calls = [node for node in nodes if node.call is not None]
    returned = {id(tensor) for node in calls for tensor in node.made}
    outputs = [resolved(tensor, original) for tensor in trace.outputs]
    reads = [tensor for node in nodes if node.call is None for tensor in node.reads] + outputs
    times = {trace.born[id(tensor)] for tensor in reads if id(tensor) in trace.born and id(tensor) not in returned}
    return {
        node.call.path
        for node in calls
        if node.call is not None and any(node.call.start <= time < node.call.end for time in times)
    }


def unlike_calls(nodes: list[Node], others: list[Node]) -> set[tuple[int, ...]]:
    """Return the paths of calls whose non-tensor results differ between two traces."""
    unlike = set()
    for node, other in zip(nodes, others, strict=True):
        if node.call is None:
            continue
        values, other_values = (
            [None if isinstance(leaf, Tensor) else leaf for leaf in side.results] for side in (node, other)
        )
        if values != other_values or node.structure != other.structure:
            unlike.add(node.call.path)
    return unlike
