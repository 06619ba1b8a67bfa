# The parts of `.ci/run` under short names; that script is what counts.

# Everything, without writing anything.
verify:
    .ci/run

# What can be mended by machine.
fix:
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

# One part of `.ci/run`, such as `just part lints`.
part name:
    .ci/run {{name}}

# The measurements of `lapwing bench`, or only some of them, on an idle machine.
bench *names:
    cargo bench --bench rows -- {{names}}

# The documentation, in a browser.
doc:
    cargo doc --workspace --no-deps --open
