"""The options of every verb of ``egmf``, with their help, defaults and an example each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jsonargparse

from egmf_dist.errors import EgmfError
from egmf_launcher.arguments import without_options
from egmf_launcher.decide import LaunchArguments

_RANK_OPTIONS = ("--local_rank", "--local-rank")
_TRAIN_OPTIONS = ("--hostfile", "--workers", "--launcher", "--run", "--resume")


class CommandParser:
    """A tree of parsers whose errors are exceptions; argparse's own way prints several lines and exits."""

    def __init__(self) -> None:
        self._root = _parser(
            "EGMF: multimodal fusion with a large language model, trained with DeepSpeed ZeRO-3 under Ray."
        )
        self._root.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verbs = self._root.add_subcommands(dest="verb", title="verbs", metavar="VERB")
        _leaf(
            verbs,
            "demo",
            _no_options,
            "generated data, a tiny backbone, training on 2 ranks, evaluation, pictures",
            "demo",
        )
        _leaf(verbs, "real", _real, "the same road on MELD's and CH-SIMS v2's text", "real --data DIR")
        shards = _branch(verbs, "shards", "make and describe data", "shard_verb")
        _leaf(
            shards,
            "synth",
            _synth,
            "generate bilingual clips",
            "shards synth --out data/synthetic --seed 0 --samples 4000",
        )
        importers = _branch(shards, "import", "a published data set to shards", "format")
        meld = "shards import meld --source DIR_OF_CSV --out data/meld"
        _leaf(importers, "meld", _meld, "MELD's official CSV files", meld)
        label_csv = "shards import label-csv --source label.csv --dataset simsv2 --out data/simsv2"
        _leaf(importers, "label-csv", _label_csv, "a table of numbers: CH-SIMS's label.csv, and MOSI's", label_csv)
        mmsa = "shards import mmsa --source unaligned_50.pkl --dataset mosei --out data/mosei"
        _leaf(importers, "mmsa", _mmsa, "an MMSA feature pickle (MOSI, MOSEI, SIMS, SIMS-V2)", mmsa)
        adapter = "shards import mse-adapter --source DIR --dataset cherma --out data/cherma"
        _leaf(importers, "mse-adapter", _mse_adapter, "MSE-Adapter's pickles of MELD or CHERMA", adapter)
        cherma = "shards import cherma --source DIR --out data/cherma"
        _leaf(importers, "cherma", _cherma, "CHERMA's json files and .npy folders", cherma)
        own = "shards import jsonl --source data.jsonl --task task.yaml --dataset mine --out data/mine"
        _leaf(importers, "jsonl", _jsonl, "one's own utterances, one JSON object a line", own)
        csd = "shards import csd --source DIR_OF_CSD --dataset mosei --split-file folds.json --out data/mosei"
        _leaf(importers, "csd", _csd, "CMU-MultimodalSDK's .csd files (MOSI, MOSEI)", csd)
        counts = "counts, classes, lengths, repairs, ceilings"
        _leaf(shards, "info", _info, counts, "shards info data/demo --plot demo.png")
        every = "read everything, name every fault; exit code 1 if there is one"
        _leaf(shards, "verify", _folder, every, "shards verify data/demo")
        foreign = "index and manifest for tars that another program wrote"
        _leaf(shards, "index", _index, foreign, "shards index DIR --tasks tasks.json")
        backbone = _branch(verbs, "backbone", "language models made here", "backbone_verb")
        tiny = "backbone tiny --text data/synthetic --out backbones/synthetic"
        _leaf(backbone, "tiny", _tiny, "a tokenizer and a small causal LM, pre-trained on the text given", tiny)
        training = "train --config configs/demo.yaml --run runs/NAME --training.steps 300"
        _leaf(verbs, "train", _train, "train a run (as launcher/train.py does)", training)
        evaluation = "evaluate runs/demo --split test --remove-each"
        _leaf(verbs, "evaluate", _evaluate, "score every legal answer of a split", evaluation)
        _leaf(verbs, "report", _report, "draw a run's pictures", "report runs/demo --compare runs/other")
        bench = _branch(verbs, "bench", "what kernels and readers cost", "bench_verb")
        kernels = "measure them on a GPU; without one, the predicted report"
        _leaf(bench, "kernels", _bench_kernels, kernels, "bench kernels --out runs/kernels")
        data = "samples a second of this project's reader and of other libraries, each in its pinned environment"
        _leaf(bench, "data", _bench_data, data, "bench data --out runs/data")

    def parse(self, arguments: Sequence[str]) -> tuple[tuple[str, ...], jsonargparse.Namespace]:
        """The verb as a path such as ``("shards", "import", "meld")``, and its options.

        Raises:
            EgmfError: an unknown verb or option, a missing one, or a value of the wrong type.
        """
        try:
            namespace = self._root.parse_args(list(arguments))
        except jsonargparse.ArgumentError as error:
            raise EgmfError(" ".join(str(error).split())) from error
        path: list[str] = []
        for name in ("verb", "shard_verb", "format", "backbone_verb", "bench_verb"):
            verb = namespace.get(name)
            if verb is not None:
                path.append(verb)
                namespace = namespace[verb]
        return tuple(path), namespace


def build_parser() -> CommandParser:
    """The parser of the whole command."""
    return CommandParser()


def _parser(description: str, example: str = "") -> jsonargparse.ArgumentParser:
    return jsonargparse.ArgumentParser(
        description=description, epilog=f"example: egmf {example}" if example else None, exit_on_error=False
    )


def _branch(verbs: Any, name: str, help_text: str, dest: str) -> Any:
    parser = _parser(help_text)
    verbs.add_subcommand(name, parser, help=help_text)
    return parser.add_subcommands(dest=dest, metavar="VERB")


def _leaf(
    verbs: Any, name: str, add: Callable[[jsonargparse.ArgumentParser], None], help_text: str, example: str
) -> None:
    parser = _parser(help_text, example)
    add(parser)
    verbs.add_subcommand(name, parser, help=help_text)


def _no_options(parser: jsonargparse.ArgumentParser) -> None:
    pass


def _real(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=str, required=True, help="folder that holds meld/*.csv and simsv2/label.csv")
    parser.add_argument("--workers", type=int, default=2, help="ranks under Ray")


def _synth(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=str, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument("--samples", type=int, default=4000, help="utterances over all splits")
    parser.add_argument("--missing", type=float, default=0.03, help="rate at which each modality is missing")


def _features(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--audio", type=str | None, default=None, help="folder of one .npy [frames, dim] a clip")
    parser.add_argument("--vision", type=str | None, default=None, help="folder of one .npy [frames, dim] a clip")


def _meld(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=str, required=True, help="folder of {train,dev,test}_sent_emo.csv")
    _out(parser)
    _features(parser)


def _label_csv(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=str, required=True, help="the label.csv")
    _sentiment(parser)
    _features(parser)


def _out(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=str, required=True, help="folder of shards to make")


def _sentiment(parser: jsonargparse.ArgumentParser) -> None:
    _out(parser)
    parser.add_argument("--dataset", type=str, required=True, help="mosi, mosei, sims, simsv2, or a name of your own")
    parser.add_argument("--language", type=str | None, default=None, help="en or zh; known for the four")
    parser.add_argument("--low", type=float | None, default=None, help="smallest label; known for the four")
    parser.add_argument("--high", type=float | None, default=None, help="largest label; known for the four")
    parser.add_argument(
        "--step", type=float | None, default=None, help="distance between two answers; it divides the range"
    )
    sims = "metrics: mosei (any range) or sims (-1 to 1); known for the four"
    parser.add_argument("--convention", type=str | None, default=None, help=sims)
    parser.add_argument("--question", type=str | None, default=None, help="in words; needed unless it is in en or zh")
    task = "YAML file of a regression, in place of all of these: see configs/tasks/example.yaml"
    parser.add_argument("--task", type=str | None, default=None, help=task)


def _mmsa(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=str, required=True, help="the .pkl; it is read without running anything in it")
    _sentiment(parser)
    _padding(parser)
    _modality_labels(parser)


def _csd(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=str, required=True, help="folder of .csd files (needs the extra csd)")
    folds = 'JSON {"train": [video ids], "valid": [...], "test": [...]}'
    parser.add_argument("--split-file", type=str, required=True, help=folds)
    for role in ("labels", "words", "audio", "vision"):
        which = f"the file of {role} in the folder; left out, the one whose name fits"
        parser.add_argument(f"--{role}", type=str | None, default=None, help=which)
    _sentiment(parser)


def _padding(parser: jsonargparse.ArgumentParser) -> None:
    side = "where the padding of every array is; null: the zeros say it"
    parser.add_argument("--padding", choices=["front", "end"], default=None, help=side)


def _modality_labels(parser: jsonargparse.ArgumentParser) -> None:
    alone = "also make samples of the labels given to one modality alone, as tasks of their own"
    parser.add_argument("--modality-labels", action="store_true", help=alone)


def _mse_adapter(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=str, required=True, help="folder of DATASET_{train,valid,test}.pkl")
    _out(parser)
    parser.add_argument("--dataset", type=str, required=True, help="meld or cherma")
    _padding(parser)


def _cherma(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=str, required=True, help="folder of {train,valid,test}.json, audio/, visual/")
    _out(parser)
    _modality_labels(parser)


def _jsonl(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=str, required=True, help="the file, one JSON object a line")
    parser.add_argument("--task", type=str, required=True, help="YAML file of the task: see configs/tasks/example.yaml")
    parser.add_argument("--dataset", type=str, required=True, help="name of the data set, such as interviews")
    _out(parser)
    _features(parser)


def _index(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="folder of WebDataset tars")
    tasks = "JSON file of the task definitions; tasks.json in the folder where it is not given"
    parser.add_argument("--tasks", type=str | None, default=None, help=tasks)
    parser.add_argument("--force", action="store_true", help="make index and manifest anew where there are old ones")


def _folder(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="folder of shards")


def _info(parser: jsonargparse.ArgumentParser) -> None:
    _folder(parser)
    picture = "also draw classes, values, lengths and missing modalities as FILE.png"
    parser.add_argument("--plot", type=str | None, default=None, metavar="FILE.png", help=picture)


def _tiny(parser: jsonargparse.ArgumentParser) -> None:
    text = "folders of shards (their training split) or text files"
    parser.add_argument("--text", type=str, nargs="+", required=True, help=text)
    parser.add_argument("--out", type=str, required=True, help="folder to make, in Hugging Face format")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of 32 documents")
    parser.add_argument("--vocab_size", type=int, default=640, help="the most tokens; larger for larger texts")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="transformer blocks")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and shuffling")
    parser.add_argument(
        "--context_turns", type=int, default=3, help="preceding turns in a prompt; as data.context_turns"
    )


def _launching(parser: jsonargparse.ArgumentParser) -> None:
    where = "one machine a line, 'name slots=N'; Ray starts one worker a slot"
    parser.add_argument("--hostfile", type=str | None, default=None, help=where)
    parser.add_argument("--workers", type=int | None, default=None, help="local workers; null: one a GPU, or one")
    way = "auto: as the one printed line says; deepspeed: re-execute under DeepSpeed's launcher"
    parser.add_argument("--launcher", choices=["auto", "ray", "deepspeed"], default="auto", help=way)


def _train(parser: jsonargparse.ArgumentParser) -> None:
    from egmf_dist.config import add_config_arguments

    parser.add_argument(
        "--run", type=str | None, default=None, help="the run's folder; null: runs/NAME of the config file"
    )
    parser.add_argument(
        "--resume", type=str, default="never", help="never, auto (newest checkpoint), a checkpoint's step or its path"
    )
    _launching(parser)
    add_config_arguments(parser)


def _evaluate(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("path", type=str, help="the run's folder, runs/NAME")
    parser.add_argument("--split", type=str, default="test", help="train, valid or test")
    gone = "modalities (text, audio, vision) to take away from every sample"
    parser.add_argument("--remove", type=str, nargs="+", default=[], help=gone)
    parser.add_argument("--remove-each", action="store_true", help="also score with each modality alone taken away")
    moved = "where the run's {} now, where that has moved since training; its hash must be the same"
    shards = "folders of shards lie"
    parser.add_argument("--data.shards", type=list[str] | None, default=None, help=moved.format(shards))
    parser.add_argument("--backbone.path", type=str | None, default=None, help=moved.format("backbone lies"))
    instead = "instead of the run's: {}"
    samples = instead.format("samples scored at once on one rank")
    parser.add_argument("--evaluation.batch_size", type=int | None, default=None, help=samples)
    way = instead.format("how legal answers are scored (auto, tree, sequence)")
    parser.add_argument("--evaluation.scoring", choices=["auto", "tree", "sequence"], default=None, help=way)
    _launching(parser)


def _report(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("path", type=str, help="the run's folder, runs/NAME")
    parser.add_argument("--compare", type=str, nargs="+", default=[], help="other runs to draw beside it")


def _bench_kernels(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=str, required=True, help="folder for summary.json, results.csv and pictures")
    arch = (
        "compute capability to compile for without a GPU, such as 90; may be repeated; default: all with a tile table"
    )
    parser.add_argument("--arch", action="append", default=[], metavar="CAPABILITY", help=arch)
    parser.add_argument("--trace", action="store_true", help="also write Chrome traces (needs a GPU)")
    quick = "one width and architecture, no Inductor; with a GPU, one minute of measuring"
    parser.add_argument("--quick", action="store_true", help=quick)


def _bench_data(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=str, required=True, help="folder for summary.json, results.csv and readers.png")
    parser.add_argument("--samples", type=int | None, default=None, help="samples of 27 KB, from 512; null: 8000")
    peers = "comma-separated: webdataset, energon, mds, ray, pickle; null: all"
    parser.add_argument("--peers", type=str | None, default=None, help=peers)
    where = "folder of the libraries' environments; null: egmf/bench in the user's cache folder; '': this environment"
    parser.add_argument("--environments", type=str | None, default=None, help=where)
    parser.add_argument("--quick", action="store_true", help="one round of fewer samples: whether it works")


def launch_arguments(options: jsonargparse.Namespace) -> LaunchArguments:
    """The options of :func:`_launching` as a value."""
    return LaunchArguments(hostfile=options.hostfile, workers=options.workers, launcher=options.launcher)


def setting_overrides(arguments: Sequence[str]) -> list[str]:
    """The ``--section.key value`` part of a ``train`` command line."""
    return without_options(arguments[1:], _TRAIN_OPTIONS)


def without_rank_options(arguments: Sequence[str]) -> list[str]:
    """The command line without ``--local_rank=N``: DeepSpeed's launcher adds it, and LOCAL_RANK says the same."""
    return without_options(arguments, _RANK_OPTIONS)
