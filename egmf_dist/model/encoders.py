"""Text and feature streams to packed tokens of one width.

Shape legend: T packed tokens, D width, H the backbone's width. A stream that no sample of the run has gets no encoder,
one in several widths one for each; what a sample lacks is a segment of zero length through the same encoder.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.streams import Streams, inputs_of, modalities_of


def sinusoids(position_T: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal encoding of places inside a segment, float32 ``[T, width]`` (Vaswani et al. 2017, equation 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, device=position_T.device) * (-math.log(10000.0) / width))
    angle = position_T[:, None].float() * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class Encoders(nn.Module):
    """Project each modality's rows to width D, add the modality's and the place's encoding, pack sample-major.

    Args:
        config: widths and switches.
        streams: the run's feature streams and their widths.
        text_dim: width of the text rows (the backbone's, or D for a learned embedding).
    """

    def __init__(self, config: ModelConfig, streams: Streams, text_dim: int) -> None:
        super().__init__()
        width = config.width
        self.width = width
        self.text = nn.Linear(text_dim, width)
        inputs, modalities = inputs_of(streams), modalities_of(streams)
        self.features = nn.ModuleDict({own.key: nn.Linear(own.dim, width) for own in inputs})
        self._modality_of = [0, *(modalities.index(own.stream) for own in inputs)]
        self.modality = nn.Embedding(len(modalities), width)
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
        for encoder, features in zip(self.features.values(), batch.features, strict=True):
            rows.append(encoder(features.to(dtype)))
        # By modality and not by token: numbers of the CPU that index on a GPU would make it wait.
        kinds = self.modality(torch.arange(batch.modalities, device=text_TH.device)).unbind(0)
        packed_TD = torch.cat([own + kinds[m] for own, m in zip(rows, self._modality_of, strict=True)])
        packed_TD = packed_TD[batch.order_T] + self.place(sinusoids(batch.position_T, self.width).to(dtype))
        return self.dropout(packed_TD)
