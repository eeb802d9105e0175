"""flowlab, as its presets build it and as `fit` trains it."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from flowlab import NLL, Flow, bases, layers, presets
from flowlab.runtime import compiled
from flowlab.training.optimizer import Optimizer

from . import BINS, BOUND, HIDDEN, Case, torch_


class Model(torch_.Model):
    """`train` is the whole step of `flowlab.fit`: AdamW, clipping, the guard against infinities, the moving average."""

    def __init__(self, build: Callable[[], Flow], compile: bool = False) -> None:
        flow = build()
        super().__init__(flow, flow.log_prob, lambda n: flow.sample((n,)), lambda n: flow.rsample_and_log_prob((n,)))
        trained = build()
        self.losses = functools.partial(NLL(), trained)
        if compile:
            self.losses = compiled(self.losses)
        self.optimizer = Optimizer(trained, torch_.LEARNING_RATE, 1e-4, 5.0, 0.998)

    def train(self, x: Tensor) -> Tensor:
        self.optimizer.step((self.losses(x, None) * torch.ones(len(x))).mean(), 1.0)
        return self.optimizer.loss


def flow(case: Case, features: int, fast: str) -> Flow:
    options = {"layers": case.layers, "hidden": HIDDEN}
    if case.kind == "planar":
        return presets.planar(features, layers=case.layers)
    if case.kind == "coupling":
        if case.spline:
            return presets.nsf(features, bins=BINS, bound=BOUND, **options)
        return presets.real_nvp(features, **options)
    if not case.spline:
        return (presets.iaf if fast == "sampling" else presets.maf)(features, **options)
    if fast == "density":
        return presets.nsf(features, bins=BINS, bound=BOUND, autoregressive=True, **options)
    own = list(range(features))  # no preset has splines with fast sampling: the same layers, turned around
    chain = [
        layers.Autoregressive(
            features, layers.RationalQuadraticSpline(BINS, BOUND), own[::-1] if i % 2 else own, fast, hidden=HIDDEN
        )
        for i in range(case.layers)
    ]
    return Flow(bases.Gaussian(features), chain)


def build(case: Case, features: int, fast: str) -> Model:
    return Model(lambda: flow(case, features, fast))
