//! What the fast path leaves out where the layout allows it must make no difference.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use speadrx::group::Group;
use speadrx::layout::{Layout, Slot};
use speadrx::ledger::{Filled, Ledger};
use speadrx::place::{Items, Placer, kind};
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
        (kind::COMMON, "step = 4096, batches = 3", r#"{ name = "a", item = 0x4101, size = 2, mask = 1 }"#, sources),
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
        batch in -2_i64..14,
        time_off in prop_oneof![4 => Just(0_i64), 1 => -3_i64..3, 1 => any::<i64>()],
        index in -2_i64..8,
        item_off in prop_oneof![4 => Just(0_i64), 1 => -3_i64..3, 1 => any::<i64>(), 1 => Just(i64::MIN)],
        length in prop_oneof![9 => Just(640_i64), 1 => any::<i64>()],
        required in prop_oneof![9 => Just(7_i64), 1 => Just(-1_i64)],
        power in any::<bool>(),
    ) {
        let step = if power { 64 } else { 1 };
        let axes = format!(r#"{{ name = "a", item = 0x4101, size = 5, step = {step} }}"#);
        let layout = layout("step = 4096, batches = 3", &axes, "sources = \"a\"");
        let placer = placer(&layout);
        let mut window = Window::new(&layout, WINDOW);
        window.follow(&Moment { chunk: 6, batch: 0, epoch_first: 0, epoch_offset: 0, origin: 0, bits: 48 });
        let base = window.base as i64;
        let items = Items {
            time: base.wrapping_add(batch * 4096).wrapping_add(time_off),
            heap_length: length,
            axes: &[(index * step).wrapping_add(item_off)],
            required: &[required],
        };
        let expected = placer.place::<false, { kind::UNCOMMON }>(&window, window.limit, &items);
        prop_assert_eq!(placer.place::<true, { kind::COMMON }>(&window, window.limit, &items), expected);
        if power {
            prop_assert_eq!(placer.place::<true, { kind::POWER }>(&window, window.limit, &items), expected);
            prop_assert_eq!(placer.place::<false, { kind::POWER }>(&window, window.limit, &items), expected);
        } else {
            prop_assert_eq!(placer.place::<true, { kind::UNIT }>(&window, window.limit, &items), expected);
            prop_assert_eq!(placer.place::<false, { kind::UNIT }>(&window, window.limit, &items), expected);
        }
    }
}

#[test]
fn lateness_is_counted_by_its_bits_near_and_far() {
    let layout = layout("step = 1, batches = 300", "", "");
    let group = Group::new(TimeRules::new(&layout, WINDOW, WINDOW, None, true).expect("rules"));
    let ledger = Ledger::new(&layout, WINDOW, group.epochs());
    let mut filled = Filled::new(&layout, WINDOW);
    filled.slide(0, 0, |_, _| ());
    let mut expected = ledger.snapshot().late_batches;
    for behind in 0..300_u64 {
        let batch = 299 - behind;
        let _ = ledger.count(&mut filled, 0, batch, 0, Slot { index: batch, offset: 0 });
        expected[if behind == 0 { 0 } else { behind.ilog2() as usize + 1 }] += 1;
    }
    let snapshot = ledger.snapshot();
    assert_eq!(snapshot.late_batches, expected);
    assert_eq!((snapshot.late_chunks[0], snapshot.duplicates[0]), (300, 0));
    assert_eq!(ledger.placed(0), 300);
}
