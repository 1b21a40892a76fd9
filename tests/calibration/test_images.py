"""Windows with images: what the processor makes of a picture, and that a walk sees what one pass of the model sees."""

import copy
import weakref
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast
from transformers.image_utils import load_image

from flap.calibration import Calibration
from flap.calibration.images import read_images
from flap.data import read_pictures
from flap.models import Resident, Walk, adapt
from flap.storage import WorkFolder
from tests.calibration.test_calibrate import assert_same
from tests.cases import random_model, tiny_model, tokens
from tests.models.families import test_vision as vision

FAMILIES = {
    "llava": vision.TestLlava, "gemma3": vision.TestGemma3Vision, "mistral3": vision.TestMistral3,
    "qwen2_5_vl": vision.TestQwen25VL, "idefics3": vision.TestIdefics3, "smolvlm": vision.TestSmolVLM,
}  # fmt: skip


def processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor of the tiny LLaVA: images of 8 × 8 pixels, of which a patch of 4 × 4 takes a token."""
    images = CLIPImageProcessorPil(size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8})
    word, own = tokenizer.convert_ids_to_tokens(vision.IMAGE), copy.deepcopy(tokenizer)
    own.add_tokens(word, special_tokens=True)
    return LlavaProcessor(images, own, patch_size=4, vision_feature_select_strategy="full", image_token=word)


def draw(folder: Path, count: int = 6) -> Path:
    """Images in plain colours, each with a text of its own length."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (12, 10), (40 * i, 255 - 40 * i, 90)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(" ".join(["the", "a", "of"][: 1 + i % 3] * 3))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_equals_one_pass(family: str) -> None:
    contract = FAMILIES[family]
    placed, seen = Resident(random_model(contract.configs["gqa"])), contract().inputs()
    calibration = Calibration(placed, [tokens()], 8, [], images=[seen])
    expected = calibration.observe()
    for (_, found), one in zip(calibration.in_sequence(covariance=False), expected, strict=True):
        assert_same(found, one)
    blind = Calibration(placed, [tokens()], 8, [], images=[seen["input_ids"]]).observe()
    assert not torch.allclose(blind[1].blocks.mlp[0].mean_I, expected[1].blocks.mlp[0].mean_I, atol=1e-3)
    assert blind[1].blocks.mlp[0].num_tokens == expected[1].blocks.mlp[0].num_tokens


def test_a_window_has_the_bos_of_its_chat_template_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    made = processor(tokenizer)
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    said = "{% if part.type == 'image' %}" + made.image_token + "{% else %} {{ part.text }}{% endif %}"
    made.chat_template = (
        f"<s>{{% for turn in messages %}}{{% for part in turn.content %}}{said}{{% endfor %}}{{% endfor %}}"
    )
    made.save_pretrained(tmp_path / "model")
    images = read_images(
        str(draw(tmp_path / "pairs")), vision.TestLlava.configs["gqa"], str(tmp_path / "model"), 128, False
    )
    assert images is not None
    assert all(one["input_ids"][0, 0] == 1 and (one["input_ids"] == 1).sum() == 1 for one in images.windows)


def test_the_device_holds_the_hidden_states_of_few_images_at_a_time(tmp_path: Path) -> None:
    placed, seen = Resident(random_model(vision.TestLlava.configs["gqa"])), vision.TestLlava().inputs()
    alive, earlier = [], []

    def entered(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        alive.append(sum(one() is not None for one in earlier))
        earlier.append(weakref.ref(args[0]))

    placed.layers[0].register_forward_pre_hook(entered)
    Walk(placed, "walk", WorkFolder(tmp_path)).enter("images", [seen] * 8)
    assert len(alive) == 8 and max(alive) <= 2  # and each goes through the vision tower once


def test_a_picture_becomes_the_window_of_its_processor(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    processor(tokenizer).save_pretrained(tmp_path / "model")
    config = vision.TestLlava.configs["gqa"]
    images = read_images(str(draw(tmp_path / "pairs")), config, str(tmp_path / "model"), 128, False)
    assert images is not None and len(images.windows) == 6
    first: dict[str, Tensor] = dict(images.windows[0])
    text = tokenizer("the the the", add_special_tokens=False).input_ids
    assert first["input_ids"][0].tolist()[-len(text) :] == text
    assert (first["input_ids"] == vision.IMAGE).sum() == vision.PATCHES and first["pixel_values"].shape == (1, 3, 8, 8)
    changed = draw(tmp_path / "pairs")
    (changed / "0.txt").write_text("of of of")
    again = read_images(str(changed), config, str(tmp_path / "model"), 128, False)
    assert again is not None and again.key != images.key


def test_bad_input_is_one_clear_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    llava, llama = vision.TestLlava.configs["gqa"], tiny_model("llama-gqa").config
    model, pairs = tmp_path / "model", draw(tmp_path / "pairs")
    processor(tokenizer).save_pretrained(model)
    (tmp_path / "empty").mkdir()
    lonely, broken = draw(tmp_path / "lonely", 2), draw(tmp_path / "broken", 2)
    (lonely / "1.txt").unlink()
    (broken / "0.png").write_text("no image")
    deep = vision.TestQwen3VL.configs["gqa"]
    for folder, config, path, length, message in (
        (pairs, llama, model, 128, "expected null for llama, which has no vision tower"),
        (pairs, deep, model, 128, "expected null for qwen3_vl, whose layers also take image features"),
        (tmp_path / "empty", llava, model, 128, r"it holds no image; expected a folder of images \(.png"),
        (tmp_path / "absent", llava, model, 128, "it holds no image"),
        (lonely, llava, model, 128, "1.png has no 1.txt beside it; expected the text of the image"),
        (broken, llava, model, 128, "0.png or its text cannot be read"),
        (pairs, llava, tmp_path / "empty", 128, "the model's processor failed"),
        (pairs, llava, model, 8, "takes 13 tokens; the model's context ends at 8"),
    ):
        with pytest.raises(ValueError, match=f"calibration.images={folder}: ?.*{message}") as error:
            read_images(str(folder), config, str(path), length, False)
        assert "\n" not in str(error.value)


def test_pictures_are_read_by_name(tmp_path: Path) -> None:
    pictures = read_pictures(draw(tmp_path), "calibration.images")
    assert [picture.name for picture in pictures] == [f"{i}.png" for i in range(6)]
    assert pictures[1].image.getpixel((0, 0)) == (40, 215, 90) and pictures[1].text == "the a the a the a"
    assert len({picture.sha256 for picture in pictures}) == 6


def test_a_photograph_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # held upright
    Image.linear_gradient("L").resize((12, 10)).save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("the cat")
    [picture], loaded = read_pictures(tmp_path, "calibration.images"), load_image(str(tmp_path / "a.png"))
    assert picture.image.size == loaded.size == (10, 12) and picture.image.tobytes() == loaded.tobytes()


def test_the_device_takes_pixels_in_the_type_of_the_model() -> None:
    model = random_model(vision.TestLlava.configs["gqa"]).to(torch.bfloat16)
    Calibration(Resident(model), [tokens(0)], 1, [], images=[vision.TestLlava().inputs()]).observe()
    assert adapt(model).model.dtype == torch.bfloat16
