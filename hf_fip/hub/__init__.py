"""Model families on the Hugging Face Hub: published, read back, pulled to a folder."""

from typing import TYPE_CHECKING

from ..lazy import attributes_of


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


__getattr__ = attributes_of(__name__, _HOMES)
