"""The JSON Schema of files' headers, and the page about them, say what files hold."""

import json
import re
import warnings
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors import safe_open

import constructors
import file_schema
import flowlab
from benchmarks.faults import file_seeds
from flowlab import building, file_versions, files, torch_networks
from flowlab.tables import fitted
from helpers import ROOT, run_blocks

SCHEMA = json.loads(file_schema.PATH.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FIXTURES = sorted((ROOT / "tests" / "data").rglob("*.flow"))
PAGE = (ROOT / "docs" / "file_format.md").read_text(encoding="utf-8")


def header_of(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["flowlab"])


def own(schema: dict) -> dict:
    """The schema without torch's modules, whose annotations are those of the torch that is installed."""
    return {**schema, "$defs": {k: v for k, v in schema["$defs"].items() if not k.startswith("torch.")}}


def test_the_schema_is_what_the_constructors_say():
    VALIDATOR.check_schema(SCHEMA)
    assert own(SCHEMA) == own(json.loads(file_schema.text())), "run python tests/file_schema.py"
    assert {k for k in SCHEMA["$defs"] if k.startswith("torch.")} == set(torch_networks.CLASSES)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_files_of_every_format_have_headers_of_the_schema(path):
    header = header_of(path)
    if header["format"] < file_versions.FORMAT:
        assert not VALIDATOR.is_valid(header)
    VALIDATOR.validate(file_versions.upgraded(header))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> dict[str, dict]:
    """Headers of freshly saved models of every kind."""
    path = tmp_path_factory.mktemp("fresh") / "m.flow"
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds = file_seeds.seeds()
    for name, (model, _) in seeds.items():
        flowlab.save(model, path)
        found[name] = header_of(path)
    return found


def test_models_of_every_kind_have_headers_of_the_schema(fresh):
    assert {header["kind"] for header in fresh.values()} == set(SCHEMA["properties"]["kind"]["enum"])
    for header in fresh.values():
        VALIDATOR.validate(header)


def test_layers_have_descriptions_of_the_schema():
    for name, entry in constructors.LAYERS.items():
        header = {"format": file_versions.FORMAT, "version": "", "kind": "module"}
        assert VALIDATOR.is_valid({**header, "module": building.describe(entry(3))}), name


WRONG = {
    "format": lambda h: h.update(format=99),
    "kind": lambda h: h.update(kind="os.system"),
    "no module": lambda h: h.pop("module"),
    "class": lambda h: h["module"].update({"class": 3}),
    "another field of an object": lambda h: h["module"].update(code="1"),
    "argument": lambda h: h["module"]["args"].update(command="x"),
    "type": lambda h: h["module"]["args"].update(layers=7),
    "type within": lambda h: h["module"]["args"]["base"]["args"].update(features="three"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_schema_refuses_other_headers(case, fresh):
    header = json.loads(json.dumps(fresh["Flow, maf"]))
    WRONG[case](header)
    assert not VALIDATOR.is_valid(header)


def test_the_schema_refuses_other_states(fresh):
    for change in (
        lambda h: h["state"].pop("table"),
        lambda h: h["state"]["table"]["schema"]["columns"][0].update(kind=3),
        lambda h: h["state"].update(numbers=None),
        lambda h: h.pop("parameters"),
    ):
        header = json.loads(json.dumps(fresh["FlowDensity, rules"]))
        change(header)
        assert not VALIDATOR.is_valid(header)


def test_the_page_has_the_limits_of_the_code():
    for number in (
        *(files.MOST_HEADER, files.MOST_FOREIGN, files.MOST_LISTS, building.SMALL, building.TOGETHER),
        *(building.SPARE, building.OBJECTS, building.CALLS, building.DEPTH, torch_networks.FARTHEST),
        *(fitted.COLUMNS, fitted.REPORTS),
    ):
        assert re.search(rf"\b{number:,}\b", PAGE), number
    assert f"a whole number: {file_versions.FORMAT} today" in PAGE
    steps = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert [int(step) for step in steps] == list(range(1, file_versions.FORMAT + 1))


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flowlab.registry._registered", {})
    run_blocks(PAGE, "file_format.md")
    assert capsys.readouterr().out == "2 module Flow\nTrue\n"
    assert torch.is_grad_enabled()
