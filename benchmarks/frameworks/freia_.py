"""FrEIA: affine couplings only. Base and log-density are left to the user, as in its documentation."""

import FrEIA.framework as framework
import FrEIA.modules as modules
import torch
from torch import Tensor, nn

from . import HIDDEN, Case, torch_


def network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN[0]),
        nn.ReLU(),
        nn.Linear(HIDDEN[0], HIDDEN[1]),
        nn.ReLU(),
        nn.Linear(HIDDEN[1], outputs),
    )


def build(case: Case, features: int, fast: str) -> torch_.Model:
    if case.kind != "coupling" or case.spline:
        raise NotImplementedError("FrEIA has affine couplings only")
    inn = framework.SequenceINN(features)
    for _ in range(case.layers // 2):  # a block is two couplings, one of each half: no permutations are needed
        inn.append(modules.GLOWCouplingBlock, subnet_constructor=network)

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = inn(x)
        return torch_.normal_log_prob(z) + log_det

    def sample(n: int) -> Tensor:
        return inn(torch.randn(n, features), rev=True)[0]

    def rsample_and_log_prob(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, features)
        x, log_det = inn(z, rev=True)
        return x, torch_.normal_log_prob(z) - log_det

    return torch_.Model(inn, log_prob, sample, rsample_and_log_prob)
