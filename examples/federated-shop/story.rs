//! What happens between the blog and the shop, told on standard output and checked on the way.

use std::error::Error;
use std::time::{Duration, Instant};

use lapwing_federation::{Call, CallAnswer, ErrorCode, Headers};
use serde_json::{Value, json};

use super::blog::Entry;
use super::federated::Federated;

/// How long anything may take: seconds of it only on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells it from the beginning to the end.
pub(crate) async fn tell(federated: &mut Federated) -> Result<(), Box<dyn Error>> {
    println!("blog ── relay-a ── relay-b ── shop: two mains, each with a home, over QUIC\n");
    until_offered(federated, "blog").await?;
    services(federated);
    far_call(federated).await?;
    call_within_a_call(federated).await?;
    one_request(federated).await?;
    blog_goes_and_comes_back(federated).await
}

/// 1. What relay-b knows, though the blog has told relay-a alone.
fn services(federated: &Federated) {
    println!("1. relay-b knows of");
    for offered in federated.relay_b.federation().offered() {
        let hops = offered
            .hops
            .map_or_else(|| "?".to_owned(), |hops| hops.to_string());
        let methods: Vec<_> = offered.service.methods.into_iter().collect();
        println!(
            "   {} at {}, {hops} links away: {}",
            offered.service.name,
            federated.name(offered.origin),
            methods.join(", ")
        );
    }
}

/// 2. From one home to the other: three links, and no node of the outside opens a connection to either of them.
async fn far_call(federated: &Federated) -> Result<(), Box<dyn Error>> {
    println!("\n2. the shop calls blog.list");
    let answer = federated
        .shop
        .federation()
        .call(Call::new("blog".parse()?, "list"))
        .await;
    let way = way(federated, &answer);
    let posts: Vec<Entry> = answer.result()?;
    for Entry { id, title } in &posts {
        println!("   post {id}: {title}");
    }
    println!("   by {way}");
    ensure(posts.len() == 2, "the blog begins with two posts")
}

/// 3. A customer asks the shop, and the shop the blog.
async fn call_within_a_call(federated: &Federated) -> Result<(), Box<dyn Error>> {
    println!("\n3. a customer at relay-b calls shop.related_posts, for which the shop calls the blog");
    let call = Call::new("shop".parse()?, "related_posts").with_arguments(json!(["tea"]));
    let answer = federated.relay_b.federation().call(call).await;
    let way = way(federated, &answer);
    let posts: Vec<Entry> = answer.result()?;
    for Entry { id, title } in &posts {
        println!("   post {id}: {title}");
    }
    println!("   by {way}, and what the shop asked meanwhile");
    ensure(posts.len() == 1, "one post is about tea")
}

/// 4. Commands that need each other's results, in any order, in one request of JSON-RPC as `POST /rpc` takes it.
async fn one_request(federated: &Federated) -> Result<(), Box<dyn Error>> {
    println!(
        "\n4. one request at relay-b: buy tea, say thanks below the post about that, count what is left"
    );
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "request", "params": {
        "commands": [
            { "name": "thanks", "fun": "blog.comment", "args": [{ "$ref": "bought.post" }, "carol", "Thank you!"] },
            { "name": "bought", "fun": "shop.buy", "args": ["tea", "carol"] },
            { "name": "products", "fun": "shop.products" },
        ],
        "return": "all",
        "include_execution_summary": true,
    }});
    let reply = federated
        .relay_b
        .federation()
        .answer(request.to_string().as_bytes(), &Headers::default())
        .await;
    let answer: Value = serde_json::from_str(&reply.body.unwrap_or_default())?;
    let result = &answer["result"];
    let results = &result["results"];
    println!("   bought:   {}", results["bought"]);
    println!("   thanks:   {}", results["thanks"]);
    println!("   products: {}", results["products"]);
    let levels = &result["execution_summary"]["total_levels"];
    println!("   in {levels} levels: what needs nothing first, and side by side");
    ensure(
        results["thanks"]["comments"][0]["author"] == "carol",
        "the comment is below the new post",
    )
}

/// 5. A blog that is away is said to be at once, and is there again as soon as it is back.
async fn blog_goes_and_comes_back(federated: &mut Federated) -> Result<(), Box<dyn Error>> {
    println!("\n5. the blog goes");
    federated.end_blog().await;
    let gone_at = now();
    let error = loop {
        let call = Call::new("blog".parse()?, "list");
        match federated.shop.federation().call(call).await.result::<Value>() {
            Err(error) => break error,
            // The mains are told while this asks.
            Ok(_) => ensure(since(gone_at) < PATIENCE, "the blog is known to be gone")?,
        }
    };
    println!(
        "   after {:.0?} the shop hears: {error} ({})",
        since(gone_at),
        error.code.name()
    );
    ensure(
        matches!(error.code, ErrorCode::ServiceNotFound | ErrorCode::NodeOffline),
        "the error says what is missing",
    )?;
    let back_at = now();
    federated.start_blog().await?;
    until_offered(federated, "blog").await?;
    let call = Call::new("shop".parse()?, "related_posts").with_arguments(json!(["coffee"]));
    let posts: Vec<Entry> = federated.relay_b.federation().call(call).await.result()?;
    println!(
        "   it starts again, and {:.0?} later the shop finds: {}",
        since(back_at),
        posts.first().map_or("nothing", |post| post.title.as_str())
    );
    ensure(posts.len() == 1, "one post is about coffee")
}

/// Waits until relay-b knows of a service of the other main's home, and of the shop.
async fn until_offered(federated: &Federated, service: &str) -> Result<(), Box<dyn Error>> {
    let begun = now();
    let federation = federated.relay_b.federation();
    let knows = |name: &str| {
        let offered = federation.offered();
        offered
            .iter()
            .any(|offered| offered.service.name.as_str() == name && offered.hops.is_some())
    };
    while !knows(service) || !knows("shop") {
        ensure(since(begun) < PATIENCE, "the services are announced")?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The nodes that a call has passed, and what it took altogether.
fn way(federated: &Federated, answer: &CallAnswer) -> String {
    let names: Vec<String> = answer
        .hops
        .iter()
        .rev()
        .map(|hop| federated.name(hop.node))
        .collect();
    let micros = answer
        .hops
        .last()
        .map_or(0, |hop| hop.forward_us.max(hop.exec_us));
    let took = Duration::from_micros(micros.into());
    format!(
        "{} in {took:.1?}: {} links",
        names.join(" -> "),
        names.len().saturating_sub(1)
    )
}

fn ensure(holds: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if holds {
        Ok(())
    } else {
        Err(format!("expected that {what}").into())
    }
}

fn since(begun: Instant) -> Duration {
    now().saturating_duration_since(begun)
}

#[expect(clippy::disallowed_methods, reason = "a story says how long things took")]
fn now() -> Instant {
    Instant::now()
}
