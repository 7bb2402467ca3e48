//! The sandbox's own page, to which `normalUrl` leads: two buttons in place of a card form or an issuer's
//! challenge. A test acts as the buyer by calling `/approve` or `/decline` itself.

use std::io;

use super::api::Core;
use super::ledger::{LedgerEntry, Status};
use super::payment;

/// What the buyer's browser gets.
pub(super) enum Page {
    /// A page of HTML.
    Html(String),
    /// 302 to the merchant.
    Redirect(String),
    /// No such page.
    NotFound,
}

/// Serves a path that begins `/pages/`. The approval of a payment that has ended changes nothing.
pub(super) fn visit(core: &Core, path: &str) -> io::Result<Page> {
    let mut parts = path.trim_start_matches("/pages/").splitn(2, '/');
    let (page, verb) = (parts.next().unwrap_or_default(), parts.next());
    core.ledger.with(|books| {
        let entry = books.find_where(|entry| entry.page.as_deref() == Some(page)).cloned();
        let Some(mut entry) = entry else {
            return Ok(Page::NotFound);
        };
        let open = entry.status == Status::Processing;
        match verb {
            None if open => return Ok(Page::Html(form(&entry))),
            Some("approve") if open => payment::settle(&mut entry, core.now())?,
            Some("decline") if open => payment::turn_down(&mut entry),
            None | Some("approve" | "decline") => return Ok(Page::Redirect(entry.redirect_url)),
            Some(_) => return Ok(Page::NotFound),
        }
        let redirect = entry.redirect_url.clone();
        books.put(entry, core.now())?;
        Ok(Page::Redirect(redirect))
    })
}

/// Currency and value were checked to be letters and digits, and the page's name is our own.
fn form(entry: &LedgerEntry) -> String {
    let page = entry.page.as_deref().unwrap_or_default();
    let what = if entry.challenge { "3D Secure" } else { "Card payment" };
    let (currency, value) = (&entry.amount.currency, &entry.amount.value);
    format!(
        "<!doctype html><html lang=\"en\"><title>Sandbox: {what}</title><h1>{what}</h1>\
         <p>{currency} {value} (smallest units)</p>\
         <form method=\"post\" action=\"/pages/{page}/approve\"><button>approve</button></form>\
         <form method=\"post\" action=\"/pages/{page}/decline\"><button>decline</button></form></html>"
    )
}
