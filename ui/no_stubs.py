"""Keeps the framework from rewriting its own editor stubs: half of its import, and a race of several processes.

At each import Gradio parses every component's source and writes a .pyi file beside it, for editors of its developers.
Knows nothing of the page.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

MODULE, FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


class _WithoutStubs(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        assert hasattr(module, FUNCTION), "another Gradio: see whether it still writes stubs"
        setattr(module, FUNCTION, lambda *_: None)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and spec.origin:
            spec.loader = _WithoutStubs(fullname, spec.origin)
        return spec


def keep_framework_from_writing_stubs() -> None:
    """Replace the function that writes them by nothing, wherever Gradio is imported after this."""
    sys.meta_path.insert(0, _Finder())
