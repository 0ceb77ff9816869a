"""The measures of conflict: a number that is wrong where a task is absent is worse than none."""

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from mtjax import grads

T = 5
HERE = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


def test_conflict_measures():
    measures = grads.conflict(jnp.array([[1.0, -1.0, 0.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    assert measures["conflicting"] == pytest.approx(1 / 3)
    assert measures["cosine"][0, 1] == pytest.approx(-0.5) and measures["norm_ratio"] == 2
    J = jacobians.jacobian("iid", 4, 8)
    distance = grads.pareto_distance(jnp.asarray(J @ J.T, jnp.float32))
    assert distance == pytest.approx(np.linalg.norm(reference.mgda(J)), rel=1e-3)


def grams(hole: float) -> tuple[np.ndarray, jax.Array]:
    """Jacobians [5, T, P] and their Grams [5, T, T], with `hole` where a task is absent."""
    J = np.stack([jacobians.jacobian("conflicting", T, 8, seed) for seed in range(len(HERE))])
    both = HERE[:, :, None] & HERE[:, None, :]
    return J, jnp.asarray(np.where(both, J @ J.swapaxes(1, 2), hole), jnp.float32)


@pytest.mark.parametrize("hole", [0.0, np.nan, -7.0])
def test_measures_of_the_present_tasks(hole):
    """With a mask, jitted and batched, each is that of the smaller Gram: `pareto_distance` was 0 with a task absent."""
    J, gram = grams(hole)
    measured = jax.jit(jax.vmap(lambda g, m: grads.conflict(g, mask=m)))(gram, HERE)
    distances = jax.jit(jax.vmap(lambda g, m: grads.pareto_distance(g, mask=m)))(gram, HERE)
    for n, here in enumerate(HERE[:4]):
        rows = J[n][here]
        alone = grads.conflict(jnp.asarray(rows @ rows.T, jnp.float32))
        for name in ("conflicting", "mean_cosine", "min_cosine", "norm_ratio", "cancellation"):
            np.testing.assert_allclose(measured[name][n], alone[name], rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(measured["norms"][n][here], np.linalg.norm(rows, axis=1), rtol=1e-5)
        assert (measured["norms"][n][~here] == 0).all() and (measured["cosine"][n][~here] == 0).all()
        np.testing.assert_allclose(distances[n], np.linalg.norm(reference.mgda(rows)), rtol=2e-3, atol=1e-3)
    assert distances[0] > 0.1
    assert distances[4] == 0 and all(np.isfinite(x[4]).all() for x in measured.values())  # nobody is there


def test_without_a_mask_an_absent_task_is_a_gradient_of_zero():
    _, gram = grams(0.0)
    assert grads.pareto_distance(gram[0]) < 1e-3 < grads.pareto_distance(gram[0], mask=HERE[0])
    assert grads.conflict(gram[0])["conflicting"] < grads.conflict(gram[0], mask=HERE[0])["conflicting"]
