"""Reports: a page that opens anywhere, and says what the records say."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import types

import imageio.v3 as imageio
import numpy as np
import pytest

from mtjax import options
from mtjax.launch import report as report_command
from mtjax.report import charts, data, measures, page, svg
from mtjax.sweeps import ledger, plan
from mtjax.training import packing
from mtjax.training.config import RunConfig
from mtjax.training.record import Recorder
from mtjax.training.series import Series

TASKS = ("reach", "push <b>", "pick & place")
BASE = RunConfig(suite="some-suite", total_steps=1000)
VOID = {"meta", "img", "br", "line", "path", "circle", "hr"}


def make_run(folder, config=BASE, *, success=0.5, seed=0, final=True, has_success=True, finished=True):
    """A run's folder as training leaves it, with a success that ends at ``success`` on the first task."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    version = {"suite": "1", "simulator": "none", "reward": "v1", "horizon": 5, "warnings": []}
    splits = {"train": TASKS, "extrapolation": ("far",)}
    tasks = {split: [{"name": n, "description": f"Do {n}."} for n in names] for split, names in splits.items()}
    (folder / "suite.json").write_text(json.dumps({"name": config.suite, "version": version, "tasks": tasks}))
    (folder / "versions.json").write_text(json.dumps({"mtjax": "0.1", "packages": {"jax": "0.12"}}))
    write_record(folder, config, success=success, seed=seed, final=final, has_success=has_success)
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


def write_record(folder, config, *, success=0.5, seed=0, final=True, has_success=True):
    random, seeds = np.random.default_rng(seed), config.num_seeds
    with Recorder(folder, TASKS, tensorboard=False) as recorder:
        for update in range(1, 11):
            cosine = np.clip(random.normal(0, 0.3, (seeds, 3, 3)), -1, 1)
            values = {"return": random.normal(update, 1, (seeds, 3)), "grads/cosine": cosine}
            values["steps_per_second"] = np.float64(123.0)
            values["routing/policy"] = random.dirichlet(np.ones(4), (seeds, 3))
            values["routing_entropy/policy"] = random.uniform(size=(seeds, 3))
            values["embedding/policy"] = random.normal(size=(seeds, 3, 5))
            if has_success:
                values["success"] = random.uniform(size=(seeds, 3))
            recorder.train(100 * update, update, float(update), values)
            for split, tasks in (("train", 3), ("extrapolation", 1)):
                if update % 5:
                    continue
                done = np.full((seeds, tasks), success * update / 10)
                done[:, 1:] *= random.uniform(0.5, 0.9, (seeds, tasks - 1))
                values = {"return": 100 * done, "length": done}
                if has_success:
                    values |= {"success_any": done, "success_last": done}
                last = update == 10 and final
                names = None if split == "train" else ["far"]
                recorder.evaluation(
                    100 * update,
                    1.0,
                    split=split,
                    mode="deterministic",
                    final=last,
                    episodes=5,
                    values=values,
                    task_names=names,
                )


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects what the page would load and say."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.words, self.classes, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
                self.loads.append(value)
            if name == "class":
                self.classes += (value or "").split()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def assert_offline(text):
    """Nothing that a browser would fetch: every source is inside the page, or a file beside it."""
    found = Page(text)
    for address in found.loads:
        assert address.startswith(("#", "data:")) or not re.match(r"(?i)[a-z]+:|//", address), address
    assert "@import" not in text and not re.search(r"url\((?!['\"]?(data:|#))", text)
    assert not re.search(r"(?i)(fetch|XMLHttpRequest|import)\s*\(", text)
    assert "https://" not in text and "http://" not in text
    return found


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two methods, the second one of two runs that differ in their seeds."""
    folder = tmp_path_factory.mktemp("runs")
    mean = dataclasses.replace(BASE, grads="mean", num_seeds=3)
    other = dataclasses.replace(BASE, grads="cagrad(c=0.4)")
    return [
        make_run(folder / "a", mean, success=0.4),
        make_run(folder / "b", dataclasses.replace(other, num_seeds=2), success=0.9, seed=1),
        make_run(folder / "c", dataclasses.replace(other, seed=7), success=0.6, seed=2),
    ]


def test_runs_that_differ_in_their_seeds_are_one_method(three):
    (suite,) = data.gather(three)
    assert [method.label for method in suite.methods] == ["mean", "cagrad(c=0.4)"]
    assert suite.differing == ("grads",) and [method.seeds for method in suite.methods] == [3, 3]
    final = suite.methods[1].final["train"]["success_any"]
    np.testing.assert_allclose(final[:, 0], [0.9, 0.9, 0.6])
    assert suite.methods[1].run.train["grads/cosine"].values.shape == (10, 3, 3, 3)
    assert "steps_per_second" not in suite.methods[1].run.train  # two programs have no common speed


def test_the_page_stands_alone_and_says_what_was_measured(three, tmp_path):
    written = page.write(three, tmp_path / "report.html", title="A <title> & more")
    found = assert_offline(written.read_text())
    for words in (
        "A <title> & more",
        "some-suite",
        "2 methods · 6 agents · 3 tasks",
        "cagrad(c=0.4)",
        "push <b>",  # names are text, never markup
        "Final results",
        "Learning curves",
        "Performance profiles",
        "Probability of improvement",
        "Gradient conflict",
        "Routing and sharing",
        "Task embeddings",
        "routing, policy network",
        "Held-out tasks",
        "Options that differ",
        "jax",
        "0.12",
        "3 done",
    ):
        assert words in found.text, words
    # The better method stands first, with mean over tasks and seeds.
    results = found.text[found.text.index("Final results") :]
    assert results.index("cagrad(c=0.4)") < results.index("mean 3")
    assert found.tags.count("button") == 2 and {"m0", "m1", "c0", "c1"} <= set(found.classes)
    assert {"svg", "table", "img"} <= set(found.tags)


@pytest.mark.parametrize("final, step", [(True, 1000), (False, 500)])
def test_looking_at_a_run_again_does_not_change_its_result(tmp_path, final, step):
    """mtjax-evaluate appends to the record: of the last checkpoint after the final evaluation, or, of a run that was
    stopped and has none, of an old checkpoint."""
    folder = make_run(tmp_path / "run", final=final, finished=final)
    with Recorder(folder, TASKS, tensorboard=False) as recorder:
        values = {"return": np.zeros((1, 3)), "success_any": np.zeros((1, 3))}
        recorder.evaluation(
            step, 9.0, split="train", mode="deterministic", final=False, episodes=1, values=values, task_names=TASKS
        )
    (suite,) = data.gather([folder])
    assert suite.methods[0].final["train"]["success_any"][0, 0] == 0.5


def test_a_seed_that_has_just_started_takes_nothing_from_the_others(tmp_path):
    """It has trained, but was not evaluated yet: the other seeds' results stay."""
    folders = [make_run(tmp_path / str(seed), dataclasses.replace(BASE, seed=seed)) for seed in range(2)]
    young = make_run(tmp_path / "young", dataclasses.replace(BASE, seed=2), finished=False)
    lines = (young / "metrics.jsonl").read_text().splitlines(keepends=True)
    (young / "metrics.jsonl").write_text("".join(lines[:2]))
    assert [line["kind"] for line in data.of_run(young).lines] == ["tasks", "train"]
    for order in ([*folders, young], [young, *folders]):
        (suite,) = data.gather(order)
        (method,) = suite.methods
        assert method.seeds == 2 and not method.complete and set(method.final) == {"train", "extrapolation"}
        assert method.run.evaluations["train"]["success_any"].values.shape == (2, 2, 3)
        returns = method.run.train["return"]
        assert returns.values.shape == (10, 3, 3) and returns.steps[-1] == 1000
        assert np.isfinite(returns.values).sum(axis=(0, 2)).tolist().count(3) == 1  # the young one's first record


def test_curves_are_pooled_where_they_are_known():
    """Whatever the order of the runs, to the end of the longest; nothing is invented before a run's first number."""
    steps = np.arange(1, 11) * 100.0
    long = {"return": Series(steps, np.zeros((10, 1, 2)))}
    late = {"return": Series(np.array([500.0, 1000.0]), np.array([[[1.0, 1.0]], [[3.0, np.nan]]]))}
    for place, parts in ((1, [long, late]), (0, [late, long])):
        joined = data._join_series(parts)["return"]
        np.testing.assert_array_equal(joined.steps, steps)
        new = joined.values[:, place, 0]
        assert np.isnan(new[:4]).all()
        np.testing.assert_allclose(new[4:], [1.0, 1.4, 1.8, 2.2, 2.6, 3.0])
        gap = joined.values[:, place, 1]
        assert gap[4] == 1.0 and np.isnan(np.delete(gap, 4)).all()


def test_a_diverged_run_has_no_final_result(tmp_path):
    """What its policy scored before the collapse is not what this method gives; and the page says what happened."""
    folders = [make_run(tmp_path / "good", success=0.4)]
    folders.append(make_run(tmp_path / "bad", dataclasses.replace(BASE, seed=1), success=1.0, finished=False))
    with Recorder(folders[1], TASKS, tensorboard=False) as recorder:
        recorder.event(1000, 9.0, "diverged at step 1100: not finite: the loss of task 'reach' (seed 1)")
    (suite,) = data.gather(folders)
    (method,) = suite.methods
    assert method.final["train"]["success_any"][:, 0].tolist() == [0.4] and method.diverged == 1
    text = assert_offline(page.write(folders, tmp_path / "r.html").read_text()).text
    assert text.count("1 diverged") == 2 and "diverged at step 1100" in text


@pytest.mark.parametrize("has_success", [True, False])
def test_one_unfinished_run(tmp_path, has_success):
    """A page can be had of a run that still trains, of one seed, with or without success."""
    folder = make_run(tmp_path / "run", final=False, finished=False, has_success=has_success)
    found = assert_offline(page.write([folder], tmp_path / "r.html").read_text())
    assert "1 unfinished" in found.text and "Probability of improvement" not in found.text
    assert ("Success, mean over tasks" in found.text) == has_success
    assert "Return, mean over tasks" in found.text


def test_a_link_to_a_video_of_a_folder_with_any_name(tmp_path):
    run = make_run(tmp_path / "50% #1")
    (run / "videos").mkdir()
    (run / "videos" / "reach.mp4").write_bytes(b"x" * 100)
    text = page.write([run], tmp_path / "r.html", video_megabytes=0.0).read_text()
    assert 'src="50%25%20%231/videos/reach.mp4"' in text


def test_a_run_without_any_evaluation(tmp_path):
    folder = tmp_path / "run"
    make_run(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if '"evaluation"' not in line))
    found = assert_offline(page.write([folder], tmp_path / "r.html").read_text())
    assert "Final results" not in found.text and "during training" in found.text


def test_suites_have_sections_of_their_own(tmp_path):
    folders = [make_run(tmp_path / name, dataclasses.replace(BASE, suite=name)) for name in ("one", "two")]
    found = assert_offline(page.write(folders, tmp_path / "r.html").read_text())
    assert found.tags.count("h2") == 3 and {"#s0", "#s1"} <= set(found.loads)
    assert {"m0", "m1"} <= set(found.classes)  # the legend of one switches nothing of the other


def section(found, title):
    """The text of a page from a title on."""
    return found.text[found.text.index(title) :]


def test_a_page_of_many_folders_has_a_short_heading(tmp_path):
    """The names of 27 runs filled the first screen."""
    folders = [make_run(tmp_path / f"run{n}", dataclasses.replace(BASE, seed=n)) for n in range(6)]
    found = assert_offline(page.write(folders, tmp_path / "r.html").read_text())
    assert found.text.startswith("run0, run1, run2 and 3 more run0, run1, run2 and 3 more mtjax")
    found = assert_offline(page.write(folders[:4], tmp_path / "r.html").read_text())
    assert found.text.startswith("run0, run1, run2, run3 run0, run1, run2, run3 mtjax")


def test_runs_that_have_measured_nothing_are_listed_once(tmp_path):
    """Each had a link and an empty section of its own, between which the results had to be searched for."""
    folders = [make_run(tmp_path / "good")]
    for name in ("idle", "lost"):
        folders.append(make_run(tmp_path / name, dataclasses.replace(BASE, suite=f"suite-{name}"), finished=False))
        (folders[-1] / "metrics.jsonl").unlink()
    found = assert_offline(page.write(folders, tmp_path / "r.html").read_text())
    assert [address for address in found.loads if address.startswith("#")] == ["#s0", "#unmeasured", "#versions"]
    assert found.tags.count("h2") == 3 and "lost on suite-lost: unfinished" in section(found, "Not measured yet")


def test_options_that_one_learner_alone_has_are_not_in_the_table(tmp_path):
    """The table of two learners had 60 columns, most of which said nothing in every other row."""
    sac = dataclasses.replace(BASE, learner="sac", hyper=None)
    ppo = options.replace(BASE, {"num_epochs": 9})
    folders = [make_run(tmp_path / str(n), config) for n, config in enumerate((BASE, ppo, sac))]
    found = assert_offline(page.write(folders, tmp_path / "r.html").read_text())
    text = section(found, "Options that differ")
    table, sacs = text[: text.index("Other options of ppo")], text[text.index("Other options of sac") :]
    assert "num_epochs" in table and "discount" not in table.split() and "polyak" not in table
    assert "polyak" in sacs[: sacs.index("Options in common")] and "gae_lambda" not in sacs


@pytest.mark.parametrize(
    "steps, words", [((1000, 1005), "1,005 environment steps"), ((1000, 800), "800 to 1,000 environment steps")]
)
def test_how_far_methods_got_is_a_range_if_it_differs(tmp_path, steps, words):
    """The largest number of steps was printed as everybody's."""
    for step, grads in zip(steps, ("mean", "pcgrad"), strict=True):
        folder = make_run(tmp_path / grads, dataclasses.replace(BASE, grads=grads))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [line | {"step": step} if line["step"] == 1000 else line for line in lines if line["step"] in (0, 1000)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = assert_offline(page.write([tmp_path / "mean", tmp_path / "pcgrad"], tmp_path / "r.html").read_text())
    assert f"· {words} per agent" in found.text, found.text[:400]


def test_a_curve_of_one_point_is_a_dot():
    """A path through one point draws nothing: the first evaluation of a run was not on the page."""
    point, style = np.array([0.5]), svg.Style(0, 0)
    lines = [svg.Line("a", style, svg.Curve(np.array([100.0]), point, point, point))]
    assert svg.chart(lines, title="t").count("<circle") == 1
    longer = svg.Curve(np.array([100.0, 200.0]), *3 * [np.array([0.5, 0.6])])
    assert "<circle" not in svg.chart([svg.Line("a", style, longer)], title="t")


def make_sweep(folder):
    """Four trials: two packed ones that train, one that failed, one that waits."""
    changes = [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}, {"num_epochs": 2}, {"num_epochs": 3}]
    base = dataclasses.replace(BASE, num_seeds=2)
    trials = [(change, options.replace(base, change)) for change in changes]
    made = plan.make_plan("s", trials, lambda config: plan.Facts(1000, ("learning_rate",)), most_rows=9)
    plan.save(made, folder)
    packed = made.programs["p001"]
    rows = packing.pack({name: made.trials[name].config for name in packed.trials}, ("learning_rate",))
    program = plan.program_dir(folder, "p001")
    program.mkdir(parents=True)
    (program / packing.PROGRAM).write_text(json.dumps(packing.describe_program(rows)))
    write_record(program, rows.config, final=False)
    with ledger.Ledger(folder) as book:
        book.write("started", program="p001", attempt=1, job="process 1")
        book.write("started", program="p002", attempt=1, job="process 2")
        (failed,) = made.programs["p002"].trials
        outcome = {failed: {"state": "failed", "error": "ValueError: <no>"}}
        book.write("ended", program="p002", attempt=1, state="failed", error="ValueError: <no>", trials=outcome)
    return made


def test_a_sweep_at_work(tmp_path):
    """Packed trials are told apart while they train; failures are shown with their reasons."""
    make_sweep(tmp_path / "s")
    (suite,) = data.gather([tmp_path / "s"])
    assert [method.label for method in suite.methods] == ["lr=0.001 · num_epochs=4", "lr=0.01 · num_epochs=4"]
    assert [method.seeds for method in suite.methods] == [2, 2] and len(suite.silent) == 2
    assert not np.array_equal(*(method.run.train["return"].values for method in suite.methods))
    found = assert_offline(page.write([tmp_path / "s"], tmp_path / "r.html").read_text())
    assert "2 running" in found.text and "1 failed" in found.text and "1 waiting" in found.text
    assert "ValueError: <no>" in found.text


def rewrite(folder, change):
    """Change what a run's suite.json says."""
    suite = json.loads((folder / "suite.json").read_text())
    change(suite)
    (folder / "suite.json").write_text(json.dumps(suite))
    return folder


def test_versions_of_a_suite_are_not_compared(tmp_path):
    """Another reward or other tasks: sections of their own. A trial that has not said which belongs to its tasks."""
    runs = [make_run(tmp_path / name, dataclasses.replace(BASE, grads=name)) for name in ("mean", "pcgrad", "mgda")]
    rewrite(runs[1], lambda suite: suite["version"].update(reward="v2"))
    (runs[2] / "suite.json").unlink()
    suites = data.gather(runs)
    assert [[m.config.grads for m in suite.methods] for suite in suites] == [["mean", "mgda"], ["pcgrad"]]
    assert [suite.name for suite in suites] == ["some-suite (1 of 2)", "some-suite (2 of 2)"]

    other = make_run(tmp_path / "other", dataclasses.replace(BASE, grads="upgrad"))
    lines = (other / "metrics.jsonl").read_text().splitlines()
    short = [json.loads(line) for line in lines]
    for line in short:
        line["tasks"] = line["tasks"][:2] if line["kind"] == "tasks" else line.get("tasks")
        if line["kind"] == "evaluation" and line["split"] == "train":
            line["values"] = {name: [row[:2] for row in value] for name, value in line["values"].items()}
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in short if line["kind"] != "train"))
    rewrite(other, lambda suite: suite["tasks"].update(train=suite["tasks"]["train"][:2]))
    Page(page.write([runs[0], other], tmp_path / "r.html").read_text())


def test_a_run_that_is_named_twice_counts_once(three):
    (suite,) = data.gather([three[1], three[1].parent / "." / "b", three[2]])
    assert suite.methods[0].seeds == 3


def test_a_seed_of_a_method_counts_once(tmp_path):
    """The same run again is no further evidence; of runs that have some seeds in common, those that are new count."""
    first = make_run(tmp_path / "first", dataclasses.replace(BASE, num_seeds=2), success=0.4)
    again = make_run(tmp_path / "again", dataclasses.replace(BASE, num_seeds=2), success=0.4)
    more = make_run(tmp_path / "more", dataclasses.replace(BASE, num_seeds=3, seed=1), success=0.8, seed=1)
    running = make_run(tmp_path / "running", dataclasses.replace(BASE, seed=3), success=0.1, seed=2, finished=False)
    (suite,) = data.gather([running, first, again, more])
    (method,) = suite.methods
    np.testing.assert_allclose(method.final["train"]["success_any"][:, 0], [0.4, 0.4, 0.8, 0.8])
    assert method.run.train["return"].values.shape == (10, 4, 3) and suite.agents == 4 and method.complete
    assert [entry.name for entry in suite.repeated] == ["running", "again"]
    text = assert_offline(page.write([first, again], tmp_path / "r.html").read_text()).text
    assert "2 agents" in text and "again: duplicates the options and seeds of another run" in text


def test_learners_side_by_side(tmp_path):
    """Options that only one of them has are no obstacle."""
    other = options.replace(BASE, {"learner": "sac"})
    runs = [make_run(tmp_path / "ppo", BASE, success=0.4), make_run(tmp_path / "sac", other, success=0.6)]
    for number, rate in enumerate((1e-3, 1e-2, 1e-1)):
        runs.append(make_run(tmp_path / f"r{number}", options.replace(other, {"learning_rate": rate})))
    text = assert_offline(page.write(runs, tmp_path / "r.html").read_text()).text
    assert "by learning_rate" in text and "5 methods" in text


def test_a_method_that_is_not_evaluated_yet_does_not_change_the_measure(tmp_path):
    """Returns of Meta-World's tasks cannot be compared: a trial that has just begun must not bring them back."""
    done = make_run(tmp_path / "done", dataclasses.replace(BASE, grads="mean"))
    begun = make_run(tmp_path / "begun", dataclasses.replace(BASE, grads="pcgrad"), finished=False)
    lines = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    (begun / "metrics.jsonl").write_text("".join(line for line in lines if '"evaluation"' not in line))
    (suite,) = data.gather([done, begun])
    assert len(suite.methods) == 2 and measures.primary(suite) == "success_any"
    page.write([done, begun], tmp_path / "r.html")


def test_methods_whose_numbers_look_alike_have_names_of_their_own(tmp_path):
    configs = [options.replace(BASE, {"learning_rate": rate}) for rate in (0.0001234567, 0.0001234568)]
    (suite,) = data.gather([make_run(tmp_path / str(n), config) for n, config in enumerate(configs)])
    assert [m.label for m in suite.methods] == ["lr=0.0001234567", "lr=0.0001234568"]


def test_labels_across_learners_are_short(tmp_path):
    """Learners share few options; only those that differ between the runs of one learner tell these runs apart."""
    config = {name: options.replace(BASE, {"learner": name, "num_envs": 8}) for name in ("ppo", "sac")}
    config["sac"] = options.replace(config["sac"], {"num_envs": 4, "learning_rate": 1e-3})
    cautious = options.replace(config["sac"], {"learning_rate": 1e-4})
    for number, one in enumerate((config["ppo"], config["sac"], cautious)):
        make_run(tmp_path / str(number), one)
    (suite,) = data.gather([tmp_path / str(number) for number in range(3)])
    assert [m.label for m in suite.methods] == ["ppo · lr=0.0003", "sac · lr=0.001", "sac · lr=0.0001"]
    assert {"num_envs", "gae_lambda", "learning_rate"} <= set(suite.differing)


def missing(folder, kinds, tasks, after=0):
    """Make values of a record null: of some tasks, in lines of these kinds, after a step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] in kinds and line["step"] > after:
            for name, value in line["values"].items():
                array = np.array(value, dtype=object)
                if array.ndim > 1 and array.shape[1] == 3:
                    array[:, tasks] = None
                    line["values"][name] = array.tolist()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("has_success", [True, False])
@pytest.mark.parametrize(
    "kinds, tasks, after",
    [
        pytest.param(("train", "evaluation"), [1], 0, id="a task of which no episode has ended"),
        pytest.param(("train",), [0, 1, 2], 800, id="nothing is known of the last tenth"),
        pytest.param(("train", "evaluation"), [0, 1, 2], 0, id="nothing is known at all"),
    ],
)
def test_missing_values(tmp_path, has_success, kinds, tasks, after):
    """They are left out, without a word on stderr (warnings are errors here)."""
    runs = []
    for name in ("mean", "pcgrad"):
        config = dataclasses.replace(BASE, grads=name, num_seeds=2)
        run = make_run(tmp_path / name, config, has_success=has_success)
        runs.append(missing(run, kinds, tasks, after))
    found = assert_offline(page.write(runs, tmp_path / "r.html").read_text())
    assert "nan" not in found.text.lower().split()


def test_videos_are_inside_until_the_page_is_large_enough(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "videos").mkdir()
    for name in ("a", "b"):
        (folder / "videos" / f"{name}.mp4").write_bytes(b"0" * 600_000)
    text = page.write([folder], tmp_path / "r.html", video_megabytes=1.0).read_text()
    sources = [address for address in assert_offline(text).loads if "mp4" in address]
    assert sources[0].startswith("data:video/mp4;base64,") and sources[1] == "run/videos/b.mp4"


def test_what_is_no_run(tmp_path, three):
    with pytest.raises(ValueError, match="nowhere is neither a run nor a sweep: there is no such folder"):
        page.write([tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(ValueError, match="it has neither config.json nor sweep.json"):
        page.write([tmp_path], tmp_path / "r.html")
    empty = tmp_path / "empty"
    make_run(empty)
    (empty / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="nothing has been measured yet"):
        page.write([empty], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command(three, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, code, said in (
        ([str(three[0]), "--output=x.html"], 0, "report: x.html"),
        ([], 1, "name the folders of runs or sweeps"),
        (["nowhere"], 1, "nowhere is neither a run nor a sweep"),
        ([str(three[0]), "--outptu=x"], 1, "Did you mean: output"),
        ([str(three[0]), "--video_megabytes=-1"], 1, "too small"),
    ):
        with pytest.raises(SystemExit) as stopped:
            report_command.main(["mtjax-report", *arguments])
        captured = capsys.readouterr()
        assert (stopped.value.code or 0) == code and said in captured.out + captured.err


def test_in_a_browser_without_a_network(three, tmp_path):
    """Chromium draws it, its script switches methods, and nothing is asked of any host."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    written = page.write(three, tmp_path / "report.html")
    probe = """
    document.querySelector(".legend button").click();
    const loads = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:"));
    document.title = `errors: ${broken}, loads: ${loads.length}`;
    """
    text = written.read_text().replace("<head>", "<head><script>broken = 0; onerror = () => broken++</script>")
    written.write_text(text.replace("</body>", f"<script>{probe}</script></body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    picture = tmp_path / "page.png"
    ask = subprocess.run([*command, "--dump-dom", written.as_uri()], capture_output=True, text=True, timeout=120)
    assert ask.returncode == 0, ask.stderr
    assert "<title>errors: 0, loads: 0</title>" in ask.stdout and 'class="m m0 c0 off"' in ask.stdout  # switched off
    size = ["--window-size=1280,2400", f"--screenshot={picture}", written.as_uri()]
    subprocess.run([*command, *size], capture_output=True, timeout=120, check=True)
    pixels = imageio.imread(picture)[..., :3]
    assert pixels.shape[1] == 1280 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200  # not a blank page


# ------------------------------------------------------------------------------------------- numbers


def test_scores_of_returns_are_scaled_within_each_task():
    values = {"a": np.array([[0.0, 10.0], [5.0, 30.0]]), "b": np.array([[10.0, 20.0]])}
    scaled = measures.common_scale(values, "return")
    np.testing.assert_allclose(scaled["a"], [[0.0, 0.0], [0.5, 1.0]])
    np.testing.assert_allclose(scaled["b"], [[1.0, 0.5]])
    assert measures.common_scale(values, "success_any") == values
    assert measures.common_scale({"a": values["a"]}, "return") == {}


def test_a_curve_over_seeds():
    """Mean and bootstrap interval; where a seed knows nothing the others speak, where none does there is a gap."""
    values = np.array([[1.0, 3.0], [np.nan, np.nan], [np.nan, 4.0]])
    found = measures.over_seeds(data.Series(np.array([0.0, 1.0, 2.0]), values))
    np.testing.assert_array_equal(found.steps, [0, 2])
    np.testing.assert_array_equal(found.middle, [2, 4])
    assert found.low[0] == 1 and found.high[0] == 3


def test_seeds_that_are_missing_make_nothing_surer():
    """The band at a step is that of the seeds that are known there, as if there had never been others."""
    values = np.array([[1.0, 2.0, np.nan, np.nan], [1.0, 2.0, 3.0, 4.0], [np.nan, 5.0, np.nan, np.nan]])
    found = measures.over_seeds(Series(np.arange(3.0), values))
    for row, seeds in enumerate(([0, 1], [0, 1, 2, 3], [1])):
        alone = measures.over_seeds(Series(np.zeros(1), values[row : row + 1, seeds]))
        for part in ("middle", "low", "high"):
            assert getattr(found, part)[row] == getattr(alone, part)[0]
    assert found.low[0] == 1.0 and found.high[0] == 2.0 and found.low[2] == found.high[2] == 5.0


def test_the_share_of_conflicts_does_not_hang_on_how_often_it_was_looked_at():
    """It is that of the lines: a mean of cosines that swing about 0.05 is seldom below 0."""
    draw = np.random.default_rng(0)
    cosine = np.broadcast_to(np.eye(2), (400, 1, 2, 2)).copy()
    cosine[..., 0, 1] = cosine[..., 1, 0] = draw.normal(0.05, 0.3, (400, 1))
    run = types.SimpleNamespace(train={"grads/cosine": Series(np.arange(400.0), cosine)})
    _, share = measures.conflict(types.SimpleNamespace(run=run))
    assert len(share.steps) == measures.SMOOTH
    assert share.middle.mean() == pytest.approx((cosine[..., 0, 1] < 0).mean()) and share.middle.mean() > 0.4


def test_learnt_task_vectors_in_the_plane_where_they_differ_most():
    """Three of four tasks on a line in five dimensions, and one across it."""
    along, across = np.array([3.0, 0, 4.0, 0, 0]) / 5, np.array([0, 1.0, 0, 0, 0])
    vectors = np.stack([-3 * along, 0 * along, 3 * along, across]) + 7.0
    vectors = vectors - vectors.mean(axis=0)
    points, share = measures.plane(vectors)
    assert share == pytest.approx(1.0)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)  # as far from each other as they are
    np.testing.assert_allclose(apart, np.linalg.norm(vectors[:, None] - vectors[None], axis=-1), atol=1e-9)
    cosines = measures.cosines(vectors)
    np.testing.assert_allclose(np.diagonal(cosines), 1.0)
    assert cosines[0, 2] < -0.9 and abs(cosines[0, 3]) < 0.2
    assert measures.plane(np.zeros((3, 2)))[1] == 1.0 and not measures.cosines(np.zeros((3, 2))).any()


def test_ticks_are_round_and_inside():
    assert svg.Scale(0.0, 1.0, 0, 100).ticks() == [0.0, 0.2, 0.4, pytest.approx(0.6), 0.8, 1.0]
    assert svg.Scale(1e-4, 1e-2, 0, 100, log=True).ticks() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert float(svg.Scale(1e-4, 1e-2, 0, 100, log=True)(1e-3)) == pytest.approx(50)
    assert [svg.number(v) for v in (1e-4, 0.25, 1234.5, 60_416, 4.1e6, None)] == [
        "1e-4", "0.25", "1,234", "60.4k", "4.1M", "–",
    ]  # fmt: skip


def test_methods_that_differ_in_numbers_share_a_colour(tmp_path):
    changes = [{"grads": g, "learning_rate": lr} for g in ("mean", "pcgrad") for lr in (1e-3, 1e-2, 1e-1)]
    folders = [make_run(tmp_path / str(i), options.replace(BASE, change)) for i, change in enumerate(changes)]
    (suite,) = data.gather(folders)
    looks = charts.styles(suite, [method.label for method in suite.methods])
    assert [style.colour for style in looks.values()] == [0, 0, 0, 1, 1, 1]
    assert [style.dash for style in looks.values()] == [0, 1, 2, 0, 1, 2]
    assert "by learning_rate" in page.render([suite], "t", tmp_path)
