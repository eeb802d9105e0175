"""Every private function of torch that flowlab calls, each with a public fallback for a torch that no longer has it.

Private functions are looked up once, at import, and are None where torch lacks them. The fallbacks give the same
results, some of them more slowly; tests/test_torch_internals.py takes each.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.distributions import Gamma

State = TypeVar("State", bound=tuple[Tensor, ...])


def _optional(path: str) -> Any:
    """What torch has under a dotted name, or None."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _scan() -> Any:
    try:
        from torch._higher_order_ops.scan import scan
    except ImportError:
        return None
    return scan


_interpreter_stack = _optional("_C._functorch.peek_interpreter_stack")
_is_legacy_batched = _optional("_C._functorch.is_legacy_batchedtensor")
_has_dual_level = isinstance(getattr(forward_ad, "_current_level", None), int)
_has_exporting_flag = isinstance(getattr(torch.compiler, "_is_exporting_flag", None), bool)
_any_autocast = _optional("_C._is_any_autocast_enabled")
_mkldnn_enabled = _optional("_C._get_mkldnn_enabled")
_linear_pointwise = _optional("ops.mkldnn._linear_pointwise") if torch.backends.mkldnn.is_available() else None
_standard_gamma = _optional("_standard_gamma")
_fused_adamw = _optional("_fused_adamw_")
_foreach_lerp, _foreach_copy = _optional("_foreach_lerp_"), _optional("_foreach_copy_")


def _public_exporting() -> bool:
    return getattr(torch.compiler, "is_exporting", bool)()


# ---- who looks on -----------------------------------------------------------------------------------------------


class _Probe(Function):
    """A function as torch.func refuses it: without `setup_context`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


def functorch_active() -> bool:
    """Whether a transformation of torch.func (vmap, grad, jvp, …) looks on."""
    if _interpreter_stack is not None:
        return _interpreter_stack() is not None
    try:
        _Probe.apply(torch.zeros(()))
    except RuntimeError:
        return True
    return False


def forward_mode_active() -> bool:
    """Whether forward-mode differentiation looks on."""
    if _has_dual_level:
        return forward_ad._current_level >= 0
    try:
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
    except RuntimeError:  # there is no level
        return False
    return True


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Whether a gradient is one of a batch, as by `torch.autograd.grad(…, is_grads_batched=True)`."""
    if _is_legacy_batched is not None:
        return _is_legacy_batched(grad)
    try:
        grad.untyped_storage()
    except (RuntimeError, NotImplementedError):  # only wrapped tensors have none
        return True
    return False


def any_autocast_enabled() -> bool:
    """Whether autocast is on for some kind of device; quicker than asking for one kind."""
    if _any_autocast is not None:
        return _any_autocast()
    kinds = [kind for kind in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(kind)]
    return any(torch.is_autocast_enabled(kind) for kind in kinds)


def exporting() -> bool:
    """Whether torch.export looks on.

    torch 2.11's own public function is true under torch.compile, too, so it is the fallback; torch 2.6 has neither.
    """
    if not torch.compiler.is_compiling():
        return False
    return torch.compiler._is_exporting_flag if _has_exporting_flag else _public_exporting()


# ---- products ---------------------------------------------------------------------------------------------------


def has_onednn_product() -> bool:
    """Whether `onednn_product` is oneDNN's."""
    return _linear_pointwise is not None


def onednn_enabled() -> bool:
    """Whether the user lets torch use oneDNN, by `torch.backends.mkldnn.flags`."""
    return torch.backends.mkldnn.enabled if _mkldnn_enabled is None else _mkldnn_enabled()  # type: ignore[return-value]


def onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of float32 matrices on the CPU, by the product of oneDNN that torch.compile uses."""
    if _linear_pointwise is None:
        return torch.mm(a, b)
    return _linear_pointwise(a, b.T, None, "none", [], "")


# ---- draws ------------------------------------------------------------------------------------------------------


def standard_gamma(concentration: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws of Gamma(concentration, 1), differentiable in the concentration, from a generator."""
    if _standard_gamma is not None:
        return _standard_gamma(concentration, generator)
    gamma = Gamma(concentration, torch.ones_like(concentration), validate_args=False)
    if generator is None:
        return gamma.rsample()
    # The public sampler knows torch's global generator alone: it takes this one's place, and is put back.
    device = concentration.device
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=_accelerator(device)):
        library: Any = torch if device.type == "cpu" else getattr(torch, device.type)
        library.set_rng_state(generator.get_state())
        drawn = gamma.rsample()
        generator.set_state(library.get_rng_state())
    return drawn


def _accelerator(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type


# ---- the optimizer ----------------------------------------------------------------------------------------------


def fused_adamw_(
    weights: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    rate: float,
    weight_decay: float,
    divisor: Tensor,
    skip: Tensor,
) -> None:
    """A step of AdamW (β 0.9 and 0.999, ε 1e-8) in place, down the gradient over `divisor`; none where `skip` is 1.

    This is the kernel behind `torch.optim.AdamW(fused=True)`, whose own preparations take longer than a small flow's
    step. `steps` counts the steps taken, this one included.
    """
    if _fused_adamw is not None:
        _fused_adamw(
            [weights],
            [gradient],
            [mean],
            [square],
            [],
            [steps],
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=skip,
        )
        return
    gradient = gradient / divisor
    new_mean = torch.lerp(mean, gradient, 0.1)
    new_square = 0.999 * square + 0.001 * gradient.square()
    mean_share, square_share = (-torch.expm1(steps * math.log(beta)) for beta in (0.9, 0.999))  # 1 - βᵗ
    spread = (new_square / square_share).sqrt() + 1e-8
    new_weights = weights * (1 - rate * weight_decay) - rate * (new_mean / mean_share) / spread
    for old, new in ((weights, new_weights), (mean, new_mean), (square, new_square)):
        old.copy_(torch.where(skip > 0, old, new))


def many_lerp_(starts: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Moves each tensor by a share of the way to its end, in place."""
    if _foreach_lerp is not None:
        _foreach_lerp(starts, ends, weight)
        return
    for start, end in zip(starts, ends, strict=True):
        start.lerp_(end, weight)


def many_copy_(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Writes each tensor's values, in place."""
    if _foreach_copy is not None:
        _foreach_copy(into, values)
        return
    for old, new in zip(into, values, strict=True):
        old.copy_(new)


# ---- gradients of activations -----------------------------------------------------------------------------------


def _operator(name: str) -> Any:
    """The backward of an activation that writes into a given tensor, one of torch's own operators."""
    try:
        return getattr(torch.ops.aten, name).grad_input
    except AttributeError:
        return None


_relu, _tanh, _silu = _operator("threshold_backward"), _operator("tanh_backward"), _operator("silu_backward")
_gelu, _elu, _sigmoid = _operator("gelu_backward"), _operator("elu_backward"), _operator("sigmoid_backward")


def relu_backward_(grad: Tensor, y: Tensor) -> Tensor:
    """Overwrites the gradient in y = relu(x) by that in x."""
    return grad.mul_(y > 0) if _relu is None else _relu(grad, y, 0, grad_input=grad)


def tanh_backward_(grad: Tensor, y: Tensor) -> Tensor:
    """Overwrites the gradient in y = tanh(x) by that in x."""
    return grad.mul_(1 - y.square()) if _tanh is None else _tanh(grad, y, grad_input=grad)


def silu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    """Overwrites the gradient in silu(x) by that in x."""
    if _silu is not None:
        return _silu(grad, x, grad_input=grad)
    gate = torch.sigmoid(x)
    return grad.mul_(gate * (1 + x * (1 - gate)))


def gelu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    """Overwrites the gradient in gelu(x) by that in x."""
    if _gelu is not None:
        return _gelu(grad, x, grad_input=grad)
    normal = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return grad.mul_(torch.special.ndtr(x) + x * normal)


def elu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    """Overwrites the gradient in elu(x) by that in x."""
    if _elu is not None:
        return _elu(grad, 1, 1, 1, False, x, grad_input=grad)
    return grad.mul_(x.clamp(max=0).exp())


def sigmoid_backward(grad: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Writes the gradient in x into `out`, given that in y = sigmoid(x)."""
    if _sigmoid is not None:
        return _sigmoid(grad, y, grad_input=out)
    return torch.mul(grad * (1 - y), y, out=out)


# ---- loops ------------------------------------------------------------------------------------------------------


def repeat(step: Callable[[State], State], state: State, times: int) -> State:
    """The state after so many steps; its last tensor is of booleans.

    In an exported program this is one loop: unrolled, as the fallback has it, it holds each operation `times` times.
    """
    scan = _scan()
    if scan is None:
        for _ in range(times):
            state = step(state)
        return state

    def combine(state: Any, _: Tensor) -> tuple[Any, Tensor]:
        # Its derivative, which nobody asks for, cannot take booleans.
        *numbers, done = step((*state[:-1], state[-1] > 0))  # type: ignore[arg-type]
        return (*numbers, done.to(state[-1].dtype)), state[0].new_zeros(())

    start = (*state[:-1], state[-1].to(state[0].dtype))
    return scan(combine, start, torch.arange(times, device=state[0].device))[0]
