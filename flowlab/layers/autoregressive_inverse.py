"""An autoregressive layer against its fast direction: feature by feature, with every weight used once.

The parameters of a feature need the mapped values of those before it. Running the whole network once per feature would
compute everything `features` times; but a hidden unit of degree r depends on the first r features alone, so it can be
computed once, as soon as they are known. Units are sorted by degree, so that all this happens on slices.

Gradients come from the implicit function theorem. Against the fast direction F the result x solves F(x; θ) = z, so
dx = J⁻¹ (dz - ∂F/∂θ dθ) with the triangular Jacobian J = ∂F/∂x: the pullback J⁻ᵀ g is again one sweep, from the last
feature to the first. Memory therefore does not grow with the square of the number of features, as it would if autograd
recorded a pass for each of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowlab.activations import ACTIVATIONS
from flowlab.kernels import product, to_features_first
from flowlab.layers.conditioner import by_parameter, conditioner_inputs
from flowlab.layers.scalar import ScalarMap
from flowlab.networks import Linear, MaskedMLP

Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Sweep:
    """One masked network with one scalar map, prepared for going through the features in order.

    Args:
        network: The masked network; its weights are read without a gradient.
        scalar: The scalar map.
        context: Context of each column (*batch, context_features), or None.
    """

    def __init__(self, network: MaskedMLP, scalar: ScalarMap, context: Tensor | None) -> None:
        self.network, self.scalar = network, scalar
        self.context = None if context is None else to_features_first(context)
        self.activation = ACTIVATIONS[network.activation].plain
        linears: list[Linear] = list(network.linears)  # type: ignore[arg-type]
        *self.hidden, self.last = [(linear.weight.detach(), linear.bias.detach()) for linear in linears]
        self.masks: list[Tensor] = [linear.mask for linear in linears]  # type: ignore[misc]
        self.repeats = 2 if scalar.periodic else 1  # inputs per feature
        self.given = len(self.hidden[0][0][0] if self.hidden else self.last[0][0]) - self.repeats * network.features

    def known(self, layer: int, degree: int) -> int:
        """How many of the inputs of a linear layer depend on at most the first `degree` features."""
        return self.network.known(layer, degree)

    def residual(self, layer: int) -> bool:
        """Whether a linear layer's result is added to what passes by it."""
        return self.network.residual and layer % 2 == 0

    def active(self, layer: int) -> bool:
        """Whether the hidden values that a linear layer ends in pass through the activation."""
        return not (self.network.residual and layer == len(self.hidden) - 1)

    def masked(self, layer: int, weight: Tensor) -> Tensor:
        """A linear layer's weight without what its mask forbids."""
        return weight * self.masks[layer]

    @property
    def weights(self) -> list[Tensor]:
        """All weights and biases, as they were when the sweep was prepared."""
        return [tensor for linear in (*self.hidden, self.last) for tensor in linear]

    def inputs(self, features: Tensor) -> Tensor:
        """The network's inputs for features (k, n) alone, without the context."""
        return conditioner_inputs(features, None, self.scalar.periodic)

    @torch.no_grad()
    def run(self, value: Tensor, map: Map) -> tuple[Tensor, Tensor]:
        """Maps values (d, n) in order: the results and the sum of their log-slopes (n,)."""
        n = value.shape[1]
        mapped, log_det = torch.empty_like(value), torch.zeros_like(value[0])
        sources = [value.new_empty(len(weight[0]), n) for weight, _ in (*self.hidden, self.last)]
        if self.given:
            sources[0][: self.given] = conditioner_inputs(value[:0], self.context, False)
        for i in range(self.network.features):
            passing: Tensor | None = None
            for layer, (weight, bias) in enumerate(self.hidden):
                first, end = self.known(layer + 1, i - 1), self.known(layer + 1, i)
                if first == end:
                    continue
                seen = self.known(layer, i)
                units = product(weight[first:end, :seen], sources[layer][:seen]).add_(bias[first:end, None])
                if self.residual(layer):
                    units = passing = units if passing is None else units.add_(passing)
                sources[layer + 1][first:end] = self.activation(units) if self.active(layer) else units
            weight, bias = self.last
            rows, seen = slice(i * self.scalar.count, (i + 1) * self.scalar.count), self.known(-2, i)
            params = product(weight[rows, :seen], sources[-1][:seen]).add_(bias[rows, None])
            result, term = map(value[i : i + 1], params.unsqueeze(1))
            mapped[i], log_det = result[0], log_det.add_(term[0])
            at = self.given + i * self.repeats
            if i + 1 < self.network.features:
                sources[0][at : at + self.repeats] = self.inputs(result)
        return mapped, log_det

    def solve_transposed(self, mapped: Tensor, grad: Tensor, map: Map) -> Tensor:
        """J⁻ᵀ grad (d, n), where J is the Jacobian of the fast direction `map` at values (d, n)."""
        count, d = self.scalar.count, self.network.features
        slopes, output = self._forward(mapped)
        with torch.enable_grad():
            value, params = mapped.detach().requires_grad_(), by_parameter(output, count).detach().requires_grad_()
            by_value, by_params = torch.autograd.grad(map(value, params)[0].sum(), (value, params))
            inputs = self.inputs(value).view(d, self.repeats, -1)
            by_inputs = [
                torch.autograd.grad(inputs[:, j].sum(), value, retain_graph=True)[0] for j in range(self.repeats)
            ]
        with torch.no_grad():
            solution = torch.empty_like(grad)
            # Gradients of what each linear layer computes; they are known from a degree upwards.
            pulled = [grad.new_empty(len(weight), mapped.shape[1]) for weight, _ in (*self.hidden, self.last)]
            weights = [weight for weight, _ in (*self.hidden, self.last)]
            for i in reversed(range(d)):
                # Units that see the first i + 1 features act on later features alone, which are done.
                passing: Tensor | None = None
                for layer in reversed(range(len(self.hidden))):
                    first, end = self.known(layer + 1, i), self.known(layer + 1, i + 1)
                    if first == end:
                        continue
                    above = (i + 1) * count if layer + 1 == len(self.hidden) else self.known(layer + 2, i)
                    units = product(weights[layer + 1][above:, first:end].T, pulled[layer + 1][above:])
                    if self.active(layer):
                        units = units * slopes[layer][first:end]
                    if self.residual(layer):
                        units = passing = units if passing is None else units + passing
                    pulled[layer][first:end] = units
                behind = grad[i]
                at = self.given + i * self.repeats
                above = self.known(1, i) if self.hidden else (i + 1) * count
                if above < len(pulled[0]):
                    from_later = product(weights[0][above:, at : at + self.repeats].T, pulled[0][above:])
                    behind = behind - sum(from_later[j] * by_inputs[j][i] for j in range(self.repeats))
                solution[i] = behind / by_value[i]
                pulled[-1][i * count : (i + 1) * count] = solution[i] * by_params[:, i]
        return solution

    def _forward(self, mapped: Tensor) -> tuple[list[Tensor], Tensor]:
        """The slopes of all activations, and the network's output."""
        slopes: list[Tensor] = []
        with torch.no_grad():
            x = conditioner_inputs(mapped, self.context, self.scalar.periodic)
            passing: Tensor | None = None
            for layer, (weight, bias) in enumerate(self.hidden):
                x = product(self.masked(layer, weight), x).add_(bias.unsqueeze(-1))
                if self.residual(layer):
                    x = passing = x if passing is None else x + passing
                with torch.enable_grad():
                    x = x.detach().requires_grad_()
                    y = self.activation(x)
                    slopes.append(torch.autograd.grad(y.sum(), x)[0])
                x = y.detach() if self.active(layer) else x.detach()
            weight, bias = self.last
            return slopes, product(self.masked(-1, weight), x).add_(bias.unsqueeze(-1))


class Implicit(torch.autograd.Function):
    """Gives a solution `mapped` of F(mapped) = value the derivatives of the residual value - F(mapped)."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, mapped: Tensor, sweep: Sweep, fast: Map, *weights: Tensor) -> Tensor:
        # The sweep has the weights; saved here, autograd notices when something overwrites them.
        ctx.save_for_backward(mapped, *weights)
        ctx.sweep, ctx.fast = sweep, fast
        return mapped.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "no second derivative (create_graph=True) through the slow direction of an autoregressive layer: "
                "use torch.func.grad, which has it, or the layer's fast direction"
            )
        mapped, *weights = ctx.saved_tensors
        return ctx.sweep.solve_transposed(mapped, grad, ctx.fast), *[None] * (3 + len(weights))
