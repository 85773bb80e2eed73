//! Any text is refused with an error, or makes a declaration that is the same when written and read again.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use speadrx::layout::Layout;
use speadrx::spec::LayoutSpec;
use speadrx_fuzz::{Declared, Style};

/// What texts are spoiled with.
const PIECES: [&str; 24] = [
    "\n",
    "=",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'''",
    "#",
    ",",
    ".",
    "-",
    "_",
    "0x",
    "1e",
    "nan",
    "inf",
    "true",
    "[[axes]]",
    "[time]",
    "9223372036854775808",
    "18446744073709551616",
    "1979-05-27",
    "\u{feff}",
];

fuzz_target!(|bytes: &[u8]| {
    // The first byte says whether the rest is the text itself: a seed can then be a file that one can read.
    match bytes.split_first() {
        Some((b'#', text)) => check(&String::from_utf8_lossy(text)),
        Some((_, rest)) => {
            // Out of bytes: nothing to test.
            let _ = run(&mut Unstructured::new(rest));
        }
        None => (),
    }
});

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let style = if bool::arbitrary(u)? { Style::Hostile } else { Style::Sensible };
    let Declared { spec, .. } = Declared::new(u, style)?;
    // Numbers beyond 2^63 have no form in TOML.
    let Ok(mut text) = spec.to_toml() else { return Ok(()) };
    let again = LayoutSpec::from_toml(&text).expect("was written by to_toml");
    // As text, for a rate that is not a number equals nothing, not even itself.
    assert_eq!(format!("{again:?}"), format!("{spec:?}"), "{text}");
    check(&text);
    for _ in 0..u.int_in_range(0..=4)? {
        let at = position(u, &text)?;
        match u.int_in_range(0..=3)? {
            0 => text.insert_str(at, u.choose(&PIECES)?),
            1 => text.insert(at, char::arbitrary(u)?),
            2 => {
                let end = position(u, &text)?;
                text.drain(at.min(end)..at.max(end));
            }
            _ => {
                let end = position(u, &text)?;
                let copy = text[at.min(end)..at.max(end)].to_owned();
                text.insert_str(at, &copy);
            }
        }
        check(&text);
    }
    Ok(())
}

/// A place between two characters.
fn position(u: &mut Unstructured<'_>, text: &str) -> Result<usize> {
    let at = u.int_in_range(0..=text.len())?;
    Ok((0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0))
}

fn check(text: &str) {
    let Ok(spec) = LayoutSpec::from_toml(text) else { return };
    let written = spec.to_toml().unwrap_or_else(|error| panic!("{text:?} is read but not written: {error}"));
    let again =
        LayoutSpec::from_toml(&written).unwrap_or_else(|error| panic!("{written:?} is not read again: {error}"));
    assert_eq!(format!("{again:?}"), format!("{spec:?}"), "{text:?}");
    assert_eq!(again.to_toml().expect("was written before"), written);
    // It may be no layout; there is no other way to go wrong.
    let _ = Layout::new(spec);
}
