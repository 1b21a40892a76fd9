"""Vision-language models pass all tests of a family, and further tests with images and sound.

In a vision-language model, flap prunes only the language model.
"""

# ruff: noqa: RUF012 - FamilyContract annotates attributes of its subclasses as ClassVar

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4TextConfig,
    Gemma4VisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from flap.checkpoint.load import load
from flap.method.allocation import ULMM
from flap.method.compression import mask_layer
from flap.models import adapt
from tests.cases import VOCAB, random_model, tokens
from tests.helpers.pruned import Saved, prune, save_pruned
from tests.models.families.contract import FamilyContract
from tests.models.families.test_mixtures import TestGemma4 as Gemma4
from tests.models.families.tiny import GQA, MHA, SOME_LAYERS_SLIDE, TIED, UNTIED

IMAGE = VOCAB - 1  # the placeholder token for image patches
PATCHES = 4  # placeholder tokens per image
IMAGES = 2
FIRST = 3
AUDIO = VOCAB - 2  # the placeholder token for audio
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
# With 4 heads, each head has 8 channels. In these models, the channels of a head are divided among
# three kinds of rotary angles.
HEADS_OF_8 = {"num_attention_heads": 4}
MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
}


class SeesImages:
    """Additional tests for vision-language models."""

    # the shape of the tensor with the pixels of all images
    image_shape: ClassVar[tuple[int, ...]] = (IMAGES, 3, 8, 8)
    # further inputs that the model needs for images
    beside: ClassVar[dict[str, Any]] = {}
    # the name of an input that marks the tokens of images; empty if the model has no such input
    token_types: ClassVar[str] = ""

    def inputs(self) -> dict[str, Tensor]:
        """Return two prompts, each with one image."""
        words = tokens(IMAGES, 12, seed=5).clamp(max=IMAGE - 1)
        words[:, FIRST : FIRST + PATCHES] = IMAGE
        pixels = torch.randn(self.image_shape, generator=torch.Generator().manual_seed(6))
        types = {self.token_types: (words == IMAGE).long()} if self.token_types else {}
        beside = {name: torch.tensor(values) for name, values in self.beside.items()}
        return {"input_ids": words, "pixel_values": pixels} | beside | types

    @torch.no_grad()
    def seen(self, model: PreTrainedModel, **changes: Tensor) -> Tensor:
        """Return the logits for the prompts with images."""
        return model(**self.inputs() | changes, use_cache=False).logits

    def said(self, model: PreTrainedModel) -> Tensor:
        """Return the tokens of the prompts and of the text that the model generates after them."""
        return model.generate(**self.inputs(), max_new_tokens=6, min_new_tokens=6, do_sample=False)

    def test_an_image_is_seen_as_the_masked_model_sees_it(
        self, config: PreTrainedConfig, saved: Saved
    ) -> None:
        masked = random_model(config)
        dense = random_model(config)
        prune(masked, 0.4, mask_layer)
        reloaded = AutoModelForImageTextToText.from_pretrained(saved.directory)
        torch.testing.assert_close(self.seen(reloaded), self.seen(masked), atol=1e-4, rtol=0)
        assert torch.equal(self.said(reloaded), self.said(masked))
        assert torch.equal(self.said(reloaded), self.said(saved.model))
        assert not torch.allclose(self.seen(reloaded), self.seen(dense), atol=1e-2)
        other = torch.ones(self.image_shape)
        assert not torch.allclose(
            self.seen(reloaded, pixel_values=other), self.seen(reloaded), atol=1e-3
        )

    def test_the_vision_tower_and_the_projector_travel_along(
        self, config: PreTrainedConfig, saved: Saved
    ) -> None:
        dense = random_model(config)
        tower = {id(tensor) for tensor in adapt(dense).layers.state_dict(keep_vars=True).values()}
        after = AutoModelForImageTextToText.from_pretrained(saved.directory).state_dict()
        others = {
            name: one
            for name, one in dense.state_dict(keep_vars=True).items()
            if id(one) not in tower
        }
        assert any("vis" in name for name in others)
        assert all(torch.equal(after[name], tensor) for name, tensor in others.items())


QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": 94,
    "vision_start_token_id": 93,
    "vision_end_token_id": 92,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
SMOL = {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0}


class TestLlava(SeesImages, FamilyContract):
    own = {"vision_config": CLIPVisionConfig(**VISION, image_size=8), "image_token_index": IMAGE}
    configs = {
        "mha": LlavaConfig(text_config=LlamaConfig(**MHA), **own),
        "gqa": LlavaConfig(
            text_config=LlamaConfig(**GQA, attention_bias=True, mlp_bias=True), **own
        ),
    }
    holds_biases = True


class TestMistral3(SeesImages, FamilyContract):
    own = {
        "vision_config": PixtralVisionConfig(**VISION, head_dim=8, image_size=16),
        "image_token_index": IMAGE,
        "spatial_merge_size": 2,
    }
    configs = {
        "mha": Mistral3Config(text_config=MistralConfig(**MHA, sliding_window=None, **TIED), **own),
        "gqa": Mistral3Config(
            text_config=MistralConfig(**GQA, sliding_window=None), **own, **UNTIED
        ),
    }
    image_shape = (IMAGES, 3, 16, 16)
    beside = {"image_sizes": [[16, 16]] * IMAGES}


class TestGemma3Vision(SeesImages, FamilyContract):
    text = {"head_dim": 8, "query_pre_attn_scalar": 8, **SOME_LAYERS_SLIDE}
    own = {
        "vision_config": SiglipVisionConfig(**VISION, image_size=8),
        "image_token_index": IMAGE,
        "mm_tokens_per_image": PATCHES,
        "boi_token_index": 93,
        "eoi_token_index": 94,
    }
    configs = {
        "mha": Gemma3Config(text_config=Gemma3TextConfig(**MHA, **text), **own),
        "gqa": Gemma3Config(
            text_config=Gemma3TextConfig(**GQA, **text, attention_bias=True, **UNTIED),
            **own,
            **UNTIED,
        ),
    }
    token_types = "token_type_ids"


class TestQwen25VL(SeesImages, FamilyContract):
    vision = QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [0]}
    configs = {
        "mha": Qwen2_5_VLConfig(
            text_config=MHA | HEADS_OF_8 | MROPE | {"num_key_value_heads": 4},
            vision_config=vision,
            **QWEN,
            **TIED,
        ),
        "gqa": Qwen2_5_VLConfig(
            text_config=GQA | HEADS_OF_8 | MROPE | {"num_key_value_heads": 2},
            vision_config=vision,
            **QWEN,
        ),
    }
    image_shape = (IMAGES * 16, 96)
    beside = {"image_grid_thw": [[1, 4, 4]] * IMAGES}
    token_types = "mm_token_type_ids"
    uniform = ULMM(remove_heads=0)
    uniform_ratio = 0.4


class TestQwen3VL(SeesImages, FamilyContract):
    vision = QWEN_VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    configs = {
        "mha": Qwen3VLConfig(
            text_config=MHA | MROPE | {"head_dim": 8}, vision_config=vision, **QWEN, **TIED
        ),
        "gqa": Qwen3VLConfig(
            text_config=GQA | MROPE | {"head_dim": 8, "attention_bias": True},
            vision_config=vision,
            **QWEN,
        ),
    }
    image_shape = (IMAGES * 16, 96)
    beside = {"image_grid_thw": [[1, 4, 4]] * IMAGES}
    token_types = "mm_token_type_ids"


class TestIdefics3(SeesImages, FamilyContract):
    own = {"vision_config": VISION | {"image_size": 16}, **SMOL}
    configs = {
        "mha": Idefics3Config(text_config=LlamaConfig(**MHA), **own, **TIED),
        "gqa": Idefics3Config(text_config=LlamaConfig(**GQA), **own),
    }
    image_shape = (IMAGES, 1, 3, 16, 16)
    holds_biases = True


class TestSmolVLM(SeesImages, FamilyContract):
    own = {"vision_config": VISION | {"image_size": 16}, **SMOL}
    configs = {
        "mha": SmolVLMConfig(text_config=LlamaConfig(**MHA), **own, **TIED),
        "gqa": SmolVLMConfig(text_config=LlamaConfig(**GQA), **own),
    }
    image_shape = (IMAGES, 1, 3, 16, 16)
    holds_biases = True


class TestGemma4Vision(SeesImages, FamilyContract):
    text = {**Gemma4.own, "use_bidirectional_attention": "vision"}
    own = {
        "vision_config": Gemma4VisionConfig(
            **VISION,
            num_key_value_heads=2,
            head_dim=8,
            pooling_kernel_size=2,
            position_embedding_size=8,
            standardize=True,
            use_clipped_linears=True,
        ),
        "image_token_id": IMAGE,
        "video_token_id": None,
        "audio_token_id": AUDIO,
    }
    audio = Gemma4AudioConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        subsampling_conv_channels=[16, 4],
        conv_kernel_size=3,
        output_proj_dims=12,
    )
    configs = {
        "26B": Gemma4Config(text_config=Gemma4TextConfig(**MHA | text | Gemma4.mixture), **own),
        "E2B": Gemma4Config(text_config=Gemma4.configs["E2B"], audio_config=audio, **own),
        "31B": Gemma4Config(
            text_config=Gemma4TextConfig(**GQA | text, attention_k_eq_v=True), **own
        ),
    }
    stock = False
    image_shape = (IMAGES, 16, 48)
    beside = {"image_position_ids": [[[i % 4, i // 4] for i in range(16)]] * IMAGES}
    token_types = "mm_token_type_ids"
    stays = Gemma4.stays
    whole = Gemma4.whole
    shares = Gemma4.shares
    heads = Gemma4.heads
    num_neurons = Gemma4.num_neurons


@torch.no_grad()
def test_sound_is_heard_as_the_masked_model_hears_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    masked, sliced = (random_model(TestGemma4Vision.configs["E2B"]) for _ in "ab")
    prune(masked, 0.4, mask_layer)
    reloaded = load(
        save_pruned(sliced, tokenizer, tmp_path / "pruned", prune(sliced, 0.4)).directory
    )
    words = tokens(1, 12, seed=5).clamp(max=AUDIO - 1)
    frames = torch.ones(1, 8, dtype=torch.bool)
    words[:, FIRST : FIRST + 2] = AUDIO  # two tokens stand for the eight frames of sound
    sounds = [
        torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in (6, 7)
    ]
    heard = [
        reloaded(words, input_features=one, input_features_mask=frames).logits for one in sounds
    ]
    expected = masked(words, input_features=sounds[0], input_features_mask=frames).logits
    torch.testing.assert_close(heard[0], expected, atol=1e-4, rtol=0)
    assert not torch.allclose(heard[0], heard[1], atol=1e-3)
