"""The end-to-end check fails where the page answers something else, or sees no face."""

from __future__ import annotations

from egmf_launcher.clips_recipe import faults

RIGHT = {"mood": {"answer": "glad"}, "activation": {"value": 0.123}}
SEEN = "glad\nWhat was absent, and why\ntext: not given\nWhat each stream says: mood\nvision"


def test_the_page_must_answer_as_predict_does_task_by_task():
    assert faults(RIGHT, {"mood": "glad", "activation": "0.12"}, SEEN) == []
    assert faults(RIGHT, {"mood": "sad", "activation": "0.13"}, SEEN) == [
        "the page answers 'sad' to mood and egmf predict 'glad'",
        "the page answers '0.13' to activation and egmf predict '0.12'",
    ]
    assert faults(RIGHT, {"activation": "0.12"}, SEEN) == ["the page answers None to mood and egmf predict 'glad'"]


def test_a_face_must_be_seen():
    unseen = SEEN.replace("text: not given", "vision: no face in 40 of 40 frames")
    (said,) = faults(RIGHT, {"mood": "glad", "activation": "0.12"}, unseen)
    assert said.startswith("no face of the photograph was seen")
    assert faults(RIGHT, {"mood": "glad", "activation": "0.12"}, "glad\nWhat each stream says: mood\nvision") == []
