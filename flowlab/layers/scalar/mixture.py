"""The mixture-of-Gaussians scalar map: the data are a Gaussian mixture, the noise is its normal score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowlab.arguments import real, settle, whole
from flowlab.kernels import scalar_map
from flowlab.layers.root_finding import solve
from flowlab.layers.scalar.mixture_kernel import MixtureKernel, normal_score
from flowlab.layers.scalar.scalar_map import ScalarMap


@dataclass(frozen=True)
class MixtureCDF(ScalarMap):
    """z = Φ⁻¹(Σ π_k Φ((x − μ_k) / σ_k)): under standard normal noise, x is a mixture of Gaussians.

    Ho et al. 2019, "Flow++", section 3.2, with normal in place of logistic components. The density direction
    (`inverse`) is a formula, sampling solves for x. All sums are taken in logs and on the side of the nearer tail, so
    that nothing is lost hundreds of standard deviations out.

    One more component, standard normal with the fixed weight `floor`, bounds what an outlier can cost.

    Attributes:
        components: Number of components with free weight, mean and scale.
        log_scale_bound: Largest |log σ_k|, in nats.
        floor: Weight of the fixed standard normal component.
    """

    components: int = 8
    log_scale_bound: float = 7.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        bound = real("log_scale_bound", self.log_scale_bound, 0)
        settle(self, components=whole("components", self.components), log_scale_bound=bound)
        settle(self, floor=real("floor", self.floor, 0, 1))

    @property
    def count(self) -> int:
        return 3 * self.components

    def initial(self) -> Tensor:
        """Means apart and scales below one, nearly the identity: components that start equal would stay equal.

        N(0, 1) is N(0, s²) smoothed by N(0, 1 - s²), and the sum over evenly spaced means is the smoothing's
        trapezoidal rule.
        """
        width = min(0.7, 0.2 * (self.components - 1))  # of the smoothing; few components must stay close together
        means = torch.linspace(-2.8, 2.8, self.components, dtype=torch.float64) * width
        logits = -(means / width).square() / 2 if width else means
        spread = (logits.softmax(0) * means.square()).sum()
        wanted = (1 - spread).log() / 2
        log_scales = (wanted / (1 - wanted.abs() / self.log_scale_bound)).expand(self.components)  # undo the soft clip
        return torch.cat([logits, means, log_scales]).float()

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return scalar_map(x, params, self._kernel())

    def kernel(self, inverse: bool) -> MixtureKernel | None:
        return self._kernel() if inverse else None

    def _kernel(self) -> MixtureKernel:
        return MixtureKernel(self.components, self.log_scale_bound, self.floor)

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_weights, means, log_scales = self._kernel().components_of(params)
        # Each component alone would put the root here; the mixture's root lies between the extremes.
        alone = means + log_scales.exp() * z
        x = solve(
            lambda x: normal_score(x, log_weights, means, log_scales),
            z,
            alone.amin(0),
            alone.amax(0),
        )
        return x, -normal_score(x, log_weights, means, log_scales)[1]
