"""Dirty conditions on rows to draw, and other questions."""

import numpy as np
import pandas as pd

from dirty.case import Case, asked, shell, whole_table

WHOLE = whole_table()


def drawn(given, *fails, says="", check=None, error=ValueError, of=None, **options):
    """Rows under conditions."""
    more = {} if of is None else {"of": of}
    return asked(
        lambda m: m.sample(9, random_state=0, given=given),
        *fails,
        says=says,
        check=check,
        error=error,
        **more,
        **options,
    )


def said(given, *fails, **options):
    """`flowlab sample --given`."""
    return shell(f"sample whole.flow -n 9 -o out.csv --given '{given}'", *fails, **options)


GIVEN = [
    Case(
        "Conditions",
        "a column that is not there",
        drawn({"colour": "D"}, "'colour'"),
        said("colour=D", "no column 'colour'", "there are 'x'"),
    ),
    Case(
        "Conditions",
        "a level that training did not have",
        drawn({"cut": "Great"}, "'cut' cannot be 'Great'"),
        said("cut=Great", "'cut' cannot be 'Great'"),
    ),
    Case("Conditions", "a level with a space too many", drawn({"cut": "Ideal "}, "'cut' cannot be 'Ideal '")),
    Case("Conditions", "an empty list", drawn({"cut": []}, "column 'cut': the set of allowed values is empty")),
    Case(
        "Conditions",
        "a list with a level that is none",
        drawn({"cut": ["Fair", "Great"]}, "'cut' cannot be 'Great'"),
        said("cut=Fair|Great", "'cut' cannot be 'Great'"),
    ),
    Case(
        "Conditions",
        "an interval the wrong way round",
        drawn({"x": (1.0, -1.0)}, "column 'x': the interval (1.0, -1.0) is empty"),
        said("x=1:-1", "column 'x': the interval", "is empty"),
    ),
    Case(
        "Conditions",
        "an interval beyond all numbers",
        drawn({"x": (50.0, 60.0)}, "x", error=Exception),
        said("x=50:60", "x"),
    ),
    Case(
        "Conditions",
        "an interval of three ends",
        drawn({"x": (1.0, 2.0, 3.0)}, "column 'x': an interval is a pair (low, high)"),
    ),
    Case(
        "Conditions",
        "an interval without ends",
        drawn({"x": (None, None)}, says="any value", check=lambda s: s["x"].notna().all()),
    ),
    Case(
        "Conditions",
        "an interval of levels without an order",
        drawn({"cut": ("Fair", "Good")}, "column 'cut' has levels without an order", "list"),
        said("cut=Fair:Good", "column 'cut' has levels without an order", "list"),
    ),
    Case(
        "Conditions",
        "an interval of ordered levels",
        drawn({"size": ("M", None)}, says="these levels and those above", check=lambda s: set(s["size"]) <= {"M", "L"}),
        said("size=M:", says="these levels and those above", check=lambda done: set(done.rows()["size"]) <= {"M", "L"}),
    ),
    Case("Conditions", "a missing cell in a column that had none", drawn({"x": None}, "x"), said("x=", "x")),
    Case(
        "Conditions",
        "a missing cell in a column that had some",
        drawn({"gap": None}, says="drawn missing", check=lambda s: s["gap"].isna().all()),
        said("gap=", says="drawn missing", check=lambda done: (done.rows()["gap"] == "").all()),
        costly=True,
    ),
    Case(
        "Conditions",
        "NaN among other values",
        drawn({"gap": [0.5, np.nan]}, "column 'gap': ask for missing cells alone"),
    ),
    Case("Conditions", "an infinite value", drawn({"x": np.inf}, "'x'")),
    Case("Conditions", "a fraction of an integer", drawn({"n": 2.5}, "'n'"), said("n=2.5", "'n'")),
    Case(
        "Conditions",
        "a word for a number",
        drawn({"n": "two"}, "'n'"),
        said("n=two", "column n holds numbers, and 'two' is none"),
    ),
    Case(
        "Conditions",
        "a day that does not exist",
        drawn({"day": "2023-02-29"}, "'day'"),
        said("day=2023-02-29", "column day holds days or times, and '2023-02-29' is none"),
    ),
    Case(
        "Conditions",
        "a day beyond all others",
        drawn({"day": "2199-01-01"}, "day", error=Exception),
        said("day=2199-01-01", "day"),
    ),
    Case(
        "Conditions",
        "another value of a constant column",
        drawn({"same": "z"}, "column 'same' cannot be 'z': it is always 'k'"),
        said("same=z", "'same'", "'k'"),
    ),
    Case(
        "Conditions",
        "a level named nan",
        drawn({"zip": "nan"}, says="that level, not a missing cell", check=lambda s: (s["zip"] == "nan").all()),
        said("zip=nan", says="that level, not a missing cell", check=lambda done: (done.rows()["zip"] == "nan").all()),
    ),
    Case(
        "Conditions",
        "a dict for a value",
        drawn({"x": {"low": 1}}, "column 'x': a condition is a value, a pair (low, high)"),
    ),
    Case("Conditions", "a text in place of conditions", drawn("cut=Ideal", "given must be a dict", error=TypeError)),
    Case("Conditions", "no conditions", drawn({}, says="any rows", check=lambda s: len(s) == 9)),
    Case(
        "Conditions",
        "all values of an array",
        drawn({"cut": WHOLE["cut"].unique()}, says="any of them", check=lambda s: s["cut"].isin(WHOLE["cut"]).all()),
    ),
    Case(
        "Conditions",
        "rows of conditions with a missing cell",
        asked(
            lambda m: m.sample(given=pd.DataFrame({"cut": ["Fair", None], "n": [1, 2]})),
            "column 'cut' cannot be missing",
        ),
    ),
    Case("Conditions", "a column twice", shell=said("cut=Fair,cut=Good", "--given names column 'cut' twice")),
    Case("Conditions", "a condition without a value", shell=said("cut", "--given wants column=value")),
    Case(
        "Conditions",
        "no rows",
        asked(lambda m: m.sample(0), "n_samples must be a whole number of at least 1"),
        shell("sample whole.flow -n 0 -o out.csv", "--rows", "greater than or equal to"),
    ),
    Case(
        "Conditions",
        "a number of rows that is none",
        asked(lambda m: m.sample("many"), "n_samples must be a whole number", "'many'"),
        shell("sample whole.flow -n many -o out.csv", "--rows", "a valid integer"),
    ),
    Case("Conditions", "half a row", asked(lambda m: m.sample(2.5), "n_samples must be a whole number", "2.5")),
    Case(
        "Conditions",
        "conditional of a column that is not there",
        asked(lambda m: m.conditional("colour", {"cut": "Fair"}), "'colour'"),
    ),
    Case(
        "Conditions",
        "conditional given the column itself",
        asked(
            lambda m: m.conditional("cut", {"cut": "Fair"}),
            says="its own cell is not looked at",
            check=lambda shares: shares.iloc[0].sum() > 0.999,
        ),
    ),
    Case(
        "Conditions",
        "conditional given several values",
        asked(lambda m: m.conditional("x", {"cut": ["Fair", "Good"]}), "column 'cut': conditional wants one value"),
    ),
]

CASES = GIVEN
