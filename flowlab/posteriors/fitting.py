"""`fit_posterior`: from a log-density to a posterior that can be trusted, or says that it cannot."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from flowlab.bases import Gaussian
from flowlab.flow import Flow
from flowlab.layers import Affine, Coupling, Layer, LULinear, RationalQuadraticSpline, Whitening
from flowlab.layers.coupling import alternating_mask
from flowlab.mixture import FlowMixture
from flowlab.objectives import StickingTheLanding
from flowlab.posteriors import pathfinder
from flowlab.posteriors.amortized import AmortizedPosterior, fit_amortized
from flowlab.posteriors.diagnostics import ESS, KHAT, defended, missed, weigh
from flowlab.posteriors.posterior import FlowPosterior
from flowlab.posteriors.psis import smooth
from flowlab.posteriors.space import Space, Supports
from flowlab.posteriors.target import WORST_SHARE, PosteriorError, Target
from flowlab.training import fit

STARTS = 16
SPREAD = 1.0  # starts are uniform on ± this, in unconstrained space
AFFINE_STEPS, AFFINE_DRAWS, AFFINE_RATE = 150, 100, 2e-2
WIDE = 100  # features above which the rate falls as one over their number: a step adds up over a row of the matrix
NEAR, NEAR_STEPS = 0.3, 100  # share of effective draws from which on a Gaussian needs fewer steps
LOOK = 3_000  # draws by which a fit decides whether it is done
DONE_KHAT, DONE_ESS = 0.5, 0.95  # an affine map is enough
NEARLY_ALL = 0.99
FLOW_KL = 0.0075  # nats at which a flow is enough: 98.5 % effective draws, where all weights are near one
EXACT = 0.998  # the mode is not the mean: a Gaussian found by curvature alone must be closer than one that was trained
ROUNDS = (0.4, 0.8, 1.2)  # of `steps`: the flow is looked at after each, and trained on only where it is not good yet
SEARCHES = 3  # rounds in which modes that the fit misses are looked for


@overload
def fit_posterior(
    log_prob: Callable[[Any], Tensor],
    *,
    features: int | None = None,
    supports: Supports | None = None,
    context: None = None,
    encoder: None = None,
    flow: Flow | None = None,
    steps: int = 1000,
    draws: int = 256,
    learning_rate: float = 5e-3,
    dtype: torch.dtype = torch.float64,
    random_state: int = 0,
    progress: bool = True,
) -> FlowPosterior: ...


@overload
def fit_posterior(
    log_prob: Callable[[Any, Tensor], Tensor],
    *,
    features: int | None = None,
    supports: Supports | None = None,
    context: Tensor,
    encoder: nn.Module | None = None,
    flow: Flow | None = None,
    steps: int = 1000,
    draws: int = 256,
    learning_rate: float = 5e-3,
    dtype: torch.dtype = torch.float64,
    random_state: int = 0,
    progress: bool = True,
) -> AmortizedPosterior: ...


def fit_posterior(
    log_prob: Callable[..., Tensor],
    *,
    features: int | None = None,
    supports: Supports | None = None,
    context: Tensor | None = None,
    encoder: nn.Module | None = None,
    flow: Flow | None = None,
    steps: int = 1000,
    draws: int = 256,
    learning_rate: float = 5e-3,
    dtype: torch.dtype = torch.float64,
    random_state: int = 0,
    progress: bool = True,
) -> FlowPosterior | AmortizedPosterior:
    """Approximate a posterior, known by its unnormalised log-density, as closely as it needs.

    First Gaussians along the paths of 16 optimisers, one for each mode that they find; then a full-rank affine map for each by
    150 steps of sticking the landing, or 100 where it is near already; then a search for modes not yet covered. Where importance weights say that this
    is good (k-hat below 0.5, 95 % effective draws) it ends there; else a flow of affine couplings is trained in the
    coordinates that the affine map whitens. Several modes become a mixture of such flows, weighted by their evidence.

    With `context`, many data sets of one kind, a single flow with a context learns the posterior of each, and of new ones: see
    `AmortizedPosterior`. It is trained in the coordinates that whiten the posteriors of 16 of them, taken together.

    Args:
        log_prob: The log-density in nats, up to a constant, by torch operations: takes a batch of draws (n, features), or with `supports`
            a dict of tensors (n, *shape), and returns (n,). Where it is not finite the density counts as zero; a fit with more than 1 %
            such draws ends in an error. Densities are with respect to the parameters as given: Jacobians are flowlab's affair.
        features: Number of parameters, unconstrained and without names.
        supports: For each name its shape and torch constraint, e.g. `{"tau": ((), constraints.positive), "theta": ((8,), constraints.real)}`.
        context: Data sets (n, width), each flattened to a row. `log_prob` is then called as log_prob(z, context) with draws (draws, n,
            features), or a dict of tensors (draws, n, *shape), and contexts (n, width), and returns (draws, n).
        encoder: What a context is turned into before the flow sees it, (n, width) to (n, flow.context_features); trained along. When None,
            contexts are standardised.
        flow: A flow of your own for the last stage, over the whitened coordinates; it is trained in place. One is made when None.
        steps: Steps of the last stage.
        draws: Draws in each of its steps; with `context` shared out among 64 contexts.
        learning_rate: Its peak learning rate, which falls to zero by a cosine.
        dtype: Floating-point type of the draws that `log_prob` gets.
        random_state: Seed of everything.
        progress: Show progress bars in terminals and notebooks.

    Returns:
        The posterior; ask its `diagnostics()` before using it. With `context` an `AmortizedPosterior`; ask its `diagnostics(context)`.

    Raises:
        ValueError: Arguments do not fit, or `log_prob` returns the wrong shape or has no gradient.
        PosteriorError: `log_prob` is not finite at any start, or at more than 1 % of the fit's draws; values are shown.

    Example:
        >>> import torch
        >>> from torch.distributions import Gamma, Normal, constraints
        >>> data = torch.tensor([1.2, 0.7, 2.1, 1.6])
        >>> def log_joint(p):
        ...     likelihood = Normal(p["mu"].unsqueeze(-1), p["sigma"].unsqueeze(-1)).log_prob(data).sum(-1)
        ...     return likelihood + Normal(0.0, 10.0).log_prob(p["mu"]) + Gamma(2.0, 2.0).log_prob(p["sigma"])
        >>> supports = {"mu": ((), constraints.real), "sigma": ((), constraints.positive)}
        >>> posterior = fit_posterior(log_joint, supports=supports, steps=300, progress=False)
        >>> posterior.diagnostics().verdict
        'good'
        >>> posterior.sample((5,))["sigma"].shape
        torch.Size([5])
    """
    started = time.process_time()
    for name, number in (("steps", steps), ("draws", draws), ("learning_rate", learning_rate)):
        if not number > 0:
            raise ValueError(f"{name} must be positive, not {number}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type of torch, not {dtype!r}")
    space = Space(features, supports)
    if context is not None:
        options: dict[str, Any] = {"steps": steps, "draws": draws, "learning_rate": learning_rate, "dtype": dtype}
        options |= {"random_state": random_state, "progress": progress}
        return fit_amortized(log_prob, context, space, supports, flow, encoder, **options)
    if encoder is not None:
        raise ValueError("encoder needs a context: the data sets that it encodes")
    if flow is not None and (flow.features != space.features or flow.context_features):
        raise ValueError(
            f"flow must have {space.features} features and no context, not {flow.features} and {flow.context_features}"
        )
    target = Target(log_prob, space, dtype)
    generator = torch.Generator().manual_seed(random_state)
    target.check(torch.empty(3, space.features, dtype=torch.float64).uniform_(-SPREAD, SPREAD, generator=generator))
    history: list[dict[str, Any]] = []

    def train(q: Flow | FlowMixture, stage: str, **options: Any) -> None:
        """Train in place by sticking the landing."""
        objective = StickingTheLanding(target, options.pop("draws"))
        fixed = {"schedule": "cosine", "warmup": 10, "weight_decay": 0.0, "clip": math.inf, "ema": 0.0}
        found = fit(q, objective=objective, generator=generator, progress=progress, **fixed, **options)  # type: ignore[arg-type]
        history.extend({"stage": stage, "step": r["step"], "elbo": -r["train"]} for r in found.records)

    def affine(at: pathfinder.Gaussian) -> Flow:
        """The Gaussian that an affine map trained from this one ends at."""
        start = _whitened([], at.mean, at.scale_tril)
        ess = smooth(weigh(start, target, LOOK // 4, generator)[1]).ess
        if ess > EXACT:
            return start
        trained = _whitened([LULinear(space.features).double()], at.mean, at.scale_tril)
        steps = NEAR_STEPS if ess > NEAR else AFFINE_STEPS
        rate = AFFINE_RATE * min(1.0, WIDE / space.features)
        train(trained, "affine", steps=steps, draws=AFFINE_DRAWS, learning_rate=rate)
        return _merged(trained)

    found = pathfinder.find(target, pathfinder.finite_starts(target, STARTS, SPREAD, generator), generator)
    if not found:
        raise PosteriorError(
            "no path from any start led to a Gaussian with a finite evidence bound: check log_prob far from zero"
        )
    gap = found[0].elbo - found[len(found) // 2].elbo
    members = [affine(at) for at in pathfinder.separate(target, found)]
    q, evidence = _combined(members, target, generator)
    for _ in range(SEARCHES):
        unseen = [mode for mode, _ in missed(q, target, evidence, generator)]
        if not unseen:
            break
        members += [affine(at) for at in unseen]
        q, evidence = _combined(members, target, generator)
    enough = flow is None and _is_good(q, target, generator)
    prefit_seconds = time.process_time() - started
    if not enough:
        grown = [
            _grown(member, flow if i == 0 else None, generator)
            for i, member in enumerate(q if isinstance(q, FlowMixture) else [q])
        ]
        q = FlowMixture(grown, q.weights) if isinstance(q, FlowMixture) else grown[0]
        for share in ROUNDS:
            train(q, "flow", steps=max(round(share * steps), 1), draws=draws, learning_rate=learning_rate)
            if isinstance(q, FlowMixture):
                q, _ = _combined(list(q), target, generator)
            if _is_close(q, target, generator):
                break
        q = q.double()
    _check_finite(q, target, generator)
    facts: dict[str, Any] = {"restart_gap": gap, "evaluations": target.evaluations, "prefit_seconds": prefit_seconds}
    return FlowPosterior(q, space, target, history=history, **facts).eval()


def _whitened(layers: Sequence[Layer], mean: Tensor, scale_tril: Tensor) -> Flow:
    """Layers in the coordinates that a Gaussian whitens."""
    features = len(mean)
    whitening = Whitening(features).double()
    whitening.mean.copy_(mean)
    whitening.scale_tril.copy_(scale_tril)
    whitening.initialised.fill_(True)
    return Flow(Gaussian(features).double(), [*layers, whitening])


@torch.no_grad()
def _merged(flow: Flow) -> Flow:
    """A chain of a linear layer and a whitening as one whitening."""
    features = flow.features
    corners = torch.cat([torch.zeros(1, features, dtype=torch.float64), torch.eye(features, dtype=torch.float64)])
    images = flow.from_noise(corners)
    return _whitened([], images[0], pathfinder.triangular((images[1:] - images[0]).T))


def _grown(member: Flow, flow: Flow | None, generator: torch.Generator) -> Flow:
    """A flow in the coordinates in which a Gaussian is standard; at first it is that Gaussian."""
    whitening = list(member)[-1]
    if flow is not None:
        return Flow(flow.base, [*flow, whitening])
    features = member.features
    if features == 1:  # an affine map of one number would still be Gaussian
        layers: list[Layer] = [Coupling(1, RationalQuadraticSpline(16, 8.0), generator=generator) for _ in range(2)]
    else:
        masks = [alternating_mask(features, flip=i % 2 == 1) for i in range(4)]
        options: dict[str, Any] = {"hidden": (64, 64), "activation": "silu", "generator": generator}
        layers = [Coupling(features, Affine(2.0), mask, **options) for mask in masks]
    return Flow(member.base, [*(layer.double() for layer in [*layers, LULinear(features)]), whitening])


def _combined(
    members: Sequence[Flow], target: Target, generator: torch.Generator, rounds: int = 5
) -> tuple[Flow | FlowMixture, float]:
    """The members as one distribution, each weighted by the posterior's mass near it, and the log-evidence.

    Cappé et al. 2008, "Adaptive importance sampling in general mixture classes", algorithm 1, for the weights alone.
    """
    if len(members) == 1:
        return members[0], smooth(weigh(members[0], target, LOOK // 4, generator)[1]).log_mean
    shares = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
    for _ in range(rounds):
        mixture = FlowMixture(members, shares)
        z, log_w = weigh(mixture, target, LOOK, generator)
        weights = smooth(log_w).log_weights.exp()
        with torch.no_grad():
            belongs = (mixture.member_log_prob(z) + shares.log().unsqueeze(1)).softmax(0)
        shares = (belongs * weights).sum(1).clamp(min=1e-6)
        shares = shares / shares.sum()
    mixture = FlowMixture(members, shares)
    return mixture, smooth(weigh(mixture, target, LOOK, generator)[1]).log_mean


def _is_good(q: Flow | FlowMixture, target: Target, generator: torch.Generator) -> bool:
    """Whether k-hat is below 0.5 and 95 % of the draws effective, or nearly all are, which is better than any k-hat."""
    plain = smooth(weigh(q, target, LOOK, generator)[1])
    if plain.ess > NEARLY_ALL or plain.ess <= DONE_ESS:
        return plain.ess > DONE_ESS
    return smooth(weigh(defended(q), target, LOOK, generator)[1]).khat < DONE_KHAT


def _is_close(q: Flow | FlowMixture, target: Target, generator: torch.Generator) -> bool:
    """Whether a trained flow is near enough to the posterior, in nats, with weights that can be relied on.

    Nats, since a single heavy weight takes effective draws away, but hardly any nats: it lies far out in a tail, which further
    training reaches no better.
    """
    log_w = weigh(q, target, LOOK, generator)[1]
    plain = smooth(log_w)
    if plain.log_mean - float(log_w[torch.isfinite(log_w)].mean()) > FLOW_KL:
        return False
    return plain.ess > ESS or smooth(weigh(defended(q), target, LOOK, generator)[1]).khat < KHAT


def _check_finite(q: Flow | FlowMixture, target: Target, generator: torch.Generator) -> None:
    z, log_w = weigh(q, target, LOOK, generator)
    bad = ~torch.isfinite(log_w)
    share = float(bad.double().mean())
    if share > WORST_SHARE:
        raise PosteriorError(
            f"log_prob is not finite at {share:.1%} of the fit's draws, more than {WORST_SHARE:.0%}; {target.shown(z[bad][:3])}. "
            "Where a parameter is bounded, say so in supports=…; where a computation overflows, rewrite it in logarithms"
        )
