"""The same weights give the same numbers as in nflows and zuko."""

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from constructors import perturb
from flowlab.layers import (
    Affine,
    Autoregressive,
    CircularSpline,
    Coupling,
    Householder,
    LULinear,
    RationalQuadraticSpline,
)
from flowlab.networks import MaskedMLP
from helpers import normal, seeded


@pytest.fixture(scope="module")
def zuko() -> ModuleType:
    """zuko, without what its import does to the validation of torch's own distributions."""
    validate = Distribution._validate_args
    module = pytest.importorskip("zuko")
    Distribution.set_default_validate_args(validate)
    return module


@pytest.fixture(scope="module")
def nflows() -> ModuleType:
    pytest.importorskip("nflows")
    import nflows.transforms

    return nflows


def assert_equal(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


# Splines --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 3.0, 100.0])
@pytest.mark.parametrize(("bins", "bound", "slope"), [(8, 5.0, 1e-3), (3, 2.0, 1e-2), (2, 7.0, 1e-4)])
def test_spline_is_zukos(zuko: ModuleType, bins: int, bound: float, slope: float, scale: float) -> None:
    value, params = torch.linspace(-8, 8, 201, dtype=torch.float64), normal(3 * bins - 1, 201, scale=scale)
    widths, heights, derivatives = params.T.split([bins, bins, bins - 1], -1)
    theirs = zuko.transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=bound, slope=slope)
    ours = RationalQuadraticSpline(bins, bound, slope)
    mapped, log_slope = theirs.call_and_ladj(value)
    assert_equal(ours.forward(value, params), (mapped, log_slope))
    # zuko's inverse has no guard against the rounding of its discriminant, ours is asked where that is harmless.
    if scale < 10:
        assert_equal(ours.inverse(mapped, params), (theirs.inv(mapped), -log_slope))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 8])
def test_spline_is_nflows(nflows: ModuleType, bins: int, inverse: bool) -> None:
    """Our knots and slopes in nflows' parametrisation: log-shares of bins, and softplus⁻¹ of slopes."""
    from nflows.transforms.splines.rational_quadratic import rational_quadratic_spline

    params, value = normal(3 * bins - 1, 101, scale=2.0), torch.linspace(-4.999, 4.999, 101, dtype=torch.float64)
    widths, heights, derivatives = params.T.split([bins, bins, bins - 1], -1)

    def squeezed(x: Tensor, bound: float) -> Tensor:
        return x / (1 + (x / bound).abs())

    slopes = squeezed(derivatives, math.log(1e3)).exp()
    slopes = torch.cat([torch.ones(101, 1).double(), slopes, torch.ones(101, 1).double()], -1)
    theirs = rational_quadratic_spline(
        value,
        squeezed(widths, math.log(1e3) / 2).log_softmax(-1),
        squeezed(heights, math.log(1e3) / 2).log_softmax(-1),
        slopes.expm1().log(),
        inverse=inverse,
        left=-5.0,
        right=5.0,
        bottom=-5.0,
        top=5.0,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    ours = RationalQuadraticSpline(bins)
    assert_equal(ours.inverse(value, params) if inverse else ours.forward(value, params), theirs)


def test_circular_spline_is_a_rotated_spline_of_zukos(zuko: ModuleType) -> None:
    """zuko's splines have slope one at ±π; ours with that slope there is theirs, followed by our rotation."""
    bins = 5
    value, params = torch.linspace(-3.1, 3.1, 101, dtype=torch.float64), normal(3 * bins + 1, 101)
    params[2 * bins] = 0.0  # the slope at the seam
    widths, heights, derivatives = params[:-1].T.split([bins, bins, bins], -1)
    theirs = zuko.transforms.MonotonicRQSTransform(widths, heights, derivatives[:, 1:], bound=math.pi)
    mapped, log_slope = theirs.call_and_ladj(value)
    turned = mapped + params[-1]
    turned = torch.atan2(turned.sin(), turned.cos())
    assert_equal(CircularSpline(bins).forward(value, params), (turned, log_slope))


# Networks -------------------------------------------------------------------------------------------------------------


def copy_to_made(ours: MaskedMLP, theirs: nn.Module, outputs: int) -> None:
    """Copy a MaskedMLP's weights into an nflows MADE: its hidden degrees cycle, ours ascend."""
    features = theirs.initial_layer.in_features
    layers = [theirs.initial_layer]
    for block in theirs.blocks:
        layers += list(block.linear_layers) if hasattr(block, "linear_layers") else [block.linear]
    layers.append(theirs.final_layer)
    incoming = torch.arange(features)
    for mine, other in zip(ours.linears, layers, strict=True):
        if other is theirs.final_layer:
            outgoing = torch.arange(features * outputs)
        else:
            outgoing = other.degrees.argsort(stable=True).argsort()  # unit i there is the unit of its rank here
        with torch.no_grad():
            other.weight.copy_(mine.weight[outgoing][:, incoming])
            other.bias.copy_(mine.bias[outgoing])
        incoming = outgoing


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("features", [2, 3, 5])
def test_masked_network_is_nflows_made(nflows: ModuleType, features: int, residual: bool) -> None:
    from nflows.transforms.made import MADE

    width, outputs, blocks = 4 * (features - 1), 3, 2
    hidden = (width,) * (blocks if residual else blocks + 1)
    ours = perturb(MaskedMLP(features, outputs, hidden, residual=residual, generator=seeded()).double())
    theirs = MADE(features, width, num_blocks=blocks, output_multiplier=outputs, use_residual_blocks=residual).double()
    copy_to_made(ours, theirs, outputs)
    x = normal(20, features)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.columns(x.T), expected.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [3, 5])
def test_affine_maf_is_nflows(nflows: ModuleType, features: int) -> None:
    """nflows maps data to noise: z = scale · x + shift' with scale = e^-s and shift' = -shift · e^-s."""
    from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform

    width = 4 * (features - 1)
    ours = perturb(Autoregressive(features, Affine(), hidden=(width, width), generator=seeded()).double())
    theirs = MaskedAffineAutoregressiveTransform(features, width, num_blocks=1, use_residual_blocks=False).double()
    copy_to_made(ours.network, theirs.autoregressive_net, 2)
    made, bound = theirs.autoregressive_net, ours.scalar.bound

    class Translated(nn.Module):
        """Our shift and log-scale, out of nflows' network, as nflows' unconstrained scale and shift."""

        def forward(self, x: Tensor, context: None = None) -> Tensor:
            shift, raw = made(x).view(-1, features, 2).unbind(-1)
            scale = (-bound * torch.tanh(raw / bound)).exp()
            return torch.stack([(scale - theirs._epsilon).expm1().log(), -shift * scale], -1).flatten(1)

    theirs.autoregressive_net = Translated()
    x = normal(20, features, seed=1)
    z, log_det = ours.inverse(x)
    assert_equal((z, log_det), theirs(x))
    assert_equal(ours(z), theirs.inverse(z))


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]], ids=["own order", "shuffled"])
@pytest.mark.parametrize("fast", ["density", "sampling"])
def test_autoregressive_passes_are_zukos(zuko: ModuleType, fast: str, order: list[int] | None) -> None:
    """zuko's autoregressive transform inverts with one whole pass per feature, ours feature by feature."""
    ours = perturb(Autoregressive(4, Affine(), order, fast, hidden=(9,), generator=seeded()).double())
    bound = ours.scalar.bound

    def meta(x: Tensor) -> Transform:
        shift, raw = ours.network(x[:, ours.order]).unflatten(-1, (4, 2))[:, ours.rank].unbind(-1)
        log_scale = bound * torch.tanh(raw / bound)
        if fast == "density":  # data to noise
            shift, log_scale = -shift * (-log_scale).exp(), -log_scale
        unclipped = log_scale / (1 - (log_scale / math.log(1e3)).abs())  # zuko clips it again
        return zuko.transforms.MonotonicAffineTransform(shift, unclipped)

    theirs = zuko.transforms.AutoregressiveTransform(meta, passes=4)
    value = normal(20, 4)
    one_pass, by_feature = (ours.inverse, ours.forward) if fast == "density" else (ours.forward, ours.inverse)
    torch.testing.assert_close(one_pass(value)[0], theirs(value), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_feature(value)[0], theirs.inv(value), rtol=1e-9, atol=1e-9)


# Couplings and linear layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_features", [0, 2])
def test_affine_coupling_is_nflows(nflows: ModuleType, context_features: int) -> None:
    """nflows maps data to noise and cannot stretch by more than 1.001: our log-scales are moved above zero."""
    from nflows.transforms.coupling import AffineCouplingTransform

    mask = [False, True, True, False, True]
    layer = Coupling(5, Affine(), mask, context_features=context_features, hidden=(9,), generator=seeded())
    ours = perturb(layer.double())
    with torch.no_grad():
        ours.network.linears[-1].bias[1::2] += 2.0  # the log-scales' offsets
    bound = ours.scalar.bound

    class Translated(nn.Module):
        def forward(self, kept: Tensor, context: Tensor | None = None) -> Tensor:
            inputs = kept if context is None else torch.cat([context, kept], -1)
            shift, raw = ours.network(inputs).unflatten(-1, (3, 2)).unbind(-1)
            scale = (-bound * torch.tanh(raw / bound)).exp()
            return torch.cat([-shift * scale, torch.logit(scale - 1e-3) - 2], -1)

    theirs = AffineCouplingTransform([int(m) for m in mask], lambda inputs, outputs: Translated())
    x = normal(20, 5, seed=1)
    context = normal(20, 2, seed=2) if context_features else None
    z, log_det = ours.inverse(x, context)
    assert_equal((z, log_det), theirs(x, context))
    assert_equal(ours(z, context), theirs.inverse(z, context))


def test_affine_is_zukos(zuko: ModuleType) -> None:
    """Equal log-scales, reached through another soft clamp."""
    value, shift, log_scale = normal(50), normal(50, seed=1), normal(50, seed=2).clamp(-2.5, 2.5)
    raw = 3.0 * torch.atanh(log_scale / 3.0)
    theirs = zuko.transforms.MonotonicAffineTransform(shift, log_scale / (1 - (log_scale / math.log(1e3)).abs()))
    mapped, ladj = theirs.call_and_ladj(value)
    ours, params = Affine(3.0), torch.stack([shift, raw])
    assert_equal(ours.forward(value, params), (mapped, ladj))
    assert_equal(ours.inverse(mapped, params), (theirs.inv(mapped), -ladj))


@pytest.mark.parametrize("features", [1, 2, 5])
def test_lu_is_nflows(nflows: ModuleType, features: int) -> None:
    """Both multiply by L U in `forward`, ours towards the data."""
    from nflows.transforms.lu import LULinear as Theirs

    ours, theirs = perturb(LULinear(features).double(), scale=0.5), Theirs(features, eps=0.0).double()
    with torch.no_grad():
        theirs.lower_entries.copy_(ours.lower[theirs.lower_indices])
        theirs.upper_entries.copy_(ours.upper[theirs.upper_indices])
        theirs.unconstrained_upper_diag.copy_(ours.diagonal)
        theirs.bias.copy_(ours.shift)
    z = normal(20, features)
    x, log_det = ours(z)
    assert_equal((x, log_det), theirs(z))
    torch.testing.assert_close(ours.inverse(x)[0], z)


@pytest.mark.parametrize("features", [1, 2, 5])
def test_householder_is_nflows(nflows: ModuleType, features: int) -> None:
    """nflows reflects a row by its first vector first, ours multiplies the last reflection from the left."""
    from nflows.transforms.orthogonal import HouseholderSequence

    ours = perturb(Householder(features, 4, generator=seeded()).double())
    theirs = HouseholderSequence(features, 4).double()
    with torch.no_grad():
        theirs.q_vectors = nn.Parameter(ours.vectors.clone())
    z = normal(20, features)
    assert_equal(ours(z), theirs(z))
    assert_equal(ours.inverse(z), theirs.inverse(z))
