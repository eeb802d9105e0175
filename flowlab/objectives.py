"""What training minimises."""

from collections.abc import Callable

from torch import Tensor

from flowlab.flow import Flow

# An objective takes a flow and a batch of rows, with their context, and returns each row's loss in nats, (n,).
# `fit` averages it, with sample weights.
Objective = Callable[[Flow, Tensor, Tensor | None], Tensor]


class NLL:
    """Negative log-likelihood: maximum likelihood, nats per row.

    Example:
        >>> import torch, flowlab
        >>> flow = flowlab.presets.real_nvp(2)
        >>> flowlab.NLL()(flow, torch.zeros(3, 2), None)
        tensor([1.8379, 1.8379, 1.8379], grad_fn=<NegBackward0>)
    """

    def __call__(self, flow: Flow, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -flow.log_prob(x, context)

    def __repr__(self) -> str:
        return "NLL()"
