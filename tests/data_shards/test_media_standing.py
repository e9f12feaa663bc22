"""Standing processes: what a clip does to one of them reaches no other clip."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import Clip

from egmf_media.batch.standing import Recipe, Standing
from egmf_media.errors import MediaError
from egmf_media.extract import FAILED, OK
from egmf_media.limits import Limits

PLAN = {"a": {"extractor": "own_extractors:Fatal"}, "b": {"extractor": "own_extractors:Fatal"}}


@pytest.fixture(scope="module")
def standing():
    made = Standing(Recipe(PLAN, Limits(max_wall_seconds=2.0), 200 << 20))
    yield made
    made.close()


def clip(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"12345")
    return path


def test_a_clip_is_extracted_and_shown(tmp_path):
    path = Clip(seconds=1.0).write(tmp_path / "c.mp4")
    made = Standing(Recipe({"audio": {"extractor": "prosody"}}, Limits(), 1 << 30, warm=path))
    try:
        found = made.extract(path, ["audio"], show=3)
    finally:
        made.close()
    assert (found.outcomes["audio"].status, found.outcomes["audio"].array.shape) == (OK, (10, 182))
    assert found.preview.outline.shape == (400, 2)
    assert -1 <= found.preview.outline.min() < 0 < found.preview.outline.max() <= 1
    assert [moment.second for moment in found.preview.moments] == [0.0, 0.5]
    assert all(moment.jpeg.startswith(b"\xff\xd8") for moment in found.preview.moments)
    with pytest.raises(MediaError, match="no longer taken"):
        made.extract(path, ["audio"])


def test_who_ends_a_process_has_failed_and_the_next_is_answered(tmp_path, standing):
    found = standing.extract(clip(tmp_path, "crash.mp4"), ["a", "b"]).outcomes
    assert {own.status for own in found.values()} == {FAILED}
    assert found["a"].reason == "ended the process that decodes it (SIGSEGV)"
    assert standing.extract(clip(tmp_path, "good.mp4"), ["a", "b"]).outcomes["b"].array.tolist() == [[5.0]]


def test_who_takes_too_long_is_ended_in_time(tmp_path, standing):
    begin = time.monotonic()
    found = standing.extract(clip(tmp_path, "hang.mp4"), ["a", "b"]).outcomes
    assert [own.reason for own in found.values()] == ["took longer than 2 s to decode"] * 2
    assert time.monotonic() - begin < 30
    assert standing.extract(clip(tmp_path, "good.mp4"), ["a"]).outcomes["a"].status == OK


def test_who_wants_too_much_memory_has_failed(tmp_path, standing):
    found = standing.extract(clip(tmp_path, "vast.mp4"), ["a"]).outcomes["a"]
    assert (found.status, found.reason) == (FAILED, "needs more memory than there is")
    assert standing.extract(clip(tmp_path, "good.mp4"), ["a"]).outcomes["a"].status == OK


def test_a_process_that_ends_while_nobody_asks_is_no_clips_fault(tmp_path, standing):
    (one,) = standing._all
    one.process.kill()
    one.process.join()
    assert standing.extract(clip(tmp_path, "good.mp4"), ["a"]).outcomes["a"].status == OK


def test_a_process_whose_restart_fails_once_is_begun_again(tmp_path, standing, monkeypatch):
    """Or all clips would be refused from then on: the place would be lost with its process."""
    with monkeypatch.context() as broken:
        broken.setenv("EGMF_TEST_BROKEN", "1")
        assert standing.extract(clip(tmp_path, "crash.mp4"), ["a"]).outcomes["a"].status == FAILED
        with pytest.raises(MediaError, match=r"cannot begin: .*cannot be made just now"):
            standing.extract(clip(tmp_path, "good.mp4"), ["a"])
    for _ in range(2):  # the one that was begun while it was broken may still be there
        try:
            found = standing.extract(clip(tmp_path, "good.mp4"), ["a"])
            break
        except MediaError:
            continue
    assert found.outcomes["a"].status == OK


def test_a_restart_that_the_machine_refuses_is_tried_again_and_never_an_error_of_its_own(
    tmp_path, standing, monkeypatch
):
    with monkeypatch.context() as broken:

        def start(process: Any) -> None:
            raise OSError(11, "Resource temporarily unavailable")

        broken.setattr("multiprocessing.process.BaseProcess.start", start)
        assert standing.extract(clip(tmp_path, "crash.mp4"), ["a"]).outcomes["a"].status == FAILED
        for _ in range(2):
            with pytest.raises(MediaError, match=r"cannot begin: .*temporarily unavailable"):
                standing.extract(clip(tmp_path, "good.mp4"), ["a"])
    assert standing.extract(clip(tmp_path, "good.mp4"), ["a"]).outcomes["a"].status == OK
    assert len(standing._all) == 1


def test_several_threads_wait_for_their_turn(tmp_path, standing):
    paths = [clip(tmp_path, f"{n}.mp4") for n in range(6)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes(n + 1))
    found: dict[int, float] = {}

    def one(n: int) -> None:
        found[n] = float(np.ravel(standing.extract(paths[n], ["a"]).outcomes["a"].array)[0])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: n + 1.0 for n in range(6)}


def test_processes_that_cannot_begin_say_why():
    with pytest.raises(MediaError, match=r"cannot begin: .*extractor is 'nothing'"):
        Standing(Recipe({"a": {"extractor": "nothing"}}, Limits(), 1 << 30))
