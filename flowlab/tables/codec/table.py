"""`Table`: columns and rules of a table, and the conversion between its rows and the models' matrix."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

from flowlab.hints import fits
from flowlab.tables.codec.codec import Codec
from flowlab.tables.codec.columns import Variable, decode_column, encode_column
from flowlab.tables.codec.trial import check_combinations, check_ends, check_rule, try_codec
from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import Array
from flowlab.tables.frames.validation import only_known
from flowlab.tables.schema.column import LEVELLED
from flowlab.tables.schema.levels import UNKNOWN
from flowlab.tables.schema.rules import FixedCombinations, LessThan, Rule, read_rules
from flowlab.tables.schema.rules.chain import check_chain, check_included, in_order, read_rule
from flowlab.tables.schema.schema import Schema, read_overrides
from flowlab.tables.schema.stored import LABEL


class Table:
    """The columns of a table, the rules between them, and the conversion between rows and the models' matrix.

    The matrix (n, variables) holds codes of levels, numbers, and NaN for missing cells. Each variable has a measure:
    levels, missing cells, values on a grid and repeated values have probabilities, other numbers a density.

    Args:
        codec: The codec of the table as rewritten by the rules.
        rules: The rules, in the order in which they are applied.
        names: The columns of the user's table.
        array: Whether rows were given as an array, and are returned as one.
        ends: First and last time of each column of times, as text. Drawn days and times of day lie within their own
            ranges, but their combination may not.
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
    ) -> "tuple[Table, NDArray[np.bool_]]":
        """Learn schema and rules from a table.

        Args:
            frame: The table.
            overrides: As for `Schema.infer`, for the columns of the user's table.
            rules: Rules, as objects or text.
            array: Whether rows were given as an array.

        Returns:
            The `Table`, and a mask (n,) of the rows that break no rule.

        Raises:
            ValueError: A column cannot be modelled, or fewer than two rows keep the rules.
        """
        said = read_overrides(overrides, list(frame.columns))
        if all(said.get(name, {}).get("kind") == "excluded" for name in frame.columns):
            raise ValueError(f"the schema excludes every column ({', '.join(map(repr, frame.columns))}): keep one")
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
            rule.order = list(rewritten.columns)  # a rule learnt before may have other columns
            rewritten = rule.rewrite(rewritten)
            known |= rule.overrides()
        if parsed:  # overrides of columns that the rules replace are dropped
            said = said | known
            overrides = {name: value for name, value in said.items() if name in rewritten.columns}
        codec = Codec(infer_schema(rewritten, overrides))
        excluded = {column.name for column in codec.schema if column.kind == "excluded"}
        names = [cells.plain_label(name) for name in frame.columns if name not in excluded]
        times = [name for name in names if pd.api.types.is_datetime64_any_dtype(frame[name].dtype)]
        times = [name for name in times if frame[name].notna().any()]
        ends = [(name, str(frame[name].min()), str(frame[name].max())) for name in times]
        return cls(codec, parsed, names, array, ends), kept

    @property
    def schema(self) -> Schema:
        """The columns of the table as rewritten by the rules."""
        return self.codec.schema

    @property
    def variables(self) -> list[Variable]:
        """The variables, one per column of the matrix."""
        return self.codec.variables

    @property
    def complete(self) -> bool:
        """Whether all columns are numbers without missing cells."""
        dtypes = [cells.dtype_of(column.dtype) for column in self.schema if column.kind != "excluded"]
        numeric = all(pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in dtypes)
        plain = not any(column.missing or column.kind in LEVELLED for column in self.schema)
        return numeric and plain and len(dtypes) == len(self.schema)

    # Rows ------------------------------------------------------------------------------------------------------------

    def frame(self, X: ArrayLike) -> pd.DataFrame:
        """Rows as a DataFrame."""
        if isinstance(X, pd.DataFrame):
            cells.check_frame(X)
            return only_known(X, [*self.names, *(c.name for c in self.codec.schema if c.kind == "excluded")])
        try:
            x = check_array(
                X, dtype=np.float64, ensure_all_finite=False
            )  # infinite cells: the codec names their column
        except (TypeError, ValueError) as error:
            if self.array:
                raise
            raise ValueError(
                f"the model was fitted to a table with the columns {', '.join(map(str, self.names))}: give a DataFrame "
                f"({error})"
            ) from error
        if x.shape[1] != len(self.names):  # in scikit-learn's words
            raise ValueError(
                f"X has {x.shape[1]} features, but FlowDensity is expecting {len(self.names)} features as input: "
                f"{', '.join(map(str, self.names))}"
            )
        return pd.DataFrame(x, columns=self.names)

    def place(self, name: Any) -> slice:
        """The variables of a column, as a slice of the matrix's columns.

        Raises:
            ValueError: There is no such column in the model.
        """
        if name not in self.codec._places:
            self.codec.encode_cells(name, [])  # raises with the reason
            raise ValueError(f"column {name!r} is not in the model")
        return self.codec._places[name]

    def encode_end(self, name: Any, value: Any) -> float:
        """An end of an interval as a number of the column's first variable; it need not be a possible value."""
        column = self.codec.schema[name]
        cell = pd.Series([value])
        if column.kind in ("datetime", "timedelta"):
            cell = cells.times(cell, cells.dtype_of(column.dtype))
        try:
            return float(encode_column(column, cell)[0, 0])
        except (ValueError, TypeError) as error:
            raise ValueError(f"column {name!r}: {value!r} is no end of an interval: {error}") from error

    def decode_part(self, name: Any, block: NDArray[np.float64]) -> pd.Series:
        """Cells of one column from its variables (n, variables of the column), as numbers or times."""
        column = self.codec.schema[name]
        values = decode_column(column, self.variables[self.place(name)], block)
        if pd.api.types.is_datetime64_any_dtype(values.dtype):
            return values
        return values.astype("timedelta64[ns]" if column.kind == "timedelta" else float)

    def warn_of_new_levels(self, frame: pd.DataFrame, matrix: Array, fate: str, closed: str, stacklevel: int) -> None:
        """Warn of levels that training did not have.

        Args:
            frame: The rows.
            matrix: Their matrix.
            fate: What becomes of such rows, as text.
            closed: The same where a column's set of levels is closed.
            stacklevel: Of the warning, counted from here.
        """
        for name, codes in self.codec.codes(frame, matrix).items():
            new = codes == UNKNOWN
            if new.any() and name in frame.columns:
                values = frame[name][new].unique()
                shown = ", ".join(map(repr, values[:3].tolist())) + (", …" if len(values) > 3 else "")
                warnings.warn(
                    f"column {name!r}: {int(new.sum())} rows have levels that training did not have ({shown}), and "
                    + (fate if self.codec.schema[name].unseen else closed),
                    stacklevel=stacklevel,
                )

    def new_levels(self, matrix: Array) -> NDArray[np.bool_]:
        """Which cells of a matrix (n, variables) are levels that training did not have."""
        levels = np.array([variable.classes > 0 for variable in self.variables], dtype=bool)
        return np.asarray((matrix == UNKNOWN) & levels)

    @property
    def open_levels(self) -> NDArray[np.bool_]:
        """Which variables (variables,) are levels among which there may be some that training did not have."""
        return np.array([variable.unseen > 0 for variable in self.variables], dtype=bool)

    def rewritten(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows that break no rule, rewritten by the rules into the columns that are modelled."""
        for rule in self.rules:
            frame = rule.rewrite(frame)
        return frame

    def encode(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """The matrix (n, variables) of rows that break no rule."""
        return self.codec.encode(self.rewritten(frame))

    def encode_all(self, frame: pd.DataFrame, off_grid: bool = False) -> tuple[Array, NDArray[np.bool_]]:
        """The matrix (n, variables) of any rows, NaN for those that break a rule, and a mask (n,) of possible rows.

        With `off_grid`, values between those of a grid are possible.
        """
        good = self.unbroken(frame)
        matrix = np.full((len(self.variables), len(frame)), np.nan).T
        possible = good.copy()
        if good.any():
            rewritten = self.rewritten(frame[good])
            matrix[good] = self.codec.encode(rewritten)
            possible[good] = self.codec.possible(rewritten, off_grid)
        return matrix, possible

    def unbroken(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows break no rule."""
        good = np.ones(len(frame), dtype=bool)
        for rule in self.rules:
            good &= ~np.asarray(rule.broken(frame))
        return good

    def decode(self, matrix: ArrayLike) -> pd.DataFrame:
        """The rows of a matrix (n, variables) with the user's columns, including rows that break a rule."""
        frame = self.codec.decode(matrix)
        for rule in reversed(self.rules):
            frame = rule.backward(frame)
        return frame[[name for name in self.names if name in frame.columns]]

    @property
    def rejects(self) -> bool:
        """Whether `acceptable` can reject rows from `decode`."""
        derived = any(column.kind == "derived" for column in self.codec.schema)
        return bool(self.ends) or derived or any(rule.rejects for rule in self.rules)

    def acceptable(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows from `decode` break no rule and lie within the range of the training rows.

        The range is checked for times and computed columns; all others cannot leave it.
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
        """The requirements of `acceptable`, as text."""
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
    def from_json(cls, data: dict[str, Any]) -> "Table":
        """The table that `to_json` wrote down.

        Raises:
            ValueError: Its parts do not go together.
        """
        names, array, ends = data["names"], data["array"], data["ends"]
        if not fits(names, list[LABEL]) or not fits(array, bool):
            raise ValueError("the names of the columns are none")
        codec, rules = Codec.from_json(data["schema"]), [Rule.from_json(rule) for rule in data["rules"]]
        try_codec(codec)
        check_chain(rules, names, codec.schema)
        for rule in rules:
            check_rule(rule)
            if isinstance(rule, FixedCombinations):
                check_combinations(codec, rule)
        dtypes = {column.name: column.dtype for column in codec.schema}
        check_ends(ends, dtypes | {rule.high: rule.dtype for rule in rules if isinstance(rule, LessThan)})
        return cls(codec, rules, names, array, ends)


def infer_schema(frame: pd.DataFrame, overrides: Any) -> Schema:
    """The schema of a table to be modelled; columns of row numbers become ordinary integers, with a warning."""
    schema = Schema.infer(frame, overrides)
    said = read_overrides(overrides, list(frame.columns))
    numbered = [c for c in schema if c.kind == "id" and c.name not in said and cells.dtype_of(c.dtype).kind in "iuf"]
    if not numbered:
        return schema
    for column in numbered:
        warnings.warn(
            f"column {column.name!r} holds {column.reason}: it is modelled as any other; if it says nothing, drop it",
            stacklevel=7,
        )
    return Schema.infer(frame, said | {column.name: {"kind": "integer"} for column in numbered})
