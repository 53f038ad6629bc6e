"""
Makes transformers know our storage format as soon as it is itself imported.

Registering needs transformers' models, and with them torch: seconds that `import hf_fip` must not cost. So the format
is registered at once where they are imported already, and otherwise right after they are.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


# Whatever loads a model imports this first, and it imports the quantizers.
_MODELS = "transformers.modeling_utils"
_FORMAT = "hf_fip.storage.quantizer"


class _AfterModels(MetaPathFinder):
    """Finds nothing itself: lets the others find transformers' models once, and registers after they are imported."""

    def __init__(self) -> None:
        self.is_asking = False

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname != _MODELS or self.is_asking:
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
            import_module(_FORMAT)

        spec.loader.exec_module = run_and_register
        return spec


def register_storage_format() -> None:
    """Register the storage format with transformers: now if its models are imported, else when they are."""
    if _MODELS in sys.modules:
        import_module(_FORMAT)
    elif not any(isinstance(finder, _AfterModels) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterModels())
