"""`convert`: trained zuko flows as native flowlab flows with the same numbers.

Needs zuko: pip install flowlab[zuko]. A converted flow does not.
"""

import functools
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

_imported, _validate = "zuko" in sys.modules, Distribution._validate_args
try:
    import zuko
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.flows.gaussianization import ElementWiseTransform
    from zuko.lazy import Flow as ZukoFlow
    from zuko.lazy import LazyComposedTransform, LazyInverse, UnconditionalDistribution, UnconditionalTransform
    from zuko.nn import LayerNorm, Linear, MaskedLinear, Residual
except ImportError as error:
    raise ImportError("flowlab.interop.zuko needs zuko: pip install flowlab[zuko]") from error
if not _imported:  # the first import of zuko turns the validation of all of torch's distributions off
    Distribution.set_default_validate_args(_validate)

from flowlab.bases import Gaussian  # noqa: E402
from flowlab.flow import Flow  # noqa: E402
from flowlab.interop.conversion import (  # noqa: E402
    ConversionError,
    Recipe,
    Source,
    elementwise,
    like,
    parts,
    sequential,
    verify,
)
from flowlab.interop.converted import (  # noqa: E402
    Backwards,
    ConvertedAutoregressive,
    ConvertedCoupling,
    Inverse,
    ScaleAndShift,
)
from flowlab.layers import Additive, Layer, Permutation, RationalQuadraticSpline, ScalarMap  # noqa: E402

KNOWN = "MaskedAutoregressiveTransform, GeneralCouplingTransform, ElementWiseTransform, and permutations"


def convert(model: ZukoFlow) -> Flow:
    """A native flow with the numbers of a zuko flow: the same log_prob, and samples from the same noise.

    What converts: `MAF`, `NSF`, `RealNVP`, `NICE`, with any of their options – context, orders, passes, adjacency,
    masks, hidden widths, activations, residual blocks, normalisation –, and any `zuko.flows.Flow` of the same
    transforms, their inverses and permutations, with affine, additive or rational-quadratic univariate maps. Weights
    are copied. The result can be saved, trained on, and used without zuko; its context is an argument:
    `flow.log_prob(x, context)` for `model(context).log_prob(x)`.

    Args:
        model: The flow.

    Raises:
        TypeError: The model is no zuko flow.
        ConversionError: A part of it has no counterpart; the message names it and its place.

    Example:
        >>> import torch, zuko
        >>> theirs = zuko.flows.NSF(3, context=2, transforms=2, hidden_features=(16,))
        >>> flow = convert(theirs)
        >>> x, context = torch.randn(5, 3), torch.randn(5, 2)
        >>> bool(torch.allclose(flow.log_prob(x, context), theirs(context).log_prob(x), atol=1e-5))
        True
    """
    if not isinstance(model, ZukoFlow):
        raise TypeError(f"model must be a zuko.flows.Flow, not {type(model).__name__}")
    empty = like(model)
    base = _base(model.base, empty)
    to_noise: list[Layer] = []
    for place, transform, inverted in parts(model.transform, _opened):
        where = f"{place} ({_name(transform)})"
        layer = _converted(transform, base.features, where, empty).to(empty)
        to_noise.append(Inverse(layer) if inverted else layer)
    flow = Flow(base.to(empty), reversed(to_noise))
    verify(flow, model, lambda model, x, context: model(context).log_prob(x))
    return flow.train(model.training)


def _opened(transform: Any) -> Any:
    if type(transform) is LazyInverse:
        return transform.transform
    return list(transform.transforms) if type(transform) is LazyComposedTransform else None


def _name(transform: Any) -> str:
    name = type(transform).__name__
    return f"{name} of {_constructor(transform.f)[0]}" if isinstance(transform, UnconditionalTransform) else name


def _base(base: Any, empty: Tensor) -> Gaussian:
    if type(base) is not UnconditionalDistribution or base.f is not zuko.distributions.DiagNormal:
        name = base.f.__name__ if type(base) is UnconditionalDistribution else type(base).__name__
        raise ConversionError(f"the base ({name}) has no counterpart, only DiagNormal has")
    given = inspect.signature(base.f).bind(*base.args, **base.kwargs).arguments
    loc, scale = given["loc"].detach(), given["scale"].detach()
    trained = next(base.parameters(), None) is not None
    learnable = trained or bool((loc != 0).any() or (scale != 1).any())
    if not learnable:
        return Gaussian(len(loc)).to(empty)
    return Gaussian.from_moments(loc, scale.double().log()).to(empty).requires_grad_(trained)


# Transforms -----------------------------------------------------------------------------------------------------------


def _converted(t: Any, features: int, where: str, empty: Tensor) -> Layer:
    """The layer whose way to the noise is the transform."""
    if type(t) is UnconditionalTransform and t.f is zuko.transforms.PermutationTransform:
        given = inspect.signature(t.f).bind(*t.args, **t.kwargs).arguments
        return Permutation(features, given["order"].argsort().tolist())
    if type(t) not in (MaskedAutoregressiveTransform, GeneralCouplingTransform, ElementWiseTransform):
        raise ConversionError(f"{where} has no counterpart; what has: {KNOWN}")
    scalar = _scalar(t, where)
    if not hasattr(t, "hyper"):
        values = torch.cat([phi.reshape(features, -1) for phi in t.phi], 1).flatten()
        recipe = Recipe([["constant", len(values)]], [Source(values.new_empty(len(values), 0), values)])
        return elementwise(features, scalar, recipe, 0, empty)
    recipe = _network(t.hyper, where)
    recipe = Recipe([["join"], *recipe.steps], recipe.sources)
    if type(t) is ElementWiseTransform:
        return elementwise(features, scalar, recipe, t.hyper.in_features, empty)
    if type(t) is GeneralCouplingTransform:
        mask = [not kept for kept in t.mask.tolist()]
        kept = mask.count(False)
        return ConvertedCoupling(features, scalar, mask, recipe.build(kept, t.hyper.in_features - kept, empty))
    network = recipe.build(features, t.hyper.in_features - features, empty)
    return ConvertedAutoregressive(features, scalar, _levels(t, features), network)


def _constructor(given: Any) -> tuple[str, Any, dict[str, Any]]:
    """A constructor's name, itself, and the arguments that were fixed beforehand."""
    if isinstance(given, functools.partial) and not given.args:
        return getattr(given.func, "__name__", type(given.func).__name__), given.func, given.keywords
    return getattr(given, "__name__", type(given).__name__), given, {}


def _scalar(t: Any, where: str) -> ScalarMap:
    name, function, given = _constructor(t.univariate)
    shapes = [tuple(shape) for shape in t.shapes]
    kinds = zuko.transforms
    if function is kinds.MonotonicAffineTransform and shapes == [(), ()] and set(given) <= {"slope"}:
        return ScaleAndShift("soft clip", _option(function, given, "slope"))
    if function is kinds.AdditiveTransform and shapes == [()] and not given:
        return Backwards(Additive())
    if function is kinds.MonotonicRQSTransform and len(shapes) == 3 and set(given) <= {"slope", "bound"}:
        bins = shapes[0][0]
        if shapes == [(bins,), (bins,), (bins - 1,)]:
            options = (_option(function, given, name) for name in ("bound", "slope"))
            return Backwards(RationalQuadraticSpline(bins, *options))
    raise ConversionError(
        f"{where}: its univariate map ({name}, parameters of shapes {shapes}) has no counterpart; "
        "MonotonicAffineTransform, AdditiveTransform and MonotonicRQSTransform have"
    )


def _option(function: Any, given: dict[str, Any], name: str) -> float:
    return float(given.get(name, inspect.signature(function).parameters[name].default))


def _levels(t: Any, features: int) -> list[int]:
    """Of each feature, how many passes must have been made before its parameters are known."""
    if t.order is not None:
        return t.order.tolist()
    reach = torch.eye(t.hyper.in_features, dtype=torch.float64)  # what each unit can see, by the masks
    for module in t.hyper:
        reach = _reach(module, reach)
    sees = reach.view(features, -1, t.hyper.in_features).any(1)[:, :features]
    levels = torch.zeros(features, dtype=torch.long)
    for _ in range(features):
        levels = torch.where(sees, levels + 1, 0).amax(1)
    used = levels.unique()
    return torch.searchsorted(used, levels).tolist()


def _reach(module: nn.Module, reach: Tensor) -> Tensor:
    if isinstance(module, MaskedLinear):
        return (module.mask.double() @ reach > 0).double()
    if isinstance(module, Residual):
        return ((reach + functools.reduce(lambda inner, part: _reach(part, inner), module, reach)) > 0).double()
    return reach


def _network(hyper: Any, where: str) -> Recipe:
    def more(module: Any) -> Recipe | None:
        if isinstance(module, MaskedLinear):
            return Recipe([["masked", module.out_features]], [Source(module.weight, module.bias, module.mask)])
        if type(module) is Linear and module.weight.ndim == 2:
            return Recipe([["linear", module.out_features]], [Source(module.weight, module.bias)])
        if isinstance(module, Residual):
            inner = sequential(module, where, more)
            return Recipe([["residual", inner.steps]], inner.sources)
        if isinstance(module, LayerNorm) and module.dim == -1:
            return Recipe([["standardise", float(module.eps)]], [])
        return None

    return sequential(hyper, where, more)


__all__ = ["ConversionError", "convert"]
