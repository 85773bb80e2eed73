//! Calls the callback a given number of times, for an instruction counter to watch: `instructions FORMAT PASSES`.

mod formats;

use formats::Feed;

fn main() {
    // Cargo adds --bench to the arguments.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [format, passes] = args.as_slice() else {
        for (name, feed) in Feed::all() {
            println!("{name}\t{}", feed.heaps());
        }
        return;
    };
    let (_, mut feed) = Feed::all().into_iter().find(|(name, _)| name == format).expect("a format");
    for _ in 0..passes.parse().expect("a number of passes") {
        feed.advance();
        assert_eq!(feed.pass(), feed.heaps());
    }
}
