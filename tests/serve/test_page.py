"""The page in a headless Chromium, before a real server: upload, a camera that shows a face, widths, accessibility."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from egmf_dist.bench.serving import Server, started
from egmf_dist.recipes.page_driver import missing, opened, write_camera, write_microphone
from egmf_media.synthetic import face, voice

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "the page can be driven")


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[Server]:
    with started(exported, ["--max-seconds", "30"]) as running:
        yield running


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("camera")
    pictures = [face(320, 240, mouth=6 + 5 * np.sin(n / 3), x=0.5 + 0.05 * np.sin(n / 8)) for n in range(40)]
    return write_camera(folder / "a.y4m", np.stack(pictures)), write_microphone(folder / "a.wav", voice(2.0))


def test_a_clip_is_uploaded_and_answered_at_both_widths_in_both_languages(server, recorded):
    with opened(server.url, 1400) as shown:
        said = shown.answer(recorded / "clips" / "c3.mp4", "word 3")
        for words in ("What each stream says: emotion", "The gate over time", "Features made by audio: prosody 1"):
            assert words in said
        assert list(shown.answers()) == ["emotion", "sentiment"]
        assert shown.answers()["emotion"] in ("calm", "excited")
        assert shown.overflowing() == []
        for width, dark, language in ((390, True, "zh"), (1400, True, "zh"), (390, False, "en")):
            shown.page.set_viewport_size({"width": width, "height": 844})
            shown.page.emulate_media(color_scheme="dark" if dark else "light")
            shown.page.select_option("#tongue", language)
            shown.page.wait_for_timeout(300)
            assert shown.overflowing() == []
            assert shown.page.evaluate("document.documentElement.lang") == ("zh-CN" if language == "zh" else "en")
        assert shown.page.evaluate("Object.keys(WORDS.en).sort().join() === Object.keys(WORDS.zh).sort().join()")
        assert (shown.complaints, shown.foreign) == ([], [])


def test_a_recording_of_camera_and_microphone_is_answered(server, camera):
    with opened(server.url, 390, camera=camera[0], microphone=camera[1]) as shown:
        for _ in range(4):  # a browser's invented devices give silence, or no picture, where the machine is busy
            shown.record(2.0)
            said = shown.ask()
            assert "emotion" in said
            assert "What was absent, and why\ntext: not given" in said
            behind = said.partition("What was absent, and why")[2]
            absent = re.split("What each stream says|The gate over time", behind)[0]  # of one stream nothing is taken
            if "audio" not in absent and "vision" not in absent:
                break
        assert "audio" not in absent
        assert "vision" not in absent
        assert (shown.overflowing(), shown.complaints, shown.foreign) == ([], [], [])


def test_a_second_click_while_the_person_is_asked_opens_no_second_camera(server, camera):
    """Its stream would never be stopped."""
    with opened(server.url, 390, camera=camera[0], microphone=camera[1]) as shown:
        shown.page.evaluate(
            """() => {
                const own = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
                window.streams = [];
                navigator.mediaDevices.getUserMedia = async wanted => {
                    const stream = await own(wanted);
                    window.streams.push(stream);
                    await new Promise(done => setTimeout(done, 300));
                    return stream;
                };
                for (let n = 0; n < 3; n++) document.getElementById("record").click();
            }"""
        )
        shown.page.wait_for_selector("#record[aria-pressed=true]")
        shown.page.click("#go")
        assert shown.page.inner_text("#error") == "Stop the recording first."
        shown.page.click("#record")
        shown.page.wait_for_selector("#remove:not([hidden])")
        live = "window.streams.flatMap(one => one.getTracks()).filter(one => one.readyState === 'live').length"
        assert shown.page.evaluate("window.streams.length") == 1
        assert shown.page.evaluate(live) == 0


def test_what_goes_wrong_is_said_where_it_is_heard(server, tmp_path):
    (tmp_path / "a.mp4").write_text("no film")
    with opened(server.url, 390) as shown:
        page = shown.page
        page.click("#go")
        assert page.inner_text("#error") == "Give a recording, or words."
        page.select_option("#tongue", "zh")
        page.click("#go")
        assert (page.inner_text("#error"), page.get_attribute("#error", "lang")) == ("请给出录像或文字。", "zh-CN")
        page.fill("#text", "word 3")
        page.click("#go")
        page.wait_for_selector("#result:not([hidden])")
        page.set_input_files("#file", str(tmp_path / "a.mp4"))
        page.click("#go")  # and the answer to what was asked before does not stay there
        page.wait_for_selector("#error:not(:empty)")
        assert page.inner_text("#error").startswith("the clip: is no media file")
        assert page.get_attribute("#error", "lang") == "en"  # the server's own words
        assert page.get_attribute("#error", "role") == "alert"
        assert page.is_hidden("#result")
        # The browser itself complains of the refusal, and of nothing else.
        assert [said for said in shown.complaints if "422" not in said] == []


def test_the_keyboard_alone_is_enough(server):
    with opened(server.url, 1400) as shown:
        page, seen = shown.page, []
        for _ in range(40):  # the clip's own controls are on the way
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            if seen[-1] == "example":
                page.keyboard.press("Enter")
                page.wait_for_selector("#remove:not([hidden])")
            if seen[-1] == "go":
                page.keyboard.press("Enter")
                break
        page.wait_for_selector("#result:not([hidden])")
        order = ["tongue", "file", "record", "example", "remove", "text", "language", "go"]
        assert [name for name in seen if name in order] == [name for name in order if name in seen]
        assert {"file", "record", "example", "go"} <= set(seen)
        assert page.evaluate("document.activeElement.id") == "result"


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(server, recorded, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with opened(server.url, 1400, dark) as shown:
        # The page's policy lets no foreign script in, so axe goes in by the debugger, past it.
        def serious() -> list[str]:
            found = axe.Axe().run(shown.page).response["violations"]
            return [
                f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")
            ]

        assert serious() == []
        shown.answer(recorded / "clips" / "c3.mp4", "word 3")
        assert serious() == []
        shown.page.evaluate("document.documentElement.removeAttribute('lang')")
        assert [one.partition(":")[0] for one in serious()] == ["html-has-lang"]  # it does look
