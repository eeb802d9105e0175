"""Model files: what comes back, and what is refused."""

import json
import pickle
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import flowlab
from flowlab import FlowClassifier, FlowDensity, FlowOutlier, FlowRegressor, Member, registry
from flowlab.files import FileError, register
from flowlab.layers import Autoregressive, Coupling, LULinear, Permutation, Whitening
from flowlab.posteriors import FlowPosterior
from flowlab.posteriors.space import Space
from helpers import ROOT, rewritten

PRESETS = ["planar", "radial", "sylvester", "nice", "real_nvp", "glow", "maf", "iaf", "nsf", "circular_nsf"]


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "m.flow"
    flowlab.save(flowlab.presets.real_nvp(3, layers=2, hidden=(8,)), path)
    return path


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("context_features", [0, 2])
def test_presets_come_back_with_the_same_numbers(name, context_features, tmp_path, generator):
    flow = getattr(flowlab.presets, name)(3, context_features=context_features, layers=2, hidden=(8,))
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    flowlab.save(flow, tmp_path / "m.flow")
    loaded = flowlab.load(tmp_path / "m.flow")
    x = torch.rand(5, 3, generator=generator)
    context = torch.randn(5, context_features, generator=generator) if context_features else None
    assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))
    assert repr(loaded) == repr(flow)
    assert all(a.requires_grad == b.requires_grad for a, b in zip(flow.parameters(), loaded.parameters(), strict=True))


def test_floating_point_types_are_kept_layer_by_layer(tmp_path):
    flow = flowlab.Flow(flowlab.bases.Gaussian(2), [Coupling(2, hidden=(4,)), Whitening(2).double()])
    flow.initialise(torch.randn(50, 2, dtype=torch.float64))
    flowlab.save(flow, tmp_path / "m.flow")
    loaded = flowlab.load(tmp_path / "m.flow")
    assert loaded.dtype == torch.float64
    assert next(loaded.layers[0].parameters()).dtype == torch.float32
    x = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))


def test_a_registered_layer_of_ones_own_is_kept_and_a_foreign_one_refused(tmp_path):
    class Mine(flowlab.layers.Layer):
        def __init__(self, features: int, power: float = 2.0) -> None:
            super().__init__()
            self.features, self.power = features, power

    flow = flowlab.Flow(flowlab.bases.Gaussian(2), [Mine(2, 3.0)])
    path = tmp_path / "m.flow"
    path.write_bytes(b"what was here before")
    with pytest.raises(TypeError, match="cannot save a Mine: decorate"):
        flowlab.save(flow, path)
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written beside it
    register(Mine)
    flowlab.save(flow, path)
    assert flowlab.load(path).layers[0].power == 3.0
    for name in ("Coupling", "Steps", "Mine"):  # also where the class of that name was not imported yet
        with pytest.raises(ValueError, match=f"the name {name} is taken by <class"):
            register(type(name, (), {}))


@pytest.mark.parametrize("derived", [True, False])
@pytest.mark.parametrize("layer", [Coupling, Autoregressive])
def test_a_scalar_map_of_ones_own(derived, layer, tmp_path, generator, monkeypatch):
    """Whether it derives from `ScalarMap` or, as it was enough before, only has its methods."""

    @dataclass(frozen=True)
    class Scaling(flowlab.layers.ScalarMap if derived else object):
        most: float = 2.0

        count: ClassVar[int] = 1
        periodic: ClassVar[bool] = False
        box: ClassVar[None] = None

        def forward(self, z, params):
            log_scale = self.most * params[0].tanh()
            return z * log_scale.exp(), log_scale.expand_as(z)

        def inverse(self, x, params):
            log_scale = self.most * params[0].tanh()
            return x * (-log_scale).exp(), -log_scale.expand_as(x)

    monkeypatch.setattr(registry, "_registered", {})
    register(Scaling)
    flow = flowlab.Flow(flowlab.bases.Gaussian(3), [layer(3, Scaling(1.5), hidden=(8,), generator=generator)])
    x = torch.randn(60, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5])
    flowlab.fit(flow, x, epochs=3, progress=False, generator=generator)
    flowlab.check_flow(flow, draws=2_000)
    flowlab.save(flow, tmp_path / "m.flow")
    loaded = flowlab.load(tmp_path / "m.flow")
    assert loaded.layers[0].scalar == Scaling(1.5)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))


def test_a_saved_flow_holds_no_pickle(saved):
    data = saved.read_bytes()
    length = int.from_bytes(data[:8], "little")
    json.loads(data[8 : 8 + length])  # a JSON header, then nothing but numbers
    with pytest.raises(Exception, match=r"(?i)pickl|load|key"):
        pickle.loads(data)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.99])
def test_truncated_files_are_refused(saved, kept):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(FileError, match="not a flowlab file, or is damaged"):
        flowlab.load(saved)


def test_foreign_and_missing_files(tmp_path):
    path = tmp_path / "x.flow"
    with pytest.raises(FileNotFoundError, match=r"x\.flow"):
        flowlab.load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FileError, match="not a flowlab file"):
        flowlab.load(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(FileError, match="not a flowlab file"):
        flowlab.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(FileError, match="not one of flowlab's"):
        flowlab.load(path)


def first_layer(header: dict) -> dict:
    return header["module"]["args"]["layers"][0]


HOSTILE = {
    "newer": (lambda h: h.update(format=99, version="9.9"), "upgrade flowlab"),
    "no format": (lambda h: h.pop("format"), "no format number"),
    "unknown class": (lambda h: first_layer(h).update({"class": "os.system"}), "unknown class 'os.system'"),
    "base class": (lambda h: first_layer(h).update({"class": "Layer"}), "unknown class"),
    "unknown argument": (lambda h: first_layer(h)["args"].update(command="rm -rf /"), "no argument command"),
    "unknown kind": (lambda h: h.update(kind="subprocess"), "unknown kind"),
    "huge width": (
        lambda h: first_layer(h)["args"].update(hidden=[10**9, 10**9]),
        "asks for sizes such as 1000000000,",
    ),
    "absurd width": (lambda h: first_layer(h)["args"].update(hidden=[10**30]), "asks for sizes"),
    "wrong type": (lambda h: first_layer(h)["args"].update(features="three"), "damaged"),
    "missing argument": (lambda h: h["module"]["args"].pop("base"), "damaged"),
    "no module": (lambda h: h.pop("module"), "damaged"),
    "list": (lambda h: h.update(module=[1, 2]), "not that of a module"),
    "more layers": (lambda h: h["module"]["args"]["layers"].append(first_layer(h)), "tensors do not fit"),
    "deep": (lambda h: json.loads("[" * 900 + "]" * 900), "no format number"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_descriptions_are_refused(saved, case):
    change, message = HOSTILE[case]

    def apply(header):
        result = change(header)
        return result if isinstance(result, list) else None

    with pytest.raises(FileError, match=message):
        flowlab.load(rewritten(saved, apply))


def test_hostile_tensors_are_refused(tmp_path):
    path = tmp_path / "p.flow"
    flow = flowlab.Flow(flowlab.bases.Gaussian(3), [Permutation(3, [2, 0, 1]), LULinear(3)])

    def change(name, value):
        flowlab.save(flow, path)
        return rewritten(path, lambda header: None, lambda kept: {**kept, name: value})

    with pytest.raises(FileError, match="out of range"):
        flowlab.load(change("layers.0.permutation", torch.tensor([0, 1, 10**9])))
    with pytest.raises(FileError, match="wrong type"):
        flowlab.load(change("layers.1.shift", torch.zeros(3, dtype=torch.long)))
    with pytest.raises(FileError, match="do not fit"):
        flowlab.load(change("layers.1.shift", torch.zeros(4)))


def test_only_models_can_be_saved(tmp_path):
    with pytest.raises(
        TypeError, match=r"cannot save a dict: files hold flows, .*FlowDensity, FlowClassifier, .*FlowPosterior"
    ):
        flowlab.save({}, tmp_path / "m.flow")
    layer = Coupling(2, flowlab.layers.Affine(2.0))
    object.__setattr__(layer.scalar, "bound", float("inf"))  # which its constructor refuses
    with pytest.raises(ValueError, match=r"Affine\.bound: inf cannot be saved"):
        flowlab.save(layer, tmp_path / "m.flow")
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    layer = Coupling(
        np.int64(3), flowlab.layers.Affine(np.float64(2.0)), np.array([True, False, True]), hidden=np.array([4])
    )
    flowlab.save(layer, tmp_path / "m.flow")
    loaded = flowlab.load(tmp_path / "m.flow")
    assert repr(loaded) == repr(Coupling(3, flowlab.layers.Affine(2.0), [True, False, True], hidden=(4,)))
    assert type(loaded.features) is int


def test_counters_of_ones_own_layer_have_any_value(tmp_path):
    @register
    class Counting(flowlab.layers.Layer):
        def __init__(self, features: int, seed: int = 10**12, noise=None) -> None:
            super().__init__()
            self.features, self.seed, self.noise = features, seed, noise
            self.register_buffer("count", torch.zeros(2, dtype=torch.long))
            self.start = np.random.rand() + random.random() + torch.rand(())  # draws from every global generator

    layer = Counting(2)
    layer.count += torch.tensor([7, -3])
    flowlab.save(flowlab.Flow(flowlab.bases.Gaussian(2), [layer]), tmp_path / "m.flow")
    states = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
    loaded = flowlab.load(tmp_path / "m.flow")
    assert loaded.layers[0].count.tolist() == [7, -3]
    assert loaded.layers[0].seed == 10**12
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (pickle.dumps(np.random.get_state()), random.getstate()) == states[1:]


@pytest.mark.parametrize("name", PRESETS)
def test_loading_leaves_global_random_states_alone(name, tmp_path):
    flowlab.save(getattr(flowlab.presets, name)(3, layers=1, hidden=(4,)), tmp_path / "m.flow")
    state = torch.get_rng_state()
    flowlab.load(tmp_path / "m.flow")
    assert torch.equal(torch.get_rng_state(), state)


def test_gaussian_mixtures_of_tables_leave_global_random_states_alone():
    state = torch.get_rng_state()
    FlowDensity(members=["mixture"], validation=0, random_state=0, n_jobs=1).fit(
        np.random.default_rng(0).normal(size=(40, 2))
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_devices_that_are_not_there_are_no_fault_of_the_file(saved):
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(ValueError, match="torch has no device") as caught:
            flowlab.load(saved, device)
        assert not isinstance(caught.value, FileError)


def test_loading_imports_no_compiler(saved):
    code = f"import sys, flowlab; flowlab.load({str(saved)!r}); print({{'sympy', 'torch._dynamo'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def mixed() -> FlowDensity:
    return FlowDensity(members=[Member("mixed", steps=2, hidden=(2,), components=1)], random_state=0, n_jobs=1)


@pytest.mark.parametrize("classes", [["p", "q"], [False, True], [3, 5], [0.0, 1.0], np.array(["p", "q"], dtype=object)])
def test_classifiers_come_back(classes, tmp_path, table):
    y = np.asarray(classes)[(table.x > 0).astype(int)]
    model = FlowClassifier(mixed()).fit(table, y)
    model.save(tmp_path / "m.flow")
    loaded = flowlab.load(tmp_path / "m.flow")
    assert loaded.classes_.dtype == model.classes_.dtype
    assert np.array_equal(loaded.predict(table), model.predict(table))
    assert np.array_equal(loaded.predict_proba(table), model.predict_proba(table))
    assert loaded.feature_names_in_.tolist() == ["x", "city"]
    assert repr(loaded) == repr(model)


def test_regressors_and_outlier_detectors_come_back(tmp_path, table):
    density = mixed().set_params(schema={"city": "categorical"})
    model = FlowRegressor(density).fit(table, 2 * table.x)
    model.save(tmp_path / "m.flow")
    loaded = flowlab.load(tmp_path / "m.flow")
    assert np.array_equal(loaded.predict_interval(table), model.predict_interval(table))
    assert loaded.density.schema == {"city": "categorical"}
    x = table[["x"]].assign(y=table.x**2).to_numpy()
    outlier = FlowOutlier(FlowDensity(members=["copula"], random_state=0), contamination=0.1).fit(x)
    outlier.save(tmp_path / "m.flow")
    again = flowlab.load(tmp_path / "m.flow")
    assert np.array_equal(again.decision_function(x), outlier.decision_function(x))
    assert np.array_equal(again.p_value(x), outlier.p_value(x))
    assert again.contamination == 0.1


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"x": rng.normal(size=60), "city": rng.choice(["Rome", "Oslo"], 60)})


def test_a_posterior_keeps_its_history(tmp_path):
    flow, space = flowlab.presets.maf(2, layers=1, hidden=(4,)), Space(2)
    history = [{"stage": "search", "step": 1, "elbo": -2.5}, {"stage": "search", "step": 2, "elbo": float("nan")}]
    posterior = FlowPosterior(flow, space, restart_gap=0.25, evaluations=9, history=history)
    posterior.save(tmp_path / "m.flow")
    loaded = flowlab.load(tmp_path / "m.flow")
    assert (loaded.restart_gap, loaded.evaluations) == (0.25, 9)
    assert np.isnan(loaded.prefit_seconds)
    assert loaded.history[0] == history[0]
    assert np.isnan(loaded.history[1]["elbo"])


def test_files_of_flowlab_at_c02030f_load_with_the_same_numbers():
    """Written by that commit, of format 1, with what the models said then."""
    folder = ROOT / "tests" / "data"
    known = json.loads((folder / "expected.json").read_text())
    mixture = flowlab.load(folder / "mixture.flow")
    assert mixture.log_prob(torch.tensor([[0.5, -1.0], [2.0, 0.25]])).tolist() == pytest.approx(
        known["mixture"], rel=1e-5
    )
    values = {"tau": torch.tensor(0.5), "p": torch.tensor([0.2, 0.3, 0.5]), "g": torch.tensor([1.5, 3.0])}
    posterior = flowlab.load(folder / "posterior.flow")
    assert posterior.log_prob(values).item() == pytest.approx(known["posterior"], rel=1e-6)
    assert posterior.evaluations == 7
    whole = flowlab.load(folder / "table.flow")
    assert whole.score_samples(pd.DataFrame(known["rows"])) == pytest.approx(known["table"], rel=1e-9)
    drawn = whole.sample(20, random_state=1)
    assert (drawn.low <= drawn.high).all()
    numbers = flowlab.load(folder / "numbers.flow")
    assert numbers.score_samples(pd.DataFrame(known["numbers rows"])) == pytest.approx(known["numbers"], rel=1e-9)
    assert "nan nats per row" in numbers.summary()  # nothing was held out


@pytest.mark.slow
def test_whatever_can_be_saved_is_found_by_a_process_that_has_only_imported_flowlab():
    lost = """
import importlib, pkgutil
import flowlab
from flowlab import registry
for module in pkgutil.walk_packages(flowlab.__path__, "flowlab."):
    if not module.name.startswith("flowlab.__"):
        importlib.import_module(module.name)
print(registry._registered, [name for name in registry.own_names() if not registry.is_known(registry.find(name))])
"""
    assert subprocess.run([sys.executable, "-c", lost], capture_output=True, text=True, check=True).stdout == "{} []\n"
