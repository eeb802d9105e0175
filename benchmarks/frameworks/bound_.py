"""The MLPs alone: the conditioners of flowlab's case as plain torch networks, and nothing else.

A training step made of torch's linear layers cannot be faster: it needs the gradients of their inputs, too. Large
batches can, in chunks that stay in the cache. Masked networks count as dense ones, and sampling of autoregressive
flows as one pass, though it takes more.
"""

import numpy as np
import torch
from torch import Tensor, nn

from . import HIDDEN, Case, torch_


class Model(torch_.Model):
    def __init__(self, case: Case, features: int) -> None:
        if case.kind == "planar":
            raise NotImplementedError("planar layers have no networks")
        self.widths = [
            (features, features)
            if case.kind == "autoregressive"
            else ((features + 1 - i % 2) // 2, (features + i % 2) // 2)
            for i in range(case.layers)
        ]
        networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(kept, HIDDEN[0]),
                nn.ReLU(),
                nn.Linear(HIDDEN[0], HIDDEN[1]),
                nn.ReLU(),
                nn.Linear(HIDDEN[1], changed * case.outputs),
            )
            for kept, changed in self.widths
        )
        self.drawn: dict[int, list[Tensor]] = {}

        def outputs(inputs: list[Tensor]) -> Tensor:
            return sum(net(x).mean() for net, x in zip(networks, inputs, strict=True))

        def draw(n: int) -> list[Tensor]:
            if n not in self.drawn:
                self.drawn[n] = self.array(np.random.default_rng(0).standard_normal((n, features), np.float32))
            return self.drawn[n]

        super().__init__(networks, outputs, lambda n: outputs(draw(n)), lambda n: (torch.zeros(1, 1), outputs(draw(n))))
        self.default = self.fused

    def array(self, x: np.ndarray) -> list[Tensor]:
        """The input of each network."""
        return [torch.from_numpy(x[:, :kept].copy()) for kept, _ in self.widths]


def build(case: Case, features: int, fast: str) -> Model:
    return Model(case, features)
