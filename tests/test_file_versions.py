"""Headers of older files become those of today (tests/test_golden.py has what the models of such files say)."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import flowlab
from flowlab import file_versions
from helpers import ROOT, rewritten

FOLDER = ROOT / "tests" / "data"


def header_of(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["flowlab"])


def copied(name: str, tmp_path: Path) -> Path:
    path = tmp_path / Path(name).name
    path.write_bytes((FOLDER / name).read_bytes())
    return path


def test_a_header_of_today_stays_as_it_is():
    header = header_of(FOLDER / "format_2" / "maf.flow")
    assert header["format"] == file_versions.FORMAT
    assert file_versions.upgraded(copy.deepcopy(header)) == header


def test_there_are_files_of_every_format():
    found = {header_of(path)["format"] for path in FOLDER.rglob("*.flow")}
    assert found == set(range(1, file_versions.FORMAT + 1))


@pytest.mark.parametrize("number", [0, -1, file_versions.FORMAT + 1, 2**70, 1.0, True, "1", None])
def test_formats_that_there_are_not(number, tmp_path):
    path = copied("format_2/maf.flow", tmp_path)
    with pytest.raises(flowlab.FileError, match="format"):
        flowlab.load(rewritten(path, lambda h: h.update(format=number)))


def test_steps_follow_each_other(monkeypatch, tmp_path):
    """A step that a later version might add: layers are called `maps`."""

    def layers_again(header):
        assert header["format"] == 2
        header["module"]["args"]["layers"] = header["module"]["args"].pop("maps")

    path = copied("golden/real_nvp.flow", tmp_path)
    assert header_of(path)["format"] == 1
    expected = flowlab.load(path).log_prob(torch.zeros(3))
    monkeypatch.setattr(file_versions, "STEPS", (*file_versions.STEPS, layers_again))
    monkeypatch.setattr(file_versions, "FORMAT", 3)
    rewritten(path, lambda h: h["module"]["args"].update(maps=h["module"]["args"].pop("layers")))
    assert torch.equal(flowlab.load(path).log_prob(torch.zeros(3)), expected)


def test_what_format_1_changed_without_saying_so():
    early = file_versions.upgraded(header_of(FOLDER / "numbers.flow"))
    assert early["parameters"]["members"] == ["copula"]
    table = early["state"]["table"]
    assert [c["kind"] for c in table["schema"]["columns"]] == ["continuous", "continuous", "constant", "derived"]
    assert table["schema"]["columns"][1]["resolution"] == 1.0
    assert table["schema"]["columns"][3]["sources"] == ["a", "k"]
    assert early["state"]["bare"] == {"log_mass": 0.0, "reach": 0.0}
    whole = file_versions.upgraded(header_of(FOLDER / "table.flow"))
    assert whole["parameters"]["members"][0]["member"]["kind"] == "mixed"
    assert "Ranks" in json.dumps(header_of(FOLDER / "table.flow"))
    assert "Ranks" not in json.dumps(whole)
    assert "bare" not in whole["state"]
    posterior = file_versions.upgraded(header_of(FOLDER / "posterior.flow"))
    assert posterior["history"] == []


def test_parameters_once_plain_are_tagged():
    old = header_of(FOLDER / "table.flow")
    old["params"] |= {"schema": {"low": {"kind": "integer", "lower": 0}}, "members": None}
    new = file_versions.upgraded(old)["parameters"]
    assert new["schema"] == {"pairs": [["low", {"pairs": [["kind", "integer"], ["lower", 0]]}]]}
    assert new["members"] is None


@pytest.mark.parametrize("field", ["state", "params"])
def test_a_damaged_file_of_format_1_is_refused(field, tmp_path):
    path = copied("table.flow", tmp_path)
    for value in (None, [], {}, 7):
        with pytest.raises(flowlab.FileError, match="damaged"):
            flowlab.load(rewritten(path, lambda h, v=value: h.update({field: v})))
