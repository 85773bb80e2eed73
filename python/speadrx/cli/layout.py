"""`speadrx layout`: check a layout, and show how its heaps lie in a chunk."""

from __future__ import annotations

import io
import json
import math
import pathlib
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from speadrx._whole import whole_file
from speadrx.layout import presets
from speadrx.layout.base import STAT_PREFIX
from speadrx.layout.declaration import Axis, Layout, TimeAxis
from speadrx.layout.items import SPECIAL_ITEMS, item_name
from speadrx.layout.picture import address, axis_strides, escaped, nesting, svg_picture, text_picture
from speadrx.simulate.packets import axis_size

from .mkrecv import converted_toml, read_items
from .options import load_layout, set_option
from .parameters import force_option, keep_files

# Narrower terminals wrap lines: the picture would have no room for two indices of an axis.
_LEAST_WIDTH = 70
#: Up to so many labels of sources are shown. If there are more, only the first ones and the last.
_LABELS = 6


def describe(layout: Layout) -> dict[str, Any]:
    """What follows from a layout, as plain values for JSON.

    None means that something is not known, such as seconds without a tick rate.
    """
    rate, step = layout.time.tick_rate, layout.time.step
    gaps = {level.name: level.gap for level in nesting(layout)}
    declared = _declared(layout)
    axes = [
        {
            "name": name,
            "size": size,
            "item": declared[name].item,
            "from_user_data": getattr(declared[name], "from_user_data", None),
            "stride": stride,
            "stride_from_user_data": source if isinstance(source := layout.strides.get(name), str) else None,
            "gap": gaps.get(name, 0),
        }
        for (name, stride), size in zip(axis_strides(layout).items(), layout.present_shape, strict=True)
    ]
    return {
        "name": layout.name,
        "parameters": presets.parameters(layout.name),
        "heap_bytes": layout.heap_bytes,
        "heap_samples": layout.heap_sample_count,
        "dtype": layout.dtype,
        "fields": [{"name": field.name, "dtype": field.dtype, "shape": list(field.shape)} for field in layout.fields],
        "heap_axes": list(layout.heap_axes),
        "samples_order": None if layout.samples_order is None else list(layout.samples_order),
        "heap_shape": None if layout.heap_shape is None else list(layout.heap_shape),
        "chunk_heaps": layout.chunk_heaps,
        "chunk_bytes": layout.chunk_bytes,
        "chunk_ticks": layout.chunk_timestamp_step,
        "chunk_seconds": None if rate is None else _finite(layout.chunk_timestamp_step / rate),
        "bytes_per_second": None if rate is None else _finite(layout.heap_bytes * layout.batch_heaps * rate / step),
        "axes": axes,
        "sources": layout.sources,
        "source_labels": list(layout.source_labels),
        "items": _items(layout),
        "extra_bytes": layout.max_heap_extra,
        "user_data": [name for name in layout.user_data_dtype.names or () if name != "stats_base"],
        "rejected": [name.removeprefix(STAT_PREFIX) for name in layout.stream_stats],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _declared(layout: Layout) -> dict[str, TimeAxis | Axis]:
    return {layout.time.name: layout.time} | {axis.name: axis for axis in layout.axes}


def _items(layout: Layout) -> list[dict[str, Any]]:
    """The items that are used, and what each is for."""
    uses: dict[int | str, list[str]] = {}
    time = layout.time
    for item in time.items:
        uses.setdefault(item, []).append(f"axis {time.name}")
    uses.setdefault(SPECIAL_ITEMS[1], []).append("length")
    for axis in layout.axes:
        for item in axis.present_items or ([] if axis.item is None else [axis.item]):
            uses.setdefault(item, []).append(f"axis {axis.name}")
        for item in axis.payload_items or ():
            uses.setdefault(item, []).append(f"axis {axis.name}: payload")
    for side in layout.side_items:
        uses.setdefault(side.item, []).append(
            f"extra {side.name}: {side.dtype}" + (f", >> {side.shift}" * (side.shift > 0))
        )
    for item in layout.required_items:
        uses.setdefault(item, []).append("required")
    if time.epoch_item is not None:
        uses.setdefault(time.epoch_item, []).append("UTC at tick 0")
    return [{"id": item, "hex": _item(item), "name": _name(item), "uses": use} for item, use in uses.items()]


def _item(item: int | str) -> str:
    """An item ID, or the name of an item that is added to packets."""
    return item if isinstance(item, str) else f"{item:#x}"


def _name(item: int | str) -> str | None:
    return "added to packets" if isinstance(item, str) else item_name(item)


def _bits(text: str, axis: TimeAxis | Axis) -> str:
    """The bits of an item that count, as a formula."""
    if axis.shift:
        text += f" >> {axis.shift}"
    if axis.mask is not None:
        text += f" & {axis.mask:#x}"
    return text


def _index(axis: TimeAxis | Axis) -> str:
    """The index on an axis, as a formula."""
    if isinstance(axis, TimeAxis):
        text = _bits(" or ".join(f"{item:#x}" for item in axis.items), axis)
        phase = [] if axis.origin in (None, 0) else ["first time" if axis.origin == "first" else f"{axis.origin:,}"]
        phase += [] if axis.phases is None else ["phase of the source"]
        text = f"({text} - {' - '.join(phase)})" if phase else text
        rounding = {"reject": "", "nearest": ", rounded"}.get(axis.align, ", rounded down")
        return f"{text} / {axis.step:,}{rounding}"
    if axis.present_items is not None:
        return f"which is present of {', '.join(f'{item:#x}' for item in axis.present_items)}"
    if axis.payload_items is not None:
        return f"which is the payload of {', '.join(f'{item:#x}' for item in axis.payload_items)}"
    if axis.item is None:
        return f"user_data[{axis.from_user_data!r}]"
    text = _bits(_item(axis.item), axis)
    if axis.values is not None:
        return f"{text}: one of {axis_size(axis):,} values"
    return text if axis.step == 1 else f"{text} / {axis.step:,}"


def _show(console: Console, layout: Layout) -> None:
    facts = describe(layout)
    ascii_only = not _can_draw(console)
    width = max(console.width, _LEAST_WIDTH)

    def line(head: str, text: str) -> None:
        click.echo(textwrap.fill(text, width, initial_indent=f"{head:<9}", subsequent_indent=" " * 9))

    if layout.name:
        line("Layout", escaped(layout.name))
    element = layout._contents.element.name
    content = f"{facts['heap_samples']:,} samples"
    if layout.heap_shape is not None:
        content += f", shape {layout.heap_shape} of {element}"
    elif element != "uint8":
        content += f" of {element}"
    line("Heap", f"{facts['heap_bytes']:,} bytes: {content}")
    if layout.samples_order is not None:
        names, shape = (*layout.axis_names, *layout.heap_axes), layout.present_shape + layout._contents.shape
        sizes = dict(zip(names, shape, strict=True))
        line("Samples", ", ".join(f"{name} ({sizes[name]:,})" for name in layout.samples_order))
    line("Chunk", f"{facts['chunk_heaps']:,} heaps, {facts['chunk_bytes']:,} bytes")
    seconds = "seconds unknown without time.tick_rate"
    if facts["chunk_seconds"] is not None and facts["bytes_per_second"] is not None:
        seconds = f"{facts['chunk_seconds']:.6g} s at {facts['bytes_per_second'] * 8e-9:.4g} Gb/s"
    line("", f"{facts['chunk_ticks']:,} ticks, {seconds}")
    labels = [escaped(label) for label in layout.source_labels]
    sources = "one, for all heaps"
    if layout.sources is not None:
        shown = ", ".join(labels) if len(labels) <= _LABELS else f"{', '.join(labels[:3])}, ..., {labels[-1]}"
        sources = f"{len(labels):,}, by {layout.sources}: {shown}"
    line("Sources", sources)
    if parameters := presets.parameters(layout.name):
        line("Set", ", ".join(f"{name}={value}" for name, value in parameters.items()) + " (as it comes)")
    line("Rejects", ", ".join(facts["rejected"]))
    line("Proven", "no heap can be outside its chunk, and no two heaps can share a slot")
    where = address(layout)
    line("Address", where.replace("×", "x") if ascii_only else where)
    click.echo()
    click.echo("Axes, from slowest to fastest")
    console.print(_axes_table(layout, facts["axes"]))
    click.echo("Items that are used")
    console.print(_items_table(facts["items"]))
    click.echo()
    click.echo(text_picture(layout, width, ascii_only=ascii_only))


def _axes_table(layout: Layout, axes: list[dict[str, Any]]) -> Table:
    indices = {name: _index(axis) for name, axis in _declared(layout).items()}
    table = Table()
    table.add_column("axis")
    table.add_column("size", justify="right")
    table.add_column("index")
    table.add_column("stride (bytes)", justify="right")
    table.add_column("gap (bytes)", justify="right")
    for axis in axes:
        source = axis["stride_from_user_data"]
        stride = f"{axis['stride']:,}" + (f"\nor user_data[{source!r}]" if source is not None else "")
        table.add_row(axis["name"], f"{axis['size']:,}", Text(indices[axis["name"]]), Text(stride), f"{axis['gap']:,}")
    return table


def _items_table(items: list[dict[str, Any]]) -> Table:
    table = Table()
    for name in ("item", "name", "used for"):
        table.add_column(name)
    for item in items:
        table.add_row(item["hex"], item["name"] or "", Text("\n".join(item["uses"])))
    return table


def _can_draw(console: Console) -> bool:
    try:
        "┌×…".encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _list() -> str:
    return "\n".join(line for name in presets.names() for line in _in_short(name))


def _in_short(name: str) -> Iterator[str]:
    """A layout in a few lines: instrument, rate, shape, and parameters with their values."""
    layout = presets.load(name)
    yield name
    yield f"  {presets.summary(name)}"
    rate = describe(layout)["bytes_per_second"]
    chunk = " x ".join(f"{axis} {n}" for axis, n in zip(layout.axis_names, layout.present_shape, strict=True))
    yield f"  {'rate unknown' if rate is None else f'{rate * 8e-9:.4g} Gb/s'}; {chunk}"
    yield f"  heaps of {layout.heap_bytes:,} bytes: {list(layout._contents.shape)} of {layout.dtype}"
    if parameters := presets.parameters(name):
        text = ", ".join(f"{key}={value}" for key, value in parameters.items())
        yield textwrap.fill(f"--set {text}", 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


@click.command()
@click.argument("name_or_path", metavar="[FILE|PRESET]", required=False)
@set_option
@click.option(
    "--svg",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Also write the picture, drawn to scale, to this file.",
)
@force_option
@click.option("--toml", is_flag=True, help="Print the layout as TOML, with the changes of --set.")
@click.option("--json", "as_json", is_flag=True, help="Print what follows from the layout as JSON.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of layouts, for editors.")
@click.option("--list", "list_all", is_flag=True, help="List the layouts that come with speadrx.")
@click.option("--from-mkrecv", "header", metavar="FILE", help="Make a layout of a header file of mkrecv, as TOML.")
@click.option("--capture", metavar="FILE", help="With --from-mkrecv: packets of the stream, which show the items' IDs.")
@click.option(
    "--item",
    "items",
    metavar="POSITION=ID",
    multiple=True,
    callback=read_items,
    help="With --from-mkrecv: the ID of the item at a position. May be repeated.",
)
def layout(
    name_or_path: str | None,
    overrides: tuple[str, ...],
    svg: pathlib.Path | None,
    force: bool,
    toml: bool,
    as_json: bool,
    schema: bool,
    list_all: bool,
    header: str | None,
    capture: str | None,
    items: dict[int, int],
) -> None:
    """Check a layout, and show how its heaps lie in a chunk.

    FILE is a layout in TOML. PRESET is the name of a layout that comes with speadrx.

    \b
    Example:
      speadrx layout meerkat-digitiser --set time.batches=64
      speadrx layout array.toml --svg array.svg

    The exit code is 0 if the layout is valid. It is 2 if the layout is invalid or cannot be read: then the message
    says what is wrong, and what would be right.
    """  # noqa: D301 (click needs the backslash)
    if header is not None:
        if name_or_path is not None or svg is not None or toml + as_json + schema + list_all:
            raise click.UsageError("--from-mkrecv makes a layout: give only --set, --capture and --item with it")
        click.echo(converted_toml(header, capture, items, overrides), nl=False)
        return
    if capture is not None or items:
        raise click.UsageError("--capture and --item go with --from-mkrecv")
    if toml + as_json + schema + list_all > 1:
        raise click.UsageError("give only one of --toml, --json, --schema and --list")
    if schema or list_all:
        if name_or_path is not None or overrides or svg is not None:
            raise click.UsageError(
                "--schema and --list are not about one layout: leave out the layout, --set and --svg"
            )
        click.echo(json.dumps(presets.schema(), indent=2) if schema else _list())
        return
    if name_or_path is None:
        raise click.UsageError("which layout? Give a FILE, or a PRESET: --list shows all")
    keep_files(name_or_path)
    loaded = load_layout(name_or_path, overrides, "FILE|PRESET")
    if svg is not None:
        try:
            with whole_file(svg) as file:
                file.write_text(svg_picture(loaded), encoding="utf-8")
        except OSError as exc:
            raise click.BadParameter(f"{svg}: {exc.strerror or exc}", param_hint="--svg") from None
    if toml:
        click.echo(loaded.to_toml(), nl=False)
    elif as_json:
        click.echo(json.dumps(describe(loaded), allow_nan=False))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # names may have characters that the terminal cannot show
        _show(Console(highlight=False), loaded)
