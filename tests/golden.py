"""Golden numbers: about a dozen small fitted models of every kind, what they say of rows, and what they draw.

    python tests/golden.py record FOLDER [NAME …]     # fit all of them, or those named; write files and numbers
    python tests/golden.py compare FOLDER [NAME …]    # fit them again: bit for bit what FOLDER has, on the same machine

tests/data/golden was recorded before the code was rearranged, in format 1, and tests/data/format_2 is of the next
format; tests/test_golden.py loads the files of both on any machine.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import flowlab
from flowlab import presets

SMALL = {"hidden": (8,), "components": 3, "steps": 40}


def numbers(rows: int = 240) -> pd.DataFrame:
    """Continuous, grid, atoms, constant, derived and bounded columns."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=rows)
    b = rng.gamma(2.0, size=rows)
    table = {"a": a, "b": b, "n": rng.poisson(3.0, rows), "total": 2 * a + b, "c": np.full(rows, 2.5)}
    table["rain"] = np.where(rng.random(rows) < 0.4, 0.0, rng.gamma(1.0, size=rows) + 0.1)
    return pd.DataFrame(table)


def mixed(rows: int = 240) -> pd.DataFrame:
    """Levels, booleans, dates, missing cells, a price and an integer."""
    rng = np.random.default_rng(2)
    city = rng.choice(["Rome", "Oslo", "Lima"], rows, p=[0.5, 0.3, 0.2])
    price = np.round(rng.lognormal(3.0, 0.5, rows) + 5 * (city == "Oslo"), 2)
    low = rng.integers(1, 9, rows)
    table = {"city": city, "price": price, "low": low, "high": low + rng.integers(0, 4, rows)}
    table |= {"member": rng.random(rows) < 0.3, "x": rng.normal(size=rows)}
    table["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, rows), unit="D")
    frame = pd.DataFrame(table)
    frame.loc[rng.random(rows) < 0.15, "x"] = np.nan
    frame.loc[rng.random(rows) < 0.1, "city"] = None
    return frame


def density(effort: str, mix: bool, small: bool = True, **options: Any) -> Any:
    """A density with the members of an effort, their sizes made small."""
    from flowlab.tables.density import FlowDensity
    from flowlab.tables.ensemble.member import recipe

    members = None
    if small:
        members = [replace(m, **(SMALL if m.trained else {"components": 3})) for m in recipe(effort, 240, 5, not mix)]
    return FlowDensity(effort=effort, members=members, random_state=3, n_jobs=1, **options)


def table_numbers(model: Any, frame: Any) -> dict[str, np.ndarray]:
    """Scores, noise and draws of a `FlowDensity`."""
    drawn = model.sample(40, random_state=4)
    found = {"scores": model.score_samples(frame), "held_out": np.array([model.validation_score_])}
    found["density"] = model.score_samples(frame, measure="density")
    found["noise"] = model.to_noise(frame, random_state=5)
    columns = pd.DataFrame(drawn)
    for name in columns:
        values = columns[name]
        if pd.api.types.is_datetime64_any_dtype(values.dtype):
            values = values.astype("int64")
        found[f"drawn {name}"] = values.to_numpy() if values.dtype.kind in "ifb" else values.astype(str).to_numpy("U8")
    return found


def whole(effort: str, **options: Any) -> tuple[Any, Any]:
    frame = mixed()
    return density(effort, True, **options).fit(frame), frame


def plain(effort: str, small: bool = True) -> tuple[Any, Any]:
    frame = numbers()
    return density(effort, False, small).fit(frame), frame


def supervised(cls: str) -> tuple[Any, Any]:
    frame = numbers()[["a", "b", "n"]]
    target = (frame["a"] > 0.3).map({True: "yes", False: "no"}) if cls == "FlowClassifier" else frame["a"] * frame["b"]
    return getattr(flowlab, cls)(density("fast", True)).fit(frame, target), frame


def outlier() -> tuple[Any, Any]:
    frame = numbers()[["a", "b"]]
    return flowlab.FlowOutlier(density("fast", False), contamination=0.1).fit(frame), frame


def outlier_numbers(model: Any, x: Any) -> dict[str, np.ndarray]:
    return {"scores": model.decision_function(x), "p": model.p_value(x)}


def flow_rows() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(8).normal(size=(400, 3)) ** 3).float()


def flow(name: str, **options: Any) -> tuple[Any, Any]:
    generator, x = torch.Generator().manual_seed(7), flow_rows()
    made = getattr(presets, name)(3, layers=2, hidden=(16,), generator=generator, **options)
    flowlab.fit(made, x, epochs=4, batch_size=64, generator=generator, progress=False)
    return made, x


def flow_numbers(model: Any, x: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        drawn = model.sample((30,), generator=torch.Generator().manual_seed(9))
        return {"scores": model.log_prob(x).numpy(), "drawn": drawn.numpy()}


def two_modes(z: torch.Tensor) -> torch.Tensor:
    """A banana, and a Gaussian beside it."""
    banana = -z[:, 0].square() / 8 - (z[:, 1] - z[:, 0].square() / 4).square()
    return torch.logaddexp(banana, -(z - 9.0).square().sum(-1))


def hierarchical(p: dict[str, torch.Tensor]) -> torch.Tensor:
    y = torch.tensor([1.2, 0.7, 2.1, 1.6], dtype=torch.float64)
    normal = torch.distributions.Normal
    prior = normal(0.0, 3.0).log_prob(p["mu"]) - p["tau"]
    return prior + normal(p["mu"].unsqueeze(-1), p["tau"].unsqueeze(-1)).log_prob(y).sum(-1)


def posterior(kind: str) -> tuple[Any, Any]:
    positive = torch.distributions.constraints.positive
    real = torch.distributions.constraints.real
    options: dict[str, Any] = {"steps": 60, "draws": 64, "progress": False, "random_state": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "modes":
            return flowlab.fit_posterior(two_modes, features=2, **options), None
        supports = {"mu": ((), real), "tau": ((), positive)}
        return flowlab.fit_posterior(hierarchical, supports=supports, **options), None


def posterior_numbers(model: Any, _: Any) -> dict[str, np.ndarray]:
    drawn = model.sample((30,), generator=torch.Generator().manual_seed(11))
    values = drawn if isinstance(drawn, dict) else {"z": drawn}
    with torch.no_grad():
        return {"scores": model.log_prob(drawn).numpy(), **{f"drawn {k}": v.numpy() for k, v in values.items()}}


def amortized_rows() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(12).normal(size=(64, 2)))


def amortized() -> tuple[Any, Any]:
    context = amortized_rows()

    def log_prob(z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return -(z - context.sum(-1, keepdim=True)).square().sum(-1) - z.square().sum(-1) / 2

    options: dict[str, Any] = {"steps": 30, "draws": 64, "progress": False, "random_state": 13}
    return flowlab.fit_posterior(log_prob, features=2, context=context, **options), context


def amortized_numbers(model: Any, context: Any) -> dict[str, np.ndarray]:
    drawn = model.sample((5,), context[:8], generator=torch.Generator().manual_seed(14))
    return {"drawn": drawn.numpy()}


def vae_rows() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(15).random((200, 6)) < 0.3).float()


def vae() -> tuple[Any, Any]:
    torch.manual_seed(15)  # the user's own networks
    x = vae_rows()
    generator = torch.Generator().manual_seed(16)
    posterior = presets.iaf(2, context_features=3, layers=2, hidden=(16,), generator=generator)
    prior = presets.maf(2, layers=2, hidden=(16,), generator=generator)
    model = flowlab.VAE(nn.Linear(6, 7), nn.Linear(2, 6), posterior, prior=prior)
    model.fit(x, epochs=5, generator=generator, progress=False)
    return model, x


def vae_numbers(model: Any, x: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        bound = model.elbo(x, generator=torch.Generator().manual_seed(17))
        drawn = model.sample((10,), generator=torch.Generator().manual_seed(18))
    return {"scores": bound.numpy(), "drawn": drawn.numpy()}


def bayesian_rows() -> torch.Tensor:
    return torch.linspace(-1, 1, 60).unsqueeze(1)


def bayesian() -> tuple[Any, Any]:
    torch.manual_seed(19)
    x = bayesian_rows()
    y = torch.sin(3 * x) + 0.1 * torch.randn(60, 1)
    generator = torch.Generator().manual_seed(20)
    model = flowlab.BayesianModule(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), generator=generator)
    model.fit(x, y, steps=30, generator=generator, progress=False)
    return model, x


def bayesian_numbers(model: Any, x: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        predicted = model.predict(x, 5, generator=torch.Generator().manual_seed(21))
    return {"drawn": predicted.numpy()}


def predictions(model: Any, x: Any) -> dict[str, np.ndarray]:
    found = np.asarray(model.predict(x))
    return {"predicted": found if found.dtype.kind == "f" else found.astype("U8")} | (
        {"probability": model.predict_proba(x)} if hasattr(model, "classes_") else {}
    )


RULES = ["low <= high"]
# Name: how a model and its rows are made, and what is asked of it.
MODELS: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[[Any, Any], dict[str, np.ndarray]]]] = {
    "numbers, fast": (lambda: plain("fast", small=False), table_numbers),
    "numbers, fast, small": (lambda: plain("fast"), table_numbers),
    "numbers, default": (lambda: plain("default"), table_numbers),
    "numbers, best": (lambda: plain("best"), table_numbers),
    "mixed, fast": (lambda: whole("fast", small=False), table_numbers),
    "mixed, default": (lambda: whole("default"), table_numbers),
    "mixed, best": (lambda: whole("best"), table_numbers),
    "mixed, rules": (lambda: whole("fast", rules=RULES, schema={"price": {"upper": 500}}), table_numbers),
    "classifier": (lambda: supervised("FlowClassifier"), predictions),
    "regressor": (lambda: supervised("FlowRegressor"), predictions),
    "outlier": (outlier, outlier_numbers),
    "maf": (lambda: flow("maf"), flow_numbers),
    "nsf": (lambda: flow("nsf", bins=4), flow_numbers),
    "real_nvp": (lambda: flow("real_nvp"), flow_numbers),
    "posterior": (lambda: posterior("hierarchical"), posterior_numbers),
    "posterior, two modes": (lambda: posterior("modes"), posterior_numbers),
    "amortized": (amortized, amortized_numbers),
    "vae": (vae, vae_numbers),
    "bayesian": (bayesian, bayesian_numbers),
}


def file_of(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def main() -> None:
    task, folder, chosen = sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or list(MODELS)
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    for name in chosen:
        make, numbers_of = MODELS[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, rows = make()
            found = numbers_of(model, rows)
        path = folder / f"{file_of(name)}.npz"
        if task == "record":
            np.savez_compressed(path, **found)
            flowlab.save(model, path.with_suffix(".flow"))
            print(f"recorded {name}", flush=True)
            continue
        known = np.load(path)
        off = [
            k for k, v in found.items() if k in known and not np.array_equal(v, known[k], equal_nan=v.dtype.kind == "f")
        ]
        print(f"{name}: {'differs in ' + ', '.join(off) if off else 'the same'}", flush=True)
        wrong += [name] * bool(off)
    sys.exit(f"{len(wrong)} models differ: {'; '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
