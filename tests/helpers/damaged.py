"""Create damaged models, texts and plans, each with one error for which a run must refuse it."""

import json
import shutil
from pathlib import Path

import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

WEIGHTS = "model.safetensors"
TENSOR = "model.layers.2.mlp.up_proj.weight"
DEEP = "[" * 5000 + "]" * 5000
TEXTS = {
    "empty.txt": "",
    "blank.txt": " \n\n",
    "short.txt": "the cat sat",
    "words.csv": "the,cat",
    "other.jsonl": '{"body": "the cat"}\n',
    "talk.jsonl": '{"messages": []}\n',
    "given.jsonl": '{"prompt": "the cat sat on", "answer": "the mat and then it ran"}\n' * 50,
    "asked.jsonl": '{"prompt": "the cat"}\n',
    "broken.parquet": "no",
    "deep.jsonl": f'{{"text": {DEEP}}}\n',
    "deep.json": DEEP,
}
NESTED = '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}"
FILES = (  # for each damaged model: its folder, a file in it, and the wrong content of this file
    ("null-config", "config.json", "null"),
    ("nested-config", "config.json", NESTED),
    ("nested-generation", "generation_config.json", NESTED),
    ("null-tokenizer", "tokenizer.json", "null"),
    ("empty-tokenizer", "tokenizer.json", "{}"),
    ("nested-tokenizer", "tokenizer.json", NESTED),
    ("list-tokenizer", "tokenizer_config.json", "[]"),
)
# The wrong values in config.json, by the name of the damaged model's folder.
CONFIGS: dict[str, dict[str, object]] = {
    "no-widths": {"model_type": "flap_llama"},
    "hub-kernel": {"_attn_implementation": "org/kernel"},
    "no-layers": {"num_hidden_layers": 0},
    "two-layers": {"num_hidden_layers": 2},
    "too-many-layers": {"num_hidden_layers": 10**9},
    "no-heads": {"num_attention_heads": 0, "head_dim": None},
    "no-type": {"dtype": "float7"},
}
HEADS = [0, 1, 2, 3]
NEURONS = list(range(50))
DENSE = {"kv_heads": 4, "neurons": 56}
PLANS = {  # wrong plans for a model of four layers, each with four KV heads and 56 neurons
    "layers.json": {"layers": [{"kv_heads": HEADS, "neurons": NEURONS}] * 3},
    "wider.json": {
        "layers": [{"kv_heads": HEADS, "neurons": NEURONS}] * 4,
        "dense": [DENSE | {"neurons": 64}] * 4,
    },
    "beyond.json": {"layers": [{"kv_heads": [0, 4], "neurons": NEURONS}] * 4},
    "uneven.json": {
        "layers": [{"kv_heads": HEADS, "neurons": NEURONS}] * 4,
        "dense": [DENSE],
    },
    "unordered.json": {"layers": [{"kv_heads": HEADS, "neurons": [2, 1]}] * 4},
    "experts.json": {"layers": [{"kv_heads": HEADS, "experts": [0, 1]}] * 4},
    "texts.json": {"layers": [{"kv_heads": ["0"], "neurons": NEURONS}] * 4},
    "other.json": {"plan": []},
}


def damage(root: Path, model_dir: Path) -> Path:
    """Fill the folder `root` with damaged models, texts, plans and GGUF files.

    Each damaged model is a subfolder, which is a copy of `model_dir` with changes.
    """
    _damage_weights(root, model_dir)
    _damage_configs(root, model_dir)
    for name in ("shard-missing", "shard-truncated", "index-lies", "index-broken"):
        _damage_sharded(root / name, model_dir)
    _damage_gguf(root)

    for name, text in TEXTS.items():
        (root / name).write_text(text)
    (root / "latin1.txt").write_bytes("café".encode("latin1"))
    for name, plan in PLANS.items():
        (root / name).write_text(json.dumps(plan))
    _create_unwritable_paths(root)
    return root


def _damage_weights(root: Path, model_dir: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(model_dir, root / name))

    (copied("no-weights") / WEIGHTS).unlink()
    pickled = copied("pickled")
    (pickled / WEIGHTS).unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    _truncate_to_half(copied("truncated") / WEIGHTS)
    _replace_or_remove_tensor(copied("lacking"), None)
    _replace_or_remove_tensor(copied("misshapen"), torch.zeros(3, 3))
    _replace_or_remove_tensor(copied("nan"), torch.full((56, 32), torch.nan))
    bloom = BloomConfig(hidden_size=8, n_layer=1, n_head=1, vocab_size=96)
    BloomForCausalLM(bloom).save_pretrained(copied("bloom"))


def _damage_configs(root: Path, model_dir: Path) -> None:
    shutil.copytree(model_dir, root / "no-tokenizer")
    for file in (root / "no-tokenizer").glob("*token*"):
        file.unlink()
    for name, file, content in FILES:
        shutil.copytree(model_dir, root / name)
        (root / name / file).write_text(content)
    for name, values in CONFIGS.items():
        shutil.copytree(model_dir, root / name)
        config = json.loads((model_dir / "config.json").read_text()) | values
        (root / name / "config.json").write_text(json.dumps(config))


def _damage_gguf(root: Path) -> None:
    for architecture in ("llama", "mpt"):
        _write_incomplete_gguf(root / f"{architecture}.gguf", architecture)
    _truncate_to_half(Path(shutil.copy(root / "llama.gguf", root / "cut.gguf")))
    (root / "text.gguf").write_text("the cat sat on the mat")


def _create_unwritable_paths(root: Path) -> None:
    (root / "occupied").mkdir()
    (root / "occupied" / "precious").write_text("mine")
    (root / "a-file").write_text("mine")
    (root / "a-loop").symlink_to(root / "a-loop")
    (root / "nowhere").symlink_to(root / "absent")


def _truncate_to_half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _damage_sharded(model: Path, model_dir: Path) -> None:
    """Save a model in several files, and damage the files in the way that the folder name says."""
    shutil.copytree(model_dir, model)
    (model / WEIGHTS).unlink()
    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(model, max_shard_size="40KB")
    index = model / "model.safetensors.index.json"
    shard = sorted(model.glob("*.safetensors"))[2]
    if model.name == "shard-missing":
        shard.unlink()
    elif model.name == "shard-truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif model.name == "index-lies":
        known = json.loads(index.read_text())
        known["weight_map"][TENSOR] = min(model.glob("*.safetensors")).name
        index.write_text(json.dumps(known))
    else:
        index.write_text("{")


def _write_incomplete_gguf(path: Path, architecture: str) -> None:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_tensor("token_embd.weight", torch.zeros(96, 32).numpy())
    writer.add_tensor("blk.0.attn_norm.weight", torch.ones(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _replace_or_remove_tensor(model: Path, tensor: torch.Tensor | None) -> None:
    tensors = load_file(model / WEIGHTS)
    del tensors[TENSOR]
    if tensor is not None:
        tensors[TENSOR] = tensor
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
