//! `?dryRun=true`: the request that would go out, masked, and why each member that the vault sets is what
//! it is. Nothing is stored, nothing is sent, and a held CVV goes on waiting.

use crate::base::clock::Millis;
use crate::base::fault::FieldFault;
use crate::base::ids::{CardId, Merchant};
use crate::base::json::{Object, ObjectWriter};
use crate::base::secret::SecretText;
use crate::gateway::antom::body::{CardFlags, Instrument, Template};
use crate::model::access::{Allowed, MissingScope, Pay, Scope, WriteCards};
use crate::model::agreement::Initiator;
use crate::model::card::Details;
use crate::model::pay_request::{CardForm, PayRequest};
use crate::model::rules;
use crate::slots;
use crate::store::cards::{CardRow, Held, find_card};

use super::super::Vault;
use super::super::error::OpError;
use super::brings_card_data;
use super::prepare::{Deal, check_claims, check_hosted_page, check_token_claims, or_unknown};

/// What a payment would send.
pub struct DryRun {
    /// The body, card number and CVV masked.
    pub request: String,
    /// Pointer, and why, of each member that the vault sets.
    pub members: Vec<(String, &'static str)>,
}

impl DryRun {
    /// As the API shows it.
    pub fn json(&self) -> String {
        let members: Vec<String> = self
            .members
            .iter()
            .map(|(pointer, why)| {
                let value = value_at(&self.request, pointer).unwrap_or("null");
                ObjectWriter::default()
                    .string("pointer", pointer)
                    .raw("value", value)
                    .string("reason", why)
                    .finish()
            })
            .collect();
        ObjectWriter::default()
            .raw("dryRun", "true")
            .raw("request", &self.request)
            .raw("members", &format!("[{}]", members.join(",")))
            .finish()
    }
}

impl Vault {
    /// Decides a payment as [`Vault::pay`] would, and shows what would be sent.
    pub async fn dry_run(
        &self,
        allowed: &Allowed<Pay>,
        write_cards: Option<&Allowed<WriteCards>>,
        body: SecretText,
    ) -> Result<DryRun, OpError> {
        if write_cards.is_none() && brings_card_data(body.expose()) {
            return Err(MissingScope(Scope::CardsWrite).into());
        }
        let mut request = PayRequest::read(body.expose(), self.now()).map_err(OpError::Invalid)?;
        let merchant = allowed.merchant();
        let deal = self.deal_of(allowed, &mut request).await?;
        self.complete(&mut request, &deal)?;
        match std::mem::replace(&mut request.card, CardForm::HostedPage) {
            CardForm::HostedPage => {
                check_hosted_page(&request, &deal)?;
                let body = Template::hosted_page(&request).masked("");
                let tokenize = "/paymentMethod/paymentMethodMetaData/tokenize";
                let added = request
                    .add_tokenize
                    .then(|| (tokenize.to_owned(), "the agreement needs the card again: Antom keeps it"));
                Ok(DryRun { request: body, members: added.into_iter().chain(notified(&request)).collect() })
            }
            CardForm::Token(token) => {
                let buyer = request.buyer.as_ref().map(|buyer| buyer.as_str());
                match self.find_by_token(merchant, &token, buyer).await? {
                    // Brought just now, whatever the card's row says.
                    Some(row) => {
                        self.dry_run_stored(merchant, &row.card_id, request, &deal, Some(self.now())).await
                    }
                    None => {
                        request.pays_by_token = true;
                        check_token_claims(&request)?;
                        let flags = self.flags(merchant, &request, &deal, None, self.now()).await?;
                        Ok(explain(&request, None, &flags, &deal, "", "Antom's token of this request"))
                    }
                }
            }
            CardForm::Inline(card) => {
                if let Some(fault) = request.find_outside_card(&card.pan) {
                    return Err(OpError::Invalid(vec![fault]));
                }
                let buyer = card.buyer.as_ref().map(|buyer| buyer.as_str());
                let known = self.find_by_pan(merchant, &card.pan, buyer).await?;
                let id = known.as_ref().map(|row| &row.card_id);
                let flags = self.flags(merchant, &request, &deal, id, self.now()).await?;
                Ok(explain(
                    &request,
                    Some(&card.details),
                    &flags,
                    &deal,
                    &card.pan.last4(),
                    "typed in this request",
                ))
            }
            CardForm::Reference(id) => self.dry_run_stored(merchant, &id, request, &deal, None).await,
        }
    }

    async fn dry_run_stored(
        &self,
        merchant: &Merchant,
        id: &CardId,
        mut request: PayRequest,
        deal: &Deal,
        typed_at: Option<Millis>,
    ) -> Result<DryRun, OpError> {
        let row = find_card(&self.db, merchant, id).await?;
        let row = row.ok_or_else(|| self.without_card(&request, deal, id))?;
        rules::same_buyer(row.buyer.as_deref(), request.buyer.as_ref().map(|buyer| buyer.as_str()))?;
        request.pays_by_token = matches!(row.held, Held::Token { .. });
        let flags = self.flags(merchant, &request, deal, Some(id), typed_at.unwrap_or(row.typed_at)).await?;
        let details = self.open_details(merchant, &row).await.map_err(or_unknown)?;
        check_claims(&request, details.as_ref())?;
        let find = |card: Instrument<'_>| match card {
            Instrument::Pan(pan) => request.find_outside_card(pan),
            Instrument::Token(_) => None,
        };
        let outside: Option<FieldFault> =
            self.with_instrument(merchant, &row, find).await.map_err(or_unknown)?;
        if let Some(fault) = outside {
            return Err(OpError::Invalid(vec![fault]));
        }
        request.held_cvv = deal.initiator() == Initiator::Customer && self.would_use_held(&row, &request)?;
        let last4 = match &row.held {
            Held::Pan(held) => held.last4.as_str(),
            Held::Token { .. } => "",
        };
        Ok(explain(&request, details.as_ref(), &flags, deal, last4, "of the referenced card"))
    }

    /// Whether a CVV that is held would go with the payment.
    fn would_use_held(&self, row: &CardRow, request: &PayRequest) -> Result<bool, OpError> {
        let slot = row.cvv.as_ref().filter(|slot| {
            slot.until > self.now() && slots::is_for(slot.for_request.as_deref(), &request.payment_request_id)
        });
        match slot {
            None => Ok(false),
            Some(_) if request.omit_cvv || request.sensitive.cvv.is_some() => Ok(false),
            Some(slot) if slot.holder == self.instance.as_str() => Ok(true),
            Some(_) => Err(OpError::CvvNotAvailable),
        }
    }
}

fn explain(
    request: &PayRequest,
    details: Option<&Details>,
    flags: &CardFlags,
    deal: &Deal,
    last4: &str,
    origin: &'static str,
) -> DryRun {
    let body = match details {
        Some(details) => Template::with_card(request, details, flags),
        None => Template::with_token(request, flags),
    };
    let body = body.masked(&format!("************{last4}"));
    let flag = match (deal, flags.is_card_on_file, &flags.merchant_initiated) {
        (_, _, Some(_)) => "merchant-initiated: the buyer is not there (columns E and F)",
        (Deal::Opens(..), true, _) => "the card is on file already under another agreement (columns C and D)",
        (Deal::Opens(..), false, _) => "the first payment with a card that will be kept (column B)",
        (Deal::None, true, _) if request.pays_by_token => "the card is on file at Antom",
        (_, true, _) => "the buyer pays again with a kept card (columns C and D)",
        (_, false, _) => "a one-time payment (column A)",
    };
    // None of it is ever stored.
    let typed = "typed in this request";
    let cvv = if request.held_cvv { "held for this payment; it is used once" } else { typed };
    let written = [
        ("cardNo", origin),
        ("expiryYear", origin),
        ("expiryMonth", origin),
        ("cardholderName", origin),
        ("cvv", cvv),
        ("cardPasswordDigest", typed),
        ("isCardOnFile", flag),
        ("recurringType", flag),
        ("networkTransactionId", "of the payment that opened the agreement"),
    ];
    let off = flags.merchant_initiated.is_some();
    let switched = ["is3DSAuthentication", "enableAuthenticationUpgrade"]
        .into_iter()
        .filter(|_| off)
        .map(|name| (name, "nobody is there to authenticate"));
    let stored_address = !request.metadata.iter().any(|(name, _)| name == "billingAddress");
    let address = stored_address.then_some(("billingAddress", origin));
    let members = written
        .into_iter()
        .chain(switched)
        .chain(address)
        .map(|(name, why)| (format!("/paymentMethod/paymentMethodMetaData/{name}"), why))
        .chain([("/paymentMethod/paymentMethodId".to_owned(), origin)])
        .filter(|(pointer, _)| value_at(&body, pointer).is_some())
        .chain(notified(request))
        .collect();
    DryRun { request: body, members }
}

/// Where notifications go, if the vault takes them itself.
fn notified(request: &PayRequest) -> Option<(String, &'static str)> {
    let pointer = "/paymentNotifyUrl".to_owned();
    request.notify_url.as_ref().map(|_| (pointer, "the vault takes notifications and tells them in the feed"))
}

/// The raw value at a pointer of plain names.
fn value_at<'a>(text: &'a str, pointer: &str) -> Option<&'a str> {
    pointer.split('/').skip(1).try_fold(text, |raw, name| Object::parse(raw)?.get(name))
}
