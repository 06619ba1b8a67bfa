//! How fast each backend trains each built-in model, on one thread, and what memory that takes:
//! `cargo run --release -p lapwing-train --example throughput [BACKEND MODEL [BATCH]]`.
//!
//! Time is the thread's processor time, as Linux counts it, so that a busy machine disturbs little. Memory is the
//! process' peak, less what it had before it made the model; each line is a process of its own. Samples are noise.

use std::process::{Command, Stdio};

use lapwing_base::Algorithm;
use lapwing_train::{BACKENDS, BYTES, Batch, InputKind, InputShape, Model, backend};

/// Processor time that is measured for each line, in seconds.
const MEASURED: f64 = 3.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => {
            println!("backend  model        parameters  batch  samples per CPU second  peak memory");
            Model::names().try_for_each(compare)
        }
        [backend, model] => measure(backend, model, 64),
        [backend, model, batch] => measure(backend, model, batch.parse()?),
        _ => Err("usage: throughput [BACKEND MODEL [BATCH]]".into()),
    }
}

/// A line for each backend, and how many times the default's samples it trains.
fn compare(model: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut first = None;
    for backend in BACKENDS {
        let output = Command::new(std::env::current_exe()?)
            .args([*backend, model])
            .stderr(Stdio::inherit())
            .output()?;
        let line = String::from_utf8(output.stdout)?;
        let rate = line
            .split_whitespace()
            .nth(4)
            .ok_or("a backend measured nothing")?;
        let rate: f64 = rate.parse()?;
        let times = rate / *first.get_or_insert(rate);
        println!("{}, {times:.2} x the rate of {}", line.trim_end(), BACKENDS[0]);
    }
    Ok(())
}

fn measure(backend_name: &str, model: &str, samples: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (shape, classes) = match model {
        "transformer" => (InputShape::text(64), BYTES),
        "cifar10-cnn" | "resnet20" => (InputShape::image(3, 32, 32), 10),
        _ => (InputShape::image(1, 28, 28), 10),
    };
    let noise = |place: usize| (place.wrapping_mul(2_654_435_761) >> 7) as u8;
    let features: Vec<f32> = (0..samples * shape.values())
        .map(|place| match shape.kind {
            InputKind::Numbers => f32::from(noise(place)) / 64.0 - 2.0,
            InputKind::Bytes => f32::from(noise(place)),
        })
        .collect();
    let labels: Vec<u8> = (0..samples).map(|place| noise(place) % 10).collect();
    let batch = Batch {
        features: &features,
        labels: &labels,
        width: shape.values(),
        counts: &[],
    };
    let before = memory("VmHWM:")?;
    let mut trained = backend(
        backend_name,
        model,
        shape,
        classes,
        1,
        &Algorithm::Default.tuning(),
    )?;
    let parameters = trained.layout().parameters();
    let _ = trained.step(&batch, 0.01)?;
    let (started, mut steps) = (processor_time()?, 0);
    let took = loop {
        let _ = trained.step(&batch, 0.01)?;
        steps += 1;
        let took = processor_time()? - started;
        if took > MEASURED {
            break took;
        }
    };
    let rate = (steps * samples) as f64 / took;
    let used = memory("VmHWM:")? - before;
    let times = used / (parameters * size_of::<f32>()) as f64;
    println!(
        "{backend_name:<7}  {model:<11}  {parameters:>10}  {samples:>5}  {rate:>22.0}  {:.1} MB, {times:.1} x parameters",
        used / 1e6
    );
    Ok(())
}

/// Seconds that this thread has computed.
fn processor_time() -> Result<f64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split(' ').next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e9)
}

/// A line of this process' status, in bytes.
fn memory(line: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let found = text.lines().find_map(|text| text.strip_prefix(line));
    let kibibytes: f64 = found
        .and_then(|text| text.split_whitespace().next())
        .ok_or("no such line")?
        .parse()?;
    Ok(kibibytes * 1024.0)
}
