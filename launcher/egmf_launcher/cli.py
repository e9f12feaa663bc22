"""The ``egmf`` command: one short function a verb, each calling one module.

torch, Ray and DeepSpeed are imported inside the verbs only, so that ``egmf --help`` answers at once. Whatever goes
wrong ends in one line on stderr and exit code 2 (bad input) or 1 (anything else); ``--debug`` shows the traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from egmf_dist.errors import EgmfError
from egmf_launcher.errors import FAILURE_EXIT, USER_ERRORS, USER_EXIT, RankError, report
from egmf_launcher.options import build_parser

if TYPE_CHECKING:
    from egmf_shards.importers.sentiment import TaskOptions

Verb = Callable[[jsonargparse.Namespace, Sequence[str]], int]


def demo(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Everything from generated data to pictures."""
    from egmf_launcher.demo import run_demo

    run_demo()
    return 0


def real(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """The same on MELD's and CH-SIMS v2's text."""
    from egmf_launcher.real import run_real

    run_real(Path(options.data), options.workers)
    return 0


def shards_synth(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Generate shards."""
    from egmf_shards import synthesize

    synthesize(options.out, options.seed, options.samples, options.missing)
    return 0


def shards_import_meld(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """MELD's CSV files to shards."""
    from egmf_shards import import_meld

    import_meld(options.source, options.out, options.audio, options.vision)
    return 0


def _task_options(options: jsonargparse.Namespace) -> TaskOptions:
    """What the command line says about the task of an importer of numbers."""
    from egmf_dist.config.task_file import read_task

    return {
        "low": options.low,
        "high": options.high,
        "step": options.step,
        "convention": options.convention,
        "question": options.question,
        "task": None if options.task is None else read_task(options.task),
    }


def shards_import_label_csv(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """A CH-SIMS label.csv to shards."""
    from egmf_shards import import_label_csv

    import_label_csv(
        options.source,
        options.out,
        options.dataset,
        options.language,
        options.audio,
        options.vision,
        **_task_options(options),
    )
    return 0


def shards_import_mmsa(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """An MMSA feature pickle to shards."""
    from egmf_shards import import_mmsa

    import_mmsa(
        options.source,
        options.out,
        options.dataset,
        options.language,
        options.modality_labels,
        options.padding,
        **_task_options(options),
    )
    return 0


def shards_import_csd(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """CMU-MultimodalSDK's computational sequences to shards."""
    from egmf_shards import import_csd

    import_csd(
        options.source,
        options.out,
        options.dataset,
        options.split_file,
        options.language,
        labels=options.labels,
        words=options.words,
        audio=options.audio,
        vision=options.vision,
        **_task_options(options),
    )
    return 0


def shards_import_mse_adapter(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """MSE-Adapter's pickles to shards."""
    from egmf_shards import import_mse_adapter

    import_mse_adapter(options.source, options.out, options.dataset, options.padding)
    return 0


def shards_import_cherma(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """CHERMA's own layout to shards."""
    from egmf_shards import import_cherma

    import_cherma(options.source, options.out, options.modality_labels)
    return 0


def shards_import_jsonl(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """One's own JSONL to shards."""
    from egmf_dist.config.task_file import read_task
    from egmf_shards import import_jsonl

    task = read_task(options.task)
    import_jsonl(options.source, options.out, options.dataset, task, options.audio, options.vision)
    return 0


def shards_info(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """What a folder of shards holds."""
    from egmf_shards import print_info

    print_info(options.folder)
    if options.plot is not None:
        from egmf_dist.report.shards import write_shards_picture

        print(f"picture: {write_shards_picture(options.folder, options.plot)}")
    return 0


def _local(folder: str, verb: str) -> str:
    if "://" in folder:
        raise EgmfError(f"{folder}: {verb} reads folders on a disk; copy it there first")
    return folder


def shards_verify(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Read everything and say what is wrong."""
    from egmf_shards import print_report, verify

    return print_report(verify(_local(options.folder, "shards verify")))


def shards_index(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Index and manifest for somebody else's tars."""
    from egmf_shards import index_foreign

    index_foreign(_local(options.folder, "shards index"), options.tasks, options.force)
    return 0


def backbone_tiny(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Tokenizer and a small pre-trained language model."""
    from egmf_dist.recipes.tiny_backbone import train_tiny_backbone

    text = [Path(_local(path, "backbone tiny")) for path in options.text]
    train_tiny_backbone(
        text,
        Path(options.out),
        vocab_size=options.vocab_size,
        hidden=options.hidden,
        layers=options.layers,
        steps=options.steps,
        seed=options.seed,
        context_turns=options.context_turns,
    )
    return 0


def train(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Train; the same as launcher/train.py."""
    from egmf_dist.config import config_from_namespace, load_config
    from egmf_launcher import demo as demo_recipe
    from egmf_launcher.options import launch_arguments, setting_overrides
    from egmf_launcher.train import train as run_training

    file = options.config[0] if options.config else None
    prepare_demo = file is None and not options.data.shards
    if prepare_demo:
        config = load_config(demo_recipe.config_path(), setting_overrides(arguments))
    else:
        config = config_from_namespace(options)
    named = f"runs/{Path(str(file)).stem}" if file is not None else "runs/run"
    if options.run == "":
        raise EgmfError("--run is empty; give the run's folder, such as runs/NAME")
    run = Path(options.run or (demo_recipe.RUN if prepare_demo else named))
    result = run_training(config, run, options.resume, launch_arguments(options), arguments, prepare_demo)
    return result if isinstance(result, int) else 0


def evaluate(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Score a split."""
    from egmf_dist.run.places import Places
    from egmf_launcher.evaluate import evaluate as run_evaluation
    from egmf_launcher.options import launch_arguments

    return run_evaluation(
        Path(options.path),
        options.split,
        options.remove or [],
        options.remove_each,
        Places(options.data.shards, options.backbone.path),
        {name: value for name, value in options.evaluation.as_dict().items() if value is not None},
        launch_arguments(options),
        arguments,
    )


def report_pictures(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """Draw a run's pictures."""
    from egmf_dist.report import write_report

    write_report(Path(options.path), [Path(path) for path in options.compare or []])
    return 0


def bench_kernels(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """What the fused kernels cost: measured with a GPU, predicted without."""
    from egmf_launcher.bench import bench_kernels as run_bench

    return run_bench(Path(options.out), options.arch, trace=options.trace, quick=options.quick)


def bench_data(options: jsonargparse.Namespace, arguments: Sequence[str]) -> int:
    """How fast shards are read, beside other libraries."""
    from egmf_launcher.bench_data import bench_data as run_bench

    peers = None if options.peers is None else [name for name in options.peers.split(",") if name]
    return run_bench(
        Path(options.out), samples=options.samples, quick=options.quick, peers=peers, environments=options.environments
    )


VERBS: dict[tuple[str, ...], Verb] = {
    ("demo",): demo,
    ("real",): real,
    ("shards", "synth"): shards_synth,
    ("shards", "import", "meld"): shards_import_meld,
    ("shards", "import", "label-csv"): shards_import_label_csv,
    ("shards", "import", "mmsa"): shards_import_mmsa,
    ("shards", "import", "csd"): shards_import_csd,
    ("shards", "import", "mse-adapter"): shards_import_mse_adapter,
    ("shards", "import", "cherma"): shards_import_cherma,
    ("shards", "import", "jsonl"): shards_import_jsonl,
    ("shards", "info"): shards_info,
    ("shards", "verify"): shards_verify,
    ("shards", "index"): shards_index,
    ("backbone", "tiny"): backbone_tiny,
    ("train",): train,
    ("evaluate",): evaluate,
    ("report",): report_pictures,
    ("bench", "kernels"): bench_kernels,
    ("bench", "data"): bench_data,
}


def main(argv: Sequence[str] | None = None, program: str = "egmf") -> int:
    """Parse, dispatch to a verb, and turn every failure into one line and an exit code."""
    from egmf_launcher.launch import is_silent_rank, wait_for_rank_zero_to_speak
    from egmf_launcher.options import without_rank_options

    arguments = without_rank_options(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        path, options = build_parser().parse(arguments)
        return VERBS[path](options, arguments)
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if is_silent_rank() and not isinstance(error, RankError):
            if isinstance(error, USER_ERRORS):
                wait_for_rank_zero_to_speak()
                return USER_EXIT
            report(error, debug=True, program=program)  # may be this rank's alone
            return FAILURE_EXIT
        return report(error, debug=debug, program=program)


if __name__ == "__main__":
    sys.exit(main())
