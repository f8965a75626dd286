"""The report in a real browser: needs playwright, axe-playwright-python and a Chromium; skipped where they are not."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from report_runs import study

from ghostcli.report.live import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from ghostcli.records import record
    from ghostcli.report.page import Asked, render

    folder = tmp_path_factory.mktemp("pages")
    records = tuple(record.scan(study(folder / "runs")))
    taught = next(run.id for run in records if run.status == "done" and run.setup.teachers)
    found = {"study.html": Asked(records), "run.html": Asked(records, frozenset({taught}))}
    for name, asked in found.items():
        (folder / name).write_text(render(asked))
    return [folder / name for name in found]


def test_wide_and_narrow_light_and_dark(files: list[Path]) -> None:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for file in files:
            for width, scheme in ((1280, "light"), (390, "dark")):
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
                )
                page = context.new_page()
                said, asked = [], []
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.goto(file.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
                drawn = page.evaluate(
                    "[...document.querySelectorAll('svg[role=img]')].map((s) => s.getBoundingClientRect().height)"
                )
                assert len(drawn) > 5 and min(drawn) > 10
                page.locator("svg.lines").first.scroll_into_view_if_needed()
                page.wait_for_timeout(200)  # scrolling hides what the pointer showed
                page.hover("svg.lines")
                assert page.inner_text("#tip").startswith("epoch ")
                problems = axe.Axe().run(page).response["violations"]
                assert [p["id"] for p in problems if p["impact"] in ("serious", "critical")] == []
                assert said == [] and [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
                context.close()
        # With its policy in force: the page's own script runs, and a click on a number opens the runs behind it.
        page = browser.new_page()
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.goto(files[0].as_uri())
        page.click("td a >> nth=0")
        opened = page.evaluate("document.querySelector('details[open]').id")
        assert opened.startswith("group-") and page.url.endswith(f"#{opened}") and errors == []
        browser.close()


def test_a_live_page_shows_what_changed_before_it_first_asked_and_that_its_command_stopped() -> None:
    """The record that changed last did so between the page and the first question: it was never shown."""
    from ghostcli.report.page import Asked, render

    made = [render(Asked(()), live=True).replace("<main>", f"<main><b id='n'>{i}</b>") for i in range(2)]
    turns = [0]

    def stamp() -> int:
        turns[0] += 1
        return min(turns[0], 2)

    server = Server(0, stamp, lambda: made[min(turns[0], 2) - 1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.address)
        page.wait_for_selector("#n:text-is('1')")
        note = "getComputedStyle(document.querySelector('header'), '::after').content"
        assert page.evaluate(note) == "none"
        server.shutdown()
        server.server_close()
        page.wait_for_selector("body.gone")
        assert "no longer changes" in page.evaluate(note)
        browser.close()
