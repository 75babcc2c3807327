//! The cluster's secret: configured, or made once and kept in the data folder.

mod settle;

use std::{fs::File, io, path::Path};

use anyhow::Context;
use rookery_actors::secret::{ClusterSecret, FormerReading, KeyRing};
use secrecy::{ExposeSecret, SecretString};

pub(crate) use self::settle::{follow, settle};
use crate::{config::Config, files};

/// The file beside the data, readable by its owner alone.
pub(crate) const FILE: &str = "secret";

/// The secrets of this node; one is made now if it is the first node in its data folder.
pub(crate) fn of(config: &Config, data: &Path) -> anyhow::Result<KeyRing> {
    let previous = config.secret_previous.as_ref().map(crate::config::ClusterSecret::text);
    if let Some(secret) = &config.secret {
        return KeyRing::read(secret.text(), FormerReading::Literal, previous).context("the configured secret cannot be used");
    }
    let path = data.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => SecretString::from(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path)?,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read the cluster's secret in {}", path.display()));
        }
    };
    KeyRing::read(&text, FormerReading::Decoded, previous)
        .with_context(|| format!("{} does not hold a secret of 32 bytes or more", path.display()))
}

fn make(path: &Path) -> anyhow::Result<SecretString> {
    let secret = ClusterSecret::generate()?;
    let describe = || format!("cannot keep the cluster's secret in {}", path.display());
    // Whole or not at all: half a secret would lock everybody out at the next start.
    files::replace(path, secret.expose_secret().as_bytes(), File::sync_all).with_context(describe)?;
    Ok(secret)
}
