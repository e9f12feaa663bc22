"""Many clips: the same bits in any number of processes, what is done is not done again, one bad clip harms no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clips import Clip, remuxed

from egmf_media.batch import run
from egmf_media.batch.listing import list_clips
from egmf_media.batch.run import How, extract_many
from egmf_media.errors import MediaError
from egmf_media.extractors import DEFAULT, extractor_of, extractors_of
from egmf_media.limits import Limits
from egmf_media.specification import Specification, check_same, read_stream
from egmf_media.vision.face import Face

PROSODY = {"audio": {"extractor": "prosody"}}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    Clip(seconds=1.0).write(folder / "a.mp4")
    Clip(seconds=1.5, rate=44_100, layout="stereo").write(folder / "b.mkv")
    Clip(seconds=0.8, audio=None).write(folder / "deep" / "c.mp4")
    Clip(seconds=1.2, video=None).write(folder / "d.m4a")
    (folder / "e.mp4").write_bytes(b"no clip")
    (folder / "notes.txt").write_text("not a clip, and not one by its name")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and ".cache" not in p.parts}


def test_one_and_four_processes_give_the_same_bits_in_the_same_order(clips, tmp_path):
    for number in (1, 4):
        extract_many(list_clips(clips), DEFAULT, tmp_path / str(number), How(processes=number))
    one, four = contents(tmp_path / "1"), contents(tmp_path / "4")
    assert one == four
    lines = [json.loads(line) for line in one["report.jsonl"].decode().splitlines()]
    assert [line["id"] for line in lines[::2]] == ["a", "b", "d", "deep/c", "e"]
    assert {"audio/a.npy", "audio/b.npy", "audio/d.npy", "audio/stream.json"} <= one.keys()


def test_here_and_in_another_process_it_is_the_same_bits(clips, tmp_path):
    extract_many(list_clips(clips), PROSODY, tmp_path / "out")
    array = extractors_of(PROSODY)["audio"].extract(clips / "b.mkv", Limits(), {})
    assert np.array_equal(array, np.load(tmp_path / "out" / "audio" / "b.npy"))


def test_a_clip_moved_by_remuxing_has_the_same_features(clips, tmp_path):
    for extractor in extractors_of(DEFAULT).values():
        if extractor.missing:
            pytest.skip(extractor.missing)
        one = extractor.extract(clips / "a.mp4", Limits(), {})
        for name, shift in (("a.mkv", 3.0), ("a.ts", 1.4), ("b.mp4", 0.0)):
            other = extractor.extract(remuxed(clips / "a.mp4", tmp_path / name, shift), Limits(), {})
            assert one.shape == other.shape
            assert np.abs(one - other).max() < 1e-3


def test_a_second_call_does_only_what_is_missing(clips, tmp_path, monkeypatch):
    asked: list[list[str]] = []
    real = run.run_tasks

    def counted(tasks, *rest):
        asked.append([task.path.name for task in tasks])
        return real(tasks, *rest)

    out = tmp_path / "out"
    extract_many(list_clips(clips), PROSODY, out, runner=counted)
    first = contents(out)
    (out / "audio" / "b.npy").unlink()
    (out / "audio" / "a.npy").write_bytes(b"somebody wrote over it")  # and over the cache's, where it is the same file
    summary = extract_many(list_clips(clips), PROSODY, out, runner=counted)
    assert asked[1] == ["a.mp4", "e.mp4"]  # what failed is tried again
    assert summary.cached == 3
    assert contents(out) == first
    (clips / "deep" / "moved.mkv").write_bytes((clips / "b.mkv").read_bytes())
    try:
        extract_many(list_clips(clips), PROSODY, out, runner=counted)
    finally:
        (clips / "deep" / "moved.mkv").unlink()
    assert asked[2] == ["e.mp4"]  # a copy has the hash that is known
    assert (out / "audio" / "deep" / "moved.npy").read_bytes() == (out / "audio" / "b.npy").read_bytes()


def test_an_id_whose_clip_lost_its_sound_loses_its_features(clips, tmp_path):
    source, out = tmp_path / "clips", tmp_path / "out"
    source.mkdir()
    Clip(seconds=1.0).write(source / "a.mp4")
    extract_many(list_clips(source), PROSODY, out)
    assert (out / "audio" / "a.npy").is_file()
    Clip(seconds=1.0, audio=None).write(source / "a.mp4")
    extract_many(list_clips(source), PROSODY, out)
    assert not (out / "audio" / "a.npy").exists()


def test_a_clip_that_ends_or_hangs_its_process_harms_no_other(tmp_path):
    names = ["a", "crash1", "b", "hang", "c", "crash2", "raise", "d"]
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes(b"x" * 10)
    plan = {"audio": {"extractor": "own_extractors:Fatal"}, "vision": {"extractor": "own_extractors:Fatal"}}
    how = How(Limits(max_wall_seconds=3), processes=2)
    summary = extract_many([*list_clips(tmp_path)], plan, tmp_path / "out", how)
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    reasons = {(line["id"], line["stream"]): line.get("reason", line["status"]) for line in lines}
    assert [key[0] for key in reasons][::2] == sorted(names)
    for stream in ("audio", "vision"):
        assert [reasons[name, stream] for name in "abcd"] == ["ok"] * 4
        assert reasons["crash1", stream] == reasons["crash2", stream] == "ended its process (SIGSEGV)"
        assert reasons["hang", stream] == "took longer than 3 s (max_wall_seconds)"
        assert reasons["raise", stream] == "RuntimeError: two lines"
    assert summary.failed == 8
    assert summary.first_failure == "crash1, audio: ended its process (SIGSEGV)"


def test_without_weights_a_face_is_absent_says_why_and_is_found_later(clips, tmp_path):
    plan = {"vision": {"extractor": "face", "weights": str(tmp_path / "nowhere")}}
    extract_many(list_clips(clips), plan, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["absent"] * 5
    assert lines[0]["reason"].endswith("`egmf features fetch` gets it")
    if not (missing := Face().missing):
        summary = extract_many(list_clips(clips), {"vision": {"extractor": "face"}}, tmp_path / "out")
        assert summary.by_stream["vision"]["ok"] == 3
    else:
        pytest.skip(missing)


def test_another_specification_in_the_folder_is_refused_in_a_line_that_names_both(clips, tmp_path):
    out = tmp_path / "out"
    extract_many(list_clips(clips), {"vision": {"extractor": "face", "rate": 5}}, out)
    with pytest.raises(MediaError) as caught:
        extract_many(list_clips(clips), {"vision": {"extractor": "face", "rate": 2.5}}, out)
    one, other = (str(Face(rate=rate).specification) for rate in (5, 2.5))
    assert str(caught.value) == (
        f"{out}/vision is {one}, what is asked for is {other}: rate is 5.0 and 2.5; "
        "name another --out, or remove it first"
    )
    assert read_stream(out / "vision") == Face(rate=5).specification


def test_a_specification_survives_json_and_a_changed_one_is_seen():
    made = Face().specification
    data = json.loads(json.dumps(made.to_json()))
    assert Specification.from_json(data, "here") == made
    assert Specification.from_json(data | {"source": "elsewhere"}, "here").sha256 == made.sha256
    with pytest.raises(MediaError, match="here: its specification was changed by hand"):
        Specification.from_json(data | {"version": 2}, "here")
    for wrong in (None, {}, data | {"rate": "5"}, data | {"more": 1}, {k: v for k, v in data.items() if k != "dim"}):
        with pytest.raises(MediaError, match="specification"):
            Specification.from_json(wrong, "here")


def test_the_extractor_comes_back_from_the_specification_and_only_the_same():
    made = Face(rate=2.5).specification
    again = extractor_of(made, "the model's vision")
    assert again.specification.sha256 == made.sha256
    data = made.to_json() | {"version": 99}
    data["sha256"] = Specification(**{k: v for k, v in data.items() if k != "sha256"}).sha256
    with pytest.raises(MediaError, match=r"the model's vision is face 99 \(.*\), what is made here is face 1 \("):
        extractor_of(Specification.from_json(data, "here"), "the model's vision")
    check_same(made, again.specification, "a", "b", "c")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "feature streams by name are needed"),
        ({"Audio": "prosody"}, "'Audio' is no name of a stream"),
        ({"text": "prosody"}, "'text' is no name of a stream"),
        ({"audio": {"extractor": "prosodie"}}, "audio: extractor is 'prosodie'; one of prosody, egemaps, face"),
        ({"audio": {"extractor": "prosody", "rate": 5}}, "audio: prosody has no setting 'rate'; it has nothing"),
        ({"vision": {"extractor": "face", "rate": "fast"}}, "vision: rate is 'fast', a str"),
        ({"vision": {"extractor": "face", "rate": 0}}, "vision: face: rate is 0"),
        ({"audio": {"extractor": "no_such_module:X"}}, "audio: extractor no_such_module:X cannot be made"),
        (["audio"], "feature streams by name are needed"),
    ],
)
def test_a_bad_plan_is_refused_in_one_line(plan, message):
    with pytest.raises(MediaError, match=message) as caught:
        extractors_of(plan)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a", "clip": "a.mp4"}\n{"id": "a", "clip": "b.mkv"}', "have one id, 'a'"),
        ('{"id": "../a", "clip": "a.mp4"}', "cannot name a file"),
        ('{"id": "/a", "clip": "a.mp4"}', "cannot name a file"),
        ('{"id": 3, "clip": "a.mp4"}', "id and clip are texts"),
        ("[]", "holds a list"),
        ("{", "not JSON"),
        ("", "has no line"),
    ],
)
def test_a_bad_list_of_clips_is_refused_in_one_line(tmp_path, lines, message):
    (tmp_path / "clips.jsonl").write_text(lines)
    with pytest.raises(MediaError, match=message):
        list_clips(tmp_path / "clips.jsonl")


def test_ids_name_the_clips_of_a_folder(clips, tmp_path):
    (tmp_path / "clips.jsonl").write_text('{"id": "b", "text": "hi"}\n{"clip": "deep/c.mp4"}\n{"id": "gone"}\n')
    found = list_clips(tmp_path / "clips.jsonl", clips)
    assert found == [("b", clips / "b.mkv"), ("c", clips / "deep" / "c.mp4"), ("gone", clips / "gone")]
    with pytest.raises(MediaError, match="holds no clip"):
        list_clips(tmp_path)
