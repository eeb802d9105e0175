"""The JSON Schema of the headers of model files, made from the constructors and records that they hold.

    python tests/file_schema.py      # writes docs/file_format.schema.json

tests/test_file_schema.py checks that the file is what this program writes, and files of every kind against it.
"""

import inspect
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor, nn

from flowlab import building, file_versions, registry, torch_networks
from flowlab.bayesian.module import IN_FILES
from flowlab.hints import hints_of
from flowlab.tables.ensemble.ensemble import Report
from flowlab.tables.ensemble.member import Member
from flowlab.tables.schema.column import ColumnSchema
from flowlab.tables.schema.stored import LISTS
from flowlab.training.private import Privacy

PATH = Path(__file__).parent.parent / "docs" / "file_format.schema.json"
Schema = dict[str, Any]
NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
OBJECT: Schema = {"$ref": "#/$defs/object"}
ANY_OBJECT: Schema = {"type": "object"}


def of_hint(hint: Any) -> Schema:
    """What a value of an annotation looks like in JSON: as `flowlab.hints.fits` has it."""
    origin, inner = get_origin(hint), get_args(hint)
    plain = {float: NUMBER, int: WHOLE, str: TEXT, bool: {"type": "boolean"}, type(None): NULL, None: NULL}
    if hint is Any:
        return {}
    if hint in plain:
        return plain[hint]
    if hint is Tensor:
        return {"$ref": "#/$defs/numbers"}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        found = [of_hint(one) for one in inner]
        return {"anyOf": [one for k, one in enumerate(found) if one not in found[:k]]}
    if origin is tuple and inner[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [of_hint(one) for one in inner], "minItems": len(inner), "items": False}
    if origin in (list, tuple, Sequence, Iterable):
        return array(of_hint(inner[0]))
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": of_hint(inner[1])}
    return OBJECT


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def closed(properties: Mapping[str, Schema], required: Iterable[str] | None = None) -> Schema:
    """An object of these fields and no others."""
    wanted = properties if required is None else required
    return {
        "type": "object",
        "properties": dict(properties),
        "required": sorted(wanted),
        "additionalProperties": False,
    }


def of_class(cls: type) -> Schema:
    """The arguments of a class that files may name."""
    hints = building.argument_hints(cls)
    if cls in torch_networks.ARGUMENTS:
        required = [] if cls is not nn.Sequential else ["modules", "names"]
    else:
        required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    names = building.arguments(cls)
    return closed({name: of_hint(hints[name]) for name in names}, [name for name in names if name in required])


def of_record(cls: Any, extra: Mapping[str, Any] | None = None) -> Schema:
    """The fields of a dataclass."""
    hints = {**hints_of(cls), **(extra or {})}
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return closed({f.name: of_hint(hints[f.name]) for f in fields(cls)}, required)


def of_objects() -> Schema:
    """An object of flowlab's, torch's or a program's own class."""
    names = [*registry.own_names(), *sorted(torch_networks.CLASSES)]
    cases = [
        {
            "if": {"properties": {"class": {"const": name}}},
            "then": {"properties": {"args": {"$ref": f"#/$defs/{name}"}}},
        }
        for name in names
    ]
    return {**closed({"class": TEXT, "args": ANY_OBJECT}), "allOf": cases}


def of_tables() -> Schema:
    """What estimators of tables have beside the module."""
    ends = array({"type": "array"})
    table = closed(
        {
            "schema": closed({"labels": of_hint(list[str | int | float | bool | None]), "columns": array(column())}),
            "rules": array(ANY_OBJECT),
            "names": array({}),
            "array": {"type": "boolean"},
            "ends": ends,
        }
    )
    report = of_record(Report)
    report["properties"] |= {"member": of_record(Member), "score": or_null(NUMBER), "history": array(ANY_OBJECT)}
    state = {
        "n_features_in_": WHOLE,
        "feature_names_in_": or_null(array(TEXT)),
        "kind": or_null(ANY_OBJECT),
        "table": table,
        "rows": or_null(WHOLE),
        "race": {"type": "object", "additionalProperties": or_null(NUMBER)},
        "reports": array(report),
        "calibration": {"type": "object", "additionalProperties": {"type": "array"}},
        "held_out": array(or_null(NUMBER)),
        "validation_score": or_null(NUMBER),
    }
    known = closed({"train": or_null(NUMBER), "held_out": or_null(NUMBER), "auc": NUMBER, "standard_error": NUMBER})
    spent = closed({**dict.fromkeys(hints_of(Privacy), NUMBER), "steps": WHOLE, "counts_noise": or_null(NUMBER)})
    later = {"membership": or_null(known), "privacy": or_null(spent)}  # which an early file lacks
    bare = {"bare": closed({"log_mass": NUMBER, "reach": NUMBER})}
    return {
        "properties": {"parameters": ANY_OBJECT, "state": closed({**state, **bare, **later}, state)},
        "required": ["parameters", "state"],
    }


def column() -> Schema:
    return of_record(ColumnSchema, LISTS)


def of_kinds() -> dict[str, Schema]:
    """What headers of each kind have beside format, version, kind and module."""
    number = or_null(NUMBER)
    record = {"type": "object", "properties": {"stage": TEXT, "step": WHOLE, "elbo": number}}
    history = array({**record, "required": ["stage", "step", "elbo"]})
    support: Schema = {"type": "array", "prefixItems": [array(WHOLE), {}], "minItems": 2, "items": False}
    supports = closed({"supports": {"type": "object", "additionalProperties": support}})
    space = {"anyOf": [closed({"features": WHOLE}), supports]}
    posterior = {"space": space, "evaluations": WHOLE, "restart_gap": number, "prefit_seconds": number}
    found: dict[str, Mapping[str, Schema]] = {
        "FlowPosterior": {**posterior, "history": history},
        "AmortizedPosterior": {"space": space, "history": history},
        "BayesianModule": {name: of_hint(hint) for name, hint in IN_FILES.items()},
    }
    kinds = {name: {"properties": dict(own), "required": sorted(own)} for name, own in found.items()}
    tables = {name: of_tables() for name in registry.kinds() if name not in kinds}
    for name, own in tables.items():
        if name != "FlowDensity":
            own["properties"]["estimator"] = ANY_OBJECT
            own["required"] = [*own["required"], "estimator"]
    return {**kinds, **tables}


def schema() -> Schema:
    """The whole JSON Schema."""
    classes = {name: registry.find(name) for name in registry.own_names()} | torch_networks.CLASSES
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"The header of a flowlab model file, format {file_versions.FORMAT}",
        "description": "Made by tests/file_schema.py. It says what every header looks like; docs/file_format.md says "
        "what else flowlab.load checks.",
        "type": "object",
        "properties": {
            "format": {"const": file_versions.FORMAT},
            "version": TEXT,
            "kind": {"enum": ["module", *registry.kinds()]},
            "module": or_null(OBJECT),
        },
        "required": ["format", "version", "kind", "module"],
        "allOf": [
            {"if": {"properties": {"kind": {"const": name}}}, "then": own} for name, own in sorted(of_kinds().items())
        ],
        "$defs": {
            "numbers": array({"anyOf": [NUMBER, {"$ref": "#/$defs/numbers"}]}),
            "object": of_objects(),
            **{name: of_class(cls) for name, cls in sorted(classes.items())},
        },
    }


def text() -> str:
    """The file's text."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
