"""Tiny random encoders of each family, written to disk as Hugging Face writes them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf

SOUND = {
    "wavlm": (
        hf.WavLMConfig,
        hf.WavLMModel,
        {"num_buckets": 16, "max_bucket_distance": 32},
    ),
    "hubert": (hf.HubertConfig, hf.HubertModel, {}),
    "wav2vec2": (hf.Wav2Vec2Config, hf.Wav2Vec2Model, {}),
    "whisper": (hf.WhisperConfig, hf.WhisperModel, {}),
}
PICTURES = {
    "clip": (hf.CLIPConfig, hf.CLIPModel),
    "clip_vision": (hf.CLIPVisionConfig, hf.CLIPVisionModel),
    "dinov2": (hf.Dinov2Config, hf.Dinov2Model),
    "siglip": (hf.SiglipVisionConfig, hf.SiglipVisionModel),
    "vit": (hf.ViTConfig, hf.ViTModel),
}
_CONVOLUTIONS = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (10, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def speech(folder: Path, family: str) -> Path:
    """An encoder of speech, 24 wide with two layers."""
    make_config, make, more = SOUND[family]
    torch.manual_seed(0)
    if family == "whisper":
        config = make_config(
            vocab_size=64, d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=80, max_target_positions=32,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None,
        )  # fmt: skip
        hf.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    else:
        config = make_config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **_CONVOLUTIONS, **more
        )
        hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    make(config).save_pretrained(folder)
    return folder


def whisper(folder: Path, positions: int = 16, languages: tuple[str, ...] = ("en", "zh")) -> Path:
    """A Whisper that can be asked for words; what it says is random, a byte a token, ``positions`` - 4 of them."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{language}|>" for language in languages)]
    special += [f"<|{name}|>" for name in ("translate", "transcribe", "startoflm", "startofprev", "nospeech")]
    special += ["<|notimestamps|>"]
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    ids = {token: len(vocabulary) + number for number, token in enumerate(special)}
    tokenizer = hf.WhisperTokenizer(vocab=vocabulary | {special[0]: ids[special[0]]}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    end = ids["<|endoftext|>"]
    torch.manual_seed(0)
    config = hf.WhisperConfig(
        vocab_size=len(tokenizer), d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=80,
        max_target_positions=positions, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"], suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = hf.WhisperForConditionalGeneration(config)
    said = model.generation_config
    said._from_model_config = False  # or what follows is not read again
    said.max_length, said.no_timestamps_token_id = positions, ids["<|notimestamps|>"]
    said.is_multilingual, said.task_to_id = (
        True,
        {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    )
    said.lang_to_id = {f"<|{language}|>": ids[f"<|{language}|>"] for language in languages}
    letters = {vocabulary[letter] for letter in "abcdefghijklmnopqrstuvwxyz"}
    said.suppress_tokens = [number for number in range(len(tokenizer)) if number not in letters]
    model.save_pretrained(folder)
    hf.WhisperProcessor(hf.WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    if not (folder / "preprocessor_config.json").is_file():
        hf.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


def vision(folder: Path, family: str) -> Path:
    """An encoder of pictures of 32 pixels, 24 wide with two layers."""
    make_config, make = PICTURES[family]
    torch.manual_seed(0)
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    size |= {"image_size": 32, "patch_size": 8}
    if family == "clip":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        text |= {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
        config = make_config(vision_config=size, text_config=text)
    else:
        config = make_config(**size)
    make(config).save_pretrained(folder)
    said = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder
