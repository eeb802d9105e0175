"""The tables of tests/constructors.py, over which many tests run, are complete."""

import json
import re

from constructors import BASES, LAYERS, SCALARS
from flowlab import registry
from flowlab.bases import Base
from flowlab.building import describe
from flowlab.layers import Layer, ScalarMap


def test_every_registered_layer_base_and_scalar_map_has_a_row() -> None:
    kinds = {name: registry.find(name) for name in registry.own_names()}
    parts = {name for name, kind in kinds.items() if issubclass(kind, Layer | Base | ScalarMap)}
    # Those of the posteriors of weights are tried in tests/bayesian: they are no layers for users.
    parts -= {name for name in parts if kinds[name].__module__.startswith("flowlab.bayesian")}
    rows = [*(entry(3) for entry in LAYERS.values()), *(build(3) for build in BASES.values()), *SCALARS.values()]
    built = set(re.findall(r'"class": "(\w+)"', json.dumps(describe(rows))))
    assert parts <= built, f"without a row in tests/constructors.py: {sorted(parts - built)}"
