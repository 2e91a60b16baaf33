"""Progress bars."""

from __future__ import annotations

import pytest

from imsm.utils.progress import print_above_bar, progress_bar


def test_a_bar_wraps_an_iterable_and_resumes_its_count() -> None:
    bar = progress_bar(range(3), total=5, done=2, label="training", unit="step", shown=False)
    assert list(bar) == [0, 1, 2]
    assert progress_bar(total=5, done=2, label="training", unit="step").n == 2


def test_lines_are_printed_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_above_bar("text")
    assert capsys.readouterr().err == "imsm: text\n"
