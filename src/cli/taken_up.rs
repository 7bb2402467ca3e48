//! A folder that `cardvault dev` takes up again says by itself what it is. What the command line says as well
//! must be the same: nothing that was asked for is passed over without a word.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{self, Config};

use super::init::{self, Choices};

/// Fails where the command line asks for something else than the folder has, and names the mend.
pub fn check(dir: &Path, config: &Config, choices: &Choices) -> anyhow::Result<()> {
    let notify = config.notify.as_ref();
    let gateway = config.gateway.first();
    for (flag, key, same) in [
        ("--api-listen", "listen under [api]", says(&choices.api_listen, Some(&config.api.listen))),
        ("--ops-listen", "listen under [ops]", says(&choices.ops_listen, config.ops.listen.as_ref())),
        (
            "--notify-listen",
            "listen under [notify]",
            // A folder that takes no notifications was made so, whatever the flag said.
            notify.is_none_or(|it| says::<SocketAddr>(&choices.notify_listen, Some(&it.listen))),
        ),
        (
            "--notify-url",
            "public_url under [notify]",
            says(&choices.notify_url, notify.map(|it| &it.public_url)),
        ),
        ("--database-url", "url under [database]", is_database(dir, config, choices)?),
        (
            "--gateway-url",
            "base_url under [[gateway]]",
            says(&choices.gateway_url, gateway.map(|it| &it.base_url)),
        ),
        (
            "--gateway-client-id",
            "client_id under [[gateway]]",
            says(&choices.gateway_client_id, gateway.map(|it| &it.client_id)),
        ),
        (
            "--gateway-allow-private",
            "allow_private_addresses under [[gateway]]",
            !choices.gateway_allow_private || gateway.is_some_and(|it| it.allow_private_addresses),
        ),
        (
            "--gateway-ca",
            "ca under [[gateway]]",
            is_file(&choices.gateway_ca, gateway.and_then(|it| it.ca.as_ref()))?,
        ),
        (
            "--gateway-private-key",
            "private_keys under [[gateway]]",
            is_file(&choices.gateway_private_key, gateway.and_then(|it| it.private_keys.values().next()))?,
        ),
        (
            "--gateway-public-key",
            "public_keys under [[gateway]]",
            is_file(&choices.gateway_public_key, gateway.and_then(|it| it.public_keys.values().next()))?,
        ),
    ] {
        if !same {
            bail!(
                "{flag}: {} says otherwise; change {key} there, leave the flag out, or choose another --dir",
                dir.join("cardvault.toml").display()
            );
        }
    }
    let names = server_names(&config.api.certificate)?;
    if let Some(name) = choices.server_name.iter().find(|name| !names.contains(*name)) {
        bail!(
            "--server-name: the folder's certificate is not for {name}; leave it out, or choose another --dir"
        );
    }
    Ok(())
}

fn says<T: PartialEq>(given: &Option<T>, there: Option<&T>) -> bool {
    given.as_ref().is_none_or(|given| Some(given) == there)
}

fn is_database(dir: &Path, config: &Config, choices: &Choices) -> anyhow::Result<bool> {
    let Some(given) = &choices.database_url else { return Ok(true) };
    let (url, password) = init::without_password(given)?;
    if config::database_url_in(dir, &url) != config.database.url {
        return Ok(false);
    }
    let Some(password) = password else { return Ok(true) };
    let Some(path) = &config.database.password_file else { return Ok(false) };
    let known = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(known.trim_ascii_end() == password.as_bytes())
}

/// Whether a file that is named has the same in it as the folder's own.
fn is_file(given: &Option<PathBuf>, there: Option<&PathBuf>) -> anyhow::Result<bool> {
    let Some(given) = given else { return Ok(true) };
    let read = |path: &PathBuf| {
        std::fs::read(path)
            .map(zeroize::Zeroizing::new)
            .with_context(|| format!("reading {}", path.display()))
    };
    Ok(match there {
        Some(there) => read(given)? == read(there)?,
        None => false,
    })
}

/// The names and addresses that a certificate is for.
fn server_names(path: &Path) -> anyhow::Result<Vec<String>> {
    let unreadable = || format!("{} is no certificate", path.display());
    let der = CertificateDer::from_pem_file(path).with_context(unreadable)?;
    let (_, certificate) = X509Certificate::from_der(&der).with_context(unreadable)?;
    let names = certificate.subject_alternative_name().with_context(unreadable)?;
    let all = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    Ok(all
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(dns) => Some((*dns).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
        .collect())
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|it| std::net::Ipv4Addr::from(it).to_string()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|it| std::net::Ipv6Addr::from(it).to_string()),
    }
}
