//! `cardvault init DIR`: everything that a vault needs besides a database, as files.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use zeroize::Zeroizing;

use crate::base::clock::{Clock, Millis, SystemClock};
use crate::crypto::kek::file;
use crate::gateway::reach::is_private_host;
use crate::pki::{Authority, CertifiedPem, LEAF_DAYS, rsa_key_pair, write_private, write_public};

/// The client id that the local sandbox serves where none is named.
pub const SANDBOX_CLIENT_ID: &str = "SANDBOX_5YCARDVAULT00001";
/// The local sandbox.
const SANDBOX_URL: &str = "https://127.0.0.1:8444";
/// The key that a configuration names where its gateway is the local sandbox.
pub(super) const SANDBOX_PUBLIC_KEY: &str = "gateway/sandbox_public.pem";

const DATABASE_URL: &str = "sqlite:cardvault.db";
const API_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
const NOTIFY_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8445);
const OPS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// What a new vault is made with. `dev` takes the same. Without defaults of clap's, so that a folder that is
/// taken up again can tell what was asked for from what was not.
#[derive(clap::Args, Clone)]
pub struct Choices {
    /// sqlite:PATH (relative to the folder) or postgres://…; a password in it goes into a file of its own
    /// [default: sqlite:cardvault.db].
    #[arg(long)]
    pub database_url: Option<String>,
    /// Antom's host as `https://HOST` or `https://HOST:PORT` (default: the local sandbox).
    #[arg(long, requires_all = ["gateway_client_id", "gateway_public_key"])]
    pub gateway_url: Option<String>,
    /// Certificate authorities to trust there, PEM [default: the public ones].
    #[arg(long, requires = "gateway_url")]
    pub gateway_ca: Option<PathBuf>,
    /// That host has an address inside (10.0.0.0/8, fd00::/8, …); taken for granted where the URL itself shows it.
    #[arg(long, requires = "gateway_url")]
    pub gateway_allow_private: bool,
    /// Antom's client id; one that begins SANDBOX_ uses Antom's sandbox.
    #[arg(long)]
    pub gateway_client_id: Option<String>,
    /// Our private key at Antom, PEM or one-line base64 [default: a new pair is made].
    #[arg(long)]
    pub gateway_private_key: Option<PathBuf>,
    /// Antom's public key, PEM or one-line base64.
    #[arg(long, requires = "gateway_url")]
    pub gateway_public_key: Option<PathBuf>,
    /// A name or address under which callers reach the vault, besides localhost; repeat it for each.
    #[arg(long)]
    pub server_name: Vec<String>,
    /// Where the API listens [default: 127.0.0.1:8443].
    #[arg(long)]
    pub api_listen: Option<SocketAddr>,
    /// Where the gateway's notifications are taken [default: 127.0.0.1:8445].
    #[arg(long)]
    pub notify_listen: Option<SocketAddr>,
    /// What the gateway calls to reach that listener, `https://HOST/PATH` [default: the listener itself, where
    /// the gateway is the local sandbox; otherwise no notifications are taken].
    #[arg(long)]
    pub notify_url: Option<String>,
    /// Where health checks listen [default: 127.0.0.1:9464].
    #[arg(long)]
    pub ops_listen: Option<SocketAddr>,
}

#[derive(clap::Args)]
pub struct Args {
    /// The folder; made if it is not there.
    dir: PathBuf,
    #[command(flatten)]
    choices: Choices,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    write(&args.dir, &args.choices)?;
    let config = args.dir.join("cardvault.toml");
    println!("wrote {}", args.dir.display());
    if args.choices.gateway_url.is_none() {
        println!("start the gateway sandbox:  cardvault sandbox --dir {}", args.dir.display());
    } else if args.choices.gateway_private_key.is_none() {
        println!("give Antom our public key:  {}", args.dir.join("gateway/merchant_public.pem").display());
    }
    println!("start the vault:            cardvault serve --config {}", config.display());
    Ok(())
}

/// The clients that are made: name, merchant, scopes.
const CLIENTS: &[(&str, &str, &[&str])] = &[
    (
        "checkout",
        "acme",
        &[
            "cards:read",
            "cards:write",
            "cards:delete",
            "payments:create",
            "payments:mit",
            "payments:read",
            "payments:modify",
            "agreements:read",
            "agreements:write",
            "events:read",
        ],
    ),
    (
        "subscriptions",
        "acme",
        &["cards:read", "payments:create", "payments:mit", "payments:read", "agreements:read", "events:read"],
    ),
    (
        "backoffice",
        "acme",
        &["cards:read", "payments:read", "payments:modify", "agreements:read", "events:read"],
    ),
    (
        "rival",
        "globex",
        &[
            "cards:read",
            "cards:write",
            "cards:delete",
            "payments:create",
            "payments:mit",
            "payments:read",
            "payments:modify",
            "agreements:read",
            "agreements:write",
            "events:read",
        ],
    ),
];

/// Writes everything. Refuses a folder that has a configuration already.
pub fn write(dir: &Path, choices: &Choices) -> anyhow::Result<()> {
    let config = dir.join("cardvault.toml");
    if config.exists() {
        bail!("{} is there already; choose another folder", config.display());
    }
    for folder in ["", "keys", "pki", "pki/clients", "gateway"] {
        let path = dir.join(folder);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("making {}", path.display()))?;
    }
    let now = SystemClock.now();
    write_pki(dir, &choices.server_name, now)?;
    file::create_new(&dir.join("keys/keyring.toml"), &file::generate(now)?)?;
    let gateway = write_gateway(dir, choices)?;
    let database = write_database(dir, choices.database_url.as_deref().unwrap_or(DATABASE_URL))?;
    // The configuration comes last: a folder without one is known to be unfinished.
    write_file(&config, toml_text(choices, &database, &gateway).as_bytes(), write_public)
}

fn write_file(
    path: &Path,
    bytes: &[u8],
    write: fn(&Path, &[u8]) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn write_pki(dir: &Path, server_names: &[String], now: Millis) -> anyhow::Result<()> {
    let authority = Authority::make("cardvault", now)?;
    write_file(&dir.join("pki/ca.pem"), authority.certificate_pem().as_bytes(), write_public)?;
    write_file(&dir.join("pki/ca.key"), authority.private_key_pem().expose().as_bytes(), write_private)?;
    let leaf = |name: &str, made: CertifiedPem| {
        write_file(&dir.join(format!("pki/{name}.pem")), made.certificate_pem.as_bytes(), write_public)?;
        write_file(
            &dir.join(format!("pki/{name}.key")),
            made.private_key_pem.expose().as_bytes(),
            write_private,
        )
    };
    let local = ["localhost", "127.0.0.1", "::1"];
    let names: Vec<&str> = local.into_iter().chain(server_names.iter().map(String::as_str)).collect();
    leaf("server", authority.server(&names, now, LEAF_DAYS)?)?;
    leaf("sandbox", authority.server(&local, now, LEAF_DAYS)?)?;
    for (name, merchant, _) in CLIENTS {
        leaf(&format!("clients/{name}"), authority.client(&uri(merchant, name), now, LEAF_DAYS)?)?;
    }
    Ok(())
}

fn uri(merchant: &str, client: &str) -> String {
    format!("spiffe://cardvault/{merchant}/{client}")
}

/// What the configuration says of the gateway.
struct GatewayFiles {
    url: String,
    client_id: String,
    public_key: &'static str,
    ca: Option<&'static str>,
    /// Whether its address may be inside.
    private: bool,
}

fn write_gateway(dir: &Path, choices: &Choices) -> anyhow::Result<GatewayFiles> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map(Zeroizing::new).with_context(|| format!("reading {}", path.display()))
    };
    match &choices.gateway_private_key {
        Some(path) => write_file(&dir.join("gateway/merchant_private.pem"), &read(path)?, write_private)?,
        None => {
            let pair = rsa_key_pair()?;
            write_file(
                &dir.join("gateway/merchant_private.pem"),
                pair.private_pkcs8_pem.expose().as_bytes(),
                write_private,
            )?;
            write_file(
                &dir.join("gateway/merchant_public.pem"),
                pair.public_spki_pem.as_bytes(),
                write_public,
            )?;
        }
    }
    let client_id = choices.gateway_client_id.clone().unwrap_or_else(|| SANDBOX_CLIENT_ID.to_owned());
    let (Some(url), Some(public_key)) = (&choices.gateway_url, &choices.gateway_public_key) else {
        let pair = rsa_key_pair()?;
        write_file(
            &dir.join("gateway/sandbox_private.pem"),
            pair.private_pkcs8_pem.expose().as_bytes(),
            write_private,
        )?;
        write_file(&dir.join(SANDBOX_PUBLIC_KEY), pair.public_spki_pem.as_bytes(), write_public)?;
        if choices.gateway_private_key.is_some() {
            bail!("--gateway-private-key goes with --gateway-url: the local sandbox makes its own pair");
        }
        return Ok(GatewayFiles {
            url: SANDBOX_URL.to_owned(),
            client_id,
            public_key: SANDBOX_PUBLIC_KEY,
            ca: Some("pki/ca.pem"),
            private: true,
        });
    };
    write_file(&dir.join("gateway/antom_public.pem"), &read(public_key)?, write_public)?;
    if let Some(path) = &choices.gateway_ca {
        write_file(&dir.join("gateway/ca.pem"), &read(path)?, write_public)?;
    }
    Ok(GatewayFiles {
        url: url.clone(),
        client_id,
        public_key: "gateway/antom_public.pem",
        ca: choices.gateway_ca.as_ref().map(|_| "gateway/ca.pem"),
        private: choices.gateway_allow_private || is_inside(url),
    })
}

/// Whether an address says by itself that its host is inside: who wrote it knows.
fn is_inside(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|url| url.host_str().is_some_and(is_private_host))
}

/// The address of a database without the password, and the password.
pub(super) fn without_password(url: &str) -> anyhow::Result<(String, Option<Zeroizing<String>>)> {
    if url.starts_with("sqlite:") {
        return Ok((url.to_owned(), None));
    }
    let mut parsed = reqwest::Url::parse(url).context("--database-url: sqlite:PATH or postgres://…")?;
    if !matches!(parsed.scheme(), "postgres" | "postgresql") {
        bail!("--database-url: begins sqlite: or postgres://");
    }
    let Some(password) = parsed.password().map(str::to_owned) else {
        return Ok((url.to_owned(), None));
    };
    let password = Zeroizing::new(
        percent_encoding::percent_decode_str(&password)
            .decode_utf8()
            .context("--database-url: the password is not text")?
            .into_owned(),
    );
    if parsed.set_password(None).is_err() {
        bail!("--database-url: the password cannot be taken out");
    }
    Ok((parsed.to_string(), Some(password)))
}

/// The `[database]` section. A password goes into a file: the configuration is no place for it.
fn write_database(dir: &Path, url: &str) -> anyhow::Result<String> {
    let (url, password) = without_password(url)?;
    let Some(password) = password else {
        return Ok(format!("url = {}\n", quoted(&url)));
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.join("secrets"))
        .context("making the folder for the password")?;
    write_file(&dir.join("secrets/postgres"), password.as_bytes(), write_private)?;
    Ok(format!("url = {}\npassword_file = \"secrets/postgres\"\n", quoted(&url)))
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The `[notify]` section; none where nothing outside can reach it.
fn notify_text(choices: &Choices) -> String {
    let listen = choices.notify_listen.unwrap_or(NOTIFY_LISTEN);
    let url = match (&choices.notify_url, &choices.gateway_url) {
        (Some(url), _) => url.clone(),
        (None, None) => format!("https://{listen}/antom/notify"),
        (None, Some(_)) => return String::new(),
    };
    format!(
        "[notify]\nlisten = \"{listen}\"\npublic_url = {}\ncertificate = \"pki/server.pem\"\n\
         private_key = \"pki/server.key\"\n\n",
        quoted(&url)
    )
}

fn toml_text(choices: &Choices, database: &str, gateway: &GatewayFiles) -> String {
    let notify = notify_text(choices);
    let mut text = format!(
        "# Written by `cardvault init`. cardvault.example.toml documents every key.\n\n\
         [api]\nlisten = \"{}\"\ncertificate = \"pki/server.pem\"\nprivate_key = \"pki/server.key\"\n\
         client_ca = \"pki/ca.pem\"\n\n{notify}[ops]\nlisten = \"{}\"\n\n[database]\n{database}\n\
         [keys]\nkeyring = \"keys/keyring.toml\"\n\n\
         [[gateway]]\nname = \"antom\"\nbase_url = {}\nclient_id = {}\n\
         private_keys = {{ 1 = \"gateway/merchant_private.pem\" }}\npublic_keys = {{ 1 = {} }}\n",
        choices.api_listen.unwrap_or(API_LISTEN),
        choices.ops_listen.unwrap_or(OPS_LISTEN),
        quoted(&gateway.url),
        quoted(&gateway.client_id),
        quoted(gateway.public_key),
    );
    if let Some(ca) = gateway.ca {
        text.push_str(&format!("ca = {}\n", quoted(ca)));
    }
    if gateway.private {
        text.push_str(
            "# The host has an address inside; never so with Antom's own.\nallow_private_addresses = true\n",
        );
    }
    for merchant in ["acme", "globex"] {
        text.push_str(&format!("\n[[merchant]]\nname = \"{merchant}\"\ngateway = \"antom\"\n"));
    }
    for (name, merchant, scopes) in CLIENTS {
        let scopes: Vec<String> = scopes.iter().map(|scope| quoted(scope)).collect();
        text.push_str(&format!(
            "\n[[client]]\nname = \"{name}\"\nuri = \"{}\"\nmerchant = \"{merchant}\"\nscopes = [{}]\n",
            uri(merchant, name),
            scopes.join(", ")
        ));
    }
    text
}
