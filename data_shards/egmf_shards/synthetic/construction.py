"""How the generated data is built: the facts that the generator samples from and the ceilings are computed from.

An utterance has an emotion (one of seven), three cues (words, voice, face), each a bit, and an intensity per cue; other
feature streams may carry further cues, or take the place of voice and face (:class:`Cues`):

* **Emotion** y is drawn from a prior that the dialogue's *mood* tilts: :data:`MOOD_WEIGHT` to 1 for the mood's own
  classes. The mood is given only by the words of the dialogue's opening line, which every utterance has as its first
  turn of context: the **long-range cue**.
* **Cues**: :data:`CODE` gives every emotion its three bits; each bit is flipped with probability ``noise``. Any
  single cue narrows the seven classes to three or four, any two to one or two, so every modality adds evidence of its
  own and none is a parity that only shows when all are there. The face's bit is a short burst in the vision frames: a
  **local cue**. Words and voice are a **cross-modal cue**: agreeing they mean sadness, fear or anger, disagreeing
  neutral, joy, surprise or disgust. The bit of any other stream is a fair coin: it says nothing about the emotion, and
  as much about the sentiment as the others.
* **Sentiment** is what the (flipped) cues show, each with its own intensity: a positive cue adds, a negative one
  subtracts :data:`AMPLITUDES`; the sum is clipped to [-3, 3]. All of it lies on the grid of 0.5. An utterance is *calm*
  with probability ``zeros``: its words say so, and its sentiment is 0 whatever the cues show.
* Each modality is missing with probability ``missing``; where all three would be, none is.

Given the mood, utterances are independent of each other, so the mood is all that the context can tell.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np

from egmf_shards.errors import ShardError
from egmf_shards.format import rules
from egmf_shards.format.task import CLASSIFICATION, REGRESSION, Task


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
CODE = {"text": (1, 0, 1, 0, 1, 0, 1), "audio": (0, 1, 1, 0, 0, 1, 1), "vision": (0, 0, 0, 1, 1, 1, 1)}
"""The bit of each emotion that words, voice and face show."""
MOST_STREAMS = 5
"""The ceilings enumerate every state of all cues."""
MOOD_CLASSES = (("fear", "sadness", "disgust", "anger"), ("neutral", "surprise", "joy"))
"""The classes that a cold (0) and a warm (1) mood make likelier."""
MOOD_WEIGHT = 1.5
AMPLITUDES = np.array([0.5, 1.0, 1.5])
"""What a cue of intensity level 0, 1 or 2 adds to or takes from the sentiment."""
GAINS = np.array([0.6, 1.0, 1.4])
"""The burst's size in the frames at each level: more than three standard deviations apart after averaging the burst."""
CUE_WORDS = np.array([2, 3, 4])
"""How many cue words the text holds at each level."""
LOW, HIGH, STEP = -3.0, 3.0, 0.5

AUDIO_DIM, AUDIO_FRAMES, AUDIO_BURST = 16, (20, 60), 8
VISION_DIM, VISION_FRAMES, VISION_BURST = 12, (10, 30), 6
FRAME_NOISE = 0.5
"""Standard deviation of every number of every frame."""
_directions = np.random.RandomState(7)  # fixed for ever: any two generated data sets speak the same language
AUDIO_DIRECTIONS = _directions.randn(2, AUDIO_DIM)
VISION_DIRECTIONS = _directions.randn(2, VISION_DIM)


class Signal(NamedTuple):
    """How a stream shows its bit: a burst along a direction somewhere in the frames."""

    lengths: tuple[int, int]
    """Fewest frames, and one more than the most."""
    burst: int
    """Frames."""
    directions: np.ndarray
    """float64 ``[2, dim]``, of bit 0 and bit 1."""


SIGNALS = {
    "audio": Signal(AUDIO_FRAMES, AUDIO_BURST, AUDIO_DIRECTIONS),
    "vision": Signal(VISION_FRAMES, VISION_BURST, VISION_DIRECTIONS),
}


def signal(stream: str) -> Signal:
    """The signal of a stream; one of a name that is not known here has 8 numbers a frame, drawn from its name."""
    if stream in SIGNALS:
        return SIGNALS[stream]
    return Signal((15, 40), 6, 1.5 * np.random.RandomState(zlib.crc32(stream.encode())).randn(2, 8))


@dataclass(frozen=True)
class Cues:
    """Which modalities carry a cue: the words, and feature streams.

    Raises:
        ShardError: a name that is none or occurs twice, or more than :data:`MOST_STREAMS`.
    """

    streams: tuple[str, ...] = ("audio", "vision")

    def __post_init__(self) -> None:
        fault = next(filter(None, map(rules.stream_fault, self.streams)), "")
        if not fault and len(set(self.streams)) < len(self.streams):
            fault = f"streams are {', '.join(self.streams)}; each name may occur once"
        if not fault and len(self.streams) > MOST_STREAMS:
            fault = f"{len(self.streams)} feature streams; at most {MOST_STREAMS} can be generated"
        if fault:
            raise ShardError(fault)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order of their cues: the words first, then the streams by name."""
        return ("text", *sorted(self.streams))

    @cached_property
    def code(self) -> np.ndarray:
        """int ``[7, cues]``: the bits of each emotion."""
        return np.array([CODE.get(name, (0,) * len(LABELS)) for name in self.names]).T

    def flips(self, noise: float) -> np.ndarray:
        """float64 ``[cues]``: the probability that a bit is not the emotion's."""
        return np.array([noise if name in CODE else 0.5 for name in self.names])

    def missing_patterns(self, missing: float) -> list[tuple[tuple[bool, ...], float]]:
        """Every pattern of presence with its probability; never all absent."""
        patterns = []
        for present in list(product((False, True), repeat=len(self.names)))[1:]:
            probability = (1 - missing) ** sum(present) * missing ** (len(present) - sum(present))
            patterns.append((present, probability + (missing ** len(present) if all(present) else 0.0)))
        return patterns


STANDARD = Cues()
"""Words, voice and face."""
LANGUAGES = ("en", "zh")
FILLER_WORDS = {
    "en": _words("i you we think about the this was really going to it what did he say and then"),
    "zh": _words("我 你 我们 想 关于 这个 那个 真的 去 什么 他 说 然后"),
}
BIT_WORDS = {
    "en": (_words("rain table late monday wait grey paper closed"), _words("party wow cake sun run loud bright gift")),
    "zh": (_words("下雨 桌子 晚了 周一 等待 灰色 纸张 关闭"), _words("聚会 哇 蛋糕 太阳 奔跑 响亮 明亮 礼物")),
}
"""The cue words of bit 0 and bit 1."""
CALM_WORDS = {"en": _words("whatever okay"), "zh": _words("随便 还行")}
"""One of them makes an utterance calm."""
MOOD_WORDS = {
    "en": (_words("winter hospital goodbye bitter"), _words("spring picnic welcome sweet")),
    "zh": (_words("冬天 医院 告别 苦涩"), _words("春天 野餐 欢迎 甜蜜")),
}
"""The words of a cold and of a warm opening line."""
SPEAKERS = {"en": ("Ann", "Ben"), "zh": ("小安", "小本")}

EMOTION = Task(
    name="emotion",
    kind=CLASSIFICATION,
    questions={"en": "Emotion?", "zh": "情绪？"},
    labels=LABELS,
    answers={"en": LABELS, "zh": ("中性", "惊讶", "恐惧", "悲伤", "高兴", "厌恶", "愤怒")},
)
SENTIMENT = Task(
    name="sentiment",
    kind=REGRESSION,
    questions={"en": "Sentiment?", "zh": "情感？"},
    convention="mosei",
    low=LOW,
    high=HIGH,
    step=STEP,
)


def emotion_prior() -> np.ndarray:
    """float64 ``[2, 7]``: P(emotion | mood)."""
    weights = np.array([[MOOD_WEIGHT if label in classes else 1.0 for label in LABELS] for classes in MOOD_CLASSES])
    return weights / weights.sum(axis=1, keepdims=True)


def sentiment(bits: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The sentiment, float64 ``[...]``, of cue ``bits`` (0, 1) at ``levels`` (0 to 2), both int ``[..., cues]``."""
    return np.clip(((2 * bits - 1) * AMPLITUDES[levels]).sum(axis=-1), LOW, HIGH)
