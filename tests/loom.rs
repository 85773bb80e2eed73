//! Model checking of what threads share: run with `RUSTFLAGS="--cfg loom"`.
#![cfg(loom)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::thread;
use speadrx::abi::ChunkPlaceData;
use speadrx::callback::Context;
use speadrx::epochs::{Cause, Epoch, Epochs};
use speadrx::group::Group;
use speadrx::layout::Layout;
use speadrx::ledger::Snapshot;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;

const SPEC: &str = r#"
heap_bytes = 8
time = { item = 0x1600, step = 16, batches = 1 }
"#;

fn layout() -> std::sync::Arc<Layout> {
    std::sync::Arc::new(Layout::new(LayoutSpec::from_toml(SPEC).unwrap()).unwrap())
}

/// A group in which chunks may jump ahead by 2.
fn group() -> Arc<Group> {
    Group::new(TimeRules::new(&layout(), 1, 2, Some(2), false).unwrap())
}

fn context(group: &Arc<Group>) -> Context {
    Context::new(&layout().geometry(&BTreeMap::new()).unwrap(), 1, None, Arc::clone(group), None).unwrap()
}

fn place(context: &Context, row: [i64; 2]) -> i64 {
    let mut data = ChunkPlaceData {
        packet: std::ptr::null(),
        packet_size: 0,
        items: row.as_ptr(),
        chunk_id: -1,
        heap_index: 0,
        heap_offset: 0,
        batch_stats: std::ptr::null_mut(),
        extra: std::ptr::null_mut(),
        extra_offset: 0,
        extra_size: 0,
    };
    // SAFETY: the function belongs to the context, and the row has the two items of the layout.
    unsafe {
        context.function()(&raw mut data, ChunkPlaceData::SIZE, context.argument());
    }
    data.chunk_id
}

/// Run a test in every order in which its threads may meet, of which there must be so many.
///
/// Of the accesses to an atomic, loom remembers the last one: it does not see that one of a reader
/// and a later store meet if the writer has loaded in between. So the reader is the thread that is spawned, and runs last
/// at first.
#[track_caller]
fn explore(least: usize, threads: impl Fn() + Send + Sync + 'static) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&executions);
    loom::model(move || {
        count.fetch_add(1, Relaxed);
        threads();
    });
    let executions = executions.load(Relaxed);
    println!("{executions} executions");
    // A weakened ordering is to be noticed by what a test says of memory.
    assert!(executions >= least || std::env::var_os("WEAKENED").is_some(), "only {executions} executions");
}

/// Models whose threads meet at the lock of the group alone: they have far more executions than all others.
const LOCKED: [&str; 2] =
    ["newest_time_of_a_group_is_the_newest_of_any_stream", "streams_of_a_group_begin_in_the_same_age"];

/// Where the code asks for more than relaxed ordering, by file and line.
fn orderings() -> Vec<String> {
    let mut found = Vec::new();
    for path in std::fs::read_dir("src").unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().zip(1..).filter(|(line, _)| {
            let code = line.split("//").next().unwrap_or_default();
            let is_import = code.contains("Ordering::{") || code.trim_start().starts_with("use ");
            let words = ["Acquire", "Release", "AcqRel", "SeqCst"];
            !is_import && words.iter().any(|word| code.contains(word))
        });
        found.extend(lines.map(|(_, number)| format!("{}:{number}", path.display())));
    }
    found
}

#[test]
fn each_ordering_is_needed() {
    if std::env::var_os("WEAKENED").is_some() {
        return;
    }
    let orderings = orderings();
    assert!(orderings.len() >= 7, "{orderings:?}");
    for place in orderings {
        let models = std::process::Command::new(std::env::current_exe().unwrap())
            .args(LOCKED.iter().flat_map(|name| ["--skip", name]))
            .env("WEAKENED", &place)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&models.stdout);
        let failed: Vec<_> =
            output.lines().filter(|line| line.ends_with("FAILED") && line.starts_with("test ")).collect();
        println!("{place}: {failed:?}");
        assert!(!failed.is_empty(), "no model fails if {place} is relaxed:\n{output}");
    }
}

#[test]
fn snapshots_are_monotonic_and_never_above_what_was_sent() {
    explore(4000, || {
        let context = context(&group());
        // The first heap reads the whole ledger, which is not of interest here.
        assert_eq!(place(&context, [0, 8]), 0);
        let ledger = context.ledger().clone();
        let reader = thread::spawn(move || {
            let (first, second) = (ledger.snapshot(), ledger.snapshot());
            for (before, after, sent) in [
                (first.placed[0], second.placed[0], 2),
                (first.duplicates[0], second.duplicates[0], 1),
                (first.rejected[0][0], second.rejected[0][0], 1),
            ] {
                assert!(before <= after && after <= sent);
            }
            assert!(first.newest[0] <= second.newest[0] && second.newest[0] <= 0);
        });
        assert_eq!(place(&context, [0, 7]), -1);
        assert_eq!(place(&context, [0, 8]), 0);
        reader.join().unwrap();
        let last = context.ledger().snapshot();
        assert_eq!((last.placed[0], last.duplicates[0], last.rejected[0][0], last.newest[0]), (2, 1, 1, 0));
    });
}

#[test]
fn no_more_heaps_become_something_than_were_placed() {
    explore(1900, || {
        let context = context(&group());
        assert_eq!((place(&context, [0, 8]), place(&context, [16, 8])), (0, 1));
        let ledger = context.ledger().clone();
        let reader = thread::spawn(move || {
            let Snapshot { placed, duplicates, too_old, .. } = ledger.snapshot();
            assert!(placed[0] >= 2 + duplicates[0] + too_old[0], "{placed:?} {duplicates:?} {too_old:?}");
        });
        // A duplicate, and a heap of the chunk that has left the window.
        assert_eq!((place(&context, [16, 8]), place(&context, [0, 8])), (1, 0));
        reader.join().unwrap();
        let last = context.ledger().snapshot();
        assert_eq!((last.placed[0], last.duplicates[0], last.too_old[0]), (4, 1, 1));
    });
}

#[test]
fn newest_time_of_a_group_is_the_newest_of_any_stream() {
    explore(6_600, || {
        let group = group();
        let other = Arc::clone(&group);
        let member = thread::spawn(move || place(&context(&other), [32, 8]));
        let context = context(&group);
        place(&context, [16, 8]);
        assert_eq!(member.join().unwrap(), 2);
        // 2 chunks ahead of the newest of both, no more.
        assert_eq!((place(&context, [80, 8]), place(&context, [64, 8])), (-1, 4));
    });
}

#[test]
fn streams_of_a_group_begin_in_the_same_age() {
    explore(30_000, || {
        let group = group();
        let other = Arc::clone(&group);
        // Whoever is first, the other's timestamp is on the other side of the same wrap.
        let member = thread::spawn(move || place(&context(&other), [0, 8]));
        let before = place(&context(&group), [(1 << 48) - 16, 8]);
        let after = member.join().unwrap();
        assert!((before, after) == ((1 << 44) - 1, 1 << 44) || (before, after) == (-1, 0));
    });
}

#[test]
fn epochs_are_seen_whole() {
    explore(240, || {
        let epochs = Arc::new(Epochs::default());
        let reader = Arc::clone(&epochs);
        let reader = thread::spawn(move || {
            for chunk in [5, 9] {
                if let Some((index, epoch)) = reader.of_chunk(chunk) {
                    let first = [5, 9][index as usize];
                    assert_eq!(epoch, Epoch { first, offset: -(first as i64), origin: first, cause: Cause::Flush });
                    assert!(first <= chunk && reader.len() > index);
                }
            }
        });
        for first in [5, 9] {
            epochs.push(Epoch { first, offset: -(first as i64), origin: first, cause: Cause::Flush });
        }
        reader.join().unwrap();
        assert_eq!(epochs.of_chunk(9).map(|(index, epoch)| (index, epoch.first)), Some((1, 9)));
    });
}

#[test]
fn newest_times_are_of_the_epoch_of_their_heap() {
    explore(4000, || {
        let group = group();
        let context = context(&group);
        let ledger = context.ledger().clone();
        let reader = thread::spawn(move || {
            let snapshot = ledger.snapshot();
            // Nothing yet, then a heap, and one after a flush, which has skipped IDs.
            assert!(
                [(0, -1), (0, 16), (1, 32)].contains(&(snapshot.newest_epoch[0], snapshot.newest[0])),
                "{snapshot:?}"
            );
        });
        assert_eq!(place(&context, [16, 8]), 1);
        assert!(group.flush());
        assert_eq!(place(&context, [32, 8]), 4);
        reader.join().unwrap();
        let last = context.ledger().snapshot();
        assert_eq!((last.newest_epoch[0], last.newest[0]), (1, 32));
    });
}

#[test]
fn no_stream_goes_on_where_the_window_was() {
    explore(1600, || {
        let group = group();
        let (first, second) = (context(&group), context(&group));
        assert_eq!(place(&first, [16, 8]), 1);
        let other = thread::spawn(move || {
            let _ = place(&second, [16, 8]);
            second
        });
        assert_eq!(place(&first, [32, 8]), 2);
        let second = other.join().unwrap();
        // What the window was when this stream came to it is no matter: its chunk has left the window of the group.
        let too_old = second.ledger().snapshot().too_old[0];
        place(&second, [16, 8]);
        assert_eq!(second.ledger().snapshot().too_old[0], too_old + 1);
    });
}

#[test]
fn flush_is_an_epoch_before_its_control_heap_is_placed() {
    explore(50, || {
        let group = group();
        let context = context(&group);
        place(&context, [16, 8]);
        let other = Arc::clone(&group);
        let flusher = thread::spawn(move || other.flush());
        // Of the chunk before the flush, or of the one after it: never in between.
        let chunk = place(&context, [32, 8]);
        assert!(chunk == 2 || chunk == 4, "{chunk}");
        assert!(flusher.join().unwrap());
        let control = group.control().unwrap();
        assert_eq!(group.epochs().get(1).map(|epoch| (epoch.first, epoch.cause)), Some((control + 1, Cause::Flush)));
        assert_ne!(chunk, control as i64);
    });
}
