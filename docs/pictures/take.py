"""Takes the pictures of `docs/report.md` from a report, in a headless Chromium:

    python -m docs.pictures.take reports/compare/report.html

Without a report, from one with the invented figures that the tests use.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from regardant.compare.findings import Findings
from regardant.compare.report import write
from tests.compare.browser import chromium, prefer, resize
from tests.compare.sample_findings import write_sample

HERE = Path(__file__).resolve().parent
DESKTOP, PHONE = 1280, 390
PICTURES = {
    # name → part, width, theme, the tallest that it may be
    "overview": ("overview", DESKTOP, "light", 2600),
    "overview-phone": ("overview", PHONE, "dark", 2200),
    "cost": ("cost", DESKTOP, "dark", 2000),
    "quality": ("quality", DESKTOP, "light", 2000),
    "attention": ("attention", DESKTOP, "light", 1500),
    "quality-phone": ("quality", PHONE, "light", 2200),
}
LARGEST = 400_000
SETTLED = 0.6
"""Seconds until figures are drawn and fonts are there."""


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(arguments[0]).resolve() if arguments else invented(Path(folder))
        with chromium(Path(folder) / "profile") as browser:
            for name, (part, width, theme, tallest) in PICTURES.items():
                path = HERE / f"report-{name}.png"
                resize(browser, width, 844)
                prefer(browser, theme)
                browser.get("about:blank")
                browser.get(f"{report.as_uri()}#{part}")
                time.sleep(SETTLED)
                whole = browser.execute_script("return document.documentElement.scrollHeight")
                resize(browser, width, min(whole, tallest))
                time.sleep(SETTLED)
                browser.save_screenshot(str(path))
                size = path.stat().st_size
                assert size < LARGEST, f"{path} has {size:,} bytes"
                print(f"{path} {size:,} bytes")


def invented(folder: Path) -> Path:
    return write(Findings.read(write_sample(folder / "sample")), folder / "report.html")


if __name__ == "__main__":
    main(sys.argv[1:])
