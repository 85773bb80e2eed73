//! An axis whose index comes from an item of each heap: from its declaration, and from a value to an index.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::num::NonZeroU64;

use crate::check::{
    check, check_distinct, check_item, check_item_or_counter, check_mask, check_name, check_shift, non_zero,
};
use crate::clock::check_ids;
use crate::divisor::Divisor;
use crate::error::LayoutError;
use crate::packet::declared::{of_payload_items, wire_id};
use crate::reason;
use crate::spec::AxisSpec;

/// Longest list of values.
const MAX_VALUES: usize = 1 << 20;

/// How the value of an item becomes an index.
#[derive(Clone, Debug)]
pub(crate) enum Lookup {
    /// A multiple of a step, below a size.
    Step {
        /// Divides by the step.
        divisor: Divisor,
        /// The step itself.
        step: u64,
    },
    /// One of a list of values: each with its index, in the order of the values.
    Values(Box<[(u64, u64)]>),
    /// Not a value: the position of the only item that is present, of as many as the axis has indices. The first of them
    /// is where other axes have their item, the others are at this position among all items.
    Present {
        /// Position of the second.
        others: usize,
    },
}

/// An axis whose index comes from an item of each heap.
#[derive(Clone, Debug)]
pub(crate) struct ItemAxis {
    /// Bits to shift the value right by.
    pub shift: u32,
    /// Bits to keep after that.
    pub mask: u64,
    /// Number of indices.
    pub size: u64,
    /// From value to index.
    pub lookup: Lookup,
    /// Index of the reject reason.
    pub reason: usize,
}

impl ItemAxis {
    /// The index that an item's value stands for, or None if it is not on the axis.
    #[inline]
    pub fn index(&self, value: u64) -> Option<u64> {
        let value = value.wrapping_shr(self.shift) & self.mask;
        let index = match &self.lookup {
            Lookup::Step { divisor, .. } => divisor.exact(value),
            // At most 20 comparisons: the length of a list is bounded.
            Lookup::Values(values) => values.get(values.binary_search_by_key(&value, |known| known.0).ok()?)?.1,
            Lookup::Present { .. } => return None,
        };
        (index < self.size).then_some(index)
    }

    /// The index of a heap that has these items, of which the axis has the one at `position`, or None if it is not on the
    /// axis.
    #[inline]
    pub fn index_of(&self, items: &[i64], position: usize) -> Option<u64> {
        let first = items.get(position)?;
        let Lookup::Present { others } = self.lookup else {
            return u64::try_from(*first).ok().and_then(|value| self.index(value));
        };
        let others = items.get(others..)?.iter().take((self.size as usize).saturating_sub(1));
        only_present(std::iter::once(first).chain(others)).map(|(index, _)| index)
    }

    /// Whether a heap that lacks the axis's item lacks an item that it must have.
    pub fn needs_item(&self) -> bool {
        !matches!(self.lookup, Lookup::Present { .. })
    }
}

/// The only item that is present, and its position; None if there is none, or more than one.
#[inline]
pub(crate) fn only_present<'a>(items: impl Iterator<Item = &'a i64>) -> Option<(u64, u64)> {
    let mut present = (0_u64..).zip(items).filter(|(_, item)| **item >= 0);
    let (position, value) = present.next()?;
    present.next().is_none().then_some((position, *value as u64))
}

/// Check an axis that takes its index from an item, and add its reject reason to `reasons` unless it is known.
///
/// Returns the IDs that the item can have, and the axis.
pub(crate) fn check_item_axis(
    field: &str,
    axis: &AxisSpec,
    reasons: &mut Vec<String>,
) -> Result<(Vec<u64>, ItemAxis), LayoutError> {
    let axis = &*of_payload_items(field, axis)?;
    if let Some(ids) = &axis.present_items {
        return check_present_axis(field, axis, ids, reasons).map(|checked| (ids.clone(), checked));
    }
    let item = axis.item.ok_or_else(|| {
        LayoutError::field(format!("{field}.item"), "is absent;", "give an item ID (or from_user_data)")
    })?;
    check_item_or_counter(&format!("{field}.item"), item)?;
    let shift = check_shift(&format!("{field}.shift"), axis.shift)?;
    let mask = check_mask(&format!("{field}.mask"), axis.mask)?;
    let step = non_zero(&format!("{field}.step"), axis.step)?;
    let reach = mask & (i64::MAX as u64 >> shift);
    let (size, lookup) = check_lookup(field, axis, step, reach)?;
    let reason = check_reject_name(field, axis, reasons)?;
    Ok((vec![wire_id(item)], ItemAxis { shift, mask, size, lookup, reason }))
}

/// Check an axis whose index is the position of the only item that is present.
fn check_present_axis(
    field: &str,
    axis: &AxisSpec,
    ids: &[u64],
    reasons: &mut Vec<String>,
) -> Result<ItemAxis, LayoutError> {
    let list = format!("{field}.present_items");
    check_ids(&list, ids)?;
    for &id in ids {
        check_item(&list, id)?;
    }
    let for_values = axis.shift != 0 || axis.mask.is_some() || axis.step != 1 || axis.values.is_some();
    check(axis.item.is_none() && axis.size.is_none() && !for_values, || {
        LayoutError::field(
            &list,
            ids.len(),
            "IDs cannot be given together with item, shift, mask, step, size or values; it is not values that count",
        )
    })?;
    let reason = check_reject_name(field, axis, reasons)?;
    let lookup = Lookup::Present { others: usize::MAX };
    Ok(ItemAxis { shift: 0, mask: u64::MAX, size: ids.len() as u64, lookup, reason })
}

/// Check values, or size and step; `reach` has the bits that shift and mask let through. Returns the size, too.
fn check_lookup(field: &str, axis: &AxisSpec, step: NonZeroU64, reach: u64) -> Result<(u64, Lookup), LayoutError> {
    let beside_values = |name: &str, value| {
        LayoutError::field(format!("{field}.{name}"), value, "cannot be given together with values; give one of them")
    };
    match (&axis.values, axis.size) {
        (Some(_), Some(size)) => Err(beside_values("size", size)),
        (Some(values), None) => {
            check(axis.step == 1, || beside_values("step", axis.step))?;
            let size = check_values(field, values, reach)?;
            let mut sorted: Box<[(u64, u64)]> = values.iter().copied().zip(0..).collect();
            sorted.sort_unstable();
            Ok((size, Lookup::Values(sorted)))
        }
        (None, Some(size)) => {
            non_zero(&format!("{field}.size"), size)?;
            let last = size.wrapping_sub(1).checked_mul(step.get());
            // A mask may also have holes further down: those of the indices in between just stay missing.
            check(last.is_some_and(|last| last & reach == last), || {
                LayoutError::field(
                    format!("{field}.size"),
                    size,
                    format!(
                        "indices in steps of {step} need values that do not fit (shift and mask keep only the bits {reach:#x})"
                    ),
                )
            })?;
            Ok((size, Lookup::Step { divisor: Divisor::new(step), step: step.get() }))
        }
        (None, None) => Err(LayoutError::field(format!("{field}.size"), "is absent;", "give size or values")),
    }
}

/// Check the name of the axis's reject reason, add it to `reasons` unless it is known, and return its index.
fn check_reject_name(field: &str, axis: &AxisSpec, reasons: &mut Vec<String>) -> Result<usize, LayoutError> {
    let name = axis.reject_name.clone().unwrap_or_else(|| format!("bad_{}_heaps", axis.name));
    check_name(&format!("{field}.reject_name"), &name)?;
    check(!reason::FIRST.contains(&name.as_str()) && !reason::LAST.contains(&name.as_str()), || {
        LayoutError::field(
            format!("{field}.reject_name"),
            format!("{name:?}"),
            "is a name that every layout has already; give the axis another reject_name",
        )
    })?;
    let known = reasons.iter().position(|reason| *reason == name);
    Ok(known.unwrap_or_else(|| {
        reasons.push(name);
        reasons.len().saturating_sub(1)
    }))
}

fn check_values(field: &str, values: &[u64], reach: u64) -> Result<u64, LayoutError> {
    let field = format!("{field}.values");
    check(!values.is_empty(), || LayoutError::field(&field, "[]", "must have at least one value"))?;
    check(values.len() <= MAX_VALUES, || {
        LayoutError::field(&field, values.len(), format!("values are too many; there can be at most {MAX_VALUES}"))
    })?;
    check_distinct(&field, values)?;
    for &value in values {
        check(value & reach == value, || {
            LayoutError::field(&field, value, format!("does not fit; only the bits {reach:#x} pass shift and mask"))
        })?;
    }
    Ok(values.len() as u64)
}
