"""One column of a table: the record of how it is treated."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np

from flowlab.tables.frames.records import set_fields

MODELLED = ("continuous", "integer", "categorical", "boolean", "datetime", "timedelta")
FOUND = ("constant", "derived", "duplicate")  # facts about the data: never asked for
KINDS = (*MODELLED, *FOUND, "id", "excluded")
LEVELLED = ("categorical", "boolean")
NUMERIC = ("continuous", "integer")
NUMBERS = ("lower", "upper", "resolution", "atoms")
SETTABLE = {  # the fields that a user may give, beside the kind
    **dict.fromkeys(NUMERIC, NUMBERS),
    "categorical": ("categories", "ordered", "unseen"),
    "boolean": ("categories", "ordered"),
    "timedelta": NUMBERS,
    "datetime": ("lower", "upper"),
}
INTERNAL = (
    "levels_dtype",
    "null",
    "spellings",
    "tolerance",
    "origin",
    "declared",
    "recoding",
    "seen",
    "atom_width",
    "coarse",
    "unseen",
)  # not for a short look


@dataclass
class ColumnSchema:
    """How one column is treated. Fields may be set: `Schema.infer(df, schema)` learns the others anew.

    Attributes:
        name: The column's label.
        kind: "continuous", "integer", "categorical", "boolean", "datetime" or "timedelta": modelled. "constant",
            "derived" (an exact linear combination of others) or "duplicate": reproduced exactly outside the model.
            "id": the user must decide. "excluded": left out.
        dtype: The name of the pandas type that comes back.
        reason: Why this kind, in plain words.
        missing: Share of missing cells.
        lower: Lower end of the support, None for none: a number, seconds for time differences, or for datetimes the
            first day as "2024-01-31".
        upper: Upper end of the support, likewise.
        resolution: Width of a grid cell in the column's units, seconds for times; 0 for continuous values.
        atoms: Repeated values off any grid.
        spellings: Values that differ from multiples of the resolution by rounding errors, as they are in the data.
        categories: Levels that occur, in order.
        ordered: Whether the order of the levels is meaningful.
        cardinality: Number of distinct values.
        declared: All levels of a category dtype, whether they occur or not.
        levels_dtype: The dtype of the declared levels.
        null: What represents a missing cell in a column of Python objects: "None", "nan" or "<NA>".
        value: The constant; the intercept of a derived column; the time of day in seconds that all datetimes share.
        duplicate_of: The column that this one repeats.
        recoding: The value for each level of that column, where the two columns differ.
        sources: The columns that a derived column is made of.
        weights: Their coefficients.
        tolerance: Largest deviation of a derived value that rounding explains.
        origin: The day that is day number 0 of datetimes.
        parts: Which of a datetime's parts vary: "day", "time".
        offset: Subtracted from large numbers on a grid, where a float64 could not resolve positions within a cell.
        decimals: Step of the decimals of continuous numbers, to which draws are rounded; 0 for none.
        seen: Smallest and largest value of a column of numbers in training.
        atom_width: Width of the cell around each atom when a density is needed; 0 in early files, which lack it.
        coarse: Step of which nearly all values are multiples, where it is coarser than the grid of all: the cells over
            which densities of complete numbers are spread.
        unseen: Probability of a level that training did not have; 0 where there can be none.
    """

    name: Any
    kind: str
    dtype: str
    reason: str = ""
    missing: float = 0.0
    lower: Any = None
    upper: Any = None
    resolution: float = 0.0
    atoms: list[float] = field(default_factory=list)
    spellings: list[float] = field(default_factory=list)
    categories: list[Any] = field(default_factory=list)
    ordered: bool = False
    cardinality: int = 0
    declared: list[Any] = field(default_factory=list)
    levels_dtype: str = ""
    null: str = "None"
    value: Any = None
    duplicate_of: Any = None
    recoding: list[Any] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    tolerance: float = 0.0
    origin: str = ""
    parts: list[str] = field(default_factory=list)
    offset: float = 0.0
    decimals: float = 0.0
    seen: list[float] = field(default_factory=list)
    atom_width: float = 0.0
    coarse: float = 0.0
    unseen: float = 0.0

    @property
    def modelled(self) -> bool:
        """Whether the model sees this column."""
        return self.kind in MODELLED

    def __repr__(self) -> str:
        return f"ColumnSchema({set_fields(self, hidden=INTERNAL)})"

    @property
    def nullable(self) -> bool:
        """Whether cells of this column are missing in the data."""
        return self.missing > 0

    @property
    def undeclared(self) -> int:
        """Number of equally likely levels that training did not have: those declared, and one for all others."""
        return 1 + max(len(self.declared) - max(len(self.categories), 1), 0)

    @property
    def step(self) -> float:
        """Width of the cells over which densities of complete numbers are spread, 0 for continuous values."""
        return self.coarse or self.resolution

    def to_json(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        }


def day_number(day: str) -> int:
    """Days since 1970 of a day like "2024-01-31"."""
    return int(np.datetime64(day[:10], "D").astype(int))


def check_resolution(column: ColumnSchema) -> None:
    """Raise a ValueError for a resolution, or a coarser step, that is not 0, at least 1, or 1 divided by an integer."""
    for name, step in (("resolution", column.resolution), ("coarse", column.coarse)):
        if not (step == 0 or step >= 1 or (step > 0 and abs(1 / step - round(1 / step)) < 1e-6 / step)):
            raise ValueError(
                f"schema of column {column.name!r}: {name} {step!r} is neither 0, nor at least 1, nor 1 divided by a "
                "whole number"
            )
