"""Variational objectives: values and gradients against closed forms, and training through `fit`."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import flowlab
from flowlab.bases import Gaussian
from flowlab.layers import LULinear
from flowlab.training import objectives, path_gradients

MEAN = torch.tensor([1.0, -2.0])
COVARIANCE = torch.tensor([[2.0, 0.8], [0.8, 1.0]])
LOG_EVIDENCE = 1.5
TARGET = MultivariateNormal(MEAN, COVARIANCE)


def log_prob(z: torch.Tensor) -> torch.Tensor:
    return TARGET.log_prob(z) + LOG_EVIDENCE


def affine(features: int = 2) -> flowlab.Flow:
    return flowlab.Flow(Gaussian(features), [LULinear(features)])


def exact() -> flowlab.Flow:
    """A flow that is the target."""
    flow = affine()
    factor = torch.linalg.cholesky(COVARIANCE)
    with torch.no_grad():
        layer = flow.layers[0]
        layer.shift.copy_(MEAN)
        layer.lower.copy_(factor / factor.diagonal())
        layer.diagonal.copy_(torch.log(torch.expm1(factor.diagonal())))
    return flow


def gradient(objective: objectives.Objective, flow: flowlab.Flow) -> torch.Tensor:
    flow.zero_grad()
    objective(flow, None, None).mean().backward()
    return torch.cat([p.grad.flatten() for p in flow.parameters()])


ALL = {
    "ReverseKL": lambda f, n: objectives.ReverseKL(f, n),
    "StickingTheLanding": lambda f, n: objectives.StickingTheLanding(f, n),
    "IWAE": lambda f, n: objectives.IWAE(f, n, k=8),
    "DReG": lambda f, n: objectives.DReG(f, n, k=8),
    "Renyi": lambda f, n: objectives.Renyi(f, n, k=8, alpha=0.5),
    "ForwardKL": lambda f, n: objectives.ForwardKL(f, n),
}


@pytest.mark.parametrize("name", ALL)
def test_training_finds_the_target(name, generator):
    flow = affine()
    options = {"schedule": "cosine", "ema": 0.0, "learning_rate": 0.05, "weight_decay": 0.0, "progress": False}
    history = flowlab.fit(flow, steps=600, objective=ALL[name](log_prob, 128), generator=generator, **options)
    assert history.records[-1]["step"] == 600
    x, log_q = flow.rsample_and_log_prob((20_000,), generator=generator)
    divergence = (log_q - TARGET.log_prob(x)).mean().item()
    assert divergence < (
        0.03 if name == "IWAE" else 0.01
    )  # grouped draws leave q undecided where weights make up for it


@pytest.mark.parametrize("name", [name for name in ALL if name != "ForwardKL"])
def test_at_the_target_every_bound_is_the_log_evidence(name):
    losses = ALL[name](log_prob, 64)(exact())
    assert torch.allclose(losses, torch.full_like(losses, -LOG_EVIDENCE), atol=1e-5)


@pytest.mark.parametrize("name", ["StickingTheLanding", "DReG"])
def test_path_gradients_vanish_at_the_target(name):
    assert gradient(ALL[name](log_prob, 64), exact()).abs().max() < 1e-5
    assert gradient(objectives.ReverseKL(log_prob, 64), exact()).abs().max() > 1e-2


def closed_form_elbo_gradient(mean: float, scale: float) -> tuple[float, float]:
    """Of KL(N(mean, scale²), N(0, 1)) in mean and in log scale."""
    return mean, scale**2 - 1


@pytest.mark.parametrize("name", ["ReverseKL", "StickingTheLanding"])
def test_gradients_agree_with_the_closed_form_within_four_standard_errors(name):
    flow = flowlab.Flow(Gaussian(1), [LULinear(1)])
    with torch.no_grad():
        flow.layers[0].shift.fill_(0.7)
        flow.layers[0].diagonal.fill_(math.log(math.expm1(1.5)))
    wanted = closed_form_elbo_gradient(0.7, 1.5)
    # d log scale / d raw = sigmoid(raw) / scale
    chain = 1.5 / torch.sigmoid(flow.layers[0].diagonal).item()
    standard = torch.distributions.Normal(0.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    objective = ALL[name](lambda z: standard.log_prob(z).sum(-1), 5_000)
    objective.generator = generator
    found = []
    for _ in range(200):
        gradient(objective, flow)
        found.append([flow.layers[0].shift.grad.item(), flow.layers[0].diagonal.grad.item() * chain])
    found = torch.tensor(found)
    error = found.std(0) / 200**0.5
    assert bool(((found.mean(0) - torch.tensor(wanted)).abs() < 4 * error + 1e-6).all())


def test_bounds_are_ordered_and_iwae_and_dreg_agree(generator):
    flow = affine()
    value = {name: float(make(log_prob, 80_000)(flow).mean()) for name, make in ALL.items() if name != "ForwardKL"}
    assert -value["ReverseKL"] < -value["Renyi"] < -value["IWAE"] < LOG_EVIDENCE
    assert abs(value["IWAE"] - value["DReG"]) < 0.05
    assert abs(value["ReverseKL"] - value["StickingTheLanding"]) < 0.1
    one = objectives.Renyi(log_prob, 80_000, k=8, alpha=1.0)(flow).mean()
    assert abs(float(one) - value["ReverseKL"]) < 0.1


@pytest.mark.parametrize("context_features", [0, 2])
def test_path_gradients_agree_whichever_direction_is_slow(context_features, generator):
    flow = flowlab.presets.iaf(
        3, layers=2, hidden=(8,), context_features=context_features, generator=generator
    ).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.empty_like(p).normal_(generator=generator))
    context = torch.randn(4, 2, generator=generator).double() if context_features else None

    def target(z: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return -(z - 1).pow(4).sum(-1)

    def found(by_path) -> torch.Tensor:
        objective = objectives.StickingTheLanding(target, 16, generator=torch.Generator().manual_seed(3))
        flow.zero_grad()
        by_path(objective).sum().backward()
        return torch.cat([p.grad.flatten() for p in flow.parameters()])

    def inverted(objective: objectives.Variational) -> torch.Tensor:
        z = flow.rsample((16,), context, objective.generator)
        return target(z, context) - path_gradients.constant(flow).log_prob(z, context)

    assert flow.fast == "sampling"
    assert torch.allclose(found(lambda o: o.weigh_by_path(flow, context)), found(inverted), atol=1e-7, rtol=1e-6)


class NoInverse(LULinear):
    """A layer that cannot be inverted."""

    def inverse(self, x, context=None):
        raise AssertionError("nobody asked for an inverse")


@pytest.mark.parametrize("name", ["ReverseKL", "IWAE", "Renyi", "slow density"])
def test_training_inverts_no_layer(name, generator):
    layer = NoInverse(2)
    make = ALL.get(name, ALL["StickingTheLanding"])
    if name == "slow density":
        layer.fast = "sampling"
    flow = flowlab.Flow(Gaussian(2), [layer])
    flowlab.fit(flow, steps=5, objective=make(log_prob, 8), generator=generator, progress=False)


def test_a_conditional_flow_learns_a_target_for_every_context(generator):
    """p(z | c) = N(A c, 1), for all c at once; rows of context are the batches."""
    matrix = torch.tensor([[1.0, 0.5], [-1.0, 2.0]])

    def target(z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return -(z - context @ matrix).square().sum(-1) / 2

    flow = flowlab.presets.real_nvp(2, context_features=2, layers=2, hidden=(32,), generator=generator)
    context = torch.randn(500, 2, generator=generator)
    objective = objectives.StickingTheLanding(target, 4)
    history = flowlab.fit(flow, None, context, objective=objective, epochs=60, generator=generator, progress=False)
    fresh = torch.randn(200, 2, generator=generator)
    z, log_q = flow.rsample_and_log_prob((500,), fresh, generator)
    exact = target(z, fresh) - math.log(2 * math.pi)
    assert float((log_q - exact).mean()) < 0.05
    assert history.records[-1]["validation"] == pytest.approx(-math.log(2 * math.pi), abs=0.1)


def test_tempering_raises_beta_to_one_and_frozen_parameters_stay(generator):
    flow = flowlab.Flow(Gaussian(2), [LULinear(2), LULinear(2)])
    flow.layers[0].requires_grad_(False)
    before = [p.clone() for p in flow.layers[0].parameters()]
    objective = objectives.Tempered(objectives.StickingTheLanding(log_prob, 32), steps=20)
    flowlab.fit(flow, steps=30, objective=objective, generator=generator, progress=False)
    assert objective.objective.beta == 1
    assert objective.generator is None
    assert all(torch.equal(a, b) for a, b in zip(before, flow.layers[0].parameters(), strict=True))
    assert not any(p.requires_grad for p in flow.layers[0].parameters())


def test_draws_at_which_the_target_is_not_finite_are_left_out(generator):
    def walled(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > -1, log_prob(z), math.nan)

    for make in ALL.values():
        objective = make(walled, 64)
        objective.generator = generator
        flow = affine()
        assert bool(torch.isfinite(objective(flow)).all())
        assert bool(torch.isfinite(gradient(objective, flow)).all())


def test_mini_batches_are_unbiased(generator):
    rows = torch.randn(1000, generator=generator)
    z = torch.tensor([[0.5]])

    def log_likelihood(z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return -(rows - z).square().sum(-1) / 2

    joint = objectives.MiniBatch(lambda z: -z.square().sum(-1) / 2, log_likelihood, rows, 50, generator)
    values = torch.stack([joint(z) for _ in range(2000)])
    wanted = -(0.5**2) / 2 + log_likelihood(z, rows)
    assert float((values.mean() - wanted).abs()) < 4 * float(values.std()) / 2000**0.5


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="multiple of k"):
        objectives.IWAE(log_prob, 10, k=3)
    with pytest.raises(ValueError, match="steps"):
        flowlab.fit(affine(), objective=objectives.ReverseKL(log_prob), progress=False)
    with pytest.raises(ValueError, match="steps"):
        flowlab.fit(affine(), torch.zeros(5, 2), steps=5, progress=False)


# One objective, several fits ----------------------------------------------------------------------------------------


def fitted(objective: objectives.Objective, **options) -> list[torch.Tensor]:
    flow = flowlab.Flow(Gaussian(2), [LULinear(2)])
    flowlab.fit(
        flow, steps=12, objective=objective, generator=torch.Generator().manual_seed(1), progress=False, **options
    )
    return list(flow.parameters())


@pytest.mark.parametrize("name", [*ALL, "Tempered"])
def test_a_second_fit_with_the_same_objective_is_the_same_algorithm(name):
    def make() -> objectives.Objective:
        if name == "Tempered":
            return objectives.Tempered(objectives.ReverseKL(log_prob, 16), steps=10)
        return ALL[name](log_prob, 16)

    objective = make()
    state = dict(vars(objective))
    first, second, other = fitted(objective), fitted(objective), fitted(make())
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, other, strict=True))
    assert vars(objective) == state
    assert objective.generator is None


def test_a_generator_of_the_objective_is_used_and_stays():
    own = torch.Generator().manual_seed(5)
    objective = objectives.IWAE(log_prob, 16, k=4, generator=own)
    before = own.get_state().clone()
    fitted(objective)
    assert objective.generator is own
    assert not torch.equal(own.get_state(), before)


class Counting(objectives.ReverseKL):
    """A user's own, which says in `__call__` what the loss is."""

    calls = 0

    def __call__(self, flow, x=None, context=None):
        self.calls += 1
        assert self.generator is not None
        return super().__call__(flow, x, context) / self.calls


class Covering(objectives.ForwardKL):
    def __call__(self, flow, x=None, context=None):
        return 2 * super().__call__(flow, x, context)


class Twice(objectives.Tempered):
    def __call__(self, flow, x=None, context=None):
        return 2 * super().__call__(flow, x, context)


class Scaled(objectives.Drawing):
    """A user's own, which says it in `loss`."""

    generator = None

    def loss(self, model, x, context, at):
        z, log_q = model.rsample_and_log_prob((16,), None, at.generator)
        return (1 + at.step) * (log_q - log_prob(z))


USERS = {
    "overrides __call__": lambda: Counting(log_prob, 16),
    "overrides __call__, tempered": lambda: objectives.Tempered(Counting(log_prob, 16), steps=10),
    "overrides ForwardKL.__call__": lambda: Covering(log_prob, 16, pool=64, refresh=5),
    "overrides __call__ of what is tempered": lambda: objectives.Tempered(Covering(log_prob, 16, pool=64), steps=10),
    "overrides Tempered.__call__": lambda: Twice(objectives.ReverseKL(log_prob, 16), steps=10),
    "defines loss": Scaled,
}


@pytest.mark.parametrize("name", USERS)
def test_users_objectives_of_derived_classes_are_the_same_algorithm_in_every_fit(name):
    objective = USERS[name]()
    state, inner = dict(vars(objective)), dict(vars(getattr(objective, "objective", objective)))
    first, second, other = fitted(objective), fitted(objective), fitted(USERS[name]())
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, other, strict=True))
    assert vars(objective) == state
    assert vars(getattr(objective, "objective", objective)) == inner
    assert objective.generator is None


def test_an_objective_counts_its_steps_outside_of_a_fit_alone(generator):
    flow = affine()
    objective = objectives.Tempered(objectives.ReverseKL(log_prob, 16), steps=4, start=0.2)
    betas = []
    for _ in range(6):
        objective(flow)
        betas.append(round(objective.objective.beta, 3))
    assert betas == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    fitted(objective)
    flow.eval()
    objective(flow)
    assert objective.taken == 6
    objective.generator = generator
    assert objective.objective.generator is objective.generator is generator


def test_losses_depend_on_their_arguments_alone():
    flow = affine()
    for objective in (ALL["ReverseKL"](log_prob, 16), objectives.Tempered(ALL["IWAE"](log_prob, 16), steps=10)):
        state = dict(vars(objective))
        moments = [objectives.Moment(step, torch.Generator().manual_seed(2)) for step in (3, 7, 3)]
        first, later, again = (objective.loss(flow, None, None, at) for at in moments)
        assert torch.equal(first, again)
        assert torch.equal(first, later) == isinstance(objective, objectives.ReverseKL)
        assert vars(objective) == state


def test_forward_kl_keeps_nothing_of_a_fit_and_a_fit_nothing_of_calls():
    objective = objectives.ForwardKL(log_prob, 16, pool=64)
    expected = fitted(objective)
    assert not objective._pools
    flow = affine()
    objective.generator = torch.Generator().manual_seed(1)
    objective(flow)
    objective.generator = None
    kept = objective._pools[flow]
    options = {"steps": 12, "generator": torch.Generator().manual_seed(1), "progress": False}
    flowlab.fit(flow, objective=objective, **options)
    assert objective._pools[flow] is kept
    assert kept.steps == 1
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), expected, strict=True))


def test_forward_kl_has_a_pool_for_each_flow(generator):
    objective = objectives.ForwardKL(log_prob, 32, generator=generator, pool=256)
    near, far = affine(), affine()
    with torch.no_grad():
        far.layers[0].shift.fill_(50.0)
    objective(near), objective(far)
    pools = {flow: pool.draws for flow, pool in objective._pools.items()}
    assert float(pools[near].abs().max()) < 20 < float(pools[far].min())


def test_constant_parameters_leave_the_flow_alone_in_other_threads():
    from concurrent.futures import ThreadPoolExecutor

    flow = flowlab.presets.real_nvp(2, layers=2, hidden=8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))

    def run(i: int) -> bool:
        for _ in range(10):
            if i % 2:
                objectives.StickingTheLanding(log_prob, 16)(flow)
            elif not all(p.requires_grad for p in flow.parameters()) or not flow.log_prob(x).requires_grad:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))
    still = path_gradients.constant(flow)
    assert torch.equal(still.log_prob(x), flow.log_prob(x))
    assert not still.log_prob(x).requires_grad
    assert all(p.requires_grad for p in flow.parameters())


def test_constant_knows_shared_and_recurrent_modules():
    lstm = torch.nn.LSTM(2, 3, batch_first=True)
    both = torch.nn.ModuleList([lstm, lstm])
    still = path_gradients.constant(both)
    assert still[0] is still[1]
    assert still[0] is not lstm
    x = torch.randn(4, 5, 2)
    assert not still[0](x)[0].requires_grad
    assert torch.equal(still[0](x)[0], lstm(x)[0])
    assert lstm(x)[0].requires_grad
