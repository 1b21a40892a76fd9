"""What the card of a model says and the card of a smaller one repeats: the model it comes from, licence, languages."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download

REPEATED = ("base_model", "license", "license_name", "license_link", "language")
# Of packaged models: what the keys `general.license` and `general.languages` of the GGUF say; reading it takes seconds.
PACKAGED = {"HuggingFaceTB/SmolLM2-135M-Instruct": {"license": "apache-2.0", "language": ["en"]}}


def base_facts(path: str) -> dict[str, Any]:
    """Return `base_model`, licence and languages by the names of the hub's metadata; what is unknown is missing.

    path: a hub id, or a directory; of a directory the base is what its README.md names. Empty: nothing is known.
    """
    if not path:
        return {}
    local = Path(path).is_dir()
    named = {} if local else {"base_model": path}
    if path in PACKAGED:
        return named | PACKAGED[path]
    try:
        card = Path(path) / "README.md" if local else Path(hf_hub_download(path, "README.md"))
        said = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except Exception:  # no card, no network, or no YAML: each library has an error of its own for that
        return named
    return {name: said[name] for name in REPEATED if name in said} | named
