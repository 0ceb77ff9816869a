"""Meta-World's own simulator and scripted policies, as a process that answers JSON lines.

The ``metaworld`` package pins mujoco==3.3.0, so it lives in a virtual environment of its own; this file runs
there and imports nothing of mtjax. The benchmarks start it through :class:`Reference`; one line of
``{"command": name, **arguments}`` in, one line of answer out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


class Reference:
    """Client of the process: ``Reference(python)("episodes", task="push", count=5, seed=0)``.

    Args:
        python: the interpreter of a virtual environment with ``pip install metaworld packaging``; gymnasium 1.4.0
            imports packaging without requiring it.
    """

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, "-W", "ignore", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def send(self, command: str, **arguments) -> None:
        """Send a command; `receive` fetches the answer."""
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()

    def receive(self):
        """Wait for the answer to the oldest unanswered command."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("Meta-World's process has ended; its last words stand above")
        return json.loads(line)

    def __call__(self, command: str, **arguments):
        self.send(command, **arguments)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(timeout=60)


class Worker:
    """The commands, one method each."""

    def __init__(self):
        self.policies = []
        self.vectors = {}

    def versions(self):
        """Versions of the packages that matter here."""
        from importlib import metadata

        return {name: metadata.version(name) for name in ("metaworld", "mujoco", "gymnasium")}

    def start(self, task: str, count: int):
        """Make ``count`` scripted policies of a task, for `act`."""
        from metaworld.policies import ENV_POLICY_MAP

        self.policies = [ENV_POLICY_MAP[f"{task}-v3"]() for _ in range(count)]

    def act(self, observations):
        """The scripted policies' actions [count, 4] for observations [count, 39]."""
        import numpy as np

        pairs = zip(self.policies, np.asarray(observations), strict=True)
        return [policy.get_action(observation).tolist() for policy, observation in pairs]

    def episodes(self, task: str, count: int, seed: int):
        """Run whole episodes of the scripted policy. Returns {"return": [count], "success": [count]}."""
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        from metaworld.policies import ENV_POLICY_MAP

        env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-v3-goal-observable"](seed=seed)
        env._freeze_rand_vec = False  # draw goal and objects anew at every reset
        returns, successes = [], []
        for _ in range(count):
            policy, truncated, total, success = ENV_POLICY_MAP[f"{task}-v3"](), False, 0.0, 0.0
            observation, _ = env.reset()
            while not truncated:
                observation, reward, _, truncated, info = env.step(policy.get_action(observation))
                total, success = total + float(reward), max(success, float(info["success"]))
            returns.append(total)
            successes.append(success)
        env.close()
        return {"return": returns, "success": successes}

    def vector(self, benchmark: str, strategy: str, seed: int):
        """Make Meta-World's own "sync" or "async" vector environment of a benchmark, for `steps`."""
        import metaworld

        env = metaworld.make_mt_envs(benchmark, seed=seed, vector_strategy=strategy)
        env.reset(seed=seed)
        self.vectors[strategy] = env
        return env.num_envs

    def steps(self, strategy: str, seconds: float):
        """Step that vector environment with random actions. Returns environment steps per second."""
        import numpy as np

        env = self.vectors[strategy]
        rng, count, start = np.random.default_rng(0), 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            count += env.num_envs
        return count / (time.perf_counter() - start)


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what libraries print must not mix with the answers
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("command"))(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for env in worker.vectors.values():
        env.close()


if __name__ == "__main__":
    main()
