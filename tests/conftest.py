"""The order of the tests' files: the long ones first, so that processes end together."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from pathlib import Path

import pytest

from imsm.utils import stop_signals


def pytest_configure() -> None:
    """Restore the signals that a background shell or nohup ignores: tests send them to their child processes."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first (`--dist loadfile` hands files out in this order)."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Exclude the imported libraries' objects from garbage collection: each training collects garbage once."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def old_objects_are_not_collected() -> None:
    """The same for libraries that tests imported, and for what they cached."""
    if len(gc.get_objects()) > 100_000:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def no_signal_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stop signal determines the exit code and the message of a command in this process."""
    monkeypatch.setattr(stop_signals, "_received", [])
    monkeypatch.setattr(stop_signals, "_kept", [])


@pytest.fixture(scope="session")
def word_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and data of a run of seconds; not to be changed."""
    from tests.helpers.word_run import write_word_files  # torch: not for every collection

    return write_word_files(tmp_path_factory.mktemp("words"))
