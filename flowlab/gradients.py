"""Estimators of ∇θ E_q[f(z)] for a distribution q(z; θ): the reparameterization trick, and what to do without it.

Each estimator draws n samples and returns a surrogate (n,): its mean is an estimate of E_q[f], and the gradient of that
mean an unbiased estimate of the gradient in θ. Mohamed, Rosca, Figurnov & Mnih 2020, "Monte Carlo gradient estimation
in machine learning", surveys them.

q is anything with torch.distributions' methods: `rsample(shape)` for `pathwise`, `sample(shape)` and `log_prob(z)` for
`score_function`; a `Flow`, `Flow.distribution(context)`, or a distribution of torch.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from flowlab.bases import solve_batch

if TYPE_CHECKING:
    import pandas as pd

Function = Callable[[Tensor], Tensor]
Baseline = Literal["loo", "mean"] | None
ESTIMATORS = ("pathwise", "score", "score, loo", "score, mean")


def pathwise(f: Function, q: Any, n: int = 1) -> Tensor:
    """The pathwise (reparameterization) estimator: z = g(ε; θ), differentiated through f.

    Kingma & Welling 2014, "Auto-encoding variational Bayes", section 2.4. Its variance is that of f'(z) ∂g/∂θ: low
    where f is smooth.

    Args:
        f: Differentiable; n draws (n, *event) to (n,).
        q: A distribution with `rsample`.
        n: Draws.

    Returns:
        f at the draws (n,), with gradients in the parameters of q.

    Raises:
        ValueError: q cannot be reparameterized.

    Example:
        >>> import torch
        >>> mean = torch.tensor(2.0, requires_grad=True)
        >>> pathwise(torch.square, torch.distributions.Normal(mean, 1.0), 10_000).mean().backward()
        >>> abs(float(mean.grad) - 4.0) < 0.1
        True
    """
    if getattr(q, "has_rsample", True) is False:
        raise ValueError(f"{type(q).__name__} has no rsample: use score_function, or implicit where it has a cdf")
    return f(q.rsample((n,)))


def score_function(f: Function, q: Any, n: int = 1, baseline: Baseline = None) -> Tensor:
    """The score function estimator (f(z) − b) ∇θ log q(z): f need not be differentiable, and z may be discrete.

    Williams 1992, "Simple statistical gradient-following algorithms" (REINFORCE). "loo" takes for b the mean of f at
    the other draws (Kool, van Hoof & Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free"): no bias. "mean"
    takes the mean of all: it shrinks the expected gradient by the factor (n − 1) / n, with the least variance.

    Args:
        f: n draws (n, *event) to (n,); not differentiated through z, but with respect to parameters of its own.
        q: A distribution with `sample` and `log_prob`.
        n: Draws, at least two with a baseline.
        baseline: What is subtracted from f.

    Returns:
        The surrogate (n,), whose value is f at the draws.

    Raises:
        ValueError: Unknown baseline, or too few draws for it.
    """
    if baseline not in (None, "loo", "mean"):
        raise ValueError(f"baseline must be None, 'loo' or 'mean', not {baseline!r}")
    if baseline is not None and n < 2:
        raise ValueError(f"baseline={baseline!r} needs at least two draws, not {n}")
    z = q.sample((n,)).detach()
    value, log_q = f(z), q.log_prob(z)
    known = value.detach()
    if baseline == "mean":
        known = known - known.mean(0)
    elif baseline == "loo":
        known = known - (known.sum(0) - known) / (n - 1)
    # The second term is zero in value: it only carries the gradient.
    return value + known * (log_q - log_q.detach())


def implicit(f: Function, q: Any, n: int = 1, cdf: Function | None = None) -> Tensor:
    """Implicit reparameterization: a draw's distribution function stays constant as θ moves, dz = −(∂F/∂z)⁻¹ ∂F/∂θ dθ.

    Figurnov, Mohamed & Mnih 2018, "Implicit reparameterization gradients", equation 5, for distributions without an
    explicit g. Where q has `rsample`, that is used: torch's Gamma, Beta, Dirichlet and Student-t and flowlab's
    `bases.GaussianMixture` have this estimator inside, von Mises has none. Otherwise F is `cdf`, or the `cdf` or
    `conditional_cdf` of q.

    Args:
        f: Differentiable; n draws (n, *event) to (n,).
        q: A distribution with `rsample`, or with `sample` and `cdf`.
        n: Draws.
        cdf: Distribution function of a draw, differentiable in z and in the parameters of q: elementwise for
            independent numbers; for a vector (n, d) the conditional F_i(z_i | z_1 … z_{i−1}), whose Jacobian is lower
            triangular.

    Raises:
        ValueError: There is no distribution function.
    """
    if cdf is None and getattr(q, "has_rsample", False):
        return f(q.rsample((n,)))
    conditional = cdf or getattr(q, "conditional_cdf", None) or getattr(q, "cdf", None)
    if conditional is None:
        raise ValueError(f"{type(q).__name__} has neither rsample nor a cdf: give cdf=…, or use score_function")
    z = q.sample((n,)).detach()
    return f(implicit_sample(z, conditional))


def implicit_sample(z: Tensor, cdf: Function) -> Tensor:
    """Draws z with gradients in the parameters inside `cdf` (see `implicit`); the draws' values are unchanged."""
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        known = cdf(leaf)
    if known.shape != z.shape:
        raise ValueError(f"cdf must return shape {tuple(z.shape)}, one number for each of z, not {tuple(known.shape)}")
    moving = cdf(z.detach())
    change = moving - moving.detach()
    if z.ndim < 2 or z.shape[-1] == 1:
        slope = torch.autograd.grad(known.sum(), leaf)[0]
        return z - change / slope.clamp(min=torch.finfo(z.dtype).tiny ** 0.5)
    rows = [torch.autograd.grad(known[..., i].sum(), leaf, retain_graph=True)[0] for i in range(z.shape[-1])]
    return z - solve_batch(torch.stack(rows, -2), change)


def gradient_report(
    f: Function,
    q: Callable[[], Any],
    parameters: dict[str, Tensor],
    n: int = 100_000,
    estimators: Sequence[str] = ESTIMATORS,
    exact: dict[str, float] | None = None,
) -> "pd.DataFrame":
    """Estimate, standard error and variance per draw of every estimator, side by side.

    Args:
        f: Differentiable; draws (n, *event) to (n,), each draw alone.
        q: A function that builds the distribution from `parameters`, which are expanded to one copy for each draw.
        parameters: Scalars by name; `q` is called with them as keywords.
        n: Draws.
        estimators: Some of `ESTIMATORS`.
        exact: The true gradient in each parameter, if known: the report then has a column of errors in standard errors.

    Returns:
        One row for each parameter and estimator.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> q = lambda mean, scale: Normal(mean, scale)
        >>> parameters = {"mean": torch.tensor(0.0), "scale": torch.tensor(1.0)}
        >>> report = gradient_report(torch.cos, q, parameters, n=1000)
        >>> list(report.columns)
        ['parameter', 'estimator', 'estimate', 'standard error', 'variance']
    """
    import pandas as pd

    unknown = set(estimators) - set(ESTIMATORS)
    if unknown:
        raise ValueError(f"estimators must be among {', '.join(ESTIMATORS)}, not {', '.join(sorted(unknown))}")
    rows = []
    for estimator in estimators:
        copies = {name: p.detach().expand(n).clone().requires_grad_() for name, p in parameters.items()}
        each = q(**copies)
        single = _Single(each)
        if estimator == "pathwise":
            surrogate = pathwise(f, single, n)
        else:
            baseline: Any = {"score": None, "score, loo": "loo", "score, mean": "mean"}[estimator]
            surrogate = score_function(f, single, n, baseline)
        gradients = torch.autograd.grad(surrogate.sum(), list(copies.values()))
        for name, gradient in zip(copies, gradients, strict=True):
            g = gradient.double()
            error = float(g.std()) / math.sqrt(n)
            row = {
                "parameter": name,
                "estimator": estimator,
                "estimate": float(g.mean()),
                "standard error": error,
                "variance": float(g.var()),
            }
            if exact is not None:
                row["error in standard errors"] = (float(g.mean()) - exact[name]) / max(error, 1e-300)
            rows.append(row)
    return pd.DataFrame(rows)


def plot_report(report: "pd.DataFrame", axis: Any = None, title: str = "") -> Any:
    """The variances of a `gradient_report` as bars on a logarithmic axis; returns the matplotlib axis."""
    import matplotlib.pyplot as plt

    if axis is None:
        _, axis = plt.subplots(figsize=(6, 3.5))
    table = report.pivot(index="parameter", columns="estimator", values="variance")
    table = table[[name for name in ESTIMATORS if name in table]].loc[report["parameter"].unique()]
    table.plot.bar(ax=axis, rot=0, logy=True)
    axis.set_title(title)
    axis.set_xlabel("")
    axis.set_ylabel("variance of one draw's gradient")
    return axis


class _Single:
    """A batch of n distributions, one for each draw, seen as a distribution from which n draws are taken."""

    def __init__(self, each: Distribution) -> None:
        self.each = each
        self.has_rsample = each.has_rsample

    def rsample(self, shape: Sequence[int]) -> Tensor:
        return self.each.rsample()

    def sample(self, shape: Sequence[int]) -> Tensor:
        return self.each.sample()

    def log_prob(self, z: Tensor) -> Tensor:
        return self.each.log_prob(z)
