"""Fixtures that several test folders use.

A random small backbone in Hugging Face format, generated shards, samples in memory, scripts run as ranks.
"""

from __future__ import annotations

import os

# One thread a process, before torch is imported: beside a busy process, two OpenMP threads are many times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Triton decides at import and at decoration whether kernels are interpreted. The tests interpret them on CPU tensors;
# the processes that tests start do not.
os.environ["TRITON_INTERPRET"] = "1"
import triton.experimental.gluon  # noqa: F401  (the interpreter imports it late, and it too reads the variable)

import egmf_kernels.ops.library  # noqa: F401

del os.environ["TRITON_INTERPRET"]

from pathlib import Path

import numpy as np
import pytest

from egmf_shards import Sample, Task, Turn


def pytest_configure(config: pytest.Config) -> None:
    """A suite that is cut off should have said what failed until then."""
    if not hasattr(config, "workerinput"):  # of pytest-xdist's workers nobody sees what they print
        config.pluginmanager.register(_SayingAtOnce(config))


class _SayingAtOnce:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and reporter is not None:
            last = (report.longreprtext.strip() or "no traceback").splitlines()[-1]
            reporter.write_line(f"\n{report.nodeid} ({report.when}, {report.duration:.0f} s): {last[:300]}")


EMOTION = Task(
    name="emotion",
    kind="classification",
    questions={"en": "Emotion?", "zh": "情绪？"},
    labels=("neutral", "joy", "anger"),
    answers={"en": ("neutral", "joy", "anger"), "zh": ("中性", "高兴", "愤怒")},
)
SENTIMENT = Task(
    name="sentiment",
    kind="regression",
    questions={"en": "Sentiment?", "zh": "情感？"},
    convention="mosei",
    low=-1.0,
    high=1.0,
    step=0.5,
)


SCHEDULING = os.sched_getscheduler(0)


@pytest.fixture(autouse=True)
def _usual_scheduling():
    """A test or fixture that changes how its process is scheduled changes it for all that is started after it."""
    yield
    after = os.sched_getscheduler(0)
    if after != SCHEDULING:
        os.sched_setscheduler(0, SCHEDULING, os.sched_param(0))
        pytest.fail(f"this process was given the scheduling policy {after} in place of {SCHEDULING}")


@pytest.fixture(scope="session")
def tasks() -> dict[str, Task]:
    """A classification and a regression, both bilingual."""
    return {t.name: t for t in (EMOTION, SENTIMENT)}


@pytest.fixture(scope="session")
def make_samples():
    """``make_samples(count, presence=None, seed=0)``: random bilingual samples of both tasks.

    Audio is 6 wide and vision 5.
    """

    def make(count: int, presence: list[tuple[int, int, int]] | None = None, seed: int = 0) -> list[Sample]:
        rng = np.random.default_rng(seed)
        out = []
        for i in range(count):
            has = presence[i] if presence is not None else (1, 1, 1)
            features = {}
            language = "en" if i % 2 == 0 else "zh"
            words = ["i", "am", "glad", "no", "wait"] if language == "en" else ["我", "很", "高兴", "不", "等"]
            text = (" " if language == "en" else "").join(rng.choice(words, size=rng.integers(2, 6)))
            emotion = (i // 2) % 2 == 0
            label = EMOTION.labels[int(rng.integers(3))] if emotion else None
            value = None if emotion else float(rng.choice(SENTIMENT.values))
            for stream, there, longest, dim in (("audio", has[1], 9, 6), ("vision", has[2], 7, 5)):
                if there:
                    features[stream] = rng.normal(size=(int(rng.integers(1, longest)), dim)).astype(np.float32)
            out.append(
                Sample(
                    id=f"s-{i}",
                    text=text if has[0] else "",
                    language=language,
                    task="emotion" if emotion else "sentiment",
                    dataset="toy",
                    split="train",
                    modalities=tuple(m for m, h in zip(("text", "audio", "vision"), has, strict=True) if h),
                    label=label,
                    value=value,
                    speaker="A",
                    dialogue="d",
                    turn=1,
                    context=(Turn("B", "wait"),),
                    features=features,
                )
            )
        return out

    return make


@pytest.fixture(scope="session")
def random_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of two layers with random weights and a byte-level tokenizer, saved as Hugging Face saves them."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    out = tmp_path_factory.mktemp("backbone")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["i am glad no wait Emotion? Answer: neutral joy anger -0.5 1.0"] * 4,
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(out)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        # With the usual 0.02 and tied embeddings no adapter could raise any answer: logits would end at 0.6.
        initializer_range=0.2,
    )
    Qwen2ForCausalLM(config).save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory: pytest.TempPathFactory):
    """``with start_ranks(script, world, job) as (processes, result)``: processes of a script beside the tests.

    The script reads its job from the file in argv[1] and writes its result (``torch.save``) to argv[2]; ``result()``
    gives rank 0's once all have ended well, ``result.log(rank)`` what a rank has printed. Whatever still runs at the
    end is killed.
    """
    import contextlib
    import socket
    import subprocess
    import sys

    import torch

    @contextlib.contextmanager
    def start(script: str, world: int, job: object):
        folder = tmp_path_factory.mktemp("ranks")
        torch.save(job, folder / "job.pt")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        processes = []
        for rank in range(world):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            command = [
                sys.executable,
                str(Path(__file__).parent / "distributed" / script),
                str(folder / "job.pt"),
                str(folder / "result.pt"),
            ]
            with open(folder / f"rank-{rank}.log", "w") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))

        def result():
            logs = "\n".join((folder / f"rank-{r}.log").read_text()[-3000:] for r in range(world))
            assert [p.poll() for p in processes] == [0] * world, logs
            return torch.load(folder / "result.pt", weights_only=False)

        result.log = lambda rank: (folder / f"rank-{rank}.log").read_text()
        try:
            yield processes, result
        finally:
            for p in processes:
                p.kill()

    return start


@pytest.fixture(scope="session")
def run_ranks(start_ranks):
    """``run_ranks(script, world, job)``: what :func:`start_ranks` starts, waited for; rank 0's result."""

    def run(script: str, world: int, job: dict, timeout: float = 240):
        with start_ranks(script, world, job) as (processes, result):
            for process in processes:
                process.wait(timeout)
        return result()

    return run
