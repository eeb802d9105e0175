"""`FlowMixture`: several unlike flows as one distribution, because on real tables no single one wins."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowlab.arguments import real, sizes
from flowlab.distribution import FlowDistribution
from flowlab.layers.layer import fast_of_all


class FlowMixture(nn.Module):
    """The distribution that draws from one of several flows, each with its weight.

    Its methods are a `Flow`'s, but for `forward`, `inverse` and `from_noise`: no single map leads from noise to data.
    `to_noise` draws the member that a row came from. `flowlab.fit` trains the members together; the weights stay as
    they are.

    Args:
        flows: The members, each a `Flow` or with its methods, such as another mixture, of equal features, context and
            floating-point type.
        weights: Non-negative weight of each member; they are divided by their sum. Equal when None.

    Raises:
        ValueError: The members do not fit together, or a weight is not a finite non-negative number.

    Example:
        >>> import torch, flowlab
        >>> flows = [flowlab.presets.maf(2, layers=1), flowlab.presets.real_nvp(2, layers=2)]
        >>> mixture = flowlab.FlowMixture(flows, [0.3, 0.7])
        >>> mixture.log_prob(torch.zeros(5, 2)).shape, mixture.sample((4,)).shape
        (torch.Size([5]), torch.Size([4, 2]))
    """

    log_weights: Tensor

    def __init__(self, flows: Sequence[Any], weights: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        if not flows:
            raise ValueError("a FlowMixture needs at least one flow")
        kinds = {(flow.features, flow.context_features, flow.dtype) for flow in flows}
        if len(kinds) > 1:
            raise ValueError(
                f"flows must agree in features, context_features and dtype, not have {sorted(map(str, kinds))}"
            )
        self.features, self.context_features = flows[0].features, flows[0].context_features
        given = weights.tolist() if isinstance(weights, Tensor) else [1.0] * len(flows) if weights is None else weights
        message = f"weights must be {len(flows)} finite non-negative numbers, some above zero, not {weights}"
        try:
            shares = [real("weight", weight) for weight in given]
        except (TypeError, ValueError) as error:
            raise ValueError(message) from error
        if len(shares) != len(flows) or min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise ValueError(message)
        self.register_buffer("log_weights", (torch.tensor(shares, dtype=torch.float64) / sum(shares)).log())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.flows)

    @property
    def weights(self) -> Tensor:
        """The members' weights, which sum to one."""
        return self.log_weights.exp()

    def member_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of data x (*batch, features) under each member: (members, *batch), nats."""
        return torch.stack([flow.log_prob(x, context) for flow in self])

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of data x (*batch, features), in nats: (*batch,)."""
        return self._joint(x, context).logsumexp(0)

    @torch.no_grad()
    def sample(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws (*shape, *context_batch, features), without a gradient."""
        return self._draws([flow.sample for flow in self], shape, context, generator)

    def rsample(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws (*shape, *context_batch, features), differentiable in the members' parameters.

        The weights are fixed.
        """
        return self._draws([flow.rsample for flow in self], shape, context, generator)

    def _draws(
        self,
        samplers: Sequence[Callable[..., Tensor]],
        shape: int | Sequence[int],
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        shape = sizes(shape)
        if context is not None:
            if not isinstance(context, Tensor):
                raise TypeError(f"context must be a torch.Tensor, not {type(context).__name__}; use torch.as_tensor")
            return self._draws_in_context(samplers, shape, context, generator)
        n = math.prod(shape)
        which = self._choose(n, generator)
        draws = [sampler((int((which == k).sum()),), None, generator) for k, sampler in enumerate(samplers)]
        place = which.argsort(stable=True).argsort()  # draws lie member by member; put each where it was wanted
        return torch.cat(draws)[place].view(*shape, self.features)

    def rsample_and_log_prob(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities (*shape, *context_batch), both differentiable."""
        x = self.rsample(shape, context, generator)
        return x, self.log_prob(x, context)

    @torch.no_grad()
    def to_noise(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Noise z (*batch, features) behind data x, standard normal if x has this distribution.

        Which member a row came from is not known: it is drawn, with the probability that each has given the row.
        """
        joint = self._joint(x, context)
        # Where no member has a density, any will do.
        shares = joint.softmax(0).nan_to_num(1.0).reshape(len(joint), -1).T
        batch = joint.shape[1:]
        x = x.expand(*batch, -1)
        z = torch.empty_like(x, memory_format=torch.contiguous_format)
        if not z.numel():
            return z
        which = torch.multinomial(shares, 1, generator=generator).view(batch)
        for k, flow in enumerate(self):
            rows = which == k
            if bool(rows.any()):
                own = None if context is None else context.expand(*batch, -1)[rows]
                z[rows] = flow.to_normal(x[rows], own, generator)
        return z

    def to_normal(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """The same as `to_noise`, whose noise is standard normal."""
        return self.to_noise(x, context, generator)

    def initialise(self, x: Tensor) -> None:
        """Let the members' layers that learn from data do so, once, given rows x (n, features); `fit` calls it."""
        for flow in self:
            flow.initialise(x)

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """This mixture, given a context, as a `torch.distributions.Distribution`."""
        return FlowDistribution(self, context)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the data."""
        return next(iter(self)).dtype

    @property
    def has_rsample(self) -> bool:
        """Whether samples carry gradients."""
        return all(flow.has_rsample for flow in self)

    @property
    def fast(self) -> str:
        """Which direction is one cheap pass in every member: "both", "density", "sampling" or "neither"."""
        return fast_of_all(flow.fast for flow in self)

    @property
    def support(self) -> constraints.Constraint:
        """Where the data lie: everywhere, unless all members agree on something narrower."""
        supports = [flow.support for flow in self]
        return supports[0] if len({str(s) for s in supports}) == 1 else constraints.real_vector

    def _joint(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log of each member's weight times its density, (members, *batch)."""
        found = self.member_log_prob(x, context)
        return found + self.log_weights.to(found.dtype).view(-1, *[1] * (found.ndim - 1))

    def _choose(self, n: int, generator: torch.Generator | None) -> Tensor:
        if n == 0:
            return torch.zeros(0, dtype=torch.long, device=self.log_weights.device)
        return torch.multinomial(self.weights, n, replacement=True, generator=generator)

    def _draws_in_context(
        self,
        samplers: Sequence[Callable[..., Tensor]],
        shape: Sequence[int],
        context: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        batch = (*shape, *context.shape[:-1])
        which = self._choose(math.prod(batch), generator).view(*batch, 1)
        x = context.new_zeros(*batch, self.features, dtype=self.dtype)
        for k, sampler in enumerate(samplers):
            x = torch.where(which == k, sampler(shape, context, generator), x)
        return x

    def __repr__(self) -> str:
        lines = [f"FlowMixture({len(self.flows)} flows of {self.features} features"]
        for weight, flow in zip(self.weights.tolist(), self, strict=True):
            lines += [f"  {weight:.3f} × " + repr(flow).replace("\n", "\n  ")]
        return "\n".join(lines) + "\n)"


def stack(log_probs: Tensor, row_weight: Tensor | None = None, prior: Tensor | None = None, steps: int = 500) -> Tensor:
    """The members' weights that make held-out rows likeliest, by expectation maximisation.

    The likelihood is concave in the weights: there is one best answer, and nothing to start from but equal weights.

    Args:
        log_probs: Log-densities of rows that no member was trained on, (members, rows).
        row_weight: Weight of each row.
        prior: Rows that each member is credited with beforehand, (members,); none when None.
        steps: Iterations.

    Returns:
        The weights (members,), which sum to one.

    Example:
        >>> import torch
        >>> from flowlab.mixture import stack
        >>> stack(torch.tensor([[0.0, 0.0, -9.0], [-9.0, -9.0, 0.0]])).round(decimals=2)
        tensor([0.6700, 0.3300], dtype=torch.float64)
    """
    log_probs = log_probs.double()
    row_weight = torch.ones(log_probs.shape[1], dtype=torch.float64) if row_weight is None else row_weight.double()
    prior = torch.zeros(len(log_probs), dtype=torch.float64) if prior is None else prior.double()
    # A row that no member has an idea of says nothing about their weights.
    known = torch.isfinite(log_probs).any(0)
    log_probs, row_weight = log_probs[:, known], row_weight[known]
    weights = torch.full((len(log_probs),), 1 / len(log_probs), dtype=torch.float64)
    for _ in range(steps):
        shares = torch.softmax(log_probs + weights.log().unsqueeze(1), 0)
        counts = (shares * row_weight).sum(1) + prior
        weights = counts / counts.sum()
    return weights
