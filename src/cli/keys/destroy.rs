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
    println!("{}", told(&args.key, done));
    Ok(())
}

/// What has become of a key, in one line.
fn told(key: &str, done: Destroyed) -> String {
    const BY_OWNER: &str = "PostgreSQL keeps the rows from before until the owner of the tables runs \
         `VACUUM (FULL) data_keys`, which this role may not";
    const ANEW: &str = "PostgreSQL has written the table anew; where an older transaction was open, such as a dump, run \
         this again after it";
    let is_kek = key.starts_with(KekId::PREFIX);
    let (begin, swept) = match done {
        Destroyed::Would => return format!("nothing needs {key}; without --dry-run it would be destroyed"),
        Destroyed::Before(swept) if is_kek => {
            (format!("{key} was destroyed before, or never in this keyring"), swept)
        }
        Destroyed::Before(swept) => (format!("{key} was destroyed before"), swept),
        Destroyed::Now(swept) if is_kek => (
            format!(
                "destroyed {key}: it is out of this keyring; take it out of every copy of the keyring too. Backups of \
                 the database from before its rotation can then not be opened any more"
            ),
            Some(swept),
        ),
        Destroyed::Now(swept) => (
            format!(
                "destroyed {key}: its wrapped bytes are gone from its row. A backup of the database from before still \
                 has them; it becomes noise once the KEK that wrapped them is destroyed too"
            ),
            Some(swept),
        ),
    };
    match swept {
        Some(Swept::ByOwner) => format!("{begin}. {BY_OWNER}"),
        Some(Swept::Anew) => format!("{begin}. {ANEW}"),
        Some(Swept::Overwritten) => format!("{begin}. SQLite has overwritten the rows from before"),
        None => begin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No line says that bytes are gone from where they still are, and who can mend that is named in the same line.
    #[test]
    fn each_end_is_told_in_one_true_line() {
        for key in ["dek_1", "kek_1"] {
            for swept in [Swept::Overwritten, Swept::Anew, Swept::ByOwner] {
                for done in [Destroyed::Now(swept), Destroyed::Before(Some(swept))] {
                    let line = told(key, done);
                    assert!(!line.contains('\n') && !line.contains("gone from the database"), "{line}");
                    assert_eq!(line.contains("`VACUUM (FULL) data_keys`"), swept == Swept::ByOwner, "{line}");
                    assert_eq!(line.contains("overwritten"), swept == Swept::Overwritten, "{line}");
                    assert_eq!(line.contains("older transaction"), swept == Swept::Anew, "{line}");
                }
            }
            assert!(!told(key, Destroyed::Before(None)).contains("rows from before"));
        }
    }
}
