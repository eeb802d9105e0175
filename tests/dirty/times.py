"""Dirty cells: times, types that are not modelled, and levels."""

import datetime

import numpy as np
import pandas as pd

from dirty.case import ROWS, Case, beside, cycle, fits, refuses, shell
from dirty.cells import NORMAL, WORDS, at

DAYS = pd.Series(pd.date_range("2024-01-01", periods=ROWS))

TIMES = [
    Case(
        "Times",
        "days as text",
        fits(
            beside(cycle("2024-01-31", "2024-02-01")),
            "levels; the reason says how to convert",
            lambda m: "pd.to_datetime" in m.schema_["d"].reason,
        ),
        shell(
            "fit t.csv -o m.flow",
            says="times",
            check=lambda done: "datetime" in done.out,
            t_csv=["2024-01-31", "2024-02-01"],
        ),
    ),
    Case(
        "Times",
        "days as 31.03.2020",
        fits(
            beside(cycle("31.03.2020", "01.04.2020")),
            "levels; the reason says how to convert",
            lambda m: "pd.to_datetime" in m.schema_["d"].reason,
        ),
        shell("schema t.csv", says="text, with a note", warns="--dtype d=date", t_csv=["31.03.2020", "01.04.2020"]),
    ),
    Case(
        "Times",
        "days that can be read in two ways",
        shell=shell(
            "fit t.csv -o m.flow --dtype d=date",
            "column 'd'",
            "--dtype d=%d/%m/%Y",
            "--dtype d=%m/%d/%Y",
            t_csv=["01/02/2020", "03/04/2020"],
        ),
    ),
    Case(
        "Times",
        "days in several spellings",
        fits(beside(cycle("2024-01-31", "31 Jan 2024", "1/31/24")), "levels"),
        shell(
            "fit t.csv -o m.flow --dtype d=date",
            "column 'd' of t.csv cannot be read as days or times",
            "'31 Jan 2024' in row 2",
            t_csv=["2024-01-31", "31 Jan 2024"],
        ),
    ),
    Case(
        "Times",
        "days that do not exist",
        fits(beside(cycle("2023-02-29", "2023-02-28")), "levels; the reason says how to convert"),
        shell(
            "fit t.csv -o m.flow --dtype d=date",
            "column 'd' of t.csv cannot be read as days or times",
            t_csv=["2023-02-29", "2023-02-28"],
        ),
    ),
    Case("Times", "Python's dates", refuses(beside(DAYS.dt.date), "column 'd' holds date objects", "pd.to_datetime")),
    Case(
        "Times",
        "Python's times of day",
        refuses(
            beside(pd.Series([datetime.time(9, i % 60) for i in range(ROWS)])),
            "column 'd' holds time objects",
            "pd.to_timedelta",
            "schema={'d': 'excluded'}",
        ),
        shell("schema t.csv", says="text, with a note", warns="--dtype d=duration", t_csv=["09:30", "10:45"]),
    ),
    Case(
        "Times",
        "mixed time zones in a column of objects",
        refuses(
            beside(
                pd.Series(
                    cycle(pd.Timestamp("2024-01-01 10:00+01:00"), pd.Timestamp("2024-06-01 10:00+02:00")), dtype=object
                )
            ),
            "column 'd'",
            "pd.to_datetime",
            "utc=True",
        ),
        shell(
            "schema t.csv",
            says="times in UTC",
            check=lambda done: "UTC" in done.out,
            t_csv=["2024-01-01 10:00+01:00", "2024-06-01 10:00+02:00"],
        ),
    ),
    Case(
        "Times",
        "times some of which have a zone",
        shell=shell(
            "schema t.csv",
            says="text, with a note",
            warns="some with a zone and some without",
            t_csv=["2024-01-01 10:00+01:00", "2024-06-01 10:00"],
        ),
    ),
    Case(
        "Times",
        "the last day that a type holds",
        refuses(
            beside(pd.Series(cycle(pd.Timestamp.max, pd.Timestamp("2024-01-01")), dtype="datetime64[ns]")),
            "column 'd' holds times at the very end",
            "make the cells missing",
        ),
    ),
    Case(
        "Times",
        "9999-12-31 as an open end",
        fits(
            beside(pd.Series(cycle("2024-01-01", "2024-03-05", "9999-12-31")).astype("datetime64[s]")),
            "a repeated value",
        ),
        shell("fit t.csv -o m.flow", says="a repeated value", t_csv=["2024-01-01", "2024-03-05", "9999-12-31"]),
    ),
    Case(
        "Times",
        "days before Christ's birth are none of ISO's",
        fits(beside(cycle("-0044-03-15", "0001-01-01")), "levels"),
        shell(
            "fit t.csv -o m.flow",
            says="levels",
            check=lambda done: "categorical" in done.out,
            t_csv=["-0044-03-15", "0001-01-01"],
        ),
    ),
    Case(
        "Times",
        "times at a change of clocks",
        fits(
            beside(pd.Series(pd.date_range("2024-03-30", periods=ROWS, freq="h", tz="Europe/Berlin"))),
            "times of that zone",
        ),
    ),
    Case("Times", "missing days", fits(beside(DAYS.where(DAYS.index % 3 > 0)), "missing cells are an outcome")),
    Case(
        "Times",
        "time differences, some negative",
        fits(beside(pd.to_timedelta(cycle(-3, 5, 40), "h")), "durations"),
        shell(
            "fit t.csv -o m.flow",
            says="durations",
            check=lambda done: "timedelta" in done.out,
            t_csv=["-1 days +02:00:00", "0 days 05:00:00"],
        ),
    ),
    Case(
        "Times",
        "the smallest of time differences",
        refuses(
            beside(pd.Series(cycle(pd.Timedelta.min, pd.Timedelta("1h")), dtype="timedelta64[ns]")),
            "column 'd' holds times at the very end",
        ),
    ),
    Case(
        "Times",
        "periods",
        refuses(
            beside(pd.Series(pd.period_range("2024-01", periods=ROWS, freq="M"))),
            "column 'd' is of type period",
            ".dt.to_timestamp()",
        ),
    ),
]

OTHER = [
    Case(
        "Other types",
        "intervals",
        refuses(
            beside(pd.Series(pd.cut(NORMAL, 4)).astype(object)), "column 'd' holds interval objects", ".astype(str)"
        ),
    ),
    Case(
        "Other types",
        "intervals as categories",
        refuses(beside(pd.Series(pd.cut(NORMAL, 4))), "column 'd' holds a cell of type Interval", "convert the column"),
    ),
    Case(
        "Other types",
        "lists",
        refuses(
            beside(pd.Series([[1, 2]] * ROWS)),
            "column 'd' holds a cell of type list in row 0",
            "schema={'d': 'excluded'}",
        ),
    ),
    Case(
        "Other types",
        "dicts",
        refuses(
            beside(pd.Series([{"a": 1}] * ROWS)),
            "column 'd' holds a cell of type dict in row 0",
            "schema={'d': 'excluded'}",
        ),
    ),
    Case(
        "Other types",
        "bytes",
        refuses(beside(pd.Series([b"a", b"b"] * 30)), "column 'd' holds bytes objects", ".str.decode"),
    ),
    Case(
        "Other types",
        "arrays",
        refuses(beside(pd.Series([np.zeros(2)] * ROWS)), "column 'd' holds a cell of type ndarray in row 0"),
    ),
    Case(
        "Other types",
        "functions and other objects",
        refuses(beside(pd.Series([len, print] * 30)), "column 'd' holds a cell of type builtin_function_or_method"),
    ),
    Case(
        "Other types",
        "lists that are left out, as asked",
        fits(
            beside(pd.Series([[1, 2]] * ROWS)),
            "the others are modelled",
            lambda m: list(m.sample(2).columns) == ["x"],
            schema={"d": "excluded"},
        ),
    ),
    Case(
        "Other types",
        "a tuple in one cell of words",
        refuses(
            beside(pd.Series(at(WORDS, 5, ("a", "b")), dtype=object)), "column 'd' holds a cell of type tuple in row 5"
        ),
    ),
    Case(
        "Other types",
        "infinity among levels",
        refuses(
            beside(pd.Series(at(WORDS, 5, np.inf), dtype=object)),
            "column 'd' holds a cell of type float in row 5: 'inf'",
        ),
    ),
]

LEVELS = [
    Case(
        "Levels",
        "a category with unused levels",
        fits(
            beside(pd.Categorical(WORDS, ["a", "b", "never"])),
            "kept in the type, not drawn",
            lambda m: set(m.sample(40)["d"]) <= {"a", "b"},
        ),
    ),
    Case(
        "Levels",
        "a category without levels",
        fits(
            beside(pd.Categorical([None] * ROWS, [])),
            "a constant: drawn missing",
            lambda m: m.sample(5)["d"].isna().all(),
        ),
    ),
    Case(
        "Levels",
        "an ordered category",
        fits(
            beside(pd.Categorical(cycle("lo", "hi"), ["lo", "mid", "hi"], ordered=True)),
            "levels in their order",
            lambda m: m.sample(5)["d"].dtype.ordered,
        ),
    ),
    Case(
        "Levels",
        "categories of numbers, one of them NaN in the cells",
        fits(beside(pd.Categorical(cycle(1, 2, np.nan))), "levels, and missing cells"),
    ),
    Case(
        "Levels",
        "categories that are days",
        fits(beside(pd.Series(pd.Categorical(DAYS.iloc[:5].repeat(12)))), "levels"),
    ),
    Case(
        "Levels",
        "True, 1 and '1' as levels",
        fits(
            beside(pd.Series(cycle(True, 1, "1"), dtype=object)),
            "three levels",
            lambda m: m.schema_["d"].cardinality == 3,
        ),
    ),
    Case(
        "Levels", "one level alone", fits(beside(["k"] * ROWS), "a constant", lambda m: (m.sample(9)["d"] == "k").all())
    ),
    Case(
        "Levels",
        "categories in a schema that lack a level of the data",
        refuses(beside(cycle("lo", "hi", "mid")), "column 'd'", "'mid'", schema={"d": {"categories": ["lo", "hi"]}}),
    ),
    Case("Levels", "a level that one row has", fits(beside(at(WORDS, 7, "rare")), "a level like others")),
]

CASES = [*TIMES, *OTHER, *LEVELS]
