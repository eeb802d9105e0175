"""`FlowDensity(privacy=…)`: does nothing but the networks' weights see the rows, and is all else refused?"""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from flowlab import FlowClassifier, FlowDensity, FlowOutlier, datasets, load
from flowlab.tables.private import RowLoss, declared_table, encoded, member_for, networks
from flowlab.tables.private_ranks import cell_counts, denoised_shares, noisy_ranks, with_noise
from flowlab.tables.schema import Schema
from flowlab.training.private import row_gradients

needs_opacus = pytest.mark.skipif(find_spec("opacus") is None, reason="needs Opacus, the extra `private`")

BUDGET = {"epsilon": 2.0, "delta": 1e-4}
SCHEMA: dict[str, Any] = {
    "age": {"kind": "integer", "lower": 0, "upper": 120},
    "height": {"kind": "continuous", "lower": 0.5, "upper": 2.5},
    "city": {"kind": "categorical", "categories": ["Oslo", "Rome", "Lima", "Nowhere"]},
    "member": "boolean",
    "name": "excluded",
}


def people(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(20, 60, rows),
            "height": rng.normal(1.7, 0.1, rows),
            "city": rng.choice(["Oslo", "Rome", "Lima"], rows),
            "member": rng.random(rows) < 0.3,
            "name": [f"person {i}" for i in range(rows)],
        }
    )


@pytest.fixture(scope="module")
def fitted() -> FlowDensity:
    if find_spec("opacus") is None:
        pytest.skip("needs Opacus, the extra `private`")
    return FlowDensity(privacy=BUDGET, schema=SCHEMA, random_state=0).fit(people())


def split_of(model: FlowDensity) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What is noisy (the networks' weights, the numbers' ranks), and all other tensors of a model."""
    assert model.flow_ is not None
    state = model.flow_.state_dict()
    weights = {
        name: value
        for name, value in state.items()
        if ".ranks." in name or (".network." in name and not name.endswith("rank"))
    }
    return weights, {name: value for name, value in state.items() if name not in weights}


@needs_opacus
def test_nothing_but_weights_and_ranks_depends_on_a_row(fitted: FlowDensity):
    """A neighbour's row has the only person at the end of both ranges, and the only one from a declared city."""
    rows = people()
    rows.loc[7] = [120, 2.5, "Nowhere", True, "a name that no other has"]
    other = FlowDensity(privacy=BUDGET, schema=SCHEMA, random_state=0).fit(rows)
    assert other._to_file()[0] == fitted._to_file()[0]  # schema, reports, histories, parameters: the whole header
    (weights, rest), (_, rest_before) = split_of(other), split_of(fitted)
    assert rest.keys() == rest_before.keys()
    for name, tensor in rest.items():
        assert torch.equal(tensor, rest_before[name]), name
    assert any("first" in name for name in weights)
    assert other.summary() == fitted.summary()
    assert not any(word in str(other._to_file()[0]) for word in ("person 0", "a name that"))
    assert len(other.history_) == 0
    assert np.isnan(other.validation_score_)
    assert len(other.calibration_) == 0


@needs_opacus
@pytest.mark.slow
def test_noise_is_not_that_of_the_seed_in_the_file(fitted: FlowDensity):
    again = FlowDensity(privacy=BUDGET, schema=SCHEMA, random_state=0).fit(people())
    first, second = split_of(fitted)[0], split_of(again)[0]
    assert not torch.equal(*(next(v for k, v in part.items() if k.endswith("first")) for part in (first, second)))


@needs_opacus
def test_summary_states_the_budget_and_files_keep_it(fitted: FlowDensity, tmp_path):
    plan = fitted._model.privacy
    assert plan is not None
    assert plan.spent <= 2.0
    for text in (
        f"ε = {plan.spent:.3f} (asked: 2)",
        "δ = 0.0001",
        f"multiplier {plan.noise_multiplier:.3f}",
        "norm 1, ",
    ):
        assert text in fitted.summary()
    assert f"{plan.steps} steps" in fitted.summary()
    fitted.save(tmp_path / "m.flow")
    read = load(tmp_path / "m.flow")
    assert read.summary() == fitted.summary()
    assert read.privacy == BUDGET
    assert np.array_equal(read.score_samples(people(10, 3)), fitted.score_samples(people(10, 3)))


@needs_opacus
def test_draws_are_as_declared(fitted: FlowDensity):
    rows = fitted.sample(500, random_state=0)
    assert list(rows) == ["age", "height", "city", "member"]
    assert rows["age"].between(0, 120).all()
    assert rows["age"].dtype == "int64"
    assert rows["height"].between(0.5, 2.5).all()
    assert set(rows["city"]) <= {"Oslo", "Rome", "Lima", "Nowhere"}
    assert rows["member"].dtype == bool
    given = fitted.sample(20, random_state=0, given={"city": "Rome", "age": (30, 40)})
    assert given["age"].between(30, 40).all()
    outside = people(2).assign(age=[130, 50], city=["Rome", "Paris"])
    with pytest.warns(UserWarning, match="Paris"):
        assert np.isneginf(fitted.score_samples(outside)).all()
    with pytest.raises(ValueError, match="a private fit holds out no rows"):
        fitted.anomaly_p_value(people(5))


def test_ranks_are_those_of_the_rows_where_there_is_no_noise():
    rows = people(2000)
    table = declared_table(rows, SCHEMA, array=False)
    matrix, generator = encoded(table, rows), torch.Generator().manual_seed(0)
    age, height = noisy_ranks(table.variables, matrix, 1e-9, generator)
    for cdf, values in ((age, matrix[:, 0]), (height, matrix[:, 1])):
        cell = cdf.cell(values)
        middle = (cell.low + cell.width * torch.rand(len(values), generator=generator, dtype=torch.float64)).numpy()
        even = (middle - 0.5).clip(-0.475, 0.475) / 0.95 + 0.5  # what EVEN spreads over the range is beyond the rows
        assert stats.kstest(even, "uniform").statistic < 0.05
    blurred = noisy_ranks(table.variables, matrix, 1e9, generator)
    grid = torch.linspace(0, 120, 121, dtype=torch.float64)
    torch.testing.assert_close(blurred[0].cell(grid).low, grid / 121, atol=1e-2, rtol=0)


def test_counts_have_the_noise_that_is_accounted_for():
    """A row changes a count of each number by one: the norm of the change is the root of their number."""
    rows = people(50)
    table = declared_table(rows, SCHEMA, array=False)
    matrix = encoded(table, rows)
    for variable, values in zip(table.variables[:2], matrix.T, strict=False):
        change = cell_counts(variable, values) - cell_counts(variable, values[1:])
        assert sorted(change[change != 0].tolist()) == [1.0]
    ends = torch.tensor([0.0, 0.4, 119.6, 120.0], dtype=torch.float64)
    assert cell_counts(table.variables[0], ends).sum() == 4
    noise = with_noise(torch.zeros(5, 1024, dtype=torch.float64), 300.0, torch.Generator().manual_seed(0)).flatten()
    assert stats.kstest(noise.numpy() / 300, "norm").pvalue > 1e-3
    assert torch.equal(noise, noise.round())


def test_halves_that_differ_by_noise_alone_are_even():
    rng = np.random.default_rng(0)
    shares = denoised_shares(rng.normal(0, 10, 1024).round(), 10.0)
    assert np.isclose(shares.sum(), 1)
    assert np.median(shares) == 1 / 1024
    counts = np.where(np.arange(1024) < 100, 80.0, 0.0)
    found = denoised_shares((counts + rng.normal(0, 10, 1024)).round(), 10.0)
    assert found[:100].sum() > 0.95
    assert np.array_equal(denoised_shares(np.zeros(8), 1.0), np.full(8, 1 / 8))


def test_row_gradients_of_networks_are_those_of_one_row_loops():
    table = declared_table(people(), SCHEMA, array=False)
    generator = torch.Generator().manual_seed(0)
    ranks = noisy_ranks(table.variables, encoded(table, people()), 1.0, generator)
    flow = networks(table, ranks, member_for(120).sizes(120, 4), generator)
    for p in flow.network.parameters():  # away from zeros, of which the gradients of most weights are zero
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    rows = flow.cells(encoded(table, people(9))).float()
    visible = flow.network.visible(torch.stack([torch.randperm(4) for _ in rows]))
    loss = RowLoss(flow.network)
    found = row_gradients(loss, (rows, visible))
    for i in range(len(rows)):
        loss.zero_grad()
        loss(rows[i], visible[i]).backward()
        for name, p in loss.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(found[name][i], expected, rtol=1e-3, atol=1e-5)
    scored = flow.network.log_prob(rows, None)  # in the main order
    own = flow.network.visible(flow.network.rank).expand(len(rows), -1, -1)
    torch.testing.assert_close(torch.stack([-loss(*row) for row in zip(rows, own)]), flow.eval().network.log_prob(rows))
    assert scored.shape == (9,)


def test_a_declared_table_sees_names_alone():
    """Its frame may hold anything: the same columns and ranks come of it."""
    empty = pd.DataFrame(columns=list(SCHEMA))
    empty.columns = people().columns
    one, other = (declared_table(frame, SCHEMA, array=False) for frame in (people(), empty))
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": None}, "schema must be a dict"),
        ({"schema": Schema.infer(people())}, "schema must be a dict"),
        ({"schema": {k: v for k, v in SCHEMA.items() if k != "city"}}, "nothing of the kind of column 'city'"),
        ({"schema": SCHEMA | {"age": {"kind": "integer", "lower": 0}}}, "'age' declares no upper"),
        ({"schema": SCHEMA | {"city": "categorical"}}, "'city' declares no categories"),
        ({"schema": SCHEMA | {"city": {"kind": "categorical", "categories": ["Rome"]}}}, "two levels or more"),
        ({"schema": SCHEMA | {"age": {"kind": "integer", "lower": 9, "upper": 9}}}, "must be below upper"),
        ({"schema": SCHEMA | {"height": "datetime"}}, "'height' cannot be 'datetime'"),
        (
            {"schema": SCHEMA | {"height": {"kind": "continuous", "lower": 0, "upper": 3, "atoms": [1.7]}}},
            "'height' has atoms",
        ),
        ({"schema": SCHEMA | {"age": {"kind": "integer", "lower": 0, "upper": 30}}}, "column 'age' holds .* in row"),
        ({"schema": SCHEMA | {"city": {"kind": "categorical", "categories": ["Rome", "Oslo"]}}}, "column 'city' holds"),
        ({"schema": dict.fromkeys(SCHEMA, "excluded")}, "every column is excluded"),
        ({"effort": "best"}, "effort must be left out"),
        ({"members": ["mixed"]}, "members must be left out"),
        ({"rules": ["age > 0"]}, "rules must be left out"),
        ({"time_limit": 5}, "time_limit must be left out"),
        ({"validation": 0.2}, "validation must be left out"),
        ({"preprocessing": "marginal"}, "preprocessing must be left out"),
        ({"privacy": {"epsilon": 1.0}}, "privacy must be None or"),
        ({"privacy": {"epsilon": -1.0, "delta": 1e-5}}, "epsilon must be a finite number above 0"),
        ({"privacy": {"epsilon": 1.0, "delta": 1.0}}, "delta must be a number between 0 and 1"),
        ({"privacy": {"epsilon": 1.0, "delta": 0.1}}, "delta must be below 1 / 120"),
        ({"privacy": {"epsilon": 1.0, "delta": 1e-5, "clip": 1}}, "privacy must be None or"),
    ],
)
def test_what_cannot_be_private_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**({"privacy": BUDGET, "schema": SCHEMA, "random_state": 0} | change)).fit(people())


def test_other_rows_and_estimators_are_refused():
    model = FlowDensity(privacy=BUDGET, schema=SCHEMA)
    with pytest.raises(ValueError, match="sample_weight must be left out"):
        model.fit(people(), sample_weight=np.ones(120))
    missing = people()
    missing.loc[3, "height"] = np.nan
    with pytest.raises(ValueError, match="column 'height' holds nan in row 3"):
        model.fit(missing)
    with pytest.raises(ValueError, match=r"density\.privacy must be None"):
        FlowOutlier(model).fit(people())
    with pytest.raises(ValueError, match=r"density\.privacy must be None"):
        FlowClassifier(model).fit(people().drop(columns="member"), people()["member"])
    polars = pytest.importorskip("polars")
    with pytest.raises(ValueError, match="give rows as a pandas DataFrame"):
        model.fit(polars.from_pandas(people()))


@needs_opacus
@pytest.mark.slow
def test_a_large_budget_learns():
    columns = ["carat", "cut", "price"]
    rows = datasets.load("diamonds")[columns].sample(4000, random_state=0)
    schema = {
        "carat": {"kind": "continuous", "lower": 0, "upper": 6, "resolution": 0.01},
        "cut": {"kind": "categorical", "categories": ["Fair", "Good", "Very Good", "Premium", "Ideal"]},
        "price": {"kind": "integer", "lower": 0, "upper": 20_000},
    }
    scores = {}
    for epsilon in (0.5, 8.0):
        model = FlowDensity(privacy={"epsilon": epsilon, "delta": 1e-5}, schema=schema, random_state=0)
        scores[epsilon] = model.fit(rows[:3000]).score(rows[3000:])
    uniform = -np.log(601) - np.log(5) - np.log(20_001)
    assert uniform < scores[0.5] < scores[8.0]
    assert scores[8.0] > uniform + 3.6  # 3.93, give or take .02: the noise is the system's
    drawn = model.sample(2000, random_state=0)
    assert drawn["carat"].corr(drawn["price"]) > 0.6  # .8, give or take .04; .92 in the rows
    assert abs(drawn["carat"].mean() - rows["carat"].mean()) < 0.15
