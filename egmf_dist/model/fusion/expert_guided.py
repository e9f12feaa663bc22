"""Expert-guided fusion: packed tokens to K pooled vectors through three experts and the two-level gate.

Our interpretation of the paper (its text gives no equations)::

    c_b     = W_c [mean of x per modality (0 if absent); presence; task; language]
    alpha_t = softmax_e((W_g x_t + U c_b) / tau_1)                 level 1: experts, per token
    beta_b  = softmax_m(W_z c_b / tau_2 + log presence)            level 2: modalities, per sample
    o_t     = RMSNorm(x_t + sum_e alpha_te (W_e a_te + b_e))
    P_bk    = sum_m beta_bm sum_t softmax_t(q_k . o_t / sqrt(d)) o_t

Shape legend: T packed tokens, D width, B samples, M modalities, E enabled experts, K pseudo tokens.
Invariant: every rank runs every module, whatever its samples hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

import egmf_kernels
from egmf_dist.config import ModelConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.model.fusion.base import Fused
from egmf_dist.model.fusion.experts import AttentionExperts, LocalExpert


class GateContext(nn.Module):
    """Per-sample context of the gate and the logits of both its levels."""

    def __init__(self, config: ModelConfig, experts: int, modalities: int, tasks: int, languages: int) -> None:
        super().__init__()
        self.tasks, self.languages = tasks, languages
        inputs = modalities * (config.width + 1) + tasks + languages
        self.context = nn.Linear(inputs, config.width)
        self.to_experts = nn.Linear(config.width, experts) if experts > 1 else None
        self.to_modalities = nn.Linear(config.width, modalities)

    def forward(
        self, mean_BMD: torch.Tensor, presence_BM: torch.Tensor, batch: RaggedBatch
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Logits ``[B, E]`` for the experts (None where there is only one) and ``[B, M]`` for the modalities."""
        parts = [
            mean_BMD.flatten(1),
            presence_BM,
            one_hot(batch.task_B, self.tasks),
            one_hot(batch.language_B, self.languages),
        ]
        context_BD = self.context(torch.cat([p.to(mean_BMD.dtype) for p in parts], 1))
        return self.to_experts(context_BD) if self.to_experts is not None else None, self.to_modalities(context_BD)


class ExpertMix(nn.Module):
    """Owns the weights that the fused mix reads, so that ZeRO-3 gathers them with this module."""

    def __init__(self, config: ModelConfig, experts: int, modalities: int) -> None:
        super().__init__()
        self.modalities, width = modalities, config.width
        self.kernels = config.kernels
        self.temperature = config.gate_temperature
        self.weight = nn.Parameter(torch.empty(experts, width, width).uniform_(-1, 1) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(experts, width))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.gate_weight = (
            nn.Parameter(torch.empty(experts, width).uniform_(-1, 1) / math.sqrt(width))
            if config.gate and experts > 1
            else None
        )

    def forward(
        self,
        x_TD: torch.Tensor,
        streams: list[torch.Tensor],
        gate_context_BE: torch.Tensor | None,
        modality_weight_BM: torch.Tensor | None,
        cu_segments: torch.Tensor,
        segment_T: torch.Tensor,
        checked: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed tokens ``[T, D]`` and gate weights ``[T, E]``."""
        return egmf_kernels.gated_expert_mix(
            x_TD,
            streams,
            self.weight,
            self.bias,
            self.gate_weight,
            gate_context_BE,
            cu_segments,
            self.modalities,
            self.norm_weight,
            self.temperature,
            modality_weight_BM,
            segment_T=segment_T,
            checked=checked,
            implementation=self.kernels,
        )


class QueryPool(nn.Module):
    """K learned queries over each modality's tokens, and the modality mix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernels = config.kernels
        self.temperature = config.modality_temperature
        self.queries = nn.Parameter(torch.randn(config.pseudo_tokens, config.width) * 0.5)

    def forward(
        self, mixed_TD: torch.Tensor, logits_BM: torch.Tensor, cu_segments: torch.Tensor, checked: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled ``[B, K, D]`` and the modalities' weights ``[B, M]``."""
        return egmf_kernels.ragged_pool_gate(
            mixed_TD,
            self.queries,
            logits_BM,
            cu_segments,
            self.temperature,
            checked=checked,
            implementation=self.kernels,
        )


class ExpertGuidedFusion(nn.Module):
    """Packed tokens of a batch to its fused representation.

    Diagnostics: ``experts``, the mean gate weight of each over a sample's tokens, and each token's own; ``modalities``,
    the gate weight of each.
    """

    def __init__(self, config: ModelConfig, modalities: Sequence[str], tasks: int, languages: int) -> None:
        super().__init__()
        self.config = config
        experts = [
            name
            for name, on in (
                ("local", config.local_expert),
                ("semantic", config.semantic_expert),
                ("global", config.global_expert),
            )
            if on
        ]
        self.diagnostics = {"experts": experts, "modalities": list(modalities)}
        self.local = LocalExpert(config) if config.local_expert else None
        self.attention = AttentionExperts(config) if config.semantic_expert or config.global_expert else None
        self.gate = GateContext(config, len(experts), len(modalities), tasks, languages) if config.gate else None
        self.mix = ExpertMix(config, len(experts), len(modalities))
        self.pool = QueryPool(config)

    def describe(self, device: torch.device) -> str:
        """One line: which implementation of each operator will run on ``device``.

        Raises:
            ValueError: ``kernels`` is ``triton`` and cannot run there.
        """
        config = self.config
        probe = torch.empty(0, config.width, device=device, dtype=self.pool.queries.dtype)
        largest = max(config.kernel_sizes) if config.local_expert else 1
        line = egmf_kernels.describe(
            config.kernels, probe, len(self.diagnostics["experts"]), config.pseudo_tokens, largest
        )
        if self.attention is None:
            return line
        heads = probe.view(0, config.heads, config.width // config.heads)
        return f"{line}; attention over {'packed tokens' if self.attention.packs(heads) else 'padded sequences'}"

    def forward(self, x_TD: torch.Tensor, batch: RaggedBatch) -> Fused:
        """Run the experts, mix, pool.

        Args:
            x_TD: packed tokens, sample-major.
            batch: segment boundaries, tasks and languages.
        """
        cu = batch.cu_segments
        presence_BM = (cu.diff() > 0).reshape(-1, batch.modalities)
        segment_T = egmf_kernels.segment_ids(cu, len(x_TD))
        streams = []
        if self.local is not None:
            streams.append(self.local(x_TD, cu, segment_T, batch.checked))
        if self.attention is not None:
            streams.extend(self.attention(x_TD, segment_T, batch))

        context_BE, logits_BM = None, x_TD.new_zeros(presence_BM.shape)
        if self.gate is not None:
            mean_BMD = ragged_mean(x_TD, cu).view(*presence_BM.shape, -1)
            context_BE, logits_BM = self.gate(mean_BMD, presence_BM, batch)
        in_mix = self.config.modality_weight_in == "mix"
        beta_BM = egmf_kernels.modality_gate(logits_BM, presence_BM, self.config.modality_temperature)
        weight_BM = beta_BM if in_mix else None
        mixed_TD, alpha_TE = self.mix(x_TD, streams, context_BE, weight_BM, cu, segment_T, batch.checked)
        # The second level acts once: where it weighed the mix already, the pooling takes present modalities equally.
        logits_BM = torch.zeros_like(logits_BM) if in_mix else logits_BM
        pooled_BKD, _ = self.pool(mixed_TD, logits_BM, cu, batch.checked)
        if self.training:  # nobody looks at them, and on a GPU a sample's mean is one thread's walk over its tokens
            return Fused(pooled_BKD, {})
        with torch.no_grad():
            expert_BE = ragged_mean(alpha_TE.float(), cu[:: batch.modalities])
        diagnostics = {"experts": expert_BE, "modalities": beta_BM.detach().float()}
        return Fused(pooled_BKD, diagnostics, {"experts": alpha_TE})


def one_hot(number_B: torch.Tensor, count: int) -> torch.Tensor:
    """bool ``[B, count]``. torch's own looks at the numbers, and whether they are in range, on the host."""
    return number_B[:, None] == torch.arange(count, device=number_B.device)


def ragged_mean(x_TD: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
    """Mean of each run of tokens, zeros where it is empty: ``[runs, D]`` in the dtype of ``x_TD``.

    Sums in at least fp32 and, unlike ``index_add``, in a fixed order on a GPU.
    """
    wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
    return torch.segment_reduce(wide_TD, "mean", offsets=boundaries.long(), axis=0, initial=0).to(x_TD.dtype)
