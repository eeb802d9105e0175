"""An estimator's parameters as JSON, and back: what was given to `FlowDensity(...)` survives `save` and `load`.

Plain values stand for themselves. Everything else is a dict with one key that names its type: {"pairs": …} for a dict
(whose keys need not be strings), {"number": "inf"}, {"member": …}, {"rule": …}, {"column": …}, {"schema": …}.
"""

import datetime
import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
import torch

from flowlab.tables.ensemble.member import PREPROCESSING, Member
from flowlab.tables.schema import Schema
from flowlab.tables.schema.column import ColumnSchema
from flowlab.tables.schema.rules import Rule, read_rules

EFFORTS = ("fast", "default", "best")
HOW = ("n_jobs", "progress", "time_limit", "random_state", "checkpoint", "warm_start")  # how to fit, not what
LISTS = (list, tuple, set, frozenset, range, np.ndarray, pd.Index, pd.Series, pd.api.extensions.ExtensionArray)
RECORDS: dict[str, Any] = {"member": Member, "rule": Rule, "column": ColumnSchema, "schema": Schema}


def check(params: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first parameter of a `FlowDensity` that no fit can have."""
    for name, choices in (("effort", EFFORTS), ("preprocessing", ("auto", *PREPROCESSING))):
        if not isinstance(params[name], str) or params[name] not in choices:
            raise ValueError(f"{name} must be {', '.join(choices)}, not {params[name]!r}")
    members = params["members"]
    if members is not None and (not isinstance(members, LISTS) or isinstance(members, set | frozenset)):
        raise ValueError(f"members must be a list, not {members!r}: [{members!r}]")
    for member in () if members is None else members:
        if not isinstance(member, Member | str):
            raise ValueError(f"members must be names of kinds or Member objects, not {member!r}")
    for name, whole in (("time_limit", False), ("n_jobs", True)):
        value = params[name]
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if value is not None and not (number and (value != 0 if whole else value > 0)):
            wanted = "a whole number of processes other than 0" if whole else "a positive number of seconds"
            raise ValueError(f"{name} must be {wanted}, or None, not {value!r}")
    folder = params.get("checkpoint")  # which parameters of an early file lack
    if not isinstance(folder, str | os.PathLike | None):
        raise ValueError(f"checkpoint must be the path of a folder, or None, not {folder!r}")
    if params.get("privacy") is not None:
        check_privacy(params["privacy"])
    read_rules(params["rules"])
    share: Any = params["validation"]
    if not isinstance(share, int | float | np.floating) or isinstance(share, bool) or not 0 <= share < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, not {share!r}")


def check_privacy(budget: Any) -> None:
    """Raise a ValueError unless a privacy budget is a dict of epsilon, above 0, and delta, between 0 and 1."""
    if not isinstance(budget, Mapping) or budget.keys() != {"epsilon", "delta"}:
        raise ValueError(f'privacy must be None or {{"epsilon": …, "delta": …}}, not {budget!r}')
    for name, value in budget.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not 0 < value < (math.inf if name == "epsilon" else 1):
            wanted = "a finite number above 0" if name == "epsilon" else "a number between 0 and 1"
            raise ValueError(f"privacy: {name} must be {wanted}, not {value!r}")


def to_json(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in JSON's types. A `random_state` that is no int is not kept, nor a folder: None stands for both.

    Raises:
        ValueError: A parameter cannot be kept in a file; the message names it.
    """
    own = {"random_state": _seed(params.get("random_state")), "checkpoint": None}
    return {name: _plain(value, name) for name, value in params.items() if name not in own} | own


def from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that `to_json` wrote down.

    Raises:
        ValueError: The data are none of `to_json`'s.
    """
    return {name: _value(value) for name, value in data.items()}


def finite(value: Any) -> Any:
    """The same structure with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _seed(random_state: Any) -> int | None:
    whole = isinstance(random_state, int | np.integer) and not isinstance(random_state, bool)
    return int(random_state) if whole else None


def _plain(value: Any, name: str) -> Any:
    for tag, record in RECORDS.items():
        if isinstance(value, record):
            return {tag: value.to_json()}
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": repr(value)}
    if isinstance(value, np.datetime64 | np.timedelta64 | datetime.date | datetime.timedelta):
        stamp = pd.Timedelta(value) if isinstance(value, np.timedelta64 | datetime.timedelta) else pd.Timestamp(value)
        return stamp.isoformat()
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {"pairs": [[_plain(key, name), _plain(item, name)] for key, item in value.items()]}
    if isinstance(value, LISTS):
        return [_plain(item, name) for item in value]
    raise ValueError(
        f"{name} holds {str(value)[:60]!r} of type {type(value).__name__}, which no model file can keep: use numbers, "
        "strings, "
        "lists and dicts"
    )


def _value(data: Any) -> Any:
    if isinstance(data, list):
        return [_value(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError(f"a parameter is damaged: it has the fields {', '.join(map(str, data))}")
    tag, inner = next(iter(data.items()))
    if tag == "pairs":
        return {_value(key): _value(item) for key, item in inner}
    if tag == "number":
        return float(inner)
    if tag == "column":
        return ColumnSchema(**inner)
    if tag not in RECORDS:
        raise ValueError(f"a parameter is damaged: it is of the unknown kind {tag!r}")
    return RECORDS[tag].from_json(inner)
