"""Exact Distral: against plain NumPy, its objective, its limiting cases, and the paper's corridor."""

import functools

import jax
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs import gridworld
from mtjax.learners import distral_tabular as distral

DISCOUNT = 0.9
MAP = ["#######", "#..#..#", "#.....#", "#..#..#", "#######"]
# Compiled whole, and for any costs: eagerly, each operation would be a program of its own.
SOLVE = jax.jit(distral.solve, static_argnames="iterations")
SOLVE_TASK, OCCUPANCY, OBJECTIVE = map(jax.jit, (distral.solve_task, distral.occupancy, distral.objective))


@functools.cache
def make_tables(goals=((1, 1), (1, 5), (3, 5))):
    """Tables of three tasks, in NumPy."""
    tasks = gridworld.stack_tasks([gridworld.make_task(MAP, goal) for goal in goals])
    return jax.device_get(jax.jit(jax.vmap(gridworld.transition_table))(tasks))


def log_softmax(logits):
    logits = logits.astype(np.float32)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def one(tables, index):
    return jax.tree.map(lambda leaf: leaf[index], tables)


def random_policy(seed, tables):
    return log_softmax(np.random.default_rng(seed).normal(size=tables.reward.shape[-2:]))


def as_numpy(table):
    """P [S, A, S], R [S, A], where the episode goes on [S], start [S]: float64."""
    probability = np.asarray(table.probability, np.float64)
    return probability, np.asarray(table.reward, np.float64), ~np.asarray(table.terminal), np.asarray(table.start)


def reference_solution(table, log_prior, alpha, beta):
    """Soft value iteration in float64, with its terms as in the paper."""
    probability, reward, alive, _ = as_numpy(table)
    prior = np.exp(np.asarray(log_prior, np.float64))
    value = np.zeros(len(alive))
    for _ in range(2000):
        q = reward + DISCOUNT * probability @ value
        value = np.log((prior**alpha * np.exp(beta * q)).sum(axis=1)) / beta * alive
    q = reward + DISCOUNT * probability @ value
    weights = prior**alpha * np.exp(beta * q)
    return value, q, weights / weights.sum(axis=1, keepdims=True)


def reference_occupancy(table, policy):
    """(I − γ Pᵀ) d = start, solved."""
    probability, _, alive, start = as_numpy(table)
    flow = np.einsum("sa,sat->st", policy, probability) * alive[:, None]
    return np.linalg.solve(np.eye(len(alive)) - DISCOUNT * flow.T, start) * alive


def reference_objective(table, policy, log_prior, alpha, beta):
    """Σ_s d(s) Σ_a π(a|s) (R + (α/β) log π₀ − (1/β) log π): J by occupancies instead of values."""
    reward = np.asarray(table.reward, np.float64)
    terms = reward + alpha / beta * np.asarray(log_prior, np.float64) - np.log(policy) / beta
    return (reference_occupancy(table, policy)[:, None] * policy * terms).sum()


@pytest.mark.parametrize("kl_cost, entropy_cost", [(0.1, 0.05), (0.0, 0.2), (0.3, 0.0)])
def test_a_task_against_numpy(kl_cost, entropy_cost):
    table = one(make_tables(), 1)
    log_prior = random_policy(0, table)
    alpha, beta = distral.coefficients(kl_cost, entropy_cost)
    found = SOLVE_TASK(table, log_prior, alpha=alpha, beta=beta, discount=DISCOUNT)
    value, q, policy = reference_solution(table, log_prior, float(alpha), float(beta))
    alive = ~np.asarray(table.terminal)
    np.testing.assert_allclose(found.value, value, atol=2e-5)
    np.testing.assert_allclose(found.action_value, q, atol=2e-5)
    np.testing.assert_allclose(np.exp(found.log_policy)[alive], policy[alive], atol=5e-4)


def test_occupancy_and_objective_against_numpy():
    table = one(make_tables(), 2)
    log_policy, log_prior = random_policy(1, table), random_policy(2, table)
    policy = np.exp(np.asarray(log_policy, np.float64))
    visits = np.asarray(OCCUPANCY(table, log_policy, discount=DISCOUNT))
    np.testing.assert_allclose(visits, reference_occupancy(table, policy), atol=2e-5)
    assert visits[np.asarray(table.terminal)].sum() == 0
    found = OBJECTIVE(table, log_policy, log_prior, alpha=0.7, beta=4.0, discount=DISCOUNT)
    assert found == pytest.approx(reference_objective(table, policy, log_prior, 0.7, 4.0), abs=2e-4)


def test_the_value_is_the_objective_of_its_own_policy():
    """V at the start and J agree for the optimal policy, and no other policy has a higher J."""
    table = one(make_tables(), 0)
    log_prior = random_policy(3, table)
    coefficient = {"alpha": 0.6, "beta": 5.0, "discount": DISCOUNT}
    solution = jax.device_get(SOLVE_TASK(table, log_prior, **coefficient))
    best = OBJECTIVE(table, solution.log_policy, log_prior, **coefficient)
    assert best == pytest.approx(float(table.start @ solution.value), abs=1e-4)
    for key in range(5):
        nearby = log_softmax(solution.log_policy + 0.3 * random_policy(key, table))
        assert OBJECTIVE(table, nearby, log_prior, **coefficient) < best


def test_distilling_is_maximum_likelihood():
    tables = make_tables()
    policies = np.stack([random_policy(key, tables) for key in range(3)])
    visits = np.random.default_rng(9).uniform(size=policies.shape[:2]).astype(np.float32)
    visits[:, 5] = 0.0
    previous = random_policy(8, tables)
    log_prior = np.asarray(jax.jit(distral.distill)(visits, policies, previous))
    expected = np.einsum("ts,tsa->sa", visits, np.exp(policies))
    seen = np.arange(len(expected)) != 5
    np.testing.assert_allclose(
        np.exp(log_prior)[seen], expected[seen] / expected[seen].sum(axis=1, keepdims=True), rtol=1e-4
    )
    np.testing.assert_array_equal(log_prior[5], previous[5])

    def likelihood(log_prior):
        return (visits[..., None] * np.exp(policies) * log_prior).sum()

    for key in range(5):
        assert likelihood(log_softmax(log_prior + 0.1 * random_policy(key, tables))) < likelihood(log_prior)


@pytest.mark.parametrize("kl_cost, entropy_cost", [(0.1, 0.05), (0.4, 0.0), (0.02, 0.3)])
def test_no_half_step_lowers_the_objective(kl_cost, entropy_cost):
    solution = SOLVE(make_tables(), kl_cost=kl_cost, entropy_cost=entropy_cost, discount=DISCOUNT, iterations=12)
    steps = np.diff(np.asarray(solution.objective, np.float64))
    assert (steps > -1e-4).all() and steps[0] > 1e-3


def test_without_kl_the_tasks_are_independent_soft_learners():
    tables = make_tables()
    solution = jax.device_get(SOLVE(tables, kl_cost=0.0, entropy_cost=0.2, discount=DISCOUNT, iterations=3))
    flat = np.zeros(tables.reward.shape[1:], np.float32)
    for index in range(3):
        table = one(tables, index)
        alone = SOLVE_TASK(table, flat, alpha=0.0, beta=5.0, discount=DISCOUNT)
        np.testing.assert_allclose(solution.tasks.log_policy[index], alone.log_policy, atol=1e-5)


def test_one_task_without_entropy_cost_is_plain_control():
    """α = 1 and one task: π₀ follows π, the penalty vanishes, and J climbs to the unregularised optimum."""
    table = one(make_tables(), 0)
    alone = jax.tree.map(lambda leaf: leaf[None], table)
    solution = jax.device_get(SOLVE(alone, kl_cost=0.2, entropy_cost=0.0, discount=DISCOUNT, iterations=60))
    probability, reward, alive, start = as_numpy(table)
    value = np.zeros(len(alive))
    for _ in range(500):
        value = (reward + DISCOUNT * probability @ value).max(axis=1) * alive
    assert solution.objective[-1] == pytest.approx(start @ value, abs=2e-3)
    assert solution.objective[0] < start @ value - 0.05


def test_memory_keeps_the_dynamics():
    table = one(make_tables(), 0)
    wide = jax.device_get(jax.jit(distral.remember)(table))
    cells, actions = table.next_state.shape
    assert wide.next_state.shape == (cells * (actions + 1), actions)
    np.testing.assert_array_equal(wide.next_state % cells, np.tile(table.next_state, (actions + 1, 1)))
    np.testing.assert_array_equal(wide.next_state // cells, np.tile(np.arange(actions), (len(wide.next_state), 1)))
    np.testing.assert_array_equal(wide.start[-cells:], table.start)
    narrow = SOLVE_TASK(table, np.zeros_like(table.reward), alpha=0.0, beta=5.0, discount=DISCOUNT)
    same = SOLVE_TASK(wide, np.zeros_like(wide.reward), alpha=0.0, beta=5.0, discount=DISCOUNT)
    np.testing.assert_allclose(same.value, np.tile(narrow.value, actions + 1), atol=1e-5)


def test_the_distilled_policy_keeps_its_direction_in_the_corridor():
    """Section 4.1: goals lie on both sides, so place alone does not tell where to go, the last action does."""
    suite = suites.make("gridworld-two-rooms")
    cells, width = 7 * 17, 17
    corridor = np.asarray([3 * width + column for column in range(7, 10)], np.int32)
    right, left = gridworld.ACTIONS.index("right"), gridworld.ACTIONS.index("left")
    costs = {"kl_cost": 0.05, "entropy_cost": 0.01, "discount": 0.95, "iterations": 20}

    def prior(memory):
        tables = jax.jit(lambda: distral.tables(suite, memory=memory))()
        return np.asarray(SOLVE(tables, **costs).log_prior)

    blind = np.exp(prior(memory=False)[corridor])
    assert (np.abs(blind[:, right] - blind[:, left]) < 0.2).all()
    again = np.asarray(jax.jit(distral.keeps_direction, static_argnums=2)(prior(memory=True), corridor, cells))
    assert (again[:, [left, right]] > 0.9).all()
