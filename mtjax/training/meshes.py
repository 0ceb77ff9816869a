"""Sharding of seeds and environments over the devices of a mesh.

Arrays are placed on devices, and XLA partitions the programs: leaves of the state lead with [S], sharded along "seed";
those of environments and rollouts also have an axis E, sharded along "env". Parameters and replays are replicated along
"env". Rollouts need no communication; an update averages gradients over "env" once per minibatch. Results equal those
of one device, up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtjax import options, sharding
from mtjax.sharding import AXES, ENV, SEED
from mtjax.suites.base import Suite
from mtjax.training.config import RunConfig


class Layout(NamedTuple):
    """Number of devices along each axis of a mesh; ``seed`` · ``env`` in total."""

    seed: int = 1
    env: int = 1

    @property
    def size(self) -> int:
        return self.seed * self.env

    def __str__(self) -> str:
        return ",".join(f"{name}:{number}" for name, number in self._asdict().items() if number > 1) or "one device"


ONE = Layout()


def parse(text: str) -> Layout:
    """Parse a layout such as "seed:4,env:2"; "" is one device.

    Raises:
        ValueError: an axis is unknown (the message names the nearest) or repeated, or its number is not at least 1.
    """
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, number = (word.strip() for word in part.partition(":"))
        if name not in AXES:
            raise ValueError(f"mesh {text!r}: {options.unknown('axis', name, AXES)}")
        if name in found:
            raise ValueError(f"mesh {text!r} names the axis {name} twice")
        if not colon or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"mesh {text!r}: {part!r} has no number of devices; write e.g. seed:4,env:2")
        found[name] = int(number)
    return Layout(**found)


def check(layout: Layout, config: RunConfig, suite: Suite, *, devices: int, processes: int = 1) -> None:
    """Refuse a layout that does not fit the run or the machine, before anything is compiled.

    Args:
        layout: how many devices along each axis.
        config: the run's configuration.
        suite: its tasks.
        devices: number of devices of all processes.
        processes: number of processes that train the run together.

    Raises:
        ValueError: the layout does not fit; the message is one line that says why.
    """
    if processes > 1 and not suite.on_device:
        raise ValueError(f"suite {suite.name!r} runs its simulators on the host, in one process, not {processes}")
    if processes > 1 and layout.size == 1:
        raise ValueError(
            f"{processes} processes have {devices} devices: divide the run among them, e.g. --mesh=env:{devices}"
        )
    if layout.size == 1:
        return
    mesh = f"mesh {layout}"
    if not suite.on_device:
        raise ValueError(
            f"{mesh}: suite {suite.name!r} runs its simulators on the host and uses one device; "
            "its environments and seeds cannot be divided"
        )
    if layout.size != devices:
        raise ValueError(f"{mesh} needs {layout.size} devices, but there are {devices}")
    divides = [(SEED, "num_seeds", config.num_seeds), (ENV, "num_envs", config.num_envs)]
    if hasattr(config.hyper, "num_minibatches"):
        batch = config.hyper.rollout_length * config.num_envs // config.hyper.num_minibatches
        divides.append((ENV, "a minibatch, rollout_length × num_envs / num_minibatches =", batch))
    if hasattr(config.hyper, "batch_size"):
        divides.append((ENV, "batch_size", config.hyper.batch_size))
    for axis, what, number in divides:
        if number % getattr(layout, axis):
            raise ValueError(f"{mesh}: {axis}:{getattr(layout, axis)} does not divide {what} {number}")


class Placement:
    """How a run's arrays are placed, and programs that keep them there. On one device it changes nothing.

    Attributes:
        layout: devices along each axis.
        mesh: the mesh, or None for one device.
        seeds, envs, rollout, everywhere: shardings of leaves [S, ...], [S, T, E, ...], [S, H, T, E, ...] and of
            replicated leaves; None on one device.
    """

    def __init__(self, layout: Layout = ONE):
        self.layout = layout
        self.mesh: Mesh | None = None
        if layout.size > 1:
            self.mesh = jax.make_mesh(tuple(layout), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        self.seeds = self._sharding(SEED)
        self.envs = self._sharding(SEED, None, ENV)
        self.rollout = self._sharding(SEED, None, None, ENV)
        self.everywhere = self._sharding()

    def _sharding(self, *axes: str | None) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*axes))

    def jit(
        self, function: Callable, *, takes: Any = None, gives: Any, donate: int | tuple[int, ...] = (),
        options: Mapping[str, str] | None = None,
    ) -> Callable:  # fmt: skip
        """``jax.jit`` with shardings.

        Args:
            function: a pure function.
            takes: shardings of its arguments; None keeps those that the arguments have.
            gives: shardings of its results.
            donate: indices of the donated arguments.
            options: XLA compiler options.
        """
        if self.mesh is None:
            return jax.jit(function, donate_argnums=donate, compiler_options=options)

        @functools.wraps(function)
        def traced(*arguments: Any) -> Any:
            with sharding.on_mesh(self.mesh):
                return function(*arguments)

        shardings = {"out_shardings": gives} | ({} if takes is None else {"in_shardings": takes})
        return jax.jit(traced, donate_argnums=donate, compiler_options=options, **shardings)

    def place(self, tree: Any, shardings: Any) -> Any:
        """Place a tree on devices by ``shardings``, which is a tree or a prefix of one."""
        if self.mesh is None:
            return tree
        return jax.tree.map(
            lambda sharding, part: jax.tree.map(lambda leaf: _put(leaf, sharding), part), shardings, tree
        )

    def described(self, tree: Any, shardings: Any) -> Any:
        """Add ``shardings``, which is a tree or a prefix of one, to a tree of shapes and dtypes."""
        if self.mesh is None:
            return tree

        def describe(sharding: NamedSharding, part: Any) -> Any:
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

        return jax.tree.map(describe, shardings, tree)

    def whole(self, tree: Any) -> Any:
        """The tree with every leaf in full on one device of this process; unchanged if there is only one process.

        If there are several processes, all of them must call this.
        """
        if self.mesh is None or jax.process_count() == 1:
            return tree
        everywhere = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=self.everywhere)(tree)
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), everywhere)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    return jax.jit(lambda x: x, out_shardings=sharding)(leaf)  # device_put rejects PRNG keys of several processes


def placed(layout: Layout, config: RunConfig, suite: Suite) -> Placement:
    """The placement of a run's arrays on the available devices. Raises ValueError like :func:`check`."""
    check(layout, config, suite, devices=jax.device_count(), processes=jax.process_count())
    return Placement(layout)
