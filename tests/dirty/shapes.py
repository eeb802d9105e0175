"""Dirty shapes: empty tables, names, things that are no tables; and weights and rules."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import torch
from scipy import sparse

from dirty.case import ROWS, Case, beside, cycle, fits, refuses, shell

NORMAL = np.random.default_rng(0).normal(size=(ROWS, 2))
FRAME = pd.DataFrame(NORMAL, columns=["a", "b"])
MIXED = beside(cycle("a", "b"))

SHAPES = [
    Case(
        "Shape",
        "no rows",
        refuses(FRAME.iloc[:0], "at least two rows", "has 0"),
        shell("fit t.csv -o m.flow", "at least two rows", "has 0", t_csv="a,b\n"),
    ),
    Case(
        "Shape",
        "one row",
        refuses(FRAME.iloc[:1], "at least two rows", "has 1"),
        shell("fit t.csv -o m.flow", "at least two rows", "has 1", t_csv="a,b\n1,2\n"),
    ),
    Case(
        "Shape",
        "two rows",
        fits(FRAME.iloc[:2], "a fit, if of little"),
        shell("fit t.csv -o m.flow", says="a fit, if of little", t_csv="a,b\n1,2\n3,4\n"),
    ),
    Case(
        "Shape",
        "no columns",
        refuses(pd.DataFrame(index=range(9)), "no columns"),
        shell("fit t.csv -o m.flow", "t.csv", "it is empty", t_csv=""),
    ),
    Case("Shape", "neither rows nor columns", refuses(pd.DataFrame(), "no columns")),
    Case(
        "Shape",
        "one column",
        fits(FRAME[["a"]], "a density of one number"),
        shell("fit t.csv -o m.flow", says="a density of one number", t_csv="a\n" + "1.5\n2.25\n0.1\n" * 20),
    ),
    Case("Shape", "one column of words", fits(MIXED[["d"]], "the shares of its levels")),
    Case(
        "Shape",
        "only constant columns",
        fits(pd.DataFrame({"a": [1] * 9, "b": ["k"] * 9}), "that row, again and again"),
    ),
    Case("Shape", "all rows are equal", fits(FRAME.iloc[[0] * 9], "that row, again and again")),
    Case(
        "Shape",
        "more columns than rows",
        fits(pd.DataFrame(np.random.default_rng(0).normal(size=(5, 30))).add_prefix("c"), "a fit, if of little"),
        costly=True,
    ),
    Case(
        "Shape",
        "every cell of every column is missing",
        fits(pd.DataFrame({"a": [np.nan] * 9, "b": [None] * 9}), "constants: drawn missing"),
    ),
    Case(
        "Shape",
        "an index with repeated and missing labels",
        fits(MIXED.set_index(pd.Index([np.nan, "i"] * 30)), "the index is not looked at"),
    ),
    Case("Shape", "an array of one dimension", refuses(NORMAL[:, 0], "2D array")),
    Case("Shape", "an array of three dimensions", refuses(NORMAL[None], "dim 3")),
    Case(
        "Shape",
        "an array with missing cells",
        fits(np.where(NORMAL > 1.5, np.nan, NORMAL), "missing cells are an outcome"),
    ),
    Case(
        "Shape",
        "an array with an infinite cell",
        refuses(
            np.where(np.arange(ROWS)[:, None] == 3, np.inf, NORMAL), "column 'x0' holds 1 infinite values", "row 3"
        ),
    ),
    Case(
        "Shape",
        "a masked array",
        fits(
            np.ma.masked_array(np.where(NORMAL > 1, -9999.0, NORMAL), NORMAL > 1),
            "masked cells are missing",
            lambda m: np.nanmin(m.sample(200)) > -100,
        ),
    ),
    Case(
        "Shape",
        "an object array with None among numbers",
        fits(np.where(NORMAL > 1, None, NORMAL.astype(object)), "missing cells are an outcome"),
    ),
    Case(
        "Shape",
        "an object array with a word in it",
        refuses(
            np.where(NORMAL > 2, "n/k", NORMAL.astype(object)), "column 1 holds 'n/k' in row 39", "could not convert"
        ),
    ),
    Case("Shape", "lists of unequal lengths", refuses([[1.0, 2.0], [3.0]], "rows of one length", "[1, 2]")),
    Case(
        "Shape",
        "a list of dicts",
        refuses([{"a": 1.0}, {"a": 2.0}], "pd.DataFrame(...) makes a table of it", error=TypeError),
    ),
    Case(
        "Shape",
        "a dict of columns",
        refuses({"a": [1.0, 2.0]}, "pd.DataFrame(...) makes a table of it", error=TypeError),
    ),
    Case("Shape", "a Series", refuses(FRAME["a"], "2-dimensional")),
    Case("Shape", "a path in place of a table", refuses("table.csv", "'table.csv'", "pd.read_csv", error=TypeError)),
    Case("Shape", "None", refuses(None, "2D array")),
    Case("Shape", "a sparse matrix", refuses(sparse.csr_matrix(NORMAL), "parse", error=TypeError)),
    Case(
        "Shape",
        "a tensor of half precision that needs a gradient",
        fits(torch.tensor(NORMAL, dtype=torch.bfloat16).requires_grad_(), "numbers"),
    ),
    Case(
        "Shape",
        "a polars LazyFrame",
        refuses(lambda: pl.DataFrame({"a": [1.0, 2.0]}).lazy(), "collect() it first", error=TypeError),
    ),
    Case(
        "Shape",
        "a polars Series",
        refuses(lambda: pl.Series("a", [1.0, 2.0]), "make it a polars DataFrame", error=TypeError),
    ),
    Case(
        "Shape",
        "a polars table of Python objects",
        refuses(
            lambda: pl.DataFrame({"d": pl.Series([object(), object()], dtype=pl.Object)}),
            "column 'd' is of type Object",
            "drop it",
        ),
    ),
    Case(
        "Shape",
        "a pyarrow table with NaN beside null",
        refuses(
            lambda: pa.table({"d": pa.array([1.0, None, float("nan")])}),
            "column 'd' holds both NaN and null",
            "make NaN null",
        ),
    ),
    Case(
        "Shape",
        "a pyarrow table of lists",
        refuses(lambda: pa.table({"d": [[1], [2]] * 5}), "column 'd' is of type list", "'excluded'"),
    ),
]

NAMES = [
    Case(
        "Names",
        "two columns of the same name",
        refuses(FRAME.set_axis(["a", "a"], axis=1), "several columns have the same name ['a']", "rename"),
        shell("fit t.csv -o m.flow", "several columns have the same name 'a'", "rename", t_csv="a,a\n1,2\n3,4\n"),
    ),
    Case(
        "Names",
        "two columns of the same name in a pyarrow table",
        refuses(
            lambda: pa.Table.from_arrays([pa.array([1.0, 2.0])] * 2, ["a", "a"]),
            "several columns have the same name ['a']",
        ),
    ),
    Case(
        "Names",
        "an empty name",
        fits(beside(cycle("a", "b"), ""), "a column like others"),
        shell(
            "fit t.csv -o m.flow",
            says="it is called Unnamed and its place",
            check=lambda done: "Unnamed: 0" in done.out,
            t_csv=",b\n" + "1,2\n3,4\n5,7\n" * 9,
        ),
    ),
    Case("Names", "names of spaces alone", fits(FRAME.set_axis([" ", "  "], axis=1), "columns like others")),
    Case(
        "Names",
        "integers as names",
        fits(MIXED.set_axis([0, 7], axis=1), "kept, also in files", lambda m: list(m.sample(2).columns) == [0, 7]),
    ),
    Case(
        "Names",
        "floats as names",
        fits(
            FRAME.set_axis([0.5, 1.5], axis=1), "kept, also in files", lambda m: list(m.sample(2).columns) == [0.5, 1.5]
        ),
    ),
    Case(
        "Names",
        "NaN as a name",
        refuses(
            FRAME.set_axis(["a", np.nan], axis=1), "column label nan is neither a string nor a number", ".map(str)"
        ),
    ),
    Case(
        "Names",
        "None as a name",
        refuses(
            FRAME.set_axis(pd.Index(["a", None], dtype=object), axis=1), "column label None is neither", ".map(str)"
        ),
    ),
    Case(
        "Names",
        "True as a name",
        refuses(
            FRAME.set_axis(pd.Index(["a", True], dtype=object), axis=1), "column label True is neither", ".map(str)"
        ),
    ),
    Case(
        "Names",
        "times as names",
        refuses(FRAME.set_axis(pd.date_range("2024", periods=2), axis=1), "column label Timestamp", ".map(str)"),
    ),
    Case(
        "Names",
        "several levels of names",
        refuses(
            FRAME.set_axis(pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")]), axis=1),
            "column label ('a', 'b') is neither",
            ".map(str)",
        ),
    ),
    Case(
        "Names",
        "1 and '1' as names",
        refuses(
            MIXED.set_axis([1, "1"], axis=1), "all input features have string names", "astype(str)", error=TypeError
        ),
    ),
    Case(
        "Names",
        "names with quotation marks, commas and line breaks",
        fits(FRAME.set_axis(['a"b,c', "d\ne"], axis=1), "columns like others"),
        shell("fit t.csv -o m.flow", says="columns like others", t_csv='"a""b,c","d\ne"\n' + "1,2\n3,4\n5,7\n" * 9),
    ),
    Case(
        "Names",
        "names with emoji and right-to-left text",
        fits(FRAME.set_axis(["👩‍🔬", "שם"], axis=1), "columns like others"),
        shell("fit t.csv -o m.flow", says="columns like others", t_csv="👩‍🔬,שם\n" + "1,2\n3,4\n5,7\n" * 9),
    ),
    Case(
        "Names",
        "a name of 100,000 characters",
        fits(FRAME.set_axis(["a" * 100_000, "b"], axis=1), "a column like others"),
    ),
    Case(
        "Names",
        "names that Python's classes have",
        fits(FRAME.set_axis(["__class__", "columns"], axis=1), "columns like others"),
    ),
    Case(
        "Names",
        "a file without a row of names",
        shell=shell(
            "schema t.csv",
            says="the first row names the columns",
            check=lambda done: "1.5" in done.out,
            t_csv="1.5,2.5\n" + "3.5,4.5\n5.5,1.0\n" * 9,
        ),
    ),
]

WEIGHTS = [
    Case("Weights", "zero for some rows", fits(MIXED, "these rows have no influence", weight=np.arange(ROWS) % 2)),
    Case(
        "Weights",
        "zero for all rows",
        refuses(FRAME, "ample weights must contain at least one non-zero number", weight=np.zeros(ROWS)),
    ),
    Case(
        "Weights",
        "positive for one row",
        refuses(FRAME, "sample_weight leaves 1 rows", "at least 2", weight=np.eye(ROWS)[0]),
    ),
    Case(
        "Weights",
        "negative for a row",
        refuses(FRAME, "egative values in data passed to `sample_weight`", weight=-np.eye(ROWS)[0] + 1e-9),
    ),
    Case(
        "Weights",
        "NaN for a row",
        refuses(FRAME, "sample_weight contains NaN", weight=np.where(np.arange(ROWS) == 3, np.nan, 1)),
    ),
    Case(
        "Weights",
        "infinite for a row",
        refuses(FRAME, "sample_weight contains infinity", weight=np.where(np.arange(ROWS) == 3, np.inf, 1)),
    ),
    Case("Weights", "too few", refuses(FRAME, "sample_weight", "(3,)", weight=[1, 2, 3])),
    Case("Weights", "words", refuses(FRAME, "could not convert string to float", weight=cycle("a", "b"))),
    Case(
        "Weights",
        "1e308 for every row",
        refuses(MIXED, "sample_weight", "its sum overflows", weight=np.full(ROWS, 1e308)),
    ),
    Case("Weights", "two dimensions", refuses(FRAME, "Sample weights must be 1D", weight=np.ones((ROWS, 2)))),
]

ORDERED = pd.DataFrame({"low": np.arange(ROWS) % 7, "high": np.arange(ROWS) % 7 + 2, "d": cycle("a", "b")})

RULES = [
    Case(
        "Rules",
        "one that no row keeps",
        refuses(ORDERED, "only 0 of 60 rows keep the rules", "high <= low", rules="high <= low"),
        shell("fit t.csv -o m.flow --rule 'd <= x'", "only 0 of 60 rows keep the rules", t_csv=["100", "101"]),
    ),
    Case(
        "Rules",
        "one that one row breaks",
        fits(
            pd.concat([ORDERED, ORDERED.iloc[:1].assign(high=-5)]),
            "that row is left out of the fit, and scores -inf",
            lambda m: (m.sample(40).eval("low <= high")).all(),
            rules=["low <= high"],
        ),
    ),
    Case(
        "Rules",
        "a column that is not there",
        refuses(ORDERED, "hihg", "'high'", rules=["low <= hihg"]),
        shell("fit t.csv -o m.flow --rule 'd <= z'", "z", "there are 'x', 'd'", t_csv=["1.5", "2.5"]),
    ),
    Case(
        "Rules",
        "no rule at all",
        refuses(ORDERED, "'low ='", rules=["low ="]),
        shell("fit t.csv -o m.flow --rule 'x ='", "'x ='", t_csv=["1.5", "2.5"]),
    ),
    Case("Rules", "an empty rule", refuses(ORDERED, "rule ''", rules=[""])),
    Case(
        "Rules",
        "a call of a function",
        refuses(ORDERED, "__import__", rules=["__import__('os').system('true') == 0"]),
        shell(
            'fit t.csv -o m.flow --rule \'__import__("os").system("true") == 0\'', "__import__", t_csv=["1.5", "2.5"]
        ),
    ),
    Case("Rules", "words compared with numbers", refuses(ORDERED, "'d'", rules=["d <= low"])),
    Case("Rules", "a column computed from itself", refuses(ORDERED, "low", rules=["low = low + 1"])),
    Case(
        "Rules",
        "two rules that compute one column",
        refuses(ORDERED, "high", rules=["high = low + 2", "high = low * 2"]),
    ),
    Case(
        "Rules",
        "a rule on a column that is left out",
        refuses(ORDERED, "'low'", "excludes", rules=["low <= high"], schema={"low": "excluded"}),
    ),
    Case("Rules", "a division by zero", fits(ORDERED, "not judged where there is no value", rules=["high / low > 0"])),
    Case(
        "Rules",
        "one over booleans: a + b <= 1",
        fits(
            pd.DataFrame({"a": cycle(True, False, False), "b": cycle(False, True, False), "x": NORMAL[:, 0]}),
            "booleans count as 0 and 1",
            lambda m: not m.sample(60)[["a", "b"]].all(axis=1).any(),
            rules=["a + b <= 1"],
        ),
    ),
]

SETTINGS = [
    Case(
        "Settings",
        "a column in the schema that is not there",
        refuses(FRAME, "schema names column 'z'", "there are 'a', 'b'", schema={"z": "integer"}),
        shell("fit t.csv -o m.flow --dtype z=integer", "no column 'z' in t.csv", "there are 'x', 'd'", t_csv=["1.5"]),
    ),
    Case(
        "Settings",
        "a kind that is none",
        refuses(FRAME, "schema of column 'a'", "'decimal' is none of", schema={"a": "decimal"}),
        shell("fit t.csv -o m.flow --dtype d=decimal", "--dtype wants COLUMN=TYPE", "d=decimal", t_csv=["1.5"]),
    ),
    Case(
        "Settings",
        "every column is left out",
        refuses(FRAME, "the schema excludes every column ('a', 'b')", schema={"a": "excluded", "b": "excluded"}),
        shell("fit t.csv -o m.flow --exclude x,d", "no column of t.csv is left", t_csv=["1.5"]),
    ),
    Case(
        "Settings",
        "whole numbers wanted of fractions",
        refuses(FRAME, "column 'a': expected whole numbers", "row 0", "'continuous'", schema={"a": "integer"}),
        shell(
            "fit t.csv -o m.flow --dtype d=integer",
            "column 'd': expected whole numbers, got 1.5 in row",
            t_csv=["1.5", "2"],
        ),
    ),
    Case(
        "Settings", "a bound that the data break", refuses(FRAME, "column 'a'", "lower", schema={"a": {"lower": 0.0}})
    ),
    Case("Settings", "bounds in the wrong order", refuses(FRAME, "'a'", schema={"a": {"lower": 9.0, "upper": -9.0}})),
    Case("Settings", "a bound that is a word", refuses(FRAME, "'a'", "'low'", schema={"a": {"lower": "low"}})),
    Case(
        "Settings",
        "a resolution of zero or less",
        refuses(FRAME, "'a'", "resolution", schema={"a": {"resolution": -1.0}}),
    ),
    Case(
        "Settings",
        "bounds of a column of words",
        refuses(MIXED, "column 'd'", "'lower' does not apply", schema={"d": {"lower": 0}}),
    ),
    Case("Settings", "a field that is none", refuses(FRAME, "'a'", "'lowest'", schema={"a": {"lowest": 0}})),
    Case(
        "Settings",
        "an effort that is none",
        refuses(FRAME, "effort must be fast", "'much'", effort="much"),
        shell("fit t.csv -o m.flow --effort much", "effort must be fast", t_csv=["1.5", "2.5"]),
    ),
    Case("Settings", "a member that is none", refuses(FRAME, "'forest'", "mixed", members=["forest"])),
    Case("Settings", "a member in place of a list of them", refuses(FRAME, "members", members="mixd")),
    Case(
        "Settings",
        "a seed below 0",
        refuses(FRAME, "random_state must be an int from 0", random_state=-1),
        shell("fit t.csv -o m.flow --seed -1", "--seed", "greater than or equal to 0", t_csv=["1.5"]),
    ),
    Case("Settings", "a validation share of 1", refuses(FRAME, "validation", validation=1.0)),
    Case("Settings", "a time limit of 0", refuses(FRAME, "time_limit", time_limit=0)),
    Case("Settings", "a time limit of NaN", refuses(FRAME, "time_limit", time_limit=float("nan"))),
    Case("Settings", "a device that is none", refuses(FRAME, "device", device="gpu0")),
    Case("Settings", "no processes", refuses(FRAME, "n_jobs", n_jobs=0)),
]

CASES = [*SHAPES, *NAMES, *WEIGHTS, *RULES, *SETTINGS]
