//! The segments, the wires between them, and the rules of `deploy/nftables`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::parts::PART;

/// The user that the vault runs as here. It need not have a name.
pub const VAULT_USER: u32 = 64123;

/// What each file of rules takes the addresses by.
const INCLUDE: &str = "include \"nftables/addresses.nft\"";
/// Begins the name of every namespace here.
const PREFIX: &str = "cvseg";

/// A segment, with one host in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    Merchant,
    Dmz,
    Vault,
    Data,
    Gateway,
    Admin,
    Office,
    Internet,
}

/// All of them.
pub const SEGMENTS: [Segment; 8] = [
    Segment::Merchant,
    Segment::Dmz,
    Segment::Vault,
    Segment::Data,
    Segment::Gateway,
    Segment::Admin,
    Segment::Office,
    Segment::Internet,
];

impl Segment {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// The first three bytes of its network. Antom's and the internet's are such as the internet has.
    fn network(self) -> &'static str {
        match self {
            Self::Merchant => "10.10.1",
            Self::Dmz => "10.10.2",
            Self::Vault => "10.10.3",
            Self::Data => "10.10.4",
            Self::Admin => "10.10.6",
            Self::Office => "10.10.7",
            Self::Gateway => "11.22.33",
            Self::Internet => "11.22.44",
        }
    }

    /// Its host.
    pub fn address(self) -> String {
        format!("{}.2", self.network())
    }

    fn address_v6(self) -> String {
        format!("fd00:0:0:{}::2", self as u8 + 1)
    }

    /// The file of `deploy/nftables` for its host, if it has one.
    fn rules(self) -> Option<&'static str> {
        match self {
            Self::Vault => Some("vault.nft"),
            Self::Data => Some("data.nft"),
            Self::Dmz => Some("dmz.nft"),
            _ => None,
        }
    }
}

/// Which rules are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Nothing is refused. Shows that what is shut otherwise is shut by the rules.
    None,
    /// Those of the hosts alone; the router lets everything through.
    Hosts,
    /// Those of the router alone.
    Router,
    /// As deployed.
    Both,
}

/// Something to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub segment: Segment,
    kind: &'static str,
    port: u16,
    v6: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, port) = (self.kind, self.port);
        match self.v6 {
            true => write!(to, "{kind}:[{}]:{port}", self.segment.address_v6()),
            false => write!(to, "{kind}:{}:{port}", self.segment.address()),
        }
    }
}

/// Every port that means something anywhere, and some that mean nothing.
const PORTS: [u16; 10] = [22, 53, 80, 443, 5432, 6514, 8443, 8444, 8445, 9464];
const UDP_PORTS: [u16; 2] = [53, 123];

/// What is tried of a segment's host.
pub fn targets(segment: Segment) -> Vec<Target> {
    let tcp = |v6| PORTS.map(move |port| Target { segment, kind: "tcp", port, v6 });
    let udp = UDP_PORTS.map(|port| Target { segment, kind: "udp", port, v6: false });
    // Over IPv6 nobody of the real services listens, so only what stands in for them answers.
    tcp(false).into_iter().chain(udp).chain(tcp(true)).collect()
}

/// The flows of the picture, and no others.
fn allowed(from: Segment, to: Segment, target: &Target) -> bool {
    use Segment::{Admin, Data, Dmz, Gateway, Merchant, Vault};
    if target.kind != "tcp" || target.v6 {
        return false;
    }
    matches!(
        (from, to, target.port),
        (Merchant, Vault, 8443)
            | (Dmz, Vault, 8445)
            | (Gateway, Dmz, 443)
            | (Vault, Data, 5432)
            | (Vault, Gateway, 443)
            | (Admin, Vault, 22 | 9464)
            | (Admin, Data | Dmz, 22)
    )
}

/// Whether a target answers under these rules.
pub fn expected(rules: Rules, from: Segment, user: u32, target: &Target) -> bool {
    let to = target.segment;
    let flow = allowed(from, to, target);
    let guarded = from.rules().is_some() || to.rules().is_some();
    // The host lets out what its own user sends, and nobody else.
    let by_hosts = !guarded || (flow && (from != Segment::Vault || user == VAULT_USER));
    match rules {
        Rules::None => true,
        Rules::Hosts => by_hosts,
        Rules::Router => flow,
        Rules::Both => flow && by_hosts,
    }
}

/// Why the picture cannot be built here.
pub fn possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("it needs root, for network namespaces".to_owned());
    }
    for (program, argument) in [
        ("ip", "-V"),
        ("nft", "--version"),
        ("haproxy", "-v"),
        ("curl", "--version"),
        ("setpriv", "--version"),
    ] {
        let runs = Command::new(program).arg(argument).output().is_ok_and(|it| it.status.success());
        if !runs {
            return Err(format!("there is no {program}"));
        }
    }
    postgres().ok_or("there is no PostgreSQL")?;
    let name = format!("{PREFIX}{}-try", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    let made = made.is_ok_and(|it| it.status.success());
    let rules = made
        && Command::new("ip")
            .args(["netns", "exec", &name, "nft", "add", "table", "inet", "cardvault"])
            .output()
            .is_ok_and(|it| it.status.success());
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    match (made, rules) {
        (false, _) => Err("network namespaces cannot be made here".to_owned()),
        (true, false) => Err("nftables does not work in a network namespace here".to_owned()),
        (true, true) => Ok(()),
    }
}

/// The folder with the newest PostgreSQL's programs.
pub fn postgres() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| folder.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, folder)| folder)
}

/// Runs a command that must succeed; what it printed.
pub fn run(command: &mut Command) -> String {
    let output: Output = command.stdin(Stdio::null()).output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out} {err}");
    out.into_owned()
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

/// The namespaces. They go when this is dropped.
pub struct Picture {
    /// For everything that its parts need; the vault's user may come through.
    pub dir: TempDir,
    prefix: String,
    /// In place of what the rules include.
    addresses: String,
}

impl Picture {
    /// Builds the segments and the router between them. Everything reaches everything.
    pub fn build() -> Self {
        remove_leftovers();
        let dir = tempfile::Builder::new().prefix("cardvault-segments-").tempdir().expect("a folder");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(dir.path(), open).expect("a mode");
        // This test's addresses in place of the example's.
        let addresses = std::fs::read_to_string(deployed("nftables/addresses.nft")).expect("a file");
        let addresses = addresses
            .replace("define vault_user = \"cardvault\"", &format!("define vault_user = {VAULT_USER}"))
            .replace("198.51.100.10", &Segment::Gateway.address())
            .replace("198.51.100.0/24", &format!("{}.0/24", Segment::Gateway.network()));
        let picture = Self { dir, prefix: format!("{PREFIX}{}-", std::process::id()), addresses };
        let router = picture.namespace("router");
        ip(&["netns", "add", &router]);
        ip(&["-n", &router, "link", "set", "lo", "up"]);
        for segment in SEGMENTS {
            picture.add(segment, &router);
        }
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
        run(Command::new("ip").args(["netns", "exec", &router, "sh", "-c", forward]));
        picture
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn add(&self, segment: Segment, router: &str) {
        let (space, name, network) = (self.namespace(&segment.name()), segment.name(), segment.network());
        let v6 = segment.address_v6();
        let first_v6 = v6.replace("::2", "::1");
        ip(&["netns", "add", &space]);
        ip(&["-n", router, "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &space]);
        for (space, device, address, address_v6) in [
            (router, name.as_str(), format!("{network}.1/24"), format!("{first_v6}/64")),
            (&space, "eth0", format!("{network}.2/24"), format!("{v6}/64")),
        ] {
            ip(&["-n", space, "addr", "add", &address, "dev", device]);
            ip(&["-n", space, "addr", "add", &address_v6, "dev", device, "nodad"]);
            ip(&["-n", space, "link", "set", device, "up"]);
        }
        ip(&["-n", &space, "link", "set", "lo", "up"]);
        ip(&["-n", &space, "route", "add", "default", "via", &format!("{network}.1")]);
        ip(&["-n", &space, "-6", "route", "add", "default", "via", &first_v6]);
    }

    /// A command inside a segment's host, as a user. It ends with this process.
    pub fn inside(&self, segment: Segment, user: u32, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(&segment.name()), "setpriv", "--pdeathsig", "KILL"]);
        if user != 0 {
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        }
        command.arg(program);
        command
    }

    /// Loads these rules and unloads the others.
    pub fn load(&self, rules: Rules) {
        for segment in SEGMENTS {
            if let Some(file) = segment.rules() {
                let there = matches!(rules, Rules::Hosts | Rules::Both);
                self.nft(&segment.name(), there.then_some(file));
            }
        }
        self.nft("router", matches!(rules, Rules::Router | Rules::Both).then_some("router.nft"));
    }

    fn nft(&self, space: &str, file: Option<&str>) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(space), "nft"]);
        match file {
            Some(file) => {
                // nft would look for the addresses in /etc, where those of a real host may be.
                let rules = std::fs::read_to_string(deployed("nftables").join(file)).expect("rules");
                assert!(rules.contains(INCLUDE), "{file} includes the addresses");
                let whole = self.dir.path().join(file);
                std::fs::write(&whole, rules.replace(INCLUDE, &self.addresses)).expect("a file");
                command.arg("-f").arg(whole);
            }
            None => drop(command.args(["flush", "ruleset"])),
        }
        run(&mut command);
    }

    /// How many packets a counter of a host's rules has seen.
    pub fn counter(&self, segment: Segment, name: &str) -> u64 {
        let space = self.namespace(&segment.name());
        let list = ["netns", "exec", &space, "nft", "list", "counter", "inet", "cardvault", name];
        let text = run(Command::new("ip").args(list));
        let packets = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
        packets.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no counter: {text}"))
    }

    /// Somebody who answers on every port of every host that no service has.
    pub fn listen_everywhere(&self) -> Vec<Running> {
        let me = std::env::current_exe().expect("a program");
        let start = |segment: Segment| {
            let mut command = self.inside(segment, 0, me.to_str().expect("a path"));
            let places = targets(segment);
            command.args(places.iter().map(Target::to_string)).env(PART, "listen").stdin(Stdio::null());
            Running::start(&segment.name(), &mut command, "listening")
        };
        SEGMENTS.map(start).into_iter().collect()
    }

    /// Tries targets from a host.
    pub fn probe(&self, from: Segment, user: u32, targets: &[Target]) -> Probe {
        // Where the vault's user can read it.
        let me = self.dir.path().join("probe");
        if !me.exists() {
            std::fs::copy(std::env::current_exe().expect("a program"), &me).expect("a copy");
        }
        let mut command = self.inside(from, user, me.to_str().expect("a path"));
        command.args(targets.iter().map(Target::to_string)).env(PART, "probe");
        Probe(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs"))
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        for name in SEGMENTS.map(Segment::name).iter().map(String::as_str).chain(["router"]) {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(name)]).output();
        }
    }
}

/// Removes the namespaces of runs that were killed.
fn remove_leftovers() {
    let list = run(Command::new("ip").args(["netns", "list"]));
    for name in list.lines().filter_map(|line| line.split(' ').next()) {
        let of = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if of.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// A file of `deploy/`.
pub fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// Probes under way.
pub struct Probe(Child);

impl Probe {
    /// What answered.
    pub fn finish(self) -> BTreeMap<String, bool> {
        let output = self.0.wait_with_output().expect("it ends");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        let lines = text.lines().map(|line| line.split_once(' ').expect("a line"));
        lines.map(|(state, target)| (target.to_owned(), state == "open")).collect()
    }
}

/// A process inside; killed when dropped.
pub struct Running {
    child: Child,
    _reading: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Starts it and waits for a line that begins so.
    pub fn start(what: &str, command: &mut Command, begins: &str) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let told = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with(begins));
        assert!(told.is_some(), "{what} does not start");
        let reading = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, _reading: Some(reading) }
    }

    /// Starts it without waiting.
    pub fn spawn(command: &mut Command) -> Self {
        Self { child: command.spawn().expect("it runs"), _reading: None }
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
