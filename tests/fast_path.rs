//! What the fast path leaves out where the layout allows it must make no difference.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use speadrx::filled::Filled;
use speadrx::group::Group;
use speadrx::layout::Layout;
use speadrx::ledger::Ledger;
use speadrx::place::{Items, Placed, Placer, kind};
use speadrx::segment::Moment;
use speadrx::spec::LayoutSpec;
use speadrx::timeline::TimeRules;
use speadrx::window::Window;

const WINDOW: u64 = 4;

fn layout(time: &str, axes: &str, more: &str) -> Arc<Layout> {
    let toml = format!("heap_bytes = 640\ntime = {{ item = 0x1600, {time} }}\naxes = [{axes}]\n{more}");
    Arc::new(Layout::new(LayoutSpec::from_toml(&toml).expect("toml")).expect("layout"))
}

fn placer(layout: &Arc<Layout>) -> Placer {
    let geometry = layout.geometry(&BTreeMap::new()).expect("geometry");
    Placer::new(&geometry, WINDOW).expect("placer")
}

#[test]
fn the_kind_is_the_most_special_one_that_fits() {
    let sources = "sources = \"a\"";
    for (expected, time, axes, more) in [
        (kind::UNIT, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 5 }"#, sources),
        (kind::POWER, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 5, step = 64 }"#, sources),
        (kind::COMMON, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 5, step = 3 }"#, sources),
        (kind::COMMON, "step = 4095, batches = 3", r#"{ name = "a", item = 0x4101, size = 5 }"#, sources),
        (
            kind::COMMON,
            "step = 4096, batches = 3, align = \"mask\"",
            r#"{ name = "a", item = 0x4101, size = 5 }"#,
            sources,
        ),
        (kind::COMMON, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 5 }"#, ""),
        (kind::BITS, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 2, mask = 1 }"#, sources),
        (
            kind::BITS,
            "step = 4096, batches = 3",
            r#"{ name = "a", item = 0x4101, size = 8, mask = 7, shift = 3 }"#,
            sources,
        ),
        (
            kind::BITS,
            "step = 4096, batches = 3, align = \"mask\"",
            r#"{ name = "a", item = 0x4101, size = 2, mask = 1 }"#,
            "sources = \"a\"\norder = [\"a\", \"time\"]",
        ),
        (kind::COMMON, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 7, mask = 7 }"#, sources),
        (kind::COMMON, "step = 4095, batches = 3", r#"{ name = "a", item = 0x4101, size = 2, mask = 1 }"#, sources),
        (kind::COMMON, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 2, mask = 1 }"#, ""),
        (kind::COMMON, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 2, shift = 1 }"#, sources),
        (
            kind::COMMON,
            "step = 4096, batches = 3",
            r#"{ name = "a", item = 0x4101, size = 5 }"#,
            "sources = \"a\"\norder = [\"a\", \"time\"]",
        ),
        (
            kind::COMMON,
            "step = 4096, batches = 3",
            r#"{ name = "a", item = 0x4101, size = 5 }, { name = "b", item = 0x4102, size = 2 }"#,
            sources,
        ),
        (kind::UNCOMMON, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, values = [5, 7] }"#, sources),
    ] {
        assert_eq!(placer(&layout(time, axes, more)).kind(), expected, "{time}; {axes}; {more}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn kinds_agree(
        // The second ends with the timestamps of 48 bits, after a batch.
        chunk in prop_oneof![3 => Just(6_u64), 1 => Just(22_906_492_245), 1 => Just(22_906_492_246)],
        batch in -2_i64..14,
        time_off in prop_oneof![4 => Just(0_i64), 1 => -3_i64..3, 1 => any::<i64>()],
        index in -2_i64..11,
        item_off in prop_oneof![4 => Just(0_i64), 1 => -3_i64..3, 1 => any::<i64>(), 1 => Just(i64::MIN)],
        length in prop_oneof![9 => Just(640_i64), 1 => any::<i64>()],
        required in prop_oneof![9 => Just(7_i64), 1 => Just(-1_i64)],
        axis in prop_oneof!["step = 1", "step = 64", "mask = 7, shift = 6"],
    ) {
        let step = if axis == "step = 1" { 1 } else { 64 };
        let axes = format!(r#"{{ name = "a", item = 0x4101, size = 8, {axis} }}"#);
        let layout = layout("step = 4096, batches = 3", &axes, "sources = \"a\"");
        let placer = placer(&layout);
        let mut window = Window::new(&layout, WINDOW);
        window.follow(&Moment { chunk, batch: 0, epoch_first: 0, epoch_offset: 0, origin: 0, bits: 48 });
        let base = window.base as i64;
        let items = Items {
            time: base.wrapping_add(batch * 4096).wrapping_add(time_off),
            heap_length: length,
            axes: &[(index * step).wrapping_add(item_off)],
            required: &[required],
        };
        let expected = placer.place::<false, { kind::UNCOMMON }>(&window, window.limit, &items);
        agree::<{ kind::UNCOMMON }>(&placer, &window, &items, expected)?;
        agree::<{ kind::COMMON }>(&placer, &window, &items, expected)?;
        if placer.kind() == kind::BITS {
            agree::<{ kind::BITS }>(&placer, &window, &items, expected)?;
        } else {
            agree::<{ kind::POWER }>(&placer, &window, &items, expected)?;
        }
        if placer.kind() == kind::UNIT {
            agree::<{ kind::UNIT }>(&placer, &window, &items, expected)?;
        }
    }
}

/// The fast path of a kind, in any chunk of a window and in the newest alone, must place a heap as expected.
fn agree<const KIND: u8>(
    placer: &Placer,
    window: &Window,
    items: &Items<'_>,
    expected: Option<Placed>,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(placer.place::<true, KIND>(window, window.limit, items), expected);
    prop_assert_eq!(placer.place::<false, KIND>(window, window.limit, items), expected);
    let batches = 3 * window.newest();
    let in_newest = expected.filter(|placed| placed.chunk == window.newest()).map(|placed| Placed {
        chunk: 0,
        batch: placed.batch - batches,
        ..placed
    });
    prop_assert_eq!(placer.place_newest::<true, KIND>(window, window.newest_limit, items), in_newest);
    prop_assert_eq!(placer.place_newest::<false, KIND>(window, window.newest_limit, items), in_newest);
    Ok(())
}

#[test]
fn lateness_is_counted_by_its_bits_near_and_far() {
    // As many batches as have a counter of their own, one more, and many more.
    for batches in [64, 65, 300_u64] {
        let layout = layout(&format!("step = 1, batches = {batches}"), "", "");
        let group = Group::new(TimeRules::new(&layout, WINDOW, WINDOW, None, true).expect("rules"));
        let ledger = Ledger::new(&layout, WINDOW, group.epochs());
        let mut filled = Filled::new(&layout, WINDOW);
        filled.slide(0, 0, |_, _| ());
        let mut expected = ledger.snapshot().late_batches;
        for behind in 0..batches {
            let batch = batches - 1 - behind;
            let _ = ledger.count(&mut filled, 0, batch, 0, batch);
            expected[if behind == 0 { 0 } else { behind.ilog2() as usize + 1 }] += 1;
        }
        let snapshot = ledger.snapshot();
        assert_eq!(snapshot.late_batches, expected);
        assert_eq!((snapshot.late_chunks[0], snapshot.duplicates[0]), (batches, 0));
        assert_eq!(ledger.placed(0), batches);
    }
}
