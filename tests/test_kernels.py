"""Hand-written kernels against the plain operations they stand for, and whole flows with them."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import flowlab
from constructors import PRESETS, flat, perturb, preset, weighted
from flowlab.activations import ACTIVATIONS
from flowlab.kernels import network, permute, tame
from flowlab.layers import Affine, MixtureCDF, RationalQuadraticSpline, SinhArcsinh
from flowlab.layers.conditioner import Places, conditioned
from flowlab.layers.scalar.rational_quadratic import knot_positions, plain_spline
from flowlab.layers.scalar.spline import spline
from flowlab.layers.scalar.spline_kernel import SplineKernel
from flowlab.networks import MLP
from helpers import assert_close, normal, seeded

Call = Callable[..., Any]
jacobian = torch.autograd.functional.jacobian


class Kernel(NamedTuple):
    """A kernel, its plain form, and the shapes of its inputs; the first `batched` of them get a batch as last axis."""

    fast: Call
    slow: Call
    shapes: tuple[tuple[int, ...], ...]
    batched: int = 3
    forward_mode: bool = (
        True  # torch.compile takes no function with a forward-mode derivative, so the normal's logs have none
    )

    def inputs(self, n: int = 7) -> list[Tensor]:
        batches = [(n,) if i < self.batched else () for i in range(len(self.shapes))]
        return [normal(*s, *b, seed=i, scale=1.5) for i, (s, b) in enumerate(zip(self.shapes, batches, strict=True))]


def spline_kernel(bins: int, periodic: bool, inverse: bool) -> Kernel:
    bound = math.pi if periodic else 2.0  # some values lie outside the box
    squeeze = (lambda v: bound * torch.tanh(v)) if periodic else (lambda v: v)
    return Kernel(
        lambda v, p: spline(squeeze(v), p, SplineKernel(bins, bound, 1e-3, periodic, inverse)),
        lambda v, p: plain_spline(squeeze(v), p, bins, bound, 1e-3, periodic, inverse),
        ((3,), (3 * bins + (1 if periodic else -1), 3)),
    )


def plain_affine(value: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    log_scale = (-1 if inverse else 1) * 3 * torch.tanh(params[1] / 3)
    return ((value - params[0]) * log_scale.exp() if inverse else value * log_scale.exp() + params[0]), log_scale


def plain_tame(x: Tensor, bound: float) -> Tensor:
    return torch.where(x.abs() > bound, x.sign() * (bound + (x.abs() - bound).clamp(min=0).log1p()), x)


class Given(NamedTuple):
    """Weights in the place of a network, for `conditioned`."""

    activation: str
    masks: Sequence[Tensor | None]
    weights: Sequence[Tensor]
    plain: bool = True
    training: bool = False
    dropout: float = 0.0

    def columns(self, x: Tensor, dropout: bool) -> Tensor:
        return network(x, self.activation, self.masks, self.weights)


def plain_network(x: Tensor, activation: str, masks: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    for i, mask in enumerate(masks):
        w, b = weights[2 * i : 2 * i + 2]
        x = (w if mask is None else w * mask) @ (getattr(F, activation)(x) if i else x) + b[:, None]
    return x


def conditioned_kernel(places: Places | None, spline: bool, inverse: bool, context: bool, masked: bool) -> Kernel:
    """A whole layer of five features, three of them changed, or all where there are no places."""
    scalar = RationalQuadraticSpline(3, 2.0) if spline else Affine()
    kept, changed = (range(5), range(5)) if places is None else (torch.arange(5)[i].tolist() for i in places[:2])
    widths = (2 * context + len(kept), 6, 7, len(changed) * scalar.count)
    shapes = [((o, i), (o,)) for i, o in itertools.pairwise(widths)]
    masks = [(normal(*s[0], seed=9) > 0).double() if masked else None for s in shapes]

    def fast(x: Tensor, given: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        own = Given("tanh", masks, weights)
        mapped, log_det = conditioned(90 * x, given.T if context else None, own, scalar, inverse, places)  # type: ignore[arg-type]
        return mapped, log_det + 0 * given.sum()

    def slow(x: Tensor, given: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        x = 90 * x
        inputs = torch.cat([given, x[kept]] if context else [x[kept]])
        inputs = plain_tame(inputs, 100.0)
        params = plain_network(inputs, "tanh", masks, weights).view(len(changed), scalar.count, -1).transpose(0, 1)
        plain_map = (
            plain_spline(x[changed], params, 3, 2.0, 1e-3, False, inverse)
            if spline
            else plain_affine(x[changed], params, inverse)
        )
        rows = dict(zip(changed, plain_map[0], strict=True))
        return torch.stack([rows.get(i, x[i]) for i in range(5)]), plain_map[1].sum(0) + 0 * given.sum()

    return Kernel(fast, slow, ((5,), (2,), *(s for pair in shapes for s in pair)), 2)


MASK, ORDER = (normal(5, 4, seed=9) > 0).double(), torch.tensor([2, 0, 3, 1])
SLICES = Places(slice(1, 4, 2), slice(0, 5, 2), torch.tensor([1, 3, 0, 2, 4]).argsort())
INDICES = Places(torch.tensor([4, 1]), torch.tensor([0, 3, 2]), torch.tensor([4, 1, 0, 3, 2]).argsort())
VARIANTS = list(itertools.product((1, 2, 8), (False, True), (False, True)))
KERNELS = {f"spline, {b} bins{', periodic' * p}{', inverse' * i}": spline_kernel(b, p, i) for b, p, i in VARIANTS}
KERNELS |= {
    f"affine{', inverse' * i}": Kernel(
        lambda v, p, i=i: Affine().forward(v, p) if not i else Affine().inverse(v, p),
        lambda v, p, i=i: plain_affine(v, p, i),
        ((3,), (2, 3)),
    )
    for i in (False, True)
}
KERNELS |= {
    f"sinh-arcsinh{', inverse' * i}": Kernel(
        lambda v, p, i=i: SinhArcsinh().inverse(v, p) if i else SinhArcsinh().forward(v, p),
        lambda v, p, i=i: SinhArcsinh().kernel(i).plain(v, p),
        ((3,), (2, 3)),
    )
    for i in (False, True)
}
KERNELS |= {
    "tame": Kernel(lambda x: tame(x, 1.0), lambda x: plain_tame(x, 1.0), ((5,),)),
    "permute": Kernel(lambda x: permute(x, ORDER, ORDER.argsort()), lambda x: x[ORDER], ((4,),)),
}
KERNELS |= {
    f"mixture, {far}": Kernel(
        lambda v, p, s=scale: MixtureCDF(3).inverse(s * v, p),
        lambda v, p, s=scale: MixtureCDF(3).kernel(True).plain(s * v, p),
        ((3,), (9, 3)),
        forward_mode=False,
    )
    for far, scale in (("near", 1.0), ("far", 30.0))
}
KERNELS |= {
    f"network, {activation}{', masked' * masked}": Kernel(
        lambda x, *w, a=activation, m=masks: network(x, a, m, w),
        lambda x, *w, a=activation, m=masks: plain_network(x, a, m, w),
        ((4,), (5, 4), (5,), (3, 5), (3,)),
        1,
    )
    for activation in ACTIVATIONS
    for masked, masks in ((False, [None, None]), (True, [MASK, None]))
}
KERNELS |= {
    f"{kind}, {'spline' if spline else 'affine'}{', inverse' * inverse}{', context' * context}": conditioned_kernel(
        places, spline, inverse, context, masked
    )
    for kind, places, masked in (("even", SLICES, False), ("uneven", INDICES, False), ("masked", None, True))
    for spline, inverse, context in ((False, False, False), (False, True, True), (True, True, False))
}
EVERY = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def derivatives(
    function: Call, inputs: Sequence[Tensor], needed: Sequence[int] = (), second: bool = False
) -> list[Tensor]:
    """Results and gradients in the inputs `needed` (all when empty), or second derivatives."""
    inputs = [x.detach().requires_grad_(not needed or i in needed) for i, x in enumerate(inputs)]
    result, wanted = function(*inputs), [x for x in inputs if x.requires_grad]
    grads = torch.autograd.grad(weighted(result), wanted, create_graph=second)
    return [flat(result).detach(), *(torch.autograd.grad(weighted(grads), wanted) if second else grads)]


# ---- every kernel -----------------------------------------------------------------------------------------------


def entangled(function: Call) -> Call:
    """The function with its later inputs depending on the first, as in an autoregressive layer."""
    return lambda first, *rest: function(first, *(x + first.mean() for x in rest))


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@EVERY
def test_derivatives(kernel: Kernel, second: bool) -> None:
    """Also where only some of the inputs need a gradient, or where one depends on another."""
    count = len(kernel.shapes)
    sizes = {1, 2, count - 1, count} & set(range(1, count + 1))  # every input with and without every other
    for needed in [n for k in sizes for n in itertools.combinations(range(count), k)]:
        got, expected = (derivatives(f, kernel.inputs(), needed, second) for f in kernel[:2])
        assert_close(got, expected, 1e-8)
    assert_close(*(derivatives(entangled(f), kernel.inputs(), (), second) for f in kernel[:2]), 1e-8)


@pytest.mark.parametrize("name", [name for name in KERNELS if not name.startswith("spline")])
def test_finite_differences(name: str) -> None:
    inputs = tuple(x.requires_grad_() for x in KERNELS[name].inputs(2))
    assert torch.autograd.gradcheck(KERNELS[name].fast, inputs)
    assert torch.autograd.gradgradcheck(KERNELS[name].fast, inputs, fast_mode=True)


@EVERY
def test_transforms(kernel: Kernel) -> None:
    inputs, every = kernel.inputs(2), tuple(range(len(kernel.shapes)))
    for transform in (torch.func.jacrev, torch.func.jacfwd)[: 1 + kernel.forward_mode]:
        assert_close(*(transform(f, every)(*inputs) for f in kernel[:2]))
    many = [torch.stack([x, x.flip(-1), x / 2]) for x in inputs]
    grads = [torch.func.grad(lambda *x, f=f: weighted(f(*x)), every) for f in kernel[:2]]
    assert_close(*(torch.func.vmap(grad)(*many) for grad in grads))
    torch._dynamo.reset()
    assert_close(torch.compile(kernel.fast, fullgraph=True, backend="eager")(*inputs), kernel.slow(*inputs))


@EVERY
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorised_jacobian(kernel: Kernel, strategy: str) -> None:
    """Backward with a batch of gradients at once, of all results or one, and forward mode without torch.func."""
    inputs = tuple(kernel.inputs(2))
    if strategy == "forward-mode" and not kernel.forward_mode:
        pytest.skip("no forward mode")
    for part in (flat, lambda results: flat(results[0]), lambda results: flat(results[-1])):
        fast, slow = (entangled(lambda *x, f=f, part=part: part(f(*x))) for f in kernel[:2])
        assert_close(jacobian(fast, inputs, vectorize=True, strategy=strategy), jacobian(slow, inputs))


def layouts(x: Tensor) -> list[Tensor]:
    """The same numbers strided and transposed, and others that are expanded along the last axis."""
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    return [x, torch.stack([x, x + 1], -1)[..., 0], turned, x.sum(-1, keepdim=True).expand(x.shape)]


@EVERY
@pytest.mark.parametrize("n", [0, 1, 20])
def test_layouts(kernel: Kernel, n: int) -> None:
    """Results are the same for no rows, one row, and strided, transposed or expanded inputs and incoming gradients."""
    for given in zip(*map(layouts, kernel.inputs(n)), strict=True):
        got = derivatives(kernel.fast, given)
        assert_close(got, derivatives(kernel.slow, [x.contiguous() for x in given]), 1e-8)
    inputs = [x.requires_grad_() for x in kernel.inputs(n)]
    assert_close(*(torch.autograd.grad(flat(f(*inputs)).sum(), inputs) for f in kernel[:2]))


@EVERY
def test_backward_twice_and_checkpoints(kernel: Kernel) -> None:
    inputs = [x.requires_grad_() for x in kernel.inputs()]
    result = weighted(kernel.fast(*inputs))
    first = torch.autograd.grad(result, inputs, retain_graph=True)
    assert_close(torch.autograd.grad(result, inputs), first, 0)
    again = weighted(checkpoint(kernel.fast, *inputs, use_reentrant=False))
    assert_close(torch.autograd.grad(again, inputs), first, 0)
    assert_close([x.detach() for x in inputs], kernel.inputs(), 0)  # nothing is written in place


# ---- splines, products, taming ------------------------------------------------------------------------------------


def both(bins: int, periodic: bool, inverse: bool, value: Tensor, params: Tensor) -> list[list[Tensor]]:
    """Mapped values, log-slopes and gradients by the kernel and by the plain form, elementwise in the values."""
    kernel, results = SplineKernel(bins, math.pi if periodic else 5.0, 1e-3, periodic, inverse), []
    for form in (lambda v, p: spline(v, p, kernel), kernel.plain):
        inputs = [value.detach().requires_grad_(), params.detach().requires_grad_()]
        mapped, log_slope = form(*inputs)
        grads = torch.autograd.grad(mapped.sum() + 2 * log_slope.sum(), inputs)
        results.append([x.detach() for x in (mapped, log_slope, *grads)])
    return results


@pytest.mark.parametrize(("bins", "periodic", "inverse"), VARIANTS)
def test_spline_edges(bins: int, periodic: bool, inverse: bool) -> None:
    """At the knots, at the ends of the box, and far outside it."""
    own = normal(3 * bins + (1 if periodic else -1), 1)
    knots = knot_positions(own[bins : 2 * bins] if inverse else own[:bins], math.pi if periodic else 5.0, 1e-3)
    outside = torch.tensor([[5, -5, 1e6, -1e30, math.inf, -math.inf, math.nextafter(5, 9)]], dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        got, expected = both(
            bins, periodic, inverse, knots.T.to(dtype), own.to(dtype)[:, None].expand(-1, 1, len(knots))
        )
        assert_close(got[:2], expected[:2], tolerance)  # the gradient of a log-slope jumps at knots
        if not periodic:
            got, expected = both(bins, periodic, inverse, outside.to(dtype), own.to(dtype)[:, None].expand(-1, 1, 7))
            assert_close(got, expected, 0)


@pytest.mark.parametrize(("bins", "periodic", "inverse"), VARIANTS)
@pytest.mark.parametrize("scale", [0.3, 3.0, 1e3, 1e30])
def test_spline_in_single_precision(bins: int, periodic: bool, inverse: bool, scale: float) -> None:
    """Against double precision the kernel is as exact as the plain form, also next to the ends of the box."""
    half = 3.1415 if periodic else 6.0
    value = torch.empty(2, 2000).uniform_(-half, half, generator=seeded())
    value[:, ::20] = math.nextafter(math.pi if periodic else 5.0, 0) - 1e-6  # just inside the box
    params = normal(3 * bins + (1 if periodic else -1), 2, 2000, scale=scale).float()
    exact = both(bins, periodic, inverse, value.double(), params.double())[1]
    for got, usual, truth in zip(*both(bins, periodic, inverse, value, params), exact, strict=True):
        assert torch.isfinite(got).all()
        errors = [((x - truth).abs() / (1 + truth.abs())).flatten() for x in (got, usual)]
        for share in (0.5, 0.9, 0.995) if scale < 10 else (0.5, 0.9):  # steep splines lose all digits in some places
            mine, plains = (float(e.quantile(share)) for e in errors)
            assert mine <= (2 if scale < 10 else 3) * plains + 1e-7


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_mixture_in_single_precision(scale: float) -> None:
    """Against double precision the kernel is as exact as the plain form, also eight standard deviations out."""
    value = torch.linspace(-7.99, 7.99, 4000).expand(2, -1)
    params = normal(24, 2, 4000, scale=scale).float()

    def all_of(form: Call, value: Tensor, params: Tensor) -> list[Tensor]:
        inputs = [value.detach().requires_grad_(), params.detach().requires_grad_()]
        mapped, log_slope = form(*inputs)
        return [mapped, log_slope, *torch.autograd.grad(mapped.sum() + log_slope.sum(), inputs)]

    own = MixtureCDF()
    exact = all_of(own.kernel(True).plain, value.double(), params.double())
    for got, usual, truth in zip(
        all_of(own.inverse, value, params), all_of(own.kernel(True).plain, value, params), exact, strict=True
    ):
        assert torch.isfinite(got).all()
        mine, plains = (((x - truth).abs() / (1 + truth.abs())).flatten().quantile(0.99) for x in (got, usual))
        assert mine <= 3 * plains + 1e-6


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(3, 5, 7), (15, 16, 17), (16, 16, 16), (200, 3, 40), (3, 200, 40), (64, 130, 300)])
def test_linear_in_single_precision(sizes: tuple[int, int, int], masked: bool) -> None:
    """As exact as torch's own product, whichever library computes it; masked weights get no gradient at all."""
    into, out, n = sizes
    mask = (normal(out, into, seed=5) > 0).float() if masked else torch.ones(out, into)
    inputs = [normal(into, n).float(), normal(out, into, seed=1).float(), normal(out, seed=2).float()]
    for given in zip(*map(layouts, inputs), strict=True):
        got = derivatives(lambda x, *w: network(x, "relu", [mask if masked else None], w), given)
        usual, exact = (
            derivatives(lambda x, w, b: (w * mask) @ x + b[:, None], [x.to(dtype) for x in given])
            for dtype in (torch.float32, torch.float64)
        )
        for mine, torchs, truth in zip(got, usual, exact, strict=True):
            assert (mine - truth).abs().max() <= 2 * (torchs - truth).abs().max() + 1e-6 * (truth.abs().max() + 1)
        assert not got[2][mask == 0].any()


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names = f"{getattr(self, 'names', '')} {func}"
        return func(*args, **(kwargs or {}))


def test_onednn_can_be_switched_off() -> None:
    with torch.backends.mkldnn.flags(enabled=False), Operations() as seen:
        network(torch.ones(64, 64), "relu", [None], [torch.ones(64, 64), torch.ones(64)])
    assert "mkldnn" not in seen.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tame_far_out(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -3.0, 99.9, -100.0, 101.0, -1e4, 1e30, -math.inf], dtype=dtype).requires_grad_()
    beyond = (x.detach().double().abs() - 100).clamp(min=0)
    expected = x.detach().double().clamp(-100, 100) + x.detach().double().sign() * beyond.log1p()
    assert_close(tame(x).double().detach(), expected, 1e-6)
    assert_close(torch.autograd.grad(tame(x).sum(), x)[0].double(), 1 / (1 + beyond), 1e-6)
    assert tame(torch.full((2, 1), math.nan)).isnan().all()


# ---- whole flows ----------------------------------------------------------------------------------------------------

FLOWS = pytest.mark.parametrize("name", ["maf", "iaf", "nsf", "nsf, autoregressive", "circular_nsf, autoregressive"])


def everything(flow: flowlab.Flow, rows: int = 6) -> list[Tensor]:
    """Samples, their densities in both directions, and the gradients of all that."""
    x, log_prob = flow.rsample_and_log_prob((rows,), generator=seeded())
    again = flow.log_prob(x.detach())
    grads = torch.autograd.grad(weighted([x, log_prob, again]), (*flow.parameters(),), materialize_grads=True)
    return [x.detach(), log_prob.detach(), again.detach(), *grads]


@FLOWS
def test_flows_after_use(name: str, tmp_path: Path) -> None:
    """Copies, files, inference mode: no use of a flow leaves anything behind."""
    flow = preset(name, 4)
    expected = everything(flow)
    flowlab.save(flow, tmp_path / "flow")
    with torch.inference_mode():
        flow.log_prob(flow.sample((3,)))
    for other in (flow, copy.deepcopy(flow), flowlab.load(tmp_path / "flow")):
        assert_close(everything(other), expected, 0)
    assert flow.log_prob(flow.rsample((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("width", [8, 64])
@FLOWS
def test_threads(name: str, width: int) -> None:
    """The same bits from run to run with two threads."""
    flow = perturb(PRESETS[name][0](8, hidden=(width,), layers=2, generator=seeded()), scale=0.05)
    try:
        torch.set_num_threads(2)
        assert_close(everything(flow, 500), everything(flow, 500), 0)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("width", [8, 64])
@FLOWS
def test_autocast(name: str, width: int) -> None:
    flow = perturb(PRESETS[name][0](20, hidden=(width,), layers=2, generator=seeded()), scale=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        results = everything(flow, 50)
    assert all(x.dtype == torch.float32 and torch.isfinite(x).all() for x in results)


def test_network_without_inputs() -> None:
    assert MLP(0, 3, (4,))(torch.empty(2, 5, 0)).shape == (2, 5, 3)
