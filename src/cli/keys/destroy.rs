//! `cardvault keys destroy KEY`

use crate::base::ids::{DekId, KekId};
use crate::ops::rotation::destroy::Destroyed;
use crate::store::keys::Swept;

use super::Common;

#[derive(clap::Args)]
pub struct Args {
    /// The key: `dek_…` or `kek_…`, as `keys status` shows it.
    key: String,
    #[command(flatten)]
    common: Common,
    /// Only tell whether it could be destroyed.
    #[arg(long)]
    dry_run: bool,
}

/// The key that is named.
enum Key {
    Data(DekId),
    Kek(KekId),
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let key = match (DekId::parse(&args.key), KekId::parse(&args.key)) {
        (Some(id), _) => Key::Data(id),
        (None, Some(id)) => Key::Kek(id),
        (None, None) => anyhow::bail!(
            "a key's name is `dek_` or `kek_` and 32 characters; `cardvault keys status` lists them"
        ),
    };
    let (_, admin) =
        if args.dry_run { super::admin(&args.common).await? } else { super::opened(&args.common).await? };
    let done = match key {
        Key::Data(id) => admin.destroy_data_key(&id, args.dry_run).await,
        Key::Kek(id) => admin.destroy_kek(&id, args.dry_run).await,
    };
    let done = match args.dry_run {
        true => {
            admin.db.close().await;
            done?
        }
        false => super::ended(&admin, "keys.destroy", &args.key, done).await?,
    };
    match done {
        Destroyed::Would => println!("nothing needs {}; without --dry-run it would be destroyed", args.key),
        Destroyed::Before(_) => println!("{} was destroyed before, or never in this keyring", args.key),
        Destroyed::Now(_) if args.key.starts_with(KekId::PREFIX) => println!(
            "destroyed {}: it is out of this keyring; take it out of every copy of the keyring too. Backups of \
             the database from before its rotation can then not be opened any more",
            args.key
        ),
        Destroyed::Now(_) => println!(
            "destroyed {}: its wrapped bytes are gone from the database. A backup of the database from before \
             still has them; it becomes noise once the KEK that wrapped them is destroyed too",
            args.key
        ),
    }
    if let Destroyed::Now(Swept::ByOwner) | Destroyed::Before(Swept::ByOwner) = done {
        println!(
            "PostgreSQL keeps the old row until it is vacuumed, which this role may not: have the owner of the \
             tables run `VACUUM data_keys`"
        );
    }
    Ok(())
}
