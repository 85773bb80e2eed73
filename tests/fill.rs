//! Filling missing heaps against a slow, obvious version: random orders and strides, random losses, any pattern.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use speadrx::chunk::{fill_missing, zero_missing_extra};
use speadrx::layout::{Geometry, Layout};
use speadrx::spec::LayoutSpec;

/// A layout whose axes have these sizes, time in the middle, in some order of arrays and another of memory.
#[derive(Clone, Debug)]
struct Case {
    heap_bytes: u64,
    sizes: Vec<u64>,
    array_order: Vec<Index>,
    /// None if the memory has the order of the arrays.
    memory_order: Option<Vec<Index>>,
    /// Bytes between one index of an axis and the next, by the axis's place in memory. Every other comes from user data,
    /// where memory has the order of the arrays: a layout must do without.
    gaps: Vec<u64>,
}

impl Case {
    fn geometry(&self) -> Geometry {
        let shuffled = |mut names: Vec<usize>, picks: &[Index]| {
            for (i, pick) in picks.iter().enumerate().take(names.len()) {
                let other = pick.index(names.len());
                names.swap(i, other);
            }
            names
        };
        let order = shuffled((0..self.sizes.len()).collect(), &self.array_order);
        let in_memory = match &self.memory_order {
            Some(picks) => shuffled(order.clone(), picks),
            None => order.clone(),
        };
        let mut user_data = BTreeMap::new();
        let mut strides = Vec::new();
        let mut extent = self.heap_bytes;
        for (place, &axis) in in_memory.iter().rev().enumerate() {
            let stride = extent + self.gaps[place];
            extent = stride * self.sizes[axis];
            if self.memory_order.is_some() || place % 2 == 0 {
                strides.push(format!("a{axis} = {stride}"));
            } else {
                strides.push(format!("a{axis} = \"stride{axis}\""));
                user_data.insert(format!("stride{axis}"), stride);
            }
        }
        let text = self.toml(&order, &strides);
        let layout = Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap();
        Arc::new(layout).geometry(&user_data).unwrap()
    }

    /// The layout, with the axes in an order for its arrays, and strides as lines of TOML.
    fn toml(&self, order: &[usize], strides: &[String]) -> String {
        let axes: Vec<_> = self.sizes[1..]
            .iter()
            .enumerate()
            .map(|(i, size)| format!("[[axes]]\nname = \"a{}\"\nitem = {}\nsize = {size}", i + 1, 0x4101 + i))
            .collect();
        format!(
            r#"
            heap_bytes = {}
            order = {:?}
            side_items = [{{ name = "a", item = 0x3000, dtype = "u16" }}, {{ name = "b", item = 0x3001, dtype = "u8" }}]
            {}
            [time]
            item = 0x1600
            step = 1
            batches = {}
            name = "a0"
            [strides]
            {}
            "#,
            self.heap_bytes,
            order.iter().map(|axis| format!("a{axis}")).collect::<Vec<_>>(),
            axes.join("\n"),
            self.sizes[0],
            strides.join("\n"),
        )
    }

    /// Size of each axis in the order of the arrays.
    fn shape(&self, geometry: &Geometry) -> Vec<u64> {
        let order = geometry.layout().spec().order.clone().unwrap();
        order.iter().map(|name| self.sizes[name[1..].parse::<usize>().unwrap()]).collect()
    }
}

fn case() -> impl Strategy<Value = Case> {
    let size = prop_oneof![Just(1_u64), 1_u64..5, Just(13)];
    let gap = prop_oneof![3 => Just(0_u64), 1 => 1_u64..20];
    (
        prop_oneof![1_u64..25, Just(64), Just(96), Just(120)],
        vec(size, 1..4),
        vec(any::<Index>(), 4),
        proptest::option::of(vec(any::<Index>(), 4)),
        vec(gap, 4),
    )
        .prop_map(|(heap_bytes, sizes, array_order, memory_order, gaps)| Case {
            heap_bytes,
            sizes,
            array_order,
            memory_order,
            gaps,
        })
}

/// Fill heaps in one row, at an address with such a remainder, and compare.
fn fill_row(heap_bytes: usize, present: &[u8], pattern: &[u8], remainder: usize) {
    const LINE: usize = 64;
    let case = Case {
        heap_bytes: heap_bytes as u64,
        sizes: vec![present.len() as u64],
        array_order: Vec::new(),
        memory_order: None,
        gaps: vec![0],
    };
    let length = heap_bytes * present.len();
    let mut memory = vec![0xee; length + 2 * LINE];
    let start = (remainder + LINE - memory.as_ptr().addr() % LINE) % LINE;
    let heap = pattern.repeat(heap_bytes / pattern.len());
    let mut expected = memory.clone();
    let mut missing = 0;
    for i in (0..present.len()).filter(|&i| present[i] == 0) {
        expected[start + i * heap_bytes..][..heap_bytes].copy_from_slice(&heap);
        missing += 1;
    }
    let filled = fill_missing(&case.geometry(), present, &mut memory[start..start + length], pattern);
    let what = format!("heaps of {heap_bytes}, pattern of {}, at {remainder}", pattern.len());
    assert_eq!(filled, Some(missing), "{what}");
    assert!(memory == expected, "{what}");
}

/// Sizes around those from which bytes are written in another way, anywhere in a line of the cache.
#[test]
fn heaps_of_any_size_are_filled_at_any_address() {
    // Single heaps, and then a run.
    let present: Vec<u8> = (0..40).map(|i| u8::from(i < 25 && i % 3 != 0)).collect();
    let noise: Vec<u8> = (0..8200_u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    for heap_bytes in [1, 8, 63, 64, 248, 255, 256, 257, 264, 640, 2040, 2048, 2056, 4095, 4096, 4104, 8192, 8200] {
        for length in [1, 2, 4, 8, 16, heap_bytes].into_iter().filter(|length| heap_bytes % length == 0) {
            for remainder in [0, 1, 8, 16, 48, 63] {
                fill_row(heap_bytes, &present, &noise[..length], remainder);
            }
        }
    }
}

/// Few and many: they are looked for some at a time.
#[test]
fn any_number_of_runs_is_filled() {
    for runs in (0..70).chain(125..132).chain([1000]) {
        let present: Vec<u8> = (0..=2 * runs).map(|i| u8::from(i % 2 == 0)).collect();
        fill_row(24, &present, &[1, 2, 3], 0);
    }
}

/// Which heaps are present: a fraction of them, in runs.
fn present(heaps: usize, runs: &[(u8, Index)]) -> Vec<u8> {
    let mut present = Vec::new();
    for (flag, length) in runs.iter().cycle() {
        if present.len() == heaps {
            break;
        }
        let length = (length.index(heaps) + 1).min(heaps - present.len());
        present.resize(present.len() + length, *flag);
    }
    present
}

/// The index on each axis, of one heap after the other.
fn indices(shape: &[u64]) -> Vec<Vec<u64>> {
    shape.iter().fold(vec![vec![]], |all, &size| {
        all.iter().flat_map(|index| (0..size).map(|i| [&index[..], &[i]].concat())).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20_240_611),
        ..ProptestConfig::default()
    })]

    #[test]
    fn only_missing_heaps_are_filled(
        case in case(),
        // Whatever is not 0 means present.
        runs in vec((prop_oneof![Just(0_u8), Just(1), Just(255)], any::<Index>()), 1..40),
        divisor in any::<Index>(),
        noise in any::<[u8; 16]>(),
        uniform in any::<bool>(),
        spare in 0_usize..9,
    ) {
        let geometry = case.geometry();
        let present = present(geometry.layout().chunk_heaps() as usize, &runs);
        let divisors: Vec<_> = (1..=case.heap_bytes).filter(|&n| case.heap_bytes % n == 0).collect();
        let length = divisors[divisor.index(divisors.len())] as usize;
        let pattern: Vec<u8> = (0..length).map(|i| if uniform { 7 } else { noise[i % 16].wrapping_add(i as u8) }).collect();
        let mut data: Vec<u8> = (0..geometry.span_bytes() as usize + spare).map(|i| ((i * 131) >> 3) as u8).collect();

        let mut expected = data.clone();
        let mut missing = 0;
        for (index, &heap) in indices(&case.shape(&geometry)).iter().zip(&present) {
            if heap == 0 {
                let offset: u64 = index.iter().zip(geometry.strides()).map(|(i, stride)| i * stride).sum();
                for i in 0..case.heap_bytes as usize {
                    expected[offset as usize + i] = pattern[i % length];
                }
                missing += 1;
            }
        }
        prop_assert_eq!(fill_missing(&geometry, &present, &mut data, &pattern), Some(missing));
        prop_assert_eq!(&data, &expected);
        // Again, it changes nothing.
        prop_assert_eq!(fill_missing(&geometry, &present, &mut data, &pattern), Some(missing));
        prop_assert_eq!(&data, &expected);

        let mut extra = vec![0xaa; present.len() * 3 + spare];
        prop_assert_eq!(zero_missing_extra(geometry.layout(), &present, &mut extra), Some(()));
        for (i, &byte) in extra.iter().enumerate() {
            prop_assert_eq!(byte, if present.get(i / 3) == Some(&0) { 0 } else { 0xaa });
        }
    }

    #[test]
    fn what_does_not_fit_is_refused(case in case()) {
        let geometry = case.geometry();
        let heaps = geometry.layout().chunk_heaps() as usize;
        let span = geometry.span_bytes() as usize;
        let mut data = vec![1; span];
        let whole = vec![0; case.heap_bytes as usize];
        let too_long = vec![0; whole.len() + 1];
        for (present, length, pattern) in [
            (vec![0; heaps - 1], span, &whole[..]),
            (vec![0; heaps + 1], span, &whole),
            (vec![0; heaps], span - 1, &whole),
            (vec![0; heaps], span, &[]),
            (vec![0; heaps], span, &too_long),
        ] {
            prop_assert_eq!(fill_missing(&geometry, &present, &mut data[..length], pattern), None);
        }
        prop_assert!(data.iter().all(|&byte| byte == 1));
        let mut extra = vec![1; heaps * 3];
        prop_assert_eq!(zero_missing_extra(geometry.layout(), &vec![0; heaps], &mut extra[1..]), None);
        prop_assert_eq!(zero_missing_extra(geometry.layout(), &vec![0; heaps + 1], &mut extra), None);
        prop_assert!(extra.iter().all(|&byte| byte == 1));
    }
}
