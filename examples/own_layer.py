"""A layer of one's own: write two methods, check them with `check_layer`, register the layer, train and save a flow."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

import flowlab
from flowlab.files import register
from flowlab.layers import Layer, LULinear


@register  # so that flowlab.load can build it
class Sinh(Layer):
    """x = sinh(s · arcsinh(z)) for each feature: heavier tails for s > 1, lighter for s < 1 (Jones & Pewsey 2009)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.log_s = torch.nn.Parameter(torch.zeros(features))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, self.log_s)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, -self.log_s)

    @staticmethod
    def _map(value: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
        t = log_s.exp() * value.arcsinh()
        log_slope = log_s + t.cosh().log() - (1 + value.square()).log() / 2
        return t.sinh(), log_slope.sum(-1)


def main() -> float:
    """Train on heavy-tailed data, save, load, and return the gain over a Gaussian in nats per row."""
    layer = Sinh(2)
    layer.log_s.data += 0.3
    flowlab.check_layer(layer)

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=generator)
    x = (z + 0.4 * z**3) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    gaussian = flowlab.Flow(flowlab.bases.Gaussian(2), [LULinear(2)])
    heavy = flowlab.Flow(flowlab.bases.Gaussian(2), [Sinh(2), LULinear(2)])
    scores = []
    for flow in (gaussian, heavy):
        history = flowlab.fit(flow, x, epochs=60, learning_rate=1e-2, generator=generator, progress=False)
        scores.append(-history.best)
    print(f"held-out log-likelihood: Gaussian {scores[0]:.3f}, with Sinh {scores[1]:.3f} nats per row")
    with tempfile.TemporaryDirectory() as folder:
        flowlab.save(heavy, Path(folder) / "sinh.flow")
        print(flowlab.load(Path(folder) / "sinh.flow"))
    return scores[1] - scores[0]


if __name__ == "__main__":
    main()
