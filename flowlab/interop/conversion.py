"""What the conversions from nflows and from zuko share: their error, networks and checks."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from flowlab.activations import ACTIVATIONS
from flowlab.flow import Flow
from flowlab.interop.converted import ConvertedCoupling
from flowlab.interop.steps import Step, Steps
from flowlab.layers import ElementwiseAffine, ScalarMap

M = TypeVar("M", bound=nn.Module)


class ConversionError(ValueError):
    """A part of another library's model has no counterpart; the message names it, its place and what can be done."""


def parts(
    transform: Any, opened: Callable[[Any], Any], place: str = "transform", inverted: bool = False
) -> Iterator[tuple[str, Any, bool]]:
    """The transforms from data to noise, each with its place, and whether it is used backwards.

    Args:
        transform: The whole of them, in the direction from data to noise.
        opened: Gives the list of transforms that one is made of, or the transform that it is the inverse of; None where
            it is a single one.
        place: Where it is, in words.
        inverted: Whether it is used backwards.
    """
    inside = opened(transform)
    if inside is None:
        yield place, transform, inverted
    elif isinstance(inside, list):
        numbered = list(enumerate(inside))
        for i, part in reversed(numbered) if inverted else numbered:
            yield from parts(part, opened, f"{place}.{i}" if place != "transform" else f"transform {i}", inverted)
    else:
        yield from parts(inside, opened, place, not inverted)


class Source(NamedTuple):
    """The weights of one linear layer of another library."""

    weight: Tensor
    bias: Tensor | None
    mask: Tensor | None = None

    def select(self, rows: Sequence[int]) -> "Source":
        """Some rows, in another order."""
        index = torch.tensor(rows, device=self.weight.device)
        parts = (self.weight, self.bias, self.mask)
        return Source(*(None if part is None else part[index] for part in parts))  # type: ignore[arg-type]


class Recipe(NamedTuple):
    """A network of another library: its steps, and the weights of its linear layers in the same order."""

    steps: list[Step]
    sources: list[Source]

    def build(self, in_features: int, context_features: int, like: Tensor) -> Steps:
        """The network, filled, with the floating-point type and on the device of `like`."""
        network = Steps(in_features, context_features, self.steps).to(like)
        with torch.no_grad():
            for linear, source in zip(network.linears, self.sources, strict=True):
                linear.weight.copy_(source.weight)  # type: ignore[operator]
                if source.bias is not None:
                    linear.bias.copy_(source.bias)  # type: ignore[operator]
                if source.mask is not None:
                    linear.mask.copy_(source.mask)  # type: ignore[operator]
        return network


_NAMES = {function: name for name, own in ACTIVATIONS.items() for function in own.functions}


def activation(given: object, where: str) -> Step:
    """The step of an activation: a function of torch's, or a module.

    Raises:
        ConversionError: It is none that is known.
    """
    if isinstance(given, nn.Module):
        match given:
            case nn.ELU():
                return ["elu", given.alpha]
            case nn.LeakyReLU():
                return ["leaky_relu", given.negative_slope]
            case nn.Softplus():
                return ["softplus", given.beta, given.threshold]
            case nn.GELU() if given.approximate == "none":
                return ["gelu"]
            case nn.ReLU() | nn.SiLU() | nn.SELU() | nn.Tanh() | nn.Sigmoid():
                return [type(given).__name__.lower()]
        raise ConversionError(f"{where}: the activation {type(given).__name__} has no counterpart")
    try:
        return [_NAMES[given]]
    except (KeyError, TypeError):
        name = getattr(given, "__name__", type(given).__name__)
        raise ConversionError(f"{where}: the activation {name} has no counterpart") from None


def sequential(
    modules: Iterable[nn.Module], where: str, more: Callable[[nn.Module], Recipe | None] = lambda module: None
) -> Recipe:
    """The recipe of linear layers, activations and dropout in a row; `more` knows further modules.

    Raises:
        ConversionError: One of the modules has no counterpart.
    """
    steps: list[Step] = []
    sources: list[Source] = []
    for module in modules:
        own = more(module)
        if own is not None:
            steps += own.steps
            sources += own.sources
        elif type(module) is nn.Linear:
            steps.append(["linear", module.out_features])
            sources.append(Source(module.weight, module.bias))
        elif isinstance(module, nn.Dropout):
            steps += dropout(module)
        elif not isinstance(module, nn.Identity):
            steps.append(activation(module, where))
    return Recipe(steps, sources)


def dropout(module: nn.Dropout) -> list[Step]:
    """The step of dropout, none where its share is zero."""
    return [["dropout", float(module.p)]] if module.p else []


def elementwise(
    features: int, scalar: ScalarMap, recipe: Recipe, context_features: int, like: Tensor
) -> ConvertedCoupling:
    """A layer that maps each feature alone, with parameters that depend on the context at most."""
    network = recipe.build(0, context_features, like)
    return ConvertedCoupling(features, scalar, [True] * features, network).to(like)


def scale_and_shift(scale: Tensor, shift: Tensor, like: Tensor) -> ElementwiseAffine:
    """The layer whose way to the noise is z = scale · x + shift, from double-precision scale and shift (features,)."""
    return ElementwiseAffine.from_moments(-shift / scale, -scale.log()).to(like)


def verify(flow: Flow, model: M, log_prob: Callable[[M, Tensor, Tensor | None], Tensor]) -> None:
    """Compare the density of a few fixed rows, in copies in double precision and out of training.

    Args:
        flow: The converted flow.
        model: The other library's model.
        log_prob: The density of a model of the other library, of rows and contexts.

    Raises:
        ConversionError: They differ by more than rounding.
    """
    flow, model = copy.deepcopy(flow).double().train(False), copy.deepcopy(model).double().train(False)
    device = next((tensor.device for tensor in (*flow.parameters(), *flow.buffers())), torch.device("cpu"))
    generator = torch.Generator(device).manual_seed(0)
    context = None
    if flow.context_features:
        context = torch.empty(64, flow.context_features, dtype=flow.dtype, device=device).normal_(generator=generator)
    with torch.no_grad():
        x = flow.from_noise(flow.base.sample((64,), generator), context)
        theirs, ours = log_prob(model, x, context), flow.log_prob(x, context)
    # Of the better rows: steep maps in a long chain amplify rounding without bound, a wrong translation is wrong
    # everywhere.
    error = float(((ours - theirs).abs() / (1 + theirs.abs())).nan_to_num(1.0).quantile(0.1))
    if not error <= 1e-3:
        raise ConversionError(
            f"log_prob of the converted flow is off by a share of {error:.2g}: a part of the model that overrides a "
            "method, or this version of the library, computes something else"
        )


def like(model: nn.Module) -> Tensor:
    """An empty tensor of the floating-point type, and on the device, of a model's parameters."""
    buffers = (tensor for name, tensor in model.named_buffers() if not name.endswith("_log_z"))
    for tensor in (*model.parameters(), *buffers):
        if tensor.is_floating_point():
            return tensor.detach().new_empty(0)
    return torch.empty(0)
