"""Write `genai_config.json`, with which ONNX Runtime GenAI runs a graph: its names, and how a text ends.

GenAI takes the shape of each layer's keys and values from the graph, so heads may differ by layer.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

PLAIN = ("input_ids", "attention_mask", "position_ids")


def write_genai_config(folder: Path, config: PreTrainedConfig) -> None:
    """Write the file beside `model.onnx`, if the graph has no input that GenAI does not feed.

    A sliding window has one: the number of tokens so far.
    """
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    names = [one.name for one in graph.input]
    cached = [name for name in names if name.endswith((".keys", ".values"))]
    plain = [name for name in PLAIN if name in names]
    if len(plain) + len(cached) == len(names):
        (folder / "genai_config.json").write_text(json.dumps(_genai_config(config.get_text_config(), plain), indent=2))


def _genai_config(config: PreTrainedConfig, plain: list[str]) -> dict[str, Any]:
    search = {"max_length": config.max_position_embeddings, "past_present_share_buffer": False}
    cache = {
        f"{when}_{kind}_names": f"{side}.cache.layers.%d.{kind}s"
        for when, side in (("past", "input"), ("present", "output"))
        for kind in ("key", "value")
    }
    decoder = {
        "filename": "model.onnx",
        "num_hidden_layers": config.num_hidden_layers,
        "inputs": {name: name for name in plain} | {k: v for k, v in cache.items() if k.startswith("past")},
        "outputs": {"logits": "logits"} | {k: v for k, v in cache.items() if k.startswith("present")},
    }
    begins = {} if config.bos_token_id is None else {"bos_token_id": config.bos_token_id}  # GenAI reads no null
    model = begins | {
        "type": "llama",  # any decoder that reads its cache
        "eos_token_id": [] if config.eos_token_id is None else config.eos_token_id,
        "pad_token_id": config.pad_token_id or 0,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "decoder": decoder,
    }
    return {"model": model, "search": search}
