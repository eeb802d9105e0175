"""The normal prior over the weights of a `BayesianModule`."""

import fnmatch
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Prior = float | Mapping[str, float] | Callable[[str, Tensor], float | Tensor] | None


def prior_scale(prior: Prior, name: str, weight: Tensor) -> Tensor:
    """The prior's standard deviation of each element of a weight, in the weight's shape."""
    scale: float | Tensor
    if prior is None:
        scale = (weight.numel() / weight.shape[0]) ** -0.5 if weight.ndim >= 2 else 1.0
    elif callable(prior):
        scale = prior(name, weight)
    elif isinstance(prior, Mapping):
        fitting = [value for pattern, value in prior.items() if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f'prior has no pattern that fits {name!r}; add "*" for the rest')
        scale = fitting[0]
    else:
        scale = prior
    scale = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device)
    if not bool((scale > 0).all()):
        raise ValueError(f"prior must be positive, not {scale.tolist()} for {name!r}")
    return scale.expand(weight.shape)
