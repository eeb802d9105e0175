"""Dirty tables: every case of the matrix does what docs/dirty_tables.md says."""

import re
from pathlib import Path

import pytest

from dirty.case import Case, Outcome, judge
from dirty.page import CASES, PAGE, carry_out, models_in, page

TEXT = PAGE.read_text(encoding="utf-8")
ANEW = "PYTHONPATH=tests python -m dirty.page writes the page anew"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Fitted models, one set in each process of the tests."""
    return models_in(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{case.kind}: {case.situation}"[:100], marks=[pytest.mark.slow] if case.slow else [])
        for case in CASES
    ],
)
def test_it_does_what_the_page_says(case: Case, models: dict[str, Path]):
    row, wrong = carry_out(case, models)
    assert wrong == []
    assert f"\n{row}\n" in TEXT, ANEW


def test_the_page_has_a_row_for_each_case_and_no_other():
    names = [(case.kind, case.situation) for case in CASES]
    assert len(set(names)) == len(CASES) >= 100
    skeleton = page(dict.fromkeys(names, "| row |"))
    assert re.sub(r"^\| (?!Situation).*\|$", "| row |", TEXT, flags=re.MULTILINE) == skeleton, ANEW


def test_errors_are_told_from_results():
    step = next(case.library for case in CASES if case.library is not None and case.library.fails)
    assert judge(step, Outcome(result=1)).startswith("it works")
    assert "in place of ValueError" in judge(step, Outcome(error=KeyError("x")))
    assert "not in" in judge(step, Outcome(error=ValueError("x")))
