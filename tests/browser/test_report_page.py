"""The report as a browser shows it: Chromium without a window, from a file, without network."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import elemdist
from tests.test_report import NAME, made_run

# Reads another page out of a frame, which Chromium lets pages from files do where it is told so.
FRAME = """<!DOCTYPE html><iframe src="report.html" width="{width}" height="800" frameborder="0">
</iframe><pre></pre><script>
onload = () => {{
  const inner = document.querySelector("iframe"), page = inner.contentDocument;
  document.querySelector("pre").textContent = JSON.stringify({{
    needed: page.documentElement.scrollWidth, given: inner.clientWidth,
    scripts: page.scripts.length, alerted: inner.contentWindow.alerted === true,
    loaded: inner.contentWindow.performance.getEntriesByType("resource").length,
    pictures: page.querySelectorAll("svg[role=img]").length,
    heading: page.querySelector("h1").textContent, title: page.title,
    tables: [...page.querySelectorAll("caption")].map(one => one.textContent),
    unnamed: page.querySelectorAll("table:not(:has(caption)), th:not([scope])").length,
    ids: page.querySelectorAll("[id]").length,
    distinct: new Set([...page.querySelectorAll("[id]")].map(one => one.id)).size,
  }});
}};
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        assert "ELEMDIST_NEED_BROWSER" not in os.environ, "chromium is not installed"
        pytest.skip("chromium is not installed; make test-browser")
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [made_run(folder / NAME), made_run(folder / "other run")]
    done = elemdist("report", *runs, "--out", folder / "report.html")
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


def browse(chromium: str, *words: str) -> subprocess.CompletedProcess[str]:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=5000"]
    return subprocess.run([chromium, *options, *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("width", [360, 1200])
def test_what_a_browser_makes_of_it(chromium, report, width):
    frame = report.with_name(f"frame-{width}.html")
    frame.write_text(FRAME.format(width=width))
    done = browse(chromium, "--dump-dom", frame.as_uri())
    match = re.search("<pre>({.*})</pre>", done.stdout)
    assert match, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(html.unescape(match.group(1)))
    assert found["needed"] <= found["given"] == width, "it does not scroll sideways"
    assert (found["scripts"], found["alerted"], found["loaded"]) == (0, False, 0)
    assert NAME in found["heading"] == found["title"]
    assert found["pictures"] >= 3
    assert {"The last evaluation of each", "Environment", "Evaluations"} <= set(found["tables"])
    assert found["unnamed"] == 0
    assert found["ids"] == found["distinct"], "no picture takes the parts of another"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []


def test_it_can_be_printed(chromium, report):
    out = report.with_suffix(".pdf")
    browse(chromium, f"--print-to-pdf={out}", "--no-pdf-header-footer", report.as_uri())
    content = out.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 2
