"""The folder that a training writes to until it is whole."""

from pathlib import Path

from finetune.unfinished import unfinished_beside


def test_what_killed_trainings_left_is_removed_and_what_is_under_way_stays(tmp_path: Path) -> None:
    (tmp_path / ".train-killed").mkdir()
    (tmp_path / ".train-killed" / "half.safetensors").write_text("x")
    (tmp_path / ".train-file").write_text("no folder")
    with unfinished_beside(tmp_path / "one") as one:
        assert not (tmp_path / ".train-killed").exists()
        (one / "half").write_text("x")
        with unfinished_beside(tmp_path / "two") as two:
            assert one != two and (one / "half").exists()
        assert not two.exists() and one.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".train-file"]
