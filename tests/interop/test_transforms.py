"""torch's transforms as layers, and layers as torch's transforms."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import (
    AffineTransform,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
    transforms,
)

import flowlab
from constructors import preset, rows
from flowlab import Flow
from flowlab.bases import Gaussian
from flowlab.interop.torch import LayerTransform, TransformLayer
from flowlab.layers import Coupling
from helpers import seeded

TRANSFORMS: dict[str, transforms.Transform] = {
    "exp": transforms.ExpTransform(),
    "sigmoid": transforms.SigmoidTransform(),
    "tanh": transforms.TanhTransform(),
    "affine": AffineTransform(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), -0.5),
    "affine, of vectors": AffineTransform(1.0, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), event_dim=1),
    "chain": transforms.ComposeTransform([transforms.TanhTransform(cache_size=1), AffineTransform(0.0, 3.0)]),
    "independent": transforms.IndependentTransform(transforms.SoftplusTransform(), 1),
    "inverse": transforms.ComposeTransform([transforms.SigmoidTransform(), transforms.ExpTransform().inv]),
    "cumulative": transforms.CumulativeDistributionTransform(Normal(torch.zeros(3).double(), 1.5)),
    "stack": transforms.CatTransform(
        [transforms.ExpTransform(), transforms.SigmoidTransform()], dim=-1, lengths=[1, 2]
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_as_layers(name: str) -> None:
    transform = TRANSFORMS[name]
    layer = TransformLayer(transform, 3)
    flowlab.check_layer(layer.double(), generator=seeded())
    flow = Flow(Gaussian(3), [Coupling(3, hidden=(8,), generator=seeded()), layer]).double()
    base = TransformedDistribution(flow.distribution(), [])
    expected = TransformedDistribution(Flow(flow.base, [flow.layers[0]]).distribution(), [transform])
    x = flow.sample((20,), generator=seeded())
    torch.testing.assert_close(flow.log_prob(x), expected.log_prob(x))
    torch.testing.assert_close(base.log_prob(x), flow.log_prob(x))
    assert bool(flow.support.check(x).all())
    assert flow.support.event_dim == 1
    _, log_prob = flow.rsample_and_log_prob((5,), generator=seeded())
    log_prob.sum().backward()


def test_tensors_of_transforms_move_and_train() -> None:
    scale = nn.Parameter(torch.ones(3))
    given = AffineTransform(torch.zeros(3), scale)
    layer = TransformLayer(transforms.ComposeTransform([given, transforms.ExpTransform()]), 3)
    assert list(layer.parameters()) == [scale]
    flow = Flow(Gaussian(3), [layer]).double()
    assert flow.sample((2,)).dtype == torch.float64
    flow.log_prob(flow.sample((5,))).sum().backward()
    assert scale.grad is not None
    copied = copy.deepcopy(flow)
    with torch.no_grad():
        scale.mul_(2)
    x = torch.full((3,), 2.0).double()
    assert copied.log_prob(x) != flow.log_prob(x)


def test_transforms_that_are_no_layers(tmp_path: Path) -> None:
    for transform, message in [
        (transforms.AbsTransform(), "AbsTransform is not bijective"),
        (transforms.StickBreakingTransform(), "makes 4 numbers of 3"),
        (transforms.LowerCholeskyTransform(), "LowerCholeskyTransform"),
    ]:
        with pytest.raises(ValueError, match=message):
            TransformLayer(transform, 3)
    with pytest.raises(TypeError, match=r"must be a torch.distributions.Transform, not ReLU"):
        TransformLayer(nn.ReLU(), 3)
    flow = Flow(Gaussian(3), [TransformLayer(transforms.ExpTransform(), 3)])
    with pytest.raises(TypeError, match="cannot save a TransformLayer: an object of"):
        flowlab.save(flow, tmp_path / "model.flow")


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("name", ["real_nvp", "maf", "iaf", "planar"])
def test_layers_as_transforms(name: str, cache_size: int) -> None:
    """One for the whole flow, or one for each layer: TransformedDistribution has the flow's density."""
    flow, context = preset(name, 3, context_features=2), rows(4, 2)
    base = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    for parts in ([flow], list(flow)):
        chain = [LayerTransform(part, context, cache_size) for part in parts]
        q = TransformedDistribution(base.expand((4,)), chain)
        assert (q.batch_shape, q.event_shape, q.has_rsample) == ((4,), (3,), True)
        x = q.rsample((6,))
        assert x.shape == (6, 4, 3)
        expected = flow.log_prob(x, context)
        torch.testing.assert_close(q.log_prob(x), expected)
        torch.testing.assert_close(q.log_prob(x.detach()), expected)
        q.log_prob(x).sum().backward()
    for transform in chain:
        z = base.sample((4,))
        y = transform(z)
        torch.testing.assert_close(transform.inv(y), z)
        if cache_size:
            assert transform.inv(y) is z
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row, c: transform.layer(row, c)[0]))(z, context)  # noqa: B023
        torch.testing.assert_close(transform.log_abs_det_jacobian(z, y), jacobian.logdet())
        torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, z), -jacobian.logdet())
        assert transform.with_cache(1) == transform
        assert transform.domain is transform.codomain is constraints.real_vector
        assert transform.forward_shape((5, 3)) == transform.inverse_shape((5, 3)) == (5, 3)


def test_a_cached_transform_runs_its_layer_once(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = LayerTransform._run
    monkeypatch.setattr(LayerTransform, "_run", lambda self, *given: (calls.append(1), run(self, *given))[1])
    base = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    for cache_size, expected in ((0, 2), (1, 1)):
        calls.clear()
        TransformedDistribution(base, [LayerTransform(flow, cache_size=cache_size)]).log_prob(rows(5, 3))
        assert len(calls) == expected


def test_layer_transforms_refuse_contexts(flow: Flow, conditional: Flow) -> None:
    with pytest.raises(ValueError, match=r"takes a context \(\*batch, 2\)"):
        LayerTransform(conditional)
    with pytest.raises(ValueError, match="takes no context"):
        LayerTransform(flow, rows(4, 2))
