"""`check_layer` and `check_flow` find every fault that is planted here, and name it; sound layers pass."""

import pytest
import torch
from torch import Tensor, nn

from constructors import BASES, EVERY_PRESET, LAYERS, preset
from flowlab import Flow, bases, check_flow, check_layer
from flowlab.layers import Affine, Coupling, Layer
from helpers import seeded


class Scaled(Layer):
    """x = z · exp(s) + shift, sound; the context adds to the shift."""

    def __init__(self, context_features: int = 0) -> None:
        super().__init__()
        self.features, self.context_features = 3, context_features
        self.log_scale = nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))
        self.weight = nn.Parameter(torch.ones(max(context_features, 1), 3, dtype=torch.float64))

    def shift(self, context: Tensor | None) -> Tensor:
        return self.weight[0] if context is None else context @ self.weight

    def forward(self, z, context=None):
        return z * self.log_scale.exp() + self.shift(context), self.log_scale.sum().expand(z.shape[:-1])

    def inverse(self, x, context=None):
        return (x - self.shift(context)) * (-self.log_scale).exp(), -self.log_scale.sum().expand(x.shape[:-1])


class FlippedLogDet(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x, -log_det

    def inverse(self, x, context=None):
        z, log_det = super().inverse(x, context)
        return z, -log_det


class MissingTerm(Scaled):
    def forward(self, z, context=None):
        x, _ = super().forward(z, context)
        return x, self.log_scale[:2].sum().expand(z.shape[:-1])

    def inverse(self, x, context=None):
        z, _ = super().inverse(x, context)
        return z, -self.log_scale[:2].sum().expand(x.shape[:-1])


class TermHiddenAtTheStart(MissingTerm):
    """The missing term is zero until training: the check has to move the parameters."""

    def __init__(self, context_features: int = 0) -> None:
        super().__init__(context_features)
        nn.init.zeros_(self.log_scale)


class SameDirection(Scaled):
    def inverse(self, x, context=None):
        z, log_det = super().inverse(x, context)
        return z, -log_det


class OffByAConstant(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x, log_det + 1e-6

    def inverse(self, x, context=None):
        z, log_det = super().inverse(x, context)
        return z, log_det - 1e-6


class ClampedInverse(Scaled):
    def inverse(self, x, context=None):
        z, log_det = super().inverse(x, context)
        return z.clamp(-10, 10), log_det


class ClampedForward(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x.clamp(-10, 10), log_det


class Float32Buffer(Scaled):
    def __init__(self, context_features: int = 0) -> None:
        super().__init__(context_features)
        self.register_buffer("offset", torch.full((3,), 0.1, dtype=torch.float32))

    def shift(self, context):
        return super().shift(context) + self.offset


class LooseTensor(Scaled):
    def __init__(self, context_features: int = 0) -> None:
        super().__init__(context_features)
        self.offset = torch.full((3,), 0.1, dtype=torch.float64)


class ThroughFloat32(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z.float().double(), context)
        return x, log_det


class OtherType(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x.float(), log_det


class OtherTypeOfLogDet(Scaled):
    def inverse(self, x, context=None):
        z, log_det = super().inverse(x, context)
        return z, log_det.float()


class OtherDevice(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x, log_det.to("meta")


class MixedRows(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x + 1e-3 * z.mean(tuple(range(z.ndim - 1)), keepdim=True).detach().reshape(3), log_det


class MixedRowsInTraining(Scaled):
    def shift(self, context):
        return super().shift(context) * 1.0

    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return (x - z.reshape(-1, 3).mean(0) if self.training else x), log_det


class FirstContext(Scaled):
    def __init__(self) -> None:
        super().__init__(2)

    def shift(self, context):
        return context.reshape(-1, 2)[:1].sum(0) @ self.weight


class Restless(Scaled):
    calls = 0

    def forward(self, z, context=None):
        self.calls += 1
        x, log_det = super().forward(z, context)
        return x + 1e-3 * self.calls, log_det


class ChangesItsInput(Scaled):
    def inverse(self, x, context=None):
        x -= self.shift(context).detach()
        return x * (-self.log_scale).exp(), -self.log_scale.sum().expand(x.shape[:-1])


class ChangesItsContext(Scaled):
    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, z, context=None):
        result = super().forward(z, context)
        context *= 1.5
        return result


class LearnsWhenCalled(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(3, dtype=torch.float64))

    def inverse(self, x, context=None):
        if self.training:
            self.running += 0.1
        return super().inverse(x, context)


class NoGradientAtTheOrigin(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x, log_det + 0 * z.square().sum(-1).sqrt()


class DetachedLogDet(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x, log_det.detach()


class DetachedScale(Scaled):
    def forward(self, z, context=None):
        return z * self.log_scale.exp().detach() + self.shift(context), self.log_scale.sum().expand(z.shape[:-1])


class RowsOnly(Scaled):
    def forward(self, z, context=None):
        n, _ = z.shape
        x, log_det = super().forward(z, context)
        return x, log_det.expand(n)


class NoEmptyBatch(Scaled):
    def forward(self, z, context=None):
        z.abs().max()
        return super().forward(z, context)


class FlattenedLogDet(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x, log_det.flatten()


class NotANumber(Scaled):
    def forward(self, z, context=None):
        x, log_det = super().forward(z, context)
        return x, log_det + (z - 30).clamp(min=0).sum(-1).log() * 0


class RightNearTheOrigin(Layer):
    """x = z + tanh(z) / 2, inverted by a few steps that converge near the origin alone."""

    features = 2

    def forward(self, z, context=None):
        return z + z.tanh() / 2, (1 + (1 - z.tanh().square()) / 2).log().sum(-1)

    def inverse(self, x, context=None):
        z = 2 * x / 3
        for _ in range(40):
            z = x - z.tanh() / 2
        z = torch.where(x.abs() > 20, x, z)
        return z, -self.forward(z)[1]


JACOBIAN = "forward's log-determinant against autograd's Jacobian|forward's log-determinant is not"
FAULTS: dict[type[Layer], str] = {
    FlippedLogDet: JACOBIAN,
    MissingTerm: JACOBIAN,
    TermHiddenAtTheStart: JACOBIAN,
    SameDirection: "inverse's log-determinant against autograd's Jacobian",
    OffByAConstant: JACOBIAN,
    ClampedInverse: "round trip noise -> data -> noise",
    ClampedForward: JACOBIAN,
    RightNearTheOrigin: "round trip noise -> data -> noise",
    Float32Buffer: "two floating-point types, log_scale in torch.float64 and offset in torch.float32",
    LooseTensor: "tensor offset is neither parameter nor buffer",
    ThroughFloat32: "round trip noise -> data -> noise",
    OtherType: "dtype of forward's result: torch.float32, its input's is torch.float64",
    OtherTypeOfLogDet: "dtype of inverse's log-determinant: torch.float32",
    OtherDevice: "device of forward's log-determinant: meta",
    MixedRows: "forward in evaluation mode: a row's result depends on other rows",
    MixedRowsInTraining: "forward in training mode: a row's result depends on other rows",
    FirstContext: "forward in evaluation mode: a row's result depends on other rows or their context",
    Restless: "forward gives other results when called again",
    ChangesItsInput: "inverse changes its input",
    ChangesItsContext: "forward changes its context",
    LearnsWhenCalled: "inverse in training mode changes running",
    NoGradientAtTheOrigin: "gradient of forward's log-determinant in the rows is not finite",
    DetachedLogDet: "gradient of forward's log-determinant in the parameters is 0 along a line",
    DetachedScale: "gradient of forward's result in the parameters is",
    RowsOnly: r"forward of a batch of shape \(\) fails",
    NoEmptyBatch: r"forward of a batch of shape \(0,\) fails",
    FlattenedLogDet: r"forward of a batch of shape \(\): results have shape \(1,\)",
    NotANumber: "forward's log-determinant is NaN for a finite row",
}


def test_the_layer_that_faults_are_planted_in_is_sound():
    check_layer(Scaled())
    check_layer(Scaled(2))
    check_layer(Scaled().float())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_named(fault):
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_layer(fault())


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if not issubclass(f, FirstContext | ChangesItsContext | RightNearTheOrigin)]
)
def test_planted_fault_is_found_in_a_flow(fault):
    with pytest.raises(AssertionError):
        check_flow(Flow(bases.Gaussian(3).double(), [fault()]), draws=1_000)


def test_a_hook_that_changes_results_is_named():
    layer = Scaled()
    layer.register_forward_hook(lambda module, inputs, result: (result[0] + 1, result[1]))
    with pytest.raises(AssertionError, match="a hook changes them"):
        check_layer(layer)


class Unnormalised(bases.Gaussian):
    def log_prob(self, z):
        return super().log_prob(z) + 0.1


class OtherSamples(bases.Gaussian):
    def rsample(self, shape=(), generator=None):
        return super().rsample(shape, generator) + 0.3


class WiderSamples(bases.Gaussian):
    def rsample(self, shape=(), generator=None):
        return super().rsample(shape, generator) * 1.3


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (Unnormalised, "the density integrates to one"),
        (OtherSamples, "samples have the place of the density"),
        (WiderSamples, "samples have the width of the density"),
    ],
)
def test_planted_fault_of_a_base_is_named(base, message):
    layers = [Coupling(2, hidden=(8,), generator=seeded())]
    check_flow(Flow(bases.Gaussian(2), layers))
    with pytest.raises(AssertionError, match=message):
        check_flow(Flow(base(2), layers))


def test_checks_leave_everything_as_it_was():
    layer = Coupling(3, Affine(), hidden=(8,), dropout=0.5, generator=seeded()).train()
    flow = Flow(bases.Gaussian(3), [layer])
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    state = torch.random.get_rng_state()
    check_layer(layer)
    check_flow(flow, draws=1_000)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert layer.training
    assert all(p.grad is None and p.requires_grad for p in flow.parameters())


def test_rows_that_saturate_are_left_out_and_said_when_they_are_many():
    class Logistic(Layer):
        features = 2

        def forward(self, z, context=None):
            return z.sigmoid(), -(nn.functional.softplus(z) + nn.functional.softplus(-z)).sum(-1)

        def inverse(self, x, context=None):
            return x.logit(), -(x.log() + (-x).log1p()).sum(-1)

    check_layer(Logistic())
    with pytest.raises(AssertionError, match="roundings hide what the layer does in 3 of 4 rows"):
        check_layer(Logistic(), torch.tensor([[0.0, 1.0], [30.0, 1.0], [40.0, 0.0], [0.0, 50.0]]))


QUICK = [name for name in LAYERS if not any(word in name for word in ("mixture", "residual", "circular", "five"))]


def sound(name: str, features: int, context_features: int, dtype: torch.dtype) -> None:
    check_layer(LAYERS[name](features, context_features, dtype=dtype))


@pytest.mark.parametrize("name", QUICK)
def test_sound_layers_pass(name):
    sound(name, 3, 2 * LAYERS[name].takes_context, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_all_sound_layers_pass(name, dtype):
    for features in (1, 3):
        for context_features in {0, 2 * LAYERS[name].takes_context}:
            sound(name, features, context_features, dtype)


@EVERY_PRESET
def test_sound_flows_pass(name):
    check_flow(preset(name, 2).float(), draws=2_000)


@pytest.mark.slow
@EVERY_PRESET
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("perturbed", [False, True])
def test_all_sound_flows_pass(name, dtype, perturbed):
    check_flow(preset(name, 3, perturbed=perturbed).to(dtype))
    check_flow(preset(name, 2, context_features=2, perturbed=perturbed).to(dtype))


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sound_bases_pass(name, dtype):
    check_flow(Flow(BASES[name](2).to(dtype), []))
