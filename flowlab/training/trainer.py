"""`Trainer`: one optimizer step after another, for `fit`; `Rows`: what it trains on."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.flow import CHUNK, Flow
from flowlab.runtime import compiled, keep_freed_memory
from flowlab.training.objectives import Objective


@dataclass
class Rows:
    """Rows with their context and weight, on one device; weights average one. Objectives that draw their own have no `x`."""

    x: Tensor | None
    context: Tensor | None
    weight: Tensor

    def take(self, index: Tensor | slice) -> "Rows":
        return self._each(lambda value: value[index])

    def to(self, device: torch.device) -> "Rows":
        return self._each(lambda value: value.to(device))

    def chunks(self) -> "list[Rows]":
        return [self.take(slice(i, i + CHUNK)) for i in range(0, len(self.weight), CHUNK)]

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        x = None if self.x is None else function(self.x)
        context = None if self.context is None else function(self.context)
        return Rows(x, context, function(self.weight))


class Trainer:
    """The optimizer's step and the moving average of weights. Nothing here waits for the device in a step.

    While it lives, the parameters are views of a few flat tensors, one per kind, and so are their gradients: norm,
    clipping, optimizer and average are single operations, however many layers there are. `release` ends that.
    """

    def __init__(
        self,
        flow: Flow,
        objective: Objective,
        rate: float,
        weight_decay: float,
        clip: float,
        ema: float,
        compile: bool = False,
    ) -> None:
        self.flow, self.objective, self.rate = flow, objective, rate
        self.loss_of: Callable[..., Tensor] = functools.partial(objective, flow)
        if compile:
            self.loss_of = compiled(self.loss_of)  # steps have one number of rows, or two
        self.weight_decay, self.clip, self.ema = weight_decay, clip, ema
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
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
        self.adam: list[
            tuple[float, list[list[Tensor]]]
        ] = []  # of each part: its decay; weights, gradients, moments, steps
        for flat, gradient, same in zip(self.weights, self.gradients, self.kinds, strict=True):
            matrices = sum(p.numel() for p in same if p.ndim >= 2)
            moments = torch.zeros_like(flat), torch.zeros_like(flat)
            for part, decay in ((slice(matrices), self.weight_decay), (slice(matrices, None), 0.0)):
                if flat[part].numel():
                    steps = torch.zeros((), device=device)
                    lists = [[flat[part]], [gradient[part]], [moments[0][part]], [moments[1][part]], [], [steps]]
                    self.adam.append((decay, lists))
        self.steps = 0
        self.streak, self.worst_streak, self.skipped, self.loss, self.norm = torch.zeros(5, device=device).unbind()

    def step(self, batch: Rows, rate: float) -> None:
        if not self.flow.training:
            self.flow.train()
        losses = self.loss_of(batch.x, batch.context)
        loss = (losses * batch.weight.to(losses.dtype)).mean()
        loss.backward()
        self.gather()
        norm = self.gradient_norm()
        bad = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
        self._adam(self.rate * rate, (norm.float() / self.clip).clamp(min=1.0), bad)
        self.steps += 1
        with torch.no_grad():
            decay = min(self.ema, self.steps / (10 + self.steps))
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
            self.streak = (self.streak + 1) * bad
            self.worst_streak = torch.maximum(self.worst_streak, self.streak)
            self.skipped = self.skipped + bad
            self.loss = torch.where(bad > 0, self.loss, loss.detach().float())
            self.norm = torch.where(bad > 0, self.norm, norm.float())

    @torch.no_grad()
    def _adam(self, rate: float, divisor: Tensor, bad: Tensor) -> None:
        """A step of AdamW down the gradients divided by `divisor`; none where `bad` is 1.

        It calls the kernel behind `torch.optim.AdamW(fused=True)`, whose own preparations take longer than a small flow's step.
        """
        options: Any = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False}
        for decay, lists in self.adam:
            steps = lists[-1][0]
            steps += 1 - bad
            options |= {"lr": rate, "weight_decay": decay, "grad_scale": divisor, "found_inf": bad}
            torch._fused_adamw_(*lists, **options)

    @torch.no_grad()
    def gather(self) -> None:
        """Moves the parameters' gradients into the flat ones."""
        for flat, same in zip(self.gradients, self.kinds, strict=True):
            pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
            torch.cat([piece.reshape(-1) for piece in pieces], out=flat)
            for p in same:
                p.grad = None

    def gradient_norm(self) -> Tensor:
        """The norm of the gradient, also where its square would overflow in its own precision."""
        if self.gradients[0].is_cpu:  # elsewhere looking at the result would mean waiting
            norm = torch.stack([torch.linalg.vector_norm(gradient).double() for gradient in self.gradients]).norm()
            if math.isfinite(norm.item()):
                return norm
        return torch.stack([torch.linalg.vector_norm(flat, dtype=torch.float64) for flat in self.gradients]).norm()

    def longest_streak(self) -> int:
        return int(self.worst_streak)

    @torch.no_grad()
    def evaluate(self, train: Rows, held_out: Rows | None) -> dict[str, float]:
        """Mean loss of held-out rows under the averaged weights, with its standard error, and of as many training rows."""
        self.flow.train(False)
        current = self.copy()
        self.load(self.average)
        shown = CHUNK if held_out is None else min(len(held_out.weight), CHUNK)
        train_loss, train_error = self._mean_loss(train.take(slice(0, shown)))
        loss, error = (train_loss, train_error) if held_out is None else self._mean_loss(held_out)
        self.load(current)
        return {
            "train": train_loss,
            "validation": loss,
            "standard_error": error,
            "gradient_norm": float(self.norm),
            "skipped": float(self.skipped),
        }

    def _mean_loss(self, rows: Rows) -> tuple[float, float]:
        losses = torch.cat([self.objective(self.flow, c.x, c.context).double() for c in rows.chunks()])
        weight = rows.weight.to(losses).expand_as(losses)
        share = weight / weight.sum()
        # A row without weight says nothing, not even by a loss that is infinite.
        losses = torch.where(share > 0, losses, 0)
        mean = (share * losses).sum()
        return float(mean), float((share.square() * (losses - mean).square()).sum().sqrt())

    def copy(self) -> list[Tensor]:
        """The weights now."""
        return [flat.detach().clone() for flat in self.weights]

    @torch.no_grad()
    def load(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(self.weights, weights)

    @torch.no_grad()
    def copy_averaged(self, into: list[Tensor]) -> None:
        torch._foreach_copy_(into, self.average)

    def release(self) -> None:
        """Gives every parameter memory of its own again."""
        for p in self.parameters:
            p.data, p.grad = p.detach().clone(), None

    @torch.no_grad()
    def restart(self, weights: list[Tensor]) -> None:
        """Continue from given weights at half the learning rate."""
        self.load(weights)
        torch._foreach_copy_(self.average, weights)
        self.rate /= 2
        self._start()
