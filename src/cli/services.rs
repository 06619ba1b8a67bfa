//! `lapwing services`: what is callable, as far as a node or its main knows.

use serde::Deserialize;

use super::admin_client::Target;
use super::documents;
use super::failure::Failure;
use super::output::{Align, Output, Table, or_dash};

/// The registry, as far as it is printed.
#[derive(Debug, Deserialize)]
struct Registry {
    /// Who knows this: of a home its main.
    node_address: String,
    services: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    version: String,
    node_address: String,
    hops: Option<u64>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
}

/// Asks the node and prints every instance of every service. For programs: the registry document.
pub(crate) async fn run(target: &Target, output: Output) -> Result<(), Failure> {
    let client = target.client()?;
    let document = client
        .get("/federation/services")
        .await
        .map_err(|error| error.failing_to("get the services"))?;
    if output.is_json() {
        return output.document(&document);
    }
    let registry: Registry =
        documents::read(document).map_err(|error| Failure::new("read the services", error))?;
    output.line(table(&registry))?;
    output.line(format!(
        "as {} knows it, from which hops are counted",
        registry.node_address
    ))
}

fn table(registry: &Registry) -> Table {
    let mut table = Table::new([
        ("service", Align::Left),
        ("version", Align::Left),
        ("node", Align::Left),
        ("hops", Align::Right),
        ("methods", Align::Left),
        ("resources", Align::Left),
    ]);
    let listed = |names: &[String]| or_dash((!names.is_empty()).then(|| names.join(", ")));
    for row in &registry.services {
        table.row([
            row.name.clone(),
            row.version.clone(),
            row.node_address.clone(),
            or_dash(row.hops),
            listed(&row.methods),
            listed(&row.resources),
        ]);
    }
    table
}
