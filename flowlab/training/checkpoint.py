"""Checkpoints of a fit: all that changes in its course, so that a fit that was killed ends with the same bits.

What stays – rows, options, the schedule's shape – is not in the file: who goes on gives it again, and a digest of each
says whether it is the same. The model need not be: its weights are the file's.
"""

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import __version__ as torch_version

from flowlab import snapshots
from flowlab.building import FileError
from flowlab.training.history import History
from flowlab.training.loop import State
from flowlab.training.objectives import Drawing, Pool, is_called
from flowlab.training.rows import Rows
from flowlab.version import __version__
from flowlab.writing import UNFINISHED

SHARE = 0.05  # of a fit's time that writing may take


class Checkpoint:
    """The file in which a fit keeps its state.

    Attributes:
        path: The file.
        resumed: Whether there is a file to go on from.
        finished: Whether the fit that the file is of had ended.
    """

    def __init__(self, path: Path, task: Mapping[str, Any], resume: bool) -> None:
        """Read the file, if there is one to go on from.

        Args:
            path: The file.
            task: What the fit is of, by the words for it: numbers, texts, digests.
            resume: Whether to go on from a file that is there, rather than to replace it.

        Raises:
            FileError: The file is no checkpoint, or damaged.
            ValueError: It is a checkpoint of another fit; the message says what differs.
        """
        self.path, self.task = path, versioned(task)
        self._stored = snapshots.read(path) if resume else None
        self._written, self._took, self._seed = 0.0, 0.0, 0
        self.resumed, self.finished = self._stored is not None, False
        if self._stored is not None:
            check_same(path, self._stored[1].get("task"), self.task)
            self.finished = bool(self._stored[1]["finished"])

    def begin(self, model: nn.Module, seed: int, given: bool) -> int:
        """Sets the model's parameters and buffers to those of the file, if there is one.

        Args:
            model: The model.
            seed: The seed of this fit.
            given: Whether the user decided it.

        Returns:
            The seed of the fit: where there is a file and the user did not decide, that of the fit before.

        Raises:
            FileError: The model has others.
            ValueError: The user gave another generator, or one in another state, than before.
        """
        self._seed = seed
        if self._stored is None:
            return seed
        self._seed = int(self._stored[1]["seed"])
        if given and seed != self._seed:
            raise ValueError(
                f"{self.path} is a checkpoint of a fit with another generator: give one with the same seed, from which "
                "nothing has been drawn that was not drawn then, or let resume be False"
            )
        stored = {name[6:]: value for name, value in self._stored[0].items() if name.startswith("model.")}
        own = model.state_dict()
        different = [n for n in {*own, *stored} if n not in own or n not in stored or not _alike(own[n], stored[n])]
        if different:
            raise FileError(
                f"{self.path} is a checkpoint of another model: {', '.join(sorted(different)[:3])} differ. Build the "
                "model as in the fit that was broken off, or name another file"
            )
        model.load_state_dict(stored)
        return self._seed

    def load_state(self, model: nn.Module, state: State) -> None:
        """All else as it was; `model` is the part of the model that is trained."""
        assert self._stored is not None
        tensors, record = self._stored
        wanted = state_tensors(state)
        if not all(name in tensors and _alike(tensors[name], value) for name, value in wanted.items()):
            raise FileError(f"{self.path} is a checkpoint of another fit: its optimizer does not fit this model")
        state.optimizer.restore({name[10:]: tensors[name] for name in wanted if name.startswith("optimizer.")})
        with torch.no_grad():
            for k, kept in enumerate(state.best.weights):
                kept.copy_(tensors[f"best.{k}"])
        state.optimizer.rate, state.optimizer.steps = record["rate"], record["adam_steps"]
        state.schedule.scale = record["scale"]
        for name in ("best", "best_step", "stale", "early"):
            setattr(state.stopper, name, record["stopper"][name])
        state.history = history_of(record["history"])
        state.step, state.epoch, state.shuffle = record["step"], record["epoch"], tensors["shuffle"]
        state.generator.set_state(tensors["generator"])
        if state.source is not state.generator:
            state.source.set_state(tensors["source"])
        if "pool" in tensors:
            device = state.optimizer.weights[0].device
            state.memory[model] = Pool(tensors["pool"].to(device), record["pool_steps"])
        if "global" in tensors:
            torch.set_rng_state(tensors["global"])

    @property
    def seconds(self) -> float:
        """Wall time of the fit until the file was written."""
        return 0.0 if self._stored is None else float(self._stored[1]["history"]["seconds"])

    @property
    def history(self) -> History:
        """The history of the fit that the file is of."""
        assert self._stored is not None
        return history_of(self._stored[1]["history"])

    def is_due(self) -> bool:
        """Whether enough time has passed for writing to take a small share of it."""
        return time.perf_counter() - self._written >= self._took / SHARE

    def write(self, model: nn.Module, trained: nn.Module, state: State, finished: bool = False) -> None:
        """Write the state of a fit.

        Args:
            model: The model.
            trained: The part of it that is trained.
            state: The state.
            finished: Whether the fit has ended; the model then has the weights that are kept.
        """
        started = time.perf_counter()
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        record: dict[str, Any] = {"task": self.task, "seed": self._seed, "finished": finished}
        record["history"] = asdict(state.history)
        if not finished:
            tensors |= {**state_tensors(state), "shuffle": state.shuffle}
            record |= {name: getattr(state, name) for name in ("step", "epoch")}
            record |= {"rate": state.optimizer.rate, "adam_steps": state.optimizer.steps, "scale": state.schedule.scale}
            record["stopper"] = vars(state.stopper)
            if (pool := state.memory.get(trained)) is not None:
                tensors["pool"], record["pool_steps"] = pool.draws, pool.steps
            now = torch.get_rng_state()
            if not torch.equal(now, state.global_start):  # a module of the user's own draws from torch's own generator
                tensors["global"] = now
        snapshots.write(self.path, tensors, record)
        self._written = time.perf_counter()
        self._took = self._written - started

    def try_to_write(self, model: nn.Module, trained: nn.Module, state: State, finished: bool = False) -> None:
        """The same, once training has begun: a disk that is full by then is no reason to lose it."""
        try:
            self.write(model, trained, state, finished)
        except OSError as error:
            warnings.warn(f"no checkpoint was written, and the fit goes on without: {error}", stacklevel=5)


def described(rows: Rows, validation: Any, options: Any, objective: Any, device: torch.device) -> dict[str, Any]:
    """What a fit is of, in a form that can be compared: rows by a digest, an objective by its class and numbers."""
    if isinstance(objective, Drawing) and is_called(objective):
        raise ValueError(
            f"a checkpoint cannot hold what a {type(objective).__name__} keeps from step to step: override its method "
            "`loss`, which gets all that from the fit, in place of `__call__`"
        )
    held_out = validation if isinstance(validation, tuple) else (validation,)
    kind = type(objective).__name__
    name = getattr(objective, "__qualname__", kind) if kind == "function" else kind
    plain = {
        k: v
        for k, v in getattr(objective, "__dict__", {}).items()
        if k != "taken" and isinstance(v, bool | int | float | str)
    }
    return {
        "rows": digest_of(rows.x, rows.context, rows.weight),
        "validation": [digest_of(v) if isinstance(v, Tensor) else None if v is None else float(v) for v in held_out],
        "options": [o if isinstance(o, str | None) else float(o) for o in options],
        "objective": [name, plain],
        "device": device.type,
    }


def digest_of(*tensors: Tensor | None) -> str:
    """A digest of tensors, and of which of them are None."""
    return snapshots.digest({str(k): value for k, value in enumerate(tensors) if value is not None})


def state_tensors(state: State) -> dict[str, Tensor]:
    """The tensors of a state beside the weights, which the model has."""
    tensors = {f"optimizer.{name}": value for name, value in state.optimizer.tensors().items()}
    tensors |= {f"best.{k}": value for k, value in enumerate(state.best.weights)}
    tensors["generator"] = state.generator.get_state()
    if state.source is not state.generator:
        tensors["source"] = state.source.get_state()
    return tensors


def history_of(values: Mapping[str, Any]) -> History:
    """The history that a record holds."""
    return History(**{f.name: values[f.name] for f in fields(History)})


def open_folder(folder: str | os.PathLike[str], task: dict[str, Any], seed: int, given: bool) -> tuple[Path, int]:
    """The folder that keeps a fit of several parts, made where there is none, and the fit's seed.

    Args:
        folder: The folder.
        task: What the fit is of, in JSON's types.
        seed: The seed of this fit.
        given: Whether the user decided it; else that of the fit that the folder keeps.

    Raises:
        ValueError: It keeps another fit; the message says what differs.
        FileError: Its files are damaged.
        OSError: It cannot be written to.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    task = versioned({**task, **({"random_state": seed} if given else {})})
    found = snapshots.read(place / "fit")
    if found is None:
        strangers = sorted(path.name for path in place.iterdir() if not path.name.startswith(UNFINISHED))[:3]
        if strangers:
            raise ValueError(f"{place} holds other files ({', '.join(strangers)}): name an empty folder, or a new one")
        snapshots.write(place / "fit", {}, {"task": task, "seed": seed})
        return place, seed
    check_same(place, found[1].get("task"), task)
    return place, int(found[1]["seed"])


def empty_folder(folder: str | os.PathLike[str]) -> None:
    """Remove a fit from its folder, if there is one.

    Raises:
        ValueError: The folder holds something else.
    """
    place = Path(folder)
    there = list(place.iterdir()) if place.is_dir() else []
    if not (place / "fit").is_file() and any(not path.name.startswith(UNFINISHED) for path in there):
        raise ValueError(f"{place} holds no fit: name the folder that --checkpoint made, or a new one")
    for path in there:
        path.unlink()


def versioned(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task with what its bits depend on beside it."""
    return {**task, "flowlab": __version__, "torch": str(torch_version)}


def check_same(place: Path, stored: Any, task: Mapping[str, Any]) -> None:
    """Raises a ValueError that says what differs between the fit that a checkpoint is of, and this one.

    Other versions of flowlab and torch are warned of alone: what has been trained is as good as before.
    """
    if not isinstance(stored, dict):
        raise FileError(f"{place} is a checkpoint of something else: name another place")
    different = sorted(name for name in {*stored, *task} if stored.get(name) != task.get(name))
    versions = [name for name in different if name in ("flowlab", "torch")]
    if len(versions) < len(different):
        raise ValueError(
            f"{place} is a checkpoint of another fit, whose {', '.join(n for n in different if n not in versions)} "
            "differ from this one's: give the same as before to go on, name another place, or let resume be False"
        )
    if versions:
        said = " and ".join(f"{name} {stored[name]}" for name in versions)
        warnings.warn(f"{place} was written with {said}: the fit goes on, though not to the same bits", stacklevel=4)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype
