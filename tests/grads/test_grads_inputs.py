"""What a user may pass, and what is said about the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mtjax import grads


def refused(message, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mask_as_a_list():
    """It met an AttributeError deep inside."""
    for method in (grads.sum(), grads.graddrop()):
        whole = grads.aggregate(method, num_tasks=2)
        for tx in (whole, grads.accumulate(whole, 1, num_tasks=2)):
            update, _ = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=[1.0, 2.0], mask=[True, False])
            np.testing.assert_allclose(update, [1, 0])


@pytest.mark.parametrize(
    "leaf, kind",
    [(np.ones((2, 3), np.int32), "int32"), (np.ones((2, 3), bool), "bool"), (np.ones((2, 3), np.complex64), "complex"),
     (np.zeros((2, 3), jax.dtypes.float0), "float0"), (1.0, "float")],
)  # fmt: skip
def test_gradients_that_are_no_real_numbers(leaf, kind):
    """Integers were rounded down in the update, complex numbers lost their imaginary part."""
    whole = grads.aggregate(grads.mean(), num_tasks=2)
    for tx in (whole, grads.accumulate(whole, 2, num_tasks=2)):
        state = tx.init({"a": jnp.zeros(3), "b": {"c": jnp.zeros(3)}})
        given = {"a": jnp.ones((2, 3)), "b": {"c": leaf}}
        refused(rf"gradients must be real floating-point arrays, but b/c is {kind}", lambda: tx.update(given, state))  # noqa: B023


def test_observe_with_its_arguments_in_another_order():
    """It returned the losses, or the method, in the place of the optimiser's state."""
    for method in (grads.famo(), grads.mean()):
        tx = grads.aggregate(method, num_tasks=2)
        _, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.ones(2))
        refused("observe takes the method, the .* in this order", lambda: grads.observe(method, jnp.ones(2), state))  # noqa: B023
        refused("observe takes the method, the .* in this order", lambda: grads.observe(state, method, jnp.ones(2)))  # noqa: B023
    method = grads.famo()
    state = grads.aggregate(method, num_tasks=2).init(jnp.zeros(2))
    for losses in (1.0, jnp.ones(3), jnp.ones((2, 1))):
        refused(r"losses_after must have shape \(2,\), not", lambda: grads.observe(method, state, losses))  # noqa: B023


@pytest.mark.parametrize("groups", [["a"], {"a": 1}, "leaves", 3])
def test_groups_that_are_none(groups):
    tx = grads.aggregate(grads.mgda(), num_tasks=2, groups=groups)
    refused('groups must be "global", "leaf" or a function of the path, not', lambda: tx.init(jnp.zeros(2)))


def test_shared_as_a_prefix_of_the_tree():
    """As optax takes its masks: one bool stands for a branch."""
    params = jax.tree.map(np.float32, {"trunk": {"b": np.ones(2), "w": np.ones((2, 3))}, "heads": np.ones(2)})
    g = jax.tree.map(lambda p: np.stack([p, 3 * p]), params)
    whole = {"trunk": {"b": True, "w": True}, "heads": False}
    update = lambda shared: (lambda tx: tx.update(g, tx.init(params))[0])(  # noqa: E731
        grads.aggregate(grads.mean(), num_tasks=2, shared=shared)
    )
    jax.tree.map(np.testing.assert_array_equal, update({"trunk": True, "heads": False}), update(whole))
    jax.tree.map(np.testing.assert_array_equal, update(True), update(None))
    lean = grads.lean(grads.mean(), num_tasks=2, shared={"trunk": True, "heads": False})
    loss = lambda p, x: x * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(p))  # noqa: E731
    _, direction, _ = lean.direction(loss, params, jnp.array([1.0, 3.0]), lean.init(params))
    jax.tree.map(np.testing.assert_array_equal, direction, update(whole))
    refused("no leaf is shared", lambda: update({"trunk": False, "heads": False}))


def test_a_raw_key_as_a_seed():
    """`jax.random.PRNGKey` still makes them."""

    def orders(seed):
        return grads.aggregate(grads.pcgrad(), num_tasks=3, seed=seed).init(jnp.zeros(3)).inner

    same = jax.random.key_data(orders(jax.random.PRNGKey(5))) == jax.random.key_data(orders(jax.random.key(5)))
    assert same.all()
    batch = jax.vmap(lambda seed: jax.random.key_data(orders(seed)))(jax.random.split(jax.random.PRNGKey(0), 3))
    assert len(np.unique(batch.reshape(3, -1), axis=0)) == 3


@pytest.mark.parametrize("state", [(), None, {"count": 0}, optax.EmptyState()])
def test_the_state_of_something_else(state):
    tx = grads.aggregate(grads.mean(), num_tasks=2)
    refused("state must be the AggregateState that `init` returned, not a", lambda: tx.update(jnp.eye(2), state))


def test_observing_between_the_steps_of_accumulate():
    """Micro-batches differ: to take the next one's losses for those after a step taught FAMO noise."""
    method, zero = grads.famo(gamma=0.0), jnp.zeros(2)
    tx = grads.accumulate(optax.chain(grads.aggregate(method, num_tasks=2), optax.sgd(0.1)), 2, num_tasks=2)
    state = tx.init(zero)
    for losses in ([1.0, 1.0], [9.0, 1.0]) * 2:
        _, state = tx.update(jnp.eye(2), state, zero, losses=jnp.array(losses))
        state = grads.observe(method, state, jnp.array([5.0, 1.0]) if losses[0] == 9 else jnp.array(losses))
    np.testing.assert_array_equal(grads.find_state(state).inner.logits, 0)
    _, state = tx.update(jnp.eye(2), state, zero, losses=jnp.ones(2))
    _, state = tx.update(jnp.eye(2), state, zero, losses=jnp.ones(2))
    logits = grads.find_state(jax.jit(lambda s: grads.observe(method, s, jnp.array([0.5, 1.0])))(state)).inner.logits
    assert logits[0, 0] < logits[0, 1]


class Network(nnx.Module):
    def __init__(self, rngs):
        self.trunk, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.trunk(x)))


@pytest.mark.parametrize(
    "shared", [lambda p: p == "trunk/kernel", lambda p: p.endswith("kernel"), lambda p: p.startswith("trunk")]
)
def test_paths_of_flax_nnx(shared):
    """`nnx.Optimizer` initialises with variables and updates with arrays: a predicate that fits one must fit both."""
    model, seen = Network(nnx.Rngs(0)), []
    tx = optax.chain(
        grads.aggregate(grads.mgda(), num_tasks=2, shared=lambda p: (seen.append(p), shared(p))[1]), optax.sgd(0.1)
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    definition, params = nnx.split(model)
    losses = lambda p: jnp.mean(nnx.merge(definition, p)(jnp.ones((5, 3))) ** 2, axis=0)  # noqa: E731
    optimizer.update(model, jax.jacrev(losses)(params))
    assert set(seen) == {"trunk/kernel", "trunk/bias", "head/kernel", "head/bias"}


def test_a_field_of_ones_own_named_value():
    """Only variables of flax lose that part of their path."""
    record = jax.tree_util.register_dataclass(type("Record", (), {}), ["value"], [])
    one = record()
    one.value, paths = jnp.zeros(2), []
    tx = grads.aggregate(grads.mean(), num_tasks=2, shared=lambda p: (paths.append(p), True)[1])
    tx.init({"critic": one})
    assert paths == ["critic/value"]
