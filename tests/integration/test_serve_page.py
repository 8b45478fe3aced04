"""The page in a real browser: Debian's chromium, driven by playwright (`make test-browser`)."""

from __future__ import annotations

import re
import shutil
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chatterbox.serve.config import ServerConfig
from chatterbox.voice.library import VoiceLibrary
from tests.integration.test_serve import TEXT, Running, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
PATIENCE = 60_000  # ms
SWITCHES = [
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("voices")
    one = Running(served(VoiceLibrary(folder)), ServerConfig(voices=str(folder), jobs=str(folder / "jobs")))
    yield one
    one.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=[*SWITCHES, "--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser: Browser, running: Running) -> Iterator[Page]:
    context = browser.new_context(permissions=["microphone"])
    one = context.new_page()
    one.set_default_timeout(PATIENCE)
    faults: list[str] = []
    one.on("pageerror", lambda error: faults.append(str(error)))
    one.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    one.on("request", lambda request: faults.append(request.url) if str(running.port) not in request.url else None)
    one.goto(f"http://127.0.0.1:{running.port}/")
    one.wait_for_selector("#voice option", state="attached")
    yield one
    context.close()
    elsewhere = [
        fault
        for fault in faults
        if not re.search(r"blob:|data:|404|409|400|ERR_CONNECTION_RESET|ERR_INCOMPLETE", fault)
    ]
    assert not elsewhere


def status(page: Page, pattern: str) -> str:
    return until(page, "document.getElementById('status').textContent", lambda text: re.search(pattern, text))


def until(page: Page, expression: str, holds: Callable[[Any], Any]) -> Any:
    """The expression's value once it ``holds``; playwright's own waiting evaluates strings, which the page forbids."""
    for _ in range(PATIENCE // 50):
        if holds(value := page.evaluate(expression)):
            return value
        page.wait_for_timeout(50)
    raise AssertionError(f"{expression} is {value!r}")


def test_it_speaks_streams_and_hands_out_a_file(page: Page, tmp_path: Path) -> None:
    page.fill("#text", " ".join([TEXT] * 3))
    page.fill("#seed", "1")
    page.click("#speak")
    status(page, "Speaking: [0-9.]+ s so far")
    assert page.is_enabled("#stop")
    said = status(page, "^[0-9.]+ s in [0-9.]+ s, first sound after")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "speech.wav")
    with wave.open(str(tmp_path / "speech.wav")) as file:
        assert file.getframerate() == 24_000
        assert (
            file.getnframes() / 24_000 == pytest.approx(float(said.split()[0]), abs=0.1) and file.getnframes() > 48_000
        )
    until(page, "document.getElementById('stop').disabled", bool)  # all of it was heard
    drawn = "[...document.getElementById('wave').getContext('2d').getImageData(0, 0, 300, 96).data].some((x) => x)"
    assert page.evaluate(drawn)
    page.click("text=This server")
    assert "of prefixes from the cache" in page.inner_text("#server")


def test_keys_begin_and_end_it(page: Page, running: Running) -> None:
    page.fill("#text", " ".join([TEXT] * 20))
    page.press("#text", "Control+Enter")
    status(page, "Speaking: [0-9.]+ s so far")
    page.press("#text", "Escape")
    status(page, "Stopped")
    until(page, "document.getElementById('stop').disabled", bool)
    for _ in range(100):
        if not running.rows:
            break
        page.wait_for_timeout(50)
    assert not running.rows


def test_a_voice_is_recorded_listened_to_and_removed(page: Page, running: Running, tmp_path: Path) -> None:
    (tmp_path / "mary.wav").write_bytes(running.speak(response_format="wav")[2])
    page.click("text=Add a voice")
    page.fill("#name", "Aunt Mary")
    page.set_input_files("#recording", tmp_path / "mary.wav")
    page.wait_for_selector("#heard:not([hidden])")
    page.click("#upload button[type=submit]")
    status(page, "The voice Aunt Mary was added")
    assert page.input_value("#voice") == "Aunt-Mary"
    page.fill("#text", "Hi.")
    page.click("#speak")
    status(page, "^[0-9.]+ s in")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    status(page, "was removed")
    assert page.input_value("#voice") == "built-in"

    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=true]")
    page.wait_for_timeout(1500)
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=false]")
    page.wait_for_selector("#heard:not([hidden])")
    until(page, "document.getElementById('heard').duration", lambda seconds: seconds and seconds > 1)


def test_a_long_text_is_a_job_that_is_followed_and_fetched(page: Page, tmp_path: Path) -> None:
    page.fill("#text", f"{TEXT}\n\n{TEXT}")
    page.click("#keep")
    status(page, "The text is spoken as a job")
    until(
        page,
        "document.querySelector('#jobs span')?.textContent",
        lambda text: text and "is ready: 2 of 2 parts" in text,
    )
    assert page.evaluate("document.querySelector('#jobs progress').value") == 1
    with page.expect_download() as download:
        page.click("#jobs button:visible >> text=Download")
    download.value.save_as(tmp_path / "speech.mp3")
    assert download.value.suggested_filename == "speech.mp3" and (tmp_path / "speech.mp3").stat().st_size > 10_000
    page.click("#jobs button:visible >> text=Remove")
    until(page, "document.querySelectorAll('#jobs li').length", lambda count: count == 0)
    assert page.is_visible("#jobs-none")


def test_what_goes_wrong_is_told(page: Page) -> None:
    page.fill("#language", "fr")
    page.click("#speak")
    assert "language must be en" in status(page, "language")
    page.fill("#language", "")
    page.route("**/v1/audio/speech", lambda route: route.abort("connectionreset"))
    page.click("#speak")
    status(page, "The server cannot be reached")
    page.unroute("**/v1/audio/speech")
    page.fill("#text", "Hi.")
    page.click("#speak")
    status(page, "^[0-9.]+ s in")


def test_a_connection_that_is_lost_in_the_midst_is_told(
    page: Page, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = running.model.synthesizer.stream

    def failing(*arguments, **options):
        yield next(stream(*arguments, **options))
        raise RuntimeError("gone")

    monkeypatch.setattr(running.model.synthesizer, "stream", failing)
    page.click("#speak")
    assert "The connection was lost after" in status(page, "connection was lost")
    assert page.is_visible("#download")


def test_a_phone_and_a_screen_reader(page: Page) -> None:
    """Nothing is wider than a phone; what can be used has a name and is reached by the keyboard."""
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = """[...document.querySelectorAll('input, select, textarea, button')]
        .filter((one) => !one.labels?.length && !one.textContent.trim() && !one.ariaLabel).map((one) => one.id)"""
    assert page.evaluate(unnamed) == []
    assert page.get_attribute("#status", "aria-live") == "polite" and page.get_attribute("html", "lang") == "en"
    reached = set()
    page.focus("#text")
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"model", "voice", "exaggeration", "speak"} <= reached
