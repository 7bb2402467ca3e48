//! A network in front of PostgreSQL that breaks at a commit, and can fall silent. It reads what the client says (protocol 3.0, as
//! PostgreSQL's manual describes its messages) just far enough to know which tables a transaction writes and
//! where it is committed; all else it passes on.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Where the connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The commit never arrives.
    Before,
    /// It arrives, and the client has lost the connection before it is carried out.
    During,
    /// It is carried out, and its answer is lost.
    After,
}

#[derive(Default)]
struct Plan {
    armed: Option<(Cut, &'static str)>,
    cuts: Vec<(Cut, String)>,
    /// Whether a cut ends all of it.
    ends: bool,
    /// Whether nobody can connect.
    closed: bool,
    /// Whether nothing is passed on, and nobody is told.
    silent: bool,
}

/// A running network; it ends when dropped.
pub struct Network {
    /// Where the client connects.
    pub address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    accepting: JoinHandle<()>,
}

fn held(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// A network in front of a server on 127.0.0.1.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let plan = Arc::<Mutex<Plan>>::default();
        let plans = Arc::clone(&plan);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if held(&plans).closed {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                // Messages are passed on one by one.
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                tokio::spawn(forward(client, server, Arc::clone(&plans)));
            }
        });
        Self { address, plan, accepting }
    }

    /// The next commit of a transaction that does this (`INSERT cards`, `UPDATE payments`) is cut.
    pub fn arm(&self, cut: Cut, what: &'static str) {
        held(&self.plan).armed = Some((cut, what));
    }

    /// As [`Network::arm`]; from the cut on nobody can connect.
    pub fn arm_for_good(&self, cut: Cut, what: &'static str) {
        let mut plan = held(&self.plan);
        (plan.armed, plan.ends) = (Some((cut, what)), true);
    }

    /// Lets everybody connect again.
    pub fn mend(&self) {
        let mut plan = held(&self.plan);
        (plan.ends, plan.closed) = (false, false);
    }

    /// Whether nothing is passed on any more, as where a host has gone without a word.
    pub fn silence(&self, silent: bool) {
        held(&self.plan).silent = silent;
    }

    /// Whether the cut that was armed has not happened.
    pub fn is_armed(&self) -> bool {
        held(&self.plan).armed.is_some()
    }

    /// Every cut, and what was written in its transaction.
    pub fn cuts(&self) -> Vec<(Cut, String)> {
        held(&self.plan).cuts.clone()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Waits until something is passed on.
async fn heard(plan: &Mutex<Plan>) {
    while held(plan).silent {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Passes on what the client says, until a commit that is to be cut.
async fn forward(client: TcpStream, server: TcpStream, plan: Arc<Mutex<Plan>>) {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let (cutting, cut) = oneshot::channel();
    let answers = tokio::spawn(answer(from_server, to_client, cut, Arc::clone(&plan)));
    let (mut said, mut client) = (Vec::new(), Client::default());
    while from_client.read_buf(&mut said).await.is_ok_and(|count| count > 0) {
        while let Some(message) = client.next(&mut said) {
            let due = client.commits(&message).and_then(|writes| {
                let mut plan = held(&plan);
                let (cut, _) = plan.armed.take_if(|(_, what)| writes.iter().any(|one| one == what))?;
                plan.cuts.push((cut, writes.join(", ")));
                plan.closed |= plan.ends;
                Some(cut)
            });
            if let Some(cut) = due {
                drop(from_client);
                let _ = cutting.send(cut);
                if cut != Cut::Before {
                    let _ = to_server.write_all(&message).await;
                    // It is read before the server learns that the connection is gone.
                    let _ = answers.await;
                }
                return;
            }
            heard(&plan).await;
            if to_server.write_all(&message).await.is_err() {
                return;
            }
        }
    }
}

/// Passes answers on, until a cut.
async fn answer(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    mut cut: oneshot::Receiver<Cut>,
    plan: Arc<Mutex<Plan>>,
) {
    let mut answer = vec![0; 16 * 1024];
    let cut = loop {
        tokio::select! {
            biased;
            cut = &mut cut => break cut,
            read = server.read(&mut answer) => match read {
                Ok(count) if count > 0 => {
                    heard(&plan).await;
                    if client.write_all(&answer[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    };
    match cut {
        Ok(Cut::During) => {
            drop(client);
            until_ready(&mut server).await;
        }
        Ok(Cut::After) => until_ready(&mut server).await,
        _ => {}
    }
}

/// Reads until the server says that no transaction is open.
async fn until_ready(server: &mut OwnedReadHalf) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"Z\0\0\0\x05I") {
        if !server.read_buf(&mut answer).await.is_ok_and(|count| count > 0) {
            return;
        }
    }
}

/// What a client has said so far.
#[derive(Default)]
struct Client {
    started: bool,
    in_transaction: bool,
    /// Prepared statements by name: what they write.
    statements: HashMap<String, Vec<String>>,
    writes: Vec<String>,
}

impl Client {
    /// The next whole message.
    fn next(&mut self, said: &mut Vec<u8>) -> Option<Vec<u8>> {
        // Until the start-up message none has a letter in front.
        let letter = usize::from(self.started);
        let length = said.get(letter..letter + 4)?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize + letter;
        if said.len() < length {
            return None;
        }
        let message: Vec<u8> = said.drain(..length).collect();
        // Others ask for encryption, which the server declines, or begin with the version.
        self.started = self.started || message[4..8] == [0, 3, 0, 0];
        Some(message)
    }

    /// What is committed by this message, if it commits anything that was written.
    fn commits(&mut self, message: &[u8]) -> Option<Vec<String>> {
        let mut texts = message.get(5..)?.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let (first, second) = (texts.next()?.into_owned(), texts.next().unwrap_or_default().into_owned());
        match message[0] {
            b'P' => drop(self.statements.insert(first, written(&second))),
            b'B' => self.writes.extend(self.statements.get(&second).into_iter().flatten().cloned()),
            b'Q' if first.starts_with("BEGIN") => {
                self.in_transaction = true;
                self.writes.clear();
            }
            b'Q' if first.starts_with("ROLLBACK") => {
                self.in_transaction = false;
                self.writes.clear();
            }
            b'Q' if first.starts_with("COMMIT") => {
                self.in_transaction = false;
                return Some(std::mem::take(&mut self.writes)).filter(|writes| !writes.is_empty());
            }
            // A statement that is its own transaction is committed where it is synchronised.
            b'S' if !self.in_transaction => {
                return Some(std::mem::take(&mut self.writes)).filter(|writes| !writes.is_empty());
            }
            _ => {}
        }
        None
    }
}

/// Verb and table of all that a statement writes.
fn written(sql: &str) -> Vec<String> {
    let words: Vec<&str> = sql.split([' ', '\n', '(']).filter(|word| !word.is_empty()).collect();
    let mut written = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let table = match (*word, words.get(at + 1)) {
            ("INSERT", Some(&"INTO")) | ("DELETE", Some(&"FROM")) => words.get(at + 2),
            // Not that of an `ON CONFLICT DO UPDATE`.
            ("UPDATE", table) if at == 0 || words.get(at - 1) != Some(&"DO") => table,
            _ => None,
        };
        written.extend(table.map(|table| format!("{word} {table}")));
    }
    written
}
