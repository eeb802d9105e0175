"""Whole tables of any columns as the matrices that `MixedFlow` models, and back: schema, codec and rules between columns together."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

from flowlab.tables import cells
from flowlab.tables.codec import UNKNOWN, Codec, Unit, decode_column, encode_column
from flowlab.tables.column import LEVELLED
from flowlab.tables.frame import only_known
from flowlab.tables.rules import Derived, FixedCombinations, LessThan, Predicate, Rule, parse_rule
from flowlab.tables.schema import Schema, read_overrides


class WholeTable:
    """What a table's columns are, which rules hold between them, and the way to the model's matrix and back.

    Args:
        codec: Of the table as the rules rewrite it.
        rules: The rules, in the order in which they are applied.
        names: The columns as the user has them.
        array: Whether rows were given as an array, and come back as one.
        ends: First and last time, as text, of each column of times: their days and hours lie within their own ranges, together they may not.
    """

    def __init__(
        self,
        codec: Codec,
        rules: Sequence[Rule],
        names: Sequence[Any],
        array: bool = False,
        ends: Sequence[tuple[Any, str, str]] = (),
    ) -> None:
        self.codec, self.rules, self.names, self.array = codec, list(rules), list(names), array
        self.ends = [(name, first, last) for name, first, last in ends]

    @classmethod
    def learn(
        cls, frame: pd.DataFrame, overrides: Any, rules: Any, array: bool = False
    ) -> "tuple[WholeTable, NDArray[np.bool_]]":
        """What there is to know of a table, and which of its rows break no rule.

        Args:
            frame: The table.
            overrides: As for `Schema.infer`, of the columns that the user sees.
            rules: Rules, or strings that say them.
            array: Whether rows were given as an array.
        """
        parsed = in_order([read_rule(rule, frame) for rule in rules or ()])
        kept = np.ones(len(frame), dtype=bool)
        for rule in parsed:
            kept &= ~np.asarray(rule.broken(frame))
        if kept.sum() < 2:
            raise ValueError(
                f"only {int(kept.sum())} of {len(frame)} rows keep the rules {', '.join(map(str, parsed))}"
            )
        rewritten = frame[kept]
        known: dict[Any, Any] = {}
        for rule in parsed:
            rewritten = rule.forward(rewritten)
            known |= rule.overrides()
        if parsed:  # what is said of columns that rules have replaced concerns none that is left
            said = read_overrides(overrides, list(frame.columns)) | known
            overrides = {name: value for name, value in said.items() if name in rewritten.columns}
        codec = Codec(Schema.infer(rewritten, overrides))
        excluded = {column.name for column in codec.schema if column.kind == "excluded"}
        names = [cells.plain_label(name) for name in frame.columns if name not in excluded]
        times = [name for name in names if pd.api.types.is_datetime64_any_dtype(frame[name].dtype)]
        times = [name for name in times if frame[name].notna().any()]
        ends = [(name, str(frame[name].min()), str(frame[name].max())) for name in times]
        return cls(codec, parsed, names, array, ends), kept

    @property
    def units(self) -> list[Unit]:
        """The columns of the matrix."""
        return self.codec.units

    def frame(self, X: ArrayLike) -> pd.DataFrame:
        """Rows as a DataFrame."""
        if isinstance(X, pd.DataFrame):
            cells.check_frame(X)
            return only_known(X, [*self.names, *(c.name for c in self.codec.schema if c.kind == "excluded")])
        try:
            x = check_array(X, dtype=np.float64, ensure_all_finite="allow-nan")
        except (TypeError, ValueError) as error:
            if self.array:
                raise
            raise ValueError(
                f"the model was fitted to a table with the columns {', '.join(map(str, self.names))}: give a DataFrame ({error})"
            ) from error
        if x.shape[1] != len(self.names):  # in scikit-learn's words
            raise ValueError(
                f"X has {x.shape[1]} features, but FlowDensity is expecting {len(self.names)} features as input: "
                f"{', '.join(map(str, self.names))}"
            )
        return pd.DataFrame(x, columns=self.names)

    def place(self, name: Any) -> slice:
        """Which units a column has.

        Raises:
            ValueError: There is no such column in the model.
        """
        if name not in self.codec._places:
            self.codec.encode_cells(name, [])  # says what is wrong with it
            raise ValueError(f"column {name!r} is not in the model")
        return self.codec._places[name]

    def encode_end(self, name: Any, value: Any) -> float:
        """A number or time that need not be one that the column can have, as its first unit would hold it."""
        column = self.codec.schema[name]
        cell = pd.Series([value])
        if column.kind in ("datetime", "timedelta"):
            cell = cells.times(cell, cells.dtype_of(column.dtype))
        try:
            return float(encode_column(column, cell)[0, 0])
        except (ValueError, TypeError) as error:
            raise ValueError(f"column {name!r}: {value!r} is no end of an interval: {error}") from error

    def decode_part(self, name: Any, block: NDArray[np.float64]) -> pd.Series:
        """Cells of one column from its units (n, units of the column), as numbers or times."""
        found = decode_column(self.codec.schema[name], self.units[self.place(name)], block)
        return (
            found
            if pd.api.types.is_datetime64_any_dtype(found.dtype)
            else found.astype("timedelta64[ns]" if self.codec.schema[name].kind == "timedelta" else float)
        )

    def warn_of_new_levels(self, frame: pd.DataFrame, matrix: NDArray[np.float64]) -> None:
        """Warns of levels that training did not have, which makes rows impossible, by the matrix of the rows."""
        for column in self.codec.schema:
            if column.kind in LEVELLED and column.name in frame.columns:
                new = matrix[:, self.place(column.name).start] == UNKNOWN
                if new.any():
                    values = frame[column.name][new].unique()
                    shown = ", ".join(repr(value) for value in values[:3].tolist())
                    warnings.warn(
                        f"column {column.name!r}: {int(new.sum())} rows have levels that training did not have ({shown}), and score -inf",
                        stacklevel=3,
                    )

    def rewritten(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows that break no rule, with the columns that are modelled in place of the user's."""
        for rule in self.rules:
            frame = rule.forward(frame)
        return frame

    def encode(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """The matrix (n, units) of rows that break no rule."""
        return self.codec.encode(self.rewritten(frame))

    def encode_all(self, frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The matrix (n, units) of any rows, and which of them are possible; the others are rows of NaN where a rule is broken."""
        good = self.unbroken(frame)
        matrix = np.full((len(frame), len(self.units)), np.nan)
        possible = good.copy()
        if good.any():
            rewritten = self.rewritten(frame[good])
            matrix[good] = self.codec.encode(rewritten)
            possible[good] = self.codec.possible(rewritten)
        return matrix, possible

    def unbroken(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows break no rule."""
        good = np.ones(len(frame), dtype=bool)
        for rule in self.rules:
            good &= ~np.asarray(rule.broken(frame))
        return good

    def decode(self, matrix: ArrayLike) -> pd.DataFrame:
        """The rows of a matrix (n, units) as the user has them; those that break a predicate are among them."""
        frame = self.codec.decode(matrix)
        for rule in reversed(self.rules):
            frame = rule.backward(frame)
        return frame[[name for name in self.names if name in frame.columns]]

    @property
    def rejects(self) -> bool:
        """Whether a row from `decode` can be one that is not to be given out."""
        derived = any(column.kind == "derived" for column in self.codec.schema)
        return bool(self.ends) or derived or any(isinstance(rule, Predicate) for rule in self.rules)

    def acceptable(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows from `decode` break no rule, and have no time before the first or after the last in training."""
        good = self.unbroken(frame)
        for name, first, last in self.ends:
            if name in frame.columns:
                values = frame[name]
                if isinstance(values.dtype, pd.ArrowDtype):  # arrow's dates do not compare with times
                    values = pd.to_datetime(values)
                within = values.between(pd.Timestamp(first), pd.Timestamp(last))
                good &= (values.isna() | within).to_numpy(dtype=bool)
        return good

    def why_rejected(self) -> str:
        """What `acceptable` asks of rows, in words."""
        asked = [f"the rules {', '.join(map(str, self.rules))}"] if self.rules else []
        derived = [repr(column.name) for column in self.codec.schema if column.kind == "derived"]
        if derived:
            asked.append(f"the range in training of {', '.join(derived)}")
        if self.ends:
            asked.append("the range of times in training of " + ", ".join(repr(name) for name, *_ in self.ends))
        return " and ".join(asked)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "schema": self.codec.to_json(),
            "rules": [rule.to_json() for rule in self.rules],
            "names": self.names,
            "array": self.array,
            "ends": self.ends,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "WholeTable":
        """The table that `to_json` wrote down."""
        return cls(
            Codec.from_json(data["schema"]),
            [Rule.from_json(r) for r in data["rules"]],
            data["names"],
            data["array"],
            data["ends"],
        )


def read_rule(rule: Rule | str, frame: pd.DataFrame) -> Rule:
    """A rule of the table's own, from an object or its text; "low <= high" is a condition where differences would lose values."""
    if not isinstance(rule, str):
        return copy.deepcopy(rule)
    parsed = parse_rule(rule)
    if isinstance(parsed, LessThan) and set(parsed.columns()) <= set(frame.columns) and parsed.lost(frame):
        return Predicate(str(parsed))
    return parsed


def in_order(rules: Sequence[Rule]) -> list[Rule]:
    """Rules so that each still finds its columns: what one replaces, none after it speaks of.

    Raises:
        ValueError: They go in a circle.
    """
    left, done = list(rules), []
    while left:
        free = [
            rule
            for rule in left
            if not any(set(replaced(rule)) & set(other.columns()) for other in left if other is not rule)
        ]
        if not free:
            raise ValueError(f"the rules {', '.join(map(str, left))} go in a circle: drop one")
        done += free[:1]
        left.remove(free[0])
    return done


def replaced(rule: Rule) -> list[Any]:
    """The columns that a rule takes out of the modelled table."""
    if isinstance(rule, LessThan):
        return [rule.high]
    if isinstance(rule, Derived):
        return [rule.name]
    return rule.columns() if isinstance(rule, FixedCombinations) else []


def is_whole(X: Any) -> bool:
    """Whether rows need the model of whole tables: some column is no number, or a cell is missing."""
    if isinstance(X, pd.DataFrame):
        numeric = [pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in X.dtypes]
        return X.shape[1] > 0 and (not all(numeric) or bool(X.isna().to_numpy().any()))
    if hasattr(X, "dtype") and np.asarray(X).ndim == 2 and np.asarray(X).dtype.kind == "f":
        return bool(np.isnan(X).any())
    return False
