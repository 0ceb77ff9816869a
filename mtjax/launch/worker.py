"""``python -m mtjax.launch.worker SWEEP PROGRAM ATTEMPT``: one program of a sweep. Launchers start it, not people."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from mtjax.launch import command, environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run one program. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="mtjax.launch.worker", description=__doc__)
    parser.add_argument("sweep", help="folder of the sweep")
    parser.add_argument("program", help="name of the program")
    parser.add_argument("attempt", type=int)
    parser.add_argument("--cores", default="", help="processor cores to run on, e.g. 0,1,2")
    parser.add_argument("--with_launcher", action="store_true", help="save and stop when standard input closes")
    asked = parser.parse_args(argv)
    if asked.cores and hasattr(os, "sched_setaffinity"):  # before jax starts and counts the cores
        os.sched_setaffinity(0, {int(core) for core in asked.cores.split(",")})
    environment.prepare()

    from mtjax.sweeps import ledger, plan, worker

    process = plan.load(asked.sweep).process
    environment.choose_platform(process["platform"])
    environment.keep_compiled_programs(process["compilation_cache"])
    environment.set_precision("auto")
    if asked.with_launcher:
        threading.Thread(target=_follow_launcher, daemon=True).start()
    outcome = worker.run(asked.sweep, asked.program, asked.attempt)
    return {ledger.STOPPED: command.PREEMPTED, ledger.FAILED: command.BAD_INPUT}.get(outcome.state, command.OK)


def _follow_launcher() -> None:
    """Wait until standard input closes, as it does however the launcher ends; then make this process save and stop."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
