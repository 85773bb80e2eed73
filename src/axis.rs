//! An axis whose index comes from an item of each heap: from its declaration, and from a value to an index.

use crate::check::{check, check_distinct, check_item, check_name, check_shift, non_zero};
use crate::divisor::Divisor;
use crate::error::LayoutError;
use crate::spec::AxisSpec;

/// Longest list of values.
const MAX_VALUES: usize = 1 << 20;

/// How the value of an item becomes an index.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// A multiple of a step, below a size.
    Step {
        /// Divides by the step.
        divisor: Divisor,
        /// The step itself.
        step: u64,
    },
    /// One of a list of values.
    Values(ValueTable),
}

/// An axis whose index comes from an item of each heap.
#[derive(Clone, Debug)]
pub struct ItemAxis {
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
    #[must_use]
    pub fn index(&self, value: u64) -> Option<u64> {
        let value = (value >> self.shift) & self.mask;
        let index = match &self.lookup {
            Lookup::Step { divisor, .. } => divisor.exact(value),
            Lookup::Values(table) => table.get(value)?,
        };
        (index < self.size).then_some(index)
    }
}

/// From sparse values to their positions, in a bounded number of steps.
#[derive(Clone, Debug)]
pub struct ValueTable {
    multiplier: u64,
    shift: u32,
    /// Each home slot is followed by enough others that no probe runs off the end.
    slots: Box<[(u64, u64)]>,
    probes: usize,
}

impl ValueTable {
    /// No value on an axis is this large.
    const EMPTY: u64 = u64::MAX;

    /// Hash `values`, which must be distinct, with whichever of a few multipliers needs the fewest probes.
    fn new(values: &[u64]) -> Self {
        let bits = (values.len() * 2).next_power_of_two().trailing_zeros().max(1);
        // Odd multiples of the golden ratio (Knuth, "The Art of Computer Programming" 3, section 6.4).
        let candidates = (0..16_u64).map(|k| 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(2 * k + 1));
        candidates
            .map(|multiplier| Self::with_multiplier(values, multiplier, bits))
            .min_by_key(|table| table.probes)
            .unwrap_or_else(|| Self::with_multiplier(values, 1, bits))
    }

    fn with_multiplier(values: &[u64], multiplier: u64, bits: u32) -> Self {
        let shift = u64::BITS - bits;
        let mut slots = vec![(Self::EMPTY, 0); (1 << bits) + values.len()];
        let mut probes = 0;
        for (index, &value) in (0..).zip(values) {
            let home = usize::try_from(value.wrapping_mul(multiplier) >> shift).unwrap_or(0);
            for (probe, slot) in (1..).zip(&mut slots[home..]) {
                if slot.0 == Self::EMPTY {
                    *slot = (value, index);
                    probes = probes.max(probe);
                    break;
                }
            }
        }
        Self { multiplier, shift, slots: slots.into(), probes }
    }

    #[inline]
    fn get(&self, value: u64) -> Option<u64> {
        let home = (value.wrapping_mul(self.multiplier) >> self.shift) as usize;
        let candidates = self.slots.get(home..)?.iter().take(self.probes);
        candidates.into_iter().find(|slot| slot.0 == value).map(|slot| slot.1)
    }
}

/// Check an axis that takes its index from an item, and add its reject reason to `reasons` unless it is known.
///
/// Returns the item's ID and the axis.
pub(crate) fn check_item_axis(
    field: &str,
    axis: &AxisSpec,
    reasons: &mut Vec<String>,
) -> Result<(u64, ItemAxis), LayoutError> {
    let item = axis.item.ok_or_else(|| {
        LayoutError::field(format!("{field}.item"), "absent", "must name an item ID (or give from_user_data)")
    })?;
    check_item(&format!("{field}.item"), item)?;
    let shift = check_shift(&format!("{field}.shift"), axis.shift)?;
    let mask = axis.mask.unwrap_or(u64::MAX);
    check(mask != 0, || LayoutError::field(format!("{field}.mask"), mask, "keeps no bit; at least one is needed"))?;
    let step = non_zero(&format!("{field}.step"), axis.step)?;
    let reach = mask & (i64::MAX as u64 >> shift);
    let (size, lookup) = match (&axis.values, axis.size) {
        (Some(values), None) => {
            check(axis.step == 1, || {
                LayoutError::field(format!("{field}.step"), axis.step, "stands beside values; give one of them")
            })?;
            (check_values(field, values, reach)?, Lookup::Values(ValueTable::new(values)))
        }
        (None, Some(size)) => {
            non_zero(&format!("{field}.size"), size)?;
            let last = (size - 1).checked_mul(step.get());
            // A mask may have holes, so this is necessary, not sufficient; unreachable indices just stay missing.
            check(last.is_some_and(|last| last <= reach), || {
                LayoutError::field(
                    format!("{field}.size"),
                    size,
                    format!(
                        "in steps of {step} goes beyond the largest value that shift and mask let through ({reach})"
                    ),
                )
            })?;
            (size, Lookup::Step { divisor: Divisor::new(step), step: step.get() })
        }
        (Some(_), Some(size)) => {
            return Err(LayoutError::field(format!("{field}.size"), size, "stands beside values; give one of them"));
        }
        (None, None) => {
            return Err(LayoutError::field(format!("{field}.size"), "absent", "must be given (or values)"));
        }
    };
    let name = axis.reject_name.clone().unwrap_or_else(|| format!("bad_{}_heaps", axis.name));
    check_name(&format!("{field}.reject_name"), &name)?;
    let built_in = ["metadata_heaps", "bad_timestamp_heaps", "implausible_timestamp_heaps", "internal_error_heaps"];
    check(!built_in.contains(&name.as_str()), || {
        LayoutError::field(format!("{field}.reject_name"), format!("{name:?}"), "is the name of a reason of its own")
    })?;
    let reason = reasons.iter().position(|reason| *reason == name).unwrap_or_else(|| {
        reasons.push(name);
        reasons.len() - 1
    });
    Ok((item, ItemAxis { shift, mask, size, lookup, reason }))
}

fn check_values(field: &str, values: &[u64], reach: u64) -> Result<u64, LayoutError> {
    let field = format!("{field}.values");
    check(!values.is_empty(), || LayoutError::field(&field, "[]", "must have at least one value"))?;
    check(values.len() <= MAX_VALUES, || {
        LayoutError::field(&field, values.len(), format!("values are too many; at most {MAX_VALUES} are possible"))
    })?;
    check_distinct(&field, values)?;
    for &value in values {
        check(value <= reach, || {
            LayoutError::field(
                &field,
                value,
                format!("is beyond the largest value that shift and mask let through ({reach})"),
            )
        })?;
    }
    Ok(values.len() as u64)
}
