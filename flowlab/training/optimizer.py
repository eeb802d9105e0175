"""`Optimizer`: AdamW on all weights at once, their moving average, and a guard against steps that are not finite."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowlab.runtime import keep_freed_memory
from flowlab.torch_internals import fused_adamw_, many_copy_, many_lerp_

SEEN = ("streak", "worst_streak", "skipped", "loss", "norm")  # scalars that steps keep


class Optimizer:
    """AdamW with clipped gradients, and the moving average of the weights. Nothing in a step waits for the device.

    While it lives, the parameters are views of a few flat tensors, one per kind, and so are their gradients: norm,
    clipping, optimizer and average are single operations, however many layers there are. `release` ends that.

    Attributes:
        rate: Peak learning rate, halved by every `restart`.
        loss: The last finite loss, a scalar.
        norm: The last finite norm of the gradient.
        skipped: Steps since the last `restart` whose loss or gradient was not finite.
    """

    def __init__(self, model: nn.Module, rate: float, weight_decay: float, clip: float, ema: float) -> None:
        self.rate, self.weight_decay, self.clip, self.ema = rate, weight_decay, clip, ema
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the flow has no trainable parameters")
        keep_freed_memory()
        kinds: dict[torch.dtype, list[nn.Parameter]] = {}
        for p in sorted(self.parameters, key=lambda p: p.ndim < 2):  # matrices, which decay, before the others
            kinds.setdefault(p.dtype, []).append(p)
        self.kinds = list(kinds.values())
        self.weights = [torch.cat([p.detach().flatten() for p in same]) for same in self.kinds]
        self.gradients = [torch.zeros_like(flat) for flat in self.weights]
        for flat, same in zip(self.weights, self.kinds, strict=True):
            for p, data in zip(same, flat.split([p.numel() for p in same]), strict=True):
                p.data, p.grad = data.view(p.shape), None
        self.average = self.copy()
        self._start()

    def _start(self) -> None:
        """A fresh optimizer; what is remembered of skipped steps starts anew."""
        device = self.weights[0].device
        # Of each part: its decay; weights, gradient, both moments and the count of steps.
        self.adam: list[tuple[float, tuple[Tensor, ...]]] = []
        for flat, gradient, same in zip(self.weights, self.gradients, self.kinds, strict=True):
            matrices = sum(p.numel() for p in same if p.ndim >= 2)
            moments = torch.zeros_like(flat), torch.zeros_like(flat)
            for part, decay in ((slice(matrices), self.weight_decay), (slice(matrices, None), 0.0)):
                if flat[part].numel():
                    steps = torch.zeros((), device=device)
                    tensors = flat[part], gradient[part], moments[0][part], moments[1][part], steps
                    self.adam.append((decay, tensors))
        self.steps = 0
        self.streak, self.worst_streak, self.skipped, self.loss, self.norm = torch.zeros(5, device=device).unbind()

    def step(self, loss: Tensor, share: float) -> None:
        """One step down the gradient of a scalar loss, at a share of the peak learning rate."""
        loss.backward()
        self._gather()
        norm = self._gradient_norm()
        bad = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
        self._descend(self.rate * share, (norm.float() / self.clip).clamp(min=1.0), bad)
        self.steps += 1
        with torch.no_grad():
            decay = min(self.ema, self.steps / (10 + self.steps))
            many_lerp_(self.average, self.weights, 1 - decay)
            self.streak = (self.streak + 1) * bad
            self.worst_streak = torch.maximum(self.worst_streak, self.streak)
            self.skipped = self.skipped + bad
            self.loss = torch.where(bad > 0, self.loss, loss.detach().float())
            self.norm = torch.where(bad > 0, self.norm, norm.float())

    @torch.no_grad()
    def _descend(self, rate: float, divisor: Tensor, bad: Tensor) -> None:
        """A step of AdamW down the gradients divided by `divisor`; none where `bad` is 1."""
        for decay, (weights, gradient, mean, square, steps) in self.adam:
            steps += 1 - bad
            fused_adamw_(weights, gradient, mean, square, steps, rate, decay, divisor, bad)

    @torch.no_grad()
    def _gather(self) -> None:
        """Moves the parameters' gradients into the flat ones."""
        for flat, same in zip(self.gradients, self.kinds, strict=True):
            pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
            torch.cat([piece.reshape(-1) for piece in pieces], out=flat)
            for p in same:
                p.grad = None

    def _gradient_norm(self) -> Tensor:
        """The norm of the gradient, also where its square would overflow in its own precision."""
        if self.gradients[0].is_cpu:  # elsewhere looking at the result would mean waiting
            norm = torch.stack([torch.linalg.vector_norm(gradient).double() for gradient in self.gradients]).norm()
            if math.isfinite(norm.item()):
                return norm
        return torch.stack([torch.linalg.vector_norm(flat, dtype=torch.float64) for flat in self.gradients]).norm()

    def longest_streak(self) -> int:
        """The most steps in a row that were skipped since the last `restart`."""
        return int(self.worst_streak)

    # ---- weights ------------------------------------------------------------------------------------------------

    def copy(self) -> list[Tensor]:
        """The weights now."""
        return [flat.detach().clone() for flat in self.weights]

    @torch.no_grad()
    def load(self, weights: list[Tensor]) -> None:
        """Sets the weights."""
        many_copy_(self.weights, weights)

    @torch.no_grad()
    def copy_average(self, into: list[Tensor]) -> None:
        """Writes the averaged weights into tensors as `copy` gives them."""
        many_copy_(into, self.average)

    def tensors(self) -> dict[str, Tensor]:
        """What steps change beside the weights, by name; `restore` takes it."""
        found = {f"average.{k}": average for k, average in enumerate(self.average)}
        for k, (_, (_, _, mean, square, steps)) in enumerate(self.adam):
            found |= {f"mean.{k}": mean, f"square.{k}": square, f"steps.{k}": steps}
        return found | {name: getattr(self, name) for name in SEEN}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Sets what `tensors` gives."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights inside the block."""
        current = self.copy()
        self.load(self.average)
        yield
        self.load(current)

    @torch.no_grad()
    def restart(self, weights: list[Tensor]) -> None:
        """Continue from given weights at half the learning rate."""
        self.load(weights)
        many_copy_(self.average, weights)
        self.rate /= 2
        self._start()

    def release(self) -> None:
        """Gives every parameter memory of its own again."""
        for p in self.parameters:
            p.data, p.grad = p.detach().clone(), None
