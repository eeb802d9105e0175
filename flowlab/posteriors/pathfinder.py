"""Pathfinder: Gaussian approximations along the paths of many optimisers, and the modes at which these end.

Zhang, Carpenter, Gelman & Vehtari 2022, "Pathfinder: Parallel quasi-Newton variational inference", but with Newton's
method in place of L-BFGS where there are few parameters. Its curvature comes from finite differences of the gradient.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowlab.layers.scalar.normal import LOG_SQRT_2PI
from flowlab.posteriors.target import PosteriorError, Target

SPREAD = 1.0  # starts are uniform on ± this, in unconstrained space
NEWTON = 100  # parameters up to which the path takes Newton steps
FLAT = 1e-4  # smallest eigenvalue of a scaled precision matrix
MEMORY = 10  # pairs of differences that L-BFGS keeps
DRAWS = 32  # for the evidence bound of a Gaussian on a path
# Nats per parameter that the log-density may fall, on average, from a Gaussian's centre to its draws. Where it fits,
# they are half a nat.
POOR = 10.0


@dataclass
class Gaussian:
    """A Gaussian approximation on a path.

    Attributes:
        mean: Its mean (features,).
        scale_tril: Cholesky factor (features, features) of its covariance.
        elbo: Its evidence lower bound in nats.
        mode: Where the path ended (features,).
    """

    mean: Tensor
    scale_tril: Tensor
    elbo: float
    mode: Tensor


class Differentiable(Protocol):
    """A log-density with its gradient, in whatever coordinates: what ascents need of a target."""

    def __call__(self, z: Tensor, /) -> Tensor: ...

    def value_and_gradient(self, z: Tensor, /) -> tuple[Tensor, Tensor]: ...


class Whitened:
    """A target in whitened coordinates: as a function of u, where z = mean + scale_tril u."""

    def __init__(self, target: Differentiable, mean: Tensor, scale_tril: Tensor) -> None:
        self.target, self.mean, self.scale_tril = target, mean, scale_tril

    def forward(self, u: Tensor) -> Tensor:
        return self.mean + u @ self.scale_tril.T

    def inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril, (z - self.mean).T, upper=False).T

    def __call__(self, u: Tensor) -> Tensor:
        return self.target(self.forward(u))

    def value_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.target.value_and_gradient(self.forward(u))
        return value, gradient @ self.scale_tril


def finite_starts(target: Target, count: int, spread: float, generator: torch.Generator) -> Tensor:
    """Points (count, features) uniform on (−spread, spread) at which the log-density is finite.

    Raises:
        PosteriorError: There are none among 20 · count.
    """
    features = target.space.features
    tries = torch.empty(20 * count, features, dtype=torch.float64).uniform_(-spread, spread, generator=generator)
    found = []
    for some in tries.split(count):
        found += list(some[torch.isfinite(target.value_and_gradient(some)[0])])
        if len(found) >= count:
            return torch.stack(found[:count])
    if found:
        return torch.stack(found)
    raise PosteriorError(
        f"log_prob, or its gradient, is not finite at any of {len(tries)} starting points within ±{spread:g} of zero "
        f"in unconstrained space: {target.describe(tries[:1])}. Check the model there, declare supports=…, or shift "
        "and scale the parameters"
    )


def find(
    target: Target, starts: Tensor, generator: torch.Generator, steps: int = 40, climb: bool = True
) -> list[Gaussian]:
    """The Gaussian of highest evidence bound on the path from each start (n, features), the best first.

    Paths without a finite bound are left out. Above a hundred features L-BFGS ascends first, if `climb`, and Newton's
    method goes on from the best two ends. The curvature at a point is useless where a log-density has kinks: where the
    best Gaussian is far too wide, paths are followed once more, with curvature from differences over whole standard
    deviations.
    """
    if target.space.features > NEWTON and climb:
        ends, heights = ascend(target, starts)
        starts, steps = ends[heights.argsort(descending=True)[:2]], 4
    noise = torch.empty(DRAWS, target.space.features, dtype=torch.float64).normal_(generator=generator)
    found = _newton(target, starts, noise, steps)
    if found and _too_wide(target, found[0], noise):
        found = _newton(target, starts, noise, steps, wide=True) or found
    return found


def separate(target: Target, found: list[Gaussian], share: float = 1e-3) -> list[Gaussian]:
    """One Gaussian for each mode with more than about `share` of the mass, given Gaussians by descending bounds.

    Two belong to one mode if their paths end close to each other, or without a valley of a nat between the ends.
    """
    kept: list[Gaussian] = []
    for candidate in found:
        total = torch.logsumexp(torch.tensor([g.elbo for g in (*kept, candidate)]), 0)
        if kept and candidate.elbo - total < math.log(share):
            continue
        if not any(_same_mode(target, candidate, other) for other in kept):
            kept.append(candidate)
    return kept


def ascend(
    target: Differentiable,
    starts: Tensor,
    mean: Tensor | None = None,
    scale_tril: Tensor | None = None,
    steps: int = 200,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """L-BFGS ascents from all starts at once: their ends (n, features) and the log-densities (n,) there.

    Nocedal & Wright 2006, algorithm 7.4. A path ends where a step gains less than `tolerance` nats. With a mean and a
    Cholesky factor the ascents run in the coordinates that these whiten.
    """
    if mean is not None and scale_tril is not None:
        whitened = Whitened(target, mean, scale_tril)
        whitened_starts = whitened.inverse(starts)
        ends, heights = ascend(whitened, whitened_starts, steps=steps, tolerance=tolerance)
        return whitened.forward(ends), heights
    x = starts.clone()
    value, gradient = target.value_and_gradient(x)
    pairs: list[tuple[Tensor, Tensor]] = []
    active = torch.isfinite(value).nonzero().squeeze(1)
    rates = torch.tensor([0.3, 0.03, 1e-3], dtype=x.dtype)
    for _ in range(steps):
        here, height, slope = x[active], value[active], gradient[active]
        direction = _two_loops(slope, [(s[active], y[active]) for s, y in pairs])
        uphill = (direction * slope).sum(-1, keepdim=True) > 0
        direction = torch.where(uphill, direction, slope)
        if not pairs:
            direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        new, new_height, new_slope = _step(target, here, height, slope, direction, rates)
        better = (new_height > height).unsqueeze(-1)
        moved, turned = torch.zeros_like(x), torch.zeros_like(x)
        moved[active] = torch.where(better, new - here, 0)
        turned[active] = torch.where(better, slope - new_slope, 0)
        pairs = [*pairs, (moved, turned)][-MEMORY:]
        x[active] = torch.where(better, new, here)
        value[active] = torch.maximum(new_height, height)
        gradient[active] = torch.where(better, new_slope, slope)
        active = active[new_height - height > tolerance]
        if len(active) == 0:
            break
    return x, value


def _too_wide(target: Target, found: Gaussian, noise: Tensor) -> bool:
    """Whether the log-density falls much more from the Gaussian's centre to its draws than that of a Gaussian would."""
    values = target(torch.cat([found.mean.unsqueeze(0), found.mean + noise @ found.scale_tril.T]))
    return float(values[0] - values[1:].mean()) > POOR * len(found.mean)


def _newton(target: Target, starts: Tensor, noise: Tensor, steps: int, wide: bool = False) -> list[Gaussian]:
    """The best Gaussian on the path of Newton's method from each start (n, d), the best of all first.

    With `wide`, curvature is measured over a standard deviation, else at a point.
    """
    x = starts.clone()
    n, d = x.shape
    value, gradient = target.value_and_gradient(x)
    width = torch.full_like(x, 1.0 if wide else 1e-4)
    best: list[tuple[float, Tensor, Tensor] | None] = [None] * n  # bound, mean, Cholesky factor
    rates = torch.tensor([0.5, 0.2, 0.05, 0.01, 1e-3, 1e-5], dtype=x.dtype)
    alive = torch.isfinite(value).nonzero().squeeze(1)
    for _ in range(steps):
        here, slope = x[alive], gradient[alive]
        scale_tril, width[alive] = _curvature(target, here, width[alive], wide)
        draws = here.unsqueeze(1) + noise @ scale_tril.mT
        log_g = -noise.square().sum(-1) / 2 - scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        bounds = (target(draws) - log_g).mean(1) + d * LOG_SQRT_2PI
        settling = torch.zeros(len(alive), dtype=torch.bool)
        for j, i in enumerate(alive.tolist()):
            known = best[i]
            if math.isfinite(float(bounds[j])) and (known is None or bounds[j] > known[0]):
                settling[j] = wide  # the widths of differences go on converging where the point has
                best[i] = float(bounds[j]), here[j].clone(), scale_tril[j].clone()
        step = (scale_tril @ (scale_tril.mT @ slope.unsqueeze(-1))).squeeze(-1)
        new, new_value, new_gradient = _step(target, here, value[alive], slope, step, rates)
        gain = new_value - value[alive]
        better = gain > 0
        x[alive] = torch.where(better.unsqueeze(-1), new, here)
        value[alive] = torch.where(better, new_value, value[alive])
        gradient[alive] = torch.where(better.unsqueeze(-1), new_gradient, slope)
        alive = alive[(gain > 1e-3) | settling]
        if len(alive) == 0:
            break
    found = [
        Gaussian(mean, scale_tril, elbo, mode=x[i])
        for i, entry in enumerate(best)
        if entry is not None
        for elbo, mean, scale_tril in [entry]
    ]
    return sorted(found, key=lambda g: -g.elbo)


def _curvature(target: Target, x: Tensor, width: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """Cholesky factors (n, d, d) of the inverse negative Hessian at x (n, d), and widths (n, d) for more differences.

    The widths are the standard deviations where `wide`, else a thousandth of them. Where the log-density is not
    concave, eigenvalues of the Hessian are replaced by their absolute values.
    """
    n, d = x.shape
    shift = torch.diag_embed(width)
    points = torch.cat([x.unsqueeze(1) + shift, x.unsqueeze(1) - shift])
    up, down = target.value_and_gradient(points.reshape(-1, d))[1].reshape(2, n, d, d)
    precision = (down - up) / (2 * width.unsqueeze(-1))
    precision = (precision + precision.mT) / 2
    scale = precision.diagonal(dim1=-2, dim2=-1).abs().clamp(1e-12, 1e16).rsqrt()
    scaled = scale.unsqueeze(-1) * precision * scale.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(scaled)
    values = values.abs().clamp(min=FLAT)
    scale_tril = scale.unsqueeze(-1) * triangular(vectors / values.sqrt().unsqueeze(-2))
    return scale_tril, scale if wide else (1e-3 * scale).clamp(1e-8, 1e-2)


def triangular(matrix: Tensor) -> Tensor:
    """The Cholesky factors of matrix matrixᵀ (*, d, d), by QR: without the product, any condition number will do."""
    factor = torch.linalg.qr(matrix.mT).R.mT
    return factor * factor.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _step(
    target: Differentiable, x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, rates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take a step from every x (n, d); returns the new points with their log-densities and gradients.

    The full direction where Armijo's rule holds; elsewhere the highest of the full step and the points x + rate ·
    direction.
    """
    new = x + direction
    new_value, new_gradient = target.value_and_gradient(new)
    enough = new_value - value > 1e-4 * (direction * gradient).sum(-1)
    short = (~enough).nonzero().squeeze(1)
    if len(short):
        points = x[short] + rates.view(-1, 1, 1) * direction[short]
        values = torch.cat([new_value[short].unsqueeze(0), target(points).detach()])
        choice = values.argmax(0)
        new[short] = torch.cat([new[short].unsqueeze(0), points])[choice, torch.arange(len(short))]
        again = short[choice > 0]
        if len(again):
            new_value[again], new_gradient[again] = target.value_and_gradient(new[again])
    return new, new_value, new_gradient


def _two_loops(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The L-BFGS ascent direction (n, d) by the two-loop recursion; a row skips pairs without positive curvature."""
    q = gradient
    coefficients = []
    scale = torch.ones_like(gradient[:, :1])
    for s, y in pairs:
        sy = (s * y).sum(-1, keepdim=True)
        useful = sy > 1e-12 * (y * y).sum(-1, keepdim=True)
        scale = torch.where(useful, sy / (y * y).sum(-1, keepdim=True).clamp(min=1e-300), scale)
        coefficients.append(torch.where(useful, 1 / sy.clamp(min=1e-300), 0))
    alphas = []
    for (s, y), rho in reversed(list(zip(pairs, coefficients, strict=True))):
        alphas.append(rho * (s * q).sum(-1, keepdim=True))
        q = q - alphas[-1] * y
    r = scale * q
    for (s, y), rho, alpha in zip(pairs, coefficients, reversed(alphas), strict=True):
        r = r + s * (alpha - rho * (y * r).sum(-1, keepdim=True))
    return r


def _same_mode(target: Target, a: Gaussian, b: Gaussian) -> bool:
    """Whether two paths ended at one mode."""
    apart = torch.linalg.solve_triangular(b.scale_tril, (a.mode - b.mode).unsqueeze(-1), upper=False)
    if float(apart.square().sum()) < 0.01 * len(a.mode):
        return True
    return not valley(target, a.mode, b.mode)


def valley(target: Target, a: Tensor, b: Tensor) -> bool:
    """Whether the log-density falls more than a nat below both points (features,) somewhere between them."""
    steps = torch.linspace(0, 1, 33, dtype=a.dtype).unsqueeze(-1)
    along = target((1 - steps) * a + steps * b)
    return float(along.min()) < float(torch.minimum(along[0], along[-1])) - 1.0
