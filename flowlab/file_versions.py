"""Headers of older model files -> headers as they are written today: one function for each step of the format.

`flowlab.load` takes a header of format k through `STEPS[k - 1]`, `STEPS[k]`, … before anything is built, so that all
other code knows today's format alone. A step works on JSON: it checks nothing, since what comes out is checked as any
header is, and what it stumbles over is a damaged file.

An argument, a field of a column or a kind of model may be added within a format, if its absence means what it meant
before. Whatever is renamed, moved or read in another way is a new format: append a function to `STEPS`, and add files
of the format before to tests/data, with what their models said (docs/file_format.md).
"""

from collections.abc import Callable, Iterator
from typing import Any

Header = dict[str, Any]


def upgraded(header: Header) -> Header:
    """A header of format 1 up to `FORMAT` as one of `FORMAT`; the argument is changed.

    Example:
        >>> old = {"format": 1, "kind": "module", "module": {"class": "Ranks", "args": {}}}
        >>> upgraded(old)["module"]["class"]
        'MarginalCDF'
    """
    while header["format"] < FORMAT:
        STEPS[header["format"] - 1](header)
        header["format"] += 1
    return header


def _from_1(header: Header) -> None:
    """Format 1, of before 2026-12: flowlab did not say what it changed while it had no release."""
    for description in _objects(header["module"]):
        if description.get("class") == "Ranks":
            description["class"] = "MarginalCDF"
    if header["kind"] == "FlowPosterior":
        header |= {"restart_gap": None, "prefit_seconds": None, "history": []} | header
    if "state" in header:
        if "params" in header:
            header["parameters"] = _tagged(header.pop("params"))
        state = header["state"]
        numbers = state.pop("numbers", None)
        if state["table"] is None:
            state |= _table_of_numbers(numbers, state["n_features_in_"])
        state.setdefault("rows", None)
        flows = [] if header["module"] is None else header["module"]["args"]["flows"]
        if flows and all(flow["class"] == "Flow" for flow in flows):
            state["bare"] = {name: state.pop(name, 0.0) for name in ("log_mass", "reach")}


def _objects(value: Any) -> Iterator[Header]:
    """Every object in JSON; without recursion, since a hostile file may nest deeply."""
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _tagged(params: Header) -> Header:
    """Parameters of `FlowDensity`, once plain, with those tagged that are no plain values (`tables/parameters.py`)."""
    found = {name: _pairs(value) if isinstance(value, dict) else value for name, value in params.items()}
    if isinstance(found["members"], list):
        found["members"] = [{"member": m} if isinstance(m, dict) else m for m in found["members"]]
    return found


def _pairs(value: Any) -> Any:
    """A dict of plain values, in which dicts are lists of pairs."""
    return {"pairs": [[name, _pairs(one)] for name, one in value.items()]} if isinstance(value, dict) else value


def _table_of_numbers(own: Header, width: int) -> Header:
    """Tables of complete numbers, once described by records of their own, as tables of columns."""
    array = own["index_names"] is None
    columns = own["columns"]
    names = [column["name"] for column in columns] if array else own["index_names"]
    dtypes = [own["dtypes"]] * width if array else own["dtypes"]
    described = [_column(*each, names) for each in zip(columns, names, dtypes, strict=True)]
    schema = {"labels": ["str", None], "columns": described}
    table = {"schema": schema, "rules": [], "names": names, "array": array, "ends": []}
    return {"table": table, "log_mass": own.get("log_mass", 0.0), "reach": own.get("reach", 0.0)}


def _column(column: Header, name: Any, dtype: str, names: list[Any]) -> Header:
    """One of those records as the fields of a `ColumnSchema`."""
    kind, resolution = column["kind"], column["resolution"]
    modelled = kind in ("continuous", "grid", "atoms")
    found = {"name": name, "kind": "continuous" if modelled else kind, "dtype": dtype, "reason": column["reason"]}
    found |= {key: column[key] for key in ("lower", "upper", "decimals") if key in column}
    if modelled:
        found |= {"atoms": column["atoms"], "offset": column.get("offset", 0.0)}
        found["resolution"] = resolution if kind == "grid" else 0.0
        found["atom_width"] = resolution if kind == "atoms" else 0.0
    else:
        weights = {names[j]: weight for j, weight in enumerate(column["weights"]) if weight}
        found |= {"tolerance": column["tolerance"], "value": column["value"]}
        found |= {"sources": list(weights), "weights": list(weights.values())}
        found["resolution"] = resolution if kind == "derived" else 0.0
    if column.get("least") is not None and column.get("most") is not None:
        found["seen"] = [column["least"], column["most"]]
    return found


STEPS: tuple[Callable[[Header], None], ...] = (_from_1,)
FORMAT = len(STEPS) + 1
