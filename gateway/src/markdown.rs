//! Markdown to HTML that is safe to put into a page.

use std::sync::LazyLock;

use ammonia::Builder;
use pulldown_cmark::{Event, Options, Parser, html};

/// Quotes and lists within each other, and emphasis in them. The parser of HTML looks through all that is open, again and
/// again: 40,000 nested quotes took it 20 s.
const DEPTH_MAX: usize = 32;
/// Tags that an author may write as such.
const RAW_TAGS_MAX: usize = 1_000;
/// Such tags times blocks: a `<b>` that nobody closes is opened anew in every block that follows.
const RAW_TAGS_IN_BLOCKS_MAX: usize = 100_000;

/// Renders `markdown` and keeps only harmless HTML: no scripts, styles or frames, links `nofollow`, images over HTTP(S).
///
/// What is nested deeper than 32 levels stands at the last level; a text with far too many tags of its own loses them.
/// So it takes time in proportion to the length of the text.
pub fn render(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let events: Vec<_> = Parser::new_ext(markdown, options).collect();
    let keeps_tags = may_keep_tags(&events);
    let events = events.into_iter().filter(|event| keeps_tags || raw_html(event).is_none());
    let mut raw = String::with_capacity(markdown.len() * 3 / 2);
    html::push_html(&mut raw, no_deeper(events));
    SANITISER.clean(&raw).to_string()
}

/// Leaves out what begins and ends below the deepest level, and keeps what is in it.
fn no_deeper<'a>(events: impl Iterator<Item = Event<'a>>) -> impl Iterator<Item = Event<'a>> {
    let mut depth = 0;
    events.filter(move |event| match event {
        Event::Start(_) => {
            depth += 1;
            depth <= DEPTH_MAX
        }
        Event::End(_) => {
            depth -= 1;
            depth < DEPTH_MAX
        }
        _ => true,
    })
}

fn may_keep_tags(events: &[Event<'_>]) -> bool {
    let tags: usize = events.iter().filter_map(raw_html).map(|raw| raw.matches('<').count()).sum();
    let blocks = events.iter().filter(|event| matches!(event, Event::Start(_))).count();
    tags <= RAW_TAGS_MAX && tags * blocks <= RAW_TAGS_IN_BLOCKS_MAX
}

/// HTML as its author wrote it.
fn raw_html<'e>(event: &'e Event<'_>) -> Option<&'e str> {
    match event {
        Event::Html(raw) | Event::InlineHtml(raw) => Some(raw),
        _ => None,
    }
}

static SANITISER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let mut builder = Builder::default();
    builder
        .url_schemes(["http", "https", "mailto"].into())
        // A relative address would point into our own site.
        .url_relative(ammonia::UrlRelative::Deny)
        .link_rel(Some("nofollow noopener noreferrer ugc"));
    builder
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn emphasis_becomes_html() {
        assert_eq!(render("*hello*"), "<p><em>hello</em></p>\n");
    }

    #[test]
    fn a_script_is_dropped() {
        assert_eq!(render("a<script>alert(1)</script>b").trim(), "<p>ab</p>");
    }

    #[test]
    fn an_image_of_a_javascript_address_loses_it() {
        assert!(!render("![x](javascript:alert(1))").contains("javascript"));
    }

    #[test]
    fn a_link_is_nofollow() {
        assert!(render("[x](https://example.org)").contains("nofollow"));
    }

    #[test]
    fn an_author_may_write_tags() {
        assert_eq!(render("H<sub>2</sub>O"), "<p>H<sub>2</sub>O</p>\n");
    }

    #[test]
    fn what_is_nested_too_deeply_keeps_its_words() {
        let html = render(&format!("{} deep\n\nafter", ">".repeat(500)));
        assert_eq!(html.matches("<blockquote>").count(), DEPTH_MAX);
        assert!(html.contains("deep") && html.trim_end().ends_with("<p>after</p>"), "{html}");
    }

    /// Bodies of the greatest length that are as expensive as we know how to make them.
    #[test]
    fn no_body_takes_long_or_grows() {
        let whole = |piece: &str| piece.repeat(40_000 / piece.len());
        let halves = |first: &str, second: &str| first.repeat(20_000 / first.len()) + &second.repeat(20_000 / second.len());
        let unclosed: String = (0..2_000).map(|n| format!("<b {n}>")).collect();
        let bodies = [
            whole(">"),
            whole("- "),
            (0..280).map(|depth| format!("{}- x\n", " ".repeat(depth))).collect(),
            whole("<div>"),
            whole("<b>"),
            whole("[a]("),
            whole("*a **b "),
            whole("|a"),
            whole("`"),
            halves("<b>", "x\n\n"),
            halves("<i>", "\n\n- x"),
            unclosed + &whole("x\n\n")[..20_000],
            halves("<table><tr>", "x<td>"),
            halves("<a href=x>", "</p><p>"),
        ];
        for body in bodies {
            let began = std::time::Instant::now();
            let html = render(&body);
            let (took, start) = (began.elapsed(), &body[..20]);
            assert!(took.as_secs() < 5, "{start}: {took:?}");
            assert!(html.len() < 100 * body.len(), "{start}: {} bytes", html.len());
        }
    }

    proptest! {
        #[test]
        fn no_markdown_brings_a_script_or_a_handler(text in "(<script>|<img src=x onerror=|\\[|\\]|\\(javascript:|`|>|\"|[a-z ]){0,20}") {
            let html = render(&text);
            prop_assert!(!html.contains("<script"), "{html}");
            prop_assert!(!html.contains("<img src=\"x\" onerror"), "{html}");
        }
    }
}
