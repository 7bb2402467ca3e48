//! Places for connections: counted in all, by address, and by client once its certificate is known. Who has
//! not shown a certificate yet has a place only until somebody else needs it: the longest-waiting one goes
//! first, because an honest peer is done with its handshake in no time. So silence cannot keep anybody out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::base::ids::ClientName;

use super::Limits;

/// The places of a listener.
pub(super) struct Places {
    in_all: usize,
    of_address: usize,
    of_client: usize,
    of_strangers: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    open: HashMap<u64, IpAddr>,
    addresses: HashMap<IpAddr, usize>,
    /// Connections by client; those with a good certificate that is no client's are under none.
    clients: HashMap<Option<ClientName>, usize>,
    /// Those that may be sent away, oldest first.
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// What comes of asking for a place.
pub(super) enum Asked {
    /// Here it is.
    Given(Place),
    /// The address has too many already, all of clients.
    TooMany,
    /// There is none, and nobody who could be sent away.
    Full,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            in_all: limits.max_connections,
            of_address: limits.max_per_address,
            of_client: limits.max_per_client,
            of_strangers: limits.max_strangers,
            taken: Mutex::default(),
            freed: Notify::new(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from an address.
    pub(super) fn ask(self: &Arc<Self>, address: IpAddr) -> Asked {
        let mut taken = self.taken();
        if taken.addresses.get(&address).is_some_and(|count| *count >= self.of_address)
            && !taken.send_away(|from| from == address)
        {
            return Asked::TooMany;
        }
        if taken.open.len() >= self.in_all && !taken.send_away(|_| true) {
            return Asked::Full;
        }
        let id = taken.next;
        taken.next += 1;
        let go = Arc::new(Notify::new());
        taken.open.insert(id, address);
        *taken.addresses.entry(address).or_default() += 1;
        taken.waiting.insert(id, Arc::clone(&go));
        drop(taken);
        Asked::Given(Place { places: Arc::clone(self), id, go, client: None })
    }

    /// Waits until a place is free.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Taken {
    fn send_away(&mut self, which: impl Fn(IpAddr) -> bool) -> bool {
        let oldest =
            self.waiting.keys().copied().find(|id| self.open.get(id).is_some_and(|from| which(*from)));
        let Some(id) = oldest else { return false };
        if let Some(go) = self.waiting.remove(&id) {
            go.notify_one();
        }
        self.leave(id);
        true
    }

    fn leave(&mut self, id: u64) {
        self.waiting.remove(&id);
        if let Some(address) = self.open.remove(&id) {
            take_one(&mut self.addresses, &address);
        }
    }
}

fn take_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    go: Arc<Notify>,
    client: Option<Option<ClientName>>,
}

impl Place {
    /// Ends when the place is needed for somebody else. Never after [`Self::keep`].
    pub(super) async fn needed(&self) {
        self.go.notified().await;
    }

    /// Keeps the place for a client, or for a certificate that is no client's. False where those have too
    /// many already, or the place is somebody else's by now.
    pub(super) fn keep(&mut self, client: Option<ClientName>) -> bool {
        let mut taken = self.places.taken();
        let most = if client.is_some() { self.places.of_client } else { self.places.of_strangers };
        if taken.clients.get(&client).is_some_and(|count| *count >= most)
            || taken.waiting.remove(&self.id).is_none()
        {
            return false;
        }
        *taken.clients.entry(client.clone()).or_default() += 1;
        self.client = Some(client);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.leave(self.id);
        if let Some(client) = &self.client {
            take_one(&mut taken.clients, client);
        }
        drop(taken);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn places(in_all: usize, of_address: usize, of_client: usize) -> Arc<Places> {
        let limits = Limits {
            max_connections: in_all,
            max_per_address: of_address,
            max_per_client: of_client,
            max_strangers: 1,
            ..Limits::default()
        };
        Arc::new(Places::new(&limits))
    }

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn given(places: &Arc<Places>, last: u8) -> Place {
        match places.ask(address(last)) {
            Asked::Given(place) => place,
            Asked::TooMany => panic!("too many"),
            Asked::Full => panic!("full"),
        }
    }

    fn name(text: &str) -> Option<ClientName> {
        ClientName::parse(text)
    }

    async fn is_needed(place: &Place) -> bool {
        tokio::select! { biased; () = place.needed() => true, () = std::future::ready(()) => false }
    }

    #[tokio::test]
    async fn the_one_that_waits_longest_goes_and_clients_stay() {
        let all = places(3, 3, 3);
        let mut client = given(&all, 1);
        assert!(client.keep(name("one")));
        let (first, second) = (given(&all, 2), given(&all, 3));
        let third = given(&all, 4);
        assert!(is_needed(&first).await && !is_needed(&second).await && !is_needed(&client).await);
        let mut fourth = given(&all, 5);
        assert!(is_needed(&second).await);
        // Who was sent away gets no further, and leaves nothing behind when it goes.
        let mut second = second;
        assert!(!second.keep(name("one")));
        drop((first, second));
        let mut third = third;
        assert!(third.keep(name("one")) && fourth.keep(name("one")));
        assert!(matches!(all.ask(address(6)), Asked::Full));
        drop(client);
        all.freed().await;
        let _fifth = given(&all, 6);
        drop((third, fourth, _fifth));
        let taken = all.taken();
        assert!(taken.open.is_empty() && taken.addresses.is_empty());
        assert!(taken.clients.is_empty() && taken.waiting.is_empty());
    }

    #[tokio::test]
    async fn an_address_and_a_client_have_so_many() {
        let all = places(100, 2, 1);
        let (first, mut second) = (given(&all, 1), given(&all, 1));
        assert!(second.keep(name("one")));
        let mut third = given(&all, 1);
        assert!(is_needed(&first).await, "the address's own one that waits makes room");
        assert!(!third.keep(name("one")), "a client has one place here");
        assert!(third.keep(None), "nobody's certificate has places of its own");
        assert!(matches!(all.ask(address(1)), Asked::TooMany));
        let mut other = given(&all, 2);
        assert!(!other.keep(None) && other.keep(name("two")));
    }
}
