"""Windows of an image and its text, made by the processor of a vision-language model.

Legend: T tokens, those that stand for the image among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoProcessor, PreTrainedConfig

from flap.config import one_line, require
from flap.data import Picture, read_pictures
from flap.models import Seen, sees_images

FIELD = "calibration.images"


@dataclass(frozen=True)
class Images:
    """The image windows of calibration. windows: what the model takes, one window each. sha256: of each picture."""

    folder: str
    windows: Sequence[Seen]
    sha256: Sequence[str]

    @property
    def key(self) -> dict[str, Any]:
        """All that the windows depend on besides the model, as part of cache keys."""
        return {"images": {"sha256": list(self.sha256), "tokens": self.tokens}}

    @property
    def tokens(self) -> list[int]:
        """The tokens of each window, those that stand for the image among them."""
        return [window["input_ids"].shape[1] for window in self.windows]


def check_sees_images(folder: str | None, config: PreTrainedConfig) -> None:
    """Check that a model can be calibrated on images, if there is a folder of them.

    Raises:
        ValueError: it has no vision tower, or one whose features enter the layers, too.
    """
    if folder is None:
        return
    require(sees_images(config), FIELD, folder, f"null for {config.model_type}, which has no vision tower")
    require(
        not hasattr(config.vision_config, "deepstack_visual_indexes"),
        FIELD,
        folder,
        f"null for {config.model_type}, whose layers also take image features",
    )


def read_images(
    folder: str | None, config: PreTrainedConfig, path: str, max_length: int | None, trust_remote_code: bool
) -> Images | None:
    """Return the image windows of a folder; None without one. path: of the model, whose processor makes the windows.

    Raises:
        ValueError: the model sees no images or has no processor, the folder holds no pairs, or a window is longer than
            the model's context.
    """
    check_sees_images(folder, config)
    if folder is None:
        return None
    pictures = read_pictures(Path(folder), FIELD)
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        windows = [window(processor, picture) for picture in pictures]
    except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{FIELD}={folder}: the model's processor failed ({one_line(error, 300)})") from error
    longest, name = max(
        (len(one["input_ids"][0]), picture.name) for one, picture in zip(windows, pictures, strict=True)
    )
    if max_length is not None and longest > max_length:
        raise ValueError(f"{FIELD}={folder}: {name} takes {longest} tokens; the model's context ends at {max_length}")
    return Images(folder, windows, [picture.sha256 for picture in pictures])


def window(processor: Any, picture: Picture) -> dict[str, Tensor]:
    """Return what the model takes for a picture: with a chat template, a turn with the image, answered by its text."""
    if getattr(processor, "chat_template", None):
        turns = [("user", {"type": "image"}), ("assistant", {"type": "text", "text": picture.text})]
        messages = [{"role": role, "content": [content]} for role, content in turns]
        text = processor.apply_chat_template(messages, tokenize=False)
    else:
        text = f"{getattr(processor, 'boi_token', processor.image_token)} {picture.text}"
    bos = processor.tokenizer.bos_token
    once = {"add_special_tokens": False} if bos and text.startswith(bos) else {}  # of the template, not another one
    made = processor(text=[text], images=[picture.image], return_tensors="pt", **once)
    return {name: tensor for name, tensor in made.items() if name != "attention_mask"}  # nothing is padded
