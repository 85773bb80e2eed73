//! Any heaps, through the C function pointers of two streams of a group: what spead2 is told is never outside the
//! chunk, no two heaps share bytes, nothing bad is placed, and every heap is counted once.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use speadrx::abi::ChunkPlaceData;
use speadrx::callback::{Context, Cookie, Stats};
use speadrx::group::Group;
use speadrx::layout::{Geometry, Layout};
use speadrx::ledger::Snapshot;
use speadrx::reason;
use speadrx::spec::{Align, AxisSpec, LayoutSpec, Phases};
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;
use speadrx_fuzz::{Declared, Style, index, indices, number, only_present, sizes, slot};

/// Index of our first statistic; those in front, and one behind, are not ours.
const STATS_BASE: usize = 3;
/// What must not be written to.
const CANARY: u8 = 0xa5;
const N_STREAMS: usize = 2;
/// Heaps of an input at most.
const MOST_HEAPS: usize = 400;

const COOKIE: Cookie = Cookie { flush: 0x5eed_f105_4ead, end: 0x5eed_0e4d, done: 0x5eed_d04e };

/// Make the streams of a group, and what they share.
fn group(u: &mut Unstructured<'_>, geometry: &Geometry, stats: Stats) -> Result<Option<(Arc<Group>, Vec<Context>)>> {
    let window = u.int_in_range(1..=6)?;
    let max_jump = if bool::arbitrary(u)? { Some(u.int_in_range(1..=9)?) } else { None };
    let resync = bool::arbitrary(u)?;
    // So many chunks may span too long a time, and then there is no stream.
    let make = || {
        let rules = TimeRules::new(geometry.layout(), window, window + 1, max_jump, resync).ok()?;
        let group = Group::new(rules);
        let member = || Context::new(geometry, window, Some(stats), Arc::clone(&group), Some(COOKIE)).ok();
        let members = (0..N_STREAMS).map(|_| member()).collect::<Option<_>>()?;
        Some((group, members))
    };
    Ok(make())
}

fuzz_target!(|bytes: &[u8]| {
    // Out of bytes: nothing to test.
    let _ = run(&mut Unstructured::new(bytes));
});

/// One stream, and what it should have counted.
struct Stream {
    context: Context,
    group: Arc<Group>,
    calls: u64,
    placed: u64,
    batch_stats: Vec<u64>,
    has_ended: bool,
    last: Snapshot,
    /// The phases of sources whenever it was called. What another stream has learnt since, it may not know yet.
    phases: Vec<Vec<Option<i64>>>,
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let Declared { spec, user_data } = Declared::new(u, Style::Sensible)?;
    let Ok(layout) = Layout::new(spec).map(Arc::new) else { return Ok(()) };
    let Ok(geometry) = layout.geometry(&user_data) else { return Ok(()) };
    let stats = Stats { base: STATS_BASE, count: layout.reasons().len() };
    let Some((group, contexts)) = group(u, &geometry, stats)? else { return Ok(()) };
    let new_stream = |context: Context| Stream {
        last: context.ledger().snapshot(),
        context,
        group: Arc::clone(&group),
        calls: 0,
        placed: 0,
        batch_stats: vec![0; STATS_BASE + stats.count + Stats::MORE + 1],
        has_ended: false,
        phases: Vec::new(),
    };
    let mut streams: Vec<_> = contexts.into_iter().map(new_stream).collect();
    // Offset of each heap index, whichever stream placed it.
    let mut offsets = BTreeMap::new();
    let mut front = if bool::arbitrary(u)? { u.int_in_range(0..=20)? } else { number(u)? };
    for _ in 0..MOST_HEAPS {
        if u.is_empty() {
            break;
        }
        let stream = &mut streams[usize::from(bool::arbitrary(u)?)];
        let items = items(u, &layout, &mut front)?;
        if let Some((at, offset)) = stream.place(&layout, &geometry, &items, &user_data) {
            assert_eq!(*offsets.entry(at).or_insert(offset), offset, "heap {at} in two places");
        }
        if u.ratio(1, 16)? {
            check_ledgers(&mut streams, &layout);
            control(u, &group, &mut streams, &layout)?;
        }
    }
    check_ledgers(&mut streams, &layout);
    let offsets: std::collections::BTreeSet<_> = offsets.into_values().collect();
    let offsets: Vec<_> = offsets.into_iter().collect();
    let heap_bytes = layout.spec().heap_bytes;
    assert!(offsets.windows(2).all(|pair| pair[0] + heap_bytes <= pair[1]), "heaps overlap");
    Ok(())
}

/// Each ledger is right, and of the heaps of a source, in whatever streams, the first is no duplicate.
fn check_ledgers(streams: &mut [Stream], layout: &Layout) {
    for stream in &mut *streams {
        stream.check_ledger(layout);
    }
    for source in 0..layout.n_sources() as usize {
        let sum =
            |counts: fn(&Snapshot) -> &[u64]| streams.iter().map(|stream| counts(&stream.last)[source]).sum::<u64>();
        let (placed, duplicates) = (sum(|now| &now.placed), sum(|now| &now.duplicates));
        assert!(duplicates <= placed.saturating_sub(1), "{duplicates} duplicates of {placed} heaps of source {source}");
    }
}

/// Begin an epoch, or not, and send control heaps, as a flush does, or a drain; or as they may come much later.
fn control(u: &mut Unstructured<'_>, group: &Group, streams: &mut [Stream], layout: &Layout) -> Result<()> {
    if u.ratio(1, 4)? {
        let _ = group.flush();
    }
    for stream in streams {
        match u.int_in_range(0..=15)? {
            0..=3 => stream.control(layout, COOKIE.flush),
            4..=7 => stream.control(layout, COOKIE.done),
            8 => stream.control(layout, COOKIE.end),
            _ => (),
        }
    }
    Ok(())
}

/// Items of a heap in the order of the layout: a good heap near the front of time, spoiled more or less.
fn items(u: &mut Unstructured<'_>, layout: &Layout, front: &mut u64) -> Result<Vec<i64>> {
    let spec = layout.spec();
    // Positions of items that share an ID have one value, as they have in a packet.
    let mut values: BTreeMap<u64, i64> = BTreeMap::new();
    for axis in &spec.axes {
        if let Some(ids) = &axis.present_items {
            values.extend(ids.iter().map(|&id| (id, -1)));
            values.insert(*u.choose(ids)?, 7);
        }
        let Some(id) = axis.item else { continue };
        let value = match &axis.values {
            Some(values) => *u.choose(values)?,
            None => u.int_in_range(0..=axis.size.unwrap_or(1) - 1)? * axis.step,
        };
        *values.entry(id).or_default() |= (value << axis.shift) as i64;
    }
    let ahead = match u.int_in_range(0..=15)? {
        0..=10 => u.int_in_range(-3..=4)?,
        11..=12 => i64::from(i8::arbitrary(u)?),
        13 => i64::from(i16::arbitrary(u)?),
        14 => number(u)? as i64,
        // Off the grid.
        _ => 0,
    };
    let time = front.wrapping_add_signed(ahead.wrapping_mul(spec.time.step as i64));
    if u.ratio(1, 2)? {
        *front = time;
    }
    let bits = spec.time.bits.unwrap_or(48);
    let beyond = match &spec.time.phases {
        Some(Phases::Listed(phases)) => *u.choose(phases)?,
        _ if spec.time.align == Align::Reject => 0,
        _ => u.int_in_range(0..=spec.time.step - 1)?,
    };
    let stamp = time.wrapping_add(beyond) & ((1 << bits) - 1);
    values.extend(spec.time.item.ids().iter().map(|&id| (id, -1)));
    values.insert(*u.choose(spec.time.item.ids())?, (stamp << spec.time.shift) as i64);
    values.insert(layout.items()[1], spec.heap_bytes as i64);
    for &id in &layout.items()[2..] {
        values.entry(id).or_insert(i64::from(id as u32));
    }
    if u.ratio(1, 6)? {
        let id = *u.choose(layout.items())?;
        let old = values[&id];
        let value = match u.int_in_range(0..=4)? {
            0 => -1,
            1 => old.wrapping_add(i64::from(i8::arbitrary(u)?)),
            2 => old ^ 1_i64.wrapping_shl(u.int_in_range(0..=63)?),
            3 => number(u)? as i64,
            _ => i64::arbitrary(u)?,
        };
        values.insert(id, value);
    }
    // spead2 fills the array: a value has 63 bits at most, what is absent is -1.
    let mut row: Vec<i64> = layout.items().iter().map(|id| values[id].max(-1)).collect();
    // No data has the cookie's item, and nobody else can know its value.
    row.push(if u.ratio(1, 8)? { (number(u)? as i64).max(-1) & 0xffff } else { -1 });
    Ok(row)
}

impl Stream {
    /// Call the callback as spead2 does, and return what it made of the struct.
    fn call(&mut self, layout: &Layout, items: &[i64]) -> ChunkPlaceData {
        let mut extra = vec![CANARY; layout.extra_bytes() + 1];
        let mut data = ChunkPlaceData {
            packet: std::ptr::null(),
            packet_size: 0,
            items: items.as_ptr(),
            chunk_id: -1,
            heap_index: 0,
            heap_offset: 0,
            batch_stats: self.batch_stats.as_mut_ptr(),
            extra: extra.as_mut_ptr(),
            extra_offset: 0,
            extra_size: 0,
        };
        // SAFETY: function and context belong together, and every pointer is to what the contract asks for.
        unsafe { self.context.function()(&raw mut data, ChunkPlaceData::SIZE, self.context.argument()) };
        assert_eq!(extra.last(), Some(&CANARY));
        assert!(data.chunk_id >= -1, "chunk {}", data.chunk_id);
        data
    }

    /// Send a control heap, which only the statistic of control heaps counts: spead2 will add to its rejected heaps what
    /// was taken off here.
    fn control(&mut self, layout: &Layout, cookie: i64) {
        let mut items = vec![-1; layout.items().len() + 1];
        items[1] = 1;
        *items.last_mut().unwrap() = cookie;
        let before = self.batch_stats.clone();
        let data = self.call(layout, &items);
        self.has_ended |= cookie == COOKIE.end;
        assert_eq!((data.heap_index, data.heap_offset), (0, 0));
        let after_reasons = STATS_BASE + layout.reasons().len();
        self.batch_stats[after_reasons] -= 1;
        if data.chunk_id < 0 {
            self.will_be_rejected(layout);
        } else {
            assert_ne!(cookie, COOKIE.done);
            assert_eq!(self.group.control(), Some(data.chunk_id as u64));
        }
        assert_eq!(self.batch_stats, before);
    }

    /// What spead2 does with a heap that is not placed.
    fn will_be_rejected(&mut self, layout: &Layout) {
        let rejected = &mut self.batch_stats[STATS_BASE + layout.reasons().len() + Stats::MORE - 1];
        *rejected = rejected.wrapping_add(1);
    }

    /// Send a heap, and return where it was placed.
    fn place(
        &mut self,
        layout: &Layout,
        geometry: &Geometry,
        items: &[i64],
        user_data: &BTreeMap<String, u64>,
    ) -> Option<(u64, u64)> {
        let spec = layout.spec();
        let before = self.batch_stats.clone();
        let data = self.call(layout, items);
        let phases = self.group.phases();
        if self.phases.last() != Some(&phases) {
            self.phases.push(phases);
        }
        if self.has_ended {
            self.will_be_rejected(layout);
            assert_eq!((data.chunk_id, &self.batch_stats), (-1, &before));
            return None;
        }
        self.calls += 1;
        let too_old = STATS_BASE + layout.reasons().len() + 1;
        if self.batch_stats[too_old] != before[too_old] {
            // It is older than the window, though spead2 would not know that.
            self.batch_stats[too_old] -= 1;
            self.will_be_rejected(layout);
            assert_eq!((data.chunk_id, &self.batch_stats), (-1, &before));
            self.placed += 1;
            return None;
        }
        let counted: u64 = self.batch_stats.iter().zip(&before).map(|(new, old)| new - old).sum();
        let Ok(chunk) = u64::try_from(data.chunk_id) else {
            assert_eq!(counted, 1, "a rejected heap has one reason");
            return None;
        };
        assert_eq!(counted, 0, "a placed heap was counted as rejected");
        self.placed += 1;
        let items = &items[..layout.items().len()];
        let expected = expected(spec, items, user_data).expect("a bad heap was placed");
        let (at, offset) = (data.heap_index as u64, data.heap_offset as u64);
        assert!(at < layout.chunk_heaps(), "heap index {at}");
        assert!(offset.checked_add(spec.heap_bytes).is_some_and(|end| end <= geometry.span_bytes()), "offset {offset}");
        let sizes = sizes(spec);
        let found = indices(&sizes, at);
        assert!(found.iter().zip(&expected).all(|(found, wanted)| wanted.is_none_or(|wanted| wanted == *found)));
        assert_eq!(slot(&sizes, geometry, &found), (at.into(), offset.into()));
        let extra_bytes = layout.extra_bytes();
        if extra_bytes > 0 {
            assert_eq!((data.extra_offset, data.extra_size), (data.heap_index * extra_bytes, extra_bytes));
        }
        // The epochs know what time it is in the chunk.
        let (_, epoch) = self.group.epochs().of_chunk(chunk).expect("a chunk is placed in an epoch");
        let batch = found.iter().zip(&expected).find(|(_, wanted)| wanted.is_none()).map(|(found, _)| *found);
        let time = u128::from(epoch.true_chunk(chunk)) * u128::from(layout.chunk_step())
            + u128::from(batch.expect("the time axis")) * u128::from(spec.time.step)
            + u128::from(epoch.origin);
        let columns = Columns::new(spec, items).expect("as many items as the layout has");
        let source = layout.source_of(at);
        let tells = self.phases.iter().any(|phases| columns.tells(spec, time, source, phases));
        assert!(tells, "chunk {chunk} of {epoch:?}, not {:?}", columns.stamp);
        Some((at, offset))
    }

    /// Every call is counted once, nothing is counted that did not happen, and no counter has fallen.
    fn check_ledger(&mut self, layout: &Layout) {
        let now = self.context.ledger().snapshot();
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        let rejected: Vec<u64> = now.rejected.iter().map(|by_source| sum(by_source)).collect();
        assert_eq!(sum(&now.placed), self.placed);
        assert_eq!(sum(&now.placed) + sum(&rejected), self.calls);
        assert_eq!(self.batch_stats[STATS_BASE..][..rejected.len()], rejected);
        assert_eq!(rejected[reason::internal_error(rejected.len())], 0);
        let after_reasons = STATS_BASE + rejected.len();
        assert_eq!(sum(&self.batch_stats[..STATS_BASE]) + sum(&self.batch_stats[after_reasons..]), 0);
        assert_eq!(sum(&now.late_chunks), self.placed);
        assert_eq!(now.late_chunks.last(), Some(&sum(&now.too_old)));
        assert_eq!(sum(&now.late_batches), now.late_chunks[0]);
        assert_eq!(now.placed.len() as u64, layout.n_sources());
        for (source, &placed) in now.placed.iter().enumerate() {
            assert!(now.duplicates[source] <= placed);
            assert_eq!(now.newest[source] >= 0, placed > 0);
        }
        let grown = |now: &[u64], last: &[u64]| now.iter().zip(last).all(|(now, last)| now >= last);
        assert!(grown(&now.placed, &self.last.placed) && grown(&now.duplicates, &self.last.duplicates));
        for source in 0..now.newest.len() {
            let newest = |snapshot: &Snapshot| (snapshot.newest_epoch[source], snapshot.newest[source]);
            assert!(newest(&now) >= newest(&self.last));
        }
        assert!(now.rejected.iter().zip(&self.last.rejected).all(|(now, last)| grown(now, last)));
        assert!(grown(&now.late_chunks, &self.last.late_chunks) && grown(&now.late_batches, &self.last.late_batches));
        self.last = now;
    }
}

/// The items of a heap, by what they are for.
struct Columns {
    /// The timestamp, if exactly one item tells it and it is no larger than one can be.
    stamp: Option<u64>,
    heap_length: i64,
    required: Vec<i64>,
    /// For each axis that goes by items, its value, or the position of the only item that is present.
    axes: Vec<Option<i64>>,
}

impl Columns {
    fn new(spec: &LayoutSpec, items: &[i64]) -> Option<Self> {
        let (&[first_time, heap_length], rest) = items.split_first_chunk()?;
        let by_items: Vec<_> = spec.axes.iter().filter(|axis| axis.from_user_data.is_none()).collect();
        let (first, rest) = rest.split_at_checked(by_items.len())?;
        let (_, rest) = rest.split_at_checked(spec.side_items.len())?;
        let (required, rest) = rest.split_at_checked(spec.required_items.len())?;
        let (times, mut rest) = rest.split_at_checked(spec.time.item.ids().len() - 1)?;
        let time = only_present(&[&[first_time], times].concat());
        let shifted = time.map(|(_, value)| (value as u64 >> spec.time.shift) & spec.time.mask.unwrap_or(u64::MAX));
        let mut axes = Vec::new();
        for (axis, &value) in by_items.iter().zip(first) {
            axes.push(match &axis.present_items {
                Some(ids) => {
                    let (others, more) = rest.split_at_checked(ids.len() - 1)?;
                    rest = more;
                    only_present(&[&[value], others].concat()).map(|(position, _)| position as i64)
                }
                None => Some(value),
            });
        }
        let stamp = shifted.filter(|stamp| stamp >> spec.time.bits.unwrap_or(48) == 0);
        Some(Self { stamp, heap_length, required: required.to_vec(), axes })
    }

    /// Whether the timestamp, of this source, may tell a time.
    fn tells(&self, spec: &LayoutSpec, time: u128, source: u64, phases: &[Option<i64>]) -> bool {
        let Some(stamp) = self.stamp else { return false };
        let phase = match phases.get(source as usize) {
            Some(Some(phase)) => *phase,
            Some(None) => return false,
            None => 0,
        };
        let bias = if spec.time.align == Align::Nearest { spec.time.step / 2 } else { 0 };
        let room = if spec.time.align == Align::Reject { 1 } else { spec.time.step };
        let within = |bits: u64| {
            let beyond = i128::from(stamp) + i128::from(bias) - i128::from(phase) - time as i128;
            beyond.rem_euclid(1 << bits) < i128::from(room)
        };
        // It may have been found out that timestamps have 40 bits.
        within(spec.time.bits.unwrap_or(48)) || (spec.time.bits.is_none() && stamp >> 40 == 0 && within(40))
    }
}

/// Indices of a good heap, slowest axis first, found slowly; that on the time axis depends on what was before.
///
/// None if the heap must not be placed, whatever was before.
fn expected(spec: &LayoutSpec, items: &[i64], user_data: &BTreeMap<String, u64>) -> Option<Vec<Option<u64>>> {
    let columns = Columns::new(spec, items)?;
    let good =
        u64::try_from(columns.heap_length) == Ok(spec.heap_bytes) && columns.required.iter().all(|&item| item >= 0);
    let stamp = columns.stamp.filter(|_| good)?;
    // A grid of this step from 0 goes on after a wrap where it left off; another one does not, and is shifted by it.
    let is_plain = spec.time.align == Align::Reject && spec.time.phases.is_none() && spec.time.origin.is_none();
    if is_plain && spec.time.step.is_power_of_two() && stamp % spec.time.step != 0 {
        return None;
    }
    let mut values = columns.axes.into_iter();
    let mut on_axis = |axis: &AxisSpec| match &axis.from_user_data {
        Some(field) => user_data.get(field).copied(),
        None if axis.present_items.is_some() => values.next()?.map(|position| position as u64),
        None => index(axis, values.next()??),
    };
    let mut found = BTreeMap::from([(spec.time.name.as_str(), None)]);
    for axis in &spec.axes {
        found.insert(&axis.name, Some(on_axis(axis)?));
    }
    let declared = || std::iter::once(spec.time.name.clone()).chain(spec.axes.iter().map(|axis| axis.name.clone()));
    let order = spec.order.clone().unwrap_or_else(|| declared().collect());
    Some(order.iter().map(|name| found[name.as_str()]).collect())
}
