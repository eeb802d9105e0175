"""`Flow`: layers plus a base distribution make a trainable distribution."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowlab.arguments import floating, sizes
from flowlab.bases import Base
from flowlab.distribution import FlowDistribution
from flowlab.kernels import transforming
from flowlab.layers.layer import Layer, awaits_data, fast_of_all
from flowlab.torch_internals import any_autocast_enabled

CHUNK = 4096  # rows handled at once where memory would grow with their number
VALUES = 2**17  # and numbers among them: what layers hand on then stays in the cache (measured on one and two cores)

Results = TypeVar("Results", bound=tuple[Tensor, ...])


class Flow(nn.Module):
    """A distribution over data x = g(z), with noise z from `base` and the chain g of layers in sampling order.

    Shapes are torch.distributions': samples are (*shape, *context_batch, features); the batch of a
    context broadcasts against the batch of the data. Log-densities are in nats. Each layer computes in the
    floating-point type of its own tensors: a chain may end in double-precision preprocessing and train in single.

    Args:
        base: Distribution of the noise.
        layers: Layers from noise to data, all of the base's width.

    Raises:
        ValueError: Widths or context widths do not agree.

    Example:
        >>> import torch, flowlab
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [flowlab.layers.LULinear(2)])
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
        >>> flow.sample((10,)).shape
        torch.Size([10, 2])
    """

    def __init__(self, base: Base, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.base = base
        self.layers = nn.ModuleList(layers)
        self.features: int = base.features
        self.context_features: int = 0
        for i, layer in enumerate(self):
            if layer.features != self.features:
                raise ValueError(
                    f"layer {i} ({type(layer).__name__}) has {layer.features} features, the base has {self.features}"
                )
            if layer.context_features:
                if self.context_features not in (0, layer.context_features):
                    raise ValueError(
                        f"layer {i} ({type(layer).__name__}) has context_features={layer.context_features}, "
                        f"an earlier one {self.context_features}"
                    )
                self.context_features = layer.context_features

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)  # type: ignore[arg-type]

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of data x (*batch, features), in nats: (*batch,).

        It is −inf where no number of the floating-point type is small enough or the noise overflows: in single
        precision from about 2e19 standard deviations on, in double from 1e154. NaN in x or context makes it NaN.
        Gradients in x are finite up to a thousandth of these distances, those in the parameters, which grow with their
        square, up to a millionth.

        Raises:
            ValueError: The width, the context or the floating-point type does not fit.
        """
        x, context = self._check("x", x, context, self.dtype)
        return self._in_chunks(self._log_prob, x, context)[0]

    @torch.no_grad()
    def sample(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws (*shape, *context_batch, features), without a gradient."""
        return self.rsample(shape, context, generator)

    def rsample(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws (*shape, *context_batch, features), differentiable in the parameters."""
        return self._rsample(shape, context, generator)[0]

    def rsample_and_log_prob(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities (*shape, *context_batch), in one pass, both differentiable."""
        x, z, log_det = self._rsample(shape, context, generator)
        return x, self.base.log_prob(z) - log_det

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The noise z (*batch, features) behind data x."""
        return self.inverse(x, context)[0].contiguous()

    def to_normal(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """The noise behind data x (*batch, features) as standard normal noise, whatever the base.

        It is drawn where several values would do.
        """
        return self.base.to_normal(self.to_noise(x, context), generator)

    def from_noise(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The data x (*batch, features) that noise z becomes."""
        return self.forward(z, context)[0].contiguous()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data with log|det dx/dz|, like a `Layer`."""
        z, context = self._check("z", z, context, dtype_of(self.base))
        return self._in_chunks(self._to_data, z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise with log|det dz/dx|, like a `Layer`."""
        x, context = self._check("x", x, context, self.dtype)
        return self._in_chunks(self._to_noise, x, context)

    def initialise(self, x: Tensor) -> None:
        """Let the layers that learn from data do so, once, given rows x (n, features); `fit` calls it."""
        with torch.no_grad():
            for layer in reversed(list(self)):
                value = x.to(dtype_of(layer) or x.dtype)
                if awaits_data(layer):
                    layer.initialise(value)
                if layer.context_features:
                    return  # what lies further towards the noise depends on a context
                x = torch.cat([layer.inverse(chunk)[0] for chunk in value.split(CHUNK)])

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """This flow, given a context, as a `torch.distributions.Distribution`."""
        return FlowDistribution(self, context)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the data."""
        for module in (*reversed(list(self)), self.base):
            dtype = dtype_of(module)
            if dtype is not None:
                return dtype
        return torch.get_default_dtype()

    @property
    def has_rsample(self) -> bool:
        """Whether samples carry gradients of all parameters."""
        return self.base.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """Where the data lie."""
        support = self.base.support
        for layer in self:
            support = layer.support(support)
        return support

    @property
    def fast(self) -> str:
        """Which direction is one cheap pass through every layer: "both", "density", "sampling" or "neither"."""
        return fast_of_all(layer.fast for layer in self)

    def _rsample(
        self, shape: int | Sequence[int], context: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        context = self._check_context(context)
        batch = () if context is None else context.shape[:-1]
        z = self.base.rsample((*sizes(shape), *batch), generator)
        x, log_det = self.forward(z, context)
        return x.contiguous(), z, log_det  # layers hand on features first; users expect rows

    def _in_chunks(
        self, function: Callable[[Tensor, Tensor | None], Results], value: Tensor, context: Tensor | None
    ) -> Results:
        """A function of rows and contexts; where no gradient is recorded, of so many at a time as the cache holds."""
        batch = value.shape[:-1]
        size = max(min(CHUNK, VALUES // self.features), 1)
        if torch.is_grad_enabled() or transforming() or batch.numel() <= size:
            return function(value, context)
        value = value.reshape(-1, self.features)
        context = None if context is None else context.reshape(len(value), -1)
        results: tuple[Tensor, ...] = ()
        for start in range(0, len(value), size):
            rows = slice(start, start + size)
            parts = function(value[rows], None if context is None else context[rows])
            results = results or tuple(part.new_empty(len(value), *part.shape[1:]) for part in parts)
            for result, part in zip(results, parts, strict=True):
                result[rows] = part
        return tuple(result.view(*batch, *result.shape[1:]) for result in results)  # type: ignore[return-value]

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._chain(z, context, to_noise=False)

    def _to_noise(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._chain(x, context, to_noise=True)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> tuple[Tensor]:
        z, log_det = self._chain(x, context, to_noise=True)
        value = self.base.log_prob(z) + log_det
        # Where noise overflows, inf - inf or 0 · inf makes NaN of a density of zero.
        lost = value.isnan() & ~x.isnan().any(-1)
        if context is not None:
            lost = lost & ~context.isnan().any(-1)
        return (torch.where(lost, -torch.inf, value),)

    def _chain(self, value: Tensor, context: Tensor | None, to_noise: bool) -> tuple[Tensor, Tensor]:
        # Log-determinants do not survive half precision. Of some devices, such as "meta", it cannot be asked whether
        # they use it.
        autocast = not transforming() and any_autocast_enabled() and not value.is_meta
        if autocast and torch.is_autocast_enabled(value.device.type):
            with torch.autocast(value.device.type, enabled=False):
                return self._chain(value, context, to_noise)
        log_det: Tensor | None = None
        for layer in reversed(list(self)) if to_noise else self:
            dtype = dtype_of(layer)
            if dtype is not None and dtype != value.dtype:
                value = value.to(dtype)
            given = None if not layer.context_features or context is None else context.to(value.dtype)
            value, term = layer.inverse(value, given) if to_noise else layer(value, given)
            log_det = term if log_det is None else log_det + term
        dtype = dtype_of(self.base) if to_noise else None
        if dtype is not None and dtype != value.dtype:
            value = value.to(dtype)
        return value, value.new_zeros(value.shape[:-1]) if log_det is None else log_det

    def _check(
        self, name: str, value: Tensor, context: Tensor | None, dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor | None]:
        """The door: width, type and context are checked here, and nowhere behind it."""
        floating(name, value, dtype)
        if value.ndim == 0 or value.shape[-1] != self.features:
            raise ValueError(f"{name} must have shape (*batch, {self.features}), not {tuple(value.shape)}")
        context = self._check_context(context)
        if context is None:
            return value, None
        try:
            batch = torch.broadcast_shapes(value.shape[:-1], context.shape[:-1])
        except RuntimeError as error:
            raise ValueError(
                f"the batch of {name} {tuple(value.shape)} and of the context {tuple(context.shape)} do not broadcast"
            ) from error
        return value.expand(*batch, -1), context.expand(*batch, -1)

    def _check_context(self, context: Tensor | None) -> Tensor | None:
        if self.context_features == 0:
            if context is not None:
                raise ValueError("this flow takes no context: build it with context_features=…")
            return None
        if context is None:
            raise ValueError(f"this flow needs a context of shape (*batch, {self.context_features})")
        if not isinstance(context, Tensor):
            raise TypeError(f"context must be a torch.Tensor, not {type(context).__name__}; use torch.as_tensor")
        if context.ndim == 0 or context.shape[-1] != self.context_features:
            raise ValueError(f"context must have shape (*batch, {self.context_features}), not {tuple(context.shape)}")
        return context

    def __repr__(self) -> str:
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        lines = [
            f"Flow({self.features} features, context {self.context_features}, {trained:,} parameters, fast: {self.fast}"
        ]
        lines += [f"  base: {type(self.base).__name__}({self.base.extra_repr()})"]
        lines += [f"  {i}: {type(layer).__name__}({layer.extra_repr()})" for i, layer in enumerate(self)]
        return "\n".join(lines) + "\n)"


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The floating-point type of a module's tensors, parameters before buffers, None if it has none."""
    return _dtype_among(module, "_parameters") or _dtype_among(module, "_buffers")


def _dtype_among(module: nn.Module, kind: str) -> torch.dtype | None:
    # By hand, not through module.parameters(): this runs for every layer in every call.
    for tensor in getattr(module, kind).values():
        if tensor is not None and tensor.dtype.is_floating_point:
            return tensor.dtype
    for child in module._modules.values():
        dtype = None if child is None else _dtype_among(child, kind)
        if dtype is not None:
            return dtype
    return None
