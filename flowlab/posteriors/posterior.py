"""`FlowPosterior`: a fitted variational posterior over the user's parameters, with its diagnostics."""

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowlab.distribution import Estimate
from flowlab.flow import Flow
from flowlab.hints import check_arguments
from flowlab.mixture import FlowMixture
from flowlab.posteriors.diagnostics import Diagnostics, diagnose
from flowlab.posteriors.psis import KHAT
from flowlab.posteriors.space import Space, Value
from flowlab.posteriors.sparing import sparing
from flowlab.posteriors.survey import QUANTILES, draw_survey, weigh
from flowlab.posteriors.target import PosteriorError, Target

if TYPE_CHECKING:
    import pandas as pd

AMPLE = 3  # effective draws for each resampled one, above which resampling is without replacement


class FlowPosterior(nn.Module):
    """An approximate posterior: a flow over an unconstrained vector, and the map from there to named parameters.

    A point is a tensor (*batch, features) where the posterior was fitted with `features`, else a dict of tensors
    (*batch, *shape). Densities are those of the user's space, in nats. `fit_posterior` makes it. No file holds the
    log-density: after `flowlab.load`, `attach` sets it again.

    Attributes:
        flow: The distribution of the unconstrained vector.
        space: The parameters.
        target: The log-density it was fitted to; None after loading.
        restart_gap: Nats between the best of the optimiser's starts and their median.
        evaluations: Evaluations of the log-density during the fit.
        prefit_seconds: CPU seconds of the process until the flow's training began, or the fit ended without.
        history: ELBO along the fit: dicts of stage, step and elbo (nats).
    """

    def __init__(
        self,
        flow: Flow | FlowMixture,
        space: Space,
        target: Target | None = None,
        *,
        restart_gap: float = float("nan"),
        evaluations: int = 0,
        prefit_seconds: float = float("nan"),
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.flow, self.space, self.target = flow, space, target
        self.restart_gap, self.evaluations = restart_gap, evaluations
        self.prefit_seconds = prefit_seconds
        self.history = [] if history is None else history

    def rsample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Value:
        """Draws (*shape, features), or a dict of (*shape, *own shape), differentiable in the flow's parameters."""
        return self.space.constrain(self.flow.rsample(shape, generator=generator))[0]

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Value:
        """Draws without a gradient."""
        return self.rsample(shape, generator)

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> tuple[Value, Tensor]:
        """Draws and their log-densities (*shape,), in one pass, both differentiable."""
        z, log_q = self.flow.rsample_and_log_prob(shape, generator=generator)
        value, log_det = self.space.constrain(z)
        return value, log_q - log_det

    def log_prob(self, value: Value) -> Tensor:
        """Log-density (*batch,) of points in the user's space, in nats; −inf outside of the support.

        Raises:
            ValueError: A name is missing or unknown, or a shape does not fit.
        """
        z, log_det = self.space.unconstrain(value)
        inside = ~torch.isnan(z).any(-1)
        z = torch.where(inside.unsqueeze(-1), z, 0).to(self.flow.dtype)
        return torch.where(inside, self.flow.log_prob(z) - log_det, -torch.inf)

    def forward(self, shape: Sequence[int] = ()) -> Value:
        """The same as `rsample`."""
        return self.rsample(shape)

    def attach(self, log_prob: Callable[[Any], Tensor], dtype: torch.dtype = torch.float64) -> "FlowPosterior":
        """Set the log-density, which a loaded posterior lacks; returns the posterior."""
        self.target = Target(log_prob, self.space, dtype)
        return self

    def elbo(self, n: int = 10_000, random_state: int = 0) -> Estimate[float]:
        """The evidence lower bound with its standard error, in nats, from n plain draws with a finite log-density."""
        _, log_w = weigh(self.flow, self._target(), n, self._generator(random_state))
        log_w = log_w[torch.isfinite(log_w)]
        return Estimate(float(log_w.mean()), float(log_w.std()) / max(len(log_w), 1) ** 0.5)

    def diagnostics(self, n: int = 10_000, random_state: int = 0) -> Diagnostics:
        """How good the fit is: k-hat, effective sample size, evidence, missed modes, and a verdict.

        "good": plain draws can be used as they are. "usable after resampling": take draws from `resample`. "do not
        trust": neither; `reasons` say why. Besides n plain draws, n come from a defensive proposal with much wider and
        narrower copies of the fit, which reaches mass that the fit does not. No finite search can rule out a mode that
        nothing points to, and `reasons` say that, too: of two equal modes in five dimensions, one twenty times
        narrower than the other, the narrow one is not found, and the verdict is "good"
        (benchmarks/results/posteriors.md). It runs in one thread where the log-density is quick.
        """
        target, generator = self._target(), self._generator(random_state)
        with sparing(target, generator.device):
            return diagnose(self.flow, target, n, generator, self.restart_gap)

    @torch.no_grad()
    def resample(self, n: int, random_state: int = 0) -> Value:
        """n draws, corrected by Pareto-smoothed importance resampling.

        They are resampled from ten times as many draws of the defensive proposal (at least 10,000), with probabilities
        given by the weights: without replacement where there are three effective draws or more for each, else with
        replacement, since a large share of the draws, taken without replacement, no longer has the weights'
        distribution.

        Raises:
            PosteriorError: The weights cannot be relied on: k-hat is 0.7 or more.
        """
        generator = self._generator(random_state)
        with sparing(self._target(), generator.device):
            survey = draw_survey(self.flow, self._target(), max(10 * n, 10_000), generator)
        z, smoothed = survey.z, survey.weights
        if not smoothed.reliable:
            raise PosteriorError(
                f"importance weights cannot correct this fit: k-hat is {smoothed.khat:.2f}, {KHAT} is the limit. "
                "See diagnostics()"
            )
        if smoothed.ess * len(z) > AMPLE * n:
            # Gumbel top-k: the n largest log-weights plus Gumbel noise are a sample without replacement.
            noise = -torch.empty_like(smoothed.log_weights).exponential_(generator=generator).log()
            chosen = (smoothed.log_weights + noise).topk(n).indices
            chosen = chosen[torch.randperm(n, generator=generator, device=chosen.device)]
        else:
            chosen = torch.multinomial(smoothed.log_weights.exp(), n, replacement=True, generator=generator)
        return self.space.constrain(z[chosen])[0]

    def summary(self, n: int = 10_000, *, resample: bool = False, random_state: int = 0) -> "pd.DataFrame":
        """Mean, standard deviation and quantiles of every parameter from n draws, which `resample` corrects if true."""
        import pandas as pd

        value = self.resample(n, random_state) if resample else self.sample((n,), self._generator(random_state))
        columns = self.space.columns(value).double()
        table = pd.DataFrame({"mean": columns.mean(0).numpy(), "sd": columns.std(0).numpy()}, index=self.space.labels)
        for q in QUANTILES:
            table[f"{q:.0%}"] = columns.quantile(q, dim=0).numpy()
        return table

    def to_arviz(self, n: int = 4_000, *, resample: bool = False, random_state: int = 0) -> Any:
        """Draws as ArviZ's `InferenceData`, or its `DataTree` from ArviZ 1 on: one chain, for its summaries and plots.

        The draws are independent: ArviZ's R-hat and its other measures of mixing say nothing. Use `diagnostics()`
        instead.

        Raises:
            ImportError: ArviZ is not installed.
            PosteriorError: With `resample`, as there.
        """
        try:
            import arviz
        except ImportError as error:
            raise ImportError('to_arviz needs ArviZ: pip install arviz, or "flowlab[arviz]"') from error
        value = self.resample(n, random_state) if resample else self.sample((n,), self._generator(random_state))
        named = value if isinstance(value, dict) else {"z": value}
        chain = {name: x.unsqueeze(0).numpy() for name, x in named.items()}
        if arviz.__version__.startswith("0."):
            return arviz.from_dict(posterior=chain)
        return arviz.from_dict({"posterior": chain})

    def plot_pairs(self, names: Sequence[str] | None = None, n: int = 2_000, random_state: int = 0) -> Any:
        """A matplotlib figure of draws of every pair of parameters, by default of the first eight, with histograms."""
        import matplotlib.pyplot as plt

        labels = list(self.space.labels[:8] if names is None else names)
        unknown = set(labels) - set(self.space.labels)
        if unknown:
            raise ValueError(f"no parameter {', '.join(sorted(unknown))}; there are {', '.join(self.space.labels)}")
        columns = self.space.columns(self.sample((n,), self._generator(random_state)))
        x = {label: columns[:, self.space.labels.index(label)].numpy() for label in labels}
        size = len(labels)
        figure, axes = plt.subplots(size, size, figsize=(1.8 * size, 1.8 * size), squeeze=False)
        for i, row in enumerate(labels):
            for j, column in enumerate(labels):
                axis = axes[i][j]
                if i == j:
                    axis.hist(x[row], bins=40, color="tab:blue")
                elif i > j:
                    axis.plot(x[column], x[row], ".", markersize=1, alpha=0.4, color="tab:blue")
                else:
                    axis.axis("off")
                if i == size - 1:
                    axis.set_xlabel(column)
                if j == 0:
                    axis.set_ylabel(row)
        figure.tight_layout()
        return figure

    def plot_elbo(self) -> Any:
        """A matplotlib figure of the evidence lower bound along the fit, stage by stage."""
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(6, 3.5))
        start = 0
        for stage in dict.fromkeys(record["stage"] for record in self.history):
            records = [record for record in self.history if record["stage"] == stage]
            axis.plot([start + r["step"] for r in records], [r["elbo"] for r in records], label=stage)
            start += records[-1]["step"]
        axis.set_xlabel("step")
        axis.set_ylabel("ELBO (nats)")
        if self.history:
            axis.legend()
        figure.tight_layout()
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior, without its log-density, to a file that `flowlab.load` reads."""
        from flowlab.files import save

        save(self, path)

    def _to_file(self) -> tuple[dict[str, Any], nn.Module]:
        header = {
            "kind": "FlowPosterior",
            "space": self.space.describe(),
            "evaluations": self.evaluations,
            "restart_gap": _none_for_nan(self.restart_gap),
            "prefit_seconds": _none_for_nan(self.prefit_seconds),
            "history": history_to_json(self.history),
        }
        return header, self.flow

    @classmethod
    def _from_file(cls, header: dict[str, Any], module: nn.Module) -> "FlowPosterior":
        if not isinstance(module, Flow | FlowMixture) or module.context_features:
            raise ValueError("a posterior is a flow without a context")
        space = Space.from_description(header["space"], module.features)
        number = float | None
        hints = {"evaluations": int, "restart_gap": number, "prefit_seconds": number}
        check_arguments("FlowPosterior", {name: header[name] for name in hints}, hints)
        return cls(
            module,
            space,
            evaluations=header["evaluations"],
            restart_gap=_nan_for_none(header["restart_gap"]),
            prefit_seconds=_nan_for_none(header["prefit_seconds"]),
            history=history_from_json(header["history"]),
        ).train(False)

    def _target(self) -> Target:
        if self.target is None:
            raise PosteriorError("a loaded posterior does not know its log-density: give it by .attach(log_prob)")
        return self.target

    def _generator(self, random_state: int) -> torch.Generator:
        device = next((t.device for t in (*self.flow.parameters(), *self.flow.buffers())), torch.device("cpu"))
        return torch.Generator(device).manual_seed(random_state)

    def extra_repr(self) -> str:
        return ", ".join(self.space.labels[:6]) + (", …" if len(self.space.labels) > 6 else "")


def history_to_json(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ELBO along a fit, with None for numbers that JSON does not have."""
    return [{name: _none_for_nan(v) if isinstance(v, float) else v for name, v in record.items()} for record in history]


def history_from_json(data: Any) -> list[dict[str, Any]]:
    """What `history_to_json` wrote.

    Raises:
        ValueError: It is none of it.
    """
    check_arguments("history", {"history": data}, {"history": list[dict[str, Any]]})
    records = {"stage": str, "step": int, "elbo": float | None}
    for record in data:
        check_arguments("history", {name: record[name] for name in records}, records)
    return [{**record, "elbo": _nan_for_none(record["elbo"])} for record in data]


def _none_for_nan(number: float) -> float | None:
    """A number for JSON, which has no infinities and no NaN."""
    return number if math.isfinite(number) else None


def _nan_for_none(number: float | None) -> float:
    return math.nan if number is None else number
