"""What a report finds: every metric beside its noise floor, and what that means in plain words, never better than the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flowlab.report import likelihood, metrics
from flowlab.report.columns import Array, Column, align
from flowlab.report.door import check_rows
from flowlab.training.fitting import progress_bar

ROWS = 5000  # of each table that metrics look at; more would only take longer
LEARNT = 10_000  # training rows of train-on-synthetic
BASELINE_ROWS = 20_000  # training rows of the baselines of log-likelihood
REPEATS = 5  # pairs of real tables behind a noise floor
TRANSFER_REPEATS = 3  # the same of train-on-synthetic
TRIFLE = 0.002  # loss of train-on-synthetic that nobody minds

GOOD, FAIR, POOR, UNKNOWN = "good", "fair", "poor", "unknown"
READINGS = {  # what a status means, by section
    "likelihood": {GOOD: "better", FAIR: "no better", POOR: "worse"},
    "calibration": {GOOD: "nothing found", FAIR: "difference found"},
    "privacy": {GOOD: "as expected", FAIR: "slightly high", POOR: "too high"},
}
FIDELITY = {GOOD: "like real rows", FAIR: "close", POOR: "differs"}


class Fidelity(NamedTuple):
    """What one table looks like beside another."""

    auc: float
    distances: pd.DataFrame
    pairs: float
    similarity: pd.DataFrame
    dependence: tuple[pd.DataFrame, pd.DataFrame]
    patterns: float
    validity: pd.DataFrame


class Check(NamedTuple):
    """One line of the summary.

    Attributes:
        name: What is looked at.
        anchor: The section that says more.
        value: The number, as text.
        floor: What real rows score, as text.
        better: Which way is better.
        status: GOOD, FAIR, POOR or UNKNOWN.
        words: What it means.
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


@dataclass
class Findings:
    """Everything a report shows about rows; tables are cut to what was looked at."""

    train: pd.DataFrame
    test: pd.DataFrame
    synthetic: pd.DataFrame
    columns: list[Column]
    fidelity: Fidelity
    floor: list[Fidelity]
    floor_rows: int
    likelihood: pd.DataFrame
    transfer: metrics.Transfer | None
    transfer_floor: list[float]
    privacy: metrics.Privacy
    missing: pd.DataFrame
    checks: list[Check]


def classifier_count(train: pd.DataFrame) -> int:
    """How many classifiers and regressions `findings` fits: nearly all of its time."""
    return metrics.FOLDS * (REPEATS + 1) + (2 * (TRANSFER_REPEATS + 1) if train.shape[1] > 1 else 0)


def findings(
    model: Any,
    train: pd.DataFrame,
    test: pd.DataFrame,
    synthetic: pd.DataFrame,
    seed: int = 0,
    target: Any = None,
    bar: Any = None,
) -> Findings:
    """Compute every metric and its noise floor.

    Args:
        model: The fitted model.
        train: Rows that it was fitted to.
        test: Rows that it has not seen.
        synthetic: Rows that it drew.
        seed: Decides which rows are looked at, folds and noise floors.
        target: The column that trees predict; chosen if None.
        bar: A progress bar of `classifier_count` steps.

    Raises:
        ValueError: A table has fewer than twenty rows.
    """
    check_rows({"train": train, "test": test, "synthetic": synthetic})
    bar = progress_bar(0, False) if bar is None else bar
    bar.set_description("report: baselines")
    test = _at_most(test, ROWS, seed)
    scores = likelihood.log_likelihoods(model, _at_most(train, BASELINE_ROWS, seed), test, seed)
    names = [name for name in train.columns if name in synthetic.columns]  # the model may leave a column out
    train, test, synthetic = _at_most(train, LEARNT, seed)[names], test[names], _at_most(synthetic, LEARNT, seed)
    size = min(len(test), len(synthetic), ROWS)
    real, drawn = _at_most(test, size, seed), _at_most(synthetic, size, seed)
    pool = pd.concat([train, test], ignore_index=True)
    bar.set_description("report: classifiers")

    def fidelity(one: pd.DataFrame, other: pd.DataFrame) -> Fidelity:
        found = _fidelity(one, other)
        bar.update(metrics.FOLDS)
        return found

    floor = metrics.real_against_real(fidelity, pool, size, REPEATS, seed)
    transfer, transfer_floor = _transfer(train, test, synthetic, target, seed, bar)
    found = Findings(
        train=train,
        test=test,
        synthetic=synthetic,
        columns=align(real, drawn),
        fidelity=fidelity(real, drawn),
        floor=floor,
        floor_rows=min(size, len(pool) // 2),
        likelihood=likelihood.comparison(scores),
        transfer=transfer,
        transfer_floor=transfer_floor,
        privacy=metrics.privacy(train, test, synthetic, seed=seed),
        missing=metrics.missing_rates(test, synthetic),
        checks=[],
    )
    found.checks = [
        _likelihood_check(found),
        _calibration_check(model.calibration_),
        *_fidelity_checks(found),
        _transfer_check(found),
        *_privacy_checks(found),
    ]
    return found


def verdict(checks: Sequence[Check], rows: int) -> tuple[str, list[str]]:
    """A headline on the rows and a few sentences: as good as the worst check allows. What the likelihood check says stands by itself.

    Args:
        checks: The checks.
        rows: Real rows that synthetic ones were compared with: fewer see less.
    """
    looks = [check for check in checks if check.anchor not in ("privacy", "likelihood", "calibration")]
    poor, fair = ([check.name.lower() for check in looks if check.status == status] for status in (POOR, FAIR))
    if poor:
        headline = f"The synthetic rows differ from real ones, as seen by: {', '.join(poor)}."
    elif fair:
        headline = f"The synthetic rows are close to real ones; differences are seen by: {', '.join(fair)}."
    else:
        headline = "No test here tells the synthetic rows from real ones."
    if any(check.status == POOR for check in checks if check.anchor == "privacy"):
        headline += " Training rows were remembered."
    sentences = [check.words for check in checks if check.anchor == "calibration"]
    sentences += [check.words for check in looks if check.status in (POOR, FAIR)]
    sentences += [check.words for check in checks if check.anchor == "privacy"]
    sentences.append(f"{rows:,} real rows were compared; what shows only in more rows than that was not seen.")
    return headline, sentences


def interval(values: Sequence[float], form: str = ".3f") -> str:
    """Smallest and largest value, as text.

    Example:
        >>> interval([0.52, 0.48, 0.5])
        '0.480 – 0.520'
    """
    finite = [value for value in values if np.isfinite(value)]
    return f"{min(finite):{form}} – {max(finite):{form}}" if finite else "–"


def judge(excess: float, noise: Sequence[float], slack: float) -> str:
    """Status of a number that is better the lower it is, 0 being perfect.

    Args:
        excess: The number.
        noise: What it is of real rows.
        slack: How far above those a number is still close.
    """
    good, fair = limits(noise, slack)
    if not np.isfinite(excess) or not np.isfinite(good):
        return UNKNOWN
    return GOOD if excess <= good else FAIR if excess <= fair else POOR


def limits(noise: Sequence[float], slack: float) -> tuple[float, float]:
    """Up to where a number that is better the lower it is reads GOOD, and up to where FAIR; NaN without a noise floor.

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
    """The limits as text; `shape` says what they are of: "{}" at most, "0.5 ± {}", or "1 − {}" and so at least.

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


def dependence_difference(fidelity: Fidelity) -> float:
    """Mean absolute difference of the dependence of two tables, over pairs of columns."""
    pairs = np.triu_indices(len(fidelity.dependence[0]), 1)
    gap = np.abs(fidelity.dependence[0].to_numpy() - fidelity.dependence[1].to_numpy())[pairs]
    return float(gap.mean()) if len(gap) else float("nan")


def column_limits(floor: Sequence[Fidelity]) -> Array:
    """Each column's distance that real rows rarely exceed: mean and three standard deviations of the noise floor."""
    distances = np.array([one.distances["distance"] for one in floor])
    return distances.mean(axis=0) + 3 * distances.std(axis=0)


def _at_most(table: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    return table if len(table) <= rows else table.sample(rows, random_state=seed)


def _fidelity(real: pd.DataFrame, synthetic: pd.DataFrame) -> Fidelity:
    pairs, similarity = metrics.pair_similarity(real, synthetic)
    return Fidelity(
        auc=metrics.classifier_auc(real, synthetic),
        distances=metrics.column_distances(real, synthetic),
        pairs=pairs,
        similarity=similarity,
        dependence=(metrics.dependence(real), metrics.dependence(synthetic, like=real)),
        patterns=metrics.missing_pattern_distance(real, synthetic),
        validity=metrics.validity(real, synthetic),
    )


def _transfer(
    train: pd.DataFrame, test: pd.DataFrame, synthetic: pd.DataFrame, target: Any, seed: int, bar: Any
) -> tuple[metrics.Transfer | None, list[float]]:
    """Scores of trees, and the ratios of real rows to as many other real rows."""
    if train.shape[1] < 2:
        return None, []
    target = metrics.choose_target(train) if target is None else target
    if not test[target].notna().any():
        return None, []
    size = min(len(train), len(synthetic))

    def score(one: pd.DataFrame, other: pd.DataFrame) -> metrics.Transfer:
        found = metrics.train_on_synthetic(one, test, other, target, seed)
        bar.update(2)
        return found

    found = score(_at_most(train, size, seed), _at_most(synthetic, size, seed))
    floor = metrics.real_against_real(score, train, repeats=TRANSFER_REPEATS, seed=seed)
    return found, [one.ratio for one in floor]


def _likelihood_check(found: Findings) -> Check:
    table = found.likelihood
    own, others = table.iloc[0], table.iloc[1:]
    best = others["mean"].idxmax()
    gain, error = float(others.loc[best, "gain"]), float(others.loc[best, "gain_error"])
    impossible = int(own["impossible"])
    if impossible:
        status, words = POOR, f"The model gives {impossible} of the held-out rows probability zero."
    elif gain > 2 * error:
        status = GOOD
        words = f"The model is better than the best baseline: held-out rows are {gain:.2f} ± {error:.2f} nats likelier than under “{best}”."
    elif gain > -2 * error:
        status = FAIR
        words = f"The model is no better than the best baseline: held-out rows are about as likely under “{best}” ({gain:+.2f} ± {error:.2f} nats)."
    else:
        status = POOR
        words = f"The model is worse than the best baseline: held-out rows are {-gain:.2f} ± {error:.2f} nats likelier under “{best}”."
    return Check(
        "Log-likelihood",
        "likelihood",
        f"{own['mean']:.3f} ± {own['standard_error']:.3f}",
        f"{best} {others.loc[best, 'mean']:.3f}",
        "higher",
        status,
        words,
        "gain beyond 2 standard errors",
    )


def _calibration_check(tests: pd.DataFrame) -> Check:
    better = "0.01 or more"
    if not len(tests):
        words = "There is no test of fit, for want of held-out rows."
        return Check("Calibration", "calibration", "–", "–", better, UNKNOWN, words)
    smallest = min(float(tests["p_value"].min()) * len(tests), 1.0)
    seen = smallest < 0.01
    words = (
        f"Tests of fit on the model's own held-out rows see that it is not exact ({tests['p_value'].idxmin()})."
        if seen
        else "Tests of fit on the model's own held-out rows find nothing."
    )
    value = f"p = {smallest:.3f}" if smallest >= 0.0005 else "p < 0.0005"
    floor = f"smallest of {len(tests)}, corrected"
    return Check("Calibration", "calibration", value, floor, better, FAIR if seen else GOOD, words, "from 0.01")


def _fidelity_checks(found: Findings) -> list[Check]:
    own, floor = found.fidelity, found.floor
    real_auc = [one.auc for one in floor]
    off = [abs(auc - 0.5) for auc in real_auc]
    status = judge(abs(own.auc - 0.5), off, 0.1)
    words = {
        GOOD: "A classifier cannot tell synthetic rows from real ones better than real rows from each other",
        FAIR: "A classifier tells synthetic rows from real ones a little better than chance",
        POOR: "A classifier tells synthetic rows from real ones",
    }[status]
    words, ends = f"{words} (AUC {own.auc:.2f}).", limit_words(off, 0.1, shape="0.5 ± {}")
    checks = [_check("Classifier", "classifier", own.auc, real_auc, "0.5", status, words, ends)]

    distance, noise = own.distances["distance"], [float(one.distances["distance"].mean()) for one in floor]
    far = distance.to_numpy() > column_limits(floor)
    words = f"{int(far.sum())} of {len(far)} columns are further from the real ones than chance explains"
    words += f"; furthest is {distance.idxmax()} ({distance.max():.3f})." if far.any() else "."
    mean = float(distance.mean())
    status, ends = judge(mean, noise, 0.03), limit_words(noise, 0.03)
    checks.append(_check("Columns", "columns", mean, noise, "lower", status, words, ends))

    if len(distance) > 1:
        pairs = [one.pairs for one in floor]
        words = f"Joint tables of two columns overlap by {own.pairs:.1%} on average, those of real rows by {np.mean(pairs):.1%}."
        off = [1 - value for value in pairs]
        status, ends = judge(1 - own.pairs, off, 0.02), limit_words(off, 0.02, shape="1 − {}")
        checks.append(_check("Pairs of columns", "pairs", own.pairs, pairs, "higher", status, words, ends))
        gap, gaps = dependence_difference(own), [dependence_difference(one) for one in floor]
        words = f"Dependence of two columns is off by {gap:.3f} on average, between real rows by {np.mean(gaps):.3f}."
        status, ends = judge(gap, gaps, 0.03), limit_words(gaps, 0.03)
        checks.append(_check("Dependence", "pairs", gap, gaps, "lower", status, words, ends))

    if found.missing.to_numpy().any():
        patterns = [one.patterns for one in floor]
        words = f"Patterns of missing cells are {own.patterns:.3f} apart, those of real rows {np.mean(patterns):.3f}."
        status, ends = judge(own.patterns, patterns, 0.03), limit_words(patterns, 0.03)
        checks.append(_check("Missing cells", "missing", own.patterns, patterns, "lower", status, words, ends))
    return [*checks, *_validity_checks(found)]


def _validity_checks(found: Findings) -> list[Check]:
    own, floor = found.fidelity.validity, [one.validity for one in found.floor]

    def worst(table: pd.DataFrame) -> float:
        return float(np.nanmax([0.0, *table[["unknown_categories", "fractions"]].to_numpy().ravel()]))

    def beyond(table: pd.DataFrame) -> float:
        return float(table["out_of_range"].fillna(0).mean())

    wrong = [name for name, same in own["same_dtype"].items() if not same]
    noise = [worst(one) for one in floor]
    status, ends = judge(worst(own), noise, 0.02), limit_words(noise, 0.02, ".2%")
    words = f"At most {worst(own):.1%} of a column's cells are unknown categories or fractions of whole numbers."
    if wrong:
        status = POOR
        words += f" Of another type than the real ones: {', '.join(map(str, wrong[:5]))}."
    impossible = _check("Valid cells", "validity", worst(own), noise, "lower", status, words, ends, ".2%")
    share, noise = beyond(own), [beyond(one) for one in floor]
    words = f"{share:.2%} of cells lie beyond the extremes of the real ones, of other real rows {np.mean(noise):.2%}."
    status, ends = judge(share, noise, 0.005), limit_words(noise, 0.005, ".2%")
    range_check = _check("Range", "validity", share, noise, "like real rows", status, words, ends, ".2%")
    return [impossible, range_check]


def _transfer_check(found: Findings) -> Check:
    name, better = "Train on synthetic", "1"
    transfer = found.transfer
    if transfer is None or not np.isfinite(transfer.ratio):
        words = "There is no column that real rows teach to predict."
        return Check(name, "transfer", "–", "–", better, UNKNOWN, words)
    noise = [abs(ratio - 1) for ratio in found.transfer_floor]
    status = judge(max(1 - transfer.ratio - TRIFLE, 0.0), noise, 0.1)
    ends = limit_words([off + TRIFLE for off in noise], 0.1, shape="1 − {}")
    words = f"Trees that learn {transfer.target} from synthetic rows reach {transfer.ratio:.1%} of the {transfer.measure} of those that learn from real ones."
    return _check(name, "transfer", transfer.ratio, found.transfer_floor, better, status, words, ends)


def _privacy_checks(found: Findings) -> list[Check]:
    p = found.privacy
    rows = len(found.synthetic)
    error = np.sqrt(p.copies_held_out * (1 - p.copies_held_out) / len(found.test) + 1 / (rows * len(found.test)))
    error = np.sqrt(error**2 + p.copies * (1 - p.copies) / rows)
    copied = p.copies > p.copies_held_out + 3 * error
    words = f"{p.copies:.2%} of synthetic rows equal a training row, of held-out rows {p.copies_held_out:.2%}"
    words += ": rows were copied." if copied else "."
    status = POOR if copied else GOOD
    value, floor, ends = f"{p.copies:.2%}", f"{p.copies_held_out:.2%}", f"to {p.copies_held_out + 3 * error:.2%}"
    copies = Check("Copies", "privacy", value, floor, "like held-out rows", status, words, ends)
    z = (p.nearer_to_train - 0.5) / p.standard_error if p.standard_error > 0 else 0.0
    status = GOOD if z <= 2 else FAIR if p.nearer_to_train <= 0.55 else POOR
    found_words = {
        GOOD: "as is expected of new rows; a measurement, no guarantee of privacy",
        FAIR: "a little more than is expected of new rows",
        POOR: "training rows were remembered: do not pass these rows off as anonymous",
    }[status]
    words = f"{p.nearer_to_train:.1%} ± {p.standard_error:.1%} of synthetic rows are nearer to training than to held-out rows, {found_words}."
    value = f"{p.nearer_to_train:.3f} ± {p.standard_error:.3f}"
    ends = f"to {0.5 + 2 * p.standard_error:.3f}, slightly high to 0.550"
    return [copies, Check("Nearest rows", "privacy", value, "0.5", "0.5 or less", status, words, ends)]


def _check(
    name: str,
    anchor: str,
    value: float,
    floor: Sequence[float],
    better: str,
    status: str,
    words: str,
    limits: str,
    form: str = ".3f",
) -> Check:
    return Check(name, anchor, f"{value:{form}}", interval(floor, form), better, status, words, limits)
