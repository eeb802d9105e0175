"""What a page is made of: sections with texts, tables and pictures; and how a cell of a table is written."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup


@dataclass
class Table:
    """A table of the page: texts and numbers, with a note below."""

    head: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclass
class Picture:
    """A picture and what it shows."""

    svg: Markup
    caption: str = ""


@dataclass
class Section:
    """A section of the page; `small` pictures stand in several columns, a `legend` says which colour is which, `code` is folded."""

    anchor: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    small: bool = False
    legend: bool = False
    code: str = ""


def shown(cell: Any) -> str:
    """A cell of a table as text: numbers with three digits after the point, or four significant ones where that says too little.

    Example:
        >>> shown(0.12345), shown(12345.678), shown(1e-5), shown(float("nan")), shown(7), shown(None)
        ('0.123', '12,345.678', '1e-05', '–', '7', '–')
    """
    if cell is None or cell is pd.NaT or (isinstance(cell, float | np.floating) and np.isnan(cell)):
        return "–"
    if isinstance(cell, int | np.integer) and not isinstance(cell, bool):
        return f"{cell:,}"
    if isinstance(cell, float | np.floating):
        number = float(cell)
        return f"{number:.4g}" if number and not 1e-3 <= abs(number) < 1e7 else f"{number:,.3f}"
    return str(cell)


def is_figure(cell: Any) -> bool:
    """Whether a cell is a number, or a text of numbers, and so stands to the right."""
    return not isinstance(cell, str) or bool(re.fullmatch(r"–|[-+−]?[\d.,]+(e[-+]\d+)?( ?[%–±] ?[\d.,]*%?)?", cell))
