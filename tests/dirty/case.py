"""Cases of dirty tables: what is done with one by the library and on the command line, and what comes of it.

A `Case` has a step for each of the two. A step either works, which is said in a sentence and checked, or fails with an
error whose message must hold what the step lists: the column, and what to do.
"""

import functools
import io
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

import flowlab
from flowlab import FlowDensity
from flowlab.cli import main

ROWS = 60
TINY = flowlab.Member("mixed", "none", steps=3, hidden=(4,), trees=2)


@dataclass(frozen=True)
class Step:
    """What is done with a table, and what comes of it.

    Attributes:
        run: Does it, in an empty folder that also holds the models of `models`.
        says: What comes of it, where it works.
        check: Whether the result is right.
        fails: What the error's message must hold, where it fails.
        error: The error's type.
        shown: How the page names what is done.
        warns: What a warning must hold.
        slow: Whether it takes a second or so, and tells little that others do not.
    """

    run: Callable[[], Any]
    says: str = ""
    check: Callable[[Any], Any] | None = None
    fails: tuple[str, ...] = ()
    error: type[Exception] = ValueError
    shown: str = ""
    warns: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Case:
    """One situation: its kind, a name of its own, and what the library and the command line do with it."""

    kind: str
    situation: str
    library: Step | None = None
    shell: Step | None = None
    costly: bool = False

    @property
    def slow(self) -> bool:
        """Whether it is left to the slow tests."""
        return self.costly or any(step is not None and step.slow for step in (self.library, self.shell))


@dataclass
class Outcome:
    """What came of a step: its result or error, and the warnings."""

    result: Any = None
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """The error's message; the warnings' where there is none."""
        return " ".join(self.warnings) if self.error is None else str(self.error)


class ShellError(Exception):
    """The command line's error message."""


def carried_out(step: Step, models: Mapping[str, Path]) -> Outcome:
    """Carry out a step in a folder of its own; numpy's warnings are errors, flowlab's are kept."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings(record=True) as caught:
        for name, path in models.items():
            Path(name).symlink_to(path)
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        try:
            result = step.run()
            if step.check is not None:
                assert step.check(result), f"not so: {step.says}"
            outcome = Outcome(result)
        except AssertionError:
            raise
        except Exception as error:
            outcome = Outcome(error=error)
    outcome.warnings += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return outcome


def judge(step: Step, outcome: Outcome) -> str:
    """Say what is wrong with an outcome; an empty text if nothing is."""
    if outcome.error is not None and not step.fails:
        return f"{type(outcome.error).__name__}: {outcome.error}"
    if step.fails and outcome.error is None:
        return f"it works: {outcome.result!r}"
    if outcome.error is not None and type(outcome.error) is not step.error and step.error is not Exception:
        return f"{type(outcome.error).__name__} in place of {step.error.__name__}: {outcome.error}"
    lacking = [text for text in (*step.fails, step.warns) if text not in outcome.message]
    return f"{lacking} not in: {outcome.message}" if lacking else ""


# The library --------------------------------------------------------------------------------------------------------


def fit(table: Any, weight: Any = None, **options: Any) -> FlowDensity:
    """Fit as little as can be fitted."""
    settings: dict[str, Any] = {"members": [TINY], "validation": 0.0, "random_state": 0, "n_jobs": 1}
    return FlowDensity(**settings | options).fit(table, sample_weight=weight)


def beside(values: Any, name: Any = "d") -> pd.DataFrame:
    """A column of a few numbers, which is quickly fitted, and one more."""
    x = np.random.default_rng(0).integers(0, 5, len(values)) / 2
    return pd.DataFrame({"x": x}).assign(d=values).set_axis(["x", name], axis=1)


def cycle(*values: Any, count: int = ROWS) -> list[Any]:
    """Values over and over, to as many as a small table has rows."""
    return [values[i % len(values)] for i in range(count)]


def usable(table: Any, model: FlowDensity) -> bool:
    """Whether a model scores its own rows, draws such rows, and is the same after saving and loading."""
    scores = model.score_samples(table)
    kept = model.table_.unbroken(table) if isinstance(table, pd.DataFrame) else np.ones(len(scores), dtype=bool)
    assert np.isfinite(scores[kept]).all(), scores
    drawn = model.sample(20, random_state=1)
    if isinstance(table, pd.DataFrame):
        names = [name for name in table.columns if name in list(drawn.columns)]
        assert list(drawn.columns) == names
        assert drawn.dtypes.tolist() == table[names].dtypes.tolist(), (drawn.dtypes, table.dtypes)
    model.save("usable.flow")
    assert np.array_equal(flowlab.load("usable.flow").score_samples(table), scores)
    return True


def fits(
    table: Any,
    says: str,
    check: Callable[[FlowDensity], Any] | None = None,
    *,
    warns: str = "",
    weight: Any = None,
    **options: Any,
) -> Step:
    """A fit that works, and whose model scores, draws, is saved and loaded.

    Args:
        table: The table, or a function that makes it.
        says: What it is taken for.
        check: Whether the model is right.
        warns: What a warning must hold.
        weight: The rows' weights.
        options: Of `FlowDensity`.
    """
    made = functools.cache(table if callable(table) else lambda: table)
    return Step(
        lambda: fit(made(), weight, **options),
        says,
        lambda model: usable(made(), model) and (check is None or check(model)),
        warns=warns,
        slow=check is None and not warns,
    )


def refuses(table: Any, *fails: str, error: type[Exception] = ValueError, weight: Any = None, **options: Any) -> Step:
    """A fit that fails."""
    return Step(lambda: fit(table() if callable(table) else table, weight, **options), fails=fails, error=error)


# The command line ---------------------------------------------------------------------------------------------------


@dataclass
class Done:
    """What a command printed."""

    out: str
    err: str

    def rows(self, path: str = "out.csv") -> pd.DataFrame:
        """Read a table that it wrote, as strings."""
        return pd.read_csv(path, dtype=str, keep_default_na=False)


def command(line: str, files: Mapping[str, bytes]) -> Done:
    """Run `flowlab` in this process.

    Raises:
        ShellError: The exit code is not 0; the message is what was printed on the error stream.
    """
    for name, data in files.items():
        Path(name).write_bytes(data)
    arguments, out, err = shlex.split(line), io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["flowlab", *arguments]),
        patch("flowlab.tables.density.FlowDensity", _small) if arguments[0] == "fit" else nullcontext(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                said = f"{out.getvalue()}{err.getvalue()}"
                boxed = re.findall(r"│ (.*?) *│", said)  # wrong usage, in the words of Typer
                raise ShellError(" ".join(boxed) or said.strip()) from stop
    return Done(out.getvalue(), err.getvalue())


def _small(**options: Any) -> FlowDensity:
    """What `flowlab fit` makes, with the smallest of members."""
    return FlowDensity(**options | {"members": [TINY], "validation": 0.0, "n_jobs": 1})


def shell(
    line: str,
    *fails: str,
    says: str = "",
    check: Callable[[Done], Any] | None = None,
    warns: str = "",
    **files: bytes | str | Sequence[str],
) -> Step:
    """A command, which fails if `says` is empty.

    Args:
        line: What is typed after `flowlab`.
        fails: What the error's message must hold.
        says: What comes of it, where it works.
        check: Whether what was printed and written is right.
        warns: What the output must hold, where it works.
        files: Files by their names, with "_" in place of the point: bytes, text, or cells of a column `d`.
    """
    assert bool(fails) != bool(says)
    data = {name.replace("_", "."): _bytes(content) for name, content in files.items()}

    def right(done: Done) -> bool:
        assert warns in done.out + done.err, done.out + done.err
        return check is None or bool(check(done))

    return Step(
        lambda: command(line, data),
        says,
        right if says else None,
        fails,
        ShellError,
        shown=f"flowlab {line}",
        slow=line.startswith("fit") and bool(says) and check is None,
    )


def _bytes(content: bytes | str | Sequence[str]) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    x = np.random.default_rng(0).integers(0, 5, ROWS) / 2
    return "".join(["x,d\n", *(f"{x[i]},{cell}\n" for i, cell in enumerate(cycle(*content)))]).encode()


# Models to ask ------------------------------------------------------------------------------------------------------


def whole_table(rows: int = 120) -> pd.DataFrame:
    """A clean table with a column of every kind."""
    rng = np.random.default_rng(0)
    size = pd.Categorical(rng.choice(["S", "M", "L"], rows), ["S", "M", "L"], ordered=True)
    return pd.DataFrame(
        {
            "x": rng.normal(size=rows),
            "n": rng.integers(0, 9, rows),
            "cut": rng.choice(["Fair", "Good", "Ideal"], rows),
            "size": size,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, rows), "D"),
            "flag": rng.random(rows) < 0.5,
            "gap": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)),
            "zip": rng.choice(["01234", "99999", "nan"], rows),
            "lasts": pd.to_timedelta(rng.integers(0, 50, rows), "h"),
            "same": "k",
        }
    )


def numbers_table(rows: int = 120) -> pd.DataFrame:
    """A table of complete numbers."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows), "n": rng.integers(0, 9, rows)})


@functools.cache
def whole_model() -> FlowDensity:
    """A model of `whole_table`."""
    return fit(whole_table())


@functools.cache
def numbers_model() -> FlowDensity:
    """A model of `numbers_table`."""
    return fit(numbers_table())


@functools.cache
def array_model() -> FlowDensity:
    """A model of an array."""
    return fit(numbers_table().to_numpy())


def asked(
    question: Callable[[FlowDensity], Any],
    *fails: str,
    says: str = "",
    check: Callable[[Any], Any] | None = None,
    warns: str = "",
    error: type[Exception] = ValueError,
    of: Callable[[], FlowDensity] = whole_model,
) -> Step:
    """A question to a fitted model, which fails if `says` is empty."""
    assert bool(fails) != bool(says)
    return Step(lambda: question(of()), says, check, fails, error, warns=warns)
