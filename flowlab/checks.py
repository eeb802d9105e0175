"""`check_layer` and `check_flow`: is a layer, or a whole flow, what it claims to be? For users' own layers, too.

Every check takes a `_Trial`, a layer with rows to try it on, and raises an AssertionError that names the fault.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowlab.flow import Flow, dtype_of
from flowlab.layers import Autoregressive, Coupling, Layer
from flowlab.torch_internals import standard_gamma

FAR = (8.0, 30.0)  # how far out noise is tried besides, in every feature, on both sides
MOVED = 0.1  # how far parameters are moved for a second look: many layers start as the identity, which hides faults
TOLERANCE = {True: 1e-9, False: 1e-3}  # in double precision, and where a tensor has a lesser one
Direction = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
Total = Callable[[], Tensor]


def check_layer(
    layer: Layer | Flow,
    x: Tensor | None = None,
    context: Tensor | None = None,
    *,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Check that a layer keeps the contract of `flowlab.layers.Layer`, as it is and with its parameters moved a little.

    Its two directions undo each other, far out as well; their log-determinants are those of autograd's Jacobian; every
    row's result is its own, whatever the batch and its shape; results have the input's type and device; gradients are
    finite, and in double precision those of finite differences; calls leave inputs, parameters and buffers alone, in
    training mode, too, and give the same twice. The layer itself stays as it is.

    Args:
        layer: The layer, or a flow.
        x: Noise to start from (n, features); when None 16 normal rows, the origin, and rows up to ±30.
        context: Context of each row; standard normal when None and needed.
        tolerance: Largest absolute or relative error; 1e-9 in double precision and 1e-3 in single when None. Rows where
            the layer magnifies roundings beyond it are left out; if that is more than half of them, it is an error.
        generator: Source of the rows that are drawn here; one with seed 0 when None.

    Raises:
        AssertionError: A check failed; the message names it and the size of the error.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x = _noise(layer, generator) if x is None else x.detach()
    if context is None and layer.context_features:
        context = torch.empty(len(x), layer.context_features, dtype=x.dtype).normal_(generator=generator)
    tolerance = TOLERANCE[_is_double(layer, x)] if tolerance is None else tolerance
    _check_tensors(layer)
    trial = _Trial(layer, x, None if context is None else context.detach(), tolerance)
    with _borrowed(layer):
        _check_all(trial)
        if any(p.requires_grad for p in layer.parameters()):
            _move(layer, generator)
            _check_all(replace(trial, state=" (with its parameters moved a little)"))


def check_flow(
    flow: Flow,
    context: Tensor | None = None,
    *,
    draws: int = 20_000,
    generator: torch.Generator | None = None,
) -> None:
    """Check a flow as `check_layer` does, that its samples have its density, and that this is normalised.

    Normalisation is estimated by importance sampling from a wider Gaussian fitted to the flow's own samples, and so are
    the moments that samples should have. Both are informative up to about ten features, and are left out above.

    Args:
        flow: The flow.
        context: One context (context_features,); standard normal when None and needed.
        draws: Number of draws for the normalisation.
        generator: Source of all draws; one with seed 0 when None.

    Raises:
        AssertionError: A check failed; the message names it and the size of the error.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if context is None and flow.context_features:
        context = torch.empty(flow.context_features, dtype=flow.dtype).normal_(generator=generator)
    rows = flow.base.sample((16,), generator)
    if flow.base.support is constraints.real_vector:
        rows = torch.cat([rows, 0 * rows[:1], _far(flow.features, rows.dtype)])
    check_layer(flow, rows, None if context is None else context.expand(len(rows), -1), generator=generator)
    with _borrowed(flow), torch.no_grad():
        tolerance = TOLERANCE[_is_double(flow, rows)]
        x, log_prob = flow.rsample_and_log_prob((64,), context, generator)
        _close("rsample_and_log_prob against log_prob", log_prob, flow.log_prob(x, context), tolerance)
        noise, log_det = flow.inverse(x, context)
        by_parts = flow.base.log_prob(noise) + log_det
        _close("log_prob against the base's and the log-determinant", log_prob, by_parts, tolerance)
        if flow.features <= 10:
            _check_density(flow, context, draws, generator)


def _check_density(flow: Flow, context: Tensor | None, draws: int, generator: torch.Generator) -> None:
    """Whether the density integrates to one, and the samples are its own."""
    sample = flow.sample((draws,), context, generator)
    mean, scale = sample.mean(0), sample.std(0) * 1.5 + 1e-6
    proposal = torch.distributions.StudentT(3.0, mean, scale)
    noise = torch.empty_like(sample).normal_(generator=generator)
    gamma = standard_gamma(torch.full_like(sample, 1.5), generator) / 1.5
    wide = mean + scale * noise / gamma.sqrt()
    weight = (flow.log_prob(wide, context) - proposal.log_prob(wide).sum(-1)).exp()
    error = weight.std() / draws**0.5
    _close("the density integrates to one", weight.mean(), torch.ones(()), float(5 * error) + 1e-3)
    for name, function in (("place", torch.tanh), ("width", lambda u: torch.tanh(u).square())):
        expected, drawn = function((wide - mean) / scale), function((sample - mean) / scale)
        by_density = (weight.unsqueeze(-1) * expected).mean(0) / weight.mean()
        residual = weight.unsqueeze(-1) * (expected - by_density)
        error = (residual.square().mean(0) + drawn.var(0)).sqrt() / draws**0.5
        _close(f"samples have the {name} of the density", drawn.mean(0), by_density, float(6 * error.max()) + 1e-3)


# ---- what is tried ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """A layer, in evaluation mode and its own copy, and what to try it on.

    Attributes:
        layer: The layer.
        x: Noise (n, features).
        context: Context of each row (n, context_features), or None.
        tolerance: Largest absolute or relative error.
        state: What messages say of the layer's state.
    """

    layer: Layer | Flow
    x: Tensor
    context: Tensor | None
    tolerance: float
    state: str = ""

    @property
    def smooth(self) -> Tensor:
        """Rows at which a slope may be asked for: at zero it may jump (n,)."""
        return (self.x != 0).all(-1)

    def run(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One of the two directions, by its name."""
        direction: Direction = self.layer.forward if name == "forward" else self.layer.inverse
        return direction(rows, self.context)

    def part(self, index: slice | Tensor) -> "_Trial":
        """The trial of some of the rows."""
        return replace(self, x=self.x[index], context=None if self.context is None else self.context[index])

    def expect(self, true: bool, what: str) -> None:
        """An error unless it is true."""
        if not true:
            raise AssertionError(what + self.state)

    def close(self, what: str, value: Tensor, expected: Tensor) -> None:
        """An error unless both agree."""
        _close(what + self.state, value, expected, self.tolerance)


def _noise(layer: Layer | Flow, generator: torch.Generator) -> Tensor:
    """Normal rows, the origin, and, where noise is any real number, rows far out."""
    dtype = dtype_of(layer) or torch.get_default_dtype()
    x = torch.empty(16, layer.features, dtype=dtype).normal_(generator=generator)
    if dtype_of(layer) is None:  # tensors that are no module's may have another type
        with torch.no_grad():
            x = x.to(layer.forward(x)[0].dtype)
    x = torch.cat([x, x.new_zeros(1, layer.features)])
    if any(isinstance(part, Autoregressive | Coupling) and part.scalar.periodic for part in layer.modules()):
        return x.clamp(-3, 3)  # an angle comes back in [-π, π)
    return torch.cat([x, _far(layer.features, x.dtype)])


def _far(features: int, dtype: torch.dtype) -> Tensor:
    """Rows far out: on one side, on the other, and on both in turn."""
    signs = torch.ones(3, features, dtype=dtype)
    signs[1], signs[2, ::2] = -1, -1
    return torch.cat([size * signs for size in FAR])


def _move(layer: Layer | Flow, generator: torch.Generator) -> None:
    """Adds a little noise to every parameter, less where many are summed."""
    with torch.no_grad():
        for parameter in layer.parameters():
            scale = MOVED / math.sqrt(max(parameter.shape[-1], 1)) if parameter.ndim > 1 else MOVED
            noise = torch.empty(parameter.shape, dtype=parameter.dtype).normal_(generator=generator)
            parameter.add_(noise.to(parameter), alpha=scale)


@contextmanager
def _borrowed(layer: nn.Module) -> Iterator[None]:
    """The layer is in evaluation mode inside the block; its modes and tensors are what they were afterwards.

    It is not copied: not every module can be.
    """
    modes = [(module, module.training) for module in layer.modules()]
    before = {name: tensor.detach().clone() for name, tensor in _tensors(layer)}
    layer.train(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for name, tensor in _tensors(layer):
                tensor.copy_(before[name])


def _tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers, by name."""
    return [*layer.named_parameters(), *layer.named_buffers()]


# ---- checks -------------------------------------------------------------------------------------------------------


def _check_all(trial: _Trial) -> None:
    """All that is asked of a layer in one state; what later checks build on comes first."""
    _check_direction(trial, "forward", trial.x)
    trial = _well_conditioned(trial)
    with torch.no_grad():
        data, _ = trial.layer.forward(trial.x, trial.context)
    _check_direction(trial, "inverse", data)
    _check_inverse(trial, data)
    for name, rows in (("forward", trial.x), ("inverse", data)):
        _check_gradients(trial, name, rows)


@torch.no_grad()
def _check_direction(trial: _Trial, name: str, rows: Tensor) -> None:
    """What concerns one direction alone, but for its derivatives."""
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
        _check_results(trial, name, rows)
        _check_calls(trial, name, rows)
        _check_batches(trial, name, rows)


def _check_tensors(layer: Layer | Flow) -> None:
    """Every tensor is a parameter or a buffer, and all floating-point ones of a layer have one type."""
    for part in layer if isinstance(layer, Flow) else [layer]:
        kind = type(part).__name__
        first: dict[torch.dtype, str] = {}
        for name, tensor in _tensors(part):
            if tensor.is_floating_point():
                first.setdefault(tensor.dtype, name)
        if len(first) > 1:
            listed = " and ".join(f"{name} in {dtype}" for dtype, name in first.items())
            raise AssertionError(f"{kind} has tensors of two floating-point types, {listed}")
        for path, module in part.named_modules():
            held = vars(module).items()  # one number may as well be a constant
            loose = [
                name
                for name, value in held
                if isinstance(value, Tensor) and value.numel() > 1 and value.is_floating_point()
            ]
            if loose:
                where = ".".join(filter(None, [path, loose[0]]))
                raise AssertionError(
                    f"{kind}'s tensor {where} is neither parameter nor buffer: .to(), .double() and state_dict() pass "
                    "it by; use register_buffer"
                )


def _check_results(trial: _Trial, name: str, rows: Tensor) -> None:
    """Shapes, types and devices, and that results are numbers."""
    mapped, log_det = trial.run(name, rows)
    for part, value, shape in (("result", mapped, rows.shape), ("log-determinant", log_det, rows.shape[:-1])):
        what = f"{name}'s {part}"
        trial.expect(value.shape == shape, f"shape of {what}: {tuple(value.shape)}, expected {tuple(shape)}")
        same = value.dtype == rows.dtype or isinstance(trial.layer, Flow)  # whose data may have another type
        trial.expect(same, f"dtype of {what}: {value.dtype}, its input's is {rows.dtype}")
        trial.expect(value.device == rows.device, f"device of {what}: {value.device}, its input's is {rows.device}")
        trial.expect(not bool(value.isnan().any()), f"{what} is NaN for a finite row")


def _check_calls(trial: _Trial, name: str, rows: Tensor) -> None:
    """A call changes nothing, in either mode, and the next one gives the same."""
    for training in (False, True):
        trial.layer.train(training)
        value, given = rows.clone(), None if trial.context is None else trial.context.clone()
        before = {key: tensor.clone() for key, tensor in _tensors(trial.layer)}
        results = replace(trial, context=given).run(name, value)
        trial.expect(_same(value, rows), f"{name} changes its input")
        if given is not None and trial.context is not None:
            trial.expect(_same(given, trial.context), f"{name} changes its context")
        changed = [key for key, tensor in _tensors(trial.layer) if not _same(tensor, before[key])]
        mode = "training" if training else "evaluation"
        trial.expect(not changed, f"{name} in {mode} mode changes {', '.join(changed)}: learn from data in initialise")
        again = all(map(_same, trial.run(name, rows), results))
        trial.expect(again or training, f"{name} gives other results when called again")
        if again:  # in training there may be dropout
            _check_alone(trial, f"{name} in {mode} mode", name, rows, results)
    trial.layer.train(False)
    if name == "forward":
        same = all(map(_same, trial.layer(rows, trial.context), trial.run(name, rows)))
        trial.expect(same, "the layer as a function gives other results than its method forward: a hook changes them")


def _check_alone(trial: _Trial, what: str, name: str, rows: Tensor, whole: tuple[Tensor, Tensor]) -> None:
    """The last row alone has the result that it has in the whole batch."""
    last = slice(len(rows) - 1, len(rows))
    for value, expected in zip(trial.part(last).run(name, rows[last]), whole, strict=True):
        trial.close(f"{what}: a row's result depends on other rows or their context", value, expected[last])


def _check_batches(trial: _Trial, name: str, rows: Tensor) -> None:
    """Batches of every shape, none and empty ones included, have the results of their rows."""
    whole = trial.run(name, rows)
    for batch in ((), (2, len(rows) // 2), (0,)):
        count = math.prod(batch)
        given = None if trial.context is None else trial.context[:count].view(*batch, trial.context.shape[1])
        where = f"{name} of a batch of shape {batch}"
        try:
            results = replace(trial, context=given).run(name, rows[:count].view(*batch, rows.shape[1]))
        except Exception as error:
            raise AssertionError(f"{where} fails{trial.state}: {type(error).__name__}: {error}") from error
        for result, expected in zip(results, whole, strict=True):
            expected = expected[:count].view((*batch, *expected.shape[1:]))
            trial.expect(result.shape == expected.shape, f"{where}: results have shape {tuple(result.shape)}")
            trial.close(f"{where}: results are not those of its rows", result, expected)


def _well_conditioned(trial: _Trial) -> _Trial:
    """The trial without the rows where roundings are magnified beyond the tolerance, as where a sigmoid saturates.

    A layer that cannot be inverted has a singular Jacobian, too: rows where its log-determinant denies it are faults.
    """
    jacobian, value = _jacobian(trial, "forward", trial.x)
    with torch.no_grad():
        data, _ = trial.run("forward", trial.x)
        expected = torch.linalg.slogdet(jacobian.nan_to_num()).logabsdet
        steep = -math.log(torch.finfo(value.dtype).eps) / 2
        denied = (value.abs() < steep) & ~((value - expected).abs() <= 0.1 * (1 + value.abs()))
        denied = denied & trial.smooth
        trial.expect(not bool(denied.any()), "forward's log-determinant is not that of autograd's Jacobian")
        inverse, singular = torch.linalg.inv_ex(jacobian.nan_to_num())
        # Data near zero may be differences of larger ones: at least of the usual size they count.
        usual = data.abs().median(0).values
        x, y = trial.x.abs().unsqueeze(-1).to(jacobian), data.abs().maximum(usual).unsqueeze(-1).to(jacobian)
        magnified = torch.maximum(inverse.abs() @ y / (1 + x), jacobian.abs() @ x / (1 + y)).amax((-2, -1))
        sound = (singular == 0) & (30 * torch.finfo(data.dtype).eps * magnified <= trial.tolerance)
        count = int(sound.sum())
        trial.expect(
            2 * count >= len(trial.x),
            f"roundings hide what the layer does in {len(trial.x) - count} of {len(trial.x)} rows: check it in double "
            "precision, or with a larger tolerance",
        )
    return trial.part(sound)


def _check_inverse(trial: _Trial, data: Tensor) -> None:
    """The directions undo each other, and their log-determinants are those of autograd's Jacobians."""
    with torch.no_grad():
        noise, _ = trial.run("inverse", data)
    trial.close("round trip noise -> data -> noise", noise, trial.x)
    values = []
    for name, rows in (("forward", trial.x), ("inverse", data)):
        jacobian, value = _jacobian(trial, name, rows)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        values.append(value[trial.smooth])
        trial.close(f"{name}'s log-determinant against autograd's Jacobian", values[-1], expected[trial.smooth])
    trial.close("log-determinants of the two directions cancel", values[1], -values[0])


def _check_gradients(trial: _Trial, name: str, rows: Tensor) -> None:
    """Gradients are finite, and in double precision those of finite differences."""
    for what, _, grads, _ in _gradients(trial, name, rows):
        finite = all(bool(grad.isfinite().all()) for grad in grads if grad.numel())
        trial.expect(finite, f"{what} is not finite")
    # Slopes may jump at the origin, and far out they change too quickly for differences.
    near = trial.smooth & (trial.x.abs() < FAR[0]).all(-1)
    if _is_double(trial.layer, rows) and bool(near.any()):
        for what, group, grads, total in _gradients(trial.part(near), name, rows[near]):
            found, expected, room = _slopes(total, group, grads)
            if not abs(found - expected) <= room:
                raise AssertionError(
                    f"{what}{trial.state} is {found:.6g} along a line where finite differences give {expected:.6g}"
                )


def _gradients(trial: _Trial, name: str, rows: Tensor) -> Iterator[tuple[str, list[Tensor], list[Tensor], Total]]:
    """For each result and each of its sources: what it is called, the source's tensors, their gradients, the function.

    The function of the tensors is a weighted sum of the result.
    """
    own = replace(trial, context=None if trial.context is None else trial.context.clone())
    rows = rows.clone()
    sources: dict[str, list[Tensor]] = {
        "the rows": [rows],
        "the context": [] if own.context is None else [own.context],
        "the parameters": [p for p in own.layer.parameters() if p.requires_grad],
    }
    tensors = [tensor.requires_grad_() for group in sources.values() for tensor in group]

    def total(output: int) -> Tensor:
        result = own.run(name, rows)[output]
        return result.flatten() @ torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device)

    for output, part in enumerate(("result", "log-determinant")):
        value = total(output)
        if value.requires_grad:
            grads = list(torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True))
        else:
            grads = [torch.zeros_like(tensor) for tensor in tensors]
        for source, group in sources.items():
            own_grads, grads = grads[: len(group)], grads[len(group) :]
            if group:
                yield f"gradient of {name}'s {part} in {source}", group, own_grads, functools.partial(total, output)


@torch.no_grad()
def _slopes(total: Total, tensors: list[Tensor], grads: list[Tensor]) -> tuple[float, float, float]:
    """The slope along a line by the gradient, the one by finite differences, and how far they may be apart."""
    step, generator = 1e-6, torch.Generator().manual_seed(1)
    ways = [torch.empty(tensor.shape, dtype=tensor.dtype).normal_(generator=generator).to(tensor) for tensor in tensors]
    ends = []
    for move in (step, -2 * step, step):
        for tensor, way in zip(tensors, ways, strict=True):
            tensor.add_(way, alpha=move)
        ends.append(float(total()))
    terms = torch.cat([(grad * way).flatten() for grad, way in zip(grads, ways, strict=True)])
    expected = (ends[0] - ends[1]) / (2 * step)
    return float(terms.sum()), expected, 1e-4 * (1 + float(terms.abs().sum()) + abs(expected))


# ---- tools --------------------------------------------------------------------------------------------------------


def _is_double(layer: nn.Module, rows: Tensor) -> bool:
    """Whether all is in double precision."""
    return all(t.dtype == torch.float64 for t in (rows, *dict(_tensors(layer)).values()) if t.is_floating_point())


def _jacobian(trial: _Trial, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Every row's own Jacobian (n, features, features), and the log-determinant that the layer says it has (n,)."""
    rows = rows.detach().requires_grad_()
    with torch.enable_grad():
        mapped, log_det = trial.run(name, rows)
        columns = [column.sum() for column in mapped.unbind(-1)]
        grads = [torch.autograd.grad(c, rows, retain_graph=True)[0] if c.requires_grad else 0 * rows for c in columns]
    return torch.stack(grads, -2).detach(), log_det.detach()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are the same bit for bit, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _close(what: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
    value, expected = value.detach().double(), expected.detach().double()
    error = torch.where(value == expected, 0, (value - expected).abs() / (1 + expected.abs()))
    worst = float(error.max()) if error.numel() else 0.0
    if not worst <= tolerance:
        raise AssertionError(f"{what}: relative error {worst:.3g}, allowed {tolerance:.3g}")
