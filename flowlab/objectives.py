"""What training minimises: the negative log-likelihood of rows, or a variational bound that draws from the flow itself."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.flow import Flow

# An objective takes a flow and a batch of rows, with their context, and returns losses in nats, (n,), which `fit` averages, with
# sample weights: each row's. The variational ones draw from the flow, take no rows, and return each draw's loss, or, given a
# context (n, context_features), each context's.
Objective = Callable[[Any, Any, Any], Tensor]

# An unnormalised log-density: draws (n, features) to nats, (n,); given contexts, (draws, n, features) and (n, context_features) to (draws, n).
LogProb = Callable[..., Tensor]


class NLL:
    """Negative log-likelihood: maximum likelihood, nats per row.

    Example:
        >>> import torch, flowlab
        >>> flow = flowlab.presets.real_nvp(2)
        >>> flowlab.NLL()(flow, torch.zeros(3, 2), None)
        tensor([1.8379, 1.8379, 1.8379], grad_fn=<NegBackward0>)
    """

    def __call__(self, flow: Flow, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -flow.log_prob(x, context)

    def __repr__(self) -> str:
        return "NLL()"


@dataclass(eq=False)
class Variational:
    """What variational objectives share: a target, and draws from the flow with their log-weights log p(z) − log q(z).

    Draws at which the target is not finite are left out of the mean.

    Attributes:
        log_prob: The unnormalised log-density to be approximated, in nats: differentiable, (n, features) to (n,). Where the flow has a
            context it is called as log_prob(z, context) with z (draws, n, features), and returns (draws, n).
        draws: Draws in every step, for each context.
        beta: Inverse temperature: the target is log_prob times beta (see `Tempered`).
        generator: Source of the draws; `fit` lends its own.
    """

    log_prob: LogProb
    draws: int = 256
    beta: float = field(default=1.0, kw_only=True)
    generator: torch.Generator | None = field(default=None, kw_only=True, repr=False)

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def target(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The tempered log-density (*batch,) of draws z."""
        value = self.log_prob(z) if context is None else self.log_prob(z, context)
        return value if self.beta == 1 else self.beta * value

    def weigh(self, flow: Flow, context: Tensor | None) -> Tensor:
        """Log-weights of fresh draws, (draws,) or (draws, contexts), differentiable in every way. Never inverts a layer."""
        z, log_q = flow.rsample_and_log_prob((self.draws,), context, self.generator)
        return self.target(z, context) - log_q

    def weigh_by_path(self, flow: Flow, context: Tensor | None) -> Tensor:
        """The same, with gradients that go through the draws alone, not through the density's own parameters."""
        if getattr(flow, "fast", "both") in ("both", "density"):
            z = flow.rsample((self.draws,), context, self.generator)
            with constant(flow):
                log_q = flow.log_prob(z, context)
        else:
            z, log_q = path_log_prob(flow, (self.draws,), context, self.generator)
        return self.target(z, context) - log_q


@dataclass(eq=False)
class ReverseKL(Variational):
    """The negative evidence lower bound E_q[log q − log p], by reparameterized draws. Training inverts no layer.

    Kingma & Welling 2014, "Auto-encoding variational Bayes", equation 6.

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.ones(2), torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.LULinear(2)])
        >>> generator = torch.Generator().manual_seed(0)
        >>> objective = ReverseKL(target.log_prob, draws=64)
        >>> history = flowlab.fit(flow, steps=300, objective=objective, schedule="cosine", ema=0, generator=generator, progress=False)
        >>> bool((flow.sample((5000,), generator=generator).mean(0) - 1).abs().max() < 0.2)
        True
    """

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        log_w = self.weigh(flow, context)
        return finite_mean(-log_w, context)


@dataclass(eq=False)
class StickingTheLanding(Variational):
    """The negative evidence lower bound by its path gradient, whose variance vanishes where q becomes the target.

    Roeder et al. 2017, "Sticking the landing", equation 7: the density's own parameters are constants, which leaves out a term of
    mean zero. Far from the target the variance may be higher than `ReverseKL`'s. Flows whose density direction is the slow
    one are not inverted either (`path_log_prob`).

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.LULinear(2)])  # at first the target itself
        >>> StickingTheLanding(target.log_prob, draws=64)(flow).mean().backward()
        >>> max(float(p.grad.abs().max()) for p in flow.parameters()) < 1e-5  # every draw says that nothing is to be done
        True
    """

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        log_w = self.weigh_by_path(flow, context)
        return finite_mean(-log_w, context)


@dataclass(eq=False)
class Grouped(Variational):
    """What objectives over groups of `k` draws share. `draws` is a multiple of `k`."""

    k: int = 16

    def __post_init__(self) -> None:
        if self.k < 1 or self.draws % self.k:
            raise ValueError(f"draws must be a multiple of k >= 1, not draws={self.draws}, k={self.k}")

    def grouped(self, log_w: Tensor) -> Tensor:
        """Log-weights (groups, k, *contexts); those that are not finite count as weights of zero."""
        return torch.where(torch.isfinite(log_w), log_w, -math.inf).unflatten(0, (-1, self.k))


@dataclass(eq=False)
class IWAE(Grouped):
    """The negative importance-weighted bound, log of the mean of `k` weights. Burda et al. 2016, equation 8.

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [])
        >>> generator = torch.Generator().manual_seed(0)
        >>> bounds = {k: -IWAE(target.log_prob, draws=32_000, k=k, generator=generator)(flow).mean() for k in (1, 4, 32)}
        >>> bool(bounds[1] < bounds[4] < bounds[32] < 0)  # the evidence is one, its logarithm zero
        True
    """

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        bound = log_mean_exp(self.grouped(self.weigh(flow, context)))
        return finite_mean(-bound, context)


@dataclass(eq=False)
class DReG(Grouped):
    """`IWAE`'s bound by its doubly reparameterized gradient, whose signal does not fade as `k` grows. Tucker et al. 2019, equation 8.

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [])
        >>> losses = [
        ...     objective(target.log_prob, draws=64, k=16, generator=torch.Generator().manual_seed(0))(flow)
        ...     for objective in (IWAE, DReG)
        ... ]
        >>> torch.allclose(*losses, atol=1e-4)  # they differ in their gradients
        True
    """

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        log_w = self.grouped(self.weigh_by_path(flow, context))
        share = log_w.detach().softmax(1)
        path = torch.where(share > 0, share.square() * log_w, 0).sum(1)
        bound = log_mean_exp(log_w.detach())
        return finite_mean(path.detach() - path - bound, context)


@dataclass(eq=False)
class Renyi(Grouped):
    """The negative variational Rényi bound of order `alpha`, from groups of `k` draws. Li & Turner 2016, equation 9.

    alpha = 1 is `ReverseKL`, 0 `IWAE`; between them the bound covers more of the target's mass, below 0 it is an upper bound.

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.zeros(2), 0.5 * torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [])
        >>> options = {"draws": 64_000, "k": 1000, "generator": torch.Generator().manual_seed(0)}
        >>> bounds = [-Renyi(target.log_prob, alpha=alpha, **options)(flow).mean() for alpha in (1, 0.5, 0, -1)]
        >>> bool(bounds[0] < bounds[1] < bounds[2] < bounds[3]), bool(bounds[2].abs() < 0.02), bool(bounds[3] > 0.1)
        (True, True, True)
    """

    alpha: float = 0.5

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        log_w = self.weigh(flow, context)
        if self.alpha == 1:
            return finite_mean(-log_w, context)
        bound = log_mean_exp((1 - self.alpha) * self.grouped(log_w)) / (1 - self.alpha)
        return finite_mean(-bound, context)


@dataclass(eq=False)
class ForwardKL(Variational):
    """The cross-entropy of the target relative to q, by self-normalised importance weights: covers mass rather than seeking modes.

    Every `refresh` steps `pool` draws of the flow are weighted; each step then takes `draws` of them, by weight, as data. Biased towards
    what the flow covers at the time (Bornschein & Bengio 2015, "Reweighted wake-sleep", section 3.2).

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.ones(2), torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.LULinear(2)])
        >>> generator = torch.Generator().manual_seed(0)
        >>> objective = ForwardKL(target.log_prob)
        >>> history = flowlab.fit(flow, steps=300, objective=objective, schedule="cosine", ema=0, generator=generator, progress=False)
        >>> bool((flow.sample((5000,), generator=generator).mean(0) - 1).abs().max() < 0.2)
        True
    """

    pool: int = 4096
    refresh: int = 25
    _kept: Tensor | None = field(default=None, init=False, repr=False)
    _calls: int = field(default=0, init=False, repr=False)

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        if context is not None:
            raise ValueError("ForwardKL takes no context: its pool of draws belongs to one target")
        if self._kept is None or self._calls % self.refresh == 0:
            self._kept = self._draw(flow)
        self._calls += flow.training
        which = torch.randint(self.pool, (self.draws,), generator=self.generator, device=self._kept.device)
        return -flow.log_prob(self._kept[which])

    @torch.no_grad()
    def _draw(self, flow: Flow) -> Tensor:
        """Draws of the flow, resampled by weight."""
        z, log_q = flow.rsample_and_log_prob((self.pool,), None, self.generator)
        log_w = self.target(z, None) - log_q
        share = torch.where(torch.isfinite(log_w), log_w, -math.inf).softmax(0)
        return z[torch.multinomial(share, self.pool, replacement=True, generator=self.generator)]


@dataclass(eq=False)
class Tempered:
    """Any variational objective with a target that starts flat: its beta rises from `start` to one over `steps` steps of training.

    It helps a posterior of several modes to be seen whole before it is fitted.

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> flow = flowlab.presets.real_nvp(2, layers=2)
        >>> objective = Tempered(ReverseKL(target.log_prob), steps=10, start=0.2)
        >>> for _ in range(5):
        ...     loss = objective(flow)
        >>> round(objective.objective.beta, 2)
        0.52
    """

    objective: Variational
    steps: int
    start: float = 0.1
    taken: int = field(default=0, init=False)

    @property
    def generator(self) -> torch.Generator | None:
        return self.objective.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        self.objective.generator = generator

    def __call__(self, flow: Flow, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        share = min(self.taken / max(self.steps, 1), 1.0)
        self.objective.beta = self.start + (1 - self.start) * share
        self.taken += flow.training
        return self.objective(flow, x, context)


@dataclass(eq=False)
class MiniBatch:
    """A log-joint that looks at a few rows in each call: log prior + (rows / batch_size) · log-likelihood of those, without bias.

    Attributes:
        log_prior: (n, features) to (n,), nats.
        log_likelihood: Draws (n, features) and rows (batch_size, …) to the rows' summed log-likelihood (n,), nats.
        rows: All rows of data.
        batch_size: Rows in each call.
        generator: Source of the choice; torch's global generator when None.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> rows = torch.arange(1000.0)
        >>> prior = lambda z: Normal(0.0, 10.0).log_prob(z).sum(-1)
        >>> likelihood = lambda z, some: Normal(z, 300.0).log_prob(some).sum(-1)  # z (n, 1), some (batch_size,)
        >>> log_joint = MiniBatch(prior, likelihood, rows, batch_size=100, generator=torch.Generator().manual_seed(0))
        >>> z = torch.zeros(1, 1)
        >>> estimates = torch.stack([log_joint(z) for _ in range(1000)])
        >>> exact = prior(z) + likelihood(z, rows)
        >>> bool((estimates.mean() - exact).abs() < 4 * estimates.std() / 1000**0.5)
        True
    """

    log_prior: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    rows: Tensor
    batch_size: int = 256
    generator: torch.Generator | None = None

    def __call__(self, z: Tensor) -> Tensor:
        count = min(self.batch_size, len(self.rows))
        which = torch.randint(len(self.rows), (count,), generator=self.generator, device=self.rows.device)
        return self.log_prior(z) + len(self.rows) / count * self.log_likelihood(z, self.rows[which])


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log of the mean of weights over the second axis."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


@contextmanager
def constant(module: nn.Module) -> Iterator[None]:
    """Inside the block the module's parameters count as constants; gradients recorded before are not affected."""
    trained = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def path_log_prob(
    flow: Flow, shape: tuple[int, ...], context: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draws of a flow and their log-densities, whose gradients go through the draws alone, without an inverse.

    The gradient of log q at x = g(z) is J⁻ᵀ ∇(log p(z) − log|det J|), J the Jacobian of g, solved layer by layer (Vaitl et al. 2024,
    "Fast and unified path gradient estimators for normalizing flows"). J is formed explicitly, in `features` backward
    passes that share their forward pass: for flows whose density direction is the slow one.
    """
    batch = () if context is None else context.shape[:-1]
    z = flow.base.rsample((*shape, *batch), generator)
    x, _ = flow.forward(z, context)
    with torch.enable_grad(), constant(flow):
        z = z.detach().requires_grad_()
        value, own = flow.forward(z, context)
        log_q = flow.base.log_prob(z) - own
        rows = [torch.autograd.grad(value[..., i].sum(), z, retain_graph=True)[0] for i in range(flow.features)]
        slope = torch.autograd.grad(log_q.sum(), z)[0]
    score = torch.linalg.solve(torch.stack(rows, -1), slope)  # the rows of J stand as columns: Jᵀ
    return x, log_q.detach() + ((x - x.detach()) * score).sum(-1)


def finite_mean(losses: Tensor, context: Tensor | None) -> Tensor:
    """Losses (draws, *contexts) without those that are not finite: each draw's, or, given a context, their mean for each."""
    finite = torch.isfinite(losses)
    share = finite.to(losses.dtype).mean(0).clamp(min=1 / max(len(losses), 1))
    losses = torch.where(finite, losses, 0) / share
    return losses if context is None else losses.mean(0)
