//! Append-only segments for bodies and results that are too large for a row.
//!
//! A record is a header (mark, length, blake3) and the bytes. Rows name records; what no row names,
//! such as a torn tail after a crash, is never read. Each start begins a segment of its own.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::{Error, Result};

const MARK: [u8; 4] = *b"TSP1";
const HEADER_BYTES: u64 = 4 + 8 + 32;

/// Where a record lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    /// Bytes from the segment's start to the record's header.
    pub(crate) offset: u64,
    /// Bytes of the payload.
    pub(crate) length: u64,
    /// blake3 of the payload.
    pub(crate) blake3: [u8; 32],
}

/// The writing side; one per store, owned by the writer thread.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    segment_bytes_max: u64,
    durable: bool,
    /// Number of the next segment.
    next: u64,
    active: Option<Segment>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    length: u64,
    /// Written since the last flush.
    dirty: bool,
}

impl Spool {
    pub(crate) fn open(dir: PathBuf, segment_bytes_max: u64, durable: bool) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let next = segments(&dir)?.last().map_or(1, |last| last + 1);
        Ok(Self { dir, segment_bytes_max, durable, next, active: None })
    }

    /// Writes a record; it is durable after the next [`Self::sync`].
    ///
    /// # Errors
    /// [`Error::Io`] where the disk is full: nothing names what was written of the record, and every
    /// record before it is durable. [`Error::Fatal`] otherwise.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<Place> {
        if self.active.as_ref().is_some_and(|active| active.length >= self.segment_bytes_max) {
            self.sync()?;
            self.active = None;
        }
        let mut segment = match self.active.take() {
            Some(active) => active,
            None => self.begin()?,
        };
        let hash = *blake3::hash(payload).as_bytes();
        let length = payload.len() as u64;
        let place = Place { segment: segment.number, offset: segment.length, length, blake3: hash };
        let mut header = Vec::with_capacity(44);
        header.extend_from_slice(&MARK);
        header.extend_from_slice(&length.to_le_bytes());
        header.extend_from_slice(&hash);
        // After a failed write the segment's length is unknown: it is left behind, and what was written
        // to it before must be flushed while it is still at hand.
        if let Err(error) =
            segment.file.write_all(&header).and_then(|()| segment.file.write_all(payload))
        {
            if segment.dirty && self.durable {
                segment.file.sync_data().map_err(flush_error)?;
            }
            return Err(write_error(error));
        }
        segment.length += HEADER_BYTES + length;
        segment.dirty = true;
        self.active = Some(segment);
        Ok(place)
    }

    /// Flushes what was appended.
    ///
    /// # Errors
    /// [`Error::Fatal`], whatever the cause.
    pub(crate) fn sync(&mut self) -> Result<()> {
        if let Some(active) = &mut self.active
            && active.dirty
        {
            if self.durable {
                active.file.sync_data().map_err(flush_error)?;
            }
            active.dirty = false;
        }
        Ok(())
    }

    /// Deletes the closed segments that `referenced` does not name; returns how many.
    pub(crate) fn sweep(&self, referenced: &std::collections::BTreeSet<u64>) -> io::Result<usize> {
        let active = self.active.as_ref().map(|active| active.number);
        let mut deleted = 0;
        for number in segments(&self.dir)? {
            if Some(number) != active && !referenced.contains(&number) {
                fs::remove_file(path(&self.dir, number))?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    fn begin(&mut self) -> Result<Segment> {
        let number = self.next;
        self.next += 1;
        let file = File::options()
            .append(true)
            .create_new(true)
            .open(path(&self.dir, number))
            .map_err(write_error)?;
        if self.durable {
            File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(flush_error)?;
        }
        Ok(Segment { number, file, length: 0, dirty: false })
    }
}

/// Reads a record and checks it.
pub(crate) fn read(dir: &Path, place: &Place) -> Result<Bytes> {
    let corrupted = || Error::Corrupted {
        what: format!("spool segment {} at byte {}", place.segment, place.offset),
    };
    let file = match File::open(path(dir, place.segment)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(corrupted()),
        Err(error) => return Err(error.into()),
    };
    let mut payload = vec![0; usize::try_from(place.length).map_err(|_| corrupted())?];
    match file.read_exact_at(&mut payload, place.offset + HEADER_BYTES) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(corrupted()),
        Err(error) => return Err(error.into()),
    }
    if *blake3::hash(&payload).as_bytes() != place.blake3 {
        return Err(corrupted());
    }
    Ok(payload.into())
}

/// A full disk leaves the store as it was; any other failed write does not.
fn write_error(error: io::Error) -> Error {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return Error::Io(error);
    }
    tracing::error!(error = %error, "spool failed");
    Error::Fatal
}

/// After a failed flush the system may have let go of what was to be written, and the next flush would
/// succeed without it: there is no second try, also where the disk was merely full.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn flush_error(error: io::Error) -> Error {
    tracing::error!(error = %error, "spool flush failed");
    Error::Fatal
}

/// The numbers of the segments on disk, rising.
fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".spool"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.spool"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Spool::open(dir.path().to_owned(), 100, true).unwrap();
        let mut spool = open();
        let places =
            [&b"one"[..], &[7; 200], b"three"].map(|payload| spool.append(payload).unwrap());
        spool.sync().unwrap();
        assert_eq!(
            places.each_ref().map(|place| (place.segment, place.offset)),
            [(1, 0), (1, 47), (2, 0)]
        );
        drop(spool);

        let torn = File::options().append(true).open(path(dir.path(), 2)).unwrap();
        (&torn).write_all(&MARK).unwrap();
        let mut spool = open();
        let after = spool.append(b"four").unwrap();
        assert_eq!(after.segment, 3);
        assert_eq!(read(dir.path(), &places[2]).unwrap(), &b"three"[..]);
        assert_eq!(read(dir.path(), &after).unwrap(), &b"four"[..]);

        torn.set_len(46).unwrap();
        assert!(matches!(read(dir.path(), &places[2]), Err(Error::Corrupted { .. })));
        assert_eq!(spool.sweep(&[1].into()).unwrap(), 1);
        assert_eq!(segments(dir.path()).unwrap(), [1, 3]);
    }
    /// A spool whose segment is a device that takes no flush: `full` takes no bytes either.
    #[cfg(target_os = "linux")]
    fn on_device(dir: &Path, device: &str, dirty: bool) -> Spool {
        let mut spool = Spool::open(dir.to_owned(), 100, true).unwrap();
        let file = File::options().append(true).open(device).unwrap();
        spool.active = Some(Segment { number: 1, file, length: 0, dirty });
        spool.next = 2;
        spool
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_passes() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = on_device(dir.path(), "/dev/full", false);
        let full = spool.append(b"one");
        assert!(matches!(full, Err(Error::Io(_))), "{full:?}");
        assert_eq!(spool.append(b"two").unwrap().segment, 2);
        spool.sync().unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_failed_flush_is_fatal() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = on_device(dir.path(), "/dev/null", false);
        spool.append(&[7; 200]).unwrap();
        let on_demand = spool.sync();
        assert!(matches!(on_demand, Err(Error::Fatal)), "{on_demand:?}");
        let at_rotation = spool.append(b"two");
        assert!(matches!(at_rotation, Err(Error::Fatal)), "{at_rotation:?}");
        let after_a_full_disk = on_device(dir.path(), "/dev/full", true).append(b"one");
        assert!(matches!(after_a_full_disk, Err(Error::Fatal)), "{after_a_full_disk:?}");
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(matches!(flush_error(kind.into()), Error::Fatal));
            assert!(matches!(write_error(kind.into()), Error::Io(_)));
        }
    }
}
