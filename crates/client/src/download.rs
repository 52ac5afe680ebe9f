//! Checkpoints as files: fetched where they are broken off, checked, and put into place all at once.

use std::{
    collections::BTreeMap,
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use tinsmith_types::{checkpoints::CheckpointArchiveUrlResponse, path::CheckpointKind};

use crate::{ApiFuture, Error, RestClient, Result, TinkerPath, rest};

mod archive;
mod export;
mod names;
mod staging;
mod transfer;

use export::Export;
use staging::Staging;
use transfer::{Fetched, Transfer};

/// Files that a checkpoint may have.
const FILES_MAX: usize = 10_000;
/// Times that links are asked for anew for one file, as they expire.
const LINKS_MAX: u32 = 4;

type Listener = Arc<dyn Fn(&DownloadProgress) + Send + Sync>;

/// How a checkpoint is downloaded.
#[derive(Clone, Default)]
#[must_use]
pub struct DownloadOptions {
    force: bool,
    progress: Option<Listener>,
}

impl DownloadOptions {
    /// Into a directory that is not there yet, or is empty, without telling of progress.
    pub fn new() -> Self {
        Self::default()
    }

    /// Take the place of an earlier download in the directory. A directory with other files stays as it is, and the
    /// download is refused.
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Told at every piece that comes, on the client's own thread: it should return soon.
    pub fn progress(mut self, told: impl Fn(&DownloadProgress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(told));
        self
    }
}

impl fmt::Debug for DownloadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownloadOptions").field("force", &self.force).finish_non_exhaustive()
    }
}

/// How far a download is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DownloadProgress {
    /// The file that is being fetched, by its path within the checkpoint.
    pub file: String,
    /// Its number, from 1.
    pub file_number: usize,
    /// Files in all.
    pub files: usize,
    /// Bytes of it that are here, those of an earlier attempt included.
    pub bytes: u64,
    /// Its size, where the server says it.
    pub size_bytes: Option<u64>,
}

/// A checkpoint that was downloaded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Downloaded {
    /// Where it is.
    pub dir: PathBuf,
    /// Its files, by their paths within it.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Bytes that were here already, of an attempt that was broken off.
    pub resumed_bytes: u64,
    /// Files whose checksum the server gave, and which have it. Of all, the size was checked.
    pub checksums: usize,
}

impl RestClient {
    /// Downloads a checkpoint into `dir`.
    ///
    /// An export is fetched file by file. A training checkpoint is exported first, into a checkpoint that is deleted
    /// afterwards. A sampler checkpoint, and any of a server without exports, is fetched as an archive and unpacked.
    /// What was fetched stays in `.<name>.partial` beside `dir` until all is there: the same call goes on from it.
    ///
    /// # Errors
    ///
    /// [`Error::Validation`]: `dir` is there and not to be replaced, or cannot be written, or a file's name would lie
    /// outside of it. [`Error::Response`]: what came is not what the server says that it sends.
    pub fn download_checkpoint(
        &self,
        path: impl TryInto<TinkerPath, Error: fmt::Display>,
        dir: impl Into<PathBuf>,
        options: DownloadOptions,
    ) -> ApiFuture<Downloaded> {
        let path = rest::address(path);
        let (client, dir) = (self.clone(), dir.into());
        self.http.start(async move {
            let path = path?;
            let staging = Staging::open(&dir, &path.to_string(), options.force)?;
            let download = Download { client: &client, path: &path, options: &options };
            download.run(staging).await
        })
    }

    /// Has a trace of a session's operations made, and fetches it to `file`: its size in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Validation`]: `file` cannot be written. It is replaced where it is there, once all has come.
    pub fn download_session_trace(
        &self,
        session_id: &str,
        file: impl Into<PathBuf>,
    ) -> ApiFuture<u64> {
        let (url, http, file) =
            (self.export_session_trace(session_id), self.http.clone(), file.into());
        self.http.start(async move {
            let url = url.await?;
            Transfer::new(&http)?.fetch_small(&url, &file).await
        })
    }
}

/// The directory that a checkpoint goes to where nobody says otherwise: its path in one word.
///
/// ```
/// let path = "tinker://run-1/weights/a".parse().unwrap();
/// assert_eq!(tinsmith::download_dir(&path), std::path::Path::new("run-1_weights_a"));
/// ```
pub fn download_dir(path: &TinkerPath) -> PathBuf {
    let word = path.to_string().replace("tinker://", "").replace(['/', '\\'], "_");
    PathBuf::from(word)
}

struct Download<'a> {
    client: &'a RestClient,
    path: &'a TinkerPath,
    options: &'a DownloadOptions,
}

impl Download<'_> {
    async fn run(&self, mut staging: Staging) -> Result<Downloaded> {
        let mut fetched = Fetched::default();
        match self.path.kind {
            CheckpointKind::ExternalWeights => {
                self.files(self.path, &mut staging, &mut fetched).await?;
            }
            CheckpointKind::SamplerWeights => self.archive(&mut staging, &mut fetched).await?,
            CheckpointKind::Weights => match Export::make(&self.client.http, self.path).await {
                Ok(export) => {
                    let result = self.files(&export.path, &mut staging, &mut fetched).await;
                    export.remove(self.client).await;
                    result?;
                }
                // A server of the time before exports.
                Err(Error::Api { status: 404 | 405 | 501, .. }) => {
                    self.archive(&mut staging, &mut fetched).await?;
                }
                Err(error) => return Err(error),
            },
        }
        let (dir, files) = staging.publish()?;
        let mut size_bytes = 0;
        for file in &files {
            size_bytes += fs::metadata(dir.join(file)).map_or(0, |metadata| metadata.len());
        }
        let Fetched { resumed_bytes, checksums } = fetched;
        Ok(Downloaded { dir, files, size_bytes, resumed_bytes, checksums })
    }

    /// The files of an export.
    async fn files(
        &self,
        export: &TinkerPath,
        staging: &mut Staging,
        fetched: &mut Fetched,
    ) -> Result<()> {
        let mut urls = self.links(export).await?;
        let names: Vec<String> = urls.keys().cloned().collect();
        if names.is_empty() || names.len() > FILES_MAX {
            let count = names.len();
            let message = format!("{export} has {count} files, not from 1 to {FILES_MAX}");
            return Err(Error::Response { message });
        }
        // Nothing is fetched of a checkpoint of which a file would lie elsewhere.
        let places = names.iter().map(|name| names::relative(name)).collect::<Result<Vec<_>>>()?;
        let transfer = Transfer::new(&self.client.http)?;
        for (number, (name, place)) in names.iter().zip(&places).enumerate() {
            let told = self.teller(name, number + 1, names.len());
            let mut asked = 1;
            loop {
                let url = urls.get(name).ok_or_else(|| Error::Response {
                    message: format!("{export} has lost its file {name} meanwhile"),
                })?;
                match transfer.fetch(url, staging, place, fetched, &told).await {
                    Err(Error::Api { status: 401 | 403 | 404 | 410, .. }) if asked < LINKS_MAX => {
                        asked += 1;
                        urls = self.links(export).await?;
                    }
                    result => break result?,
                }
            }
        }
        Ok(())
    }

    /// Links to the files of an export, which is kept for as long as they hold where it is made for this.
    async fn links(&self, export: &TinkerPath) -> Result<BTreeMap<String, String>> {
        let urls = self.client.get_external_weights_urls(export).await?.urls;
        if export != self.path {
            let ttl = Some(export::TTL_SECONDS);
            self.client.set_checkpoint_ttl_from_tinker_path(export, ttl).await?;
        }
        Ok(urls)
    }

    /// All files in one.
    async fn archive(&self, staging: &mut Staging, fetched: &mut Fetched) -> Result<()> {
        let place = Path::new("checkpoint.tar");
        let transfer = Transfer::new(&self.client.http)?;
        let told = self.teller("checkpoint.tar", 1, 1);
        let mut asked = 0;
        loop {
            let CheckpointArchiveUrlResponse { url, expires: _ } =
                self.client.get_checkpoint_archive_url_by_tinker_path(self.path).await?;
            asked += 1;
            match transfer.fetch(&url, staging, place, fetched, &told).await {
                Err(Error::Api { status: 401 | 403 | 404 | 410, .. }) if asked < LINKS_MAX => {}
                result => break result?,
            }
        }
        staging.unpack(place).await
    }

    /// Tells of one file's progress. A listener that panics is not asked again for this piece, and is logged.
    fn teller(&self, file: &str, file_number: usize, files: usize) -> impl Fn(u64, Option<u64>) {
        let (told, file) = (self.options.progress.clone(), file.to_owned());
        move |bytes, size_bytes| {
            let Some(told) = &told else { return };
            let progress =
                DownloadProgress { file: file.clone(), file_number, files, bytes, size_bytes };
            if catch_unwind(AssertUnwindSafe(|| told(&progress))).is_err() {
                tracing::warn!(file, "the listener of a download's progress panicked");
            }
        }
    }
}
