"""Normalisation: were tasks pooled or moments wrong, easy tasks would drown the small ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.learners import normalization
from mtjax.learners.agent import pooled
from mtjax.learners.base import Unseen

UPDATE = jax.jit(normalization.update, static_argnames="axes")
NORMALIZE = jax.jit(normalization.normalize, static_argnames="clip")


def _samples(seed=0, length=40):
    """[H, T=3, E=2, obs=4], tasks of very different place and scale; the last column is padding."""
    draw = np.random.default_rng(seed)
    scale, place = np.array([0.1, 1.0, 30.0])[:, None, None], np.array([-5.0, 0.0, 200.0])[:, None, None]
    x = draw.normal(size=(length, 3, 2, 4)) * scale + place
    x[..., 3] = 7.0
    return x.astype(np.float32)


def _merged(x, cuts):
    statistics = normalization.init(3, (4,))
    for part in np.split(x, cuts):
        statistics = UPDATE(statistics, part, axes=(0, 2))
    return jax.device_get(statistics)


@pytest.mark.parametrize("cuts", [[], [20], [1, 2, 30]])
def test_merging_gives_the_statistics_of_everything(cuts):
    """Statistics must not depend on how the stream was cut into rollouts."""
    x = _samples()
    statistics = _merged(x, cuts)
    np.testing.assert_array_equal(statistics.count, [80, 80, 80])
    np.testing.assert_allclose(statistics.mean, x.mean((0, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.variance, x.var((0, 2)), rtol=1e-3, atol=1e-6)


def test_each_task_is_normalised_by_its_own_statistics():
    """A task's observations would otherwise depend on what the other tasks look like."""
    x = _samples()
    statistics = _merged(x, [10])
    out = np.asarray(NORMALIZE(statistics, np.moveaxis(x, 1, 0).reshape(3, 80, 4), clip=10.0))
    np.testing.assert_allclose(np.mean(out, axis=1), 0, atol=2e-3)
    np.testing.assert_allclose(np.std(out, axis=1)[:, :3], 1, atol=1e-3)
    other = x.copy()
    other[:, 0] *= 100
    np.testing.assert_array_equal(_merged(other, [10]).mean[1:], statistics.mean[1:])
    np.testing.assert_array_equal(_merged(other, [10]).variance[1:], statistics.variance[1:])


def test_constant_columns_become_zeros():
    """Padding must not become NaN or noise."""
    x = _samples()
    out = np.asarray(NORMALIZE(_merged(x, [3, 9]), x[0], clip=10.0))
    np.testing.assert_array_equal(out[..., 3], 0.0)


def test_nothing_seen_is_the_identity_but_for_the_clip():
    """The first rollout is acted on before any statistics exist."""
    x = np.float32([[[0.5, -2.0, 3.0, 50.0]]] * 3)
    out = NORMALIZE(normalization.init(3, (4,)), x, clip=10.0)
    np.testing.assert_allclose(out, np.clip(x, -10, 10), rtol=1e-5)


def test_scalars_per_task():
    """Returns have no axes beyond the task's."""
    x = _samples()[..., 0]
    statistics = UPDATE(normalization.init(3), x, axes=(0, 2))
    np.testing.assert_allclose(statistics.variance, x.var((0, 2)), rtol=1e-3)


def test_samples_without_weight_do_not_count():
    """Of no task's; a task without any stays as it is."""
    x = _samples()[..., 0]
    weight = (np.arange(x.size).reshape(x.shape) % 3 > 0).astype(np.float32)
    weight[:, 1] = 0
    before = UPDATE(normalization.init(x.shape[1]), x[:1], axes=(0, 2))
    found = UPDATE(before, np.where(weight > 0, x, 1e6).astype(np.float32), axes=(0, 2), weight=weight)
    assert x.shape[1] == 3
    for task in (0, 2):
        counted = np.concatenate([x[:1, task].ravel(), x[:, task][weight[:, task] > 0]])
        got = (found.count[task], found.mean[task], found.variance[task])
        np.testing.assert_allclose(got, (counted.size, counted.mean(), counted.var()), rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), found, before)


def test_pooled_is_the_distribution_over_all_tasks():
    """An unseen task is normalised by what was seen in all the others."""
    x = _samples()
    together = jax.device_get(jax.jit(normalization.pooled)(_merged(x, [10])))
    np.testing.assert_allclose(together.mean, x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(together.variance, x.var((0, 1, 2)), rtol=1e-3, atol=1e-6)
    assert together.count == 240
    one = NORMALIZE(together, x[:, 0, 0], clip=10.0)
    np.testing.assert_allclose(one, (x[:, 0, 0] - together.mean) / np.sqrt(together.variance + 1e-6), rtol=1e-4)


def test_far_from_zero_the_variance_survives():
    """Positions of kilometres with a spread of metres: sums of squares would lose it all in float32."""
    x = np.random.default_rng(0).normal(1e4, 1.0, (50, 1, 20, 1)).astype(np.float32)
    statistics = normalization.init(1, (1,))
    for part in np.split(x, 5):
        statistics = UPDATE(statistics, part, axes=(0, 2))
    np.testing.assert_allclose(statistics.variance, x.astype(np.float64).var(), rtol=0.01)


def test_updates_keep_types():
    """A weak type would compile everything twice."""
    before = normalization.init(3, (4,))
    after = jax.jit(lambda s, x: normalization.update(s, x, axes=(0, 2)))(before, _samples())
    for old, new in zip(before, after, strict=True):
        assert (old.dtype, old.shape, new.weak_type) == (new.dtype, new.shape, False)


def test_unseen_tasks_get_averages_over_their_relatives():
    """Evenly over all training tasks, or as weighted: private parameters and, of all samples together, statistics."""
    rng = np.random.default_rng(0)
    samples = [rng.normal(place, size, (400, 2)) for place, size in ((0.0, 1.0), (5.0, 2.0), (-3.0, 0.5))]
    statistics = normalization.Statistics(
        jnp.full(3, 400.0),
        jnp.asarray([x.mean(axis=0) for x in samples], jnp.float32),
        jnp.asarray([x.var(axis=0) for x in samples], jnp.float32),
    )
    everyone = Unseen(jnp.zeros((2, 0)), jnp.ones((2, 1)))
    related = everyone._replace(relatives=jnp.asarray([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    for unseen, groups in ((everyone, ([0, 1, 2], [0, 1, 2])), (related, ([0, 1], [2]))):
        heads = unseen.average({"head": jnp.asarray([1.0, 3.0, 8.0])})["head"]
        np.testing.assert_allclose(heads, [np.mean(np.asarray([1.0, 3.0, 8.0])[group]) for group in groups])
        found = jax.jit(pooled)(statistics, unseen)
        for n, group in enumerate(groups):
            together = np.concatenate([samples[index] for index in group])
            np.testing.assert_allclose(found.mean[n], together.mean(axis=0), rtol=1e-5)
            np.testing.assert_allclose(found.variance[n], together.var(axis=0), rtol=1e-5)
            assert found.count[n] == len(together)
