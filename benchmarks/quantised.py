"""Measure the perplexity and the size of quantised dense and pruned models.

    python benchmarks/quantised.py --folder DIR

The models are SmolLM2-135M-Instruct without pruning ("dense"), and the same model pruned at a ratio
of 0.2 with the structure AL-AM. The model is pruned with `round_to=32`, so that the rows of its
matrices can be divided into blocks of 32 weights, which some of the quantised forms below need. The
table has one row for each quantised form of each of these two models. A row shows the size of the
weights, and the perplexity on held-out BoolQ passages (passages that are not used for calibration)
in windows of 128 tokens. llama.cpp measures the GGUF files, one token at a time. transformers
measures all other forms on the CPU.

The forms are

- float32: the model is not quantised; its size is still counted as 16 bits per weight;
- GGUF f16 and q8_0, as `python -m flap export` writes them;
- Q8_0, Q5_1 (6.0 bits per weight), Q6_K and Q4_K_M, which llama.cpp's own quantiser makes from the
  f16 file. To use this quantiser, `--llama` must name the folder of llama.cpp's libraries
  (libllama, libggml), because the package xllamacpp does not contain the quantiser; without
  `--llama`, these four forms are left out;
- int8, int6 and int4 weights by torchao;
- W8A8 (8-bit weights and activations) by llm-compressor, whose version of transformers differs from
  flap's. Therefore, first run the command with flap, which writes the checkpoints to DIR, and then
  run the same command in a separate environment with llm-compressor, where the script quantises and
  measures these checkpoints.

If a package that a form needs is missing, the rows of this form say so.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llama_quantize import FTYPES, quantise
from llama_server import complete, serve
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

SEQ_LEN = 128
TEXT = "boolq-passages"
PRUNED = {"dense": ["ratio=0"], "pruned": ["ratio=0.2", "round_to=32"]}
Measured = tuple[int, float]  # the bytes of a model's weights, and its perplexity


def checkpoint(folder: Path, name: str) -> Path:
    """Return the folder of a checkpoint with its GGUF files in f16 and q8_0.

    name: `dense` or `pruned`. If the checkpoint does not exist in `folder`, run flap to write it
        with the two GGUF files.
    """
    target = folder / name
    if not target.is_dir():
        options = ["eval=none", f"checkpoint.dir={target}", f"hydra.run.dir={target}-run"]
        subprocess.run(
            [sys.executable, "-m", "flap", *PRUNED[name], *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for kind in ("f16", "q8_0"):
            command = [
                sys.executable,
                "-m",
                "flap.checkpoint.export",
                str(target),
                "gguf",
                "--type",
                kind,
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def read_windows(directory: Path, num_windows: int) -> Tensor:
    """Return the first `num_windows` windows of the held-out BoolQ passages, one in each row."""
    from flap.data import evaluation_windows, read_text

    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = read_text(TEXT, "evaluation", "text")
    return evaluation_windows(text, tokenizer, SEQ_LEN, num_windows * SEQ_LEN, False, "text")


def in_transformers(directory: Path, tokens_NT: Tensor, bits: int = 16, **options: Any) -> Measured:
    """Measure the bytes and the perplexity of a model in transformers, in float32.

    bits: each integer weight counts as this number of bits, even if torch stores it in a larger
        type.
    """
    model = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, dtype=torch.float32, **options
    )
    return sum(stored(parameter, bits) for parameter in model.parameters()), perplexity(
        model, tokens_NT
    )


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens_NT: Tensor) -> float:
    nats = 0.0
    for tokens_1T in tokens_NT.split(1):
        logits_TV = model(input_ids=tokens_1T).logits[0, :-1].float()
        nats += torch.nn.functional.cross_entropy(
            logits_TV, tokens_1T[0, 1:], reduction="sum"
        ).item()
    return math.exp(nats / tokens_NT[:, 1:].numel())


def stored(tensor: Tensor, bits: int) -> int:
    """Return the number of bytes that a tensor needs in a file.

    An integer counts as `bits` bits, and any other number as 16 bits.
    """
    # torchao stores a quantised weight as several tensors (integers, scales and zero points), and
    # the bytes of all of them count.
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name), bits) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * (16 if tensor.is_floating_point() else bits) // 8


def torchao(bits: int) -> Callable[[Path, Tensor], Measured]:
    """Return a function that quantises weights to integers with torchao, and measures the model.

    With 8 bits, each row of a matrix has a scale. With fewer bits, each group of 32 columns in a
    row has a scale.
    """

    def measure(directory: Path, tokens_NT: Tensor) -> Measured:
        from torchao.quantization import IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerAxis, PerGroup
        from transformers import TorchAoConfig

        granularity = PerAxis(0) if bits == 8 else PerGroup(32)
        config = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity
        )
        return in_transformers(
            directory, tokens_NT, bits, quantization_config=TorchAoConfig(config)
        )

    return measure


def w8a8(directory: Path, tokens_NT: Tensor) -> Measured:
    """Measure W8A8: 8-bit weights (a scale per row) and 8-bit activations (a scale per token)."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, dtype=torch.float32
    )
    oneshot(
        model=model,
        recipe=QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    )
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if hasattr(module, "weight_scale")
    }
    sizes = {
        name: parameter.numel() * (1 if name in linear else 2)
        for name, parameter in model.named_parameters()
    }
    return sum(sizes.values()), perplexity(model, tokens_NT)


def in_llama_cpp(kind: str, libraries: Path | None = None) -> Callable[[Path, Tensor], Measured]:
    """Return a function that measures a GGUF file of the type `kind` in llama.cpp.

    libraries: the folder of llama.cpp's libraries. If it is given and the GGUF file does not exist,
        llama.cpp's quantiser makes the file from the f16 file.
    """

    def measure(directory: Path, tokens_NT: Tensor) -> Measured:
        gguf = directory / f"model-{kind}.gguf"
        if libraries is not None and not gguf.is_file():
            quantise(libraries, directory / "model-f16.gguf", gguf, kind)
        return gguf.stat().st_size, perplexity_in_llama_cpp(gguf, tokens_NT)

    return measure


def perplexity_in_llama_cpp(gguf: Path, tokens_NT: Tensor) -> float:
    """Return the perplexity of the model in a GGUF file.

    For each token of the text, the function sends the tokens before it to llama.cpp's server as a
    prompt, and forces the server to generate this token. The server reports the log-probability
    that the token would have had without being forced.
    """
    server = serve(gguf, context=512)
    logprobs = [
        logprob
        for tokens in tokens_NT.tolist()
        for i in range(1, len(tokens))
        if (logprob := _forced(server, tokens[:i], tokens[i])) is not None
    ]
    if len(logprobs) < tokens_NT[:, 1:].numel():
        print(
            f"{tokens_NT[:, 1:].numel() - len(logprobs)} tokens, parts of a character, "
            "are not counted"
        )
    return math.exp(-sum(logprobs) / len(logprobs))


def _forced(server: Any, prompt: list[int], token: int) -> float | None:
    """Return the log-probability of a token after a prompt.

    The result is None if the token is only a part of a character, because llama.cpp does not report
    such a token.
    """
    asked = {
        "prompt": prompt,
        "n_predict": 1,
        "n_probs": 1,
        "logit_bias": [[token, 1000.0]],
        "cache_prompt": True,
    }
    told = complete(server, asked).get("completion_probabilities")
    return float(told[0]["logprob"]) if told and told[0]["id"] == token else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where checkpoints and files are kept"
    )
    parser.add_argument(
        "--windows", type=int, default=16, help=f"number of windows of {SEQ_LEN} tokens"
    )
    parser.add_argument("--llama", type=Path, help="the folder with llama.cpp's libraries")
    parser.add_argument("--forms", nargs="+", help="the forms to measure; default: all")
    parser.add_argument("--models", nargs="+", choices=PRUNED, default=list(PRUNED))
    options = parser.parse_args()

    forms: dict[str, Callable[[Path, Tensor], Measured]] = {
        "float32": in_transformers,
        **{f"torchao int{bits}": torchao(bits) for bits in (8, 6, 4)},
        "llm-compressor W8A8": w8a8,
        **{f"GGUF {kind}": in_llama_cpp(kind) for kind in ("f16", "q8_0")},
        **{
            f"llama.cpp {kind}": in_llama_cpp(kind, options.llama)
            for kind in FTYPES
            if options.llama
        },
    }
    if unknown := set(options.forms or ()) - forms.keys():
        parser.error(f"--forms: {', '.join(unknown)} is none of {', '.join(forms)}")
    print(f"| form | model | MB | perplexity@{SEQ_LEN} |\n|---|---|---|---|", flush=True)
    for form in options.forms or forms:
        for model in options.models:
            directory = checkpoint(options.folder, model)
            try:
                num_bytes, value = forms[form](directory, read_windows(directory, options.windows))
            except ImportError as error:
                print(f"| {form} | {model} | absent: {error} | |", flush=True)
                continue
            print(f"| {form} | {model} | {num_bytes / 1e6:.1f} | {value:.2f} |", flush=True)


if __name__ == "__main__":
    main()
