"""Whole tables of any columns as the matrices that `MixedFlow` models, and back: schema, codec and rules between columns together."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

from flowlab.hints import fits
from flowlab.tables.codec.codec import Codec
from flowlab.tables.codec.columns import Unit, decode_column, encode_column
from flowlab.tables.codec.trial import check_combinations, check_ends, check_rule, try_codec
from flowlab.tables.frames import cells
from flowlab.tables.frames.validation import only_known
from flowlab.tables.schema.column import LEVELLED
from flowlab.tables.schema.levels import UNKNOWN
from flowlab.tables.schema.rules import FixedCombinations, LessThan, Predicate, Rule, parse_rule, read_rules
from flowlab.tables.schema.schema import Schema, read_overrides
from flowlab.tables.schema.stored import LABEL


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
        said = read_overrides(overrides, list(frame.columns))
        parsed = in_order([read_rule(rule, frame) for rule in read_rules(rules)])
        check_included(parsed, said)
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
            if not rule.order:
                rule.learn(rewritten, said)
            rule.order = list(rewritten.columns)  # one that was learnt before may have seen others
            rewritten = rule.rewrite(rewritten)
            known |= rule.overrides()
        if parsed:  # what is said of columns that rules have replaced concerns none that is left
            said = said | known
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
            frame = rule.rewrite(frame)
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
        return bool(self.ends) or derived or any(rule.rejects for rule in self.rules)

    def acceptable(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows from `decode` break no rule, and lie within what training spans.

        That concerns times, and what rules compute; all else cannot lie outside.
        """
        good = self.unbroken(frame)
        for rule in self.rules:
            good &= ~rule.outside(frame)
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
        """The table that `to_json` wrote down.

        Raises:
            ValueError: Its parts do not go together.
        """
        names, array, ends = data["names"], data["array"], data["ends"]
        if not fits(names, list[LABEL]) or not fits(array, bool):
            raise ValueError("the names of the columns are none")
        codec, rules = Codec.from_json(data["schema"]), [Rule.from_json(rule) for rule in data["rules"]]
        try_codec(codec)
        check_chain(rules, names, codec)
        for rule in rules:
            check_rule(rule)
            if isinstance(rule, FixedCombinations):
                check_combinations(codec, rule)
        dtypes = {column.name: column.dtype for column in codec.schema}
        check_ends(ends, dtypes | {rule.high: rule.dtype for rule in rules if isinstance(rule, LessThan)})
        return cls(codec, rules, names, array, ends)


def read_rule(rule: Rule | str, frame: pd.DataFrame) -> Rule:
    """A rule of the table's own, from an object or its text.

    "low <= high" is a condition where differences would lose values.
    """
    if not isinstance(rule, str):
        return copy.deepcopy(rule)
    parsed = parse_rule(rule)
    if isinstance(parsed, LessThan) and set(parsed.columns()) <= set(frame.columns) and parsed.lost(frame):
        return Predicate(str(parsed))
    return parsed


def check_included(rules: Sequence[Rule], said: Mapping[Any, Mapping[str, Any]]) -> None:
    """Raises a ValueError for a rule about a column that the user leaves out: no sample would have it."""
    for rule in rules:
        for name in rule.columns():
            if said.get(name, {}).get("kind") == "excluded":
                raise ValueError(f"the rule {rule.shown} names column {name!r}, which the schema excludes: drop either")


def check_chain(rules: Sequence[Rule], names: Sequence[Any], codec: Codec) -> None:
    """Raises a ValueError unless rules from a file lead from the user's columns to the modelled ones."""
    there = {str(name) for name in names}
    for rule in rules:
        lacking = [name for name in rule.columns() if str(name) not in there]
        if lacking:
            raise ValueError(f"the rule {rule.shown} names column {lacking[0]!r}, which is not in the table")
        if not there <= set(map(str, rule.order)):
            raise ValueError(f"the rule {rule.shown} has learnt from another table")
        there = there - {str(name) for name in rule.replaced()} | {str(name) for name in rule.made()}
    modelled = {str(column.name) for column in codec.schema if column.kind != "excluded"}
    if rules and there != modelled:
        raise ValueError(f"rules and columns do not fit together: {', '.join(sorted(there ^ modelled)[:5])}")
    for rule in rules:
        rule.check_modelled(codec.schema)


def in_order(rules: Sequence[Rule]) -> list[Rule]:
    """Rules so that each still finds its columns: what one replaces, none after it speaks of.

    One that is there twice counts once. Where that cannot be, as for "a <= c" beside "b <= c", which both replace c, a
    "<=" is a condition.

    Raises:
        ValueError: They go in a circle.
    """
    left, done = [rule for k, rule in enumerate(rules) if rule not in rules[:k]], []
    while left:
        free = [
            rule
            for rule in left
            if not any(set(rule.replaced()) & set(other.columns()) for other in left if other is not rule)
        ]
        if not free:
            loose = [
                k
                for k, rule in enumerate(left)
                if isinstance(rule, LessThan) and all(isinstance(name, str) for name in rule.columns())
            ]
            if not loose:
                raise ValueError(f"the rules {', '.join(map(str, left))} go in a circle: drop one")
            left[loose[-1]] = Predicate(str(left[loose[-1]]))
            continue
        done += free[:1]
        left = [rule for rule in left if rule is not free[0]]
    return done


def is_whole(X: Any) -> bool:
    """Whether rows need the model of whole tables: some column is no number, or a cell is missing."""
    if isinstance(X, pd.DataFrame):
        numeric = [pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in X.dtypes]
        return X.shape[1] > 0 and (not all(numeric) or bool(X.isna().to_numpy().any()))
    if hasattr(X, "dtype") and np.asarray(X).ndim == 2 and np.asarray(X).dtype.kind == "f":
        return bool(np.isnan(X).any())
    return False
