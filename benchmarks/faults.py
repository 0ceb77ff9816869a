"""What happens to a run that is killed, damaged, contended for, or on a disk that is full or read-only.

    python benchmarks/faults.py --kills=100 --output=docs/faults.md

Every fault is injected into a tiny real run, started as a user starts it. Nothing is lost if the run, once resumed,
ends with the numbers of an undisturbed run (the last losses and every result of the final evaluation, bit for bit). A
full or read-only disk is a tmpfs made for the test; where none can be mounted, the table says so.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from common import header, table

TINY = (
    "--suite=gridworld-two-rooms", "--num_envs=4", "--rollout_length=16", "--num_minibatches=2", "--hidden_sizes=16",
    "--grads=mean", "--evaluation_episodes=2", "--final_evaluation_episodes=2", "--novideo", "--noprogress",
)  # fmt: skip
UPDATE = 8 * 4 * 16  # environment steps
UPDATES = 25
ANSWERS = {True: "yes", False: "NO", None: "not tried"}
LANES = 2  # runs that are killed side by side
RUN = (*TINY, f"--total_steps={UPDATES * UPDATE}", f"--checkpoint_every={UPDATE}", "--log_every=1")
JUMP = """
import sys, time
real, calls = time.time, [0]
def jumping():
    calls[0] += 1
    return real() - 86400.0 * (calls[0] % 3)  # back and forth by days
time.time = jumping
from mtjax.launch.train import main
sys.argv[0] = "train.py"
sys.exit(main())
"""


@dataclasses.dataclass
class Outcome:
    """A row of the table."""

    fault: str
    times: int
    expected: str
    found: str
    good: bool | None  # None: it could not be tried here


class Bench:
    """Folders, commands, and the results of an undisturbed run."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.cache = f"--compilation_cache={folder / 'cache'}"

    @functools.cached_property
    def seconds(self) -> float:
        """How long an undisturbed run takes, once its programs are compiled."""
        self.finish(self.start("straight", *RUN))  # compiles
        shutil.rmtree(self.folder / "straight")
        begin = time.monotonic()
        self.finish(self.start("straight", *RUN))
        return time.monotonic() - begin

    @functools.cached_property
    def straight(self) -> str:
        """The results of the undisturbed run."""
        assert self.seconds
        return self.numbers("straight")

    def command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"mtjax.launch.{module}", *arguments, self.cache]

    def start(self, run: str, *arguments: str) -> subprocess.Popen:
        command = self.command("train", f"--run_dir={self.folder / run}", *arguments)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, process: subprocess.Popen, code: int | None = 0) -> str:
        """Wait for a process. Returns its output; raises RuntimeError for another exit code."""
        printed = process.communicate()[0]
        if code is not None and process.returncode != code:
            raise RuntimeError(f"exit code {process.returncode}, not {code}:\n{printed}")
        return printed

    def resume(self, run: str) -> subprocess.Popen:
        """Resume a run that has started, else start it, as a scheduler's script does."""
        begun = (self.folder / run / "metrics.jsonl").exists()
        return self.start(run, *(("--resume",) if begun else RUN))

    def numbers(self, run: str) -> str:
        """The exact results of a finished run: its last losses and its final evaluation."""
        lines = [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]
        train = [line for line in lines if line["kind"] == "train"][-1]
        values = {k: v for k, v in train["values"].items() if not k.startswith(("seconds", "steps_per_second"))}
        results = json.loads((self.folder / run / "summary.json").read_text())["results"]
        return json.dumps([train["step"], values, results], sort_keys=True)

    def intact(self, run: str) -> str:
        return "the same numbers" if self.numbers(run) == self.straight else "OTHER NUMBERS"


# ------------------------------------------------------------------------------------------------ faults


def killed(bench: Bench, kills: int) -> Outcome:
    """SIGKILL at random moments from the start to past the end; every third while a checkpoint is being written."""
    assert bench.straight  # measured before runs go side by side
    with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
        lanes = [pool.submit(_killed, bench, n, kills // LANES, bench.random.random()) for n in range(LANES)]
    done, runs, writing, wrong = (sum(part) for part in zip(*[lane.result() for lane in lanes], strict=True))
    found = f"{runs} runs were killed so often in all, and ended with the same numbers"
    if wrong:
        found = f"{wrong} of {runs} runs with OTHER NUMBERS"
    return Outcome(
        f"SIGKILL at a random moment ({writing} of them while a checkpoint was being written)", done,
        "resumes from the newest whole checkpoint", found, not wrong,
    )  # fmt: skip


def _killed(bench: Bench, lane: int, kills: int, seed: float) -> tuple[int, int, int, int]:
    """One run after another, each killed repeatedly. Returns (kills, runs, kills while writing, runs gone wrong)."""
    draw = random.Random(seed)
    done = runs = writing = wrong = 0
    while done < kills:
        name = f"killed-{lane}-{runs}"
        runs += 1
        while done < kills:
            process = bench.resume(name)
            deadline = time.monotonic() + draw.uniform(0.0, 1.1 * bench.seconds)
            during = done % 3 == 0
            hit = False
            while process.poll() is None and time.monotonic() < deadline and not hit:
                hit = during and any((bench.folder / name / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
                time.sleep(0.0005 if during else 0.01)
            if process.poll() is not None:
                bench.finish(process)
                break  # it finished before the kill: next run
            process.kill()
            process.communicate()
            done += 1
            writing += hit
        else:
            bench.finish(bench.resume(name))
        wrong += bench.numbers(name) != bench.straight
        shutil.rmtree(bench.folder / name)
    return done, runs, writing, wrong


def _interrupted(bench: Bench, name: str) -> pathlib.Path:
    """A run killed with at least three checkpoints. Returns their folder."""
    process = bench.resume(name)
    checkpoints = bench.folder / name / "checkpoints"
    while len(list(checkpoints.glob("[0-9]*/manifest.json"))) < 3:
        if process.poll() is not None:
            raise RuntimeError(bench.finish(process, None))
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return checkpoints


def _cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[pathlib.Path], None]] = {
    "cut in half": _cut,
    "one bit flipped": _flip,
    "missing": lambda path: path.unlink(),
}


def damaged(bench: Bench, how: str) -> Outcome:
    """Damage to the largest file of the newest checkpoint."""
    name = f"damaged-{how.split()[0]}"
    checkpoints = _interrupted(bench, name)
    steps = sorted(int(p.parent.name) for p in checkpoints.glob("[0-9]*/manifest.json"))
    newest = checkpoints / str(steps[-1])
    DAMAGE[how](max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
    bench.finish(bench.resume(name))
    record = (bench.folder / name / "metrics.jsonl").read_text()
    named = f"checkpoint {steps[-1]} is damaged" in record and f"resumed from checkpoint {steps[-2]}" in record
    found = bench.intact(name) + (", the damage is named" if named else ", NOT NAMED")
    good = named and found.startswith("the same")
    return Outcome(f"a file of the newest checkpoint {how}", 1, "takes the one before, and names both", found, good)


def contended(bench: Bench) -> Outcome:
    """A second process on the folder of a run that is still training."""
    first = bench.start("contended", *RUN)
    while not (bench.folder / "contended" / "metrics.jsonl").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it is still running when the second has started
    second = bench.start("contended", "--resume")
    printed = bench.finish(second, None)
    first.send_signal(signal.SIGCONT)
    bench.finish(first)
    refused = second.returncode == 1 and "is in use by process" in printed and "Traceback" not in printed
    found = bench.intact("contended") + (", the second refused" if refused else f", NOT REFUSED: {printed[-200:]}")
    good = refused and found.startswith("the same")
    return Outcome("two processes on one run folder", 1, "the second is refused, and told who holds it", found, good)


def clock(bench: Bench) -> Outcome:
    """The wall clock jumps back and forth by days throughout the run."""
    arguments = [f"--run_dir={bench.folder / 'clock'}", *RUN, bench.cache]
    printed = subprocess.run(
        [sys.executable, "-c", JUMP, *arguments], capture_output=True, text=True, check=False
    )  # fmt: skip
    if printed.returncode:
        return Outcome("a clock that jumps by days", 1, "no difference", printed.stderr[-200:], False)
    found = bench.intact("clock")
    return Outcome("a clock that jumps by days", 1, "no difference", found, found.startswith("the same"))


@contextlib.contextmanager
def _mounted(bench: Bench, name: str, size: str) -> Iterator[pathlib.Path | None]:
    """Mount a separate file system for a run; yields None if none can be mounted."""
    path = bench.folder / name
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=False)


def _on_disk(bench: Bench, name: str, fault: str, expected: str, spoil: Callable[[pathlib.Path], tuple]) -> Outcome:
    """Outcome for a run on its own file system; ``spoil`` makes it fail: (whether with a one-line message, output)."""
    with _mounted(bench, name, "64m") as path:
        if path is None:
            return Outcome(fault, 0, expected, "no file system could be mounted here", None)
        told, printed = spoil(path)
        bench.finish(bench.resume(name))
        found = bench.intact(name) + (", one line" if told else f", BUT: {printed[-300:]}")
    return Outcome(fault, 1, expected, found, told and found.startswith("the same"))


def _remount(path: pathlib.Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True, capture_output=True)


def _clear(printed: str) -> bool:
    return "Traceback" not in printed and printed.strip().splitlines()[-1].startswith("train.py: ")


def full_disk(bench: Bench) -> Outcome:
    """The disk fills up while the run trains; then space is freed and the run resumed."""

    def fill(path: pathlib.Path) -> tuple[bool, str]:
        process = bench.start("full", *RUN)
        while len(list((path / "checkpoints").glob("[0-9]*/manifest.json"))) < 2 and process.poll() is None:
            time.sleep(0.002)
        filler = path / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
                file.flush()
        printed = bench.finish(process, None)
        filler.unlink()
        return process.returncode not in (0, None) and _clear(printed) and "No space left" in printed, printed

    expected = "one line, the newest checkpoint stays good; with room it goes on"
    return _on_disk(bench, "full", "a disk that fills up", expected, fill)


def read_only(bench: Bench) -> Outcome:
    """The run's file system has become read-only when the run is resumed."""

    def close(path: pathlib.Path) -> tuple[bool, str]:
        _interrupted(bench, "readonly")
        _remount(path, "ro")
        process = bench.resume("readonly")
        printed = bench.finish(process, None)
        _remount(path, "rw")
        return process.returncode == 1 and _clear(printed), printed

    return _on_disk(bench, "readonly", "a run folder that is read-only", "one line; once writable it goes on", close)


def diverged(bench: Bench) -> Outcome:
    """A loss that is not finite."""
    process = bench.start("diverged", *RUN, "--learning_rate=1e30", "--max_grad_norm=0")
    printed = bench.finish(process, None)
    last = _last_line(bench, printed)
    good = process.returncode == 3 and _clear(printed) and "not finite" in last and "checkpoint" in last
    return Outcome("a loss that is not finite", 1, "stops; names tasks, step and checkpoint", last, good)


FRAIL = pathlib.Path(__file__).with_name("frail_simulator.py")
FRAIL_RUN = (
    "--suite=frail", "--num_envs=2", "--rollout_length=16", "--num_minibatches=2", "--hidden_sizes=8", "--grads=mean",
    "--evaluation_episodes=1", "--final_evaluation_episodes=1", "--novideo", "--noprogress", "--total_steps=4096",
    "--checkpoint_every=64", "--log_every=1",
)  # fmt: skip


def _frail(bench: Bench, name: str, *arguments: str, **environ: str) -> subprocess.Popen:
    """Start a run whose simulators are processes; their ids are written to the file <name>.processes."""
    command = [sys.executable, str(FRAIL), f"--run_dir={bench.folder / name}", *arguments, bench.cache]
    environ = {**os.environ, "FRAIL_PROCESSES": str(bench.folder / f"{name}.processes"), **environ}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environ, text=True, **pipes)


def simulator_dies(bench: Bench) -> Outcome:
    """SIGKILL of the process of one environment of a host simulator."""
    process = _frail(bench, "frail", *FRAIL_RUN)
    checkpoints = bench.folder / "frail" / "checkpoints"
    while len(list(checkpoints.glob("[0-9]*/manifest.json"))) < 2 and process.poll() is None:
        time.sleep(0.002)
    numbers = (bench.folder / "frail.processes").read_text().split()
    os.kill(int(numbers[2]), signal.SIGKILL)  # the first environment of the second task
    printed = bench.finish(process, None)
    told = process.returncode == 5 and _clear(printed) and "the simulator of task 'right' failed" in printed
    bench.finish(_frail(bench, "frail", "--resume"))
    step = json.loads((bench.folder / "frail" / "summary.json").read_text())["step"]
    found = "one line with task and checkpoint; it went on to the end" if told else f"BUT: {printed[-300:]}"
    fault, expected = "a simulator's process that dies", "one line, the newest checkpoint stays good; it goes on"
    return Outcome(fault, 1, expected, found, told and step == 4096)


def one_task_is_sick(bench: Bench) -> Outcome:
    """One task's rewards become NaN."""
    process = _frail(bench, "sick", *FRAIL_RUN, FRAIL_NAN="200")
    printed = bench.finish(process, None)
    last = _last_line(bench, printed)
    named = "'right'" in last and "'left'" not in last and "checkpoint" in last
    good = process.returncode == 3 and _clear(printed) and named
    return Outcome("NaN in one task's rewards", 1, "stops; names the task and the last good checkpoint", last, good)


def _last_line(bench: Bench, printed: str) -> str:
    return printed.strip().splitlines()[-1].replace(str(bench.folder), "…")


VICTIMS = ("the launcher", "its program", "both")


def sweep_killed(bench: Bench, kills: int) -> Outcome:
    """SIGKILL of a sweep's launcher, of the program that it has started, or of both, at random moments."""
    own = ("--novideo", "--noprogress", "--grads")
    sweep = (*[f for f in TINY if not f.startswith(own)], "--sweep=grads=mean,pcgrad", "--retries=1000", "--jobs=1")
    sweep = (*sweep, "--sweep=learning_rate=1e-3,1e-4", f"--total_steps={UPDATES * UPDATE}", "--pack=2", bench.cache)

    def begin(name: str) -> subprocess.Popen:
        begun = (bench.folder / "sweeps" / name / "sweep.json").exists()
        asked = ["--resume=sweeps/" + name, "--retries=1000", "--jobs=1"] if begun else [*sweep, f"--name={name}"]
        command = [sys.executable, "-m", "mtjax.launch.sweep", *asked]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=bench.folder, text=True, **pipes)

    def results(name: str) -> dict[str, object]:
        found = sorted((bench.folder / "sweeps" / name / "trials").rglob("summary.json"))
        return {p.parent.name: json.loads(p.read_text())["results"] for p in found}

    clock = time.monotonic()
    bench.finish(begin("straight"))
    seconds = time.monotonic() - clock
    done = sweeps = wrong = 0
    while done < kills:
        name = f"killed-{sweeps}"
        sweeps += 1
        process = begin(name)
        while done < kills:
            deadline = time.monotonic() + bench.random.uniform(0.0, 0.5 * seconds)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            programs = _children(process.pid)
            victims = {"the launcher": [process.pid], "its program": programs, "both": [*programs, process.pid]}
            if process.poll() is not None:
                break  # it finished before the kill: next sweep
            chosen = victims[VICTIMS[done % 3]]
            for number in chosen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            done += bool(chosen)
            if process.pid in chosen:
                process.communicate()
                process = begin(name)
        bench.finish(process)
        wrong += results(name) != results("straight") or len(results(name)) != 4
    found = f"sweeps that ended with all four trials, the same numbers: {sweeps}"
    fault = "SIGKILL of a sweep's launcher, of its program, or of both"
    return Outcome(fault, done, "resumes what is missing", f"{wrong} of {sweeps} WRONG" if wrong else found, not wrong)


def _children(parent: int) -> list[int]:
    """The child processes of a process, as listed by ps."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [pid for pid, of in pairs if of == parent]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of single runs")
    parser.add_argument("--sweep_kills", type=int, default=12, help="of sweeps")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", help="faults whose name contains this")
    parser.add_argument("--output", type=pathlib.Path, help="file for the table in Markdown, e.g. docs/faults.md")
    arguments = parser.parse_args()
    faults: dict[str, Callable[[Bench], Outcome]] = {
        "killed": lambda bench: killed(bench, arguments.kills),
        **{f"damaged: {how}": lambda bench, how=how: damaged(bench, how) for how in DAMAGE},
        "contended": contended,
        "clock": clock,
        "full disk": full_disk,
        "read-only": read_only,
        "diverged": diverged,
        "one task": one_task_is_sick,
        "simulator": simulator_dies,
        "sweep killed": lambda bench: sweep_killed(bench, arguments.sweep_kills),
    }
    if arguments.only and not any(arguments.only in name for name in faults):
        parser.error(f"--only={arguments.only}: no fault's name contains it; there are {', '.join(faults)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pathlib.Path(folder), arguments.seed)
        outcomes = []
        for name, fault in faults.items():
            if arguments.only and arguments.only not in name:
                continue
            begin = time.monotonic()
            outcomes.append(fault(bench))
            print(f"{name}: {outcomes[-1].found} ({time.monotonic() - begin:.0f} s)", flush=True)
    rows = [[o.fault, str(o.times), o.expected, o.found, ANSWERS[o.good]] for o in outcomes]
    text = (
        "# What survives what\n\nEvery fault was made to a tiny real run (PPO on a grid world, a checkpoint after "
        f"every update), started by its command. {header()}. Made by `benchmarks/faults.py`.\n\n"
        + table(["fault", "times", "expected", "found", "as expected"], rows)
        + "\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text)
    if any(o.good is False for o in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
