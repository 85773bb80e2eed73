//! Declarations of layouts made from a fuzzer's bytes, and a slow geometry of them, for the fuzz targets.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Result, Unstructured};
use speadrx::layout::Geometry;
use speadrx::spec::{
    Align, AxisSpec, LayoutSpec, Origin, Phases, Shown, SideSpec, SideType, Stride, TimeItem, TimeSpec,
};

/// Names of axes. So few that names are shared, and that `order`, `sources` and `strides` meet them.
const AXIS_NAMES: [&str; 6] = ["time", "antenna", "pol", "beam", "axis4", "_"];
/// Names of user data's fields.
const FIELD_NAMES: [&str; 4] = ["pol_index", "pol_stride", "beam", "stats_base"];

/// Whether a declaration should look like one that somebody would write, or may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Nearly all of them are layouts.
    Sensible,
    /// Nearly all of them are refused.
    Hostile,
}

/// A declaration, and the values of user data's fields.
#[derive(Clone, Debug)]
pub struct Declared {
    /// The declaration.
    pub spec: LayoutSpec,
    /// Values of the fields; some may be absent.
    pub user_data: BTreeMap<String, u64>,
}

/// A number near which things go wrong, or any other.
pub fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=9)? {
        0..=3 => u.int_in_range(0..=9)?,
        4..=5 => u8::arbitrary(u)?.into(),
        6..=7 => {
            let power = 1_u64 << u.int_in_range(0..=63)?;
            power.wrapping_add_signed(u.int_in_range(-2..=2)?)
        }
        8 => u.int_in_range(0..=1 << 48)?,
        _ => u64::arbitrary(u)?,
    })
}

fn name(u: &mut Unstructured<'_>, usual: &[&str]) -> Result<String> {
    if u.ratio(1, 30)? { String::arbitrary(u) } else { Ok((*u.choose(usual)?).to_owned()) }
}

fn item(u: &mut Unstructured<'_>, style: Style) -> Result<u64> {
    if style == Style::Hostile && u.ratio(1, 4)? { number(u) } else { Ok(0x1600 + u.int_in_range(0..=7)?) }
}

/// `None` now and then, else a value.
fn maybe<T>(u: &mut Unstructured<'_>, make: impl FnOnce(&mut Unstructured<'_>) -> Result<T>) -> Result<Option<T>> {
    if bool::arbitrary(u)? { make(u).map(Some) } else { Ok(None) }
}

fn several<T>(
    u: &mut Unstructured<'_>,
    most: usize,
    mut make: impl FnMut(&mut Unstructured<'_>, usize) -> Result<T>,
) -> Result<Vec<T>> {
    let n = u.int_in_range(0..=most)?;
    (0..n).map(|i| make(u, i)).collect()
}

impl Declared {
    /// Make a declaration from a fuzzer's bytes.
    pub fn new(u: &mut Unstructured<'_>, style: Style) -> Result<Self> {
        let spec = match style {
            Style::Sensible => sensible(u)?,
            Style::Hostile => hostile(u)?,
        };
        let mut user_data = BTreeMap::new();
        for axis in &spec.axes {
            if let Some(field) = &axis.from_user_data {
                let value = number(u)?;
                let size = axis.size.unwrap_or(1).max(1);
                user_data.insert(field.clone(), if style == Style::Sensible { value % size } else { value });
            }
        }
        for stride in spec.strides.values() {
            match stride {
                Stride::UserData(field) if bool::arbitrary(u)? => {
                    user_data.insert(field.clone(), number(u)?);
                }
                _ => {}
            }
        }
        Ok(Self { spec, user_data })
    }
}

fn sensible(u: &mut Unstructured<'_>) -> Result<LayoutSpec> {
    let step = *u.choose(&[1, 2, 3, 4096, 4095, 1 << 21, 1_000_003, (1 << 40) + 15, 1 << 44])?;
    let mut time = TimeSpec {
        name: "time".to_owned(),
        item: TimeItem::One(0x1600),
        step,
        batches: u.int_in_range(1..=5)?,
        // With one, what becomes of a heap depends on the time at which it comes.
        tick_rate: if u.ratio(1, 8)? { Some(*u.choose(&[1.0, 1e6, 1.712e9])?) } else { None },
        align: if step.is_power_of_two() && bool::arbitrary(u)? { Align::Mask } else { Align::Reject },
        origin: None,
        bits: None,
        shift: 0,
        mask: None,
        phases: None,
        epoch: None,
        epoch_item: None,
    };
    let axes = several(u, 4, sensible_axis)?;
    let mut order: Vec<_> = std::iter::once("time".to_owned()).chain(axes.iter().map(|a| a.name.clone())).collect();
    for i in 1..order.len() {
        order.swap(i, u.int_in_range(0..=i)?);
    }
    let types = [SideType::U8, SideType::U16, SideType::U32, SideType::U64];
    let side_items = several(u, 3, |u, i| {
        Ok(SideSpec {
            name: format!("side{i}"),
            item: 0x3200 + u.int_in_range(0..=2)?,
            shift: u.int_in_range(0..=62)?,
            dtype: *u.choose(&types)?,
        })
    })?;
    let heap_bytes = u.int_in_range(1..=40)?;
    let strides = sensible_strides(u, heap_bytes, &order, &time, &axes)?;
    let sources = if axes.is_empty() { None } else { maybe(u, |u| Ok(u.choose(&axes)?.clone()))? };
    if u.ratio(1, 3)? {
        unusual_time(u, &mut time, sources.as_ref().map(size))?;
    }
    Ok(LayoutSpec {
        name: String::new(),
        heap_bytes,
        payload_item: None,
        packets: None,
        order: Some(order),
        sources: sources.map(|axis| axis.name),
        source_labels: None,
        required_items: (0..u.int_in_range(0..=2)?).map(|i| 0x4200 + i).collect(),
        dtype: None,
        heap_shape: None,
        samples_per_heap: None,
        fields: Vec::new(),
        heap_axes: Vec::new(),
        samples_order: None,
        strides,
        time,
        axes,
        side_items,
        send: None,
    })
}

/// Make the time of a layout one that heaps tell in some unusual way.
fn unusual_time(u: &mut Unstructured<'_>, time: &mut TimeSpec, sources: Option<u64>) -> Result<()> {
    time.align = *u.choose(&[Align::Reject, Align::Floor, Align::Nearest])?;
    time.origin = match u.int_in_range(0..=2)? {
        0 => None,
        1 => Some(Origin::At(u.int_in_range(0..=5 * time.step)?)),
        _ => Some(Origin::Shown(Shown::First)),
    };
    let few = if time.step * time.batches <= 1 << 36 { 40 } else { 50 };
    time.bits = *u.choose(&[None, Some(48), Some(few), Some(52)])?;
    time.shift = u.int_in_range(0..=10)?;
    if bool::arbitrary(u)? {
        time.mask = Some((1 << time.bits.unwrap_or(48)) - 1);
    }
    if u.ratio(1, 3)? {
        time.item = TimeItem::OneOf(vec![0x1600, 0x1601, 0x1602]);
    }
    if let Some(sources) = sources {
        time.phases = match u.int_in_range(0..=2)? {
            1 => Some(Phases::Listed((0..sources).map(|_| u.int_in_range(0..=2 * time.step)).collect::<Result<_>>()?)),
            2 if time.align == Align::Reject => Some(Phases::Shown(Shown::First)),
            _ => None,
        };
    }
    time.epoch_item = u.ratio(1, 4)?.then_some(0x1027);
    Ok(())
}

fn sensible_axis(u: &mut Unstructured<'_>, i: usize) -> Result<AxisSpec> {
    if u.ratio(1, 10)? {
        let ids = (0..u.int_in_range(1..=4)?).map(|k| 0x4500 + 16 * i as u64 + k).collect();
        let (item, mask, size, values, from_user_data, reject_name) = (None, None, None, None, None, None);
        let name = AXIS_NAMES[i + 1].to_owned();
        let (shift, step, present_items) = (0, 1, Some(ids));
        return Ok(AxisSpec {
            payload_items: None,
            name,
            item,
            present_items,
            shift,
            mask,
            step,
            size,
            values,
            from_user_data,
            reject_name,
        });
    }
    let from_user_data = u.ratio(1, 8)?.then(|| format!("index{i}"));
    let plain = from_user_data.is_some() || !u.ratio(1, 4)?;
    let usual = from_user_data.is_none();
    let size: u64 = u.int_in_range(1..=if i == 0 { 80 } else { 5 })?;
    let step: u64 = if plain && usual { *u.choose(&[1, 1, 2, 3, 7, 64, 100])? } else { 1 };
    let values = several(u, 5, |u, _| u.int_in_range(0..=1 << 20))?;
    let values: Vec<u64> =
        values.iter().enumerate().filter(|(at, v)| !values[..*at].contains(v)).map(|(_, v)| *v).collect();
    let values = (!plain && !values.is_empty()).then_some(values);
    let mask = (step * size).next_power_of_two() * 2 - 1;
    Ok(AxisSpec {
        payload_items: None,
        name: AXIS_NAMES[i + 1].to_owned(),
        present_items: None,
        item: usual.then_some(if u.ratio(1, 4)? { 0x1701 } else { 0x1610 + i as u64 }),
        shift: if usual { u.int_in_range(0..=9)? } else { 0 },
        mask: (usual && values.is_none() && u.ratio(1, 3)?).then_some(mask),
        step,
        size: values.is_none().then_some(size),
        values,
        from_user_data,
        reject_name: (usual && u.ratio(1, 4)?).then(|| "bad_feng_id_heaps".to_owned()),
    })
}

fn sensible_strides(
    u: &mut Unstructured<'_>,
    heap_bytes: u64,
    order: &[String],
    time: &TimeSpec,
    axes: &[AxisSpec],
) -> Result<BTreeMap<String, Stride>> {
    let mut strides = BTreeMap::new();
    if u.ratio(1, 3)? {
        let at = u.choose_index(order.len())?;
        let size = |name: &String| match axes.iter().find(|axis| axis.name == *name) {
            Some(axis) => size(axis),
            None => time.batches,
        };
        let dense = order[at + 1..].iter().map(size).product::<u64>() * heap_bytes;
        let bytes = Stride::Bytes(dense + u.int_in_range(0..=50)?);
        strides.insert(order[at].clone(), if bool::arbitrary(u)? { bytes } else { Stride::UserData("gap".to_owned()) });
    }
    Ok(strides)
}

fn hostile(u: &mut Unstructured<'_>) -> Result<LayoutSpec> {
    let style = Style::Hostile;
    let time = TimeSpec {
        name: if u.ratio(1, 8)? { name(u, &AXIS_NAMES)? } else { "time".to_owned() },
        item: if u.ratio(1, 8)? {
            TimeItem::OneOf(several(u, 3, |u, _| item(u, style))?)
        } else {
            TimeItem::One(item(u, style)?)
        },
        step: number(u)?,
        batches: number(u)?,
        tick_rate: maybe(u, |u| {
            let rates = [1.0, -1.0, 0.0, f64::NAN, f64::INFINITY, 1.712e9, f64::MIN_POSITIVE];
            Ok(if bool::arbitrary(u)? { *u.choose(&rates)? } else { f64::arbitrary(u)? })
        })?,
        align: *u.choose(&[Align::Mask, Align::Reject, Align::Reject, Align::Floor, Align::Nearest])?,
        origin: if u.ratio(1, 4)? { Some(Origin::At(number(u)?)) } else { None },
        bits: if u.ratio(1, 4)? { Some(number(u)?) } else { None },
        shift: if u.ratio(1, 4)? { number(u)? } else { 0 },
        mask: if u.ratio(1, 4)? { Some(number(u)?) } else { None },
        phases: if u.ratio(1, 8)? { Some(Phases::Listed(several(u, 5, |u, _| number(u))?)) } else { None },
        epoch: if u.ratio(1, 8)? { Some(f64::arbitrary(u)?) } else { None },
        epoch_item: if u.ratio(1, 8)? { Some(item(u, style)?) } else { None },
    };
    let axes = several(u, 10, hostile_axis)?;
    let mut names = vec![time.name.clone()];
    names.extend(axes.iter().map(|axis| axis.name.clone()));
    let any_axis = |u: &mut Unstructured<'_>| hostile_axis_name(u, &names);
    let order = maybe_order(u, &names)?;
    let mut strides = BTreeMap::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let stride =
            if bool::arbitrary(u)? { Stride::Bytes(number(u)?) } else { Stride::UserData(name(u, &FIELD_NAMES)?) };
        strides.insert(any_axis(u)?, stride);
    }
    Ok(LayoutSpec {
        name: if u.ratio(1, 4)? { String::arbitrary(u)? } else { String::new() },
        heap_bytes: number(u)?,
        payload_item: None,
        packets: None,
        order,
        sources: maybe(u, any_axis)?,
        source_labels: if u.ratio(1, 8)? { Some(several(u, 5, |u, _| String::arbitrary(u))?) } else { None },
        required_items: several(u, 3, |u, _| item(u, style))?,
        dtype: if u.ratio(1, 8)? { Some(String::arbitrary(u)?) } else { None },
        heap_shape: if u.ratio(1, 8)? { Some(several(u, 3, |u, _| number(u))?) } else { None },
        fields: Vec::new(),
        heap_axes: Vec::new(),
        samples_order: None,
        samples_per_heap: if u.ratio(1, 8)? { Some(number(u)?) } else { None },
        strides,
        time,
        axes,
        side_items: several(u, 3, |u, i| {
            Ok(SideSpec {
                name: if u.ratio(1, 8)? { String::arbitrary(u)? } else { format!("side{i}") },
                item: item(u, style)?,
                shift: number(u)?,
                dtype: *u.choose(&[SideType::U8, SideType::U16, SideType::U32, SideType::U64])?,
            })
        })?,
        send: None,
    })
}

fn hostile_axis(u: &mut Unstructured<'_>, i: usize) -> Result<AxisSpec> {
    let values = if u.ratio(1, 4)? { Some(several(u, 6, |u, _| number(u))?) } else { None };
    let from_user_data = if u.ratio(1, 4)? { Some(name(u, &FIELD_NAMES)?) } else { None };
    Ok(AxisSpec {
        payload_items: None,
        name: if u.ratio(1, 8)? { name(u, &AXIS_NAMES)? } else { format!("a{i}") },
        present_items: if u.ratio(1, 12)? { Some(several(u, 3, |u, _| item(u, Style::Hostile))?) } else { None },
        item: if from_user_data.is_some() && u.ratio(7, 8)? { None } else { Some(item(u, Style::Hostile)?) },
        shift: if u.ratio(1, 3)? { number(u)? } else { 0 },
        mask: if u.ratio(1, 4)? { Some(number(u)?) } else { None },
        step: if u.ratio(1, 4)? { number(u)? } else { 1 },
        size: if values.is_some() && u.ratio(7, 8)? { None } else { Some(number(u)?) },
        values,
        from_user_data,
        reject_name: if u.ratio(1, 8)? {
            Some(name(u, &["metadata_heaps", "internal_error_heaps", "bad_pol_heaps"])?)
        } else {
            None
        },
    })
}

fn hostile_axis_name(u: &mut Unstructured<'_>, names: &[String]) -> Result<String> {
    if u.ratio(1, 8)? { name(u, &AXIS_NAMES) } else { Ok(u.choose(names)?.clone()) }
}

fn maybe_order(u: &mut Unstructured<'_>, names: &[String]) -> Result<Option<Vec<String>>> {
    if !bool::arbitrary(u)? {
        return Ok(None);
    }
    let mut order = names.to_vec();
    for i in 1..order.len() {
        order.swap(i, u.int_in_range(0..=i)?);
    }
    if u.ratio(1, 8)? {
        order.push(hostile_axis_name(u, names)?);
    }
    if u.ratio(1, 8)? {
        order.pop();
    }
    Ok(Some(order))
}

/// Number of indices of an axis of an accepted layout.
#[must_use]
pub fn size(axis: &AxisSpec) -> u64 {
    let listed = axis.values.as_ref().or(axis.present_items.as_ref()).map(|list| list.len() as u64);
    axis.size.or(listed).unwrap_or(0)
}

/// Position and value of the only one of several items that is present.
#[must_use]
pub fn only_present(items: &[i64]) -> Option<(u64, i64)> {
    let present: Vec<_> = (0..).zip(items.iter().copied()).filter(|&(_, item)| item >= 0).collect();
    (present.len() == 1).then(|| present[0])
}

/// The index that an item's value has on an axis that takes it from an item, found slowly.
#[must_use]
pub fn index(axis: &AxisSpec, value: i64) -> Option<u64> {
    let value = (u64::try_from(value).ok()? >> axis.shift) & axis.mask.unwrap_or(u64::MAX);
    match &axis.values {
        Some(values) => values.iter().position(|&known| known == value).map(|i| i as u64),
        None => (value % axis.step == 0).then_some(value / axis.step).filter(|&i| i < size(axis)),
    }
}

/// Sizes of all axes of an accepted layout, slowest first.
#[must_use]
pub fn sizes(spec: &LayoutSpec) -> Vec<u64> {
    let declared: Vec<_> = std::iter::once((&spec.time.name, spec.time.batches))
        .chain(spec.axes.iter().map(|axis| (&axis.name, size(axis))))
        .collect();
    match &spec.order {
        None => declared.iter().map(|(_, size)| *size).collect(),
        Some(order) => order.iter().map(|name| declared.iter().find(|(known, _)| *known == name).unwrap().1).collect(),
    }
}

/// Heap index, and byte offset, of the heap with these indices on the axes, slowest first.
#[must_use]
pub fn slot(sizes: &[u64], geometry: &Geometry, indices: &[u64]) -> (u128, u128) {
    let (mut at, mut offset) = (0_u128, 0_u128);
    for ((&size, &stride), &index) in sizes.iter().zip(geometry.strides()).zip(indices) {
        at = at * u128::from(size) + u128::from(index);
        offset += u128::from(index) * u128::from(stride);
    }
    (at, offset)
}

/// The indices of a heap, from its heap index.
#[must_use]
pub fn indices(sizes: &[u64], mut at: u64) -> Vec<u64> {
    let mut indices: Vec<u64> = sizes
        .iter()
        .rev()
        .map(|&size| {
            let index = at % size;
            at /= size;
            index
        })
        .collect();
    indices.reverse();
    indices
}
