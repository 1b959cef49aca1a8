"""Bases that are whole, and bases that are not, on copies of the tiny checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("torch")

import torch
from planning import WHOLE, House, write_weights
from safetensors.torch import load_file, save_file

from vltool.audit.base_rules import RULES, judge_base
from vltool.audit.recipe_rules import judge_recipe
from vltool.audit.tokenizer_rules import RULES as WORD_RULES
from vltool.audit.tokenizer_rules import chat_template

GKD = {"rlhf_type": "gkd", "lmbda": 0.0, "sft_alpha": 1.0}
QUERY = "model.language_model.layers.2.self_attn.q_proj.weight"
RELEASED = """{%- if tools %}{{- '<|im_start|>system\\n' }}tools<|im_end|>
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' }}
        {%- if messages[0].content is string %}
            {{- messages[0].content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- for content in message.content %}
            {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                {%- set image_count.value = image_count.value + 1 %}
                {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {{- message.content }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Qwen3-VL's template, shortened where it concerns tools and videos."""


def edit(name, change):
    """A change of one JSON file."""

    def apply(folder):
        path = folder / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return apply


def tensors(change):
    def apply(folder):
        path = folder / "model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})

    return apply


def renamed(held):
    for name in list(held):
        held[name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")] = held.pop(name)


def without(*names):
    def apply(folder):
        for name in names:
            (folder / name).unlink()

    return apply


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder):
    (folder / "model.safetensors").unlink()
    write_weights(folder / "adapter_model.safetensors", [f"base_model.model.{QUERY[:-7]}.lora_A.weight"])
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 8}')


def sharded(folder):
    index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")}
    index["weight_map"][QUERY] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spaced(document):
    document["vision_start_token_id"] += 1


def unnamed(document):
    document["added_tokens"] = [item for item in document["added_tokens"] if item["content"] != "<|im_end|>"]


SEEN = {
    "base-format": [(pickled, "holds weights as pickled"), (without("model.safetensors"), "holds no weights")],
    "base-adapter": [(adapter, "an adapter lies in")],
    "base-quantized": [
        (
            tensors(lambda held: held.update({QUERY: held[QUERY].to(torch.int8)})),
            "1 tensors are stored as I8: model.language_model.layers.2.self_attn.q_proj.weight",
        ),
    ],
    "base-tensors": [
        (tensors(lambda held: held.pop(QUERY)), f"asks for 1 tensors that are absent: {QUERY}"),
        (tensors(renamed), "other names than Qwen3-VL's"),
        (edit("config.json", lambda d: d["text_config"].update(num_hidden_layers=3)), "beyond what config.json counts"),
        (edit("config.json", lambda d: d["vision_config"].update(depth=5)), "model.visual.blocks.4."),
        (edit("config.json", lambda d: d["text_config"].update(hidden_size=32)), "other sizes than config.json tells"),
        (edit("config.json", lambda d: d["vision_config"].update(intermediate_size=7)), "blocks.0.mlp.linear_fc1"),
    ],
    "base-tied": [
        (edit("config.json", lambda d: d["text_config"].update(tie_word_embeddings=False)), "its text_config false"),
        (
            tensors(lambda held: held.update({
                "lm_head.weight": held["model.language_model.embed_tokens.weight"] + 1})),
            "puts the embedding in its place",
        ),
    ],
    "base-processor": [
        (without("processor_config.json"), "holds no preprocessor_config.json or processor_config.json"),
        (without("tokenizer_config.json"), "holds no tokenizer_config.json"),
        (lambda folder: (folder / "processor_config.json").write_text("{"), "is no JSON"),
    ],
    "base-processor-size": [
        (edit("processor_config.json", lambda d: d["image_processor"].update(patch_size=14)), "patch_size is 14"),
    ],
    "base-context": [
        (edit("config.json", lambda d: d["text_config"].update(max_position_embeddings=1024)), "4,096 tokens are more"),
    ],
    "token-ids": [
        (edit("config.json", spaced), "vision_start_token_id is"),
        (edit("tokenizer.json", unnamed), "has no token <|im_end|>"),
        (edit("config.json", lambda d: d["text_config"].update(vocab_size=300)), "the embedding has 300 rows"),
    ],
    "token-end": [(edit("generation_config.json", lambda d: d.update(eos_token_id=[1, 2])), "ends an answer at 1, 2")],
    "chat-template": [
        (without("chat_template.jinja"), "has no chat template"),
        (template(RELEASED.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")), "makes 0 placeholders"),
        (template(RELEASED.replace("assistant\\n", "assistant\\n<think>\\n")), "opens an answer with <think>"),
        (template(RELEASED + "Picture"), "in other words than it is trained in"),
        (template("{{ raise_exception('no images here') }}"), "cannot be rendered: no images here"),
        (template("{% for %}"), "cannot be rendered"),
    ],
}  # fmt: skip


@pytest.fixture
def house(tmp_path, tiny):
    house = House(tmp_path)
    shutil.rmtree(house.base)
    shutil.copytree(tiny, house.base)
    return house


def judged(house, **sections):
    recipe = house.recipe("base", **sections)
    return judge_base(house.plan_of(recipe), recipe), recipe


@pytest.mark.parametrize(("rule", "damage", "words"), [(rule, *case) for rule, cases in SEEN.items() for case in cases])
def test_a_rule_speaks(house, rule, damage, words):
    assert [finding for finding in judged(house)[0] if finding.id == rule] == []
    damage(house.base)
    told = [finding for finding in judged(house)[0] if finding.id == rule]
    assert any(words in finding.what for finding in told), told
    assert all(finding.where and finding.remedy for finding in told)
    assert {finding.severity for finding in told} == {
        item.severity for item in (*RULES, *WORD_RULES) if item.id == rule
    }


def test_every_rule_is_tried():
    tried = SEEN.keys() | {"tokenizers-differ"}
    assert {rule.id for rule in (*RULES, *WORD_RULES)} == tried


def test_what_inspect_ckpt_says_of_files_is_said_of_the_base(house):
    sharded(house.base)
    found, _ = judged(house)
    assert "ckpt-shard-missing" in {finding.id for finding in found if finding.severity == "error"}
    assert "base-tensors" not in {finding.id for finding in found}, "absent with the shard: said once"


def test_a_head_that_is_stored_twice_is_none_of_two(house):
    tensors(lambda held: held.update({"lm_head.weight": held["model.language_model.embed_tokens.weight"].clone()}))(
        house.base
    )
    assert judged(house)[0] == []


TEACHERS = {
    "another id": (edit("tokenizer.json", lambda d: d["added_tokens"][3].update(id=400)), "error", "tokens differ"),
    "a token less": (edit("tokenizer.json", lambda d: d["model"]["vocab"].pop("!")), "error", "'!' is 0 here, absent"),
    "other merges": (edit("tokenizer.json", lambda d: d["model"]["merges"].reverse()), "warning", "another merges"),
    "cut otherwise": (edit("tokenizer.json", lambda d: d.update(normalizer={"type": "NFC"})), "warning", "normalizer"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_that_reads_otherwise(house, tmp_path, name):
    damage, severity, words = TEACHERS[name]
    teacher = shutil.copytree(house.base, tmp_path / "teacher")
    rlhf = GKD | {"teacher_model": str(teacher)}
    assert judged(house, rlhf=rlhf)[0] == []
    damage(teacher)
    found, recipe = judged(house, rlhf=rlhf)
    (told,) = [finding for finding in found if finding.id == "tokenizers-differ"]
    assert (told.severity, told.where) == (severity, recipe.where("rlhf.teacher_model"))
    assert words in told.what


def test_merges_of_older_files_are_the_same_merges(house, tmp_path):
    teacher = shutil.copytree(house.base, tmp_path / "teacher")
    edit("tokenizer.json", lambda d: d["model"].update(merges=[" ".join(pair) for pair in d["model"]["merges"]]))(
        teacher
    )
    assert judged(house, rlhf=GKD | {"teacher_model": str(teacher)})[0] == []


def test_a_damaged_teacher_is_named_by_its_key(house, tmp_path):
    teacher = shutil.copytree(house.base, tmp_path / "teacher")
    pickled(teacher)
    found, recipe = judged(house, rlhf=GKD | {"teacher_model": str(teacher)})
    told = [finding for finding in found if finding.id == "base-format"]
    assert [finding.where for finding in told] == [recipe.where("rlhf.teacher_model")]


@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json", "several"])
def test_a_template_is_found_wherever_transformers_looks(house, name):
    (house.base / "chat_template.jinja").unlink()
    text = (
        RELEASED
        if name != "several"
        else [{"name": "tool_use", "template": "x"}, {"name": "default", "template": RELEASED}]
    )
    file = house.base / ("tokenizer_config.json" if name == "several" else name)
    document = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(document | {"chat_template": text}))
    assert chat_template(house.base) == (file, RELEASED)
    assert judged(house)[0] == []


@pytest.mark.parametrize("damaged", [False, True])
def test_a_template_is_read_as_text_where_it_cannot_be_rendered(house, monkeypatch, damaged):
    """A light install has no jinja2."""
    monkeypatch.setattr("vltool.audit.tokenizer_rules.find_spec", lambda name: None)
    template(RELEASED.replace("<|im_end|>", "</s>") if damaged else RELEASED)(house.base)
    told = [finding for finding in judged(house)[0] if finding.id == "chat-template"]
    assert ["does not hold <|im_end|>" in finding.what and "jinja2" in finding.evidence for finding in told] == [
        True
    ] * damaged


@pytest.mark.parametrize("name", WHOLE)
def test_shipped_recipes_on_the_tiny_checkpoint_are_good(house, name):
    recipe = house.recipe(name)
    plan = house.plan_of(recipe)
    assert judge_base(plan, recipe) == []
    assert [finding for finding in judge_recipe(plan, recipe) if finding.severity != "note"] == []
