"""What the documents promise exists: links, anchors, commands, code, recipes; and the site of them builds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml
from doc_blocks import Block, blocks, commands, faults, inline_faults
from site_hooks import links, place_in_repository, prose

from egmf_launcher.cli import main
from egmf_launcher.ray.environment import without_launcher_variables
from egmf_shards import synthesize

ROOT = Path(__file__).parents[1]
NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md", "kernels/benchmarks/results/README.md"]
NAMES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as a git forge makes them."""
    found: Counter[str] = Counter()
    names = set()
    for line, is_prose in prose(page):
        if is_prose and (heading := re.match(r"#{1,6} +(.*)", line)):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            name = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            names.add(f"{name}-{found[name]}" if found[name] else name)
            found[name] += 1
    return names


def link_faults(name: str, page: str) -> list[str]:
    """Links of a page, by its place in the repository, that lead nowhere."""
    found = []
    for target, anchor in links(page):
        place = place_in_repository(name, target)
        if not (ROOT / place).exists():
            found.append(f"{target}{anchor}: there is no {place}")
        elif anchor and (not place.endswith(".md") or anchor[1:] not in anchors(page if not target else read(place))):
            found.append(f"{target}{anchor}: {place} has no such heading")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_link_and_anchor_leads_somewhere(name):
    assert link_faults(name, read(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_every_block_of_code_is_checked_or_marked(name):
    assert faults(read(name)) + inline_faults(read(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_was_left_to_fill_in(name):
    assert not re.findall(r"@[A-Z]+@|TODO|FIXME|XXX", read(name))


def test_every_named_recipe_exists():
    named = {found for name in NAMES for found in re.findall(r"configs/[\w-]+\.yaml", read(name))}
    assert named
    assert all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("[a](docs/nowhere.md)", "there is no docs/nowhere.md"),
        ("[a](docs/use.md#nowhere)", "docs/use.md has no such heading"),
        ("![a](docs/images/nowhere.png)", "there is no docs/images/nowhere.png"),
        ("[a](#nowhere)", "README.md has no such heading"),
        ("[a](configs/demo.yaml#data)", "configs/demo.yaml has no such heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link, says):
    (found,) = link_faults("README.md", f"# A\n{link} `[b](no/link)`\n```text\n[c](no/link)\n```\n")
    assert says in found


@pytest.mark.parametrize(
    ("language", "text", "says"),
    [
        ("sh", "egmf train --config demo --training.stepps 3", "stepps"),
        ("sh", "egmf train --config demo --training.global_batch 0", "training.global_batch"),
        ("sh", "egmf train --config mine.yaml", "there is no mine.yaml"),
        ("sh", "egmf trian --config demo", "trian"),
        ("sh", "egmf shards import meld --source DIR", "out"),
        ("sh", "egmf evaluate runs/a --split test \\\n    --remove-all", "remove-all"),
        ("sh", "for s in 0 1; do\n    egmf train --config demo --training.sed $s\ndone", "sed"),
        ("console", "$ make demo && make dmeo", "dmeo"),
        ("sh", "deepspeed --num_gpus 2 launcher/train.py --config demo --hostfiel hosts", "hostfiel"),
        ("sh", "torchrun train.py", "starts no launcher/train.py"),
        ("sh", "python kernels/benchmarks/gpu_check.py --qiuck", "qiuck"),
        ("sh", "python -m egmf_kernels.nothing", "no such program"),
        ("sh", "pip install 'egmf-dist[cuba]'", "no extra"),
        ("sh", "rsync a b", "mark the block"),
        ("python", "x = (", "never closed"),
        ("python", "from egmf_dist import lode", "egmf_dist has no lode"),
        ("yaml", "training: {stepps: 3}", "stepps"),
        ("yaml", "kind: classification\nquestions: {en: Which}", "name"),
        ("json", "{", "double quotes"),
        ("", "egmf train", "a block of language ''"),
    ],
)
def test_a_bad_block_is_found(language, text, says):
    (found,) = faults(f"# A\n\n```{language}\n{text}\n```\n")
    assert says in found


def test_a_mark_excuses_what_nothing_can_judge_and_no_wrong_option():
    page = "<!-- not run: needs a cluster -->\n```sh\nrsync a b\negmf report runs/a --compair runs/b\n```\n"
    (found,) = faults(page)
    assert "compair" in found
    assert len(faults(page.replace("needs a cluster", ""))) == 2
    (found,) = inline_faults("`egmf report runs/a --compair runs/b`, and names: `egmf report`, `egmf report --compare`")
    assert "compair" in found


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; it is in the extra dev")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        if name.startswith("docs/"):
            assert (tmp_path / name.removeprefix("docs/")).with_suffix(".html").is_file()
    for page in tmp_path.rglob("*.html"):
        text = re.sub(r"<(pre|script|style)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
        assert not re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=.?(?:https?:)?//[^>]*>", text), page
        assert not re.findall(r"<p>(?:(?!</p>).)*?\n *(?:[*-] |\d+\. |\|).*", text), f"{page}: a list or table as text"


def titled(name: str) -> dict[str, Block]:
    """The blocks of a tutorial that are files."""
    return {block.title: block for block in blocks(read(f"docs/tutorials/{name}")) if block.title}


def test_the_tutorial_of_ones_own_clips_makes_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = titled("my-clips.md")
    for name, block in files.items():
        Path(name).write_text(block.text, encoding="utf-8")
    exec(compile(files["make_clips.py"].text, "make_clips.py", "exec"), {})
    (shards,) = (block for block in blocks(read("docs/tutorials/my-clips.md")) if "shards import" in block.text)
    for words in commands(shards.text):
        if words[0] == "egmf":
            assert main(words[1:]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    printed = said.out + said.err
    assert "mine: train 192, valid 24, test 24 samples" in printed
    assert "data/mine: 3 shards, 240 samples, 720 members" in printed


def test_the_tutorial_of_a_new_fusion_trains_it(tmp_path, random_backbone):
    synthesize(tmp_path / "data" / "small", samples=60)
    files = titled("new-fusion.md")
    (tmp_path / "late_fusion.py").write_text(files["late_fusion.py"].text, encoding="utf-8")
    settings = yaml.safe_load(files["small.yaml"].text)
    settings["backbone"]["path"] = str(random_backbone)
    settings["training"] |= {"steps": 2, "global_batch": 4, "validate_every": 2, "checkpoint_every": 2}
    settings["training"] |= {"validation_samples": 4, "warmup_steps": 1, "log_every": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    environ = without_launcher_variables(os.environ)
    command = [sys.executable, "-m", "egmf_launcher.cli", "train", "--config", "small.yaml", "--run", "runs/late"]
    command += ["--model.fusion", "late_fusion:LateFusion"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "late fusion: weighted means, two layers" in done.stdout
    assert (tmp_path / "runs" / "late" / "best" / "best.json").is_file()
    (tmp_path / "said.jsonl").write_text(json.dumps({"text": "we won", "language": "en"}) + "\n")
    command = [sys.executable, "-m", "egmf_launcher.cli", "predict", "runs/late", "--input", "said.jsonl"]
    command += ["--out", "answers.jsonl"]
    refused, answered = (
        subprocess.run([*command, *more], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
        for more in ([], ["--trust-code"])
    )
    assert refused.returncode == 2
    assert "would run model.fusion 'late_fusion:LateFusion'; look at that code, then load" in refused.stderr
    assert refused.stderr.rstrip().endswith("or egmf predict --trust-code")
    assert answered.returncode == 0, answered.stderr
    assert set(json.loads((tmp_path / "answers.jsonl").read_text())["answers"]) == {"emotion", "sentiment"}
