"""Every test runs without the Hub and on one thread, with caches of its own."""

import os
import tempfile


# Before any library reads them: the thread count, the Hub's endpoint switch and the caches are read at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), f"hf-fip-tests-{getattr(os, 'getuid', int)()}"))
