"""Environments: simulators, one family per file; the task is data (a pytree), never code."""

from mtjax.envs.base import ActionSpec, Env, Step, VectorEnv, continuous, discrete
from mtjax.envs.vectorize import Vectorized, vectorize

__all__ = ["ActionSpec", "Env", "Step", "VectorEnv", "Vectorized", "continuous", "discrete", "vectorize"]
