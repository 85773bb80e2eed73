//! Checks that single fields of a declaration must pass, with errors that name field, value and what would be right.

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use crate::error::LayoutError;
use crate::packet::declared::Synthetic;

/// Largest item ID of SPEAD-64-40, the flavour with the widest IDs that is in use.
pub(crate) const MAX_ITEM_ID: u64 = (1 << 23) - 1;
/// IDs up to this one (stream control) steer the protocol itself.
pub(crate) const LAST_CONTROL_ID: u64 = 6;
/// Largest shift: the sign bit marks an absent item, so that values have 63 bits at most.
pub(crate) const MAX_SHIFT: u64 = 62;
/// Fewest and most bits of a timestamp. Item values have 63 bits, and unwrapped times must fit 64 bits with a sign.
pub(crate) const MIN_TIME_BITS: u64 = 8;
pub(crate) const MAX_TIME_BITS: u64 = 60;
/// ID of the heap counter.
pub(crate) const HEAP_COUNTER_ID: u64 = 1;
/// What [`check_name`] accepts, for the JSON Schema.
#[cfg(test)]
pub(crate) const NAME: &str = "^[A-Za-z_][A-Za-z0-9_]*$";

pub(crate) fn check(condition: bool, error: impl FnOnce() -> LayoutError) -> Result<(), LayoutError> {
    if condition { Ok(()) } else { Err(error()) }
}

pub(crate) fn non_zero(field: &str, value: u64) -> Result<NonZeroU64, LayoutError> {
    NonZeroU64::new(value).ok_or_else(|| LayoutError::field(field, value, "must be at least 1"))
}

pub(crate) fn check_item(field: &str, id: u64) -> Result<(), LayoutError> {
    if Synthetic::of(id).is_some() {
        return Ok(());
    }
    check(id > LAST_CONTROL_ID, || {
        LayoutError::field(
            field,
            format!("{id:#x}"),
            format!("is reserved by the SPEAD protocol; it must be above {LAST_CONTROL_ID:#x}"),
        )
    })?;
    check(id <= MAX_ITEM_ID, || {
        LayoutError::field(
            field,
            format!("{id:#x}"),
            format!("has more than 23 bits; an item ID must be at most {MAX_ITEM_ID:#x}"),
        )
    })
}

/// Check the ID of an item that may be the heap counter.
pub(crate) fn check_item_or_counter(field: &str, id: u64) -> Result<(), LayoutError> {
    if id == HEAP_COUNTER_ID { Ok(()) } else { check_item(field, id) }
}

/// Check a mask of the bits that are kept.
pub(crate) fn check_mask(field: &str, mask: Option<u64>) -> Result<u64, LayoutError> {
    let mask = mask.unwrap_or(u64::MAX);
    check(mask != 0, || LayoutError::field(field, mask, "keeps no bit; at least one is needed"))?;
    Ok(mask)
}

pub(crate) fn check_shift(field: &str, shift: u64) -> Result<u32, LayoutError> {
    u32::try_from(shift)
        .ok()
        .filter(|_| shift <= MAX_SHIFT)
        .ok_or_else(|| LayoutError::field(field, shift, "must be below 63; a value has 63 bits"))
}

pub(crate) fn check_name(field: &str, name: &str) -> Result<(), LayoutError> {
    let mut chars = name.chars();
    let good = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    check(good, || {
        LayoutError::field(
            field,
            format!("{name:?}"),
            "must be a name: letters, digits and underscores, with no digit first",
        )
    })
}

pub(crate) fn check_user_data_name(field: &str, name: &str) -> Result<(), LayoutError> {
    check_name(field, name)?;
    check(name != "stats_base", || {
        LayoutError::field(field, format!("{name:?}"), "is a name that speadrx uses itself; choose another one")
    })
}

pub(crate) fn check_distinct<T: Ord + Clone + std::fmt::Debug>(
    field: &str,
    values: impl IntoIterator<Item = T>,
) -> Result<(), LayoutError> {
    let mut seen = BTreeSet::new();
    for value in values {
        check(seen.insert(value.clone()), || {
            LayoutError::field(field, format!("{value:?}"), "is given twice; all must be different")
        })?;
    }
    Ok(())
}

pub(crate) fn product(field: &str, factors: &[u64], limit: u64, what: &str) -> Result<u64, LayoutError> {
    let shown = || factors.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
    factors
        .iter()
        .try_fold(1_u64, |all, &factor| all.checked_mul(factor))
        .filter(|&all| all <= limit)
        .ok_or_else(|| LayoutError::field(field, shown(), format!("{what}, which must be at most {limit}")))
}
