//! The programs that do the work: whether they are there, and what they say.

use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::LabError;

/// What a lab runs, and the Debian package that has it.
const TOOLS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("nsenter", "util-linux"),
    ("sh", "dash"),
    ("find", "findutils"),
];

/// Whether all of them are installed, the caller is root and TAP devices exist.
pub(crate) fn check() -> Result<(), LabError> {
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    for (program, package) in TOOLS {
        if !env::split_paths(&path).any(|folder| folder.join(program).exists()) {
            return Err(LabError::Missing { program, package });
        }
    }
    if Path::new("/dev/net/tun").exists() {
        Ok(())
    } else {
        Err(LabError::NoTap)
    }
}

/// Runs a program on `input`, in the namespace of the calling thread.
pub(crate) fn feed(program: &'static str, arguments: &[&str], input: &str) -> Result<(), LabError> {
    let run = || -> io::Result<_> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // A program that has given up reads no more; what it says is worth more than that.
        let fed = child
            .stdin
            .take()
            .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        if output.status.success() {
            fed?;
        }
        Ok(output)
    };
    let output = run().map_err(LabError::system("run one of the programs that lay out a lab"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Refused { program, said })
}
