//! The kernels of a round beside a memory copy, at the size of the papers' model and at a hundred million parameters:
//! `cargo bench -p lapwing-train --no-default-features --bench kernels [PARAMETERS…]`.
//!
//! One thread, a minute, five times the memory of the larger model. It asserts nothing.

use lapwing_train::bench::{PARAMETERS, kernel_rows};

fn main() {
    // Cargo adds `--bench`, for harnesses that also run tests.
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let sizes: Result<Vec<usize>, _> = arguments.map(|size| size.parse()).collect();
    let sizes = match sizes {
        Ok(sizes) if sizes.is_empty() => vec![PARAMETERS, 100_000_000],
        Ok(sizes) => sizes,
        Err(error) => {
            eprintln!("sizes are numbers of parameters: {error}");
            std::process::exit(2);
        }
    };
    println!(
        "{:<75} {:>8} {:>8} {:<4} {:>6}",
        "case", "value", "baseline", "unit", "ratio"
    );
    for row in sizes.into_iter().flat_map(kernel_rows) {
        let (case, unit) = (row.case, row.unit);
        println!(
            "{case:<75} {:>8.3} {:>8.3} {unit:<4} {:>6.2}",
            row.value, row.baseline, row.ratio
        );
    }
}
