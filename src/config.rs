//! The configuration file: typed, unknown keys refused, units in names, secrets by file path only.
//! `cardvault.example.toml` documents every key. Nothing below the wiring knows this file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::base::card::BinFormat;
use crate::base::ids::{ClientName, GatewayAccount, Merchant};
use crate::http::serve;
use crate::model::access::{Client, ClientPace, SanName, Scope};
use crate::model::retention::Limits;
use crate::ops::keys::KeyPolicy;

/// Environment variables that override keys of the single sections: `CARDVAULT_API_LISTEN` is
/// `listen` of `[api]`.
const PREFIX: &str = "CARDVAULT_";
/// The tables that variables can reach: all but the lists (`[[gateway]]` and the like), whose tables have no
/// names of their own. One inside another stands before it: its variables begin like the other's.
const SECTIONS: &[(&str, &[&str])] = &[
    ("api", &["api"]),
    ("notify", &["notify"]),
    ("ops", &["ops"]),
    ("database", &["database"]),
    ("keys_hsm", &["keys", "hsm"]),
    ("keys", &["keys"]),
    ("retention", &["retention"]),
    ("doctor", &["doctor"]),
];
/// Variables of the command line and of the tests, which are no keys.
const NOT_KEYS: &[&str] = &["CARDVAULT_CONFIG", "CARDVAULT_LOG"];
/// Beginnings of variables that the tests read, and that the programs which they start inherit.
const OF_TESTS: &[&str] = &["CARDVAULT_REQUIRE_", "CARDVAULT_SIM_", "CARDVAULT_TEST_"];

/// Why a configuration is not taken: the key, what is wrong with it, and the mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::ErrorKind,
    },
    /// A key is unknown, missing, or of the wrong type.
    #[error("the configuration is not valid: {0}")]
    Key(String),
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The listener for merchant services.
    pub api: ApiSection,
    /// The listener for the gateway's notifications; none where absent.
    #[serde(default)]
    pub notify: Option<NotifySection>,
    /// The listener for health.
    #[serde(default)]
    pub ops: OpsSection,
    /// Where everything durable is.
    pub database: DatabaseSection,
    /// The key-encryption key.
    pub keys: KeysSection,
    /// How long things are kept.
    #[serde(default)]
    pub retention: RetentionSection,
    /// What `cardvault doctor` tries.
    #[serde(default)]
    pub doctor: DoctorSection,
    /// Accounts at Antom.
    #[serde(default)]
    pub gateway: Vec<GatewaySection>,
    /// Merchants of this deployment.
    #[serde(default)]
    pub merchant: Vec<MerchantSection>,
    /// Who may call.
    #[serde(default)]
    pub client: Vec<ClientSection>,
    /// The file that all this was read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[api]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiSection {
    /// Address and port.
    pub listen: SocketAddr,
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// The authority that client certificates must come from, PEM.
    pub client_ca: PathBuf,
    /// The revocation lists of that authority and of those below it, PEM or DER; not looked at where empty.
    #[serde(default, deserialize_with = "one_or_more")]
    pub crl: Vec<PathBuf>,
    /// How many digits of a 16-digit PAN's BIN are shown: 6 or 8.
    #[serde(default = "six")]
    pub bin_digits: u8,
    /// Most open connections.
    #[serde(default = "connections")]
    pub max_connections: usize,
    /// Most of them from one address.
    #[serde(default = "connections_per_address")]
    pub max_connections_per_address: usize,
    /// Most of them of one client.
    #[serde(default = "connections_per_client")]
    pub max_connections_per_client: usize,
    /// Requests of each client in a second.
    #[serde(default = "requests_per_second")]
    pub requests_per_second: u32,
    /// Requests of each client under way at once.
    #[serde(default = "requests_at_once")]
    pub requests_at_once: u32,
    /// Questions of each client after what does not exist, in a minute, before they are taken for guesses.
    #[serde(default = "unknown_ids_per_minute")]
    pub unknown_ids_per_minute: u32,
}

fn connections() -> usize {
    serve::Limits::default().max_connections
}

fn connections_per_address() -> usize {
    serve::Limits::default().max_per_address
}

fn connections_per_client() -> usize {
    serve::Limits::default().max_per_client
}

fn requests_per_second() -> u32 {
    ClientPace::default().per_second
}

fn requests_at_once() -> u32 {
    ClientPace::default().at_once
}

fn unknown_ids_per_minute() -> u32 {
    ClientPace::default().unknown_ids_per_minute
}

fn six() -> u8 {
    6
}

/// One path, or a list of them.
fn one_or_more<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a path, or a list of paths")]
    enum Paths {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(value)? {
        Paths::One(path) => vec![path],
        Paths::More(paths) => paths,
    })
}

/// `[notify]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifySection {
    /// Address and port.
    pub listen: SocketAddr,
    /// What the gateway calls: `https://host[:port]/path`. It is signed over this path. Port 0 stands for
    /// the port that `listen` got.
    pub public_url: String,
    /// The path that reaches this listener, where a proxy rewrites it.
    #[serde(default)]
    pub path: Option<String>,
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
}

impl NotifySection {
    /// The address that the gateway is given, once the port is known.
    pub fn url(&self, port: u16) -> String {
        match reqwest::Url::parse(&self.public_url) {
            Ok(mut url) if url.port() == Some(0) => {
                // Only an address without a host refuses a port, and that was checked.
                let _ = url.set_port(Some(port));
                url.to_string()
            }
            _ => self.public_url.clone(),
        }
    }

    /// The path that the gateway signs, with its query.
    pub fn signed_path(&self) -> String {
        let Ok(url) = reqwest::Url::parse(&self.public_url) else { return String::new() };
        match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let url = reqwest::Url::parse(&self.public_url).ok().filter(|url| {
            url.scheme() == "https"
                && url.host().is_some()
                && url.username().is_empty()
                && url.fragment().is_none()
        });
        if url.is_none() || self.public_url.len() > 1024 {
            return Err(ConfigError::Key("notify.public_url: https://host[:port]/path".into()));
        }
        match &self.path {
            Some(path) if !path.starts_with('/') => {
                Err(ConfigError::Key("notify.path: begins with /".into()))
            }
            _ => Ok(()),
        }
    }
}

/// `[ops]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpsSection {
    /// Address and port; no listener where absent.
    pub listen: Option<SocketAddr>,
    /// How long a vault that was told to stop still takes requests, while `/readyz` already says that it
    /// goes and every answer closes its connection.
    pub drain_ms: u64,
}

impl Default for OpsSection {
    fn default() -> Self {
        Self { listen: None, drain_ms: 1_000 }
    }
}

/// `[doctor]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DoctorSection {
    /// Addresses, `host:port`, that must not be reachable from here.
    pub forbidden: Vec<String>,
}

impl DoctorSection {
    fn check(&self) -> Result<(), ConfigError> {
        let good = |address: &String| {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
        };
        match self.forbidden.iter().all(good) {
            true => Ok(()),
            false => Err(ConfigError::Key("doctor.forbidden: a list of \"host:port\"".into())),
        }
    }
}

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSection {
    /// `sqlite:PATH` or `postgres://…`, without a password.
    pub url: String,
    /// A file with the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Whether `serve` brings the schema up to date.
    #[serde(default = "yes")]
    pub migrate: bool,
}

fn yes() -> bool {
    true
}

/// `[keys]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysSection {
    /// The keyring file (`keys.example`).
    pub keyring: PathBuf,
    /// The Unix socket by which custodians bring their shares; `unseal.sock` beside the keyring where absent. Every
    /// server has it, so that a KEK can be split beside it.
    #[serde(default)]
    pub unseal_socket: Option<PathBuf>,
    /// Whether `serve` refuses to start where memory could reach a disk, rather than warn.
    #[serde(default)]
    pub require_private_memory: bool,
    /// The PKCS#11 token with key-encryption keys, where there is one.
    #[serde(default)]
    pub hsm: Option<HsmSection>,
    /// How long a key-encryption key wraps.
    #[serde(default = "year")]
    pub kek_cryptoperiod_days: u32,
    /// How long a data key for cards, or for the meaning of requests, seals.
    #[serde(default = "year")]
    pub dek_cryptoperiod_days: u32,
    /// How long a fingerprint key makes new fingerprints.
    #[serde(default = "two_years")]
    pub fingerprint_cryptoperiod_days: u32,
    /// How many records a data key seals.
    #[serde(default = "seals")]
    pub seals_per_key: u64,
}

/// `[keys.hsm]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HsmSection {
    /// The PKCS#11 library of the token's maker.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// A file with the user's PIN.
    pub pin_file: PathBuf,
}

fn year() -> u32 {
    365
}

fn two_years() -> u32 {
    730
}

fn seals() -> u64 {
    1 << 31
}

impl KeysSection {
    /// Where custodians bring their shares.
    pub fn socket(&self) -> PathBuf {
        self.unseal_socket.clone().unwrap_or_else(|| self.keyring.with_file_name("unseal.sock"))
    }

    /// How long keys may seal.
    pub fn policy(&self) -> KeyPolicy {
        let days = |days: u32| Duration::from_secs(u64::from(days) * 24 * 3600);
        KeyPolicy {
            kek_period: days(self.kek_cryptoperiod_days),
            dek_period: days(self.dek_cryptoperiod_days),
            fingerprint_period: days(self.fingerprint_cryptoperiod_days),
            uses: self.seals_per_key,
        }
    }
}

/// `[retention]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    /// How long after it was typed a card without an agreement can be paid with.
    pub unattached_card_hours: u32,
    /// How long after it was typed a card that no agreement covers is erased, and never before it can no
    /// longer be paid with; 0 is never.
    pub erase_unattached_after_hours: u32,
    /// How long after its last payment or update a card is erased, whatever covers it, and never sooner than a
    /// card without an agreement can no longer be paid with; 0 is never.
    pub erase_inactive_after_days: u32,
    /// Declined merchant-initiated attempts in 30 days after which no more is made with a card.
    pub declined_attempts_in_30_days: u32,
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self {
            unattached_card_hours: 168,
            erase_unattached_after_hours: 720,
            erase_inactive_after_days: 540,
            declined_attempts_in_30_days: 15,
        }
    }
}

impl RetentionSection {
    /// How long cards are kept.
    pub fn limits(&self) -> Limits {
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
        // A card that can still be paid with stays, by either limit.
        let after =
            |limit: Duration| (!limit.is_zero()).then(|| limit.max(hours(self.unattached_card_hours)));
        Limits {
            unattached: after(hours(self.erase_unattached_after_hours)),
            inactive: after(24 * hours(self.erase_inactive_after_days)),
        }
    }
}

/// `[[gateway]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// What merchants call it.
    pub name: String,
    /// `https://host[:port]`.
    pub base_url: String,
    /// Antom's client id; `SANDBOX_…` uses the sandbox paths.
    pub client_id: String,
    /// Our private keys by version. The one in use is `key_version`.
    pub private_keys: BTreeMap<String, PathBuf>,
    /// The version that signs; the highest where absent.
    #[serde(default)]
    pub key_version: Option<u32>,
    /// Antom's public keys by version.
    pub public_keys: BTreeMap<String, PathBuf>,
    /// Certificate authorities that alone are trusted, PEM; the public ones where absent.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Whether the host may have an address of a private or special range.
    #[serde(default)]
    pub allow_private_addresses: bool,
    /// For TCP and TLS.
    #[serde(default = "connect_timeout")]
    pub connect_timeout_ms: u64,
    /// For a whole call.
    #[serde(default = "call_timeout")]
    pub timeout_ms: u64,
}

fn connect_timeout() -> u64 {
    5_000
}

fn call_timeout() -> u64 {
    30_000
}

/// `[[merchant]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MerchantSection {
    /// Its name here.
    pub name: String,
    /// Which gateway it is paid through.
    pub gateway: String,
}

/// `[[client]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSection {
    /// Its name here.
    pub name: String,
    /// The URI that its certificate must carry.
    #[serde(default)]
    pub uri: Option<String>,
    /// Or the DNS name.
    #[serde(default)]
    pub dns: Option<String>,
    /// The SHA-256 of its SubjectPublicKeyInfo, hexadecimal, to pin its key.
    #[serde(default)]
    pub spki_sha256: Option<String>,
    /// Whose objects it sees.
    pub merchant: String,
    /// What it may do.
    pub scopes: BTreeSet<String>,
    /// Its own `requests_per_second`; that of `[api]` where absent.
    #[serde(default)]
    pub requests_per_second: Option<u32>,
    /// Its own `requests_at_once`.
    #[serde(default)]
    pub requests_at_once: Option<u32>,
    /// Its own `unknown_ids_per_minute`.
    #[serde(default)]
    pub unknown_ids_per_minute: Option<u32>,
}

impl Config {
    /// Reads a file, applies the environment's overrides, and makes relative paths relative to the file.
    pub fn load(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.kind() })?;
        let mut config = Self::parse(&text, environment)?;
        config.resolve(path.parent().unwrap_or(Path::new(".")));
        config.file = Some(path.to_owned());
        Ok(config)
    }

    /// Reads the text of a file.
    pub fn parse(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table: toml::Table = text.parse().map_err(|error| syntax_error(text, &error))?;
        for (name, value) in environment {
            override_key(&mut table, &name, &value)?;
        }
        let config: Self = table.try_into().map_err(|error| key_error(&error))?;
        config.check()?;
        Ok(config)
    }

    fn resolve(&mut self, folder: &Path) {
        let at = |path: &mut PathBuf| *path = folder.join(&*path);
        at(&mut self.api.certificate);
        at(&mut self.api.private_key);
        at(&mut self.api.client_ca);
        self.api.crl.iter_mut().for_each(at);
        if let Some(path) = &mut self.keys.unseal_socket {
            at(path);
        }
        if let Some(hsm) = &mut self.keys.hsm {
            at(&mut hsm.module);
            at(&mut hsm.pin_file);
        }
        at(&mut self.keys.keyring);
        if let Some(notify) = &mut self.notify {
            at(&mut notify.certificate);
            at(&mut notify.private_key);
        }
        self.database.password_file.iter_mut().for_each(at);
        for gateway in &mut self.gateway {
            gateway.private_keys.values_mut().for_each(at);
            gateway.public_keys.values_mut().for_each(at);
            gateway.ca.iter_mut().for_each(at);
        }
        self.database.url = database_url_in(folder, &self.database.url);
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |text: String| Err(ConfigError::Key(text));
        if !matches!(self.api.bin_digits, 6 | 8) {
            return refuse("api.bin_digits: 6 or 8".into());
        }
        let connections = self.api.max_connections;
        for (key, value) in [
            ("max_connections", connections),
            ("max_connections_per_address", self.api.max_connections_per_address),
            ("max_connections_per_client", self.api.max_connections_per_client),
        ] {
            if !(16..=1_000_000).contains(&value) || value > connections {
                return refuse(format!("api.{key}: 16 to 1000000, and no more than max_connections"));
            }
        }
        if let Some(notify) = &self.notify {
            notify.check()?;
        }
        self.doctor.check()?;
        if self.ops.drain_ms > 60_000 {
            return refuse("ops.drain_ms: at most 60000".into());
        }
        if has_password(&self.database.url) {
            return refuse(
                "database.url: put the password into a file and name it in database.password_file".into(),
            );
        }
        let names: Vec<&str> = self.gateway.iter().map(|gateway| gateway.name.as_str()).collect();
        unique(&names, "gateway.name")?;
        for gateway in &self.gateway {
            gateway.check()?;
        }
        unique(&self.merchant.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), "merchant.name")?;
        unique(&self.client.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), "client.name")?;
        self.clients().map(|_| ())
    }

    /// The clients, with the account that each one's merchant is paid through.
    pub fn clients(&self) -> Result<Vec<Client>, ConfigError> {
        let clients = self.client.iter().map(|client| self.client(client)).collect::<Result<Vec<_>, _>>()?;
        for (place, client) in clients.iter().enumerate() {
            let taken = |other: &Client| other.san == client.san && other.spki_sha256 == client.spki_sha256;
            if clients.iter().take(place).any(taken) {
                return Err(ConfigError::Key(format!(
                    "client.{}: another client has the same name in its certificate",
                    client.name
                )));
            }
        }
        Ok(clients)
    }

    fn client(&self, section: &ClientSection) -> Result<Client, ConfigError> {
        let refuse = |key: &str, why: &str| ConfigError::Key(format!("client.{}.{key}: {why}", section.name));
        let name = ClientName::parse(&section.name)
            .ok_or_else(|| refuse("name", "1 to 64 letters, digits, '_', '-' or '.'"))?;
        let san = match (&section.uri, &section.dns) {
            (Some(uri), None) => SanName::Uri(uri.clone()),
            (None, Some(dns)) => SanName::Dns(dns.clone()),
            _ => return Err(refuse("uri", "name exactly one of uri and dns")),
        };
        let spki_sha256 = section.spki_sha256.as_deref().map(parse_pin).transpose();
        let merchant = Merchant::parse(&section.merchant)
            .filter(|merchant| self.merchant.iter().any(|known| known.name == merchant.as_str()))
            .ok_or_else(|| refuse("merchant", "no [[merchant]] has this name"))?;
        let scopes = section
            .scopes
            .iter()
            .map(|scope| {
                Scope::parse(scope).ok_or_else(|| refuse("scopes", &format!("'{scope}' is not a scope")))
            })
            .collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Client {
            name,
            san,
            spki_sha256: spki_sha256.map_err(|()| refuse("spki_sha256", "64 hexadecimal digits"))?,
            account: self.account_of(&merchant)?,
            merchant,
            scopes,
            pace: self.pace(section)?,
        })
    }

    fn pace(&self, section: &ClientSection) -> Result<ClientPace, ConfigError> {
        let one = |key: &str, own: Option<u32>, common: u32| match own.unwrap_or(common) {
            0 if own.is_none() => Err(ConfigError::Key(format!("api.{key}: 1 or more"))),
            0 => Err(ConfigError::Key(format!("client.{}.{key}: 1 or more", section.name))),
            some => Ok(some),
        };
        let api = &self.api;
        Ok(ClientPace {
            per_second: one("requests_per_second", section.requests_per_second, api.requests_per_second)?,
            at_once: one("requests_at_once", section.requests_at_once, api.requests_at_once)?,
            unknown_ids_per_minute: one(
                "unknown_ids_per_minute",
                section.unknown_ids_per_minute,
                api.unknown_ids_per_minute,
            )?,
        })
    }

    fn account_of(&self, merchant: &Merchant) -> Result<GatewayAccount, ConfigError> {
        let refuse =
            || ConfigError::Key(format!("merchant.{merchant}.gateway: no [[gateway]] has this name"));
        let section =
            self.merchant.iter().find(|known| known.name == merchant.as_str()).ok_or_else(refuse)?;
        let gateway = self.gateway.iter().find(|known| known.name == section.gateway).ok_or_else(refuse)?;
        gateway.account()
    }

    /// How much of a BIN is shown.
    pub fn bin_format(&self) -> BinFormat {
        if self.api.bin_digits == 8 { BinFormat::EightOfSixteen } else { BinFormat::Six }
    }

    /// Pairs of merchants that share an account: their request ids must not meet.
    pub fn shared_accounts(&self) -> Vec<(String, String)> {
        let id = |merchant: &MerchantSection| {
            self.gateway
                .iter()
                .find(|gateway| gateway.name == merchant.gateway)
                .map(|gateway| gateway.client_id.clone())
        };
        let mut pairs = Vec::new();
        for (place, one) in self.merchant.iter().enumerate() {
            for other in self.merchant.iter().skip(place + 1) {
                if id(one).is_some() && id(one) == id(other) {
                    pairs.push((one.name.clone(), other.name.clone()));
                }
            }
        }
        pairs
    }
}

impl GatewaySection {
    /// Antom's client id, checked.
    pub fn account(&self) -> Result<GatewayAccount, ConfigError> {
        GatewayAccount::parse(&self.client_id).ok_or_else(|| {
            ConfigError::Key(format!(
                "gateway.{}.client_id: 1 to 64 letters, digits, '_', '-' or '.'",
                self.name
            ))
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |key: &str, why: &str| Err(ConfigError::Key(format!("gateway.{}.{key}: {why}", self.name)));
        self.account()?;
        if !self.base_url.starts_with("https://") {
            return refuse("base_url", "begins https://");
        }
        for (key, versions) in [("private_keys", &self.private_keys), ("public_keys", &self.public_keys)] {
            if versions.is_empty() || versions.keys().any(|version| version.parse::<u32>().is_err()) {
                return refuse(key, "one file or more, each under its version number");
            }
        }
        if self.signing_key().is_none() {
            return refuse("key_version", "private_keys has no such version");
        }
        if self.timeout_ms < 1_000 || self.timeout_ms > 120_000 {
            return refuse("timeout_ms", "1000 to 120000");
        }
        if self.connect_timeout_ms < 100 || self.connect_timeout_ms > self.timeout_ms {
            return refuse("connect_timeout_ms", "100 to timeout_ms");
        }
        Ok(())
    }

    /// The version that signs, and its file.
    pub fn signing_key(&self) -> Option<(u32, &Path)> {
        let versions =
            || self.private_keys.iter().filter_map(|(v, path)| Some((v.parse::<u32>().ok()?, path)));
        let version = self.key_version.or_else(|| versions().map(|(version, _)| version).max())?;
        versions().find(|(known, _)| *known == version).map(|(version, path)| (version, path.as_path()))
    }
}

/// The address of a database: SQLite's file is relative to the folder of the configuration.
pub fn database_url_in(folder: &Path, url: &str) -> String {
    let sqlite = url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
    match sqlite.filter(|path| !path.starts_with(':')) {
        Some(path) => format!("sqlite:{}", folder.join(path).display()),
        None => url.to_owned(),
    }
}

fn unique(names: &[&str], key: &str) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(**name)) {
        Some(name) => Err(ConfigError::Key(format!("{key}: '{name}' is there twice"))),
        None => Ok(()),
    }
}

fn parse_pin(text: &str) -> Result<[u8; 32], ()> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| ())?;
    bytes.try_into().map_err(|_| ())
}

/// Whether a database's URL holds a password: `scheme://user:password@…`, or `?password=…`.
fn has_password(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let user = url.split_once('@').and_then(|(before_host, _)| before_host.split_once("://"));
    query.split('&').any(|pair| pair.starts_with("password="))
        || user.is_some_and(|(_, user)| user.contains(':'))
}

/// The line and what is wrong with it. The library's own text quotes the line, which is left out.
fn syntax_error(text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = 1 + before.matches('\n').count();
    ConfigError::Key(format!("line {line}: {}", error.message()))
}

/// The key and what is wrong with it: the library names the key on a line of its own.
fn key_error(error: &toml::de::Error) -> ConfigError {
    ConfigError::Key(error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// The environment's variables. One that is not text is none of ours, and must not end the process.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn override_key(table: &mut toml::Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let of_tests = OF_TESTS.iter().any(|beginning| name.starts_with(beginning));
    let is_key = !of_tests && !NOT_KEYS.contains(&name);
    let Some(rest) = name.strip_prefix(PREFIX).filter(|_| is_key) else { return Ok(()) };
    let rest = rest.to_ascii_lowercase();
    let found = SECTIONS.iter().find_map(|(beginning, tables)| {
        rest.strip_prefix(beginning).and_then(|rest| rest.strip_prefix('_')).map(|key| (*tables, key))
    });
    let Some((tables, key)) = found else {
        return Err(ConfigError::Key(format!(
            "the environment variable {name} is no key of the configuration"
        )));
    };
    let mut place = table;
    for section in tables {
        let inner = place.entry(*section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        place = inner.as_table_mut().ok_or_else(|| ConfigError::Key(format!("{section}: a section")))?;
    }
    place.insert(key.to_owned(), typed(value));
    Ok(())
}

/// A variable's value: a number, a flag, what TOML takes for a list or a text in quotes, or else a text as it is.
fn typed(value: &str) -> toml::Value {
    if let Ok(number) = value.parse() {
        return toml::Value::Integer(number);
    }
    if let Ok(flag) = value.parse() {
        return toml::Value::Boolean(flag);
    }
    let as_toml = format!("value = {value}").parse::<toml::Table>().ok();
    match as_toml.and_then(|mut table| table.remove("value")) {
        Some(read @ (toml::Value::Array(_) | toml::Value::String(_))) => read,
        _ => toml::Value::String(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../cardvault.example.toml");

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, std::iter::empty()).map_err(|error| error.to_string())
    }

    fn changed(from: &str, to: &str) -> String {
        assert!(EXAMPLE.contains(from), "{from}");
        parse(&EXAMPLE.replacen(from, to, 1)).err().unwrap_or_default()
    }

    #[test]
    fn the_example_is_a_configuration() {
        let config = parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.clients().map(|clients| clients.len()).ok(), Some(3));
    }

    #[test]
    fn a_wrong_key_is_named() {
        for (from, to, named) in [
            ("listen = \"127.0.0.1:8443\"", "listen = \"here\"", "api.listen"),
            ("bin_digits = 6", "bin_digits = \"six\"", "api.bin_digits"),
            ("[retention]", "[retention", "line "),
            ("[keys]\n", "[keys]\ncolour = 1\n", "colour"),
            ("bin_digits = 6", "bin_digits = 7", "api.bin_digits"),
            ("base_url = \"https:", "base_url = \"http:", "base_url"),
            ("timeout_ms = 30000", "timeout_ms = 1", "timeout_ms"),
            ("# max_connections = 1024", "max_connections = 1", "api.max_connections"),
            (
                "# max_connections_per_client = 512",
                "max_connections_per_client = 2000",
                "max_connections_per_client",
            ),
            ("# requests_per_second = 50000", "requests_per_second = 0", "api.requests_per_second"),
            ("# requests_at_once = 100", "requests_at_once = 0", "client.checkout.requests_at_once"),
            ("\"cards:read\"", "\"cards:reed\"", "cards:reed"),
            ("uri = \"spiffe://example.com/acme/checkout\"\n", "", "uri"),
            ("url = \"sqlite:cardvault.db\"", "url = \"postgres://u:p@h/d\"", "password_file"),
            ("url = \"sqlite:cardvault.db\"", "url = \"postgres://u@h/d?password=p\"", "password_file"),
            ("gateway = \"antom\"", "gateway = \"other\"", "no [[gateway]]"),
        ] {
            let error = changed(from, to);
            assert!(error.contains(named), "{from} -> {to}: {error}");
        }
    }

    #[test]
    fn retention_is_never_shorter_than_a_card_can_be_paid_with_and_zero_is_never() {
        let limits = |keys: &str| {
            let text = EXAMPLE.replacen("[retention]\n", &format!("[retention]\n{keys}"), 1);
            parse(&text).unwrap_or_else(|error| panic!("{error}")).retention.limits()
        };
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        assert_eq!(limits(""), Limits { unattached: hours(720), inactive: hours(540 * 24) });
        let both = limits("erase_unattached_after_hours = 1\nerase_inactive_after_days = 2\n");
        // Neither goes below the time in which a card without an agreement can be paid with.
        assert_eq!(both, Limits { unattached: hours(168), inactive: hours(168) });
        let days = limits("unattached_card_hours = 24\nerase_inactive_after_days = 2\n");
        assert_eq!(days, Limits { unattached: hours(720), inactive: hours(48) });
        let never = limits("erase_unattached_after_hours = 0\nerase_inactive_after_days = 0\n");
        assert_eq!(never, Limits::default());
    }

    #[test]
    fn a_variable_overrides_a_key_and_an_unknown_one_stops_the_start() {
        let with = |name: &str, value: &str| {
            Config::parse(EXAMPLE, [(name.to_owned(), value.to_owned())].into_iter())
                .map_err(|e| e.to_string())
        };
        assert_eq!(with("CARDVAULT_API_LISTEN", "127.0.0.1:1").map(|c| c.api.listen.port()), Ok(1));
        assert_eq!(
            with("CARDVAULT_RETENTION_UNATTACHED_CARD_HOURS", "1").map(|c| c.retention.unattached_card_hours),
            Ok(1)
        );
        let forbidden =
            |value| with("CARDVAULT_DOCTOR_FORBIDDEN", value).map(|config| config.doctor.forbidden);
        assert_eq!(
            forbidden(r#"["10.0.0.1:22", "[fd00::1]:22"]"#),
            Ok(vec!["10.0.0.1:22".to_owned(), "[fd00::1]:22".to_owned()])
        );
        assert!(forbidden("10.0.0.1:22").is_err_and(|error| error.contains("doctor.forbidden")));
        assert_eq!(with("CARDVAULT_API_LISTEN", "[::1]:1").map(|c| c.api.listen.port()), Ok(1));
        assert!(with("CARDVAULT_DOCTOR_COLOUR", "1").is_err_and(|error| error.contains("colour")));
        assert!(with("CARDVAULT_API_COLOUR", "1").is_err_and(|error| error.contains("colour")));
        assert!(with("CARDVAULT_COLOUR", "1").is_err_and(|error| error.contains("CARDVAULT_COLOUR")));
        assert!(with("HOME", "/").is_ok() && with("CARDVAULT_LOG", "debug").is_ok());
    }

    #[test]
    fn variables_reach_a_table_inside_another_and_make_it() {
        let with = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Config::parse(EXAMPLE, variables).map_err(|error| error.to_string())
        };
        let module = ("CARDVAULT_KEYS_HSM_MODULE", "/lib/softhsm.so");
        let token = ("CARDVAULT_KEYS_HSM_TOKEN", "\"4711\"");
        let pin = ("CARDVAULT_KEYS_HSM_PIN_FILE", "/run/pin");
        let keys = with(&[module, token, pin]).unwrap_or_else(|error| panic!("{error}")).keys;
        let hsm = keys.hsm.unwrap_or_else(|| panic!("no HSM"));
        assert_eq!((hsm.module.to_str(), hsm.token.as_str()), (Some("/lib/softhsm.so"), "4711"));
        assert_eq!(hsm.pin_file.to_str(), Some("/run/pin"));
        assert!(with(&[module]).is_err_and(|error| error.contains("token")));
        assert!(with(&[("CARDVAULT_KEYS_HSM_COLOUR", "1")]).is_err_and(|error| error.contains("colour")));
        let seals = with(&[("CARDVAULT_KEYS_SEALS_PER_KEY", "5")]).map(|config| config.keys.seals_per_key);
        assert_eq!(seals, Ok(5));
    }
}
