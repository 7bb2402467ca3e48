//! What runs in the segments: PostgreSQL as deployed, the gateway's sandbox, the vault, the DMZ's proxy; and the
//! walk across them.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cardvault::base::clock::{Clock, SystemClock};
use cardvault::pki::{
    Authority, CertifiedPem, LeafOptions, Usage, rsa_key_pair, write_private, write_public,
};
use serde_json::{Value, json};

use crate::picture::{Picture, Running, Segment, VAULT_USER, deployed, postgres, run};

/// Nothing takes this long but what hangs.
const HANGS: Duration = Duration::from_secs(90);
const PAN: &str = "4054695723100768";
const SAMPLE: &str = include_str!("../samples/pay-server-to-server.json");
const HOSTED: &str = include_str!("../samples/pay-hosted-page.json");
/// The names that everybody knows: who is asked for one is nobody.
const NAMES: [(&str, Segment); 4] = [
    ("vault.example", Segment::Vault),
    ("database.example", Segment::Data),
    ("gateway.example", Segment::Gateway),
    ("notify.example", Segment::Dmz),
];

/// Everything that runs, and its files.
pub struct Services<'a> {
    picture: &'a Picture,
    dir: PathBuf,
    binaries: PathBuf,
    postgres_user: (u32, u32),
    calls: Cell<u32>,
}

impl<'a> Services<'a> {
    /// Makes certificates, the cluster with its roles, and the vault's folder.
    pub fn make(picture: &'a Picture) -> Self {
        let services = Self {
            picture,
            dir: picture.dir.path().to_owned(),
            binaries: postgres().expect("it was there"),
            postgres_user: user("postgres"),
            calls: Cell::new(0),
        };
        let hosts: String = NAMES.map(|(name, segment)| format!("{} {name}\n", segment.address())).concat();
        write_public(&services.at("hosts"), format!("127.0.0.1 localhost\n{hosts}").as_bytes())
            .expect("a file");
        services.make_gateway();
        services.make_vault();
        services.make_database();
        services
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn vault(&self, name: &str) -> PathBuf {
        self.at("vault").join(name)
    }

    /// A command in a segment, where the names are known.
    fn inside(&self, segment: Segment, user: u32, program: &str) -> Command {
        // `ip netns exec` gives each command mounts of its own, so this is seen by nobody else.
        let mut command = self.picture.inside(segment, 0, "sh");
        let mount = format!("mount --bind '{}' /etc/hosts && exec \"$@\"", self.at("hosts").display());
        command.args(["-c", &mount, "sh", "setpriv", "--pdeathsig", "KILL"]);
        if user != 0 {
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        }
        command.arg(program);
        command
    }

    /// The gateway's certificate, of an authority of its own, and its pair of keys.
    fn make_gateway(&self) {
        let authority = Authority::make("internet", SystemClock.now()).expect("an authority");
        write_public(&self.at("internet.pem"), authority.certificate_pem().as_bytes()).expect("a file");
        let CertifiedPem { certificate_pem, private_key_pem } =
            authority.server(&["gateway.example"], SystemClock.now(), 1).expect("a certificate");
        write_public(&self.at("gateway.pem"), certificate_pem.as_bytes()).expect("a file");
        write_private(&self.at("gateway.key"), private_key_pem.expose().as_bytes()).expect("a file");
        let pair = rsa_key_pair().expect("a pair");
        write_private(&self.at("gateway_private.pem"), pair.private_pkcs8_pem.expose().as_bytes())
            .expect("a file");
        write_public(&self.at("gateway_public.pem"), pair.public_spki_pem.as_bytes()).expect("a file");
    }

    /// What an operator does: `init`, with the names of the segments.
    fn make_vault(&self) {
        // Where the vault's user can run it, wherever the sources are.
        std::fs::copy(env!("CARGO_BIN_EXE_cardvault"), self.at("cardvault")).expect("a copy");
        let address = Segment::Vault.address();
        let at = |name: &str| self.vault(&format!("database/{name}")).display().to_string();
        let database = format!(
            "postgres://cardvault:of-cardvault@database.example/cardvault?sslmode=verify-full\
             &sslrootcert={}&sslcert={}&sslkey={}",
            at("ca.pem"),
            at("cardvault.pem"),
            at("cardvault.key")
        );
        run(Command::new(self.at("cardvault"))
            .arg("init")
            .arg(self.at("vault"))
            .args(["--database-url", &database])
            .args([
                "--gateway-url",
                "https://gateway.example",
                "--gateway-client-id",
                "SANDBOX_5YCARDVAULT00001",
            ])
            .arg("--gateway-ca")
            .arg(self.at("internet.pem"))
            .arg("--gateway-public-key")
            .arg(self.at("gateway_public.pem"))
            .args(["--notify-url", "https://notify.example/antom/notify"])
            .args(["--server-name", "vault.example", "--server-name", "notify.example"])
            .args(["--api-listen", &format!("{address}:8443"), "--notify-listen", &format!("{address}:8445")])
            .args(["--ops-listen", &format!("{address}:9464")]));
        let config = std::fs::read_to_string(self.vault("cardvault.toml")).expect("a configuration");
        assert!(!config.contains("allow_private_addresses"), "the gateway is outside");
    }

    /// A cluster with the files and the roles of `deploy/postgresql`.
    fn make_database(&self) {
        let authority = Authority::make("database", SystemClock.now()).expect("an authority");
        let folder = self.vault("database");
        std::fs::create_dir(&folder).expect("a folder");
        write_public(&folder.join("ca.pem"), authority.certificate_pem().as_bytes()).expect("a file");
        for role in ["cardvault", "cardvault_owner"] {
            let mut options = LeafOptions::valid_for(SystemClock.now(), 1);
            role.clone_into(&mut options.common_name);
            options.usages = vec![Usage::Client];
            let leaf = authority.leaf(&options).expect("a certificate");
            write_public(&folder.join(format!("{role}.pem")), leaf.certificate_pem.as_bytes())
                .expect("a file");
            let key = leaf.private_key_pem.expose().as_bytes();
            write_private(&folder.join(format!("{role}.key")), key).expect("a file");
        }
        write_private(&self.vault("secrets/owner"), b"of-cardvault_owner").expect("a file");
        give(&self.at("vault"), (VAULT_USER, VAULT_USER));

        let data = self.at("postgres");
        std::fs::create_dir(&data).expect("a folder");
        give(&data, self.postgres_user);
        let initdb = self.binaries.join("initdb");
        let postgres_user = self.postgres_user.0;
        run(self
            .inside(Segment::Data, postgres_user, initdb.to_str().expect("a path"))
            .args(["--auth=peer", "-k", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D"])
            .arg(&data));
        let server = authority.server(&["database.example"], SystemClock.now(), 1).expect("a certificate");
        write_public(&data.join("server.crt"), server.certificate_pem.as_bytes()).expect("a file");
        write_private(&data.join("server.key"), server.private_key_pem.expose().as_bytes()).expect("a file");
        write_public(&data.join("clients.crt"), authority.certificate_pem().as_bytes()).expect("a file");
        for name in ["cardvault.conf", "pg_hba.conf"] {
            std::fs::copy(deployed("postgresql").join(name), data.join(name)).expect("a copy");
        }
        let conf = std::fs::read_to_string(data.join("postgresql.conf")).expect("a file");
        let listen = format!(
            "\nlisten_addresses = '{}'\nunix_socket_directories = '{}'\ninclude 'cardvault.conf'\n",
            Segment::Data.address(),
            data.display()
        );
        std::fs::write(data.join("postgresql.conf"), conf + &listen).expect("a file");
        give(&data, self.postgres_user);
    }

    fn psql(&self, arguments: &[&str]) -> bool {
        let psql = self.binaries.join("psql");
        let mut command = self.inside(Segment::Data, self.postgres_user.0, psql.to_str().expect("a path"));
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h"]).arg(self.at("postgres"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.output().expect("it runs").status.success()
    }

    /// Starts everything where it belongs.
    pub fn start(&self) -> Vec<Running> {
        let log = |name: &str| File::create(self.at(name)).expect("a log");
        let postgres = self.binaries.join("postgres");
        let mut command =
            self.inside(Segment::Data, self.postgres_user.0, postgres.to_str().expect("a path"));
        command.arg("-D").arg(self.at("postgres")).stderr(log("postgres.log")).stdout(log("postgres.out"));
        let mut database = Running::spawn(&mut command);
        until("PostgreSQL", || {
            assert!(database.lives(), "{}", self.read("postgres.log"));
            self.psql(&["-c", "SELECT 1"])
        });
        let roles = deployed("postgresql/roles.sql").display().to_string();
        // Where the server's user can read it.
        let grants = self.at("grants.sql");
        std::fs::copy(deployed("postgresql/grants.sql"), &grants).expect("a copy");
        std::fs::copy(&roles, self.at("roles.sql")).expect("a copy");
        assert!(self.psql(&["-f", self.at("roles.sql").to_str().expect("a path")]), "the roles are made");
        for role in ["cardvault", "cardvault_owner"] {
            assert!(self.psql(&["-c", &format!("ALTER ROLE {role} PASSWORD 'of-{role}'")]));
        }
        // As the owner of the schema, from the vault's host.
        let vault = self.at("cardvault");
        let vault = vault.to_str().expect("a path");
        let at = |name: &str| self.vault(&format!("database/{name}")).display().to_string();
        let owner = format!(
            "postgres://cardvault_owner@database.example/cardvault?sslmode=verify-full&sslrootcert={}\
             &sslcert={}&sslkey={}",
            at("ca.pem"),
            at("cardvault_owner.pem"),
            at("cardvault_owner.key")
        );
        run(self
            .inside(Segment::Vault, VAULT_USER, vault)
            .args(["migrate", "--config"])
            .arg(self.vault("cardvault.toml"))
            .env("CARDVAULT_DATABASE_URL", owner)
            .env("CARDVAULT_DATABASE_PASSWORD_FILE", self.vault("secrets/owner")));
        let grants =
            format!("SET ROLE cardvault_owner; {}", std::fs::read_to_string(&grants).expect("a file"));
        std::fs::write(self.at("grants.sql"), grants).expect("a file");
        assert!(
            self.psql(&["-d", "cardvault", "-f", self.at("grants.sql").to_str().expect("a path")]),
            "granted"
        );

        let address = Segment::Gateway.address();
        let mut command = self.inside(Segment::Gateway, 0, vault);
        command.args(["sandbox", "--listen", &format!("{address}:443"), "--dir"]).arg(self.at("vault"));
        for (name, file) in [
            ("--certificate", "gateway.pem"),
            ("--private-key", "gateway.key"),
            ("--gateway-private-key", "gateway_private.pem"),
            ("--ledger", "ledger.jsonl"),
        ] {
            command.arg(name).arg(self.at(file));
        }
        let gateway = Running::start("the gateway", command.stderr(log("gateway.log")), "ready ");

        let mut command = self.inside(Segment::Dmz, 0, "haproxy");
        command.arg("-db").arg("-f").arg(deployed("haproxy.cfg"));
        command.env("NOTIFY_NAME", "notify.example");
        command.env("VAULT_NOTIFY", format!("{}:8445", Segment::Vault.address()));
        let proxy =
            Running::spawn(command.stdin(Stdio::null()).stderr(log("proxy.log")).stdout(log("proxy.out")));

        let mut command = self.inside(Segment::Vault, VAULT_USER, vault);
        command.args(["serve", "--config"]).arg(self.vault("cardvault.toml")).env("CARDVAULT_LOG", "debug");
        // Nobody listens there; who took it would be counted.
        for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
            command.env(name, format!("http://{}:3128", Segment::Office.address()));
        }
        let serving = Running::start("the vault", command.stderr(log("vault.log")), "ready ");
        vec![serving, proxy, gateway, database]
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    /// A request of the merchant's checkout service, from its segment.
    fn checkout(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let nth = self.calls.replace(self.calls.get() + 1);
        let pki = self.vault("pki");
        let mut command = self.inside(Segment::Merchant, 0, "curl");
        command.args([
            "-sS",
            "--max-time",
            "60",
            "--noproxy",
            "*",
            "-X",
            method,
            "-w",
            "\n%{http_code}",
            "--cacert",
        ]);
        command.arg(pki.join("ca.pem")).arg("--cert").arg(pki.join("clients/checkout.pem")).arg("--key");
        command.arg(pki.join("clients/checkout.key"));
        if let Some(body) = body {
            // Not as an argument: everybody could read it there.
            let file = self.at(&format!("body-{nth}.json"));
            write_private(&file, body.to_string().as_bytes()).expect("a file");
            command.args(["-H", "content-type: application/json", "--data-binary"]);
            command.arg(format!("@{}", file.display()));
        }
        let text = run(command.arg(format!("https://vault.example:8443{path}")));
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.parse().expect("a status"), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Stores a card and pays with it.
    pub fn pays(&self, id: &str) -> String {
        let card = json!({ "cardNo": PAN, "expiryMonth": "12", "expiryYear": "29",
            "cardholderName": { "firstName": "Tom", "lastName": "Jay" } });
        let (status, card) = self.checkout("POST", "/v1/cards", Some(&card));
        assert!(matches!(status, 200 | 201), "{card}");
        let card_id = card["cardId"].as_str().expect("an id").to_owned();
        let mut pay: Value = serde_json::from_str(SAMPLE).expect("JSON");
        pay["paymentRequestId"] = json!(id);
        pay["paymentAmount"]["value"] = json!("900");
        pay["paymentFactor"] = json!({ "isAuthorization": true, "captureMode": "MANUAL" });
        pay["paymentMethod"]["paymentMethodId"] = json!(card_id);
        let metadata = pay["paymentMethod"]["paymentMethodMetaData"].as_object_mut().expect("an object");
        for name in
            ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName", "billingAddress", "isCardOnFile"]
        {
            metadata.remove(name);
        }
        let (status, paid) = self.checkout("POST", "/v1/payments", Some(&pay));
        assert_eq!((status, &paid["status"]), (200, &json!("AUTHORIZED")), "{paid}");
        card_id
    }

    /// A card, a payment, a capture, a refund, a payment on the gateway's page that a notification settles, and
    /// the operators' look at the vault.
    pub fn walk(&self) {
        self.pays("SEG_1");
        let amount = json!({ "currency": "EUR", "value": "400" });
        for (kind, body) in [
            (
                "captures",
                json!({ "captureRequestId": "SEG_C", "captureAmount": amount, "isLastCapture": false }),
            ),
            ("refunds", json!({ "refundRequestId": "SEG_R", "refundAmount": amount })),
        ] {
            let (status, done) = self.checkout("POST", &format!("/v1/payments/SEG_1/{kind}"), Some(&body));
            assert_eq!((status, &done["status"]), (200, &json!("SUCCEEDED")), "{done}");
        }
        let mut hosted: Value = serde_json::from_str(HOSTED).expect("JSON");
        hosted["paymentRequestId"] = json!("SEG_PAGE");
        let (_, page) = self.checkout("POST", "/v1/payments", Some(&hosted));
        let url = page["redirect"]["normalUrl"].as_str().unwrap_or_else(|| panic!("no page: {page}"));
        let path = url.split_once("/pages/").expect("a page").1;
        // The buyer's way to Antom does not lead through here.
        let mut buyer = self.inside(Segment::Gateway, 0, "curl");
        buyer.args(["-sS", "--fail", "--max-time", "60", "--noproxy", "*", "-X", "POST", "--cacert"]);
        run(buyer.arg(self.at("internet.pem")).arg(format!("https://gateway.example/pages/{path}/approve")));
        until("a notification that settles", || {
            let (_, now) = self.checkout("GET", "/v1/payments/SEG_PAGE", None);
            now["status"] == "AUTHORIZED" && now["settledBy"] == "notification"
        });
        let mut look = self.inside(Segment::Admin, 0, "curl");
        let health = format!("http://{}:9464/readyz", Segment::Vault.address());
        assert_eq!(run(look.args(["-sS", "--fail", "--max-time", "60", "--noproxy", "*", &health])), "ready");
    }

    /// No log of anybody holds the card's number.
    pub fn assert_clean(&self) {
        for name in ["vault.log", "postgres.log", "proxy.log", "gateway.log"] {
            let log = self.read(name);
            assert!(!log.contains(PAN), "{name} holds a card number");
            assert!(name == "gateway.log" || !log.is_empty(), "{name} is empty");
        }
        let log = self.read("postgres.log");
        assert!(
            log.contains("user=cardvault database=cardvault application_name=cardvault SSL enabled"),
            "{log}"
        );
        assert!(!log.contains("parameters: "), "what was bound is in PostgreSQL's log");
    }
}

/// Waits for what happens in the background.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + HANGS;
    while !done() {
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Gives a folder, and all in it, to a user.
fn give(path: &Path, owner: (u32, u32)) {
    chown(path, Some(owner.0), Some(owner.1)).expect("chown");
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("a folder").flatten() {
            give(&entry.path(), owner);
        }
    }
}

/// A user of this machine.
fn user(name: &str) -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").expect("users");
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let mut fields = line.unwrap_or_else(|| panic!("no user {name}")).split(':').skip(2);
    let mut number = || fields.next().and_then(|text| text.parse().ok()).expect("a number");
    (number(), number())
}
