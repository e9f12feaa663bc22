"""The nearest published predecessor (MSE-Adapter, AAAI 2025), re-implemented from its description for comparison.

One LSTM for audio and one for vision; their last states times a projection of the text's mean embedding, added up;
three MLPs of different width, put together by a convolution; a projection to the LLM's width, of which every pseudo
token is a scaled and shifted copy. The LLM is frozen. :class:`Fusion` is that; :class:`Padded` drives it as the
predecessor does (dense batches, logits of every position), :class:`Ragged` drives the same modules over packed features
and rows.

Shape legend: B samples, L columns, H backbone width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_sequence

from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.prompt_ids import Limits
from egmf_dist.model.backbone import Capabilities
from egmf_dist.model.egmf import EGMF
from egmf_dist.model.fusion.base import Fused
from egmf_dist.objectives.base import Objective

MIXED = 256
"""Width in which the modalities are mixed."""
HIDDEN = (64, 32)
"""Of the LSTMs of audio and of vision, as for CMU-MOSEI."""
SCALES = (8, 32, 16)
"""The MLPs' hidden widths are H divided by these."""


class Fusion(nn.Module):
    """Two streams and a mean text embedding to pseudo tokens.

    Args:
        hidden: the backbone's width H.
        dims: widths of audio's and vision's features.
        pseudo_tokens: how many.
    """

    def __init__(self, hidden: int, dims: Sequence[int], pseudo_tokens: int = 4) -> None:
        super().__init__()
        self.lstms = nn.ModuleList([nn.LSTM(dim, own, batch_first=True) for dim, own in zip(dims, HIDDEN, strict=True)])
        self.projections = nn.ModuleList([nn.Linear(own, MIXED) for own in HIDDEN])
        self.text = nn.Linear(hidden, MIXED)
        self.scales = nn.ModuleList(
            [nn.Sequential(nn.Linear(MIXED, hidden // s), nn.GELU(), nn.Linear(hidden // s, MIXED)) for s in SCALES]
        )
        self.together = nn.Conv2d(1, 1, kernel_size=(1, len(SCALES)))
        self.up = nn.Linear(MIXED, hidden)
        self.copies = nn.Linear(1, pseudo_tokens)

    def forward(self, streams: Sequence[PackedSequence], text_BH: torch.Tensor) -> torch.Tensor:
        """``[B, K, H]`` in the weights' dtype; ``text_BH`` is the mean of each text's embeddings."""
        dtype = self.up.weight.dtype
        text_BH = text_BH.to(dtype)
        states = [
            projection(lstm(stream.to(dtype))[1][0][-1])
            for lstm, projection, stream in zip(self.lstms, self.projections, streams, strict=True)
        ]
        mixed = torch.stack(states).sum(0) * self.text(text_BH)
        scales = torch.stack([mlp(mixed) for mlp in self.scales], dim=2)
        out_BH = self.up(self.together(scales[:, None])[:, 0, :, 0])
        copies: torch.Tensor = self.copies(out_BH[..., None]).transpose(1, 2)
        return copies


class Dense(NamedTuple):
    """A padded batch."""

    text_BL: torch.Tensor
    """int64: the utterances' ids, 0 behind them."""
    streams: tuple[torch.Tensor, ...]
    """float32 ``[B, longest, dim]`` of audio and vision."""
    lengths: tuple[torch.Tensor, ...]
    """int64 ``[B]`` of each."""
    ids_BL: torch.Tensor
    """int64: the text's start, 0 for each pseudo token, prompt, answer, end of sequence; padding on the left."""
    pseudo_BK: torch.Tensor
    """int64: the pseudo tokens' columns."""
    labels_BL: torch.Tensor
    """int64: the answer's ids and the end of sequence where they stand, -100 elsewhere."""


class Padded(nn.Module):
    """The predecessor's way: no mask, and logits of every position."""

    def __init__(self, backbone: nn.Module, fusion: Fusion) -> None:
        super().__init__()
        self.backbone, self.fusion = backbone, fusion

    def forward(self, batch: Dense) -> torch.Tensor:
        """The mean loss a token."""
        embed: Any = self.backbone.get_input_embeddings()  # type: ignore[operator]
        streams = [
            pack_padded_sequence(dense, lengths.cpu(), batch_first=True, enforce_sorted=False)
            for dense, lengths in zip(batch.streams, batch.lengths, strict=True)
        ]
        pseudo = self.fusion(streams, embed(batch.text_BL).float().mean(1))
        places = batch.pseudo_BK[:, :, None].expand(-1, -1, pseudo.shape[-1])
        embedded = embed(batch.ids_BL).scatter(1, places, pseudo.to(embed.weight.dtype))
        loss: torch.Tensor = self.backbone(inputs_embeds=embedded, labels=batch.labels_BL, use_cache=False).loss
        return loss


class Ragged(EGMF):
    """The same modules over packed features and rows: what our loop makes of them."""

    def __init__(self, backbone: nn.Module, fusion: Fusion, capabilities: Capabilities, objective: Objective) -> None:
        nn.Module.__init__(self)
        self.backbone, self.predecessor = backbone, fusion
        self.capabilities, self.objective, self.auxiliary = capabilities, objective, None

    def fuse(self, batch: RaggedBatch) -> Fused:
        """Its pseudo tokens."""
        lengths_BM = batch.cu_segments.diff().view(-1, batch.modalities).tolist()
        audio, vision = (
            pack_sequence(list(rows.split([own[m] for own in lengths_BM])), enforce_sorted=False)
            for m, rows in enumerate(batch.features, start=1)
        )
        texts = self.embed(batch.text_ids).float().split([own[0] for own in lengths_BM])
        return Fused(self.predecessor([audio, vision], torch.stack([text.mean(0) for text in texts])), {})

    def speak(self, fused: Fused | None) -> torch.Tensor | None:
        """They are pseudo tokens already."""
        return None if fused is None else fused.pooled_BKD


def dense(batch: RaggedBatch, answers: Sequence[Sequence[int]], limits: Limits) -> Dense:
    """The batch that the predecessor would be given.

    Args:
        batch: the same samples.
        answers: each one's right answer as ids.
        limits: what stands before a text and behind an answer.
    """
    lengths_BM = batch.cu_segments.diff().view(-1, batch.modalities)
    texts = batch.text_ids.split(lengths_BM[:, 0].tolist())
    streams = [rows.split(lengths_BM[:, m].tolist()) for m, rows in enumerate(batch.features, start=1)]
    blank = [0] * limits.pseudo_tokens
    prompts = [torch.tensor([*limits.start, *blank, *prompt.ids, *limits.after]) for prompt in batch.prompts]
    said = [torch.tensor([*ids, limits.eos]) for ids in answers]
    ids = [torch.cat(pair) for pair in zip(prompts, said, strict=True)]
    labels = [torch.cat([torch.full_like(p, -100), a]) for p, a in zip(prompts, said, strict=True)]
    ids_BL = pad_sequence(ids, batch_first=True, padding_side="left")
    first = torch.tensor([ids_BL.shape[1] - len(own) + len(limits.start) for own in ids])
    return Dense(
        text_BL=pad_sequence(list(texts), batch_first=True),
        streams=tuple(pad_sequence(list(rows), batch_first=True) for rows in streams),
        lengths=tuple(lengths_BM[:, m] for m in range(1, batch.modalities)),
        ids_BL=ids_BL,
        pseudo_BK=first[:, None] + torch.arange(limits.pseudo_tokens),
        labels_BL=pad_sequence(labels, batch_first=True, padding_value=-100, padding_side="left"),
    )
