//! What a machine is like without any network: its disk, its clock, its settings for going out.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use lapwing_base::{Multiaddr, innermost};
use lapwing_net::{Proxy, ProxySettingError, Rung};

use super::super::folder::Folder;
use super::finding::Finding;
use super::now;

/// An append that a vote waits for; the disks of the slowest machines that people use take about 30 ms.
const SYNC_SLOW: Duration = Duration::from_millis(50);

/// A certificate, a vote's deadline or a log line is off by less than this without harm.
const SKEW_MAX: f64 = 5.0;

/// How long an append takes that has to be on the disk where a node keeps its data.
pub(super) fn disk(data_dir: Option<&Path>) -> (Finding, Option<Duration>) {
    let Some(dir) = data_dir else {
        let found = "there is no folder for a node's data, since this user has no home directory";
        return (Finding::bad("disk", found, "give one with --data-dir DIR"), None);
    };
    // A node makes its folder when it starts; until then its disk is that of the folder above.
    let there = dir.ancestors().find(|dir| dir.try_exists().unwrap_or(true));
    let there = there.filter(|dir| !dir.as_os_str().is_empty());
    let there = there.unwrap_or_else(|| Path::new("."));
    match append(there) {
        Ok(each) => {
            let place = if there == dir {
                dir.display().to_string()
            } else {
                format!("{} ({} is not there yet)", there.display(), dir.display())
            };
            let took = each.as_secs_f64() * 1e3;
            let found = format!("an append of 4 KiB is on the disk after {took:.1} ms in {place}");
            let finding = if each <= SYNC_SLOW {
                Finding::good("disk", found)
            } else {
                let advice = "put --data-dir on another disk; every vote and every commit waits for this";
                Finding::fair("disk", found, advice)
            };
            (finding, Some(each))
        }
        Err(error) => {
            let found = format!("{} cannot be written to: {error}", there.display());
            let advice = "let this user write there, or give another folder with --data-dir DIR";
            (Finding::bad("disk", found, advice), None)
        }
    }
}

fn append(dir: &Path) -> io::Result<Duration> {
    const APPENDS: u32 = 32;
    let folder = Folder::new(dir, "lapwing-doctor", false)?;
    let mut file = std::fs::File::create(folder.path().join("appends"))?;
    let begun = now();
    for _ in 0..APPENDS {
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
    }
    Ok(now().duration_since(begun) / APPENDS)
}

/// Compares the clock with a gateway's, which tells whole seconds. The skew is that of ours: above zero when ahead.
pub(super) async fn clock(url: &str) -> (Finding, Option<f64>) {
    match skew(url).await {
        Ok(skew) => {
            let which = if skew < 0.0 { "behind" } else { "ahead of" };
            let found = format!("{:.1} s {which} the gateway's", skew.abs());
            let finding = if skew.abs() <= SKEW_MAX {
                Finding::good("clock", found)
            } else {
                let advice = "set the clock (timedatectl set-ntp true); logs and expiries disagree otherwise";
                Finding::fair("clock", found, advice)
            };
            (finding, Some(skew))
        }
        Err(why) => {
            let found = format!("not compared: {url} does not tell the time ({why})");
            let advice = "look at this machine's clock, or ask another gateway";
            (Finding::fair("clock", found, advice), None)
        }
    }
}

async fn skew(url: &str) -> Result<f64, String> {
    let health = format!("{}/health", url.trim_end_matches('/'));
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build();
    let client = client.map_err(|error| innermost(&error))?;
    let begun = now();
    let answer = client.get(health).send().await;
    let answer = answer.map_err(|error| innermost(&error))?;
    let date = answer.headers().get(reqwest::header::DATE);
    let date = date
        .and_then(|date| date.to_str().ok())
        .ok_or("its answer has no date")?;
    let theirs = httpdate::parse_http_date(date).map_err(|_| "its date cannot be read")?;
    let theirs = theirs + Duration::from_millis(500);
    let ours = wall_clock() - now().duration_since(begun) / 2;
    Ok(match ours.duration_since(theirs) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    })
}

/// What the environment says of a proxy, and which of these addresses go through it. What it is set to may hold a
/// password, and is not shown.
pub(super) fn proxy(
    proxy: &Result<Option<Proxy>, ProxySettingError>,
    mains: &[&Multiaddr],
) -> Option<Finding> {
    let proxy = match proxy {
        Ok(proxy) => proxy.as_ref()?,
        Err(error) => {
            let advice =
                "correct or unset HTTPS_PROXY: no node starts with it, and so the mains were not asked";
            return Some(Finding::bad("proxy", error.to_string(), advice));
        }
    };
    let over_websocket = mains.iter().filter(|main| Rung::of(main) == Some(Rung::Fallback));
    let (mut through, mut past) = (0, 0);
    for main in over_websocket {
        *(if proxy.carries(main) {
            &mut through
        } else {
            &mut past
        }) += 1;
    }
    let found = match (through, past) {
        (_, 0) => format!("WebSocket goes through {proxy}, which HTTPS_PROXY names"),
        (0, _) => format!("{proxy}, which HTTPS_PROXY names, is used for no main, as NO_PROXY says"),
        (_, past) => format!(
            "WebSocket goes through {proxy}, which HTTPS_PROXY names, except to {past} addresses that NO_PROXY covers"
        ),
    };
    Some(Finding::good("proxy", found))
}

#[expect(clippy::disallowed_methods, reason = "it looks at the clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_is_measured_where_it_would_be() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("of/a/node");
        let (finding, took) = disk(Some(&dir));
        assert!(took.is_some());
        assert!(finding.found.contains("is not there yet"), "{}", finding.found);
        assert!(!dir.exists());
        let left: Vec<_> = std::fs::read_dir(parent.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_bad_and_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let (finding, took) = disk(Some(&file));
        assert_eq!((finding.verdict, took), (Verdict::Bad, None));
        assert!(
            finding.found.contains(file.to_str().unwrap()),
            "{}",
            finding.found
        );
        assert!(finding.advice.unwrap().contains("--data-dir"));
        assert_eq!(disk(None).0.verdict, Verdict::Bad);
    }

    #[test]
    fn a_proxy_is_bad_where_no_node_could_use_it_and_told_with_its_exceptions() {
        let of = |setting: &str| {
            let setting = setting.to_owned();
            Proxy::from_environment(move |name| match name {
                "HTTPS_PROXY" => Some(setting.clone()),
                "NO_PROXY" => Some("192.0.2.1".to_owned()),
                _ => None,
            })
        };
        let here: Multiaddr = "/ip4/192.0.2.1/tcp/443/tls/ws".parse().unwrap();
        let there: Multiaddr = "/ip4/192.0.2.2/tcp/443/tls/ws".parse().unwrap();
        let quic: Multiaddr = "/ip4/192.0.2.2/udp/4001/quic-v1".parse().unwrap();
        let found = |setting, mains: &[&Multiaddr]| proxy(&of(setting), mains);
        let bad = found("socks5://proxy:1080", &[]).unwrap();
        assert_eq!(bad.verdict, Verdict::Bad);
        assert!(bad.found.contains("HTTPS_PROXY"), "{}", bad.found);
        assert_eq!(found("  ", &[&there]), None, "empty is none");
        let all = found("http://user:secret@proxy:3128", &[&there, &quic]).unwrap();
        assert!(all.found.contains("through proxy:3128"), "{}", all.found);
        assert!(
            !all.found.contains("secret") && !all.found.contains("NO_PROXY"),
            "{}",
            all.found
        );
        assert!(
            found("proxy", &[&here])
                .unwrap()
                .found
                .contains("used for no main")
        );
        assert!(
            found("proxy", &[&here, &there])
                .unwrap()
                .found
                .contains("except to 1 addresses")
        );
    }
}
