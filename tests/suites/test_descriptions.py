"""What the tasks' descriptions say as vectors: complete, centred, in a sensible geometry; and a user's own."""

import numpy as np
import pytest

from mtjax import suites
from mtjax.suites import base, descriptions, metaworld_tasks


def _suite(sentences, parameters=None, name="mine", held_out=()):
    infos = [
        suites.TaskInfo(f"task_{i}", sentence, (parameters or [{}] * len(sentences))[i])
        for i, sentence in enumerate(sentences)
    ]
    train = suites.Split(tuple(infos), tuple(sentences))
    splits = {"train": train}
    if held_out:
        splits["extrapolation"] = suites.Split(tuple(held_out), tuple(held_out))
    version = suites.Version("1", "none", "v1", 10)
    return base.Suite(name, version, 2, None, 10, splits, None)


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# ------------------------------------------------------------------------------------ shipped


@pytest.mark.parametrize("name", [n for n in suites.names() if not n.startswith(("hidden-", "bodies-mjx"))])
def test_every_description_has_an_embedding(name):
    """A suite whose sentences were changed without embedding them anew cannot be used by name."""
    suite = suites.make(name)
    found = descriptions.contexts(suite)
    assert {label: len(v) for label, v in found.items()} == {label: len(s) for label, s in suite.splits.items()}
    assert len({v.shape[1] for v in found.values()}) == 1 and found["train"].shape[1] >= 384


def test_every_description_of_the_hidden_suites_has_an_embedding():
    """Likewise, without compiling a body for each task."""
    from mtjax.suites import hidden

    known = descriptions.shipped()
    for family, variations in hidden.MIXED.values():
        for tasks in hidden.mixed_parameters(variations).values():
            assert all(hidden._describe(family, variations, parameters) in known for parameters in tasks)
    for family, phrase, tasks in hidden.TEN.values():
        assert all(hidden._ten_info(family, phrase, parameters).description in known for parameters in tasks)


def test_window_open_is_nearer_to_window_close_than_to_peg_insert():
    """The geometry that metadata methods live on; raw sentence embeddings of one robot are all alike."""
    names = list(metaworld_tasks.MT10)
    vectors = descriptions.contexts(_suite([metaworld_tasks.DESCRIPTIONS[name] for name in names]))["train"]
    v = dict(zip(names, vectors, strict=True))
    near = _cosine(v["window-open"], v["window-close"])
    assert near > 0.3 > _cosine(v["window-open"], v["peg-insert-side"])
    assert _cosine(v["drawer-open"], v["drawer-close"]) > _cosine(v["drawer-open"], v["reach"])
    apart = [_cosine(a, b) for i, a in enumerate(vectors) for b in vectors[:i]]
    assert np.mean(apart) < 0.0 and max(apart) < 0.95


def test_contexts_are_centred_and_of_the_networks_scale():
    vectors = descriptions.contexts(suites.make("control-pendulum"))
    np.testing.assert_allclose(vectors["train"].mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.mean(vectors["train"] ** 2), 1.0, rtol=0.3)
    assert vectors["train"].dtype == np.float32


def test_numbers_that_set_tasks_apart_show():
    """Sentences that differ in a number are all but one point; the number itself orders the tasks."""
    sentence = metaworld_tasks.DESCRIPTIONS["reach"]
    unseen = suites.TaskInfo("between", sentence, {"gravity": 1.5})
    suite = _suite([sentence] * 3, [{"gravity": g} for g in (1.0, 2.0, 3.0)], held_out=[unseen])
    vectors = descriptions.contexts(suite)
    train, between = vectors["train"], vectors["extrapolation"][0]
    np.testing.assert_allclose(between, (train[0] + train[1]) / 2, atol=1e-4)
    assert np.linalg.norm(train[0] - train[2]) > np.linalg.norm(train[0] - train[1]) > 1.0


def test_tasks_may_differ_in_different_numbers():
    """Task 0 has another gravity, task 1 another mass: what a task does not say is the mean of the others."""
    sentence = metaworld_tasks.DESCRIPTIONS["reach"]
    suite = _suite([sentence] * 4, [{"gravity": 1.0}, {"gravity": 3.0}, {"mass": 1.0}, {"mass": 2.0}])
    numbers = descriptions.contexts(suite)["train"][:, 384:]
    assert numbers.shape == (4, 2) and np.isfinite(numbers).all()
    np.testing.assert_array_equal(numbers == 0, [[False, True], [False, True], [True, False], [True, False]])


@pytest.mark.parametrize("name", ["gridworld-mazes", "bodies-control", "hidden-hopper", "control-pendulum"])
def test_unseen_tasks_lie_where_numbers_can_take_them(name):
    """A generator's seed is no property of a maze, nor is one body's gravity that of another: both went to hundreds."""
    found = descriptions.contexts(suites.make(name))
    reach = np.abs(found["train"]).max()
    for label, vectors in found.items():
        assert np.abs(vectors).max() < 6 * max(reach, 5), label


def test_a_suite_of_ones_own_is_told_how_to_bring_embeddings():
    suite = _suite(["Do something that no other suite does."])
    with pytest.raises(ValueError, match="no embedding of task 'task_0' of suite 'mine' .*--task_embeddings=FILE"):
        descriptions.contexts(suite)


# ------------------------------------------------------------------------------------ a user's own


def test_embeddings_of_ones_own(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, task_0=np.array([1.0, 0.0]), task_1=np.array([0.0, 1.0]), unused=np.zeros(2))
    vectors = descriptions.contexts(_suite(["a", "b"]), str(path))["train"]
    np.testing.assert_allclose(vectors, [[1.0, -1.0], [-1.0, 1.0]])


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"task_0": [1.0, 2.0]}, "has no vector for task task_1 of mine"),
        ({"task_0": [1.0, 2.0], "task_1": [1.0]}, "must hold vectors of one size"),
        ({"task_0": [1.0], "task_1": [np.nan]}, "the vector of 'task_1' in .* is not finite"),
        ({"task_0": [[1.0]], "task_1": [[1.0]]}, "must hold vectors of one size"),
        ({"task_0": ["x"], "task_1": ["y"]}, "cannot be read"),
    ],
)
def test_files_that_do_not_fit(tmp_path, arrays, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})
    with pytest.raises(ValueError, match=f"task_embeddings: .*{message}") as caught:
        descriptions.contexts(_suite(["a", "b"]), str(path))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("text.npz", "missing.npz", "."):
        with pytest.raises(ValueError, match="task_embeddings: .* cannot be read"):
            descriptions.contexts(_suite(["a"]), str(tmp_path / name))
