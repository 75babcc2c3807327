//! The figures as a picture: a panel for each size, a line for each kind, a mark for each engine, CPU time on a logarithmic scale.

use std::fmt::Write;

use crate::{
    page::{Size, thousands},
    record::Subject,
};

const NAMES: f64 = 110.0;
const PANEL: f64 = 300.0;
const GAP: f64 = 48.0;
const LINE: f64 = 22.0;
const HEAD: f64 = 74.0;
const FOOT: f64 = 40.0;
/// The scale, in powers of ten of a microsecond: from 0.1 ms to 1 s.
const POWERS: std::ops::RangeInclusive<i32> = 2..=6;

const OURS: &str = "#b5482f";
const TANTIVY: &str = "#5b8c3a";
const POSTGRES: &str = "#1f6f8b";

/// Draws all sizes.
pub(crate) fn svg(sizes: &[Size<'_>]) -> String {
    let kinds = sizes.iter().map(Size::kinds).max_by_key(Vec::len).unwrap_or_default();
    let width = NAMES + sizes.len() as f64 * (PANEL + GAP);
    let height = HEAD + kinds.len() as f64 * LINE + FOOT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    legend(&mut svg);
    for (at, kind) in kinds.iter().enumerate() {
        text(&mut svg, (NAMES - 10.0, line(at) + 4.0), "end", "#222", kind);
    }
    for (at, size) in sizes.iter().enumerate() {
        panel(&mut svg, NAMES + at as f64 * (PANEL + GAP), size, &kinds);
    }
    svg + "</svg>\n"
}

fn legend(svg: &mut String) {
    let mut at = NAMES;
    for (colour, filled, name) in
        [(OURS, true, "Rookery"), (OURS, false, "before"), (TANTIVY, true, "plain tantivy"), (POSTGRES, true, "Postgres")]
    {
        mark(svg, (at + 5.0, 20.0), colour, filled);
        text(svg, (at + 15.0, 24.5), "start", "#222", name);
        at += 40.0 + 7.5 * name.len() as f64;
    }
}

fn panel(svg: &mut String, left: f64, size: &Size<'_>, kinds: &[&str]) {
    let (first, last) = (f64::from(*POWERS.start()), f64::from(*POWERS.end()));
    let x = |cpu_us: f64| left + PANEL * ((cpu_us.log10().clamp(first, last) - first) / (last - first));
    text(svg, (left, 52.0), "start", "#222", &format!("{} documents", thousands(size.documents as f64)));
    let bottom = line(kinds.len()) - LINE / 2.0;
    for (power, label) in POWERS.zip(["0.1", "1", "10", "100", "1,000 ms"]) {
        let at = x(10f64.powi(power));
        add(svg, format_args!("<line x1=\"{at:.1}\" y1=\"62\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"#ddd\"/>"));
        text(svg, (at, bottom + 18.0), "middle", "#666", label);
    }
    for (at, kind) in kinds.iter().enumerate() {
        let y = line(at);
        let points = [
            (size.now(Subject::Postgres, kind), POSTGRES, true),
            (size.now(Subject::Tantivy, kind), TANTIVY, true),
            (size.first(kind), OURS, false),
            (size.now(Subject::Rookery, kind), OURS, true),
        ];
        let places: Vec<f64> = points.iter().filter_map(|(figures, ..)| Some(x(figures.as_ref()?.cpu_us))).collect();
        let (from, to) = (places.iter().copied().fold(f64::MAX, f64::min), places.iter().copied().fold(0.0, f64::max));
        if from < to {
            add(svg, format_args!("<line x1=\"{from:.1}\" y1=\"{y:.1}\" x2=\"{to:.1}\" y2=\"{y:.1}\" stroke=\"#bbb\"/>"));
        }
        for (figures, colour, filled) in points {
            if let Some(figures) = figures {
                mark(svg, (x(figures.cpu_us), y), colour, filled);
            }
        }
    }
}

fn line(at: usize) -> f64 {
    HEAD + at as f64 * LINE
}

fn mark(svg: &mut String, (x, y): (f64, f64), colour: &str, filled: bool) {
    let fill = if filled { colour } else { "white" };
    add(
        svg,
        format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"),
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, what: &str) {
    add(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{what}</text>"));
}

fn add(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").expect("a string grows");
}
