"""Write `genai_config.json`, with which ONNX Runtime GenAI runs a graph: its names, and how a text ends.

GenAI takes the shape of each layer's keys and values from the graph, so heads may differ by layer.
"""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

PLAIN = ("input_ids", "attention_mask", "position_ids")


def write_genai_config(folder: Path, model: PreTrainedModel) -> None:
    """Write the file beside the `model.onnx` of a model, if the graph has no input that GenAI does not feed.

    A sliding window has one: the number of tokens so far.
    """
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    names = [one.name for one in graph.input]
    cached = [name for name in names if name.endswith((".keys", ".values"))]
    plain = [name for name in PLAIN if name in names]
    if len(plain) + len(cached) == len(names):
        (folder / "genai_config.json").write_text(json.dumps(genai_config(model, plain), indent=2))


def genai_config(model: PreTrainedModel, plain: list[str]) -> dict[str, Any]:
    """Return the content of the file.

    plain: the inputs besides the cache. The special tokens are those of `generate`: a chat model's own config may name
    the end of a document alone.
    """
    config, special = model.config.get_text_config(), model.generation_config or GenerationConfig()
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
    begins = {} if special.bos_token_id is None else {"bos_token_id": special.bos_token_id}  # GenAI reads no null
    described = begins | {
        "type": "llama",  # any decoder that reads its cache
        "eos_token_id": [] if special.eos_token_id is None else special.eos_token_id,
        "pad_token_id": special.pad_token_id or 0,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "decoder": decoder,
    }
    return {"model": described, "search": search}
