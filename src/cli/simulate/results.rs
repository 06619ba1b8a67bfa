//! The folder of a comparison: a file for each run, named by all that the run follows from, and what is drawn of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lapwing_train::simulate::Run;

use super::chart;
use super::page;
use crate::cli::failure::Failure;
use crate::cli::output::Table;

/// Runs that are kept.
#[derive(Debug)]
pub(super) struct Results {
    folder: PathBuf,
}

impl Results {
    /// The results in a folder, which is made if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(folder)
            .map_err(|error| Failure::new(format!("make the folder {}", folder.display()), error))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A run that was kept; one that cannot be read is as good as none.
    pub(super) fn read(&self, key: &str) -> Option<Run> {
        let text = fs::read_to_string(self.file(key)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Keeps a run, whole or not at all.
    pub(super) fn keep(&self, key: &str, run: &Run) -> Result<(), Failure> {
        let text = serde_json::to_string(run).map_err(|error| Failure::new("write JSON", error))?;
        self.write(&format!("{key}.json"), &(text + "\n"))
    }

    /// Draws the runs, beside their table.
    pub(super) fn draw(&self, runs: &[Run], table: &Table) -> Result<(), Failure> {
        let svg = chart::svg(runs);
        self.write("chart.svg", &svg)?;
        self.write("index.html", &page::html(&svg, table))
    }

    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let file = self.folder.join(name);
        let part = self.folder.join(format!("{name}.part"));
        let written = || -> io::Result<()> {
            fs::write(&part, text)?;
            fs::rename(&part, &file)
        };
        written().map_err(|error| Failure::new(format!("write {}", file.display()), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::simulate::chart::tests::run;
    use lapwing_base::Algorithm;

    #[test]
    fn a_run_that_is_kept_reads_back_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let results = Results::open(&folder.path().join("new")).unwrap();
        // Fractions of two, which JSON keeps to the last bit.
        let run = run(Algorithm::Saps, 0.75);
        assert_eq!(results.read("a"), None);
        results.keep("a", &run).unwrap();
        assert_eq!(results.read("a"), Some(run));
        fs::write(results.file("a"), "{").unwrap();
        assert_eq!(results.read("a"), None);
    }
}
