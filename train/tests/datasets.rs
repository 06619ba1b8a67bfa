//! Data sets that are not in the repository: read whole, as users would. `.ci/run` runs these and says where the
//! files are; a bare `cargo test` lists them as ignored.

use lapwing_base::Algorithm;
use lapwing_train::{BACKENDS, Batches, DataSpec, backend, load};
use std::path::PathBuf;

#[test]
#[ignore = "needs LAPWING_DATA, a folder with mnist/ and fashion-mnist/; .ci/run datasets sets it"]
fn mnist_and_fashion_mnist_are_read_whole() {
    let folder = PathBuf::from(
        std::env::var("LAPWING_DATA").expect("LAPWING_DATA names the folder with the data sets"),
    );
    for name in ["mnist", "fashion-mnist"] {
        let spec: DataSpec = format!("idx:{}", folder.join(name).display()).parse().unwrap();
        let data = load(&spec).unwrap();
        assert_eq!(
            (data.train.len(), data.test.len(), data.classes),
            (60_000, 10_000, 10),
            "{name}"
        );
        assert_eq!(data.shape.values(), 28 * 28, "{name}");
    }
}

#[test]
#[ignore = "needs LAPWING_DATA, a folder with mnist/; .ci/run datasets sets it"]
fn a_data_set_that_was_cut_is_named_with_what_to_do() {
    let folder = PathBuf::from(
        std::env::var("LAPWING_DATA").expect("LAPWING_DATA names the folder with the data sets"),
    );
    let cut = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder.join("mnist")).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        std::fs::write(cut.path().join(entry.file_name()), &bytes[..bytes.len() / 2]).unwrap();
    }
    let spec: DataSpec = format!("idx:{}", cut.path().display()).parse().unwrap();
    let error = load(&spec).unwrap_err();
    let text = lapwing_base::chain(&error);
    assert!(text.contains(&cut.path().display().to_string()), "{text}");
}

#[test]
#[ignore = "needs LAPWING_DATA, a folder with fashion-mnist/; .ci/run datasets sets it"]
fn lenet_learns_fashion_mnist_in_an_epoch() {
    let folder = PathBuf::from(
        std::env::var("LAPWING_DATA").expect("LAPWING_DATA names the folder with the data sets"),
    );
    let spec: DataSpec = format!("idx:{}", folder.join("fashion-mnist").display())
        .parse()
        .unwrap();
    let data = load(&spec).unwrap();
    let mut lenet = backend(
        BACKENDS[0],
        "lenet",
        data.shape,
        data.classes,
        1,
        &Algorithm::Default.tuning(),
    )
    .unwrap();
    let mut batches = Batches::new(1, 64);
    for step in 0..data.train.len() as u64 / 64 {
        let _ = lenet.step(&batches.at(&data.train, step), 0.01).unwrap();
    }
    let score = lenet.evaluate(&data.test).unwrap();
    println!("{score:?}");
    // One that does not learn stays at a tenth, and a linear model below eight tenths.
    assert!(score.correct > 8000, "{score:?}");
}
