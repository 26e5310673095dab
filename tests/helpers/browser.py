"""A page in a real browser: what it measures there, and what its scripts make of it."""

import html
import shutil
import subprocess
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """The browser's program, None where there is none."""
    return next((name for name in BROWSERS if shutil.which(name)), None)


def in_frames(page: str, widths: tuple[int, ...], script: str, folder: Path) -> dict[int, str]:
    """Show `page` in a frame of each width and evaluate `script`, a JavaScript expression over its
    `document`, there; width -> what it gave."""
    frames = "".join(
        f'<iframe data-width="{width}" style="width:{width}px;height:900px" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for width in widths
    )
    told = (
        "for (const frame of document.querySelectorAll('iframe')) frame.onload = () => {"
        "const document = frame.contentDocument;"
        f"frame.removeAttribute('srcdoc'); frame.dataset.told = {script}; }}"
    )
    (folder / "frames.html").write_text(f"<!doctype html><body>{frames}<script>{told}</script>")
    command = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'browser'}", f"file://{folder / 'frames.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    results = {}
    for frame in dom.split("<iframe ")[1:]:
        attributes = frame.partition(">")[0]
        width = int(attributes.partition('data-width="')[2].partition('"')[0])
        results[width] = html.unescape(attributes.partition('data-told="')[2].partition('"')[0])
    return results
