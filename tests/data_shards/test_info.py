"""``describe`` and its tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from egmf_shards import ShardError, ShardSet, Task, describe, print_info, synthesize
from egmf_shards.check.info import PERCENTILES, present_lengths, target_values
from egmf_shards.format.index import load_index
from egmf_shards.format.manifest import read_manifest


def printed(folder: Path, width: int = 160, **options: object) -> str:
    text = io.StringIO()
    print_info(folder, Console(file=text, width=width, **options))
    return text.getvalue()


def test_describe(folder):
    info = describe(folder())
    assert info["tasks"] == {"mood": "classification", "score": "regression"}
    assert info["shards"] == 5
    assert info["splits"]["train"]["samples"] == 18
    lengths = info["splits"]["train"]["lengths"]["audio_frames"]
    assert len(lengths) == len(PERCENTILES) == 6
    assert 1 <= lengths[0] <= lengths[2] <= lengths[-1] <= 7
    assert lengths == sorted(lengths)
    assert info["ceilings"] is None
    assert info["features"]["audio"]["padding"] is None, "whoever wrote the folder recorded nothing of it"


def test_lengths_are_those_of_samples_that_have_the_modality(folder, sample):
    out = folder()
    samples = [s for s in map(sample, range(30)) if s.split == "train"]
    found = present_lengths(load_index(out), "train", "audio_frames").tolist()
    assert sorted(found) == sorted(len(s.features["audio"]) for s in samples if "audio" in s.features)
    assert len(found) < len(samples)
    info = describe(out)
    assert info["splits"]["train"]["lengths"]["audio_frames"][2] == int(np.median(found))
    assert info["features"]["audio"]["frames"] == sum(
        len(s.features["audio"]) for s in map(sample, range(30)) if "audio" in s.features
    )


def test_print_info(tmp_path):
    synthesize(tmp_path / "demo", samples=30)
    text = printed(tmp_path / "demo")
    for part in ("demo", "surprise", "sentiment", "audio+vision", "0.940", "en, zh", "audio 16", "mean of a dimension"):
        assert part in text


def test_shares_of_classes_and_of_missing_modalities(folder):
    out = folder()
    split = read_manifest(out)["splits"]["train"]
    text = printed(out)
    good, bad = split["labels"]["mood"]["good"], split["labels"]["mood"]["bad"]
    rows = {
        line.split()[1]: line for line in text.splitlines() if line.startswith("│ good") or line.startswith("│ bad")
    }
    assert f"{good} {good / (good + bad):6.1%}" in rows["good"]
    longest = max(rows["good"].count("█"), rows["bad"].count("█"))
    assert longest >= 4
    missing = split["missing"]["audio"]
    assert f"{missing} ({missing / split['samples']:.1%})" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_is_no_wider_than_the_terminal(folder, width):
    assert max(map(len, printed(folder(), width).splitlines())) <= width


def test_a_terminal_without_unicode(folder):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_info(folder(), Console(file=file, width=100))
    file.flush()
    assert b"##" in raw.getvalue()


def test_what_importers_removed_and_repaired(folder, sample):
    counts = {"clips_found": 20, "frames_kept": 90, "padding_frames_removed": 210, "numbers_not_finite_set_to_0": 1234}
    source = {
        "importer": "mmsa",
        "files": [{"file": "x.pkl", "bytes": 1, "sha256": "0", "known_as": "SIMS-V2"}],
        "features": {"audio": counts},
    }
    out = folder(provenance=source)
    info = describe(out)
    assert info["features"]["audio"]["padding"] == {"stored": 90, "padded": 300}
    assert info["features"]["audio"]["counts"] == {"clips_found": 20, "numbers_not_finite_set_to_0": 1234}
    assert info["features"]["vision"]["counts"] == {}
    text = printed(out)
    for part in ("made by: mmsa from x.pkl (SIMS-V2)", "210 frames (70.0%)", "numbers not finite set to 0", "1,234"):
        assert part in text


def test_statistics_name_constant_dimensions_and_those_beyond_fp16(folder, sample):
    def make(i: int):
        base = sample(5 * i, id=f"x{i}", modalities=("text", "audio", "vision"))
        audio = np.random.default_rng(i).normal(size=(4, 5)).astype(np.float32)
        audio[:, 1], audio[:, 3] = 0.1, 0.0
        audio[0, 4] = -65505
        return replace(base, features={"audio": audio, "vision": np.full((2, 3), 65504, np.float32)})

    info = describe(folder(samples=map(make, range(6))))
    audio, vision = info["features"]["audio"]["train"], info["features"]["vision"]["train"]
    assert (audio["frames"], audio["constant"], audio["beyond_fp16"], audio["largest"]) == (24, 2, 1, 65505)
    assert audio["mean"][0] < -10_000
    assert (vision["constant"], vision["beyond_fp16"], vision["std"]) == (3, 0, [0, 0])


def test_the_values_of_regressions_are_those_of_the_samples(folder, sample):
    out = folder(samples=(sample(i, value=i / 30) if i % 5 == 4 else sample(i) for i in range(30)))
    found = target_values(out)
    assert list(found) == ["score"]
    assert list(found["score"]) == ["test"]
    samples = ShardSet.open([out], "test")
    assert found["score"]["test"].tolist() == [s.value for s in samples if s.task == "score"]
    shard = next(out.glob("test*.tar"))
    shard.write_bytes(shard.read_bytes().replace(b'"value":', b'"valuf":'))
    with pytest.raises(ShardError, match=r"test-000000.tar, sample 'toy-\d+': the bytes have changed"):
        target_values(out)


def test_names_that_look_like_markup(folder, sample):
    task = Task("[/] task", "classification", {"en": "?"}, labels=("[bold]", "[/x]"), answers={"en": ("a", "b")})
    text = printed(
        folder(samples=[sample(0, task=task.name, label="[/x]")], tasks=[task], provenance={"importer": "[/]"})
    )
    assert "[bold]" in text
    assert "[/] task: classes" in text


def test_a_folder_without_features(folder, sample):
    plain = sample(0, modalities=("text",), audio=None, vision=None)
    text = printed(folder(samples=[plain]))
    assert "feature streams: none" in text
    assert "frames stored" not in text


@pytest.mark.parametrize("source", [{}, {"features": 3}, {"features": {"audio": [1]}}, {"importer": "x", "files": 3}])
def test_provenance_of_another_program(folder, source):
    assert "frames stored" in printed(folder(provenance=source))


def test_a_malformed_manifest_is_one_line(folder):
    out = folder()
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    broken = json.dumps(manifest | {"statistics": {"audio": {"frames": 3}}})
    (out / "manifest.json").write_text(broken, encoding="utf-8")
    with pytest.raises(ShardError, match=r"manifest\.json: malformed \(statistics .* --force`") as caught:
        describe(out)
    assert "\n" not in str(caught.value)


def test_a_missing_folder(tmp_path):
    with pytest.raises(ShardError, match="there is no such folder of shards"):
        print_info(tmp_path / "none")
