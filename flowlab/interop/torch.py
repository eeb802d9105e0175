"""torch's transforms as layers, `TransformLayer`, and flowlab's layers as torch's transforms, `LayerTransform`."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from flowlab.flow import Flow
from flowlab.layers.layer import Layer
from flowlab.registry import refuse

CONTAINERS = ("base_transform", "parts", "tseq", "transforms", "_inv")  # where transforms keep other ones


@refuse(
    "an object of torch.distributions has no description. Save the flow without this layer, and add it after loading"
)
class TransformLayer(Layer):
    """A bijective `torch.distributions.Transform` as a layer: from noise to data it is the transform.

    Typical is the last layer of a flow whose data have a support, `ExpTransform()` for positive numbers or
    `SigmoidTransform()` for shares. The layer before it must lead into the transform's domain. A transform without
    `cache_size` is made of the one that is given. Transforms of numbers (`event_dim` 0) are applied to every feature,
    transforms of vectors (`event_dim` 1) to the whole. Tensors that a transform holds move with the layer;
    `nn.Parameter`s among them, and transforms that are modules, such as Pyro's, are trained. `flowlab.save` refuses
    flows with such a layer: torch's transforms have no description to write.

    Args:
        transform: The transform.
        features: Width of noise and data.

    Raises:
        TypeError: This is no transform.
        ValueError: The transform is not bijective, changes the width, or works on more than vectors.

    Example:
        >>> import torch, flowlab
        >>> from flowlab.interop.torch import TransformLayer
        >>> positive = TransformLayer(torch.distributions.ExpTransform(), 2)
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.LULinear(2), positive])
        >>> bool((flow.sample((100,)) > 0).all()), flow.support
        (True, IndependentConstraint(GreaterThan(lower_bound=0.0), 1))
    """

    def __init__(self, transform: Transform, features: int) -> None:
        super().__init__()
        if not isinstance(transform, Transform):
            raise TypeError(f"transform must be a torch.distributions.Transform, not {type(transform).__name__}")
        name = type(transform).__name__
        if not transform.bijective:
            raise ValueError(f"{name} is not bijective: it has no density")
        dims = (transform.domain.event_dim, transform.codomain.event_dim)
        if max(dims) > 1:
            raise ValueError(f"{name} works on events of {max(dims)} dimensions; layers have one")
        if tuple(transform.forward_shape((features,))) != (features,):
            raise ValueError(
                f"{name} makes {transform.forward_shape((features,))[-1]} numbers of {features}: layers keep the width"
            )
        self.features = features
        # No value is kept: it would keep the graph that it came from.
        self.transform = transform if isinstance(transform, nn.Module) else transform.with_cache(0)
        if not isinstance(self.transform, nn.Module):
            tensors = [value for part in _parts(self.transform) for value in vars(part).values()]
            for i, parameter in enumerate(t for t in tensors if isinstance(t, nn.Parameter)):
                self.register_parameter(f"parameter_{i}", parameter)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = cast(Tensor, self.transform(z))
        return x, self._log_det(z, x)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = cast(Tensor, self.transform.inv(x))
        return z, -self._log_det(z, x)

    def _log_det(self, z: Tensor, x: Tensor) -> Tensor:
        if not z.numel():  # torch's IndependentTransform cannot sum what is empty
            return z.new_zeros(z.shape[:-1])
        log_det = self.transform.log_abs_det_jacobian(z, x)
        return log_det if self.transform.domain.event_dim else log_det.expand(z.shape).sum(-1)

    def support(self, noise: constraints.Constraint) -> constraints.Constraint:
        codomain = self.transform.codomain
        if codomain is constraints.real:
            return constraints.real_vector
        return codomain if codomain.event_dim else constraints.independent(codomain, 1)

    def _apply(self, fn: Any, recurse: bool = True) -> "TransformLayer":
        super()._apply(fn, recurse)
        if not isinstance(self.transform, nn.Module):
            _move(self.transform, fn, {id(parameter) for parameter in self.parameters()})
        return self

    def extra_repr(self) -> str:
        return f"{self.features}, {type(self.transform).__name__}"


def _parts(transform: Transform) -> list[Transform]:
    """A transform and those that it is made of; an inverse and its original name each other, so each counts once."""
    found, waiting = {}, [transform]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            values = [vars(part).get(name) for name in CONTAINERS]
            inner = [v for value in values for v in (value if isinstance(value, list | tuple) else [value])]
            waiting += [v for v in inner if isinstance(v, Transform)]
    return list(found.values())


def _move(transform: Transform, function: Any, kept: set[int]) -> None:
    """Apply a function, such as a change of type, to a transform's tensors that are no parameters of the layer."""
    for part in _parts(transform):
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and id(value) not in kept:
                setattr(part, name, function(value))


class LayerTransform(Transform):
    """A layer, or the layers of a flow, given a context, as a `torch.distributions.Transform` from noise to data.

    `TransformedDistribution(base, [LayerTransform(layer)])` has the density of a flow of that layer. With
    `cache_size=1` the log-determinant of the last call is kept, so that `TransformedDistribution.log_prob` runs the
    layer once, not twice.

    Args:
        layer: The layer, or the flow, whose base does not count.
        context: Context (*batch, context_features); its batch broadcasts.
        cache_size: 0, or 1 for remembering the last pair.

    Raises:
        ValueError: The layer needs a context, or takes none.

    Example:
        >>> import torch, flowlab
        >>> from flowlab.interop.torch import LayerTransform
        >>> flow = flowlab.presets.real_nvp(2, layers=2)
        >>> base = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> q = torch.distributions.TransformedDistribution(base, [LayerTransform(flow, cache_size=1)])
        >>> x = q.sample((5,))
        >>> bool(torch.allclose(q.log_prob(x), flow.log_prob(x), atol=1e-5))
        True
    """

    bijective = True
    domain = constraints.real_vector

    def __init__(self, layer: Layer | Flow, context: Tensor | None = None, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        if (context is None) == bool(layer.context_features):
            need = f"a context (*batch, {layer.context_features})" if context is None else "no context"
            raise ValueError(f"{type(layer).__name__} takes {need}")
        self.layer, self.context = layer, context
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        support: constraints.Constraint = constraints.real_vector
        for layer in self.layer if isinstance(self.layer, Flow) else [self.layer]:
            support = layer.support(support)
        return support

    def with_cache(self, cache_size: int = 1) -> "LayerTransform":
        if self._cache_size == cache_size:
            return self
        return LayerTransform(self.layer, self.context, cache_size)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx| (*batch,), nats, of noise x and the data y that it becomes."""
        if self._last is not None and x is self._last[0] and y is self._last[1]:
            return self._last[2]
        return self._run(x, False)[1] if self.layer.fast == "sampling" else -self._run(y, True)[1]

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self._run(x, False)
        self._remember(x, y, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._run(y, True)
        self._remember(x, y, -log_det)
        return x

    def _run(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        context = self.context
        if context is not None:
            batch = torch.broadcast_shapes(value.shape[:-1], context.shape[:-1])
            value, context = value.expand(*batch, -1), context.expand(*batch, -1)
        return self.layer.inverse(value, context) if inverse else self.layer(value, context)

    def _remember(self, x: Tensor, y: Tensor, log_det: Tensor) -> None:
        if self._cache_size:
            self._last = x, y, log_det

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerTransform) and self.layer is other.layer and self.context is other.context

    __hash__ = Transform.__hash__

    def __repr__(self) -> str:
        return f"LayerTransform({type(self.layer).__name__}, {self.layer.features} features)"


__all__ = ["LayerTransform", "TransformLayer"]
