"""``mtjax-evaluate --adapt``: how much a few episodes help in tasks that a saved run never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtjax.launch import show
from mtjax.training.config import RunConfig

if TYPE_CHECKING:
    from mtjax.launch.evaluate import Command

METHODS = {"embedding": "inferred", "finetune": "fine-tuned"}  # names in the flag -> names in the library
WITHOUT = ("modes", "video", "mesh")  # flags that have no effect on adaptation


def check_flags(asked: Command, usual: Command) -> None:
    """Refuse flags that do not go together, before anything is built.

    Raises:
        ValueError: a flag has no effect with --adapt or without it, or the numbers of episodes do not ascend from 0.
    """
    if asked.adapt == "none":
        if asked.adapt_episodes != usual.adapt_episodes:
            raise ValueError(
                f"--adapt_episodes has no effect without --adapt; set --adapt to {' or '.join(METHODS)}, or all"
            )
        return
    for name in WITHOUT:
        if getattr(asked, name) != getattr(usual, name):
            raise ValueError(
                f"--{name} has no effect with --adapt, which evaluates the deterministic policy on one device"
            )
    numbers = asked.adapt_episodes
    if numbers[:1] != (0,) or len(numbers) < 2 or list(numbers) != sorted(set(numbers)):
        text = ",".join(map(str, numbers))
        raise ValueError(f"--adapt_episodes={text}: expected ascending numbers that start with 0, e.g. 0,1,5,20")


def held_out(suite: Any, splits: Sequence[str], *, named: bool) -> tuple[str, ...]:
    """The splits that were not trained on. ``named`` says whether the user listed the splits.

    Raises:
        ValueError: the training split was listed, or there is no other split.
    """
    if named and "train" in splits:
        raise ValueError("--splits: --adapt takes only held-out splits; train is the training split")
    rest = tuple(split for split in splits if split != "train")
    if not rest:
        raise ValueError(f"--adapt: suite {suite.name!r} has no held-out tasks")
    return rest


def methods(asked: str, names: Sequence[str], config: RunConfig, suite: Any) -> tuple[str, ...]:
    """The library's names of the requested methods, or of all that the run's learner supports.

    Args:
        asked: the flag's text, for the message.
        names: some of ``METHODS``; empty for all.
        config: the run's configuration.
        suite: the suite that the run was trained on.

    Raises:
        ValueError: the learner lacks a requested method, has none, or cannot act in unseen tasks.
    """
    from mtjax.training import adaptation
    from mtjax.training.trainer import Trainer

    learner = Trainer(config, suite).learner
    if not learner.generalises:
        raise ValueError(
            f"--adapt={asked}: in this run every task has its own network, so there is none for an unseen task"
        )
    can = adaptation.able(learner)
    able = [name for name, method in METHODS.items() if method in can]
    nothing = (
        f"{config.learner} supports neither 'embedding' nor 'finetune'; hipbmdp supports both, sac supports 'finetune'"
    )
    why = {
        "embedding": f"this run of {config.learner} has no task embedding to infer; hipbmdp with theta_size > 0 has",
        "finetune": f"{config.learner} cannot be fine-tuned on a single task; sac and hipbmdp can",
    }
    if config.learner in ("sac", "hipbmdp"):
        nothing = "in this run every task has its own critic (--value_arrangement), so an unseen task has none"
        why["finetune"] = nothing
    for name in names:
        if name not in able:
            others = f"; --adapt={','.join(able)} works here" if able else ""
            raise ValueError(f"--adapt={asked}: {why[name]}{others}")
    if not able:
        raise ValueError(f"--adapt={asked}: {nothing}")
    return tuple(METHODS[name] for name in names or able)


def run(asked: Command, config: RunConfig, suite: Any, splits: Sequence[str], names: Sequence[str]) -> Mapping:
    """Measure adaptation, save and print the results. Returns them by split (see ``adaptation.as_dict``)."""
    from mtjax.training import adaptation

    chosen = methods(asked.adapt, names, config, suite)
    print(show.evaluated(asked.run_dir, suite), flush=True)
    found = adaptation.measure_run(
        asked.run_dir,
        splits=splits,
        methods=chosen,
        settings=adaptation.Settings(asked.adapt_episodes, asked.episodes),
        seed=asked.seed,
        checkpoint=None if asked.checkpoint < 0 else asked.checkpoint,
    )
    plain = {split: adaptation.as_dict(curves) for split, curves in found.items()}
    print(show.adaptation(plain, asked.run_dir, asked.episodes), flush=True)
    return plain
