"""How the generated data is built: the facts that the generator samples from and the ceilings are computed from.

An utterance has an emotion (one of seven), three cues (words, voice, face), each a bit, and an intensity per cue:

* **Emotion** y is drawn from a prior that the dialogue's *mood* tilts: :data:`MOOD_WEIGHT` to 1 for the mood's own
  classes. The mood is given only by the words of the dialogue's opening line, which every utterance has as its first
  turn of context: the **long-range cue**.
* **Cues**: :data:`CODE` gives every emotion its three bits; each bit is flipped with probability ``noise``. Any
  single cue narrows the seven classes to three or four, any two to one or two, so every modality adds evidence of its
  own and none is a parity that only shows when all are there. The face's bit is a short burst in the vision frames: a
  **local cue**. Words and voice are a **cross-modal cue**: agreeing they mean sadness, fear or anger, disagreeing
  neutral, joy, surprise or disgust.
* **Sentiment** is what the (flipped) cues show, each with its own intensity: a positive cue adds, a negative one
  subtracts :data:`AMPLITUDES`; the sum is clipped to [-3, 3]. All of it lies on the grid of 0.5.
* Each modality is missing with probability ``missing``; where all three would be, none is.

Given the mood, utterances are independent of each other, so the mood is all that the context can tell.
"""

from __future__ import annotations

import numpy as np

from egmf_shards.format.task import CLASSIFICATION, REGRESSION, Task


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CUES = ("text", "audio", "vision")
"""The modality that carries each bit of :data:`CODE`."""
CODE = np.array([(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
"""int ``[7, 3]``: the bits (words, voice, face) of each emotion."""
LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
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
    """The sentiment, float64 ``[...]``, shown by cue ``bits`` (0, 1) at ``levels`` (0 to 2), both int ``[..., 3]``."""
    return np.clip(((2 * bits - 1) * AMPLITUDES[levels]).sum(axis=-1), LOW, HIGH)


def missing_patterns(missing: float) -> list[tuple[tuple[bool, bool, bool], float]]:
    """Every pattern of presence (words, voice, face) with its probability; never all absent."""
    patterns = []
    for code in range(1, 8):
        present = (bool(code & 4), bool(code & 2), bool(code & 1))
        probability = (1 - missing) ** sum(present) * missing ** (3 - sum(present))
        patterns.append((present, probability + (missing**3 if all(present) else 0.0)))
    return patterns
