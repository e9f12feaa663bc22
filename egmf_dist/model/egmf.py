"""EGMF whole: batch in, loss sums or answer scores out.

The LLM reads ``[sequence start | K pseudo tokens | padding, prompt | answer columns]``: the prompt is padded on its
left, so that in every sample the answer begins in the same column and the logits of the last columns are the only ones
computed (``logits_to_keep``: the hidden states are sliced before lm_head). Training puts the right answer into the
answer columns, scoring the prefix tree of all legal answers.

Invariants: loss and scores of a sample do not depend on what shares its batch; control flow depends on settings only.
Shape legend: B samples, K pseudo tokens, L prompt columns, A answer columns, N tree nodes, C legal answers,
H backbone width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.errors import EgmfError
from egmf_dist.model.encoders import Encoders
from egmf_dist.model.fusion import Fused, Fusion
from egmf_dist.model.pseudo_tokens import PseudoTokens
from egmf_shards.task import CLASSIFICATION, Task


class LossSums(NamedTuple):
    """Sums over the batch's valid samples; the caller divides by the global batch's count."""

    total: torch.Tensor
    """What is minimised, with gradient: answer + auxiliary_weight * auxiliary."""
    answer: torch.Tensor
    """Sum of -log p over answer and end-of-sequence tokens (detached)."""
    auxiliary: torch.Tensor
    """Sum of the auxiliary heads' losses (detached)."""
    valid: torch.Tensor
    """How many samples count."""


class Scores(NamedTuple):
    """What evaluation needs of a batch."""

    log_p_BC: torch.Tensor
    """float32 log-probability of every legal answer; minus infinity where a task has fewer."""
    expert_weight_BE: torch.Tensor | None
    modality_weight_BM: torch.Tensor | None


class AuxiliaryHeads(nn.Module):
    """One linear head per task on the fused representation: classes, or the value in units of the range's spread."""

    def __init__(self, inputs: int, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.heads = nn.ModuleList(
            [nn.Linear(inputs, len(t.labels) if t.kind == CLASSIFICATION else 1) for t in self.tasks]
        )

    def forward(self, pooled_BKD: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        """Each sample's auxiliary loss ``[B]`` (cross-entropy, or squared error), fp32.

        Every head runs on every sample and the others' are masked away: which tasks a rank's samples have must not
        change which parameters it touches.
        """
        flat = pooled_BKD.flatten(1)
        loss_B = torch.zeros(len(flat), device=flat.device)
        for number, (task, head) in enumerate(zip(self.tasks, self.heads, strict=True)):
            out = head(flat).float()
            if task.kind == CLASSIFICATION:
                label_B = torch.where(batch.task_B == number, batch.answer_B, 0)
                per_sample = F.cross_entropy(out, label_B, reduction="none")
            else:
                # A uniform distribution over the range has this standard deviation; it puts every task on one scale.
                spread = (task.high - task.low) / 12**0.5
                target_B = (batch.value_B - (task.high + task.low) / 2) / spread
                per_sample = (out[:, 0] - target_B).pow(2)
            loss_B = loss_B + torch.where(batch.task_B == number, per_sample, 0.0)
        return loss_B


class EGMF(nn.Module):
    """The model.

    Args:
        config: the fusion's settings.
        backbone: the frozen LLM with its adapter.
        hidden: its width H.
        vocabulary: its number of tokens.
        embedding_rms: root mean square of its input embeddings.
        tasks: the run's tasks in order.
        languages: the run's languages in order.
        dims: feature widths of audio and vision; 0 for none.
        eos: the tokenizer's end-of-sequence id.
        start: ids before any text (beginning of sequence), or none.
    """

    start: torch.Tensor

    def __init__(
        self,
        config: ModelConfig,
        backbone: nn.Module,
        hidden: int,
        vocabulary: int,
        embedding_rms: float,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        dims: Mapping[str, int],
        eos: int,
        start: Sequence[int],
    ) -> None:
        super().__init__()
        self.config = config
        self.eos = eos
        self.backbone = backbone
        self.register_buffer("start", torch.tensor(list(start), dtype=torch.long), persistent=False)
        self.fused = config.pseudo_tokens > 0
        if self.fused:
            text_dim = config.width if config.text_stream == "learned" else hidden
            self.text_embedding = nn.Embedding(vocabulary, config.width) if config.text_stream == "learned" else None
            self.encoders = Encoders(config, dims.get("audio", 0), dims.get("vision", 0), text_dim)
            self.fusion = Fusion(config, len(tasks), len(languages))
            self.pseudo_tokens = PseudoTokens(config, hidden, embedding_rms)
            self.auxiliary = (
                AuxiliaryHeads(config.pseudo_tokens * config.width, list(tasks.values()))
                if config.auxiliary_weight
                else None
            )

    def describe_kernels(self, device: torch.device) -> str:
        """One line for the log: what computes the fusion block on ``device``.

        Raises:
            EgmfError: ``model.kernels`` is ``triton`` and the kernels cannot run there.
        """
        if not self.fused:
            return "kernels: none (no pseudo tokens, no fusion)"
        try:
            return self.fusion.describe_kernels(device)
        except ValueError as error:
            raise EgmfError(f"config: model.kernels is 'triton': {error}; 'auto' picks what can run") from error

    def forward(self, batch: RaggedBatch, mode: Literal["loss", "score"] = "loss") -> LossSums | Scores:
        """Run the batch; ``mode`` is ``loss`` (training) or ``score`` (the batch must carry its answer trees)."""
        fused = self.fuse(batch) if self.fused else None
        if mode == "score":
            return self._score(batch, fused)
        return self._loss(batch, fused)

    def fuse(self, batch: RaggedBatch) -> Fused:
        """The fused representation of a batch."""
        if self.text_embedding is not None:
            text = self.text_embedding(batch.text_ids)
        else:
            with torch.no_grad():
                text = self._embed(batch.text_ids)
        fused: Fused = self.fusion(self.encoders(text, batch), batch)
        return fused

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedding: Any = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return embedding(ids)

    def _prefix(
        self, batch: RaggedBatch, fused: Fused | None, extra_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of all columns, and which columns before the extra ones are real."""
        batch_size = len(batch.prompt_BL)
        ids = torch.cat([self.start.expand(batch_size, -1), batch.prompt_BL, extra_ids], 1)
        embedded = self._embed(ids)
        count = self.start.numel()
        parts = [embedded[:, :count], embedded[:, count:]]
        tokens = 0
        if fused is not None:
            pseudo = self.pseudo_tokens(fused.pooled_BKD).to(embedded.dtype)
            parts.insert(1, pseudo)
            tokens = pseudo.shape[1]
        always = batch.prompt_mask_BL.new_ones(batch_size, count + tokens)
        return torch.cat(parts, 1), torch.cat([always, batch.prompt_mask_BL], 1)

    def _logits(self, embedded: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, keep: int) -> torch.Tensor:
        out: torch.Tensor = self.backbone(
            inputs_embeds=embedded, attention_mask=mask, position_ids=position, logits_to_keep=keep, use_cache=False
        ).logits
        return out

    def _loss(self, batch: RaggedBatch, fused: Fused | None) -> LossSums:
        embedded, real = self._prefix(batch, fused, batch.target_BA[:, :-1])
        mask = torch.cat([real, batch.target_mask_BA[:, 1:]], 1)
        position = (mask.long().cumsum(1) - 1).clamp_min(0)
        columns = batch.target_BA.shape[1]
        logits = self._logits(embedded, mask.long(), position, columns)
        nll_BA = F.cross_entropy(logits.float().flatten(0, 1), batch.target_BA.flatten(), reduction="none")
        answer_B = (nll_BA.view_as(batch.target_BA) * batch.target_mask_BA).sum(1)
        auxiliary_B = torch.zeros_like(answer_B)
        if fused is not None and self.auxiliary is not None:
            auxiliary_B = self.auxiliary(fused.pooled_BKD, batch)
        answer, auxiliary = (answer_B * batch.weight_B).sum(), (auxiliary_B * batch.weight_B).sum()
        total = answer + self.config.auxiliary_weight * auxiliary
        return LossSums(total, answer.detach(), auxiliary.detach(), batch.weight_B.sum())

    def _score(self, batch: RaggedBatch, fused: Fused | None) -> Scores:
        tree = batch.tree
        if tree is None:
            raise ValueError("the batch carries no answer trees; collate it with score=True")
        embedded, real = self._prefix(batch, fused, tree.tokens_BN)
        before, nodes = real.shape[1], tree.tokens_BN.shape[1]
        columns = before + nodes
        causal = torch.ones(before, before, dtype=torch.bool, device=real.device).tril()
        sees = torch.zeros(len(real), columns, columns, dtype=torch.bool, device=real.device)
        sees[:, :before, :before] = causal & real[:, None, :]
        sees[:, before:, :before] = real[:, None, :]
        sees[:, before:, before:] = tree.sees_BNN
        sees |= torch.eye(columns, dtype=torch.bool, device=real.device)  # a padding column sees itself: no empty row
        position = (real.long().cumsum(1) - 1).clamp_min(0)
        position = torch.cat([position, position[:, -1:] + tree.depth_BN], 1)
        mask = torch.zeros(sees.shape, dtype=embedded.dtype, device=real.device)
        mask = mask.masked_fill(~sees, torch.finfo(embedded.dtype).min)[:, None]
        logits = self._logits(embedded, mask, position, nodes + 1)
        return Scores(
            tree.log_probabilities(logits, self.eos),
            None if fused is None else fused.expert_weight_BE,
            None if fused is None else fused.modality_weight_BM,
        )
