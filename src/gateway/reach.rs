//! Where a gateway may be. Its host is on the internet, so an address of a private or special range is
//! refused unless the configuration allows it: a name that is made to point inwards must not turn the vault
//! into a way to card data, or to whatever else listens inside. Each resolution is looked at, and the
//! connection goes to the very addresses that were looked at, so a name that changes its mind later
//! (DNS rebinding) gains nothing.

use std::error::Error;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A name's addresses, as somebody else found them.
pub type Found = Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;

/// Finds the addresses of a name.
pub trait Lookup: Send + Sync {
    /// All of them.
    fn lookup(&self, name: &str) -> Found;
}

/// What the operating system finds: its files, its resolver.
pub struct System;

impl Lookup for System {
    fn lookup(&self, name: &str) -> Found {
        let name = name.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// One of a name's addresses is of a private or special range.
#[derive(Debug, thiserror::Error)]
#[error("the gateway's name has an address of a private or special range")]
pub struct Refused;

/// Resolves names, and refuses a name that has one address where no gateway may be. (One is enough: an honest
/// name has none.)
pub struct Guard {
    lookup: Arc<dyn Lookup>,
    allow_private: bool,
}

impl Guard {
    /// A guard over `lookup`; one that lets everything pass where `allow_private`.
    pub fn new(lookup: Arc<dyn Lookup>, allow_private: bool) -> Self {
        Self { lookup, allow_private }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (found, allow_private) = (self.lookup.lookup(name.as_str()), self.allow_private);
        Box::pin(async move {
            let found = found.await?;
            if !allow_private && let Some(address) = found.iter().find(|address| is_special(**address)) {
                tracing::error!(
                    alarm = true,
                    host = name.as_str(),
                    %address,
                    "the gateway's name has an address of a private or special range; nothing is sent there \
                     (allow_private_addresses of its [[gateway]] would allow it)"
                );
                return Err(Refused.into());
            }
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// Whether a call failed because its host was refused here.
pub fn was_refused(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<Refused>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether a host, as it stands in an address, says by itself that it is inside: an address of a special
/// range, or `localhost`. Other names are looked up when they are called.
pub fn is_private_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    match bare.parse::<IpAddr>() {
        Ok(address) => is_special(address),
        Err(_) => {
            let name = bare.to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// Whether no host of the internet has this address, by the registries of special-purpose addresses of IANA.
pub fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_special_v4(address),
        IpAddr::V6(address) => is_special_v6(address),
    }
}

/// Ranges as (first address, length of the prefix).
const SPECIAL_V4: &[(Ipv4Addr, u32)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),       // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),      // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),   // shared by carriers (CGNAT)
    (Ipv4Addr::new(127, 0, 0, 0), 8),     // loopback
    (Ipv4Addr::new(169, 254, 0, 0), 16),  // link-local, and the metadata of clouds
    (Ipv4Addr::new(172, 16, 0, 0), 12),   // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),    // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),    // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24),  // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),  // private
    (Ipv4Addr::new(198, 18, 0, 0), 15),   // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),  // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),     // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),     // reserved, broadcast
];

/// Within 2000::/3; what is outside of it is special anyway.
const SPECIAL_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, Teredo
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4, which hides an IPv4 address
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

fn is_special_v4(address: Ipv4Addr) -> bool {
    let bits = address.to_bits();
    SPECIAL_V4.iter().any(|(first, length)| (bits ^ first.to_bits()) >> (32 - length) == 0)
}

fn is_special_v6(address: Ipv6Addr) -> bool {
    if let Some(inside) = embedded_v4(address) {
        return is_special_v4(inside);
    }
    let bits = address.to_bits();
    let global = bits >> 125 == 0b001;
    !global || SPECIAL_V6.iter().any(|(first, length)| (bits ^ first.to_bits()) >> (128 - length) == 0)
}

/// The IPv4 address that a connection to this one ends at: mapped (`::ffff:0:0/96`), or translated on the way
/// (NAT64, `64:ff9b::/96`).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let translated = match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    };
    address.to_ipv4_mapped().or(translated)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers as it is told, one answer for each look-up.
    struct Told(Mutex<Vec<Vec<&'static str>>>);

    impl Lookup for Told {
        fn lookup(&self, _: &str) -> Found {
            let answer = self.0.lock().unwrap().remove(0);
            Box::pin(async move { Ok(answer.into_iter().map(|text| text.parse().unwrap()).collect()) })
        }
    }

    fn guard(allow: bool, answers: Vec<Vec<&'static str>>) -> Guard {
        Guard::new(Arc::new(Told(Mutex::new(answers))), allow)
    }

    async fn resolve(guard: &Guard) -> Result<Vec<String>, bool> {
        match guard.resolve("gateway.example".parse().unwrap()).await {
            Ok(addresses) => Ok(addresses.map(|address| address.ip().to_string()).collect()),
            Err(error) => Err(was_refused(&*error)),
        }
    }

    #[test]
    fn addresses_that_no_host_of_the_internet_has_are_special() {
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff:fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_special(special.parse().unwrap()), "{special}");
        }
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2001:200::1",
            "2001:db7::1",
            "2001:db9::1",
            "2003::1",
            "2400:cb00::1",
            "2a00:1450::1",
            "3ffe::1",
        ] {
            assert!(!is_special(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_host_that_is_inside_says_so() {
        for inside in ["127.0.0.1", "[::1]", "localhost", "LocalHost.", "gateway.localhost", "10.1.2.3"] {
            assert!(is_private_host(inside), "{inside}");
        }
        for outside in ["open-sea-global.alipay.com", "1.1.1.1", "[2a00:1450::1]", "localhost.example.com"] {
            assert!(!is_private_host(outside), "{outside}");
        }
    }

    #[tokio::test]
    async fn each_resolution_is_looked_at() {
        let rebinding = guard(
            false,
            vec![
                vec!["1.1.1.1", "2606:4700::1111"],
                vec!["127.0.0.1"],
                vec!["1.1.1.1", "fd00::1"],
                vec!["1.1.1.1"],
            ],
        );
        let both = vec!["1.1.1.1".to_owned(), "2606:4700::1111".to_owned()];
        assert_eq!(resolve(&rebinding).await, Ok(both));
        assert_eq!(resolve(&rebinding).await, Err(true), "the name points inwards now");
        assert_eq!(resolve(&rebinding).await, Err(true), "one such address is enough");
        assert_eq!(resolve(&rebinding).await, Ok(vec!["1.1.1.1".to_owned()]));
    }

    #[tokio::test]
    async fn the_configuration_may_allow_them() {
        let local = guard(true, vec![vec!["127.0.0.1", "10.0.0.1"]]);
        assert_eq!(resolve(&local).await.map(|it| it.len()), Ok(2));
    }

    #[tokio::test]
    async fn a_name_that_is_not_found_is_not_one_that_is_refused() {
        struct Nothing;
        impl Lookup for Nothing {
            fn lookup(&self, _: &str) -> Found {
                Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) })
            }
        }
        assert_eq!(resolve(&Guard::new(Arc::new(Nothing), false)).await, Err(false));
    }
}
