"""Remove tokens from a model: their rows in embedding and LM head, and their ids in the configs.

The tokens that stay get new ids, without gaps.

Legend: the suffix K is the axis of the tokens that stay, in the order of their new ids.
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

# Suffixes of config keys whose values are token ids or lists of token ids.
ID_KEYS = ("_token_id", "_token_index", "suppress_tokens")
# Config keys whose values are lists of words, or lists of pairs of a word and a bias. A word is a
# list of token ids.
WORDS = ("bad_words_ids", "sequence_bias")


def named_ids(model: PreTrainedModel) -> set[int]:
    """Return the ids of special tokens in a model's configs, from keys such as bos_token_id.

    Tokens with these ids must stay, even if the tokenizer does not treat them as special tokens.
    """
    ids: set[int] = set()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        if config is None:
            continue
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")) and value is not None:
                ids.update(value if isinstance(value, list) else [value])
    return ids


def cut_rows(placed: PlacedModel, rows_K: Tensor) -> None:
    """Remove the rows of removed tokens from embedding and LM head, and update the configs.

    The model is changed in place.

    rows_K: the old ids of the tokens that stay, in the order of the new ids.
    """
    with placed.ends():
        cut_rows_of(placed.model, placed.adapter, rows_K)


@torch.no_grad()
def cut_rows_of(model: PreTrainedModel, adapter: ModelAdapter, rows_K: Tensor) -> None:
    """Do what `cut_rows` does, for a model that has no `PlacedModel`.

    Embedding and LM head must be in memory or on the meta device.
    """
    new_ids = {old: new for new, old in enumerate(rows_K.tolist())}

    # 1. cut the rows of embedding and LM head
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tied = head.weight is embedding.weight
    with onloaded(embedding), onloaded(head):
        kept_K = rows_K.to(embedding.weight.device)
        set_tensor(embedding, "weight", embedding.weight[kept_K])
        embedding.num_embeddings = len(rows_K)
        embedding.padding_idx = new_ids.get(embedding.padding_idx)
        kept_K = rows_K.to(head.weight.device)
        bias_K = None if head.bias is None else head.bias[kept_K]
        assign(head, head.weight[kept_K], bias_K)
        if tied:
            head.weight = embedding.weight

    # 2. update the configs; several of them may be the same object
    adapter.own_config()
    for module in model.modules():
        if hasattr(module, "vocab_size"):
            module.vocab_size = len(rows_K)
    adapter.config.vocab_size = len(rows_K)
    configs = [model.config, adapter.config, model.generation_config]
    for config in {id(config): config for config in configs}.values():
        if config is not None:
            _renumber(config, new_ids)


def _renumber(config: Any, new_ids: Mapping[int, int]) -> None:
    """Replace the token ids in a config with the new ids.

    A value that is not the id of a kept token, such as -1, becomes None; in a list of ids, it is
    dropped. A word is a list of token ids, for example in `bad_words_ids`. A word that contains a
    removed token is dropped, because its text is now tokenised differently.
    """
    for name, value in config.to_dict().items():
        if name.endswith(ID_KEYS) and value is not None:
            if isinstance(value, list):
                setattr(config, name, [new_ids[i] for i in value if i in new_ids])
            else:
                setattr(config, name, new_ids.get(value))
        elif name in WORDS and isinstance(value, list):
            words = [_renumbered(word, new_ids) for word in value]
            setattr(config, name, [word for word in words if word] or None)


def _renumbered(word: Any, new_ids: Mapping[int, int]) -> Any:
    """Return a word with new ids, or None if one of its tokens was removed.

    word: a list of token ids, or a pair of such a list and a bias.
    """
    match word:
        case [[*ids], bias]:
            renumbered = _renumbered(ids, new_ids)
            return [renumbered, bias] if renumbered else None
    return [new_ids[i] for i in word] if all(i in new_ids for i in word) else None
