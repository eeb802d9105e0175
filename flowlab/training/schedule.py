"""The learning rate of every step: warm-up, then restarts, one cosine, a plateau's halvings, or a constant."""

import math
from typing import Literal, get_args

ScheduleName = Literal["restarts", "cosine", "plateau", "constant"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
FIRST_CYCLE = 750  # steps of the first cycle under "restarts"


class Schedule:
    """The share of the peak learning rate by step.

    Attributes:
        ends: The cycles of the learning rate: the start of each by its end. All but "restarts" have one.
        scale: What "plateau" multiplies the share by.
    """

    def __init__(self, name: str, total: int, warmup: int) -> None:
        """For `total` steps, the first of which, `warmup` or a tenth of a cycle at most, rise to the peak."""
        self.name = name
        cycles = doubling_cycles(FIRST_CYCLE, total) if name == "restarts" else [(0, total)]
        self.ends = {end: start for start, end in cycles}
        self.warmup = min(warmup, cycles[0][1] // 10)
        self.scale = 1.0

    def share(self, step: int) -> float:
        """The share of the peak learning rate in the step that follows `step` others."""
        end, start = next((end, start) for end, start in self.ends.items() if step < end)
        warmup = self.warmup if start == 0 else 0
        if step < warmup:
            return self.scale * ((step + 1) / warmup)
        if self.name in ("cosine", "restarts"):
            start += warmup
            return self.scale * ((1 + math.cos(math.pi * (step - start) / max(end - start, 1))) / 2)
        return self.scale

    def stalled(self, evaluations: int, patience: int) -> None:
        """Called where evaluations in a row brought no improvement: "plateau" halves at every third of `patience`."""
        if self.name == "plateau" and evaluations % max(patience // 3, 1) == 0:
            self.scale /= 2


def doubling_cycles(first: int, total: int) -> list[tuple[int, int]]:
    """Start and end of cycles that double in length; a rest too short for another one lengthens the last."""
    cycles, start, length = [], 0, first
    while start + 3 * length <= total:
        cycles.append((start, start + length))
        start, length = start + length, 2 * length
    return [*cycles, (start, total)]
