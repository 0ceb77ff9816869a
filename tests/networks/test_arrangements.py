"""Arrangements: what is said to be shared is shared, what is private never leaks, what is printed is computed."""

import functools

import chex
import jax
import jax.numpy as jnp
import networks_by_hand
import numpy as np
import pytest

from mtjax.envs.base import continuous, discrete
from mtjax.networks.arrangements import make_network
from mtjax.networks.base import Parameters
from mtjax.networks.config import ARRANGEMENTS, SELECTIONS, NetworkConfig
from mtjax.networks.distributions import Normal
from mtjax.networks.policy import make_policy
from mtjax.networks.task import training_tasks, unseen_tasks

T, B, IN, OUT, D = 3, 4, 4, 2, 6
DRAW = np.random.default_rng(0)
TASKS = jax.device_get(training_tasks(T, DRAW.normal(size=(T, D)).astype(np.float32)))
X = DRAW.normal(size=(T, B, IN)).astype(np.float32)

# Every arrangement, and what its flags make of it.
CASES = {
    **{name: {} for name in ARRANGEMENTS if name not in ("context", "care", "soft_modular", "experts")},
    "unit_norm": {"arrangement": "embedding", "unit_norm_embedding": True},
    "residual": {"trunk": "residual", "hidden_sizes": (6, 6)},
    "shared_encoder": {"encoder": "shared", "encoder_sizes": (5,), "head_sizes": (3,), "layer_norm": True},
    "context": {"context_sizes": (5, 3)},
    "task_encoders": {"encoder_sizes": (5, 3)},
    "film_norm": {"arrangement": "film", "layer_norm": True, "head": "private"},
    **{
        f"experts_{selection}": {"arrangement": "experts", "selection": selection}
        for selection in SELECTIONS
        if selection != "cluster"
    },
    "experts_cluster": {"arrangement": "experts", "selection": "cluster", "clusters": (0, 2, 2), "task_input": "none"},
    **{
        f"modular_{variant}_{routing}": {
            "arrangement": "soft_modular",
            "modular_variant": variant,
            "routing": routing,
            "modules": "3x2x5",
            "activation": "relu",
        }
        for variant in ("paper", "official")
        for routing in ("soft", "hard")
    },
    "care": {"encoder_sizes": (5, 3), "context_sizes": (4, 3)},
    "moore_told": {"arrangement": "moore", "task_input": "one_hot", "head": "shared"},
    "paco_norm": {"arrangement": "paco", "layer_norm": True},
    "hyper_residual": {"arrangement": "hypernetwork", "trunk": "residual", "hidden_sizes": (6, 6), "hyper_size": 3},
    "paco_told": {"arrangement": "paco", "task_input": "context", "context_sizes": (5,)},
}
SHARED = {
    "one_hot": ({"trunk", "head"}, set()),
    "none": ({"trunk", "head"}, set()),
    "embedding": ({"trunk", "head"}, {"embedding"}),
    "context": ({"context", "trunk", "head"}, set()),
    "multi_head": ({"trunk"}, {"head"}),
    "task_encoders": ({"trunk", "head"}, {"encoder"}),
    "encoders_and_heads": ({"trunk"}, {"encoder", "head"}),
    "shared_encoder": ({"encoder", "trunk", "head"}, set()),
    "film": ({"film_0", "film_1", "head"}, {"embedding"}),
    "experts_gate": ({"experts", "gate", "head"}, {"embedding"}),
    "experts_attention": ({"experts", "query", "head"}, {"embedding"}),
    "experts_identity": ({"head"}, {"trunk"}),
    "experts_cluster": ({"experts", "head"}, set()),
    "modular_official_soft": ({"base", "task", "router", "modules_0", "modules_1", "modules_2", "head"}, set()),
    "modular_paper_soft": ({"base", "task", "router", "modules_0", "modules_1", "head"}, set()),
    "care": ({"context", "encoders", "trunk", "head"}, set()),
    "moore": ({"experts"}, {"weights", "head"}),
    "moore_told": ({"experts", "mix", "head"}, set()),
    "paco": ({"sets"}, {"mix"}),
    "paco_told": ({"sets", "mix", "context"}, set()),
    "hypernetwork": ({"base", "moves", "mix"}, {"embedding"}),
    "independent": (set(), {"trunk", "head"}),
}


def config_of(case):
    options = {"arrangement": case if case in ARRANGEMENTS else "one_hot", "hidden_sizes": (6, 7), **CASES[case]}
    config = NetworkConfig(**options)
    config.check()
    return config


def build(config, num_tasks=T):
    shape = {"inputs": IN, "outputs": OUT, "num_tasks": num_tasks, "contexts": D}
    return make_network(config, sizes=config.hidden_sizes, gain=1.0, **shape)


@functools.cache
def network_of(case):
    """A network and parameters drawn by NumPy, so that biases are not zero and nothing is compiled."""
    network = build(config_of(case))
    draw = np.random.default_rng(2)

    def leaf(shape):
        return (draw.normal(size=shape.shape) * 0.5).astype(np.float32)

    return network, jax.tree.map(leaf, jax.eval_shape(network.init, jax.random.key(1)))


def forward(network, p, x=X, tasks=TASKS):
    return jax.vmap(network.apply, in_axes=(None, 0, 0, 0))(p.shared, p.private, tasks, x)


run = jax.jit(forward, static_argnums=0)


@functools.cache
def results(alike=False):
    """{case: (gradients of task 1's loss, outputs)}; ``alike``: where all tasks see what the first one sees."""
    return jax.device_get(_every_case({case: network_of(case)[1] for case in CASES}, X[[0] * T] if alike else X))


@jax.jit
def _every_case(parameters, x):
    """One program, which compiles faster than one for each case."""

    def of(case, p):
        def loss(p):
            out = forward(network_of(case)[0], p, x)
            return jnp.square(out[1]).sum(), out

        return jax.grad(loss, has_aux=True)(p)

    found = {}
    for case, p in parameters.items():
        try:
            found[case] = of(case, p)
        except Exception as error:
            error.add_note(f"in {case}")
            raise
    return found


def task_of(tree, t):
    return jax.tree.map(lambda leaf: leaf[t], tree)


@pytest.mark.parametrize("case", CASES)
def test_forward_by_hand(case):
    """Every arrangement, in NumPy from its parameters: what the network is said to compute, it computes."""
    (_, p), config = network_of(case), config_of(case)
    _, out = results()[case]
    for t in range(T):
        code, context = (part[t] for part in TASKS)
        expected = [networks_by_hand.forward(config, p.shared, task_of(p.private, t), code, context, x) for x in X[t]]
        np.testing.assert_allclose(out[t], expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", SHARED)
def test_what_is_shared_and_what_is_private(case):
    """Surgery works on the shared leaves: a head that lands there by mistake changes every result."""
    _, p = network_of(case)
    assert (set(p.shared), set(p.private)) == SHARED[case]
    if p.private:
        chex.assert_tree_shape_prefix(p.private, (T,))


@pytest.mark.parametrize("case", CASES)
def test_private_gradients_are_of_the_own_task_alone(case):
    """Task 1's loss must not move what belongs to tasks 0 and 2; and it must reach everything of its own."""
    found, _ = results()[case]
    for leaf in jax.tree.leaves(found.private):
        np.testing.assert_array_equal(leaf[[0, 2]], 0.0)
        assert np.abs(leaf[1]).max() > 0
    dead = [path for path, leaf in jax.tree_util.tree_leaves_with_path(found.shared) if not np.abs(leaf).max() > 0]
    assert not dead or "hard" in case or case == "experts_cluster"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def equations(jaxpr):
    """How many equations a program has, with those of the programs inside it."""
    inner = [value for eqn in jaxpr.eqns for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)]
    return len(jaxpr.eqns) + sum(equations(getattr(value, "jaxpr", value)) for value in inner if _is_jaxpr(value))


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize("case", [name for name in CASES if "hard" not in name and name != "experts_cluster"])
def test_one_program_whatever_the_number_of_tasks(case):
    """Compile time must not grow with T, as it would with a Python loop over tasks; and parameters are drawn so too."""
    config = config_of(case)

    def size(num_tasks):
        network = build(config, num_tasks)
        tasks = training_tasks(num_tasks, np.zeros((num_tasks, D), np.float32))
        x = np.zeros((num_tasks, B, IN), np.float32)

        def program(key):
            p = network.init(key)
            return forward(network, p, x, tasks)

        return equations(jax.make_jaxpr(program)(jax.random.key(0)).jaxpr)

    assert abs(size(5) - size(2)) < 6  # shapes decide on a transpose or two; a loop would add more for each task


def test_seeds_vmap():
    """A run of several seeds is one program: seed by seed it must give what each gives alone."""
    network, _ = network_of("moore")
    keys = jax.random.split(jax.random.key(4), 2)

    def of_seed(key):
        return forward(network, network.init(key))

    both = np.asarray(jax.jit(jax.vmap(of_seed))(keys))
    np.testing.assert_allclose(both[1], jax.jit(of_seed)(keys[1]), rtol=1e-4, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_blind_networks_treat_tasks_alike_and_the_others_do_not():
    """'none' is the control experiment: knowing the task by accident would spoil it."""
    for case in CASES:
        if "hard" in case:  # two tasks may take the same route
            continue
        _, out = results(alike=True)[case]
        assert bool((out[0] == out[1]).all()) == (case == "none"), case


def test_unit_norm_embedding_only_sees_the_direction():
    network, p = network_of("unit_norm")
    longer = Parameters(p.shared, {"embedding": p.private["embedding"] * 7.0})
    np.testing.assert_allclose(results()["unit_norm"][1], run(network, longer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["context", "care", "paco_told"])
def test_an_unseen_task_is_known_by_its_description(case):
    """Zero-shot: with a training task's description it is acted for as that task is, with another it is not."""
    network, p = network_of(case)
    private = jax.tree.map(lambda leaf: np.broadcast_to(leaf.mean(axis=0), leaf.shape), p.private)
    out = run(network, Parameters(p.shared, private), X[[0] * T], unseen_tasks(T, TASKS.context[::-1]))
    np.testing.assert_allclose(out, results(alike=True)[case][1][::-1], rtol=1e-5, atol=1e-6)


LAST = {  # of those in SHARED whose last shared layer is not the output layer itself
    "multi_head": "trunk/params/Dense_1",
    "encoders_and_heads": "trunk/params/Dense_1",
    "shared_encoder": "head/params/Dense_1",  # after a hidden layer of the head
    "moore": "experts/params/Dense_1",
    "paco": "sets/head/params/Dense_0",
    "paco_told": "sets/head/params/Dense_0",
    "hypernetwork": "base/head/params/Dense_0",
}


def last_shared(network, shared):
    """The layers that ``Network.last_shared`` names."""
    paths = ["/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shared)]
    return {path.rpartition("/")[0] for path in paths if path.startswith(network.last_shared)}


@pytest.mark.parametrize("case", SHARED)
def test_the_last_shared_layer_is_found(case):
    """GradNorm balances the gradients of this layer, and of it alone; with private heads it is not the head."""
    network, p = network_of(case)
    expected = {LAST.get(case, "head/params/Dense_0")} if case != "independent" else set()
    assert last_shared(network, p.shared) == expected


@pytest.mark.parametrize(
    "options, last",
    [
        ({"arrangement": "multi_head", "trunk": "residual", "hidden_sizes": (6, 6, 6)}, "trunk/params/Dense_6"),
        ({"arrangement": "film", "head": "private"}, "film_1/layer"),
        ({"arrangement": "experts", "head": "private"}, "experts/params/Dense_1"),
        ({"arrangement": "soft_modular", "modules": "3x2x5", "head": "private"}, "modules_2"),
        ({"arrangement": "care", "head": "private", "hidden_sizes": ()}, "encoders/params/Dense_1"),
        (
            {"arrangement": "multi_head", "encoder": "shared", "encoder_sizes": (5, 4), "hidden_sizes": ()},
            "encoder/params/Dense_1",
        ),
        ({"arrangement": "context", "head": "private", "hidden_sizes": ()}, "context/params/Dense_1"),
        ({"arrangement": "embedding", "head_sizes": (5, 4)}, "head/params/Dense_2"),
    ],
)
def test_the_last_shared_layer_behind_options(options, last):
    """Depths, trunks and heads by flags: the layer before what is a task's own, whichever that is."""
    config = NetworkConfig(**{"hidden_sizes": (6, 7), **options})
    config.check()
    network = build(config)
    assert last_shared(network, jax.eval_shape(network.init, jax.random.key(0)).shared) == {last}


@pytest.mark.parametrize("activation", ("tanh", "relu", "silu", "elu", "gelu"))
def test_every_activation_with_layer_norm(activation):
    network = build(NetworkConfig(hidden_sizes=(6, 7), activation=activation, layer_norm=True))
    shapes = jax.eval_shape(network.init, jax.random.key(1))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    assert np.isfinite(run(network, ones, X)).all()


def test_no_hidden_layers_is_a_linear_policy():
    network = build(NetworkConfig(hidden_sizes=()))
    out = jax.jit(lambda key: forward(network, network.init(key)))(jax.random.key(0))
    assert out.shape == (T, B, OUT)


def _first(policy):
    """Parameters as they are drawn, and what they make of the observations."""

    @jax.jit
    def draw(key):
        p = policy.init(key)
        return p, forward(policy, p)

    return jax.device_get(draw(jax.random.key(0)))


def test_policy_scales():
    """A free scale belongs to a task and ignores the state; a state's scale starts where it was told."""
    free = make_policy(NetworkConfig(hidden_sizes=(6,)), inputs=IN, action=continuous(2), num_tasks=T)
    p, out = _first(free)
    assert isinstance(out, Normal) and out.mean.shape == (T, B, 2) and out.log_scale.shape == (T, 2)
    np.testing.assert_allclose(p.private["log_scale"], -0.5)

    config = NetworkConfig(hidden_sizes=(6,), scale="state", initial_log_scale=-1.0)
    state = make_policy(config, inputs=IN, action=continuous(2), num_tasks=T)
    p, out = _first(state)
    assert out.log_scale.shape == (T, B, 2) and "log_scale" not in p.private
    np.testing.assert_allclose(out.log_scale, -1.0, atol=0.1)
    assert np.std(out.log_scale) > 0

    choice = make_policy(NetworkConfig(hidden_sizes=(6,)), inputs=IN, action=discrete(4), num_tasks=T)
    p, logits = _first(choice)
    assert not p.private
    assert logits.shape == (T, B, 4)
    np.testing.assert_allclose(logits, 0.0, atol=0.1)  # every choice is tried at the start
