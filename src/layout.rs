//! From a declaration to a layout that is proven: no heap can leave its chunk, no two heaps can share bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::axis::{ItemAxis, Lookup, check_item_axis};
use crate::check::{
    check, check_distinct, check_item, check_name, check_shift, check_user_data_name, non_zero, product,
};
pub use crate::clock::TIME_BITS;
use crate::clock::{Clock, check_time};
use crate::error::LayoutError;
use crate::packet::declared::{check_packets, mends_packets, wire_id};
use crate::reason;
use crate::sending::SendSpec;
use crate::spec::{AxisSpec, FieldSpec, LayoutSpec, SideSpec, SideType, Stride, TimeSpec};

/// SPEAD ID of the heap length item.
pub const HEAP_LENGTH_ID: u64 = 2;
/// Position of the first axis among the items.
pub const FIRST_AXIS: usize = 2;
/// Most item axes: the fast path holds them in an array.
pub const MAX_ITEM_AXES: usize = 8;
/// Sources: a few counters are kept for each.
const MAX_SOURCES: u64 = 1 << 20;
/// Heaps of a chunk: a bit for each is kept for every chunk of the window.
const MAX_CHUNK_HEAPS: u64 = 1 << 28;

/// Where the index of an axis comes from.
#[derive(Clone, Debug)]
pub(crate) enum IndexFrom {
    /// The timestamp.
    Time,
    /// An item: position in [`Layout::axes`].
    Item(usize),
    /// A constant of the stream: field of its user data.
    UserData(String),
}

/// An axis of the chunk, in the order of the chunk's arrays.
#[derive(Clone, Debug)]
pub(crate) struct Dimension {
    /// Name of the axis.
    pub name: String,
    /// Number of indices.
    pub size: u64,
    /// Where the index comes from.
    pub from: IndexFrom,
    /// Difference in heap index between neighbours.
    pub index_stride: u64,
}

/// A side item.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SideField {
    /// Bits to shift right by.
    pub shift: u32,
    /// What it is stored as.
    pub dtype: SideType,
}

/// A proven layout, of which streams take their [`Geometry`]. Its fields are its own: they are what is proven.
#[derive(Clone, Debug)]
pub struct Layout {
    spec: LayoutSpec,
    pub(crate) items: Vec<u64>,
    pub(crate) chunk_step: u64,
    /// How heaps tell the time.
    pub(crate) clock: Clock,
    /// Position among the items of the second that the time can have; and of the one that tells the epoch.
    pub(crate) other_times: usize,
    pub(crate) epoch_item: Option<usize>,
    /// Axes from items, in declaration order: the order in which they are checked.
    pub(crate) axes: Vec<ItemAxis>,
    /// All axes in the order of the arrays, slowest first.
    pub(crate) dimensions: Vec<Dimension>,
    /// Side items.
    pub(crate) side: Vec<SideField>,
    pub(crate) reasons: Vec<String>,
    /// Position in `dimensions` of the axis whose index is the source.
    pub(crate) source: Option<usize>,
}

impl Layout {
    /// Check a declaration and prepare it for placement.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] with the first field that cannot be.
    pub fn new(spec: LayoutSpec) -> Result<Self, LayoutError> {
        non_zero("heap_bytes", spec.heap_bytes)?;
        // Once more when it is known how many sources there are: only phases ask for that.
        check_time(&TimeSpec { phases: None, ..spec.time.clone() }, None)?;
        check_axis_names(&spec)?;
        let mut items = vec![spec.time.item.ids()[0], HEAP_LENGTH_ID];
        let CheckedAxes { declared, mut axes, reasons } = check_axes(&spec, &mut items)?;
        let side = check_side_items(&spec.side_items, &mut items)?;
        check_required_items(&spec.required_items, &mut items)?;
        check_fields(&spec.fields)?;
        check_samples_order(&spec)?;
        let (other_times, epoch_item) = add_other_items(&spec, &mut axes, &mut items);
        check_payload_item(&spec, &items)?;
        check_packets(&spec, &items)?;
        let dimensions = order_dimensions(&spec, &declared)?;
        let source = check_sources(&spec, &dimensions)?;
        let (chunk_step, clock) = check_time(&spec.time, source.map(|axis| dimensions[axis].size))?;
        check_strides(&spec, &declared)?;
        check_user_data(&spec)?;
        let layout =
            Self { spec, items, chunk_step, clock, other_times, epoch_item, axes, dimensions, side, reasons, source };
        // Proves the strides that the declaration itself gives.
        layout.resolve(&layout.user_data_of_zeros())?;
        Ok(layout)
    }

    /// The declaration.
    #[must_use]
    pub fn spec(&self) -> &LayoutSpec {
        &self.spec
    }

    /// Item IDs in the order of the callback: time, heap length, axes, side items, required items. Then come the other IDs
    /// that the time and the axes can have, and the item that tells the epoch.
    #[must_use]
    pub fn items(&self) -> &[u64] {
        &self.items
    }

    /// Whether packets from sockets are mended on their way into spead2; packets of files always are.
    #[must_use]
    pub fn mends_packets(&self) -> bool {
        mends_packets(&self.spec)
    }

    /// Names of the reject reasons, in the order of the checks.
    #[must_use]
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// Ticks of a chunk.
    #[must_use]
    pub fn chunk_step(&self) -> u64 {
        self.chunk_step
    }

    /// Heaps of a chunk.
    #[must_use]
    pub fn chunk_heaps(&self) -> u64 {
        self.dimensions.iter().map(|dimension| dimension.size).product()
    }

    /// Bytes of the side items' record.
    #[must_use]
    pub fn extra_bytes(&self) -> usize {
        self.side.iter().map(|field| field.dtype.bytes()).sum()
    }

    /// Number of sources.
    #[must_use]
    pub fn n_sources(&self) -> u64 {
        self.source.map_or(1, |axis| self.dimensions[axis].size)
    }

    /// The source of the heap in a slot of a chunk.
    #[must_use]
    pub fn source_of(&self, slot: u64) -> u64 {
        let Some(axis) = self.source.and_then(|axis| self.dimensions.get(axis)) else { return 0 };
        slot.checked_div(axis.index_stride).and_then(|index| index.checked_rem(axis.size)).unwrap_or(0)
    }

    /// Fields of the user data without which there is no geometry: those that hold an index.
    pub fn required_user_data(&self) -> impl Iterator<Item = &str> {
        self.spec.axes.iter().filter_map(|axis| axis.from_user_data.as_deref())
    }

    /// Fields of the user data that may be absent: those that hold a stride, which is dense then.
    pub fn optional_user_data(&self) -> impl Iterator<Item = &str> {
        self.spec.strides.values().filter_map(Stride::user_data).map(String::as_str)
    }

    /// Bytes from the start of one chunk's data to its end, or None if that depends on user data.
    #[must_use]
    pub fn chunk_bytes(&self) -> Option<u64> {
        if self.optional_user_data().next().is_some() {
            return None;
        }
        // The slowest axis may itself be padded: its last element has its full stride, as in a numpy array.
        self.resolve(&self.user_data_of_zeros()).ok().map(|resolved| resolved.padded_bytes)
    }

    /// User data in which every constant index is 0, and every stride dense.
    fn user_data_of_zeros(&self) -> BTreeMap<String, u64> {
        self.required_user_data().map(|name| (name.to_owned(), 0)).collect()
    }

    /// Fix what depends on a stream's user data: strides and constant indices.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] if a field is missing, an index is not on its axis, or slots would overlap or
    /// overflow.
    pub fn geometry(self: &Arc<Self>, user_data: &BTreeMap<String, u64>) -> Result<Geometry, LayoutError> {
        self.resolve(user_data).map(|resolved| Geometry { layout: Arc::clone(self), resolved })
    }

    fn resolve(&self, user_data: &BTreeMap<String, u64>) -> Result<Resolved, LayoutError> {
        let (strides, padded) = self.resolve_strides(user_data)?;
        let span = prove_disjoint(self.spec.heap_bytes, &self.dimensions, &strides)?;
        let mut base = Slot::default();
        let mut source = 0;
        for ((position, dimension), &stride) in self.dimensions.iter().enumerate().zip(&strides) {
            if let IndexFrom::UserData(name) = &dimension.from {
                let index = constant_index(dimension, name, user_data)?;
                base.index += index * dimension.index_stride;
                base.offset += index * stride;
                if self.source == Some(position) {
                    source = index;
                }
            }
        }
        Ok(Resolved { strides, span_bytes: span, padded_bytes: padded.max(span), base, source })
    }

    /// The byte stride of each axis, slowest first, and the bytes of the slowest axis with the padding after its last index.
    fn resolve_strides(&self, user_data: &BTreeMap<String, u64>) -> Result<(Vec<u64>, u64), LayoutError> {
        let mut strides = vec![0; self.dimensions.len()];
        let (mut extent, mut padded) = (self.spec.heap_bytes, 0);
        for (dimension, stride) in self.dimensions.iter().zip(&mut strides).rev() {
            *stride = match self.spec.strides.get(&dimension.name) {
                Some(Stride::Bytes(bytes)) => *bytes,
                Some(Stride::UserData(name)) => user_data.get(name).copied().unwrap_or(extent),
                None => extent,
            };
            // A single index takes no steps: its stride says nothing about the axes around it.
            padded =
                product("strides", &[*stride, dimension.size], i64::MAX as u64, "is the size of a chunk in bytes")?;
            extent = extent.max(padded);
        }
        Ok((strides, padded))
    }
}

/// The index that a stream's user data has for an axis.
fn constant_index(dimension: &Dimension, name: &str, user_data: &BTreeMap<String, u64>) -> Result<u64, LayoutError> {
    let index = *user_data
        .get(name)
        .ok_or_else(|| LayoutError::field("user_data", format!("{name:?}"), "is missing; the layout needs it"))?;
    check(index < dimension.size, || {
        LayoutError::field(
            format!("user_data[{name:?}]"),
            index,
            format!(
                "is not on axis {:?}; it must be less than {}, the size of the axis",
                dimension.name, dimension.size
            ),
        )
    })?;
    Ok(index)
}

/// The place of one heap in a chunk; or how far it is from there to the next index on an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// In heaps.
    pub index: u64,
    /// In bytes.
    pub offset: u64,
}

/// A layout with what is fixed once a stream's user data is known: strides and constant indices.
#[derive(Clone, Debug)]
pub struct Geometry {
    layout: Arc<Layout>,
    resolved: Resolved,
}

/// What depends on user data.
#[derive(Clone, Debug)]
struct Resolved {
    strides: Vec<u64>,
    span_bytes: u64,
    /// The same with the slowest axis's padding behind its last element.
    padded_bytes: u64,
    base: Slot,
    source: u64,
}

impl Geometry {
    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Byte stride of each axis, slowest first.
    #[must_use]
    pub fn strides(&self) -> &[u64] {
        &self.resolved.strides
    }

    /// Bytes from the start of the first heap to the end of the last: what a buffer must have.
    #[must_use]
    pub fn span_bytes(&self) -> u64 {
        self.resolved.span_bytes
    }

    /// Contribution of the constant indices.
    pub(crate) fn base(&self) -> Slot {
        self.resolved.base
    }

    /// The source, if a constant index is the source (else 0).
    pub(crate) fn source(&self) -> u64 {
        self.resolved.source
    }
}

/// An item ID, as messages show it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Hex(u64);

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

fn check_axis_names(spec: &LayoutSpec) -> Result<(), LayoutError> {
    check_name("time.name", &spec.time.name)?;
    for (i, axis) in spec.axes.iter().enumerate() {
        check_name(&format!("axes[{i}].name"), &axis.name)?;
    }
    check_distinct("axes", std::iter::once(&spec.time.name).chain(spec.axes.iter().map(|axis| &axis.name)))
}

/// The axes of a declaration, each of which is good by itself.
struct CheckedAxes {
    /// All of them, time first; their index strides are not known yet.
    declared: Vec<Dimension>,
    /// Those that take their index from an item.
    axes: Vec<ItemAxis>,
    /// Names of all reject reasons.
    reasons: Vec<String>,
}

/// Check all axes, and add the items that they take their indices from.
fn check_axes(spec: &LayoutSpec, items: &mut Vec<u64>) -> Result<CheckedAxes, LayoutError> {
    let dimension = |name: &str, size, from| Dimension { name: name.to_owned(), size, from, index_stride: 0 };
    let mut declared = vec![dimension(&spec.time.name, spec.time.batches, IndexFrom::Time)];
    let mut axes = Vec::new();
    let mut reasons: Vec<String> = reason::FIRST.map(str::to_owned).into();
    for (i, axis) in spec.axes.iter().enumerate() {
        let field = format!("axes[{i}]");
        if let Some(name) = &axis.from_user_data {
            let size = check_user_axis(&field, axis, name)?;
            declared.push(dimension(&axis.name, size, IndexFrom::UserData(name.clone())));
        } else {
            let (ids, checked) = check_item_axis(&field, axis, &mut reasons)?;
            declared.push(dimension(&axis.name, checked.size, IndexFrom::Item(axes.len())));
            items.push(ids[0]);
            axes.push(checked);
        }
    }
    check(axes.len() <= MAX_ITEM_AXES, || {
        LayoutError::field(
            "axes",
            axes.len(),
            format!("axes take their index from an item; there can be at most {MAX_ITEM_AXES}"),
        )
    })?;
    reasons.extend(reason::LAST.map(str::to_owned));
    Ok(CheckedAxes { declared, axes, reasons })
}

/// Check an axis whose index is field `name` of a stream's user data, and return its size.
fn check_user_axis(field: &str, axis: &AxisSpec, name: &str) -> Result<u64, LayoutError> {
    check(axis.item.is_none() && axis.present_items.is_none(), || {
        LayoutError::field(
            format!("{field}.item"),
            axis.item.or(axis.present_items.as_ref().and_then(|ids| ids.first().copied())).unwrap_or(0),
            "cannot be given together with from_user_data; give one of them",
        )
    })?;
    check_user_data_name(&format!("{field}.from_user_data"), name)?;
    let for_items = axis.shift != 0
        || axis.mask.is_some()
        || axis.step != 1
        || axis.values.is_some()
        || axis.payload_items.is_some();
    check(!for_items && axis.reject_name.is_none(), || {
        LayoutError::field(
            format!("{field}.from_user_data"),
            format!("{name:?}"),
            "cannot be given together with shift, mask, step, values, payload_items or reject_name; the field holds the index itself",
        )
    })?;
    let size = axis.size.ok_or_else(|| {
        LayoutError::field(format!("{field}.size"), "is absent;", "say how many indices from_user_data can have")
    })?;
    Ok(non_zero(&format!("{field}.size"), size)?.get())
}

fn check_side_items(specs: &[SideSpec], items: &mut Vec<u64>) -> Result<Vec<SideField>, LayoutError> {
    let mut side = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let field = format!("side_items[{i}]");
        check_name(&format!("{field}.name"), &spec.name)?;
        check_item(&format!("{field}.item"), spec.item)?;
        let shift = check_shift(&format!("{field}.shift"), spec.shift)?;
        items.push(wire_id(spec.item));
        side.push(SideField { shift, dtype: spec.dtype });
    }
    check_distinct("side_items", specs.iter().map(|spec| &spec.name))?;
    Ok(side)
}

fn check_required_items(required: &[u64], items: &mut Vec<u64>) -> Result<(), LayoutError> {
    for (i, &id) in required.iter().enumerate() {
        check_item(&format!("required_items[{i}]"), id)?;
        items.push(id);
    }
    check_distinct("required_items", required.iter().map(|id| Hex(*id)))
}

fn check_fields(fields: &[FieldSpec]) -> Result<(), LayoutError> {
    for (i, field) in fields.iter().enumerate() {
        check_name(&format!("fields[{i}].name"), &field.name)?;
        for &size in &field.shape {
            non_zero(&format!("fields[{:?}].shape", field.name), size)?;
        }
    }
    check_distinct("fields", fields.iter().map(|field| &field.name))
}

/// Check the names of a heap's own axes, and the order of samples.
fn check_samples_order(spec: &LayoutSpec) -> Result<(), LayoutError> {
    for (i, name) in spec.heap_axes.iter().enumerate() {
        check_name(&format!("heap_axes[{i}]"), name)?;
    }
    let all = || std::iter::once(&spec.time.name).chain(spec.axes.iter().map(|axis| &axis.name)).chain(&spec.heap_axes);
    check_distinct("heap_axes", all())?;
    let given = spec.heap_shape.as_ref().map_or(0, Vec::len);
    check(spec.heap_axes.is_empty() || spec.heap_axes.len() == given, || {
        let problem = format!("is not the number of dimensions of heap_shape, which is {given}; name each of them");
        LayoutError::field("heap_axes", spec.heap_axes.len(), problem)
    })?;
    let Some(order) = &spec.samples_order else { return Ok(()) };
    check_distinct("samples_order", order)?;
    let (mut wanted, mut named): (Vec<_>, Vec<_>) = (all().collect(), order.iter().collect());
    wanted.sort();
    named.sort();
    check(wanted == named, || {
        let names: Vec<_> = all().collect();
        let problem = format!("must name all axes, and those of heap_axes: {names:?}, each once");
        LayoutError::field("samples_order", format!("{order:?}"), problem)
    })
}

/// What a heap's data are has no value of its own: it can be none of the items that have.
fn check_payload_item(spec: &LayoutSpec, items: &[u64]) -> Result<(), LayoutError> {
    if let Some(id) = spec.payload_item {
        check_item("payload_item", id)?;
        check(!spec.required_items.contains(&id), || {
            let problem = "is the payload_item: its value is an address, which placement cannot see, so every heap would \
                           be rejected; leave it out of required_items";
            LayoutError::field("required_items", format!("{id:#x}"), problem)
        })?;
        check(!items.contains(&id), || {
            let problem = "is an item whose value the layout uses; data have none";
            LayoutError::field("payload_item", format!("{id:#x}"), problem)
        })?;
    }
    spec.send.as_ref().map_or(Ok(()), SendSpec::check)
}

/// Add the other IDs of items that can have several, and the item that tells the epoch. Returns where those of the time
/// begin, and where that item is.
fn add_other_items(spec: &LayoutSpec, axes: &mut [ItemAxis], items: &mut Vec<u64>) -> (usize, Option<usize>) {
    let other_times = items.len();
    items.extend(&spec.time.item.ids()[1..]);
    let declared = spec.axes.iter().filter(|axis| axis.from_user_data.is_none());
    for (axis, checked) in declared.zip(axes) {
        if let Some(ids) = &axis.present_items {
            checked.lookup = Lookup::Present { others: items.len() };
            items.extend(&ids[1..]);
        }
    }
    let epoch_item = spec.time.epoch_item.map(|id| {
        items.push(id);
        items.len() - 1
    });
    (other_times, epoch_item)
}

fn names(dimensions: &[Dimension]) -> Vec<&String> {
    dimensions.iter().map(|dimension| &dimension.name).collect()
}

/// The axes in the order of the chunk's arrays.
fn order_dimensions(spec: &LayoutSpec, declared: &[Dimension]) -> Result<Vec<Dimension>, LayoutError> {
    let names = names(declared);
    let order = spec.order.as_ref().map_or(names.clone(), |order| order.iter().collect());
    check_distinct("order", &order)?;
    let mut dimensions = Vec::new();
    for name in &order {
        let dimension = declared.iter().find(|dimension| dimension.name == **name).ok_or_else(|| {
            LayoutError::field("order", format!("{name:?}"), format!("is not an axis; the axes are {names:?}"))
        })?;
        dimensions.push(dimension.clone());
    }
    for name in &names {
        check(order.contains(name), || {
            LayoutError::field(
                "order",
                format!("{order:?}"),
                format!("does not name axis {name:?}; it must name every axis"),
            )
        })?;
    }
    let all: Vec<u64> = dimensions.iter().map(|dimension| dimension.size).collect();
    let heaps = product("axes", &all, MAX_CHUNK_HEAPS, "is the number of heaps in a chunk")?;
    product("heap_bytes x axes", &[spec.heap_bytes, heaps], i64::MAX as u64, "is the size of a chunk in bytes")?;
    let mut index_stride = 1;
    for dimension in dimensions.iter_mut().rev() {
        dimension.index_stride = index_stride;
        index_stride *= dimension.size;
    }
    Ok(dimensions)
}

fn check_strides(spec: &LayoutSpec, declared: &[Dimension]) -> Result<(), LayoutError> {
    let names = names(declared);
    for (name, stride) in &spec.strides {
        check(names.contains(&name), || {
            LayoutError::field("strides", format!("{name:?}"), format!("is not an axis; the axes are {names:?}"))
        })?;
        if let Some(from) = stride.user_data() {
            check_user_data_name(&format!("strides[{name:?}]"), from)?;
        }
    }
    Ok(())
}

/// Check that no field of the user data is read twice.
fn check_user_data(spec: &LayoutSpec) -> Result<(), LayoutError> {
    let mut fields = BTreeSet::new();
    let indices = spec.axes.iter().filter_map(|axis| axis.from_user_data.as_ref());
    for name in indices.chain(spec.strides.values().filter_map(Stride::user_data)) {
        check(fields.insert(name), || {
            LayoutError::field(
                "user_data",
                format!("{name:?}"),
                "is read by two of from_user_data and strides; each needs a field of its own",
            )
        })?;
    }
    Ok(())
}

fn check_sources(spec: &LayoutSpec, dimensions: &[Dimension]) -> Result<Option<usize>, LayoutError> {
    let source = match &spec.sources {
        None => None,
        Some(name) => {
            let others = || {
                let others = dimensions.iter().filter(|dimension| !matches!(dimension.from, IndexFrom::Time));
                let names: Vec<_> = others.map(|dimension| &dimension.name).collect();
                if names.is_empty() { "there is none".to_owned() } else { format!("one of {names:?}") }
            };
            let found = dimensions
                .iter()
                .position(|dimension| dimension.name == *name && !matches!(dimension.from, IndexFrom::Time));
            Some(found.ok_or_else(|| {
                LayoutError::field(
                    "sources",
                    format!("{name:?}"),
                    format!("must be an axis other than time: {}", others()),
                )
            })?)
        }
    };
    let n_sources = source.map_or(1, |axis| dimensions[axis].size);
    check(n_sources <= MAX_SOURCES, || {
        LayoutError::field("sources", n_sources, format!("are too many; there can be at most {MAX_SOURCES}"))
    })?;
    if let Some(labels) = &spec.source_labels {
        check(labels.len() as u64 == n_sources, || {
            LayoutError::field(
                "source_labels",
                labels.len(),
                format!("labels, but there are {n_sources} sources; give one for each"),
            )
        })?;
        check_distinct("source_labels", labels)?;
    }
    Ok(source)
}

/// Prove that slots do not overlap, and return the bytes from the first slot's start to the last one's end.
///
/// Sorted by stride, each axis must step over all that the axes with smaller strides span. That is sufficient:
/// two heaps that differ first on some axis (counting from the largest stride) are at least one such step apart,
/// less what the remaining axes can make up for, which is less than the step. (It refuses some
/// interleavings that would be disjoint, which nobody has asked for.)
fn prove_disjoint(heap_bytes: u64, dimensions: &[Dimension], strides: &[u64]) -> Result<u64, LayoutError> {
    // Of equal strides (0, say) that of the fastest axis is found wrong: the default ones of the others follow from it.
    let in_use = |(dimension, _): &(&Dimension, &u64)| dimension.size > 1;
    let mut by_stride: Vec<_> = dimensions.iter().zip(strides).rev().filter(in_use).collect();
    by_stride.sort_by_key(|(_, stride)| **stride);
    let mut extent = heap_bytes;
    for (dimension, &stride) in by_stride {
        let field = || format!("strides[{:?}]", dimension.name);
        check(stride >= extent, || {
            LayoutError::field(field(), stride, format!("makes heaps overlap; it must be at least {extent} bytes"))
        })?;
        extent = (dimension.size - 1)
            .checked_mul(stride)
            .and_then(|bytes| bytes.checked_add(extent))
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or_else(|| {
                LayoutError::field(field(), stride, "makes the chunk larger than memory can be; give a smaller stride")
            })?;
    }
    Ok(extent)
}
