"""`check_layer` and `check_flow`: is a layer, or a whole flow, what it claims to be? For users' own layers, too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowlab.flow import Flow, dtype_of
from flowlab.layers import Autoregressive, Coupling, Layer
from flowlab.torch_internals import standard_gamma


def check_layer(
    layer: Layer | Flow,
    x: Tensor | None = None,
    context: Tensor | None = None,
    *,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Check a layer's two directions and log-determinants against each other and against autograd's Jacobian.

    Args:
        layer: The layer, or a flow.
        x: Noise to start from (n, features); 16 normal rows when None.
        context: Context of each row; standard normal when None and needed.
        tolerance: Largest absolute or relative error; a few hundred roundings of the floating-point type when None.
        generator: Source of the rows that are drawn here.

    Raises:
        AssertionError: A check failed; the message names it and the size of the error.
    """
    dtype = dtype_of(layer) or torch.get_default_dtype()
    if tolerance is None:
        tolerance = 2e-3 if dtype == torch.float32 else 1e-7
    if x is None:
        x = torch.empty(16, layer.features, dtype=dtype).normal_(generator=generator)
        if isinstance(layer, Autoregressive | Coupling) and layer.scalar.periodic:
            x = x.clamp(-3, 3)  # an angle comes back in [-π, π)
    if context is None and layer.context_features:
        context = torch.empty(len(x), layer.context_features, dtype=dtype).normal_(generator=generator)
    data, log_det = layer(x, context)
    noise, back = layer.inverse(data, context)
    _close("shape of the data", float(data.shape != x.shape), 0.0)
    _close("shape of the log-determinant", float(log_det.shape != x.shape[:-1]), 0.0)
    _close("round trip noise -> data -> noise", noise, x, tolerance)
    _close("log-determinants of the two directions cancel", log_det + back, torch.zeros_like(log_det), tolerance)
    for name, function, rows, value in (("forward", layer.forward, x, log_det), ("inverse", layer.inverse, data, back)):
        expected = torch.stack([_log_det(function, rows, context, i) for i in range(len(rows))])
        _close(f"{name}'s log-determinant against autograd's Jacobian", value, expected, tolerance)


def check_flow(
    flow: Flow,
    context: Tensor | None = None,
    *,
    draws: int = 20_000,
    generator: torch.Generator | None = None,
) -> None:
    """Check a flow as `check_layer` does, the density that comes with its samples, and that it is normalised.

    Normalisation is estimated by importance sampling from a wider Gaussian fitted to the flow's own samples, which
    is informative up to about ten features; above, it is left out.

    Args:
        flow: The flow.
        context: One context (context_features,); standard normal when None and needed.
        draws: Number of draws for the normalisation.
        generator: Source of all draws.

    Raises:
        AssertionError: A check failed; the message names it and the size of the error.
    """
    dtype = flow.dtype
    if context is None and flow.context_features:
        context = torch.empty(flow.context_features, dtype=dtype).normal_(generator=generator)
    rows = flow.base.sample((16,), generator)
    check_layer(flow, rows, None if context is None else context.expand(16, -1))
    with torch.no_grad():
        tolerance = 2e-3 if dtype == torch.float32 else 1e-7
        x, log_prob = flow.rsample_and_log_prob((64,), context, generator)
        _close("rsample_and_log_prob against log_prob", log_prob, flow.log_prob(x, context), tolerance)
        if flow.features > 10:
            return
        sample = flow.sample((draws,), context, generator)
        mean, scale = sample.mean(0), sample.std(0) * 1.5 + 1e-6
        proposal = torch.distributions.StudentT(3.0, mean, scale)
        noise = torch.empty_like(sample).normal_(generator=generator)
        gamma = standard_gamma(torch.full_like(sample, 1.5), generator) / 1.5
        wide = mean + scale * noise / gamma.sqrt()
        weight = (flow.log_prob(wide, context) - proposal.log_prob(wide).sum(-1)).exp()
        error = weight.std() / draws**0.5
        _close("the density integrates to one", weight.mean(), torch.ones(()), float(5 * error) + 1e-3)


def _log_det(function: Callable[..., Any], rows: Tensor, context: Tensor | None, i: int) -> Tensor:
    given = None if context is None else context[i]
    jacobian = torch.autograd.functional.jacobian(lambda row: function(row, given)[0], rows[i])
    return torch.linalg.slogdet(jacobian).logabsdet


def _close(what: str, value: Tensor | float, expected: Tensor | float, tolerance: float = 0.0) -> None:
    error = torch.as_tensor(value, dtype=torch.float64) - torch.as_tensor(expected, dtype=torch.float64)
    scale = 1 + torch.as_tensor(expected, dtype=torch.float64).abs()
    worst = float((error.detach().abs() / scale).max()) if error.numel() else 0.0
    if not worst <= tolerance:
        raise AssertionError(f"{what}: relative error {worst:.3g}, allowed {tolerance:.3g}")
