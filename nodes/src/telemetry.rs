//! Logs, panics and metrics of the process: installed once, before anything else happens.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{self, IsTerminal, Write},
    panic::{self, PanicHookInfo},
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use thiserror::Error;
use tracing::{Level, Metadata, Subscriber, error};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::filter_fn,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::config::{Log, LogFilter, LogFormat, Mismatch};

/// Bounds of the histograms of times, in seconds: fine where requests should be, coarse up to the request timeout.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

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
    Ok(recorder().install_recorder()?)
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
    tracing_subscriber::registry().with(filter).with(filter_fn(bearable)).with(lines)
}

/// Keeps the actor libraries quiet, whatever the filter says: at `debug`, ractor_cluster formats every frame; and
/// ractor enters a span at `info` around every poll of every actor.
fn bearable(metadata: &Metadata<'_>) -> bool {
    let library = metadata.target().split("::").next().unwrap_or_default();
    match library {
        "ractor" | "ractor_cluster" => metadata.is_event() && *metadata.level() <= Level::INFO,
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
    use std::sync::Mutex;

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
    fn the_actor_libraries_stay_at_info() {
        let lines = written("trace", Format::Human { colours: false }, || {
            debug!(target: "ractor_cluster::net::session", "a frame");
            info!(target: "ractor_cluster::node", "a peer");
            debug!(target: "rookery", "ours");
        });
        assert!(!lines.contains("a frame"), "{lines}");
        assert!(lines.contains("a peer") && lines.contains("ours"), "{lines}");
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
