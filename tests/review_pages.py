"""Pages, browsers and decision files for the tests of the review page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from fastac.data import labels_digest
from fastac.report import write_review_page

CLASSES = ("ant", "bee", "cat", "dog")

NASTY = (
    "<img src=x onerror=\"window.hacked='img'\">",
    "</script><script>window.hacked='script'</script><!--",
    "</script x><!-- <script y>window.hacked='spaced'</script z>",
    "\"'><svg onload=window.hacked='svg'>",
    "=HYPERLINK(\"http://x\",'y')",
    "+1",
    "-1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    "'=already guarded",
    " =space before",
    "naïve 🐝 \u202eright to left\u202c",
    "line\u2028separator\u2029and\nbreaks\r\nand a \ufffd",
    'comma, "quote" and {{script}} {{data}}',
    "x" * 10_000,
    "",
)
"""Class names, file names and texts that would do harm where they are taken for anything but text."""


def ranking(given, suggested, flagged, **columns) -> pd.DataFrame:
    """A frame such as find_label_issues makes, in the order of the ids."""
    n = len(given)
    return pd.DataFrame(
        {
            "index": np.arange(n),
            "given_label": given,
            "suggested_label": pd.array(suggested, dtype="Int64"),
            "is_label_issue": np.arange(n) < flagged,
            "label_quality": np.linspace(0, 1, n),
            **columns,
        }
    )


def small_page(path: Path, n=12, *, names=CLASSES, **options) -> Path:
    """A page of n samples: given i mod K, suggested the class after it, the first two thirds flagged."""
    given = np.arange(n) % len(names)
    issues = ranking(given, (given + 1) % len(names), max(1, 2 * n // 3), **options.pop("columns", {}))
    write_review_page(path, issues, class_names=names, labels=given, **options)
    return path


def decisions_json(path: Path, labels, names=CLASSES, decisions=(), **head) -> Path:
    """An exported file about `labels`; decisions: (index, decision, label)."""
    labels = np.asarray(labels, dtype=np.int64)
    rows = [
        {
            "index": i,
            "given_label": int(labels[i]),
            "decision": kind,
            "label": label,
            "time": "2026-01-31T12:00:00Z",
        }
        for i, kind, label in decisions
    ]
    content = {
        "format": "fastac decisions",
        "version": 1,
        "fingerprint": labels_digest(labels),
        "num_samples": len(labels),
        "class_names": list(names),
        "run": "small",
        "exported": "2026-01-31T12:30:00Z",
        "rows": len(rows),
        "decisions": rows,
    }
    path.write_text(json.dumps({**content, **head}, ensure_ascii=False), encoding="utf-8")
    return path


def missing_browser() -> str | None:
    """Why there is no browser to drive, None where there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "needs selenium"
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)}" if missing else None


def start_browser(profile: Path, downloads: Path, size=(1360, 900)):
    """A headless Chromium that talks to nobody and downloads without asking."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        f"--window-size={size[0]},{size[1]}",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    allowed = {"behavior": "allow", "downloadPath": str(downloads)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    return browser
