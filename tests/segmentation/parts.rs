//! What this program does when it runs inside a namespace: listen on ports, or try to reach some.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// Names the part.
pub const PART: &str = "CARDVAULT_SEGMENTATION_PART";
/// A packet that is dropped is one that is not answered. Far more than an answer takes, even on a machine with
/// much to do; what is refused costs it once, because everything is tried at the same time.
const PATIENCE: Duration = Duration::from_secs(4);

/// Plays the part that the environment names, if it names one.
pub fn play() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match std::env::var(PART).as_deref() {
        Ok("listen") => listen(&arguments),
        Ok("probe") => probe(&arguments),
        _ => return false,
    }
    true
}

/// Takes connections at every `tcp:ADDRESS` that no service has, and answers at every `udp:ADDRESS`; until it is
/// killed.
fn listen(places: &[String]) {
    for place in places {
        let (kind, address) = place.split_once(':').expect("kind and address");
        let address: SocketAddr = address.parse().expect("an address");
        if kind == "udp" {
            let socket = UdpSocket::bind(address).expect("a UDP port");
            std::thread::spawn(move || {
                let mut bytes = [0; 16];
                while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    let _ = socket.send_to(&bytes[..length], from);
                }
            });
        } else if let Ok(listener) = TcpListener::bind(address) {
            std::thread::spawn(move || listener.incoming().for_each(drop));
        }
    }
    println!("listening");
    loop {
        std::thread::park();
    }
}

/// Prints, for each `tcp:ADDRESS` and `udp:ADDRESS`, whether it answers.
fn probe(targets: &[String]) {
    let tries: Vec<_> = targets
        .iter()
        .map(|target| {
            let target = target.clone();
            std::thread::spawn(move || {
                let open = answers(&target);
                (target, open)
            })
        })
        .collect();
    let mut out = String::new();
    for done in tries {
        let (target, open) = done.join().expect("a probe");
        out.push_str(&format!("{} {target}\n", if open { "open" } else { "shut" }));
    }
    std::io::stdout().write_all(out.as_bytes()).expect("written");
}

fn answers(target: &str) -> bool {
    let (kind, address) = target.split_once(':').expect("kind and address");
    let address: SocketAddr = address.parse().expect("an address");
    if kind == "tcp" {
        return TcpStream::connect_timeout(&address, PATIENCE).is_ok();
    }
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    socket.send_to(b"?", address).is_ok() && socket.recv(&mut [0; 16]).is_ok()
}
