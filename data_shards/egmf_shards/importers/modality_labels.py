"""Labels that annotators gave to one modality alone, as samples and tasks of their own.

CH-SIMS, SIMS-V2 and CHERMA were annotated four times: whoever labelled the text saw no picture and heard nothing, and
so on. Such a label is the answer to another question, so it becomes a task of its own (``<task>-text``, ``-audio``,
``-vision``) whose question says what was perceived, and a sample of its own in which only that modality is present:
with the others at hand a model would be asked for what its annotators could not know. The sample's id is the clip's
with the modality behind it; dialogue and turn are the clip's.
"""

from __future__ import annotations

import math
from dataclasses import replace

from egmf_shards.errors import ShardError
from egmf_shards.format.sample import Sample
from egmf_shards.format.task import Task
from egmf_shards.importers.streams import MODALITIES

PERCEIVED = {
    "en": {
        "text": "From the words alone: ",
        "audio": "From the voice alone: ",
        "vision": "From face and gestures alone: ",
    },
    "zh": {"text": "只看文字：", "audio": "只听声音：", "vision": "只看画面："},
}
"""What precedes the task's question, by language and modality."""


class ModalityLabels:
    """The three tasks beside ``task``, the samples made for them, and what was left out.

    Raises:
        ShardError: the task is asked in a language for which :data:`PERCEIVED` has no words.
    """

    def __init__(self, task: Task) -> None:
        unknown = [language for language in task.languages if language not in PERCEIVED]
        if unknown:
            raise ShardError(
                f"labels per modality need their question in words, which there is in {', '.join(PERCEIVED)} only; "
                f"task {task.name!r} is asked in {', '.join(unknown)}"
            )
        self.tasks = {
            modality: replace(
                task,
                name=f"{task.name}-{modality}",
                questions={language: PERCEIVED[language][modality] + q for language, q in task.questions.items()},
            )
            for modality in MODALITIES
        }
        self.report = {
            modality: {"samples": 0, "clips_without_the_modality": 0, "clips_without_the_label": 0}
            for modality in MODALITIES
        }
        """What the manifest's ``source`` says, by modality."""

    def sample(
        self, whole: Sample, modality: str, where: str, label: str | None = None, value: float | None = None
    ) -> Sample | None:
        """The clip with ``modality`` alone and its label (or value; NaN: none); None where either is missing.

        Raises:
            ShardError: the label is not in the label space, or the value outside the range (``where`` names the row).
        """
        report, task = self.report[modality], self.tasks[modality]
        if label is None and (value is None or math.isnan(value)):
            report["clips_without_the_label"] += 1
            return None
        task.check_target(label, value, where)
        if modality not in whole.modalities:
            report["clips_without_the_modality"] += 1
            return None
        report["samples"] += 1
        return replace(
            whole,
            id=f"{whole.id}-{modality}",
            task=task.name,
            modalities=(modality,),
            text=whole.text if modality == "text" else "",
            features={m: array for m, array in whole.features.items() if m == modality},
            # Annotators saw the clip alone.
            context=(),
            label=label,
            value=value,
        )
