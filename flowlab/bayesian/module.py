"""`BayesianModule`: a posterior over the weights of any network, which need not be rewritten for it."""

import copy
import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flowlab import files
from flowlab.arguments import floating, real, whole
from flowlab.bases import Gaussian
from flowlab.bayesian.likelihoods import LogLikelihood, forgotten, log_prob_of_targets, sample_targets
from flowlab.bayesian.objective import NegativeELBO, elbo_by_draw
from flowlab.bayesian.posterior import Posterior, draw, layers_of, shift_and_scale
from flowlab.bayesian.prior import Prior, prior_scale
from flowlab.bayesian.weights import NOISE, aliases_of, covered_by, tie, weights_of
from flowlab.flow import Flow
from flowlab.hints import check_arguments
from flowlab.layers.scalar.normal import LOG_SQRT_2PI
from flowlab.posteriors.target import about_dtype
from flowlab.training import History, fit

# What a file says beside the network and the flows.
IN_FILES: dict[str, Any] = {
    "weights": list[str],
    "over": str | None,
    "aliases": dict[str, str],
    "likelihood": Literal["gaussian", "categorical"] | None,
    "noise": float | str,
    "log_noise": float | None,
    "noise_scale": float | None,
}


class BayesianModule(nn.Module):
    """A network with a variational posterior over its weights, trained by the evidence lower bound.

    The weights are one vector: the network's trainable parameters, name after name. A flow, whose last layer gives
    every weight its own scale and shift, approximates their posterior. At first it is a narrow Gaussian around the
    network's present weights, which may well come from an ordinary training run. The network itself is kept as a
    skeleton without memory, in evaluation mode, and is called through `torch.func.functional_call`. `save` writes a
    file that `flowlab.load` reads, if the network is made of modules that files may hold: those of
    `flowlab.torch_networks` (linear layers, convolutions, activations, …) and classes of yours that
    `flowlab.files.register` admits. A likelihood that is a function is not kept: set the attribute `likelihood` again.

    The bound is equation 15 of Rezende & Mohamed 2015, "Variational inference with normalizing flows"; "mean-field",
    and the bound for mini-batches (equation 8), are those of Blundell et al. 2015, "Weight uncertainty in neural
    networks".

    Args:
        module: The network. It is copied; parameters that require no gradient, and buffers, stay constants.
        prior: Standard deviation of the weights' normal prior around zero: one for all; by patterns of names such as
            `{"0.*": 1.0, "*": 0.3}`, of which the first that matches counts; or a function of a parameter's name and
            value. When None, 1/√fan_in for matrices and kernels and 1 for the rest (Neal 1996, "Bayesian learning for
            neural networks", section 2.1: each unit then varies as much as its inputs, however wide the layer).
        posterior: "flow": affine couplings, then as "full"; "full": a Gaussian with any covariance; "mean-field": a
            Gaussian with independent weights; or a function of a width that returns a `Flow` of as many features,
            whose layers take the couplings' place.
        over: The weights that the posterior covers jointly: "all", "last" for those of the last layer that has any, or
            a pattern of names; the rest is mean-field.
        rank: For many weights: flow and full covariance act in a learnt subspace of so many directions, and leave the
            others mean-field.
        likelihood: "gaussian" (outputs and y of the same shape), "categorical" (outputs are logits (*, classes), y
            whole numbers), or a function of outputs (draws, n, …) and y (n, …) that returns each row's log-likelihood
            (draws, n) in nats.
        noise: Standard deviation of the Gaussian likelihood, in units of y: a fixed number, "learnt" for a point
            estimate that maximises the bound, or "posterior" for one more weight, its logarithm, named "log_noise".
        start_scale: First standard deviation of every weight, in units of its prior's.
        start_noise: First standard deviation of the noise where it is not fixed, in units of y. From trained weights,
            start at the standard deviation of their residuals: with more noise than that, training first forgets what
            they have learnt.
        generator: Source of the couplings' initial weights.

    Attributes:
        names: The weights' names, in the vector's order.
        features: The number of weights.

    Raises:
        ValueError: An argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.linspace(-2, 2, 40).unsqueeze(1)
        >>> y = torch.sin(2 * x) + 0.1 * torch.randn(40, 1, generator=generator)
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> bnn = BayesianModule(net, posterior="full", generator=generator)
        >>> history = bnn.fit(x, y, steps=50, generator=generator, progress=False)
        >>> bnn.predict(x, 100, generator=generator).shape
        torch.Size([100, 40, 1])
        >>> bnn.predictive_log_prob(x, y, 100, generator=generator).shape
        torch.Size([40])
        >>> import tempfile, pathlib, flowlab
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "network.flow"
        >>> bnn.save(path)
        >>> flowlab.load(path).predict(x, 100).shape
        torch.Size([100, 40, 1])
    """

    prior_scale: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        prior: Prior = None,
        posterior: Posterior = "flow",
        over: str = "all",
        rank: int | None = None,
        likelihood: Literal["gaussian", "categorical"] | LogLikelihood = "gaussian",
        noise: float | Literal["learnt", "posterior"] = "learnt",
        start_scale: float = 0.05,
        start_noise: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_options(posterior, likelihood, noise)
        if not isinstance(noise, str):
            noise = real("noise", noise, 0)
        start_scale, start_noise = real("start_scale", start_scale, 0), real("start_noise", start_noise, 0)
        rank = None if rank is None else whole("rank", rank)
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
        weights = weights_of(module)
        if likelihood == "gaussian" and noise == "posterior":
            weights[NOISE] = next(iter(weights.values())).new_tensor(math.log(start_noise))
        self.likelihood, self.noise = likelihood, noise
        # In a tuple, since torch would register a module that is an attribute.
        self._skeleton = (copy.deepcopy(module).requires_grad_(False).to("meta").train(False),)
        self._aliases = aliases_of(module)
        self._constants: dict[str, str] = {}
        for name, tensor in (*module.named_buffers(), *module.named_parameters()):
            if name not in weights:
                self._constants[name] = "constant_" + name.replace(".", "_")
                self.register_buffer(self._constants[name], tensor.detach().clone())

        self._over = None if posterior == "mean-field" else over
        joint = [] if posterior == "mean-field" else covered_by(module, weights, over)
        groups = {over: joint} if joint else {}
        groups |= {name: [name] for name in weights if name not in joint}
        self.labels = list(groups)
        self.names = [name for group in groups.values() for name in group]
        self._shapes = [weights[name].shape for name in self.names]
        self._sizes = [shape.numel() for shape in self._shapes]
        self.features = sum(self._sizes)
        scales = {name: prior_scale(prior, name, weights[name]) for name in self.names}
        self.register_buffer("prior_scale", torch.cat([scales[name].flatten() for name in self.names]))
        blocks = []
        for label, group in groups.items():
            mean = torch.cat([weights[name].flatten() for name in group])
            sd = start_scale * torch.cat([scales[name].flatten() for name in group])
            inner = layers_of(posterior, len(mean), rank, generator) if label == over and joint else []
            blocks.append(Flow(Gaussian(len(mean)), [*inner, shift_and_scale(mean, sd)]).to(mean))
        self.blocks = nn.ModuleList(blocks)
        if self._learns_noise:
            self.log_noise = nn.Parameter(self.prior_scale.new_tensor(math.log(start_noise)))

    # ---- weights ------------------------------------------------------------------------------------------------

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), generator: torch.Generator | None = None, path: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draws of the weights (*shape, features) and their log-densities (*shape,) in nats, both differentiable.

        With `path`, gradients of the log-densities go through the draws alone (see `flowlab.StickingTheLanding`).
        """
        parts = [draw(block, shape, generator, path) for block in self.blocks]  # type: ignore[arg-type]
        return torch.cat([w for w, _ in parts], -1), torch.stack([log_q for _, log_q in parts]).sum(0)

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draws of the weights by name, each (*shape, *own shape), without a gradient."""
        return self.unflatten(self.rsample_and_log_prob(shape, generator)[0])

    def unflatten(self, w: Tensor) -> dict[str, Tensor]:
        """Vectors of weights (*batch, features) as tensors by name, each (*batch, *own shape)."""
        parts = w.split(self._sizes, -1)
        return {
            name: part.reshape((*w.shape[:-1], *shape))
            for name, part, shape in zip(self.names, parts, self._shapes, strict=True)
        }

    def log_prior(self, w: Tensor) -> Tensor:
        """The prior's log-density (*batch,) of weights (*batch, features), in nats."""
        return self._log_prior(w).sum(-1)

    @torch.no_grad()
    def kl(self, n: int = 1000, generator: torch.Generator | None = None) -> dict[str, float]:
        """KL(posterior, prior) in nats, from n draws, as its terms: one of what `over` names, one of each other weight.

        The terms add up to the whole, since posterior and prior both factorise over them.
        """
        terms: dict[str, float] = {}
        start = 0
        for label, block in zip(self.labels, self.blocks, strict=True):
            w, log_q = block.rsample_and_log_prob((n,), generator=generator)  # type: ignore[operator]
            place = slice(start, start + w.shape[-1])
            terms[label] = float((log_q - self._log_prior(w, place).sum(-1)).mean())
            start = place.stop
        return terms

    # ---- outputs ------------------------------------------------------------------------------------------------

    def outputs(self, w: Tensor, x: Tensor, chunk_size: int | None = None) -> Tensor:
        """The network's outputs (draws, *batch, …) for inputs x (*batch, …) under weights w (draws, features)."""
        dtype = self.prior_scale.dtype
        if not isinstance(x, Tensor) or x.is_floating_point():  # whole numbers are what embeddings take
            floating("x", x, dtype, "module")
        weights = self.unflatten(w)
        weights.pop(NOISE, None)
        constants = {name: self.get_buffer(buffer) for name, buffer in self._constants.items()}

        def one(own: dict[str, Tensor]) -> Tensor:
            tensors = {**constants, **own}
            tensors |= {alias: tensors[name] for alias, name in self._aliases.items()}
            return functional_call(self._skeleton[0], tensors, (x,), tie_weights=False)

        try:
            return vmap(one, chunk_size=chunk_size)(weights)
        except RuntimeError as error:
            if about_dtype(error):
                floating("x", x, dtype, "module")
            error.add_note(f"flowlab had called the network with x of shape {tuple(x.shape)}")
            raise

    def log_likelihood(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Log-likelihood (draws, n) in nats of y (n, …), given x (n, …), under weights w (draws, features)."""
        return self._log_likelihood(w, self.outputs(w, x), y)

    def forward(self, x: Tensor, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Outputs (n, *batch, …) under n draws of the weights, differentiable in the posterior's parameters."""
        return self.outputs(self.rsample_and_log_prob((n,), generator)[0], x)

    @torch.no_grad()
    def predict(
        self, x: Tensor, n: int = 100, *, chunk_size: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Outputs (n, *batch, …) under n draws of the weights, `chunk_size` at a time where memory is short."""
        return self.outputs(self.rsample_and_log_prob((n,), generator)[0], x, chunk_size)

    @torch.no_grad()
    def predictive_log_prob(
        self,
        x: Tensor,
        y: Tensor,
        n: int = 1000,
        *,
        chunk_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log posterior predictive density (rows,) of each target y, in nats: the likelihood's mean over n draws."""
        w = self.rsample_and_log_prob((n,), generator)[0]
        return self._log_likelihood(w, self.outputs(w, x, chunk_size), y).logsumexp(0) - math.log(n)

    @torch.no_grad()
    def predictive_sample(
        self, x: Tensor, n: int = 1000, *, chunk_size: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of y (n, *rows, …) from the posterior predictive, with noise, each with its own draw of the weights.

        Raises:
            ValueError: The likelihood is a function, which cannot be drawn from.
        """
        w = self.rsample_and_log_prob((n,), generator)[0]
        outputs = self.outputs(w, x, chunk_size)
        return sample_targets(self.likelihood, outputs, self._log_noise(w, outputs), generator)

    # ---- training -----------------------------------------------------------------------------------------------

    def elbo(
        self,
        x: Tensor,
        y: Tensor,
        *,
        rows: int | None = None,
        draws: int = 8,
        path: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """An unbiased estimate of the evidence lower bound of all data, in nats, from a mini-batch and a few draws.

        Args:
            x: Inputs (n, …).
            y: Targets (n, …).
            rows: Rows of all data, of which x and y are a random sample; n when None.
            draws: Draws of the weights.
            path: Whether gradients are path gradients, whose variance vanishes where the posterior is exact
                (`StickingTheLanding`).
            generator: Source of the draws.

        Example:
            >>> import torch
            >>> bnn = BayesianModule(torch.nn.Linear(3, 1), posterior="mean-field")
            >>> loss = -bnn.elbo(torch.randn(10, 3), torch.randn(10, 1), rows=1000)
            >>> loss.backward()
        """
        return elbo_by_draw(self, x, y, rows, draws, path, generator).mean()

    def objective(self, x: Tensor, y: Tensor, *, batch_size: int = 256, draws: int = 8) -> NegativeELBO:
        """The objective for `flowlab.fit(bnn, steps=…, objective=…)`: the negative bound per row, from mini-batches."""
        return NegativeELBO(x, y, batch_size, draws)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        steps: int = 2000,
        batch_size: int = 256,
        draws: int = 8,
        learning_rate: float = 1e-2,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> History:
        """`flowlab.fit` with this module's `objective`, a cosine schedule, no weight decay and no averaging of weights.

        Args:
            x: Inputs (n, …).
            y: Targets (n, …).
            steps: Steps.
            batch_size: Rows in each.
            draws: Draws of the weights in each.
            learning_rate: Peak learning rate.
            generator: Source of mini-batches and draws.
            **options: Of `flowlab.fit`.

        Returns:
            The history; its losses are the whole negative bound in nats per row.
        """
        chosen: dict[str, Any] = {"schedule": "cosine", "weight_decay": 0.0, "ema": 0.0, **options}
        chosen |= {"steps": steps, "learning_rate": learning_rate, "generator": generator}
        objective = self.objective(x, y, batch_size=batch_size, draws=draws)
        return fit(self, objective=objective, **chosen)  # type: ignore[arg-type]

    # ---- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior and its network to a file that `flowlab.load` reads; `flowlab.save` has the errors."""
        files.save(self, path)

    def _to_file(self) -> tuple[dict[str, Any], nn.Module]:
        """The network, with the scales of the prior for its weights, and the flows of the posterior."""
        tensors = self.unflatten(self.prior_scale)
        header = {
            "kind": "BayesianModule",
            "weights": [name for name in self.names if name != NOISE],
            "over": self._over,
            "aliases": self._aliases,
            "likelihood": None if callable(self.likelihood) else self.likelihood,
            "noise": self.noise,
            "log_noise": float(self.log_noise.detach()) if self._learns_noise else None,
            "noise_scale": float(tensors.pop(NOISE)) if NOISE in tensors else None,
        }
        tensors |= {name: self.get_buffer(own) for name, own in self._constants.items()}
        tensors |= {alias: tensors[name] for alias, name in self._aliases.items()}
        network = copy.deepcopy(self._skeleton[0])
        network.load_state_dict({name: tensors[name] for name in network.state_dict()}, assign=True)
        return header, nn.Sequential(network, *self.blocks)

    @classmethod
    def _from_file(cls, header: dict[str, Any], module: Any) -> "BayesianModule":
        check_arguments("BayesianModule", {name: header[name] for name in IN_FILES}, IN_FILES)
        parts: list[Any] = list(module) if isinstance(module, nn.Sequential) else []
        if not parts or not all(isinstance(part, Flow) for part in parts[1:]):
            raise ValueError("a BayesianModule is a network and flows of its weights")
        network, *blocks = parts
        tie(network, header["aliases"])
        trained = set(header["weights"])
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trained)
        model = cls(
            network,
            prior=lambda name, weight: header["noise_scale"] if name == NOISE else weight,
            posterior="mean-field" if header["over"] is None else lambda width: Flow(Gaussian(width), []),
            over=header["over"] or "all",
            likelihood=header["likelihood"] or forgotten,
            noise=header["noise"],
        )
        widths = [block.features for block in model.blocks]
        if set(model.names) - {NOISE} != trained or widths != [block.features for block in blocks]:
            raise ValueError("the posterior is not one of the network's weights")
        if any(block.context_features for block in blocks):
            raise ValueError("the posterior of a network's weights takes no context")
        model.blocks = nn.ModuleList(blocks)
        if model._learns_noise:
            with torch.no_grad():
                model.log_noise.fill_(header["log_noise"])
        return model.train(False)

    # ---- inside -------------------------------------------------------------------------------------------------

    @property
    def _learns_noise(self) -> bool:
        return self.likelihood == "gaussian" and self.noise == "learnt"

    def _log_prior(self, w: Tensor, place: slice = slice(None)) -> Tensor:
        """The prior's log-density of each weight, (*batch, weights) as w, which are those at a place of the vector."""
        scale = self.prior_scale[place]
        return -(w / scale).square() / 2 - scale.log() - LOG_SQRT_2PI

    def _log_noise(self, w: Tensor, outputs: Tensor) -> Tensor | None:
        """A Gaussian likelihood's log standard deviation, which broadcasts against outputs (draws, …); else None."""
        if self.likelihood != "gaussian":
            return None
        if self.noise == "posterior":
            return self.unflatten(w)[NOISE].reshape(-1, *[1] * (outputs.ndim - 1))
        return self.log_noise if self.noise == "learnt" else outputs.new_tensor(self.noise).log()

    def _log_likelihood(self, w: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        return log_prob_of_targets(self.likelihood, outputs, y, self._log_noise(w, outputs))

    def extra_repr(self) -> str:
        return f"{type(self._skeleton[0]).__name__}, {self.features} weights, {self.likelihood}, noise={self.noise}"


def _check_options(posterior: Any, likelihood: Any, noise: Any) -> None:
    """Raise a ValueError that names the choice that there is not."""
    if not callable(posterior) and posterior not in ("flow", "full", "mean-field"):
        raise ValueError(f'posterior must be "flow", "full", "mean-field" or a function, not {posterior!r}')
    if not callable(likelihood) and likelihood not in ("gaussian", "categorical"):
        raise ValueError(f'likelihood must be "gaussian", "categorical" or a function, not {likelihood!r}')
    if isinstance(noise, str) and noise not in ("learnt", "posterior"):
        raise ValueError(f'noise must be a positive number, "learnt" or "posterior", not {noise!r}')
