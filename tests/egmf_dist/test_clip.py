"""From a clip to an answer: by the extractor that the model was trained with, and by no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_model import random_run
from clips import Clip
from tiny_encoders import whisper

from egmf_dist import load
from egmf_dist.config import BackboneConfig, Config, DataConfig
from egmf_dist.errors import EgmfError
from egmf_dist.features import specifications_of
from egmf_dist.inference.export import export
from egmf_dist.inference.opened import check_trained
from egmf_dist.run.folder import Run
from egmf_dist.run.identity import Identity, check_identity
from egmf_launcher.cli import main
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_media.audio.prosody import Prosody
from egmf_media.limits import Limits
from egmf_media.specification import Specification
from egmf_media.vision.face import Face
from egmf_shards import ShardSet

TASK = """
name: emotion
kind: classification
questions: {en: "Which emotion?"}
labels: [calm, excited]
answers: {en: [calm, excited]}
"""
LINE = '{"id": "%s", "split": "train", "text": "a", "label": "calm"'
AUDIO = Prosody.specification


def changed(made: Specification, version: int) -> dict:
    return replace(made, version=version).to_json()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Recordings, and shards made from them by the command line."""
    root = tmp_path_factory.mktemp("clips")
    (root / "clips").mkdir()
    rows = []
    for number, split in enumerate(("train", "train", "valid", "test")):
        clip = Clip(seconds=1.0, silent=number == 1, faces=number != 2)
        clip.write(root / "clips" / f"c{number}.mp4")
        rows.append({"id": f"c{number}", "split": split, "text": f"word {number}", "label": "calm"})
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (root / "task.yaml").write_text(TASK, encoding="utf-8")
    (root / "audio.yaml").write_text("audio: prosody\n", encoding="utf-8")
    command = (
        f"shards import jsonl --source {root}/data.jsonl --task {root}/task.yaml --dataset mine --out {root}/mine "
    )
    assert main([*command.split(), "--clips", str(root / "clips"), "--extractors", str(root / "audio.yaml")]) == 0
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Run:
    """A run on those shards whose best adapter is random."""
    return random_run(tmp_path_factory.mktemp("runs"), [data / "mine"])


@pytest.fixture(scope="module")
def exported(run) -> Path:
    out = run.folder.parent / "exported"
    export(run, out)
    return out


@pytest.fixture(scope="module")
def model(exported):
    return load(exported)


def test_the_specification_goes_from_features_to_shards_to_the_run_and_its_export(data, run, exported):
    for said in (
        json.loads((data / "mine-features" / "audio" / "stream.json").read_text())["specification"],
        json.loads((data / "mine" / "manifest.json").read_text())["streams"]["audio"]["specification"],
        json.loads((exported / "egmf.json").read_text())["data"]["specifications"]["audio_182"],
    ):
        assert Specification.from_json(said, "here") == AUDIO
    assert json.loads((data / "mine" / "manifest.json").read_text())["streams"]["audio"]["rate"] == 10


def test_features_at_use_are_those_of_training_bit_by_bit(data, model):
    shards = ShardSet.open([str(data / "mine")], "test")
    (trained,) = list(shards)
    (used,) = model.samples(model_utterance(data / "clips" / "c3.mp4"), 0)
    assert trained.features["audio"].tobytes() == used.features["audio"].tobytes()
    assert trained.features["audio"].shape == (10, 182)


def model_utterance(clip: Path, text: str = "word 3"):
    from egmf_dist import Utterance

    return Utterance(text, clip=clip)


def test_a_clip_is_answered_as_its_features_are(data, model):
    clip, npy = data / "clips" / "c3.mp4", data / "mine-features" / "audio" / "c3.npy"
    (from_clip,) = model.predict("word 3", clip=clip)
    (from_file,) = model.predict({"text": "word 3", "features": {"audio": npy}})
    assert from_clip.probabilities == from_file.probabilities
    assert from_clip.made_by == {"audio": str(AUDIO)}
    assert (from_clip.id, from_clip.absent) == ("c3", ())
    (alone,) = model.predict(clip=clip)
    assert alone.absent == ("text",)
    assert alone.probabilities != from_clip.probabilities
    (mapped,) = model.predict([{"text": "word 3", "clip": str(clip)}])
    assert mapped.probabilities == from_clip.probabilities


def test_what_a_clip_lacks_is_absent_and_says_why(data, model, tmp_path):
    (answer,) = model.predict("word 1", clip=data / "clips" / "c1.mp4")
    assert answer.absent == ("audio",)
    assert answer.why_absent == {"audio": "silent (RMS 0.0e+00, below 1e-04)"}
    with pytest.raises(EgmfError, match=r"c1.mp4: nothing to answer from: audio: silent .*; and no words are given"):
        model.predict(clip=data / "clips" / "c1.mp4")
    (tmp_path / "a.mp4").write_text("no film")
    with pytest.raises(EgmfError, match=r"a.mp4: is no media file"):
        model.predict("words", clip=tmp_path / "a.mp4")
    with pytest.raises(EgmfError, match="clip is a recording of one utterance"):
        model.predict(["a", "b"], clip=data / "clips" / "c3.mp4")


def test_the_command_line_answers_one_clip_and_a_file_of_them(data, exported, tmp_path, capsys):
    clip = data / "clips" / "c3.mp4"
    command = ["predict", str(clip), "--run", str(exported), "--text", "word 3", "--out", str(tmp_path / "one.jsonl")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"audio: {AUDIO}" in said
    assert "emotion: " in said
    assert said.count("(not calibrated)") == said.count("emotion: ")
    one = json.loads((tmp_path / "one.jsonl").read_text())
    assert one["made_by"] == {"audio": str(AUDIO)}
    rows = [{"id": "c3", "text": "word 3", "clip": str(clip)}, {"text": "word", "clip": "gone.mp4"}]
    rows += [{"text": "word 1", "clip": str(data / "clips" / "c1.mp4")}, {"text": "x", "clip": 3}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ["--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "many.jsonl")]
    assert main(["predict", str(exported), *files]) == 1
    many = [json.loads(line) for line in (tmp_path / "many.jsonl").read_text().splitlines()]
    assert many[0] == one
    assert many[1]["error"].endswith("gone.mp4: there is no such file")
    assert many[2]["why_absent"] == {"audio": "silent (RMS 0.0e+00, below 1e-04)"}
    assert many[3]["error"] == "line 4: clip is a int; the name of a recording is needed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "M", "--input", "x.jsonl"], "--run takes one recording, without --input and --explain"),
        ([], "--input and --out are needed; or a recording with --run MODEL"),
        (["--input", "x", "--out", "y", "--text", "hi"], "--text and --transcribe are what is said in a recording"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(words, message, capsys):
    assert main(["predict", "CLIP", *words]) == 2
    assert message in capsys.readouterr().err


def with_specification(folder: Path, out: Path, made: dict) -> Path:
    """The same shards by their bytes, whose manifest says that something else extracted them."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["streams"]["audio"]["specification"] = made
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_another_specification_is_refused_wherever_features_come_in(data, run, model, exported, tmp_path, capsys):
    other = changed(AUDIO, 2)
    both = rf"audio_182 was made by prosody 1 \({AUDIO.sha256[:12]}\), .*prosody 2 \({other['sha256'][:12]}\): "
    both += "version is 1 and 2"
    shards = with_specification(data / "mine", tmp_path / "other", other)
    # evaluation of the run
    description = json.loads(next(run.adapters.glob("*/adapter.json")).read_text())
    config = Config(
        data=DataConfig(shards=[str(shards)]), backbone=BackboneConfig(path=description["config"]["backbone"]["path"])
    )
    with pytest.raises(EgmfError, match=both):
        check_trained(run, config, description)
    # resuming it
    then = Identity.from_json(description["identity"], "here")
    with pytest.raises(EgmfError, match=both):
        check_identity(then, replace(then, features={"audio_182": other}), "checkpoint c")
    check_identity(then, then, "checkpoint c")
    # a model given shards
    out = tmp_path / "answers.jsonl"
    assert main(["predict", str(exported), "--input", str(shards), "--out", str(out)]) == 2
    assert "prosody 2" in capsys.readouterr().err
    # and a file of features
    (tmp_path / "audio").mkdir()
    np.save(tmp_path / "audio" / "a.npy", np.ones((3, 182), np.float32))
    (tmp_path / "audio" / "stream.json").write_text(json.dumps({"specification": other}))
    with pytest.raises(EgmfError, match="utterance 0: the model: " + both):
        model.predict({"text": "a", "features": {"audio": tmp_path / "audio" / "a.npy"}})
    # and two folders of one run
    two = ShardSet.open([str(data / "mine")], "train")
    manifests = [two.manifests[0], json.loads((shards / "manifest.json").read_text())]
    with pytest.raises(EgmfError, match=r"audio of one was made by prosody 1 .*, that of two by prosody 2"):
        specifications_of(manifests, ["one", "two"])
    manifests[0]["streams"]["audio"]["dim"] = 3
    with pytest.raises(EgmfError, match=r"one: audio has 3 numbers a frame, and prosody 1 .* makes 182"):
        specifications_of(manifests[:1], ["one"])


def test_a_model_of_features_that_nobody_described_takes_no_clip(data, model, exported, tmp_path):
    for name, made, message in (
        ("none", {}, "the model does not know how its features were made"),
        (
            "newer",
            {"audio_182": changed(AUDIO, 9)},
            r"the model's audio is prosody 9 \(.*what is made here is prosody 1",
        ),
        ("own", {"audio_182": replace(AUDIO, extractor="theirs:Own").to_json()}, "which this version cannot make"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for path in exported.rglob("*"):
            if path.is_file():
                target = folder / path.relative_to(exported)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
        said = json.loads((folder / "egmf.json").read_text())
        said["data"]["specifications"] = made
        (folder / "egmf.json").write_text(json.dumps(said))
        with pytest.raises(EgmfError, match=message):
            load(folder).predict("words", clip=data / "clips" / "c3.mp4")


def test_faces_come_along_where_the_weights_are(data, tmp_path):
    if Face().missing:
        pytest.skip(Face().missing)
    command = (
        f"shards import jsonl --source {data}/data.jsonl --task {data}/task.yaml --dataset mine --out {tmp_path}/mine"
    )
    assert main([*command.split(), "--clips", str(data / "clips"), "--processes", "2"]) == 0
    shards = ShardSet.open([str(tmp_path / "mine")], "train")
    assert shards.streams == {"audio": (182,), "vision": (341,)}
    array = Face().extract(data / "clips" / "c0.mp4", Limits(), {})
    assert shards[0].features["vision"].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("lines", "words", "message"),
    [
        (
            '{"id": "c0", "split": "train", "text": "a", "label": "calm", "clip": "c0.mp4"}',
            [],
            "names a clip; give --clips",
        ),
        (None, ["--clips", "nowhere"], "--clips nowhere: there is no such folder"),
        (None, ["--clips", "CLIPS", "--audio", "x"], "audio is extracted and given, too"),
        (
            '{"id": "gone", "split": "train", "text": "a", "label": "calm"}',
            ["--clips", "CLIPS"],
            "1 clips and streams failed, 0 may",
        ),
    ],
)
def test_an_import_that_cannot_be_is_refused_and_writes_no_shards(data, tmp_path, capsys, lines, words, message):
    source = data / "data.jsonl"
    if lines is not None:
        source = tmp_path / "data.jsonl"
        source.write_text(lines)
    command = f"shards import jsonl --source {source} --task {data}/task.yaml --dataset mine --out {tmp_path}/mine "
    words = [word.replace("CLIPS", str(data / "clips")) for word in words]
    if words:
        words += ["--extractors", str(data / "audio.yaml")]
    assert main([*command.split(), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_words_that_nobody_wrote_down_are_transcribed(data, exported, tmp_path, capsys):
    model = whisper(tmp_path / "whisper", languages=("en",))
    clip = data / "clips" / "c3.mp4"
    command = ["predict", str(clip), "--run", str(exported), "--transcribe", str(model)]
    assert main([*command, "--out", str(tmp_path / "one.jsonl")]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"text: '.+', en, by {model} \(", said)
    assert "absent" not in json.loads((tmp_path / "one.jsonl").read_text())
    rows = [json.loads(line) for line in (data / "data.jsonl").read_text().splitlines()]
    rows[0]["text"] = rows[1]["text"] = ""
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = f"shards import jsonl --source {tmp_path}/data.jsonl --task {data}/task.yaml --dataset mine"
    command += f" --out {tmp_path}/mine --clips {data}/clips --extractors {data}/audio.yaml --transcribe {model}"
    assert main(command.split()) == 0
    assert "transcripts.jsonl by " in capsys.readouterr().out
    spoken, silent = ShardSet.open([str(tmp_path / "mine")], "train")
    assert spoken.text
    assert "text" in spoken.modalities
    assert silent.modalities == ()
    filled = [json.loads(line) for line in (tmp_path / "mine-features" / "data.jsonl").read_text().splitlines()]
    assert [row["text"] for row in filled][2:] == ["word 2", "word 3"]
    assert main(["features", "extract", "--source", f"{data}/clips", "--out", f"{tmp_path}/out", "--config",
                 f"{data}/audio.yaml", "--transcribe", str(model)]) == 0  # fmt: skip
    assert len((tmp_path / "out" / "transcripts.jsonl").read_text().splitlines()) == 4
    words = ["predict", str(clip), "--run", str(exported), "--transcribe", str(exported)]
    assert main(words) == 2


def test_a_training_says_how_its_features_were_made_and_goes_on_with_no_others(data, run, tmp_path):
    shards = with_specification(data / "mine", tmp_path / "shards", AUDIO.to_json())
    path = json.loads(next(run.adapters.glob("*/adapter.json")).read_text())["config"]["backbone"]["path"]
    command = [sys.executable, "-m", "egmf_launcher.cli", "train", "--config", "demo", "--run", str(tmp_path / "run")]
    command += ["--backbone.path", path, "--data.shards", f"[{shards}]", "--workers", "1"]
    command += ["--training.global_batch", "2", "--training.validate_every", "1", "--training.checkpoint_every", "1"]
    command += ["--training.warmup_steps", "1", "--training.steps"]

    def train(*words: str) -> subprocess.CompletedProcess[str]:
        environ = without_launcher_variables(os.environ)
        return subprocess.run([*command, *words], env=environ, capture_output=True, text=True, timeout=180)

    done = train("1")
    assert done.returncode == 0, done.stdout + done.stderr
    files = [tmp_path / "run" / "manifest.json", *tmp_path.glob("run/checkpoints/*/*.json")]
    said = [found for file in files if (found := json.loads(file.read_text()).get("identity", {}).get("features"))]
    assert said == [{"audio_182": AUDIO.to_json()}] * 2  # the run's manifest and the checkpoint's record
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["streams"]["audio"]["specification"] = changed(AUDIO, 2)
    (shards / "manifest.json").write_text(json.dumps(manifest))
    done = train("2", "--resume", "auto")
    assert done.returncode == 2
    assert re.search(r"audio_182 was made by prosody 1 \(\w+\), what it is given by prosody 2 \(\w+\)", done.stderr)
