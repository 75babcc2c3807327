//! Markdown to HTML that is safe to put into a page.

use std::sync::LazyLock;

use ammonia::Builder;
use pulldown_cmark::{Options, Parser, html};

/// Renders `markdown` and keeps only harmless HTML: no scripts, styles or frames, links `nofollow`, images over HTTP(S).
pub fn render(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let mut raw = String::with_capacity(markdown.len() * 3 / 2);
    html::push_html(&mut raw, Parser::new_ext(markdown, options));
    SANITISER.clean(&raw).to_string()
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

    proptest! {
        #[test]
        fn no_markdown_brings_a_script_or_a_handler(text in "(<script>|<img src=x onerror=|\\[|\\]|\\(javascript:|`|>|\"|[a-z ]){0,20}") {
            let html = render(&text);
            prop_assert!(!html.contains("<script"), "{html}");
            prop_assert!(!html.contains("<img src=\"x\" onerror"), "{html}");
        }
    }
}
