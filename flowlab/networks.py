"""The networks that turn inputs into the parameters of layers: `MLP`, `ResidualMLP`, `MaskedMLP`.

Every network ends in a `Linear` that can hand out its result feature-first (`columns`): scalar maps want the batch
on the last axis, where elementwise kernels and small softmaxes are fast, and a transposed last product is free.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "tanh": torch.tanh,
}


class Linear(nn.Module):
    """`x @ (weight * mask).T + bias` with weights drawn from `generator`, or all zero.

    `torch.nn.Linear` would draw from the global generator, and has no mask.
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

    def masked_weight(self) -> Tensor:
        return self.weight if self.mask is None else self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.masked_weight(), self.bias)

    def columns(self, x: Tensor) -> Tensor:
        """The transposed result for x (n, in_features): (out_features, n)."""
        return torch.addmm(self.bias.unsqueeze(-1), self.masked_weight(), x.T)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class Dropout(nn.Module):
    """Dropout whose noise comes from a generator that `fit` lends for the length of a training run.

    Without one, it draws from torch's global generator like any other torch module.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            return F.dropout(x, self.p)
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def hidden_widths(hidden: Sequence[int], residual: bool) -> tuple[int, ...]:
    """The widths of a network's hidden layers: a residual block has two."""
    if not residual:
        return tuple(hidden)
    if len(set(hidden)) != 1:
        raise ValueError(f"a residual network needs one or more equal hidden widths, not {tuple(hidden)}")
    return tuple(hidden[:1]) * (2 * len(hidden) + 1)


def start_at(last: Linear, initial: Tensor | None) -> None:
    """Let a network's zero-initialised last layer start at `initial` (count,), parameter by parameter."""
    if initial is not None:
        with torch.no_grad():
            last.bias.copy_(initial.repeat_interleave(last.bias.numel() // len(initial)))


class MLP(nn.Module):
    """A multilayer perceptron whose last layer starts at zero, so that a layer built on it starts as the identity.

    Args:
        in_features: Width of the input; 0 is allowed and leaves a learnable constant.
        out_features: Width of the output.
        hidden: Widths of the hidden layers; `()` gives a linear map.
        activation: One of `relu`, `silu`, `gelu`, `elu`, `tanh`.
        dropout: Share of hidden units dropped in training.
        masks: One mask per linear layer, for `MaskedMLP`.
        generator: Source of the initial weights; torch's global generator when None.
    """

    residual = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (64, 64),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        masks: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
        self.in_features, self.out_features, self.hidden = in_features, out_features, tuple(hidden)
        self.activation, self.dropout = activation, dropout
        widths = (in_features, *hidden_widths(self.hidden, self.residual), out_features)
        last = len(widths) - 2
        linears = [
            Linear(
                widths[i],
                widths[i + 1],
                None if masks is None else masks[i],
                zero=i == last,
                generator=generator,
            )
            for i in range(last + 1)
        ]
        self.linears = nn.ModuleList(linears)
        self.drop = Dropout(dropout)

    @property
    def last(self) -> Linear:
        """The output layer."""
        return self.linears[-1]  # type: ignore[return-value]

    def hidden_units(self, x: Tensor) -> Tensor:
        """The activations that the last linear layer reads."""
        activation = ACTIVATIONS[self.activation]
        for linear in self.linears[:-1]:
            x = self.drop(activation(linear(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden_units(x))

    def columns(self, x: Tensor) -> Tensor:
        """The transposed result for x (n, in_features): (out_features, n)."""
        return self.last.columns(self.hidden_units(x))


class ResidualMLP(MLP):
    """An `MLP` of pre-activation residual blocks, one per entry of `hidden`, whose widths must be equal.

    The form is that of nflows' residual network (He et al. 2016, "Identity mappings in deep residual networks").
    """

    residual = True

    def hidden_units(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        x = self.linears[0](x)
        inner = list(self.linears[1:-1])
        for first, second in zip(inner[::2], inner[1::2], strict=True):
            x = x + second(self.drop(activation(first(activation(x)))))
        return x


def network(residual: bool) -> type[MLP]:
    """The class behind the `residual` switch of layers."""
    return ResidualMLP if residual else MLP


class MaskedMLP(nn.Module):
    """MADE: outputs of a feature depend only on features that come earlier in `order`, and on the context.

    Germain et al. 2015, "MADE: Masked autoencoder for distribution estimation". Inputs are
    `inputs_per_feature` blocks of all features, then the context, which no mask touches.

    Args:
        features: Number of features.
        outputs: Parameters per feature; the output has `outputs * features` entries, parameter by parameter.
        hidden: Widths of the hidden layers, with `residual=True` all equal.
        order: `order[k]` is the feature that comes k-th; 0 … features - 1 when None.
        context_features: Width of the context, appended to the input.
        inputs_per_feature: 2 when each feature enters as two numbers (cosine and sine of an angle).
        residual: Residual blocks in place of plain layers.
        activation, dropout, generator: As for `MLP`.
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        *,
        order: Sequence[int] | None = None,
        context_features: int = 0,
        inputs_per_feature: int = 1,
        residual: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        order = list(range(features)) if order is None else [int(i) for i in order]
        if sorted(order) != list(range(features)):
            raise ValueError(f"order must be a permutation of 0 … {features - 1}, not {order}")
        self.register_buffer("order", torch.tensor(order))
        rank = torch.empty(features, dtype=torch.long)
        rank[torch.tensor(order)] = torch.arange(features)
        # Degree r may see features of rank < r. Degree 0 sees the context alone; without a context it is
        # of no use, except to a single feature, whose outputs need some unit to live on.
        lowest = 0 if context_features or features == 1 else 1
        highest = max(features - 1, lowest)
        degrees = [
            lowest + torch.arange(width) * (highest - lowest + 1) // max(width, 1)
            for width in hidden_widths(hidden, residual)
        ]
        inputs = torch.cat([(rank + 1).repeat(inputs_per_feature), torch.zeros(context_features, dtype=torch.long)])
        degrees = [inputs, *degrees, rank.repeat(outputs)]
        masks = [(out[:, None] >= into[None, :]).float() for into, out in pairwise(degrees)]
        self.mlp = network(residual)(
            len(inputs),
            outputs * features,
            hidden,
            activation=activation,
            dropout=dropout,
            masks=masks,
            generator=generator,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def columns(self, x: Tensor) -> Tensor:
        """The transposed result for x (n, inputs): (outputs * features, n)."""
        return self.mlp.columns(x)


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
        hidden: Sequence[int] = (64,),
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
