//! A page that shows a comparison by itself: the chart and the table, nothing loaded from anywhere.

use crate::cli::output::Table;

/// The page as HTML.
pub(super) fn html(svg: &str, table: &Table) -> String {
    let mut rows = String::new();
    for (index, row) in table.cells().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        let cells: String = row
            .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)))
            .collect();
        rows += &format!("<tr>{cells}</tr>\n");
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>lapwing simulate</title>\n\
         <style>\n:root {{ color-scheme: light dark; --ink: #1d1d1b; --line: #d8d5cc; }}\n\
         @media (prefers-color-scheme: dark) {{ :root {{ --ink: #f0eee6; --line: #3b3a36; }} body {{ background: #131312; }} }}\n\
         body {{ font: 15px system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }}\n\
         svg {{ width: 100%; height: auto; }}\n\
         table {{ border-collapse: collapse; margin-top: 1rem; }}\n\
         th, td {{ text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line); }}\n\
         th:first-child, td:first-child {{ text-align: left; }}\n</style>\n\
         <h1>lapwing simulate</h1>\n{svg}\n<table>\n{rows}</table>\n</html>\n"
    )
}

/// Text that cannot become markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Align;

    #[test]
    fn what_stands_in_a_cell_cannot_become_markup() {
        let mut table = Table::new([("name", Align::Left)]);
        table.row(["<b>&".to_owned()]);
        let page = html("<svg/>", &table);
        assert!(page.contains("<td>&lt;b&gt;&amp;</td>") && page.contains("<th>name</th>"));
    }
}
