"""How exactly flowlab works together with other libraries: a section for each way of doing so.

    python benchmarks/ecosystem.py                        # all sections; half an hour on one core
    python benchmarks/ecosystem.py --sections conversion  # the others keep their last result
    python benchmarks/ecosystem.py --sections             # measure nothing, write the page again

Results lie in benchmarks/results/ecosystem.json, a part for each section, and benchmarks/results/ecosystem.md is
written from them. A section is a function that measures, and one that writes its table; `SECTIONS` lists them.
"""

import argparse
import copy
import functools
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import RESULTS, circumstances, read_json, table, write_json
from torch import Tensor, nn

import flowlab

STORE, RESULT = RESULTS / "ecosystem.json", RESULTS / "ecosystem.md"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


# Conversion
# ------------------------------------------------------------------------------------------------------------

FEATURES, CONTEXT, ROWS, STEPS = 6, 2, 2000, 300
WANTED = {"float32": 1e-5, "float64": 1e-10}


class Peer(NamedTuple):
    """A library whose flows convert.

    Attributes:
        models: Makes a flow of each architecture; those whose names end in "context" take one.
        convert: The conversion.
        log_prob: Of a model, rows and contexts.
        draw: Of a model, noise and contexts.
    """

    models: dict[str, Callable[[], nn.Module]]
    convert: Callable[[Any], flowlab.Flow]
    log_prob: Callable[[Any, Tensor, Tensor | None], Tensor]
    draw: Callable[[Any, Tensor, Tensor | None], Tensor]


def nflows_peer() -> Peer:
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow, MaskedAutoregressiveFlow, SimpleRealNVP
    from nflows.nn.nets import ResidualNet

    from flowlab.interop import nflows

    def chain(*parts: nn.Module) -> nn.Module:
        return Flow(transforms.CompositeTransform(list(parts)), StandardNormal([FEATURES]))

    def net(inputs: int, outputs: int, context: int | None = None) -> nn.Module:
        return ResidualNet(inputs, outputs, 64, context_features=context)

    def coupling(i: int, spline: bool, context: int | None = None) -> nn.Module:
        mask, make = (torch.arange(FEATURES) + i) % 2, functools.partial(net, context=context)
        if not spline:
            return transforms.AffineCouplingTransform(mask, make)
        return transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, make, num_bins=8, tails="linear", tail_bound=5.0
        )

    def masked(spline: bool, context: int | None = None) -> nn.Module:
        options = {"features": FEATURES, "hidden_features": 64, "context_features": context}
        if not spline:
            return transforms.MaskedAffineAutoregressiveTransform(**options)
        return transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            **options, num_bins=8, tails="linear", tail_bound=5.0
        )

    def mixed(*between: Callable[[int], nn.Module], spline: bool = False) -> nn.Module:
        return chain(*(part for i in range(4) for part in (*(make(FEATURES) for make in between), coupling(i, spline))))

    models = {
        "affine coupling (SimpleRealNVP)": lambda: SimpleRealNVP(FEATURES, 64, 6, 2),
        "affine coupling, context": lambda: chain(*(coupling(i, False, CONTEXT) for i in range(6))),
        "additive coupling": lambda: SimpleRealNVP(FEATURES, 64, 6, 2, use_volume_preserving=True),
        "RQ spline coupling": lambda: chain(*(coupling(i, True) for i in range(6))),
        "RQ spline coupling, context": lambda: chain(*(coupling(i, True, CONTEXT) for i in range(6))),
        "MAF (MaskedAutoregressiveFlow)": lambda: MaskedAutoregressiveFlow(FEATURES, 64, 5, 2),
        "MAF, context": lambda: chain(*(masked(False, CONTEXT) for _ in range(5))),
        "RQ spline autoregressive": lambda: chain(*(masked(True) for _ in range(3))),
        "RQ spline autoregressive, context": lambda: chain(*(masked(True, CONTEXT) for _ in range(3))),
        "LU and affine coupling": lambda: mixed(transforms.LULinear),
        "permutation and affine coupling": lambda: mixed(transforms.RandomPermutation),
        "actnorm and affine coupling": lambda: mixed(transforms.ActNorm),
        "permutation, LU, RQ spline coupling": lambda: mixed(
            transforms.RandomPermutation, transforms.LULinear, spline=True
        ),
    }
    return Peer(
        models,
        nflows.convert,
        lambda model, x, context: model.log_prob(x, context),
        lambda model, z, context: model._transform.inverse(z, context)[0],
    )


def zuko_peer() -> Peer:
    from flowlab.interop import zuko  # before zuko itself, whose import it guards

    from zuko.flows import MAF, NICE, NSF, RealNVP  # isort: skip

    models = {
        "MAF": lambda: MAF(FEATURES, transforms=5),
        "MAF, context": lambda: MAF(FEATURES, CONTEXT, transforms=5),
        "MAF, random orders, residual": lambda: MAF(FEATURES, transforms=5, randperm=True, residual=True),
        "NSF": lambda: NSF(FEATURES, transforms=3),
        "NSF, context": lambda: NSF(FEATURES, CONTEXT, transforms=3),
        "NSF, two passes (coupling)": lambda: NSF(FEATURES, transforms=6, passes=2),
        "RealNVP": lambda: RealNVP(FEATURES, transforms=6),
        "RealNVP, context": lambda: RealNVP(FEATURES, CONTEXT, transforms=6),
        "NICE, random masks, normalised": lambda: NICE(FEATURES, transforms=6, randmask=True, normalize=True),
    }
    return Peer(
        models,
        zuko.convert,
        lambda model, x, context: model(context).log_prob(x),
        lambda model, z, context: model(context).transform.inv(z),
    )


PEERS = {"nflows": nflows_peer, "zuko": zuko_peer}


def skewed(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows with bent, correlated and heteroscedastic columns, some of which follow the context."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.empty(count, FEATURES, dtype=torch.float64).normal_(generator=generator)
    context = torch.empty(count, CONTEXT, dtype=torch.float64).normal_(generator=generator)
    x = [z[:, 0], z[:, 1] + 0.5 * z[:, 0] ** 2 - 0.5, z[:, 2] * (z[:, 1] / 2).exp(), z[:, 3] + context[:, 0]]
    x += [z[:, 4] + z[:, 3].sin(), z[:, 5] * 0.3 + context[:, 1] * z[:, 0]]
    return torch.stack(x, 1) / 1.5, context


def trained_peer(peer: Peer, name: str, dtype: torch.dtype) -> nn.Module:
    """A flow of another library after a short training."""
    torch.manual_seed(0)
    model = peer.models[name]().to(dtype)
    x, context = (part.to(dtype) for part in skewed(ROWS, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        at = slice(step * 200 % ROWS, step * 200 % ROWS + 200)
        optimizer.zero_grad()
        (-peer.log_prob(model, x[at], context[at] if takes_context(name) else None).mean()).backward()
        optimizer.step()
    return model.eval()


def takes_context(name: str) -> bool:
    return name.endswith("context")


@torch.no_grad()
def errors(peer: Peer, name: str, dtype: torch.dtype) -> dict[str, float]:
    """Measure the largest differences of log_prob, and of samples from the same noise, over fresh rows.

    In single precision what `rounding` measures as well.
    """
    with torch.enable_grad():
        model = trained_peer(peer, name, dtype)
    flow = peer.convert(model)
    fresh, context = (part.to(dtype) for part in skewed(ROWS, 1))
    given = context if takes_context(name) else None
    z = torch.empty(ROWS, FEATURES, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(2)).to(dtype)
    theirs, ours = peer.log_prob(model, fresh, given), flow.log_prob(fresh, given)
    found = {
        "log_prob": (theirs - ours).abs().max().item(),
        "relative": ((theirs - ours).abs() / (1 + theirs.abs())).max().item(),
        "samples": (peer.draw(model, z, given) - flow.from_noise(z, given)).abs().max().item(),
    }
    return found | (rounding(peer, model, fresh, given, theirs, ours) if dtype == torch.float32 else {})


def rounding(
    peer: Peer, model: nn.Module, x: Tensor, context: Tensor | None, theirs: Tensor, ours: Tensor
) -> dict[str, float]:
    """Measure how far single precision is from the other library's model in double precision.

    Root mean square and maximum, of theirs and of ours.

    And how steep the flow is: how much the exact log_prob moves, if each number of a row moves up to the next one in
    single precision; and, where flowlab's differs by more than is wanted, how far the other library's log_prob of all
    rows at once is from its own of the same rows one at a time.
    """
    double, given = copy.deepcopy(model).double(), None if context is None else context.double()
    exact = peer.log_prob(double, x.double(), given)
    moved = peer.log_prob(double, torch.nextafter(x, torch.full_like(x, torch.inf)).double(), given)
    found = {}
    for key, value in (("theirs", theirs), ("ours", ours), ("moved", moved)):
        apart = (value - exact).abs()
        found |= {f"{key}_rms": apart.square().mean().sqrt().item(), f"{key}_max": apart.max().item()}
    if (theirs - ours).abs().max() <= WANTED["float32"]:
        return found
    single = [
        peer.log_prob(model, x[i : i + 1], None if context is None else context[i : i + 1]) for i in range(len(x))
    ]
    apart = (theirs - torch.cat(single)).abs()
    return found | {"alone": apart.max().item(), "alone_relative": (apart / (1 + theirs.abs())).max().item()}


def measure_conversion() -> dict[str, Any]:
    found: dict[str, Any] = {"setting": circumstances(*PEERS), "errors": {}}
    for library, make in PEERS.items():
        peer = make()
        for name in peer.models:
            found["errors"][f"{library}: {name}"] = {key: errors(peer, name, dtype) for key, dtype in DTYPES.items()}
            print(library, name, found["errors"][f"{library}: {name}"], flush=True)
    return found


def verdict(both: dict[str, dict[str, float]]) -> str:
    """Whether what was wanted is reached, in nats or only relative to the size of log_prob."""
    if all(both[key]["log_prob"] <= wanted for key, wanted in WANTED.items()):
        return "reached"
    return "as a share" if all(both[key]["relative"] <= wanted for key, wanted in WANTED.items()) else "missed"


def write_conversion(found: dict[str, Any]) -> str:
    text = (
        f"Largest differences between a flow of another library and what `convert` makes of it, after {STEPS} steps of "
        f"training, over {ROWS:,} fresh rows of {FEATURES} columns: of `log_prob` in nats, in brackets as a share of "
        f"1 + |log_prob|, and of samples from the same noise. Wanted: {WANTED['float32']:.0e} in single and "
        f"{WANTED['float64']:.0e} in double precision; “as a share” says that single precision reaches it only so, "
        "“missed” that it does not; the table after this one says why."
    )
    rows = []
    for name, both in found["errors"].items():
        cells = []
        for e in both.values():
            cells += [f"{e['log_prob']:.1e} ({e['relative']:.1e})", f"{e['samples']:.1e}"]
        rows.append([name, *cells, verdict(both)])
    header = ["flow", *(f"{what}, {key}" for key in DTYPES for what in ("log_prob", "samples")), "wanted"]
    errors = table(header, rows, "lrrrrl")
    return "\n\n".join([f"{found['setting']}.", text, errors, *write_rounding(found["errors"])])


def write_rounding(errors: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Paragraphs on what single precision loses."""
    singles = {name: both["float32"] for name, both in errors.items()}
    larger = [name for name, e in singles.items() if e["ours_rms"] > 1.1 * e["theirs_rms"]]
    smaller = [name for name, e in singles.items() if e["theirs_rms"] > 1.1 * e["ours_rms"]]
    text = (
        "Where single precision differs by more, both round: the same rows and weights, against the other library's "
        "own model in double precision, root mean square and, in brackets, maximum over the rows, in nats. The last "
        "column moves each number of a row up to the next one in single precision, and says by how much the exact "
        "`log_prob` moves."
    )
    rows = []
    for name, e in singles.items():
        cells = [f"{e[f'{key}_rms']:.1e} ({e[f'{key}_max']:.1e})" for key in ("theirs", "ours", "moved")]
        rows.append([name, cells[0], cells[1], f"{e['ours_rms'] / e['theirs_rms']:.2f}", cells[2]])
    ratio = "flowlab's / its (root mean squares)"
    header = ["flow", "its float32 error", "flowlab's float32 error", ratio, "rows moved by one rounding"]
    told = (
        f"flowlab's error is more than a tenth larger in {len(larger)} of {len(singles)} flows, and more than a tenth "
        f"smaller in {len(smaller)}."
    )
    return [text, table(header, rows, "lr"), told, *write_alone(singles)]


def write_alone(singles: dict[str, dict[str, float]]) -> list[str]:
    """Paragraphs on flows where it was measured: whether the other library agrees with itself."""
    rows = [
        [name, f"{e['log_prob']:.1e} ({e['relative']:.1e})", f"{e['alone']:.1e} ({e['alone_relative']:.1e})"]
        for name, e in singles.items()
        if "alone" in e
    ]
    if not rows:
        return []
    text = (
        "The other library against itself, in single precision, where flowlab differs by more than is wanted: the "
        "largest difference between its `log_prob` of all rows at once and of the same rows one at a time, beside the "
        "difference of the converted flow from it."
    )
    return [text, table(["flow", "flowlab against it", "it against itself"], rows, "lr")]


# ONNX
# ------------------------------------------------------------------------------------------------------------------

SIZES = (1, 7, 1000)
DIRECTIONS = ("log_prob", "sample")
PRESETS: dict[str, Callable[..., flowlab.Flow]] = {
    **{
        name: getattr(flowlab.presets, name)
        for name in ["planar", "radial", "sylvester", "nice", "real_nvp", "glow", "maf", "iaf", "nsf", "circular_nsf"]
    },
    "nsf, autoregressive": functools.partial(flowlab.presets.nsf, autoregressive=True),
    "circular_nsf, autoregressive": functools.partial(flowlab.presets.circular_nsf, autoregressive=True),
}


def trained(name: str, context_features: int) -> flowlab.Flow:
    """A preset after a short training, in double precision."""
    generator = torch.Generator().manual_seed(0)
    flow = PRESETS[name](
        FEATURES, context_features=context_features, layers=2, hidden=(32, 32), generator=generator
    ).double()
    x, context = skewed(ROWS, 0)
    x = torch.remainder(x + math.pi, 2 * math.pi) - math.pi if "circular" in name else x
    flow.initialise(x)
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    for step in range(STEPS):
        at = slice(step * 200 % ROWS, step * 200 % ROWS + 200)
        optimizer.zero_grad()
        loss = -flow.log_prob(x[at], context[at] if context_features else None).mean()
        loss.backward()
        optimizer.step()
    return flow.eval()


@torch.no_grad()
def in_runtime(flow: flowlab.Flow, what: str) -> dict[str, Any]:
    """Measure the largest difference of a flow's file in ONNX Runtime to torch, also as a share of 1 + |value|.

    And what `inexactness` measures; or say why there is no file.
    """
    import onnxruntime

    from flowlab.interop.onnx import ExportError, export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.onnx"
        try:
            export(flow, path, what)  # type: ignore[arg-type]
        except ExportError as error:
            return {"refused": str(error)}
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found: dict[str, Any] = {"largest": 0.0, "relative": 0.0}
    for rows in SIZES:
        generator = torch.Generator().manual_seed(rows)
        context = torch.empty(rows, flow.context_features, dtype=flow.dtype).normal_(generator=generator)
        given = (context,) if flow.context_features else ()
        z = flow.base.sample((rows,), generator)
        value = z if what == "sample" else flow.from_noise(z, *given)
        inputs = dict(zip(names, (part.numpy() for part in (value, *given)), strict=True))
        outputs, expected = torch.from_numpy(session.run(None, inputs)[0]), run(flow, what, value, *given)
        apart = distance(flow, what, outputs, expected)
        found["largest"] = max(found["largest"], float(apart.max()))
        found["relative"] = max(found["relative"], float((apart / (1 + expected.abs())).max()))
    return found | inexactness(flow, what, (value, *given), expected, outputs)


def run(flow: flowlab.Flow, what: str, *arguments: Tensor) -> Tensor:
    return flow.from_noise(*arguments) if what == "sample" else flow.log_prob(*arguments)


def distance(flow: flowlab.Flow, what: str, one: Tensor, other: Tensor) -> Tensor:
    apart = (one.double() - other.double()).abs()
    circular = what == "sample" and isinstance(flow.base, flowlab.bases.Uniform)
    return torch.minimum(apart, 2 * math.pi - apart).abs() if circular else apart


def inexactness(
    flow: flowlab.Flow, what: str, arguments: tuple[Tensor, ...], eager: Tensor, runtime: Tensor
) -> dict[str, float]:
    """Measure how far torch and ONNX Runtime in single precision are from the same flow in double precision.

    Root mean square and maximum.

    And in both, how much torch's result in double precision moves, if each number of a row moves up to the next one in
    the flow's precision.
    """
    double = copy.deepcopy(flow).double()
    value, *given = (part.double() for part in arguments)
    upwards = torch.nextafter(arguments[0], torch.full_like(arguments[0], torch.inf)).double()
    exact = run(double, what, value, *given)
    results = {"moved": run(double, what, upwards, *given)}
    if flow.dtype == torch.float32:
        results |= {"eager": eager, "runtime": runtime}
    found = {}
    for key, result in results.items():
        apart = distance(flow, what, result, exact)
        found |= {f"{key}_rms": apart.square().mean().sqrt().item(), f"{key}_max": apart.max().item()}
    return found


def measure_preset(name: str) -> dict[str, Any]:
    """Every direction and type of a preset, without and with a context."""
    found: dict[str, Any] = {}
    for context_features in (0, CONTEXT):
        flow = trained(name, context_features)
        for what in DIRECTIONS:
            for key, dtype in DTYPES.items():
                found[f"{context_features} {what} {key}"] = in_runtime(copy.deepcopy(flow).to(dtype), what)
    return found


def measure_onnx() -> dict[str, Any]:
    found: dict[str, Any] = {
        "setting": circumstances("onnx", "onnxscript", "onnxruntime"),
        "presets": {},
    }
    for name in PRESETS:
        found["presets"][name] = measure_preset(name)
        print("onnx", name, found["presets"][name], flush=True)
    return found


def write_onnx(found: dict[str, Any]) -> str:
    kinds = [(what, key) for what in DIRECTIONS for key in DTYPES]
    text = (
        f"`flowlab.interop.onnx.export` of every preset ({FEATURES} features, 2 layers, {STEPS} steps of training), "
        f"run in ONNX Runtime with {', '.join(f'{rows:,}' for rows in SIZES)} rows: the largest difference to torch "
        "in the same precision, in nats for `log_prob` and in units of the data for samples from the same noise, in "
        "brackets as a share of 1 + |value|."
    )
    refused: list[str] = []
    rows = []
    for name, results in found["presets"].items():
        for context_features in (0, CONTEXT):
            cells = []
            for what, key in kinds:
                result = results[f"{context_features} {what} {key}"]
                if "refused" in result:
                    refused.append(f"{name}, {what}, {key}: {result['refused']}")
                    cells.append("refused")
                else:
                    cells.append(f"{result['largest']:.1e} ({result['relative']:.1e})")
            rows.append([name, "yes" if context_features else "no", *cells])
    header = ["preset", "context", *(f"{what}, {key}" for what, key in kinds)]
    told = f"Refused: {'; '.join(refused) or 'none'}."
    parts = [f"{found['setting']}.", text, table(header, rows, "llr"), told]
    return "\n\n".join([*parts, *write_inexactness(found["presets"])])


def write_inexactness(presets: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Paragraphs on what both round; none where presets are refused, or were measured before there was this table."""
    rows = []
    for name, results in presets.items():
        for context_features in (0, CONTEXT):
            for what in DIRECTIONS:
                single, double = (results[f"{context_features} {what} {key}"] for key in DTYPES)
                if "moved_rms" in single and "moved_rms" in double:
                    pairs = [(single, "eager"), (single, "runtime"), (single, "moved"), (double, "moved")]
                    cells = [f"{of[f'{key}_rms']:.1e} ({of[f'{key}_max']:.1e})" for of, key in pairs]
                    rows.append([name, "yes" if context_features else "no", what, *cells])
    if not rows:
        return []
    text = (
        f"Both round: over the {SIZES[-1]:,} rows, errors in single precision against torch in double precision with "
        "the same weights, root mean square and, in brackets, maximum. Then each number of a row is moved up to the "
        "next one in the precision of the column (“moved”): by how much the result in double precision moves, in the "
        "same way. Where that is large, the flow is steep, and roundings inside of it count as much."
    )
    measured = ["torch, float32", "ONNX Runtime, float32", "moved, float32", "moved, float64"]
    return [text, table(["preset", "context", "direction", *measured], rows, "lllr")]


# All sections
# ----------------------------------------------------------------------------------------------------------

# Of each: its title, what measures it (the result is kept as JSON), and what writes it.
SECTIONS: dict[str, tuple[str, Callable[[], Any], Callable[[Any], str]]] = {
    "conversion": ("Conversion errors", measure_conversion, write_conversion),
    "onnx": ("ONNX Runtime against torch", measure_onnx, write_onnx),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), help=", ".join(SECTIONS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.(triangular_solve|qr)")
    found: dict[str, Any] = read_json(STORE)
    for section in options.sections:
        found[section] = SECTIONS[section][1]()
        write_json(STORE, found)
    parts = ["# Working together with other libraries", "`python benchmarks/ecosystem.py`."]
    parts += [f"## {title}\n\n{write(found[name])}" for name, (title, _, write) in SECTIONS.items() if name in found]
    RESULT.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
