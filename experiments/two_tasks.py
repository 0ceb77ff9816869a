"""Shared by the two-task examples: descent from several starts, one picture of the paths, one file of results."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from mtjax import grads
from mtjax.grads import registry


def are_methods(specs: Sequence[str]) -> bool:
    """Flag validator: refuses names that are not methods for two tasks, and suggests the nearest one."""
    for spec in specs:
        try:
            registry.try_out(spec, 2)
        except ValueError as error:
            raise flags.ValidationError(str(error)) from None
    return True


def descend(losses: Callable, spec: str, starts: Sequence, *, rate: float, steps: int, every: int) -> tuple:
    """Run Adam on a method's direction from every start.

    Args:
      losses: a point [2] -> the two losses [2].
      spec: a method by name, "cagrad(c=0.5)".
      starts: points [N, 2].
      rate: Adam's learning rate.
      steps: number of updates.
      every: updates between two points of the result.

    Returns:
      Points [N, steps/every, 2], and the cosine of the two gradients there [N, steps/every].
    """
    tx = optax.chain(grads.aggregate(grads.get(spec), num_tasks=2, track_gram=True), optax.adam(rate))

    def update(_, carry):
        p, state = carry
        updates, state = tx.update(jax.jacrev(losses)(p), state, p, losses=losses(p))
        return optax.apply_updates(p, updates), state

    def record(carry, _):
        p, state = jax.lax.fori_loop(0, every, update, carry)
        return (p, state), (p, grads.conflict(grads.find_state(state).gram)["min_cosine"])

    def one(start):
        return jax.lax.scan(record, (start, tx.init(start)), None, length=steps // every)[1]

    tracks, cosines = jax.jit(jax.vmap(one))(jnp.array(starts))
    return np.asarray(tracks), np.asarray(cosines)


def surface(losses: Callable, side: float, points: int, reduce: Callable) -> tuple[np.ndarray, np.ndarray]:
    """An axis [points] from −side to side, and `reduce` of the losses on its square [points, points]."""
    axis = jnp.linspace(-side, side, points)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1)
    return np.asarray(axis), np.asarray(reduce(jax.vmap(jax.vmap(losses))(grid), axis=-1))


def draw(paths: Mapping[str, np.ndarray], starts: Sequence, axis: np.ndarray, height: np.ndarray, file: pathlib.Path):
    """Draw one panel per method: contours, the paths from all starts, a star at each end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(paths), 3)
    rows = -(-len(paths) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 3.2 * rows), squeeze=False, sharex=True, sharey=True
    )
    for axes in panels.flat[len(paths) :]:
        axes.remove()
    for axes, (name, tracks) in zip(panels.flat, paths.items(), strict=False):
        axes.contour(axis, axis, height, 25, linewidths=0.4, cmap="Greys")
        for start, track in zip(starts, tracks, strict=True):
            axes.plot(*np.vstack([start, track]).T, linewidth=1.2)
            axes.plot(*start, "o", color="black", markersize=3)
            axes.plot(*track[-1], "*", color="black", markersize=8)
        axes.set(title=name, xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]))
    figure.suptitle("dots: starts; stars: ends", fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def save(result: Mapping[str, Any], file: pathlib.Path) -> None:
    """Writes the result as JSON, and prints it."""
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def folder(path: str) -> pathlib.Path:
    """The folder for a study's files, created if it is missing."""
    out = pathlib.Path(path)
    out.mkdir(parents=True, exist_ok=True)
    return out
