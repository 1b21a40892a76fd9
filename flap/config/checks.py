"""Checks of the configuration that need no model, no tokenizer and no text."""

import math
from typing import Any

from flap.config.schema import DEVICES, DTYPES, GGUF_TYPES, PROPAGATE, FlapConfig, TargetConfig, targets


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a ValueError that names the field, its value and what is allowed, unless `condition` is true."""
    if not condition:
        raise ValueError(f"{name}={value}: expected {allowed}")


def check(config: FlapConfig) -> None:
    """Check all fields that can be checked without a model, a tokenizer or a text.

    Raises:
        ValueError: a value is not allowed.
    """
    _check_amount(config.ratio, config.target)
    require(0 <= config.seed < 2**32, "seed", config.seed, "a whole number from 0 to 2**32 - 1")
    require(config.model.dtype in DTYPES, "model.dtype", config.model.dtype, f"one of {', '.join(DTYPES)}")
    require(config.model.device in DEVICES, "model.device", config.model.device, f"one of {', '.join(DEVICES)}")
    require(config.cache_wait_seconds >= 0, "cache_wait_seconds", config.cache_wait_seconds, "a number >= 0")
    formats, gguf_type = config.checkpoint.formats, config.checkpoint.gguf_type
    require(set(formats) in ({"hf"}, {"hf", "gguf"}), "checkpoint.formats", formats, "[hf] or [hf,gguf]")
    saved = config.checkpoint.save or "gguf" not in formats
    require(saved, "checkpoint.save", False, "true with checkpoint.formats=[hf,gguf], which is made from the former")
    require(gguf_type in GGUF_TYPES, "checkpoint.gguf_type", gguf_type, f"one of {', '.join(GGUF_TYPES)}")
    calibration = config.calibration
    for name in ("num_samples", "batch_size"):
        require(
            getattr(calibration, name) >= 1, f"calibration.{name}", getattr(calibration, name), "a whole number >= 1"
        )
    lengths = calibration.lengths
    valid = bool(lengths) and all(type(length) is int and length >= 2 for length in lengths)
    allowed = "a whole number >= 2, or a list of such, each once"
    require(valid and len(set(lengths)) == len(lengths), "calibration.seq_len", calibration.seq_len, allowed)
    require(
        calibration.propagate in PROPAGATE,
        "calibration.propagate",
        calibration.propagate,
        f"one of {', '.join(PROPAGATE)}",
    )


def _check_amount(ratio: float | None, target: TargetConfig) -> None:
    asked = targets(target)
    for name, value in asked.items():
        require(0 < value < math.inf, f"target.{name}", value, "a number > 0")
        beside = f"no ratio (it is {ratio}): a run removes a share, or what its targets ask for"
        require(ratio is None, f"target.{name}", f"{value:.12g}", beside)
    if not asked:
        require(ratio is not None and 0 <= ratio < 1, "ratio", ratio, "a number with 0 <= ratio < 1")
    require(target.context is None or target.context >= 1, "target.context", target.context, "a whole number >= 1")
