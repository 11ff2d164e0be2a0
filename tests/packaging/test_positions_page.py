"""The recipes of docs/positions.md run as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "positions.md"


def test_the_recipes_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        assert names.pop("logits").isfinite().all()
