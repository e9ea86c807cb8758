//! Where an error's chain becomes text, and where our errors become ttrpc and CNI codes.

use std::error::Error;

/// The whole chain of `err`, outermost first, joined by `: `. A message never repeats its source, so nothing is
/// printed twice.
pub(crate) fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text
}

/// `err` as a ttrpc status with `code`, the chain as its message.
pub(crate) fn status(code: ttrpc::Code, err: &dyn Error) -> ttrpc::Error {
    ttrpc::error::get_rpc_status(code, chain(err))
}

/// The chains of several errors, joined by `; `.
pub(crate) fn all<E: Error>(errors: &[E]) -> String {
    errors.iter().map(|err| chain(err)).collect::<Vec<_>>().join("; ")
}
