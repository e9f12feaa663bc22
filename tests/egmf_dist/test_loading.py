"""A backbone under ZeRO-3, tensor by tensor: the same bits, half the model on each of two ranks, one line where not."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.distributed
SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
LAYERS = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "gemma3": ("gemma3_text", LAYERS),
    "gemma4": ("gemma4_text", LAYERS | {"global_head_dim": 8, "hidden_size_per_layer_input": 0}),
}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def save(folder, kind, settings, **options):
    """A random model, its buffers random, too: gemma4's persistent ones are ones as the model makes them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | settings))
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                buffer.normal_()
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """``{name: (folder, whether it can be read by tensor)}``."""
    root = tmp_path_factory.mktemp("loading")
    made = {
        name: (save(root / name, kind, settings, max_shard_size="25KB"), True)
        for name, (kind, settings) in FAMILIES.items()
    }
    assert all(len(list(folder.glob("model-*.safetensors"))) > 2 for folder, _ in made.values())
    one = save(root / "one file", *FAMILIES["gemma3"])
    made["one file"] = one, True
    weights = load_file(one / WHOLE)
    assert "lm_head.weight" not in weights

    def changed(name, weights, by_tensor):
        shutil.copytree(one, root / name)
        save_file(weights, root / name / WHOLE, {"format": "pt"})
        made[name] = root / name, by_tensor

    changed("tied and there twice", weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, True)
    changed("the other one of two tied", {
        "lm_head.weight" if name == "model.embed_tokens.weight" else name: t for name, t in weights.items()
    }, True)  # fmt: skip
    changed("an old table", weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, True)
    changed("names without their prefix", {name.removeprefix("model."): t for name, t in weights.items()}, False)
    torch.save(weights, shutil.copytree(one, root / "pickled") / "pytorch_model.bin")
    (root / "pickled" / WHOLE).unlink()
    made["pickled"] = root / "pickled", False
    made["hub"] = made["llama"]
    return made


@pytest.fixture(scope="module")
def hub(folders, tmp_path_factory):
    """A hub's cache that holds one model under its id."""
    cache = tmp_path_factory.mktemp("hub")
    model = cache / "models--toy--llama"
    shutil.copytree(folders["llama"][0], model / "snapshots" / "0123abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(cache))
        yield "toy/llama"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """``{name: (job, what is said of it)}``."""
    root = tmp_path_factory.mktemp("broken")
    llama = save(root / "whole", *FAMILIES["llama"], max_shard_size="25KB")
    shard = sorted(llama.glob("model-*.safetensors"))[1].name

    def copy(name):
        return shutil.copytree(llama, root / name)

    content = (llama / shard).read_bytes()
    (copy("cut short") / shard).write_bytes(content[:-7])
    (copy("cut in its header") / shard).write_bytes(content[:20])
    (copy("a file missing") / shard).unlink()
    (copy("no map") / INDEX).write_text("{}")
    (copy("no index") / INDEX).write_text("{")
    settings = json.loads((llama / "config.json").read_text())
    (copy("another shape") / "config.json").write_text(json.dumps(settings | {"intermediate_size": 48}))
    said = {
        "cut short": rf"{shard}: [^\n]+",
        "cut in its header": rf"{shard}: [^\n]+",
        "a file missing": rf"[^\n]*{shard}[^\n]*",
        "no map": rf"{INDEX}: it has no weight_map",
        "no index": rf"{INDEX}: [^\n]+",
        "another shape": r"model-\S+: \S+mlp\.\w+\.weight is \[\d+, \d+\], by config.json it is \[\d+, \d+\]",
    }
    jobs = {name: ({"path": str(root / name)}, pattern) for name, pattern in said.items()}
    jobs["a read fails"] = {"path": str(llama), "fails": 5}, r"model-\S+: Input/output error"
    return jobs


@pytest.fixture(scope="module", params=[2, 1])
def loaded(request, folders, hub, broken, run_ranks):
    """What every rank says of every folder; all of one number of ranks share one start of processes."""
    jobs = {}
    for name, (folder, _) in folders.items():
        job = {"path": hub if name == "hub" else str(folder), "precision": "fp32", "weights": True}
        jobs[f"{name} fp32"] = job
        if name in FAMILIES:
            jobs[f"{name} bf16"] = job | {"precision": "bf16"}
            jobs |= {f"{key} present": jobs[key] | {"present": True} for key in (f"{name} fp32", f"{name} bf16")}
    jobs |= {name: job | {"precision": "fp32"} for name, (job, _) in broken.items()}
    jobs["after a failure"] = jobs["llama fp32"]
    return run_ranks("loading.py", request.param, jobs)


def test_weights_and_buffers_are_those_of_from_pretrained_bit_for_bit(folders, loaded):
    """Those of a plain ``from_pretrained``, and under ZeRO-3 partitioned as transformers partitions them."""
    for name, (folder, by_tensor) in folders.items():
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            ranks = loaded.get(f"{name} {precision}")
            if ranks is None:
                continue
            assert [rank["by tensor"] for rank in ranks] == [by_tensor] * len(ranks), name
            plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            expected = dict(plain.named_parameters(remove_duplicate=False))
            expected |= dict(plain.named_buffers(remove_duplicate=False))
            whole = ranks[0]["weights"]
            assert whole.keys() == expected.keys(), name
            for key, value in expected.items():
                assert torch.equal(whole[key], value), f"{name}: {key}"
                assert whole[key].dtype == value.dtype, f"{name}: {key}"
            assert not any(rank["training"] for rank in ranks)
            present = loaded.get(f"{name} {precision} present", ranks)
            assert [rank["parts"] for rank in ranks] == [rank["parts"] for rank in present]
    assert "error" not in loaded["after a failure"][0]


def test_what_cannot_be_loaded_is_said_in_one_line_on_every_rank(broken, loaded):
    for name, (job, said) in broken.items():
        lines = {rank.get("error") for rank in loaded[name]}
        assert len(lines) == 1, name
        line = lines.pop()
        pattern = rf"backbone {re.escape(repr(job['path']))}: its weights cannot be loaded: {said}"
        assert re.fullmatch(pattern, line or ""), f"{name}: {line}"


def test_no_rank_holds_the_whole_model(tmp_path, run_ranks):
    """Of 872 MB in six files two ranks hold half each, and beside it a few times the largest tensor."""
    from transformers.initialization import no_init_weights

    wide = {"vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": False}
    config = AutoConfig.for_model("llama", **SMALL | wide | heads)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    whole, largest = sum(sizes), max(sizes)
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    folder = tmp_path / "large"
    try:
        model.save_pretrained(folder, max_shard_size="165MB")
        del model
        assert (whole > 800e6, len(list(folder.glob("model-*.safetensors")))) == (True, 6)
        (ranks,) = run_ranks("loading.py", 2, {"large": {"path": str(folder), "precision": "fp32"}}).values()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bound = whole / 2 + 3 * largest + 64 * 2**20
    for number, rank in enumerate(ranks):
        print(
            f"rank {number}: {rank['peak'] / whole:.2f} of {whole / 1e6:.0f} MB at most, {rank['left'] / whole:.2f} "
            f"afterwards, in {rank['seconds']:.1f} s; allowed {bound / whole:.2f}"
        )
        assert rank["by tensor"]
        assert rank["peak"] <= bound
