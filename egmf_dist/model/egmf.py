"""EGMF whole: a batch's modalities to pseudo tokens, and pseudo tokens, prompt and answers to the LLM's logits.

The LLM reads ``[padding | start | K pseudo tokens | prompt | answer]``, laid out by :mod:`egmf_dist.model.sequence`.
Rows end together, so the logits of the last columns are the only ones computed (``logits_to_keep``: the hidden states
are sliced before lm_head). What stands there is an objective's (the right answer) or a scorer's (all legal answers).

Invariants: a sample's result does not depend on what shares its batch; control flow depends on settings only.
Shape legend: B samples, K pseudo tokens, L prompt columns, A answer columns, D width, H backbone width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities
from egmf_dist.model.encoders import Encoders
from egmf_dist.model.fusion.base import FUSIONS, Fused
from egmf_dist.model.pseudo_tokens import PseudoTokens
from egmf_dist.model.sequence import Columns, causal_masks, lay_out

if TYPE_CHECKING:
    from egmf_dist.objectives.base import Objective


class Computation(Protocol):
    """Something that is done with the model's parts."""

    def __call__(self, model: EGMF, batch: RaggedBatch) -> Any:
        """Do it with a batch."""
        ...


class EGMF(nn.Module):
    """The model.

    Args:
        config: the fusion's settings.
        backbone: the LLM with what is tuned of it.
        capabilities: what it can do; its width H, its vocabulary, the ids before any text.
        embedding_rms: root mean square of its input embeddings, as its embedding module gives them.
        data: the run's tasks, languages and feature streams.
        objective: what it is trained for; what that trains for itself is ``auxiliary``.
    """

    start: torch.Tensor

    def __init__(
        self,
        config: ModelConfig,
        backbone: nn.Module,
        capabilities: Capabilities,
        embedding_rms: float,
        data: RunData,
        objective: Objective,
    ) -> None:
        super().__init__()
        self.config = config
        self.capabilities = capabilities
        self.backbone = backbone
        self.register_buffer("start", torch.tensor(capabilities.start, dtype=torch.long), persistent=False)
        self.diagnostics: Mapping[str, Sequence[str]] = {}
        self.fused = config.pseudo_tokens > 0
        if self.fused:
            learned = config.text_stream == "learned"
            text_dim = config.width if learned else capabilities.width
            self.text_embedding = nn.Embedding(capabilities.vocabulary, config.width) if learned else None
            self.encoders = Encoders(config, data.streams, text_dim)
            fusion = FUSIONS.find(config.fusion)
            self.fusion: Any = fusion(config, data.modalities, len(data.tasks), len(data.languages))
            self.diagnostics = self.fusion.diagnostics
            self.pseudo_tokens = PseudoTokens(config, capabilities.width, embedding_rms)
        self.masks_honoured = False
        """Whether the backbone was seen to honour our 4-D masks; training then gives it those. A 2-D mask it looks at
        on the host, for which a GPU is waited for at every forward; scoring by sequences keeps it: trees are held to
        that."""
        self.objective = objective
        self.auxiliary = objective.head()

    def describe_kernels(self, device: torch.device) -> str:
        """One line for the log: what computes the fusion block on ``device``.

        Raises:
            EgmfError: ``model.kernels`` is ``triton`` and the kernels cannot run there.
        """
        if not self.fused:
            return "kernels: none (no pseudo tokens, no fusion)"
        try:
            return str(self.fusion.describe(device))
        except ValueError as error:
            raise EgmfError(f"config: model.kernels is 'triton': {error}; 'auto' picks what can run") from error

    def forward(self, batch: RaggedBatch, compute: Computation | None = None) -> Any:
        """What ``compute`` makes of a batch, such as a scorer's scores; without one the objective's loss.

        Inside this module's forward, because that is where ZeRO-3's hooks have partitioned parameters at hand.
        """
        return (compute or self.objective)(self, batch)

    def fuse(self, batch: RaggedBatch) -> Fused | None:
        """The fused representation of a batch; None where there are no pseudo tokens."""
        if not self.fused:
            return None
        if self.text_embedding is not None:
            text = self.text_embedding(batch.text_ids)
        else:
            # Of a frozen backbone the text is as given as the features are; one that is trained whole learns by it.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._embedding_is_trained()):
                text = self.embed(batch.text_ids)
        fused: Fused = self.fusion(self.encoders(text, batch), batch)
        return fused

    def speak(self, fused: Fused | None) -> torch.Tensor | None:
        """``[B, K, H]``: the pseudo tokens; None where nothing is fused."""
        return None if fused is None else self.pseudo_tokens(fused.pooled_BKD)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """``[..., H]``: the backbone's embeddings of token ids."""
        embedding: Any = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return embedding(ids)

    def _embedding_is_trained(self) -> bool:
        embedding: Any = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return bool(embedding.weight.requires_grad)

    def embed_columns(self, columns: Columns, pseudo_BKH: torch.Tensor | None) -> torch.Tensor:
        """``[B, columns, H]``: word embeddings, and the pseudo tokens in their places."""
        embedded = self.embed(columns.ids)
        if pseudo_BKH is None:
            return embedded
        place_BKH = columns.pseudo_BK[:, :, None].expand(-1, -1, embedded.shape[-1])
        return embedded.scatter(1, place_BKH, pseudo_BKH.to(embedded.dtype))

    def logits(self, embedded: torch.Tensor, mask: Any, position: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits of the last ``keep`` columns; ``mask`` is 2-D, 4-D, or 4-D ones by kind of layer."""
        out: torch.Tensor = self.backbone(
            inputs_embeds=embedded, attention_mask=mask, position_ids=position, logits_to_keep=keep, use_cache=False
        ).logits
        return out

    def answer_logits(
        self,
        prompt: tuple[torch.Tensor, torch.Tensor],
        target_BA: torch.Tensor,
        mask_BA: torch.Tensor,
        pseudo_BKH: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits ``[B, A, vocabulary]`` at the columns whose next tokens are ``target_BA`` (padded on the left).

        Args:
            prompt: ids and mask, ``[B, L]``.
            target_BA: int64, an answer's ids and end-of-sequence.
            mask_BA: bool, which of them are real.
            pseudo_BKH: of :meth:`speak`.
        """
        tokens = 0 if pseudo_BKH is None else pseudo_BKH.shape[1]
        columns = lay_out(self.start, tokens, *prompt, target_BA[:, :-1], mask_BA[:, :-1])
        embedded = self.embed_columns(columns, pseudo_BKH)
        mask: Any = columns.real.long()
        if self.training and self.masks_honoured:
            mask = causal_masks(columns, self.capabilities.kinds, embedded.dtype)
        return self.logits(embedded, mask, columns.position, target_BA.shape[1])
