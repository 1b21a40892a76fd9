"""`python -m flap.push` in a real process against a hub on this machine."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import flap
from flap.checkpoint.card import MARK, PLACE, write_card
from flap.push import main
from flap.results.card_text import loading
from tests.cases import tiny_model
from tests.helpers.fake_hub import COMMIT, TOKEN, Hub, fake_hub
from tests.helpers.pruned import Saved, logits, prune, save_pruned

CONFIG = {
    "model": {"path": "/home/me/models/tiny", "name": "org/tiny"},
    "calibration": {"dataset": {"C:\\mine\\a.txt": 1, "~/b": 2}, "images": "../photos", "num_samples": 8},
    "eval": [["texts/c.jsonl"], None],
}
PUSHED = {
    "model": {"path": "tiny", "name": "org/tiny"},
    "calibration": {"dataset": {"a.txt": 1, "b": 2}, "images": "photos", "num_samples": 8},
    "eval": [["c.jsonl"], None],
}
STALE = (
    "model-00001-of-00002.safetensors", "model.safetensors.index.json", "onnx/model.onnx", "onnx/model.onnx.data",
    "openvino/openvino_model.xml", "mlx-4bit/model.safetensors", "mlx/config.json", "model-f16.gguf", "vocab.json",
)  # fmt: skip
OTHERS = (
    "notes.md", "lora-of-mine/adapter_model.safetensors", "lora-of-mine/tokenizer.json", "adapter_config.json",
    "tokenizer-of-mine/notes.md", "adapter_model.safetensors", "mine.gguf", "figures/onnx", "dense/config.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Saved:
    model = tiny_model("llama-gqa")
    directory, plan = tmp_path_factory.mktemp("push") / "checkpoint", prune(model, 0.4)
    made = save_pruned(model, tokenizer, directory, plan, config=CONFIG)
    write_card(made.directory, f"{MARK}\n\n{loading(made.directory)}\n\n## Licence\n")
    (made.directory / "model-q8_0.gguf").write_bytes(b"exported later")
    (made.directory / "figures").mkdir()
    (made.directory / "figures" / "loss.svg").write_text("mine")
    (made.directory / ".cache").mkdir()
    (made.directory / ".cache" / "lock").write_text("of another tool")
    return made


@dataclass(frozen=True)
class Ended:
    """How a push ended: what the hub holds, and what was printed."""

    hub: Hub
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error."""
        [line] = self.err.splitlines()
        assert self.code == 1 and not self.out
        return line


def settings(checkpoint: Path, address: str) -> dict[str, str]:
    """An environment with this hub, no token that the machine may have, and uploads through LFS."""
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(checkpoint.parent), "HF_TOKEN": TOKEN}
    return os.environ | hub | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


CASES = {
    "replaced": (TOKEN, "me/smaller"),
    "made": (TOKEN, "smaller", "--private"),
    "public": (TOKEN, "me/public", "--private"),
    "private": (TOKEN, "me/private", "--private"),
    "no token": ("", "me/other"),
    "another token": ("hf_other", "me/other"),
}
ALL_CASES = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from flap.push import main
from flap.results.card_text import loading
ended = {}
for name, (token, *arguments) in json.loads(sys.argv[2]).items():
    os.environ["HF_TOKEN"], code = token, 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main([sys.argv[1], *arguments])
        except SystemExit as end:
            code = end.code
    ended[name] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended(saved: Saved) -> dict[str, Ended]:
    """The cases one after the other, in a process of their own."""
    with fake_hub() as hub:
        hub.repos["me/smaller"] = dict.fromkeys(STALE, b"of an older one") | dict.fromkeys(OTHERS, b"mine")
        hub.repos |= {"me/public": {"notes.md": b"mine"}, "me/private": {}}
        hub.private.add("me/private")
        command = [sys.executable, "-c", ALL_CASES, str(saved.directory), json.dumps(CASES)]
        environment = settings(saved.directory, hub.address)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return {name: Ended(hub, *end) for name, end in json.loads(done.stdout).items()}


def test_what_is_downloaded_again_is_the_checkpoint(saved: Saved, ended: dict[str, Ended], tmp_path: Path) -> None:
    pushed = ended["replaced"]
    assert pushed.code == 0, pushed.err
    assert pushed.out == f"{pushed.hub.address}/me/smaller/commit/{COMMIT}\n" and len(pushed.hub.commits) == 3
    files = dict(pushed.hub.repos["me/smaller"])
    assert [files.pop(name) for name in OTHERS] == [b"mine"] * len(OTHERS)
    card = files["README.md"].decode()
    assert card.startswith(f"{MARK}\n\n## Load it\n") and card.endswith("\n\n## Licence\n") and PLACE not in card
    assert "llama-cli -m me/smaller/model-q8_0.gguf" in card and card.count("## Load it") == 1
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    ours = {path.relative_to(saved.directory) for path in saved.directory.rglob("*")} - {Path(".cache")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == ours - {Path(".cache/lock")}
    assert torch.equal(logits(flap.load(tmp_path)), logits(saved.model))


def test_a_repository_is_made_under_the_name_of_the_user(ended: dict[str, Ended]) -> None:
    made = ended["made"]
    assert made.code == 0, made.err
    assert b"vllm serve somebody/smaller" in made.hub.repos["somebody/smaller"]["README.md"]
    assert made.hub.private == {"somebody/smaller", "me/private"}


def test_private_is_refused_for_a_public_repository(ended: dict[str, Ended]) -> None:
    line = ended["public"].error
    assert line.startswith("error: me/public: is there and public, and --private is for a new one; ")
    assert ended["public"].hub.repos["me/public"] == {"notes.md": b"mine"}
    private = ended["private"]
    assert private.code == 0 and "config.json" in private.hub.repos["me/private"], private.err


def test_nothing_that_is_uploaded_tells_the_folders_of_this_machine(saved: Saved, ended: dict[str, Ended]) -> None:
    files = ended["replaced"].hub.repos["me/smaller"]
    assert json.loads(files["flap.json"])["provenance"] == {"config": PUSHED}
    assert not [name for name, content in files.items() if str(saved.directory.parent).encode() in content]
    assert json.loads((saved.directory / "flap.json").read_text())["provenance"] == {"config": CONFIG}


def test_without_a_token_one_line_says_how_to_get_one(ended: dict[str, Ended]) -> None:
    assert ended["no token"].error == "error: me/other: no token of the hub; run `hf auth login`, or set HF_TOKEN"


def test_a_token_that_is_refused_is_one_line(ended: dict[str, Ended]) -> None:
    line = ended["another token"].error
    assert line.startswith("error: me/other: cannot be uploaded (") and "Invalid user token" in line
    assert "me/other" not in ended["another token"].hub.repos


def test_without_a_network_the_command_prints_one_line(saved: Saved) -> None:
    command = [sys.executable, "-m", "flap.push", str(saved.directory), "me/smaller"]
    environment = settings(saved.directory, "http://127.0.0.1:9")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout
    assert line.startswith("error: me/smaller: cannot be uploaded (ConnectError: ")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("flap.json", "no checkpoint of flap, flap.json is missing"),
        ("config.json", "no checkpoint of flap, config.json is missing"),
        ("model.safetensors", r"no model\.safetensors in this directory"),
    ],
)
def test_what_is_no_whole_checkpoint_is_not_uploaded(
    lost: str, message: str, saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in saved.directory.glob("*.*"):
        if path.is_file() and path.name != lost:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "me/smaller"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}: ") and re.search(message, line)
