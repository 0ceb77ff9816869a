"""Constants in the state: a sweep over CAGrad's c, or any other, must be what its trials would be alone."""

import functools
import re

import chex
import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from mtjax import grads
from mtjax.grads import constants, registry

T = 3
# Two specifications of one program.
PAIRS = {
    "cagrad rescaled": ("cagrad(c=0.2, rescale='1+c')", "cagrad(0.9, '1+c')"),
    "gradnorm": ("gradnorm(alpha=0.1)", "gradnorm(alpha=9)"),
    "fairgrad clipped": ("fairgrad(0.5, max_norm=1.0)", "fairgrad(2.0, 0.1)"),
    "dwa": ("dwa(temperature=1.0)", "dwa(temperature=4.0)"),
    "stch preferring": ("stch(1.0, (1.0, 2.0, 3.0))", "stch(0.5, (3.0, 2.0, 1.0))"),
    "fixed": ("fixed((1.0, 2.0, 3.0))", "fixed((0.5, 0.0, 1.0))"),
    "famo": ("famo(gamma=0.0)", "famo(gamma=30.0)"),
    "sdmgrad": ("sdmgrad(lam=0.1)", "sdmgrad(lam=2.0, step_size=0.01)"),
    "modo": ("modo(step_size=0.01)", "modo(step_size=0.1, rho=0.5)"),
    "moco": ("moco(beta=0.2)", "moco(beta=0.9, gamma=0.01, rho=0.1)"),
    "db_mtl": ("db_mtl(beta=0.5)", "db_mtl(beta=0.9, beta_decay=0.5)"),
    "excess_mtl": ("excess_mtl(step_size=0.1)", "excess_mtl(step_size=1.0)"),
    "smoothed": ("cr_mogm(cagrad(c=0.1), alpha=0.5)", "cr_mogm(cagrad(c=0.8), alpha=0.9)"),
    "pcd": ("pcd(tau=0.1, beta=0.5)", "pcd(tau=0.9, epsilon=0.1)"),
    "seldom": ("every_k(gradvac(beta=0.1), 2)", "every_k(gradvac(beta=0.8), 2)"),
}


def test_every_method_with_a_constant_is_tried():
    """A new method's numbers are moved, or are said to be code (integers, switches) by its signature."""
    tried = {name for pair in PAIRS.values() for spec in pair for name in re.findall(r"(\w+)\(", spec)}
    needed = {"fixed": "fixed((1.0,))", "cr_mogm": "cr_mogm(mgda)"}
    plain = set(grads.names()) - {"every_k", "normalize"}
    assert {name for name in plain if constants.of(needed.get(name, name))} <= tried


def three_steps(method, method_state=None):
    """Directions [3, P] on three samples of gradients, telling FAMO of the losses after each step."""
    tx = grads.aggregate(method, num_tasks=T, seed=1)
    g = np.stack([jacobians.jacobian("iid", T, 5, seed=n) for n in range(3)]).astype(np.float32)
    losses = np.array([[1.0, 2.0, 3.0], [2.0, 0.5, 3.0], [3.0, 0.2, 1.0]], np.float32)

    def step(state, sample):
        update, state = tx.update(sample[0], state, losses=sample[1])
        return grads.observe(method, state, sample[1] * jnp.array([0.9, 0.5, 1.2])), update

    state = tx.init(jnp.zeros(5))
    state = state if method_state is None else state._replace(inner=method_state(state.inner))
    return jax.lax.scan(step, state, (g, losses))[1]


@functools.cache
def side_by_side():
    """Every pair under vmap, and each of its methods alone with its constants written down: {pair: directions}."""

    def together(name):
        values = [constants.of(spec) for spec in PAIRS[name]]
        stacked = {key: np.array([value[key] for value in values], np.float32) for key in values[0]}

        def with_constants(chosen):
            def renew(inner):
                like = {key: jnp.broadcast_to(value, inner.constants[key].shape) for key, value in chosen.items()}
                return inner._replace(constants=like)

            return three_steps(grads.tunable(PAIRS[name][0]), renew)

        return jax.vmap(with_constants), stacked

    pairs = {name: together(name) for name in PAIRS}
    moved = quick.jit(lambda given: quick.each(PAIRS, lambda name: pairs[name][0](given[name])))
    alone = quick.jit(lambda: quick.each(PAIRS, lambda name: [three_steps(grads.get(spec)) for spec in PAIRS[name]]))
    return jax.device_get((moved({name: stacked for name, (_, stacked) in pairs.items()}), alone()))


@pytest.mark.parametrize("name", PAIRS)
def test_many_constants_in_one_program(name):
    """Side by side under vmap, each gives what it gives where its constants are written into the program."""
    assert len({constants.code(spec) for spec in PAIRS[name]}) == 1
    together, alone = [directions[name] for directions in side_by_side()]
    for own, expected in zip(together, alone, strict=True):
        chex.assert_trees_all_close(own, expected, rtol=2e-4, atol=2e-5)
    assert not np.allclose(*together, rtol=1e-3)  # the constant does something here


def test_what_is_code_stays_code():
    assert constants.code("pcgrad") == "pcgrad(reduction='sum')" and not constants.of("pcgrad")
    assert grads.tunable("mean").init(2) == () and grads.tunable("pcgrad").residual is None
    for other in ("cagrad(rescale='1+c')", "nash_mtl", "every_k(nash_mtl(max_norm=1.0), 3)", "sdmgrad(steps=5)"):
        plain = {"cagrad(rescale='1+c')": "cagrad", "nash_mtl": "nash_mtl(max_norm=1.0)"}.get(other)
        plain = plain or {"sdmgrad(steps=5)": "sdmgrad"}.get(other, "every_k(nash_mtl(max_norm=1.0), 4)")
        assert constants.code(other) != constants.code(plain)
    assert constants.code("fixed((1, 2))") != constants.code("fixed((1, 2, 3))")  # another shape
    assert constants.code("stch(preference=(1,))") != constants.code("stch(preference=1)")
    assert constants.code("graddrop(leak=0.5)") != constants.code("graddrop")  # without a leak it is other, faster code


def test_a_constant_that_cannot_be_is_refused_before_it_is_traced():
    with pytest.raises(ValueError, match="c must be at least 0, got -1"):
        grads.tunable("cagrad(c=-1)")
    with pytest.raises(ValueError, match="mu must be greater than 0"):
        grads.tunable("stch(mu=0)")


def test_a_method_of_ones_own_moves_what_its_signature_says(monkeypatch):
    def scaled(size: grads.base.Number = 1.0, times: int = 2, other=3.0) -> grads.Weighting:
        def update(gram, state, *, losses=None):
            return size * jnp.ones(gram.shape[-1]) * sum(range(times)) * float(other), state

        return grads.Weighting(lambda num_tasks: (), update)

    monkeypatch.setitem(registry.METHODS, "scaled", scaled)
    assert constants.of("scaled") == {"size": 1.0}
    assert constants.code("scaled") == "scaled(size=*, times=2, other=3.0)"
    method = grads.tunable("scaled(size=2.0)", "own.")
    state = method.init(2)
    assert list(state.constants) == ["own.size"]
    chex.assert_trees_all_close(jax.jit(method.update)(np.eye(2), state)[0], np.full(2, 6.0, np.float32))
