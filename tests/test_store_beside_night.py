"""People go on voting while real nights read, train, examine and promote: nothing is lost, nobody is locked out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.store import offer_votes
from tests.test_store_turns import check
from tests.tiny import save_tiny

pytestmark = pytest.mark.slow
NIGHT = [sys.executable, "-m", "finetune", "nightly", "--json", "--home"]


def run_nights(path: Path, done: Any, ready: Any, answers: Any) -> None:
    """Run one night after the other while people vote; answers how many came to a decision, the last one included."""
    decided = 0
    ready.wait(60)
    ready.wait(60)
    while not done.is_set():
        night = subprocess.run([*NIGHT, str(path.parent)], capture_output=True, text=True, timeout=200)
        assert night.returncode == 0, night.stderr
        decided += json.loads(night.stdout)["outcome"] in ("promoted", "refused")
    answers.put(decided)


def test_what_eight_writers_in_two_processes_offer_is_stored_beside_real_nights(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(save_tiny(tmp_path / "model")))
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__EPOCHS", "1")
    path = home / "nightschool.db"
    offered = offer_votes(path, seconds=30, pairs=300, reader=run_nights)
    with capsys.disabled():
        sys.stdout.write(f"\nbeside nights: {offered}\n")
    check(path, offered, votes=3000)
    assert offered.max_ms < 1000, offered
