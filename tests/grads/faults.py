"""How a test shows that it catches a named mistake: it makes the mistake, and its own check must fail on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def gram_of(J) -> jax.Array:
    return jnp.asarray(np.asarray(J) @ np.asarray(J).T, jnp.float32)


def fails(check, faulty) -> None:
    with pytest.raises(AssertionError):
        check(faulty)
