"""onnxruntime sessions for heads, exits and tail. Imports no torch."""

from adaptsplit.runtime.device import DeviceRuntime, EdgeRuntime
from adaptsplit.runtime.folder import BranchCard, FullCard, ModelCard, ModelFolder, Precision, ScoreCard
from adaptsplit.runtime.sessions import Answer, HeadResult, softmax

__all__ = [
    "Answer",
    "BranchCard",
    "DeviceRuntime",
    "EdgeRuntime",
    "FullCard",
    "HeadResult",
    "ModelCard",
    "ModelFolder",
    "Precision",
    "ScoreCard",
    "softmax",
]
