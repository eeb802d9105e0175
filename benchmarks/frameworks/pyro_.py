"""Pyro: transforms around a base distribution, caching what the other direction needs.

Pyro's transforms go from noise to data. Autoregressive ones are cheap that way, `.inv` turns them around. Its splines
are linear-rational by default; here they are rational-quadratic, like everyone's.
"""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn

from . import BINS, BOUND, HIDDEN, Case, torch_

pyro.enable_validation(False)  # Pyro's own advice for speed

SPLINE = {"count_bins": BINS, "bound": BOUND, "order": "quadratic"}


def chain(case: Case, features: int, fast: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    own = torch.arange(features)
    for i in range(case.layers):
        kept = (features + 1 - i % 2) // 2  # the flips below then swap the halves, also of an odd number
        changed = features - kept
        if case.kind == "planar":
            layers.append(transforms.planar(features))
            continue
        if case.kind == "autoregressive":
            shapes = [BINS, BINS, BINS - 1] if case.spline else [1, 1]
            order = own.flip(0) if i % 2 else own  # instead of permutations
            network = AutoRegressiveNN(features, list(HIDDEN), param_dims=shapes, permutation=order)
            if case.spline:
                layer = transforms.SplineAutoregressive(features, network, **SPLINE)
            else:
                layer = transforms.AffineAutoregressive(network)
            layers.append(layer)
            continue
        shapes = [changed * BINS, changed * BINS, changed * (BINS - 1)] if case.spline else [changed, changed]
        network = DenseNN(kept, list(HIDDEN), param_dims=shapes)
        if case.spline:
            layers.append(transforms.SplineCoupling(features, kept, network, identity=True, **SPLINE))
        else:
            layers.append(transforms.AffineCoupling(kept, network))
        layers.append(transforms.Permute(own.flip(0)))
    return layers


def build(case: Case, features: int, fast: str) -> torch_.Model:
    layers = chain(case, features, fast)
    turn = case.kind == "autoregressive" and fast == "density"
    base = dist.Normal(torch.zeros(features), torch.ones(features)).to_event(1)
    flow = dist.TransformedDistribution(base, [layer.inv for layer in layers] if turn else layers)
    no_inverse = torch_.missing("Pyro has no inverse of planar layers")
    log_prob = no_inverse if case.kind == "planar" else flow.log_prob

    def sample(n: int) -> Tensor:
        return flow.sample((n,))

    def rsample_and_log_prob(n: int) -> tuple[Tensor, Tensor]:
        x = flow.rsample((n,))
        return x, flow.log_prob(x)  # finds every layer's noise and log-determinant in the caches

    def finish() -> None:
        """As `flow.clear_cache()`, which does not reach what `.inv` turned around: each call sees new data."""
        for layer in layers:
            layer.clear_cache()

    modules = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))
    return torch_.Model(modules, log_prob, sample, rsample_and_log_prob, finish)
