//! Any declaration is refused with an error, or makes a layout in which no two heaps share a byte.
#![no_main]

use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use speadrx::layout::{Geometry, HEAP_LENGTH_ID, Layout};
use speadrx::spec::{AxisSpec, LayoutSpec};
use speadrx_fuzz::{Declared, Style, indices, number, sizes, slot};

/// Chunks of up to so many heaps are looked at heap by heap.
const FEW_HEAPS: u64 = 2048;

fuzz_target!(|bytes: &[u8]| {
    // Out of bytes: nothing to test.
    let _ = run(&mut Unstructured::new(bytes));
});

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let style = if u.ratio(3, 4)? { Style::Hostile } else { Style::Sensible };
    let Declared { spec, user_data } = Declared::new(u, style)?;
    let layout = match Layout::new(spec.clone()) {
        Ok(layout) => Arc::new(layout),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return Ok(());
        }
    };
    check_layout(&layout, &spec);
    if let Ok(geometry) = layout.geometry(&user_data) {
        check_geometry(u, &layout, &geometry)?;
    }
    // With the indices that user data holds at rest, and the strides dense, there always is one.
    let at_rest = layout.required_user_data().map(|field| (field.to_owned(), 0)).collect();
    let geometry = layout.geometry(&at_rest).expect("proven with the layout");
    check_geometry(u, &layout, &geometry)
}

fn check_layout(layout: &Layout, spec: &LayoutSpec) {
    let times = spec.time.item.ids();
    let present = |axis: &AxisSpec| axis.present_items.clone().unwrap_or_default();
    let item_axes = spec.axes.iter().filter_map(|axis| axis.item.or(present(axis).first().copied()));
    let mut items = vec![times[0], HEAP_LENGTH_ID];
    items.extend(item_axes);
    items.extend(spec.side_items.iter().map(|side| side.item));
    items.extend(&spec.required_items);
    items.extend(&times[1..]);
    spec.axes.iter().for_each(|axis| items.extend(present(axis).into_iter().skip(1)));
    items.extend(spec.time.epoch_item);
    assert_eq!(layout.items(), items);
    for (i, reason) in layout.reasons().iter().enumerate() {
        assert!(!layout.reasons()[..i].contains(reason), "{reason} stands there twice");
    }
    assert_eq!(u128::from(layout.chunk_step()), u128::from(spec.time.step) * u128::from(spec.time.batches));
    let heaps: u128 = sizes(spec).iter().map(|&size| u128::from(size)).product();
    assert_eq!(u128::from(layout.chunk_heaps()), heaps);
    assert!((1..=layout.chunk_heaps()).contains(&layout.n_sources()));
    // What is accepted can be written down, and says the same when read again (2^63 and more has no form in TOML).
    if let Ok(text) = spec.to_toml() {
        assert_eq!(&LayoutSpec::from_toml(&text).expect("was written by to_toml"), spec, "{text}");
    }
}

fn check_geometry(u: &mut Unstructured<'_>, layout: &Layout, geometry: &Geometry) -> Result<()> {
    let spec = layout.spec();
    let sizes = sizes(spec);
    assert_eq!(geometry.strides().len(), sizes.len());
    let heap_bytes = u128::from(spec.heap_bytes);
    let span = u128::from(geometry.span_bytes());
    assert!(i64::try_from(geometry.span_bytes()).is_ok());
    if let Some(bytes) = layout.chunk_bytes() {
        assert!(u128::from(bytes) >= span);
    }
    let place = |at: u64| {
        let (index, offset) = slot(&sizes, geometry, &indices(&sizes, at));
        assert_eq!(index, u128::from(at));
        assert!(offset + heap_bytes <= span, "heap {at} leaves the chunk");
        offset
    };
    let last = layout.chunk_heaps() - 1;
    assert_eq!(place(last) + heap_bytes, span, "the last heap does not end the chunk");
    if last < FEW_HEAPS {
        let mut offsets: Vec<u128> = (0..=last).map(place).collect();
        offsets.sort_unstable();
        assert!(offsets.windows(2).all(|pair| pair[0] + heap_bytes <= pair[1]), "heaps overlap");
    } else {
        // Too many to look at all: pairs of the fuzzer's choice, also ones that are near each other.
        for _ in 0..8 {
            let one = number(u)? % (last + 1);
            let other = if bool::arbitrary(u)? { (one + number(u)? % 9) % (last + 1) } else { number(u)? % (last + 1) };
            let (a, b) = (place(one), place(other));
            assert!(one == other || a.abs_diff(b) >= heap_bytes, "heaps {one} and {other} overlap");
        }
    }
    Ok(())
}
