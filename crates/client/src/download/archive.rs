//! Unpacks an archive as a server sends it: a tar, plain or in gzip, of plain files.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    path::Path,
};

use super::{
    names,
    staging::{file_error, make_dir},
};
use crate::{Error, Result};

/// Files and directories that an archive may have.
const ENTRIES_MAX: usize = 10_000;
/// Bytes that may come out of an archive: a small one may be made to unpack to any size.
const UNPACKED_BYTES_MAX: u64 = 1 << 40;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Unpacks the archive at `from` into the directory `into`. Links, devices, and names that lead out of it are refused.
pub(super) fn unpack(from: &Path, into: &Path) -> Result<()> {
    let fault = |error: &io::Error| Error::Response {
        message: format!("the checkpoint's archive cannot be unpacked: {error}"),
    };
    let mut file = File::open(from).map_err(|error| file_error("open", from, &error))?;
    let mut magic = [0; 2];
    let is_gzip = file.read_exact(&mut magic).is_ok() && magic == GZIP;
    file.seek(SeekFrom::Start(0)).map_err(|error| file_error("read", from, &error))?;
    let file = BufReader::new(file);
    let plain: Box<dyn Read> =
        if is_gzip { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut archive = tar::Archive::new(plain.take(UNPACKED_BYTES_MAX));
    let mut files = 0;
    for (number, entry) in archive.entries().map_err(|error| fault(&error))?.enumerate() {
        let mut entry = entry.map_err(|error| fault(&error))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if number >= ENTRIES_MAX || !(kind.is_file() || kind.is_dir()) {
            return Err(Error::Response {
                message: format!(
                    "the checkpoint's archive has {name:?}: a link or a device, or more than {ENTRIES_MAX} entries"
                ),
            });
        }
        if kind.is_dir() {
            // Directories come into being with their files.
            continue;
        }
        let place = into.join(names::relative(&name)?);
        if let Some(dir) = place.parent() {
            make_dir(dir)?;
        }
        let mut out =
            File::create_new(&place).map_err(|error| file_error("create", &place, &error))?;
        let size = entry.size();
        let written = io::copy(&mut entry, &mut out).map_err(|error| fault(&error))?;
        if written != size {
            return Err(fault(&io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        out.sync_all().map_err(|error| file_error("write", &place, &error))?;
        files += 1;
    }
    if files == 0 {
        return Err(Error::Response { message: "the checkpoint's archive is empty".to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // The crate's own way refuses such names.
            let bytes = header.as_gnu_mut().unwrap();
            bytes.name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn run(bytes: &[u8]) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let (from, into) = (dir.path().join("a.tar"), dir.path().join("out"));
        fs::write(&from, bytes).unwrap();
        fs::create_dir(&into).unwrap();
        let result = unpack(&from, &into);
        (dir, result)
    }

    #[test]
    fn plain_and_gzip_archives_are_unpacked() {
        let file = tar::EntryType::Regular;
        let plain = archive(&[("dir/a", file, b"first"), ("checkpoint_complete", file, b"")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for bytes in [plain, gzip.finish().unwrap()] {
            let (dir, result) = run(&bytes);
            result.unwrap();
            assert_eq!(fs::read(dir.path().join("out/dir/a")).unwrap(), b"first");
            assert!(dir.path().join("out/checkpoint_complete").is_file());
        }
    }

    #[test]
    fn archives_that_are_dangerous_or_broken_are_refused() {
        let file = tar::EntryType::Regular;
        for name in ["../evil", "/tmp/evil", "a/../../evil"] {
            let (dir, result) = run(&archive(&[(name, file, b"x")]));
            assert!(result.unwrap_err().to_string().contains("outside"), "{name}");
            assert!(!dir.path().join("evil").exists());
        }
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo] {
            let (_dir, result) = run(&archive(&[("a", kind, b"")]));
            assert!(result.unwrap_err().to_string().contains("link"));
        }
        let whole = archive(&[("a", file, &[7; 2000])]);
        for bytes in [&whole[..1000], b"<html>not an archive</html>".as_slice(), b""] {
            assert!(run(bytes).1.is_err());
        }
    }
}
