"""Per-task gradient transforms: gradient surgery and loss balancing for multi-task learning.

Usable alone, outside reinforcement learning: it needs jax and optax and nothing else.

>>> import optax
>>> from mtjax import grads
>>> tx = optax.chain(grads.aggregate(grads.pcgrad(), num_tasks=10), optax.adam(3e-4))
"""

from mtjax.grads.aggregation import AggregateState, aggregate, find_state, observe
from mtjax.grads.base import Method, Transform, Weighting, seeded
from mtjax.grads.diagnostics import conflict
from mtjax.grads.gram import gram_matrix, weighted_sum
from mtjax.grads.methods.gradnorm import gradnorm
from mtjax.grads.methods.linear import fixed, mean, sum_
from mtjax.grads.methods.pcgrad import pcgrad
from mtjax.grads.registry import get, names

sum = sum_  # noqa: A001

__all__ = [
    "AggregateState",
    "Method",
    "Transform",
    "Weighting",
    "aggregate",
    "conflict",
    "find_state",
    "fixed",
    "get",
    "gradnorm",
    "gram_matrix",
    "mean",
    "names",
    "observe",
    "pcgrad",
    "seeded",
    "sum",
    "sum_",
    "weighted_sum",
]
