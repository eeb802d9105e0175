"""`export`: log-density or sampler of a flow as an ONNX file, which runs without Python, torch or flowlab.

Needs three packages: pip install flowlab[onnx].
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

try:
    import onnx  # noqa: F401
    import onnxruntime
    import onnxscript  # noqa: F401
except ImportError as error:
    raise ImportError(
        "flowlab.interop.onnx needs onnx, onnxruntime and onnxscript: pip install flowlab[onnx]"
    ) from error

from flowlab.bases import Uniform
from flowlab.flow import Flow
from flowlab.interop.onnx_operators import decompositions, translations
from flowlab.layers import Marginal
from flowlab.mixture import FlowMixture
from flowlab.version import __version__
from flowlab.writing import written_whole

if TYPE_CHECKING:
    from flowlab.tables.density import FlowDensity

What = Literal["log_prob", "sample"]
INPUTS = {"log_prob": "x", "sample": "noise"}
OUTPUTS = {"log_prob": "log_prob", "sample": "x"}
SMALL = 1500  # nodes up to which a graph is optimized here: it takes their square in time, and ONNX Runtime does it too
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-8}  # how far a file may be from the flow, as a share of 1 + |value|


class ExportError(ValueError):
    """A model, or a part of it, cannot be written as ONNX; the message names it and says what to do."""


def export(model: "Flow | FlowMixture | FlowDensity", path: str | os.PathLike[str], what: What = "log_prob") -> None:
    """Write the log-density or the sampler of a model to an ONNX file, after checking it in ONNX Runtime.

    The batch may have any size. Inputs and outputs are:

    - `what="log_prob"`: `x` (batch, features) to `log_prob` (batch,), nats. Of a `FlowDensity`, `x` are complete rows
      of all columns in the order of training, in double precision, and `log_prob` is what
      `score_samples(measure="density")` gives: in the units of the data, -inf for rows that cannot occur.
    - `what="sample"`: `noise` (batch, features) to `x` (batch, features). The noise is drawn by whoever runs the file,
      from the flow's base: standard normal for most presets, uniform on [-π, π) for circular ones. The file's
      description says which.
    - With a context, a second input `context` (batch, context_features).

    Where a direction is a root search, the file holds a loop with a fixed number of steps, enough for the precision of
    its numbers.

    Args:
        model: A flow, a mixture of flows, or a fitted `FlowDensity` of complete numeric columns; the latter two have no
            sampler from noise.
        path: Where to write; the suffix `.onnx` is customary. The file is renamed into place when complete.
        what: Log-density or sampler.

    Raises:
        ExportError: The model cannot be written, or ONNX Runtime gives other numbers for it.
        TypeError: The model is none that has a log-density as a function of a tensor.

    Example:
        >>> import flowlab, numpy, onnxruntime, pathlib, tempfile, torch
        >>> from flowlab.interop.onnx import export
        >>> flow = flowlab.presets.real_nvp(3, layers=2, hidden=(8,))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.onnx"
        >>> export(flow, path)
        >>> x = torch.randn(7, 3)
        >>> (log_prob,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
        >>> bool(numpy.allclose(log_prob, flow.log_prob(x).detach(), atol=1e-5))
        True
    """
    if what not in INPUTS:
        raise ValueError(f'what must be "log_prob" or "sample", not {what!r}')
    module, about = _module(model, what)
    arguments = _example(module, what, 5)
    with _quiet():
        program = _program(module, arguments, what)
        program.model.doc_string = about
        program.model.metadata_props.update(_metadata(model, what))
        with written_whole(path) as temporary:
            program.save(str(temporary), external_data=False)
            _verify(module, str(temporary), what)


# What is exported -----------------------------------------------------------------------------------------------------


class _Exported(nn.Module):
    """A model's function of rows and contexts."""

    def __init__(self, model: Any, what: What) -> None:
        super().__init__()
        self.model, self.what = model, what

    def forward(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        return self.model.log_prob(value, context) if self.what == "log_prob" else self.model.from_noise(value, context)


class _Shared(FlowMixture):
    """A mixture in which members that end in equal marginal maps, as those of one fold do, run one for all.

    Graphs consist mostly of them.
    """

    def __init__(self, mixture: FlowMixture) -> None:
        super().__init__(list(mixture), mixture.weights)
        maps = [flow.layers[-1] if isinstance(flow, Flow) and len(flow.layers) else None for flow in self]
        # Of each member the first one with its map, by number: in a trace modules have no identity.
        self.first = [
            next(k for k, other in enumerate(maps) if _equal(own, other)) if isinstance(own, Marginal) else None
            for own in maps
        ]

    def member_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        done: dict[int, tuple[Tensor, Tensor]] = {}
        found = []
        for flow, first in zip(self, self.first, strict=True):
            if first is None:
                found.append(flow.log_prob(x, context))
                continue
            if first not in done:
                done[first] = flow.layers[-1].inverse(x)
            z, log_det = done[first]
            rest = Flow(flow.base, flow.layers[:-1])
            found.append(rest.log_prob(z.to(rest.dtype), context) + log_det)
        return torch.stack(found)


def _equal(one: Marginal, other: Any) -> bool:
    if type(other) is not type(one):
        return False
    parts = other.state_dict()
    return all(torch.equal(value, parts[key]) for key, value in one.state_dict().items())


class _Rows(nn.Module):
    """The density of rows with all columns of a table of numbers, in place of those that are modelled."""

    modelled: Tensor
    fixed: Tensor
    value: Tensor
    weights: Tensor
    tolerance: Tensor
    offset: Tensor
    lower: Tensor
    upper: Tensor
    context_features = 0
    dtype = torch.float64

    def __init__(self, flow: FlowMixture, columns: Any, log_mass: float) -> None:
        super().__init__()
        self.flow, self.features, self.log_mass = flow, len(columns.columns), log_mass
        fixed = [j for j, column in enumerate(columns.columns) if not column.modelled]
        weights = torch.zeros(len(fixed), self.features, dtype=torch.float64)
        for k, j in enumerate(fixed):
            own = columns.columns[j].weights
            weights[k, : len(own)] = torch.tensor(own, dtype=torch.float64)
        self.register_buffer("modelled", torch.tensor(columns.modelled))
        self.register_buffer("fixed", torch.tensor(fixed, dtype=torch.long))
        self.register_buffer("weights", weights)
        for name in ("value", "tolerance"):
            numbers = [getattr(columns.columns[j], name) for j in fixed]
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float64))
        offsets = [columns.columns[j].offset for j in columns.modelled]
        self.register_buffer("offset", torch.tensor(offsets, dtype=torch.float64))
        slack = [0.0 if column.modelled else column.tolerance for column in columns.columns]
        for name, without, sign in (("lower", -torch.inf, -1), ("upper", torch.inf, 1)):
            ends = [without if (end := getattr(column, name)) is None else end for column in columns.columns]
            self.register_buffer(name, torch.tensor(ends, dtype=torch.float64) + sign * torch.tensor(slack))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        log_prob = self.flow.log_prob(x.index_select(-1, self.modelled) - self.offset) - self.log_mass
        log_prob = torch.where(((x < self.lower) | (x > self.upper)).any(-1), -torch.inf, log_prob)
        if not len(self.fixed):
            return log_prob
        off = (x.index_select(-1, self.fixed) - self.value - x @ self.weights.T).abs() - self.tolerance
        return torch.where(off.amax(-1) <= 0, log_prob, -torch.inf)

    def example(self, noise: Tensor) -> Tensor:
        """Rows that can occur, of modelled columns."""
        x = noise.new_zeros(len(noise), self.features)
        x[:, self.modelled] = noise + self.offset
        x = torch.minimum(torch.maximum(x, self.lower), self.upper)
        for k, j in enumerate(self.fixed.tolist()):  # derived columns use earlier ones only
            x[:, j] = self.value[k] + x @ self.weights[k]
        return x


def _module(model: Any, what: What) -> tuple[_Exported, str]:
    """What to export, on the CPU and in evaluation, and a description of its inputs."""
    flow: Any
    if isinstance(model, Flow | FlowMixture):
        flow = _private(model)
        if what == "sample" and isinstance(flow, FlowMixture):
            raise ExportError(
                "a FlowMixture has no sampler from noise, since it first draws a member: export each of "
                'mixture.flows with what="sample", and draw member k with probability mixture.weights[k]'
            )
    elif _is_fitted_density(model):
        flow = _table(model, what)
    else:
        raise TypeError(f"model must be a Flow, a FlowMixture or a fitted FlowDensity, not a {type(model).__name__}")
    for part in flow.modules():
        if type(part).__name__ == "MixedFlow":
            raise ExportError(
                "a MixedFlow, the density of rows with classes and missing cells, cannot be written as ONNX"
            )
    about = "log-density in nats of x (batch, features)"
    if what == "sample":
        base = flow.base
        box = f"uniform on [{base.low:g}, {base.high:g}]" if isinstance(base, Uniform) else f"drawn from {base}"
        about = f"data x from noise (batch, features), {box}"
    return _Exported(flow, what), about


def _is_fitted_density(model: Any) -> bool:
    from flowlab.tables.density import FlowDensity  # which needs pandas and scikit-learn

    return isinstance(model, FlowDensity) and model.__sklearn_is_fitted__()


def _table(model: Any, what: What) -> _Rows:
    if model.columns_ is None:
        raise ExportError(
            "this FlowDensity was fitted to a table with classes, dates, missing cells or rules, whose encoding "
            "has no form in ONNX: only complete numeric tables are exported; use model.score_samples"
        )
    if what == "sample":
        raise ExportError('a FlowDensity has no sampler from noise: use model.sample, or export what="log_prob"')
    if model.flow_ is None:
        raise ExportError("every column of this table is constant: there is no density to export")
    joint = model._model.joint
    if not model._model.only_joint:
        raise ExportError(
            "members with conditional densities, of which FlowDensity has some unless told otherwise, have no form in "
            'ONNX: fit with members=["autoregressive", "mixture", "copula", "broad"], or other kinds than "mixed"'
        )
    return _Rows(_private(joint.flow), model.columns_, float(joint.log_mass))


def _private(flow: Flow | FlowMixture) -> Any:
    """A copy that can be changed."""
    flow = copy.deepcopy(flow).cpu().train(False)
    return _Shared(flow).train(False) if isinstance(flow, FlowMixture) else flow


def _metadata(model: Any, what: What) -> dict[str, str]:
    found = {"flowlab": __version__, "what": what}
    if getattr(model, "columns_", None) is not None:
        found["columns"] = json.dumps([column.name for column in model.columns_.columns])
    return found


def _example(module: _Exported, what: What, count: int) -> tuple[Tensor, ...]:
    """Arguments: likely noise, or data that it becomes."""
    model = module.model
    generator = torch.Generator().manual_seed(count)
    context = torch.empty(count, model.context_features, dtype=model.dtype).normal_(generator=generator)
    given = (context,) if model.context_features else ()
    with torch.no_grad():
        if what == "sample":
            return (model.base.sample((count,), generator), *given)
        if isinstance(model, _Rows):
            return (model.example(model.flow.sample((count,), generator=generator)),)
        draws = model.sample((1 if given else count,), *given, generator=generator)
        return (draws.view(count, -1), *given)


# How ------------------------------------------------------------------------------------------------------------------


def _program(module: _Exported, arguments: tuple[Tensor, ...], what: What) -> Any:
    try:
        return _convert(module, arguments, what)
    except Exception as error:
        culprit = _culprit(module.model, what)
        raise ExportError(f"{culprit} cannot be written as ONNX ({_first_line(error)})") from error


def _convert(module: nn.Module, arguments: tuple[Tensor, ...], what: What) -> Any:
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        exported = torch.export.export(module, arguments, dynamic_shapes=tuple({0: batch} for _ in arguments))
        exported = exported.run_decompositions(decompositions())
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=20,
            input_names=[INPUTS[what], "context"][: len(arguments)],
            output_names=[OUTPUTS[what]],
            custom_translation_table=translations(),
            verbose=False,
            optimize=False,
        )
    assert program is not None
    if len(program.model.graph) < SMALL:
        program.optimize()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where each comes from: folders of this machine, in as many bytes as the rest
    return program


def _culprit(model: Any, what: What) -> str:
    """The layer or base that an error comes from, found by exporting each alone."""
    flows = [part for part in model.modules() if isinstance(part, Flow)]
    for flow in flows:
        for i, layer in enumerate(flow):
            alone = Flow(copy.deepcopy(flow.base), [layer])
            try:
                module = _Exported(alone, what)
                _convert(module, _example(module, what, 5), what)
            except Exception:
                return f"layer {i} ({type(layer).__name__})"
    return f"the base ({type(flows[0].base).__name__})" if flows and what == "log_prob" else type(model).__name__


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _verify(module: _Exported, path: str, what: What) -> None:
    """Whether ONNX Runtime gives the module's numbers, for one row and for several."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime does not take the file: {_first_line(error)}") from error
    for count in (1, 7):
        arguments = _example(module, what, count)
        with torch.no_grad():
            expected = module(*arguments)
        given = dict(zip((i.name for i in session.get_inputs()), (a.numpy() for a in arguments), strict=True))
        found = torch.from_numpy(session.run(None, given)[0])
        apart = (found - expected).abs() / (1 + expected.abs())
        worst = float(torch.where(found == expected, 0, apart).max())
        if not worst <= max(CLOSE.get(d, 0.0) for d in {a.dtype for a in (*module.parameters(), expected)}):
            raise ExportError(
                f"ONNX Runtime gives other numbers: they differ by {worst:.1e} of 1 + |value|; please report this, "
                "with repr(flow)"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks, which are about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


__all__ = ["ExportError", "export"]
