"""Measures of the literature, by XGBoost with its defaults and native categories, and the DCR share."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from xgboost import XGBClassifier

from flowlab.tables.frames import nearness
from flowlab.tables.frames.aligned import Column, align, matrix

FOLDS = 3


def untrained(columns: list[Column]) -> XGBClassifier:
    """XGBoost with its defaults and native categories."""
    kinds = ["c" if column.kind == "category" else "q" for column in columns]
    return XGBClassifier(enable_categorical=True, feature_types=kinds, random_state=0)


def auc(real: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """C2ST of two tables of equal length: ROC-AUC, mean over three folds, the same ones for any two of that length."""
    if len(real) != len(synthetic):
        raise ValueError(f"{len(real)} real rows and {len(synthetic)} synthetic ones: both must be as many")
    columns = align(real, synthetic)
    x = np.concatenate([matrix(columns, 0)[0], matrix(columns, 1)[0]])
    y = np.repeat([0, 1], len(real))
    scores = []
    for seen, held in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y):
        trees = untrained(columns).fit(x[seen], y[seen])
        scores.append(roc_auc_score(y[held], trees.predict_proba(x[held])[:, 1]))
    return float(np.mean(scores))


def efficiency(train: pd.DataFrame, test: pd.DataFrame, target: str) -> float:
    """ROC-AUC on the test rows of a classifier of `target`, which has two classes, that learnt from `train`."""
    columns = align(test, train)
    goal = next(column for column in columns if column.name == target)
    others = [column for column in columns if column is not goal]
    trees = untrained(others).fit(matrix(others, 1)[0], goal.values[1])
    return float(roc_auc_score(goal.values[0], trees.predict_proba(matrix(others, 0)[0])[:, 1]))


def score(train: pd.DataFrame, test: pd.DataFrame, rows: pd.DataFrame, target: str) -> dict[str, float]:
    """All scores of one draw of as many rows as there are training rows."""
    return {
        "c2st_test": auc(test, rows[: len(test)]),
        "c2st_train": auc(train, rows),
        "efficiency": efficiency(rows, test, target),
        "dcr": nearness.privacy(train, test, rows).nearer_to_train,
    }


def floor(train: pd.DataFrame, test: pd.DataFrame, target: str, count: int) -> list[dict[str, float]]:
    """What real rows score: `count` random parts of the training rows against test rows, and training on all."""
    parts = [train.sample(len(test), random_state=seed) for seed in range(count)]
    return [{"c2st_test": auc(test, part)} for part in parts] + [{"efficiency": efficiency(train, test, target)}]
