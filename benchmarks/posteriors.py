"""`fit_posterior()` on real posteriors with reference draws, and on constructed ones whose evidence is known.

    python benchmarks/posteriors.py                        # a quarter of an hour; with --peers two more
    python benchmarks/posteriors.py --targets ../shared/posteriordb --seeds 3 --peers

The real ones are eleven posteriors of posteriordb (Magnusson et al. 2022) with 10,000 reference draws; a folder with
`targets.py`, which writes them in torch, is needed, and without it that part is left out. Errors are of plain draws,
in the reference's standard deviations. Writes benchmarks/results/posteriors.md.
"""

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, circumstances, load, table_of_records
from torch import Tensor
from torch.distributions import (
    Categorical,
    HalfCauchy,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from flowlab.posteriors import fit_posterior
from flowlab.posteriors.psis import smooth

HERE = Path(__file__).parent
RESULT = RESULTS / "posteriors.md"
DRAWS = 10_000
PEERS = ("AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal")
PARTICLES = 64
PEERS_TITLE = "Pyro's guides on the real ones, 320,000 evaluations of the log-density each"

LogProb = Callable[[Tensor], Tensor]


def correlated(features: int) -> LogProb:
    """A Gaussian with random correlations and scales from 0.01 to 100."""
    generator = torch.Generator().manual_seed(features)
    factor = torch.randn(features, features, generator=generator).double() / features**0.5
    scale = torch.logspace(-2, 2, features, dtype=torch.float64)
    covariance = scale[:, None] * (factor @ factor.T + 0.05 * torch.eye(features)) * scale
    return MultivariateNormal(scale * torch.randn(features, generator=generator), covariance).log_prob


def funnel(z: Tensor) -> Tensor:
    """Neal's funnel."""
    width = (z[:, :1] / 2).exp()
    return Normal(0.0, 3.0).log_prob(z[:, 0]) + Normal(0.0, width).log_prob(z[:, 1:]).sum(-1)


def banana(z: Tensor) -> Tensor:
    return Normal(0.0, 10.0).log_prob(z[:, 0]) + Normal(0.03 * (z[:, 0].square() - 100), 1.0).log_prob(z[:, 1])


def student(df: float) -> LogProb:
    return lambda z: StudentT(torch.tensor(df, dtype=torch.float64)).log_prob(z).sum(-1)


def mixture(
    centres: list[list[float]], scales: list[float] | float = 1.0, weights: list[float] | None = None
) -> LogProb:
    where = torch.tensor(centres, dtype=torch.float64)
    scale = torch.as_tensor(scales, dtype=torch.float64).expand(len(where)).unsqueeze(-1).expand_as(where)
    shares = torch.ones(len(where)) if weights is None else torch.tensor(weights)
    return MixtureSameFamily(Categorical(shares.double()), Independent(Normal(where, scale), 1)).log_prob


SCHOOLS = torch.tensor([[28.0, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]], dtype=torch.float64)


def schools(z: Tensor) -> Tensor:
    """Eight schools, centred, a funnel over mu, log tau and theta; normalised by quadrature over log tau."""
    y, s = SCHOOLS
    mu, tau = z[:, :1], z[:, 1:2].exp()
    likelihood = Normal(z[:, 2:], s).log_prob(y).sum(-1)
    return (
        likelihood + Normal(mu, tau).log_prob(z[:, 2:]).sum(-1) + schools_prior(mu, tau).squeeze(1) - schools_evidence()
    )


def schools_prior(mu: Tensor, tau: Tensor) -> Tensor:
    """N(0, 5) for mu, and for log tau what a half-Cauchy of scale 5 makes of it."""
    return Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(torch.tensor(5.0, dtype=torch.float64)).log_prob(tau) + tau.log()


@functools.cache
def schools_evidence() -> float:
    """Given mu and tau, y is normal with variance s² + tau²; given tau and y, so is mu."""
    y, s = SCHOOLS
    log_tau = torch.linspace(-15, 8, 8001, dtype=torch.float64).unsqueeze(1)
    variance = s.square() + (2 * log_tau).exp()
    precision = 1 / 25 + (1 / variance).sum(1, keepdim=True)
    mu = (y / variance).sum(1, keepdim=True) / precision
    log_p = Normal(mu, variance.sqrt()).log_prob(y).sum(1, keepdim=True) + schools_prior(mu, log_tau.exp())
    log_p = log_p + (2 * math.pi / precision).log() / 2
    return float(log_p.logsumexp(0)) + math.log(float(log_tau[1] - log_tau[0]))


# Name: features, log-density with evidence one, and the bar on KL where there is one.
CONSTRUCTED: dict[str, tuple[int, LogProb, float]] = {
    "correlated Gaussian, 50": (50, correlated(50), 0.05),
    "correlated Gaussian, 500": (500, correlated(500), 0.5),
    "funnel, 10": (10, funnel, math.nan),
    "eight schools, centred, 10": (10, schools, math.nan),
    "banana, 2": (2, banana, math.nan),
    "Student-t, df 5, 5": (5, student(5.0), math.nan),
    "Student-t, df 3, 10": (10, student(3.0), math.nan),
    "two modes, 10 sd apart, 2": (2, mixture([[0.0, 0.0], [10.0, 0.0]]), math.nan),
    "two modes, 30 : 70, 10": (10, mixture([[5.0] * 10, [-5.0] * 10], weights=[0.3, 0.7]), math.nan),
    "two modes, 220 sd apart, 5": (5, mixture([[0.0] * 5, [100.0] * 5]), math.nan),
    "two modes, widths 1 : 30, 3": (3, mixture([[0.0] * 3, [15.0, 0.0, 0.0]], [0.1, 3.0]), math.nan),
    "two modes, widths 40 : 1, 2": (2, mixture([[0.0, 0.0], [8.0, 8.0]], [2.0, 0.05]), math.nan),
    "a needle, widths 20 : 1, 5": (5, mixture([[0.0] * 5, [8.0] * 5], [2.0, 0.1]), math.nan),
    "four modes, 10 sd apart, 2": (2, mixture([[5.0, 5.0], [-5.0, 5.0], [5.0, -5.0], [-5.0, -5.0]]), math.nan),
    "four modes, 4 sd apart, 2": (2, mixture([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]]), math.nan),
    "four modes in a row, 1": (1, mixture([[-9.0], [-3.0], [3.0], [9.0]], 0.5), math.nan),
}


def errors(x: Tensor, reference: dict[str, np.ndarray]) -> tuple[float, float]:
    """The largest standardised error of a mean, and of a log standard deviation."""
    mean = np.abs((x.mean(0).numpy() - reference["mean"]) / reference["sd"]).max()
    return float(mean), float(np.abs(np.log(x.std(0).numpy() / reference["sd"])).max())


def real(targets: Any, seeds: int) -> Iterator[dict[str, Any]]:
    """flowlab with its defaults on every real target."""
    for name in targets.NAMES:
        target = targets.get(name)
        for seed in range(seeds):
            started = time.process_time()
            posterior = fit_posterior(target.log_prob, features=target.dim, random_state=seed, progress=False)
            seconds = time.process_time() - started
            found = posterior.diagnostics(DRAWS)
            x = target.constrain(posterior.sample((2 * DRAWS,), torch.Generator().manual_seed(seed + 1)))
            mean, sd = errors(x, target.reference())
            yield {
                "target": f"{name}, {target.dim}",
                "seed": seed,
                "KL": found.divergence,
                "log-evidence": str(found.log_evidence),
                "k-hat": found.khat,
                "ESS": found.ess,
                "mean error": mean,
                "log sd error": sd,
                "flow": any(record["stage"] == "flow" for record in posterior.history),
                "evaluations": posterior.evaluations,
                "prefit s": posterior.prefit_seconds,
                "CPU s": seconds,
                "verdict": found.verdict,
                "met": mean < 0.1
                and sd < 0.1
                and found.divergence < 0.05
                and (found.khat < 0.7 or found.ess > 0.98)
                and posterior.prefit_seconds <= 3
                and seconds <= 20,
            }


def constructed(seeds: int) -> Iterator[dict[str, Any]]:
    """flowlab with its defaults where the evidence is one."""
    for name, (features, log_prob, bar) in CONSTRUCTED.items():
        for seed in range(seeds):
            started = time.process_time()
            posterior = fit_posterior(log_prob, features=features, random_state=seed, progress=False)
            seconds = time.process_time() - started
            found = posterior.diagnostics(DRAWS)
            divergence, evidence = -found.elbo.value, found.log_evidence.value
            honest = abs(evidence) < 0.05 or found.verdict == "do not trust"
            yield {
                "target": name,
                "seed": seed,
                "KL": divergence,
                "log-evidence (truth 0)": str(found.log_evidence),
                "k-hat": found.khat,
                "ESS": found.ess,
                "modes": found.modes,
                "evaluations": posterior.evaluations,
                "CPU s": seconds,
                "verdict": found.verdict,
                "met": honest and not divergence > bar,
            }


def peers(targets: Any, evaluations: int = 320_000) -> Iterator[dict[str, Any]]:
    """Pyro's automatic guides, as documented, each with that many evaluations of the log-density."""
    import pyro
    from pyro import distributions as dist
    from pyro.infer import SVI, Trace_ELBO, autoguide

    steps = evaluations // PARTICLES
    for name in targets.NAMES:
        target = targets.get(name)

        def model(target: Any = target) -> None:
            flat = dist.Normal(torch.zeros(target.dim), 1.0).to_event(1).mask(False)  # says nothing
            pyro.factor("log_prob", target.log_prob(pyro.sample("z", flat)))

        for kind in PEERS:
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            guide = getattr(autoguide, kind)(model)
            optimizer = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / steps)})
            svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True))
            started = time.process_time()
            record = {"target": f"{name}, {target.dim}", "guide": kind}
            try:
                for _ in range(steps):
                    svi.step()
                record["CPU s"] = time.process_time() - started
                with torch.no_grad():
                    if kind == "AutoNormal":
                        q: Any = Independent(Normal(guide.locs.z, guide.scales.z), 1)
                    else:
                        q = guide.get_posterior()
                    z = q.sample((DRAWS,))
                    log_w = (target.log_prob(z.double()) - q.log_prob(z)).double()
                weights = smooth(log_w)
                mean, sd = errors(target.constrain(z.double()), target.reference())
                yield record | {
                    "ELBO": float(log_w.mean()),
                    "k-hat": weights.khat,
                    "ESS": weights.ess,
                    "mean error": mean,
                    "log sd error": sd,
                }
            except (ValueError, RuntimeError, ArithmeticError) as error:
                yield record | {"ELBO": f"failed: {str(error).splitlines()[0][:60]}"}


def earlier(title: str) -> str | None:
    """The section of that title of the page as it is."""
    if not RESULT.exists():
        return None
    return next((s for s in RESULT.read_text().split("\n## ")[1:] if s.startswith(title)), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=Path, default=HERE.parent.parent / "shared" / "posteriordb")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="run Pyro's guides as well")
    options = parser.parse_args()
    torch.set_num_threads(1)

    parts = {}
    if (options.targets / "targets.py").exists():
        sys.path.insert(0, str(options.targets))
        import targets

        parts["Real posteriors, defaults"] = real(targets, options.seeds)
    else:
        print(f"real posteriors skipped: no targets.py in {options.targets}")
    parts["Constructed posteriors, defaults"] = constructed(options.seeds)
    kept_peers = None
    if options.peers and "Real posteriors, defaults" in parts:
        parts[PEERS_TITLE] = peers(targets)
    else:
        kept_peers = earlier(PEERS_TITLE)

    text = [
        "# Variational posteriors\n",
        "`python benchmarks/posteriors.py`. Nats; k-hat with the defensive base, ESS as a share of plain draws; KL is "
        "log-evidence less ELBO (for constructed targets the ELBO alone, the evidence being one).\n",
        "Bars, real: errors < 0.1, KL < 0.05, k-hat < 0.7 or ESS > 0.98, prefit <= 3 and fit <= 20 CPU seconds. "
        'Constructed: log-evidence within 0.05 or the verdict "do not trust"; KL < 0.05 and < 0.5 for the Gaussians.\n',
    ]
    for title, records in parts.items():
        text += [f"## {title}\n"]
        kept = []
        for record in records:
            print(record, flush=True)
            kept.append(record)
        if kept and "met" in kept[0]:
            text += [f"Met: {sum(record['met'] for record in kept)} of {len(kept)}.\n"]
        text += [f"Run: {circumstances()}, one thread, {load()}.\n", table_of_records(kept) + "\n"]
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text("\n".join([*text, *([f"## {kept_peers.strip()}\n"] if kept_peers else [])]))


if __name__ == "__main__":
    main()
