"""What the model says of itself: members, training, schema and summary. Nothing here is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from flowlab.report import figures, panels
from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Picture, Table, format_share
from flowlab.report.sections.section import Section

SCHEMA = ("kind", "dtype", "missing", "lower", "upper", "resolution", "cardinality", "reason")


@dataclass(frozen=True)
class Members(Section):
    """The members of the mixture, and the mixture's score on the model's own held-out rows."""

    members: pd.DataFrame
    score: float

    anchor = "members"
    title = "Members of the ensemble"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Members":
        """Take what the model kept."""
        return cls(evidence.model.members_, evidence.model.validation_score_)

    def draw(self) -> Content:
        """List the members."""
        text = (
            "The members of the mixture, with their log-likelihood on the model's own held-out rows (nats per row; "
            f"higher is better) and their weight. The mixture itself has {self.score:.3f}: a little hopeful, since "
            "those rows also chose when to stop, and the weights."
        )
        rows = [list(row) for row in self.members.itertuples(index=False)]
        return Content([text], [Table([str(name) for name in self.members.columns], rows)])


@dataclass(frozen=True)
class Training(Section):
    """The training curve of the network with the largest weight."""

    history: pd.DataFrame

    anchor = "training"
    title = "Training"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Training | None":
        """Take the curve, if a network was trained."""
        history = evidence.model.history_
        return cls(history) if len(history) else None

    def draw(self) -> Content:
        """Draw the curve."""
        picture = panels.svg(figures.training_curve(self.history), "training", "training curve")
        return Content(["The network with the largest weight; lower is better."], pictures=[Picture(picture)])


@dataclass(frozen=True)
class Schema(Section):
    """What the model takes each column for."""

    columns: list[Any]

    anchor = "schema"
    title = "How each column is treated"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Schema":
        """Take the model's schema."""
        return cls(list(evidence.model.schema_))

    def draw(self) -> Content:
        """List the columns."""
        forms: dict[str, Callable[[Any], Any]] = {
            "missing": format_share,
            "resolution": lambda width: f"{width:g}" if width else None,
            **dict.fromkeys(("lower", "upper"), lambda end: f"{end:g}" if isinstance(end, float) else end),
        }
        rows = []
        for column in self.columns:
            values = {name: getattr(column, name) for name in SCHEMA}
            rows.append([column.name, *(forms[k](value) if k in forms else value for k, value in values.items())])
        head = ["column", *("why" if name == "reason" else name for name in SCHEMA)]
        return Content(tables=[Table(head, rows)])


@dataclass(frozen=True)
class Summary(Section):
    """The text of the model's `summary()`."""

    summary: str

    anchor = "summary"
    title = "The model in its own words"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Summary":
        """Ask the model."""
        return cls(evidence.model.summary())

    def draw(self) -> Content:
        """Show the text, folded."""
        return Content(code=self.summary)
