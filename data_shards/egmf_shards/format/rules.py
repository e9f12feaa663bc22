"""The rules of a sample and of a task, each in one place: writer, index, ``verify`` and reader ask here.

So what one of them takes the others take too. Every function returns what is wrong in one line, empty where nothing is:
who asks knows the place to name. ``docs/shard-format.md`` says the same rules in words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from functools import lru_cache
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from egmf_shards.messages import shown

if TYPE_CHECKING:
    from egmf_shards.format.sample import Sample
    from egmf_shards.format.task import Task

TEXT = "text"
"""The modality that every data set may have; the others are feature streams, and each folder names its own."""
STREAM = re.compile(r"[a-z][a-z0-9_]{0,31}")
MAX_DIM = 1_000_000
"""Numbers of a frame."""
MAX_STREAMS = 15
"""Of a folder: the index counts a sample's members in numbers of four bits, in 64 bits."""
LABELLED_SPLITS = ("train", "valid", "test")
UNLABELLED = "unlabelled"
SPLITS = (*LABELLED_SPLITS, UNLABELLED)
MAX_CONTEXT_TURNS = 12
MAX_TURN = (1 << 63) - 1
"""Beyond it JSON parsers differ in what they make of a whole number."""
KEY = re.compile(r"[A-Za-z0-9_-]+")
"""A sample's id, which is its WebDataset key."""
_KEY_BYTES = bytes(code for code in range(128) if code == 0 or KEY.fullmatch(chr(code)))  # 0 fills numpy's strings
_KEYS_AT_ONCE = 1 << 16

CLASSIFICATION = "classification"
REGRESSION = "regression"
CONVENTIONS = ("classes", "mosei", "sims")
SIMS_RANGE = (-1.0, 1.0)
"""The metrics of the convention ``sims`` clip to it, so other numbers would be judged as what they are not."""
MAX_ANSWERS = 10_000
"""Legal answers of a task: each is scored for every sample."""
TOLERANCE = 1e-6
"""Of a value beyond its task's range (1.2 is 1.2000000477 once it has been float32), and of steps in a range."""
EXACT_DECIMALS = 6
"""A step that needs more has none that write it exactly: a third."""
MAX_DECIMALS = 15
FP16_MAX = 65504.0
"""The largest number of half precision; beyond it a feature would be infinite there."""

FIELDS: dict[str, tuple[type, ...]] = {
    "id": (str,), "text": (str,), "language": (str,), "task": (str,), "dataset": (str,), "split": (str,),
    "modalities": (list,), "context": (list,), "speaker": (str,), "dialogue": (str,), "turn": (int,),
    "source_id": (str,), "label": (str,), "value": (int, float),
}  # fmt: skip
"""The fields of a sample's JSON and their types."""
OPTIONAL: dict[str, Any] = {"label": None, "value": None, "speaker": "", "dialogue": "", "turn": 0, "source_id": ""}
NEEDED = tuple(name for name in FIELDS if name not in OPTIONAL)


# Samples have the same fields and few sets of modalities: what was checked once is not checked again.
@lru_cache(maxsize=256)
def field_faults(names: tuple[str, ...], types: tuple[type, ...]) -> tuple[str, ...]:
    """What is wrong with the fields of a sample's JSON, by their names and types: one line a field."""
    faults = [f"lacks {name}" for name in NEEDED if name not in names]
    found = dict(zip(names, types, strict=True))
    for name, kind in found.items():
        empty = kind is NoneType and name in ("label", "value")
        if name not in FIELDS:
            faults.append(f"has unknown {name!r}")
        elif kind not in FIELDS[name] and not empty:
            wanted = " or ".join(known.__name__ for known in FIELDS[name])
            faults.append(f"{name} has the wrong type, {kind.__name__}; {wanted} is needed")
    if found.get("label", NoneType) is not NoneType and found.get("value", NoneType) is not NoneType:
        faults.append("there are two targets: a label and a value exclude each other")
    return tuple(faults)


def lists_fault(context: Iterable[Any], modalities: tuple[Any, ...]) -> str:
    """What is wrong with the lists ``context`` and ``modalities`` of a sample's JSON."""
    for pair in context:
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            return "context is a list of [speaker, text]"
    try:
        return modalities_fault(modalities)
    except TypeError:  # something that has no hash
        return "modalities is a list of names"


@lru_cache(maxsize=256)
def modalities_fault(names: tuple[Any, ...]) -> str:
    """What is wrong with the names of modalities; TypeError where one has no hash."""
    wrong = next((fault for name in names if name != TEXT for fault in [stream_fault(name)] if fault), "")
    if len(set(names)) != len(names):
        return f"modalities are {list(names)}; each at most once"
    return wrong


def stream_fault(name: Any) -> str:
    """What is wrong with the name of a feature stream."""
    if isinstance(name, str) and name != TEXT and STREAM.fullmatch(name):
        return ""
    return f"a feature stream is called {shown(name)}; a-z, then a-z, 0-9 and '_', at most 32, and not 'text' is needed"


def json_faults(data: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the fields of a sample's JSON; their values are :func:`sample_fault`'s."""
    faults = list(field_faults(tuple(data), tuple(map(type, data.values()))))
    context, modalities = data.get("context"), data.get("modalities")
    if isinstance(context, list) and isinstance(modalities, list):
        faults.append(lists_fault(context, tuple(modalities)))
    return [fault for fault in faults if fault]


def key_fault(key: str) -> str:
    """What is wrong with a sample's id."""
    return "" if KEY.fullmatch(key) else "an id may hold only letters, digits, '-' and '_', at least one"


def first_bad_key(keys: np.ndarray) -> int | None:
    """Which of many ids, str ``[S]``, is the first that :func:`key_fault` refuses; None: all are sound.

    A million ids take a twentieth of a second: they are compared as bytes, and by the rule only where one is odd.
    """
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        part = keys[start : start + _KEYS_AT_ONCE]
        codes = part.view(np.uint32).reshape(len(part), -1)
        odd = codes.max() > 127 or codes.astype(np.uint8).tobytes().translate(None, _KEY_BYTES)
        # A NUL inside a key would pass for the filling behind it.
        if odd or not codes[:, 0].all() or np.any((codes[:, :-1] == 0) & (codes[:, 1:] != 0)):
            wrong = next((row for row, key in enumerate(part.tolist()) if key_fault(key)), None)
            if wrong is not None:
                return start + wrong
    return None


def sample_fault(sample: Sample, tasks: Mapping[str, Task], dataset: str, languages: Collection[str] | None) -> str:
    """What is wrong with the values of a sample's fields, its id and its features aside.

    Args:
        sample: one whose fields have the types of :data:`FIELDS`.
        tasks: the tasks of its folder.
        dataset: the data set of its folder.
        languages: the languages that its folder names; None: those are not known yet.
    """
    if sample.dataset != dataset:
        return f"data set is {sample.dataset!r}; this folder holds {dataset!r}"
    if sample.split not in SPLITS:
        return f"split is {sample.split!r}; it must be one of {', '.join(SPLITS)}"
    task = tasks.get(sample.task)
    if task is None:
        return f"task {sample.task!r} is not among this folder's: {', '.join(tasks)}"
    if sample.language not in task.questions:
        return f"language is {sample.language!r}; task {task.name!r} knows {', '.join(task.questions)}"
    if languages is not None and sample.language not in languages:
        return f"language is {sample.language!r}; the manifest names {', '.join(languages)}"
    fault = target_fault(task, sample.label, sample.value)
    if fault:
        return fault
    if sample.split == UNLABELLED and sample.has_target:
        return f"the split {UNLABELLED!r} is of samples without a target; this one has one"
    if ("text" in sample.modalities) is not bool(sample.text.strip()):
        declared = "declared present" if "text" in sample.modalities else "declared absent"
        return f"the text is {declared} but is {sample.text[:40]!r}"
    if len(sample.context) > MAX_CONTEXT_TURNS:
        return f"{len(sample.context)} turns of context; at most {MAX_CONTEXT_TURNS} are kept"
    if not 0 <= sample.turn <= MAX_TURN:
        return f"turn is {shown(sample.turn)}; turns count from 0"
    return ""


def target_fault(task: Task, label: str | None, value: float | None) -> str:
    """What is wrong with a target: of the wrong type or kind, outside the label space, or outside the range. None is
    sound."""
    if label is None and value is None:
        return ""
    fault = target_type_fault(label, value)
    if fault:
        return fault
    if task.kind == CLASSIFICATION:
        if value is not None:
            return f"task {task.name!r} is a {task.kind}; a label and a value exclude each other"
        if label not in task.label_set:
            return f"label {label!r} is not in the label space of task {task.name!r}: {', '.join(task.labels)}"
    elif label is not None:
        return f"task {task.name!r} is a {task.kind}; a label and a value exclude each other"
    elif value is None or not task.low - TOLERANCE <= value <= task.high + TOLERANCE:
        return f"value {shown(value)} is outside the range [{task.low}, {task.high}] of task {task.name!r}"
    return ""


def target_type_fault(label: Any, value: Any) -> str:
    """What is wrong with the types of a target, whatever the task: one of ``label`` (str) and ``value`` (a number)."""
    if label is not None and value is not None:
        return "there are two targets: a label and a value exclude each other"
    if not isinstance(label, str | NoneType):
        return f"label is {shown(label)}; a string is needed"
    if not isinstance(value, int | float | np.integer | np.floating | NoneType) or isinstance(value, bool):
        return f"value is {shown(value)}; a number is needed"
    return ""


def presence_fault(modalities: Sequence[str], carried: Set[str]) -> str:
    """What is wrong between the modalities that a sample declares, each once, and those of its feature arrays."""
    if len(carried) == len(modalities) - ("text" in modalities) and carried <= set(modalities):
        return ""
    wrong = min(carried ^ {m for m in modalities if m != "text"})
    if wrong in carried:
        return f"{wrong} is declared absent but there is an array"
    return f"{wrong} is declared present but there is no array"


def width_fault(width: int, wanted: int, where: str) -> str:
    """What is wrong with the width of a feature array; ``where`` names what has the width that is wanted."""
    return "" if width == wanted else f"has width {width}; it is {wanted} in {where}"


def array_fault(array: Any) -> str:
    """What is wrong with one feature array that is to be written: numbers ``[frames, dim]``, finite in float32."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        shape = f"{getattr(array, 'dtype', type(array).__name__)} {list(getattr(array, 'shape', []))}"
        return f"is {shape}; numbers [frames, dim] with at least one frame are needed"
    if array.shape[1] > MAX_DIM:
        return f"is {array.shape[1]} wide; at most {MAX_DIM} numbers a frame are needed"
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32)).all()
    return "" if finite else "holds a number that is not finite in float32"


def task_fault(task: Task) -> str:
    """What is wrong with a task's definition: types, kind, convention, label space or grid."""
    fault = _task_types_fault(task)
    if fault:
        return fault
    if task.kind not in (CLASSIFICATION, REGRESSION):
        return f"kind is {task.kind!r}; it must be {CLASSIFICATION!r} or {REGRESSION!r}"
    if task.convention not in CONVENTIONS:
        return f"convention is {task.convention!r}; it must be one of {', '.join(CONVENTIONS)}"
    if not task.questions:
        return "no question; give at least one language, such as {'en': '...'}"
    return _labels_fault(task) if task.kind == CLASSIFICATION else _grid_fault(task)


def _task_types_fault(task: Task) -> str:
    """Definitions come from files of other people, and a dataclass's types are only annotations."""
    if not isinstance(task.questions, Mapping) or not _all_text((*task.questions, *task.questions.values())):
        return "questions must be one text for each language"
    answers = task.answers.values() if isinstance(task.answers, Mapping) else (None,)
    lists = (task.labels, *answers)
    if not all(isinstance(words, list | tuple) and _all_text(words) for words in lists) or not _all_text(task.answers):
        return "labels must be a list of texts, and answers one for each language"
    for name in ("low", "high", "step"):
        number = getattr(task, name)
        if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1e300:
            return f"{name} is {shown(number)}; a number is needed"
    return ""


def _labels_fault(task: Task) -> str:
    if len(task.labels) < 2 or len(set(task.labels)) != len(task.labels):
        return f"labels are {list(task.labels)}; at least two different ones are needed"
    if len(task.labels) > MAX_ANSWERS:
        return f"more than {MAX_ANSWERS} legal answers; fewer labels are needed"
    for language in task.questions:
        words = task.answers.get(language, ())
        if len(words) != len(task.labels) or len(set(words)) != len(words):
            return (
                f"the answers in {language!r} are {list(words)}; "
                f"one different word for each of {list(task.labels)} is needed"
            )
    return ""


def _grid_fault(task: Task) -> str:
    low, high, step = task.low, task.high, task.step
    span = f"range [{low}, {high}]"
    if not (step > 0 and high > low):
        return f"{span} with step {step}; low < high and step > 0 are needed"
    steps = (high - low) / step
    if not steps <= MAX_ANSWERS - 1:
        return f"more than {MAX_ANSWERS} legal answers; a larger step is needed"
    if round(steps) < 1 or abs(steps - round(steps)) > TOLERANCE:
        fitting = (high - low) / max(round(steps), 1)
        return f"step {step} does not divide the {span}: it fits {steps:.9g} times; {fitting!r} would fit"
    if decimals(low, high, step) is None:
        return f"{span} with step {step}: its numbers look alike in {MAX_DECIMALS} decimals"
    if task.convention == "sims" and (abs(low - SIMS_RANGE[0]) > TOLERANCE or abs(high - SIMS_RANGE[1]) > TOLERANCE):
        return (
            f"convention 'sims' needs the range [-1, 1], to which its metrics clip; "
            f"the range is [{low}, {high}]: rescale the values, or use 'mosei', which clips neither MAE nor Corr"
        )
    return ""


@lru_cache(maxsize=64, typed=True)
def grid(low: float, high: float, step: float) -> tuple[float, ...]:
    """The legal numbers of a regression, ascending: ``low, low + step, ..., high``."""
    digits = max(EXACT_DECIMALS, 3 - _exponent(step))
    return tuple(round(low + i * step, digits) for i in range(round((high - low) / step) + 1))


@lru_cache(maxsize=256)
def decimals(low: float, high: float, step: float) -> int | None:
    """How many decimals write the numbers of a grid; None where no number of them tells these apart.

    As many as write ``low`` and ``step`` exactly (1 for steps of 0.2 or 0.5, 3 for 0.001). Thirds have no such number:
    two, or as many more as different numbers need to look different.
    """
    exact = (d for d in range(1, EXACT_DECIMALS + 1) if all(abs(round(x, d) - x) < 1e-9 for x in (low, step)))
    numbers = grid(low, high, step)
    for count in (*exact, *range(2, MAX_DECIMALS + 1)):
        if len({written(number, count) for number in numbers}) == len(numbers):
            return count
    return None


def written(number: float, count: int) -> str:
    """A number as an answer, with ``count`` decimals; zero has no sign."""
    text = f"{number:.{count}f}"
    return text.removeprefix("-") if not float(text) else text


def _exponent(step: float) -> int:
    """The power of ten of ``step``'s first digit; 0 for steps of 1 and more."""
    return min(0, int(f"{step:e}".partition("e")[2]))


def _all_text(items: Iterable[Any]) -> bool:
    return all(isinstance(item, str) for item in items)
