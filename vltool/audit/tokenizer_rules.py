"""Findings on a base's words: special tokens, its teacher's tokenizer, its chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vltool.audit.finding import Finding, Rule, Severity
from vltool.checkpoint.adapter import read_json
from vltool.data.tokens import IMAGE_FRAME, IMAGE_PAD, render
from vltool.errors import BadContent, Where
from vltool.recipe.schema import Recipe

_IDS = {
    "image_token_id": IMAGE_PAD,
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": IMAGE_FRAME[0],
    "vision_end_token_id": IMAGE_FRAME[1],
}
"""Keys of config.json -> the tokens that they number."""
_START, _END = "<|im_start|>", "<|im_end|>"
_THOUGHT = "<think>"
_SHOWN = 5
_ASKED: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": [{"type": "image", "image": "i"}, {"type": "text", "text": "Q"}]},
]
_ANSWERED = [*_ASKED, {"role": "assistant", "content": "A"}]
_IN_TEXT = (_START, _END, IMAGE_FRAME[0] + IMAGE_PAD + IMAGE_FRAME[1], "add_generation_prompt")
"""What a template of Qwen3-VL's kind holds word by word."""


def judge_tokenizers(recipe: Recipe, base: Path, teacher: Path | None) -> list[Finding]:
    """All findings on the base's words and on its teacher's; teacher: None where it is the base itself."""
    return [
        *_special(recipe, "model.model", base),
        *_template(recipe, base),
        *(_compared(recipe, base, teacher) if teacher is not None else ()),
    ]


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, which `base-processor` tells."""
    try:
        return read_json(path)
    except BadContent:
        return None


def _finding(
    rule: str, where: Where | None, what: str, remedy: str, *, severity: Severity = "error", evidence: str = ""
) -> Finding:
    return Finding(id=rule, severity=severity, what=what, where=where, remedy=remedy, evidence=evidence)


def _added(document: Mapping[str, Any]) -> dict[str, int]:
    """Added tokens by their text."""
    items = document.get("added_tokens")
    return {
        item["content"]: item["id"]
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict) and isinstance(item.get("content"), str) and isinstance(item.get("id"), int)
    }


def _words(document: Mapping[str, Any]) -> dict[str, int]:
    """All tokens by their text."""
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    words = vocabulary if isinstance(vocabulary, dict) else {}
    return {word: number for word, number in words.items() if isinstance(number, int)} | _added(document)


def _special(recipe: Recipe, key: str, folder: Path) -> Iterator[Finding]:
    document, config = _read(folder / "tokenizer.json"), _read(folder / "config.json")
    if document is None or config is None:
        return
    where = recipe.where(key)
    added = _added(document)
    for name, token in _IDS.items():
        said, numbered = config.get(name), added.get(token)
        if said is not None and said != numbered:
            is_what = "is no added token" if numbered is None else f"is {numbered}"
            what = f"{key}: {name} is {said} in config.json, and {token} {is_what} in tokenizer.json"
            remedy = "take both files from one checkpoint: images are put where config.json says"
            yield _finding("token-ids", where, what, remedy)
    absent = [token for token in (_START, _END, IMAGE_PAD, *IMAGE_FRAME) if token not in added]
    if absent:
        what = f"{key}: tokenizer.json has no token {', '.join(absent)}, which would be read letter by letter"
        yield _finding("token-ids", where, what, "take tokenizer.json from a Qwen3-VL checkpoint")
    rows = config.get("text_config", {}).get("vocab_size")
    words = _words(document)
    if isinstance(rows, int) and words and (most := max(words.values())) >= rows:
        word = max(words, key=lambda name: words[name])
        what = f"{key}: the tokenizer numbers {word!r} {most}, and the embedding has {rows} rows"
        yield _finding("token-ids", where, what, "take tokenizer.json and config.json from one checkpoint")
    generation = _read(folder / "generation_config.json") or {}
    ends = generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if ends and _END in added and added[_END] not in ends:
        what = f"{key}: generation_config.json ends an answer at {', '.join(map(str, ends))}, not at {_END}"
        remedy = f"write eos_token_id: {added[_END]} there: what is sampled, and what is served, would run on"
        yield _finding("token-end", where, what, remedy, severity="warning")


def _compared(recipe: Recipe, base: Path, teacher: Path) -> Iterator[Finding]:
    """The tokenizers of student and teacher, by what they hold."""
    mine, theirs = _read(base / "tokenizer.json"), _read(teacher / "tokenizer.json")
    if mine is None or theirs is None:
        return
    where = recipe.where("rlhf.teacher_model")
    own, other = _words(mine), _words(theirs)
    differ = sorted(
        (word for word in own.keys() | other.keys() if own.get(word) != other.get(word)),
        key=lambda word: (own.get(word, other.get(word, 0)), word),
    )
    if differ:
        shown = ", ".join(
            f"{word!r} is {_number(own, word)} here, {_number(other, word)} there" for word in differ[:_SHOWN]
        )
        more = f" and {len(differ) - _SHOWN:,} more" if len(differ) > _SHOWN else ""
        what = f"rlhf.teacher_model: {len(differ):,} tokens differ from the student's: {shown}{more}"
        remedy = "name a teacher of the same family: distillation compares the two token by token"
        yield _finding("tokenizers-differ", where, what, remedy, evidence=", ".join(map(repr, differ[:200])))
        return
    for part in ("normalizer", "pre_tokenizer", "merges"):
        first, second = (_merges(document) if part == "merges" else document.get(part) for document in (mine, theirs))
        if first != second:
            what = f"rlhf.teacher_model: its tokenizer has the student's tokens, and another {part}"
            remedy = "see that it is meant: the teacher reads text that is cut in a way it was not trained on"
            yield _finding("tokenizers-differ", where, what, remedy, severity="warning")


def _merges(document: Mapping[str, Any]) -> list[str]:
    """Merges in one form: older files write pairs as one text."""
    model = document.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    return [" ".join(pair) if isinstance(pair, list) else str(pair) for pair in merges or ()]


def _number(words: Mapping[str, int], word: str) -> str:
    return str(words[word]) if word in words else "absent"


def chat_template(folder: Path) -> tuple[Path, str] | None:
    """A checkpoint's chat template and the file that holds it, where transformers looks for it; None without one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path, path.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        text = (_read(folder / name) or {}).get("chat_template")
        if isinstance(text, list):
            # Older tokenizers name several.
            named = {item.get("name"): item.get("template") for item in text if isinstance(item, dict)}
            text = named.get("default")
        if isinstance(text, str):
            return folder / name, text
    return None


def _template(recipe: Recipe, base: Path) -> Iterator[Finding]:
    found = chat_template(base)
    if found is None:
        what = f"model.model: {base} has no chat template: what is trained here cannot be served by it"
        remedy = "copy chat_template.jinja or chat_template.json from the released checkpoint"
        yield _finding("chat-template", recipe.where("model.model"), what, remedy, severity="warning")
        return
    path, text = found
    where = Where(str(path))
    remedy = "take the template of the released instruct checkpoint; training itself does not read it, serving does"
    if find_spec("jinja2") is None:
        if absent := [words for words in _IN_TEXT if words not in text]:
            what = f"the chat template does not hold {', '.join(absent)}, as Qwen3-VL's does"
            evidence = "looked for in its text, since jinja2 is not installed to render it"
            yield _finding("chat-template", where, what, remedy, severity="warning", evidence=evidence)
        return
    wanted = "".join(render(_ANSWERED))
    prompt = "".join(render([*_ASKED, {"role": "assistant", "content": ""}])).removesuffix(f"{_END}\n")
    try:
        got, opened = _rendered(text, _ANSWERED, opens=False), _rendered(text, _ASKED, opens=True)
    except ValueError as error:
        what = f"the chat template cannot be rendered: {error}"
        yield _finding("chat-template", where, what, remedy, severity="warning")
        return
    if opened.startswith(prompt) and _THOUGHT in opened.removeprefix(prompt):
        what = f"the chat template opens an answer with {_THOUGHT}: captions are trained without one"
        remedy = "use the instruct checkpoint, or serve with a template that opens no thought"
        yield _finding("chat-template", where, what, remedy, severity="warning")
    elif (pads := got.count(IMAGE_PAD)) != 1:
        what = f"the chat template makes {pads} placeholders {IMAGE_PAD} of one image"
        yield _finding("chat-template", where, what, remedy, severity="warning", evidence=repr(got))
    elif got != wanted or opened != prompt:
        what = "the chat template renders a conversation in other words than it is trained in"
        evidence = f"rendered {got if got != wanted else opened!r}, trained in {wanted if got != wanted else prompt!r}"
        yield _finding("chat-template", where, what, remedy, severity="warning", evidence=evidence)


def _rendered(text: str, messages: list[dict[str, Any]], *, opens: bool) -> str:
    """A conversation as transformers' `apply_chat_template` writes it. Raises ValueError for a template that fails.

    opens: whether it ends where an answer begins. The template is foreign code, and runs in jinja2's sandbox.
    """
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(text).render(messages=messages, add_generation_prompt=opens)
    except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


RULES: tuple[Rule, ...] = (
    Rule(
        id="token-ids",
        severity="error",
        means="config.json and the tokenizer number special tokens differently, or one is absent",
        why="Image features are put where the id in config.json stands in the text. Where the tokenizer numbers the "
        "placeholder otherwise, they are put nowhere or over words; a number beyond the embedding's rows stops the run "
        "with a CUDA assertion.",
        remedy="Take config.json and tokenizer.json from one Qwen3-VL checkpoint.",
        covers="health check: Image placeholders match image count in user messages",
    ),
    Rule(
        id="token-end",
        severity="warning",
        means="an answer does not end at <|im_end|>",
        why="Training teaches the model to end with <|im_end|>. Where generation_config.json does not stop there, "
        "sampled completions and served answers run on to their longest length.",
        remedy="Write the id of <|im_end|> into eos_token_id of generation_config.json.",
    ),
    Rule(
        id="tokenizers-differ",
        severity="error",
        means="student and teacher do not read the same tokens",
        why="Distillation hands the teacher the student's token ids and compares both models' probabilities token by "
        "token. Where an id means another word to the teacher, the student learns nonsense, and nothing stops. Other "
        "merges or another way of cutting over the same tokens are a warning.",
        remedy="Use a teacher of the same family and version.",
        covers="Monitoring Checklist: eval/llm_kd_loss jump: teacher/template mismatch",
    ),
    Rule(
        id="chat-template",
        severity="warning",
        means="the base's chat template is absent, or renders other words than those trained on",
        why="Training writes conversations in ChatML, with one placeholder an image and no system message of its own; "
        "serving uses the checkpoint's template. If it adds a system message, opens a thought or frames images "
        "otherwise, the model is asked in another form than it was taught, and answers worse. Where jinja2 is not "
        "installed, the template is not rendered, and its text is looked through for the markers.",
        remedy="Copy the template of the released instruct checkpoint.",
        covers="FAQ: Chat Template Mechanics",
    ),
)
"""Rules of this module."""
