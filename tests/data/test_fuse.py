"""Mixtures on disk: the plan's records in its order, exact bytes, nothing half-written."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.data import fuse as fusing
from vltool.data.fuse import Options, fuse
from vltool.data.fusing import gather
from vltool.data.fusing import inputs as fusing_inputs
from vltool.data.fusing import shuffle as fusing_shuffle
from vltool.data.fusion import plan_mixture, policy, with_policy
from vltool.errors import BadContent, InvalidInput
from vltool.recipe.fusion import load_fusion

CONFIG = {
    "target": {"train_jsonl": "own/own.jsonl", "val_jsonl": "own/val.jsonl"},
    "sources": [
        {"train_jsonl": "coco/coco.jsonl", "ratio": 1.6, "user_prompt": "What?", "max_objects_per_image": 3},
    ],
}


def record(name, objects=2, **more):
    things = [{"desc": f"{name} {i}", "bbox_2d": [i, 2, 30 + i, 40]} for i in range(objects)]
    return {"images": [f"images/{name}.jpg"], "width": 640, "height": 480, "objects": things} | more


def write(path, records, ending="\n"):
    path.parent.mkdir(exist_ok=True, parents=True)
    text = "\n".join(json.dumps(one, ensure_ascii=False) for one in records) + ending
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        import zstandard

        half = len(text) // 2
        frames = [zstandard.ZstdCompressor().compress(part.encode()) for part in (text[:half], text[half:])]
        path.write_bytes(b"".join(frames))
    else:
        path.write_text(text, encoding="utf-8")


@pytest.fixture(autouse=True, params=["read in place", "through buckets"])
def way(request, monkeypatch):
    """Every mixture is the same whether memory holds its inputs or not."""
    if request.param == "through buckets":
        monkeypatch.setattr(gather, "SHARE_OF_MEMORY", 0.0)
    return request.param


@pytest.fixture
def world(tmp_path):
    """A config with one target and one source, and their files."""
    write(tmp_path / "own" / "own.jsonl", [record(f"o{i}", i % 5 + 1) for i in range(40)])
    write(tmp_path / "own" / "val.jsonl", [record(f"v{i}") for i in range(5)])
    write(tmp_path / "coco" / "coco.jsonl", [record(f"c{i}", i % 7 + 1) for i in range(25)], ending="")
    (tmp_path / "mix.json").write_text(json.dumps(CONFIG))
    return tmp_path


def run(world, out="mixed.jsonl", progress=lambda *_: None, **options):
    return fuse(load_fusion(str(world / "mix.json")), world / out, Options(**options), progress=progress)


def read(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def expected(world, *, seed=42, epoch=0):
    """The mixture, made record by record from the plan."""
    config = load_fusion(str(world / "mix.json"))
    files = [Path(dataset.train_jsonl) for dataset in config.datasets]
    records = [
        [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()] for file in files
    ]
    mixture = plan_mixture(config, [len(one) for one in records], seed=seed)
    draws = mixture.epoch(epoch)
    out = []
    for position, (d, r) in enumerate(zip(draws.datasets_N.tolist(), draws.records_N.tolist(), strict=True)):
        one = json.loads(json.dumps(records[d][r]))
        folder = os.path.relpath(files[d].parent, world)
        one["images"] = [path if path.startswith(("/", "http")) else f"{folder}/{path}" for path in one["images"]]
        kept = mixture.kept(d, len(one["objects"]), epoch=epoch, position=position)
        if kept is not None:
            one["objects"] = [one["objects"][i] for i in kept]
        one["metadata"] = with_policy(one.get("metadata"), policy(config.datasets[d]))
        out.append(one)
    return out


@pytest.mark.parametrize(("seed", "epoch"), [(42, 0), (7, 3)])
def test_the_output_is_the_plan_record_by_record(world, seed, epoch):
    done = run(world, seed=seed, epoch=epoch)
    assert read(world / "mixed.jsonl") == expected(world, seed=seed, epoch=epoch)
    assert len(done.mixture) == 104


def test_the_same_bytes_whatever_the_pieces_buckets_and_processes(world, monkeypatch):
    run(world, "one.jsonl")
    monkeypatch.setattr(fusing_inputs, "PIECE_BYTES", 700)
    monkeypatch.setattr(gather, "WINDOW_BYTES", 600)
    monkeypatch.setattr(fusing, "STRETCH_BYTES", 800)
    monkeypatch.setattr(fusing_shuffle, "BUCKET_BYTES", 900)
    monkeypatch.setattr(fusing_shuffle, "WAITING_BYTES", 2000)
    monkeypatch.setattr(fusing, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(fusing, "processes", lambda: 3)
    run(world, "two.jsonl")
    assert (world / "two.jsonl").read_bytes() == (world / "one.jsonl").read_bytes()
    run(world, "shards", shard_size=30)
    parts = sorted((world / "shards").glob("*.jsonl"))
    assert [len(read(part)) for part in parts] == [30, 30, 30, 14]
    lines = [line for part in parts for line in read(part)]
    assert [line["objects"] for line in lines] == [line["objects"] for line in read(world / "one.jsonl")]


def test_beside_its_inputs_lines_but_gain_their_policy(world):
    write(world / "coco" / "coco.jsonl", [])
    (world / "mix.json").write_text(json.dumps({"target": CONFIG["target"]}))
    run(world, "own/mixed.jsonl")
    policy_of = policy(load_fusion(str(world / "mix.json")).targets[0])
    lines = (world / "own" / "own.jsonl").read_text().splitlines()
    tail = f',"metadata":{json.dumps({"fusion": policy_of}, separators=(",", ":"))}}}'
    assert sorted((world / "own" / "mixed.jsonl").read_text().splitlines()) == sorted(
        line[:-1] + tail for line in lines
    )


def test_image_paths_resolve_from_the_output(world):
    for path in ("own/images/o3.jpg", "coco/images/c3.jpg"):
        (world / path).parent.mkdir(exist_ok=True)
        (world / path).touch()
    (world / "out" / "deep").mkdir(parents=True)
    for out in ("out/deep/mixed.jsonl", "own/mixed.jsonl", "out/mixed"):
        run(world, out, shard_size=1000 if out == "out/mixed" else None)
        file = world / out / "00000-of-00001.jsonl" if out == "out/mixed" else world / out
        found = {path for one in read(file) for path in one["images"] if path.endswith(("o3.jpg", "c3.jpg"))}
        assert len(found) == 2
        assert all((file.parent / path).is_file() for path in found), found


def test_under_an_image_root_paths_stay(world):
    run(world, image_root=world)
    assert {one["images"][0].split("/")[0] for one in read(world / "mixed.jsonl")} == {"images"}
    assert "ROOT_IMAGE_DIR" in json.loads((world / "mixed.jsonl.manifest.json").read_text())["image_paths"]


def test_references_in_messages_are_rewritten_and_urls_are_not(world):
    url, data = "https://a.example/x.jpg", "data:image/png;base64,AAAA"
    content = [
        {"type": "image", "image": "a.jpg"}, {"type": "image_url", "image_url": {"url": "b.jpg"}},
        {"type": "image_url", "image_url": "../c.jpg"}, {"type": "image", "image": "/d.jpg"},
        {"type": "image", "image": url}, {"type": "image", "image": data},
        {"type": "image", "image": {"bytes": "AA=="}},
        {"type": "text", "text": "a.jpg"},
    ]  # fmt: skip
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a.jpg"}]
    many = {"images": ["a.jpg", "/b.jpg", url, {"bytes": "AA=="}], "summary": "s"}
    write(world / "own" / "own.jsonl", [{"messages": messages}, many, {"summary": "images"}])
    write(world / "coco" / "coco.jsonl", [record("x")])
    run(world)
    found = [one for one in read(world / "mixed.jsonl") if one["metadata"]["fusion"]["dataset"] == "own"]
    talk = next(one for one in found if "messages" in one)["messages"][0]["content"]
    assert [item.get("image", item.get("image_url")) for item in talk] == [
        "own/a.jpg", {"url": "own/b.jpg"}, "own/../c.jpg", "/d.jpg", url, data, {"bytes": "AA=="}, None,
    ]  # fmt: skip
    shown = next(one for one in found if "images" in one)["images"]
    assert shown == ["own/a.jpg", "/b.jpg", url, {"bytes": "AA=="}]


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
PATHS = st.one_of(
    st.sampled_from(["/abs/a.jpg", "https://x.example/a.jpg", "a.jpg", '"q".jpg', "a\\b.jpg", "metadata.jpg"]),
    TEXTS.filter(lambda text: not text.lower().startswith(("http:", "https:", "data:"))),
)
METADATA = st.one_of(st.none(), st.dictionaries(TEXTS, st.integers(-(2**60), 2**60), max_size=2))
RECORDS = st.lists(
    st.tuples(PATHS, st.integers(1, 6), METADATA, st.booleans(), st.booleans(), st.permutations(range(4))), min_size=1,
    max_size=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(RECORDS, RECORDS, st.booleans())
def test_splices_and_taking_apart_agree(tmp_path_factory, own, coco, alike):
    world = tmp_path_factory.mktemp("world")
    for name, records in (("own", own), ("coco", coco)):
        lines = []
        if alike:  # but for their paths, and numbers of objects
            records = [(path, objects, *records[0][2:]) for path, objects, *_ in records]
        for i, (path, objects, metadata, ascii_only, compact, order) in enumerate(records):
            one = record(f"{name}{i}", objects, images=[path])
            if metadata is not None:
                one["metadata"] = metadata
            keys = list(one)
            one = {keys[k]: one[keys[k]] for k in [*order, *range(4, len(keys))]}
            lines.append(json.dumps(one, ensure_ascii=ascii_only, separators=(",", ":") if compact else None))
        (world / name).mkdir()
        (world / name / f"{name}.jsonl").write_text(
            ("\n" if alike else "\n\n").join(lines), encoding="utf-8", newline=""
        )
    (world / "mix.json").write_text(json.dumps(CONFIG | {"target": {"train_jsonl": "own/own.jsonl"}}))
    run(world, validate=False, hashing=False)
    assert [json.dumps(one, sort_keys=True) for one in read(world / "mixed.jsonl")] == [
        json.dumps(one, sort_keys=True) for one in expected(world)
    ]


def test_a_key_spelt_with_escapes_is_still_a_key(world):
    lines = [json.dumps(record("a", metadata={"id": 1})).replace('"metadata"', '"\\u006detadata"')]
    (world / "own" / "own.jsonl").write_text("\n".join(lines))
    run(world)
    found = [one["metadata"] for one in read(world / "mixed.jsonl") if one["images"] == ["own/images/a.jpg"]]
    assert [(one["id"], one["fusion"]["dataset"]) for one in found] == [(1, "own")]


def test_what_is_not_changed_keeps_its_bytes(world):
    line = '{"width": 1e2, "height":100.0, "summary": "\\u00e9 é", "images": ["a.jpg"], "metadata": null}'
    (world / "own" / "own.jsonl").write_text(line, encoding="utf-8")
    run(world, validate=False)
    text = (world / "mixed.jsonl").read_text(encoding="utf-8")
    assert all(part in text for part in ('"width":1e2', '"height":100.0', '"\\u00e9 é"', '["own/a.jpg"]'))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_in_and_out(world, suffix):
    run(world, "plain.jsonl")
    for name in ("own", "coco"):
        path = world / name / f"{name}.jsonl"
        write(path.with_name(f"{path.name}{suffix}"), [json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
    text = json.dumps(CONFIG).replace("own.jsonl", f"own.jsonl{suffix}").replace("coco.jsonl", f"coco.jsonl{suffix}")
    (world / "mix.json").write_text(text)
    run(world, f"mixed.jsonl{suffix}")
    assert read(world / f"mixed.jsonl{suffix}") == read(world / "plain.jsonl")
    run(world, f"parts{suffix}", shard_size=60)
    assert len(read(world / f"parts{suffix}" / f"00001-of-00002.jsonl{suffix}")) == 44
    assert not list(world.rglob(".*"))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".gz", "cut"), (".zst", "cut"), (".gz", "none"), (".zst", "none")],
)
def test_a_damaged_compressed_file_is_named(world, suffix, damage):
    path = world / "own" / f"own.jsonl{suffix}"
    write(path, [record(f"o{i}") for i in range(500)])
    path.write_bytes(path.read_bytes()[:-40] if damage == "cut" else b"neither, whatever it is called")
    (world / "mix.json").write_text(json.dumps(CONFIG).replace("own.jsonl", path.name))
    with pytest.raises(BadContent, match=rf"own\.jsonl{suffix}: damaged"):
        run(world)


def test_a_plan_alone_counts_compressed_records(world):
    path = world / "own" / "own.jsonl.zst"
    write(path, [record(f"o{i}") for i in range(40)], ending="\n \n\n")
    (world / "mix.json").write_text(json.dumps(CONFIG).replace("own.jsonl", path.name))
    config = load_fusion(str(world / "mix.json"))
    assert fusing.plan(config, split="train", seed=42, progress=lambda *_: None).counts == (40, 25)


def test_the_manifest_says_what_went_in_and_came_out(world):
    run(world, seed=3, epoch=1)
    document = json.loads((world / "mixed.jsonl.manifest.json").read_text())
    assert (document["seed"], document["epoch"], document["records"], document["split"]) == (3, 1, 104, "train")
    assert [(one["path"], one["records"], one["drawn"]) for one in document["inputs"]] == [
        ("own/own.jsonl", 40, 40),
        ("coco/coco.jsonl", 25, 64),
    ]
    for one in (*document["inputs"], *document["outputs"]):
        data = (world / one["path"]).read_bytes()
        assert (one["bytes"], one["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_evaluation_split_is_whole_and_in_order(world):
    document = json.loads((world / "mix.json").read_text())
    document["sources"][0]["val_jsonl"] = "coco/coco.jsonl"
    (world / "mix.json").write_text(json.dumps(document))
    run(world, split="val")
    found = read(world / "mixed.jsonl")
    given = [f"own/images/v{i}.jpg" for i in range(5)] + [f"coco/images/c{i}.jpg" for i in range(25)]
    assert [one["images"] for one in found] == [[path] for path in given]
    assert [len(one["objects"]) for one in found[5:]] == [i % 7 + 1 for i in range(25)]
    assert not any(one["metadata"]["fusion"]["augmentation_enabled"] for one in found)


def test_bad_records_that_are_drawn_stop_it_before_anything_is_written(world):
    lines = (world / "own" / "own.jsonl").read_text().splitlines()
    lines[6] = lines[6].replace('"width": 640', '"width": "640"')
    lines[2:2] = ["", "{"]
    (world / "own" / "own.jsonl").write_text("\n".join(lines))
    before = sorted(world.rglob("*"))
    with pytest.raises(BadContent) as caught:
        run(world)
    assert [problem.where.line for problem in caught.value.problems] == [4, 9]
    assert "width" in caught.value.problems[1].what
    assert sorted(world.rglob("*")) == before
    config = json.loads((world / "mix.json").read_text())
    config["target"]["sample_limit"] = 2
    (world / "mix.json").write_text(json.dumps(config))
    assert len(run(world).mixture) == 2 + 3


def test_what_cannot_be_taken_apart_is_named_even_unchecked(world):
    with (world / "own" / "own.jsonl").open("a") as file:
        file.write('{"images": [1, \n')
    with pytest.raises(BadContent, match=r"own\.jsonl:41: the line cannot be taken apart"):
        run(world, validate=False)
    assert not (world / "mixed.jsonl").exists()
    assert not list(world.glob(".*"))


def test_done_twice_is_done_once(world):
    run(world)
    written = (world / "mixed.jsonl").stat().st_mtime_ns
    assert run(world).up_to_date
    assert (world / "mixed.jsonl").stat().st_mtime_ns == written
    with pytest.raises(InvalidInput, match="is there already, and not what this plan gives"):
        run(world, epoch=1)
    assert not run(world, epoch=1, overwrite=True).up_to_date
    assert read(world / "mixed.jsonl") == expected(world, epoch=1)
    write(world / "own" / "own.jsonl", [record("new")])
    with pytest.raises(InvalidInput, match="not what this plan gives"):
        run(world, epoch=1)


def interrupted(world, **options):
    def stop(what, done, total):
        if what == "writing" and done > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world, "shards", progress=stop, shard_size=20, **options)
    return sorted(path.name for path in (world / "shards").glob("*"))


def test_an_interrupted_folder_is_gone_on_with(world):
    assert interrupted(world) == ["00000-of-00006.jsonl", "00001-of-00006.jsonl", "progress.json"]
    kept = world / "shards" / "00000-of-00006.jsonl"
    before = kept.stat().st_mtime_ns
    with pytest.raises(InvalidInput, match="unfinished"):
        run(world, "shards", shard_size=20)
    with pytest.raises(InvalidInput, match="another plan"):
        run(world, "shards", shard_size=20, resume=True, epoch=1)
    done = run(world, "shards", shard_size=20, resume=True)
    assert done.kept == 2
    assert kept.stat().st_mtime_ns == before
    assert not (world / "shards" / "progress.json").exists()
    run(world, "whole.jsonl")
    parts = sorted((world / "shards").glob("*.jsonl"))
    assert [one["objects"] for part in parts for one in read(part)] == [
        one["objects"] for one in read(world / "whole.jsonl")
    ]
    assert run(world, "shards", shard_size=20, resume=True).up_to_date


def test_a_shard_that_was_touched_is_written_again(world):
    interrupted(world)
    (world / "shards" / "00001-of-00006.jsonl").write_text("{}\n")
    assert run(world, "shards", shard_size=20, resume=True).kept == 1


def test_an_interrupted_file_leaves_nothing(world):
    def stop(what, done, total):
        if what == "writing":
            raise KeyboardInterrupt

    before = sorted(world.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        run(world, progress=stop)
    assert sorted(world.rglob("*")) == before


def test_an_error_in_a_process_reaches_the_caller(world, monkeypatch):
    monkeypatch.setattr(fusing, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(fusing, "processes", lambda: 2)
    with (world / "own" / "own.jsonl").open("a") as file:
        file.write("[]\n")
    with pytest.raises(BadContent) as caught:
        run(world)
    assert caught.value.problems[0].where.line == 41


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("gone/mixed.jsonl", {}, "no such folder"),
        ("own/own.jsonl", {}, "is one of the inputs"),
        ("own", {}, "is a folder"),
        ("mix.json", {"shard_size": 4}, "is a file"),
        ("own", {"shard_size": 4}, "holds other files"),
    ],
)
def test_places_where_nothing_can_be_written(world, out, options, says):
    with pytest.raises(InvalidInput, match=says):
        run(world, out, **options)


def test_all_absent_files_are_told_with_the_configs_lines(world):
    for path in (world / "own" / "own.jsonl", world / "coco" / "coco.jsonl"):
        path.unlink()
    with pytest.raises(InvalidInput) as caught:
        run(world)
    assert [str(problem.where).rsplit("/", 1)[-1] for problem in caught.value.problems] == [
        "mix.json:1:28",
        "mix.json:1:104",
    ]
