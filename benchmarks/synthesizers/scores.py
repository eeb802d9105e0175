"""What a method's rows are worth, by flowlab's metrics."""

import numpy as np
import pandas as pd

from flowlab.report import metrics
from flowlab.report.metrics import train_on_synthetic as transfer
from flowlab.tables.frames import nearness

Scores = dict[str, float | str | list[str]]


def score(train: pd.DataFrame, test: pd.DataFrame, rows: pd.DataFrame, target: str) -> Scores:
    """All scores of synthetic rows but SDMetrics' quality."""
    learnt = transfer(train, test, rows, target)
    privacy = nearness.privacy(train, test, rows)
    return {
        **likeness(test, rows),
        "tstr": learnt.ratio,
        "tstr_real": learnt.real,
        "tstr_measure": learnt.measure,
        "copies": privacy.copies,
        "copies_held_out": privacy.copies_held_out,
        "dcr": privacy.nearer_to_train,
        "dcr_error": privacy.standard_error,
        "distance": privacy.distance,
        "distance_held_out": privacy.distance_held_out,
        **fidelity(train, rows),
    }


def floor(train: pd.DataFrame, test: pd.DataFrame) -> Scores:
    """What real rows score against real ones: the noise floor."""
    copies = nearness.privacy(train, test, test).copies
    return {**likeness(test, train), "copies": copies, **fidelity(train, test)}


def floors(train: pd.DataFrame, test: pd.DataFrame, count: int) -> list[float]:
    """C2ST of test rows and as many random training rows, with so many parts of the latter."""
    size = min(len(test), len(train))
    return [metrics.classifier_auc(test, train.sample(size, random_state=seed)) for seed in range(count)]


def likeness(test: pd.DataFrame, rows: pd.DataFrame) -> Scores:
    """Compared with rows that no method has seen."""
    return {"c2st": metrics.classifier_auc(test, rows), "pair_tv": metrics.pair_similarity(test, rows)[0]}


def fidelity(train: pd.DataFrame, rows: pd.DataFrame) -> Scores:
    """Compared with the rows that were fitted: the worst column's share of impossible cells, types, missing cells."""
    validity = metrics.validity(train, rows)
    rates = metrics.missing_rates(train, rows)
    kinds = ("unknown_categories", "fractions", "out_of_range")
    return {
        **{kind: float(np.nan_to_num(validity[kind].max())) for kind in kinds},
        "other_dtypes": [
            f"{name}: {real} → {synthetic}"
            for name, real, synthetic, same in validity[["dtype_real", "dtype_synthetic", "same_dtype"]].itertuples()
            if not same
        ],
        "missing_rate": float((rates["real"] - rates["synthetic"]).abs().max()),
        "missing_pattern": metrics.missing_pattern_distance(train, rows),
    }
