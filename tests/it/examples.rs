//! The examples do what they say.

// As the example has them, in the same places.
#[path = "../../examples/federated-blog/blog.rs"]
mod blog;
#[path = "../../examples/federated-shop/federated.rs"]
mod federated;
#[path = "../../examples/federated-shop/shop.rs"]
mod shop;
#[path = "../../examples/federated-shop/story.rs"]
mod story;

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_of_the_example_calls_the_blog_across_two_mains() {
    let mut federated = federated::Federated::start().await.unwrap();
    let told = story::tell(&mut federated).await;
    federated.shutdown().await;
    told.unwrap();
}
