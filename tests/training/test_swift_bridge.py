"""What ms-swift, transformers and peft are trusted with, held against what they do: a guard for each trap."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")

import msgspec
import torch
from PIL import Image

from vltool.audit.smoke import DEMO_JSONL
from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset
from vltool.data.scan import scan
from vltool.data.tokens import TextCounter, image_tokens
from vltool.errors import BadContent, InvalidInput
from vltool.recipe.swift_keys import swift_table
from vltool.recipe.validate import load_recipe
from vltool.run.launch import make_tiny
from vltool.run.plan import make_plan
from vltool.training import swift_bridge


@pytest.fixture
def prepared(overlay, tmp_path):
    """Builds a recipe's plan and what the bridge makes of it."""

    def build(extends="stage2_llm_lora", **sections):
        plan = make_plan(load_recipe(str(overlay(extends, **sections))), cwd=tmp_path)
        return plan, swift_bridge.build(plan)

    return build


def captions(path=DEMO_JSONL, **changes):
    settings = {
        "prompts": Prompts(user="Name every object.", system="Be exact."), "emit_norm": "norm1000",
        "use_summary": False, "max_pixels": 256 * 256,
    } | changes  # fmt: skip
    return CaptionDataset(path, **settings), settings


@pytest.mark.parametrize("ids", ["tiny", "real_ids"])
def test_the_loaded_model_computes_what_transformers_own_computes(ids, prepared, request):
    """ms-swift patches forwards and rewrites rope and lengths in the config: none of it may show."""
    from transformers import AutoModelForImageTextToText

    folder = request.getfixturevalue(ids)
    _, built = prepared(template={"max_pixels": 256 * 256}, model={"model": str(folder), "torch_dtype": "float32"})
    encode = swift_bridge.encoder(built)
    dataset, _ = captions()
    batch = built.template.data_collator([encode(dataset[0].messages), encode(dataset[3].messages)])
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
    inputs = {name: batch[name] for name in names}
    with torch.no_grad():
        got = built.model.eval()(**inputs, logits_to_keep=4, use_cache=False).logits
        with_positions = built.model(
            **inputs, position_ids=batch["position_ids"], logits_to_keep=4, use_cache=False
        ).logits
        want = plain(**inputs, logits_to_keep=4, use_cache=False).logits
    assert torch.equal(got, want)
    assert torch.equal(with_positions[:, -1][:1], want[:, -1][:1])


def test_placeholders_have_the_checkpoint_s_own_ids_whatever_was_loaded_before(prepared, tiny, tmp_path):
    """ms-swift's template class holds the released models' ids, and those of each checkpoint loaded so far."""
    fewer_words = make_tiny(tmp_path / "fewer", [])
    seen = []
    for name, folder in (("first", fewer_words), ("second", tiny)):
        model = {"model": str(folder), "torch_dtype": "float32"}
        _, built = prepared(name=name, model=model, training={"output_dir": str(tmp_path / name)})
        template, config = built.template, built.model.config
        ids = [config.image_token_id, config.video_token_id]
        assert template.placeholder_tokens == ids == [template.image_token_id, template.video_token_id]
        assert template.tokenizer.convert_ids_to_tokens(ids) == ["<|image_pad|>", "<|video_pad|>"]
        seen.append(ids)
    # What the first calls a placeholder is a word to the second, and is dumped as one.
    word = seen[0][0]
    assert word not in seen[1]
    assert template.safe_decode([word]) == template.tokenizer.decode([word])


def test_precision_is_what_the_recipe_says(prepared, tmp_path):
    _, built = prepared()
    assert built.training_arguments.fp16 is False
    assert built.training_arguments.bf16 is False
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.float32}
    _, built = prepared(
        name="half", model={"torch_dtype": "bfloat16"}, training={"bf16": True, "output_dir": str(tmp_path / "half")}
    )
    assert built.training_arguments.bf16 is True
    trained = {p.dtype for p in built.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}, "adapters are kept in fp32"


def test_saved_modules_train_in_fp32_and_the_context_is_kept(prepared):
    half = {"model": {"torch_dtype": "bfloat16"}, "training": {"bf16": True}}
    _, built = prepared("stage1_aligner_full", **half)
    assert {p.dtype for p in built.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in built.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert built.model.config.get_text_config().max_position_embeddings == 262144


def test_arguments_that_ms_swift_would_default_otherwise(prepared):
    plan, built = prepared()
    assert built.arguments.lora_dropout == 0.0
    assert built.arguments.strict is True
    assert built.training_arguments.remove_unused_columns is False
    assert built.training_arguments.lr_scheduler_type == "cosine_warmup_with_min_lr"
    assert built.training_arguments.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert built.training_arguments.warmup_steps == 0.1, "a ratio, in today's transformers"
    assert Path(built.training_arguments.output_dir) == Path(plan.run_dir)
    assert built.training_arguments.eval_strategy == "steps"
    assert built.model.peft_config["default"].base_model_name_or_path == plan.model


def test_no_targets_is_peft_s_own_word():
    from peft.utils.constants import DUMMY_TARGET_MODULES

    from vltool.run.arguments import PEFT_NO_TARGETS

    assert PEFT_NO_TARGETS == DUMMY_TARGET_MODULES


def test_the_kd_weight_can_be_read_on_both_argument_objects(prepared):
    _, built = prepared("stage3_gkd_forward", rlhf={"llm_kd_weight": 0.25})
    assert built.arguments.llm_kd_weight == 0.25
    assert built.training_arguments.llm_kd_weight == 0.25


def test_the_loss_sees_the_answer_and_its_end_and_nothing_else(prepared):
    _, built = prepared()
    dataset, _ = captions()
    sample = swift_bridge.encoder(built)(dataset[1].messages)
    seen = [token for token in sample["labels"] if token != -100]
    answer = dataset[1].messages[-1]["content"]
    assert built.template.tokenizer.decode(seen) == answer + "<|im_end|>\n"


@pytest.mark.parametrize("learnt", ["default", "last_round", "all"])
def test_a_row_s_pieces_are_supervised_as_the_template_labels_them(learnt, prepared, tiny):
    _, built = prepared(template={"loss_scale": learnt, "max_pixels": 256 * 256})
    encode, counter = swift_bridge.encoder(built), TextCounter.from_folder(tiny)
    dataset, _ = captions()
    system, user, answer = dataset[1].messages
    again = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "größe 漢字"}]
    for messages in ([system, user, answer], [system, user, answer, *again]):
        pieces = counter.pieces(messages, max_pixels=256 * 256, learnt=learnt)
        labels = encode(messages)["labels"]
        supervised = [label != -100 for label in labels]
        assert [piece.supervised for piece in pieces for _ in range(piece.tokens)] == supervised


def random_sizes(count):
    """Sizes of few pixels, every fifth of them nearly as long and thin as the model takes them."""
    draw = random.Random(7)
    sizes = []
    while len(sizes) < count:
        width, height = (round(2 ** draw.uniform(0, 9)) for _ in range(2))
        if len(sizes) % 5 == 0:
            height = draw.randint(1, 5)
            width = draw.randint(150, 200) * height
        if max(width, height) <= 200 * min(width, height):
            sizes.append((width, height) if draw.random() < 0.5 else (height, width))
    return sizes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A JSONL of drawn pictures of 200 random sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, (width, height) in enumerate(random_sizes(200)):
        Image.new("RGB", (width, height), (number, 0, 0)).save(folder / f"{number}.png")
        box = {"desc": f"größe {number} 漢字", "bbox_2d": [0, 0, width, height / 2]}
        lines.append(json.dumps({"images": [f"{number}.png"], "width": width, "height": height, "objects": [box]}))
    (folder / "sizes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "sizes.jsonl"


@pytest.mark.parametrize("max_pixels", [None, 60 * 60, 512 * 512])
def test_token_counts_without_pixels_equal_the_template_s(max_pixels, prepared, tiny, pictures):
    """What a scan counts, against rows that training encodes: every photograph, and pictures of 200 random sizes."""
    _, built = prepared()
    built.template.max_pixels = max_pixels
    encode = swift_bridge.encoder(built)
    stop, newline = (built.template.tokenizer(text)["input_ids"] for text in ("<|im_end|>", "\n"))
    for path in (DEMO_JSONL, pictures):
        dataset, settings = captions(path, max_pixels=max_pixels)
        each = []
        found = scan(
            path,
            **settings,
            counter=TextCounter.from_folder(tiny),
            max_length=10**6,
            check_images=True,
            each=lambda at, record, messages, each=each: each.append((at, messages)),
        )
        lengths, answers, supervised = Counter(), Counter(), 0
        for at, messages in each:
            row = encode(dataset[at].messages)
            labels = [label for label in row["labels"] if label != -100]
            assert labels[-len(stop + newline) :] == stop + newline
            lengths[len(row["input_ids"])] += 1
            answers[len(labels) - len(newline)] += 1
            supervised += len(labels)
            size = messages[1]["content"][0]["image"]
            placeholders = row["input_ids"].count(built.template.processor.image_token_id)
            assert (
                image_tokens(*size, max_pixels=max_pixels) == placeholders == row["image_grid_thw"].prod().item() // 4
            )
        assert (dict(found.lengths.counts), dict(found.answers.counts)) == (lengths, answers)
        assert found.supervised == supervised
        assert found.longest[0] == max(lengths)
        assert len(encode(dataset[found.longest[1].line - 1].messages)["input_ids"]) == max(lengths)
        for at in found.bad:  # under a limit of pixels a thin picture becomes too thin for the model
            with pytest.raises(BadContent, match="200 times"):
                encode(dataset[at].messages)
        assert len(each) + len(found.bad) == len(dataset)
        assert len(each) > 0.8 * len(dataset)


def test_a_record_that_is_too_long_is_refused_not_cut(prepared):
    _, built = prepared()
    built.template.max_length = 60
    dataset, _ = captions()
    with pytest.raises(BadContent, match="longer than global_max_length"):
        swift_bridge.encoder(built)(dataset[0].messages)


def test_the_wrong_content_key_cannot_train_silently(prepared):
    """ms-swift ignores `{"type": "image", "url": …}`: the text would train without its picture."""
    from vltool.data.record import parse_record
    from vltool.errors import Where

    line = (
        b'{"images": ["a.jpg"], "messages": [{"role": "user", "content": [{"type": "image", "url": "a.jpg"}]}, '
        b'{"role": "assistant", "content": "yes"}]}'
    )
    with pytest.raises(BadContent, match='"image"'):
        parse_record(line, Where("r.jsonl", 1))


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("tuner", "lora_rnak", 8, "did you mean lora_rank?"),
        ("training", "learning_rate", "fast", "learning_rate: 'fast'"),
        ("training", "save_steps", [1], "save_steps: a list is not a number"),
        ("model", "torch_dtype", "float8", "torch_dtype"),
        ("training", "gradient_checkpointing", "yes", "gradient_checkpointing: 'yes'"),
    ],
)
def test_unknown_and_mistyped_arguments_are_located(section, key, value, words, prepared, tmp_path):
    with pytest.raises(InvalidInput, match=words) as caught:
        prepared(**{section: {key: value}})
    assert "mine.yaml:1:" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_arguments_that_the_installed_ms_swift_lacks_are_all_located(prepared, tmp_path):
    """An installed ms-swift other than the one that recipes are checked against."""
    plan, _ = prepared()
    swift_bridge.check_arguments(plan)
    later = {"learning_rote": 1, "seed": [1], "of_vltools_own": 2}
    plan = msgspec.structs.replace(
        plan, arguments=plan.arguments | later, origins=plan.origins | {"learning_rote": "mine.yaml:3:4"}
    )
    with pytest.raises(InvalidInput) as caught:
        swift_bridge.check_arguments(plan)
    assert sorted(problem.what for problem in caught.value.problems) == [
        "mine.yaml:3:4: the installed ms-swift has no argument learning_rote",
        "the installed ms-swift has no argument of_vltools_own",
    ]
    for problem in caught.value.problems:
        assert f"or install ms-swift {swift_table().ms_swift}" in problem.do


def test_a_package_that_the_recipe_needs_is_named(overlay, train, tmp_path):
    from vltool.errors import MissingOnHost

    with pytest.raises(MissingOnHost, match="FlashAttention2"):
        train(overlay("stage2_llm_lora", model={"attn_impl": "flash_attention_2"}))
    assert not (tmp_path / "run").exists()
