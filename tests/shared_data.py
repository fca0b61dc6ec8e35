"""Real data that some tests read: beside the checkout, or where NIGHTSCHOOL_TEST_DATA says; never part of it."""

import json
import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("NIGHTSCHOOL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the shared data are not here; NIGHTSCHOOL_TEST_DATA may name their folder"
)


def hostile_strings() -> list[str]:
    """515 strings that break things."""
    strings: list[str] = json.loads((DATA / "blns" / "blns.json").read_text(encoding="utf-8"))
    assert len(strings) >= 515
    return strings


def hostile_bodies() -> list[bytes]:
    """318 bodies of JSON and of what is nearly JSON."""
    bodies = [path.read_bytes() for path in sorted((DATA / "jsontestsuite").rglob("*.json"))]
    assert len(bodies) >= 318
    return bodies
