//! An operator's commands on a simulation's database.

use std::sync::Arc;
use std::time::Duration;

use cardvault::base::clock::SharedClock;
use cardvault::crypto::aad::{Field, Place};
use cardvault::crypto::envelope;
use cardvault::crypto::kek::Keks;
use cardvault::crypto::keyring::Purpose;
use cardvault::model::audit::Actor;
use cardvault::ops::audit::acting;
use cardvault::ops::keys::{DataKeys, KeyPolicy};
use cardvault::ops::rotation::Admin;
use cardvault::ops::rotation::reencrypt::Pace;
use cardvault::store::backend::{Db, Options, Turnstile};
use cardvault::store::reseal::{self, SOURCES, SealedRow};

use super::schedule::Simulation;
use super::world::ManualClock;

/// What a command works with; no key is open yet.
pub async fn admin(simulation: &Simulation<'_>, gate: Option<Arc<dyn Turnstile>>) -> anyhow::Result<Admin> {
    let options = Options { url: simulation.ground.url().to_owned(), password_file: None };
    let db = Db::open(&options).await?;
    let db = match gate {
        Some(gate) => db.through(gate),
        None => db,
    };
    let keks = Arc::new(Keks::open(simulation.ground.keyring(), None)?);
    let clock: SharedClock = Arc::new(ManualClock { world: simulation.world.clone(), process: usize::MAX });
    Ok(Admin::new(db, keks, &clock, KeyPolicy::default(), Duration::from_secs(5))?)
}

/// Who runs commands.
pub fn console() -> Actor {
    Actor::at_console("simulation", "here".to_owned())
}

/// The records that do not open, of the rows that are meant, with the keys as a command finds them.
pub fn look_at_records(simulation: &Simulation<'_>, is_meant: impl Fn(&SealedRow) -> bool) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let admin = admin(simulation, None).await.expect("a database");
        admin.keys.open_only().await.expect("keys");
        let wrong = records_wrong(&admin.db, &admin.keys, is_meant).await;
        admin.db.close().await;
        wrong
    })
}

/// Gives records new keys, moves all to them, and destroys the old ones. Requests get a new key too; the old one
/// stays as long as there are payments.
pub fn renew_keys(simulation: &Simulation<'_>) -> anyhow::Result<()> {
    const PURPOSES: [Purpose; 2] = [Purpose::Card, Purpose::GatewayToken];
    let pace = Pace { batch: 1000, pause: Duration::ZERO };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let renewed = acting(console(), async {
        let admin = admin(simulation, None).await?;
        admin.keys.open_only().await?;
        let mut old = Vec::new();
        admin.rotate_data_key(Purpose::RequestMac).await?;
        for purpose in PURPOSES {
            old.push(admin.rotate_data_key(purpose).await?.old);
        }
        admin.reencrypt(pace, &mut |_| ()).await?;
        // Longer than a key must rest before it can be destroyed.
        {
            let mut world = simulation.world.lock();
            world.now += 5_001;
            world.new_keys = true;
        }
        for key in &old {
            admin.destroy_data_key(key, false).await?;
        }
        admin.end().await;
        Ok(())
    });
    runtime.block_on(renewed)
}

/// The records that do not open, of the rows that are meant.
pub async fn records_wrong(db: &Db, keys: &DataKeys, is_meant: impl Fn(&SealedRow) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in SOURCES {
        let rows = reseal::sample(db, source, 100_000).await.expect("records");
        for row in rows.into_iter().filter(&is_meant) {
            for (sealed, field) in row.sealed.iter().zip(source.fields) {
                let (Some(sealed), Some(field)) = (sealed, Field::parse(field)) else { continue };
                let place = Place { merchant: &row.merchant, record: &row.record, field };
                let opens = match keys.of(sealed).await {
                    Ok(key) => envelope::opens(&key, &place, sealed).is_ok(),
                    Err(_) => false,
                };
                if !opens {
                    wrong.push(format!("{} of {} does not open", field.as_str(), row.record));
                }
            }
        }
    }
    wrong
}
