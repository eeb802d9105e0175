"""`VAE`: a variational autoencoder whose posterior is a flow, and whose prior may be one."""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlab import files
from flowlab.arguments import floating, is_whole, sizes, whole
from flowlab.bases import Gaussian
from flowlab.flow import Flow, dtype_of
from flowlab.mixture import FlowMixture
from flowlab.training import History, fit
from flowlab.vae.likelihoods import Likelihood, likelihood_of
from flowlab.vae.objective import NegativeBound

AT_ONCE = 16_384  # draws of z that a decoder gets at once where no gradient is recorded
WIDEST = 30.0  # nats by which a posterior's log-sd may differ from zero


class VAE(nn.Module):
    """A variational autoencoder: a prior of z, a likelihood of x given decoder(z), a flow as the posterior q(z | x).

    A draw of the posterior is z = mean + exp(log-sd) · u, where the flow draws u given a context; the encoder returns
    mean, log-sd and context for each x. A new flow is the identity, so that at first the posterior is that of the
    diagonal Gaussian VAE; training draws from it and never inverts it. Kingma & Welling 2014, "Auto-encoding
    variational Bayes"; the bound is equation 15 of Rezende & Mohamed 2015, "Variational inference with normalizing
    flows".

    Rows are (*batch, features), also those of images; an encoder begins with `nn.Unflatten` where it wants another
    shape. `fit` trains, and so does `flowlab.fit(vae, x, objective=vae.objective())`. `save` writes a file that
    `flowlab.load` reads, if encoder, decoder and likelihood are made of modules that files may hold: those of
    `flowlab.torch_networks` (linear layers, convolutions, activations, …) and classes of yours that
    `flowlab.files.register` admits.

    Args:
        encoder: From x (n, features) to (n, 2 · latent + context_features): means, logarithms of scales, then the
            flow's context if it takes one.
        decoder: From z (n, latent) to the likelihood's parameters: (n, features) logits or means; twice that with
            noise="decoder"; (n, features · classes) logits. Its width decides `features`.
        flow: The posterior's flow, of `latent` features, whose fast direction is sampling: presets planar, radial,
            sylvester, iaf, real_nvp, nsf. A whole number of latent features stands for a flow without layers, which
            gives the diagonal Gaussian.
        prior: A flow of `latent` features, trained along, whose fast direction is density: presets maf, real_nvp, nsf.
            N(0, I) when None.
        likelihood: "bernoulli", "gaussian", "categorical", or a `Likelihood` of your own.
        noise: Standard deviation of the Gaussian likelihood: a number, "learnt" for a single one, or "decoder".
        classes: Number of classes of the categorical likelihood, the same in every feature.
        features: Width of a row; what the decoder's outputs ask for, from a call with zeros, when None.

    Attributes:
        latent: Width of z.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: Widths do not fit, or a flow is slow in the direction that training takes; the message names the
            argument.

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
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "vae.flow"
        >>> vae.save(path)
        >>> torch.equal(flowlab.load(path).decode(torch.zeros(2)), vae.decode(torch.zeros(2)))
        True
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
        features: int | None = None,
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
                f"flow draws slowly (fast is {flow.fast!r}), and training draws from it: "
                "take presets.iaf in place of maf, real_nvp or nsf"
            )
        self.encoder, self.decoder, self.flow = encoder, decoder, flow
        self.latent: int = flow.features
        self.prior: Flow | FlowMixture = _checked_prior(prior, self.latent)
        self.likelihood = likelihood_of(likelihood, noise, classes)
        self.noise, self.classes = noise, classes
        width = _decoder_width(decoder, self.latent) if features is None else None
        self.features: int = whole("features", features) if width is None else self.likelihood.features(width)
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
            beta: Weight of the KL term, for a warm-up (Bowman et al. 2016, "Generating sentences from a continuous
                space", section 3.1).
            free_bits: Nats of KL, summed over latent features and averaged over the batch, below which the KL term
                counts as this constant (Kingma et al. 2016, "Improving variational inference with inverse
                autoregressive flow", equation 15, with one group). The result is then not the bound, but the objective
                to be maximised.
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

        In expectation a lower bound, which rises to log p(x) with k: Burda et al. 2016, "Importance weighted
        autoencoders", equation 8.

        Args:
            x: Rows.
            k: Draws of z for each row.
            chunk_size: Draws at once, which bounds the memory; which draws are taken depends on it.
            generator: Source of the draws.
        """
        return self.log_prob_and_error(x, k, chunk_size=chunk_size, generator=generator)[0]

    @torch.no_grad()
    def log_prob_and_error(
        self, x: Tensor, k: int = 500, *, chunk_size: int = AT_ONCE, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """`log_prob` and its Monte Carlo standard error by the delta method, both (*batch,), nats.

        Where errors are much above 0.1, the bound is loose as well: take more draws.
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
            # The weights' variance over their squared mean, over k.
            relative = (2 * (log_w - total)).exp().sum(0) - 1 / k
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
        """Draws of z (*shape, *batch, latent) given x (*batch, features), and log q(z | x) (*shape, *batch) in nats.

        Both are differentiable.
        """
        mean, log_sd, context = self._encoded(self._check(x))
        batch = () if context is not None else mean.shape[:-1]
        u, log_q = self.flow.rsample_and_log_prob((*sizes(shape), *batch), context, generator)
        return mean + log_sd.exp() * u, log_q - log_sd.sum(-1)

    def posterior_log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """Log q(z | x) (*batch,) in nats at any z (*batch, latent), given rows x (*batch, features); batches broadcast.

        It inverts the flow, which for planar and autoregressive ones is slow. Training does without.
        """
        mean, log_sd, context = self._encoded(self._check(x))
        return self.flow.log_prob((z - mean) * (-log_sd).exp(), context) - log_sd.sum(-1)

    def decode(self, z: Tensor) -> Tensor:
        """The likelihood's mean (*batch, features), given z (*batch, latent)."""
        return self.likelihood.mean(self._decoded(z))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """The likelihood's mean for rows x (*batch, features), averaged over draws of their posteriors: x's shape."""
        return self.decode(self.encode(x, (draws,), generator)).mean(0)

    @torch.no_grad()
    def sample(self, shape: int | Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """New rows (*shape, features): z from the prior, x from the likelihood."""
        z = self.prior.sample(shape, generator=generator)
        return self.likelihood.sample(self._decoded(z), generator)

    # ---- training -------------------------------------------------------------------------------------------------

    def objective(self, *, draws: int = 1, kl_warmup: int = 0, free_bits: float = 0.0) -> NegativeBound:
        """What `flowlab.fit(vae, x, objective=…)` minimises: each row's negative bound; see `fit`."""
        return NegativeBound(draws, kl_warmup, free_bits)

    def fit(self, x: Tensor, *, draws: int = 1, kl_warmup: int = 0, free_bits: float = 0.0, **options: Any) -> History:
        """`flowlab.fit` with this model's `objective`.

        Args:
            x: Rows (n, features).
            draws: Draws of z for each row in a step.
            kl_warmup: Steps over which the KL term's weight rises from zero to one.
            free_bits: Nats below which the KL term is constant (see `elbo`).
            **options: Of `flowlab.fit`: validation, epochs, learning_rate, generator, …

        Returns:
            The history; its validation losses are negative bounds in nats per row, without warm-up and free bits.
        """
        objective = self.objective(draws=draws, kl_warmup=kl_warmup, free_bits=free_bits)
        return fit(self, self._check(x), objective=objective, **options)  # type: ignore[arg-type]

    def initialise(self, x: Tensor) -> None:
        """Check that the likelihood takes rows x (n, features); `flowlab.fit` calls it before training.

        Raises:
            ValueError: It does not; the message names row and column.
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file that `flowlab.load` reads; see there, and `flowlab.save` for errors."""
        files.save(self, path)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _terms(self, x: Tensor, draws: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Log p(x | z) and log q(z | x) − log p(z) at draws of z given x: each (draws, *batch)."""
        z, log_q = self.rsample_and_log_prob(x, (draws,), generator)
        return self.likelihood.log_prob(self._decoded(z), x), log_q - self.prior.log_prob(z)

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The posterior's mean and log-sd, and the flow's context, each (*batch, …)."""
        widths = [self.latent, self.latent, self.flow.context_features]
        outputs = _called("encoder", self.encoder, x.reshape(-1, self.features))
        if outputs.ndim != 2 or outputs.shape[1] != sum(widths):
            raise ValueError(
                f"encoder must return (n, {sum(widths)}): {self.latent} means, {self.latent} log-sds and {widths[2]} "
                f"numbers of context for the flow; not {tuple(outputs.shape)}"
            )
        mean, log_sd, context = outputs.view(*x.shape[:-1], sum(widths)).split(widths, -1)
        return mean, log_sd.clamp(-WIDEST, WIDEST), context if widths[2] else None

    def _decoded(self, z: Tensor) -> Tensor:
        if not isinstance(z, Tensor) or z.ndim == 0 or z.shape[-1] != self.latent:
            found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"z must be a tensor of shape (*batch, {self.latent}), not {found}")
        outputs = _called("decoder", self.decoder, z.reshape(-1, self.latent))
        if outputs.ndim != 2 or self.likelihood.features(outputs.shape[1]) != self.features:
            raise ValueError(
                f"decoder must return what the likelihood takes for {self.features} features, "
                f"not {tuple(outputs.shape)} for {math.prod(z.shape[:-1])} rows"
            )
        return outputs.view(*z.shape[:-1], outputs.shape[-1])

    def _check(self, x: Tensor) -> Tensor:
        floating("x", x, self.dtype, "VAE")
        if x.ndim == 0 or x.shape[-1] != self.features:
            raise ValueError(f"x must have shape (*batch, {self.features}), not {tuple(x.shape)}")
        return x

    def extra_repr(self) -> str:
        return f"{self.features} features, {self.latent} latent"


def _checked_prior(prior: Flow | FlowMixture | None, latent: int) -> Flow | FlowMixture:
    """The prior, or N(0, I) for None.

    Raises:
        TypeError: It is not a flow.
        ValueError: It has another width, takes a context, or its density is slow.
    """
    if prior is None:
        return Flow(Gaussian(latent), [])
    if not isinstance(prior, Flow | FlowMixture):
        raise TypeError(f"prior must be a Flow or a FlowMixture, not {type(prior).__name__}")
    if prior.features != latent or prior.context_features:
        raise ValueError(
            f"prior must have {latent} features, as flow has, and no context, "
            f"not {prior.features} and {prior.context_features}"
        )
    if prior.fast not in ("both", "density"):
        raise ValueError(
            "prior's density is slow, and training needs it: take presets.maf in place of iaf, real_nvp or nsf"
        )
    return prior


def _called(name: str, network: nn.Module, rows: Tensor) -> Tensor:
    """A network's output for rows (n, width); a failure says that it does not take them."""
    try:
        return network(rows)
    except RuntimeError as error:
        raise ValueError(f"{name} does not take rows of shape {tuple(rows.shape)}: {error}") from error


@torch.no_grad()
def _decoder_width(decoder: nn.Module, latent: int) -> int:
    """Width of a decoder's outputs, found by calling it once in evaluation mode."""
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
    """A total split into parts of at most so many."""
    return [most] * (total // most) + ([total % most] if total % most else [])
