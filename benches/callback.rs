//! Cost of the callback per heap, called through its C function pointer, for each format.

#[expect(dead_code, reason = "only other benches place without a ledger, or have two streams")]
mod formats;

use std::time::Duration;

use criterion::{Criterion, Throughput};
use formats::Feed;

fn callback(c: &mut Criterion) {
    let mut group = c.benchmark_group("callback");
    for (name, mut feed) in Feed::all() {
        group.throughput(Throughput::Elements(feed.heaps() as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|passes| {
                let mut total = Duration::ZERO;
                for _ in 0..passes {
                    feed.advance();
                    let start = std::time::Instant::now();
                    assert_eq!(feed.pass(), feed.heaps());
                    total += start.elapsed();
                }
                total
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    callback(&mut criterion);
    criterion.final_summary();
}
