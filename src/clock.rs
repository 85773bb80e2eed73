//! How heaps tell the time: the declaration of the time axis checked, and a value turned into a timestamp.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::check::{
    MAX_TIME_BITS, MIN_TIME_BITS, check, check_distinct, check_item, check_item_or_counter, check_mask, check_shift,
    non_zero, product,
};
use crate::error::LayoutError;
use crate::spec::{Align, Origin, Phases, Shown, TimeSpec};

/// Bits of a timestamp, unless the layout or the stream says otherwise.
pub const TIME_BITS: u32 = 48;
/// Bits of a timestamp of the flavour that has the fewest in use.
pub(crate) const FEW_TIME_BITS: u32 = 40;
/// Most IDs that an item can have: the fast path looks at each.
const MAX_IDS: usize = 256;

/// By how many ticks the timestamps of each source differ from the steps of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Differ {
    /// By none.
    Nowhere,
    /// So many, by index of the source.
    Listed(Box<[u64]>),
    /// That is learnt.
    AsShown,
}

/// How the times of a layout lie on the grid that [`crate::segment::Grid`] stands for.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// IDs that the item of the time can have.
    pub ids: usize,
    /// Bits to shift its value right by, and those to keep after that.
    pub shift: u32,
    pub mask: u64,
    /// Bits of a timestamp; and whether that is declared, or what is usual.
    pub bits: u32,
    pub is_sure: bool,
    /// Ticks from 0 to the first step of time, less than a step; None if that is what the first heap shows.
    pub origin: Option<u64>,
    /// Whether timestamps between the steps are rounded down, after ticks were added to them.
    pub rounds: bool,
    pub bias: u64,
    pub phases: Differ,
}

/// The bits of a timestamp.
pub(crate) const fn low_bits(bits: u32) -> u64 {
    1_u64.wrapping_shl(bits).wrapping_sub(1)
}

impl Clock {
    /// The timestamp that a value stands for, if it is not too large for one.
    #[inline]
    pub fn stamp(&self, value: u64) -> Option<u64> {
        let stamp = value.wrapping_shr(self.shift) & self.mask;
        (stamp.wrapping_shr(self.bits) == 0).then_some(stamp)
    }

    /// Whether the value of the item is the timestamp, all of it.
    pub fn is_plain(&self) -> bool {
        self.ids == 1 && self.shift == 0 && self.mask == u64::MAX && self.phases == Differ::Nowhere
    }
}

/// Check the declaration of the time axis, for so many sources; they are an axis if `has_sources`.
///
/// Returns the ticks of a chunk, too.
pub(crate) fn check_time(time: &TimeSpec, sources: Option<u64>) -> Result<(u64, Clock), LayoutError> {
    let ids = time.item.ids();
    check_ids("time.item", ids)?;
    for &id in ids {
        check_item_or_counter("time.item", id)?;
    }
    non_zero("time.step", time.step)?;
    non_zero("time.batches", time.batches)?;
    check(time.align != Align::Mask || time.step.is_power_of_two(), || {
        LayoutError::field("time.step", time.step, "must be a power of two where align is mask; floor takes any step")
    })?;
    if let Some(rate) = time.tick_rate {
        check(rate.is_finite() && rate > 0.0, || {
            LayoutError::field("time.tick_rate", rate, "must be a positive number of ticks per second")
        })?;
    }
    check_epoch(time)?;
    let bits = check_bits(time)?;
    let chunk_step = product(
        "time.step x time.batches",
        &[time.step, time.batches],
        1_u64.wrapping_shl(bits.wrapping_sub(2)), // the next chunk, too, lies within the half range that unwrapping reaches ahead
        "is the length of a chunk in ticks",
    )?;
    let (found, least) = check_phases(time, bits, sources)?;
    let origin = match time.origin {
        Some(Origin::Shown(Shown::First)) => None,
        // Sources that show their phases show the steps of time as well.
        None if found == Differ::AsShown => None,
        Some(Origin::At(origin)) => {
            check(origin.wrapping_shr(bits) == 0, || {
                LayoutError::field("time.origin", origin, format!("is no timestamp; those have {bits} bits"))
            })?;
            Some(origin)
        }
        None => Some(0),
    };
    let origin = origin.map(|origin| origin.wrapping_add(least).checked_rem(time.step).unwrap_or(0));
    let bias = if time.align == Align::Nearest { time.step >> 1 } else { 0 };
    let shift = check_shift("time.shift", time.shift)?;
    let mask = check_mask("time.mask", time.mask)?;
    let clock = Clock {
        ids: ids.len(),
        shift,
        mask,
        bits,
        is_sure: time.bits.is_some(),
        origin,
        rounds: time.align != Align::Reject,
        bias,
        phases: found,
    };
    Ok((chunk_step, clock))
}

/// Check a list of the IDs of an item of which each heap has one.
pub(crate) fn check_ids(field: &str, ids: &[u64]) -> Result<(), LayoutError> {
    check(!ids.is_empty(), || LayoutError::field(field, "[]", "must have at least one item ID"))?;
    check(ids.len() <= MAX_IDS, || {
        LayoutError::field(field, ids.len(), format!("item IDs are too many; there can be at most {MAX_IDS}"))
    })?;
    check_distinct(field, ids)
}

fn check_bits(time: &TimeSpec) -> Result<u32, LayoutError> {
    let bits = time.bits.unwrap_or(TIME_BITS.into());
    check((MIN_TIME_BITS..=MAX_TIME_BITS).contains(&bits), || {
        LayoutError::field("time.bits", bits, format!("must be from {MIN_TIME_BITS} to {MAX_TIME_BITS}"))
    })?;
    Ok(bits as u32)
}

fn check_epoch(time: &TimeSpec) -> Result<(), LayoutError> {
    if let Some(epoch) = time.epoch {
        // What fits numpy's nanoseconds.
        check(epoch.is_finite() && epoch.abs() < 9e9, || {
            LayoutError::field("time.epoch", epoch, "must be a number of seconds since 1970")
        })?;
        check(time.epoch_item.is_none(), || {
            LayoutError::field("time.epoch", epoch, "cannot be given together with epoch_item; give one of them")
        })?;
    }
    time.epoch_item.map_or(Ok(()), |id| check_item("time.epoch_item", id))
}

/// Check the phases. Returns those of each source, less the smallest; and that one.
fn check_phases(time: &TimeSpec, bits: u32, sources: Option<u64>) -> Result<(Differ, u64), LayoutError> {
    let Some(phases) = &time.phases else { return Ok((Differ::Nowhere, 0)) };
    let field = "time.phases";
    let sources = sources.ok_or_else(|| {
        LayoutError::field(field, "are given,", "so the layout needs an axis of sources: name it in sources")
    })?;
    let listed = match phases {
        Phases::Shown(Shown::First) => {
            check(time.align == Align::Reject, || {
                LayoutError::field(
                    field,
                    "\"first\"",
                    "needs align = \"reject\": it is exact, and so needs no rounding",
                )
            })?;
            return Ok((Differ::AsShown, 0));
        }
        Phases::Listed(listed) => listed,
    };
    check(listed.len() as u64 == sources, || {
        LayoutError::field(field, listed.len(), format!("phases, but there are {sources} sources; give one for each"))
    })?;
    for &phase in listed {
        check(phase.wrapping_shr(bits) == 0, || {
            LayoutError::field(field, phase, format!("is no timestamp; those have {bits} bits"))
        })?;
    }
    let least = listed.iter().copied().min().unwrap_or(0);
    Ok((Differ::Listed(listed.iter().map(|phase| phase.saturating_sub(least)).collect()), least))
}
