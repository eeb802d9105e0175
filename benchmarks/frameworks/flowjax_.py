"""FlowJAX, jitted by equinox as in its own training loop, each call waited for.

Its spline has one inner knot less than bins. By default it learns the slopes at both ends, too, where it could be
kinked; here they are fixed like everyone's, which saves it 8 % of a step. Its couplings keep the smaller part of an
odd number of features in every layer, and it permutes the features at random between layers, which costs next to
nothing.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import paramax
from flowjax import flows
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import StandardNormal
from paramax.utils import inv_softplus

from . import BINS, BOUND, HIDDEN, Case

OPTIMIZER = optax.adam(1e-3)
MIN_SLOPE = 1e-3


def spline() -> RationalQuadraticSpline:
    """FlowJAX's spline with slope one at both ends."""

    def slopes(raw: jax.Array) -> jax.Array:
        inner = jax.nn.softplus(raw) + MIN_SLOPE
        return jnp.pad(inner, [(0, 0)] * (inner.ndim - 1) + [(1, 1)], constant_values=1.0)

    return eqx.tree_at(
        lambda spline: spline.derivatives,
        RationalQuadraticSpline(knots=BINS - 1, interval=BOUND, min_derivative=MIN_SLOPE),
        paramax.Parameterize(slopes, jnp.full(BINS - 1, inv_softplus(1 - MIN_SLOPE))),
        is_leaf=lambda leaf: isinstance(leaf, paramax.Parameterize),
    )


def flow(case: Case, features: int, fast: str) -> object:
    options = {
        "key": jr.key(0),
        "base_dist": StandardNormal((features,)),
        "flow_layers": case.layers,
        "invert": fast == "density" and case.kind != "planar",
    }
    if case.kind == "planar":
        return flows.planar_flow(**options)
    if case.spline:
        options["transformer"] = spline()
    make = flows.masked_autoregressive_flow if case.kind == "autoregressive" else flows.coupling_flow
    return make(nn_width=HIDDEN[0], nn_depth=len(HIDDEN), **options)


class Model:
    """Steps go on from the parameters of the last one; jitted functions take all they need as arguments."""

    def __init__(self, case: Case, features: int, fast: str) -> None:
        self.planar = case.kind == "planar"
        self.weights, self.static = eqx.partition(flow(case, features, fast), eqx.is_inexact_array)
        self.parameters = sum(w.size for w in jax.tree.leaves(self.weights))
        self.state = OPTIMIZER.init(self.weights)
        self.key = jr.key(1)

    def array(self, x: np.ndarray) -> jax.Array:
        if self.planar:
            raise NotImplementedError("FlowJAX inverts planar layers with leaky ReLU only")
        return jnp.asarray(x)

    def train(self, x: jax.Array) -> jax.Array:
        self.weights, self.state, loss = wait(train(self.weights, self.static, self.state, x))
        return loss

    def train_fused(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError("its optimizer is compiled into its usual step")

    def log_prob(self, x: jax.Array) -> jax.Array:
        return wait(log_prob(self.weights, self.static, x))

    def sample(self, n: int) -> jax.Array:
        return wait(sample(self.weights, self.static, self.next_key(), n))

    def rsample(self, n: int) -> jax.Array:
        return wait(rsample(self.weights, self.static, self.next_key(), n))[0]

    def next_key(self) -> jax.Array:
        self.key, key = jr.split(self.key)
        return key


wait: Callable = jax.block_until_ready


def negative_log_likelihood(weights: object, static: object, x: jax.Array) -> jax.Array:
    return -paramax.unwrap(eqx.combine(weights, static)).log_prob(x).mean()


@eqx.filter_jit
def train(weights: object, static: object, state: object, x: jax.Array) -> tuple:
    loss, gradient = eqx.filter_value_and_grad(negative_log_likelihood)(weights, static, x)
    updates, state = OPTIMIZER.update(gradient, state, weights)
    return eqx.apply_updates(weights, updates), state, loss


@eqx.filter_jit
def log_prob(weights: object, static: object, x: jax.Array) -> jax.Array:
    return eqx.combine(weights, static).log_prob(x)


@eqx.filter_jit
def sample(weights: object, static: object, key: jax.Array, n: int) -> jax.Array:
    return eqx.combine(weights, static).sample(key, (n,))


@eqx.filter_jit
def rsample(weights: object, static: object, key: jax.Array, n: int) -> tuple:
    def loss(weights: object) -> jax.Array:
        x, log_q = eqx.combine(weights, static).sample_and_log_prob(key, (n,))
        return (log_q + jnp.square(x).sum(-1) / 8).mean()

    return eqx.filter_value_and_grad(loss)(weights)


def build(case: Case, features: int, fast: str) -> Model:
    return Model(case, features, fast)
