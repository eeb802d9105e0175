"""Path gradients: log-densities of a flow's own draws, differentiable through the draws alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.mixture import FlowMixture


def constant(module: nn.Module) -> Any:
    """A twin of the module whose parameters are constants: of the same memory, so that they follow the module's own.

    The module itself is not touched, so that others may use it meanwhile. Modules that are held in other ways than
    torch's own are shared.
    """
    return _constant(module, {})


def _constant(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    twin = made.get(module)  # it may be in several places
    if twin is not None:
        return twin
    twin = made[module] = object.__new__(type(module))
    state = twin.__dict__
    state.update(module.__dict__)
    if module._parameters:
        state["_parameters"] = {name: None if p is None else p.detach() for name, p in module._parameters.items()}
    if module._modules:
        children = module._modules.items()
        state["_modules"] = {name: None if m is None else _constant(m, made) for name, m in children}
    if isinstance(module, nn.RNNBase):  # keeps a list of its parameters besides
        state["_flat_weights"] = [getattr(twin, name) for name in module._flat_weights_names]
    return twin


def path_log_prob(
    flow: Any, shape: Sequence[int], context: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draws of a flow and their log-densities, whose gradients go through the draws alone, not through parameters.

    Where the density direction is the slow one, nothing is inverted: the gradient of log q at x = g(z) is
    J⁻ᵀ ∇(log p(z) − log|det J|), J the Jacobian of g (Vaitl et al. 2024, "Fast and unified path gradient estimators for
    normalizing flows"). J is formed explicitly, in `features` backward passes that share their forward pass.
    """
    if getattr(flow, "fast", "both") in ("both", "density") or isinstance(flow, FlowMixture):
        x = flow.rsample(shape, context, generator)
        return x, constant(flow).log_prob(x, context)
    batch = () if context is None else context.shape[:-1]
    z = flow.base.rsample((*shape, *batch), generator)
    x, _ = flow.forward(z, context)
    with torch.enable_grad():
        still = constant(flow)
        z = z.detach().requires_grad_()
        value, own = still.forward(z, context)
        log_q = still.base.log_prob(z) - own
        rows = [torch.autograd.grad(value[..., i].sum(), z, retain_graph=True)[0] for i in range(flow.features)]
        slope = torch.autograd.grad(log_q.sum(), z)[0]
    score = torch.linalg.solve(torch.stack(rows, -1), slope)  # the rows of J stand as columns: Jᵀ
    return x, log_q.detach() + ((x - x.detach()) * score).sum(-1)
