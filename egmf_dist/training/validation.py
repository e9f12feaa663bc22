"""What is scored while training: two batches before step 1, then the validation split, which selects the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from egmf_dist import distributed
from egmf_dist.config import EvaluationConfig
from egmf_dist.data import Collator
from egmf_dist.engine import Engine
from egmf_dist.inference.score import evaluate_predictions, fitted, score_samples
from egmf_dist.inference.scorer import Choice, check_samples, choose_scorer
from egmf_dist.metrics.selection import selection_score
from egmf_dist.model.adapter import save_adapter
from egmf_dist.model.backbone import Capabilities
from egmf_shards import ShardSet

if TYPE_CHECKING:
    from egmf_dist.training.trainer import Trainer


def check_scoring(
    engine: Engine,
    validation: ShardSet,
    chosen: Sequence[int],
    collator: Collator,
    capabilities: Capabilities,
    evaluation: EvaluationConfig,
    trained: bool,
) -> Choice:
    """Choose how answers are scored and score two batches: what would fail at the first validation fails before step 1.

    Args:
        engine: with the model.
        validation: the split.
        chosen: which of its samples are scored.
        collator: the run's.
        capabilities: the backbone's.
        evaluation: the settings of that section.
        trained: the model has taken a step.

    Raises:
        EgmfError: the backbone cannot be scored as asked, or its scores are not finite.
    """
    engine.eval()
    samples = check_samples(validation, chosen, collator)
    choice = choose_scorer(evaluation, engine.module, capabilities, collator, samples, trained)
    batch_size = evaluation.batch_size
    first = chosen[: 2 * batch_size * distributed.world_size()]
    rows = score_samples(engine.module, validation, choice.scorer, batch_size, first)
    distributed.on_rank_zero(lambda: evaluate_predictions(rows, collator.tasks))
    return choice


class _ToldToStopError(Exception):
    """On every rank at the same batch."""


def validate(trainer: Trainer) -> bool:
    """Score the validation split, keep the adapter if it is the best so far, say if answers have collapsed.

    Returns:
        False where a rank was told to stop meanwhile: then nothing has come of it, and who goes on does it again.
    """

    def look(done: int, batches: int) -> None:
        if done < batches and any(distributed.sum_over_ranks([trainer.stopping.by is not None])):
            raise _ToldToStopError

    config, progress, records = trainer.config, trainer.progress, trainer.records
    model, tasks = trainer.engine.module, trainer.data.tasks
    trainer.engine.eval()
    batch_size = config.evaluation.batch_size
    try:
        rows = score_samples(model, trainer.validation, trainer.scorer, batch_size, trainer.chosen, progress=look)
    except _ToldToStopError:
        return False
    results: dict[str, Any] = distributed.on_rank_zero(lambda: evaluate_predictions(rows, tasks))
    score = selection_score(results, config.training.select_by)
    improved = progress.best_score is None or score > progress.best_score
    selected_by = f"valid {config.training.select_by or 'mean of weighted_f1 and corr over tasks'}"
    if improved:
        description = {
            "step": progress.step,
            "score": score,
            "selected_by": selected_by,
            "calibration": distributed.on_rank_zero(lambda: fitted(rows, tasks)),
            "config": asdict(config),
            "data": trainer.data.to_json(),
            "identity": trainer.identity.to_json(),
        }
        refused = save_adapter(model, trainer.run, progress.step, description, trainer.saver.launch)
        if refused is None:
            progress.best_score, progress.best_step = score, progress.step
        else:
            message = f"training goes on without the adapter that is the best so far ({score:.4f}): {refused}"
            records.write({"kind": "warning", "step": progress.step, "message": message})
    progress.without_improvement = 0 if improved else progress.without_improvement + 1
    records.write(
        {
            "kind": "valid",
            "step": progress.step,
            "score": score,
            "selected_by": selected_by,
            "best": improved,
            "samples": len(trainer.chosen),
            "tasks": {name: {"metrics": r["metrics"], "collapsed": r["collapsed"]} for name, r in results.items()},
        }
    )
    for result in results.values():
        if result["collapsed"]:
            records.write({"kind": "warning", "step": progress.step, "message": result["collapsed"]})
    progress.validated = progress.step
    return True
