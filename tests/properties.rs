//! Placement against a slow, obvious reference: random layouts, random heaps, through the C function pointer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;
use speadrx::abi::ChunkPlaceData;
use speadrx::callback::{Context, Stats};
use speadrx::error::LayoutError;
use speadrx::group::Group;
use speadrx::layout::{Geometry, Layout};
use speadrx::ledger::Snapshot;
use speadrx::spec::{
    Align, AxisSpec, LayoutSpec, Origin, Phases, Shown, SideSpec, SideType, Stride, TimeItem, TimeSpec,
};
use speadrx::sync::Arc;
use speadrx::timeline::{self, Sighting, TimeRules};

mod senders;

use senders::Receiver;

const CASES: u32 = 2500;
const HEAPS: usize = 64;
const STATS_BASE: usize = 5;
const TIME: u64 = 0x1600;

/// Number of indices of an axis.
fn size_of(axis: &AxisSpec) -> u64 {
    let listed = axis.values.as_ref().or(axis.present_items.as_ref()).map(|list| list.len() as u64);
    axis.size.or(listed).unwrap_or(0)
}

/// Position and value of the only one of these items that a heap has.
fn only_present(ids: &[u64], items: &HashMap<u64, i64>) -> Option<(usize, i64)> {
    let present = |id: &u64| items.get(id).copied().filter(|&value| value >= 0);
    let found: Vec<_> = ids.iter().enumerate().filter_map(|(i, id)| Some((i, present(id)?))).collect();
    (found.len() == 1).then(|| found[0])
}

/// What the reference says of a heap.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Rejected(String, Option<usize>),
    Placed {
        chunk: i64,
        /// Chunks and batches behind the newest; None if its chunk has gone.
        lateness: Option<(usize, u64)>,
        is_duplicate: bool,
        index: usize,
        offset: usize,
        extra: Vec<u8>,
        source: usize,
        batch: i128,
        time: i128,
    },
}

/// Placement as design says it: one rule after the other, in numbers that cannot overflow.
///
/// What time it is, it asks a timeline, which other tests judge: this one shows that the fast path needs not to ask.
struct Reference<'a> {
    spec: &'a LayoutSpec,
    user_data: &'a BTreeMap<String, u64>,
    receiver: Receiver,
    newest_batch: i128,
    seen: BTreeSet<(i128, usize)>,
    /// Of each source, heaps that were new, and duplicates since the last of them.
    runs: Vec<(u64, u64)>,
    slots_of_source: u64,
    begins_again: bool,
}

impl Reference<'_> {
    fn axes(&self) -> Vec<(String, i128)> {
        let mut all = vec![(self.spec.time.name.clone(), i128::from(self.spec.time.batches))];
        all.extend(self.spec.axes.iter().map(|axis| (axis.name.clone(), i128::from(size_of(axis)))));
        match &self.spec.order {
            None => all,
            Some(order) => order.iter().map(|n| all.iter().find(|(name, _)| name == n).unwrap().clone()).collect(),
        }
    }

    /// The index on an axis; None if the value is not on it.
    fn index(&self, axis: &AxisSpec, items: &HashMap<u64, i64>) -> Option<i128> {
        if let Some(ids) = &axis.present_items {
            let (position, _) = only_present(ids, items)?;
            return Some(position as i128);
        }
        let Some(item) = axis.item else { return Some(self.user_data[axis.from_user_data.as_ref().unwrap()].into()) };
        let value = u64::try_from(items.get(&item).copied().unwrap_or(-1)).ok()?;
        let value = (value >> axis.shift) & axis.mask.unwrap_or(u64::MAX);
        match &axis.values {
            Some(values) => values.iter().position(|&v| v == value).map(|i| i as i128),
            None => (value % axis.step == 0 && value / axis.step < axis.size.unwrap())
                .then(|| i128::from(value / axis.step)),
        }
    }

    /// The timestamp, or the name of the reason for which the heap is rejected before its axes are looked at.
    fn stamp(&self, items: &HashMap<u64, i64>) -> Result<i128, &'static str> {
        let spec = self.spec;
        let get = |id: u64| items.get(&id).copied().unwrap_or(-1);
        let needed = spec.axes.iter().filter_map(|axis| axis.item).chain(spec.required_items.iter().copied());
        let time = only_present(spec.time.item.ids(), items);
        if i128::from(get(2)) != i128::from(spec.heap_bytes) || needed.into_iter().any(|id| get(id) < 0) {
            return Err("metadata_heaps");
        }
        let (_, value) = time.ok_or("metadata_heaps")?;
        let stamp = i128::from((value as u64 >> spec.time.shift) & spec.time.mask.unwrap_or(u64::MAX));
        if stamp >= 1 << spec.time.bits.unwrap_or(48) {
            return Err("bad_timestamp_heaps");
        }
        Ok(stamp)
    }

    /// Heap index and byte offset of indices on the axes.
    fn place(&self, indices: &HashMap<String, i128>) -> (i128, i128) {
        let (mut index, mut offset) = (0, 0);
        let mut stride = i128::from(self.spec.heap_bytes);
        let mut index_stride = 1;
        for (name, size) in self.axes().iter().rev() {
            stride = match self.spec.strides.get(name) {
                Some(Stride::Bytes(bytes)) => i128::from(*bytes),
                Some(Stride::UserData(field)) => self.user_data.get(field).map_or(stride, |&v| i128::from(v)),
                None => stride,
            };
            index += indices[name] * index_stride;
            offset += indices[name] * stride;
            index_stride *= size;
            stride *= size;
        }
        (index, offset)
    }

    fn extra(&self, items: &HashMap<u64, i64>) -> Vec<u8> {
        let mut extra = Vec::new();
        for side in &self.spec.side_items {
            let value = items.get(&side.item).copied().unwrap_or(-1).max(0) as u64 >> side.shift;
            extra.extend_from_slice(&value.to_le_bytes()[..side.dtype.bytes()]);
        }
        extra
    }

    fn judge(&mut self, items: &HashMap<u64, i64>) -> Verdict {
        let spec = self.spec;
        let source = match spec.axes.iter().find(|axis| Some(&axis.name) == spec.sources.as_ref()) {
            Some(axis) => self.index(axis, items).map(|index| usize::try_from(index).unwrap()),
            None => Some(0),
        };
        let reject = |name: &str| Verdict::Rejected(name.to_owned(), source);
        let stamp = match self.stamp(items) {
            Ok(stamp) => stamp,
            Err(name) => return reject(name),
        };
        let stamp = u64::try_from(stamp).unwrap();
        let aligned = self.receiver.timeline.is_aligned(stamp);
        if !aligned && (source.is_none() || spec.axes.iter().any(|axis| self.index(axis, items).is_none())) {
            return reject("bad_timestamp_heaps");
        }
        let mut indices = HashMap::new();
        for axis in &spec.axes {
            let index = self.index(axis, items);
            let Some(index) = index else {
                return reject(&axis.reject_name.clone().unwrap_or(format!("bad_{}_heaps", axis.name)));
            };
            indices.insert(axis.name.clone(), index);
        }
        let source = source.unwrap_or(0);
        indices.insert(spec.time.name.clone(), 0);
        let slot = u64::try_from(self.place(&indices).0).unwrap();
        let heap = Sighting { source: source as u64, stamp, slot };
        match self.receiver.place(heap, 0) {
            Ok((chunk, time)) => self.accept(items, indices, heap, chunk, time),
            Err(timeline::Verdict::Misaligned) => reject("bad_timestamp_heaps"),
            Err(timeline::Verdict::Implausible) => reject("implausible_timestamp_heaps"),
            Err(timeline::Verdict::Backward) => reject("backward_timestamp_heaps"),
            Err(timeline::Verdict::Place(_)) => unreachable!("it is placed"),
        }
    }

    /// Place a heap whose time is good, and note what it changes.
    fn accept(
        &mut self,
        items: &HashMap<u64, i64>,
        mut indices: HashMap<String, i128>,
        heap: Sighting,
        chunk: i128,
        time: i128,
    ) -> Verdict {
        let spec = self.spec;
        let in_chunk = (time / i128::from(spec.time.step)).rem_euclid(i128::from(spec.time.batches));
        indices.insert(spec.time.name.clone(), in_chunk);
        let (index, offset) = self.place(&indices);
        let batch = chunk * i128::from(spec.time.batches) + in_chunk;
        self.newest_batch = self.newest_batch.max(batch);
        let index = usize::try_from(index).unwrap();
        let lateness = self.lateness(chunk, batch);
        let is_duplicate = self.is_duplicate(chunk, index);
        if is_duplicate {
            self.repeat(heap);
        } else {
            let run = &mut self.runs[heap.source as usize];
            *run = (run.0 + 1, 0);
        }
        let source = spec.sources.as_ref().map_or(0, |name| indices[name]);
        Verdict::Placed {
            chunk: i64::try_from(chunk).unwrap(),
            lateness,
            is_duplicate,
            index,
            offset: usize::try_from(offset).unwrap(),
            extra: self.extra(items),
            source: usize::try_from(source).unwrap(),
            batch,
            time,
        }
    }

    /// Chunks and batches behind the newest, which the heap itself may be; None if its chunk has gone.
    fn lateness(&self, chunk: i128, batch: i128) -> Option<(usize, u64)> {
        let chunks = (self.receiver.newest().unwrap() - chunk).try_into().unwrap();
        let batches = u64::try_from(self.newest_batch - batch).unwrap();
        (chunk >= self.receiver.window_first()).then_some((chunks, batches))
    }

    /// Whether this slot was filled already, while its chunk is in the window.
    fn is_duplicate(&mut self, chunk: i128, index: usize) -> bool {
        let first = self.receiver.window_first();
        self.seen.retain(|&(chunk, _)| chunk >= first);
        chunk >= first && !self.seen.insert((chunk, index))
    }

    /// A heap was there already: if that happens more often than there are slots, its source has begun again.
    fn repeat(&mut self, heap: Sighting) {
        let (new, duplicates) = &mut self.runs[heap.source as usize];
        *duplicates += 1;
        if self.begins_again || *duplicates > self.slots_of_source.min(*new) {
            self.begins_again |= self.receiver.repeat(heap);
        }
    }
}

fn axis(i: usize) -> impl Strategy<Value = AxisSpec> {
    let plain = (1_u64..6, select(vec![1_u64, 2, 3, 7, 64, 100]), 0_u64..6, any::<bool>());
    let kind = prop_oneof![
        4 => plain.prop_map(|(size, step, shift, masked)| (Some(size), None, step, shift, masked, false)),
        2 => (proptest::collection::btree_set(0_u64..1 << 20, 1..6), 0_u64..4)
            .prop_map(|(values, shift)| (None, Some(values.into_iter().rev().collect()), 1, shift, false, false)),
        1 => (1_u64..4).prop_map(|size| (Some(size), None, 1, 0, false, true)),
    ];
    let present = prop_oneof![9 => Just(0_u64), 1 => 1_u64..5];
    // Two axes in three have an item of their own; the others share one, and differ in its bits.
    (kind, select(vec![true, true, false]), present).prop_map(move |(kind, own, present)| {
        if present > 0 {
            return by_presence(i, present);
        }
        let (size, values, step, shift, masked, user) = kind;
        AxisSpec {
            name: format!("axis{i}"),
            payload_items: None,
            present_items: None,
            item: (!user).then_some(if own { 0x4100 + i as u64 } else { 0x3101 }),
            shift,
            mask: masked.then(|| ((size.unwrap_or(1) * step).next_power_of_two() * 2) - 1),
            step,
            size,
            values,
            from_user_data: user.then(|| format!("index{i}")),
            reject_name: (i == 1 && !user).then(|| "bad_feng_id_heaps".to_owned()),
        }
    })
}

/// An axis that goes by which of so many items is present.
fn by_presence(i: usize, size: u64) -> AxisSpec {
    AxisSpec {
        name: format!("axis{i}"),
        payload_items: None,
        present_items: Some((0..size).map(|k| 0x4500 + 16 * i as u64 + k).collect()),
        item: None,
        shift: 0,
        mask: None,
        step: 1,
        size: None,
        values: None,
        from_user_data: None,
        reject_name: None,
    }
}

/// Make the time of a layout one that is told in some unusual way, or leave it as it is.
fn unusual(time: &mut TimeSpec, sources: Option<u64>, how: u64, value: u64) {
    if how % 2 == 0 {
        return;
    }
    let pick = |shift: u32, n: u64| (how >> shift) % n;
    let aligns = [Align::Reject, Align::Reject, Align::Floor, Align::Nearest];
    time.align = aligns[pick(1, 4) as usize];
    time.origin =
        [None, Some(Origin::At(value % (5 * time.step))), Some(Origin::Shown(Shown::First))][pick(3, 3) as usize];
    let is_short = time.step * time.batches <= 1 << 36;
    time.bits = [None, Some(48), Some(if is_short { 40 } else { 50 }), Some(52)][pick(5, 4) as usize];
    time.shift = pick(7, 3) * 5;
    time.mask = (pick(9, 3) == 0).then(|| (1 << time.bits.unwrap_or(48)) - 1);
    if pick(11, 3) == 0 {
        time.item = TimeItem::OneOf(vec![TIME, TIME + 1, TIME + 2]);
    }
    if let Some(sources) = sources {
        let phase = |k: u64| value.wrapping_mul(k.wrapping_mul(2) + 1) % (2 * time.step);
        time.phases = match pick(13, 3) {
            1 => Some(Phases::Listed((0..sources).map(phase).collect())),
            2 if time.align == Align::Reject => Some(Phases::Shown(Shown::First)),
            _ => None,
        };
    }
}

/// The names of all axes in some order.
fn order_of(axes: &[AxisSpec], shuffle: &[Index]) -> Vec<String> {
    let mut order: Vec<_> = std::iter::once("time".to_owned()).chain(axes.iter().map(|a| a.name.clone())).collect();
    for (i, pick) in shuffle.iter().enumerate().take(order.len()) {
        let other = pick.index(order.len());
        order.swap(i, other);
    }
    order
}

fn side_item((i, (item, shift, dtype)): (usize, (u64, u64, Index))) -> SideSpec {
    let types = [SideType::U8, SideType::U16, SideType::U32, SideType::U64];
    SideSpec { name: format!("side{i}"), item: 0x3200 + item, shift: shift * 5, dtype: types[dtype.index(types.len())] }
}

/// Leave a gap behind what lies within one axis, unless `how` is 0: as bytes, or through user data.
fn pad(spec: &mut LayoutSpec, user_data: &mut BTreeMap<String, u64>, (which, gap, how): (Index, u64, u8)) {
    if how == 0 {
        return;
    }
    let order = spec.order.clone().unwrap();
    let at = which.index(order.len());
    let size = |name: &String| match spec.axes.iter().find(|axis| axis.name == *name) {
        Some(axis) => size_of(axis),
        None => spec.time.batches,
    };
    let stride = order[at + 1..].iter().map(size).product::<u64>() * spec.heap_bytes + gap;
    if how == 1 {
        spec.strides.insert(order[at].clone(), Stride::Bytes(stride));
    } else {
        spec.strides.insert(order[at].clone(), Stride::UserData("stride".to_owned()));
        user_data.insert("stride".to_owned(), stride);
    }
}

fn layout() -> impl Strategy<Value = (LayoutSpec, BTreeMap<String, u64>, u64)> {
    let axes = (0_usize..=4).prop_flat_map(|n| (0..n).map(axis).collect::<Vec<_>>());
    // The largest makes chunks of 2^46 ticks, the longest that there can be.
    let steps = vec![1_u64, 2, 3, 4096, 4095, 1 << 21, 1_000_003, (1 << 40) + 15, 1 << 44];
    (
        (1_u64..40, select(steps), 1_u64..5, any::<bool>(), any::<(u64, u64)>()),
        axes,
        any::<[Index; 6]>(),
        vec((0_u64..3, 0_u64..9, any::<Index>()), 0..4),
        vec(0_u64..3, 0..3),
        (any::<Index>(), 0_u64..50, 0_u8..3),
        1_u64..5,
        any::<[u64; 6]>(),
    )
        .prop_map(
            |(
                (heap_bytes, step, batches, mask, (how, value)),
                axes,
                shuffle,
                side,
                required,
                padding,
                window,
                user,
            )| {
                let mask = mask && step.is_power_of_two();
                let mut time = TimeSpec {
                    name: "time".to_owned(),
                    item: TimeItem::One(TIME),
                    step,
                    batches,
                    tick_rate: None,
                    align: if mask { Align::Mask } else { Align::Reject },
                    origin: None,
                    bits: None,
                    shift: 0,
                    mask: None,
                    phases: None,
                    epoch: None,
                    epoch_item: None,
                };
                let sources = axes.first().map(|axis| axis.name.clone());
                unusual(&mut time, axes.first().map(size_of), how, value);
                let mut user_data: BTreeMap<_, _> = axes
                    .iter()
                    .zip(user)
                    .filter_map(|(axis, value)| Some((axis.from_user_data.clone()?, value % axis.size.unwrap())))
                    .collect();
                let required: BTreeSet<u64> = required.iter().map(|item| 0x4200 + item).collect();
                let mut spec = LayoutSpec {
                    name: String::new(),
                    heap_bytes,
                    payload_item: None,
                    packets: None,
                    order: Some(order_of(&axes, &shuffle)),
                    sources,
                    source_labels: None,
                    required_items: required.into_iter().collect(),
                    dtype: None,
                    heap_shape: None,
                    fields: Vec::new(),
                    heap_axes: Vec::new(),
                    samples_order: None,
                    samples_per_heap: None,
                    strides: BTreeMap::new(),
                    time,
                    axes,
                    side_items: side.into_iter().enumerate().map(side_item).collect(),
                    send: None,
                };
                pad(&mut spec, &mut user_data, padding);
                (spec, user_data, window)
            },
        )
}

/// How one heap differs from a good one at the front of time.
#[derive(Clone, Debug)]
struct HeapSeed {
    ahead: i64,
    time_fault: u8,
    length_fault: u8,
    indices: [Index; 4],
    axis_faults: [u8; 4],
    other_faults: u8,
    noise: i64,
}

fn heap() -> impl Strategy<Value = HeapSeed> {
    let fault = || prop_oneof![12 => Just(0_u8), 1 => 1_u8..8];
    let ahead = prop_oneof![12 => -4_i64..6, 2 => -30_i64..30, 1 => -1000_i64..1000];
    (ahead, fault(), fault(), any::<[Index; 4]>(), [fault(), fault(), fault(), fault()], fault(), any::<i64>())
        .prop_map(|(ahead, time_fault, length_fault, indices, axis_faults, other_faults, noise)| HeapSeed {
            ahead,
            time_fault,
            length_fault,
            indices,
            axis_faults,
            other_faults,
            noise,
        })
}

fn spoil(value: i64, fault: u8, noise: i64) -> i64 {
    match fault {
        1 => -1,
        2 => value.wrapping_add(1),
        3 => value.wrapping_sub(1),
        4 => noise,
        5 => noise & ((1 << 48) - 1),
        6 => i64::MAX,
        7 => 1 << 48,
        _ => value,
    }
}

fn items(spec: &LayoutSpec, front: i128, seed: &HeapSeed) -> HashMap<u64, i64> {
    let mut items = HashMap::new();
    let mut source = 0;
    for ((axis, pick), &fault) in spec.axes.iter().zip(&seed.indices).zip(&seed.axis_faults) {
        if Some(&axis.name) == spec.sources.as_ref() {
            source = pick.index(size_of(axis) as usize);
        }
        if let Some(ids) = &axis.present_items {
            let at = pick.index(ids.len());
            items.insert(ids[at], spoil(seed.noise & i64::MAX, fault & 1, 0));
            if fault & 2 != 0 {
                items.insert(ids[(at + 1) % ids.len()], 7);
            }
            continue;
        }
        let Some(id) = axis.item else { continue };
        let value = match &axis.values {
            Some(values) => values[pick.index(values.len())],
            None => pick.index(axis.size.unwrap() as usize) as u64 * axis.step,
        };
        let value = spoil((value << axis.shift) as i64, fault, seed.noise);
        items.entry(id).and_modify(|old| *old |= value).or_insert(value);
    }
    let time = &spec.time;
    let step = i128::from(time.step);
    let phase = match &time.phases {
        Some(Phases::Listed(phases)) => i128::from(phases[source] - phases.iter().min().unwrap()),
        Some(Phases::Shown(_)) => source as i128 * 1_000_003 % step,
        None => 0,
    };
    let beyond = if time.align == Align::Reject { 0 } else { i128::from(seed.noise as u64) % step };
    let stamp = (front + i128::from(seed.ahead) * step + phase + beyond).rem_euclid(1 << time.bits.unwrap_or(48));
    let around = if time.mask.is_some() { seed.noise & i64::MAX } else { 0 };
    let value = i64::try_from(stamp).unwrap() << time.shift;
    let field = time.mask.map_or(0, |mask| (mask << time.shift) as i64);
    let value = spoil((around & !field) | value, seed.time_fault, seed.noise);
    let ids = time.item.ids();
    items.insert(ids[seed.indices[0].index(ids.len())], value);
    if seed.other_faults == 7 {
        items.insert(ids[0], 5);
    }
    items.insert(2, spoil(spec.heap_bytes as i64, seed.length_fault, seed.noise));
    for (i, side) in spec.side_items.iter().enumerate() {
        items.insert(side.item, seed.noise.rotate_left(i as u32 * 7));
    }
    for &id in &spec.required_items {
        items.insert(id, spoil(3, seed.other_faults, seed.noise));
    }
    items
}

/// One stream, the reference of it, and what its ledger should say.
struct Comparison<'a> {
    layout: &'a Layout,
    geometry: &'a Geometry,
    context: Context,
    reference: Reference<'a>,
    expected: Snapshot,
    batch_stats: Vec<u64>,
    /// Offset of each heap index.
    offsets: BTreeMap<usize, usize>,
    /// The newest time that was placed.
    front: i128,
    newest_chunk: i64,
    /// Of each source.
    newest_batch: Vec<i128>,
}

const CANARY: u8 = 0xa5;

/// What a ledger holds before the first heap.
fn nothing_yet(n_sources: usize, n_reasons: usize, window: u64) -> Snapshot {
    Snapshot {
        placed: vec![0; n_sources],
        duplicates: vec![0; n_sources],
        too_old: vec![0; n_sources],
        newest: vec![-1; n_sources],
        newest_epoch: vec![0; n_sources],
        rejected: vec![vec![0; n_sources + 1]; n_reasons],
        late_batches: vec![0; 33],
        late_chunks: vec![0; window as usize + 1],
        after_end: 0,
    }
}

impl<'a> Comparison<'a> {
    fn new(
        geometry: &'a Geometry,
        user_data: &'a BTreeMap<String, u64>,
        window: u64,
        resync: bool,
    ) -> Result<Self, TestCaseError> {
        let layout = geometry.layout();
        let spec = layout.spec();
        let stats = Stats { base: STATS_BASE, count: layout.reasons().len() };
        // A window of so long chunks may be refused; then one chunk still fits.
        let make = |window| {
            let rules = TimeRules::new(layout, window, window, None, resync)?;
            Context::new(geometry, window, Some(stats), Group::new(rules), None)
        };
        let (window, context) = match make(window) {
            Ok(context) => (window, context),
            Err(_) => (1, make(1).map_err(|error| TestCaseError::fail(error.to_string()))?),
        };
        let n_sources = layout.n_sources() as usize;
        let reference = Reference {
            spec,
            user_data,
            receiver: Receiver::new(layout, window, 1, resync, false),
            newest_batch: 0,
            seen: BTreeSet::new(),
            runs: vec![(0, 0); n_sources],
            slots_of_source: window * layout.chunk_heaps() / layout.n_sources(),
            begins_again: false,
        };
        Ok(Self {
            layout,
            geometry,
            expected: nothing_yet(n_sources, layout.reasons().len(), window),
            context,
            reference,
            batch_stats: vec![0; STATS_BASE + layout.reasons().len() + Stats::MORE + 1],
            offsets: BTreeMap::new(),
            front: 0,
            newest_chunk: 0,
            newest_batch: vec![-1; n_sources],
        })
    }

    /// Give a heap to both, and compare what they say.
    fn feed(&mut self, items: &HashMap<u64, i64>) -> Result<(), TestCaseError> {
        let row: Vec<i64> = self.layout.items().iter().map(|id| items.get(id).copied().unwrap_or(-1)).collect();
        let mut extra = vec![CANARY; self.layout.extra_bytes() + 1];
        let mut data = ChunkPlaceData {
            packet: std::ptr::null(),
            packet_size: 0,
            items: row.as_ptr(),
            chunk_id: -1,
            heap_index: 0,
            heap_offset: 0,
            batch_stats: self.batch_stats.as_mut_ptr(),
            extra: extra.as_mut_ptr(),
            extra_offset: 0,
            extra_size: 0,
        };
        // SAFETY: function and context belong together, and every pointer is to what the contract asks for.
        unsafe {
            self.context.function()(&raw mut data, ChunkPlaceData::SIZE, self.context.argument());
        }
        let verdict = self.reference.judge(items);
        match &verdict {
            Verdict::Rejected(reason, source) => {
                prop_assert_eq!(data.chunk_id, -1, "{:?}", verdict);
                let reason = self.layout.reasons().iter().position(|name| name == reason).unwrap();
                self.expected.rejected[reason][source.unwrap_or(self.layout.n_sources() as usize)] += 1;
            }
            Verdict::Placed { .. } => self.compare_placed(&data, &extra, &verdict)?,
        }
        prop_assert_eq!(extra.last(), Some(&CANARY));
        self.expected.newest_epoch = self.context.ledger().snapshot().newest_epoch; // told by the timestamps
        prop_assert_eq!(&self.context.ledger().snapshot(), &self.expected, "after {:?}", items);
        Ok(())
    }

    fn compare_placed(&mut self, data: &ChunkPlaceData, extra: &[u8], verdict: &Verdict) -> Result<(), TestCaseError> {
        let &Verdict::Placed { chunk, lateness, is_duplicate, index, offset, extra: ref record, source, batch, time } =
            verdict
        else {
            unreachable!("only called for placed heaps")
        };
        // What has gone is not for spead2 to judge.
        let told = if lateness.is_some() { (chunk, index, offset) } else { (-1, 0, 0) };
        prop_assert_eq!((data.chunk_id, data.heap_index, data.heap_offset), told);
        if !record.is_empty() && lateness.is_some() {
            prop_assert_eq!((data.extra_offset, data.extra_size), (index * record.len(), record.len()));
            prop_assert_eq!(&extra[..record.len()], &record[..]);
        }
        self.expected.placed[source] += 1;
        match lateness {
            None => {
                *self.expected.late_chunks.last_mut().unwrap() += 1;
                self.expected.too_old[source] += 1;
            }
            Some((chunks, batches)) => {
                self.expected.late_chunks[chunks] += 1;
                if chunks == 0 {
                    self.expected.late_batches[if batches == 0 { 0 } else { batches.ilog2() as usize + 1 }] += 1;
                }
                self.expected.duplicates[source] += u64::from(is_duplicate);
            }
        }
        if batch > self.newest_batch[source] {
            self.newest_batch[source] = batch;
            self.expected.newest[source] = i64::try_from(time).unwrap();
        }
        if chunk >= self.newest_chunk {
            self.newest_chunk = chunk;
            self.front = time;
        }
        prop_assert!((index as u64) < self.layout.chunk_heaps());
        prop_assert!(offset as u64 + self.layout.spec().heap_bytes <= self.geometry.span_bytes());
        prop_assert_eq!(*self.offsets.entry(index).or_insert(offset), offset);
        Ok(())
    }

    /// Check what no single heap shows.
    fn finish(&self) -> Result<(), TestCaseError> {
        let heap_bytes = self.layout.spec().heap_bytes as usize;
        let mut offsets: Vec<_> = self.offsets.values().collect();
        offsets.sort();
        prop_assert!(offsets.windows(2).all(|pair| pair[0] + heap_bytes <= *pair[1]), "heaps overlap");
        let rejected: Vec<u64> = self.expected.rejected.iter().map(|row| row.iter().sum()).collect();
        prop_assert_eq!(&self.batch_stats[STATS_BASE..][..rejected.len()], &rejected[..]);
        prop_assert!(self.batch_stats[..STATS_BASE].iter().all(|&count| count == 0));
        // No control heaps; those that are too old, which spead2 counts as rejected otherwise.
        let too_old: u64 = self.expected.too_old.iter().sum();
        prop_assert_eq!(&self.batch_stats[STATS_BASE + rejected.len()..], &[0, too_old, too_old.wrapping_neg(), 0]);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        max_shrink_iters: 2000,
        rng_seed: RngSeed::Fixed(20_480),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn callback_equals_reference(
        (spec, user_data, window) in layout(),
        start in prop_oneof![4 => 0_i128..20, 2 => (1_i128 << 48) - 20..1 << 48, 2 => 0_i128..1 << 48],
        resync: bool,
        (restart, restart_at) in (20_usize..HEAPS * 3, 0_i128..1 << 48),
        heaps in vec(heap(), HEAPS),
    ) {
        let fail = |error: LayoutError| TestCaseError::fail(error.to_string());
        let step = i128::from(spec.time.step);
        let layout = Arc::new(Layout::new(spec).map_err(fail)?);
        let geometry = layout.geometry(&user_data).map_err(fail)?;
        let mut comparison = Comparison::new(&geometry, &user_data, window, resync)?;
        comparison.front = start / step * step;
        for (i, seed) in heaps.iter().enumerate() {
            // Now and then the sender is restarted, and then stays there for long enough to be believed.
            if (restart..restart + 20).contains(&i) {
                comparison.front = restart_at / step * step;
            }
            comparison.feed(&items(layout.spec(), comparison.front, seed))?;
        }
        comparison.finish()?;
    }

    #[test]
    fn toml_round_trip_is_exact((spec, _, _) in layout()) {
        let text = spec.to_toml().unwrap();
        prop_assert_eq!(LayoutSpec::from_toml(&text).unwrap(), spec, "{}", text);
    }
}
