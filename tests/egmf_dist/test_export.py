"""A trained model as a folder, and the three lines that use it: the same answers, from little more than torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import TUNED
from transformers import AutoModelForCausalLM

from egmf_dist import Utterance, load
from egmf_dist.config import Config, dump_config
from egmf_dist.errors import EgmfError
from egmf_dist.files import write_json
from egmf_dist.formats import read_stamped, sealed
from egmf_dist.inference.export import export
from egmf_dist.inference.predictions import predictions
from egmf_dist.inference.scorer import score
from egmf_dist.run.folder import Run
from egmf_launcher.cli import main
from egmf_shards.importers.features import FeatureFolder


def expected(model, scorer, samples):
    scores, cut = score(scorer, model, samples, [1.0] * len(samples))
    return [row["probabilities"] for row in predictions(samples, scorer.collator.tasks, scores, model.diagnostics, cut)]


def asked(samples):
    """The same as a user has it."""
    return [
        {
            "id": s.id, "text": s.text, "speaker": s.speaker, "context": [tuple(turn) for turn in s.context],
            "features": s.features, "language": s.language,
        }
        for s in samples
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "merge"), [*((kind, False) for kind in TUNED), ("lora", True), ("dora", True)])
def test_an_exported_model_gives_the_answers_of_the_run(trained, make_samples, tmp_path, kind, merge):
    run, model, scorer = trained(kind)
    samples = make_samples(8)
    export(run, tmp_path / "out", merge)
    loaded = load(tmp_path / "out")
    found = {(answer.id, answer.task): answer for answer in loaded.predict(asked(samples), batch_size=3)}
    if not merge:  # the run itself is as good
        dump_config(Config(), run.config)
        assert load(run.folder).predict(asked(samples)[:1])[0].probabilities == pytest.approx(
            found[samples[0].id, "emotion"].probabilities, abs=1e-5
        )
    assert len(found) == 16  # both tasks are asked of each
    for sample, p in zip(samples, expected(model, scorer, samples), strict=True):
        answer = found[sample.id, sample.task]
        np.testing.assert_allclose(list(answer.probabilities.values()), p, atol=1e-5 if not merge else 1e-4)
        assert answer.absent == tuple(m for m in ("text", "audio", "vision") if m not in sample.modalities)
        assert {"experts", "modalities"} & answer.diagnostics.keys() or answer.diagnostics


BF16 = 0.1
"""How far a probability may be from fp32's; docs/use.md says so."""


def test_in_bf16_the_answers_are_near_those_of_fp32(trained, make_samples, tmp_path):
    run, _, _ = trained("lora")
    samples = asked(make_samples(16))
    export(run, tmp_path / "out")
    whole, half = (load(tmp_path / "out", dtype=dtype).predict(samples) for dtype in (torch.float32, torch.bfloat16))
    apart = [
        max(abs(p - other.probabilities[name]) for name, p in one.probabilities.items())
        for one, other in zip(whole, half, strict=True)
    ]
    assert 1e-6 < max(apart) < BF16
    assert np.mean([one.answer == other.answer for one, other in zip(whole, half, strict=True)]) > 0.9


def test_the_adapter_is_pefts_own(trained, families, tmp_path):
    """On the plain model, by PEFT alone, the logits are the trained LLM's."""
    from peft import PeftModel

    run, model, _ = trained("lora")
    export(run, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(families["qwen3"])
    ids = torch.arange(20)[None] % 300
    with torch.no_grad():
        before = plain(ids).logits
        with_adapter = PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter").eval()(ids).logits
        torch.testing.assert_close(with_adapter, model.backbone(ids).logits, rtol=1e-5, atol=1e-5)
    assert (with_adapter - before).abs().max() > 1e-2


def test_a_run_is_the_same_model_in_every_process(trained, tmp_path):
    """What a prediction is gone on by: PEFT keeps names in sets, whose order is another one in each process."""
    run, _, _ = trained("lora")
    program = (
        "import sys, json, pathlib\n"
        "from egmf_dist.inference.export import export\n"
        "from egmf_dist.run.folder import Run\n"
        "print(json.dumps(export(Run(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))['sha256']))\n"
    )
    found = []
    for seed in "123":
        command = [sys.executable, "-c", program, str(run.folder), str(tmp_path / seed)]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1] == found[2]
    assert "adapter/adapter_config.json" in found[0]


BLOCKED = """
import importlib.util, sys
names = {"deepspeed", "ray", "webdataset", "isal", "orjson", "jsonargparse", "rich", "triton", "sklearn", "scipy",
         "pandas", "matplotlib", "braceexpand", "tensorboard", "typeshed_client", "docstring_parser", "aiohttp"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in names else found(name, package)
"""


def test_three_lines_need_torch_transformers_peft_and_safetensors_alone(trained, make_samples, tmp_path):
    run, model, scorer = trained("lora")
    export(run, tmp_path / "out")
    program = BLOCKED + (
        "from egmf_dist import load\n"
        f"model = load({str(tmp_path / 'out')!r})\n"
        "answers = model.predict('i am glad', tasks=['emotion'])\n"
        "import json; print(json.dumps(dict(answers[0].probabilities)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sample = replace(make_samples(1)[0], text="i am glad", speaker="", context=(), features={}, modalities=("text",))
    (p,) = expected(model, scorer, [sample])
    np.testing.assert_allclose(list(json.loads(done.stdout).values()), p, atol=1e-5)


def test_what_may_be_asked(trained, tmp_path):
    run, _, _ = trained("lora")
    export(run, tmp_path / "out")
    model = load(tmp_path / "out")
    assert repr(model).splitlines()[1:] == [
        "  emotion (en, zh): neutral, joy, anger",
        "  sentiment (en, zh): -1.0 to 1.0",
        "  reads text and audio 6, vision 5 numbers a frame",
    ]
    np.save(tmp_path / "a.npy", np.ones((3, 6)))
    spoken = Utterance("i am glad", "A", [("B", "no"), "wait"], {"audio": tmp_path / "a.npy"})
    (emotion, number), (chinese, *_) = model.predict(spoken), model.predict(["我很高兴"])
    assert (emotion.language, chinese.language) == ("en", "zh")
    assert chinese.answer in ("中性", "高兴", "愤怒")
    assert emotion.label in ("neutral", "joy", "anger")
    assert emotion.probability == max(emotion.probabilities.values())
    assert emotion.absent == ("vision",)
    assert -1 <= number.interval[0] <= number.interval[1] <= 1
    assert number.value == pytest.approx(sum(float(word) * p for word, p in number.probabilities.items()))
    without = model.predict(replace(spoken, features={}))[0]
    assert without.absent == ("audio", "vision")
    assert without.probabilities != emotion.probabilities
    whole = model.predict([spoken, "no"] * 3, tasks=["emotion"])
    assert [a.id for a in whole] == list("012345")
    assert whole[0].probabilities == pytest.approx(emotion.probabilities, abs=1e-5)


def test_features_are_read_as_for_training(exported, tmp_path):
    """The importers' own reader and repairs: one vector is one frame, axes of 1 go, zeros are an absent stream."""
    model = load(exported)
    frames = np.arange(12, dtype=np.float64).reshape(2, 6)
    np.save(tmp_path / "flat.npy", frames[0])
    np.save(tmp_path / "axis.npy", np.asfortranarray(frames[None]))
    np.save(tmp_path / "zero.npy", np.zeros((4, 6)))
    broken = frames.copy()
    broken[1, :2] = np.nan, 1e300
    np.save(tmp_path / "nan.npy", broken)
    folder = FeatureFolder(tmp_path, "audio")
    for name in ("flat", "axis", "zero", "nan"):
        file = tmp_path / f"{name}.npy"
        right = folder.load([file.name])
        for given in (file, np.load(file), np.load(file).tolist()):
            (sample, _) = model.samples(Utterance("i am glad", features={"audio": given}), 0)
            if right is None:
                assert sample.modalities == ("text",)
                assert sample.features == {}
            else:
                assert sample.modalities == ("text", "audio")
                assert sample.features["audio"].tobytes() == right.tobytes()
                assert sample.features["audio"].shape == right.shape
    (answer, _) = model.predict({"text": "i", "features": {"audio": tmp_path / "zero.npy"}})
    assert (answer.absent, answer.why_absent) == (("audio", "vision"), {"audio": "nothing but zeros"})
    (answer, _) = model.predict({"text": "i", "features": {"audio": [[float("nan")] * 6]}})
    assert answer.why_absent == {"audio": "nothing but zeros (numbers that were not finite set to 0: 6)"}
    (answer, _) = model.predict({"text": "i", "features": {"audio": broken}})
    assert answer.repaired == {"audio": "numbers that were not finite set to 0: 2"}
    assert answer.absent == ("vision",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (7, "utterance 0: is a int; give a text, a mapping"),
        ({"words": "i am"}, "utterance 0: has no field 'words'; it may have text, speaker, context"),
        ({"text": "i", "features": {"eda": np.ones((2, 2))}}, "the model has no stream 'eda'; it has audio, vision"),
        ({"text": "i", "features": {"audio": np.ones((2, 7))}}, "audio is 7 wide; this model's is 6"),
        (
            {"text": "i", "features": {"audio": np.ones((2, 3, 6))}},
            r"audio: is float64 \[2, 3, 6\]; \[frames, dim\] or ",
        ),
        (
            {"text": "i", "features": {"audio": np.ones((0, 6))}},
            r"audio: is float64 \[0, 6\]; \[frames, dim\] or \[dim\]",
        ),
        ({"text": "i", "features": {"audio": [["1"] * 6]}}, "audio: is <U1 .*; real numbers are needed"),
        ({"text": "i", "features": {"audio": [[1] * 6, [1]]}}, r"audio: is no array of numbers \(ValueError\)"),
        ({"text": "i", "features": {"audio": torch.ones(1, 6, device="meta")}}, r"audio: is no array of numbers"),
        ({"text": "i", "features": {"audio": "gone.npy"}}, "audio: gone.npy: cannot be read .*No such file"),
        ({"text": "i", "features": {"audio": "a\0.npy"}}, "audio: .*null byte"),
        ({"text": "i", "features": {"audio": f"{'x' * 300}/a.npy"}}, "File name too long"),
        (
            {"text": " ", "features": {"audio": np.zeros((2, 6))}},
            "nothing to answer from: audio: nothing but zeros; and",
        ),
        ({"text": "i", "context": "no"}, "utterance 0: its context is no list of turns"),
        ({"text": "i", "context": [{"speaker": "A"}]}, "utterance 0: its context holds "),
        ({"text": "i", "speaker": None}, "utterance 0: its speaker is a NoneType; a string is needed"),
        ("", "utterance 0: has neither text nor features"),
        ({"text": "i", "language": "fr"}, "no task is asked in 'fr'; the model knows en, zh"),
    ],
)
def test_what_cannot_be_asked_is_one_line(trained, tmp_path_factory, given, says):
    run, _, _ = trained("lora")
    out = run.folder.parent / "asked"
    if not out.exists():
        export(run, out)
    with pytest.raises(EgmfError, match=says) as told:
        load(out).predict([given])
    assert "\n" not in str(told.value)


def test_a_folder_that_cannot_be_loaded_is_one_line(trained, families, tmp_path, capsys):
    run, _, _ = trained("lora")
    out = tmp_path / "out"
    assert main(["export", str(run.folder), "--out", str(out)]) == 0
    assert "exported to" in capsys.readouterr().out
    assert main(["export", str(run.folder), "--out", str(out)]) == 2
    assert f"--out {out}: an export lies there; name another folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "nothing trained in it yet" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(EgmfError, match=r"no egmf.json in it"):
        load(tmp_path)
    with pytest.raises(EgmfError, match="is another LLM than it was trained with"):
        load(out, backbone=str(families["qwen2"]))
    with pytest.raises(EgmfError, match=r"its LLM is not at 'gone'; say where it lies"):
        load(out, backbone="gone")
    evil = json.loads((out / "egmf.json").read_text())
    for part, value in (("model", {"fusion": "os:getcwd"}), ("backbone", {"trust_remote_code": True})):
        other = tmp_path / part
        shutil.copytree(out, other)
        changed = evil | {"config": evil["config"] | {part: evil["config"][part] | value}}
        (other / "egmf.json").write_text(json.dumps(changed))
        with pytest.raises(EgmfError, match=r"loading it would run .*; look at that code, then load"):
            load(other)
    assert not {"liger", "attn_implementation", "gradient_checkpointing"} & evil["config"]["backbone"].keys()
    fusion = out / "fusion.safetensors"
    content = fusion.read_bytes()
    fusion.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(EgmfError, match=r"fusion.safetensors is damaged"):
        load(out)
    fusion.unlink()
    with pytest.raises(EgmfError, match=r"fusion.safetensors is missing"):
        load(out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| emotion | en, zh | neutral, joy, anger |" in card
    assert f'load("{out.name}")' in card
    assert Path(out / "adapter" / "adapter_config.json").is_file()


def test_a_run_is_found_from_another_folder(trained, families, tmp_path, monkeypatch, make_samples):
    """Its backbone's path is relative to where it was started; an export names it absolutely."""
    run, model, scorer = trained("lora")
    (tmp_path / "home").mkdir()
    shutil.copytree(families["qwen3"], tmp_path / "home" / "bb" / "toy")
    moved = Run(tmp_path / "home" / "run")
    shutil.copytree(run.folder, moved.folder)
    about_file = next(moved.adapters.glob("*/adapter.json"))
    about = read_stamped(about_file)
    about["config"]["backbone"]["path"] = "bb/toy"
    write_json(about_file, sealed(about))
    dump_config(Config(), moved.config, tmp_path / "home")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    export(moved, Path("out"))
    (sample,) = make_samples(1)
    found = load("out").predict(asked([sample]), tasks=[sample.task])
    np.testing.assert_allclose(list(found[0].probabilities.values()), *expected(model, scorer, [sample]), atol=1e-5)
    about["config"]["backbone"]["quantise"] = "4bit"
    about["config"]["training"]["zero_stage"] = 1
    write_json(about_file, sealed(about))
    with pytest.raises(EgmfError, match=r"--merge: weights of four bits cannot be merged"):
        export(moved, Path("merged"), merge=True)
    assert [path.name for path in Path().iterdir()] == ["out"]


def test_the_card_shows_figures_of_the_exported_adapter_alone(trained, tmp_path):
    run, _, _ = trained("dora")
    run.evaluations.mkdir()
    task = {"emotion": {"n": 5, "metrics": {"weighted_f1": 0.4321}}}
    for split, step in (("valid", 7), ("test", 1)):
        result = {"tasks": task, "checkpoint": f"best/step-{step:07d}"}
        run.evaluation(split).write_text(json.dumps(result))
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| valid | emotion | weighted_f1 | 5 | 0.432 |" in card
    assert "| test |" not in card
