"""One micro-batch: packed modality tokens, the LLM's rows, targets and weights.

Shape legend: B samples, M modalities (text and the run's feature streams), T packed tokens of all modalities.

Invariants: modalities are packed without padding, sample-major and modality-minor; a batch's structure (which tensors
exist, their dtypes) never depends on its samples; a filler sample has weight 0 and is otherwise an ordinary sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import egmf_kernels
from egmf_dist.data.others import OtherModalities
from egmf_dist.data.prompt_ids import PromptIds
from egmf_dist.data.rows import Passes, Rows


class RaggedBatch(NamedTuple):
    """A micro-batch on one device.

    A named tuple, because ZeRO-3's hooks look for tensors in tuples, not in other objects.
    """

    ids: list[str]
    """Sample ids, for messages and predictions."""
    weight_B: torch.Tensor
    """float32: 1, or 0 for a filler."""
    task_B: torch.Tensor
    """int64: which task of the run."""
    language_B: torch.Tensor
    """int64: which language of the run."""
    answer_B: torch.Tensor
    """int64: which legal answer is right (class, or nearest legal number); 0 where no answers were laid out."""
    value_B: torch.Tensor
    """float32: the regression target; 0 for a classification, and where no answers were laid out."""
    text_ids: torch.Tensor
    """int64 ``[Tt]``: backbone token ids of the utterances, packed."""
    features: tuple[torch.Tensor, ...]
    """Of each of the run's feature inputs float32 ``[frames, dim]``, packed."""
    modalities: int
    """M."""
    order_T: torch.Tensor
    """int64 ``[T]``: rows of ``cat(text, *features)`` in sample-major order."""
    cu_segments: torch.Tensor
    """int32 ``[B * M + 1]``: where each (sample, modality) segment begins."""
    position_T: torch.Tensor
    """int64 ``[T]``: place of a token inside its segment."""
    joint_length: int
    """The most tokens of one sample over all its modalities."""
    others: OtherModalities
    """For each segment its sample's tokens of other modalities."""
    prompts: list[PromptIds]
    """Per sample its prompt."""
    rows: Rows
    """What the LLM reads, the right answers behind the prompts; an answer adds up under its sample's number, and where
    ``objective.number`` reads all legal numbers answer c of sample b under ``b * C + c``. No rows where a scorer lays
    out all answers."""
    tokens: int
    """Of the batch: packed modality tokens, and columns of the rows that are no padding."""
    checked: bool = False
    """Whether the boundaries were looked at, which costs nothing on the CPU and a wait on a GPU."""
    answers: Passes | None = None
    """All legal answers, laid out by a scorer; only when answers are to be scored."""

    def to(self, device: torch.device) -> RaggedBatch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if isinstance(value, torch.Tensor)
        }
        if not self.checked:
            egmf_kernels.boundary_values(self.cu_segments, self.order_T.numel())
        moved["checked"] = True
        moved["features"] = tuple(features.to(device, non_blocking=True) for features in self.features)
        moved["others"] = self.others.to(device)
        moved["rows"] = self.rows.to(device)
        if self.answers is not None:
            moved["answers"] = self.answers.to(device)
        return self._replace(**moved)

    @property
    def cut(self) -> list[int]:
        """Per sample, how many tokens of its prompt were left out to keep within the budget."""
        return [prompt.cut for prompt in self.prompts]
