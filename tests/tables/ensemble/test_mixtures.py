"""Gaussian mixtures are as near to known truths as their rows allow, however collinear the columns."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from flowlab.tables.ensemble.mixtures import REGULARISATION, choose_mixture

FEATURES, FACTORS = 16, 3


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def collinear(rng, n, noise, clusters=1):
    """Rows of noisy linear functions of few factors, in equal clusters, and the function that gives their true
    log-density."""
    loadings = rng.normal(size=(clusters, FACTORS, FEATURES))
    means = np.einsum("ck,ckd->cd", 2 * rng.normal(size=(clusters, FACTORS)), loadings)
    which = rng.integers(clusters, size=n)
    x = means[which] + np.einsum("nk,nkd->nd", rng.normal(size=(n, FACTORS)), loadings[which])
    normals = [
        multivariate_normal(mean, loading.T @ loading + noise**2 * np.eye(FEATURES))
        for mean, loading in zip(means, loadings, strict=True)
    ]

    def log_prob(rows):
        return logsumexp([normal.logpdf(rows) for normal in normals], axis=0) - np.log(clusters)

    return x + noise * rng.normal(size=x.shape), log_prob


def split(x):
    """Training, held-out and test rows: three fifths, a fifth and a fifth."""
    return np.split(x, [3 * len(x) // 5, 4 * len(x) // 5])


def chosen(train, held_out, weight=None, most=64, seed=0):
    return choose_mixture(train, held_out, np.ones(len(held_out)) if weight is None else weight, most, seed)


def log_prob(mixture, rows):
    with torch.no_grad():
        return mixture.log_prob(torch.from_numpy(rows)).numpy()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize(("clusters", "gap"), [(1, 0.15), (4, 0.5)])
def test_nearly_collinear_rows_score_close_to_the_truth(rng, noise, clusters, gap):
    # With k parameters and n rows the maximum of the likelihood is k / 2n behind the truth: 0.06 nats for one Gaussian
    # of 16 columns and 1,200 rows, 0.25 for four.
    x, truth = collinear(rng, 2_000, noise, clusters)
    train, held_out, test = split(x)
    mixture = chosen(train, held_out)
    assert (truth(test) - log_prob(mixture, test)).mean() < gap


def test_columns_that_are_not_collinear_lose_nothing(rng):
    x = rng.normal(size=(2_000, 5))
    train, held_out, test = split(x)
    loss = multivariate_normal(np.zeros(5)).logpdf(test) - log_prob(chosen(train, held_out), test)
    assert loss.mean() < 0.03  # k / 2n is 0.008


def test_the_choice_is_no_worse_than_any_fixed_regularisation_on_real_rows():
    x = load_breast_cancer().data
    x = np.random.default_rng(0).permutation((x - x.mean(0)) / x.std(0))
    train, held_out, _ = split(x)
    fixed = [
        GaussianMixture(k, reg_covar=value, random_state=0).fit(train).score(held_out)
        for k in (1, 2, 4)
        for value in (1e-2, 1e-3, 1e-5)
    ]
    assert log_prob(chosen(train, held_out), held_out).mean() > max(fixed) - 0.3


def test_rows_that_are_held_out_and_trained_on_have_no_say(rng):
    # Two distant rows are in both parts: a component that shrinks onto them would be worth tens of nats per such row.
    x = rng.normal(size=(700, 8))
    x[:2] = 30 * rng.normal(size=(1, 8))
    train, held_out = x[:500], x[500:]
    with_copies = chosen(train, np.concatenate([held_out, x[:2], x[:2]]))
    assert same(with_copies, chosen(train, held_out))
    assert same(chosen(train, train[:50]), chosen(train, held_out[:0]))
    assert chosen(train, train[:50]).components == 1


def test_repeated_values_and_constant_columns_have_finite_scores(rng):
    x = rng.normal(size=(600, 3))
    x[:200, 0] = 0.5
    x = np.column_stack([rng.permutation(x), np.full(600, 7.0)])
    train, held_out, test = split(x)
    mixture = chosen(train, held_out)
    assert np.isfinite(log_prob(mixture, test)).all()
    assert np.isfinite(log_prob(mixture, test + 100)).all()
    # No component is narrower than the least regularisation, in standard deviations of the column.
    narrowest = mixture.scale_tril().square().sum(-1).sqrt().min(0).values.detach().numpy()
    assert (narrowest[:3] >= 0.999 * min(REGULARISATION) ** 0.5 * train[:, :3].std(0)).all()


def test_exact_relations_and_distant_rows_have_finite_scores(rng):
    x = rng.normal(size=(1_000, 4))
    x = np.column_stack([x, x[:, 0] + x[:, 1], x[:, 2], 1e6 * x[:, 3]])
    x[0] *= 1e8
    for rows in (x, x[1:], x[1:] * 1e-200):
        train, held_out, test = split(rows)
        assert np.isfinite(log_prob(chosen(train, held_out), test)).all()


def test_no_regularisation_is_lost_in_rounding(rng, monkeypatch):
    monkeypatch.setattr("flowlab.tables.ensemble.mixtures.REGULARISATION", tuple(10.0**-k for k in range(1, 30)))
    x = rng.normal(size=(1_000, 2)) @ rng.normal(size=(2, 12))
    x[0] *= 1e8
    train, held_out, test = split(x)
    assert np.isfinite(log_prob(chosen(train, held_out), test)).all()


def test_one_column(rng):
    # Two narrow peaks, 1e-3 and 1 wide.
    x = np.where(rng.random(2_000) < 0.5, 1e-3 * rng.normal(size=2_000), 5 + rng.normal(size=2_000))
    train, held_out, test = split(x[:, None])
    truth = logsumexp([multivariate_normal(m, s**2).logpdf(test) for m, s in ((0, 1e-3), (5, 1))], axis=0) - np.log(2)
    assert (truth - log_prob(chosen(train, held_out), test)).mean() < 0.1


def test_a_held_out_row_counts_as_often_as_its_weight_says(rng):
    x, _ = collinear(rng, 900, 1e-2, 4)
    train, held_out = x[:600], x[600:]
    weight = rng.integers(0, 3, len(held_out)).astype(float)
    weighted = chosen(train, held_out, weight)
    assert same(weighted, chosen(train, np.repeat(held_out, weight.astype(int), axis=0)))
    assert same(chosen(train, held_out, np.zeros(len(held_out))), chosen(train, held_out[:0]))


def test_components_are_not_more_than_asked_for_and_the_seed_decides(rng):
    x, _ = collinear(rng, 900, 1e-2, 4)
    train, held_out, _ = split(x)
    assert chosen(train, held_out, most=2).components <= 2
    assert same(chosen(train, held_out, seed=3), chosen(train, held_out, seed=3))


def test_nothing_warns_but_of_steps_that_ran_out(rng):
    x, _ = collinear(rng, 400, 1e-3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        chosen(x[:300], x[300:])
