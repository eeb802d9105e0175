"""The parts of the page: texts, tables and pictures of a section; and how a cell of a table is written."""

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
class Content:
    """What a section shows: paragraphs, then pictures, then tables, then code.

    Attributes:
        text: Paragraphs.
        tables: Tables.
        pictures: Pictures.
        small: Whether pictures stand in several columns.
        legend: Whether to say which colour is which.
        code: A text as it is, folded.
    """

    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    small: bool = False
    legend: bool = False
    code: str = ""


def format_cell(cell: Any) -> str:
    """Write a cell of a table as text.

    Numbers have three digits after the point, or four significant ones where that says too little.

    Example:
        >>> format_cell(0.12345), format_cell(12345.678), format_cell(1e-5), format_cell(float("nan"))
        ('0.123', '12,345.678', '1e-05', '–')
        >>> format_cell(7), format_cell(None)
        ('7', '–')
    """
    if cell is None or cell is pd.NaT or (isinstance(cell, float | np.floating) and np.isnan(cell)):
        return "–"
    if isinstance(cell, int | np.integer) and not isinstance(cell, bool):
        return f"{cell:,}"
    if isinstance(cell, float | np.floating):
        number = float(cell)
        return f"{number:.4g}" if number and not 1e-3 <= abs(number) < 1e7 else f"{number:,.3f}"
    return str(cell)


def format_share(value: float) -> str:
    """Write a share as per cent; a dash for NaN.

    Example:
        >>> format_share(0.0123), format_share(float("nan"))
        ('1.23%', '–')
    """
    return "–" if np.isnan(value) else f"{value:.2%}"


def is_numeric(cell: Any) -> bool:
    """Whether a cell is a number, or a text of numbers, and so is aligned to the right."""
    return not isinstance(cell, str) or bool(re.fullmatch(r"–|[-+−]?[\d.,]+(e[-+]\d+)?( ?[%–±] ?[\d.,]*%?)?", cell))
