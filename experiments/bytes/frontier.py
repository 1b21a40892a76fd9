r"""Measure bits per byte and the file size of checkpoints in several types of GGUF.

    python experiments/bytes/frontier.py results.jsonl --dense CHECKPOINT \
        --texts wikitext-2-raw-test.txt hellaswag-passages --forms trimmed=CHECKPOINT ...

CHECKPOINT is the folder of a checkpoint. `--dense` names the dense model, and `--forms` names the
other checkpoints to measure, each as NAME=CHECKPOINT. The script does not repeat measurements that
are already in results.jsonl. Each checkpoint folder needs the checkpoint as a GGUF file in f16,
`model-f16.gguf`. If the layers of a model differ in width, write this file with `python -m flap
export`, and otherwise with llama.cpp's `convert_hf_to_gguf.py`.

To measure a type, the script rounds every matrix, including the embedding, to the values that a
GGUF file of this type would contain. For most types, the package `gguf` does the rounding. For
K-quants, llama.cpp's own quantiser chooses a type for each matrix and does the rounding; `--llama`
names the folder of llama.cpp's libraries. The dense model's tokenizer cuts the windows, so that all
models read the same text.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import gguf
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import flap
from flap.data import Batch, evaluation_windows, read_text, retokenised, text_bytes, uses_bos
from flap.evaluation.perplexity import window_losses
from flap.models import Resident

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from llama_quantize import quantise

TYPES = {"f16": None, "q8_0": "Q8_0", "q5_1": "Q5_1", "q4_0": "Q4_0"}
K_QUANTS = {"q6_k": "Q6_K", "q4_k_m": "Q4_K_M"}
# The two constants below are counted in tokens of the dense model's tokenizer.
SEQ_LEN = 256  # number of tokens in a window
TOKENS = 16_384  # number of tokens in all windows of a text


@torch.no_grad()
def quantised(weight_OI: Tensor, kind: str) -> int:
    """Round a matrix in place to a GGUF type. Return how many bytes the type saves against f16.

    Legend: O: output channels, I: input channels.

    kind: a key of TYPES. If the length of a row is not a multiple of 32, zeros are added to the row
        before it is rounded. The bytes of these zeros are counted, too.
    """
    if TYPES[kind] is None:
        return 0
    quant = gguf.GGMLQuantizationType[TYPES[kind]]
    inputs = weight_OI.shape[1]
    padded = nn.functional.pad(weight_OI.float(), (0, -inputs % 32))
    packed = gguf.quants.quantize(padded.numpy(), quant)
    weight_OI.copy_(torch.from_numpy(gguf.quants.dequantize(packed, quant))[:, :inputs])
    return 2 * weight_OI.numel() - packed.nbytes


@torch.no_grad()
def k_quantised(model: nn.Module, checkpoint: Path, kind: str, libraries: Path) -> int:
    """Round the matrices in place as llama.cpp's quantiser does, and return the GGUF file's size.

    kind: a key of K_QUANTS. llama.cpp uses a K-quant only for matrices whose row length is a
        multiple of 256. In SmolLM2-135M, the only model of this study with K-quants, only
        `ffn_down` is such a matrix. For all other matrices, llama.cpp uses types with blocks of 32
        weights.
    """
    file = checkpoint / f"model-{kind}.gguf"
    if not file.is_file():
        quantise(libraries, checkpoint / "model-f16.gguf", file, K_QUANTS[kind])
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 100)
    for name, weight in (
        (name, weight) for name, weight in model.named_parameters() if weight.dim() == 2
    ):
        tensor = found[f"{names.get_name(name.removesuffix('.weight'))}.weight"]
        packed = tensor.data
        quant = tensor.tensor_type
        # Quantise the weight again to the type of the tensor in the GGUF file. The values of this
        # tensor cannot be used, because the GGUF file has the rows of attention matrices in another
        # order than the model.
        if quant.name.startswith("Q") and not quant.name.endswith("_K"):
            rows = nn.functional.pad(weight.float(), (0, -weight.shape[1] % 32)).numpy()
            packed = gguf.quants.quantize(rows, quant)
        weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, quant))[:, : weight.shape[1]])
    return file.stat().st_size


def windows(
    name: str, dense: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase
) -> tuple[Batch, Tensor]:
    """Return the windows of a text, and for each window, the number of bytes of its scored tokens.

    The first token of a window is not scored.

    dense: the dense model's tokenizer, which cuts the windows.
    own: the tokenizer of the measured model. If the vocabularies of the two tokenizers differ, the
        same text is tokenised again with `own`.
    """
    bos = uses_bos(dense, "auto", "bos")
    text = read_text(name, "evaluation", "text")
    tokens_NT = evaluation_windows(text, dense, SEQ_LEN, TOKENS, bos, "text")
    cut = Batch.of(tokens_NT)
    if own.get_vocab() != dense.get_vocab():
        cut = retokenised(tokens_NT, dense, own, bos)
    scored = cut[:, 1:]
    bytes_NT = text_bytes(scored.tokens_NT, own)
    return cut, torch.where(scored.mask_NT, bytes_NT, 0).sum(dim=1)


def size_of_f16(checkpoint: Path) -> int:
    """Return the size of a checkpoint's GGUF file in f16, in bytes."""
    return (checkpoint / "model-f16.gguf").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--forms", nargs="*", default=[], help="NAME=CHECKPOINT")
    parser.add_argument("--texts", nargs="+", required=True)
    parser.add_argument("--types", nargs="+", choices=[*TYPES, *K_QUANTS], default=list(TYPES))
    parser.add_argument(
        "--llama", type=Path, help="the folder with llama.cpp's libraries, for K-quants"
    )
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.is_file() else []
    done = {
        tuple(json.loads(line)[key] for key in ("model", "form", "type", "text")) for line in lines
    }
    dense = AutoTokenizer.from_pretrained(options.dense)
    forms = {"dense": options.dense} | {
        name: Path(path) for name, path in (one.split("=") for one in options.forms)
    }
    for kind in options.types:
        for form, checkpoint in forms.items():
            cells = [(options.dense.name, form, kind, Path(text).name) for text in options.texts]
            if all(cell in done for cell in cells):
                continue
            model = flap.load(checkpoint, dtype=torch.bfloat16)
            own = AutoTokenizer.from_pretrained(checkpoint)
            size = size_of_f16(checkpoint)
            if kind in K_QUANTS:
                size = k_quantised(model, checkpoint, kind, options.llama)
            else:
                size -= sum(quantised(one, kind) for one in model.parameters() if one.dim() == 2)
            for cell, text in zip(cells, options.texts, strict=True):
                cut, bytes_N = windows(text, dense, own)
                tokens_N = cut.mask_NT[:, 1:].sum(dim=1)
                bits_N = window_losses(Resident(model), cut, 8) * tokens_N / math.log(2)
                value = (bits_N.sum() / bytes_N.sum()).item()
                found = dict(zip(("model", "form", "type", "text"), cell, strict=True)) | {
                    "bytes": size,
                    "bits": value,
                }
                found |= {"bits_N": bits_N.tolist(), "bytes_N": bytes_N.tolist()}
                with options.results.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(*cell, f"{size / 1e6:.1f} MB", f"{value:.4f}", flush=True)


if __name__ == "__main__":
    main()
