"""nflows, with plain networks: its residual ones have twice the layers."""

import warnings

from nflows import transforms
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import MLP
from torch import Tensor, nn

from . import BINS, BOUND, HIDDEN, Case, torch_

# The division that nflows misses is of no use to a network of this size, and would cost time.
warnings.filterwarnings("ignore", message="Inputs to the softmax are not scaled down")

SPLINE = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
# With feed-forward blocks, one block is one masked layer: in all the layers of the other libraries' networks.
MADE = {"hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}


class Network(MLP):
    """nflows hands its networks a context, which its own plain network does not take."""

    def forward(self, inputs: Tensor, context: None = None) -> Tensor:
        return super().forward(inputs)


def network(inputs: int, outputs: int) -> nn.Module:
    return Network([inputs], [outputs], HIDDEN)


def chain(case: Case, features: int, fast: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(case.layers):
        mask = [(j + i) % 2 for j in range(features)]
        if case.kind == "coupling" and case.spline:
            layers.append(transforms.PiecewiseRationalQuadraticCouplingTransform(mask, network, **SPLINE))
        elif case.kind == "coupling":
            layers.append(transforms.AffineCouplingTransform(mask, network))
        else:
            if case.spline:
                layer = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(features, **MADE, **SPLINE)
            else:
                layer = transforms.MaskedAffineAutoregressiveTransform(features, **MADE)
            layer = layer if fast == "density" else transforms.InverseTransform(layer)
            layers += [layer, transforms.ReversePermutation(features)]
    return layers


def build(case: Case, features: int, fast: str) -> torch_.Model:
    if case.kind == "planar":
        raise NotImplementedError("nflows has no planar flow")
    base = StandardNormal([features])
    flow = Flow(transforms.CompositeTransform(chain(case, features, fast)), base)

    def rsample_and_log_prob(n: int) -> tuple[Tensor, Tensor]:
        return flow.sample_and_log_prob(n)

    return torch_.Model(flow, flow.log_prob, flow.sample, rsample_and_log_prob)
