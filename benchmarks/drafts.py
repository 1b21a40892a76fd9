"""A pruned model as the draft of its parent: `python benchmarks/drafts.py ENGINE PARENT DRAFT [--drafts 4]`.

ENGINE: llama.cpp (needs model-f16.gguf in both checkpoints), vllm, or transformers, which says what is promised: the
share of the parent's own greedy tokens that the draft agrees on, a, and (a + ... + a^k) / k, the share of k drafts a
step that is then accepted. The others write the same prompts greedily without and with the draft. Printed as JSON: in
how many prompts both texts are equal, the accepted share, and tokens a second. The interpreter needs the engine alone.
A draft must have the vocabulary of its parent: where it has not, llama.cpp would write without it and say nothing.
"""

import argparse
import json
import os
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village by the sea,", "To make good tea, you first",
    "The difference between a virus and a bacterium is that", "Photosynthesis is the process by which",
    "In 1969, the first people", "A list of prime numbers begins with", "The most important thing about a good diet is",
)  # fmt: skip
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
Written = tuple[list[str], int, int]  # the texts, how many tokens were drafted, and how many of them accepted


def promised(parent: Path, draft: Path, drafts: int, new_tokens: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parent)
    one, other = (
        AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True, dtype="auto") for place in (parent, draft)
    )
    agreed = []
    with torch.no_grad():
        for prompt in PROMPTS:
            tokens = tokenizer(prompt, return_tensors="pt").input_ids
            mask = torch.ones_like(tokens)
            text = one.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)
            guesses = other(input_ids=text).logits[0, tokens.shape[1] - 1 : -1].argmax(-1)
            agreed.append((guesses == text[0, tokens.shape[1] :]).float().mean().item())
    mean, error = statistics.mean(agreed), statistics.stdev(agreed) / len(agreed) ** 0.5
    share = sum(mean**i for i in range(1, drafts + 1)) / drafts
    return {"agreement": mean, "stderr": error, "promised_share": share}


def in_llama_cpp(parent: Path, draft: Path | None, drafts: int) -> Callable[[int], Written]:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel, options.n_gpu_layers, options.port = (
        str(parent / "model-f16.gguf"), 2048, 1, 0, 0,
    )  # fmt: skip
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = THREADS
    if draft is not None:
        speculative = options.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path, speculative.draft.n_max = str(draft / "model-f16.gguf"), drafts
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(options)

    def write(new_tokens: int) -> Written:
        texts, drafted, accepted = [], 0, 0
        for prompt in PROMPTS:
            asked = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0, "cache_prompt": False}
            address, header = f"{server.listening_address}/completion", {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(address, json.dumps(asked).encode(), header)) as answer:
                found = json.load(answer)
            texts.append(found["content"])
            drafted += found["timings"].get("draft_n", 0)
            accepted += found["timings"].get("draft_n_accepted", 0)
        return texts, drafted, accepted

    return write


def in_vllm(parent: Path, draft: Path | None, drafts: int) -> Callable[[int], Written]:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": drafts} if draft else None
    engine = LLM(
        str(parent), trust_remote_code=True, enforce_eager=True, enable_prefix_caching=False, max_model_len=2048,
        max_num_seqs=1, speculative_config=speculative, disable_log_stats=False,
    )  # fmt: skip

    def count(name: str) -> int:
        return int(sum(one.value for one in engine.get_metrics() if one.name == f"vllm:spec_decode_num_{name}"))

    def write(new_tokens: int) -> Written:
        before = count("draft_tokens"), count("accepted_tokens")
        found = engine.generate(list(PROMPTS), SamplingParams(temperature=0, max_tokens=new_tokens), use_tqdm=False)
        texts = [one.outputs[0].text for one in found]
        return texts, count("draft_tokens") - before[0], count("accepted_tokens") - before[1]

    return write


ENGINES = {"llama.cpp": in_llama_cpp, "vllm": in_vllm}


def measured(engine: str, parent: Path, draft: Path, drafts: int, new_tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    texts = []
    for name, helper in (("alone", None), ("with_draft", draft)):
        write = ENGINES[engine](parent, helper, drafts)
        write(2)  # sets things up
        start = time.process_time() if THREADS == 1 else time.perf_counter()
        written, drafted, accepted = write(new_tokens)
        seconds = (time.process_time() if THREADS == 1 else time.perf_counter()) - start
        texts.append(written)
        found[f"{name}_tokens_per_second"] = new_tokens * len(PROMPTS) / seconds
        if drafted:
            found |= {"drafted": drafted, "accepted": accepted, "accepted_share": accepted / drafted}
    return found | {"equal_texts": sum(one == other for one, other in zip(*texts, strict=True)), "of": len(PROMPTS)}


def check_vocabulary(parent: Path, draft: Path) -> None:
    one, other = (json.loads((place / "tokenizer.json").read_text())["model"]["vocab"] for place in (parent, draft))
    if one != other:
        raise ValueError(
            f"{draft}: its vocabulary of {len(other):,} tokens is not the one of {parent}, which has {len(one):,}; a "
            "draft needs that of its parent, so prune without vocabulary=trim"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["transformers", *ENGINES])
    parser.add_argument("parent", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--drafts", type=int, default=4, help="tokens a step")
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    given = options.parent, options.draft, options.drafts, options.new_tokens
    try:
        check_vocabulary(options.parent, options.draft)
        found = promised(*given) if options.engine == "transformers" else measured(options.engine, *given)
    except Exception as error:  # each engine has errors of its own, and an absent one is one, too
        print("error:", " ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr, flush=True)
        os._exit(1)
    print("\n" + json.dumps({"engine": options.engine, **found}), flush=True)
    os._exit(0)  # some engines do not let a process end


if __name__ == "__main__":
    main()
