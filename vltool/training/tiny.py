"""A random-weight Qwen3-VL with the real architecture, made in code.

It is what `vltool smoke` trains where the operator names no checkpoint. Every module class, weight
name, tower and special token is that of the released models; only widths, depths and the vocabulary
are small. Nothing is downloaded: the tokenizer is a byte-level BPE trained here on a few sentences.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.utils import logging

REAL_FIRST_SPECIAL_ID = 151643
REAL_VOCAB_SIZE = 151936
"""Rows of the released models' embedding."""
ROWS_MULTIPLE = 64
"""The small vocabulary's rows are rounded up to a multiple of it, as the released models' are."""
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
"""Qwen3-VL's special tokens in the order of their ids, which follow one another."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for item in message.content %}"
    "{%- if item.type == 'text' %}{{- item.text }}"
    "{%- elif item.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def make_tiny(
    folder: Path, *, texts: tuple[str, ...] = (), seed: int = 0, moe: bool = False, real_ids: bool = False
) -> Path:
    """Write a tiny Qwen3-VL checkpoint (fp32 safetensors, config, processor) into `folder`.

    moe: of the architecture with experts.
    real_ids: with the released models' special-token ids and vocabulary size, at which the head is nearly all of
        the work; otherwise the special tokens follow the last word.
    texts: what the tokenizer learns its words from; any other text still encodes, byte by byte.
    The same arguments give the same files bit for bit. Only with the same `texts` do two agree on ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    tokenizer = _tokenizer(texts, real_ids=real_ids)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16,
            temporal_patch_size=2,
            merge_size=2,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            size={"shortest_edge": 65536, "longest_edge": 16777216},
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=16, temporal_patch_size=2, merge_size=2),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    rows = REAL_VOCAB_SIZE if real_ids else math.ceil(len(tokenizer) / ROWS_MULTIPLE) * ROWS_MULTIPLE
    model = _model(tokenizer, rows, seed, moe=moe)
    model.save_pretrained(folder)
    return folder


def _tokenizer(texts: tuple[str, ...], *, real_ids: bool) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    first = REAL_FIRST_SPECIAL_ID if real_ids else bpe.get_vocab_size()
    # An added token takes the id that the model's vocabulary gives it, so the special tokens are put there
    # too: the real ids lie far above the last word, with a hole in between.
    description = json.loads(bpe.to_str())
    description["model"]["vocab"].update({token: first + n for n, token in enumerate(SPECIAL_TOKENS)})
    description["added_tokens"] = [
        {
            "id": first + offset, "content": token, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
        for offset, token in enumerate(SPECIAL_TOKENS)
    ]  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        eos_token=AddedToken("<|im_end|>", special=True, normalized=False),
        pad_token=AddedToken("<|endoftext|>", special=True, normalized=False),
        model_max_length=262144,
    )


def _model(tokenizer: PreTrainedTokenizerFast, rows: int, seed: int, *, moe: bool) -> Any:
    end_of_text, end_of_turn, image, video, vision_start, vision_end = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    )
    hidden, vision_hidden = 16, 16
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    config = (Qwen3VLMoeConfig if moe else Qwen3VLConfig)(
        text_config=(experts if moe else {})
        | {
            "vocab_size": rows,
            "hidden_size": hidden,
            "intermediate_size": 32,
            # With three layers the last deepstack merger would feed nothing and get no gradient.
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_interleaved": True,
                "mrope_section": [4, 2, 2],
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 4,
            "hidden_size": vision_hidden,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        tie_word_embeddings=True,
        eos_token_id=end_of_turn,
        pad_token_id=end_of_text,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration)(config).eval()
        # transformers starts every bias at zero and every norm at one; drawn at random instead, no
        # tensor is special, and a tower that stays out of the computation shows in the outputs.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.02)
    model.generation_config = GenerationConfig(
        eos_token_id=[end_of_turn, end_of_text], pad_token_id=end_of_text, do_sample=False
    )
    return model
