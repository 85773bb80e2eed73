//! Division by a constant that is only known at run time, without a division instruction.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::num::NonZeroU64;

/// Exact division: quotient, divisibility and range check in one multiplication.
///
/// For `x = q * d` the product of `x / 2^k` and the inverse of `d / 2^k` modulo 2^64 is `q`, where 2^k is the largest
/// power of two that divides `d`; multiplication permutes the residues, so every `x` that is no multiple of `d`
/// lands above `(2^64 - 1) / d`. (Granlund and Montgomery, "Division by Invariant Integers using
/// Multiplication", section 9.)
#[derive(Clone, Copy, Debug)]
pub struct Divisor {
    inverse: u64,
    shift: u32,
}

impl Divisor {
    /// Prepare division by `divisor`.
    #[must_use]
    pub const fn new(divisor: NonZeroU64) -> Self {
        let shift = divisor.get().trailing_zeros();
        let odd = divisor.get().wrapping_shr(shift);
        // Newton's iteration doubles the number of right bits; this start has five.
        let mut inverse = odd.wrapping_mul(3) ^ 2;
        let mut bits = 5_u32;
        while bits < u64::BITS {
            inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
            bits = bits.wrapping_mul(2);
        }
        Self { inverse, shift }
    }

    /// No division, but a rotation to the right by `shift` bits.
    #[must_use]
    pub const fn rotation(shift: u32) -> Self {
        Self { inverse: 1, shift }
    }

    /// Whether the divisor is a power of two, for which [`Self::rotated`] is enough.
    #[must_use]
    pub const fn is_power_of_two(self) -> bool {
        self.inverse == 1
    }

    /// Whether the divisor is 1.
    #[must_use]
    pub const fn is_one(self) -> bool {
        self.inverse == 1 && self.shift == 0
    }

    /// [`Self::exact`] for a power of two, without the multiplication.
    #[inline]
    #[must_use]
    pub const fn rotated(self, x: u64) -> u64 {
        x.rotate_right(self.shift)
    }

    /// The quotient if `x` is a multiple of the divisor `d`, otherwise a number above `(2^64 - 1) / d`.
    #[inline]
    #[must_use]
    pub const fn exact(self, x: u64) -> u64 {
        x.wrapping_mul(self.inverse).rotate_right(self.shift)
    }
}

/// Truncating division of small numbers by a multiplication and a shift.
#[derive(Clone, Copy, Debug)]
pub struct SmallDivisor {
    multiplier: u64,
    shift: u32,
}

impl SmallDivisor {
    /// Largest number that can be divided, and largest divisor.
    pub const MAX: u64 = (1 << 31) - 1;

    /// Prepare division of numbers up to [`Self::MAX`] by `divisor`, which must not be above it either.
    ///
    /// With m = ceil(2^s / d) and s = 31 + bits(d), m d exceeds 2^s by less than d <= 2^(s - 31), so the error of
    /// x m / 2^s stays below 1 / d for every x < 2^31; and x m < 2^64, as m <= 2^32.
    #[must_use]
    pub const fn new(divisor: NonZeroU64) -> Self {
        let bits = u64::BITS.wrapping_sub(divisor.get().wrapping_sub(1).leading_zeros());
        let shift = bits.wrapping_add(31);
        let multiplier = (1_u64 << shift).div_ceil(divisor.get());
        Self { multiplier, shift }
    }

    /// `x` divided by the divisor, rounded down.
    #[inline]
    #[must_use]
    pub const fn quotient(self, x: u64) -> u64 {
        x.wrapping_mul(self.multiplier).wrapping_shr(self.shift)
    }
}

/// Truncating division of numbers below 2^63 by two multiplications and a shift.
#[derive(Clone, Copy, Debug)]
pub struct WideDivisor {
    multiplier: u128,
    shift: u32,
}

impl WideDivisor {
    /// Prepare division of numbers below 2^63 by `divisor`, which must be below 2^63, too.
    ///
    /// As for [`SmallDivisor::new`], with 63 in the place of 31; the product is below 2^127.
    #[must_use]
    pub const fn new(divisor: NonZeroU64) -> Self {
        let bits = u64::BITS.wrapping_sub(divisor.get().wrapping_sub(1).leading_zeros());
        let shift = bits.wrapping_add(63);
        let multiplier = 1_u128.wrapping_shl(shift).div_ceil(divisor.get() as u128);
        Self { multiplier, shift }
    }

    /// `x` divided by the divisor, rounded down.
    #[inline]
    #[must_use]
    pub const fn quotient(self, x: u64) -> u64 {
        (x as u128).wrapping_mul(self.multiplier).wrapping_shr(self.shift) as u64
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn divisors() -> impl Strategy<Value = NonZeroU64> {
        prop_oneof![
            (0_u32..64).prop_map(|k| 1 << k),
            1_u64..1000,
            1_u64..,
            (0_u32..64, 1_u64..1000).prop_map(|(k, m)| (m << k).max(1)),
        ]
        .prop_map(|d| NonZeroU64::new(d).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn exact_finds_quotients_and_only_those(d in divisors(), x: u64) {
            let q = Divisor::new(d).exact(x);
            if x % d == 0 {
                prop_assert_eq!(q, x / d);
            } else {
                prop_assert!(q > u64::MAX / d);
            }
            let multiple = x - x % d;
            prop_assert_eq!(Divisor::new(d).exact(multiple), x / d);
        }

        #[test]
        fn wide_quotient_is_division(d in divisors(), near in 0_u64..1 << 63, x in 0_u64..1 << 63) {
            let d = NonZeroU64::new(d.get() >> 1).unwrap_or(NonZeroU64::MIN);
            let divisor = WideDivisor::new(d);
            let multiple = near - near % d;
            for x in [x, multiple, multiple.saturating_sub(1), 0, (1 << 63) - 1] {
                prop_assert_eq!(divisor.quotient(x), x / d);
            }
        }

        #[test]
        fn small_quotient_is_division(d in 1..=SmallDivisor::MAX, near in 0..=SmallDivisor::MAX, x in 0..=SmallDivisor::MAX) {
            let divisor = SmallDivisor::new(NonZeroU64::new(d).unwrap());
            let multiple = near / d * d;
            for x in [x, multiple, multiple.saturating_sub(1), 0, SmallDivisor::MAX] {
                prop_assert_eq!(divisor.quotient(x), x / d);
            }
        }
    }
}
