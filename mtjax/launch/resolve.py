"""Resolves a run's configuration: the defaults, then a preset or a saved run, then flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtjax import options
from mtjax.launch import presets
from mtjax.options import as_text
from mtjax.training.config import CONFIG, OPERATIONAL, RunConfig, changed, load_config, settle


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A configuration and the sources of its values.

    Attributes:
        config: the configuration, validated.
        preset: the preset that was applied, or None.
        sources: "preset", "config_from" or "flag" for the options that one of them set.
    """

    config: RunConfig
    preset: presets.Preset | None
    sources: Mapping[str, str]


def resolve(
    given: Mapping[str, Any],
    *,
    preset: str = "auto",
    config_from: str | None = None,
    own: Mapping[str, Any] | None = None,
) -> Resolved:
    """Combine the user's options with the suite's preset or with a saved run.

    Args:
        given: options that the user set.
        preset: "auto", "none" or a preset's name.
        config_from: folder of a run whose configuration supplies every option that ``given`` does not set, so that
            no preset is applied. If ``given`` names another learner, that learner's own options take their defaults.
        own: the options that this trial of a sweep sets itself. An option in ``given`` that has no effect beside them
            takes its default; without ``own``, it is refused.

    Raises:
        ValueError: an unknown option or preset, a value out of bounds, a folder that is not a run.
    """
    chosen, base, said = None, {}, given if own is None else own
    given = {**given, **(own or {})}
    if config_from:
        if preset not in ("auto", "none"):
            raise ValueError("--preset has no effect with --config_from: a saved run sets every option")
        saved = load_config(os.path.expanduser(config_from))
        base = options.flatten(saved)
        if given.get("learner", saved.learner) != saved.learner:
            base = {name: value for name, value in base.items() if name not in options.flatten(saved.hyper)}
    else:
        suite, learner = (given.get(name, getattr(RunConfig(), name)) for name in ("suite", "learner"))
        chosen = presets.find(suite, learner, preset)
        base = chosen.options if chosen else {}
    source = "config_from" if config_from else "preset"
    sources = {**dict.fromkeys(base, source), **dict.fromkeys(given, "flag")}
    config = settle({**base, **given}, said)
    return Resolved(config, chosen, sources)


def require_preset(preset: str, saved: RunConfig, given: Mapping[str, Any], run_dir: str | Path) -> None:
    """Refuse a preset, given with ``--resume``, that the saved run was not started with.

    Args:
        preset: as in :func:`resolve`; "auto" and "none" name no preset.
        saved: the run's configuration, which records the values that its preset set, but not the preset's name.
        given: options that the user also set, which override the preset's.
        run_dir: the run's folder, for the message.

    Raises:
        ValueError: one line with the first option that differs; or the learner has no such preset.
    """
    if preset in ("auto", "none"):
        return
    may_differ = {*given, *OPERATIONAL, "total_steps"}
    chosen = presets.find(saved.suite, saved.learner, preset).options
    wanted = {name: value for name, value in chosen.items() if name not in may_differ}
    have = options.flatten(saved)
    would = options.flatten(settle({**have, **wanted}, ()))  # an option without effect takes its default
    differing = changed(saved, {name: would[name] for name in wanted})
    if differing:
        name, value = next(iter(differing.items()))
        raise ValueError(
            f"--preset={preset} is not what {run_dir} was started with: --{name} is {as_text(have[name])} there, "
            f"{as_text(value)} in the preset; omit --preset to continue the run"
        )


def is_run(folder: str | Path) -> bool:
    """True if the folder holds a run."""
    return (Path(folder).expanduser() / CONFIG).is_file()
