//! `cardvault keys destroy KEY`

use crate::base::ids::{DekId, KekId};
use crate::ops::rotation::destroy::Destroyed;

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

pub async fn run(args: Args) -> anyhow::Result<()> {
    let (_, admin) =
        if args.dry_run { super::admin(&args.common).await? } else { super::opened(&args.common).await? };
    let named = DekId::parse(&args.key).is_some() || KekId::parse(&args.key).is_some();
    if named && !args.dry_run {
        super::note(&admin, "keys.destroy", &args.key, "begun").await?;
    }
    let done = match (DekId::parse(&args.key), KekId::parse(&args.key)) {
        (Some(id), _) => admin.destroy_data_key(&id, args.dry_run).await?,
        (None, Some(id)) => admin.destroy_kek(&id, args.dry_run).await?,
        (None, None) => {
            anyhow::bail!(
                "a key's name is `dek_` or `kek_` and 32 characters; `cardvault keys status` lists them"
            )
        }
    };
    if done == Destroyed::Now {
        super::note(&admin, "keys.destroy", &args.key, "done").await?;
    }
    admin.end().await;
    match done {
        Destroyed::Would => println!("nothing needs {}; without --dry-run it would be destroyed", args.key),
        Destroyed::Before => println!("{} was destroyed before, or never in this keyring", args.key),
        Destroyed::Now if args.key.starts_with(KekId::PREFIX) => println!(
            "destroyed {}: it is out of this keyring; take it out of every copy of the keyring too. Backups of \
             the database from before its rotation can then not be opened any more",
            args.key
        ),
        Destroyed::Now => println!(
            "destroyed {}: its wrapped bytes are gone from the database. A backup of the database from before \
             still has them; it becomes noise once the KEK that wrapped them is destroyed too",
            args.key
        ),
    }
    Ok(())
}
