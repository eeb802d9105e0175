"""torchflows, layer by layer: its ready-made architectures add an affine map and a normalisation to every layer."""

import warnings

import torch
from torch import Tensor, nn
from torchflows.bijections.base import BijectiveComposition
from torchflows.bijections.finite.autoregressive import layers
from torchflows.bijections.finite.autoregressive.conditioning.coupling_masks import Coupling
from torchflows.bijections.finite.matrix.permutation import ReversePermutationMatrix
from torchflows.bijections.finite.residual.planar import Planar
from torchflows.flows import Flow

from . import BINS, BOUND, HIDDEN, Case, torch_

warnings.filterwarnings("ignore", message="Using a non-tuple sequence")

LAYERS = {
    ("real_nvp", "density"): layers.AffineCoupling,
    ("real_nvp", "sampling"): layers.AffineCoupling,
    ("nsf", "density"): layers.RQSCoupling,
    ("nsf", "sampling"): layers.RQSCoupling,
    ("maf", "density"): layers.AffineForwardMaskedAutoregressive,
    ("maf", "sampling"): layers.AffineInverseMaskedAutoregressive,
    ("nsf_ar", "density"): layers.RQSForwardMaskedAutoregressive,
    ("nsf_ar", "sampling"): layers.RQSInverseMaskedAutoregressive,
}


def chain(case: Case, features: int, fast: str) -> list[nn.Module]:
    shape = torch.Size((features,))
    if case.kind == "planar":
        return [Planar(shape) for _ in range(case.layers)]
    options = {"conditioner_kwargs": {"n_layers": len(HIDDEN) + 1, "n_hidden": HIDDEN[0]}}  # n_layers counts the last
    if case.spline:
        options["transformer_kwargs"] = {"n_bins": BINS, "boundary": BOUND}
    chain: list[nn.Module] = []
    for i in range(case.layers):
        if case.kind == "coupling":
            options["coupling"] = Coupling(shape, torch.arange(features) % 2 == i % 2)
        else:
            chain.append(ReversePermutationMatrix(shape))
        chain.append(LAYERS[case.name, fast](shape, **options))
        network = chain[-1].conditioner_transform.sequential
        for j, module in enumerate(network):
            if isinstance(module, nn.Tanh):  # the masked networks offer nothing else
                network[j] = nn.ReLU()
    return chain


def build(case: Case, features: int, fast: str) -> torch_.Model:
    flow = Flow(BijectiveComposition(chain(case, features, fast)))
    no_inverse = torch_.missing("torchflows has no inverse of planar layers")
    log_prob = no_inverse if case.kind == "planar" else flow.log_prob

    def rsample_and_log_prob(n: int) -> tuple[Tensor, Tensor]:
        # What its `sample(n, return_log_prob=True)` does, but with the log-determinant subtracted.
        z = flow.base_sample((n,))
        x, log_det = flow.bijection.inverse(z)
        return x, flow.base_log_prob(z) - log_det

    return torch_.Model(flow, log_prob, lambda n: flow.sample((n,), no_grad=True), rsample_and_log_prob)
