"""Model files of what holds users' networks: a `VAE`, a `BayesianModule`, an `AmortizedPosterior`."""

import json

import pytest
import torch
from torch import nn
from torch.distributions import constraints

import flowlab
from flowlab import registry
from flowlab.files import register
from flowlab.posteriors import AmortizedPosterior
from flowlab.posteriors.contexts import Standardise
from flowlab.vae.likelihoods import Likelihood
from helpers import rewritten, seeded

FLOATS = [torch.float32, torch.float64]


@pytest.fixture
def own(monkeypatch):
    """A registry that forgets what a test registers."""
    monkeypatch.setattr(registry, "_registered", {})


def trained(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module with other parameters than a constructor gives."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.empty_like(parameter).normal_(generator=generator)
    return module


def loaded_again(model, tmp_path):
    model.save(tmp_path / "m.flow")
    return flowlab.load(tmp_path / "m.flow")


class Encoder(nn.Module):
    """A network of one's own, with a part of torch's and a buffer."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width, self.outputs = width, outputs
        self.net = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, outputs))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        return self.net(x)


VAES = {
    "bernoulli": {"likelihood": "bernoulli"},
    "gaussian": {"likelihood": "gaussian"},
    "fixed noise": {"likelihood": "gaussian", "noise": 0.3},
    "noise of the decoder": {"likelihood": "gaussian", "noise": "decoder"},
    "categorical": {"likelihood": "categorical", "classes": 3},
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", VAES)
def test_a_vae_comes_back(case, dtype, tmp_path, generator):
    options = VAES[case]
    width = 6 * (2 if options.get("noise") == "decoder" else options.get("classes", 1))
    encoder = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Dropout(0.1), nn.Linear(8, 7))
    decoder = nn.Sequential(nn.Linear(2, 8, bias=False), nn.BatchNorm1d(8), nn.ELU(0.5), nn.Linear(8, width))
    flow = flowlab.presets.iaf(2, context_features=3, layers=1, hidden=(4,), generator=generator)
    prior = flowlab.presets.maf(2, layers=1, hidden=(4,), generator=generator)
    vae = trained(flowlab.VAE(encoder, decoder, flow, prior=prior, **options), generator).to(dtype)
    x = torch.bernoulli(torch.full((20, 6), 0.3, dtype=dtype), generator=generator)
    vae.elbo(x, generator=generator)  # running averages of the decoder's batches
    again = loaded_again(vae.train(False), tmp_path)
    assert isinstance(again, flowlab.VAE)
    assert (again.dtype, again.features, again.latent, again.training) == (dtype, 6, 2, False)
    assert torch.equal(again.elbo(x, generator=seeded()), vae.elbo(x, generator=seeded()))
    assert torch.equal(again.sample((5,), seeded()), vae.sample((5,), seeded()))
    assert repr(again) == repr(vae)


def test_a_vae_of_images_with_networks_of_ones_own(own, tmp_path, generator):
    class Noisy(Likelihood):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def log_prob(self, outputs, x):
            return -((x - outputs) / self.scale).square().sum(-1)

        def mean(self, outputs):
            return outputs

    encoder = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.GELU(), nn.Flatten())
    encoder.append(nn.Linear(32, 4))
    vae = flowlab.VAE(encoder, Encoder(2, 16), 2, likelihood=Noisy(0.5))
    with pytest.raises(TypeError, match="cannot save a Encoder: decorate the class with flowlab"):
        vae.save(tmp_path / "m.flow")
    register(Encoder)
    register(Noisy)
    x = torch.rand(3, 16, generator=generator)
    again = loaded_again(vae, tmp_path)
    assert torch.equal(again.elbo(x, generator=seeded()), vae.elbo(x, generator=seeded()))
    registry._registered.clear()
    with pytest.raises(flowlab.FileError, match="unknown class 'Encoder': register it"):
        flowlab.load(tmp_path / "m.flow")


def test_a_decoder_is_not_called_while_loading(own, tmp_path):
    calls = []

    @register
    class Decoder(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

        def forward(self, z):
            calls.append(len(z))
            return z.repeat(1, self.width)

    vae = flowlab.VAE(nn.Linear(6, 4), Decoder(3), 2)
    assert vae.features == 6
    assert calls.pop() == 2
    again = loaded_again(vae, tmp_path)
    assert (again.features, calls) == (6, [])


def test_a_vae_names_the_network_that_does_not_fit():
    vae = flowlab.VAE(nn.Linear(6, 4), nn.Linear(2, 5), 2, features=6)
    with pytest.raises(ValueError, match=r"decoder must return what the likelihood takes for 6 features, not \(3, 5\)"):
        vae.elbo(torch.zeros(3, 6))
    vae = flowlab.VAE(nn.Linear(5, 4), nn.Linear(2, 6), 2)
    with pytest.raises(ValueError, match=r"encoder does not take rows of shape \(3, 6\)"):
        vae.elbo(torch.zeros(3, 6))


BAYESIAN = {
    "flow": {},
    "full": {"posterior": "full", "noise": "posterior", "start_noise": 0.5},
    "mean-field": {"posterior": "mean-field", "noise": 0.2},
    "last": {"over": "last"},
    "pattern": {"over": "0.*", "posterior": "full", "prior": {"0.*": 0.5, "*": 2.0}},
    "subspace": {"rank": 3},
    "own flow": {"posterior": lambda width: flowlab.presets.real_nvp(width, layers=1, hidden=(4,))},
    "classes": {"likelihood": "categorical"},
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", BAYESIAN)
def test_a_bayesian_module_comes_back(case, dtype, tmp_path, generator):
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
    model = trained(flowlab.BayesianModule(network, **BAYESIAN[case], generator=generator), generator)
    again = loaded_again(model, tmp_path)
    x = torch.randn(5, 2, dtype=dtype, generator=generator)
    y = torch.tensor([0, 1, 1, 0, 1]) if case == "classes" else x
    assert again.names == model.names
    assert again.prior_scale.dtype == dtype
    assert torch.equal(again.predict(x, 4, generator=seeded()), model.predict(x, 4, generator=seeded()))
    assert torch.equal(again.elbo(x, y, generator=seeded()), model.elbo(x, y, generator=seeded()))
    assert again.kl(10, seeded()) == model.kl(10, seeded())
    assert repr(again) == repr(model)
    again.fit(x, y, steps=2, progress=False)  # goes on


def test_a_bayesian_module_keeps_constants_and_shared_weights(own, tmp_path, generator):
    @register
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(2))
            self.register_buffer("shift", torch.zeros(2))

        def forward(self, x):
            return self.second(self.first(x).tanh()) * self.scale + self.shift

    network = Tied()
    network.second.weight = network.first.weight
    network.scale.requires_grad_(False).fill_(3.0)
    network.shift += 0.5
    model = trained(flowlab.BayesianModule(network, generator=generator), generator)
    again = loaded_again(model, tmp_path)
    assert again.features == model.features == 8
    x = torch.randn(5, 2, generator=generator)
    assert torch.equal(again.predict(x, 4, generator=seeded()), model.predict(x, 4, generator=seeded()))


def test_a_likelihood_that_is_a_function_is_to_be_set_again(tmp_path, generator):
    def likelihood(outputs, y):
        return -(outputs - y).abs().flatten(2).sum(-1)

    model = flowlab.BayesianModule(nn.Linear(2, 1), likelihood=likelihood, generator=generator)
    again = loaded_again(model, tmp_path)
    x, y = torch.randn(5, 2, generator=generator), torch.zeros(5, 1)
    with pytest.raises(ValueError, match="likelihood was a function, which no file holds"):
        again.predictive_log_prob(x, y)
    again.likelihood = likelihood
    expected = model.predictive_log_prob(x, y, 10, generator=seeded())
    assert torch.equal(again.predictive_log_prob(x, y, 10, generator=seeded()), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("encoder", [None, "torch", "own", "standardised"])
def test_an_amortised_posterior_comes_back(encoder, dtype, own, tmp_path, generator):
    register(Encoder)
    context = torch.randn(7, 4, dtype=dtype, generator=generator) * 5
    made = {
        None: lambda: None,
        "torch": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)),
        "own": lambda: Encoder(4, 4),
        "standardised": lambda: Standardise.of(context),
    }[encoder]()
    supports = {"tau": ((), constraints.positive), "p": ((3,), constraints.simplex)}
    flow = flowlab.presets.iaf(3, context_features=4, layers=1, hidden=(4,), generator=generator)
    q = trained(AmortizedPosterior(made, flow, supports=supports), generator).to(dtype).train(False)
    q.history = [{"stage": "amortized", "step": 1, "elbo": float("nan")}, {"stage": "amortized", "step": 2, "elbo": -1}]
    again = loaded_again(q, tmp_path)
    drawn, expected = again.sample((5,), context, seeded()), q.sample((5,), context, seeded())
    assert all(torch.equal(drawn[name], expected[name]) for name in ("tau", "p"))
    assert drawn["tau"].dtype == dtype
    assert torch.equal(again.log_prob(drawn, context), q.log_prob(drawn, context))
    assert again.history[1] == q.history[1]
    assert again.target is None
    assert repr(again) == repr(q)


def test_an_amortised_posterior_that_was_fitted_comes_back(tmp_path, generator):
    def log_prob(z, context):
        return -(z - context.sum(-1, keepdim=True)).square().sum(-1) - z.square().sum(-1) / 2

    context = torch.randn(20, 2, dtype=torch.float64, generator=generator)
    q = flowlab.fit_posterior(log_prob, features=2, context=context, steps=5, draws=64, progress=False)
    again = loaded_again(q, tmp_path)
    assert torch.equal(again.sample((3,), context, seeded()), q.sample((3,), context, seeded()))
    assert again.attach(log_prob).elbo(context[0], 100) == q.elbo(context[0], 100)


def test_networks_with_hooks_are_refused(tmp_path):
    layer = nn.utils.spectral_norm(nn.Linear(6, 4))
    with pytest.raises(TypeError, match="cannot save a Linear with hooks"):
        flowlab.VAE(layer, nn.Linear(2, 6), 2).save(tmp_path / "m.flow")
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    with pytest.raises(TypeError, match="cannot save a ParametrizedLinear"):
        flowlab.VAE(layer, nn.Linear(2, 6), 2).save(tmp_path / "m.flow")


HOSTILE = {
    "wide": lambda net: net[0]["args"].update(out_features=10**9),
    "far": lambda net: net[3]["args"].update(stride=[65_000, 65_000]),
    "wrong kind": lambda net: net[0]["args"].update(bias="yes"),
    "unknown argument": lambda net: net[0]["args"].update(device="cuda"),
    "unknown class": lambda net: net[0].update({"class": "torch.nn.Bilinear"}),
    "not of torch.nn": lambda net: net[0].update({"class": "torch.hub.load"}),
    "a word for a module": lambda net: net.__setitem__(0, "Linear"),
    "a module more": lambda net: net.append(net[0]),
    "zero width": lambda net: net[0]["args"].update(in_features=0),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_networks_are_refused(case, tmp_path):
    encoder = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Unflatten(1, (1, 3, 3)), nn.ConvTranspose2d(1, 1, 2))
    encoder.extend([nn.Flatten(), nn.Linear(16, 4)])
    path = tmp_path / "m.flow"
    flowlab.VAE(encoder, nn.Linear(2, 6), 2).save(path)
    assert flowlab.load(path).features == 6
    with pytest.raises(flowlab.FileError):
        flowlab.load(rewritten(path, lambda h: HOSTILE[case](h["module"]["args"]["encoder"]["args"]["modules"])))


TIES = [
    {"second.weight": "nowhere"},
    {"second.weight": "first.bias"},
    {"first.__class__": "first.weight"},
    {"second.weight": "shift"},
]


@pytest.mark.parametrize("aliases", TIES, ids=json.dumps)
def test_only_tensors_of_one_kind_become_one(aliases, tmp_path):
    path = tmp_path / "m.flow"
    flowlab.BayesianModule(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).save(path)
    assert flowlab.load(path).features == 12
    with pytest.raises(flowlab.FileError, match="cannot be one tensor"):
        flowlab.load(rewritten(path, lambda h: h.update(aliases=aliases)))
