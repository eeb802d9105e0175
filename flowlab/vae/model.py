"""`VAE`: a variational autoencoder whose posterior is a flow, and whose prior may be one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlab.arguments import floating, is_whole, real, sizes, whole
from flowlab.bases import Gaussian
from flowlab.flow import Flow, dtype_of
from flowlab.mixture import FlowMixture
from flowlab.training import History, fit
from flowlab.training.objectives import Drawing, Moment
from flowlab.vae.likelihoods import Bernoulli, Categorical, Likelihood, Normal

AT_ONCE = 16_384  # draws of z that a decoder gets at once where no gradient is recorded
WIDEST = 30.0  # nats by which a posterior's log-sd may differ from zero


class VAE(nn.Module):
    """A variational autoencoder: z from a prior, x from a likelihood around decoder(z), and a flow as the posterior of z given x.

    The posterior draws noise ε from N(0, I), u from the flow's layers, given a context, and returns z = mean + exp(log-sd) · u. Mean, log-sd
    and context are what the encoder makes of x. A new flow changes nothing, so that at first the posterior is that of the diagonal
    Gaussian VAE; training draws from it and never inverts it. Kingma & Welling 2014, "Auto-encoding variational Bayes"; Rezende
    & Mohamed 2015, "Variational inference with normalizing flows", equation 15, is the bound.

    Rows are (*batch, features), also those of images; an encoder begins with `nn.Unflatten` where it wants another shape.
    `flowlab.fit(vae, x, objective=vae.objective())` trains, and so does `fit`. Encoder and decoder are code of yours, from which no file could
    build them again: keep the `state_dict`, and load it into a VAE built alike. `flow` and `prior` alone are flows that `flowlab.save` takes.

    Args:
        encoder: From x (n, features) to (n, 2 · latent + context_features): the posterior's means, the logarithms of its scales, then
            the flow's context if it takes one.
        decoder: From z (n, latent) to what the likelihood wants: (n, features) logits or means; twice that with noise="decoder";
            (n, features · classes) logits. Its width decides `features`.
        flow: The posterior's flow, of `latent` features, whose fast direction is sampling: presets planar, radial, sylvester, iaf, real_nvp,
            nsf. A whole number of latent features stands for a flow without layers, which gives the diagonal Gaussian.
        prior: A flow of `latent` features, trained along, whose fast direction is density: presets maf, real_nvp, nsf. N(0, I) when None.
        likelihood: "bernoulli", "gaussian", "categorical", or a `Likelihood` of your own.
        noise: Standard deviation of the Gaussian likelihood: a number, "learnt" for a single one, or "decoder".
        classes: Number of classes of the categorical likelihood, the same in every feature.

    Attributes:
        features: Width of a row.
        latent: Width of z.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Widths do not fit, or a flow is slow in the direction that training takes; the message names the argument.

    Example:
        >>> import torch, flowlab
        >>> from torch import nn
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = (torch.rand(200, 6, generator=generator) < 0.3).float()
        >>> encoder = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 2 * 2 + 3))
        >>> decoder = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 6))
        >>> flow = flowlab.presets.iaf(2, context_features=3, layers=2, hidden=(16,), generator=generator)
        >>> vae = VAE(encoder, decoder, flow)
        >>> history = vae.fit(x, epochs=10, generator=generator, progress=False)
        >>> vae.elbo(x).shape, vae.log_prob(x, k=50).shape, vae.sample((3,)).shape
        (torch.Size([200]), torch.Size([200]), torch.Size([3, 6]))
        >>> kept = vae.state_dict()  # a file: torch.save(kept, path); later torch.load(path, weights_only=True)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        flow: Flow | int,
        *,
        prior: Flow | FlowMixture | None = None,
        likelihood: Literal["bernoulli", "gaussian", "categorical"] | Likelihood = "bernoulli",
        noise: float | Literal["learnt", "decoder"] = "learnt",
        classes: int = 0,
    ) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, not {type(module).__name__}")
        if is_whole(flow) and flow >= 1:  # type: ignore[operator]
            flow = Flow(Gaussian(flow), [])  # type: ignore[arg-type]
        if not isinstance(flow, Flow):
            raise TypeError(f"flow must be a Flow, or the number of latent features for none, not {flow!r}")
        if flow.fast not in ("both", "sampling"):
            raise ValueError(
                f"flow draws slowly (fast is {flow.fast!r}), and training draws from it: take presets.iaf in place of maf, real_nvp or nsf"
            )
        self.encoder, self.decoder, self.flow = encoder, decoder, flow
        self.latent: int = flow.features
        self.prior: Flow | FlowMixture = _prior(prior, self.latent)
        self.likelihood = _likelihood(likelihood, noise, classes)
        self.features: int = self.likelihood.features(_width(decoder, self.latent))
        self.context_features = 0  # what `flowlab.fit` asks for: rows have no context besides themselves

    # ---- the bound ------------------------------------------------------------------------------------------------

    def elbo(
        self,
        x: Tensor,
        *,
        draws: int = 1,
        beta: float = 1.0,
        free_bits: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The evidence lower bound of each row x (*batch, features): (*batch,), nats, differentiable in everything.

        Args:
            x: Rows.
            draws: Draws of z for each row, over which the bound is averaged.
            beta: Weight of the KL term, for a warm-up (Bowman et al. 2016, "Generating sentences from a continuous space", section 3.1).
            free_bits: Nats of KL, of all latent features together and on the batch's average, that cost as much as none would: below,
                the KL term counts as this constant (Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow",
                equation 15, with one group). The result is then no longer the bound, but what is to be maximised.
            generator: Source of the draws.

        Raises:
            ValueError: x does not fit, or the encoder or decoder returns the wrong width.
        """
        draws = whole("draws", draws)
        log_likelihood, log_ratio = self._terms(self._check(x), draws, generator)
        kl = log_ratio.mean(0)
        if free_bits:
            kl = torch.where(kl.mean() > free_bits, kl, free_bits)
        return log_likelihood.mean(0) - beta * kl

    def forward(self, x: Tensor) -> Tensor:
        """The same as `elbo`."""
        return self.elbo(x)

    def log_prob(
        self, x: Tensor, k: int = 500, *, chunk_size: int = AT_ONCE, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-likelihood of rows x (*batch, features) by importance sampling: (*batch,), nats, without a gradient.

        In expectation a lower bound, which rises to log p(x) with k. Burda et al. 2016, "Importance weighted autoencoders", equation 8.

        Args:
            x: Rows.
            k: Draws of z for each row.
            chunk_size: Draws at once, which bounds the memory; the result depends on it only by which draws are taken.
            generator: Source of the draws.
        """
        return self.log_prob_and_error(x, k, chunk_size=chunk_size, generator=generator)[0]

    @torch.no_grad()
    def log_prob_and_error(
        self, x: Tensor, k: int = 500, *, chunk_size: int = AT_ONCE, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """`log_prob` and its Monte Carlo standard error by the delta method, both (*batch,), nats.

        Where errors are much above 0.1, take more draws: the bound is then loose as well.
        """
        if not is_whole(k) or k < 1:
            raise ValueError(
                f"k must be a positive whole number of draws, not {k!r}; flowlab.fit needs objective=vae.objective()"
            )
        rows = self._check(x).reshape(-1, self.features)
        found = []
        for some in rows.split(max(chunk_size // k, 1)):
            parts = [self.log_weights(some, n, generator) for n in _portions(k, chunk_size)]
            log_w = torch.cat(parts).double()
            total = log_w.logsumexp(0)
            relative = (2 * (log_w - total)).exp().sum(
                0
            ) - 1 / k  # the weights' variance over their mean's square, over k
            found.append(torch.stack([total - math.log(k), relative.clamp(min=0).sqrt()]))
        log_p, error = torch.cat(found, 1).to(x.dtype).unbind(0)
        return log_p.view(x.shape[:-1]), error.view(x.shape[:-1])

    def log_weights(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """Log importance weights log p(x, z) − log q(z | x) of k draws of z: (k, *batch), nats, differentiable."""
        log_likelihood, log_ratio = self._terms(self._check(x), k, generator)
        return log_likelihood - log_ratio

    # ---- latent space and back ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draws of z (*shape, *batch, latent) from the posteriors of rows x (*batch, features), without a gradient."""
        return self.rsample_and_log_prob(x, shape, generator)[0]

    def rsample_and_log_prob(
        self, x: Tensor, shape: int | Sequence[int] = (), generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws of z (*shape, *batch, latent) given rows x (*batch, features), and their log q(z | x) (*shape, *batch), nats, both differentiable."""
        mean, log_sd, context = self._encoded(self._check(x))
        batch = () if context is not None else mean.shape[:-1]
        u, log_q = self.flow.rsample_and_log_prob((*sizes(shape), *batch), context, generator)
        return mean + log_sd.exp() * u, log_q - log_sd.sum(-1)

    def posterior_log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """Log q(z | x) (*batch,) in nats at any z (*batch, latent), given rows x (*batch, features); batches broadcast.

        It takes the flow's density direction, which for planar and autoregressive ones is slow. Training does without.
        """
        mean, log_sd, context = self._encoded(self._check(x))
        return self.flow.log_prob((z - mean) * (-log_sd).exp(), context) - log_sd.sum(-1)

    def decode(self, z: Tensor) -> Tensor:
        """The likelihood's mean (*batch, features), given z (*batch, latent)."""
        return self.likelihood.mean(self._decoded(z))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Rows x (*batch, features) as the likelihood's mean, averaged over draws of their posteriors: of x's shape."""
        return self.decode(self.encode(x, (draws,), generator)).mean(0)

    @torch.no_grad()
    def sample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """New rows (*shape, features): z from the prior, x from the likelihood."""
        z = self.prior.sample(shape, generator=generator)
        return self.likelihood.sample(self._decoded(z), generator)

    # ---- training -------------------------------------------------------------------------------------------------

    def objective(self, *, draws: int = 1, kl_warmup: int = 0, free_bits: float = 0.0) -> "NegativeBound":
        """What `flowlab.fit(vae, x, objective=…)` minimises: each row's negative bound; see `fit`."""
        return NegativeBound(draws, kl_warmup, free_bits)

    def fit(self, x: Tensor, *, draws: int = 1, kl_warmup: int = 0, free_bits: float = 0.0, **options: Any) -> History:
        """`flowlab.fit` with this model's `objective`.

        Args:
            x: Rows (n, features).
            draws: Draws of z for each row in a step.
            kl_warmup: Steps over which the KL term's weight rises from zero to one.
            free_bits: Nats of KL without a price (see `elbo`).
            **options: Of `flowlab.fit`: validation, epochs, learning_rate, generator, …

        Returns:
            The history; its validation losses are negative bounds in nats per row, without warm-up and free bits.
        """
        objective = self.objective(draws=draws, kl_warmup=kl_warmup, free_bits=free_bits)
        return fit(self, self._check(x), objective=objective, **options)  # type: ignore[arg-type]

    def initialise(self, x: Tensor) -> None:
        """Look whether rows x (n, features) fit the likelihood; `flowlab.fit` calls it before training.

        Raises:
            ValueError: They do not; the message names row and column.
        """
        bad = ~self.likelihood.fits(self._check(x))
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"x has {float(x[row, column]):.6g} in row {row}, column {column}; "
                f"likelihood {type(self.likelihood).__name__} takes {self.likelihood.takes}"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of rows."""
        return self.flow.dtype

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _terms(self, x: Tensor, draws: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Log p(x | z), and log q(z | x) − log p(z), of draws of z: each (draws, *batch)."""
        z, log_q = self.rsample_and_log_prob(x, (draws,), generator)
        return self.likelihood.log_prob(self._decoded(z), x), log_q - self.prior.log_prob(z)

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean, log-sd, and the flow's context, each (*batch, …)."""
        widths = [self.latent, self.latent, self.flow.context_features]
        outputs = self.encoder(x.reshape(-1, self.features))
        if outputs.ndim != 2 or outputs.shape[1] != sum(widths):
            raise ValueError(
                f"encoder must return (n, {sum(widths)}): {self.latent} means, {self.latent} log-sds and {widths[2]} numbers of "
                f"context for the flow; not {tuple(outputs.shape)}"
            )
        mean, log_sd, context = outputs.view(*x.shape[:-1], sum(widths)).split(widths, -1)
        return mean, log_sd.clamp(-WIDEST, WIDEST), context if widths[2] else None

    def _decoded(self, z: Tensor) -> Tensor:
        if not isinstance(z, Tensor) or z.ndim == 0 or z.shape[-1] != self.latent:
            found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"z must be a tensor of shape (*batch, {self.latent}), not {found}")
        outputs = self.decoder(z.reshape(-1, self.latent))
        return outputs.view(*z.shape[:-1], outputs.shape[-1])

    def _check(self, x: Tensor) -> Tensor:
        floating("x", x, self.dtype, "VAE")
        if x.ndim == 0 or x.shape[-1] != self.features:
            raise ValueError(f"x must have shape (*batch, {self.features}), not {tuple(x.shape)}")
        return x

    def extra_repr(self) -> str:
        return f"{self.features} features, {self.latent} latent"


@dataclass(eq=False)
class NegativeBound(Drawing):
    """An objective for `flowlab.fit`: each row's negative bound, nats.

    In evaluation mode it is the bound itself, without warm-up and free bits, by the same draws every time: what differs between
    two evaluations is the model.

    Attributes:
        draws: Draws of z for each row.
        kl_warmup: Steps over which the KL term's weight rises from zero to one.
        free_bits: Nats of KL without a price.
        generator: Source of the draws in training; that of the fit when None.
        taken: Training steps outside of a fit so far.
    """

    draws: int = 1
    kl_warmup: int = 0
    free_bits: float = 0.0
    generator: torch.Generator | None = field(default=None, repr=False)
    taken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.draws, self.kl_warmup = whole("draws", self.draws), whole("kl_warmup", self.kl_warmup, 0)
        if real("free_bits", self.free_bits) < 0:
            raise ValueError(f"free_bits must not be negative, as {self.free_bits} is")

    def loss(self, model: VAE, x: Tensor, context: Any, at: Moment) -> Tensor:
        if not model.training:
            fixed = torch.Generator(x.device).manual_seed(0)
            return -model.elbo(x, draws=self.draws, generator=fixed)
        beta = min(at.step / self.kl_warmup, 1.0) if self.kl_warmup else 1.0
        return -model.elbo(x, draws=self.draws, beta=beta, free_bits=self.free_bits, generator=at.generator)


def _prior(prior: Flow | FlowMixture | None, latent: int) -> Flow | FlowMixture:
    if prior is None:
        return Flow(Gaussian(latent), [])
    if not isinstance(prior, Flow | FlowMixture):
        raise TypeError(f"prior must be a Flow or a FlowMixture, not {type(prior).__name__}")
    if prior.features != latent or prior.context_features:
        raise ValueError(
            f"prior must have {latent} features, as flow has, and no context, not {prior.features} and {prior.context_features}"
        )
    if prior.fast not in ("both", "density"):
        raise ValueError(
            "prior's density is slow, and training needs it: take presets.maf in place of iaf, real_nvp or nsf"
        )
    return prior


def _likelihood(likelihood: Any, noise: Any, classes: int) -> Likelihood:
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood == "bernoulli":
        return Bernoulli()
    if likelihood == "gaussian":
        return Normal(noise)
    if likelihood == "categorical":
        return Categorical(classes)
    raise ValueError(f'likelihood must be "bernoulli", "gaussian", "categorical" or a Likelihood, not {likelihood!r}')


@torch.no_grad()
def _width(decoder: nn.Module, latent: int) -> int:
    """Width of a decoder's outputs, by a trial in evaluation mode."""
    modes = [(module, module.training) for module in decoder.modules()]
    place = next(decoder.parameters(), torch.zeros(()))
    z = torch.zeros(2, latent, dtype=dtype_of(decoder) or place.dtype, device=place.device)
    decoder.train(False)
    try:
        outputs = decoder(z)
    except RuntimeError as error:
        raise ValueError(
            f"decoder does not take z of shape (2, {latent}), {latent} latent features: {error}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"decoder must return (n, width) for z (n, {latent}), not {shape} for n = 2; end it with Flatten"
        )
    return outputs.shape[1]


def _portions(total: int, most: int) -> list[int]:
    return [most] * (total // most) + ([total % most] if total % most else [])
