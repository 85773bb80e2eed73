//! Placement: from the items of a heap to its slot in a chunk, or the reason why it has none.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::axis::{ItemAxis, Lookup, only_present};
use crate::check::{check, product};
use crate::divisor::{Divisor, SmallDivisor, WideDivisor};
use crate::error::LayoutError;
use crate::layout::{FIRST_AXIS, Geometry, IndexFrom, Layout, MAX_ITEM_AXES, Slot};
use crate::reason;
use crate::window::{UNKNOWN, Window};

/// Most chunks of a window, and heaps of them all: a few bytes are kept for each chunk, and one for each heap.
const MAX_WINDOW_CHUNKS: u64 = 1 << 16;
const MAX_WINDOW_HEAPS: u64 = 1 << 30;

/// The items of a heap, in the order that [`Layout::items`] asks for them; −1 where one is absent.
#[derive(Clone, Copy, Debug)]
pub struct Items<'a> {
    /// The timestamp.
    pub time: i64,
    /// The heap's length.
    pub heap_length: i64,
    /// One for each item axis.
    pub axes: &'a [i64],
    /// The required items.
    pub required: &'a [i64],
}

/// Where a heap goes: its chunk, batch, slot and source.
///
/// [`Placer::place`] counts chunks and batches from the start of the window, [`Heap::placed`] from chunk 0. Where only the
/// other axes are known yet, both are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The chunk.
    pub chunk: u64,
    /// Steps of the time axis.
    pub batch: u64,
    /// The slot in the chunk.
    pub slot: Slot,
    /// Index of the source.
    pub source: u64,
}

/// One item axis, ready for the fast path.
#[derive(Clone, Debug)]
struct FastAxis {
    /// Divides by the step, or, with a step of 1, just rotates by the shift: the same operations either way.
    divisor: Divisor,
    /// Bits to keep after that.
    mask: u64,
    size: u64,
    stride: Slot,
    /// All ones on the axis whose index is the source, else 0.
    source_mask: u64,
    /// More than divisor and mask can say, which is left to [`Layout::axes`].
    uncommon: bool,
}

const UNIT: Divisor = Divisor::new(NonZeroU64::MIN);

impl FastAxis {
    const UNUSED: Self =
        Self { divisor: UNIT, mask: 0, size: 0, stride: Slot { index: 0, offset: 0 }, source_mask: 0, uncommon: false };

    fn new(axis: &ItemAxis, stride: Slot, is_source: bool) -> Self {
        let reach = u64::MAX.wrapping_shr(axis.shift) & axis.mask;
        let (divisor, mask, uncommon) = match axis.lookup {
            Lookup::Step { step: 1, .. } => (Divisor::rotation(axis.shift), reach, false),
            Lookup::Step { divisor, .. } => (divisor, u64::MAX, reach != u64::MAX),
            Lookup::Values(_) | Lookup::Present { .. } => (UNIT, 0, true),
        };
        Self { divisor, mask, size: axis.size, stride, source_mask: if is_source { u64::MAX } else { 0 }, uncommon }
    }
}

/// A layout with the geometry of one stream, prepared so that a heap costs a few multiplications.
#[derive(Clone, Debug)]
pub struct Placer {
    heap_bytes: u64,
    time_mask: u64,
    step: Divisor,
    wide_step: WideDivisor,
    batches: u64,
    per_chunk: SmallDivisor,
    time: Slot,
    /// Where a heap goes whose time and items all stand for index 0.
    base: Placed,
    axes: [FastAxis; MAX_ITEM_AXES],
    dense: bool,
    kind: u8,
    layout: Arc<Layout>,
}

/// Kinds of layouts that the fast path is compiled for. A higher kind asks for more of the layout, and does less for a heap.
pub mod kind {
    /// The time is not simply the value of one item: see [`Placer::place_any`](super::Placer::place_any). Or an axis goes by
    /// which item is present.
    pub const ANY: u8 = 0;
    /// Some axis has a list of values, or both a step and a shift or mask.
    pub const UNCOMMON: u8 = 1;
    /// Every axis has either a step, or a shift and a mask.
    pub const COMMON: u8 = 2;
    /// The only item axis is the last axis and that of the sources. The steps of time and of this axis are powers of two,
    /// and nothing is masked or shifted: division is a rotation.
    pub const POWER: u8 = 3;
    /// Likewise, and the step of the axis is 1: the value is the index.
    pub const UNIT: u8 = 4;
    /// Apart from those: the only item axis is that of the sources, and its index is some bits of the value, of which every
    /// combination is an index. The step of time is a power of two.
    pub const BITS: u8 = 5;
}

impl Placer {
    /// Prepare placement into windows of `window` chunks.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] if so many chunks span too long a time or too many heaps.
    pub fn new(geometry: &Geometry, window: u64) -> Result<Self, LayoutError> {
        let layout = geometry.layout();
        check_window(layout, window)?;
        let spec = layout.spec();
        let mut placer = Self {
            heap_bytes: spec.heap_bytes,
            time_mask: if layout.clock.rounds { spec.time.step.wrapping_neg() } else { u64::MAX },
            step: NonZeroU64::new(spec.time.step).map_or(UNIT, Divisor::new),
            wide_step: WideDivisor::new(NonZeroU64::new(spec.time.step).unwrap_or(NonZeroU64::MIN)),
            batches: spec.time.batches,
            per_chunk: SmallDivisor::new(NonZeroU64::new(spec.time.batches).unwrap_or(NonZeroU64::MIN)),
            time: Slot::default(),
            base: Placed { slot: geometry.base(), source: geometry.source(), ..Placed::default() },
            axes: [FastAxis::UNUSED; MAX_ITEM_AXES],
            dense: true,
            kind: kind::COMMON,
            layout: Arc::clone(layout),
        };
        for (position, (dimension, &offset)) in layout.dimensions.iter().zip(geometry.strides()).enumerate() {
            let stride = Slot { index: dimension.index_stride, offset };
            placer.dense &= offset == dimension.index_stride.wrapping_mul(spec.heap_bytes);
            match dimension.from {
                IndexFrom::Time => placer.time = stride,
                IndexFrom::UserData(_) => {}
                IndexFrom::Item(i) => {
                    let (Some(fast), Some(axis)) = (placer.axes.get_mut(i), layout.axes.get(i)) else { continue };
                    *fast = FastAxis::new(axis, stride, layout.source == Some(position));
                }
            }
        }
        placer.kind = placer.find_kind();
        Ok(placer)
    }

    fn find_kind(&self) -> u8 {
        let clock = &self.layout.clock;
        // To round down is to clear bits, if they are those of whole steps from 0.
        let clears_bits = clock.bias == 0 && clock.origin == Some(0) && self.step.is_power_of_two();
        if !clock.is_plain() || (clock.rounds && !clears_bits) || self.layout.axes.iter().any(|axis| !axis.needs_item())
        {
            return kind::ANY;
        }
        if self.axes.iter().any(|axis| axis.uncommon) {
            return kind::UNCOMMON;
        }
        let [axis, ..] = &self.axes;
        let sole = self.layout.axes.len() == 1 && axis.source_mask != 0;
        if !self.step.is_power_of_two() || !sole || !axis.divisor.is_power_of_two() {
            kind::COMMON
        } else if axis.mask < axis.size {
            kind::BITS
        } else if self.time_mask != u64::MAX || axis.stride.index != 1 || axis.mask != u64::MAX {
            kind::COMMON
        } else if axis.divisor.is_one() {
            kind::UNIT
        } else {
            kind::POWER
        }
    }

    /// Whether every heap lies at its index times the heap's size.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The most special [`kind`] that the layout is of.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The fast path: the slot of a heap that is good and lies in the window, otherwise None. Of the window, only the first
    /// `limit` batches may be used.
    ///
    /// All checks are made at once, without saying which one failed: [`Heap::new`] and the timeline do. `DENSE` may be
    /// true only if [`Placer::is_dense`]; `KIND` must not be [`kind::ANY`], and [`Placer::kind`] or, but for
    /// [`kind::BITS`], one below it. With slices of constant length the loops unroll.
    #[inline(always)]
    #[must_use]
    pub fn place<const DENSE: bool, const KIND: u8>(
        &self,
        window: &Window,
        limit: u64,
        items: &Items<'_>,
    ) -> Option<Placed> {
        let batch = self.batch::<KIND>(window.base, items.time);
        if batch >= limit {
            return None;
        }
        let chunk = self.per_chunk.quotient(batch);
        let placed = self.place_in_chunk::<DENSE, KIND>(batch.wrapping_sub(chunk.wrapping_mul(self.batches)), items)?;
        Some(Placed { chunk, batch, ..placed })
    }

    /// [`Self::place`] for a heap of the newest chunk of a window, of which only the first `limit` batches may be used: where
    /// it goes, counted from the start of that chunk.
    #[inline(always)]
    #[must_use]
    pub fn place_newest<const DENSE: bool, const KIND: u8>(
        &self,
        window: &Window,
        limit: u64,
        items: &Items<'_>,
    ) -> Option<Placed> {
        let batch = self.batch::<KIND>(window.newest_base, items.time);
        if batch >= limit {
            return None;
        }
        self.place_in_chunk::<DENSE, KIND>(batch, items)
    }

    /// How many batches a time is behind the one at which a window or a chunk begins.
    ///
    /// A time before that, beyond 48 bits, absent, or misaligned gives a batch beyond any limit: of the multiples of the step
    /// only those within the window divide to less (see `Divisor` and `Window`).
    #[inline(always)]
    fn batch<const KIND: u8>(&self, base: u64, time: i64) -> u64 {
        let time = time as u64;
        match KIND {
            kind::POWER | kind::UNIT => self.step.rotated(time.wrapping_sub(base)),
            kind::BITS => self.step.rotated((time & self.time_mask).wrapping_sub(base)),
            _ => self.step.exact((time & self.time_mask).wrapping_sub(base)),
        }
    }

    /// Where a heap goes in a chunk of which it belongs to this batch.
    #[inline(always)]
    fn place_in_chunk<const DENSE: bool, const KIND: u8>(&self, batch: u64, items: &Items<'_>) -> Option<Placed> {
        if items.heap_length as u64 != self.heap_bytes {
            return None;
        }
        let mut absent = items.required.iter().fold(0, |all, item| all | item);
        let mut placed = Placed { batch, ..self.base };
        placed.step(self.time, batch, 0, DENSE);
        for (i, (axis, &item)) in self.axes.iter().zip(items.axes).enumerate() {
            // Without shift and mask no value of the axis is negative, so none that is divides to an index.
            let is_plain = KIND == kind::POWER || KIND == kind::UNIT;
            if !is_plain {
                absent |= item;
            }
            let item = item as u64;
            let index = match KIND {
                kind::UNIT => item,
                kind::POWER => axis.divisor.rotated(item),
                kind::BITS => axis.divisor.rotated(item) & axis.mask,
                kind::UNCOMMON if axis.uncommon => {
                    self.layout.axes.get(i).and_then(|axis| axis.index(item)).unwrap_or(u64::MAX)
                }
                _ => axis.divisor.exact(item) & axis.mask,
            };
            // No combination of bits is beyond the size: that makes the kind.
            if KIND != kind::BITS && index >= axis.size {
                return None;
            }
            let stride = if is_plain { Slot { index: 1, ..axis.stride } } else { axis.stride };
            if is_plain || KIND == kind::BITS {
                placed.step(stride, index, 0, DENSE);
                placed.source = index;
            } else {
                placed.step(stride, index, axis.source_mask, DENSE);
            }
        }
        if DENSE {
            placed.slot.offset = placed.slot.index.wrapping_mul(self.heap_bytes);
        }
        (absent >= 0).then_some(placed)
    }

    /// [`Self::place`] for layouts of [`kind::ANY`], from all items of the layout.
    #[inline]
    #[must_use]
    pub fn place_any(&self, window: &Window, limit: u64, items: &[i64]) -> Option<Placed> {
        let layout = &self.layout;
        let clock = &layout.clock;
        let mut placed = self.base;
        for ((axis, known), position) in self.axes.iter().zip(&layout.axes).zip(FIRST_AXIS..) {
            placed.step(axis.stride, known.index_of(items, position)?, axis.source_mask, false);
        }
        let stamp = clock.stamp(self.time(items)?)?;
        let phase = match window.phases.get(placed.source as usize) {
            Some(&UNKNOWN) => return None,
            Some(&phase) => phase,
            None => 0,
        };
        if stamp > window.low_bits || !self.has_all(items) {
            return None;
        }
        let ticks = stamp.wrapping_add(clock.bias).wrapping_sub(phase).wrapping_sub(window.base) & window.low_bits;
        let batch = if clock.rounds { self.wide_step.quotient(ticks) } else { self.step.exact(ticks) };
        if batch >= limit {
            return None;
        }
        let chunk = self.per_chunk.quotient(batch);
        placed.step(self.time, batch.wrapping_sub(chunk.wrapping_mul(self.batches)), 0, false);
        Some(Placed { chunk, batch, ..placed })
    }

    /// The value of the item that tells the time; None unless exactly one does.
    #[inline]
    fn time(&self, items: &[i64]) -> Option<u64> {
        let others = items.get(self.layout.other_times..)?.iter().take(self.layout.clock.ids.wrapping_sub(1));
        only_present(items.first().into_iter().chain(others)).map(|(_, value)| value)
    }

    /// Whether a heap has the right length and all items that it must have, but for the time.
    #[inline]
    fn has_all(&self, items: &[i64]) -> bool {
        let layout = &self.layout;
        let axes = layout.axes.iter().zip(items.iter().skip(FIRST_AXIS)).filter(|(axis, _)| axis.needs_item());
        let first_required = FIRST_AXIS.wrapping_add(layout.axes.len()).wrapping_add(layout.side.len());
        let required = items.iter().skip(first_required).take(layout.spec().required_items.len());
        let present = axes.map(|(_, item)| item).chain(required).all(|&item| item >= 0);
        present && items.get(1).is_some_and(|&heap_length| heap_length as u64 == self.heap_bytes)
    }

    /// The source of a heap, good or bad, if it can be known.
    #[must_use]
    pub fn source(&self, items: &[i64]) -> Option<u64> {
        let layout = &self.layout;
        let of_axis = layout.source.and_then(|axis| layout.dimensions.get(axis)).map(|axis| &axis.from);
        let Some(&IndexFrom::Item(i)) = of_axis else { return Some(self.base.source) };
        layout.axes.get(i)?.index_of(items, FIRST_AXIS.wrapping_add(i))
    }
}

impl Placed {
    /// Go to `index` on an axis.
    #[inline(always)]
    fn step(&mut self, stride: Slot, index: u64, source_mask: u64, dense: bool) {
        self.slot.index = self.slot.index.wrapping_add(index.wrapping_mul(stride.index));
        if !dense {
            self.slot.offset = self.slot.offset.wrapping_add(index.wrapping_mul(stride.offset));
        }
        self.source |= index & source_mask;
    }
}

/// A heap on the slow path, of which all but the time is known.
#[derive(Clone, Copy, Debug)]
pub struct Heap {
    /// Timestamp.
    pub stamp: u64,
    /// Where it goes on the other axes, or the reason of the first that it is not on.
    on_axes: Result<Placed, usize>,
}

impl Heap {
    /// The slow path: the checks up to the time, one after the other, with the reason of the first that fails; those of
    /// the axes come after the time's alignment.
    ///
    /// `items` holds the values of [`Layout::items`].
    ///
    /// # Errors
    ///
    /// The index in [`Layout::reasons`] of the first check that fails.
    pub fn new(placer: &Placer, items: &[i64]) -> Result<Self, usize> {
        let layout = &placer.layout;
        let time = placer.time(items).filter(|_| placer.has_all(items)).ok_or(reason::METADATA)?;
        let stamp = layout.clock.stamp(time).ok_or(reason::BAD_TIMESTAMP)?;
        let mut placed = placer.base;
        let found = placer.axes.iter().zip(&layout.axes).zip(FIRST_AXIS..).try_for_each(|((axis, known), position)| {
            let index = known.index_of(items, position).ok_or(known.reason)?;
            placed.step(axis.stride, index, axis.source_mask, false);
            Ok(())
        });
        Ok(Self { stamp, on_axes: found.map(|()| placed) })
    }

    /// The source of the heap, if it is on all axes.
    ///
    /// # Errors
    ///
    /// The index in [`Layout::reasons`] for the first axis that it is not on.
    pub fn source(&self) -> Result<u64, usize> {
        self.on_axes.map(|placed| placed.source)
    }

    /// Where it goes on the axes other than time: which of the heaps of its batch it is.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.on_axes.map_or(0, |placed| placed.slot.index)
    }

    /// Where the heap goes, given its chunk, and its batch in that chunk.
    ///
    /// # Errors
    ///
    /// As for [`Self::source`].
    pub fn placed(&self, placer: &Placer, chunk: u64, batch: u64) -> Result<Placed, usize> {
        let mut placed = self.on_axes?;
        placed.step(placer.time, batch, 0, false);
        let batch = chunk.wrapping_mul(placer.batches).wrapping_add(batch);
        Ok(Placed { chunk, batch, ..placed })
    }
}

/// Check that a stream can have a window of so many chunks of a layout.
fn check_window(layout: &Layout, window: u64) -> Result<(), LayoutError> {
    // What Python and spead2 call the window.
    let field = "max_active_chunks";
    check((1..=MAX_WINDOW_CHUNKS).contains(&window), || {
        LayoutError::field(field, window, format!("must be from 1 to {MAX_WINDOW_CHUNKS}"))
    })?;
    for (factor, of_chunk, limit, what) in [
        // Unwrapping reaches half of the range of timestamps back.
        ("ticks of a chunk", layout.chunk_step, 1 << layout.clock.bits.wrapping_sub(1), "is the window in ticks"),
        ("time.batches", layout.spec().time.batches, SmallDivisor::MAX, "is the window in batches"),
        ("heaps of a chunk", layout.chunk_heaps(), MAX_WINDOW_HEAPS, "is the window in heaps"),
    ] {
        product(&format!("{field} x {factor}"), &[window, of_chunk], limit, what)?;
    }
    Ok(())
}
