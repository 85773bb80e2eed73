//! What the accounting costs: the callback against placement alone, alternating, as a ratio.

#[expect(dead_code, reason = "only the bench of neighbours has two streams")]
mod formats;

use std::time::{Duration, Instant};

use formats::Feed;

const ROUNDS: u32 = 3000;

/// Time per heap in ns of one kind of pass.
fn per_heap(time: Duration, heaps: usize) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(u32::try_from(heaps).expect("a pass is short"))
}

fn main() {
    println!("{:36}{:>10}{:>10}{:>8}   (ns per heap, least of {ROUNDS})", "", "alone", "whole", "ratio");
    for (name, mut feed) in Feed::all() {
        let heaps = feed.heaps();
        let (mut alone, mut whole) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            feed.advance();
            let start = Instant::now();
            assert_eq!(feed.pass_alone(), heaps);
            let middle = Instant::now();
            assert_eq!(feed.pass(), heaps);
            alone = alone.min(middle - start);
            whole = whole.min(middle.elapsed());
        }
        let (alone, whole) = (per_heap(alone, heaps), per_heap(whole, heaps));
        println!("{name:36}{alone:10.2}{whole:10.2}{:8.2}", whole / alone);
    }
}
