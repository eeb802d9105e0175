"""Small data sets: real tables that ship with flowlab, and 2-D toys, most of them with an exact density.

from flowlab import datasets

diamonds = datasets.load("diamonds")                # a pandas DataFrame; datasets.card("diamonds") says what is in it
x = datasets.toy("rings", 5000, random_state=0)     # a tensor (5000, 2)
datasets.toy_log_prob("rings", x)                   # what a perfect model of the rings would score, in nats
"""

import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    import pandas as pd

Sampler = Callable[[int, Generator], Tensor]
LogProb = Callable[[Tensor], Tensor]

TABLES = ("diamonds", "flights", "weather", "wine")
# In a wheel the tables lie inside the package, in a checkout beside it.
FOLDERS = (Path(__file__).parent / "_datasets", Path(__file__).parent.parent / "datasets")


def names() -> list[str]:
    """The names that `load` and `card` take: the tables, then the 2-D toys.

    Example:
        >>> names()
        ['diamonds', 'flights', 'weather', 'wine',
         'checkerboard', 'circles', 'funnel', 'moons', 'pinwheel', 'rings', 'spirals']
    """
    return [*TABLES, *TOYS]


def load(name: str, *, n: int | None = None, random_state: int | None = None) -> "pd.DataFrame":
    """A table as a DataFrame, with ordered categories, time zones and whole numbers as such; or rows drawn from a toy.

    Args:
        name: One of `names()`. The units of a table's columns are in its `card`.
        n: Rows to draw; toys only, 1000 if not given. A table comes whole: take a part with `DataFrame.sample`.
        random_state: Toys only, as in `toy`.

    Returns:
        The table, or for a toy the columns `x0` and `x1` (no units), the same numbers as `toy` gives.

    Raises:
        ValueError: The name is unknown, or `n` or `random_state` came with a table.
        FileNotFoundError: The table's file is missing from this installation.

    Example:
        >>> load("diamonds")["cut"].cat.categories.tolist()
        ['Fair', 'Good', 'Very Good', 'Premium', 'Ideal']
        >>> load("moons", n=500, random_state=0).shape
        (500, 2)
    """
    import pandas as pd

    _check_name(name, names())
    if name in TOYS:
        return pd.DataFrame(toy(name, 1000 if n is None else n, random_state).double().numpy(), columns=["x0", "x1"])
    if n is not None or random_state is not None:
        raise ValueError(f"{name!r} is a table and comes whole: n and random_state are for the toys {list(TOYS)}")
    return pd.read_parquet(_find(f"{name}.parquet"), engine="pyarrow")


def card(name: str) -> str:
    """What a data set is: for a table source, licence, and each column's meaning, unit and missing values, in Markdown.

    Args:
        name: One of `names()`.

    Raises:
        ValueError: The name is unknown.
        FileNotFoundError: The table's card is missing from this installation.

    Example:
        >>> print(card("wine").splitlines()[0])
        # wine: chemistry and grade of 1,599 red wines
        >>> print(card("funnel"))
        Neal's funnel: x0 ~ N(0, 3²) and x1 ~ N(0, exp(x0)), where exp(x0) is the variance.
    """
    _check_name(name, names())
    return TOYS[name].about if name in TOYS else _find(f"{name}.md").read_text(encoding="utf-8")


def toy(name: str, n: int, random_state: int | None = None) -> Tensor:
    """Rows drawn from a 2-D toy distribution.

    Args:
        name: A toy: checkerboard, circles, funnel, moons, pinwheel, rings or spirals; `card(name)` describes it.
        n: How many rows.
        random_state: An int gives the same bits every time; None draws a fresh seed. The global random state is left
            alone.

    Returns:
        Independent rows (n, 2), float32 on the CPU, without units.

    Raises:
        ValueError: The name is not a toy's, or n is negative.

    Example:
        >>> toy("rings", 1000, random_state=0).shape
        torch.Size([1000, 2])
    """
    _check_name(name, list(TOYS))
    if n < 0:
        raise ValueError(f"n is the number of rows to draw and cannot be negative; got {n}")
    generator = Generator()
    if random_state is None:
        generator.seed()
    else:
        generator.manual_seed(operator.index(random_state))
    return TOYS[name].sample(n, generator)


def toy_log_prob(name: str, x: Tensor) -> Tensor:
    """The exact log-density of a toy, where there is a formula: the score that no model can beat on average.

    Differentiable in x, so that it also serves as a target for variational inference.

    Args:
        name: checkerboard, circles, funnel, pinwheel or rings; moons and spirals have no closed form.
        x: Points (*batch, 2).

    Returns:
        Log-density in nats, (*batch,); -inf outside the support.

    Raises:
        ValueError: The name is not a toy's, the toy has no closed form, or x is not (*batch, 2) of floats.

    Example:
        >>> toy_log_prob("checkerboard", torch.tensor([[0.5, 0.5], [0.5, -0.5], [9.0, 0.0]]))
        tensor([-3.4657,    -inf,    -inf])
    """
    _check_name(name, list(TOYS))
    log_prob = TOYS[name].log_prob
    if log_prob is None:
        exact = [other for other, its in TOYS.items() if its.log_prob is not None]
        raise ValueError(f"{name!r} has no density in closed form; these toys have one: {exact}")
    if x.shape[-1:] != (2,) or not x.is_floating_point():
        raise ValueError(f"x holds points in the plane, shape (*batch, 2) of floats; got {tuple(x.shape)} of {x.dtype}")
    return log_prob(x)


def _check_name(name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"there is no {name!r}; choose one of {known}")


def _find(file: str) -> Path:
    for folder in FOLDERS:
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(f"{file} is in none of {[str(folder) for folder in FOLDERS]}; reinstall flowlab")


# The toys. Each sampler takes (n, generator) and returns (n, 2). Every draw is float32 by name, so that the bits depend
# on the seed alone and not on torch's default dtype.

NOISE = 0.1
PINWHEEL_ARMS, PINWHEEL_MEAN, PINWHEEL_SCALE = 5, (2.0, 0.0), (0.6, 0.2)


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float32)


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float32)


def _integer(high: int, n: int, generator: Generator) -> Tensor:
    return torch.randint(high, (n,), generator=generator).float()


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


def _length(x: Tensor) -> Tensor:
    # Not torch.hypot: its gradient at the origin is nan, this one's is 0.
    return torch.linalg.vector_norm(x, dim=-1)


def _sample_checkerboard(n: int, generator: Generator) -> Tensor:
    column = _integer(4, n, generator)
    row = 2 * _integer(2, n, generator) + column % 2
    # Midpoints of a 2⁻²⁰ grid are exact in float32; a plain uniform could round up onto the edge of an empty square.
    within = torch.stack([(_integer(2**20, n, generator) + 0.5) / 2**20 for _ in range(2)], dim=-1)
    return 2 * (torch.stack([column, row], dim=-1) + within) - 4


def _log_prob_checkerboard(x: Tensor) -> Tensor:
    cell = ((x + 4) / 2).floor()
    filled = ((cell >= 0) & (cell < 4)).all(-1) & (cell.sum(-1) % 2 == 0)
    return torch.where(filled, x.new_tensor(-math.log(32)), -math.inf)  # eight squares of area 4


def _circles(*radii: float) -> tuple[Sampler, LogProb]:
    """Circles of equal weight blurred by Gaussian noise in the plane.

    Averaging the noise's density over the angle gives exp(-(r² + R²) / 2σ²) I₀(rR / σ²) / 2πσ²: no pole at the origin,
    unlike noise on the radius alone, whose density holds the Jacobian 1 / 2πr.
    """

    def sample(n: int, generator: Generator) -> Tensor:
        radius = torch.tensor(radii, dtype=torch.float32)[torch.randint(len(radii), (n,), generator=generator)]
        return _polar(radius, 2 * math.pi * _uniform(n, generator)) + NOISE * _normal(n, generator)

    def log_prob(x: Tensor) -> Tensor:
        r, circle = _length(x)[..., None], x.new_tensor(radii)
        # i0e(t) = exp(-t) I₀(t) does not overflow, and the exponent it leaves is -(r - R)² / 2σ².
        terms = torch.special.i0e(r * circle / NOISE**2).log() - 0.5 * ((r - circle) / NOISE) ** 2
        return terms.logsumexp(-1) - math.log(len(radii) * 2 * math.pi * NOISE**2)

    return sample, log_prob


def _sample_funnel(n: int, generator: Generator) -> Tensor:
    v, y = _normal(n, generator).unbind(-1)
    return torch.stack([3 * v, (1.5 * v).exp() * y], dim=-1)


def _log_prob_funnel(x: Tensor) -> Tensor:
    v, y = x.unbind(-1)
    return -0.5 * ((v / 3) ** 2 + (y * (-v / 2).exp()) ** 2 + v) - math.log(6 * math.pi)


def _sample_moons(n: int, generator: Generator) -> Tensor:
    x = _polar(1.0, math.pi * _uniform(n, generator))
    lower = _integer(2, n, generator)[:, None] == 1
    return torch.where(lower, x.new_tensor([1.0, 0.5]) - x, x) + NOISE * _normal(n, generator)


def _twist(r: Tensor) -> Tensor:
    return 0.25 * (r / 2).exp()


def _sample_pinwheel(n: int, generator: Generator) -> Tensor:
    z = _normal(n, generator)
    x = z.new_tensor(PINWHEEL_MEAN) + z.new_tensor(PINWHEEL_SCALE) * z
    return _rotate(x, _integer(PINWHEEL_ARMS, n, generator) * (2 * math.pi / PINWHEEL_ARMS) + _twist(_length(x)))


def _log_prob_pinwheel(x: Tensor) -> Tensor:
    # The angle of the turn depends on the radius alone, which the turn keeps: a shear in polar coordinates, log-det 0.
    arms = torch.arange(PINWHEEL_ARMS, dtype=x.dtype, device=x.device) * (2 * math.pi / PINWHEEL_ARMS)
    straight = _rotate(x[..., None, :], -(arms + _twist(_length(x))[..., None]))
    z = (straight - x.new_tensor(PINWHEEL_MEAN)) / x.new_tensor(PINWHEEL_SCALE)
    return (-0.5 * z.square().sum(-1)).logsumexp(-1) - math.log(PINWHEEL_ARMS * 2 * math.pi * math.prod(PINWHEEL_SCALE))


def _sample_spirals(n: int, generator: Generator) -> Tensor:
    # The square root spreads the rows nearly evenly along an arm that grows with its angle.
    angle = 3 * math.pi * _uniform(n, generator).sqrt()
    side = 2 * _integer(2, n, generator) - 1
    return _polar(side * angle / 3, angle) + NOISE * _normal(n, generator)


class Toy(NamedTuple):
    """A sampler, the exact log-density if there is one, and a line that describes them."""

    sample: Sampler
    log_prob: LogProb | None
    about: str


TOYS = {
    "checkerboard": Toy(
        _sample_checkerboard,
        _log_prob_checkerboard,
        "Checkerboard: uniform on eight of the sixteen squares of side 2 that tile [-4, 4)².",
    ),
    "circles": Toy(*_circles(1, 2), "Two circles of radius 1 and 2, N(0, 0.1²) noise in the plane."),
    "funnel": Toy(
        _sample_funnel,
        _log_prob_funnel,
        "Neal's funnel: x0 ~ N(0, 3²) and x1 ~ N(0, exp(x0)), where exp(x0) is the variance.",
    ),
    "moons": Toy(_sample_moons, None, "Two interleaved half circles of radius 1, N(0, 0.1²) noise in the plane."),
    "pinwheel": Toy(
        _sample_pinwheel,
        _log_prob_pinwheel,
        "Pinwheel: five Gaussian arms, each turned about the origin by an angle that grows with the radius.",
    ),
    "rings": Toy(*_circles(1, 2, 3, 4), "Four circles of radius 1 to 4, N(0, 0.1²) noise in the plane."),
    "spirals": Toy(_sample_spirals, None, "Two spiral arms of one and a half turns, N(0, 0.1²) noise in the plane."),
}
