//! Making the table anew, in one transaction, and whether it has to be.
//!
//! A pod's elements are in the table from before its record says "attached" until after it says "detaching", and none lasts longer than
//! there is a record; that an address is hidden may outlast it. So a table that lacks something of an attached pod, or has what is no record's, was changed by somebody
//! else. The kernel numbers its transactions, and refuses one that goes by an old number: what was read, the records
//! among it, was all true at the instant when the table is made anew. So no attach that is under way looks like damage.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use nix::libc;
use weft_netns::Netfilter;
use weft_netns::nft::Batch;

use super::{Error, TABLE, by_set, element, kernel, lists, needs_guard, ruleset, wanted};
use crate::pod;
use crate::record::{Record, State};
use crate::state::Ledger;

/// How often a table that is being made again may be overtaken by the changes of others.
pub(super) const ATTEMPTS: usize = 50;
const STEP: &str = "make the table inet weft anew";

/// Makes the table anew, damaged or not: a pod has found that it lacks what every pod needs, or a chain of its network.
///
/// # Errors
/// [`Error::Overtaken`], or the kernel's or the store's.
pub(super) fn restore(ledger: &Ledger, netfilter: &Netfilter) -> Result<(), pod::Error> {
    // A pod of a newer version loses its ports with the table, but no other pod waits for it.
    mend(ledger, netfilter, Ledger::readable_records, |_| true).map(drop)
}

/// Makes the table anew if it is damaged; `true` if it was. Who watches the store hears of it. What is stale goes without a word.
///
/// # Errors
/// As of [`restore`].
pub(crate) fn repair(ledger: &Ledger) -> Result<bool, pod::Error> {
    let netfilter = Netfilter::open().map_err(kernel(STEP))?;
    let shape = mend(ledger, &netfilter, Ledger::records, |shape| shape != Shape::Whole)?;
    Ok(shape == Shape::Damaged)
}

/// Makes the table anew where its shape asks for it; what that was. Damage is counted.
fn mend(
    ledger: &Ledger,
    netfilter: &Netfilter,
    read: impl Fn(&Ledger) -> Result<Vec<Record>, pod::Error>,
    asks_for_it: impl Fn(Shape) -> bool,
) -> Result<Shape, pod::Error> {
    for _ in 0..ATTEMPTS {
        let generation = netfilter.generation().map_err(kernel(STEP))?;
        let records = read(ledger)?;
        let shape = shape(netfilter, &records).map_err(kernel(STEP))?;
        if !asks_for_it(shape) {
            return Ok(shape);
        }
        if remake(netfilter, generation, &records)? {
            if shape == Shape::Damaged {
                ledger.count_repair()?;
            }
            return Ok(shape);
        }
    }
    Err(Error::Overtaken.into())
}

/// Whether the table is as the records say.
///
/// # Errors
/// As of [`restore`].
pub(crate) fn is_as_recorded(ledger: &Ledger) -> Result<bool, pod::Error> {
    let step = "look at the table inet weft";
    let netfilter = Netfilter::open().map_err(kernel(step))?;
    for _ in 0..ATTEMPTS {
        let generation = netfilter.generation().map_err(kernel(step))?;
        if shape(&netfilter, &ledger.records()?).map_err(kernel(step))? != Shape::Damaged {
            return Ok(true);
        }
        if netfilter.generation().map_err(kernel(step))? == generation {
            return Ok(false);
        }
    }
    Err(Error::Overtaken.into())
}

/// `false` if somebody has changed nftables since `generation`: then nothing is done.
fn remake(netfilter: &Netfilter, generation: u32, records: &[Record]) -> Result<bool, pod::Error> {
    let mut batch = Batch::of(TABLE);
    batch.unless_changed_since(generation);
    // What is not there cannot be deleted.
    batch.add_table();
    batch.delete_table();
    batch.add_table();
    ruleset::build(&mut batch);
    lists(records).iter().for_each(|(list, except)| ruleset::build_list(&mut batch, list, except));
    for (set, elements) in wanted(records) {
        batch.add_elements(&set, &elements);
    }
    match netfilter.commit(batch) {
        Err(err) if err.errno() == Some(libc::ERESTART) => Ok(false),
        done => done.map(|()| true).map_err(kernel(STEP)),
    }
}

/// How the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// As the records say.
    Whole,
    /// It hides addresses too that nobody has any more: in nobody's way, and mostly about to expire.
    Stale,
    /// Somebody else has changed it.
    Damaged,
}

/// How the table is, as the module says. One that nobody needs may be missing.
fn shape(netfilter: &Netfilter, records: &[Record]) -> Result<Shape, weft_netns::Error> {
    let attached: Vec<Record> =
        records.iter().filter(|record| record.state == State::Attached).cloned().collect();
    let mut needed = wanted(&attached);
    if !netfilter.has_table(TABLE)? {
        let is_needed = !needed.is_empty() || attached.iter().any(needs_guard);
        return Ok(if is_needed { Shape::Damaged } else { Shape::Whole });
    }
    let owned: Vec<_> = records.iter().flat_map(element::own).collect();
    let (mut owned, mut shape) = (by_set(&owned), Shape::Whole);
    let fixed = ruleset::SETS.iter().map(|set| Cow::Borrowed(set.name));
    for set in fixed.chain(owned.keys().cloned()).collect::<BTreeSet<_>>() {
        let there: BTreeSet<_> = netfilter.elements(TABLE, &set)?.into_iter().collect();
        let owned: BTreeSet<_> = owned.remove(&set).unwrap_or_default().into_iter().collect();
        if !needed.remove(&set).unwrap_or_default().iter().all(|element| there.contains(element)) {
            return Ok(Shape::Damaged);
        }
        for nobodys in there.difference(&owned) {
            if element::is_hiding(&set) {
                shape = Shape::Stale;
            } else if netfilter.has_lasting(TABLE, &set, nobodys)? {
                return Ok(Shape::Damaged);
            }
        }
    }
    Ok(if has_rules(netfilter, &attached)? { shape } else { Shape::Damaged })
}

/// What of a pod's host ports and masquerade is not in the table, in words; the rules first, without which no element counts.
///
/// # Errors
/// The kernel's.
pub(crate) fn lost(record: &Record) -> Result<Option<String>, pod::Error> {
    let own = element::own(record);
    if own.is_empty() {
        return Ok(None);
    }
    let step = "look at the table inet weft";
    let netfilter = Netfilter::open().map_err(kernel(step))?;
    let there = netfilter.rules(TABLE).map_err(kernel(step))?;
    let mut wanted = rules_for(std::slice::from_ref(record)).into_iter();
    if let Some((chain, _)) = wanted.find(|(chain, rules)| there.get(chain) != Some(rules)) {
        return Ok(Some(format!("a rule of chain {chain} in the table inet {TABLE}")));
    }
    for placed in own {
        let there = netfilter.element(TABLE, &placed.set, &placed.element).map_err(kernel(step))?;
        if there.as_ref() != Some(&placed.element) {
            let what = placed.port.map_or_else(|| "the pod".to_owned(), |port| format!("host port {port}"));
            return Ok(Some(format!("{what} in set {} of the table inet {TABLE}", placed.set)));
        }
    }
    Ok(None)
}

/// How many rules each chain has in a table that is made for these records.
fn rules_for(records: &[Record]) -> BTreeMap<String, usize> {
    let mut rules = BTreeMap::new();
    ruleset::rules().into_iter().for_each(|(chain, _)| *rules.entry(chain.to_owned()).or_default() += 1);
    let of_list =
        |(list, except): (String, &[_])| (ruleset::chain_of(&list), ruleset::hide(&list, except).len());
    rules.extend(lists(records).into_iter().map(of_list));
    rules
}

/// Whether the rules are those that a table is made with. A chain that hid pods stays when they have gone, until the table is made
/// anew for something else.
fn has_rules(netfilter: &Netfilter, attached: &[Record]) -> Result<bool, weft_netns::Error> {
    let there = netfilter.rules(TABLE)?;
    let made = rules_for(attached);
    let is_known = |chain: &String| made.contains_key(chain) || chain.starts_with(ruleset::HIDING);
    Ok(made.iter().all(|(chain, rules)| there.get(chain) == Some(rules)) && there.keys().all(is_known))
}
