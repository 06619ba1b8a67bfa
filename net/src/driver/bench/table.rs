//! The rows of a run, each told to whoever waits for them as soon as it is there. Prints nothing.

use lapwing_base::Row;

/// Hears of each row as soon as it is measured.
pub type Told<'a> = &'a mut (dyn FnMut(&Row) + Send);

/// What was measured so far.
pub(super) struct Table<'a> {
    rows: Vec<Row>,
    told: Told<'a>,
}

impl<'a> Table<'a> {
    /// An empty one.
    pub(super) const fn new(told: Told<'a>) -> Self {
        Self {
            rows: Vec::new(),
            told,
        }
    }

    /// Takes the next row.
    pub(super) fn add(&mut self, row: Row) {
        (self.told)(&row);
        self.rows.push(row);
    }

    /// Takes rows that were measured together.
    pub(super) fn extend(&mut self, rows: impl IntoIterator<Item = Row>) {
        rows.into_iter().for_each(|row| self.add(row));
    }

    /// All of them.
    pub(super) fn into_rows(self) -> Vec<Row> {
        self.rows
    }
}
