"""The clients of this process, pointed to a local Hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import transformers.utils.hub
from huggingface_hub import constants


@contextlib.contextmanager
def connected(endpoint: str, token: str, cache: Path) -> Iterator[None]:
    """Points this process's clients to a server, online, without Xet, signed in, with a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        # They have read the environment when they were imported: their constants are what counts now.
        for name, value in {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_CACHE": str(cache),
        }.items():
            patch.setattr(constants, name, value)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        patch.setenv("HF_TOKEN", token)
        patch.setenv("NO_PROXY", "127.0.0.1")
        try:
            yield
        finally:
            huggingface_hub.close_session()
