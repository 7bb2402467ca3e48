//! KEKs in a PKCS#11 token: made there, used there, and never seen by this process. `docs/envelope.md`
//! specifies what the token wraps.
//!
//! One thread of the process speaks to a module, whoever asks: PKCS#11 libraries differ in what they bear
//! (SoftHSM 2.6 crashes when several threads share it). The thread opens the token when it is first needed
//! and opens it again after any failure, so a token may go away and come back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::base::bytes::length_prefixed;
use crate::base::entropy;
use crate::base::ids::{DekId, KekId};
use crate::base::private_file::is_closed;
use crate::base::secret::key256;
use crate::crypto::aead::{NONCE, TAG};
use crate::crypto::keyring::{DataKey, Purpose, RAW_ID, raw_dek_id, raw_kek_id};

use super::{TokenKeks, WrapError, WrapsKeys};

const FORMAT_VERSION: u8 = 1;
/// AES-256-GCM under the KEK itself, inside a token.
const ALGORITHM: u8 = 2;
const HEADER: usize = 2 + RAW_ID;
/// How long the token may take for one operation.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest PIN, in bytes.
const PIN_BYTES: usize = 256;

/// Which token, and how to log in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Options {
    /// The PKCS#11 library of the token's maker.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// A file with the user's PIN, mode 0600 or stricter.
    pub pin_file: PathBuf,
}

/// The KEKs of one token.
pub struct Hsm {
    options: Options,
}

impl Hsm {
    /// Names a token; nothing is opened yet.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Token) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, WrapError> {
        let (reply, answer) = sync_channel(1);
        let options = self.options.clone();
        let job: Job = Box::new(move |tokens| {
            // Whoever asked may have given up: then nobody reads the answer.
            let _ = reply.send(tokens.run(&options, &work));
        });
        owner(&self.options.module)?
            .send(job)
            .map_err(|_| WrapError::Token("the thread that speaks to it has ended".to_owned()))?;
        answer
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| Err(WrapError::Token(format!("no answer in {} seconds", PATIENCE.as_secs()))))
    }
}

impl WrapsKeys for Hsm {
    fn wrap_under(&self, kek: &KekId, key: &DataKey) -> Result<Vec<u8>, WrapError> {
        let nonce: [u8; NONCE] = entropy::array()?;
        let raw = raw_kek_id(kek).ok_or(WrapError::CouldNotOpen)?;
        let (aad, id) = (aad(kek, key.id(), key.purpose()), kek.clone());
        let plain = Zeroizing::new(key.key().expose_secret().to_vec());
        let body = self.ask(move |token| {
            let sealed = token.encrypt(&id, nonce, &aad, &plain)?;
            // A wrapped key that does not open is a lost database: it is opened before it is stored.
            match token.decrypt(&id, nonce, &aad, &sealed)? {
                Some(again) if *again == *plain => Ok(Some(sealed)),
                _ => Ok(None),
            }
        })?;
        let body = body.filter(|body| body.len() == 32 + TAG).ok_or(WrapError::NotReadBack)?;
        let mut wrapped = Vec::with_capacity(HEADER + NONCE + body.len());
        wrapped.extend_from_slice(&[FORMAT_VERSION, ALGORITHM]);
        wrapped.extend_from_slice(&raw);
        wrapped.extend_from_slice(&nonce);
        wrapped.extend_from_slice(&body);
        Ok(wrapped)
    }

    fn unwrap(
        &self,
        id: &DekId,
        purpose: Purpose,
        kek: &KekId,
        wrapped: &[u8],
    ) -> Result<DataKey, WrapError> {
        let (nonce, body) = parse(kek, wrapped).ok_or(WrapError::CouldNotOpen)?;
        raw_dek_id(id).ok_or(WrapError::CouldNotOpen)?;
        let (aad, kek, body) = (aad(kek, id, purpose), kek.clone(), body.to_vec());
        let opened = self.ask(move |token| token.decrypt(&kek, nonce, &aad, &body))?;
        let opened = opened.ok_or(WrapError::CouldNotOpen)?;
        let bytes: &[u8; 32] = opened.as_slice().try_into().map_err(|_| WrapError::CouldNotOpen)?;
        Ok(DataKey::new(id.clone(), purpose, key256(|key| key.copy_from_slice(bytes))))
    }
}

impl TokenKeks for Hsm {
    fn make(&self, id: &KekId) -> Result<(), WrapError> {
        let id = id.clone();
        self.ask(move |token| token.make(&id))
    }

    fn destroy(&self, id: &KekId) -> Result<(), WrapError> {
        let id = id.clone();
        self.ask(move |token| token.destroy(&id))
    }
}

pub(in crate::crypto) fn parse<'a>(kek: &KekId, wrapped: &'a [u8]) -> Option<([u8; NONCE], &'a [u8])> {
    let (header, rest) = wrapped.split_first_chunk::<HEADER>()?;
    let [FORMAT_VERSION, ALGORITHM, raw @ ..] = header else { return None };
    let (nonce, body) = rest.split_first_chunk::<NONCE>()?;
    (*raw == raw_kek_id(kek)? && body.len() == 32 + TAG).then_some((*nonce, body))
}

pub(in crate::crypto) fn aad(kek: &KekId, id: &DekId, purpose: Purpose) -> Vec<u8> {
    length_prefixed(&["wrap/2", kek.as_str(), id.as_str(), purpose.as_str()].map(str::as_bytes))
}

type Job = Box<dyn FnOnce(&mut Tokens) + Send>;

/// The thread that speaks to a module; one for each module in the process.
fn owner(module: &Path) -> Result<Sender<Job>, WrapError> {
    static OWNERS: Mutex<Vec<(PathBuf, Sender<Job>)>> = Mutex::new(Vec::new());
    let mut owners = OWNERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, sender)) = owners.iter().find(|(known, _)| known == module) {
        return Ok(sender.clone());
    }
    let (sender, jobs) = channel();
    let path = module.to_owned();
    std::thread::Builder::new()
        .name("pkcs11".to_owned())
        .spawn(move || serve(&path, &jobs))
        .map_err(|error| WrapError::Token(format!("no thread for it: {}", error.kind())))?;
    owners.push((module.to_owned(), sender.clone()));
    Ok(sender)
}

fn serve(module: &Path, jobs: &Receiver<Job>) {
    let mut tokens = Tokens { module: module.to_owned(), library: None, open: HashMap::new(), refused: None };
    while let Ok(job) = jobs.recv() {
        job(&mut tokens);
    }
}

/// What went wrong in the token, and whether opening it again can help.
#[derive(Debug)]
struct Fault {
    text: String,
    again: bool,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        // The library's words name its functions and codes; nothing of a key or a PIN is among them.
        Self { text: error.to_string(), again: true }
    }
}

fn final_fault(text: impl Into<String>) -> Fault {
    Fault { text: text.into(), again: false }
}

/// The tokens of one module that are open.
struct Tokens {
    module: PathBuf,
    library: Option<Pkcs11>,
    open: HashMap<Options, Token>,
    /// A PIN that was refused is not tried again until its file changes: tokens lock after a few tries.
    refused: Option<(PathBuf, Option<SystemTime>)>,
}

struct Token {
    session: Session,
    keys: HashMap<KekId, ObjectHandle>,
}

impl Tokens {
    /// Does the work, and once more after opening everything again where that can help.
    fn run<T>(
        &mut self,
        options: &Options,
        work: &dyn Fn(&mut Token) -> Result<T, Fault>,
    ) -> Result<T, WrapError> {
        let mut done = self.attempt(options, work);
        if done.as_ref().is_err_and(|fault| fault.again) {
            self.close();
            done = self.attempt(options, work);
        }
        done.map_err(|fault| {
            // Whatever it was, the next to ask begins afresh.
            self.close();
            WrapError::Token(fault.text)
        })
    }

    fn attempt<T>(
        &mut self,
        options: &Options,
        work: &dyn Fn(&mut Token) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if !self.open.contains_key(options) {
            let token = self.log_in(options)?;
            self.open.insert(options.clone(), token);
        }
        let token = self.open.get_mut(options).ok_or_else(|| final_fault("it is not open"))?;
        work(token)
    }

    fn log_in(&mut self, options: &Options) -> Result<Token, Fault> {
        let stamp = std::fs::metadata(&options.pin_file).and_then(|facts| facts.modified()).ok();
        if self.refused.as_ref() == Some(&(options.pin_file.clone(), stamp)) {
            return Err(final_fault(format!(
                "it has refused the PIN of {}; correct the file",
                options.pin_file.display()
            )));
        }
        let pin = read_pin(&options.pin_file)?;
        let library = self.library()?;
        let slots = library.get_slots_with_initialized_token()?;
        let labelled = |slot: &&cryptoki::slot::Slot| {
            library.get_token_info(**slot).is_ok_and(|info| info.label().trim_end() == options.token)
        };
        let slot = *slots.iter().find(labelled).ok_or_else(|| Fault {
            text: format!(
                "no token with the label {} is there; is it plugged in, or reachable?",
                options.token
            ),
            again: true,
        })?;
        let session = library.open_rw_session(slot)?;
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Error::Pkcs11(
                fault @ (RvError::PinIncorrect | RvError::PinLocked | RvError::PinExpired),
                _,
            )) => {
                self.refused = Some((options.pin_file.clone(), stamp));
                return Err(final_fault(format!(
                    "it refuses the PIN of {} ({fault:?}); correct the file",
                    options.pin_file.display()
                )));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Token { session, keys: HashMap::new() })
    }

    fn library(&mut self) -> Result<Pkcs11, Fault> {
        if let Some(library) = &self.library {
            return Ok(library.clone());
        }
        let library = Pkcs11::new(&self.module).map_err(|_| {
            final_fault(format!("{} cannot be loaded as a PKCS#11 module", self.module.display()))
        })?;
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
        self.library = Some(library.clone());
        Ok(library)
    }

    /// Lets go of everything: a module sees tokens that came back only when it begins anew.
    fn close(&mut self) {
        self.open.clear();
        if let Some(library) = self.library.take()
            && library.finalize().is_err()
        {
            tracing::debug!("a PKCS#11 module did not end well");
        }
    }
}

impl Token {
    fn key(&mut self, id: &KekId) -> Result<ObjectHandle, Fault> {
        if let Some(handle) = self.keys.get(id) {
            return Ok(*handle);
        }
        let found = self.session.find_objects(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(id.as_str().as_bytes().to_vec()),
        ])?;
        let [handle] = found.as_slice() else {
            let what = if found.is_empty() { "no key" } else { "more than one key" };
            return Err(Fault {
                text: format!("it has {what} with the label {id}"),
                again: found.is_empty(),
            });
        };
        let facts =
            self.session.get_attributes(*handle, &[AttributeType::Sensitive, AttributeType::Extractable])?;
        if !facts.contains(&Attribute::Sensitive(true)) || !facts.contains(&Attribute::Extractable(false)) {
            return Err(final_fault(format!("its key {id} could be taken out, so it is not used")));
        }
        self.keys.insert(id.clone(), *handle);
        Ok(*handle)
    }

    fn encrypt(
        &mut self,
        id: &KekId,
        mut nonce: [u8; NONCE],
        aad: &[u8],
        plain: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let key = self.key(id)?;
        let gcm = Mechanism::AesGcm(GcmParams::new(&mut nonce, aad, 128.into())?);
        Ok(self.session.encrypt(&gcm, key, plain)?)
    }

    /// None where the tag does not fit; the token is well.
    fn decrypt(
        &mut self,
        id: &KekId,
        mut nonce: [u8; NONCE],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        let key = self.key(id)?;
        let gcm = Mechanism::AesGcm(GcmParams::new(&mut nonce, aad, 128.into())?);
        match self.session.decrypt(&gcm, key, sealed) {
            Ok(plain) => Ok(Some(Zeroizing::new(plain))),
            // SoftHSM answers with GENERAL_ERROR; the key that it was asked for is there all the same.
            Err(Error::Pkcs11(
                RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange | RvError::GeneralError,
                _,
            )) if self.is_well(key) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the token still answers for a key.
    fn is_well(&self, key: ObjectHandle) -> bool {
        self.session.get_attributes(key, &[AttributeType::KeyType]).is_ok_and(|facts| !facts.is_empty())
    }

    fn make(&mut self, id: &KekId) -> Result<(), Fault> {
        let raw = raw_kek_id(id).ok_or_else(|| final_fault("that is no key's name"))?;
        if self.key(id).is_ok() {
            // Made by the attempt before, whose answer was lost.
            return Ok(());
        }
        self.session.generate_key(
            &Mechanism::AesKeyGen,
            &[
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::ValueLen(32.into()),
                Attribute::Label(id.as_str().as_bytes().to_vec()),
                Attribute::Id(raw.to_vec()),
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::Wrap(false),
                Attribute::Unwrap(false),
            ],
        )?;
        self.key(id).map(|_| ())
    }

    fn destroy(&mut self, id: &KekId) -> Result<(), Fault> {
        self.keys.remove(id);
        let label = Attribute::Label(id.as_str().as_bytes().to_vec());
        for handle in self.session.find_objects(&[Attribute::Class(ObjectClass::SECRET_KEY), label])? {
            self.session.destroy_object(handle)?;
        }
        Ok(())
    }
}

/// Reads a PIN that nobody but its owner may be able to read.
fn read_pin(path: &Path) -> Result<AuthPin, Fault> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let failed = || final_fault(format!("the PIN's file {} cannot be read", path.display()));
    let mut file = std::fs::File::open(path).map_err(|_| failed())?;
    if !is_closed(path, file.metadata().map_err(|_| failed())?.mode()) {
        return Err(final_fault(format!("others can read {0}; run `chmod 600 {0}`", path.display())));
    }
    let mut buffer = Zeroizing::new([0; PIN_BYTES]);
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest).map_err(|_| failed())? {
            0 => break,
            count => filled += count,
        }
    }
    let text = std::str::from_utf8(buffer.get(..filled).unwrap_or_default()).map_err(|_| failed())?;
    Ok(AuthPin::from(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests;
