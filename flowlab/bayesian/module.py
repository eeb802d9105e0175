"""`BayesianModule`: a posterior over the weights of any network, as it is: no layer has to be rewritten."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from flowlab.arguments import floating, real, whole
from flowlab.bases import Gaussian
from flowlab.bayesian.weights import (
    NOISE,
    Posterior,
    Prior,
    aliases_of,
    covered_by,
    draw,
    layers_of,
    prior_scale,
    shifted,
    weights_of,
)
from flowlab.flow import Flow
from flowlab.layers.scalar.normal import LOG_SQRT_2PI
from flowlab.posteriors.target import about_dtype
from flowlab.training import History, fit
from flowlab.training.objectives import Drawing, Moment

LogLikelihood = Callable[[Tensor, Tensor], Tensor]


class BayesianModule(nn.Module):
    """A network whose weights have a posterior, trained by the evidence lower bound.

    The weights are one vector: that of the network's trained parameters, name after name. A chain of layers ending in
    every weight's own scale and shift approximates its posterior: at first a narrow Gaussian around the network's present weights, which
    may well come from an ordinary training run. The network itself is kept as a skeleton without memory, in evaluation
    mode; it is called through `torch.func.functional_call`. `state_dict` holds the posterior, the prior's scales and the network's
    buffers; to load one, build the same `BayesianModule` first.

    Rezende & Mohamed 2015, "Variational inference with normalizing flows", equation 15, is the bound; Blundell et al. 2015, "Weight
    uncertainty in neural networks", is "mean-field", equation 8 of it the bound for mini-batches.

    Args:
        module: The network. It is copied; parameters that require no gradient, and buffers, stay constants.
        prior: Standard deviation of the weights' normal prior around zero: one for all; by patterns of names such as `{"0.*": 1.0, "*": 0.3}`, of
            which the first that fits counts; or a function of a parameter's name and value. When None, 1/√fan_in for
            matrices and kernels and 1 for the rest (Neal 1996, "Bayesian learning for neural networks", section 2.1: each unit then varies as
            much as its inputs, however wide the layer).
        posterior: "flow": affine couplings, then as "full"; "full": a Gaussian with any covariance; "mean-field": a Gaussian with
            independent weights; or a function of a width that returns a `Flow` of as many features, whose layers take the couplings' place.
        over: The weights that the posterior covers jointly: "all", "last" for those of the last layer that has any, or a pattern of
            names; the rest is mean-field.
        rank: Flow and full covariance act in a learnt subspace of so many directions, and leave the others mean-field: for many weights.
        likelihood: "gaussian" (outputs and y of the same shape), "categorical" (outputs are logits (*, classes), y whole numbers), or
            a function of outputs (draws, n, …) and y (n, …) that returns each row's log-likelihood (draws, n) in nats.
        noise: Standard deviation of the Gaussian likelihood, in units of y: a fixed number, "learnt" for a single value that the bound
            decides, or "posterior" for one more weight, its logarithm, named "log_noise".
        start_scale: First standard deviation of every weight, in units of its prior's.
        start_noise: First standard deviation of the noise where it is not fixed, in units of y. From trained weights, start at the standard
            deviation of what they leave: with more noise than that the bound first forgets what they know.
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
        >>> again = BayesianModule(net, posterior="full")  # as before; the network's code is yours, so that no file can build it
        >>> again.load_state_dict(bnn.state_dict())
        <All keys matched successfully>
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
        if not callable(posterior) and posterior not in ("flow", "full", "mean-field"):
            raise ValueError(f'posterior must be "flow", "full", "mean-field" or a function, not {posterior!r}')
        if not callable(likelihood) and likelihood not in ("gaussian", "categorical"):
            raise ValueError(f'likelihood must be "gaussian", "categorical" or a function, not {likelihood!r}')
        if isinstance(noise, str) and noise not in ("learnt", "posterior"):
            raise ValueError(f'noise must be a positive number, "learnt" or "posterior", not {noise!r}')
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
        joint = [] if posterior == "mean-field" else covered_by(module, weights, over)
        # The skeleton stands in a tuple, where torch registers nothing.
        self._skeleton = (copy.deepcopy(module).requires_grad_(False).to("meta").train(False),)
        self._aliases = aliases_of(module)
        self._constants: dict[str, str] = {}
        for name, tensor in (*module.named_buffers(), *module.named_parameters()):
            if name not in weights:
                self._constants[name] = "constant_" + name.replace(".", "_")
                self.register_buffer(self._constants[name], tensor.detach().clone())

        groups = {over: joint} if joint else {}
        groups |= {name: [name] for name in weights if name not in joint}
        self.names = [name for group in groups.values() for name in group]
        self._shapes = [weights[name].shape for name in self.names]
        self._sizes = [shape.numel() for shape in self._shapes]
        self.features = sum(self._sizes)
        scales = {name: prior_scale(prior, name, weights[name]) for name in self.names}
        self.register_buffer("prior_scale", torch.cat([scales[name].flatten() for name in self.names]))
        self.labels = list(groups)
        blocks = []
        for label, group in groups.items():
            features = sum(weights[name].numel() for name in group)
            inner = layers_of(posterior, features, rank, generator) if label == over and joint else []
            at = torch.cat([weights[name].flatten() for name in group])
            sd = start_scale * torch.cat([scales[name].flatten() for name in group])
            blocks.append(Flow(Gaussian(features), [*inner, shifted(at, sd)]).to(at))
        self.blocks = nn.ModuleList(blocks)
        if likelihood == "gaussian" and noise == "learnt":
            self.log_noise = nn.Parameter(self.prior_scale.new_tensor(math.log(start_noise)))

    # ---- weights ------------------------------------------------------------------------------------------------

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), generator: torch.Generator | None = None, path: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draws of the weights (*shape, features) and their log-densities (*shape,) in nats, both differentiable.

        With `path`, densities are so through the draws alone (see `flowlab.StickingTheLanding`).
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
            name: part.reshape(*w.shape[:-1], *shape)
            for name, part, shape in zip(self.names, parts, self._shapes, strict=True)
        }

    def log_prior(self, w: Tensor) -> Tensor:
        """The prior's log-density (*batch,) of weights (*batch, features), in nats."""
        return self._log_prior(w).sum(-1)

    @torch.no_grad()
    def kl(self, n: int = 1000, generator: torch.Generator | None = None) -> dict[str, float]:
        """KL divergence of the posterior from the prior in nats, from n draws: of what `over` names jointly, and of each other weight by name.

        The terms add up to the whole, since the posterior's blocks are independent, and so are the prior's.
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
        """The network's outputs (draws, *batch, …) for inputs x (*batch, …) under each of the weights w (draws, features)."""
        dtype = self.prior_scale.dtype
        if not isinstance(x, Tensor) or x.is_floating_point():  # whole numbers are what embeddings take
            floating("x", x, dtype, "module")
        weights = self.unflatten(w)
        weights.pop(NOISE, None)
        constants = {name: getattr(self, buffer) for name, buffer in self._constants.items()}

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
        """Log-likelihood (draws, n) in nats of rows y (n, …), given inputs x (n, …), under each of the weights w (draws, features)."""
        return self._log_likelihood(w, self.outputs(w, x), y)

    def forward(self, x: Tensor, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Outputs (n, *batch, …) under n draws of the weights, differentiable in the posterior's parameters."""
        return self.outputs(self.rsample_and_log_prob((n,), generator)[0], x)

    @torch.no_grad()
    def predict(
        self, x: Tensor, n: int = 100, *, chunk_size: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Outputs (n, *batch, …) under n draws of the weights, all in one call, or `chunk_size` draws at a time where memory is short."""
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
        """Log of the predictive density (rows,) of each row y, in nats: the likelihood's mean over n draws of the weights."""
        w = self.rsample_and_log_prob((n,), generator)[0]
        return self._log_likelihood(w, self.outputs(w, x, chunk_size), y).logsumexp(0) - math.log(n)

    @torch.no_grad()
    def predictive_sample(
        self, x: Tensor, n: int = 1000, *, chunk_size: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of y (n, *rows, …), noise included, each with weights of its own.

        Raises:
            ValueError: The likelihood is a function, which nothing can be drawn from.
        """
        w = self.rsample_and_log_prob((n,), generator)[0]
        outputs = self.outputs(w, x, chunk_size)
        if self.likelihood == "gaussian":
            sd = self._log_noise(w, outputs).exp()
            return outputs + sd * torch.empty_like(outputs).normal_(generator=generator)
        if self.likelihood == "categorical":
            shares = outputs.softmax(-1).flatten(0, -2)
            return torch.multinomial(shares, 1, generator=generator).view(outputs.shape[:-1])
        raise ValueError("likelihood is a function: draw from it yourself, given the outputs of predict(x, n)")

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
        """The evidence lower bound of all data, a scalar in nats: unbiased, from a mini-batch and a few draws of the weights.

        Args:
            x: Inputs (n, …).
            y: Targets (n, …).
            rows: Rows of all data, of which x and y are a random part; n when None.
            draws: Draws of the weights.
            path: Whether gradients are path gradients, whose variance vanishes where the posterior is exact (`StickingTheLanding`).
            generator: Source of the draws.

        Example:
            >>> import torch
            >>> bnn = BayesianModule(torch.nn.Linear(3, 1), posterior="mean-field")
            >>> loss = -bnn.elbo(torch.randn(10, 3), torch.randn(10, 1), rows=1000)
            >>> loss.backward()
        """
        return self._bounds(x, y, rows, draws, path, generator).mean()

    def objective(self, x: Tensor, y: Tensor, *, batch_size: int = 256, draws: int = 8) -> "NegativeELBO":
        """What `flowlab.fit(bnn, steps=…, objective=…)` minimises: the negative bound in nats per row, from a fresh mini-batch in each step."""
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
        """`flowlab.fit` with this module's `objective`; a learning rate that falls by a cosine, neither decay nor average of weights.

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
            The history; its losses are in nats per row, of the whole bound.
        """
        chosen: dict[str, Any] = {"schedule": "cosine", "weight_decay": 0.0, "ema": 0.0, **options}
        objective = self.objective(x, y, batch_size=batch_size, draws=draws)
        return fit(self, objective=objective, steps=steps, learning_rate=learning_rate, generator=generator, **chosen)  # type: ignore[arg-type]

    def _bounds(
        self, x: Tensor, y: Tensor, rows: int | None, draws: int, path: bool, generator: torch.Generator | None
    ) -> Tensor:
        """The bound by each draw (draws,)."""
        _check_pair(x, y)
        draws = whole("draws", draws)
        rows = len(x) if rows is None else rows
        if rows < len(x):
            raise ValueError(f"rows is the number of all rows, at least the {len(x)} that were given, not {rows}")
        w, log_q = self.rsample_and_log_prob((draws,), generator, path)
        return self.log_prior(w) + rows / len(x) * self.log_likelihood(w, x, y).sum(-1) - log_q

    def _log_prior(self, w: Tensor, place: slice = slice(None)) -> Tensor:
        scale = self.prior_scale[place]
        return -(w / scale).square() / 2 - scale.log() - LOG_SQRT_2PI

    def _log_noise(self, w: Tensor, outputs: Tensor) -> Tensor:
        """The noise's logarithm, shaped to broadcast against outputs (draws, …)."""
        if self.noise == "posterior":
            return self.unflatten(w)[NOISE].reshape(-1, *[1] * (outputs.ndim - 1))
        return self.log_noise if self.noise == "learnt" else outputs.new_tensor(self.noise).log()

    def _log_likelihood(self, w: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
        expected = outputs.shape[1:-1] if self.likelihood == "categorical" else outputs.shape[1:]
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a torch.Tensor, not {type(y).__name__}; use torch.as_tensor")
        if callable(self.likelihood):
            value, expected = self.likelihood(outputs, y), outputs.shape[:2]
            if value.shape != expected:
                raise ValueError(f"likelihood must return shape {tuple(expected)}, not {tuple(value.shape)}")
            return value
        if y.shape != expected:
            raise ValueError(
                f"y must have shape {tuple(expected)} for outputs {tuple(outputs.shape[1:])}, not {tuple(y.shape)}"
            )
        if self.likelihood == "categorical":
            if y.is_floating_point() or y.is_complex():
                raise ValueError(f"y is {y.dtype}: classes are whole numbers, convert y by .long()")
            logits = outputs.movedim(-1, 1)
            value = -F.cross_entropy(logits, y.long().expand(len(outputs), *y.shape), reduction="none")
        else:
            log_sd = self._log_noise(w, outputs)
            value = -((y - outputs) * (-log_sd).exp()).square() / 2 - log_sd - LOG_SQRT_2PI
        return value.flatten(2).sum(-1) if value.ndim > 2 else value

    def extra_repr(self) -> str:
        return f"{type(self._skeleton[0]).__name__}, {self.features} weights, {self.likelihood}, noise={self.noise}"


@dataclass(eq=False)
class NegativeELBO(Drawing):
    """An objective for `flowlab.fit`: each draw's negative bound per row, from a mini-batch drawn with replacement.

    Attributes:
        x: Inputs (n, …), all of them.
        y: Targets (n, …).
        batch_size: Rows in each call.
        draws: Draws of the weights in each.
        generator: Source of both; that of the fit when None.
    """

    x: Tensor
    y: Tensor
    batch_size: int
    draws: int
    generator: torch.Generator | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        _check_pair(self.x, self.y)
        for name, value in (("x", self.x), ("y", self.y)):
            if not bool(torch.isfinite(value).all()):
                first = (~torch.isfinite(value)).nonzero()[0].tolist()
                raise ValueError(f"{name} holds a value that is not finite in row {first[0]}")
        self.x, self.y = self.x.detach(), self.y.detach()
        self.batch_size, self.draws = whole("batch_size", self.batch_size), whole("draws", self.draws)

    def loss(self, model: BayesianModule, x: Any, context: Any, at: Moment) -> Tensor:
        rows = len(self.x)
        x, y = self.x, self.y
        if self.batch_size < rows:
            which = torch.randint(rows, (self.batch_size,), generator=at.generator, device=x.device)
            x, y = x[which], y[which]
        return -model._bounds(x, y, rows, self.draws, True, at.generator) / rows


def _check_pair(x: Any, y: Any) -> None:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}; use torch.as_tensor")
        if not value.ndim:
            raise ValueError(f"{name} must have shape (n, …), not ()")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must have the same number of rows, at least one, not {len(x)} and {len(y)}")
