"""Networks with a posterior over their weights: closed forms, vectorised predictions, mini-batches, names, messages."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MultivariateNormal, Normal

import flowlab
from flowlab.bayesian import BayesianModule
from flowlab.bayesian.posterior import Subspace, Triangular
from helpers import load_program, seeded

NOISE = 0.3


def net(inputs: int = 2, outputs: int = 1, hidden: int = 4) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    generator = seeded()
    with torch.no_grad():
        for p in layers.parameters():
            p.normal_(generator=generator)
    return layers


def rows(n: int = 40, inputs: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(1)
    x = torch.randn(n, inputs, generator=generator, dtype=dtype)
    x[:, 1] += x[:, 0]
    y = x.sum(1, keepdim=True) + 0.7 + NOISE * torch.randn(n, 1, generator=generator, dtype=dtype)
    return x, y


def linear(x: torch.Tensor, y: torch.Tensor, prior: float = 1.0) -> tuple[MultivariateNormal, torch.Tensor]:
    """The exact posterior of a linear model's weights and bias, and its log-evidence."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    precision = torch.eye(4, dtype=x.dtype) / prior**2 + design.T @ design / NOISE**2
    covariance = prior**2 * design @ design.T + NOISE**2 * torch.eye(len(x), dtype=x.dtype)
    evidence = MultivariateNormal(torch.zeros(len(x), dtype=x.dtype), covariance).log_prob(y.squeeze(1))
    mean = torch.linalg.solve(precision, design.T @ y / NOISE**2).squeeze(1)
    return MultivariateNormal(mean, precision_matrix=precision), evidence


def least_squares(x: torch.Tensor, y: torch.Tensor) -> nn.Linear:
    """A linear model near its best weights, as trained ones are."""
    module = nn.Linear(3, 1).double()
    found = torch.linalg.lstsq(torch.cat([x, torch.ones_like(y)], 1), y).solution.squeeze(1)
    with torch.no_grad():
        module.weight.copy_(found[:3])
        module.bias.copy_(found[3:])
    return module


# ---- closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["full", "flow"])
def test_a_linear_model_has_the_exact_posterior_and_evidence(posterior):
    x, y = rows()
    exact, evidence = linear(x, y)
    bnn = BayesianModule(least_squares(x, y), prior=1.0, posterior=posterior, noise=NOISE, generator=seeded())
    rate = 0.1 if posterior == "full" else 0.02
    bnn.fit(x, y, steps=400, learning_rate=rate, draws=16, generator=seeded(), progress=False)
    bar = 1e-3 if posterior == "full" else 3e-2
    assert float(bnn.elbo(x, y, draws=2000, generator=seeded()).detach()) == pytest.approx(float(evidence), abs=bar)
    w = bnn.sample((40_000,), seeded())
    found = torch.cat([w["weight"].flatten(1), w["bias"]], 1)
    assert float(((found.mean(0) - exact.mean) / exact.stddev).abs().max()) < 0.05
    sds = exact.stddev
    assert float((found.T.cov() / sds / sds[:, None] - exact.covariance_matrix / sds / sds[:, None]).abs().max()) < 0.05
    # KL and expected log-likelihood make up the bound.
    fit = bnn.log_likelihood(bnn.rsample_and_log_prob((5000,), seeded())[0], x, y).sum(1).mean()
    assert float(fit.detach()) - sum(bnn.kl(5000, seeded()).values()) == pytest.approx(float(evidence), abs=0.2)


def test_mean_field_finds_the_best_independent_gaussian():
    x, y = rows()
    exact, evidence = linear(x, y)
    bnn = BayesianModule(least_squares(x, y), prior=1.0, posterior="mean-field", noise=NOISE)
    bnn.fit(x, y, steps=400, learning_rate=5e-2, draws=16, generator=seeded(), progress=False)
    # Its scales are those of the precision's diagonal, and it loses this many nats (Bishop 2006, section 10.1.2).
    lost = (exact.precision_matrix.diagonal().log().sum() - torch.logdet(exact.precision_matrix)) / 2
    assert float(bnn.elbo(x, y, draws=20_000, generator=seeded()).detach()) == pytest.approx(
        float(evidence - lost), abs=0.05
    )
    w = bnn.sample((40_000,), seeded())
    found = torch.cat([w["weight"].flatten(1), w["bias"]], 1)
    assert torch.allclose(found.std(0), exact.precision_matrix.diagonal().rsqrt(), rtol=0.05)


def test_predictive_density_and_draws_are_those_of_the_closed_form():
    x, y = rows()
    exact, _ = linear(x, y)
    bnn = BayesianModule(least_squares(x, y), prior=1.0, posterior="full", noise=NOISE)
    bnn.fit(x, y, steps=400, learning_rate=0.1, draws=16, generator=seeded(), progress=False)
    design = torch.cat([x, torch.ones(40, 1).double()], 1)
    variance = (design @ exact.covariance_matrix * design).sum(1) + NOISE**2
    wanted = Normal(design @ exact.mean, variance.sqrt())
    found = bnn.predictive_log_prob(x, y, 20_000, chunk_size=5000, generator=seeded())
    assert torch.allclose(found, wanted.log_prob(y.squeeze(1)), atol=0.03)
    drawn = bnn.predictive_sample(x, 20_000, generator=seeded())
    assert drawn.shape == (20_000, 40, 1)
    assert torch.allclose(drawn.std(0).squeeze(1), wanted.stddev, rtol=0.04)


def test_learnt_noise_and_noise_with_a_posterior_find_the_residuals():
    x, y = rows(200)
    for noise in ("learnt", "posterior"):
        bnn = BayesianModule(least_squares(x, y), posterior="full", noise=noise)
        bnn.fit(x, y, steps=400, learning_rate=5e-2, generator=seeded(), progress=False)
        log_noise = bnn.sample((2000,), seeded())["log_noise"] if noise == "posterior" else bnn.log_noise.detach()
        assert float(log_noise.exp().mean()) == pytest.approx(NOISE, rel=0.15)


# ---- outputs ----------------------------------------------------------------------------------------------------


def test_predictions_by_vmap_equal_a_loop_over_networks():
    module = net(2, 3)
    bnn = BayesianModule(module, start_scale=0.5, generator=seeded())
    x = torch.randn(7, 2, generator=seeded())
    w, _ = bnn.rsample_and_log_prob((5,), seeded())
    weights = bnn.unflatten(w)
    looped = []
    for i in range(5):
        other = copy.deepcopy(module)
        other.load_state_dict({name: value[i] for name, value in weights.items()})
        looped.append(other(x))
    assert torch.allclose(bnn.predict(x, 5, generator=seeded()), torch.stack(looped), atol=1e-5)
    assert torch.allclose(bnn.predict(x, 5, chunk_size=2, generator=seeded()), torch.stack(looped), atol=1e-5)
    assert torch.allclose(bnn(x, 5, generator=seeded()), torch.stack(looped), atol=1e-5)


def test_classes_are_learnt_and_drawn():
    x = torch.randn(200, 2, generator=seeded())
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).long() + (x[:, 0] > 1).long()
    bnn = BayesianModule(net(2, 3), likelihood="categorical", posterior="full")
    w, _ = bnn.rsample_and_log_prob((4,), seeded())
    wanted = Categorical(logits=bnn.outputs(w, x)).log_prob(y)
    assert torch.allclose(bnn.log_likelihood(w, x, y), wanted, atol=1e-5)
    bnn.fit(x, y, steps=300, learning_rate=3e-2, generator=seeded(), progress=False)
    assert float(bnn.predictive_log_prob(x, y, 200, generator=seeded()).mean()) > -0.4
    drawn = bnn.predictive_sample(x, 200, generator=seeded())
    assert drawn.shape == (200, 200)
    assert float((drawn == y).double().mean()) > 0.7


def test_a_likelihood_of_ones_own_gives_the_spread_by_the_network():
    def log_likelihood(outputs, y):
        return Normal(outputs[..., 0], outputs[..., 1].exp()).log_prob(y)

    x = torch.randn(30, 2, generator=seeded())
    bnn = BayesianModule(net(2, 2), likelihood=log_likelihood)
    assert bnn.predictive_log_prob(x, x[:, 0], 10, generator=seeded()).shape == (30,)
    with pytest.raises(ValueError, match="likelihood is a function"):
        bnn.predictive_sample(x, 10)
    wrong = BayesianModule(net(2, 2), likelihood=lambda outputs, y: outputs.sum())
    with pytest.raises(ValueError, match=r"likelihood must return shape \(8, 30\)"):
        wrong.elbo(x, x[:, 0])


def test_dropout_is_off_and_frozen_parameters_buffers_and_shared_weights_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.first.bias.requires_grad_(False)
            self.dropout = nn.Dropout(0.5)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x):
            return self.scale * self.second(self.dropout(self.first(x)))

    module = Tied()
    bnn = BayesianModule(module, start_scale=1e-6)
    assert set(bnn.names) == {"first.weight", "second.bias"}
    assert bnn.features == 12
    x = torch.randn(5, 3, generator=seeded())
    assert torch.allclose(bnn.predict(x, 2, generator=seeded())[0], module.eval()(x), atol=1e-4)
    assert next(iter(bnn.double().predict(x.double(), 2))).dtype == torch.float64


# ---- the bound --------------------------------------------------------------------------------------------------


def test_mini_batches_give_the_bound_without_bias():
    x, y = rows(60)
    bnn = BayesianModule(net(3).double(), posterior="full", generator=seeded())
    whole = bnn.elbo(x, y, draws=2, generator=seeded())
    parts = [bnn.elbo(x[i::6], y[i::6], rows=60, draws=2, generator=seeded()) for i in range(6)]
    assert float(torch.stack(parts).mean().detach()) == pytest.approx(float(whole.detach()), rel=1e-9)
    objective = bnn.objective(x, y, batch_size=10, draws=2)
    objective.generator = seeded()
    values = torch.stack([objective(bnn).detach() for _ in range(600)]).mean(1)
    error = float(values.std()) / 600**0.5
    wanted = -float(bnn.elbo(x, y, draws=4000, generator=seeded()).detach()) / 60
    assert abs(float(values.mean()) - wanted) < 4 * error + 0.02 * abs(wanted)


def test_path_gradients_have_the_same_mean_as_the_others():
    x, y = rows()
    bnn = BayesianModule(nn.Linear(3, 1).double(), posterior="full", start_scale=0.3)
    means = []
    for path in (True, False):
        bnn.zero_grad()
        bnn.elbo(x, y, draws=20_000, path=path, generator=seeded()).backward()
        means.append(torch.cat([p.grad.flatten() for p in bnn.parameters()]))
    assert torch.allclose(means[0], means[1], rtol=0.1, atol=0.02 * float(means[0].abs().max()))


def test_a_plain_optimizer_and_float32_will_do():
    x, y = rows(dtype=torch.float32)
    bnn = BayesianModule(net(3), generator=seeded())
    optimizer = torch.optim.Adam(bnn.parameters(), 1e-2)
    before = float(bnn.elbo(x, y, draws=200, generator=seeded()).detach())
    for _ in range(100):
        optimizer.zero_grad()
        (-bnn.elbo(x[:20], y[:20], rows=40)).backward()
        optimizer.step()
    assert float(bnn.elbo(x, y, draws=200, generator=seeded()).detach()) > before + 100


def test_two_fits_with_one_seed_give_the_same_bits():
    x, y = rows()
    ends = []
    for _ in range(2):
        bnn = BayesianModule(net(3).double(), generator=seeded(3))
        bnn.fit(x, y, steps=10, batch_size=16, generator=seeded(4), progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in bnn.parameters()]))
    assert torch.equal(*ends)


# ---- names ------------------------------------------------------------------------------------------------------


def test_no_parameter_is_registered_twice_and_the_network_is_left_alone():
    module = net()
    before = copy.deepcopy(module.state_dict())
    bnn = BayesianModule(module, posterior="mean-field", noise=0.1)
    count = sum(p.numel() for p in module.parameters())
    assert sum(p.numel() for p in bnn.parameters()) == 2 * count  # a shift and a scale for each weight
    assert not {id(p) for p in module.parameters()} & {id(p) for p in bnn.parameters()}
    assert all(name.startswith("blocks.") or name == "prior_scale" for name in bnn.state_dict())
    bnn.fit(torch.randn(9, 2), torch.randn(9, 1), steps=5, progress=False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def test_state_dict_and_deepcopy_carry_the_posterior():
    x = torch.randn(6, 2, generator=seeded())
    bnn = BayesianModule(net(), over="last", start_scale=0.7, generator=seeded())
    other = BayesianModule(net(hidden=4), over="last", generator=seeded(9))
    other.load_state_dict(bnn.state_dict())
    wanted = bnn.predict(x, 3, generator=seeded())
    assert torch.equal(other.predict(x, 3, generator=seeded()), wanted)
    assert torch.equal(copy.deepcopy(bnn).predict(x, 3, generator=seeded()), wanted)


def test_kl_by_name_of_a_narrow_gaussian_is_the_closed_form():
    module = net()
    bnn = BayesianModule(module, prior={"0.*": 2.0, "*": 0.5}, posterior="mean-field", start_scale=0.1)
    found = bnn.kl(20_000, seeded())
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name, weight in module.named_parameters():
        prior = 2.0 if name.startswith("0") else 0.5
        closed = (math.log(10) + (0.01 - 1) / 2) * weight.numel() + float((weight.detach() / prior).square().sum()) / 2
        assert found[name] == pytest.approx(closed, rel=0.01)


def test_the_last_layer_or_a_subspace_may_have_the_flow_and_the_rest_is_gaussian():
    last = BayesianModule(net(), over="last")
    assert list(last.kl(10)) == ["last", "0.weight", "0.bias"]
    assert [block.features for block in last.blocks] == [5, 8, 4]
    first = BayesianModule(net(), over="0.*", posterior="full", noise="posterior")
    assert list(first.kl(10)) == ["0.*", "2.weight", "2.bias", "log_noise"]
    wide = BayesianModule(net(hidden=2000), rank=3, generator=seeded())
    assert list(wide.kl(2)) == ["all"]
    x = torch.randn(5, 2, generator=seeded())
    wide.elbo(x, x[:, :1], rows=50).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in wide.parameters())


def test_a_flow_of_ones_own_even_one_whose_density_is_slow():
    x, y = rows(dtype=torch.float32)
    for make in (
        lambda d: flowlab.presets.planar(d, layers=2),
        lambda d: flowlab.presets.nsf(d, layers=1, hidden=(8,)),
    ):
        bnn = BayesianModule(nn.Linear(3, 1), posterior=make)
        bnn.fit(x, y, steps=30, draws=4, generator=seeded(), progress=False)
        assert math.isfinite(float(bnn.elbo(x, y).detach()))


def test_the_new_layers_are_layers():
    for layer in (Triangular(4), Subspace(6, [Triangular(2)], generator=seeded())):
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(torch.randn(p.shape, generator=seeded()))
        flowlab.check_layer(layer)


# ---- priors and messages ----------------------------------------------------------------------------------------


def test_priors_by_default_by_pattern_and_by_function():
    module = net(inputs=4, hidden=9)
    named = [
        (None, {"0.weight": 1 / 2, "0.bias": 1.0, "2.weight": 1 / 3, "2.bias": 1.0}),
        (0.2, dict.fromkeys(("0.weight", "0.bias", "2.weight", "2.bias"), 0.2)),
        ({"*.bias": 3.0, "*": 1.0}, {"0.weight": 1.0, "0.bias": 3.0, "2.weight": 1.0, "2.bias": 3.0}),
        (lambda name, p: 1.0 + p.ndim, {"0.weight": 3.0, "0.bias": 2.0, "2.weight": 3.0, "2.bias": 2.0}),
    ]
    for prior, wanted in named:
        bnn = BayesianModule(module, prior=prior, posterior="mean-field")
        scales = bnn.unflatten(bnn.prior_scale)
        for name, value in wanted.items():
            assert torch.allclose(scales[name], torch.full_like(scales[name], value))
    zero = torch.zeros(bnn.features)
    assert float(bnn.log_prior(zero)) == pytest.approx(float(Normal(zero, bnn.prior_scale).log_prob(zero).sum()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "ful"}, "posterior must be"),
        ({"likelihood": "normal"}, "likelihood must be"),
        ({"noise": -1.0}, "noise must be"),
        ({"noise": "fixed"}, "noise must be"),
        ({"prior": -1.0}, "prior must be positive"),
        ({"prior": {"0.*": 1.0}}, "prior has no pattern that fits '2.weight'"),
        ({"over": "head.*"}, "over must be"),
        ({"rank": 99}, "rank must be from 1 to the 17 weights"),
        ({"start_scale": 0.0}, "start_scale"),
        ({"posterior": lambda d: flowlab.presets.nsf(d + 1)}, "posterior must make a flow of 17 features"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BayesianModule(net(), **options)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="layer '1' is a BatchNorm1d"):
        BayesianModule(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="no parameter"):
        BayesianModule(nn.Tanh())
    with pytest.raises(ValueError, match="share a real floating-point type"):
        BayesianModule(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double()))
    with pytest.raises(ValueError, match='give over="last"'):
        BayesianModule(net(hidden=2000))


def test_data_that_do_not_fit_are_named():
    bnn = BayesianModule(net())
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"y must have shape \(5, 1\)"):
        bnn.elbo(x, torch.zeros(5))
    with pytest.raises(ValueError, match="x and y must have the same number of rows"):
        bnn.elbo(x, torch.zeros(4, 1))
    with pytest.raises(ValueError, match="rows is the number of all rows"):
        bnn.elbo(x, torch.zeros(5, 1), rows=3)
    with pytest.raises(ValueError, match=r"x is torch.float64, this module takes torch.float32"):
        bnn.predict(x.double(), 3)


@pytest.mark.slow
def test_the_example_runs_and_draws(tmp_path, capsys):
    example = load_program("examples/bayesian_regression.py")
    scores = example.main(seeds=1, steps=100, picture=str(tmp_path / "pit.png"))
    assert all(scores[posterior][0] > scores["deterministic"][0] for posterior in ("mean-field", "full", "flow"))
    assert (tmp_path / "pit.png").stat().st_size > 10_000
    assert "in 90 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x, y: (x.numpy(), y), TypeError, "x must be a torch.Tensor, not ndarray"),
        (lambda x, y: (x, y.numpy()), TypeError, "y must be a torch.Tensor, not ndarray"),
        (lambda x, y: (x.long(), y), ValueError, r"x is torch.int64, this module takes torch.float32: convert x by"),
        (lambda x, y: (x.bfloat16(), y), ValueError, r"convert x by .to\(torch.float32\)$"),
        (lambda x, y: (x * math.nan, y), ValueError, "x holds a value that is not finite in row 0"),
        (lambda x, y: (x, y / 0), ValueError, "y holds a value that is not finite in row 0"),
        (lambda x, y: (x[:0], y[:0]), ValueError, "at least one"),
        (lambda x, y: (x, y[:3]), ValueError, "same number of rows"),
    ],
)
def test_rows_that_do_not_fit_are_named_before_training(make, error, message):
    bnn = BayesianModule(nn.Linear(3, 1), posterior="mean-field")
    with pytest.raises(error, match=message):
        bnn.fit(*make(torch.ones(10, 3), torch.ones(10, 1)), steps=2, progress=False)


def test_numbers_and_classes_are_looked_at():
    for options in ({"noise": 0}, {"noise": math.inf}, {"start_scale": -1}, {"start_noise": "1"}, {"rank": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            BayesianModule(nn.Linear(3, 1), **options)
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module"):
        BayesianModule("net")
    bnn = BayesianModule(nn.Linear(3, 2), posterior="mean-field", likelihood="categorical")
    x = torch.ones(10, 3)
    with pytest.raises(ValueError, match=r"convert y by .long"):
        bnn.fit(x, torch.zeros(10), steps=1, progress=False)
    bnn.fit(x, torch.zeros(10, dtype=torch.int32), steps=1, progress=False)
    assert bnn.sample(5)["weight"].shape == (5, 2, 3)
