"""What users ask of a fitted density: how unusual a row is, how well the model fits, how much columns tell about one another.

Everything here is a few lines on exact log-densities. Information is in nats.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from flowlab.distribution import Estimate
from flowlab.flow import CHUNK
from flowlab.runtime import threads_for
from flowlab.tables.frames.validation import seed_from
from flowlab.tables.query.conditions import fill, member_log_prob
from flowlab.training.fitting import progress_bar

if TYPE_CHECKING:
    from flowlab.tables.density import FlowDensity

Array = NDArray[np.float64]
LogDensity = Callable[[list[int]], Array]  # of some variables, in rows that it knows
BLOCK = 4096  # draws at a time: enough for speed, few enough for a bar to move


def mean_of(values: Array) -> Estimate[float]:
    """The mean of independent values, with its standard error."""
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


class DensityQuestions:
    """The methods of `FlowDensity` that answer questions."""

    def __repr__(self: "FlowDensity", N_CHAR_MAX: int = 700) -> str:  # type: ignore[misc]  # scikit-learn's argument
        """Its parameters, as of any estimator of scikit-learn; once fitted, a line on what to."""
        text = BaseEstimator.__repr__(self, N_CHAR_MAX)
        if not self.__sklearn_is_fitted__():
            return text
        members = sum(report.weight > 0 for report in self.reports_)
        score = self.validation_score_
        held_out = "" if score is None or np.isnan(score) else f", {score:.3f} nats per held-out row"
        return f"{text}\nfitted: {self.n_features_in_} columns, {members} member{'s' * (members != 1)}{held_out}"

    def to_noise(self: "FlowDensity", X: ArrayLike, random_state: int | None = None) -> Array:  # type: ignore[misc]
        """Noise (n, modelled columns) behind the rows: standard normal if they come from the fitted density.

        Values on a grid are first spread over their cells, and the member that a row came from is drawn: another seed gives other noise.
        There is none behind a row that cannot occur, whose `score_samples` is -inf: its noise is NaN throughout.
        """
        check_is_fitted(self)
        rng = np.random.default_rng(seed_from(random_state))
        rows = self._encoded(X, rng)[0]
        if self.flow_ is None:
            return rows
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        noise = np.full_like(rows, np.nan)
        with threads_for(min(len(rows), CHUNK) * rows.shape[1]):
            possible = np.isfinite(self.score_samples(X))
            chunks = torch.from_numpy(rows[possible]).to(self.device).split(CHUNK)
            found = [self.flow_.to_noise(chunk, generator=generator) for chunk in chunks]
        noise[possible] = torch.cat(found).cpu().numpy()
        return noise

    def pit(self: "FlowDensity", X: ArrayLike, random_state: int | None = None) -> Array:  # type: ignore[misc]
        """Probability integral transform of the rows (n, modelled columns): uniform on [0, 1] and independent if they come from the
        fitted density. It is the normal distribution function of `to_noise`, and NaN for a row that cannot occur.
        """
        return np.asarray(stats.norm.cdf(self.to_noise(X, random_state)))

    def anomaly_score(self: "FlowDensity", X: ArrayLike) -> Array:  # type: ignore[misc]
        """How unusual each row is: its negative log-density, nats."""
        return -self.score_samples(X)

    def anomaly_p_value(self: "FlowDensity", X: ArrayLike) -> Array:  # type: ignore[misc]
        """The share of rows like those fitted to that would look at least as unusual, from log-densities of held-out rows.

        The idea is that of conformal p-values (Bates et al. 2023, "Testing for outliers with conformal p-values"), but not their guarantee:
        no network was trained on the held-out rows, yet they decided when training stopped and what the members weigh, and in folds
        other versions of the members scored them. Of new rows from the same source, about a share α get a p-value of α or less.

        Raises:
            ValueError: No rows were held out (`validation=0`, or very few rows).
        """
        check_is_fitted(self)
        if not len(self._held_out):
            raise ValueError("no rows were held out to calibrate p-values with: fit with validation above 0")
        at_most = np.searchsorted(self._held_out, self.score_samples(X), side="right")
        return (at_most + 1) / (len(self._held_out) + 1)

    def highest_density_threshold(  # type: ignore[misc]
        self: "FlowDensity", level: float = 0.95, n_samples: int = 10_000, random_state: int | None = None
    ) -> float:
        """The log-density above which the model's draws lie with probability `level`: the smallest such region (Hyndman 1996).

        The cost is that of drawing and scoring `n_samples` rows. With `progress` of the model, a bar counts them.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        return float(np.quantile(self._scores_of_draws(self.score_samples, n_samples, random_state), 1 - level))

    def entropy(self: "FlowDensity", n_samples: int = 10_000, random_state: int | None = None) -> Estimate[float]:  # type: ignore[misc]
        """Entropy of the modelled columns, nats, with its standard error.

        Of complete numbers it is the differential entropy (tied values spread over their cells); of whole tables the expected negative of
        `score_samples`: levels, missing cells and values on a grid count with their probabilities, other numbers with their density.
        The cost is that of drawing and scoring `n_samples` rows. With `progress` of the model, a bar counts them.
        """
        return mean_of(-self._log_density_of_draws(n_samples, random_state)[1])

    def divergence(  # type: ignore[misc]
        self: "FlowDensity", other: Any, n_samples: int = 10_000, random_state: int | None = None
    ) -> Estimate[float]:
        """Kullback-Leibler divergence KL(this ‖ other), nats, with its standard error.

        Args:
            other: A fitted density of the same columns: anything with `score_samples`.
            n_samples: Draws from this density.
            random_state: Seed of the draws.
        """

        def difference(rows: Any) -> Array:
            return self.score_samples(rows) - np.asarray(other.score_samples(rows))

        return mean_of(self._scores_of_draws(difference, n_samples, random_state))

    def mutual_information(  # type: ignore[misc]
        self: "FlowDensity",
        columns_a: Any,
        columns_b: Any,
        n_samples: int = 10_000,
        random_state: int | None = None,
    ) -> Estimate[float]:
        """Mutual information between two groups of columns under the model, nats, with the standard error of the simulation.

        I(a; b) is the mean over draws of log p(a, b) - log p(a) - log p(b). A model of whole tables has a density for every group of columns, in which
        a missing cell is an outcome. Of complete numbers, where the groups are not all columns, and for p(a) and p(b), small
        densities are fitted to draws from the model; an imperfect fit of those is not in the standard error.

        Args:
            columns_a: A column, or several as a list. A column is named as in the table, a whole number being a name like any other; of a model
                that was fitted to an array it is a position, or "x0", "x1" and so on.
            columns_b: Others.
            n_samples: Draws; of complete numbers, as many again fit the small densities.
            random_state: Seed of draws and fits.

        Raises:
            ValueError: A column is not in the model, or the groups are empty or overlap.
        """
        check_is_fitted(self)
        count = _number_of_draws(n_samples)
        a, b = self._variables(columns_a, "columns_a"), self._variables(columns_b, "columns_b")
        if not a or not b or set(a) & set(b):
            raise ValueError(
                "columns_a and columns_b must be two groups with at least one column each and none in common"
            )
        seed = seed_from(random_state)
        with threads_for(min(count, BLOCK) * self.n_features_in_):
            log_density = self._fitted(count, seed) if self.table_ is None else self._known(a + b, count, seed)
            return mean_of(log_density(a + b) - log_density(a) - log_density(b))

    def _variables(self: "FlowDensity", group: Any, argument: str) -> list[int]:  # type: ignore[misc]
        """The modelled variables that a column, or a list of columns, has."""
        array = self.table_.array if self.table_ is not None else self._index_names is None
        labels = self.table_.names if self.table_ is not None else (self._index_names or self._names())
        places = {label: j for j, label in enumerate(labels)} | ({j: j for j in range(len(labels))} if array else {})
        wanted = _as_columns(group, places)
        found = list(dict.fromkeys(_place(label, places) for label in wanted))
        if -1 in found:
            unknown = [label for label in wanted if _place(label, places) < 0]
            raise ValueError(
                f"{argument}: there is no column {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, labels))}"
                + (f", or their positions 0 to {len(labels) - 1}" if array else "")
            )
        if self.table_ is None:
            variables = {place: [k] for k, place in enumerate(self.columns_.modelled)}
        else:
            table, schema, units = self.table_, self.table_.codec.schema, range(len(self.table_.units))
            seen = [j for j, label in enumerate(labels) if label in schema and schema[label].modelled]
            variables = {j: list(units[table.place(labels[j])]) for j in seen}
        outside = [repr(labels[place]) for place in found if place not in variables]
        if outside:
            raise ValueError(
                f"{argument}: column {', '.join(outside)} is not among the modelled ones, "
                f"{', '.join(repr(labels[j]) for j in variables) or 'of which there are none'}: it is constant, or follows from others"
            )
        return [variable for place in found for variable in variables[place]]

    def _known(self: "FlowDensity", drawn: list[int], n_samples: int, seed: int) -> LogDensity:  # type: ignore[misc]
        """The log-densities of some variables of a whole table in draws of these alone."""
        mixture, generator = self._mixture, torch.Generator(self.device).manual_seed(seed)

        def known(of: list[int], chunk: torch.Tensor) -> torch.Tensor:
            return torch.tensor([j in of for j in range(mixture.features)], device=self.device).expand_as(chunk)

        empty = torch.full((min(n_samples, BLOCK), mixture.features), np.nan, dtype=torch.float64, device=self.device)
        with self._blocks(n_samples) as sizes:
            blocks = [
                fill(mixture, x, known([], x), generator=generator, units=drawn) for x in (empty[:n] for n in sizes)
            ]
        rows = torch.cat(blocks)

        @torch.no_grad()
        def log_density(of: list[int]) -> Array:
            parts = [member_log_prob(mixture, x, known(of, x)).logsumexp(0) for x in rows.split(CHUNK)]
            return torch.cat(parts).cpu().numpy()

        return log_density

    def _fitted(self: "FlowDensity", n_samples: int, seed: int) -> LogDensity:  # type: ignore[misc]
        """The log-densities of some columns in draws, by densities fitted to other draws unless these are all columns."""
        from flowlab.tables.density import FlowDensity

        shown = self._log_density_of_draws(n_samples, seed)[0]
        rows, joint = self._log_density_of_draws(n_samples, seed + 1)
        small = FlowDensity(
            effort="fast", device=self.device, n_jobs=self.n_jobs, random_state=seed % 2**31, progress=self.progress
        )

        def log_density(of: list[int]) -> Array:
            return joint if len(of) == rows.shape[1] else small.fit(shown[:, of]).score_samples(rows[:, of])

        return log_density

    def _log_density_of_draws(  # type: ignore[misc]
        self: "FlowDensity", n_samples: int, random_state: int | None
    ) -> tuple[Array, Array]:
        """Draws of the modelled columns, not yet rounded to what the table holds, and their log-densities."""
        check_is_fitted(self)
        if self.flow_ is None:
            raise ValueError("every column is constant: there is nothing to draw")
        generator = torch.Generator(self.device).manual_seed(seed_from(random_state))
        found = []
        with torch.no_grad(), self._blocks(n_samples) as sizes:
            for size in sizes:
                rows = self._draw_supported(size, generator)
                found.append((rows, self.flow_.log_prob(rows) - self._log_mass))
        drawn, log_prob = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return drawn, log_prob

    def _scores_of_draws(  # type: ignore[misc]
        self: "FlowDensity", score: Callable[[Any], Array], n_samples: int, random_state: int | None
    ) -> Array:
        """What a function says of rows that the model draws, (n_samples,)."""
        check_is_fitted(self)
        rng = np.random.default_rng(seed_from(random_state))
        with self._blocks(n_samples) as sizes:
            found = [score(self.sample(size, int(rng.integers(2**62)))) for size in sizes]
        return np.concatenate(found)

    @contextmanager
    def _blocks(self: "FlowDensity", n_samples: int) -> Iterator[Iterator[int]]:  # type: ignore[misc]
        """Sizes of blocks of draws, with a bar if the model's `progress` is set, on the threads that pay for them."""
        count = _number_of_draws(n_samples)
        sizes = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
        with threads_for(sizes[0] * self.n_features_in_), progress_bar(count, self.progress, "draws", "row") as bar:

            def each() -> Iterator[int]:
                for size in sizes:
                    yield size
                    bar.update(size)

            yield each()


def _number_of_draws(n_samples: Any) -> int:
    try:
        count = operator.index(n_samples)
    except TypeError:
        raise ValueError(f"n_samples must be a whole number of draws, not {n_samples!r}") from None
    if count < 2:
        raise ValueError(f"n_samples must be at least 2, not {count}")
    return count


def _as_columns(group: Any, places: dict[Any, int]) -> list[Any]:
    """A group of columns as a list: a text, a number and any other label are one column, anything else is a collection of labels."""
    alone = isinstance(group, str | bytes) or not np.iterable(group)
    return [group] if alone or _place(group, places) >= 0 else list(group)


def _place(label: Any, places: dict[Any, int]) -> int:
    """Where a column stands, -1 for nowhere. Of complete numbers, labels that are neither text nor whole numbers are known by their text."""
    try:
        return places[label] if label in places else places.get(str(label), -1)
    except TypeError:  # a list or the like, which is no label
        return -1


def goodness_of_fit(noise: Array, names: Sequence[str]) -> pd.DataFrame:
    """Tests of whether noise behind held-out rows is standard normal, as it is when the model is right.

    Kolmogorov-Smirnov tests of each column and of the radius (whose square is chi-squared), and an energy test against fresh standard
    normal noise of all columns together (Székely & Rizzo 2013), by 200 permutations of at most 300 rows.

    Args:
        noise: Held-out rows' noise (n, features); an empty one gives an empty table.
        names: The columns.

    Returns:
        One row per test: `statistic` and `p_value`.
    """
    rows: list[tuple[str, float, float]] = []
    if len(noise) >= 8:
        for name, column in zip(names, noise.T, strict=True):
            test = stats.kstest(column, "norm")
            rows.append((f"column {name}", float(test.statistic), float(test.pvalue)))
        test = stats.kstest((noise**2).sum(1), "chi2", args=(noise.shape[1],))
        rows.append(("radius", float(test.statistic), float(test.pvalue)))
        rows.append(("energy", *_energy_test(noise)))
    return pd.DataFrame(rows, columns=["test", "statistic", "p_value"]).set_index("test")


def _energy_test(noise: Array, most: int = 300, permutations: int = 200) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    x = noise[rng.permutation(len(noise))[:most]]
    both = np.concatenate([x, rng.standard_normal(x.shape)])
    distance = np.sqrt(np.maximum(((both[:, None] - both[None]) ** 2).sum(-1), 0))

    orders = np.array([np.arange(len(both)), *(rng.permutation(len(both)) for _ in range(permutations))])
    # Twice the mean distance between the halves less those within: a quadratic form in +1 for one half and -1 for the other.
    sign = np.where(orders.argsort(1) < len(x), 1.0, -1.0)
    energy = -((sign @ distance) * sign).sum(1) / len(x) ** 2
    return float(energy[0]), float((1 + (energy[1:] >= energy[0]).sum()) / (1 + permutations))
