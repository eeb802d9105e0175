"""polars and pyarrow tables: conversion loses nothing, and a model returns the kind of table that it was fitted to."""

import datetime as dt
import json
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import flowlab
from flowlab.tables.frames.arrow import TableFormat, format_of, like, to_pandas

SMALL = flowlab.Member("mixed", "none", steps=40, hidden=(16,))
DAYS = [dt.date(2024, 1, 31), None, dt.date(1924, 1, 5)]
TIMES = [dt.datetime(2024, 7, 31, 12, 30), None, dt.datetime(1924, 1, 5, 0, 0, 0, 17000)]
SPANS = [dt.timedelta(days=3650), None, dt.timedelta(milliseconds=-17)]
AMOUNTS = [Decimal("1.25"), None, Decimal("-3.10")]
POLARS = {
    **{
        f"{t}": pl.Series([3, None, 100], dtype=t)
        for t in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
    },
    "complete integers": pl.Series([3, 2**62, -1]),
    **{f"{t}": pl.Series([0.5, None, -7.5]).cast(t) for t in (pl.Float16, pl.Float32, pl.Float64)},
    "NaN": pl.Series([0.5, float("nan"), -7.5]),
    "booleans": pl.Series([True, None, False]),
    "complete booleans": pl.Series([True, False, True]),
    "strings": pl.Series(["b", None, "ä, \"q\" '1'"]),
    "categorical": pl.Series(["b", None, "a"], dtype=pl.Categorical),
    "enum": pl.Series(["low", None, "high"], dtype=pl.Enum(["low", "middle", "high", "a"])),
    "dates": pl.Series(DAYS),
    **{f"times {u}": pl.Series(TIMES, dtype=pl.Datetime(u)) for u in ("ms", "us", "ns")},
    **{f"times {z}": pl.Series(TIMES, dtype=pl.Datetime("us", z)) for z in ("UTC", "Europe/Paris", "Asia/Kolkata")},
    **{f"durations {u}": pl.Series(SPANS, dtype=pl.Duration(u)) for u in ("ms", "us", "ns")},
    "decimals": pl.Series(AMOUNTS, dtype=pl.Decimal(10, 2)),
    "wide decimals": pl.Series(AMOUNTS, dtype=pl.Decimal(38, 10)),
    "nothing": pl.Series([None] * 3),
    # What no model takes can be left out, and comes through.
    "clock": pl.Series([dt.time(1, 2), None, dt.time(3)]),
    "lists": pl.Series([[1], None, [2, 3]]),
    "structs": pl.Series([{"a": 1}, None, {"a": 2}]),
    "bytes": pl.Series([b"a", None, b"\x00"]),
}
ARROW = {
    "string view": pa.array(["a", None, "b"], pa.string_view()),
    "string": pa.array(["a", None, "b"]),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([2, None, 0], pa.int8()), ["z", "y", "x"]),
    "ordered dictionary": pa.DictionaryArray.from_arrays(pa.array([2, None, 0], pa.int16()), [3, 7, 1], ordered=True),
    "dictionary of decimals": pa.array([1, None, 2], pa.decimal128(5, 2)).dictionary_encode(),
    "date64": pa.array(DAYS, pa.date64()),
    "seconds": pa.array([0, None, 5], pa.timestamp("s", "America/New_York")),
    "offset": pa.array([0, None, 5], pa.timestamp("ms", "+05:30")),
    "duration s": pa.array([0, None, 5], pa.duration("s")),
    "decimal256": pa.array(AMOUNTS, pa.decimal256(40, 3)),
    "decimal64": pa.array(AMOUNTS, pa.decimal64(10, 2)),
    "hundreds": pa.array([Decimal(500), None, Decimal(-300)], pa.decimal128(5, -2)),
    "run ends": pa.RunEndEncodedArray.from_arrays([2, 3], [1.5, 2.5]),
}


def there_and_back(table):
    """A table by way of pandas, with its format by way of JSON."""
    table_format = TableFormat.from_json(json.loads(json.dumps(format_of(table).to_json())))
    return like(table_format, to_pandas(table))


@pytest.mark.parametrize("name", POLARS)
def test_columns_of_polars_come_back(name):
    table = pl.DataFrame({"x": POLARS[name], "y": [1, 2, 3]})
    for some in (table, table[::-1], table.clear(), pl.concat([table, table[:1]], rechunk=False)):
        assert_frame_equal(there_and_back(some), some)


@pytest.mark.parametrize("name", [*POLARS, *ARROW])
def test_columns_of_pyarrow_come_back(name):
    values = ARROW[name] if name in ARROW else POLARS[name].to_arrow()
    table = pa.table({"x": values, "y": [1, 2, 3]}, metadata={"who": "knows"})
    for some in (table, table.slice(1, 1), table.slice(0, 0), pa.concat_tables([table, table.slice(1)])):
        back = there_and_back(some)
        assert back.schema.equals(some.schema, check_metadata=True)
        same = back["x"].to_pylist() == some["x"].to_pylist()
        assert same or back["x"].to_pandas().equals(some["x"].to_pandas())  # NaN is not equal to itself


def test_chunks_of_unlike_dictionaries_become_one():
    parts = [pa.table({"c": pa.array(v).dictionary_encode()}) for v in (["b", "a"], ["c", None, "a"])]
    table = pa.concat_tables(parts)
    assert to_pandas(table)["c"].cat.categories.tolist() == ["b", "a", "c"]
    assert there_and_back(table)["c"].to_pylist() == table["c"].to_pylist()


def test_what_pandas_gets():
    table = pl.DataFrame({"enum": POLARS["enum"], "n": POLARS["Int8"], "day": POLARS["dates"], "m": POLARS["decimals"]})
    frame = to_pandas(table)
    assert frame["enum"].dtype == pd.CategoricalDtype(["low", "middle", "high", "a"], ordered=True)
    assert [str(t) for t in frame.dtypes] == ["category", "Int8", "datetime64[s]", "float64"]
    assert frame["m"].tolist()[::2] == [1.25, -3.1]


cells = st.one_of(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1).map(lambda v: pl.Series(v, dtype=pl.Int64)),
    st.lists(st.none() | st.floats(allow_nan=False), min_size=1).map(lambda v: pl.Series(v, dtype=pl.Float64)),
    st.lists(st.floats(width=32), min_size=1).map(lambda v: pl.Series(v, dtype=pl.Float32)),
    st.lists(st.none() | st.text(), min_size=1).map(lambda v: pl.Series(v, dtype=pl.String)),
    st.lists(st.none() | st.sampled_from("abc"), min_size=1).map(lambda v: pl.Series(v, dtype=pl.Categorical)),
    st.lists(st.none() | st.dates(), min_size=1).map(lambda v: pl.Series(v, dtype=pl.Date)),
    st.lists(st.none() | st.datetimes(), min_size=1).map(lambda v: pl.Series(v, dtype=pl.Datetime("us"))),
    st.lists(st.none() | st.timedeltas(dt.timedelta(-99999), dt.timedelta(99999)), min_size=1).map(
        lambda v: pl.Series(v, dtype=pl.Duration("us"))
    ),
    st.integers(0, 15).flatmap(
        lambda scale: st.lists(st.none() | st.integers(-(10**15) + 1, 10**15 - 1), min_size=1).map(
            lambda v: pl.Series(
                [None if k is None else Decimal(k).scaleb(-scale) for k in v], dtype=pl.Decimal(38, scale)
            )
        )
    ),
)


@settings(max_examples=150)
@given(cells)
def test_any_column_comes_back(values):
    table = pl.DataFrame({"x": values})
    assert_frame_equal(there_and_back(table), table, check_exact=True)
    arrow = table.to_arrow()
    assert pl.from_arrow(there_and_back(arrow)).equals(pl.from_arrow(arrow))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pl.DataFrame({"x": [1.0, None, float("nan")]}), "column 'x' holds both NaN and null"),
        (pl.DataFrame({"x": pl.Series([1], dtype=pl.Int128)}), "column 'x' is of type Int128.*cast it to Int64"),
        (pl.DataFrame({"x": pl.Series([object()], dtype=pl.Object)}), "column 'x' is of type Object"),
        (pl.DataFrame({"x": [Decimal(10**15)]}), "column 'x' holds decimals of more than 15 digits"),
        (
            pa.table({"x": pa.DictionaryArray.from_arrays([0, 1], ["a", "a"])}),
            "column 'x': its categories cannot be kept",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        to_pandas(table)


@pytest.mark.parametrize("name", ["clock", "lists", "structs", "bytes"])
def test_what_cannot_be_modelled_is_refused_or_left_out(name):
    table = pl.DataFrame({"x": POLARS[name], "y": [1.5, 2.5, 7.25]})
    with pytest.raises(ValueError, match=r"column 'x' is of type.*schema={'x': 'excluded'}"):
        flowlab.FlowDensity(members=[SMALL]).fit(table)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (pl.DataFrame({"x": [1, 2]}).lazy(), "polars LazyFrame: collect"),
        (pl.Series([1, 2]), "polars Series: make it a polars DataFrame"),
        (pa.RecordBatch.from_pydict({"x": [1, 2]}), "pyarrow RecordBatch: make it a pyarrow Table"),
    ],
)
def test_other_objects_are_refused(X, message):
    with pytest.raises(TypeError, match=message):
        flowlab.FlowDensity().fit(X)


def test_cells_that_a_type_cannot_hold_name_the_column():
    with pytest.raises(ValueError, match="column 'n' cannot be of type int8"):
        like(format_of(pa.table({"n": pa.array([1], pa.int8())})), pd.DataFrame({"n": [300]}))


def rows_of(n: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    holes = rng.random((n, 2)) < 0.2
    size = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    day = [dt.date(2024, 1, 1) + dt.timedelta(days=int(d)) for d in rng.integers(0, 300, n)]
    start = [dt.datetime(2024, 3, 1, int(h)) + dt.timedelta(days=int(d)) for h, d in rng.integers(0, 20, (n, 2))]
    return pl.DataFrame(
        {
            "size": pl.Series(np.array(["s", "m", "l"])[size], dtype=pl.Enum(["s", "m", "l", "xl"])),
            "city": pl.Series(rng.choice(["Rome", "Oslo"], n), dtype=pl.Categorical),
            "name": [None if hole else "ab"[k % 2] for hole, k in zip(holes[:, 0], size)],
            "count": pl.Series([None if h else int(k) for h, k in zip(holes[:, 1], rng.poisson(4, n))], dtype=pl.Int32),
            "flag": pl.Series([None if h else bool(k) for h, k in zip(holes[:, 0], size)]),
            "price": pl.Series([Decimal(int(k)).scaleb(-2) for k in rng.integers(100, 900, n)], dtype=pl.Decimal(9, 2)),
            "weight": pl.Series(rng.normal(size=n), dtype=pl.Float32),
            "day": day,
            "start": pl.Series(start, dtype=pl.Datetime("ms", "Europe/Paris")),
            "took": pl.Series([dt.timedelta(minutes=int(k)) for k in rng.integers(1, 90, n)], dtype=pl.Duration("ms")),
            "tags": [[int(k)] for k in size],
        }
    )


ROWS = rows_of(240)
MODELLED = [name for name in ROWS.columns if name != "tags"]
KINDS = {"polars": lambda table: table, "pyarrow": lambda table: table.to_arrow(), "pandas": to_pandas}


@pytest.fixture(scope="module", params=["polars", "pyarrow"])
def fitted(request, tmp_path_factory):
    """A model of a table of each kind, the model after saving and loading, and the way to such tables."""
    as_kind = KINDS[request.param]
    model = flowlab.FlowDensity(members=[SMALL], random_state=0, schema={"tags": "excluded"}).fit(as_kind(ROWS))
    path = tmp_path_factory.mktemp("frames") / "m.flow"
    model.save(path)
    return model, flowlab.load(path), as_kind


def equal(one, other) -> bool:
    return one.equals(other) and one.schema == other.schema


def test_scores_are_those_of_the_pandas_table(fitted):
    model, loaded, as_kind = fitted
    scores = model.score_samples(to_pandas(ROWS))
    assert np.isfinite(scores).all()
    assert np.array_equal(loaded.score_samples(as_kind(ROWS)), scores)
    others = flowlab.FlowDensity(members=[SMALL], random_state=0, schema={"tags": "excluded"}).fit(to_pandas(ROWS))
    assert np.array_equal(others.score_samples(as_kind(ROWS)), scores)
    assert isinstance(others.sample(3, random_state=0, given=as_kind(ROWS[:3, :2])), pd.DataFrame)


def test_samples_have_the_tables_kind_and_types(fitted):
    model, loaded, as_kind = fitted
    rows = model.sample(50, random_state=1)
    assert type(rows) is type(as_kind(ROWS))
    assert rows.schema == as_kind(ROWS[MODELLED]).schema
    assert equal(loaded.sample(50, random_state=1), rows)
    some = model.sample(20, random_state=1, given={"size": "m", "price": (2.0, 5.0), "day": dt.date(2024, 3, 1)})
    some = pl.from_arrow(some) if isinstance(some, pa.Table) else some
    assert some["size"].unique().to_list() == ["m"]
    assert some["price"].is_between(Decimal(2), Decimal(5)).all()
    assert some["day"].unique().to_list() == [dt.date(2024, 3, 1)]


def test_rows_of_conditions_may_be_any_kind(fitted):
    model, _, as_kind = fitted
    wishes = ROWS[:7, ["size", "price", "start"]]
    drawn = [model.sample(given=change(wishes), random_state=2) for change in KINDS.values()]
    assert all(equal(one, drawn[0]) for one in drawn)
    assert equal(drawn[0].select(wishes.columns), as_kind(wishes))


def test_missing_cells_are_filled_in_the_kind_that_was_given(fitted):
    model, _, _ = fitted
    for change in (KINDS["polars"], KINDS["pyarrow"]):
        filled = model.impute(change(ROWS), random_state=0)
        assert type(filled) is type(change(ROWS))
        assert filled.schema == change(ROWS).schema
        filled = pl.from_arrow(filled) if isinstance(filled, pa.Table) else filled
        assert sum(filled.null_count().row(0)) == 0
        for name in ROWS.columns:
            there = ROWS[name].is_not_null()
            assert filled[name].filter(there).equals(ROWS[name].filter(there))
    assert len(model.impute(ROWS, n=2)) == 2
    assert isinstance(model.impute(to_pandas(ROWS), random_state=0), pd.DataFrame)


def test_conditional_distributions_come_in_the_models_kind(fitted):
    model, _, as_kind = fitted
    levels = model.conditional("size", as_kind(ROWS[:4, ["city", "count"]]))
    assert type(levels) is type(as_kind(ROWS))
    assert pl.DataFrame(levels).columns == ["s", "m", "l"]
    assert np.allclose(pl.DataFrame(levels).sum_horizontal(), 1)
    price = pl.DataFrame(model.conditional("price", {"size": "m"}, n=50, random_state=0))
    assert price.columns == ["mean", "sd", "5%", "25%", "50%", "75%", "95%"]
    start = pl.DataFrame(model.conditional("start", ROWS[:2, ["size"]], n=20, random_state=0))
    assert start["mean"].dtype.time_zone == "Europe/Paris"


@pytest.mark.slow
def test_the_report_takes_both(fitted, tmp_path):
    model, _, as_kind = fitted
    page = model.report(as_kind(ROWS[:120]), as_kind(ROWS[120:]), tmp_path / "r.html")
    assert "<html" in page.read_text()


def test_complete_numbers_and_questions_about_them(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    table = pl.DataFrame(
        {"a": a, "b": 2 * a + rng.normal(size=200), "n": pl.Series(rng.poisson(4, 200), dtype=pl.UInt8)}
    )
    model = flowlab.FlowDensity(members=["mixture"], random_state=0).fit(table)
    assert model.columns_ is not None
    assert model.feature_names_in_.tolist() == ["a", "b", "n"]
    assert np.array_equal(model.score_samples(table), model.score_samples(table.to_pandas()))
    assert np.array_equal(model.pit(table, random_state=0), model.pit(table.to_arrow(), random_state=0))
    rows = model.sample(30, random_state=1)
    assert rows.schema == table.schema
    assert np.isfinite(model.highest_density_threshold(0.9, 200, random_state=0))
    model.save(tmp_path / "m.flow")
    assert flowlab.load(tmp_path / "m.flow").sample(30, random_state=1).equals(rows)


def test_rules_between_columns_of_polars():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 50, 200)
    table = pl.DataFrame({"low": low, "high": low + rng.integers(0, 9, 200), "kind": rng.choice(["a", "b"], 200)})
    table = table.with_columns(pl.when(pl.col("low") % 7 > 0).then(pl.col("high")).alias("high"))
    model = flowlab.FlowDensity(members=[SMALL], rules=["low <= high"], random_state=0).fit(table)
    rows = model.sample(100, random_state=0)
    assert rows.schema == table.schema
    assert rows["high"].null_count() > 0
    assert (rows["low"] <= rows["high"]).all()  # of those that are there


def test_polars_is_imported_by_nobody_else():
    code = (
        "import sys, pandas as pd, pyarrow as pa, flowlab\n"
        "frame = pd.DataFrame({'a': [1.0, 2.5, 4.25] * 9, 'c': list('aab') * 9})\n"
        "model = flowlab.FlowDensity(members=[flowlab.Member('mixed', 'none', steps=2, hidden=(4,))], random_state=0)\n"
        "assert isinstance(model.fit(pa.Table.from_pandas(frame)).sample(3), pa.Table)\n"
        "assert 'polars' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
