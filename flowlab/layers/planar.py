"""Planar, radial and Sylvester layers: a residual step along few directions, invertible by parametrisation.

Sampling is a formula. Density inverts one-dimensional monotone equations (`root.solve`), with exact first derivatives.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.kernels import differentiable_backward, plain_backward, transforming
from flowlab.layers.layer import Fast, Layer, flat
from flowlab.layers.linear import SOFTPLUS_ONE, reflect
from flowlab.layers.root import solve
from flowlab.networks import ContextParameters

MARGIN = 1e-3  # 1 + h' w·u stays above it: neither direction can have an unbounded slope


def above_minus_one(x: Tensor) -> Tensor:
    """A smooth map of the reals onto (-1 + MARGIN, ∞) that keeps zero."""
    return (1 - MARGIN) * (F.softplus(x + SOFTPLUS_ONE) - 1)


def solve_tanh(target: Tensor, outer: Tensor, inner: Tensor, shift: Tensor) -> Tensor:
    """The v with v + outer · tanh(inner · v + shift) = target, elementwise, for outer · inner > -1."""

    def function(v: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(inner * v + shift)
        return v + outer * h, torch.log1p(outer * inner * (1 - h * h))

    target, outer, inner, shift = torch.broadcast_tensors(target, outer, inner, shift)
    return solve(function, target, target - outer.abs(), target + outer.abs())


class _Residual(Layer):
    """What the three layers share: a vector of unconstrained parameters, perhaps shifted by the context."""

    fast: Fast = "sampling"

    def __init__(
        self,
        features: int,
        initial: Tensor,
        context_features: int,
        hidden: Sequence[int],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.features, self.context_features, self.hidden = features, context_features, tuple(hidden)
        self.parameters_ = ContextParameters(initial, context_features, hidden, generator)


class Planar(_Residual):
    """x = z + u tanh(w·z + b), with w·u > -1. Rezende & Mohamed 2015, "Variational inference with normalizing flows", equation 10.

    Args:
        features: Width of noise and data.
        context_features: Width of a context that u, w and b may depend on.
        hidden: Widths of the context network's hidden layers.
        generator: Source of the initial direction w; u starts at zero, which makes the layer the identity.
    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        w = torch.empty(features).normal_(generator=generator)
        initial = torch.cat([torch.zeros(features), w, torch.zeros(1)])
        super().__init__(features, initial, context_features, hidden, generator)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parameters = self.parameters_(context)
        # Looking at numbers would mean waiting for other devices than the CPU.
        if parameters.ndim > 1 or transforming() or z.device.type != "cpu":
            return planar(z, parameters)
        x, log_det = _PlanarFunction.apply(flat(z), parameters)
        return x.view(z.shape), log_det.view(z.shape[:-1])

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, wu = unpack(self.parameters_(context))
        # Along w: with a = w·z, a + w·u tanh(a + b) = w·x.
        a = solve_tanh(dot(x, w), wu, torch.ones_like(wu), b)
        h = torch.tanh(a + b)
        return x - u * h.unsqueeze(-1), -torch.log1p(wu * (1 - h * h))


def unpack(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Planar u, w (*batch, features), b and w·u (*batch,), with u moved along w until w·u > -1 (appendix A.1)."""
    both, b = parameters[..., :-1].unflatten(-1, (2, -1)), parameters[..., -1]
    u, w = both.unbind(-2)
    wu, norm = multiply(both, w).unbind(-1)
    bounded = above_minus_one(wu)
    return u + ((bounded - wu) / (norm + torch.finfo(w.dtype).eps)).unsqueeze(-1) * w, w, b, bounded


def planar(z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The planar map of z (*batch, features) and its log-determinant, in plain operations."""
    u, w, b, wu = unpack(parameters)
    h = torch.tanh(dot(z, w) + b)
    return z + u * h.unsqueeze(-1), torch.log1p(wu * (1 - h * h))


class _PlanarFunction(torch.autograd.Function):
    """`planar` of rows z (n, features) with one set of parameters.

    The few numbers that u, w and b are made into are computed as Python floats: as tensors they would take most of the time.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        both, b = parameters[:-1].view(2, -1), parameters[-1]
        u, w = both.unbind(0)
        wu, norm = (both @ w).tolist()
        norm += torch.finfo(w.dtype).eps
        raw = wu + SOFTPLUS_ONE
        softplus = max(raw, 0) + math.log1p(math.exp(-abs(raw)))
        bounded = (1 - MARGIN) * (softplus - 1)
        along = (bounded - wu) / norm
        moved = torch.add(u, w, alpha=along)
        h = (z @ w).add_(b).tanh_()
        slope = (h * h).neg_().add_(1)
        stretch = slope * bounded
        ctx.save_for_backward(z, parameters, moved, h, slope, stretch)
        ctx.numbers = norm, bounded, along, (1 - MARGIN) * math.exp(raw - softplus)
        return torch.addr(z, h, moved), stretch.log1p()

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        z, parameters, moved, h, slope, stretch = ctx.saved_tensors
        if plain_backward(grad_x, grad_log_det):
            found = differentiable_backward(planar, (z, parameters), (grad_x, grad_log_det))
            return found[0], found[1]
        norm, bounded, along, bounded_slope = ctx.numbers
        u, w = parameters[:-1].view(2, -1).unbind(0)
        share = grad_log_det / (stretch + 1)
        grad_a = torch.addcmul(grad_x @ moved, share, h, value=-2 * bounded).mul_(slope)
        grad = torch.empty_like(parameters)
        grad_u, grad_w = grad[:-1].view(2, -1).unbind(0)
        torch.mv(grad_x.T, h, out=grad_u)
        torch.mv(z.T, grad_a, out=grad_w)
        grad[-1] = grad_a.sum()
        to_bounded, to_along = (share @ slope).item(), (grad_u @ w).item() / norm
        to_wu = (to_bounded + to_along) * bounded_slope - to_along
        # moved = u + along w with along = (bounded(w·u) - w·u) / w·w
        grad_w.add_(grad_u, alpha=along).add_(u, alpha=to_wu).add_(w, alpha=-2 * to_along * along)
        grad_u.add_(w, alpha=to_wu)
        return torch.addr(grad_x, grad_a, w), grad


def dot(x: Tensor, w: Tensor) -> Tensor:
    """x·w (*batch,) of x (*batch, features) with one w (features,), or with one for each x."""
    return x @ w if w.ndim == 1 else (x * w).sum(-1)


class Radial(_Residual):
    """x = z + β (z − c) / (α + ‖z − c‖), with β > -α. Rezende & Mohamed 2015, equation 14.

    The distance to the centre c solves a quadratic equation, so both directions are formulas.

    Args:
        features: Width of noise and data.
        context_features: Width of a context that c, α and β may depend on.
        hidden: Widths of the context network's hidden layers.
        generator: Source of the initial centre; β starts at zero, which makes the layer the identity.
    """

    fast: Fast = "both"

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        centre = torch.empty(features).normal_(generator=generator)
        initial = torch.cat([centre, torch.tensor([SOFTPLUS_ONE, 0.0])])
        super().__init__(features, initial, context_features, hidden, generator)

    def _unpack(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        centre, alpha, beta = self.parameters_(context).split([self.features, 1, 1], -1)
        alpha = F.softplus(alpha.squeeze(-1)) + MARGIN
        return centre, alpha, alpha * above_minus_one(beta.squeeze(-1))

    def _log_det(self, r: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """log|det dx/dz| at distance r: (d - 1) tangential stretches and a radial one."""
        h = 1 / (alpha + r)
        return (self.features - 1) * torch.log1p(beta * h) + torch.log1p(alpha * beta * h * h)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, beta = self._unpack(context)
        r = safe_norm(z - centre)
        return z + (beta / (alpha + r)).unsqueeze(-1) * (z - centre), self._log_det(r, alpha, beta)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, beta = self._unpack(context)
        distance = safe_norm(x - centre)
        # r + β r / (α + r) = distance: the positive root of r² + p r = q, in the form that never cancels.
        p, q = alpha + beta - distance, alpha * distance
        root = (p * p + 4 * q).sqrt()
        r = torch.where(p > 0, 2 * q / (root + p.abs()), (root + p.abs()) / 2)
        z = centre + (x - centre) / (1 + beta / (alpha + r)).unsqueeze(-1)
        return z, -self._log_det(r, alpha, beta)


def safe_norm(v: Tensor) -> Tensor:
    """‖v‖ with a finite gradient at the origin and without overflow of the squares."""
    scale = v.detach().abs().amax(-1, keepdim=True).clamp(min=1)
    tiny = torch.finfo(v.dtype).tiny
    return ((v / scale).square().sum(-1) + tiny).sqrt() * scale.squeeze(-1)


class Sylvester(_Residual):
    """x = z + Q R tanh(R̃ Qᵀz + b): Sylvester flows, van den Berg et al. 2018, "Sylvester normalizing flows", equation 13.

    Q has `directions` orthonormal columns (Householder reflections), R and R̃ are upper triangular with
    R_ii R̃_ii > -1. The inverse solves for v = Qᵀz from the last entry up, one monotone equation each.

    Args:
        features: Width of noise and data.
        directions: Columns of Q, at most `features`; min(features, 8) when None.
        context_features: Width of a context that all parameters may depend on.
        hidden: Widths of the context network's hidden layers.
        generator: Source of the initial Q and R̃; R starts at zero, which makes the layer the identity.
    """

    def __init__(
        self,
        features: int,
        directions: int | None = None,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        m = min(features, 8) if directions is None else directions
        if not 1 <= m <= features:
            raise ValueError(f"directions must be between 1 and features = {features}, not {directions}")
        reflections = torch.empty(m, features).normal_(generator=generator)
        inner = torch.eye(m) + 0.1 * torch.empty(m, m).normal_(generator=generator)
        initial = torch.cat([reflections.flatten(), torch.zeros(m * m), inner.flatten(), torch.zeros(m)])
        super().__init__(features, initial, context_features, hidden, generator)
        self.directions = m

    def _unpack(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q (*batch, features, m), R and R̃ (*batch, m, m), b and diag(R) · diag(R̃) (*batch, m)."""
        m = self.directions
        vectors, outer, inner, b = self.parameters_(context).split([m * self.features, m * m, m * m, m], -1)
        q = reflect(vectors.unflatten(-1, (m, self.features)))[..., :m]
        outer, inner = outer.unflatten(-1, (m, m)), inner.unflatten(-1, (m, m))
        # R̃'s diagonal is positive, and R's is what makes the product exceed -1.
        inner_diagonal = F.softplus(inner.diagonal(dim1=-2, dim2=-1)) + MARGIN
        product = above_minus_one(outer.diagonal(dim1=-2, dim2=-1))
        outer = outer.triu(1) + torch.diag_embed(product / inner_diagonal)
        inner = inner.triu(1) + torch.diag_embed(inner_diagonal)
        return q, outer, inner, b, product

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, outer, inner, b, product = self._unpack(context)
        v = multiply(q.transpose(-1, -2), z)
        h = torch.tanh(multiply(inner, v) + b)
        return z + multiply(q, multiply(outer, h)), torch.log1p(product * (1 - h * h)).sum(-1)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, outer, inner, b, product = self._unpack(context)
        target = multiply(q.transpose(-1, -2), x)
        m = self.directions
        v, h = [torch.zeros_like(target[..., 0])] * m, [torch.zeros_like(target[..., 0])] * m
        for i in reversed(range(m)):
            known = sum((outer[..., i, j] * h[j] for j in range(i + 1, m)), target.new_zeros(()))
            shift = sum((inner[..., i, j] * v[j] for j in range(i + 1, m)), b[..., i])
            v[i] = solve_tanh(target[..., i] - known, outer[..., i, i], inner[..., i, i], shift)
            h[i] = torch.tanh(inner[..., i, i] * v[i] + shift)
        stacked = torch.stack(h, -1)
        z = x - multiply(q, multiply(outer, stacked))
        return z, -torch.log1p(product * (1 - stacked * stacked)).sum(-1)


def multiply(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix (*batch, a, b) times vector (*batch, b), batches broadcast."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
