"""Call a model, and find the logits in its output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from finetune.errors import HeadError
from finetune.nested import is_group, tensors_of


def call(model: nn.Module, inputs: Any, samples: int | None = None) -> Any:
    """Call `model` with a tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    A list that `forward` does not take as arguments is one, such as a list of images. A single value in a mapping is
    passed by position if `forward` has no parameter of its name. Outputs of one sample that lost its dimension, as by
    `squeeze()`, get it back.

    Args:
        model: The model.
        inputs: Inputs of a batch.
        samples: Number of samples, if known: a list of that many is rather a list of samples.
    """
    output = forwarded(model, inputs, samples)
    lost = isinstance(output, Tensor) and output.shape[:1] != (1,) and _is_one_sample(inputs, samples)
    return output.unsqueeze(0) if lost else output


def forwarded(model: nn.Module, inputs: Any, samples: int | None = None) -> Any:
    """Return the output of `call` as it is, without a look at its shape, which a traced program would remember."""
    if isinstance(inputs, Mapping):
        alone = len(inputs) == 1 and not takes_names(model, inputs)
        return model(*inputs.values()) if alone else model(**inputs)
    return model(*inputs) if is_group(inputs) and _are_arguments(model, inputs, samples) else model(inputs)


def _is_one_sample(inputs: Any, samples: int | None) -> bool:
    tensors = tensors_of(inputs)
    return samples in (None, 1) and bool(tensors) and all(tensor.shape[:1] == (1,) for tensor in tensors)


def takes_names(model: nn.Module, names: Iterable[str]) -> bool:
    """Return whether `forward` has a parameter of each name, or takes any."""
    parameters = _parameters(model)
    anything = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)
    return anything or {*names} <= {parameter.name for parameter in parameters}


def _are_arguments(model: nn.Module, inputs: Sequence[Any], samples: int | None) -> bool:
    """Return whether the values of a list are the arguments of `forward`, rather than one argument."""
    parameters = _parameters(model)
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    positional = [one for one in parameters if one.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    required = sum(one.default is Parameter.empty for one in positional)
    if len(inputs) > len(positional):
        return False
    if required > 1:
        return True
    if len(inputs) == samples:
        return all(tensor.dim() > 0 and len(tensor) == samples for tensor in tensors_of(inputs))
    return not hasattr(inputs, "_fields")


def _parameters(model: nn.Module) -> list[Parameter]:
    try:
        return list(signature(model.forward).parameters.values())
    except ValueError:  # compiled code
        return [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)]


def logits_of(output: Any) -> Any:
    """Return the main result in a model's output.

    That is the output itself if it is a tensor; else its `logits`, as in Hugging Face's `ModelOutput`
    and torchvision's GoogLeNet and Inception; else its first tensor. VideoPrism's logits [N, 1, C]
    become [N, C].

    Example:
        >>> import torch
        >>> logits_of({"features": torch.zeros(2, 8), "logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return _of_samples(output["logits"])
    if hasattr(output, "logits"):
        return _of_samples(output.logits)
    nested = isinstance(output, (Mapping, tuple, list))
    tensors = tensors_of(output) if nested else []
    return tensors[0] if tensors else output


def _of_samples(logits: Any) -> Any:
    return logits.squeeze(1) if isinstance(logits, Tensor) and logits.dim() == 3 else logits


def auxiliary_of(output: Any, heads: int = 1) -> list[Tensor]:
    """Return the logits of auxiliary heads in a model's output.

    Those are the fields named `aux...` and, for a model with several `heads` such as a distilled one, the
    tensors of a plain tuple that have the shape of the first.
    """
    if type(output) in (tuple, list) and heads > 1:
        first, *others = tensors_of(output)
        return [tensor for tensor in others if tensor.shape == first.shape]
    fields = getattr(output, "_asdict", None)
    named = fields() if fields is not None else output if isinstance(output, Mapping) else {}
    return [value for name, value in named.items() if str(name).startswith("aux") and isinstance(value, Tensor)]


def results_of(output: Any) -> list[Tensor]:
    """Return the results of all heads: `logits` and auxiliary logits if the output names them, else every tensor.

    Lists inside a tuple that starts with a tensor are ignored, because they hold hidden states.
    """
    if hasattr(output, "logits") or (isinstance(output, Mapping) and "logits" in output):
        return [*tensors_of(logits_of(output)), *auxiliary_of(output)]
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return [value for value in output if isinstance(value, Tensor)]
    return tensors_of(output)


def check_logits(model: nn.Module, output: Any, outputs: int | None) -> None:
    """Check that the first of a model's results are its logits.

    Args:
        model: The model.
        output: Its output for a batch.
        outputs: Number of outputs of its head, 0 if unknown, or None to accept any number.

    Raises:
        HeadError: If the model returns several results and the first does not fit the head.
    """
    main, results = logits_of(output), results_of(output)
    shapes = [list(tensor.shape) for tensor in results]
    width = main.shape[1:] if isinstance(main, Tensor) else ()
    fits = outputs is None or (bool(outputs) and outputs in (1, *width))
    if len(results) > 1 and shapes != shapes[:1] * len(shapes) and not fits:
        raise logits_not_first(model, f"their shapes are {', '.join(map(str, shapes))}")


def logits_not_first(model: nn.Module, why: str) -> HeadError:
    """Return the error for a model whose first result may not be its logits."""
    return HeadError(
        f"{type(model).__name__} returns several results, and the first may not be the logits: {why}. Return the "
        f"logits first, or in a dictionary under 'logits'; or name the layer that computes them with "
        f"replace_head(n, layer=...); or override training_step."
    )


def outputs_in(output: Any, of_head: int | None = None) -> int | None:
    """Return the number of outputs in a model's output for a batch, or None if it has no tensor with samples.

    It is 1 for [N], and K for [N, K] and [N, K, ...]; in [N, T, K], as from a tagger, the head's number decides.

    Args:
        output: Output of the model.
        of_head: Number of outputs of the model's head, if it has one.

    Example:
        >>> import torch
        >>> outputs_in(torch.zeros(2, 3)), outputs_in(torch.zeros(2)), outputs_in(torch.zeros(2, 9, 5), of_head=5)
        (3, 1, 5)
    """
    logits = logits_of(output)
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        return None
    return of_head if logits.dim() > 2 and of_head == logits.shape[-1] else int((*logits.shape, 1)[1])
