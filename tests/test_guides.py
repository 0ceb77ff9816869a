"""The guides and the README are run as they are printed: a reader who copies a block must not meet an error."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
GUIDES = ROOT / "docs" / "guides"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def guides():
    return [ROOT / "README.md", *sorted(GUIDES.glob("*.md"))]


def test_there_are_guides():
    assert guides()


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


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Suites that a guide registers are forgotten after it."""
    from mtjax.suites import base

    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


@pytest.fixture(autouse=True)
def arrangements():
    """Arrangements that a guide adds are forgotten after it."""
    from mtjax.networks import arrangements, config

    tables = [arrangements.BODIES, config.ARRANGEMENTS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("path", guides(), ids=lambda path: path.stem)
def test_every_python_block_of_a_guide_runs(path, tmp_path, monkeypatch):
    """All blocks of a file share one namespace, in order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    namespace = {"__name__": f"guide_{path.stem}"}
    for match in BLOCK.finditer(text):
        first_line = text.count("\n", 0, match.start(1))
        source = "\n" * first_line + match[1]  # so that a traceback names the line of the guide
        exec(compile(source, str(path), "exec"), namespace)
