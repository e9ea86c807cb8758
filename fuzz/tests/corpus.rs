//! Every saved input, and changes of them at random: for `WEFT_FUZZ_SECONDS` a target, or for a moment. The changes are the same
//! in each run.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use weft_fuzz::{TARGETS, Target, corpus, seeds};

/// xorshift64*: the same numbers everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }

    /// Some bytes more, less, other or twice.
    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.roll(input.len() + 1);
        let end = (at + 1 + self.roll(16)).min(input.len());
        let part = match self.roll(5) {
            0 => vec![],
            1 => input[at..end].repeat(2),
            2 => vec![[0, 0xff, 0x7f, b'"', b'0', b'-'][self.roll(6)]; end - at],
            3 => {
                let from = self.roll(other.len());
                other[from..(from + 1 + self.roll(64)).min(other.len())].to_vec()
            }
            _ => input[at..end].iter().map(|byte| byte ^ 1 << self.roll(8)).collect(),
        };
        input.splice(at..end, part);
        input.truncate(4096);
    }
}

fn run(target: Target, input: &[u8]) {
    if catch_unwind(|| target(input)).is_err() {
        panic!("a finding: {input:?}, as text {:?}", String::from_utf8_lossy(input));
    }
}

fn fuzz(name: &str, target: Target) {
    let seconds = std::env::var("WEFT_FUZZ_SECONDS").map_or(1, |seconds| seconds.parse().unwrap());
    let mut inputs = corpus(name).unwrap();
    inputs.extend(seeds().unwrap().into_iter().filter(|(of, _)| *of == name).map(|(_, seed)| seed));
    inputs.sort();
    assert!(inputs.len() > 2, "{name} has inputs to begin with");
    inputs.iter().for_each(|input| run(target, input));
    let (end, mut dice) = (Instant::now() + Duration::from_secs(seconds), Dice(0x7765_6674));
    while Instant::now() < end {
        let mut input = inputs[dice.roll(inputs.len())].clone();
        for _ in 0..=dice.roll(4) {
            let other = dice.roll(inputs.len());
            dice.change(&mut input, &inputs[other]);
        }
        run(target, &input);
    }
}

#[test]
fn no_input_does_harm() {
    for (name, target) in TARGETS {
        fuzz(name, target);
    }
}
