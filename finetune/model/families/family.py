"""`Family`: how one library names, builds and describes its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.model.families.input_size import InputSize, stated_input_size

# The thousandth prime, a number of classes that no layer has as its width by chance.
UNUSUAL_NUM_CLASSES = 7919


@dataclass(frozen=True)
class CatalogModel:
    """A model built by name.

    Attributes:
        model: The model.
        origin: Plain data from which `Family.rebuild` builds the same architecture again.
        preset: The preprocessing published with the weights, or None.
        classes: Class names of the outputs, or None if the head is untrained.
    """

    model: nn.Module
    origin: dict[str, Any]
    preset: Any | None = None
    classes: tuple[str, ...] | None = None


class Family:
    """One library's models. To support another library, subclass this and add it to `FAMILIES`.

    The defaults suit a model that no library claims, so a subclass overrides only the methods where
    its library knows more. A family never guesses: where it has no answer it returns the default,
    and the model is analyzed by its forward pass instead.

    Attributes:
        prefix: Prefix of the model names that the family builds, such as `"timm/"`.
        usage: Description of the names, for the error about an unknown one.

    Example:
        >>> class OpenClip(Family):
        ...     prefix = "open_clip/"
        >>> OpenClip().local_name("open_clip/ViT-B-32")
        'ViT-B-32'
    """

    prefix: str = ""
    usage: str = ""

    def owns(self, model: nn.Module) -> bool:
        """Return whether `model` belongs to this library, without importing the library."""
        return False

    # ------------------------------------------------------------------ about a model

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Return the full names of the classification heads, the main one first.

        Raises:
            HeadError: If the architecture is known to have none.
        """
        return ()

    def depth(self, model: nn.Module) -> list[list[str]] | None:
        """Return the parameter names grouped by depth from the stem on, or None without such an order."""
        return None

    def examples(self, model: nn.Module, samples: int) -> list[Any]:
        """Return inputs of `samples` samples that the model accepts, on the CPU, the likeliest first."""
        return []

    def built_for(self, model: nn.Module) -> InputSize:
        """Return the channels and the size of the images that the model was built for, where it states them."""
        return stated_input_size(model)

    def classes(self, model: nn.Module) -> tuple[str, ...] | None:
        """Return the class names stored in the model, or None."""
        return None

    def preset(self, model: nn.Module) -> Any | None:
        """Return the preprocessing stored in the model, or None."""
        return None

    def loss_weights(self, model: nn.Module) -> tuple[float, float]:
        """Return the training weights of the main head's loss and of each auxiliary head's loss."""
        return 1.0, 0.3

    # ------------------------------------------------------------------ changes to a model

    def add_head(self, model: nn.Module, n: int) -> None:
        """Give a model that was built without a head the head of its architecture, with `n` outputs."""

    def reset(self, model: nn.Module) -> None:
        """Reinitialize all weights, if the library has its own way of doing so."""

    def tell_outputs(self, model: nn.Module, n: int) -> None:
        """Record in the model's config that it has `n` outputs of unknown meaning."""

    def tell_task(self, model: nn.Module, kind: str | None, classes: Sequence[str] | None) -> None:
        """Record the kind of task, and the class names if given, in the model's config."""

    # ------------------------------------------------------------------ models by name

    def local_name(self, name: str) -> str | None:
        """Return the library's own name for a model, or None if `name` is not one of this family's."""
        return name.removeprefix(self.prefix) if self.prefix and name.startswith(self.prefix) else None

    def names(self) -> list[str]:
        """Return the names of the models that need no prefix."""
        return []

    def license(self, origin: Mapping[str, Any]) -> str | None:
        """Return the identifier of the license of a model's published weights, or None if it is not known."""
        return None

    def page(self, origin: Mapping[str, Any]) -> str | None:
        """Return the repository of a model on the Hugging Face hub, or None if it has none."""
        return None

    def published(self, name: str) -> list[str]:
        """Return the names of the weights published for the model with this local name.

        Raises:
            ArgumentError: If there is no such model, or the library is not installed.
        """
        return ["DEFAULT"]

    def create(self, name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
        """Build a model by its local name.

        Args:
            name: Local name of the model.
            weights: One of the published weights, or None for random ones.
            as_pretrained: Whether to build the architecture that the published weights have, even
                with random weights, because weights from a local file are loaded next.

        Raises:
            ArgumentError: If there is no such model, or the library is not installed.
            CheckpointError: If the weights are neither cached nor downloadable.
        """
        raise NotImplementedError

    def rebuild(self, origin: Mapping[str, Any]) -> nn.Module:
        """Build the model of a `CatalogModel.origin` with random weights and without the network."""
        raise NotImplementedError


def made_by(library: str, thing: Any) -> bool:
    """Return whether a class or function is defined in a library. Generated code may belong to no module at all.

    Example:
        >>> made_by("torch", nn.Linear)
        True
    """
    return f"{getattr(thing, '__module__', None)}.".startswith(f"{library}.")


def resized_layers(model: nn.Module, twin: nn.Module) -> tuple[str, ...]:
    """Return the layers of `model` whose size follows the number of classes.

    A layer that the user has replaced with a custom one counts as a whole.

    Args:
        model: The model to search.
        twin: The same architecture with `UNUSUAL_NUM_CLASSES` classes.
    """
    modules = dict(model.named_modules())
    found = []
    for parameter, value in twin.named_parameters():
        if UNUSUAL_NUM_CLASSES in value.shape:
            layer = parameter.rpartition(".")[0]
            while layer not in modules:
                layer = layer.rpartition(".")[0]
            found.append(layer)
    return tuple(dict.fromkeys(found))
