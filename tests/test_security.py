"""What is trusted, and what is not: no source file may begin to read what could run code; what is foreign runs nothing.

``docs/security.md`` says why each exception below is none.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from egmf_dist.config import BackboneConfig, Config
from egmf_dist.errors import EgmfError
from egmf_dist.run.folder import Run, check_run, discard_leftovers

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for part in ("egmf_dist", "data_shards/egmf_shards", "kernels", "launcher")
    for path in (ROOT / part).rglob("*.py")
)

# A call that runs what a file, or a shell, says.
REFUSED = {
    *(f"{module}.{name}" for module in ("pickle", "cPickle", "_pickle", "cloudpickle", "dill") for name in
      ("load", "loads", "Unpickler")),
    "pandas.read_pickle", "joblib.load", "shelve.open", "marshal.load", "marshal.loads",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "shutil.unpack_archive", "os.system", "os.popen", "eval", "exec",
    "webdataset.WebDataset", "ray.data.read_webdataset", "torch.hub.load", "torch.package.PackageImporter",
}  # fmt: skip
METHODS = {"extractall"}
"""On whatever object: an archive's members may lie outside of the folder they are put into."""
# What must be said in a call of the name, and with which value.
NEEDED = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "jinja2.Environment": ("autoescape", True),
}
# What must not be said in any call.
FORBIDDEN = {"trust_remote_code": True, "allow_pickle": True, "shell": True, "weights_only": False}
ALLOWED = {
    ("egmf_dist/bench/peers/read_pickle.py", "pickle.load"): "what the same benchmark wrote a moment before",
    ("egmf_dist/bench/peers/read_webdataset.py", "webdataset.WebDataset"): "with WDS_SECURE, over generated shards",
    ("egmf_dist/bench/peers/read_ray.py", "ray.data.read_webdataset"): "over shards that the benchmark generated",
}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name of a file stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(source: str) -> Iterator[tuple[str, str]]:
    """The dotted name of each call that could run foreign code, and what is wrong with it."""
    tree = ast.parse(source)
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:  # an unpickler of one's own
                first, _, rest = ast.unparse(base).partition(".")
                whole = names.get(first, first) + (f".{rest}" if rest else "")
                if whole in REFUSED:
                    yield whole, f"line {node.lineno}: a class of {whole}"
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        whole = names.get(first, first) + (f".{rest}" if rest else "")
        said = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        if whole in REFUSED or whole.rpartition(".")[2] in METHODS:
            yield whole, f"line {node.lineno}: {whole}"
        if whole in NEEDED:
            key, value = NEEDED[whole]
            given = said.get(key)
            if not isinstance(given, ast.Constant) or given.value is not value:
                yield whole, f"line {node.lineno}: {whole} without {key}={value}"
        for key, value in FORBIDDEN.items():
            given = said.get(key)
            if isinstance(given, ast.Constant) and given.value is value:
                yield whole, f"line {node.lineno}: {whole} with {key}={value}"


def test_nothing_new_reads_what_could_run_code() -> None:
    found, used = [], set()
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        for name, what in violations(path.read_text(encoding="utf-8")):
            if (place, name) in ALLOWED:
                used.add((place, name))
            else:
                found.append(f"{place}, {what}")
    assert found == [], "read it as data, or say in ALLOWED and docs/security.md why its origin is trusted"
    assert used == ALLOWED.keys()  # no exception outlives its reason


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\ntorch.load(p)", "torch.load"),
        ("import torch\ntorch.load(p, weights_only=False)", "torch.load"),
        ("import torch\ntorch.load(p, weights_only=x)", "torch.load"),
        ("import torch as t\nt.load(p)", "torch.load"),
        ("from torch import load as read\nread(p)", "torch.load"),
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("def f():\n    from pickle import loads\n    return loads(b)", "pickle.loads"),
        ("import pickle\nclass Own(pickle.Unpickler):\n    pass", "pickle.Unpickler"),
        ("import cloudpickle as c\nc.loads(b)", "cloudpickle.loads"),
        ("import yaml\nyaml.load(f, Loader=x)", "yaml.load"),
        ("import numpy as np\nnp.load(f)", "numpy.load"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "numpy.load"),
        ("import tarfile\ntarfile.open(p).extractall(d)", "tarfile.open(p).extractall"),
        ("import subprocess\nsubprocess.run(c, shell=True)", "subprocess.run"),
        ("from transformers import AutoModel\nAutoModel.from_pretrained(p, trust_remote_code=True)",
         "transformers.AutoModel.from_pretrained"),
        ("import webdataset as wds\nwds.WebDataset(u).decode()", "webdataset.WebDataset"),
        ("import os\nos.system(c)", "os.system"),
        ("eval(text)", "eval"),
        ("from jinja2 import Environment\nEnvironment()", "jinja2.Environment"),
    ],
)  # fmt: skip
def test_a_bad_call_is_found(source: str, name: str) -> None:
    assert name in {found for found, _ in violations(source)}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p, weights_only=True)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import yaml\nyaml.safe_load(f)",
        "import pickle\npickle.dump(x, f)",
        "model.eval()",
        "from transformers import AutoModel\nAutoModel.from_pretrained(p, trust_remote_code=c.trust_remote_code)",
    ],
)
def test_a_good_call_passes(source: str) -> None:
    assert list(violations(source)) == []


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_weights_of_a_backbone_that_would_run_code_are_refused(tmp_path: Path, random_backbone: Path) -> None:
    import shutil

    import torch

    from egmf_dist.model.backbone import load_backbone

    flag, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(random_backbone, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Runs(flag)}, folder / "pytorch_model.bin")
    with pytest.raises(EgmfError, match="Weights only load failed") as caught:
        load_backbone(BackboneConfig(path=str(folder), tuning="frozen"), torch.float32)
    assert "\n" not in str(caught.value)
    assert not flag.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert flag.exists()  # it would have


def test_code_of_a_backbone_is_not_run_unasked(tmp_path: Path, random_backbone: Path) -> None:
    import shutil

    from egmf_dist.model.backbone import load_backbone_config

    flag, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(random_backbone, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(flag)!r}).touch()\n"
        "from transformers import PretrainedConfig\nclass OwnConfig(PretrainedConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(EgmfError, match="contains custom code"):
        load_backbone_config(BackboneConfig(path=str(folder)))
    assert not flag.exists()


def test_the_benchmarks_webdataset_runs_no_pickle_of_a_tar(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("s.json", b"{}"), ("s.pkl", pickle.dumps(Runs(flag)))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    script = (
        "from read_webdataset import open_reader\n"
        f"next(open_reader({{'files': [{str(tmp_path / 'a.tar')!r}], 'batch': 1, 'workers': 0}})())\n"
    )
    peers = str(ROOT / "egmf_dist" / "bench" / "peers")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([peers, os.environ.get("PYTHONPATH", "")])}
    environ.pop("WDS_SECURE", None)
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Unpickling is not allowed" in done.stderr
    assert not flag.exists()


@pytest.mark.parametrize("name", ["/etc/hostname", "../other", "adapter/../../x"])
def test_an_exported_folder_names_no_file_outside_of_it(tmp_path: Path, name: str) -> None:
    from egmf_dist.inference.portable import DESCRIPTION, read_portable

    sections = {"data": {}, "prompt": {}, "backbone": {}, "model": {}, "evaluation": {}}
    about = {"sha256": {name: "0"}, "config": sections, "precision": "fp32"}
    about["data"] = {"tasks": [], "languages": [], "streams": {}}
    (tmp_path / DESCRIPTION).write_text(json.dumps(about))
    with pytest.raises(EgmfError, match="which is not in the folder"):
        read_portable(tmp_path)


@pytest.mark.parametrize(
    ("section", "setting", "says"),
    [
        ("model", {"fusion": "os:abort"}, "model.fusion 'os:abort'"),
        ("backbone", {"tuning": "os:abort"}, "backbone.tuning 'os:abort'"),
        ("backbone", {"trust_remote_code": True}, "the LLM's own code"),
    ],
)
def test_code_that_an_exported_folder_names_is_not_run_unasked(
    tmp_path: Path, section: str, setting: dict[str, object], says: str
) -> None:
    from egmf_dist.inference.model import load
    from egmf_dist.inference.portable import DESCRIPTION

    sections = {name: {} for name in ("data", "prompt", "backbone", "model", "evaluation")} | {section: setting}
    about = {"sha256": {}, "config": sections, "precision": "fp32"}
    (tmp_path / DESCRIPTION).write_text(json.dumps(about | {"data": {"tasks": [], "languages": [], "streams": {}}}))
    with pytest.raises(EgmfError, match="trust_code=True") as caught:
        load(tmp_path)
    assert says in str(caught.value)


def test_an_exported_folder_does_not_choose_a_kernel_of_the_hubs() -> None:
    from egmf_dist.inference.portable import _config

    foreign = {"backbone": {"attn_implementation": "somebody/kernel"}, "data": {"cache_dir": "/somewhere"}}
    config = _config({"data": {}, "prompt": {}, "backbone": {}, "model": {}, "evaluation": {}} | foreign, "fp32")
    assert (config.backbone.attn_implementation, config.data.cache_dir) == ("auto", None)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("runs/-rf", "begins with '-'"),
        ("runs/.hidden", r"begins with '\.'"),
        ("runs/a\nb", "cannot be printed"),
        ("runs/a\x1b[2J", "cannot be printed"),
        ("runs/a\u202egpj", "cannot be printed"),
        ("runs\x07/a", "cannot be printed"),
        ("..", "names no folder"),
    ],
)
def test_names_of_runs(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EgmfError, match=says) as caught:
        check_run(Config(), Run(Path(name)), "never")
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_a_runs_name_is_no_pattern(tmp_path: Path) -> None:
    """Clearing up after the run `*` leaves what other runs' starts are making."""
    run, theirs, ours = Run(tmp_path / "*"), tmp_path / ".b.01234567.tmp", tmp_path / ".*.01234567.tmp"
    for folder in (run.folder, theirs, ours):
        folder.mkdir()
    long_ago = time.time() - 3 * 86400
    for folder in (theirs, ours):
        os.utime(folder, (long_ago, long_ago))
    discard_leftovers(run)
    assert theirs.is_dir()
    assert not ours.exists()
