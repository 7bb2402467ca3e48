//! `cardvault keys split` and `cardvault keys combine`

use std::path::PathBuf;

use anyhow::Context;

use super::Common;
use super::custodians::{self, Custodians};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// How many shares to make, one for each custodian.
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..))]
    shares: u8,
    /// How many of them open the vault.
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..))]
    threshold: u8,
    /// A folder for the shares, a file each with mode 0600 [default: they are printed].
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct CombineArgs {
    #[command(flatten)]
    common: Common,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let admin = with_kek(&args.common).await?;
    let (shares, threshold, out) = (args.shares, args.threshold, args.out);
    let done = admin
        .split_kek(shares, threshold, &mut |kek, made| custodians::keep(kek, made, out.as_deref(), threshold))
        .await;
    let kek = super::ended(&admin, "keys.split", "kek", done).await?;
    eprintln!(
        "{kek} is split: any {threshold} of {shares} shares rebuild it, which was tried with every share. The \
         keyring does not hold the key any more; copies of the keyring from before do, so destroy them. Shares of \
         a split from before are not taken any more. The next start of the vault waits for {threshold} custodians: \
         cardvault keys unseal"
    );
    Ok(())
}

pub async fn combine(args: CombineArgs) -> anyhow::Result<()> {
    let admin = with_kek(&args.common).await?;
    let done = admin.combine_kek().await;
    let kek = super::ended(&admin, "keys.combine", "kek", done).await?;
    eprintln!("{kek} is in the keyring file again: whoever reads the file can open every card");
    Ok(())
}

/// Opens what is needed, and has the custodians rebuild the KEK in use where it is split.
async fn with_kek(common: &Common) -> anyhow::Result<crate::ops::rotation::Admin> {
    let (_, admin) = super::admin(common).await?;
    let kek = admin.keks.keyring().active().clone();
    let mut custodians = Custodians::new(&admin, &common.share_file);
    if matches!(admin.keks.soft(&kek), Err(crate::crypto::kek::WrapError::Sealed(_))) {
        custodians.collect(&kek)?;
    }
    // The key must be the one that opens the data keys, or the split would be of no use.
    admin.keys.open_only().await.context("opening the data keys with the key that is to be split")?;
    admin.record_shares().await.context("recording the shares in the audit trail")?;
    Ok(admin)
}
