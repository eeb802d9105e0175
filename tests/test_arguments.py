"""Numbers that constructors are given: each is looked at at once, and the message names it."""

import inspect
import math
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import flowlab
from flowlab import bases, layers, networks, presets
from flowlab.hints import fits

PRESETS = [getattr(presets, name) for name in presets.__all__]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("features", [0, -1, 2.0, "2", True, None])
def test_presets_need_a_whole_number_of_features(preset, features):
    with pytest.raises(ValueError, match="features must be a whole number of at least 1"):
        preset(features)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": "2"}, "layers"),
        ({"context_features": -1}, "context_features"),
        ({"hidden": -3}, "hidden"),
        ({"hidden": "64"}, "hidden"),
        ({"hidden": (8, 2.5)}, "hidden"),
        ({"hidden": 64.0}, "hidden"),
    ],
)
def test_presets_name_what_does_not_fit(preset, options, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        preset(2, **{"context_features": 1, **options})


def test_one_number_stands_for_one_hidden_layer_or_one_axis_of_draws():
    flow = presets.nsf(np.int64(2), hidden=np.int64(8), layers=2, bins=np.int64(3))
    assert flow.layers[0].hidden == (8,)
    assert flow.sample(5).shape == flow.rsample((5,)).shape == (5, 2)
    assert flow.sample(np.int64(5)).shape == flow.distribution().sample((5,)).shape
    assert presets.maf(2, hidden=np.array([4, 5])).layers[0].hidden == (4, 5)
    assert bases.GaussianMixture(2).sample(3).shape == bases.StudentT(2).sample(3).shape == (3, 2)
    assert flowlab.FlowMixture([flow, flow]).sample(4).shape == (4, 2)
    for shape in ("5", 2.5, (2.5,), -1, (3, -1), True):
        with pytest.raises(ValueError, match="the shape of draws must"):
            flow.sample(shape)


@pytest.mark.parametrize(
    "build",
    [
        *PRESETS,
        layers.Autoregressive,
        layers.Coupling,
        layers.ElementwiseAffine,
        layers.Planar,
        layers.Radial,
        layers.Sylvester,
        lambda features, hidden, **_: networks.MLP(features, 4, hidden),
        lambda features, **options: networks.MaskedMLP(features, 4, **options),
        lambda features, hidden, **_: networks.MLP(features, 4, hidden, residual=True),
    ],
)
def test_one_number_stands_for_one_hidden_layer_everywhere(build):
    one, other = (build(3, context_features=2, hidden=hidden) for hidden in (16, (16,)))
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}


def test_what_tab_completion_shows():
    functions = {name: value for name, value in vars(presets).items() if inspect.isfunction(value) and name[0] != "_"}
    own = {name for name, function in functions.items() if function.__module__ == presets.__name__}
    assert set(dir(presets)) == set(presets.__all__) == own
    assert set(dir(layers)) == set(layers.__all__)
    assert {"Gaussian", "StudentT"} < set(dir(bases)) == set(bases.__all__)
    assert all(inspect.isclass(getattr(module, name)) for module in (layers, bases) for name in dir(module))


@pytest.mark.parametrize("name", ["bases", "datasets", "gradients", "layers", "presets"])
def test_public_modules_are_imported_by_their_names(name):
    """In a program that has imported nothing else of flowlab."""
    code = f"import flowlab; assert flowlab.{name}.__name__ == 'flowlab.{name}'; from flowlab.{name} import __doc__"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: layers.RationalQuadraticSpline(bins=-1), "bins"),
        (lambda: layers.RationalQuadraticSpline(bins=8.0), "bins"),
        (lambda: layers.RationalQuadraticSpline(bound=0), "bound"),
        (lambda: layers.RationalQuadraticSpline(slope=1), "slope"),
        (lambda: layers.CircularSpline(bins=0), "bins"),
        (lambda: layers.CircularSpline(slope=math.nan), "slope"),
        (lambda: layers.Affine(bound=-1), "bound"),
        (lambda: layers.Affine(bound="3"), "bound"),
        (lambda: layers.Affine(bound=math.inf), "bound"),
        (lambda: layers.MixtureCDF(components=0), "components"),
        (lambda: layers.MixtureCDF(floor=0), "floor"),
        (lambda: layers.MixtureCDF(log_scale_bound=-1), "log_scale_bound"),
        (lambda: layers.SinhArcsinh(heaviest=1), "heaviest"),
        (lambda: layers.Coupling(0), "features"),
        (lambda: layers.Coupling(2, dropout=1), "dropout"),
        (lambda: layers.Coupling(2, dropout="x"), "dropout"),
        (lambda: layers.Autoregressive(2.0), "features"),
        (lambda: layers.Autoregressive(3, order=5), "order"),
        (lambda: layers.Autoregressive(2, order=[0.0, 1.5]), "order"),
        (lambda: layers.Permutation(2, [1, 1]), "permutation"),
        (lambda: layers.Planar(2, steps=0), "steps"),
        (lambda: layers.Radial(-1), "features"),
        (lambda: layers.Sylvester(2, 0), "directions"),
        (lambda: layers.LULinear("3"), "features"),
        (lambda: layers.Householder(3, 3), "reflections"),
        (lambda: layers.ElementwiseAffine(2, bound=0), "bound"),
        (lambda: layers.ActNorm(2, bound=-1), "bound"),
        (lambda: layers.Whitening(2, floor=-1), "floor"),
        (lambda: layers.Marginal(2, bins=0), "bins"),
        (lambda: layers.Marginal(2, bins=[3]), "bins"),
        (lambda: layers.Marginal(2, bins="ab"), "bins"),
        (lambda: bases.Gaussian(0), "features"),
        (lambda: bases.StudentT(2, df="x"), "df"),
        (lambda: bases.Uniform(2, high=math.inf), "high"),
        (lambda: bases.GaussianMixture(2, 0), "components"),
        (lambda: bases.Kernels(2, -1), "count"),
        (lambda: networks.MLP(-1, 2), "in_features"),
        (lambda: networks.MLP(1, 2, dropout=-0.1), "dropout"),
        (lambda: networks.MaskedMLP(2, 0), "outputs"),
        (lambda: flowlab.ReverseKL(torch.sum, draws=0), "draws"),
        (lambda: flowlab.IWAE(torch.sum, k=1.5), "k"),
        (lambda: flowlab.Tempered(flowlab.ReverseKL(torch.sum), steps=-1), "steps"),
    ],
)
def test_layers_bases_networks_and_objectives_refuse_numbers_at_once(build, name):
    with pytest.raises(ValueError, match=rf"(^|\W){name}\b.* must "):
        build()


def test_numbers_of_numpy_are_kept_as_python_s_own(tmp_path):
    flow = presets.nsf(np.int32(2), layers=1, hidden=(np.int64(4),), bins=np.int8(3), bound=np.float32(4))
    flowlab.save(flow, tmp_path / "m.flow")
    assert flowlab.load(tmp_path / "m.flow").layers[0].scalar == layers.RationalQuadraticSpline(3, 4.0)


def test_many_values_fit_as_few_do():
    for hint, good, bad in (
        (list[float | None], [0.5, 1, None], "x"),
        (list[float], [0.5, 2], float("inf")),
        (list[float], [0.5, 2], float("nan")),
        (list[int], [1, 2], True),
        (list[int], [1, 2], 1.0),
        (list[str], ["a", "b"], 3),
        (list[list[float]], [[1.0], [2]], [None]),
        (list[Literal["a", "b"]], ["a", "b"], "c"),
        (Tensor, [1.0, 2], "x"),
    ):
        assert fits(good * 200, hint), hint
        for place in (0, 150, 399):
            assert not fits([*(good * 200)[:place], bad, *(good * 200)[place:]], hint), (hint, bad)
