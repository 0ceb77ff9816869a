"""Shared by all commands: a fresh FlagValues for the flags, and one line and an exit code for a failure."""

from __future__ import annotations

import contextlib
import difflib
import dis
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from mtjax.training import signals

OK = 0
BAD_INPUT = 1
DIVERGED = 3
INCOMPLETE = 4  # a sweep has ended, but some of its trials failed or diverged
SIMULATOR = 5  # a simulator on the host failed; start again with --resume
PREEMPTED = 75  # sysexits' EX_TEMPFAIL: saved after SIGTERM; start again with --resume
INTERRUPTED = 130  # what a shell reports after Ctrl-C

# Optional modules, and the extra of mtjax that installs each.
EXTRAS = {
    "envpool": "metaworld",
    "metaworld": "metaworld",
    "gymnasium": "gymnasium",
    "submitit": "slurm",
    "ray": "ray",
    "optuna": "optuna",
}

# What other programs call an option, and what it is called here.
OTHER_NAMES = {
    "lr": ("learning_rate",),
    "seeds": ("num_seeds", "seed"),
    "steps": ("total_steps",),
    "envs": ("num_envs",),
    "gamma": ("discount",),
    "env": ("suite",),
}

FlagValues = flags.FlagValues
Exits = Callable[[BaseException], int | None]


class OutOfMemory(RuntimeError):
    """The device or the host ran out of memory; the message says which options to lower."""


def no_exits(error: BaseException) -> None:
    """The exit codes of a command without exceptions of its own: none."""


def exits_of_runs(error: BaseException) -> int | None:
    """Exit codes of the exceptions of training and evaluation, without importing their modules."""
    if isinstance(error, OutOfMemory):
        return BAD_INPUT
    training = sys.modules.get("mtjax.training.run")
    if training is None:
        return None
    for kind, code in ((training.Interrupted, PREEMPTED), (training.Diverged, DIVERGED)):
        if isinstance(error, kind):
            return code
    if isinstance(error, training.SimulatorFailed):
        return SIMULATOR
    checkpoint = sys.modules.get("mtjax.training.checkpoint")
    # The checkpoint has another version or configuration, or could not be written, e.g. to a full disk.
    unusable = checkpoint is not None and isinstance(error, checkpoint.CheckpointError)
    return BAD_INPUT if unusable else None


@contextlib.contextmanager
def within_memory(remedy: str) -> Iterator[None]:
    """Context in which exhausted memory raises OutOfMemory, with a one-line message that ends in ``remedy``."""
    import jax

    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        said = str(error).strip().split("\n")[0]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = said.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".") or "out of memory"
        raise OutOfMemory(f"{said}; {remedy}") from error


def launch(
    define: Callable[[FlagValues], None],
    run: Callable[..., int],
    argv: Sequence[str] | None = None,
    *,
    exits: Exits = no_exits,
    positional: bool = False,
    interrupted: str = "",
) -> NoReturn:
    """Parse the command line and run the command in ``absl.app.run``; never returns.

    Args:
        define: defines the command's flags into the FlagValues it is given.
        run: the command; returns its exit code.
        argv: program name and arguments; ``sys.argv`` if None.
        exits: exit codes of this command's own exceptions.
        positional: whether ``run`` takes the arguments that are not flags, as a second argument.
        interrupted: advice to print after Ctrl-C.
    """
    argv = list(sys.argv if argv is None else argv)
    program = os.path.basename(argv[0])
    rest: list[str] = []

    def parser(arguments: Sequence[str]) -> FlagValues:
        values = FlagValues()
        define(values)
        guard(program, lambda: rest.extend(parse(values, arguments, positional)), _any_value_error)
        flags.FLAGS.mark_as_parsed()  # absl's own flags keep their defaults
        return values

    def main(values: FlagValues) -> int:
        logging.set_verbosity(logging.ERROR)  # app.run raises it to INFO, at which orbax logs a lot
        with warnings.catch_warnings():
            # Starting ffmpeg forks and execs at once, which is safe.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            warnings.showwarning = lambda message, *_: print(f"{program}: warning: {message}", file=sys.stderr)
            _interrupts.clear()
            with signals.handled([signal.SIGINT], _interrupt):
                return guard(program, lambda: run(values, *([rest] if positional else [])), exits, interrupted)

    app.run(main, argv=argv, flags_parser=parser)
    raise AssertionError("absl.app.run returned")


_interrupts: list[int] = []  # received before the command had its own way to stop


def _interrupt(number: int, frame: Any) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed while modules were imported: where C code or a destructor calls
    Python, the exception is lost. Call it when imports are done, before the work starts."""
    if _interrupts:
        raise KeyboardInterrupt


def parse(values: FlagValues, argv: Sequence[str], positional: bool = False) -> list[str]:
    """Parse the command line. Flags of a flagfile come first, so that the command line overrides them.

    Returns:
        The arguments that are not flags; any of them is an error unless ``positional``.

    Raises:
        flags.Error, ValueError: one line that names the flag.
    """
    values.set_gnu_getopt(True)
    own, files = _split_flagfiles(list(argv[1:]))
    from_files = values.read_flags_from_files(files)
    for arguments in (own, from_files):
        _refuse_repeated(values, arguments)
    for argument in from_files:
        if not argument.startswith("-"):
            raise ValueError(f"a line of the flagfile is not a flag: {argument!r}; write --name=value")
    try:
        rest = values([argv[0], *from_files, *own])
    except flags.UnrecognizedFlagError as error:
        near = [name for name in OTHER_NAMES.get(error.flagname, ()) if name in values]
        if not near and "Did you mean" in str(error):
            raise
        near = near or difflib.get_close_matches(error.flagname, values, n=2)  # absl suggests none for short names
        raise flags.UnrecognizedFlagError(error.flagname, error.flagvalue, near) from None
    if rest[1:] and not positional:
        folder = "run_dir" in values and os.path.isdir(rest[1])
        hint = f"; did you mean --run_dir={rest[1]}?" if folder else "; write every option as a flag, --name=value"
        raise ValueError(f"unexpected argument {rest[1]!r}{hint}")
    return rest[1:]


def _split_flagfiles(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the ``--flagfile`` arguments from the others. Returns (others, flagfiles)."""
    own, files = [], []
    while arguments:
        argument = arguments.pop(0)
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "flagfile":
            files += [argument] if equals else [argument, *arguments[:1]]
            arguments = arguments if equals else arguments[1:]
        else:
            own.append(argument)
    return own, files


def _refuse_repeated(values: FlagValues, arguments: Iterable[str]) -> None:
    """Refuse a flag that is given twice; absl would silently take the last value."""
    count: Counter[str] = Counter()
    pending = False
    for argument in arguments:
        if pending or not argument.startswith("-"):
            pending = False
            continue
        name, equals, _ = argument.lstrip("-").partition("=")
        if name not in values and name.startswith("no"):
            name = name[2:]
        if name in values:
            count[name] += 1
            pending = not equals and not values[name].boolean
    for name, times in count.items():
        if times > 1 and not isinstance(values[name], flags.MultiFlag):
            raise ValueError(f"--{name} is given {'twice' if times == 2 else f'{times} times'}; give it once")


def guard(program: str, work: Callable[[], int | None], exits: Exits = no_exits, interrupted: str = "") -> int:
    """Run ``work``; turn bad input and foreseen failures into one line on stderr and an exit code.

    Any other exception counts as a bug in mtjax and keeps its traceback.
    """
    try:
        return work() or OK
    except KeyboardInterrupt:
        fail(program, "interrupted" + (f"; {interrupted}" if interrupted else ""), INTERRUPTED)
    except flags.Error as error:
        fail(program, f"{_reworded(error)}\nPass --help to see the flags.", BAD_INPUT)
    except Exception as error:
        code = exits(error)
        if code is None and is_bad_input(error):
            code = BAD_INPUT
        if code is None:
            raise
        fail(program, _message(error), code)


def _any_value_error(error: BaseException) -> int | None:
    return BAD_INPUT if isinstance(error, ValueError) else None


def _message(error: Exception) -> str:
    """One line about an exception, with a remedy where one is known."""
    if isinstance(error, ModuleNotFoundError):  # raised by the import; mtjax's own ImportErrors already name the remedy
        extra = EXTRAS.get((error.name or "").split(".")[0])
        return f"{error}; install it with: pip install 'mtjax[{extra}]'" if extra else str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _reworded(error: flags.Error) -> str:
    """absl's message, reworded to match mtjax's own messages."""
    message = str(error).removeprefix("ERROR:: ")
    missing = message.removeprefix("Missing value for flag ")
    return message if missing == message else f"missing value for --{missing.lstrip('-')}"


def is_bad_input(error: BaseException) -> bool:
    """True if mtjax itself refused the input: a ValueError it raised, a missing extra, an inaccessible file.

    A ValueError from jax or numpy is a bug in mtjax and keeps its traceback.
    """
    if isinstance(error, ImportError):
        return error.name is None or error.name.split(".")[0] in EXTRAS
    if not isinstance(error, ValueError):
        return isinstance(error, OSError)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or _module(trace.tb_frame.f_globals).split(".")[0] != "mtjax":
        return False
    # The innermost frame is ours, but C code that it called leaves no frame: check that our code executed a raise.
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _module(namespace: Mapping[str, Any]) -> str:
    """Name of the module with these globals; its real name, not ``__main__``, if it runs by ``python -m``."""
    spec = namespace.get("__spec__")
    return spec.name if spec else namespace.get("__name__", "")


def fail(program: str, message: str, code: int) -> NoReturn:
    """Print the message on stderr and exit with the code."""
    print(f"{program}: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)
