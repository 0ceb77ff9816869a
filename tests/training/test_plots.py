"""Plots: drawn from the folder alone, of few tasks or many, one seed or several, a run just begun or torn."""

import ast
import pathlib

import matplotlib
import numpy as np
import pytest

from mtjax.training import adaptation_plot, plots, series
from mtjax.training.record import Recorder


def write_run(run_dir, *, tasks, seeds=1, updates=60, success=False, held_out=False, holes=False, routed=False):
    """A made-up run: tasks of rising difficulty, noise, conflict that grows and fades."""
    generator = np.random.default_rng(0)
    difficulty = np.linspace(0.5, 2.5, tasks)
    speed = 1 + 0.2 * generator.normal(size=(seeds, 1))
    names = [f"mass_{d:.2f}" for d in difficulty]
    with Recorder(run_dir, names, tensorboard=False) as recorder:
        for update in range(updates):
            at, step = update / max(updates - 1, 1), (update + 1) * 40_960
            skill = 1 / (1 + np.exp(4 * difficulty - 9 * at * speed - 1))  # [S, T]
            noise = generator.normal(size=(seeds, tasks))
            values = {
                "return": 900 * skill + 40 * noise,
                "length": 1000 * skill,
                "episodes": np.full((seeds, tasks), 4),
                "loss/policy": 0.02 * noise - 0.03,
                "loss/value": np.exp(3 - 6 * at + 0.3 * noise),
                "entropy": 2 - 1.5 * at + 0.05 * noise,
                "kl": 0.01 + 0.002 * noise,
                "clip_fraction": 0.1 + 0.02 * noise,
                "explained_variance": skill,
                "learning_rate": np.full(seeds, 3e-4 * (1 - 0.9 * at)),
                "grads/norm": np.exp(0.3 * noise),
                "grads/weight": np.full((seeds, tasks), 1 / tasks),
                "seconds/rollout": 1.2 + 0.1 * noise[0, 0] + 9 * (update == 0),
                "seconds/update": 0.7 + 0.05 * noise[0, -1] + 14 * (update == 0),
                "steps_per_second": 21_000 + 500 * noise[0, 0],
                "adventure": generator.uniform(size=seeds),
            }
            distance = np.abs(difficulty[:, None] - difficulty[None])
            cosine = np.clip(1 - (0.4 + 2 * at * (1.3 - at)) * distance, -1, 1)
            cosine = np.clip(cosine + 0.1 * generator.normal(size=(seeds, tasks, tasks)), -1, 1)
            values["grads/cosine"] = np.where(np.eye(tasks, dtype=bool), 1, (cosine + cosine.mT) / 2)
            values["grads/conflict"] = (cosine < 0).sum(axis=(1, 2)) / max(1, tasks * (tasks - 1))
            if routed:
                values["routing/policy"] = generator.uniform(size=(seeds, tasks, 6))
                values["weights/value"] = generator.normal(size=(seeds, tasks, 3))
            if success:
                values["success"] = np.clip(skill + 0.1 * noise, 0, 1)
            if holes:
                values["return"][:, ::2] = np.nan
                if update < 5 or seeds > 1 and update > 40:
                    values["return"][-1] = np.nan
            recorder.train(step, update + 1, 30 + 2.1 * update, values)
            if update % max(1, updates // 10) == 0 or update == updates - 1:
                for split in ["train"] + ["interpolation", "extrapolation"] * held_out:
                    part = skill[:, : None if split == "train" else 2] * (0.7 if split == "extrapolation" else 1)
                    measured = {"return": 950 * part, "length": 1000 * part}
                    if success:
                        measured |= {"success_any": part, "success_last": part * 0.9}
                    how = {"split": split, "mode": "deterministic", "final": update == updates - 1}
                    recorder.evaluation(step, 31 + 2.1 * update, episodes=10, values=measured, **how)


ALL = {"learning_curves", "tasks", "gradients", "time", "learning"}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"tasks": 2, "seeds": 3, "success": True, "held_out": True}, ALL | {"generalisation"}),
        ({"tasks": 26, "updates": 8, "success": True, "routed": True}, ALL | {"routing"}),
        ({"tasks": 3, "seeds": 2, "holes": True}, ALL),
        ({"tasks": 1, "updates": 1, "routed": True}, ALL - {"gradients"} | {"routing"}),
        ({"tasks": 2, "updates": 0}, set()),
    ],
)
def test_every_picture_there_is_data_for(tmp_path, settings, expected):
    write_run(tmp_path, **settings)
    style = dict(matplotlib.rcParams)
    written = plots.plot_run(tmp_path)
    assert {path.stem for path in written} == expected
    assert all(path.stat().st_size > 5_000 and path.parent == tmp_path / "plots" for path in written)
    assert dict(matplotlib.rcParams) == style


def drawn(axes):
    """The markers of the lines of a plot that have one, by label."""
    return {line.get_label(): line.get_marker() for line in axes.lines if line.get_marker() != "None"}


def test_curves_of_one_point_are_seen_and_told_apart(tmp_path):
    """A run that has been evaluated once had empty plots, or two equal dots for mean and worst."""
    write_run(tmp_path, tasks=2, seeds=2, updates=1, held_out=True)
    run = series.load(tmp_path)
    during, evaluated = plots.learning_curves(run).axes
    assert set(drawn(during)) == set(drawn(evaluated)) == {"mass_0.50", "mass_2.50", "mean", "median", "worst"}
    markers = drawn(plots.generalisation(run).axes[0])
    assert markers["extrapolation, mean"] != markers["extrapolation, worst"]


def test_a_constant_is_drawn_as_one(tmp_path):
    """An axis from 0.00096 to 0.00105 made a constant learning rate look like noise."""
    with Recorder(tmp_path, ["a"], tensorboard=False) as recorder:
        for update in range(1, 4):
            values = {"learning_rate": np.full(2, 1e-3), "entropy": np.full((2, 1), -0.5), "kl": np.zeros(2)}
            recorder.train(10 * update, update, 1.0, values | {"loss": np.full((2, 1), 0.01 * update)})
    spans = {axes.get_title(): axes.get_ylim() for axes in plots.quantities(series.load(tmp_path)).axes}
    np.testing.assert_allclose(spans["Learning rate"], (0.0, 2e-3))
    np.testing.assert_allclose(spans["Policy entropy"], (-1.0, 0.0))
    assert spans["KL divergence per update"][0] < 0 < spans["KL divergence per update"][1]
    assert 0.005 < spans["Loss"][0] < 0.01


def test_no_pyplot_is_needed():
    """It would open windows and keep every figure alive."""
    for module in (plots, adaptation_plot):
        for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not [name for name in (*names, getattr(node, "module", None) or "") if "pyplot" in name]


def test_where_the_time_went_counts_every_update(tmp_path):
    """A line stands for all updates since the one before, the first line too."""
    spent = {"seconds/rollout": 0.5, "seconds/update": 0.25}
    with Recorder(tmp_path, ["a"], tensorboard=False) as recorder:
        for update in (100, 150):
            recorder.train(10 * update, update, float(update), spent)
    bars = plots.time_spent(series.load(tmp_path)).axes[1].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [75.0, 37.5, 37.5])


def test_thinning_keeps_the_mean_and_skips_holes():
    series = plots.Series(np.arange(1000.0), np.arange(1000.0)[:, None])
    thinned = plots.thin(series, 100)
    np.testing.assert_allclose(thinned.steps, thinned.values[:, 0])
    np.testing.assert_allclose(thinned.values[0], np.arange(10).mean())
    series.values[::2] = np.nan
    np.testing.assert_allclose(plots.thin(series, 100).values[0], 5.0)
    assert plots.thin(series, 1000) is series


def test_snapshots_are_of_what_is_known():
    """Of an off-policy learner that first fills its replay, the earliest one is not empty."""
    series = plots.Series(np.arange(100.0), np.arange(100.0)[:, None])
    series.values[:50] = np.nan
    shown = plots.snapshots(series, 3)
    np.testing.assert_allclose(shown.values[:, 0], [50.5, 74.5, 98.5])
    np.testing.assert_allclose(shown.steps, shown.values[:, 0])


def test_an_old_checkpoint_that_is_evaluated_late_is_drawn_in_its_place(tmp_path):
    with Recorder(tmp_path, ["a"], tensorboard=False) as recorder:
        for step in (100, 200, 50):
            said = {"split": "train", "mode": "deterministic", "final": False, "episodes": 1}
            recorder.evaluation(step, 1.0, **said, values={"return": np.array([[float(step)]])})
    series = plots.load(tmp_path).evaluations["train"]["return"]
    assert series.steps.tolist() == series.values[:, 0, 0].tolist() == [50, 100, 200]


def test_a_folder_without_a_record(tmp_path):
    with pytest.raises(FileNotFoundError):
        plots.plot_run(tmp_path)
