//! Calls the callback a given number of times, for an instruction counter to watch: `instructions FORMAT PASSES`, or
//! `instructions FORMAT PASSES alone` for placement without accounting. Without arguments, lists the formats.

#[expect(dead_code, reason = "only the bench of neighbours has two streams")]
mod formats;

use formats::Feed;

fn main() {
    // Cargo adds --bench to the arguments.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [format, passes, how @ ..] = args.as_slice() else {
        for (name, feed) in Feed::all() {
            println!("{name}\t{}", feed.heaps());
        }
        return;
    };
    let mut feed = Feed::named(format);
    for _ in 0..passes.parse().expect("a number of passes") {
        feed.advance();
        let placed = if how.is_empty() { feed.pass() } else { feed.pass_alone() };
        assert_eq!(placed, feed.heaps());
    }
}
