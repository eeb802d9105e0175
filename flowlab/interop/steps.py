"""`Steps`: a network written down as a list of steps, for conditioners that flowlab's own networks cannot express.

Converted flows use it: nflows lets the context enter by gates and in every residual block, zuko normalises between
layers, and both let hidden units see the features in an order of their own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.activations import ACTIVATIONS
from flowlab.kernels import network as product_and_bias
from flowlab.networks import Dropout, Linear
from flowlab.registry import register

Step = Sequence[Any]  # a word and its arguments; plain lists, so that a file can hold them


@register
class Steps(nn.Module):
    """A network made of steps, each a word with its arguments. Weights start at zero and masks at one.

    - `["join"]`: append the context;
    - `["linear", width]`, `["masked", width]`: weights and a bias, with a mask of the weights;
    - `["constant", width]`: a bias alone, whatever came before;
    - an activation by its name in `flowlab.activations`, with arguments as `torch.nn.functional` has them:
      `["elu", 1.0]`;
    - `["standardise", eps]`: mean zero and variance one over the units;
    - `["dropout", share]`;
    - `["residual", steps]`: add what the steps make of the values;
    - `["add", steps]`, `["gate", steps]`: add what the steps make of the context, or multiply with its sigmoid.

    The last step is linear, masked or constant. Unlike flowlab's own conditioners this one takes values as they are,
    however large: the numbers have to be those of another library.

    Args:
        in_features: Width of the input, without the context.
        context_features: Width of the context.
        steps: The steps.

    Raises:
        ValueError: A step is unknown, or widths do not fit.

    Example:
        >>> import torch
        >>> network = Steps(2, 3, [["join"], ["linear", 8], ["relu"], ["residual", [["linear", 8]]], ["linear", 4]])
        >>> network.columns(torch.zeros(2, 5), torch.zeros(3, 5)).shape
        torch.Size([4, 5])
    """

    def __init__(self, in_features: int, context_features: int, steps: Sequence[Step]) -> None:
        super().__init__()
        self.in_features, self.context_features, self.steps = in_features, context_features, list(steps)
        self.linears, self.drops = nn.ModuleList(), nn.ModuleList()
        if not self.steps or self.steps[-1][0] not in ("linear", "masked", "constant"):
            raise ValueError("the last step must be linear, masked or constant")
        self.out_features = self._build(self.steps, in_features)

    def _build(self, steps: Sequence[Step], width: int) -> int:
        for step in steps:
            match step:
                case ["join"]:
                    width += self.context_features
                case ["linear" | "masked" | "constant" as word, int(out)]:
                    mask = torch.ones(out, width) if word == "masked" else None
                    self.linears.append(Linear(0 if word == "constant" else width, out, mask, zero=True))
                    width = out
                case ["dropout", float(share)]:
                    self.drops.append(Dropout(share))
                case ["add" | "gate" as word, _] if not self.context_features:
                    raise ValueError(f"the step {word!r} needs a context, and there is none")
                case ["residual" | "add" | "gate" as word, inner]:
                    out = self._build(inner, width if word == "residual" else self.context_features)
                    if out != width:
                        raise ValueError(f"the steps within {word!r} end in width {out}, not {width}")
                case ["standardise", float()]:
                    pass
                case [str(word), *given] if word in ACTIVATIONS:
                    try:
                        ACTIVATIONS[word].plain(torch.zeros(1, device="cpu"), *given)
                    except (TypeError, RuntimeError, ValueError) as error:
                        raise ValueError(f"the step {word!r} cannot have the arguments {given}") from error
                case _:
                    raise ValueError(f"unknown step {step!r}")
        return width

    def columns(
        self, x: Tensor, context: Tensor | None = None, dropout: bool = True, rows: Tensor | None = None
    ) -> Tensor:
        """The result (out_features, n) for x (in_features, n) and a context (context_features, n).

        Args:
            x: The input.
            context: The context, None for none.
            dropout: Whether dropout is on, in training.
            rows: Which outputs to compute; all when None.
        """
        linears, drops = iter(self.linears), iter(self.drops if dropout else [nn.Identity()] * len(self.drops))
        if rows is None:
            return self._run(self.steps, x, context, linears, drops)
        x = self._run(self.steps[:-1], x, context, linears, drops)
        last: Linear = self.linears[-1]  # type: ignore[assignment]
        mask = None if last.mask is None else last.mask[rows]
        x = x[:0] if self.steps[-1][0] == "constant" else x
        return product_and_bias(x, "relu", (mask,), (last.weight[rows], last.bias[rows]))

    def _run(
        self, steps: Sequence[Step], x: Tensor, context: Tensor | None, linears: Iterator[Any], drops: Iterator[Any]
    ) -> Tensor:
        for word, *given in steps:
            if word == "join":
                x = x if context is None else torch.cat([x, context])
            elif word in ("linear", "masked"):
                x = next(linears)(x)
            elif word == "constant":
                x = next(linears)(x[:0])
            elif word == "dropout":
                x = next(drops)(x)
            elif word == "residual":
                x = x + self._run(given[0], x, context, linears, drops)
            elif word in ("add", "gate"):
                assert context is not None  # `Flow` asked for it
                of_context = self._run(given[0], context, context, linears, drops)
                x = x + of_context if word == "add" else x * of_context.sigmoid()
            elif word == "standardise":
                variance, mean = torch.var_mean(x, dim=0, keepdim=True)
                x = (x - mean) / (variance + given[0]).sqrt()
            else:
                x = ACTIVATIONS[word].plain(x, *given)
        return x

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The result (n, out_features) for x (n, in_features) and a context (n, context_features)."""
        return self.columns(x.T, None if context is None else context.T).T

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.context_features}, {self.out_features}"
