"""Training of a learner in one program, and what it should learn, for tests."""

import functools

import jax

from mtjax.learners.base import Transitions


def learn(agent, envs, *, length, updates, metric):
    """Rollouts of ``length`` steps and updates in turn. Gives the last state and a metric [updates, ...], in NumPy."""

    def act(state, carry, key):
        env_state, observation = carry
        keys = jax.random.split(key)
        action, extras = agent.act(state, observation, keys[0])
        env_state, step = envs.step(env_state, action, keys[1])
        known = (observation, step.reward, step.terminated, step.truncated, step.final_observation)
        return (env_state, step.observation), Transitions(*known, extras)

    def update(carry, key):
        state, where = carry
        keys = jax.random.split(key, length + 1)
        where, rollout = jax.lax.scan(functools.partial(act, state), where, keys[1:])
        state, metrics = agent.update(state, rollout, keys[0])
        return (state, where), metrics[metric]

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 3)
        start = agent.init(keys[0]), envs.reset(keys[1])
        (state, _), history = jax.lax.scan(update, start, jax.random.split(keys[2], updates))
        return state, history

    return jax.device_get(run(jax.random.key(0)))


def optimal_of(env, tasks, discount):
    """The exact answers to a probe, of every task, in NumPy: eagerly, each of their stacks would be compiled apart."""
    return jax.device_get(jax.jit(jax.vmap(lambda task: env.optimal(task, discount)))(tasks))
