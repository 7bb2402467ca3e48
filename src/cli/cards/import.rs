//! `cardvault cards import`
//!
//! One thread reads and parses; batches of lines are stored by tasks; what became of them is written in the
//! file's order. Nothing but these few batches is in memory, however long the file is.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::{mpsc, oneshot};

use crate::base::fault::FieldFault;
use crate::base::ids::GatewayAccount;
use crate::base::json::ObjectWriter;
use crate::config::Config;
use crate::model::import::{MALFORMED, TOO_LARGE, read_line};
use crate::ops::Vault;
use crate::ops::audit::{acting, actor};
use crate::ops::error::OpError;
use crate::ops::import::{Importer, Numbered, Taken};
use crate::ops::patience::patiently;

use super::super::keys::{self, Common};
use super::super::told_to_stop;
use super::checkpoint::{Checkpoint, Counts};
use super::lines::{Line, Lines};
use super::progress::{Shown, Step};
use super::purge::is_told;
use super::{REPORT_USES, merchant, recorded, vault};

/// Refused lines that are told on the terminal where no file takes them.
const TOLD: u64 = 20;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Whose cards they are.
    #[arg(long)]
    merchant: String,
    /// The file: a card on each line, JSON; `-` reads standard input. docs/import.md tells the members.
    file: PathBuf,
    /// Write here which card each line has become: line, externalId, cardId, agreementIds; JSON lines.
    #[arg(long, value_name = "FILE")]
    mapping: Option<PathBuf>,
    /// Write here which lines were refused and why; JSON lines, without anything of the line itself.
    #[arg(long, value_name = "FILE")]
    refused: Option<PathBuf>,
    /// Keep here how far it is, so that an import that was cut off goes on from there, its output files too.
    /// Without it, it begins anew, finds what is there, and ends the same.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Lines that are stored in one transaction.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Batches that are stored at once [default: 4 with PostgreSQL, 1 with SQLite].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    parallel: Option<u8>,
    /// Milliseconds between batches, for servers to write in [default: 0 with PostgreSQL, 10 with SQLite].
    #[arg(long)]
    pause_ms: Option<u64>,
    /// Print progress and result as lines of JSON.
    #[arg(long)]
    json: bool,
    /// Only read the file and tell what would be refused; nothing is stored.
    #[arg(long, conflicts_with_all = ["mapping", "checkpoint"])]
    dry_run: bool,
}

/// Lines that were read together, and how far the reader was then.
struct Batch {
    lines: Vec<Numbered>,
    external_ids: Vec<Option<String>>,
    number: u64,
    offset: u64,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    // What only reads its file needs no key, and makes none in a vault that has none yet.
    let (config, admin) = match args.dry_run {
        true => keys::admin(&args.common).await?,
        false => keys::opened_to_seal(&args.common).await?,
    };
    let importer = importer(&config, &args.merchant)?;
    let vault = Arc::new(vault(&config, admin)?);
    let mut source = Source::open(&args)?;
    let mut outputs = Outputs::open(&args, &source.begin)?;
    let mut shown = Shown::new(args.json, "lines");
    if args.dry_run {
        let done = import(&vault, &importer, &args, &mut source, &mut outputs, &mut shown).await?;
        vault.db.close().await;
        return told(&done, &args, &shown, "dryRun");
    }
    let about = if args.file == Path::new("-") { "standard input" } else { "file" };
    let work = async {
        let done = import(&vault, &importer, &args, &mut source, &mut outputs, &mut shown).await?;
        let counts = &done.counts;
        let said = format!(
            "{}; {} cards and {} agreements new, {} lines refused",
            if done.is_cut_off { "interrupted" } else { "done" },
            counts.new_cards,
            counts.new_agreements,
            counts.refused_lines
        );
        Ok((done, said))
    };
    let done = recorded(&vault, "cards.import", about, Some(&importer.merchant), work).await?;
    if !done.is_cut_off
        && let Some(path) = &args.checkpoint
    {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    told(&done, &args, &shown, if done.is_cut_off { "interrupted" } else { "done" })
}

fn importer(config: &Config, name: &str) -> anyhow::Result<Importer> {
    let merchant = merchant(config, name)?;
    let section = config.merchant.iter().find(|section| section.name == name);
    let gateway = section
        .and_then(|section| config.gateway.iter().find(|gateway| gateway.name == section.gateway))
        .with_context(|| format!("merchant.{name}.gateway: no [[gateway]] has this name"))?;
    let account: GatewayAccount = gateway.account()?;
    Ok(Importer { merchant, account })
}

/// What an import came to.
struct Done {
    counts: Counts,
    line: u64,
    offset: u64,
    size: Option<u64>,
    is_cut_off: bool,
}

impl Done {
    fn step(&self) -> Step {
        let counts = &self.counts;
        Step {
            done: counts.lines,
            at: self.offset,
            of: self.size,
            counts: vec![
                ("newCards", counts.new_cards),
                ("knownCards", counts.known_cards),
                ("newAgreements", counts.new_agreements),
                ("knownAgreements", counts.known_agreements),
                ("refused", counts.refused_lines),
            ],
        }
    }
}

fn told(done: &Done, args: &Args, shown: &Shown, event: &str) -> anyhow::Result<()> {
    shown.end(event, &done.step(), &[]);
    let counts = &done.counts;
    if shown.is_for_people() && args.dry_run {
        println!("{} lines: {} would be refused; nothing was stored", counts.lines, counts.refused_lines);
    } else if shown.is_for_people() {
        println!(
            "{} lines: {} cards are new, {} were here; {} agreements are new, {} were here; {} lines were refused",
            counts.lines,
            counts.new_cards,
            counts.known_cards,
            counts.new_agreements,
            counts.known_agreements,
            counts.refused_lines
        );
    }
    if done.is_cut_off {
        bail!("interrupted after line {}; run the same again, and it ends the same", done.line);
    }
    Ok(())
}

/// Where the lines come from.
struct Source {
    input: Option<Box<dyn Read + Send>>,
    /// How far it came before; for a file, which file it is.
    begin: Checkpoint,
    size: Option<u64>,
}

impl Source {
    fn open(args: &Args) -> anyhow::Result<Self> {
        if args.file == Path::new("-") {
            if args.checkpoint.is_some() {
                bail!("--checkpoint needs a file: standard input cannot be read from its middle");
            }
            return Ok(Self {
                input: Some(Box::new(std::io::stdin())),
                begin: Checkpoint::default(),
                size: None,
            });
        }
        let path = args.file.display();
        let mut file = File::open(&args.file).with_context(|| format!("reading {path}"))?;
        let told = file.metadata().with_context(|| format!("reading {path}"))?;
        if told.is_dir() {
            bail!("{path} is a folder");
        }
        if !told.file_type().is_fifo() && told.mode() & 0o077 != 0 {
            eprintln!("cardvault: others can read {path}, and it holds card numbers: run `chmod 600 {path}`");
        }
        let fresh = Checkpoint::of_file(&file, &args.merchant).with_context(|| format!("reading {path}"))?;
        let known = match &args.checkpoint {
            Some(_) if told.file_type().is_fifo() => {
                bail!("--checkpoint needs a file that can be read from its middle")
            }
            Some(place) => Checkpoint::load(place, &fresh)?,
            None => None,
        };
        let begin = known.unwrap_or(fresh);
        if begin.offset > 0 {
            file.seek(SeekFrom::Start(begin.offset)).with_context(|| format!("reading {path}"))?;
        }
        Ok(Self { input: Some(Box::new(file)), size: (told.len() > 0).then_some(told.len()), begin })
    }
}

/// A file that grows by lines, and how long it is.
struct Output {
    file: BufWriter<File>,
    length: u64,
}

impl Output {
    /// Opens it with its first `keep` bytes; what comes after them belongs to lines that are done again.
    fn open(path: &Path, keep: u64) -> anyhow::Result<Self> {
        let what = || format!("writing {}", path.display());
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(what)?;
        if file.metadata().with_context(what)?.len() < keep {
            bail!(
                "{} is shorter than the checkpoint says; remove the checkpoint, and the import begins anew",
                path.display()
            );
        }
        // Not every output has a length: a pipe, a terminal.
        if file.metadata().with_context(what)?.is_file() {
            file.set_len(keep).with_context(what)?;
            file.seek(SeekFrom::End(0)).with_context(what)?;
        }
        Ok(Self { file: BufWriter::new(file), length: keep })
    }

    fn line(&mut self, line: &str) -> std::io::Result<()> {
        self.length += u64::try_from(line.len() + 1).unwrap_or(u64::MAX);
        writeln!(self.file, "{line}")
    }
}

/// Where it is told what became of the lines.
struct Outputs {
    mapping: Option<Output>,
    refused: Option<Output>,
    told: u64,
}

impl Outputs {
    fn open(args: &Args, begin: &Checkpoint) -> anyhow::Result<Self> {
        let open =
            |path: &Option<PathBuf>, keep| path.as_deref().map(|path| Output::open(path, keep)).transpose();
        Ok(Self {
            mapping: open(&args.mapping, begin.mapping)?,
            refused: open(&args.refused, begin.refused)?,
            told: 0,
        })
    }

    fn refuse(&mut self, number: u64, faults: &[FieldFault]) -> std::io::Result<()> {
        let errors: Vec<String> = faults
            .iter()
            .map(|fault| {
                ObjectWriter::default().string("pointer", &fault.pointer).string("code", fault.code).finish()
            })
            .collect();
        let line = ObjectWriter::default()
            .raw("line", &number.to_string())
            .raw("errors", &format!("[{}]", errors.join(",")))
            .finish();
        match &mut self.refused {
            Some(output) => output.line(&line)?,
            None if self.told < TOLD => eprintln!("refused {line}"),
            None if self.told == TOLD => {
                eprintln!("further refused lines are not told here: use --refused FILE")
            }
            None => {}
        }
        self.told += 1;
        Ok(())
    }

    fn map(&mut self, taken: &Taken, external_id: Option<&str>) -> std::io::Result<()> {
        let Some(output) = &mut self.mapping else { return Ok(()) };
        let agreements: Vec<String> = taken.agreements.iter().map(|id| format!("\"{id}\"")).collect();
        let line = ObjectWriter::default()
            .raw("line", &taken.number.to_string())
            .string_if("externalId", external_id)
            .string("cardId", taken.card_id.as_str())
            .raw("new", if taken.is_new { "true" } else { "false" })
            .raw("agreementIds", &format!("[{}]", agreements.join(",")))
            .finish();
        output.line(&line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        for output in [&mut self.mapping, &mut self.refused].into_iter().flatten() {
            output.file.flush()?;
        }
        Ok(())
    }

    fn lengths(&self) -> (u64, u64) {
        let length = |output: &Option<Output>| output.as_ref().map_or(0, |output| output.length);
        (length(&self.mapping), length(&self.refused))
    }
}

async fn import(
    vault: &Arc<Vault>,
    importer: &Importer,
    args: &Args,
    source: &mut Source,
    outputs: &mut Outputs,
    shown: &mut Shown,
) -> anyhow::Result<Done> {
    let is_sqlite = vault.db.is_sqlite();
    let parallel = usize::from(args.parallel.unwrap_or(if is_sqlite { 1 } else { 4 }));
    let pause = Duration::from_millis(args.pause_ms.unwrap_or(if is_sqlite { 10 } else { 0 }));
    let begin = source.begin.clone();
    let mut done = Done {
        counts: begin.counts,
        line: begin.line,
        offset: begin.offset,
        size: source.size,
        is_cut_off: false,
    };
    let Some(input) = source.input.take() else { bail!("the input was read before") };
    let (send, mut batches) = mpsc::channel(parallel);
    let lines = Lines::new(input, begin.line, begin.offset);
    let (size, clock) = (usize::from(args.batch), vault.clock.clone());
    // A thread of its own, which the end of the process does not wait for: a pipe may say nothing for ever.
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        // Nobody waits for it where the import was cut off.
        let _ = end.send(read(lines, size, || clock.now(), &send));
    });
    let mut stop = std::pin::pin!(told_to_stop());
    let mut reported = tokio::time::Instant::now();
    loop {
        let mut wave = Vec::with_capacity(parallel);
        tokio::select! {
            biased;
            () = &mut stop => {
                done.is_cut_off = true;
                return Ok(done);
            }
            first = batches.recv() => wave.extend(first),
        }
        while wave.len() < parallel
            && let Ok(next) = batches.try_recv()
        {
            wave.push(next);
        }
        if wave.is_empty() {
            break;
        }
        if args.dry_run {
            for batch in &wave {
                write(batch, &[], outputs, &mut done.counts)?;
            }
        } else {
            store(vault, importer, &mut wave, outputs, &mut done.counts).await?;
        }
        if let Some(last) = wave.last() {
            (done.line, done.offset) = (last.number, last.offset);
        }
        outputs.flush().context("writing what became of the lines")?;
        if let Some(path) = &args.checkpoint {
            let (mapping, refused) = outputs.lengths();
            let (line, offset, counts) = (done.line, done.offset, done.counts);
            Checkpoint { line, offset, mapping, refused, counts, ..begin.clone() }.store(path)?;
        }
        shown.step(&done.step());
        if !args.dry_run && reported.elapsed() >= REPORT_USES {
            patiently(|| vault.keys.report_uses()).await?;
            reported = tokio::time::Instant::now();
        }
        if is_told(&mut stop, pause).await {
            done.is_cut_off = true;
            return Ok(done);
        }
    }
    ended.await.context("reading the input")?.context("reading the input")?;
    Ok(done)
}

/// Stores batches at once, each in a transaction of its own, and writes what became of them in their order.
async fn store(
    vault: &Arc<Vault>,
    importer: &Importer,
    wave: &mut Vec<Batch>,
    outputs: &mut Outputs,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let storing: Vec<_> = wave
        .drain(..)
        .map(|batch| {
            let (vault, importer) = (Arc::clone(vault), importer.clone());
            tokio::spawn(acting(actor(), async move {
                let taken = store_batch(&vault, &importer, &batch.lines).await;
                (batch, taken)
            }))
        })
        .collect();
    // All of them end before the first failure is told: a transaction is never dropped half-way.
    let mut ended = Vec::with_capacity(storing.len());
    for task in storing {
        ended.push(task.await.context("storing a batch")?);
    }
    for (batch, taken) in ended {
        let taken = taken.with_context(|| {
            format!("storing the lines up to {}; run the same again, and it ends the same", batch.number)
        })?;
        write(&batch, &taken, outputs, counts)?;
        wave.push(batch);
    }
    Ok(())
}

async fn store_batch(vault: &Vault, importer: &Importer, lines: &[Numbered]) -> Result<Vec<Taken>, OpError> {
    patiently(|| async move {
        vault.keys.follow().await?;
        vault.import_batch(importer, lines).await
    })
    .await
}

fn write(batch: &Batch, taken: &[Taken], outputs: &mut Outputs, counts: &mut Counts) -> anyhow::Result<()> {
    let mut taken = taken.iter().peekable();
    for (line, external_id) in batch.lines.iter().zip(&batch.external_ids) {
        counts.lines += 1;
        let written = match &line.read {
            Err(faults) => {
                counts.refused_lines += 1;
                outputs.refuse(line.number, faults)
            }
            Ok(_) => match taken.next_if(|taken| taken.number == line.number) {
                Some(taken) => {
                    *(if taken.is_new { &mut counts.new_cards } else { &mut counts.known_cards }) += 1;
                    counts.new_agreements += taken.new_agreements;
                    let all = u64::try_from(taken.agreements.len()).unwrap_or(u64::MAX);
                    counts.known_agreements += all.saturating_sub(taken.new_agreements);
                    outputs.map(taken, external_id.as_deref())
                }
                None => Ok(()),
            },
        };
        written.context("writing what became of the lines")?;
    }
    Ok(())
}

/// Reads and parses until the end, or until nobody wants more.
fn read(
    mut lines: Lines<Box<dyn Read + Send>>,
    size: usize,
    now: impl Fn() -> crate::base::clock::Millis,
    send: &mpsc::Sender<Batch>,
) -> std::io::Result<()> {
    loop {
        let mut batch = Batch {
            lines: Vec::with_capacity(size),
            external_ids: Vec::with_capacity(size),
            number: 0,
            offset: 0,
        };
        let mut is_end = false;
        while batch.lines.len() < size {
            let read = match lines.next()? {
                None => {
                    is_end = true;
                    break;
                }
                Some(Line::TooLong) => Err(vec![TOO_LARGE]),
                Some(Line::Bytes(bytes)) if bytes.iter().all(u8::is_ascii_whitespace) => continue,
                Some(Line::Bytes(bytes)) => match std::str::from_utf8(bytes) {
                    Ok(text) => read_line(text, now()),
                    Err(_) => Err(vec![MALFORMED]),
                },
            };
            batch.external_ids.push(read.as_ref().ok().and_then(|line| line.external_id.clone()));
            batch.lines.push(Numbered { number: lines.number(), read });
        }
        (batch.number, batch.offset) = (lines.number(), lines.offset());
        if !batch.lines.is_empty() && send.blocking_send(batch).is_err() {
            return Ok(());
        }
        if is_end {
            return Ok(());
        }
    }
}
