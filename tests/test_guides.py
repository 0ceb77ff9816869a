"""The guides and the README are run as they are printed: a reader who copies a block must not meet an error."""

import importlib
import pathlib
import re
import shlex

import jax
import pytest
from absl import flags as absl_flags

ROOT = pathlib.Path(__file__).parent.parent
GUIDES = ROOT / "docs" / "guides"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```(?:console|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:mtjax-|\./start (?:--with \w+ )?)(train|evaluate|sweep|watch|report)\b(.*)")


def guides():
    return [ROOT / "README.md", *sorted(GUIDES.glob("*.md"))]


def test_there_are_guides():
    assert guides()


def commands():
    """(page, "train", its arguments) of every command of mtjax that a page prints."""
    for path in guides():
        for block in CONSOLE.findall(path.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                found = COMMAND.search(re.sub(r"\$\(.*?\)|…", "", line))  # what a shell fills in, what a reader adds
                if found:
                    yield path.stem, found[1], tuple(shlex.split(found[2], comments=True))


@pytest.mark.parametrize("page, name, arguments", list(commands()), ids=lambda value: str(value)[:60])
def test_every_command_of_a_guide_is_accepted(page, name, arguments, tmp_path, monkeypatch):
    """A flag that was renamed, or a mesh that does not divide the seeds, would be a newcomer's first error."""
    from mtjax import suites
    from mtjax.launch import command, flags, train
    from mtjax.training import meshes

    monkeypatch.chdir(tmp_path)
    needed = ("--flagfile", "--config_from", "--resume")  # a run that is there
    if name == "train":
        arguments = [argument for argument in arguments if not argument.startswith(needed)]
    values = absl_flags.FlagValues()
    importlib.import_module(f"mtjax.launch.{name}").define(values)
    command.parse(values, [f"mtjax-{name}", *arguments], positional=name in ("watch", "report"))
    if name == "train":
        given = {key: value for key, value in flags.given(values, train.RunConfig()).items() if value != train.AUTO}
        asked = train.Command(**flags.given(values, train.Command()))
        config = train.make_plan(asked, given).resolved.config
        layout = meshes.parse(asked.mesh)
        if layout.size > 1:
            meshes.check(layout, config, suites.make(config.suite), devices=layout.size)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_kept(tmp_path_factory):
    """A run that a guide repeats, evaluates or goes on with compiles nothing twice, as for a reader."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("path", guides(), ids=lambda path: path.stem)
def test_every_python_block_of_a_guide_runs(path, tmp_path, monkeypatch):
    """All blocks of a file share one namespace, in order, in an empty folder. Of runs no pictures are drawn."""
    from mtjax.training import plots, session

    monkeypatch.setattr(plots, "plot_run", lambda folder: [])
    monkeypatch.setattr(session, "draw_videos", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    namespace = {"__name__": f"guide_{path.stem}"}
    for match in BLOCK.finditer(text):
        first_line = text.count("\n", 0, match.start(1))
        source = "\n" * first_line + match[1]  # so that a traceback names the line of the guide
        exec(compile(source, str(path), "exec"), namespace)
