//! The real program in front of the real sandbox, on a database of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::cpu::Watched;
use super::load::{Target, request};

/// The program of this build.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cardvault");
const SAMPLE: &str = include_str!("../../tests/samples/pay-server-to-server.json");

/// A running vault and its gateway. Both end when this is dropped.
pub struct Vault {
    pub dir: TempDir,
    pub target: Target,
    pub gateway: Target,
    pub cpu: Watched,
    program: PathBuf,
    vault: Child,
    sandbox: Child,
}

impl Vault {
    /// `init`, then the sandbox, then the server, as an operator would start them. The log goes to a file.
    pub fn start(program: &Path, database_url: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("cardvault-bench-").tempdir().expect("a folder");
        let made = Command::new(program)
            .args(["init", "--api-listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .args(["--notify-listen", "127.0.0.1:0", "--database-url", database_url])
            .arg(dir.path())
            .output()
            .expect("the program runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let (sandbox, at) = start(
            Command::new(program)
                .args(["sandbox", "--listen", "127.0.0.1:0", "--no-notify", "--dir"])
                .arg(dir.path()),
            &dir.path().join("sandbox.log"),
            "sandbox=https://",
        );
        let file = dir.path().join("cardvault.toml");
        let text = fs::read_to_string(&file).expect("a configuration");
        fs::write(&file, text.replace("https://127.0.0.1:8444", &format!("https://{at}"))).expect("a file");
        let (vault, api) = serve(program, dir.path());
        let target = Target::new(dir.path(), "checkout", api);
        let gateway = Target::new(dir.path(), "checkout", at);
        let program = program.to_owned();
        Self { cpu: Watched::process(vault.id()), dir, target, gateway, program, vault, sandbox }
    }

    /// Stops the server as its supervisor would.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.vault);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a running server");
        assert!(self.vault.wait().expect("its end").success(), "the server did not end well");
    }

    /// Starts the server again after [`Self::stop`].
    pub fn serve(&mut self) {
        let (vault, api) = serve(&self.program, self.dir.path());
        (self.target, self.cpu) =
            (Target::new(self.dir.path(), "checkout", api), Watched::process(vault.id()));
        self.vault = vault;
    }

    /// A command of the program on this vault, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--config").arg(self.dir.path().join("cardvault.toml"));
        command
    }
}

fn serve(program: &Path, dir: &Path) -> (Child, SocketAddr) {
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(dir.join("cardvault.toml"));
    start(&mut command, &dir.join("vault.log"), "api=https://")
}

impl Drop for Vault {
    fn drop(&mut self) {
        for child in [&mut self.vault, &mut self.sandbox] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a program and reads an address from its line that it is ready.
pub fn start(command: &mut Command, log: &Path, before: &str) -> (Child, SocketAddr) {
    let errors = File::create(log).expect("a file");
    let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let ready = lines.find_map(|line| line.ok().filter(|line| line.starts_with("ready ")));
    let ready = ready.unwrap_or_else(|| panic!("not ready: {}", fs::read_to_string(log).unwrap_or_default()));
    let address = ready.split(before).nth(1).and_then(|rest| rest.split(' ').next());
    (child, address.and_then(|text| text.parse().ok()).expect("an address"))
}

/// Card numbers that were never there before: Visa's range, from a random place on.
pub struct Numbers(u64);

impl Numbers {
    pub fn new() -> Self {
        let random: [u8; 8] = cardvault::base::entropy::array().expect("entropy");
        Self(u64::from_le_bytes(random) % 90_000_000_000_000)
    }
}

impl Iterator for Numbers {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.0 = (self.0 + 1) % 100_000_000_000_000;
        let mut digits = format!("4{:014}", self.0);
        let sum: u32 = digits
            .bytes()
            .rev()
            .enumerate()
            .map(|(place, digit)| match (place % 2, u32::from(digit - b'0')) {
                (0, digit) if digit > 4 => digit * 2 - 9,
                (0, digit) => digit * 2,
                (_, digit) => digit,
            })
            .sum();
        digits.push(char::from(b'0' + u8::try_from((10 - sum % 10) % 10).expect("a digit")));
        Some(digits)
    }
}

/// `POST /v1/cards`.
pub fn tokenise(pan: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"cardNo":"{pan}","expiryMonth":"12","expiryYear":"39","cardholderName":{{"firstName":"Tom","lastName":"Jay"}}}}"#
    );
    request("POST", "/v1/cards", "", &body)
}

/// Requests that tokenise, each a number that was never there before.
pub fn tokenising() -> impl FnMut() -> Option<Vec<u8>> {
    let mut numbers = Numbers::new();
    move || numbers.next().map(|pan| tokenise(&pan))
}

/// `GET /v1/cards/{card}`.
pub fn read(card: &str) -> Vec<u8> {
    request("GET", &format!("/v1/cards/{card}"), "", "")
}

/// Requests that read cards, one after the other and again.
pub fn reading(cards: &[String]) -> impl FnMut() -> Option<Vec<u8>> + use<> {
    let requests: Vec<_> = cards.iter().map(|card| read(card)).collect();
    let mut all = requests.into_iter().cycle();
    move || all.next()
}

/// Requests that pay with a card by its reference, numbered from here on.
pub fn paying(card: &str, from: u64) -> impl FnMut() -> Option<Vec<u8>> + use<> {
    let (body, card, mut number) = (PayBody::by_reference(), card.to_owned(), from);
    move || {
        number += 1;
        Some(request("POST", "/v1/payments", "", &body.filled(&format!("PAY_{number}"), &card)))
    }
}

/// A pay request with places for what differs: `@ID@` and `@CARD@`.
pub struct PayBody(String);

impl PayBody {
    /// By reference, as a merchant sends it to the vault.
    pub fn by_reference() -> Self {
        let mut body = Self::sample();
        let metadata = Self::metadata(&mut body);
        for name in ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName"] {
            metadata.remove(name);
        }
        body["paymentMethod"]["paymentMethodId"] = "@CARD@".into();
        Self(body.to_string())
    }

    /// With the number, as the vault sends it to the gateway.
    pub fn with_number() -> Self {
        let mut body = Self::sample();
        let metadata = Self::metadata(&mut body);
        metadata.remove("cvv");
        metadata.insert("cardNo".to_owned(), "@CARD@".into());
        Self(body.to_string())
    }

    fn sample() -> Value {
        let mut body: Value = serde_json::from_str(SAMPLE).expect("JSON");
        body["paymentRequestId"] = "@ID@".into();
        body["order"].as_object_mut().expect("an object").remove("buyer");
        body
    }

    fn metadata(body: &mut Value) -> &mut serde_json::Map<String, Value> {
        body["paymentMethod"]["paymentMethodMetaData"].as_object_mut().expect("an object")
    }

    pub fn filled(&self, id: &str, card: &str) -> String {
        self.0.replace("@ID@", id).replace("@CARD@", card)
    }
}
