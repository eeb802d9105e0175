"""The activations of networks, by name: what each computes, its gradient, and which of torch's functions it is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab import torch_internals as internals


class Activation(NamedTuple):
    """An activation and its gradient, with the arguments that torch takes by default."""

    plain: Callable[..., Tensor]  # takes further arguments as `torch.nn.functional` has them
    run: Callable[[Tensor], Tensor]  # the same; may overwrite its argument
    pull: Callable[[Tensor, Tensor], Tensor]  # overwrites the gradient by that in the argument
    of_result: bool  # whether `pull` is given the result, which then is all that has to be kept, or the argument
    functions: tuple[object, ...]  # what others call it


_SELU = 1.6732632423543772, 1.0507009873554805  # alpha and scale


def _pull_leaky_relu(grad: Tensor, x: Tensor) -> Tensor:
    return grad.mul_(torch.where(x > 0, torch.ones_like(x), 0.01))


def _pull_selu(grad: Tensor, x: Tensor) -> Tensor:
    alpha, scale = _SELU
    return grad.mul_(torch.where(x > 0, scale, scale * alpha * x.clamp(max=0).exp()))


def _pull_sigmoid(grad: Tensor, y: Tensor) -> Tensor:
    return grad.mul_(y * (1 - y))


def _pull_softplus(grad: Tensor, x: Tensor) -> Tensor:
    return grad.mul_(torch.where(x > 20, 1.0, torch.sigmoid(x)))  # beyond 20 torch's softplus is the identity


ACTIVATIONS = {
    "relu": Activation(torch.relu, torch.relu_, internals.relu_backward_, True, (F.relu, torch.relu)),
    "tanh": Activation(torch.tanh, torch.tanh_, internals.tanh_backward_, True, (F.tanh, torch.tanh)),
    "silu": Activation(F.silu, F.silu, internals.silu_backward_, False, (F.silu,)),
    "gelu": Activation(F.gelu, F.gelu, internals.gelu_backward_, False, (F.gelu,)),
    "elu": Activation(F.elu, F.elu, internals.elu_backward_, False, (F.elu,)),
    "selu": Activation(F.selu, F.selu, _pull_selu, False, (F.selu, torch.selu)),
    "leaky_relu": Activation(F.leaky_relu, F.leaky_relu, _pull_leaky_relu, False, (F.leaky_relu,)),
    "sigmoid": Activation(torch.sigmoid, torch.sigmoid_, _pull_sigmoid, True, (F.sigmoid, torch.sigmoid)),
    "softplus": Activation(F.softplus, F.softplus, _pull_softplus, False, (F.softplus,)),
}
