"""Dirty cells: numbers, truth values and text."""

import decimal

import numpy as np
import pandas as pd
import pyarrow as pa

from dirty.case import ROWS, Case, beside, cycle, fits, refuses, shell

rng = np.random.default_rng(0)
NORMAL = rng.normal(size=ROWS)
WORDS = cycle("a", "b")


def at(values, row, value):
    """The values with another one in a row."""
    return [value if i == row else v for i, v in enumerate(values)]


NUMBERS = [
    Case(
        "Numbers",
        "an infinite cell",
        refuses(beside(at(NORMAL, 3, np.inf)), "column 'd' holds 1 infinite values", "row 3", "make the cells missing"),
        shell("fit t.csv -o m.flow", "column 'd' holds", "infinite", "--missing inf,-inf", t_csv=["1.5", "2.5", "inf"]),
    ),
    Case(
        "Numbers",
        "inf read as missing, as asked",
        shell=shell("fit t.csv -o m.flow --missing inf", says="fitted", t_csv=["1.5", "2.5", "0.1", "inf"]),
    ),
    Case(
        "Numbers",
        "a cell of 1e308",
        refuses(beside(at(NORMAL, 3, 1e308)), "column 'd'", "row 3", "1e+308"),
        shell("fit t.csv -o m.flow", "column 'd'", "1e+308", t_csv="d,x\n" + "1e308,1\n" + "0.5,1.5\n0.7,2.5\n" * 30),
    ),
    Case("Numbers", "all numbers near 1e308", refuses(beside(NORMAL * 1e307), "column 'd'")),
    Case("Numbers", "denormal numbers", refuses(beside(NORMAL * 5e-320), "column 'd'")),
    Case(
        "Numbers",
        "−0.0 beside 0.0",
        fits(
            beside(cycle(-0.0, 0.0, 1.5, 2.25)),
            "one value, 0",
            lambda model: model.schema_["d"].cardinality == 3,
        ),
    ),
    Case(
        "Numbers",
        "NaN beside None among floats of a column of objects",
        fits(beside(pd.Series(cycle(1.5, None, np.nan, 2.5), dtype=object)), "both are missing cells"),
    ),
    Case(
        "Numbers", "numbers with missing cells", fits(beside(cycle(1.5, np.nan, 2.5)), "missing cells are an outcome")
    ),
    Case(
        "Numbers",
        "every cell is missing",
        fits(beside([np.nan] * ROWS), "a constant: drawn missing", lambda m: m.sample(9)["d"].isna().all()),
        shell("fit t.csv -o m.flow", says="a constant: drawn missing", t_csv=[""]),
    ),
    Case(
        "Numbers",
        "all cells are equal",
        fits(beside([7] * ROWS), "a constant", lambda m: (m.sample(9)["d"] == 7).all()),
        shell(
            "fit t.csv -o m.flow",
            says="a constant",
            check=lambda done: "constant" in done.out,
            t_csv=["7"],
        ),
    ),
    Case(
        "Numbers",
        "always 7, or missing",
        fits(beside(cycle(7.0, np.nan)), "two outcomes", lambda m: set(m.sample(40)["d"].dropna()) == {7.0}),
    ),
    Case(
        "Numbers",
        "integers beyond 2⁵³",
        refuses(
            beside([2**60 + i for i in range(ROWS)]), "column 'd' holds integers above 2**53", "subtract an offset"
        ),
        shell(
            "fit t.csv -o m.flow",
            "column 'd' holds integers above 2**53",
            "--dtype d=text",
            t_csv=[str(2**60 + i) for i in range(ROWS)],
        ),
    ),
    Case(
        "Numbers",
        "integers beyond 64 bits",
        refuses(beside([10**30 + i for i in range(ROWS)]), "column 'd' holds integers above 2**53", "string"),
        shell(
            "fit t.csv -o m.flow --exclude x",
            "column 'd' looks like an identifier",
            "--exclude d",
            t_csv=[str(10**30 + i) for i in range(ROWS)],
        ),
    ),
    Case(
        "Numbers",
        "unsigned integers near 2⁶⁴",
        refuses(
            beside(np.uint64(2**64 - 1) - np.arange(ROWS, dtype="uint64")), "column 'd' holds integers above 2**53"
        ),
    ),
    Case(
        "Numbers",
        "unsigned bytes from 0 to 255",
        fits(
            beside(np.arange(ROWS, dtype="uint8") * 4),
            "integers within the type's range",
            lambda m: m.schema_["d"].upper == 255,
        ),
    ),
    Case(
        "Numbers",
        "a rule over unsigned bytes that would wrap",
        fits(
            beside(np.array(cycle(200, 250), dtype="uint8")).assign(e=np.array(cycle(100, 150, 3), dtype="uint8")),
            "sums do not wrap",
            lambda m: m.sample(30)[["d", "e"]].astype(int).sum(axis=1).max() <= 352,
            rules=["d + e <= 352"],
        ),
    ),
    Case(
        "Numbers",
        "half-precision floats near their largest",
        fits(
            beside(np.linspace(1, 65000, ROWS).astype("float16")),
            "draws stay finite",
            lambda m: np.isfinite(m.sample(200)["d"]).all(),
        ),
    ),
    Case("Numbers", "two values, 1e-300 apart", refuses(beside(cycle(0.0, 1e-300)), "column 'd'")),
    Case(
        "Numbers",
        "time stamps in microseconds as integers",
        fits(
            beside(1_700_000_000_000_000 + np.arange(ROWS) % 8),
            "integers: eight values stay eight",
            lambda m: m.schema_["d"].cardinality == 8,
        ),
    ),
    Case(
        "Numbers",
        "a tiny multiple of another column",
        fits(
            beside(np.arange(ROWS) % 7).assign(e=lambda t: t.d * 1.602e-19),
            "derived: drawn exactly",
            lambda m: np.allclose(*(lambda s: (s.e, s.d * 1.602e-19))(m.sample(30)), rtol=1e-9, atol=0),
        ),
    ),
    Case(
        "Numbers",
        "complex numbers",
        refuses(beside(NORMAL + 1j), "'d'", "omplex"),
    ),
    Case(
        "Numbers",
        "decimals, Python's",
        refuses(
            beside(pd.Series([decimal.Decimal("1.10")] * ROWS)), "column 'd' holds decimal objects", ".astype(float)"
        ),
    ),
    Case(
        "Numbers",
        "decimals, pyarrow's in pandas",
        refuses(
            beside(
                pd.Series(
                    cycle(decimal.Decimal("1.10"), decimal.Decimal("2.25")), dtype=pd.ArrowDtype(pa.decimal128(10, 2))
                )
            ),
            "column 'd' is of type decimal128(10, 2)[pyarrow]",
            ".astype(float)",
        ),
    ),
    Case(
        "Numbers",
        "decimals in a table of pyarrow's",
        fits(
            pa.table(
                {
                    "d": pa.array(cycle(decimal.Decimal("1.10"), decimal.Decimal("2.25")), pa.decimal128(10, 2)),
                    "c": WORDS,
                }
            ),
            "numbers, drawn as decimals",
            lambda m: pa.types.is_decimal(m.sample(3).schema.field("d").type),
        ),
    ),
    Case(
        "Numbers",
        "sparse numbers",
        refuses(beside(pd.arrays.SparseArray(cycle(0.0, 1.5))), "column 'd' is of type Sparse", ".sparse.to_dense()"),
    ),
]

TRUTH = [
    Case(
        "Truth values",
        "True and False with missing cells",
        fits(beside(pd.Series(cycle(True, False, None), dtype=object)), "boolean, with missing cells"),
        shell(
            "fit t.csv -o m.flow",
            says="boolean, with missing cells",
            check=lambda done: "boolean" in done.out,
            t_csv=["True", "False", ""],
        ),
    ),
    Case(
        "Truth values",
        "pandas' nullable booleans",
        fits(beside(pd.array(cycle(True, None, False), dtype="boolean")), "boolean, with missing cells"),
    ),
    Case(
        "Truth values",
        "0 and 1",
        fits(beside(cycle(0, 1)), "integers; the reason says so", lambda m: m.schema_["d"].kind == "integer"),
    ),
    Case(
        "Truth values",
        "yes and no",
        fits(beside(cycle("yes", "no")), "two levels"),
        shell(
            "fit t.csv -o m.flow --dtype d=boolean",
            says="boolean, as asked",
            check=lambda done: "boolean" in done.out,
            t_csv=["yes", "no"],
        ),
    ),
    Case(
        "Truth values",
        "True among numbers",
        fits(
            beside(pd.Series(cycle(True, 1, 2.5), dtype=object)),
            "levels: each value and type its own",
            lambda m: m.schema_["d"].cardinality == 3,
        ),
    ),
    Case(
        "Truth values",
        "a third value where a boolean is asked for",
        refuses(
            beside(cycle("yes", "no", "?")),
            "column 'd': a boolean has two levels, got 3",
            "categorical",
            schema={"d": "boolean"},
        ),
        shell(
            "fit t.csv -o m.flow --dtype d=boolean",
            "column 'd' of t.csv cannot be read as true or false",
            "'maybe' in row 3",
            "--missing maybe",
            t_csv=["yes", "no", "maybe"],
        ),
    ),
]

TEXT = [
    Case(
        "Text",
        "a NUL character",
        fits(beside(cycle("a\x00b", "a")), "a level like others, also in files"),
        shell("fit t.csv -o m.flow", says="a level like others", t_csv=["a\x00b", "a"]),
    ),
    Case(
        "Text",
        "emoji and joined ones",
        fits(beside(cycle("👩‍🔬", "👩", "🇳🇦")), "levels"),
        shell("fit t.csv -o m.flow", says="levels", t_csv=["👩‍🔬", "👩", "🇳🇦"]),
    ),
    Case(
        "Text",
        "é composed and decomposed",
        fits(beside(cycle("\u00e9", "e\u0301")), "two levels: bytes count", lambda m: m.schema_["d"].cardinality == 2),
    ),
    Case(
        "Text",
        "right-to-left text and its marks",
        fits(beside(cycle("שלום", "مرحبا", "\u202eabc")), "levels"),
        shell("fit t.csv -o m.flow", says="levels", t_csv=["שלום", "مرحبا", "\u202eabc"]),
    ),
    Case(
        "Text",
        "line breaks, tabs and quotation marks",
        fits(beside(cycle("a\nb", "a\tb", 'a"b', "a,b")), "levels"),
        shell("fit t.csv -o m.flow", says="levels", t_csv=['"a\nb"', '"a""b"', '"a,b"']),
    ),
    Case(
        "Text",
        "a lone surrogate",
        fits(beside(pd.Series(cycle("\ud800", "a"), dtype=object)), "a level like others, also in files"),
    ),
    Case(
        "Text",
        "cells of a megabyte",
        fits(beside(cycle("a" * 2**20, "b")), "two levels"),
        shell("fit t.csv -o m.flow --quiet", says="two levels", t_csv=["a" * 2**20, "b"]),
    ),
    Case(
        "Text",
        "levels named nan, None and the empty text",
        fits(
            beside(cycle("nan", "None", "", "NA")),
            "levels, not missing cells",
            lambda m: m.schema_["d"].missing == 0 and m.schema_["d"].cardinality == 4,
        ),
        shell(
            "fit t.csv -o m.flow",
            says="among words, words; the empty text is missing",
            warns="are kept as text",
            t_csv=["nan", "None", "NA", "a", ""],
        ),
    ),
    Case(
        "Text",
        "spaces around words",
        fits(beside(cycle(" a", "a", "a ")), "three levels", lambda m: m.schema_["d"].cardinality == 3),
    ),
    Case(
        "Text",
        "nearly every cell differs",
        refuses(
            beside([f"user {i}" for i in range(ROWS)]), "'d' looks like an identifier", "'excluded'", "'categorical'"
        ),
        shell(
            "fit t.csv -o m.flow",
            "'d' looks like an identifier",
            "--exclude d",
            "--dtype d=categorical",
            t_csv=[f"user {i}" for i in range(ROWS)],
        ),
    ),
    Case(
        "Text",
        "numbers with thousands separators",
        refuses(beside([f"{1000 + 37 * i:,}" for i in range(ROWS)]), "'d' looks like an identifier", "'excluded'"),
        shell(
            "fit t.csv -o m.flow",
            "'d' looks like an identifier",
            "--dtype d=number",
            t_csv=[f'"{1000 + 37 * i:,}"' for i in range(ROWS)],
        ),
    ),
    Case(
        "Text",
        "numbers with thousands separators, read as asked",
        shell=shell(
            "fit t.csv -o m.flow --dtype d=number",
            says="numbers",
            check=lambda done: "integer" in done.out,
            t_csv=[f'"{1000 + 37 * i:,}"' for i in range(ROWS)],
        ),
    ),
    Case(
        "Text",
        "amounts of money",
        fits(beside(cycle("$1,658.18", "$5.00")), "levels"),
        shell(
            "schema t.csv",
            says="text, with a note",
            warns="--dtype d=number reads them as numbers",
            t_csv=['"$1,658.18"', "$5.00"],
        ),
    ),
    Case(
        "Text",
        "per cents",
        fits(beside(cycle("15%", "20 %")), "levels"),
        shell(
            "schema t.csv",
            says="text, with a note",
            warns="--dtype d=number reads them as numbers",
            t_csv=["15%", "20 %"],
        ),
    ),
    Case(
        "Text",
        "decimal commas in a file of semicolons",
        shell=shell(
            "schema t.csv",
            says="numbers, with a note",
            warns="numbers have decimal commas",
            t_csv="x;d\n" + "1,5;2,25\n2,5;3,75\n" * 30,
        ),
    ),
    Case(
        "Text",
        "postal codes with leading zeros",
        fits(beside(cycle("01234", "99999")), "text"),
        shell("schema t.csv", says="text, with a note", warns="would lose their zeros", t_csv=["01234", "99999"]),
    ),
    Case(
        "Text",
        "numbers and a few words",
        fits(beside(pd.Series(cycle(1.5, 2.5, "n/k"), dtype=object)), "levels of two types"),
        shell(
            "schema t.csv",
            says="text, with a note",
            warns="--missing n/k makes these missing",
            t_csv=["1.5", "2.5", "3.5", "4.5", "5.5", "6.5", "7.5", "8.5", "9.5", "n/k"],
        ),
    ),
    Case(
        "Text",
        "numbers and words where numbers are asked for",
        refuses(
            beside(cycle("1.5", "n/k")),
            "column 'd': expected numbers, got text",
            "pd.to_numeric",
            schema={"d": "continuous"},
        ),
        shell(
            "fit t.csv -o m.flow --dtype d=number",
            "column 'd' of t.csv cannot be read as numbers",
            "'n/k' in row 2",
            "--missing n/k",
            t_csv=["1.5", "n/k"],
        ),
    ),
    Case("Text", "spreadsheet formulas", fits(beside(cycle("=1+1", "@SUM(A1)", "-2+3")), "levels, as they are")),
]

CASES = [*NUMBERS, *TRUTH, *TEXT]
