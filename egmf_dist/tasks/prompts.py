"""The words the LLM reads and the words it answers with. Training, evaluation, prediction and the tiny backbone's
pre-training all render through this one module.

The prompt is the dialogue's preceding turns, the utterance, and the task's question::

    Chandler: That I did.
    The Interviewer: So let's talk a little bit about your duties.
    [Chandler] My duties?  All right.
    Which emotion ...?

followed by the answer and an end-of-sequence token. The utterance stands in brackets so that it is told from the
context without words of either language. Text absent means an empty utterance here and in the experts' text stream.
"""

from __future__ import annotations

from egmf_shards.sample import Sample, Turn
from egmf_shards.task import CLASSIFICATION, Task

# Written Chinese has no space between words, so an answer there follows the colon directly; elsewhere a space belongs
# to the answer: byte-level tokenizers hold " joy" as one token, and the prompt must not end in a lone space.
_SPACE = {"zh": ""}
_ANSWER_MARK = {"en": "Answer:", "zh": "答："}


def render_context(turns: tuple[Turn, ...]) -> list[str]:
    """One line for each preceding turn."""
    return [f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in turns]


def render_prompt(sample: Sample, task: Task, context_turns: int) -> str:
    """The prompt of one sample, up to where the answer begins.

    Args:
        sample: the utterance; its language chooses the question's.
        task: the sample's task.
        context_turns: how many of the preceding turns to show, the most recent ones.
    """
    turns = sample.context[-context_turns:] if context_turns else ()
    question = task.questions[sample.language]
    mark = _ANSWER_MARK.get(sample.language, _ANSWER_MARK["en"])
    lines = [*render_context(turns), f"[{sample.speaker}] {sample.text}", f"{question} {mark}"]
    return "\n".join(lines)


def render_answer(task: Task, language: str, index: int) -> str:
    """The text of legal answer number ``index`` as it follows the prompt."""
    return _SPACE.get(language, " ") + task.legal_answers(language)[index]


def answer_index(sample: Sample, task: Task) -> int:
    """Which legal answer is the sample's target: its label, or the legal number nearest to its value."""
    if task.kind == CLASSIFICATION:
        assert sample.label is not None
        return task.labels.index(sample.label)
    assert sample.value is not None
    return task.nearest(sample.value)
