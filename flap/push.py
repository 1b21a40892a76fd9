"""The command `python -m flap.push <checkpoint> <repo>`: upload a checkpoint to a model hub, in one commit."""

import argparse
import json
import sys
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi


def main(arguments: list[str] | None = None) -> None:
    """Upload a checkpoint and print the commit's address; on an error, print one line and exit with code 1."""
    parser = argparse.ArgumentParser(prog="python -m flap.push", description="Upload a checkpoint to a model hub.")
    parser.add_argument("checkpoint", type=Path, help="the directory that a run wrote")
    parser.add_argument("repo", help="its name there, as you/smaller; it is made if it is not there")
    parser.add_argument(
        "--private", action="store_true", help="make it visible to you alone; refused if it is there and public"
    )
    options = parser.parse_args(arguments)
    try:
        print(push(options.checkpoint, options.repo, options.private))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def push(checkpoint: Path, repo: str, private: bool = False) -> str:
    """Upload all files of a checkpoint in one commit and return its address. Those of an older one there are deleted.

    Raises:
        ValueError: there is no whole checkpoint of this program, no token, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    check_checkpoint(checkpoint)
    if get_token() is None:
        raise ValueError(f"{repo}: no token of the hub; run `hf auth login`, or set HF_TOKEN")
    hub = HfApi(library_name="flap-pruning")
    try:
        repo = hub.create_repo(repo, private=private or None, exist_ok=True).repo_id  # with the user's name before it
        if not private or hub.repo_info(repo).private:
            changes = operations(hub, checkpoint, repo)
            return str(hub.create_commit(repo, changes, commit_message="Upload a checkpoint pruned by flap").commit_url)
    except Exception as error:  # network, hub and uploads raise errors of different types
        raise ValueError(f"{repo}: cannot be uploaded ({type(error).__name__}: {shorten(str(error), 300)})") from error
    raise ValueError(
        f"{repo}: is there and public, and --private is for a new one; make it private there, or name another"
    )


def check_checkpoint(checkpoint: Path) -> None:
    """Check that a directory holds a whole checkpoint of this program.

    Raises:
        ValueError: it does not; says what is missing.
    """
    from flap.checkpoint.save import LABEL
    from flap.models.weights import check_weights

    if missing := [name for name in (LABEL, "config.json") if not (checkpoint / name).is_file()]:
        raise ValueError(f"{checkpoint}: no checkpoint of flap, {missing[0]} is missing")
    try:
        check_weights(checkpoint)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error


def operations(hub: "HfApi", checkpoint: Path, repo: str) -> "list[CommitOperationAdd | CommitOperationDelete]":
    """Return the uploads, and the deletions of what an older checkpoint has left, as a shard of its weights.

    A card of ours gets the name of the repository and of each export. `flap.json` gets no folders of this machine,
    which the one that stays here needs: a run is continued, and a GGUF exported, with what lies there.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    from flap.checkpoint.card import CARD, PLACE, is_ours, without_folders
    from flap.checkpoint.save import LABEL, is_own
    from flap.results.card_text import renewed

    paths = {path.relative_to(checkpoint): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    files: dict[str, Path | bytes] = {
        name.as_posix(): path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)
    }  # hidden ones belong to other tools
    files[LABEL] = json.dumps(without_folders(json.loads((checkpoint / LABEL).read_text()))).encode() + b"\n"
    if is_ours(checkpoint / CARD):
        card = (checkpoint / CARD).read_text(encoding="utf-8")
        files[CARD] = renewed(card, checkpoint).replace(PLACE, repo).encode()
    stale = [name for name in hub.list_repo_files(repo) if name not in files and is_own(name)]
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]


if __name__ == "__main__":
    main()
