"""Linear layers: permutations, triangular and orthogonal maps, elementwise scaling, and whitening fitted to data."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from flowlab.arguments import is_whole, real, whole, widths
from flowlab.layers.layer import Layer, flat, zero_log_det
from flowlab.layers.scalar.affine import Affine
from flowlab.networks import ContextParameters

SOFTPLUS_ONE = math.log(math.e - 1)  # softplus of it is 1


class Permutation(Layer):
    """Reorders features: data feature i is noise feature `permutation[i]`.

    Args:
        features: Width of noise and data.
        permutation: The permutation; drawn from `generator` when None.
        generator: Source of a random permutation.
    """

    permutation: Tensor
    back: Tensor

    def __init__(
        self, features: int, permutation: Sequence[int] | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.features = features = whole("features", features)
        if permutation is None:
            permutation = torch.randperm(features, generator=generator, device="cpu").tolist()
        permutation = ordering("permutation", permutation, features)
        self.register_buffer("permutation", torch.tensor(permutation))
        self.register_buffer("back", torch.tensor(permutation).argsort())

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.index_select(-1, self.permutation), zero_log_det(z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.back), zero_log_det(x)

    def support(self, noise: constraints.Constraint) -> constraints.Constraint:
        return noise


def ordering(name: str, value: Any, features: int) -> list[int]:
    """A permutation of 0 … features − 1, as a list."""
    numbers = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(numbers, Iterable) or not all(map(is_whole, numbers)) or sorted(numbers) != list(range(features)):
        raise ValueError(f"{name} must be a permutation of 0 … {features - 1}, not {value!r}")
    return [int(i) for i in numbers]


class LULinear(Layer):
    """x = L U z + shift, with a unit lower and a positive upper triangular factor.

    Kingma & Dhariwal 2018, "Glow", section 3.2, without its permutation; the diagonal of U is
    softplus(·), so that the map can be neither singular nor flip sign. The inverse is two triangular solves.

    Args:
        features: Width of noise and data.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features = whole("features", features)
        self.lower = nn.Parameter(torch.zeros(features, features))  # the strict lower triangle counts
        self.upper = nn.Parameter(torch.zeros(features, features))  # the strict upper triangle counts
        self.diagonal = nn.Parameter(torch.full((features,), SOFTPLUS_ONE))
        self.shift = nn.Parameter(torch.zeros(features))

    @classmethod
    @torch.no_grad()
    def from_factors(cls, lower: Tensor, upper: Tensor, shift: Tensor) -> Self:
        """The layer of a unit lower and a positive upper triangular matrix (features, features) and a shift.

        It has the floating-point type and the device of `shift`.
        """
        layer = cls(len(shift)).to(shift)
        layer.lower.copy_(lower.tril(-1))
        layer.upper.copy_(upper.triu(1))
        layer.diagonal.copy_(upper.diagonal().expm1().log())  # softplus's inverse
        layer.shift.copy_(shift)
        return layer

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """L, U and the diagonal of U."""
        diagonal = F.softplus(self.diagonal) + torch.finfo(self.diagonal.dtype).tiny
        eye = torch.eye(self.features, dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + diagonal.diag(), diagonal

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper, diagonal = self.factors()
        return z @ (lower @ upper).T + self.shift, diagonal.log().sum().expand(z.shape[:-1])

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper, diagonal = self.factors()
        z = solve_rows(lower, x - self.shift, upper=False)
        return solve_rows(upper, z, upper=True), (-diagonal.log().sum()).expand(x.shape[:-1])


def solve_rows(triangular: Tensor, rows: Tensor, upper: bool) -> Tensor:
    """The z with `triangular @ z = row` for every row."""
    # Rows from the left: z Tᵀ = row, and Tᵀ has the other triangle.
    flat_rows = flat(rows)  # one solve for all: a batch of solves would copy the matrix for every row
    return torch.linalg.solve_triangular(triangular.T, flat_rows, upper=not upper, left=False).view(rows.shape)


class Householder(Layer):
    """An orthogonal map: a product of reflections. Tomczak & Welling 2016, "Improving VAEs using Householder flow".

    Reflections come in equal pairs at first, which makes the layer the identity.

    Args:
        features: Width of noise and data.
        reflections: Number of reflections, even; the even number next to `features` when None.
        generator: Source of the reflections' directions.
    """

    def __init__(
        self, features: int, reflections: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.features = features = whole("features", features)
        self.reflections = features + features % 2 if reflections is None else whole("reflections", reflections, 2)
        if self.reflections % 2:
            raise ValueError(f"reflections must be a positive even number, not {reflections}")
        pairs = torch.empty(self.reflections // 2, features).normal_(generator=generator)
        self.vectors = nn.Parameter(pairs.repeat_interleave(2, 0))

    @classmethod
    @torch.no_grad()
    def from_vectors(cls, vectors: Tensor) -> Self:
        """The product of the reflections of vectors (reflections, features), in their floating-point type."""
        count, features = vectors.shape
        layer = cls(features, count, generator=torch.Generator()).to(vectors)
        layer.vectors.copy_(vectors)
        return layer

    def matrix(self) -> Tensor:
        return reflect(self.vectors)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z @ self.matrix().T, zero_log_det(z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x @ self.matrix(), zero_log_det(x)

    def extra_repr(self) -> str:
        return f"{self.features}, reflections={self.reflections}"


def reflect(vectors: Tensor) -> Tensor:
    """The product (*batch, features, features) of reflections of vectors (*batch, reflections, features)."""
    unit = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    matrix = torch.eye(vectors.shape[-1], dtype=vectors.dtype, device=vectors.device)
    for v in unit.unbind(-2):
        matrix = matrix - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ matrix)
    return matrix


class ElementwiseAffine(Layer):
    """x = z · exp(s) + shift for each feature alone, with a soft-clamped log-scale (see `Affine`).

    Args:
        features: Width of noise and data.
        context_features: Width of a context that shift and log-scale may depend on.
        hidden: Widths of the context network's hidden layers.
        bound: Largest |log-scale|, in nats.
        generator: Source of the context network's initial weights.
    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: int | Sequence[int] = (64,),
        bound: float = 30.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features, self.context_features = (
            whole("features", features),
            whole("context_features", context_features, 0),
        )
        self.hidden, self.bound = widths(hidden), real("bound", bound, 0)
        start = torch.zeros(2 * self.features)
        self.parameters_ = ContextParameters(start, self.context_features, self.hidden, generator)

    @classmethod
    @torch.no_grad()
    def from_moments(cls, mean: Tensor, log_scale: Tensor, bound: float | None = None) -> Self:
        """The layer x = mean + z · exp(log_scale), without a context, in the floating-point type of `mean`.

        Args:
            mean: The shift (features,).
            log_scale: The log-scale (features,), in nats.
            bound: Largest |log-scale|; larger ones count as that. Twice the largest, at least 30, when None.
        """
        bound = max(30.0, 2 * float(log_scale.abs().max())) if bound is None else bound
        layer = cls(len(mean), bound=bound).to(mean)
        layer.parameters_.value.copy_(torch.cat([mean, layer.raw(log_scale)]))
        return layer

    def raw(self, log_scale: Tensor) -> Tensor:
        """The soft clamp's inverse: parameters whose log-scale is the given one."""
        return (log_scale / self.bound).clamp(-0.999, 0.999).atanh() * self.bound

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_scale = Affine(self.bound).forward(z, self._params(context))
        return x, log_scale.sum(-1).expand(z.shape[:-1])

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_scale = Affine(self.bound).inverse(x, self._params(context))
        return z, log_scale.sum(-1).expand(x.shape[:-1])

    def _params(self, context: Tensor | None) -> Tensor:
        return self.parameters_(context).unflatten(-1, (2, self.features)).movedim(-2, 0)


class ActNorm(ElementwiseAffine):
    """An `ElementwiseAffine` that `fit` starts with the data's mean and standard deviation.

    Kingma & Dhariwal 2018, section 3.1. A standard deviation outside exp(±bound) counts as that. Initialisation is
    explicit, and remembered in the buffer `initialised`, so that a loaded model keeps its values.

    Args:
        features: Width of noise and data.
        bound: Largest |log-scale|, in nats.
    """

    initialised: Tensor

    def __init__(self, features: int, *, bound: float = 30.0) -> None:
        super().__init__(features, bound=bound)
        self.register_buffer("initialised", torch.tensor(False))

    @classmethod
    def from_moments(cls, mean: Tensor, log_scale: Tensor, bound: float | None = None) -> Self:
        """As `ElementwiseAffine.from_moments`; `fit` leaves the layer as it is."""
        layer = super().from_moments(mean, log_scale, bound)
        layer.initialised.fill_(True)
        return layer

    def initialise(self, x: Tensor) -> None:
        mean, scale = mean_and_scale(x)
        log_scale = self.raw(scale.log())
        with torch.no_grad():
            self.parameters_.value.copy_(torch.cat([mean, log_scale]))
            self.initialised.fill_(True)


def mean_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, the latter 1 where a column is constant."""
    mean = x.mean(0)
    scale = (x - mean).square().mean(0).sqrt()
    constant = scale <= torch.finfo(x.dtype).eps * (mean.abs() + torch.finfo(x.dtype).tiny) * 8
    return mean, torch.where(constant, torch.ones_like(scale), scale)


class Whitening(Layer):
    """x = mean + L z, fitted to data: z has mean zero and unit covariance.

    L is the Cholesky factor of the covariance; eigenvalues below `floor` times the largest, of the correlation
    matrix, are raised to it, so that collinear columns stay invertible.

    Args:
        features: Width of noise and data.
        floor: Smallest share of an eigenvalue.
    """

    initialised: Tensor
    mean: Tensor
    scale_tril: Tensor

    def __init__(self, features: int, *, floor: float = 1e-9) -> None:
        super().__init__()
        self.features, self.floor = whole("features", features), real("floor", floor, 0, 1)
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("scale_tril", torch.eye(self.features))

    @classmethod
    @torch.no_grad()
    def from_moments(cls, mean: Tensor, scale_tril: Tensor) -> Self:
        """The layer x = mean + scale_tril · z, of (features,) and (features, features); `fit` leaves it as it is.

        It has the floating-point type and the device of `mean`.

        Example:
            >>> import torch, flowlab
            >>> layer = flowlab.layers.Whitening.from_moments(torch.tensor([1.0, 2.0]), 3 * torch.eye(2))
            >>> layer(torch.ones(2))[0]
            tensor([4., 5.])
        """
        layer = cls(len(mean)).to(mean)
        layer.mean.copy_(mean)
        layer.scale_tril.copy_(scale_tril)
        layer.initialised.fill_(True)
        return layer

    def initialise(self, x: Tensor) -> None:
        # In double precision: a covariance in single precision loses half of its seven digits.
        mean, scale = mean_and_scale(x.double())
        z = (x.double() - mean) / scale
        correlation = z.T @ z / max(len(z), 1)
        correlation = correlation + (correlation.diagonal() < 0.5).double().diag()  # a constant column gets variance 1
        values, vectors = torch.linalg.eigh(correlation)
        values = values.clamp(min=self.floor * float(values.max()))
        correlation = (vectors * values) @ vectors.T
        with torch.no_grad():
            self.mean.copy_(mean)
            self.scale_tril.copy_(scale[:, None] * torch.linalg.cholesky(correlation))
            self.initialised.fill_(True)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z @ self.scale_tril.T + self.mean, self._log_det().expand(z.shape[:-1])

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return solve_rows(self.scale_tril, x - self.mean, upper=False), (-self._log_det()).expand(x.shape[:-1])

    def _log_det(self) -> Tensor:
        return self.scale_tril.diagonal().log().sum()
