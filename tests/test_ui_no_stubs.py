"""The framework is imported without writing its editor stubs, and is otherwise as it was."""

import subprocess
import sys

SCRIPT = """
import ui
import gradio.blocks_events, gradio.component_meta
for module in (gradio.component_meta, gradio.blocks_events):
    assert module.create_or_modify_pyi.__module__ == "ui.no_stubs", module
class Box(gradio.Textbox):  # a class is made without one being written, and has its events
    pass
with gradio.Blocks():
    Box().submit(print)
"""


def test_stubs_are_not_written() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
