//! Threads that write files from memory that is lent to them, behind a queue that is never waited for.
#![expect(unsafe_code, reason = "memory is lent to other threads, by address")]

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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

/// Why a job was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The disk, or the share of it that this user has, is full.
    DiskFull,
    /// Writing is not allowed (any more).
    NotAllowed,
    /// The folder is gone.
    Gone,
    /// Another error.
    Failed,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 4] = [Self::DiskFull, Self::NotAllowed, Self::Gone, Self::Failed];

    /// Its name in accounts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::NotAllowed => "not_allowed",
            Self::Gone => "folder_gone",
            Self::Failed => "write_failed",
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

/// A job that is over.
#[derive(Debug)]
pub struct Done {
    /// Its number.
    pub ticket: u64,
    /// Why it was not done, and what the system says.
    pub failure: Option<(Cause, String)>,
}

#[derive(Debug)]
struct Job {
    ticket: u64,
    pieces: Vec<Piece>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    running: usize,
    done: Vec<Done>,
    ending: bool,
    abandoned: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is work, or an end.
    work: Condvar,
    /// A job is over.
    over: Condvar,
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
                let failure = write_all(&job.pieces).err().map(|error| (Cause::of(&error), error.to_string()));
                state = self.lock();
                state.running -= 1;
                state.done.push(Done { ticket: job.ticket, failure });
                self.over.notify_all();
            } else if state.ending {
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Writes files in threads of its own.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    most: usize,
    process: u32,
}

impl Writer {
    /// Start the threads. At most so many jobs wait or run at a time.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn new(threads: usize, most: usize) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let process = std::process::id();
        let writer = Self { shared: Arc::clone(&shared), threads: Mutex::default(), most, process };
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("speadrx-write".into()).spawn(move || shared.run())?;
            writer.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(writer)
    }

    /// Queue a job, and do not wait. Returns false if the queue is full, or the writer has ended.
    ///
    /// # Safety
    ///
    /// The memory of its pieces can be read, from any thread, and is not written to, until `wait` has returned its
    /// ticket, or the writer was dropped and is not abandoned.
    #[must_use]
    pub unsafe fn submit(&self, ticket: u64, pieces: Vec<Piece>) -> bool {
        let mut state = self.shared.lock();
        if state.ending || state.queue.len() + state.running >= self.most {
            return false;
        }
        state.queue.push_back(Job { ticket, pieces });
        self.shared.work.notify_one();
        true
    }

    /// Take the jobs that are over. Wait for one, but for no longer than `most`, and not if there is none left.
    #[must_use]
    pub fn wait(&self, most: Duration) -> Vec<Done> {
        let state = self.shared.lock();
        let is_idle = |state: &State| state.queue.is_empty() && state.running == 0;
        let nothing = |state: &mut State| state.done.is_empty() && !(state.ending && is_idle(state));
        let (mut state, _) =
            self.shared.over.wait_timeout_while(state, most, nothing).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.done)
    }

    /// Jobs that wait or run.
    #[must_use]
    pub fn queued(&self) -> usize {
        let state = self.shared.lock();
        state.queue.len() + state.running
    }

    /// Take no more jobs. Those in the queue are still done.
    pub fn end(&self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_all();
        self.shared.over.notify_all();
    }

    /// Wait for no job any more: the disk hangs. The memory that is lent must then stay for ever.
    pub fn abandon(&self) {
        let mut state = self.shared.lock();
        state.queue.clear();
        state.abandoned = true;
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
