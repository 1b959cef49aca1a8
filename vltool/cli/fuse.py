"""`vltool fuse FUSION.yaml -o OUT`."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vltool.cli.guard import guarded
from vltool.cli.output import Output
from vltool.cli.reporter import RunReporter

if TYPE_CHECKING:
    from vltool.data.fuse import Fused
    from vltool.data.fusion import Mixture


class Split(StrEnum):
    """Which records of each dataset are read."""

    train = "train"
    val = "val"


@guarded
def fuse(
    fusion: Annotated[str, typer.Argument(metavar="FUSION", help="A fusion config, YAML or JSON.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The JSONL to write, or the folder with --shard-size; a .gz or .zst at its end compresses.",
        ),
    ] = None,
    epoch: Annotated[int, typer.Option("--epoch", metavar="N", min=0, help="The epoch, from 0.")] = 0,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="The seed, as data.data_seed.",
        ),
    ] = 42,
    split: Annotated[
        Split, typer.Option("--split", help="`val`: every val_jsonl whole and in order, instead of an epoch.")
    ] = Split.train,
    shard_size: Annotated[
        int | None, typer.Option("--shard-size", metavar="N", min=1, help="Write files of N records each.")
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Check every record that is drawn before writing any.")
    ] = True,
    hashing: Annotated[
        bool, typer.Option("--hash/--no-hash", help="Put the sha256 of inputs and output into the manifest.")
    ] = True,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the shards that are complete; a single file is begun anew."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an OUT that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of the table.")] = False,
) -> int:
    """Write the mixture of datasets that training would see, as JSONL with a manifest.

    The same config, inputs, seed and epoch give the same bytes.

    Example: vltool fuse mixture.yaml -o mixed.jsonl
    """  # fmt: skip
    from vltool.data.fuse import Options, image_root, plan
    from vltool.data.fuse import fuse as write
    from vltool.errors import InvalidInput
    from vltool.recipe.fusion import load_fusion

    if out is None and not dry_run:
        raise InvalidInput("nothing says where to write", "give -o OUT, or --dry-run to see the plan")
    output = Output()
    config = load_fusion(fusion)
    reporter = RunReporter(output, quiet=as_json)
    # What is half-written is removed on the way out.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        if dry_run:
            mixture = plan(config, split=split.value, seed=seed, progress=reporter.progress)
            done = None
        else:
            assert out is not None
            options = Options(
                seed=seed, epoch=epoch, split=split.value, shard_size=shard_size, validate=validate, hashing=hashing,
                resume=resume, overwrite=overwrite, image_root=image_root(),
            )  # fmt: skip
            done = write(config, out, options, progress=reporter.progress)
            mixture = done.mixture
    finally:
        reporter.close()
        signal.signal(signal.SIGTERM, before)
    if not as_json:
        for note in mixture.notes:
            output.problem(note, "yellow")
    if as_json:
        output.print_json(_document(mixture, done, epoch))
    elif done is None:
        _table(output, mixture)
    else:
        _say(output, done)
    return 0


def _leave(number: int, _: object) -> NoReturn:
    raise typer.Exit(128 + number)


def _rows(mixture: Mixture) -> list[dict[str, Any]]:
    rows = zip(mixture.fusion.datasets, mixture.counts, mixture.quotas, strict=True)
    return [
        {
            "name": dataset.name,
            "role": dataset.role,
            "records": count,
            "ratio": dataset.ratio,
            "drawn": quota,
            "passes": round(quota / count, 4) if count else None,
            "max_objects_per_image": mixture.most(number),
            "augmentation_enabled": dataset.augmentation_enabled,
            "curriculum_enabled": dataset.curriculum_enabled,
            "user_prompt": dataset.user_prompt,
            "system_prompt": dataset.system_prompt,
        }
        for number, (dataset, count, quota) in enumerate(rows)
    ]


def _document(mixture: Mixture, done: Fused | None, epoch: int) -> dict[str, Any]:
    written = None
    if done is not None:
        written = {
            "outputs": [str(path) for path in done.outputs],
            "manifest": str(done.manifest),
            "up_to_date": done.up_to_date,
            "shards_kept": done.kept,
            "seconds": done.seconds,
        }
    return {
        "split": mixture.split,
        "seed": mixture.seed,
        "epoch": epoch,
        "records": len(mixture),
        "datasets": _rows(mixture),
        "notes": [note.to_json() for note in mixture.notes],
        "written": written,
    }


def _table(output: Output, mixture: Mixture) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=mixture.fusion.file, title_justify="left")
    table.add_column("dataset", overflow="fold", min_width=10)
    for name in ("ratio", "records", "drawn", "objects"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("augments", no_wrap=True)
    table.add_column("prompt", ratio=1, no_wrap=True, overflow="ellipsis")
    for row in _rows(mixture):
        most, ratio, passes = row["max_objects_per_image"], row["ratio"], row["passes"]
        augmented = "yes" if row["curriculum_enabled"] else "no curriculum"
        table.add_row(
            Text(row["name"], style="cyan"),
            "target" if ratio is None else f"{ratio:g}",
            f"{row['records']:,}",
            f"{row['drawn']:,}" + (f" ({passes:.3g} ×)" if (passes or 0) > 1 else ""),
            "all" if most is None else f"≤ {most}",
            augmented if mixture.split == "train" and row["augmentation_enabled"] else "no",
            Text("the recipe's" if row["user_prompt"] is None else " ".join(row["user_prompt"].split())),
        )
    output.result.print(table, soft_wrap=False)
    output.line(f"{len(mixture):,} records", f" an epoch, seed {mixture.seed}" if mixture.split == "train" else "")


def _say(output: Output, done: Fused) -> None:
    if done.up_to_date:
        output.line("up to date", f"  {done.manifest}", style="green")
        return
    kept = f", {done.kept} of them kept" if done.kept else ""
    files = str(done.outputs[0]) if len(done.outputs) == 1 else f"{len(done.outputs)} files{kept}"
    output.line(f"{len(done.mixture):,} records", f"  {files}")
    output.line("manifest", f"  {done.manifest}")
