"""Options of networks: what does not fit together is refused in one line, before anything compiles."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import options
from mtjax.networks.arrangements import make_network
from mtjax.networks.config import ARRANGEMENTS, MODULES, NetworkConfig
from mtjax.networks.task import training_tasks

REFUSED = {
    "num_experts: 8 has no effect with arrangement 'one_hot'; it needs arrangement=experts, care, moore or paco": {
        "num_experts": 8
    },
    "num_experts: 2 has no effect with arrangement 'experts'": {
        "arrangement": "experts",
        "selection": "identity",
        "num_experts": 2,
    },
    "selection: 'attention' has no effect with arrangement 'moore'": {"arrangement": "moore", "selection": "attention"},
    "embedding_size: 8 has no effect with arrangement 'one_hot'; it needs task_input=embedding": {"embedding_size": 8},
    "task_embeddings: 'my.npz' has no effect": {"task_embeddings": "my.npz"},
    "encoder_sizes: (8,) has no effect": {"encoder_sizes": (8,)},
    "modules: 'deep' has no effect": {"modules": "deep"},
    "layer_norm: True has no effect with arrangement 'one_hot'; it needs trunk=mlp, an encoder or head_sizes": {
        "trunk": "residual",
        "layer_norm": True,
    },
    "value_layer_norm: True has no effect": {"value_trunk": "residual", "value_layer_norm": True},
    "layer_norm: True has no effect with arrangement 'soft_modular'; it needs a hidden layer before the last": {
        "arrangement": "soft_modular",
        "hidden_sizes": (8,),
        "layer_norm": True,
    },
    "layer_norm: True has no effect with arrangement 'moore'": {
        "arrangement": "moore",
        "hidden_sizes": (8,),
        "layer_norm": True,
    },
    "value_layer_norm: True has no effect with arrangement 'moore'": {
        "arrangement": "moore",
        "value_hidden_sizes": (8,),
        "value_layer_norm": True,
    },
    "layer_norm: True has no effect with arrangement 'care'": {
        "arrangement": "care",
        "encoder_sizes": (50,),
        "trunk": "residual",
        "layer_norm": True,
    },
    "layer_norm: True has no effect with arrangement 'none'": {
        "arrangement": "none",
        "hidden_sizes": (),
        "layer_norm": True,
    },
    "clusters: (0, 1) has no effect": {"arrangement": "experts", "clusters": (0, 1)},
    "clusters: selection=cluster needs the expert of every task": {"arrangement": "experts", "selection": "cluster"},
    "clusters: expert 4 does not exist; num_experts is 4": {
        "arrangement": "experts",
        "selection": "cluster",
        "clusters": (0, 4),
    },
    "modules: '3x2' is neither shallow, deep nor": {"arrangement": "soft_modular", "modules": "3x2"},
    "modules: '1x2x8' is neither": {"arrangement": "soft_modular", "modules": "1x2x8"},
    "modules: '2xtwox8' is neither": {"arrangement": "soft_modular", "modules": "2xtwox8"},
    "hidden_sizes: a residual trunk has one width; got (8, 4)": {"trunk": "residual", "hidden_sizes": (8, 4)},
    "value_hidden_sizes: a residual trunk has one width": {"value_trunk": "residual", "value_hidden_sizes": (8, 4)},
    "trunk: film has its own kind of layers": {"arrangement": "film", "trunk": "residual"},
    "trunk: moore has its own kind of layers": {"arrangement": "moore", "trunk": "residual"},
    "trunk: soft_modular has its own kind of layers": {"arrangement": "soft_modular", "value_trunk": "residual"},
    "encoder_sizes: care compares encodings (8) with the context (50)": {"arrangement": "care", "encoder_sizes": (8,)},
    "context_sizes: empty is too short; the minimum length is 1": {"arrangement": "care", "context_sizes": ()},
    "task_input: care needs task_input=context": {"arrangement": "care", "task_input": "one_hot"},
    "task_input: film is conditioned on the task": {"arrangement": "film", "task_input": "none"},
    "task_input: a hypernetwork computes": {"arrangement": "hypernetwork", "task_input": "none"},
    "arrangement 'paco' composes whole networks": {"arrangement": "paco", "head": "private"},
    "head: arrangement 'independent' shares nothing": {"arrangement": "independent", "head": "shared"},
    "every task has its own trunk, so it takes no task_input": {
        "arrangement": "independent",
        "task_input": "one_hot",
    },
    "every task has its own trunk, so it takes no shared encoder": {
        "arrangement": "independent",
        "encoder": "shared",
    },
    "hidden_sizes: arrangement 'film' needs at least one hidden layer": {"arrangement": "film", "hidden_sizes": ()},
    "value_hidden_sizes: arrangement 'film' needs": {"value_arrangement": "film", "hidden_sizes": ()},
    "trunk: moore has its own kind of layers, which": {"value_arrangement": "moore", "value_trunk": "residual"},
    "num_experts: 8 has no effect with arrangement 'one_hot' and value_arrangement 'film'": {
        "value_arrangement": "film",
        "num_experts": 8,
    },
    "encoder_sizes: care compares encodings (9)": {"value_arrangement": "care", "encoder_sizes": (9,)},
    "policy_encoder: 'value' shares the value network's encoder, but arrangement 'one_hot' has none": {
        "policy_encoder": "value"
    },
    "has none; choose an arrangement with an encoder": {"value_arrangement": "film", "policy_encoder": "value"},
    "so its own encoder (arrangement 'task_encoders') has no effect": {
        "arrangement": "task_encoders",
        "value_arrangement": "care",
        "policy_encoder": "value",
    },
    "so its own encoder (encoder=private) has no effect": {
        "encoder": "private",
        "value_arrangement": "care",
        "policy_encoder": "value",
    },
    "policy_encoder: care's attention is part of its encoder": {
        "arrangement": "care",
        "value_arrangement": "task_encoders",
        "policy_encoder": "both",
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_with_one_line(message):
    """A user who misunderstands an option learns it now, not after a night of training something else."""
    with pytest.raises(ValueError, match="^.*" + re.escape(message)) as caught:
        options.validate(NetworkConfig(**REFUSED[message]))
    assert "\n" not in str(caught.value)


def test_policy_and_values_may_have_arrangements_of_their_own():
    """What is said of parts is said of the policy; options that one of the two reads are taken."""
    config = NetworkConfig(arrangement="none", head="private", value_arrangement="experts", num_experts=3)
    options.validate(config)
    value = config.of_value()
    assert (value.arrangement, value.parts.told, value.parts.head, value.num_experts) == (
        "experts",
        "embedding",
        "shared",
        3,
    )
    assert value.of_value() == value and config.parts.head == "private"
    owned = NetworkConfig(arrangement="none", value_arrangement="independent")
    assert owned.generalises and not owned.of_value().generalises  # unseen tasks have a policy, and need no critic
    assert NetworkConfig(head="private", arrangement="none").of_value().parts.head == "private"  # as the policy
    options.validate(NetworkConfig(arrangement="independent", value_arrangement="care", num_experts=2))


def test_what_sees_through_an_encoder_of_the_tasks_own_does_not_generalise():
    """Whose encoder it is decides: unseen tasks have no encoder of their own, be it the critics'."""
    shared, own = (NetworkConfig(value_arrangement="task_encoders", policy_encoder=of) for of in ("value", "own"))
    options.validate(shared)
    assert own.generalises and not shared.generalises
    lent = NetworkConfig(arrangement="embedding", value_arrangement="care", policy_encoder="value")
    options.validate(lent)
    assert lent.generalises  # the policy's encoder is care's


NORMALISED = {  # the least that gives layer_norm something to normalise, where that is not one hidden layer
    "soft_modular": {"hidden_sizes": (6, 6), "modules": "2x2x5"},
    "moore": {"hidden_sizes": (6, 6)},
    "care": {"hidden_sizes": (), "encoder_sizes": (5, 3), "context_sizes": (4, 3)},
    "an encoder alone": {"arrangement": "task_encoders", "hidden_sizes": (), "encoder_sizes": (5,)},
    "a head alone": {"arrangement": "moore", "hidden_sizes": (6,), "head_sizes": (5,)},
}


@pytest.mark.parametrize("case", [*ARRANGEMENTS, "an encoder alone", "a head alone"])
def test_layer_norm_changes_the_output_wherever_it_is_accepted(case):
    """An option that is taken and does nothing is found out after a night of training something else."""
    options = {"arrangement": case, **NORMALISED.get(case, {"hidden_sizes": (6,)})}

    def network(layer_norm):
        config = NetworkConfig(**options, layer_norm=layer_norm)
        config.check()
        shape = {"inputs": 4, "outputs": 2, "num_tasks": 2, "contexts": 3}
        return make_network(config, sizes=config.hidden_sizes, gain=1.0, **shape)

    draw = np.random.default_rng(0)
    p = jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(network(True).init, jax.random.key(0)),  # has all that the other reads
    )
    private, task = jax.tree.map(lambda leaf: leaf[0], (p.private, training_tasks(2, jnp.ones((2, 3)))))
    x = jnp.linspace(-1.0, 1.0, 4)
    plain, normalised = (network(flag).apply(p.shared, private, task, x) for flag in (False, True))
    assert np.abs(plain - normalised).max() > 1e-3


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_arrangement_is_one_flag(arrangement):
    """Its other options have defaults that work, but for the assignment to clusters."""
    options.validate(NetworkConfig(arrangement=arrangement))


def test_what_depends_on_the_suite_is_refused_when_the_network_is_made():
    shape = {"inputs": 2, "outputs": 2, "num_tasks": 3, "sizes": (4,), "gain": 1.0}
    with pytest.raises(ValueError, match="clusters: 2 are given for 3 tasks"):
        make_network(NetworkConfig(arrangement="experts", selection="cluster", clusters=(0, 1)), **shape)
    with pytest.raises(ValueError, match="'care' with task_input 'context' needs embeddings of the tasks' desc"):
        make_network(NetworkConfig(arrangement="care"), **shape)


def test_named_sizes_are_those_of_the_paper():
    assert NetworkConfig(arrangement="soft_modular").module_sizes == (2, 2, 256) == MODULES["shallow"]
    assert NetworkConfig(arrangement="soft_modular", modules="deep").module_sizes == (4, 4, 128)
    assert NetworkConfig(arrangement="soft_modular", modules="3x2x64").module_sizes == (3, 2, 64)


def test_who_can_act_in_unseen_tasks():
    """Tasks that own a network from the observation on have nothing to lend; the others have."""
    own = {"independent", "task_encoders", "encoders_and_heads"}
    assert {name for name in ARRANGEMENTS if not NetworkConfig(arrangement=name).generalises} == own
    assert not NetworkConfig(arrangement="experts", selection="identity").generalises
