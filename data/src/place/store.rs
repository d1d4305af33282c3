//! How is an object store spoken to, and what does it say when something is wrong?
//!
//! The rest of the crate waits for its files, so this is where asynchronous calls end: a small runtime of its own, whose
//! threads only move bytes. What the store says of an error may hold names of keys and signed requests, so only its code is
//! told on.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fs_err as fs;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig,
    WriteMultipart,
};
use tokio::runtime::{Builder, Runtime};

use super::Address;
use crate::error::{Error, Result};

/// Bytes of a part of a file that is sent or brought in parts.
const PART: u64 = 8 << 20;
/// Parts that are under way at the same time.
const PARTS: usize = 8;
/// Threads that move bytes.
const THREADS: usize = 2;
/// How often a request is tried again while a job is under way: a store that is away for a minute ends nothing.
const PATIENT: usize = 10;
/// How often the first request is tried again: a wrong address is told within seconds.
const BRISK: usize = 4;
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(10);
/// After so long a request is not tried again.
const GIVE_UP: Duration = Duration::from_mins(3);

/// A file in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) bytes: u64,
    /// Changes with its bytes; empty where the store has none.
    pub(super) tag: String,
}

/// The objects below a prefix.
#[derive(Debug)]
pub(super) struct Store {
    client: Arc<dyn ObjectStore>,
    /// The same, less patient.
    brisk: Arc<dyn ObjectStore>,
    /// Not empty.
    prefix: String,
    shown: String,
    hint: &'static str,
    runtime: Runtime,
}

impl Store {
    /// Nothing is asked of the network yet.
    pub(super) fn connect(address: &Address, settings: &[(String, String)]) -> Result<Self> {
        let connected = |retries| {
            connect(address, settings, retries).map_err(|cause| failure(&address.shown, address.hint(), cause))
        };
        Self::new(connected(PATIENT)?, connected(BRISK)?, address)
    }

    fn new(client: Arc<dyn ObjectStore>, brisk: Arc<dyn ObjectStore>, address: &Address) -> Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(THREADS).thread_name("object store").enable_all().build()?;
        let (prefix, shown) = (address.prefix.clone(), address.shown.clone());
        Ok(Self { client, brisk, prefix, shown, hint: address.hint(), runtime })
    }

    /// A store of a test.
    #[cfg(test)]
    pub(super) fn given(store: Arc<dyn ObjectStore>, address: &Address) -> Self {
        Self::new(Arc::clone(&store), store, address).unwrap()
    }

    /// Every file below the prefix, by its path there.
    pub(super) fn list(&self) -> Result<BTreeMap<String, Object>> {
        let prefix = self.failed(Key::parse(&self.prefix).map_err(Into::into))?;
        let list = self.brisk.list(Some(&prefix)).try_collect::<Vec<_>>();
        let mut objects = BTreeMap::new();
        for meta in self.failed(self.runtime.block_on(list))? {
            let key = meta.location.as_ref();
            let relative = key.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/'));
            // What stands for the folder itself holds nothing.
            let Some(relative) = relative.filter(|relative| !relative.is_empty()) else { continue };
            if !is_within(relative) {
                let reason = "it leads out of the run";
                return Err(Error::BadName {
                    kind: "file of a run",
                    name: relative.escape_debug().to_string(),
                    reason,
                });
            }
            let object = Object { bytes: meta.size, tag: meta.e_tag.unwrap_or_default() };
            objects.insert(relative.to_owned(), object);
        }
        Ok(objects)
    }

    /// Brings a file, in parts that are under way at the same time. One that has changed meanwhile is an error.
    pub(super) fn fetch(&self, relative: &str, object: &Object, file: &mut impl Write) -> Result<()> {
        let key = self.key(relative)?;
        let starts = (0..object.bytes).step_by(PART as usize);
        let parts = starts.map(|start| start..object.bytes.min(start + PART)).map(|range| {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                if_match: Some(object.tag.clone()).filter(|tag| !tag.is_empty()),
                ..GetOptions::default()
            };
            let (store, key) = (&self.client, &key);
            async move { (store.get_opts(key, options).await?.bytes().await).map(|bytes| (range, bytes)) }
        });
        let mut parts = stream::iter(parts).buffered(PARTS);
        while let Some(part) = self.runtime.block_on(parts.next()) {
            let (range, bytes) = match part {
                Err(object_store::Error::NotFound { .. }) => return Err(self.missing(relative)),
                Err(object_store::Error::Precondition { .. }) => return Err(self.changed(relative)),
                part => self.failed(part)?,
            };
            if bytes.len() as u64 != range.end - range.start {
                return Err(self.changed(relative));
            }
            file.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Brings a small file that may not be listed yet; `None` where there is none.
    pub(super) fn get(&self, relative: &str) -> Result<Option<(Object, Bytes)>> {
        let key = self.key(relative)?;
        let got = self.runtime.block_on(async {
            let got = self.client.get(&key).await?;
            let object = Object { bytes: got.meta.size, tag: got.meta.e_tag.clone().unwrap_or_default() };
            Ok((object, got.bytes().await?))
        });
        match got {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            got => self.failed(got).map(Some),
        }
    }

    /// Sends a file, a large one in parts that are under way at the same time: it is there wholly or not at all.
    pub(super) fn upload(&self, relative: &str, path: &Path) -> Result<Object> {
        let key = self.key(relative)?;
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        if length <= PART {
            let mut bytes = Vec::with_capacity(length as usize);
            file.read_to_end(&mut bytes)?;
            return self.replace(relative, bytes.into());
        }
        let sent = self.runtime.block_on(async {
            let upload = self.client.put_multipart(&key).await?;
            let mut writer = WriteMultipart::new_with_chunk_size(upload, PART as usize);
            loop {
                writer.wait_for_capacity(PARTS).await?;
                let mut part = Vec::with_capacity(PART as usize);
                match Read::by_ref(&mut file).take(PART).read_to_end(&mut part) {
                    Ok(0) => break,
                    Ok(_) => writer.put(part.into()),
                    Err(cause) => {
                        // The first error is the one to tell; what stays of the parts is for the store's own rules.
                        let _ = writer.abort().await;
                        return Err(object_store::Error::Generic { store: "disk", source: Box::new(cause) });
                    }
                }
            }
            writer.finish().await
        });
        let result = self.failed(sent)?;
        Ok(Object { bytes: length, tag: result.e_tag.unwrap_or_default() })
    }

    /// Puts a small file in place of an older one.
    pub(super) fn replace(&self, relative: &str, bytes: Bytes) -> Result<Object> {
        let key = self.key(relative)?;
        let length = bytes.len() as u64;
        let put = self.failed(self.runtime.block_on(self.client.put(&key, PutPayload::from_bytes(bytes))))?;
        Ok(Object { bytes: length, tag: put.e_tag.unwrap_or_default() })
    }

    /// Puts a small file where none is; `None` where one is. A store that cannot tell is asked before.
    pub(super) fn create(&self, relative: &str, bytes: Bytes) -> Result<Option<Object>> {
        let key = self.key(relative)?;
        let length = bytes.len() as u64;
        let payload = PutPayload::from_bytes(bytes.clone());
        match self.runtime.block_on(self.client.put_opts(&key, payload, PutMode::Create.into())) {
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(None),
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                if self.get(relative)?.is_some() { Ok(None) } else { self.replace(relative, bytes).map(Some) }
            }
            put => Ok(Some(Object { bytes: length, tag: self.failed(put)?.e_tag.unwrap_or_default() })),
        }
    }

    /// Removes files; one that is not there is as good as removed.
    pub(super) fn remove(&self, files: &[String]) -> Result<()> {
        let keys = files.iter().map(|relative| self.key(relative)).collect::<Result<Vec<_>>>()?;
        for key in keys {
            match self.runtime.block_on(self.client.delete(&key)) {
                Err(object_store::Error::NotFound { .. }) => {}
                removed => self.failed(removed)?,
            }
        }
        Ok(())
    }

    pub(super) fn missing(&self, relative: &str) -> Error {
        Error::MissingFile { path: format!("{}/{relative}", self.shown).into() }
    }

    fn changed(&self, relative: &str) -> Error {
        Error::Store {
            what: "another process is changing the file".into(),
            place: format!("{}/{relative}", self.shown).into(),
            hint: "the same command reads it as it is then",
        }
    }

    fn key(&self, relative: &str) -> Result<Key> {
        self.failed(Key::parse(format!("{}/{relative}", self.prefix)).map_err(Into::into))
    }

    fn failed<T>(&self, result: object_store::Result<T>) -> Result<T> {
        result.map_err(|cause| failure(&self.shown, self.hint, cause))
    }
}

fn connect(
    address: &Address,
    settings: &[(String, String)],
    retries: usize,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let backoff = BackoffConfig { max_backoff: PAUSE, ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: retries, retry_timeout: GIVE_UP };
    let settings = settings.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    Ok(match address.scheme {
        "s3" => {
            let mut builder = AmazonS3Builder::new();
            for (name, value) in settings.filter(|(name, _)| name.starts_with("aws_")) {
                if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
                    // Whoever writes `http://` means it.
                    let is_plain = matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint)
                        && value.starts_with("http://");
                    builder = if is_plain { builder.with_allow_http(true) } else { builder };
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_bucket_name(&address.bucket).with_retry(retry).build()?)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (name, value) in settings.filter(|(name, _)| name.starts_with("google_") || name == "service_account") {
                if let Ok(key) = name.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_bucket_name(&address.bucket).with_retry(retry).build()?)
        }
        _ => {
            let mut builder = MicrosoftAzureBuilder::new();
            for (name, value) in settings.filter(|(name, _)| name.starts_with("azure_") || name == "identity_endpoint")
            {
                if let Ok(key) = name.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_container_name(&address.bucket).with_retry(retry).build()?)
        }
    })
}

/// Whether a path of a store stays below its prefix, and is one that a disk can have too.
fn is_within(relative: &str) -> bool {
    !relative.contains(['\\', ':'])
        && !relative.chars().any(char::is_control)
        && Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)))
        && !relative.split('/').any(|part| part.is_empty() || part == ".")
}

/// What went wrong, without what the store answered: that may repeat what was signed.
#[expect(clippy::needless_pass_by_value, reason = "it is called with errors that end there")]
fn failure(shown: &str, credentials: &'static str, cause: object_store::Error) -> Error {
    use object_store::Error as Cause;
    let text = texts(&cause);
    let code = code(&text);
    let (what, hint) = if text.contains("169.254.") || text.contains("metadata.google") {
        ("no credentials for".to_owned(), credentials)
    } else if ["NoSuchBucket", "ContainerNotFound"].iter().any(|name| text.contains(name))
        || text.contains("specified bucket does not exist")
    {
        ("there is no such bucket:".to_owned(), "make it first, or see whether its name is right")
    } else if matches!(cause, Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. }) || text.contains("403 ") {
        (
            format!("the store refuses{} access to", code.map(|code| format!(" ({code})")).unwrap_or_default()),
            credentials,
        )
    } else if matches!(cause, Cause::InvalidPath { .. }) {
        ("a key of the store cannot be a file of a run:".to_owned(), "remove it, or choose another prefix")
    } else if matches!(cause, Cause::Generic { store: "disk", .. }) {
        (format!("a file cannot be read while it is sent ({}) to", last(&cause)), "see whether the disk is well")
    } else if let Some(code) = code {
        (
            format!("the store says `{code}` of"),
            "the same command goes on where it was (with `--resume` where it has that)",
        )
    } else {
        (format!("cannot reach the store ({}) of", last(&cause)), "see whether the network and the endpoint are right")
    };
    Error::Store { what: what.into(), place: shown.into(), hint }
}

/// What all causes say, for looking into.
fn texts(cause: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(cause), |cause| cause.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The innermost cause, without queries, which may be signed.
fn last(cause: &dyn std::error::Error) -> String {
    let innermost = std::iter::successors(Some(cause), |cause| cause.source()).last().unwrap_or(cause).to_string();
    let line = innermost.lines().next().unwrap_or_default();
    line.split_whitespace().map(|word| word.split('?').next().unwrap_or_default()).collect::<Vec<_>>().join(" ")
}

/// The code of an answer: the store's own, or that of HTTP.
fn code(text: &str) -> Option<String> {
    let between = |start: &str, end: char| Some(text.split_once(start)?.1.split(end).next()?.trim().to_owned());
    let plain = |code: &String| code.len() < 64 && code.chars().all(|c| c.is_ascii_alphanumeric() || c == ' ');
    between("<Code>", '<').or_else(|| between("status code: ", ':')).filter(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_their_prefix() {
        for good in
            ["manifest.json", "acts/hook_point=blocks.1.hook_resid_post/shard-00000.parquet", "saes/größer/cfg.json"]
        {
            assert!(is_within(good), "{good}");
        }
        for bad in ["../x", "a/../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "c:d", "a\nb", "a/"] {
            assert!(!is_within(bad), "{bad}");
        }
    }

    #[test]
    fn what_was_signed_is_not_told() {
        let told = |text: &str| {
            let source = Box::<dyn std::error::Error + Send + Sync>::from(text.to_owned());
            failure("s3://b/run", "set them", object_store::Error::Generic { store: "S3", source }).to_string()
        };
        let answer = "Server returned non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code>\
                      <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>";
        assert_eq!(told(answer), "the store refuses (SignatureDoesNotMatch) access to `s3://b/run`\nhint: set them");
        let sent = told("error sending request for url (https://a.net/c?sig=SECRET&se=1)");
        assert!(sent.contains("https://a.net/c") && !sent.contains("SECRET"), "{sent}");
        assert!(told("status code: 404: <Code>NoSuchBucket</Code>").contains("there is no such bucket: `s3://b/run`"));
        assert!(told("error performing PUT http://169.254.169.254/latest/api/token").starts_with("no credentials for"));
    }
}
