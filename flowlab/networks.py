"""The networks that turn inputs into the parameters of layers: `MLP`, `MaskedMLP`.

Inside, a network works with features first: (width, n). Scalar maps want the batch on the last axis, where elementwise
kernels and small softmaxes are fast, and matrix products are as fast as in the other layout. `columns` takes and
returns this layout, calling the network takes and returns (*batch, width).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowlab.activations import ACTIVATIONS
from flowlab.arguments import share, whole, widths
from flowlab.kernels import network, to_features_first


class Linear(nn.Module):
    """`(weight * mask) @ x + bias` for x (in_features, n), with weights drawn from `generator`, or all zero.

    `torch.nn.Linear` would draw from the global generator, has no mask, and works with the batch first.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mask: Tensor | None = None,
        *,
        zero: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.register_buffer("mask", mask)
        if not zero and in_features:
            bound = 1 / math.sqrt(in_features)  # torch.nn.Linear's rule
            with torch.no_grad():
                self.weight.uniform_(-bound, bound, generator=generator)
                self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return network(x, "relu", (self.mask,), (self.weight, self.bias))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class Random(nn.Module):
    """A module that draws in training.

    Attributes:
        generator: Source of the draws. Where it is None, `fit` lends its own for the length of a training run, and
            otherwise torch's global generator is meant.
    """

    generator: torch.Generator | None = None


class Dropout(Random):
    """Dropout whose noise comes from a generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            return F.dropout(x, self.p)
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def hidden_widths(hidden: int | Sequence[int], residual: bool) -> tuple[int, ...]:
    """The widths of a network's hidden layers: a residual block has two."""
    hidden = widths(hidden)
    if not residual:
        return hidden
    if len(set(hidden)) != 1:
        raise ValueError(f"a residual network needs one or more equal hidden widths, not {hidden}")
    return hidden[:1] * (2 * len(hidden) + 1)


def start_at(last: Linear, initial: Tensor | None) -> None:
    """Let a network's zero-initialised last layer start at `initial` (count,) for every feature."""
    if initial is not None:
        with torch.no_grad():
            last.bias.copy_(initial.repeat(last.bias.numel() // len(initial)))


class MLP(nn.Module):
    """A multilayer perceptron whose last layer starts at zero, so that a layer built on it starts as the identity.

    With `residual=True`, `hidden` gives the widths, all equal, of pre-activation residual blocks in the form
    of nflows' residual network (He et al. 2016, "Identity mappings in deep residual networks").

    Args:
        in_features: Width of the input; 0 is allowed and leaves a learnable constant.
        out_features: Width of the output.
        hidden: Widths of the hidden layers; `()` gives a linear map.
        residual: Residual blocks in place of plain layers.
        activation: One of `relu`, `tanh`, `silu`, `gelu`, `elu`, `selu`, `leaky_relu`, `sigmoid`, `softplus`.
        dropout: Share of hidden units dropped in training.
        masks: One mask per linear layer, for `MaskedMLP`.
        generator: Source of the initial weights; torch's global generator when None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int | Sequence[int] = (64, 64),
        *,
        residual: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        masks: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
        self.in_features, self.out_features = whole("in_features", in_features, 0), whole("out_features", out_features)
        self.hidden, self.residual, self.activation = widths(hidden), residual, activation
        self.dropout = share("dropout", dropout)
        layers = (self.in_features, *hidden_widths(self.hidden, residual), self.out_features)
        last = len(layers) - 2
        linears = [
            Linear(
                layers[i],
                layers[i + 1],
                None if masks is None else masks[i],
                zero=i == last,
                generator=generator,
            )
            for i in range(last + 1)
        ]
        self.linears = nn.ModuleList(linears)
        self.drop = Dropout(self.dropout)

    @property
    def last(self) -> Linear:
        """The output layer."""
        return self.linears[-1]  # type: ignore[return-value]

    @property
    def plain(self) -> bool:
        """Whether this is a chain of linear layers and activations that `flowlab.kernels.network` can run."""
        return not self.residual

    @property
    def masks(self) -> list[Tensor | None]:
        """The mask of each linear layer."""
        return [linear._buffers["mask"] for linear in self.linears]

    @property
    def weights(self) -> list[Tensor]:
        """Weight and bias of each linear layer in turn."""
        linears: list[Linear] = list(self.linears)  # type: ignore[arg-type]
        return [w for linear in linears for w in (linear.weight, linear.bias)]

    def columns(self, x: Tensor, dropout: bool = True) -> Tensor:
        """The result (out_features, n) for x (in_features, n); without `dropout` as outside of training."""
        dropout = dropout and self.training and self.dropout > 0
        if self.plain and not dropout:
            return network(x, self.activation, self.masks, self.weights)
        drop: Callable[[Tensor], Tensor] = self.drop if dropout else nn.Identity()
        activation = ACTIVATIONS[self.activation]
        if self.residual:
            first, *inner = self.linears[:-1]
            x = first(x)
            for one, two in zip(inner[::2], inner[1::2], strict=True):
                x = x + two(drop(activation.run(one(activation.plain(x)))))
        else:
            for linear in self.linears[:-1]:
                x = drop(activation.run(linear(x)))
        return self.last(x)

    def forward(self, x: Tensor) -> Tensor:
        """The result (*batch, out_features) for x (*batch, in_features)."""
        return self.columns(to_features_first(x)).T.reshape(*x.shape[:-1], self.out_features)


class MaskedMLP(MLP):
    """MADE: outputs of a feature depend only on the features before it, and on the context.

    Germain et al. 2015, "MADE: Masked autoencoder for distribution estimation". Inputs are the context, which no mask
    touches, then `inputs_per_feature` numbers of each feature. Outputs are the `outputs` parameters of the first
    feature, then of the second. Hidden units are sorted by degree: a unit of degree r sees the context and the first r
    features. All masks are therefore staircases.

    Args:
        features: Number of features, in the order of their dependence.
        outputs: Parameters per feature.
        hidden: Widths of the hidden layers, with `residual=True` all equal.
        context_features: Width of the context.
        inputs_per_feature: 2 when each feature enters as two numbers (cosine and sine of an angle).
        residual: Residual blocks in place of plain layers.
        activation, dropout, generator: As for `MLP`.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: int | Sequence[int] = (64, 64),
        *,
        context_features: int = 0,
        inputs_per_feature: int = 1,
        residual: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        features, outputs = whole("features", features), whole("outputs", outputs)
        context_features = whole("context_features", context_features, 0)
        # Degree 0 sees the context alone; without a context it is of no use, except to a single feature, whose outputs
        # need some unit to live on.
        lowest = 0 if context_features or features == 1 else 1
        highest = max(features - 1, lowest)
        # As tensors, which cost nothing where only an outline is built.
        inputs = torch.arange(1, features + 1).repeat_interleave(inputs_per_feature)
        degrees = [
            torch.cat([inputs.new_zeros(context_features), inputs]),
            *(lowest + torch.arange(w) * (highest - lowest + 1) // w for w in hidden_widths(hidden, residual)),
            torch.arange(features).repeat_interleave(outputs),
        ]
        super().__init__(
            context_features + inputs_per_feature * features,
            outputs * features,
            hidden,
            residual=residual,
            activation=activation,
            dropout=dropout,
            masks=[(out[:, None] >= into).float() for into, out in pairwise(degrees)],
            generator=generator,
        )
        self.features, self.outputs = features, outputs
        self.lowest, self.span, self.given, self.repeats = (
            lowest,
            highest - lowest + 1,
            context_features,
            inputs_per_feature,
        )

    def known(self, layer: int, degree: int) -> int:
        """How many inputs of a linear layer, or outputs of the last, depend on at most the first `degree` features.

        Of outputs these are the parameters of one feature more.
        """
        widths = hidden_widths(self.hidden, self.residual)
        layer += len(widths) + 2 if layer < 0 else 0
        if layer == 0:
            return self.given + self.repeats * min(max(degree, 0), self.features) if degree >= 0 else 0
        if layer > len(widths):
            return self.outputs * min(max(degree + 1, 0), self.features)
        # Of the units i those with lowest + i · span // width <= degree.
        width = widths[layer - 1]
        return max(min(-(-(degree - self.lowest + 1) * width // self.span), width), 0)


class ContextParameters(nn.Module):
    """`size` learnable numbers, shifted by a network of the context where there is one.

    Args:
        initial: The starting values (size,).
        context_features: Width of the context; 0 for none.
        hidden: Widths of the network's hidden layers.
        generator: Source of the network's initial weights.
    """

    def __init__(
        self,
        initial: Tensor,
        context_features: int = 0,
        hidden: int | Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.value = nn.Parameter(initial.clone())
        self.network = MLP(context_features, len(initial), hidden, generator=generator) if context_features else None

    def forward(self, context: Tensor | None) -> Tensor:
        """(size,) without a context, (*batch, size) with one."""
        if self.network is None:
            return self.value
        return self.value + self.network(context)
