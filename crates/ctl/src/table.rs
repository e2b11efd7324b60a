//! Tables as Go's tabwriter lays them out, which is what `istioctl` and `kubectl` print and scripts cut.
//!
//! Invariant: a column is as wide as its widest cell plus the gap; the last column is never padded.

/// Rows of cells under a header.
#[derive(Debug, Clone)]
pub struct Table {
    gap: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this header; `gap` spaces stand between columns.
    pub fn new<const N: usize>(gap: usize, header: [&str; N]) -> Self {
        Self { gap, rows: vec![header.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(|c| width(c) + self.gap).collect();
        for row in &self.rows {
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if at + 1 == row.len() { writeln!(f, "{cell}")? } else { write!(f, "{cell:<width$}")? }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(5, ["NAME", "STATUS"]);
        table.row(["a-long-name", "OK"]);
        table.row(["b", ""]);
        assert_eq!(table.to_string(), "NAME            STATUS\na-long-name     OK\nb               \n");
    }
}
