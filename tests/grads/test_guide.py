"""The guide's blocks, run in order in one namespace: what a reader copies must work."""

import pathlib
import re

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "gradient_surgery.md"


def test_gradient_surgery(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)
    assert (tmp_path / "gradient_surgery_paths.svg").stat().st_size > 1000
