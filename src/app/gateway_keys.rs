//! The RSA keys between the vault and Antom: ours by version, of which one signs, and Antom's by version,
//! all of which are accepted. They change without a restart: at SIGHUP, and when one of their files, or the
//! configuration that names them, is another than before.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::config::{self, Config, GatewaySection};
use crate::gateway::antom::client::Client;
use crate::gateway::antom::sign::SigningKey;
use crate::gateway::antom::verify::Verifier;

use super::stamp::{Looks, Stamp, stamp};
use super::{read, read_secret};

/// The keys that a section of the configuration names.
pub(super) fn load(section: &GatewaySection) -> anyhow::Result<(SigningKey, Verifier)> {
    let (version, path) = section.signing_key().context("private_keys has no such version")?;
    let signing = SigningKey::read(&read_secret(path, "private_keys")?, version)
        .with_context(|| format!("reading {}", path.display()))?;
    let mut verifier = Verifier::new(&section.client_id);
    for (version, path) in &section.public_keys {
        let text = String::from_utf8(read(path, "public_keys")?).context("public_keys: not text")?;
        verifier.add_key(version.parse()?, &text).with_context(|| format!("reading {}", path.display()))?;
    }
    Ok((signing, verifier))
}

/// A key as `keys status` lists it.
pub struct GatewayKey {
    /// The name of its `[[gateway]]`.
    pub gateway: String,
    /// `ours` or `antom`.
    pub kind: &'static str,
    /// Its `keyVersion`.
    pub version: String,
    /// Whether requests are signed with it.
    pub signs: bool,
    /// SHA-256 of its public half (PKCS#1 DER), hexadecimal.
    pub sha256: Option<String>,
    /// Why it cannot be used.
    pub fault: Option<String>,
}

impl GatewayKey {
    /// The digest, or what is wrong.
    pub fn shown(&self) -> &str {
        self.sha256.as_deref().or(self.fault.as_deref()).unwrap_or_default()
    }
}

/// Every key that the configuration names.
pub fn list(config: &Config) -> Vec<GatewayKey> {
    let mut keys = Vec::new();
    for section in &config.gateway {
        let signs = section.signing_key().map(|(version, _)| version);
        let mut push = |kind, version: &str, digest: anyhow::Result<String>| {
            let (sha256, fault) = match digest {
                Ok(digest) => (Some(digest), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            let signs = kind == "ours" && version.parse().ok() == signs;
            let (gateway, version) = (section.name.clone(), version.to_owned());
            keys.push(GatewayKey { gateway, kind, version, signs, sha256, fault });
        };
        for (version, path) in &section.private_keys {
            let digest = read_secret(path, "private_keys")
                .and_then(|text| Ok(SigningKey::read(&text, version.parse()?)?.public_sha256()));
            push("ours", version, digest);
        }
        for (version, path) in &section.public_keys {
            let digest = read(path, "public_keys")
                .and_then(|text| Ok(Verifier::public_sha256(std::str::from_utf8(&text)?)?));
            push("antom", version, digest);
        }
    }
    keys
}

/// Watches the files.
pub(super) struct Watch {
    config: Config,
    clients: Vec<(String, Arc<Client>)>,
    seen: Vec<Stamp>,
}

impl Watch {
    /// Remembers how the files are now.
    pub(super) fn new(config: &Config, clients: Vec<(String, Arc<Client>)>) -> Self {
        Self { config: config.clone(), clients, seen: stamps(config) }
    }

    /// Runs until it is aborted.
    pub(super) async fn run(mut self) {
        let mut looks = Looks::new("keys of gateways");
        loop {
            let anyway = looks.next().await;
            self.look(anyway);
        }
    }

    /// Takes the keys up, where a file has changed or `anyway`. Where they cannot be used, those that were
    /// there go on, and the next change is tried again.
    fn look(&mut self, anyway: bool) {
        let now = stamps(&self.config);
        if now == self.seen && !anyway {
            return;
        }
        let taken = self.take_up();
        self.seen = stamps(&self.config);
        match taken {
            Ok(()) => tracing::info!("took up the keys of the gateways again"),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                alarm = true,
                "the keys of the gateways were not taken up; those from before go on"
            ),
        }
    }

    fn take_up(&mut self) -> anyhow::Result<()> {
        if let Some(file) = &self.config.file {
            let fresh = Config::load(file, config::environment())?;
            for section in &mut self.config.gateway {
                if let Some(found) = fresh.gateway.iter().find(|found| found.name == section.name) {
                    section.private_keys.clone_from(&found.private_keys);
                    section.public_keys.clone_from(&found.public_keys);
                    section.key_version = found.key_version;
                }
            }
        }
        // All of them are read before one is used.
        let mut fresh = Vec::new();
        for (name, client) in &self.clients {
            let section = self.config.gateway.iter().find(|section| section.name == *name);
            let section = section.with_context(|| format!("there is no [[gateway]] {name} any more"))?;
            let keys = load(section).with_context(|| format!("[[gateway]] {name}"))?;
            fresh.push((client, keys));
        }
        for (client, (signing, verifier)) in fresh {
            client.set_keys(signing, verifier);
        }
        Ok(())
    }
}

fn stamps(config: &Config) -> Vec<Stamp> {
    let keys = config.gateway.iter().flat_map(|section| {
        section.private_keys.values().chain(section.public_keys.values()).map(PathBuf::as_path)
    });
    keys.chain(config.file.as_deref()).map(stamp).collect()
}
