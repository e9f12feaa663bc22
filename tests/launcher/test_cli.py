"""The command line as a user meets it: every mistake is one line, a non-zero exit code, and nothing left behind."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from egmf_launcher.cli import VERBS, main, parse
from egmf_launcher.decide import LaunchArguments
from egmf_launcher.evaluate import Wanted
from egmf_launcher.signatures import call

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "verb"),
        ("bogus", "invalid choice: 'bogus'"),
        ("shards", "shard_verb"),
        ("shards import meld --out x", "source"),
        ("shards info nowhere", "nowhere"),
        ("shards synth --out x --samples many", "many"),
        ("shards import meld --source nowhere --out x", "nowhere"),
        ("shards import label-csv --source nowhere.csv --dataset d --language zh --out x", "nowhere.csv"),
        ("backbone tiny --text nowhere --out x", "nowhere"),
        ("train --config nowhere.yaml", "nowhere.yaml"),
        ("train --data.shards [x] --model.widht 3", "--model.widht"),
        ("train --data.shards [x] --model.width 17", "model.width is 17; it must be a positive multiple of 16"),
        ("train --data.shards [x] --model.width wide", "wide"),
        ("train --config unknown_key.yaml", "config unknown_key.yaml: Group 'model' does not accept option 'widht'"),
        ("train --config empty.yaml", "config empty.yaml: is empty; it must hold sections"),
        ("train --config list.yaml", "config list.yaml: holds a list; it must hold sections"),
        ("train --config torn.yaml", "config torn.yaml, line 2: not YAML"),
        ("train --config latin1.yaml", "config latin1.yaml: not a UTF-8 text file"),
        ("train --config wide.yaml", 'config wide.yaml: Parser key "model.width"'),
        ("train --config number.yaml", "config number.yaml: model is 3; it must be a section"),
        ("train --config nothing_below.yaml --workers 1", "nowhere, which holds no manifest.json"),
        ("train --data.shards [nowhere] --workers 1", "nowhere, which holds no manifest.json"),
        ("train --data.shards [nowhere] --workers 0", "--workers is 0"),
        ("train --hostfile nohosts", "hostfile nohosts: no such file"),
        ("train --hostfile badhosts", "hostfile badhosts, line 2: 'b slots=many'"),
        ("train --hostfile hosts --workers 2", "exclude each other"),
        ("evaluate nowhere", "run nowhere: no config.yaml"),
        ("evaluate nowhere --split test --remove text audio", "run nowhere"),
        ("real --data nowhere", "nowhere/meld is not there"),
        ("demo", "start it in a clone's folder"),
    ],
)
def test_a_mistake_is_one_line(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("unknown_key.yaml").write_text("data: {shards: [x]}\nmodel: {widht: 3}\n")
    Path("empty.yaml").touch()
    Path("list.yaml").write_text("- data\n")
    Path("torn.yaml").write_text("model: {width: 32\n  heads: [2\n")
    Path("latin1.yaml").write_bytes("data: {shards: [Daten_für_später]}\n".encode("latin1"))
    Path("wide.yaml").write_text("data: {shards: [x]}\nmodel: {width: wide}\n")
    Path("number.yaml").write_text("model: 3\n")
    Path("nothing_below.yaml").write_text("data: {shards: [nowhere]}\nmodel:\n")  # means defaults
    Path("badhosts").write_text("a slots=1\nb slots=many\n")
    Path("hosts").write_text("localhost slots=2\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("egmf: error: ")
    assert error.count("\n") == 1
    assert says in error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--debug", "evaluate", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["evaluate", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_our_own_failure_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks() -> int:
        raise KeyError("x")

    monkeypatch.setattr("egmf_launcher.demo.run_demo", breaks)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "egmf: error: KeyError: 'x' (--debug shows the traceback)\n"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"example: egmf {verb}" in " ".join(text.split())
    if verb == "train":
        assert "a multiple of 16" in " ".join(text.split())  # the docstring under the setting
        assert "default: 128" in text


def given(line: str) -> dict[str, Any]:
    """What a verb's function is called with: its options by name, words without a name by their place."""
    seen: dict[str, Any] = {}

    def keep(function: object, *positional: Any, **named: Any) -> None:
        seen.update({str(place): value for place, value in enumerate(positional)} | named)

    called = parse(line.split())
    function, parsed, words = called.args  # type: ignore[attr-defined]
    stand_in = functools.wraps(function)(functools.partial(keep, function))
    call(stand_in, parsed, words)
    return seen


def test_the_forms_of_the_verbs() -> None:
    line = "evaluate runs/a --split valid --remove text audio --remove-each --workers 2 --data.shards [x,y]"
    said = given(line + " --evaluation.batch_size 3")
    assert said["0"] == Path("runs/a")
    assert said["wanted"] == Wanted("valid", ["text", "audio"], True)
    assert said["settings"].values == {"data.shards": ["x", "y"], "evaluation.batch_size": 3}
    assert said["launch"] == LaunchArguments(workers=2)
    assert said["words"] == tuple((line + " --evaluation.batch_size 3").split())
    said = given("report runs/a --compare runs/b runs/c")
    assert said == {"0": Path("runs/a"), "compare": [Path("runs/b"), Path("runs/c")]}
    said = given("shards import label-csv --source s --dataset d --language zh --out o --audio a --step 0.5")
    assert said == {
        "source": "s",
        "out": "o",
        "dataset": "d",
        "language": "zh",
        "audio": "a",
        "vision": None,
        "step": 0.5,
    }
    said = given("train --run runs/a --resume auto --data.shards [x,y] --training.steps 7")
    assert (said["run"], said["resume"]) == ("runs/a", "auto")
    config = said["settings"].config()
    assert (config.data.shards, config.training.steps) == (["x", "y"], 7)
    assert given("bench kernels --out o --arch 80 --arch 90")["arch"] == ["80", "90"]
    for spelling in ("--context_turns", "--context-turns"):
        assert given(f"backbone tiny --text a b --out o {spelling} 5")["context_turns"] == 5


def run_program(command: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | environ
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from egmf_launcher.cli import main\n"
        "try:\n    main(['train', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = run_program([sys.executable, "-c", script], ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("rank", "code"), [("0", 0), ("1", 0)])
def test_other_ranks_leave_at_once_and_without_a_word(rank: str, code: int, tmp_path: Path) -> None:
    """A rank beside rank 0 exits 0 before torch is imported; rank 0 goes as far as the settings here."""
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    script = (
        "import sys\n"
        "from egmf_launcher.cli import main\n"
        "code = main(['train', '--local_rank=1', '--hostfile', 'hosts', '--data.shards', '[nowhere]'])\n"
        "print(code, 'torch' in sys.modules)\n"
        "sys.exit(code)\n"
    )
    done = run_program([sys.executable, "-c", script], tmp_path, RANK=rank, WORLD_SIZE="2")
    if rank == "1":
        assert (done.stdout, done.stderr) == ("0 False\n", "")
    else:  # the driver, which is not below DeepSpeed's launcher, and who is in front of it
        assert done.stdout.splitlines()[-2:] == ["2 False", "2 False"]
        assert done.returncode == 2
        assert "nowhere, which holds no manifest.json" in done.stderr


@pytest.mark.distributed
def test_deepspeeds_launcher_with_a_missing_hostfile(tmp_path: Path) -> None:
    """DeepSpeed itself would train on this machine alone and exit 0."""
    command = ["deepspeed", "--num_accelerators", "2", str(ROOT / "launcher" / "train.py"), "--hostfile", "nohosts"]
    done = run_program(command, tmp_path)
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if "error: " in line]
    wanted = "launcher/train.py: error: hostfile nohosts: no such file; write one line a machine such as"
    assert len(said) == 1, said
    assert said[0].startswith(wanted)
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_plain_script_says_how_to_install(tmp_path: Path) -> None:
    done = run_program([sys.executable, "-I", "-S", str(ROOT / "launcher" / "train.py")], tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "-m pip install -e ." in done.stderr
