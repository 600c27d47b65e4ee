"""Language models as judges, at an endpoint or run locally. All answers are kept."""

from .cache import CachedJudge
from .config import NO_JUDGE, JudgeConfig, open_judge
from .judge import Judge, Question, ask_all, prompt

__all__ = [
    "NO_JUDGE",
    "CachedJudge",
    "Judge",
    "JudgeConfig",
    "Question",
    "ask_all",
    "open_judge",
    "prompt",
]
