"""What `benchmarks/speed.py` measures: the cases, and one module per framework that builds them.

A framework's module has one function, `build(case, features, fast) -> model`, where `fast` is the direction that has
to be cheap, "density" or "sampling"; only autoregressive flows must choose. A model has

- `parameters`, the number of trainable scalars;
- `array(x)`, which turns a float32 numpy array into what the model takes as data;
- `train(x)`, one step as a user of the library would take it: log_prob, backward, optimizer;
- `train_fused(x)`, the same with torch's fused Adam, so that only the flow differs;
- `log_prob(x)` and `sample(n)`, both without gradients;
- `rsample(n)`: n samples with their log-density log q, and the gradient of the mean of log q(x) + |x|²/8.

What a framework cannot do raises NotImplementedError with the reason.
"""

from dataclasses import dataclass

FEATURES = (6, 21, 63)
HIDDEN = (128, 128)
BINS, BOUND = 8, 5.0
SPLINE_PARAMETERS = 3 * BINS - 1  # widths, heights and inner slopes of a spline that is the identity outside its box


@dataclass(frozen=True)
class Case:
    """One architecture: `kind` is "coupling", "autoregressive" or "planar"."""

    name: str
    title: str
    kind: str
    layers: int
    spline: bool = False

    @property
    def outputs(self) -> int:
        """Parameters per changed feature."""
        return SPLINE_PARAMETERS if self.spline else 2


CASES = {
    case.name: case
    for case in (
        Case("real_nvp", "RealNVP, 8 layers", "coupling", 8),
        Case("nsf", "NSF coupling, 6 layers", "coupling", 6, spline=True),
        Case("maf", "MAF, 5 layers", "autoregressive", 5),
        Case("nsf_ar", "NSF autoregressive, 5 layers", "autoregressive", 5, spline=True),
        Case("planar", "planar, 16 layers", "planar", 16),
    )
}

OPS = {
    "train": "Train step, 512 rows: log_prob, backward, each library's usual optimizer",
    "train_fused": "Train step, 512 rows: log_prob, backward, torch's fused Adam for all",
    "log_prob": "log_prob, 8,192 rows, no gradient",
    "sample": "Sampling without gradient, 8,192 rows; autoregressive flows 1,024 rows, in their slow direction",
    "rsample": "Samples and log-density with gradient, 512 rows, in the fast direction",
}

# Module of each framework, its distribution, and how the tables call it.
FRAMEWORKS = {
    "flowlab": ("flowlab_", "flowlab", "flowlab"),
    "flowlab-compiled": ("flowlab_compiled_", "flowlab", "flowlab compiled"),
    "zuko": ("zuko_", "zuko", "zuko"),
    "nflows": ("nflows_", "nflows", "nflows"),
    "normflows": ("normflows_", "normflows", "normflows"),
    "pyro": ("pyro_", "pyro-ppl", "Pyro"),
    "freia": ("freia_", "FrEIA", "FrEIA"),
    "torchflows": ("torchflows_", "torchflows", "torchflows"),
    "flowjax": ("flowjax_", "flowjax", "FlowJAX"),
    "bound": ("bound_", "torch", "MLPs alone"),
}
TORCH_PEERS = ("zuko", "nflows", "normflows", "pyro", "freia", "torchflows")


def rows(op: str, case: Case) -> int:
    """The batch of an operation."""
    if op in ("train", "train_fused", "rsample"):
        return 512
    return 1024 if op == "sample" and case.kind == "autoregressive" else 8192
