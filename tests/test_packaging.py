"""Installing: what a newcomer's first command stands on."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mtjax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = sorted({text for texts in [PROJECT["project"]["dependencies"], *EXTRAS.values()] for text in texts})
TOOLS = ["awk", "cat", "cksum", "cut", "dirname", "grep", "head", "mkdir", "rm", "sed", "sh", "tail", "tr"]

pytestmark = pytest.mark.smoke


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins(python: str) -> dict[str, str]:
    """The pinned version of each package on a version of Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    requirements = [Requirement(line) for line in constraints()]
    return {
        canonicalize_name(r.name): str(r.specifier).removeprefix("==")
        for r in requirements
        if r.marker is None or r.marker.evaluate(environment)
    }


def tracked() -> list[Path]:
    """The files that git knows."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# --- Requirements ---------------------------------------------------------------------------------


def test_constraints_are_names_and_versions_only():
    """Anything else, such as a host, would make the lock work on one network only."""
    for line in constraints():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+( ; [a-z_]+ (<|>=|==|!=) '[0-9a-z.*]+')?", line), line


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_every_requirement_is_bounded_and_pinned(text):
    """An unbounded one breaks on somebody's next release; an unpinned one is a version nobody has run."""
    requirement = Requirement(text)
    if requirement.name == "mtjax":
        return
    assert {"<", ">="} <= {specifier.operator for specifier in requirement.specifier}
    for python in ("3.11", "3.12", "3.13"):
        version = pins(python)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{version} is pinned for Python {python}"


def test_what_is_installed_is_what_is_pinned():
    """Tests that pass at other versions say nothing about those that a newcomer gets."""
    if "VIRTUAL_ENV" not in os.environ or not Path(os.environ["VIRTUAL_ENV"], "installed").exists():
        pytest.skip("not in an environment of the start script")
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    for text in PROJECT["project"]["dependencies"]:
        name = canonicalize_name(Requirement(text).name)
        assert importlib.metadata.version(name) == pinned[name], name


# --- The package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [32_769, 40_000])
def test_xla_adds_products_up_rightly(rows):
    """jaxlib 0.10.2 does not, in the last rows (jax's issue 39103): it is what a simulator's step is made of."""
    x = jnp.arange(3 * rows, dtype=jnp.float32).reshape(rows, 3) / rows
    matrix = jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 1.0]])

    def squares(row):
        return jnp.sum((matrix @ row) ** 2)

    expected = np.sum((np.asarray(x, np.float64) @ np.asarray(matrix, np.float64).T) ** 2, axis=1)
    np.testing.assert_allclose(jax.jit(jax.vmap(squares))(x), expected, rtol=1e-5)


@pytest.mark.parametrize("target", PROJECT["project"]["scripts"].values())
def test_a_console_script_exists_and_takes_no_argument(target):
    """The installed command would end in a traceback."""
    module, function = target.split(":")
    main = getattr(importlib.import_module(module), function)
    inspect.signature(main).bind()


def test_data_files_reach_the_wheel():
    """A model file that is not packaged is missing for everybody who did not clone the repository."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["mtjax"]
    package = ROOT / "mtjax"
    for path in tracked():
        if package in path.parents and path.suffix not in (".py", ".md"):
            assert any(path in package.glob(pattern) for pattern in patterns), path


def test_every_folder_of_the_package_is_a_package():
    """setuptools leaves a folder without __init__.py out of the wheel, and only there."""
    for path in tracked():
        if path.suffix == ".py" and (ROOT / "mtjax") in path.parents:
            assert (path.parent / "__init__.py").exists(), path


def test_the_citation_names_this_version():
    """Whoever cites mtjax would cite another release."""
    assert f"version: {mtjax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_no_host_and_no_path_of_a_machine_is_committed():
    """Such a file works on one machine or network only."""
    words = ["pypi" + ".org", "python" + "hosted", "index-" + "url", "find-" + "links", "." + "library"]
    words += [f"/{folder}/" for folder in ("work", "root", "home", "Users")]
    for path in tracked():
        text = path.read_bytes().decode(errors="replace")
        found = [word for word in words if re.search(rf"(?<![\w.]){re.escape(word)}", text)]
        assert not found, f"{path.relative_to(ROOT)} names {found}"


# --- The start script, with a stand-in for uv -----------------------------------------------------


class Machine:
    """A bare machine: a copy of the start script, a folder of programs, nothing else."""

    def __init__(self, folder: Path):
        self.repository, self.bin = folder / "a checkout", folder / "bin"
        self.log = folder / "uv.log"
        self.repository.mkdir()
        self.bin.mkdir()
        for name in ("start", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.repository)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def python(self, name: str, version: str) -> None:
        """A program that answers the start script as a Python of this version would, and does no more."""
        self.program(
            name,
            f"""case "$*" in
*sys.executable*) echo "{version} $0" ;;
*version_info*) echo "{version}" ;;
*python_version*) echo "{version}.0" ;;
--version) echo "Python {version}.0" ;;
-m*) exit 1 ;;
esac""",
        )

    def uv(self, install: str = "true") -> None:
        """`uv venv` links the Python it is given; `uv pip install` does what the test says."""
        self.program(
            "uv",
            f"""echo "$@" >>"{self.log}"
case $1 in
venv) for venv; do :; done
    mkdir -p "$venv/bin"; : >"$venv/pyvenv.cfg"
    printf '#!/bin/sh\\nexec "%s" "$@"\\n' "$4" >"$venv/bin/python"
    printf '#!/bin/sh\\necho trains "$@"\\n' >"$venv/bin/mtjax-train"
    "{shutil.which("chmod")}" +x "$venv/bin/python" "$venv/bin/mtjax-train" ;;
pip) {install} ;;
esac""",
        )

    def start(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", str(self.repository / "start"), *arguments],
            env={"PATH": str(self.bin), "HOME": str(self.repository.parent)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_start_is_posix_shell():
    shell = shutil.which("dash") or "sh"
    assert subprocess.run([shell, "-n", str(ROOT / "start")]).returncode == 0
    assert os.access(ROOT / "start", os.X_OK)


def test_start_alone_prints_help(machine):
    done = machine.start()
    assert done.returncode == 0
    assert "./start train" in done.stdout
    assert len(done.stdout.splitlines()) < 15


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "'trian'"),
        (["--python", "2.7", "test"], "'2.7'"),
        (["--with", "cudda", "train"], "'cudda'"),
        (["--with"], "--with"),
    ],
)
def test_a_mistake_gets_one_line_and_installs_nothing(machine, arguments, named):
    machine.python("python3.13", "3.13")
    machine.uv()
    done = machine.start(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert machine.calls() == ""


def test_without_python_it_says_what_is_needed(machine):
    machine.python("python3", "3.10")
    done = machine.start("train")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "3.11" in done.stderr


def test_the_newest_python_that_works_is_taken(machine):
    machine.program("python3.13", "exit 127")  # a pyenv shim of a version that is not selected
    machine.python("python3.12", "3.12")
    machine.python("python3.11", "3.11")
    machine.python("python3", "3.11")
    machine.uv()
    assert machine.start("train").returncode == 0
    assert f"--python {machine.bin}/python3.12 " in machine.calls()


def test_a_python_that_only_pyenv_can_find(machine):
    machine.program("python3.13", "exit 127")
    machine.python("somewhere", "3.13")
    machine.program(
        "pyenv",
        f"""case $1 in
versions) echo 2.7.18; echo 3.13.0 ;;
which) echo "{machine.bin}/somewhere" ;;
esac""",
    )
    machine.uv()
    assert machine.start("train").returncode == 0
    assert f"--python {machine.bin}/somewhere " in machine.calls()


def test_it_installs_once_and_passes_the_arguments_on(machine):
    machine.python("python3", "3.12")
    machine.uv()
    first = machine.start("train", "--suite", "two words")
    assert first.stdout == "trains --suite two words\n", first.stderr
    assert "--constraint constraints.txt" in machine.calls()
    assert ".[all,test]" in machine.calls()
    calls = machine.calls()
    machine.uv(install="exit 1")  # from now on there is no network
    second = machine.start("train")
    assert (second.stdout, second.stderr) == ("trains\n", "")
    assert machine.calls() == calls


def test_new_requirements_and_extras_are_installed(machine):
    machine.python("python3", "3.12")
    machine.uv()
    machine.start("train")
    machine.start("--with", "cuda", "train")
    assert machine.calls().splitlines()[-1].endswith(".[all,test,cuda]")
    with open(machine.repository / "constraints.txt", "a") as file:
        file.write("# changed\n")
    calls = machine.calls()
    machine.start("train")  # keeps the extra that was asked for before
    assert machine.calls().removeprefix(calls).splitlines()[-1].endswith(".[all,test,cuda]")


def test_a_checkout_that_was_moved_gets_a_new_environment(machine):
    machine.python("python3", "3.12")
    machine.uv()
    machine.start("train")
    machine.repository = machine.repository.rename(machine.repository.parent / "moved")
    assert machine.start("train").returncode == 0
    assert machine.calls().splitlines()[-1].startswith("pip install")
    assert "moved/.venv" in machine.calls()


def test_without_envpool_the_rest_is_installed(machine):
    machine.python("python3", "3.12")
    machine.uv(install="""case "$*" in *"[all"*) echo "error: no wheel for envpool" >&2; exit 1 ;; esac""")
    done = machine.start("train")
    assert done.stdout == "trains\n"
    assert "metaworld" in done.stderr
    assert machine.start("train").stderr == ""  # said once


def test_without_a_network_the_first_run_says_so(machine):
    machine.python("python3", "3.12")
    machine.uv(install="echo 'error: failed to fetch: dns error' >&2; exit 1")
    done = machine.start("train")
    assert done.returncode == 1
    assert "network" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 2  # "installing …", and why it did not
