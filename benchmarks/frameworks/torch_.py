"""What the PyTorch frameworks share: a model made of three functions, and the steps around them."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

LEARNING_RATE = 1e-3

# What `flowlab.fit` does for its own steps is done for all here: freeing one large block makes glibc keep freed
# memory, which else is up to half of the time of a step. Only the flows shall differ.
torch.empty(31 << 20, dtype=torch.uint8)


class Model:
    """A flow by its functions; see the package's docstring for the operations.

    Args:
        module: Holds the parameters.
        log_prob: Log-density of rows (n, features): (n,).
        sample: n rows.
        rsample_and_log_prob: n differentiable rows and their log-densities.
        finish: Called at the end of every operation.
    """

    def __init__(
        self,
        module: nn.Module,
        log_prob: Callable[[Tensor], Tensor],
        sample: Callable[[int], Tensor],
        rsample_and_log_prob: Callable[[int], tuple[Tensor, Tensor]],
        finish: Callable[[], object] = lambda: None,
    ) -> None:
        self.module, self.finish = module, finish
        self._log_prob, self._sample, self._rsample_and_log_prob = log_prob, sample, rsample_and_log_prob
        self.weights = [p for p in module.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.weights)
        # What the peers' tutorials use: Adam as torch has it by default.
        self.default = torch.optim.Adam(self.weights, lr=LEARNING_RATE)
        self.fused = torch.optim.Adam(self.weights, lr=LEARNING_RATE, fused=True)

    def array(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x)

    def train(self, x: Tensor) -> Tensor:
        return self._step(x, self.default)

    def train_fused(self, x: Tensor) -> Tensor:
        return self._step(x, self.fused)

    def _step(self, x: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = -self._log_prob(x).mean()
        loss.backward()
        optimizer.step()
        self.finish()
        return loss.detach()

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        log_prob = self._log_prob(x)
        self.finish()
        return log_prob

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        x = self._sample(n)
        self.finish()
        return x

    def rsample(self, n: int) -> Tensor:
        for weight in self.weights:
            weight.grad = None
        x, log_q = self._rsample_and_log_prob(n)
        loss = (log_q + x.square().sum(-1) / 8).mean()
        loss.backward()
        self.finish()
        return loss.detach()


def normal_log_prob(z: Tensor) -> Tensor:
    """Standard normal log-density of rows, for libraries that leave the base to their user."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def missing(reason: str) -> Callable[..., object]:
    """A function that says why the library has no such operation."""

    def function(*_: object) -> object:
        raise NotImplementedError(reason)

    return function
