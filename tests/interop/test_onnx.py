"""Flows as ONNX files: ONNX Runtime gives the numbers that torch gives, for batches of any size."""

import copy
import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu, gelu, softplus
from typer.testing import CliRunner

import flowlab
from constructors import PRESETS, preset, skewed
from flowlab import Flow, FlowMixture
from flowlab.bases import Gaussian, GaussianMixture, Kernels, StudentT, Uniform
from flowlab.cli import app
from flowlab.layers import Coupling, Layer, Marginal, MixtureCDF, Whitening
from helpers import seeded

onnx = pytest.importorskip("onnx", reason="pip install flowlab[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install flowlab[onnx]")
pytest.importorskip("onnxscript", reason="pip install flowlab[onnx]")

from flowlab.interop import onnx_operators as operators  # noqa: E402
from flowlab.interop.onnx import ExportError, _convert, _private, _quiet, export  # noqa: E402

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}  # as a share of 1 + |value|


def session(path: Path) -> "onnxruntime.InferenceSession":
    onnx.checker.check_model(path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def in_runtime(path: Path, **inputs: Tensor) -> Tensor:
    return torch.from_numpy(session(path).run(None, {name: x.numpy() for name, x in inputs.items()})[0])


def noise(flow: Flow, rows: int, seed: int = 7) -> Tensor:
    return flow.base.sample((rows,), seeded(seed)).detach()


@torch.no_grad()
def check(flow: Flow, path: Path, what: str, sizes: tuple[int, ...] = (1, 7, 100)) -> None:
    """The file against the flow, at several batch sizes."""
    export(flow, path, what)
    running = session(path)
    names = [given.name for given in running.get_inputs()]
    assert names == [{"log_prob": "x", "sample": "noise"}[what], "context"][: 1 + bool(flow.context_features)]
    assert [given.name for given in running.get_outputs()] == [{"log_prob": "log_prob", "sample": "x"}[what]]
    for rows in sizes:
        z = noise(flow, rows)
        context = torch.randn(rows, flow.context_features, generator=seeded()).to(flow.dtype)
        given = (context,) if flow.context_features else ()
        value = flow.from_noise(z, *given) if what == "log_prob" else z
        expected = flow.log_prob(value, *given) if what == "log_prob" else flow.from_noise(value, *given)
        inputs = dict(zip(names, (value.numpy(), context.numpy()), strict=False))
        found = torch.from_numpy(running.run(None, inputs)[0])
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        apart = (found - expected).abs()
        if what == "sample" and isinstance(flow.base, Uniform):
            apart = torch.minimum(apart, 2 * math.pi - apart).abs()  # angles
        worst = (apart / (1 + expected.abs())).max()
        assert worst <= TOLERANCE[flow.dtype], f"{rows} rows: {worst:.1e}"


SLOW = ("nsf, autoregressive", "circular_nsf, autoregressive")  # to write, where every feature has a pass of its own
LONG = ("nsf", "circular_nsf", "sylvester", *SLOW)
CASES = [(name, what) for name in PRESETS for what in ("log_prob", "sample") if what == "log_prob" or name not in SLOW]
QUICK = [case for i, case in enumerate(CASES) if i % 4 in (1, 2) and case[0] not in LONG]  # each preset, one way
MARKED = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in CASES]


@pytest.mark.parametrize(("name", "what"), MARKED)
def test_presets(name: str, what: str, tmp_path: Path) -> None:
    """Every preset, half of them in single precision, half with a context; benchmarks/ecosystem.py has them all."""
    index = CASES.index((name, what))
    context_features, dtype = 2 * (index // 2 % 2), torch.float64 if (index + index // 4) % 2 else torch.float32
    check(preset(name, 2, layers=1, context_features=context_features).to(dtype), tmp_path / "flow.onnx", what)


@pytest.mark.slow
def test_a_chain_of_layers(tmp_path: Path) -> None:
    flow = preset("glow", 3, layers=2)
    check(flow.float(), tmp_path / "flow.onnx", "sample")


def test_two_types(tmp_path: Path) -> None:
    """Single precision inside of double-precision preprocessing."""
    flow = Flow(Gaussian(2), [Coupling(2, hidden=(8,), generator=seeded()), Whitening(2).double()])
    x = skewed(2)
    flow.initialise(x)
    export(flow, tmp_path / "flow.onnx")
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(tmp_path / "flow.onnx", x=x), flow.log_prob(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "base",
    [
        StudentT(2, df=3.0),
        GaussianMixture(2, 3, generator=seeded()),
        Kernels(2, 4),
        Uniform(2),
        Gaussian(2, learnable=True),
    ],
    ids=lambda base: type(base).__name__,
)
def test_bases(base: flowlab.bases.Base, tmp_path: Path) -> None:
    flow = Flow(base, []).double()
    export(flow, tmp_path / "flow.onnx")
    x = torch.tensor([[0.2, 0.9], [0.1, -3.0], [40.0, 1e7]], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(tmp_path / "flow.onnx", x=x), flow.log_prob(x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_scalar_map_without_a_formula(tmp_path: Path) -> None:
    flow = Flow(Gaussian(1), [Coupling(1, MixtureCDF(2), hidden=())]).double()
    check(flow, tmp_path / "flow.onnx", "log_prob", (7,))


def preprocessed_members() -> tuple[list[Flow], Tensor]:
    """Members with equal marginal maps, with another one and with none, in both precisions; rows far into the tails."""
    x = skewed(2)
    marginal, other = Marginal(2, bins=4).double(), Marginal(2, bins=8).double()
    marginal.initialise(x)
    other.initialise(x)
    flows = [
        Flow(Gaussian(2), [marginal]),
        Flow(StudentT(2, df=3.0).double(), [copy.deepcopy(marginal)]),
        Flow(Gaussian(2), [Coupling(2, hidden=(4,), generator=seeded()), copy.deepcopy(marginal)]),
        Flow(Gaussian(2), [other]),
        Flow(StudentT(2, df=3.0).double(), []),
    ]
    return flows, torch.cat([x, 100 * x])


def test_equal_maps_of_members_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flows, x = preprocessed_members()
    mixture, runs, inverse = FlowMixture(flows, [0.2, 0.1, 0.3, 0.3, 0.1]), [], Marginal.inverse
    expected = mixture.log_prob(x)
    monkeypatch.setattr(Marginal, "inverse", lambda self, *given: (runs.append(self), inverse(self, *given))[1])
    torch.testing.assert_close(_private(mixture).log_prob(x), expected, rtol=1e-14, atol=1e-14)
    assert len(runs) == 2


@pytest.mark.slow
def test_mixture_of_preprocessed_members(tmp_path: Path) -> None:
    """The maps' tails need functions that ONNX has not."""
    flows, x = preprocessed_members()
    mixture = FlowMixture(flows[:2], [0.2, 0.8])
    export(mixture, tmp_path / "mixture.onnx")
    torch.testing.assert_close(in_runtime(tmp_path / "mixture.onnx", x=x), mixture.log_prob(x), rtol=1e-11, atol=1e-11)
    with pytest.raises(ExportError, match=r"export each of mixture\.flows"):
        export(mixture, tmp_path / "mixture.onnx", "sample")


# FlowDensity ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    return pd.DataFrame({"a": a, "one": 1.0, "b": a**2 + rng.normal(size=200), "n": rng.poisson(4.0, 200)}).assign(
        sum=lambda d: d["a"] + 2 * d["b"]
    )


@pytest.fixture(scope="module")
def model(frame: pd.DataFrame) -> flowlab.FlowDensity:
    members = [flowlab.Member("kernel", "none")]
    return flowlab.FlowDensity(members=members, effort="fast", random_state=0).fit(frame)


def test_flow_density(model: flowlab.FlowDensity, frame: pd.DataFrame, tmp_path: Path) -> None:
    """The file takes rows of the table: constants and sums are part of the density that it gives."""
    path = tmp_path / "model.onnx"
    export(model, path)
    rows = frame.iloc[:50].copy()
    rows.iloc[3, 1], rows.iloc[4, 4], rows.iloc[5, 0] = 2.0, 0.0, np.nan
    expected = model.score_samples(rows.drop(index=5), measure="density")
    found = in_runtime(path, x=torch.tensor(rows.drop(index=5).to_numpy(dtype=float))).numpy()
    assert np.isneginf(expected).sum() == 2
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["columns"]) == list(frame)
    assert metadata["what"] == "log_prob"
    with pytest.raises(ExportError, match=r"no sampler from noise: use model\.sample"):
        export(model, path, "sample")


def test_whole_tables_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    member = flowlab.Member("mixed", "none", steps=5, hidden=(8,))
    whole = flowlab.FlowDensity(members=[member], random_state=0).fit(frame.assign(kind=["x", "y"] * 100))
    with pytest.raises(ExportError, match="only complete numeric tables"):
        export(whole, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="MixedFlow"):
        export(whole.flow_, tmp_path / "model.onnx")


# Refusals and files ---------------------------------------------------------------------------------------------------


class Sorted(Layer):
    """A layer with an operation that has no ONNX form."""

    features = 2

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z + torch.special.bessel_j0(z).mean() * 0, z.new_zeros(z.shape[:-1])

    inverse = forward


@pytest.mark.slow
def test_refusals_name_the_layer_and_leave_no_file(tmp_path: Path) -> None:
    flow = Flow(Gaussian(2), [Whitening(2), Sorted()])
    path = tmp_path / "flow.onnx"
    path.write_text("before")
    with pytest.raises(ExportError, match=r"layer 1 \(Sorted\) cannot be written as ONNX"):
        export(flow, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='what must be "log_prob" or "sample"'):
        export(preset("nice", 2), tmp_path / "flow.onnx", "samples")
    with pytest.raises(TypeError, match="model must be a Flow, a FlowMixture or a fitted FlowDensity, not a Linear"):
        export(torch.nn.Linear(2, 2), tmp_path / "flow.onnx")


def test_the_flow_stays_as_it_was(tmp_path: Path) -> None:
    flow, before = preset("nice", 2, layers=1).train(), torch.random.get_rng_state()
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    export(flow, tmp_path / "flow.onnx", "sample")
    assert flow.training
    assert all(torch.equal(value, state[name]) for name, value in flow.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)
    written = onnx.load(tmp_path / "flow.onnx")
    assert "drawn from Gaussian(2)" in written.doc_string
    assert not any(node.metadata_props for node in written.graph.node)  # torch notes the folders of this machine


def test_command(tmp_path: Path) -> None:
    flow = preset("nice", 2, layers=1)
    flowlab.save(flow, tmp_path / "model.flow")
    shell = CliRunner()
    written = shell.invoke(
        app, ["export", f"{tmp_path}/model.flow", "-o", f"{tmp_path}/model.onnx", "--what", "sample"]
    )
    assert written.exit_code == 0, written.output
    assert "written:" in written.output
    z = noise(flow, 3)
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(tmp_path / "model.onnx", noise=z), flow.from_noise(z))
    refused = shell.invoke(app, ["export", f"{tmp_path}/model.flow", "-o", f"{tmp_path}/x.onnx", "--what", "draws"])
    assert "what must be" in str(refused.exception)


# Operators ------------------------------------------------------------------------------------------------------------

WIDE = torch.logspace(-20, 2.5, 2000, dtype=torch.float64)
BOTH = torch.cat([-WIDE, WIDE])
NEAR = torch.linspace(-26, 26, 2001, dtype=torch.float64)
LEVELS = torch.cat(
    [torch.logspace(-300, -0.5, 2000, dtype=torch.float64), 1 - torch.logspace(-15, -0.5, 500, dtype=torch.float64)]
)


class Function(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "expected", "x"),
    [
        (torch.log1p, torch.log1p, torch.cat([-WIDE[WIDE < 1], WIDE])),
        (torch.expm1, torch.expm1, BOTH),
        (softplus, lambda x: torch.logaddexp(x, torch.zeros_like(x)), BOTH),
        (elu, elu, BOTH),
        (gelu, gelu, NEAR[NEAR > -4]),
        (torch.special.erfcx, torch.special.erfcx, torch.cat([NEAR, WIDE])),
        (torch.special.ndtr, lambda x: torch.special.erfc(-x / math.sqrt(2)) / 2, NEAR),
        (torch.special.ndtri, torch.special.ndtri, LEVELS),
        (torch.lgamma, torch.lgamma, WIDE[WIDE > 1e-3]),
    ],
    ids=["log1p", "expm1", "softplus", "elu", "gelu", "erfcx", "ndtr", "ndtri", "lgamma"],
)
def test_functions_keep_their_digits(
    function: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], x: Tensor, tmp_path: Path
) -> None:
    with _quiet():
        _convert(Function(function), (x,), "log_prob").save(tmp_path / "function.onnx")
    found = in_runtime(tmp_path / "function.onnx", x=x)
    near_zeros = function in (torch.special.ndtri, torch.lgamma)
    torch.testing.assert_close(found, expected(x), rtol=1e-12, atol=1e-13 if near_zeros else 1e-300)


@pytest.mark.parametrize(("upper", "left", "unit"), list(product([False, True], repeat=3)))
def test_triangular_solves(upper: bool, left: bool, unit: bool) -> None:
    a = torch.randn(3, 4, 4, dtype=torch.float64, generator=seeded()) + 3 * torch.eye(4)
    b = torch.randn(3, *((4, 2) if left else (2, 4)), dtype=torch.float64, generator=seeded(1))
    given = {"upper": upper, "left": left, "unitriangular": unit}
    torch.testing.assert_close(operators.solve_triangular(a, b, **given), torch.linalg.solve_triangular(a, b, **given))
