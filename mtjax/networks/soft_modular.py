"""Soft Modularization (arXiv 2003.13661): layers of modules, and a router that decides which module listens to which.

A base network maps the observation to f, and a linear layer maps the task vector to h; φ = f ⊙ h. The router turns φ
into probabilities P^l [n, n]: module i of layer l + 1 listens to module j of layer l with weight P^l_ij, and the rows
sum to 1. σ is the non-linearity (ReLU in the paper), and each W is a linear layer.

``paper``, as printed. Logits p^1 = W σ(φ), p^{l+1} = W σ((W p^l) ⊙ φ); P^l = softmax of the rows of p^l.
Inputs of the first layer's modules are f; g_i^{l+1} = Σ_j P^l_ij σ(W_j^l g_j^l). The output is Σ_j W_j^L g_j^L:
here the features are g_1^L … g_n^L, and the head plays the part of the last layer's modules.

``official``, as in the authors' code. φ goes through two more layers (the gate, 256 wide in the named sizes). The
router's W sees the probabilities of ALL earlier layers. Inputs of the first layer's modules are σ(f), and
g_i^{l+1} = σ(Σ_j P^l_ij W_j^l g_j^l): the non-linearity comes after the sum. A last routing q [n] mixes the last
layer: features σ(Σ_j q_j W_j^L g_j^L).

"Hard" routing takes only the most probable source, with the gradient of soft routing (straight-through).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Body, Parameters, Shape, Weights
from mtjax.networks.components import ACTIVATIONS, Trunk, dense, init_dense, init_stack
from mtjax.networks.config import MODULES, NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array
GATE = 256
EVEN = 0.01  # gain of the layers that output logits: routing starts near 1/n


def make_soft_modular(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """Soft Modularization. ``hidden_sizes`` sets the base network, ``modules`` the modules. All of it is shared."""
    paper = config.modular_variant == "paper"
    layers, number, width = config.module_sizes
    base = Trunk(shape.sizes, config.activation, config.layer_norm, linear_end=True)
    size = shape.sizes[-1]
    hard = config.routing == "hard"
    gate = GATE if config.modules in MODULES else width

    def init(key: Array) -> Parameters:
        keys = jax.random.split(key, 4)
        shared = {
            "base": base.init(keys[0], jnp.zeros((inputs,), jnp.float32)),
            "task": init_dense(keys[1], told, size, 1.0),
            "router": (_init_paper_router if paper else _init_official_router)(keys[2], size, layers, number, gate),
        }
        for layer, layer_key in enumerate(jax.random.split(keys[3], layers)[: layers - 1 if paper else layers]):
            entry = width if layer else size
            shared[f"modules_{layer}"] = init_stack(lambda k, n=entry: init_dense(k, n, width), layer_key, number)
        return Parameters(shared, {})

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        activation = ACTIVATIONS[config.activation]
        f = base.apply(shared["base"], x)
        route = _paper_router if paper else _official_router
        logits, last = route(shared["router"], f * dense(shared["task"], z), layers, number, activation, hard)
        routing = jnp.stack([_choose(p, hard) for p in logits], axis=-3)  # [..., L-1, n, n]
        g = jnp.repeat((f if paper else activation(f))[..., None, :], number, axis=-2)  # [..., n, size]
        for layer in range(layers - 1):
            g, p = _modules(shared[f"modules_{layer}"], g), routing[..., layer, :, :]
            g = p @ activation(g) if paper else activation(p @ g)
        flat = routing.reshape(*routing.shape[:-3], -1, number)
        if paper:
            return g.reshape(*g.shape[:-2], -1), {"routing": flat}
        g, mix = _modules(shared[f"modules_{layers - 1}"], g), _choose(last, hard)
        features = activation(jnp.einsum("...n,...nw->...w", mix, g))
        return features, {"routing": jnp.concatenate([flat, mix[..., None, :]], axis=-2)}

    return Body(init, apply, number * width if paper else width, f"modules_{layers - 2 if paper else layers - 1}/")


def _modules(p: Any, g: Array) -> Array:
    """Apply every module of a layer to its own input: [..., n, in] to [..., n, width]."""
    return jnp.einsum("...ni,niw->...nw", g, p["kernel"]) + p["bias"]


def _choose(logits: Array, hard: bool) -> Array:
    """Probabilities over the last axis; if ``hard``, one-hot with the gradient of the soft probabilities."""
    soft = jax.nn.softmax(logits, axis=-1)
    if not hard:
        return soft
    chosen = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    return chosen + (soft - jax.lax.stop_gradient(soft))


# -------------------------------------------------------------------------------------------- routers


def _init_paper_router(key: Array, size: int, layers: int, number: int, gate: int) -> dict[str, Any]:
    keys = iter(jax.random.split(key, 2 * layers))
    router = {f"down_{layer}": init_dense(next(keys), size, number**2, EVEN) for layer in range(layers - 1)}
    return router | {f"up_{layer}": init_dense(next(keys), number**2, size, 1.0) for layer in range(1, layers - 1)}


def _paper_router(
    p: Any, phi: Array, layers: int, number: int, activation: Callable, hard: bool
) -> tuple[list[Array], Array | None]:
    """Logits [..., n, n] of the L − 1 routings; each sees the LOGITS of the previous one."""
    logits = [dense(p["down_0"], activation(phi))]
    for layer in range(1, layers - 1):
        seen = activation(dense(p[f"up_{layer}"], logits[-1]) * phi)
        logits.append(dense(p[f"down_{layer}"], seen))
    return [x.reshape(*x.shape[:-1], number, number) for x in logits], None


def _init_official_router(key: Array, size: int, layers: int, number: int, gate: int) -> dict[str, Any]:
    keys = iter(jax.random.split(key, 2 * layers + 2))
    router = {"gate_0": init_dense(next(keys), size, gate), "gate_1": init_dense(next(keys), gate, gate)}
    for layer in range(layers):
        outputs = number if layer == layers - 1 else number**2
        router[f"down_{layer}"] = init_dense(next(keys), gate, outputs, EVEN)
        if layer:
            router[f"up_{layer}"] = init_dense(next(keys), layer * number**2, gate)
    return router


def _official_router(
    p: Any, phi: Array, layers: int, number: int, activation: Callable, hard: bool
) -> tuple[list[Array], Array]:
    """Logits [..., n, n] of the L − 1 routings, and [..., n] of the last; each sees all earlier PROBABILITIES."""
    phi = dense(p["gate_1"], activation(dense(p["gate_0"], activation(phi))))
    logits, seen = [], []
    hidden = activation(phi)
    for layer in range(layers):
        if layer:
            hidden = activation(dense(p[f"up_{layer}"], jnp.concatenate(seen, axis=-1)) * phi)
        found = dense(p[f"down_{layer}"], hidden)
        if layer == layers - 1:
            return logits, found
        found = found.reshape(*found.shape[:-1], number, number)
        logits.append(found)
        seen.append(_choose(found, hard).reshape(*found.shape[:-2], -1))
    raise AssertionError("there are at least two layers")
