"""The models whose files are mutated: a small one of every kind, and what is asked of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import flowlab
from flowlab import FlowDensity, Member, bases, layers, presets
from flowlab.interop.converted import Backwards, ConvertedAutoregressive, ConvertedCoupling, FlooredSpline, Inverse
from flowlab.interop.steps import Steps
from flowlab.posteriors import AmortizedPosterior, FlowPosterior
from flowlab.posteriors.contexts import Given, Standardise
from flowlab.posteriors.space import Space

FIXTURES = Path(__file__).parents[2] / "tests" / "data"  # models of older formats
EARLY = ("mixture", "numbers", "posterior", "table")


def table() -> pd.DataFrame:
    """A small whole table."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "n": rng.integers(0, 5, 60), "low": rng.integers(0, 9, 60)})
    frame["high"] = frame.low + rng.integers(0, 5, 60)
    frame["total"] = frame.n * frame.low
    frame["city"] = rng.choice(["Rome", "Oslo", "Bern"], 60)
    frame["when"] = pd.Timestamp("2024-01-01 08:00") + pd.to_timedelta(rng.integers(0, 3000, 60) * 60, "s")
    frame["size"] = pd.Categorical(rng.choice(["s", "m", "l"], 60), categories=["s", "m", "l", "xl"], ordered=True)
    frame.loc[::7, "x"], frame.loc[::5, "city"] = np.nan, None
    return frame


def seeds() -> dict[str, tuple[Any, Any]]:
    """A small model of every kind, each with rows to score."""
    generator = torch.Generator().manual_seed(0)
    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    numbers["k"], numbers["d"], whole = np.arange(60) % 7, 2 * numbers.a - numbers.b, table()
    mixed = [Member("mixed", steps=5, hidden=(4,), components=2, trees=2, gaussians=2)]
    fitted: dict[str, Any] = {"effort": "fast", "random_state": 0, "n_jobs": 1, "validation": 0}
    held_out = {**fitted, "validation": 0.2}
    plain = whole[["x", "n", "city"]]
    rules = ["low <= high", "total = n * low", "n + low < 100", flowlab.FixedCombinations(["city", "size"])]
    supports = {
        "tau": ((), torch.distributions.constraints.positive),
        "p": ((3,), torch.distributions.constraints.simplex),
    }
    own = [
        layers.Permutation(3, [2, 0, 1]),
        layers.ActNorm(3),
        layers.LULinear(3),
        layers.Whitening(3),
        layers.Marginal(3, bins=4),
    ]
    converted = [
        Inverse(layers.Coupling(3, Backwards(layers.Affine()), hidden=(4,), generator=generator)),
        ConvertedCoupling(
            3, FlooredSpline(4, 3.0), [True, False, False], Steps(2, 0, [["linear", 4], ["elu", 1.0], ["linear", 11]])
        ),
        ConvertedAutoregressive(3, layers.Affine(), [0, 0, 0], Steps(3, 0, [["constant", 6]])),
        Given(layers.Coupling(3, context_features=2, hidden=(4,), generator=generator), torch.tensor([0.5, -1.0])),
    ]
    flow = presets.maf(3, layers=1, hidden=(4,), generator=generator)
    found = {
        "Flow, nsf": presets.nsf(3, layers=1, hidden=(4,), generator=generator),
        "Flow, maf": flow,
        "Flow, planar": presets.planar(3, layers=2, generator=generator),
        "Flow, linear layers": flowlab.Flow(bases.StudentT(3), own),
        "Flow, converted layers": flowlab.Flow(bases.GaussianMixture(3, 2, generator=generator), converted),
        "FlowMixture": flowlab.FlowMixture(
            [flow, presets.real_nvp(3, layers=1, hidden=(4,), generator=generator)], [1, 2]
        ),
        "FlowPosterior": FlowPosterior(
            presets.maf(3, layers=1, hidden=(4,), generator=generator).double(), Space(supports=supports)
        ),
    }
    found |= networks(generator)
    frame, y = plain.assign(x=plain.x.fillna(0)), np.asarray(whole.n > 2)
    outlier = flowlab.FlowOutlier(FlowDensity(members=["copula"], **held_out)).fit(numbers[["a", "b"]])
    return {
        **{name: (model, torch.linspace(-1, 1, 6).view(2, 3)) for name, model in found.items()},
        "FlowClassifier": (flowlab.FlowClassifier(FlowDensity(members=mixed, **fitted)).fit(frame, y), frame[:3]),
        "FlowRegressor": (flowlab.FlowRegressor(FlowDensity(members=mixed, **fitted)).fit(frame, whole.low), frame[:3]),
        "FlowOutlier": (outlier, numbers[["a", "b"]][:3]),
        "FlowDensity, trees and networks": (
            FlowDensity(members=["mixture", *mixed], **fitted).fit(numbers[["a", "b", "k"]]),
            numbers[["a", "b", "k"]][:3],
        ),
        "FlowDensity, numbers": (FlowDensity(members=["copula", "kernel"], **held_out).fit(numbers), numbers[:3]),
        "FlowDensity, whole table": (FlowDensity(members=mixed, **fitted).fit(plain), plain[:3]),
        "FlowDensity, rules": (FlowDensity(members=mixed, rules=rules, **fitted).fit(whole), whole[:3]),
    }


def small_flow(width: int) -> flowlab.Flow:
    """The flow of a joint posterior of weights."""
    return presets.real_nvp(width, layers=1, hidden=(4,), generator=torch.Generator().manual_seed(0))


def networks(generator: torch.Generator) -> dict[str, Any]:
    """Models that hold networks of torch's."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.SiLU(), nn.Dropout(0.1), nn.Linear(4, 6))
    conditional = presets.iaf(2, context_features=2, layers=1, hidden=(4,), generator=generator)
    image = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 6))
    back = nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 1, 2), nn.ELU(), nn.Flatten())
    encoding = nn.Sequential(Standardise(3), nn.Linear(3, 2), nn.Tanh())
    own = presets.iaf(3, context_features=2, layers=1, hidden=(4,), generator=generator)
    small = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    small[2].bias.requires_grad_(False)  # a constant
    net = {
        "full": {"posterior": "full", "noise": "posterior"},
        "flow": {"rank": 2, "posterior": small_flow, "over": "0.*"},
    }
    supports = {"s": ((2,), torch.distributions.constraints.positive), "r": ((), torch.distributions.constraints.real)}
    return {
        "VAE": flowlab.VAE(encoder, nn.Linear(2, 6), conditional, likelihood="gaussian", noise="decoder"),
        "VAE, images": flowlab.VAE(image, back, conditional, prior=presets.maf(2, layers=1, hidden=(4,))),
        "AmortizedPosterior": AmortizedPosterior(encoding, own, supports=supports),
        **{
            f"BayesianModule, {name}": flowlab.BayesianModule(small, generator=generator, **options)
            for name, options in net.items()
        },
    }


def use(model: Any, rows: Any) -> None:
    """Scores rows, as far as there are any, and draws new ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if isinstance(model, FlowDensity):
            if rows is not None:
                model.score_samples(rows)
            model.sample(2, random_state=0)
            model.summary()
        elif isinstance(model, flowlab.FlowClassifier | flowlab.FlowRegressor | flowlab.FlowOutlier):
            model.predict(rows)
        elif isinstance(model, FlowPosterior):
            model.log_prob(model.sample((2,), generator))
        elif isinstance(model, AmortizedPosterior):
            model.log_prob(model.sample((2,), torch.zeros(3), generator), torch.zeros(3))
        elif isinstance(model, flowlab.VAE):
            model.elbo(model.sample((2,), generator), generator=generator)
        elif isinstance(model, flowlab.BayesianModule):
            model.predict(torch.zeros(2, 3), 2, generator=generator)
        elif isinstance(model, flowlab.Flow | flowlab.FlowMixture):
            context = None
            if model.context_features:
                context = torch.zeros(model.context_features, dtype=model.dtype)
            model.log_prob(model.sample((2,), context, generator), context)
        repr(model)
