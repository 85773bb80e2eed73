//! Packets by hand through the mender: what spead2 gets, and what is counted of the rest.

use speadrx::layout::Layout;
use speadrx::packet::mend::{Arrival, Mender};
use speadrx::packet::spead::Packet;
use speadrx::spec::LayoutSpec;

const TIME: u64 = 0x1600;
const ANTENNA: u64 = 0x4101;
const DATA: u64 = 0x4300;

/// An item: ID, value, and whether it is immediate.
type Item = (u64, u64, bool);

fn packet(bits: u32, items: &[Item], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x53, 4, (8 - bits / 8) as u8, (bits / 8) as u8, 0, 0, 0, items.len() as u8];
    for &(id, value, immediate) in items {
        bytes.extend((u64::from(immediate) << 63 | id << bits | value).to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A packet of a heap, with the items that every packet must have.
fn part(counter: u64, heap: u64, offset: u64, items: &[Item], payload: &[u8]) -> Vec<u8> {
    let mut all = vec![(1, counter, true), (2, heap, true), (3, offset, true), (4, payload.len() as u64, true)];
    all.extend(items);
    packet(48, &all, payload)
}

/// What spead2 gets of a packet.
#[derive(Debug, PartialEq)]
struct Got {
    counter: u64,
    heap_bytes: u64,
    offset: u64,
    items: Vec<(u64, u64)>,
    payload: Vec<u8>,
    /// Whether it ends the stream.
    stops: bool,
}

/// Read packets one after the other, as spead2 reads them from a connection. Each must be good.
fn read(mut bytes: &[u8]) -> Vec<Got> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let packet = Packet::read(bytes, bytes.len()).unwrap();
        packet.check().unwrap();
        let payload = packet.rest[..packet.payload_bytes.unwrap() as usize].to_vec();
        all.push(Got {
            counter: packet.heap_counter.unwrap(),
            heap_bytes: packet.heap_bytes.unwrap(),
            offset: packet.offset.unwrap(),
            items: packet
                .pointers()
                .filter(|pointer| pointer.immediate && pointer.id > 6)
                .map(|pointer| (pointer.id, pointer.value))
                .collect(),
            payload: payload.clone(),
            stops: packet.pointers().any(|pointer| pointer.immediate && (pointer.id, pointer.value) == (6, 2)),
        });
        bytes = &bytes[packet.start() + payload.len()..];
    }
    all
}

fn layout(more: &str) -> Layout {
    let text = format!("heap_bytes = 8\n{more}\n[time]\nitem = {TIME}\nstep = 1\nbatches = 4\n");
    Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap()
}

struct Run {
    mender: Mender,
    out: Vec<u8>,
}

impl Run {
    fn new(more: &str) -> Self {
        Self { mender: Mender::new(Some(&layout(more))), out: Vec::new() }
    }

    fn give(&mut self, sender: u64, time: i64, data: &[u8]) {
        self.mender.take(data, data.len(), Arrival { sender, time }, &mut self.out);
    }

    fn all(mut self, packets: &[Vec<u8>]) -> (Vec<Got>, Vec<(&'static str, u64)>) {
        for packet in packets {
            self.give(0, 0, packet);
        }
        self.end()
    }

    fn end(mut self) -> (Vec<Got>, Vec<(&'static str, u64)>) {
        self.mender.finish();
        let counts = self.mender.counts();
        let got = read(&self.out);
        assert_eq!(counts.written(), got.len() as u64);
        let unused = counts.unused().filter(|(_, n)| *n > 0).map(|(why, n)| (why.name(), n)).collect();
        (got, unused)
    }
}

#[test]
fn packets_that_spead2_takes_stay_as_they_are() {
    let packets = [
        part(7, 8, 0, &[(TIME, 5, true), (DATA, 0, false)], b"abcdefgh"),
        packet(40, &[(1, 8, true), (2, 8, true), (3, 0, true), (4, 8, true), (TIME, 6, true)], b"ABCDEFGH"),
    ];
    let mut run = Run::new("");
    for packet in &packets {
        run.give(0, 0, packet);
    }
    assert_eq!(run.out, packets.concat());
    assert!(run.end().1.is_empty());
}

#[test]
fn a_packet_is_a_heap_where_it_does_not_say_what_it_is() {
    let ska_low = packet(48, &[(1, 3, true), (4, 8, true), (TIME, 9, true), (0x3300, 0, false)], b"abcdefgh");
    let (got, unused) = Run::new("").all(std::slice::from_ref(&ska_low));
    assert!(got.is_empty());
    assert_eq!(unused, [("no_payload_offset", 1)]);
    let (got, unused) = Run::new("[packets]\nheap_length = 'payload'").all(&[ska_low]);
    let wanted = Got {
        counter: 3,
        heap_bytes: 8,
        offset: 0,
        items: vec![(TIME, 9)],
        payload: b"abcdefgh".to_vec(),
        stops: false,
    };
    assert_eq!((got, unused), (vec![wanted], vec![]));
}

#[test]
fn counters_of_0_and_lengths_that_are_wrong_do_not_matter_if_each_packet_is_a_heap() {
    let roach = |time| {
        let items = [(1, 0, true), (2, 5, true), (3, 0, true), (4, 8, true), (TIME, time, true)];
        packet(40, &items, b"abcdefgh")
    };
    let table = "[packets]\nheap_length = 'payload'\nheap_counter = 'packet'";
    let (got, unused) = Run::new(table).all(&[roach(1), roach(2)]);
    let seen: Vec<_> = got.iter().map(|got| (got.counter, got.heap_bytes, got.items[0].1)).collect();
    assert_eq!(seen, [(1, 8, 1), (2, 8, 2)]);
    assert!(unused.is_empty());
    assert_eq!(Run::new("").all(&[roach(1)]).1, [("beyond_heap", 1)]);
}

#[test]
fn a_heap_length_can_be_a_number() {
    let packets = [part(1, 56, 0, &[(TIME, 1, true)], b"abcd"), part(1, 56, 4, &[(TIME, 1, true)], b"efgh")];
    let (got, _) = Run::new("[packets]\nheap_length = 8").all(&packets);
    assert_eq!(got.iter().map(|got| (got.heap_bytes, got.offset)).collect::<Vec<_>>(), [(8, 0), (8, 4)]);
}

#[test]
fn values_are_read_as_they_are_written() {
    let reversed = u64::from(1_500_000_000_u32.swap_bytes());
    let table = "[packets]\nitems = { 0x1600 = '<u4' }";
    let (got, _) = Run::new(table).all(&[part(1, 8, 0, &[(TIME, reversed, true)], b"abcdefgh")]);
    assert_eq!(got[0].items, [(TIME, 1_500_000_000)]);
}

#[test]
fn addressed_values_are_made_immediate_even_if_a_later_packet_has_them() {
    let table = "payload_item = 0x4300\n[packets]\nitems = { 5632 = '>u2' }";
    let items = [(DATA, 0, false), (TIME, 8, false)];
    let whole = part(1, 10, 0, &items, b"abcdefgh\x12\x34");
    let (got, unused) = Run::new(table).all(&[whole]);
    assert_eq!((got[0].items.as_slice(), got[0].heap_bytes), ([(TIME, 0x1234)].as_slice(), 8));
    assert!(unused.is_empty());
    let (got, unused) = Run::new(table).all(&[part(1, 10, 0, &items, b"abcde"), part(1, 10, 5, &[], b"fgh\x12\x34")]);
    let seen: Vec<_> = got.iter().map(|got| (got.items[0].1, got.offset, got.payload.as_slice())).collect();
    assert_eq!(seen, [(0x1234, 0, b"abcde".as_slice()), (0x1234, 5, b"fgh")]);
    assert!(unused.is_empty());
}

#[test]
fn packets_wait_for_the_one_with_the_items() {
    let items = [(TIME, 4, true)];
    let parts = [part(1, 8, 0, &items, b"abc"), part(1, 8, 3, &[], b"def"), part(1, 8, 6, &[], b"gh")];
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]] {
        for more in ["", "[packets]\nitems = { 5632 = '>u6' }"] {
            let (got, unused) = Run::new(more).all(&order.map(|i| parts[i].clone()));
            assert!(unused.is_empty());
            assert_eq!(got.len(), 3);
            // spead2 takes the items of a heap from its first packet.
            assert_eq!(got[0].items, [(TIME, 4)], "{order:?}");
            let mut bytes = [0; 8];
            for got in &got {
                bytes[got.offset as usize..][..got.payload.len()].copy_from_slice(&got.payload);
            }
            assert_eq!(&bytes, b"abcdefgh");
        }
    }
}

#[test]
fn packets_whose_first_is_lost_are_counted() {
    let mut run = Run::new("");
    run.give(0, 0, &part(1, 8, 4, &[], b"efgh"));
    run.give(0, 2_000_000_000, &part(2, 8, 4, &[], b"efgh"));
    assert_eq!(run.mender.counts().unused().map(|(_, n)| n).sum::<u64>(), 1, "after a second it is given up");
    assert_eq!(run.end().1, [("no_first_packet", 2)]);
}

#[test]
fn only_the_payload_item_is_the_data() {
    let items = [(TIME, 4, true), (5, 0, false), (DATA, 3, false), (0x4400, 11, false)];
    let (got, unused) = Run::new("payload_item = 0x4300").all(&[
        part(1, 13, 0, &items, b"123ab"),
        part(1, 13, 5, &[], b"cdefgh45"),
        part(2, 8, 0, &[(TIME, 5, true)], b"abcdefgh"),
    ]);
    let seen: Vec<_> = got.iter().map(|got| (got.heap_bytes, got.offset, got.payload.as_slice())).collect();
    assert_eq!(seen, [(8, 0, b"ab".as_slice()), (8, 2, b"cdefgh")]);
    assert_eq!(unused, [("no_payload_item", 1)]);
}

#[test]
fn descriptors_are_cut_out() {
    let items = [(TIME, 4, true), (5, 0, false), (5, 2, false), (DATA, 3, false)];
    let (got, unused) = Run::new("").all(&[part(1, 11, 0, &items, b"123abcdefgh")]);
    assert_eq!((got[0].heap_bytes, got[0].payload.as_slice()), (8, b"abcdefgh".as_slice()));
    assert!(unused.is_empty());
    // A heap of descriptors alone stays as it is: it is the placement that rejects it.
    let only = part(1, 3, 0, &[(5, 0, false)], b"123");
    let mut run = Run::new("");
    run.give(0, 0, &only);
    assert_eq!(run.out, only);
}

/// As spead2's senders describe several items of a heap: each descriptor is in front of its item's bytes.
#[test]
fn descriptors_between_the_data_are_cut_out() {
    let starts = [(5, 0), (0x1000, 2), (5, 5), (0x1001, 6), (5, 6), (5, 9), (0x1002, 9), (5, 12)];
    let mut items = vec![(TIME, 4, true)];
    items.extend(starts.map(|(id, at)| (id, at, false)));
    let whole = b"12abc3def456ghi78";
    // Those at 0, 5 and 12 are descriptors; of what is at 6 and 9, the bytes are the data's.
    let wanted = b"abcdef456";
    let data = |got: &[Got]| {
        let mut data = vec![0; wanted.len()];
        for got in got {
            assert_eq!((got.heap_bytes, got.items.as_slice()), (wanted.len() as u64, [(TIME, 4)].as_slice()));
            data[got.offset as usize..][..got.payload.len()].copy_from_slice(&got.payload);
        }
        assert_eq!(got.iter().map(|got| got.payload.len()).sum::<usize>(), wanted.len(), "no byte comes twice");
        data
    };
    let (got, unused) = Run::new("").all(&[part(1, 17, 0, &items, whole)]);
    assert_eq!((got.len(), data(&got).as_slice(), unused.len()), (2, wanted.as_slice(), 0));
    // However it is cut into packets, and in whichever order they come.
    for size in 1..17 {
        for backwards in [false, true] {
            let cut = whole.chunks(size).enumerate();
            let mut parts: Vec<_> = cut
                .map(|(i, bytes)| part(1, 17, (i * size) as u64, if i == 0 { &items } else { &[] }, bytes))
                .collect();
            if backwards {
                parts.reverse();
            }
            let (got, _) = Run::new("").all(&parts);
            assert_eq!(data(&got), wanted);
        }
    }
}

#[test]
fn what_the_payload_item_is_can_be_an_axis() {
    let axis = "[[axes]]\nname = 'product'\npayload_items = [0x4300, 0x4400]\n";
    let heap = |items: &[Item]| part(1, 8, 0, &[&[(TIME, 4, true)], items].concat(), b"abcdefgh");
    let text = format!("heap_bytes = 8\n[time]\nitem = {TIME}\nstep = 1\nbatches = 4\n{axis}");
    let layout = Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap();
    assert_eq!(LayoutSpec::from_toml(&layout.spec().to_toml().unwrap()).unwrap(), *layout.spec());
    let run = Run { mender: Mender::new(Some(&layout)), out: Vec::new() };
    let (got, unused) = run.all(&[
        heap(&[(DATA, 0, false)]),
        heap(&[(0x4400, 0, false)]),
        heap(&[(0x4500, 0, false)]),
        heap(&[(DATA, 0, false), (0x4400, 4, false)]),
    ]);
    let seen: Vec<_> = got.iter().map(|got| got.items[1].1).collect();
    assert_eq!(seen, [DATA, 0x4400]);
    assert_eq!(unused, [("no_payload_item", 1), ("several_payload_items", 1)]);
}

#[test]
fn who_sent_a_packet_and_when_are_items() {
    let names = ["sender", "packet_seconds", "packet_nanoseconds"];
    let sides: String = names.map(|name| format!("[[side_items]]\nname = '{name}'\nitem = '{name}'\n")).concat();
    let text = format!("heap_bytes = 8\n[time]\nitem = {TIME}\nstep = 1\nbatches = 4\n{sides}");
    let layout = Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap();
    assert_eq!(LayoutSpec::from_toml(&layout.spec().to_toml().unwrap()).unwrap(), *layout.spec());
    let mut run = Run { mender: Mender::new(Some(&layout)), out: Vec::new() };
    run.give(0x0a00_0001_1388, 1_500_000_000_000_000_007, &part(1, 8, 0, &[(TIME, 4, true)], b"abcdefgh"));
    let ids = &layout.items()[2..];
    assert_eq!(run.end().0[0].items, [(TIME, 4), (ids[0], 0x0a00_0001_1388), (ids[1], 1_500_000_000), (ids[2], 7)]);
}

#[test]
fn an_item_that_is_required_may_be_addressed() {
    let heap = part(1, 8, 0, &[(TIME, 4, true), (DATA, 0, false)], b"abcdefgh");
    let (got, _) = Run::new("required_items = [0x4300]").all(&[heap]);
    assert_eq!(got[0].items, [(TIME, 4), (DATA, 0)]);
}

#[test]
fn heaps_of_several_senders_keep_apart() {
    let halves = |antenna: u64, counter| {
        let item = [(TIME, 1, true), (ANTENNA, antenna, true)];
        let byte = [antenna as u8; 4];
        [part(counter, 8, 0, &item, &byte), part(counter, 8, 4, &item, &byte)]
    };
    for (table, sender) in [("'sender'", [1, 2]), ("[0x4101]", [1, 1])] {
        let mut run = Run::new(&format!("[packets]\nheap_counter = {table}"));
        let ([a, b], [c, d]) = (halves(10, 1), halves(11, 1));
        for (from, packet) in [(sender[0], &a), (sender[1], &c), (sender[1], &d), (sender[0], &b)] {
            run.give(from, 0, packet);
        }
        let (got, unused) = run.end();
        assert!(unused.is_empty());
        let counters: Vec<u64> = got.iter().map(|got| got.counter).collect();
        assert_eq!((counters[0], counters[1]), (counters[3], counters[2]), "{table}");
        assert_ne!(counters[0], counters[1]);
    }
}

#[test]
fn packets_in_heaps_of_other_senders_are_counted() {
    let halves = |antenna: u64, counter| {
        let item = [(TIME, 1, true), (ANTENNA, antenna, true)];
        [part(counter, 8, 0, &item, &[1; 4]), part(counter, 8, 4, &item, &[1; 4])]
    };
    let shared = |table: &str, counters: [u64; 2], order: [usize; 4]| {
        let mut run = Run::new(table);
        let ([a, b], [c, d]) = (halves(10, counters[0]), halves(11, counters[1]));
        let packets = [(1, a), (2, c), (2, d), (1, b)];
        for at in order {
            run.give(packets[at].0, 0, &packets[at].1);
        }
        run.mender.counts().shared()
    };
    // The second sender's first half comes while the first sender's heap lacks one; the other halves end heaps.
    assert_eq!(shared("", [1, 1], [0, 1, 3, 2]), 1, "in turn");
    assert_eq!(shared("", [1, 1], [0, 3, 1, 2]), 0, "heap after heap");
    assert_eq!(shared("", [1, 2], [0, 1, 3, 2]), 0, "with counters of their own");
    assert_eq!(shared("[packets]\nheap_counter = 'sender'", [1, 1], [0, 1, 3, 2]), 0, "kept apart");
}

#[test]
fn heaps_are_told_apart_by_items_that_only_the_first_packet_has() {
    let mut run = Run::new("[packets]\nheap_counter = [0x1600]\nrepeat_items = true");
    for time in 1..=3 {
        let first = part(1, 8, 0, &[(TIME, time, true)], &[time as u8; 4]);
        let second = part(1, 8, 4, &[], &[time as u8; 4]);
        // The last heap comes the wrong way round, and its counter is that of a heap whose end is lost.
        match time {
            1 => [&first, &second].map(|packet| run.give(0, 0, packet)),
            2 => [&first, &first].map(|packet| run.give(0, 0, packet)),
            _ => [&first, &second].map(|packet| run.give(0, 0, packet)),
        };
    }
    let (got, _) = run.end();
    for got in &got {
        assert!(got.payload.iter().all(|&byte| u64::from(byte) == got.items[0].1), "{got:?}");
    }
}

#[test]
fn a_counter_that_comes_round_names_another_heap() {
    // The second packet of the heap of time 5 is lost; the next heap with its counter says so in its items.
    for table in ["heap_length = 8", "heap_counter = 'sender'", "repeat_items = true\nitems = { 0x1600 = '>u6' }"] {
        let mut run = Run::new(&format!("[packets]\n{table}"));
        run.give(1, 0, &part(7, 8, 0, &[(TIME, 5, true)], b"abcd"));
        run.give(1, 10, &part(7, 8, 0, &[(TIME, 9, true)], b"ABCD"));
        run.give(1, 11, &part(7, 8, 4, &[(TIME, 9, true)], b"EFGH"));
        let times: Vec<_> = run.end().0.iter().map(|got| (got.items[0].1, got.payload[0])).collect();
        assert_eq!(times, [(5, b'a'), (9, b'A'), (9, b'E')], "{table}");
    }
}

#[test]
fn packets_are_held_for_a_second_whatever_else_is_open() {
    let mut run = Run::new("[packets]\nrepeat_items = true");
    run.give(0, 0, &part(1, 8, 0, &[(TIME, 5, true)], b"abcd")); // incomplete, and holds nothing
    run.give(0, 1, &part(2, 8, 4, &[], b"efgh"));
    run.give(0, 2_000_000_000, &part(3, 8, 4, &[], b"efgh"));
    run.give(0, 2_000_000_001, &part(2, 8, 0, &[(TIME, 6, true)], b"ABCD"));
    let (got, unused) = run.end();
    assert_eq!(got.iter().map(|got| got.payload[0]).collect::<Vec<_>>(), [b'a', b'A']);
    assert_eq!(unused, [("no_first_packet", 2)]);
}

#[test]
fn heaps_whose_packets_waited_elsewhere_end_all_the_same() {
    let text = format!("[packets]\nrepeat_items = true\nheap_counter = [{ANTENNA}]");
    let (got, unused) = Run::new(&text).all(&[
        part(7, 8, 4, &[], b"efgh"),
        part(7, 8, 0, &[(TIME, 5, true), (ANTENNA, 1, true)], b"abcd"),
        // The heap is whole, so this is another one, though all that its packets say is the same.
        part(7, 8, 0, &[(TIME, 5, true), (ANTENNA, 1, true)], b"ABCD"),
        part(7, 8, 4, &[], b"EFGH"),
    ]);
    let first = got[0].counter;
    let seen: Vec<_> = got.iter().map(|got| (got.counter - first, got.items[0].1)).collect();
    assert_eq!(seen, [(0, 5), (0, 5), (1, 5), (1, 5)]);
    assert!(unused.is_empty());
}

#[test]
fn a_value_may_be_in_a_packet_that_came_before_its_pointer() {
    let table = "[packets]\nrepeat_items = true\nitems = { 0x1600 = '>u2' }";
    let (got, unused) = Run::new(table).all(&[
        part(7, 8, 4, &[], &[1, 2, 3, 4]), // its last two bytes are the time
        part(7, 8, 0, &[(TIME, 6, false), (DATA, 0, false)], b"abcd"),
    ]);
    assert_eq!(got.iter().map(|got| got.items[0]).collect::<Vec<_>>(), [(TIME, 0x304); 2]);
    assert!(unused.is_empty());
}

#[test]
fn a_value_may_begin_in_one_packet_and_end_in_another() {
    let table = "[packets]\nrepeat_items = true\nitems = { 0x1600 = '>u4' }";
    let parts = [
        part(7, 12, 0, &[(TIME, 6, false), (DATA, 0, false)], b"abcd"),
        part(7, 12, 4, &[], &[0, 0, 1, 2]), // its last two bytes begin the time
        part(7, 12, 8, &[], &[3, 4, 0, 0]),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (got, unused) = Run::new(table).all(&order.map(|i| parts[i].clone()));
        let times: Vec<_> = got.iter().map(|got| got.items[0]).collect();
        assert_eq!(times, [(TIME, 0x0102_0304); 3], "{order:?}");
        assert!(unused.is_empty());
    }
}

#[test]
fn what_is_said_again_takes_no_more_memory() {
    // Each packet says two thousand times that its time is in a packet that never comes.
    let text = "[packets]\nrepeat_items = true\nitems = { 0x1600 = '>u4' }";
    let mut run = Run::new(text);
    let items = vec![(TIME, 900, false); 250];
    let heaps = 1000;
    for counter in 0..heaps {
        run.give(0, 0, &part(counter, 1 << 20, 0, &items, &[0; 8]));
    }
    let packet = part(0, 1 << 20, 0, &items, &[0; 8]).len();
    // The packet, its offset, a value and where it is.
    assert_eq!(run.mender.size().0, heaps as usize * (packet + 8 + 8 + 16));
    for counter in 0..heaps {
        run.give(0, 0, &part(counter, 1 << 20, 900, &[], &[0, 0, 0, 5]));
    }
    assert_eq!(run.mender.size().0, heaps as usize * (2 * 8 + 8 + 16));
    run.give(0, 2_000_000_000, &part(0, 1 << 20, 8, &[], &[0; 8]));
    assert_eq!(run.end().1, []);
}

#[test]
fn heaps_that_nothing_tells_apart_have_a_reason_of_their_own() {
    let table = "[packets]\nrepeat_items = true\nheap_counter = [0x1600]";
    let (got, unused) = Run::new(table).all(&[
        part(1, 8, 0, &[(TIME, 5, true)], b"abcd"),
        part(1, 8, 4, &[], b"efgh"),
        part(2, 12, 4, &[], b"efgh"), // its first packet, with the time, is lost
        part(2, 12, 8, &[], b"ijkl"),
        part(3, 8, 0, &[(TIME, 7, true)], b"abcd"),
        part(3, 8, 4, &[], b"efgh"),
    ]);
    assert_eq!(got.iter().map(|got| got.items[0].1).collect::<Vec<_>>(), [5, 5, 7, 7]);
    assert_eq!(unused, [("not_told_apart", 2)]);
}

#[test]
fn a_packet_that_comes_twice_is_not_given_to_the_next_heap() {
    let table = "[packets]\nrepeat_items = true\nheap_counter = [0x1600]";
    let again = part(0, 8, 4, &[], b"efgh");
    let (got, unused) = Run::new(table).all(&[
        part(0, 8, 0, &[(TIME, 5, true)], b"abcd"),
        again.clone(),
        again, // its heap is complete; the next heap has the same counter
        part(0, 8, 0, &[(TIME, 7, true)], b"ijkl"),
        part(0, 8, 4, &[], b"mnop"),
    ]);
    let found: Vec<_> = got.iter().map(|got| (got.items[0].1, got.payload.as_slice())).collect();
    assert_eq!(found, [(5, &b"abcd"[..]), (5, b"efgh"), (7, b"ijkl"), (7, b"mnop")]);
    assert_eq!(unused, [("not_told_apart", 1)]);
}

#[test]
fn the_end_of_a_stream_is_passed_on() {
    for table in ["repeat_items = true", "heap_length = 8", "heap_counter = 'packet'", "heap_counter = [0x1600]"] {
        for payload in [&b""[..], b"x"] {
            let (got, unused) = Run::new(&format!("payload_item = {DATA}\n[packets]\n{table}")).all(&[
                part(7, 8, 0, &[(TIME, 5, true), (DATA, 0, false)], b"abcdefgh"),
                part(8, payload.len() as u64, 0, &[(6, 2, true)], payload),
                part(9, payload.len() as u64, 0, &[(6, 0, true)], payload), // this asks for descriptors
            ]);
            assert_eq!(got.len(), 2, "{table}");
            assert!(got[1].stops && !got[0].stops && got[1].counter != got[0].counter, "{table}");
            assert_eq!(unused.iter().map(|(_, n)| n).sum::<u64>(), u64::from(!unused.is_empty()), "{table}");
        }
    }
}

#[test]
fn bytes_that_are_no_data_are_counted() {
    let (got, unused) = Run::new(&format!("payload_item = {DATA}\n[packets]\nheap_counter = 'sender'")).all(&[
        part(7, 12, 0, &[(TIME, 5, true), (DATA, 4, false), (5, 0, false)], b"desc"),
        part(7, 12, 4, &[(TIME, 5, true), (DATA, 4, false), (5, 0, false)], b"abcdefgh"),
    ]);
    assert_eq!(got.iter().map(|got| (got.heap_bytes, got.offset)).collect::<Vec<_>>(), [(8, 0)]);
    assert_eq!(unused, [("other_bytes", 1)]);
}

#[test]
fn memory_is_bounded_whatever_comes() {
    let mut run = Run::new("");
    let payload = vec![0; 9000];
    for counter in 0..40_000 {
        run.give(0, 0, &part(counter, 1 << 20, 9000, &[], &payload));
        let (bytes, heaps) = run.mender.size();
        assert!(bytes <= (1 << 26) + 10_000 && heaps <= 40_000);
    }
    let (bytes, heaps) = run.mender.size();
    assert!(bytes <= 1 << 27 && heaps <= 1 << 15);
    assert_eq!(run.end().1, [("no_first_packet", 40_000)]);
}

#[test]
fn what_cannot_be_is_refused() {
    for (more, wanted) in [
        ("[packets]\nheap_length = 0", "packets.heap_length"),
        ("[packets]\nheap_length = 'long'", "packets.heap_length"),
        ("[packets]\nheap_counter = []", "packets.heap_counter"),
        ("[packets]\nheap_counter = [1]", "packets.heap_counter"),
        ("[packets]\nitems = { 0x1600 = '<f4' }", "packets.items"),
        ("[packets]\nitems = { time = '<u4' }", "packets.items"),
        ("[packets]\nlength = 3", "packets"),
        ("payload_item = 3", "payload_item"),
        ("required_items = [0x10000]\n[packets]\nrepeat_items = true", "0x10000"),
        ("[[axes]]\nname = 'a'\nitem = 'receiver'\nsize = 2", "axes[0].item"),
        ("[[axes]]\nname = 'a'\npayload_items = [0x4300]\nsize = 2", "axes[0].payload_items"),
        ("[[axes]]\nname = 'a'\npayload_items = []", "axes[0].values"),
    ] {
        let text = format!("heap_bytes = 8\n{more}\n[time]\nitem = {TIME}\nstep = 1\nbatches = 4\n");
        let error = LayoutSpec::from_toml(&text).and_then(Layout::new).unwrap_err().to_string();
        assert!(error.contains(wanted), "{more}: {error}");
    }
}
