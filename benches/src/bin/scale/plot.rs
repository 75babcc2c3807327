//! The result as a picture: times of one node over nodes, beside the line of perfect scaling.

use std::fmt::Write;

use crate::Kind;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 380.0;
const MARGIN: f64 = 56.0;
const COLOURS: [&str; 3] = ["#1f6f8b", "#b5482f", "#5b8c3a"];

/// Draws what each kind reached.
pub(crate) fn svg(series: &[(Kind, Vec<(usize, f64)>)], quota_percent: u32) -> String {
    let nodes_max = series.iter().flat_map(|(_, points)| points).map(|(nodes, _)| *nodes).max().unwrap_or(1) as f64;
    let x = |nodes: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * (nodes - 1.0) / (nodes_max - 1.0).max(1.0);
    let y = |times: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * times / nodes_max;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"28\" font-size=\"15\">Requests carried, in times of one node ({quota_percent} % of a core each)</text>\n"
    );
    let mut add = |line: String| writeln!(svg, "{line}").expect("a string grows");
    for tick in 0..=nodes_max as usize {
        let at = y(tick as f64);
        add(format!("<line x1=\"{MARGIN}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>", WIDTH - MARGIN));
        add(format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>", MARGIN - 8.0, at + 4.0));
    }
    add(format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#999\" stroke-dasharray=\"5 4\"/>",
        x(1.0),
        y(1.0),
        x(nodes_max),
        y(nodes_max)
    ));
    for (at, (kind, points)) in series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let path: Vec<String> = points.iter().map(|(nodes, times)| format!("{:.1},{:.1}", x(*nodes as f64), y(*times))).collect();
        add(format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>", path.join(" ")));
        for (nodes, times) in points {
            let (cx, cy) = (x(*nodes as f64), y(*times));
            add(format!("<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{colour}\"/>"));
            if at == 0 {
                add(format!("<text x=\"{cx:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{nodes}</text>", HEIGHT - MARGIN + 20.0));
            }
        }
        let last = points.last().map_or(0.0, |(_, times)| *times);
        let name = format!("{kind:?}").to_lowercase();
        add(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}: {last:.2}</text>",
            MARGIN + 16.0,
            MARGIN + 20.0 + 18.0 * at as f64
        ));
    }
    add(format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">nodes</text>", WIDTH / 2.0, HEIGHT - 14.0));
    svg + "</svg>\n"
}
