"""The command line: words in, one call into `gos_adapt.pipeline`, words out.

Nothing heavy is imported at the top, so that `adapt --help` answers at once. A deliberate failure (`AdaptError`) is one
line on the error stream and its exit code; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from device_targets.reach import Reach
from gos_adapt import __version__, interrupt
from gos_adapt.config import (
    OBJECTIVE_NAMES,
    STRATEGY_NAMES,
    AdaptConfig,
    check_target,
    parse_duration,
    parse_latency,
)
from gos_adapt.errors import AdaptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from device_targets import Device
    from gos_adapt.progress import Progress, Verbosity
    from gos_adapt.quantities import Measurement

INTERRUPTED = 130
ENDLESS = 2**16
"""Columns of a table that goes to a file or a pipe: no line of it is broken."""
_SURROUNDINGS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE)
"""What a machine may do to any write of ours, and no bug of ours does."""
_ADAPT = ""  # name of the command that `adapt MODEL` means; nobody can type it by accident


class _Group(click.Group):
    """Commands, and one more that takes over when the first word is none of their names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help", "--version"}:
            args = [_ADAPT, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in self.commands if name != _ADAPT]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("adapt", "MODEL --target DEVICE [OPTIONS]")
        formatter.write_usage("adapt", "COMMAND --help", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        parameters = [*self.commands[_ADAPT].params, *self.get_params(ctx)]
        with formatter.section("Options"):
            formatter.write_dl([record for parameter in parameters if (record := parameter.get_help_record(ctx))])
        self.format_commands(ctx, formatter)


class _DefaultCommand(click.Command):
    """The command `adapt MODEL`; its help is the group's."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands.format_usage(ctx, formatter)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands.format_help(ctx, formatter)


_model = click.argument("model", type=click.Path(path_type=Path))
_target = click.option(
    "--target", required=True, metavar="DEVICE", help="What to make it fast on; see 'adapt devices'."
)
_address = click.option(
    "--address", metavar="HOST:PORT", help="Where DEVICE serves, if it is not this machine (docs/boards.md)."
)
_tracker = click.option("--tracker", metavar="HOST:PORT", help="Or the tracker of TVM's RPC that hands it out.")
_key = click.option("--key", metavar="KEY", help="What its agent is called.  [default: DEVICE]")
_device_timeout = click.option(
    "--device-timeout",
    "patience_s",
    type=parse_duration,
    metavar="TIME",
    default="10m",
    show_default=True,
    help="Wait so long for a DEVICE that is gone or taken; what is the best so far is on disk by then.",
)
_quiet = click.option("--quiet", "verbosity", flag_value="quiet", help="Print the outcome only.")
_verbose = click.option("--verbose", "verbosity", flag_value="verbose", help="Print what the log holds.")


def _reaching(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where a device is, as one argument `reach`."""

    @functools.wraps(command)
    def reaching(address: str | None, tracker: str | None, key: str | None, patience_s: float, **options: Any) -> None:
        command(reach=Reach(address, tracker, key, patience_s), **options)

    return _address(_tracker(_key(_device_timeout(reaching))))


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="adapt")
def commands() -> None:
    """Make a trained model fast on your own hardware, keeping its accuracy.

    MODEL is an ONNX file or a torch.export archive (.pt2). Its kernels are timed on DEVICE; the costliest operators
    are replaced by cheaper ones that a search builds and fits; the result is compiled, checked against the original
    and timed beside ONNX Runtime. The run folder then holds adapted.onnx, model.so, result.json and report.html.

    \b
    Examples:
      adapt model.onnx --target host --task task.toml
      adapt model.onnx --target host --task task.toml --budget 15m --epsilon 0.005
      adapt model.onnx --target host --task task.toml --budget 1h --speedup 2 --train-all
      adapt profile model.onnx --target host
      adapt ./profile --target host          (a model that is called like a command)

    Interrupt it when you like: the same command, without --fresh, continues where it was.
    """  # noqa: D301  (\b is click's mark for a paragraph to leave as it is)


@commands.command(_ADAPT, cls=_DefaultCommand, hidden=True)
@_model
@_target
@click.option(
    "--task",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Your data, metric and splits (docs/task-file.md). Without it only rewrites that keep the function are made.",
)
@click.option(
    "--epsilon",
    type=float,
    default=0.01,
    show_default=True,
    help="Acceptable loss of the task's metric; relative if that is an error.",
)
@click.option(
    "--speedup",
    "speed_up",
    type=float,
    metavar="FACTOR",
    help="Reach this factor over the compiled original, at the least loss of accuracy, whatever it is.",
)
@click.option(
    "--target-latency",
    "target_latency_s",
    type=parse_latency,
    metavar="LATENCY",
    help="Likewise, as a latency such as 0.4ms. Without either: as fast as --epsilon allows.",
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGY_NAMES),
    help="Replace the worst operator first, or choose all together.  [default: global; iterative without a task]",
)
@click.option("--train-all", is_flag=True, help="Train all layers to recover accuracy, not the replaced ones alone.")
@click.option(
    "--also-minimise",
    type=click.Choice(OBJECTIVE_NAMES),
    multiple=True,
    help="Keep operators in the search that are small in this, too; counted, or predicted from counts (energy). "
    "May be given more than once.",
)
@click.option(
    "--max-sites",
    type=int,
    metavar="N",
    help="Replace at most this many operators.  [default: any number; 10 with the iterative strategy]",
)
@click.option(
    "--budget",
    "budget_s",
    type=parse_duration,
    metavar="TIME",
    default="15m",
    show_default=True,
    help="Time such as 90s, 15m, 1h30m; then the best so far is delivered.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.  [default: runs/MODEL-DEVICE]")
@click.option(
    "--resume/--fresh",
    default=True,
    help="Continue the run in the folder, or discard it and begin again.  [default: resume]",
)
@_quiet
@_verbose
@_reaching
def adapt(verbosity: Verbosity | None, resume: bool, **options: Any) -> None:
    """Adapt MODEL to DEVICE; the help is the group's."""
    config = AdaptConfig(policy="resume" if resume else "fresh", **options)
    from gos_adapt import pipeline  # after the check: a typing error is answered at once

    result = pipeline.adapt(config, _progress(verbosity))
    click.echo(_plain(result.verdict))
    click.echo(f"report: {config.folder / 'report.html'}")


@commands.command()
@_model
@_target
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Also write DIR/profile.json.")
@_quiet
@_verbose
@_reaching
def profile(model: Path, target: str, out: Path | None, verbosity: Verbosity | None, reach: Reach) -> None:
    """Time every operator of MODEL on DEVICE, and the whole.

    Each operator's compiled kernels are timed inside the running model, and the model as a whole; the gap between the
    sum and the whole says how far the parts explain it.
    """
    check_target(target)
    from gos_adapt import pipeline

    found = pipeline.profile_model(model, target, out, _progress(verbosity), reach)
    _print_latencies(found.sites | {"whole model": found.whole})
    if found.gap is not None:
        click.echo(f"the sum of the parts differs from the whole by {found.gap:+.1%}")


@commands.command("compile")
@_model
@_target
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Gets model.so and model.json."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples in one call.")
@click.option("--dump", is_flag=True, help="Also write the module after each phase of the compiler to DIR/phases.")
@_quiet
@_verbose
@_reaching
def compile_(
    model: Path, target: str, out: Path, batch: int, dump: bool, verbosity: Verbosity | None, reach: Reach
) -> None:
    """Compile MODEL for DEVICE as it is.

    gos_adapt.load_compiled("DIR/model.so") gives a callable that takes and returns numpy arrays.
    """
    check_target(target)
    from gos_adapt import pipeline

    pipeline.compile_to(model, target, out, batch, _progress(verbosity), dump=dump, reach=reach)
    click.echo(f"compiled: {out / 'model.so'}")


@commands.command()
@click.argument("model_or_run", type=click.Path(path_type=Path))
@_target
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Of each.  [default: all of DEVICE]")
@click.option("--layers", is_flag=True, help="Also time every kernel of what we compiled, beside the device's peaks.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: SI units, all samples and their conditions.")
@_quiet
@_verbose
@_reaching
def bench(
    model_or_run: Path,
    target: str,
    threads: int | None,
    layers: bool,
    as_json: bool,
    verbosity: Verbosity | None,
    reach: Reach,
) -> None:
    """Time a model beside ONNX Runtime and TVM's own build; or a run's original and adapted model.

    Kernels that were never tuned for DEVICE are tuned first. All are timed on DEVICE in turns within one run, with
    equal thread counts. A ratio is a latency over that of ONNX Runtime fp32: below 1 is faster. A deviation is the
    largest difference of the outputs from ONNX Runtime's fp32, on the same random input, relative to their scale.
    """
    check_target(target)
    from gos_adapt import bench_tables, pipeline

    found = pipeline.bench(model_or_run, target, _progress(verbosity), threads=threads, layers=layers, reach=reach)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
        return
    _print_table(*bench_tables.contender_table(found))
    for line in bench_tables.failures(found):
        click.echo(_plain(line))
    if found.layers is not None:
        click.echo()
        _print_table(*bench_tables.layer_table(found.layers))
        for line in bench_tables.layer_legend(found.layers):
            click.echo(_plain(line))


@commands.command()
def devices() -> None:
    """List the devices that are known, and how each is measured.

    Without an address 'adapt compile' works for them, with schedules that are guessed.
    A peak is what clock and width allow of float32, by the sources in device_targets/; it was not measured.
    """
    from device_targets import DEVICES

    known = [describe() for describe in DEVICES.values()]
    _print_table(
        ("device", "kind", "threads", "memory", "peak", "measured", ""),
        (
            (
                device.name,
                device.kind,
                str(device.threads),
                f"{device.memory_bytes / 2**30:.1f} GiB",
                f"{device.peak_flops / 1e9:.0f} GFLOP/s" if device.peak_flops else "",
                _measured(device),
                device.description,
            )
            for device in known
        ),
    )


def _measured(device: Device) -> str:
    if device.local:
        return "here"
    return "--address" if device.kind == "cpu" else "not yet"


@commands.group()
def board() -> None:
    """What runs on a board (docs/boards.md)."""


@board.command()
@click.argument("device")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="The archive.  [default: adapt-agent-DEVICE.tar.gz]"
)
@_quiet
@_verbose
def build(device: str, out: Path | None, verbosity: Verbosity | None) -> None:
    """Build the agent that serves DEVICE, and pack it with TVM's runtime: some 5 MB, no Python needed there.

    Unpack it on the board and start ./run.sh; ./run.sh --help tells its options.
    """
    check_target(device)
    from device_targets import DEVICES
    from device_targets.board.build import pack_agent
    from gos_adapt.run_folder import replace_atomic

    path = out or Path(f"adapt-agent-{device}.tar.gz")
    with _progress(verbosity).stage(f"agent for {device}"):
        replace_atomic(path, functools.partial(pack_agent, DEVICES[device]()))
    click.echo(f"agent: {path}")


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Draw report.html again from the result.json of RUN."""
    from gos_adapt.report.html import write_report
    from gos_adapt.result import read_result

    result = read_result(run / "result.json")
    write_report(result, run / "report.html")
    click.echo(_plain(result.verdict))
    click.echo(f"report: {run / 'report.html'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0 success, also when there was nothing to gain; 2 an `AdaptError` or a wrong option; 3 the artefact failed
    verification; 130 interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    again = "the same command without --fresh" if "--fresh" in words else "the same command"
    try:
        with interrupt.noted():
            try:
                code = commands.main(arguments, prog_name="adapt", standalone_mode=False)
            except AdaptError:
                interrupt.check()
                raise
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path.strip() if error.ctx else "adapt"
        return _fail(f"{error.format_message()} ('{command} --help' explains)", error.exit_code)
    except AdaptError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror}{where}; make room or give access, then repeat {again}", 2)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"interrupted; {again} continues", err=True)
        return INTERRUPTED


def _fail(message: str, code: int) -> int:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {_plain(message)}", err=True)
    return code


def _plain(text: str) -> str:
    """Keep `text` to one line without control characters: it may quote a model or a file name."""
    return "".join(character if character.isprintable() else " " for character in text)


def _progress(verbosity: Verbosity | None) -> Progress:
    from rich.console import Console

    from gos_adapt.progress import Terminal

    return Terminal(Console(stderr=True), verbosity or "normal")


def _print_latencies(latencies: dict[str, Measurement]) -> None:
    _print_table(
        ("", "best ms", "median ms", "n"),
        (
            (name, f"{latency.best_s * 1e3:.4f}", f"{latency.median_s * 1e3:.4f}", str(len(latency.samples_s)))
            if latency.ok
            else (name, "not measured:", str(latency.error), "")
            for name, latency in latencies.items()
        ),
    )


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(title, overflow="fold") for title in head), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = ENDLESS
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
