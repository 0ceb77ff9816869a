"""The process is set up before jax starts, and what the user has set is kept."""

from __future__ import annotations

import pytest

from mtjax.launch import environment


def test_old_jaxlib_gets_the_flag_that_makes_mjx_fast(monkeypatch):
    monkeypatch.setattr(environment, "jaxlib_version", lambda: (0, 10))
    environ = {"XLA_FLAGS": "--xla_dump_to=here"}
    environment.prepare(environ)
    assert environ["XLA_FLAGS"] == "--xla_dump_to=here --xla_cpu_use_fusion_emitters=false"
    assert environ["OPENBLAS_NUM_THREADS"] == "1"
    before = dict(environ)
    environment.prepare(environ)
    assert environ == before


def test_new_jaxlib_needs_none(monkeypatch):
    monkeypatch.setattr(environment, "jaxlib_version", lambda: (0, 11))
    environ = {}
    environment.prepare(environ)
    assert "XLA_FLAGS" not in environ


def test_the_users_settings_are_kept(monkeypatch):
    monkeypatch.setattr(environment, "jaxlib_version", lambda: (0, 10))
    environ = {
        "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=true",
        "MUJOCO_GL": "osmesa",
        "TF_CPP_MIN_LOG_LEVEL": "0",
    }
    before = dict(environ)
    environment.prepare(environ)
    assert {name: environ[name] for name in before} == before


@pytest.mark.parametrize(
    "libraries, backend",
    [
        ({"libEGL.so.1", "libGL.so.1"}, "egl"),
        ({"libEGL.so.1", "libOpenGL.so.0"}, "egl"),
        ({"libEGL.so.1"}, None),
        (set(), None),
    ],
)
def test_a_machine_without_egl_can_still_import_mujoco(monkeypatch, libraries, backend):
    """MUJOCO_GL=egl makes ``import mujoco`` fail where the libraries are missing, as on a bare container."""
    monkeypatch.setattr(environment, "_loads", libraries.__contains__)
    monkeypatch.setattr(environment.sys, "platform", "linux")
    environ = {}
    environment.prepare(environ)
    assert environ.get("MUJOCO_GL") == backend


def test_jaxlib_version_is_that_of_the_installed_one():
    import jaxlib

    assert environment.jaxlib_version() == tuple(map(int, jaxlib.__version__.split(".")[:2]))


@pytest.mark.parametrize(
    "choice, environ, folder",
    [
        ("none", {}, None),
        ("here", {}, "here"),
        ("auto", {"XDG_CACHE_HOME": "caches"}, "caches/mtjax"),
        ("auto", {"HOME": "home", "XDG_CACHE_HOME": ""}, "home/.cache/mtjax"),
        ("auto", {"JAX_COMPILATION_CACHE_DIR": "mine"}, "mine"),
    ],
)
def test_the_cache_lies_where_caches_lie(monkeypatch, choice, environ, folder):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = environment.cache_folder(choice)
    assert found == folder if folder is None else str(found) == folder


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot use the compilation cache"):
        assert environment.keep_compiled_programs(str(tmp_path / "file" / "cache")) is None


def test_compiled_programs_are_kept(tmp_path):
    import jax

    assert environment.keep_compiled_programs(str(tmp_path / "cache")) == tmp_path / "cache"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")


def test_the_cpu_can_be_asked_for():
    import jax

    if jax.default_backend() != "cpu":
        pytest.skip("this process has started on an accelerator")
    environment.choose_platform("cpu")
    assert jax.config.jax_platforms == "cpu"


@pytest.mark.parametrize(
    ("asked", "own", "backend", "found"),
    [
        ("auto", None, "cpu", "default"),
        ("auto", None, "gpu", "float32"),  # not TensorFloat-32, which spoils physics
        ("auto", "tensorfloat32", "gpu", "tensorfloat32"),  # JAX_DEFAULT_MATMUL_PRECISION is the user's word
        ("bfloat16", "tensorfloat32", "cpu", "bfloat16"),
    ],
)
def test_precision_of_matrix_products(monkeypatch, asked, own, backend, found):
    import jax

    before = jax.config.jax_default_matmul_precision
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    try:
        jax.config.update("jax_default_matmul_precision", own)
        assert environment.set_precision(asked) == found
        assert (jax.config.jax_default_matmul_precision or "default") == found
    finally:
        jax.config.update("jax_default_matmul_precision", before)
