"""The server's page in a headless Chromium, by playwright: what a person would do there, and what went wrong.

Chromium is the system's own (Debian's ``chromium``); playwright brings none. Its camera and microphone are files.
"""

from __future__ import annotations

import shutil
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 120_000
OVERFLOWING = """() => {
  const found = [], root = document.scrollingElement;
  if (root.scrollWidth > root.clientWidth) found.push(`page ${root.scrollWidth} > ${root.clientWidth}`);
  for (const e of document.body.querySelectorAll('*')) {
    if (e.closest('.scroll') || e.closest('svg') || e.clientWidth === 0 || ['SELECT', 'OPTION', 'INPUT'].includes(e.tagName)) continue;
    if (e.scrollWidth > e.clientWidth + 1) found.push(`${e.tagName}#${e.id}.${e.className} ${e.scrollWidth} > ${e.clientWidth}`);
  }
  return found;
}"""  # noqa: E501
"""Elements whose content is wider than they are."""


SHOWN_FOR = "seconds => { const video = document.getElementById('video'); "
SHOWN_FOR += "return video.videoWidth > 0 && video.currentTime > seconds; }"
"""Whether a recording shows a picture, and has for so long."""
ANSWERS = "[...document.querySelectorAll('#tasks .task')].map(node => "
ANSWERS += "[node.querySelector('h3').textContent, node.querySelector('.answer').textContent])"


def missing() -> str:
    """Why no page can be driven here; empty where one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install playwright"
    return "" if program() else "no Chromium here: apt-get install chromium"


def program() -> str | None:
    """The browser; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Shown:
    """A page that is open."""

    page: Any
    """playwright's."""
    url: str
    complaints: list[str] = field(default_factory=list)
    """Errors of its script, and what the browser complained of."""
    foreign: list[str] = field(default_factory=list)
    """Addresses of other servers that it asked for."""

    def answer(self, clip: Path | None = None, text: str = "") -> str:
        """Upload, write, ask; the result as text.

        Raises:
            EgmfError: there is no answer; says what the page says.
        """
        if clip is not None:
            self.page.set_input_files("#file", str(clip))
        self.page.fill("#text", text)
        return self.ask()

    def ask(self) -> str:
        """Ask with what is there."""
        self.page.click("#go")
        self.page.wait_for_selector("#go[aria-busy=false], #error:not(:empty)", timeout=WAIT_MS)
        error = self.page.text_content("#error") or ""
        if error:
            raise EgmfError(f"the page says: {error}")
        self.page.wait_for_selector("#result:not([hidden])", timeout=WAIT_MS)
        return str(self.page.inner_text("#result"))

    def record(self, seconds: float) -> None:
        """Record from camera and microphone, and take it as the clip."""
        self.page.click("#record")
        self.page.wait_for_selector("#record[aria-pressed=true]", timeout=WAIT_MS)
        # By the recording's own clock: a machine that is busy may take seconds to show a camera's first picture.
        end = time.monotonic() + WAIT_MS / 1000
        while not self.page.evaluate(SHOWN_FOR, seconds):
            if time.monotonic() > end:
                raise EgmfError("the page shows nothing of the camera")
            self.page.wait_for_timeout(50)
        self.page.click("#record")
        self.page.wait_for_selector("#remove:not([hidden])", timeout=WAIT_MS)

    def answers(self) -> dict[str, str]:
        """What stands as the answer of each task."""
        return dict(self.page.evaluate(ANSWERS))

    def listen(self) -> None:
        """Note from now on what goes wrong, and who is asked."""

        def said(one: Any) -> None:
            if one.type in ("error", "warning"):
                self.complaints.append(one.text)

        def asked(one: Any) -> None:
            if not one.url.startswith((self.url, "data:", "blob:")):
                self.foreign.append(one.url)

        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", said)
        self.page.on("request", asked)

    def overflowing(self) -> list[str]:
        """What is wider than its place."""
        return list(self.page.evaluate(OVERFLOWING))


@contextmanager
def opened(
    url: str, width: int = 1400, dark: bool = False, camera: Path | None = None, microphone: Path | None = None
) -> Iterator[Shown]:
    """The page of a server.

    Args:
        url: of it.
        width: in CSS pixels.
        dark: the person likes it dark.
        camera: a ``.y4m`` that the camera shows, again and again; None: there is no camera.
        microphone: a ``.wav`` likewise.
    """
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--use-fake-ui-for-media-stream"]
    if camera is not None:
        options += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}"]
        options += [f"--use-file-for-fake-audio-capture={microphone}"] if microphone is not None else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), headless=True, args=options, timeout=WAIT_MS)
        try:
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", locale="en-GB"
            )
            page.set_default_timeout(WAIT_MS)
            shown = Shown(page, url)
            shown.listen()
            page.goto(url)
            page.wait_for_selector("#about:not(:empty)")
            yield shown
        finally:
            browser.close()


def write_camera(path: Path, pictures: np.ndarray, rate: int = 20) -> Path:
    """Pictures as a ``.y4m`` for :func:`opened`.

    Args:
        path: of it.
        pictures: uint8 RGB ``[frames, height, width, 3]``, height and width even.
        rate: pictures a second.
    """
    import cv2

    height, width = pictures.shape[1:3]
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420\n".encode())
        for picture in pictures:
            file.write(b"FRAME\n" + cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420).tobytes())
    return path


def write_microphone(path: Path, sound: np.ndarray, rate: int = 16_000) -> Path:
    """Sound in -1 to 1, float32 ``[n]``, as a ``.wav`` for :func:`opened`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return path
