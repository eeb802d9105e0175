"""What training minimises: the negative log-likelihood of rows, or a variational bound by draws from the flow itself.

Inside `fit` a loss is a function of the model, the batch, the step and a generator, without a state of its own
(`Loss`): the objectives here define it in their method `loss`, and `loss_of` makes one of what a user gives.
"""

import copy
import math
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.arguments import real, whole
from flowlab.flow import Flow
from flowlab.training.path_gradients import path_log_prob

# An objective takes a flow and a batch of rows, with their context, and returns losses in nats, (n,), which `fit`
# averages, with sample weights: each row's. The variational ones draw from the flow, take no rows, and return each
# draw's loss, or, given a context (n, context_features), each context's.
Objective = Callable[[Any, Any, Any], Tensor]

# The same, as `fit` calls it: a model, rows and context of a batch, and the moment.
Loss = Callable[[Any, Any, Any, "Moment"], Tensor]

# An unnormalised log-density: draws (n, features) to nats, (n,); given contexts, (draws, n, features) and
# (n, context_features) to (draws, n).
LogProb = Callable[..., Tensor]


@dataclass
class Moment:
    """What a loss may depend on besides its model and batch: all that changes in the course of a fit.

    One object, because torch.compile compiles anew for every number that it is handed, but not for an object's numbers
    that a loss never looks at.

    Attributes:
        step: Training steps before.
        generator: Source of the draws; torch's global generator when None.
        memory: What the objective keeps from one step of the fit to the next, by model.
    """

    step: int
    generator: torch.Generator | None
    memory: MutableMapping[Any, Any] = field(default_factory=dict)


class Drawing:
    """Base of the objectives that draw: `loss` says what the loss is, and `fit` calls it without touching the object.

    All that changes in the course of a fit comes as an argument, so that a second fit with the same objective is the
    same algorithm. Called as a function, outside of a fit, an objective counts its training steps itself.

    Attributes:
        generator: Source of the draws; in a fit that of the fit, and elsewhere torch's global generator, when None.
        taken: Training steps outside of a fit so far.
    """

    generator: torch.Generator | None
    taken: int = 0

    def loss(self, model: Any, x: Any, context: Any, at: Moment) -> Tensor:
        """Losses in nats, each draw's or each row's.

        Args:
            model: What is trained; in training mode in a step, in evaluation mode in an evaluation.
            x: Rows (n, features), or None.
            context: Context (n, context_features), or None.
            at: The step, and the source of the draws.
        """
        raise NotImplementedError

    def __call__(self, flow: Any, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        losses = self.loss(flow, x, context, Moment(self.taken, self.generator))
        self.taken += isinstance(flow, nn.Module) and flow.training
        return losses

    def forget(self) -> None:
        """Begin anew with what is counted and kept outside of a fit."""
        self.taken = 0


def loss_of(objective: Objective, generator: torch.Generator) -> Loss:
    """What a user gives `fit` as an objective, as the loss of that one fit.

    Users' own objectives are functions of model, rows and context. Those of a class derived from one of this module's
    may count along the way and read `self.generator`: they become a copy that starts at step zero.
    """
    if not isinstance(objective, Drawing):
        return lambda model, x, context, at: objective(model, x, context)
    if not is_called(objective):
        return objective.loss
    own = copy.copy(objective)
    own.generator = source_of(objective, generator)
    own.forget()
    return lambda model, x, context, at: own(model, x, context)


def source_of(objective: Objective, generator: torch.Generator) -> torch.Generator:
    """Where an objective draws from in a fit: its own generator if it has one, or else the fit's."""
    own = objective.generator if isinstance(objective, Drawing) else None
    return generator if own is None else own


def is_called(objective: Drawing) -> bool:
    """Whether a user's class overrides `__call__`, which then says what the loss is, and not `loss`."""
    if isinstance(objective, Tempered) and is_called(objective.objective):
        return True
    return "loss" not in vars(next(c for c in type(objective).__mro__ if {"loss", "__call__"} & vars(c).keys()))


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
class Variational(Drawing):
    """Base of variational objectives: a target, and draws from the flow with their log-weights log p(z) − log q(z).

    Draws at which the target is not finite are left out of the mean.

    Attributes:
        log_prob: The unnormalised log-density to be approximated, in nats: differentiable, (n, features) to (n,).
            Where the flow has a context it is called as log_prob(z, context) with z (draws, n, features), and returns
            (draws, n).
        draws: Draws in every step, for each context.
        beta: Inverse temperature: the target is log_prob times beta (see `Tempered`).
        generator: Source of the draws; in a fit that of the fit, and elsewhere torch's global generator, when None.
    """

    log_prob: LogProb
    draws: int = 256
    beta: float = field(default=1.0, kw_only=True)
    generator: torch.Generator | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.log_prob):
            raise TypeError(f"log_prob must be a function of draws, not {type(self.log_prob).__name__}")
        self.draws, self.beta = whole("draws", self.draws), real("beta", self.beta)

    def target(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The tempered log-density (*batch,) of draws z."""
        value = self.log_prob(z) if context is None else self.log_prob(z, context)
        return value if self.beta == 1 else self.beta * value

    def weigh(self, flow: Flow, context: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """Log-weights of fresh draws, (draws,) or (draws, contexts), differentiable in every way.

        No layer is inverted. Draws come from the objective's own generator when None is given.
        """
        source = self.generator if generator is None else generator
        z, log_q = flow.rsample_and_log_prob((self.draws,), context, source)
        return self.target(z, context) - log_q

    def weigh_by_path(self, flow: Flow, context: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """The same, with gradients that go through the draws alone, not through the density's own parameters."""
        source = self.generator if generator is None else generator
        z, log_q = path_log_prob(flow, (self.draws,), context, source)
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
        >>> options = {"schedule": "cosine", "ema": 0, "generator": generator, "progress": False}
        >>> history = flowlab.fit(flow, steps=300, objective=objective, **options)
        >>> bool((flow.sample((5000,), generator=generator).mean(0) - 1).abs().max() < 0.2)
        True
    """

    def loss(self, model: Flow, x: Any, context: Any, at: Moment) -> Tensor:
        log_w = self.weigh(model, context, at.generator)
        return finite_mean(-log_w, context)


@dataclass(eq=False)
class StickingTheLanding(Variational):
    """The negative evidence lower bound by its path gradient, whose variance vanishes where q becomes the target.

    Roeder et al. 2017, "Sticking the landing", equation 7: the density's own parameters are constants, which leaves out
    a term of mean zero. Far from the target the variance may be higher than `ReverseKL`'s. Flows whose density
    direction is the slow one are not inverted either (`path_log_prob`).

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.LULinear(2)])  # at first the target itself
        >>> StickingTheLanding(target.log_prob, draws=64)(flow).mean().backward()
        >>> largest = max(float(p.grad.abs().max()) for p in flow.parameters())
        >>> largest < 1e-5  # every draw says that nothing is to be done
        True
    """

    def loss(self, model: Flow, x: Any, context: Any, at: Moment) -> Tensor:
        log_w = self.weigh_by_path(model, context, at.generator)
        return finite_mean(-log_w, context)


@dataclass(eq=False)
class Grouped(Variational):
    """What objectives over groups of `k` draws share. `draws` is a multiple of `k`."""

    k: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.k = whole("k", self.k)
        if self.draws % self.k:
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
        >>> options = {"draws": 32_000, "generator": generator}
        >>> bounds = {k: -IWAE(target.log_prob, k=k, **options)(flow).mean() for k in (1, 4, 32)}
        >>> bool(bounds[1] < bounds[4] < bounds[32] < 0)  # the evidence is one, its logarithm zero
        True
    """

    def loss(self, model: Flow, x: Any, context: Any, at: Moment) -> Tensor:
        bound = log_mean_exp(self.grouped(self.weigh(model, context, at.generator)))
        return finite_mean(-bound, context)


@dataclass(eq=False)
class DReG(Grouped):
    """`IWAE`'s bound by its doubly reparameterized gradient, whose signal does not fade as `k` grows.

    Tucker et al. 2019, equation 8.

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

    def loss(self, model: Flow, x: Any, context: Any, at: Moment) -> Tensor:
        log_w = self.grouped(self.weigh_by_path(model, context, at.generator))
        share = log_w.detach().softmax(1)
        path = torch.where(share > 0, share.square() * log_w, 0).sum(1)
        bound = log_mean_exp(log_w.detach())
        return finite_mean(path.detach() - path - bound, context)


@dataclass(eq=False)
class Renyi(Grouped):
    """The negative variational Rényi bound of order `alpha`, from groups of `k` draws. Li & Turner 2016, equation 9.

    alpha = 1 is `ReverseKL`, 0 `IWAE`; between them the bound covers more of the target's mass, below 0 it is an upper
    bound.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alpha = real("alpha", self.alpha)

    def loss(self, model: Flow, x: Any, context: Any, at: Moment) -> Tensor:
        log_w = self.weigh(model, context, at.generator)
        if self.alpha == 1:
            return finite_mean(-log_w, context)
        bound = log_mean_exp((1 - self.alpha) * self.grouped(log_w)) / (1 - self.alpha)
        return finite_mean(-bound, context)


@dataclass(eq=False)
class ForwardKL(Variational):
    """The cross-entropy of the target relative to q, by self-normalised importance weights.

    It covers mass rather than seeking modes. Every `refresh` steps `pool` draws of the flow are weighted; each step
    then takes `draws` of them, by weight, as data. Every flow has a pool of its own, and every fit begins with a new
    one. Biased towards what the flow covers at the time (Bornschein & Bengio 2015, "Reweighted wake-sleep", section
    3.2).

    Example:
        >>> import torch, flowlab
        >>> target = torch.distributions.MultivariateNormal(torch.ones(2), torch.eye(2))
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.LULinear(2)])
        >>> generator = torch.Generator().manual_seed(0)
        >>> objective = ForwardKL(target.log_prob)
        >>> options = {"schedule": "cosine", "ema": 0, "generator": generator, "progress": False}
        >>> history = flowlab.fit(flow, steps=300, objective=objective, **options)
        >>> bool((flow.sample((5000,), generator=generator).mean(0) - 1).abs().max() < 0.2)
        True
    """

    pool: int = 4096
    refresh: int = 25
    _pools: "weakref.WeakKeyDictionary[Flow, Pool]" = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pool, self.refresh = whole("pool", self.pool), whole("refresh", self.refresh)

    def __call__(self, flow: Any, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self.loss(flow, x, context, Moment(self.taken, self.generator, self._pools))

    def forget(self) -> None:
        super().forget()
        self._pools = weakref.WeakKeyDictionary()

    def loss(self, model: Flow, x: Any, context: Any, at: Moment) -> Tensor:
        if context is not None:
            raise ValueError("ForwardKL takes no context: its pool of draws belongs to one target")
        pool = at.memory.get(model)
        if pool is None or pool.steps == self.refresh:
            pool = at.memory[model] = Pool(self._draw(model, at.generator))
        pool.steps += model.training
        which = torch.randint(self.pool, (self.draws,), generator=at.generator, device=pool.draws.device)
        return -model.log_prob(pool.draws[which])

    @torch.no_grad()
    def _draw(self, flow: Flow, generator: torch.Generator | None) -> Tensor:
        """Draws of the flow, resampled by weight."""
        z, log_q = flow.rsample_and_log_prob((self.pool,), None, generator)
        log_w = self.target(z, None) - log_q
        share = torch.where(torch.isfinite(log_w), log_w, -math.inf).softmax(0)
        return z[torch.multinomial(share, self.pool, replacement=True, generator=generator)]


@dataclass
class Pool:
    """A flow's weighted draws, and how many steps have taken some of them."""

    draws: Tensor
    steps: int = 0


@dataclass(eq=False)
class Tempered(Drawing):
    """Any variational objective with a target that starts flat: beta rises from `start` to one over `steps` steps.

    It helps a posterior of several modes to be seen whole before it is fitted. Called outside of a fit, it counts its
    training steps in `taken`.

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

    def __post_init__(self) -> None:
        self.steps, self.start = whole("steps", self.steps, 0), real("start", self.start)

    @property
    def generator(self) -> torch.Generator | None:
        return self.objective.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        self.objective = copy.copy(self.objective)  # the one that was given stays as it is
        self.objective.generator = generator

    def forget(self) -> None:
        super().forget()
        self.objective.forget()

    def beta_at(self, step: int) -> float:
        """The inverse temperature after so many steps."""
        return self.start + (1 - self.start) * min(step / max(self.steps, 1), 1.0)

    def loss(self, model: Flow, x: Any, context: Any, at: Moment) -> Tensor:
        tempered = copy.copy(self.objective)
        tempered.beta = self.beta_at(at.step)
        return tempered.loss(model, x, context, at)

    def __call__(self, flow: Any, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        self.objective.beta = self.beta_at(self.taken)
        self.taken += isinstance(flow, nn.Module) and flow.training
        return self.objective(flow, x, context)


@dataclass(eq=False)
class MiniBatch:
    """A log-joint that looks at a few rows in each call, without bias.

    It is log prior + (rows / batch_size) · log-likelihood of those rows.

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
        >>> generator = torch.Generator().manual_seed(0)
        >>> log_joint = MiniBatch(prior, likelihood, rows, batch_size=100, generator=generator)
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


def finite_mean(losses: Tensor, context: Tensor | None) -> Tensor:
    """Losses (draws, *contexts) without those that are not finite: each draw's, or, given a context, each context's."""
    finite = torch.isfinite(losses)
    share = finite.to(losses.dtype).mean(0).clamp(min=1 / max(len(losses), 1))
    losses = torch.where(finite, losses, 0) / share
    return losses if context is None else losses.mean(0)
