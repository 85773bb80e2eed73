//! How fast captures are read, from memory and from a file: datagram after datagram, and gathered into a survey.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use speadrx::packet::capture::Capture;
use speadrx::packet::survey::Survey;

const ROUNDS: usize = 7;
const FILE_BYTES: usize = 400_000_000;
const ANTENNAS: usize = 64;

fn main() {
    println!("{:40}{:>14}{:>10}   (best of {ROUNDS})", "", "Mpackets/s", "GB/s");
    for payload in [64, 1024, 8192] {
        let file = pcap(payload);
        let path = std::env::temp_dir().join(format!("speadrx-bench-{}.pcap", std::process::id()));
        fs::write(&path, &file).expect("there is room for a file");
        let from_memory = || Box::new(Cursor::new(file.clone())) as Box<dyn Read + Send>;
        let from_file = || Box::new(File::open(&path).expect("it was written")) as Box<dyn Read + Send>;
        show(&format!("{payload} bytes, from memory"), file.len(), from_memory, read);
        show(&format!("{payload} bytes, from a file"), file.len(), from_file, read);
        show(&format!("{payload} bytes, from a file, gathered"), file.len(), from_file, gather);
        fs::remove_file(path).expect("it was written");
    }
}

fn show(
    name: &str,
    bytes: usize,
    open: impl Fn() -> Box<dyn Read + Send>,
    work: impl Fn(Box<dyn Read + Send>) -> usize,
) {
    let (mut best, mut packets) = (Duration::MAX, 0);
    for _ in 0..ROUNDS {
        let reader = open();
        let start = Instant::now();
        packets = work(reader);
        best = best.min(start.elapsed());
    }
    let rate = |n: usize| f64::from(u32::try_from(n).expect("the file is small")) / best.as_secs_f64();
    println!("{name:40}{:14.2}{:10.2}", rate(packets) / 1e6, rate(bytes) / 1e9);
}

fn read(bytes: Box<dyn Read + Send>) -> usize {
    let mut capture = Capture::new(Path::new("memory"), bytes, false).expect("it is a capture");
    let (mut packets, mut length) = (0, 0);
    while let Some(datagram) = capture.next_datagram().expect("it is whole") {
        packets += 1;
        length += datagram.payload.len();
    }
    assert!(length > 0);
    packets
}

fn gather(bytes: Box<dyn Read + Send>) -> usize {
    let mut capture = Capture::new(Path::new("memory"), bytes, false).expect("it is a capture");
    let mut survey = Survey::new(1 << 23);
    while let Some(datagram) = capture.next_datagram().expect("it is whole") {
        survey.add_datagram(&datagram);
    }
    usize::try_from(survey.counts().heaps).expect("the file is small")
}

/// A capture of heaps of one packet each, from many antennas.
fn pcap(payload: usize) -> Vec<u8> {
    let word = |value: usize| u32::try_from(value).expect("it is small").to_le_bytes();
    let short = |value: usize| u16::try_from(value).expect("it is small").to_be_bytes();
    let mut file = [0xA1B2_C3D4, 0x0004_0002, 0, 0, 65_535, 1].map(word).concat();
    for n in 0.. {
        if file.len() > FILE_BYTES {
            break;
        }
        let (time, antenna) = (n / ANTENNAS, n % ANTENNAS);
        let items = [(1, n + 1), (2, payload), (3, 0), (4, payload), (0x1600, time * 4096), (0x4101, antenna)];
        let pointers = items.map(|(id, value)| 1 << 63 | id << 48 | value).into_iter().chain([0x3300 << 48]);
        let spead = 8 + 8 * (items.len() + 1) + payload;
        let frame = 14 + 20 + 8 + spead;
        file.extend([1000 + n / 1_000_000, n % 1_000_000, frame, frame].map(word).concat());
        file.extend([[0; 12].as_slice(), &[8, 0]].concat());
        let addresses = [10, 0, 0, u8::try_from(antenna).expect("it is small"), 239, 1, 2, 3];
        file.extend([&[0x45, 0], short(frame - 14).as_slice(), &[0, 1, 0x40, 0, 4, 17, 0, 0], &addresses].concat());
        file.extend([7148, 7148, 8 + spead, 0].map(short).concat());
        file.extend([0x53, 4, 2, 6, 0, 0, 0, 7]);
        file.extend(pointers.flat_map(usize::to_be_bytes));
        file.resize(file.len() + payload, 0);
    }
    file
}
