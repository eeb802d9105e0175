"""Planar, radial and Sylvester layers: a residual step along few directions, invertible by parametrisation.

Sampling is a formula. Density inverts one-dimensional monotone equations (`root.solve`), with exact first derivatives.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.arguments import whole, widths
from flowlab.kernels import differentiable_backward, plain_backward, transforming
from flowlab.layers.layer import Fast, Layer, flat, zero_log_det
from flowlab.layers.linear import SOFTPLUS_ONE, reflect
from flowlab.layers.root_finding import solve
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
        hidden: int | Sequence[int],
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.features, self.hidden = features, widths(hidden)
        self.context_features = whole("context_features", context_features, 0)
        self.parameters_ = ContextParameters(initial, self.context_features, self.hidden, generator)


class Planar(_Residual):
    """x = z + u tanh(w·z + b), with w·u > -1, `steps` times.

    Rezende & Mohamed 2015, "Variational inference with normalizing flows", equation 10.

    Steps of one layer cost far less than as many layers: a step sees z only through w·z, and what earlier steps add to
    that are numbers w·u.

    Args:
        features: Width of noise and data.
        steps: Planar maps, one after another, each with its own u, w and b.
        context_features: Width of a context that u, w and b may depend on, by one network for all steps.
        hidden: Widths of the context network's hidden layers.
        generator: Source of the initial directions w; u starts at zero, which makes the layer the identity.

    Example:
        >>> import torch, flowlab
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.Planar(2, steps=16)])
        >>> x, log_prob = flow.rsample_and_log_prob((5,))
        >>> x.shape, log_prob.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        steps: int = 1,
        *,
        context_features: int = 0,
        hidden: int | Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        features, steps = whole("features", features), whole("steps", steps)
        w = torch.empty(steps * features).normal_(generator=generator)
        initial = torch.cat([torch.zeros_like(w), w, torch.zeros(steps)])
        super().__init__(features, initial, context_features, hidden, generator)
        self.steps = steps

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parameters = self.parameters_(context)
        if parameters.ndim > 1 or transforming():
            return planar(z, parameters)
        x, log_det = _PlanarFunction.apply(flat(z), parameters)
        return x.view(z.shape), log_det.view(z.shape[:-1])

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        steps = unpack(self.parameters_(context), self.features)
        log_det = zero_log_det(x)
        for u, w, b, wu in reversed(list(zip(*steps, strict=True))):
            # Along w: with a = w·z, a + w·u tanh(a + b) = w·x.
            a = solve_tanh(dot(x, w), wu, torch.ones_like(wu), b)
            h = torch.tanh(a + b)
            x, log_det = x - u * h.unsqueeze(-1), log_det - torch.log1p(wu * (1 - h * h))
        return x, log_det

    def extra_repr(self) -> str:
        return f"{self.features}, {self.steps} step{'s' if self.steps > 1 else ''}"


def split(parameters: Tensor, features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unconstrained u and w (steps, *batch, features) and b (steps, *batch).

    Of planar parameters (*batch, steps (2 features + 1)).
    """
    steps = parameters.shape[-1] // (2 * features + 1)
    directions = parameters[..., : 2 * steps * features].unflatten(-1, (2, steps, features))
    u, w = directions.movedim((-3, -2), (0, 1))
    return u, w, parameters[..., -steps:].movedim(-1, 0)


def unpack(parameters: Tensor, features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Like `split`, with u moved along w until w·u > -1 (appendix A.1), and w·u (steps, *batch) besides."""
    u, w, b = split(parameters, features)
    wu, norm = (u * w).sum(-1), (w * w).sum(-1)
    bounded = above_minus_one(wu)
    return u + ((bounded - wu) / (norm + torch.finfo(w.dtype).eps)).unsqueeze(-1) * w, w, b, bounded


def planar(z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The planar maps of z (*batch, features) and their log-determinant, in plain operations."""
    log_det = zero_log_det(z)
    for u, w, b, wu in zip(*unpack(parameters, z.shape[-1]), strict=True):
        h = torch.tanh(dot(z, w) + b)
        z, log_det = z + u * h.unsqueeze(-1), log_det + torch.log1p(wu * (1 - h * h))
    return z, log_det


class _PlanarFunction(torch.autograd.Function):
    """`planar` of rows z (n, features) with one set of parameters.

    Step k needs a_k = w_k·z_k + b_k alone, and z_k = z + Σ_{j<k} h_j u_j, so a_k = w_k·z + b_k + Σ_{j<k} h_j w_k·u_j:
    one product for all w_k·z, a small one for all w_k·u_j, and rows of length n for the rest.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        u, w, b = split(parameters, z.shape[1])
        wu, norm = (u * w).sum(1), (w * w).sum(1).add_(torch.finfo(w.dtype).eps)
        bounded = above_minus_one(wu)
        along = (bounded - wu) / norm
        moved = torch.addcmul(u, along[:, None], w)
        mixed = w @ moved.T
        h = torch.addmm(b[:, None], w, z.T)
        h[0].tanh_()
        for k in range(1, len(h)):
            h[k].addmv_(h[:k].T, mixed[k, :k]).tanh_()
        slope = (h * h).neg_().add_(1)
        stretch = slope * bounded[:, None]
        ctx.save_for_backward(z, parameters, moved, mixed, h, slope, stretch, wu, norm, bounded, along)
        return torch.addmm(z, h.T, moved), stretch.log1p().sum(0)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        z, parameters, moved, mixed, h, slope, stretch, wu, norm, bounded, along = ctx.saved_tensors
        if plain_backward(grad_x, grad_log_det):
            found = differentiable_backward(planar, (z, parameters), (grad_x, grad_log_det))
            return found[0], found[1]
        u, w, _ = split(parameters, z.shape[1])
        share = grad_log_det / (stretch + 1)
        grad_bounded = (share * slope).sum(1)
        grad_a = torch.addmm((share * h).mul_(bounded[:, None]), moved, grad_x.T, beta=-2).mul_(slope)
        for k in range(len(h) - 2, -1, -1):
            later = torch.mv(grad_a[k + 1 :].T, mixed[k + 1 :, k])
            grad_a[k].addcmul_(later, slope[k])
        grad_mixed = (grad_a @ h.T).tril_(-1)
        grad = torch.empty_like(parameters)
        grad_u, grad_w, grad_b = split(grad, z.shape[1])
        torch.sum(grad_a, 1, out=grad_b)
        grad_u.copy_(torch.addmm(grad_mixed.T @ w, h, grad_x))
        grad_w.copy_(torch.addmm(grad_mixed @ moved, grad_a, z))
        # moved = u + along w with along = (bounded - w·u) / (w·w + eps)
        to_along = (grad_u * w).sum(1) / norm
        to_wu = (grad_bounded + to_along) * (1 - MARGIN) * torch.sigmoid(wu + SOFTPLUS_ONE) - to_along
        grad_w.addcmul_(grad_u, along[:, None]).addcmul_(u, to_wu[:, None])
        grad_w.addcmul_(w, (to_along * along)[:, None], value=-2)
        grad_u.addcmul_(w, to_wu[:, None])
        return torch.addmm(grad_x, grad_a.T, w), grad


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
        hidden: int | Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        features = whole("features", features)
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
    """x = z + Q R tanh(R̃ Qᵀz + b). Van den Berg et al. 2018, "Sylvester normalizing flows", equation 13.

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
        hidden: int | Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ) -> None:
        features = whole("features", features)
        m = min(features, 8) if directions is None else whole("directions", directions)
        if m > features:
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
        # Where products may leave the range of the type, what a tanh adds is far below the rounding of Qᵀx.
        vast = ~(target.abs() <= torch.finfo(x.dtype).max ** 0.5).all(-1, keepdim=True)
        target = torch.where(vast, 0, target)
        m = self.directions
        v, h = [torch.zeros_like(target[..., 0])] * m, [torch.zeros_like(target[..., 0])] * m
        for i in reversed(range(m)):
            known = sum((outer[..., i, j] * h[j] for j in range(i + 1, m)), target.new_zeros(()))
            shift = sum((inner[..., i, j] * v[j] for j in range(i + 1, m)), b[..., i])
            v[i] = solve_tanh(target[..., i] - known, outer[..., i, i], inner[..., i, i], shift)
            h[i] = torch.tanh(inner[..., i, i] * v[i] + shift)
        stacked = torch.where(vast, 1, torch.stack(h, -1))
        z = x - multiply(q, multiply(outer, stacked))
        return z, -torch.log1p(product * (1 - stacked * stacked)).sum(-1)


def multiply(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix (*batch, a, b) times vector (*batch, b), batches broadcast."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
