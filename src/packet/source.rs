//! The bytes of a capture: of a file or a pipe, decompressed, behind a buffer.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::capture::Fault;

/// Bytes that are read at once. What is read in one go is parsed in place.
const BUFFER_BYTES: usize = 1 << 20;

type Bytes = Box<dyn Read + Send>;

/// Decompressed bytes. What has been given stays where it is until the next call of [`Source::fill`].
pub(super) struct Source {
    bytes: Bytes,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Decompressed bytes that were given, and bytes of the file that were read.
    given: u64,
    read: Arc<AtomicU64>,
    packed: Option<&'static str>,
    /// Whether there are no more bytes; and whether compressed data ended too early.
    ended: bool,
    cut_off: bool,
}

impl Source {
    pub fn new(file: Bytes) -> Result<Self, Fault> {
        let read = Arc::new(AtomicU64::new(0));
        let mut bytes: Bytes = Box::new(Counting { file, read: Arc::clone(&read) });
        let mut magic = Vec::with_capacity(4);
        bytes.by_ref().take(4).read_to_end(&mut magic).map_err(Fault::Io)?;
        let packed = match magic.as_slice() {
            [0x1F, 0x8B, ..] => Some("gzip"),
            [0x28, 0xB5, 0x2F, 0xFD] | [0x50..=0x5F, 0x2A, 0x4D, 0x18] => Some("zstd"),
            _ => None,
        };
        let whole: Bytes = Box::new(Cursor::new(magic).chain(bytes));
        let bytes: Bytes = match packed {
            None => whole,
            Some("gzip") => Box::new(MultiGzDecoder::new(whole)),
            Some(_) => Box::new(Zstd {
                bytes: BufReader::new(whole),
                decoder: FrameDecoder::new(),
                in_frame: false,
                error: None,
            }),
        };
        let buffer = vec![0; BUFFER_BYTES];
        Ok(Self { bytes, buffer, start: 0, end: 0, given: 0, read, packed, ended: false, cut_off: false })
    }

    /// Make at least so many bytes ready. Returns false if there are not so many left.
    pub fn fill(&mut self, wanted: usize) -> Result<bool, Fault> {
        if self.end - self.start >= wanted {
            return Ok(true);
        }
        if self.buffer.len() - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
        }
        while self.end - self.start < wanted && !self.ended {
            match self.bytes.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.ended = true,
                Ok(n) => self.end += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.give_up(error)?,
            }
        }
        Ok(self.end - self.start >= wanted)
    }

    /// Whether an error means the end of the data, because a compressed file was cut off.
    fn give_up(&mut self, error: io::Error) -> Result<(), Fault> {
        self.ended = true;
        let Some(packed) = self.packed else { return Err(Fault::Io(error)) };
        if is_early_end(&error) {
            self.cut_off = true;
            return Ok(());
        }
        // What the system says of the file, and not the decompressor of the data.
        if error.raw_os_error().is_some() {
            return Err(Fault::Io(error));
        }
        Err(Fault::Damaged(format!("its {packed} data does not decompress: {error}")))
    }

    /// Bytes that are ready.
    pub fn ready(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Take bytes that are ready. Returns where they are in the memory.
    pub fn take(&mut self, bytes: usize) -> usize {
        let at = self.start;
        self.start = self.end.min(at + bytes);
        self.given += (self.start - at) as u64;
        at
    }

    pub fn close(&mut self) {
        self.bytes = Box::new(io::empty());
        self.ended = true;
    }

    pub fn memory(&self) -> &[u8] {
        &self.buffer
    }

    /// Decompressed bytes that were taken.
    pub fn offset(&self) -> u64 {
        self.given
    }

    /// Bytes of the file that were taken; if it is compressed, bytes that were read.
    pub fn position(&self) -> u64 {
        if self.packed.is_none() { self.given } else { self.read.load(Ordering::Relaxed) }
    }

    /// At the end: whether something is left that is not whole.
    pub fn is_truncated(&self) -> bool {
        self.cut_off || self.end > self.start
    }
}

/// Counts the bytes of a file, for a decompressor takes it away.
struct Counting {
    file: Bytes,
    read: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Whether the data of a decompressor ended where more was due; ruzstd wraps that in errors of its own.
fn is_early_end(error: &io::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let as_io = error.downcast_ref::<io::Error>();
        if as_io.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            return true;
        }
        // What an io::Error wraps is no source of it, but its content.
        cause = match as_io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// All frames of a zstd file, one after another: ruzstd's own reader reads one.
struct Zstd {
    bytes: BufReader<Bytes>,
    decoder: FrameDecoder,
    in_frame: bool,
    /// What is wrong with the frame, while what came before is given.
    error: Option<io::Error>,
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.in_frame {
                let n = self.decoder.read(buffer)?;
                if n > 0 || buffer.is_empty() {
                    return Ok(n);
                }
                self.in_frame = !self.decoder.is_finished();
            }
            if self.in_frame {
                self.decode_block();
            } else if let Some(error) = self.error.take() {
                return Err(error);
            } else if self.bytes.fill_buf()?.is_empty() {
                return Ok(0);
            } else {
                self.begin_frame()?;
            }
        }
    }
}

impl Zstd {
    fn decode_block(&mut self) {
        let one = || BlockDecodingStrategy::UptoBlocks(1);
        if let Err(error) = self.decoder.decode_blocks(&mut self.bytes, one()) {
            self.error = Some(io::Error::other(error));
            // The decoder keeps back a window's worth, which may be megabytes, until a frame ends: an empty last block.
            let last: &[u8] = &[1, 0, 0];
            let _ = self.decoder.decode_blocks(last, one());
            self.in_frame = self.decoder.is_finished();
        }
    }

    /// Begin a frame, or skip one without data.
    fn begin_frame(&mut self) -> io::Result<()> {
        match self.decoder.init(&mut self.bytes) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                io::copy(&mut self.bytes.by_ref().take(length.into()), &mut io::sink())?;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }
}
