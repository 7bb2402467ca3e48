//! Payments. The story of one: look its id up, decide, record the intent, send, record the outcome.
//!
//! Once the intent is recorded the payment has one id and one charge: a repeat of the id only tells
//! what is known. See `attempt` for what happens after the first byte has left.

mod attempt;
mod cancel;
mod chain;
pub mod dry_run;
mod prepare;
mod reconcile;
mod settle;

use std::sync::Arc;

use crate::base::ids::{CardId, GatewayAccount, PaymentRequestId};
use crate::base::json::{self, Object};
use crate::base::limits::PAGE;
use crate::base::sealed::Sealed;
use crate::base::secret::SecretText;
use crate::crypto::aad::{Field, Place};
use crate::crypto::{envelope, request_mac};
use crate::gateway::Gateway;
use crate::model::access::{Allowed, Pay, ReadPayments, Scope, WriteCards};
use crate::model::pay_request::{PayRequest, canonical, payment_request_id};
use crate::model::payment::Status;
use crate::model::payment_view::{CancelView, PaymentView};
use crate::store::cards::find_card;
use crate::store::operations::list_operations;
use crate::store::payments as rows;
use crate::store::payments::PaymentRow;

use super::Vault;
use super::error::OpError;
use crate::base::bytes::length_prefixed;
use crate::base::card::Pan;
use crate::base::ids::DekId;
use crate::model::access::MissingScope;

/// Which payments to list.
#[derive(Default)]
pub struct PaymentQuery {
    /// Of one card.
    pub card_id: Option<CardId>,
    /// In one state.
    pub status: Option<Status>,
    /// After this payment.
    pub after: Option<PaymentRequestId>,
}

impl Vault {
    /// Pays. `body` is one strict JSON object. `write_cards` is the right to bring card data along.
    pub async fn pay(
        self: &Arc<Self>,
        allowed: &Allowed<Pay>,
        write_cards: Option<&Allowed<WriteCards>>,
        body: SecretText,
    ) -> Result<PaymentView, OpError> {
        if write_cards.is_none() && brings_card_data(body.expose()) {
            return Err(MissingScope(Scope::CardsWrite).into());
        }
        let id = read_id(body.expose())?;
        // Where the card is there and the id is new, one look tells both.
        let found = match named_card(body.expose()) {
            Named::Reference(card) => self.find_to_pay(allowed, &card, &id).await?,
            _ => None,
        };
        if found.as_ref().is_none_or(|found| found.id_is_used)
            && let Some(row) = rows::find_payment(&self.db, allowed.account(), &id).await?
        {
            return self.repeat(allowed, &row, body.expose()).await;
        }
        let _running = self.running.begin();
        let request = PayRequest::read(body.expose(), self.now()).map_err(OpError::Invalid)?;
        let meaning = canonical(body.expose());
        let prepared = self.prepare(allowed, request, &meaning, found).await?;
        match self.record(allowed, prepared).await? {
            prepare::Recorded::Ready(attempt, signed) => self.send_first(attempt, signed).await,
            prepare::Recorded::InUse => {
                let row = rows::find_payment(&self.db, allowed.account(), &id).await?;
                let row = row.ok_or(OpError::NotFound(None))?;
                self.repeat(allowed, &row, body.expose()).await
            }
        }
    }

    /// Answers a repeat of a known id with what is known, at once; it never waits and never sends.
    async fn repeat(
        &self,
        allowed: &Allowed<Pay>,
        row: &PaymentRow,
        body: &str,
    ) -> Result<PaymentView, OpError> {
        let same = row.merchant == *allowed.merchant()
            && self.names_same_card(row, body).await?
            && self.means_same(row, body).await?;
        if same { self.view(row).await } else { Err(OpError::RequestIdReused("/paymentRequestId")) }
    }

    async fn means_same(&self, row: &PaymentRow, body: &str) -> Result<bool, OpError> {
        let key =
            DekId::parse(&row.meaning_key).ok_or_else(|| OpError::Internal(anyhow::anyhow!("a key id")))?;
        let key = self.keys.by_id(&key).await?;
        let input = meaning_input(&canonical(body), row.card_id.as_ref());
        Ok(request_mac::verify(&key, &input, &row.meaning)?)
    }

    /// Whether a body names the card that the payment was made with.
    async fn names_same_card(&self, row: &PaymentRow, body: &str) -> Result<bool, OpError> {
        let named = named_card(body);
        match (&row.card_id, named) {
            (None, Named::None) => Ok(true),
            (Some(card), Named::Reference(id)) => Ok(*card == id),
            (Some(card), Named::Token(token)) => {
                let known = find_card(&self.db, &row.merchant, card).await?;
                known.map_or(Ok(false), |known| self.has_token(&row.merchant, &known, &token))
            }
            (Some(card), Named::Number(pan)) => {
                let known = find_card(&self.db, &row.merchant, card).await?;
                known.map_or(Ok(false), |known| self.has_pan(&row.merchant, &known, &pan))
            }
            _ => Ok(false),
        }
    }

    /// A payment's state; with `refresh`, the gateway is asked first.
    pub async fn read_payment(
        &self,
        allowed: &Allowed<ReadPayments>,
        id: &PaymentRequestId,
        refresh: bool,
    ) -> Result<PaymentView, OpError> {
        let row = rows::find_payment(&self.db, allowed.account(), id).await?;
        let row = row.filter(|row| row.merchant == *allowed.merchant()).ok_or(OpError::NotFound(None))?;
        if !refresh {
            return self.view(&row).await;
        }
        let (row, _) = self.inquire(&row).await?;
        self.view(&row).await
    }

    /// A page of payments, and whether there are more.
    pub async fn list_payments(
        &self,
        allowed: &Allowed<ReadPayments>,
        query: &PaymentQuery,
        limit: i64,
    ) -> Result<(Vec<PaymentView>, bool), OpError> {
        let limit = limit.clamp(1, PAGE);
        let (card, after) = (query.card_id.as_ref(), query.after.as_ref());
        let mut page =
            rows::list_payments(&self.db, allowed.merchant(), card, query.status, after, limit + 1).await?;
        let more = i64::try_from(page.len()).unwrap_or(i64::MAX) > limit;
        page.truncate(usize::try_from(limit).unwrap_or_default());
        let mut views = Vec::with_capacity(page.len());
        for row in &page {
            views.push(self.view(row).await?);
        }
        Ok((views, more))
    }

    /// A payment as callers see it. As the row was read, its answer may be under a key that has been destroyed since:
    /// then it is read again.
    async fn view(&self, row: &PaymentRow) -> Result<PaymentView, OpError> {
        match self.view_of(row).await {
            Err(OpError::Internal(_)) => self.view_of(&self.find_again(row).await?).await,
            shown => shown,
        }
    }

    async fn view_of(&self, row: &PaymentRow) -> Result<PaymentView, OpError> {
        let answer = match &row.answer {
            Some(sealed) => Some(self.open_answer(row, sealed).await?),
            None => None,
        };
        let mut view = Self::shown(row, answer);
        if row.operation_count > 0 {
            for operation in list_operations(&self.db, &row.account, &row.payment_request_id).await? {
                view.operations.push(self.operation_view(&operation, row.payment_id.clone(), false).await?);
            }
        }
        Ok(view)
    }

    /// A row with its opened answer.
    fn shown(row: &PaymentRow, answer: Option<String>) -> PaymentView {
        PaymentView {
            payment_request_id: row.payment_request_id.to_string(),
            status: row.status,
            card_id: row.card_id.as_ref().or(row.token_card_id.as_ref()).map(ToString::to_string),
            agreement_id: row.agreement_id.as_ref().map(ToString::to_string),
            payment_id: row.payment_id.clone(),
            currency: row.currency.clone(),
            amount: row.amount.clone(),
            settled_by: row.settled_by.clone(),
            answer,
            operations: Vec::new(),
            cancel: row.cancel.as_ref().map(|cancel| CancelView {
                status: cancel.state.name(),
                by_caller: cancel.by_caller,
                code: cancel.code.clone(),
                at: cancel.at,
            }),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }

    async fn open_answer(&self, row: &PaymentRow, sealed: &Sealed) -> Result<String, OpError> {
        let dek = self.keys.of(sealed).await?;
        let record = record_name(&row.account, &row.payment_request_id);
        let place = Place { merchant: &row.merchant, record: &record, field: Field::GatewayAnswer };
        let bytes = envelope::open(&dek, &place, sealed)?;
        std::str::from_utf8(bytes.expose())
            .map(str::to_owned)
            .map_err(|_| OpError::Internal(anyhow::anyhow!("a kept answer is not text")))
    }

    pub(super) fn gateway(&self, account: &GatewayAccount) -> Result<Arc<dyn Gateway>, OpError> {
        let gateway = self.accounts.get(account).cloned();
        gateway.ok_or_else(|| OpError::Internal(anyhow::anyhow!("no gateway is configured for an account")))
    }
}

/// Where a payment's sealed fields live. Neither part can hold the separator.
pub(super) fn record_name(account: &GatewayAccount, id: &PaymentRequestId) -> String {
    format!("{account}/{id}")
}

/// What the digest of a request's meaning is made of: its canonical text with the card's reference in
/// the card's place.
fn meaning_input(canonical: &SecretText, card: Option<&CardId>) -> Vec<u8> {
    length_prefixed(&[canonical.expose().as_bytes(), card.map_or("", CardId::as_str).as_bytes()])
}

fn read_id(body: &str) -> Result<PaymentRequestId, OpError> {
    let fault = |fault| OpError::Invalid(vec![fault]);
    let object =
        Object::parse(body).ok_or_else(|| fault(crate::base::fault::FieldFault::at("", "invalid_type")))?;
    payment_request_id(&object).map_err(fault)
}

/// Which card a body names, read leniently: the request may be one that would be refused today.
enum Named {
    None,
    Reference(CardId),
    Number(Pan),
    Token(SecretText),
    Other,
}

fn named_card(body: &str) -> Named {
    let Some(top) = Object::parse(body) else { return Named::Other };
    let Some(method) = top.get("paymentMethod").and_then(Object::parse) else { return Named::Other };
    let metadata = method.get("paymentMethodMetaData").and_then(Object::parse);
    let number = metadata.as_ref().and_then(|metadata| metadata.get("cardNo"));
    match (method.get("paymentMethodId"), number) {
        (None, None) => Named::None,
        (Some(raw), None) => match json::string(raw) {
            Some(text) => CardId::parse(&text)
                .map_or_else(|| Named::Token(SecretText::from(text.as_ref())), Named::Reference),
            None => Named::Other,
        },
        (None, Some(raw)) => {
            let text = json::string(raw).map(|text| SecretText::new(text.into_owned()));
            text.and_then(|text| Pan::parse(text.expose()).ok()).map_or(Named::Other, Named::Number)
        }
        (Some(_), Some(_)) => Named::Other,
    }
}

/// Whether a body carries a card number, Antom's token of one, or a CVV that is to be used.
fn brings_card_data(body: &str) -> bool {
    let method = || Object::parse(Object::parse(body)?.get("paymentMethod")?);
    let by_token = || {
        let method = method()?;
        let id = json::string(method.get("paymentMethodId")?)?;
        Some(!id.starts_with(CardId::PREFIX))
    };
    let metadata = || {
        let method = method()?;
        let metadata = Object::parse(method.get("paymentMethodMetaData")?)?;
        let omitted = metadata.get("cvv").and_then(json::string).is_some_and(|text| text == "OMIT");
        let has = |name: &str| metadata.get(name).is_some();
        Some(has("cardNo") || has("cardPasswordDigest") || (has("cvv") && !omitted))
    };
    metadata().unwrap_or(false) || by_token().unwrap_or(false)
}
