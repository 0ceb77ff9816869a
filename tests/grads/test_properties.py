"""Every method's properties, measured: the table of the docs cannot drift from what the code does."""

import jax
import jax.numpy as jnp
import numpy as np
import properties
import pytest
import quick

from mtjax import grads


@pytest.mark.parametrize("calls", [properties.FIRST, properties.LATER])
@pytest.mark.parametrize("key", properties.ROWS)
def test_claims(key, calls):
    measured = properties.measure(key, calls)
    holds = "1f" if calls == properties.FIRST else "1l"
    claimed = dict(zip(properties.PROPERTIES, (c in holds for c in properties.CLAIMS[key]), strict=True))
    assert measured == claimed


def test_every_method_is_measured():
    """A method added to the registry must come with its properties."""
    combinators = {"every_k", "normalize"}
    assert {row.name() for row in properties.ROWS.values()} == set(grads.names()) - combinators
    assert set(properties.CLAIMS) == set(properties.ROWS)


@pytest.mark.parametrize("name", ["gradnorm", "uncertainty", "imtl_l", "dwa", "famo", "moco", "db_mtl", "excess_mtl"])
def test_a_later_call_is_another(name):
    """Else the columns would be measured twice in the same state: memory must have moved the direction by then."""
    run = properties.runner(properties.ROWS[name])
    given = properties.history(properties.samples(properties.T), properties.LATER)
    last = given.map(lambda J: J[:, -1:], lambda L: L[:, -1:])
    assert properties.same_direction(run(given), run(last)) > 0.02


def test_pcgrad_of_two_tasks():
    """Where they conflict, each loses its part along the other; where they do not, it is their sum."""
    J = properties.samples(2)
    step = quick.jit(jax.vmap(lambda gram: grads.pcgrad().update(gram, jax.random.key(0))[0]))
    weights = np.asarray(step(jnp.asarray(J @ J.swapaxes(1, 2), jnp.float32)), float)
    first, second = J[:, 0], J[:, 1]
    along = np.minimum(np.sum(first * second, axis=1, keepdims=True), 0)
    want = first - along / np.sum(second**2, axis=1, keepdims=True) * second
    want += second - along / np.sum(first**2, axis=1, keepdims=True) * first
    assert properties.error(np.einsum("ntp,nt->np", J, weights), want) < 1e-5
    assert 5 < np.sum(along < 0) < 30


def test_page_is_current():
    assert properties.PAGE.read_text(encoding="utf-8") == properties.table()
