"""Dirty rows to score and to impute: they differ from those that the model was fitted to."""

import numpy as np
import pandas as pd

from dirty.case import Case, array_model, asked, fit, numbers_model, numbers_table, shell, whole_model, whole_table

WHOLE = whole_table()
TEN = WHOLE.iloc[:10]
NUMBERS = numbers_table().iloc[:10]


def csv(frame):
    """A table as the bytes of a CSV file."""
    return frame.to_csv(index=False).encode()


def score(table, *fails, says="", **options):
    """The scores of a table, finite where nothing else is said."""
    finite = (lambda scores: np.isfinite(scores).all()) if says else None
    return asked(lambda model: model.score_samples(table), *fails, says=says, **{"check": finite} | options)


def same(table):
    """Whether the scores of a table are those of the clean rows."""
    return lambda scores: np.allclose(scores, whole_model().score_samples(TEN), rtol=1e-9)


def scored(frame, *fails, **options):
    """`flowlab score` of a table."""
    return shell("score whole.flow t.csv -o out.csv", *fails, t_csv=csv(frame), **options)


def finite(done):
    """Whether `flowlab score` wrote a finite number for each row."""
    return np.isfinite(done.rows()["log_prob"].astype(float)).all()


SCORING = [
    Case(
        "Scoring",
        "no rows",
        score(TEN.iloc[:0], says="no scores", check=lambda scores: scores.shape == (0,)),
        scored(TEN.iloc[:0], "t.csv has no rows"),
    ),
    Case(
        "Scoring",
        "a column is missing",
        score(TEN.drop(columns="cut"), "'cut'"),
        scored(TEN.drop(columns="cut"), "no column 'cut' in t.csv"),
    ),
    Case(
        "Scoring",
        "a column more",
        score(
            TEN.assign(extra=1),
            says="ignored, with a warning",
            warns="columns ['extra'] were not there",
            check=same(TEN),
        ),
        scored(TEN.assign(extra=1), says="ignored", check=finite),
    ),
    Case(
        "Scoring",
        "columns in another order",
        score(TEN[TEN.columns[::-1]], says="found by name", check=same(TEN)),
        scored(TEN[TEN.columns[::-1]], says="found by name", check=finite),
    ),
    Case(
        "Scoring",
        "columns in another order, numbers alone",
        asked(
            lambda m: m.score_samples(NUMBERS[["n", "b", "a"]]),
            says="found by name",
            check=lambda s: np.allclose(s, numbers_model().score_samples(NUMBERS)),
            of=numbers_model,
        ),
    ),
    Case(
        "Scoring",
        "a column twice",
        score(pd.concat([TEN, TEN[["x"]]], axis=1), "same name ['x']"),
        shell("score whole.flow t.csv -o out.csv", "same name 'x'", t_csv=csv(pd.concat([TEN, TEN[["x"]]], axis=1))),
    ),
    Case(
        "Scoring",
        "names in capitals",
        score(TEN.rename(columns=str.upper), "'x'"),
        scored(TEN.rename(columns=str.upper), "no column 'x'", "there are 'X'"),
    ),
    Case("Scoring", "an array in place of a table", score(TEN.to_numpy(), "columns x, n, cut", "give a DataFrame")),
    Case("Scoring", "a dict in place of a table", score({"x": [1.0]}, "pd.DataFrame(...)", error=TypeError)),
    Case(
        "Scoring",
        "a level that training did not have",
        score(TEN.assign(cut="Great"), says="the probability of such levels, with a warning", warns="column 'cut'"),
        scored(
            TEN.assign(cut="Great"),
            says="the probability of such levels, with a warning",
            warns="column 'cut'",
            check=finite,
        ),
    ),
    Case(
        "Scoring",
        "a level beyond an ordered category's",
        score(TEN.assign(size="XXL"), says="the probability of such levels, with a warning", warns="column 'size'"),
    ),
    Case(
        "Scoring",
        "a category type with fewer levels",
        score(
            TEN.assign(size=TEN["size"].cat.remove_unused_categories()),
            says="levels go by their names",
            check=same(TEN),
        ),
    ),
    Case(
        "Scoring",
        "a category type with levels in another order",
        score(
            TEN.assign(size=TEN["size"].cat.reorder_categories(["L", "S", "M"])),
            says="levels go by their names",
            check=same(TEN),
        ),
    ),
    Case(
        "Scoring",
        "text as a category",
        score(TEN.assign(cut=TEN["cut"].astype("category")), says="levels go by their names", check=same(TEN)),
    ),
    Case(
        "Scoring",
        "integers as floats",
        score(TEN.assign(n=TEN["n"].astype(float)), says="the same numbers", check=same(TEN)),
    ),
    Case(
        "Scoring",
        "fractions where integers were",
        score(TEN.assign(n=TEN["n"] + 0.5), says="-inf: no such value can be", check=lambda s: np.isneginf(s).all()),
    ),
    Case(
        "Scoring",
        "numbers as text",
        score(TEN.assign(x=TEN["x"].astype(str)), "column 'x': expected numbers, got text", "pd.to_numeric"),
    ),
    Case(
        "Scoring",
        "words where numbers were",
        score(TEN.assign(x="many"), "column 'x': expected numbers, got text", "pd.to_numeric"),
        scored(
            TEN.assign(x="many"), "column 'x' of t.csv cannot be read as numbers", "'many' in row 1", "--missing many"
        ),
    ),
    Case(
        "Scoring",
        "days as text",
        score(TEN.assign(day=TEN["day"].astype(str)), "column 'day': expected times, got text", "pd.to_datetime"),
        scored(TEN.assign(day=TEN["day"].astype(str)), says="times", check=finite),
    ),
    Case(
        "Scoring",
        "days as 31.03.2024",
        shell=scored(
            TEN.assign(day=TEN["day"].dt.strftime("%d.%m.%Y")), says="times, as they were fitted", check=finite
        ),
    ),
    Case(
        "Scoring",
        "times with a zone where there was none",
        score(
            TEN.assign(day=TEN["day"].dt.tz_localize("UTC")),
            "column 'day' has a time zone (UTC), it was fitted with no time zone",
            ".dt.tz_localize(None)",
        ),
        scored(TEN.assign(day=TEN["day"].dt.tz_localize("UTC")), "column 'day' of t.csv has times with a zone"),
    ),
    Case(
        "Scoring",
        "numbers where times were",
        score(TEN.assign(day=1), "column 'day': expected times, got number", "pd.to_datetime"),
        scored(TEN.assign(day=1), "column 'day' of t.csv cannot be read as days or times", "'1' in row 1"),
    ),
    Case(
        "Scoring",
        "truth values as 0 and 1",
        score(TEN.assign(flag=TEN["flag"].astype(int)), says="levels 0 and 1 are False and True", check=same(TEN)),
        scored(TEN.assign(flag=TEN["flag"].astype(int)), says="0 and 1 are false and true", check=finite),
    ),
    Case(
        "Scoring",
        "an infinite cell",
        score(TEN.assign(x=np.inf), "column 'x' holds 10 infinite values", "row 0"),
        scored(TEN.assign(x=np.inf), "column 'x'", "infinite", "--missing inf"),
    ),
    Case(
        "Scoring",
        "cells of 1e308",
        score(TEN.assign(x=1e308), says="finite, or -inf beyond the bounds", check=lambda s: not np.isnan(s).any()),
    ),
    Case(
        "Scoring",
        "a missing cell in a column that was complete",
        score(TEN.assign(x=np.nan), says="unknown: the row has the density of its other cells"),
        scored(TEN.assign(x=np.nan), says="unknown: the density of the other cells", check=finite),
    ),
    Case(
        "Scoring",
        "a missing cell in a table of complete numbers",
        asked(
            lambda m: m.score_samples(NUMBERS.assign(a=np.nan)),
            says="unknown: the density of the other cells",
            check=lambda s: np.isfinite(s).all(),
            of=numbers_model,
        ),
    ),
    Case(
        "Scoring",
        "every cell is missing",
        score(TEN.mask(np.ones(TEN.shape, dtype=bool)), says="the probability of what is known to be missing"),
    ),
    Case(
        "Scoring",
        "another value in a constant column",
        score(TEN.assign(same="z"), says="the probability of a new level, with a warning", warns="column 'same'"),
    ),
    Case(
        "Scoring",
        "codes that became numbers",
        score(
            TEN.assign(zip=pd.to_numeric(TEN["zip"], errors="coerce")),
            "column 'zip': its levels are strings, got numbers",
            ".astype(...)",
        ),
        shell("score whole.flow t.csv -o out.csv", says="text, as it was fitted", check=finite, t_csv=csv(TEN)),
    ),
    Case(
        "Scoring",
        "more columns than an array had",
        asked(
            lambda m: m.score_samples(np.zeros((3, 4))),
            "X has 4 features, but FlowDensity is expecting 3",
            of=array_model,
        ),
    ),
    Case(
        "Scoring",
        "a table where an array was",
        asked(lambda m: m.score_samples(NUMBERS), "x0", of=array_model, error=Exception),
    ),
    Case("Scoring", "before any fit", asked(lambda m: type(m)().score_samples(TEN), "not fitted yet", error=Exception)),
]

HOLES = TEN.mask(np.random.default_rng(0).random(TEN.shape) < 0.3)

IMPUTING = [
    Case(
        "Imputing",
        "holes in all columns",
        asked(
            lambda m: m.impute(HOLES, random_state=0),
            says="all are filled, all else stays",
            check=lambda out: (
                not out.drop(columns="gap").isna().any().any()
                and out.where(HOLES.notna()).equals(out.where(HOLES.notna()))
            ),
        ),
        shell(
            "impute whole.flow t.csv -o out.csv",
            says="all are filled",
            check=lambda done: (done.rows().drop(columns="gap") != "").all().all(),
            t_csv=csv(HOLES),
        ),
    ),
    Case(
        "Imputing",
        "no holes",
        asked(
            lambda m: m.impute(TEN),
            says="the table as it is",
            check=lambda out: out.drop(columns="gap").equals(TEN.drop(columns="gap")),
        ),
    ),
    Case(
        "Imputing",
        "a model of constants alone",
        asked(
            lambda m: m.impute(pd.DataFrame({"a": [7, None], "b": [None, None]})),
            says="they are filled, and what was always missing stays so",
            check=lambda out: out["a"].tolist() == [7, 7] and out["b"].isna().all(),
            of=lambda: fit(pd.DataFrame({"a": [7] * 9, "b": [None] * 9})),
        ),
    ),
    Case(
        "Imputing",
        "no rows",
        asked(lambda m: m.impute(TEN.iloc[:0]), says="no rows", check=lambda out: len(out) == 0),
        shell("impute whole.flow t.csv -o out.csv", "t.csv has no rows", t_csv=csv(TEN.iloc[:0])),
    ),
    Case(
        "Imputing",
        "a column without a single cell",
        asked(
            lambda m: m.impute(TEN.assign(cut=np.nan)),
            says="filled with levels",
            check=lambda out: set(out["cut"]) <= set(WHOLE["cut"]),
        ),
        shell(
            "impute whole.flow t.csv -o out.csv",
            says="filled with levels",
            check=lambda done: set(done.rows()["cut"]) <= set(WHOLE["cut"]),
            t_csv=csv(TEN.assign(cut=np.nan)),
        ),
    ),
    Case(
        "Imputing",
        "a category type with fewer levels",
        asked(
            lambda m: m.impute(TEN.assign(size=pd.Categorical(["S"] * 3 + [None] * 7))),
            says="filled; the type gets further levels",
            check=lambda out: out["size"].notna().all(),
        ),
    ),
    Case(
        "Imputing",
        "a column is missing",
        asked(
            lambda m: m.impute(TEN.drop(columns=["cut", "same"])), "the rows lack columns of the model: ['cut', 'same']"
        ),
        shell("impute whole.flow t.csv -o out.csv", "no column 'cut'", t_csv=csv(TEN.drop(columns="cut"))),
    ),
    Case(
        "Imputing",
        "a column more",
        asked(
            lambda m: m.impute(HOLES.assign(extra=range(10))),
            says="handed through",
            check=lambda out: out["extra"].tolist() == list(range(10)),
        ),
        shell(
            "impute whole.flow t.csv -o out.csv",
            says="handed through",
            check=lambda done: done.rows()["extra"].tolist() == list("0123456789"),
            t_csv=csv(HOLES.assign(extra=range(10))),
        ),
        costly=True,
    ),
    Case(
        "Imputing",
        "a level that training did not have",
        asked(
            lambda m: m.impute(HOLES.assign(cut="Great")),
            says="it stays, the others are filled",
            check=lambda out: (out["cut"] == "Great").all() and out["x"].notna().all(),
        ),
        costly=True,
    ),
    Case(
        "Imputing",
        "an observed cell that cannot be",
        asked(
            lambda m: m.impute(HOLES.assign(n=2.5)),
            says="it stays, the others are filled",
            check=lambda out: (out["n"] == 2.5).all() and out["x"].notna().all(),
        ),
        costly=True,
    ),
    Case(
        "Imputing",
        "a table of complete numbers with holes",
        asked(
            lambda m: m.impute(NUMBERS.mask(NUMBERS > 1)),
            says="filled",
            check=lambda out: out.notna().all().all(),
            of=numbers_model,
        ),
    ),
]

CASES = [*SCORING, *IMPUTING]
