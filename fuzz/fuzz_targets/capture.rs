//! Any file is refused with an error, or gives datagrams; each of its packets is among them or is counted.
#![no_main]

use std::io::Cursor;
use std::net::SocketAddr;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use speadrx::packet::capture::{Capture, Counts};
use speadrx::packet::survey::Survey;

/// Link layers that have a decoder, and one that has none.
const LINKS: [u32; 11] = [1, 1, 0, 12, 101, 108, 113, 228, 229, 276, 147];

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    // A seed may be a file as it is; the other kind spends no bytes on headers of files.
    let file = if kind.is_ascii_alphanumeric() { frames(kind, rest) } else { bytes.to_vec() };
    let (whole, counts) = read(&file, false);
    let (all, with_cut) = read(&file, true);
    let skipped = |counts: &Counts| counts.skipped().map(|(_, n)| n).sum::<u64>();
    for (given, counts) in [(&whole, &counts), (&all, &with_cut)] {
        assert_eq!(given.len() as u64 + skipped(counts) + counts.joined, counts.frames + counts.split);
    }
    assert_eq!((counts.frames, counts.cut_short), (with_cut.frames, with_cut.cut_short));
    assert!(whole.iter().all(|datagram| datagram.payload.len() == datagram.length));
    assert!(all.iter().all(|datagram| datagram.payload.len() <= datagram.length));
    assert!(whole.iter().eq(all.iter().filter(|datagram| datagram.payload.len() == datagram.length)));
    survey(&all);
});

/// Make a pcap file of frames, each with a byte before it for its length.
fn frames(kind: u8, mut bytes: &[u8]) -> Vec<u8> {
    let word = |value: u32| value.to_le_bytes();
    let mut file = [0xA1B2_C3D4, 0x0004_0002, 0, 0, 65_535, LINKS[usize::from(kind) % LINKS.len()]].map(word).concat();
    while let Some((&length, rest)) = bytes.split_first() {
        let (frame, rest) = rest.split_at(rest.len().min(length.into()));
        // Now and then, it was cut short.
        let sent = frame.len() as u32 + if length % 8 == 7 { 100 } else { 0 };
        file.extend([1000, 0, frame.len() as u32, sent].map(word).concat());
        file.extend(frame);
        bytes = rest;
    }
    file
}

#[derive(PartialEq)]
struct Given {
    time: i64,
    ends: [SocketAddr; 2],
    payload: Vec<u8>,
    length: usize,
}

/// Read all datagrams, up to the damage if there is any.
fn read(file: &[u8], cut: bool) -> (Vec<Given>, Counts) {
    let bytes = Box::new(Cursor::new(file.to_vec()));
    let mut given = Vec::new();
    let mut capture = match Capture::new(Path::new("capture"), bytes, cut) {
        Ok(capture) => capture,
        Err(error) => {
            assert!(error.to_string().starts_with("capture "));
            return (given, Counts::default());
        }
    };
    let mut is_damaged = false;
    loop {
        match capture.next_datagram() {
            Ok(None) => break,
            Ok(Some(datagram)) => given.push(Given {
                time: datagram.time,
                ends: [datagram.source, datagram.destination],
                payload: datagram.payload.to_vec(),
                length: datagram.length,
            }),
            Err(error) => {
                assert!(error.to_string().starts_with("capture is damaged: "));
                is_damaged = true;
            }
        }
    }
    assert!(matches!(capture.next_datagram(), Ok(None)));
    assert!(!(is_damaged && capture.is_truncated()));
    (given, capture.counts().clone())
}

fn survey(all: &[Given]) {
    let mut survey = Survey::new(300);
    for given in all {
        survey.add_datagram(&speadrx::packet::capture::Datagram {
            time: given.time,
            source: given.ends[0],
            destination: given.ends[1],
            payload: &given.payload,
            length: given.length,
        });
    }
    let counts = survey.counts();
    assert_eq!(counts.packets, all.len() as u64);
    let kept: usize = survey.kinds().iter().map(|kind| kind.values.len()).sum();
    assert!(kept <= 300);
    for kind in survey.kinds() {
        let heaps = kind.numbers.len();
        assert_eq!((kind.bytes.len(), kind.senders.len(), kind.values.len()), (heaps, heaps, heaps * kind.keys.len()));
    }
    for traffic in [survey.addresses().senders().collect::<Vec<_>>(), survey.addresses().destinations().collect()] {
        assert_eq!(traffic.iter().map(|(_, traffic)| traffic.packets).sum::<u64>(), counts.packets);
    }
}
