//! What a round consists of: a fixed set of episodes in an order that follows from the seed.

use weft_conformance::Dice;

/// An episode in the life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Card {
    /// A pod without a container.
    Bare,
    /// A pod whose containers run, are asked something, and are stopped by SIGTERM.
    Plain,
    /// Execs in a pod that has lived for long.
    Execs,
    /// An exec that outlasts its time.
    ExecTimeout,
    /// An exec with input.
    ExecInput,
    /// A container that writes a lot and ends.
    Output,
    /// A container whose process 1 is killed, and that is made again, as in a crash loop.
    Killed,
    /// A container that runs out of memory.
    OutOfMemory,
    /// A container whose command does not exist.
    BadCommand,
    /// A container with a mount where none can be.
    BadMount,
    /// A pod whose shim is killed.
    ShimKilled,
    /// A pod that is removed with all that runs in it.
    Forced,
}

const CARDS: [(Card, usize); 12] = [
    (Card::Bare, 3),
    (Card::Plain, 4),
    (Card::Execs, 6),
    (Card::ExecTimeout, 1),
    (Card::ExecInput, 2),
    (Card::Output, 2),
    (Card::Killed, 2),
    (Card::OutOfMemory, 1),
    (Card::BadCommand, 1),
    (Card::BadMount, 1),
    (Card::ShimKilled, 1),
    (Card::Forced, 2),
];

/// Shuffled (Fisher and Yates).
pub(crate) fn deck(dice: &mut Dice) -> Vec<Card> {
    let mut cards: Vec<Card> =
        CARDS.iter().flat_map(|(card, count)| std::iter::repeat_n(*card, *count)).collect();
    for last in (1..cards.len()).rev() {
        cards.swap(last, dice.below(last + 1));
    }
    cards
}
