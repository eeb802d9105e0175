"""A flow as the posterior of a Bayesian regression, checked against the exact answer.

The model is y = Xw + noise with a normal prior on w, so that the posterior is a Gaussian in closed form. The flow sees
only the log-joint density.
"""

import torch
from torch.distributions import MultivariateNormal

from flowlab import presets

ROWS, WEIGHTS, NOISE = 50, 4, 0.5


def main(steps: int = 800) -> float:
    """Fit the flow, print the moments of both posteriors, and return KL(flow, exact) in nats, by Monte Carlo."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WEIGHTS, generator=generator)
    truth = torch.tensor([1.0, -2.0, 0.5, 3.0])
    y = x @ truth + NOISE * torch.randn(ROWS, generator=generator)

    def log_joint(w: torch.Tensor) -> torch.Tensor:
        prior = -w.square().sum(-1) / 2
        likelihood = -((y - w @ x.T) / NOISE).square().sum(-1) / 2
        return prior + likelihood

    precision = torch.eye(WEIGHTS) + x.T @ x / NOISE**2
    exact = MultivariateNormal(torch.linalg.solve(precision, x.T @ y / NOISE**2), precision_matrix=precision)

    q = presets.glow(WEIGHTS, layers=2, hidden=(32, 32), generator=generator)
    optimizer = torch.optim.Adam(q.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        w, log_q = q.rsample_and_log_prob((64,), generator=generator)
        loss = (log_q - log_joint(w)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        w, log_q = q.rsample_and_log_prob((20_000,), generator=generator)
    divergence = float((log_q - exact.log_prob(w)).mean())
    print("weight   exact mean ± sd     flow mean ± sd")
    for i in range(WEIGHTS):
        print(f"{i:>6}   {exact.mean[i]:+.3f} ± {exact.stddev[i]:.3f}    {w[:, i].mean():+.3f} ± {w[:, i].std():.3f}")
    print(f"KL(flow, exact) = {divergence:.4f} nats")
    return divergence


if __name__ == "__main__":
    main()
