"""`Schema`: what it sees in columns of every type, what users may override, what it refuses, and its files."""

import datetime
import decimal
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from flowlab import datasets
from flowlab.tables.schema.schema import ColumnSchema, Schema


def one(values, **options) -> ColumnSchema:
    """The schema of a single column called "x"."""
    frame = values.to_frame("x") if isinstance(values, pd.Series) else pd.DataFrame({"x": values})
    return Schema.infer(frame, options.get("overrides"))["x"]


@pytest.fixture(scope="module")
def weather() -> pd.DataFrame:
    return datasets.load("weather").head(3000)


def test_kinds_of_a_real_table(weather):
    schema = Schema.infer(weather)
    kinds = {c.name: c.kind for c in schema}
    assert list(kinds) == list(weather)
    assert kinds["origin"] == "constant"  # the first rows are of one airport
    assert kinds["year"] == "constant"
    assert kinds["wind_dir"] == "integer"
    assert kinds["temp"] == "continuous"
    assert kinds["time_hour"] == "datetime"
    assert schema["wind_dir"].resolution == 10
    assert (schema["wind_speed"].lower, schema["wind_speed"].upper) == (0, None)
    assert schema["pressure"].lower is None  # far from zero
    assert schema["pressure"].missing == pytest.approx(weather["pressure"].isna().mean())
    assert schema["time_hour"].resolution == 3600
    assert schema["time_hour"].parts == ["day", "time"]
    assert schema["dewp"].lower is None


@pytest.mark.parametrize(
    ("draw", "lower"),
    [
        (lambda rng: rng.normal(10, 2.5, 1000), None),  # none negative, by chance
        (lambda rng: rng.uniform(5, 6, 1000), None),
        (lambda rng: rng.uniform(0, 6, 1000), 0),
        (lambda rng: rng.exponential(3, 50), 0),
        (lambda rng: rng.lognormal(5, 1, 1000), 0),
        (lambda rng: rng.poisson(4, 1000), 0),
        (lambda rng: rng.beta(0.5, 0.5, 1000), 0),
    ],
    ids=["normal", "far", "uniform", "exponential", "log-normal", "counts", "shares"],
)
def test_a_support_ends_at_zero_only_where_values_do(draw, lower):
    x = draw(np.random.default_rng(1))
    assert x.min() >= 0
    assert Schema.infer(pd.DataFrame({"x": x}))["x"].lower == lower


def test_ordered_levels_keep_their_order():
    schema = Schema.infer(datasets.load("diamonds").head(500))
    assert schema["cut"].categories == ["Fair", "Good", "Very Good", "Premium", "Ideal"]
    assert schema["cut"].ordered
    assert schema["carat"].resolution == 0.01


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        *(
            (pd.Series([3, 5, 3, 9], dtype=d), "integer")
            for d in ("int8", "uint16", "int32", "uint64", "Int64", "UInt8", "int64[pyarrow]")
        ),
        *(
            (pd.Series([0.5, 1.25, 3], dtype=d), "continuous")
            for d in ("float32", "float64", "Float32", "Float64", "double[pyarrow]")
        ),
        (pd.Series([3.0, None, 5.0]), "integer"),
        *((pd.Series([True, False, True], dtype=d), "boolean") for d in ("bool", "boolean", "bool[pyarrow]")),
        (pd.Series([True, None, False], dtype=object), "boolean"),
        *(
            (pd.Series(["a", "b", None], dtype=d), "categorical")
            for d in (None, "string", object, "string[pyarrow]", "category")
        ),
        (pd.Series(["a", "b", None], dtype=pd.ArrowDtype(pa.string())), "categorical"),
        (pd.Series([1, 2.5, None], dtype=object), "continuous"),
        (pd.Series([1, "a", True], dtype=object), "categorical"),
        (pd.Series(pd.Categorical([3, 1, 3])), "categorical"),
        (pd.Series(pd.to_datetime(["2024-01-01", "2024-02-01"])), "datetime"),
        (
            pd.Series([datetime.date(2024, 1, 1), datetime.date(2024, 1, 5)], dtype=pd.ArrowDtype(pa.date32())),
            "datetime",
        ),
        (pd.Series(pd.to_timedelta([1, 5], unit="h")), "timedelta"),
        (pd.Series(pd.to_timedelta([1, 5], unit="s"), dtype=pd.ArrowDtype(pa.duration("ms"))), "timedelta"),
        (pd.Series([0, 1, 1]), "integer"),
    ],
    ids=lambda v: str(v.dtype) if isinstance(v, pd.Series) else v,
)
def test_kind_of_every_dtype(values, kind):
    column = one(values)
    assert column.kind == kind
    assert column.reason


def test_zeros_and_ones_stay_integers_and_say_so():
    column = one([0, 1, 0, 1])
    assert column.kind == "integer"
    assert "boolean" in column.reason
    assert (column.lower, column.upper) == (0, 1)
    assert one([0, 1, 0, 1], overrides={"x": "boolean"}).kind == "boolean"


def test_strings_are_never_read_as_numbers_or_dates():
    zips = one(["0311", "1200", "0311"])
    assert (zips.kind, zips.categories) == ("categorical", ["0311", "1200"])
    assert "pd.to_numeric" in zips.reason
    for dates in (["2024-01-31", "2024-02-01"], ["31.1.2024", "1.2.2024"], ["1/31/2024 10:00", "2/1/2024 11:30"]):
        assert "strings that look like dates: convert with pd.to_datetime to model them as times" in one(dates).reason
    assert "look like" not in one(["2024-01-31", "unknown"]).reason


def test_repeated_values_and_grids():
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(500) < 0.6, 0.0, rng.exponential(size=500))
    column = one(rain)
    assert (column.kind, column.resolution, column.atoms, column.lower) == ("continuous", 0, [0.0], 0)
    assert one(np.round(rng.normal(size=500), 1)).resolution == 0.1
    # A single value off the grid makes the grid finer, that no value is rounded away.
    mixed = np.append(np.round(rng.normal(size=500), 1), 0.125)
    assert one(mixed).resolution == 0.001
    thirds = np.append(np.round(rng.normal(size=500), 1), [1 / 3, 2 / 3])
    column = one(thirds)
    assert column.resolution == 0
    assert 0.1 in column.atoms
    assert 1 / 3 not in column.atoms
    assert one(rng.normal(size=500)).atoms == []


def test_supports():
    rng = np.random.default_rng(0)
    share = one(rng.beta(1, 1, 200))
    assert (share.lower, share.upper) == (0, 1)
    small = one(rng.exponential(0.1, 200))
    assert (small.lower, small.upper) == (0, None)
    assert one(rng.normal(size=50)).lower is None
    assert one(pd.Series([3, 200, 7], dtype="uint8")).upper == 255
    assert one(pd.Series([-3, 100, 7], dtype="Int8")).lower == -128
    assert one(pd.to_timedelta([1, 5, 9], unit="h")).lower == 0


def test_constants_are_kept_beside_the_model():
    frame = pd.DataFrame(
        {"n": [5, 5, 5], "gone": [None, None, None], "s": ["a"] * 3, "half": [5, None, 5], "v": [1, 2, 4]}
    )
    schema = Schema.infer(frame)
    assert [c.kind for c in schema] == ["constant", "constant", "constant", "categorical", "integer"]
    assert [schema[name].value for name in ("n", "gone", "s")] == [5, None, "a"]
    assert schema["half"].categories == [5.0]
    assert "or missing" in schema["half"].reason


def test_copies_recodings_and_sums_of_earlier_columns():
    rng = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame(
        {"city": rng.choice(["Rome", "Oslo", "Bonn"], n), "a": rng.integers(0, 50, n), "b": rng.normal(size=n).round(2)}
    )
    frame["code"] = frame["city"].map({"Rome": 7, "Oslo": 3, "Bonn": 5})
    frame["again"] = frame["a"].astype("float64")
    frame["sum"] = (frame["a"] + 2 * frame["b"]).round(2)
    schema = Schema.infer(frame)
    assert [c.kind for c in schema] == ["categorical", "integer", "continuous", "duplicate", "duplicate", "derived"]
    assert schema["code"].duplicate_of == "city"
    assert dict(zip(schema["city"].categories, schema["code"].recoding)) == {"Rome": 7, "Oslo": 3, "Bonn": 5}
    assert schema["again"].duplicate_of == "a"
    assert (schema["sum"].sources, schema["sum"].weights) == (["a", "b"], [1.0, 2.0])
    # What is asked for is kept.
    assert Schema.infer(frame, {"code": "integer"})["code"].kind == "integer"
    assert Schema.infer(frame, {"sum": "continuous"})["sum"].kind == "continuous"
    # Another pattern of missing cells is information of its own.
    frame.loc[3, "again"] = np.nan
    frame.loc[4, "code"] = np.nan
    assert [Schema.infer(frame)[name].kind for name in ("again", "code")] == ["integer", "integer"]


def test_few_rows_prove_no_duplicates():
    frame = pd.DataFrame({"a": ["x", "y", "x", "y"], "b": [1, 2, 1, 2], "c": [1, 2, 1, 2]})
    assert all(c.modelled for c in Schema.infer(frame))


def test_identifiers_must_be_decided():
    n = 80
    frame = pd.DataFrame(
        {
            "row": np.random.default_rng(0).permutation(n) + 100,
            "name": [f"p{k}" for k in range(n)],
            "v": np.arange(n) % 7,
        }
    )
    schema = Schema.infer(frame)
    assert [c.kind for c in schema] == ["id", "id", "integer"]
    with pytest.raises(ValueError, match="looks like an identifier") as error:
        schema.check()
    message = str(error.value)
    for part in (
        "'row'",
        "'name'",
        "80 distinct levels",
        "8,000 parameters",
        "schema={'name': 'excluded'}",
        "schema={'name': 'categorical'}",
    ):
        assert part in message
    assert "schema={'row': 'integer'}" in message
    decided = Schema.infer(frame, {"row": "exclude", "name": "categorical"})
    decided.check()
    assert [c.kind for c in decided] == ["excluded", "categorical", "integer"]
    assert "neither modelled nor sampled" in decided["row"].reason
    assert len(decided["name"].categories) == n


def test_row_numbers_are_not_any_distinct_integers():
    assert one(np.arange(100) * 2).kind == "integer"
    assert one([1, 2, 3]).kind == "integer"
    assert one([f"s{k}" for k in range(40)]).kind == "categorical"  # too few to tell


def test_overrides_by_name_field_and_schema():
    frame = pd.DataFrame(
        {"age": [30.0, 41.0, 25.0], "n": [1, 2, 2], "when": pd.to_datetime(["2024-01-01", "2024-01-03", "2024-01-09"])}
    )
    schema = Schema.infer(
        frame,
        {"age": {"kind": "integer", "lower": 0, "upper": 120}, "n": "categorical", "when": {"lower": "2023-06-01"}},
    )
    assert (schema["age"].kind, schema["age"].lower, schema["age"].upper, schema["age"].dtype) == (
        "integer",
        0,
        120,
        "float64",
    )
    assert schema["n"].categories == [1, 2]
    assert schema["when"].lower == "2023-06-01"
    assert Schema.infer(frame, schema) == schema
    # An edit, and what follows from it.
    schema["n"].kind = "continuous"
    again = Schema.infer(frame, schema)
    assert (again["n"].kind, again["n"].resolution, again["n"].categories) == ("continuous", 1, [])
    assert again["age"].upper == 120
    levels = Schema.infer(frame, {"n": {"kind": "categorical", "categories": [3, 2, 1], "ordered": True}})["n"]
    assert (levels.categories, levels.ordered) == ([2, 1], True)
    assert Schema.infer(frame, {"n": levels})["n"].categories == [2, 1]


def test_bounds_can_be_taken_away_but_not_those_of_the_type():
    frame = pd.DataFrame({"v": [1.5, 2.5, 4.5], "n": [1, 2, 4], "u": pd.Series([1, 2, 3], dtype="uint8")})
    none = {"lower": None, "upper": None}
    schema = Schema.infer(frame, {"v": none, "u": none})
    assert [(c.lower, c.upper) for c in schema] == [(None, None), (0, None), (0, 255)]
    schema["n"].lower = None
    assert Schema.infer(frame, schema)["n"].lower is None
    # A column of levels has no bounds; made a number, it gets those that its values suggest.
    schema = Schema.infer(frame, {"n": "categorical"})
    schema["n"].kind = "integer"
    assert (Schema.infer(frame, schema)["n"].lower, Schema.infer(frame, schema)["n"].categories) == (0, [])


def test_a_schema_serves_another_table_whose_facts_differ():
    frame = pd.DataFrame({"a": [1, 2, 3, 1], "b": ["x", "x", "x", "x"]})
    schema = Schema.infer(frame)
    other = pd.DataFrame({"a": [2, 2, 2], "b": ["x", "y", "y"]})
    assert [c.kind for c in Schema.infer(other, schema)] == ["constant", "categorical"]
    schema = Schema.infer(frame, {"b": "excluded"})
    assert len(Schema.infer(frame[["a"]], schema)) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"y": "integer"}, "names column 'y', which is not in the table"),
        ({"s": "number"}, "column 's': kind 'number' is none of"),
        ({"s": {"kind": "categorical", "levels": 3}}, "fields among atoms, categories, kind, lower"),
        ({"s": 3}, "expected a kind or a dict"),
        ({"s": "integer"}, r"column 's': expected numbers, got text .*pd.to_numeric"),
        ({"s": "datetime"}, r"column 's': expected times, got text .*pd.to_datetime"),
        ({"v": "integer"}, r"column 'v': expected whole numbers, got 1.5 in row 0"),
        ({"v": "timedelta"}, r"column 'v': expected time differences, got number .*pd.to_timedelta"),
        ({"s": "boolean"}, "column 's': a boolean has two levels, got 3"),
        ({"s": {"lower": 0}}, "'lower' does not apply to a column of kind 'categorical'"),
        ({"v": {"lower": "low"}}, "'low' is no bound of a column of kind 'continuous'"),
        ({"v": {"resolution": 0.3}}, "resolution 0.3 is neither"),
        ({"v": {"lower": 2}}, r"column 'v': 1.5 in row 0 is below its lower end 2"),
        ({"v": {"upper": 4}}, r"column 'v': 4.5 in row 2 is above its upper end 4"),
        ({"v": {"resolution": 0.2}}, r"column 'v': 1.5 in row 0 is no multiple of its resolution 0.2"),
        ({"t": {"upper": "2024-01-31"}}, "column 't': 2024-03-01 00:00:00 in row 1 is above its upper end 2024-01-31"),
        ({"s": {"categories": ["a", "b"]}}, "column 's': level 'c' is not among the schema's categories"),
        ("excluded", None),
    ],
    ids=str,
)
def test_overrides_that_cannot_be(overrides, message):
    frame = pd.DataFrame(
        {"s": ["a", "b", "c"], "v": [1.5, 2.5, 4.5], "t": pd.to_datetime(["2024-01-01", "2024-03-01", "2024-03-02"])}
    )
    with pytest.raises(TypeError if message is None else ValueError, match=message):
        Schema.infer(frame, overrides)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"x": []}), "has 0 rows"),
        (pd.DataFrame({"x": [1]}), "has 1 row:"),
        (pd.DataFrame(index=range(3)), "no columns"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["x", "x"]), r"same name \['x'\]"),
        (pd.DataFrame({"x": [1.0, np.inf, 2.0]}), "column 'x' holds 1 infinite values, the first in row 1"),
        (pd.DataFrame({"x": [1j, 2j]}), "column 'x' is of type complex128"),
        (pd.DataFrame({"x": [[1], [2, 3]]}), "column 'x' holds a cell of type list in row 0"),
        (pd.DataFrame({"x": ["a", {"b": 1}]}), "column 'x' holds a cell of type dict in row 1"),
        (
            pd.DataFrame({"x": [decimal.Decimal("1.1"), decimal.Decimal("2")]}),
            r"holds decimal objects.*astype\(float\)",
        ),
        (
            pd.DataFrame({"x": [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)]}),
            "holds date objects.*pd.to_datetime",
        ),
        (pd.DataFrame({"x": [b"a", b"b"]}), "holds bytes objects.*decode"),
        (
            pd.DataFrame({"x": pd.period_range("2024", periods=2, freq="M")}),
            "column 'x' is of type period.*to_timestamp",
        ),
        (pd.DataFrame({"x": pd.cut([1, 2, 3], 2)}), "column 'x' holds a cell of type Interval"),
        (pd.DataFrame({"x": pd.arrays.SparseArray([0.0, 1.0])}), "to_dense"),
        (pd.DataFrame({"x": [2**53 + 1, 2]}), r"column 'x' holds integers above 2\*\*53"),
        (pd.DataFrame({"x": [2**70, 2]}, dtype=object), r"column 'x' holds integers above 2\*\*53"),
        (
            pd.DataFrame([[1, 2]] * 3, columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
            "neither a string nor a number",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "frame",
)
def test_tables_that_cannot_be(frame, message):
    with pytest.raises(ValueError, match=message):
        Schema.infer(frame)


def test_what_cannot_be_modelled_can_be_left_out():
    frame = pd.DataFrame({"x": [[1], [2]], "v": [1, 2]})
    assert [c.kind for c in Schema.infer(frame, {"x": "excluded"})] == ["excluded", "integer"]


def test_arrays_are_not_tables():
    with pytest.raises(TypeError, match="expected a pandas DataFrame, got ndarray"):
        Schema.infer(np.zeros((3, 2)))


def test_it_prints_as_an_aligned_table(weather):
    lines = str(Schema.infer(weather)).splitlines()
    assert len(lines) == 1 + weather.shape[1]
    assert lines[0].split() == ["column", "kind", "dtype", "missing", "values", "step", "why"]
    where = lines[0].index("why")
    assert all(line[where - 1] == " " and line[where] != " " for line in lines[1:])
    assert "multiples of 0.01" in lines[1 + list(weather).index("temp")]


@pytest.mark.parametrize("name", ["diamonds", "flights", "weather", "wine"])
def test_json_and_files(name, tmp_path):
    schema = Schema.infer(datasets.load(name).head(2000))
    text = json.dumps(schema.to_json(), allow_nan=False)
    assert Schema.from_json(json.loads(text)) == schema
    schema.save(tmp_path / "schema.json")
    assert Schema.load(tmp_path / "schema.json") == schema
    assert [p.name for p in tmp_path.iterdir()] == ["schema.json"]


def test_files_that_hold_no_schema(tmp_path):
    schema = Schema.infer(pd.DataFrame({"x": [1, 2]}))
    with pytest.raises(ValueError, match=r"must end in \.json"):
        schema.save(tmp_path / "schema.txt")
    for text in ("{", "[]", "{}", '{"columns": [{"name": "x"}], "labels": ["str", null]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="schema"):
            Schema.load(tmp_path / "bad.json")
    with pytest.raises(KeyError, match="no column 'y'; there are 'x'"):
        schema["y"]
    schema["x"].kind = "whole"
    with pytest.raises(ValueError, match="column 'x': unknown kind 'whole'"):
        schema.check()
