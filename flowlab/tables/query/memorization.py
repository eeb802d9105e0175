"""Did a fit memorise its rows? Copies, nearest records, and a membership test by likelihood ratio.

The test asks how well a score tells training rows from held-out ones: in which share of pairs (AUC) the training row
has the higher one. One score is the log-likelihood, which mistakes rows that are likely anyway for training rows. The
other is its ratio to a reference density of rows of neither kind (Carlini et al. 2022, "Membership inference attacks
from first principles"; van Breugel et al. 2023, "Membership inference attacks against synthetic data through
overfitting detection"). Both fit many shadow models, or densities of synthetic rows; the model's own density is at hand
here, so one reference will do: small networks on half of the held-out rows, which are then not tested. They have the
model's columns, and so its measure: only there is a ratio free of units. Under the hypothesis that the model has seen
no row of either kind, both are exchangeable whatever the reference is: the AUC is 0.5. A poor reference only finds
less.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from flowlab.tables.ensemble.calibration import Membership, membership
from flowlab.tables.ensemble.member import Member
from flowlab.tables.fitted import Fitted, fit_matrix
from flowlab.tables.frames.nearness import Privacy, privacy
from flowlab.tables.query.sampling import sample
from flowlab.tables.query.scoring import score

Array = NDArray[np.float64]

LEAST = 20  # rows of each kind
HALF_NEAR = 0.75  # share of rows nearer to training rows if half of them lie about one, and the others are new
REFERENCE = Member("mixed", "none", hidden=(32,), steps=150, trees=0, gaussians=0)
REFERENCE_ROWS = 2_000  # more would take longer, and a reference need not be precise


@dataclass(frozen=True)
class Memorization:
    """What `FlowDensity.memorization` finds; prints as text, ending in a verdict.

    Attributes:
        rows: Numbers of training rows, held-out rows and synthetic rows that were looked at.
        copies: Share of synthetic rows that equal a training row in all cells.
        copies_held_out: The same of held-out rows: the share to expect where nothing was copied.
        copies_error: Standard error of the difference of both.
        nearer_to_train: Share of synthetic rows whose nearest real row is a training row rather than one of as many
            held-out ones; 0.5 is to be expected.
        nearer_error: Its standard error, if it does not matter which rows were trained on.
        likelihood: How well the model's log-likelihood tells training rows from held-out ones.
        ratio: The same of its ratio to a reference density's.

    Example:
        >>> import numpy as np, flowlab
        >>> x = np.random.default_rng(0).normal(size=(300, 2))
        >>> model = flowlab.FlowDensity(members=["copula"], random_state=0).fit(x[:150])
        >>> model.memorization(x[:150], x[150:], random_state=0).memorised
        False
    """

    rows: tuple[int, int, int]
    copies: float
    copies_held_out: float
    copies_error: float
    nearer_to_train: float
    nearer_error: float
    likelihood: Membership
    ratio: Membership

    @property
    def copied(self) -> bool:
        """Whether synthetic rows are copies more often than held-out rows are, beyond three standard errors."""
        return self.copies > self.copies_held_out + 3 * self.copies_error

    @property
    def near(self) -> bool:
        """Whether half of the synthetic rows, or more, lie about training rows."""
        return self.nearer_to_train > max(HALF_NEAR, 0.5 + 3 * self.nearer_error)

    @property
    def memorised(self) -> bool:
        """Whether the fit memorised its rows: they come back as draws, or are known as such from nearly all others."""
        return self.copied or self.near or self.likelihood.memorised or self.ratio.memorised

    @property
    def verdict(self) -> str:
        """What the numbers mean, in a sentence."""
        best = max(self.likelihood, self.ratio, key=lambda found: found.auc)
        found = ["synthetic rows are copies of training rows"] * self.copied
        found += ["synthetic rows lie close to training rows"] * self.near
        found += [f"scores tell training rows from new ones ({best} of pairs)"] * best.memorised
        if found:
            return f"memorised: {'; '.join(found)}. Treat model and synthetic rows like the training rows."
        if self.nearer_to_train > 0.5 + 3 * self.nearer_error:
            found += [f"synthetic rows are nearer to training rows than to new ones ({self.nearer_to_train:.1%})"]
        if best.auc > 0.5 + 3 * best.standard_error:
            found += [
                f"scores tell training rows from new ones ({best} of pairs): the model says something of who is in it"
            ]
        if found:
            return f"not memorised, with traces: {'; '.join(found)}."
        return "nothing found: neither draws nor scores tell training rows from new ones. No guarantee, a measurement."

    def __repr__(self) -> str:
        train, held_out, drawn = self.rows
        lines = [
            f"Memorization of {train:,} training rows, beside {held_out:,} held-out and {drawn:,} synthetic rows",
            f"  copies of training rows      {self.copies:.2%}, held-out rows {self.copies_held_out:.2%}",
            f"  nearer to training rows      {self.nearer_to_train:.3f} ± {self.nearer_error:.3f}, expected 0.5",
            f"  membership, by likelihood    {self.likelihood}, expected 0.5",
            f"  membership, by its ratio     {self.ratio}, expected 0.5",
            f"  {self.verdict}",
        ]
        return "\n".join(lines)


def memorization(fitted: Fitted, train: pd.DataFrame, held_out: pd.DataFrame, most: int, seed: int) -> Memorization:
    """See `FlowDensity.memorization`.

    Args:
        fitted: The model.
        train: The rows that it was fitted to.
        held_out: Rows that it has not seen; half of them train the reference, the others are told from training rows.
        most: Rows of each kind that are looked at.
        seed: Decides which, the synthetic rows, and the reference.
    """
    for name, rows, least in (("train", train, LEAST), ("held_out", held_out, 2 * LEAST)):
        if len(rows) < least:
            raise ValueError(f"{name} has {len(rows)} rows: a membership test takes at least {least}")
    rng = np.random.default_rng(seed)
    train, held_out = (rows.iloc[rng.permutation(len(rows))] for rows in (train, held_out))
    generator = torch.Generator(fitted.device).manual_seed(int(rng.integers(2**62)))
    drawn = pd.DataFrame(sample(fitted, max(min(len(train), most), LEAST), None, generator))
    drawn.columns = train.columns
    near = privacy(train, held_out, drawn, most, int(rng.integers(2**31)))
    half = len(held_out) // 2
    density = reference(fitted, held_out[:half], rng)
    pair = train[:most], held_out[half:][:most]
    scores = [score(fitted, rows, "outcome", "mass") for rows in pair]
    base = [score(density, rows, "outcome", "mass") for rows in pair]
    return Memorization(
        (len(pair[0]), len(held_out), len(drawn)),
        near.copies,
        near.copies_held_out,
        copies_error(near, len(drawn), len(held_out)),
        near.nearer_to_train,
        near.standard_error,
        membership(*scores),
        membership(*(ratio(own, other) for own, other in zip(scores, base, strict=True))),
    )


def copies_error(near: Privacy, drawn: int, held_out: int) -> float:
    """The standard error of the difference between the shares of copies among synthetic and among held-out rows."""
    # The second term keeps the error above 0 where no held-out row is a copy.
    error = near.copies_held_out * (1 - near.copies_held_out) / held_out + 1 / (drawn * held_out)
    return float(np.sqrt(error + near.copies * (1 - near.copies) / drawn))


def reference(fitted: Fitted, rows: pd.DataFrame, rng: np.random.Generator) -> Fitted:
    """A density of rows that the model has not seen, in the measure of its own: the same columns, other networks.

    Rows with cells that the model cannot have, levels that it does not know among them, are left out.

    Raises:
        ValueError: Too few rows are left.
    """
    table = fitted.table
    matrix, possible = table.encode_all(rows)
    nullable = np.array([variable.nullable for variable in table.variables], dtype=bool)
    possible &= ~table.new_levels(matrix).any(axis=1) & ~(np.isnan(matrix) & ~nullable).any(axis=1)
    matrix = matrix[possible][:REFERENCE_ROWS]
    if len(matrix) < LEAST:
        raise ValueError(
            f"held_out: of {len(rows)} rows, half of all, {len(matrix)} have cells that the model can have; the "
            f"reference density takes at least {LEAST}"
        )
    options = {"folds": 1, "validation": 0.1, "n_jobs": 1}
    return fit_matrix(table, matrix, np.ones(len(matrix)), [REFERENCE], rng, None, str(fitted.device), **options)[0]


def ratio(log_prob: Array, reference: Array) -> Array:
    """Log-likelihood ratios (n,): -inf for rows that cannot occur under the model, whatever the reference says."""
    return np.where(np.isfinite(log_prob), log_prob - np.where(np.isfinite(log_prob), reference, 0.0), -np.inf)
