"""What a fit reports: `History`, and `TrainingError` where it cannot go on."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class TrainingError(ArithmeticError):
    """Training kept producing non-finite losses or gradients at ever smaller learning rates."""


@dataclass(repr=False)
class History:
    """What happened in a fit.

    Attributes:
        records: One dict per evaluation: step, epoch, learning_rate, train and validation loss (nats per row), its
            standard error, gradient_norm, skipped (steps so far that were not finite), seconds (wall time so far).
        converged: Whether more training is not expected to help.
        reason: Why training stopped, in plain words.
        best_step: The step whose weights were kept.
        roll_backs: How often the best weights came back after non-finite steps.
        seconds: Wall time.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    converged: bool = False
    reason: str = ""
    best_step: int = 0
    roll_backs: int = 0
    seconds: float = 0.0

    @property
    def frame(self) -> "pd.DataFrame":
        """The records as a DataFrame."""
        import pandas as pd

        return pd.DataFrame.from_records(self.records)

    @property
    def best(self) -> float:
        """The lowest validation loss (training loss where there was no validation), nats per row."""
        return min((r["validation"] for r in self.records), default=math.nan)

    def continued(self, later: "History") -> "History":
        """This history with that of a fit which started from its weights; steps, epochs and seconds count on."""
        last = self.records[-1] if self.records else {"step": 0, "epoch": 0}
        offset = {"step": last["step"], "epoch": last["epoch"], "seconds": self.seconds}
        return History(
            [*self.records, *({**r, **{k: r[k] + offset[k] for k in offset}} for r in later.records)],
            later.converged,
            later.reason,
            int(offset["step"]) + later.best_step if later.best_step else self.best_step,
            self.roll_backs + later.roll_backs,
            self.seconds + later.seconds,
        )

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        count = len(self.records)
        return (
            f"History({count} evaluation{'s' * (count != 1)} in {self.seconds:.1f} s, best {self.best:.4g} nats "
            f"per row at step {self.best_step}, {state}: {self.reason})"
        )
