"""Fixtures of the tests of runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.figures import no_figures


@pytest.fixture(scope="module", autouse=True)
def reports_have_no_figures() -> Iterator[None]:
    """Drawing them takes a second per run; `tests/reporting` draws them."""
    with no_figures():
        yield
