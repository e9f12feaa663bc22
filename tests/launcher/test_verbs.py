"""A verb from outside the package: a job class, a function, and its row in the table."""

from __future__ import annotations

import shlex
import sys
import textwrap
from pathlib import Path

import pytest

from egmf_dist.errors import EgmfError
from egmf_dist.model.fusion.base import FUSIONS
from egmf_launcher import launch
from egmf_launcher.cli import VERBS, Verb, main, parse
from egmf_launcher.network import free_port

MINE = """
    from __future__ import annotations

    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar

    from egmf_dist.config import LaunchConfig
    from egmf_launcher.decide import LaunchArguments
    from egmf_launcher.launch import choose, launch_job, new_launch

    @dataclass(frozen=True)
    class CountJob:
        verb: ClassVar[str] = "count"
        run: Path
        upto: int
        launch: str | None = None
        steps: None = None

        def __call__(self, console):
            import torch.distributed as dist

            return {"counted": self.upto * dist.get_world_size()}

    def count(run: Path, /, up_to: int = 3, loud: bool = False, *, launch: LaunchArguments) -> int:
        '''Count.

        Args:
            run: where
            up_to: how far, at most 100% of it
            loud: say it
            launch: as every verb that ranks run
        '''
        result = launch_job(choose(launch), CountJob(run, up_to, new_launch()), LaunchConfig())
        if loud:
            print(result["counted"])
        return 0 if result["counted"] < 10 else 1
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(VERBS, "count", Verb("counting:count", "count in ranks", "runs/a --up-to 5"))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def single_rank_environment() -> None:
        for name, value in alone.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(launch, "single_rank_environment", single_rank_environment)


@pytest.mark.usefixtures("counting")
def test_a_verb_of_ones_own_is_a_job_a_function_and_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["count", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "how far, at most 100% of it (type: int, default: 3)" in text
    assert "--hostfile" in text
    assert "example: egmf count runs/a --up-to 5" in text
    assert main(["count", "runs/a", "--up-to", "far"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["count", "runs/a", "--loud", "--up_to=4", "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4"


@pytest.mark.usefixtures("counting")
def test_what_it_returns_is_the_exit_code() -> None:
    assert main(["count", "runs/a", "--up-to", "12", "--workers", "1"]) == 1


IMPORTER = """
    from __future__ import annotations

    from pathlib import Path

    from egmf_shards import ShardWriter, Task
    from egmf_shards.importers.common import build_sample, done
    from egmf_shards.importers.keys import name
    from egmf_shards.importers.provenance import provenance

    MOOD = Task("mood", "classification", {"en": "Mood?"}, labels=("good", "bad"), answers={"en": ("good", "bad")})

    def import_lines(source: Path, out: Path) -> None:
        '''A text file, one utterance a line, its label in front.

        Args:
            source: the file
            out: the folder to make
        '''
        with ShardWriter(out, "lines", [MOOD], provenance=provenance("lines", [source])) as writer:
            for number, line in enumerate(source.read_text().splitlines()):
                label, text = line.split(" ", 1)
                fields = {"language": "en", "task": "mood", "dataset": "lines", "split": "train", "label": label}
                writer.write(build_sample(name("", str(number), prefix="line"), text, {}, **fields), f"line {number}")
        done(writer)
"""


def test_an_importer_of_ones_own_is_a_function_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "importing.py").write_text(textwrap.dedent(IMPORTER))
    monkeypatch.syspath_prepend(str(tmp_path))
    row = Verb("importing:import_lines", "lines with a label", "--source a.txt --out data/lines")
    monkeypatch.setitem(VERBS, "shards import lines", row)
    source, out = tmp_path / "a.txt", tmp_path / "out"
    source.write_text("good what a day\nugly never\n")
    assert main(["shards", "import", "lines", "--source", str(source), "--out", str(out)]) == 2
    assert "line 1: sample 'line-1': label 'ugly' is not in the label space" in capsys.readouterr().err
    assert not out.exists()
    source.write_text("good what a day\nbad never\n")
    assert main(["shards", "import", "lines", "--source", str(source), "--out", str(out)]) == 0
    assert main(["shards", "verify", str(out)]) == 0
    assert "2 samples" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb.example])
def test_every_verbs_example_is_a_command_line_of_it(name: str) -> None:
    parse([*name.split(), *shlex.split(VERBS[name].example)])


def test_a_part_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray's workers find it, whatever script the process was started with."""
    (tmp_path / "part_of_mine.py").write_text("class Fusion: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    with pytest.raises(EgmfError, match="cannot be imported"):
        FUSIONS.find("part_of_mine:Fusion")
    assert main(["shards", "info", "nothing-here"]) == 2
    assert FUSIONS.find("part_of_mine:Fusion").__name__ == "Fusion"
