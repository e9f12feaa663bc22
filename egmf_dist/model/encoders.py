"""Text, audio and vision to packed tokens of one width.

Shape legend: T packed tokens, D width, H the backbone's width. A modality that no shard of the run has gets no encoder;
one that a sample lacks is a segment of zero length through the same encoder.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_shards import MODALITIES


def sinusoids(position_T: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal encoding of places inside a segment, float32 ``[T, width]`` (Vaswani et al. 2017, equation 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, device=position_T.device) * (-math.log(10000.0) / width))
    angle = position_T[:, None].float() * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class Encoders(nn.Module):
    """Project each modality's rows to width D, add the modality's and the place's encoding, pack sample-major.

    Args:
        config: widths and switches.
        audio_dim: width of the audio features; 0 for none.
        vision_dim: width of the vision features; 0 for none.
        text_dim: width of the text rows (the backbone's, or D for a learned embedding).
    """

    def __init__(self, config: ModelConfig, audio_dim: int, vision_dim: int, text_dim: int) -> None:
        super().__init__()
        width = config.width
        self.width = width
        self.text = nn.Linear(text_dim, width)
        self.audio = nn.Linear(audio_dim, width) if audio_dim else None
        self.vision = nn.Linear(vision_dim, width) if vision_dim else None
        self.modality = nn.Embedding(len(MODALITIES), width)
        self.place = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.place.weight, std=0.2 / math.sqrt(width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, text_TH: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        """Packed tokens ``[T, D]`` in sample-major order.

        Args:
            text_TH: one row per text token, packed over the batch.
            batch: features, order and places.
        """
        dtype = self.text.weight.dtype
        # A backbone's embeddings are small and differ in scale from model to model; features are the user's.
        normed = nn.functional.rms_norm(text_TH.float(), text_TH.shape[-1:], eps=1e-6).to(dtype)
        rows = [self.text(normed)]
        for encoder, features in ((self.audio, batch.audio), (self.vision, batch.vision)):
            rows.append(rows[0].new_zeros(0, self.width) if encoder is None else encoder(features.to(dtype)))
        # By modality and not by token: numbers of the CPU that index on a GPU would make it wait.
        kind_MD = self.modality(torch.arange(len(rows), device=text_TH.device))
        packed_TD = torch.cat([own + kind for own, kind in zip(rows, kind_MD.unbind(0), strict=True)])
        packed_TD = packed_TD[batch.order_T] + self.place(sinusoids(batch.position_T, self.width).to(dtype))
        return self.dropout(packed_TD)
