"""The preview: every record, in one document that needs nothing else, with what training makes of it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

import vltool.data
from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset
from vltool.data.record import Object, Record
from vltool.data.tokens import TextCounter, image_tokens
from vltool.errors import InvalidInput, Where
from vltool.run.preview import Part, check_folder, choose, write_preview

DEMO = Path(vltool.data.__file__).parent / "demo" / "photos.jsonl"
EVIL = "</title><script>alert('x')</script> \" & <b>"
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Node:
    """An element of a page: its tag, attributes, and children, texts among them."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Node | str] = []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, kind: str | None = None) -> list[Node]:
        found = []
        for child in self.children:
            if isinstance(child, Node):
                named = child.tag == tag and (kind is None or kind in (child.attributes.get("class") or "").split())
                found += ([child] if named else []) + child.all(tag, kind)
        return found


class Page(HTMLParser):
    """Builds the tree of a document, and minds that every element is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], [node.tag for node in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


@pytest.fixture(scope="module")
def counter() -> TextCounter:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return TextCounter(tokenizer)


def part(jsonl: Path, **changes: Any) -> Part:
    reading = {
        "prompts": Prompts("Name every object, 名前も.", "Be exact."), "emit_norm": "norm1000", "use_summary": False,
        "max_pixels": 300 * 300, "sample_limit": None, "root": None,
    }  # fmt: skip
    told = {
        "jsonl": jsonl, "label": "train", "reading": reading, "counter": None, "max_length": 4096, "learnt": "default",
        "records": len(jsonl.read_text().splitlines()), "bad": (), "remarks": {},
    }  # fmt: skip
    return Part(**(told | changes))


def page_of(folder: Path, *parts: Part, samples: int = 20, remarks: Any = ()) -> Node:
    written = write_preview(folder / "preview", parts, remarks, samples=samples)
    assert [path.name for path in written.file.parent.iterdir()] == ["index.html"]
    assert written.size_bytes == written.file.stat().st_size
    page = Page(written.file.read_text(encoding="utf-8")).root
    assert len(page.all("article")) == written.records
    return page


def drawn(figure: Node) -> list[tuple[str, list[list[float]]]]:
    """Kind and points of the objects over a picture."""
    found = []
    for group in figure.all("g"):
        casing, outline = group.all("path")
        assert casing.attributes["d"] == outline.attributes["d"]
        numbers = re.split(r"[MLZ ]", str(outline.attributes["d"]).strip("MZ"))
        values = [float(number) for number in numbers]
        found.append((str(group.attributes["class"]), [values[i : i + 2] for i in range(0, len(values), 2)]))
    return found


def test_every_photograph_with_its_objects_texts_and_tokens(tmp_path, counter):
    page = page_of(tmp_path, part(DEMO, counter=counter))
    samples = CaptionDataset(DEMO, **part(DEMO).reading)
    for i, (card, line) in enumerate(zip(page.all("article"), DEMO.read_text().splitlines(), strict=True)):
        record, messages = json.loads(line), samples[i].messages
        assert card.all("a")[0].text == f"photos.jsonl:{i + 1}"
        (figure,) = card.all("figure")
        image = Image.open(io.BytesIO(base64.b64decode(str(figure.all("img")[0].attributes["src"]).split(",")[1])))
        assert figure.all("svg")[0].attributes["viewbox"] == f"0 0 {image.width} {image.height}"
        scale = image.width / record["width"]
        for (kind, points), item in zip(drawn(figure), record["objects"], strict=True):
            numbers = item[kind]
            expected = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
            if kind == "bbox_2d":
                (x1, y1), (x2, y2) = expected
                expected = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
            assert np.allclose(points, np.array(expected) * scale, atol=0.06)
        names = [item["desc"] for item in record["objects"]]
        assert [title.text for title in figure.all("title")] == [f"{n}: {name}" for n, name in enumerate(names, 1)]
        assert [button.text for button in card.all("button")] == [
            f"{n}{name} {kind}"
            for n, (name, item) in enumerate(zip(names, record["objects"], strict=True), 1)
            for kind in ["box" if "bbox_2d" in item else "polygon" if "poly" in item else "polyline"]
        ]
        assert card.all("pre", "system")[0].text == "Be exact."
        assert card.all("pre", "user")[0].text == "imageName every object, 名前も."
        assert card.all("pre", "assistant")[0].text == messages[-1]["content"]
        row = card.all("pre", "row")[0]
        supervised = "".join(mark.text for mark in row.all("mark")).replace("↵", "")
        assert supervised == messages[-1]["content"] + "<|im_end|>\n"
        of_image = image_tokens(*messages[1]["content"][0]["image"].size, max_pixels=300 * 300)
        total = counter.count(messages, max_pixels=300 * 300)
        learnt = len(supervised.encode()) - len("<|im_end|>") + 1
        counts = [int(number.text.replace(",", "")) for number in card.all("p", "tokens")[0].all("b")]
        assert counts == [total, of_image, total - of_image, learnt]
        assert row.all("span", "image")[0].text == f"<|image_pad|> ×{of_image}"


def test_what_a_record_says_stays_text(tmp_path, counter):
    record = {
        "images": ["a.png"], "width": 64, "height": 32, "objects": [{"desc": EVIL, "bbox_2d": [1, 2, 30, 20]}],
    }  # fmt: skip
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.png")
    jsonl = tmp_path / "<i>&.jsonl"
    jsonl.write_text(f"{json.dumps(record)}\n<script>alert(2)</script>\n")
    remark = SimpleNamespace(id="record-json", severity="error", what=EVIL, remedy=EVIL, where=Where(str(jsonl), 2))
    page = page_of(tmp_path, part(jsonl, counter=counter, bad=(1,), remarks={2: [remark]}), remarks=[remark])
    (script,) = page.all("script")
    assert "alert" not in script.text
    first, second = page.all("article")
    assert first.all("ul", "remarks")[0].text.startswith(f"error record-json {EVIL}")
    assert first.all("pre", "raw")[0].text == "<script>alert(2)</script>"
    assert second.all("title")[0].text == f"1: {EVIL}"
    assert json.loads(second.all("pre", "assistant")[0].text)["object_1"]["desc"] == EVIL


def test_the_page_allows_its_own_style_and_script_and_nothing_else(tmp_path):
    page = page_of(tmp_path, part(DEMO))
    policy = next(meta.attributes["content"] for meta in page.all("meta") if "http-equiv" in meta.attributes)
    hashes = [
        base64.b64encode(hashlib.sha256(page.all(tag)[0].text.encode()).digest()).decode()
        for tag in ("style", "script")
    ]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    )
    text = (tmp_path / "preview" / "index.html").read_text()
    assert not re.search(r"""url\(|@import|\sstyle=|\son\w+=""", text)
    linked = [str(node.attributes["src"]) for node in page.all("img")] + [
        str(node.attributes["href"]) for node in page.all("a")
    ]
    assert len(linked) == 12
    assert all(link.startswith(("data:image/jpeg;base64,", "#r")) for link in linked)
    assert not page.all("link")
    assert all(image.attributes["loading"] == "lazy" for image in page.all("img"))


def test_without_a_tokenizer_nothing_is_counted_and_the_page_says_so(tmp_path):
    reading = part(DEMO).reading | {"prompts": Prompts("")}
    page = page_of(tmp_path, part(DEMO, label="", reading=reading))
    assert page.all("p", "tokens") == page.all("details") == page.all("figure", "lengths") == []
    hints = [hint.text for hint in page.all("p", "hint")]
    assert hints == [
        "No tokenizer is known here, so nothing is counted: name a recipe with --recipe.",
        "No prompt is known here: it stands in a recipe, too.",
    ]
    assert len(page.all("pre", "assistant")) == 6


def test_lengths_over_the_limit_are_told(tmp_path, counter):
    page = page_of(tmp_path, part(DEMO, counter=counter, max_length=1500))
    (lengths,) = page.all("figure", "lengths")
    samples = CaptionDataset(DEMO, **part(DEMO).reading)
    counted = [counter.count(samples[i].messages, max_pixels=300 * 300) for i in range(6)]
    over = sum(length > 1500 for length in counted)
    assert over > 0
    assert f"{over} over the limit of 1,500" in lengths.text
    told = [int(title.text.split("tokens: ")[1].split()[0]) for title in lengths.all("title")]
    assert sum(told) == 6


def mirrored(image: Any, record: Record, *, index: int) -> list[tuple[str, Any]]:
    """Two variants: flipped, and flipped with the last object lost."""
    width = image.shape[1]
    flipped = tuple(
        Object(item.desc, item.kind, tuple(sorted((width - x, y) for x, y in item.points)))
        if item.kind == "bbox_2d"
        else Object(item.desc, item.kind, tuple((width - x, y) for x, y in item.points))
        for item in record.objects
    )
    pixels = np.ascontiguousarray(image[:, ::-1])
    whole = SimpleNamespace(image=pixels, objects=flipped, dropped=(), bypassed=False, reverted=False)
    less = SimpleNamespace(image=pixels, objects=flipped[:-1], dropped=flipped[-1:], bypassed=False, reverted=False)
    return [(f"flip of {index}", whole), ("less", less)]


def test_variants_stand_below_with_their_own_geometry(tmp_path, counter):
    page = page_of(tmp_path, part(DEMO, counter=counter, variants=mirrored))
    record = json.loads(DEMO.read_text().splitlines()[1])
    original, flip, less = page.all("article")[1].all("figure")
    shrink = 448 / record["width"]
    (_, before), (_, after) = drawn(original)[2], drawn(flip)[2]
    assert np.allclose(after, [[(record["width"] - x) * shrink, y * shrink] for x, y in before], atol=0.11)
    assert len(drawn(less)) == len(drawn(flip)) - 1
    facts = flip.all("span")[0].text.split(" · ")
    total = int(page.all("article")[1].all("p", "tokens")[0].all("b")[0].text.replace(",", ""))
    assert facts[:2] == ["flip of 1", "451 × 300"]
    assert abs(int(facts[2].split(" of ")[1].replace(",", "")) - total) < 20
    assert less.all("span")[0].text.endswith(" · 1 dropped")


def test_what_is_wrong_is_drawn_as_far_as_it_can_be(tmp_path, counter):
    record = json.loads(DEMO.read_text().splitlines()[0])
    record["images"] = [str(DEMO.parent / record["images"][0])]
    record["objects"] = [{"desc": "out", "bbox_2d": [10, 10, 700, 90]}]
    jsonl = tmp_path / "t.jsonl"
    jsonl.write_text(f"{json.dumps(record)}\n")
    page = page_of(tmp_path, part(jsonl, counter=counter, bad=(0,)))
    assert drawn(page.all("figure", "picture")[0]) == [("bbox_2d", [[10, 10], [700, 10], [700, 90], [10, 90]])]
    assert page.all("pre", "raw")[0].text == json.dumps(record)


def test_a_record_without_a_picture_is_shown_too(tmp_path, counter):
    jsonl = tmp_path / "t.jsonl"
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    jsonl.write_text(f"{json.dumps({'messages': talk})}\n")
    page = page_of(tmp_path, part(jsonl, counter=counter, variants=mirrored))
    assert page.all("p", "none")[0].text == "no picture"
    assert "".join(mark.text for mark in page.all("mark")).replace("↵", "") == "good day<|im_end|>\n"


@settings(max_examples=200)
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_records_with_findings_go_first_and_none_is_shown_twice(records, samples, data):
    bad = sorted(data.draw(st.sets(st.integers(0, records - 1), max_size=records)))
    chosen = choose(records, bad, samples)
    assert len(chosen) == len(set(chosen)) == min(samples, records)
    assert all(0 <= position < records for position in chosen)
    flags = [position in set(bad) for position in chosen]
    assert flags == sorted(flags, reverse=True)
    if bad and samples > 1:
        assert flags[0]
    if len(bad) < records and samples > 1:
        assert not flags[-1]


def test_an_older_preview_is_replaced_and_nothing_else(tmp_path):
    page_of(tmp_path, part(DEMO), samples=1)
    page_of(tmp_path, part(DEMO), samples=2)
    folder = tmp_path / "preview"
    (folder / "notes.txt").touch()
    with pytest.raises(InvalidInput, match=r"holds \S+, which is no preview"):
        check_folder(folder)
    (folder / "notes.txt").unlink()
    (folder / "index.html").write_text("<html>mine</html>")
    with pytest.raises(InvalidInput, match="no preview"):
        write_preview(folder, [part(DEMO)], (), samples=1)
    assert (folder / "index.html").read_text() == "<html>mine</html>"
    with pytest.raises(InvalidInput, match="is a file"):
        check_folder(folder / "index.html")


def test_a_page_that_cannot_be_finished_leaves_the_older_one(tmp_path):
    page_of(tmp_path, part(DEMO), samples=1)
    before = (tmp_path / "preview" / "index.html").read_bytes()

    def broken(image: Any, record: Any, *, index: int) -> Any:
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        write_preview(tmp_path / "preview", [part(DEMO, variants=broken)], (), samples=3)
    assert [path.name for path in (tmp_path / "preview").iterdir()] == ["index.html"]
    assert (tmp_path / "preview" / "index.html").read_bytes() == before
