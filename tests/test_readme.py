"""The README's commands, run as they stand, and its file tree against the files."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
SERVES = {"make chat": 'make chat CHAT="--port 0"'}
TINY = {"make rehearsal": 'make rehearsal REHEARSAL="--problems 5 --test 1"'}
RUNS_THIS_TEST = {"make test"}
# Few votes and wide limits: what is tested here is that the commands do what the README says, not the model.
QUICK_NIGHT = {
    "NIGHTSCHOOL_NIGHT__MIN_VOTES": "2",
    "NIGHTSCHOOL_NIGHT__EPOCHS": "1",
    "NIGHTSCHOOL_NIGHT__GATE_ACCURACY_MARGIN": "2",
    "NIGHTSCHOOL_NIGHT__GATE_PERPLEXITY_RISE": "9",
}


def environment() -> dict[str, str]:
    """The caller's, with this interpreter first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **QUICK_NIGHT, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(command: str, folder: Path) -> str:
    """Run a command where a person would and return what it printed."""
    where = ROOT if command.startswith("make") else folder
    result = subprocess.run(command, shell=True, cwd=where, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result.stdout


def serve(command: str) -> str:
    """Run a server until it says that it is ready, then stop it."""
    with subprocess.Popen(
        command, shell=True, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "ready at" in line:
                break
        os.killpg(process.pid, signal.SIGTERM)
        return said


@pytest.mark.model
@pytest.mark.timeout(900)
def test_every_command_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    said: dict[str, str] = {}
    for command in COMMANDS:
        if command in SERVES:
            said[command] = serve(SERVES[command])
        elif command not in RUNS_THIS_TEST:
            said[command] = run(TINY.get(command, command), tmp_path)
    assert "Nightschool is ready at http://127.0.0.1:" in said["make chat"]
    assert "simulated" in said["make rehearsal"]
    assert "replies" in said["python -m feedback_store stats"]
    assert (tmp_path / "nightschool-backup.db").stat().st_size > 0
    assert "preference accuracy" in said["python -m finetune evaluate live"]
    assert "Live: base" in said["python -m finetune rollback"]


def test_the_file_tree_names_what_is_there() -> None:
    tree = README.split("## What is where")[1]
    named = re.findall(r"^(\S+)\s{2,}(.+)$", tree, re.MULTILINE)
    assert len(named) > 5
    for name, words in named:
        assert (ROOT / name).exists(), name
        assert len(words.split()) <= 8, name
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
