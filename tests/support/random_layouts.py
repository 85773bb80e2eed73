"""Random layouts with features of every kind, small enough that tests of them are quick."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from reference import axis_order, axis_sizes
from speadrx import Axis, Layout, SideItem, TimeAxis

#: Bits of an item ID, and of the widest immediate value that a flavour with such IDs has.
ID_BITS = {7: 56, 15: 48, 23: 40}
FIRST_FREE_ID = 7
PRIMES = (7, 97, 65537, 1_000_003, 2**31 - 1, 999_999_999_989)


@dataclass(frozen=True)
class Case:
    """A layout with all that a stream of it needs."""

    layout: Layout
    user_data: dict[str, int]
    window: int
    id_bits: int


def is_power_of_two(value: int) -> bool:
    return value & (value - 1) == 0


def random_step(rng: random.Random, limit: int) -> int:
    """A step of any kind, at most `limit`."""
    kind = rng.choice(["one", "power of two", "odd", "prime", "any"])
    if kind == "one":
        return 1
    if kind == "power of two":
        return 1 << rng.randrange(limit.bit_length())
    if kind == "prime" and limit >= PRIMES[0]:
        return rng.choice([prime for prime in PRIMES if prime <= limit])
    step = rng.randint(1, 1 << rng.randrange(limit.bit_length()))
    return (step - 1) | 1 if kind == "odd" else step


def random_axis(
    rng: random.Random, name: str, items: list[int], value_bits: int, bit_fields: dict[int, int], max_size: int
) -> Axis:
    """An axis from one of `items`, or from unused bits of one whose other axes all have masks.

    `bit_fields` has the first unused bit of each of those.
    """
    shareable = [item for item, first_bit in bit_fields.items() if first_bit <= value_bits - 12]
    shared = bool(shareable) and rng.random() < 0.5
    item = rng.choice(shareable) if shared else items.pop()
    shift = bit_fields.get(item, 0) + (rng.randrange(6) if rng.random() < 0.6 else 0)
    room = value_bits - shift
    axis = Axis(name=name, item=item, shift=shift, reject_name=rng.choice([None, None, "bad_thing_heaps"]))
    if rng.random() < 0.4:
        bits = rng.randint(3, min(room, 40))
        axis = replace(axis, values=tuple(rng.sample(range(2**bits), rng.randint(1, max_size))))
    else:
        size = rng.randint(1, max_size)
        bits = min(room - 1, rng.choice([3, 8, 20, 56]))
        axis = replace(axis, step=random_step(rng, (2**bits - 1) // max(1, size - 1)), size=size)
    if shared or rng.random() < 0.5:
        needed = max(1, max(axis_values(axis)).bit_length())
        mask_bits = min(room, needed + rng.randrange(3))
        axis = replace(axis, mask=2**mask_bits - 1)
        bit_fields[item] = shift + mask_bits
    return axis


def axis_values(axis: Axis) -> list[int]:
    """The value of each index."""
    if axis.values is not None:
        return list(axis.values)
    assert axis.size is not None
    return [i * axis.step for i in range(axis.size)]


def random_case(rng: random.Random) -> Case:
    """A layout with any features, and small enough to be quick."""
    id_bits = rng.choice(list(ID_BITS))
    value_bits = ID_BITS[id_bits]
    window = rng.randint(1, 4)
    user_data = {}

    time_item, *items = rng.sample(range(FIRST_FREE_ID, 2**id_bits), 16)
    batches = rng.randint(1, 8)
    if value_bits >= 48 and rng.random() < 0.1:
        step = min(2**47 // (window * batches), 2**46 // batches) - rng.randrange(2)  # as long a window as can be
    else:
        step = random_step(rng, 2 ** (min(value_bits, 48) - 6) // batches)
    time = TimeAxis(item=time_item, step=step, batches=batches)
    if is_power_of_two(time.step) and rng.random() < 0.5:
        time = replace(time, align="mask")
    if rng.random() < 0.2:
        time = replace(time, name="when", tick_rate=1e-6)  # so slow that no heap agrees with the clock

    axes = []
    bit_fields: dict[int, int] = {}
    n_axes = rng.randint(4, 6) if rng.random() < 0.1 else rng.randrange(4)
    max_size = 2 if n_axes > 3 else 5
    for i in range(n_axes):
        name = f"axis{i}"
        if rng.random() < 0.2:
            size = rng.randint(1, max_size)
            axes.append(Axis(name=name, from_user_data=f"{name}_index", size=size))
            user_data[f"{name}_index"] = rng.randrange(size)
        else:
            axes.append(random_axis(rng, name, items, value_bits, bit_fields, max_size))
    rng.shuffle(axes)

    used = [time_item, *(axis.item for axis in axes if axis.item is not None)]
    side_items = [
        SideItem(
            name=f"side{i}",
            item=rng.choice(used) if rng.random() < 0.2 else items.pop(),
            shift=rng.choice([0, 0, 1, 8, 31, 32, 47, 62]),
            dtype=rng.choice(["u8", "u16", "u32", "u64"]),
        )
        for i in range(rng.choice([0, 0, 1, 2, 3]))
    ]
    required = {
        rng.choice([*used, *(side.item for side in side_items)]) if rng.random() < 0.2 else items.pop()
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))
    }

    layout = Layout(
        heap_bytes=rng.choice([1, 2, 3, 7, 8, 16, 24, 40, 64]),
        time=time,
        axes=tuple(axes),
        side_items=tuple(side_items),
        required_items=tuple(required),
        sources=rng.choice([None, *(axis.name for axis in axes)]),
    )
    if rng.random() < 0.6:
        names = list(axis_sizes(layout))
        layout = replace(layout, order=tuple(rng.sample(names, len(names))))
    layout, stride_data = random_strides(rng, layout)
    return Case(layout, user_data | stride_data, window, id_bits)


def random_strides(rng: random.Random, layout: Layout) -> tuple[Layout, dict[str, int]]:
    """Give some axes of a layout strides of their own, as numbers or from user data."""
    sizes = axis_sizes(layout)
    transposed = rng.random() < 0.15
    numbers: dict[str, int] = {}
    extent = layout.heap_bytes
    for name in rng.sample(list(sizes), len(sizes)) if transposed else reversed(axis_order(layout)):
        padding = rng.randrange(20) if rng.random() < 0.3 else 0
        if transposed or padding:
            numbers[name] = extent + padding
        extent = sizes[name] * (extent + padding)
    if transposed:
        return replace(layout, strides=numbers), {}
    # Some come from user data instead; where those lack one, the axis is dense.
    strides: dict[str, int | str] = {
        name: number if rng.random() < 0.5 else f"{name}_stride" for name, number in numbers.items()
    }
    fields = [name for name, stride in strides.items() if isinstance(stride, str) and rng.random() < 0.7]
    return replace(layout, strides=strides), {f"{name}_stride": numbers[name] for name in fields}
