"""`fit`: what it reaches, what it reports, and what it survives."""

import math
import sys

import pytest
import torch
from torch.distributions import MultivariateNormal

import flowlab
from flowlab.bases import Gaussian
from flowlab.layers import ActNorm, Autoregressive, ElementwiseAffine, LULinear, Marginal, Whitening
from helpers import seeded


def correlated(n: int, generator: torch.Generator) -> tuple[torch.Tensor, MultivariateNormal]:
    scale = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.3, 1.5]])
    truth = MultivariateNormal(torch.tensor([1.0, -2.0, 5.0]), scale_tril=scale)
    noise = torch.randn(n, 3, generator=generator)
    return truth.loc + noise @ scale.T, truth


def test_a_linear_flow_recovers_mean_and_covariance():
    x, _ = correlated(20_000, seeded())
    flow = flowlab.Flow(Gaussian(3), [LULinear(3), ActNorm(3)])
    flowlab.fit(flow, x, validation=0.0, epochs=40, learning_rate=1e-2, generator=seeded(), progress=False)
    drawn = flow.sample((100_000,), generator=seeded(1))
    # The maximum-likelihood Gaussian has the sample's own moments.
    assert torch.allclose(drawn.mean(0), x.mean(0), atol=0.03)
    assert torch.allclose(drawn.T.cov(), x.T.cov(), atol=0.08)
    best = MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()
    assert abs(float(flow.log_prob(x).mean().detach() - best)) < 2e-3


@pytest.mark.parametrize(("schedule", "epochs", "earlier"), [("cosine", 1000, 1000), ("restarts", 8000, 24_000)])
def test_the_weights_kept_are_those_that_did_best_on_validation_rows(schedule, epochs, earlier):
    x, _ = correlated(600, seeded())
    held_out, _ = correlated(300, seeded(1))
    flow = flowlab.presets.real_nvp(3, layers=2, hidden=(32,), generator=seeded())
    options = {"validation": held_out, "patience": 12, "progress": False, "generator": seeded()}
    history = flowlab.fit(flow, x, schedule=schedule, epochs=epochs, **options)
    with torch.no_grad():
        assert -float(flow.log_prob(held_out).mean()) == pytest.approx(history.best, abs=1e-5)
    frame = history.frame
    assert frame["validation"].min() == history.best
    assert frame.loc[frame["validation"].idxmin(), "step"] == history.best_step
    assert history.converged
    assert "no improvement" in history.reason
    assert frame["step"].iloc[-1] < earlier  # it did stop early


def test_an_interrupted_improvement_is_not_called_converged():
    x, _ = correlated(2000, seeded())
    flow = flowlab.presets.real_nvp(3, layers=4, hidden=(32,), generator=seeded())
    history = flowlab.fit(flow, 100 * x, epochs=2, schedule="constant", generator=seeded(), progress=False)
    assert not history.converged
    assert "more epochs" in history.reason


def test_losses_are_in_the_datas_units_behind_fixed_preprocessing():
    x, _ = correlated(1000, seeded())
    x = (1000 * x).double()
    flow = flowlab.Flow(Gaussian(3), [Autoregressive(3, hidden=(16,)), Whitening(3).double(), Marginal(3).double()])
    history = flowlab.fit(flow, x, validation=x[:100], epochs=5, generator=seeded(), progress=False)
    with torch.no_grad():
        assert -float(flow.log_prob(x[:100]).mean()) == pytest.approx(history.best, abs=1e-4)
        assert history.frame["train"].iloc[-1] == pytest.approx(-float(flow.log_prob(x[:100]).mean()), abs=0.2)


def test_two_runs_with_one_seed_give_the_same_bits_and_leave_the_global_state_alone():
    x, _ = correlated(500, seeded())

    def run() -> list[torch.Tensor]:
        generator = seeded(3)
        flow = flowlab.Flow(
            Gaussian(3), [Autoregressive(3, hidden=(32,), dropout=0.3, generator=generator) for _ in range(2)]
        )
        flowlab.fit(flow, x, epochs=10, generator=generator, progress=False)
        return list(flow.parameters())

    state = torch.random.get_rng_state()
    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


def test_rows_without_weight_have_no_influence_and_weights_count_like_copies():
    x, _ = correlated(3000, seeded())
    outliers = x[:1000] + 50
    weight = torch.cat([torch.ones(3000), torch.zeros(1000)])
    flow = flowlab.Flow(Gaussian(3), [LULinear(3), Whitening(3)])
    flowlab.fit(flow, torch.cat([x, outliers]), sample_weight=weight, epochs=20, generator=seeded(), progress=False)
    assert torch.allclose(flow.sample((20_000,), generator=seeded()).mean(0), x.mean(0), atol=0.15)

    two = torch.cat([torch.zeros(500, 1), torch.ones(500, 1)]) + 0.1 * torch.randn(1000, 1, generator=seeded())
    weight = torch.cat([torch.full((500,), 3.0), torch.ones(500)])
    flow = flowlab.Flow(Gaussian(1), [ElementwiseAffine(1)])
    flowlab.fit(flow, two, sample_weight=weight, epochs=300, learning_rate=2e-2, generator=seeded(), progress=False)
    expected = float((weight * two[:, 0]).sum() / weight.sum())
    assert float(flow.sample((50_000,), generator=seeded()).mean()) == pytest.approx(expected, abs=0.04)


def test_context_is_used():
    generator = seeded()
    context = torch.rand(4000, 1, generator=generator) * 4 - 2
    x = torch.cat([context, -context], -1) + 0.2 * torch.randn(4000, 2, generator=generator)
    flow = flowlab.presets.maf(2, context_features=1, layers=2, hidden=(32,), generator=generator)
    flowlab.fit(flow, x, context, epochs=40, generator=generator, progress=False)
    means = flow.sample((4000,), torch.tensor([[-1.5], [0.0], [1.5]]), generator).mean(0)
    assert torch.allclose(means, torch.tensor([[-1.5, 1.5], [0.0, 0.0], [1.5, -1.5]]), atol=0.15)


def test_frozen_parameters_stay_frozen():
    x, _ = correlated(300, seeded())
    flow = flowlab.presets.real_nvp(3, layers=2, hidden=(8,), generator=seeded())
    for parameter in flow.layers[0].parameters():
        parameter.requires_grad_(False)
    before = [p.clone() for p in flow.layers[0].parameters()]
    history = flowlab.fit(flow, x, epochs=3, generator=seeded(), progress=False)
    assert len(history.records) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, flow.layers[0].parameters(), strict=True))


class NowAndThenNaN(flowlab.NLL):
    """Spoils every seventh training batch."""

    calls = 0

    def __call__(self, flow, x, context=None):
        loss = super().__call__(flow, x, context)
        if not flow.training:
            return loss
        self.calls += 1
        return loss * math.nan if self.calls % 7 == 0 else loss


def test_steps_that_are_not_finite_are_skipped_and_counted():
    x, truth = correlated(2000, seeded())
    flow = flowlab.Flow(Gaussian(3), [LULinear(3), ActNorm(3)])
    history = flowlab.fit(
        flow, x, objective=NowAndThenNaN(), epochs=60, learning_rate=1e-2, generator=seeded(), progress=False
    )
    steps, skipped = history.frame["step"].iloc[-1], history.frame["skipped"].iloc[-1]
    assert skipped == steps // 7
    assert history.roll_backs == 0
    assert float(truth.log_prob(x).mean() - flow.log_prob(x).mean()) < 0.02


class Diverging(flowlab.NLL):
    """Infinite from step `start` on, until the learning rate has been halved `halvings` times."""

    def __init__(self, start: int, until: int) -> None:
        self.start, self.until, self.calls = start, until, 0

    def __call__(self, flow, x, context=None):
        loss = super().__call__(flow, x, context)
        if flow.training:
            self.calls += 1
            if self.start <= self.calls < self.until:
                return loss + math.inf
        return loss


def test_after_several_bad_steps_the_best_weights_come_back_and_training_goes_on():
    x, truth = correlated(2000, seeded())
    flow = flowlab.Flow(Gaussian(3), [LULinear(3), ActNorm(3)])
    history = flowlab.fit(
        flow, x, objective=Diverging(60, 100), epochs=100, learning_rate=2e-2, generator=seeded(), progress=False
    )
    assert 1 <= history.roll_backs <= 3
    assert history.frame["learning_rate"].max() <= 2e-2
    assert float(truth.log_prob(x).mean() - flow.log_prob(x).mean()) < 0.02


def test_training_that_stays_non_finite_names_the_worst_cell_and_keeps_finite_weights():
    x, _ = correlated(400, seeded())
    x[17, 2] = 1e9
    flow = flowlab.presets.real_nvp(3, layers=2, hidden=(8,), generator=seeded())
    with pytest.raises(flowlab.TrainingError, match=r"column 2"):
        flowlab.fit(flow, x, objective=Diverging(1, 10**9), validation=0.0, generator=seeded(), progress=False)
    assert all(torch.isfinite(p).all() for p in flow.parameters())


@pytest.mark.slow
def test_thirty_two_affine_layers_survive_outliers_of_ten_thousand_standard_deviations():
    generator = seeded()
    x = torch.randn(4000, 20, generator=generator)
    rows = torch.randint(4000, (40,), generator=generator)
    x[rows, torch.randint(20, (40,), generator=generator)] = 1e4 * torch.randn(40, generator=generator).sign()
    flow = flowlab.presets.real_nvp(20, layers=32, hidden=(32, 32), generator=generator)
    history = flowlab.fit(
        flow, x, epochs=36, batch_size=64, patience=10**6, schedule="constant", generator=generator, progress=False
    )
    frame = history.frame
    assert frame["step"].iloc[-1] >= 2000
    assert frame["skipped"].iloc[-1] == 0
    assert history.roll_backs == 0
    assert frame[["train", "validation", "gradient_norm"]].map(math.isfinite).all(axis=None)
    assert frame["validation"].iloc[-1] < frame["validation"].iloc[0]
    assert all(torch.isfinite(p).all() for p in flow.parameters())


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_every_schedule_and_average_learns(schedule, ema):
    x, truth = correlated(2000, seeded())
    flow = flowlab.Flow(Gaussian(3), [LULinear(3), ActNorm(3)])
    history = flowlab.fit(
        flow, x, schedule=schedule, ema=ema, epochs=80, learning_rate=1e-2, generator=seeded(), progress=False
    )
    assert float(truth.log_prob(x).mean() - flow.log_prob(x).mean()) < 0.03
    last = history.frame["learning_rate"].iloc[-1]
    if schedule == "cosine" and "all 80" in history.reason:
        assert last < 1e-4


def test_progress_false_is_silent_and_true_shows_a_bar(capsys, monkeypatch):
    x, _ = correlated(200, seeded())
    flow = flowlab.presets.nice(3, layers=1, hidden=(4,), generator=seeded())
    flowlab.fit(flow, x, epochs=2, progress=False)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flowlab.fit(flow, x, epochs=2, progress=True)
    assert "fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": torch.zeros(10, 4)}, r"data must have shape \(10, 3\), not \(10, 4\)"),
        ({"data": torch.tensor([[0.0, 1.0, 2.0], [0.0, math.nan, 1.0]])}, "row 1, column 1"),
        ({"context": torch.zeros(10, 2)}, "context"),
        ({"sample_weight": torch.full((10,), -1.0)}, "sample_weight"),
        ({"sample_weight": torch.zeros(10)}, "zero everywhere"),
        ({"validation": 1.5}, "validation"),
        ({"validation": torch.zeros(4, 2)}, "validation must have shape"),
    ],
)
def test_bad_input_is_named(options, message):
    flow = flowlab.presets.nice(3, layers=1, hidden=(4,))
    arguments = {"data": torch.zeros(10, 3), "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        flowlab.fit(flow, **arguments)


def test_one_row_and_empty_tables():
    flow = flowlab.presets.nice(3, layers=1, hidden=(4,))
    flowlab.fit(flow, torch.zeros(1, 3), epochs=2, progress=False)
    with pytest.raises(ValueError, match="at least 1"):
        flowlab.fit(flow, torch.zeros(0, 3), progress=False)


# Opt-ins ----------------------------------------------------------------------------------------------------------


def test_fit_goes_on_uncompiled_where_nothing_can_be_compiled(monkeypatch):
    def no_compiler(function, **options):
        def call(*arguments):
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    flow = flowlab.presets.real_nvp(2, layers=2, hidden=(8,), generator=seeded())
    with pytest.warns(UserWarning, match="runs uncompiled: RuntimeError: no compiler here"):
        history = flowlab.fit(
            flow, torch.randn(200, 2, generator=seeded(1)), epochs=2, compile=True, progress=False, generator=seeded()
        )
    assert history.records


def test_matmul_precision_holds_during_the_fit_alone():
    seen = []

    def objective(flow, x, context):
        seen.append(torch.get_float32_matmul_precision())
        return -flow.log_prob(x)

    before = torch.get_float32_matmul_precision()
    flow = flowlab.presets.real_nvp(2, layers=2, hidden=(8,), generator=seeded())
    options = {"objective": objective, "epochs": 1, "progress": False, "generator": seeded()}
    flowlab.fit(flow, torch.randn(200, 2, generator=seeded(1)), matmul_precision="high", **options)
    assert set(seen) == {"high"}
    assert torch.get_float32_matmul_precision() == before


def test_parameters_have_memory_of_their_own_after_the_fit():
    flow = flowlab.presets.real_nvp(2, layers=2, hidden=(8,), generator=seeded())
    flowlab.fit(flow, torch.randn(200, 2, generator=seeded(1)), epochs=1, progress=False, generator=seeded())
    assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in flow.parameters())
    assert all(p.grad is None for p in flow.parameters())


# At the door ------------------------------------------------------------------------------------------------------


def small(context_features: int = 0) -> flowlab.Flow:
    return flowlab.presets.nice(3, layers=1, hidden=4, context_features=context_features, generator=seeded())


X = torch.randn(20, 3, generator=seeded())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (X.numpy(), TypeError, "data must be a torch.Tensor, not ndarray; use torch.as_tensor"),
        (X.tolist(), TypeError, "data must be a torch.Tensor, not list"),
        (
            X.long(),
            ValueError,
            r"data is torch.int64, this flow takes torch.float32: convert data by .to\(torch.float32\)$",
        ),
        (X.bfloat16(), ValueError, r"convert data by .to\(torch.float32\)$"),
        (X > 0, ValueError, r"convert data by .to\(torch.float32\)$"),
        (X.double(), ValueError, r"or the flow by .to\(torch.float64\)"),
        (X[0], ValueError, r"data must have shape \(n, 3\), not \(3,\)"),
        (X[0, 0], ValueError, r"data must have shape \(n, 3\), not \(\)"),
        (X[:0], ValueError, "at least 1"),
    ],
)
@pytest.mark.parametrize("mixture", [False, True])
def test_rows_that_a_flow_cannot_take_are_named(data, error, message, mixture):
    flow = flowlab.FlowMixture([small(), small()]) if mixture else small()
    with pytest.raises(error, match=message):
        flowlab.fit(flow, data, progress=False)
    with pytest.raises(error, match=message.replace("data", "validation")):
        flowlab.fit(flow, X, validation=data, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"learning_rate": 0}, "learning_rate must be"),
        ({"schedule": "Cosine"}, "schedule must be one of restarts, cosine"),
        ({"weight_decay": -1}, "weight_decay must not be negative"),
        ({"clip": 0}, "clip must be"),
        ({"ema": 1}, "ema must be"),
        ({"patience": 0}, "patience must be"),
        ({"time_limit": -1}, "time_limit must not"),
        ({"generator": 0}, "generator must be a torch.Generator"),
        ({"objective": "nll"}, "objective must be a function"),
        ({"sample_weight": [1.0] * 20}, "sample_weight must be a torch.Tensor"),
        ({"validation": None}, "validation must be a share"),
        ({"validation": (X, X, X)}, "validation must be a share"),
        ({"validation": True}, "validation must be a share"),
        ({"context": X}, "this flow takes none"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        flowlab.fit(small(), X, progress=False, **options)


def test_what_is_not_a_flow_is_named():
    for wrong in (X, flowlab.layers.Coupling(3), Gaussian(3)):
        with pytest.raises(TypeError, match="flow must be a Flow"):
            flowlab.fit(wrong, X, progress=False)
    with pytest.raises(ValueError, match="NLL needs rows"):
        flowlab.fit(small(), steps=3, progress=False)


def test_a_flow_with_a_context_gets_one_for_every_row():
    flow, context = small(2), X[:, :2]
    with pytest.raises(ValueError, match=r"needs context of shape \(20, 2\)"):
        flowlab.fit(flow, X, progress=False)
    with pytest.raises(ValueError, match=r"needs validation context of shape \(5, 2\)"):
        flowlab.fit(flow, X, context, validation=X[:5], progress=False)
    with pytest.raises(ValueError, match=r"validation context must have shape \(5, 2\), not \(1, 2\)"):
        flowlab.fit(flow, X, context, validation=(X[:5], context[:1]), progress=False)
    with pytest.raises(ValueError, match=r"context must have shape \(20, 2\), not \(1, 2\)"):
        flowlab.fit(flow, X, context[:1], progress=False)
    assert flowlab.fit(flow, X, context, validation=(X[:5], context[:5]), epochs=1, progress=False).records


def test_nothing_held_out_is_said_and_gradients_of_rows_are_left_alone():
    with pytest.warns(UserWarning, match=r"nothing is held out: a share of 0.1 of 3 rows"):
        flowlab.fit(small(), X[:3], epochs=1, progress=False)
    x = X.clone().requires_grad_()
    flowlab.fit(small(), x, epochs=1, progress=False)
    assert x.grad is None
    with pytest.warns(UserWarning, match="data has a gradient"):
        flowlab.fit(small(), 2 * x, epochs=1, progress=False)


def test_the_history_is_one_line():
    shown = repr(flowlab.fit(small(), X, epochs=60, progress=False, generator=seeded()))
    assert len(shown) < 200
    assert "nats per row at step" in shown


# Passes over the data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (7, 6), (7, 1), (7, 7), (7, 100), (1, 4)])
def test_every_epoch_sees_every_row_once(n, batch_size):
    seen: list[torch.Tensor] = []

    def objective(flow: flowlab.Flow, x: torch.Tensor, context: None) -> torch.Tensor:
        if flow.training:
            seen.append(x[:, 0])
        return -flow.log_prob(x)

    x = torch.arange(n).float().unsqueeze(1).expand(n, 3).contiguous()
    options = {"validation": 0, "epochs": 4, "batch_size": batch_size, "progress": False, "schedule": "constant"}
    history = flowlab.fit(small(), x, objective=objective, generator=seeded(), **options)
    steps = math.ceil(n / batch_size)
    assert len(seen) == 4 * steps == history.records[-1]["step"]
    assert max(len(rows) for rows in seen) <= batch_size
    assert (
        max(len(rows) for rows in seen) - min(len(rows) for rows in seen) <= 1
    )  # no batch of a few rows that counts as much
    for epoch in range(4):
        assert torch.equal(torch.cat(seen[epoch * steps : (epoch + 1) * steps]).sort().values, x[:, 0])


@pytest.mark.parametrize("preset", ["nsf", "maf", "glow", "circular_nsf", "planar"])
def test_batches_of_one_row_and_of_two_sizes_train(preset):
    for batch_size in (1, 6):
        flow = getattr(flowlab.presets, preset)(3, layers=1, generator=seeded())
        options = {"validation": 0, "epochs": 1, "progress": False, "generator": seeded()}
        history = flowlab.fit(flow, X[:7] / 3, batch_size=batch_size, **options)
        assert math.isfinite(history.records[-1]["train"])


# Generators -------------------------------------------------------------------------------------------------------


class Noisy(torch.nn.Module):
    """A network of the user's own with a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = seeded(7)
        self.features, self.context_features = 3, 0
        self.flow = flowlab.presets.real_nvp(3, layers=1, hidden=4, generator=seeded())

    def initialise(self, x: torch.Tensor) -> None:
        pass

    def log_prob(self, x: torch.Tensor, context: None = None) -> torch.Tensor:
        return self.flow.log_prob(x + 0.1 * torch.randn(x.shape, generator=self.generator))


def test_generators_of_others_stay_theirs():
    noisy = Noisy()
    own = noisy.generator
    flow = flowlab.Flow(Gaussian(3), [Autoregressive(3, hidden=(4,), dropout=0.2)])
    dropout, lent = flow.layers[0].network.drop, seeded(8)
    dropout.generator = lent
    before = own.get_state().clone(), lent.get_state().clone()
    flowlab.fit(noisy, X, epochs=1, progress=False)
    flowlab.fit(flow, X, epochs=1, progress=False)
    assert noisy.generator is own
    assert dropout.generator is lent
    for generator, state in zip((own, lent), before, strict=True):
        assert not torch.equal(generator.get_state(), state)  # it was used
    dropout.generator = None
    flowlab.fit(flow, X, epochs=1, progress=False)
    assert dropout.generator is None
