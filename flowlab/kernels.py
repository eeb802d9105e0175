"""Functions with a hand-written backward: what the hot paths run in place of several torch operations.

Each computes the same as a plain form made of torch operations, and falls back to it under torch.compile, torch.export and
torch.func; second derivatives (`create_graph=True`) come from the plain form, too. All work with features first:
matrices (features, n) whose rows are long, so that kernels run along the batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

_functorch_stack = torch._C._functorch.peek_interpreter_stack


def transforming() -> bool:
    """Whether torch.compile, torch.export, torch.func or forward-mode differentiation looks on, which need plain operations."""
    return torch.compiler.is_compiling() or _functorch_stack() is not None or forward_ad._current_level >= 0


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
    return torch.is_grad_enabled() or transforming() or any(map(torch._C._functorch.is_legacy_batchedtensor, grads))


def columns(x: Tensor) -> Tensor:
    """(*batch, features) with features first: (features, n). Copies only where memory is not already laid out so."""
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(x.shape[:-1].numel(), 0)
    return rows.T.contiguous()


# ---- products ---------------------------------------------------------------------------------------------------

# oneDNN's product, which torch.compile uses: on AMD processors it is twice as fast as MKL's behind torch.mm, at the same
# precision, and takes transposed operands without copying. torch has no public function for it, hence the fallback.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_SMALL = 16  # with a side shorter than this, oneDNN's preparations cost more than it saves


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b (p, r) of matrices a (p, q) and b (q, r), without a gradient, and in their own precision."""
    (p, q), r = a.shape, b.shape[1]
    fits = min(p, q, r) >= _SMALL and a.dtype == torch.float32 and a.is_cpu
    if fits and _ONEDNN is not None and torch._C._get_mkldnn_enabled() and _functorch_stack() is None:
        return _ONEDNN(a, b.T, None, "none", [], "")
    if torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return a @ b
    return a @ b


def _linear(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    return torch.addmm(bias.unsqueeze(-1), weight if mask is None else weight * mask, x)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        masked = weight if mask is None else weight * mask
        ctx.save_for_backward(x, weight, bias, mask, masked)
        return product(masked, x).add_(bias.unsqueeze(-1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mask, masked = ctx.saved_tensors
        if plain_backward(grad):
            plain = functools.partial(_linear, mask=mask)
            return *differentiable_backward(plain, (x, weight, bias), (grad,)), None
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_weight = None
        if need_weight:
            # BLAS is up to six times slower where the result's rows are short; its transpose is then the faster one.
            grad_weight = (x @ grad.T).T if len(x) < _SMALL <= len(grad) else product(grad, x.T)
            if mask is not None:
                grad_weight.mul_(mask)
        return product(masked.T, grad) if need_x else None, grad_weight, grad.sum(1) if need_bias else None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
    """weight * mask @ x + bias for x (in, n): (out, n)."""
    return _linear(x, weight, bias, mask) if transforming() else _Linear.apply(x, weight, bias, mask)


# ---- rows of features -------------------------------------------------------------------------------------------


class _Split(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, restore: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(first, second, restore)
        return x.index_select(0, first), x.index_select(0, second)

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> tuple[Tensor | None, ...]:
        return merge(grad_first, grad_second, *ctx.saved_tensors), None, None, None


class _Merge(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, first: Tensor, second: Tensor, restore: Tensor) -> Tensor:
        ctx.save_for_backward(first, second, restore)
        return torch.cat([a, b]).index_select(0, restore)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *split(grad, *ctx.saved_tensors), None, None, None


def split(x: Tensor, first: Tensor, second: Tensor, restore: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of x (features, n) at the indices `first` and `second`; `restore` says where in them each row of x is."""
    if transforming():
        return x.index_select(0, first), x.index_select(0, second)
    return _Split.apply(x, first, second, restore)


def merge(a: Tensor, b: Tensor, first: Tensor, second: Tensor, restore: Tensor) -> Tensor:
    """The inverse of `split`."""
    if transforming():
        return torch.cat([a, b]).index_select(0, restore)
    return _Merge.apply(a, b, first, second, restore)


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


def _tame(x: Tensor, bound: float) -> Tensor:
    inner = x.clamp(-bound, bound)
    beyond = x - inner
    return inner + beyond.sign() * beyond.abs().log1p()


class _Tame(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        inner = x.clamp(-bound, bound)
        return torch.sub(x, inner).abs_().log1p_().copysign_(x).add_(inner)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad / ((x - x.clamp(-ctx.bound, ctx.bound)).abs() + 1), None


def tame(x: Tensor, bound: float = 100.0) -> Tensor:
    """x up to ±bound, and growing like a logarithm beyond, with a continuous slope.

    A conditioner may be any function of its inputs; one that grows in proportion to an outlier of 1e4 standard deviations
    would, through dozens of layers, leave the range of a float.
    """
    if transforming():
        return _tame(x, bound)
    if x.is_cpu and x.numel():  # looking is cheaper than computing; on other devices it would mean waiting
        low, high = torch.aminmax(x.detach())
        if low.item() >= -bound and high.item() <= bound:
            return x
    return _Tame.apply(x, bound)
