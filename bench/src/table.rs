//! Tables in Markdown, aligned so that they are read as they stand, too.

/// A table with these heads and rows.
#[must_use]
pub fn markdown(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let width = |text: &String| text.chars().count();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            std::iter::once(&head)
                .chain(&rows)
                .filter_map(|row| row.get(column))
                .map(width)
                .max()
                .unwrap_or(0)
                .max(3)
        })
        .collect();
    let mut text = String::new();
    let mut push = |row: &[String]| {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("| {cell:width$} "));
        }
        text.push_str("|\n");
    };
    push(&head);
    push(
        &widths
            .iter()
            .map(|width| "-".repeat(*width))
            .collect::<Vec<_>>(),
    );
    for row in &rows {
        push(row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["a".to_owned(), "µs".to_owned()],
            vec!["longer".to_owned(), "2".to_owned()],
        ];
        assert_eq!(
            markdown(&["x", "y"], rows),
            "| x      | y   |\n| ------ | --- |\n| a      | µs  |\n| longer | 2   |\n"
        );
    }
}
