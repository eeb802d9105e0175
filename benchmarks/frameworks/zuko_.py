"""zuko: everything as its ready-made flows have it."""

from zuko import flows
from zuko.transforms import MonotonicRQSTransform

from . import BINS, HIDDEN, Case, torch_


def build(case: Case, features: int, fast: str) -> torch_.Model:
    options = {"transforms": case.layers, "hidden_features": HIDDEN}
    if case.kind == "planar":
        raise NotImplementedError("zuko has no planar flow")
    if case.kind == "autoregressive":
        flow = flows.NSF(features, bins=BINS, **options) if case.spline else flows.MAF(features, **options)
    elif case.spline:
        # zuko.flows.NSF(passes=2) is a coupling by masks, with the full network; this one computes only what it needs.
        # The spline's bound is 5 by default.
        shapes = ((BINS,), (BINS,), (BINS - 1,))
        flow = flows.NICE(features, univariate=MonotonicRQSTransform, shapes=shapes, **options)
    else:
        flow = flows.RealNVP(features, **options)
    if fast == "sampling":  # as zuko's tutorial on variational inference does; it saves couplings half the work, too
        flow = flows.Flow(flow.transform.inv, flow.base)
    return torch_.Model(
        flow,
        lambda x: flow().log_prob(x),
        lambda n: flow().sample((n,)),
        lambda n: flow().rsample_and_log_prob((n,)),
    )
