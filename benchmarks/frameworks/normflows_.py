"""normflows. Its ready-made spline layers have residual networks only: their inner transforms get plain ones here."""

import warnings

import normflows
from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from normflows.nets import MLP
from normflows.utils.masks import create_alternating_binary_mask
from torch import Tensor, nn

from . import BINS, BOUND, HIDDEN, Case, torch_

# The division that normflows misses is of no use to a network of this size, and would cost time.
warnings.filterwarnings("ignore", message="Inputs to the softmax are not scaled down")

flows = normflows.flows
# With feed-forward blocks, one block is one masked layer: in all the layers of the other libraries' networks.
MADE = {"hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}


class Network(MLP):
    """normflows hands its networks a context, which its own plain network does not take."""

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


def network(inputs: int, outputs: int) -> MLP:
    return Network([inputs, *HIDDEN, outputs], init_zeros=True)


def chain(case: Case, features: int, fast: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(case.layers):
        if case.kind == "planar":
            layers.append(flows.Planar((features,)))
        elif case.kind == "coupling" and not case.spline:
            kept = (features + 1) // 2
            layers += [
                flows.AffineCouplingBlock(network(kept, 2 * (features - kept))),
                flows.Permute(features, mode="swap"),
            ]
        elif case.kind == "coupling":
            layer = flows.CoupledRationalQuadraticSpline(features, 0, 1)
            layer.prqct = PiecewiseRationalQuadraticCoupling(
                create_alternating_binary_mask(features, even=i % 2 == 1), network, BINS, "linear", BOUND
            )
            layers.append(layer)
        elif case.spline:
            layer = flows.AutoregressiveRationalQuadraticSpline(features, 0, 1)
            layer.mprqat = MaskedPiecewiseRationalQuadraticAutoregressive(
                features, num_bins=BINS, tails="linear", tail_bound=BOUND, **MADE
            )
            layers += [layer if fast == "density" else flows.Reverse(layer), flows.Permute(features)]
        else:  # this one samples fast as it is
            layer = flows.MaskedAffineAutoregressive(features, **MADE)
            layers += [layer if fast == "sampling" else flows.Reverse(layer), flows.Permute(features)]
    return layers


def build(case: Case, features: int, fast: str) -> torch_.Model:
    base = normflows.distributions.DiagGaussian(features, trainable=False)
    flow = normflows.NormalizingFlow(base, chain(case, features, fast))
    log_prob = (
        torch_.missing("normflows inverts planar layers with leaky ReLU only")
        if case.kind == "planar"
        else flow.log_prob
    )
    return torch_.Model(flow, log_prob, lambda n: flow.sample(n)[0], lambda n: flow.sample(n))
