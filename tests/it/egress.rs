//! The vault goes where its configuration says and nowhere else: not where an answer sends it, not where the
//! environment would have it go, not to a name that points inwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cardvault::app::App;
use cardvault::base::clock::SystemClock;
use cardvault::base::secret::{SecretBuf, SecretText};
use cardvault::gateway::antom::client::{Client, ClientError, Options};
use cardvault::gateway::antom::sign::SigningKey;
use cardvault::gateway::antom::verify::Verifier;
use cardvault::gateway::reach::{Found, Lookup};
use cardvault::gateway::{Call, Exchange, Gateway};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::support::gateway::{PAY, Reply};
use super::support::vault::{TestVault, by_reference, fresh_pan, init};
use super::support::{Database, eventually};

/// A place that nobody should come to. It takes connections, counts them, and says nothing.
struct Counted {
    address: SocketAddr,
    came: Arc<AtomicUsize>,
}

impl Counted {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let came = Arc::new(AtomicUsize::new(0));
        let counter = came.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        });
        Self { address, came }
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }
}

/// The real program, with every variable that HTTP libraries take a proxy from, in front of a gateway that
/// answers all but payments with a redirection to another host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_redirect_is_followed_and_no_proxy_is_taken() {
    let (proxy, elsewhere) = (Counted::start().await, Counted::start().await);
    let db = Database::sqlite();
    let (mut vault, gateway) = TestVault::start_scripted(&db).await;
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        vault.environment.push((name.to_owned(), format!("http://{}", proxy.address)));
    }
    let mut program = vault.start_program().await;
    let checkout = vault.client("checkout");
    let pan = fresh_pan();
    let card_id = checkout.card(&pan).await;
    for status in [301, 302, 303, 307, 308] {
        let to = format!("https://{}{PAY}", elsewhere.address);
        gateway.on(move |_| Reply::Redirect(status, to.clone()));
        let id = format!("REDIRECT_{status}");
        let paid = checkout.post("/v1/payments", &by_reference(&id, "100", &card_id)).await.expect(200);
        assert_eq!(paid.text_at("/status"), "UNKNOWN", "{status}: {}", paid.text);
        // What the vault asks by itself is redirected too.
        let asked = gateway.calls().len();
        eventually("an inquiry", || async { (gateway.calls().len() > asked).then_some(()) }).await;
    }
    gateway.on(super::support::gateway::paid);
    let paid = checkout.post("/v1/payments", &by_reference("STRAIGHT", "100", &card_id)).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED", "the gateway is called directly");
    program.kill().and_then(|()| program.wait()).expect("killed");
    assert_eq!((elsewhere.came(), proxy.came()), (0, 0), "connections elsewhere, and to the proxy");
    vault.restart().await;
    vault.finish(&[&pan]).await;
}

/// A gateway's client without a vault around it.
struct Account {
    dir: TempDir,
}

impl Account {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("cardvault-test-").tempdir().expect("a folder");
        init(dir.path(), "sqlite:cardvault.db");
        Self { dir }
    }

    fn client(&self, base_url: &str, allow: bool, lookup: Arc<dyn Lookup>) -> Result<Client, ClientError> {
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).expect(name);
        let key = SecretText::new(read("gateway/merchant_private.pem"));
        let mut verifier = Verifier::new("SANDBOX_5YCARDVAULT00001");
        verifier.add_key(1, &read("gateway/sandbox_public.pem")).expect("a key");
        let options = Options {
            base_url: base_url.to_owned(),
            client_id: "SANDBOX_5YCARDVAULT00001".to_owned(),
            ca_pem: Some(read("pki/ca.pem").into_bytes()),
            allow_private_addresses: allow,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        };
        let signing = SigningKey::read(&key, 1).expect("a key");
        Client::with_lookup(options, signing, verifier, Arc::new(SystemClock), lookup)
    }
}

/// A name server that knows one address, and counts who asks.
struct Names(IpAddr, AtomicUsize);

impl Names {
    fn all(address: [u8; 4]) -> Arc<Self> {
        Arc::new(Self(IpAddr::V4(Ipv4Addr::from(address)), AtomicUsize::new(0)))
    }
}

impl Lookup for Names {
    fn lookup(&self, _: &str) -> Found {
        self.1.fetch_add(1, Ordering::SeqCst);
        let address = self.0;
        Box::pin(async move { Ok(vec![address]) })
    }
}

async fn call(client: &Client) -> Exchange {
    client.call(Call::InquiryPayment, SecretBuf::from_vec(b"{}".to_vec())).await
}

/// The name points to this machine: not one connection is made, each time that it is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_points_inwards_is_not_called() {
    let (account, inside) = (Account::new(), Counted::start().await);
    let url = format!("https://gateway.example:{}", inside.address.port());
    let names = Names::all([127, 0, 0, 1]);
    let client = account.client(&url, false, names.clone()).expect("a client");
    for _ in 0..3 {
        let Exchange::NotSent(why) = call(&client).await else { panic!("it was called") };
        assert!(why.contains("private or special range"), "{why}");
    }
    assert_eq!(names.1.load(Ordering::SeqCst), 3, "it is looked at each time");
    assert_eq!(inside.came(), 0);

    // Where it is allowed the very same name is called; so the place could have been reached.
    let client = account.client(&url, true, names).expect("a client");
    assert!(matches!(call(&client).await, Exchange::NotSent(_)), "no TLS there");
    assert_eq!(inside.came(), 1);
}

/// An address in the configuration is looked at when the vault starts, and named with the mend.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_inside_stops_the_start_unless_it_is_allowed() {
    let account = Account::new();
    let nobody = Names::all([1, 1, 1, 1]);
    for inside in ["127.0.0.1", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254", "localhost"] {
        let url = format!("https://{inside}:8444");
        let made = account.client(&url, false, nobody.clone());
        assert!(matches!(made, Err(ClientError::PrivateAddress)), "{inside}");
        assert!(account.client(&url, true, nobody.clone()).is_ok(), "{inside}");
    }
    assert!(account.client("https://1.1.1.1", false, nobody.clone()).is_ok());
    // Other spellings of 127.0.0.1 that a URL may have.
    for inside in ["0x7f.1", "2130706433", "127.1", "0177.0.0.1"] {
        let made = account.client(&format!("https://{inside}"), false, nobody.clone());
        assert!(matches!(made, Err(ClientError::PrivateAddress)), "{inside}");
    }

    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    vault.stop().await;
    vault.config.gateway[0].allow_private_addresses = false;
    let Err(error) = App::start(&vault.config).await else { panic!("it started") };
    let error = format!("{error:#}");
    assert!(error.contains("base_url") && error.contains("allow_private_addresses"), "{error}");
    vault.config.gateway[0].allow_private_addresses = true;
    vault.restart().await;
    vault.finish(&[]).await;
}
