//! A blog as a service: posts and comments, kept in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing_federation::{Methods, RemoteError, Service};
use serde::{Deserialize, Serialize};

/// What is written, and what others say about it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Post {
    pub(crate) id: usize,
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) comments: Vec<Comment>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Comment {
    pub(crate) author: String,
    pub(crate) text: String,
}

/// What a list shows of a post.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Entry {
    pub(crate) id: usize,
    pub(crate) title: String,
}

/// A number of ours that callers find in `error.data.remote.code`.
const NO_SUCH_POST: i64 = 404;

/// What `list` takes: `[]`, `["tea"]` or `{"about": "tea"}`.
#[derive(Debug, Deserialize)]
struct List {
    #[serde(default)]
    about: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Posts(Arc<Mutex<Vec<Post>>>);

/// The service as it is announced, and what answers its calls.
pub(crate) fn blog() -> (Service, Arc<Methods>) {
    let posts = Posts::default();
    posts.write("Why we roast on Tuesdays", "The coffee comes on Mondays.");
    posts.write(
        "How to brew green tea",
        "Not with boiling water: the tea turns bitter.",
    );
    let [list, get, post, comment] = [(); 4].map(|()| posts.clone());
    let methods = Methods::new()
        .method("list", move |List { about }| {
            let entries = list.list(about.as_deref());
            async move { Ok(entries) }
        })
        .method("get", move |(id,): (usize,)| {
            let found = get.with(id, |post| post.clone());
            async move { found }
        })
        .method("post", move |(title, text): (String, String)| {
            let id = post.write(&title, &text);
            async move { Ok(id) }
        })
        .method("comment", move |(id, author, text): (usize, String, String)| {
            let added = comment.with(id, |post| {
                post.comments.push(Comment { author, text });
                post.clone()
            });
            async move { added }
        });
    let name = "blog".parse().expect("the name is one");
    let mut service = Service::new(name);
    service.methods = methods.names();
    (service, Arc::new(methods))
}

impl Posts {
    fn lock(&self) -> MutexGuard<'_, Vec<Post>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, title: &str, text: &str) -> usize {
        let mut posts = self.lock();
        let id = posts.len() + 1;
        posts.push(Post {
            id,
            title: title.to_owned(),
            text: text.to_owned(),
            comments: Vec::new(),
        });
        id
    }

    fn list(&self, about: Option<&str>) -> Vec<Entry> {
        let posts = self.lock();
        let is_about = |post: &&Post| about.is_none_or(|word| post.text.contains(word));
        let entries = posts.iter().filter(is_about).map(|post| Entry {
            id: post.id,
            title: post.title.clone(),
        });
        entries.collect()
    }

    /// A post that there is not is the caller's fault, which says nothing against the health of the blog.
    fn with<R>(&self, id: usize, what: impl FnOnce(&mut Post) -> R) -> Result<R, RemoteError> {
        let mut posts = self.lock();
        let place = id.checked_sub(1);
        let post = place.and_then(|place| posts.get_mut(place));
        let post = post.ok_or_else(|| RemoteError::new(NO_SUCH_POST, format!("there is no post {id}")))?;
        Ok(what(post))
    }
}
