"""Base distributions: where the noise of a flow comes from."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from flowlab.arguments import real, sizes, whole
from flowlab.kernels import transforming
from flowlab.layers.linear import SOFTPLUS_ONE
from flowlab.layers.scalar.normal import LOG_SQRT_2PI, inverse_log_cdf
from flowlab.torch_internals import standard_gamma

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture as SklearnMixture


__all__ = ["Base", "Gaussian", "GaussianMixture", "Kernels", "StudentT", "Uniform"]


def __dir__() -> list[str]:
    """The bases, for tab completion."""
    return __all__


class Base(nn.Module):
    """A distribution over noise z (*batch, features).

    Subclasses write `log_prob`, `rsample` and, to be fitted by `FlowDensity`, `to_normal`; `sample` is `rsample`
    without a gradient.

    Attributes:
        features: Width of the noise.
        has_rsample: Whether samples carry gradients of the base's own parameters.
    """

    features: int
    has_rsample: ClassVar[bool] = True

    @property
    def support(self) -> constraints.Constraint:
        """Where the noise lies."""
        return constraints.real_vector

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats, (*batch,)."""
        raise NotImplementedError

    def rsample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draws (*shape, features), differentiable in the base's parameters."""
        raise NotImplementedError

    def sample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draws (*shape, features) without a gradient."""
        with torch.no_grad():
            return self.rsample(sizes(shape), generator)

    def to_normal(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise z (*batch, features) as standard normal noise, drawn where several values would do."""
        raise NotImplementedError(f"{type(self).__name__} cannot be turned into standard normal noise: write to_normal")

    def extra_repr(self) -> str:
        return str(self.features)


class Gaussian(Base):
    """Independent normal noise, standard at first.

    Args:
        features: Width of the noise.
        learnable: Whether location and scale are trained.

    Example:
        >>> import torch, flowlab
        >>> flowlab.bases.Gaussian(2).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, features: int, *, learnable: bool = False) -> None:
        super().__init__()
        self.features, self.learnable = whole("features", features), learnable
        for name in ("loc", "log_scale"):
            if learnable:
                self.register_parameter(name, nn.Parameter(torch.zeros(self.features)))
            else:
                self.register_buffer(name, torch.zeros(self.features))

    @classmethod
    @torch.no_grad()
    def from_moments(cls, loc: Tensor, log_scale: Tensor) -> Self:
        """Learnable noise of given location and log-scale (features,), in the location's floating-point type."""
        base = cls(len(loc), learnable=True).to(loc)
        base.loc.copy_(loc)
        base.log_scale.copy_(log_scale)
        return base

    def log_prob(self, z: Tensor) -> Tensor:
        if self.learnable:
            z = (z - self.loc) * (-self.log_scale).exp()
        log_prob = -z.square().sum(-1) / 2 - self.features * LOG_SQRT_2PI
        return log_prob - self.log_scale.sum() if self.learnable else log_prob

    def rsample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        noise = self.loc.new_empty((*sizes(shape), self.features)).normal_(generator=generator)
        return self.loc + self.log_scale.exp() * noise if self.learnable else noise

    def to_normal(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (z - self.loc) * (-self.log_scale).exp() if self.learnable else z


class StudentT(Base):
    """Independent Student-t noise with learnable degrees of freedom for each feature, for heavy tails.

    Args:
        features: Width of the noise.
        df: Initial degrees of freedom, above `min_df`.
        min_df: Smallest degrees of freedom.
    """

    def __init__(self, features: int, *, df: float = 10.0, min_df: float = 0.5) -> None:
        super().__init__()
        df, min_df = real("df", df), real("min_df", min_df)
        if not df > min_df > 0:
            raise ValueError(f"df must exceed min_df > 0, not df={df}, min_df={min_df}")
        self.features, self.df, self.min_df = whole("features", features), df, min_df
        raw = math.log(math.expm1(df - min_df)) if df - min_df < 30 else df - min_df  # softplus's inverse
        self.raw_df = nn.Parameter(torch.full((self.features,), raw))

    def degrees_of_freedom(self) -> Tensor:
        """The current degrees of freedom, (features,)."""
        return F.softplus(self.raw_df) + self.min_df

    def log_prob(self, z: Tensor) -> Tensor:
        df = self.degrees_of_freedom()
        # The difference of two log-gammas loses its digits where both are large: there, Stirling's series.
        few = df.clamp(max=100)
        gammas = torch.lgamma((few + 1) / 2) - torch.lgamma(few / 2)
        gammas = torch.where(df <= 100, gammas, (df / 2).log() / 2 - 1 / (4 * df) + 1 / (24 * df**3))
        constant = gammas - (df * math.pi).log() / 2
        # log(1 + z²/df) without overflow of the square.
        tail = torch.where(
            z.abs() < 1e6, torch.log1p(z.clamp(-1e6, 1e6).square() / df), 2 * z.abs().clamp(min=1).log() - df.log()
        )
        return (constant - (df + 1) / 2 * tail).sum(-1)

    def rsample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        df = self.degrees_of_freedom().expand(*sizes(shape), self.features)
        noise = torch.empty_like(df).normal_(generator=generator)
        gamma = standard_gamma(df / 2, generator)
        return noise * (df / 2 / gamma.clamp(min=torch.finfo(df.dtype).tiny)).sqrt()

    @torch.no_grad()
    def to_normal(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        from scipy.stats import t

        # By the tail on the value's own side, where probabilities have digits.
        tail = t.logsf(z.abs().cpu().double().numpy(), self.degrees_of_freedom().detach().cpu().double().numpy())
        return (-inverse_log_cdf(torch.as_tensor(tail).to(z))).copysign(z)


class Uniform(Base):
    """Uniform noise on a box, log_prob -inf outside. Circular flows use [-π, π).

    Args:
        features: Width of the noise.
        low: Lower end of every side.
        high: Upper end of every side.
    """

    like: Tensor

    def __init__(self, features: int, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        low, high = real("low", low), real("high", high)
        if not low < high:
            raise ValueError(f"low must be below high, not low={low}, high={high}")
        self.features, self.low, self.high = whole("features", features), low, high
        self.register_buffer("like", torch.zeros(()))  # has the floating-point type and the device of the draws

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def log_prob(self, z: Tensor) -> Tensor:
        inside = (z >= self.low) & (z <= self.high)
        # A zero that depends on z keeps gradients defined (as zero) everywhere.
        zero = 0 * torch.where(inside, z, self.low).sum(-1)
        return zero + torch.where(inside.all(-1), zero - self.features * math.log(self.high - self.low), -math.inf)

    def rsample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        return self.like.new_empty((*sizes(shape), self.features)).uniform_(self.low, self.high, generator=generator)

    def to_normal(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.special.ndtri((z - self.low) / (self.high - self.low))


class GaussianMixture(Base):
    """A mixture of full-covariance Gaussians with learnable weights, means and covariances.

    `rsample` is differentiable by implicit reparameterization: the conditional distribution functions of a
    sample stay what they were while the parameters move (Figurnov et al. 2018, "Implicit reparameterization gradients",
    section 3.1).

    Args:
        features: Width of the noise.
        components: Number of components.
        generator: Source of the initial means, standard normal; covariances start as unit matrices.

    Example:
        >>> import numpy as np, sklearn.mixture, flowlab
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> fitted = sklearn.mixture.GaussianMixture(3, random_state=0).fit(x)
        >>> base = flowlab.bases.GaussianMixture.from_sklearn(fitted)
        >>> bool(abs(base.log_prob(torch.tensor(x)).mean() - fitted.score(x)) < 1e-9)
        True
    """

    def __init__(self, features: int, components: int = 8, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.features, self.components = features, components = (
            whole("features", features),
            whole("components", components),
        )
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.empty(components, features).normal_(generator=generator))
        self.lower = nn.Parameter(torch.zeros(components, features, features))  # the strict lower triangles count
        self.diagonal = nn.Parameter(torch.full((components, features), SOFTPLUS_ONE))

    @classmethod
    def from_sklearn(cls, mixture: "SklearnMixture") -> "GaussianMixture":
        """The base with the density of a fitted scikit-learn mixture of any covariance type, in float64."""
        components, features = mixture.means_.shape
        covariance = torch.as_tensor(mixture.covariances_, dtype=torch.float64)
        eye = torch.eye(features, dtype=torch.float64)
        if mixture.covariance_type == "tied":
            covariance = covariance.expand(components, features, features)
        elif mixture.covariance_type == "diag":
            covariance = torch.diag_embed(covariance)
        elif mixture.covariance_type == "spherical":
            covariance = covariance[:, None, None] * eye
        means = torch.as_tensor(mixture.means_, dtype=torch.float64)
        return cls.from_moments(torch.as_tensor(mixture.weights_).log(), means, torch.linalg.cholesky(covariance))

    @classmethod
    @torch.no_grad()
    def from_moments(cls, logits: Tensor, means: Tensor, scale_tril: Tensor) -> Self:
        """The mixture of given components, in the floating-point type and on the device of `means`.

        Args:
            logits: Logarithms of the weights (components,), up to a constant.
            means: Means (components, features).
            scale_tril: Cholesky factors of the covariances (components, features, features).
        """
        components, features = means.shape
        # The means are replaced: torch's global generator shall not be drawn from.
        base = cls(features, components, generator=torch.Generator()).to(means)
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
        base.logits.copy_(logits)
        base.means.copy_(means)
        base.lower.copy_(scale_tril)
        base.diagonal.copy_(diagonal + torch.log(-torch.expm1(-diagonal)))  # softplus's inverse
        return base

    def scale_tril(self) -> Tensor:
        """Cholesky factors of the covariances (components, features, features)."""
        return self.lower.tril(-1) + torch.diag_embed(F.softplus(self.diagonal) + torch.finfo(self.lower.dtype).tiny)

    def _standardised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """L⁻¹(z − μ) (*batch, components, features) and log of the diagonal of L (components, features)."""
        scale_tril = self.scale_tril()
        centred = (z.unsqueeze(-2) - self.means).unsqueeze(-1)
        u = torch.linalg.solve_triangular(scale_tril, centred, upper=False).squeeze(-1)
        return u, scale_tril.diagonal(dim1=-2, dim2=-1).log()

    def log_prob(self, z: Tensor) -> Tensor:
        u, log_diagonal = self._standardised(z)
        terms = -u.square().sum(-1) / 2 - log_diagonal.sum(-1) + self.logits.log_softmax(0)
        return terms.logsumexp(-1) - self.features * LOG_SQRT_2PI

    @torch.no_grad()
    def to_normal(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u, log_diagonal = self._standardised(z)
        shares = (-u.square().sum(-1) / 2 - log_diagonal.sum(-1) + self.logits.log_softmax(0)).softmax(-1)
        which = torch.multinomial(shares.reshape(-1, self.components), 1, generator=generator)
        index = which.view(*z.shape[:-1], 1, 1).expand(*z.shape[:-1], 1, self.features)
        return u.gather(-2, index).squeeze(-2)

    def conditional_cdf(self, z: Tensor) -> Tensor:
        """F_i(z_i | z_1 … z_{i-1}) for every feature, (*batch, features)."""
        u, log_diagonal = self._standardised(z)
        log_terms = -u.square() / 2 - log_diagonal
        # A component's weight for feature i is its weight times its density of the features before i.
        before = log_terms.cumsum(-1) - log_terms
        weights = torch.softmax(before + self.logits.log_softmax(0).unsqueeze(-1), dim=-2)
        return (weights * torch.special.ndtr(u)).sum(-2)

    def rsample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        z = self._draw(shape, generator)
        if not torch.is_grad_enabled() or z.numel() == 0:
            return z
        # Implicit reparameterization: with F(z; θ) fixed, dz = -(∂F/∂z)⁻¹ ∂F/∂θ dθ; ∂F/∂z is lower triangular.
        rows = z.reshape(-1, self.features)
        with torch.no_grad():
            jacobian = torch.func.vmap(torch.func.jacrev(self.conditional_cdf))(rows)
            diagonal = jacobian.diagonal(dim1=-2, dim2=-1)
            floor = torch.finfo(z.dtype).tiny ** 0.5
            jacobian = jacobian.tril() + torch.diag_embed((floor - diagonal).clamp(min=0))
        cdf = self.conditional_cdf(rows)
        moved = solve_batch(jacobian, cdf - cdf.detach())
        return (rows - moved).view(z.shape)

    @torch.no_grad()
    def _draw(self, shape: int | Sequence[int], generator: torch.Generator | None) -> Tensor:
        shape = sizes(shape)
        n = math.prod(shape)
        weights = self.logits.softmax(0)
        which = (
            torch.multinomial(weights, n, replacement=True, generator=generator) if n else weights.new_zeros(0).long()
        )
        noise = self.means.new_empty(n, self.features).normal_(generator=generator)
        z = self.means[which] + (self.scale_tril()[which] @ noise.unsqueeze(-1)).squeeze(-1)
        return z.view(*shape, self.features)


class Kernels(Base):
    """A Gaussian kernel density estimate: as many equal spherical Gaussians as rows, one around each.

    Args:
        features: Width of the noise.
        count: Number of kernels. They are at zero, with bandwidth one: `from_rows` gives them their places.
    """

    centres: Tensor
    log_bandwidth: Tensor

    def __init__(self, features: int, count: int) -> None:
        super().__init__()
        self.features, self.count = features, count = whole("features", features), whole("count", count)
        self.register_buffer("centres", torch.zeros(count, features))
        self.register_buffer("log_bandwidth", torch.zeros(()))

    @classmethod
    def from_rows(cls, rows: Tensor, bandwidth: float) -> Self:
        """Kernels of one bandwidth around rows (n, features), in their floating-point type.

        Example:
            >>> import torch, flowlab
            >>> base = flowlab.bases.Kernels.from_rows(torch.tensor([[-1.0], [1.0]]), bandwidth=0.5)
            >>> base.log_prob(torch.zeros(1))
            tensor(-2.2258)
        """
        base = cls(rows.shape[1], len(rows)).to(rows)
        base.centres.copy_(rows)
        base.log_bandwidth.fill_(math.log(bandwidth))
        return base

    def _log_shares(self, z: Tensor) -> Tensor:
        """Log-density of rows z (n, features) under each kernel, up to what they all share: (n, count)."""
        if transforming():  # cdist chooses its method by the number of rows, which may be left open
            square = (z.unsqueeze(-2) - self.centres).square().sum(-1)
        else:
            square = torch.cdist(z, self.centres).square()
        return -square / 2 * (-2 * self.log_bandwidth).exp()

    def log_prob(self, z: Tensor) -> Tensor:
        rows = self._log_shares(z.reshape(-1, self.features)).logsumexp(-1).view(z.shape[:-1])
        return rows - math.log(self.count) - self.features * (LOG_SQRT_2PI + self.log_bandwidth)

    def rsample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        shape = sizes(shape)
        which = torch.randint(self.count, shape, generator=generator, device=self.centres.device)
        noise = self.centres.new_empty((*sizes(shape), self.features)).normal_(generator=generator)
        return self.centres[which] + self.log_bandwidth.exp() * noise

    @torch.no_grad()
    def to_normal(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shares = self._log_shares(z.reshape(-1, self.features)).softmax(-1)
        which = torch.multinomial(shares, 1, generator=generator).view(z.shape[:-1])
        return (z - self.centres[which]) * (-self.log_bandwidth).exp()

    def extra_repr(self) -> str:
        return f"{self.features}, {self.count}"


def solve_batch(lower: Tensor, rows: Tensor) -> Tensor:
    """One lower triangular system per row."""
    return torch.linalg.solve_triangular(lower, rows.unsqueeze(-1), upper=False).squeeze(-1)
