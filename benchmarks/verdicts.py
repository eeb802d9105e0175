"""Is a verdict ever better than the posterior? `fit_posterior()` on targets whose moments are known.

    python benchmarks/verdicts.py                          # half an hour on one core
    python benchmarks/verdicts.py --seeds 1 --only spike

Each target has exact draws, from which its means and standard deviations are known, or its quantiles where it has no
moments. A verdict is wrong where it says "good" and a mean is off by more than a tenth of a standard deviation, or a
standard deviation by more than a tenth of itself (in logarithms); or, without moments, the share of the posterior
below a quantile of the fit by more than 0.03. Writes benchmarks/results/verdicts.md.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import RESULTS, circumstances, load, table_of_records
from posteriors import banana, correlated, funnel
from torch import Tensor
from torch.distributions import (
    Beta,
    Categorical,
    Cauchy,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Independent,
    InverseGamma,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Normal,
    StudentT,
    Weibull,
    constraints,
)
from torch.nn.functional import logsigmoid

from flowlab.posteriors import PosteriorError, fit_posterior

RESULT = RESULTS / "verdicts.md"
DRAWS = 400_000
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
OFF, OFF_QUANTILE = 0.1, 0.03

LogProb = Callable[[Any], Tensor]


@dataclass
class Case:
    """A target: its log-density, its space, and exact draws (n, columns); no draws where it is improper."""

    log_prob: LogProb
    features: int | None = None
    supports: dict[str, Any] | None = None
    draws: Callable[[int], Tensor] | None = None
    moments: bool = True
    sd: float | None = None  # where draws say too little of it


def f64(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def free(distribution: Distribution, features: int | None = None, **options: Any) -> Case:
    """Unconstrained numbers: `features` independent ones of a distribution, or a distribution over vectors."""
    if features is None:
        return Case(
            distribution.log_prob, distribution.event_shape[0], draws=lambda n: distribution.sample((n,)), **options
        )
    return Case(
        lambda z: distribution.log_prob(z).sum(-1),
        features,
        draws=lambda n: distribution.sample((n, features)),
        **options,
    )


def bounded(distribution: Distribution, support: Any, count: int = 1, **options: Any) -> Case:
    """`count` independent parameters in a support; one vector where the distribution is over vectors."""
    shape = distribution.event_shape or (count,)
    vector = bool(distribution.event_shape)
    return Case(
        lambda p: distribution.log_prob(p["x"]) if vector else distribution.log_prob(p["x"]).sum(-1),
        supports={"x": (tuple(shape), support)},
        draws=lambda n: distribution.sample((n,) if vector else (n, count)),
        **options,
    )


def mixture(centres: Sequence[Sequence[float]], sds: Sequence[float], shares: Sequence[float]) -> Case:
    where = f64(centres)
    scale = f64(sds).unsqueeze(-1).expand_as(where)
    return free(MixtureSameFamily(Categorical(f64(shares)), Independent(Normal(where, scale), 1)))


def contaminated(features: int, width: float, share: float) -> Case:
    return mixture([[0.0] * features] * 2, [1.0, width], [1 - share, share])


def twin(features: int, width: float, at: float, share: float = 0.5, diagonal: bool = False) -> Case:
    centre = [at / math.sqrt(features)] * features if diagonal else [at] + [0.0] * (features - 1)
    return mixture([[0.0] * features, centre], [1.0, width], [1 - share, share])


def on_a_grid(log_prob: LogProb, low: float, high: float, size: int = 2_000_001) -> Case:
    """One parameter, whose draws come from a grid."""
    grid = torch.linspace(low, high, size, dtype=torch.float64)

    def draws(n: int) -> Tensor:
        cumulative = log_prob(grid.unsqueeze(1)).softmax(0).cumsum(0)
        return grid[torch.searchsorted(cumulative, torch.rand(n, dtype=torch.float64)).clamp(max=size - 1)].unsqueeze(1)

    return Case(log_prob, 1, draws=draws)


def logistic(prior: float, x: Sequence[float] = (2.0, 1.0, 1.0, 2.0)) -> Case:
    """A slope whose observations are separable: flat from about zero on, until the prior ends it."""
    seen = f64(x)
    return on_a_grid(
        lambda z: logsigmoid(seen * z).sum(-1) + Normal(0.0, prior).log_prob(z).sum(-1), -0.5 * prior, 9 * prior
    )


def separable(features: int, prior: float) -> Case:
    """Several such slopes, each with observations of its own."""
    return Case(
        lambda z: (4 * logsigmoid(z) + Normal(0.0, prior).log_prob(z)).sum(-1),
        features,
        draws=lambda n: torch.cat([four(prior, n) for _ in range(features)], 1),
    )


def four(prior: float, n: int) -> Tensor:
    case = on_a_grid(lambda z: (4 * logsigmoid(z) + Normal(0.0, prior).log_prob(z)).sum(-1), -0.5 * prior, 9 * prior)
    assert case.draws is not None
    return case.draws(n)


def tailed_coordinate(features: int, tail: Distribution, **options: Any) -> Case:
    """One coordinate with that distribution, the others normal."""

    def log_prob(z: Tensor) -> Tensor:
        return tail.log_prob(z[:, 0]) + Normal(0.0, 1.0).log_prob(z[:, 1:]).sum(-1)

    def draws(n: int) -> Tensor:
        return torch.cat([tail.sample((n, 1)), torch.randn(n, features - 1, dtype=torch.float64)], 1)

    return Case(log_prob, features, draws=draws, **options)


def round_student(features: int, df: float, **options: Any) -> Case:
    """A multivariate Student-t, whose tail is in all directions at once."""

    def log_prob(z: Tensor) -> Tensor:
        return -(df + features) / 2 * torch.log1p(z.square().sum(-1) / df)

    def draws(n: int) -> Tensor:
        chi = Gamma(f64(df / 2), f64(0.5)).sample((n, 1))
        return torch.randn(n, features, dtype=torch.float64) * (df / chi).sqrt()

    return Case(log_prob, features, draws=draws, **options)


def funnel_case(features: int, sd: float) -> Case:
    def log_prob(z: Tensor) -> Tensor:
        return Normal(0.0, sd).log_prob(z[:, 0]) + Normal(0.0, (z[:, :1] / 2).exp()).log_prob(z[:, 1:]).sum(-1)

    def draws(n: int) -> Tensor:
        first = sd * torch.randn(n, 1, dtype=torch.float64)
        return torch.cat([first, (first / 2).exp() * torch.randn(n, features - 1, dtype=torch.float64)], 1)

    return Case(log_prob, features, draws=draws, sd=None)


def banana_draws(n: int) -> Tensor:
    first = 10 * torch.randn(n, dtype=torch.float64)
    return torch.stack([first, 0.03 * (first.square() - 100) + torch.randn(n, dtype=torch.float64)], 1)


def ring(radius: float = 5.0, width: float = 0.5) -> Case:
    def draws(n: int) -> Tensor:
        grid = torch.linspace(0, 2 * radius, 100_001, dtype=torch.float64)
        weights = (-((grid - radius) / width).square() / 2).exp() * grid
        r = grid[torch.multinomial(weights, n, replacement=True)]
        angle = 2 * math.pi * torch.rand(n, dtype=torch.float64)
        return torch.stack([r * angle.cos(), r * angle.sin()], 1)

    return Case(lambda z: -((z.norm(dim=-1) - radius) / width).square() / 2, 2, draws=draws)


def beta_binomial() -> Case:
    """Successes of ten groups; a log-normal prior leaves the concentration a heavy tail. Draws by a grid."""
    hits, trials = f64([3, 5, 4, 6, 2, 5, 7, 3, 4, 5]), 10.0

    def log_prob(p: dict[str, Tensor]) -> Tensor:
        mean, size = p["mean"].unsqueeze(-1), p["size"].unsqueeze(-1)
        a, b = mean * size, (1 - mean) * size
        each = torch.lgamma(a + hits) + torch.lgamma(b + trials - hits) - torch.lgamma(size + trials)
        each = each - torch.lgamma(a) - torch.lgamma(b) + torch.lgamma(size)
        return (
            each.sum(-1)
            + LogNormal(f64(2.0), f64(1.0)).log_prob(p["size"])
            + Beta(f64(2.0), f64(2.0)).log_prob(p["mean"])
        )

    def draws(n: int) -> Tensor:
        mean, log_size = (
            torch.linspace(0.1, 0.9, 401, dtype=torch.float64),
            torch.linspace(-3, 9, 1601, dtype=torch.float64),
        )
        points = torch.cartesian_prod(mean, log_size)
        values = torch.cat(
            [log_prob({"mean": some[:, 0], "size": some[:, 1].exp()}) + some[:, 1] for some in points.split(50_000)]
        )
        chosen = torch.searchsorted(values.softmax(0).cumsum(0), torch.rand(n, dtype=torch.float64))
        chosen = points[chosen.clamp(max=len(points) - 1)]
        return torch.stack([chosen[:, 0], chosen[:, 1].exp()], 1)

    supports = {"mean": ((), constraints.unit_interval), "size": ((), constraints.positive)}
    return Case(log_prob, supports=supports, draws=draws)


def correlated_draws(features: int) -> Callable[[int], Tensor]:
    normal = correlated(features).__self__  # type: ignore[attr-defined]
    return lambda n: normal.sample((n,))


POSITIVE, UNIT = constraints.positive, constraints.unit_interval
CASES: dict[str, Callable[[], Case]] = {
    # Flat, with one or two ends: narrower fits have equal weights.
    "logistic, separable, prior sd 10, 1": lambda: logistic(10.0),
    "logistic, separable, prior sd 100, 1": lambda: logistic(100.0),
    "logistic, separable, prior sd 1000, 1": lambda: logistic(1000.0),
    "logistic, separable, prior sd 100, 3": lambda: separable(3, 100.0),
    "one observation, prior sd 300, 1": lambda: logistic(300.0, (1.0,)),
    "a plateau with soft ends, 1": lambda: on_a_grid(lambda z: (logsigmoid(z) + logsigmoid(200 - z)).sum(-1), -40, 240),
    "uniform on (0, 1), 1": lambda: bounded(Beta(f64(1.0), f64(1.0)), UNIT),
    # Wider parts and spikes.
    "1 % ten times wider, 1": lambda: contaminated(1, 10.0, 0.01),
    "5 % ten times wider, 1": lambda: contaminated(1, 10.0, 0.05),
    "5 % ten times wider, 2": lambda: contaminated(2, 10.0, 0.05),
    "5 % ten times wider, 5": lambda: contaminated(5, 10.0, 0.05),
    "10 % five times wider, 10": lambda: contaminated(10, 5.0, 0.1),
    "2 % a hundred times wider, 3": lambda: contaminated(3, 100.0, 0.02),
    "5 % ten times wider in one of 5": lambda: tailed_coordinate(
        5, MixtureSameFamily(Categorical(f64([0.95, 0.05])), Normal(f64([0.0, 0.0]), f64([1.0, 10.0])))
    ),
    "a spike 1/100 as wide, 1": lambda: contaminated(1, 0.01, 0.5),
    "a spike 1/100 as wide, 2": lambda: contaminated(2, 0.01, 0.5),
    "a spike 1/100 as wide, 3": lambda: contaminated(3, 0.01, 0.5),
    "a spike 1/100 as wide, 10": lambda: contaminated(10, 0.01, 0.5),
    "a spike 1/1000 as wide, 2": lambda: contaminated(2, 0.001, 0.5),
    "a spike 1/30 as wide, 30 %, off centre, 3": lambda: mixture(
        [[0.0] * 3, [0.5, -0.3, 0.2]], [1.0, 1 / 30], [0.7, 0.3]
    ),
    # Modes.
    "a twin half as wide at 8 sd, 10": lambda: twin(10, 0.5, 8.0),
    "a twin half as wide at 8 sd, diagonal, 5": lambda: twin(5, 0.5, 8.0, diagonal=True),
    "a twin 1/5 as wide at 8 sd, 1": lambda: twin(1, 0.2, 8.0),
    "a twin 1/5 as wide at 8 sd, 2": lambda: twin(2, 0.2, 8.0),
    "a twin 1/5 as wide at 8 sd, diagonal, 3": lambda: twin(3, 0.2, 8.0, diagonal=True),
    "a twin 1/10 as wide at 20 sd, 1": lambda: twin(1, 0.1, 20.0),
    "a twin 1/3 as wide at 6 sd, 5": lambda: twin(5, 1 / 3, 6.0),
    "a twin of 10 %, 12 sd away, 3": lambda: twin(3, 0.7, 12.0, 0.1),
    "a twin four times as wide at 20 sd, 3": lambda: twin(3, 4.0, 20.0),
    "two modes, 30 : 70, 10": lambda: mixture([[5.0] * 10, [-5.0] * 10], [1.0, 1.0], [0.3, 0.7]),
    "four modes, 4 sd apart, 2": lambda: mixture([[2.0, 2], [-2, 2], [2, -2], [-2, -2]], [1.0] * 4, [0.25] * 4),
    # Heavy tails.
    "Student-t, df 5, 2": lambda: free(StudentT(f64(5.0)), 2),
    "Student-t, df 2.5, 1": lambda: free(StudentT(f64(2.5)), 1, sd=math.sqrt(5.0)),
    "Student-t, df 3, 10": lambda: free(StudentT(f64(3.0)), 10, sd=math.sqrt(3.0)),
    "round Student-t, df 3, 5": lambda: round_student(5, 3.0, sd=math.sqrt(3.0)),
    "Student-t, df 4 in one of 5": lambda: tailed_coordinate(5, StudentT(f64(4.0))),
    "Student-t, df 1.5, 1": lambda: free(StudentT(f64(1.5)), 1, moments=False),
    "Cauchy, 1": lambda: free(Cauchy(f64(0.0), f64(1.0)), 1, moments=False),
    "Cauchy, 3": lambda: free(Cauchy(f64(0.0), f64(1.0)), 3, moments=False),
    "round Cauchy, 3": lambda: round_student(3, 1.0, moments=False),
    "Laplace, 2": lambda: free(Laplace(f64(0.0), f64(1.0)), 2),
    # Positive and bounded parameters, mass at the bound, heavy tails on a scale.
    "Gamma(.05), 1": lambda: bounded(Gamma(f64(0.05), f64(1.0)), POSITIVE),
    "Gamma(.05), 3": lambda: bounded(Gamma(f64(0.05), f64(1.0)), POSITIVE, 3),
    "Gamma(.5), 2": lambda: bounded(Gamma(f64(0.5), f64(1.0)), POSITIVE, 2),
    "Beta(.1, 5), 1": lambda: bounded(Beta(f64(0.1), f64(5.0)), UNIT),
    "Beta(.1, .1), 1": lambda: bounded(Beta(f64(0.1), f64(0.1)), UNIT),
    "Beta(.5, .5), 2": lambda: bounded(Beta(f64(0.5), f64(0.5)), UNIT, 2),
    "Dirichlet(.1, .5, 1), 2": lambda: bounded(Dirichlet(f64([0.1, 0.5, 1.0])), constraints.simplex),
    "half-Cauchy, 1": lambda: bounded(HalfCauchy(f64(1.0)), POSITIVE, moments=False),
    "half-Cauchy, scale 5, 3": lambda: bounded(HalfCauchy(f64(5.0)), POSITIVE, 3, moments=False),
    "half-normal, 1": lambda: bounded(HalfNormal(f64(1.0)), POSITIVE),
    "exponential, 5": lambda: bounded(Exponential(f64(1.0)), POSITIVE, 5),
    "inverse gamma(3), 1": lambda: bounded(InverseGamma(f64(3.0), f64(1.0)), POSITIVE, sd=0.5),
    "inverse gamma(.5), 2": lambda: bounded(InverseGamma(f64(0.5), f64(1.0)), POSITIVE, 2, moments=False),
    "Weibull(.5), 1": lambda: bounded(Weibull(f64(1.0), f64(0.5)), POSITIVE, sd=math.sqrt(20.0)),
    "log-normal(1), 3": lambda: bounded(LogNormal(f64(0.0), f64(1.0)), POSITIVE, 3),
    "log-normal(1.5), 1": lambda: bounded(
        LogNormal(f64(0.0), f64(1.5)), POSITIVE, sd=math.sqrt(math.expm1(2.25) * math.exp(2.25))
    ),
    "beta-binomial, concentration, 2": beta_binomial,
    # Improper ones.
    "|z|^(-2/3), 1": lambda: Case(lambda z: -torch.log1p(z.abs()).sum(-1) * 2 / 3, 1),
    "|z|^(-1), 1": lambda: Case(lambda z: -0.5 * torch.log1p(z.square()).sum(-1), 1),
    "r^(-1.5), 2": lambda: Case(lambda z: -0.75 * torch.log1p(z.square().sum(-1)), 2),
    "flat to one side, 2": lambda: Case(lambda z: logsigmoid(z[:, 0]) - z[:, 1].square() / 2, 2),
    "1/x, positive, with a normal, 2": lambda: Case(
        lambda p: -p["s"].log() - p["z"].square() / 2, supports={"s": ((), POSITIVE), "z": ((), constraints.real)}
    ),
    # Curved, skewed, and those that were right all along.
    "Gumbel, 2": lambda: free(Gumbel(f64(0.0), f64(1.0)), 2),
    "funnel, sd 1, 2": lambda: funnel_case(2, 1.0),
    "funnel, sd 1.5, 5": lambda: funnel_case(5, 1.5),
    "Neal's funnel, 10": lambda: Case(funnel, 10, draws=funnel_case(10, 3.0).draws, moments=False),
    "banana, 2": lambda: Case(banana, 2, draws=banana_draws),
    "a ring, 2": lambda: ring(),
    "correlated Gaussian, 5": lambda: Case(correlated(5), 5, draws=correlated_draws(5)),
    "correlated Gaussian, 50": lambda: Case(correlated(50), 50, draws=correlated_draws(50)),
}


def deviations(x: Tensor, truth: Tensor, case: Case) -> dict[str, float]:
    """How far draws (n, columns) are from the truth."""
    levels = f64(LEVELS)
    below = torch.stack([(truth <= q).double().mean(0) for q in x.double().quantile(levels, dim=0)])
    found = {"quantile error": float((below - levels.unsqueeze(1)).abs().max())}
    if case.moments:
        sd = truth.std(0) if case.sd is None else torch.full_like(truth[0], case.sd)
        found["mean error"] = float(((x.mean(0) - truth.mean(0)) / sd).abs().max())
        found["log sd error"] = float((x.std(0) / sd).log().abs().max())
    return found


def off(found: dict[str, float]) -> bool:
    if "mean error" in found:
        return max(found["mean error"], found["log sd error"]) > OFF
    return found["quantile error"] > OFF_QUANTILE


def judged(name: str, case: Case, seed: int) -> dict[str, Any]:
    """One fit: its verdict, and whether its draws bear it out."""
    record: dict[str, Any] = {"target": name, "seed": seed, "verdict": "", "wrong": False}
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = fit_posterior(
                case.log_prob, features=case.features, supports=case.supports, random_state=seed, progress=False
            )
    except PosteriorError as error:
        return record | {"verdict": "refused: " + str(error)[:60], "CPU s": time.process_time() - started}
    record["CPU s"] = time.process_time() - started
    found = posterior.diagnostics()
    record |= {"verdict": found.verdict, "k-hat": found.khat, "ESS": found.ess, "evaluations": posterior.evaluations}
    if case.draws is None:
        return record | {"wrong": found.verdict != "do not trust", "reasons": "; ".join(found.reasons)}
    torch.manual_seed(12345)
    truth = case.draws(DRAWS).double()
    columns = posterior.space.columns
    plain = deviations(columns(posterior.sample((DRAWS,), torch.Generator().manual_seed(seed))), truth, case)
    record |= plain | {"right": not off(plain), "wrong": found.verdict == "good" and off(plain)}
    if found.verdict == "usable after resampling":
        try:
            again = deviations(columns(posterior.resample(20_000, random_state=seed)), truth, case)
            record["resampled is off by"] = max(
                v for k, v in again.items() if k != "quantile error" or not case.moments
            )
        except PosteriorError:
            record["resampled is off by"] = "refused"
    return record | {"reasons": "; ".join(found.reasons)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="targets with this in their name; nothing is written then")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, case in CASES.items():
            if options.only in name:
                records.append(judged(name, case(), seed))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in records[-1].items()}, flush=True)
        if not options.only:
            write(records)


def write(records: list[dict[str, Any]]) -> None:
    """The page, of the seeds so far."""
    good = sum(r["verdict"] == "good" for r in records)
    wrong = sum(r["wrong"] for r in records)
    wrong_good = sum(r["wrong"] and r["verdict"] == "good" for r in records)
    text = [
        "# Verdicts against known moments\n",
        '`python benchmarks/verdicts.py`. Wrong: the verdict is "good", and of plain draws a mean is off by more than '
        "0.1 sd, a log sd by more than 0.1, or, for targets without moments, the posterior's share below a quantile by "
        'more than 0.03; for improper ones, whatever is not "do not trust". The number at a name\'s end is that of '
        "parameters.\n",
        f"{len(CASES)} targets, {len(records)} fits: {good} good, {wrong_good} of them wrongly so; "
        f"{wrong - wrong_good} improper ones not seen to be.\n",
        f"Run: {circumstances()}, one thread, {load()}.\n",
        table_of_records(sorted(records, key=lambda r: list(CASES).index(r["target"]))) + "\n",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(text))


if __name__ == "__main__":
    main()
