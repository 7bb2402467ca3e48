//! Every limit of the interface, named once. A request past one of them is refused, never cut short.

use std::time::Duration;

/// Largest request body, in bytes.
pub const BODY_BYTES: usize = 64 * 1024;
/// How much of a body past that limit is read and thrown away, so that the refusal reaches its sender.
pub const DISCARDED_BYTES: usize = 1024 * 1024;
/// How long that may take.
pub const DISCARDING: Duration = Duration::from_secs(1);
/// Deepest nesting of a request's JSON.
pub const JSON_DEPTH: usize = 16;
/// Largest answer that is read from the gateway, in bytes.
pub const GATEWAY_ANSWER_BYTES: usize = 256 * 1024;
/// Longest merchant id for a buyer, an order or a request (reference, section 7), in characters.
pub const ID_CHARS: usize = 64;
/// Longest CVV slot (PCI DSS 3.3.2: sensitive authentication data before authorization).
pub const CVV_HOLD: Duration = Duration::from_secs(15 * 60);
/// How long one attempt may repeat itself and keep its CVV.
pub const ATTEMPT_DEADLINE: Duration = Duration::from_secs(60);
/// Largest page of a list.
pub const PAGE: i64 = 100;
/// Most CVVs held at once; one more is refused, so that memory has a ceiling.
pub const CVV_SLOTS: usize = 100_000;
/// Longest wait for an event in one request.
pub const EVENT_WAIT: Duration = Duration::from_secs(30);
/// Most requests that wait for events at once; one more is answered without waiting.
pub const EVENT_WAITERS: usize = 256;
