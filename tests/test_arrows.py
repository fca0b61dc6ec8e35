"""The import arrows: which room may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"assistant", "feedback_store", "finetune", "ui"}
MAY_IMPORT = {
    "assistant": set(),
    "feedback_store": set(),
    "finetune": {"assistant", "feedback_store"},
    "ui": {"assistant", "feedback_store"},
}


def imported_rooms(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names.add((node.module or "").split(".")[0])
    return names & ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_knows_only_the_rooms_below_it(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        assert imported_rooms(file) <= MAY_IMPORT[room] | {room}, file


@pytest.mark.timed
@pytest.mark.parametrize("module", ["feedback_store", "ui", "assistant.settings", "assistant.engine", "assistant.fake"])
def test_light_modules_come_without_torch_and_within_a_second(module: str) -> None:
    code = f"import time; t = time.perf_counter(); import sys, {module}; assert 'torch' not in sys.modules; "
    code += "print(time.perf_counter() - t)"
    seconds = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert seconds < 1.0
