//! `lapwing cluster`: who is a member in what role, and what an operator may ask of the cluster.

use clap::Subcommand;

use super::admin_client::{AdminClient, Target};
use super::documents::{self, MembersDocument};
use super::failure::Failure;
use super::output::{Align, Output, Table, or_dash};

/// What is asked. An ID is a member's number such as n3, a peer id, or a name that only one member has.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Who is a member in what role
    Members(#[command(flatten)] Target),
    /// Makes a learner a voter
    Promote(Subject),
    /// Makes a voter a learner
    Demote(Subject),
    /// Removes a member; it can join again only as a new one
    Remove(Subject),
    /// Makes a voter the leader
    TransferLeader(Subject),
    /// Writes a snapshot of the committed state now
    Snapshot(#[command(flatten)] Target),
}

/// A member, and the node to ask.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Subject {
    /// Number (n3), peer id, or unique name
    id: String,
    #[command(flatten)]
    target: Target,
}

/// Does what was asked, and prints the outcome.
pub(crate) async fn run(command: &ClusterCommand, output: Output) -> Result<(), Failure> {
    match command {
        ClusterCommand::Members(target) => members(&target.client()?, output).await,
        ClusterCommand::Promote(subject) => {
            order(
                subject,
                "members",
                "/promote",
                "promote",
                "is a voter now",
                output,
            )
            .await
        }
        ClusterCommand::Demote(subject) => {
            order(
                subject,
                "members",
                "/demote",
                "demote",
                "is a learner now",
                output,
            )
            .await
        }
        ClusterCommand::Remove(subject) => {
            order(
                subject,
                "members",
                "/remove",
                "remove",
                "is a member no more",
                output,
            )
            .await
        }
        ClusterCommand::TransferLeader(subject) => {
            order(
                subject,
                "leader",
                "",
                "hand the leadership to",
                "leads now",
                output,
            )
            .await
        }
        ClusterCommand::Snapshot(target) => {
            let answer: serde_json::Value = target
                .client()?
                .post("/v1/snapshot", None)
                .await
                .map_err(|error| error.failing_to("write a snapshot"))?;
            done(&answer, "a snapshot is written", output)
        }
    }
}

async fn members(client: &AdminClient, output: Output) -> Result<(), Failure> {
    let document: serde_json::Value = client
        .get("/v1/members")
        .await
        .map_err(|error| error.failing_to("list the members"))?;
    if output.is_json() {
        return output.document(&document);
    }
    let document: MembersDocument =
        documents::read(document).map_err(|error| Failure::new("read the list of members", error))?;
    output.line(table(&document))?;
    output.line(format!(
        "cluster {}, term {}, leader {}",
        or_dash(document.cluster_id.as_ref()),
        document.term,
        or_dash(document.leader.as_ref()),
    ))
}

fn table(document: &MembersDocument) -> Table {
    let mut table = Table::new([
        ("id", Align::Left),
        ("name", Align::Left),
        ("raft", Align::Left),
        ("state", Align::Left),
        ("role", Align::Left),
        ("peer", Align::Left),
        ("addresses", Align::Left),
    ]);
    for member in &document.members {
        let raft = match (document.leader.as_ref() == Some(&member.id), member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        table.row([
            member.id.clone(),
            member.name.clone(),
            raft.to_owned(),
            match &member.quarantine {
                Some(quarantine) => format!(
                    "{}, in quarantine until round {}",
                    member.state, quarantine.until_round
                ),
                None => member.state.clone(),
            },
            member.role.clone(),
            member.peer_id.clone(),
            member.addrs.join(" "),
        ]);
    }
    table
}

async fn order(
    subject: &Subject,
    collection: &str,
    verb: &str,
    doing: &str,
    outcome: &str,
    output: Output,
) -> Result<(), Failure> {
    // Names may have any character; in a path each byte that is not plain is escaped.
    let path = format!("/v1/{collection}/{}{verb}", escaped(&subject.id));
    let answer: serde_json::Value = subject
        .target
        .client()?
        .post(&path, None)
        .await
        .map_err(|error| error.failing_to(format!("{doing} {}", subject.id)))?;
    done(&answer, &format!("{} {outcome}", subject.id), output)
}

/// Prints the outcome of an order: a sentence, or for programs the node's answer.
pub(super) fn done(answer: &serde_json::Value, sentence: &str, output: Output) -> Result<(), Failure> {
    if !output.is_json() {
        output.line(sentence)
    } else if answer.is_null() {
        output.document(&serde_json::json!({}))
    } else {
        output.document(answer)
    }
}

/// One segment of a path (RFC 3986, section 2.1).
pub(super) fn escaped(segment: &str) -> String {
    let mut path = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_marked_among_the_voters() {
        let text = r#"{"leader": "n1", "members": [
            {"id": "n1", "peer_id": "A", "name": "alice", "role": "main", "state": "active", "voter": true, "addrs": []},
            {"id": "n3", "peer_id": "B", "name": "bob", "role": "main", "state": "joining", "voter": false, "addrs": ["/ip4/1.2.3.4"]}]}"#;
        let shown = table(&serde_json::from_str(text).unwrap()).to_string();
        assert_eq!(
            shown.lines().collect::<Vec<_>>(),
            [
                "id  name   raft     state    role  peer  addresses",
                "n1  alice  leader   active   main  A",
                "n3  bob    learner  joining  main  B     /ip4/1.2.3.4",
            ]
        );
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        assert_eq!(escaped("../é?"), "..%2F%C3%A9%3F");
    }
}
