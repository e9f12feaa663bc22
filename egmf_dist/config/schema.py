"""Every setting of a run as frozen dataclasses; the text under a field is its help on the command line.

Widths, kernel sizes, the number of pseudo tokens, temperatures and LoRA settings are our interpretation of EGMF
(arXiv 2601.07565 gives none of them), so each is a value here.

What a value must be stands on its field, too (:mod:`egmf_dist.config.rules`); :mod:`egmf_dist.config.check` asks it.
Rules between settings are there.

A resumed run keeps what decides which samples a global batch holds, what the model is and what the optimiser does. What
it may change is marked on the field: ``free`` (speed, retention, logging, where ranks come from, when to stop), or
``PLACE`` (where data or backbone lie: what lies there must have the hash it had).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from egmf_dist.config.rules import MUST, ON_RESUME, PLACE, Must, above, at_least, fixed, free, within
from egmf_dist.config.zero_options import ZERO_OPTIONS
from egmf_shards import MAX_CONTEXT_TURNS

_TURNS = within(0, MAX_CONTEXT_TURNS, f"0 to {MAX_CONTEXT_TURNS} (shards hold {MAX_CONTEXT_TURNS})")
_METRIC = Must(lambda text: not text or text.count(".") == 1, "TASK.METRIC, such as emotion.weighted_f1")
_ODD = Must(
    lambda sizes: len(sizes) > 0 and all(k > 0 and k % 2 == 1 for k in sizes),
    "one or more odd numbers, such as [3, 5, 7]",
)
_WITHOUT_PASSWORD = Must(
    lambda folders: not any(re.match(r"\w+://[^/]*@", folder) for folder in folders),
    "a URL without: it is written into the run's folder; credentials come from the environment",
)
_LAYERS = Must(
    lambda layers: len(set(layers)) == len(layers) and all(n >= 0 for n in layers),
    "numbers of layers from 0, each once",
)
_ONCE = Must(lambda names: len(set(names)) == len(names), "a list of names, each once")
_NAME = Must(lambda text: bool(text.strip()), "a name")
_KNOWN_OPTIONS = Must(
    lambda options: (
        set(options) <= set(ZERO_OPTIONS)
        and min(options.values(), default=0) >= 0
        and options.get("allgather_bucket_size", 0) % 2 == 0
    ),
    f"numbers from 0 (allgather_bucket_size even) by the names {', '.join(ZERO_OPTIONS)}",
)
PART = Must(lambda value: 0 <= value < 1, "in [0, 1)")
WIDTH = Must(lambda value: 0 < value <= 1, "above 0 and at most 1, a part of the task's range")


@dataclass(frozen=True)
class DataConfig:
    """What is read."""

    shards: list[str] = field(default_factory=list, metadata=PLACE | {MUST: _WITHOUT_PASSWORD})
    """Folders of shards (each with manifest and index): paths, or URLs such as s3://bucket/folder or
    http://host/folder. Several make one joint run."""
    weights: list[float] = field(default_factory=list)
    """The folders' shares of what is trained on, one number a folder, only their proportions count; each folder is
    then seen once per epoch of its own. Empty: every sample of every folder once an epoch."""
    shuffle: Literal["auto", "full", "block", "dialogue"] = "auto"
    """`full` mixes everything with everything; `block` reads blocks of neighbours, which object stores want; `auto` is
    block where a folder is a URL; `dialogue` mixes dialogues and keeps each together, so that a context can be read
    once for its utterances (prompt.pseudo_tokens before_utterance, prompt.context stepped)."""
    mixed_epochs: int = fixed(0, at_least(0))
    """With shuffle `dialogue`: so many first epochs mix everything with everything. Batches of a few dialogues hold
    utterances that are alike, and a model that has learnt nothing yet learns slower from them."""
    block_samples: int = fixed(256, at_least(1))
    """Samples of a block."""
    window_blocks: int = fixed(32, at_least(1))
    """How many blocks are mixed sample by sample with each other."""
    group_by_length: bool = free(False)
    """Share each global batch out by lengths: alike loads on the ranks, alike lengths in a micro-batch. Global batches
    stay the same; it saves padding where ranks accumulate several micro-batches."""
    workers: int | None = free(None, at_least(0, "0 or more, or null"))
    """Processes a rank that read and pack ahead; 0 reads between two steps; null: 2 with a GPU, else 0. The batches
    are the same."""
    prefetch: int = free(2, at_least(1))
    """Global batches each of them reads ahead."""
    bad_samples: Literal["strict", "skip", "quarantine"] = free("strict")
    """What becomes of a training sample that cannot be read: `strict` stops the run, `skip` gives it weight 0,
    `quarantine` also writes it to quarantine.jsonl and leaves it out from then on. Scoring is always strict."""
    max_bad_in_a_row: int = free(100, at_least(1))
    """Stop after this many bad samples in a row."""
    max_bad_fraction: float = free(0.01, within(0, 1, "in [0, 1]"))
    """Stop when more than this part of an epoch's samples is bad."""
    cache_dir: str | None = free(None)
    """Where pieces of remote shards are kept; null for egmf/shards in the user's cache folder."""
    cache_gib: float = free(10.0, above(0))
    """The most GiB kept there on one machine."""
    retries: int = free(6, at_least(0))
    """How often a failed remote read is tried again, waiting twice as long each time."""
    context_turns: int = fixed(3, _TURNS)
    """How many preceding turns of the dialogue enter the prompt; 0 for none, at most 12."""
    max_text_tokens: int = fixed(128, at_least(1))
    """An utterance longer than this many tokens keeps its end; a context turn likewise."""
    max_prompt_tokens: int = fixed(1024, at_least(1))
    """The most tokens of a whole prompt, beside what the backbone's positions allow: the oldest turns go first, then
    the utterance keeps its end; question and answer are never cut."""
    drop_frames: float = fixed(0.0, PART)
    """In training each feature stream loses frames at a rate drawn between 0 and this, anew each time a sample comes:
    the model learns to do with what is there. Scoring loses nothing."""
    drop_words: float = fixed(0.0, PART)
    """The same for the utterance's words (Chinese: characters)."""
    drop_stream: float = fixed(0.0, PART)
    """In training each modality of a sample is lost with this probability; one is always left."""
    standardise: bool = True
    """Features as deviations from the training split's mean, per dimension, at most 10; constant
    dimensions become 0. Off: the features as they are."""

    @property
    def in_blocks(self) -> bool:
        """Whether blocks of neighbours are shuffled instead of samples: what ``auto`` comes to."""
        return self.shuffle == "block" or (self.shuffle == "auto" and any("://" in folder for folder in self.shards))


@dataclass(frozen=True)
class PromptConfig:
    """How the LLM's prompt is laid out."""

    pseudo_tokens: Literal["first", "before_utterance"] = "first"
    """Where the pseudo tokens stand: before everything, or between the preceding turns and the utterance. The latter
    lets utterances of one dialogue share their context in a row, which is then read once."""
    context: Literal["sliding", "stepped"] = "sliding"
    """Which preceding turns are shown where there are more than data.context_turns: the last ones (`sliding`), or from
    a turn on that moves by half as many turns at a time, so that several utterances have it in common (`stepped`: at
    least half as many, at most as many)."""
    chat_template: Literal["auto", "off"] = "auto"
    """`auto`: where the backbone's tokenizer has a chat template, as instruct models' have, the prompt is the user's
    turn in it and the answer the assistant's. `off`: plain text."""


@dataclass(frozen=True)
class BackboneConfig:
    """The large language model and its adapter."""

    path: str = field(default="", metadata=PLACE)
    """Folder or hub id of any Hugging Face causal language model."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    trust_remote_code: bool = False
    """Allow code that ships with the model to run. Leave off unless you have read it."""
    tuning: str = "lora"
    """What of it is trained: `lora`, `frozen` (nothing), `full` (everything), or `MODULE:NAME` of your own."""
    lora_rank: int = fixed(32, at_least(0))
    """Of tuning `lora`: rank r of its matrices; 0 freezes the backbone wholly."""
    lora_alpha: int = fixed(128, above(0))
    """Of tuning `lora`: alpha; the update is scaled by alpha / r."""
    lora_dropout: float = fixed(0.05, PART)
    """Of tuning `lora`: dropout before its matrices."""
    lora_targets: str = "all-linear"
    """Of tuning `lora`: PEFT target modules, `all-linear`, or module names separated by commas."""
    lora_layers: list[int] = field(default_factory=list, metadata={MUST: _LAYERS})
    """Of tuning `lora`: the layers that get matrices, counted from 0; empty: every one."""
    lora_rslora: bool = False
    """Of tuning `lora`: scale the update by alpha / sqrt(r) in place of alpha / r (Kalajdzievski 2023): a high rank
    then learns as fast as a low one."""
    lora_dora: bool = False
    """Of tuning `lora`: learn each column's length apart from its direction (DoRA, Liu et al. 2024); slower."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2"] = free("auto")
    """What computes its attention: transformers' choice, torch's fused kernels (`sdpa`), plain matrix products
    (`eager`), FlexAttention on a GPU, which skips what a packed row's mask hides (`flex_attention`), or FlashAttention
    where that is installed, which takes no mask of ours: rows are then padded and answers scored one by one."""
    liger: bool = free(False)
    """liger-kernel's RMSNorm, rotary positions and gated MLP in place of transformers' (CUDA; needs the extra `cuda`):
    fewer passes over memory."""
    quantise: Literal["none", "4bit"] = "none"
    """`4bit`: frozen weights of linear layers in four bits (bitsandbytes' NF4, Dettmers et al. 2023; needs the extra
    `cuda`), a quarter of bf16's memory; with tuning `lora` or `frozen`, under ZeRO stage 1 or 2."""
    gradient_checkpointing: bool = free(False)
    """Keep of each layer its input alone and compute the rest again in the backward pass: less memory, about a third
    more time, the same gradients."""


@dataclass(frozen=True)
class ModelConfig:
    """The fusion."""

    fusion: str = "experts"
    """Which fusion: `experts`, three experts under a two-level gate, or `MODULE:NAME` of your own."""

    width: int = fixed(128, Must(lambda n: n >= 16 and n % 16 == 0, "a positive multiple of 16, such as 128"))
    """Width d of the packed tokens; a multiple of 16 (kernels load 16 bytes at a time)."""
    heads: int = 4
    """Attention heads of the semantic and the global expert; must divide the width."""
    kernel_sizes: list[int] = field(default_factory=lambda: [3, 5, 7], metadata={MUST: _ODD})
    """Odd kernel sizes of the local expert's depthwise convolutions."""
    local_expert: bool = True
    """Fine-grained local expert: multi-scale depthwise convolution inside one modality."""
    semantic_expert: bool = True
    """Semantic-correlation expert: attention from one modality to the others."""
    global_expert: bool = True
    """Global-context expert: self-attention over the sample's joint sequence."""
    gate: bool = True
    """Hierarchical dynamic gate. Off: experts and present modalities weigh the same."""
    gate_temperature: float = fixed(1.0, above(0))
    """Temperature of the gate's first level (experts, per token)."""
    modality_temperature: float = fixed(1.0, above(0))
    """Temperature of the gate's second level (modalities, per sample)."""
    modality_weight_in: Literal["pooling", "mix"] = "pooling"
    """Where the second level acts: when pooling into pseudo tokens, or already on the expert mix. Never in both."""
    pseudo_tokens: int = fixed(4, at_least(0))
    """Number K of pseudo tokens; 0 leaves the fusion out and the LLM reads the prompt alone."""
    text_stream: Literal["backbone", "learned"] = "backbone"
    """The experts' text: the backbone's input embeddings (which it trains only where the backbone is
    trained whole), or an embedding of its own that is learnt."""
    max_stream_tokens: int = fixed(128, at_least(1))
    """The most tokens of a feature stream: longer sequences are averaged down to so many, neighbours together, so that
    clips of 50 and of 2,000 frames cost alike; attention's work grows with the square of a sample's tokens."""
    dropout: float = fixed(0.0, PART)
    """Dropout on the tokens that enter the experts."""
    kernels: Literal["auto", "reference", "triton"] = free("auto")
    """What computes the fusion block: `auto` takes the Triton kernels on a GPU and plain torch elsewhere, `reference`
    is plain torch everywhere, `triton` stops with an error where the kernels cannot run."""
    auxiliary_weight: float = fixed(0.5, at_least(0))
    """Weight of the auxiliary class and value heads on the fused representation; 0 for none."""


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation."""

    objective: str = "answers"
    """What is minimised: `answers`, -log p of the right answers, or `MODULE:NAME` of your own."""
    seed: int = 0
    """Seed of initialisation, order and dropout."""
    steps: int = free(1200, at_least(1))
    """Optimiser steps. The learning rate's cosine ends here: a resumed run that changes it goes on along another."""
    global_batch: int = fixed(32, at_least(1))
    """Samples in one optimiser step, over all ranks and micro-batches."""
    micro_batch: int = free(16, at_least(1))
    """The most samples one rank puts through the model at once; the rest is gradient accumulation."""
    micro_tokens: int = free(0, at_least(0, "0 (training.micro_batch decides) or more"))
    """Tokens of the LLM in one micro-batch on one rank, about: a rank's part of a global batch is cut where the tokens
    say, and how many cuts there are follows from the data, the same in every step and on every rank. 0: cut by
    training.micro_batch samples. The gradient is that of the global batch either way."""
    packing: Literal["auto", "off"] = free("auto")
    """`auto`: a micro-batch's prompts stand end to end in the LLM's rows, where the backbone honours the mask that
    keeps them apart. `off`: one a row, padded to the longest. The same losses."""
    learning_rate: float = fixed(3e-4, above(0))
    """Peak learning rate of the adapter."""
    fusion_learning_rate: float | None = fixed(None, above(0, "above 0, or null for the adapter's"))
    """Peak learning rate of the fusion modules; null for the adapter's."""
    warmup_steps: int = fixed(50, at_least(0))
    """Linear warm-up; a cosine to zero follows."""
    weight_decay: float = fixed(0.0, at_least(0))
    """AdamW's decoupled weight decay, on matrices only."""
    gradient_clipping: float = fixed(1.0, at_least(0, "0 (none) or more"))
    """Largest global gradient norm; 0 for none."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the forward and backward pass; the optimiser's copy is always fp32."""
    zero_stage: Literal[1, 2, 3] = free(3)
    """DeepSpeed ZeRO stage. Where the backbone fits one device, 1 or 2 are faster: only the adapter's bytes move, and
    stage 3's work around every module falls away."""
    offload: Literal["none", "optimizer", "weights"] = free("none")
    """What waits in the hosts' memory in place of the GPUs': the `optimizer` with its fp32 copies of what is trained,
    or the `weights`, too (stage 3). Slower; the step is the same."""
    zero_options: dict[str, int] = field(default_factory=dict, metadata={ON_RESUME: "free", MUST: _KNOWN_OPTIONS})
    """DeepSpeed's own settings of ZeRO by its own names, such as {stage3_param_persistence_threshold: 0}; 1 is on.
    `zero_quantized_nontrainable_weights` rounds frozen weights; with the others the step is the same."""
    deterministic: bool = free(False)
    """On a GPU, the same bits from the same step, so that a resumed run ends as the undisturbed one; slower. An
    operation that cannot is named. On the CPU that is so in any case."""
    validate_every: int = free(200, at_least(1))
    """Steps between scorings of the validation split."""
    validation_samples: int = fixed(0, at_least(0, "0 (all) or more"))
    """Score at most this many validation samples (the same random ones every time); 0 for all."""
    select_by: str = fixed("", _METRIC)
    """Keep the adapter that is best by this TASK.METRIC, such as `emotion.weighted_f1`; empty: the mean over tasks of
    weighted F1 (classification) and Corr (regression)."""
    patience: int = free(0, at_least(0, "0 (never) or more"))
    """Stop after this many validations without a better score; 0 never stops early."""
    checkpoint_every: int = free(200, at_least(1))
    """Steps between checkpoints."""
    keep_checkpoints: int = free(2, at_least(1))
    """How many checkpoints stay on disk."""
    log_every: int = free(10, at_least(1))
    """Steps between two lines of metrics."""
    max_skipped_steps: int = free(10, at_least(1))
    """Stop after this many steps in a row with a non-finite loss or gradient."""
    profile_steps: int = free(0, at_least(0, "0 (none) or more"))
    """So many steps of a start, from the third on, are timed by phase, and two more are counted, into RUN/profile."""
    hang_seconds: float = free(300.0, at_least(0, "0 (never) or more"))
    """A rank that stands still for so long is named, with its stack; 0 never."""
    compare_modules: bool = free(False)
    """To find a model of one's own whose ranks wait for each other for ever: every call of a module is compared over
    the ranks before it is made, and where they part all of them end with a line. Steps become many times slower."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the objective `answers` asks of a regression, and of a classification whose labels are ordered."""

    number: Literal["tokens", "soft", "expected"] = "tokens"
    """What a regression's answer costs: `tokens`, -log p of the legal number nearest to the truth, so that every other
    number is equally wrong; `soft`, the cross-entropy with a bell around the truth over all legal numbers (Diaz and
    Marathe 2019); `expected`, how far the distribution over the legal numbers lies from the truth (CRPS, Gneiting and
    Raftery 2007). The last two read all legal numbers behind every prompt: a step costs more."""
    ordered: list[str] = field(default_factory=list, metadata={MUST: _ONCE})
    """Classifications whose labels are ordered as their data set lists them, from least to most, such as
    `[severity]`: `number` is theirs as well, with 0, 1, 2, ... in the labels' places."""
    width: float = fixed(0.05, WIDTH)
    """Of `soft`: the bell's standard deviation as a part of the task's range."""
    answer_weight: float = fixed(0.1, at_least(0))
    """Of `expected`: weight of -log p of the nearest legal number beside the distance, which alone would not make the
    legal numbers any likelier than other words."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How answers are scored."""

    batch_size: int = free(32, at_least(1))
    """Samples scored at once on one rank; in the sequence way, sequences."""
    scoring: Literal["auto", "tree", "sequence"] = free("auto")
    """How legal answers are scored: `tree` all in one pass over their prefix tree, `sequence` each as a sequence of its
    own (any model), `auto` the tree where the backbone can and both ways agree on a real sample."""


@dataclass(frozen=True)
class LoggingConfig:
    """Where teams look while a run trains; its folder holds all records in any case."""

    to: list[str] = field(default_factory=lambda: ["tensorboard"], metadata={ON_RESUME: "free", MUST: _ONCE})
    """Trackers that are given the numbers: `tensorboard`, `wandb` and `mlflow` (extras of these names), `MODULE:NAME`
    of your own; several at once, [] for none. One that fails is switched off, and training goes on."""
    project: str = free("egmf-dist", _NAME)
    """The project on Weights & Biases, the experiment on MLflow. Keys, servers and offline modes are what WANDB_* and
    MLFLOW_* in the environment say."""


@dataclass(frozen=True)
class LaunchConfig:
    """How ranks come to be where Ray starts them."""

    max_failures: int = free(0, at_least(0))
    """How often Ray restarts the group of workers after one died; each restart resumes from the newest checkpoint."""
    min_workers: int = free(0, at_least(0, "0 (all of them) or more"))
    """With how few workers Ray goes on where a machine is gone, at the same global batch; with more as soon as there
    are more. 0: it waits for all of them. Takes effect with `max_failures`."""
    cpus_per_worker: int = free(1, at_least(1))
    """CPU cores Ray reserves for each worker."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    """What is read."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How its prompt is laid out."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The LLM and its adapter."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The fusion."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The optimisation."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is minimised for a regression."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scoring."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Trackers."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Ray's part."""
