"""The command list, and the one way from an error to an exit code."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vltool import __version__
from vltool.cli.check import check
from vltool.cli.fuse import fuse
from vltool.cli.inspect_ckpt import inspect_ckpt
from vltool.cli.output import Output
from vltool.cli.render_config import render_config
from vltool.cli.smoke import smoke
from vltool.cli.train import train
from vltool.errors import InvalidInput, Problem

USAGE_ERROR: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
"""Of whichever Click it is that Typer stands on, or carries along; Typer does not export it."""


def _dashed(token: str) -> str:
    """Options are spelt with dashes; `--base_config`, as ms-swift would have it, is the same."""
    return token.replace("_", "-")


class _Commands(TyperGroup):
    """The commands; what is wrong with an option is a document as well where `--json` asks for one."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except USAGE_ERROR as error:
            if "--json" in sys.argv:
                what = getattr(error, "format_message", error.__str__)()
                code = InvalidInput.exit_code
                Output().print_json({"exit_code": code, "problems": [Problem(what, "see --help").to_json()]})
            raise


app = typer.Typer(
    cls=_Commands,
    name="vltool",
    help="Fine-tune Qwen3-VL on dense captioning, from a recipe in YAML.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _dashed},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vltool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


app.command()(train)
app.command()(check)
app.command()(fuse)
app.command()(inspect_ckpt)
app.command()(render_config)
app.command()(smoke)


def main() -> None:
    """Entry point of `vltool` and `python -m vltool`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Results are YAML and JSON, which are UTF-8 whatever the terminal is.
        sys.stdout.reconfigure(encoding="utf-8")
    app()
