"""The page in a browser of 400 pixels; skipped without Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imsm.reporting.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FRAME = """<iframe id="page" width="400" height="800" src="{page}"></iframe><p id="found"></p><script>
document.getElementById("page").onload = event => {{
  const root = event.target.contentDocument.documentElement;
  const tables = [...root.querySelectorAll(".wide")].filter(each => each.scrollWidth > each.clientWidth).length;
  const text = `width ${{root.scrollWidth}} of ${{root.clientWidth}}, ${{tables}} scroll`;
  document.getElementById("found").textContent = text;
}};
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_body_does_not_overflow_and_wide_tables_scroll(runs: dict[str, Any], tmp_path: Path) -> None:
    folder, record, _ = runs["imsm"]
    write_report(folder, record, runs_root=runs["root"])
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=(folder / "report.html").as_uri()))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={tmp_path / 'chromium'}", "--virtual-time-budget=10000", "--dump-dom"]
    command = [str(CHROMIUM), *options, frame.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = dom.split('<p id="found">')[1].split("</p>")[0]
    _, width, _, visible, tables, _ = found.replace(",", "").split()
    assert int(width) <= int(visible) <= 400 and int(tables) > 0
