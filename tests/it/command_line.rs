//! The program as operators run it: real processes, their output and exit codes. What they print and log
//! at the finest level is searched for card data.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::support::vault::{SAMPLE, SAMPLE_PAN, init};
use super::support::{leak, say};

/// What the walk's curl line types.
pub const TYPED_PAN: &str = "4054695723100768";
const HANGS: Duration = Duration::from_secs(60);

pub fn folder() -> TempDir {
    // With a blank and a quote: paths are printed for shells.
    tempfile::Builder::new().prefix("cardvault it's ").tempdir().expect("a folder")
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cardvault"));
    command.args(arguments).env("CARDVAULT_LOG", "trace").env("RUST_BACKTRACE", "full").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("it runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process that serves; killed when dropped.
pub struct Serving {
    child: Child,
    pub out: Arc<Mutex<String>>,
    pub err: Arc<Mutex<String>>,
}

impl Serving {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let out = follow(child.stdout.take().expect("piped"));
        let err = follow(child.stderr.take().expect("piped"));
        Self { child, out, err }
    }

    /// Waits for a line that begins so, and gives the rest of it.
    pub fn line(&mut self, begin: &str) -> String {
        let end = Instant::now() + HANGS;
        loop {
            let out = self.out.lock().unwrap().clone();
            // A line that is not ended is not there yet.
            let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().find_map(|line| line.strip_prefix(begin)) {
                return line.to_owned();
            }
            if self.child.try_wait().expect("wait").is_some() || Instant::now() > end {
                panic!("no line {begin:?}: {out} {}", self.err.lock().unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tells it to stop and gives the exit code, output and log.
    pub fn stop(mut self) -> (Option<i32>, String, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
        let end = Instant::now() + HANGS;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(Instant::now() < end, "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        };
        // The readers come to the end of the pipes.
        std::thread::sleep(Duration::from_millis(200));
        let (out, err) = (self.out.lock().unwrap().clone(), self.err.lock().unwrap().clone());
        (status.code(), out, err)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let all = text.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let mut all = all.lock().unwrap();
            all.push_str(&String::from_utf8_lossy(&line));
            all.push('\n');
        }
    });
    text
}

pub fn curl(dir: &Path, url: &str, body: Option<&str>) -> Option<String> {
    curl_as(dir, &[], url, body)
}

/// As [`curl`], with options of its own.
pub fn curl_as(dir: &Path, options: &[&str], url: &str, body: Option<&str>) -> Option<String> {
    let pki = dir.join("pki");
    let mut command = Command::new("curl");
    command.arg("-sS").args(options).arg("--cacert").arg(pki.join("ca.pem"));
    command.arg("--cert").arg(pki.join("clients/checkout.pem"));
    command.arg("--key").arg(pki.join("clients/checkout.key"));
    if let Some(body) = body {
        command.args(["-H", "Content-Type: application/json", "-d", body]);
    }
    match command.arg(url).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", text(&output.stderr));
            Some(text(&output.stdout))
        }
        Err(_) => {
            say("no curl found: its calls are left out");
            None
        }
    }
}

/// `init` writes everything once, private where it must be, and never over what is there.
#[test]
fn init_writes_once() {
    let folder = folder();
    let dir = folder.path().join("vault");
    let shown = dir.to_str().unwrap();
    let made = run(&["init", shown]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("cardvault serve --config"));
    let mut files =
        vec!["cardvault.toml", "keys/keyring.toml", "pki/ca.pem", "pki/server.pem", "pki/server.key"];
    let clients =
        ["checkout", "subscriptions", "backoffice", "rival"].map(|name| format!("pki/clients/{name}.key"));
    files.extend(clients.iter().map(String::as_str));
    files.extend(["pki/ca.key", "gateway/merchant_private.pem", "gateway/merchant_public.pem"]);
    for file in &files {
        let mode =
            std::fs::metadata(dir.join(file)).unwrap_or_else(|_| panic!("{file}")).permissions().mode();
        let secret = file.ends_with(".key") || file.contains("private") || file.contains("keyring");
        assert!(!secret || mode & 0o077 == 0, "{file}: {mode:o}");
    }
    let before: Vec<_> = files.iter().map(|file| std::fs::read(dir.join(file)).unwrap()).collect();
    let again = run(&["init", shown]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("cardvault.toml is there already; choose another folder"));
    // Half a folder, too: a keyring is never replaced.
    std::fs::remove_file(dir.join("cardvault.toml")).unwrap();
    assert_eq!(run(&["init", shown]).status.code(), Some(1));
    for (file, before) in files.iter().zip(before).skip(1) {
        assert_eq!(std::fs::read(dir.join(file)).unwrap(), before, "{file}");
    }
}

#[test]
fn keys_init_never_overwrites() {
    let folder = folder();
    let keyring = folder.path().join("keyring.toml");
    let shown = keyring.to_str().unwrap();
    let made = run(&["keys", "init", "--keyring", shown]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let before = std::fs::read(&keyring).unwrap();
    assert_eq!(std::fs::metadata(&keyring).unwrap().permissions().mode() & 0o777, 0o600);
    let key = text(&before).lines().find(|line| line.starts_with("key")).unwrap().to_owned();
    let again = run(&["keys", "init", "--keyring", shown]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("is there already and is not overwritten"));
    assert_eq!(std::fs::read(&keyring).unwrap(), before);
    for output in [made, again] {
        assert!(!text(&output.stdout).contains(&key) && !text(&output.stderr).contains(&key));
    }
}

#[test]
fn usage_is_told_and_ends_with_2() {
    for arguments in
        [&["--flag"][..], &[], &["serve"], &["serve", "--colour"], &["unknown"], &["init"], &["keys"]]
    {
        let output = command(arguments).env_remove("CARDVAULT_CONFIG").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("Usage"), "{arguments:?}");
    }
    let help = run(&["sandbox", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    for word in ["4054695723100768", "660001", "3DS"] {
        assert!(text(&help.stdout).contains(word), "{word}");
    }
}

/// A configuration that is wrong ends with 1 and one line that names the key and the mend.
#[test]
fn a_wrong_configuration_is_named() {
    let folder = folder();
    let dir = folder.path();
    init(dir, "sqlite:cardvault.db");
    let path = dir.join("cardvault.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let serve = |environment: &[(&str, &str)]| {
        let mut command = command(&["serve", "--config"]);
        command.arg(&path).env("CARDVAULT_LOG", "off").envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        let told = text(&output.stderr);
        assert_eq!(told.lines().count(), 1, "{told}");
        told
    };
    for (from, to, told) in [
        ("[api]\n", "[api]\ncolour = 1\n", &["colour", "api"][..]),
        ("[keys]\n", "[key]\n", &["key"]),
        ("listen = \"127.0.0.1:0\"", "listen = 7", &["api.listen"]),
        ("[api]\n", "[api]\nbin_digits = 7\n", &["api.bin_digits", "6 or 8"]),
        ("[api]\n", "[api]\nbin_digits = \"six\"\n", &["api.bin_digits"]),
        ("[api]\n", "[api\n", &["line 3"]),
        ("pki/server.pem", "pki/nothing.pem", &["api.certificate", "nothing.pem"]),
        ("pki/server.key", "pki/nothing.key", &["api.private_key", "nothing.key"]),
        ("pki/server.key", "pki/sandbox.key", &["[api]", "do not belong together"]),
        ("keys/keyring.toml", "keys/nothing.toml", &["nothing.toml", "cardvault keys init"]),
        ("\"cards:read\"", "\"cards:reed\"", &["client.checkout.scopes", "cards:reed"]),
        ("url = \"sqlite:cardvault.db\"", "url = \"mysql:x\"", &["database"]),
        ("url = \"sqlite:cardvault.db\"", "url = \"sqlite:nowhere/at/all.db\"", &["database"]),
        ("gateway/merchant_private.pem", "gateway/merchant_public.pem", &["private_keys"]),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let error = serve(&[]);
        for word in told {
            assert!(error.contains(word), "{to}: {error}");
        }
    }
    std::fs::write(&path, &good).unwrap();
    let error = serve(&[("CARDVAULT_API_COLOUR", "1")]);
    assert!(error.contains("colour"), "{error}");
    let error = serve(&[("CARDVAULT_PAN", "4711")]);
    assert!(error.contains("CARDVAULT_PAN") && !error.contains("4711"), "{error}");
    for key in ["pki/server.key", "gateway/merchant_private.pem"] {
        std::fs::set_permissions(dir.join(key), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = serve(&[]);
        assert!(error.contains("chmod 600") && error.contains(key), "{error}");
        std::fs::set_permissions(dir.join(key), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let missing = run(&["serve", "--config", "/nowhere/cardvault.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/cardvault.toml"));
}

/// `serve` says once that it is ready, takes a variable's word over the file's, and ends well when told.
/// At its finest log level nothing that was typed is in what it wrote, also with an environment that is
/// not text.
#[test]
fn serve_says_ready_and_ends_well() {
    use std::os::unix::ffi::OsStringExt;
    let folder = folder();
    let dir = folder.path();
    init(dir, "sqlite:cardvault.db");
    let config = dir.join("cardvault.toml");
    let mut sandbox = command(&["sandbox", "--listen", "127.0.0.1:0", "--dir"]);
    let mut sandbox = Serving::start(sandbox.arg(dir));
    let gateway = sandbox.line("ready sandbox=");
    let file = std::fs::read_to_string(&config).unwrap().replace("https://127.0.0.1:8444", &gateway);
    std::fs::write(&config, file).unwrap();
    let mut serve = command(&["serve", "--config"]);
    serve.arg(&config).env("CARDVAULT_API_BIN_DIGITS", "8");
    serve.env("ODD", std::ffi::OsString::from_vec(b"\xff\xfe".to_vec()));
    let mut serve = Serving::start(&mut serve);
    let ready = serve.line("ready ");
    let api = ready.split(' ').find_map(|word| word.strip_prefix("api=")).expect("an address");
    assert!(ready.contains(" ops=http://"), "{ready}");
    let card = r#"{"cardNo":"4054695723100768","expiryMonth":"12","expiryYear":"29","cvv":"8507"}"#;
    if let Some(answer) = curl(dir, &format!("{api}/v1/cards"), Some(card)) {
        assert!(answer.contains(r#""bin":"40546957""#), "{answer}");
        let paid = curl(dir, &format!("{api}/v1/payments"), Some(SAMPLE)).unwrap();
        assert!(paid.contains("AUTHORIZED"), "{paid}");
        let bad = curl(dir, &format!("{api}/v1/cards"), Some(r#"{"cardNo":"4054695723100768x"}"#)).unwrap();
        assert!(bad.contains("invalid_characters"), "{bad}");
    }
    let (code, out, err) = serve.stop();
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.lines().filter(|line| line.starts_with("ready ")).count(), 1);
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(err.contains("\"TRACE\""), "the finest level was on");
    let (code, sandbox_out, sandbox_err) = sandbox.stop();
    assert_eq!(code, Some(0));
    for text in [out, err, sandbox_out, sandbox_err] {
        leak::assert_clean(&[SAMPLE_PAN, TYPED_PAN, "8507", "850"], text.as_bytes(), "a process's output");
    }
    leak::scan_dir(dir, &[SAMPLE_PAN, TYPED_PAN, "8507"]);
}

/// Two merchants that are paid through one client id are warned of once at the start, and one is not.
#[test]
fn merchants_that_share_a_client_id_are_warned_of() {
    let folder = folder();
    let dir = folder.path();
    init(dir, "sqlite:cardvault.db");
    let config = dir.join("cardvault.toml");
    let said = || {
        let mut serve = command(&["serve", "--config"]);
        let mut serve = Serving::start(serve.arg(&config).env("CARDVAULT_LOG", "warn"));
        serve.line("ready ");
        let (code, _, err) = serve.stop();
        assert_eq!(code, Some(0), "{err}");
        err.lines().filter(|line| line.contains("two merchants share a gateway account")).collect::<String>()
    };
    let warning = said();
    assert_eq!(warning.matches("two merchants").count(), 1, "{warning}");
    assert!(warning.contains("\"acme\"") && warning.contains("\"globex\""), "{warning}");
    let mut text: toml::Table = std::fs::read_to_string(&config).unwrap().parse().unwrap();
    for (list, key) in [("merchant", "name"), ("client", "merchant")] {
        text[list].as_array_mut().unwrap().retain(|it| it[key].as_str() != Some("globex"));
    }
    std::fs::write(&config, text.to_string()).unwrap();
    assert_eq!(said(), "");
}
