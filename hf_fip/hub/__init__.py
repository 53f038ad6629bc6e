"""Model families on the Hugging Face Hub: published, read back, pulled to a folder."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .client import Hub
    from .publish import push
    from .pulling import pull
    from .remote import HubGraph
    from .retry import AccessError, HubError, RetryPolicy

# Names are imported when they are first used: the command line's parser needs the options alone.
_HOMES = {
    "AccessError": "retry",
    "Hub": "client",
    "HubError": "retry",
    "HubGraph": "remote",
    "RetryPolicy": "retry",
    "pull": "pulling",
    "push": "publish",
}

__all__ = ["AccessError", "Hub", "HubError", "HubGraph", "RetryPolicy", "pull", "push"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
