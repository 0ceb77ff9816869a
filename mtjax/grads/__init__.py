"""Per-task gradient transforms: gradient surgery and loss balancing for multi-task learning.

The package can be used on its own, outside reinforcement learning: it needs only jax and optax.

>>> import optax
>>> from mtjax import grads
>>> tx = optax.chain(grads.aggregate(grads.pcgrad(), num_tasks=10), optax.adam(3e-4))
"""

from mtjax.grads.aggregation import AggregateState, aggregate, find_state, observe
from mtjax.grads.base import Method, Transform, Weighting, seeded
from mtjax.grads.combine import accumulate, cr_mogm, every_k, normalize
from mtjax.grads.constants import TunableState, tunable
from mtjax.grads.diagnostics import (
    conflict,
    pareto_distance,
    residual,
)
from mtjax.grads.gram import gram_matrix, weighted_sum
from mtjax.grads.lean import LeanState, lean, lean_gram
from mtjax.grads.methods.aligned_mtl import aligned_mtl
from mtjax.grads.methods.balancers import dwa, gls, imtl_l, rlw, stch, uncertainty
from mtjax.grads.methods.cagrad import cagrad
from mtjax.grads.methods.config import config
from mtjax.grads.methods.cosine_gate import cosine_gate
from mtjax.grads.methods.famo import famo
from mtjax.grads.methods.graddrop import graddrop
from mtjax.grads.methods.gradnorm import gradnorm
from mtjax.grads.methods.gradvac import gradvac
from mtjax.grads.methods.imtl_g import imtl_g
from mtjax.grads.methods.krum import krum
from mtjax.grads.methods.linear import fixed, mean, sum_
from mtjax.grads.methods.mgda import mgda, mgda_ub
from mtjax.grads.methods.nash_mtl import fairgrad, nash_mtl
from mtjax.grads.methods.pcd import pcd
from mtjax.grads.methods.pcgrad import pcgrad
from mtjax.grads.methods.stochastic import modo, sdmgrad
from mtjax.grads.methods.tracked import db_mtl, excess_mtl, moco
from mtjax.grads.methods.trimmed_mean import trimmed_mean
from mtjax.grads.methods.upgrad import dualproj, upgrad
from mtjax.grads.registry import get, names

sum = sum_  # noqa: A001

__all__ = [
    "AggregateState",
    "LeanState",
    "Method",
    "Transform",
    "TunableState",
    "Weighting",
    "accumulate",
    "aggregate",
    "aligned_mtl",
    "cagrad",
    "config",
    "conflict",
    "cosine_gate",
    "cr_mogm",
    "db_mtl",
    "dualproj",
    "dwa",
    "every_k",
    "excess_mtl",
    "fairgrad",
    "famo",
    "find_state",
    "fixed",
    "get",
    "gls",
    "graddrop",
    "gradnorm",
    "gradvac",
    "gram_matrix",
    "imtl_g",
    "imtl_l",
    "krum",
    "lean",
    "lean_gram",
    "mean",
    "mgda",
    "mgda_ub",
    "moco",
    "modo",
    "names",
    "nash_mtl",
    "normalize",
    "observe",
    "pareto_distance",
    "pcd",
    "pcgrad",
    "residual",
    "rlw",
    "sdmgrad",
    "seeded",
    "stch",
    "sum",
    "sum_",
    "trimmed_mean",
    "tunable",
    "uncertainty",
    "upgrad",
    "weighted_sum",
]
