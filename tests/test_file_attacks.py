"""Hostile model files are refused at loading, at a cost in line with their size. `make fuzz` tries more."""

import gc
import json
import random
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import constraints

import flowlab
from benchmarks.faults import file_mutations, file_seeds
from benchmarks.faults import files as fuzz
from flowlab import FileError, FlowDensity, Member, bases, layers, presets
from flowlab.interop.converted import ConvertedAutoregressive, ConvertedCoupling, Inverse, ScaleAndShift
from flowlab.interop.steps import Steps
from flowlab.posteriors import FlowPosterior
from flowlab.posteriors.contexts import Given
from flowlab.posteriors.space import Space
from helpers import ROOT


@pytest.fixture(scope="module")
def seeds() -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return file_seeds.seeds()


@pytest.fixture(scope="module")
def files(seeds, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    for name, (model, _) in seeds.items():
        flowlab.save(model, folder / name)
        flowlab.load(folder / name)  # what is imported at the first use counts for no file
    (folder / EARLY).write_bytes((ROOT / "tests" / "data" / "numbers.flow").read_bytes())
    return {name: (folder / name).read_bytes() for name in (*seeds, EARLY)}


def edited(data: bytes, change) -> bytes:
    """The file with its description changed in place."""
    header, tensors = file_mutations.split(data)
    change(header["__metadata__"])
    return file_mutations.joined(header, tensors)


def refused(path: Path, content: bytes, match: str = ".", seconds: float = 1.0, megabytes: float = 50) -> None:
    """Asserts that a file is refused, cheaply."""
    path.write_bytes(content)
    gc.freeze()  # what other tests have left is not collected at this one's expense
    before, started = fuzz.reset_peak(), time.process_time()
    with pytest.raises(FileError, match=match) as caught:
        flowlab.load(path)
    took = time.process_time() - started
    gc.unfreeze()
    assert took < seconds
    assert fuzz.peak() - before < megabytes * 1e6
    assert len(str(caught.value)) < 1500


def layer(header: dict, k: int = 0) -> dict:
    return header["module"]["args"]["layers"][k]


def networks(h: dict) -> dict:
    """The arguments of the networks of a whole table's first member."""
    return h["module"]["args"]["flows"][0]["args"]["flow"]["args"]


def trees(h: dict) -> dict:
    """The arguments of its trees."""
    return h["module"]["args"]["flows"][0]["args"]["forest"]["args"]


def columns(h: dict) -> list:
    """The columns of a table."""
    return h["state"]["table"]["schema"]["columns"]


def joint(h: dict) -> dict:
    """The arguments of the joint density of a table of numbers."""
    return h["module"]["args"]["flows"][0]["args"]


def copied(value: object, times: int) -> list:
    return [json.loads(json.dumps(value)) for _ in range(times)]


def wrapped(description: dict, times: int) -> dict:
    for _ in range(times):
        description = {"class": "Inverse", "args": {"layer": description}}
    return description


def all_features(value: object, count: int) -> None:
    """Sets every `features` below."""
    if isinstance(value, dict):
        value.update({"features": count} if "features" in value else {})
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        all_features(item, count)


EARLY = "a density of numbers, as early versions wrote it"  # columns a, b, n, total, c, rain
LINEAR, MAF, NSF, PLANAR = "Flow, linear layers", "Flow, maf", "Flow, nsf", "Flow, planar"
WHOLE, RULES, NUMBERS, POSTERIOR = (
    "FlowDensity, whole table",
    "FlowDensity, rules",
    "FlowDensity, numbers",
    "FlowPosterior",
)
EARLY = "FlowDensity, numbers, as early versions wrote it"
GROWTH = {
    **{
        f"permutation of {n}": (LINEAR, lambda h, n=n: layer(h)["args"].update(features=n, permutation=None))
        for n in (60_000, 10**7, 2**31, 2**62, 10**30)
    },
    **{
        f"all of {n} features": (
            LINEAR,
            lambda h, n=n: (layer(h)["args"].update(permutation=None), all_features(h, n)),
        )
        for n in (60_000, 10**7)
    },
    "a thousand permutations": (
        LINEAR,
        lambda h: (
            layer(h)["args"].update(features=60_000, permutation=None),
            h["module"]["args"].update(layers=copied(layer(h), 1000)),
        ),
    ),
    "order": (MAF, lambda h: layer(h)["args"].update(features=5_000_000, order=None)),
    "a product": (
        MAF,
        lambda h: layer(h)["args"].update(
            features=60_000, order=None, scalar={"class": "RationalQuadraticSpline", "args": {"bins": 60_000}}
        ),
    ),
    "hidden layers": (MAF, lambda h: layer(h)["args"].update(hidden=[1] * 100_000)),
    "wide hidden layers": (MAF, lambda h: layer(h)["args"].update(hidden=[60_000] * 1000)),
    "layers": (MAF, lambda h: h["module"]["args"].update(layers=copied(layer(h), 5000))),
    "components": ("Flow, converted layers", lambda h: h["module"]["args"]["base"]["args"].update(components=10**9)),
    "planar steps": (PLANAR, lambda h: layer(h)["args"].update(steps=10**9)),
    "planar steps at the limit": (PLANAR, lambda h: layer(h)["args"].update(steps=60_000)),
    "deep wrappers": (MAF, lambda h: h["module"]["args"].update(layers=[wrapped(layer(h), 50)] * 30)),
    "very deep wrappers": (MAF, lambda h: h["module"]["args"].update(layers=[wrapped(layer(h), 200)])),
    "flows": ("FlowMixture", lambda h: h["module"]["args"].update(flows=copied(h["module"]["args"]["flows"][0], 1000))),
    "blocks": (WHOLE, lambda h: networks(h).update(blocks=10**6)),
    "blocks at the limit": (WHOLE, lambda h: networks(h).update(blocks=60_000)),
    "classes": (WHOLE, lambda h: networks(h).update(classes=[0, 0, 10**9])),
    "units": (
        WHOLE,
        lambda h: networks(h).update(
            columns=list(range(20_000)), classes=list(range(1, 20_001)), nullable=[False] * 20_000, ranks=[], order=None
        ),
    ),
    "columns": (WHOLE, lambda h: networks(h).update(columns=[0, 1, 10**9], order=None)),
    "variables of trees": (
        WHOLE,
        lambda h: trees(h).update(classes=[0] * 20_000, nullable=[False] * 20_000, order=list(range(20_000))),
    ),
    "columns of networks beside trees": (
        WHOLE,
        lambda h: networks(h).update(columns=list(range(20_000)), classes=[2] * 20_000, nullable=[False] * 20_000),
    ),
    "trees": (WHOLE, lambda h: trees(h).update(trees=10**9)),
    "nodes": (WHOLE, lambda h: trees(h).update(nodes=10**9)),
    "entries": (WHOLE, lambda h: trees(h).update(entries=10**9)),
    "space": (POSTERIOR, lambda h: h.update(space={"features": 30_000_000})),
    "shape": (POSTERIOR, lambda h: h["space"]["supports"].update(tau=[[10**8], "positive"])),
    "empty shape": (POSTERIOR, lambda h: h["space"]["supports"].update(tau=[[0, 10**9], "positive"])),
    # What is described beside the module, whose parts take time each: found by `make fuzz`.
    "columns of one name": (WHOLE, lambda h: columns(h).extend(columns(h) * 600)),
    "columns without tensors": (
        WHOLE,
        lambda h: columns(h).extend({**columns(h)[0], "name": f"c{i}", "kind": "excluded"} for i in range(3000)),
    ),
    "reports": (WHOLE, lambda h: h["state"].update(reports=h["state"]["reports"] * 3000)),
    "ends of times": (
        RULES,
        lambda h: h["state"]["table"].update(ends=[["when", "2024-01-01", "2024-01-02"]] * 20_000),
    ),
    "long name": (MAF, lambda h: layer(h).update({"class": "x" * 10_000_000})),
    "long word": (MAF, lambda h: layer(h)["args"].update(activation="x" * 10_000_000)),
    "many words": (MAF, lambda h: h["module"]["args"].update(layers=["x"] * 100_000)),
}


@pytest.mark.parametrize("case", GROWTH)
def test_a_description_may_ask_for_no_more_than_its_tensors_have(case, files, tmp_path):
    name, change = GROWTH[case]
    content = edited(files[name], change)
    refused(tmp_path / "m.flow", content, megabytes=50 + 5 * len(content) / 1e6)


def with_text(data: bytes, change) -> bytes:
    """The file with its description changed as text."""
    header, tensors = file_mutations.split(data)
    text = change(json.dumps(header["__metadata__"]))
    raw = json.dumps({**header, "__metadata__": {"flowlab": text}}).encode()
    return len(raw).to_bytes(8, "little") + raw + tensors


TEXTS = {
    "infinite number": lambda t: t.replace('"features": 3', '"features": 1e999'),
    "not a number": lambda t: t.replace('"features": 3', '"features": NaN'),
    "infinity": lambda t: t.replace('"features": 3', '"features": -Infinity'),
    "thousands of digits": lambda t: t.replace('"features": 3', f'"features": {"9" * 5000}'),
    "millions of digits": lambda t: t.replace('"features": 3', f'"features": {"9" * 5_000_000}'),
    "nested lists": lambda t: "[" * 100_000 + "]" * 100_000,
    "nested objects": lambda t: '{"a":' * 100_000 + "1" + "}" * 100_000,
    "many lists": lambda t: "[" + "[]," * 2_000_000 + "0]",
    "two values of one name": lambda t: t.replace('"features": 3', '"features": 3, "features": 4'),
    "not JSON": lambda t: t[:-1],
    "empty": lambda t: "",
    "null": lambda t: "null",
    "surrogates": lambda t: t.replace("StudentT", "\\ud800"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_that_is_no_description(case, files, tmp_path):
    content = with_text(files[LINEAR], TEXTS[case])
    refused(tmp_path / "m.flow", content, megabytes=50 + 8 * len(content) / 1e6)


@pytest.mark.parametrize("length", [0, 1, 100, 2**24, 2**40, 2**63, 2**64 - 1])
def test_headers_that_lie_about_their_length(length, files, tmp_path):
    refused(tmp_path / "m.flow", length.to_bytes(8, "little") + files[MAF][8:])


def test_headers_that_are_too_long(files, tmp_path):
    length = 40_000_000
    refused(tmp_path / "m.flow", length.to_bytes(8, "little") + b" " * length, "header of 40,000,000 bytes")
    text = ("é" * 3_000_000).encode()
    refused(tmp_path / "m.flow", len(text).to_bytes(8, "little") + text, "not in ASCII", megabytes=60)


def test_tensors_that_hold_nothing_pay_for_nothing(files, tmp_path):
    header, tensors = file_mutations.split(files[MAF])
    empty = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}
    header |= {f"t{k}": empty for k in range(20_000)}
    refused(tmp_path / "m.flow", file_mutations.joined(header, tensors), "do not fit", megabytes=100)


LATE: dict = {
    "bound": (MAF, lambda h: layer(h)["args"].update(scalar={"class": "Affine", "args": {"bound": "x"}})),
    "no bound": (MAF, lambda h: layer(h)["args"].update(scalar={"class": "Affine", "args": {"bound": 0.0}})),
    "negative bound": (MAF, lambda h: layer(h)["args"].update(scalar={"class": "Affine", "args": {"bound": -1}})),
    "enormous bound": (MAF, lambda h: layer(h)["args"].update(scalar={"class": "Affine", "args": {"bound": 1e300}})),
    "scalar map": (MAF, lambda h: layer(h)["args"].update(scalar={"class": "Histogram", "args": {"bins": 2}})),
    "dropout": (MAF, lambda h: layer(h)["args"].update(dropout="a")),
    "boolean": (MAF, lambda h: layer(h)["args"].update(residual=0)),
    "base": (MAF, lambda h: h["module"]["args"].update(base=layer(h))),
    "layer": (MAF, lambda h: h["module"]["args"].update(layers=[h["module"]["args"]["base"]])),
    "kind": (MAF, lambda h: h.update(kind="FlowDensity")),
    "kind of a list": (MAF, lambda h: h.update(kind=["module"])),
    "resolution": (WHOLE, lambda h: networks(h)["ranks"][0]["args"].update(resolution=[1])),
    "ranks": (WHOLE, lambda h: networks(h).update(ranks=[])),
    "head": (WHOLE, lambda h: networks(h).update(head={"class": "Affine", "args": {}})),
    "flow of numbers": (NUMBERS, lambda h: h.update(module=h["module"]["args"]["flows"][0])),
    "space": (POSTERIOR, lambda h: h["space"]["supports"].update(tau=[[], ["interval", 1.0]])),
    "space of shapes": (POSTERIOR, lambda h: h["space"]["supports"].update(p=[[3], ["greater_than", [1.0, 2.0]]])),
    "evaluations": (POSTERIOR, lambda h: h.update(evaluations="many")),
    "history": (POSTERIOR, lambda h: h.update(history=[{"step": 1}])),
}


def table_edits() -> dict:
    """Wrong values in what a `FlowDensity` keeps of its table."""

    def column(**values):
        return lambda h: h["state"]["table"]["schema"]["columns"][2].update(values)

    def time(**values):
        return lambda h: next(c for c in h["state"]["table"]["schema"]["columns"] if c["name"] == "when").update(values)

    def number(k=3, **values):
        return lambda h: h["state"]["table"]["schema"]["columns"][k].update(values)

    def early(k=None, **values):
        return lambda h: (h["state"]["numbers"] if k is None else h["state"]["numbers"]["columns"][k]).update(values)

    return {
        "dtype": (WHOLE, column(dtype="int6")),
        "bytes": (WHOLE, column(dtype="S1000000000")),
        "dtype of times": (WHOLE, column(dtype="datetime64[ns]")),
        "zone": (RULES, time(dtype="datetime64[ns, Mars]")),
        "levels": (WHOLE, column(categories=[["a"]])),
        "no levels": (WHOLE, column(categories=[])),
        "other levels": (WHOLE, column(categories=["Rome"])),
        "missing": (WHOLE, column(missing="often")),
        "null": (WHOLE, column(null="nothing")),
        "name": (WHOLE, column(name=["a"])),
        "labels": (WHOLE, lambda h: h["state"]["table"]["schema"].update(labels=[["a"], None])),
        "columns": (WHOLE, lambda h: h["state"]["table"]["schema"].update(columns=5)),
        "names": (WHOLE, lambda h: h["state"]["table"].update(names=[{}])),
        "array": (WHOLE, lambda h: h["state"]["table"].update(array="no")),
        "ends": (WHOLE, lambda h: h["state"]["table"].update(ends=[["x", 1, 2]])),
        "rule's null": (RULES, lambda h: h["state"]["table"]["rules"][0].update(null="Flow")),
        "rule's dtype": (RULES, lambda h: h["state"]["table"]["rules"][0].update(dtype="int6")),
        "combinations": (RULES, lambda h: h["state"]["table"]["rules"][3].update(combinations=['["Rome", "s"]'])),
        "rule of no column": (RULES, lambda h: h["state"]["table"]["rules"][0].update(low="nowhere")),
        "origin": (RULES, time(origin="someday")),
        "parts": (RULES, time(parts=["hour"])),
        "kind of a number": (NUMBERS, number(kind="blob")),
        "atoms of a number": (NUMBERS, number(atoms=["a"])),
        "grid of a number": (NUMBERS, number(resolution=-1.0)),
        "a negative width of atoms": (NUMBERS, number(atom_width=-1.0)),
        "a negative coarse step": (NUMBERS, number(coarse=-1.0)),
        "a tiny coarse step": (NUMBERS, number(coarse=1e-320)),
        "width of atoms": (NUMBERS, number(atom_width="wide")),
        "range of a number": (NUMBERS, number(seen=[0.0])),
        "weights of numbers": (NUMBERS, number(4, weights=[2.0, -1.0, 5.0])),
        "sources of numbers": (NUMBERS, number(4, sources=["a", "z"])),
        "a number of itself": (NUMBERS, number(4, sources=["a", "d"])),
        "a column of text": (NUMBERS, number(kind="categorical", categories=["a", "b"], dtype="object")),
        "kind of a column": (EARLY, early(2, kind="blob")),
        "atoms": (EARLY, early(2, kind="atoms", atoms=["a"])),
        "grid": (EARLY, early(1, resolution=-1.0)),
        "weights": (EARLY, early(3, kind="derived", weights=[0, 0, 0, 0, 0, 5.0])),
        "itself": (EARLY, early(3, kind="derived", weights=[0, 0, 0, 1.0])),
        "dtypes": (EARLY, early(dtypes=["int6"] * 4)),
        "too few dtypes": (EARLY, early(dtypes=["float64"])),
        "text": (EARLY, early(dtypes=["object"] * 4)),
        "index names": (EARLY, early(index_names=[1])),
    }


def estimator_edits() -> dict:
    """Wrong values in what a `FlowDensity` keeps of its fit and of its parameters."""
    edits = {
        "supports": (NUMBERS, lambda h: joint(h).update(lower=[0.0])),
        "an end of a support": (NUMBERS, lambda h: joint(h).update(lower=["none"] * len(joint(h)["lower"]))),
        "atoms of cells": (NUMBERS, lambda h: joint(h)["cells"]["args"].update(atoms=[10**9])),
        "a flow for a mixture": (NUMBERS, lambda h: joint(h).update(flow=joint(h)["flow"]["args"]["flows"][0])),
        "joint twice": (
            NUMBERS,
            lambda h: joint(h)["flow"]["args"].update(flows=copied(h["module"]["args"]["flows"][0], 1)),
        ),
        "flows of numbers": (NUMBERS, lambda h: h["state"].update(bare={"log_mass": 0.0, "reach": 0.0})),
        "flows of nothing": (NUMBERS, lambda h: h["state"].update(bare=None)),
        "bare flows": (EARLY, lambda h: (h.update(format=2), h["state"].update(table=None))),
        "reach": (EARLY, lambda h: h["state"]["numbers"].update(reach=None)),
        "log-mass": (EARLY, lambda h: h["state"]["numbers"].update(log_mass="none")),
        "columns in all": (NUMBERS, lambda h: h["state"].update(n_features_in_=7)),
        "feature names": (NUMBERS, lambda h: h["state"].update(feature_names_in_=["a"])),
        "race": (NUMBERS, lambda h: h["state"].update(race=[1])),
        "report": (NUMBERS, lambda h: h["state"]["reports"][0].update(score="good")),
        "reason": (NUMBERS, lambda h: h["state"]["reports"][0].update(history=[{"step": "one"}])),
        "member": (NUMBERS, lambda h: h["state"]["reports"][0]["member"].update(layers="two")),
        "calibration": (NUMBERS, lambda h: h["state"].update(calibration={"test": ["a"]})),
        "statistic": (NUMBERS, lambda h: h["state"]["calibration"].update(statistic=["x"] * 5)),
        "held out": (NUMBERS, lambda h: h["state"].update(held_out=["x"])),
        "score": (NUMBERS, lambda h: h["state"].update(validation_score="x")),
        "sort of table": (NUMBERS, lambda h: h["state"].update(kind={"library": "os", "schema": None, "nan": []})),
        "arrow": (NUMBERS, lambda h: h["state"].update(kind={"library": "pyarrow", "schema": "AAAA", "nan": []})),
    }
    wrong = {
        "effort": 7,
        "members": "copula",
        "time_limit": "long",
        "validation": [0.1],
        "n_jobs": 0.5,
        "rules": 3,
        "progress": "yes",
    }
    return {
        **edits,
        **{
            f"{name} {value}": (NUMBERS, lambda h, n=name, v=value: h["parameters"].update({n: v}))
            for name, value in wrong.items()
        },
    }


LATE |= table_edits() | estimator_edits()


@pytest.mark.parametrize("case", LATE)
def test_values_of_the_wrong_kind_fail_at_loading(case, files, tmp_path):
    name, change = LATE[case]
    refused(tmp_path / "m.flow", edited(files[name], change), megabytes=100)


PARTS = {
    "network's input": lambda: ConvertedCoupling(
        3, layers.Affine(), [True, False, False], Steps(1, 0, [["linear", 2]])
    ),
    "network's output": lambda: ConvertedAutoregressive(3, layers.Affine(), [0, 1, 2], Steps(3, 0, [["linear", 5]])),
    "gap between levels": lambda: ConvertedAutoregressive(2, layers.Affine(), [0, 2], Steps(2, 0, [["linear", 4]])),
    "gate without a context": lambda: Steps(2, 0, [["gate", [["linear", 2]]], ["linear", 2]]),
    "activation's argument": lambda: Steps(2, 0, [["elu", "x"], ["linear", 2]]),
    "context's width": lambda: Given(layers.Coupling(3, context_features=2, hidden=(4,)), torch.zeros(3)),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_that_do_not_go_together_are_refused_when_built(case):
    with pytest.raises(ValueError, match=r"must|needs|cannot|takes"):
        PARTS[case]()


def test_indices_are_those_of_the_description(files, tmp_path):
    path = tmp_path / "m.flow"
    header, tensors = file_mutations.split(files[LINEAR])
    start = header["layers.0.permutation"]["data_offsets"][0]
    for values in ([0, 0, 0], [2, 0, 2**40], [-1, 0, 1]):
        changed = tensors[:start] + np.array(values).tobytes() + tensors[start + 24 :]
        refused(path, file_mutations.joined(header, changed), "out of range, or not those")
    start = header["layers.4.last"]["data_offsets"][0]
    for value in (0, 5, -1):
        changed = tensors[:start] + np.int64(value).tobytes() + tensors[start + 8 :]
        refused(path, file_mutations.joined(header, changed), "out of range")


def test_numbers_that_are_none_and_weights_that_are_no_shares(files, tmp_path):
    header, tensors = file_mutations.split(files[LINEAR])
    start = header["layers.4.slopes"]["data_offsets"][0]
    changed = tensors[:start] + np.float32(np.nan).tobytes() + tensors[start + 4 :]
    refused(tmp_path / "m.flow", file_mutations.joined(header, changed), "slopes holds what is no number")
    header, tensors = file_mutations.split(files["FlowMixture"])
    start = header["log_weights"]["data_offsets"][0]
    for value in (np.nan, np.inf, 3.0):
        changed = tensors[:start] + np.float64(value).tobytes() + tensors[start + 8 :]
        refused(tmp_path / "m.flow", file_mutations.joined(header, changed), "weights of a FlowMixture|no number")
    header, tensors = file_mutations.split(files["Flow, converted layers"])
    start = header["base.logits"]["data_offsets"][0]
    changed = tensors[:start] + np.float32(np.nan).tobytes() + tensors[start + 4 :]
    refused(tmp_path / "m.flow", file_mutations.joined(header, changed), "logits holds what is no number")


USED = ("used, ValueError", "used, ConvergenceError", "used, RuntimeError")  # numbers that cannot be drawn from


@pytest.mark.parametrize("part", range(4))
def test_mutated_files_are_refused_or_work(part, seeds, files, tmp_path):
    path = tmp_path / "m.flow"
    for i in range(part * 100, part * 100 + 100):
        rng = random.Random(f"test {i}")
        name = rng.choice(sorted(seeds))
        path.write_bytes(file_mutations.mutated(files[name], rng)[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fuzz.try_file(path, seeds[name][1])
        assert found["outcome"] in ("refused", "clean", *USED), (i, found)
        assert found["seconds"] < 5, (i, found)
        assert found["bytes"] < 200e6, (i, found)


def test_what_is_built_from_a_description_has_annotations_to_check():
    from flowlab import building, registry

    for name in registry.own_names():
        cls = registry.find(name)
        assert building.argument_hints(cls).keys() >= set(building.arguments(cls)), name


def test_large_models_of_small_parts_load(tmp_path):
    """What pays little for what it asks for: sizes without tensors, many objects, wide layers."""
    spaces = {
        "p": ((3, 4), constraints.simplex),
        "L": ((2, 2), constraints.corr_cholesky),
        "e": ((0, 7), constraints.real),
    }
    space = Space(supports=spaces)
    models = [
        bases.Uniform(1_000_000),
        bases.Gaussian(100_000),
        flowlab.Flow(bases.Gaussian(3000), [layers.Permutation(3000) for _ in range(4)]),
        presets.planar(2, layers=3, hidden=(4096,)),
        presets.glow(2, layers=40, hidden=(2,)),
        flowlab.Flow(bases.Gaussian(2), [Inverse(Inverse(Inverse(layers.LULinear(2))))]),
        layers.Coupling(2, ScaleAndShift("exp"), hidden=(16,) * 30, context_features=50),
        FlowPosterior(presets.maf(space.features, layers=1, hidden=(4,)), space),
    ]
    for model in models:
        flowlab.save(model, tmp_path / "m.flow")
        assert repr(flowlab.load(tmp_path / "m.flow")) == repr(model)


@pytest.mark.slow
def test_a_whole_table_of_many_columns_loads(tmp_path):
    frame = pd.DataFrame(
        np.random.default_rng(0).integers(0, 3, (60, 40)), columns=[f"c{j}" for j in range(40)]
    ).astype(str)
    model = FlowDensity(members=[Member("mixed", steps=2, hidden=(4,))], random_state=0, n_jobs=1).fit(frame)
    model.save(tmp_path / "m.flow")
    assert np.array_equal(flowlab.load(tmp_path / "m.flow").score_samples(frame), model.score_samples(frame))
