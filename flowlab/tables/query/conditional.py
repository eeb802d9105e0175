"""What a mixture of conditional densities says of cells given others: scores, draws and probabilities."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from flowlab.flow import CHUNK
from flowlab.mixture import FlowMixture
from flowlab.tables.mixed.column_mixture import ColumnMixture
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.distributions import choose
from flowlab.tables.query.conditions import ConditionError, Conditions

IMPOSSIBLE = 1e-7  # probability of a condition, given those before it, below which it is refused
RARE = 1e-4  # share of accepted draws below which sampling gives up
ENOUGH = 50 * CHUNK  # draws after which it may give up
CANDIDATES = 8  # proposals for a row, at least, where a joint density has weight
TOGETHER = 256  # proposals for all rows, at least
LEAST_EFFECTIVE = 0.15  # effective share of proposals below which there are no draws


@torch.no_grad()
def draw(
    mixture: FlowMixture, conditions: Conditions, n: int, generator: torch.Generator | None
) -> tuple[Tensor, float, float]:
    """Rows (n, variables) under conditions, the share of draws that was accepted, and their effective share.

    Members with conditional densities propose rows: networks the cells that conditions are on, all parts the others.
    Where a joint density has weight, each row is chosen from several proposals: see `resampled`.

    Raises:
        ConditionError: A condition has (nearly) no probability; the message says which.
    """
    whole, mixture = mixture, conditionals_of(mixture)
    networks = networks_of(mixture)
    wanted = n if whole is mixture else n * candidates(n)
    rows, accepted = draw_by_networks(networks, conditions, wanted, generator)
    if any(a is not b for a, b in zip(mixture, networks, strict=True)):
        given = torch.tensor([j in conditions.values or j in conditions.allowed for j in range(mixture.features)])
        given, first = given.to(rows.device), earliest(mixture, given)
        chunks = rows.split(CHUNK)
        rows = torch.cat([fill(first, chunk, given.expand(chunk.shape), generator=generator)[0] for chunk in chunks])
    if whole is mixture:
        return rows, accepted, 1.0
    rows, effective = resampled(whole, rows.view(-1, n, rows.shape[1]), generator)
    return rows, accepted, effective


def conditionals_of(mixture: FlowMixture) -> FlowMixture:
    """The members that have conditional densities, with their shares of the weight; the mixture if all have."""
    kept = [k for k, member in enumerate(mixture) if isinstance(member, ConditionalDensity)]
    if len(kept) == len(mixture.flows):
        return mixture
    return FlowMixture([mixture.flows[k] for k in kept], mixture.weights[kept])


def weighed(mixture: FlowMixture, rows: Tensor) -> tuple[Tensor, float]:
    """What proposals of the members with conditional densities count as under the whole mixture.

    Args:
        mixture: The whole mixture.
        rows: Proposals (proposals, n, variables) for each of n rows.

    Returns:
        Log of the mixture's density over that of the members who proposed (proposals, n); and the effective share: the
        effective number of proposals over their number (Kong 1992), averaged over rows, or, where that is smaller, the
        part that the joint density has in what is chosen, over its weight. The latter tells of proposals that all lie
        where it has no density, which therefore count alike.
    """
    log_p = torch.cat([mixture.member_log_prob(chunk) for chunk in rows.flatten(0, 1).split(CHUNK)], 1)
    log_p = (log_p + mixture.log_weights.unsqueeze(-1)).view(-1, *rows.shape[:2])
    asked = torch.tensor([isinstance(member, ConditionalDensity) for member in mixture], device=rows.device)
    log_v = log_p.logsumexp(0) - log_p[asked].logsumexp(0) + mixture.weights[asked].sum().log()
    if not log_v.numel():
        return log_v, 1.0
    shares = log_v.softmax(0)
    number = float((1 / shares.square().sum(0)).mean()) / len(rows)
    of_joint = (shares * log_p.softmax(0)[~asked].sum(0)).sum(0).mean() / mixture.weights[~asked].sum()
    return log_v, min(number, float(of_joint))


def resampled(mixture: FlowMixture, rows: Tensor, generator: torch.Generator | None) -> tuple[Tensor, float]:
    """One of several proposals for each row, so that rows have the density of the whole mixture.

    Members with conditional densities made the proposals; each is chosen with a probability in proportion to the
    mixture's density over theirs (Rubin 1987, "The SIR algorithm").

    Args:
        mixture: The whole mixture.
        rows: Proposals (proposals, n, variables).
        generator: Source of the choice.

    Returns:
        The rows (n, variables), and their effective share: see `weighed`.

    Raises:
        ConditionError: The effective share is too small.
    """
    log_v, effective = weighed(mixture, rows)
    check_effective(effective)
    uniform = torch.rand(rows.shape[1], dtype=torch.float64, device=rows.device, generator=generator)
    chosen = choose(log_v.softmax(0), uniform)
    return rows.gather(0, chosen[None, :, None].expand(1, -1, rows.shape[2]))[0], effective


def check_effective(share: float) -> None:
    """Raise a ConditionError for too small an effective share."""
    if share < LEAST_EFFECTIVE:
        raise ConditionError(
            f"what other cells say cannot be drawn from this model: {share:.1%} of the proposals for a row are "
            "effective, since the members that know conditional distributions are far from the others. Fit with "
            'members=["mixed"] for this question'
        )


def candidates(rows: int) -> int:
    """The number of proposals for each of some rows: enough of all together to judge them."""
    return max(CANDIDATES, math.ceil(TOGETHER / max(rows, 1)))


def earliest(mixture: FlowMixture, given: Tensor) -> FlowMixture:
    """The members of a mixture in whose order the last of the given variables (variables,) comes earliest."""
    last = [int(given[member.in_order()].nonzero().max()) for member in mixture]
    kept = [k for k, place in enumerate(last) if place == min(last)]
    return FlowMixture([mixture.flows[k] for k in kept], mixture.weights[kept])


def networks_of(mixture: FlowMixture) -> FlowMixture:
    """The networks of a mixture's members, which take known cells in any order, with the members' weights."""
    flows = [member.flow if isinstance(member, ColumnMixture) else member for member in mixture]
    return FlowMixture(flows, mixture.weights)


def restricted_of(mixture: FlowMixture, conditions: Conditions) -> list[int]:
    """The variables that conditions restrict to intervals or sets, in the order in which they are drawn."""
    return [j for j in next(iter(mixture)).in_order() if j in conditions.allowed]


def draw_by_networks(
    mixture: FlowMixture, conditions: Conditions, n: int, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    """Rows (n, variables) under conditions, and the share of draws that was accepted.

    Known values come first in the order, then the variables restricted to intervals or sets, each drawn within these. A
    draw is accepted with the probability that the later conditions had given the earlier draws, so the rows are exact.

    Raises:
        ConditionError: A condition has (nearly) no probability; the message says which.
    """
    flows: list[ConditionalDensity] = list(mixture)
    device = mixture.log_weights.device
    x = torch.full((1, mixture.features), math.nan, dtype=torch.float64, device=device)
    known = torch.zeros_like(x, dtype=torch.bool)
    log_shares = mixture.log_weights.clone()
    before = 0.0
    for j in [j for j in flows[0].in_order() if j in conditions.values]:
        x[0, j], known[0, j] = conditions.values[j], True
        log_p = joint_log_prob(mixture, x, known)[:, 0]
        total = float(log_p.logsumexp(0))
        refuse_improbable(total - before, flows[0], j, x[0, j], conditions)
        before, log_shares = total, log_p - total
    # The probability of the first restricted variable is one number per member and enters the members' weights.
    restricted = restricted_of(mixture, conditions)
    if restricted:
        log_shares = log_shares + torch.stack([one_mass(flow, restricted[0], x, known, conditions) for flow in flows])
        if not float(log_shares.logsumexp(0)) > math.log(IMPOSSIBLE):
            raise ConditionError(
                f"the condition {conditions.text[restricted[0]]} has a probability below {IMPOSSIBLE:g}"
            )
    shares = log_shares.softmax(0)
    kept: list[Tensor] = []
    accepted = tried = 0
    while True:
        want = min(max(math.ceil((n - accepted) / max(accepted / tried if tried else 1.0, 0.01)), 1), CHUNK)
        which = torch.multinomial(shares, want, replacement=True, generator=generator)
        for k, flow in enumerate(flows):
            count = int((which == k).sum())
            if count:
                rows = _propose(flow, restricted, x.expand(count, -1), known.expand(count, -1), conditions, generator)
                kept.append(rows)
                accepted += len(rows)
        tried += want
        if accepted >= n:
            rows = torch.cat(kept)
            # Rows are grouped by member: they are shuffled, so that the first n come from all of them.
            return rows[torch.randperm(len(rows), generator=generator)[:n]], accepted / tried
        if tried >= ENOUGH and accepted < RARE * tried:
            break
    text = " and ".join(dict.fromkeys(conditions.text[j] for j in restricted))
    raise ConditionError(
        f"the conditions {text} together have next to no probability: {accepted} of {tried} draws kept them"
    )


def _propose(
    flow: ConditionalDensity,
    restricted: Sequence[int],
    x: Tensor,
    known: Tensor,
    conditions: Conditions,
    generator: torch.Generator | None,
) -> Tensor:
    x, seen, known = x.clone(), flow.observe(x, known), known.clone()
    log_accept = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i, j in enumerate(restricted):
        x[:, j], log_mass = flow.draw_within(j, seen, conditions.allowed[j], generator)
        flow.tell(seen, j, x[:, j])
        known[:, j] = True
        if i:
            log_accept += log_mass
    uniform = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
    kept = uniform < log_accept.exp()
    return flow.fill(x[kept], known[kept], generator=generator)


def one_mass(flow: ConditionalDensity, variable: int, x: Tensor, known: Tensor, conditions: Conditions) -> Tensor:
    """Log-probability of a variable's condition, given the known cells of one row."""
    unused = torch.Generator(x.device).manual_seed(0)  # for the draw that comes with the probability
    return flow.draw_within(variable, flow.observe(x, known), conditions.allowed[variable], unused)[1][0]


def refuse_improbable(
    log_p: float, flow: ConditionalDensity, variable: int, value: Tensor, conditions: Conditions
) -> None:
    """Raise a ConditionError for a known value without density, or of next to no probability, given earlier ones."""
    marginal = flow.marginals().get(variable)
    has_probability = marginal is None or bool(torch.isnan(value)) or float(marginal.cell(value[None]).width[0]) > 0
    if log_p == -math.inf or (has_probability and log_p < math.log(IMPOSSIBLE)):
        raise ConditionError(
            f"the condition {conditions.text[variable]} has a probability of {math.exp(log_p):.1g}, given the "
            "conditions before it"
        )


@torch.no_grad()
def fill(
    mixture: FlowMixture,
    x: Tensor,
    known: Tensor,
    missing: bool = True,
    generator: torch.Generator | None = None,
    variables: Sequence[int] | None = None,
) -> tuple[Tensor, float]:
    """Draw the unknown cells of rows (n, variables), or those of some variables only, given the known ones.

    Returns:
        The rows, and their effective share: 1 unless a joint density has weight; see `resampled`.

    Raises:
        ConditionError: The known cells of a row cannot occur together; the message names the row.
    """
    conditional = conditionals_of(mixture)
    if conditional is not mixture:
        count = candidates(len(x))
        rows, masks = x.repeat(count, 1), known.repeat(count, 1)
        chunks = zip(rows.split(CHUNK), masks.split(CHUNK), strict=True)
        parts = [fill(conditional, *chunk, missing, generator)[0] for chunk in chunks]
        return resampled(mixture, torch.cat(parts).view(count, *x.shape), generator)
    uniform = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
    which = choose(member_shares(mixture, x, known), uniform)
    out = x.clone()
    for k, flow in enumerate(mixture):
        rows = which == k
        if bool(rows.any()):
            out[rows] = flow.fill(x[rows], known[rows], missing, generator, variables)
    return out, 1.0


@torch.no_grad()
def marginal_log_prob(mixture: FlowMixture, x: Tensor, known: Tensor) -> Tensor:
    """Log-density (n,) of the known cells of rows (n, variables), nats.

    Members with conditional densities know it. That of a joint density is estimated from `CANDIDATES` completions of
    each row by these members, with always the same seed.
    """
    conditional = conditionals_of(mixture)
    log_p = joint_log_prob(conditional, x, known).logsumexp(0)
    possible = torch.isfinite(log_p)
    if conditional is mixture or not bool(possible.any()):
        return log_p
    generator, rows, masks = torch.Generator(x.device).manual_seed(0), x[possible], known[possible]
    done = [fill(conditional, rows, masks, generator=generator)[0] for _ in range(candidates(len(rows)))]
    log_v, effective = weighed(mixture, torch.stack(done))
    if effective < LEAST_EFFECTIVE:
        warnings.warn(
            "scores of rows with unknown cells are too low: the members that know conditional distributions are far "
            'from the others. Fit with members=["mixed"] for this question',
            stacklevel=6,
        )
    log_p[possible] += log_v.logsumexp(0) - math.log(len(done))
    return log_p


@torch.no_grad()
def class_probabilities(mixture: FlowMixture, x: Tensor, known: Tensor, variable: int, strict: bool = True) -> Tensor:
    """The probability of each class (n, classes) of a variable that is not missing, given known cells (n, variables).

    For `strict` see `member_shares`.
    """
    total = torch.zeros(())
    flow: ConditionalDensity
    for flow, share in zip(mixture, member_shares(mixture, x, known, strict), strict=True):
        probability = flow.class_log_prob(variable, flow.observe(x, known)).exp()[: flow.classes[variable]]
        total = total + share.unsqueeze(-1) * (probability / probability.sum(0)).T
    return total


def joint_log_prob(mixture: FlowMixture, x: Tensor, known: Tensor) -> Tensor:
    """Log of each member's weight times its density of the known cells of rows (n, variables), nats: (members, n)."""
    return torch.stack([flow.log_prob(x, known=known) for flow in mixture]) + mixture.log_weights.unsqueeze(-1)


def member_shares(mixture: FlowMixture, x: Tensor, known: Tensor, strict: bool = True) -> Tensor:
    """The posterior probability of each member for each row (members, n), given the row's known cells.

    With `strict` False, rows whose known cells cannot occur together get the members' weights.

    Raises:
        ConditionError: The known cells of a row cannot occur together.
    """
    log_p = joint_log_prob(mixture, x, known)
    impossible = ~torch.isfinite(log_p.logsumexp(0))
    if strict and bool(impossible.any()):
        rows = impossible.nonzero().flatten().tolist()
        raise ConditionError(f"the known cells of {len(rows)} rows cannot occur together, the first in row {rows[0]}")
    return torch.where(impossible, mixture.log_weights.unsqueeze(-1), log_p).softmax(0)
