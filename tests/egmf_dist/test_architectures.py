"""One tiny random model of each of a dozen families, with LoRA: is every one trained and scored as it reads?

Windows are 8 positions, prompts several times as long, so a mask without its window shows.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, PromptConfig, TrainingConfig
from egmf_dist.data import Collator
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.inference.scorer import SequenceScorer, TreeScorer, choose_scorer
from egmf_dist.model.backbone import load_tokenizer, read_capabilities
from egmf_shards import Turn

STREAMS = {"audio": [6], "vision": [5]}
FIRST = PromptConfig()
MIXED = ["sliding_attention", "full_attention"]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Random weights of the usual 0.02 give logits near 0, and every fault is lost in them.
    "initializer_range": 0.3,
}
# Name: model type, what the tokenizer puts before a text, settings, the way of scoring.
FAMILIES = {
    "qwen2": ("qwen2", (), SMALL, "tree"),
    "qwen3": ("qwen3", (), SMALL | {"head_dim": 8}, "tree"),
    "llama": ("llama", ("<bos>",), SMALL, "tree"),
    "mistral": ("mistral", ("<bos>",), SMALL | {"head_dim": 8, "sliding_window": 8}, "tree"),
    "gemma2": ("gemma2", ("<bos>",), SMALL | {"head_dim": 8, "sliding_window": 8, "layer_types": MIXED}, "tree"),
    "gemma3": ("gemma3_text", ("<bos>",), SMALL | {"head_dim": 8, "sliding_window": 8, "layer_types": MIXED}, "tree"),
    "phi3": ("phi3", ("<bos>",), SMALL, "tree"),
    "glm4": ("glm4", ("[gMASK]", "<sop>"), SMALL | {"head_dim": 8}, "tree"),
    "gpt2": (
        "gpt2", (),
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}, "tree",
    ),
    "bloom": ("bloom", (), {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}, "sequence"),
    "lfm2": (
        "lfm2", ("<bos>",),
        SMALL | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}, "sequence",
    ),
    "qwen3_next": (
        "qwen3_next", (),
        SMALL | {
            "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        },
        "sequence",
    ),
}  # fmt: skip


TEXT = ["i am glad no wait Emotion? Answer: neutral joy anger -0.5 1.0"] * 4


def make_sentencepiece():
    """As Llama 2's and Phi-3's: a mark before every text and for every space, bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    known = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))])
    tokenizer.train_from_iterator([word for line in TEXT for word in line.split(" ")], known)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def make_tokenizer(start: tuple[str, ...]):
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXT, vocab_size=300, special_tokens=["<pad>", "<eos>", *start])
    if start:
        bpe._tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*start, "$A"]), special_tokens=[(s, bpe.token_to_id(s)) for s in start]
        )
    bos = start[0] if len(start) == 1 else None
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token=bos)


def save_model(folder: Path, kind: str, start: tuple[str, ...], settings: dict, vocabulary: int = 0) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_sentencepiece() if kind == "phi3" else make_tokenizer(start)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary or len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=None, **settings
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def families(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family."""
    root = tmp_path_factory.mktemp("families")
    return {
        name: save_model(root / name, kind, start, settings) for name, (kind, start, settings, _) in FAMILIES.items()
    }


@pytest.fixture(scope="session")
def load(families, tasks):
    """``load(family, **data settings)``: model in fp32 without dropout, collator and capabilities; made once each."""
    made = {}

    def get(name: str, prompt: PromptConfig = FIRST, **data):
        key = (name, prompt, *sorted(data.items()))
        if key not in made:
            config = Config(
                prompt=prompt,
                data=DataConfig(shards=["unused"], **data),
                backbone=BackboneConfig(path=str(families[name]), lora_rank=4, lora_alpha=8, lora_dropout=0.0),
                model=ModelConfig(width=32, heads=2),
                training=TrainingConfig(precision="fp32"),
            )
            data_of_run = RunData(tasks, ["en", "zh"], STREAMS, {})
            capabilities, collator = read_backbone(config, data_of_run)
            model = build_egmf(config, capabilities, data_of_run)
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.1)
            made[key] = model.eval(), collator, capabilities
        return made[key]

    return get


def spoken(make_samples, count):
    """Samples whose prompts differ in length by many times a window."""
    samples = make_samples(count)
    longer = ["no wait " * n for n in (0, 1, 3, 6, 10, 15)]
    return [
        replace(s, text=s.text + " " + longer[i % 6], context=(Turn("B", "wait"),) * (i % 3))
        for i, s in enumerate(samples)
    ]


@pytest.fixture
def alone(monkeypatch):
    """Collectives of a single process."""
    from contextlib import nullcontext

    from egmf_dist import distributed

    monkeypatch.setattr(distributed, "failing_together", nullcontext)
    monkeypatch.setattr(distributed, "share_objects", lambda values: values)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_the_sum_of_its_samples(load, make_samples, monkeypatch, name):
    """Whatever shares its batch, a sample's loss is the same: no padding is seen by any kind of layer."""
    model, collator, _ = load(name)
    samples = spoken(make_samples, 6)
    with torch.no_grad():
        together = model(collator(samples, [1.0] * 6))
        alone = [model(collator([s], [1.0])) for s in samples]
    one_by_one = torch.stack([sums.answer for sums in alone])
    torch.testing.assert_close(together.answer, one_by_one.sum(), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(one_by_one).all()
    assert one_by_one.std() > 1e-2
    if FAMILIES[name][3] == "tree":  # what honours the tree's masks is trained on rows of several samples
        monkeypatch.setattr(collator, "packed", True)
        batch = collator(samples, [1.0] * 6)
        assert len(batch.rows.ids_RC) < 6
        with torch.no_grad():
            torch.testing.assert_close(model(batch).answer, together.answer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_one_forward_an_answer(load, make_samples, tasks, alone, name):
    """The way that is chosen gives, in a batch, the loss of every legal answer fed alone."""
    model, collator, capabilities = load(name)
    samples = spoken(make_samples, 6)
    choice = choose_scorer(Config().evaluation, model, capabilities, collator, samples[4:])
    assert choice.scorer.way == FAMILIES[name][3], choice.line
    with torch.no_grad():
        scored = model(choice.scorer.prepare(samples, [1.0] * 6), choice.scorer).log_p_BC
        for b, sample in enumerate(samples):
            task = tasks[sample.task]
            count = len(task.legal_answers(sample.language))
            assert torch.isneginf(scored[b, count:]).all()
            for index in range(count):
                target = {"label": task.labels[index]} if task.labels else {"value": task.values[index]}
                fed = model(collator([replace(sample, **target)], [1.0])).answer
                torch.testing.assert_close(scored[b, index], -fed, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family[3] == "tree"])
def test_utterances_that_share_their_context_are_read_as_if_alone(load, make_samples, tasks, name):
    """Two dialogues, two questions: loss, every gradient and every score equal those of separate sequences."""
    model, collator, capabilities = load(name, prompt=PromptConfig(pseudo_tokens="before_utterance"))
    turns = tuple(Turn("AB"[i % 2], text) for i, text in enumerate(["i am glad " * 3, "no wait", "wait no no", "glad"]))
    samples = [
        replace(s, context=(turns if i < 5 else turns[::-1])[: i % 5], text=f"{s.text} {'wait ' * (i % 3)}")
        for i, s in enumerate([*make_samples(8), *make_samples(2)])
    ]
    weights = [1.0, 2.0, 0.5, 1.0, 0.0, 1.0, 3.0, 1.0, 1.0, 1.0]

    def computed(packed):
        collator.packed = packed
        model.zero_grad(set_to_none=True)
        batch = collator(samples, weights)
        total = model(batch).total
        total.backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return batch.tokens, total.detach(), found

    try:
        tokens, loss, gradients = computed(False)
        fewer, shared, found = computed(True)
    finally:
        collator.packed = False
    assert fewer < tokens - 40
    torch.testing.assert_close(shared, loss, rtol=1e-5, atol=1e-5)
    assert found.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5 * max(1.0, scale), msg=parameter)
    with torch.no_grad():
        for scorer in (TreeScorer(collator, capabilities, 10), SequenceScorer(collator, capabilities, 10)):
            scored = model(scorer.prepare(samples, weights), scorer).log_p_BC
            right = [list(tasks[s.task].labels or tasks[s.task].values).index(s.label or s.value) for s in samples]
            picked = -(scored[range(10), right] * torch.tensor(weights)).sum()
            torch.testing.assert_close(picked, model(collator(samples, weights)).answer, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_pseudo_tokens_begin_at_the_size_of_words(load, make_samples, name):
    model, collator, _ = load(name)
    batch = collator(make_samples(4), [1.0] * 4)

    def rms(x):
        return float(x.detach().pow(2).mean().sqrt())

    words = rms(model.backbone.get_input_embeddings()(torch.tensor([i for p in batch.prompts for i in p.ids])))
    pseudo = rms(model.pseudo_tokens(model.fuse(batch).pooled_BKD))
    assert words / 2 < pseudo < words * 2


def test_variants_of_lora(families, make_samples, tasks):
    """Scale, what is learnt and which layers, as PEFT has them; the loss reaches all that is trained."""
    base = BackboneConfig(path=str(families["qwen3"]), lora_rank=16, lora_alpha=8, lora_dropout=0.0)

    def trained(**settings):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=replace(base, **settings),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData(tasks, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        model = build_egmf(config, capabilities, data)
        model(collator(make_samples(4), [1.0] * 4)).total.backward()
        found = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for p in found.values())
        scales = {
            m.scaling["default"] for m in model.backbone.modules() if isinstance(getattr(m, "scaling", None), dict)
        }
        return found, scales

    plain, scale = trained()
    assert scale == {0.5}
    assert trained(lora_rslora=True)[1] == {2.0}
    second = {name for name in plain if ".layers.1." in name}
    assert trained(lora_layers=[1])[0].keys() == second != plain.keys()
    lengths = trained(lora_dora=True)[0].keys() - plain.keys()
    assert len(lengths) == len(plain) / 2
    assert all("magnitude" in name for name in lengths)
    with pytest.raises(EgmfError, match=r"backbone.lora_layers names 2; this backbone has layers 0 to 1"):
        trained(lora_layers=[2])
    with pytest.raises(EgmfError, match=r"attn_implementation 'flash_attention_2' cannot be used here: [^\n]+$"):
        trained(attn_implementation="flash_attention_2")


@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_attention_is_computed_as_asked(families, make_samples, tasks, way):
    """Gemma 3's windows under either way, packed: the same losses."""
    losses = []
    for asked in ("auto", way):
        config = Config(
            data=DataConfig(shards=["unused"]),
            backbone=BackboneConfig(path=str(families["gemma3"]), lora_rank=4, attn_implementation=asked),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData(tasks, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        collator.packed = True
        model = build_egmf(config, capabilities, data).eval()
        if asked != "auto":
            assert model.backbone.config._attn_implementation == way
        with torch.no_grad():
            losses.append(model(collator(spoken(make_samples, 6), [1.0] * 6)).total)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_every_id_before_a_text_is_read(load, families):
    for name, (_, start, _, _) in FAMILIES.items():
        _, collator, capabilities = load(name)
        assert collator.tokenizer.convert_ids_to_tokens(list(capabilities.start)) == list(start), name


def test_an_answer_follows_the_prompt_as_its_tokenizer_writes_it(load, tasks):
    """A tokenizer that puts a mark before every text puts none between "Answer:" and the answer."""
    _, collator, _ = load("phi3")
    tokenizer = collator.tokenizer
    for word, ids in zip(tasks["emotion"].answers["en"], collator.answers["emotion", "en"], strict=True):
        whole = tokenizer(f"Answer: {word}", add_special_tokens=False)["input_ids"]
        assert whole == [*tokenizer("Answer:", add_special_tokens=False)["input_ids"], *ids]
    alone = tokenizer(" joy", add_special_tokens=False)["input_ids"]
    assert len(alone) > len(collator.answers["emotion", "en"][1]), "alone it begins with a mark of its own"


def test_a_backbone_that_needs_token_ids_is_refused(families, monkeypatch):
    """Before any weight is loaded: Gemma 3n's layers look every word up once more."""
    from transformers import AutoConfig

    config = BackboneConfig(path=str(families["llama"]))
    tokenizer = load_tokenizer(config)
    monkeypatch.setattr(
        "egmf_dist.model.backbone.load_backbone_config", lambda config: AutoConfig.for_model("gemma3n_text")
    )
    with pytest.raises(EgmfError, match="per-layer embeddings"):
        read_capabilities(config, tokenizer)


def test_weights_that_are_not_finite_are_said_to_be(load, make_samples, alone):
    model, collator, capabilities = load("qwen3")
    broken = model.pseudo_tokens.scale.data.clone()
    model.pseudo_tokens.scale.data.fill_(float("nan"))
    try:
        with pytest.raises(EgmfError, match="scores of a sample are not finite"):
            choose_scorer(Config().evaluation, model, capabilities, collator, make_samples(2))
    finally:
        model.pseudo_tokens.scale.data.copy_(broken)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_bf16_rounding_is_no_disagreement(load, make_samples, alone, name):
    """Trees that are right in fp32 stay the choice in bf16, whichever samples are looked at."""
    import copy

    model, collator, capabilities = load(name)
    half = copy.deepcopy(model).bfloat16()
    samples = spoken(make_samples, 12)
    for first in range(0, 12, 3):
        choice = choose_scorer(Config().evaluation, half, capabilities, collator, samples[first : first + 3])
        assert choice.scorer.way == "tree", choice.line


def test_a_tree_without_the_window_would_be_found_out(load, make_samples, alone):
    """The check before step 1: a backbone whose window is not in its configuration is scored answer by answer."""
    model, collator, capabilities = load("mistral")
    hidden = replace(capabilities, kinds=(capabilities.kinds[0]._replace(window=None),))
    model.capabilities = hidden
    try:
        choice = choose_scorer(Config().evaluation, model, hidden, collator, spoken(make_samples, 6)[4:])
        assert choice.scorer.way == "sequence"
        assert "differ by" in choice.line
        asked = replace(Config().evaluation, scoring="tree")
        with pytest.raises(EgmfError, match=r"which mistral cannot .the tree's scores differ by"):
            choose_scorer(asked, model, hidden, collator, spoken(make_samples, 6)[4:])
    finally:
        model.capabilities = capabilities


def test_a_model_that_fails_under_the_trees_mask_is_scored_by_sequences(load, make_samples, alone):
    """Bloom unpacks a mask of two dimensions; what says so here is the check, not its configuration."""
    model, collator, capabilities = load("bloom")
    samples = spoken(make_samples, 6)[5:]
    choice = choose_scorer(Config().evaluation, model, replace(capabilities, sequence_only=""), collator, samples)
    assert choice.scorer.way == "sequence"
    assert "made it fail: ValueError: too many values to unpack" in choice.line


def test_a_model_that_ignores_its_padding_is_refused(load, make_samples, alone, monkeypatch):
    model, collator, capabilities = load("qwen2")
    plain = model.logits

    def deaf(embedded, mask, position, read):
        return plain(embedded, torch.ones_like(mask) if mask.dim() == 2 else mask, position, read)

    monkeypatch.setattr(model, "logits", deaf)
    with pytest.raises(EgmfError, match="ignores its padding mask"):
        choose_scorer(Config().evaluation, model, capabilities, collator, spoken(make_samples, 6)[5:])


def test_a_tree_in_several_passes_scores_the_same(load, make_samples):
    """A tree cut into passes, and samples scored a few at a time, give what one pass gives."""
    model, collator, capabilities = load("gemma3")
    samples = spoken(make_samples, 6)
    whole, cut = (TreeScorer(collator, capabilities, 6) for _ in range(2))
    from egmf_dist.data.answers import AnswerTree

    cut.trees = {key: AnswerTree.build_passes(ids, 4) for key, ids in collator.answers.items()}
    cut.passes, cut.samples_at_once = max(map(len, cut.trees.values())), 4
    assert cut.passes > 2
    with torch.no_grad():
        expected = model(whole.prepare(samples, [1.0] * 6), whole).log_p_BC
        found = model(cut.prepare(samples, [1.0] * 6), cut).log_p_BC
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_past_the_longest_position_loses_its_oldest_turns_then_its_beginning(
    load, families, make_samples, tmp_path, tasks, name
):
    """Twelve turns and a long utterance on 256 positions (GPT-2's are a table: one more would be an index error)."""
    model, collator, capabilities = load(name, max_text_tokens=128, context_turns=12)
    if name != "gpt2":  # no table of positions: past the trained length it would go on silently
        capabilities = replace(capabilities, longest=256)
        collator = Collator(
            collator.tokenizer, tasks, ["en", "zh"], STREAMS, collator.config, capabilities.limits(ModelConfig())
        )
    longest_answer = max(len(ids) for answers in collator.answers.values() for ids in answers)
    assert collator.prompt_limit == 256 - len(capabilities.start) - 4 - longest_answer
    sample = make_samples(1)[0]
    turns = tuple(Turn("B", f"turn {chr(97 + i)} " + "no wait " * 20) for i in range(12))
    text = "begin " + "glad no wait " * 60 + "the very end"
    batch = collator([replace(sample, text=text, context=turns)], [1.0])
    words = collator.tokenizer.decode(batch.prompts[0].ids)
    assert len(batch.prompts[0].ids) <= collator.prompt_limit
    assert batch.cut[0] > 0
    assert words.endswith("the very end\nEmotion? Answer:")
    assert "turn l" in words
    assert "turn a" not in words
    assert torch.isfinite(model(batch).answer)


def test_a_question_that_does_not_fit_is_refused(load, tasks):
    _, collator, capabilities = load("gpt2")
    limits = replace(capabilities, longest=24).limits(ModelConfig())
    with pytest.raises(EgmfError, match=r"its question takes \d+ tokens, the backbone's longest position leaves"):
        Collator(collator.tokenizer, tasks, ["en", "zh"], STREAMS, collator.config, limits)


def test_train_resume_evaluate(families, tmp_path, run_ranks):
    """The whole way through DeepSpeed for every family, in one process: 4 steps, the last 2 once more, evaluation."""
    from egmf_shards import synthesize

    data = tmp_path / "data"
    synthesize(data, 0, 64, 0.1, 0.01)
    job = {
        "families": {name: str(folder) for name, folder in families.items()},
        "data": str(data),
        "runs": str(tmp_path),
    }
    results = run_ranks("architectures.py", 1, job)
    assert results.keys() == FAMILIES.keys()
    for name, result in results.items():
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4], name
        assert all(np.isfinite(r["loss"]) for r in records if r["kind"] == "train"), name
        starts = [r for r in records if r["kind"] == "start"]
        assert [r["step"] for r in starts] == [0, 2], name  # the second one went on from the checkpoint
        assert [r["loss"] for r in records if r["kind"] == "train"] == result["losses"], name
        start = starts[0]
        way = "tree" if "in one pass" in start["scoring"] else "sequence"
        assert way == FAMILIES[name][3], start["scoring"]
        assert sum(task["n"] for task in result["tasks"].values()) == result["samples"] > 0, name
    # On two ranks, whose batches hold different numbers of answers, both ways give what one rank gives.
    two = tmp_path / "two"
    both = {name: job["families"][name] for name in ("bloom", "gemma3")}
    run_ranks("architectures.py", 2, job | {"families": both, "runs": str(two)})
    for name in both:
        ours, theirs = (
            [
                json.loads(line)
                for line in (runs / name / "evaluation" / "predictions-test.jsonl").read_text().splitlines()
            ]
            for runs in (tmp_path, two)
        )
        assert [p["id"] for p in ours] == [p["id"] for p in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4), name


def test_a_collator_can_be_sent_to_another_process(load, make_samples):
    _, collator, _ = load("qwen2")
    samples = make_samples(3)
    again = pickle.loads(pickle.dumps(collator))(samples, [1.0] * 3)
    assert again.prompts == collator(samples, [1.0] * 3).prompts


class TestMemory:
    """What scoring holds at once, whatever the number of answers."""

    def test_sixty_one_numbers_on_sixty_four_samples_by_sequences(self, families, make_samples, tasks, alone):
        numbers = replace(tasks["sentiment"], low=-3.0, high=3.0, step=0.1)
        folder = families["bloom"]
        config = Config(
            backbone=BackboneConfig(path=str(folder), lora_rank=4, lora_dropout=0.0),
            model=ModelConfig(width=32, heads=2),
            training=TrainingConfig(precision="fp32"),
        )
        data = RunData({"sentiment": numbers}, ["en", "zh"], STREAMS, {})
        capabilities, collator = read_backbone(config, data)
        model = build_egmf(config, capabilities, data).eval()
        scorer = SequenceScorer(collator, capabilities, batch_size=64)
        samples = [replace(s, task="sentiment", label=None, value=0.3) for s in make_samples(64)]
        seen = []
        model.backbone.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        )
        with torch.no_grad():
            log_p_BC = model(scorer.prepare(samples, [1.0] * 64), scorer).log_p_BC
        assert log_p_BC.shape == (64, 61)
        assert torch.isfinite(log_p_BC).all()
        assert max(seen) <= 64
        assert sum(seen) == 64 * 61
        fed = model(collator([replace(samples[7], value=numbers.values[60])], [1.0])).answer
        torch.testing.assert_close(log_p_BC[7, 60], -fed.detach(), rtol=1e-5, atol=1e-4)

    def test_five_hundred_answers_at_a_vocabulary_of_152k_by_the_tree(self, tasks, run_ranks, tmp_path):
        """A process of its own, because its peak is what counts: everything, torch too, within 2 GiB."""
        wide = SMALL | {"hidden_size": 16, "tie_word_embeddings": True}
        folder = save_model(tmp_path / "wide", "qwen2", (), wide, vocabulary=152_000)
        numbers = replace(tasks["sentiment"], low=-2.5, high=2.5, step=0.01)
        found = run_ranks("many_answers.py", 1, {"backbone": str(folder), "task": numbers})
        assert found["answers"] == 501
        assert found["apart"] < 1e-4
        assert found["peak_gib"] < 2.0, found
