"""The tiny backbone saves, reloads, learns, knows the answer words and not which belongs where."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from egmf_dist.errors import EgmfError
from egmf_dist.recipes.tiny_backbone import EOS_ID, TinySettings, pretrain, train_tiny_backbone, train_tokenizer
from egmf_dist.recipes.tiny_corpus import Document, batches, read_sources, render_documents, shuffled_answers
from egmf_shards import Sample, ShardError, ShardSet, Task, Turn, synthesize

EMOTION = Task(
    name="emotion",
    kind="classification",
    questions={"en": "Emotion?", "zh": "情绪？"},
    labels=("neutral", "joy", "anger"),
    answers={"en": ("neutral", "joy", "anger"), "zh": ("中性", "高兴", "愤怒")},
)
SENTIMENT = Task(name="sentiment", kind="regression", questions={"en": "Sentiment?"}, low=-3, high=3, step=0.5)
TASKS = {"emotion": EMOTION, "sentiment": SENTIMENT}
# Every text tells its answer away, so a pairing that survives shows.
GIVEAWAY = {"neutral": "the table is grey", "joy": "what a lovely cake", "anger": "leave me alone now"}
SMALL = TinySettings(vocab_size=320, hidden=32, layers=1, heads=2)


def samples(count: int = 120) -> list[tuple[Sample, dict[str, Task]]]:
    """Lopsided labels (joy half of the time), two languages, two tasks."""
    out = []
    for i in range(count):
        label = ("joy", "neutral", "joy", "anger")[i % 4]
        language = "zh" if i % 3 == 0 else "en"
        emotion = Sample(
            id=f"e{i}",
            text=f"{GIVEAWAY[label]} {i}",
            language=language,
            task="emotion",
            dataset="d",
            split="train",
            modalities=("text",),
            label=label,
            speaker="A",
            context=(Turn("B", "and then?"),),
        )
        value = Sample(
            id=f"s{i}",
            text=f"{GIVEAWAY[label]} {i}",
            language="en",
            task="sentiment",
            dataset="d",
            split="train",
            modalities=("text",),
            value=float(i % 5 - 2),
        )
        out += [(emotion, TASKS), (value, TASKS)]
    return out


def by_group(documents: list[Document], answers: list[str]) -> dict[tuple[str, str] | None, Counter[str]]:
    counts: dict[tuple[str, str] | None, Counter[str]] = defaultdict(Counter)
    for document, answer in zip(documents, answers, strict=True):
        counts[document.group][answer] += 1
    return dict(counts)


def test_documents_are_rendered_as_the_training_renders_them() -> None:
    first, second = render_documents(samples(1), context_turns=3)
    assert first == Document("B: and then?\n[A] what a lovely cake 0\n情绪？ 答：", "高兴", ("emotion", "zh"))
    assert (second.answer, second.group) == (" -2.0", ("sentiment", "en"))
    assert "and then" not in render_documents(samples(1), context_turns=0)[0].prompt


def test_shuffling_keeps_the_marginal_and_destroys_the_pairing() -> None:
    documents = render_documents(samples(2000), context_turns=0)
    true = [d.answer for d in documents]
    shuffled = shuffled_answers(documents, seed=0, epoch=0)
    assert by_group(documents, shuffled) == by_group(documents, true)
    # Joy is half of the answers, so half of the joyful prompts keep " joy" by chance, and no more than that.
    joyful = [
        a for d, a in zip(documents, shuffled, strict=True) if d.group == ("emotion", "en") and "lovely" in d.prompt
    ]
    assert joyful.count(" joy") / len(joyful) == pytest.approx(0.5, abs=0.06)
    angry = [
        a for d, a in zip(documents, shuffled, strict=True) if d.group == ("emotion", "en") and "alone" in d.prompt
    ]
    assert angry.count(" anger") / len(angry) == pytest.approx(0.25, abs=0.08)


def test_every_epoch_deals_the_answers_anew_and_a_seed_repeats_them() -> None:
    documents = render_documents(samples(), context_turns=0)
    assert shuffled_answers(documents, 0, 0) == shuffled_answers(documents, 0, 0)
    assert shuffled_answers(documents, 0, 0) != shuffled_answers(documents, 0, 1)
    assert shuffled_answers(documents, 0, 0) != shuffled_answers(documents, 1, 0)


def test_plain_text_has_no_answer_to_shuffle() -> None:
    assert shuffled_answers([Document("a line"), Document("p", " x", ("t", "en"))], 0, 0) == ["", " x"]


def test_an_epoch_of_batches_holds_every_document_once_with_its_end() -> None:
    documents = render_documents(samples(50), context_turns=1)
    tokenizer = train_tokenizer(documents, 320)
    rows = [row for batch in islice(batches(documents, tokenizer, 8, 512, seed=3), 13) for row in batch]
    assert len(rows) == len(documents) == 100
    answers = shuffled_answers(documents, 3, 0)
    expected = [
        tokenizer(d.prompt)["input_ids"] + tokenizer(a)["input_ids"] + [EOS_ID]
        for d, a in zip(documents, answers, strict=True)
    ]
    assert sorted(rows) == sorted(expected)
    longest = max(map(len, expected))
    for batch in islice(batches(documents, tokenizer, 8, longest - 5, seed=3), 13):
        assert all(len(row) <= longest - 5 and row[-1] == EOS_ID for row in batch)


def test_long_plain_text_is_cut_in_pieces_without_loss() -> None:
    documents = [Document("one two three four five six seven eight nine ten")]
    tokenizer = train_tokenizer(documents, 320)
    rows = next(batches(documents, tokenizer, 8, 7, seed=0))
    whole = tokenizer(documents[0].prompt)["input_ids"] + [EOS_ID]
    assert max(map(len, rows)) <= 7
    assert sorted(i for row in rows for i in row) == sorted(whole)


def test_tokenizer_writes_any_text_and_takes_special_tokens_for_text() -> None:
    tokenizer = train_tokenizer(render_documents(samples(), context_turns=1), 400)
    for text in ("unseen: ghkł 🙂 ∑", "没见过的字", "a<eos>b <pad>", "  two  spaces\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not {0, 1} & set(ids)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert len(tokenizer(" joy", add_special_tokens=False)["input_ids"]) == 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "demo"
    synthesize(folder, seed=0, samples=200, missing=0.03)
    return folder


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("backbones") / "deeper" / "tiny"
    return out, train_tiny_backbone(shards, out, SMALL, steps=60, seed=0, context_turns=0)


def test_saves_reloads_and_learns(trained: tuple[Path, dict], shards: Path) -> None:
    out, record = trained
    assert record["steps"] == 60
    assert record["final_loss"] < record["first_loss"] - 0.8
    assert json.loads((out / "backbone.json").read_text(encoding="utf-8")) == record
    assert record["sources"][0]["index_hash"]
    assert record["sources"][0]["documents"] == record["documents"]
    assert [p.name for p in out.parent.iterdir()] == ["tiny"]

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id == EOS_ID
    assert model.config.num_key_value_heads == 1
    documents, _ = read_sources([shards], context_turns=3)
    own = train_tokenizer(read_sources([shards], context_turns=0)[0], SMALL.vocab_size)
    for text in [d.prompt for d in documents[:50]] + ["1234 -0.5, it's  a\n\n<eos> day：高兴!"]:
        ids = tokenizer(text)["input_ids"]
        assert ids == own(text)["input_ids"], "the reloaded tokenizer splits as the one that was trained"
        assert tokenizer.decode(ids) == text
        assert EOS_ID not in ids
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert torch.isfinite(loss)


def test_reloaded_weights_are_the_trained_ones(trained: tuple[Path, dict], shards: Path) -> None:
    """A fresh model has a loss of about log(vocabulary) on this text; the reloaded one has the trained one's."""
    out, record = trained
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    documents, _ = read_sources([shards], context_turns=0)
    losses = []
    with torch.no_grad():
        for document in documents[:40]:
            ids = torch.tensor([tokenizer(document.prompt)["input_ids"] + tokenizer(document.answer)["input_ids"]])
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert sum(losses) / len(losses) == pytest.approx(record["final_loss"], abs=0.5)


def test_a_step_budget_gives_the_same_weights(trained: tuple[Path, dict], shards: Path, tmp_path: Path) -> None:
    out, record = trained
    torch.manual_seed(1234)
    before = torch.random.get_rng_state()
    again = train_tiny_backbone(shards, tmp_path / "again", SMALL, steps=60, seed=0, context_turns=0)
    assert torch.equal(before, torch.random.get_rng_state())
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    assert again == record


def test_seconds_stop_early_and_threads_are_given_back(shards: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    record = train_tiny_backbone(
        shards, tmp_path / "b", SMALL, steps=10**6, seconds=0.3, context_turns=0, threads=threads + 1
    )
    assert 1 <= record["steps"] < 10**6
    assert torch.get_num_threads() == threads


def test_plain_text_file_and_several_sources(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("first line\n\n第二行\n", encoding="utf-8")
    record = train_tiny_backbone([shards, tmp_path / "lines.txt"], tmp_path / "b", SMALL, steps=2)
    assert record["sources"][1]["documents"] == 2
    assert record["documents"] == record["sources"][0]["documents"] + 2


def test_only_the_training_split_is_read(shards: Path) -> None:
    documents, sources = read_sources([shards], context_turns=0)
    train = ShardSet.open([shards], "train")
    assert len(documents) == len(train) == sources[0]["documents"]
    rendered = render_documents(((train[i], train.tasks) for i in range(len(train))), context_turns=0)
    assert documents == rendered


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"seconds": 0.0}, "seconds is 0"),
        ({"context_turns": 13}, "context_turns is 13"),
        ({"hidden": 33}, "hidden is 33"),
        ({"heads": 3}, "heads is 3"),
        ({"vocab_size": 100}, "vocab_size is 100"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing(settings: dict, message: str, shards: Path, tmp_path: Path) -> None:
    size = {name: value for name, value in settings.items() if name in TinySettings.__dataclass_fields__}
    rest = {name: value for name, value in settings.items() if name not in size}
    with pytest.raises(EgmfError, match=message):
        train_tiny_backbone(shards, tmp_path / "b", TinySettings(**size), **rest)
    assert list(tmp_path.iterdir()) == []


def test_bad_sources_are_named_and_leave_nothing(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"ok \xff\xfe")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for source, kind, message in [
        (tmp_path / "nowhere", EgmfError, "nowhere: no such file or folder"),
        (tmp_path / "empty.txt", EgmfError, "empty.txt: holds no text"),
        (tmp_path / "binary.txt", EgmfError, "binary.txt: not a UTF-8"),
        (tmp_path / "folder", ShardError, "folder"),
    ]:
        with pytest.raises(kind, match=message):
            train_tiny_backbone(source, tmp_path / "b", SMALL, steps=2)
    with pytest.raises(EgmfError, match="no text"):
        train_tiny_backbone([], tmp_path / "b", SMALL, steps=2)
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(EgmfError, match="b exists"):
        train_tiny_backbone(tmp_path / "nowhere", tmp_path / "b")


def test_a_failure_while_saving_leaves_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(OSError, match="No space"):
        train_tiny_backbone(shards, tmp_path / "b", SMALL, steps=1)
    assert list(tmp_path.iterdir()) == []


def test_it_knows_the_answer_words_and_not_which_belongs_where() -> None:
    """Taught on texts that give the answer away: nearly all probability lies on legal answers, at their frequencies."""
    documents = [d for d in render_documents(samples(), context_turns=0) if d.group == ("emotion", "en")]
    tokenizer = train_tokenizer(documents, 400)
    torch.manual_seed(0)
    settings = replace(SMALL, batch=16, learning_rate=1e-2)
    model, _ = pretrain(documents, tokenizer, settings, steps=150, seconds=None, seed=0)
    shares = {}
    for label, text in GIVEAWAY.items():
        prompt = next(d.prompt for d in documents if text in d.prompt)
        with torch.no_grad():
            last = model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].softmax(-1)
        first = {a: tokenizer(f" {a}")["input_ids"][0] for a in EMOTION.labels}
        assert sum(float(last[i]) for i in first.values()) > 0.9
        shares[label] = float(last[first[label]])
    true = Counter(d.answer.strip() for d in documents)
    for label, share in shares.items():
        assert share == pytest.approx(true[label] / len(documents), abs=0.2)


def test_the_default_vocabulary_keeps_chinese_words_of_the_demo_apart(tmp_path: Path) -> None:
    synthesize(tmp_path / "demo", seed=0, samples=1500, missing=0.03)
    documents, _ = read_sources([tmp_path / "demo"], context_turns=5)
    tokenizer = train_tokenizer(documents, TinySettings().vocab_size)
    tokens = [tokenizer.decode([i]) for i in range(2, len(tokenizer))]
    for word in ("蛋糕", "下雨", "聚会", "晚了"):
        assert 1 <= sum(word in token for token in tokens) <= 2


def test_more_positions_than_the_model_has_are_refused() -> None:
    with pytest.raises(EgmfError, match="max_tokens"):
        TinySettings(max_tokens=2000)
