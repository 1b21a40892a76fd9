"""Run mlx-lm on the CPU in a separate process.

A separate process is needed because importing mlx-lm lowers the limit of open files. The separate
process runs this module as a script, which reads the arguments for `answer` from the standard
input, and writes the results to the file that is named by the argument of the script.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def mlx_lm(jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Call `answer` in a separate process, once for each dict of arguments.

    jobs: a dict from names to dicts of arguments. The result has the same names as keys, and the
        results of `answer` as values.
    """
    with tempfile.NamedTemporaryFile("r") as answers:
        done = subprocess.run(
            [sys.executable, "-I", __file__, answers.name],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.load(answers)


def answer(folder: str, tokens: list[int], new_tokens: int = 0) -> dict[str, Any]:
    """Return the log-probabilities after every token, and the greedy continuation of the tokens.

    The log-probabilities are computed twice: with all tokens in one step, and token by token with a
    cache. In the continuation, tokens that end a text are never chosen.
    """
    import mlx.core as mx
    from mlx_lm import load, stream_generate
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.sample_utils import make_logits_processors

    model, tokenizer = load(folder, trust_remote_code=True)
    no_end = make_logits_processors(dict.fromkeys(tokenizer.eos_token_ids, -1e9))
    options = {"max_tokens": new_tokens, "logits_processors": no_end}
    prompt = mx.array([tokens])
    cache = make_prompt_cache(model)
    stepwise = [model(prompt[:, i : i + 1], cache=cache) for i in range(len(tokens))]
    steps = list(stream_generate(model, tokenizer, tokens, **options)) if new_tokens else []
    return {
        "logprobs": [
            _log_softmax(logits)[0].tolist()
            for logits in (model(prompt), mx.concatenate(stepwise, axis=1))
        ],
        "greedy": [step.token for step in steps],
        "text": "".join(step.text for step in steps),
    }


def _log_softmax(logits: Any) -> Any:
    import mlx.core as mx

    return logits.astype(mx.float32) - mx.logsumexp(
        logits.astype(mx.float32), axis=-1, keepdims=True
    )


if __name__ == "__main__":
    found = {name: answer(**job) for name, job in json.load(sys.stdin).items()}
    assert "flap" not in sys.modules
    Path(sys.argv[1]).write_text(json.dumps(found))
