"""nflows, both ways: `convert` makes its flows native, `from_nflows` its transforms layers, `to_nflows` the reverse.

Needs nflows: pip install flowlab[nflows]. A converted flow does not.
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

try:
    from nflows import transforms
    from nflows.distributions import Distribution
    from nflows.flows import Flow as NflowsFlow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms.autoregressive import AutoregressiveTransform
    from nflows.transforms.linear import Linear
    from nflows.transforms.made import MADE
    from nflows.transforms.nonlinearities import CompositeCDFTransform
    from nflows.utils.typechecks import is_positive_int
except ImportError as error:
    raise ImportError("flowlab.interop.nflows needs nflows: pip install flowlab[nflows]") from error

from flowlab.flow import Flow
from flowlab.interop.conversion import ConversionError, like, parts, verify
from flowlab.interop.converted import Inverse
from flowlab.interop.nflows_parts import base_of, layers_of
from flowlab.layers import Layer
from flowlab.layers.layer import flat
from flowlab.mixture import FlowMixture


class NflowsLayer(Layer):
    """An nflows transform as a layer: `inverse`, from data to noise, is the transform's `forward`.

    Batches may have any shape, the transform sees (n, features). It keeps its class, so that `flowlab.save` cannot
    write it: see `convert`.
    """

    def __init__(self, transform: transforms.Transform, features: int, context_features: int = 0) -> None:
        super().__init__()
        self.transform, self.features, self.context_features = transform, features, context_features
        if any(isinstance(m, AutoregressiveTransform) for m in transform.modules()):
            self.fast = "sampling" if isinstance(transform, transforms.InverseTransform) else "density"

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.transform.inverse, z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.transform, x, context)

    def _run(self, function: Callable[..., Any], value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if not value.numel():  # nflows' transforms cannot tell the shapes of what is empty
            return value.clone(), value.new_zeros(value.shape[:-1])
        given = None if context is None else flat(context.expand(*value.shape[:-1], -1))
        mapped, log_det = function(flat(value), given)
        return mapped.view(value.shape), log_det.view(value.shape[:-1])


def from_nflows(transform: transforms.Transform, features: int, context_features: int = 0) -> NflowsLayer:
    """Any `nflows.transforms.Transform` of vectors as a flowlab layer, with the same parameters, not copies.

    Args:
        transform: The transform, with both directions.
        features: Width of its input and output.
        context_features: Width of the context that it takes, 0 for none.

    Raises:
        TypeError: It is no nflows transform.

    Example:
        >>> import torch, flowlab, nflows.transforms
        >>> layer = from_nflows(nflows.transforms.ActNorm(2), features=2)
        >>> flow = flowlab.Flow(flowlab.bases.Gaussian(2), [layer, flowlab.layers.LULinear(2)])
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    if not isinstance(transform, transforms.Transform):
        raise TypeError(f"transform must be an nflows.transforms.Transform, not {type(transform).__name__}")
    return NflowsLayer(transform, features, context_features)


class NflowsTransform(transforms.Transform):
    """A flowlab layer as nflows has transforms: its call goes from data to noise.

    A context that the layer does not take is ignored.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(inputs, context if self.layer.context_features else None)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer(inputs, context if self.layer.context_features else None)


class NflowsDistribution(Distribution):
    """A flowlab flow with the methods of nflows' `Flow`.

    As in nflows, draws come from torch's global generator and carry gradients, and a context that the flow does not
    take only counts the draws.
    """

    def __init__(self, flow: Flow | FlowMixture) -> None:
        super().__init__()
        self.flow = flow

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return self.flow.log_prob(inputs, self._taken(context))

    def sample(self, num_samples: int, context: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """Draws ([contexts,] num_samples, features), at most `batch_size` of each context at once."""
        if context is None or batch_size is None:
            return super().sample(num_samples, context, batch_size)
        sizes = [min(batch_size, num_samples - start) for start in range(0, num_samples, batch_size)]
        return torch.cat([super(NflowsDistribution, self).sample(size, context) for size in sizes], 1)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        drawn = self.flow.rsample(*self._question(num_samples, context))
        return drawn if context is None else drawn.transpose(0, 1)

    def sample_and_log_prob(self, num_samples: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws as `sample` gives them, and their log-densities in nats."""
        drawn, log_prob = self.flow.rsample_and_log_prob(*self._question(num_samples, context))
        return (drawn, log_prob) if context is None else (drawn.transpose(0, 1), log_prob.transpose(0, 1))

    def transform_to_noise(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """The noise (n, features) behind data (n, features)."""
        if isinstance(self.flow, FlowMixture):
            raise TypeError("a mixture of flows has no noise of its own: take one of its flows")
        return self.flow.to_noise(inputs, self._taken(context))

    def _taken(self, context: Tensor | None) -> Tensor | None:
        return context if self.flow.context_features else None

    def _question(self, num_samples: int, context: Tensor | None) -> tuple[tuple[int, ...], Tensor | None]:
        """The shape of draws and the context, as a flow takes them."""
        if not is_positive_int(num_samples):
            raise TypeError(f"num_samples must be a positive integer, not {num_samples!r}")
        if context is None or self.flow.context_features:
            return (num_samples,), context
        return (num_samples, len(context)), None


@overload
def to_nflows(model: Flow | FlowMixture) -> NflowsDistribution: ...
@overload
def to_nflows(model: Layer) -> NflowsTransform: ...
def to_nflows(model: Flow | FlowMixture | Layer) -> NflowsDistribution | NflowsTransform:
    """A flow as an `nflows` distribution, a layer as an `nflows` transform, with the same parameters, not copies.

    Args:
        model: The flow, a mixture of flows, or a layer.

    Raises:
        TypeError: It is none of them.

    Example:
        >>> import torch, flowlab
        >>> flow = to_nflows(flowlab.presets.real_nvp(2, context_features=3, layers=2))
        >>> flow.sample(10, context=torch.zeros(4, 3)).shape
        torch.Size([4, 10, 2])
    """
    if isinstance(model, Layer):
        return NflowsTransform(model)
    if not isinstance(model, Flow | FlowMixture):
        raise TypeError(f"model must be a flowlab Flow, FlowMixture or Layer, not {type(model).__name__}")
    return NflowsDistribution(model)


def convert(model: NflowsFlow, *, wrap: bool = False) -> Flow:
    """An nflows flow as a native one: the log_prob that it has out of training, and samples from the same noise.

    What converts: affine, additive and rational-quadratic couplings (with `ResidualNet`s, unconditional transforms as
    well), affine and rational-quadratic autoregressive transforms, elementwise splines, LU, QR and SVD mixings,
    Householder reflections in an even number, permutations, `ActNorm`, `BatchNorm` (with its running statistics),
    pointwise affine maps, and compositions and inverses of these; standard, diagonal and context-dependent normal
    bases, and boxes. Weights are copied. The result can be saved, trained on, and used without nflows.

    Args:
        model: The flow.
        wrap: Keep transforms that have no counterpart, by `from_nflows`, instead of an error. Such a flow cannot be
            saved.

    Raises:
        TypeError: The model is no nflows flow.
        ConversionError: A part of it has no counterpart; the message names it and its place.

    Example:
        >>> import torch, nflows.flows
        >>> theirs = nflows.flows.MaskedAutoregressiveFlow(3, 16, num_layers=2, num_blocks_per_layer=1)
        >>> flow = convert(theirs)
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(flow.log_prob(x), theirs.log_prob(x).float(), atol=1e-5))
        True
    """
    if not isinstance(model, NflowsFlow):
        hint = ": use from_nflows" if isinstance(model, transforms.Transform) else ""
        raise TypeError(f"model must be an nflows.flows.Flow, not {type(model).__name__}{hint}")
    if not isinstance(model._embedding_net, nn.Identity):
        raise ConversionError(
            f"the embedding_net ({type(model._embedding_net).__name__}) has no counterpart: convert a flow with the "
            "same transform and distribution without it, and give that the embedded contexts"
        )
    empty = like(model)
    base, to_data = base_of(model._distribution, empty)
    features, context_features = base.features, _context_features(model)
    to_noise: list[Layer] = []
    for place, transform, inverted in parts(model._transform, _opened):
        where = f"{place} ({type(transform).__name__})"
        try:
            made = layers_of(transform, features, where, empty)
        except ConversionError:
            if not wrap:
                raise
            made = [from_nflows(transform, features, context_features)]
        to_noise += [_turned(layer) for layer in reversed(made)] if inverted else made
    flow = Flow(base.to(empty), [*to_data, *reversed(to_noise)])
    for module in model.modules():  # what it keeps from earlier calls cannot be copied
        if isinstance(module, Linear):
            module.cache.invalidate()
    verify(flow, model, lambda model, x, context: model.log_prob(x, context))
    return flow.train(model.training)


def _opened(transform: Any) -> Any:
    if isinstance(transform, transforms.InverseTransform):
        return transform._transform
    return (
        list(transform._transforms)
        if type(transform) in (transforms.CompositeTransform, CompositeCDFTransform)
        else None
    )


def _turned(layer: Layer) -> Layer:
    return layer.layer if isinstance(layer, Inverse) else Inverse(layer)


def _context_features(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, ResidualNet) and module.context_features:
            return int(module.context_features)
        if isinstance(module, MADE) and hasattr(module, "context_layer"):
            return int(module.context_layer.in_features)
    return 0


__all__ = [
    "ConversionError",
    "NflowsDistribution",
    "NflowsLayer",
    "NflowsTransform",
    "convert",
    "from_nflows",
    "to_nflows",
]
