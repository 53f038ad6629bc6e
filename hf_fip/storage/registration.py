"""
Makes transformers know our storage format and our own networks as soon as it is itself imported.

Registering needs transformers' models, and with them torch: seconds that `import hf_fip` must not cost. So what it
needs is registered at once where that is imported already, and otherwise right after it is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


# What is imported, right after which module of transformers: whatever loads a model imports the first, which imports
# the quantizers; the Auto classes, which have to know ensembles and, imported by these, networks, are in the second.
_AFTER = {
    "transformers.modeling_utils": "hf_fip.storage.quantizer",
    "transformers.models.auto.modeling_auto": "hf_fip.ensembles.modeling",
}


class _AfterTransformers(MetaPathFinder):
    """Finds nothing itself: lets the others find a module of transformers once, and imports ours after it."""

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours
        self.is_asking = False

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname != self.theirs or self.is_asking:
            return None
        self.is_asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.is_asking = False
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            # Only now: a module may be looked for without being imported.
            sys.meta_path.remove(self)
            import_module(self.ours)

        spec.loader.exec_module = run_and_register
        return spec


def register_with_transformers() -> None:
    """Register the storage format and the networks with transformers: now if it is imported, else when it is."""
    waiting = {finder.theirs for finder in sys.meta_path if isinstance(finder, _AfterTransformers)}
    for theirs, ours in _AFTER.items():
        if theirs in sys.modules:
            import_module(ours)
        elif theirs not in waiting:
            sys.meta_path.insert(0, _AfterTransformers(theirs, ours))
