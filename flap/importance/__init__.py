"""The importance metrics: they score how much each channel, or each expert, matters."""

from flap.importance.base import Metric, score_layer, score_layers, scores_of_layer
from flap.importance.experts import EAN, REAP, MoNE
from flap.importance.fluctuation import IFV, WIFN, WIFV, Wanda
from flap.importance.magnitude import Magnitude
from flap.importance.obs import OBS
from flap.importance.random import Random
from flap.importance.scores import SCORES, SCORES_VERSION, Scores

__all__ = [
    "EAN", "IFV", "OBS", "REAP", "SCORES", "SCORES_VERSION", "WIFN", "WIFV", "Magnitude",
    "Metric", "MoNE", "Random", "Scores", "Wanda", "score_layer", "score_layers", "scores_of_layer",
]  # fmt: skip
