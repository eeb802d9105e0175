"""Defensive importance sampling of a posterior: a survey of the mass that a fit covers too little or not at all.

Importance weights of a fit's own draws say nothing of places that these never reach: a fit narrower than the posterior
has equal weights wherever it draws. In a survey half of the draws come from wider and narrower copies of the fit, at
all scales from 1/300 to 300 of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.bases import Base, Gaussian
from flowlab.flow import Flow
from flowlab.layers import Whitening
from flowlab.layers.scalar.normal import LOG_SQRT_2PI
from flowlab.mixture import FlowMixture
from flowlab.posteriors.psis import Smoothed, smooth
from flowlab.posteriors.target import Target

# A place counts as uncovered where the fit's density lies more than so many nats below the posterior's.
UNCOVERED_NATS = math.log(20.0)
FAR = 100.0  # times the fit's width beyond which a proper posterior has no mass to speak of
OUTSIDE = 0.01  # share of the mass that may lie farther out than that
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the fit, at which the posterior's distribution function is compared
STEP = 1e-6  # relative step over which a log-density must be smooth to count
TRIM = 1e-6  # share of the mass on either side that moments leave out
# Ratio of standard deviation to mean below which a number is constant up to rounding, as the diagonal of a correlation
# matrix is.
CONSTANT = 1e-9


class Defensive(Base):
    """Noise for importance weights that stay bounded where a posterior is wider, heavier-tailed or has a spike.

    Half of it is N(0, I). A quarter is spherical with radii at all scales: the logarithm of radius / √features has a
    Laplace distribution, truncated at a factor of 300. In the last quarter each feature on its own has such a scale,
    one of them on average. Hesterberg 1995, "Weighted average importance sampling and defensive mixture
    distributions".
    """

    like: Tensor
    NORMAL, ROUND = 0.5, 0.25
    DECAY, REACH = 1.5, math.log(300.0)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.alone = min(1 / features, 0.5)  # probability that a feature has a scale of its own
        self.register_buffer("like", torch.zeros((), dtype=torch.float64))

    def log_prob(self, z: Tensor) -> Tensor:
        d = self.features
        each = -z.square() / 2 - LOG_SQRT_2PI
        radius = z.norm(dim=-1).clamp(min=1e-300).log()
        sphere = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
        round_ = self._log_scale_density(radius - math.log(d) / 2) - d * radius - sphere
        size = z.abs().clamp(min=1e-300).log()
        own = self._log_scale_density(size) - size - math.log(2)
        sparse = torch.logaddexp(each + math.log1p(-self.alone), own + math.log(self.alone)).sum(-1)
        shares = (self.NORMAL, self.ROUND, 1 - self.NORMAL - self.ROUND)
        parts = zip((each.sum(-1), round_, sparse), shares, strict=True)
        return torch.stack([part + math.log(share) for part, share in parts]).logsumexp(0)

    def rsample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        z = self.like.new_empty((*shape, self.features)).normal_(generator=generator)
        component = self.like.new_empty((*shape, 1)).uniform_(generator=generator)
        round_ = F.normalize(z, dim=-1) * math.sqrt(self.features) * self._scales((*shape, 1), generator)
        alone = self.like.new_empty(z.shape).uniform_(generator=generator) < self.alone
        sparse = torch.where(alone, z.sign() * self._scales(z.shape, generator), z)
        return torch.where(
            component < self.NORMAL, z, torch.where(component < self.NORMAL + self.ROUND, round_, sparse)
        )

    def _log_scale_density(self, log_scale: Tensor) -> Tensor:
        constant = math.log(2 * self.DECAY * -math.expm1(-self.REACH / self.DECAY))
        inside = log_scale.abs() <= self.REACH
        return torch.where(inside, -log_scale.abs() / self.DECAY - constant, -math.inf)

    def _scales(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        uniform = self.like.new_empty(shape).uniform_(-1, 1, generator=generator)
        size = -self.DECAY * torch.log1p(uniform.abs() * math.expm1(-self.REACH / self.DECAY))
        return (uniform.sign() * size).exp()


@torch.no_grad()
def moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of draws (n, features) and Cholesky factor of their covariance, or of its diagonal where it is singular."""
    d = draws.shape[1]
    covariance = draws.T.cov().reshape(d, d) + 1e-12 * draws.var(0).diag()
    scale_tril, info = torch.linalg.cholesky_ex(covariance)
    return draws.mean(0), draws.std(0).diag() if int(info) else scale_tril


def defensive_proposal(flow: Flow | FlowMixture, generator: torch.Generator) -> Flow | FlowMixture:
    """The same flow, sharing its layers, with the defensive base in place of a standard normal one.

    A flow with another base is mixed, half and half, with a defensive Gaussian of the same moments. In a mixture half
    of the draws are shared out evenly among the members, since those of little weight may be the widest.
    """
    if isinstance(flow, FlowMixture):
        members = [defensive_proposal(member, generator) for member in flow]
        return FlowMixture(members, flow.weights + 1 / len(flow.flows))
    base = Defensive(flow.features)
    if isinstance(flow.base, Gaussian) and not flow.base.learnable:
        return Flow(base.to(flow.base.loc), flow.layers)  # type: ignore[arg-type]
    whitening = Whitening.from_moments(*moments(flow.sample((1000,), generator=generator).double()))
    return FlowMixture([flow, Flow(base, [whitening])])


@torch.no_grad()
def weigh(flow: Flow | FlowMixture, target: Target, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws (n, features) of a fit in unconstrained space, and their log importance weights log p − log q (n,)."""
    z, log_q = flow.rsample_and_log_prob((n,), generator=generator)
    return z, (target(z) - log_q).double()


@dataclass
class Survey:
    """Draws of a fit's defensive proposal with their log-densities.

    Attributes:
        target: The log-posterior.
        z: Draws (n, features) in unconstrained space.
        log_p: The posterior's unnormalised log-density there (n,).
        log_q: The fit's (n,).
        log_proposal: The proposal's (n,).
    """

    target: Target
    z: Tensor
    log_p: Tensor
    log_q: Tensor
    log_proposal: Tensor

    @cached_property
    def weights(self) -> Smoothed:
        """Smoothed importance weights to the posterior."""
        return smooth(self.log_p - self.log_proposal)

    @cached_property
    def shares(self) -> tuple[Tensor, Tensor]:
        """Normalised importance weights (n,), not smoothed: to the posterior, and to the fit."""
        p, q = ((log - self.log_proposal).softmax(0) for log in (self.log_p, self.log_q))
        return p, q

    @cached_property
    def excess(self) -> Tensor:
        """Nats (n,) by which the posterior's normalised density lies above the fit's."""
        return self.log_p - self.weights.log_mean - self.log_q

    @cached_property
    def uncovered(self) -> float:
        """Share of the posterior where it has more than twenty times the fit's density."""
        return float(self.shares[0][self.excess > UNCOVERED_NATS].sum())

    @cached_property
    def forward_kl(self) -> float:
        """KL(posterior, fit) in nats, to which mass counts that the fit leaves out."""
        share = self.shares[0]
        return float((share * self.excess)[share > 0].sum())

    @cached_property
    def outside(self) -> Tensor:
        """Which draws (n,) lie farther out than a hundred times the fit's width."""
        mean, scale_tril = self.fit_moments
        radius = torch.linalg.solve_triangular(scale_tril, (self.z - mean).T, upper=False).norm(dim=0)
        return radius > FAR * math.sqrt(self.z.shape[1])

    @property
    def far(self) -> float:
        """Share of the posterior that lies there."""
        return float(self.shares[0][self.outside].sum())

    @property
    def unbounded(self) -> bool:
        """Whether the density seems to rise without bound: mass far outside, at a few draws, among them the densest."""
        return self.far > OUTSIDE and not self.weights.reliable and bool(self.outside[self.log_p.argmax()])

    @cached_property
    def fit_moments(self) -> tuple[Tensor, Tensor]:
        """Mean of the fit and Cholesky factor of its covariance, by importance weights."""
        share = self.shares[1].unsqueeze(1)
        mean = (share * self.z).sum(0)
        centred = torch.where(share > 0, share.sqrt() * (self.z - mean), 0)
        covariance = centred.T @ centred
        scale_tril, info = torch.linalg.cholesky_ex(covariance + 1e-12 * covariance.diag().diag())
        return mean, covariance.diag().sqrt().diag() if int(info) else scale_tril

    def failings(self) -> list[str]:
        """Why neither the fit nor its weighted draws can be trusted; empty where they can."""
        found = []
        if self.far > OUTSIDE:
            found.append(
                f"{self.far:.0%} of the mass lies more than a hundred times the fit's width away: log_prob may have no "
                "integral (an improper prior?)"
            )
        if not self.weights.reliable:
            found.append(
                f"a few draws hold most of the importance weight (k-hat {self.weights.khat:.2f}), so that no weighting "
                "repairs this fit: the posterior has much more mass than the fit where that hardly ever draws"
            )
        if self.columns.shape[1] == 0:
            found.append("draws have no spread beside their size: log_prob may have no bound (an improper prior?)")
        return found

    @cached_property
    def columns(self) -> Tensor:
        """The numbers (n, columns) whose moments and quantiles are compared, without constant ones.

        These are the unconstrained ones, then the user's where they differ. They are clamped to quantiles so extreme
        that hardly one in a million draws lies beyond, since exponentials overflow there.
        """
        value, _ = self.target.space.constrain(self.z)
        user = self.target.space.columns(value).double()
        x = user if isinstance(value, Tensor) else torch.cat([self.z, user], 1)
        p, q = (share.unsqueeze(1) for share in self.shares)
        x = torch.where((p > 0) | (q > 0), x, 0)  # zero weights times infinity would be NaN
        mean = (p * x).sum(0)
        constant = (p * (x - mean).square()).sum(0).sqrt() <= CONSTANT * mean.abs()
        x = x[:, ~constant]
        return x.clamp(*_weighted_quantiles(x, (p + q).squeeze(1) / 2, (TRIM, 1 - TRIM)))

    def moment_shifts(self) -> tuple[Tensor, Tensor]:
        """Differences between the posterior's moments and the fit's, and their standard errors, both (2, columns).

        Means first, in standard deviations, then logarithms of standard deviations. Both sides are weighted means over
        the same draws, so that their common noise cancels. Where a moment is not finite, neither is its difference.
        """
        p, q = (share.unsqueeze(1) for share in self.shares)
        centred = [self.columns - (share * self.columns).sum(0) for share in (p, q)]
        variances = [(share * c.square()).sum(0) for share, c in zip((p, q), centred, strict=True)]
        sd = variances[0].sqrt()
        shifts = [(centred[0] - centred[1])[0].abs() / sd, (variances[0] / variances[1]).log().abs() / 2]
        spread = [c.square() / v - 1 for c, v in zip(centred, variances, strict=True)]
        influences = (p * centred[0] - q * centred[1]) / sd, (p * spread[0] - q * spread[1]) / 2
        errors = [influence.square().sum(0).sqrt() for influence in influences]
        return torch.stack(shifts).nan_to_num(math.inf), torch.stack(errors).nan_to_num(math.inf)

    def moment_shift(self, errors: float = 0.0) -> float:
        """The largest of `moment_shifts`, each with so many standard errors added; infinite where there are none."""
        shifts, error = self.moment_shifts()
        return float((shifts + errors * error).max()) if shifts.numel() else math.inf

    def quantile_shift(self, errors: float = 0.0) -> float:
        """The largest of `quantile_shifts`, likewise."""
        shifts, error = self.quantile_shifts()
        return float((shifts + errors * error).max()) if shifts.numel() else math.inf

    def quantile_shifts(self) -> tuple[Tensor, Tensor]:
        """Differences between the posterior's and the fit's share below the fit's quantiles, and their standard errors.

        Both are (5, columns).
        """
        p, q = (share.unsqueeze(1) for share in self.shares)
        shifts, errors = [], []
        quantiles = _weighted_quantiles(self.columns, self.shares[1], QUANTILES)
        for level, quantile in zip(QUANTILES, quantiles, strict=True):
            below = (self.columns <= quantile).double()
            shifts.append(((p - q) * below).sum(0).abs())
            errors.append(((p - q) * (below - level)).square().sum(0).sqrt())
        return torch.stack(shifts), torch.stack(errors)


def _weighted_quantiles(x: Tensor, share: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles (levels, columns) of columns x (n, columns) with weights (n,)."""
    values, order = x.sort(0)
    cumulative = share[order].cumsum(0).T.contiguous()
    wanted = x.new_tensor(levels).expand(len(cumulative), -1).contiguous()
    return values.gather(0, torch.searchsorted(cumulative, wanted).clamp(max=len(x) - 1).T)


@torch.no_grad()
def draw_survey(flow: Flow | FlowMixture, target: Target, n: int, generator: torch.Generator) -> Survey:
    """Survey a fit with n draws of its defensive proposal; a draw that overflows counts as a point without density."""
    proposal = defensive_proposal(flow, generator)
    if isinstance(flow, Flow) and isinstance(proposal, Flow):  # the layers are shared: no inverse is needed
        noise = proposal.base.rsample((n,), generator)
        z, log_det = flow.forward(noise)
        log_proposal, log_q = proposal.base.log_prob(noise) - log_det, flow.base.log_prob(noise) - log_det
    else:
        z, log_proposal = proposal.rsample_and_log_prob((n,), generator=generator)
        log_q = flow.log_prob(z.nan_to_num(0.0))
    finite = torch.isfinite(z).all(1) & torch.isfinite(log_proposal)
    z = torch.where(finite.unsqueeze(1), z, 0).double()
    log_q = torch.where(finite, log_q, -math.inf).nan_to_num(nan=-math.inf)
    log_p = torch.full_like(log_proposal, -math.inf)
    log_p[finite] = target(z[finite])
    found = Survey(target, z, log_p.double(), log_q.double(), torch.where(finite, log_proposal, 0).double())
    ratio = (found.log_p - found.log_q).nan_to_num(nan=-math.inf)
    # The median of log p − log q under the fit, since rounding noise far out would move a mean.
    usual = _weighted_quantiles(ratio.unsqueeze(1), found.shares[1], (0.5,))
    suspects = (ratio > float(usual) + UNCOVERED_NATS).nonzero().squeeze(1)
    if len(suspects) == 0:
        return found
    rough = suspects[_rough(target, z[suspects], found.log_p[suspects])]
    return Survey(target, z, found.log_p.index_fill(0, rough, -math.inf), found.log_q, found.log_proposal)


def _rough(target: Target, z: Tensor, log_p: Tensor) -> Tensor:
    """Whether a log-density (n,) at z (n, features) is rounding noise, as differences of lgamma become far out.

    Of a smooth function the second difference over a tiny step is small beside the first.
    """
    up, down = target(z * (1 + STEP)).double(), target(z * (1 - STEP)).double()
    return ~((up + down - 2 * log_p).abs() <= (up - down).abs() / 2 + 1)
