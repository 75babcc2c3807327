//! What a search costs: our engine beside plain tantivy and Postgres, on the same documents and the same questions.
//!
//! `cargo run --release -p rookery-benches --bin search` measures 20,000 documents, `--documents 300000` as many as it says;
//! `--hostile` asks what is meant to hurt. Every question is asked once, of an index whose merges have ended, in this process:
//! what HTTP and the way between nodes add, the load bench knows. CPU time is what counts, for the machine may do other work.
//! `--write docs/search.md` keeps the figures, in `docs/search.jsonl`, and makes the page and its picture of all that are kept.

mod hostile;
mod measure;
mod page;
mod plot;
mod postgres;
mod queries;
mod record;
mod subjects;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Parser;
use rookery_actors::search::index::Document;
use rookery_benches::{
    process,
    search::{
        corpus::Corpus,
        engine::{BATCH_DOCUMENTS, Engine},
        plain::{Layout, Plain},
        posts::Posts,
    },
};

use self::{
    measure::measure,
    page::table,
    postgres::Postgres,
    queries::{QueryKind, Vocabulary},
    record::{Built, Record, Subject},
    subjects::{Ours, Tantivy},
};

/// Documents up to which Postgres is asked as much as the others: above, its questions take minutes.
const POSTGRES_IN_FULL_MAX: u64 = 20_000;
/// Questions of each kind for it above that.
const POSTGRES_QUESTIONS: usize = 100;

/// Measures the CPU time of searches.
#[derive(Parser)]
#[command(name = "search", version)]
struct Options {
    /// Documents in the index.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    documents: u64,
    /// Different questions of each kind, as far as there are so many.
    #[arg(long, default_value_t = 2_000)]
    queries: usize,
    /// Kinds to ask, by their names; all unless told.
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// Posts as JSON Lines, in place of those that are found beside the repository.
    #[arg(long, value_name = "FILE")]
    posts: Option<PathBuf>,
    /// Leaves Postgres out.
    #[arg(long)]
    without_postgres: bool,
    /// Leaves plain tantivy out.
    #[arg(long)]
    without_plain: bool,
    /// Asks so many hostile searches in place of the others (10,000 unless told).
    #[arg(long, value_name = "SEARCHES", num_args = 0..=1, default_missing_value = "10000")]
    hostile: Option<usize>,
    /// Prints so many of the documents that are made of the input, and ends.
    #[arg(long, value_name = "DOCUMENTS")]
    show: Option<usize>,
    /// Where the indexes are made, in folders that are taken away afterwards; the system's folder for such unless told.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Under which name the figures are kept; the last one is what the page is about, the others are what was before.
    #[arg(long, default_value = "now")]
    label: String,
    /// Writes the page of all figures that are kept, these among them.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Writes the page anew and measures nothing.
    #[arg(long, requires = "write")]
    write_only: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if cfg!(debug_assertions) {
        eprintln!("NOT OPTIMISED: these figures say nothing; run with --release");
    }
    if let Some(page) = options.write.as_ref().filter(|_| options.write_only) {
        return page::write(page, &[]);
    }
    let folder = match &options.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let corpus = Corpus::of(Posts::read(options.posts.as_deref())?);
    if let Some(count) = options.show {
        // The last ones: the first are the input itself.
        for n in options.documents.saturating_sub(count as u64)..options.documents {
            println!("{}", serde_json::to_string(&corpus.document(n))?);
        }
        return Ok(());
    }
    let began = Instant::now();
    let vocabulary = Vocabulary::of(&corpus, options.documents);
    eprintln!(
        "{} documents have {} words; counted in {:.0} s",
        options.documents,
        vocabulary.len(),
        began.elapsed().as_secs_f64()
    );
    let mut bench = Bench { records: vec![Record::machine(&options.label, options.documents)], options, corpus, vocabulary };
    let ours = bench.our_index(folder.path())?;
    if let Some(searches) = bench.options.hostile {
        return hostile::run(&ours, &bench.vocabulary, searches);
    }
    bench.ask_all(ours, folder.path())?;
    println!("{}", table(&bench.records));
    for record in &bench.records {
        println!("{}", serde_json::to_string(record)?);
    }
    match &bench.options.write {
        Some(page) => page::write(page, &bench.records),
        None => Ok(()),
    }
}

/// A run.
struct Bench {
    options: Options,
    corpus: Corpus,
    vocabulary: Vocabulary,
    records: Vec<Record>,
}

impl Bench {
    /// Makes our index and waits until its merges have ended.
    fn our_index(&mut self, folder: &Path) -> anyhow::Result<Engine> {
        let (cpu, began) = (process::own_cpu(), Instant::now());
        let before = anonymous_bytes();
        let mut engine = Engine::open(&folder.join("rookery"))?;
        self.in_batches(|batch| engine.apply(batch))?;
        let seconds = began.elapsed().as_secs_f64();
        engine.settle()?;
        self.built(Built {
            subject: Subject::Rookery,
            seconds,
            cpu_seconds: (process::own_cpu() - cpu).as_secs_f64(),
            bytes: engine.bytes_on_disk()?,
            segments: engine.segments()?,
            anonymous_bytes: anonymous_bytes().saturating_sub(before),
        });
        Ok(engine)
    }

    fn plain_index(&mut self, folder: &Path) -> anyhow::Result<Plain> {
        let (cpu, began) = (process::own_cpu(), Instant::now());
        let before = anonymous_bytes();
        let folder = folder.join("plain");
        let mut plain = Plain::create(&folder, Layout::TitleAndBody)?;
        self.in_batches(|batch| plain.add(batch))?;
        plain.finish()?;
        self.built(Built {
            subject: Subject::Tantivy,
            seconds: began.elapsed().as_secs_f64(),
            cpu_seconds: (process::own_cpu() - cpu).as_secs_f64(),
            bytes: bytes_in(&folder)?,
            segments: vec![plain.segments()?],
            anonymous_bytes: anonymous_bytes().saturating_sub(before),
        });
        Ok(plain)
    }

    fn postgres(&mut self) -> anyhow::Result<Postgres> {
        let began = Instant::now();
        let mut postgres = Postgres::start()?;
        self.in_batches(|batch| postgres.add(batch))?;
        postgres.finish()?;
        self.built(Built {
            subject: Subject::Postgres,
            seconds: began.elapsed().as_secs_f64(),
            cpu_seconds: postgres.cpu().as_secs_f64(),
            bytes: postgres.bytes()?,
            segments: Vec::new(),
            anonymous_bytes: 0,
        });
        Ok(postgres)
    }

    /// One engine after another, each with all the questions, so that none has the caches of the processor to share.
    fn ask_all(&mut self, ours: Engine, folder: &Path) -> anyhow::Result<()> {
        let kinds = self.kinds();
        for kind in &kinds {
            eprintln!("{}: {} questions", kind.name, kind.asks.len());
        }
        let mut ours = Ours::of(ours);
        self.ask(Subject::Rookery, &mut ours, &kinds, usize::MAX)?;
        drop(ours);
        if !self.options.without_plain {
            let mut plain = Tantivy(self.plain_index(folder)?);
            self.ask(Subject::Tantivy, &mut plain, &kinds, usize::MAX)?;
        }
        if !self.options.without_postgres {
            let in_full = self.options.documents <= POSTGRES_IN_FULL_MAX;
            let mut postgres = self.postgres()?;
            let at_most = if in_full { usize::MAX } else { POSTGRES_QUESTIONS };
            self.ask(Subject::Postgres, &mut postgres, &kinds, at_most)?;
            if let Some(mut spelling) = postgres.with_spelling()? {
                let misspelt: Vec<QueryKind> = kinds.into_iter().filter(QueryKind::is_misspelt).collect();
                self.ask(Subject::PostgresSpelling, &mut spelling, &misspelt, at_most)?;
            }
        }
        Ok(())
    }

    fn kinds(&self) -> Vec<QueryKind> {
        let wanted = &self.options.kinds;
        let kinds = queries::all(&self.corpus, &self.vocabulary, self.options.documents, self.options.queries);
        kinds.into_iter().filter(|kind| wanted.is_empty() || wanted.iter().any(|name| name == kind.name)).collect()
    }

    fn ask(
        &mut self,
        of: Subject,
        subject: &mut impl subjects::Searches,
        kinds: &[QueryKind],
        at_most: usize,
    ) -> anyhow::Result<()> {
        for ask in queries::warm_up(&self.corpus, self.options.documents) {
            let question = subject.prepare(&ask)?;
            subject.search(&question)?;
        }
        for kind in kinds {
            let asks = &kind.asks[..kind.asks.len().min(at_most)];
            let figures = measure(subject, asks)?;
            eprintln!("{of:?}, {}: {:.0} µs of CPU, {:.0} hits", kind.name, figures.cpu_us, figures.hits);
            self.records.push(Record::figures(&self.options.label, self.options.documents, of, kind.name, figures));
        }
        if of == Subject::Rookery {
            eprintln!("after the questions {} MB of anonymous memory in all", anonymous_bytes() >> 20);
        }
        Ok(())
    }

    fn built(&mut self, built: Built) {
        eprintln!("{built}");
        self.records.push(Record::built(&self.options.label, self.options.documents, built));
    }

    fn in_batches(&self, mut apply: impl FnMut(&[(u64, Document)]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(BATCH_DOCUMENTS);
        for document in self.corpus.documents(self.options.documents) {
            batch.push(document);
            if batch.len() == BATCH_DOCUMENTS {
                apply(&batch)?;
                batch.clear();
            }
        }
        if batch.is_empty() { Ok(()) } else { apply(&batch) }
    }
}

fn anonymous_bytes() -> u64 {
    process::anonymous_bytes(std::process::id())
}

fn bytes_in(folder: &Path) -> anyhow::Result<u64> {
    let sizes = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum()
}
