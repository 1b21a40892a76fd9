"""The rows of a model's embedding and head, and the ids in its configs, without the tokens that are removed.

Legend: K the tokens that stay.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.method.compression.apply import assign
from flap.models import ModelAdapter, PlacedModel
from flap.models.block import set_tensor
from flap.models.offload import onloaded

# The ends of the names of config keys that hold ids of tokens; others hold lists of words or of (word, bias).
ID_KEYS = ("_token_id", "_token_index", "suppress_tokens")
WORDS = ("bad_words_ids", "sequence_bias")


def named_ids(model: PreTrainedModel) -> set[int]:
    """Return the ids of the tokens that a model's configs name, which need be no special ones of its tokenizer."""
    ids = set[int]()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for name, value in config.to_dict().items() if config is not None else ():
            if name.endswith(ID_KEYS[:2]) and value is not None:
                ids.update(value if isinstance(value, list) else [value])
    return ids


def cut_rows(placed: PlacedModel, rows_K: Tensor) -> None:
    """Reduce embedding and head to these rows, in place and as new tensors; the configs follow.

    rows_K: the old ids, in the order of the new ones.
    """
    with placed.ends():
        cut_rows_of(placed.model, placed.adapter, rows_K)


@torch.no_grad()
def cut_rows_of(model: PreTrainedModel, adapter: ModelAdapter, rows_K: Tensor) -> None:
    """Reduce embedding and head of a model whose ends are present, as `cut_rows` does."""
    new_ids = {old: new for new, old in enumerate(rows_K.tolist())}
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tied = head.weight is embedding.weight
    with onloaded(embedding), onloaded(head):
        set_tensor(embedding, "weight", embedding.weight[rows_K.to(embedding.weight.device)])
        embedding.num_embeddings = len(rows_K)
        embedding.padding_idx = new_ids.get(embedding.padding_idx)
        kept_K = rows_K.to(head.weight.device)
        assign(head, head.weight[kept_K], None if head.bias is None else head.bias[kept_K])
        if tied:
            head.weight = embedding.weight

    adapter.own_config()
    for module in model.modules():
        if hasattr(module, "vocab_size"):
            module.vocab_size = len(rows_K)
    adapter.config.vocab_size = len(rows_K)
    for config in {
        id(config): config for config in (model.config, adapter.config, model.generation_config)
    }.values():
        _renumber(config, new_ids)


def _renumber(config: Any, new_ids: Mapping[int, int]) -> None:
    """Give a config the new ids; one that is no token's, as -1 for none, becomes none.

    Words of which a token was removed are dropped: their texts have other tokens now.
    """
    for name, value in config.to_dict().items() if config is not None else ():
        if name.endswith(ID_KEYS) and value is not None:
            many = isinstance(value, list)
            setattr(
                config,
                name,
                [new_ids[i] for i in value if i in new_ids] if many else new_ids.get(value),
            )
        elif name in WORDS and isinstance(value, list):
            setattr(
                config, name, [new for one in value if (new := _renumbered(one, new_ids))] or None
            )


def _renumbered(word: Any, new_ids: Mapping[int, int]) -> Any:
    """Return the new ids of a word, or of a word and its bias; None if one of its tokens was removed."""
    match word:
        case [[*ids], bias]:
            return [new, bias] if (new := _renumbered(ids, new_ids)) else None
    return [new_ids[i] for i in word] if all(i in new_ids for i in word) else None
