//! Prints the kernel measurements as a table, or with `--json` as one object a line.

use lapwing_train::bench::kernel_rows;

fn main() {
    let is_json = std::env::args().any(|argument| argument == "--json");
    for row in kernel_rows() {
        if is_json {
            println!(
                "{}",
                serde_json::to_string(&row).expect("a row of numbers and texts encodes")
            );
        } else {
            println!(
                "{:40} {:>10.3} {:6} {:>10.3} baseline {:>8.2} x",
                row.case, row.value, row.unit, row.baseline, row.ratio
            );
        }
    }
}
