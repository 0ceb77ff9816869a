"""Settings of the networks' tests."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """These programs are compiled often and run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
