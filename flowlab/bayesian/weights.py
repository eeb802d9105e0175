"""The weights of a network that get a posterior: which they are, by name."""

import fnmatch
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

NOISE = "log_noise"  # the name of the noise's logarithm among the weights


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters of a network, detached copies by name.

    Raises:
        ValueError: There are none, they differ in type or device, or a layer makes rows depend on each other.
    """
    for name, layer in module.named_modules():
        batch = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        if batch or (isinstance(layer, _NormBase) and layer.track_running_stats):
            raise ValueError(
                f"module: layer {name!r} is a {type(layer).__name__}, which makes rows depend on each other or on "
                "running averages; take LayerNorm or GroupNorm"
            )
    weights = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("module has no parameter that requires a gradient")
    kinds = {(w.dtype, w.device) for w in weights.values()}
    if len(kinds) > 1 or not next(iter(kinds))[0].is_floating_point:
        raise ValueError(f"module's parameters must share a real floating-point type and a device, not {kinds}")
    if NOISE in weights:
        raise ValueError(f"module has a parameter named {NOISE!r}, which is the name of the noise here: rename it")
    return weights


def aliases_of(module: nn.Module) -> dict[str, str]:
    """Further names of shared parameters and buffers, each with the first name of the same tensor."""
    first: dict[int, str] = {}
    aliases = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]
    return aliases


def tie(module: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make each of the parameters and buffers that `aliases_of` found the one of the first name again.

    Raises:
        ValueError: There are none of these names, or they cannot be one tensor.
    """
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))
    for alias, name in aliases.items():
        one, other = named.get(alias), named.get(name)
        if one is None or other is None or type(one) is not type(other) or one.shape != other.shape:
            raise ValueError(f"{alias!r} and {name!r} cannot be one tensor of the network")
        path, _, leaf = alias.rpartition(".")
        setattr(module.get_submodule(path), leaf, other)


def covered_by(module: nn.Module, weights: Mapping[str, Tensor], over: str) -> list[str]:
    """The names of the weights that `over` stands for: all, those of the last layer, or those that match a pattern."""
    if over == "all":
        return list(weights)
    if over == "last":
        last = [name for name in weights if name != NOISE][-1].rpartition(".")[0]
        return [name for name in weights if name.rpartition(".")[0] == last and name != NOISE]
    found = [name for name in weights if fnmatch.fnmatchcase(name, over)]
    if not found:
        raise ValueError(f'over must be "all", "last" or a pattern of names, and {over!r} fits none of {list(weights)}')
    return found
