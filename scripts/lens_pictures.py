"""Draw the documentation's pictures of the lens, from a running server and with Debian's Chromium.

    imsm serve RUN --port 8000
    python -m scripts.lens_pictures http://127.0.0.1:8000/ --target gsm8k/test/0 --test freebaseqa/test/1

`--target` and `--test` are items of the first served run. Writes docs/assets/lens_{1280,400}_{light,dark}.png.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
HEIGHTS = {(1280, "light"): 960, (1280, "dark"): 770, (400, "light"): 860, (400, "dark"): 860}
"""Height in pixels, by width and color scheme."""
TOKEN = ".column[data-kind=interwoven] .token"


def ask_item(page: Any, item: str) -> None:
    """Send an item from the third tab to the first, and wait for the answers."""
    page.locator("#tab-items").click()
    page.locator("#items-task").select_option(item.split("/")[0])
    page.locator("#items-table tr", has=page.get_by_text(item, exact=True)).locator("button").click()
    columns = page.locator(".column")
    expect(page.locator(".column .state", has_text="done")).to_have_count(columns.count())


def draw(page: Any, width: int, scheme: str, options: argparse.Namespace) -> None:
    """Bring the page into the state of one picture, and write it."""
    if (width, scheme) == (400, "dark"):
        page.locator("#tab-runs").click()
    else:
        ask_item(page, options.target if scheme == "light" and width == 1280 else options.test)
        page.evaluate("document.activeElement.blur()")
    if (width, scheme) == (1280, "light"):
        # a token that the tuned model alone predicts
        page.locator(f"{TOKEN}[data-winner=tuned]").nth(options.token).hover()
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    with_palette(picture).save(ASSETS / f"lens_{width}_{scheme}.png", optimize=True)


def with_palette(picture: Image.Image) -> Image.Image:
    """Return the picture with 256 colors, which makes the file a third as large."""
    counts = sorted(picture.getcolors(picture.width * picture.height), reverse=True)
    # the most frequent colors, so that the paper keeps its tone, and those that cover the others
    others = picture.quantize(96, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette()[: 3 * 96]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for _, color in counts[:160] for value in color), *others])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def main() -> None:
    """Write the four pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the page")
    parser.add_argument("--target", required=True, metavar="ITEM", help="an item of the run's target")
    parser.add_argument("--test", required=True, metavar="ITEM", help="an item of a forgetting test")
    parser.add_argument("--token", type=int, default=4, help="which of the tuned model's own tokens is pointed at (4)")
    options = parser.parse_args()
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for (width, scheme), height in HEIGHTS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(options.url)
            expect(page.locator(".card").first).to_be_attached()
            draw(page, width, scheme, options)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
