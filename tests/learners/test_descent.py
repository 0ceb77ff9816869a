"""What learners make of a gradient method's specification."""

import jax
import pytest

from mtjax.envs.base import continuous
from mtjax.learners import distral, hipbmdp, ppo, sac
from mtjax.learners.base import TaskSpec
from mtjax.learners.config import DistralConfig, HiPBMDPConfig, PPOConfig, SACConfig
from mtjax.learners.descent import gradient_method, of_network
from mtjax.networks.config import NetworkConfig

T = 2
SOFT = 'gradnorm(surrogate="softplus")'


@pytest.mark.parametrize("spec", [SOFT, f"every_k({SOFT}, 2)", f"cr_mogm( {SOFT})"])
def test_gradnorm_sees_the_last_shared_layer_wherever_it_stands(spec):
    leaves = of_network(gradient_method(spec, T), ("head/params/Dense_1/", "other/")).leaves
    assert leaves("head/params/Dense_1/kernel") and leaves("other/bias")
    assert not leaves("head/params/Dense_0/kernel") and not leaves("my/head/params/Dense_1/kernel")


def test_the_others_see_every_layer():
    assert of_network(gradient_method("cr_mogm(mgda)", T), ("head/",)).leaves is None
    assert not hasattr(of_network(gradient_method("graddrop", T), ("head/",)), "leaves")


# ------------------------------------------------------------------------------------ of every network its own layer

ON_POLICY = {"rollout_length": 4, "num_minibatches": 1}
MAKE = {
    "ppo": lambda *args: ppo.PPO(PPOConfig(**ON_POLICY), *args, num_envs=2, num_updates=1),
    "joint": lambda *args: ppo.PPO(PPOConfig(**ON_POLICY, surgery="joint"), *args, num_envs=2, num_updates=1),
    "distral": lambda *args: distral.Distral(DistralConfig(**ON_POLICY), *args, num_envs=2, num_updates=1),
    "sac": lambda *args: sac.SAC(SACConfig(replay_capacity=16), *args, num_envs=2),
    "hipbmdp": lambda *args: hipbmdp.HiPBMDP(HiPBMDPConfig(replay_capacity=16), *args, num_envs=2),
}
DEPTHS = {  # options, and the last shared layer of policy and of value
    "a residual value": (
        {"value_trunk": "residual", "value_hidden_sizes": (6, 6)},
        ("trunk/params/Dense_1", "trunk/params/Dense_4"),
    ),
    "a deeper policy": ({"value_hidden_sizes": (6,)}, ("trunk/params/Dense_1", "trunk/params/Dense_0")),
    "hidden layers of a shared head": (
        {"head": "shared", "head_sizes": (5, 4), "value_hidden_sizes": (6,)},
        ("head/params/Dense_2", "head/params/Dense_2"),
    ),
}


def seen(learner, options):
    """By network, the layers that GradNorm is shown; with surgery of both as one, all under "all"."""
    network = NetworkConfig(arrangement="multi_head", hidden_sizes=(6, 7), **options)
    network.check()
    agent = MAKE[learner](network, gradient_method(SOFT, T), TaskSpec(T, 3, continuous(2)))
    shared = {k: p.shared for k, p in jax.eval_shape(agent.init, jax.random.key(0)).params.items()}
    if hasattr(agent, "methods"):
        methods, trees = agent.methods, agent._parts(shared)
    else:
        methods, trees = {part: one.method for part, one in agent.descent.items()}, shared
    found = {}
    for part, tree in trees.items():
        paths = [
            jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(tree)
        ]
        found[part] = {path.rpartition("/")[0] for path in paths if methods[part].leaves(path)}
    return found


@pytest.mark.parametrize("case", DEPTHS)
@pytest.mark.parametrize("learner", MAKE)
def test_gradnorm_sees_the_last_shared_layer_of_each_network(learner, case):
    """A value network of another depth has another last layer: its index in the policy is some layer in between."""
    options, (policy, value) = DEPTHS[case]
    head = f"head/params/Dense_{len(options.get('head_sizes', ()))}"
    expected = {
        "ppo": {"policy": {policy}, "value": {value}},
        "joint": {"all": {f"policy/{policy}", f"value/{value}"}},
        "distral": {"policy": {f"task/{policy}", f"prior/network/{head}"}, "value": {value}},
        "sac": {"policy": {policy}, "critic": {value}},
        "hipbmdp": {"policy": {policy}, "critic": {f"critic/{value}"}},
    }
    assert seen(learner, options) == expected[learner]


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("spec", ["gradnorm", "gradnorm(alpha=0.5)", "every_k(gradnorm(alpha=0.5), 2)"])
def test_gradnorm_of_a_policy_needs_losses_above_0(spec):
    """The policy's first loss is about 0: divided by it, losses are numbers without meaning. What to write is said."""
    alpha = 0.5 if "0.5" in spec else 1.5
    with pytest.raises(
        ValueError, match=rf"grads: gradnorm .* positive: 'gradnorm\(alpha={alpha}, surrogate=\"softplus\"\)'"
    ):
        gradient_method(spec, T)
    gradient_method(spec, T, "critic_grads", losses=None)  # the critics' losses are positive
    gradient_method("gradnorm(initial_losses=(1.0, 2.0))", T)


@pytest.mark.parametrize("spec", ["famo", "every_k(famo, 2)"])
def test_famo_takes_logarithms_of_losses(spec):
    with pytest.raises(ValueError, match="grads: .*famo.* compares logarithms .* a policy's losses .* --critic_grads"):
        gradient_method(spec, T)
    gradient_method(spec, T, "critic_grads", losses=None)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("mgda_ub", "critic_grads: mgda_ub needs gradients of a representation"),
        ("cosine_gate(2)", "main_task 2 is out of range for 2 tasks"),
    ],
)
def test_what_no_learner_can_use(spec, message):
    with pytest.raises(ValueError, match=message):
        gradient_method(spec, T, "critic_grads", losses=None)
