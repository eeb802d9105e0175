"""`Facts`: what was fitted, as properties of an estimator."""

import pandas as pd
from sklearn.utils.validation import check_is_fitted

from flowlab.mixture import FlowMixture
from flowlab.tables.codec.table import Table
from flowlab.tables.ensemble.ensemble import Report
from flowlab.tables.fitted import Fitted
from flowlab.tables.query.summary import history_frame, members_frame
from flowlab.tables.schema import Schema
from flowlab.tables.schema.relations import Columns


class Facts:
    """The part of `FlowDensity` that says what was fitted; each property raises a NotFittedError before the fit."""

    _fitted: Fitted | None = None

    @property
    def _model(self) -> Fitted:
        """The fitted record; raises a NotFittedError where there is none."""
        check_is_fitted(self)
        assert self._fitted is not None
        return self._fitted

    @property
    def table_(self) -> Table:
        """Columns, rules, and the conversion between rows and the model's matrix."""
        return self._model.table

    @property
    def schema_(self) -> Schema:
        """What each column is taken for, with the reason."""
        return self._model.table.schema

    @property
    def columns_(self) -> Columns | None:
        """How each column is treated in a table of complete numbers; None for other tables."""
        return Columns.of(self.schema_.columns) if self._model.table.complete else None

    @property
    def flow_(self) -> FlowMixture | None:
        """The mixture over the modelled columns, in double precision; None if every column is constant."""
        return self._model.mixture

    @property
    def reports_(self) -> list[Report]:
        """Score, weight and training curve of each member."""
        return self._model.reports

    @property
    def race_(self) -> dict[str, float]:
        """Held-out log-likelihood of each preprocessing in the race, nats per row."""
        return self._model.race

    @property
    def calibration_(self) -> pd.DataFrame:
        """Goodness-of-fit tests on the held-out rows: a statistic and a p-value each."""
        return self._model.calibration

    @property
    def validation_score_(self) -> float:
        """Mean log-likelihood of held-out rows, nats; slightly optimistic: they chose stopping and weights."""
        return self._model.validation_score

    @property
    def n_rows_(self) -> int | None:
        """Number of rows fitted to; None for models from files that do not record it."""
        return self._model.rows

    @property
    def members_(self) -> pd.DataFrame:
        """One row per member: kind, preprocessing, held-out log-likelihood (nats per row), weight, seconds."""
        return members_frame(self._model)

    @property
    def history_(self) -> pd.DataFrame:
        """The training curve of the network with the largest weight, nats per row; empty if there is none."""
        return history_frame(self._model)

    @property
    def converged_(self) -> bool:
        """Whether more training is not expected to help."""
        return all(report.converged for report in self.reports_)
