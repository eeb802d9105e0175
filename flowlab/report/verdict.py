"""Checks and the verdict: what numbers mean beside their noise floor, in words never better than the numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GOOD, FAIR, POOR, UNKNOWN = "good", "fair", "poor", "unknown"
READINGS = {  # what a status means, by section
    "likelihood": {GOOD: "better", FAIR: "no better", POOR: "worse"},
    "calibration": {GOOD: "nothing found", FAIR: "difference found"},
    "privacy": {GOOD: "as expected", FAIR: "slightly high", POOR: "too high"},
}
FIDELITY = {GOOD: "like real rows", FAIR: "close", POOR: "differs"}  # in every other section


class Check(NamedTuple):
    """One line of the overview.

    Attributes:
        name: What is measured.
        anchor: The section that says more.
        value: The number, as text.
        floor: What real rows score, as text.
        better: Which way is better.
        status: GOOD, FAIR, POOR or UNKNOWN.
        words: What the number means, in a sentence.
        limits: Up to where the number reads as it does.
    """

    name: str
    anchor: str
    value: str
    floor: str
    better: str
    status: str
    words: str
    limits: str = ""

    @property
    def reading(self) -> str:
        """The status in words."""
        return READINGS.get(self.anchor, FIDELITY).get(self.status, "not judged")


def verdict(checks: Sequence[Check], rows: int) -> tuple[str, list[str]]:
    """Sum the checks up in a headline on the synthetic rows and a few sentences: as good as the worst check allows.

    The check of the likelihood is about the model, not about its rows, and stands by itself.

    Args:
        checks: The checks.
        rows: Number of real rows that synthetic ones were compared with: the fewer, the less is seen.
    """
    fidelity = [check for check in checks if check.anchor not in ("privacy", "likelihood", "calibration")]
    poor, fair = ([check.name.lower() for check in fidelity if check.status == status] for status in (POOR, FAIR))
    if poor:
        headline = f"The synthetic rows differ from real ones, as seen by: {', '.join(poor)}."
    elif fair:
        headline = f"The synthetic rows are close to real ones; differences are seen by: {', '.join(fair)}."
    else:
        headline = "No test here tells the synthetic rows from real ones."
    if any(check.status == POOR for check in checks if check.anchor == "privacy"):
        headline += " Training rows were remembered."
    sentences = [check.words for check in checks if check.anchor == "calibration"]
    sentences += [check.words for check in fidelity if check.status in (POOR, FAIR)]
    sentences += [check.words for check in checks if check.anchor == "privacy"]
    sentences.append(f"{rows:,} real rows were compared; what shows only in more rows than that was not seen.")
    return headline, sentences


def interval(values: Sequence[float], form: str = ".3f") -> str:
    """Format the smallest and the largest of some values.

    Example:
        >>> interval([0.52, 0.48, 0.5])
        '0.480 – 0.520'
    """
    finite = [value for value in values if np.isfinite(value)]
    return f"{min(finite):{form}} – {max(finite):{form}}" if finite else "–"


def rate(excess: float, noise: Sequence[float], slack: float) -> str:
    """Rate a number that is better the lower it is, 0 being perfect.

    Args:
        excess: The number.
        noise: The same number for real rows against other real rows, once per try.
        slack: How far above the mean of `noise` a number is still FAIR.

    Returns:
        GOOD, FAIR or POOR; UNKNOWN where the number or all of `noise` is not finite.
    """
    good, fair = limits(noise, slack)
    if not np.isfinite(excess) or not np.isfinite(good):
        return UNKNOWN
    return GOOD if excess <= good else FAIR if excess <= fair else POOR


def limits(noise: Sequence[float], slack: float) -> tuple[float, float]:
    """Compute the largest numbers that `rate` calls GOOD and FAIR; NaN without a noise floor.

    Example:
        >>> [round(limit, 3) for limit in limits([0.01, 0.02, 0.03], slack=0.1)]
        [0.036, 0.12]
    """
    noise = [value for value in noise if np.isfinite(value)]
    if not noise:
        return float("nan"), float("nan")
    usual = float(np.mean(noise))
    good = max(usual + 2 * float(np.std(noise)), *noise, 1e-9)
    return good, max(good, usual + slack)


def limit_words(noise: Sequence[float], slack: float, form: str = ".3f", shape: str = "{}") -> str:
    """Write the limits of `rate` as text, in terms of the number that the reader sees.

    Args:
        noise: As in `rate`.
        slack: As in `rate`.
        form: Format of a number.
        shape: What the reader sees of an excess x: "{}" for x itself, "0.5 ± {}", or "1 − {}" (with lower limits).

    Example:
        >>> limit_words([0.01, 0.02, 0.03], 0.1), limit_words([0.01, 0.02, 0.03], 0.1, shape="1 − {}")
        ('to 0.036, close to 0.120', 'from 0.964, close from 0.880')
    """
    ends = limits(noise, slack)
    if not np.isfinite(ends[0]):
        return "–"
    if shape == "1 − {}":
        return f"from {1 - ends[0]:{form}}, close from {1 - ends[1]:{form}}"
    good, fair = (shape.format(f"{end:{form}}") for end in ends)
    return f"to {good}, close to {fair}"
