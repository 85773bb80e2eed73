//! The way into spead2: a thread reads packets, mends them, and writes them into TCP connections that spead2 reads.
//!
//! A TCP connection keeps their order, loses none, waits when spead2 is busy, and ends its stream when it is closed.
//! It has no borders between packets: spead2 finds them by the lengths in the packets. So only whole, valid packets are
//! written.

use std::io::{self, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::packet::capture::{Capture, Datagram};
use crate::packet::mend::{Arrival, Mender};
use crate::packet::sockets::{Sockets, now, sender_of};
use crate::packet::unused::Counts;

/// Bytes that are collected before they are written.
const WRITE: usize = 1 << 18;
/// How long to wait for the thread when it is to end. It may be in a file that is a pipe.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Datagrams of a capture between reports of how far it is.
const REPORT_EVERY: u64 = 1024;
/// Packets that are handed over and not taken yet.
const MOST_HANDED: usize = 256;
/// A read of fewer packets is followed by a pause, in which more gather: to wake up two threads for each packet costs more
/// than all that is done with it.
const FEW: u64 = 16;
const PAUSE: Duration = Duration::from_micros(100);
/// How long to wait for one, so that the thread can look whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// One of the connections that packets go into.
#[derive(Debug)]
pub struct Output {
    /// The connection.
    pub connection: TcpStream,
    /// What mends the packets for it.
    pub mender: Mender,
    /// The destinations whose packets it takes; all, if there is none. An unspecified address stands for any.
    pub destinations: Vec<SocketAddr>,
}

/// How far the thread is, for others to read.
#[derive(Debug, Default)]
pub struct Progress {
    /// Datagrams that were taken.
    pub taken: AtomicU64,
    /// Datagrams to other destinations.
    pub elsewhere: AtomicU64,
    /// Bytes of the capture that were read.
    pub position: AtomicU64,
    /// Time of the first datagram, in nanoseconds since 1970; 0 before it.
    pub began: AtomicU64,
    /// Nanoseconds by which it fell behind the pace, all together.
    pub behind: AtomicU64,
    /// Whether the thread has ended.
    pub ended: AtomicBool,
    /// Why the rest cannot be read.
    pub error: Mutex<Option<String>>,
    /// What is in the capture and not used, as far as it was read.
    pub skipped: Mutex<Vec<(String, u64)>>,
    /// Whether the last packet of the capture is incomplete.
    pub truncated: AtomicBool,
}

#[derive(Debug, Default)]
struct Signal {
    end: AtomicBool,
    changed: Condvar,
    lock: Mutex<()>,
}

impl Signal {
    fn is_set(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.end.store(true, Ordering::Relaxed);
        self.notify();
    }

    fn notify(&self) {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Wait until a condition holds, or the time has passed. Returns whether it holds.
    fn wait(&self, most: Duration, holds: impl Fn() -> bool) -> bool {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(guard, most, |()| !holds()));
        holds()
    }
}

/// A thread that feeds spead2.
#[derive(Debug)]
pub struct Feed {
    signal: Arc<Signal>,
    progress: Arc<Progress>,
    counts: Vec<Arc<Counts>>,
    /// To end writes at once.
    connections: Vec<TcpStream>,
    size: Option<u64>,
}

impl Feed {
    /// Feed what is in a capture, `pace` times faster than it was recorded, or as fast as possible.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn capture(capture: Capture, outputs: Vec<Output>, pace: Option<f64>) -> io::Result<Self> {
        let size = capture.size();
        let mut feed = Self::start(outputs, move |work| work.capture(capture, pace))?;
        feed.size = size;
        Ok(feed)
    }

    /// Feed what comes to sockets.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn sockets(mut sockets: Sockets, output: Output) -> io::Result<Self> {
        Self::start(vec![output], move |work| work.sockets(&mut sockets))
    }

    /// Feed packets that are handed over, one by one.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn handed(output: Output) -> io::Result<(Self, Handing)> {
        let (packets, handed) = sync_channel(MOST_HANDED);
        let feed = Self::start(vec![output], move |work| {
            work.handed(&handed);
            Ok(())
        })?;
        let progress = Arc::clone(&feed.progress);
        Ok((feed, Handing { packets, progress }))
    }

    fn start(
        outputs: Vec<Output>,
        run: impl FnOnce(&mut Work) -> Result<(), String> + Send + 'static,
    ) -> io::Result<Self> {
        let (signal, progress) = (Arc::<Signal>::default(), Arc::<Progress>::default());
        let counts = outputs.iter().map(|output| Arc::clone(output.mender.counts())).collect();
        let connections = outputs.iter().map(|output| output.connection.try_clone()).collect::<io::Result<Vec<_>>>()?;
        let lanes = outputs.into_iter().map(|output| Lane { output, ready: Vec::new(), is_open: true }).collect();
        let mut work = Work { lanes, signal: Arc::clone(&signal), progress: Arc::clone(&progress) };
        thread::Builder::new().name("speadrx-feed".into()).spawn(move || {
            if let Err(error) = run(&mut work) {
                *work.progress.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            work.finish();
        })?;
        Ok(Self { signal, progress, counts, connections, size: None })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What became of the packets for each output.
    #[must_use]
    pub fn counts(&self) -> &[Arc<Counts>] {
        &self.counts
    }

    /// Bytes of the capture, if that is known.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Read no more, and let spead2 have what was read. It returns at once.
    pub fn end(&self) {
        self.signal.set();
    }

    /// Stop at once, and wait for that. What was read and spead2 has not taken is thrown away.
    pub fn stop(&self) {
        self.signal.set();
        for connection in &self.connections {
            let _ = connection.shutdown(Shutdown::Both); // it may be closed already
        }
        self.signal.wait(END_PATIENCE, || self.progress.ended.load(Ordering::Acquire));
    }
}

/// Hands over packets to a feed, which ends when this is dropped.
#[derive(Debug)]
pub struct Handing {
    packets: SyncSender<Box<[u8]>>,
    progress: Arc<Progress>,
}

impl Handing {
    /// Hand over a packet, without waiting. Returns whether there was room for it.
    #[must_use]
    pub fn give(&self, packet: &[u8]) -> bool {
        match self.packets.try_send(packet.into()) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Say why there are no more.
    pub fn fail(&self, error: String) {
        *self.progress.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// Whether no more are taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.progress.ended.load(Ordering::Acquire)
    }
}

/// An output with what is to be written into it.
struct Lane {
    output: Output,
    ready: Vec<u8>,
    is_open: bool,
}

impl Lane {
    fn takes(&self, destination: SocketAddr) -> bool {
        let all = &self.output.destinations;
        let is_any = |address: IpAddr| address.is_unspecified() || address == destination.ip();
        all.is_empty() || all.iter().any(|one| one.port() == destination.port() && is_any(one.ip()))
    }

    /// Write what is ready. It waits until spead2 takes it, or the connection is closed.
    fn write(&mut self) {
        let mut rest = self.ready.as_slice();
        while self.is_open && !rest.is_empty() {
            match self.output.connection.write(rest) {
                Ok(bytes) => rest = rest.get(bytes..).unwrap_or_default(),
                Err(error) => self.is_open = error.kind() == io::ErrorKind::Interrupted,
            }
        }
        self.ready.clear();
    }
}

/// What the thread works with.
struct Work {
    lanes: Vec<Lane>,
    signal: Arc<Signal>,
    progress: Arc<Progress>,
}

impl Work {
    fn goes_on(&self) -> bool {
        !self.signal.is_set() && self.lanes.iter().any(|lane| lane.is_open)
    }

    fn capture(&mut self, mut capture: Capture, pace: Option<f64>) -> Result<(), String> {
        let mut pacing = pace.map(Pacing::new);
        let mut number = 0_u64;
        let result = loop {
            if !self.goes_on() {
                break Ok(());
            }
            if number % REPORT_EVERY == 0 {
                self.report(&capture);
            }
            number = number.wrapping_add(1);
            match capture.next_datagram() {
                Ok(Some(datagram)) => {
                    self.take(&datagram, pacing.as_mut());
                    // Nobody knows when more comes through a pipe.
                    if capture.size().is_none() {
                        self.write();
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.to_string()),
            }
        };
        self.report(&capture);
        result
    }

    fn write(&mut self) {
        for lane in &mut self.lanes {
            lane.write();
        }
    }

    fn take(&mut self, datagram: &Datagram<'_>, pacing: Option<&mut Pacing>) {
        let progress = &self.progress;
        if progress.began.load(Ordering::Relaxed) == 0 {
            progress.began.store(datagram.time.max(1) as u64, Ordering::Relaxed);
        }
        let Some(i) = self.lanes.iter().position(|lane| lane.takes(datagram.destination)) else {
            progress.elsewhere.fetch_add(1, Ordering::Relaxed);
            return;
        };
        progress.taken.fetch_add(1, Ordering::Relaxed);
        if let Some(pacing) = pacing {
            if let Some(wait) = pacing.wait(datagram.time) {
                self.write();
                self.signal.wait(wait, || self.signal.is_set());
            }
            self.progress.behind.store(pacing.behind.as_nanos() as u64, Ordering::Relaxed);
        }
        let Some(lane) = self.lanes.get_mut(i) else { return };
        let arrival = Arrival { sender: sender_of(datagram.source), time: datagram.time };
        lane.output.mender.take(datagram.payload, datagram.length, arrival, &mut lane.ready);
        if lane.ready.len() >= WRITE {
            lane.write();
        }
    }

    fn report(&self, capture: &Capture) {
        self.progress.position.store(capture.position(), Ordering::Relaxed);
        self.progress.truncated.store(capture.is_truncated(), Ordering::Relaxed);
        let mut skipped = self.progress.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        *skipped = capture.counts().skipped().collect();
    }

    fn sockets(&mut self, sockets: &mut Sockets) -> Result<(), String> {
        let may_pause = sockets.are_roomy();
        while self.goes_on() {
            let Some(lane) = self.lanes.first_mut() else { break };
            let (mender, ready) = (&mut lane.output.mender, &mut lane.ready);
            let mut taken = 0;
            let mut take = |data: &[u8], arrival: Arrival| {
                mender.take(data, data.len(), arrival, ready);
                taken += 1;
            };
            sockets.read(&mut take).map_err(|error| error.to_string())?;
            self.progress.taken.fetch_add(taken, Ordering::Relaxed);
            lane.write();
            if may_pause && (1..FEW).contains(&taken) {
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    fn handed(&mut self, handed: &Receiver<Box<[u8]>>) {
        while self.goes_on() {
            match handed.recv_timeout(LOOK_INTERVAL) {
                Ok(packet) => {
                    self.mend(&packet);
                    handed.try_iter().take(MOST_HANDED).for_each(|packet| self.mend(&packet));
                    self.write();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    /// Mend a packet of nobody in particular, which comes now.
    fn mend(&mut self, packet: &[u8]) {
        self.progress.taken.fetch_add(1, Ordering::Relaxed);
        for Lane { output, ready, .. } in &mut self.lanes {
            output.mender.take(packet, packet.len(), Arrival { sender: 0, time: now() }, ready);
        }
    }

    fn finish(&mut self) {
        for lane in &mut self.lanes {
            lane.output.mender.finish();
            lane.write();
            let _ = lane.output.connection.shutdown(Shutdown::Write);
        }
        self.lanes.clear();
        self.progress.ended.store(true, Ordering::Release);
        self.signal.notify();
    }
}

/// Keeps the pace of a capture.
struct Pacing {
    factor: f64,
    start: Instant,
    first: Option<i64>,
    /// What was fallen behind: the start is later by that.
    behind: Duration,
}

/// More than this behind time, and the rest comes later by that, since the packets would come in a burst.
const TOLERANCE: Duration = Duration::from_millis(10);

impl Pacing {
    fn new(factor: f64) -> Self {
        Self { factor, start: Instant::now(), first: None, behind: Duration::ZERO }
    }

    /// How long to wait for a packet of this time, if at all.
    fn wait(&mut self, time: i64) -> Option<Duration> {
        let first = *self.first.get_or_insert(time);
        #[expect(clippy::cast_precision_loss, reason = "2^53 ns are 104 days")]
        let seconds = time.saturating_sub(first).max(0) as f64 / 1e9 / self.factor;
        let due = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let now = self.start.elapsed();
        let due = due.saturating_add(self.behind);
        let late = now.saturating_sub(due);
        if late > TOLERANCE {
            self.behind = self.behind.saturating_add(late);
        }
        due.checked_sub(now).filter(|wait| !wait.is_zero())
    }
}
