"""Network configuration: the arrangement, its components and their sizes. Does not import jax."""

from __future__ import annotations

import collections
import dataclasses
from typing import NamedTuple

from mtjax.options import option, refuse_unused


class Parts(NamedTuple):
    """The parts of which an arrangement consists unless flags override them.

    Attributes:
        told: what conditions the network on the task: "none", "one_hot", "embedding" or "context".
        encoder: "none", "shared" or "private" (one for each task).
        body: the part between encoder and head: a name in ``networks.arrangements.BODIES``, or the name of
            an arrangement that composes whole networks.
        head: "shared" or "private".
        about: a phrase for the help text.
    """

    told: str
    encoder: str
    body: str
    head: str
    about: str


ARRANGEMENTS: dict[str, Parts] = {
    "one_hot": Parts("one_hot", "none", "trunk", "shared", "fully shared, task index appended to the observation"),
    "embedding": Parts("embedding", "none", "trunk", "shared", "fully shared, learned task embedding appended"),
    "context": Parts("context", "none", "trunk", "shared", "fully shared, embedded task description appended"),
    "none": Parts("none", "none", "trunk", "shared", "fully shared, no task input"),
    "multi_head": Parts("one_hot", "none", "trunk", "private", "shared trunk with one-hot task, a head per task"),
    "task_encoders": Parts("none", "private", "trunk", "shared", "an encoder per task, shared trunk and head"),
    "encoders_and_heads": Parts("none", "private", "trunk", "private", "encoder and head per task, shared trunk"),
    "film": Parts("embedding", "none", "film", "shared", "every feature scaled and shifted by the task"),
    "experts": Parts("embedding", "none", "experts", "shared", "mixture of experts, see selection"),
    "soft_modular": Parts("one_hot", "none", "soft_modular", "shared", "layers of modules with learned routing"),
    "care": Parts("context", "none", "care", "shared", "attention of the task description over encoders"),
    "moore": Parts("none", "none", "moore", "private", "mixture of orthogonal experts"),
    "paco": Parts("none", "none", "paco", "shared", "parameters are a task-weighted sum of sets"),
    "hypernetwork": Parts("embedding", "none", "hypernetwork", "shared", "parameters computed from the task"),
    "independent": Parts("none", "none", "private", "private", "one agent per task, nothing shared"),
}
COMPOSED = ("paco", "hypernetwork")  # these compose whole networks, without a separate encoder or head
LINEAR_END = ("soft_modular", "moore")  # the last of their hidden_sizes is a linear layer
MODULES = {"shallow": (2, 2, 256), "deep": (4, 4, 128)}  # layers × modules per layer × width (arXiv 2003.13661)
SELECTIONS = ("gate", "attention", "ensemble", "cluster", "identity")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Policy and value networks and their arrangement. They share an encoder or nothing."""

    arrangement: str = option(
        "one_hot",
        "How the tasks share networks: " + "; ".join(f"'{name}' ({p.about})" for name, p in ARRANGEMENTS.items()) + ".",
        choices=ARRANGEMENTS,  # not a copy: arrangements may be added before a choice is checked
    )
    task_input: str = option(
        "auto",
        "The network's task input: none, the one-hot index, a learned embedding, or an embedding of the task's "
        "description; 'auto' uses the arrangement's default.",
        choices=("auto", "none", "one_hot", "embedding", "context"),
    )
    encoder: str = option(
        "auto",
        "Encoder of the observation before the trunk: none, one for all tasks, or one per task.",
        choices=("auto", "none", "shared", "private"),
    )
    head: str = option("auto", "One output head for all tasks, or one per task.", choices=("auto", "shared", "private"))
    trunk: str = option(
        "mlp",
        "Kind of trunk: 'mlp', or 'residual' (BroNet: a residual block with layer normalisation per hidden size; all "
        "sizes must be equal).",
        choices=("mlp", "residual"),
    )
    value_arrangement: str = option(
        "same",
        "How the tasks share the value network, or SAC's critics: like the policy ('same'), or in another of these "
        "arrangements with its defaults (task_input, encoder and head then apply to the policy only).",
        choices=collections.ChainMap({"same": None}, ARRANGEMENTS),
    )
    policy_encoder: str = option(
        "own",
        "The policy's encoder (for care, with attention and context): its 'own', or that of the value network or SAC's "
        "critics, trained by their loss alone ('value', as CARE's authors do) or also by the policy's ('both'; PPO). "
        "SAC's critics feed continuous actions into an encoder of their own, but not into a shared one.",
        choices=("own", "value", "both"),
    )
    value_trunk: str = option("same", "Kind of the value network's trunk.", choices=("same", "mlp", "residual"))
    hidden_sizes: tuple[int, ...] = option((256, 256), "Widths of the policy's hidden layers, comma-separated.", low=1)
    value_hidden_sizes: tuple[int, ...] = option(
        (), "Widths of the value network's hidden layers; empty means hidden_sizes.", low=1
    )
    encoder_sizes: tuple[int, ...] = option(
        (),
        "Widths of an encoder's layers; empty means one layer as wide as the first hidden layer (for care: 50,50).",
        low=1,
    )
    image_shape: tuple[int, ...] = option(
        (),
        "Height, width and number of channels, if observations are flattened images: encoders are then convolutional, "
        "and a network without an encoder gets one.",
        low=1,
    )
    conv_channels: tuple[int, ...] = option(
        (16, 32), "With image_shape: channels of the 3x3 convolutions; all but the first halve the image.", low=1
    )
    head_sizes: tuple[int, ...] = option((), "Widths of the head's hidden layers; empty means none.", low=1)
    activation: str = option(
        "tanh", "Non-linearity of the hidden layers.", choices=("tanh", "relu", "silu", "elu", "gelu")
    )
    layer_norm: bool = option(
        False, "Layer normalisation before every non-linearity; with soft_modular, in the base network only."
    )
    value_layer_norm: bool = option(False, "layer_norm in the value network only.")
    embedding_size: int = option(16, "Size of a learned task embedding.", low=1)
    unit_norm_embedding: bool = option(False, "Scale every task embedding to unit length.")
    task_embeddings: str = option(
        "shipped",
        "Embeddings of the tasks' descriptions: 'shipped', or an .npz file with one vector per task name.",
    )
    context_sizes: tuple[int, ...] = option(
        (50, 50),
        "Widths of the layers that map the embedding of a description to the task's context.",
        low=1,
        fewest=1,
    )
    num_experts: int = option(4, "Number of experts (experts, moore), encoders (care) or parameter sets (paco).", low=1)
    selection: str = option(
        "gate",
        "How experts are mixed: by a 'gate' that sees observation and task, by 'attention' between task and expert "
        "features, evenly ('ensemble'), by the task's 'cluster', or one expert per task ('identity').",
        choices=SELECTIONS,
    )
    clusters: tuple[int, ...] = option(
        (), "With selection=cluster: the index of each task's expert, in task order.", low=0
    )
    modules: str = option(
        "shallow",
        "Modules of soft_modular: 'shallow' (2x2x256), 'deep' (4x4x128) or layers x modules x width, e.g. 3x2x128.",
    )
    modular_variant: str = option(
        "official",
        "Soft Modularization as in the 'paper' (arXiv 2003.13661), or as in the 'official' code, which differs.",
        choices=("paper", "official"),
    )
    routing: str = option(
        "soft",
        "Routing of soft_modular: 'soft', or 'hard' (every module takes one input; straight-through gradients).",
        choices=("soft", "hard"),
    )
    hyper_size: int = option(16, "Number of directions in which the hypernetwork can shift the parameters.", low=1)
    scale: str = option(
        "free",
        "Scale of the Gaussian policy: 'free' (a parameter per action and task, the same in every state) or "
        "'state' (computed from the observation).",
        choices=("free", "state"),
    )
    initial_log_scale: float = option(-0.5, "Initial logarithm of the Gaussian policy's scale.", low=-5, high=2)
    squash: bool = option(
        False, "Squash continuous actions with tanh (log-probabilities corrected). SAC and HiP-BMDP always do."
    )

    # ------------------------------------------------------------------------------------ derived values

    @property
    def parts(self) -> Parts:
        """The arrangement's parts, with those replaced that flags override."""
        parts = ARRANGEMENTS[self.arrangement]
        if self.arrangement == "experts" and self.selection == "identity":
            parts = parts._replace(told="none", body="private")
        if self.image_shape and parts.encoder == "none":
            parts = parts._replace(encoder="private" if parts.body == "private" else "shared")
        given = {"told": self.task_input, "encoder": self.encoder, "head": self.head}
        return parts._replace(**{name: value for name, value in given.items() if value != "auto"})

    @property
    def told(self) -> str:
        """What conditions the network on the task."""
        return self.parts.told

    @property
    def generalises(self) -> bool:
        """Whether unseen tasks can act; False if the layers that see the observation are private to each task."""
        encoder = self if self.policy_encoder == "own" else self.of_value()
        return self.parts.body != "private" and encoder.parts.encoder != "private"

    @property
    def module_sizes(self) -> tuple[int, int, int]:
        """Layers, modules per layer and width of soft_modular. Raises ValueError if ``modules`` cannot be parsed."""
        sizes = MODULES.get(self.modules) or tuple(
            int(number) if number.isdigit() else 0 for number in self.modules.split("x")
        )
        if len(sizes) != 3 or min(sizes) < 1 or sizes[0] < 2:
            raise ValueError(
                f"modules: {self.modules!r} is neither shallow, deep nor layers x modules x width with at least 2 "
                "layers, e.g. 3x2x128"
            )
        return sizes

    @property
    def own_encoder_sizes(self) -> tuple[int, ...]:
        """Widths of care's encoders."""
        return self.encoder_sizes or (50, 50)

    def of_value(self) -> NetworkConfig:
        """The configuration of the value network, with its specific options in place of the general ones."""
        another = {} if self.value_arrangement == "same" else {
            "arrangement": self.value_arrangement, "value_arrangement": "same",
            "task_input": "auto", "encoder": "auto", "head": "auto",
        }  # fmt: skip
        return dataclasses.replace(
            self,
            **another,
            trunk=self.trunk if self.value_trunk == "same" else self.value_trunk,
            hidden_sizes=self.value_hidden_sizes or self.hidden_sizes,
            layer_norm=self.layer_norm or self.value_layer_norm,
        )

    # -------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Reject combinations of options that make no sense. Raises ValueError with a one-line message."""
        self._check_unused()
        self._check_sizes()
        for network in (self, self.of_value()):
            network._check_parts()
        if self.policy_encoder != "own":
            self._check_shared_encoder()

    def _check_parts(self) -> None:
        """Check the parts of this network, the policy or the value network."""
        parts, name = self.parts, self.arrangement
        if name == "care" and parts.told != "context":
            raise ValueError(f"task_input: care needs task_input=context; got {parts.told!r}")
        if name in COMPOSED and (parts.encoder != "none" or parts.head != "shared"):
            raise ValueError(
                f"arrangement {name!r} composes whole networks; it supports no encoder, image_shape or private head"
            )
        if name == "hypernetwork" and parts.told == "none":
            raise ValueError("task_input: a hypernetwork computes parameters from the task; it cannot be 'none'")
        if name in ("film", "soft_modular") and parts.told == "none":
            raise ValueError(f"task_input: {name} is conditioned on the task; it cannot be 'none'")
        if parts.body == "private" and (parts.told != "none" or parts.encoder == "shared"):
            raise ValueError(f"arrangement {name!r}: every task has its own trunk, so it takes no {self._extra()}")
        if name == "independent" and parts.head == "shared":
            raise ValueError("head: arrangement 'independent' shares nothing; the head cannot be shared")
        if name in ("film", "soft_modular", "moore") and self.trunk == "residual":
            raise ValueError(f"trunk: {name} has its own kind of layers, which cannot be residual")

    def _check_shared_encoder(self) -> None:
        """Check that the value network has an encoder, and that the policy can use it in place of its own."""
        value = self.of_value()
        if value.parts.encoder == "none" and value.arrangement != "care":
            raise ValueError(
                f"policy_encoder: {self.policy_encoder!r} shares the value network's encoder, but arrangement "
                f"{value.arrangement!r} has none; choose an arrangement with an encoder"
                + (", or encoder=shared or private" if self.value_arrangement == "same" else "")
            )
        if self.value_arrangement != "same" and (
            self.encoder != "auto" or ARRANGEMENTS[self.arrangement].encoder != "none"
        ):
            raise ValueError(
                f"policy_encoder: {self.policy_encoder!r} makes the policy use the encoder of arrangement "
                f"{value.arrangement!r}, so its own encoder ({self._encoder_of()}) has no effect"
            )
        if self.arrangement == "care" != value.arrangement:
            raise ValueError(
                f"policy_encoder: care's attention is part of its encoder, so value_arrangement must be care, too; got "
                f"{value.arrangement!r}"
            )

    def _encoder_of(self) -> str:
        return f"encoder={self.encoder}" if self.encoder != "auto" else f"arrangement {self.arrangement!r}"

    def _extra(self) -> str:
        return "task_input" if self.parts.told != "none" else "shared encoder"

    def _check_sizes(self) -> None:
        if self.image_shape and (len(self.image_shape) != 3 or self.encoder == "none"):
            found = "encoder=none" if self.encoder == "none" else self.image_shape
            raise ValueError(f"image_shape: expected height,width,channels and an encoder; got {found}")
        arrangements = {self.arrangement, self.of_value().arrangement}
        if "soft_modular" in arrangements:
            _ = self.module_sizes
        for what, network in (("hidden_sizes", self), ("value_hidden_sizes", self.of_value())):
            sizes = network.hidden_sizes
            if network.trunk == "residual" and len(set(sizes)) > 1:
                raise ValueError(f"{what}: a residual trunk has one width; got {sizes}")
            if not sizes and network.parts.body in ("film", "experts", "moore", "soft_modular"):
                raise ValueError(f"{what}: arrangement {network.arrangement!r} needs at least one hidden layer")
        if "care" in arrangements and self.own_encoder_sizes[-1] != self.context_sizes[-1]:
            raise ValueError(
                f"encoder_sizes: care compares encodings ({self.own_encoder_sizes[-1]}) with the context "
                f"({self.context_sizes[-1]}); the last of encoder_sizes and of context_sizes must be equal"
            )
        if self.selection == "cluster" and "experts" in arrangements:
            if not self.clusters:
                raise ValueError("clusters: selection=cluster needs the expert of every task, e.g. --clusters=0,0,1")
            last = max(self.clusters)
            if last >= self.num_experts:
                raise ValueError(f"clusters: expert {last} does not exist; num_experts is {self.num_experts}")

    def _has_norms(self) -> bool:
        """Whether this network, the policy or the value network, has a layer that layer_norm would normalise."""
        name = self.arrangement
        if self.head_sizes and name not in COMPOSED:
            return True
        if self.parts.encoder != "none" and (self.image_shape or self.encoder_sizes or self.hidden_sizes):
            return True
        if name == "care" and len(self.own_encoder_sizes) > 1:  # their last layer is linear
            return True
        return self.trunk == "mlp" and len(self.hidden_sizes) > (name in LINEAR_END)

    def _check_unused(self) -> None:
        """Reject options that have no effect, which are misunderstandings, and say where they belong."""
        value = self.of_value()
        elsewhere = "trunk=mlp, an encoder or head_sizes"
        if self.arrangement in LINEAR_END:
            elsewhere = "a hidden layer before the last (which is linear here), an encoder or head_sizes"
        mine, its = self._reads(), value._reads()
        used = {
            "layer_norm": (self._has_norms() or value._has_norms(), elsewhere),
            "value_layer_norm": (value._has_norms(), elsewhere),
            **{name: (takes or its[name][0], where) for name, (takes, where) in mine.items()},
        }
        beside = f"with arrangement {self.arrangement!r}"
        if value.arrangement != self.arrangement:
            beside += f" and value_arrangement {value.arrangement!r}"
        refuse_unused(self, used, beside)

    def _reads(self) -> dict[str, tuple[bool, str]]:
        """For each option: whether this network (policy or value) reads it, and with which settings it is read."""
        parts, name = self.parts, self.arrangement
        return {
            "embedding_size": (parts.told == "embedding", "task_input=embedding"),
            "unit_norm_embedding": (parts.told == "embedding", "task_input=embedding"),
            "context_sizes": (parts.told == "context", "task_input=context"),
            "task_embeddings": (parts.told == "context", "task_input=context"),
            "encoder_sizes": (
                parts.encoder != "none" or name == "care",
                "encoder=shared or private, or arrangement=care",
            ),
            "conv_channels": (bool(self.image_shape), "image_shape"),
            "head_sizes": (name not in COMPOSED, "an arrangement with a separate head"),
            "num_experts": (
                name in ("experts", "care", "moore", "paco") and parts.body != "private",
                "arrangement=experts, care, moore or paco",
            ),
            "selection": (name == "experts", "arrangement=experts"),
            "clusters": (name == "experts" and self.selection == "cluster", "arrangement=experts, selection=cluster"),
            "modules": (name == "soft_modular", "arrangement=soft_modular"),
            "modular_variant": (name == "soft_modular", "arrangement=soft_modular"),
            "routing": (name == "soft_modular", "arrangement=soft_modular"),
            "hyper_size": (name == "hypernetwork", "arrangement=hypernetwork"),
        }
