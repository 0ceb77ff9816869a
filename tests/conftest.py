"""What every test stands on: the CPU, the environment that the commands set, repeatable examples."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mtjax.launch import environment

environment.prepare()  # before jax and mujoco are imported

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def key() -> jax.Array:
    """One key for tests that need any."""
    return jax.random.key(0)
