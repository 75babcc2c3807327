//! Logs, panics and metrics of the process: installed once, before anything else happens.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    collections::HashMap,
    env,
    io::{self, IsTerminal, Write},
    panic::{self, PanicHookInfo},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use rookery_actors::episodes;
use thiserror::Error;
use tracing::{
    Event, Level, Metadata, Subscriber, error,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::filter_fn,
    fmt::{self, MakeWriter},
    layer::{Context, Filter, SubscriberExt},
    util::{SubscriberInitExt, TryInitError},
};

use crate::config::{Log, LogFilter, LogFormat, Mismatch};

/// Bounds of the histograms of times, in seconds: fine where requests should be, coarse up to the request timeout.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A line of a library is written once in this time.
const FOLD: Duration = Duration::from_secs(60);

/// How often histograms give back the memory of what nobody has asked for.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why telemetry is not in place.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// `RUST_LOG` is not a filter.
    #[error("RUST_LOG cannot be {value:?}: {source}")]
    Filter {
        /// Its value.
        value: String,
        /// What it should be.
        source: Mismatch,
    },
    /// Somebody else installed a logger first.
    #[error("logs are set up already")]
    Logs(#[from] TryInitError),
    /// There is no room for a thread.
    #[error("the thread that tells of what goes on cannot be started")]
    Thread(#[from] io::Error),
    /// Somebody else installed a metrics recorder first.
    #[error("metrics are set up already")]
    Metrics(#[from] BuildError),
}

/// Installs logs, the panic hook and the metrics recorder; the handle renders what `/metrics` answers.
///
/// Log lines go to stderr, so that what a command prints stays clean. `RUST_LOG` wins over the configured filter. With the
/// name of a `node`, every line says whose it is: several nodes may write to one place.
///
/// # Errors
/// A wrong `RUST_LOG`, or telemetry that is installed already.
pub fn install(log: &Log, node: Option<&str>) -> Result<PrometheusHandle, TelemetryError> {
    let terminal = io::stderr().is_terminal();
    let format = match log.format {
        LogFormat::Json => Format::Json,
        LogFormat::Auto if !terminal => Format::Json,
        LogFormat::Auto | LogFormat::Human => Format::Human { colours: terminal },
    };
    let filter = effective(&log.filter, env::var("RUST_LOG").ok())?;
    let mark = node.map(|node| format.mark(node)).unwrap_or_default();
    subscriber(&filter, format, Marked { mark: mark.into(), to: io::stderr }).try_init()?;
    panic::set_hook(Box::new(log_panic));
    // A thread of its own: it tells of what goes on also while the runtime is busy with just that.
    std::thread::Builder::new().name("episodes".to_owned()).spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            episodes::sweep();
        }
    })?;
    Ok(recorder().install_recorder()?)
}

/// Tells what is still to be told; the last thing before the process ends.
pub fn finish() {
    episodes::finish();
}

/// Keeps the metrics recorder's memory bounded, for as long as it is polled.
pub async fn keep_up(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Human { colours: bool },
    Json,
}

impl Format {
    /// What a line of a node begins with.
    fn mark(self, node: &str) -> String {
        match self {
            Format::Human { .. } => format!("{node} "),
            // A name needs no escape; the brace of the line's object is replaced.
            Format::Json => format!("{{\"node\":\"{node}\","),
        }
    }
}

/// Begins every line with a mark.
#[derive(Clone)]
struct Marked<W> {
    mark: Arc<str>,
    to: W,
}

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Marked<W> {
    type Writer = MarkedLine<'w, W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        MarkedLine { mark: &self.mark, to: self.to.make_writer() }
    }
}

/// One line: the subscriber writes each in one piece.
struct MarkedLine<'w, W> {
    mark: &'w str,
    to: W,
}

impl<W: Write> Write for MarkedLine<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.mark.is_empty() {
            return self.to.write(line);
        }
        let rest = if self.mark.starts_with('{') { line.strip_prefix(b"{").unwrap_or(line) } else { line };
        // In one piece, so that lines of several processes do not mix.
        self.to.write_all(&[self.mark.as_bytes(), rest].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn effective(configured: &LogFilter, rust_log: Option<String>) -> Result<LogFilter, TelemetryError> {
    match rust_log.filter(|value| !value.is_empty()) {
        Some(value) => value.parse().map_err(|source| TelemetryError::Filter { value, source }),
        None => Ok(configured.clone()),
    }
}

fn subscriber<W>(filter: &LogFilter, format: Format, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(filter.as_str()).expect("a LogFilter was parsed when it was made");
    // A line that cannot be written is lost. Told of by `eprintln!`, as it would be, it would panic there where it was logged:
    // on a full disk, or when the terminal has gone.
    let layer = fmt::layer().log_internal_errors(false);
    let lines = match format {
        Format::Human { colours } => layer.with_ansi(colours).with_writer(writer).boxed(),
        // Flat, so that a field is found under the dotted name that the code gives it.
        Format::Json => layer.json().flatten_event(true).with_span_list(false).with_writer(writer).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(filter_fn(bearable)).with(lines.with_filter(Folded::default()))
}

/// Whether a line is one of ours.
fn is_ours(target: &str) -> bool {
    target.starts_with("rookery")
}

/// Says what a library says over and over once a minute: it does not know that its line is the thousandth of an outage, of
/// which we tell ourselves.
#[derive(Default)]
struct Folded {
    /// When a line was last written, by where it comes from.
    written: Mutex<HashMap<Place, Instant>>,
}

/// Where a line comes from. Libraries that use `log` say it in fields.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct Place {
    target: String,
    line: u64,
}

impl Place {
    fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut place = Self { target: metadata.target().to_owned(), line: metadata.line().unwrap_or_default().into() };
        if place.target == "log" {
            event.record(&mut place);
        }
        place
    }
}

impl Visit for Place {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            value.clone_into(&mut self.target);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            self.line = value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Folded {
    fn is_news(&self, place: Place, now: Instant) -> bool {
        let mut written = self.written.lock().expect("no panic under this lock");
        let is_news = written.get(&place).is_none_or(|written| now.duration_since(*written) >= FOLD);
        if is_news {
            written.insert(place, now);
        }
        is_news
    }
}

impl<S: Subscriber> Filter<S> for Folded {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who wants to see everything asks for more than what goes wrong.
        if is_ours(metadata.target()) || *metadata.level() > Level::WARN {
            return true;
        }
        let place = Place::of(event);
        is_ours(&place.target) || self.is_news(place, Instant::now())
    }
}

/// Keeps the actor libraries quiet, whatever the filter says: at `debug`, ractor_cluster formats every frame; and
/// ractor enters a span at `info` around every poll of every actor.
fn bearable(metadata: &Metadata<'_>) -> bool {
    let library = metadata.target().split("::").next().unwrap_or_default();
    match library {
        "ractor" => metadata.is_event() && *metadata.level() <= Level::INFO,
        // Of a session that ends in order it warns four times, once with all that it knows; the links tell of theirs.
        "ractor_cluster" => metadata.is_event() && *metadata.level() <= Level::ERROR,
        // Every client hands us the same lines, and we say once what follows from them.
        "rdkafka" | "librdkafka" => false,
        // A merge whose segments went meanwhile "couldn't find segment", which a reindex makes normal.
        "tantivy" => *metadata.level() <= Level::ERROR,
        // Three lines for every migration of every database, each start: `rookery migrate` prints what it did.
        "refinery_core" => *metadata.level() <= Level::WARN,
        // What the server notices when it is asked for a table that is there.
        "tokio_postgres" => *metadata.level() <= Level::WARN,
        _ => true,
    }
}

/// Instead of the default hook, which would write a second, unstructured report.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    // Captured only if RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    error!(panic.location = location, panic.thread = thread, panic.backtrace = backtrace, "panicked at {location}: {message}");
}

fn recorder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .expect("the bounds are not empty")
}

#[cfg(test)]
mod tests {
    use tracing::{debug, info, info_span, subscriber::with_default};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(filter: &str, format: Format, logging: impl FnOnce()) -> String {
        let paper = Paper::default();
        let copy = paper.clone();
        let subscriber = subscriber(&filter.parse().unwrap(), format, move || copy.clone());
        with_default(subscriber, logging);
        String::from_utf8(paper.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_fields_keep_their_dotted_names() {
        let line = written("info", Format::Json, || {
            info!(post.id = %"p1", shard.id = 7, duration_ms = 3, "published post p1");
        });
        let line: serde_json::Value = serde_json::from_str(&line).expect("one JSON object");
        assert_eq!(line["post.id"], "p1");
        assert_eq!(line["shard.id"], 7);
        assert_eq!(line["message"], "published post p1");
    }

    #[test]
    fn the_lines_of_one_node_of_several_name_it() {
        let marked = |format: Format| {
            let paper = Paper::default();
            let copy = paper.clone();
            let to = Marked { mark: format.mark("n2").into(), to: move || copy.clone() };
            let filter = "info".parse().unwrap();
            with_default(subscriber(&filter, format, to), || info!(shard.id = 7, "a shard came"));
            String::from_utf8(paper.0.lock().unwrap().clone()).unwrap()
        };
        let line: serde_json::Value = serde_json::from_str(&marked(Format::Json)).expect("one JSON object");
        assert_eq!((&line["node"], &line["message"]), (&"n2".into(), &"a shard came".into()));
        let line = marked(Format::Human { colours: false });
        assert!(line.starts_with("n2 ") && line.ends_with("a shard came shard.id=7\n"), "{line}");
    }

    #[test]
    fn a_human_line_reads_alone() {
        let line = written("info", Format::Human { colours: false }, || {
            info!(post.id = %"p1", "published post p1");
        });
        assert!(line.contains("INFO") && line.contains("published post p1 post.id=p1"), "{line}");
    }

    #[test]
    fn a_library_that_says_the_same_over_and_over_is_heard_once() {
        let lines = written("info", Format::Human { colours: false }, || {
            for n in 0..100 {
                tracing::warn!(target: "hyper::client", n, "the connection was reset");
                tracing::warn!(target: "rookery_actors::episodes", "ours");
            }
            tracing::warn!(target: "hyper::server", "another line");
        });
        assert_eq!((lines.matches("was reset").count(), lines.matches("ours").count()), (1, 100), "{lines}");
        assert!(lines.contains("another line"), "{lines}");
    }

    #[test]
    fn what_the_clients_of_kafka_and_the_links_say_of_themselves_we_say() {
        let lines = written("trace", Format::Human { colours: false }, || {
            error!(target: "librdkafka", "all brokers are down");
            error!(target: "rdkafka::client", "all brokers are down");
            tracing::warn!(target: "ractor_cluster::node", "a session with everything in it");
            tracing::warn!(target: "tantivy::indexer::segment_manager", "couldn't find segment");
        });
        assert_eq!(lines, "");
    }

    #[test]
    fn the_actor_libraries_stay_at_info() {
        let lines = written("trace", Format::Human { colours: false }, || {
            debug!(target: "ractor_cluster::net::session", "a frame");
            info!(target: "ractor::supervision", "an actor");
            debug!(target: "rookery", "ours");
        });
        assert!(!lines.contains("a frame"), "{lines}");
        assert!(lines.contains("an actor") && lines.contains("ours"), "{lines}");
    }

    #[test]
    fn the_spans_of_actors_are_never_entered() {
        written("info", Format::Json, || {
            assert!(info_span!(target: "ractor::actor", "Actor").is_disabled());
            assert!(!info_span!(target: "rookery", "ours").is_disabled());
        });
    }

    #[test]
    fn rust_log_wins_over_the_configuration() {
        let filter = effective(&"info".parse().unwrap(), Some("debug".to_owned())).unwrap();
        assert_eq!(filter.as_str(), "debug");
    }

    #[test]
    fn an_empty_rust_log_is_none() {
        let filter = effective(&"warn".parse().unwrap(), Some(String::new())).unwrap();
        assert_eq!(filter.as_str(), "warn");
    }

    #[test]
    fn a_wrong_rust_log_names_the_nearest_level() {
        let error = effective(&"info".parse().unwrap(), Some("debgu".to_owned())).unwrap_err();
        assert!(error.to_string().contains("did you mean `debug`?"), "{error}");
    }

    #[test]
    fn a_panic_is_one_line() {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(log_panic));
        let lines = written("info", Format::Human { colours: false }, || {
            let _ = panic::catch_unwind(|| panic!("told to"));
        });
        panic::set_hook(previous);
        assert_eq!(lines.matches("told to").count(), 1, "{lines}");
        assert!(lines.contains("telemetry.rs"), "{lines}");
    }

    #[test]
    fn times_become_histograms() {
        let recorder = recorder().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::histogram!("rookery_test_seconds").record(0.003));
        let text = handle.render();
        assert!(text.contains(r#"rookery_test_seconds_bucket{le="0.005"} 1"#), "{text}");
    }
}
