"""Functions with a hand-written backward: what the hot paths run in place of several torch operations.

Each computes the same as a plain form made of torch operations, and falls back to it under torch.compile, torch.export
and torch.func; second derivatives (`create_graph=True`) come from the plain form, too. All work with features first:
matrices (features, n) whose rows are long, so that kernels run along the batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from flowlab import torch_internals as internals
from flowlab.activations import ACTIVATIONS


def zen5() -> bool:
    """Whether this is an AMD processor of the Zen 5 family or a later one."""
    try:
        with open("/proc/cpuinfo") as file:
            facts = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:  # not Linux
        return False
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    return facts.get("vendor_id") == "AuthenticAMD" and int(facts.get("cpu family", 0)) >= 26


def transforming() -> bool:
    """Whether torch.compile, torch.export, torch.func or forward-mode differentiation follows the call.

    Operations must be plain then.
    """
    return torch.compiler.is_compiling() or internals.functorch_active() or internals.forward_mode_active()


def differentiable_backward(
    plain: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of `plain` in those inputs that need one, as a graph of their own."""
    with torch.enable_grad():
        # Views, because an input may have been computed from another one: here each stands for itself.
        inputs = [x.view_as(x) for x in inputs]
        outputs = plain(*inputs)
    needed = [x for x in inputs if x.requires_grad]
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    used = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    outputs, grads = zip(*used, strict=True)
    found = iter(torch.autograd.grad(outputs, needed, grads, create_graph=True, materialize_grads=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def plain_backward(*grads: Tensor) -> bool:
    """Whether a backward has to be made of plain operations: for second derivatives, or for a batch of gradients."""
    return torch.is_grad_enabled() or transforming() or any(map(internals.is_batch_of_gradients, grads))


def to_features_first(x: Tensor) -> Tensor:
    """(*batch, features) with features first: (features, n). Copies only where memory is not already laid out so."""
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(x.shape[:-1].numel(), 0)
    return rows.T.contiguous()


# ---- products ---------------------------------------------------------------------------------------------------

# oneDNN's product, which torch.compile uses: on AMD's Zen 5 it is twice as fast as MKL's behind torch.mm, at the same
# precision; on Zen 4 it gains nothing and costs more to call. Others were not measured. torch has no public function
# for it, hence the fallback.
_ONEDNN = internals.has_onednn_product() and zen5()
_SMALL = 16  # with a side shorter than this, oneDNN's preparations cost more than it saves


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b (p, r) of matrices a (p, q) and b (q, r), without a gradient, and in their own precision."""
    if internals.any_autocast_enabled() and torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return product(a, b)
    if not _ONEDNN or a.dtype != torch.float32 or not a.is_cpu or min(*a.shape, b.shape[1]) < _SMALL:
        return torch.mm(a, b)
    if not internals.onednn_enabled() or internals.functorch_active():
        return torch.mm(a, b)
    return internals.onednn_product(a, b)


def affine_product(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """weight @ x + bias for x (in, n), likewise."""
    if not _ONEDNN and not internals.any_autocast_enabled():
        return torch.addmm(bias.unsqueeze(-1), weight, x)
    return product(weight, x).add_(bias.unsqueeze(-1))


# ---- networks ---------------------------------------------------------------------------------------------------


Masks = Sequence[Tensor | None]


def plain_network(x: Tensor, *weights: Tensor, activation: str, masks: Masks) -> Tensor:
    """`network` in differentiable torch operations."""
    for i, mask in enumerate(masks):
        weight = weights[2 * i] if mask is None else weights[2 * i] * mask
        x = torch.addmm(weights[2 * i + 1].unsqueeze(-1), weight, x)
        if i + 1 < len(masks):
            x = ACTIVATIONS[activation].plain(x)
    return x


def run_network(
    x: Tensor, activation: str, masks: Masks, weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The output, without a gradient, and what `pull_network` needs.

    That are the input of each linear layer, followed by the activations' arguments where their gradient needs these,
    and masked weights.
    """
    act, values, arguments, matrices = ACTIVATIONS[activation], [x], [], []
    for i, mask in enumerate(masks):
        matrix = weights[2 * i] if mask is None else weights[2 * i] * mask
        matrices.append(matrix)
        x = affine_product(matrix, x, weights[2 * i + 1])
        if i + 1 < len(masks):
            if not act.of_result:
                arguments.append(x)
            values.append(act.run(x))
            x = values[-1]
    return x, values + arguments, matrices


def pull_network(
    grad: Tensor,
    activation: str,
    masks: Masks,
    values: Sequence[Tensor],
    matrices: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients in the input and in the weights, given the output's; `needed` says which, the input first."""
    act, arguments = ACTIVATIONS[activation], values[len(masks) :]
    grads: list[Tensor | None] = [None] * (2 * len(masks))
    for i in reversed(range(len(masks))):
        x = values[i]
        if needed[2 * i + 1]:
            # BLAS is up to six times slower where the result's rows are short; its transpose is then the faster one.
            by_weight = (x @ grad.T).T if len(x) < _SMALL <= len(grad) else product(grad, x.T)
            mask = masks[i]
            grads[2 * i] = by_weight if mask is None else by_weight.mul_(mask)
        if needed[2 * i + 2]:
            grads[2 * i + 1] = grad.sum(1)
        if i:
            grad = product(matrices[i].T, grad)
            act.pull(grad, x if act.of_result else arguments[i - 1])
    return product(matrices[0].T, grad) if needed[0] else None, grads


class _Network(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, masks: Masks, *weights: Tensor) -> Tensor:
        output, values, matrices = run_network(x, activation, masks, weights)
        ctx.save_for_backward(*matrices, *weights, *values)
        ctx.options = activation, masks
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        activation, masks = ctx.options
        n, saved = len(masks), ctx.saved_tensors
        matrices, weights, values = saved[:n], saved[n : 3 * n], saved[3 * n :]
        if plain_backward(grad):
            plain = functools.partial(plain_network, activation=activation, masks=masks)
            by_x, *grads = differentiable_backward(plain, (values[0], *weights), (grad,))
        else:
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
            by_x, grads = pull_network(grad, activation, masks, values, matrices, needed)
        return by_x, None, None, *grads


def network(x: Tensor, activation: str, masks: Masks, weights: Sequence[Tensor]) -> Tensor:
    """A chain of `weight * mask @ x + bias` with activations in between, for x (in, n): (out, n).

    Args:
        x: The input.
        activation: One of `ACTIVATIONS`.
        masks: One for each linear layer, None for none.
        weights: The weight and the bias of each linear layer in turn.
    """
    if transforming():
        return plain_network(x, *weights, activation=activation, masks=masks)
    return _Network.apply(x, activation, masks, *weights)


# ---- rows of features -------------------------------------------------------------------------------------------


class _Permute(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return permute(grad, inverse, order), None, None


def permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """The rows of x in another order, whose inverse the caller knows."""
    return x.index_select(0, order) if transforming() else _Permute.apply(x, order, inverse)


# ---- taming -----------------------------------------------------------------------------------------------------


def within(x: Tensor, bound: float = 100.0) -> bool:
    """Whether all of x is known to lie within ±bound.

    Looking is cheaper than computing; on a GPU it would mean waiting.
    """
    if not x.is_cpu or not x.numel():
        return False
    low, high = torch.aminmax(x.detach())
    return low.item() >= -bound and high.item() <= bound


def plain_tame(x: Tensor, bound: float = 100.0) -> Tensor:
    """`tame` in differentiable torch operations."""
    inner = x.clamp(-bound, bound)
    beyond = x - inner
    return inner + beyond.sign() * beyond.abs().log1p()


def run_tame(x: Tensor, bound: float = 100.0) -> Tensor:
    """`tame` without a gradient."""
    inner = x.clamp(-bound, bound)
    return torch.sub(x, inner).abs_().log1p_().copysign_(x).add_(inner)


def pull_tame(grad: Tensor, x: Tensor, bound: float = 100.0) -> Tensor:
    """The gradient in the input of `tame`, given its result's."""
    return grad / ((x - x.clamp(-bound, bound)).abs() + 1)


class _Tame(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return run_tame(x, bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return pull_tame(grad, x, ctx.bound), None


def tame(x: Tensor, bound: float = 100.0) -> Tensor:
    """x up to ±bound, and growing like a logarithm beyond, with a continuous slope.

    A conditioner may be any function of its inputs; one that grows in proportion to an outlier of 1e4 standard
    deviations would, through dozens of layers, leave the range of a float.
    """
    if transforming():
        return plain_tame(x, bound)
    return x if within(x, bound) else _Tame.apply(x, bound)


# ---- scalar maps ------------------------------------------------------------------------------------------------


class Kernel(Protocol):
    """A scalar map in one direction, with a hand-written gradient.

    Values are (d, n), parameters (d, count, n), in memory one after the other.
    """

    def run(self, value: Tensor, params: Tensor, out: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Writes the mapped values to `out`; the log-slopes, and what `pull` needs."""
        ...

    def pull(
        self,
        value: Tensor,
        params: Tensor,
        saved: Sequence[Tensor],
        grad_mapped: Tensor,
        grad_log_slope: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Writes the gradient in the values to `out`; the gradient in the parameters."""
        ...

    def plain(self, value: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mapped values and log-slopes in differentiable torch operations, at (*s) with (count, *s) parameters."""
        ...


class _ScalarMap(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, params: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
        mapped = torch.empty_like(value)
        log_slope, saved = kernel.run(value, params, mapped)
        ctx.save_for_backward(value, params, *saved)
        ctx.kernel = kernel
        return mapped, log_slope

    @staticmethod
    def backward(ctx: Any, grad_mapped: Tensor, grad_log_slope: Tensor) -> tuple[Tensor | None, ...]:
        value, params, *saved = ctx.saved_tensors
        kernel, grads = ctx.kernel, (grad_mapped, grad_log_slope)
        if plain_backward(*grads):

            def plain(value: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
                return kernel.plain(value, params.transpose(0, 1))

            return *differentiable_backward(plain, (value, params), grads), None
        by_value = torch.empty_like(value)
        return by_value, kernel.pull(value, params, saved, *grads, by_value), None


def scalar_map(value: Tensor, params: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Mapped values and log-slopes (*s) at values (*s) with parameters (count, *s)."""
    if transforming() or params.shape[1:] != value.shape:  # the same parameters for all rows
        return kernel.plain(value, params)
    shape = value.shape
    if value.ndim != 2:
        value, params = value.reshape(1, -1), params.reshape(len(params), 1, -1)
    # Conditioners lay parameters out feature by feature: no copy.
    mapped, log_slope = _ScalarMap.apply(value, params.transpose(0, 1).contiguous(), kernel)
    return mapped.view(shape), log_slope.view(shape)
