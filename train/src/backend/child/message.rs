//! What a node and a trainer tell each other: one JSON object a line (`docs/trainer-protocol.md`).
//!
//! Pure: reads and writes lines, and judges whether an answer is one to the request. It starts no process and opens no
//! file.

use std::collections::HashSet;
use std::io::{self, BufRead, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layout::{Layout, LayoutError};

/// The version of the protocol. Another number is another protocol.
pub(super) const PROTOCOL: u32 = 1;

/// Longest line of a trainer: a layout of as many tensors as are allowed, with names of 64 bytes.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;

/// Most tensors of a model: the largest published networks have some thousands.
const TENSORS_MAX: usize = 10_000;

/// Longest name of a tensor, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Most dimensions of a tensor; PyTorch's own layers have up to 5.
const DIMENSIONS_MAX: usize = 8;

/// As much of what a trainer said as an error repeats.
const SHOWN_MAX: usize = 200;

/// What the node asks for.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Request<'a> {
    /// A job begins.
    Open {
        protocol: u32,
        /// The file with the parameters.
        model: &'a Path,
        /// The file with what the optimiser remembers.
        state: &'a Path,
        #[serde(flatten)]
        opening: &'a Opening,
    },
    /// Take local steps.
    Train {
        round: u64,
        /// The number of the first step in the job.
        step: u64,
        steps: u32,
        lr: f64,
    },
    /// Say how good the parameters are.
    Evaluate,
    /// Write down what the optimiser remembers.
    Save,
    /// Go on from what is written there.
    Restore { bytes: u64 },
    /// The job is over.
    Stop,
}

/// What a trainer is told of its job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Opening {
    pub(crate) seed: u64,
    /// Samples a step.
    pub(crate) batch: u32,
    pub(crate) momentum: f64,
    pub(crate) weight_decay: f64,
    /// The data's source, such as `idx:DIR`.
    pub(crate) data: String,
    /// This node's part of it, from 1.
    pub(crate) part: u32,
    pub(crate) parts: u32,
}

/// What a trainer says.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Answer {
    Hello(Hello),
    Opened {
        /// How many it trains on.
        #[serde(default)]
        samples: Option<u32>,
    },
    Trained {
        /// Mean over the steps.
        loss: f64,
        samples: u32,
    },
    Evaluated {
        /// From 0 to 1.
        accuracy: f64,
    },
    Saved {
        bytes: u64,
    },
    Restored,
    /// Not an answer yet, but a sign that one is being worked on.
    Progress,
    /// The request has failed; the trainer waits for the next one.
    Error {
        message: String,
    },
}

/// The first line of a trainer.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(super) struct Hello {
    protocol: u32,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) init: Init,
    layout: Vec<(String, Vec<usize>)>,
}

/// Who makes the first parameters.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Init {
    #[default]
    Trainer,
    Node,
}

/// The kinds of answers that a request can have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expected {
    Hello,
    Opened,
    Trained,
    Evaluated,
    Saved,
    Restored,
}

/// Why what a trainer said is no answer.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or not of the protocol.
    #[error(
        "its standard output has something other than a message ({problem}): {line}; print to standard error instead"
    )]
    Garbage {
        /// The line, as far as it can be shown.
        line: String,
        /// What the parser says.
        problem: String,
    },
    /// No end of the line in sight.
    #[error("a line of its standard output has more than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// An answer to something else.
    #[error("it answered `{found}` where `{expected}` was expected")]
    Unexpected {
        /// What was to come.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// It speaks another version.
    #[error("it speaks version {0} of the protocol, and this node version {PROTOCOL}")]
    Version(u32),
    /// A layout that cannot be.
    #[error("its layout cannot be used: {0}")]
    Layout(String),
    /// Too many parameters.
    #[error(transparent)]
    TooLarge(#[from] LayoutError),
    /// A figure that is none.
    #[error("its {what} is {value}, which is not from {min} to {max}")]
    Figure {
        /// What it is about.
        what: &'static str,
        /// As it said it.
        value: f64,
        /// The least.
        min: f64,
        /// The most.
        max: f64,
    },
}

impl Request<'_> {
    /// The line that says it, with its end.
    pub(super) fn line(&self) -> Vec<u8> {
        // Paths that are not UTF-8 are refused where the files are made; nothing else fails.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

impl Expected {
    const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Opened => "opened",
            Self::Trained => "trained",
            Self::Evaluated => "evaluated",
            Self::Saved => "saved",
            Self::Restored => "restored",
        }
    }

    /// What a line says, if it may be said where this is expected.
    pub(super) fn read(self, line: &[u8]) -> Result<Answer, MessageError> {
        let answer: Answer = serde_json::from_slice(line).map_err(|error| MessageError::Garbage {
            line: shown(line),
            problem: error.to_string(),
        })?;
        let fits = match &answer {
            Answer::Progress | Answer::Error { .. } => true,
            answer => answer.kind() == self.name(),
        };
        if !fits {
            return Err(MessageError::Unexpected {
                expected: self.name(),
                found: answer.kind(),
            });
        }
        match answer {
            Answer::Trained { loss, .. } => within("loss", loss, f64::from(f32::MIN), f64::from(f32::MAX))?,
            Answer::Evaluated { accuracy } => within("accuracy", accuracy, 0.0, 1.0)?,
            _ => (),
        }
        Ok(answer)
    }
}

impl Answer {
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Opened { .. } => "opened",
            Self::Trained { .. } => "trained",
            Self::Evaluated { .. } => "evaluated",
            Self::Saved { .. } => "saved",
            Self::Restored => "restored",
            Self::Progress => "progress",
            Self::Error { .. } => "error",
        }
    }
}

impl Hello {
    /// Where its parameters lie.
    pub(super) fn layout(&self) -> Result<Layout, MessageError> {
        if self.protocol != PROTOCOL {
            return Err(MessageError::Version(self.protocol));
        }
        let refused = |problem: String| Err(MessageError::Layout(problem));
        let tensors = self.layout.len();
        if tensors == 0 || tensors > TENSORS_MAX {
            return refused(format!("it has {tensors} tensors, not 1 to {TENSORS_MAX}"));
        }
        let mut names = HashSet::new();
        for (name, shape) in &self.layout {
            let shown: String = name.chars().take(64).collect();
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return refused(format!(
                    "the name `{shown}` does not have 1 to {NAME_BYTES_MAX} bytes"
                ));
            }
            // What a safetensors file keeps its own notes under.
            if name == "__metadata__" || !names.insert(name) {
                return refused(format!("the name `{shown}` is taken"));
            }
            if shape.len() > DIMENSIONS_MAX || shape.contains(&0) {
                return refused(format!(
                    "`{shown}` does not have up to {DIMENSIONS_MAX} dimensions of at least 1: {shape:?}"
                ));
            }
        }
        Ok(Layout::new(self.layout.iter().cloned())?)
    }
}

fn within(what: &'static str, value: f64, min: f64, max: f64) -> Result<(), MessageError> {
    // A NaN is within nothing.
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(MessageError::Figure {
        what,
        value,
        min,
        max,
    })
}

/// The beginning of a line, fit for a log.
pub(super) fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(SHOWN_MAX)]);
    text.chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect()
}

/// Bytes up to the end of a line, without it.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    /// Whether the line ends there; otherwise it is too long, or the input ends without its end.
    pub(super) is_whole: bool,
}

/// The next line, or as much of it as is allowed; `None` at the end.
pub(super) fn read_line(input: &mut impl BufRead, max: usize) -> io::Result<Option<Piece>> {
    let mut bytes = Vec::new();
    input
        .by_ref()
        .take(max as u64 + 1)
        .read_until(b'\n', &mut bytes)?;
    let is_whole = bytes.pop_if(|last| *last == b'\n').is_some();
    Ok((is_whole || !bytes.is_empty()).then_some(Piece { bytes, is_whole }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn hello(layout: &str) -> Result<Layout, MessageError> {
        let line = format!(r#"{{"type":"hello","protocol":1,"layout":{layout}}}"#);
        match Expected::Hello.read(line.as_bytes())? {
            Answer::Hello(hello) => hello.layout(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_lines_of_json_as_documented() {
        let text = |request: Request<'_>| String::from_utf8(request.line()).unwrap();
        assert_eq!(
            text(Request::Train {
                round: 12,
                step: 110,
                steps: 10,
                lr: 0.05
            }),
            "{\"type\":\"train\",\"round\":12,\"step\":110,\"steps\":10,\"lr\":0.05}\n"
        );
        assert_eq!(text(Request::Evaluate), "{\"type\":\"evaluate\"}\n");
        assert_eq!(
            text(Request::Restore { bytes: 0 }),
            "{\"type\":\"restore\",\"bytes\":0}\n"
        );
        let opening = Opening {
            seed: 1,
            batch: 32,
            momentum: 0.9,
            weight_decay: 0.0,
            data: "digits".to_owned(),
            part: 1,
            parts: 3,
        };
        let open = Request::Open {
            protocol: PROTOCOL,
            model: Path::new("/dev/shm/a/model"),
            state: Path::new("/dev/shm/a/state"),
            opening: &opening,
        };
        assert_eq!(
            text(open),
            "{\"type\":\"open\",\"protocol\":1,\"model\":\"/dev/shm/a/model\",\"state\":\"/dev/shm/a/state\",\
             \"seed\":1,\"batch\":32,\"momentum\":0.9,\"weight_decay\":0.0,\"data\":\"digits\",\"part\":1,\"parts\":3}\n"
        );
    }

    #[test]
    fn a_hello_gives_the_layout_in_its_order() {
        let layout = hello(r#"[["weight",[10,64]],["bias",[10]],["scale",[]]]"#).unwrap();
        assert_eq!(layout.parameters(), 651);
        let names: Vec<&str> = layout.iter().map(|parameter| parameter.name.as_str()).collect();
        assert_eq!(names, ["weight", "bias", "scale"]);
    }

    #[test]
    fn layouts_that_cannot_be_are_refused_with_the_reason() {
        for (layout, told) in [
            ("[]", "it has 0 tensors"),
            (r#"[["",[1]]]"#, "1 to 256 bytes"),
            (r#"[["a",[1]],["a",[2]]]"#, "`a` is taken"),
            (r#"[["__metadata__",[1]]]"#, "is taken"),
            (r#"[["a",[3,0]]]"#, "[3, 0]"),
            (r#"[["a",[1,1,1,1,1,1,1,1,1]]]"#, "up to 8 dimensions"),
            (r#"[["a",[1073741825]]]"#, "more than 1073741824 parameters"),
            (r#"[["a",[4294967296,4294967296]]]"#, "parameters"),
        ] {
            let error = hello(layout).unwrap_err().to_string();
            assert!(error.contains(told), "{layout}: {error}");
        }
        let many: Vec<String> = (0..=TENSORS_MAX).map(|i| format!(r#"["t{i}",[1]]"#)).collect();
        assert!(hello(&format!("[{}]", many.join(","))).is_err());
        let line = br#"{"type":"hello","protocol":2,"layout":[["a",[1]]]}"#;
        let Ok(Answer::Hello(newer)) = Expected::Hello.read(line) else {
            panic!("its form is that of version 1");
        };
        assert!(matches!(newer.layout(), Err(MessageError::Version(2))));
    }

    #[test]
    fn garbage_is_refused_and_shown() {
        for line in [
            &b"Epoch 1/10"[..],
            b"",
            b"{}",
            b"[1,2]",
            br#"{"type":"nothing"}"#,
            br#"{"type":"trained","loss":NaN,"samples":1}"#,
            br#"{"type":"trained","loss":0.5,"samples":-1}"#,
            br#"{"type":"trained","loss":0.5}"#,
            b"\xff\xfe\x1b[31m",
        ] {
            let error = Expected::Trained.read(line).unwrap_err();
            assert!(matches!(error, MessageError::Garbage { .. }), "{error}");
            let text = error.to_string();
            assert!(
                !text.contains('\u{1b}') && text.contains("standard error"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_answer_to_something_else_is_refused_and_signs_of_life_never_are() {
        let error = Expected::Evaluated
            .read(br#"{"type":"trained","loss":0.5,"samples":32}"#)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "it answered `trained` where `evaluated` was expected"
        );
        for expected in [Expected::Hello, Expected::Trained, Expected::Saved] {
            assert_eq!(
                expected.read(br#"{"type":"progress"}"#).unwrap(),
                Answer::Progress
            );
            let error = expected.read(br#"{"type":"error","message":"no data"}"#).unwrap();
            assert!(matches!(error, Answer::Error { message } if message == "no data"));
        }
    }

    #[test]
    fn keys_of_a_later_version_are_passed_over() {
        let answer = Expected::Evaluated
            .read(br#"{"type":"evaluated","accuracy":0.5,"loss":1.25}"#)
            .unwrap();
        assert_eq!(answer, Answer::Evaluated { accuracy: 0.5 });
    }

    #[test]
    fn figures_out_of_their_range_are_refused() {
        for line in [
            &br#"{"type":"evaluated","accuracy":1.5}"#[..],
            br#"{"type":"evaluated","accuracy":-0.1}"#,
        ] {
            let error = Expected::Evaluated.read(line).unwrap_err();
            assert!(error.to_string().contains("accuracy"), "{error}");
        }
        let huge = br#"{"type":"trained","loss":1e300,"samples":1}"#;
        assert!(matches!(
            Expected::Trained.read(huge),
            Err(MessageError::Figure { .. })
        ));
    }

    #[test]
    fn lines_are_read_one_by_one_and_never_beyond_their_bound() {
        let mut input = BufReader::with_capacity(3, &b"one\n\nlonger than that\nend"[..]);
        let mut next = || {
            read_line(&mut input, 6)
                .unwrap()
                .map(|piece| (piece.bytes, piece.is_whole))
        };
        assert_eq!(next(), Some((b"one".to_vec(), true)));
        assert_eq!(next(), Some((vec![], true)));
        assert_eq!(next(), Some((b"longer ".to_vec(), false)));
        assert_eq!(next(), Some((b"than th".to_vec(), false)));
        assert_eq!(next(), Some((b"at".to_vec(), true)));
        assert_eq!(next(), Some((b"end".to_vec(), false)));
        assert_eq!(next(), None);
    }
}
