"""EGMF whole: a batch's modalities to pseudo tokens, and pseudo tokens, prompt and answers to the LLM's logits.

What the LLM reads was laid out by :mod:`egmf_dist.data.rows`: behind each prompt stands an objective's answer (the
right one) or a scorer's (all legal ones). Logits are computed where a next token is asked for and nowhere else.

Invariants: a sample's result does not depend on what shares its batch; control flow depends on settings only.
Shape legend: B samples, K pseudo tokens, N columns that are read, D width, H backbone width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.rows import Rows
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.model.backbone import Capabilities
from egmf_dist.model.encoders import Encoders
from egmf_dist.model.fusion.base import FUSIONS, Fused
from egmf_dist.model.pseudo_tokens import PseudoTokens
from egmf_dist.model.sequence import masks

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
        fused: Fused = self.fusion(self.encoders(self.embed_text(batch.text_ids), batch), batch)
        return fused

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """``[T, H]`` (or ``[T, D]``, where the text's embedding is learned): the text as its encoder reads it."""
        if self.text_embedding is not None:
            learned: torch.Tensor = self.text_embedding(ids)
            return learned
        # Of a frozen backbone the text is as given as the features are; one that is trained whole learns by it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._embedding_is_trained()):
            return self.embed(ids)

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

    def read(self, rows: Rows, pseudo_BKH: torch.Tensor | None) -> torch.Tensor:
        """Logits ``[N, vocabulary]`` at the columns of ``rows`` that are read, and there alone.

        Args:
            rows: on the model's device.
            pseudo_BKH: of :meth:`speak`.
        """
        embedded = self.lay_out(rows, pseudo_BKH)
        flex = self.backbone.config._attn_implementation == "flex_attention"  # type: ignore[union-attr]
        mask = masks(rows, self.capabilities.kinds, embedded.dtype, flex)
        return self.logits(embedded, mask, rows.position_RC, rows.read_N)

    def lay_out(self, rows: Rows, pseudo_BKH: torch.Tensor | None) -> torch.Tensor:
        """``[R, C, H]``: what the LLM reads, pseudo tokens where they stand."""
        embedded = self.embed(rows.ids_RC)
        if pseudo_BKH is None:
            return embedded
        pseudo = pseudo_BKH.flatten(0, 1)[rows.source_P].to(embedded.dtype)
        return embedded.flatten(0, 1).index_copy(0, rows.pseudo_P, pseudo).view_as(embedded)

    def logits(self, embedded: torch.Tensor, mask: Any, position: torch.Tensor, read_N: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, vocabulary]`` at some of the flattened columns; ``mask`` is of :func:`.sequence.masks`.

        Hidden states are picked before the output layer: a vocabulary of 262,144 words costs 1 MiB a column in fp32.
        ``logits_to_keep`` would take the same columns of every row.
        """
        head: Any = self.backbone.get_output_embeddings()  # type: ignore[operator]

        def pick(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            return (inputs[0].flatten(0, 1)[read_N][None],)

        hook = head.register_forward_pre_hook(pick)
        try:
            out: torch.Tensor = self.backbone(
                inputs_embeds=embedded, attention_mask=mask, position_ids=position, use_cache=False
            ).logits
        finally:
            hook.remove()
        return out[0]
