"""`python -m assistant bench` on a tiny model: every figure there is, for the base and with an adapter."""

import json
from pathlib import Path

import pytest

from assistant import bench
from assistant.__main__ import main
from tests.tiny import save_tiny


@pytest.mark.long
def test_every_figure_is_measured_through_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(save_tiny(tmp_path / "model")))
    for name, words in (("LONG", 60), ("SHORT", 10), ("TALK", 180), ("REPLY", 16)):
        monkeypatch.setattr(bench, name, words)
    assert main(["bench", "--runs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = {*bench.FIGURES, *bench.AFTERWARDS}
    assert found.keys() == {"numeric_form", "ready_s", "kl_nat", *measured, *(f"{name}_adapter" for name in measured)}
    assert found["numeric_form"] == "int4" and all(value > 0 for name, value in found.items() if name != "numeric_form")
    assert found["ready_s"] > 1
    lines = bench.table(found).splitlines()
    assert len(lines) == 2 + len(bench.TITLES) and lines[-1].startswith("| mean KL of a token")


def test_a_server_is_not_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "fake")
    assert main(["bench"]) == 1
    assert "set NIGHTSCHOOL_ENGINE to local" in capsys.readouterr().err
