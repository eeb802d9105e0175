"""flowlab as `fit(compile=True)` trains it, with matmul_precision="medium" where products take most of the time."""

import torch
from torch import Tensor

from . import Case, flowlab_


class Model(flowlab_.Model):
    """Training steps; for anything else compilation is no gain."""

    def train_fused(self, x: Tensor) -> Tensor:
        raise NotImplementedError("compiled by fit alone")

    log_prob = sample = rsample = train_fused


def build(case: Case, features: int, fast: str) -> Model:
    if case.kind == "planar":
        raise NotImplementedError("planar flows are not trained by likelihood here")
    torch.set_float32_matmul_precision("highest" if case.spline else "medium")
    return Model(lambda: flowlab_.flow(case, features, fast), compile=True)
