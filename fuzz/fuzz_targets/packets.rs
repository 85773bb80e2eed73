//! Any packets, through the mender, for layouts that ask for much: what spead2 gets is always whole and valid, and memory
//! is bounded.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use speadrx::layout::Layout;
use speadrx::packet::mend::{Arrival, Mender};
use speadrx::packet::spead::Packet;
use speadrx::spec::LayoutSpec;

const TABLES: [&str; 8] = [
    "",
    "payload_item = 0x4300",
    "required_items = [0x4300]",
    "[packets]\nheap_length = 'payload'\nheap_counter = 'packet'",
    "[packets]\nheap_length = 64\npayload_offset = 'zero'\nheap_counter = 'sender'",
    "[packets]\nheap_counter = [0x1600, 0x4101]\nrepeat_items = true",
    "payload_item = 0x4300\n[packets]\nitems = { 0x1600 = '>u6', 0x4101 = '<u4' }",
    "[[axes]]\nname = 'p'\npayload_items = [0x4300, 0x4301]\n[[side_items]]\nname = 's'\nitem = 'sender'",
];

static LAYOUTS: LazyLock<Vec<Layout>> = LazyLock::new(|| {
    TABLES
        .iter()
        .map(|table| {
            let text = format!("heap_bytes = 64\n{table}\n[time]\nitem = 0x1600\nstep = 1\nbatches = 4\n");
            Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap()
        })
        .collect()
});

/// Read packets one after the other, as spead2 does.
fn check(mut bytes: &[u8]) -> u64 {
    let mut packets = 0;
    while !bytes.is_empty() {
        let packet = Packet::read(bytes, bytes.len()).unwrap();
        packet.check().unwrap();
        assert!(packet.heap_bytes.is_some_and(|length| length > 0));
        bytes = &bytes[packet.start() + packet.payload_bytes.unwrap() as usize..];
        packets += 1;
    }
    packets
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, mut rest)) = data.split_first() else { return };
    let mut mender = Mender::new(LAYOUTS.get(which as usize));
    let mut out = Vec::new();
    let mut written = 0;
    // Each packet: its length, its sender, then its bytes.
    while let Some((&[length, sender], more)) = rest.split_first_chunk() {
        let (packet, more) = more.split_at(more.len().min(length as usize));
        rest = more;
        let arrival = Arrival { sender: u64::from(sender % 4), time: i64::from(sender) << 24 };
        mender.take(packet, packet.len() + usize::from(sender == 255), arrival, &mut out);
        written += check(&out);
        out.clear();
        let (held, heaps) = mender.size();
        assert!(held <= data.len() * 16 && heaps <= data.len());
    }
    mender.finish();
    assert_eq!(mender.counts().written(), written);
});
