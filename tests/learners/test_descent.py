"""What learners make of a gradient method's specification."""

import pytest

from mtjax.learners.descent import gradient_method
from mtjax.networks.config import NetworkConfig


@pytest.mark.parametrize("spec", ["gradnorm", "every_k(gradnorm(alpha=0.5), 2)", "cr_mogm( gradnorm)"])
def test_gradnorm_sees_the_last_shared_layer_wherever_it_stands(spec):
    assert gradient_method(spec, NetworkConfig(), 2).leaves is not None


def test_the_others_see_every_layer():
    assert gradient_method("cr_mogm(mgda)", NetworkConfig(), 2).leaves is None


@pytest.mark.parametrize(
    "spec, message",
    [
        ("mgda_ub", "critic_grads: mgda_ub needs gradients of a representation"),
        ("famo", "critic_grads: famo needs the losses after the step"),  # its logits would stand still
        ("every_k(famo, 2)", "needs the losses after the step"),
        ("cosine_gate(2)", "main_task 2 is not one of 2 tasks"),
    ],
)
def test_what_no_learner_can_use(spec, message):
    with pytest.raises(ValueError, match=message):
        gradient_method(spec, NetworkConfig(), 2, "critic_grads")
