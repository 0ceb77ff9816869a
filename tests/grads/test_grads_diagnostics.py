"""The measures of conflict: a number that is wrong where a task is absent is worse than none."""

import jacobians
import jax
import numpy as np
import pytest
import quick
import reference

from mtjax import grads

T = 5
HERE = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


conflict, pareto_distance = quick.jit(grads.conflict), quick.jit(grads.pareto_distance)


@quick.jit
@jax.vmap
def of_present_tasks(gram, here):
    return grads.conflict(gram, mask=here), grads.pareto_distance(gram, mask=here)


def test_conflict_measures():
    gram = np.array([[1.0, -1.0, 0.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    measures = jax.device_get(conflict(gram))
    assert measures["conflicting"] == pytest.approx(1 / 3)
    assert measures["cosine"][0, 1] == pytest.approx(-0.5) and measures["norm_ratio"] == 2
    J = jacobians.jacobian("iid", 4, 8)
    distance = pareto_distance((J @ J.T).astype(np.float32))
    assert distance == pytest.approx(np.linalg.norm(reference.mgda(J)), rel=1e-3)


def grams(hole: float) -> tuple[np.ndarray, np.ndarray]:
    """Jacobians [5, T, P] and their Grams [5, T, T], with `hole` where a task is absent."""
    J = np.stack([jacobians.jacobian("conflicting", T, 8, seed) for seed in range(len(HERE))])
    both = HERE[:, :, None] & HERE[:, None, :]
    return J, np.where(both, J @ J.swapaxes(1, 2), hole).astype(np.float32)


@pytest.mark.parametrize("hole", [0.0, np.nan, -7.0])
def test_measures_of_the_present_tasks(hole):
    """With a mask, jitted and batched, each is that of the smaller Gram: `pareto_distance` was 0 with a task absent."""
    J, gram = grams(hole)
    measured, distances = jax.device_get(of_present_tasks(gram, HERE))
    for n, here in enumerate(HERE[:4]):
        rows = J[n][here]
        alone = jax.device_get(conflict((rows @ rows.T).astype(np.float32)))
        for name in ("conflicting", "mean_cosine", "min_cosine", "norm_ratio", "cancellation"):
            np.testing.assert_allclose(measured[name][n], alone[name], rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(measured["norms"][n][here], np.linalg.norm(rows, axis=1), rtol=1e-5)
        assert (measured["norms"][n][~here] == 0).all() and (measured["cosine"][n][~here] == 0).all()
        np.testing.assert_allclose(distances[n], np.linalg.norm(reference.mgda(rows)), rtol=2e-3, atol=1e-3)
    assert distances[0] > 0.1
    assert distances[4] == 0 and all(np.isfinite(x[4]).all() for x in measured.values())  # nobody is there


def test_without_a_mask_an_absent_task_is_a_gradient_of_zero():
    _, gram = grams(0.0)
    measured, distances = jax.device_get(of_present_tasks(gram, HERE))
    assert np.asarray(pareto_distance(gram[0])) < 1e-3 < distances[0]
    assert np.asarray(conflict(gram[0])["conflicting"]) < measured["conflicting"][0]
