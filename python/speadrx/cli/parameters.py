"""Read and check the parameters of commands: endpoints, sizes, tolerances, user data and files."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import click

from speadrx._words import counted, listed
from speadrx.receive.endpoints import format_endpoint, parse_endpoints

from .quantities import BYTES, SECONDS, read

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Names that the library uses for an option, if they differ from that of the option.
_LIBRARY_NAMES = {
    "chunks": "pool",
    "endpoint": "endpoints",
    "tolerance_seconds": "tolerance",
    "tolerance_bytes": "tolerance",
    "timestamp_jitter": "jitter",
    "max_packet_size": "packet_bytes",
    "sink": "threads",
}


#: Where a context keeps the endpoints as they were typed.
ENDPOINTS_AS_TYPED = "speadrx.endpoints"


class UnusableError(click.ClickException):
    """A command cannot use what it was given."""

    exit_code = 2


@dataclass(frozen=True)
class Tolerance:
    """How late heaps may be: in seconds of data, or in bytes of chunks."""

    seconds: float | None = None
    bytes: int | None = None


def read_endpoints(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[tuple[str, int]]:
    """Read endpoints, which may be several in each argument; repeated ones count once."""
    context.meta[ENDPOINTS_AS_TYPED] = texts
    try:
        return list(dict.fromkeys(endpoint for text in texts for endpoint in parse_endpoints(text)))
    except ValueError as exc:
        message = str(exc).removeprefix("endpoint: ")
        for text in texts:
            if os.path.exists(text):
                message = f"{text!r} is no endpoint, but on disk: 'speadrx replay' receives what is in a capture"
        raise click.BadParameter(message) from None


#: Where standard input is.
STDIN = "/dev/stdin"


def read_sources(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> str | list[tuple[str, int]]:
    """Read the path of a capture or a recording, or endpoints."""
    if len(texts) == 1 and (texts[0] == "-" or os.path.exists(texts[0])):
        return STDIN if texts[0] == "-" else texts[0]
    try:
        return read_endpoints(context, parameter, texts)
    except click.BadParameter as exc:
        if there := [text for text in texts if os.path.exists(text)]:
            raise click.BadParameter(
                f"{there[0]} is no endpoint, but on disk: give one recording or capture alone"
            ) from None
        raise click.BadParameter(f"no such file, and no endpoints: {exc.message}") from None


def read_tolerance(context: click.Context, parameter: click.Parameter, text: str | None) -> Tolerance:
    """Read a time or a size, such as ``0.5s`` or ``64MiB``."""
    if text is None:
        return Tolerance()
    seconds, size = read(text, SECONDS, bare=False), read(text, BYTES, bare=False)
    if seconds is not None and 0 <= seconds < math.inf:
        return Tolerance(seconds=seconds)
    if size is not None and 0 <= size < math.inf:
        return Tolerance(bytes=round(size))
    raise click.BadParameter(f"{text!r} is neither a time, such as 0.5s or 20ms, nor a size, such as 64MiB")


def read_assignments(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> list[tuple[str, int]]:
    """Read named integers, such as ``pol=1``."""
    found = []
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found.append((name, int(number, 0)))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE with an integer, such as pol=1") from None
    return found


def read_labels(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Read labels of metrics, such as ``stream=l-band``; each name may be given once."""
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, such as stream=l-band")
        if name in labels:
            raise click.BadParameter(f"{name!r} is given more than once")
        labels[name] = value
    return labels


def read_processors(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    """Read processors: numbers and ranges, separated by commas."""
    if text is None:
        return None
    from speadrx.doctor.system import parse_cpus

    try:
        # Part by part, so that a processor that is given twice stays twice.
        found = [sorted(parse_cpus(part.strip())) for part in text.split(",")]
        if not all(found):
            raise ValueError("a part is empty")
        return [cpu for cpus in found for cpu in cpus]
    except ValueError:
        raise click.BadParameter(f"{text!r}: wanted processors, such as 2,4 or 2-5") from None


def read_finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse infinity and what is not a number: `click.FloatRange` accepts both."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


def read_number(context: click.Context, parameter: click.Parameter, text: str | None) -> complex | None:
    """Read an integer, a floating-point or a complex number."""
    for kind in (int, float, complex):
        with contextlib.suppress(ValueError):
            return None if text is None else kind(text)
    raise click.BadParameter(f"{text!r} is not a number, such as 0, -1 or nan")


def user_data_by_thread(assignments: Iterable[tuple[str, int]], threads: int) -> list[dict[str, int]] | None:
    """Deal user data out to threads. A name is given once for all threads, or once for each thread.

    Raises
    ------
    click.BadParameter
        If a name is given any other number of times.
    """
    values: dict[str, list[int]] = {}
    for name, value in assignments:
        values.setdefault(name, []).append(value)
    for name, given in values.items():
        if len(given) not in (1, threads):
            raise click.BadParameter(
                f"{name} is given {len(given)} times: wanted once, or once for each of {counted(threads, 'thread')}",
                param_hint="--user-data",
            )
    return [{name: given[i % len(given)] for name, given in values.items()} for i in range(threads)] if values else None


@contextlib.contextmanager
def usable_file(path: str, option: str) -> Iterator[None]:
    """Turn errors of the operating system about a file into an error of the command.

    Raises
    ------
    UnusableError
        The message names the option and the file.
    """
    try:
        yield
    except OSError as exc:
        raise UnusableError(f"{option}: {path}: {exc.strerror or exc}") from None


def announce_pipe(path: str) -> None:
    """Say it if a command is about to wait until another program writes into a named pipe."""
    with contextlib.suppress(OSError):  # whoever opens it says what is wrong
        if stat.S_ISFIFO(os.lstat(path).st_mode):
            click.echo(f"{path} is a pipe: waiting for a program that writes a capture into it", err=True)


def force_option(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add ``--force``, which `keep_files` heeds. The command gets it as `force`."""
    return click.option("--force", is_flag=True, help="Overwrite files that exist.")(command)


def keep_files(*read: str | None) -> None:
    """Refuse to overwrite what exists, unless ``--force`` is given, and what the command reads or writes twice.

    Parameters
    ----------
    read
        Files that it reads besides its parameters that are paths. None is skipped.

    Raises
    ------
    click.BadParameter
        For the option that would overwrite the file.
    """
    context = click.get_current_context()
    seen = [path for path in read if path is not None]
    for parameter in context.command.params:
        path = context.params.get(parameter.name or "")
        if not isinstance(parameter.type, click.Path) or path is None:
            continue
        if not parameter.type.exists:  # files that need not exist are written
            for other in seen:
                if _is_same_file(other, path):
                    raise click.BadParameter(f"{str(path)!r} would overwrite {str(other)!r}", param=parameter)
            refuse_to_overwrite(path, parameter, "-" if parameter.type.allow_dash else "")
        seen.append(path)


def refuse_to_overwrite(path: str | os.PathLike[str], parameter: click.Parameter | None, stdout: str = "") -> None:
    """Refuse to overwrite a file, unless ``--force`` is given. Devices and pipes can be written to.

    Parameters
    ----------
    path
        The file.
    parameter
        The parameter that says so.
    stdout
        What stands for standard output.

    Raises
    ------
    click.BadParameter
        If there is such a file.
    """
    if str(path) != stdout and os.path.isfile(path) and not click.get_current_context().params["force"]:
        raise click.BadParameter(f"{path} exists: use --force to overwrite it", param=parameter)


def _is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    with contextlib.suppress(OSError):  # one of them does not exist yet
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def describe(endpoints: list[tuple[str, int]]) -> str:
    """Name endpoints in a line: the first, and how many more there are."""
    return listed(itertools.starmap(format_endpoint, endpoints), most=1)


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Turn errors of the library into errors of the command, for the option that the message begins with.

    Raises
    ------
    click.BadParameter, UnusableError
        Both end the command with exit code 2.
    """
    try:
        yield
    except (ValueError, TypeError, MemoryError) as exc:
        field, _, problem = str(exc).partition(": ")
        name = field.partition("[")[0]
        for parameter in click.get_current_context().command.params:
            if parameter.name == _LIBRARY_NAMES.get(name, name):
                raise click.BadParameter(problem if name == field else str(exc), param=parameter) from None
        raise UnusableError(str(exc).removeprefix("src: ")) from None
