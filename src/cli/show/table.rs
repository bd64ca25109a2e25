//! Tables, and what one thing is as a list of fields.

use super::{Paint, Palette, visible};
use crate::cli::{Failure, say};

/// A column's heading, and to which side its cells keep.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Column {
    name: &'static str,
    is_right: bool,
}

impl Column {
    /// For words.
    pub(in crate::cli) const fn left(name: &'static str) -> Self {
        Self { name, is_right: false }
    }

    /// For numbers.
    pub(in crate::cli) const fn right(name: &'static str) -> Self {
        Self { name, is_right: true }
    }
}

/// A text and its colour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Cell {
    text: String,
    paint: Option<Paint>,
}

impl Cell {
    pub(in crate::cli) fn new(text: impl AsRef<str>) -> Self {
        Self { text: visible(text.as_ref()), paint: None }
    }

    pub(in crate::cli) fn painted(paint: Paint, text: impl AsRef<str>) -> Self {
        Self { paint: Some(paint), ..Self::new(text) }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// A table that is printed a page at a time: a column grows with what comes, and never shrinks again.
#[derive(Debug)]
pub(in crate::cli) struct Table {
    columns: Vec<Column>,
    widths: Vec<usize>,
    is_begun: bool,
    palette: Palette,
}

impl Table {
    pub(in crate::cli) fn new(columns: &[Column]) -> Self {
        let widths = columns.iter().map(|column| column.name.len()).collect();
        Self { columns: columns.to_vec(), widths, is_begun: false, palette: Palette::for_stdout() }
    }

    /// Prints rows, below the head if they are the first. Nothing of an empty table.
    pub(in crate::cli) fn print(&mut self, rows: &[Vec<Cell>]) -> Result<(), Failure> {
        self.lines(rows).iter().try_for_each(|line| say(line))
    }

    fn lines(&mut self, rows: &[Vec<Cell>]) -> Vec<String> {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut lines = Vec::new();
        if !self.is_begun && !rows.is_empty() {
            self.is_begun = true;
            let head: Vec<_> = self.columns.iter().map(|column| Cell::painted(Paint::Dim, column.name)).collect();
            lines.push(self.line(&head));
        }
        lines.extend(rows.iter().map(|row| self.line(row)));
        lines
    }

    fn line(&self, row: &[Cell]) -> String {
        let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or_default();
        let mut line = String::new();
        for (place, (cell, (column, width))) in row.iter().zip(self.columns.iter().zip(&self.widths)).enumerate() {
            if place > last {
                break;
            }
            if place > 0 {
                line.push_str("  ");
            }
            let text = match (column.is_right, place == last) {
                (true, _) => format!("{:>width$}", cell.text),
                (false, true) => cell.text.clone(),
                (false, false) => format!("{:<width$}", cell.text),
            };
            line.push_str(&cell.paint.map_or(text.clone(), |paint| self.palette.paint(paint, &text)));
        }
        line
    }
}

/// What one thing is: a name and a value each. Those without a value are left out.
#[derive(Debug, Default)]
pub(in crate::cli) struct Fields(Vec<(&'static str, Cell)>);

impl Fields {
    pub(in crate::cli) fn add(&mut self, name: &'static str, value: impl Into<Cell>) {
        let value = value.into();
        if !value.text.is_empty() {
            self.0.push((name, value));
        }
    }

    /// One for each value; the name stands before the first alone.
    pub(in crate::cli) fn add_all<T: AsRef<str>>(&mut self, name: &'static str, values: impl IntoIterator<Item = T>) {
        for (place, value) in values.into_iter().enumerate() {
            self.add(if place == 0 { name } else { "" }, Cell::new(value));
        }
    }

    pub(in crate::cli) fn print(&self) -> Result<(), Failure> {
        let palette = Palette::for_stdout();
        self.lines(palette).iter().try_for_each(|line| say(line))
    }

    fn lines(&self, palette: Palette) -> Vec<String> {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let line = |(name, value): &(&'static str, Cell)| {
            let name = palette.paint(Paint::Dim, &format!("{name:<width$}"));
            format!("{name}  {}", value.paint.map_or(value.text.clone(), |paint| palette.paint(paint, &value.text)))
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<Cell> {
        cells.iter().map(Cell::from).collect()
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them_and_lines_end_with_their_words() {
        let mut table = Table::new(&[Column::left("id"), Column::right("count"), Column::left("note")]);
        table.palette = Palette::plain();
        assert!(table.lines(&[]).is_empty(), "no head above nothing");
        let lines = table.lines(&[row(&["long one", "7", "a\u{1b}[2Jb"]), row(&["x", "1234567", ""])]);
        assert_eq!(lines, ["id          count  note", "long one        7  a\\u{1b}[2Jb", "x         1234567"]);
        assert_eq!(table.lines(&[row(&["y", "1", "é"])]), ["y               1  é"]);
    }

    #[test]
    fn fields_without_a_value_are_left_out() {
        let mut fields = Fields::default();
        fields.add("id", "ep_1");
        fields.add("nothing", "");
        fields.add_all("headers", ["a: 1", "b: 2"]);
        assert_eq!(fields.lines(Palette::plain()), ["id       ep_1", "headers  a: 1", "         b: 2"]);
    }
}
