"""mtjax: multi-task reinforcement learning in JAX.

The subpackages, in pipeline order: a *suite* names tasks, *environments* step them, *networks* define what
the tasks share, a *learner* turns experience into one loss per task, *grads* combine one gradient per task
into one update, *training* runs that loop, *sweeps* launch many training runs, *report* puts their results
on one page, and *launch* holds the commands.

Nothing is imported here, so that ``import mtjax.grads`` imports jax and optax but no simulator.
"""

__version__ = "0.1.0"
