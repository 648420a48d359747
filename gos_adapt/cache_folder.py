"""Where things learned about this machine are kept between runs: measured peaks, tuned kernels. All can be deleted."""

from __future__ import annotations

import os
from pathlib import Path

from gos_adapt.errors import ConfigError

OVERRIDE = "GOS_ADAPT_CACHE"


def cache_folder() -> Path:
    """Return the cache folder, created if need be.

    It is ``$GOS_ADAPT_CACHE``, or else ``gos-adapt`` in ``$XDG_CACHE_HOME``, or else in ``~/.cache`` (XDG Base
    Directory Specification 0.8; a relative ``$XDG_CACHE_HOME`` is ignored, as it says).

    Raises:
        ConfigError: it cannot be created or written.
    """
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise ConfigError(f"no cache folder: {error}; set {OVERRIDE} to a writable folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"the cache folder {folder} is not writable; set {OVERRIDE} to a writable folder")
    return folder


def _folder() -> Path:
    if own := os.environ.get(OVERRIDE):
        return Path(own)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "gos-adapt"
