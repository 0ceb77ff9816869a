"""Limiting cases: where an arrangement must become a simpler one, and what its mathematics promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.networks.arrangements import make_network
from mtjax.networks.base import Parameters
from mtjax.networks.config import NetworkConfig
from mtjax.networks.diagnostics import summarize
from mtjax.networks.moore import orthonormal
from mtjax.networks.task import Task, training_tasks

T, B, IN, D = 3, 4, 4, 6
DRAW = np.random.default_rng(0)
TASKS = jax.device_get(training_tasks(T, DRAW.normal(size=(T, D)).astype(np.float32)))
X = DRAW.normal(size=(T, B, IN)).astype(np.float32)


def build(arrangement, inputs=IN, **options):
    """A network, and parameters drawn by NumPy."""
    config = NetworkConfig(arrangement=arrangement, **{"hidden_sizes": (6, 7), "activation": "relu", **options})
    config.check()
    shape = {"inputs": inputs, "outputs": 2, "num_tasks": T, "contexts": D}
    network = make_network(config, sizes=config.hidden_sizes, gain=1.0, **shape)
    draw = np.random.default_rng(1)

    def leaf(shape):
        return (0.5 * draw.normal(size=shape.shape)).astype(np.float32)

    return network, jax.tree.map(leaf, jax.eval_shape(network.init, jax.random.key(0)))


def forward(network, p, x=X, tasks=TASKS):
    """Outputs [T, B, 2], NumPy's: what is done with them is not to be compiled."""
    return np.asarray(jax.jit(jax.vmap(network.apply, in_axes=(None, 0, 0, 0)))(p.shared, p.private, tasks, x))


def gradient_of(network, p):
    """That of the outputs' squares, in the shared parameters."""
    loss = lambda p: jnp.square(jax.vmap(network.apply, in_axes=(None, 0, 0, 0))(p.shared, p.private, TASKS, X)).sum()  # noqa: E731
    return jax.device_get(jax.jit(jax.grad(loss))(p)).shared


def diagnose(network, p, x=X, tasks=TASKS):
    return jax.device_get(jax.jit(jax.vmap(network.diagnose, in_axes=(None, 0, 0, 0)))(p.shared, p.private, tasks, x))


def task_of(tree, t):
    return jax.tree.map(lambda leaf: leaf[t], tree)


def first(tree):
    return task_of(tree, 0)


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


# ------------------------------------------------------------------------------------ one module is a perceptron


@pytest.mark.parametrize("selection", ["gate", "attention", "ensemble"])
def test_one_expert_is_the_plain_network(selection):
    network, p = build("experts", num_experts=1, selection=selection)
    plain, _ = build("embedding")
    parts = {"trunk": first(p.shared["experts"]), "head": p.shared["head"]}
    same(forward(network, p), forward(plain, p._replace(shared=parts)))


def test_one_parameter_set_of_weight_one_is_the_plain_network():
    network, p = build("paco", num_experts=1)
    plain, _ = build("none")
    p = p._replace(private={"mix": np.ones((T, 1))})
    same(forward(network, p), forward(plain, p._replace(shared=first(p.shared["sets"]), private={})))


def test_film_that_neither_scales_nor_shifts_is_the_plain_network():
    network, p = build("film")
    plain, _ = build("none")
    for name in ("film_0", "film_1"):
        p.shared[name]["film"] = jax.tree.map(np.zeros_like, p.shared[name]["film"])
    layers = {f"Dense_{i}": p.shared[f"film_{i}"]["layer"] for i in range(2)}
    parts = {"trunk": {"params": layers}, "head": p.shared["head"]}
    same(forward(network, p), forward(plain, p._replace(shared=parts, private={})))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_one_module_a_layer_is_a_perceptron(variant):
    """Nothing is left to route: base network, modules and head in a row."""
    network, p = build("soft_modular", modules="3x1x5", modular_variant=variant)
    layers = 2 if variant == "paper" else 3  # of the paper's variant, the last is the head
    base = p.shared["base"]["params"]
    x = np.maximum(X @ base["Dense_0"]["kernel"] + base["Dense_0"]["bias"], 0.0)
    x = x @ base["Dense_1"]["kernel"] + base["Dense_1"]["bias"]
    x = x if variant == "paper" else np.maximum(x, 0.0)
    for layer in range(layers):
        module = first(p.shared[f"modules_{layer}"])
        x = np.maximum(x @ module["kernel"] + module["bias"], 0.0)
    head = p.shared["head"]["params"]["Dense_0"]
    same(forward(network, p), x @ head["kernel"] + head["bias"])
    assert "routing_entropy" not in summarize(first(diagnose(network, p)))


def test_one_encoder_of_care_is_attended_to_alone():
    network, p = build("care", num_experts=1, encoder_sizes=(3,), context_sizes=(3,))
    np.testing.assert_array_equal(diagnose(network, p)["routing"], 1.0)


# ------------------------------------------------------------------------------------ what becomes a simpler network


def _dense(p, x):
    return x @ p["kernel"] + p["bias"]


def _alike(own):
    """Parts of the tasks [T, ...] that are all as the first task's is."""
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), own)


def _equal_private_parts(arrangement, plain, **options):
    """A part of each task's own that is the same in all of them is one part that they share."""
    network, p = build(arrangement)
    own = _alike(p.private)
    shared, _ = build(plain, **options)
    return forward(network, p._replace(private=own)), forward(shared, Parameters({**p.shared, **first(own)}, {}))


def _embedding_of_one_hot():
    network, p = build("embedding", embedding_size=T)
    plain, _ = build("one_hot")
    return forward(network, p._replace(private={"embedding": np.eye(T)})), forward(plain, Parameters(p.shared, {}))


def _context_of_one_hot():
    """A description that is the task's number, passed on as it is."""
    network, p = build("context", context_sizes=(T,))
    as_it_is = {"params": {"Dense_0": {"kernel": np.eye(D, T), "bias": np.zeros(T)}}}
    plain, _ = build("one_hot")
    rest = {name: p.shared[name] for name in ("trunk", "head")}
    tasks = TASKS._replace(context=np.eye(T, D))
    out = forward(network, p._replace(shared={"context": as_it_is, **rest}), tasks=tasks)
    return out, forward(plain, Parameters(rest, {}))


def _hypernetwork_that_does_not_move():
    network, p = build("hypernetwork")
    plain, _ = build("none")
    still = {**p.shared, "moves": jax.tree.map(np.zeros_like, p.shared["moves"])}
    return forward(network, p._replace(shared=still)), forward(plain, Parameters(p.shared["base"], {}))


def _moore_of_one_expert():
    """One vector is orthonormal once it has length 1: each task weighs it, and reads it with its own head."""
    network, p = build("moore", num_experts=1)
    layers = first(p.shared["experts"])["params"]
    features = _dense(layers["Dense_1"], np.maximum(_dense(layers["Dense_0"], X), 0.0))
    features = features / np.linalg.norm(features, axis=-1, keepdims=True)
    features = np.tanh(p.private["weights"][:, None] * features)
    heads = p.private["head"]["params"]["Dense_0"]
    return forward(network, p), np.stack([_dense(task_of(heads, t), features[t]) for t in range(T)])


def _care_of_one_encoder():
    """Nothing else to attend to: a network that is told the context, on what the encoder says."""
    network, p = build("care", num_experts=1, encoder_sizes=(5, 3), context_sizes=(3,))
    layers = first(p.shared["encoders"])["params"]
    encoding = _dense(layers["Dense_1"], np.maximum(_dense(layers["Dense_0"], X), 0.0))
    plain, _ = build("context", inputs=3, context_sizes=(3,))
    rest = {name: p.shared[name] for name in ("context", "trunk", "head")}
    return forward(network, p), forward(plain, Parameters(rest, {}), encoding)


def _even_routing(variant):
    """What every module listens to is the average of the layer before, and so is what the head reads."""
    network, p = build("soft_modular", modules="3x3x5", modular_variant=variant)
    p.shared["router"] = jax.tree.map(np.zeros_like, p.shared["router"])
    base = p.shared["base"]["params"]
    g = _dense(base["Dense_1"], np.maximum(_dense(base["Dense_0"], X), 0.0))
    g = g if variant == "paper" else np.maximum(g, 0.0)
    for layer in range(2 if variant == "paper" else 3):  # of the paper's variant, the last is the head
        modules = [jax.tree.map(lambda leaf, j=j: leaf[j], p.shared[f"modules_{layer}"]) for j in range(3)]
        said = [_dense(module, g) for module in modules]
        if variant == "paper":
            said = [np.maximum(x, 0.0) for x in said]
        g = sum(said) / 3
        g = g if variant == "paper" else np.maximum(g, 0.0)
    g = np.concatenate([g] * 3, axis=-1) if variant == "paper" else g
    return forward(network, p), _dense(p.shared["head"]["params"]["Dense_0"], g)


LIMITS = {
    "equal heads": lambda: _equal_private_parts("multi_head", "one_hot"),
    "equal encoders": lambda: _equal_private_parts("task_encoders", "none", encoder="shared"),
    "equal encoders and heads": lambda: _equal_private_parts("encoders_and_heads", "none", encoder="shared"),
    "embeddings that are one-hot": _embedding_of_one_hot,
    "descriptions that are one-hot": _context_of_one_hot,
    "a hypernetwork whose moves are zero": _hypernetwork_that_does_not_move,
    "MOORE of one expert": _moore_of_one_expert,
    "CARE of one encoder": _care_of_one_encoder,
    "even routing of the paper": lambda: _even_routing("paper"),
    "even routing of the official code": lambda: _even_routing("official"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_in_the_limit_it_is_a_simpler_network(limit):
    """Whoever compares arrangements relies on it: what is left when the special part does nothing is the plain one."""
    found, expected = LIMITS[limit]()
    assert np.ptp(expected) > 0.1
    same(found, expected)


# ------------------------------------------------------------------------------------ one-hot and even weights


def test_paco_with_one_hot_weights_is_as_many_networks():
    network, p = build("paco", num_experts=T)
    alone, q = build("independent")
    p = p._replace(private={"mix": np.eye(T)})
    same(forward(network, p), forward(alone, q._replace(private=p.shared["sets"])))


def test_clusters_of_one_task_are_as_many_trunks():
    network, p = build("experts", selection="cluster", num_experts=T, clusters=(2, 0, 1), task_input="none")
    alone, q = build("experts", selection="identity")
    trunks = jax.tree.map(lambda leaf: leaf[np.asarray([2, 0, 1])], p.shared["experts"])
    same(forward(network, p), forward(alone, q._replace(shared={"head": p.shared["head"]}, private={"trunk": trunks})))


def test_tasks_of_one_cluster_share_an_expert():
    network, p = build("experts", selection="cluster", clusters=(1, 1, 0), task_input="none")
    out = forward(network, p, np.broadcast_to(X[:1], X.shape))
    same(out[0], out[1])
    assert np.abs(out[0] - out[2]).max() > 1e-2


def test_a_gate_without_preference_is_the_ensemble():
    network, p = build("experts", selection="gate")
    even, _ = build("experts", selection="ensemble")
    p.shared["gate"] = jax.tree.map(np.zeros_like, p.shared["gate"])
    parts = {name: p.shared[name] for name in ("experts", "head")}
    same(forward(network, p), forward(even, p._replace(shared=parts)))
    entropy = jax.vmap(summarize)(diagnose(network, p))["routing_entropy"]
    same(entropy, np.ones(T))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_equal_routing_is_an_average(variant):
    """With a router that says nothing, modules of the next layer all see the mean of this one."""
    network, p = build("soft_modular", modules="2x3x5", modular_variant=variant)
    p.shared["router"] = jax.tree.map(np.zeros_like, p.shared["router"])
    routing = diagnose(network, p)["routing"]
    same(routing, np.full(routing.shape, 1 / 3))
    # Then the order of a layer's modules makes no difference (the head of the paper's variant moves with them).
    moved = jax.tree.map(lambda leaf: leaf, p)
    moved.shared["modules_0"] = jax.tree.map(lambda leaf: leaf[::-1], p.shared["modules_0"])
    same(forward(network, p), forward(network, moved))


def test_routing_rows_are_probabilities_over_the_sources():
    for routing in ("soft", "hard"):
        network, p = build("soft_modular", modules="3x2x5", routing=routing)
        rows = np.asarray(diagnose(network, p)["routing"])
        assert rows.shape == (T, B, 5, 2)  # two matrices of two rows, and the last mix
        same(rows.sum(axis=-1), np.ones((T, B, 5)))
        assert (np.isin(rows, (0.0, 1.0)).all()) == (routing == "hard")


def test_hard_routing_is_what_soft_routing_becomes_when_it_is_sure():
    """And its router still learns: the gradient is that of soft routing."""
    soft, p = build("soft_modular", modules="2x2x5")
    hard, _ = build("soft_modular", modules="2x2x5", routing="hard")
    for name in ("down_0", "down_1"):
        p.shared["router"][name] = jax.tree.map(lambda leaf: 1e4 * leaf, p.shared["router"][name])
    same(forward(soft, p), forward(hard, p))
    _, p = build("soft_modular", modules="2x2x5")
    gradient = gradient_of(hard, p)["router"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


# ------------------------------------------------------------------------------------ attention


def test_care_attends_alike_for_like_descriptions():
    """Two tasks of one description are one task to CARE; a third is attended to otherwise."""
    network, p = build("care", encoder_sizes=(3,), context_sizes=(3,))
    tasks = Task(TASKS.code, TASKS.context[[0, 0, 2]])
    x = np.broadcast_to(X[:1], X.shape)
    attention, out = diagnose(network, p, x, tasks)["routing"], forward(network, p, x, tasks)
    np.testing.assert_array_equal(attention[0], attention[1])
    np.testing.assert_array_equal(out[0], out[1])
    assert np.abs(attention[0] - attention[2]).max() > 1e-3


def test_care_stops_the_gradient_of_the_attention():
    """The context learns through the concatenation alone, as the paper says; the encoders through both."""
    network, p = build("care", encoder_sizes=(3,), context_sizes=(3,), hidden_sizes=(6,))
    kernel = p.shared["trunk"]["params"]["Dense_0"]["kernel"]
    kernel[3:] = 0.0  # the trunk does not see the context
    gradient = gradient_of(network, p)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["context"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["encoders"]))


def test_a_context_of_another_scale_still_counts():
    """The frozen embedding must reach the network with its sign: a non-linearity on it would lose half of it."""
    network, p = build("context", context_sizes=(3,), activation="relu")
    out = forward(network, p, np.broadcast_to(X[:1], X.shape), Task(TASKS.code, -np.abs(TASKS.context)))
    assert np.abs(out[0] - out[1]).max() > 1e-3


# ------------------------------------------------------------------------------------ orthogonal experts


def test_orthonormal_rows():
    rows = (DRAW.normal(size=(5, 4, 8)) * 10.0 ** DRAW.integers(-4, 4, (5, 4, 1))).astype(np.float32)
    basis = np.asarray(jax.jit(orthonormal)(rows))
    np.testing.assert_allclose(basis @ basis.swapaxes(1, 2), np.broadcast_to(np.eye(4), (5, 4, 4)), atol=1e-5)
    for index in range(1, 5):  # each spans with its predecessors what the rows span
        scaled = rows[:, :index] / np.linalg.norm(rows[:, :index], axis=-1)[..., None]
        together = np.concatenate([basis[:, :index], scaled], axis=1)
        assert (np.linalg.matrix_rank(together, tol=1e-3) == index).all()


def test_degenerate_experts_neither_disturb_nor_blow_up():
    """Two experts that say the same, or one that says nothing, must not turn rounding into a direction, or NaN."""
    rows = np.asarray(DRAW.normal(size=(4, 8)), np.float32)
    rows[1], rows[2] = 3.0 * rows[0], 0.0

    @jax.jit
    def with_derivative(rows):
        basis, pullback = jax.vjp(orthonormal, rows)
        return basis, pullback(jnp.ones_like(basis))[0]

    basis, slope = jax.device_get(with_derivative(rows))
    np.testing.assert_array_equal(basis[1:3], 0.0)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=1), [1, 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(basis[0] @ basis[3], 0.0, atol=1e-5)
    assert np.isfinite(slope).all()


def test_more_experts_than_features_are_refused():
    config = NetworkConfig(arrangement="moore", hidden_sizes=(3,), num_experts=4)
    with pytest.raises(ValueError, match="num_experts: 4 experts of 3 features cannot be orthogonal"):
        make_network(config, inputs=IN, outputs=2, num_tasks=T, sizes=(3,), gain=1.0)


# ------------------------------------------------------------------------------------ trunks and values


def test_a_residual_trunk_whose_blocks_say_nothing_is_its_input_layer():
    network, p = build("none", trunk="residual", hidden_sizes=(6, 6))
    short, _ = build("none", hidden_sizes=(6,), layer_norm=True)
    layers = p.shared["trunk"]["params"]
    for norm in ("LayerNorm_2", "LayerNorm_4"):
        layers[norm] = jax.tree.map(np.zeros_like, layers[norm])
    parts = {"trunk": {"params": {n: layers[n] for n in ("Dense_0", "LayerNorm_0")}}, "head": p.shared["head"]}
    same(forward(network, p), forward(short, p._replace(shared=parts)))


def test_composed_normalisations_have_no_scale_that_could_vanish():
    """Scales of 1 with weights that cancel would switch a task's features off before it has learnt anything."""
    for arrangement in ("paco", "hypernetwork"):
        network, p = build(arrangement, layer_norm=True)
        names = {str(path) for path, _ in jax.tree_util.tree_leaves_with_path(p.shared)}
        assert not any("LayerNorm" in name for name in names)
        plain, q = build(arrangement)
        assert jax.tree.structure(p) == jax.tree.structure(q)
        assert np.abs(forward(network, p) - forward(plain, p)).max() > 1e-2  # but they do normalise


def test_the_value_network_takes_what_is_said_of_it_alone():
    config = NetworkConfig(
        hidden_sizes=(8,), value_hidden_sizes=(16, 16), value_trunk="residual", value_layer_norm=True
    )
    value = config.of_value()
    assert (value.hidden_sizes, value.trunk, value.layer_norm) == ((16, 16), "residual", True)
    assert dataclasses.replace(config, value_trunk="same", value_hidden_sizes=()).of_value().hidden_sizes == (8,)
    assert (config.hidden_sizes, config.trunk, config.layer_norm) == ((8,), "mlp", False)


# ------------------------------------------------------------------------------------ what is shown


@pytest.mark.parametrize("arrangement", ["embedding", "film", "hypernetwork"])
def test_the_learnt_vector_that_stands_for_a_task_is_shown(arrangement):
    """The report draws it; it is the task's own at every input."""
    network, p = build(arrangement)
    shown = diagnose(network, p)["embedding"]
    same(shown, np.broadcast_to(p.private["embedding"][:, None], shown.shape))
    assert shown.shape[:2] == (T, B)


def test_a_number_is_no_learnt_vector():
    assert "embedding" not in diagnose(*build("multi_head"))
