//! What goes wrong around processes while they run: links between two of them are cut, and their clocks jump.
//!
//! Both need something of the machine; where that is missing they say so, and do nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Cuts links by dropping datagrams between two ports, in a network namespace of this test's own.
pub(crate) struct Links {
    can_cut: bool,
    cut: BTreeSet<(u16, u16)>,
}

impl Links {
    pub(crate) fn new() -> Self {
        let links = Self {
            can_cut: is_alone() && load("").is_ok(),
            cut: BTreeSet::new(),
        };
        if !links.can_cut {
            println!(
                "LINKS ARE NOT CUT: that takes root, nftables and a network namespace with nothing but loopback, as .ci/run makes it"
            );
        }
        links
    }

    pub(crate) const fn can_cut(&self) -> bool {
        self.can_cut
    }

    /// Nothing passes any more between two UDP ports.
    pub(crate) fn cut(&mut self, one: u16, other: u16) {
        self.cut.insert((one, other));
        self.load();
    }

    /// Everything does again.
    pub(crate) fn mend(&mut self, one: u16, other: u16) {
        self.cut.remove(&(one, other));
        self.load();
    }

    fn load(&self) {
        let rule = |(from, to)| format!("udp sport {from} udp dport {to} drop\n");
        let rules: String = self
            .cut
            .iter()
            .flat_map(|&(one, other)| [(one, other), (other, one)].map(rule))
            .collect();
        load(&rules).unwrap();
    }
}

/// Whether nobody else's packets can be meant.
fn is_alone() -> bool {
    const HEADINGS: usize = 2;
    let interfaces = fs::read_to_string("/proc/self/net/dev");
    interfaces.is_ok_and(|text| text.lines().skip(HEADINGS).count() == 1)
}

/// Replaces all rules by these.
fn load(rules: &str) -> Result<(), String> {
    const TABLE: &str = "table inet lapwing_faults";
    let chain = format!("chain input {{\ntype filter hook input priority 0;\n{rules}}}");
    let all = format!("{TABLE}\ndelete {TABLE}\n{TABLE} {{\n{chain}\n}}\n");
    let nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut nft = nft.map_err(|error| error.to_string())?;
    let written = nft.stdin.take().map(|mut stdin| stdin.write_all(all.as_bytes()));
    written.transpose().map_err(|error| error.to_string())?;
    let ended = nft.wait_with_output().map_err(|error| error.to_string())?;
    if ended.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&ended.stderr).into_owned())
    }
}

/// Clocks that can be set while a process runs: libfaketime, which reads where its clock stands from a file.
#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    library: PathBuf,
    folder: PathBuf,
}

impl Clocks {
    /// `None` where libfaketime is not installed.
    pub(crate) fn new(folder: &Path) -> Option<Self> {
        let under = fs::read_dir("/usr/lib").ok()?.flatten();
        let library = under
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .find(|path| path.exists());
        if library.is_none() {
            println!("CLOCKS ARE NOT SET: libfaketime is not installed; apt-get install faketime");
        }
        Some(Self {
            library: library?,
            folder: folder.to_owned(),
        })
    }

    /// Sets the clock of a process, which reads that within a second.
    pub(crate) fn set(&self, name: &str, seconds: i64) {
        fs::write(self.file(name), format!("{seconds:+}\n")).unwrap();
    }

    /// A process that is started so has a clock of its own. What it measures durations with is left alone, as where
    /// somebody sets a clock.
    pub(crate) fn give(&self, name: &str, command: &mut Command) {
        if !self.file(name).exists() {
            self.set(name, 0);
        }
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.file(name))
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.clock"))
    }
}
