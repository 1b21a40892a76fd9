"""Importance: metrics that score how much each channel or expert matters to the model.

A channel is an input of an output projection, which is the last matrix of an attention or an MLP.
Channels and experts with low scores are removed.
"""

from flap.method.importance.base import (
    Metric,
    MetricFunction,
    metric_of,
    score_layer,
    score_layers,
    scores_of_layer,
)
from flap.method.importance.channels import IFV, WIFN, WIFV, Magnitude, Random, Wanda
from flap.method.importance.experts import EAN, REAP, MoNE
from flap.method.importance.obs import OBS
from flap.method.importance.scores import SCORES, Scores
from flap.method.importance.taylor import Taylor

__all__ = [
    "EAN",
    "IFV",
    "OBS",
    "REAP",
    "SCORES",
    "WIFN",
    "WIFV",
    "Magnitude",
    "Metric",
    "MetricFunction",
    "MoNE",
    "Random",
    "Scores",
    "Taylor",
    "Wanda",
    "metric_of",
    "score_layer",
    "score_layers",
    "scores_of_layer",
]
