//! Threads that write files from memory that is lent to them, behind a queue that is never waited for.
#![expect(unsafe_code, reason = "memory is lent to other threads, by address")]

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::file::write_whole;

/// Memory that its owner lends until the job is reported as done.
#[derive(Debug, Clone, Copy)]
pub struct Lent {
    pointer: NonNull<u8>,
    len: usize,
}

// SAFETY: whoever submits it promises that it can be read from any thread (`Writer::submit`).
unsafe impl Send for Lent {}

impl Lent {
    /// Memory from an address on; an address that is null stands for no memory.
    #[must_use]
    pub fn new(pointer: *mut u8, len: usize) -> Self {
        NonNull::new(pointer).map_or(Self { pointer: NonNull::dangling(), len: 0 }, |pointer| Self { pointer, len })
    }
}

/// What to make, in the order of a job.
#[derive(Debug)]
pub enum Piece {
    /// A folder, unless it is there.
    Folder(PathBuf),
    /// A file that stays even if a later piece fails, in the place of one that may be there.
    Kept(PathBuf, Lent),
    /// A file that goes if a later piece fails.
    File(PathBuf, Lent),
    /// A file that is not wanted any more.
    Removed(PathBuf),
}

/// Why a chunk was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// No room for it: the disk is slower than what comes.
    QueueFull,
    /// The disk, or the share of it that this user has, is full.
    DiskFull,
    /// Writing is not allowed (any more).
    NotAllowed,
    /// The folder is gone.
    Gone,
    /// Another error.
    Failed,
    /// The disk did nothing any more.
    Hung,
    /// Another one writes it.
    Replaced,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 7] =
        [Self::QueueFull, Self::DiskFull, Self::NotAllowed, Self::Gone, Self::Failed, Self::Hung, Self::Replaced];

    /// Its name in accounts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::DiskFull => "disk_full",
            Self::NotAllowed => "not_allowed",
            Self::Gone => "folder_gone",
            Self::Failed => "write_failed",
            Self::Hung => "disk_hung",
            Self::Replaced => "replaced",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::DiskFull,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::NotAllowed,
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::StaleNetworkFileHandle => Self::Gone,
            _ => Self::Failed,
        }
    }
}

/// How far a part of a recording goes, in chunks from its first on.
#[derive(Debug)]
pub struct Extent {
    first: i64,
    step: i64,
    /// How many chunks it spans, with those that never came.
    pub chunks: AtomicI64,
    /// For how many chunks its metadata are written, or will be; 0 if that failed.
    pub declared: AtomicI64,
}

impl Extent {
    /// A part whose first chunk has this timestamp; so many ticks later comes the next.
    #[must_use]
    pub const fn new(first: i64, step: i64) -> Self {
        Self { first, step, chunks: AtomicI64::new(0), declared: AtomicI64::new(0) }
    }

    /// The number of the chunk with a timestamp. Without a step there is none.
    #[must_use]
    pub fn number(&self, timestamp: i64) -> Option<i64> {
        timestamp.checked_sub(self.first)?.checked_div_euclid(self.step)
    }

    /// The number of a chunk that goes on with it, at most so many later, with no need of new metadata.
    #[must_use]
    pub fn next(&self, timestamp: i64, most_gap: i64) -> Option<i64> {
        let number = self.number(timestamp)?;
        let gap = number.checked_sub(self.chunks.load(Ordering::Relaxed))?;
        let goes_on = (0..=most_gap).contains(&gap) && number < self.declared.load(Ordering::Relaxed);
        goes_on.then_some(number)
    }
}

/// What a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A chunk, with so many heaps and bytes; and whether there is room kept for it.
    Chunk {
        /// Heaps that are present.
        heaps: u64,
        /// Bytes of its files.
        bytes: u64,
        /// Whether `reserve` has made room for it.
        reserved: bool,
    },
    /// Metadata.
    Metadata,
    /// The last metadata.
    Last,
}

#[derive(Debug)]
struct Job {
    ticket: u64,
    pieces: Vec<Piece>,
    work: Work,
    /// The part whose metadata are among the pieces.
    part: Option<Arc<Extent>>,
}

/// What was written so far, and what not.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Chunks that were written, their bytes and heaps.
    pub chunks: u64,
    /// See `chunks`.
    pub bytes: u64,
    /// See `chunks`.
    pub heaps: u64,
    /// Chunks that were not written, by cause.
    pub lost: BTreeMap<Cause, u64>,
    /// Heaps of those.
    pub heaps_lost: u64,
    /// What the system said of the first piece that was not written.
    pub first_error: Option<String>,
    /// And of the last metadata.
    pub last_error: Option<String>,
}

impl Counts {
    fn lose(&mut self, cause: Cause, chunks: u64, heaps: u64) {
        *self.lost.entry(cause).or_default() += chunks;
        self.heaps_lost += heaps;
    }
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    running: usize,
    /// Threads that wait for work. To wake one is a call of the system, so it is done only if there is one.
    resting: usize,
    /// Jobs that are over.
    done: Vec<u64>,
    /// Chunks that are not written yet, and their heaps.
    open: u64,
    open_heaps: u64,
    /// Chunks that were written, or failed, whose memory is not back yet with its owner.
    returning: u64,
    /// Of these, those that the owner has taken, and not asked for more yet.
    taken: u64,
    counts: Counts,
    /// When a job was over last, or the first one came.
    progress: Option<Instant>,
    ending: bool,
    abandoned: bool,
}

impl State {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running == 0
    }

    /// Whether nothing waits for the disk, and all memory is back.
    fn is_settled(&self) -> bool {
        self.is_idle() && self.open == 0 && self.returning == 0
    }

    /// How long nothing was done, though there is something to do.
    fn stuck(&self) -> Duration {
        if self.is_settled() { Duration::ZERO } else { self.progress.map_or(Duration::ZERO, |at| at.elapsed()) }
    }

    fn finish(&mut self, job: &Job, failure: Option<io::Error>) {
        self.progress = Some(Instant::now());
        self.done.push(job.ticket);
        if self.abandoned {
            return; // it is counted already
        }
        if let Work::Chunk { heaps, bytes, .. } = job.work {
            self.open -= 1;
            self.open_heaps -= heaps;
            self.returning += 1;
            match &failure {
                None => {
                    self.counts.chunks += 1;
                    self.counts.bytes += bytes;
                    self.counts.heaps += heaps;
                }
                Some(error) => self.counts.lose(Cause::of(error), 1, heaps),
            }
        }
        if let Some(error) = failure {
            let which = if job.work == Work::Last { &mut self.counts.last_error } else { &mut self.counts.first_error };
            which.get_or_insert_with(|| error.to_string());
            if let Some(part) = &job.part {
                part.declared.store(0, Ordering::Relaxed); // so that the next chunk writes all of them
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is work, or an end.
    work: Condvar,
    /// A job is over.
    over: Condvar,
    /// Memory is back with its owner.
    back: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.running += 1;
                drop(state);
                let failure = write_all(&job.pieces).err();
                state = self.lock();
                state.running -= 1;
                state.finish(&job, failure);
                self.over.notify_all();
                self.back.notify_all(); // of metadata, no memory comes back
            } else if state.ending {
                return;
            } else {
                state.resting += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.resting -= 1;
            }
        }
    }
}

/// Writes files in threads of its own.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    capacity: u64,
    process: u32,
}

impl Writer {
    /// Start the threads. At most so many chunks wait or run at a time.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn new(threads: usize, capacity: u64) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let process = std::process::id();
        let writer = Self { shared: Arc::clone(&shared), threads: Mutex::default(), capacity, process };
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("speadrx-write".into()).spawn(move || shared.run())?;
            writer.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(writer)
    }

    fn has_room(&self, state: &State) -> bool {
        state.open + state.returning < self.capacity
    }

    /// Queue a job, and do not wait. Returns false if it is a chunk and there is no room for it, or the writer has ended.
    /// `part` is the one whose metadata are among the pieces.
    ///
    /// # Safety
    ///
    /// The memory of its pieces can be read, from any thread, and is not written to, until `wait` has returned its
    /// ticket, or the writer was dropped and is not abandoned.
    #[must_use]
    pub unsafe fn submit(&self, ticket: u64, pieces: Vec<Piece>, work: Work, part: Option<Arc<Extent>>) -> bool {
        let mut state = self.shared.lock();
        if state.ending {
            return false;
        }
        if let Work::Chunk { heaps, reserved: false, .. } = work {
            if !self.make_room(&mut state, heaps) {
                return false;
            }
        } else if state.is_settled() {
            state.progress = Some(Instant::now());
        }
        state.queue.push_back(Job { ticket, pieces, work, part });
        if state.resting > 0 {
            self.shared.work.notify_one();
        }
        true
    }

    fn make_room(&self, state: &mut State, heaps: u64) -> bool {
        if !self.has_room(state) {
            return false;
        }
        if state.is_settled() {
            state.progress = Some(Instant::now());
        }
        state.open += 1;
        state.open_heaps += heaps;
        true
    }

    /// Keep room for a chunk that comes later. Returns false if there is none.
    #[must_use]
    pub fn reserve(&self, heaps: u64) -> bool {
        let mut state = self.shared.lock();
        !state.ending && self.make_room(&mut state, heaps)
    }

    /// Count a chunk that is not written, whether or not room was reserved for it. It counts
    /// once, also if it was given up already.
    pub fn lose(&self, heaps: u64, cause: Cause, reserved: bool, words: Option<String>) {
        let mut state = self.shared.lock();
        if reserved {
            if state.abandoned {
                return;
            }
            state.open -= 1;
            state.open_heaps -= heaps;
            state.progress = Some(Instant::now());
            self.shared.back.notify_all();
        }
        state.counts.lose(cause, 1, heaps);
        if state.counts.first_error.is_none() {
            state.counts.first_error = words;
        }
    }

    /// Take the jobs that are over. Wait for one, but for no longer than `most`, and not if there is none left. The memory
    /// of those that were taken before is back with its owner now.
    #[must_use]
    pub fn wait(&self, most: Duration) -> Vec<u64> {
        let mut state = self.shared.lock();
        if state.taken > 0 {
            state.returning -= state.taken;
            state.taken = 0;
            self.shared.back.notify_all();
        }
        let nothing = |state: &mut State| state.done.is_empty() && !(state.ending && state.is_idle());
        (state, _) = self.shared.over.wait_timeout_while(state, most, nothing).unwrap_or_else(PoisonError::into_inner);
        state.taken = state.returning;
        std::mem::take(&mut state.done)
    }

    /// Wait until there is room for a chunk, but for no longer than `most`. Returns whether there is.
    #[must_use]
    pub fn wait_for_room(&self, most: Duration) -> bool {
        self.wait_until(most, |state| self.has_room(state))
    }

    /// Wait until nothing waits for the disk, but for no longer than `most`. Returns whether nothing does.
    #[must_use]
    pub fn wait_until_settled(&self, most: Duration) -> bool {
        self.wait_until(most, State::is_settled)
    }

    fn wait_until(&self, most: Duration, is_so: impl Fn(&State) -> bool) -> bool {
        let state = self.shared.lock();
        if most.is_zero() {
            return is_so(&state);
        }
        let not_yet = |state: &mut State| !is_so(state);
        let (state, _) =
            self.shared.back.wait_timeout_while(state, most, not_yet).unwrap_or_else(PoisonError::into_inner);
        is_so(&state)
    }

    /// How long nothing was done, though there is something to do.
    #[must_use]
    pub fn stuck(&self) -> Duration {
        self.shared.lock().stuck()
    }

    /// What was written so far, and what not; chunks that are not written yet; and chunks that were, but whose memory is
    /// not back yet.
    #[must_use]
    pub fn counts(&self) -> (Counts, u64, u64) {
        let state = self.shared.lock();
        (state.counts.clone(), state.open, state.returning)
    }

    /// Take no more jobs. Those in the queue are still done.
    pub fn end(&self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_all();
        self.shared.over.notify_all();
        self.shared.back.notify_all();
    }

    /// Wait for no job any more: the disk hangs. What is not written counts as lost. The memory that is lent must then
    /// stay for ever.
    pub fn abandon(&self, words: String) {
        let mut state = self.shared.lock();
        state.queue.clear();
        state.abandoned = true;
        let (open, heaps) = (state.open, state.open_heaps);
        if open > 0 {
            state.counts.lose(Cause::Hung, open, heaps);
        }
        (state.open, state.open_heaps, state.returning, state.taken) = (0, 0, 0, 0);
        state.counts.first_error.get_or_insert(words);
        drop(state);
        self.end();
    }

    /// Whether jobs may run for ever, whoever drops this; also if it is that of the process from which this one was
    /// forked.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        std::process::id() != self.process || self.shared.lock().abandoned
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if self.is_abandoned() {
            std::mem::forget(threads); // they hang, or are in the process from which this one was forked
            return;
        }
        self.shared.lock().queue.clear();
        self.end();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// Make all pieces of a job. If one fails, the files before it go that do not stay alone.
fn write_all(pieces: &[Piece]) -> io::Result<()> {
    for (i, piece) in pieces.iter().enumerate() {
        if let Err(error) = write(piece) {
            for before in pieces.iter().take(i) {
                if let Piece::File(path, _) = before {
                    let _ = fs::remove_file(path);
                }
            }
            return Err(error);
        }
    }
    Ok(())
}

fn write(piece: &Piece) -> io::Result<()> {
    let file = |path: &Path, lent: &Lent| {
        // SAFETY: the pointer is not null, and the memory can be read and does not change until the job is over
        // (`Writer::submit`).
        write_whole(path, unsafe { std::slice::from_raw_parts(lent.pointer.as_ptr(), lent.len) })
    };
    match piece {
        Piece::Folder(path) => match fs::create_dir(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made,
        },
        Piece::Kept(path, lent) | Piece::File(path, lent) => file(path, lent),
        Piece::Removed(path) => fs::remove_file(path),
    }
}
