//! The figures as tables, and the page of all that are kept.

use std::{collections::BTreeSet, fmt::Write, fs, path::Path};

use crate::{
    measure::Figures,
    plot,
    queries::{BANDS, is_misspelt},
    record::{Record, Subject, What},
};

/// The row that is the mean of the bands.
const ONE_WORD: &str = "one word";

/// Adds the records of a run to those that are kept beside the page, and writes the page and its plot anew.
pub(crate) fn write(page: &Path, run: &[Record]) -> anyhow::Result<()> {
    let lines = page.with_extension("jsonl");
    let kept = fs::read_to_string(&lines).unwrap_or_default();
    let mut records: Vec<Record> = kept.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    records.retain(|old| !run.iter().any(|new| new.replaces(old)));
    records.extend(run.iter().cloned());
    let text: Vec<String> = records.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    fs::write(&lines, text.join("\n") + "\n")?;
    let picture = page.with_extension("svg");
    fs::write(&picture, plot::svg(&Sizes::of(&records).0))?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let head = format!(
        "# What a search costs\n\n\
         Written by `cargo run --release -p rookery-benches --bin search -- --write docs/search.md` from the figures in \
         [{lines}]({lines}), which it adds to; by hand nothing is changed here.\n\n\
         Every question of a kind is another one and is asked once, of an index in which all merges have ended, without any cache \
         of answers; an answer is a page of JSON with its highlights and the exact number of hits. Plain tantivy is one index of \
         one segment with a field for titles and one for bodies, `TopDocs`, `Count` and `SnippetGenerator`. Postgres has a GIN \
         index, `websearch_to_tsquery` with `or`, `ts_rank`, `ts_headline` after `LIMIT`, and an exact count. What a misspelt word \
         may mean Postgres only looks up where its column says pg_trgm. Figures are CPU µs for one question, the mean, unless they \
         say something else; for Postgres those of the process that serves the connection.\n\n\
         ![CPU of a search by kind, for each engine]({picture})\n\n",
        lines = name(&lines),
        picture = name(&picture)
    );
    Ok(fs::write(page, head + &table(&records))?)
}

/// A table for each size.
pub(crate) fn table(records: &[Record]) -> String {
    let mut text = String::new();
    for size in Sizes::of(records).0 {
        let _ = writeln!(text, "{}", size.table());
    }
    text.trim_end().to_owned() + "\n"
}

/// All sizes, the smallest first.
struct Sizes<'a>(Vec<Size<'a>>);

/// The records of one size.
pub(crate) struct Size<'a> {
    /// How many documents.
    pub documents: u64,
    records: Vec<&'a Record>,
    /// The states of our engine, the latest last.
    labels: Vec<&'a str>,
}

impl<'a> Sizes<'a> {
    fn of(records: &'a [Record]) -> Self {
        let sizes: BTreeSet<u64> = records.iter().map(|record| record.documents).collect();
        Self(sizes.into_iter().map(|documents| Size::of(documents, records)).collect())
    }
}

impl<'a> Size<'a> {
    fn of(documents: u64, all: &'a [Record]) -> Self {
        let records: Vec<&Record> = all.iter().filter(|record| record.documents == documents).collect();
        let mut labels: Vec<&str> = Vec::new();
        for record in &records {
            if !labels.contains(&record.label.as_str()) {
                labels.push(&record.label);
            }
        }
        Self { documents, records, labels }
    }

    /// The kinds in the order in which they were asked, after the mean of the first ones.
    pub(crate) fn kinds(&self) -> Vec<&'a str> {
        let mut kinds = vec![ONE_WORD];
        for record in &self.records {
            if let What::Figures { kind, .. } = &record.what
                && !kinds.contains(&kind.as_str())
            {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// The figures of our engine as it was before, the oldest first.
    fn before(&self) -> &[&'a str] {
        self.labels.split_last().map_or(&[], |(_, before)| before)
    }

    /// What a kind costs now; of others than ours the last that was measured.
    pub(crate) fn now(&self, subject: Subject, kind: &str) -> Option<Figures> {
        self.labels.iter().rev().find_map(|label| self.figures(label, subject, kind))
    }

    /// What it cost our engine as it was measured first, if that was another one.
    pub(crate) fn first(&self, kind: &str) -> Option<Figures> {
        self.figures(self.before().first()?, Subject::Rookery, kind)
    }

    fn figures(&self, label: &str, subject: Subject, kind: &str) -> Option<Figures> {
        if kind == ONE_WORD {
            let bands: Vec<Figures> = BANDS.iter().filter_map(|band| self.figures(label, subject, band)).collect();
            return mean(&bands);
        }
        self.records.iter().find_map(|record| match &record.what {
            What::Figures { subject: of, kind: like, figures } if (*of, like.as_str()) == (subject, kind) => {
                (record.label == label).then_some(*figures)
            }
            _ => None,
        })
    }

    fn table(&self) -> String {
        let mut text = format!("## {} documents\n\n", thousands(self.documents as f64));
        for record in &self.records {
            if let What::Machine { machine, load_average } = &record.what {
                let _ = writeln!(text, "`{}`: {machine}; load {load_average:.1} before it began.\n", record.label);
            }
        }
        let before: String = self.before().iter().map(|label| format!(" {label} |")).collect();
        let columns = self.before().len() + 10;
        let now = self.labels.last().copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "| | questions | hits |{before} **{now}** | p50 µs | p99 µs | plain tantivy | Postgres | pg_trgm | Postgres / ours |"
        );
        let _ = writeln!(text, "|---|{}", "--:|".repeat(columns - 1));
        for kind in self.kinds() {
            text += &self.row(kind);
        }
        text.push('\n');
        text += &self.ratios();
        text += "| index | made in s | CPU s | MB | segments | memory MB |\n|---|--:|--:|--:|---|--:|\n";
        for record in &self.records {
            if let What::Built(built) = &record.what {
                let _ = writeln!(
                    text,
                    "| {} ({}) | {:.1} | {:.1} | {:.1} | {} | {} |",
                    built.subject.as_str(),
                    record.label,
                    built.seconds,
                    built.cpu_seconds,
                    built.bytes as f64 / f64::from(1 << 20),
                    built.segments.iter().map(usize::to_string).collect::<Vec<_>>().join(" + "),
                    built.anonymous_bytes >> 20
                );
            }
        }
        text
    }

    fn row(&self, kind: &str) -> String {
        let cpu = |figures: Option<Figures>| figures.map_or_else(String::new, |it| thousands(it.cpu_us));
        let before: String =
            self.before().iter().map(|label| format!(" {} |", cpu(self.figures(label, Subject::Rookery, kind)))).collect();
        let ours = self.now(Subject::Rookery, kind);
        let of_ours = |figure: fn(Figures) -> f64| ours.map_or_else(String::new, |ours| thousands(figure(ours)));
        let ratio = self.ratio(kind).map_or_else(String::new, |ratio| format!("{ratio:.1} ×"));
        format!(
            "| {kind} | {} | {} |{before} **{}** | {} | {} | {} | {} | {} | {ratio} |\n",
            ours.map_or(0, |ours| ours.queries),
            of_ours(|it| it.hits),
            of_ours(|it| it.cpu_us),
            of_ours(|it| it.p50_us),
            of_ours(|it| it.p99_us),
            cpu(self.now(Subject::Tantivy, kind)),
            cpu(self.now(Subject::Postgres, kind)),
            cpu(self.now(Subject::PostgresSpelling, kind)),
        )
    }

    /// How many times as much Postgres takes, where it does the same work: for misspelt words with pg_trgm.
    fn ratio(&self, kind: &str) -> Option<f64> {
        let subject = if is_misspelt(kind) { Subject::PostgresSpelling } else { Subject::Postgres };
        Some(self.now(subject, kind)?.cpu_us / self.now(Subject::Rookery, kind)?.cpu_us)
    }

    fn ratios(&self) -> String {
        // The bands stand in it as the one kind that they are together.
        let kinds = self.kinds().into_iter().filter(|kind| !BANDS.contains(kind));
        let ratios: Vec<(f64, &str)> = kinds.filter_map(|kind| Some((self.ratio(kind)?, kind))).collect();
        let Some((least, kind)) = ratios.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)) else {
            return String::new();
        };
        let geometric = (ratios.iter().map(|(ratio, _)| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        format!(
            "Postgres takes {geometric:.1} times as much, the geometric mean of the kinds; the least is {least:.1} ({kind}).\n\n"
        )
    }
}

/// Of several kinds, each counting the same.
fn mean(of: &[Figures]) -> Option<Figures> {
    let mean = |figure: fn(&Figures) -> f64| of.iter().map(figure).sum::<f64>() / of.len() as f64;
    (!of.is_empty()).then(|| Figures {
        queries: of.iter().map(|it| it.queries).sum(),
        cpu_us: mean(|it| it.cpu_us),
        p50_us: mean(|it| it.p50_us),
        p99_us: of.iter().map(|it| it.p99_us).fold(0.0, f64::max),
        hits: mean(|it| it.hits),
        bytes: mean(|it| it.bytes),
    })
}

/// 12,345 for 12345.4; with one digit behind the point below 10.
pub(crate) fn thousands(number: f64) -> String {
    if number < 10.0 && number.fract() != 0.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cpu_us: f64) -> Figures {
        Figures { queries: 1, cpu_us, p50_us: 1.0, p99_us: 2.0, hits: 3.0, bytes: 4.0 }
    }

    fn record(label: &str, subject: Subject, kind: &str, cpu_us: f64) -> Record {
        Record::figures(label, 20_000, subject, kind, figures(cpu_us))
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0.0, 7.25, 999.0, 12_345.4, 1e6].map(thousands), ["0", "7.2", "999", "12,345", "1,000,000"]);
    }

    #[test]
    fn one_word_is_the_mean_of_its_bands_and_what_was_before_stands_beside_what_is() {
        let records = [
            record("before", Subject::Rookery, BANDS[0], 30.0),
            record("before", Subject::Rookery, BANDS[1], 10.0),
            record("before", Subject::Postgres, BANDS[1], 40.0),
            record("after", Subject::Rookery, BANDS[0], 20.0),
            record("after", Subject::Rookery, BANDS[1], 10.0),
        ];
        let table = table(&records);
        assert!(table.contains("| one word | 2 | 3 | 20 | **15** |"), "{table}");
        assert!(table.contains("| mid word | 1 | 3 | 10 | **10** | 1 | 2 |  | 40 |  | 4.0 × |"), "{table}");
    }

    #[test]
    fn a_run_replaces_the_figures_of_its_label_and_keeps_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("search.md");
        write(&page, &[record("before", Subject::Rookery, "typo", 30.0)]).unwrap();
        write(&page, &[record("after", Subject::Rookery, "typo", 20.0)]).unwrap();
        write(&page, &[record("after", Subject::Rookery, "typo", 5.5)]).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.contains("| typo | 1 | 3 | 30 | **5.5** |"), "{text}");
        assert_eq!(fs::read_to_string(page.with_extension("jsonl")).unwrap().lines().count(), 2);
        assert!(page.with_extension("svg").is_file());
    }
}
