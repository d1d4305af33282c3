//! How do words and numbers become a page?

use std::fmt::Write as _;

use crate::output;

/// Text as HTML shows it, within elements and attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A number with so many places, with a true minus and a comma for every three digits; a dash where there is none.
pub(super) fn fixed(value: f64, places: usize) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let text = format!("{:.places$}", value.abs());
    let (whole, part) = text.split_at(text.find('.').unwrap_or(text.len()));
    // What is too large for a count is told without commas.
    let whole = whole.parse().map_or_else(|_too_large| whole.to_owned(), output::count);
    format!("{}{whole}{part}", if value < 0.0 { "−" } else { "" })
}

/// A table with its caption above it. The first column is text, the others are numbers; cells are escaped.
pub(super) fn table(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("<table><caption>{}</caption><thead><tr>", escape(caption));
    for name in head {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(name));
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let element = if column == 0 { "th scope=\"row\"" } else { "td" };
            let end = if column == 0 { "th" } else { "td" };
            let _ = write!(out, "<{element}>{}</{end}>", escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table>");
    out
}

/// A picture with its caption.
pub(super) fn figure(svg: &str, caption: &str) -> String {
    format!("<figure>{svg}<figcaption>{}</figcaption></figure>", escape(caption))
}

/// A whole page; `title` is escaped, `body` is not.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
        escape(title)
    )
}

const STYLE: &str = include_str!("report.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_files_cannot_become_markup() {
        let evil = "<script>alert('x')</script> & \"y\"";
        for made in [table(evil, &[evil], &[vec![evil.into()]]), figure("", evil), page(evil, "")] {
            assert!(!made.contains("<script") && made.contains("&lt;script&gt;"), "{made}");
        }
    }

    #[test]
    fn numbers_have_a_true_minus_and_may_be_missing() {
        assert_eq!((fixed(-0.5, 2), fixed(f64::NAN, 2)), ("−0.50".to_owned(), "–".to_owned()));
        assert_eq!((fixed(1_234_567.891, 2), fixed(-1e6, 0)), ("1,234,567.89".to_owned(), "−1,000,000".to_owned()));
        assert_eq!((fixed(999.96, 1), fixed(1e300, 1).len()), ("1,000.0".to_owned(), 303));
    }
}
