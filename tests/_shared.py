"""The optional folder with recorded cases, official key lists and real data.

It is found through the environment variable TORCHSTONE_SHARED, else as ``shared`` beside the repository. Tests that
need it are marked with :func:`requires_shared` and say what is missing when they are skipped.
"""

import os
from pathlib import Path

import pytest


def _find() -> Path | None:
    given = os.environ.get("TORCHSTONE_SHARED")
    if given:
        if not Path(given).is_dir():
            raise pytest.UsageError(f"TORCHSTONE_SHARED is {given}, which is not a folder")
        return Path(given)
    beside = Path(__file__).parents[2] / "shared"
    return beside if beside.is_dir() else None


SHARED: Path | None = _find()


def shared(sub: str) -> Path | None:
    """A file or folder of the shared folder, None when it is not there."""
    return SHARED / sub if SHARED is not None and (SHARED / sub).exists() else None


def requires_shared(sub: str = "") -> pytest.MarkDecorator:
    """Skip a test when the shared folder, or a part of it, is not there."""
    what = f"{sub} of the shared folder" if sub else "the shared folder"
    reason = f"needs {what} (set TORCHSTONE_SHARED, or place it beside the repository as 'shared')"
    return pytest.mark.skipif(shared(sub) is None, reason=reason)
