"""mtjax: multi-task reinforcement learning in JAX.

The rooms of the house, in the order of the story: a *suite* names tasks, *environments* step them,
*networks* say what the tasks share, a *learner* turns experience into one loss per task, *grads* turn
one gradient per task into one update, *training* runs that loop, *sweeps* run many of them, *report* puts
them on one page, and *launch* holds the commands.

Nothing is imported here, so that ``import mtjax.grads`` costs jax and optax and no simulator.
"""

__version__ = "0.1.0"
