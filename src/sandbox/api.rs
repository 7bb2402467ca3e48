//! The gateway's door: who calls, is it signed, which API. Everything that is refused here is refused in
//! Antom's way, with HTTP 200, a result `F` and a signature.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use super::answer::{Answer, Manner};
use super::ledger::Ledger;
use super::sign::{GatewayKey, MerchantKey, Signed};
use super::{Call, inquiry, mask, operations, pay};
use crate::base::clock::{Clock, Millis, SystemClock};
use crate::base::mutex::held;
use crate::gateway::antom::wire;

/// All that a running sandbox shares between its connections.
pub(super) struct Core {
    pub client_id: String,
    pub merchant: MerchantKey,
    pub gateway: GatewayKey,
    pub ledger: Ledger,
    pub calls: Mutex<VecDeque<Call>>,
    pub slow: Duration,
    pub base_url: String,
}

/// How many calls are remembered.
const CALLS: usize = 64;

/// A request to the gateway, as it came.
pub(super) struct Incoming {
    pub method: String,
    /// With its query.
    pub path: String,
    pub content_type: String,
    pub client_id: String,
    pub request_time: String,
    pub signature: String,
    pub body: Vec<u8>,
}

impl Core {
    /// The time, for ids and members; deadlines are the server's.
    pub fn now(&self) -> Millis {
        SystemClock.now()
    }

    /// Decides what a call is answered with.
    pub fn answer(&self, incoming: &Incoming) -> Answer {
        let answer = self.decide(incoming).unwrap_or_else(|error| {
            tracing::error!(%error, "the sandbox's ledger could not be written");
            Answer::nothing(Manner::ServerError)
        });
        self.remember(incoming, &answer);
        answer
    }

    fn decide(&self, incoming: &Incoming) -> io::Result<Answer> {
        if incoming.method != "POST" {
            return Ok(Answer::failure("METHOD_NOT_SUPPORTED"));
        }
        let media_type = incoming.content_type.split(';').next().unwrap_or_default();
        if !media_type.trim().eq_ignore_ascii_case("application/json") {
            return Ok(Answer::failure("MEDIA_TYPE_NOT_ACCEPTABLE"));
        }
        if incoming.client_id != self.client_id {
            return Ok(Answer::failure("INVALID_CLIENT"));
        }
        if !self.merchant.accepts(&incoming.signature, incoming.signed()) {
            return Ok(Answer::failure("INVALID_SIGNATURE"));
        }
        let Some(api) = self.api(&incoming.path) else {
            return Ok(Answer::failure("INVALID_API"));
        };
        match serde_json::from_slice(&incoming.body) {
            Ok(body) => api(self, &body),
            Err(_) => Ok(Answer::failure("PARAM_ILLEGAL")),
        }
    }

    /// The API at a path. A sandbox id has its own paths, and only those.
    fn api(&self, path: &str) -> Option<Api> {
        const APIS: &[(&str, Api)] = &[
            (wire::PAY, pay::answer),
            (wire::INQUIRY_PAYMENT, inquiry::inquire),
            (wire::CANCEL, inquiry::cancel),
            (wire::CAPTURE, operations::capture),
            (wire::REFUND, operations::refund),
            (wire::INQUIRY_REFUND, operations::inquire_refund),
        ];
        let at = path.split('?').next().unwrap_or_default();
        let sandbox = self.client_id.starts_with(wire::SANDBOX_CLIENT_PREFIX);
        let here = |production: &str| match sandbox {
            true => at == production.replacen("/ams/api/", "/ams/sandbox/api/", 1),
            false => at == production,
        };
        APIS.iter().find(|(production, _)| here(production)).map(|(_, api)| *api)
    }

    fn remember(&self, incoming: &Incoming, answer: &Answer) {
        tracing::info!(path = mask::text(&incoming.path), manner = ?answer.manner, "the sandbox was called");
        self.show(Call {
            path: mask::text(&incoming.path),
            request: mask::body(&incoming.body),
            answer: match answer.shown {
                Some(shown) => shown.to_owned(),
                None => mask::body(&answer.bytes),
            },
            notification: false,
        });
    }

    /// Remembers a call for `recent_calls`.
    pub fn show(&self, call: Call) {
        let mut calls = held(&self.calls);
        if calls.len() == CALLS {
            calls.pop_front();
        }
        calls.push_back(call);
    }
}

type Api = fn(&Core, &Value) -> io::Result<Answer>;

impl Incoming {
    fn signed(&self) -> Signed<'_> {
        Signed {
            method: &self.method,
            path: &self.path,
            client_id: &self.client_id,
            time: &self.request_time,
            body: &self.body,
        }
    }
}
