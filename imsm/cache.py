"""The one folder outside a run where imsm keeps things that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """IMSM_CACHE, or the user's cache folder of this platform."""
    return Path(os.environ.get("IMSM_CACHE") or user_cache_path("imsm")).expanduser()
