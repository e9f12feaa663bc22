"""EGMF whole: batch in, loss sums or answer scores out.

The LLM reads ``[padding | start | K pseudo tokens | prompt | answer]``, laid out by :mod:`egmf_dist.model.sequence`.
Rows end together, so the logits of the last columns are the only ones computed (``logits_to_keep``: the hidden states
are sliced before lm_head). Training puts the right answer there; scoring the prefix tree of all legal answers, or one
legal answer a row.

Invariants: loss and scores of a sample do not depend on what shares its batch; control flow depends on settings only.
Shape legend: B samples, K pseudo tokens, L prompt columns, A answer columns, N tree nodes, C legal answers,
R rows (a sample with one answer), H backbone width.
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
from egmf_dist.model.backbone import Capabilities
from egmf_dist.model.encoders import Encoders
from egmf_dist.model.fusion import Fused, Fusion
from egmf_dist.model.pseudo_tokens import PseudoTokens
from egmf_dist.model.sequence import Columns, lay_out, tree_masks, tree_positions
from egmf_dist.tasks.answers import AnswerRows, TreePasses, log_normalisers
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
        capabilities: what it can do; its width H, its vocabulary, the ids before any text.
        embedding_rms: root mean square of its input embeddings, as its embedding module gives them.
        tasks: the run's tasks in order.
        languages: the run's languages in order.
        dims: feature widths of audio and vision; 0 for none.
    """

    start: torch.Tensor

    def __init__(
        self,
        config: ModelConfig,
        backbone: nn.Module,
        capabilities: Capabilities,
        embedding_rms: float,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        dims: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.config = config
        self.capabilities = capabilities
        self.backbone = backbone
        self.register_buffer("start", torch.tensor(capabilities.start, dtype=torch.long), persistent=False)
        self.fused = config.pseudo_tokens > 0
        if self.fused:
            learned = config.text_stream == "learned"
            text_dim = config.width if learned else capabilities.width
            self.text_embedding = nn.Embedding(capabilities.vocabulary, config.width) if learned else None
            self.encoders = Encoders(config, dims.get("audio", 0), dims.get("vision", 0), text_dim)
            self.fusion = Fusion(config, len(tasks), len(languages))
            self.pseudo_tokens = PseudoTokens(config, capabilities.width, embedding_rms)
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
        """Run the batch; ``mode`` is ``loss`` (training) or ``score`` (the batch must carry its legal answers)."""
        fused = self.fuse(batch) if self.fused else None
        if mode == "loss":
            return self._loss(batch, fused)
        pseudo_BKH = None if fused is None else self.pseudo_tokens(fused.pooled_BKD)
        if isinstance(batch.answers, TreePasses):
            log_p_BC = self._score_trees(batch, batch.answers, pseudo_BKH)
        elif isinstance(batch.answers, AnswerRows):
            log_p_BC = self._score_rows(batch, batch.answers, pseudo_BKH)
        else:
            raise ValueError("the batch carries no legal answers; a scorer prepares it")
        return Scores(
            log_p_BC,
            None if fused is None else fused.expert_weight_BE,
            None if fused is None else fused.modality_weight_BM,
        )

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

    def _embed_columns(self, columns: Columns, pseudo_BKH: torch.Tensor | None) -> torch.Tensor:
        """``[B, columns, H]``: word embeddings, and the pseudo tokens in their places."""
        embedded = self._embed(columns.ids)
        if pseudo_BKH is None:
            return embedded
        place_BKH = columns.pseudo_BK[:, :, None].expand(-1, -1, embedded.shape[-1])
        return embedded.scatter(1, place_BKH, pseudo_BKH.to(embedded.dtype))

    def _logits(self, embedded: torch.Tensor, mask: Any, position: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits of the last ``keep`` columns; ``mask`` is 2-D, 4-D, or 4-D ones by kind of layer."""
        out: torch.Tensor = self.backbone(
            inputs_embeds=embedded, attention_mask=mask, position_ids=position, logits_to_keep=keep, use_cache=False
        ).logits
        return out

    def _answer_logits(
        self,
        prompt: tuple[torch.Tensor, torch.Tensor],
        target_BA: torch.Tensor,
        mask_BA: torch.Tensor,
        pseudo_BKH: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits ``[B, A, vocabulary]`` at the columns whose next tokens are ``target_BA`` (padded on the left)."""
        tokens = 0 if pseudo_BKH is None else pseudo_BKH.shape[1]
        columns = lay_out(self.start, tokens, *prompt, target_BA[:, :-1], mask_BA[:, :-1])
        embedded = self._embed_columns(columns, pseudo_BKH)
        return self._logits(embedded, columns.real.long(), columns.position, target_BA.shape[1])

    def _loss(self, batch: RaggedBatch, fused: Fused | None) -> LossSums:
        pseudo_BKH = None if fused is None else self.pseudo_tokens(fused.pooled_BKD)
        prompt = batch.prompt_BL, batch.prompt_mask_BL
        logits = self._answer_logits(prompt, batch.target_BA, batch.target_mask_BA, pseudo_BKH)
        nll_BA = F.cross_entropy(logits.float().flatten(0, 1), batch.target_BA.flatten(), reduction="none")
        answer_B = (nll_BA.view_as(batch.target_BA) * batch.target_mask_BA).sum(1)
        auxiliary_B = torch.zeros_like(answer_B)
        if fused is not None and self.auxiliary is not None:
            auxiliary_B = self.auxiliary(fused.pooled_BKD, batch)
        answer, auxiliary = (answer_B * batch.weight_B).sum(), (auxiliary_B * batch.weight_B).sum()
        total = answer + self.config.auxiliary_weight * auxiliary
        return LossSums(total, answer.detach(), auxiliary.detach(), batch.weight_B.sum())

    def _score_trees(self, batch: RaggedBatch, trees: TreePasses, pseudo_BKH: torch.Tensor | None) -> torch.Tensor:
        """float32 ``[B, C]``: log-probability of every legal answer, minus infinity where a task has fewer."""
        tokens = 0 if pseudo_BKH is None else pseudo_BKH.shape[1]
        prefix = lay_out(self.start, tokens, batch.prompt_BL, batch.prompt_mask_BL)
        embedded = self._embed_columns(prefix, pseudo_BKH)
        # One more column takes what padding answers give.
        log_p = embedded.new_full((len(embedded), trees.answers + 1), float("-inf"), dtype=torch.float32)
        for whole in trees.passes:
            for first in range(0, len(embedded), trees.samples_at_once):
                rows = slice(first, first + trees.samples_at_once)
                tree, own = whole.part(rows), Columns(*(part[rows] for part in prefix))
                together = torch.cat([embedded[rows], self._embed(tree.tokens_BN)], 1)
                masks = tree_masks(own, tree, self.capabilities.kinds, together.dtype)
                logits = self._logits(together, masks, tree_positions(own, tree), tree.tokens_BN.shape[1] + 1)
                found_BC = tree.log_probabilities(logits, self.capabilities.eos)
                place_BC = torch.where(tree.place_BC < 0, trees.answers, tree.place_BC)
                log_p[rows] = log_p[rows].scatter(1, place_BC, found_BC)
        return log_p[:, : trees.answers]

    def _score_rows(self, batch: RaggedBatch, rows: AnswerRows, pseudo_BKH: torch.Tensor | None) -> torch.Tensor:
        """As :meth:`_score_trees`, every answer read as a row of its own."""
        # One more column takes what filling rows give.
        log_p = batch.prompt_BL.new_full((len(batch.ids), rows.answers + 1), float("-inf"), dtype=torch.float32)
        for first in range(0, len(rows.sample_R), rows.rows_at_once):
            part = slice(first, first + rows.rows_at_once)
            sample_R, target_RA, mask_RA = rows.sample_R[part], rows.target_RA[part], rows.target_mask_RA[part]
            prompt = batch.prompt_BL[sample_R], batch.prompt_mask_BL[sample_R]
            own_RKH = None if pseudo_BKH is None else pseudo_BKH[sample_R]
            logits = self._answer_logits(prompt, target_RA, mask_RA, own_RKH)
            picked_RA = logits.gather(2, target_RA[:, :, None])[:, :, 0].float() - log_normalisers(logits)
            log_p[sample_R, rows.answer_R[part]] = torch.where(mask_RA, picked_RA, 0.0).sum(1)
        return log_p[:, : rows.answers]
