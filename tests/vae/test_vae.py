"""VAEs: a linear model with known likelihood and posterior, likelihoods, free bits, warm-up, shapes and messages."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MultivariateNormal, Normal

import flowlab
from flowlab import presets
from flowlab.layers import LULinear
from flowlab.vae import VAE
from flowlab.vae.likelihoods import Likelihood
from helpers import load_program

FEATURES, LATENT, NOISE = 5, 2, 0.6
QUIET = {"progress": False}


class Linear:
    """Probabilistic PCA (Tipping & Bishop 1999): x = Wz + b + noise, of known density and posterior of z given x."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(FEATURES, LATENT, generator=generator).to(dtype)
        self.shift = torch.randn(FEATURES, generator=generator).to(dtype)
        covariance = self.weight @ self.weight.T + NOISE**2 * torch.eye(FEATURES, dtype=dtype)
        self.marginal = MultivariateNormal(self.shift, covariance)
        precision = torch.eye(LATENT, dtype=dtype) + self.weight.T @ self.weight / NOISE**2
        self.covariance = torch.linalg.inv(precision)
        self.gain = self.covariance @ self.weight.T / NOISE**2
        self.x = (
            self.marginal.mean + torch.randn(400, FEATURES, generator=generator).to(dtype) @ self.marginal.scale_tril.T
        )
        self.dtype = dtype

    def posterior(self, x: torch.Tensor) -> MultivariateNormal:
        return MultivariateNormal((x - self.shift) @ self.gain.T, self.covariance)

    def vae(self, flow: flowlab.Flow | int, context: int = 0) -> VAE:
        """A model with this decoder, fixed, and an encoder at random."""
        torch.manual_seed(0)
        encoder = nn.Linear(FEATURES, 2 * LATENT + context)
        decoder = nn.Linear(LATENT, FEATURES)
        vae = VAE(encoder, decoder, flow, likelihood="gaussian", noise=NOISE).to(self.dtype)
        with torch.no_grad():
            decoder.weight.copy_(self.weight)
            decoder.bias.copy_(self.shift)
        decoder.requires_grad_(False)
        return vae

    def exact(self) -> VAE:
        """A model whose posterior is the exact one."""
        flow = flowlab.Flow(flowlab.bases.Gaussian(LATENT), [LULinear(LATENT)])
        vae = self.vae(flow)
        scale = torch.linalg.cholesky(self.covariance)
        sd = scale.diagonal()
        with torch.no_grad():
            vae.encoder.weight.copy_(torch.cat([self.gain, torch.zeros_like(self.gain)]))
            vae.encoder.bias.copy_(torch.cat([-self.gain @ self.shift, sd.log()]))
            flow.layers[0].lower.copy_(scale / sd[:, None])
        return vae


def networks(context: int = 0, width: int = 6, outputs: int = 6, latent: int = 2) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(width, 16), nn.SiLU(), nn.Linear(16, 2 * latent + context))
    return encoder, nn.Sequential(nn.Linear(latent, 16), nn.SiLU(), nn.Linear(16, outputs))


def binary(n: int, features: int = 6) -> torch.Tensor:
    return (torch.rand(n, features, generator=torch.Generator().manual_seed(3)) < 0.4).float()


# ---- known truths -----------------------------------------------------------------------------------------------


def test_with_the_exact_posterior_every_draw_gives_the_exact_likelihood():
    truth = Linear()
    vae = truth.exact()
    exact = truth.marginal.log_prob(truth.x)
    assert torch.allclose(vae.elbo(truth.x), exact, atol=1e-10)
    log_p, error = vae.log_prob_and_error(truth.x, k=3)
    assert torch.allclose(log_p, exact, atol=1e-10)
    assert float(error.max()) < 1e-6
    z, log_q = vae.rsample_and_log_prob(truth.x, (7,))
    assert torch.allclose(log_q, truth.posterior(truth.x).log_prob(z), atol=1e-10)
    assert torch.allclose(vae.posterior_log_prob(z, truth.x), log_q, atol=1e-10)


def test_importance_sampling_finds_the_likelihood_with_an_untrained_posterior(generator):
    truth = Linear()
    vae = truth.vae(LATENT)
    with torch.no_grad():
        vae.encoder.bias[LATENT:] = 0.5  # wider than the posterior
    exact = truth.marginal.log_prob(truth.x)
    log_p, error = vae.log_prob_and_error(truth.x, k=5000, generator=generator)
    known = error < 0.1
    assert float(known.double().mean()) > 0.6
    off = ((log_p - exact) / error)[known]
    assert float(off.abs().mean()) < 1.2
    assert float(off.square().mean()) < 2
    assert bool((vae.elbo(truth.x, draws=200) < exact).all())


@pytest.mark.parametrize("kind", ["planar", "iaf", "real_nvp", "nsf"])
def test_a_trained_flow_posterior_reaches_the_exact_likelihood(kind, generator):
    truth = Linear(torch.float32)
    flow = getattr(presets, kind)(LATENT, context_features=3, layers=4, hidden=(16,), generator=generator)
    vae = truth.vae(flow, context=3)
    options = {"learning_rate": 1e-2, "schedule": "cosine", "batch_size": 100, "epochs": 70, "validation": 0.0}
    vae.fit(truth.x, draws=4, generator=generator, **options, **QUIET)
    exact = truth.marginal.log_prob(truth.x)
    assert float((exact - vae.elbo(truth.x, draws=200, generator=generator)).mean().detach()) < 0.08
    assert float((vae.log_prob(truth.x, 500, generator=generator) - exact).abs().mean()) < 0.02
    z = vae.encode(truth.x, (2000,), generator)
    posterior = truth.posterior(truth.x)
    assert float((z.mean(0) - posterior.mean).abs().max()) < 0.3
    assert float((z[:, 0].T.cov() - truth.covariance).abs().max()) < 0.1


def test_training_everything_recovers_the_covariance_and_the_noise(generator):
    truth = Linear(torch.float32)
    encoder, decoder = nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES)
    flow = flowlab.Flow(flowlab.bases.Gaussian(LATENT), [LULinear(LATENT)])
    vae = VAE(encoder, decoder, flow, likelihood="gaussian")
    options = {"learning_rate": 2e-2, "schedule": "cosine", "batch_size": 100, "epochs": 250, "validation": 0.0}
    vae.fit(truth.x, draws=2, weight_decay=0.0, generator=generator, **options, **QUIET)
    # The best likelihood that probabilistic PCA can have: Tipping & Bishop 1999, equation 8.
    values = torch.linalg.eigvalsh(truth.x.T.cov(correction=0))
    rest = float(values[:-LATENT].mean())
    best = -0.5 * (
        FEATURES * math.log(2 * math.pi)
        + float(values[-LATENT:].log().sum())
        + (FEATURES - LATENT) * math.log(rest)
        + FEATURES
    )
    assert float(vae.log_prob(truth.x, 200, generator=generator).mean()) == pytest.approx(best, abs=0.03)
    assert float(vae.elbo(truth.x, draws=100, generator=generator).mean().detach()) == pytest.approx(best, abs=0.04)
    assert float(vae.likelihood.log_noise.detach().exp()) == pytest.approx(rest**0.5, rel=0.03)
    x = vae.sample((20_000,), generator)
    assert float((x.T.cov() - truth.x.T.cov()).abs().max()) < 0.25


def test_a_learnt_prior_takes_up_what_the_normal_one_cannot(generator):
    """z is one of two points, x is z plus noise; with a normal prior the likelihood is that of one wide Gaussian."""
    sign = torch.where(torch.rand(600, 1, generator=generator) < 0.5, -2.0, 2.0)
    x = sign + 0.5 * torch.randn(600, 1, generator=generator)
    found = []
    for prior in (None, presets.nsf(1, layers=2, bins=6, hidden=(8,), generator=generator)):
        decoder = nn.Linear(1, 1)
        vae = VAE(nn.Linear(1, 2), decoder, 1, prior=prior, likelihood="gaussian", noise=0.4)
        with torch.no_grad():
            decoder.weight.fill_(2.0)
            decoder.bias.fill_(0.0)
        decoder.requires_grad_(False)
        options = {"batch_size": 100, "learning_rate": 2e-2, "schedule": "cosine", "validation": 0.0}
        vae.fit(x, draws=4, epochs=80, generator=generator, **options, **QUIET)
        found.append(float(vae.log_prob(x, 500, generator=generator).mean()))
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25) + math.log(2)
    assert found[1] == pytest.approx(-entropy, abs=0.2)
    assert found[1] > found[0] + 0.3


# ---- at the start, and training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["planar", "radial", "sylvester", "iaf", "real_nvp", "nsf"])
def test_a_new_flow_posterior_is_that_of_the_diagonal_twin(kind):
    flow = getattr(presets, kind)(2, context_features=3, layers=2, hidden=(8,))
    encoder, decoder = networks(context=3)
    vae = VAE(encoder, decoder, flow)
    x = binary(50)
    z, log_q = vae.rsample_and_log_prob(x, (4,))
    mean, log_sd, _ = encoder(x).split([2, 2, 3], -1)
    assert torch.allclose(log_q, Normal(mean, log_sd.exp()).log_prob(z).sum(-1), atol=1e-4)


def test_training_never_inverts_the_flow(monkeypatch):
    flow = presets.iaf(2, context_features=3, layers=2, hidden=(8,))

    def refuse(*_: object) -> None:
        raise AssertionError("inverted")

    for layer in flow:
        monkeypatch.setattr(layer, "inverse", refuse)
    vae = VAE(*networks(context=3), flow)
    vae.fit(binary(60), epochs=2, **QUIET)
    vae.log_prob(binary(3), k=5)
    with pytest.raises(AssertionError, match="inverted"):
        vae.posterior_log_prob(torch.zeros(3, 2), binary(3))


def test_free_bits_make_a_small_divergence_free(generator):
    vae = VAE(*networks(), 2)
    x = binary(40)

    def terms(**options: float) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        vae.zero_grad()
        value = vae.elbo(x, draws=64, generator=generator.manual_seed(0), **options)
        value.mean().backward()
        return value.detach(), [p.grad.clone() for p in vae.parameters()]

    plain, slope = terms()
    likelihood, free_slope = terms(beta=0.0)
    kl = float((likelihood - plain).mean())
    assert kl > 0
    much, much_slope = terms(free_bits=kl + 1)
    assert torch.allclose(much, likelihood - (kl + 1), atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(much_slope, free_slope, strict=True))
    little, little_slope = terms(free_bits=kl / 2)
    assert torch.allclose(little, plain, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(little_slope, slope, strict=True))
    assert float(terms(beta=0.5)[0].mean()) == pytest.approx(float((plain + likelihood).mean()) / 2, abs=1e-4)


def test_free_bits_keep_a_latent_space_in_use(generator):
    x = binary(300)  # independent features: nothing for z to explain
    kl = []
    for free in (0.0, 1.0):
        vae = VAE(*networks(), 2)
        with torch.no_grad():
            vae.encoder[-1].weight.mul_(5)  # starts with a KL term of several nats
        vae.fit(x, free_bits=free, draws=4, epochs=60, schedule="cosine", validation=0.0, generator=generator, **QUIET)
        likelihood = vae.elbo(x, draws=100, beta=0.0, generator=generator).mean()
        kl.append(float((likelihood - vae.elbo(x, draws=100, generator=generator).mean()).detach()))
    assert kl[0] < 0.3
    assert kl[1] == pytest.approx(1.0, abs=0.3)


def test_warm_up_counts_training_steps_and_validation_is_the_bound_by_the_same_draws():
    vae = VAE(*networks(), 2)
    x = binary(20)
    objective = vae.objective(kl_warmup=4, free_bits=2.0)
    weights = []
    original = vae.elbo
    vae.elbo = lambda x, **options: weights.append(options.get("beta")) or original(x, **options)
    for _ in range(6):
        objective(vae, x, None)
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    vae.eval()
    first, second = (objective(vae, x, None) for _ in range(2))
    assert torch.equal(first, second)
    assert weights[-1] is None
    assert objective.taken == 6


def test_fit_is_flowlabs_and_repeats_itself():
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(5)
        flow = presets.iaf(2, context_features=3, layers=1, hidden=(8,), generator=generator)
        vae = VAE(*networks(context=3), flow)
        before = torch.get_rng_state()
        history = flowlab.fit(
            vae, binary(80), objective=vae.objective(kl_warmup=5), epochs=3, generator=generator, **QUIET
        )
        assert torch.equal(before, torch.get_rng_state())
        runs.append(vae.log_prob(binary(5), 20, generator=generator))
        assert history.records
    assert torch.equal(*runs)


# ---- likelihoods ------------------------------------------------------------------------------------------------


def test_likelihoods_agree_with_torch_distributions_and_draw_from_them(generator):
    encoder, decoder = networks(width=3, outputs=12)
    categorical = VAE(encoder, decoder, 2, likelihood="categorical", classes=4)
    assert categorical.features == 3
    z = torch.randn(2, generator=generator)
    outputs = decoder(z)
    x = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]])
    truth = Categorical(logits=outputs.view(3, 4))
    assert torch.allclose(categorical.likelihood.log_prob(outputs, x), truth.log_prob(x.long()).sum(-1))
    drawn = categorical.likelihood.sample(outputs.expand(50_000, -1), generator)
    assert torch.allclose((drawn == 2).float().mean(0), truth.probs[:, 2], atol=0.01)
    assert torch.allclose(drawn.mean(0), categorical.decode(z), atol=0.03)

    gaussian = VAE(*networks(width=6, outputs=12), 2, likelihood="gaussian", noise="decoder")
    assert gaussian.features == 6
    mean, log_sd = decoder(z).chunk(2)
    truth = Normal(mean, log_sd.exp())
    assert torch.allclose(gaussian.likelihood.log_prob(outputs, mean + 0.3), truth.log_prob(mean + 0.3).sum())
    drawn = gaussian.likelihood.sample(outputs.expand(50_000, -1), generator)
    assert torch.allclose(drawn.std(0), log_sd.exp(), rtol=0.03)

    bernoulli = VAE(*networks(), 2)
    drawn = bernoulli.likelihood.sample(torch.tensor([-2.0, 1.0]).expand(50_000, -1), generator)
    assert torch.allclose(drawn.mean(0), torch.tensor([-2.0, 1.0]).sigmoid(), atol=0.01)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_discrete_likelihoods_sum_to_one_over_all_rows(likelihood, generator):
    """All 2⁴ or 3³ rows: their importance-sampled probabilities must add up."""
    width, classes = (4, 2) if likelihood == "bernoulli" else (3, 3)
    outputs = width if likelihood == "bernoulli" else width * classes
    flow = presets.planar(2, context_features=2, layers=2, hidden=(8,), generator=generator)
    vae = VAE(*networks(2, width, outputs), flow, likelihood=likelihood, classes=classes)
    rows = torch.cartesian_prod(*[torch.arange(classes)] * width).float()
    assert float(vae.log_prob(rows, 4000, generator=generator).exp().sum()) == pytest.approx(1.0, abs=0.02)


def test_a_likelihood_of_ones_own():
    class Poisson(Likelihood):
        takes = "counts"

        def log_prob(self, outputs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return (x * outputs - outputs.exp() - (x + 1).lgamma()).sum(-1)

        def mean(self, outputs: torch.Tensor) -> torch.Tensor:
            return outputs.exp()

        def sample(self, outputs: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            return torch.poisson(outputs.exp(), generator)

    vae = VAE(*networks(), 2, likelihood=Poisson())
    assert vae.elbo(3 * binary(4)).shape == (4,)
    assert vae.sample((3,)).shape == (3, 6)


# ---- shapes, types, messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["diagonal", "planar", "iaf", "real_nvp", "nsf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_empty_batches_and_copies(kind, dtype, generator):
    flow = 2 if kind == "diagonal" else getattr(presets, kind)(2, context_features=3, layers=2, hidden=(8,))
    context = 0 if kind == "diagonal" else 3
    prior = presets.maf(2, layers=1, hidden=(8,))
    vae = VAE(*networks(context), flow, prior=prior).to(dtype)
    for batch in [(), (4,), (0,), (2, 3)]:
        x = torch.zeros(*batch, 6, dtype=dtype)
        assert vae.elbo(x, draws=2, free_bits=0.5).shape == batch
        log_p, error = vae.log_prob_and_error(x, k=5)
        assert log_p.shape == error.shape == batch
        assert log_p.dtype == error.dtype == dtype
        assert vae.encode(x, (3,)).shape == (3, *batch, 2)
        assert vae.reconstruct(x, 2).shape == x.shape
        assert vae.posterior_log_prob(vae.encode(x), x).shape == batch
    assert vae.sample((2, 3), generator).shape == (2, 3, 6)
    assert vae.sample().dtype == dtype
    twin = copy.deepcopy(vae)
    x = torch.ones(4, 6, dtype=dtype)
    a, b = (v.log_prob(x, 7, generator=torch.Generator().manual_seed(0)) for v in (vae, twin))
    assert torch.equal(a, b)
    twin.load_state_dict(vae.state_dict())


def test_chunks_of_any_size_give_the_same_estimate_up_to_draws(generator):
    truth = Linear()
    vae = truth.exact()
    with torch.no_grad():
        vae.encoder.bias[LATENT:] += 0.1
    exact = truth.marginal.log_prob(truth.x[:7])
    for chunk_size in (1, 10, 333, 10_000):
        log_p, error = vae.log_prob_and_error(truth.x[:7], 100, chunk_size=chunk_size, generator=generator)
        assert float(((log_p - exact).abs() / (error + 1e-3)).max()) < 4


def test_images_go_through_networks_of_their_own_shape_and_a_trial_leaves_them_as_they_were():
    encoder = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 16))
    decoder[1].eval()
    vae = VAE(encoder, decoder, 2)
    assert decoder.training
    assert not decoder[1].training
    assert not bool(decoder[1].num_batches_tracked)
    assert vae.elbo(torch.zeros(5, 16), draws=3).shape == (5,)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ({"encoder": lambda x: x}, {}, TypeError, "encoder must be a torch.nn.Module, not function"),
        ({"flow": 0}, {}, TypeError, "flow must be a Flow"),
        ({"flow": presets.maf(2, layers=1)}, {}, ValueError, "flow draws slowly.*presets.iaf"),
        ({"flow": 3}, {}, ValueError, r"decoder does not take z of shape \(2, 3\)"),
        ({"decoder": nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (2, 3)))}, {}, ValueError, "decoder must return"),
        ({}, {"prior": presets.maf(3)}, ValueError, "prior must have 2 features"),
        ({}, {"prior": presets.planar(2)}, ValueError, "prior's density is slow"),
        ({}, {"prior": 2}, TypeError, "prior must be a Flow"),
        ({}, {"likelihood": "normal"}, ValueError, "likelihood must be"),
        ({}, {"likelihood": "categorical"}, ValueError, "needs classes"),
        ({}, {"likelihood": "categorical", "classes": 4}, ValueError, "4 logits for each feature.*not 6"),
        ({}, {"likelihood": "gaussian", "noise": 0.0}, ValueError, "noise must be"),
        ({}, {"likelihood": "gaussian", "noise": "much"}, ValueError, "noise must be"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, options, error, message):
    encoder, decoder = networks()
    with pytest.raises(error, match=message):
        VAE(**{"encoder": encoder, "decoder": decoder, "flow": 2, **arguments}, **options)


def test_rows_that_do_not_fit_are_told_why():
    vae = VAE(*networks(), 2)
    with pytest.raises(ValueError, match=r"x must have shape \(\*batch, 6\), not \(3, 5\)"):
        vae.elbo(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"float64.*takes torch.float32"):
        vae.elbo(torch.zeros(3, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"torch.as_tensor"):
        vae.log_prob([[0.0] * 6])
    with pytest.raises(ValueError, match="k must be a positive"):
        vae.log_prob(torch.zeros(3, 6), k=0)
    with pytest.raises(ValueError, match="draws must be"):
        vae.elbo(torch.zeros(3, 6), draws=0)
    with pytest.raises(ValueError, match=r"objective=vae.objective\(\)"):
        flowlab.fit(vae, binary(10), **QUIET)
    x = binary(10)
    x[3, 2] = 16.0
    with pytest.raises(ValueError, match=r"16 in row 3, column 2; likelihood Bernoulli takes numbers from 0 to 1"):
        vae.fit(x, validation=0.0, **QUIET)
    wrong = VAE(*networks(context=1), 2)
    with pytest.raises(ValueError, match=r"encoder must return \(n, 4\).*not \(3, 5\)"):
        wrong.elbo(torch.zeros(3, 6))


def test_the_example_starts_its_flow_where_its_twin_is():
    example = load_program("examples/vae_digits.py")
    torch.manual_seed(0)
    diagonal = VAE(*example.networks(0), example.LATENT)
    flow = example.with_flow(diagonal, torch.Generator().manual_seed(0))
    x = example.rows(0)[2][:20]
    a, b = (vae.log_prob(x, 50, generator=torch.Generator().manual_seed(0)) for vae in (diagonal, flow))
    assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: x.numpy(), TypeError, "x must be a torch.Tensor, not ndarray"),
        (
            lambda x: x.long(),
            ValueError,
            r"x is torch.int64, this VAE takes torch.float32: convert x by .to\(torch.float32\)$",
        ),
        (lambda x: x.double(), ValueError, r"or the VAE by .to\(torch.float64\)"),
        (lambda x: x.bfloat16(), ValueError, r"convert x by .to\(torch.float32\)$"),
        (lambda x: x[:, :3], ValueError, r"x must have shape \(\*batch, 6\)"),
        (lambda x: x[:0], ValueError, "at least 1"),
    ],
)
def test_rows_that_do_not_fit_are_named_before_training(make, error, message):
    vae = VAE(nn.Linear(6, 4), nn.Linear(2, 6), 2)
    with pytest.raises(error, match=message):
        vae.fit(make(torch.zeros(20, 6)), progress=False)


def test_a_second_fit_warms_up_again_and_one_number_is_a_shape():
    vae, x = VAE(nn.Linear(6, 4), nn.Linear(2, 6), 2), torch.zeros(20, 6)
    objective = vae.objective(kl_warmup=100)
    flowlab.fit(vae, x, objective=objective, epochs=2, progress=False)
    assert (objective.taken, objective.generator) == (0, None)
    assert vae.encode(x, 5).shape == (5, 20, 2)
    assert vae.sample(5).shape == (5, 6)
    for options in ({"draws": 0}, {"kl_warmup": -1}, {"free_bits": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
            vae.objective(**options)
    with pytest.raises(ValueError, match=r"z must be a tensor of shape \(\*batch, 2\), not \(3, 5\)"):
        vae.decode(torch.zeros(3, 5))


def test_a_last_batch_of_one_row_does_not_come_to_batch_normalisation():
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    history = VAE(encoder, nn.Linear(2, 6), 2).fit(
        torch.zeros(21, 6), validation=0, batch_size=20, epochs=2, progress=False
    )
    assert history.records[-1]["step"] == 4
