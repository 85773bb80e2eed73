//! A file that is written whole, or not at all: under another name first, and then renamed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What writes past the page cache must be aligned to, on any disk of today.
const BLOCK: usize = 4096;
/// From this size on the page cache is passed by: it would only copy, and push out what others need.
const DIRECT_LEAST: usize = 1 << 20;

/// The name of a file while it is written. Readers of Zarr look for no such name.
#[must_use]
pub fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
}

/// Write a file, in the place of one that may be there.
///
/// # Errors
///
/// If it cannot be written. Then what there was is there still.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = partial(path);
    let written = write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let direct = write_direct(path, bytes)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(direct == 0).open(path)?;
    if direct > 0 {
        file.seek(SeekFrom::Start(direct as u64))?;
    }
    file.write_all(bytes.get(direct..).unwrap_or_default())
}

/// Write what can be written past the page cache. Returns how many bytes were: none if the file system refuses.
fn write_direct(path: &Path, bytes: &[u8]) -> io::Result<usize> {
    let end = bytes.len() / BLOCK * BLOCK;
    if bytes.len() < DIRECT_LEAST || bytes.as_ptr().addr() % BLOCK != 0 {
        return Ok(0);
    }
    let flags = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(path);
    let mut file: File = match flags {
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(0),
        opened => opened?,
    };
    let mut done = 0;
    // A write that ends within a block leaves the rest to the page cache.
    while done < end && done % BLOCK == 0 {
        match file.write(bytes.get(done..end).unwrap_or_default()) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes away with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("speadrx-file-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pattern(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn any_size_and_alignment() {
        let folder = Folder::new("sizes");
        let all = pattern(2 * DIRECT_LEAST + 2 * BLOCK);
        let aligned = all.as_ptr().align_offset(BLOCK);
        for start in [aligned, aligned + 1] {
            for n in [0, 1, BLOCK, DIRECT_LEAST - 1, DIRECT_LEAST, DIRECT_LEAST + 5, DIRECT_LEAST + BLOCK] {
                let bytes = &all[start..start + n];
                let path = folder.0.join("c.0");
                write_whole(&path, bytes).unwrap();
                assert!(fs::read(&path).unwrap() == bytes, "{n} bytes from {start}");
                assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
            }
        }
    }

    #[test]
    fn what_there_was_stays_if_it_fails() {
        let folder = Folder::new("fails");
        let path = folder.0.join("c.0");
        write_whole(&path, b"first").unwrap();
        fs::create_dir(partial(&path)).unwrap();
        assert!(write_whole(&path, b"second").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }
}
