//! A shop as a service. It calls the blog, wherever that is: for posts about what it sells, and to write about what it has
//! sold out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapwing_federation::{Call, CallError, Federation, Methods, RemoteError, Service, ServiceName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::blog::Entry;

/// What was bought, how many are left, and the post about it, if the blog could be asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Bought {
    pub(crate) product: String,
    pub(crate) left: u32,
    pub(crate) post: Option<usize>,
}

const NO_SUCH_PRODUCT: i64 = 404;
const SOLD_OUT: i64 = 410;
const NO_BLOG: i64 = 502;

/// The service as it is announced, and what answers its calls. It calls others through `federation`, which it keeps alive: the
/// relay therefore has to be shut down, and not only dropped.
pub(crate) fn shop(federation: &Federation) -> (Service, Arc<Methods>) {
    let stock = Arc::new(Mutex::new(BTreeMap::from([
        ("coffee".to_owned(), 12_u32),
        ("tea".to_owned(), 3),
    ])));
    let products = Arc::clone(&stock);
    let (blog, blog_of_posts) = (Blog::new(federation), Blog::new(federation));
    let methods = Methods::new()
        .method("products", move |()| {
            let products = products.lock().unwrap_or_else(PoisonError::into_inner).clone();
            async move { Ok(products) }
        })
        .method("buy", move |(product, customer): (String, String)| {
            let (stock, blog) = (Arc::clone(&stock), blog.clone());
            async move {
                let left = take(
                    &mut stock.lock().unwrap_or_else(PoisonError::into_inner),
                    &product,
                )?;
                let title = format!("{customer} has bought {product}");
                let text = format!("There are {left} packets of {product} left.");
                // A blog that is away keeps nobody from buying.
                let post = blog.call("post", json!([title, text])).await.ok();
                Ok(Bought { product, left, post })
            }
        })
        .method("related_posts", move |(product,): (String,)| {
            let blog = blog_of_posts.clone();
            async move { blog.call::<Vec<Entry>>("list", json!({ "about": product })).await }
        });
    let mut service = Service::new("shop".parse().expect("the name is one"));
    service.methods = methods.names();
    (service, Arc::new(methods))
}

fn take(stock: &mut BTreeMap<String, u32>, product: &str) -> Result<u32, RemoteError> {
    let left = stock
        .get_mut(product)
        .ok_or_else(|| RemoteError::new(NO_SUCH_PRODUCT, format!("there is no {product} here")))?;
    *left = left
        .checked_sub(1)
        .ok_or_else(|| RemoteError::new(SOLD_OUT, format!("{product} is sold out")))?;
    Ok(*left)
}

/// The blog, whoever offers it.
#[derive(Clone, Debug)]
struct Blog {
    federation: Federation,
    name: ServiceName,
}

impl Blog {
    fn new(federation: &Federation) -> Self {
        Self {
            federation: federation.clone(),
            name: "blog".parse().expect("the name is one"),
        }
    }

    /// Customers wait less long than the blog may take.
    async fn call<R: DeserializeOwned>(&self, method: &str, arguments: Value) -> Result<R, RemoteError> {
        let call = Call::new(self.name.clone(), method)
            .with_arguments(arguments)
            .with_timeout(Duration::from_secs(5));
        let no_blog =
            |error: CallError| RemoteError::new(NO_BLOG, format!("the blog has not answered: {error}"));
        self.federation.call(call).await.result().map_err(no_blog)
    }
}
