"""The modules of `torch.nn` that model files may hold, as parts of users' networks: their arguments, and their making.

A file calls them "torch.nn.Linear" and so on. Anything else that a network is made of, `flowlab.register` admits.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

from flowlab.hints import check_arguments, hints_of

_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode"),
)
_BATCH = ("num_features", "eps", "momentum", "affine", "track_running_stats")
# Every argument of a constructor that decides what the module computes is an attribute of the same name.
ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Sequential: ("modules", "names"),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.ConvTranspose1d: (*_CONVOLUTION, "output_padding"),
    nn.ConvTranspose2d: (*_CONVOLUTION, "output_padding"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.Embedding: ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.BatchNorm1d: _BATCH,
    nn.BatchNorm2d: _BATCH,
    nn.Identity: (),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Unflatten: ("dim", "unflattened_size"),
    nn.Dropout: ("p", "inplace"),
    nn.ReLU: ("inplace",),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.ELU: ("alpha", "inplace"),
    nn.SELU: ("inplace",),
    nn.GELU: ("approximate",),
    nn.SiLU: ("inplace",),
    nn.Mish: ("inplace",),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Softplus: ("beta", "threshold"),
}
CLASSES = {f"torch.nn.{cls.__name__}": cls for cls in ARGUMENTS}
# How far a module reaches is no side of a tensor that the file holds, and decides how large its outputs are.
REACH = ("stride", "padding", "output_padding", "dilation")
FARTHEST = 64
_HINTS: dict[type[nn.Module], dict[str, Any]] = {nn.Sequential: {"modules": list[nn.Module], "names": list[str]}}


def arguments_of(module: nn.Module) -> dict[str, Any]:
    """The arguments that make such a module.

    Raises:
        TypeError: Hooks change what it computes, as those of weight normalisation do.
    """
    if module._forward_pre_hooks or module._forward_hooks:
        raise TypeError(
            f"cannot save a {type(module).__name__} with hooks, which no file holds: remove weight normalisation and "
            "the like first, as by torch.nn.utils.remove_weight_norm"
        )
    if isinstance(module, nn.Sequential):
        return {"modules": list(module), "names": [name for name, _ in module.named_children()]}
    found = {name: getattr(module, name) for name in ARGUMENTS[type(module)]}
    if "bias" in found:  # a tensor, or none
        found["bias"] = module.bias is not None
    return found


def hints(cls: type[nn.Module]) -> dict[str, Any]:
    """The annotations of such a module's arguments."""
    return _HINTS.get(cls) or hints_of(cls.__init__)


def made(cls: type[nn.Module], args: Mapping[str, Any]) -> nn.Module:
    """Such a module, with weights of its own.

    Raises:
        ValueError: An argument is of the wrong type, or reaches too far.
    """
    check_arguments(cls.__name__, args, hints(cls))
    for name in REACH:
        value = args.get(name, 0)
        if any(type(one) is int and one > FARTHEST for one in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{cls.__name__}: {name} cannot be beyond {FARTHEST}")
    if cls is nn.Sequential:
        return nn.Sequential(OrderedDict(zip(args["names"], args["modules"], strict=True)))
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in args.items()})
