"""The importers on small tables: what becomes of each column, context, features, and of every kind of bad input."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from egmf_shards import Sample, ShardError, ShardSet, import_label_csv, import_meld
from egmf_shards.format.manifest import dims_of
from egmf_shards.format.text import clean_text

MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def meld_row(text: str, speaker: str, emotion: str, dialogue: int, utterance: int) -> str:
    return f'1,"{text}",{speaker},{emotion},neutral,{dialogue},{utterance},1,1,"0:0","0:1"'


@pytest.fixture
def meld(tmp_path: Path) -> Path:
    source = tmp_path / "csv"
    source.mkdir()
    train = [
        meld_row("Second.", "Ross", "joy", 0, 2),  # the file need not be in order; numbers may be left out
        meld_row("It\x92s  first\u00a0", "Rachel", "neutral", 0, 0),
        *(meld_row(f"line {u}", f"S{u % 2}", "anger", 3, u) for u in range(15)),
    ]
    for name, rows in {
        "train": train,
        "dev": [meld_row("Dev", "A", "fear", 0, 0)],
        "test": [meld_row("Test", "B", "Surprise", 0, 0)],
    }.items():
        (source / f"{name}_sent_emo.csv").write_text("\n".join([MELD_HEADER, *rows]) + "\n", encoding="utf-8")
    return source


def by_id(out: Path) -> dict[str, Sample]:
    return {s.id: s for split in ("train", "valid", "test") for s in ShardSet.open([out], split)}


def test_meld(meld, tmp_path):
    import_meld(meld, tmp_path / "out")
    samples = by_id(tmp_path / "out")
    assert len(samples) == 19
    first, second = samples["meld-train-dia0-utt0"], samples["meld-train-dia0-utt2"]
    assert (first.text, first.speaker, first.label, first.split, first.context) == (
        "It’s first",
        "Rachel",
        "neutral",
        "train",
        (),
    )
    assert [(t.speaker, t.text) for t in second.context] == [("Rachel", "It’s first")]
    assert (second.turn, second.dialogue, second.language, second.modalities) == (2, "train-dia0", "en", ("text",))
    last = samples["meld-train-dia3-utt14"]
    assert [t.text for t in last.context] == [f"line {u}" for u in range(2, 14)]
    assert samples["meld-dev-dia0-utt0"].split == "valid"
    assert samples["meld-test-dia0-utt0"].label == "surprise"


def test_meld_features_and_their_rules(meld, tmp_path, capsys):
    rng = np.random.default_rng(0)
    audio = tmp_path / "audio"
    for split in ("train", "dev", "test"):
        (audio / split).mkdir(parents=True)
    frames, vector = rng.normal(size=(4, 3)), rng.normal(size=3).astype(np.float32)
    np.save(audio / "train" / "dia0_utt0.npy", frames)
    np.save(audio / "dev" / "dia0_utt0.npy", vector)
    np.save(audio / "test" / "dia0_utt0.npy", np.array([[1.0, np.nan, np.inf]]))
    (audio / "train" / "dia0_utt2.npy").write_bytes(b"not numpy")
    np.save(audio / "train" / "dia3_utt0.npy", np.array([{"code": 1}]), allow_pickle=True)
    np.save(audio / "train" / "dia3_utt1.npy", np.zeros((0, 3)))
    np.save(audio / "train" / "dia3_utt2.npy", np.zeros((2, 2, 3)))
    np.save(audio / "train" / "dia3_utt3.npy", np.full((2, 3), np.nan))
    np.save(audio / "train" / "dia3_utt4.npy", np.array([[65504, 65505, -1e6]]))
    manifest = import_meld(meld, tmp_path / "out", audio=audio)
    samples = by_id(tmp_path / "out")
    assert np.array_equal(samples["meld-train-dia0-utt0"].features["audio"], frames.astype(np.float32))
    assert np.array_equal(samples["meld-dev-dia0-utt0"].features["audio"], vector[None])
    assert samples["meld-test-dia0-utt0"].features["audio"].tolist() == [[1.0, 0.0, 0.0]]
    assert samples["meld-train-dia3-utt4"].features["audio"].tolist() == [[65504, 65505, -1e6]]
    for absent in ("dia0-utt2", "dia3-utt0", "dia3-utt1", "dia3-utt2", "dia3-utt3", "dia3-utt9"):
        assert samples[f"meld-train-{absent}"].modalities == ("text",)
    assert manifest["source"]["features"] == {
        "audio": {
            "clips_found": 9,
            "clips_without_file": 10,
            "clips_unreadable": 4,
            "frames_kept": 7,
            "clips_with_axes_of_1_taken_off": 0,
            "clips_of_zeros": 1,
            "clips_with_non_finite_set_to_0": 2,
            "numbers_not_finite_set_to_0": 8,
            "clips_beyond_fp16": 1,
            "numbers_beyond_fp16": 2,
        }
    }
    content = (meld / "train_sent_emo.csv").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert manifest["source"]["importer_version"] == 2
    assert manifest["source"]["files"][0] == {"file": "train_sent_emo.csv", "bytes": len(content), "sha256": digest}
    assert [file["file"] for file in manifest["source"]["files"][1:]] == ["dev_sent_emo.csv", "test_sent_emo.csv"]
    assert dims_of(manifest) == {"audio": 3, "vision": 0}
    assert manifest["splits"]["train"]["missing"]["audio"] == 15
    assert "audio: clips found 9, clips without file 10" in capsys.readouterr().err


def unwritten(out: Path, message: str, call, *arguments: object, **named: object) -> None:
    """The call raises one line, and neither ``out`` nor a hidden sibling is there afterwards."""
    before = set(out.parent.iterdir())
    with pytest.raises(ShardError, match=message) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    assert set(out.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (meld_row("x", "A", "rage", 9, 0), "sample 'meld-dev-dia9-utt0': label 'rage' is not in the label space"),
        (meld_row("x", "A", "fear", 0, 0), "sample 'meld-dev-dia0-utt0': the id occurs twice"),
        (
            meld_row("x", "A", "fear", 9, 0).replace(",9,0,", ",nine,0,"),
            "line 3: Dialogue_ID is 'nine'; a whole number",
        ),
        ("1,x,A", "line 3: the row ends before column 'Emotion'"),
    ],
)
def test_a_bad_meld_row(meld, tmp_path, row, message):
    with (meld / "dev_sent_emo.csv").open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    unwritten(tmp_path / "out", message, import_meld, meld, tmp_path / "out")


def test_bad_meld_files_and_folders(meld, tmp_path):
    out = tmp_path / "out"
    test = meld / "test_sent_emo.csv"
    text = test.read_text(encoding="utf-8")
    unwritten(out, "no such folder of audio features", import_meld, meld, out, audio=tmp_path / "no")
    (tmp_path / "flat").mkdir()
    np.save(tmp_path / "flat" / "dia0_utt0.npy", np.zeros((2, 2)))
    unwritten(out, "has none of the folders train, dev, test", import_meld, meld, out, vision=tmp_path / "flat")
    (tmp_path / "flat" / "train").mkdir()
    message = "vision features of not one clip; the first looked for was train/dia0_utt0.npy"
    unwritten(out, message, import_meld, meld, out, vision=tmp_path / "flat")
    test.write_text(text.replace("Emotion", "Feeling"), encoding="utf-8")
    unwritten(
        out,
        "test_sent_emo.csv, line 1: has no column 'Emotion'; its columns are Sr No., Utterance",
        import_meld,
        meld,
        out,
    )
    test.write_text(MELD_HEADER + "\n", encoding="utf-8")
    unwritten(out, "holds no row below its header", import_meld, meld, out)
    test.write_bytes(text.replace("Test", "caf\xe9").encode("latin-1"))
    unwritten(out, "test_sent_emo.csv: not UTF-8", import_meld, meld, out)
    test.unlink()
    unwritten(out, "test_sent_emo.csv: there is no such file", import_meld, meld, out)


SIMS = """video_id,clip_id,text,label,annotation,mode
video_0001,0001,我不想,-1.0,Negative,train
video_0001,0004,好的,0.2,Positive,valid
video_0002,0001,嗯,0,Neutral,test
"""


@pytest.fixture
def sims(tmp_path: Path) -> Path:
    path = tmp_path / "label.csv"
    path.write_text(SIMS, encoding="utf-8-sig")  # with a byte-order mark, as spreadsheets write it
    return path


def test_label_csv(sims, tmp_path):
    import_label_csv(sims, tmp_path / "out", "simsv2", "zh")
    samples = by_id(tmp_path / "out")
    assert list(samples) == ["simsv2-video_0001-0001", "simsv2-video_0001-0004", "simsv2-video_0002-0001"]
    first, second, third = samples.values()
    assert (first.value, first.split, first.text, first.task) == (-1.0, "train", "我不想", "simsv2-sentiment")
    assert (second.turn, second.dialogue, second.context, second.split) == (1, "simsv2-video_0001", (), "valid")
    assert (third.value, third.split, third.modalities) == (0.0, "test", ("text",))
    task = ShardSet.open([tmp_path / "out"], "test").tasks["simsv2-sentiment"]
    assert (task.convention, task.values[0], task.values[-1], len(task.values)) == ("sims", -1.0, 1.0, 11)
    assert "-1" in task.questions["zh"]


def test_label_csv_with_few_columns_another_range_and_a_blank_text(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text('mode,label,text,clip_id,video_id\ndev,3,"a\nb",$1,-xY\ntrain,-2.5,  ,2,-xY\n', encoding="utf-8")
    import_label_csv(path, tmp_path / "out", "mosi", "en", low=-3, high=3, step=0.5, convention="mosei")
    samples = {s.id: s for split in ("train", "valid") for s in ShardSet.open([tmp_path / "out"], split)}
    assert samples["mosi--xY-_u24_1"].text == "a b"
    assert samples["mosi--xY-_u24_1"].source_id == "-xY$_$$1"
    assert samples["mosi--xY-2"].modalities == ()
    with pytest.raises(ShardError, match=r"language is 'fr'.*give one in words"):
        import_label_csv(path, tmp_path / "fr", "mosi", "fr")


@pytest.mark.parametrize("pattern", ["{}/{}.npy", "{}_{}.npy", "{}$_${}.npy"])
def test_label_csv_features(sims, tmp_path, pattern):
    vision = tmp_path / "vision"
    file = vision / pattern.format("video_0001", "0004")
    os.makedirs(file.parent)
    np.save(file, np.arange(6.0).reshape(3, 2))
    manifest = import_label_csv(sims, tmp_path / "out", "simsv2", "zh", vision=vision)
    samples = by_id(tmp_path / "out")
    assert samples["simsv2-video_0001-0004"].features["vision"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert manifest["source"]["features"]["vision"]["clips_without_file"] == 2


@pytest.mark.parametrize(
    "text",
    ["{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 74), }", "(((", "-" * 9000 + "1", ""],
    ids=["huge", "open", "deep", "none"],
)
def test_a_hostile_feature_file_counts_as_lacking(sims, tmp_path, text):
    (tmp_path / "vision").mkdir()
    file = tmp_path / "vision" / "video_0001_0004.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(100))
    np.save(tmp_path / "vision" / "video_0001_0001.npy", np.ones((2, 3)))
    manifest = import_label_csv(sims, tmp_path / "out", "simsv2", "zh", vision=tmp_path / "vision")
    assert manifest["source"]["features"]["vision"]["clips_unreadable"] == 1
    assert "vision" not in by_id(tmp_path / "out")["simsv2-video_0001-0004"].features


def test_a_table_cannot_reach_out_of_the_feature_folder(tmp_path):
    np.save(tmp_path / "secret.npy", np.zeros((2, 2)))
    (tmp_path / "audio").mkdir()
    np.save(tmp_path / "audio" / "a_1.npy", np.ones((2, 2)))
    path = tmp_path / "l.csv"
    path.write_text("video_id,clip_id,text,label,mode\na,1,x,0,train\n..,secret,y,0,train\n", encoding="utf-8")
    import_label_csv(path, tmp_path / "out", "d", "en", audio=tmp_path / "audio")
    read = ShardSet.open([tmp_path / "out"], "train")
    assert [s.modalities for s in read] == [("text", "audio"), ("text",)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label,", "score,", "has no column 'label'; its columns are video_id, clip_id, text, score"),
        ("0.2", "1.2", r"sample 'simsv2-video_0001-0004': value 1.2 is outside the range \[-1.0, 1.0\]"),
        ("0.2", "nan", "value nan is outside"),
        ("0.2", "much", "line 3: sample 'simsv2-video_0001-0004': label is 'much'; a number is needed"),
        ("valid", "dev2", "mode is 'dev2'; it must be one of train, valid"),
        ("0004", "0001", "sample 'simsv2-video_0001-0001': the id occurs twice"),
        ("0004", " ", "line 3: video_id is 'video_0001' and clip_id is ''"),
    ],
)
def test_bad_label_csv(sims, tmp_path, old, new, message):
    sims.write_text(SIMS.replace(old, new), encoding="utf-8")
    unwritten(tmp_path / "out", message, import_label_csv, sims, tmp_path / "out", "simsv2", "zh")


def test_bad_label_csv_arguments(sims, tmp_path):
    out = tmp_path / "out"
    unwritten(out, "dataset is 'a b'", import_label_csv, sims, out, "a b", "zh")
    unwritten(out, "no such file", import_label_csv, tmp_path / "no.csv", out, "a", "zh")
    unwritten(out, "low < high", import_label_csv, sims, out, "a", "zh", low=1, high=-1)
    unwritten(out, "convention is 'x'", import_label_csv, sims, out, "a", "zh", convention="x")
    (tmp_path / "empty").mkdir()
    unwritten(out, "audio features of not one clip", import_label_csv, sims, out, "a", "zh", audio=tmp_path / "empty")


def test_clean_text():
    assert clean_text("don\x92t \x93quote\x94 wait\x85\x81\n next\u00a0one ") == "don’t “quote” wait… next one"
    assert clean_text("café ’ 好 ！") == "café ’ 好 ！"
