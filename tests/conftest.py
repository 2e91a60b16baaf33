"""The order of the tests' files: the long ones first, so that processes end together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first (`--dist loadfile` hands files out in this order)."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def word_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and data of a run of seconds; not to be changed."""
    from tests.helpers.word_run import write_word_files  # torch: not for every collection

    return write_word_files(tmp_path_factory.mktemp("words"))
