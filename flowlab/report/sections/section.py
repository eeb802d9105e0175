"""`Section`, the contract of all sections of the report."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from flowlab.report.evidence import Evidence
from flowlab.report.page import Content
from flowlab.report.verdict import Check


class Section(ABC):
    """One section of the report: a measurement, what it means, and how the page shows it.

    A subclass is a frozen dataclass of what it measured. To add one, write it in a file of its own and list it in
    `flowlab/report/sections/__init__.py`.

    Attributes:
        anchor: Its id on the page, which checks link to.
        title: Its heading.
    """

    anchor: ClassVar[str]
    title: ClassVar[str]

    @classmethod
    def steps(cls, columns: int) -> int:
        """Count the trees that `compute` fits to a table of so many columns: steps of the progress bar."""
        return 0

    @classmethod
    @abstractmethod
    def compute(cls, evidence: Evidence) -> Self | None:
        """Measure; None where there is nothing to measure, and the page has no such section."""

    def judge(self) -> list[Check]:
        """Rate what was measured beside its noise floor: the section's lines of the overview, none by default."""
        return []

    @abstractmethod
    def draw(self) -> Content:
        """Make the section's texts, tables and pictures."""
